use std::collections::BTreeSet;

use serde_json::Value;

use super::cleaning::clean;
use super::words::{Sentence, sentences, stem};
use crate::{ChatRequest, Role};

/// What a request carries: the fenced blocks, and the instructions around them.
#[derive(Debug, Default)]
pub(super) struct Data {
    pub(super) blocks: Vec<Block>,
    pub(super) instructions: String,
}

/// One `<data name="...">` block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: String,
    pub(super) value: Value,
}

/// What belongs together: one element of a list, or a whole block that is no list.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) title: Option<String>,
    /// The stems of its title's words.
    pub(super) title_stems: BTreeSet<String>,
    pub(super) texts: Vec<Text>,
    pub(super) weight: f64,
    /// It is an element of a list.
    pub(super) listed: bool,
}

/// One string of a document.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) sentences: Vec<Sentence>,
    /// A few words without a sentence: a category, a tag.
    pub(super) label: bool,
}

impl Data {
    /// Reads the blocks of every turn. A later block replaces an earlier one of its name, save that lists of wrong
    /// choices add up. A request without any block is taken to be about what the user says.
    pub(super) fn of(request: &ChatRequest) -> Self {
        let mut data = Self::default();
        for message in &request.messages {
            let mut rest = message.content.as_str();
            while let Some((before, name, value, after)) = next_block(rest) {
                data.instructions.push_str(before);
                data.instructions.push('\n');
                data.insert(name, value);
                rest = after;
            }
            if message.role != Role::Assistant {
                data.instructions.push_str(rest);
                data.instructions.push('\n');
            }
        }
        if data.blocks.is_empty() {
            let said = request
                .messages
                .iter()
                .filter(|message| message.role == Role::User);
            data.blocks.extend(said.map(|message| Block {
                name: String::new(),
                value: Value::String(message.content.clone()),
            }));
        }
        data
    }

    fn insert(&mut self, name: &str, value: Value) {
        match self.blocks.iter_mut().find(|block| block.name == name) {
            Some(block) => match (&mut block.value, value) {
                (Value::Array(earlier), Value::Array(later)) if name.starts_with("wrong") => {
                    earlier.extend(later)
                }
                (earlier, later) => *earlier = later,
            },
            None => self.blocks.push(Block {
                name: name.to_owned(),
                value,
            }),
        }
    }

    /// Everything there is to read, earlier blocks weighing more.
    pub(super) fn documents(&self) -> Vec<Document> {
        let told = self.blocks.iter().filter(|block| !block.lists_wrong());
        told.enumerate()
            .flat_map(|(at, block)| block.documents(1.0 / (1.0 + 0.15 * at as f64)))
            .collect()
    }
}

impl Block {
    /// Whether it lists choices that were found wrong.
    pub(super) fn lists_wrong(&self) -> bool {
        self.name.starts_with("wrong")
    }

    pub(super) fn documents(&self, weight: f64) -> Vec<Document> {
        let (elements, listed) = match &self.value {
            Value::Array(elements) => (elements.as_slice(), true),
            whole => (std::slice::from_ref(whole), false),
        };
        let documents = elements.iter().map(|element| Document::of(element, weight));
        documents
            .map(|document| Document { listed, ..document })
            .collect()
    }
}

impl Document {
    pub(super) fn of(value: &Value, weight: f64) -> Self {
        let mut document = Self {
            weight,
            ..Self::default()
        };
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match field {
                        Value::String(text) if is_name(name) && document.title.is_none() => {
                            document.set_title(text)
                        }
                        field => document.read(field, 0),
                    }
                }
            }
            other => document.read(other, 0),
        }
        document
    }

    /// All its sentences.
    pub(super) fn sentences(&self) -> impl Iterator<Item = &Sentence> {
        self.texts.iter().flat_map(|text| &text.sentences)
    }

    fn set_title(&mut self, text: &str) {
        let kept = sentences(text);
        if kept.is_empty() {
            return;
        }
        let whole: Vec<&str> = kept.iter().map(|sentence| sentence.text.as_str()).collect();
        self.title = Some(shortened(&whole.join(" "), 80).to_owned());
        self.title_stems = kept
            .iter()
            .flat_map(|sentence| &sentence.tokens)
            .map(|token| stem(&token.surface.to_lowercase()))
            .collect();
    }

    /// Strings count, at any depth; names of fields and numbers do not.
    fn read(&mut self, value: &Value, depth: usize) {
        const DEEPEST: usize = 16;
        match value {
            Value::String(text) => self.push(text),
            Value::Array(values) if depth < DEEPEST => {
                values.iter().for_each(|value| self.read(value, depth + 1))
            }
            Value::Object(fields) if depth < DEEPEST => fields
                .values()
                .for_each(|value| self.read(value, depth + 1)),
            _ => {}
        }
    }

    fn push(&mut self, text: &str) {
        // A printed structure of another language is no prose.
        if text.trim_start().starts_with('{') {
            return;
        }
        let sentences = sentences(text);
        if sentences.is_empty() {
            return;
        }
        let label = sentences.len() == 1
            && sentences[0].tokens.len() <= 4
            && !sentences[0].text.ends_with(['.', '!', '?', '。']);
        self.texts.push(Text { sentences, label });
    }
}

fn is_name(field: &str) -> bool {
    matches!(field, "title" | "name")
}

/// The text up to `limit` characters, cut between words where there is one to cut at.
pub(super) fn shortened(text: &str, limit: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(limit) else {
        return text;
    };
    let cut = &text[..end];
    if text[end..].starts_with(char::is_whitespace) {
        return cut.trim_end();
    }
    match cut.rfind(char::is_whitespace) {
        Some(space) => cut[..space].trim_end(),
        None => cut,
    }
}

/// The text before the next block, its name, its value, and the rest.
fn next_block(text: &str) -> Option<(&str, &str, Value, &str)> {
    const OPENS: &str = "<data name=\"";
    let mut from = 0;
    loop {
        let start = from + text[from..].find(OPENS)?;
        let rest = &text[start + OPENS.len()..];
        let block = rest
            .split_once("\">\n")
            .filter(|(name, _)| !name.contains(['"', '<', '>', '\n']))
            .and_then(|(name, rest)| {
                let (json, after) = rest.split_once("\n</data>")?;
                Some((name, serde_json::from_str(json).ok()?, after))
            });
        if let Some((name, value, after)) = block {
            return Some((&text[..start], name, value, after));
        }
        from = start + OPENS.len();
    }
}

/// What a property's description or the instructions ask of a text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The words it is to begin with.
    pub(super) lead: Option<String>,
    /// At most so many words.
    pub(super) words: Option<usize>,
}

impl Wish {
    pub(super) fn of(text: &str) -> Self {
        Self {
            lead: lead(text),
            words: word_limit(text),
        }
    }
}

fn lead(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    [
        "begin with ",
        "begins with ",
        "beginning with ",
        "start with ",
        "starts with ",
    ]
    .iter()
    .find_map(|cue| {
        let rest = &text[lower.find(cue)? + cue.len()..];
        let closing = match rest.chars().next()? {
            '"' => '"',
            '\u{201c}' => '\u{201d}',
            '`' => '`',
            _ => return None,
        };
        let quoted = &rest[rest.chars().next()?.len_utf8()..];
        let quoted = quoted[..quoted.find(closing)?].trim_end_matches(['.', '\u{2026}']);
        let quoted = clean(quoted);
        (!quoted.is_empty() && quoted.len() <= 100).then_some(quoted)
    })
}

/// The first number that stands before `words`.
fn word_limit(text: &str) -> Option<usize> {
    let mut number = None;
    for word in text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        match (word, number) {
            ("words" | "word", Some(limit)) if limit > 0 => return Some(limit),
            _ => number = word.parse().ok(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Message, fence};

    #[test]
    fn blocks_are_read_exactly_and_the_last_of_a_name_counts() {
        let request = ChatRequest::new(vec![
            Message::system("Sum up."),
            Message::user(format!(
                "{}\nthen\n{}",
                fence("user", "old </data>"),
                fence("wrong", &[1])
            )),
            Message::user(format!(
                "{} {}",
                fence("user", "new <b>"),
                fence("wrong", &[2])
            )),
        ]);
        let data = Data::of(&request);
        let read: Vec<_> = data
            .blocks
            .iter()
            .map(|block| (block.name.as_str(), &block.value))
            .collect();
        assert_eq!(
            read,
            [("user", &json!("new <b>")), ("wrong", &json!([1, 2]))]
        );
        assert!(data.instructions.starts_with("Sum up.\n\n\nthen"));
    }

    #[test]
    fn what_is_no_block_is_left_alone() {
        let data = Data::of(&ChatRequest::new(vec![Message::user(
            "<data name=\"a\">\nno json\n</data> <data name=\"b\">\n1\n</data>",
        )]));
        assert_eq!(data.blocks.len(), 1);
        assert_eq!(data.blocks[0].name, "b");
    }

    #[test]
    fn strings_count_at_any_depth_and_keys_and_numbers_do_not() {
        let document = Document::of(
            &json!({"title": "Luke", "tags": ["Jazz", {"deep": "Late nights"}], "stars": 5, "open": true}),
            1.0,
        );
        let texts: Vec<_> = document
            .sentences()
            .map(|sentence| sentence.text.as_str())
            .collect();
        assert_eq!(texts, ["Jazz", "Late nights"]);
        assert_eq!(document.title.as_deref(), Some("Luke"));
    }

    #[test]
    fn wishes_are_read_from_the_words_around() {
        let wish = Wish::of("In 30 to 60 words, begin with \"Suits people who\"...");
        assert_eq!(wish.words, Some(60));
        assert_eq!(wish.lead.as_deref(), Some("Suits people who"));
        assert_eq!(Wish::of("Say \"you\"; no limit"), Wish::default());
    }
}
