use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{ChatResponse, RequestKey};

const SHARDS: usize = 16;

/// What an answer takes beside its texts: key, slot, counts, allocations.
const OVERHEAD: usize = 320;

/// The answers asked for most recently, up to a number of bytes.
///
/// Two generations a shard: what is new or asked for is in the young one; when that has half the bytes, it becomes the old
/// one and the old one is forgotten. So an answer stays at least until half of the bytes have been asked for after it,
/// nothing is sorted or linked, and a scan of everything costs no more than its inserts.
pub(super) struct Memory {
    capacity: AtomicUsize,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    young: Generation,
    young_bytes: usize,
    old: Generation,
}

type Generation = HashMap<RequestKey, Arc<ChatResponse>, BuildHasherDefault<Prefix>>;

impl Memory {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: AtomicUsize::new(capacity),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Holds this many bytes from now on; nothing with 0.
    pub(super) fn limit(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::Relaxed);
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
    }

    pub(super) fn get(&self, key: &RequestKey) -> Option<ChatResponse> {
        let half = self.half()?;
        let mut shard = self.shard(key);
        let found = match shard.young.get(key) {
            Some(found) => Arc::clone(found),
            None => {
                let found = shard.old.remove(key)?;
                shard.insert(*key, Arc::clone(&found), half);
                found
            }
        };
        drop(shard);
        Some(ChatResponse::clone(&found))
    }

    /// Remembers an answer that is on disk.
    pub(super) fn put(&self, key: &RequestKey, response: &ChatResponse) {
        let Some(half) = self.half() else {
            return;
        };
        if bytes(response) > half {
            return;
        }
        let response = Arc::new(response.clone());
        let mut shard = self.shard(key);
        if !shard.young.contains_key(key) {
            shard.old.remove(key);
            shard.insert(*key, response, half);
        }
    }

    fn shard(&self, key: &RequestKey) -> std::sync::MutexGuard<'_, Shard> {
        let shard = usize::from(key.0[31]) % SHARDS;
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a generation of a shard may hold; `None` where nothing is held at all.
    fn half(&self) -> Option<usize> {
        let half = self.capacity.load(Ordering::Relaxed) / SHARDS / 2;
        (half > 0).then_some(half)
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let held = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            let both = shard.young.values().chain(shard.old.values());
            both.map(|response| bytes(response)).sum::<usize>()
        };
        self.shards.iter().map(held).sum()
    }
}

impl Shard {
    fn insert(&mut self, key: RequestKey, response: Arc<ChatResponse>, half: usize) {
        let bytes = bytes(&response);
        if self.young_bytes + bytes > half {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(key, response);
    }
}

fn bytes(response: &ChatResponse) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    OVERHEAD
        + response.answer.capacity()
        + text(&response.reasoning)
        + text(&response.finish_reason)
        + text(&response.model)
}

/// A key is a hash already; its beginning serves as one.
#[derive(Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of the array; it is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatRequest, Message, ModelId};

    fn key(number: usize) -> RequestKey {
        ChatRequest::new(vec![Message::user(number.to_string())]).key(&ModelId::default())
    }

    fn answer(number: usize) -> ChatResponse {
        ChatResponse {
            answer: format!("{number:0>500}"),
            ..ChatResponse::default()
        }
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        let memory = Memory::new(1 << 20);
        for number in 0..20_000 {
            memory.put(&key(number), &answer(number));
            if number % 1000 == 0 {
                assert!(memory.bytes() <= 1 << 20);
            }
        }
        assert!(memory.bytes() > 1 << 19, "{}", memory.bytes());
        assert_eq!(memory.get(&key(0)), None);
        assert_eq!(memory.get(&key(19_999)), Some(answer(19_999)));
    }

    #[test]
    fn what_is_asked_for_stays() {
        let memory = Memory::new(1 << 20);
        memory.put(&key(0), &answer(0));
        for number in 1..20_000 {
            memory.put(&key(number), &answer(number));
            if number % 100 == 0 {
                assert_eq!(memory.get(&key(0)), Some(answer(0)));
            }
        }
    }

    #[test]
    fn nothing_is_held_without_room_or_past_it() {
        let memory = Memory::new(0);
        memory.put(&key(0), &answer(0));
        assert_eq!(memory.get(&key(0)), None);
        let memory = Memory::new(1 << 14);
        memory.put(&key(0), &answer(0));
        assert_eq!(memory.bytes(), 0);
        memory.limit(1 << 20);
        memory.put(&key(0), &answer(0));
        assert_eq!(memory.get(&key(0)), Some(answer(0)));
        memory.limit(0);
        assert_eq!(memory.get(&key(0)), None);
    }

    #[test]
    fn the_first_answer_stays() {
        let memory = Memory::new(1 << 20);
        memory.put(&key(0), &answer(0));
        memory.put(&key(0), &answer(1));
        assert_eq!(memory.get(&key(0)), Some(answer(0)));
    }
}
