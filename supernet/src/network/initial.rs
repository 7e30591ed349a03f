//! Initial weights other than those of [`Supernet::new`].

use crate::Result;
use crate::blocks::BlockSpec;
use crate::network::Supernet;
use crate::space::NetworkSpec;

impl Supernet {
    /// Sets the scale of the last batch norm of each residual block to zero: every block is the identity at first, so
    /// that early gradients reach all layers (Goyal et al. 2017, §5.1).
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn zero_last_scales(&self) -> Result<()> {
        let network = self.space().network(&self.space().largest(), self.classes())?;
        let names = last_scales(&network, self.space().first_block.is_some());
        for parameter in self.parameters().iter().filter(|parameter| names.contains(&parameter.name)) {
            parameter.var.set(&parameter.var.as_detached_tensor().zeros_like()?)?;
        }
        Ok(())
    }
}

/// Names of the scales of the last batch norms of residual blocks.
fn last_scales(network: &NetworkSpec, has_first_block: bool) -> Vec<String> {
    let mut names = Vec::new();
    for (s, blocks) in network.stages.iter().enumerate() {
        for (b, block) in blocks.iter().enumerate() {
            let name = match (has_first_block, s) {
                (true, 0) => "first".to_string(),
                (true, _) => format!("stages.{}.{b}", s - 1),
                (false, _) => format!("stages.{s}.{b}"),
            };
            match block {
                BlockSpec::InvertedResidual(spec) if !spec.residual => {}
                BlockSpec::InvertedResidual(_) => names.push(format!("{name}.project.norm.weight")),
                BlockSpec::Bottleneck(_) => names.push(format!("{name}.conv3.norm.weight")),
                BlockSpec::Custom(spec) => names.extend(spec.last_norm().map(|norm| format!("{name}.{norm}.weight"))),
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Mode;
    use crate::space::preset;
    use candle_core::{Device, Tensor};

    #[test]
    fn residual_blocks_start_as_the_identity() {
        for (name, count) in [("tiny", 3), ("resnet-tiny", 4)] {
            let space = preset(name).unwrap();
            let net = Supernet::new(&space, 10, 1).unwrap();
            net.zero_last_scales().unwrap();
            let zero = |p: &&crate::network::Parameter| {
                p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|&v| v == 0.0)
                    && p.name.ends_with("norm.weight")
            };
            let names: Vec<&str> = net.parameters().iter().filter(zero).map(|p| p.name.as_str()).collect();
            assert_eq!(names.len(), count, "{names:?}");
            // A deeper stage then computes what its first block does.
            let images = Tensor::randn(0f32, 1.0, (4, 32, 32, 3), &Device::Cpu).unwrap();
            let logits = |subnet| {
                let logits = net.forward(&images, &subnet, Mode::BatchStatistics).unwrap();
                logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            if name == "tiny" {
                let (deep, mut shallow) = (space.largest(), space.largest());
                shallow.stages.iter_mut().for_each(|blocks| blocks.truncate(1));
                for (a, b) in logits(deep).iter().zip(logits(shallow)) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }
}
