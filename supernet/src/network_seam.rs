//! A backward pass in pieces: the gradients of the later layers are there, and can be sent, while those of the earlier
//! ones are computed; and layers that several subnets have in common are passed once.

use crate::ops::ChannelStatistics;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// The place at which a forward pass was cut in two.
pub(crate) struct Seam {
    /// Output of the earlier piece.
    output: Tensor,
    /// The output's values as a variable, at which backward from the logits ends.
    input: Var,
}

impl Seam {
    /// Below `output`.
    pub(crate) fn new(output: Tensor) -> candle_core::Result<Self> {
        let input = Var::from_tensor(&output.detach())?;
        Ok(Seam { output, input })
    }

    /// Input of the later piece.
    pub(crate) fn input(&self) -> &Tensor {
        self.input.as_tensor()
    }

    /// The gradient at the seam, taken out of what backward of the later piece found.
    pub(crate) fn gradient(&self, later: &mut GradStore) -> Result<Tensor> {
        let gradient =
            later.remove(&self.input).ok_or_else(|| Error::Internal("backward ended above a network's seam".into()))?;
        Ok(gradient.detach())
    }

    /// Gradients of the earlier piece, from the one at the seam.
    pub(crate) fn backward(self, gradient: &Tensor) -> Result<GradStore> {
        // Backward starts from ones, so that this product's is the gradient itself.
        Ok((self.output * gradient)?.backward()?)
    }
}

/// The first layers of several subnets, which they have in common. Each subnet starts from the seam; its gradients at
/// the seam are summed, and go back through these layers once.
pub(crate) struct Trunk {
    pub seam: Seam,
    /// Statistics that its batch norms used.
    pub used: Vec<ChannelStatistics>,
    /// Number of layers: the stem, and some blocks.
    pub layers: usize,
}

#[cfg(test)]
mod tests {
    use super::Trunk;
    use crate::network::{Mode, Supernet};
    use crate::seed::{Stream, generator};
    use crate::space::preset;
    use crate::train::gradients::Gradients;
    use crate::{SearchSpace, Subnet};
    use candle_core::{Device, Tensor};

    fn images(resolution: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (4, resolution, resolution, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn two_halves_give_the_bits_of_one_backward_pass_each_for_its_own_parameters() {
        for (name, resolution) in [("tiny", 32), ("cifar-mbv3", 32), ("resnet-tiny", 32), ("proxyless-w1.0", 64)] {
            let space = preset(name).unwrap();
            let net = Supernet::new(&space, 10, 1).unwrap();
            let images = images(resolution);
            for subnet in [space.smallest(), space.middle(), space.largest()] {
                let mut rng = generator(0, Stream::Dropout, &[]);
                let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0 };
                let whole = net.forward(&images, &subnet, mode).unwrap().sqr().unwrap().backward().unwrap();
                let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0 };
                let passed = net.forward_from(&images, None, &subnet, mode, true).unwrap();
                let (seam, first_later) = passed.middle.unwrap();
                let mut later = passed.logits.sqr().unwrap().backward().unwrap();
                let gradient = seam.gradient(&mut later).unwrap();
                let earlier = seam.backward(&gradient).unwrap();
                assert!((1..net.parameters().len()).contains(&first_later));
                for (place, parameter) in net.parameters().iter().enumerate() {
                    let (own, other) = if place < first_later { (&earlier, &later) } else { (&later, &earlier) };
                    let var = parameter.var.as_tensor();
                    assert!(other.get(var).is_none(), "{name} {subnet}: {}", parameter.name);
                    let bits = |gradient: &Tensor| -> Vec<u32> {
                        let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                        values.into_iter().map(f32::to_bits).collect()
                    };
                    assert_eq!(own.get(var).map(bits), whole.get(var).map(bits), "{name} {subnet}: {}", parameter.name);
                }
            }
        }
    }

    /// Gradients of the sum of all subnets' squared logits; with a trunk they go through it once, and through the last
    /// subnet in halves.
    fn gradients(net: &Supernet, images: &Tensor, subnets: &[Subnet], trunk: Option<Trunk>) -> Gradients {
        let mut all = Gradients::none(net.parameters().len());
        let mut at_trunk: Option<Tensor> = None;
        for (index, subnet) in subnets.iter().enumerate() {
            let mut rng = generator(0, Stream::Dropout, &[]);
            let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0 };
            let backward = |logits: Tensor| logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let in_halves = trunk.is_some() && index + 1 == subnets.len();
            let passed = net.forward_from(images, trunk.as_ref(), subnet, mode, in_halves).unwrap();
            net.move_running_statistics(subnet, &passed.used).unwrap();
            let mut found = backward(passed.logits);
            if let Some((seam, _)) = passed.middle {
                all.add(net.parameters(), &mut found).unwrap();
                let gradient = seam.gradient(&mut found).unwrap();
                found = seam.backward(&gradient).unwrap();
            }
            all.add(net.parameters(), &mut found).unwrap();
            if let Some(trunk) = &trunk {
                let own = trunk.seam.gradient(&mut found).unwrap();
                at_trunk = Some(match at_trunk {
                    Some(sum) => (sum + own).unwrap(),
                    None => own,
                });
            }
        }
        if let Some((trunk, gradient)) = trunk.zip(at_trunk) {
            all.add(net.parameters(), &mut trunk.seam.backward(&gradient).unwrap()).unwrap();
        }
        all
    }

    #[test]
    fn a_trunk_gives_the_gradients_and_running_statistics_of_separate_passes() {
        // Of one size, as in a step, and with the same stem.
        let largest_and_smallest = |space: &SearchSpace| {
            let largest = space.largest();
            let Subnet { resolution, widths, stem_blocks, .. } = largest.clone();
            vec![largest, Subnet { resolution, widths, stem_blocks, ..space.smallest() }]
        };
        let cases =
            [("tiny", 32, Some(2)), ("cifar-mbv3", 27, Some(2)), ("resnet-tiny", 32, Some(1)), ("tiny", 32, None)];
        for (name, resolution, layers) in cases {
            let space = preset(name).unwrap();
            let images = images(resolution);
            let mut subnets = largest_and_smallest(&space);
            if layers.is_none() {
                subnets[1] = subnets[0].clone();
            }
            let [one, other] = [(); 2].map(|()| Supernet::new(&space, 10, 1).unwrap());
            let trunk = other.trunk(&images, &subnets).unwrap().unwrap();
            let half = 1 + space.network(&subnets[1], 10).unwrap().middle_block();
            assert_eq!(trunk.layers, layers.unwrap_or(half), "{name}");
            let separate = gradients(&one, &images, &subnets, None);
            let together = gradients(&other, &images, &subnets, Some(trunk));
            let norm = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let most = separate.tensors().iter().flatten().map(norm).fold(0.0, f32::max);
            for ((parameter, a), b) in one.parameters().iter().zip(separate.tensors()).zip(together.tensors()) {
                let [Some(a), Some(b)] = [a, b] else {
                    assert!(a.is_none() && b.is_none(), "{name}: {}", parameter.name);
                    continue;
                };
                // Some are zero but for rounding: shifts that the next batch norm takes out again.
                let difference = norm(&(a - b).unwrap());
                assert!(difference <= 1e-5 * norm(a).max(1e-2 * most), "{name} {}: {difference}", parameter.name);
            }
            for subnet in &subnets {
                assert_eq!(
                    one.running_statistics(subnet).unwrap(),
                    other.running_statistics(subnet).unwrap(),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_trunk_ends_in_the_middle_at_the_latest_and_needs_something_in_common() {
        let space = preset("tiny").unwrap();
        let net = Supernet::new(&space, 10, 1).unwrap();
        let layers = |subnets: &[Subnet]| net.trunk(&images(24), subnets).unwrap().map(|trunk| trunk.layers);
        let largest = space.largest();
        let network = space.network(&largest, 10).unwrap();
        assert_eq!(layers(&[largest.clone(), largest.clone()]), Some(1 + network.middle_block()));
        assert_eq!(layers(std::slice::from_ref(&largest)), None);
        let smaller = Subnet { resolution: 24, ..space.smallest() };
        assert_eq!(layers(&[largest, smaller]), None);
    }
}
