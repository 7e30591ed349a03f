//! First convolutions that whiten image patches.

use super::checks::fail;
use crate::data::Dataset;
use crate::seed::{Stream, generator};
use crate::space::SearchSpace;
use crate::{Error, Result};

/// Values of a patch of 3x3 pixels.
const PATCH: usize = 27;
/// Fewest channels that whitening is for: fewer directions than eight lose colours and edges that random filters see.
const FEWEST_CHANNELS: usize = 16;
/// Most images that patches are taken of, and pixels of all of them together, beyond which the covariance no longer
/// changes.
const IMAGES: usize = 2000;
const PIXELS: usize = 2_500_000;
/// What is added to variances, so that directions without any are not blown up.
const FLOOR: f64 = 5e-4;

/// Whether the first convolution of `space` can have whitening filters.
pub(super) fn check(space: &SearchSpace) -> Result<()> {
    let network = space.network(&space.largest(), 2)?;
    match network.stem.first() {
        Some(stem) if stem.out_channels < FEWEST_CHANNELS => fail(format!(
            "whitening_stem needs {FEWEST_CHANNELS} channels in the first convolution or more, and the space '{}' has {}; leave it out",
            space.name, stem.out_channels
        )),
        Some(stem) if (stem.in_channels, stem.kernel) == (3, 3) => Ok(()),
        _ => fail(format!(
            "whitening_stem is for a first convolution of 3x3 pixels, which the space '{}' has not; leave it out",
            space.name
        )),
    }
}

/// Filters `[2 PATCH or fewer][colour, row, column]` that whiten the patches of normalised training images: with their
/// covariance E L Eᵀ, `e_i / sqrt(l_i + FLOOR)` and its negative, from the largest variance on.
///
/// Sums run over the images in their order on one thread, so that all processes get the same bits.
///
/// # Errors
/// An image that cannot be read.
pub(super) fn filters(data: &Dataset, space: &SearchSpace, seed: u64) -> Result<Vec<Vec<f32>>> {
    let resolution = space.resolutions[space.resolutions.len() - 1];
    let count = (PIXELS / (resolution * resolution)).clamp(50, IMAGES).min(data.train.len());
    let rng = &mut generator(seed, Stream::Whitening, &[]);
    let mut indices = rand::seq::index::sample(rng, data.train.len(), count).into_vec();
    indices.sort_unstable();
    let mut sums = Sums { count: 0, mean: [0.0; PATCH], products: [[0.0; PATCH]; PATCH] };
    for indices in indices.chunks(64) {
        let batch = data.evaluation_batch(&data.train, indices, resolution)?;
        batch.images.chunks_exact(resolution * resolution * 3).for_each(|image| sums.add(image, resolution));
    }
    if sums.count == 0 {
        return Err(Error::Config(format!("whitening_stem needs images of 3x3 pixels or more, not of {resolution}")));
    }
    let (variances, directions) = eigen(sums.covariance());
    let mut filters = Vec::new();
    for (variance, direction) in variances.iter().zip(&directions) {
        let scale = 1.0 / (variance.max(0.0) + FLOOR).sqrt();
        for sign in [1.0, -1.0] {
            // Patches are [row, column, colour], weights [colour, row, column].
            let at = |place: usize| direction[place % 9 * 3 + place / 9];
            filters.push((0..PATCH).map(|place| (sign * scale * at(place)) as f32).collect());
        }
    }
    Ok(filters)
}

/// Sums over patches `[row, column, colour]`.
struct Sums {
    count: u64,
    mean: [f64; PATCH],
    /// Of `i <= j`.
    products: [[f64; PATCH]; PATCH],
}

impl Sums {
    /// Adds all patches of an image `[resolution, resolution, 3]`.
    fn add(&mut self, image: &[f32], resolution: usize) {
        for y in 0..resolution.saturating_sub(2) {
            for x in 0..resolution - 2 {
                let mut patch = [0.0; PATCH];
                for (row, values) in patch.chunks_exact_mut(9).enumerate() {
                    let from = ((y + row) * resolution + x) * 3;
                    values.iter_mut().zip(&image[from..from + 9]).for_each(|(to, &v)| *to = f64::from(v));
                }
                self.count += 1;
                for i in 0..PATCH {
                    self.mean[i] += patch[i];
                    for j in i..PATCH {
                        self.products[i][j] += patch[i] * patch[j];
                    }
                }
            }
        }
    }

    fn covariance(&self) -> [[f64; PATCH]; PATCH] {
        let (n, mean) = (self.count as f64, self.mean.map(|sum| sum / self.count as f64));
        std::array::from_fn(|i| std::array::from_fn(|j| self.products[i.min(j)][i.max(j)] / n - mean[i] * mean[j]))
    }
}

/// Eigenvalues of a symmetric matrix, descending, and its eigenvectors, by Jacobi rotations. Of a vector the value that
/// is largest in size is positive.
fn eigen<const N: usize>(mut a: [[f64; N]; N]) -> ([f64; N], [[f64; N]; N]) {
    // Rows are eigenvectors in the end.
    let mut vectors: [[f64; N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| f64::from(u8::from(i == j))));
    let size: f64 = a.iter().flatten().map(|v| v * v).sum();
    // Convergence is quadratic: some ten sweeps are enough.
    for _ in 0..50 {
        let beside: f64 = (0..N).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        if beside <= 1e-30 * size {
            break;
        }
        for p in 0..N {
            for q in p + 1..N {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                for k in 0..N {
                    (a[p][k], a[q][k]) = (c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]);
                    (vectors[p][k], vectors[q][k]) =
                        (c * vectors[p][k] - s * vectors[q][k], s * vectors[p][k] + c * vectors[q][k]);
                }
            }
        }
    }
    let mut order: [usize; N] = std::array::from_fn(|i| i);
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let signed = |vector: [f64; N]| {
        let largest = vector.iter().fold(0.0f64, |best, &v| if v.abs() > best.abs() { v } else { best });
        if largest < 0.0 { vector.map(|v| -v) } else { vector }
    };
    (order.map(|i| a[i][i]), order.map(|i| signed(vectors[i])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataOptions;
    use crate::space::preset;

    #[test]
    fn eigenvectors_give_the_matrix_back() {
        let a: [[f64; 9]; 9] = std::array::from_fn(|i| std::array::from_fn(|j| ((i * j + i + j) as f64 * 0.7).sin()));
        let (values, vectors) = eigen(a);
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        for (i, row) in a.iter().enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let sum: f64 = (0..9).map(|k| values[k] * vectors[k][i] * vectors[k][j]).sum();
                assert!((sum - value).abs() < 1e-12, "{sum} {value}");
                let product: f64 = (0..9).map(|k| vectors[i][k] * vectors[j][k]).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn filtered_patches_are_white_and_come_in_pairs() {
        let options = DataOptions { validation: Some(20), builtin_train: 120, builtin_test: 20, ..Default::default() };
        let data = Dataset::open("builtin", &options).unwrap();
        let mut space = preset("tiny").unwrap();
        space.resolutions = vec![16];
        let filters = filters(&data, &space, 3).unwrap();
        assert_eq!(filters.len(), 2 * PATCH);
        // All images are taken, so the covariance of their filtered patches is known: the identity, less the floor.
        let all: Vec<usize> = (0..data.train.len()).collect();
        let images = data.evaluation_batch(&data.train, &all, 16).unwrap().images;
        let filtered = |filter: &[f32]| -> Vec<f64> {
            let mut outputs = Vec::new();
            for image in images.chunks_exact(16 * 16 * 3) {
                for (y, x) in (0..14).flat_map(|y| (0..14).map(move |x| (y, x))) {
                    let pixel = |place: usize| ((y + place % 9 / 3) * 16 + x + place % 3) * 3 + place / 9;
                    outputs.push(filter.iter().enumerate().map(|(p, &f)| f64::from(f * image[pixel(p)])).sum());
                }
            }
            let mean = outputs.iter().sum::<f64>() / outputs.len() as f64;
            outputs.iter().map(|v| v - mean).collect()
        };
        let [first, second, third] = [0, 2, 4].map(|index| filtered(&filters[index]));
        let covariance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / a.len() as f64;
        for (a, b, expected) in
            [(&first, &first, 1.0), (&third, &third, 1.0), (&first, &second, 0.0), (&second, &third, 0.0)]
        {
            let found = covariance(a, b);
            assert!((found - expected).abs() < 0.02, "{found} {expected}");
        }
        assert!(filters.chunks(2).all(|pair| pair[0].iter().zip(&pair[1]).all(|(a, b)| *a == -b)));
    }

    #[test]
    fn a_narrow_stem_is_refused_by_name() {
        let error = check(&preset("tiny").unwrap()).unwrap_err().to_string();
        assert!(error.contains("whitening_stem needs 16 channels") && error.contains("'tiny' has 8"), "{error}");
        for name in ["cifar-k5", "resnet50d", "attentive-tiny", "proxyless-w1.3"] {
            check(&preset(name).unwrap()).unwrap();
        }
    }
}
