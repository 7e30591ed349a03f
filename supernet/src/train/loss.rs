//! Losses over logits `[batch, classes]`: cross-entropy with label smoothing, distillation from a teacher's softmax,
//! and what a subnet of a step minimises.

use super::stage::StageConfig;
use super::taught::Divergence;
use crate::data::{Batch, LabelShares};
use crate::{Error, Result};
use candle_core::{D, DType, Tensor, Var};

/// Log-softmax over the last dimension in f32, stable for any finite logits. Gradients flow.
///
/// # Errors
/// A tensor operation failed.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    // The shift cancels in value and in gradient, so it takes no part in the graph.
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&log_sum)?)
}

/// Smoothed one-hot targets `[batch, classes]`: `1 - smoothing + smoothing / classes` at the label, `smoothing /
/// classes` elsewhere (Szegedy et al., CVPR 2016, §7; the same as PyTorch's).
///
/// # Errors
/// A label that is not a class.
pub fn smoothed_targets(
    labels: &[u32],
    classes: usize,
    smoothing: f64,
    device: &candle_core::Device,
) -> Result<Tensor> {
    let rest = (smoothing / classes as f64) as f32;
    let mut targets = vec![rest; labels.len() * classes];
    for (row, &label) in labels.iter().enumerate() {
        if label as usize >= classes {
            return Err(no_class(label, classes));
        }
        targets[row * classes + label as usize] = (1.0 - smoothing + smoothing / classes as f64) as f32;
    }
    Ok(Tensor::from_vec(targets, (labels.len(), classes), device)?)
}

/// Targets `[batch, classes]` of images with labels in `shares`, each smoothed as [`smoothed_targets`] does, times the
/// weight of its class in `class_weights` (empty: all are 1).
///
/// # Errors
/// A label that is not a class.
pub fn shared_targets(
    shares: &[LabelShares],
    class_weights: &[f32],
    classes: usize,
    smoothing: f64,
    device: &candle_core::Device,
) -> Result<Tensor> {
    let mut targets = vec![0.0f32; shares.len() * classes];
    for (row, shares) in targets.chunks_exact_mut(classes).zip(shares) {
        for &(label, share) in shares.iter().filter(|(_, share)| *share > 0.0) {
            if label as usize >= classes {
                return Err(no_class(label, classes));
            }
            let weight = f64::from(share) * f64::from(class_weights.get(label as usize).copied().unwrap_or(1.0));
            row.iter_mut().for_each(|target| *target += (weight * smoothing / classes as f64) as f32);
            row[label as usize] += (weight * (1.0 - smoothing)) as f32;
        }
    }
    Ok(Tensor::from_vec(targets, (shares.len(), classes), device)?)
}

/// Targets of a batch where they are not only the smoothed labels: its images are mixed, or classes have weights.
pub(super) fn own_targets(
    batch: &Batch,
    class_weights: &[f32],
    classes: usize,
    smoothing: f64,
    device: &candle_core::Device,
) -> Result<Option<Tensor>> {
    let alone = |&label: &u32| [(label, 1.0), (0, 0.0), (0, 0.0), (0, 0.0)];
    let shares: Vec<LabelShares> = match (batch.shares.is_empty(), class_weights.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => batch.labels.iter().map(alone).collect(),
        (false, _) => batch.shares.clone(),
    };
    shared_targets(&shares, class_weights, classes, smoothing, device).map(Some)
}

fn no_class(label: u32, classes: usize) -> crate::Error {
    crate::Error::Data(format!("label {label} with only {classes} classes (labels start at 0)"))
}

/// A teacher's soft targets: the softmax of its logits, detached from its graph.
///
/// # Errors
/// A tensor operation failed.
pub fn soft_targets(teacher_logits: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(&teacher_logits.detach())?.exp()?.detach())
}

/// Mean over the batch of `-sum(targets x log_probabilities)`, a scalar.
///
/// # Errors
/// Shapes that differ.
pub fn cross_entropy(log_probabilities: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let batch = log_probabilities.dim(0)?;
    Ok((log_probabilities * targets)?.sum_all()?.affine(-1.0 / batch as f64, 0.0)?)
}

/// The gradient of `loss` at `logits`, of which it was computed.
///
/// # Errors
/// A loss that does not depend on `logits`, or a failed tensor operation.
pub fn gradient_at(logits: &Var, loss: &Tensor) -> Result<Tensor> {
    let gradient = loss.backward()?.remove(logits);
    gradient.ok_or_else(|| Error::Internal("a loss does not depend on the logits".into())).map(|found| found.detach())
}

/// Losses of one subnet.
pub struct SubnetLoss {
    /// What is minimised.
    pub total: Tensor,
    /// Cross-entropy with the targets.
    pub cross_entropy: Tensor,
    /// Cross-entropy with the teacher's soft targets, if there is a teacher.
    pub distillation: Option<Tensor>,
}

/// Losses of a subnet with `logits`: cross-entropy with `targets`; with a teacher's `soft` targets
/// `ramp (labels x cross_entropy + kd_ratio x divergence)`, as `stage` has it.
///
/// # Errors
/// Shapes that differ.
pub fn of_subnet(
    logits: &Tensor,
    targets: &Tensor,
    soft: Option<&Tensor>,
    stage: &StageConfig,
    ramp: f64,
) -> Result<SubnetLoss> {
    let log_probabilities = log_softmax(logits)?;
    let hard = cross_entropy(&log_probabilities, targets)?;
    let Some(soft) = soft else {
        return Ok(SubnetLoss { total: hard.clone(), cross_entropy: hard, distillation: None });
    };
    let distillation = cross_entropy(&log_probabilities, soft)?;
    let divergence = match stage.taught.divergence {
        Divergence::CrossEntropy => distillation.clone(),
        Divergence::Alpha => cross_entropy(&log_probabilities, &alpha_targets(soft, &log_probabilities)?)?,
    };
    let taught = (divergence * stage.kd_ratio)?;
    let mut total = match stage.taught.labels {
        0.0 => taught,
        1.0 => (&hard + taught)?,
        labels => ((&hard * labels)? + taught)?,
    };
    if ramp != 1.0 {
        total = (total * ramp)?;
    }
    Ok(SubnetLoss { total, cross_entropy: hard, distillation: Some(distillation) })
}

/// Bound of the ratio of probabilities in an alpha-divergence.
const LARGEST_RATIO: f32 = 5.0;

/// Targets whose cross-entropy with a subnet's predictions `q` has the gradient of an alpha-divergence from the
/// teacher's `p`: for each image that with alpha 1 or -1, whichever is larger (Wang et al., ICML 2021, §4.2).
///
/// With `r = p / q`, the gradient of both is that of `-sum(q rho ln q)`, where `q rho` is held fixed: alpha 1 has
/// `rho = r`, so that `q rho = p`, and alpha -1 has `rho = -min(1 / r, 5)`.
fn alpha_targets(soft: &Tensor, log_probabilities: &Tensor) -> Result<Tensor> {
    let (images, classes) = soft.dims2()?;
    let values =
        |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()?) };
    let (teacher, student) = (values(soft)?, values(log_probabilities)?);
    let mut targets = Vec::with_capacity(images * classes);
    for (p, log_q) in teacher.chunks_exact(classes).zip(student.chunks_exact(classes)) {
        // 0 / 0 gives the bound, which is then multiplied by 0.
        let inverse = |(p, log_q): (&f32, &f32)| (log_q.exp() / p).min(LARGEST_RATIO);
        let pairs = || p.iter().zip(log_q);
        let too_low: f32 = pairs().filter(|(p, _)| **p > 0.0).map(|(p, log_q)| p * (p.ln() - log_q)).sum();
        let too_high: f32 = pairs().map(|pair| 0.5 * pair.1.exp() * (inverse(pair) - 1.0)).sum();
        match too_high > too_low {
            true => targets.extend(pairs().map(|pair| -pair.1.exp() * inverse(pair))),
            false => targets.extend_from_slice(p),
        }
    }
    Ok(Tensor::from_vec(targets, (images, classes), soft.device())?)
}

/// Number of rows of `logits` whose largest entry is the label (the first one among equals).
///
/// # Errors
/// A tensor operation failed.
pub fn correct(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let found = logits.detach().to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(found.iter().zip(labels).filter(|(found, label)| found == label).count())
}

/// Sum over the rows of `logits` of the logarithm of the probability that softmax gives to the label.
///
/// # Errors
/// A label that is not a class; a tensor operation failed.
pub fn log_likelihood(logits: &Tensor, labels: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for (row, &label) in logits.detach().to_dtype(DType::F32)?.to_vec2::<f32>()?.iter().zip(labels) {
        let own = *row.get(label as usize).ok_or_else(|| no_class(label, row.len()))?;
        // Relative to the largest, so that no exponential overflows.
        let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let all: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        sum += f64::from(own) - largest - all.ln();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::taught::Taught;
    use super::*;
    use candle_core::Device;

    const LOGITS: [[f32; 3]; 2] = [[0.3, -1.2, 2.0], [90.0, -40.0, 89.0]];
    const TEACHER: [[f32; 3]; 2] = [[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]];
    const LABELS: [u32; 2] = [2, 0];

    fn softmax(row: &[f32; 3]) -> [f64; 3] {
        let max = row.iter().fold(f64::MIN, |m, &v| m.max(f64::from(v)));
        let exp = row.map(|v| (f64::from(v) - max).exp());
        let sum: f64 = exp.iter().sum();
        exp.map(|e| e / sum)
    }

    #[test]
    fn values_and_gradients_agree_with_f64() {
        let logits = Var::new(&LOGITS, &Device::Cpu).unwrap();
        let teacher = Tensor::new(&TEACHER, &Device::Cpu).unwrap();
        let log_p = log_softmax(logits.as_tensor()).unwrap();
        let ce = cross_entropy(&log_p, &smoothed_targets(&LABELS, 3, 0.1, &Device::Cpu).unwrap()).unwrap();
        let kd = cross_entropy(&log_p, &soft_targets(&teacher).unwrap()).unwrap();
        let loss = (&ce + kd.affine(0.7, 0.0).unwrap()).unwrap();
        let gradient = gradient_at(&logits, &loss).unwrap().to_vec2::<f32>().unwrap();

        let (mut expected_ce, mut expected_kd) = (0.0, 0.0);
        for row in 0..2 {
            let p = softmax(&LOGITS[row]);
            let t = softmax(&TEACHER[row]);
            for class in 0..3 {
                let q = 0.1 / 3.0 + if class == LABELS[row] as usize { 0.9 } else { 0.0 };
                expected_ce -= q * p[class].max(1e-300).ln() / 2.0;
                expected_kd -= t[class] * p[class].max(1e-300).ln() / 2.0;
                // d(loss)/d(logit) = (p sum(q) - q) / batch for each of the two targets.
                let expected = ((p[class] - q) + 0.7 * (p[class] - t[class])) / 2.0;
                assert!((f64::from(gradient[row][class]) - expected).abs() < 1e-6, "{row},{class}");
            }
        }
        for (tensor, expected) in [(ce, expected_ce), (kd, expected_kd)] {
            let value = f64::from(tensor.to_scalar::<f32>().unwrap());
            assert!((value - expected).abs() < 1e-5 * expected.abs().max(1.0), "{value} {expected}");
        }
    }

    /// Loss of [`of_subnet`] with `taught` and kd_ratio 0.7, and its gradient.
    fn taught(rows: [[f32; 3]; 2], teacher: [[f32; 3]; 2], taught: Taught, ramp: f64) -> (SubnetLoss, Vec<Vec<f32>>) {
        let space = crate::space::preset("tiny").unwrap();
        let mut stage = crate::train::TrainConfig::preset("tiny", &space).unwrap().stages.pop().unwrap();
        (stage.taught, stage.kd_ratio) = (taught, 0.7);
        let logits = Var::new(&rows, &Device::Cpu).unwrap();
        let teacher = soft_targets(&Tensor::new(&teacher, &Device::Cpu).unwrap()).unwrap();
        let targets = smoothed_targets(&LABELS, 3, 0.1, &Device::Cpu).unwrap();
        let loss = of_subnet(logits.as_tensor(), &targets, Some(&teacher), &stage, ramp).unwrap();
        let gradients = loss.total.backward().unwrap();
        let gradient = gradients.get(logits.as_tensor()).unwrap().to_vec2().unwrap();
        (loss, gradient)
    }

    #[test]
    fn a_taught_subnet_weighs_labels_and_teacher_and_rises() {
        let value = |tensor: &Tensor| f64::from(tensor.to_scalar::<f32>().unwrap());
        for (labels, ramp) in [(1.0, 1.0), (0.0, 1.0), (0.25, 1.0), (0.25, 0.1), (0.0, 0.5)] {
            let (loss, _) = taught(LOGITS, TEACHER, Taught { labels, ..Taught::default() }, ramp);
            let [hard, soft] = [&loss.cross_entropy, loss.distillation.as_ref().unwrap()].map(value);
            let expected = ramp * (labels * hard + 0.7 * soft);
            assert!((value(&loss.total) - expected).abs() < 1e-5 * expected, "{labels} {ramp}");
        }
    }

    /// Sum of `q f(p / q)` of a row, where `f` is that of alpha 1, or of alpha -1.
    fn divergences(row: &[f32; 3], teacher: &[f32; 3]) -> [f64; 2] {
        let (q, p) = (softmax(row), softmax(teacher));
        let pairs = || q.iter().zip(&p);
        [pairs().map(|(q, p)| p * (p / q).ln()).sum(), pairs().map(|(q, p)| q * (q / p - 1.0) / 2.0).sum()]
    }

    #[test]
    fn alpha_divergence_has_the_gradient_of_the_larger_one() {
        let alpha = Taught { labels: 0.0, divergence: Divergence::Alpha, ..Taught::default() };
        // Probabilities that are too high, and too low; all ratios are within the bound.
        let (rows, teacher) = ([[0.3, -0.5, 0.8], [-1.5, 0.5, 0.4]], [[0.5, 0.0, -0.4], [1.0, 0.0, 0.0]]);
        let (_, gradient) = taught(rows, teacher, alpha.clone(), 1.0);
        for (image, larger) in [1, 0].into_iter().enumerate() {
            let of = |row: &[f32; 3]| divergences(row, &teacher[image]);
            let both = of(&rows[image]);
            assert!(both[larger] > both[1 - larger], "{both:?}");
            for class in 0..3 {
                let shifted = |by: f32| {
                    let mut row = rows[image];
                    row[class] += by;
                    of(&row)[larger]
                };
                let expected = 0.7 * (shifted(1e-2) - shifted(-1e-2)) / 2e-2 / 2.0;
                let found = f64::from(gradient[image][class]);
                assert!((found - expected).abs() < 1e-3, "{image} {class}: {found} {expected}");
            }
        }
        // Probabilities of zero, and ratios above the bound.
        let (_, gradient) = taught([LOGITS[1]; 2], [[-90.0, 90.0, 0.0], LOGITS[1]], alpha, 1.0);
        assert!(gradient.iter().flatten().all(|g| g.is_finite()), "{gradient:?}");
        assert!(gradient[1].iter().all(|g| g.abs() < 1e-6), "{gradient:?}");
    }

    #[test]
    fn the_log_likelihood_is_that_of_the_labels() {
        let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
        let expected: f64 = LOGITS.iter().zip(LABELS).map(|(row, label)| softmax(row)[label as usize].ln()).sum();
        let found = log_likelihood(&logits, &LABELS).unwrap();
        assert!((found - expected).abs() < 1e-9, "{found} in place of {expected}");
        assert!(log_likelihood(&logits, &[0, 3]).is_err());
    }

    #[test]
    fn shared_targets_are_the_weighted_mean_of_the_labels_targets() {
        let (a, b, none) = ((2, 0.75), (0, 0.25), (0, 0.0));
        let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let single = |label| values(smoothed_targets(&[label], 3, 0.1, &Device::Cpu).unwrap());
        for (weights, [of_a, of_b]) in [(&[][..], [1.0, 1.0]), (&[4.0, 1.0, 0.5], [0.5, 4.0])] {
            let found = values(shared_targets(&[[a, b, none, none]], weights, 3, 0.1, &Device::Cpu).unwrap());
            for ((found, a), b) in found.iter().zip(single(2)).zip(single(0)) {
                assert!((found - (0.75 * of_a * a + 0.25 * of_b * b)).abs() < 1e-6, "{found}");
            }
        }
        let error = shared_targets(&[[(3, 1.0), none, none, none]], &[], 3, 0.1, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("label 3"));
    }

    #[test]
    fn labels_are_checked_and_counted() {
        assert!(smoothed_targets(&[3], 3, 0.1, &Device::Cpu).unwrap_err().to_string().contains("label 3"));
        let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
        assert_eq!(correct(&logits, &[2, 2]).unwrap(), 1);
    }
}
