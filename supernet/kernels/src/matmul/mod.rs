//! Matrix products of pointwise convolutions: packing, register tiles, and the loops around them.
//!
//! In NHWC a 1x1 convolution is `[pixels, in] x [in, out]`. The weight is packed once per call into panels of one to
//! three vectors of output channels; the inner loop keeps a tile of pixels x panel in registers. The weight gradient is
//! the same tile with the roles of pixels and channels exchanged.
//!
//! | file | concern |
//! | --- | --- |
//! | `packed` | the right matrix in panels |
//! | `tiles` | register tiles: the inner loops |

mod packed;
mod tiles;

pub(crate) use packed::{Packed, Panel};

use super::buffers::{Unwritten, assume_written};
use super::simd::InstructionSet;
use packed::panel_vectors;
use tiles::Tiles;

/// Pixels per call that suit a caller: enough to reuse a panel, few enough to stay in L1 with it.
pub(crate) const ROW_BLOCK: usize = 48;

/// `c[row, ..n] = a[row, ..k] x b` for all rows; `a_stride` and `c_stride` are row strides.
pub(crate) fn multiply(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    // SAFETY: all floats of `c` are written.
    unsafe { multiply_into::<false>(a, a_stride, rows, b, as_unwritten(c), c_stride) }
}

/// [`multiply`] to memory of `rows` rows of `n` floats, which is returned written.
pub(crate) fn multiply_new<'c>(
    a: &[f32],
    a_stride: usize,
    rows: usize,
    b: &Packed,
    c: &'c mut Unwritten,
) -> &'c mut [f32] {
    assert_eq!(c.len(), rows * b.n);
    // SAFETY: nothing is added to `c`; the product overwrites `n` columns of each row, which are all of `c`.
    unsafe {
        multiply_into::<false>(a, a_stride, rows, b, c, b.n);
        assume_written(c)
    }
}

/// `c[row, ..n] += a[row, ..k] x b` for all rows; otherwise like [`multiply`].
pub(crate) fn multiply_add(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    // SAFETY: all floats of `c` are written.
    unsafe { multiply_into::<true>(a, a_stride, rows, b, as_unwritten(c), c_stride) }
}

/// Floats as memory that kernels write floats to.
fn as_unwritten(values: &mut [f32]) -> &mut Unwritten {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`, and this module writes floats only.
    unsafe { &mut *(values as *mut [f32] as *mut Unwritten) }
}

/// # Safety
/// If `ADD`, all floats of `c` must be written.
unsafe fn multiply_into<const ADD: bool>(
    a: &[f32],
    a_stride: usize,
    rows: usize,
    b: &Packed,
    c: &mut Unwritten,
    c_stride: usize,
) {
    if rows == 0 || b.n == 0 {
        return;
    }
    assert!(c_stride >= b.n);
    let lanes = InstructionSet::active().lanes();
    let vectors = b.n.div_ceil(lanes);
    let (mut done, mut offset) = (0, 0);
    while done < vectors {
        let nr = panel_vectors(vectors, done);
        let tiles = Tiles {
            k: b.k,
            a,
            a_stride,
            b: &b.data[offset..],
            b_stride: nr * lanes,
            c: &mut c[done * lanes..],
            c_stride,
            width: (nr * lanes).min(b.n - done * lanes),
        };
        // SAFETY: if `ADD`, all of `c` is written by the contract.
        unsafe { tiles.column::<false, ADD>(nr, rows) };
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
    let lanes = InstructionSet::active().lanes();
    let padded = n.next_multiple_of(lanes);
    assert!(b_stride >= padded && c_stride >= padded);
    let c = as_unwritten(c);
    let (vectors, mut done) = (n.div_ceil(lanes), 0);
    while done < vectors {
        let nr = panel_vectors(vectors, done);
        let tiles = Tiles {
            k: rows,
            a,
            a_stride,
            b: &b[done * lanes..],
            b_stride,
            c: &mut c[done * lanes..],
            c_stride,
            width: nr * lanes,
        };
        // SAFETY: all floats of `c` are written.
        unsafe { tiles.column::<true, true>(nr, m) };
        done += nr;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::packed_slices;
    use crate::slice::SLICE;
    use crate::testing::{assert_close, for_each_of, values};

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
            for (slice, packed) in packed_slices(&b, k, n, 1, k).iter().enumerate() {
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

    /// Asserts sums of at most 60 products, each given as the exact sum and the sum of magnitudes. Rounding in f32, in
    /// any order, is at most 61 times 2^-24 of the sum of magnitudes.
    #[track_caller]
    fn assert_sums(found: &[f32], expected: impl ExactSizeIterator<Item = (f64, f64)>, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}: length");
        for (index, (&found, (sum, magnitude))) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(found) - sum).abs() <= 4e-6 * magnitude, "{what}[{index}]: {found} instead of {sum}");
        }
    }

    /// The exact sum of products and the sum of their magnitudes.
    fn sums(products: impl Iterator<Item = (f32, f32)>) -> (f64, f64) {
        products.map(|(a, b)| f64::from(a) * f64::from(b)).fold((0.0, 0.0), |(sum, all), v| (sum + v, all + v.abs()))
    }

    #[test]
    fn products_of_any_extents_equal_plain_sums() {
        for_each_of(150, (1..=60usize, 1..=50usize, 1..=70usize), |(rows, k, n)| {
            let (a, b) = (values(rows * k, 1), values(k * n, 2));
            let at = |index: usize| sums((0..k).map(|i| (a[index / n * k + i], b[i * n + index % n])));
            let packed = Packed::new(&b, k, n, n, 1);
            // The value beyond the output must stay.
            let mut c = vec![7.0; rows * n + 1];
            multiply(&a, k, rows, &packed, &mut c, n);
            assert_sums(&c[..rows * n], (0..rows * n).map(at), "product");
            multiply_add(&a, k, rows, &packed, &mut c, n);
            let twice = |index| (2.0 * at(index).0, 2.0 * at(index).1);
            assert_sums(&c[..rows * n], (0..rows * n).map(twice), "added product");
            assert_eq!(c[rows * n], 7.0);

            // `a` transposed, times a matrix with the same number of rows.
            let stride = n.next_multiple_of(InstructionSet::active().lanes());
            let right = values(rows * stride, 3);
            let mut c = vec![0.0; k * stride];
            accumulate_transposed(&a, k, &right, stride, rows, k, n, &mut c, stride);
            for (i, row) in c.chunks_exact(stride).enumerate() {
                let at = |j: usize| sums((0..rows).map(|row| (a[row * k + i], right[row * stride + j])));
                assert_sums(&row[..n], (0..n).map(at), "transposed product");
            }
        });
    }
}
