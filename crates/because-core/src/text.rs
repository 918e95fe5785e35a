//! Text that came from data, made safe to show.

/// Strips what could drive a terminal: every control character but line feed and tab (so no escape sequences, no carriage
/// return that overwrites), and the Unicode marks that reverse or hide text.
///
/// ```
/// use because_core::text::for_terminal;
///
/// assert_eq!(for_terminal("fine\u{1b}[2Jgone\u{202e}txt"), "fine[2Jgonetxt");
/// ```
#[must_use]
pub fn for_terminal(text: &str) -> String {
    text.chars()
        .filter(|&c| c == '\n' || c == '\t' || !(c.is_control() || is_invisible_mark(c)))
        .collect()
}

fn is_invisible_mark(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The first `max_chars` characters, cut at a word where one ends nearby, with an ellipsis where something was cut.
///
/// ```
/// use because_core::text::excerpt;
///
/// assert_eq!(excerpt("a quiet room with a view", 12), "a quiet room…");
/// assert_eq!(excerpt("short", 12), "short");
/// ```
#[must_use]
pub fn excerpt(text: &str, max_chars: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(max_chars) else {
        return text.to_owned();
    };
    let head = &text[..end];
    let at_word = text[end..].starts_with(char::is_whitespace);
    let cut = match head.rfind(char::is_whitespace) {
        Some(space) if !at_word && space > end / 2 => space,
        _ => end,
    };
    format!("{}…", text[..cut].trim_end())
}
