use std::collections::{BTreeSet, HashMap};

use super::compose::{Room, capitalised, list, texts};
use super::data::{Document, Wish};
use super::phrases::{KeyPhrases, Phrase, pick};
use super::rank::{Choice, terms};
use super::words::stems_of;

/// Why this choice, to the person it is for. `variant` picks among ways of saying it.
pub(super) fn explanation(choice: &Choice, wish: &Wish, room: Room, variant: usize) -> String {
    let Match { asked, extra } = Match::of(choice);
    let title = choice.chosen.title.as_deref().unwrap_or("this");
    let lead = wish.lead.as_deref();
    let versions = [(3, 3), (3, 2), (2, 2), (2, 1), (1, 1), (1, 0)];
    room.first_fitting(versions.into_iter().map(|(wanted, offered)| {
        let asked = texts(&asked[..wanted.min(asked.len())]);
        let extra = texts(&extra[..offered.min(extra.len())]);
        let text = match (asked.is_empty(), extra.is_empty()) {
            (false, false) => both(title, &list(&asked), &list(&extra), variant),
            (false, true) => wanted_only(title, &list(&asked), variant),
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
pub(super) fn evidence_of_choice(choice: &Choice, room: Room) -> String {
    let Match { asked, .. } = Match::of(choice);
    let others = choice.listed.len() - 1;
    room.first_fitting([5, 3, 2, 1].into_iter().map(|count| {
        let asked = texts(&asked[..count.min(asked.len())]);
        let mut text = match (asked.is_empty(), others) {
            (true, _) => "No phrase is shared; decided by single words.".to_owned(),
            (false, 0) => format!("Both sides mention {}.", list(&asked)),
            (false, _) => format!(
                "Both sides mention {}; no other of the {} matches better.",
                list(&asked),
                others + 1
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
    extra: Vec<Phrase>,
}

impl Match {
    fn of(choice: &Choice) -> Self {
        let query_words: BTreeSet<String> = choice.query.iter().flat_map(terms).collect();
        let own_words: BTreeSet<String> = choice
            .chosen
            .texts
            .iter()
            .flat_map(|text| stems_of(&text.sentences))
            .collect();
        let named = |phrase: &Phrase| {
            phrase
                .stems
                .iter()
                .all(|stem| choice.chosen.title_stems.contains(stem))
        };
        let rarity = Rarity::of(&choice.listed);
        let covered = |phrase: &Phrase, words: &BTreeSet<String>| {
            phrase
                .core
                .iter()
                .filter(|stem| words.contains(*stem))
                .count() as f64
                / phrase.core.len().max(1) as f64
        };
        let weighed = |phrases: KeyPhrases, keep: &dyn Fn(&Phrase) -> f64| -> Vec<Phrase> {
            let mut kept: Vec<Phrase> = phrases
                .ranked
                .into_iter()
                .filter_map(|mut phrase| {
                    phrase.score *= keep(&phrase) * rarity.mean(&phrase.core);
                    (phrase.score > 0.0).then_some(phrase)
                })
                .collect();
            kept.sort_by(|a, b| {
                b.score
                    .total_cmp(&a.score)
                    .then_with(|| a.stems.cmp(&b.stems))
            });
            kept
        };
        let asked = weighed(KeyPhrases::of(&choice.query), &|phrase| {
            if covered(phrase, &own_words) < 1.0 || named(phrase) {
                return 0.0;
            }
            // General words alone match nearly everything.
            let whole = phrase
                .stems
                .iter()
                .filter(|stem| own_words.contains(*stem))
                .count() as f64;
            whole / phrase.stems.len() as f64
        });
        let asked: Vec<Phrase> = pick(asked.iter(), 5, &[]).into_iter().cloned().collect();
        let said: Vec<&Phrase> = asked.iter().take(3).collect();
        let own = std::slice::from_ref(&choice.chosen);
        let extra = weighed(KeyPhrases::of(own), &|phrase| {
            1.0 - 0.9 * covered(phrase, &query_words)
        });
        let extra = pick(extra.iter(), 3, &said).into_iter().cloned().collect();
        Self { asked, extra }
    }
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
