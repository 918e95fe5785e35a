use serde::{Deserialize, Serialize};

/// How a server is asked for an answer in a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StructuredOutput {
    /// Only in the prompt.
    Instructions,
    /// For a JSON object, with the schema in the prompt.
    JsonObject,
    /// With the schema without its bounds on the length of texts, which some strict servers do not take.
    JsonSchemaWithoutLengths,
    /// With the schema itself, which the server keeps to.
    JsonSchema,
}

/// What a server calls the most tokens that an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenLimit {
    /// The old name, which nearly all servers take.
    MaxTokens,
    /// OpenAI's newer one, the only one that its reasoning models take.
    MaxCompletionTokens,
}

/// The servers whose ways are known. They differ in what they take beside the messages, not in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Server {
    /// OpenAI itself.
    OpenAi,
    /// DeepSeek's own API.
    DeepSeek,
    /// vLLM.
    Vllm,
    /// llama.cpp's server.
    LlamaCpp,
    /// Ollama, under `/v1`.
    Ollama,
    /// Anything else: the least that is common to all, tried from the top.
    Generic,
}

/// What is known beforehand of how a server wants to be asked. A field left out is taken from the table of [`Server`]s, and
/// what a server then refuses is learnt while the run goes on, so that this is needed only for one that takes something and
/// ignores it. None of it is part of a request's key: the same question has the same cached answer in every dialect.
///
/// ```
/// use because_llm::{Dialect, Server, StructuredOutput};
///
/// let dialect: Dialect = serde_json::from_str(r#"{"server": "llama-cpp", "structured": "json_object"}"#)?;
/// assert_eq!(dialect.server, Some(Server::LlamaCpp));
/// assert_eq!(dialect.structured, Some(StructuredOutput::JsonObject));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Dialect {
    /// Which server it is, where its address does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// What to ask for first when an answer needs a shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured: Option<StructuredOutput>,
    /// The name of the token limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_limit: Option<TokenLimit>,
    /// Whether it takes a `seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<bool>,
    /// Whether it takes `temperature` and `top_p`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<bool>,
    /// Whether it takes a `prompt_cache_key`, which sends calls with the same beginning to the same machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_cache_key: Option<bool>,
}

/// One row of the table: how a server is recognised, and how it is asked.
#[cfg(feature = "openai")]
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) server: Server,
    /// Its address ends so.
    hosts: &'static [&'static str],
    /// Its port, unless somebody chose another.
    ports: &'static [u16],
    /// What it calls itself in the header `server`.
    names: &'static [&'static str],
    /// Models that only it has.
    models: &'static [&'static str],
    pub(crate) structured: StructuredOutput,
    pub(crate) token_limit: TokenLimit,
    pub(crate) seed: bool,
    pub(crate) prompt_cache_key: bool,
    /// A prompt that is too long loses its beginning without a word.
    pub(crate) truncates: bool,
}

/// What nearly all of them have in common.
#[cfg(feature = "openai")]
const COMMON: Ways = Ways {
    server: Server::Generic,
    hosts: &[],
    ports: &[],
    names: &[],
    models: &[],
    structured: StructuredOutput::JsonSchema,
    token_limit: TokenLimit::MaxTokens,
    seed: true,
    prompt_cache_key: false,
    truncates: false,
};

/// The known servers; the last one is whatever is not known. Reasoning needs no column: it is read from all the places
/// where servers put it (`reasoning_content`, `reasoning`, `<think>` in the text).
#[cfg(feature = "openai")]
static TABLE: [Ways; 6] = [
    Ways {
        server: Server::OpenAi,
        hosts: &["api.openai.com"],
        token_limit: TokenLimit::MaxCompletionTokens,
        prompt_cache_key: true,
        ..COMMON
    },
    Ways {
        server: Server::DeepSeek,
        hosts: &["api.deepseek.com"],
        models: &["deepseek-chat", "deepseek-reasoner"],
        structured: StructuredOutput::JsonObject,
        // Its API has no such field.
        seed: false,
        ..COMMON
    },
    Ways {
        server: Server::Ollama,
        ports: &[11434],
        truncates: true,
        ..COMMON
    },
    Ways {
        server: Server::LlamaCpp,
        ports: &[8080],
        names: &["llama.cpp"],
        ..COMMON
    },
    Ways {
        server: Server::Vllm,
        ports: &[8000],
        names: &["vllm"],
        ..COMMON
    },
    COMMON,
];

/// OpenAI's families of reasoning models, which take no other name for the limit, and no temperature.
#[cfg(feature = "openai")]
const REASONING_FAMILIES: [&str; 4] = ["o1", "o3", "o4", "gpt-5"];

#[cfg(feature = "openai")]
impl Ways {
    pub(crate) fn of(server: Server) -> &'static Self {
        let row = TABLE.iter().find(|ways| ways.server == server);
        row.unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// By its address, then by a model that only it has, then by its port.
    pub(crate) fn at(host: &str, port: Option<u16>, model: &str) -> &'static Self {
        let by = |is: &dyn Fn(&Ways) -> bool| TABLE.iter().find(|ways| is(ways));
        by(&|ways| ways.hosts.contains(&host))
            .or_else(|| by(&|ways| ways.models.contains(&model)))
            .or_else(|| port.and_then(|port| by(&|ways| ways.ports.contains(&port))))
            .unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// By what it calls itself.
    pub(crate) fn named(header: &str) -> Option<&'static Self> {
        let header = header.to_ascii_lowercase();
        TABLE
            .iter()
            .find(|ways| ways.names.iter().any(|name| header.starts_with(name)))
    }
}

/// Whether a model is one of OpenAI's that reason, wherever it is served.
#[cfg(feature = "openai")]
pub(crate) fn reasons(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    REASONING_FAMILIES.iter().any(|family| {
        name.strip_prefix(family)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    })
}

#[cfg(all(test, feature = "openai"))]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_address_its_model_its_port_or_its_name() {
        let at = |host, port, model| Ways::at(host, port, model).server;
        assert_eq!(at("api.openai.com", None, "gpt-4o"), Server::OpenAi);
        assert_eq!(at("api.deepseek.com", None, "x"), Server::DeepSeek);
        assert_eq!(
            at("gateway.example", Some(8080), "deepseek-reasoner"),
            Server::DeepSeek
        );
        assert_eq!(at("127.0.0.1", Some(11434), "qwen2.5"), Server::Ollama);
        assert_eq!(at("127.0.0.1", Some(8000), "qwen"), Server::Vllm);
        assert_eq!(at("127.0.0.1", Some(8080), "qwen"), Server::LlamaCpp);
        assert_eq!(
            at("evil-api.openai.com.example", None, "m"),
            Server::Generic
        );
        assert_eq!(Ways::named("llama.cpp").unwrap().server, Server::LlamaCpp);
        assert!(Ways::named("nginx/1.2").is_none());
        assert_eq!(Ways::of(Server::Ollama).server, Server::Ollama);
        assert_eq!(Ways::of(Server::Generic).server, Server::Generic);
    }

    #[test]
    fn reasoning_models_are_known_by_their_names() {
        assert!(
            [
                "o1",
                "o3-mini",
                "openai/o4-mini",
                "gpt-5",
                "gpt-5.1",
                "gpt-5-nano"
            ]
            .into_iter()
            .all(reasons)
        );
        assert!(
            !["gpt-4o", "o10x", "olmo", "qwen2.5", "openchat/o", "gpt-50"]
                .into_iter()
                .any(reasons)
        );
    }
}
