use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::attention::AttentionShape;
use super::simd::{each_row, exp, exp_in_place, max};

/// Positions of a page. Keys lie in it transposed, so that the scores of its positions fill the lanes of a vector.
pub(crate) const PAGE: usize = 16;
/// Positions whose scores are made at once. With the places of the pages it cuts a row's past into parts that depend on
/// nothing but where they begin, so a row's numbers are the same however its prompt came in and whoever is beside it.
const CHUNK: usize = 16 * PAGE;
/// Positions of a prompt that one piece of work attends for.
const QUERIES: usize = 16;
/// Query rows that meet a key at once: as many as leave their sums in registers.
const TOGETHER: usize = 6;

/// Where one row of a step stands: its numbers among those of the step, and the pages of its past and its own positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Its first row in the step.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Positions before it.
    pub(crate) past: usize,
    /// The pages of positions `0..past + len`.
    pub(crate) pages: &'a [u32],
}

/// Keys and values of one layer, in pages: of each page and key head the keys `[d_head, PAGE]` and the values
/// `[PAGE, padded d_head]`.
#[derive(Debug)]
pub(crate) struct PagedLayer {
    shape: AttentionShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl PagedLayer {
    /// Room for so many pages. The system gives the memory when a page is first written.
    pub(crate) fn new(pages: usize, shape: AttentionShape) -> Self {
        let heads = pages * shape.kv_heads * PAGE;
        Self {
            shape,
            keys: vec![0.0; heads * shape.head_dim],
            values: vec![0.0; heads * padded(shape)],
        }
    }

    /// Bytes of one page.
    pub(crate) fn page_bytes(shape: AttentionShape) -> u64 {
        let numbers = PAGE * shape.kv_heads * (shape.head_dim + padded(shape));
        (numbers * size_of::<f32>()) as u64
    }

    fn keys_of(&self, page: u32, head: usize) -> &[[f32; PAGE]] {
        let size = PAGE * self.shape.head_dim;
        let at = (page as usize * self.shape.kv_heads + head) * size;
        self.keys[at..at + size].as_chunks().0
    }

    fn values_of(&self, page: u32, head: usize) -> &[[f32; PAGE]] {
        let size = PAGE * padded(self.shape);
        let at = (page as usize * self.shape.kv_heads + head) * size;
        self.values[at..at + size].as_chunks().0
    }

    /// Puts the keys (turned) and values of a step's rows, `[n, kv_heads d_head]` each, into their pages.
    pub(crate) fn write(&mut self, spans: &[Span<'_>], keys: &[f32], values: &[f32]) {
        let (d, wide, heads) = (self.shape.head_dim, padded(self.shape), self.shape.kv_heads);
        for span in spans {
            for at in 0..span.len {
                let (position, row) = (span.past + at, (span.start + at) * heads * d);
                let (page, place) = (span.pages[position / PAGE] as usize, position % PAGE);
                for head in 0..heads {
                    let (from, page) = (row + head * d, page * heads + head);
                    let into = &mut self.keys[page * d * PAGE..][..d * PAGE];
                    let places = into.iter_mut().skip(place).step_by(PAGE);
                    for (into, key) in places.zip(&keys[from..from + d]) {
                        *into = *key;
                    }
                    let into = &mut self.values[(page * PAGE + place) * wide..][..d];
                    into.copy_from_slice(&values[from..from + d]);
                }
            }
        }
    }

    /// Attention of a step's rows to their pages, `softmax(q k^T / sqrt(d_head)) v`: q and `into` `[n, heads d_head]`.
    /// Each number is summed in an order that depends on its row's position alone.
    pub(crate) fn attend(
        &self,
        spans: &[Span<'_>],
        q: &[f32],
        by_head: &mut Vec<f32>,
        into: &mut [f32],
    ) {
        let width = self.shape.group() * self.shape.head_dim;
        let (rows, wide) = (
            spans.iter().map(|span| span.len).sum::<usize>(),
            self.shape.heads * self.shape.head_dim,
        );
        by_head.resize(rows * wide, 0.0);
        // By key head, so that what a piece of work writes lies together.
        let (mut pieces, mut rest) = (Vec::new(), by_head.as_mut_slice());
        for head in 0..self.shape.kv_heads {
            for span in spans {
                for from in (0..span.len).step_by(QUERIES) {
                    let block = Block {
                        row: span.start + from,
                        len: QUERIES.min(span.len - from),
                        first: span.past + from,
                        pages: span.pages,
                        head,
                    };
                    let (own, others) = rest.split_at_mut(block.len * width);
                    pieces.push((block, own));
                    rest = others;
                }
            }
        }
        // The rows of a step lie as their spans follow each other.
        pieces
            .into_par_iter()
            .with_max_len(1)
            .for_each(|(block, own)| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let layer = self;
                    Arch::new().dispatch(Work {
                        layer,
                        block,
                        q,
                        out: own,
                        scratch,
                    });
                });
            });
        let heads = self.shape.kv_heads;
        each_row(
            into,
            wide,
            #[inline(always)]
            |row, into| {
                for head in 0..heads {
                    let from = &by_head[(head * rows + row) * width..][..width];
                    into[head * width..][..width].copy_from_slice(from);
                }
            },
        );
    }

    #[inline(always)]
    fn block<S: Simd>(
        &self,
        simd: S,
        block: &Block<'_>,
        q: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (d, wide, group) = (self.shape.head_dim, padded(self.shape), self.shape.group());
        let rows = block.len * group;
        let parts = cut(rows);
        scratch.begin(rows, d, wide);
        for &(from, len) in &parts {
            let packed = &mut scratch.queries[from * d..(from + len) * d];
            for row in 0..len {
                let (at, head) = ((from + row) / group, (from + row) % group);
                let start = (block.row + at) * self.shape.heads * d;
                let q = &q[start + (block.head * group + head) * d..][..d];
                for (i, q) in q.iter().enumerate() {
                    packed[i * len + row] = q * self.shape.scale();
                }
            }
        }
        let last = block.first + block.len - 1;
        for base in (0..=last).step_by(CHUNK) {
            let seen = CHUNK.min(last + 1 - base);
            let pages = &block.pages[base / PAGE..][..seen.div_ceil(PAGE)];
            for (index, &page) in pages.iter().enumerate() {
                let keys = self.keys_of(page, block.head);
                for &(from, len) in &parts {
                    let packed = &scratch.queries[from * d..(from + len) * d];
                    let scores = &mut scratch.scores[from * CHUNK..(from + len) * CHUNK];
                    score(simd, len, packed, keys, scores, index * PAGE);
                }
            }
            for row in 0..rows {
                let limit = (block.first + row / group + 1)
                    .saturating_sub(base)
                    .min(CHUNK);
                scratch.limits[row] = limit;
                if limit > 0 {
                    scratch.weigh(row, limit, wide);
                }
            }
            for &(from, len) in &parts {
                let limits = &scratch.limits[from..from + len];
                let common = limits.iter().copied().min().unwrap_or(0);
                let scores = &scratch.scores[from * CHUNK..(from + len) * CHUNK];
                let sums = &mut scratch.sums[from * wide..(from + len) * wide];
                let values = |page: usize| self.values_of(pages[page], block.head);
                add(simd, len, scores, 0..common, &values, sums, wide);
                for (row, &limit) in limits.iter().enumerate() {
                    let scores = &scores[row * CHUNK..(row + 1) * CHUNK];
                    let sums = &mut sums[row * wide..(row + 1) * wide];
                    add(simd, 1, scores, common..limit, &values, sums, wide);
                }
            }
        }
        for (row, out) in out.chunks_exact_mut(d).enumerate() {
            let whole = 1.0 / scratch.totals[row];
            for (out, sum) in out.iter_mut().zip(&scratch.sums[row * wide..]) {
                *out = sum * whole;
            }
        }
    }
}

/// The width of a value in its page: whole vectors.
fn padded(shape: AttentionShape) -> usize {
    shape.head_dim.next_multiple_of(PAGE)
}

/// Some positions of one row of a step, and one key head.
struct Block<'a> {
    row: usize,
    len: usize,
    /// The position of its first row.
    first: usize,
    pages: &'a [u32],
    head: usize,
}

/// A piece of work, compiled for the widest registers this machine has. The lanes of a vector are positions or columns, which
/// never meet in one sum: the results are those of any width.
struct Work<'a> {
    layer: &'a PagedLayer,
    block: Block<'a>,
    q: &'a [f32],
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.layer
            .block(simd, &self.block, self.q, self.out, self.scratch);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a piece of work needs for its query rows.
#[derive(Default)]
struct Scratch {
    /// By part, `[d_head, rows of the part]`, divided by the root of `d_head`.
    queries: Vec<f32>,
    /// `[rows, CHUNK]`.
    scores: Vec<f32>,
    /// How many of the chunk's positions each row sees.
    limits: Vec<usize>,
    /// The largest score of each row so far, and the sum of its exponentials relative to that.
    tops: Vec<f32>,
    totals: Vec<f32>,
    /// `[rows, padded d_head]`: values weighed with those.
    sums: Vec<f32>,
}

impl Scratch {
    fn begin(&mut self, rows: usize, d: usize, wide: usize) {
        self.queries.resize(rows * d, 0.0);
        self.scores.resize(rows * CHUNK, 0.0);
        self.limits.resize(rows, 0);
        for (all, count, value) in [
            (&mut self.tops, rows, f32::NEG_INFINITY),
            (&mut self.totals, rows, 0.0),
            (&mut self.sums, rows * wide, 0.0),
        ] {
            all.clear();
            all.resize(count, value);
        }
    }

    /// Turns a row's scores of a chunk into exponentials relative to the largest so far (Milakov and Gimelshein 2018,
    /// arXiv 1805.02867).
    #[inline(always)]
    fn weigh(&mut self, row: usize, limit: usize, wide: usize) {
        let scores = &mut self.scores[row * CHUNK..][..limit];
        let top = max(scores).max(self.tops[row]);
        if top > self.tops[row] {
            let factor = exp(self.tops[row] - top);
            self.totals[row] *= factor;
            for sum in &mut self.sums[row * wide..(row + 1) * wide] {
                *sum *= factor;
            }
            self.tops[row] = top;
        }
        self.totals[row] += exp_in_place(scores, top);
    }
}

/// Cuts query rows into parts of at most [`TOGETHER`], the last two about alike.
fn cut(rows: usize) -> Vec<(usize, usize)> {
    let mut parts = Vec::with_capacity(rows.div_ceil(TOGETHER));
    let mut from = 0;
    while from < rows {
        let len = match rows - from {
            left if left > TOGETHER && left < 2 * TOGETHER => left.div_ceil(2),
            left => left.min(TOGETHER),
        };
        parts.push((from, len));
        from += len;
    }
    parts
}

macro_rules! with_rows {
    ($len:expr, $simd:ident, $call:ident ( $($argument:expr),* )) => {
        match $len {
            1 => $call::<S, 1>($simd, $($argument),*),
            2 => $call::<S, 2>($simd, $($argument),*),
            3 => $call::<S, 3>($simd, $($argument),*),
            4 => $call::<S, 4>($simd, $($argument),*),
            5 => $call::<S, 5>($simd, $($argument),*),
            _ => $call::<S, 6>($simd, $($argument),*),
        }
    };
}

/// The scores of a part's rows with one page.
#[inline(always)]
fn score<S: Simd>(
    simd: S,
    len: usize,
    packed: &[f32],
    keys: &[[f32; PAGE]],
    scores: &mut [f32],
    at: usize,
) {
    with_rows!(len, simd, score_rows(packed, keys, scores, at));
}

#[inline(always)]
fn score_rows<S: Simd, const R: usize>(
    simd: S,
    packed: &[f32],
    keys: &[[f32; PAGE]],
    scores: &mut [f32],
    at: usize,
) {
    for part in 0..PAGE / S::F32_LANES {
        let mut sums = [simd.splat_f32s(0.0); R];
        for (q, key) in packed.as_chunks::<R>().0.iter().zip(keys) {
            let key = S::as_simd_f32s(key).0[part];
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum = simd.mul_add_f32s(simd.splat_f32s(*q), key, *sum);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            let scores = &mut scores[row * CHUNK + at..][..PAGE];
            S::as_mut_simd_f32s(scores).0[part] = *sum;
        }
    }
}

/// Adds to a part's sums the values of some of a chunk's positions, one after the other, each weighed.
#[inline(always)]
fn add<'a, S: Simd>(
    simd: S,
    len: usize,
    scores: &[f32],
    range: std::ops::Range<usize>,
    values: &impl Fn(usize) -> &'a [[f32; PAGE]],
    sums: &mut [f32],
    wide: usize,
) {
    if !range.is_empty() {
        with_rows!(
            len,
            simd,
            add_rows(scores, range.clone(), values, sums, wide)
        );
    }
}

#[inline(always)]
fn add_rows<'a, S: Simd, const R: usize>(
    simd: S,
    scores: &[f32],
    range: std::ops::Range<usize>,
    values: &impl Fn(usize) -> &'a [[f32; PAGE]],
    sums: &mut [f32],
    wide: usize,
) {
    let (lanes, step) = (S::F32_LANES, wide / PAGE);
    for column in 0..wide / lanes {
        let mut here = [simd.splat_f32s(0.0); R];
        for (row, here) in here.iter_mut().enumerate() {
            let sums = &sums[row * wide + column * lanes..][..lanes];
            *here = S::as_simd_f32s(sums).0[0];
        }
        let (vector, part) = (column * lanes / PAGE, column % (PAGE / lanes));
        let mut at = range.start;
        while at < range.end {
            let (page, place) = (at / PAGE, at % PAGE);
            let end = range.end.min((page + 1) * PAGE);
            let weights: [&[f32]; R] = std::array::from_fn(
                #[inline(always)]
                |row| &scores[row * CHUNK + at..][..end - at],
            );
            let values = &values(page)[place * step + vector..];
            // A whole page in a loop of known length, which looks up nothing.
            if end - at == PAGE {
                let weights: [&[f32; PAGE]; R] = weights.map(
                    #[inline(always)]
                    |weights| weights.first_chunk().unwrap_or(&[0.0; PAGE]),
                );
                for (index, value) in values.iter().step_by(step).take(PAGE).enumerate() {
                    let value = S::as_simd_f32s(value).0[part];
                    for row in 0..R {
                        let weight = simd.splat_f32s(weights[row][index % PAGE]);
                        here[row] = simd.mul_add_f32s(weight, value, here[row]);
                    }
                }
            } else {
                for (index, value) in values.iter().step_by(step).take(end - at).enumerate() {
                    let value = S::as_simd_f32s(value).0[part];
                    for (here, weights) in here.iter_mut().zip(&weights) {
                        *here = simd.mul_add_f32s(simd.splat_f32s(weights[index]), value, *here);
                    }
                }
            }
            at = end;
        }
        for (row, here) in here.iter().enumerate() {
            let sums = &mut sums[row * wide + column * lanes..][..lanes];
            S::as_mut_simd_f32s(sums).0[0] = *here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 10,
    };

    fn wave(count: usize, pace: f32) -> Vec<f32> {
        (0..count)
            .map(|at| (at as f32 * pace).sin() * 2.0)
            .collect()
    }

    /// One sequence of `n` rows, its positions computed in pieces of `piece`, in pages in this order.
    fn in_pieces(n: usize, piece: usize, pages: &[u32]) -> Vec<f32> {
        let (wide, narrow) = (60, 20);
        let (q, k, v) = (
            wave(n * wide, 0.7),
            wave(n * narrow, 0.3),
            wave(n * narrow, 0.9),
        );
        let mut layer = PagedLayer::new(pages.len(), SHAPE);
        let mut all = Vec::new();
        for from in (0..n).step_by(piece) {
            let len = piece.min(n - from);
            let span = [Span {
                start: 0,
                len,
                past: from,
                pages,
            }];
            let rows = |x: &[f32], width: usize| x[from * width..(from + len) * width].to_vec();
            layer.write(&span, &rows(&k, narrow), &rows(&v, narrow));
            let mut out = vec![0.0; len * wide];
            layer.attend(&span, &rows(&q, wide), &mut Vec::new(), &mut out);
            all.extend(out);
        }
        all
    }

    #[test]
    fn a_position_attends_alike_however_the_prompt_came_in() {
        let n = 600usize;
        let pages: Vec<u32> = (0..n.div_ceil(PAGE) as u32).collect();
        let whole = in_pieces(n, n, &pages);
        let reversed: Vec<u32> = pages.iter().rev().copied().collect();
        for piece in [1, 7, 16, 64] {
            assert!(whole == in_pieces(n, piece, &reversed), "{piece}");
        }
        let (q, k, v) = (wave(n * 60, 0.7), wave(n * 20, 0.3), wave(n * 20, 0.9));
        for (position, head) in [(0, 0), (5, 2), (300, 3), (599, 5)] {
            let q = &q[position * 60 + head * 10..][..10];
            let at = |x: &[f32], row: usize, i: usize| f64::from(x[row * 20 + head / 3 * 10 + i]);
            let score = |row: usize| -> f64 {
                let sum: f64 = (0..10).map(|i| f64::from(q[i]) * at(&k, row, i)).sum();
                (sum / 10f64.sqrt()).exp()
            };
            let total: f64 = (0..=position).map(score).sum();
            for i in 0..10 {
                let sum: f64 = (0..=position).map(|row| score(row) * at(&v, row, i)).sum();
                let is = f64::from(whole[position * 60 + head * 10 + i]);
                assert!(
                    (is - sum / total).abs() < 1e-5,
                    "{position} {head} {i}: {is}"
                );
            }
        }
    }

    #[test]
    fn parts_cover_all_rows() {
        for rows in 1..40 {
            let parts = cut(rows);
            assert!(parts.iter().all(|&(_, len)| (1..=TOGETHER).contains(&len)));
            assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), rows);
        }
        assert_eq!(cut(7), [(0, 4), (4, 3)]);
    }
}
