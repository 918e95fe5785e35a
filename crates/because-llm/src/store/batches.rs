use std::fs::{File, TryLockError};
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, file, unix_now};
use crate::{ChatError, ModelId, RequestKey, Result};

// Made where batch mode is first used, so that no other project carries them.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS batches(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    label TEXT NOT NULL UNIQUE,
    created_unix INTEGER NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL,
    rows INTEGER NOT NULL,
    file_id TEXT,
    batch_id TEXT,
    error TEXT
);
CREATE TABLE IF NOT EXISTS batch_rows(
    id INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches(id),
    key BLOB NOT NULL,
    state TEXT NOT NULL,
    line TEXT,
    UNIQUE(batch, key)
);
CREATE INDEX IF NOT EXISTS batch_rows_by_key ON batch_rows(key);
CREATE INDEX IF NOT EXISTS attempts_unfit_by_key ON attempts(key) WHERE outcome = 'invalid';
";

/// Which requests are in which batch, and how far each batch has come: the tables `batches` and `batch_rows`. Every step
/// is on disk, synced, before the next one is taken, so that whoever opens the file after a kill or a power cut knows what
/// may have been paid for. One process at a time.
pub(crate) struct Ledger {
    path: PathBuf,
    connection: Connection,
    model: ModelId,
    _lock: File,
}

/// How far a batch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its rows are written down; its file may be on the server.
    Writing,
    /// Its file is; the batch may be.
    Uploaded,
    /// The server has it.
    Created,
    /// All that the server had to say is here.
    Done,
    /// It never ran.
    Failed,
}

/// One batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) id: i64,
    /// What it is called on the server, in its metadata and the name of its file.
    pub(crate) label: String,
    pub(crate) state: State,
    pub(crate) created_unix: i64,
    pub(crate) rows: u64,
    pub(crate) file_id: Option<String>,
    pub(crate) batch_id: Option<String>,
}

/// Where a request was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// In a batch that is not finished.
    Open(Batch),
    /// Answered, by this line of the server's, which nobody found unfit.
    Answered(String),
}

impl State {
    const ALL: [Self; 5] = [
        Self::Writing,
        Self::Uploaded,
        Self::Created,
        Self::Done,
        Self::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Uploaded => "uploaded",
            Self::Created => "created",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Writing | Self::Uploaded | Self::Created)
    }
}

impl Ledger {
    /// Opens the tables of this store, for one model.
    pub(crate) fn open(store: &Store, model: ModelId) -> Result<Self> {
        let path = store.path().to_owned();
        let mut lock_path = path.clone().into_os_string();
        lock_path.push("-batch-lock");
        let lock_path = PathBuf::from(lock_path);
        let refuse = |message: String| ChatError::Store {
            file: path.display().to_string(),
            message,
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| refuse(format!("cannot open {}: {error}", lock_path.display())))?;
        // A system without file locks lets everybody in.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(refuse(
                "another run uses batch mode with this file; wait for it or stop it".into(),
            ));
        }
        let connection = file::connect(&path)?;
        let failed = |error: rusqlite::Error| file::failure(&path, &error);
        // A batch that was created and forgotten would be paid for twice, so these commits outlive a power cut too.
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        connection.execute_batch(TABLES).map_err(failed)?;
        let ledger = Self {
            connection,
            model,
            _lock: lock,
            path,
        };
        ledger.forget_kept()?;
        Ok(ledger)
    }

    /// The batches of this model that are not finished, oldest first.
    pub(crate) fn open_batches(&self) -> Result<Vec<Batch>> {
        self.run(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, label, state, created_unix, rows, file_id, batch_id FROM batches
                     WHERE state IN ('writing', 'uploaded', 'created') AND model = ?1 AND endpoint = ?2 ORDER BY id",
                )?
                .query_map(params![self.model.model, self.model.endpoint], read)?
                .collect()
        })
    }

    /// Writes a new batch down, before anything of it is sent.
    pub(crate) fn begin(&self, label: &str, keys: &[RequestKey]) -> Result<Batch> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let created_unix = unix_now();
            transaction.execute(
                "INSERT INTO batches(label, created_unix, model, endpoint, state, rows)
                 VALUES (?1, ?2, ?3, ?4, 'writing', ?5)",
                params![
                    label,
                    created_unix,
                    self.model.model,
                    self.model.endpoint,
                    i64::try_from(keys.len()).unwrap_or(i64::MAX)
                ],
            )?;
            let id = transaction.last_insert_rowid();
            let mut insert = transaction.prepare_cached(
                "INSERT INTO batch_rows(batch, key, state) VALUES (?1, ?2, 'waiting')",
            )?;
            for key in keys {
                insert.execute(params![id, key.as_bytes()])?;
            }
            drop(insert);
            transaction.commit()?;
            Ok(Batch {
                id,
                label: label.to_owned(),
                state: State::Writing,
                created_unix,
                rows: keys.len() as u64,
                file_id: None,
                batch_id: None,
            })
        })
    }

    /// The file is on the server, and no batch of it is known.
    pub(crate) fn uploaded(&self, batch: &mut Batch, file_id: &str) -> Result<()> {
        self.run(|connection| {
            connection.execute(
                "UPDATE batches SET state = 'uploaded', file_id = ?2, batch_id = NULL WHERE id = ?1",
                params![batch.id, file_id],
            )
        })?;
        batch.state = State::Uploaded;
        batch.file_id = Some(file_id.to_owned());
        batch.batch_id = None;
        Ok(())
    }

    /// The server has it under this name.
    pub(crate) fn created(&self, batch: &mut Batch, batch_id: &str) -> Result<()> {
        self.run(|connection| {
            connection.execute(
                "UPDATE batches SET state = 'created', batch_id = ?2 WHERE id = ?1",
                params![batch.id, batch_id],
            )
        })?;
        batch.state = State::Created;
        batch.batch_id = Some(batch_id.to_owned());
        Ok(())
    }

    /// Keeps what the server said to some of its rows: whether each is an answer, and the line itself.
    pub(crate) fn record(&self, batch: &Batch, rows: &[(RequestKey, bool, String)]) -> Result<()> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let mut update = transaction.prepare_cached(
                "UPDATE batch_rows SET state = ?3, line = ?4 WHERE batch = ?1 AND key = ?2 AND state IN ('waiting', 'failed')",
            )?;
            for (key, answered, line) in rows {
                let state = if *answered { "answered" } else { "failed" };
                update.execute(params![batch.id, key.as_bytes(), state, line])?;
            }
            drop(update);
            transaction.commit()
        })
    }

    /// Closes a batch. Rows that are still waiting may be sent again.
    pub(crate) fn finish(
        &self,
        batch: &mut Batch,
        state: State,
        reason: Option<&str>,
    ) -> Result<()> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            transaction.execute(
                "UPDATE batch_rows SET state = 'failed' WHERE batch = ?1 AND state = 'waiting'",
                [batch.id],
            )?;
            transaction.execute(
                "UPDATE batches SET state = ?2, error = ?3 WHERE id = ?1",
                params![batch.id, state.as_str(), reason],
            )?;
            transaction.commit()
        })?;
        batch.state = state;
        Ok(())
    }

    /// What the server said to a row, if anything.
    pub(crate) fn line(&self, batch: &Batch, key: &RequestKey) -> Result<Option<String>> {
        self.run(|connection| {
            connection
                .prepare_cached("SELECT line FROM batch_rows WHERE batch = ?1 AND key = ?2")?
                .query_row(params![batch.id, key.as_bytes()], |row| row.get(0))
                .optional()
        })
        .map(Option::flatten)
    }

    /// The requests of a batch in the order in which they stand in its file.
    pub(crate) fn keys(&self, batch: &Batch) -> Result<Vec<RequestKey>> {
        self.run(|connection| {
            connection
                .prepare_cached("SELECT key FROM batch_rows WHERE batch = ?1 ORDER BY id")?
                .query_map([batch.id], |row| row.get(0).map(RequestKey))?
                .collect()
        })
    }

    /// Where a request is, if it is anywhere. An answer that was found unfit is as good as none; one that a kill kept from
    /// being used is used now.
    pub(crate) fn find(&self, key: &RequestKey) -> Result<Option<Found>> {
        self.run(|connection| {
            let row: Option<(String, Option<String>, i64)> = connection
                .prepare_cached(
                    "SELECT state, line, batch FROM batch_rows WHERE key = ?1 ORDER BY id DESC LIMIT 1",
                )?
                .query_row([key.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            match row {
                Some((state, Some(line), batch)) if state == "answered" => {
                    // What was found unfit before the batch began was another answer.
                    let unfit: bool = connection
                        .prepare_cached(
                            "SELECT EXISTS (SELECT 1 FROM attempts WHERE key = ?1 AND outcome = 'invalid'
                                 AND created_unix + ifnull(latency_ms, 0) / 1000 + 1
                                     >= (SELECT created_unix FROM batches WHERE id = ?2))",
                        )?
                        .query_row(params![key.as_bytes(), batch], |row| row.get(0))?;
                    Ok((!unfit).then_some(Found::Answered(line)))
                }
                Some((state, _, batch)) if state == "waiting" => {
                    let batch = connection
                        .prepare_cached(
                            "SELECT id, label, state, created_unix, rows, file_id, batch_id FROM batches WHERE id = ?1",
                        )?
                        .query_row([batch], read)?;
                    Ok(batch.state.is_open().then_some(Found::Open(batch)))
                }
                _ => Ok(None),
            }
        })
    }

    /// Lets go of the lines whose answers are kept by now.
    pub(crate) fn forget_kept(&self) -> Result<()> {
        self.run(|connection| {
            connection.execute(
                "UPDATE batch_rows SET state = 'kept', line = NULL
                 WHERE batch IN (SELECT id FROM batches WHERE state = 'done') AND state = 'answered'
                   AND EXISTS (SELECT 1 FROM responses WHERE responses.key = batch_rows.key)",
                [],
            )
        })
        .map(drop)
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.connection).map_err(|error| file::failure(&self.path, &error))
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Batch> {
    let state: String = row.get(2)?;
    Ok(Batch {
        id: row.get(0)?,
        label: row.get(1)?,
        state: State::ALL
            .into_iter()
            .find(|known| known.as_str() == state)
            .unwrap_or(State::Failed),
        created_unix: row.get(3)?,
        rows: u64::try_from(row.get::<_, i64>(4)?).unwrap_or_default(),
        file_id: row.get(5)?,
        batch_id: row.get(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatRequest, Message};

    fn key(text: &str) -> RequestKey {
        ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default())
    }

    #[test]
    fn a_batch_is_found_again_by_each_of_its_requests_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
        let ledger = Ledger::open(&store, ModelId::default()).unwrap();
        let keys = [key("a"), key("b"), key("c")];
        let mut batch = ledger.begin("g1", &keys).unwrap();
        ledger.uploaded(&mut batch, "file-1").unwrap();
        ledger.created(&mut batch, "batch-1").unwrap();
        drop(ledger);

        let ledger = Ledger::open(&store, ModelId::default()).unwrap();
        assert_eq!(ledger.open_batches().unwrap(), [batch.clone()]);
        assert_eq!(ledger.keys(&batch).unwrap(), keys);
        assert_eq!(
            ledger.find(&keys[1]).unwrap(),
            Some(Found::Open(batch.clone()))
        );
        ledger
            .record(
                &batch,
                &[(keys[0], true, "yes".into()), (keys[1], false, "no".into())],
            )
            .unwrap();
        ledger.finish(&mut batch, State::Done, None).unwrap();
        assert_eq!(
            ledger.find(&keys[0]).unwrap(),
            Some(Found::Answered("yes".into()))
        );
        assert_eq!(ledger.find(&keys[1]).unwrap(), None);
        assert_eq!(ledger.find(&keys[2]).unwrap(), None);
        assert_eq!(
            ledger.line(&batch, &keys[1]).unwrap().as_deref(),
            Some("no")
        );
        assert_eq!(ledger.open_batches().unwrap(), []);

        let other = ModelId {
            model: "other".into(),
            ..ModelId::default()
        };
        assert!(
            Ledger::open(&store, other)
                .map(drop)
                .unwrap_err()
                .to_string()
                .contains("another run")
        );
    }
}
