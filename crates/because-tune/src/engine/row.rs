use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::prefix::Place;
use super::text::AnswerText;
use crate::chat::Chat;
use crate::config::QwenConfig;
use crate::decoding::{Decoding, Sampler};
use crate::error::{Result, TuneError};
use crate::grammar::Grammar;
use crate::ops::PAGE;
use crate::overlay::Overlay;
use crate::tuned::{Finish, Generation};

/// Numbers the rows of a scheduler, the oldest first.
pub(crate) type RowId = u64;

/// What may follow in an answer that must fit a form.
pub(crate) trait Constraint: Send {
    /// Makes the logits of tokens that may not follow minus infinity. `room` are the tokens this answer may still have, the
    /// next one included.
    fn mask(&mut self, logits: &mut [f32], room: usize) -> Result<()>;

    /// Goes on with the token that was chosen.
    fn take(&mut self, token: u32) -> Result<()>;

    /// The tokens that must come next, where there is no choice; each is still to be taken.
    fn forced(&mut self, room: usize) -> Vec<u32> {
        let _ = room;
        Vec::new()
    }

    /// Whether the answer is complete and nothing may follow.
    fn is_done(&self) -> bool;
}

impl Constraint for Grammar {
    fn mask(&mut self, logits: &mut [f32], room: usize) -> Result<()> {
        Self::mask(self, logits, room)
    }

    fn take(&mut self, token: u32) -> Result<()> {
        Self::take(self, token)
    }

    fn forced(&mut self, room: usize) -> Vec<u32> {
        Self::forced(self, room)
    }

    fn is_done(&self) -> bool {
        Self::is_done(self)
    }
}

/// A prompt and the answer to it as far as it has come.
pub(crate) struct Row {
    pub(super) id: RowId,
    /// Prompt and answer.
    pub(super) ids: Vec<u32>,
    pub(super) prompt: usize,
    /// Tokens whose keys and values lie in its pages.
    pub(super) computed: usize,
    pub(super) pages: Vec<u32>,
    /// How many of its pages, from the first on, the prefix cache has, and where there they end.
    pub(super) shared: usize,
    pub(super) place: Place,
    pub(super) overlay: Option<Arc<Overlay>>,
    pub(super) fault: Option<TuneError>,
    /// Of the pages of its prompt, where there is a prefix cache.
    hashes: Vec<u64>,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    /// Tokens its answer can have.
    room: usize,
    text: AnswerText,
    cached: usize,
    finish: Option<Finish>,
    begun: Instant,
    first_token_seconds: f64,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row")
            .field("id", &self.id)
            .field("prompt", &self.prompt)
            .field("tokens", &self.ids.len())
            .field("computed", &self.computed)
            .finish_non_exhaustive()
    }
}

impl Row {
    /// # Errors
    /// When a setting of the decoding is out of its range.
    pub(crate) fn new(
        prompt: Vec<u32>,
        decoding: Decoding,
        overlay: Option<Arc<Overlay>>,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Self> {
        decoding.check()?;
        let mut row = Self {
            id: 0,
            prompt: prompt.len(),
            ids: prompt,
            computed: 0,
            pages: Vec::new(),
            shared: 0,
            place: Place::Root(0),
            overlay,
            fault: None,
            hashes: Vec::new(),
            constraint,
            room: decoding.max_tokens,
            sampler: Sampler::new(decoding),
            text: AnswerText::default(),
            cached: 0,
            finish: None,
            begun: Instant::now(),
            first_token_seconds: 0.0,
        };
        row.place = row.root();
        Ok(row)
    }

    /// Checks the prompt and cuts the answer at the end of the context.
    pub(super) fn check(&mut self, config: &QwenConfig, context: usize) -> Result<()> {
        if self.prompt == 0 || self.prompt >= context {
            return Err(TuneError::ContextTooLong {
                prompt_tokens: self.prompt,
                context,
            });
        }
        if let Some(id) = self
            .ids
            .iter()
            .find(|&&id| id as usize >= config.vocab_size)
        {
            return Err(TuneError::Chat {
                reason: format!("token {id} is unknown to the model"),
            });
        }
        self.room = self.room.min(context - self.prompt);
        Ok(())
    }

    pub(super) fn adapter(&self) -> u64 {
        self.overlay.as_ref().map_or(0, |overlay| overlay.id)
    }

    pub(super) fn root(&self) -> Place {
        Place::Root(self.adapter())
    }

    /// Hashes the pages of its prompt, so that it can wait for what another row computes.
    pub(super) fn hash_pages(&mut self) {
        self.hashes = page_hashes(self.adapter(), &self.ids[..self.prompt]);
    }

    /// Pages that its tokens need and it has not yet.
    pub(super) fn owed_pages(&self) -> usize {
        self.ids
            .len()
            .div_ceil(PAGE)
            .saturating_sub(self.pages.len())
    }

    /// Whether another row is computing the next page of this one's prompt.
    pub(super) fn waits(&self, promised: &HashSet<u64>) -> bool {
        let next = self.computed / PAGE;
        let whole = self.computed.is_multiple_of(PAGE) && (next + 1) * PAGE < self.ids.len();
        whole
            && self
                .hashes
                .get(next)
                .is_some_and(|hash| promised.contains(hash))
    }

    /// The pages that it will have computed after so many more tokens, or soon after.
    pub(super) fn promises(&self, len: usize) -> impl Iterator<Item = u64> + '_ {
        let pages = self.computed / PAGE..(self.computed + len).div_ceil(PAGE);
        pages.filter_map(|page| self.hashes.get(page).copied())
    }

    /// Goes on after a page of the prefix cache.
    pub(super) fn take_page(&mut self, place: Place, page: u32) {
        self.pages.push(page);
        self.note_shared(place);
        self.computed += PAGE;
        // What it reads again of its own when it was put back is no gain.
        if self.ids.len() == self.prompt {
            self.cached += PAGE;
        }
    }

    /// The prefix cache has one more of its pages.
    pub(super) fn note_shared(&mut self, place: Place) {
        self.shared += 1;
        self.place = place;
    }

    /// Begins anew without pages, which are given back.
    pub(super) fn restart(&mut self) -> Vec<u32> {
        (self.computed, self.shared, self.place) = (0, 0, self.root());
        if self.ids.len() == self.prompt {
            self.cached = 0;
        }
        std::mem::take(&mut self.pages)
    }

    /// The next token, among the logits of those the tokenizer knows.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        if let Some(constraint) = &mut self.constraint {
            let room = self.room - (self.ids.len() - self.prompt);
            constraint.mask(logits, room)?;
        }
        let token = self.sampler.choose(logits, &self.ids);
        if !logits[token as usize].is_finite() {
            return Err(TuneError::Generation {
                reason: "no token has a probability; the weights may be damaged".into(),
            });
        }
        Ok(token)
    }

    /// Goes on with a token, and with those that can only come after it: they need no step of their own.
    ///
    /// Gives the text that can be shown now.
    pub(super) fn take(&mut self, chat: &Chat, token: u32) -> Result<String> {
        if self.ids.len() == self.prompt {
            self.first_token_seconds = self.begun.elapsed().as_secs_f64();
        }
        let mut text = self.push(chat, token)?;
        let room = self.room - (self.ids.len() - self.prompt);
        let forced = match &mut self.constraint {
            Some(constraint) if self.finish.is_none() => constraint.forced(room),
            _ => Vec::new(),
        };
        for token in forced {
            if self.finish.is_some() {
                break;
            }
            text += &self.push(chat, token)?;
        }
        Ok(text)
    }

    fn push(&mut self, chat: &Chat, token: u32) -> Result<String> {
        self.ids.push(token);
        let stops = &self.sampler.decoding().stop;
        let mut text = String::new();
        let mut ended = chat.stops().contains(&token);
        if !ended {
            text = self.text.push(&chat.vocabulary, stops, token)?;
            ended = self.text.is_stopped();
            if let Some(constraint) = &mut self.constraint {
                constraint.take(token)?;
                ended |= constraint.is_done();
            }
        }
        self.finish = match ended {
            true => Some(Finish::Stop),
            false if self.ids.len() - self.prompt >= self.room => Some(Finish::Length),
            false => None,
        };
        if self.finish.is_some() {
            text += &self.text.finish(&chat.vocabulary, stops)?;
            if self.text.is_stopped() {
                self.finish = Some(Finish::Stop);
            }
        }
        Ok(text)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.finish.is_some() || self.fault.is_some()
    }

    /// The answer of a row that has ended.
    pub(super) fn generation(self) -> Result<Generation> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        Ok(Generation {
            text: self.text.into_given(),
            token_ids: self.ids[self.prompt..].to_vec(),
            prompt_tokens: self.prompt,
            cached_tokens: self.cached,
            finish: self.finish.unwrap_or(Finish::Length),
            first_token_seconds: self.first_token_seconds,
        })
    }
}

/// Hashes of the pages of a prompt, each with all before it, by which rows see that another is computing what they need.
fn page_hashes(adapter: u64, prompt: &[u32]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    adapter.hash(&mut hasher);
    prompt
        .chunks_exact(PAGE)
        .map(|page| {
            page.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
}
