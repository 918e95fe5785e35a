//! The same operations in plain Candle, whose own backward is the oracle; and the comparisons.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};

use super::matrix::{Matrix, Param};
use super::{
    AttentionShape, Dropout, Gradients, Lora, Magnitude, Pool, Projection, Projections, Rope,
    Segment, attention, attention_backward, cross_entropy, rms_norm, rms_norm_backward,
    row_squares, swiglu, swiglu_backward, tensor, values,
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

/// Value and gradients of a function in plain Candle, through a loss that weighs every output as [`weights`] does.
fn plain(vars: &[&Var], function: impl Fn() -> Result<Tensor>) -> (Tensor, Vec<Tensor>) {
    let out = function().unwrap();
    let loss = match out.rank() {
        0 => out.clone(),
        _ => (&out * weights(&out)).unwrap().sum_all().unwrap(),
    };
    let grads = loss.backward().unwrap();
    let of = |var: &&Var| grads.get(var).unwrap().clone();
    (out, vars.iter().map(of).collect())
}

fn weights(out: &Tensor) -> Tensor {
    noise(out.dims(), 99).as_detached_tensor()
}

/// A copy that nothing else holds, as the buffers of a pass are.
fn own(t: &Tensor) -> Tensor {
    tensor(values(&t.contiguous().unwrap()).unwrap(), t.shape()).unwrap()
}

/// Lays out parameters one after the other and tells each where its gradient goes.
#[derive(Default)]
struct Layout(BTreeMap<&'static str, (usize, Vec<usize>)>, usize);

impl Layout {
    fn learns(&mut self, name: &'static str, var: &Var) -> Param {
        let slot = self.1;
        self.0.insert(name, (slot, var.dims().to_vec()));
        self.1 += var.elem_count();
        Param {
            tensor: own(var),
            slot: Some(slot),
        }
    }

    fn gradients(&self) -> Gradients {
        Gradients::zeros(self.1)
    }

    fn of(&self, name: &str, gradients: &Gradients) -> Tensor {
        let (slot, shape) = &self.0[name];
        let len: usize = shape.iter().product();
        assert!(gradients.covers(*slot, len), "{name}");
        tensor(
            gradients.flat()[*slot..slot + len].to_vec(),
            shape.as_slice(),
        )
        .unwrap()
    }
}

const N: usize = 300;

fn projection(weight: Matrix, bias: Option<Param>, lora: Option<Lora>, site: u32) -> Projection {
    Projection {
        weight,
        bias,
        lora,
        site,
    }
}

#[test]
fn projections_that_learn_agree_with_plain_candle() {
    let pool = Pool::default();
    let (x, w, b) = (noise(&[N, 6], 1), noise(&[280, 6], 2), noise(&[280], 3));
    let mut layout = Layout::default();
    let group = Projections {
        all: vec![projection(
            Matrix::Param(layout.learns("w", &w)),
            Some(layout.learns("b", &b)),
            None,
            0,
        )],
        a: None,
    };
    let (out, kept) = group.forward(&pool, &own(&x), None, None).unwrap();
    let mut gradients = layout.gradients();
    let g = [weights(&out[0])];
    let dx = group
        .backward(&pool, (&own(&x), &kept), &g, None, &mut gradients, true)
        .unwrap();
    let (y, grads) = plain(&[&x, &w, &b], || x.matmul(&w.t()?)?.broadcast_add(&b));
    close(&out[0], &y, 1e-5, "value");
    close(&dx.unwrap(), &grads[0], 1e-5, "dx");
    close(&layout.of("w", &gradients), &grads[1], 1e-5, "dw");
    close(&layout.of("b", &gradients), &grads[2], 1e-5, "db");
}

/// Two projections of one input, adapters of rank 2 and 3 over frozen weights, the second with DoRA and a residual sum.
fn adapted(dora: bool, rate: f64) {
    let pool = Pool::default();
    let (x, rest) = (noise(&[N, 20], 1), noise(&[N, 5], 9));
    let (w, v) = (
        noise(&[40, 20], 2).as_detached_tensor(),
        noise(&[5, 20], 3).as_detached_tensor(),
    );
    let bias = noise(&[40], 4).as_detached_tensor();
    let (a, b, c) = (noise(&[5, 20], 5), noise(&[40, 2], 6), noise(&[5, 3], 7));
    let m = noise(&[5], 8);
    let mut layout = Layout::default();
    let a_param = layout.learns("a", &a);
    let frozen = |t: &Tensor| Matrix::Param(Param::frozen(own(t)));
    let first = Lora {
        rows: 0..2,
        b: layout.learns("b", &b),
        scale: 0.5,
        magnitude: None,
    };
    let second = Lora {
        rows: 2..5,
        b: layout.learns("c", &c),
        scale: 2.0,
        magnitude: dora.then(|| Magnitude {
            m: layout.learns("m", &m),
            squares: row_squares(&frozen(&v)).unwrap(),
        }),
    };
    let groups = [Projections {
        all: vec![
            projection(frozen(&w), Some(Param::frozen(own(&bias))), Some(first), 3),
            projection(frozen(&v), None, Some(second), 4),
        ],
        a: Some(a_param),
    }];
    let dropout = (rate > 0.0).then(|| Dropout::new(rate, 0..N as u64));
    let dropped = |x: &Tensor, site: u32| match &dropout {
        None => Ok(x.clone()),
        // The mask, taken from the op itself; what it is worth is tested beside it.
        Some(dropout) => {
            let ones = tensor(vec![1.0; N * 20], (N, 20))?;
            x * dropout.apply(&pool, &ones, site)?
        }
    };
    let (out, kept) = groups[0]
        .forward(&pool, &own(&x), None, dropout.as_ref())
        .unwrap();
    let g: Vec<Tensor> = out.iter().map(weights).collect();
    let mut gradients = layout.gradients();
    let dx = groups[0]
        .backward(
            &pool,
            (&own(&x), &kept),
            &g,
            dropout.as_ref(),
            &mut gradients,
            true,
        )
        .unwrap();
    let part = |from, rows| a.narrow(0, from, rows);
    let one = || {
        let low = dropped(&x, 3)?.matmul(&part(0, 2)?.t()?)?;
        (x.matmul(&w.t()?)? + (low.matmul(&b.t()?)? * 0.5)?)?.broadcast_add(&bias)
    };
    let two = || {
        let low = dropped(&x, 4)?.matmul(&part(2, 3)?.t()?)?;
        let sum = (x.matmul(&v.t()?)? + (low.matmul(&c.t()?)? * 2.0)?)?;
        if !dora {
            return Ok(sum);
        }
        let whole = (&v + (c.matmul(&part(2, 3)?)? * 2.0)?)?;
        // The norm counts as a constant.
        let norm = whole
            .sqr()?
            .sum_keepdim(1)?
            .sqrt()?
            .detach()
            .flatten_all()?;
        sum.broadcast_mul(&(m.as_tensor() / norm)?)
    };
    let mut vars = vec![&x, &a];
    let (y, first) = plain(&[&x, &a, &b], one);
    vars.push(&c);
    if dora {
        vars.push(&m);
    }
    let (z, second) = plain(&vars, two);
    close(&out[0], &y, 1e-5, "first value");
    close(&out[1], &z, 1e-5, "second value");
    close(&dx.unwrap(), &(&first[0] + &second[0]).unwrap(), 1e-5, "dx");
    close(
        &layout.of("a", &gradients),
        &(&first[1] + &second[1]).unwrap(),
        1e-5,
        "da",
    );
    close(&layout.of("b", &gradients), &first[2], 1e-5, "db");
    close(&layout.of("c", &gradients), &second[2], 1e-5, "dc");
    if dora {
        close(&layout.of("m", &gradients), &second[3], 1e-5, "dm");
    }
    // A sum with what goes past the projection.
    let alone = Projections {
        all: vec![groups[0].all[1].clone()],
        a: groups[0].a.clone(),
    };
    if dropout.is_none() {
        let (sum, _) = alone
            .forward(&pool, &own(&x), Some(&own(&rest)), None)
            .unwrap();
        close(
            &sum[0],
            &(&z + rest.as_tensor()).unwrap(),
            1e-5,
            "residual sum",
        );
    }
}

#[test]
fn low_rank_adapters_agree_with_plain_candle() {
    adapted(false, 0.0);
}

#[test]
fn adapters_with_dropout_agree_with_plain_candle() {
    adapted(false, 0.4);
}

#[test]
fn dora_agrees_with_plain_candle() {
    adapted(true, 0.0);
}

#[test]
fn norm_agrees_with_plain_candle() {
    let pool = Pool::default();
    let (x, w, past) = (noise(&[70, 119], 1), noise(&[119], 2), noise(&[70, 119], 3));
    let mut layout = Layout::default();
    let param = layout.learns("w", &w);
    let y = rms_norm(&pool, &own(&x), &param, 1e-6).unwrap();
    let mut gradients = layout.gradients();
    let dx = rms_norm_backward(
        (&own(&x), &param, 1e-6),
        &weights(&y),
        own(&past),
        &mut gradients,
    );
    let (value, grads) = plain(&[&x, &w], || {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + 1e-6)?.sqrt()?)?.broadcast_mul(&w)
    });
    close(&y, &value, 1e-5, "value");
    close(
        &dx.unwrap(),
        &(&grads[0] + past.as_tensor()).unwrap(),
        1e-5,
        "dx",
    );
    close(&layout.of("w", &gradients), &grads[1], 1e-5, "dw");
}

#[test]
fn swiglu_agrees_with_plain_candle() {
    let pool = Pool::default();
    let (gate, up) = (noise(&[7, 33], 3), noise(&[7, 33], 4));
    let y = swiglu(&pool, &own(&gate), &own(&up)).unwrap();
    let [dgate, dup] = swiglu_backward(&pool, own(&gate), own(&up), own(&weights(&y))).unwrap();
    let (value, grads) = plain(&[&gate, &up], || gate.silu()? * up.as_tensor());
    close(&y, &value, 1e-5, "value");
    close(&dgate, &grads[0], 1e-5, "dgate");
    close(&dup, &grads[1], 1e-5, "dup");
}

#[test]
fn cross_entropy_agrees_with_plain_candle() {
    let pool = Pool::default();
    let (h, w, targets) = (
        noise(&[40, 6], 1),
        noise(&[11, 6], 2),
        (0..40).map(|i| i % 11).collect::<Vec<u32>>(),
    );
    let mut layout = Layout::default();
    let weight = Matrix::Param(layout.learns("w", &w));
    let mut gradients = layout.gradients();
    let learn = Some((13.0, &mut gradients));
    let (loss, dh) = cross_entropy(&pool, &own(&h), &weight, &targets, learn).unwrap();
    let (value, grads) = plain(&[&h, &w], || {
        let logits = h.matmul(&w.t()?)?;
        let norm = logits.exp()?.sum_keepdim(1)?.log()?;
        let index = Tensor::new(targets.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
        (norm - logits.gather(&index, 1)?)?.sum_all()? / 13.0
    });
    let value = f64::from(value.to_scalar::<f32>().unwrap());
    assert!((loss / 13.0 - value).abs() < 1e-5 * value, "{loss} {value}");
    close(&dh.unwrap(), &grads[0], 1e-5, "dh");
    close(&layout.of("w", &gradients), &grads[1], 1e-5, "dw");
    let (again, none) = cross_entropy(&pool, &own(&h), &weight, &targets, None).unwrap();
    assert!(none.is_none() && again == loss);
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

/// Three sequences, two of which begin with the rows of the first.
#[test]
fn attention_agrees_with_plain_candle_on_ragged_and_shared_rows_and_across_blocks() {
    let pool = Pool::default();
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 4,
    };
    let segments = [
        Segment {
            start: 0,
            len: 20,
            past: 0,
        },
        Segment {
            start: 20,
            len: 3,
            past: 20,
        },
        Segment {
            start: 23,
            len: 200,
            past: 20,
        },
    ];
    let (q, k, v) = (
        noise(&[223, 24], 1),
        noise(&[223, 8], 2),
        noise(&[223, 8], 3),
    );
    let rope = Rope::new(1e4, 4).table(220);
    let turned = |x: &Tensor| rope.rotate(own(x), &segments).unwrap();
    let (tq, tk, tv) = (turned(&q), turned(&k), own(&v));
    let out = attention(&pool, (&tq, &tk, &tv), shape, &segments).unwrap();
    let g = weights(&out);
    let (dq, dk, dv) =
        attention_backward(&pool, (&tq, &tk, &tv), (&out, &g), shape, &segments).unwrap();
    let (dq, dk) = (
        rope.unrotate(dq, &segments).unwrap(),
        rope.unrotate(dk, &segments).unwrap(),
    );
    let (value, grads) = plain(&[&q, &k, &v], || {
        let parts = segments
            .iter()
            .map(|s| {
                let cut = |x: &Tensor| {
                    Tensor::cat(&[x.narrow(0, 0, s.past)?, x.narrow(0, s.start, s.len)?], 0)
                };
                plain_attention(&cut(&q)?, &cut(&k)?, &cut(&v)?, shape, 1e4)?
                    .narrow(0, s.past, s.len)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    });
    close(&out, &value, 1e-5, "value");
    close(&dq, &grads[0], 1e-5, "dq");
    close(&dk, &grads[1], 1e-5, "dk");
    close(&dv, &grads[2], 1e-5, "dv");
}
