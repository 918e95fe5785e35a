use std::collections::{BTreeSet, HashMap};

use super::candidates::Found;
use super::data::Document;
use super::lexicon::Class;
use super::words::Sentence;

/// A phrase of one to three words with content, and how much speaks for it.
#[derive(Debug, Clone)]
pub(super) struct Phrase {
    pub(super) text: String,
    /// In the order of the phrase; the last one is its head.
    pub(super) stems: Vec<String>,
    /// Those of them that say something by themselves; all, if none does.
    pub(super) core: Vec<String>,
    /// In how many documents it stands.
    pub(super) documents: usize,
    pub(super) score: f64,
    /// The first document it stands in.
    pub(super) first: usize,
    /// It was seen by itself, not only as a piece of something longer.
    pub(super) whole: bool,
}

impl Phrase {
    /// How much it adds to the other: less with every word they share, least if they speak of the same thing.
    fn freshness_beside(&self, other: &Phrase) -> f64 {
        let repeated = i32::try_from(self.shared_with(other)).unwrap_or(i32::MAX);
        let same_head = if self.stems.last() == other.stems.last() {
            0.5
        } else {
            1.0
        };
        0.5_f64.powi(repeated) * same_head
    }

    /// How many of its words the other has too.
    fn shared_with(&self, other: &Phrase) -> usize {
        self.stems
            .iter()
            .filter(|stem| other.stems.contains(stem))
            .count()
    }
}

/// The phrases that documents are about, best first, and the weight of each word in them.
#[derive(Debug, Default)]
pub(super) struct KeyPhrases {
    pub(super) ranked: Vec<Phrase>,
    words: HashMap<String, f64>,
}

impl KeyPhrases {
    /// Scores by frequency across documents, place, length, and how much the words say.
    pub(super) fn of(documents: &[Document]) -> Self {
        let mut found = Found::default();
        let titles: Vec<&BTreeSet<String>> = documents
            .iter()
            .map(|document| &document.title_stems)
            .filter(|stems| !stems.is_empty())
            .collect();
        for (at, document) in documents.iter().enumerate() {
            found.document = at;
            for text in &document.texts {
                for (place, sentence) in text.sentences.iter().enumerate() {
                    let kind = if text.label { 0.8 } else { 1.0 };
                    found.weight = document.weight * kind / (1.0 + 0.06 * place as f64);
                    found.read(sentence, text.label);
                }
            }
        }
        let mut ranked = found.into_phrases();
        ranked.retain(|phrase| !is_title(phrase, &documents[phrase.first].title_stems, &titles));
        ranked.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.stems.cmp(&b.stems))
        });
        let mut words: HashMap<String, f64> = HashMap::new();
        for phrase in ranked.iter().filter(|phrase| phrase.stems.len() == 1) {
            words.insert(phrase.stems[0].clone(), phrase.documents as f64);
        }
        ranked.retain(|phrase| phrase.whole || phrase.documents > 1);
        Self { ranked, words }
    }

    /// The best `count` that do not say the same as each other or as `said`.
    pub(super) fn pick<'a>(&'a self, count: usize, said: &[&Phrase]) -> Vec<&'a Phrase> {
        pick(self.ranked.iter(), count, said)
    }

    /// The sentence that best stands for all, if there is one worth quoting.
    pub(super) fn quotable<'a>(&self, documents: &'a [Document]) -> Option<&'a Sentence> {
        let mut best: Option<(f64, &Sentence)> = None;
        let lists = documents.iter().any(|document| document.listed);
        let candidates = documents.iter().filter(|document| document.listed == lists);
        for sentence in candidates.flat_map(Document::sentences) {
            let score = self.worth_quoting(sentence);
            if score > best.map_or(1.2, |(best, _)| best) {
                best = Some((score, sentence));
            }
        }
        best.map(|(_, sentence)| sentence)
    }

    fn worth_quoting(&self, sentence: &Sentence) -> f64 {
        let tokens = &sentence.tokens;
        let fits = (5..=20).contains(&tokens.len())
            && sentence.text.ends_with(['.', '!'])
            && !sentence.text.contains(['"', ':', ';', '(']);
        let listing = tokens.iter().filter(|token| token.pause).count() > 1;
        let blames = tokens.iter().any(|token| {
            matches!(
                token.class,
                Class::Blame | Class::Negation | Class::Contrast
            )
        });
        // A sentence about `this user` or `those who` is a summary already.
        let summary = tokens.windows(2).any(|pair| {
            let [a, b] = [&pair[0].surface, &pair[1].surface].map(|word| word.to_lowercase());
            matches!(b.as_str(), "user" | "users")
                || (b == "who" && matches!(a.as_str(), "users" | "those" | "people" | "anyone"))
        }) || matches!(
            tokens[0].surface.as_str(),
            "users"
                | "those"
                | "fans"
                | "ideal"
                | "perfect"
                | "recommended"
                | "suits"
                | "lovers"
                | "some"
                | "individuals"
        );
        if !fits || listing || blames || summary {
            return 0.0;
        }
        let dangling = matches!(
            tokens[0].surface.as_str(),
            "it" | "this"
                | "that"
                | "they"
                | "he"
                | "she"
                | "and"
                | "so"
                | "because"
                | "these"
                | "also"
                | "there"
                | "which"
        );
        let content: f64 = tokens
            .iter()
            .map(|token| self.words.get(&token.stem).copied().unwrap_or(0.0))
            .sum();
        let described = tokens
            .iter()
            .filter(|token| matches!(token.class, Class::Adjective | Class::Participle))
            .count();
        let per_word = (content + 0.6 * described as f64) / (tokens.len() as f64).sqrt();
        if dangling { per_word * 0.6 } else { per_word }
    }
}

/// The first `count` that add something to what is said. A phrase that repeats words waits behind one that does not.
pub(super) fn pick<'a>(
    ranked: impl Iterator<Item = &'a Phrase>,
    count: usize,
    said: &[&Phrase],
) -> Vec<&'a Phrase> {
    const CONSIDERED: usize = 80;
    let pool: Vec<&Phrase> = ranked.take(CONSIDERED).collect();
    let mut picked: Vec<&Phrase> = Vec::with_capacity(count);
    while picked.len() < count {
        let next = pool
            .iter()
            .filter(|phrase| {
                let mut others = picked.iter().chain(said);
                others.all(|other| {
                    phrase.shared_with(other) < phrase.stems.len().min(other.stems.len())
                })
            })
            .map(|phrase| {
                let fresh: f64 = picked
                    .iter()
                    .chain(said)
                    .map(|other| phrase.freshness_beside(other))
                    .product();
                (phrase.score * fresh, *phrase)
            })
            .reduce(|best, next| if next.0 > best.0 { next } else { best });
        match next {
            Some((_, phrase)) => picked.push(phrase),
            None => break,
        }
    }
    picked
}

fn is_title(phrase: &Phrase, own: &BTreeSet<String>, titles: &[&BTreeSet<String>]) -> bool {
    let inside = |title: &BTreeSet<String>| phrase.stems.iter().all(|stem| title.contains(stem));
    let named = |title: &&BTreeSet<String>| {
        (inside(title) && (phrase.stems.len() > 1 || title.len() == 1))
            || (phrase.text.contains("'s ") && title.contains(&phrase.stems[0]))
    };
    inside(own) || titles.iter().any(named)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(texts: &[&str]) -> (Vec<Document>, KeyPhrases) {
        let documents: Vec<Document> = texts
            .iter()
            .map(|text| Document::of(&json!(text), 1.0))
            .collect();
        let phrases = KeyPhrases::of(&documents);
        (documents, phrases)
    }

    fn picked(texts: &[&str], count: usize) -> Vec<String> {
        found(texts)
            .1
            .pick(count, &[])
            .iter()
            .map(|phrase| phrase.text.clone())
            .collect()
    }

    #[test]
    fn what_many_texts_say_comes_first() {
        let texts = [
            "Craft beer and a cozy patio.",
            "I loved the craft beers.",
            "Their craft beer, with pretzels!",
        ];
        assert_eq!(picked(&texts, 2), ["craft beer", "a cozy patio"]);
    }

    #[test]
    fn blame_and_denial_are_no_key_phrases() {
        let texts = [
            "The ramen was rich, but the waiting line was terrible.",
            "No parking lot.",
        ];
        let phrases = picked(&texts, 9);
        assert_eq!(phrases, ["rich ramen"]);
    }

    #[test]
    fn phrases_keep_of_and_do_not_cross_punctuation() {
        let phrases = picked(&["A house of mirrors, cakes and scones."], 4);
        assert!(
            phrases.contains(&"a house of mirrors".to_owned()),
            "{phrases:?}"
        );
        assert!(phrases.contains(&"scones".to_owned()), "{phrases:?}");
    }

    #[test]
    fn a_short_plain_sentence_is_quoted() {
        let (documents, phrases) = found(&[
            "Went on Friday. The smoked brisket is tender and the patio is shady.",
            "Great brisket, shady patio.",
        ]);
        assert_eq!(
            phrases.quotable(&documents).unwrap().text,
            "The smoked brisket is tender and the patio is shady."
        );
    }
}
