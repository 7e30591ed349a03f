//! A symmetric positive definite matrix as the product of a triangle with itself, for the some hundred rows of a
//! Gaussian process or a linear fit.

use rayon::prelude::*;

/// The lower triangle `L` of `L L^T = A`.
#[derive(Debug, Clone)]
pub struct Cholesky {
    size: usize,
    /// Row-major, `[size, size]`; entries above the diagonal are not used.
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factor of the row-major matrix `rows`, of which only the lower triangle is read; `None` if the matrix is not
    /// positive definite.
    pub fn new(mut rows: Vec<f64>, size: usize) -> Option<Self> {
        for i in 0..size {
            let (before, row) = rows.split_at_mut(i * size);
            for j in 0..i {
                let other = &before[j * size..];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let rest = row[i] - dot(&row[..i], &row[..i]);
            if rest.is_nan() || rest <= 0.0 {
                return None;
            }
            row[i] = rest.sqrt();
        }
        Some(Cholesky { size, lower: rows })
    }

    /// Row `i` up to its diagonal.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.lower[i * self.size..][..i + 1]
    }

    /// Logarithm of the determinant of `A`.
    pub fn log_determinant(&self) -> f64 {
        (0..self.size).map(|i| 2.0 * self.row(i)[i].ln()).sum()
    }

    /// The columns of `L^-1`, each from its diagonal on.
    fn inverse_columns(&self) -> impl IndexedParallelIterator<Item = Vec<f64>> {
        (0..self.size).into_par_iter().map(|first| {
            let mut column = vec![0.0; self.size - first];
            column[0] = 1.0 / self.row(first)[first];
            for i in first + 1..self.size {
                let row = &self.row(i)[first..];
                let (known, own) = column.split_at_mut(i - first);
                own[0] = -dot(&row[..i - first], known) / row[i - first];
            }
            column
        })
    }

    /// `L^-1`, row after row.
    pub fn inverse_lower(&self) -> Vec<f64> {
        let columns: Vec<Vec<f64>> = self.inverse_columns().collect();
        let entry = |index: usize| {
            let (row, column) = (index / self.size, index % self.size);
            if column > row { 0.0 } else { columns[column][row - column] }
        };
        (0..self.size * self.size).map(entry).collect()
    }

    /// Diagonal of `A^-1`.
    pub fn inverse_diagonal(&self) -> Vec<f64> {
        self.inverse_columns().map(|column| dot(&column, &column)).collect()
    }

    /// `A^-1`, row after row.
    pub fn inverse(&self) -> Vec<f64> {
        let columns: Vec<Vec<f64>> = self.inverse_columns().collect();
        let mut inverse = vec![0.0; self.size * self.size];
        inverse.par_chunks_exact_mut(self.size.max(1)).enumerate().for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                let (first, last) = (&columns[i.min(j)], &columns[i.max(j)]);
                *value = dot(&first[i.abs_diff(j)..], last);
            }
        });
        inverse
    }

    /// `L^-1 b`
    pub fn forward(&self, mut b: Vec<f64>) -> Vec<f64> {
        for i in 0..self.size {
            let row = self.row(i);
            b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
        }
        b
    }

    /// `A^-1 b`
    pub fn solve(&self, b: Vec<f64>) -> Vec<f64> {
        let mut x = self.forward(b);
        for i in (0..self.size).rev() {
            let row = self.row(i);
            x[i] /= row[i];
            let value = x[i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= value * l);
        }
        x
    }
}

/// Dot product in eight partial sums, which the compiler vectorises; it may not reorder a single sum.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_solves_its_matrix_and_an_indefinite_one_has_none() {
        let matrix = vec![4.0, 2.0, 1.0, 2.0, 5.0, 3.0, 1.0, 3.0, 6.0];
        let x = Cholesky::new(matrix.clone(), 3).unwrap().solve(vec![1.0, 2.0, 3.0]);
        for (row, expected) in matrix.chunks_exact(3).zip([1.0, 2.0, 3.0]) {
            assert!((dot(row, &x) - expected).abs() < 1e-12);
        }
        assert!(Cholesky::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn inverses_are_those_of_the_matrix() {
        let size = 19;
        let entry = |i: usize, j: usize| (-((i as f64 - j as f64) / 4.0).powi(2)).exp() + f64::from(u8::from(i == j));
        let matrix: Vec<f64> = (0..size * size).map(|index| entry(index / size, index % size)).collect();
        let cholesky = Cholesky::new(matrix.clone(), size).unwrap();
        let (inverse, lower) = (cholesky.inverse(), cholesky.inverse_lower());
        for i in 0..size {
            for j in 0..size {
                let unit = f64::from(u8::from(i == j));
                let product: f64 = (0..size).map(|k| matrix[i * size + k] * inverse[k * size + j]).sum();
                assert!((product - unit).abs() < 1e-10, "{i} {j}: {product}");
                let product: f64 = (0..=i).map(|k| cholesky.row(i)[k] * lower[k * size + j]).sum();
                assert!((product - unit).abs() < 1e-10, "{i} {j}: {product}");
            }
            assert!((cholesky.inverse_diagonal()[i] - inverse[i * size + i]).abs() < 1e-12);
        }
        let determinant = Cholesky::new(vec![4.0, 2.0, 2.0, 5.0], 2).unwrap().log_determinant();
        assert!((determinant - 16f64.ln()).abs() < 1e-12);
    }
}
