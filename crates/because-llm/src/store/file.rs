use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};

use crate::{ChatError, Result};

const SCHEMA_VERSION: u32 = 1;

// An ordinary rowid table with a unique blob costs a third of one keyed by the blob itself, in time and in bytes.
const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE responses(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    created_unix INTEGER NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    response TEXT NOT NULL,
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
CREATE INDEX attempts_by_key ON attempts(key);
";

/// Held by every opening of a store, in a file of its own beside it: closing any handle on the database file itself
/// would let go of SQLite's locks.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Opens the write connection, with tables and all, and says that this file is in use.
pub(super) fn open(path: &Path) -> Result<(Connection, Option<Lock>)> {
    let lock_path = beside(path, "-lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| ChatError::Store {
            file: path.display().to_string(),
            message: format!("cannot open {}: {error}", lock_path.display()),
        })?;
    let alone = lock.try_lock().is_ok();
    let mut connection = connect(path)?;
    prepare(path, &mut connection)?;
    if alone {
        connection
            .execute(
                "UPDATE attempts SET outcome = 'interrupted' WHERE outcome = 'sent'",
                [],
            )
            .map_err(|error| failure(path, &error))?;
        // A system without file locks says so here; then nobody is ever alone and rows stay `sent`, which is true too.
        let _ = lock.unlock();
    }
    let lock = lock.lock_shared().is_ok().then_some(Lock { _file: lock });
    Ok((connection, lock))
}

/// A connection with the settings that every one of ours has.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let connect = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(30))?;
        use_wal(&connection)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(connection)
    };
    connect().map_err(|error| failure(path, &error))
}

/// Names an opening: the process, and which of its openings.
pub(super) fn run_label() -> String {
    static OPENINGS: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}-{}",
        std::process::id(),
        super::writer::unix_now(),
        OPENINGS.fetch_add(1, Ordering::Relaxed)
    )
}

/// Says which file, and what to do about it where that is known.
pub(super) fn failure(path: &Path, error: &rusqlite::Error) -> ChatError {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "; make room and run again: what was stored is kept",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another process has held it for 30 s"
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "; move it away to begin a new one"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "; it has to be writable",
        _ => "",
    };
    ChatError::Store {
        file: path.display().to_string(),
        message: format!("{error}{advice}"),
    }
}

/// SQLite does not wait while another connection makes the same switch, so the waiting is here.
fn use_wal(connection: &Connection) -> rusqlite::Result<()> {
    for _ in 0..200 {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
    connection.pragma_update(None, "journal_mode", "WAL")
}

fn prepare(path: &Path, connection: &mut Connection) -> Result<()> {
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
        transaction.execute_batch(TABLES).map_err(failed)?;
        transaction
            .execute(
                "INSERT INTO meta(key, value) VALUES ('schema_version', ?1)",
                [SCHEMA_VERSION.to_string()],
            )
            .map_err(failed)?;
        return transaction.commit().map_err(failed);
    }
    let version: Option<String> = transaction
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
            error => Err(failed(error)),
        })?;
    match version.as_deref().map(str::parse::<u32>) {
        Some(Ok(version)) if version <= SCHEMA_VERSION => Ok(()),
        Some(Ok(version)) => refuse(format!(
            "written by a newer version (its schema is {version}, this program knows {SCHEMA_VERSION}); update the program or use another file"
        )),
        _ => refuse("a database of another program; give another path".into()),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
