use std::path::{Path, PathBuf};

use because_core::Project;

use super::Format;
use super::rule::Rule;
use crate::{Error, Result};

/// Every file an import writes.
pub(super) const WRITTEN: [&str; 7] = [
    "interactions.jsonl",
    "users.jsonl",
    "items.jsonl",
    "references.jsonl",
    "rejected.jsonl",
    "conflicts.jsonl",
    "cold.jsonl",
];

/// A file's name without `.gz` or `.zst`.
pub(super) fn unpacked_name(name: &str) -> &str {
    name.strip_suffix(".gz")
        .or_else(|| name.strip_suffix(".zst"))
        .unwrap_or(name)
}

/// The files to read: those named, and those found by name in the folders named.
pub(super) fn files(format: Format, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => files.extend(in_folder(format, path)?),
            Ok(_) => files.push(path.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound { path: path.clone() });
            }
            Err(error) => return Err(because_core::Error::io("open", path, error).into()),
        }
    }
    if files.is_empty() {
        return Err(Error::Setting {
            name: "paths",
            value: "(none)".to_owned(),
            reason: "leave nothing to import; name files or a folder",
        });
    }
    Ok(files)
}

/// Refuses to write over a file that is about to be read.
pub(super) fn keep_apart(files: &[PathBuf], out: &Project) -> Result<()> {
    let written: Vec<PathBuf> = WRITTEN
        .iter()
        .filter_map(|name| out.path(name).canonicalize().ok())
        .collect();
    for path in files {
        if path
            .canonicalize()
            .is_ok_and(|path| written.contains(&path))
        {
            return Err(Error::InputIsOutput { path: path.clone() });
        }
    }
    Ok(())
}

fn in_folder(format: Format, folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| because_core::Error::io("read", folder, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(name) = entry.file_name().to_str()
            && let Some(rank) = rank(format, name)
            && entry.path().is_file()
        {
            names.push((rank, name.to_owned()));
        }
    }
    names.sort();
    // Of a plain file and its packed twins one is read; the plain one sorts first.
    names.dedup_by(|later, kept| unpacked_name(&later.1) == unpacked_name(&kept.1));
    if names.is_empty() {
        let patterns = in_folders(format).flat_map(|rule| rule.files);
        return Err(Error::NothingToImport {
            path: folder.to_owned(),
            looked_for: format!(
                "{} (also as .gz or .zst)",
                patterns.copied().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    Ok(names
        .into_iter()
        .map(|(_, name)| folder.join(name))
        .collect())
}

/// The place of a name among all patterns of a format: files are read in this order.
fn rank(format: Format, name: &str) -> Option<(usize, usize)> {
    let name = unpacked_name(name);
    in_folders(format)
        .enumerate()
        .find_map(|(rule, patterns)| Some((rule, patterns.fits(name)?)))
}

fn in_folders(format: Format) -> impl Iterator<Item = &'static Rule> {
    format.rules().iter().filter(|rule| rule.in_folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_the_files_it_is_known_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "interactions.jsonl.gz",
            "explanations.tst.jsonl",
            "users.jsonl",
            "users.jsonl.zst",
            "graph.items.jsonl",
            "items.csv",
            "notes.txt",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("items.jsonl")).unwrap();
        let found = files(Format::Jsonl, &[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "users.jsonl",
                "interactions.jsonl.gz",
                "explanations.tst.jsonl"
            ]
        );
    }

    #[test]
    fn nothing_to_read_says_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let said = files(Format::Csv, &[folder.path().to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("users.csv, items.csv, ") && said.contains("*.tsv (also as .gz or .zst)"),
            "{said}"
        );
        let gone = folder.path().join("gone.csv");
        let said = files(Format::Csv, &[gone]).unwrap_err().to_string();
        assert!(said.contains("gone.csv: no such file or folder"), "{said}");
        assert!(files(Format::Csv, &[]).is_err());
    }
}
