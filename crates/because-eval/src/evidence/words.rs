use std::collections::HashSet;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;

use crate::text::stem_token;

/// A word of a text, or two neighbouring signs of a script that does not mark its words.
pub(super) struct Word<'a> {
    /// As it stands there.
    pub(super) text: &'a str,
    /// What it is compared by.
    pub(super) stem: String,
    /// Whether sharing it says something.
    pub(super) is_content: bool,
}

/// The sentences of a text that say something; a line break ends one too.
pub(super) fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let mut end = at + c.len_utf8();
        let ends = match c {
            '\n' | '\r' | '\u{2028}' | '\u{2029}' => true,
            '。' | '！' | '？' => {
                end += closing(&text[end..]);
                true
            }
            '.' | '!' | '?' | '…' => {
                let before = &text[start..at];
                end += closing(&text[end..]);
                let after = text[end..].chars().next();
                after.is_none_or(char::is_whitespace) && !(c == '.' && is_short(before))
            }
            _ => false,
        };
        if ends {
            while chars.next_if(|&(at, _)| at < end).is_some() {}
            sentences.push(&text[start..end]);
            start = end;
        }
    }
    sentences.push(&text[start..]);
    sentences
        .into_iter()
        .map(str::trim)
        .filter(|sentence| sentence.chars().any(char::is_alphanumeric))
        .collect()
}

/// The length of what still belongs to the sentence that its mark ends.
fn closing(rest: &str) -> usize {
    let marks = ['.', '!', '?', '…', '。', '！', '？'];
    let closers = [
        '"', '\'', ')', ']', '\u{2019}', '\u{201d}', '\u{bb}', '」', '』', '）',
    ];
    rest.len()
        - rest
            .trim_start_matches(|c| marks.contains(&c) || closers.contains(&c))
            .len()
}

/// Whether a full stop here shortens a word, as in `Dr.`, `J.` and `e.g.`, or numbers a line, as in `1.`.
fn is_short(sentence: &str) -> bool {
    let sentence = sentence.trim_start();
    if !sentence.is_empty() && sentence.bytes().all(|byte| byte.is_ascii_digit()) {
        return true;
    }
    let word = sentence
        .rsplit(|c: char| c.is_whitespace() || matches!(c, '(' | '"' | '\u{201c}'))
        .next()
        .unwrap_or(sentence);
    let mut last = word.rsplit('.').next().unwrap_or(word).chars();
    let is_initial = last.next().is_some_and(char::is_uppercase) && last.next().is_none();
    is_initial || ABBREVIATIONS.contains(&word)
}

const ABBREVIATIONS: [&str; 12] = [
    "Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Jr", "Sr", "vs", "e.g", "i.e", "approx",
];

/// The words of a text, in order.
pub(super) fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_run: fn(char) -> bool = match first {
            c if is_ideograph(c) => |c| is_ideograph(c) || is_mark(c),
            c if is_letter(c) => |c| is_letter(c) && !is_ideograph(c),
            _ => |c| !is_letter(c) && !is_ideograph(c),
        };
        let length = rest.find(|c| !is_run(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        rest = after;
        if is_ideograph(first) {
            words.extend(pairs(run));
        } else if is_letter(first) {
            let run = run.trim_matches(['\'', '\u{2019}']);
            words.extend((!run.is_empty()).then(|| word(run)));
        }
    }
    words
}

fn word(text: &str) -> Word<'_> {
    let lower = plain(text).replace('\u{2019}', "'");
    let kept = without_ending(&lower);
    let is_function = [lower.as_str(), kept]
        .iter()
        .any(|word| FUNCTION_WORDS.contains(word));
    let stem = stem_token(kept);
    let is_form = !FORMS_OF_NONE.contains(&kept) && FUNCTION_STEMS.contains(&stem);
    Word {
        text,
        is_content: !is_function && !is_form && kept.chars().count() > 1,
        stem,
    }
}

/// In lower case and composed, so that both ways to write an accent are one.
fn plain(text: &str) -> String {
    text.to_lowercase().nfc().collect()
}

/// Without what was drawn into the word, as in `you'll`, and without the sign of a possessor.
fn without_ending(lower: &str) -> &str {
    let endings = ["n't", "'s", "'ll", "'re", "'ve", "'d", "'m"];
    let kept = endings.iter().find_map(|ending| lower.strip_suffix(ending));
    kept.filter(|kept| !kept.is_empty()).unwrap_or(lower)
}

/// A run of ideographs or kana as its pairs of neighbours; alone a sign is its own.
fn pairs(run: &str) -> impl Iterator<Item = Word<'_>> {
    let starts: Vec<usize> = run
        .char_indices()
        .filter(|&(_, c)| !is_mark(c))
        .map(|(at, _)| at)
        .collect();
    let count = starts.len().saturating_sub(1).max(1);
    (0..count).map(move |pair| {
        let end = starts.get(pair + 2).copied().unwrap_or(run.len());
        let text = &run[starts[pair]..end];
        let stem = plain(text);
        let is_content = stem.chars().count() > 1
            && !stem.chars().all(|c| matches!(c, '\u{3040}'..='\u{309f}'))
            && !stem.contains(PARTICLES);
        Word {
            text,
            stem,
            is_content,
        }
    })
}

/// Signs that join words and say nothing alone. Hiragana does the same in Japanese.
const PARTICLES: [char; 20] = [
    '的', '了', '是', '在', '和', '与', '或', '也', '很', '都', '就', '你', '您', '我', '他', '她',
    '它', '这', '那', '们',
];

/// A letter or a digit, what is written on one, or an apostrophe.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || is_mark(c) || matches!(c, '\'' | '\u{2019}')
}

/// An accent that follows its letter.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{3099}' | '\u{309a}')
}

fn is_ideograph(c: char) -> bool {
    c.is_alphanumeric()
        && matches!(c, '\u{3005}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2ffff}')
}

/// Words that say nothing about taste; sharing them is no evidence.
const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be",
    "because", "been", "both", "but", "by", "can", "can't", "could", "did", "do", "does", "enjoy",
    "enjoys", "for", "from", "get", "give", "gives", "had", "has", "have", "he", "her", "him",
    "his", "how", "i", "if", "in", "into", "is", "it", "item", "its", "just", "let", "like",
    "likes", "love", "loves", "make", "makes", "may", "me", "might", "more", "most", "much",
    "must", "my", "no", "not", "of", "offer", "offers", "on", "one", "or", "other", "our", "out",
    "people", "person", "shall", "shan't", "she", "should", "so", "some", "suit", "suits", "such",
    "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "to", "too", "up", "us", "user", "very", "want", "was", "we", "were", "what", "when", "where",
    "which", "while", "who", "will", "with", "won't", "would", "you", "your",
];

/// Their stems, for their other forms; those of short words, which the stemmer leaves as they are, belong to other words too
/// (`outing`).
static FUNCTION_STEMS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let long = FUNCTION_WORDS.iter().filter(|word| word.len() > 3);
    long.map(|word| stem_token(word)).collect()
});

/// What has the stem of a function word and is none.
const FORMS_OF_NONE: [&str; 4] = ["personal", "personality", "suite", "suites"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_a_reader_would_end_them() {
        for (text, expected) in [
            ("4.5 stars. Go!", vec!["4.5 stars.", "Go!"]),
            (
                "Dr. Strange by J. K. R., e.g. \"this.\" Yes... no",
                vec!["Dr. Strange by J. K. R., e.g. \"this.\"", "Yes...", "no"],
            ),
            ("1. Quiet\n2. Near", vec!["1. Quiet", "2. Near"]),
            ("安静。「好！」对", vec!["安静。", "「好！」", "对"]),
            ("... !", vec![]),
        ] {
            assert_eq!(sentences(text), expected);
        }
    }

    #[test]
    fn words_are_cut_from_signs_beside_them() {
        let cut = |text| -> Vec<&str> { words(text).iter().map(|word| word.text).collect() };
        assert_eq!(
            cut("'iPhone手机' \u{301}x, 茶"),
            ["iPhone", "手机", "\u{301}x", "茶"]
        );
    }
}
