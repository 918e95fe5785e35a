use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::unix_now;
use crate::{ChatError, ModelId, RequestKey, Result};

/// Bytes of one slot: a line of JSON with blanks behind it.
const SLOT: usize = 512;

/// What names the model may take of a slot; longer names are cut in it, and whole in the row that follows.
const NAMED: usize = 120;

/// The calls that one opening of the store has under way, in a file of its own beside the database, so that a kill leaves
/// a trace of what may have been paid for.
///
/// It has as many slots as calls were ever under way at once. A slot is written before its call goes out, by the caller
/// itself, in one write that a kill cannot take back; it is free again once the call's row is in the database. So nothing
/// has to be cleared, and a call costs one row of the database and not two. Whether a slot that is found later is still
/// under way, the database says: the row of a call has its number.
pub(super) struct UnderWay {
    path: PathBuf,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    file: Option<File>,
    count: u32,
    free: Vec<u32>,
    begun: u64,
}

/// A call under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptId {
    pub(super) key: RequestKey,
    /// Counted from one in this opening.
    pub(super) seq: u64,
    pub(super) begun_unix: i64,
    slot: u32,
}

/// A slot as it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Slot<'a> {
    seq: u64,
    key: [u64; 4],
    begun_unix: i64,
    #[serde(borrow)]
    model: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    endpoint: std::borrow::Cow<'a, str>,
}

impl UnderWay {
    /// Of the opening with this label; the file is made with the first call.
    pub(super) fn new(database: &Path, run: &str) -> Self {
        Self {
            path: super::file::beside(database, &format!("{ENDING}{run}")),
            slots: Mutex::default(),
        }
    }

    /// Writes down that a call is about to go out.
    pub(super) fn begin(&self, key: &RequestKey, model: &ModelId) -> Result<AttemptId> {
        let begun_unix = unix_now();
        let mut slots = self.lock();
        let slot = slots.free.pop().unwrap_or(slots.count);
        let seq = slots.begun + 1;
        let line = line(key, seq, begun_unix, model);
        let written = slots
            .file(&self.path)
            .and_then(|file| write_at(file, &line, u64::from(slot) * SLOT as u64));
        if let Err(error) = written {
            if slot < slots.count {
                slots.free.push(slot);
            }
            return Err(ChatError::Store {
                file: self.path.display().to_string(),
                message: format!("cannot write down a call before it goes out: {error}"),
            });
        }
        slots.begun = seq;
        slots.count = slots.count.max(slot + 1);
        Ok(AttemptId {
            key: *key,
            seq,
            begun_unix,
            slot,
        })
    }

    /// The rows of these are in the database.
    pub(super) fn done(&self, calls: impl Iterator<Item = AttemptId>) {
        let mut slots = self.lock();
        slots.free.extend(calls.map(|call| call.slot));
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let slots = self.lock();
        let all_done = slots.free.len() == slots.count as usize;
        if slots.file.is_some() && all_done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Slots {
    fn file(&mut self, path: &Path) -> io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            empty => Ok(empty.insert(File::create_new(path)?)),
        }
    }
}

const ENDING: &str = "-sent-";

fn line(key: &RequestKey, seq: u64, begun_unix: i64, model: &ModelId) -> [u8; SLOT] {
    let words = key.as_bytes().as_chunks::<8>().0;
    let mut slot = Slot {
        seq,
        key: std::array::from_fn(|word| u64::from_be_bytes(words[word])),
        begun_unix,
        model: cut(&model.model).into(),
        endpoint: cut(&model.endpoint).into(),
    };
    let mut line = [b' '; SLOT];
    line[SLOT - 1] = b'\n';
    if serde_json::to_writer(&mut line[..SLOT - 1], &slot).is_err() {
        // Names that are all escapes; the call counts more than they do.
        line[..SLOT - 1].fill(b' ');
        (slot.model, slot.endpoint) = ("".into(), "".into());
        let fits = serde_json::to_writer(&mut line[..SLOT - 1], &slot);
        debug_assert!(fits.is_ok(), "six numbers take less than a slot");
    }
    line
}

fn cut(name: &str) -> &str {
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
    &name[..ends.take_while(|end| *end <= NAMED).last().unwrap_or(0)]
}

#[cfg(unix)]
fn write_at(file: &mut File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(not(unix))]
fn write_at(file: &mut File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

/// Makes rows of the calls that openings which are no more had under way, and clears their files away. To be called by who
/// is alone with the database.
pub(super) fn interrupt_left(database: &Path, connection: &mut Connection) -> Result<()> {
    let failed = |error: rusqlite::Error| super::file::failure(database, &error);
    for Left { path, run, calls } in left(database) {
        let transaction = connection.transaction().map_err(failed)?;
        for call in unsettled(&transaction, &run, calls).map_err(failed)? {
            let words = call.key.map(u64::to_be_bytes);
            transaction
                .execute(
                    "INSERT INTO attempts(run, seq, key, created_unix, model, endpoint, outcome)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'interrupted')",
                    params![
                        run,
                        call.seq.cast_signed(),
                        words.as_flattened(),
                        call.begun_unix,
                        call.model,
                        call.endpoint
                    ],
                )
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(file = %path.display(), %error, "a file of calls that were under way could not be removed");
        }
    }
    Ok(())
}

/// The models of all calls that are under way, in whatever opening.
pub(super) fn models(database: &Path, connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut models = Vec::new();
    for Left { run, calls, .. } in left(database) {
        let calls = unsettled(connection, &run, calls)?;
        models.extend(calls.into_iter().map(|call| call.model.into_owned()));
    }
    Ok(models)
}

/// What the file of one opening says.
struct Left {
    path: PathBuf,
    run: String,
    calls: Vec<Slot<'static>>,
}

fn left(database: &Path) -> Vec<Left> {
    let folder = match database.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let prefix = super::file::beside(database, ENDING);
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy();
    // Where the folder cannot be listed, nothing of this can be known.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Left> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let run = name.to_str()?.strip_prefix(&*prefix)?.to_owned();
            let bytes = std::fs::read(entry.path()).ok()?;
            Some(Left {
                path: entry.path(),
                run,
                calls: bytes.chunks(SLOT).filter_map(call).collect(),
            })
        })
        .collect();
    found.sort_by(|a, b| a.run.cmp(&b.run));
    found
}

fn call(slot: &[u8]) -> Option<Slot<'static>> {
    let Slot {
        seq,
        key,
        begun_unix,
        model,
        endpoint,
    } = serde_json::from_slice(slot).ok()?;
    Some(Slot {
        seq,
        key,
        begun_unix,
        model: model.into_owned().into(),
        endpoint: endpoint.into_owned().into(),
    })
}

fn unsettled(
    connection: &Connection,
    run: &str,
    mut calls: Vec<Slot<'static>>,
) -> rusqlite::Result<Vec<Slot<'static>>> {
    if calls.is_empty() {
        return Ok(calls);
    }
    let settled: HashSet<i64> = connection
        .prepare("SELECT seq FROM attempts WHERE run = ?1 AND seq IS NOT NULL")?
        .query_map([run], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    calls.retain(|call| !settled.contains(&call.seq.cast_signed()));
    calls.sort_by_key(|call| call.seq);
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_one_line_whatever_the_names_are() {
        let key = RequestKey([0xfe; 32]);
        for name in ["m", "", "ü\"\n", &"\u{1}".repeat(400), &"ß".repeat(400)] {
            let model = ModelId {
                model: name.into(),
                endpoint: name.into(),
            };
            let line = line(&key, u64::MAX, i64::MIN, &model);
            let read = call(&line).unwrap();
            assert_eq!(
                read.key.map(u64::to_be_bytes).as_flattened(),
                key.as_bytes()
            );
            assert_eq!((read.seq, read.begun_unix), (u64::MAX, i64::MIN));
            assert!(name.starts_with(&*read.model) && name.starts_with(&*read.endpoint));
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        }
        assert!(call(&[0; SLOT]).is_none());
    }

    #[test]
    fn slots_are_used_again_and_only_once_a_call_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("llm.sqlite");
        let under_way = UnderWay::new(&database, "1-2-3");
        assert!(left(&database).is_empty());
        let begin = || {
            under_way
                .begin(&RequestKey([7; 32]), &ModelId::default())
                .unwrap()
        };
        let (one, two) = (begin(), begin());
        under_way.done([one].into_iter());
        let three = begin();
        assert_eq!((one.slot, two.slot, three.slot), (0, 1, 0));
        let there = left(&database);
        let seqs: Vec<u64> = there[0].calls.iter().map(|call| call.seq).collect();
        assert_eq!((there[0].run.as_str(), seqs), ("1-2-3", vec![3, 2]));
        under_way.done([two, three].into_iter());
        drop(under_way);
        assert!(left(&database).is_empty());
    }
}
