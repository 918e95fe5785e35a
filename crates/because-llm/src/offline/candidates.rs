use std::collections::HashMap;

use super::chunks::{chunks, described, ends_a_phrase, joined, stands};
use super::lexicon::Class;
use super::phrases::Phrase;
use super::words::{Sentence, Token};

/// What was found so far, by stems.
#[derive(Default)]
pub(super) struct Found {
    index: HashMap<String, usize>,
    stats: Vec<Stat>,
    /// The document that is being read.
    pub(super) document: usize,
    /// What one mention in it weighs.
    pub(super) weight: f64,
}

struct Stat {
    stems: Vec<String>,
    core: Vec<String>,
    mass: f64,
    documents: usize,
    first: usize,
    last: usize,
    in_last: u32,
    quality: f64,
    whole: bool,
    forms: Vec<(String, u32)>,
}

impl Found {
    pub(super) fn read(&mut self, sentence: &Sentence, label: bool) {
        let tokens = &sentence.tokens;
        if label {
            let whole: Vec<&Token> = tokens
                .iter()
                .filter(|token| !token.stem.is_empty())
                .collect();
            let listed = tokens.iter().any(|token| token.pause && !token.first);
            if !whole.is_empty()
                && !listed
                && !tokens.iter().any(|token| token.class == Class::Negation)
            {
                self.add(&whole, surface(tokens), 1.0, tokens[0].first);
                if whole.len() == 1 {
                    return;
                }
            }
        }
        for chunk in chunks(tokens) {
            self.read_chunk(tokens, &chunk);
        }
    }

    fn read_chunk(&mut self, tokens: &[Token], chunk: &std::ops::Range<usize>) {
        const LONGEST: usize = 3;
        let words = &tokens[chunk.clone()];
        let before = chunk
            .start
            .checked_sub(1)
            .map(|at| &tokens[at])
            .filter(|_| !words[0].pause);
        let place = before.is_some_and(|token| token.class == Class::Place)
            && words
                .last()
                .is_some_and(|word| word.surface.starts_with(char::is_uppercase));
        if place {
            // Where something is says little about what it is.
            return;
        }
        let whole_of = joined(tokens, chunk);
        let article = before.filter(|token| token.class == Class::Article);
        for end in 1..=words.len() {
            if !ends_a_phrase(&words[end - 1]) {
                continue;
            }
            for start in end.saturating_sub(LONGEST)..end {
                let part = &words[start..end];
                if !stands(part) {
                    continue;
                }
                let whole = match (start == 0, end == words.len()) {
                    // A modifier alone, or a head without its modifiers.
                    (_, false) if part.len() == 1 => 0.1,
                    (false, true) if part.len() == 1 => 0.5,
                    // `a sense` without its `of humour`.
                    (_, true) if whole_of.is_some() => 0.4,
                    (true, true) => 1.0,
                    (false, true) => 0.75,
                    _ => 0.2,
                };
                let refs: Vec<&Token> = part.iter().filter(|word| !word.stem.is_empty()).collect();
                let mut text = surface(part);
                if let Some(article) = article.filter(|_| start == 0 && part.len() > 1) {
                    text = format!("{} {text}", article.surface.to_lowercase());
                }
                self.add(&refs, text, whole, part[0].first);
            }
        }
        if let Some(adjective) = described(tokens, chunk.end)
            && ends_a_phrase(&words[words.len() - 1])
            && !words
                .iter()
                .any(|word| matches!(word.class, Class::Adjective | Class::Participle))
        {
            let part = &words[words.len().saturating_sub(3)..];
            let refs: Vec<&Token> = std::iter::once(adjective).chain(part).collect();
            let text = format!("{} {}", adjective.surface, surface(part));
            self.add(&refs, text, 1.0, part[0].first);
        }
        if let Some(whole) = whole_of {
            let refs: Vec<&Token> = tokens[whole.clone()]
                .iter()
                .filter(|token| !token.stem.is_empty())
                .collect();
            let mut text = surface(&tokens[whole.clone()]);
            if whole.start > 0 && tokens[whole.start - 1].class == Class::Article {
                text = format!("{} {text}", tokens[whole.start - 1].surface.to_lowercase());
            }
            self.add(&refs, text, 1.2, tokens[whole.start].first);
        }
    }

    fn add(&mut self, words: &[&Token], text: String, share: f64, opens: bool) {
        let stems: Vec<String> = words.iter().map(|word| word.stem.clone()).collect();
        let key = stems.join(" ");
        let next = self.stats.len();
        let at = *self.index.entry(key).or_insert(next);
        if at == next {
            self.stats.push(Stat {
                core: core(words).unwrap_or_else(|| stems.clone()),
                stems,
                mass: 0.0,
                documents: 0,
                first: self.document,
                last: usize::MAX,
                in_last: 0,
                quality: quality(words),
                whole: false,
                forms: Vec::new(),
            });
        }
        let stat = &mut self.stats[at];
        if stat.last != self.document {
            stat.last = self.document;
            stat.in_last = 0;
            stat.documents += 1;
        }
        // Saying it again in the same breath adds less each time.
        stat.mass +=
            self.weight * share * 0.5_f64.powi(i32::try_from(stat.in_last).unwrap_or(i32::MAX));
        stat.in_last += 1;
        stat.whole |= share >= 0.5;
        // A form that stands in mid-sentence shows its own capitals, one with an article reads best in a list.
        let votes = match (opens, text.starts_with("a ") || text.starts_with("an ")) {
            (true, _) => 1,
            (false, false) => 2,
            (false, true) => 3,
        };
        match stat.forms.iter_mut().find(|(form, _)| *form == text) {
            Some((_, count)) => *count += votes,
            None => stat.forms.push((text, votes)),
        }
    }

    pub(super) fn into_phrases(self) -> Vec<Phrase> {
        let alone: HashMap<String, (f64, usize)> = self
            .stats
            .iter()
            .filter(|stat| stat.stems.len() == 1)
            .map(|stat| (stat.stems[0].clone(), (stat.mass, stat.documents)))
            .collect();
        self.stats
            .into_iter()
            .map(|stat| {
                let spread = 1.0 + 0.7 * (stat.documents as f64 - 1.0);
                // What its words bring from elsewhere counts a little.
                let lent: f64 = match stat.stems.len() {
                    1 => 0.0,
                    long => {
                        let rest = stat
                            .stems
                            .iter()
                            .filter_map(|stem| alone.get(stem))
                            .map(|(mass, _)| (mass - stat.mass).max(0.0));
                        0.5 * rest.sum::<f64>() / long as f64
                    }
                };
                let text = stat
                    .forms
                    .iter()
                    .rev()
                    .max_by_key(|(_, count)| *count)
                    .map(|(form, _)| form.clone())
                    .unwrap_or_default();
                Phrase {
                    text,
                    score: (stat.mass * spread + lent) * stat.quality,
                    documents: stat.documents,
                    first: stat.first,
                    stems: stat.stems,
                    core: stat.core,
                    whole: stat.whole,
                }
            })
            .collect()
    }
}

/// How much a phrase of these words says.
fn quality(words: &[&Token]) -> f64 {
    let length = match words.len() {
        1 => 0.7,
        2 => 1.5,
        _ => 1.6,
    };
    let said: f64 = words
        .iter()
        .map(|word| match word.class {
            Class::Praise => 0.55,
            Class::General => 0.6,
            _ => 1.0,
        })
        .product();
    length * said
}

fn core(words: &[&Token]) -> Option<Vec<String>> {
    let core: Vec<String> = words
        .iter()
        .filter(|word| !matches!(word.class, Class::General | Class::Praise))
        .map(|word| word.stem.clone())
        .collect();
    (!core.is_empty()).then_some(core)
}

fn surface(tokens: &[Token]) -> String {
    let words: Vec<&str> = tokens.iter().map(|token| token.surface.as_str()).collect();
    words.join(" ")
}
