use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::{known, schema, under_way};
use crate::{ChatError, Result};

/// Held by every opening of a store, in a file of its own beside it: closing any handle on the database file itself
/// would let go of SQLite's locks.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) file: Arc<File>,
    /// The length that this opening gave the file, where nobody else had it open then.
    pub(super) alone: Option<u64>,
}

/// What the writing connection holds in memory at most, in KiB: the pages that rows go to are all over the index of keys.
const PAGES_KIB: i32 = 32 << 10;

/// Pages in the log before they are moved into the tables: each time costs two waits for the disk, and a page that was
/// written often meanwhile is moved once.
const PAGES_IN_LOG: u32 = 8000;

/// Opens the write connection, with tables and all, and says that this file is in use.
pub(super) fn open(path: &Path) -> Result<(Connection, Option<Lock>)> {
    let lock = lock_file(path)?;
    let alone = lock.try_lock().is_ok();
    let mut connection = connect(path)?;
    let failed = |error: rusqlite::Error| failure(path, &error);
    connection
        .pragma_update(None, "cache_size", -PAGES_KIB)
        .map_err(failed)?;
    connection
        .pragma_update(None, "wal_autocheckpoint", PAGES_IN_LOG)
        .map_err(failed)?;
    schema::prepare(path, &mut connection)?;
    let mut length = None;
    if alone {
        interrupt_what_is_left(path, &mut connection)?;
        length = known::announce(&lock).ok();
        // A system without file locks says so here; then nobody is ever alone and calls stay under way, which is true too.
        let _ = lock.unlock();
    }
    let locked = lock.lock_shared().is_ok();
    if locked && length.is_none() {
        // Where it cannot be said that somebody is here, the disk is full or the file cannot be written.
        known::announce(&lock).map_err(|error| ChatError::Store {
            file: path.display().to_string(),
            message: format!("cannot write its lock file: {error}"),
        })?;
    }
    let lock = locked.then_some(Lock {
        file: Arc::new(lock),
        alone: length,
    });
    Ok((connection, lock))
}

/// Opens the file for somebody who must be the only one: while the lock is held, whoever else opens it waits. An error
/// while another opening, in this process or another, is there. A system without file locks cannot tell; then rows that
/// are still `sent` say that somebody may be.
pub(super) fn open_alone(path: &Path) -> Result<(Connection, Lock)> {
    let refuse = |message: &str| {
        Err(ChatError::Store {
            file: path.display().to_string(),
            message: message.into(),
        })
    };
    let lock = lock_file(path)?;
    let locked = match lock.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => {
            return refuse("in use by another run; wait until it has ended");
        }
        Err(TryLockError::Error(_)) => false,
    };
    let mut connection = connect(path)?;
    schema::prepare(path, &mut connection)?;
    let failed = |error| failure(path, &error);
    if locked {
        interrupt_what_is_left(path, &mut connection)?;
    } else if calls_under_way(path, &connection).map_err(failed)? {
        return refuse("holds calls that are under way; wait until their run has ended");
    }
    Ok((
        connection,
        Lock {
            file: Arc::new(lock),
            alone: None,
        },
    ))
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
        super::unix_now(),
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

/// What the file takes on the disk, with what was written lately and lies beside it.
pub(super) fn bytes(path: &Path) -> u64 {
    [path, &beside(path, "-wal")]
        .iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|file| file.len())
        .sum()
}

fn lock_file(path: &Path) -> Result<File> {
    let lock_path = beside(path, "-lock");
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| ChatError::Store {
            file: path.display().to_string(),
            message: format!("cannot open {}: {error}", lock_path.display()),
        })
}

/// For whoever is alone: what is still under way belongs to nobody who lives.
fn interrupt_what_is_left(path: &Path, connection: &mut Connection) -> Result<()> {
    under_way::interrupt_left(path, connection)
}

fn calls_under_way(path: &Path, connection: &Connection) -> rusqlite::Result<bool> {
    Ok(!under_way::models(path, connection)?.is_empty())
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

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
