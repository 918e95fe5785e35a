//! Small things done to text that came from a model or a server.

/// The first `max_chars` characters on one line, without control characters, with `...` where something is left out.
pub(crate) fn excerpt(text: &str, max_chars: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut chars = text.trim().chars().map(clean);
    let mut short: String = chars.by_ref().take(max_chars).collect();
    if chars.next().is_some() {
        short.push_str("...");
    }
    short
}

/// Parts what a reasoning model thought, between `<think>` and `</think>`, from its answer. The opening tag may be
/// missing (some chat templates write it into the prompt); without the closing one, all of it was thought.
#[must_use]
pub fn split_thinking(text: &str) -> (Option<&str>, &str) {
    let trimmed = text.trim();
    if let Some(rest) = trimmed.strip_prefix("<think>") {
        return match rest.split_once("</think>") {
            Some((thought, answer)) => (some(thought), answer.trim()),
            None => (some(rest), ""),
        };
    }
    // JSON that quotes a tag is an answer, not a thought.
    if trimmed.starts_with(['{', '[', '`', '"']) {
        return (None, trimmed);
    }
    match trimmed.split_once("</think>") {
        Some((thought, answer)) => (some(thought), answer.trim()),
        None => (None, trimmed),
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_parted_from_answers() {
        for (text, thought, answer) in [
            ("<think>hm</think>\n\nyes", Some("hm"), "yes"),
            ("hm\n</think>yes", Some("hm"), "yes"),
            ("<think>hm, and hm", Some("hm, and hm"), ""),
            ("<think>\n\n</think>\n{}", None, "{}"),
            (r#"{"said":"</think>"}"#, None, r#"{"said":"</think>"}"#),
            ("yes", None, "yes"),
        ] {
            assert_eq!(split_thinking(text), (thought, answer));
        }
    }

    #[test]
    fn an_excerpt_is_one_line_of_so_many_characters() {
        assert_eq!(excerpt("  zażółć\n\u{1b}[31mred", 8), "zażółć  ...");
        assert_eq!(excerpt("short", 5), "short");
    }
}
