use super::*;
use crate::{ChatRequest, Message};

fn key(text: &str) -> RequestKey {
    ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default())
}

fn answer(text: &str) -> ChatResponse {
    ChatResponse {
        answer: text.into(),
        usage: Usage {
            prompt_tokens: 3,
            completion_tokens: 2,
            ..Usage::default()
        },
        ..ChatResponse::default()
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_names_the_file_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let store = Store::open(&path).unwrap();
    let model = ModelId::default();
    store
        .put(&key("kept"), &model, &answer("kept"))
        .await
        .unwrap();
    store.shared.writer.limit_pages();

    let mut noise = vec![0; 1 << 19];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    // Nothing that compression could make small.
    let big = answer(
        &noise
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
    );
    let error = store.put(&key("big"), &model, &big).await.unwrap_err();
    assert!(
        error.to_string().contains("llm.sqlite") && error.to_string().contains("full"),
        "{error}"
    );
    assert!(error.is_fatal());
    // One row that does not fit does not take its neighbours down with it.
    let (key_big, key_small, small) = (key("big"), key("small"), answer("small"));
    let (failed, fits) = futures_util::future::join(
        store.put(&key_big, &model, &big),
        store.put(&key_small, &model, &small),
    )
    .await;
    assert!(failed.is_err());
    fits.unwrap();

    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get(&key("kept")).unwrap(), Some(answer("kept")));
    assert_eq!(store.get(&key("small")).unwrap(), Some(answer("small")));
    assert_eq!(store.get(&key("big")).unwrap(), None);
    store.put(&key("big"), &model, &big).await.unwrap();
    assert_eq!(store.get(&key("big")).unwrap(), Some(big));
}

#[tokio::test]
async fn calls_under_way_at_a_kill_are_known_at_the_next_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let store = Store::open(&path).unwrap();
    store.begin(&key("a"), &ModelId::default()).unwrap();

    // A second holder does not take a call from a first that lives.
    let second = Store::open(&path).unwrap();
    assert_eq!(
        second.totals().unwrap().attempts,
        [("sent".to_owned(), 1)].into()
    );
    drop((store, second));

    let third = Store::open(&path).unwrap();
    assert_eq!(
        third.totals().unwrap().attempts,
        [("interrupted".to_owned(), 1)].into()
    );
}

#[tokio::test]
async fn the_first_answer_to_a_request_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    let model = ModelId::default();
    store
        .put(&key("a"), &model, &answer("first"))
        .await
        .unwrap();
    store
        .put(&key("a"), &model, &answer("second"))
        .await
        .unwrap();
    assert_eq!(store.get(&key("a")).unwrap(), Some(answer("first")));
    assert_eq!(store.totals().unwrap().responses, 1);
}

#[test]
fn a_newer_a_foreign_and_a_broken_file_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let newer = folder.path().join("newer.sqlite");
    drop(Store::open(&newer).unwrap());
    Connection::open(&newer)
        .unwrap()
        .execute(
            "UPDATE meta SET value = '99' WHERE key = 'schema_version'",
            [],
        )
        .unwrap();
    let foreign = folder.path().join("foreign.sqlite");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE songs(title TEXT)")
        .unwrap();
    let broken = folder.path().join("broken.sqlite");
    std::fs::write(
        &broken,
        "this is a diary, not a database, and it is long enough to look like one".repeat(40),
    )
    .unwrap();
    let nowhere = folder.path().join("no/such/folder.sqlite");

    let message = |path: &Path| {
        Store::open(path)
            .unwrap_err()
            .to_string()
            .replace(folder.path().to_str().unwrap(), "")
    };
    insta::assert_snapshot!([&newer, &foreign, &broken, &nowhere].map(|path| message(path)).join("\n"), @r#"
    /newer.sqlite: written by a newer version (its schema is 99, this program knows 3); update the program or use another file
    /foreign.sqlite: a database of another program; give another path
    /broken.sqlite: file is not a database; move it away to begin a new one
    /no/such/folder.sqlite: cannot open /no/such/folder.sqlite-lock: No such file or directory (os error 2)
    "#);
}

#[tokio::test]
async fn many_writers_share_commits_and_all_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let store = Store::open(&path).unwrap();
    let puts = (0..2000).map(|n| {
        let store = store.clone();
        async move {
            store
                .put(&key(&n.to_string()), &ModelId::default(), &answer("a"))
                .await
        }
    });
    for put in futures_util::future::join_all(puts).await {
        put.unwrap();
    }
    assert_eq!(store.totals().unwrap().responses, 2000);
}

#[test]
fn several_processes_may_open_a_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Store::open(&path).map(drop)))
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}
