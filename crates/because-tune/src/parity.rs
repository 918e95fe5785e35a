//! Comparison with PyTorch, transformers and PEFT on small random models, and of the ways to compute one gradient with
//! each other.
//!
//! `tests/data/make_parity.py` wrote the numbers and says what each of them is: logits, the gradients of a first step, the
//! losses, gradient norms and weights of twenty AdamW steps, for untied and tied bases, grouped heads 2:1 and 7:1, odd
//! sizes, f32, f16 and sharded bf16 files, plain LoRA, DoRA, and rsLoRA with patterns.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::adapter::{self, Tensors, read_tensors, write_tensors};
use crate::base::BaseFolder;
use crate::data::{Row, Sample, TrainSet};
use crate::memory::Checkpointing;
use crate::model::{Qwen, Tokens};
use crate::ops::values;
use crate::params::{Parameters, generator, normal};
use crate::session::{Plan, Session};
use crate::weights::Weights;
use crate::{QwenConfig, TokenRow, TrainConfig, TrainEvent, Trainer};

#[path = "backprop_tests.rs"]
mod backprop_tests;

const FIXTURES: [&str; 5] = [
    "parity",
    "parity-tied",
    "parity-odd",
    "parity-dora",
    "parity-patterns",
];

const CHECKPOINTING: [Checkpointing; 3] = [
    Checkpointing::None,
    Checkpointing::Every(2),
    Checkpointing::All,
];

/// A base with learning weights, which [`session`], [`gradient`], [`parameter`], [`set_parameter`], [`logits`] and
/// [`frozen_hash`] look into; the tests below know nothing of how these are kept.
struct Learner {
    model: Qwen,
    parameters: Parameters,
}

impl Learner {
    fn adapted(base: &Path, adapter: &Path) -> Self {
        let folder = BaseFolder::open(base).unwrap();
        let mut model = folder.model().unwrap();
        let (lora, parameters) = adapter::read(adapter, &folder.config).unwrap();
        lora.attach(&mut model, &parameters, true).unwrap();
        Self { model, parameters }
    }

    /// A base of which everything learns, with these values.
    fn whole(config: &QwenConfig, values: impl Fn(&str, usize) -> Vec<f32>) -> Self {
        let tensors = config.tensors().into_iter().map(|(name, shape)| {
            let values = values(&name, shape.iter().product());
            (name, shape, values)
        });
        let parameters = Parameters::new(tensors).unwrap();
        Self {
            model: Qwen::new(config.clone(), Weights::from_parameters(&parameters, true)),
            parameters,
        }
    }

    fn names(&self) -> Vec<String> {
        self.parameters
            .iter()
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

fn session(learner: &Learner, mut plan: Plan, checkpointing: Checkpointing) -> Session<'_> {
    plan.checkpointing = checkpointing;
    Session::new(plan, &learner.model, &learner.parameters, None)
}

fn slot(parameters: &Parameters, name: &str) -> std::ops::Range<usize> {
    let found = parameters.slots().find(|(known, _, _)| *known == name);
    let (_, slot, len) = found.unwrap_or_else(|| panic!("no parameter {name}"));
    slot..slot + len
}

fn gradient(session: &Session<'_>, name: &str) -> Vec<f32> {
    session.gradients().flat()[slot(session.parameters, name)].to_vec()
}

fn parameter(learner: &Learner, name: &str) -> Vec<f32> {
    values(learner.parameters.flat()).unwrap()[slot(&learner.parameters, name)].to_vec()
}

fn set_parameter(learner: &Learner, name: &str, new: &[f32]) {
    struct Set(Vec<f32>);

    impl candle_core::InplaceOp1 for Set {
        fn name(&self) -> &'static str {
            "set"
        }

        fn cpu_fwd(
            &self,
            storage: &mut candle_core::CpuStorage,
            _: &candle_core::Layout,
        ) -> candle_core::Result<()> {
            *storage = candle_core::CpuStorage::F32(self.0.clone());
            Ok(())
        }
    }

    let mut all = values(learner.parameters.flat()).unwrap();
    all[slot(&learner.parameters, name)].copy_from_slice(new);
    learner.parameters.flat().inplace_op1(&Set(all)).unwrap();
}

/// The mean loss of these batches, which make one step, and their gradients together, by parameter.
fn learn(
    learner: &Learner,
    plan: Plan,
    checkpointing: Checkpointing,
    batches: &[Vec<&Sample>],
) -> (f64, Vec<(String, Vec<f32>)>) {
    let mut session = session(learner, plan, checkpointing);
    let share = |batch: &Vec<&Sample>| session.accumulate(batch, supervised(batches)).unwrap();
    let loss = batches.iter().map(share).sum();
    let names = learner.names().into_iter();
    let gradients = names.map(|name| {
        let gradient = gradient(&session, &name);
        (name, gradient)
    });
    (loss, gradients.collect())
}

/// Logits `[t, v]` of each row, all rows computed in one batch.
fn logits(model: &Qwen, rows: &[&[u32]]) -> Vec<Vec<f32>> {
    let tokens = Tokens::new(rows.iter().copied());
    let hidden = model.hidden(&tokens).unwrap();
    let of = |start: usize, len: usize| {
        let at: Vec<u32> = (start..start + len).map(|at| at as u32).collect();
        values(&model.logits(&hidden, &at).unwrap()).unwrap()
    };
    tokens
        .segments
        .iter()
        .map(|segment| of(segment.start, segment.len))
        .collect()
}

/// FNV-1a over every bit of every frozen weight.
fn frozen_hash(learner: &Learner) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |values: &[f32]| {
        for value in values {
            hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
        }
    };
    let model = &learner.model;
    eat(&model.embedding.values().unwrap());
    eat(&model.head.values().unwrap());
    eat(&values(&model.norm.tensor).unwrap());
    for layer in &model.layers {
        eat(&values(&layer.input_norm.tensor).unwrap());
        eat(&values(&layer.inner_norm.tensor).unwrap());
        for projection in layer.groups.iter().flat_map(|group| &group.all) {
            eat(&projection.weight.values().unwrap());
            if let Some(bias) = &projection.bias {
                eat(&values(&bias.tensor).unwrap());
            }
        }
    }
    hash
}

/// A folder of `tests/data`.
struct Fixture {
    name: &'static str,
    folder: PathBuf,
    expected: Value,
    tensors: Tensors,
}

impl Fixture {
    fn open(name: &'static str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name);
        let expected = std::fs::read(folder.join("reference.json")).unwrap();
        Self {
            name,
            expected: serde_json::from_slice(&expected).unwrap(),
            tensors: read_tensors(&folder.join("reference.safetensors")).unwrap(),
            folder,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        FIXTURES.into_iter().map(Self::open)
    }

    fn base(&self) -> PathBuf {
        self.folder.join(self.expected["base"].as_str().unwrap())
    }

    fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    fn learner(&self) -> Learner {
        Learner::adapted(&self.base(), &self.adapter())
    }

    fn set(&self) -> TrainSet {
        TrainSet::read(&self.folder.join("tokens.jsonl")).unwrap()
    }

    fn rows(&self) -> Vec<TokenRow> {
        let row = |(_, row)| match row {
            Row::Tokens(row) => row,
            Row::Chat(_) => unreachable!("the file holds tokens"),
        };
        self.set().rows.into_iter().map(row).collect()
    }

    fn samples(&self) -> Vec<Sample> {
        self.rows().iter().map(sample).collect()
    }

    fn numbers(&self, field: &str) -> Vec<f64> {
        serde_json::from_value(self.expected[field].clone()).unwrap()
    }

    fn tensor(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn config(&self) -> TrainConfig {
        let plan = &self.expected["plan"];
        let count = |field: &str| plan[field].as_u64().unwrap();
        TrainConfig {
            max_steps: Some(count("steps")),
            warmup_steps: Some(count("warmup")),
            learning_rate: plan["rate"].as_f64().unwrap(),
            weight_decay: plan["decay"].as_f64().unwrap(),
            clip: plan["clip"].as_f64().unwrap(),
            batch_size: count("batch") as usize,
            accumulation: count("accumulation") as usize,
            shuffle: false,
            ..TrainConfig::default()
        }
    }

    fn plan(&self) -> Plan {
        self.config()
            .plan(self.expected["plan"]["steps"].as_u64().unwrap())
    }

    /// The gradients of these batches together, by parameter.
    fn gradients(
        &self,
        batches: &[Vec<&Sample>],
        checkpointing: Checkpointing,
    ) -> Vec<(String, Vec<f32>)> {
        let (_, gradients) = learn(&self.learner(), self.plan(), checkpointing, batches);
        gradients
    }

    /// Compares whole tensors, in the order of `parameters`, with the stored samples, largest magnitudes and norms: each
    /// within `bound` of the tensor's largest magnitude.
    fn compare(&self, what: [&str; 3], tensors: &Tensors, relative_to: &Tensors, bound: f32) {
        let [samples, top, norm] = what;
        let mut stored = self.tensor(samples);
        let names: Vec<String> =
            serde_json::from_value(self.expected["parameters"].clone()).unwrap();
        assert!(tensors.keys().eq(&names), "{}: other names", self.name);
        for (at, name) in names.iter().enumerate() {
            let (_, values) = &tensors[name];
            let most = self.expected["sample"].as_u64().unwrap() as usize;
            let count = values.len().min(if most == 0 { usize::MAX } else { most });
            let (expected, rest) = stored.split_at(count);
            stored = rest;
            let scale = self.tensor(top)[at];
            for (i, expected) in expected.iter().enumerate() {
                let place = i * values.len() / count;
                let off = (values[place] - expected).abs() / scale;
                assert!(off <= bound, "{}: {name}[{place}]: {off:e}", self.name);
            }
            let (_, whole) = &relative_to[name];
            let largest = whole.iter().fold(0f32, |top, x| top.max(x.abs()));
            assert!((largest / scale - 1.0).abs() <= bound, "{name}: {largest}");
            let length = length(whole);
            let expected = f64::from(self.tensor(norm)[at]);
            assert!(
                (length / expected - 1.0).abs() <= f64::from(bound),
                "{}: {name}: norm {length} against {expected}",
                self.name
            );
        }
        assert!(stored.is_empty());
    }
}

fn sample(row: &TokenRow) -> Sample {
    Sample::from_row(row, usize::MAX, usize::MAX).unwrap()
}

fn supervised(batches: &[Vec<&Sample>]) -> f64 {
    let rows = batches.iter().flatten();
    rows.map(|sample| sample.targets.len()).sum::<usize>() as f64
}

fn length(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&x| f64::from(x) * f64::from(x));
    squares.sum::<f64>().sqrt()
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

fn assert_close(is: f64, expected: f64, bound: f64, what: &str) {
    let off = (is / expected - 1.0).abs();
    assert!(off <= bound, "{what}: {is} against {expected}");
}

fn assert_same(is: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], bound: f32, what: &str) {
    assert_eq!(is.len(), expected.len());
    for ((name, is), (_, expected)) in is.iter().zip(expected) {
        let off = distance(is, expected);
        assert!(off <= bound, "{what}: {name}: {off:e}");
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for fixture in Fixture::all() {
        let places: Vec<Vec<usize>> =
            serde_json::from_value(fixture.expected["logit_places"].clone()).unwrap();
        let rows = fixture.rows();
        let rows: Vec<&[u32]> = rows[..places.len()]
            .iter()
            .map(|row| row.input_ids.as_slice())
            .collect();
        let learner = fixture.learner();
        let width = learner.model.config.vocab_size;
        let mut is = Vec::new();
        for (row, places) in logits(&learner.model, &rows).iter().zip(places) {
            for at in places {
                is.extend_from_slice(&row[at * width..(at + 1) * width]);
            }
        }
        let off = distance(&is, fixture.tensor("logits"));
        assert!(off <= 1e-5, "{}: {off:e}", fixture.name);
    }
}

#[test]
fn the_loss_of_each_row_is_that_of_transformers() {
    for fixture in Fixture::all() {
        let learner = fixture.learner();
        let expected = fixture.numbers("row_losses");
        for (row, (sample, expected)) in fixture.samples().iter().zip(expected).enumerate() {
            let mut session = session(&learner, fixture.plan(), CHECKPOINTING[0]);
            let loss = session.accumulate(&[sample], sample.targets.len() as f64);
            let off = loss.unwrap() / expected - 1.0;
            assert!(off.abs() <= 1e-5, "{}: row {row}: {off:e}", fixture.name);
        }
    }
}

#[test]
fn the_gradients_of_a_step_are_those_of_peft() {
    for fixture in Fixture::all() {
        let (samples, plan) = (fixture.samples(), fixture.plan());
        let batches: Vec<Vec<&Sample>> = samples[..plan.batch * plan.accumulation]
            .chunks(plan.batch)
            .map(|batch| batch.iter().collect())
            .collect();
        for checkpointing in CHECKPOINTING {
            let gradients: Tensors = fixture
                .gradients(&batches, checkpointing)
                .into_iter()
                .map(|(name, values)| {
                    (
                        format!("base_model.model.{name}"),
                        (vec![values.len()], values),
                    )
                })
                .collect();
            let what = ["gradients", "gradient_top", "gradient_norm"];
            fixture.compare(what, &gradients, &gradients, 1e-4);
        }
    }
}

#[test]
fn twenty_steps_give_pefts_losses_and_weights() {
    for fixture in Fixture::all() {
        let out = tempfile::tempdir().unwrap();
        let mut steps = Vec::new();
        Trainer::new(fixture.config())
            .init_adapter(fixture.adapter())
            .run(&fixture.base(), &fixture.set(), out.path(), &mut |event| {
                if let TrainEvent::Step(record) = event {
                    steps.push((record.loss, record.grad_norm));
                }
            })
            .unwrap();
        let (losses, norms) = (fixture.numbers("losses"), fixture.numbers("grad_norms"));
        assert_eq!(steps.len(), losses.len());
        for (step, (loss, norm)) in steps.iter().enumerate() {
            let off = [loss - losses[step], norm / norms[step] - 1.0];
            assert!(
                off[0].abs() <= 1e-5 && off[1].abs() <= 1e-4,
                "{}: step {step}: {off:?}",
                fixture.name
            );
        }
        let start = read_tensors(&fixture.adapter().join("adapter_model.safetensors")).unwrap();
        let trained = read_tensors(&out.path().join("adapter_model.safetensors")).unwrap();
        let updates = trained.iter().map(|(name, (shape, values))| {
            let start = start[name].1.iter();
            let update = values.iter().zip(start).map(|(is, was)| is - was).collect();
            (name.clone(), (shape.clone(), update))
        });
        let updates: Tensors = updates.collect();
        let what = ["trained", "update_top", "update_norm"];
        fixture.compare(what, &trained, &updates, 1e-4);
    }
}

#[test]
fn rows_in_one_batch_have_the_gradients_of_each_alone_in_any_order() {
    for fixture in Fixture::all() {
        let samples = fixture.samples();
        let together = |rows: &[&Sample]| fixture.gradients(&[rows.to_vec()], CHECKPOINTING[0]);
        let rows: Vec<&Sample> = samples[..5].iter().collect();
        let expected = together(&rows);
        let alone: Vec<Vec<&Sample>> = rows.iter().map(|&row| vec![row]).collect();
        let alone = fixture.gradients(&alone, CHECKPOINTING[0]);
        assert_same(&alone, &expected, 1e-5, fixture.name);
        let reversed: Vec<&Sample> = rows.into_iter().rev().collect();
        assert_same(&together(&reversed), &expected, 1e-5, fixture.name);
    }
}

/// Padding as other trainers have it, which [`Sample::new`] would leave out: computed to the end, and learnt nowhere.
#[test]
fn padding_changes_no_gradient() {
    for fixture in Fixture::all() {
        let plain: Vec<Sample> = fixture.samples().into_iter().take(4).collect();
        let longest = plain.iter().map(|row| row.ids.len()).max().unwrap();
        let pad = |row: &Sample| {
            let mut ids = row.ids.clone();
            ids.resize(longest + 3, 0);
            Sample { ids, ..row.clone() }
        };
        let padded: Vec<Sample> = plain.iter().map(pad).collect();
        let config = fixture.learner().model.config;
        let whole = Learner::whole(&config, |name, count| {
            normal(&mut generator(5, name), count, 0.3)
        });
        for learner in [fixture.learner(), whole] {
            let [plain, padded] = [&plain, &padded].map(|rows| {
                let batch = [rows.iter().collect()];
                learn(&learner, fixture.plan(), CHECKPOINTING[0], &batch)
            });
            assert_close(padded.0, plain.0, 1e-6, fixture.name);
            assert_same(&padded.1, &plain.1, 1e-5, fixture.name);
        }
    }
}

#[test]
fn what_follows_the_last_token_learnt_is_left_out() {
    for mut row in Fixture::open("parity").rows() {
        let plain = sample(&row);
        row.input_ids.extend([0; 5]);
        row.labels.as_mut().unwrap().extend([-100; 5]);
        let padded = sample(&row);
        assert_eq!((&padded.ids, &padded.targets), (&plain.ids, &plain.targets));
        assert_eq!(padded.length, plain.length + 5);
    }
}

#[test]
fn a_run_masked_in_the_middle_leaves_out_its_own_gradients_alone() {
    for fixture in Fixture::all() {
        let (mut whole, mut masked, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for mut row in fixture.rows().into_iter().take(4) {
            let count = row.input_ids.len();
            let run = count / 3..count - 2;
            row.labels = None;
            let all = sample(&row);
            let label = |at: usize| match run.contains(&at) {
                true => -100,
                false => i64::from(row.input_ids[at]),
            };
            row.labels = Some((0..count).map(label).collect());
            // A target stands at the token before the one that is learnt.
            let in_run = |&(at, _): &(u32, u32)| run.contains(&(at as usize + 1));
            let (dropped, kept): (Vec<_>, Vec<_>) = all.targets.iter().copied().partition(in_run);
            assert_eq!(dropped.len(), run.len());
            let by_hand = |targets| Sample {
                targets,
                ..all.clone()
            };
            assert_eq!(sample(&row), by_hand(kept), "{}", fixture.name);
            masked.push(sample(&row));
            rest.push(by_hand(dropped));
            whole.push(all);
        }
        let [whole, masked, rest] = [&whole, &masked, &rest].map(|rows| rows.iter().collect());
        let expected = fixture.gradients(&[whole], CHECKPOINTING[0]);
        let is = fixture.gradients(&[masked, rest], CHECKPOINTING[0]);
        assert_same(&is, &expected, 1e-5, fixture.name);
    }
}

#[test]
fn two_batches_of_two_have_the_gradients_of_one_of_four() {
    for fixture in Fixture::all() {
        let samples = fixture.samples();
        let [two, four] = [2, 4].map(|size| {
            let batches: Vec<Vec<&Sample>> = samples[..4]
                .chunks(size)
                .map(|batch| batch.iter().collect())
                .collect();
            fixture.gradients(&batches, CHECKPOINTING[0])
        });
        assert_same(&two, &four, 1e-5, fixture.name);
    }
}

#[test]
fn recomputed_layers_have_the_gradients_of_kept_ones() {
    for fixture in Fixture::all() {
        let samples = fixture.samples();
        let batch = [samples[..4].iter().collect()];
        let expected = fixture.gradients(&batch, CHECKPOINTING[0]);
        for checkpointing in CHECKPOINTING {
            let is = fixture.gradients(&batch, checkpointing);
            let what = format!("{}: {checkpointing:?}", fixture.name);
            assert_same(&is, &expected, 1e-6, &what);
        }
    }
}

#[test]
fn a_zero_b_changes_nothing() {
    for fixture in Fixture::all() {
        let folder = tempfile::tempdir().unwrap();
        let [settings, weights] = ["adapter_config.json", "adapter_model.safetensors"];
        let stored = read_tensors(&fixture.adapter().join(weights)).unwrap();
        if stored.keys().any(|name| name.contains("magnitude")) {
            // Magnitudes off their start change the model whatever B is.
            continue;
        }
        let tensors: Vec<_> = stored
            .into_iter()
            .map(|(name, (shape, values))| match name.contains("lora_B") {
                true => (name, shape, vec![0.0; values.len()]),
                false => (name, shape, values),
            })
            .collect();
        write_tensors(&folder.path().join(weights), &tensors, []).unwrap();
        let settings = [fixture.adapter(), folder.path().to_owned()].map(|at| at.join(settings));
        std::fs::copy(&settings[0], &settings[1]).unwrap();
        let plain = BaseFolder::open(&fixture.base()).unwrap().model().unwrap();
        let adapted = Learner::adapted(&fixture.base(), folder.path());
        let rows = fixture.rows();
        let rows: Vec<&[u32]> = rows.iter().map(|row| row.input_ids.as_slice()).collect();
        let is = logits(&adapted.model, &rows).concat();
        let off = distance(&is, &logits(&plain, &rows).concat());
        assert!(off <= 1e-7, "{}: {off:e}", fixture.name);
    }
}

#[test]
fn frozen_weights_do_not_move_and_every_adapter_does() {
    for fixture in Fixture::all() {
        let files = || {
            let entries = std::fs::read_dir(fixture.base()).unwrap();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths
                .iter()
                .map(|path| std::fs::read(path).unwrap())
                .collect::<Vec<_>>()
        };
        let learner = fixture.learner();
        let start: Vec<Vec<f32>> = learner
            .names()
            .iter()
            .map(|name| parameter(&learner, name))
            .collect();
        let (hash, stored) = (frozen_hash(&learner), files());
        session(&learner, fixture.plan(), CHECKPOINTING[0])
            .run(&fixture.samples(), |_, _| Ok(()))
            .unwrap();
        assert_eq!(frozen_hash(&learner), hash, "{}", fixture.name);
        assert!(files() == stored, "{}: the files changed", fixture.name);
        for (name, start) in learner.names().iter().zip(&start) {
            assert_ne!(&parameter(&learner, name), start, "{}", fixture.name);
        }
    }
}

/// Full training, as a tiny base is made: the slope along a random direction, by differences and by gradients. The weights
/// are enlarged, so that no part of the model is close to linear.
#[test]
fn gradients_of_all_weights_agree_with_finite_differences() {
    let fixture = Fixture::open("parity");
    let config = BaseFolder::open(&fixture.base()).unwrap().config;
    let tied = [true, false].map(|tied| QwenConfig {
        tie_word_embeddings: tied,
        ..config.clone()
    });
    let samples = fixture.samples();
    let batch: Vec<&Sample> = samples[..4].iter().collect();
    for config in tied {
        let learner = Learner::whole(&config, |name, count| {
            normal(&mut generator(3, name), count, 0.3)
        });
        let mut session = session(&learner, fixture.plan(), CHECKPOINTING[0]);
        session.accumulate(&batch, 40.0).unwrap();
        let names = learner.names();
        let gradients: Vec<Vec<f32>> = names.iter().map(|name| gradient(&session, name)).collect();
        for (name, gradient) in names.iter().zip(&gradients) {
            let direction = normal(&mut generator(4, name), gradient.len(), 1.0);
            let slope: f64 = gradient
                .iter()
                .zip(&direction)
                .map(|(g, d)| f64::from(*g) * f64::from(*d))
                .sum();
            let base = parameter(&learner, name);
            let mut loss_at = |shift: f32| {
                let moved = base.iter().zip(&direction).map(|(b, d)| b + shift * d);
                set_parameter(&learner, name, &moved.collect::<Vec<f32>>());
                session.accumulate(&batch, 40.0).unwrap()
            };
            let shift = 1e-3;
            let measured = (loss_at(shift) - loss_at(-shift)) / (2.0 * f64::from(shift));
            set_parameter(&learner, name, &base);
            assert!(
                (measured - slope).abs() < 0.02 * slope.abs().max(0.1),
                "{name}: {measured} against {slope}"
            );
        }
    }
}
