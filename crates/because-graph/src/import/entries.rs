use std::io::{self, BufRead, Read};

/// Turns one JSON object of objects (`{"7": {"profile": ..}, ..}`) into lines, one for each entry: `{"id":"7","profile":..}`;
/// an entry that is a text becomes `{"id":"7","profile":"text"}`. It looks only at quotes and brackets, a piece at a time, so
/// no entry has to fit in memory; whether a line is an object at all is found out where lines are read.
pub(super) struct Entries {
    source: Box<dyn BufRead>,
    machine: Machine,
    given: usize,
    ended: bool,
}

impl Entries {
    pub(super) fn of(source: Box<dyn BufRead>) -> Self {
        Self {
            source,
            machine: Machine {
                place: Place::Start,
                text: Text::Outside,
                out: Vec::new(),
            },
            given: 0,
            ended: false,
        }
    }
}

impl BufRead for Entries {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.given == self.machine.out.len() {
            self.machine.out.clear();
            self.given = 0;
            while self.machine.out.is_empty() && !self.ended {
                let chunk = self.source.fill_buf()?;
                chunk.iter().for_each(|&byte| self.machine.step(byte));
                let length = chunk.len();
                self.ended = length == 0;
                self.source.consume(length);
            }
        }
        Ok(&self.machine.out[self.given..])
    }

    fn consume(&mut self, amount: usize) {
        self.given = (self.given + amount).min(self.machine.out.len());
    }
}

impl Read for Entries {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.consume(length);
        Ok(length)
    }
}

struct Machine {
    place: Place,
    text: Text,
    out: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the brace that opens the file.
    Start,
    /// Before a key, or at the end.
    BeforeKey,
    Key,
    /// Behind a key.
    BeforeValue,
    /// Behind the brace that opens an entry.
    BeforeField,
    /// In an entry, with so many brackets open.
    Object(u32),
    /// In an entry that is no object, with so many brackets open.
    Other(u32),
    /// Not the file it should be: what is left goes through as it stands, for the reader of lines to refuse.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

impl Text {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Outside, b'"') | (Self::Escaped, _) => Self::Inside,
            (Self::Inside, b'"') => Self::Outside,
            (Self::Inside, b'\\') => Self::Escaped,
            (before, _) => before,
        }
    }
}

impl Machine {
    fn step(&mut self, byte: u8) {
        // Only a line feed ends a line; in JSON it is a blank like any other.
        let byte = if byte == b'\n' && self.place != Place::Lost {
            b' '
        } else {
            byte
        };
        let was = self.text;
        if !matches!(self.place, Place::Start | Place::Lost) {
            self.text = was.after(byte);
        }
        let blank = matches!(byte, b' ' | b'\t' | b'\r');
        let outside = was == Text::Outside;
        self.place = match (self.place, byte) {
            (Place::Start, b'{') => Place::BeforeKey,
            (Place::Start, b'\xef' | b'\xbb' | b'\xbf') => Place::Start,
            (Place::BeforeKey, b',' | b'}') => Place::BeforeKey,
            (Place::BeforeKey, b'"') => {
                self.out.extend_from_slice(b"{\"id\":\"");
                Place::Key
            }
            (Place::Key, _) => {
                self.out.push(byte);
                match self.text {
                    Text::Outside => Place::BeforeValue,
                    _ => Place::Key,
                }
            }
            (Place::BeforeValue, b':') => Place::BeforeValue,
            (Place::BeforeValue, b'{') => Place::BeforeField,
            (Place::BeforeField, b'}') => self.end_entry(),
            (Place::Start | Place::BeforeKey | Place::BeforeValue | Place::BeforeField, _)
                if blank =>
            {
                self.place
            }
            (Place::BeforeField, _) => {
                self.out.push(b',');
                self.out.push(byte);
                Place::Object(1).opened(byte, outside)
            }
            (Place::BeforeValue, _) => {
                self.out.extend_from_slice(b",\"profile\":");
                self.out.push(byte);
                Place::Other(0).opened(byte, outside)
            }
            (Place::Object(1), b'}') if outside => self.end_entry(),
            (Place::Other(0), b',' | b'}') if outside => self.end_entry(),
            (Place::Object(_) | Place::Other(_), _) => {
                self.out.push(byte);
                self.place.opened(byte, outside)
            }
            (Place::Start | Place::BeforeKey | Place::Lost, _) => {
                self.out.push(byte);
                Place::Lost
            }
        };
    }

    fn end_entry(&mut self) -> Place {
        self.out.extend_from_slice(b"}\n");
        Place::BeforeKey
    }
}

impl Place {
    /// With one bracket more or less open, if this is one.
    fn opened(self, byte: u8, outside: bool) -> Self {
        let change = |open: u32| match byte {
            b'{' | b'[' if outside => open.saturating_add(1),
            b'}' | b']' if outside => open.saturating_sub(1),
            _ => open,
        };
        match self {
            Self::Object(open) => Self::Object(change(open)),
            Self::Other(open) => Self::Other(change(open)),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn lines(text: &str, piece: usize) -> String {
        let source = BufReader::with_capacity(piece, io::Cursor::new(text.to_owned()));
        let mut read = String::new();
        Entries::of(Box::new(source))
            .read_to_string(&mut read)
            .unwrap();
        read
    }

    #[test]
    fn each_entry_is_a_line() {
        let text = "{\n  \"7\": {\n \"profile\": \"a } \\\" {\",\n \"x\": [{}, 1]\n },\"8\":{ }, \"9\\n\": \"text, }\", \"10\":[1,{\"a\":2}]}\n";
        for piece in [1, 3, 1000] {
            let found = lines(text, piece);
            let found: Vec<Value> = found
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(
                found,
                [
                    json!({"id": "7", "profile": "a } \" {", "x": [{}, 1]}),
                    json!({"id": "8"}),
                    json!({"id": "9\n", "profile": "text, }"}),
                    json!({"id": "10", "profile": [1, {"a": 2}]}),
                ]
            );
        }
    }

    #[test]
    fn what_is_no_object_goes_through() {
        assert_eq!(lines("[1, 2]\n[3]", 4), "[1, 2]\n[3]");
        assert_eq!(lines("{\"a\":{\"b\":1", 4), "{\"id\":\"a\",\"b\":1");
        assert_eq!(lines("{}", 4), "");
    }

    proptest! {
        #[test]
        fn every_object_comes_apart(entries in prop::collection::vec(("[a-z\"\\\\é]{0,4}", "[a-z\"{}\\[\\],:\\\\\n]{0,8}"), 0..6), pretty: bool) {
            let whole: serde_json::Map<_, _> = entries
                .into_iter()
                .map(|(id, text)| (id, json!({"profile": text, "list": [text, {"a": text}]})))
                .collect();
            let written = if pretty { serde_json::to_string_pretty(&whole) } else { serde_json::to_string(&whole) }.unwrap();
            let found = lines(&written, 7);
            let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let expected: Vec<Value> = whole
                .into_iter()
                .map(|(id, mut value)| {
                    value.as_object_mut().unwrap().insert("id".to_owned(), id.into());
                    value
                })
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
