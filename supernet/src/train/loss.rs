//! Losses over logits `[batch, classes]`: cross-entropy with label smoothing, and cross-entropy against a teacher's
//! softmax.

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
/// A label that is no class.
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
            return Err(Error::Data(format!("label {label} with only {classes} classes (labels start at 0)")));
        }
        targets[row * classes + label as usize] = (1.0 - smoothing + smoothing / classes as f64) as f32;
    }
    Ok(Tensor::from_vec(targets, (labels.len(), classes), device)?)
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

/// Number of rows of `logits` whose largest entry is the label (the first one among equals).
///
/// # Errors
/// A tensor operation failed.
pub fn correct(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let found = logits.detach().to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(found.iter().zip(labels).filter(|(found, label)| found == label).count())
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn labels_are_checked_and_counted() {
        assert!(smoothed_targets(&[3], 3, 0.1, &Device::Cpu).unwrap_err().to_string().contains("label 3"));
        let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
        assert_eq!(correct(&logits, &[2, 2]).unwrap(), 1);
    }
}
