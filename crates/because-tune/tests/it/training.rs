//! What lies around the steps: evaluation, stopping, checkpoints, memory, plans, and training of all weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use because_core::SftExample;
use because_tune::{
    Checkpointing, LoraConfig, TokenRow, TrainConfig, TrainEvent, TrainSet, TrainSummary, Trainer,
    TuneError, TunedModel,
};

use super::{base, bytes, examples, settings};

fn data() -> TrainSet {
    TrainSet::from_examples(examples().into_iter().take(24))
}

fn valid() -> TrainSet {
    TrainSet::from_examples(examples().into_iter().skip(24))
}

fn run(trainer: &Trainer, out: &Path) -> Result<TrainSummary, TuneError> {
    trainer.run(base(), &data(), out, &mut |_| {})
}

/// Names of the folders in a folder.
fn folders(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The lines of a log without the times.
fn log(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.split(",\"seconds\"").next().unwrap().to_owned())
        .collect()
}

/// Everything at once that could be forgotten over a stop.
fn everything() -> TrainConfig {
    TrainConfig {
        max_steps: None,
        epochs: 3,
        batch_tokens: Some(260),
        bucketing: 2,
        accumulation: 2,
        evaluate_every: 2,
        checkpoint_every: 3,
        keep_checkpoints: 2,
        max_length: 200,
        ..settings()
    }
}

fn stopped_at(step: u64, trainer: &Trainer, out: &Path) {
    let flag = Arc::new(AtomicBool::new(false));
    let trainer = trainer.clone().cancel(Arc::clone(&flag));
    let ended = trainer.run(base(), &data(), out, &mut |event| {
        if matches!(event, TrainEvent::Step(record) if record.step == step) {
            flag.store(true, Ordering::Relaxed);
        }
    });
    assert!(
        matches!(ended, Err(TuneError::Cancelled { step: at, .. }) if at == step),
        "{ended:?}"
    );
}

#[test]
fn a_run_stopped_again_and_again_ends_with_the_same_bytes_in_everything() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trainer = |out: &Path| {
        Trainer::new(everything())
            .lora(LoraConfig {
                dropout: 0.1,
                ..LoraConfig::default()
            })
            .valid(valid())
            .log(out.join("log.jsonl"))
    };
    let summary = run(&trainer(whole.path()), whole.path()).unwrap();
    assert!(summary.steps > 8, "{summary:?}");
    let plain = tempfile::tempdir().unwrap();
    let undropped = Trainer::new(everything()).valid(valid());
    let undropped = run(&undropped, plain.path()).unwrap();
    assert_ne!(undropped.last_loss, summary.last_loss, "nothing is dropped");
    let resumed = trainer(parts.path()).resume(true);
    for step in [1, 2, 5, 6] {
        stopped_at(step, &resumed, parts.path());
    }
    // As if killed: the last two steps' work is lost, and what they wrote of it is in the way.
    let last = parts.path().join("checkpoint-00000006");
    let flag = Arc::new(AtomicBool::new(false));
    let away = tempfile::tempdir().unwrap();
    let kept = away.path().join("kept");
    copy(&last, &kept);
    stopped_at(8, &resumed.clone().cancel(flag), parts.path());
    for name in folders(parts.path()) {
        if !name.starts_with("checkpoint-best") {
            std::fs::remove_dir_all(parts.path().join(name)).unwrap();
        }
    }
    copy(&kept, &last);

    let again = run(&resumed, parts.path()).unwrap();
    assert_eq!(again.best_step, summary.best_step);
    assert_eq!(again.best_loss, summary.best_loss);
    assert_eq!(again.first_loss, summary.first_loss);
    assert_eq!(again.last_loss, summary.last_loss);
    assert_eq!(again.tokens, summary.tokens);
    assert_eq!(
        log(&whole.path().join("log.jsonl")),
        log(&parts.path().join("log.jsonl"))
    );
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(
            bytes(whole.path())[name] == bytes(parts.path())[name],
            "{name}"
        );
    }
    let end = format!("checkpoint-{:08}", summary.steps);
    for name in ["optimizer.safetensors", "adapter_model.safetensors"] {
        let of = |out: &Path| bytes(&out.join(&end)).remove(name);
        assert!(of(whole.path()) == of(parts.path()), "{name} of {end}");
    }
    let state = |out: &Path| -> serde_json::Value {
        let mut state: serde_json::Value =
            serde_json::from_slice(&bytes(&out.join(&end))["trainer_state.json"]).unwrap();
        state["totals"]["seconds"] = 0.into();
        state
    };
    assert_eq!(state(whole.path()), state(parts.path()));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for (name, bytes) in bytes(from) {
        std::fs::write(to.join(name), bytes).unwrap();
    }
}

#[test]
fn every_row_is_seen_once_an_epoch_however_batches_are_made() {
    let plain = TrainConfig {
        max_steps: None,
        epochs: 2,
        ..settings()
    };
    let packed = TrainConfig {
        batch_tokens: Some(150),
        bucketing: 3,
        ..plain.clone()
    };
    let of = |config: TrainConfig| {
        let out = tempfile::tempdir().unwrap();
        run(&Trainer::new(config), out.path()).unwrap()
    };
    let (plain, packed) = (of(plain), of(packed));
    assert_eq!(plain.supervised_tokens, packed.supervised_tokens);
    assert!(packed.tokens <= plain.tokens, "packing pads nothing");
    assert!((packed.unpadded_tokens_per_second - packed.tokens_per_second).abs() < 1e-9);
}

#[test]
fn the_validation_set_is_looked_at_when_it_is_time_and_the_best_is_what_remains() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("log.jsonl");
    let config = TrainConfig {
        max_steps: Some(7),
        evaluate_every: 3,
        checkpoint_every: 1,
        keep_checkpoints: 9,
        // So high that it gets worse after it got better.
        learning_rate: 0.3,
        ..settings()
    };
    let mut seen = Vec::new();
    let trainer = Trainer::new(config).valid(valid()).log(&file);
    let summary = trainer
        .run(base(), &data(), out.path(), &mut |event| {
            if let TrainEvent::Evaluated(evaluation) = event {
                seen.push(evaluation.clone());
            }
        })
        .unwrap();
    assert_eq!(
        seen.iter().map(|seen| seen.step).collect::<Vec<_>>(),
        [3, 6, 7]
    );
    let best = seen
        .iter()
        .min_by(|one, other| one.loss.total_cmp(&other.loss))
        .unwrap();
    assert_eq!(summary.best_step, Some(best.step));
    assert_eq!(summary.best_loss, Some(best.loss));
    assert_eq!(summary.valid_rows, Some(8));
    assert!(!summary.stopped_early);
    assert!((best.perplexity.ln() - best.loss).abs() < 1e-9);
    let checkpoint = out.path().join(format!("checkpoint-{:08}", best.step));
    let name = "adapter_model.safetensors";
    assert!(bytes(out.path())[name] == bytes(&checkpoint)[name]);

    // The lines of steps are what they were; evaluations have lines of their own.
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines.iter().filter(|line| line["loss"].is_number()).count(),
        7
    );
    let evaluated: Vec<&serde_json::Value> = lines
        .iter()
        .filter(|line| line["valid_loss"].is_number())
        .collect();
    assert_eq!(evaluated.len(), 3);
    assert!(evaluated.iter().all(|line| line.get("loss").is_none()));
    assert_eq!(evaluated[0]["step"], 3);

    // What the trained adapter says of the rows is what the evaluation said.
    let model = TunedModel::load(base(), Some(out.path())).unwrap();
    let rows: Vec<TokenRow> = (0..3).map(|row| token_row(row, 20)).collect();
    let trained = tempfile::tempdir().unwrap();
    let mut evaluated = 0.0;
    Trainer::new(TrainConfig {
        max_steps: Some(1),
        learning_rate: 0.0,
        ..settings()
    })
    .init_adapter(out.path())
    .valid(TrainSet::from_rows(rows.clone()))
    .run(base(), &data(), trained.path(), &mut |event| {
        if let TrainEvent::Evaluated(evaluation) = event {
            evaluated = evaluation.loss;
        }
    })
    .unwrap();
    let expected = mean_loss(&model, &rows);
    assert!(
        (evaluated - expected).abs() < 1e-4,
        "{evaluated} {expected}"
    );
}

fn token_row(row: u32, length: u32) -> TokenRow {
    TokenRow {
        input_ids: (0..length)
            .map(|at| 5 + (row * 31 + at * 7) % 250)
            .collect(),
        labels: None,
    }
}

/// From the logits, in f64.
fn mean_loss(model: &TunedModel, rows: &[TokenRow]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for row in rows {
        let logits = &model.logits(std::slice::from_ref(&row.input_ids)).unwrap()[0];
        for (at, &next) in row.input_ids[1..].iter().enumerate() {
            let row: Vec<f64> = logits[at].iter().map(|&x| f64::from(x)).collect();
            let top = row.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = row.iter().map(|x| (x - top).exp()).sum();
            sum += top + total.ln() - row[next as usize];
            count += 1;
        }
    }
    sum / f64::from(count)
}

#[test]
fn patience_ends_a_run_that_no_longer_improves_and_resuming_it_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        max_steps: Some(60),
        evaluate_every: 1,
        patience: Some(2),
        checkpoint_every: 100,
        learning_rate: 0.3,
        ..settings()
    };
    let trainer = Trainer::new(config).valid(valid());
    let mut told = None;
    let summary = trainer
        .run(base(), &data(), out.path(), &mut |event| {
            if let TrainEvent::StoppedEarly {
                step, best_step, ..
            } = event
            {
                told = Some((*step, *best_step));
            }
        })
        .unwrap();
    assert!(summary.stopped_early && summary.steps < 60, "{summary:?}");
    assert_eq!(told, Some((summary.steps, summary.best_step.unwrap())));
    assert_eq!(summary.steps, summary.best_step.unwrap() + 2);
    let before = bytes(out.path());
    std::fs::remove_file(out.path().join("adapter_model.safetensors")).unwrap();
    let again = run(&trainer.resume(true), out.path()).unwrap();
    assert_eq!(again.steps, summary.steps);
    assert_eq!(bytes(out.path()), before);
}

#[test]
fn without_a_number_of_steps_the_validation_set_waits_for_the_end_of_an_epoch() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        max_steps: None,
        epochs: 2,
        batch_size: 5,
        accumulation: 1,
        ..settings()
    };
    let mut steps = Vec::new();
    Trainer::new(config)
        .valid(valid())
        .run(base(), &data(), out.path(), &mut |event| {
            if let TrainEvent::Evaluated(evaluation) = event {
                steps.push(evaluation.step);
            }
        })
        .unwrap();
    // 24 rows end within the fifth batch of five, 48 within the tenth.
    assert_eq!(steps, [5, 10]);
    assert!(
        folders(out.path()).is_empty(),
        "no checkpoint was asked for"
    );
}

#[test]
fn the_newest_checkpoints_stay_and_the_best_beside_them() {
    let out = tempfile::tempdir().unwrap();
    // What another run left is not taken for this one's.
    std::fs::create_dir_all(out.path().join("checkpoint-00000004")).unwrap();
    std::fs::write(
        out.path().join("checkpoint-00000004/trainer_state.json"),
        "{}",
    )
    .unwrap();
    let config = TrainConfig {
        max_steps: Some(6),
        checkpoint_every: 1,
        keep_checkpoints: 2,
        evaluate_every: 2,
        learning_rate: 1e-3,
        ..settings()
    };
    let summary = run(&Trainer::new(config).valid(valid()), out.path()).unwrap();
    let best = format!("checkpoint-best-{:08}", summary.best_step.unwrap());
    assert_eq!(
        folders(out.path()),
        ["checkpoint-00000005", "checkpoint-00000006", &best]
    );
}

#[test]
fn settings_that_need_a_validation_set_ask_for_one() {
    let out = tempfile::tempdir().unwrap();
    let fails = |config| {
        let error = run(&Trainer::new(config), out.path()).unwrap_err();
        assert!(error.is_bad_input());
        error.to_string()
    };
    let said = fails(TrainConfig {
        patience: Some(1),
        ..settings()
    });
    assert!(said.starts_with("patience: is set, but"), "{said}");
    let said = fails(TrainConfig {
        evaluate_every: 1,
        ..settings()
    });
    assert!(said.starts_with("evaluate_every: is set, but"), "{said}");
}

#[test]
fn a_plan_says_what_the_run_then_does() {
    for batch_tokens in [None, Some(150)] {
        let config = TrainConfig {
            max_steps: None,
            epochs: 2,
            batch_tokens,
            ..settings()
        };
        let trainer = Trainer::new(config).valid(valid());
        let plan = trainer.plan(base(), &data()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let done = run(&trainer, out.path()).unwrap();
        assert_eq!(plan.steps, done.steps);
        assert_eq!(plan.rows, done.rows);
        assert_eq!(plan.valid_rows, done.valid_rows);
        assert_eq!(plan.tokens, done.tokens);
        assert_eq!(plan.supervised_tokens, done.supervised_tokens);
        assert_eq!(plan.trainable_parameters, done.trainable_parameters);
        assert_eq!(plan.memory_bytes, plan.memory.total());
        assert!(plan.measured_flops_per_second > 1e8, "{plan:?}");
        assert!(0.0 < plan.seconds_low && plan.seconds_low < plan.seconds_high);
    }
}

#[test]
fn a_batch_that_does_not_fit_is_computed_in_parts_to_the_same_gradients() {
    let losses = |config: TrainConfig| {
        let out = tempfile::tempdir().unwrap();
        let mut losses = Vec::new();
        let summary = Trainer::new(config).run(base(), &data(), out.path(), &mut |event| {
            if let TrainEvent::Step(record) = event {
                losses.push((record.loss, record.grad_norm));
            }
        });
        summary.map(|summary| (summary, losses))
    };
    let whole = TrainConfig {
        checkpointing: Some(Checkpointing::None),
        batch_size: 4,
        ..settings()
    };
    let plan = Trainer::new(whole.clone()).plan(base(), &data()).unwrap();
    let parts = TrainConfig {
        memory_limit: Some(plan.memory_bytes - 1),
        ..whole.clone()
    };
    let (summary, whole) = losses(whole).unwrap();
    assert_eq!(summary.micro_batch_tokens, None);
    let (summary, parts_losses) = losses(parts.clone()).unwrap();
    assert!(summary.micro_batch_tokens.is_some(), "{summary:?}");
    for ((one, norm), (other, other_norm)) in whole.iter().zip(&parts_losses) {
        assert!((one - other).abs() < 1e-4, "{one} {other}");
        assert!(
            (norm / other_norm - 1.0).abs() < 1e-3,
            "{norm} {other_norm}"
        );
    }
    let error = losses(TrainConfig {
        memory_limit: Some(1 << 16),
        checkpointing: None,
        ..parts
    });
    let error = error.unwrap_err();
    assert!(error.is_bad_input());
    assert!(
        error.to_string().starts_with("memory_limit: one row of"),
        "{error}"
    );
}

#[test]
fn a_run_goes_on_with_its_own_cut_whatever_memory_there_is_then() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let roomy = TrainConfig {
        checkpointing: Some(Checkpointing::None),
        batch_size: 4,
        ..settings()
    };
    let plan = Trainer::new(roomy.clone()).plan(base(), &data()).unwrap();
    let tight = TrainConfig {
        memory_limit: Some(plan.memory_bytes - 1),
        ..roomy.clone()
    };
    run(&Trainer::new(tight.clone()), whole.path()).unwrap();
    stopped_at(2, &Trainer::new(tight), parts.path());
    let summary = run(&Trainer::new(roomy).resume(true), parts.path()).unwrap();
    assert!(summary.micro_batch_tokens.is_some());
    let name = "adapter_model.safetensors";
    assert!(bytes(whole.path())[name] == bytes(parts.path())[name]);
}

#[test]
fn a_loss_that_is_no_number_names_the_step_and_its_lines() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        learning_rate: 1e38,
        warmup_steps: Some(0),
        shuffle: false,
        ..settings()
    };
    let said = run(&Trainer::new(config), out.path())
        .unwrap_err()
        .to_string();
    assert!(said.starts_with("step 2: loss is "), "{said}");
    assert!(
        said.ends_with("rows of this step, lines 5, 6, 7, 8"),
        "{said}"
    );
}

#[test]
fn gradients_that_are_all_zero_are_told_of() {
    let out = tempfile::tempdir().unwrap();
    let still = TrainConfig {
        max_steps: Some(1),
        learning_rate: 0.0,
        shuffle: false,
        ..settings()
    };
    run(&Trainer::new(still.clone()), out.path()).unwrap();
    // With both A and B zero nothing can ever move.
    let path = out.path().join("adapter_model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let head = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[head..].fill(0);
    std::fs::write(&path, file).unwrap();
    let mut warnings = Vec::new();
    let again = tempfile::tempdir().unwrap();
    Trainer::new(still)
        .init_adapter(out.path())
        .run(base(), &data(), again.path(), &mut |event| {
            if let TrainEvent::Warning { reason } = event {
                warnings.push(reason.clone());
            }
        })
        .unwrap();
    assert_eq!(
        warnings,
        ["step 1: all gradients are zero, lines 1, 2, 3, 4"]
    );
}

#[test]
fn rows_of_which_nothing_can_be_learnt_are_named_with_the_reason() {
    let mut rows: Vec<TokenRow> = (0..4).map(|row| token_row(row, 30)).collect();
    rows[1].labels = Some(vec![-100; 30]);
    rows[2].labels = Some(
        [
            vec![-100; 25],
            rows[2].input_ids[25..]
                .iter()
                .map(|&id| i64::from(id))
                .collect(),
        ]
        .concat(),
    );
    let config = TrainConfig {
        max_length: 20,
        ..settings()
    };
    let plan = Trainer::new(config)
        .plan(base(), &TrainSet::from_rows(rows))
        .unwrap();
    let said: Vec<(u64, &str)> = plan
        .skipped
        .iter()
        .map(|row| (row.line, row.reason.as_str()))
        .collect();
    assert_eq!(said[0].0, 2);
    assert!(
        said[0].1.contains("no token of it is to be learnt"),
        "{said:?}"
    );
    assert_eq!(
        said[1],
        (3, "nothing of the answer is left within 20 tokens")
    );
    assert_eq!((plan.rows, plan.truncated, plan.answers_cut), (2, 2, 2));
}

/// A base in bf16, as published ones are.
fn base_in_bf16(folder: &Path) -> PathBuf {
    let path = folder.join("base");
    copy(base(), &path);
    let file = std::fs::read(path.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let halves: BTreeMap<String, (Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let upper = view.data().chunks_exact(4).flat_map(|x| [x[2], x[3]]);
            (name, (view.shape().to_vec(), upper.collect()))
        })
        .collect();
    let views = halves.iter().map(|(name, (shape, bytes))| {
        let dtype = safetensors::Dtype::BF16;
        (
            name,
            safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(
        path.join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    path
}

#[test]
fn all_weights_of_a_small_base_are_trained_into_a_base_of_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let base = base_in_bf16(folder.path());
    let config = TrainConfig {
        learning_rate: 3e-3,
        checkpoint_every: 2,
        evaluate_every: 2,
        ..settings()
    };
    let trainer = Trainer::new(config).full().valid(valid());
    let out = folder.path().join("model");
    let summary = trainer.run(&base, &data(), &out, &mut |_| {}).unwrap();
    assert!(summary.last_loss < summary.first_loss, "{summary:?}");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(bytes(&out)[name], bytes(&base)[name], "{name}");
    }
    let weights = bytes(&out).remove("model.safetensors").unwrap();
    let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let before = bytes(&base).remove("model.safetensors").unwrap();
    let before = safetensors::SafeTensors::deserialize(&before).unwrap();
    assert_eq!(file.names().len(), before.names().len());
    let mut numbers = 0;
    for (name, view) in file.tensors() {
        let old = before.tensor(&name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (old.dtype(), old.shape()));
        assert_ne!(view.data(), old.data(), "{name} has not moved");
        numbers += view.shape().iter().product::<usize>() as u64;
    }
    assert_eq!(summary.trainable_parameters, numbers);
    let model = TunedModel::load(&out, None).unwrap();
    assert!(model.logits(&[vec![5, 9, 200]]).unwrap()[0][0][0].is_finite());

    // Stopped and resumed it comes to the same bytes.
    let parts = folder.path().join("parts");
    let flag = Arc::new(AtomicBool::new(false));
    let stopping = trainer.clone().cancel(Arc::clone(&flag));
    let stopped = stopping.run(&base, &data(), &parts, &mut |event| {
        if matches!(event, TrainEvent::Step(record) if record.step == 3) {
            flag.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(stopped, Err(TuneError::Cancelled { step: 3, .. })));
    assert!(
        !parts.join("config.json").exists(),
        "no base is left that looks whole"
    );
    let resumed = trainer.clone().resume(true);
    resumed.run(&base, &data(), &parts, &mut |_| {}).unwrap();
    assert_eq!(bytes(&out), bytes(&parts));

    let itself = trainer.run(&base, &data(), &base, &mut |_| {}).unwrap_err();
    assert!(
        itself.to_string().contains("is the base itself"),
        "{itself}"
    );
    let adapted = trainer.init_adapter(folder.path());
    let error = adapted.run(&base, &data(), &out, &mut |_| {}).unwrap_err();
    assert!(error.is_bad_input(), "{error}");
}

#[test]
fn checkpoints_of_another_validation_set_are_not_gone_on_from() {
    let out = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(settings()).valid(valid());
    stopped_at(2, &trainer, out.path());
    let others: Vec<SftExample> = examples().into_iter().take(3).collect();
    let other = Trainer::new(settings())
        .valid(TrainSet::from_examples(others))
        .resume(true);
    let said = run(&other, out.path()).unwrap_err().to_string();
    assert!(said.contains("another validation set"), "{said}");
}
