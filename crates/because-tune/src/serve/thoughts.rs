/// Parts what a model thinks, between `<think>` at its beginning and `</think>`, from its answer while both are written. Where
/// the prompt opened the thought, the first tag may be missing; elsewhere the second alone is a word like others.
#[derive(Debug, Default)]
pub(super) struct Thoughts {
    opening: Opening,
    place: Place,
    /// What may be the beginning of a tag, or white space at a border.
    held: String,
    /// Whether something of the thought was given.
    begun: bool,
}

/// Where a model begins to write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    #[default]
    Answer,
    /// Inside of a thought, behind a `<think>` at the end of its prompt.
    Thought,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before anything but white space.
    #[default]
    Start,
    Thought,
    /// Behind a thought, before the answer.
    Between,
    Answer,
}

/// More of a thought, and more of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parted {
    pub(super) thought: String,
    pub(super) answer: String,
}

impl Parted {
    /// All of a text at once.
    pub(super) fn whole(opening: Opening, text: &str) -> Self {
        let mut thoughts = Thoughts::new(opening);
        let (mut all, rest) = (thoughts.push(text), thoughts.finish());
        all.thought += &rest.thought;
        all.answer += &rest.answer;
        all
    }
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl Thoughts {
    pub(super) fn new(opening: Opening) -> Self {
        Self {
            opening,
            ..Self::default()
        }
    }

    /// Takes more text and gives what is sure of it.
    pub(super) fn push(&mut self, text: &str) -> Parted {
        self.held.push_str(text);
        let mut parted = Parted::default();
        if self.place == Place::Start {
            let text = self.held.trim_start();
            if let Some(rest) = text.strip_prefix(OPEN) {
                self.held = rest.to_owned();
                self.place = Place::Thought;
            } else if !OPEN.starts_with(text) {
                self.place = self.untagged();
            }
        }
        if self.place == Place::Thought {
            if !self.begun {
                self.held.drain(..leading_space(&self.held));
            }
            if let Some((thought, answer)) = self.held.split_once(CLOSE) {
                parted.thought = thought.trim_end().to_owned();
                self.held = answer.to_owned();
                self.place = Place::Between;
            } else {
                let sure = self.held[..surely_open(&self.held)].trim_end().len();
                parted.thought = self.held.drain(..sure).collect();
            }
            self.begun |= !parted.thought.is_empty();
        }
        if self.place == Place::Between {
            self.held.drain(..leading_space(&self.held));
            if !self.held.is_empty() {
                self.place = Place::Answer;
            }
        }
        if self.place == Place::Answer {
            parted.answer = std::mem::take(&mut self.held);
        }
        parted
    }

    /// What is left when no more comes.
    pub(super) fn finish(&mut self) -> Parted {
        let held = std::mem::take(&mut self.held);
        if self.place == Place::Start {
            self.place = self.untagged();
        }
        match self.place {
            Place::Thought if !self.begun => Parted {
                thought: held.trim().to_owned(),
                ..Parted::default()
            },
            Place::Thought => Parted {
                thought: held.trim_end().to_owned(),
                ..Parted::default()
            },
            _ => Parted {
                answer: held,
                ..Parted::default()
            },
        }
    }

    /// Where a text is that does not begin with a tag.
    fn untagged(&self) -> Place {
        match self.opening {
            Opening::Answer => Place::Answer,
            Opening::Thought => Place::Thought,
        }
    }
}

fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Up to where no tag may begin.
fn surely_open(text: &str) -> usize {
    let longest = (1..CLOSE.len())
        .rev()
        .find(|&bytes| text.ends_with(&CLOSE[..bytes]));
    text.len() - longest.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parted(opening: Opening, pieces: &[&str]) -> (String, String) {
        let mut thoughts = Thoughts::new(opening);
        let mut all = Parted::default();
        let mut add = |part: Parted| {
            all.thought += &part.thought;
            all.answer += &part.answer;
        };
        for piece in pieces {
            add(thoughts.push(piece));
        }
        add(thoughts.finish());
        (all.thought, all.answer)
    }

    #[test]
    fn what_begins_with_a_thought_is_parted_and_all_else_stays_as_it_is() {
        for (text, thought, answer) in [
            ("<think>hm</think>\n\nyes ", "hm", "yes "),
            (" <think>\nhm, </thi and hm\n", "hm, </thi and hm", ""),
            ("<think>\n\n</think>\n{}", "", "{}"),
            (" yes <think>", "", " yes <think>"),
            ("<thin", "", "<thin"),
            (
                "a </think> closes a thought ",
                "",
                "a </think> closes a thought ",
            ),
            ("", "", ""),
        ] {
            let whole = Parted::whole(Opening::Answer, text);
            assert_eq!((&*whole.thought, &*whole.answer), (thought, answer));
        }
    }

    #[test]
    fn a_thought_that_the_prompt_opened_needs_no_tag() {
        for (text, thought, answer) in [
            ("hm\n</think>\n\nyes ", "hm", "yes "),
            ("<think>\nhm</think>yes", "hm", "yes"),
            ("</think>yes", "", "yes"),
            (" hm, and hm ", "hm, and hm", ""),
            ("<thin", "<thin", ""),
            (" \n", "", ""),
        ] {
            let whole = Parted::whole(Opening::Thought, text);
            assert_eq!((&*whole.thought, &*whole.answer), (thought, answer));
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            words in proptest::collection::vec("<think>|</think>|</th|<|[ a-c\n]{0,3}|\u{e9}", 0..8),
            cuts in proptest::collection::vec(0usize..40, 0..6),
        ) {
            let text: String = words.concat();
            let mut at: Vec<usize> = cuts.into_iter().filter(|&at| text.is_char_boundary(at)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            for opening in [Opening::Answer, Opening::Thought] {
                let whole = Parted::whole(opening, &text);
                prop_assert_eq!(parted(opening, &pieces), (whole.thought, whole.answer));
            }
        }
    }
}
