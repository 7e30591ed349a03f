//! Putting a subnet's weights into the supernet: the inverse of cutting them out.

use crate::graph::{Graph, Op};
use crate::network::Supernet;
use crate::space::Subnet;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::HashMap;

/// Values of a tensor with its shape.
pub type Values = (Vec<usize>, Vec<f32>);

impl Supernet {
    /// Puts the weights and statistics of `subnet`, under the names that [`cut`](Supernet::cut) gives them, to where
    /// they are cut from: first channels, centre of kernels. Around a smaller kernel the larger ones become zero, and
    /// matrices from larger to smaller kernels the identity, so that all sizes start as the same function. All else
    /// stays; without `with_classifier` the classifier too.
    ///
    /// # Errors
    /// A subnet outside the space; a tensor that is missing, has another shape or holds a value that is not finite.
    /// Nothing is changed then.
    pub fn paste(&self, subnet: &Subnet, tensors: &HashMap<String, Values>, with_classifier: bool) -> Result<()> {
        let network = self.space().network(subnet, self.classes())?;
        let graph = Graph::of(&network);
        let active = self.active(&network)?;
        let mut norms = self.norms(&network);
        let mut state = self.state()?;
        let mut whole: Vec<Tensor> = self.parameters().iter().map(|parameter| state[&parameter.name].clone()).collect();
        // The classifier is last.
        let slots = graph.slots().len() - usize::from(!with_classifier);
        for (slot, active) in graph.slots().iter().zip(&active).take(slots) {
            let name = graph.name(slot);
            let mut given = Vec::new();
            for (part, shape) in graph.tensors(slot) {
                match tensors.get(&format!("{name}.{part}")) {
                    Some((dims, values)) if *dims == shape => {
                        given.push(Tensor::from_slice(values, shape, &Device::Cpu)?);
                    }
                    _ => return Err(Error::Weights(format!("'{name}.{part}' of shape {shape:?} is missing"))),
                }
            }
            if graph.node(slot.node).op == Op::BatchNorm
                && let Some(norm) = norms.next()
            {
                for (part, statistic) in ["running_mean", "running_var"].iter().zip(given.split_off(active.len())) {
                    let key = format!("{}.{part}", norm.name);
                    let changed =
                        state[&key].slice_assign(std::slice::from_ref(&(0..statistic.elem_count())), &statistic)?;
                    state.insert(key, changed);
                }
            }
            for (active, values) in active.iter().zip(given) {
                active.put(&values, &mut whole)?;
            }
        }
        state.extend(self.parameters().iter().map(|parameter| parameter.name.clone()).zip(whole));
        self.load_state(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Mode;
    use crate::ops::testing;
    use crate::seed::{Stream, generator};
    use crate::space::preset;

    #[test]
    fn a_subnet_that_was_cut_out_is_put_back_with_the_same_bits() {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for name in ["tiny", "cifar-k5", "resnet-tiny", "attentive-tiny"] {
            let space = preset(name).unwrap();
            let [trained, net] = [1, 2].map(|seed| Supernet::new(&space, 10, seed).unwrap());
            let mut rng = generator(7, Stream::Sampling, &[]);
            for subnet in [space.smallest(), space.sample(&mut rng), space.sample(&mut rng), space.largest()] {
                let statistics = trained.running_statistics(&subnet).unwrap();
                let cut = trained.cut(&subnet, &statistics).unwrap();
                let mut tensors: HashMap<String, Values> =
                    cut.iter().map(|(name, tensor)| (name.clone(), (tensor.dims().to_vec(), values(tensor)))).collect();
                // Statistics of a training are not those of a new network.
                for (name, (_, values)) in &mut tensors {
                    if name.contains("running_") {
                        values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 + 0.01 * i as f32);
                    }
                }
                let before = net.state().unwrap();
                net.paste(&subnet, &tensors, false).unwrap();
                let after = net.state().unwrap();
                assert_eq!(values(&after["classifier.weight"]), values(&before["classifier.weight"]));
                net.paste(&subnet, &tensors, true).unwrap();
                let statistics = net.running_statistics(&subnet).unwrap();
                for (name, tensor) in net.cut(&subnet, &statistics).unwrap() {
                    assert_eq!(values(&tensor), tensors[&name].1, "{subnet}: {name}");
                }
                let side = subnet.resolution;
                let images = testing::tensor((2, side, side, 3), 0);
                let logits =
                    |net: &Supernet| values(&net.forward(&images, &subnet, Mode::Evaluate(&statistics)).unwrap());
                assert_eq!(logits(&net), logits(&trained), "{subnet}");
                let (name, (dims, values)) = tensors.iter_mut().next().unwrap();
                (dims[0], values[0]) = (dims[0] + 1, 0.5);
                let name = name.clone();
                let error = net.paste(&subnet, &tensors, true).unwrap_err().to_string();
                assert!(error.contains(&name), "{error}");
            }
        }
    }
}
