mod words;

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use self::words::{Word, sentences, words};

/// What one sentence of an explanation rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The sentence.
    pub sentence: String,
    /// Its phrases that stand in the user's profile, in the profile's words.
    pub user: Vec<String>,
    /// Its phrases that stand in the item's profile, in the profile's words.
    pub item: Vec<String>,
    /// How many of its content words stand in either profile.
    pub grounded_words: usize,
    /// How many content words it has.
    pub content_words: usize,
}

/// Finds, for each sentence of an explanation, the phrases of the two profiles that it rests on: the longest run of words that
/// both have in common, then the longest of what is left of the sentence, and so on. Words are compared by their stems
/// (Porter), composed (NFC) and without the ends of `you'll` and `don't`; a run begins and ends with a content word and stays
/// within one sentence of the profile. Chinese and Japanese, whose words are not marked, are compared by pairs of signs.
///
/// It is a lexical alignment, deterministic and without a model: what it finds is there; a paraphrase it does not see.
///
/// ```
/// use because_eval::evidence;
///
/// let found = evidence(
///     "You like slow politics. It has dragons.",
///     "Enjoys slow, political novels.",
///     "A desert planet and its slow politics.",
/// );
/// assert_eq!((found[0].user.as_slice(), found[0].item.as_slice()), (&["slow, political".into()][..], &["slow politics".into()][..]));
/// assert_eq!((found[1].grounded_words, found[1].content_words), (0, 1));
/// ```
#[must_use]
pub fn evidence(explanation: &str, user_profile: &str, item_profile: &str) -> Vec<Evidence> {
    let [user, item] = [user_profile, item_profile].map(Source::new);
    sentences(explanation)
        .into_iter()
        .map(|sentence| {
            let words = words(sentence);
            let [in_user, in_item] = [&user, &item].map(|source| {
                let mut phrases = source.shared_with(&words);
                let mut seen = HashSet::new();
                phrases.retain(|phrase| seen.insert(phrase.to_lowercase()));
                phrases
            });
            let content = words.iter().filter(|word| word.is_content);
            let grounded = content
                .clone()
                .filter(|word| user.has(word) || item.has(word));
            Evidence {
                sentence: sentence.to_owned(),
                user: in_user,
                item: in_item,
                grounded_words: grounded.count(),
                content_words: content.count(),
            }
        })
        .collect()
}

/// A profile, with the places of every content word in it.
struct Source<'a> {
    text: &'a str,
    words: Vec<Word<'a>>,
    /// Whether this word follows the one before it in one sentence.
    goes_on: Vec<bool>,
    places: HashMap<String, Vec<usize>>,
}

/// Words of a sentence that stand in the profile.
#[derive(Clone, Copy, Default)]
struct Run {
    length: usize,
    /// The first of them in the profile.
    place: usize,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Self {
        let (mut all, mut goes_on) = (Vec::new(), Vec::new());
        for sentence in sentences(text) {
            let words = words(sentence);
            goes_on.extend((0..words.len()).map(|at| at > 0));
            all.extend(words);
        }
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, word) in all.iter().enumerate().filter(|(_, word)| word.is_content) {
            places.entry(word.stem.clone()).or_default().push(place);
        }
        Self {
            text,
            words: all,
            goes_on,
            places,
        }
    }

    fn has(&self, word: &Word<'_>) -> bool {
        self.places.contains_key(&word.stem)
    }

    /// The phrases of this profile that a sentence repeats, in the order of the sentence, each as the profile has it.
    fn shared_with(&self, sentence: &[Word<'_>]) -> Vec<String> {
        let mut runs = self.longest_runs(sentence);
        let mut found: Vec<(usize, Run)> = Vec::new();
        // The longest that is left, the first of several as long.
        while let Some((start, run)) = runs
            .iter()
            .copied()
            .enumerate()
            .rev()
            .max_by_key(|(_, run)| run.length)
            .filter(|(_, run)| run.length > 0)
        {
            found.push((start, run));
            runs[start..start + run.length].fill(Run::default());
            for (before, run) in runs[..start].iter_mut().enumerate() {
                if before + run.length > start {
                    let kept = sentence[before..start]
                        .iter()
                        .rposition(|word| word.is_content);
                    run.length = kept.map_or(0, |last| last + 1);
                }
            }
        }
        found.sort_unstable_by_key(|&(start, _)| start);
        let phrases = found.into_iter().map(|(_, run)| self.phrase(run));
        phrases.collect()
    }

    fn phrase(&self, run: Run) -> String {
        let (first, last) = (
            &self.words[run.place],
            &self.words[run.place + run.length - 1],
        );
        let from = offset(self.text, first.text);
        self.text[from..offset(self.text, last.text) + last.text.len()].to_owned()
    }

    /// For each word of a sentence the longest run that begins with it, where in the profile it stands first.
    fn longest_runs(&self, sentence: &[Word<'_>]) -> Vec<Run> {
        let mut longest = vec![Run::default(); sentence.len()];
        // The lengths of the runs that begin with the next word of the sentence, by their place in the profile.
        let mut next = vec![0; self.words.len()];
        for (start, word) in sentence.iter().enumerate().rev() {
            let mut lengths = vec![0; self.words.len()];
            for (place, own) in self.words.iter().enumerate().rev() {
                if own.is_content != word.is_content || own.stem != word.stem {
                    continue;
                }
                let rest = match self.goes_on.get(place + 1) {
                    Some(true) => next[place + 1],
                    _ => 0,
                };
                lengths[place] = match rest {
                    0 => usize::from(word.is_content),
                    rest => rest + 1,
                };
                // From the last place to the first, so that the first of several as long stays.
                if word.is_content && lengths[place] >= longest[start].length {
                    let length = lengths[place];
                    longest[start] = Run { length, place };
                }
            }
            next = lengths;
        }
        longest
    }
}

/// Where a piece of a text begins in it.
fn offset(text: &str, piece: &str) -> usize {
    piece.as_ptr() as usize - text.as_ptr() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_run_is_taken_in_the_profiles_own_words() {
        let found = evidence(
            "Sharp trading of goods, then dice.",
            "Wants sharp Trading of Goods every time; dice too.",
            "",
        );
        assert_eq!(found[0].user, ["sharp Trading of Goods", "dice"]);
        assert_eq!((found[0].grounded_words, found[0].content_words), (4, 4));
        assert!(found[0].item.is_empty());
    }

    #[test]
    fn a_run_does_not_end_with_a_function_word() {
        assert_eq!(
            evidence("quiet and", "quiet and calm", "")[0].user,
            ["quiet"]
        );
    }

    #[test]
    fn odd_text_is_no_trouble() {
        assert!(evidence("", "a", "b").is_empty());
        assert!(evidence("… 🙂", "🙂", "").is_empty());
        assert_eq!(
            evidence("naïve café", "Naïve Café!", "")[0].user,
            ["Naïve Café"]
        );
    }

    #[test]
    fn no_form_of_a_function_word_is_evidence() {
        let found = evidence(
            "You are enjoying it, liked or not.",
            "Enjoys what they like.",
            "",
        );
        assert_eq!(
            (found[0].user.len(), found[0].content_words),
            (0, 0),
            "{found:?}"
        );
        // A stem in common is not enough.
        assert_eq!(
            evidence("A suite.", "It suits. Suites too.", "")[0].user,
            ["Suites"]
        );
    }

    #[test]
    fn both_apostrophes_are_one_and_what_follows_them_is_no_content() {
        let found = evidence(
            "You\u{2019}ll find Cooper\u{2019}s ale; don't wait, they're sure, I\u{2019}d say.",
            "Drinks Cooper's ale.",
            "",
        );
        assert_eq!(found[0].user, ["Cooper's ale"]);
        let found = evidence(
            "You\u{2019}ll, don\u{2019}t, it\u{2019}s, won't, they've.",
            "",
            "",
        );
        assert_eq!(found[0].content_words, 0);
    }

    #[test]
    fn a_run_stays_within_a_sentence_and_a_line_of_the_profile() {
        for profile in ["Loves tea. Rooms matter.", "Loves tea\nRooms matter"] {
            assert_eq!(
                evidence("Tea rooms.", profile, "")[0].user,
                ["tea", "Rooms"]
            );
        }
        assert_eq!(
            evidence("Tea rooms.", "tea, rooms", "")[0].user,
            ["tea, rooms"]
        );
    }

    #[test]
    fn a_longer_run_is_not_torn_by_one_before_it() {
        assert_eq!(
            evidence(
                "old book shop with coffee",
                "old book; book shop with coffee",
                ""
            )[0]
            .user,
            ["old", "book shop with coffee"]
        );
    }

    #[test]
    fn chinese_and_japanese_are_found_by_pairs_of_signs() {
        let found = evidence("你喜欢安静的茶馆。也有电影。", "喜爱安静的茶馆和书", "");
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].user, ["安静的茶馆"]);
        assert!(found[1].user.is_empty());
        let found = evidence("静かなカフェです。", "静かなカフェが好きです", "");
        assert_eq!(found[0].user, ["静かなカフェ"]);
    }

    #[test]
    fn composed_and_decomposed_letters_are_one() {
        assert_eq!(
            evidence("A caf\u{e9}.", "Any Cafe\u{301} will do", "")[0].user,
            ["Cafe\u{301}"]
        );
    }

    fn text() -> impl Strategy<Value = String> {
        let word = "(tea|rooms?|the|quiet|you'll|don\u{2019}t|Dr|4\\.5|caf\u{e9}|cafe\u{301}|茶馆|安静的|カフェ|\u{1f375})";
        prop_oneof![
            proptest::collection::vec((word, "[ .,!\n。]{1,2}"), 0..16)
                .prop_map(|pairs| pairs.into_iter().map(|(word, end)| word + &end).collect()),
            proptest::collection::vec(any::<char>(), 0..30).prop_map(String::from_iter),
            "\\PC{0,40}",
        ]
    }

    proptest! {
        #[test]
        fn every_phrase_stands_in_its_profile_the_same_every_time(
            explanation in text(), user in text(), item in text(),
        ) {
            let found = evidence(&explanation, &user, &item);
            prop_assert_eq!(&found, &evidence(&explanation, &user, &item));
            for one in &found {
                prop_assert!(explanation.contains(&one.sentence));
                prop_assert!(one.user.iter().all(|phrase| user.contains(phrase) && !phrase.is_empty()));
                prop_assert!(one.item.iter().all(|phrase| item.contains(phrase) && !phrase.is_empty()));
                prop_assert!(one.grounded_words <= one.content_words);
                prop_assert_eq!(one.grounded_words > 0, !(one.user.is_empty() && one.item.is_empty()));
            }
        }

        #[test]
        fn what_a_profile_says_of_itself_is_all_evidence(profile in text()) {
            for one in evidence(&profile, &profile, "") {
                prop_assert_eq!(one.grounded_words, one.content_words);
            }
        }
    }
}
