use std::time::Duration;

use reqwest::blocking::{Client as Http, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue,
    LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url};

use super::fault::HubFault;
use super::id::{HubId, is_plain};
use super::{Hub, Token};

/// Enough for every chain that was ever seen, few enough for a circle to end.
const REDIRECTS: usize = 10;

/// Asks one hub for the files of one repository. Redirects are followed here and not by the HTTP client, because the token
/// must stay behind when one leads away from the hub.
pub(super) struct Client {
    http: Http,
    base: Url,
    repository: String,
    token: Token,
    authorization: Option<HeaderValue>,
}

/// What the hub says about a file before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) commit: String,
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// A file under way.
pub(super) struct Body {
    pub(super) response: Response,
    /// Where in the file it begins.
    pub(super) start: u64,
    /// How long the whole file is.
    pub(super) size: Option<u64>,
}

/// How an answer looks that is not the file.
enum Asked {
    Answer(Response),
    /// The hub has the repository and not the file.
    NoFile,
}

impl Client {
    pub(super) fn new(hub: &Hub, id: &HubId) -> Result<Self, HubFault> {
        // The text may hold a password, so no message repeats it before it is taken apart.
        let fault = |reason: &str| HubFault::NotAHub {
            endpoint: "HF_ENDPOINT".to_owned(),
            reason: reason.to_owned(),
        };
        let base =
            Url::parse(&format!("{}/", hub.endpoint)).map_err(|_| fault("it is not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(fault("it does not begin with http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(fault(
                "it holds a user or a password; a token goes into HF_TOKEN",
            ));
        }
        let authorization =
            hub.token
                .reveal()
                .map(|token| {
                    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    fault("the token holds a character that no header may hold; check HF_TOKEN")
                })?;
                    value.set_sensitive(true);
                    Ok(value)
                })
                .transpose()?;
        let builder = Http::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10).min(hub.patience.silence))
            // Here this bounds the wait for each read, not the whole download.
            .timeout(hub.patience.silence)
            .user_agent(concat!("because/", env!("CARGO_PKG_VERSION")));
        let builder = if is_loopback(&base) {
            builder.no_proxy()
        } else {
            builder
        };
        let http = builder.build().map_err(|error| HubFault::NotAHub {
            endpoint: show(&base),
            reason: format!("no HTTP client: {}", chain(&error.without_url())),
        })?;
        Ok(Self {
            http,
            base,
            repository: id.repository(),
            token: hub.token.clone(),
            authorization,
        })
    }

    /// The hub's address, for people.
    pub(super) fn endpoint(&self) -> String {
        show(&self.base)
    }

    /// What the hub says of a file; `None` where the repository does not have it.
    pub(super) fn look_up(&self, revision: &str, file: &str) -> Result<Option<Remote>, HubFault> {
        let mut asked = self.ask(&Method::HEAD, revision, file, None)?;
        if let Asked::Answer(answer) = &asked
            && matches!(
                answer.status(),
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
            )
        {
            // A plain file server may know no HEAD; the first byte of the file comes with the same headers.
            asked = self.ask(&Method::GET, revision, file, Some("bytes=0-0"))?;
        }
        let Asked::Answer(answer) = asked else {
            return Ok(None);
        };
        let status = answer.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(&answer, file));
        }
        let headers = answer.headers();
        let size = match (
            text(headers, "x-linked-size"),
            text(headers, "content-range"),
        ) {
            (Some(size), _) => size.parse().ok(),
            (None, Some(range)) => range.rsplit('/').next().and_then(|size| size.parse().ok()),
            // The body of a redirect is not the file.
            (None, None) if status.is_success() => number(headers, CONTENT_LENGTH.as_str()),
            (None, None) => None,
        };
        let named = |name: &str| {
            let value = text(headers, name)?
                .trim_start_matches("W/")
                .trim_matches('"');
            is_plain(value).then(|| value.to_owned())
        };
        let lacks = |what: &str| self.strange(format!("its answer about {file} has no {what}"));
        Ok(Some(Remote {
            commit: named("x-repo-commit").ok_or_else(|| lacks("X-Repo-Commit"))?,
            etag: named("x-linked-etag")
                .or_else(|| named(ETAG.as_str()))
                .ok_or_else(|| lacks("ETag"))?,
            size,
        }))
    }

    /// Opens a file from a byte on. The server may begin elsewhere: what is returned says where. `None` where it has
    /// nothing from there on.
    pub(super) fn open(
        &self,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Option<Body>, HubFault> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let Asked::Answer(response) = self.ask(&Method::GET, commit, file, range.as_deref())?
        else {
            return Err(self.strange(format!("it had {file} a moment ago and now has not")));
        };
        let headers = response.headers();
        match response.status() {
            StatusCode::OK => Ok(Some(Body {
                start: 0,
                size: number(headers, CONTENT_LENGTH.as_str()),
                response,
            })),
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, CONTENT_RANGE.as_str()).and_then(|range| {
                    let (range, size) = range.strip_prefix("bytes ")?.split_once('/')?;
                    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()))
                });
                let (start, size) = range.ok_or_else(|| {
                    self.strange(format!("a part of {file} came without its place"))
                })?;
                Ok(Some(Body {
                    response,
                    start,
                    size,
                }))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
            _ => Err(self.refusal(&response, file)),
        }
    }

    /// Follows redirects until there is an answer, or for a HEAD until the hub has said what it knows.
    fn ask(
        &self,
        method: &Method,
        revision: &str,
        file: &str,
        range: Option<&str>,
    ) -> Result<Asked, HubFault> {
        let path = format!(
            "{}/resolve/{}/{file}",
            self.repository,
            revision.replace('/', "%2F").replace('+', "%2B")
        );
        let mut url = self
            .base
            .join(&path)
            .map_err(|error| self.strange(error.to_string()))?;
        for _ in 0..=REDIRECTS {
            let ours = url.origin() == self.base.origin();
            let mut request = self
                .http
                .request(method.clone(), url.clone())
                .header(ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(authorization) = self.authorization.as_ref().filter(|_| ours) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request
                .send()
                .map_err(|error| self.unreachable(&url, error))?;
            let headers = response.headers();
            if !response.status().is_redirection() {
                let no_file = response.status() == StatusCode::NOT_FOUND
                    && ours
                    && !matches!(
                        text(headers, "x-error-code"),
                        Some("RepoNotFound" | "RevisionNotFound")
                    )
                    // Without a code, only a file that is looked up at a known commit can be told from a wrong name.
                    && (text(headers, "x-error-code").is_some() || file != "config.json");
                return Ok(if no_file {
                    Asked::NoFile
                } else {
                    Asked::Answer(response)
                });
            }
            let next = text(headers, LOCATION.as_str())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| {
                    self.strange(format!("a redirect from {} leads nowhere", show(&url)))
                })?;
            let told = headers.contains_key("x-repo-commit");
            let is_look_up = method == Method::HEAD || range == Some("bytes=0-0");
            if is_look_up && told && next.origin() != self.base.origin() {
                return Ok(Asked::Answer(response));
            }
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(self.strange(format!("it redirects from https to {}", show(&next))));
            }
            url = next;
        }
        Err(self.strange(format!("more than {REDIRECTS} redirects for {file}")))
    }

    /// What an answer says that is neither the file nor that there is none.
    fn refusal(&self, response: &Response, file: &str) -> HubFault {
        let (status, ours) = (
            response.status(),
            response.url().origin() == self.base.origin(),
        );
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default().to_owned();
        let message = self.clean(text(headers, "x-error-message").unwrap_or_default());
        let (endpoint, number) = (self.endpoint(), status.as_u16());
        match (number, code.as_str()) {
            (_, "RepoNotFound") if ours => HubFault::NoRepository {
                endpoint,
                status: number,
                message,
            },
            (_, "RevisionNotFound") if ours => HubFault::NoRevision {
                revision: String::new(),
            },
            (401 | 403, _) if ours => HubFault::Denied {
                endpoint,
                status: number,
                message,
                advice: match &self.authorization {
                    None => {
                        "accept the model's terms on its page if it has any, and put a token that may read it into HF_TOKEN"
                    }
                    Some(_) => {
                        "the token that was sent may not read it; accept the model's terms on its page with the same account, \
                         or put another token into HF_TOKEN"
                    }
                },
            },
            (404, _) if ours => HubFault::NoRepository {
                endpoint,
                status: number,
                message,
            },
            (429, _) => HubFault::RateLimited {
                endpoint: show(response.url()),
                seconds: headers
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok()),
            },
            // Storage refuses with 403 what was signed too long ago; the next try gets a new signature.
            (408 | 500.., _) | (401 | 403, _) => HubFault::Server {
                server: show(response.url()),
                status: number,
                message,
            },
            _ => self.strange(format!(
                "{} answers status {number} for {file}",
                show(response.url())
            )),
        }
    }

    fn unreachable(&self, url: &Url, error: reqwest::Error) -> HubFault {
        HubFault::Unreachable {
            endpoint: show(url),
            // The address of storage is signed: whoever has it may read the file.
            reason: self.clean(&chain(&error.without_url())),
            advice: String::new(),
        }
    }

    fn strange(&self, reason: String) -> HubFault {
        HubFault::NotAHub {
            endpoint: self.endpoint(),
            reason,
        }
    }

    /// What a server said, fit to be shown: without the token, on one line, not long.
    pub(super) fn clean(&self, said: &str) -> String {
        let text = self.token.redact(said);
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect::<String>()
            .trim()
            .to_owned()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str().unwrap_or_default() {
        "localhost" | "[::1]" => true,
        host => host.starts_with("127."),
    }
}

/// An address without what may be secret in it: user, password, query.
fn show(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    format!("{origin}{}", url.path().trim_end_matches('/'))
}

/// An error with everything below it, which is where the reason is.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
