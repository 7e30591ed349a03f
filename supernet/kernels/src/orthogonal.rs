//! The nearest matrix with orthonormal rows or columns, by Newton-Schulz iterations.

use super::matmul::{Packed, accumulate_transposed, multiply};
use super::slice::SLICE;

/// Iterations of [`orthogonalised`].
const ITERATIONS: usize = 5;

/// Coefficients of an iteration's polynomial (Jordan et al. 2024): five iterations take singular values between .01 and
/// 1 to about 1, between .7 and 1.2.
const LINEAR: f32 = 3.4445;
const CUBIC: f32 = -4.775;
const QUINTIC: f32 = 2.0315;

/// `matrix` `[rows, columns]` with all its singular values moved to about 1.
///
/// X = M / |M|, then five times X <- (3.4445 - 4.775 A + 2.0315 A²) X with A = X Xᵀ. A matrix of zeros stays zero.
///
/// Runs on the calling thread, so that the result does not depend on the number of threads.
pub fn orthogonalised(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    assert_eq!(matrix.len(), rows * columns);
    let norm = matrix.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return vec![0.0; matrix.len()];
    }
    // The products are smaller for the transpose of a wide matrix, whose result is the transpose.
    let (wide, long, short) = (columns > rows, rows.max(columns), rows.min(columns));
    let place = |i: usize, j: usize| if wide { j * columns + i } else { i * columns + j };
    // Rows are padded to whole vectors; the padding stays zero.
    let stride = short.next_multiple_of(SLICE);
    let mut x = vec![0.0; long * stride];
    for i in 0..long {
        for j in 0..short {
            x[i * stride + j] = (f64::from(matrix[place(i, j)]) / norm) as f32;
        }
    }
    let (mut squared, mut next) = (vec![0.0; short * stride], vec![0.0; long * stride]);
    for _ in 0..ITERATIONS {
        // [short, short], symmetric.
        let mut product = vec![0.0; short * stride];
        accumulate_transposed(&x, stride, &x, stride, long, short, short, &mut product, stride);
        let packed = Packed::new(&product, short, short, stride, 1);
        multiply(&product, stride, short, &packed, &mut squared, stride);
        for (value, &square) in product.iter_mut().zip(&squared) {
            *value = CUBIC * *value + QUINTIC * square;
        }
        (0..short).for_each(|i| product[i * stride + i] += LINEAR);
        multiply(&x, stride, long, &Packed::new(&product, short, short, stride, 1), &mut next, stride);
        std::mem::swap(&mut x, &mut next);
    }
    let mut result = vec![0.0; matrix.len()];
    for i in 0..long {
        for j in 0..short {
            result[place(i, j)] = x[i * stride + j];
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// The formula in f64, as it is written in the doc comment, without the transposition.
    fn plain(matrix: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let norm = matrix.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let mut x: Vec<f64> = matrix.iter().map(|&v| f64::from(v) / norm).collect();
        let product = |a: &[f64], b: &[f64], inner: usize, n: usize| -> Vec<f64> {
            let rows = a.len() / inner;
            let at = |i: usize, j: usize| (0..inner).map(|k| a[i * inner + k] * b[k * n + j]).sum();
            (0..rows * n).map(|place| at(place / n, place % n)).collect()
        };
        for _ in 0..5 {
            let transposed: Vec<f64> = (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect();
            let a = product(&x, &transposed, columns, rows);
            let squared = product(&a, &a, rows, rows);
            let factor: Vec<f64> = a.iter().zip(&squared).map(|(a, s)| -4.775 * a + 2.0315 * s).collect();
            let changed = product(&factor, &x, rows, columns);
            x.iter_mut().zip(&changed).for_each(|(x, change)| *x = 3.4445 * *x + change);
        }
        x
    }

    #[test]
    fn products_follow_the_formula_in_f64_and_end_near_orthonormal_rows() {
        for (rows, columns) in [(2, 2), (3, 17), (17, 3), (16, 48), (40, 24), (33, 70)] {
            let matrix = values(rows * columns, (rows * 100 + columns) as u64);
            let (found, expected) = (orthogonalised(&matrix, rows, columns), plain(&matrix, rows, columns));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{rows}x{columns}: {found} {expected}");
            }
            // The sum of the squared singular values.
            let sum: f64 = expected.iter().map(|v| v * v).sum();
            let mean = sum / rows.min(columns) as f64;
            assert!((0.5..1.5).contains(&mean), "{rows}x{columns}: {mean}");
        }
        assert_eq!(orthogonalised(&[0.0; 6], 2, 3), [0.0; 6]);
    }
}
