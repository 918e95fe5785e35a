/// Brackets of an answer within one another; serde_json reads 127 and others fewer.
pub(super) const DEEPEST: usize = 120;
/// From here on it is looked where a token leads.
pub(super) const DEEP: usize = 64;

/// How many brackets are open after so much of a JSON document.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Goes on and tells the most brackets that were open at once.
    pub(super) fn read(&mut self, bytes: &[u8]) -> usize {
        let mut most = self.depth;
        for &byte in bytes {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'[' | b'{' => {
                    self.depth += 1;
                    most = most.max(self.depth);
                }
                b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        most
    }

    pub(super) fn is_deep(self) -> bool {
        self.depth >= DEEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_are_text() {
        let mut nesting = Nesting::default();
        assert_eq!(nesting.read(br#"{"a[":"\"[{","b":[["#), 3);
        assert_eq!(nesting.read(b"]]}"), 3);
        assert_eq!(nesting.read(b""), 0);
    }
}
