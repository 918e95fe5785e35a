use std::path::PathBuf;

use clap::Args;

use super::size;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A folder with a Qwen2.5 checkpoint, a GGUF file, a hub id (owner/name or owner/name@revision), or `tiny` with --adapter
    /// for the base that the adapter was trained on.
    #[arg(long)]
    pub(crate) base: String,
    /// A LoRA adapter in PEFT's format, by its folder's name or the one given here; may be given again. A request chooses by
    /// `model`.
    #[arg(long, value_name = "[NAME=]DIR", value_parser = adapter)]
    pub(crate) adapter: Vec<(String, PathBuf)>,
    /// The name of the base; that of its folder where it is not said.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where to listen. Anything but this machine's own address lets others ask: say --api-key-env too.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port; 0 for any free one.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// A name that the header Host may have, beside localhost and this machine's loopback addresses, where neither --host nor a
    /// key opens the server to others; may be given again.
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    /// Answer only who sends the key in this environment variable, as Authorization: Bearer.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) api_key_env: Option<String>,
    /// Threads that compute; one for each core where it is not said.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Tokens of an answer at most, and where a request says nothing.
    #[arg(long, default_value_t = 4096)]
    pub(crate) max_tokens: usize,
    /// How freely tokens are drawn where a request says nothing; 0 takes the likeliest every time.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// The seed of the first request without one, or with -1; the next has the next.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Answers written at once.
    #[arg(long, default_value_t = 32)]
    pub(crate) rows: usize,
    /// Requests that may wait beside those; the next is refused with 429.
    #[arg(long, default_value_t = 256)]
    pub(crate) queue: usize,
    /// Memory for keys and values, as in 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GiB")]
    pub(crate) cache: u64,
    /// The body of a request at most, as in 1MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1MiB")]
    pub(crate) max_body: u64,
    /// Seconds in which answers under way may end once the server is told to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
}

/// `NAME=DIR`, or a folder that gives the name.
fn adapter(text: &str) -> Result<(String, PathBuf), String> {
    let folder = PathBuf::from(text);
    match text.split_once('=') {
        Some((name, folder)) if !name.contains(['/', '\\']) && !PathBuf::from(text).is_dir() => {
            if name.is_empty() || folder.is_empty() {
                return Err("is not of the form NAME=DIR".to_owned());
            }
            Ok((name.to_owned(), PathBuf::from(folder)))
        }
        _ => {
            let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            let name = whole
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let name = name.ok_or_else(|| "has no name; say NAME=DIR".to_owned())?;
            Ok((name, folder))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_the_name_given_or_that_of_its_folder() {
        for (text, name, folder) in [
            ("runs/best", "best", "runs/best"),
            ("short=runs/best", "short", "runs/best"),
            ("runs/rank=8", "rank=8", "runs/rank=8"),
        ] {
            assert_eq!(adapter(text), Ok((name.to_owned(), folder.into())));
        }
        assert!(adapter("=x").is_err());
    }
}
