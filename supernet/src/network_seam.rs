//! A backward pass in two halves: the gradients of the later layers are there, and can be sent, while those of the earlier ones are computed.

use crate::layers::ParameterId;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// Where a forward pass was cut in two.
pub(crate) struct Seam {
    /// Output of the earlier half.
    output: Tensor,
    /// The same values as a variable, at which backward from the logits ends.
    input: Var,
    first_later: ParameterId,
}

impl Seam {
    /// Below `output`; the block above has its parameters from `first_later` on.
    pub(crate) fn new(output: Tensor, first_later: ParameterId) -> candle_core::Result<Self> {
        let input = Var::from_tensor(&output.detach())?;
        Ok(Seam { output, input, first_later })
    }

    /// What the later half reads.
    pub(crate) fn input(&self) -> &Tensor {
        self.input.as_tensor()
    }

    /// Place in the network's list from which on parameters belong to the later half. The list is in the order of the layers.
    pub(crate) fn first_later(&self) -> usize {
        self.first_later.place()
    }

    /// Gradients of the earlier half; `later` is what backward from the logits found.
    pub(crate) fn backward(self, later: &GradStore) -> Result<GradStore> {
        let gradient = later.get(&self.input).ok_or_else(|| Error::Config("backward ended above its middle".into()))?;
        // Backward starts from ones, so that this product's is the gradient itself.
        Ok((self.output * gradient.detach())?.backward()?)
    }
}

#[cfg(test)]
mod tests {
    use crate::network::{Mode, Supernet};
    use crate::seed::{Purpose, generator};
    use crate::space::preset;
    use candle_core::{Device, Tensor};

    #[test]
    fn two_halves_give_the_bits_of_one_backward_pass_each_for_its_own_parameters() {
        for (name, resolution) in [("tiny", 32), ("cifar-mbv3", 32), ("resnet-tiny", 32), ("proxyless-w1.0", 64)] {
            let space = preset(name).unwrap();
            let net = Supernet::new(&space, 10, 1).unwrap();
            let images = Tensor::randn(0f32, 1.0, (4, resolution, resolution, 3), &Device::Cpu).unwrap();
            for subnet in [space.smallest(), space.middle(), space.largest()] {
                let mut rng = generator(0, Purpose::Dropout, &[]);
                let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0 };
                let whole = net.forward(&images, &subnet, mode).unwrap().sqr().unwrap().backward().unwrap();
                let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0 };
                let (logits, seam) = net.forward_in_halves(&images, &subnet, mode).unwrap();
                let first_later = seam.first_later();
                let later = logits.sqr().unwrap().backward().unwrap();
                let earlier = seam.backward(&later).unwrap();
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
}
