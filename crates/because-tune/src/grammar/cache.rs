use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Result, TuneError};
use crate::grammar::Compiled;

/// Compiled schemas that are kept, and refusals; some stages name the candidates of a call in its schema.
const KEPT: usize = 32;
/// Bytes of the automatons of one schema above which it is compiled anew for the next answer.
pub(super) const MOST_BYTES: usize = 64 << 20;
/// Bytes of all that are kept; answers under way hold what they began with.
const MOST_BYTES_KEPT: usize = 256 << 20;

/// What is known of schemas, by their texts. The last used is last.
#[derive(Default)]
pub(super) struct Cache {
    compiled: Vec<(String, Arc<Compiled>)>,
    /// With the place and the reason. A schema that is refused costs its sender little and us a lot.
    refused: Vec<(String, String, String)>,
}

impl Cache {
    /// # Errors
    /// The refusal of a schema that was refused before.
    pub(super) fn find(&mut self, text: &str) -> Result<Option<Arc<Compiled>>> {
        if let Some(at) = self.refused.iter().position(|(one, ..)| one == text) {
            let one = self.refused.remove(at);
            let (place, reason) = (one.1.clone(), one.2.clone());
            self.refused.push(one);
            return Err(TuneError::Schema { place, reason });
        }
        let Some(at) = self.compiled.iter().position(|(one, _)| one == text) else {
            return Ok(None);
        };
        let one = self.compiled.remove(at);
        let compiled = Arc::clone(&one.1);
        self.compiled.push(one);
        self.trim();
        Ok(Some(compiled))
    }

    /// Keeps one, or gives the one that another thread kept meanwhile.
    pub(super) fn keep(&mut self, text: String, compiled: Arc<Compiled>) -> Arc<Compiled> {
        if let Ok(Some(other)) = self.find(&text) {
            return other;
        }
        self.compiled.push((text, Arc::clone(&compiled)));
        self.trim();
        compiled
    }

    pub(super) fn refuse(&mut self, text: String, fault: &TuneError) {
        let TuneError::Schema { place, reason } = fault else {
            return;
        };
        if self.refused.len() >= KEPT {
            self.refused.remove(0);
        }
        self.refused.push((text, place.clone(), reason.clone()));
    }

    pub(super) fn remove(&mut self, compiled: &Arc<Compiled>) {
        self.compiled.retain(|(_, one)| !Arc::ptr_eq(one, compiled));
    }

    fn trim(&mut self) {
        let weight = |one: &Compiled| one.weight.load(Ordering::Relaxed);
        self.compiled.retain(|(_, one)| weight(one) <= MOST_BYTES);
        let mut bytes: usize = self.compiled.iter().map(|(_, one)| weight(one)).sum();
        while self.compiled.len() > KEPT || bytes > MOST_BYTES_KEPT {
            bytes -= weight(&self.compiled.remove(0).1);
        }
    }
}
