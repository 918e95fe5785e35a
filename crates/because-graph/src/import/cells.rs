use std::borrow::Cow;

use memchr::memchr;

/// The cells of one row. In quotes, `""` is one quote; a quote within a cell that begins without one is a letter like any
/// other, and what follows a closing quote is taken as it stands (as the `csv` crate reads it).
pub(super) struct Cells<'a> {
    rest: Option<&'a str>,
    separator: &'static str,
    quotes: bool,
}

impl<'a> Cells<'a> {
    pub(super) fn of(row: &'a str, separator: &'static str, quotes: bool) -> Self {
        Self {
            rest: Some(row),
            separator,
            quotes,
        }
    }

    fn find_separator(&self, text: &str) -> Option<usize> {
        match self.separator.as_bytes() {
            &[byte] => memchr(byte, text.as_bytes()),
            _ => text.find(self.separator),
        }
    }

    fn quoted(&mut self, inside: &'a str) -> Cow<'a, str> {
        let bytes = inside.as_bytes();
        let Some(close) = memchr(b'"', bytes) else {
            self.rest = None;
            return inside.into();
        };
        let behind = &inside[close + 1..];
        if behind.is_empty() {
            self.rest = None;
            return inside[..close].into();
        }
        if let Some(rest) = behind.strip_prefix(self.separator) {
            self.rest = Some(rest);
            return inside[..close].into();
        }
        self.unescaped(inside)
    }

    /// A quoted cell with quotes in it, or with something behind its closing quote.
    fn unescaped(&mut self, inside: &'a str) -> Cow<'a, str> {
        let mut cell = String::with_capacity(128);
        let mut rest = inside;
        while let Some(quote) = memchr(b'"', rest.as_bytes()) {
            let (before, behind) = (&rest[..quote], &rest[quote + 1..]);
            cell.push_str(before);
            match behind.strip_prefix('"') {
                Some(behind) => {
                    cell.push('"');
                    rest = behind;
                }
                None => {
                    let end = self.find_separator(behind);
                    self.rest = end.map(|end| &behind[end + self.separator.len()..]);
                    cell.push_str(&behind[..end.unwrap_or(behind.len())]);
                    return cell.into();
                }
            }
        }
        cell.push_str(rest);
        self.rest = None;
        cell.into()
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Cow<'a, str>> {
        let rest = self.rest?;
        if self.quotes
            && let Some(inside) = rest.strip_prefix('"')
        {
            return Some(self.quoted(inside));
        }
        match self.find_separator(rest) {
            Some(end) => {
                self.rest = Some(&rest[end + self.separator.len()..]);
                Some(rest[..end].into())
            }
            None => {
                self.rest = None;
                Some(rest.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cells(row: &str) -> Vec<Cow<'_, str>> {
        Cells::of(row, ",", true).collect()
    }

    #[test]
    fn only_what_must_be_is_copied() {
        let found = cells("a,\"b,c\",\"d\"\"e\",5\" nail,,\"x\"y");
        assert_eq!(found, ["a", "b,c", "d\"e", "5\" nail", "", "xy"]);
        let copied: Vec<_> = found
            .iter()
            .map(|cell| matches!(cell, Cow::Owned(_)))
            .collect();
        assert_eq!(copied, [false, false, true, false, false, true]);
        assert_eq!(
            Cells::of("1::\"A: b::1995", "::", false).collect::<Vec<_>>(),
            ["1", "\"A: b", "1995"]
        );
    }

    proptest! {
        #[test]
        fn rows_are_taken_apart_as_the_csv_crate_does(row in "[a,\" é]{1,12}") {
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .from_reader(row.as_bytes());
            let mut expected = csv::StringRecord::new();
            prop_assume!(reader.read_record(&mut expected).unwrap());
            prop_assert_eq!(cells(&row), expected.iter().collect::<Vec<_>>());
        }
    }
}
