//! Counts of correct answers.

use crate::{Error, Result};

/// Number of correct answers so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// Number of images seen.
    pub images: u64,
    /// Number of images whose label has the largest logit.
    pub right1: u64,
    /// Number of images whose label is among the five largest logits.
    pub right5: u64,
}

impl Score {
    /// Counts a batch: `logits` `[batch, classes]`, one label per image. Among equal logits the lower class comes
    /// first; a label whose logit is NaN is wrong.
    ///
    /// # Errors
    /// The numbers of logits and labels do not fit together, or a label is not a class.
    pub fn add(&mut self, logits: &[f32], labels: &[u32], classes: usize) -> Result<()> {
        if logits.len() != labels.len() * classes {
            return Err(Error::Input(format!(
                "{} logits for {} labels of {classes} classes",
                logits.len(),
                labels.len()
            )));
        }
        if let Some(label) = labels.iter().find(|l| **l as usize >= classes) {
            return Err(Error::Input(format!("label {label} is not a class of a model with {classes} classes")));
        }
        for (logits, &label) in logits.chunks_exact(classes.max(1)).zip(labels) {
            let own = logits[label as usize];
            let before = |&(class, &other): &(usize, &f32)| other > own || (other == own && class < label as usize);
            let rank = if own.is_nan() { usize::MAX } else { logits.iter().enumerate().filter(before).count() };
            self.images += 1;
            self.right1 += u64::from(rank < 1);
            self.right5 += u64::from(rank < 5);
        }
        Ok(())
    }

    /// Fraction of images whose label has the largest logit; 0 without images.
    pub fn top1(&self) -> f64 {
        self.right1 as f64 / self.images.max(1) as f64
    }

    /// Fraction of images whose label is among the five largest logits; 0 without images.
    pub fn top5(&self) -> f64 {
        self.right5 as f64 / self.images.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_counted() {
        let mut score = Score::default();
        let logits = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
        for label in 0..6 {
            score.add(&logits, &[label], 6).unwrap();
        }
        assert_eq!(score, Score { images: 6, right1: 1, right5: 5 });
        let mut ties = Score::default();
        ties.add(&[1.0, 1.0, f32::NAN, 0.0], &[1, 0], 2).unwrap();
        assert_eq!(ties, Score { images: 2, right1: 0, right5: 1 });
        assert!(ties.add(&logits, &[6], 6).is_err());
        assert!(ties.add(&logits, &[0], 5).is_err());
    }
}
