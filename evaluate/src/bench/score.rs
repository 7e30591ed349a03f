//! Counts of correct answers, in all and by class.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Answers to the test images of a model, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// Number of images seen.
    pub images: u64,
    /// Number of images whose label has the largest logit.
    pub right1: u64,
    /// Number of images whose label is among the five largest logits.
    pub right5: u64,
    /// Images of each class.
    of_class: Vec<u64>,
    /// Images by class and answer.
    answers: BTreeMap<(usize, usize), u64>,
}

/// Answers to the test images of one class: a row of the confusion matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassAnswers {
    /// Name of the class.
    pub class: String,
    /// Number of its test images. It exceeds the sum of the answers by the images whose logits are all NaN.
    pub images: u64,
    /// Number of the images that each answer (the class with the largest logit) was given for, the most frequent first.
    /// Answers that were never given are absent.
    pub answers: Vec<Answer>,
}

/// An answer with the number of images that it was given for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Number of the class that was answered, from 0 in the order of the logits.
    pub number: usize,
    /// Name of that class.
    pub class: String,
    /// Number of images.
    pub images: u64,
}

/// Images of one class that were taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion<'a> {
    /// Name of the class.
    pub class: &'a str,
    /// Number of its test images.
    pub of: u64,
    /// Name of the wrong answer.
    pub answer: &'a str,
    /// Number of images with this answer.
    pub images: u64,
}

impl Score {
    /// A count of no images of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Score { images: 0, right1: 0, right5: 0, of_class: vec![0; classes], answers: BTreeMap::new() }
    }

    /// Counts a batch: `logits` `[batch, classes]`, one label per image. Among equal logits the lower class comes
    /// first; a label whose logit is NaN is wrong.
    ///
    /// # Errors
    /// The numbers of logits and labels do not fit together, or a label is not a class.
    pub fn add(&mut self, logits: &[f32], labels: &[u32]) -> Result<()> {
        let classes = self.of_class.len();
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
            let label = label as usize;
            let own = logits[label];
            let before = |&(class, &other): &(usize, &f32)| other > own || (other == own && class < label);
            let rank = if own.is_nan() { usize::MAX } else { logits.iter().enumerate().filter(before).count() };
            self.images += 1;
            self.right1 += u64::from(rank < 1);
            self.right5 += u64::from(rank < 5);
            self.of_class[label] += 1;
            let numbers = (0..classes).filter(|&class| !logits[class].is_nan());
            if let Some(answer) = numbers.reduce(|best, class| if logits[class] > logits[best] { class } else { best })
            {
                *self.answers.entry((label, answer)).or_default() += 1;
            }
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

    /// The confusion matrix: a row per class, in the order of `labels`, the names of the classes.
    pub fn by_class(&self, labels: &[String]) -> Vec<ClassAnswers> {
        let row = |(number, (class, &images)): (usize, (&String, &u64))| {
            let given = self.answers.range((number, 0)..=(number, usize::MAX));
            let named = |(&(_, answer), &images): (&(usize, usize), &u64)| {
                labels.get(answer).map(|class| Answer { number: answer, class: class.clone(), images })
            };
            let mut answers: Vec<Answer> = given.filter_map(named).collect();
            answers.sort_by_key(|answer| std::cmp::Reverse(answer.images));
            ClassAnswers { class: class.clone(), images, answers }
        };
        labels.iter().zip(&self.of_class).enumerate().map(row).collect()
    }
}

impl ClassAnswers {
    /// Number of right answers for class `number`, which these answers are of.
    pub fn right(&self, number: usize) -> u64 {
        self.answers.iter().find(|answer| answer.number == number).map_or(0, |answer| answer.images)
    }

    /// Fraction of right answers for class `number`, which these answers are of; `None` without images.
    pub fn accuracy(&self, number: usize) -> Option<f64> {
        (self.images > 0).then(|| self.right(number) as f64 / self.images as f64)
    }
}

/// Numbers of the classes with test images, by rising accuracy.
pub fn worst_first(classes: &[ClassAnswers]) -> Vec<usize> {
    let mut measured: Vec<(usize, f64)> =
        classes.iter().enumerate().filter_map(|(number, class)| Some((number, class.accuracy(number)?))).collect();
    measured.sort_by(|a, b| a.1.total_cmp(&b.1));
    measured.into_iter().map(|(number, _)| number).collect()
}

/// The wrong answers, the most frequent first.
pub fn confusions(classes: &[ClassAnswers]) -> Vec<Confusion<'_>> {
    let mut all: Vec<Confusion> = Vec::new();
    for (number, row) in classes.iter().enumerate() {
        let wrong = row.answers.iter().filter(|answer| answer.number != number);
        all.extend(wrong.map(|answer| Confusion {
            class: &row.class,
            of: row.images,
            answer: &answer.class,
            images: answer.images,
        }));
    }
    all.sort_by_key(|confusion| std::cmp::Reverse(confusion.images));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_counted() {
        let mut score = Score::new(6);
        let logits = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
        for label in 0..6 {
            score.add(&logits, &[label]).unwrap();
        }
        assert_eq!((score.images, score.right1, score.right5), (6, 1, 5));
        let mut ties = Score::new(2);
        ties.add(&[1.0, 1.0, f32::NAN, 0.0], &[1, 0]).unwrap();
        assert_eq!((ties.images, ties.right1, ties.right5), (2, 0, 1));
        assert!(score.add(&logits, &[6]).is_err());
        assert!(score.add(&logits, &[0, 1]).is_err());
    }

    #[test]
    fn answers_are_counted_by_class() {
        let labels = ["cat", "dog", "owl"].map(String::from);
        let mut score = Score::new(3);
        let answered = |class: usize| (0..3).map(move |c| if c == class { 2.0 } else { -1.0 });
        // Cats: 3 right, 2 dogs, 1 owl. Dogs: an owl, and an image without an answer. Owls: none.
        for (label, answer, times) in [(0, 0, 3), (0, 2, 1), (0, 1, 2), (1, 2, 1)] {
            for _ in 0..times {
                score.add(&answered(answer).collect::<Vec<f32>>(), &[label]).unwrap();
            }
        }
        score.add(&[f32::NAN; 3], &[1]).unwrap();
        let classes = score.by_class(&labels);
        let row = |class: &ClassAnswers| -> Vec<(usize, u64)> {
            class.answers.iter().map(|answer| (answer.number, answer.images)).collect()
        };
        assert_eq!(classes.iter().map(row).collect::<Vec<_>>(), [vec![(0, 3), (1, 2), (2, 1)], vec![(2, 1)], vec![]]);
        assert_eq!(classes.iter().map(|class| class.images).collect::<Vec<_>>(), [6, 2, 0]);
        assert_eq!(
            (classes[0].accuracy(0), classes[1].accuracy(1), classes[2].accuracy(2)),
            (Some(0.5), Some(0.0), None)
        );
        assert_eq!(worst_first(&classes), [1, 0]);
        let found: Vec<_> = confusions(&classes).iter().map(|c| (c.class, c.answer, c.images, c.of)).collect();
        assert_eq!(found, [("cat", "dog", 2, 6), ("cat", "owl", 1, 6), ("dog", "owl", 1, 2)]);
        // The diagonal is the accuracy.
        let right: u64 = classes.iter().enumerate().map(|(number, class)| class.right(number)).sum();
        assert_eq!(right, score.right1);
    }
}
