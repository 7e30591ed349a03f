//! Resolutions of a stage's images that are not those of its subnets.

use super::checks::LARGE;
use serde::{Deserialize, Serialize};

/// Resolutions of a stage's images. They need not be in the space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageImages {
    /// Resolutions in pixels, one of which is drawn for each step.
    pub resolutions: Vec<usize>,
    /// Weight of each in the draw (default: all alike).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
}

impl StageImages {
    /// The resolution at `point` (0 up to 1) of the resolutions laid end to end with their weights as lengths.
    pub(super) fn resolution_at(&self, point: f64) -> usize {
        let mut rest = point * self.weights.iter().sum::<f64>();
        let drawn = self.resolutions.iter().zip(&self.weights).find(|(_, weight)| {
            rest -= **weight;
            rest < 0.0
        });
        match drawn {
            Some((resolution, _)) => *resolution,
            None if self.weights.is_empty() => {
                self.resolutions[(point * self.resolutions.len() as f64) as usize % self.resolutions.len()]
            }
            None => self.resolutions[self.resolutions.len() - 1],
        }
    }

    /// Mean pixels of an image.
    pub(super) fn pixels(&self) -> f64 {
        let weight = |index: usize| self.weights.get(index).copied().unwrap_or(1.0);
        let total: f64 = (0..self.resolutions.len()).map(weight).sum();
        let pixels = self.resolutions.iter().enumerate();
        pixels.map(|(index, r)| weight(index) * (r * r) as f64).sum::<f64>() / total
    }

    pub(super) fn validate(&self, largest: usize) -> Result<(), String> {
        if let Some(wrong) = self.resolutions.iter().find(|&&r| r == 0 || r > largest) {
            return Err(format!(
                "images.resolutions holds {wrong}; it must be above 0 and at most the space's {largest}"
            ));
        }
        if self.resolutions.is_empty() {
            return Err("images.resolutions is empty; leave images out for the stage's resolutions".into());
        }
        let Self { resolutions, weights } = self;
        if !weights.is_empty() && weights.len() != resolutions.len() {
            let (weights, resolutions) = (weights.len(), resolutions.len());
            return Err(format!("images.weights has {weights} numbers for {resolutions} resolutions"));
        }
        match weights.iter().find(|&&weight| !(weight > 0.0 && weight <= LARGE)) {
            Some(wrong) => Err(format!("images.weights holds {wrong}; it must be above 0 and at most {LARGE}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::TrainConfig;
    use super::*;
    use crate::space::preset;

    #[test]
    fn resolutions_are_drawn_by_weight_and_count_in_the_work() {
        let images = |weights: &[f64]| StageImages { resolutions: vec![20, 24, 28], weights: weights.to_vec() };
        let at = |weights: &[f64], points: [f64; 4]| points.map(|point| images(weights).resolution_at(point));
        assert_eq!(at(&[], [0.0, 0.34, 0.66, 0.99]), [20, 24, 24, 28]);
        assert_eq!(at(&[1.0, 2.0, 1.0], [0.24, 0.26, 0.74, 0.76]), [20, 24, 24, 28]);
        let space = preset("tiny").unwrap();
        let mut stage = TrainConfig::preset("tiny", &space).unwrap().stages.remove(0);
        let usual = stage.relative_cost(&space);
        stage.images = Some(StageImages { resolutions: vec![16, 32], weights: vec![3.0, 1.0] });
        let mean = (16.0 * 16.0 + 24.0 * 24.0 + 32.0 * 32.0) / 3.0;
        let expected = usual * (0.75 * 16.0 * 16.0 + 0.25 * 32.0 * 32.0) / mean;
        assert!((stage.relative_cost(&space) - expected).abs() < 1e-9);
    }
}
