//! Adapters that PEFT made: read, told apart, and written again to the byte.
//!
//! `tests/data/adapters` was written by `tests/data/make_adapters.py` with peft 0.21.2 over the base in
//! `tests/data/parity/base`; all numbers in it are drawn.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{CONFIG, WEIGHTS, read, write};
use crate::config::QwenConfig;
use crate::lora::layout::Part;
use crate::lora::{LoraConfig, Modules};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn model() -> QwenConfig {
    QwenConfig::read(&data("parity/base/config.json")).unwrap()
}

/// Name and settings of every adapter.
fn made() -> Vec<(&'static str, LoraConfig)> {
    let of_rank_two = || LoraConfig {
        rank: 2,
        alpha: 6.0,
        ..LoraConfig::default()
    };
    let targets = |modules: Modules| LoraConfig {
        target_modules: modules,
        ..of_rank_two()
    };
    let pattern = |text: &str| Modules::Pattern(text.into());
    vec![
        (
            "plain",
            LoraConfig {
                dropout: 0.05,
                ..of_rank_two()
            },
        ),
        (
            "rslora",
            LoraConfig {
                rslora: true,
                ..targets(["q_proj", "v_proj"].into())
            },
        ),
        (
            "dora",
            LoraConfig {
                dora: true,
                ..of_rank_two()
            },
        ),
        (
            "patterns",
            LoraConfig {
                rslora: true,
                rank_pattern: [
                    ("down_proj".to_owned(), 3),
                    (r"layers\.1\.self_attn\.[qk]_proj".to_owned(), 1),
                    ("^model.layers.0.mlp.up_proj".to_owned(), 5),
                ]
                .into(),
                alpha_pattern: [
                    ("self_attn.v_proj".to_owned(), 2.5),
                    (r"layers\.\d+\.mlp\..*".to_owned(), 7.0),
                ]
                .into(),
                ..of_rank_two()
            },
        ),
        (
            "regex",
            targets(pattern(
                r"model\.layers\.(?:0\.self_attn\.(?!o_)\w_proj|1\.mlp\.(?P<half>gate|up)_proj)",
            )),
        ),
        (
            "layers",
            LoraConfig {
                layers_to_transform: Some(vec![1]),
                ..targets(["down_proj", "layers.1.mlp.up_proj", "self_attn.o_proj"].into())
            },
        ),
        (
            "exclude",
            LoraConfig {
                exclude_modules: Some(["o_proj", "layers.0.mlp.gate_proj"].into()),
                ..of_rank_two()
            },
        ),
        (
            "exclude_regex",
            LoraConfig {
                exclude_modules: Some(pattern(r".*\.0\.mlp\..*|.*k_proj")),
                ..targets(pattern("all-linear"))
            },
        ),
        ("bf16", targets(["q_proj"].into())),
        ("f16", targets(["q_proj"].into())),
    ]
}

#[test]
fn settings_are_read_as_peft_was_given_them() {
    for (name, settings) in made() {
        let (read, parameters) = read(&data("adapters").join(name), &model()).unwrap();
        match name {
            // PEFT resolves the word before it saves: whole paths, all of them, the excluded ones too.
            "exclude_regex" => assert!(read.agrees_with(&settings, &model()).unwrap()),
            _ => assert_eq!(read, settings, "{name}"),
        }
        let layout = read.layout(&model()).unwrap();
        let names = layout.iter().map(|tensor| &tensor.name);
        assert!(parameters.iter().map(|(name, _)| name).eq(names), "{name}");
        let magnitudes = layout
            .iter()
            .filter(|tensor| tensor.part == Part::Magnitude);
        assert_eq!(magnitudes.count(), if name == "dora" { 14 } else { 0 });
    }
}

#[test]
fn what_was_read_is_written_back_to_the_byte() {
    let out = tempfile::tempdir().unwrap();
    for (name, _) in made() {
        let (from, to) = (data("adapters").join(name), out.path().join(name));
        let (settings, parameters) = read(&from, &model()).unwrap();
        write(&to, "base", &settings, &parameters).unwrap();
        assert_eq!(read(&to, &model()).unwrap().0, settings, "{name}");

        let [theirs, ours] =
            [&from, &to].map(|folder| std::fs::read(folder.join(WEIGHTS)).unwrap());
        let [theirs, ours] = [&theirs, &ours].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        assert_eq!(theirs.len(), ours.len(), "{name}");
        for (key, is) in theirs.tensors() {
            let own = ours.tensor(&key).unwrap();
            assert_eq!(
                (is.shape(), Dtype::F32),
                (own.shape(), own.dtype()),
                "{name}: {key}"
            );
            match is.dtype() {
                Dtype::F32 => assert_eq!(is.data(), own.data(), "{name}: {key}"),
                _ => assert_eq!(
                    crate::weights::to_f32(&is),
                    crate::weights::to_f32(&own),
                    "{name}: {key}"
                ),
            }
        }

        let [theirs, ours] = [&from, &to].map(|folder| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).unwrap()).unwrap()
        });
        for (field, value) in ours.as_object().unwrap() {
            let set = |value: &Value| {
                let mut names: Vec<String> = value
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(Value::to_string)
                    .collect();
                names.sort();
                names
            };
            match &theirs[field] {
                // PEFT keeps sets of names, in no order.
                their @ Value::Array(_) => assert_eq!(set(value), set(their), "{name}: {field}"),
                their => assert_eq!(value, their, "{name}: {field}"),
            }
        }
    }
}

#[test]
fn patterns_give_each_projection_its_rank_and_scale() {
    let (settings, _) = read(&data("adapters/patterns"), &model()).unwrap();
    let found: Vec<(usize, f64)> = settings
        .pairs(&model())
        .unwrap()
        .iter()
        .map(|pair| (pair.rank, pair.scale))
        .collect();
    let stable = |rank: usize, alpha: f64| (rank, alpha / (rank as f64).sqrt());
    let (q, v, mlp) = (stable(2, 6.0), stable(2, 2.5), stable(2, 7.0));
    let (down, up, one) = (stable(3, 7.0), stable(5, 7.0), stable(1, 6.0));
    assert_eq!(
        found,
        [q, q, v, q, mlp, up, down, one, one, v, q, mlp, mlp, down]
    );
}

#[test]
fn a_file_that_does_not_fit_its_settings_is_refused() {
    let out = tempfile::tempdir().unwrap();
    for (settings_of, tensors_of, said) in [
        ("rslora", "plain", "down_proj.lora_A.weight is not one that"),
        ("plain", "rslora", "k_proj.lora_A.weight is missing"),
        (
            "plain",
            "patterns",
            "shape [5, 32], base and settings ask for [2, 32]",
        ),
        ("dora", "plain", "q_proj.lora_magnitude_vector is missing"),
        ("plain", "dora", "lora_magnitude_vector is not one that"),
    ] {
        for (file, name) in [(CONFIG, settings_of), (WEIGHTS, tensors_of)] {
            std::fs::copy(
                data("adapters").join(name).join(file),
                out.path().join(file),
            )
            .unwrap();
        }
        let error = read(out.path(), &model()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
