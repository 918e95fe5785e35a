use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::readers::Readers;
use crate::{RequestKey, Result};

/// More keys than this are not held in memory: 16 bytes each.
const MOST: usize = 2_000_000;

/// What the database certainly does not hold, told without asking it: most questions of a run are new.
///
/// That is known only to an opening that found itself alone with the file, and as long as it stays so. Every opening makes
/// the lock file a byte longer before it reads anything; so a length that has not changed says that nobody came.
pub(super) struct Known {
    alone: Option<(Arc<File>, u64)>,
    keys: Mutex<Keys>,
}

/// The first eight bytes of every key: two keys that share them only cost a look.
enum Keys {
    NotRead,
    Read(HashSet<u64, BuildHasherDefault<Identity>>),
    TooMany,
}

impl Known {
    /// With the lock file and its length, where this opening is alone.
    pub(super) fn new(alone: Option<(Arc<File>, u64)>) -> Self {
        Self {
            alone,
            keys: Mutex::new(Keys::NotRead),
        }
    }

    /// Whether there may be an answer to this. To be asked under the claim, so that whoever comes next waits for it.
    pub(super) fn may_hold(&self, key: &RequestKey, readers: &Readers) -> Result<bool> {
        let Some((file, length)) = &self.alone else {
            return Ok(true);
        };
        if file.metadata().map_or(0, |now| now.len()) != *length {
            return Ok(true);
        }
        let mut keys = self.lock();
        if let Keys::NotRead = &*keys {
            *keys = read(readers)?;
        }
        Ok(match &*keys {
            Keys::Read(keys) => keys.contains(&head(key)),
            Keys::NotRead | Keys::TooMany => true,
        })
    }

    /// These are in the database now. To be told before anybody hears of it.
    pub(super) fn add<'k>(&self, added: impl Iterator<Item = &'k RequestKey>) {
        if self.alone.is_none() {
            return;
        }
        let mut keys = self.lock();
        // What is not read yet is found there when it is.
        if let Keys::Read(known) = &mut *keys {
            known.extend(added.map(head));
            if known.len() > MOST {
                *keys = Keys::TooMany;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the lock file longer by a byte, for those who are here to see; gives the new length. Done under the lock, and by who
/// is alone under the lock alone.
pub(super) fn announce(lock_file: &File) -> io::Result<u64> {
    let length = lock_file.metadata()?.len() + 1;
    lock_file.set_len(length)?;
    Ok(length)
}

fn read(readers: &Readers) -> Result<Keys> {
    readers.with(|reader| {
        let mut known = HashSet::default();
        let mut statement = reader.prepare("SELECT key FROM responses")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            // What is no key of ours is never asked for.
            if let Ok(bytes) = row.get::<_, [u8; 32]>(0) {
                known.insert(head(&RequestKey(bytes)));
            }
            if known.len() > MOST {
                return Ok(Keys::TooMany);
            }
        }
        Ok(Keys::Read(known))
    })
}

fn head(key: &RequestKey) -> u64 {
    let mut head = [0; 8];
    head.copy_from_slice(&key.as_bytes()[..8]);
    u64::from_le_bytes(head)
}

/// A hash needs no hashing.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use crate::{ChatRequest, ChatResponse, Message, ModelId, RequestKey, Store};

    fn key(text: &str) -> RequestKey {
        ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default())
    }

    fn answer(text: &str) -> ChatResponse {
        ChatResponse {
            answer: text.into(),
            ..ChatResponse::default()
        }
    }

    fn asks_the_file(store: &Store, text: &str) -> bool {
        let shared = &store.shared;
        shared.known.may_hold(&key(text), &shared.readers).unwrap()
    }

    #[tokio::test]
    async fn who_is_alone_knows_what_is_not_there_and_who_is_not_asks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llm.sqlite");
        let put = async |store: &Store, text| {
            store
                .put(&key(text), &ModelId::default(), &answer(text))
                .await
                .unwrap();
        };
        let first = Store::open(&path).unwrap().memory(0);
        put(&first, "before").await;
        assert!(!asks_the_file(&first, "new") && asks_the_file(&first, "before"));
        put(&first, "after").await;
        assert!(asks_the_file(&first, "after"));

        let second = Store::open(&path).unwrap().memory(0);
        assert!(asks_the_file(&first, "new") && asks_the_file(&second, "new"));
        put(&second, "new").await;
        assert_eq!(first.answer(&key("new")).unwrap(), Some(answer("new")));
        drop((first, second));

        let third = Store::open(&path).unwrap().memory(0);
        assert!(asks_the_file(&third, "new") && !asks_the_file(&third, "never"));
    }

    #[tokio::test]
    async fn an_answer_is_known_also_when_whoever_kept_it_went_away() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
        assert!(!asks_the_file(&store, "a"));
        {
            let (key, model, answer) = (key("a"), ModelId::default(), answer("a"));
            let mut put = std::pin::pin!(store.put(&key, &model, &answer));
            assert!(futures_util::poll!(&mut put).is_pending());
        }
        store.flush().unwrap();
        assert!(asks_the_file(&store, "a"));
    }
}
