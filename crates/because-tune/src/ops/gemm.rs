#![allow(
    unsafe_code,
    reason = "the gemm crate takes raw pointers, and tiles of one matrix that lie side by side are no slices; every pointer \
              here comes from a slice whose length was checked against the matrix's shape, and tiles of one matrix are disjoint"
)]

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

/// A matrix of f32 somewhere in a slice, seen through strides.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    start: *const f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    down: usize,
    right: usize,
    life: PhantomData<&'a [f32]>,
}

// SAFETY: a `Mat` is a shared borrow of numbers.
unsafe impl Send for Mat<'_> {}
// SAFETY: as above.
unsafe impl Sync for Mat<'_> {}

impl<'a> Mat<'a> {
    /// Row-major, one row after the other.
    pub(super) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// Row-major, `stride` numbers from one row to the next.
    pub(super) fn strided(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(
            fits(values.len(), rows, cols, stride),
            "matrix larger than its numbers"
        );
        Self {
            start: values.as_ptr(),
            rows,
            cols,
            down: stride,
            right: 1,
            life: PhantomData,
        }
    }

    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            down: self.right,
            right: self.down,
            ..self
        }
    }

    /// The part in these rows and columns.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows outside of the matrix"
        );
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "columns outside of the matrix"
        );
        if rows.is_empty() || cols.is_empty() {
            return Self {
                rows: rows.len(),
                cols: cols.len(),
                ..self
            };
        }
        Self {
            // SAFETY: the part lies inside of the matrix, by the two assertions, and is not empty.
            start: unsafe {
                self.start
                    .add(rows.start * self.down + cols.start * self.right)
            },
            rows: rows.len(),
            cols: cols.len(),
            ..self
        }
    }

    /// A row of a row-major matrix.
    pub(super) fn row(self, row: usize) -> &'a [f32] {
        assert!(
            row < self.rows && self.right == 1,
            "no row of a row-major matrix"
        );
        // SAFETY: the row lies inside of the matrix, and its numbers one after the other.
        unsafe { std::slice::from_raw_parts(self.start.add(row * self.down), self.cols) }
    }

    pub(super) fn in_rows(self, rows: Range<usize>) -> Self {
        self.part(rows, 0..self.cols)
    }

    pub(super) fn in_cols(self, cols: Range<usize>) -> Self {
        self.part(0..self.rows, cols)
    }
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let end = || (rows - 1).checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || (cols <= stride && end().is_some_and(|end| end <= len))
}

/// A row-major matrix that may be written to.
pub(super) struct MatMut<'a> {
    start: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    down: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatMut` is an exclusive borrow of its numbers; tiles of one matrix share none.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    pub(super) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    pub(super) fn strided(values: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(
            fits(values.len(), rows, cols, stride),
            "matrix larger than its numbers"
        );
        Self {
            start: values.as_mut_ptr(),
            rows,
            cols,
            down: stride,
            life: PhantomData,
        }
    }

    /// Cuts the matrix into tiles of these rows, which follow each other, and at most so many columns, all about alike; with
    /// each where it lies.
    pub(super) fn tiles(
        self,
        rows: &[Range<usize>],
        cols: usize,
    ) -> Vec<(Range<usize>, Range<usize>, Self)> {
        let mut all = Vec::new();
        let mut row = 0;
        for down in rows {
            assert!(
                row <= down.start && down.end <= self.rows,
                "rows of a tile that others have, or outside of the matrix"
            );
            row = down.end;
            for across in cuts(self.cols, cols, 64) {
                let tile = Self {
                    // SAFETY: both ranges lie inside of the matrix.
                    start: unsafe { self.start.add(down.start * self.down + across.start) },
                    rows: down.len(),
                    cols: across.len(),
                    down: self.down,
                    life: PhantomData,
                };
                all.push((down.clone(), across, tile));
            }
        }
        all
    }

    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row outside of the matrix");
        // SAFETY: the row lies inside of the matrix, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.down), self.cols) }
    }
}

/// Cuts `0..n` into as few pieces of at most `most` as there can be, all about alike and each but the last a multiple of
/// `unit`.
pub(super) fn cuts(n: usize, most: usize, unit: usize) -> Vec<Range<usize>> {
    if n == 0 {
        return Vec::new();
    }
    let pieces = n.div_ceil(most.max(1));
    let width = n.div_ceil(pieces).next_multiple_of(unit);
    (0..n)
        .step_by(width)
        .map(|at| at..n.min(at + width))
        .collect()
}

/// `into = factor a b`, or `into += factor a b`, on this thread.
pub(super) fn multiply(into: &mut MatMut<'_>, add: bool, factor: f32, a: Mat<'_>, b: Mat<'_>) {
    assert!(
        into.rows == a.rows && into.cols == b.cols && a.cols == b.rows,
        "[{}, {}] is not [{}, {}] x [{}, {}]",
        into.rows,
        into.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    if a.cols == 0 {
        if !add {
            (0..into.rows).for_each(|row| into.row(row).fill(0.0));
        }
        return;
    }
    let stride = |stride: usize| stride as isize;
    read_in_place();
    // SAFETY: all three matrices lie inside of slices, by their constructors, and their shapes agree.
    unsafe {
        gemm::gemm(
            into.rows,
            into.cols,
            a.cols,
            into.start,
            1,
            stride(into.down),
            add,
            a.start,
            stride(a.right),
            stride(a.down),
            b.start,
            stride(b.right),
            stride(b.down),
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Lets the kernel read the right factor where it lies instead of packing it first, wherever a column's numbers lie one after
/// the other. In all our tiles they do and are in cache: packing them costs a tenth of the product and brings nothing.
fn read_in_place() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // The setting is the process's; it changes no result.
    ONCE.call_once(|| gemm::set_rhs_packing_threshold(usize::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_transposes_and_sums() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [9.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0];
        let (a, b) = (Mat::new(&a, 2, 3), Mat::new(&b[1..], 2, 3));
        let mut out = [1.0; 4];
        multiply(&mut MatMut::new(&mut out, 2, 2), false, 1.0, a, b.t());
        assert_eq!(out, [7.0, 6.0, 16.0, 15.0]);
        multiply(
            &mut MatMut::new(&mut out, 2, 2),
            true,
            2.0,
            a.in_cols(1..3),
            b.t().in_rows(0..2),
        );
        assert_eq!(
            out,
            [
                7.0 + 2.0 * 2.0,
                6.0 + 2.0 * 5.0,
                16.0 + 2.0 * 5.0,
                15.0 + 2.0 * 11.0
            ]
        );
    }

    #[test]
    fn tiles_cover_a_matrix_once() {
        let mut numbers = vec![0.0; 7 * 50];
        for (rows, cols, mut tile) in MatMut::new(&mut numbers, 7, 50).tiles(&cuts(7, 3, 1), 20) {
            assert_eq!((rows.len(), cols.len()), (tile.rows, tile.cols));
            for row in 0..tile.rows {
                tile.row(row).iter_mut().for_each(|x| *x += 1.0);
            }
        }
        assert!(numbers.iter().all(|&x| x == 1.0));
        assert_eq!(cuts(896, 256, 16), [0..224, 224..448, 448..672, 672..896]);
    }

    #[test]
    #[should_panic(expected = "matrix larger than its numbers")]
    fn a_matrix_stays_inside_of_its_numbers() {
        Mat::strided(&[0.0; 10], 3, 3, 4);
    }
}
