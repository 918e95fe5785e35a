//! Comparison with PyTorch, transformers and PEFT on a small random model.
//!
//! `tests/data/parity` was written with torch 2.15.0, transformers 5.23.0 and peft 0.21.2 (f32, CPU): a Qwen2 of two layers
//! with random weights, biases and norms; a LoRA adapter of rank 4, alpha 8 with B not zero; twelve rows of tokens of 6 to
//! 24 tokens, the first four of each masked; the logits and the gradients of the first three rows, right-padded; losses,
//! gradient norms and weights of ten AdamW steps (rate 1e-2, warm-up 2, cosine to 10, clip 1, decay 0.01) on batches of
//! two, two a step, in file order.

use std::path::{Path, PathBuf};

use candle_core::Var;

use crate::adapter::{self, read_tensors};
use crate::base::BaseFolder;
use crate::data::{Row, Sample, TrainSet};
use crate::model::{Qwen, Tokens};
use crate::ops::values;
use crate::params::{Parameters, generator, normal};
use crate::session::{Plan, Session};
use crate::weights::Weights;
use crate::{TrainConfig, TrainEvent, Trainer};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/parity")
        .join(name)
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

fn adapted() -> (Qwen, Parameters) {
    let folder = BaseFolder::open(&data("base")).unwrap();
    let mut model = folder.model().unwrap();
    let (lora, parameters) = adapter::read(&data("adapter"), &folder.config).unwrap();
    lora.attach(&mut model, &parameters.tracked());
    (model, parameters)
}

fn samples() -> Vec<Sample> {
    let set = TrainSet::read(&data("tokens.jsonl")).unwrap();
    set.rows
        .iter()
        .map(|(_, row)| match row {
            Row::Tokens(row) => Sample::from_row(row, 64, 64).unwrap(),
            Row::Chat(_) => unreachable!("the file holds tokens"),
        })
        .collect()
}

fn plan() -> Plan {
    Plan {
        steps: 10,
        warmup: 2,
        rate: 1e-2,
        decay: 0.01,
        clip: 1.0,
        batch: 2,
        accumulation: 2,
        shuffle: false,
        seed: 0,
        ..Plan::default()
    }
}

/// Largest difference, relative to the largest of the expected values.
fn distance(is: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(is.len(), expected.len());
    let top = expected.iter().fold(0f32, |top, x| top.max(x.abs()));
    is.iter()
        .zip(expected)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()))
        / top
}

#[test]
fn logits_are_those_of_transformers() {
    let (model, _) = adapted();
    let expected = read_tensors_of_logits();
    let set = TrainSet::read(&data("tokens.jsonl")).unwrap();
    let rows: Vec<Vec<u32>> = set
        .rows
        .iter()
        .take(3)
        .map(|(_, row)| match row {
            Row::Tokens(row) => row.input_ids.clone(),
            Row::Chat(_) => unreachable!("the file holds tokens"),
        })
        .collect();
    let tokens = Tokens::new(rows.iter().map(Vec::as_slice));
    let hidden = model.hidden(&tokens).unwrap();
    let padded = expected.len() / 3 / 64;
    for (row, segment) in tokens.segments.iter().enumerate() {
        let at: Vec<u32> = (segment.start..segment.start + segment.len)
            .map(|row| row as u32)
            .collect();
        let logits = values(&model.logits(&hidden, &at).unwrap()).unwrap();
        let begin = row * padded * 64;
        for (a, b) in logits
            .iter()
            .zip(&expected[begin..begin + segment.len * 64])
        {
            assert!((a - b).abs() < 2e-6, "{a} against {b}");
        }
    }
}

fn read_tensors_of_logits() -> Vec<f32> {
    let bytes = std::fs::read(data("logits.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    crate::weights::to_f32(&file.tensor("logits").unwrap()).unwrap()
}

#[test]
fn loss_and_gradients_are_those_of_peft() {
    let (model, parameters) = adapted();
    let (samples, expected) = (samples(), read_tensors(&data("grads.safetensors")).unwrap());
    let mut session = Session::new(plan(), &model, &parameters, None);
    let batch: Vec<&Sample> = samples[..3].iter().collect();
    let supervised: usize = batch.iter().map(|sample| sample.targets.len()).sum();
    let loss = session.accumulate(&batch, supervised as f64).unwrap();
    assert!((loss - json("grads.json")["loss"].as_f64().unwrap()).abs() < 1e-6);
    for ((name, _), gradient) in parameters.iter().zip(&session.gradients().0) {
        let off = distance(gradient, &expected[&format!("base_model.model.{name}")].1);
        assert!(off < 1e-5, "{name}: {off:e}");
    }
}

#[test]
fn ten_steps_give_pefts_losses_and_weights() {
    let out = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        max_steps: Some(10),
        batch_size: 2,
        accumulation: 2,
        learning_rate: 1e-2,
        warmup_steps: Some(2),
        shuffle: false,
        ..TrainConfig::default()
    };
    let mut steps = Vec::new();
    Trainer::new(config)
        .init_adapter(data("adapter"))
        .run(
            &data("base"),
            &TrainSet::read(&data("tokens.jsonl")).unwrap(),
            out.path(),
            &mut |event| {
                if let TrainEvent::Step(record) = event {
                    steps.push((record.loss, record.grad_norm));
                }
            },
        )
        .unwrap();
    let expected = json("train.json");
    for (step, (loss, norm)) in steps.iter().enumerate() {
        assert!(
            (loss - expected["losses"][step].as_f64().unwrap()).abs() < 2e-6,
            "step {step}: {loss}"
        );
        assert!(
            (norm - expected["grad_norms"][step].as_f64().unwrap()).abs() < 1e-5,
            "step {step}: {norm}"
        );
    }
    let trained = read_tensors(&out.path().join("adapter_model.safetensors")).unwrap();
    let expected = read_tensors(&data("trained.safetensors")).unwrap();
    assert!(trained.keys().eq(expected.keys()));
    for (name, (_, values)) in &trained {
        let off = distance(values, &expected[name].1);
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}

#[test]
fn a_batch_has_the_gradients_of_its_rows_whatever_their_lengths() {
    let (model, parameters) = adapted();
    let samples = samples();
    let gradients = |batches: &[Vec<&Sample>]| {
        let mut session = Session::new(plan(), &model, &parameters, None);
        for batch in batches {
            session.accumulate(batch, 50.0).unwrap();
        }
        session.gradients().0.clone()
    };
    let together = gradients(&[samples[..5].iter().collect()]);
    let alone = gradients(
        &samples[..5]
            .iter()
            .map(|sample| vec![sample])
            .collect::<Vec<_>>(),
    );
    for (together, alone) in together.iter().zip(&alone) {
        assert!(distance(together, alone) < 1e-5);
    }
}

#[test]
fn frozen_weights_do_not_move_and_every_adapter_does() {
    let folder = BaseFolder::open(&data("base")).unwrap();
    let mut weights = Weights::read(&folder.path, &folder.config).unwrap();
    let held: Vec<_> = folder
        .config
        .tensors()
        .into_iter()
        .map(|(name, _)| (name.clone(), weights.take(&name)))
        .collect();
    let before: Vec<Vec<f32>> = held
        .iter()
        .map(|(_, tensor)| values(tensor).unwrap())
        .collect();
    let mut model = Qwen::new(folder.config.clone(), Weights::from_tensors(held.clone()));
    let (lora, parameters) = adapter::read(&data("adapter"), &folder.config).unwrap();
    lora.attach(&mut model, &parameters.tracked());
    let start: Vec<Vec<f32>> = parameters
        .iter()
        .map(|(_, var)| values(var).unwrap())
        .collect();
    Session::new(plan(), &model, &parameters, None)
        .run(&samples(), |_, _| Ok(()))
        .unwrap();
    for ((name, tensor), before) in held.iter().zip(&before) {
        assert_eq!(&values(tensor).unwrap(), before, "{name}");
    }
    for ((name, var), start) in parameters.iter().zip(&start) {
        assert_ne!(&values(var).unwrap(), start, "{name}");
    }
}

/// Full training, as a tiny base is made: the slope along a random direction, by differences and by gradients. The weights
/// are enlarged, so that no part of the model is close to linear.
#[test]
fn gradients_of_all_weights_agree_with_finite_differences() {
    let folder = BaseFolder::open(&data("base")).unwrap();
    let tied = [true, false].map(|tied| crate::QwenConfig {
        tie_word_embeddings: tied,
        ..folder.config.clone()
    });
    for config in tied {
        let draw = |name: &str, count| normal(&mut generator(3, name), count, 0.3);
        let tensors = config.tensors();
        let parameters = Parameters::new(tensors.into_iter().map(|(name, shape)| {
            let values = draw(&name, shape.iter().product());
            (name, shape, values)
        }))
        .unwrap();
        let named = parameters
            .iter()
            .map(|(name, var)| (name.to_owned(), var.as_tensor().clone()));
        let model = Qwen::new(config.clone(), Weights::from_tensors(named));
        let samples = samples();
        let batch: Vec<&Sample> = samples[..4].iter().collect();
        let mut session = Session::new(plan(), &model, &parameters, None);
        session.accumulate(&batch, 40.0).unwrap();
        let gradients = session.gradients().0.clone();
        for ((name, var), gradient) in parameters.iter().zip(&gradients) {
            let direction = normal(&mut generator(4, name), gradient.len(), 1.0);
            let slope: f64 = gradient
                .iter()
                .zip(&direction)
                .map(|(g, d)| f64::from(*g) * f64::from(*d))
                .sum();
            let base = values(var).unwrap();
            let mut loss_at = |shift: f32| {
                set(
                    var,
                    base.iter()
                        .zip(&direction)
                        .map(|(b, d)| b + shift * d)
                        .collect(),
                );
                session.accumulate(&batch, 40.0).unwrap()
            };
            let shift = 1e-3;
            let measured = (loss_at(shift) - loss_at(-shift)) / (2.0 * f64::from(shift));
            set(var, base.clone());
            assert!(
                (measured - slope).abs() < 0.02 * slope.abs().max(0.1),
                "{name}: {measured} against {slope}"
            );
        }
    }
}

fn set(var: &Var, values: Vec<f32>) {
    let tensor =
        candle_core::Tensor::from_vec(values, var.shape(), &candle_core::Device::Cpu).unwrap();
    var.set(&tensor).unwrap();
}
