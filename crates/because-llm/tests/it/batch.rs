//! Batch mode against a server that counts what it is paid for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use because_llm::{
    Audited, ChatError, ChatModel, ChatRequest, ChatResponse, Message, ModelStack, OpenAi,
    OpenAiBatchBuilder, Stop, Store,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::batch_server::{BatchServer, End, Fate, Fault, Step};

const KEY: &str = "sk-very-secret-0123456789";

fn batch(server: &BatchServer, store: &Store) -> OpenAiBatchBuilder {
    OpenAi::new("served")
        .base_url(&server.url)
        .api_key(KEY)
        .batch(store.clone())
        .linger(Duration::from_millis(30))
        .poll(Duration::from_millis(2), Duration::from_millis(5))
        .backoff(Duration::from_millis(1))
}

fn stack(builder: OpenAiBatchBuilder, store: &Store) -> because_llm::Stacked {
    ModelStack::new(builder.build().unwrap())
        .store(store.clone())
        .batch(1000)
        .backoff(Duration::from_millis(1))
        .build()
        .unwrap()
}

fn open(folder: &Path) -> Store {
    Store::open(folder.join("llm.sqlite")).unwrap()
}

fn questions(count: usize) -> Vec<ChatRequest> {
    (0..count)
        .map(|n| ChatRequest::new(vec![Message::user(format!("question {n}"))]))
        .collect()
}

async fn ask(
    model: &dyn ChatModel,
    requests: &[ChatRequest],
) -> Vec<Result<ChatResponse, ChatError>> {
    let answers = join_all(requests.iter().map(|request| model.chat(request)));
    tokio::time::timeout(Duration::from_secs(30), answers)
        .await
        .expect("a batch ends")
}

fn all_answered(answers: &[Result<ChatResponse, ChatError>]) {
    for (n, answer) in answers.iter().enumerate() {
        let answer = answer.as_ref().unwrap();
        assert_eq!(answer.answer, format!("re: question {n}"));
        assert_eq!(answer.usage.prompt_tokens, 10);
    }
}

fn all_pending(answers: &[Result<ChatResponse, ChatError>]) {
    for answer in answers {
        let Err(error) = answer else {
            panic!("answered: {answer:?}");
        };
        assert!(matches!(error, ChatError::Pending { .. }), "{error:?}");
        assert!(error.is_fatal() && !error.is_retryable());
        assert!(error.to_string().contains("run again"), "{error}");
    }
}

#[tokio::test]
async fn many_calls_are_one_file_and_each_gets_its_own_answer() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::run().await.polls(4);
    let model = stack(batch(&server, &store), &store);
    let requests = questions(50);
    all_answered(&ask(&model, &requests).await);
    assert_eq!(server.rows(), [50]);
    let row = &server.last_file()[7];
    assert_eq!(
        row["custom_id"],
        json!(requests[7].key(&model.id()).to_string())
    );
    assert_eq!(row["url"], json!("/v1/chat/completions"));
    assert_eq!(
        row["body"],
        json!({"model": "served", "messages": [{"role": "user", "content": "question 7"}], "stream": false})
    );

    all_answered(&ask(&model, &requests).await);
    assert_eq!(server.rows(), [50], "asked again, all comes from the store");
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!(totals.attempts, [("ok".to_owned(), 50)].into());
    assert_eq!(totals.usage.prompt_tokens, 500);
    assert_eq!(server.billed(), (50, 1));
    let online = OpenAi::new("served").base_url(&server.url).build().unwrap();
    assert_eq!(
        online.id(),
        model.id(),
        "either way has the other's answers"
    );
    drop(model);
    let file = std::fs::read(store.path()).unwrap();
    assert!(!file.windows(KEY.len()).any(|bytes| bytes == KEY.as_bytes()));
}

#[tokio::test]
async fn a_group_is_closed_when_it_is_full_by_rows_or_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::run().await;
    let model = stack(batch(&server, &store).rows(4), &store);
    all_answered(&ask(&model, &questions(10)).await);
    let mut rows = server.rows();
    rows.sort_unstable();
    assert_eq!(rows, [2, 4, 4]);
    drop(model);

    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::run().await;
    // A row has some 220 bytes.
    let model = stack(batch(&server, &store).bytes(700), &store);
    all_answered(&ask(&model, &questions(10)).await);
    assert!(
        server.rows().iter().all(|rows| *rows <= 3),
        "{:?}",
        server.rows()
    );
    assert_eq!(server.billed(), (10, 1));
}

#[tokio::test]
async fn a_deep_queue_goes_through_in_groups_of_what_is_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::run().await;
    let model = stack(batch(&server, &store).rows(1000), &store);
    let model = &model;
    let jobs = (0..5000).map(|n| async move {
        let request = ChatRequest::new(vec![Message::user(format!("question {n}"))]);
        model.chat(&request).await
    });
    let mut done = 0;
    because_llm::drive(jobs, 1000, &Stop::default(), |_| done += 1)
        .await
        .unwrap();
    assert_eq!((done, server.billed()), (5000, (5000, 1)));
    let rows = server.rows();
    assert!(rows.iter().all(|rows| *rows <= 1000), "{rows:?}");
    assert_eq!(rows.iter().sum::<usize>(), 5000);
}

#[tokio::test]
async fn what_failed_is_sent_again_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::with(|question, batch| {
        let n: usize = question.rsplit(' ').next().unwrap().parse().unwrap();
        match (batch, n) {
            (0, 1) => Fate::Refused(429, json!({"error": {"message": "slow down"}})),
            (0, 2) => Fate::Refused(500, json!("oops")),
            (0, 3) => Fate::Missing,
            (0, 4) => Fate::Malformed,
            (_, 5) => Fate::Refused(400, json!({"error": {"message": "no such thing"}})),
            (_, 6) => Fate::Refused(
                400,
                json!({"error": {"message": "too long", "code": "context_length_exceeded"}}),
            ),
            _ => Fate::Answered(format!("re: {question}")),
        }
    })
    .await;
    let model = stack(batch(&server, &store), &store);
    let answers = ask(&model, &questions(10)).await;
    for (n, answer) in answers.iter().enumerate() {
        match n {
            5 => assert!(
                matches!(answer, Err(ChatError::Permanent { status: Some(400), message }) if message.contains("no such thing"))
            ),
            6 => assert!(matches!(answer, Err(ChatError::ContextTooLong { .. }))),
            _ => assert_eq!(answer.as_ref().unwrap().answer, format!("re: question {n}")),
        }
    }
    assert_eq!(server.rows(), [10, 4]);
    store.flush().unwrap();
    let attempts = store.totals().unwrap().attempts;
    assert_eq!(attempts["ok"], 8);
    assert_eq!(attempts["overloaded"], 1);
    assert_eq!(attempts["transient"], 3);
    assert_eq!(
        server.billed(),
        (8, 2),
        "only the unreadable line cost twice"
    );
}

#[tokio::test]
async fn an_expired_batch_gives_what_it_has_and_the_rest_goes_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::with(|question, batch| match batch {
        0 if question.ends_with(['0', '1', '2']) => Fate::Expired,
        _ => Fate::Answered(format!("re: {question}")),
    })
    .await
    .ends([End::Expired]);
    let model = stack(batch(&server, &store), &store);
    all_answered(&ask(&model, &questions(9)).await);
    assert_eq!(server.rows(), [9, 3]);
    assert_eq!(server.billed(), (9, 1));
}

#[tokio::test]
async fn a_cancelled_batch_stops_the_run_and_is_gone_on_with_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::with(|question, batch| match batch {
        0 if question.ends_with(['0', '1', '2']) => Fate::Missing,
        _ => Fate::Answered(format!("re: {question}")),
    })
    .await
    .ends([End::Cancelled]);
    let model = stack(batch(&server, &store), &store);
    let answers = ask(&model, &questions(6)).await;
    all_pending(&answers[..3]);
    assert!(
        answers[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("cancelled")
    );
    assert!(answers[3..].iter().all(Result::is_ok));
    assert_eq!(server.rows(), [6]);
    all_answered(&ask(&model, &questions(6)).await);
    assert_eq!(server.rows(), [6, 3]);
    assert_eq!(server.billed(), (6, 1));
}

#[tokio::test]
async fn a_batch_that_is_not_taken_says_why() {
    let refused = |errors: Value| async move {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let server = BatchServer::run().await.ends([End::Failed(errors)]);
        let model = stack(batch(&server, &store), &store);
        let answers = ask(&model, &questions(4)).await;
        (answers, server)
    };
    // All of it: the run stops.
    let (answers, server) = refused(
        json!([{"code": "model_not_found", "message": "the model `served` has no batches", "line": null}]),
    )
    .await;
    for answer in &answers {
        let error = answer.as_ref().unwrap_err();
        assert!(error.is_fatal(), "{error:?}");
        assert!(
            error
                .to_string()
                .contains("batch_0 was refused: the model `served` has no batches"),
            "{error}"
        );
    }
    assert_eq!((server.rows(), server.billed()), (vec![4], (0, 0)));

    // One row: it alone fails, and the others go without it.
    let (answers, server) =
        refused(json!([{"code": "invalid_request", "message": "bad row", "line": 2}])).await;
    let faulty: Vec<usize> = (0..4).filter(|n| answers[*n].is_err()).collect();
    assert_eq!(faulty.len(), 1);
    let error = answers[faulty[0]].as_ref().unwrap_err();
    assert!(
        !error.is_fatal() && error.to_string().contains("line 2: bad row"),
        "{error}"
    );
    assert_eq!((server.rows(), server.billed()), (vec![4, 3], (3, 1)));

    // A full queue: the same file is run later.
    let (answers, server) =
        refused(json!([{"code": "token_limit_exceeded", "message": "queue full", "line": null}]))
            .await;
    all_answered(&answers);
    assert_eq!((server.rows(), server.billed()), (vec![4, 4], (4, 1)));
    assert_eq!(server.count(Step::Upload), 1);
}

#[tokio::test]
async fn a_creation_that_fails_is_tried_again_and_never_done_twice() {
    for (fault, created) in [
        (
            Fault::Refused(429, r#"{"error":{"message":"slow down"}}"#),
            1,
        ),
        (Fault::Refused(500, "oops"), 1),
        // It was created all the same, as the list says.
        (Fault::DoneButSays(500), 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let server = BatchServer::run().await.fault(Step::Create, fault.clone());
        let model = stack(batch(&server, &store), &store);
        all_answered(&ask(&model, &questions(5)).await);
        assert_eq!(server.rows().len(), created, "{fault:?}");
        assert_eq!(server.billed(), (5, 1), "{fault:?}");
    }
    for (step, status) in [
        (Step::Upload, 503),
        (Step::Poll, 502),
        (Step::Download, 500),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let server = BatchServer::run()
            .await
            .fault(step, Fault::Refused(status, "oops"));
        let model = stack(batch(&server, &store), &store);
        all_answered(&ask(&model, &questions(5)).await);
        assert_eq!(server.billed(), (5, 1), "{step:?}");
    }
    // A server without batches, or a wrong key.
    for (status, said) in [
        (404, "has this server a Batch API"),
        (401, "OPENAI_API_KEY"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let server = BatchServer::run()
            .await
            .fault(Step::Upload, Fault::Refused(status, KEY));
        let model = stack(batch(&server, &store), &store);
        let error = ask(&model, &questions(1)).await.remove(0).unwrap_err();
        assert!(
            error.is_fatal() && error.to_string().contains(said),
            "{error:?}"
        );
        assert!(!format!("{error} {error:?}").contains(KEY));
    }
}

/// Begins, is killed as soon as a call hangs, and gives nothing back.
async fn begin_and_be_killed(server: &BatchServer, folder: &Path, count: usize) {
    let store = open(folder);
    let model: Arc<dyn ChatModel> = Arc::from(stack(batch(server, &store), &store));
    let task = tokio::spawn({
        let model = Arc::clone(&model);
        async move { ask(&model, &questions(count)).await }
    });
    tokio::time::timeout(Duration::from_secs(10), server.hung())
        .await
        .expect("the call is made");
    task.abort();
    let _ = task.await;
    drop(model);
}

#[tokio::test]
async fn a_kill_between_any_two_steps_costs_nothing_twice() {
    for (step, fault) in [
        (Step::Upload, Fault::HangsBefore),
        (Step::Upload, Fault::HangsAfter),
        (Step::Create, Fault::HangsBefore),
        (Step::Create, Fault::HangsAfter),
        (Step::Poll, Fault::HangsBefore),
        (Step::Poll, Fault::HangsAfter),
        (Step::Download, Fault::HangsBefore),
        (Step::Download, Fault::HangsAfter),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = BatchServer::run().await.fault(step, fault.clone());
        begin_and_be_killed(&server, folder.path(), 20).await;
        let store = open(folder.path());
        let model = stack(batch(&server, &store), &store);
        all_answered(&ask(&model, &questions(20)).await);
        assert_eq!(server.billed(), (20, 1), "{step:?} {fault:?}");
        store.flush().unwrap();
        let totals = store.totals().unwrap();
        assert_eq!(totals.attempts["ok"], 20, "{step:?} {fault:?}");
        assert_eq!(totals.attempts["interrupted"], 20, "{step:?} {fault:?}");
        assert_eq!(
            totals.usage.prompt_tokens, 200,
            "each paid row is counted once"
        );
    }
}

#[tokio::test]
async fn kills_while_an_earlier_kill_is_healed_cost_nothing_twice_either() {
    for begun in [Fault::HangsBefore, Fault::HangsAfter] {
        for second in [
            (Step::ListBatches, Fault::HangsBefore),
            (Step::ListBatches, Fault::HangsAfter),
            (Step::Delete, Fault::HangsBefore),
            (Step::Delete, Fault::HangsAfter),
            (Step::Poll, Fault::HangsAfter),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let server = BatchServer::run().await.fault(Step::Create, begun.clone());
            begin_and_be_killed(&server, folder.path(), 7).await;
            let (step, fault) = second;
            let deletes = matches!(begun, Fault::HangsBefore);
            if step != Step::Delete || deletes {
                server.add_fault(step, fault.clone());
                begin_and_be_killed(&server, folder.path(), 7).await;
            }
            let store = open(folder.path());
            let model = stack(batch(&server, &store), &store);
            all_answered(&ask(&model, &questions(7)).await);
            assert_eq!(server.billed(), (7, 1), "{begun:?} {step:?} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_run_told_not_to_wait_is_collected_by_a_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let server = BatchServer::run().await.polls(1000);
    for _ in 0..2 {
        let store = open(folder.path());
        let model = stack(batch(&server, &store).collect_later(), &store);
        let answers = ask(&model, &questions(6)).await;
        all_pending(&answers);
        assert!(
            answers[0]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("batch_0 (6 requests) is in_progress")
        );
    }
    server.finish();
    let store = open(folder.path());
    let model = stack(batch(&server, &store).collect_later(), &store);
    all_answered(&ask(&model, &questions(6)).await);
    assert_eq!((server.rows(), server.billed()), (vec![6], (6, 1)));
    store.flush().unwrap();
    let attempts = store.totals().unwrap().attempts;
    assert_eq!((attempts["ok"], attempts["pending"]), (6, 12));
}

#[tokio::test]
async fn a_stop_sends_those_who_wait_home_and_leaves_the_batch_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let server = BatchServer::run().await.polls(1000);
    let store = open(folder.path());
    let stop = Stop::default();
    let model = stack(batch(&server, &store).stop(stop.clone()), &store);
    let requests = questions(6);
    let stopping = async {
        while server.count(Step::Poll) < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.request();
    };
    let (answers, ()) = tokio::join!(ask(&model, &requests), stopping);
    all_pending(&answers);
    drop(model);
    server.finish();
    let model = stack(batch(&server, &store), &store);
    all_answered(&ask(&model, &requests).await);
    assert_eq!((server.rows(), server.billed()), (vec![6], (6, 1)));
}

#[tokio::test]
async fn an_answer_that_was_fetched_and_not_kept_is_given_again_unless_it_was_unfit() {
    let folder = tempfile::tempdir().unwrap();
    let server = BatchServer::run().await;
    let store = open(folder.path());
    let open_model = || Audited::new(batch(&server, &store).build().unwrap(), store.clone());
    let requests = questions(2);
    all_answered(&ask(&open_model(), &requests).await);
    all_answered(&ask(&open_model(), &requests).await);
    assert_eq!(server.billed(), (2, 1));
    let key = requests[0].key(&open_model().id());
    store.mark_invalid(&key, "not what was asked for");
    store.flush().unwrap();
    all_answered(&ask(&open_model(), &requests).await);
    assert_eq!(server.rows(), [2, 1]);
}

#[tokio::test]
async fn a_repair_is_a_row_of_the_next_batch_and_so_is_a_question_put_differently() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::with(|question, batch| match (batch, question) {
        (0, _) => Fate::Refused(
            400,
            json!({"error": {"message": "response_format.type json_schema is unavailable"}}),
        ),
        (1, "Dune") => Fate::Answered(r#"{"stars": 9}"#.into()),
        _ => Fate::Answered(r#"{"stars": 4}"#.into()),
    })
    .await;
    let schema = json!({"type": "object", "properties": {"stars": {"type": "integer", "maximum": 5}},
                        "required": ["stars"], "additionalProperties": false});
    let requests: Vec<ChatRequest> = ["Dune", "Emma"]
        .map(|title| ChatRequest::new(vec![Message::user(title)]).schema("rating", schema.clone()))
        .to_vec();
    let model = stack(batch(&server, &store), &store);
    for answer in ask(&model, &requests).await {
        assert_eq!(answer.unwrap().answer, r#"{"stars":4}"#);
    }
    assert_eq!(server.rows(), [2, 2, 1]);
    let repair = &server.last_file()[0]["body"];
    assert_eq!(repair["response_format"]["type"], json!("json_object"));
}

#[tokio::test]
async fn one_store_has_one_run_in_batch_mode() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let server = BatchServer::run().await;
    let first = batch(&server, &store).build().unwrap();
    let error = batch(&server, &store).build().unwrap_err();
    assert!(
        error.to_string().contains("another run uses batch mode"),
        "{error}"
    );
    drop(first);
    batch(&server, &store).build().unwrap();
}
