use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, EXPECT, HOST};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;

use super::State;
use super::completion::complete;
use super::refusal::Refusal;
use super::reply::{Reply, json_reply};

/// Answers one request, whatever it is.
pub(super) async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let answered = AssertUnwindSafe(route(state, request)).catch_unwind().await;
    Ok(match answered {
        Ok(Ok(reply)) => reply,
        Ok(Err(refusal)) => refusal.reply(),
        Err(_) => Refusal::fault("a fault of this program; its standard error says more").reply(),
    })
}

/// What a request asks for.
enum Asked {
    Health,
    Models,
    Model(String),
    Chat,
}

async fn route(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Reply>, Refusal> {
    let asked = match admit(&state, &request) {
        Ok(asked) => asked,
        Err(refusal) => {
            discard(&state, request).await;
            return Err(refusal);
        }
    };
    match asked {
        Asked::Health => Ok(health(&state)),
        Asked::Models => Ok(json_reply(StatusCode::OK, &models(&state))),
        Asked::Model(name) => {
            let known = state.models();
            match known.contains(&name) {
                true => Ok(json_reply(StatusCode::OK, &model(&state, &name))),
                false => Err(Refusal::unknown_model(&name, &known)),
            }
        }
        Asked::Chat => {
            let timeout = state.settings.body_timeout;
            let body = tokio::time::timeout(timeout, read(request, state.settings.max_body_bytes));
            let body = body.await.map_err(|_| Refusal::too_slow())??;
            complete(&state, &body).await
        }
    }
}

/// What the head of a request tells: whether this client may ask this.
fn admit(state: &State, request: &Request<Incoming>) -> Result<Asked, Refusal> {
    let (method, headers) = (request.method(), request.headers());
    let open = state.settings.api_key.is_none();
    if state.local && open && is_foreign(headers, &state.settings.allowed_hosts) {
        return Err(Refusal::host());
    }
    let whole = request.uri().path();
    // Some clients are given the address without it and add none.
    let path = match whole.strip_prefix("/v1") {
        Some(path) if path.starts_with('/') => path,
        _ => whole,
    };
    if path == "/health" {
        reads(method)?;
        return Ok(Asked::Health);
    }
    if let Some(key) = &state.settings.api_key {
        let given = headers.get(AUTHORIZATION);
        let given = given.and_then(|given| bearer(given.as_bytes()));
        if !given.is_some_and(|given| key.is(given)) {
            return Err(Refusal::key());
        }
    }
    if path == "/models" {
        reads(method)?;
        return Ok(Asked::Models);
    }
    if let Some(name) = path.strip_prefix("/models/") {
        reads(method)?;
        return Ok(Asked::Model(percent_decoded(name)));
    }
    if path != "/chat/completions" {
        return Err(Refusal::unknown_path(whole));
    }
    if method != Method::POST {
        return Err(Refusal::method("POST"));
    }
    if !is_json(headers) {
        return Err(Refusal::media_type());
    }
    // Before its body is kept: a full queue costs no memory.
    state.engine()?;
    Ok(Asked::Chat)
}

fn reads(method: &Method) -> Result<(), Refusal> {
    match *method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::method("GET, HEAD")),
    }
}

fn health(state: &State) -> Response<Reply> {
    match state.running() {
        Ok(engine) => {
            let well = json!({ "status": "ok", "under_way": engine.under_way() });
            json_reply(StatusCode::OK, &well)
        }
        Err(error) => {
            tracing::error!("the engine cannot be started again: {error}");
            let ill = json!({ "status": "failed", "under_way": 0 });
            json_reply(StatusCode::SERVICE_UNAVAILABLE, &ill)
        }
    }
}

fn models(state: &State) -> serde_json::Value {
    let models = state.models();
    let models = models.iter().map(|name| model(state, name));
    json!({ "object": "list", "data": models.collect::<Vec<_>>() })
}

fn model(state: &State, name: &str) -> serde_json::Value {
    json!({ "id": name, "object": "model", "created": state.created, "owned_by": "because" })
}

/// A piece of a path with its `%2F` and the like as what they stand for.
fn percent_decoded(path: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, others @ ..] = rest {
        let digits = rest.get(1..3).and_then(|two| std::str::from_utf8(two).ok());
        // The parser would take a sign too.
        let digits = digits.filter(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        let (byte, after) = match byte.filter(|_| *first == b'%') {
            Some(byte) => (byte, &rest[3..]),
            None => (*first, others),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The key in `Bearer KEY`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

/// Whether a page of a foreign site may have sent this: a browser asks a name that leads to this machine, and says it.
fn is_foreign(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(host) = headers.get(HOST) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return true;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<std::net::IpAddr>();
    !(name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
        || allowed.iter().any(|one| name.eq_ignore_ascii_case(one)))
}

/// What a form of a web page cannot send without asking first is what is wanted here.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}

/// How much of a body that nobody needs is read at most.
fn patience(limit: usize) -> u64 {
    (limit as u64).saturating_mul(4)
}

/// Reads the body of a refused request and throws it away: left unread it breaks the connection, often before the client has
/// heard why.
async fn discard(state: &State, request: Request<Incoming>) {
    // Who waits to be asked for it has not sent it.
    let waits = request.headers().contains_key(EXPECT);
    let mut left = patience(state.settings.max_body_bytes);
    let mut body = request.into_body();
    if waits || body.size_hint().lower() > left {
        return;
    }
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            left = left.saturating_sub(bytes as u64);
            if left == 0 {
                return;
            }
        }
    };
    // Whoever is slower than that hears it now or never.
    let _ = tokio::time::timeout(state.settings.body_timeout, all).await;
}

/// The body, as far as it may be large. A little more is read and thrown away, so that the client hears the answer instead of
/// a broken connection.
async fn read(request: Request<Incoming>, limit: usize) -> Result<Bytes, Refusal> {
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let too_large = || Refusal::too_large(limit);
    let patience = patience(limit);
    let declared = body.size_hint().lower();
    if declared > patience || (waits && declared > limit as u64) {
        return Err(too_large());
    }
    let (mut all, mut total) = (Vec::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Refusal::invalid(format!("the body is not whole: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        total += data.len() as u64;
        if total > patience {
            break;
        }
        match total > limit as u64 {
            false => all.extend_from_slice(&data),
            true => all = Vec::new(),
        }
    }
    match total > limit as u64 {
        true => Err(too_large()),
        false => Ok(all.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_read_as_they_were_written() {
        for (path, name) in [
            ("Qwen%2Fsmall", "Qwen/small"),
            ("Qwen/small", "Qwen/small"),
            ("caf%C3%a9%", "caf\u{e9}%"),
            ("%4", "%4"),
            ("%+1%\u{e9}", "%+1%\u{e9}"),
        ] {
            assert_eq!(percent_decoded(path), name);
        }
    }
}
