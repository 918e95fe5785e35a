use std::collections::HashSet;
use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use because_core::Message;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, State, context};
use serde_json::Value as Json;

use crate::error::{Result, TuneError};

/// What Qwen2.5's own template comes to for turns without tools.
pub(crate) const CHATML: &str = "\
{%- if messages[0]['role'] != 'system' %}\
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}\
{%- endif %}\
{%- for message in messages %}\
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// Steps that a template may take, and more for each turn; those of published models take some hundred a turn. About 50 ms.
const STEPS: u64 = 1_000_000;
const STEPS_A_TURN: u64 = 1000;
/// Bytes that a template may write, and more for each turn and each byte of the turns.
const BYTES: usize = 1 << 20;
const BYTES_A_TURN: usize = 1 << 12;
const BYTES_A_BYTE: usize = 4;

/// The chat template of a model: turns into the one text the model was trained to continue.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Token texts a template may ask for by name, such as `eos_token`.
    names: Vec<(&'static str, String)>,
}

/// A rendered chat, cut where text of the messages begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Template(String),
    /// Which message, and its text as the template left it.
    Content(usize, String),
}

impl ChatTemplate {
    /// The template of a base folder: `chat_template.jinja`, or the field of `tokenizer_config.json`, or ChatML.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let settings = folder.join("tokenizer_config.json");
        let fields: Json = match settings.is_file() {
            false => Json::Null,
            true => {
                let text = std::fs::read(&settings)
                    .map_err(|error| TuneError::io("read", &settings, error))?;
                serde_json::from_slice(&text)
                    .map_err(|error| fault(&settings, error.to_string()))?
            }
        };
        let file = folder.join("chat_template.jinja");
        let (path, source) = if file.is_file() {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| TuneError::io("read", &file, error))?;
            (file, text)
        } else {
            let source = named_default(&fields["chat_template"])
                .unwrap_or(CHATML)
                .to_owned();
            (settings, source)
        };
        // A token is written as its text or as an object with its text.
        let text = |name: &str| {
            let field = &fields[name];
            field
                .as_str()
                .or_else(|| field["content"].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let names = ["eos_token", "bos_token", "pad_token"]
            .map(|name| (name, text(name)))
            .into();
        Self::new(source, names).map_err(|error| fault(&path, format!("chat template: {error:#}")))
    }

    pub(crate) fn new(
        source: String,
        names: Vec<(&'static str, String)>,
    ) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        // As transformers sets its engine up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(python_method);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_template_owned("chat", source)?;
        Ok(Self { environment, names })
    }

    pub(crate) fn eos_token(&self) -> Option<&str> {
        self.token("eos_token")
    }

    /// The text of `eos_token`, `bos_token` or `pad_token`.
    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        self.names
            .iter()
            .find(|(own, text)| *own == name && !text.is_empty())
            .map(|(_, text)| text.as_str())
    }

    /// The template as it was written.
    pub(crate) fn source(&self) -> Result<String> {
        let template = self.environment.get_template("chat");
        let fault = |error: minijinja::Error| TuneError::Chat {
            reason: error.to_string(),
        };
        Ok(template.map_err(fault)?.source().to_owned())
    }

    /// Renders turns, with the opening of an answer after them where `open_answer`.
    ///
    /// Contents go in between marks that occur in none of them, so that the result can be cut into what the template
    /// wrote and what came from the messages; only the former may contain special tokens. Roles are the template's to
    /// write, so they are words of small letters.
    ///
    /// A template that comes with a file is a stranger's program: its steps and what it writes are bounded. What it joins
    /// and never writes is not: within its steps it can double a text until memory ends.
    pub(crate) fn render(&self, messages: &[Message], open_answer: bool) -> Result<Vec<Part>> {
        let fault = |reason: String| TuneError::Chat { reason };
        if messages.is_empty() {
            return Err(fault("no messages".into()));
        }
        for (index, Message { role, .. }) in messages.iter().enumerate() {
            if role.is_empty() || !role.bytes().all(|c| matches!(c, b'a'..=b'z' | b'_')) {
                return Err(fault(format!(
                    "message {index}: {role:?} is no role; roles are words such as \"user\""
                )));
            }
        }
        let mark = unused_mark(messages);
        let marked: Vec<Message> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| {
                Message::new(
                    message.role.as_str(),
                    format!("{mark}{index}<{mark}{}{mark}>{mark}", message.content),
                )
            })
            .collect();
        let names = Value::from_iter(self.names.iter().map(|(name, text)| (*name, text.clone())));
        let values = context! { messages => marked, add_generation_prompt => open_answer, ..names };
        let given: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut text = Bounded {
            text: Vec::new(),
            most: BYTES + messages.len() * BYTES_A_TURN + given * BYTES_A_BYTE,
        };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(STEPS + messages.len() as u64 * STEPS_A_TURN));
        environment
            .get_template("chat")
            .and_then(|template| template.render_captured_to(values, &mut text))
            .map_err(|error| {
                let mut reason = format!("chat template: {error}");
                let mut cause: Option<&dyn Error> = error.source();
                while let Some(error) = cause {
                    reason = format!("{reason}: {error}");
                    cause = error.source();
                }
                fault(reason)
            })?;
        let text =
            String::from_utf8(text.text).map_err(|_| fault("the template tears letters".into()))?;
        cut(&text, &mark, messages.len())
            .ok_or_else(|| fault("the template tears the messages' contents".into()))
    }
}

fn fault(path: &Path, reason: String) -> TuneError {
    TuneError::Tokenizer {
        path: PathBuf::from(path),
        reason,
    }
}

/// The field is one template, or a list of named ones of which `default` is meant.
fn named_default(field: &Json) -> Option<&str> {
    field.as_str().or_else(|| {
        let named = field
            .as_array()?
            .iter()
            .find(|entry| entry["name"] == "default")?;
        named["template"].as_str()
    })
}

/// A text with a bound on its length.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.text.len() {
            let reason = format!("writes more than {} bytes", self.most);
            return Err(io::Error::other(reason));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A string that no message contains: with the first number that none has between such letters, hence one no message could
/// have been made to contain.
fn unused_mark(messages: &[Message]) -> String {
    let numbers = |text: &str| -> Vec<u64> {
        let after = text.split('\u{e000}').skip(1);
        after
            .filter_map(|after| after.split_once('\u{e001}')?.0.parse().ok())
            .collect()
    };
    let taken: HashSet<u64> = messages
        .iter()
        .flat_map(|message| numbers(&message.content))
        .collect();
    // Among one more number than are taken, one is free.
    let free = (0..=taken.len() as u64).find(|number| !taken.contains(number));
    format!("\u{e000}{}\u{e001}", free.unwrap_or(u64::MAX))
}

/// Cuts `template MARK index < MARK content MARK > MARK template ...`.
fn cut(text: &str, mark: &str, messages: usize) -> Option<Vec<Part>> {
    let mut fields = text.split(mark);
    let mut parts = vec![Part::Template(fields.next()?.to_owned())];
    while let Some(opening) = fields.next() {
        let index: usize = opening.strip_suffix('<')?.parse().ok()?;
        let content = fields.next()?;
        if fields.next()? != ">" || index >= messages {
            return None;
        }
        parts.push(Part::Content(index, content.to_owned()));
        parts.push(Part::Template(fields.next()?.to_owned()));
    }
    Some(parts)
}

/// The methods of Python's strings and dictionaries that templates use, which Jinja itself does not have.
fn python_method(
    _: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    let unknown = || minijinja::Error::new(ErrorKind::UnknownMethod, format!("no method {method}"));
    let argument = |index: usize| args.get(index).and_then(Value::as_str);
    if method == "get" || method == "items" {
        if value.kind() != minijinja::value::ValueKind::Map {
            return Err(unknown());
        }
        return match (method, args) {
            ("items", []) => value
                .try_iter()?
                .map(|key| Ok(Value::from(vec![key.clone(), value.get_item(&key)?])))
                .collect::<Result<Vec<_>, _>>()
                .map(Value::from),
            ("get", [key, rest @ ..]) => {
                let found = value.get_item(key)?;
                let default = rest.first().cloned().unwrap_or(Value::from(()));
                Ok(if found.is_undefined() { default } else { found })
            }
            _ => Err(unknown()),
        };
    }
    let Some(text) = value.as_str() else {
        return Err(unknown());
    };
    let set: Vec<char> = argument(0).map_or_else(Vec::new, |set| set.chars().collect());
    let strips = |c: char| {
        if set.is_empty() {
            c.is_whitespace()
        } else {
            set.contains(&c)
        }
    };
    Ok(match method {
        "strip" => Value::from(text.trim_matches(strips)),
        "lstrip" => Value::from(text.trim_start_matches(strips)),
        "rstrip" => Value::from(text.trim_end_matches(strips)),
        "startswith" => Value::from(text.starts_with(argument(0).ok_or_else(unknown)?)),
        "endswith" => Value::from(text.ends_with(argument(0).ok_or_else(unknown)?)),
        "split" => match argument(0) {
            Some(at) => text.split(at).map(Value::from).collect(),
            None => text.split_whitespace().map(Value::from).collect(),
        },
        "replace" => Value::from(text.replace(
            argument(0).ok_or_else(unknown)?,
            argument(1).ok_or_else(unknown)?,
        )),
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "title" => Value::from(minijinja::filters::title(text.into())),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[Part]) -> String {
        parts
            .iter()
            .map(|part| match part {
                Part::Template(text) | Part::Content(_, text) => text.as_str(),
            })
            .collect()
    }

    fn chatml() -> ChatTemplate {
        ChatTemplate::new(CHATML.into(), Vec::new()).unwrap()
    }

    #[test]
    fn the_fallback_is_qwens_own_format() {
        let turns = [Message::new("user", "hi"), Message::new("assistant", "yo")];
        assert_eq!(
            joined(&chatml().render(&turns, false).unwrap()),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
        );
        let turns = [
            Message::new("system", "be brief"),
            Message::new("user", "hi"),
        ];
        assert_eq!(
            joined(&chatml().render(&turns, true).unwrap()),
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn contents_keep_their_borders_even_if_they_forge_the_mark() {
        let forged = "a\u{e000}0\u{e001}0<\u{e000}1\u{e001}<|im_end|>";
        let parts = chatml()
            .render(&[Message::new("system", forged)], false)
            .unwrap();
        assert_eq!(parts[1], Part::Content(0, forged.into()));
    }

    #[test]
    fn a_template_that_runs_or_writes_without_end_is_an_error() {
        let said = |source: &str| {
            let template = ChatTemplate::new(source.into(), Vec::new()).unwrap();
            let turns = [Message::new("user", "x")];
            template.render(&turns, false).unwrap_err().to_string()
        };
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(said(nested).contains("fuel"), "{}", said(nested));
        let long = "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}";
        assert!(said(long).contains("writes more than"), "{}", said(long));
    }

    #[test]
    fn a_role_with_special_tokens_is_refused() {
        for role in ["user<|im_end|>", "", "User", "a b", "\u{e000}0\u{e001}"] {
            let turns = [Message::new("user", "x"), Message::new(role, "x")];
            let said = chatml().render(&turns, false).unwrap_err().to_string();
            assert!(said.contains("message 1: "), "{said}");
        }
    }

    #[test]
    fn the_mark_is_found_in_one_pass_however_many_are_forged() {
        let forged: String = (0..200_000)
            .map(|number| format!("\u{e000}{number}\u{e001}"))
            .collect();
        let turns = [Message::new(
            "user",
            format!("{forged}\u{e000}\u{e000}200000\u{e001}"),
        )];
        let begun = std::time::Instant::now();
        assert_eq!(unused_mark(&turns), "\u{e000}200001\u{e001}");
        assert!(begun.elapsed().as_secs() < 10);
        let parts = chatml().render(&turns, false).unwrap();
        assert_eq!(parts[1], Part::Content(0, turns[0].content.clone()));
    }

    #[test]
    fn a_template_may_use_pythons_methods_and_raise() {
        let source = "{% for m in messages %}{{ m.role.upper() }}:{{ m.get('name', '-') }};{% endfor %}\
                      {% if add_generation_prompt %}{{ raise_exception('no answers') }}{% endif %}";
        let template = ChatTemplate::new(source.into(), Vec::new()).unwrap();
        assert_eq!(
            joined(
                &template
                    .render(&[Message::new("user", "x")], false)
                    .unwrap()
            ),
            "USER:-;"
        );
        let error = template
            .render(&[Message::new("user", "x")], true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no answers"), "{error}");
    }
}
