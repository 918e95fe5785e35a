use std::path::Path;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};

use super::file::failure;
use crate::{ChatError, Result};

/// The version that [`TABLES`] make.
pub(super) const VERSION: u32 = 3;

// An ordinary rowid table with a unique blob costs a third of one keyed by the blob itself, in time and in bytes.
const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE responses(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    created_unix INTEGER NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    response TEXT NOT NULL, -- JSON as text, or as a blob compressed with zstd
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL
);
CREATE TABLE attempts(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    key BLOB NOT NULL,
    created_unix INTEGER NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    latency_ms INTEGER,
    finish_reason TEXT,
    error TEXT
);
";

/// What leads from one version to the next, in order; a new file goes the whole way, so that old and new ones are alike.
/// Answers need no rewriting: a column of type TEXT keeps a blob as a blob.
const STEPS: [(u32, &str); 2] = [(
    2,
    "
ALTER TABLE attempts ADD COLUMN cost_nano INTEGER;
ALTER TABLE attempts ADD COLUMN queued_ms INTEGER;
-- It cost every call a page; nothing asks for a call by its key but the writer, which remembers the latest.
DROP INDEX IF EXISTS attempts_by_key;
CREATE TABLE runs(
    run TEXT PRIMARY KEY,
    begun_unix INTEGER NOT NULL,
    from_store INTEGER NOT NULL
);
",
), (
    3,
    "
-- A call has a row once it is settled; until then it is in a file beside this one, under this number.
ALTER TABLE attempts ADD COLUMN seq INTEGER;
UPDATE attempts SET outcome = 'interrupted' WHERE outcome = 'sent';
",
)];

/// Makes the tables of a new file, or brings those of an older version up to date: in one transaction, so that a kill
/// leaves the file as it was and two processes do not both do it.
pub(super) fn prepare(path: &Path, connection: &mut Connection) -> Result<()> {
    let failed = |error: rusqlite::Error| failure(path, &error);
    let refuse = |message: String| {
        Err(ChatError::Store {
            file: path.display().to_string(),
            message,
        })
    };
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let tables: u32 = transaction
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(failed)?;
    if tables == 0 {
        transaction
            .execute_batch(TABLES)
            .and_then(|()| bring_up(&transaction, 1))
            .map_err(failed)?;
        return transaction.commit().map_err(failed);
    }
    match version(&transaction).map_err(failed)? {
        Some(VERSION) => Ok(()),
        Some(older @ 1..VERSION) => {
            bring_up(&transaction, older).map_err(failed)?;
            transaction.commit().map_err(failed)?;
            tracing::info!(file = %path.display(), from = older, to = VERSION, "the answer store was brought up to date");
            Ok(())
        }
        Some(newer) => refuse(format!(
            "written by a newer version (its schema is {newer}, this program knows {VERSION}); update the program or use another file"
        )),
        None => refuse("a database of another program; give another path".into()),
    }
}

fn bring_up(transaction: &Transaction<'_>, from: u32) -> rusqlite::Result<()> {
    for (_, step) in STEPS.iter().filter(|(to, _)| *to > from) {
        transaction.execute_batch(step)?;
    }
    transaction.execute(
        "INSERT INTO meta(key, value) VALUES ('schema_version', ?1) ON CONFLICT(key) DO UPDATE SET value = ?1",
        [VERSION.to_string()],
    )?;
    Ok(())
}

/// The version that the file says it has; `None` where it is none of ours.
fn version(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    let said: Option<String> = connection
        .query_row(
            "SELECT value FROM meta WHERE key = 'schema_version'",
            [],
            |row| row.get(0),
        )
        .optional()
        .or_else(|error| match error {
            rusqlite::Error::SqliteFailure(ref code, _) if code.code == ErrorCode::Unknown => {
                Ok(None)
            }
            error => Err(error),
        })?;
    Ok(said.and_then(|said| said.parse().ok()))
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::{ChatRequest, ChatResponse, Message, ModelId, Store};

    fn key(text: &str) -> crate::RequestKey {
        ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default())
    }

    /// A file as the first version wrote it: one answer, one settled row, one that was under way.
    fn first_version(path: &Path) {
        let connection = Connection::open(path).unwrap();
        let mode: String = connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
        connection
            .execute_batch(
                "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
                 CREATE TABLE responses(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, created_unix INTEGER NOT NULL,
                     model TEXT NOT NULL, endpoint TEXT NOT NULL, response TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
                     completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL);
                 CREATE TABLE attempts(id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, key BLOB NOT NULL,
                     created_unix INTEGER NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL, outcome TEXT NOT NULL,
                     status INTEGER, prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
                     cached_tokens INTEGER NOT NULL DEFAULT 0, reasoning_tokens INTEGER NOT NULL DEFAULT 0,
                     latency_ms INTEGER, finish_reason TEXT, error TEXT);
                 CREATE INDEX attempts_by_key ON attempts(key);
                 INSERT INTO meta VALUES ('schema_version', '1');",
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO responses VALUES (1, ?1, 1700000000, 'unnamed', '', ?2, 5, 3, 0, 0)",
                params![
                    key("old").as_bytes(),
                    r#"{"answer":"kept since","usage":{"prompt_tokens":5,"completion_tokens":3,"cached_tokens":0,"reasoning_tokens":0}}"#
                ],
            )
            .unwrap();
        for (text, outcome) in [("old", "ok"), ("cut", "sent")] {
            connection
                .execute(
                    "INSERT INTO attempts(run, key, created_unix, model, endpoint, outcome, prompt_tokens, latency_ms)
                     VALUES ('1-1-0', ?1, 1700000000, 'unnamed', '', ?2, 5, 70)",
                    params![key(text).as_bytes(), outcome],
                )
                .unwrap();
        }
    }

    fn said_version(path: &Path) -> Option<u32> {
        version(&Connection::open(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_file_of_the_first_version_is_brought_up_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llm.sqlite");
        first_version(&path);
        let store = Store::open(&path).unwrap();
        assert_eq!(said_version(&path), Some(VERSION));
        let model = ModelId::default();
        assert_eq!(
            store.get(&key("old")).unwrap().unwrap().answer,
            "kept since"
        );
        let new = ChatResponse {
            answer: "because it is new ".repeat(30),
            ..ChatResponse::default()
        };
        store.put(&key("new"), &model, &new).await.unwrap();
        store.put(&key("old"), &model, &new).await.unwrap();
        drop(store);

        let store = Store::open(&path).unwrap();
        assert_eq!(store.get(&key("new")).unwrap(), Some(new));
        assert_eq!(
            store.get(&key("old")).unwrap().unwrap().answer,
            "kept since"
        );
        let totals = store.totals().unwrap();
        assert_eq!(totals.attempts["ok"], 1);
        assert_eq!(totals.attempts["interrupted"], 1);
        assert_eq!(totals.usage.prompt_tokens, 10);
        let kinds: Vec<String> = Connection::open(&path)
            .unwrap()
            .prepare("SELECT typeof(response) FROM responses ORDER BY id")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(kinds, ["text", "blob"]);
    }

    #[test]
    fn an_old_and_a_new_file_have_the_same_tables() {
        let folder = tempfile::tempdir().unwrap();
        let tables = |path: &Path| -> Vec<(String, String)> {
            let connection = Connection::open(path).unwrap();
            let mut statement = connection
                .prepare(
                    "SELECT m.name, group_concat(c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' ' || c.pk)
                     FROM sqlite_master m, pragma_table_info(m.name) c GROUP BY m.name ORDER BY m.name",
                )
                .unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.unwrap().map(Result::unwrap).collect()
        };
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        first_version(&old);
        drop(Store::open(&old).unwrap());
        drop(Store::open(&new).unwrap());
        assert_eq!(tables(&old), tables(&new));
    }

    #[test]
    fn a_kill_in_the_middle_leaves_the_first_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llm.sqlite");
        first_version(&path);
        let mut connection = Connection::open(&path).unwrap();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .unwrap();
        bring_up(&transaction, 1).unwrap();
        // What a kill at this moment leaves on the disk, with the pages forced out of memory.
        transaction.cache_flush().unwrap();
        let left = folder.path().join("left.sqlite");
        std::fs::copy(&path, &left).unwrap();
        std::fs::copy(
            folder.path().join("llm.sqlite-wal"),
            folder.path().join("left.sqlite-wal"),
        )
        .unwrap();
        assert_eq!(said_version(&left), Some(1));
        drop(transaction);
        drop(connection);
        assert_eq!(said_version(&path), Some(1));
        for path in [&left, &path] {
            let store = Store::open(path).unwrap();
            assert_eq!(
                store.get(&key("old")).unwrap().unwrap().answer,
                "kept since"
            );
            assert_eq!(said_version(path), Some(VERSION));
        }
    }

    #[test]
    fn several_may_bring_one_file_up_at_once() {
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("llm.sqlite");
            first_version(&path);
            std::thread::scope(|scope| {
                let open = || {
                    let store = Store::open(&path)?;
                    store.get(&key("old"))
                };
                let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
                for thread in threads {
                    assert!(thread.join().unwrap().unwrap().is_some());
                }
            });
            assert_eq!(said_version(&path), Some(VERSION));
        }
    }
}
