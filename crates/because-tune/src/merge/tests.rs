use std::collections::BTreeMap;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value as GgufValue};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::*;
use crate::adapter::{Tensors, read_tensors, write_tensors};
use crate::config::QwenConfig;
use crate::params::{Parameters, generator, normal};
use crate::template::CHATML;
use crate::tiny::tests::tokenizer_files;
use crate::{LoraConfig, TunedModel};

const LAYERS: usize = 2;

/// A base with a tokenizer in `base` and an adapter for it in `adapter`, all drawn from a seed.
fn world(dtype: Dtype, shards: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
    std::fs::create_dir(&base).unwrap();
    let size = tokenizer_files(&base);
    let config = json!({
        "model_type": "qwen2", "vocab_size": size + 3, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false,
        "torch_dtype": "of the test", "of_others": true,
    });
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    std::fs::write(base.join("README.md"), "# A model").unwrap();
    std::fs::write(base.join("pytorch_model.bin"), "large").unwrap();
    let config = QwenConfig::read(&base.join("config.json")).unwrap();
    let drawn: Vec<_> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values = normal(&mut generator(1, &name), count, 0.2);
            (name, shape, values)
        })
        .collect();
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{shard}.safetensors"),
        };
        let own: Vec<_> = drawn.iter().skip(shard).step_by(shards).collect();
        write_shard(&base.join(&file), dtype, &own);
        map.extend(
            own.iter()
                .map(|(name, ..)| (name.clone(), file.clone().into())),
        );
    }
    if shards > 1 {
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        std::fs::write(base.join(INDEX), index.to_string()).unwrap();
    }
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
        let count = variable.elem_count();
        let values = normal(&mut generator(2, name), count, 0.2);
        (name.to_owned(), variable.dims().to_vec(), values)
    }))
    .unwrap();
    crate::adapter::write(&adapter, "base", &lora, &with_b).unwrap();
    folder
}

fn write_shard(path: &Path, dtype: Dtype, tensors: &[&(String, Vec<usize>, Vec<f32>)]) {
    let one = match dtype {
        Dtype::F32 => WeightType::F32,
        Dtype::F16 => WeightType::F16,
        _ => WeightType::Bf16,
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            let mut bytes = Vec::new();
            one.encode(values, &mut bytes).unwrap();
            bytes
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    let about = Some([("format".to_owned(), "pt".to_owned())].into());
    std::fs::write(path, safetensors::serialize(views, about).unwrap()).unwrap();
}

fn merge(world: &tempfile::TempDir) -> Merge {
    Merge::new(world.path().join("base")).adapter(world.path().join("adapter"))
}

fn weights(folder: &Path) -> Tensors {
    let mut all = Tensors::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if is_named(&path, "safetensors") {
            all.extend(read_tensors(&path).unwrap());
        }
    }
    all
}

/// `W + s B A` of one weight, exactly enough that only the last rounding matters.
fn exact(base: &Tensors, adapter: &Tensors, path: &str) -> Option<Vec<f64>> {
    let part = |name: &str| adapter.get(&format!("base_model.model.{path}.{name}.weight"));
    let ((_, a), (b_shape, b)) = (part("lora_A")?, part("lora_B")?);
    let (shape, weight) = &base[&format!("{path}.weight")];
    let (width, rank) = (shape[1], b_shape[1]);
    let at = |place: usize| {
        let (row, column) = (place / width, place % width);
        let product: f64 = (0..rank)
            .map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * width + column]))
            .sum();
        f64::from(weight[place]) + 2.0 * product
    };
    Some((0..weight.len()).map(at).collect())
}

#[test]
fn the_merged_model_answers_as_base_and_adapter_do() {
    for shards in [1, 3] {
        let world = world(Dtype::F32, shards);
        let out = world.path().join("merged");
        let mut seen = Vec::new();
        let written = merge(&world)
            .write_safetensors(&out, &mut |event| {
                let MergeEvent::Tensor { done, total, .. } = *event;
                seen.push((done, total));
            })
            .unwrap();
        assert_eq!(written.merged_tensors, 3 * LAYERS);
        assert_eq!(seen.len(), written.tensors);
        assert_eq!(*seen.last().unwrap(), (written.tensors, written.tensors));

        let rows = [vec![1, 5, 9, 2, 77, 30], vec![40; 17]];
        let base = world.path().join("base");
        let adapter = world.path().join("adapter");
        let apart = TunedModel::load(&base, Some(&adapter)).unwrap();
        let apart = apart.logits(&rows).unwrap().concat().concat();
        let merged = TunedModel::load(&out, None).unwrap();
        let merged = merged.logits(&rows).unwrap().concat().concat();
        let plain = TunedModel::load(&base, None).unwrap();
        let plain = plain.logits(&rows).unwrap().concat().concat();
        let top = apart.iter().fold(0f32, |top, x| top.max(x.abs()));
        let distance = |other: &[f32]| {
            let pairs = apart.iter().zip(other);
            pairs.fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / top
        };
        assert!(distance(&merged) < 1e-5, "{}", distance(&merged));
        assert!(distance(&plain) > 1e-2, "the adapter does something");
    }
}

#[test]
fn weights_of_half_precision_are_rounded_once() {
    for dtype in [Dtype::BF16, Dtype::F16] {
        let world = world(dtype, 2);
        let out = world.path().join("merged");
        merge(&world).write_safetensors(&out, &mut |_| {}).unwrap();
        let base = weights(&world.path().join("base"));
        let adapter = weights(&world.path().join("adapter"));
        let (mut count, mut other) = (0, 0);
        for (name, (_, values)) in weights(&out) {
            let path = name.trim_end_matches(".weight");
            let Some(exact) = exact(&base, &adapter, path) else {
                assert_eq!(values, base[&name].1, "{name}");
                continue;
            };
            for (is, exact) in values.into_iter().zip(exact) {
                let mut bytes = Vec::new();
                let one = match dtype {
                    Dtype::F16 => WeightType::F16,
                    _ => WeightType::Bf16,
                };
                one.encode(&[exact as f32], &mut bytes).unwrap();
                let view = TensorView::new(dtype, vec![1], &bytes).unwrap();
                let once = crate::weights::to_f32(&view).unwrap()[0];
                count += 1;
                if is != once {
                    // Between two neighbours the last bit of the f32 sum decides: both are then equally near.
                    other += 1;
                    let (mine, its) = (f64::from(is) - exact, f64::from(once) - exact);
                    assert!(
                        (mine.abs() - its.abs()).abs() < 1e-6,
                        "{name}: {is} {exact}"
                    );
                }
            }
        }
        assert!(count > 5000 && other * 500 < count, "{other} of {count}");
    }
}

#[test]
fn what_is_not_changed_is_copied_byte_for_byte() {
    let world = world(Dtype::BF16, 3);
    let (base, out) = (world.path().join("base"), world.path().join("merged"));
    let written = merge(&world).write_safetensors(&out, &mut |_| {}).unwrap();
    let mut names = Vec::new();
    let mut bytes = 0;
    for entry in std::fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (is, was) = (
            std::fs::read(&path).unwrap(),
            std::fs::read(base.join(&name)).unwrap(),
        );
        bytes += is.len() as u64;
        names.push(name);
        if !is_named(&path, "safetensors") {
            assert_eq!(is, was, "{}", path.display());
            continue;
        }
        let (is, was) = (
            SafeTensors::deserialize(&is).unwrap(),
            SafeTensors::deserialize(&was).unwrap(),
        );
        for (name, view) in was.tensors() {
            let mine = is.tensor(&name).unwrap();
            assert_eq!(mine.dtype(), view.dtype(), "{name}");
            let has_adapter = ["q_proj.weight", "v_proj.weight", "down_proj.weight"];
            let changes = has_adapter.iter().any(|end| name.ends_with(end));
            assert_eq!(mine.data() != view.data(), changes, "{name}");
        }
    }
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "model-0.safetensors",
            "model-1.safetensors",
            "model-2.safetensors",
            INDEX,
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!((written.files, written.bytes), (8, bytes));
}

#[test]
fn another_type_is_declared_where_it_is_read() {
    let world = world(Dtype::BF16, 2);
    let out = world.path().join("wide");
    let written = Merge::new(world.path().join("base"))
        .weight_type(WeightType::F32)
        .write_safetensors(&out, &mut |_| {})
        .unwrap();
    assert_eq!(written.merged_tensors, 0);
    let (wide, base) = (weights(&out), weights(&world.path().join("base")));
    assert_eq!(wide, base);
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("config.json")["torch_dtype"], "float32");
    assert_eq!(read("config.json")["of_others"], true);
    let numbers: usize = wide.values().map(|(_, values)| values.len()).sum();
    assert_eq!(read(INDEX)["metadata"]["total_size"], numbers * 4);
}

#[test]
fn a_merge_that_ends_early_leaves_nothing() {
    let world = world(Dtype::F32, 2);
    let before = entries(world.path());
    for (gguf, name) in [(false, "merged"), (true, "merged.gguf")] {
        let flag = Arc::new(AtomicBool::new(false));
        let merge = merge(&world).cancel(Arc::clone(&flag));
        let out = world.path().join(name);
        let mut stop = |event: &MergeEvent<'_>| {
            let MergeEvent::Tensor { done, .. } = *event;
            flag.store(done == 7, Ordering::Relaxed);
        };
        let error = match gguf {
            true => merge.write_gguf(&out, &mut stop),
            false => merge.write_safetensors(&out, &mut stop),
        }
        .unwrap_err();
        assert!(matches!(error, TuneError::Interrupted { .. }), "{error}");
        assert_eq!(entries(world.path()), before);
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn what_cannot_be_merged_is_named_and_nothing_is_replaced() {
    let world = world(Dtype::F32, 1);
    let out = world.path().join("out");
    let said = |merge: &Merge, out: &Path| {
        let error = merge.write_safetensors(out, &mut |_| {}).unwrap_err();
        assert!(error.is_bad_input());
        error.to_string()
    };
    let base = world.path().join("base");
    std::fs::write(&out, "kept").unwrap();
    assert!(said(&merge(&world), &out).contains("out exists; remove it"));
    assert_eq!(std::fs::read(&out).unwrap(), b"kept");
    assert!(said(&merge(&world), &base).contains("base exists"));
    let other = world.path().join("other");
    assert!(said(&Merge::new(&base), &other).contains("adapter: missing"));
    let packed = merge(&world).weight_type(WeightType::Q8_0);
    assert!(said(&packed, &other).contains("q8_0"));
    assert!(said(&merge(&world), &world.path().join("a.safetensors")).contains("is a folder"));
    assert!(said(&Merge::new(&base).adapter(&base), &other).contains("no adapter here"));

    // An adapter of another model, and one that is spoilt.
    let file = world.path().join("adapter/adapter_model.safetensors");
    let tensors = read_tensors(&file).unwrap();
    let name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    let with = |change: &dyn Fn(&mut Vec<usize>, &mut Vec<f32>)| {
        let mut changed = tensors.clone();
        let (shape, values) = changed.get_mut(name).unwrap();
        change(shape, values);
        let changed: Vec<_> = changed
            .into_iter()
            .map(|(name, (shape, values))| (name, shape, values))
            .collect();
        write_tensors(&file, &changed, []).unwrap();
        said(&merge(&world), &other)
    };
    let message = with(&|shape, values| {
        shape[0] -= 1;
        values.truncate(shape[0] * shape[1]);
    });
    assert!(
        message.contains(name) && message.contains("[31, 4]"),
        "{message}"
    );
    let message = with(&|_, values| values[0] = f32::NAN);
    assert!(
        message.contains("layers.1.mlp.down_proj.weight") && message.contains("NaN"),
        "{message}"
    );

    // A base that was cut short.
    let file = base.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
    let message = said(&merge(&world), &other);
    assert!(
        message.contains("model.safetensors") && message.contains("cut short"),
        "{message}"
    );
    assert!(!other.exists());
}

#[test]
fn a_gguf_file_holds_the_merged_model_and_its_tokenizer() {
    let world = world(Dtype::F32, 2);
    let out = world.path().join("merged");
    merge(&world).write_safetensors(&out, &mut |_| {}).unwrap();
    let merged = weights(&out);
    for (one, most) in [
        (WeightType::F32, 0.0),
        (WeightType::F16, 2f32.powi(-11)),
        (WeightType::Bf16, 2f32.powi(-8)),
        (WeightType::Q8_0, 0.5 / 127.0 + 2f32.powi(-11)),
    ] {
        let path = world.path().join(format!("{one}.gguf"));
        let written = merge(&world)
            .weight_type(one)
            .write_gguf(&path, &mut |_| {})
            .unwrap();
        assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
        let mut file = std::fs::File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        assert_eq!(content.tensor_infos.len(), merged.len());
        let q = content.tensor_infos["blk.1.ffn_down.weight"].ggml_dtype;
        let fallback = one == WeightType::Q8_0;
        assert_eq!(
            format!("{q:?}"),
            if fallback {
                "F16".into()
            } else {
                format!("{one:?}").to_uppercase()
            }
        );
        for (own, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.norm.weight", "output_norm.weight"),
            (
                "model.layers.1.self_attn.q_proj.weight",
                "blk.1.attn_q.weight",
            ),
            ("model.layers.0.self_attn.v_proj.bias", "blk.0.attn_v.bias"),
            (
                "model.layers.1.mlp.down_proj.weight",
                "blk.1.ffn_down.weight",
            ),
        ] {
            let (shape, values) = &merged[own];
            let read = content.tensor(&mut file, theirs, &Device::Cpu).unwrap();
            let read = read.dequantize(&Device::Cpu).unwrap();
            assert_eq!(read.dims(), shape, "{theirs}");
            let read: Vec<f32> = read.flatten_all().unwrap().to_vec1().unwrap();
            let top = values.iter().fold(0f32, |top, x| top.max(x.abs()));
            let most = if shape.len() == 1 { 0.0 } else { most * top };
            for (a, b) in read.iter().zip(values) {
                assert!((a - b).abs() <= most, "{one} {theirs}: {a} {b}");
            }
        }
        check_metadata(&content.metadata.into_iter().collect());
    }
}

fn check_metadata(metadata: &BTreeMap<String, GgufValue>) {
    let text = |key: &str| metadata[key].to_string().unwrap().as_str();
    let number = |key: &str| metadata[key].to_u32().unwrap() as usize;
    assert_eq!(text("general.architecture"), "qwen2");
    assert_eq!(text("general.name"), "base+adapter");
    assert_eq!(text("tokenizer.ggml.model"), "gpt2");
    assert_eq!(text("tokenizer.ggml.pre"), "qwen2");
    assert_eq!(text("tokenizer.chat_template"), CHATML);
    assert_eq!(number("qwen2.block_count"), LAYERS);
    assert_eq!(number("qwen2.attention.head_count_kv"), 2);
    assert_eq!(number("qwen2.feed_forward_length"), 48);
    assert_eq!(number("qwen2.context_length"), 64);
    assert_eq!(metadata["qwen2.rope.freq_base"].to_f32().unwrap(), 1e6);
    assert!(!metadata["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
    let tokens = metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
    let token = |id: usize| tokens[id].to_string().unwrap().as_str();
    assert_eq!(token(number("tokenizer.ggml.eos_token_id")), "<|im_end|>");
    assert_eq!(
        token(number("tokenizer.ggml.padding_token_id")),
        "<|endoftext|>"
    );
    let last = tokens.len() - 1;
    assert_eq!(token(last), format!("[PAD{last}]"));
    let kinds = metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    assert_eq!(kinds.len(), tokens.len());
    assert_eq!(kinds[last].to_i32().unwrap(), 5);
    assert_eq!(
        kinds[number("tokenizer.ggml.eos_token_id")]
            .to_i32()
            .unwrap(),
        3
    );
    assert!(
        !metadata["tokenizer.ggml.merges"]
            .to_vec()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn the_same_merge_gives_the_same_bytes_at_any_thread_count() {
    let world = world(Dtype::BF16, 1);
    let written = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let path = world.path().join(format!("{threads}.gguf"));
        let run = || merge(&world).write_gguf(&path, &mut |_| {}).map(|_| ());
        pool.unwrap().install(run).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(written(1), written(3));
}
