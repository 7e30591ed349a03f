//! Matrix products of pointwise convolutions: packing, register tiles, and the loops around them.
//!
//! In NHWC a 1x1 convolution is `[pixels, in] x [in, out]`. The weight is packed once per call into panels of one to
//! three vectors of output channels; the inner loop keeps a tile of pixels x panel in registers. The weight gradient is
//! the same tile with the roles of pixels and channels exchanged.

use super::buffers::Aligned;
use super::depthwise::SLICE;
use super::parallel;
use super::simd::{InstructionSet, Kernel, Simd, dispatch, opaque};
use std::ops::Range;

/// Pixels per call that suit a caller: enough to reuse a panel, few enough to stay in L1 with it.
pub(crate) const ROW_BLOCK: usize = 48;

/// A `[k, n]` matrix in panels for the active instruction set; columns beyond `n` are zero.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    data: Aligned,
    k: usize,
    n: usize,
}

/// Number of vectors of the next panel, of `vectors` in all: three, but two and two rather than three and one.
fn panel_vectors(vectors: usize, done: usize) -> usize {
    match vectors - done {
        1 => 1,
        2 | 4 => 2,
        _ => 3,
    }
}

impl Packed {
    /// Packs the matrix whose element `(row, column)` is `source[row * row_stride + column * column_stride]`.
    pub(crate) fn new(source: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Self {
        Self::widened(source, k, n, n, row_stride, column_stride)
    }

    /// Packs a matrix in slices of [`SLICE`] columns; the last slice is padded with zero columns to whole vectors.
    pub(crate) fn slices(source: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Vec<Packed> {
        let slice = |start: usize| {
            let source = &source[start * column_stride..];
            let existing = SLICE.min(n - start);
            let columns = existing.next_multiple_of(InstructionSet::active().lanes());
            Self::widened(source, k, existing, columns, row_stride, column_stride)
        };
        let slices = |range: Range<usize>| range.map(|number| slice(number * SLICE)).collect::<Vec<_>>();
        parallel::map(n.div_ceil(SLICE), 1, slices).into_iter().flatten().collect()
    }

    /// Packs a matrix of `existing` columns, padded with zero columns to `n`.
    fn widened(source: &[f32], k: usize, existing: usize, n: usize, row_stride: usize, column_stride: usize) -> Self {
        assert!(k == 0 || existing == 0 || source.len() > (k - 1) * row_stride + (existing - 1) * column_stride);
        let lanes = InstructionSet::active().lanes();
        let vectors = n.div_ceil(lanes);
        let mut data = Aligned::zeros(vectors * lanes * k);
        let (mut done, mut offset) = (0, 0);
        while done < vectors {
            let nr = panel_vectors(vectors, done);
            let (start, width) = (done * lanes, nr * lanes);
            let columns = width.min(existing.saturating_sub(start));
            let panel = &mut data[offset..offset + k * width];
            if columns > 0 {
                let source = &source[start * column_stride..];
                dispatch(PackPanel { source, row_stride, column_stride, columns, panel, width });
            }
            offset += k * width;
            done += nr;
        }
        Packed { data, k, n }
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.k
    }
}

/// Fills the first `columns` columns of a panel of rows of `width` floats, for all rows of the source.
struct PackPanel<'a> {
    source: &'a [f32],
    row_stride: usize,
    column_stride: usize,
    columns: usize,
    panel: &'a mut [f32],
    width: usize,
}

impl Kernel for PackPanel<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PackPanel { source, row_stride, column_stride, columns, panel, width } = self;
        let rows = panel.len() / width;
        if column_stride == 1 {
            for (row, panel_row) in panel.chunks_exact_mut(width).enumerate() {
                panel_row[..columns].copy_from_slice(&source[row * row_stride..][..columns]);
            }
            return;
        }
        // Whole blocks of 8 x 8 if each column is contiguous; the remaining values one by one.
        let whole = if row_stride == 1 { (rows / 8 * 8, columns / 8 * 8) } else { (0, 0) };
        assert!(columns <= width && (columns == 0 || source.len() >= (columns - 1) * column_stride + rows));
        for column in (0..whole.1).step_by(8) {
            for row in (0..whole.0).step_by(8) {
                // SAFETY: blocks are whole: `row + 8 <= rows` and `column + 8 <= columns <= width`. There are blocks
                // only if columns are contiguous, and then the source holds `rows` values from each column's start
                // (asserted above). The panel has `rows` rows of `width` floats. The CPU has `S` by this function's
                // contract.
                unsafe {
                    let block = source.as_ptr().add(column * column_stride + row);
                    S::transpose(block, column_stride, panel.as_mut_ptr().add(row * width + column), width);
                }
            }
        }
        for (row, panel_row) in panel.chunks_exact_mut(width).enumerate() {
            let first = if row < whole.0 { whole.1 } else { 0 };
            for (column, value) in panel_row[..columns].iter_mut().enumerate().skip(first) {
                *value = source[row * row_stride + column * column_stride];
            }
        }
    }
}

/// `c[row, ..n] = a[row, ..k] x b` for all rows; `a_stride` and `c_stride` are row strides.
pub(crate) fn multiply(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    multiply_into::<false>(a, a_stride, rows, b, c, c_stride);
}

/// `c[row, ..n] += a[row, ..k] x b` for all rows; otherwise like [`multiply`].
pub(crate) fn multiply_add(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    multiply_into::<true>(a, a_stride, rows, b, c, c_stride);
}

/// Computes [`multiply`] with the rows divided among the threads.
pub(crate) fn multiply_together(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    parallel::map_parts(c, c_stride, rows, 1, |range, c| {
        multiply(&a[range.start * a_stride..], a_stride, range.len(), b, c, c_stride);
    });
}

fn multiply_into<const ADD: bool>(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    if rows == 0 || b.n == 0 {
        return;
    }
    assert!(a.len() >= (rows - 1) * a_stride + b.k && c.len() >= (rows - 1) * c_stride + b.n && c_stride >= b.n);
    let lanes = InstructionSet::active().lanes();
    let vectors = b.n.div_ceil(lanes);
    let (mut done, mut offset) = (0, 0);
    while done < vectors {
        let nr = panel_vectors(vectors, done);
        let tiles = Tiles {
            k: b.k,
            a: a.as_ptr(),
            a_stride,
            b: b.data[offset..].as_ptr(),
            b_stride: nr * lanes,
            c: c[done * lanes..].as_mut_ptr(),
            c_stride,
            width: (nr * lanes).min(b.n - done * lanes),
        };
        // SAFETY: `a` holds `k` values and `c` `n` values from the start of each of `rows` rows (asserted above). The
        // panel is `k` rows of `nr` vectors, as `Packed::widened` laid them out for the same instruction set and in the
        // same order. `width` is the number of its columns below `n`: they exist in `c`, and no others are loaded or
        // stored.
        unsafe { tiles.column::<false, ADD>(nr, 0..rows) };
        offset += b.k * nr * lanes;
        done += nr;
    }
}

/// `c[i, j] += sum over rows of a[row, i] * b[row, j]`, for `i < m`, `j < n`: the weight gradient.
///
/// `b_stride` and `c_stride` must hold `n` rounded up to whole vectors. Columns of `b` beyond `n` may hold any number:
/// they reach only those columns of `c`, which no caller reads.
#[allow(clippy::too_many_arguments)] // a matrix product has three matrices with strides and three extents
pub(crate) fn accumulate_transposed(
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    rows: usize,
    m: usize,
    n: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    if rows == 0 || m == 0 || n == 0 {
        return;
    }
    let padded = n.next_multiple_of(InstructionSet::active().lanes());
    assert!(b_stride >= padded && c_stride >= padded);
    assert!(a.len() >= (rows - 1) * a_stride + m && b.len() >= rows * b_stride && c.len() >= m * c_stride);
    let lanes = InstructionSet::active().lanes();
    let (vectors, mut done) = (n.div_ceil(lanes), 0);
    while done < vectors {
        let nr = panel_vectors(vectors, done);
        let tiles = Tiles {
            k: rows,
            a: a.as_ptr(),
            a_stride,
            b: b[done * lanes..].as_ptr(),
            b_stride,
            c: c[done * lanes..].as_mut_ptr(),
            c_stride,
            width: nr * lanes,
        };
        // SAFETY: `a` holds `m` values from the start of each of `rows` rows, `b` is `rows` rows of `b_stride` and `c`
        // `m` rows of `c_stride` (asserted above). Both strides are at least `padded`, and the vectors `done..done +
        // nr` lie below it.
        unsafe { tiles.column::<true, true>(nr, 0..m) };
        done += nr;
    }
}

/// Computes [`accumulate_transposed`] with the rows of `c` divided among the threads.
#[allow(clippy::too_many_arguments)] // a matrix product has three matrices with strides and three extents
pub(crate) fn accumulate_transposed_together(
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    rows: usize,
    m: usize,
    n: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    parallel::map_parts(c, c_stride, m, SLICE, |range, c| {
        accumulate_transposed(&a[range.start..], a_stride, b, b_stride, rows, range.len(), n, c, c_stride);
    });
}

/// Extent of the last vector of a tile's rows: `WHOLE`, `HALF` or `PART` of it exists.
const WHOLE: usize = 0;
const HALF: usize = 1;
const PART: usize = 2;

/// Register tiles of one panel: `c[row, ..] (+)= sum over k of a[row, k] * b[k, ..]`; if `TRANSPOSED`, `a` is stored as
/// `a[k, row]`.
#[derive(Clone, Copy)]
struct Tiles {
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    /// Distance between rows of `b` if `TRANSPOSED`; otherwise it equals the panel's width.
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    /// Columns of `c` that exist: fewer than the panel's at the right edge.
    width: usize,
}

/// Tiles for a range of rows, monomorphised per vector count, so that short products (most are) pay no set-up of other
/// cases.
struct Column<const NR: usize, const TRANSPOSED: bool, const ADD: bool> {
    tiles: Tiles,
    rows: Range<usize>,
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Kernel for Column<NR, TRANSPOSED, ADD> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // A tile leaves registers for one panel row, one broadcast and one more: with 16 of 16 in use the compiler
        // spills in the innermost loop. Short products spend much of their time at the ends of tiles, where smaller
        // tiles overlap better.
        // SAFETY: `Tiles::column` built this kernel, and its contract gives the extents for `rows`; the CPU has `S` by
        // this function's contract.
        unsafe {
            match (NR, S::ACCUMULATORS) {
                (3, 24) => self.blocks::<S, 8>(),
                (3, 12) => self.blocks::<S, 3>(),
                (3, _) => self.blocks::<S, 1>(),
                (2, 24) => self.blocks::<S, 8>(),
                (2, 12) if self.tiles.k <= 24 => self.blocks::<S, 4>(),
                (2, 12) => self.blocks::<S, 6>(),
                (2, _) => self.blocks::<S, 2>(),
                (_, 24) => self.blocks::<S, 16>(),
                (_, 12) => self.blocks::<S, 8>(),
                (_, _) => self.blocks::<S, 4>(),
            }
        }
    }
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Column<NR, TRANSPOSED, ADD> {
    /// All rows, in tiles `MR` high.
    ///
    /// # Safety
    /// The CPU has `S`, and the extents of [`Tiles::column`] hold.
    #[inline(always)]
    unsafe fn blocks<S: Simd, const MR: usize>(self) {
        let Column { tiles, rows: Range { start: mut row, end } } = self;
        // SAFETY: the tile's rows `row..row + MR` lie below `end`, and the contract gives the extents for all rows
        // below `end`.
        unsafe {
            while row + MR <= end {
                tiles.block::<S, MR, NR, TRANSPOSED, ADD>(row);
                row += MR;
            }
            if row < end {
                dispatch(Rest::<NR, TRANSPOSED, ADD> { tiles, rows: row..end });
            }
        }
    }
}

/// Rows left over after the whole tiles of a column.
struct Rest<const NR: usize, const TRANSPOSED: bool, const ADD: bool> {
    tiles: Tiles,
    rows: Range<usize>,
}

impl<const NR: usize, const TRANSPOSED: bool, const ADD: bool> Kernel for Rest<NR, TRANSPOSED, ADD> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rest { tiles, rows: Range { start: mut row, end } } = self;
        // SAFETY: each tile's rows, 8, 4, 2 or 1 from `row`, lie below `end`, and `Column::blocks` built this kernel
        // from rows for which its contract gives the extents; the CPU has `S` by this function's contract.
        unsafe {
            while S::ACCUMULATORS == 24 && row + 8 <= end {
                tiles.block::<S, 8, NR, TRANSPOSED, ADD>(row);
                row += 8;
            }
            while S::ACCUMULATORS > 4 && row + 4 <= end {
                tiles.block::<S, 4, NR, TRANSPOSED, ADD>(row);
                row += 4;
            }
            while row + 2 <= end {
                tiles.block::<S, 2, NR, TRANSPOSED, ADD>(row);
                row += 2;
            }
            if row < end {
                tiles.block::<S, 1, NR, TRANSPOSED, ADD>(row);
            }
        }
    }
}

impl Tiles {
    /// All `rows` of a column of `nr` vectors.
    ///
    /// # Safety
    /// For each row and each `k` below `self.k`, the value of `a` and the `nr` vectors of `b` must be readable; the
    /// first `width` floats of the row of `c` must be writable, and no other thread may access them. `width` must reach
    /// into the last of the `nr` vectors.
    unsafe fn column<const TRANSPOSED: bool, const ADD: bool>(self, nr: usize, rows: Range<usize>) {
        match nr {
            3 => dispatch(Column::<3, TRANSPOSED, ADD> { tiles: self, rows }),
            2 => dispatch(Column::<2, TRANSPOSED, ADD> { tiles: self, rows }),
            _ => dispatch(Column::<1, TRANSPOSED, ADD> { tiles: self, rows }),
        }
    }

    /// A tile of `MR` rows and `NR` vectors.
    ///
    /// # Safety
    /// The CPU has `S`, and the extents of [`column`](Self::column) hold for the rows `row..row + MR`.
    #[inline(always)]
    unsafe fn block<S: Simd, const MR: usize, const NR: usize, const TRANSPOSED: bool, const ADD: bool>(
        self,
        row: usize,
    ) {
        // SAFETY: the contract gives the extents for the tile's rows; `k` and the steps from it stay within `self.k`,
        // and `last` says how much of the last vector lies below `width`.
        unsafe {
            // The last vector's extent is decided once per tile, so that sums stay in registers.
            let last = self.width.saturating_sub((NR - 1) * S::LANES);
            let last = match last {
                _ if last >= S::LANES => WHOLE,
                _ if 2 * last == S::LANES => HALF,
                _ => PART,
            };
            let mut sums = match last {
                _ if !ADD => [[S::splat(0.0); NR]; MR],
                WHOLE => self.begin::<S, MR, NR, WHOLE>(row),
                HALF => self.begin::<S, MR, NR, HALF>(row),
                _ => self.begin::<S, MR, NR, PART>(row),
            };
            let mut k = 0;
            // Four steps are unrolled, since loop counters and addresses cost about as much as one. Eight steps of a
            // tile of sixteen rows are more instructions than the processor keeps decoded.
            while S::ACCUMULATORS > 4 && k + 4 <= self.k {
                self.steps::<S, MR, NR, TRANSPOSED, 4>(row, k, &mut sums);
                k += 4;
            }
            while k < self.k {
                self.steps::<S, MR, NR, TRANSPOSED, 1>(row, k, &mut sums);
                k += 1;
            }
            match last {
                WHOLE => self.finish::<S, MR, NR, WHOLE>(row, &sums),
                HALF => self.finish::<S, MR, NR, HALF>(row, &sums),
                _ => self.finish::<S, MR, NR, PART>(row, &sums),
            }
        }
    }

    /// Number of floats that exist of vector `n` of a row.
    #[inline(always)]
    fn kept<S: Simd, const NR: usize, const LAST: usize>(&self, n: usize) -> usize {
        match (n + 1 == NR, LAST) {
            (true, HALF) => S::LANES / 2,
            (true, PART) => self.width.saturating_sub(n * S::LANES),
            _ => S::LANES,
        }
    }

    /// Loads a tile of `c`.
    ///
    /// # Safety
    /// As for [`block`](Self::block); `LAST` says how much of the last vector exists.
    #[inline(always)]
    unsafe fn begin<S: Simd, const MR: usize, const NR: usize, const LAST: usize>(
        &self,
        row: usize,
    ) -> [[S::V; NR]; MR] {
        // SAFETY: the first `width` floats of each of the tile's rows of `c` are readable by the contract; `kept`
        // limits each load to them.
        unsafe {
            let mut sums = [[S::splat(0.0); NR]; MR];
            for (r, sums) in sums.iter_mut().enumerate() {
                let c = self.c.add((row + r) * self.c_stride);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load_up_to(c.add(n * S::LANES), self.kept::<S, NR, LAST>(n));
                }
            }
            sums
        }
    }

    /// Stores a tile of `c`.
    ///
    /// # Safety
    /// As for [`block`](Self::block); `LAST` says how much of the last vector exists.
    #[inline(always)]
    unsafe fn finish<S: Simd, const MR: usize, const NR: usize, const LAST: usize>(
        &self,
        row: usize,
        sums: &[[S::V; NR]; MR],
    ) {
        // SAFETY: the first `width` floats of each of the tile's rows of `c` are writable by the contract; `kept`
        // limits each store to them.
        unsafe {
            for (r, sums) in sums.iter().enumerate() {
                let c = self.c.add((row + r) * self.c_stride);
                for (n, &sum) in sums.iter().enumerate() {
                    S::store_up_to(c.add(n * S::LANES), sum, self.kept::<S, NR, LAST>(n));
                }
            }
        }
    }

    /// Adds the products of `COUNT` consecutive values of `k`.
    ///
    /// # Safety
    /// As for [`block`](Self::block), and `k + COUNT <= self.k`.
    #[inline(always)]
    unsafe fn steps<S: Simd, const MR: usize, const NR: usize, const TRANSPOSED: bool, const COUNT: usize>(
        self,
        row: usize,
        k: usize,
        sums: &mut [[S::V; NR]; MR],
    ) {
        let (a_row, a_k) = if TRANSPOSED { (1, self.a_stride) } else { (self.a_stride, 1) };
        let b_k = if TRANSPOSED { self.b_stride } else { NR * S::LANES };
        // SAFETY: the contract gives `NR` whole vectors of `b` at each of the `COUNT` steps and a value of `a` at each
        // step in each of the `MR` rows. `fours[r / 4]` was set for every `r < MR` and points at such a value.
        unsafe {
            // Address of the first of each four rows.
            let mut fours = [self.a; 4];
            for (four, a) in fours.iter_mut().enumerate().take(MR.div_ceil(4)) {
                *a = opaque(self.a.wrapping_add((row + 4 * four) * a_row + k * a_k));
            }
            for next in 0..COUNT {
                let b = self.b.add((k + next) * b_k);
                let mut panel = [S::splat(0.0); NR];
                for (n, value) in panel.iter_mut().enumerate() {
                    *value = S::load(b.add(n * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = match S::SPLATS_FROM_MEMORY {
                        true => fours[r / 4].add(r % 4 * a_row + next * a_k),
                        false => self.a.add((row + r) * a_row + (k + next) * a_k),
                    };
                    let value = S::splat(*a);
                    for n in 0..NR {
                        sums[n] = S::mul_add(value, panel[n], sums[n]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, values};

    #[test]
    fn products_equal_the_plain_sum() {
        let lanes = InstructionSet::active().lanes();
        for &(rows, k, n) in &[
            (1, 1, 1),
            (5, 3, 7),
            (13, 16, 24),
            (48, 17, 41),
            (7, 40, 8),
            (33, 9, 96),
            (2, 5, 100),
            (50, 27, 16),
            (29, 24, 16),
            (15, 12, 12),
        ] {
            let (a, b) = (values(rows * (k + 2), 1), values(n * k, 2));
            let packed = Packed::new(&b, k, n, 1, k); // b as [n, k]
            let stride = n + 3;
            let mut c = vec![7.0; rows * stride];
            multiply(&a, k + 2, rows, &packed, &mut c, stride);
            for row in 0..rows {
                let expected: Vec<f64> = (0..n)
                    .map(|j| (0..k).map(|i| f64::from(a[row * (k + 2) + i]) * f64::from(b[j * k + i])).sum())
                    .collect();
                assert_close(&c[row * stride..row * stride + n], &expected, 1e-5, "product");
                assert!(c[row * stride + n..(row + 1) * stride].iter().all(|&v| v == 7.0), "wrote past the row");
            }
            let once = c.clone();
            multiply_add(&a, k + 2, rows, &packed, &mut c, stride);
            for (twice, once) in c.chunks_exact(stride).zip(once.chunks_exact(stride)) {
                let doubled: Vec<f64> = once[..n].iter().map(|&v| 2.0 * f64::from(v)).collect();
                assert_close(&twice[..n], &doubled, 1e-6, "added product");
                assert!(twice[n..].iter().all(|&v| v == 7.0), "added past the row");
            }
            // Slices give the same product; the last one is padded with zeros to whole vectors.
            for (slice, packed) in Packed::slices(&b, k, n, 1, k).iter().enumerate() {
                let mut part = vec![7.0; rows * SLICE];
                multiply(&a, k + 2, rows, packed, &mut part, SLICE);
                for (part, whole) in part.chunks_exact(SLICE).zip(once.chunks_exact(stride)) {
                    for (lane, &value) in part.iter().enumerate() {
                        let column = slice * SLICE + lane;
                        let expected = match column {
                            column if column < n => whole[column],
                            column if column < n.next_multiple_of(lanes) => 0.0,
                            _ => 7.0,
                        };
                        assert!((value - expected).abs() < 1e-5, "slice {slice}, column {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_products_accumulate() {
        let lanes = InstructionSet::active().lanes();
        for &(rows, m, n) in
            &[(1usize, 1usize, 1usize), (32, 16, 24), (17, 13, 11), (40, 7, 96), (3, 25, 33), (20, 29, 12)]
        {
            let stride = n.next_multiple_of(lanes);
            let (a, b) = (values(rows * m, 3), values(rows * stride, 4));
            let mut c = vec![1.0; m * stride];
            accumulate_transposed(&a, m, &b, stride, rows, m, n, &mut c, stride);
            for i in 0..m {
                let expected: Vec<f64> = (0..n)
                    .map(|j| {
                        1.0 + (0..rows).map(|r| f64::from(a[r * m + i]) * f64::from(b[r * stride + j])).sum::<f64>()
                    })
                    .collect();
                assert_close(&c[i * stride..i * stride + n], &expected, 1e-5, "transposed product");
            }
        }
    }
}
