//! Generation against transformers, and against itself in every way in which rows can meet.
//!
//! `tests/data/make_generation.py` wrote the answers and says what they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::base::BaseFolder;
use crate::infer::{Inference, KeyValues, Piece as Part, Wants};
use crate::model::Tokens;
use crate::ops::{PAGE, values};
use crate::overlay::Overlay;
use crate::tiny::tests::chat;
use crate::tuned::{Finish, Generation};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// A stored model with a longer context, and its adapter over it.
fn model(name: &str) -> Loaded {
    let mut base = BaseFolder::open(&folder().join(
        if name.starts_with("parity-tied") || name == "parity-odd" {
            format!("{name}/base")
        } else {
            "parity/base".to_owned()
        },
    ))
    .unwrap();
    base.config.max_position_embeddings = 512;
    let base = base.model().unwrap();
    let (overlay, _) = Overlay::read(&folder().join(name).join("adapter"), &base).unwrap();
    let mut chat = chat();
    chat.forget_stops();
    Loaded::new(base, chat, None).with("adapter", overlay)
}

struct Vectors {
    prompts: Vec<Vec<u32>>,
    plain: Vec<Vec<u32>>,
    adapted: Vec<Vec<u32>>,
}

fn vectors(name: &str) -> Vectors {
    let text = std::fs::read(folder().join("generation.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    let rows = |kind: &str| serde_json::from_value(all[name][kind].clone()).unwrap();
    Vectors {
        prompts: rows("prompts"),
        plain: rows("plain"),
        adapted: rows("adapted"),
    }
}

/// A way to run: settings, and how many steps one row comes after the other.
#[derive(Debug, Clone)]
struct Way {
    settings: EngineSettings,
    apart: usize,
}

fn way(max_rows: usize, prompt_tokens: usize, prefix_cache: bool, apart: usize) -> Way {
    Way {
        settings: EngineSettings {
            max_rows,
            prompt_tokens,
            prefix_cache,
            cache_bytes: 1 << 24,
            ..EngineSettings::default()
        },
        apart,
    }
}

#[derive(Debug, Default)]
struct Run {
    generations: Vec<Generation>,
    streamed: Vec<String>,
    /// Of each row the hashes of the logits of its tokens.
    bits: Vec<Vec<u64>>,
    put_back: usize,
}

impl Run {
    fn ids(&self) -> Vec<Vec<u32>> {
        let ids = |one: &Generation| one.token_ids.clone();
        self.generations.iter().map(ids).collect()
    }
}

fn run(model: &Arc<Loaded>, way: &Way, asks: &[Ask]) -> Run {
    let mut scheduler = Scheduler::new(Arc::clone(model), way.settings.clone()).unwrap();
    run_on(&mut scheduler, way, asks)
}

fn run_on(scheduler: &mut Scheduler, way: &Way, asks: &[Ask]) -> Run {
    let (mut pieces, mut ends) = (Vec::new(), BTreeMap::new());
    let mut streamed = BTreeMap::new();
    let (mut come, mut step) = (0, 0);
    while come < asks.len() || !scheduler.is_idle() {
        while come < asks.len() && come * way.apart <= step {
            let id = add(scheduler, &asks[come]).unwrap();
            assert!(streamed.insert(id, String::new()).is_none());
            come += 1;
        }
        scheduler.step(&mut pieces).unwrap();
        step += 1;
        assert!(scheduler.running() <= way.settings.max_rows);
        for (id, piece) in pieces.drain(..) {
            match piece {
                Piece::Text(text) => streamed.get_mut(&id).unwrap().push_str(&text),
                Piece::Done(generation) => drop(ends.insert(id, generation)),
                Piece::Failed(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(scheduler.pages_in_use(), 0, "no page is lost");
    Run {
        generations: ends.into_values().collect(),
        streamed: streamed.into_values().collect(),
        bits: std::mem::take(&mut scheduler.seen.bits)
            .into_values()
            .collect(),
        put_back: std::mem::take(&mut scheduler.seen.put_back),
    }
}

fn add(scheduler: &mut Scheduler, ask: &Ask) -> Result<u64> {
    let mut row = ask.clone().row(scheduler.model())?;
    scheduler.check(&mut row)?;
    Ok(scheduler.add(row))
}

/// Where rows differ first.
fn difference(is: &[Vec<u32>], expected: &[Vec<u32>]) -> Option<(usize, usize)> {
    assert_eq!(is.len(), expected.len());
    let rows = is.iter().zip(expected).enumerate();
    let mut places = rows.filter_map(|(row, (is, expected))| {
        let place = is.iter().zip(expected).position(|(a, b)| a != b);
        let end = is.len().min(expected.len());
        let place = place.or((is.len() != expected.len()).then_some(end));
        Some((row, place?))
    });
    places.next()
}

fn asks(prompts: &[Vec<u32>], adapter: Option<&str>, tokens: usize) -> Vec<Ask> {
    let ask = |prompt: &Vec<u32>| Ask {
        adapter: adapter.map(str::to_owned),
        ..Ask::tokens(prompt.clone(), Decoding::greedy(tokens))
    };
    prompts.iter().map(ask).collect()
}

#[test]
fn greedy_answers_are_those_of_transformers_and_their_logits_the_same_bits_in_every_way() {
    for name in ["parity", "parity-tied", "parity-odd"] {
        let (model, vectors) = (Arc::new(model(name)), vectors(name));
        let expected = [(None, &vectors.plain), (Some("adapter"), &vectors.adapted)];
        for (adapter, expected) in expected {
            let asks = asks(&vectors.prompts, adapter, 200);
            let alone = run(&model, &way(1, 512, false, 0), &asks);
            let off = difference(&alone.ids(), expected);
            assert_eq!(off, None, "{name} {adapter:?}");
            for way in [
                way(8, 512, false, 0),
                way(8, 512, true, 0),
                way(3, 64, true, 0),
                way(8, 7, true, 5),
                way(8, 1, false, 3),
                way(8, 64, true, 40),
            ] {
                let together = run(&model, &way, &asks);
                let off = difference(&together.ids(), expected);
                assert_eq!(off, None, "{name} {adapter:?} {way:?}");
                assert!(together.bits == alone.bits, "{name} {adapter:?} {way:?}");
            }
        }
    }
}

#[test]
fn rows_of_one_batch_take_different_adapters() {
    for name in ["parity", "parity-dora", "parity-patterns"] {
        let (model, prompts) = (Arc::new(model(name)), vectors("parity").prompts);
        let [plain, adapted] = [None, Some("adapter")].map(|adapter| asks(&prompts, adapter, 40));
        let mixed: Vec<Ask> = plain.iter().chain(&adapted).step_by(3).cloned().collect();
        let [plain, adapted] =
            [plain, adapted].map(|asks| run(&model, &way(1, 512, false, 0), &asks));
        let together = run(&model, &way(16, 20, true, 1), &mixed);
        let apart = plain.bits.into_iter().chain(adapted.bits).step_by(3);
        assert!(together.bits.into_iter().eq(apart), "{name}");
        assert_ne!(plain.generations, adapted.generations);
    }
}

#[test]
fn the_forward_pass_of_generation_is_that_of_training() {
    for name in [
        "parity",
        "parity-tied",
        "parity-odd",
        "parity-dora",
        "parity-patterns",
    ] {
        let model = model(name);
        let vocabulary = model.base.config.vocab_size;
        let row: Vec<u32> = (0..90)
            .map(|at| (at * 37 + at * at) % vocabulary as u32)
            .collect();
        let overlay = model.overlay(Some("adapter")).unwrap();
        let pages: Vec<u32> = (0..row.len().div_ceil(PAGE) as u32).rev().collect();
        let mut cache = KeyValues::new(&model.base, pages.len());
        let part = Part {
            tokens: &row,
            past: 0,
            pages: &pages,
            overlay: overlay.as_deref(),
            wants: Wants::All,
        };
        let mut inference = Inference::default();
        let is = inference.forward(&model.base, &mut cache, &[part]).unwrap();
        let mut trained = model.base;
        let (lora, parameters) =
            crate::adapter::read(&folder().join(name).join("adapter"), &trained.config).unwrap();
        lora.attach(&mut trained, &parameters, false).unwrap();
        let hidden = trained.hidden(&Tokens::new([row.as_slice()])).unwrap();
        let all: Vec<u32> = (0..row.len() as u32).collect();
        let expected = values(&trained.logits(&hidden, &all).unwrap()).unwrap();
        let top = expected.iter().fold(0f32, |top, x| top.max(x.abs()));
        assert_eq!(is.len(), expected.len());
        for (is, expected) in is.iter().zip(&expected) {
            assert!(
                (is - expected).abs() < 1e-5 * top,
                "{name}: {is} {expected}"
            );
        }
    }
}

#[test]
fn where_pages_run_out_rows_are_put_back_and_answer_alike() {
    let (model, prompts) = (Arc::new(model("parity")), vectors("parity").prompts);
    let asks = asks(&prompts, None, 120);
    let ample = run(&model, &way(8, 512, true, 0), &asks);
    assert_eq!(ample.put_back, 0);
    for prefix_cache in [true, false] {
        let mut tight = way(8, 32, prefix_cache, 0);
        tight.settings.cache_bytes = 14 * KeyValues::page_bytes(&model.base);
        let scarce = run(&model, &tight, &asks);
        assert!(scarce.put_back > 0);
        assert!(scarce.bits == ample.bits);
        assert_eq!(scarce.ids(), ample.ids());
        assert_eq!(scarce.streamed, ample.streamed);
    }
}

#[test]
fn a_row_larger_than_the_cache_ends_as_at_the_end_of_the_context() {
    let model = Arc::new(model("parity"));
    let mut small = way(2, 512, true, 0);
    small.settings.cache_bytes = 2 * KeyValues::page_bytes(&model.base);
    let ended = run(&model, &small, &asks(&[vec![1; 20]], None, 100));
    assert_eq!(ended.generations[0].token_ids.len(), 2 * PAGE + 1 - 20);
    assert_eq!(ended.generations[0].finish, Finish::Length);
    let mut scheduler = Scheduler::new(Arc::clone(&model), small.settings.clone()).unwrap();
    let error = add(&mut scheduler, &asks(&[vec![1; 33]], None, 1)[0]).unwrap_err();
    assert!(
        matches!(error, TuneError::ContextTooLong { context: 33, .. }),
        "{error}"
    );
    small.settings.cache_bytes = 1;
    let error = Scheduler::new(model, small.settings)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("cache_bytes: 1 is not enough"), "{error}");
}

#[test]
fn what_rows_begin_with_alike_is_computed_once_even_if_they_come_together() {
    let model = Arc::new(model("parity"));
    let head: Vec<u32> = (0..100).map(|at| at * at % 61).collect();
    let prompts: Vec<Vec<u32>> = (0..4u32)
        .map(|row| [&head[..], &[row; 3]].concat())
        .collect();
    let asks = asks(&prompts, None, 5);
    let cached = |run: &Run| -> Vec<usize> {
        run.generations
            .iter()
            .map(|one| one.cached_tokens)
            .collect()
    };
    for prompt_tokens in [16, 50, 512] {
        let together = run(&model, &way(4, prompt_tokens, true, 0), &asks);
        assert_eq!(cached(&together), [0, 96, 96, 96], "{prompt_tokens}");
    }
    assert_eq!(cached(&run(&model, &way(4, 50, false, 0), &asks)), [0; 4]);
}

#[test]
fn no_more_of_a_prompt_counts_as_cached_than_there_is_of_it() {
    let model = Arc::new(model("parity"));
    let head: Vec<u32> = (0..100).map(|at| at * at % 61).collect();
    let prompts: Vec<Vec<u32>> = (0..12u32)
        .map(|row| [&head[..], &[row; 3]].concat())
        .collect();
    let asks = asks(&prompts, None, 60);
    let mut tight = way(12, 50, true, 0);
    tight.settings.cache_bytes = 16 * KeyValues::page_bytes(&model.base);
    let scarce = run(&model, &tight, &asks);
    for one in &scarce.generations {
        assert!(one.cached_tokens <= 96, "{one:?}");
    }
    let shared = |one: &&Generation| one.cached_tokens == 96;
    assert!(scarce.generations.iter().filter(shared).count() > 6);
}

#[test]
fn rows_are_let_in_beside_what_others_have_yet_to_take() {
    let model = Arc::new(model("parity"));
    let prompts: Vec<Vec<u32>> = (0..6u32)
        .map(|row| (0..100).map(|at| (at * at + row) % 61).collect())
        .collect();
    let asks = asks(&prompts, None, 10);
    for prefix_cache in [true, false] {
        let mut tight = way(6, 16, prefix_cache, 0);
        tight.settings.cache_bytes = 20 * KeyValues::page_bytes(&model.base);
        assert_eq!(run(&model, &tight, &asks).put_back, 0);
    }
}

#[test]
fn the_next_turn_of_a_chat_goes_on_from_the_answer() {
    let model = Arc::new(model("parity"));
    let first = asks(&[(0..40).map(|at| at * at % 61).collect()], None, 40);
    let way = way(2, 512, true, 0);
    let mut scheduler = Scheduler::new(Arc::clone(&model), way.settings.clone()).unwrap();
    let answer = run_on(&mut scheduler, &way, &first);
    let Prompt::Tokens(mut ids) = first[0].prompt.clone() else {
        unreachable!("it was asked with tokens")
    };
    ids.extend(&answer.generations[0].token_ids);
    ids.extend([5, 6, 7]);
    let next = asks(&[ids], None, 30);
    let warm = run_on(&mut scheduler, &way, &next);
    // The last token of an answer is never computed.
    assert_eq!(warm.generations[0].cached_tokens, 79 / PAGE * PAGE);
    let mut apart = way.clone();
    apart.settings.prefix_cache = false;
    let cold = run(&model, &apart, &next);
    assert!(warm.bits == cold.bits);
    assert_eq!(warm.ids(), cold.ids());
}

#[test]
fn no_more_memory_is_set_apart_than_rows_can_fill_and_the_machine_has() {
    let model = Arc::new(model("parity"));
    let mut settings = way(3, 512, true, 0).settings;
    settings.cache_bytes = u64::MAX;
    let scheduler = Scheduler::new(Arc::clone(&model), settings.clone()).unwrap();
    assert_eq!(scheduler.pages(), 2 * 3 * (512 / PAGE));
    // Ids of pages are 32 bits wide: this is the most there can be.
    let most = KeyValues::page_bytes(&model.base) << 24;
    if crate::memory::available().is_none_or(|free| free >= most) {
        return;
    }
    settings.max_rows = usize::MAX;
    let error = Scheduler::new(model, settings).unwrap_err();
    let said = error.to_string();
    assert!(
        matches!(
            error,
            TuneError::Setting {
                field: "cache_bytes",
                ..
            }
        ) && said.contains("of memory that are free"),
        "{said}"
    );
}

#[test]
fn a_cancelled_row_gives_its_pages_back_and_disturbs_nobody() {
    let (model, prompts) = (Arc::new(model("parity")), vectors("parity").prompts);
    let asks = asks(&prompts, None, 50);
    let whole = run(&model, &way(8, 512, true, 0), &asks);
    let mut scheduler = Scheduler::new(Arc::clone(&model), way(4, 40, true, 0).settings).unwrap();
    for ask in asks {
        add(&mut scheduler, &ask).unwrap();
    }
    let (mut pieces, mut ends) = (Vec::new(), BTreeMap::new());
    let mut steps = 0;
    while !scheduler.is_idle() {
        scheduler.step(&mut pieces).unwrap();
        steps += 1;
        if steps == 3 {
            let before = scheduler.pages_in_use();
            [1, 3, 5].into_iter().for_each(|id| scheduler.cancel(id));
            assert!(scheduler.pages_in_use() < before);
        }
        for (id, piece) in pieces.drain(..) {
            if let Piece::Done(generation) = piece {
                ends.insert(id, generation.token_ids);
            }
        }
    }
    assert_eq!(scheduler.pages_in_use(), 0);
    assert!(ends.keys().eq(&[0, 2, 4, 6, 7]));
    for (id, ids) in ends {
        assert_eq!(ids, whole.generations[id as usize].token_ids);
    }
}

#[test]
fn a_drawn_answer_does_not_depend_on_its_neighbours() {
    let (model, prompts) = (
        Arc::new(model("parity-tied")),
        vectors("parity-tied").prompts,
    );
    let ask = |(seed, prompt): (usize, &Vec<u32>)| {
        let decoding = Decoding {
            temperature: 1.3,
            top_p: [1.0, 0.9][seed % 2],
            top_k: [0, 20][seed / 2 % 2],
            repetition_penalty: 1.1,
            seed: seed as u64,
            ..Decoding::greedy(60)
        };
        Ask::tokens(prompt.clone(), decoding)
    };
    let asks: Vec<Ask> = prompts.iter().enumerate().map(ask).collect();
    let alone = run(&model, &way(1, 512, false, 0), &asks);
    let together = run(&model, &way(8, 33, true, 2), &asks);
    assert_eq!(alone.ids(), together.ids());
}

#[test]
fn texts_stream_whole_and_end_before_a_stop_text() {
    let (model, prompts) = (Arc::new(model("parity-odd")), vectors("parity-odd").prompts);
    let plain = run(&model, &way(8, 512, true, 0), &asks(&prompts, None, 80));
    for (streamed, generation) in plain.streamed.iter().zip(&plain.generations) {
        assert_eq!(streamed, &generation.text);
        let whole = model.chat.vocabulary.decode(&generation.token_ids).unwrap();
        assert_eq!(generation.text, whole);
    }
    let text = &plain.generations[4].text;
    let from = text.char_indices().nth(30).unwrap().0;
    let to = text.char_indices().nth(35).unwrap().0;
    let mut stopped = asks(&prompts, None, 80).remove(4);
    stopped.decoding.stop = vec!["never seen".into(), text[from..to].to_owned()];
    let stopped = run(&model, &way(1, 512, true, 0), &[stopped]);
    let first = text.find(&text[from..to]).unwrap();
    assert_eq!(stopped.generations[0].text, text[..first]);
    assert_eq!(stopped.streamed[0], text[..first]);
    assert_eq!(stopped.generations[0].finish, Finish::Stop);
}

fn engine(model: &Arc<Loaded>, max_rows: usize, queue: usize) -> Engine {
    let settings = EngineSettings {
        max_rows,
        queue,
        cache_bytes: 1 << 24,
        ..EngineSettings::default()
    };
    Engine::start(Arc::clone(model), settings).unwrap()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what}");
}

#[tokio::test]
async fn an_engine_answers_many_at_once_piece_by_piece() {
    let (model, vectors) = (Arc::new(model("parity")), vectors("parity"));
    let engine = engine(&model, 4, 100);
    let answers: Vec<Answering> = asks(&vectors.prompts, Some("adapter"), 200)
        .into_iter()
        .map(|ask| engine.submit(ask).unwrap())
        .collect();
    for (mut answer, expected) in answers.into_iter().zip(&vectors.adapted) {
        let mut text = String::new();
        let generation = loop {
            match answer.next().await.unwrap() {
                Piece::Text(more) => text.push_str(&more),
                Piece::Done(generation) => break generation,
                Piece::Failed(error) => panic!("{error}"),
            }
        };
        assert_eq!((&generation.token_ids, &generation.text), (expected, &text));
        assert!(answer.next().await.is_none());
    }
    assert_eq!(engine.under_way(), 0);
}

#[test]
fn a_full_queue_refuses_and_a_dropped_answer_makes_room() {
    let model = Arc::new(model("parity"));
    let engine = engine(&model, 1, 1);
    let long = || asks(&[vec![3, 4, 5]], None, 500).remove(0);
    let (first, _second) = (
        engine.submit(long()).unwrap(),
        engine.submit(long()).unwrap(),
    );
    let error = engine.submit(long()).unwrap_err();
    assert!(matches!(error, TuneError::Busy { waiting: 2 }), "{error}");
    drop(first);
    eventually("the cancelled row goes", || engine.under_way() < 2);
    let third = asks(&[vec![3]], None, 2).remove(0);
    assert_eq!(
        engine
            .submit(third)
            .unwrap()
            .wait()
            .unwrap()
            .token_ids
            .len(),
        2
    );
    for (ask, said) in [
        (
            asks(&[vec![1; 512]], None, 1).remove(0),
            "no room for an answer",
        ),
        (
            asks(&[vec![9999]], None, 1).remove(0),
            "token 9999 is unknown",
        ),
        (
            asks(&[vec![1]], Some("other"), 1).remove(0),
            "no adapter is called \"other\"",
        ),
    ] {
        let error = engine.submit(ask).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_engine_ends_with_its_last_handle_and_answers_before() {
    let model = Arc::new(model("parity"));
    let handle = engine(&model, 2, 9);
    let answer = handle.submit(asks(&[vec![3]], None, 50).remove(0)).unwrap();
    drop(handle);
    assert_eq!(answer.wait().unwrap().token_ids.len(), 50);
    eventually("the thread ends", || Arc::strong_count(&model) == 1);
}

/// A form that holds a token of 64, then gives up.
struct Faulty(u32);

impl Constraint for Faulty {
    fn mask(&mut self, logits: &mut [f32], room: usize) -> Result<()> {
        assert!(self.0 < 3, "at its end");
        assert_eq!(room, 10 - self.0 as usize);
        let only = logits[7];
        logits.fill(f32::NEG_INFINITY);
        logits[7] = only;
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<()> {
        assert_eq!(token, 7);
        self.0 += 1;
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.0 == 2
    }
}

#[test]
fn a_constraint_masks_and_ends_and_its_panic_fails_its_own_answer_alone() {
    let model = Arc::new(model("parity"));
    let engine = engine(&model, 2, 9);
    let submit = |held: u32| {
        let decoding = Decoding::greedy(10);
        let row = Row::new(vec![5], decoding, None, Some(Box::new(Faulty(held)))).unwrap();
        engine.submit_row(row)
    };
    let done = submit(0).unwrap().wait().unwrap();
    assert_eq!((done.token_ids, done.finish), (vec![7, 7], Finish::Stop));
    let other = engine.submit(asks(&[vec![3]], None, 50).remove(0));
    let error = submit(3).unwrap().wait().unwrap_err();
    assert!(
        matches!(&error, TuneError::Generation { reason } if reason.contains("at its end")),
        "{error}"
    );
    assert_eq!(other.unwrap().wait().unwrap().token_ids.len(), 50);
    assert!(!engine.has_ended());
    assert_eq!(submit(0).unwrap().wait().unwrap().token_ids, [7, 7]);
    assert_eq!(engine.under_way(), 0);
}

#[test]
fn whoever_waits_is_woken_at_each_step() {
    use std::task::{Context, Poll, Wake, Waker};

    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    let model = Arc::new(model("parity"));
    let settings = EngineSettings {
        prompt_tokens: 1,
        cache_bytes: 1 << 24,
        ..EngineSettings::default()
    };
    let engine = Engine::start(Arc::clone(&model), settings).unwrap();
    let ask = asks(&[vec![3; 500]], None, 1).remove(0);
    let mut answering = engine.submit(ask).unwrap();
    let counted = Arc::new(Counted(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counted));
    let (mut without_a_piece, mut known) = (0, 0);
    while answering
        .poll_next(&mut Context::from_waker(&waker))
        .is_pending()
    {
        eventually("it is woken", || counted.0.load(Ordering::Acquire) > known);
        known = counted.0.load(Ordering::Acquire);
        without_a_piece += 1;
    }
    assert!(without_a_piece > 3, "{without_a_piece}");
    assert!(matches!(
        answering.poll_next(&mut Context::from_waker(&waker)),
        Poll::Ready(_)
    ));
}
