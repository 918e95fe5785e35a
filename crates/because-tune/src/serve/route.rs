use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::PoisonError;

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

async fn route(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Reply>, Refusal> {
    let path = request.uri().path().to_owned();
    if state.local && state.settings.api_key.is_none() && is_foreign(request.headers()) {
        return Err(Refusal::host());
    }
    if path == "/health" {
        reads(request.method())?;
        return Ok(json_reply(StatusCode::OK, &health(&state)));
    }
    if let Some(key) = &state.settings.api_key {
        let given = request.headers().get(AUTHORIZATION);
        let given = given.and_then(|given| bearer(given.as_bytes()));
        if !given.is_some_and(|given| key.is(given)) {
            return Err(Refusal::key());
        }
    }
    match path.as_str() {
        "/v1/models" => {
            reads(request.method())?;
            Ok(json_reply(StatusCode::OK, &models(&state)))
        }
        "/v1/chat/completions" => {
            if request.method() != Method::POST {
                return Err(Refusal::method("POST"));
            }
            if !is_json(request.headers()) {
                return Err(Refusal::media_type());
            }
            // Before its body is read: a full queue costs nothing.
            state.engine()?;
            let timeout = state.settings.body_timeout;
            let body = tokio::time::timeout(timeout, read(request, state.settings.max_body_bytes));
            let body = body.await.map_err(|_| Refusal::too_slow())??;
            complete(&state, &body).await
        }
        _ => Err(Refusal::unknown_path(&path)),
    }
}

fn reads(method: &Method) -> Result<(), Refusal> {
    match *method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::method("GET, HEAD")),
    }
}

fn health(state: &State) -> serde_json::Value {
    let engine = state.engine.lock().unwrap_or_else(PoisonError::into_inner);
    json!({ "status": "ok", "under_way": engine.under_way() })
}

fn models(state: &State) -> serde_json::Value {
    let models = state.models().into_iter().map(|name| {
        json!({ "id": name, "object": "model", "created": state.created, "owned_by": "because" })
    });
    json!({ "object": "list", "data": models.collect::<Vec<_>>() })
}

/// The key in `Bearer KEY`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

/// Whether a page of a foreign site may have sent this: a browser asks a name that leads to this machine, and says it.
fn is_foreign(headers: &HeaderMap) -> bool {
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
        || address.is_ok_and(|address| address.is_loopback()))
}

/// What a form of a web page cannot send without asking first is what is wanted here.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}

/// The body, as far as it may be large. A little more is read and thrown away, so that the client hears the answer instead of
/// a broken connection.
async fn read(request: Request<Incoming>, limit: usize) -> Result<Bytes, Refusal> {
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let too_large = || Refusal::too_large(limit);
    let patience = (limit as u64).saturating_mul(4);
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
