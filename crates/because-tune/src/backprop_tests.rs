//! One gradient, computed in different ways: with a prefix shared or not, with dropout, with adapters in some layers.

use super::{
    CHECKPOINTING, Fixture, Learner, assert_close, assert_same, distance, gradient, learn, length,
    parameter, sample, session, set_parameter, slot,
};
use crate::base::BaseFolder;
use crate::data::Sample;
use crate::learner;
use crate::lora::LoraConfig;
use crate::model::Tokens;
use crate::params::{generator, normal};
use crate::session::{Plan, StepRecord};
use crate::{QwenConfig, TokenRow};

type Gradients = Vec<(String, Vec<f32>)>;

/// What all rows of [`row`] begin with.
const PREFIX: usize = 14;

/// The prefix and `own` tokens of its own, learnt where `learnt` says so.
fn row(number: usize, own: usize, learnt: impl Fn(usize) -> bool) -> Sample {
    let prefix = (0..PREFIX).map(|at| (7 * at + 3) % 61);
    let tail = (0..own).map(|at| (11 * number + 5 * at + 1) % 61);
    let input_ids: Vec<u32> = prefix.chain(tail).map(|id| id as u32).collect();
    let label = |(at, &id): (usize, &u32)| if learnt(at) { i64::from(id) } else { -100 };
    let labels = Some(input_ids.iter().enumerate().map(label).collect());
    sample(&TokenRow { input_ids, labels })
}

/// Rows that begin alike, by what of them is learnt, with how many tokens stand in a batch of them once.
fn alike() -> [(&'static str, usize, Vec<Sample>); 5] {
    [
        (
            "all learnt",
            PREFIX,
            vec![
                row(0, 3, |_| true),
                row(1, 9, |_| true),
                row(2, 2, |_| true),
                row(3, 6, |_| true),
            ],
        ),
        (
            "one of them twice, and one that ends with the prefix",
            // The row that ends there keeps a token of its own.
            PREFIX - 2,
            vec![
                row(0, 5, |_| true),
                row(0, 5, |_| true),
                row(1, 0, |_| true),
            ],
        ),
        (
            // The last shared position is asked for the first token of each.
            "prompts masked",
            PREFIX,
            vec![
                row(0, 4, |at| at >= PREFIX),
                row(1, 8, |at| at >= PREFIX),
                row(2, 6, |at| at >= PREFIX),
            ],
        ),
        (
            "prompts masked beyond the prefix",
            PREFIX,
            vec![
                row(0, 4, |at| at >= PREFIX + 2),
                row(1, 8, |at| at >= PREFIX + 3),
                row(2, 6, |at| at > PREFIX),
            ],
        ),
        (
            "learnt in different parts of the prefix",
            PREFIX,
            vec![
                row(0, 4, |_| true),
                row(1, 7, |at| at >= PREFIX + 2),
                row(2, 5, |at| (5..12).contains(&at) || at == PREFIX + 4),
            ],
        ),
    ]
}

/// A model all of whose weights learn, so large that no part of it is close to linear.
fn whole(config: &QwenConfig) -> Learner {
    Learner::whole(config, |name, count| {
        normal(&mut generator(6, name), count, 0.3)
    })
}

#[test]
fn rows_that_share_a_prefix_have_the_loss_and_gradients_of_each_alone() {
    for fixture in Fixture::all() {
        let config = fixture.learner().model.config;
        let tied = [true, false].map(|tied| QwenConfig {
            tie_word_embeddings: tied,
            ..config.clone()
        });
        let learners = [fixture.learner(), whole(&tied[0]), whole(&tied[1])];
        for ((what, shared, samples), learner) in alike()
            .iter()
            .flat_map(|rows| learners.iter().map(move |one| (rows, one)))
        {
            let ids: Vec<&[u32]> = samples.iter().map(|one| one.ids.as_slice()).collect();
            let all: usize = ids.iter().map(|ids| ids.len()).sum();
            let computed = Tokens::sharing(&ids).ids.len();
            assert_eq!(computed, all - (ids.len() - 1) * shared, "{what}");

            let what = format!("{}: {what}", fixture.name);
            let rows: Vec<&Sample> = samples.iter().collect();
            let alone: Vec<Vec<&Sample>> = rows.iter().map(|&row| vec![row]).collect();
            let (loss, expected) = learn(learner, fixture.plan(), CHECKPOINTING[0], &alone);
            for checkpointing in CHECKPOINTING {
                let batch = [rows.clone()];
                let (is, gradients) = learn(learner, fixture.plan(), checkpointing, &batch);
                let what = format!("{what}: {checkpointing:?}");
                assert_close(is, loss, 1e-6, &what);
                assert_same(&gradients, &expected, 1e-5, &what);
            }
            let session = session(learner, fixture.plan(), CHECKPOINTING[0]);
            let [together, apart] =
                [usize::MAX, 1].map(|at_once| session.evaluate(samples, at_once).unwrap());
            assert_close(together, loss, 1e-6, &what);
            assert_close(apart, loss, 1e-6, &what);
        }
    }
}

/// Those that dropout goes with.
fn dropping() -> impl Iterator<Item = Fixture> {
    Fixture::all().filter(|fixture| fixture.name != "parity-dora")
}

fn plan(fixture: &Fixture) -> Plan {
    Plan {
        dropout: 0.3,
        ..fixture.plan()
    }
}

/// Largest of the distances of the parameters.
fn difference(is: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) -> f32 {
    let pairs = is.iter().zip(expected);
    pairs
        .map(|((_, is), (_, expected))| distance(is, expected))
        .fold(0.0, f32::max)
}

#[test]
fn recomputed_layers_drop_what_kept_ones_do() {
    for fixture in dropping() {
        let (samples, learner) = (fixture.samples(), fixture.learner());
        let batch = [samples[..4].iter().collect()];
        let (loss, expected) = learn(&learner, plan(&fixture), CHECKPOINTING[0], &batch);
        for checkpointing in CHECKPOINTING {
            let (is, gradients) = learn(&learner, plan(&fixture), checkpointing, &batch);
            let what = format!("{}: {checkpointing:?}", fixture.name);
            assert_close(is, loss, 1e-6, &what);
            assert_same(&gradients, &expected, 1e-6, &what);
        }
        let (without, plain) = learn(&learner, fixture.plan(), CHECKPOINTING[0], &batch);
        let off = difference(&plain, &expected);
        assert!(loss != without && off > 0.01, "{}: {off}", fixture.name);
    }
}

#[test]
fn what_is_dropped_does_not_depend_on_how_a_step_is_cut() {
    for fixture in dropping() {
        // Some of the rows begin alike, which is not made use of where each drops something else.
        let mut samples = fixture.samples()[..3].to_vec();
        samples.extend([row(0, 4, |_| true), row(1, 6, |_| true)]);
        let learner = fixture.learner();
        let cut = |sizes: &[usize]| {
            let mut rows = samples.iter();
            let batches = sizes.iter().map(|&size| rows.by_ref().take(size).collect());
            let batches: Vec<Vec<&Sample>> = batches.collect();
            learn(&learner, plan(&fixture), CHECKPOINTING[0], &batches)
        };
        let (loss, expected) = cut(&[5]);
        for sizes in [&[1, 4][..], &[3, 2], &[2, 1, 2], &[1; 5]] {
            let (is, gradients) = cut(sizes);
            let what = format!("{}: {sizes:?}", fixture.name);
            assert_close(is, loss, 1e-6, &what);
            assert_same(&gradients, &expected, 1e-5, &what);
        }
    }
}

#[test]
fn steps_with_dropout_are_the_same_however_they_are_cut() {
    for fixture in dropping() {
        let samples = fixture.samples();
        let records = |batch, accumulation, micro_tokens| {
            let learner = fixture.learner();
            let plan = Plan {
                steps: 3,
                batch,
                accumulation,
                micro_tokens,
                ..plan(&fixture)
            };
            let mut records: Vec<StepRecord> = Vec::new();
            session(&learner, plan, CHECKPOINTING[0])
                .run(&samples, |_, record| {
                    records.push(record);
                    Ok(())
                })
                .unwrap();
            records
        };
        let expected = records(4, 1, None);
        assert_eq!(expected.len(), 3);
        for (batch, accumulation, micro) in [(4, 1, Some(1)), (4, 1, Some(40)), (2, 2, None)] {
            let is = records(batch, accumulation, micro);
            assert_eq!(is.len(), 3);
            for (is, expected) in is.iter().zip(&expected) {
                let what = format!("{}: {batch} x {accumulation}, {micro:?}", fixture.name);
                assert_close(is.loss, expected.loss, 1e-5, &what);
                assert_close(is.grad_norm, expected.grad_norm, 1e-4, &what);
            }
        }
    }
}

#[test]
fn each_seed_step_and_place_drops_something_else_and_evaluation_nothing() {
    for fixture in dropping() {
        let (samples, learner) = (fixture.samples(), fixture.learner());
        let (one, two) = (&samples[0], &samples[1]);
        let of = |seed, step, rows: &[&Sample]| {
            let plan = Plan {
                seed,
                ..plan(&fixture)
            };
            let mut session = session(&learner, plan, CHECKPOINTING[0]);
            session.optimizer.step = step;
            session.accumulate(rows, 10.0).unwrap();
            let names = learner.names().into_iter();
            names
                .map(|name| {
                    let gradient = gradient(&session, &name);
                    (name, gradient)
                })
                .collect::<Gradients>()
        };
        let first = of(1, 0, &[one, two]);
        assert_eq!(of(1, 0, &[one, two]), first);
        for (what, other) in [
            ("seed", of(2, 0, &[one, two])),
            ("step", of(1, 1, &[one, two])),
            ("place", of(1, 0, &[two, one])),
        ] {
            let off = difference(&other, &first);
            assert!(off > 0.01, "{}: another {what}: {off}", fixture.name);
        }
        // A row that comes twice drops something else the second time.
        let once = of(1, 0, &[one]).into_iter();
        let doubled = once.map(|(name, one)| (name, one.iter().map(|x| 2.0 * x).collect()));
        let off = difference(&of(1, 0, &[one, one]), &doubled.collect::<Gradients>());
        assert!(off > 0.01, "{}: twice: {off}", fixture.name);

        let [dropping, plain] = [plan(&fixture), fixture.plan()].map(|plan| {
            let session = session(&learner, plan, CHECKPOINTING[0]);
            session.evaluate(&samples, usize::MAX).unwrap()
        });
        assert_eq!(dropping, plain, "{}", fixture.name);
    }
}

/// The slope along the gradient itself: a backward that dropped otherwise than its forward would be far from it.
#[test]
fn gradients_with_dropout_agree_with_finite_differences() {
    for fixture in dropping() {
        let (samples, learner) = (fixture.samples(), fixture.learner());
        let batch = [samples[..4].iter().collect()];
        let learn = || learn(&learner, plan(&fixture), CHECKPOINTING[0], &batch);
        let (_, gradients) = learn();
        for (name, gradient) in &gradients {
            let (slope, base) = (length(gradient), parameter(&learner, name));
            // Far enough to stand out of the rounding, near enough to be straight.
            let shift = (0.02 * length(&base)).min(0.01 / slope);
            let loss_at = |shift: f64| {
                let factor = (shift / slope) as f32;
                let moved = base.iter().zip(gradient).map(|(b, g)| b + factor * g);
                set_parameter(&learner, name, &moved.collect::<Vec<f32>>());
                learn().0
            };
            let measured = (loss_at(shift) - loss_at(-shift)) / (2.0 * shift);
            set_parameter(&learner, name, &base);
            assert_close(measured, slope, 0.02, &format!("{}: {name}", fixture.name));
        }
    }
}

/// B of one layer is not zero, so that its A have gradients too; the other layers' adapters add nothing.
#[test]
fn adapters_of_one_layer_have_the_gradients_they_have_among_all() {
    for fixture in ["parity", "parity-tied", "parity-odd"].map(Fixture::open) {
        let folder = BaseFolder::open(&fixture.base()).unwrap();
        let samples = fixture.samples();
        let batch = [samples[..4].iter().collect()];
        for layer in 0..folder.config.num_hidden_layers {
            let of = |layers: Option<Vec<usize>>| {
                let lora = LoraConfig {
                    layers_to_transform: layers,
                    ..LoraConfig::default()
                };
                let start = learner::Learner::Lora(lora);
                let parameters = start.initial(&folder, 7).unwrap();
                let model = start.model(&folder, &parameters).unwrap();
                let learner = Learner { model, parameters };
                let inside = format!("model.layers.{layer}.");
                for name in learner.names() {
                    if name.starts_with(&inside) && name.ends_with("lora_B.weight") {
                        let count = slot(&learner.parameters, &name).len();
                        let b = normal(&mut generator(8, &name), count, 0.05);
                        set_parameter(&learner, &name, &b);
                    }
                }
                CHECKPOINTING.map(|checkpointing| {
                    let (loss, mut gradients) =
                        learn(&learner, fixture.plan(), checkpointing, &batch);
                    let count = gradients.len();
                    gradients.retain(|(name, _)| name.starts_with(&inside));
                    (loss, gradients, count)
                })
            };
            let (alone, among) = (of(Some(vec![layer])), of(None));
            for (alone, among) in alone.iter().zip(&among) {
                let what = format!("{}: layer {layer}", fixture.name);
                assert_eq!((alone.1.len(), alone.2), (14, 14), "{what}");
                assert_eq!(among.2, 14 * folder.config.num_hidden_layers);
                assert!(
                    alone
                        .1
                        .iter()
                        .map(|one| &one.0)
                        .eq(among.1.iter().map(|one| &one.0))
                );
                assert_close(alone.0, among.0, 1e-6, &what);
                assert_same(&alone.1, &among.1, 1e-6, &what);
            }
        }
    }
}
