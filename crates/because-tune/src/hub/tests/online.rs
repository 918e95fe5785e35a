use std::io::Write;
use std::sync::{Arc, Mutex};

use super::super::server::{COMMIT, Fault, Server, sha256};
use super::*;
use crate::base::BaseFolder;

const TOKEN: &str = "hf_OpenSesameOpenSesame";

fn weights() -> Vec<u8> {
    std::fs::read(parity().join("model.safetensors")).unwrap()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let config = std::fs::read(parity().join("config.json")).unwrap();
    [
        ("config.json", config),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"a\":1}".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("model.gguf", b"GGUF".to_vec()),
        ("README.md", b"read me".to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}

fn hub(server: &Server, cache: &Path) -> Hub {
    let mut hub = Hub::new(cache).endpoint(&server.url).token(TOKEN);
    hub.patience = Patience {
        tries: 1,
        pause: Duration::from_millis(1),
        silence: Duration::from_secs(30),
    };
    hub
}

fn fault(result: Result<Snapshot>) -> HubFault {
    match result.unwrap_err() {
        TuneError::Hub { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn a_download_leaves_what_other_clients_of_the_hub_expect() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let found = hub.fetch(&id("some/model")).unwrap();
    let repository = cache.path().join("models--some--model");
    assert_eq!(found.path, repository.join("snapshots").join(COMMIT));
    assert_eq!(
        std::fs::read_to_string(repository.join("refs/main")).unwrap(),
        COMMIT
    );
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names(&found.path),
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
    let blobs = names(&repository.join("blobs"));
    assert!(blobs.contains(&sha256(&weights())), "{blobs:?}");
    assert!(
        blobs.iter().all(|blob| !blob.contains("incomplete")),
        "{blobs:?}"
    );
    assert_eq!(
        names(&repository.join(".no_exist").join(COMMIT)),
        [
            "added_tokens.json",
            "chat_template.jinja",
            "generation_config.json",
            "special_tokens_map.json"
        ]
    );
    #[cfg(unix)]
    assert!(
        std::fs::read_link(found.path.join("config.json"))
            .unwrap()
            .starts_with("../../blobs")
    );
    let asked = server.asked();
    assert!(
        asked
            .iter()
            .all(|asked| !asked.path.contains(".bin") && !asked.path.contains(".gguf"))
    );
    // Everything after the first question is asked of one commit.
    assert!(
        asked
            .iter()
            .skip(1)
            .all(|asked| asked.on_storage || asked.path.contains(COMMIT)),
        "{asked:?}"
    );
    assert_eq!(hub.fetch(&id("some/model")).unwrap(), found);
    let at_commit = format!("some/model@{COMMIT}");
    assert_eq!(hub.fetch(&id(&at_commit)).unwrap(), found);
    assert_eq!(server.asked().len(), 0);
}

#[test]
fn the_token_stays_with_the_hub_when_storage_is_elsewhere() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    hub(&server, cache.path()).fetch(&id("some/model")).unwrap();
    let asked = server.asked();
    let bearer = format!("Bearer {TOKEN}");
    for asked in &asked {
        let sent = asked.authorization.as_deref();
        assert_eq!(sent, (!asked.on_storage).then_some(&*bearer), "{asked:?}");
    }
    assert_eq!(asked.iter().filter(|asked| asked.on_storage).count(), 1);
}

#[test]
fn shards_are_taken_by_their_index() {
    let mut files = files();
    files.retain(|(name, _)| name != "model.safetensors");
    let index =
        serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    files.push((cache::INDEX.into(), index.to_string().into_bytes()));
    files.push(("model-1.safetensors".into(), weights()));
    files.push(("model-2.safetensors".into(), b"two".to_vec()));
    let (server, cache) = (Server::run(files), tempfile::tempdir().unwrap());
    let found = hub(&server, cache.path())
        .fetch(&id("some/model@refs/pr/1"))
        .unwrap();
    let read = |name: &str| std::fs::read(found.path.join(name)).unwrap();
    assert_eq!(read("model-1.safetensors"), weights());
    assert_eq!(read("model-2.safetensors"), b"two");
    assert!(server.asked()[0].path.contains("/resolve/refs%2Fpr%2F1/"));
    let reference = cache.path().join("models--some--model/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);
}

#[test]
fn an_index_cannot_name_a_file_elsewhere() {
    let mut files = files();
    files.retain(|(name, _)| name != "model.safetensors");
    let index = serde_json::json!({"weight_map": {"a": "../../escape.safetensors"}});
    files.push((cache::INDEX.into(), index.to_string().into_bytes()));
    let (server, cache) = (Server::run(files), tempfile::tempdir().unwrap());
    let error = hub(&server, cache.path())
        .fetch(&id("some/model"))
        .unwrap_err();
    assert!(
        error.to_string().contains("is not the plain name"),
        "{error}"
    );
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_was() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    server.fails("GET", "blob/model.safetensors", [Fault::Cut(1000)]);
    let error = hub.fetch(&id("some/model")).unwrap_err();
    let size = weights().len();
    let said = format!("model.safetensors: 1000 of {size} bytes came");
    assert!(error.to_string().contains(&said), "{error}");
    assert!(!error.is_bad_input());
    let repository = cache.path().join("models--some--model");
    let snapshot = repository.join("snapshots").join(COMMIT);
    assert!(!snapshot.join("model.safetensors").exists());
    assert!(!repository.join("refs/main").exists());
    let partial = repository
        .join("blobs")
        .join(format!("{}.incomplete", sha256(&weights())));
    assert_eq!(std::fs::read(&partial).unwrap(), weights()[..1000]);

    server.asked();
    let found = hub.fetch(&id("some/model")).unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
    assert!(!partial.exists());
    let asked = server.asked();
    let ranges: Vec<_> = asked
        .iter()
        .filter_map(|asked| asked.range.as_deref())
        .collect();
    assert_eq!(ranges, ["bytes=1000-", "bytes=1000-"], "hub, then storage");
    // What had come whole is not asked for again.
    assert!(
        asked
            .iter()
            .all(|asked| !asked.path.ends_with("/tokenizer.json"))
    );
}

#[test]
fn one_run_outlasts_a_bad_connection_as_long_as_more_comes() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.patience.tries = 3;
    server.fails(
        "GET",
        "blob/model.safetensors",
        [
            Fault::Cut(500),
            Fault::Drops,
            Fault::Cut(500),
            Fault::Answers(503, String::new(), String::new()),
            Fault::Cut(500),
        ],
    );
    server.fails("HEAD", "config.json", [Fault::Drops]);
    let found = hub.fetch(&id("some/model")).unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn a_server_that_cannot_go_on_in_the_middle_sends_all_again() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.patience.tries = 2;
    server.fails(
        "GET",
        "blob/model.safetensors",
        [Fault::Cut(1000), Fault::IgnoresRange],
    );
    let found = hub.fetch(&id("some/model")).unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn what_came_damaged_is_thrown_away() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    server.fails("GET", "blob/model.safetensors", [Fault::Flip]);
    let fault = fault(hub.fetch(&id("some/model")));
    assert!(matches!(fault, HubFault::Damaged { .. }), "{fault}");
    assert!(fault.to_string().contains(&sha256(&weights())), "{fault}");
    let found = hub.fetch(&id("some/model")).unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn what_another_program_left_half_done_and_wrong_is_found_out() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.patience.tries = 2;
    let blobs = cache.path().join("models--some--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let name = sha256(&weights());
    std::fs::write(blobs.join(format!("{name}.incomplete")), [7; 2000]).unwrap();
    let found = hub.fetch(&id("some/model")).unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights()
    );
    // Longer than the file can be.
    std::fs::remove_dir_all(cache.path().join("models--some--model")).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{name}.incomplete")), vec![7; 200_000]).unwrap();
    hub.fetch(&id("some/model")).unwrap();
}

#[test]
fn a_connection_that_falls_silent_is_given_up() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.patience.silence = Duration::from_secs(2);
    server.fails("GET", "blob/model.safetensors", [Fault::Stalls]);
    let fault = fault(hub.fetch(&id("some/model")));
    assert!(matches!(fault, HubFault::Cut { have: 0, .. }), "{fault}");
}

/// Everything that is told while this runs, at any level.
fn told<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let done = tracing::subscriber::with_default(subscriber, work);
    let bytes = kept.0.lock().unwrap().clone();
    (done, String::from_utf8(bytes).unwrap())
}

#[test]
fn each_refusal_says_what_it_is_and_none_says_the_token() {
    let answer = |status: u16, headers: &str| {
        let headers = format!("{headers}x-error-message: you sent {TOKEN}, sorry\r\n");
        Fault::Answers(status, headers, format!("{{\"error\":\"{TOKEN}\"}}"))
    };
    let to_storage = |location: &str| format!("location: {location}?signature=sesame\r\n");
    // Method, file, answer; what is said; whether the caller is at fault.
    for (method, file, fault, said, is_input) in [
        (
            "HEAD",
            "config.json",
            answer(401, "x-error-code: GatedRepo\r\n"),
            "the token that was sent may not read it; accept the model's terms",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(403, ""),
            "refuses it (status 403",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(401, "x-error-code: RepoNotFound\r\n"),
            "no such model on http://127.0.0.1",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(404, ""),
            "no such model on",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(404, "x-error-code: RevisionNotFound\r\n"),
            "the model has no revision \"v1\"",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(404, "x-error-code: EntryNotFound\r\n"),
            "the repository has no config.json; a base needs",
            true,
        ),
        (
            "HEAD",
            "tokenizer.json",
            answer(404, ""),
            "the repository has no tokenizer.json",
            true,
        ),
        (
            "HEAD",
            "config.json",
            answer(429, "retry-after: 120\r\n"),
            "takes no more requests for now (status 429), try again in 120 s",
            false,
        ),
        (
            "HEAD",
            "config.json",
            answer(500, ""),
            "failed (status 500",
            false,
        ),
        (
            "GET",
            "tokenizer.json",
            answer(502, ""),
            "failed (status 502",
            false,
        ),
        (
            "GET",
            "tokenizer.json",
            Fault::Cut(1),
            "1 of 2 bytes came",
            false,
        ),
        (
            "GET",
            "blob/model.safetensors",
            answer(403, ""),
            "/blob/model.safetensors failed (status 403",
            false,
        ),
        (
            "HEAD",
            "tokenizer.json",
            Fault::Plain,
            "has no X-Repo-Commit; check HF_ENDPOINT",
            false,
        ),
        (
            "HEAD",
            "tokenizer.json",
            answer(200, "x-repo-commit: c\r\netag: \"../../x\"\r\n"),
            "has no ETag",
            false,
        ),
        (
            "HEAD",
            "config.json",
            answer(200, "x-repo-commit: ../../x\r\netag: \"e\"\r\n"),
            "has no X-Repo-Commit",
            false,
        ),
        (
            "HEAD",
            "config.json",
            answer(418, ""),
            "answers status 418",
            false,
        ),
        (
            "HEAD",
            "config.json",
            answer(302, ""),
            "leads nowhere",
            false,
        ),
        (
            "HEAD",
            "config.json",
            answer(302, &to_storage("http://127.0.0.1:9/x")),
            "http://127.0.0.1:9/x cannot be reached",
            false,
        ),
    ] {
        let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
        server.fails(method, file, [fault]);
        let hub = hub(&server, cache.path());
        let (result, told) = told(|| hub.fetch(&id("some/model@v1")));
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("some/model@v1: "), "{message}");
        assert!(message.contains(said), "{said}: {message}");
        assert_eq!(error.is_bad_input(), is_input, "{message}");
        for text in [&message, &format!("{error:?} {hub:?}"), &told] {
            assert!(!text.contains("OpenSesame"), "{text}");
            assert!(!text.contains("signature"), "{text}");
        }
        server.heals();
        hub.fetch(&id("some/model@v1")).unwrap();
    }
}

#[test]
fn retries_are_told_without_the_token() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.patience.tries = 3;
    let headers = format!("x-error-message: busy, {TOKEN}\r\nretry-after: 0\r\n");
    server.fails(
        "HEAD",
        "config.json",
        [500, 429].map(|status| Fault::Answers(status, headers.clone(), String::new())),
    );
    let (found, told) = told(|| hub.fetch(&id("some/model")));
    found.unwrap();
    assert!(told.contains("busy, ***"), "{told}");
    assert!(
        told.contains("trying again") && !told.contains("OpenSesame"),
        "{told}"
    );
}

#[test]
fn without_a_token_a_gated_model_says_where_one_goes() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let headers = "x-error-code: GatedRepo\r\nx-error-message: Access is restricted\r\n";
    server.fails(
        "HEAD",
        "config.json",
        [Fault::Answers(401, headers.to_owned(), String::new())],
    );
    let error = hub(&server, cache.path())
        .token("")
        .fetch(&id("a/b"))
        .unwrap_err();
    let said = "(status 401, \"Access is restricted\"): accept the model's terms on its page if it has any, and put a token";
    assert!(error.to_string().contains(said), "{error}");
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| asked.authorization.is_none())
    );
}

#[test]
fn a_hub_that_cannot_be_reached_says_what_to_put_where() {
    let cache = tempfile::tempdir().unwrap();
    let error = nobody(cache.path()).fetch(&id("some/model")).unwrap_err();
    let said = error.to_string();
    for part in [
        "config.json cannot be reached: ",
        "hf download some/model --include",
        cache.path().to_str().unwrap(),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!error.is_bad_input());
}

#[test]
fn an_endpoint_that_is_none_is_refused_without_showing_a_password() {
    let cache = tempfile::tempdir().unwrap();
    for url in [
        "ftp://x",
        "nonsense",
        "http://",
        "http://me:OpenSesame@host",
    ] {
        let error = Hub::new(cache.path())
            .endpoint(url)
            .fetch(&id("a/b"))
            .unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(
            said.contains("HF_ENDPOINT") && !said.contains("OpenSesame"),
            "{said}"
        );
    }
    let error = hub(&Server::run(files()), cache.path())
        .token("hf_\u{1}OpenSesame")
        .fetch(&id("a/b"))
        .unwrap_err();
    assert!(error.to_string().contains("check HF_TOKEN"), "{error}");
    assert!(!format!("{error:?}").contains("OpenSesame"));
}

#[test]
fn a_server_without_head_and_one_that_redirects_everything_will_do() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    server.knows_no_head();
    hub(&server, cache.path()).fetch(&id("some/model")).unwrap();

    // A mirror that only points to the hub: the hub's token is not the mirror's to pass on.
    let (mirror, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let path = "some/model/resolve/main/config.json";
    let location = format!("location: {}/{path}\r\n", server.url);
    mirror.fails("HEAD", path, [Fault::Answers(308, location, String::new())]);
    server.asked();
    hub(&mirror, cache.path()).fetch(&id("some/model")).unwrap();
    let asked = server.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.authorization.is_none()));
}

#[test]
fn redirects_in_a_circle_end() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let location = "location: ./config.json\r\n".to_owned();
    let circle = Fault::Answers(307, location, String::new());
    server.fails("HEAD", "config.json", vec![circle; 50]);
    let fault = fault(hub(&server, cache.path()).fetch(&id("some/model")));
    assert!(fault.to_string().contains("redirects"), "{fault}");
}

#[test]
fn a_model_that_cannot_be_run_is_refused_before_its_weights_have_come() {
    let mut files = files();
    files[0].1 = br#"{"model_type": "llama"}"#.to_vec();
    let (server, cache) = (Server::run(files), tempfile::tempdir().unwrap());
    let error = hub(&server, cache.path())
        .fetch(&id("some/model"))
        .unwrap_err();
    assert!(matches!(error, TuneError::ModelConfig { .. }), "{error}");
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| !asked.path.contains("safetensors"))
    );
}

#[test]
fn two_at_once_share_one_download() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| hub.fetch(&id("some/model")).unwrap());
        }
    });
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.on_storage).count(), 1);
}

#[test]
fn files_that_the_cache_lacks_are_added_and_asked_for_once() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let snapshot = fill(cache.path(), Some("main"), COMMIT);
    std::fs::remove_file(snapshot.join("tokenizer_config.json")).unwrap();
    std::fs::remove_file(snapshot.join("generation_config.json")).unwrap();
    let hub = hub(&server, cache.path());
    hub.fetch(&id("some/model")).unwrap();
    assert!(snapshot.join("tokenizer_config.json").is_file());
    assert!(server.asked().iter().all(|asked| !asked.on_storage));
    hub.fetch(&id("some/model")).unwrap();
    assert_eq!(server.asked().len(), 0);
}

#[test]
fn a_folder_of_the_owners_name_keeps_the_hub_from_being_asked() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    // Tests run in the crate's folder, which holds `src`.
    let error = hub(&server, cache.path())
        .fetch(&id("src/model"))
        .unwrap_err();
    assert!(
        error.is_bad_input() && error.to_string().contains("src/model@main would ask it"),
        "{error}"
    );
    assert_eq!(server.asked().len(), 0);
    hub(&server, cache.path())
        .fetch(&id("src/model@main"))
        .unwrap();
}

#[tokio::test]
async fn a_base_opens_by_its_hub_id_even_inside_a_runtime() {
    let (server, cache) = (Server::run(files()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let base = BaseFolder::open_from(Path::new("some/model"), || hub.clone()).unwrap();
    assert_eq!(base.name(), "model");
    assert_eq!(base.named(), format!("some/model@{COMMIT}"));
    base.model().unwrap();
    let path = parity();
    let base = BaseFolder::open_from(&path, || panic!("a folder needs no hub")).unwrap();
    assert_eq!(base.named(), path.display().to_string());
}
