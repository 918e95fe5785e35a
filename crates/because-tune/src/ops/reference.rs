//! The same operations in plain Candle, whose own backward then is the oracle; and the comparisons.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor, Var};

use super::{
    AttentionShape, Rope, Segment, add_bias, attention, cross_entropy, frozen_linear, linear,
    lora_linear, rms_norm, swiglu, values,
};

/// Numbers between -1 and 1 that look random and are the same everywhere.
fn noise(shape: &[usize], seed: u64) -> Var {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values = std::iter::repeat_with(next)
        .take(shape.iter().product())
        .collect();
    Var::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (
        values(&a.contiguous().unwrap()).unwrap(),
        values(&b.contiguous().unwrap()).unwrap(),
    );
    let top = b.iter().fold(1f32, |top, b| top.max(b.abs()));
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * top,
            "{what}[{index}]: {a} against {b}"
        );
    }
}

/// Compares value and gradients of two functions of the same variables, through a loss that weighs every output.
fn same(vars: &[&Var], ours: impl Fn() -> Result<Tensor>, plain: impl Fn() -> Result<Tensor>) {
    let run = |function: &dyn Fn() -> Result<Tensor>| {
        let out = function().unwrap();
        let weights = noise(out.dims(), 99).as_detached_tensor();
        let loss = if out.rank() == 0 {
            out.clone()
        } else {
            (&out * weights).unwrap().sum_all().unwrap()
        };
        (out, loss.backward().unwrap())
    };
    let ((out, grads), (expected, expected_grads)) = (run(&ours), run(&plain));
    close(&out, &expected, 1e-5, "value");
    for (index, var) in vars.iter().enumerate() {
        let gradient = grads
            .get(var)
            .unwrap_or_else(|| panic!("variable {index} got no gradient"));
        close(
            gradient,
            expected_grads.get(var).unwrap(),
            1e-5,
            &format!("gradient {index}"),
        );
    }
}

#[test]
fn linear_layers_agree_with_plain_candle() {
    let (x, w, b) = (noise(&[5, 6], 1), noise(&[4, 6], 2), noise(&[4], 3));
    let plain = || x.matmul(&w.t()?)?.broadcast_add(&b);
    same(&[&x, &w, &b], || add_bias(&linear(&x, &w)?, &b), plain);
    let (w, b) = (w.as_detached_tensor(), b.as_detached_tensor());
    same(
        &[&x],
        || frozen_linear(&x, &w, Some(&b)),
        || x.matmul(&w.t()?)?.broadcast_add(&b),
    );
    let (low, high) = (noise(&[2, 6], 4), noise(&[4, 2], 5));
    same(
        &[&x, &low, &high],
        || lora_linear(&x, (&low, &high, 0.5), &w, Some(&b)),
        || {
            let delta = (x.matmul(&low.t()?)?.matmul(&high.t()?)? * 0.5)?;
            x.matmul(&w.t()?)?.broadcast_add(&b)? + delta
        },
    );
}

#[test]
fn norm_and_swiglu_agree_with_plain_candle() {
    let (x, w) = (noise(&[70, 19], 1), noise(&[19], 2));
    same(
        &[&x, &w],
        || rms_norm(&x, &w, 1e-6),
        || {
            let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
            x.broadcast_div(&(mean + 1e-6)?.sqrt()?)?.broadcast_mul(&w)
        },
    );
    let (gate, up) = (noise(&[7, 33], 3), noise(&[7, 33], 4));
    same(
        &[&gate, &up],
        || swiglu(&gate, &up),
        || gate.silu()? * up.as_tensor(),
    );
}

#[test]
fn cross_entropy_agrees_with_plain_candle() {
    let (h, w, targets) = (
        noise(&[40, 6], 1),
        noise(&[11, 6], 2),
        (0..40).map(|i| i % 11).collect::<Vec<u32>>(),
    );
    same(
        &[&h, &w],
        || cross_entropy(&h, &w, targets.clone(), 13.0),
        || {
            let logits = h.matmul(&w.t()?)?;
            let norm = logits.exp()?.sum_keepdim(1)?.log()?;
            let index = Tensor::new(targets.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
            (norm - logits.gather(&index, 1)?)?.sum_all()? / 13.0
        },
    );
}

/// Attention of one segment, head by head: `[t, heads d]`.
fn plain_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    theta: f64,
) -> Result<Tensor> {
    let (t, d) = (q.dim(0)?, shape.head_dim);
    let angle = |position: usize, i: usize| position as f64 / theta.powf(2.0 * i as f64 / d as f64);
    let table = |f: fn(f64) -> f64| {
        let values = (0..t)
            .flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i)) as f32))
            .collect();
        Tensor::from_vec::<_, f32>(values, (t, d / 2), &Device::Cpu)
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let turn = |x: &Tensor| {
        let (a, b) = (x.narrow(1, 0, d / 2)?, x.narrow(1, d / 2, d / 2)?);
        Tensor::cat(
            &[
                ((&a * &cos)? - (&b * &sin)?)?,
                ((&b * &cos)? + (&a * &sin)?)?,
            ],
            1,
        )
    };
    let mask: Vec<f32> = (0..t * t)
        .map(|at| {
            if at % t > at / t {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
        .collect();
    let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
    let heads = (0..shape.heads)
        .map(|head| {
            let kv = head / (shape.heads / shape.kv_heads);
            let q = turn(&q.narrow(1, head * d, d)?)?;
            let k = turn(&k.narrow(1, kv * d, d)?)?;
            let scores = ((q.matmul(&k.t()?)? / (d as f64).sqrt())? + &mask)?.exp()?;
            let weights = scores.broadcast_div(&scores.sum_keepdim(1)?)?;
            weights.matmul(&v.narrow(1, kv * d, d)?.contiguous()?)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&heads, 1)
}

#[test]
fn attention_agrees_with_plain_candle_on_ragged_segments_and_across_blocks() {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 4,
    };
    // 100 positions times a group of 3 make three blocks of at most 42 positions.
    let segments: Arc<[Segment]> = [
        Segment {
            start: 0,
            len: 3,
            past: 0,
        },
        Segment {
            start: 3,
            len: 100,
            past: 0,
        },
    ]
    .into();
    let (q, k, v) = (
        noise(&[103, 24], 1),
        noise(&[103, 8], 2),
        noise(&[103, 8], 3),
    );
    let rope = Rope::new(1e4, 4).table(100);
    same(
        &[&q, &k, &v],
        || attention((&q, &k, &v), shape, &segments, &rope),
        || {
            let parts = segments
                .iter()
                .map(|s| {
                    let cut = |x: &Tensor| x.narrow(0, s.start, s.len);
                    plain_attention(&cut(&q)?, &cut(&k)?, &cut(&v)?, shape, 1e4)
                })
                .collect::<Result<Vec<_>>>()?;
            Tensor::cat(&parts, 0)
        },
    );
}
