use std::collections::{BTreeSet, HashMap};

use super::data::{Document, Wish, shortened};
use super::phrases::{KeyPhrases, Phrase, pick};
use super::rank::{Choice, terms};
use super::words::word_count;

/// How long a text may be.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Room {
    pub(super) words: Option<usize>,
    pub(super) characters: Option<usize>,
}

impl Room {
    fn fits(&self, text: &str) -> bool {
        self.words.is_none_or(|words| word_count(text) <= words)
            && self.characters.is_none_or(|characters| text.chars().count() <= characters)
    }

    /// The richest version that fits; the plainest one cut between words, if none does.
    fn first_fitting(&self, versions: impl IntoIterator<Item = String>) -> String {
        let mut last = String::new();
        for version in versions {
            if self.fits(&version) {
                return version;
            }
            last = version;
        }
        self.cut(&last)
    }

    /// As much of a text as fits, in whole words.
    pub(super) fn cut(&self, text: &str) -> String {
        if self.fits(text) {
            return text.to_owned();
        }
        let words = self.words.unwrap_or(usize::MAX);
        let kept = text.split_whitespace().take(words).collect::<Vec<_>>().join(" ");
        let kept = shortened(&kept, self.characters.unwrap_or(usize::MAX));
        let kept = kept.trim_end_matches([',', ';', ':', '-', '\u{201c}']);
        let kept = kept.strip_suffix(" and").unwrap_or(kept).trim_end_matches(',');
        let closed = format!("{kept}.");
        if !kept.ends_with('.') && !kept.is_empty() && self.fits(&closed) {
            closed
        } else {
            kept.to_owned()
        }
    }
}

/// What documents are about, in a few sentences.
pub(super) fn summary(documents: &[Document], wish: &Wish, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let opening = Opening::of(wish, "Mostly about");
    let quote = phrases.quotable(documents).map(|sentence| sentence.text.as_str());
    let versions = [(5, 3, true), (5, 3, false), (5, 0, false), (4, 0, false), (3, 0, false), (2, 0, false), (1, 0, false)];
    room.first_fitting(versions.into_iter().map(|(first, second, quoted)| {
        let main = phrases.pick(first, &[]);
        if main.is_empty() {
            return without_phrases(documents, &opening);
        }
        let mut text = opening.with(&main);
        let more = phrases.pick(first + second, &[]).split_off(main.len());
        if !more.is_empty() {
            let often = more.iter().all(|phrase| phrase.documents > 1);
            text.push_str(if often { " Often mentioned as well: " } else { " Also mentioned: " });
            text.push_str(&list(&texts(&more)));
            text.push('.');
        }
        if let Some(quote) = quote.filter(|_| quoted) {
            text.push_str(&format!(" In the words of one: \u{201c}{quote}\u{201d}"));
        }
        text
    }))
}

/// The first document, and what the others add to it.
pub(super) fn updated(documents: &[Document], wish: &Wish, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let opening = Opening::of(wish, "Mostly about");
    let versions = [(5, 4), (5, 3), (4, 3), (4, 2), (3, 2), (2, 1), (1, 1), (1, 0)];
    room.first_fitting(versions.into_iter().map(|(kept, added)| {
        let (kept, added) = kept_and_added(&phrases, kept, added);
        match (kept.is_empty(), added.is_empty()) {
            (true, true) => without_phrases(documents, &opening),
            (true, false) => opening.with(&added),
            (false, true) => opening.with(&kept),
            (false, false) => {
                let text = opening.with(&kept);
                format!("{}, and also {}.", text.trim_end_matches('.'), list(&texts(&added)))
            }
        }
    }))
}

fn kept_and_added(phrases: &KeyPhrases, kept: usize, added: usize) -> (Vec<&Phrase>, Vec<&Phrase>) {
    let kept = pick(phrases.ranked.iter().filter(|phrase| phrase.first == 0), kept, &[]);
    let added = pick(phrases.ranked.iter().filter(|phrase| phrase.first > 0), added, &kept);
    (kept, added)
}

/// What at least two documents say.
pub(super) fn shared(documents: &[Document], wish: &Wish, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let several = || phrases.ranked.iter().filter(|phrase| phrase.documents > 1);
    let versions = [(6, 5), (5, 3), (4, 2), (3, 0), (2, 0), (1, 0)];
    room.first_fitting(versions.into_iter().map(|(first, second)| {
        let most = pick(several().filter(|phrase| phrase.documents * 2 > documents.len()), first, &[]);
        let some = pick(several().filter(|phrase| phrase.documents * 2 <= documents.len()), second.max(first - most.len()), &most);
        let central = phrases.pick(first.min(4), &[]);
        let sentence = |label: &str, phrases: &[&Phrase]| match &wish.lead {
            Some(_) => Opening::of(wish, label).with(phrases),
            None => format!("{label} {}.", list(&texts(phrases))),
        };
        match (most.is_empty(), some.is_empty()) {
            (false, false) => format!("{} Some also share {}.", sentence("Most share", &most), list(&texts(&some))),
            (false, true) => sentence("Most share", &most),
            (true, false) => sentence("Some share", &some),
            (true, true) if !central.is_empty() => {
                format!("Nothing is shared word for word; closest to the centre: {}.", list(&texts(&central)))
            }
            (true, true) => without_phrases(documents, &Opening::of(&Wish::default(), "")),
        }
    }))
}

/// Which phrases decided, and in how many of the texts they stand.
pub(super) fn evidence(documents: &[Document], residual: bool, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let texts_read = documents.iter().filter(|document| !document.texts.is_empty()).count();
    room.first_fitting([6, 4, 3, 2, 1].into_iter().map(|count| {
        if residual {
            let (kept, added) = kept_and_added(&phrases, count, count / 2 + 1);
            let keeps = (!kept.is_empty()).then(|| format!("Kept from the first text: {}.", list(&texts(&kept))));
            let adds = (!added.is_empty()).then(|| format!("Added from the others: {}.", list(&texts(&added))));
            return match (keeps, adds) {
                (Some(keeps), Some(adds)) => format!("{keeps} {adds}"),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => "There was nothing to read.".to_owned(),
            };
        }
        let picked = phrases.pick(count, &[]);
        if picked.is_empty() {
            return "There was nothing to read.".to_owned();
        }
        let counted: Vec<String> = picked
            .iter()
            .map(|phrase| match phrase.documents {
                1 => phrase.text.clone(),
                several => format!("{} (in {several})", phrase.text),
            })
            .collect();
        let noun = if texts_read == 1 { "text" } else { "texts" };
        format!("Read {texts_read} {noun}; what decided: {}.", list(&counted))
    }))
}

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
        0 => format!("You would like {title} because it has what you look for, {asked}, and brings {extra} besides."),
        1 => format!("{title} suits you: you enjoy {asked}, and here you find that together with {extra}."),
        2 => format!("Since you enjoy {asked}, {title} should be to your taste; you can also expect {extra}."),
        3 => format!("Your interest in {asked} leads straight to {title}, which offers {extra} as well."),
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
            (false, _) => format!("Both sides mention {}; no other of the {} matches better.", list(&asked), others + 1),
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
        let own_words: BTreeSet<String> = terms(&choice.chosen).into_iter().collect();
        let rarity = Rarity::of(&choice.listed);
        let covered = |phrase: &Phrase, words: &BTreeSet<String>| {
            phrase.core.iter().filter(|stem| words.contains(*stem)).count() as f64 / phrase.core.len().max(1) as f64
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
            kept.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.stems.cmp(&b.stems)));
            kept
        };
        let asked = weighed(KeyPhrases::of(&choice.query), &|phrase| {
            if covered(phrase, &own_words) < 1.0 {
                return 0.0;
            }
            // General words alone match nearly everything.
            let whole = phrase.stems.iter().filter(|stem| own_words.contains(*stem)).count() as f64;
            whole / phrase.stems.len() as f64
        });
        let asked: Vec<Phrase> = pick(asked.iter(), 5, &[]).into_iter().cloned().collect();
        let said: Vec<&Phrase> = asked.iter().take(3).collect();
        let own = std::slice::from_ref(&choice.chosen);
        let extra = weighed(KeyPhrases::of(own), &|phrase| 1.0 - 0.9 * covered(phrase, &query_words));
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

/// The words a text begins with, such that a list of phrases can follow.
struct Opening(String);

impl Opening {
    fn of(wish: &Wish, default: &str) -> Self {
        let lead = wish.lead.as_deref().unwrap_or(default);
        let last = lead.rsplit(' ').next().unwrap_or_default();
        Self(match last {
            "who" | "that" => format!("{lead} like"),
            "is" | "are" => format!("{lead} about"),
            "user" | "person" | "item" => format!("{lead} is about"),
            "you" | "You" => format!("{lead} like"),
            _ => lead.to_owned(),
        })
    }

    fn with(&self, phrases: &[&Phrase]) -> String {
        let text = format!("{} {}.", self.0, list(&texts(phrases)));
        capitalised(text.trim_start())
    }
}

/// What is left to say where no phrase was found.
fn without_phrases(documents: &[Document], opening: &Opening) -> String {
    let sentence = documents.iter().flat_map(Document::sentences).next();
    match (sentence, documents.iter().find_map(|document| document.title.as_deref())) {
        (_, Some(title)) => capitalised(format!("{} {title}.", opening.0).trim_start()),
        (Some(sentence), None) => capitalised(&sentence.text),
        (None, None) => "Nothing is known.".to_owned(),
    }
}

pub(super) fn texts<P: std::borrow::Borrow<Phrase>>(phrases: &[P]) -> Vec<String> {
    phrases.iter().map(|phrase| phrase.borrow().text.clone()).collect()
}

/// `A, B and C`.
fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_words_and_closed() {
        let room = |words, characters| Room { words, characters };
        assert_eq!(room(Some(3), None).cut("Tea, cakes, and scones for all."), "Tea, cakes.");
        assert_eq!(room(None, Some(9)).cut("Tea and cakes"), "Tea.");
        assert_eq!(room(None, Some(2)).cut("Tea"), "Te");
        assert_eq!(room(None, Some(0)).cut("Tea"), "");
        assert_eq!(room(None, None).cut("Tea"), "Tea");
    }

    #[test]
    fn an_opening_takes_a_list_grammatically() {
        let begin = |lead: &str| {
            Opening::of(
                &Wish {
                    lead: Some(lead.into()),
                    words: None,
                },
                "",
            )
            .0
        };
        assert_eq!(begin("Suits people who"), "Suits people who like");
        assert_eq!(begin("This user enjoys"), "This user enjoys");
    }
}
