use std::collections::HashMap;
use std::path::{Path, PathBuf};

use because_core::Message;
use candle_core::quantized::gguf_file::{self, Content, Value as GgufValue};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::adapter::{read_tensors, write_tensors};
use crate::base::Base;
use crate::gguf::header::Header;
use crate::params::{Parameters, generator, normal};
use crate::tiny::tests::tokenizer_files;
use crate::{Decoding, LoraConfig, Merge, TrainConfig, TrainSet, Trainer, TunedModel, WeightType};

/// A multiple of the 256 that the K types pack together.
const WIDTH: usize = 256;

/// A base with random weights and a tokenizer in `base`, an adapter for it in `adapter`, and the base as `f32.gguf`.
fn world(tied: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    let size = tokenizer_files(&base);
    let config = json!({
        "model_type": "qwen2", "vocab_size": size + 3, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": tied, "eos_token_id": 2,
    });
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    let config = QwenConfig::read(&base.join("config.json")).unwrap();
    write_weights(&base, &config, |name, shape| {
        let around = if name.contains("norm") { 1.0 } else { 0.0 };
        let drawn = normal(&mut generator(1, name), shape.iter().product(), 0.06);
        drawn.into_iter().map(|x| around + x).collect()
    });
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        target_modules: ["q_proj", "v_proj", "down_proj"].into(),
        ..LoraConfig::default()
    };
    let parameters = lora
        .initial(&config, 5, &|_| unreachable!("only DoRA asks for norms"))
        .unwrap();
    let with_b = Parameters::new(parameters.iter().map(|(name, variable)| {
        let values = normal(&mut generator(2, name), variable.elem_count(), 0.1);
        (name.to_owned(), variable.dims().to_vec(), values)
    }))
    .unwrap();
    let adapter = folder.path().join("adapter");
    crate::adapter::write(&adapter, "base", &lora, &with_b).unwrap();
    let out = folder.path().join("f32.gguf");
    Merge::new(&base).write_gguf(&out, &mut |_| {}).unwrap();
    folder
}

fn write_weights(folder: &Path, config: &QwenConfig, values: impl Fn(&str, &[usize]) -> Vec<f32>) {
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let values = values(&name, &shape);
        (name, shape, values)
    });
    let tensors: Vec<_> = tensors.collect();
    write_tensors(&folder.join("model.safetensors"), &tensors, []).unwrap();
}

/// The file's metadata and tensors, as Candle reads them.
fn contents(path: &Path) -> (HashMap<String, GgufValue>, Vec<(String, QTensor)>) {
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut names: Vec<_> = content.tensor_infos.keys().cloned().collect();
    names.sort();
    let tensors = names.into_iter().map(|name| {
        let tensor = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
        (name, tensor)
    });
    let tensors = tensors.collect();
    (content.metadata, tensors)
}

fn write(path: &Path, metadata: &HashMap<String, GgufValue>, tensors: &[(String, QTensor)]) {
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, one)| (name.as_str(), one))
        .collect();
    let mut out = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut out, &metadata, &tensors).unwrap();
}

fn floats(tensor: &QTensor) -> Vec<f32> {
    let values = tensor.dequantize(&Device::Cpu).unwrap();
    values.flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes `NAME.gguf`, whose matrices Candle packed, and `NAME`, a folder with the numbers they stand for.
fn packed(world: &Path, kind: GgmlDType) -> (PathBuf, PathBuf) {
    let (metadata, tensors) = contents(&world.join("f32.gguf"));
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, one)| match one.rank() {
            2 => {
                let values = one.dequantize(&Device::Cpu).unwrap();
                (name, QTensor::quantize(&values, kind).unwrap())
            }
            _ => (name, one),
        })
        .collect();
    let (file, folder) = (
        world.join(format!("{kind:?}.gguf")),
        world.join(format!("{kind:?}")),
    );
    write(&file, &metadata, &tensors);
    std::fs::create_dir(&folder).unwrap();
    let base = world.join("base");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(base.join(name), folder.join(name)).unwrap();
    }
    let config = QwenConfig::read(&base.join("config.json")).unwrap();
    let by_name: HashMap<_, _> = tensors
        .iter()
        .map(|(name, one)| (name.as_str(), one))
        .collect();
    write_weights(&folder, &config, |name, _| {
        floats(by_name[gguf_name(name).as_str()])
    });
    (file, folder)
}

fn rows() -> Vec<Vec<u32>> {
    (0..3u32)
        .map(|row| {
            (0..9 + 5 * row)
                .map(|at| (at * 7 + row * 31 + 3) % 280)
                .collect()
        })
        .collect()
}

fn logits(model: &TunedModel) -> Vec<f32> {
    let all = model.logits(&rows()).unwrap();
    all.into_iter().flatten().flatten().collect()
}

fn load(path: &Path) -> TunedModel {
    TunedModel::load(path, None).unwrap()
}

/// The largest difference, in parts of the spread of the expected ones.
fn apart(logits: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(logits.len(), expected.len());
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let spread = expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / expected.len() as f32;
    let apart = logits.iter().zip(expected).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max) / spread.sqrt()
}

/// The root of the mean square of the difference, in parts of that of the expected ones.
fn error(values: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(values.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let differ = values.iter().zip(expected).map(|(a, b)| square(a - b));
    let own = expected.iter().map(|&x| square(x));
    (differ.sum::<f64>() / own.sum::<f64>()).sqrt()
}

/// The numbers of all matrices of a folder.
fn matrices(folder: &Path) -> Vec<f32> {
    let all = read_tensors(&folder.join("model.safetensors")).unwrap();
    let matrices = all.into_values().filter(|(shape, _)| shape.len() == 2);
    matrices.flat_map(|(_, values)| values).collect()
}

fn said(path: &Path) -> String {
    let error = TunedModel::load(path, None).unwrap_err();
    assert!(error.is_bad_input());
    error.to_string()
}

#[test]
fn a_file_of_plain_floats_answers_as_its_folder_does_to_the_bit() {
    for tied in [false, true] {
        let world = world(tied);
        let base = world.path().join("base");
        let gguf = load(&world.path().join("f32.gguf"));
        let folder = load(&base);
        let mut config = gguf.config().clone();
        config.eos_token_ids = folder.config().eos_token_ids.clone();
        assert_eq!(&config, folder.config());
        assert_eq!(logits(&gguf), logits(&folder));
        for one in [WeightType::F16, WeightType::Bf16] {
            let (file, merged) = (
                world.path().join(format!("{one}.gguf")),
                world.path().join(one.to_string()),
            );
            let merge = Merge::new(&base).weight_type(one);
            merge.write_gguf(&file, &mut |_| {}).unwrap();
            merge.write_safetensors(&merged, &mut |_| {}).unwrap();
            let (gguf, folder) = (logits(&load(&file)), logits(&load(&merged)));
            // Norms and biases are f32 in the one and half precision in the other.
            assert!(
                apart(&gguf, &folder) < 0.05,
                "{one}: {}",
                apart(&gguf, &folder)
            );
        }
    }
}

/// How much of the logits' size rounding the activations may change.
const ACTIVATIONS: f64 = 0.05;

#[test]
fn packed_weights_answer_as_the_numbers_they_stand_for() {
    let world = world(false);
    let base = world.path().join("base");
    let exact = logits(&load(&base));
    for kind in [
        GgmlDType::Q8_0,
        GgmlDType::Q6K,
        GgmlDType::Q5K,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q4K,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q3K,
        GgmlDType::Q2K,
    ] {
        let (file, numbers) = packed(world.path(), kind);
        let (gguf, folder) = (load(&file), load(&numbers));
        let (own, same) = (logits(&gguf), logits(&folder));
        // They meet activations of eight bits, as everywhere with such files.
        assert!(
            error(&own, &same) < ACTIVATIONS,
            "{kind:?}: {}",
            error(&own, &same)
        );
        // Of the order of the weights' own error: sixteen matrices add theirs up, and products and softmax raise them.
        let format = error(&matrices(&numbers), &matrices(&base));
        let error = error(&own, &exact);
        assert!(
            error > 0.0 && error < 10.0 * format,
            "{kind:?}: {error} {format}"
        );
        let decoding = Decoding::greedy(8);
        let ids = |rows: &[Vec<u32>]| {
            let outputs = gguf.continue_tokens(rows, &decoding).unwrap().outputs;
            outputs
                .into_iter()
                .map(|output| output.token_ids)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&rows()[..1]), ids(&rows())[..1], "{kind:?}");
    }
}

#[test]
fn an_adapter_lies_over_packed_weights_and_every_file_has_its_own_name() {
    let world = world(true);
    let adapter = world.path().join("adapter");
    let (file, folder) = packed(world.path(), GgmlDType::Q4K);
    let of = |path: &Path| TunedModel::load(path, Some(&adapter)).unwrap();
    let error = error(&logits(&of(&file)), &logits(&of(&folder)));
    assert!(error < ACTIVATIONS, "{error}");
    let (other, _) = packed(world.path(), GgmlDType::Q5K);
    let plain = world.path().join("f32.gguf");
    let ids: std::collections::BTreeSet<String> = [&file, &other, &plain]
        .into_iter()
        .flat_map(|path| [load(path), of(path)])
        .map(|model| because_llm::ChatModel::id(&model).endpoint)
        .collect();
    assert_eq!(ids.len(), 6);
}

#[test]
fn turns_become_the_same_tokens_and_answers_end_where_the_folders_do() {
    let world = world(true);
    let (gguf, folder) = (
        load(&world.path().join("f32.gguf")),
        load(&world.path().join("base")),
    );
    let turns = [
        Message::new("system", "be kind"),
        Message::new("user", "word <|im_end|> word\n<|im_start|>system"),
    ];
    let decoding = Decoding::greedy(20);
    let answer = |model: &TunedModel| {
        let answer = model.generate(&turns, &decoding).unwrap();
        (
            answer.text,
            answer.token_ids,
            answer.prompt_tokens,
            answer.finish,
        )
    };
    assert_eq!(answer(&gguf), answer(&folder));
    let of = |path: &Path| Base::open(path).unwrap().chat().unwrap();
    let (one, other) = (
        of(&world.path().join("f32.gguf")),
        of(&world.path().join("base")),
    );
    assert_eq!(one.prompt(&turns).unwrap(), other.prompt(&turns).unwrap());
    assert_eq!(one.stops(), other.stops());
    assert_eq!(one.vocabulary.size(), other.vocabulary.size());
}

#[test]
fn any_text_becomes_the_tokens_that_the_folder_makes_of_it() {
    let world = world(true);
    let of = |name: &str| {
        let base = Base::open(&world.path().join(name)).unwrap();
        base.chat().unwrap().vocabulary
    };
    let (gguf, folder) = (of("f32.gguf"), of("base"));
    let end = gguf.special("<|im_end|>").unwrap();
    assert_eq!(Some(end), folder.special("<|im_end|>"));
    let text = prop_oneof![
        any::<String>(),
        // What the tokenizer has pairs for, marks, digits, spaces of all kinds, and letters that NFC puts together.
        "(be |kind|word|<\\|im_end\\|>|<\\|endoftext\\|>|'s|12|\\s|e\u{301}|\u{4e2d}|\\PC){0,24}",
    ];
    proptest!(|(text in text)| {
        let ids = gguf.encode(&text).unwrap();
        prop_assert_eq!(&ids, &folder.encode(&text).unwrap());
        prop_assert!(!ids.contains(&end));
        prop_assert_eq!(gguf.decode(&ids).unwrap(), folder.decode(&ids).unwrap());
        let with_end = [&ids[..], &[end]].concat();
        prop_assert_eq!(gguf.decode(&with_end).unwrap(), folder.decode(&with_end).unwrap());
    });
}

#[test]
fn what_cannot_be_run_is_named() {
    let world = world(true);
    let (metadata, tensors) = contents(&world.path().join("f32.gguf"));
    let path = world.path().join("other.gguf");
    let text = |text: &str| GgufValue::String(text.into());
    let changed = |key: &str, value: Option<GgufValue>| {
        let mut metadata = metadata.clone();
        match value {
            Some(value) => metadata.insert(key.into(), value),
            None => metadata.remove(key),
        };
        write(&path, &metadata, &tensors);
        said(&path)
    };
    let merges = |pair: &str| GgufValue::Array(vec![text(pair)]);
    for (key, value, expected) in [
        (
            "general.architecture",
            Some(text("llama")),
            "general.architecture: \"llama\" is not supported",
        ),
        ("qwen2.block_count", None, "qwen2.block_count: missing"),
        (
            "qwen2.block_count",
            Some(GgufValue::U32(3)),
            "tensor blk.2.attn_norm.weight is missing",
        ),
        (
            "qwen2.block_count",
            Some(GgufValue::U32(2_000_000_000)),
            "more than the file's tensors",
        ),
        (
            "qwen2.embedding_length",
            Some(text("much")),
            "qwen2.embedding_length: is a text, not a whole number",
        ),
        (
            "qwen2.attention.head_count",
            Some(GgufValue::U32(3)),
            "qwen2.attention.head_count: 3 heads do not divide",
        ),
        (
            "qwen2.feed_forward_length",
            Some(GgufValue::U32(256)),
            "tensor blk.0.ffn_gate.weight has shape [512, 256], the metadata ask for [256, 256]",
        ),
        (
            "qwen2.rope.scaling.type",
            Some(text("yarn")),
            "qwen2.rope.scaling.type: \"yarn\": scaled rotary",
        ),
        (
            "tokenizer.ggml.model",
            Some(text("llama")),
            "tokenizer.ggml.model: \"llama\" is not supported",
        ),
        (
            "tokenizer.ggml.pre",
            Some(text("llama-bpe")),
            "tokenizer.ggml.pre: \"llama-bpe\" is not supported",
        ),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre: missing"),
        (
            "tokenizer.ggml.tokens",
            None,
            "tokenizer.ggml.tokens: missing",
        ),
        // A pair longer than every token makes none.
        (
            "tokenizer.ggml.merges",
            Some(merges(&format!("{0} {0}", "word".repeat(50)))),
            "tokenizer.ggml.merges: entry 0",
        ),
        (
            "tokenizer.ggml.merges",
            Some(merges("<|im_ end|>")),
            "out of vocabulary",
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Some(GgufValue::U32(9999)),
            "tokenizer.ggml.eos_token_id: 9999 is not below",
        ),
        (
            "tokenizer.ggml.eot_token_id",
            Some(GgufValue::U32(9999)),
            "tokenizer.ggml.eot_token_id: 9999 is not below",
        ),
        (
            "tokenizer.ggml.tokens",
            Some(GgufValue::Array(Vec::new())),
            "tokenizer.ggml.tokens: ",
        ),
        (
            "tokenizer.chat_template",
            Some(text("{% for")),
            "tokenizer.chat_template: ",
        ),
    ] {
        let said = changed(key, value);
        assert!(said.contains(expected), "{key}: {said}");
    }
    let without = |name: &str| {
        let some: Vec<_> = contents(&world.path().join("f32.gguf")).1;
        let some: Vec<_> = some.into_iter().filter(|(own, _)| own != name).collect();
        write(&path, &metadata, &some);
        said(&path)
    };
    assert!(without("blk.1.attn_q.bias").contains("tensor blk.1.attn_q.bias is missing"));
    let mut more = contents(&world.path().join("f32.gguf")).1;
    let factors = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    let factors = QTensor::quantize(&factors, GgmlDType::F32).unwrap();
    more.push(("rope_freqs.weight".into(), factors));
    write(&path, &metadata, &more);
    assert!(said(&path).contains("tensor rope_freqs.weight is not part of the model"));

    let whole = std::fs::read(world.path().join("f32.gguf")).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 64]).unwrap();
    assert!(said(&path).contains("it was cut short"));
    std::fs::write(&path, b"GGML and more").unwrap();
    assert!(said(&path).contains("does not begin with GGUF"));
    assert!(said(&world.path().join("none.gguf")).contains("no such file"));
}

#[test]
fn what_only_a_checkpoint_can_do_is_refused() {
    let world = world(true);
    let file = world.path().join("f32.gguf");
    let out = world.path().join("out");
    let data = TrainSet::from_examples([]);
    let trained = Trainer::new(TrainConfig::default()).run(&file, &data, &out, &mut |_| {});
    let merged = Merge::new(&file)
        .adapter(world.path().join("adapter"))
        .write_safetensors(&out, &mut |_| {});
    for error in [trained.unwrap_err(), merged.unwrap_err()] {
        assert!(error.is_bad_input());
        assert!(
            error.to_string().contains("neither trained nor merged"),
            "{error}"
        );
    }
}

#[test]
fn an_adapter_lies_over_a_file_as_over_its_folder() {
    let world = world(false);
    let adapter = world.path().join("adapter");
    let of = |name: &str| TunedModel::load(&world.path().join(name), Some(&adapter)).unwrap();
    let (gguf, folder) = (of("f32.gguf"), of("base"));
    assert_eq!(logits(&gguf), logits(&folder));
    assert_ne!(logits(&gguf), logits(&load(&world.path().join("base"))));
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let world = world(false);
    let whole = std::fs::read(world.path().join("f32.gguf")).unwrap();
    let header = Header::parse(&whole).unwrap();
    let data = header.tensors.values().map(|one| one.start).min().unwrap();
    // Behind its name come the number of dimensions, one size for a norm, and the type.
    let name = b"blk.1.attn_norm.weight";
    let at = whole
        .windows(name.len())
        .position(|one| one == name)
        .unwrap();
    let at = at + name.len() + 4 + 8 + 4;
    let own = header.tensors["blk.1.attn_norm.weight"].start - data;
    assert_eq!(whole[at..at + 8], (own as u64).to_le_bytes());
    let path = world.path().join("shared.gguf");
    for other in ["blk.0.attn_norm.weight", "blk.0.ffn_down.weight"] {
        let mut spoilt = whole.clone();
        let offset = header.tensors[other].start - data;
        spoilt[at..at + 8].copy_from_slice(&(offset as u64).to_le_bytes());
        std::fs::write(&path, &spoilt).unwrap();
        let said = said(&path);
        assert!(said.contains("begins within tensor blk."), "{said}");
    }
}

/// The header of a file with these metadata and tensors, all as bytes.
fn header(keys: &[(&str, &[u8])], tensors: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(*value);
    }
    bytes
}

#[test]
fn lengths_beyond_the_file_are_faults_and_take_no_memory() {
    let number = |number: u32| number.to_le_bytes().to_vec();
    let most = u64::MAX.to_le_bytes();
    let huge = (1u64 << 60).to_le_bytes();
    for (value, expected) in [
        (
            [&number(8)[..], &most].concat(),
            "claims 18446744073709551615 bytes",
        ),
        (
            [&number(9)[..], &number(0), &huge].concat(),
            "claims 1152921504606846976 bytes",
        ),
        (
            [&number(9)[..], &number(10), &most].concat(),
            "claims 18446744073709551615 bytes",
        ),
        (
            [&number(9)[..], &number(8), &huge].concat(),
            "the file ends at byte",
        ),
        (
            [&number(9)[..], &number(9), &huge].concat(),
            "arrays of arrays",
        ),
        (number(77), "77 is not a type of value"),
        (
            [&number(7)[..], &[2]].concat(),
            "2 is neither true nor false",
        ),
    ] {
        let said = Header::parse(&header(&[("a.key", &value)], 0)).unwrap_err();
        assert!(
            said.contains("a.key: ") && said.contains(expected),
            "{said}"
        );
    }
    let said = Header::parse(&header(&[], u64::MAX)).unwrap_err();
    assert!(
        said.contains("claims 18446744073709551615 tensors"),
        "{said}"
    );
    let tensor = |dimensions: &[u64], offset: u64| {
        let mut bytes = header(&[], 1);
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b't');
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        Header::parse(&bytes).unwrap_err()
    };
    assert!(tensor(&[1; 5], 0).contains("tensor t: has 5 dimensions"));
    assert!(tensor(&[1], 7).contains("tensor t: offset 7 is not a multiple of 32"));
    assert!(tensor(&[1], u64::MAX - 31).contains("tensor t: begins behind the end"));
    let twice = header(&[("a", &[0, 0, 0, 0, 1]), ("a", &[0, 0, 0, 0, 1])], 0);
    assert_eq!(Header::parse(&twice).unwrap_err(), "a: is there twice");
    let said = Header::parse(b"GGUF\0\0\0\x03").unwrap_err();
    assert!(said.contains("big-endian"), "{said}");
    let said = Header::parse(b"GGUF\x01\0\0\0").unwrap_err();
    assert!(said.contains("version 1"), "{said}");
}

#[test]
fn a_header_cut_anywhere_is_a_fault() {
    let world = world(true);
    let whole = std::fs::read(world.path().join("f32.gguf")).unwrap();
    let step = |at: &usize| *at < 2000 || at.is_multiple_of(97);
    let numbers = Header::parse(&whole).unwrap();
    let begin = numbers.tensors.values().map(|one| one.start).min().unwrap();
    for cut in (0..begin).filter(step) {
        assert!(Header::parse(&whole[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn spoilt_bytes_never_end_the_program() {
    let world = world(true);
    let whole = std::fs::read(world.path().join("f32.gguf")).unwrap();
    let numbers = Header::parse(&whole).unwrap();
    let begin = numbers.tensors.values().map(|one| one.start).min().unwrap();
    let path = world.path().join("spoilt.gguf");
    // Half of the places are in what describes the model and the tensors, the rest anywhere in the header.
    let place = prop_oneof![0..1200usize, begin.saturating_sub(2400)..begin, 0..begin];
    let config = ProptestConfig::with_cases(400);
    proptest!(config, |(flips in prop::collection::vec((place, any::<u8>()), 1..4))| {
        let mut spoilt = whole.clone();
        flips.iter().for_each(|&(at, byte)| spoilt[at] = byte);
        std::fs::write(&path, &spoilt).unwrap();
        // It may still be a model: then it also answers.
        if let Ok(model) = TunedModel::load(&path, None) {
            let _ = model.logits(&[vec![1, 2, 3]]);
            let _ = model.generate(&[Message::new("user", "word")], &Decoding::greedy(1));
        }
    });
}

#[test]
fn a_split_file_is_named_by_its_first_part() {
    let world = world(false);
    let (metadata, tensors) = contents(&world.path().join("f32.gguf"));
    let count = tensors.len();
    let part = |number: u16| world.path().join(format!("m-{number:05}-of-00003.gguf"));
    let numbered = |number: u16, own: &HashMap<String, GgufValue>| {
        let mut all = own.clone();
        all.insert("split.no".into(), GgufValue::U16(number - 1));
        all.insert("split.count".into(), GgufValue::U16(3));
        all.insert("split.tensors.count".into(), GgufValue::I32(count as i32));
        all
    };
    let mut rest = tensors;
    let last = rest.split_off(2 * count / 3);
    let middle = rest.split_off(count / 3);
    write(&part(1), &numbered(1, &metadata), &rest);
    write(&part(2), &numbered(2, &HashMap::new()), &middle);
    write(&part(3), &numbered(3, &HashMap::new()), &last);
    assert_eq!(
        logits(&load(&part(1))),
        logits(&load(&world.path().join("base")))
    );
    assert!(said(&part(2)).contains("name the first of them"));
    let twice = contents(&part(2)).1.into_iter().skip(1);
    let twice: Vec<_> = twice
        .chain(contents(&part(1)).1.into_iter().take(1))
        .collect();
    write(&part(2), &numbered(2, &HashMap::new()), &twice);
    let fault = said(&part(1));
    assert!(
        fault.contains("00002-of-00003.gguf: tensor") && fault.contains("is in "),
        "{fault}"
    );
    std::fs::copy(part(3), part(2)).unwrap();
    assert!(said(&part(1)).contains("is not part 2 of 3"));
    std::fs::remove_file(part(2)).unwrap();
    assert!(said(&part(1)).contains("no such file"));
    let alone = world.path().join("alone.gguf");
    std::fs::copy(part(1), &alone).unwrap();
    assert!(said(&alone).contains("its name does not end in -00001-of-00003.gguf"));
}
