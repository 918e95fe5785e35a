/// As many words in a row are hardly met twice by chance.
pub(super) const PHRASE: usize = 8;

/// A text as words without case and punctuation, so that a quotation is known through both. It is meant to be used over and
/// over: its room stays.
#[derive(Debug, Default)]
pub(super) struct Words {
    lower: String,
    /// Where each word ends in `lower`; it begins where the one before ended.
    ends: Vec<usize>,
    hashes: Vec<u64>,
}

impl Words {
    pub(super) fn read(&mut self, text: &str) {
        self.lower.clear();
        self.ends.clear();
        self.hashes.clear();
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '\'') {
            let word = word.trim_matches('\'');
            if word.is_empty() {
                continue;
            }
            let from = self.lower.len();
            if word.is_ascii() {
                self.lower.push_str(word);
                self.lower[from..].make_ascii_lowercase();
            } else {
                self.lower.extend(word.chars().flat_map(char::to_lowercase));
            }
            self.hashes.push(hash(&self.lower.as_bytes()[from..]));
            self.ends.push(self.lower.len());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// 64 bits for each word.
    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The words from a place on, so many.
    pub(super) fn words(&self, from: usize, count: usize) -> String {
        let words: Vec<&str> = (from..(from + count).min(self.len()))
            .map(|at| {
                let begin = if at == 0 { 0 } else { self.ends[at - 1] };
                &self.lower[begin..self.ends[at]]
            })
            .collect();
        words.join(" ")
    }

    /// 64 bits for every run of so many words, in order. They are enough: among a hundred million phrases two meet with a
    /// chance of one in several thousand.
    pub(super) fn phrases(&self, length: usize) -> impl Iterator<Item = u64> + '_ {
        self.hashes.windows(length).map(|words| {
            let mixed = words.iter().fold(0_u64, |sum, word| {
                (sum.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
            mixed ^ (mixed >> 32)
        })
    }
}

/// FNV-1a with a last mixing; nothing of it is kept beyond a run.
fn hash(word: &[u8]) -> u64 {
    let sum = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    sum ^ (sum >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_punctuation_make_no_other_word() {
        let mut words = Words::default();
        words.read("Don't STOP — 'Müßig' Äpfel, 2 of them!");
        assert_eq!(words.words(0, 9), "don't stop müßig äpfel 2 of them");
        let first: Vec<u64> = words.phrases(3).collect();
        words.read("don't stop müßig äpfel (2 of) them");
        assert_eq!(words.phrases(3).collect::<Vec<_>>(), first);
        assert_eq!((words.len(), first.len()), (7, 5));
        words.read("stop don't müßig");
        assert!(!first.contains(&words.phrases(3).next().unwrap()));
        words.read("");
        assert_eq!(words.phrases(3).count(), 0);
    }
}
