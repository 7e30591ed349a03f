//! Mixing images of a batch, with their labels in the shares that they have in the result.
//!
//! What is mixed is decided for the whole batch of a step, of which a process may hold a part: the result does not
//! depend on the number of processes.

use crate::{Error, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// Labels of an image, and the share of each; unused places have a share of 0. Shares add up to 1.
pub type LabelShares = [(u32, f32); 4];

/// How the images of a batch are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// What becomes of the images.
    pub method: Mixing,
    /// Both parameters of the beta distribution of which shares are drawn: 1 is uniform, less prefers shares near 0 and
    /// 1.
    pub beta: f64,
    /// Part of the batches that are mixed (default 1).
    #[serde(default = "always")]
    pub probability: f64,
}

fn always() -> f64 {
    1.0
}

/// A method of mixing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// A weighted sum of two images (Zhang et al., ICLR 2018).
    Mixup,
    /// A rectangle of one image in another (Yun et al., ICCV 2019).
    Cutmix,
    /// Four images side by side, each cropped at random (Takahashi et al., ACML 2018).
    Ricap,
}

/// Images of a step that are mixed with others of the step.
pub(super) struct Mixture {
    /// For each part of an image: the places of the images in the batch from which the part is taken.
    sources: Vec<Vec<usize>>,
    parts: Parts,
}

enum Parts {
    /// Share of each image in the sum.
    Sum([f32; 2]),
    /// The result's rectangles, which cover it, and the corner of each in its source.
    Rectangles(Vec<(Rectangle, [usize; 2])>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Rectangle {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl Mix {
    /// Refuses settings without a meaning.
    pub(super) fn check(&self) -> Result<()> {
        if !(0.05..=4.0).contains(&self.beta) {
            return Err(Error::Config(format!("mix beta is {}; it must lie between 0.05 and 4", self.beta)));
        }
        if !(self.probability > 0.0 && self.probability <= 1.0) {
            let probability = self.probability;
            return Err(Error::Config(format!(
                "mix probability is {probability}; it must be above 0 and at most 1 (leave mix out for none)"
            )));
        }
        Ok(())
    }

    /// What becomes of a batch of `count` images of `side` pixels; `None`: nothing.
    pub(super) fn draw(&self, count: usize, side: usize, rng: &mut StdRng) -> Option<Mixture> {
        if rng.random::<f64>() >= self.probability {
            return None;
        }
        let own: Vec<usize> = (0..count).collect();
        let mut partners = || {
            let mut order = own.clone();
            order.shuffle(rng);
            order
        };
        let parts = if self.method == Mixing::Ricap { 4 } else { 2 };
        let mut sources: Vec<Vec<usize>> = (1..parts).map(|_| partners()).collect();
        sources.insert(0, own);
        let parts = match self.method {
            Mixing::Mixup => {
                let share = beta(self.beta, rng) as f32;
                Parts::Sum([share, 1.0 - share])
            }
            Mixing::Cutmix => {
                let length = ((1.0 - beta(self.beta, rng)).sqrt() * side as f64).round() as usize;
                let mut range = || {
                    let middle = rng.random_range(0..side);
                    let start = middle.saturating_sub(length / 2);
                    (start, (middle + length - length / 2).min(side) - start)
                };
                let ((x, width), (y, height)) = (range(), range());
                let whole = Rectangle { x: 0, y: 0, width: side, height: side };
                // The second one lies above the first.
                Parts::Rectangles(vec![(whole, [0, 0]), (Rectangle { x, y, width, height }, [x, y])])
            }
            Mixing::Ricap => {
                let mut cut = || (side as f64 * beta(self.beta, rng)).round() as usize;
                let (left, top) = (cut(), cut());
                let quadrants = [(0, 0, left, top), (left, 0, side - left, top)]
                    .into_iter()
                    .chain([(0, top, left, side - top), (left, top, side - left, side - top)]);
                let quadrants = quadrants.map(|(x, y, width, height)| {
                    let corner = [rng.random_range(0..=side - width), rng.random_range(0..=side - height)];
                    (Rectangle { x, y, width, height }, corner)
                });
                Parts::Rectangles(quadrants.collect())
            }
        };
        Some(Mixture { sources, parts })
    }
}

impl Mixture {
    /// Places in the batch of the images that image `place` consists of.
    pub fn sources(&self, place: usize) -> impl Iterator<Item = usize> {
        self.sources.iter().map(move |places| places[place])
    }

    /// Writes the mixed image `place` of `side` pixels to `out`; `image` gives the values of an image of the batch.
    pub fn write<'a>(&self, place: usize, side: usize, image: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
        match &self.parts {
            Parts::Sum([first, second]) => {
                let [a, b] = [0, 1].map(|part| image(self.sources[part][place]));
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = first * a + second * b;
                }
            }
            Parts::Rectangles(parts) => {
                for ((to, [from_x, from_y]), places) in parts.iter().zip(&self.sources) {
                    let source = image(places[place]);
                    for row in 0..to.height {
                        let start = |x: usize, y: usize| 3 * ((y + row) * side + x);
                        let values = &source[start(*from_x, *from_y)..][..3 * to.width];
                        out[start(to.x, to.y)..][..3 * to.width].copy_from_slice(values);
                    }
                }
            }
        }
    }

    /// Labels of the mixed image `place`, where `label` gives those of the batch's images.
    pub fn labels(&self, place: usize, side: usize, label: impl Fn(usize) -> u32) -> LabelShares {
        let mut shares = [(0, 0.0); 4];
        for (share, source) in shares.iter_mut().zip(self.sources(place)) {
            share.0 = label(source);
        }
        match &self.parts {
            Parts::Sum(sum) => shares.iter_mut().zip(sum).for_each(|(share, part)| share.1 = *part),
            Parts::Rectangles(parts) => {
                let area = |rectangle: &Rectangle| (rectangle.width * rectangle.height) as f32 / (side * side) as f32;
                shares.iter_mut().zip(parts).for_each(|(share, (rectangle, _))| share.1 = area(rectangle));
                // A rectangle above another hides that part of it.
                let hidden: f32 = shares[1..].iter().map(|(_, share)| share).sum();
                shares[0].1 = 1.0 - hidden;
            }
        }
        shares
    }
}

/// A draw from the beta distribution with both parameters `shape` (Jöhnk 1964).
fn beta(shape: f64, rng: &mut StdRng) -> f64 {
    loop {
        let [x, y] = [(); 2].map(|()| rng.random::<f64>().powf(1.0 / shape));
        if x + y > 0.0 && x + y <= 1.0 {
            return x / (x + y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Stream, generator};

    fn rng(n: u64) -> StdRng {
        generator(1, Stream::Mixing, &[n])
    }

    #[test]
    fn shares_follow_the_beta_distribution() {
        for shape in [0.3, 1.0, 2.0] {
            let draws: Vec<f64> = (0..4000).map(|n| beta(shape, &mut rng(n))).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            let expected = 1.0 / (4.0 * (2.0 * shape + 1.0));
            assert!((mean - 0.5).abs() < 0.02 && (variance - expected).abs() < 0.01, "{shape}: {mean} {variance}");
        }
    }

    /// Image `n` of a batch has `n` everywhere; its label is `10 n`.
    #[test]
    fn labels_have_the_shares_of_their_images_pixels() {
        let (side, count) = (8, 5);
        let images: Vec<Vec<f32>> = (0..count).map(|n| vec![n as f32; side * side * 3]).collect();
        for method in [Mixing::Mixup, Mixing::Cutmix, Mixing::Ricap] {
            let mix = Mix { method, beta: 1.0, probability: 1.0 };
            let mut partial = 0;
            for n in 0..40 {
                let mixture = mix.draw(count, side, &mut rng(n)).unwrap();
                for place in 0..count {
                    let mut out = vec![f32::NAN; side * side * 3];
                    mixture.write(place, side, |source| &images[source], &mut out);
                    let shares = mixture.labels(place, side, |source| 10 * source as u32);
                    assert_eq!(shares[0].0, 10 * place as u32);
                    assert!((shares.iter().map(|(_, share)| share).sum::<f32>() - 1.0).abs() < 1e-5);
                    assert!(shares.iter().all(|(_, share)| *share >= -1e-6), "{shares:?}");
                    let mean = out.iter().sum::<f32>() / out.len() as f32;
                    let expected: f32 = shares.iter().map(|(label, share)| share * *label as f32 / 10.0).sum();
                    assert!((mean - expected).abs() < 1e-4, "{method:?} {n}: {mean} {expected}");
                    partial += usize::from(shares[0].1 > 0.05 && shares[0].1 < 0.95);
                }
            }
            assert!(partial > 50, "{method:?} {partial}");
        }
    }

    #[test]
    fn a_part_of_the_batches_is_mixed() {
        let mix = Mix { method: Mixing::Mixup, beta: 1.0, probability: 0.25 };
        let mixed = (0..400).filter(|&n| mix.draw(4, 8, &mut rng(n)).is_some()).count();
        assert!((60..140).contains(&mixed), "{mixed}");
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        let check = |beta, probability| Mix { method: Mixing::Ricap, beta, probability }.check();
        check(0.3, 1.0).unwrap();
        for (beta, probability, part) in
            [(0.0, 1.0, "beta is 0"), (9.0, 1.0, "beta is 9"), (0.3, 0.0, "probability is 0"), (0.3, f64::NAN, "NaN")]
        {
            assert!(check(beta, probability).unwrap_err().to_string().contains(part), "{part}");
        }
    }
}
