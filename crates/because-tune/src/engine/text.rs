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
            if self.tail.len() - self.settled > UNSETTLED
                && let Some(cut) = self.border(vocabulary, &text)?
            {
                self.settle(vocabulary, cut)?;
                return Ok(self.release(stops));
            }
            return Ok(String::new());
        }
        let new = text.get(self.settled_text.len()..).unwrap_or_default();
        self.held.push_str(new);
        self.tail.drain(..self.settled);
        self.settled = self.tail.len();
        self.settled_text = vocabulary.decode(&self.tail)?;
        Ok(self.release(stops))
    }

    /// A place among the last tokens on both sides of which the text stays what it is, whatever follows. A character has four
    /// bytes at most, so bytes that are none have such a place soon.
    fn border(&self, vocabulary: &Vocabulary, text: &str) -> Result<Option<usize>> {
        let all = self.tail.len();
        for cut in (all - 4..all).rev() {
            let after = vocabulary.decode(&self.tail[cut..])?;
            let before = vocabulary.decode(&self.tail[..cut])?;
            if !after.is_empty() && before + &after == text {
                return Ok(Some(cut));
            }
        }
        Ok(None)
    }

    /// Takes the text up to a border as it is.
    fn settle(&mut self, vocabulary: &Vocabulary, border: usize) -> Result<()> {
        let text = vocabulary.decode(&self.tail[..border])?;
        let new = text.get(self.settled_text.len()..).unwrap_or_default();
        self.held.push_str(new);
        self.tail.drain(..border);
        (self.settled, self.settled_text) = (0, String::new());
        Ok(())
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
        // The one that is complete first, so that the borders of tokens change nothing; of those the longest.
        let places = stops.iter().filter_map(|stop| {
            let at = self.held.find(stop)?;
            Some((at + stop.len(), at))
        });
        let ready = match places.min() {
            Some((_, at)) => {
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

/// Tokens that may wait for the rest of a character. A character never has so many; a run of bytes that are no text has, and
/// would be decoded anew with each more.
const UNSETTLED: usize = 8;

/// How long the longest end of a text is that a stop text begins with.
fn begun(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        let ends = (1..stop.len().min(text.len() + 1)).rev();
        let mut ends = ends.filter(|&len| stop.is_char_boundary(len));
        ends.find(|&len| text.ends_with(&stop[..len]))
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

    #[test]
    fn of_several_stop_texts_the_one_complete_first_cuts_whatever_the_tokens() {
        let vocabulary = chat().vocabulary;
        let text = "xx<a><b>yy";
        let whole = vocabulary.encode(text).unwrap();
        let single: Vec<u32> = text
            .chars()
            .flat_map(|one| vocabulary.encode(&one.to_string()).unwrap())
            .collect();
        for (stops, expected) in [
            (["a><b>", "><"], "xx<a"),
            (["><b", "<a><b"], "xx"),
            (["yy", "<b>y"], "xx<a>"),
        ] {
            for tokens in [&whole, &single] {
                let (pieces, _) = run(&vocabulary, &stops, tokens);
                assert_eq!(pieces.concat(), expected, "{stops:?}");
            }
        }
        let mut at_once = AnswerText {
            held: text.into(),
            ..AnswerText::default()
        };
        let stops = ["a><b>".to_owned(), "><".to_owned()];
        assert_eq!(at_once.release(&stops), "xx<a");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_wait_for_ever() {
        let vocabulary = chat().vocabulary;
        let byte = vocabulary.bytes().unwrap();
        let token = byte.iter().position(|bytes| bytes == &[0x80]).unwrap() as u32;
        let mut answer = AnswerText::default();
        let mut given = String::new();
        for _ in 0..200 {
            given += &answer.push(&vocabulary, &[], token).unwrap();
            assert!(answer.tail.len() <= UNSETTLED + 1);
        }
        assert!(given.chars().count() > 150);
        given += &answer.finish(&vocabulary, &[]).unwrap();
        assert_eq!(given, "\u{fffd}".repeat(200));
    }

    proptest! {
        /// Random bytes are seldom UTF-8; what comes piece by piece is still what comes at once.
        #[test]
        fn pieces_make_the_whole(
            tokens in prop::collection::vec(0u32..260, 0..40),
            high in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            thread_local!(static VOCABULARY: (Vocabulary, Vec<u32>) = {
                let vocabulary = chat().vocabulary;
                // Single bytes that are no characters by themselves.
                let bytes = vocabulary.bytes().unwrap();
                let is_high = |id: &u32| matches!(bytes[*id as usize][..], [0x80..=0xff]);
                let high = (0..bytes.len() as u32).filter(is_high).collect();
                (vocabulary, high)
            });
            VOCABULARY.with(|(vocabulary, all)| {
                let high = high.iter().map(|index| *index.get(all));
                let tokens: Vec<u32> = tokens.into_iter().chain(high).collect();
                let (pieces, answer) = run(vocabulary, &[], &tokens);
                let whole = vocabulary.decode(&tokens).unwrap();
                assert_eq!(&pieces.concat(), &whole);
                assert_eq!(answer.into_given(), whole);
            });
        }
    }
}
