use std::collections::{BTreeSet, HashMap};

use super::compose::{Room, capitalised, list, texts};
use super::data::{Document, Wish};
use super::phrases::{KeyPhrases, Phrase, pick};
use super::rank::{Choice, terms};
use super::words::stems_of;

/// Why this choice, to the person it is for. `variant` picks among ways of saying it.
pub(super) fn explanation(choice: &Choice, wish: &Wish, room: Room, variant: usize) -> String {
    let Match { asked, near, extra } = Match::of(choice);
    let title = choice.chosen.title.as_deref().unwrap_or("this");
    let lead = wish.lead.as_deref();
    let versions = [(3, 3), (3, 2), (2, 2), (2, 1), (1, 1), (1, 0)];
    room.first_fitting(versions.into_iter().map(|(wanted, offered)| {
        let asked = texts(&asked[..wanted.min(asked.len())]);
        let extra = texts(&extra[..offered.min(extra.len())]);
        let text = match (asked.is_empty(), extra.is_empty()) {
            (false, false) => both(title, &list(&asked), &list(&extra), variant),
            (false, true) => wanted_only(title, &list(&asked), variant),
            (true, false) if !near.is_empty() => {
                let near = list(&texts(&near[..wanted.min(near.len()).min(2)]));
                format!("{title} comes close to your taste for {near}: it offers {}.", list(&extra))
            }
            (true, false) => format!(
                "{title} offers {}. Nothing of that is known of you yet, so take it as something new.",
                list(&extra)
            ),
            (true, true) => format!("{title} is the closest to what is known of you, which is little."),
        };
        match lead {
            Some(lead) if !text.starts_with(lead) => format!("{lead} {text}"),
            _ => capitalised(&text),
        }
    }))
}

fn both(title: &str, asked: &str, extra: &str, variant: usize) -> String {
    match variant % 5 {
        0 => format!(
            "You would like {title} because it has what you look for, {asked}, and adds {extra}."
        ),
        1 => format!(
            "{title} suits you: you enjoy {asked}, and here you find that together with {extra}."
        ),
        2 => format!(
            "Since you enjoy {asked}, {title} should be to your taste; you can also expect {extra}."
        ),
        3 => format!(
            "Your interest in {asked} leads straight to {title}, which offers {extra} as well."
        ),
        _ => format!("{title} offers {extra}, and above all it meets your taste for {asked}."),
    }
}

fn wanted_only(title: &str, asked: &str, variant: usize) -> String {
    match variant % 3 {
        0 => format!("You would like {title} because it has what you look for: {asked}."),
        1 => format!("Since you enjoy {asked}, {title} should be to your taste."),
        _ => format!("{title} suits you, because it meets your taste for {asked}."),
    }
}

/// What decided a choice, in a line.
pub(super) fn evidence(choice: &Choice, room: Room) -> String {
    let Match { asked, near, .. } = Match::of(choice);
    room.first_fitting([5, 3, 2, 1].into_iter().map(|count| {
        let asked = texts(&asked[..count.min(asked.len())]);
        let mut text = match asked.is_empty() {
            true if near.is_empty() => "Nothing is shared but single words.".to_owned(),
            true => format!(
                "No phrase is shared as a whole; closest: {}.",
                list(&texts(&near[..count.min(near.len())]))
            ),
            false if choice.given => format!("Both sides mention {}.", list(&asked)),
            false => format!(
                "Both sides mention {}; no other of the {} matches better.",
                list(&asked),
                choice.listed.len()
            ),
        };
        if choice.excluded > 0 && count > 1 {
            text.push_str(&format!(" Left out as wrong: {}.", choice.excluded));
        }
        text
    }))
}

/// What a choice has of what is looked for, in the words of who looks, and what it has beyond that, in its own.
struct Match {
    asked: Vec<Phrase>,
    /// What it has only in part; looked at where it has nothing in full.
    near: Vec<Phrase>,
    extra: Vec<Phrase>,
}

impl Match {
    fn of(choice: &Choice) -> Self {
        let query_words: BTreeSet<String> = choice.query.iter().flat_map(terms).collect();
        let own_texts = choice.chosen.texts.iter();
        let own_words: BTreeSet<String> = own_texts
            .flat_map(|text| stems_of(&text.sentences))
            .collect();
        let rarity = Rarity::of(&choice.listed);
        let title = &choice.chosen.title_stems;
        let looked_for: Vec<Phrase> = KeyPhrases::of(&choice.query).ranked;
        let looked_for = || {
            let unnamed = looked_for.iter().cloned();
            unnamed.filter(|phrase| share(&phrase.stems, title) < 1.0)
        };
        let asked = weighed(looked_for(), &rarity, |phrase| {
            // General words alone match nearly everything.
            let whole = share(&phrase.core, &own_words) >= 1.0;
            if whole {
                share(&phrase.stems, &own_words)
            } else {
                0.0
            }
        });
        let near = match asked.is_empty() {
            true => weighed(looked_for(), &rarity, |phrase| {
                share(&phrase.core, &own_words)
            }),
            false => Vec::new(),
        };
        let [asked, near] = [asked, near].map(|found| -> Vec<Phrase> {
            pick(found.iter(), 5, &[]).into_iter().cloned().collect()
        });
        let offered = KeyPhrases::of(std::slice::from_ref(&choice.chosen)).ranked;
        let extra = weighed(offered.into_iter(), &rarity, |phrase| {
            let known = share(&phrase.core, &query_words);
            if asked.is_empty() {
                0.3 + known
            } else {
                1.0 - 0.9 * known
            }
        });
        let said: Vec<&Phrase> = asked.iter().take(3).collect();
        let extra = pick(extra.iter(), 3, &said).into_iter().cloned().collect();
        Self { asked, near, extra }
    }
}

/// How many of the stems are among the words, as a share.
fn share(stems: &[String], words: &BTreeSet<String>) -> f64 {
    let held = stems.iter().filter(|stem| words.contains(*stem)).count();
    held as f64 / stems.len().max(1) as f64
}

fn weighed(
    phrases: impl Iterator<Item = Phrase>,
    rarity: &Rarity,
    weight: impl Fn(&Phrase) -> f64,
) -> Vec<Phrase> {
    let mut kept: Vec<Phrase> = phrases
        .filter_map(|mut phrase| {
            phrase.score *= weight(&phrase) * rarity.mean(&phrase.core);
            (phrase.score > 0.0).then_some(phrase)
        })
        .collect();
    kept.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| a.stems.cmp(&b.stems))
    });
    kept
}

/// How rare words are among the listed.
struct Rarity {
    holding: HashMap<String, usize>,
    total: usize,
}

impl Rarity {
    fn of(listed: &[Document]) -> Self {
        let mut holding = HashMap::new();
        for document in listed {
            let words: BTreeSet<String> = terms(document).into_iter().collect();
            for word in words {
                *holding.entry(word).or_default() += 1;
            }
        }
        Self {
            holding,
            total: listed.len(),
        }
    }

    fn mean(&self, stems: &[String]) -> f64 {
        let one = |stem: &String| {
            let holding = self.holding.get(stem).copied().unwrap_or(0) as f64;
            (1.0 + (self.total as f64 + 0.5) / (holding + 0.5)).ln()
        };
        stems.iter().map(one).sum::<f64>() / stems.len().max(1) as f64
    }
}
