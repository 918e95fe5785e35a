use std::io::{self, BufRead};

use memchr::{memchr, memchr_iter, memchr2};

use super::rule::Framing;

/// No row may take more memory than this, whatever a file does.
pub(super) const MAX_ROW_BYTES: usize = 8 << 20;
/// No block has more rows than this: what is noted of a row may take more room than the row.
const MAX_ROWS: usize = 1 << 14;
/// How much of an overlong row is kept to show.
const EXCERPT_BYTES: usize = 200;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Cuts a file into blocks of whole rows. Which rows there are does not depend on the size of the blocks, and what is held
/// is one block and one row more, whatever the file does.
pub(super) struct Blocks {
    source: Box<dyn BufRead>,
    framing: Framing,
    block_bytes: usize,
    /// The beginning of a row whose end was not yet read.
    rest: Vec<u8>,
    /// The physical line that comes next, counted from one.
    line: u64,
    /// Inside a row that was too long to be kept.
    skipping: bool,
    /// Whether the last cut gave rows, so that what was left may give more.
    has_rows: bool,
    ended: bool,
}

/// Rows as they stand in their file, without line feeds. Blank lines are none.
#[derive(Debug, Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
    rows: Vec<Span>,
}

/// Where a row stands, in its block and in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: u32,
    end: u32,
    /// Where the row begins in its file, counted from one.
    pub(super) line: u64,
    pub(super) wholeness: Wholeness,
}

/// Whether all of a row is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wholeness {
    Whole,
    /// A quote opens in it that nothing closes. It would swallow every row behind it, so only its own line is given up.
    Unclosed,
    /// Longer than [`MAX_ROW_BYTES`]; what is there is its beginning.
    Overlong,
}

impl Block {
    pub(super) fn rows(&self) -> &[Span] {
        &self.rows
    }

    pub(super) fn row(&self, span: &Span) -> &[u8] {
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// Its first row, which then is none of its rows any more.
    pub(super) fn take_first(&mut self) -> Option<Span> {
        (!self.rows.is_empty()).then(|| self.rows.remove(0))
    }

    /// How many bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Blocks {
    pub(super) fn new(source: Box<dyn BufRead>, framing: Framing, block_bytes: usize) -> Self {
        Self {
            source,
            framing,
            block_bytes: block_bytes.max(1),
            rest: Vec::new(),
            line: 1,
            skipping: false,
            has_rows: false,
            ended: false,
        }
    }

    /// Puts the next rows in the place of what the block held; false where there are none left.
    pub(super) fn next(&mut self, block: &mut Block) -> io::Result<bool> {
        block.rows.clear();
        block.bytes.clear();
        if block.bytes.capacity() > self.block_bytes.saturating_mul(4) {
            block.bytes = Vec::new();
        }
        block.bytes.append(&mut self.rest);
        loop {
            // What was read to see where a row ends may be blocks enough.
            if block.bytes.len() < self.block_bytes || !self.has_rows {
                let begun = block.bytes.len();
                self.read_more(&mut block.bytes, self.block_bytes.max(begun))?;
            }
            if self.skipping && !self.skip(&mut block.bytes) {
                if self.ended {
                    return Ok(false);
                }
                continue;
            }
            let rest = self.cut_rows(block);
            self.has_rows = !block.rows.is_empty();
            if self.has_rows {
                self.rest.extend_from_slice(&block.bytes[rest..]);
                block.bytes.truncate(rest);
                return Ok(true);
            }
            block.bytes.drain(..rest);
            if self.ended && block.bytes.is_empty() {
                return Ok(false);
            }
        }
    }

    fn read_more(&mut self, bytes: &mut Vec<u8>, count: usize) -> io::Result<()> {
        let want = bytes.len() + count;
        let mut filled = bytes.len();
        bytes.resize(want, 0);
        while filled < want && !self.ended {
            match self.source.read(&mut bytes[filled..]) {
                Ok(0) => self.ended = true,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(())
    }

    /// Drops what is left of an overlong row; false where its end is not among these bytes.
    fn skip(&mut self, bytes: &mut Vec<u8>) -> bool {
        match memchr(b'\n', bytes) {
            Some(end) => {
                bytes.drain(..=end);
                self.skipping = false;
                true
            }
            None => {
                bytes.clear();
                false
            }
        }
    }

    /// Cuts the rows that end among the bytes, as many as make a block, and says where what is left begins.
    fn cut_rows(&mut self, block: &mut Block) -> usize {
        let mut start = 0;
        while start < block.bytes.len() {
            let is_full = start >= self.block_bytes || block.rows.len() >= MAX_ROWS;
            if is_full && !block.rows.is_empty() {
                return start;
            }
            let bytes = &block.bytes[start..];
            let Some(end) = end_of_row(bytes, self.framing, self.line == 1, self.ended) else {
                return start;
            };
            let mut row = &bytes[..end.row];
            let mut next = end.next;
            match end.wholeness {
                Wholeness::Whole => row = row.strip_suffix(b"\r").unwrap_or(row),
                Wholeness::Unclosed => {}
                Wholeness::Overlong => {
                    row = &row[..EXCERPT_BYTES];
                    match memchr(b'\n', &bytes[end.next..]) {
                        Some(feed) => next = end.next + feed + 1,
                        None => {
                            next = bytes.len();
                            self.skipping = true;
                        }
                    }
                }
            }
            let stop = start + row.len();
            if self.line == 1 {
                row = row.strip_prefix(BYTE_ORDER_MARK).unwrap_or(row);
            }
            if end.wholeness != Wholeness::Whole || !row.trim_ascii().is_empty() {
                block.rows.push(Span {
                    start: place(stop - row.len()),
                    end: place(stop),
                    line: self.line,
                    wholeness: end.wholeness,
                });
            }
            self.line += end.lines;
            start += next;
        }
        start
    }
}

/// A block is never longer than a few of the longest rows.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The end of a row, counted from its beginning.
#[derive(Debug, PartialEq, Eq)]
struct End {
    row: usize,
    next: usize,
    /// Physical lines up to `next`.
    lines: u64,
    wholeness: Wholeness,
}

impl End {
    fn whole(row: usize, next: usize, feeds: u64) -> Self {
        Self {
            row,
            next,
            lines: feeds + 1,
            wholeness: Wholeness::Whole,
        }
    }

    fn overlong(feeds: u64) -> Self {
        Self {
            row: MAX_ROW_BYTES + 1,
            next: MAX_ROW_BYTES + 1,
            lines: feeds + 1,
            wholeness: Wholeness::Overlong,
        }
    }

    /// The first line alone; what stands behind it are rows of their own.
    fn unclosed(bytes: &[u8]) -> Self {
        let row = memchr(b'\n', bytes).unwrap_or(bytes.len());
        Self {
            row,
            next: (row + 1).min(bytes.len()),
            lines: 1,
            wholeness: Wholeness::Unclosed,
        }
    }
}

/// The end of the row that begins with these bytes; `None` where more of them decide.
fn end_of_row(bytes: &[u8], framing: Framing, is_first: bool, ended: bool) -> Option<End> {
    let window = &bytes[..bytes.len().min(MAX_ROW_BYTES + 1)];
    let is_full = window.len() > MAX_ROW_BYTES;
    let (feeds, is_open) = match framing {
        Framing::Lines => match memchr(b'\n', window) {
            Some(feed) => return Some(End::whole(feed, feed + 1, 0)),
            None => (0, false),
        },
        Framing::Quoted { delimiter } => {
            // A byte-order mark does not hide the quote behind it.
            let marked = is_first && window.starts_with(BYTE_ORDER_MARK);
            let begin = if marked { BYTE_ORDER_MARK.len() } else { 0 };
            match quoted(window, begin, delimiter) {
                Quotes::Ended { feed, feeds } => {
                    return Some(End::whole(feed, feed + 1, feeds));
                }
                Quotes::Unclosed => return Some(End::unclosed(window)),
                Quotes::Undecided { feeds, is_open } => (feeds, is_open),
            }
        }
    };
    if is_full {
        return Some(if is_open && feeds > 0 {
            End::unclosed(window)
        } else {
            End::overlong(feeds)
        });
    }
    if !ended {
        return None;
    }
    Some(if is_open {
        End::unclosed(window)
    } else {
        End::whole(window.len(), window.len(), feeds)
    })
}

/// What quotes say about where a row ends.
enum Quotes {
    /// At this line feed, with so many line feeds inside quotes before it.
    Ended {
        feed: usize,
        feeds: u64,
    },
    /// The quote that seemed to close a field lines above opens the next one.
    Unclosed,
    Undecided {
        feeds: u64,
        is_open: bool,
    },
}

fn quoted(bytes: &[u8], begin: usize, delimiter: u8) -> Quotes {
    let mut feeds = 0;
    let mut at = begin;
    'plain: loop {
        let Some(found) = memchr2(b'"', b'\n', &bytes[at..]).map(|found| at + found) else {
            return Quotes::Undecided {
                feeds,
                is_open: false,
            };
        };
        if bytes[found] == b'\n' {
            return Quotes::Ended { feed: found, feeds };
        }
        let opens = found == begin || bytes[found - 1] == delimiter;
        at = found + 1;
        if !opens {
            continue;
        }
        loop {
            let close = memchr(b'"', &bytes[at..]).map(|found| at + found);
            let inside = &bytes[at..close.unwrap_or(bytes.len())];
            // Most cells are one line, and that is told faster than lines are counted.
            if let Some(feed) = memchr(b'\n', inside) {
                feeds += 1 + memchr_iter(b'\n', &inside[feed + 1..]).count() as u64;
            }
            let Some(close) = close else {
                return Quotes::Undecided {
                    feeds,
                    is_open: true,
                };
            };
            at = close + 2;
            match bytes.get(close + 1) {
                None => {
                    return Quotes::Undecided {
                        feeds,
                        is_open: false,
                    };
                }
                Some(b'"') => {}
                Some(b'\n') => {
                    return Quotes::Ended {
                        feed: close + 1,
                        feeds,
                    };
                }
                Some(&byte) if byte == delimiter || byte == b'\r' || feeds == 0 => {
                    continue 'plain;
                }
                Some(_) => return Quotes::Unclosed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor, Read};

    use proptest::prelude::*;

    use super::*;

    const COMMAS: Framing = Framing::Quoted { delimiter: b',' };

    type Row = (u64, Wholeness, Vec<u8>);

    fn blocks(framing: Framing, bytes: &[u8], block_bytes: usize) -> Blocks {
        let source = BufReader::with_capacity(3, Cursor::new(bytes.to_vec()));
        Blocks::new(Box::new(source), framing, block_bytes)
    }

    fn rows(framing: Framing, bytes: &[u8], block_bytes: usize) -> Vec<Row> {
        let mut blocks = blocks(framing, bytes, block_bytes);
        let mut block = Block::default();
        let mut rows = Vec::new();
        while blocks.next(&mut block).unwrap() {
            assert!(!block.rows().is_empty());
            for span in block.rows() {
                rows.push((span.line, span.wholeness, block.row(span).to_vec()));
            }
        }
        assert!(!blocks.next(&mut block).unwrap(), "an end stays an end");
        rows
    }

    fn texts(rows: &[Row]) -> Vec<(u64, &str)> {
        rows.iter()
            .map(|(line, _, row)| (*line, std::str::from_utf8(row).unwrap()))
            .collect()
    }

    #[test]
    fn quoted_line_feeds_and_the_mark_of_windows_are_no_ends() {
        let text = "\u{feff}\"user\",item\r\n\r\nu,\"one\r\ntwo, \"\"three\"\"\"\r\nu,5\" nail\r\n";
        let rows = rows(COMMAS, text.as_bytes(), 1 << 20);
        assert_eq!(
            texts(&rows),
            [
                (1, "\"user\",item"),
                (3, "u,\"one\r\ntwo, \"\"three\"\"\""),
                (5, "u,5\" nail")
            ]
        );
    }

    #[test]
    fn an_unclosed_quote_costs_its_own_line_only() {
        let rows = rows(
            COMMAS,
            b"user,item\na,\"x\nb,y\nc,\"z\"\"\"\nd,\"v\nw,e",
            1 << 20,
        );
        let unclosed: Vec<_> = rows
            .iter()
            .map(|row| row.1 == Wholeness::Unclosed)
            .collect();
        assert_eq!(unclosed, [false, true, false, false, true, false]);
        assert_eq!(texts(&rows)[1], (2, "a,\"x"));
        assert_eq!(texts(&rows)[5], (6, "w,e"));
    }

    #[test]
    fn an_overlong_row_is_cut_short_and_the_next_is_read() {
        let long = vec![b'x'; MAX_ROW_BYTES + 1];
        let lines = [&long[..], b"\n{\"user\":1}\n"].concat();
        let in_quotes = [b"a,\"", &long[..], b"\"\nb,y\n"].concat();
        for (framing, text, second) in [
            (Framing::Lines, lines, "{\"user\":1}"),
            (COMMAS, in_quotes, "b,y"),
        ] {
            for block_bytes in [1 << 16, 1 << 20, 1 << 25] {
                let rows = rows(framing, &text, block_bytes);
                assert_eq!(rows.len(), 2);
                assert_eq!(
                    (rows[0].1, rows[0].2.len()),
                    (Wholeness::Overlong, EXCERPT_BYTES)
                );
                assert_eq!(texts(&rows)[1], (2, second));
            }
        }
        let most = vec![b'x'; MAX_ROW_BYTES];
        assert_eq!(rows(Framing::Lines, &most, 1 << 20)[0].1, Wholeness::Whole);
    }

    #[test]
    fn an_endless_quoted_field_is_given_up_line_by_line() {
        let mut text = b"a,\"x\n".to_vec();
        while text.len() < MAX_ROW_BYTES + 100 {
            text.extend_from_slice(b"b,y\n");
        }
        let rows = rows(COMMAS, &text, 1 << 20);
        assert_eq!(rows[0].1, Wholeness::Unclosed);
        assert!(rows[1..].iter().all(|row| row.1 == Wholeness::Whole));
        assert_eq!(
            rows.len(),
            text.iter().filter(|&&byte| byte == b'\n').count()
        );
    }

    #[test]
    fn a_line_without_end_takes_the_memory_of_the_longest_row() {
        let endless = std::io::repeat(b'x').take(100 << 20);
        let source = BufReader::with_capacity(1 << 16, endless);
        let mut blocks = Blocks::new(Box::new(source), COMMAS, 1 << 16);
        let mut block = Block::default();
        assert!(blocks.next(&mut block).unwrap());
        assert_eq!(block.rows().len(), 1);
        assert!(!blocks.next(&mut block).unwrap());
        assert!(block.bytes.capacity() < 3 * MAX_ROW_BYTES);
    }

    /// The rules as they are read one byte after the other.
    fn byte_by_byte(framing: Framing, bytes: &[u8]) -> Vec<Row> {
        let Framing::Quoted { delimiter } = framing else {
            let lines = bytes.split(|&byte| byte == b'\n');
            return lines
                .map(|line| (Wholeness::Whole, line.to_vec()))
                .zip(1..)
                .map(|((wholeness, row), line)| (line, wholeness, row))
                .collect();
        };
        let mut rows = Vec::new();
        let (mut start, mut line) = (0, 1);
        'rows: while start < bytes.len() {
            let marked = line == 1 && bytes.starts_with(BYTE_ORDER_MARK);
            let begin = start + if marked { 3 } else { 0 };
            // Field start, plain, in quotes, behind a quote in quotes.
            let (mut place, mut feeds) = (0, 0);
            let mut unclosed = false;
            for (at, &byte) in bytes.iter().enumerate().skip(begin) {
                if byte == b'\n' && place != 2 {
                    rows.push((line, Wholeness::Whole, bytes[start..at].to_vec()));
                    (start, line) = (at + 1, line + feeds + 1);
                    continue 'rows;
                }
                if place == 3 && feeds > 0 && ![b'"', delimiter, b'\r'].contains(&byte) {
                    unclosed = true;
                    break;
                }
                feeds += u64::from(byte == b'\n');
                place = match (place, byte) {
                    (2, b'"') => 3,
                    (2, _) | (0 | 3, b'"') => 2,
                    (_, byte) if byte == delimiter => 0,
                    _ => 1,
                };
            }
            if !unclosed && place != 2 {
                rows.push((line, Wholeness::Whole, bytes[start..].to_vec()));
                break;
            }
            let end = bytes[start..].iter().position(|&byte| byte == b'\n');
            let end = end.map_or(bytes.len(), |end| start + end);
            rows.push((line, Wholeness::Unclosed, bytes[start..end].to_vec()));
            (start, line) = (end + 1, line + 1);
        }
        rows
    }

    fn tidy((line, wholeness, mut row): Row) -> Option<Row> {
        if wholeness == Wholeness::Whole && row.last() == Some(&b'\r') {
            row.pop();
        }
        if line == 1 && row.starts_with(BYTE_ORDER_MARK) {
            row.drain(..3);
        }
        let is_blank = wholeness == Wholeness::Whole && row.trim_ascii().is_empty();
        (!is_blank).then_some((line, wholeness, row))
    }

    proptest! {
        #[test]
        fn the_size_of_the_blocks_does_not_change_what_is_read(
            bytes in prop::collection::vec(prop::sample::select(b"a,\"\"\n\r \xef\xbb\xbf\0".to_vec()), 0..80),
            marked: bool,
            block_bytes in 1_usize..90,
        ) {
            let bytes = [if marked { BYTE_ORDER_MARK } else { b"" }, &bytes].concat();
            for framing in [Framing::Lines, COMMAS] {
                let expected: Vec<_> = byte_by_byte(framing, &bytes).into_iter().filter_map(tidy).collect();
                prop_assert_eq!(rows(framing, &bytes, block_bytes), expected.clone());
                prop_assert_eq!(rows(framing, &bytes, 1 << 20), expected);
            }
        }
    }
}
