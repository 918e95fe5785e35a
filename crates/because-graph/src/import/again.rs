use std::path::PathBuf;

use serde_json::Value;

use super::Format;
use super::blocks::{Block, Blocks};
use super::pairs::Origin;
use super::parse::Parser;
use super::record::Record;
use super::stream::Source;
use crate::Result;

/// The files of an import and how they are read.
pub(super) struct Inputs {
    pub(super) format: Format,
    pub(super) paths: Vec<PathBuf>,
    pub(super) block_bytes: usize,
}

/// Reads interactions that were read before as they stand in their files, in the order of the files and their lines.
pub(super) struct Again<'a> {
    inputs: &'a Inputs,
    opened: Option<Opened>,
}

struct Opened {
    file: u32,
    /// Nothing, where the file cannot be read twice.
    rows: Option<Rows>,
}

struct Rows {
    parser: Parser,
    first: std::vec::IntoIter<Block>,
    blocks: Blocks,
    block: Block,
}

impl<'a> Again<'a> {
    pub(super) fn new(inputs: &'a Inputs) -> Self {
        Self {
            inputs,
            opened: None,
        }
    }

    /// The row of this user and item; `None` where there is no such row any more, as in a pipe or a file that was changed.
    pub(super) fn record(&mut self, origin: Origin, ids: [&str; 2]) -> Result<Option<Value>> {
        let path = &self.inputs.paths[origin.file as usize];
        let opened = match &mut self.opened {
            Some(opened) if opened.file == origin.file => opened,
            opened => {
                // Opening a pipe once more could wait for ever.
                let is_stream = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
                let rows = match is_stream {
                    true => None,
                    false => Some(Rows::open(self.inputs, origin.file)?),
                };
                opened.insert(Opened {
                    file: origin.file,
                    rows,
                })
            }
        };
        let Some(rows) = &mut opened.rows else {
            return Ok(None);
        };
        rows.record(origin.line, ids)
            .map_err(|source| because_core::Error::io("read", path, source).into())
    }
}

impl Rows {
    fn open(inputs: &Inputs, file: u32) -> Result<Self> {
        let path = &inputs.paths[file as usize];
        let (source, first, blocks) = Source::open(inputs.format, file, path, inputs.block_bytes)?;
        Ok(Self {
            parser: source.parser,
            first: first.into_iter(),
            blocks,
            block: Block::default(),
        })
    }

    fn record(&mut self, line: u64, ids: [&str; 2]) -> std::io::Result<Option<Value>> {
        while self.block.rows().last().is_none_or(|last| last.line < line) {
            match self.first.next() {
                Some(block) => self.block = block,
                None => {
                    if !self.blocks.next(&mut self.block)? {
                        return Ok(None);
                    }
                }
            }
        }
        let rows = self.block.rows();
        let Ok(at) = rows.binary_search_by_key(&line, |span| span.line) else {
            return Ok(None);
        };
        let row = self.block.row(&rows[at]);
        let is_it = matches!(
            self.parser.parse(row),
            Ok(Record::Interaction(found)) if [&*found.user, &*found.item] == ids
        );
        Ok(is_it.then(|| self.parser.raw(row)))
    }
}
