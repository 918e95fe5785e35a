use crate::batch_server::{BatchServer, Fate};
use crate::{command, fails, json, small_project, text};

#[test]
fn batch_mode_with_a_model_that_has_none_is_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let said = fails(2, &["profile", text(&project), "--batch"]);
    assert!(said.contains("offline has no batches"), "{said}");
}

#[test]
fn a_run_that_does_not_wait_is_gone_on_with_until_it_is_done() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(BatchServer::with(|question, _| {
        let answer = match question.contains("\"shared\" is your text") {
            true => r#"{"shared": "games of trade"}"#,
            false => r#"{"summary": "Likes to trade.", "reasoning": "so"}"#,
        };
        Fate::Answered(answer.to_owned())
    }));
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let model = format!("openai:served@{}", server.url);
    let arguments = [
        "profile",
        text(&project),
        "--layers",
        "1",
        "--llm",
        &model,
        "--batch",
        "--batch-no-wait",
        "--json",
    ];
    let mut stopped = 0;
    loop {
        let output = command().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => break,
            Some(3) => {
                assert!(said.contains("run again"), "{said}");
                stopped += 1;
            }
            other => panic!("{other:?}: {said}"),
        }
        assert!(stopped < 30, "{said}");
    }
    // Items, users, what neighbours share, and the updates: each waits for the one before.
    assert_eq!(server.rows().len(), 4);
    let (requests, most) = server.billed();
    assert_eq!(most, 1);
    // Nodes with the same prompt share a request, and the second of them looks again; so not every step stops a run.
    assert!(stopped >= 2, "{stopped}");

    // The same online finds every answer.
    let online = json(&["profile", text(&project), "--layers", "1", "--llm", &model]);
    assert_eq!(online["llm"]["attempts"]["ok"], requests);
    assert_eq!(online["llm"]["cached_share"], 0.4);
}
