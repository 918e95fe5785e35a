use std::collections::{HashMap, HashSet};

use because_core::{Interaction, Split};

/// As many words in a row are hardly met twice by chance.
const WORDS: usize = 8;

/// The profiles that quote a held-out review, each once for every review it quotes, with the first words quoted. What a
/// train review or a description says too may have come from there.
pub(super) fn of_held_out_reviews<'a>(
    profiles: &[(String, &str)],
    interactions: &'a [Interaction],
    public: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut quotable: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, (_, text)) in profiles.iter().enumerate() {
        for phrase in phrases(&words(text)) {
            let places = quotable.entry(hash(phrase)).or_default();
            if places.last() != Some(&at) {
                places.push(at);
            }
        }
    }
    let reviews = |train: bool| {
        interactions
            .iter()
            .filter(move |i| (i.split.unwrap_or(Split::Train) == Split::Train) == train)
            .filter_map(|interaction| Some((interaction, interaction.review.as_deref()?)))
    };
    for text in reviews(true).map(|(_, review)| review).chain(public) {
        for phrase in phrases(&words(text)) {
            quotable.remove(&hash(phrase));
        }
    }

    let mut found = Vec::new();
    for (interaction, review) in reviews(false) {
        let mut named = HashSet::new();
        for phrase in phrases(&words(review)) {
            for &at in quotable.get(&hash(phrase)).into_iter().flatten() {
                if named.insert(at) {
                    let split = interaction.split.unwrap_or(Split::Train);
                    let Interaction { user, item, .. } = interaction;
                    let quoted = phrase.join(" ");
                    let whose = &profiles[at].0;
                    found.push((
                        at,
                        format!("{whose}: {quoted:?} of user {user}, item {item} ({split})"),
                    ));
                }
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, line)| line).collect()
}

/// Words without case and punctuation, so that a quotation is known through both.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

fn phrases(words: &[String]) -> impl Iterator<Item = &[String]> {
    words.windows(WORDS)
}

/// 64 bits are enough here: among a hundred million phrases two meet with a chance of one in several thousand.
fn hash(phrase: &[String]) -> u64 {
    let fields: Vec<&[u8]> = phrase.iter().map(String::as_bytes).collect();
    crate::hash::stable_hash("because phrase", 0, &fields)
}
