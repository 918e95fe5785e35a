use std::collections::{BTreeSet, HashMap};

use super::data::Document;
use super::lexicon::Class;
use super::words::{Sentence, Token};

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
}

impl Phrase {
    /// How many of its words the other has too.
    pub(super) fn shared_with(&self, other: &Phrase) -> usize {
        self.stems.iter().filter(|stem| other.stems.contains(stem)).count()
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
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.stems.cmp(&b.stems)));
        let mut words: HashMap<String, f64> = HashMap::new();
        for phrase in ranked.iter().filter(|phrase| phrase.stems.len() == 1) {
            words.insert(phrase.stems[0].clone(), phrase.documents as f64);
        }
        Self { ranked, words }
    }

    /// The best `count` that do not say the same as each other or as `said`.
    pub(super) fn pick<'a>(&'a self, count: usize, said: &[&Phrase]) -> Vec<&'a Phrase> {
        pick(self.ranked.iter(), count, said)
    }

    /// The sentence that best stands for all, if there is one worth quoting.
    pub(super) fn quotable<'a>(&self, documents: &'a [Document]) -> Option<&'a Sentence> {
        let mut best: Option<(f64, &Sentence)> = None;
        for sentence in documents.iter().flat_map(Document::sentences) {
            let score = self.worth_quoting(sentence);
            if score > best.map_or(1.2, |(best, _)| best) {
                best = Some((score, sentence));
            }
        }
        best.map(|(_, sentence)| sentence)
    }

    fn worth_quoting(&self, sentence: &Sentence) -> f64 {
        let tokens = &sentence.tokens;
        let fits = (5..=20).contains(&tokens.len()) && sentence.text.ends_with(['.', '!']) && !sentence.text.contains(['"', ':', ';', '(']);
        let listing = tokens.iter().filter(|token| token.pause).count() > 1;
        let blames = tokens.iter().any(|token| matches!(token.class, Class::Blame | Class::Negation | Class::Contrast));
        // A sentence about `this user` or `those who` is a summary already.
        let summary = tokens.windows(2).any(|pair| {
            let [a, b] = [&pair[0].surface, &pair[1].surface].map(|word| word.to_lowercase());
            matches!(b.as_str(), "user" | "users") || (b == "who" && matches!(a.as_str(), "users" | "those" | "people" | "anyone"))
        }) || tokens[0].surface == "users";
        if !fits || listing || blames || summary {
            return 0.0;
        }
        let dangling = matches!(
            tokens[0].surface.as_str(),
            "it" | "this" | "that" | "they" | "he" | "she" | "and" | "so" | "because" | "these" | "also" | "there" | "which"
        );
        let content: f64 = tokens
            .iter()
            .map(|token| self.words.get(&token.stem).copied().unwrap_or(0.0))
            .sum();
        let described = tokens.iter().filter(|token| matches!(token.class, Class::Adjective | Class::Participle)).count();
        let per_word = (content + 0.6 * described as f64) / (tokens.len() as f64).sqrt();
        if dangling { per_word * 0.6 } else { per_word }
    }
}

/// The first `count` that add something to what is said. A phrase that repeats words waits behind one that does not.
pub(super) fn pick<'a>(ranked: impl Iterator<Item = &'a Phrase>, count: usize, said: &[&Phrase]) -> Vec<&'a Phrase> {
    const CONSIDERED: usize = 80;
    let pool: Vec<&Phrase> = ranked.take(CONSIDERED).collect();
    let mut picked: Vec<&Phrase> = Vec::with_capacity(count);
    while picked.len() < count {
        let next = pool
            .iter()
            .filter(|phrase| {
                let mut others = picked.iter().chain(said);
                others.all(|other| phrase.shared_with(other) < phrase.stems.len().min(other.stems.len()))
            })
            .map(|phrase| {
                let repeated: usize = picked.iter().chain(said).map(|other| phrase.shared_with(other)).sum();
                (phrase.score * 0.45_f64.powi(i32::try_from(repeated).unwrap_or(i32::MAX)), *phrase)
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

/// What was found so far, by stems.
#[derive(Default)]
struct Found {
    index: HashMap<String, usize>,
    stats: Vec<Stat>,
    document: usize,
    weight: f64,
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
    forms: Vec<(String, u32)>,
}

impl Found {
    fn read(&mut self, sentence: &Sentence, label: bool) {
        let tokens = &sentence.tokens;
        if label {
            let whole: Vec<&Token> = tokens.iter().filter(|token| !token.stem.is_empty()).collect();
            let listed = tokens.iter().any(|token| token.pause && !token.first);
            if !whole.is_empty() && !listed && !tokens.iter().any(|token| token.class == Class::Negation) {
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
        let before = chunk.start.checked_sub(1).map(|at| &tokens[at]).filter(|_| !words[0].pause);
        let place = before.is_some_and(|token| token.class == Class::Place)
            && words.last().is_some_and(|word| word.surface.starts_with(char::is_uppercase));
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
                    (true, true) => 1.0,
                    (false, true) => 0.75,
                    _ => 0.4,
                };
                let refs: Vec<&Token> = part.iter().collect();
                let mut text = surface(part);
                if let Some(article) = article.filter(|_| start == 0 && part.len() > 1) {
                    text = format!("{} {text}", article.surface.to_lowercase());
                }
                let far = if place { 0.3 } else { 1.0 };
                self.add(&refs, text, whole * far, part[0].first);
            }
        }
        if let Some(adjective) = described(tokens, chunk.end)
            && ends_a_phrase(&words[words.len() - 1])
            && !words.iter().any(|word| matches!(word.class, Class::Adjective | Class::Participle))
        {
            let part = &words[words.len().saturating_sub(2)..];
            let refs: Vec<&Token> = std::iter::once(adjective).chain(part).collect();
            let text = format!("{} {}", adjective.surface, surface(part));
            self.add(&refs, text, 1.0, part[0].first);
        }
        if let Some(whole) = joined(tokens, chunk) {
            let refs: Vec<&Token> = tokens[whole.clone()].iter().filter(|token| !token.stem.is_empty()).collect();
            let mut text = surface(&tokens[whole.clone()]);
            if whole.start > 0 && tokens[whole.start - 1].class == Class::Article {
                text = format!("a {text}");
            }
            self.add(&refs, text, 0.9, tokens[whole.start].first);
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
        stat.mass += self.weight * share * 0.5_f64.powi(i32::try_from(stat.in_last).unwrap_or(i32::MAX));
        stat.in_last += 1;
        let votes = if opens { 1 } else { 2 };
        match stat.forms.iter_mut().find(|(form, _)| *form == text) {
            Some((_, count)) => *count += votes,
            None => stat.forms.push((text, votes)),
        }
    }

    fn into_phrases(self) -> Vec<Phrase> {
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
                        let rest = stat.stems.iter().filter_map(|stem| alone.get(stem)).map(|(mass, _)| (mass - stat.mass).max(0.0));
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
            Class::General => 0.7,
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

fn ends_a_phrase(token: &Token) -> bool {
    matches!(token.class, Class::Content | Class::General | Class::Ideograph)
}

/// Whether words may stand as a phrase of their own.
fn stands(words: &[Token]) -> bool {
    match words {
        [] => false,
        [word] => word.class == Class::Ideograph || (word.class == Class::Content && word.surface.chars().count() > 2 && !is_gerund(word)),
        [first, .., last] => first.class != Class::Adverb && !(words.len() == 2 && is_gerund(first) && is_gerund(last)),
    }
}

fn is_gerund(word: &Token) -> bool {
    word.surface.len() > 5 && word.surface.ends_with("ing")
}

/// Runs of words with content that no punctuation and no stop word interrupts, in clauses that do not blame.
fn chunks(tokens: &[Token]) -> Vec<std::ops::Range<usize>> {
    let blamed = blamed(tokens);
    let mut chunks = Vec::new();
    let mut start = None;
    for at in 0..=tokens.len() {
        let content = tokens.get(at).is_some_and(|token| !blamed[at] && is_content(tokens, at, token));
        let breaks = tokens.get(at).is_none_or(|token| token.pause)
            || start.is_some_and(|start| {
                // `the server brought smoked ham`: a participle behind a noun begins anew.
                tokens[at].class == Class::Participle && tokens[start..at].iter().any(ends_a_phrase)
            });
        if let Some(begun) = start
            && (!content || breaks)
        {
            chunks.push(begun..at);
            start = None;
        }
        if content && start.is_none() {
            start = Some(at);
        }
    }
    chunks
}

fn is_content(tokens: &[Token], at: usize, token: &Token) -> bool {
    match token.class {
        Class::Adjective | Class::Praise | Class::General | Class::Content | Class::Ideograph => true,
        Class::Participle => at == 0 || token.pause || tokens[at - 1].class != Class::Subject,
        _ => false,
    }
}

/// For every word, whether its clause is about something bad or denied.
fn blamed(tokens: &[Token]) -> Vec<bool> {
    let mut blamed = vec![false; tokens.len()];
    let mut start = 0;
    for at in 0..=tokens.len() {
        let ends = at == tokens.len() || (at > start && (tokens[at].pause || tokens[at].class == Class::Contrast));
        if !ends {
            continue;
        }
        let clause = start..at;
        if tokens[clause.clone()].iter().any(|token| matches!(token.class, Class::Blame | Class::Negation)) {
            blamed[clause].fill(true);
        }
        start = at;
    }
    blamed
}

/// The adjective that a copula behind a chunk gives to it: `the staff was super friendly`.
fn described(tokens: &[Token], end: usize) -> Option<&Token> {
    let copula = tokens.get(end).filter(|token| token.class == Class::Copula && !token.pause)?;
    let rest = &tokens[end + 1..];
    let adjective = rest.iter().find(|token| !matches!(token.class, Class::Degree | Class::Adverb))?;
    let between = rest.iter().take_while(|token| !std::ptr::eq(*token, adjective));
    let broken = adjective.pause || between.clone().any(|token| token.pause) || copula.first;
    // Not when a noun follows: `the staff is friendly people` is not about the staff's words.
    let after = rest.get(between.count() + 1);
    let ends = after.is_none_or(|token| token.pause || !is_content(tokens, 0, token));
    (adjective.class == Class::Adjective && !broken && ends).then_some(adjective)
}

/// A chunk with an `of` or `and` and the chunk behind it, as one phrase of at most five words.
fn joined(tokens: &[Token], chunk: &std::ops::Range<usize>) -> Option<std::ops::Range<usize>> {
    let link = tokens.get(chunk.end).filter(|token| !token.pause && token.class == Class::Of)?;
    let begin = chunk.end - 1;
    let head = &tokens[begin];
    let rest = tokens[chunk.end + 1..]
        .iter()
        .enumerate()
        .take_while(|&(at, token)| !token.pause && is_content(tokens, chunk.end + 1 + at, token))
        .count();
    let end = chunk.end + 1 + rest;
    let fits = (1..=3).contains(&rest) && ends_a_phrase(&tokens[end - 1]) && ends_a_phrase(head) && !link.first;
    let begin = if begin > chunk.start && tokens[begin - 1].class == Class::Adjective { begin - 1 } else { begin };
    let pure = tokens[chunk.end + 1..end].iter().all(|token| token.class != Class::Blame);
    (fits && pure && end - begin <= 5).then_some(begin..end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(texts: &[&str]) -> (Vec<Document>, KeyPhrases) {
        let documents: Vec<Document> = texts.iter().map(|text| Document::of(&json!(text), 1.0)).collect();
        let phrases = KeyPhrases::of(&documents);
        (documents, phrases)
    }

    fn picked(texts: &[&str], count: usize) -> Vec<String> {
        found(texts).1.pick(count, &[]).iter().map(|phrase| phrase.text.clone()).collect()
    }

    #[test]
    fn what_many_texts_say_comes_first() {
        let texts = ["Craft beer and a cozy patio.", "I loved the craft beers.", "Their craft beer, with pretzels!"];
        assert_eq!(picked(&texts, 2), ["craft beer", "a cozy patio"]);
    }

    #[test]
    fn blame_and_denial_are_no_key_phrases() {
        let texts = ["The ramen was rich, but the waiting line was terrible.", "No parking lot."];
        let phrases = picked(&texts, 9);
        assert_eq!(phrases, ["rich ramen"]);
    }

    #[test]
    fn phrases_keep_of_and_do_not_cross_punctuation() {
        let phrases = picked(&["A wide variety of loose teas, cakes and scones."], 4);
        assert!(phrases.contains(&"a wide variety of loose teas".to_owned()), "{phrases:?}");
        assert!(phrases.contains(&"scones".to_owned()), "{phrases:?}");
    }

    #[test]
    fn a_short_plain_sentence_is_quoted() {
        let (documents, phrases) = found(&["Went on Friday. The smoked brisket is tender and the patio is shady.", "Great brisket, shady patio."]);
        assert_eq!(phrases.quotable(&documents).unwrap().text, "The smoked brisket is tender and the patio is shady.");
    }
}
