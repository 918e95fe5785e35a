//! The rate of one large f32 product, 2048 x 2048 x 2048, as the model's layers call it: the roof of everything else here.
//! Items are floating-point operations.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench matmul`

use candle_core::{Device, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;

const N: usize = 2048;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn square_of_2048(bencher: Bencher<'_, '_>) {
    let draw = || Tensor::rand(-1f32, 1f32, (N, N), &Device::Cpu);
    let (a, b) = (
        draw().expect("16 MiB are there"),
        draw().expect("16 MiB are there"),
    );
    let b = b.t().expect("a matrix has two dimensions");
    bencher
        .counter(ItemsCount::new(2 * N * N * N))
        .bench_local(|| a.matmul(&b));
}
