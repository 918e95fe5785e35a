use std::borrow::Cow;

use serde_json::Value;

/// What a format's texts may hold that was meant for a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Markup {
    /// Nothing: texts stay as they are.
    None,
    /// Entities (`&amp;`, `&#34;`), which become the letters they stand for.
    Entities,
    /// Tags and entities. A tag that ends a line in a browser (`<br />`, `</p>`, `<li>`, ...) becomes a line break, any other
    /// tag of HTML goes away, and so do comments, scripts and styles; `<grin>`, `<3` and `a < b` stay, being no tags of HTML.
    Html,
}

impl Markup {
    /// The text as a person would have seen it.
    pub(super) fn plain(self, text: Cow<'_, str>) -> Cow<'_, str> {
        match self {
            Self::None => text,
            Self::Entities => map(text, entities),
            Self::Html => map(map(text, tags), entities),
        }
    }

    /// Every text in a value; the names in it stay.
    pub(super) fn plain_value(self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.plain(text.into()).into_owned()),
            Value::Array(list) => list.into_iter().map(|one| self.plain_value(one)).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| (name, self.plain_value(value)))
                .collect(),
            other => other,
        }
    }
}

fn map<'a>(text: Cow<'a, str>, change: impl Fn(&str) -> Option<String>) -> Cow<'a, str> {
    match change(&text) {
        Some(changed) => changed.into(),
        None => text,
    }
}

fn entities(text: &str) -> Option<String> {
    if !text.contains('&') {
        return None;
    }
    match html_escape::decode_html_entities(text) {
        Cow::Borrowed(_) => None,
        Cow::Owned(decoded) => Some(decoded),
    }
}

/// What does not end within so many bytes is no tag; a text full of openings would take hours otherwise.
const LONGEST_TAG: usize = 4096;

/// Tags after which a browser begins a new line.
const BLOCKS: [&str; 22] = [
    "blockquote",
    "br",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "table",
    "td",
    "tr",
    "ul",
];
/// Tags within a line, and those that show nothing.
const INLINE: [&str; 37] = [
    "a", "abbr", "b", "big", "body", "button", "cite", "code", "em", "embed", "font", "form",
    "head", "html", "i", "iframe", "img", "input", "label", "link", "meta", "noscript", "object",
    "option", "param", "s", "script", "select", "small", "span", "strike", "strong", "style",
    "sub", "sup", "tt", "u",
];

/// Without its tags; `None` where it has none.
fn tags(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut had_tag = false;
    while let Some(next) = rest.find('<') {
        let (before, from_here) = rest.split_at(next);
        out.push_str(before);
        match Tag::at_start(from_here) {
            Some(tag) => {
                had_tag = true;
                tag.write(&mut out);
                rest = &from_here[tag.bytes..];
            }
            None => {
                out.push('<');
                rest = &from_here[1..];
            }
        }
    }
    out.push_str(rest);
    had_tag.then(|| tidy(&out))
}

struct Tag<'a> {
    bytes: usize,
    breaks: bool,
    /// What is shown in its place.
    shown: &'a str,
}

impl<'a> Tag<'a> {
    /// The tag that `text`, which begins with `<`, begins with.
    fn at_start(text: &'a str) -> Option<Self> {
        if let Some(comment) = text.strip_prefix("<!--") {
            let end = comment.find("-->").map_or(text.len(), |end| end + 7);
            return Some(Self::silent(end));
        }
        let inner = text[1..].strip_prefix('/').unwrap_or(&text[1..]);
        let length = inner
            .bytes()
            .take(11)
            .take_while(u8::is_ascii_alphanumeric)
            .count();
        let name = inner[..length].to_ascii_lowercase();
        let breaks = BLOCKS.contains(&&*name);
        if !breaks && !INLINE.contains(&&*name) {
            return None;
        }
        if !inner[length..].starts_with([' ', '\t', '\n', '\r', '/', '>']) {
            return None;
        }
        let end = closing(text)?;
        let whole = &text[..end];
        if matches!(&*name, "script" | "style") && !text.starts_with("</") {
            let hidden = text[end..].match_indices("</").find_map(|(at, _)| {
                let closes = text.get(end + at + 2..end + at + 2 + name.len())?;
                closes.eq_ignore_ascii_case(&name).then_some(end + at)
            });
            return Some(Self::silent(hidden.unwrap_or(text.len())));
        }
        Some(Self {
            bytes: end,
            breaks,
            shown: if name == "img" {
                alternative(whole)
            } else {
                ""
            },
        })
    }

    fn silent(bytes: usize) -> Self {
        Self {
            bytes,
            breaks: false,
            shown: "",
        }
    }

    fn write(&self, out: &mut String) {
        if self.breaks {
            out.push('\n');
        }
        out.push_str(self.shown);
    }
}

/// Where a tag ends: behind the first `>` that is in no quotes, or, where its quotes never close, behind the first of all.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut before = b' ';
    for (at, byte) in text.bytes().take(LONGEST_TAG).enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if before == b'=' => quote = Some(byte),
            (Some(open), byte) if byte == open => quote = None,
            _ => {}
        }
        before = byte;
    }
    let first = text.bytes().take(LONGEST_TAG).position(|byte| byte == b'>');
    first.map(|at| at + 1)
}

/// What stands for an image where it cannot be seen (`alt="..."`): Amazon has the names of categories as images.
fn alternative(tag: &str) -> &str {
    let shown = tag
        .split_once("alt=\"")
        .and_then(|(_, rest)| rest.split_once('"'));
    shown.map_or("", |(shown, _)| shown)
}

/// Blanks at the ends of lines and more than one empty line are what tags left behind.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut feeds = 0;
    for line in text.split('\n') {
        let line = line.trim();
        if line.is_empty() {
            feeds += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if feeds > 0 { "\n\n" } else { "\n" });
        }
        feeds = 0;
        let mut words = line
            .split([' ', '\t', '\r'])
            .filter(|word| !word.is_empty());
        if let Some(first) = words.next() {
            out.push_str(first);
        }
        for word in words {
            out.push(' ');
            out.push_str(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn html(text: &str) -> String {
        Markup::Html.plain(text.into()).into_owned()
    }

    #[test]
    fn a_review_reads_as_it_was_seen() {
        for (written, seen) in [
            ("good<br />bad<br/><br>end", "good\nbad\n\nend"),
            ("<p>One</p><p>Two</p>", "One\n\nTwo"),
            (
                "a <b>bold</b> word, M&amp;M&#39;s &#34;x&#34; &eacute;",
                "a bold word, M&M's \"x\" é",
            ),
            ("I <3 it, 1 < 2, <grin> <br>", "I <3 it, 1 < 2, <grin>"),
            (
                "x<!-- hidden -->y<script>z</script>w<STYLE>.a{}</STYLE>v",
                "xywv",
            ),
            (
                "<img src=\"a>b.png\" alt=\"Amazon Fashion\"/>",
                "Amazon Fashion",
            ),
            ("&lt;br&gt; stays text", "<br> stays text"),
            ("<ul><li>A</li><li>B</li></ul>", "A\n\nB"),
            ("<br", "<br"),
            ("<br>xp> 1 <b>\u{8d} xb>", "xp> 1 \u{8d} xb>"),
            ("<bread> & butter", "<bread> & butter"),
            ("AT&T &nosuch; &", "AT&T &nosuch; &"),
            ("<a href=\"x", "<a href=\"x"),
        ] {
            assert_eq!(html(written), seen, "{written}");
        }
    }

    #[test]
    fn what_needs_no_change_is_not_copied() {
        for text in ["plain", "1 < 2 > 0", "a & b"] {
            assert!(
                matches!(Markup::Html.plain(text.into()), Cow::Borrowed(_)),
                "{text}"
            );
        }
        assert_eq!(Markup::Entities.plain("a &amp; <br>".into()), "a & <br>");
        assert_eq!(Markup::None.plain("a &amp;".into()), "a &amp;");
        let value = json!({"a&amp;": ["b &amp; c", 1, null]});
        assert_eq!(
            Markup::Html.plain_value(value),
            json!({"a&amp;": ["b & c", 1, null]})
        );
    }

    proptest! {
        #[test]
        fn no_text_stops_the_reader(text in "(<(/?(p|b|br|script|img alt=)|!--)[ />\"]{0,2}|[<>/!a-dpr=\"'& ;#0-9é\\n-]){0,30}") {
            html(&text);
        }
    }

    #[test]
    fn many_open_tags_take_no_long_time() {
        let text = "<a href=\"".repeat(20_000);
        assert_eq!(html(&text), text);
    }
}
