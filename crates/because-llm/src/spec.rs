use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ChatError, ChatModel, Offline, Replay, Result};

/// Which model to use, in one word: what `--llm` takes and `because.toml` holds.
///
/// ```
/// use because_llm::ModelSpec;
///
/// let spec: ModelSpec = "openai:qwen@http://127.0.0.1:8080/v1".parse()?;
/// assert_eq!(
///     spec,
///     ModelSpec::OpenAi { model: "qwen".into(), url: Some("http://127.0.0.1:8080/v1".into()) }
/// );
/// assert_eq!(spec.to_string(), "openai:qwen@http://127.0.0.1:8080/v1");
/// # Ok::<(), because_llm::ModelSpecError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ModelSpec {
    /// `offline`: the extractive model inside this program.
    #[default]
    Offline,
    /// `openai:MODEL` or `openai:MODEL@URL`: a server that speaks OpenAI's protocol.
    OpenAi {
        /// The model's name on that server.
        model: String,
        /// The base URL; without it, `OPENAI_BASE_URL` or OpenAI's own.
        url: Option<String>,
    },
    /// `qwen:PATH-OR-HUB-ID` or `qwen:PATH-OR-HUB-ID+ADAPTER`: Qwen2.5 on this machine. Cut at the last `+`, unless all of it
    /// is a path that there is.
    Qwen {
        /// A folder, a GGUF file or a hub id.
        base: String,
        /// The folder of a LoRA adapter.
        adapter: Option<PathBuf>,
    },
    /// `replay:FILE`: a recording.
    Replay {
        /// The recording.
        file: PathBuf,
    },
}

/// A model's name that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelSpecError {
    /// The part before the colon is none that we know.
    #[error(
        "model {0:?} is none of offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER], replay:FILE"
    )]
    Unknown(String),
    /// Something has to follow.
    #[error("{0} lacks {1}, as in {2}")]
    Lacks(&'static str, &'static str, &'static str),
    /// What stands behind the `@` is no URL.
    #[error("{0:?} behind the @ is no URL; it begins with http:// or https://")]
    Url(String),
    /// A secret in the URL would end in artefacts and logs.
    #[error(
        "the URL holds a user, a password or a key; put it into OPENAI_API_KEY, or the whole URL into OPENAI_BASE_URL"
    )]
    Secret,
}

impl ModelSpec {
    /// Opens the model, bare: see [`ModelStack`](crate::ModelStack) for what belongs around it.
    ///
    /// # Errors
    /// When a recording cannot be read, a URL or key is wrong, this program was built without the `openai` feature, or for
    /// [`Qwen`](Self::Qwen), which `because-tune` opens.
    pub fn open(&self) -> Result<Box<dyn ChatModel>> {
        match self {
            Self::Offline => Ok(Box::new(Offline)),
            Self::OpenAi { model, url } => open_openai(model, url.as_deref()),
            Self::Replay { file } => Ok(Box::new(Replay::open(file)?)),
            Self::Qwen { .. } => Err(ChatError::Permanent {
                status: None,
                message: format!("{self} runs on this machine and is opened by because-tune"),
            }),
        }
    }
}

#[cfg(feature = "openai")]
fn open_openai(model: &str, url: Option<&str>) -> Result<Box<dyn ChatModel>> {
    let builder = crate::OpenAi::from_env(model);
    let builder = match url {
        Some(url) => builder.base_url(url),
        None => builder,
    };
    Ok(Box::new(builder.build()?))
}

#[cfg(not(feature = "openai"))]
fn open_openai(model: &str, _: Option<&str>) -> Result<Box<dyn ChatModel>> {
    Err(ChatError::Permanent {
        status: None,
        message: format!(
            "openai:{model} needs the feature `openai`, which this program was built without"
        ),
    })
}

impl FromStr for ModelSpec {
    type Err = ModelSpecError;

    fn from_str(text: &str) -> Result<Self, ModelSpecError> {
        let text = text.trim();
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, rest.trim()),
            None => (text, ""),
        };
        match (kind, rest) {
            ("offline", "") if !text.contains(':') => Ok(Self::Offline),
            ("openai", "") => Err(ModelSpecError::Lacks(
                "openai",
                "a model",
                "openai:gpt-4o-mini",
            )),
            ("openai", rest) => openai(rest),
            ("qwen", "") => Err(ModelSpecError::Lacks(
                "qwen",
                "a folder, a GGUF file or a hub id",
                "qwen:models/qwen2.5",
            )),
            ("qwen", rest) => qwen(rest),
            ("replay", "") => Err(ModelSpecError::Lacks(
                "replay",
                "a file",
                "replay:exchanges.jsonl",
            )),
            ("replay", file) => Ok(Self::Replay { file: file.into() }),
            _ => Err(ModelSpecError::Unknown(text.to_owned())),
        }
    }
}

fn openai(rest: &str) -> Result<ModelSpec, ModelSpecError> {
    const EXAMPLE: &str = "openai:qwen@http://127.0.0.1:8080/v1";
    let at = ["@http://", "@https://"]
        .iter()
        .filter_map(|at| rest.find(at))
        .min();
    let (model, url) = match at {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    if model.is_empty() {
        return Err(ModelSpecError::Lacks(
            "openai",
            "a model before the @",
            EXAMPLE,
        ));
    }
    if let Some(url) = url {
        let authority = url.split("://").nth(1).unwrap_or_default();
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(ModelSpecError::Url(url.to_owned()));
        }
        // A password with a slash in it ends what looks like host and port.
        let no_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.ends_with(']') && port.parse::<u16>().is_err());
        if authority.contains('@') || (no_port && url.contains('@')) || has_secret(url) {
            return Err(ModelSpecError::Secret);
        }
    } else if let Some((_, tail)) = rest.split_once('@')
        // Some names hold an @ of their own (`@cf/...`, `name@20250101`); a host has a port or a path or a dot.
        && !rest.starts_with('@')
        && (tail.is_empty() || tail.contains([':', '/', '.']) || tail == "localhost")
    {
        return Err(ModelSpecError::Url(tail.to_owned()));
    }
    Ok(ModelSpec::OpenAi {
        model: model.to_owned(),
        url: url.map(str::to_owned),
    })
}

/// Whether a parameter of the URL is named as secrets are: a spec is written into artefacts, as it is.
fn has_secret(url: &str) -> bool {
    const NAMES: [&str; 9] = [
        "key",
        "token",
        "sig",
        "signature",
        "secret",
        "password",
        "code",
        "auth",
        "credential",
    ];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split(['&', '#']).any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        name.split(['-', '_', '.', '%'])
            .any(|word| NAMES.contains(&word) || word == "apikey")
    })
}

fn qwen(rest: &str) -> Result<ModelSpec, ModelSpecError> {
    let (base, adapter) = match rest.rsplit_once('+') {
        Some((base, adapter)) if !Path::new(rest).exists() => (base, Some(adapter)),
        _ => (rest, None),
    };
    if base.is_empty() {
        return Err(ModelSpecError::Lacks(
            "qwen",
            "a base model before the +",
            "qwen:models/qwen2.5+adapter",
        ));
    }
    if adapter == Some("") {
        return Err(ModelSpecError::Lacks(
            "qwen",
            "an adapter behind the +",
            "qwen:models/qwen2.5+adapter",
        ));
    }
    Ok(ModelSpec::Qwen {
        base: base.to_owned(),
        adapter: adapter.map(PathBuf::from),
    })
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => write!(f, "offline"),
            Self::OpenAi { model, url: None } => write!(f, "openai:{model}"),
            Self::OpenAi {
                model,
                url: Some(url),
            } => write!(f, "openai:{model}@{url}"),
            Self::Qwen {
                base,
                adapter: None,
            } => write!(f, "qwen:{base}"),
            Self::Qwen {
                base,
                adapter: Some(adapter),
            } => write!(f, "qwen:{base}+{}", adapter.display()),
            Self::Replay { file } => write!(f, "replay:{}", file.display()),
        }
    }
}

impl TryFrom<String> for ModelSpec {
    type Error = ModelSpecError;

    fn try_from(text: String) -> Result<Self, ModelSpecError> {
        text.parse()
    }
}

impl From<ModelSpec> for String {
    fn from(spec: ModelSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_and_written_back() {
        for text in [
            "offline",
            "openai:gpt-4o-mini",
            "openai:@cf/meta/llama-3",
            "openai:sonnet@20250101",
            "openai:deepseek-reasoner@https://api.deepseek.com/v1",
            "openai:org/model:free@http://[::1]:8080/v1?version=2",
            "qwen:Qwen/Qwen2.5-0.5B",
            "qwen:/models/qwen.gguf+runs/adapter",
            "replay:tests/data/tape.jsonl",
        ] {
            let spec: ModelSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<ModelSpec>(&json).unwrap(), spec);
        }
        assert_eq!(" offline ".parse(), Ok(ModelSpec::Offline));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let wrong = [
            "",
            "gpt-4o",
            "offline:",
            "openai",
            "openai:",
            "openai:@http://a",
            "openai:qwen@127.0.0.1:8080/v1",
            "openai:qwen@",
            "openai:qwen@http:///v1",
            "openai:qwen@http://me:secret@host/v1",
            "openai:qwen@http://me:sec/ret@host/v1",
            "openai:qwen@https://host/v1?v=2&api-key=hush",
            "qwen:",
            "qwen:base+",
            "qwen:+adapter",
            "replay:",
            "gemini:x",
        ];
        let said: Vec<String> = wrong
            .iter()
            .map(|text| format!("{text:?}: {}", text.parse::<ModelSpec>().unwrap_err()))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        "": model "" is none of offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER], replay:FILE
        "gpt-4o": model "gpt-4o" is none of offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER], replay:FILE
        "offline:": model "offline:" is none of offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER], replay:FILE
        "openai": openai lacks a model, as in openai:gpt-4o-mini
        "openai:": openai lacks a model, as in openai:gpt-4o-mini
        "openai:@http://a": openai lacks a model before the @, as in openai:qwen@http://127.0.0.1:8080/v1
        "openai:qwen@127.0.0.1:8080/v1": "127.0.0.1:8080/v1" behind the @ is no URL; it begins with http:// or https://
        "openai:qwen@": "" behind the @ is no URL; it begins with http:// or https://
        "openai:qwen@http:///v1": "http:///v1" behind the @ is no URL; it begins with http:// or https://
        "openai:qwen@http://me:secret@host/v1": the URL holds a user, a password or a key; put it into OPENAI_API_KEY, or the whole URL into OPENAI_BASE_URL
        "openai:qwen@http://me:sec/ret@host/v1": the URL holds a user, a password or a key; put it into OPENAI_API_KEY, or the whole URL into OPENAI_BASE_URL
        "openai:qwen@https://host/v1?v=2&api-key=hush": the URL holds a user, a password or a key; put it into OPENAI_API_KEY, or the whole URL into OPENAI_BASE_URL
        "qwen:": qwen lacks a folder, a GGUF file or a hub id, as in qwen:models/qwen2.5
        "qwen:base+": qwen lacks an adapter behind the +, as in qwen:models/qwen2.5+adapter
        "qwen:+adapter": qwen lacks a base model before the +, as in qwen:models/qwen2.5+adapter
        "replay:": replay lacks a file, as in replay:exchanges.jsonl
        "gemini:x": model "gemini:x" is none of offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER], replay:FILE
        "#);
    }

    #[test]
    fn a_path_with_a_plus_in_it_is_one_base_where_there_is_such_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let merged = folder.path().join("qwen+merged");
        let text = format!("qwen:{}", merged.display());
        let adapter = |text: &str| match text.parse().unwrap() {
            ModelSpec::Qwen { adapter, .. } => adapter,
            other => panic!("{other}"),
        };
        assert_eq!(adapter(&text), Some("merged".into()));
        std::fs::create_dir(&merged).unwrap();
        assert_eq!(adapter(&text), None);
        assert_eq!(adapter(&format!("{text}+taste")), Some("taste".into()));
        assert_eq!(text.parse::<ModelSpec>().unwrap().to_string(), text);
    }

    #[test]
    fn a_local_model_is_opened_elsewhere() {
        let error = "qwen:models/x"
            .parse::<ModelSpec>()
            .unwrap()
            .open()
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains("because-tune"), "{error}");
    }
}
