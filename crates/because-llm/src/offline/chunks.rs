use super::lexicon::Class;
use super::words::Token;

pub(super) fn ends_a_phrase(token: &Token) -> bool {
    matches!(
        token.class,
        Class::Content | Class::General | Class::Ideograph
    )
}

/// Whether words may stand as a phrase of their own.
pub(super) fn stands(words: &[Token]) -> bool {
    match words {
        [] => false,
        [word] => {
            word.class == Class::Ideograph
                || (word.class == Class::Content
                    && word.surface.chars().count() > 2
                    && !is_gerund(word))
        }
        [first, rest @ .., last] => {
            (first.class != Class::Adverb
                || rest
                    .first()
                    .is_some_and(|next| next.class == Class::Participle))
                && !(words.len() == 2 && is_gerund(first) && is_gerund(last))
        }
    }
}

fn is_gerund(word: &Token) -> bool {
    word.surface.len() > 5 && word.surface.ends_with("ing")
}

/// Runs of words with content that no punctuation and no stop word interrupts, in clauses that do not blame.
pub(super) fn chunks(tokens: &[Token]) -> Vec<std::ops::Range<usize>> {
    let blamed = blamed(tokens);
    let mut chunks = Vec::new();
    let mut start = None;
    for at in 0..=tokens.len() {
        let content = tokens
            .get(at)
            .is_some_and(|token| !blamed[at] && is_content(tokens, at, token));
        let breaks = tokens.get(at).is_none_or(|token| token.pause)
            || start.is_some_and(|start| {
                // `the server brought smoked ham`: a participle behind a noun begins anew.
                tokens[at].class == Class::Participle && tokens[start..at].iter().any(ends_a_phrase)
            });
        if let Some(begun) = start
            && (!content || breaks)
        {
            // `a detective boards a train`: what stands right before a determiner is a verb.
            let verb = at - begun > 1
                && tokens
                    .get(at)
                    .is_some_and(|token| !token.pause && is_determiner(token));
            chunks.push(begun..at - usize::from(verb));
            start = None;
        }
        if content && start.is_none() {
            start = Some(at);
        }
    }
    chunks
}

fn is_determiner(token: &Token) -> bool {
    token.class == Class::Article
        || matches!(
            token.surface.as_str(),
            "the" | "my" | "our" | "your" | "his" | "her" | "its" | "their" | "every" | "this"
        )
}

fn is_content(tokens: &[Token], at: usize, token: &Token) -> bool {
    match token.class {
        Class::Adjective | Class::Praise | Class::General | Class::Content | Class::Ideograph => {
            true
        }
        Class::Adverb => tokens
            .get(at + 1)
            .is_some_and(|next| next.class == Class::Participle && !next.pause),
        Class::Participle => at == 0 || token.pause || tokens[at - 1].class != Class::Subject,
        _ => false,
    }
}

/// For every word, whether its clause is about something bad or denied.
fn blamed(tokens: &[Token]) -> Vec<bool> {
    let mut blamed = vec![false; tokens.len()];
    let mut start = 0;
    for at in 0..=tokens.len() {
        let ends = at == tokens.len()
            || (at > start && (tokens[at].pause || tokens[at].class == Class::Contrast));
        if !ends {
            continue;
        }
        let clause = start..at;
        if tokens[clause.clone()]
            .iter()
            .any(|token| matches!(token.class, Class::Blame | Class::Negation))
        {
            blamed[clause].fill(true);
        }
        start = at;
    }
    blamed
}

/// The adjective that a copula behind a chunk gives to it: `the staff was super friendly`.
pub(super) fn described(tokens: &[Token], end: usize) -> Option<&Token> {
    let copula = tokens
        .get(end)
        .filter(|token| token.class == Class::Copula && !token.pause)?;
    let rest = &tokens[end + 1..];
    let adjective = rest
        .iter()
        .find(|token| !matches!(token.class, Class::Degree | Class::Adverb))?;
    let between = rest
        .iter()
        .take_while(|token| !std::ptr::eq(*token, adjective));
    let broken = adjective.pause || between.clone().any(|token| token.pause) || copula.first;
    // Not when a noun follows: `the staff is friendly people` is not about the staff's words.
    let after = rest.get(between.count() + 1);
    let ends = after.is_none_or(|token| token.pause || !is_content(tokens, 0, token));
    (adjective.class == Class::Adjective && !broken && ends).then_some(adjective)
}

/// A chunk with an `of` or `and` and the chunk behind it, as one phrase of at most five words.
pub(super) fn joined(
    tokens: &[Token],
    chunk: &std::ops::Range<usize>,
) -> Option<std::ops::Range<usize>> {
    let link = tokens
        .get(chunk.end)
        .filter(|token| !token.pause && token.class == Class::Of)?;
    let begin = chunk.end - 1;
    let head = &tokens[begin];
    let rest = tokens[chunk.end + 1..]
        .iter()
        .enumerate()
        .take_while(|&(at, token)| !token.pause && is_content(tokens, chunk.end + 1 + at, token))
        .count();
    let end = chunk.end + 1 + rest;
    let fits = (1..=3).contains(&rest)
        && ends_a_phrase(&tokens[end - 1])
        && ends_a_phrase(head)
        && !link.first;
    let begin = if begin > chunk.start && tokens[begin - 1].class == Class::Adjective {
        begin - 1
    } else {
        begin
    };
    let pure = tokens[chunk.end + 1..end]
        .iter()
        .all(|token| token.class != Class::Blame);
    (fits && pure && end - begin <= 5).then_some(begin..end)
}
