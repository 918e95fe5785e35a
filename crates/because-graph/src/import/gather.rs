use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use because_core::{Interaction, Item, ItemId, Reference, Rejected, User, UserId};
use serde_json::Value;

use super::parse::{Parser, SAMPLE_BYTES, SAMPLE_ROWS};
use super::record::{Fault, Record};
use super::rows::{Row, Rows};
use super::{Format, ImportedFile};
use crate::Result;

/// Everything the files hold, each row in exactly one of these places.
pub(super) struct Gathered {
    pub(super) files: Vec<ImportedFile>,
    pub(super) interactions: BTreeMap<Pair, (Interaction, Origin)>,
    pub(super) users: BTreeMap<UserId, (User, Origin)>,
    pub(super) items: BTreeMap<ItemId, (Item, Origin)>,
    pub(super) references: BTreeMap<Pair, (Reference, Origin)>,
    /// In the order of the files and their lines once [`Gathered::read`] is done.
    pub(super) rejected: Vec<Refused>,
    /// Rows whose pair was taken from another row; which one is known only at the end.
    duplicates: Vec<(Origin, Pair, Value)>,
    /// Rows that were taken and then gave way to a later one; their text is no longer at hand.
    displaced: BTreeSet<Origin>,
}

pub(super) type Pair = (UserId, ItemId);

/// Where a row stands: the place of its file among the files, and its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    file: usize,
    line: u64,
}

/// A row that was not taken, with the kind of its fault.
pub(super) struct Refused {
    origin: Origin,
    pub(super) kind: &'static str,
    pub(super) row: Rejected,
}

impl Gathered {
    pub(super) fn read(format: Format, paths: &[PathBuf]) -> Result<Self> {
        let mut gathered = Self {
            files: Vec::new(),
            interactions: BTreeMap::new(),
            users: BTreeMap::new(),
            items: BTreeMap::new(),
            references: BTreeMap::new(),
            rejected: Vec::new(),
            duplicates: Vec::new(),
            displaced: BTreeSet::new(),
        };
        for path in paths {
            gathered.read_file(format, path)?;
        }
        gathered.settle_duplicates(format, paths)?;
        gathered.rejected.sort_by_key(|refused| refused.origin);
        Ok(gathered)
    }

    pub(super) fn rows_read(&self) -> u64 {
        self.files.iter().map(|file| file.read).sum()
    }

    fn read_file(&mut self, format: Format, path: &Path) -> Result<()> {
        let file = self.files.len();
        self.files.push(ImportedFile {
            file: path.display().to_string(),
            kind: None,
            read: 0,
        });
        let mut parser = Parser::of(format, path);
        let mut rows = Rows::open(&mut parser, path)?;
        let mut sample = VecDeque::new();
        if parser.kind().is_none() {
            sample = first_rows(&mut rows)?;
            let whole = sample.iter().filter(|row| row.fault.is_none());
            parser.decide_kind(whole.map(|row| &*row.bytes));
        }
        while let Some(row) = match sample.pop_front() {
            Some(row) => Some(row),
            None => rows.next()?,
        } {
            self.files[file].read += 1;
            if row.fault.is_none() {
                parser.decide_kind([&*row.bytes]);
            }
            let origin = Origin {
                file,
                line: row.line,
            };
            match read_row(&row, &mut parser) {
                Ok(record) => self.take(origin, record, raw(&row, &parser)),
                Err(fault) => self.reject(origin, fault, raw(&row, &parser)),
            }
        }
        self.files[file].kind = parser.kind();
        Ok(())
    }

    fn take(&mut self, origin: Origin, record: Record<'_>, row: Value) {
        let taken_from = match record {
            Record::Interaction(interaction) => {
                return self.take_interaction(origin, interaction.into(), row);
            }
            Record::User(user) => insert(&mut self.users, user.user.clone(), (user, origin)),
            Record::Item(item) => insert(&mut self.items, item.item.clone(), (item, origin)),
            Record::Reference(reference) => {
                let pair = (reference.user.clone(), reference.item.clone());
                insert(&mut self.references, pair, (reference, origin))
            }
        };
        if let Some(first) = taken_from {
            self.reject_duplicate(origin, first, row);
        }
    }

    /// Of two interactions of one pair the later counts where both say when, else the one that was read first.
    fn take_interaction(&mut self, origin: Origin, interaction: Interaction, row: Value) {
        let pair = (interaction.user.clone(), interaction.item.clone());
        match self.interactions.entry(pair) {
            Entry::Vacant(entry) => {
                entry.insert((interaction, origin));
            }
            Entry::Occupied(mut entry) => {
                let pair = entry.key().clone();
                let kept = entry.get_mut();
                let is_later = matches!(
                    (interaction.timestamp, kept.0.timestamp),
                    (Some(this), Some(other)) if this > other
                );
                if is_later {
                    let (earlier, place) = std::mem::replace(kept, (interaction, origin));
                    let fields = serde_json::to_value(earlier).unwrap_or_default();
                    self.displaced.insert(place);
                    self.duplicates.push((place, pair, fields));
                } else {
                    self.duplicates.push((origin, pair, row));
                }
            }
        }
    }

    fn reject(&mut self, origin: Origin, fault: Fault, record: Value) {
        self.rejected.push(Refused {
            origin,
            kind: fault.kind,
            row: Rejected {
                file: self.files[origin.file].file.clone(),
                line: origin.line,
                field: fault.field,
                reason: fault.reason,
                record,
            },
        });
    }

    fn reject_duplicate(&mut self, origin: Origin, kept: Origin, record: Value) {
        let fault = Fault {
            field: None,
            kind: "duplicate",
            reason: format!(
                "duplicate of {} line {}",
                self.files[kept.file].file, kept.line
            ),
        };
        self.reject(origin, fault, record);
    }

    fn settle_duplicates(&mut self, format: Format, paths: &[PathBuf]) -> Result<()> {
        let mut texts = self.read_again(format, paths)?;
        for (origin, pair, row) in std::mem::take(&mut self.duplicates) {
            let row = texts.remove(&origin).unwrap_or(row);
            if let Some(&(_, kept)) = self.interactions.get(&pair) {
                self.reject_duplicate(origin, kept, row);
            }
        }
        Ok(())
    }

    /// Fetches the displaced rows as they stand in their files: keeping every row's text for the few that are displaced
    /// would double the memory of an import.
    fn read_again(&self, format: Format, paths: &[PathBuf]) -> Result<BTreeMap<Origin, Value>> {
        let mut texts = BTreeMap::new();
        for (file, path) in paths.iter().enumerate() {
            let from = Origin { file, line: 0 };
            let to = Origin {
                file: file + 1,
                line: 0,
            };
            let mut wanted = self.displaced.range(from..to).peekable();
            if wanted.peek().is_none() {
                continue;
            }
            let mut parser = Parser::of(format, path);
            let mut rows = Rows::open(&mut parser, path)?;
            while let (Some(&&origin), Some(row)) = (wanted.peek(), rows.next()?) {
                if row.line == origin.line {
                    texts.insert(origin, raw(&row, &parser));
                    wanted.next();
                }
            }
        }
        Ok(texts)
    }
}

/// Puts it there, or says from where the one that is there was taken.
fn insert<K: Ord, R>(
    map: &mut BTreeMap<K, (R, Origin)>,
    key: K,
    record: (R, Origin),
) -> Option<Origin> {
    match map.entry(key) {
        Entry::Occupied(entry) => Some(entry.get().1),
        Entry::Vacant(entry) => {
            entry.insert(record);
            None
        }
    }
}

fn first_rows(rows: &mut Rows) -> Result<VecDeque<Row>> {
    let mut sample = VecDeque::new();
    let mut bytes = 0;
    while sample.len() < SAMPLE_ROWS && bytes < SAMPLE_BYTES {
        let Some(row) = rows.next()? else { break };
        bytes += row.bytes.len();
        sample.push_back(row);
    }
    Ok(sample)
}

fn read_row<'a>(row: &'a Row, parser: &mut Parser) -> Result<Record<'a>, Fault> {
    match &row.fault {
        Some(fault) => Err(fault.clone()),
        None => parser.parse(&row.bytes),
    }
}

fn raw(row: &Row, parser: &Parser) -> Value {
    match row.fault {
        Some(_) => String::from_utf8_lossy(&row.bytes).trim().into(),
        None => parser.raw(&row.bytes),
    }
}
