use because_core::text::excerpt;
use because_core::{Interaction, Item, Profile, Side};
use because_llm::{ChatRequest, Message, PromptTemplate, Sampling, fence};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result};

/// A review in a prompt ends here: the mean review of the usual data sets has 400 characters, the longest tens of
/// thousands, and one person's essay must not push everybody else out of the prompt.
const REVIEW_CHARS: usize = 800;
/// A description in a prompt ends here.
const DESCRIPTION_CHARS: usize = 1200;

/// How long the texts may become, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WordLimits {
    /// A profile. RLMRec asks for 100 (users) to 200 (items); 100 keeps eight neighbours in a small context.
    pub profile: usize,
    /// What the neighbours share.
    pub shared: usize,
}

impl Default for WordLimits {
    fn default() -> Self {
        Self {
            profile: 100,
            shared: 60,
        }
    }
}

impl WordLimits {
    /// English has about six characters a word with its space; the limit in characters leaves room for longer words and
    /// only guards against a model that does not stop.
    fn chars(words: usize) -> usize {
        words * 12
    }
}

/// The four templates. The built-in ones are the files in the crate's `prompts` folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    pub(crate) initial_item: PromptTemplate,
    pub(crate) initial_user: PromptTemplate,
    pub(crate) aggregate: PromptTemplate,
    pub(crate) update: PromptTemplate,
}

impl Default for Prompts {
    fn default() -> Self {
        Self::new(
            include_str!("../prompts/initial-item.md"),
            include_str!("../prompts/initial-user.md"),
            include_str!("../prompts/aggregate.md"),
            include_str!("../prompts/update.md"),
        )
        .expect("the built-in templates have their placeholders, which a test shows")
    }
}

impl Prompts {
    /// Templates of your own, as Markdown text with the same placeholders as the built-in ones.
    ///
    /// # Errors
    /// When one lacks a placeholder of its stage or has one more.
    pub fn new(
        initial_item: &str,
        initial_user: &str,
        aggregate: &str,
        update: &str,
    ) -> Result<Self> {
        let template = |name, text, placeholders: &[&str]| {
            PromptTemplate::new(text, placeholders).map_err(|source| Error::Prompt { name, source })
        };
        Ok(Self {
            initial_item: template("initial-item", initial_item, &["words", "item", "reviews"])?,
            initial_user: template("initial-user", initial_user, &["words", "history"])?,
            aggregate: template(
                "aggregate",
                aggregate,
                &["kind", "neighbors_kind", "words", "target", "neighbors"],
            )?,
            update: template(
                "update",
                update,
                &[
                    "kind",
                    "neighbors_kind",
                    "words",
                    "initial",
                    "current",
                    "shared",
                ],
            )?,
        })
    }

    /// What `profiles.layer{L}.jsonl` records for layers after the first: both templates of a message, in one.
    pub(crate) fn message_fingerprint(&self) -> String {
        let both = self.aggregate.fingerprint() + &self.update.fingerprint();
        blake3::hash(both.as_bytes()).to_hex()[..16].to_owned()
    }
}

/// Asks for the first profile of an item, from its row and some of its train interactions.
#[must_use]
pub fn initial_item_request(
    prompts: &Prompts,
    words: WordLimits,
    item: &Item,
    reviews: &[Interaction],
) -> ChatRequest {
    let mut shown = serde_json::Map::new();
    if let Some(title) = &item.title {
        shown.insert("title".into(), excerpt(title, 200).into());
    }
    if let Some(description) = &item.description {
        shown.insert(
            "description".into(),
            excerpt(description, DESCRIPTION_CHARS).into(),
        );
    }
    if !item.attributes.is_empty() {
        shown.insert(
            "attributes".into(),
            bounded(&Value::Object(item.attributes.clone())),
        );
    }
    let reviews: Vec<Value> = reviews.iter().map(feedback).collect();
    let text = prompts.initial_item.render(&[
        ("words", &words.profile.to_string()),
        ("item", &fence("item", &shown)),
        ("reviews", &fence("reviews", &reviews)),
    ]);
    profile_request(text, words, "Suits people who").prefix_group("initial item")
}

/// Asks for the first profile of a user, from some of their train interactions, each with the row and the profile of its
/// item.
#[must_use]
pub fn initial_user_request(
    prompts: &Prompts,
    words: WordLimits,
    history: &[(&Interaction, Option<&Item>, Option<&str>)],
) -> ChatRequest {
    let history: Vec<Value> = history
        .iter()
        .map(|(interaction, item, profile)| {
            let mut shown = serde_json::Map::new();
            if let Some(title) = item.and_then(|item| item.title.as_deref()) {
                shown.insert("title".into(), excerpt(title, 200).into());
            }
            if let Some(profile) = profile {
                shown.insert("profile".into(), excerpt(profile, DESCRIPTION_CHARS).into());
            }
            if let Value::Object(said) = feedback(interaction) {
                shown.extend(said);
            }
            Value::Object(shown)
        })
        .collect();
    let text = prompts.initial_user.render(&[
        ("words", &words.profile.to_string()),
        ("history", &fence("history", &history)),
    ]);
    profile_request(text, words, "This user enjoys").prefix_group("initial user")
}

/// Asks what the sampled neighbours of a node share. `neighbors` are their profiles of the layer below, in the order of
/// the sample.
#[must_use]
pub fn aggregate_request(
    prompts: &Prompts,
    words: WordLimits,
    side: Side,
    target: Option<&str>,
    neighbors: &[&str],
) -> ChatRequest {
    let target: Vec<Value> = target
        .map(|profile| json!({ "profile": profile }))
        .into_iter()
        .collect();
    let neighbors: Vec<Value> = neighbors
        .iter()
        .map(|profile| json!({ "profile": profile }))
        .collect();
    let text = prompts.aggregate.render(&[
        ("kind", side.as_str()),
        ("neighbors_kind", plural(side.other())),
        ("words", &words.shared.to_string()),
        ("target", &fence("target", &target)),
        ("neighbors", &fence("neighbors", &neighbors)),
    ]);
    let schema = json!({
        "type": "object",
        "properties": {
            "shared": {
                "type": "string",
                "minLength": 1,
                "maxLength": WordLimits::chars(words.shared),
                "description": format!("what the neighbours share, at most {} words", words.shared),
            },
        },
        "required": ["shared"],
        "additionalProperties": false,
    });
    ask(text)
        .schema("shared", schema)
        .prefix_group(format!("aggregate {side}"))
}

/// Asks for the profile of the next layer. `initial` is the node's layer-0 profile, `current` that of the layer below,
/// left out where the two are the same.
#[must_use]
pub fn update_request(
    prompts: &Prompts,
    words: WordLimits,
    side: Side,
    initial: Option<&str>,
    current: Option<&str>,
    shared: &str,
) -> ChatRequest {
    let current = current.filter(|current| Some(*current) != initial);
    let text = prompts.update.render(&[
        ("kind", side.as_str()),
        ("neighbors_kind", plural(side.other())),
        ("words", &words.profile.to_string()),
        ("initial", &fence("initial", &initial)),
        ("current", &fence("current", &current.or(initial))),
        ("shared", &fence("shared", shared)),
    ]);
    let lead = match side {
        Side::User => "This user enjoys",
        Side::Item => "Suits people who",
    };
    // The same at every layer: instructions and schema do not know of layers.
    profile_request(text, words, lead).prefix_group(format!("update {side}"))
}

/// Reads a profile out of an answer of [`initial_item_request`], [`initial_user_request`] or [`update_request`].
///
/// # Errors
/// When the answer is not that JSON object or its summary is empty; the text says which.
pub fn parse_profile(answer: &str) -> Result<Profile, String> {
    let profile: Profile = parse(answer)?;
    let summary = profile.summary.trim();
    if summary.is_empty() {
        return Err("the summary is empty".into());
    }
    let reasoning = profile
        .reasoning
        .map(|reasoning| reasoning.trim().to_owned());
    Ok(Profile {
        summary: summary.to_owned(),
        reasoning: reasoning.filter(|reasoning| !reasoning.is_empty()),
    })
}

/// Reads what the neighbours share out of an answer of [`aggregate_request`].
///
/// # Errors
/// When the answer is not that JSON object or its text is empty; the text says which.
pub fn parse_shared(answer: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Shared {
        shared: String,
    }
    let Shared { shared } = parse(answer)?;
    match shared.trim() {
        "" => Err("the shared text is empty".into()),
        shared => Ok(shared.to_owned()),
    }
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a str) -> Result<T, String> {
    serde_json::from_str(answer).map_err(|error| error.to_string())
}

fn profile_request(text: String, words: WordLimits, lead: &str) -> ChatRequest {
    let chars = WordLimits::chars(words.profile);
    let schema = json!({
        "type": "object",
        "properties": {
            "summary": {
                "type": "string",
                "minLength": 1,
                "maxLength": chars,
                "description": format!("the profile, at most {} words; begin with \"{lead}\"", words.profile),
            },
            "reasoning": {
                "type": "string",
                "maxLength": chars / 2,
                "description": "one or two sentences: what in the data supports the profile",
            },
        },
        "required": ["summary", "reasoning"],
        "additionalProperties": false,
    });
    ask(text).schema("profile", schema)
}

fn ask(text: String) -> ChatRequest {
    ChatRequest::new(vec![Message::user(text)]).sampling(Sampling {
        temperature: Some(0.0),
        max_tokens: Some(2048),
        ..Sampling::default()
    })
}

fn plural(side: Side) -> &'static str {
    match side {
        Side::User => "users",
        Side::Item => "items",
    }
}

fn feedback(interaction: &Interaction) -> Value {
    let mut said = serde_json::Map::new();
    if let Some(rating) = interaction.rating {
        said.insert("rating".into(), json!(rating));
    }
    if let Some(review) = interaction
        .review
        .as_deref()
        .filter(|review| !review.trim().is_empty())
    {
        said.insert("review".into(), excerpt(review, REVIEW_CHARS).into());
    }
    Value::Object(said)
}

/// Attributes come from data and may be anything: strings are cut, lists and maps keep their first twenty entries.
fn bounded(value: &Value) -> Value {
    const ENTRIES: usize = 20;
    match value {
        Value::String(text) => excerpt(text, 300).into(),
        Value::Array(list) => list.iter().take(ENTRIES).map(bounded).collect(),
        Value::Object(map) => Value::Object(
            map.iter()
                .take(ENTRIES)
                .map(|(key, value)| (excerpt(key, 60), bounded(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_really_seen_are_read_or_refused() {
        let read =
            parse_profile(r#"{"summary": " Likes quiet games. ", "reasoning": ""}"#).unwrap();
        assert_eq!(
            read,
            Profile {
                summary: "Likes quiet games.".into(),
                reasoning: None
            }
        );
        assert!(
            parse_profile(r#"{"summary": "  ", "reasoning": "x"}"#)
                .unwrap_err()
                .contains("empty")
        );
        assert!(parse_profile("None").is_err());
        assert!(
            parse_shared(r#"{"summary": "wrong key"}"#)
                .unwrap_err()
                .contains("shared")
        );
    }

    #[test]
    fn the_initial_profile_is_in_every_update() {
        let prompts = Prompts::default();
        let ask = |current| {
            update_request(
                &prompts,
                WordLimits::default(),
                Side::User,
                Some("first words"),
                current,
                "common ground",
            )
        };
        for request in [ask(Some("later words")), ask(None)] {
            assert!(
                request.messages[0]
                    .content
                    .contains("<data name=\"initial\">\n\"first words\"\n</data>")
            );
        }
    }

    #[test]
    fn whatever_is_the_same_for_a_group_comes_before_what_is_not() {
        let prompts = Prompts::default();
        let words = WordLimits::default();
        let mut groups = std::collections::BTreeMap::<String, Vec<ChatRequest>>::new();
        for own in ["one", "another"] {
            let item = Item {
                item: own.into(),
                title: Some(own.to_owned()),
                description: None,
                profile: None,
                attributes: because_core::Attributes::new(),
            };
            let interaction = Interaction::new(own, own);
            let mut asked = vec![
                initial_item_request(&prompts, words, &item, std::slice::from_ref(&interaction)),
                initial_user_request(&prompts, words, &[(&interaction, Some(&item), Some(own))]),
            ];
            for side in [Side::User, Side::Item] {
                asked.push(aggregate_request(&prompts, words, side, Some(own), &[own]));
                asked.push(update_request(&prompts, words, side, Some(own), None, own));
            }
            for request in asked {
                let group = request.prefix_group.clone().unwrap();
                groups.entry(group).or_default().push(request);
            }
        }
        let names: Vec<&str> = groups.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "aggregate item",
                "aggregate user",
                "initial item",
                "initial user",
                "update item",
                "update user"
            ]
        );
        for (name, requests) in &groups {
            let [one, another] = requests.as_slice() else {
                panic!("{name} has {} requests", requests.len());
            };
            assert_eq!(one.schema, another.schema, "{name}");
            let fixed = |request: &ChatRequest| {
                let text = &request.messages[0].content;
                text[..text.find("<data name").unwrap()].to_owned()
            };
            assert_eq!(fixed(one), fixed(another), "{name}");
            assert_ne!(one.messages, another.messages, "{name}");
        }
    }

    #[test]
    fn a_template_that_lost_its_data_is_refused() {
        let error = Prompts::new("{words} {item}", "{words} {history}", "", "").unwrap_err();
        assert!(matches!(
            error,
            Error::Prompt {
                name: "initial-item",
                ..
            }
        ));
    }
}
