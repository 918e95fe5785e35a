use crate::error::Result;
use crate::tokens::Vocabulary;

/// The text of an answer as its tokens come: whole characters, and never a part of what may become a stop text.
#[derive(Debug, Default)]
pub(super) struct AnswerText {
    /// All that was given out.
    given: String,
    /// Whole characters that may be the beginning of a stop text.
    held: String,
    /// Tokens whose text the last one given out may hang together with: some decoders look back.
    tail: Vec<u32>,
    /// How many of those are given out or held.
    settled: usize,
    /// Their text.
    settled_text: String,
    stopped: bool,
}

impl AnswerText {
    /// Takes a token and gives what can be given out now. Whether a stop text came, [`Self::is_stopped`] says.
    pub(super) fn push(
        &mut self,
        vocabulary: &Vocabulary,
        stops: &[String],
        token: u32,
    ) -> Result<String> {
        self.tail.push(token);
        let text = vocabulary.decode(&self.tail)?;
        // A character may lack its last bytes.
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let new = text.get(self.settled_text.len()..).unwrap_or_default();
        self.held.push_str(new);
        self.tail.drain(..self.settled);
        self.settled = self.tail.len();
        self.settled_text = vocabulary.decode(&self.tail)?;
        Ok(self.release(stops))
    }

    /// The rest, when no token comes any more.
    pub(super) fn finish(&mut self, vocabulary: &Vocabulary, stops: &[String]) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = vocabulary.decode(&self.tail)?;
        let new = text.get(self.settled_text.len()..).unwrap_or_default();
        self.held.push_str(new);
        let mut last = self.release(stops);
        if !self.stopped {
            last.push_str(&self.held);
            self.given.push_str(&self.held);
            self.held.clear();
        }
        Ok(last)
    }

    /// Whether a stop text ended the answer.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// All that was given out.
    pub(super) fn into_given(self) -> String {
        self.given
    }

    fn release(&mut self, stops: &[String]) -> String {
        let found = stops.iter().filter_map(|stop| self.held.find(stop)).min();
        let ready = match found {
            Some(at) => {
                self.stopped = true;
                at
            }
            None => self.held.len() - begun(&self.held, stops),
        };
        let text: String = self.held.drain(..ready).collect();
        if self.stopped {
            self.held.clear();
        }
        self.given.push_str(&text);
        text
    }
}

/// How long the longest end of a text is that a stop text begins with.
fn begun(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        let ends = (1..stop.len()).filter(|&len| stop.is_char_boundary(len));
        ends.filter(|&len| text.ends_with(&stop[..len])).max()
    };
    stops.iter().filter_map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tiny::tests::chat;

    fn run(vocabulary: &Vocabulary, stops: &[&str], tokens: &[u32]) -> (Vec<String>, AnswerText) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let (mut answer, mut pieces) = (AnswerText::default(), Vec::new());
        for &token in tokens {
            pieces.push(answer.push(vocabulary, &stops, token).unwrap());
            if answer.is_stopped() {
                break;
            }
        }
        pieces.push(answer.finish(vocabulary, &stops).unwrap());
        (pieces, answer)
    }

    #[test]
    fn a_stop_text_ends_the_answer_wherever_its_tokens_end() {
        let vocabulary = chat().vocabulary;
        let tokens = vocabulary.encode("it fits. END of it").unwrap();
        let (pieces, answer) = run(&vocabulary, &["END", "of"], &tokens);
        assert_eq!(pieces.concat(), "it fits. ");
        assert!(answer.is_stopped());
        assert_eq!(answer.into_given(), "it fits. ");
        let (pieces, answer) = run(&vocabulary, &["ENDS"], &tokens);
        assert_eq!(pieces.concat(), "it fits. END of it");
        assert!(!answer.is_stopped());
        let unfinished = vocabulary.encode("it fits EN").unwrap();
        let (pieces, _) = run(&vocabulary, &["END"], &unfinished);
        assert!(
            pieces[..pieces.len() - 1]
                .iter()
                .all(|piece| !piece.contains('E'))
        );
        assert_eq!(pieces.concat(), "it fits EN");
    }

    #[test]
    fn a_character_comes_whole() {
        let vocabulary = chat().vocabulary;
        let tokens = vocabulary.encode("naïve 日本 🦀!").unwrap();
        assert!(
            tokens.len() > 12,
            "characters of several tokens: {tokens:?}"
        );
        let (pieces, _) = run(&vocabulary, &[], &tokens);
        assert_eq!(pieces.concat(), "naïve 日本 🦀!");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    }

    proptest! {
        /// Random bytes are seldom UTF-8; what comes piece by piece is still what comes at once.
        #[test]
        fn pieces_make_the_whole(tokens in prop::collection::vec(0u32..260, 0..40)) {
            thread_local!(static VOCABULARY: Vocabulary = chat().vocabulary);
            VOCABULARY.with(|vocabulary| {
                let (pieces, answer) = run(vocabulary, &[], &tokens);
                let whole = vocabulary.decode(&tokens).unwrap();
                assert_eq!(&pieces.concat(), &whole);
                assert_eq!(answer.into_given(), whole);
            });
        }
    }
}
