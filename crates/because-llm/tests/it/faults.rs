//! Everything that a server or the way to it can do wrong: what the caller is told, what it costs, what the audit says, and
//! that the next good answer is taken.

use std::sync::Arc;
use std::time::Duration;

use because_llm::{ChatError, ChatModel, ChatRequest, ModelStack, OpenAi, Store, Usage};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::fault_server::{Does, FaultServer, MODEL, about, right};

/// Patient, but where nothing is to be waited for.
fn client(url: &str, does: Does) -> OpenAi {
    let millis = if does == Does::Hangs { 700 } else { 30_000 };
    OpenAi::new(MODEL)
        .base_url(url)
        .timeout(Duration::from_millis(millis))
        .build()
        .unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    (folder, store)
}

fn stack(url: &str, does: Does, store: &Store, retries: u32, repairs: u32) -> because_llm::Stacked {
    ModelStack::new(client(url, does))
        .store(store.clone())
        .backoff(Duration::from_millis(2))
        .retries(retries)
        .repairs(repairs)
        .build()
        .unwrap()
}

/// The audit in the order of the calls: what became of each, with its status and tokens.
fn audit(store: &Store) -> Vec<(String, Option<u16>, u64)> {
    store.flush().unwrap();
    let reader = rusqlite::Connection::open(store.path()).unwrap();
    let mut rows = reader
        .prepare(
            "SELECT outcome, status, prompt_tokens + completion_tokens FROM attempts ORDER BY id",
        )
        .unwrap();
    rows.query_map([], |row| {
        Ok((
            row.get(0)?,
            row.get(1)?,
            row.get::<_, i64>(2)?.unsigned_abs(),
        ))
    })
    .unwrap()
    .map(|row| row.unwrap())
    .collect()
}

fn kind(error: &ChatError) -> &'static str {
    match error {
        ChatError::Transient { .. } => "transient",
        ChatError::Overloaded { .. } => "overloaded",
        ChatError::Invalid { .. } => "invalid",
        ChatError::Permanent { .. } => "permanent",
        _ => "other",
    }
}

fn tokens(usage: Usage) -> u64 {
    usage.prompt_tokens + usage.completion_tokens
}

#[tokio::test]
async fn the_bare_client_asks_once_whatever_goes_wrong() {
    for does in Does::FAULTS {
        let server = FaultServer::doing([does]).await;
        let model = client(&server.url, does);
        let result = model.chat(&about("sand")).await;
        assert_eq!(server.count(), 1, "{does:?}");
        match &result {
            // Whether an answer fits is for `Validated` to say.
            Ok(response) if does.outcome() == "invalid" => {
                assert_eq!(response.usage, server.calls()[0].usage, "{does:?}");
            }
            Ok(response) => {
                assert!(does.answers(), "{does:?}");
                assert_eq!(response.answer, right(&about("sand")).0);
            }
            Err(error) => {
                assert_eq!(kind(error), does.outcome(), "{does:?}: {error}");
                assert!(
                    error.is_retryable() && !error.is_fatal(),
                    "{does:?}: {error}"
                );
                assert!(error.to_string().contains(&server.url), "{does:?}: {error}");
                if let Some(status) = does.status() {
                    let shown = format!("HTTP {status}");
                    assert!(error.to_string().contains(&shown), "{does:?}: {error}");
                }
            }
        }
        // The same client, whatever state its connections are in, takes the next answer.
        let next = model.chat(&about("worms")).await.unwrap();
        assert_eq!(next.answer, right(&about("worms")).0, "{does:?}");
        assert_eq!(server.count(), 2, "{does:?}");
    }
}

#[tokio::test]
async fn the_stack_brings_the_right_answer_and_the_audit_has_what_the_server_gave() {
    for does in Does::FAULTS {
        let server = FaultServer::doing([does]).await;
        let (_folder, store) = store();
        let model = stack(&server.url, does, &store, 4, 2);
        let request = about("sand");
        let response = model.chat(&request).await.unwrap();
        assert_eq!(response.answer, right(&request).0, "{does:?}");
        assert_eq!(model.chat(&request).await.unwrap(), response, "{does:?}");
        let calls = server.calls();
        assert_eq!(calls.len(), if does.answers() { 1 } else { 2 }, "{does:?}");
        let told: Vec<_> = calls
            .iter()
            .map(|call| {
                let outcome = call.does.outcome().to_owned();
                (outcome, call.does.status(), tokens(call.usage))
            })
            .collect();
        assert_eq!(audit(&store), told, "{does:?}");
        assert_eq!(
            tokens(response.usage),
            calls.iter().map(|call| tokens(call.usage)).sum::<u64>(),
            "{does:?}: the answer carries what all its attempts cost"
        );
        // A repair is a question of its own; a repetition is the same again.
        assert_eq!(
            calls[0].key == calls[calls.len() - 1].key,
            does.outcome() != "invalid",
            "{does:?}"
        );
    }
}

#[tokio::test]
async fn without_another_try_the_error_is_the_callers_and_nothing_bad_is_kept() {
    for does in Does::FAULTS.into_iter().filter(|does| !does.answers()) {
        let server = FaultServer::doing([does]).await;
        let (_folder, store) = store();
        let model = stack(&server.url, does, &store, 0, 0);
        let request = about("sand");
        let error = model.chat(&request).await.unwrap_err();
        assert_eq!(kind(&error), does.outcome(), "{does:?}: {error}");
        assert_eq!(store.totals().unwrap().responses, 0, "{does:?}");
        let answer = model.chat(&request).await.unwrap().answer;
        assert_eq!(answer, right(&request).0, "{does:?}");
        assert_eq!(store.totals().unwrap().responses, 1, "{does:?}");
        assert_eq!(server.count(), 2, "{does:?}");
    }
}

#[tokio::test]
async fn a_server_that_stays_broken_is_asked_as_often_as_said_and_no_more() {
    for does in Does::FAULTS.into_iter().filter(|does| !does.answers()) {
        let server = FaultServer::run(move |_, _| does).await;
        let (_folder, store) = store();
        let model = stack(&server.url, does, &store, 2, 1);
        let error = model.chat(&about("sand")).await.unwrap_err();
        assert_eq!(kind(&error), does.outcome(), "{does:?}: {error}");
        // One question and two repetitions, or one question and one repair: never both multiplied.
        let asked = if does.outcome() == "invalid" { 2 } else { 3 };
        assert_eq!(server.count(), asked, "{does:?}");
        assert_eq!(audit(&store).len(), asked, "{does:?}");
        assert_eq!(store.totals().unwrap().responses, 0, "{does:?}");
        let said = format!("after {asked} attempts");
        assert!(error.to_string().contains(&said), "{does:?}: {error}");
    }
}

#[tokio::test]
async fn a_fault_during_a_repair_is_repeated_as_that_repair() {
    let server = FaultServer::doing([Does::Misfit, Does::TooMany, Does::Cut, Does::Words]).await;
    let (_folder, store) = store();
    let request = about("sand");
    let answer = stack(&server.url, Does::Answers, &store, 4, 2)
        .chat(&request)
        .await
        .unwrap();
    assert_eq!(answer.answer, right(&request).0);
    let outcomes: Vec<String> = audit(&store).into_iter().map(|row| row.0).collect();
    assert_eq!(
        outcomes,
        ["invalid", "overloaded", "transient", "invalid", "ok"]
    );
    let calls = server.calls();
    assert!(calls[1].key == calls[2].key && calls[2].key == calls[3].key);
    assert!(calls[0].key != calls[1].key && calls[3].key != calls[4].key);
}

#[tokio::test]
async fn how_long_to_wait_is_read_from_either_form_of_the_header() {
    for (does, asked) in [
        (Does::TooMany, None),
        (Does::TooManyForSeconds(7), Some(Duration::from_secs(7))),
        (Does::TooManyUntilDate, Some(Duration::ZERO)),
    ] {
        let server = FaultServer::doing([does]).await;
        let error = client(&server.url, does)
            .chat(&about("sand"))
            .await
            .unwrap_err();
        let ChatError::Overloaded { retry_after, .. } = error else {
            panic!("{does:?}: {error}");
        };
        assert_eq!(retry_after, asked, "{does:?}");
    }
}

/// Greets everybody with a certificate that nobody vouches for.
async fn self_signed() -> String {
    let file = |name: &str| {
        format!(
            "{}/tests/data/self-signed.{name}.pem",
            env!("CARGO_MANIFEST_DIR")
        )
    };
    let certificate = CertificateDer::from_pem_file(file("cert")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    url
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_ends_the_call_at_once() {
    let url = self_signed().await;
    let (_folder, store) = store();
    let request = about("sand");
    let error = stack(&url, Does::Answers, &store, 4, 2)
        .chat(&request)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ChatError::Permanent { status: None, .. }),
        "{error:?}"
    );
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("{url}: no secure connection: ")),
        "{said}"
    );
    assert!(said.contains("certificate"), "{said}");
    assert_eq!(audit(&store), [("permanent".to_owned(), None, 0)]);
    next_is_taken(&store, &request).await;
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_tried_again_as_it_may_be_the_resolver() {
    let (_folder, store) = store();
    let request = about("sand");
    let url = "http://no-such-host.invalid/v1";
    let error = stack(url, Does::Answers, &store, 1, 2)
        .chat(&request)
        .await
        .unwrap_err();
    assert_eq!(kind(&error), "transient", "{error}");
    let said = error.to_string();
    assert!(
        said.starts_with(url) && said.ends_with("after 2 attempts"),
        "{said}"
    );
    assert_eq!(audit(&store), vec![("transient".to_owned(), None, 0); 2]);
    next_is_taken(&store, &request).await;
}

/// Another endpoint, the same store: nothing of the failure is in the way.
async fn next_is_taken(store: &Store, request: &ChatRequest) {
    let server = FaultServer::doing([]).await;
    let answer = stack(&server.url, Does::Answers, store, 0, 0)
        .chat(request)
        .await
        .unwrap();
    assert_eq!(answer.answer, right(request).0);
    assert_eq!(server.count(), 1);
}
