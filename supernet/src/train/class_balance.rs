//! Classes with different numbers of images: weights in the loss, or as many draws of each class.

use super::checks::{LARGE, fail};
use crate::Result;
use crate::data::{Dataset, Split, balanced_order, epoch_order};
use serde::{Deserialize, Serialize};

/// What makes up for classes with different numbers of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClassBalance {
    /// An image's cross-entropy has a weight in inverse proportion to the images of its class.
    Loss,
    /// Each class is drawn as often as the others: images of small classes repeat, with other random changes.
    Sampling,
    /// An image's cross-entropy has the weight of its class.
    Weights(Vec<f64>),
}

impl ClassBalance {
    /// Checks the weights, as far as that is possible without the data.
    pub(super) fn validate(&self) -> Result<()> {
        let ClassBalance::Weights(weights) = self else { return Ok(()) };
        match weights.iter().find(|&&weight| !(weight > 0.0 && weight <= LARGE)) {
            Some(wrong) => fail(format!("class_balance.weights holds {wrong}; it must be above 0 and at most {LARGE}")),
            None => Ok(()),
        }
    }
}

/// Weights of the classes in the cross-entropy, of mean 1 over the training images; empty: all are 1.
///
/// # Errors
/// Another number of weights than classes.
pub(super) fn class_weights(balance: Option<&ClassBalance>, data: &Dataset) -> Result<Vec<f32>> {
    let classes = data.classes.len();
    let mut images = vec![0usize; classes];
    (0..data.train.len()).for_each(|index| images[data.train.label(index) as usize] += 1);
    let weights: Vec<f64> = match balance {
        None | Some(ClassBalance::Sampling) => return Ok(Vec::new()),
        Some(ClassBalance::Loss) => images.iter().map(|&count| 1.0 / count.max(1) as f64).collect(),
        Some(ClassBalance::Weights(weights)) if weights.len() != classes => {
            return fail(format!("class_balance.weights has {} numbers for {classes} classes", weights.len()));
        }
        Some(ClassBalance::Weights(weights)) => weights.clone(),
    };
    let sum: f64 = weights.iter().zip(&images).map(|(weight, &count)| weight * count as f64).sum();
    let scale = data.train.len() as f64 / sum;
    Ok(weights.iter().map(|weight| (weight * scale) as f32).collect())
}

/// Order of the training images in an epoch.
pub(super) fn order(
    balance: Option<&ClassBalance>,
    images: &Split,
    classes: usize,
    seed: u64,
    epoch: u64,
) -> Vec<usize> {
    match balance {
        Some(ClassBalance::Sampling) => balanced_order(images, classes, seed, epoch),
        _ => epoch_order(images.len(), seed, epoch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataOptions;

    #[test]
    fn weights_are_inverse_to_the_images_and_of_mean_one() {
        let options = DataOptions { validation: Some(0), builtin_train: 60, builtin_test: 20, ..Default::default() };
        let data = Dataset::open("builtin", &options).unwrap();
        let of = |class: u32, count| (0..60).filter(|&n| data.train.label(n) == class).take(count).collect::<Vec<_>>();
        let train = data.train.subset(&[of(0, 4), of(1, 1), of(2, 3)].concat());
        let data = Dataset { train, classes: data.classes[..3].to_vec(), ..data.clone() };
        let weights = class_weights(Some(&ClassBalance::Loss), &data).unwrap();
        for (weight, images) in weights.iter().zip([4.0, 1.0, 3.0]) {
            assert!((weight * images - 8.0 / 3.0).abs() < 1e-5, "{weights:?}");
        }
        let given = class_weights(Some(&ClassBalance::Weights(vec![1.0, 9.0, 1.0])), &data).unwrap();
        assert_eq!(given, [0.5, 4.5, 0.5]);
        assert!(class_weights(None, &data).unwrap().is_empty());
        let error = class_weights(Some(&ClassBalance::Weights(vec![1.0])), &data).unwrap_err().to_string();
        assert!(error.contains("1 numbers for 3 classes"), "{error}");
        assert!(ClassBalance::Weights(vec![1.0, -1.0]).validate().unwrap_err().to_string().contains("-1"));
    }

    #[test]
    fn files_say_a_word_or_weights() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Table {
            balance: ClassBalance,
        }
        for (text, balance) in [
            ("balance = \"loss\"", ClassBalance::Loss),
            ("balance = \"sampling\"", ClassBalance::Sampling),
            ("balance = { weights = [1.0, 2.5] }", ClassBalance::Weights(vec![1.0, 2.5])),
        ] {
            assert_eq!(toml::from_str::<Table>(text).unwrap(), Table { balance: balance.clone() });
            let written = toml::to_string(&Table { balance: balance.clone() }).unwrap();
            assert_eq!(toml::from_str::<Table>(&written).unwrap(), Table { balance });
        }
    }
}
