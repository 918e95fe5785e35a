//! JSON Lines, one record a line: read with the line that is at fault, written so that a file is whole or absent.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Opens a file for reading line by line; what ends in `.gz` or `.zst` is unpacked on the way.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let fail = |source| Error::io("open", path, source);
    let file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(fail(std::io::ErrorKind::IsADirectory.into()));
    }
    let unpacked: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(file).map_err(fail)?),
        _ => Box::new(file),
    };
    Ok(Box::new(BufReader::with_capacity(1 << 16, unpacked)))
}

/// The records of a file, one at a time, so that memory does not grow with it. Blank lines are passed over.
///
/// # Errors
/// When the file cannot be opened. Each item then is a record or the line that is not one; after a line that is not
/// one the reader goes on.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>> {
    Ok(Lines {
        source: open(path)?,
        path: path.to_owned(),
        line: 0,
        buffer: Vec::new(),
        record: PhantomData,
    })
}

/// Reads a whole file, stopping at the first line that is not a record.
///
/// # Errors
/// When the file cannot be opened or a line is not the record asked for.
pub fn read_all<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    read(path)?.collect()
}

/// The iterator behind [`read`].
pub struct Lines<T> {
    source: Box<dyn BufRead>,
    path: PathBuf,
    line: u64,
    buffer: Vec<u8>,
    record: PhantomData<fn() -> T>,
}

impl<T> Lines<T> {
    /// The line that the last item came from, counted from one, blank lines included.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line
    }
}

impl<T> std::fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("path", &self.path)
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Iterator for Lines<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.buffer.clear();
            self.line += 1;
            match self.source.read_until(b'\n', &mut self.buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(source) => return Some(Err(Error::io("read", &self.path, source))),
            }
            let line = self.buffer.trim_ascii();
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            return Some(serde_json::from_slice(line).map_err(|error| Error::Line {
                path: self.path.clone(),
                line: self.line,
                reason: reason(&error),
            }));
        }
    }
}

/// What serde_json says, without its own position: a record is one line, and that line is named already.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match said.rfind(" at line ") {
        Some(cut) => format!("{} (column {})", &said[..cut], error.column()),
        None => said,
    }
}

/// Writes all records to `path`, whole or not at all: into a temporary file beside it, synced, then renamed over it.
///
/// # Errors
/// When the disk is full or the folder cannot be written; what stood at `path` before is then untouched.
pub fn write<T: Serialize>(path: &Path, records: impl IntoIterator<Item = T>) -> Result<()> {
    write_atomic(path, |out| {
        for record in records {
            serde_json::to_writer(&mut *out, &record)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes `path` whole or not at all through `fill`.
///
/// # Errors
/// When `fill` fails, the disk is full or the folder cannot be written; what stood at `path` before is then untouched.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let fail = |source| Error::io("write", path, source);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".because-")
        .tempfile_in(folder)
        .map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    fill(&mut out).map_err(fail)?;
    let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
    readable_by_all(file.as_file()).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
}

/// A temporary file is private; what replaces it should be as readable as any file the user makes.
#[cfg(unix)]
fn readable_by_all(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interaction;

    #[test]
    fn a_bad_line_is_named_and_the_reader_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("interactions.jsonl");
        std::fs::write(&path, "{\"user\":1,\"item\":2}\n\n{\"user\":1}\n{\"user\":\"a\",\"item\":\"b\",\"color\":1}\n").unwrap();
        let mut lines = read::<Interaction>(&path).unwrap();
        let numbers: Vec<u64> = std::iter::from_fn(|| lines.next().map(|_| lines.line())).collect();
        assert_eq!(numbers, [1, 3, 4], "a blank line is a line");
        let read: Vec<_> = read::<Interaction>(&path).unwrap().collect();
        assert_eq!(read.len(), 3);
        assert!(
            read[0].is_ok() && read[2].is_ok(),
            "an unknown field passes"
        );
        let said = read[1].as_ref().unwrap_err().to_string();
        assert!(
            said.ends_with("line 3: missing field `item` (column 10)"),
            "{said}"
        );
    }

    #[test]
    fn packed_files_are_read_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let line = b"{\"user\":1,\"item\":2}\n";
        let gz = folder.path().join("a.jsonl.gz");
        let mut out =
            flate2::write::GzEncoder::new(File::create(&gz).unwrap(), flate2::Compression::fast());
        out.write_all(line).unwrap();
        out.finish().unwrap();
        let zst = folder.path().join("a.jsonl.zst");
        std::fs::write(&zst, zstd::encode_all(&line[..], 1).unwrap()).unwrap();
        for path in [gz, zst] {
            assert_eq!(
                read_all::<Interaction>(&path).unwrap(),
                [Interaction::new("1", "2")]
            );
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.jsonl");
        write(&path, [1, 2]).unwrap();
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failed = write_atomic(&path, |out| {
            out.write_all(b"half").and_then(|()| Err(full()))
        });
        assert!(failed.unwrap_err().to_string().contains("kept.jsonl"));
        assert_eq!(read_all::<u8>(&path).unwrap(), [1, 2]);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file stays behind"
        );
    }
}
