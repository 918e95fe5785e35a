use std::fmt;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};

/// A secret, trimmed. Nothing prints it.
#[derive(Clone, Default)]
pub(super) struct ApiKey(String);

impl ApiKey {
    pub(super) fn new(key: impl AsRef<str>) -> Self {
        Self(key.as_ref().trim().to_owned())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// The text without the key, which some servers repeat in their refusal.
    pub(super) fn redact(&self, text: &str) -> String {
        match self.0.as_str() {
            "" => text.to_owned(),
            key => text.replace(key, "***"),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "***" })
    }
}

/// A base URL taken apart: what is called, what is shown, and what is secret.
#[derive(Debug)]
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

impl Endpoint {
    pub(super) fn parse(text: &str, key: ApiKey) -> Result<Self, String> {
        // The text may hold a password, so no message repeats it before it is taken apart.
        let mut url = Url::parse(text.trim())
            .map_err(|error| format!("the base URL cannot be read: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!(
                "the base URL has to begin with http:// or https://, not {}:",
                url.scheme()
            ));
        }
        let user = (!url.username().is_empty())
            .then(|| (url.username().to_owned(), url.password().map(str::to_owned)));
        let query = url.query_pairs().into_owned().collect();
        let failed = |()| "the base URL cannot hold a user".to_owned();
        url.set_username("").map_err(failed)?;
        url.set_password(None).map_err(failed)?;
        url.set_query(None);
        url.set_fragment(None);
        let base = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            authorization: authorization(&base, &key, user)?,
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
    fn a_key_is_trimmed_checked_and_never_printed() {
        let endpoint = Endpoint::parse("http://h/v1", ApiKey::new(" sk-1 \n")).unwrap();
        assert_eq!(endpoint.authorization.as_ref().unwrap(), "Bearer sk-1");
        assert!(!format!("{endpoint:?}").contains("sk-1"));
        let error = Endpoint::parse("http://h/v1", ApiKey::new("sk-1\nsk-2")).unwrap_err();
        assert!(
            error.contains("OPENAI_API_KEY") && !error.contains("sk-"),
            "{error}"
        );
        assert!(Endpoint::parse("ftp://h", ApiKey::default()).is_err());
        assert!(
            !Endpoint::parse("me:hush@h", ApiKey::default())
                .unwrap_err()
                .contains("hush")
        );
    }
}
