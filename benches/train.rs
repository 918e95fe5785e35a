//! Steps of LoRA on a tiny base: forward, backward, AdamW.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench train`

use because::tune::{TinyBase, TokenRow, TrainConfig, TrainSet, Trainer};
use divan::Bencher;
use divan::counter::ItemsCount;

const ROWS: usize = 4;
const TOKENS: usize = 128;
const STEPS: u64 = 4;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 10)]
fn lora_steps_of_four_rows_of_128(bencher: Bencher<'_, '_>) {
    let folder = std::env::temp_dir().join(format!("because-bench-{}", std::process::id()));
    let base = folder.join("base");
    let texts = (0..200).map(|text| format!("Text {text} is about quiet games and long evenings."));
    TinyBase::new()
        .steps(1)
        .build(texts, &base, &mut |_| {})
        .expect("the temporary folder can be written");
    let rows: Vec<TokenRow> = (0..ROWS as u32)
        .map(|row| TokenRow {
            input_ids: (0..TOKENS as u32)
                .map(|place| 3 + (row * 31 + place * 7) % 250)
                .collect(),
            labels: None,
        })
        .collect();
    let data = TrainSet::from_rows(rows);
    let config = TrainConfig {
        max_steps: Some(STEPS),
        batch_size: ROWS,
        ..TrainConfig::default()
    };
    let trainer = Trainer::new(config);
    let out = folder.join("adapter");
    bencher
        .counter(ItemsCount::new(ROWS * TOKENS * STEPS as usize))
        .bench_local(|| trainer.run(&base, &data, &out, &mut |_| {}));
    let _ = std::fs::remove_dir_all(folder);
}
