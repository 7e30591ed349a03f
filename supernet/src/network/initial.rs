//! Initial weights other than those of [`Supernet::new`].

use crate::graph::{Graph, Op, Region, RegionKind, Slot};
use crate::network::Supernet;
use crate::space::NetworkSpec;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

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

    /// Sets the first filters of the first convolution, as many as it has channels for; further channels keep theirs.
    ///
    /// # Errors
    /// A filter of another length than `[colour, row, column]` of the convolution, or a failed tensor operation.
    pub(crate) fn set_stem_filters(&self, filters: &[Vec<f32>]) -> Result<()> {
        let Some(stem) = self.stem.first() else { return Ok(()) };
        let var = self.parameters.var(stem.weight);
        let mut values = var.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let length = values.len() / var.dims()[0];
        if filters.iter().any(|filter| filter.len() != length) {
            return Err(Error::Internal(format!("a filter of the first convolution has {length} values")));
        }
        for (to, filter) in values.chunks_exact_mut(length).zip(filters) {
            to.copy_from_slice(filter);
        }
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu)?;
        Ok(var.set(&values.to_dtype(var.dtype())?.to_device(var.device())?)?)
    }
}

/// Own names of the scales of the last batch norms of residual blocks.
fn last_scales(network: &NetworkSpec, has_first_block: bool) -> Vec<String> {
    let graph = Graph::of(network);
    let blocks = graph.layers().iter().filter(|layer| matches!(layer.kind, RegionKind::Block { .. }));
    let last_norms = blocks.filter_map(|block| last_norm(&graph, block));
    last_norms.map(|norm| format!("{}.weight", graph.own_name(norm, has_first_block))).collect()
}

/// The norm whose output the shortcut is added to, if the block ends with that sum or its activation.
fn last_norm<'a>(graph: &'a Graph, block: &Region) -> Option<&'a Slot> {
    let mut last = &graph.nodes()[block.nodes.end - 1];
    if let (Op::Activation(_), &[input]) = (last.op, last.inputs()) {
        last = graph.node(input);
    }
    let main = *last.inputs().first().filter(|_| last.op == Op::Add)?;
    graph.slots().iter().find(|slot| slot.node == main && graph.node(main).op == Op::BatchNorm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Mode;
    use crate::ops::testing;
    use crate::space::{BlockSpec, preset};

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
            let images = testing::tensor((4, 32, 32, 3), 0);
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

    #[test]
    fn the_norm_before_a_shortcut_is_found_by_name() {
        let last_norm = |nodes: &str| {
            let block: BlockSpec = serde_json::from_value(format!("fused 8x8x8: {nodes}").into()).unwrap();
            let graph = block.graph(1e-5);
            super::last_norm(&graph, &graph.layers()[0]).map(|slot| slot.name().to_string())
        };
        let residual = "a=conv 16 k3 s1; n=norm; relu; b=conv 8 k1 s1; last=norm; add of 5 0";
        assert_eq!(last_norm(residual).as_deref(), Some("last"));
        assert_eq!(last_norm(&format!("{residual}; relu")).as_deref(), Some("last"));
        assert_eq!(last_norm("a=conv 16 k3 s1; n=norm; relu"), None);
        assert_eq!(last_norm("a=conv 8 k3 s1; n=norm; relu; add of 3 0"), None);
    }
}
