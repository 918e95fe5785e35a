//! The whole path, offline: raw rows of a lending library for board games become profiles, profiles learn from their
//! neighbours, a model finds each chosen game among negatives and says why, and a tiny Qwen2.5 made from nothing is tuned on
//! the answers, explains, and is measured beside two controls.
//!
//! Needs: nothing but this repository. Takes under four minutes on two cores after the build.
//!
//!     cargo run --release --example quickstart [DIR]
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::PathBuf;

use because::core::text::{excerpt, for_terminal};
use because::core::{Explanation, Node, Prediction, Role, Split, jsonl};
use because::graph::{Format, Import};
use because::{Event, Pairs, Pipeline};

#[tokio::main]
async fn main() -> Result<(), because::Error> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::args()
        .nth(1)
        .map_or_else(|| root.join("../target/quickstart"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&dir);

    println!("\n== 1. Import: raw rows, some of them spiteful ==");
    let project = because::core::Project::new(&dir);
    let read = Import::new(Format::Jsonl, [root.join("data")])
        .seed(7)
        .run(&project)?;
    println!(
        "read {}, taken {}, rejected {} (see rejected.jsonl)",
        read.read, read.taken, read.rejected
    );

    let mut pipeline = Pipeline::open(&dir)?.on_event(show);
    let settings = pipeline.settings_mut();
    settings.seed = 7;
    settings.contrast.train_limit = 300;
    settings.contrast.valid_limit = 20;
    settings.train.tiny_steps = 450;
    settings.train.max_length = 512;

    println!("\n== 2. Profiles: an initial one for everybody, then two layers of messages ==");
    pipeline.profile().await?;
    let somebody = Node::User("yara_k".into());
    for layer in 0..=2 {
        println!(
            "\nlayer {layer}: {}",
            clean(
                project
                    .profiles(layer)?
                    .summary(&somebody)
                    .unwrap_or("nothing is known")
            )
        );
    }

    println!("\n== 3. Contrast: which of these did they choose, and why? ==");
    pipeline
        .contrast(Pairs {
            split: Split::Train,
            limit: Some(300),
        })
        .await?;
    if let Some(missed) = project
        .explanations()?
        .iter()
        .find(|row| row.accepted && row.attempts == 2)
    {
        show_exchange(missed);
    }

    println!("\n== 4. The rest: examples, a tiny Qwen2.5, LoRA, explanations, figures ==");
    pipeline.run().await?;

    let pairs: Vec<Prediction> = jsonl::read_all(&project.path("predictions.jsonl"))?;
    if let Some(Prediction {
        user: Some(user),
        item: Some(item),
        prediction,
        reference,
    }) = pairs.first()
    {
        println!(
            "\nWhy {item} for {user}?\n  tuned model: {}\n  reference:   {}",
            clean(prediction),
            clean(reference)
        );
    }
    let report = std::fs::read(project.path("report.json")).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap_or_default();
    println!(
        "\n{:<28} {:>8} {:>8} {:>8}",
        "over test pairs", "BLEU-4", "ROUGE-L", "chrF"
    );
    for (name, place) in [
        ("tuned model", "/text/metrics"),
        ("its answers, shuffled", "/text/controls/shuffled/metrics"),
        (
            "prefix + item profile",
            "/text/controls/item_profile/metrics",
        ),
    ] {
        let figure = |field: &str| {
            report
                .pointer(&format!("{place}/{field}"))
                .and_then(|value| value.as_f64())
                .unwrap_or(f64::NAN)
        };
        let [bleu, rouge, chrf] = ["bleu/13a/bleu4", "rouge/rougeL/fmeasure", "chrf"].map(figure);
        println!("{name:<28} {bleu:>8.2} {rouge:>8.4} {chrf:>8.2}");
    }
    println!(
        "\nA person reads {}; every setting is in because.toml beside it.",
        dir.join("report.html").display()
    );
    Ok(())
}

fn show_exchange(missed: &Explanation) {
    for (place, shown) in missed.candidates.iter().enumerate() {
        let chosen = if shown.role == Role::Positive {
            "  <- the one they chose"
        } else {
            ""
        };
        println!("  {}. {}{chosen}", place + 1, clean(shown.item.as_str()));
    }
    println!(
        "first pick: {} - wrong, and fed back\nthen: {} - {}",
        missed.picks[0],
        missed.picks[1],
        clean(&missed.explanation)
    );
}

fn show(event: &Event<'_>) {
    match event {
        Event::Loss {
            what,
            step,
            total,
            loss,
            ..
        } if *step == 1 || step % (total / 8).max(1) == 0 => {
            println!("  {what}: step {step} of {total}, loss {loss:.3}");
        }
        Event::End(stage) => println!(
            "  {} ended after {:.1} s: {}",
            stage.stage,
            stage.seconds,
            excerpt(&stage.detail.to_string(), 100)
        ),
        _ => {}
    }
}

fn clean(text: &str) -> String {
    for_terminal(&excerpt(text, 500))
}
