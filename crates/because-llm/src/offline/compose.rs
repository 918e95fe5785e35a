use super::data::{Document, Wish, shortened};
use super::phrases::{KeyPhrases, Phrase, pick};
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
            && self
                .characters
                .is_none_or(|characters| text.chars().count() <= characters)
    }

    /// The richest version that fits; the plainest one cut between words, if none does.
    pub(super) fn first_fitting(&self, versions: impl IntoIterator<Item = String>) -> String {
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
        let kept = text
            .split_whitespace()
            .take(words)
            .collect::<Vec<_>>()
            .join(" ");
        let kept = shortened(&kept, self.characters.unwrap_or(usize::MAX));
        let kept = kept.trim_end_matches([',', ';', ':', '-', '\u{201c}']);
        let kept = kept
            .strip_suffix(" and")
            .unwrap_or(kept)
            .trim_end_matches(',');
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
    let quote = phrases
        .quotable(documents)
        .map(|sentence| sentence.text.as_str());
    let versions = [
        (5, 3, true),
        (5, 3, false),
        (5, 0, false),
        (4, 0, false),
        (3, 0, false),
        (2, 0, false),
        (1, 0, false),
    ];
    room.first_fitting(versions.into_iter().map(|(first, second, quoted)| {
        let main = phrases.pick(first, &[]);
        if main.is_empty() {
            return without_phrases(documents, &opening);
        }
        let mut text = opening.with(&main);
        let more = phrases.pick(first + second, &[]).split_off(main.len());
        if !more.is_empty() {
            let often = more.iter().all(|phrase| phrase.documents > 1);
            text.push_str(if often {
                " Often mentioned as well: "
            } else {
                " Also mentioned: "
            });
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
    let versions = [
        (5, 4),
        (5, 3),
        (4, 3),
        (4, 2),
        (3, 2),
        (2, 1),
        (1, 1),
        (1, 0),
    ];
    room.first_fitting(versions.into_iter().map(|(kept, added)| {
        let (kept, added) = kept_and_added(&phrases, kept, added);
        match (kept.is_empty(), added.is_empty()) {
            (true, true) => without_phrases(documents, &opening),
            (true, false) => opening.with(&added),
            (false, true) => opening.with(&kept),
            (false, false) => {
                let text = opening.with(&kept);
                format!(
                    "{}, and also {}.",
                    text.trim_end_matches('.'),
                    list(&texts(&added))
                )
            }
        }
    }))
}

fn kept_and_added(phrases: &KeyPhrases, kept: usize, added: usize) -> (Vec<&Phrase>, Vec<&Phrase>) {
    let kept = pick(
        phrases.ranked.iter().filter(|phrase| phrase.first == 0),
        kept,
        &[],
    );
    let added = pick(
        phrases.ranked.iter().filter(|phrase| phrase.first > 0),
        added,
        &kept,
    );
    (kept, added)
}

/// What at least two documents say.
pub(super) fn shared(documents: &[Document], wish: &Wish, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let several = || phrases.ranked.iter().filter(|phrase| phrase.documents > 1);
    let versions = [(6, 5), (5, 3), (4, 2), (3, 0), (2, 0), (1, 0)];
    room.first_fitting(versions.into_iter().map(|(first, second)| {
        let most = pick(
            several().filter(|phrase| phrase.documents * 2 > documents.len()),
            first,
            &[],
        );
        let some = pick(
            several().filter(|phrase| phrase.documents * 2 <= documents.len()),
            second.max(first - most.len()),
            &most,
        );
        let central = phrases.pick(first.min(4), &[]);
        let sentence = |label: &str, phrases: &[&Phrase]| match &wish.lead {
            Some(_) => Opening::of(wish, label).with(phrases),
            None => format!("{label} {}.", list(&texts(phrases))),
        };
        match (most.is_empty(), some.is_empty()) {
            (false, false) => format!(
                "{} Some also share {}.",
                sentence("Most share", &most),
                list(&texts(&some))
            ),
            (false, true) => sentence("Most share", &most),
            (true, false) => sentence("Some share", &some),
            (true, true) if !central.is_empty() => {
                format!(
                    "Nothing is shared word for word; closest to the centre: {}.",
                    list(&texts(&central))
                )
            }
            (true, true) => without_phrases(documents, &Opening::of(&Wish::default(), "")),
        }
    }))
}

/// Which phrases decided, and in how many of the texts they stand.
pub(super) fn evidence(documents: &[Document], residual: bool, room: Room) -> String {
    let phrases = KeyPhrases::of(documents);
    let texts_read = documents
        .iter()
        .filter(|document| !document.texts.is_empty())
        .count();
    room.first_fitting([6, 4, 3, 2, 1].into_iter().map(|count| {
        if residual {
            let (kept, added) = kept_and_added(&phrases, count, count / 2 + 1);
            let keeps = (!kept.is_empty())
                .then(|| format!("Kept from the first text: {}.", list(&texts(&kept))));
            let adds = (!added.is_empty())
                .then(|| format!("Added from the others: {}.", list(&texts(&added))));
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
        format!(
            "Read {texts_read} {noun}; what decided: {}.",
            list(&counted)
        )
    }))
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
    match (
        sentence,
        documents
            .iter()
            .find_map(|document| document.title.as_deref()),
    ) {
        (_, Some(title)) => capitalised(format!("{} {title}.", opening.0).trim_start()),
        (Some(sentence), None) => capitalised(&sentence.text),
        (None, None) => "Nothing is known.".to_owned(),
    }
}

pub(super) fn texts<P: std::borrow::Borrow<Phrase>>(phrases: &[P]) -> Vec<String> {
    phrases
        .iter()
        .map(|phrase| phrase.borrow().text.clone())
        .collect()
}

/// `A, B and C`.
pub(super) fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

pub(super) fn capitalised(text: &str) -> String {
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
        assert_eq!(
            room(Some(3), None).cut("Tea, cakes, and scones for all."),
            "Tea, cakes."
        );
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
