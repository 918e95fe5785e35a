use super::*;

fn parity() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/base")
}

fn id(text: &str) -> HubId {
    HubId::parse(Path::new(text)).unwrap()
}

/// Puts the model into the cache as other programs would.
fn fill(cache: &Path, reference: Option<&str>, commit: &str) -> PathBuf {
    let repository = cache.join("models--some--model");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    for entry in std::fs::read_dir(parity()).unwrap().flatten() {
        std::fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        std::fs::write(snapshot.join(file), "{}").unwrap();
    }
    if let Some(reference) = reference {
        let path = repository.join("refs").join(reference);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{commit}\n")).unwrap();
    }
    snapshot
}

/// No one answers there, so whoever asks fails.
fn nobody(cache: &Path) -> Hub {
    let mut hub = Hub::new(cache).endpoint("http://127.0.0.1:9");
    hub.patience.pause = Duration::from_millis(1);
    hub
}

#[test]
fn the_environment_says_where_everything_is() {
    let home = std::env::home_dir().unwrap_or_default();
    let hub = |variables: &[(&str, &str)]| {
        Hub::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    };
    for (variables, cache) in [
        (vec![], home.join(".cache/huggingface/hub")),
        (vec![("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub".into()),
        (vec![("HF_HOME", "/h")], "/h/hub".into()),
        (vec![("HF_HOME", "~/h")], home.join("h/hub")),
        (vec![("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c".into()),
        (
            vec![("HF_HUB_CACHE", ""), ("HF_HOME", "/h")],
            "/h/hub".into(),
        ),
    ] {
        assert_eq!(hub(&variables).cache, cache, "{variables:?}");
    }
    assert_eq!(hub(&[]).endpoint, "https://huggingface.co");
    assert_eq!(
        hub(&[("HF_ENDPOINT", "http://m/x/ ")]).endpoint,
        "http://m/x"
    );
    for (value, offline) in [("1", true), ("True", true), ("0", false), ("", false)] {
        assert_eq!(
            hub(&[("HF_HUB_OFFLINE", value)]).offline,
            offline,
            "{value}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
    let here = folder.path().to_str().unwrap();
    let token = |variables: &[(&str, &str)]| hub(variables).token;
    assert_eq!(token(&[("HF_HOME", here)]), Token::new("hf_file"));
    assert_eq!(
        token(&[("HF_HOME", here), ("HF_TOKEN", " hf_variable ")]),
        Token::new("hf_variable")
    );
    assert_eq!(
        token(&[("HF_TOKEN_PATH", &format!("{here}/token"))]),
        Token::new("hf_file")
    );
    assert_eq!(token(&[("HF_HOME", "/nowhere")]), Token::default());
}

#[test]
fn a_model_in_the_cache_is_used_without_asking() {
    let cache = tempfile::tempdir().unwrap();
    let commit = "a".repeat(40);
    let snapshot = fill(cache.path(), Some("main"), &commit);
    let hub = nobody(cache.path());
    for name in [
        "some/model",
        "some/model@main",
        &format!("some/model@{commit}"),
    ] {
        assert_eq!(hub.folder(Path::new(name)).unwrap(), snapshot, "{name}");
        assert_eq!(
            hub.clone().offline(true).folder(Path::new(name)).unwrap(),
            snapshot
        );
    }
    let path = Path::new("./some/model");
    assert_eq!(hub.folder(path).unwrap(), path);
    assert_eq!(hub.folder(&parity()).unwrap(), parity());
}

#[test]
fn a_snapshot_that_lacks_a_shard_is_not_used() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fill(cache.path(), Some("main"), "c0");
    let weights = snapshot.join("model.safetensors");
    let shards = ["model-1.safetensors", "model-2.safetensors"];
    let index = serde_json::json!({"weight_map": {"a": shards[0], "b": shards[1]}});
    std::fs::write(snapshot.join(cache::INDEX), index.to_string()).unwrap();
    std::fs::rename(&weights, snapshot.join(shards[0])).unwrap();
    let hub = Hub::new(cache.path()).offline(true);
    assert!(hub.fetch(&id("some/model")).is_err());
    std::fs::write(snapshot.join(shards[1]), "").unwrap();
    assert!(hub.fetch(&id("some/model")).is_ok());
    for file in ["config.json", "tokenizer.json"] {
        let away = snapshot.join("away");
        std::fs::rename(snapshot.join(file), &away).unwrap();
        assert!(hub.fetch(&id("some/model")).is_err(), "{file}");
        std::fs::rename(&away, snapshot.join(file)).unwrap();
    }
}

#[test]
fn a_snapshot_copied_by_hand_without_its_small_files_is_used_when_nobody_can_be_asked() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fill(cache.path(), None, "main");
    std::fs::remove_file(snapshot.join("generation_config.json")).unwrap();
    let found = nobody(cache.path()).fetch(&id("some/model")).unwrap();
    assert_eq!((found.path, found.commit.as_str()), (snapshot, "main"));
}

#[test]
fn offline_it_says_what_was_looked_for_and_what_to_put_where() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(cache.path()).offline(true);
    let error = hub.folder(Path::new("some/model@v2")).unwrap_err();
    assert!(error.is_bad_input());
    let said = error.to_string();
    let folder = cache.path().join("models--some--model");
    for part in [
        "some/model@v2: no such folder",
        "config.json, tokenizer.json and model.safetensors",
        "hf download some/model --revision v2",
        "--local-dir model",
        "copy that folder here and give its path",
        folder.to_str().unwrap(),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    #[cfg(feature = "hub")]
    assert!(said.contains("HF_HUB_OFFLINE is set"), "{said}");
    #[cfg(not(feature = "hub"))]
    assert!(said.contains("built without the feature `hub`"), "{said}");
}

#[test]
fn a_reference_cannot_lead_out_of_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    fill(cache.path(), Some("main"), "c0");
    let reference = cache.path().join("models--some--model/refs/main");
    for commit in ["../../x", "/etc", "", "a/b"] {
        std::fs::write(&reference, commit).unwrap();
        let hub = Hub::new(cache.path()).offline(true);
        assert!(hub.fetch(&id("some/model")).is_err(), "{commit}");
    }
}

#[cfg(feature = "hub")]
mod online;
