use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use because_core::Error as FileError;

use crate::Result;

const BUFFER_BYTES: usize = 1 << 18;
const DRAFT_PREFIX: &str = ".because-import-";
const AN_HOUR: Duration = Duration::from_secs(3600);

/// Lines on disk that are not wanted for good. Their file has no name, so nothing is left of it however the run ends.
pub(super) struct Spool {
    out: BufWriter<Shared>,
    /// Where the file is, for errors.
    folder: PathBuf,
}

impl Spool {
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .map_err(|source| FileError::io("make a temporary file", folder, source))?;
        Ok(Self::over(file, folder))
    }

    fn over(file: File, folder: &Path) -> Self {
        Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, Shared::of(file)),
            folder: folder.to_owned(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|source| FileError::io("write a temporary file", &self.folder, source).into())
    }

    /// Ends the writing.
    pub(super) fn close(self) -> Result<Spooled> {
        let folder = self.folder;
        let file = self.out.into_inner().map_err(|error| {
            FileError::io("write a temporary file", &folder, error.into_error())
        })?;
        Ok(Spooled { file, folder })
    }
}

/// What was written to a [`Spool`].
pub(super) struct Spooled {
    file: Shared,
    folder: PathBuf,
}

impl Spooled {
    /// All of it, from the beginning. Several may read at once.
    pub(super) fn read(&self) -> SpoolReader {
        self.read_from(0, BUFFER_BYTES)
    }

    /// What stands behind so many bytes, a buffer of this size at a time.
    pub(super) fn read_from(&self, at: u64, buffer_bytes: usize) -> SpoolReader {
        let file = Shared {
            at,
            ..self.file.clone()
        };
        SpoolReader {
            source: BufReader::with_capacity(buffer_bytes, file),
            buffer: Vec::new(),
            folder: self.folder.clone(),
        }
    }
}

/// A place in a file that others have places of their own in.
#[derive(Clone)]
struct Shared {
    file: Arc<Mutex<File>>,
    at: u64,
}

impl Shared {
    fn of(file: File) -> Self {
        Self {
            file: Arc::new(Mutex::new(file)),
            at: 0,
        }
    }

    fn with(&mut self, work: impl FnOnce(&mut File) -> io::Result<usize>) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.at))?;
        let count = work(&mut file)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|file| file.read(buffer))
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what was spooled once through.
pub(super) struct SpoolReader {
    source: BufReader<Shared>,
    buffer: Vec<u8>,
    folder: PathBuf,
}

impl SpoolReader {
    /// The next line without its line feed; nothing behind the last.
    pub(super) fn line(&mut self) -> Result<Option<&[u8]>> {
        self.buffer.clear();
        let read = self.source.read_until(b'\n', &mut self.buffer);
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(
                self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer),
            )),
            Err(source) => Err(self.failed(source)),
        }
    }

    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        match self.source.fill_buf() {
            Ok(buffer) => Ok(buffer.is_empty()),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The next bytes, exactly so many.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&[u8]> {
        self.buffer.resize(count, 0);
        match self.source.read_exact(&mut self.buffer) {
            Ok(()) => Ok(&self.buffer),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: io::Error) -> crate::Error {
        FileError::io("read a temporary file", &self.folder, source).into()
    }
}

/// A file of the project that is being written: it takes its place whole, or leaves nothing behind.
pub(super) struct Draft {
    out: BufWriter<tempfile::NamedTempFile>,
    path: PathBuf,
}

impl Draft {
    pub(super) fn of(path: PathBuf) -> Result<Self> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(DRAFT_PREFIX)
            .tempfile_in(folder)
            .map_err(|source| FileError::io("write", &path, source))?;
        Ok(Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            path,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|source| FileError::io("write", &self.path, source).into())
    }

    /// Syncs it and moves it to where it belongs, over whatever stands there.
    pub(super) fn put_in_place(self) -> Result<()> {
        let path = self.path;
        let failed = |source| FileError::io("write", &path, source);
        let file = self
            .out
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        readable_by_all(file.as_file()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// A temporary file is private; what it becomes should be as readable as any file the user makes.
#[cfg(unix)]
fn readable_by_all(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &File) -> io::Result<()> {
    Ok(())
}

/// Takes away what a killed import left in the folder, once it is too old to be somebody's work; what cannot be looked at
/// stays.
pub(super) fn remove_old_drafts(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_draft = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(DRAFT_PREFIX));
        let is_old = || {
            let modified = entry.metadata().ok()?.modified().ok()?;
            Some(modified.elapsed().ok()? > AN_HOUR)
        };
        if is_draft && is_old() == Some(true) {
            // It is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_gives_back_its_lines_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::in_folder(folder.path()).unwrap();
        spool.write(b"one\n\ntwo\n").unwrap();
        let spooled = spool.close().unwrap();
        let mut other = spooled.read();
        for _ in 0..2 {
            let mut lines = spooled.read();
            assert_eq!(lines.line().unwrap(), Some(&b"one"[..]));
            other.line().unwrap();
            assert_eq!(lines.line().unwrap(), Some(&b""[..]));
            assert_eq!(lines.bytes(3).unwrap(), b"two");
            assert!(lines.bytes(3).is_err(), "there is a line feed and no more");
        }
        drop(spooled);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_folder() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut spool = Spool::over(full, Path::new("books"));
        let failed = (0..=BUFFER_BYTES / 100).find_map(|_| spool.write(&[b'x'; 100]).err());
        let said = failed.unwrap().to_string();
        assert_eq!(said, "books: write a temporary file failed");
    }

    #[test]
    fn a_draft_is_whole_or_absent_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "old").unwrap();
        let mut dropped = Draft::of(path.clone()).unwrap();
        dropped.write(b"half").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut draft = Draft::of(path.clone()).unwrap();
        draft.write(b"new").unwrap();
        draft.put_in_place().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");

        let [stale, fresh] = ["stale", "fresh"].map(|name| {
            let path = folder.path().join(format!("{DRAFT_PREFIX}{name}"));
            std::fs::write(&path, "").unwrap();
            path
        });
        let before = std::time::SystemTime::now() - 2 * AN_HOUR;
        let file = File::options().write(true).open(&stale).unwrap();
        file.set_modified(before).unwrap();
        remove_old_drafts(folder.path());
        assert!(!stale.exists() && fresh.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
