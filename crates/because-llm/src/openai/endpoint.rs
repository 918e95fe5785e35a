use std::fmt;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};

use crate::ChatResponse;

/// A secret, trimmed, and what else of an endpoint is nobody's business. Nothing prints it.
#[derive(Clone, Default)]
pub(super) struct ApiKey {
    key: String,
    /// Every secret as it looks in a text, in a URL and in JSON; the longest first.
    hidden: Vec<String>,
}

impl ApiKey {
    pub(super) fn new(key: impl AsRef<str>) -> Self {
        let key = key.as_ref().trim().to_owned();
        let mut own = Self::default();
        own.hide(&key);
        own.key = key;
        own
    }

    pub(super) fn is_empty(&self) -> bool {
        self.key.is_empty()
    }

    pub(super) fn reveal(&self) -> &str {
        &self.key
    }

    /// This is not to be repeated either.
    fn hide(&mut self, secret: &str) {
        const SHORTEST: usize = 4;
        // What people write where a local server wants just anything would be found in every other word.
        if secret.len() < SHORTEST {
            return;
        }
        let percent = |upper: bool| -> String {
            let encoded = |byte: u8| match byte {
                b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                byte if upper => format!("%{byte:02X}"),
                byte => format!("%{byte:02x}"),
            };
            secret.bytes().map(encoded).collect()
        };
        self.hidden.extend([
            secret.to_owned(),
            percent(true),
            percent(false),
            secret.replace('/', "\\/"),
            // The same once more in quotes, as an excerpt of JSON is shown.
            secret.replace('/', "\\\\/"),
        ]);
        self.hidden
            .sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.hidden.dedup();
    }

    /// The text without the secrets, which some servers repeat in their refusal.
    pub(super) fn redact(&self, text: &str) -> String {
        self.hidden.iter().fold(text.to_owned(), |text, secret| {
            match text.contains(secret) {
                true => text.replace(secret, "***"),
                false => text,
            }
        })
    }

    /// The answer without the secrets: a server that gives back what it was sent gives it back to a store and to files.
    pub(super) fn redact_answer(&self, response: &mut ChatResponse) {
        let ChatResponse {
            answer,
            reasoning,
            finish_reason,
            model,
            ..
        } = response;
        for text in [
            Some(answer),
            reasoning.as_mut(),
            finish_reason.as_mut(),
            model.as_mut(),
        ]
        .into_iter()
        .flatten()
        {
            if self.hidden.iter().any(|secret| text.contains(secret)) {
                *text = self.redact(text);
            }
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "***" })
    }
}

/// A base URL as it was given, with whatever secrets are in it.
#[derive(Clone)]
pub(super) struct BaseUrl(pub(super) String);

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Endpoint::parse(&self.0, ApiKey::default()) {
            Ok(endpoint) => endpoint.label.fmt(f),
            Err(_) => f.write_str("not a URL"),
        }
    }
}

/// A base URL taken apart: what is called, what is shown, and what is secret.
pub(super) struct Endpoint {
    /// Without user, query and slash at the end.
    pub(super) base: String,
    /// The same, for people, artefacts and keys of cached answers.
    pub(super) label: String,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) query: Vec<(String, String)>,
    pub(super) key: ApiKey,
    /// The header, marked as sensitive; `None` where there is neither a key nor a user.
    pub(super) authorization: Option<HeaderValue>,
    on_this_machine: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("label", &self.label)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn parse(text: &str, mut key: ApiKey) -> Result<Self, String> {
        // The text may hold a password, so no message repeats it before it is taken apart.
        let mut url = Url::parse(text.trim())
            .map_err(|error| format!("the base URL cannot be read: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!(
                "the base URL has to begin with http:// or https://, not {}:",
                url.scheme()
            ));
        }
        // A password with a sign of its own can only stand encoded in a URL, and is sent as it is.
        let user = (!url.username().is_empty()).then(|| {
            (
                percent_decoded(url.username()),
                url.password().map(percent_decoded),
            )
        });
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let failed = |()| "the base URL cannot hold a user".to_owned();
        url.set_username("").map_err(failed)?;
        url.set_password(None).map_err(failed)?;
        url.set_query(None);
        url.set_fragment(None);
        let base = url.as_str().trim_end_matches('/').to_owned();
        let password = user.as_ref().and_then(|(_, password)| password.as_deref());
        if let Some(password) = password {
            key.hide(password);
        }
        for (name, value) in &query {
            let name = name.to_ascii_lowercase();
            let secret = ["key", "token", "sig", "secret", "pass", "auth", "code"];
            if secret.iter().any(|word| name.contains(word)) {
                key.hide(value);
            }
        }
        let authorization = authorization(&base, &key, user)?;
        let basic = authorization.as_ref().and_then(|header| {
            let header = header.to_str().ok()?;
            header.strip_prefix("Basic ").map(str::to_owned)
        });
        if let Some(basic) = basic {
            key.hide(&basic);
        }
        Ok(Self {
            authorization,
            on_this_machine: match url.host_str().unwrap_or_default() {
                "localhost" | "[::1]" => true,
                host => host.starts_with("127."),
            },
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port(),
            label: base.clone(),
            base,
            query,
            key,
        })
    }

    pub(super) fn client(&self, timeout: Duration) -> Result<reqwest::Client, String> {
        let builder = reqwest::Client::builder()
            // One HTTP/2 connection would carry all calls, and servers bound the calls on one.
            .http1_only()
            .connect_timeout(Duration::from_secs(10).min(timeout))
            // From end to end: a server that keeps a slow call alive with empty lines is never idle.
            .timeout(timeout)
            // A redirected POST becomes a GET; better to say where the server wants to be found.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("because/", env!("CARGO_PKG_VERSION")));
        let builder = if self.on_this_machine {
            builder.no_proxy()
        } else {
            builder
        };
        builder
            .build()
            .map_err(|error| format!("{}: no HTTP client: {}", self.label, chain(&error)))
    }
}

/// An error with everything below it, which is where the reason is.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let encoded = (*first == b'%')
            .then(|| std::str::from_utf8(others.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(encoded.unwrap_or(*first));
        rest = &others[if encoded.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn authorization(
    base: &str,
    key: &ApiKey,
    user: Option<(String, Option<String>)>,
) -> Result<Option<HeaderValue>, String> {
    let mut header = if !key.is_empty() {
        HeaderValue::from_str(&format!("Bearer {}", key.reveal())).map_err(|_| {
            "the API key holds a line break or another character that no header may hold; check OPENAI_API_KEY".to_owned()
        })?
    } else if let Some((user, password)) = user {
        let request = reqwest::Client::new()
            .get(base)
            .basic_auth(user, password)
            .build();
        let header = request
            .ok()
            .and_then(|request| request.headers().get(AUTHORIZATION).cloned());
        header.ok_or("the user in the base URL cannot stand in a header")?
    } else {
        return Ok(None);
    };
    header.set_sensitive(true);
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_has_no_secrets_and_the_rest_is_sent() {
        let endpoint = Endpoint::parse(
            "https://me:hush@host:8443/v1/?api-version=2&sig=s#x",
            ApiKey::default(),
        )
        .unwrap();
        assert_eq!(endpoint.label, "https://host:8443/v1");
        assert_eq!(
            endpoint.query,
            [
                ("api-version".into(), "2".into()),
                ("sig".into(), "s".into())
            ]
        );
        // base64 of "me:hush"
        assert_eq!(
            endpoint.authorization.as_ref().unwrap(),
            "Basic bWU6aHVzaA=="
        );
        assert!(!format!("{:?}", (&endpoint.label, &endpoint.authorization)).contains("bWU6"));
    }

    #[test]
    fn every_secret_is_taken_out_in_every_form_and_nothing_else_is() {
        let key = ApiKey::new("sk-1+2/3");
        let endpoint =
            Endpoint::parse("http://me:hush@h/v1?version=2024&sig=a%2Bbcd", key).unwrap();
        let said = "sk-1+2/3 sk-1%2B2%2F3 sk-1%2b2%2f3 sk-1+2\\/3 hush a+bcd version=2024 me";
        assert_eq!(
            endpoint.key.redact(said),
            "*** *** *** *** *** *** version=2024 me"
        );
        assert_eq!(ApiKey::new("x").redact("text"), "text");
    }

    #[test]
    fn a_key_is_trimmed_checked_and_never_printed() {
        let endpoint = Endpoint::parse("http://h/v1", ApiKey::new(" sk-1 \n")).unwrap();
        assert_eq!(endpoint.authorization.as_ref().unwrap(), "Bearer sk-1");
        assert!(!format!("{endpoint:?}").contains("sk-1"));
        let error = Endpoint::parse("http://h/v1", ApiKey::new("sk-1\nsk-2")).unwrap_err();
        assert!(
            error.contains("OPENAI_API_KEY") && !error.contains("sk-"),
            "{error}"
        );
        let encoded = Endpoint::parse("http://me:h%2Fu%20sh@h/v1", ApiKey::default()).unwrap();
        // base64 of "me:h/u sh"
        assert_eq!(
            encoded.authorization.as_ref().unwrap(),
            "Basic bWU6aC91IHNo"
        );
        assert!(Endpoint::parse("ftp://h", ApiKey::default()).is_err());
        assert!(
            !Endpoint::parse("me:hush@h", ApiKey::default())
                .unwrap_err()
                .contains("hush")
        );
    }
}
