use std::collections::HashMap;

use serde::Serialize;

use crate::text::stem_token;

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

/// Finds, for each sentence of an explanation, the phrases of the two profiles that it rests on: the longest runs of words
/// that both have in common, compared by their stems (Porter), beginning and ending with a content word.
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
        .map(|sentence| {
            let words = words(sentence);
            let (mut in_user, mut in_item) = (user.shared_with(&words), item.shared_with(&words));
            let content = |word: &&Word<'_>| word.is_content;
            let grounded = words
                .iter()
                .filter(content)
                .filter(|word| {
                    [&user, &item]
                        .iter()
                        .any(|source| source.places.contains_key(&word.stem))
                })
                .count();
            for phrases in [&mut in_user, &mut in_item] {
                let mut seen = std::collections::HashSet::new();
                phrases.retain(|phrase| seen.insert(phrase.to_lowercase()));
            }
            Evidence {
                sentence: sentence.to_owned(),
                user: in_user,
                item: in_item,
                grounded_words: grounded,
                content_words: words.iter().filter(content).count(),
            }
        })
        .collect()
}

struct Word<'a> {
    start: usize,
    text: &'a str,
    stem: String,
    is_content: bool,
}

/// A profile, with the places of every stem in it.
struct Source<'a> {
    text: &'a str,
    words: Vec<Word<'a>>,
    places: HashMap<String, Vec<usize>>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Self {
        let words = words(text);
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, word) in words.iter().enumerate() {
            places.entry(word.stem.clone()).or_default().push(place);
        }
        Self {
            text,
            words,
            places,
        }
    }

    /// The phrases of this profile that a sentence repeats, in the order of the sentence, each as the profile has it.
    fn shared_with(&self, sentence: &[Word<'_>]) -> Vec<String> {
        let mut phrases = Vec::new();
        let mut at = 0;
        while at < sentence.len() {
            let run = if sentence[at].is_content {
                self.longest_run(&sentence[at..])
            } else {
                None
            };
            let Some((place, length)) = run else {
                at += 1;
                continue;
            };
            let last = &self.words[place + length - 1];
            phrases
                .push(self.text[self.words[place].start..last.start + last.text.len()].to_owned());
            at += length;
        }
        phrases
    }

    /// Where in the profile the longest run begins that equals the beginning of `words` and ends with a content word; the
    /// first such place where several are as long.
    fn longest_run(&self, words: &[Word<'_>]) -> Option<(usize, usize)> {
        let length = |place: usize| {
            let equal = self.words[place..]
                .iter()
                .zip(words)
                .take_while(|(a, b)| a.stem == b.stem)
                .count();
            words[..equal]
                .iter()
                .rposition(|word| word.is_content)
                .map_or(0, |last| last + 1)
        };
        let places = self.places.get(&words[0].stem)?;
        let best = places
            .iter()
            .map(|&place| (place, length(place)))
            .rev()
            .max_by_key(|&(_, length)| length)?;
        (best.1 > 0).then_some(best)
    }
}

fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(['.', '!', '?', '\n'])
        .map(str::trim)
        .filter(|sentence| sentence.chars().any(char::is_alphanumeric))
}

fn words(text: &str) -> Vec<Word<'_>> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let lower = word.to_lowercase();
            Word {
                // Both are slices of one string, so the difference of their addresses is the word's place in it.
                start: word.as_ptr() as usize - text.as_ptr() as usize,
                text: word,
                is_content: !FUNCTION_WORDS.contains(&lower.as_str()) && lower.chars().count() > 1,
                stem: stem_token(&lower),
            }
        })
        .collect()
}

/// Words that say nothing about taste; sharing them is no evidence.
const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "both", "but", "by", "can", "could", "do", "does", "enjoy", "enjoys", "for", "from",
    "get", "give", "gives", "has", "have", "he", "her", "his", "how", "i", "if", "in", "into",
    "is", "it", "it's", "item", "its", "just", "like", "likes", "love", "loves", "make", "makes",
    "more", "most", "much", "my", "no", "not", "of", "offer", "offers", "on", "one", "or", "other",
    "our", "out", "people", "person", "she", "so", "some", "suit", "suits", "such", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "to", "too", "up",
    "user", "very", "want", "was", "were", "what", "when", "where", "which", "while", "who",
    "will", "with", "would", "you", "you'd", "your",
];

#[cfg(test)]
mod tests {
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
}
