//! Two processes write to one store and are killed; what they were told is on disk, is.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use because_llm::{
    BoxFuture, ChatModel, ChatRequest, ChatResponse, Message, ModelId, ModelStack, Result, Store,
};

const PATH: &str = "BECAUSE_LLM_KILL_TEST";

struct Echo;

impl ChatModel for Echo {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            futures_timer::Delay::new(Duration::from_millis(1)).await;
            Ok(ChatResponse {
                answer: request.messages[0].content.clone(),
                ..ChatResponse::default()
            })
        })
    }
}

fn ask(text: &str) -> ChatRequest {
    ChatRequest::new(vec![Message::user(text)])
}

/// What the killed processes do: ask on and on, and say what they were answered. Does nothing on its own.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(path) = std::env::var(PATH) else {
        return;
    };
    let model = ModelStack::new(Echo)
        .store(Store::open(path).unwrap())
        .concurrency(16)
        .build()
        .unwrap();
    for round in 0.. {
        let requests: Vec<ChatRequest> = (0..16)
            .map(|n| ask(&format!("{}-{round}-{n}", std::process::id())))
            .collect();
        let answers =
            futures_util::future::join_all(requests.iter().map(|request| model.chat(request)))
                .await;
        let mut out = std::io::stdout().lock();
        for answer in answers {
            writeln!(out, "answered {}", answer.unwrap().answer).unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn a_kill_in_the_middle_of_two_writers_loses_nothing_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["kill::child_that_is_killed", "--exact", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut children = [start(), start()];
    let outs = [0, 1].map(|n| children[n].stdout.take().unwrap());
    let heard = AtomicUsize::new(0);
    let answered: Vec<String> = std::thread::scope(|scope| {
        let readers = outs.map(|out| scope.spawn(|| said(out, &heard)));
        while heard.load(Ordering::Relaxed) < 500 {
            std::thread::sleep(Duration::from_millis(1));
        }
        children.iter_mut().for_each(|child| child.kill().unwrap());
        for child in &mut children {
            child.wait().unwrap();
        }
        readers
            .into_iter()
            .flat_map(|reader| reader.join().unwrap())
            .collect()
    });
    assert!(answered.len() > 400, "{}", answered.len());

    let store = Store::open(&path).unwrap();
    for text in &answered {
        let kept = store
            .get(&ask(text).key(&ModelId::default()))
            .unwrap()
            .unwrap();
        assert_eq!(&kept.answer, text);
    }
    let totals = store.totals().unwrap();
    assert!(totals.responses >= answered.len() as u64);
    assert!(totals.attempts["ok"] >= totals.responses);
    assert!(!totals.attempts.contains_key("sent"), "{totals:?}");
}

fn said(out: ChildStdout, heard: &AtomicUsize) -> Vec<String> {
    let mut said: Vec<String> = BufReader::new(out)
        .split(b'\n')
        .map_while(|line| line.ok())
        .inspect(|_| {
            heard.fetch_add(1, Ordering::Relaxed);
        })
        .filter_map(|line| {
            Some(
                String::from_utf8(line)
                    .ok()?
                    .strip_prefix("answered ")?
                    .to_owned(),
            )
        })
        .collect();
    // The last line may be cut; a cut one names nothing that was asked.
    said.pop();
    said
}
