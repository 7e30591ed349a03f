//! A symmetric positive definite matrix as the product of a triangle with itself, for the few hundred rows of a
//! Gaussian process or a linear fit.

/// The lower triangle `L` of `L L^T = A`.
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
}
