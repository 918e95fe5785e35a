//! Python literals (`{'asin': u'B00', 'price': 3.5, 'tags': ('a', None)}`), as the older data sets have on their lines.
//!
//! What `ast.literal_eval` reads of them is read here, and nothing is ever evaluated. Where JSON has no such value: a tuple, a
//! set and a frozen list are lists, a number as a key is its digits, bytes are their text (UTF-8, else Latin-1), `nan` and
//! `inf` are null, a surrogate without its twin is U+FFFD. Complex numbers, names of characters (`\N{...}`), whole numbers
//! beyond 64 bits and nesting deeper than [`MAX_DEPTH`] are refused.

use serde_json::{Map, Number, Value};

/// How deep lists and dicts may nest: deeper than any data set, and far from the end of the stack.
pub(super) const MAX_DEPTH: usize = 100;

/// Why a text is no literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LiteralError {
    /// From which byte on, counted from zero.
    pub(super) at: usize,
    pub(super) what: &'static str,
}

/// Reads a whole text as one literal.
pub(super) fn parse(text: &str) -> Result<Value, LiteralError> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_blanks();
    match reader.at == text.len() {
        true => Ok(value),
        false => Err(reader.error("something behind the value")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

type Outcome<T> = Result<T, LiteralError>;

impl<'a> Reader<'a> {
    fn error(&self, what: &'static str) -> LiteralError {
        LiteralError { at: self.at, what }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r' | b'\x0c') = self.peek() {
            self.at += 1;
        }
    }

    fn takes(&mut self, byte: u8) -> bool {
        self.skip_blanks();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Outcome<Value> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        self.skip_blanks();
        match self.peek() {
            None => Err(self.error("the end where a value should be")),
            Some(b'{') => self.braces(depth + 1),
            Some(b'[') => {
                self.at += 1;
                Ok(Value::Array(self.list(b']', Vec::new(), depth + 1)?))
            }
            Some(b'(') => self.parentheses(depth + 1),
            Some(b'+' | b'-' | b'.' | b'0'..=b'9') => self.number(),
            Some(b'\'' | b'"') => Ok(Value::String(self.text()?)),
            Some(_) => self.name(),
        }
    }

    /// A dict, or a set.
    fn braces(&mut self, depth: usize) -> Outcome<Value> {
        self.at += 1;
        let mut fields = Map::new();
        loop {
            if self.takes(b'}') {
                return Ok(Value::Object(fields));
            }
            let key_at = self.at;
            let key = self.value(depth)?;
            if !self.takes(b':') {
                if !fields.is_empty() {
                    return Err(self.error("no `:` behind a key"));
                }
                // The first element of a set.
                let ends = self.peek() == Some(b'}');
                if !self.takes(b',') && !ends {
                    return Err(self.error("no `:` behind a key"));
                }
                return Ok(Value::Array(self.list(b'}', vec![key], depth)?));
            }
            let key = match key {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                Value::Bool(true) => "True".to_owned(),
                Value::Bool(false) => "False".to_owned(),
                Value::Null => "None".to_owned(),
                Value::Array(_) | Value::Object(_) => {
                    self.at = key_at;
                    return Err(self.error("a key that is neither a text nor a number"));
                }
            };
            let value = self.value(depth)?;
            fields.insert(key, value);
            if !self.takes(b',') && self.peek() != Some(b'}') {
                return Err(self.error("neither `,` nor `}` behind a value"));
            }
        }
    }

    fn list(&mut self, close: u8, mut list: Vec<Value>, depth: usize) -> Outcome<Vec<Value>> {
        loop {
            if self.takes(close) {
                return Ok(list);
            }
            list.push(self.value(depth)?);
            if !self.takes(b',') && self.peek() != Some(close) {
                return Err(self.error("neither `,` nor the end behind a value"));
            }
        }
    }

    /// A tuple, or one value in parentheses.
    fn parentheses(&mut self, depth: usize) -> Outcome<Value> {
        self.at += 1;
        if self.takes(b')') {
            return Ok(Value::Array(Vec::new()));
        }
        let first = self.value(depth)?;
        if self.takes(b')') {
            return Ok(first);
        }
        if !self.takes(b',') {
            return Err(self.error("neither `,` nor `)` behind a value"));
        }
        Ok(Value::Array(self.list(b')', vec![first], depth)?))
    }

    /// A word, or a text with letters before its quote.
    fn name(&mut self) -> Outcome<Value> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end <= 2 && rest[end..].starts_with(['\'', '"']) {
            return Ok(Value::String(self.text()?));
        }
        let value = match &rest[..end] {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" | "nan" | "inf" => Value::Null,
            _ => return Err(self.error("neither a number, a text, a list nor a dict")),
        };
        self.at += end;
        Ok(value)
    }

    fn number(&mut self) -> Outcome<Value> {
        let start = self.at;
        let mut minus = false;
        while let Some(sign @ (b'+' | b'-')) = self.peek() {
            // A sign of a sign is no literal in Python either.
            if self.at > start {
                return Err(self.error("two signs"));
            }
            minus = sign == b'-';
            self.at += 1;
            self.skip_blanks();
        }
        if self.rest().starts_with("nan") || self.rest().starts_with("inf") {
            return self.name();
        }
        let digits_at = self.at;
        let bytes = self.text.as_bytes();
        while let Some(byte) = self.peek() {
            let signed_exponent = matches!(byte, b'+' | b'-')
                && matches!(bytes[self.at - 1], b'e' | b'E')
                && !self.text[digits_at..].starts_with("0x");
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'.' | b'_') && !signed_exponent {
                break;
            }
            self.at += 1;
        }
        let written = &self.text[digits_at..self.at];
        read_number(written, minus).map_err(|what| LiteralError { at: start, what })
    }

    /// A text; texts that follow one another are one.
    fn text(&mut self) -> Outcome<String> {
        let mut all = String::new();
        loop {
            self.one_text(&mut all)?;
            let end = self.at;
            self.skip_blanks();
            let rest = self.rest();
            let prefix = rest
                .bytes()
                .take_while(u8::is_ascii_alphabetic)
                .take(3)
                .count();
            if prefix > 2 || !rest[prefix..].starts_with(['\'', '"']) {
                self.at = end;
                return Ok(all);
            }
        }
    }

    fn one_text(&mut self, all: &mut String) -> Outcome<()> {
        let prefix = self.rest().find(['\'', '"']).unwrap_or(0);
        let (raw, bytes) = match &*self.rest()[..prefix].to_ascii_lowercase() {
            "" | "u" => (false, false),
            "r" | "ur" => (true, false),
            "b" => (false, true),
            "br" | "rb" => (true, true),
            _ => return Err(self.error("unknown letters before a text")),
        };
        self.at += prefix;
        let opened_at = self.at;
        let opening = self.text.as_bytes()[self.at];
        let quote = char::from(opening);
        let triple = self.text.as_bytes()[self.at..].starts_with(&[opening; 3]);
        let close = &self.rest()[..if triple { 3 } else { 1 }];
        self.at += close.len();
        let mut buffer = Buffer::default();
        loop {
            let rest = self.rest();
            let ends = |&byte: &u8| byte == opening || byte == b'\\';
            let Some(plain) = rest.as_bytes().iter().position(ends) else {
                self.at = opened_at;
                return Err(self.error("a text that does not end"));
            };
            buffer.push_str(&rest[..plain]);
            self.at += plain;
            if self.rest().starts_with(close) {
                self.at += close.len();
                break;
            }
            if self.peek() == Some(b'\\') {
                self.at += 1;
                self.escape(&mut buffer, raw, bytes)?;
            } else {
                buffer.push(quote);
                self.at += 1;
            }
        }
        let text = buffer.finish();
        all.push_str(&if bytes { of_bytes(&text) } else { text });
        Ok(())
    }

    fn escape(&mut self, buffer: &mut Buffer, raw: bool, bytes: bool) -> Outcome<()> {
        let Some(escaped) = self.rest().chars().next() else {
            return Err(self.error("a text that does not end"));
        };
        if raw {
            buffer.push('\\');
            buffer.push(escaped);
            self.at += escaped.len_utf8();
            return Ok(());
        }
        self.at += escaped.len_utf8();
        let code = match escaped {
            '\n' => return Ok(()),
            '\\' | '\'' | '"' => u32::from(escaped),
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'v' => 11,
            '0'..='7' => self.octal(escaped),
            'x' => self.hexadecimal(2)?,
            'u' if !bytes => self.hexadecimal(4)?,
            'U' if !bytes => self.hexadecimal(8)?,
            'N' if !bytes => return Err(self.error("a character by its name")),
            // Python keeps the backslash of what it does not know.
            other => {
                buffer.push('\\');
                u32::from(other)
            }
        };
        buffer
            .push_code(code)
            .ok_or_else(|| self.error("a code beyond Unicode"))
    }

    fn octal(&mut self, first: char) -> u32 {
        let mut code = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit @ b'0'..=b'7') = self.peek() else {
                break;
            };
            code = code * 8 + u32::from(digit - b'0');
            self.at += 1;
        }
        code
    }

    fn hexadecimal(&mut self, digits: usize) -> Outcome<u32> {
        let written = self.text.get(self.at..self.at + digits);
        let code = written
            .filter(|written| written.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|written| u32::from_str_radix(written, 16).ok())
            .ok_or_else(|| self.error("an escape without its hexadecimal digits"))?;
        self.at += digits;
        Ok(code)
    }
}

/// A text in the making; it holds back one half of a surrogate pair until its other half comes.
#[derive(Default)]
struct Buffer {
    text: String,
    half: Option<u32>,
}

impl Buffer {
    fn push(&mut self, letter: char) {
        self.flush();
        self.text.push(letter);
    }

    fn push_str(&mut self, text: &str) {
        if !text.is_empty() {
            self.flush();
            self.text.push_str(text);
        }
    }

    /// `None` beyond Unicode.
    fn push_code(&mut self, code: u32) -> Option<()> {
        if let (Some(half), 0xdc00..=0xdfff) = (self.half, code) {
            self.half = None;
            self.text.push(char::from_u32(
                0x10000 + ((half - 0xd800) << 10) + (code - 0xdc00),
            )?);
            return Some(());
        }
        self.flush();
        match code {
            0xd800..=0xdbff => self.half = Some(code),
            0xdc00..=0xdfff => self.text.push(char::REPLACEMENT_CHARACTER),
            code => self.text.push(char::from_u32(code)?),
        }
        Some(())
    }

    fn flush(&mut self) {
        if self.half.take().is_some() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn finish(mut self) -> String {
        self.flush();
        self.text
    }
}

/// The text that bytes stand for, given as the letters U+00 to U+FF.
fn of_bytes(text: &str) -> String {
    let bytes: Option<Vec<u8>> = text
        .chars()
        .map(|letter| u8::try_from(u32::from(letter)).ok())
        .collect();
    let decoded = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.unwrap_or_else(|| text.to_owned())
}

fn read_number(written: &str, minus: bool) -> Result<Value, &'static str> {
    const WRONG: &str = "an unreadable number";
    let mut digits = String::with_capacity(written.len() + 1);
    let mut before = '_';
    for letter in written.chars() {
        // `_` stands only between digits (`1_000`), or behind the letter of the base (`0x_ff`).
        if letter != '_' {
            digits.push(letter);
        } else if !before.is_ascii_alphanumeric() {
            return Err(WRONG);
        }
        before = letter;
    }
    if before == '_' || written.contains("_.") || written.contains("._") {
        return Err(WRONG);
    }
    // Python 2 writes long numbers as `123L`.
    let digits = digits.strip_suffix(['L', 'l']).unwrap_or(&digits);
    let based = |radix| u64::from_str_radix(digits.get(2..).unwrap_or_default(), radix).ok();
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let whole = match lower.as_deref() {
        Some("0x") => Some(based(16).ok_or(WRONG)?),
        Some("0o") => Some(based(8).ok_or(WRONG)?),
        Some("0b") => Some(based(2).ok_or(WRONG)?),
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() => {
            if digits.starts_with('0') && digits.bytes().any(|byte| byte != b'0') {
                return Err(WRONG);
            }
            Some(
                digits
                    .parse()
                    .map_err(|_| "a whole number beyond 64 bits")?,
            )
        }
        _ => None,
    };
    if let Some(whole) = whole {
        if !minus {
            return Ok(Value::from(whole));
        }
        let whole = 0_i64.checked_sub_unsigned(whole);
        return whole
            .map(Value::from)
            .ok_or("a whole number beyond 64 bits");
    }
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number: f64 = match plain {
        true => digits.parse().map_err(|_| WRONG)?,
        false => return Err(WRONG),
    };
    let number = if minus { -number } else { number };
    Number::from_f64(number)
        .map(Value::Number)
        .ok_or("a number that is not finite")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_of_an_older_data_set_is_read() {
        let line = r#"{u'username': u"Tom's \u00e9\x41\101", 'hours': 1.5, 'found': None, 'early': False, 'l': [1L, -2], 't': (u'a', ), 'nested': {'b': [['x']], 3: "y"}, }"#;
        assert_eq!(
            parse(line).unwrap(),
            json!({"username": "Tom's éAA", "hours": 1.5, "found": null, "early": false, "l": [1, -2], "t": ["a"],
                   "nested": {"b": [["x"]], "3": "y"}})
        );
    }

    #[test]
    fn texts_are_what_they_stand_for() {
        for (written, expected) in [
            (r"'\ud83d\ude00'", "😀"),
            (r"'\ud83d'", "\u{fffd}"),
            (r"'\ud83dx\ude00'", "\u{fffd}x\u{fffd}"),
            (r"'\U0001f600'", "😀"),
            (r"'a' u'b' 'c'", "abc"),
            (r"r'\n\''", r"\n\'"),
            (r"b'caf\xc3\xa9'", "café"),
            (r"b'\xe9'", "é"),
            (r"'''a'b\n'''", "a'b\n"),
            (r"'\d\8'", r"\d\8"),
            ("''", ""),
            (r"'\0'", "\0"),
        ] {
            assert_eq!(parse(written).unwrap(), expected, "{written}");
        }
    }

    #[test]
    fn what_is_no_literal_is_refused_with_its_place() {
        for (written, at, what) in [
            ("__import__('os').system('x')", 0, "neither a number"),
            ("{'a': open('b')}", 6, "neither a number"),
            ("'a' + 'b'", 4, "something behind"),
            ("[1, 2", 5, "neither `,` nor the end"),
            ("'abc", 0, "a text that does not end"),
            ("'abc\\", 5, "a text that does not end"),
            (r"'\x4'", 3, "an escape"),
            (r"'\N{DIGIT ONE}'", 3, "a character by its name"),
            (r"'\U00110000'", 11, "a code beyond"),
            ("{[1]: 2}", 1, "a key that is"),
            ("{1 2}", 3, "no `:`"),
            ("99999999999999999999", 0, "a whole number beyond"),
            ("-9223372036854775809", 0, "a whole number beyond"),
            ("1e999", 0, "a number that is not finite"),
            ("1j", 0, "an unreadable number"),
            ("012", 0, "an unreadable number"),
            ("--1", 1, "two signs"),
            ("1__0", 0, "an unreadable number"),
            ("", 0, "the end where"),
        ] {
            let error = parse(written).unwrap_err();
            assert_eq!(error.at, at, "{written}: {error:?}");
            assert!(error.what.starts_with(what), "{written}: {error:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        for open in ["[", "(", "{1:", "{"] {
            let error = parse(&open.repeat(1_000_000)).unwrap_err();
            assert_eq!(error.what, "nested too deep");
        }
    }

    #[test]
    fn python_reads_the_same() {
        // Made by tests/data/literals.py with ast.literal_eval.
        let vectors = include_str!("../../tests/data/literals.jsonl");
        let (mut count, mut differing) = (0, Vec::new());
        for line in vectors.lines() {
            let vector: Value = serde_json::from_str(line).unwrap();
            let written = vector["literal"].as_str().unwrap();
            if parse(written).ok().as_ref() != vector.get("value") {
                differing.push(line);
            }
            count += 1;
        }
        assert!(count > 300, "{count} vectors");
        assert!(differing.is_empty(), "{differing:#?}");
    }

    proptest! {
        #[test]
        fn no_text_stops_the_reader(text in r#"[\[\]{}()'"\\,:u0-9a-zé \-+.ebxULN]{0,60}"#) {
            let _ = parse(&text);
        }

        #[test]
        fn json_of_texts_and_numbers_reads_as_itself(value in json_value()) {
            prop_assert_eq!(parse(&value.to_string()).unwrap(), value);
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            "[a-z'é😀\n]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-z]{1,3}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }
}
