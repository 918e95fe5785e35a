//! The crate from outside: bases, adapters, runs and answers.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[cfg(feature = "serve")]
#[path = "it/serve.rs"]
mod serve;
#[path = "it/training.rs"]
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use because_core::{Message, SftExample};
use because_llm::{ChatModel, ChatRequest, Sampling};
use because_tune::{
    Ask, Decoding, Finish, LoraConfig, TinyBase, TrainConfig, TrainEvent, TrainSet, TrainSummary,
    Trainer, TuneError, TunedModel,
};

fn parity(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/parity")
        .join(name)
}

fn texts() -> Vec<String> {
    let (who, what) = (
        ["Ana", "Bo", "Cleo", "Dan"],
        ["quiet cafes", "late ramen", "live jazz", "old bookshops"],
    );
    (0..32)
        .map(|i| {
            format!(
                "{} likes {} and writes about {}.",
                who[i % 4],
                what[i / 4 % 4],
                what[i % 3]
            )
        })
        .collect()
}

fn examples() -> Vec<SftExample> {
    texts()
        .into_iter()
        .map(|text| SftExample {
            messages: vec![
                Message::new("user", format!("Why? {text}")),
                Message::new("assistant", text),
            ],
            user: None,
            item: None,
        })
        .collect()
}

fn tiny(steps: u64, out: &Path) {
    TinyBase::new()
        .seed(3)
        .steps(steps)
        .vocab_size(400)
        .examples(examples())
        .build(texts(), out, &mut |_| {})
        .unwrap();
}

/// A base shared by the tests that only read it.
fn base() -> &'static Path {
    static BASE: OnceLock<tempfile::TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        tiny(12, folder.path());
        folder
    })
    .path()
}

/// Every file of a folder, folders within it included.
fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect()
}

fn settings() -> TrainConfig {
    TrainConfig {
        max_steps: Some(6),
        batch_size: 2,
        accumulation: 2,
        learning_rate: 1e-2,
        warmup_steps: Some(1),
        ..TrainConfig::default()
    }
}

fn train(trainer: &Trainer, out: &Path) -> Result<TrainSummary, TuneError> {
    trainer.run(
        base(),
        &TrainSet::from_examples(examples()),
        out,
        &mut |_| {},
    )
}

#[test]
fn a_tiny_base_is_made_twice_alike_and_learns() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut losses = Vec::new();
    let made = TinyBase::new()
        .seed(3)
        .steps(12)
        .vocab_size(400)
        .examples(examples())
        .build(texts(), one.path(), &mut |event| {
            if let TrainEvent::Step(record) = event {
                losses.push(record.loss);
            }
        })
        .unwrap();
    tiny(12, two.path());
    assert_eq!(bytes(one.path()), bytes(two.path()));
    assert!(
        (made.first_loss - (made.vocab_size as f64).ln()).abs() < 0.5,
        "{made:?}"
    );
    assert!(losses[11] < losses[0] - 1.0, "{losses:?}");
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    const OUT: &str = "BECAUSE_TUNE_TEST_OUT";
    if let Some(out) = std::env::var_os(OUT) {
        // The other process of the two: it writes and leaves the comparison to the first.
        let base = Path::new(&out).join("base");
        tiny(4, &base);
        let data = TrainSet::from_examples(examples());
        Trainer::new(settings())
            .run(&base, &data, &Path::new(&out).join("adapter"), &mut |_| {})
            .unwrap();
        return;
    }
    let made: Vec<_> = ["1", "3"]
        .map(|threads| {
            let out = tempfile::tempdir().unwrap();
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "the_number_of_threads_changes_no_byte",
                    "--test-threads",
                    "1",
                ])
                .env("RAYON_NUM_THREADS", threads)
                .env(OUT, out.path())
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            assert!(status.success());
            let weights =
                std::fs::read(out.path().join("adapter/adapter_model.safetensors")).unwrap();
            (bytes(&out.path().join("base")), weights)
        })
        .into();
    assert!(
        made[0] == made[1],
        "one thread and three give different files"
    );
}

#[test]
fn an_adapter_whose_b_is_zero_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    train(
        &Trainer::new(TrainConfig {
            learning_rate: 0.0,
            max_steps: Some(1),
            ..settings()
        }),
        out.path(),
    )
    .unwrap();
    let row = vec![vec![5, 9, 200, 31]];
    let plain = TunedModel::load(base(), None)
        .unwrap()
        .logits(&row)
        .unwrap();
    assert_eq!(
        TunedModel::load(base(), Some(out.path()))
            .unwrap()
            .logits(&row)
            .unwrap(),
        plain
    );
}

#[test]
fn training_learns_the_answers_and_says_what_it_did() {
    let out = tempfile::tempdir().unwrap();
    let log = out.path().join("log.jsonl");
    let config = TrainConfig {
        max_steps: Some(25),
        ..settings()
    };
    let summary = train(&Trainer::new(config).log(&log), out.path()).unwrap();
    assert!(summary.last_loss < summary.first_loss - 0.5, "{summary:?}");
    assert_eq!((summary.steps, summary.rows, summary.skipped), (25, 32, 0));
    // r (in + out) summed over the seven projections of four layers.
    assert_eq!(
        summary.trainable_parameters,
        4 * 8 * (2 * 256 + 2 * 192 + 3 * 480)
    );
    let lines = std::fs::read_to_string(log).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().nth(24).unwrap()).unwrap();
    let fields: Vec<&String> = line.as_object().unwrap().keys().collect();
    let expected = [
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "supervised_tokens",
        "seconds",
    ];
    assert_eq!(fields, expected);
    assert_eq!(line["step"], 25);
}

#[test]
fn pefts_adapter_is_read_and_written_back_unchanged() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        learning_rate: 0.0,
        max_steps: Some(1),
        ..TrainConfig::default()
    };
    let data = TrainSet::read(&parity("tokens.jsonl")).unwrap();
    Trainer::new(config)
        .init_adapter(parity("adapter"))
        .run(&parity("base"), &data, out.path(), &mut |_| {})
        .unwrap();
    let read = |folder: &Path| {
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter();
        let tensors =
            tensors.map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())));
        tensors.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(read(out.path()), read(&parity("adapter")));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["peft_type"]),
        (&4.into(), &8.into(), &"LORA".into())
    );
    let other = LoraConfig::default();
    let trainer = Trainer::new(settings())
        .init_adapter(parity("adapter"))
        .lora(other);
    let error = trainer
        .run(&parity("base"), &data, out.path(), &mut |_| {})
        .unwrap_err();
    assert!(
        error.is_bad_input() && error.to_string().contains("is asked for"),
        "{error}"
    );
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = parts.path().join("log.jsonl");
    train(&Trainer::new(settings()), whole.path()).unwrap();
    let flag = Arc::new(AtomicBool::new(false));
    let trainer = Trainer::new(settings())
        .resume(true)
        .log(&log)
        .cancel(Arc::clone(&flag));
    let stopped = trainer.run(
        base(),
        &TrainSet::from_examples(examples()),
        parts.path(),
        &mut |event| {
            if matches!(event, TrainEvent::Step(record) if record.step == 3) {
                flag.store(true, Ordering::Relaxed);
            }
        },
    );
    let Err(TuneError::Cancelled {
        step: 3,
        checkpoint: Some(checkpoint),
    }) = stopped
    else {
        panic!("{stopped:?}");
    };
    assert!(checkpoint.join("optimizer.safetensors").is_file());
    assert!(
        !parts.path().join("adapter_config.json").exists(),
        "a stopped run leaves no adapter that looks finished"
    );
    // Other settings or rows are another run.
    let other = Trainer::new(TrainConfig {
        seed: 1,
        ..settings()
    })
    .resume(true);
    assert!(
        train(&other, parts.path())
            .unwrap_err()
            .to_string()
            .contains("other settings")
    );
    let fewer = TrainSet::from_examples(examples().into_iter().take(9));
    let other =
        Trainer::new(settings())
            .resume(true)
            .run(base(), &fewer, parts.path(), &mut |_| {});
    assert!(other.unwrap_err().to_string().contains("other rows"));

    flag.store(false, Ordering::Relaxed);
    let summary = train(&trainer, parts.path()).unwrap();
    assert_eq!(summary.steps, 6);
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(
            bytes(whole.path())[name] == bytes(parts.path())[name],
            "{name}"
        );
    }
    let steps: Vec<u64> = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["step"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn checkpoints_are_kept_one_at_a_time_and_the_last_one_is_the_end() {
    let out = tempfile::tempdir().unwrap();
    let mut steps = Vec::new();
    Trainer::new(TrainConfig {
        checkpoint_every: 4,
        ..settings()
    })
    .run(
        base(),
        &TrainSet::from_examples(examples()),
        out.path(),
        &mut |event| {
            if let TrainEvent::Checkpoint { step, .. } = event {
                steps.push(*step);
            }
        },
    )
    .unwrap();
    assert_eq!(steps, [4, 6]);
    let kept = std::fs::read_dir(out.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().is_dir())
        .count();
    assert_eq!(kept, 1);
}

#[test]
fn a_row_without_room_for_its_answer_is_named_and_left_out() {
    let out = tempfile::tempdir().unwrap();
    let mut data = examples();
    data[1]
        .messages
        .insert(0, Message::new("user", "x ".repeat(40)));
    data[1]
        .messages
        .insert(0, Message::new("user", "x ".repeat(40)));
    data[1]
        .messages
        .insert(0, Message::new("user", "x ".repeat(40)));
    let mut skipped = Vec::new();
    let rows = data.clone();
    // Nine turns of openings alone are longer than this.
    data[1]
        .messages
        .splice(0..0, (0..30).map(|_| Message::new("user", "")));
    let config = TrainConfig {
        max_length: 110,
        max_steps: Some(1),
        ..settings()
    };
    let summary = Trainer::new(config)
        .run(
            base(),
            &TrainSet::from_examples(data),
            out.path(),
            &mut |event| {
                if let TrainEvent::Skipped { line, .. } = event {
                    skipped.push(*line);
                }
            },
        )
        .unwrap();
    assert_eq!(
        (skipped.as_slice(), summary.skipped, summary.rows),
        (&[2][..], 1, rows.len() - 1)
    );
    let error = Trainer::new(TrainConfig {
        max_length: 4,
        ..settings()
    })
    .run(
        base(),
        &TrainSet::from_examples(rows),
        out.path(),
        &mut |_| {},
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no row to learn from: 32 were given, 32 skipped"),
        "{error}"
    );
}

#[test]
fn greedy_decoding_with_a_cache_takes_the_top_of_the_full_pass() {
    let model = TunedModel::load(base(), None).unwrap();
    let prompts = ["Ana likes", "Why? Bo likes late ramen and", "Dan"]
        .map(|text| model.tokenize(text).unwrap());
    let batch = model
        .continue_tokens(&prompts, &Decoding::greedy(20))
        .unwrap();
    assert!(batch.tokens_per_second > 0.0);
    for (prompt, answer) in prompts.iter().zip(&batch.outputs) {
        let alone = model
            .continue_tokens(std::slice::from_ref(prompt), &Decoding::greedy(20))
            .unwrap();
        assert_eq!(
            (&alone.outputs[0].text, &alone.outputs[0].token_ids),
            (&answer.text, &answer.token_ids),
            "a batch answers as each prompt alone"
        );
        let whole: Vec<u32> = prompt.iter().chain(&answer.token_ids).copied().collect();
        let logits = model.logits(&[whole]).unwrap().remove(0);
        for (at, &token) in answer.token_ids.iter().enumerate() {
            let row = &logits[prompt.len() + at - 1];
            let top = row.iter().fold(f32::MIN, |top, &x| top.max(x));
            assert!(row[token as usize] > top - 1e-4, "token {at}");
        }
    }
}

#[test]
fn drawn_answers_repeat_with_their_seed_only() {
    let model = TunedModel::load(base(), None).unwrap();
    let ask = |seed| {
        let decoding = Decoding {
            temperature: 1.5,
            seed,
            ..Decoding::greedy(24)
        };
        model
            .generate(&[Message::new("user", "Why?")], &decoding)
            .unwrap()
            .token_ids
    };
    assert_eq!(ask(1), ask(1));
    assert_ne!(ask(1), ask(2));
}

#[test]
fn a_prompt_that_fills_the_context_is_an_error() {
    let model = TunedModel::load(base(), None).unwrap();
    let context = model.config().max_position_embeddings;
    let error = model
        .continue_tokens(&[vec![7; context]], &Decoding::default())
        .unwrap_err();
    assert!(
        matches!(error, TuneError::ContextTooLong { prompt_tokens, .. } if prompt_tokens == context),
        "{error}"
    );
    let last = model
        .continue_tokens(&[vec![7; context - 1]], &Decoding::greedy(9))
        .unwrap();
    assert_eq!(last.outputs[0].token_ids.len(), 1);
}

#[tokio::test]
async fn a_tuned_model_is_a_chat_model() {
    let out = tempfile::Builder::new()
        .prefix("adapter")
        .tempdir()
        .unwrap();
    train(&Trainer::new(settings()), out.path()).unwrap();
    let model = TunedModel::load(base(), Some(out.path())).unwrap();
    let (base_name, own) = (base().file_name().unwrap(), out.path().file_name().unwrap());
    assert_eq!(
        model.id().model,
        format!(
            "qwen:{}+{}",
            base_name.to_string_lossy(),
            own.to_string_lossy()
        )
    );
    assert_ne!(model.id(), TunedModel::load(base(), None).unwrap().id());
    let request = ChatRequest::new(vec![because_llm::Message::user("Why?")]).sampling(Sampling {
        max_tokens: Some(3),
        ..Sampling::default()
    });
    let response = model.chat(&request).await.unwrap();
    assert_eq!(response.finish_reason.as_deref(), Some("length"));
    assert_eq!(response.usage.completion_tokens, 3);
    let same = model
        .generate(&[Message::new("user", "Why?")], &Decoding::greedy(3))
        .unwrap();
    assert_eq!(
        (same.text.trim(), same.finish),
        (response.answer.as_str(), Finish::Length)
    );
    assert_eq!(response.usage.prompt_tokens, same.prompt_tokens as u64);
    let long = because_llm::Message::user("word ".repeat(4000));
    let error = model.chat(&ChatRequest::new(vec![long])).await.unwrap_err();
    assert!(
        matches!(error, because_llm::ChatError::ContextTooLong { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn chats_that_are_under_way_together_answer_as_each_alone() {
    let model = TunedModel::load(base(), None).unwrap();
    let request = |row: u64| {
        let sampling = Sampling {
            max_tokens: Some(12),
            temperature: Some(1.1),
            ..Sampling::default()
        };
        let question = format!("Why does user {row} like late ramen and quiet games?");
        ChatRequest::new(vec![
            because_llm::Message::system("You explain recommendations in one sentence."),
            because_llm::Message::user(question),
        ])
        .sampling(sampling)
        .seed(row)
    };
    let requests: Vec<ChatRequest> = (0..6).map(request).collect();
    let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|row| model.chat(&requests[row]));
    let (a, b, c, d, e, f) = tokio::join!(a, b, c, d, e, f);
    let together = [a, b, c, d, e, f].map(Result::unwrap);
    let cached: Vec<u64> = together.iter().map(|one| one.usage.cached_tokens).collect();
    assert!(cached[1..].iter().all(|&tokens| tokens >= 16), "{cached:?}");
    let other = TunedModel::load(base(), None).unwrap();
    for (request, answer) in requests.iter().zip(&together) {
        let alone = other.chat(request).await.unwrap();
        assert_eq!(alone.answer, answer.answer);
    }
}

#[tokio::test]
async fn an_answer_to_a_schema_fits_it_beside_answers_in_free_text() {
    let model = TunedModel::load(base(), None).unwrap();
    let schema = serde_json::json!({
        "type": "object", "required": ["stars", "why"], "additionalProperties": false,
        "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}, "why": {"type": "string"}},
    });
    let request = |seed: u64| {
        let sampling = Sampling {
            max_tokens: Some(120),
            temperature: Some(1.0),
            ..Sampling::default()
        };
        let question = because_llm::Message::user("How many stars?");
        ChatRequest::new(vec![question])
            .sampling(sampling)
            .seed(seed)
    };
    let held = request(1).schema("rating", schema);
    let (held, free) = (held, request(1));
    let (held, free) = tokio::join!(model.chat(&held), model.chat(&free));
    let answer: serde_json::Value = serde_json::from_str(&held.unwrap().answer).unwrap();
    assert!((1..=5).contains(&answer["stars"].as_i64().unwrap()) && answer["why"].is_string());
    let alone = TunedModel::load(base(), None).unwrap();
    let alone = alone.chat(&request(1)).await.unwrap();
    assert_eq!(free.unwrap().answer, alone.answer);
}

#[test]
fn adapters_are_laid_over_a_base_by_name_and_taken_away() {
    let out = tempfile::tempdir().unwrap();
    train(&Trainer::new(settings()), out.path()).unwrap();
    let prompt = [Message::new("user", "Why?")];
    let ask = |adapter: Option<&str>| {
        let ask = Ask::chat(prompt.to_vec(), Decoding::greedy(8));
        match adapter {
            Some(name) => ask.adapter(name),
            None => ask,
        }
    };
    let plain = TunedModel::load(base(), None).unwrap();
    plain.add_adapter("kind", out.path()).unwrap();
    assert!(plain.add_adapter("kind", out.path()).is_err());
    let both = plain
        .answer_all(vec![ask(None), ask(Some("kind"))])
        .unwrap();
    let loaded = TunedModel::load(base(), Some(out.path())).unwrap();
    let alone = loaded.generate(&prompt, &Decoding::greedy(8)).unwrap();
    assert_eq!(both.outputs[1].token_ids, alone.token_ids);
    let base_alone = plain.generate(&prompt, &Decoding::greedy(8)).unwrap();
    assert_eq!(both.outputs[0].token_ids, base_alone.token_ids);
    assert_ne!(both.outputs[0].token_ids, both.outputs[1].token_ids);
    plain.remove_adapter("kind").unwrap();
    let error = plain.answer_all(vec![ask(Some("kind"))]).unwrap_err();
    assert_eq!(error.to_string(), "adapter: no adapter is called \"kind\"");
    assert!(plain.remove_adapter("kind").is_err() && plain.adapters().is_empty());
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for (name, bytes) in bytes(from) {
        std::fs::write(to.path().join(name), bytes).unwrap();
    }
    to
}

#[test]
fn a_wrong_shape_is_told_with_both_shapes() {
    let folder = copy(base());
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"),
    )
    .unwrap();
    let error = TunedModel::load(folder.path(), None).unwrap_err();
    let said = "tensor model.layers.0.self_attn.k_proj.weight has shape [64, 128], config.json asks for [128, 128]";
    assert!(
        error.is_bad_input() && error.to_string().ends_with(said),
        "{error}"
    );
}

#[test]
fn what_is_not_a_base_is_told_what_to_put_where() {
    let without = |name: &str| {
        let folder = copy(base());
        std::fs::remove_file(folder.path().join(name)).unwrap();
        TunedModel::load(folder.path(), None).unwrap_err()
    };
    let gguf = TunedModel::load(Path::new("model.gguf"), None).unwrap_err();
    let unknown = TunedModel::load(Path::new("./Qwen/Qwen2.5-0.5B-Instruct"), None).unwrap_err();
    let adapter = TunedModel::load(base(), Some(Path::new("nowhere"))).unwrap_err();
    for (error, said) in [
        (without("config.json"), "no config.json in this folder"),
        (without("tokenizer.json"), "no tokenizer.json; put"),
        (
            without("model.safetensors"),
            "no weights; put model.safetensors",
        ),
        (gguf, "model.gguf: no such file"),
        (
            unknown,
            "no such folder; a base is a folder with config.json",
        ),
        (adapter, "no adapter here"),
    ] {
        assert!(
            error.is_bad_input() && error.to_string().contains(said),
            "{error}"
        );
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let error = TunedModel::load(base(), Some(&parity("adapter"))).unwrap_err();
    assert!(error.is_bad_input());
    assert!(
        error
            .to_string()
            .contains("has shape [4, 32], base and settings ask for [4, 128]"),
        "{error}"
    );
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_names_the_step() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_steps: Some(0),
        clip: 0.0,
        max_steps: Some(9),
        ..settings()
    };
    let error = train(&Trainer::new(config), out.path()).unwrap_err();
    assert!(
        matches!(error, TuneError::NotFinite { step: 2.., .. }),
        "{error}"
    );
    assert!(!error.is_bad_input());
}
