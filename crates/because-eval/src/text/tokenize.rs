//! The three ways the reference implementations cut a text: Python's `str.split()`, sacrebleu's `13a`, rouge-score's.

/// The tokens of Python's `str.split()`: cut at Unicode white space and also at U+001C to U+001F, which
/// [`str::split_whitespace`] does not do.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The characters of a text without its white space, in Python's sense of it.
pub(crate) fn visible_chars(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|&c| !is_space(c))
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// mteval-v13a as sacrebleu does it: four rewrites, each over the result of the one before. The tokens of the text are
/// the [`words`] of what comes back.
pub(crate) fn rewrite_13a(text: &str) -> String {
    let mut line = format!(" {} ", text.trim_end_matches(is_space));
    for (from, to) in [("<skipped>", ""), ("-\n", ""), ("\n", " ")] {
        replace(&mut line, from, to);
    }
    if line.contains('&') {
        for (from, to) in [
            ("&quot;", "\""),
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
        ] {
            replace(&mut line, from, to);
        }
    }
    let mut spaced = Vec::with_capacity(line.len() + line.len() / 4);
    for &byte in line.as_bytes() {
        if is_symbol(byte) {
            spaced.extend([b' ', byte, b' ']);
        } else {
            spaced.push(byte);
        }
    }
    let spaced = rewrite_pairs(
        &spaced,
        |a, b| !a.is_ascii_digit() && is_stop(b),
        |a, b| [a, b' ', b, b' '],
    );
    let spaced = rewrite_pairs(
        &spaced,
        |a, b| is_stop(a) && !b.is_ascii_digit(),
        |a, b| [b' ', a, b' ', b],
    );
    let spaced = rewrite_pairs(
        &spaced,
        |a, b| a.is_ascii_digit() && b == b'-',
        |a, b| [a, b' ', b, b' '],
    );
    String::from_utf8(spaced)
        .expect("blanks were put beside ascii characters only, never inside another")
}

fn replace(line: &mut String, from: &str, to: &str) {
    if line.contains(from) {
        *line = line.replace(from, to);
    }
}

/// ASCII punctuation but for `'`, `,`, `-` and `.`, which depend on what stands beside them.
fn is_symbol(byte: u8) -> bool {
    matches!(byte, b' '..=b'&' | b'('..=b'+' | b'/' | b':'..=b'@' | b'['..=b'`' | b'{'..=b'~')
}

fn is_stop(byte: u8) -> bool {
    matches!(byte, b'.' | b',')
}

/// A regular expression over two neighbours, replaced from left to right without overlap. Bytes serve as well as
/// characters: one side of every pair is ASCII, and the other keeps its remaining bytes beside it.
fn rewrite_pairs(
    line: &[u8],
    is_pair: impl Fn(u8, u8) -> bool,
    pair: impl Fn(u8, u8) -> [u8; 4],
) -> Vec<u8> {
    let mut written = Vec::with_capacity(line.len() + line.len() / 8);
    let mut at = 0;
    while at < line.len() {
        match line.get(at + 1) {
            Some(&next) if is_pair(line[at], next) => {
                written.extend(pair(line[at], next));
                at += 2;
            }
            _ => {
                written.push(line[at]);
                at += 1;
            }
        }
    }
    written
}

/// What rouge-score makes of a text, before stemming: lower case, cut at everything outside `a-z0-9`.
pub(crate) enum RougePiece<'a> {
    /// A token.
    Token(&'a str),
    /// A line feed: the end of a sentence, for ROUGE-Lsum.
    LineEnd,
}

/// Gives the pieces of a text to `each`, in order, through a buffer that the caller keeps.
pub(crate) fn rouge_pieces(text: &str, buffer: &mut String, mut each: impl FnMut(RougePiece<'_>)) {
    buffer.clear();
    let mut take = |c: char, buffer: &mut String| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            buffer.push(c);
            return;
        }
        if !buffer.is_empty() {
            each(RougePiece::Token(buffer));
            buffer.clear();
        }
        if c == '\n' {
            each(RougePiece::LineEnd);
        }
    };
    for c in text.chars() {
        if c.is_ascii() {
            take(c.to_ascii_lowercase(), buffer);
        } else {
            // The Kelvin sign becomes a plain k, a dotted capital I an i and a mark: lower case first, as the reference does.
            for lower in c.to_lowercase() {
                take(lower, buffer);
            }
        }
    }
    take(' ', buffer);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens_13a(text: &str) -> Vec<String> {
        words(&rewrite_13a(text)).map(str::to_owned).collect()
    }

    fn rouge_tokens(text: &str) -> Vec<String> {
        let mut tokens = Vec::new();
        rouge_pieces(text, &mut String::new(), |piece| {
            if let RougePiece::Token(token) = piece {
                tokens.push(token.to_owned());
            }
        });
        tokens
    }

    #[test]
    fn stops_stay_inside_numbers_and_leave_words() {
        assert_eq!(
            tokens_13a("It cost 3.50, in 1999-2001."),
            ["It", "cost", "3.50", ",", "in", "1999", "-", "2001", "."]
        );
        assert_eq!(
            tokens_13a("well-made, isn't it..."),
            ["well-made", ",", "isn't", "it", ".", ".", "."]
        );
        assert_eq!(
            tokens_13a("&lt;b&gt; R&amp;D&nbsp;"),
            ["<", "b", ">", "R", "&", "D", "&", "nbsp", ";"]
        );
        assert_eq!(tokens_13a("a hy-\nphen"), ["a", "hyphen"]);
        assert_eq!(
            tokens_13a("caf\u{e9}.\u{e9}t\u{e9}"),
            ["caf\u{e9}", ".", "\u{e9}t\u{e9}"]
        );
    }

    #[test]
    fn the_file_separators_are_space_as_in_python() {
        assert_eq!(
            words("a\u{1c}b\u{1f}c\u{a0}d\u{200b}e").collect::<Vec<_>>(),
            ["a", "b", "c", "d\u{200b}e"]
        );
    }

    #[test]
    fn rouge_knows_ascii_letters_and_digits_only() {
        assert_eq!(
            rouge_tokens("Caf\u{e9} 20\u{212a} \u{130}zmir \u{5bff}\u{53f8}"),
            ["caf", "20k", "i", "zmir"]
        );
    }

    mod vectors {
        use super::*;
        use crate::vectors::{self, strings};

        #[test]
        fn tokens_are_those_of_the_references() {
            for file in [
                vectors::ours("tokens.jsonl"),
                vectors::shared("tokenizers.jsonl"),
            ] {
                for case in file {
                    let text = case["text"].as_str().unwrap();
                    let expected = &case["tokens"];
                    assert_eq!(tokens_13a(text), strings(&expected["13a"]), "13a: {text:?}");
                    assert_eq!(
                        words(text).collect::<Vec<_>>(),
                        strings(&expected["none"]),
                        "none: {text:?}"
                    );
                    assert_eq!(
                        rouge_tokens(text),
                        strings(&expected["rouge"]),
                        "rouge: {text:?}"
                    );
                    let stems: Vec<String> = rouge_tokens(text)
                        .iter()
                        .map(|t| crate::text::porter::stem_token(t))
                        .collect();
                    assert_eq!(stems, strings(&expected["rouge_stem"]), "stems: {text:?}");
                }
            }
        }
    }
}
