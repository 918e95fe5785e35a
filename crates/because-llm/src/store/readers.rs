use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;

use super::file;
use crate::Result;

/// Read connections, one for each thread that is likely to look at the same time; opened when first needed.
pub(super) struct Readers {
    path: PathBuf,
    slots: Vec<Mutex<Option<Connection>>>,
}

impl Readers {
    /// With the first one open.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut slots = vec![Mutex::new(Some(file::connect(path)?))];
        slots.resize_with(cores.clamp(2, 8), || Mutex::new(None));
        Ok(Self {
            path: path.to_owned(),
            slots,
        })
    }

    pub(super) fn with<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut slot = self.free_one();
        let connection = match &mut *slot {
            Some(connection) => connection,
            empty => empty.insert(file::connect(&self.path)?),
        };
        query(connection).map_err(|error| file::failure(&self.path, &error))
    }

    /// The first that nobody uses: a lone thread always has the same, whose pages are warm.
    fn free_one(&self) -> MutexGuard<'_, Option<Connection>> {
        for slot in &self.slots {
            match slot.try_lock() {
                Ok(free) => return free,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let last = self.slots.last().expect("there are at least two");
        last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
