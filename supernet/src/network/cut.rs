//! Cutting a subnet's weights out of the supernet.

use crate::graph::{Graph, Op};
use crate::layers::{Moments, tensors};
use crate::network::{Statistics, Supernet};
use crate::space::Subnet;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

impl Supernet {
    /// The weights of `subnet` as a static network with the given statistics: tensors under the names and in the shapes
    /// of the graph's slots (timm's names, PyTorch's layouts), each contiguous f32 on the CPU.
    ///
    /// # Errors
    /// A subnet outside the space, or statistics of another subnet.
    pub fn cut(&self, subnet: &Subnet, statistics: &Statistics) -> Result<Vec<(String, Tensor)>> {
        let network = self.space().network(subnet, self.classes())?;
        let graph = Graph::of(&network);
        let mut statistics = statistics.layers.iter();
        let mut named = Vec::new();
        for (slot, mut active) in graph.slots().iter().zip(tensors(&self.active(&network)?, false)?) {
            let name = graph.name(slot);
            let node = graph.node(slot.node);
            if node.op == Op::BatchNorm {
                let channels = node.shape.channels;
                let Some(Moments { mean, variance }) = statistics.next().filter(|moments| moments.fit(channels)) else {
                    return Err(Error::Subnet(format!("{name}: the statistics do not belong to this subnet")));
                };
                active.push(Tensor::from_slice(mean.as_slice(), channels, &Device::Cpu)?);
                active.push(Tensor::from_slice(variance.as_slice(), channels, &Device::Cpu)?);
            }
            for ((part, shape), tensor) in graph.tensors(slot).into_iter().zip(active) {
                let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.reshape(shape)?.contiguous()?;
                named.push((format!("{name}.{part}"), tensor));
            }
        }
        if statistics.next().is_some() {
            return Err(Error::Subnet(format!("{subnet}: the statistics belong to a deeper subnet")));
        }
        Ok(named)
    }
}
