use super::cleaning::{is_abbreviation, spoken};
use super::lexicon::{Class, class_of};

/// One word with what stands before it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// As it was written, or in lower case where its capitals mean nothing.
    pub(super) surface: String,
    /// What words of one family have in common; empty for a word without content.
    pub(super) stem: String,
    pub(super) class: Class,
    /// Punctuation stands between it and the word before.
    pub(super) pause: bool,
    /// It opens its sentence, so that a capital there says nothing.
    pub(super) first: bool,
}

/// One cleaned sentence.
#[derive(Debug, Clone)]
pub(super) struct Sentence {
    pub(super) text: String,
    pub(super) tokens: Vec<Token>,
}

/// The sentences of a text from outside, cleaned; orders to the reader are not among them.
pub(super) fn sentences(text: &str) -> Vec<Sentence> {
    let sentences = spoken(text).into_iter().map(|text| Sentence {
        tokens: tokens(&text),
        text,
    });
    sentences
        .filter(|sentence| !sentence.tokens.is_empty())
        .collect()
}

/// The stems of everything with content, for matching; ideographs as pairs, since their words are not marked.
pub(super) fn stems_of(sentences: &[Sentence]) -> Vec<String> {
    let mut stems = Vec::new();
    for token in sentences.iter().flat_map(|sentence| &sentence.tokens) {
        if token.class != Class::Ideograph {
            if !token.stem.is_empty() {
                stems.push(token.stem.clone());
            }
            continue;
        }
        let run: Vec<char> = token.surface.chars().collect();
        stems.extend(run.windows(2.min(run.len())).map(String::from_iter));
    }
    stems
}

/// How many words a text has, as every count of this model is made.
pub(super) fn word_count(text: &str) -> usize {
    text.split_whitespace().count()
}

fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{2ffff}')
}

fn tokens(sentence: &str) -> Vec<Token> {
    let words = raw_words(sentence);
    let long = words.iter().filter(|(word, _)| word.chars().count() > 3);
    let loud = long.clone().filter(|(word, _)| is_upper(word)).count();
    let shouted = loud > 1 && loud * 2 > long.count();
    let titled = words.len() > 4
        && words
            .iter()
            .filter(|(word, _)| word.starts_with(char::is_uppercase))
            .count()
            * 10
            > words.len() * 7;
    words
        .iter()
        .enumerate()
        .map(|(at, &(word, pause))| {
            let lower = word.to_lowercase();
            let class = if word.starts_with(is_ideograph) {
                Class::Ideograph
            } else {
                class_of(&lower)
            };
            let acronym = !shouted && is_upper(word) && word.len() > 1;
            let plain = shouted || ((at == 0 || titled) && !acronym);
            let stem = match class {
                Class::Adjective
                | Class::Praise
                | Class::Blame
                | Class::General
                | Class::Participle
                | Class::Content => stem(&lower),
                Class::Ideograph => lower.clone(),
                _ => String::new(),
            };
            Token {
                surface: if plain { lower } else { word.to_owned() },
                stem,
                class,
                pause,
                first: at == 0,
            }
        })
        .collect()
}

fn is_upper(word: &str) -> bool {
    word.chars().any(char::is_alphabetic) && !word.chars().any(char::is_lowercase)
}

/// The words of a sentence, each with whether punctuation stands before it.
fn raw_words(sentence: &str) -> Vec<(&str, bool)> {
    let mut words: Vec<(&str, bool)> = Vec::new();
    let mut pause = false;
    let mut chars = sentence.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let mut end = start + c.len_utf8();
        if is_ideograph(c) {
            while let Some(&(at, next)) = chars.peek().filter(|&&(_, next)| is_ideograph(next)) {
                end = at + next.len_utf8();
                chars.next();
            }
        } else if is_letter(c) {
            while let Some(&(at, next)) = chars.peek() {
                let after = sentence[at + next.len_utf8()..].chars().next();
                let joins = matches!(next, '\'' | '-')
                    && after.is_some_and(|c| is_letter(c) && !is_ideograph(c));
                if is_ideograph(next) || !(is_letter(next) || joins) {
                    break;
                }
                end = at + next.len_utf8();
                chars.next();
            }
        } else if c != '&' {
            let abbreviated = c == '.'
                && words.last().is_some_and(|(word, _)| is_abbreviation(word))
                && !sentence[end..].is_empty();
            pause |= !c.is_whitespace() && !matches!(c, '-' | '\'' | '"') && !abbreviated;
            pause |= c == '-' && sentence[end..].starts_with([' ', '-']);
            continue;
        }
        words.push((&sentence[start..end], std::mem::take(&mut pause)));
    }
    words
}

fn is_letter(c: char) -> bool {
    // The marks combine with the letter before them.
    c.is_alphanumeric()
        || matches!(c, '\u{300}'..='\u{36f}' | '\u{93c}' | '\u{94d}' | '\u{9cd}' | '\u{bcd}' | '\u{e31}'..='\u{e4e}')
}

/// Takes off plurals and the commonest endings. Meant to bring words of one family together, not to be a word.
pub(super) fn stem(lower: &str) -> String {
    let word = lower.strip_suffix("'s").unwrap_or(lower);
    if !word.is_ascii() {
        return word.to_owned();
    }
    let word = singular(word);
    let cut = ["ing", "ed"].iter().find_map(|end| {
        let cut = word.strip_suffix(end)?;
        (cut.len() >= 3 && cut.contains(['a', 'e', 'i', 'o', 'u', 'y'])).then_some(cut)
    });
    let mut stem = match cut {
        Some(cut) => {
            let bytes = cut.as_bytes();
            let doubled = bytes.len() > 3 && bytes[bytes.len() - 1] == bytes[bytes.len() - 2];
            let undoubled = doubled && !matches!(bytes[bytes.len() - 1], b'l' | b's' | b'z');
            cut[..cut.len() - usize::from(undoubled)].to_owned()
        }
        None => word,
    };
    if stem.len() > 3 && stem.ends_with('e') {
        stem.pop();
    }
    stem
}

fn singular(word: &str) -> String {
    if word.len() > 4 && word.ends_with("ies") {
        return format!("{}y", &word[..word.len() - 3]);
    }
    let es = ["sses", "xes", "ches", "shes", "zzes"];
    if es.iter().any(|end| word.ends_with(end)) {
        return word[..word.len() - 2].to_owned();
    }
    let kept = ["ss", "us", "is"];
    if word.len() > 3 && word.ends_with('s') && !kept.iter().any(|end| word.ends_with(end)) {
        return word[..word.len() - 1].to_owned();
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_one_family_share_a_stem() {
        for (a, b) in [
            ("beers", "beer"),
            ("dine", "dining"),
            ("berries", "berry"),
            ("boxes", "box"),
            ("planned", "planning"),
        ] {
            assert_eq!(stem(a), stem(b), "{a} {b}");
        }
        assert_ne!(stem("glass"), stem("glas"));
        assert_eq!(stem("café's"), "café");
    }

    #[test]
    fn shouting_is_not_a_name_but_an_acronym_is() {
        let words = |text: &str| -> Vec<String> {
            sentences(text)[0]
                .tokens
                .iter()
                .map(|token| token.surface.clone())
                .collect()
        };
        assert_eq!(words("BEST PIZZA EVER"), ["best", "pizza", "ever"]);
        assert_eq!(
            words("Proper BBQ in Tampa"),
            ["proper", "BBQ", "in", "Tampa"]
        );
    }
}
