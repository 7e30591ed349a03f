//! Elastic layers of a block that is given as a graph.
//!
//! Tensors with one name in the graphs of all choices are one parameter, as large as the largest of them. A choice uses
//! the leading channels and the centre of the kernel.

use super::custom_channels::{Axis, Group, groups};
use super::{BlockSpec, CustomSpec};
use crate::graph::{Graph, NodeId, Op, Slot};
use crate::layers::{
    Active, BatchNorm, Initialiser, OuterChannels, ParameterId, ParameterKind, Parameters, Pass, channel_sorting,
};
use candle_core::{Result, Tensor, bail};

/// Elastic layers of the block.
#[derive(Debug)]
pub(crate) struct Custom {
    /// In the order of the largest choice's slots, then those that only other choices have.
    layers: Vec<(String, Layer)>,
    /// Channels inside the block that are sorted.
    groups: Vec<Group>,
}

/// Parameters of a slot.
#[derive(Debug)]
enum Layer {
    /// Weight `[out, in / groups, k, k]` and perhaps bias.
    Convolution(ParameterId, Option<ParameterId>),
    Norm(BatchNorm),
}

/// Largest extents of a slot's tensors.
struct Largest {
    name: String,
    is_norm: bool,
    weight: Vec<usize>,
    has_bias: bool,
    /// Kind of the weight; that of any other weight if choices differ.
    kind: ParameterKind,
}

/// Kind of the weight of a slot, whose output the nodes `readers` read.
fn kind(graph: &Graph, slot: &Slot, readers: &[NodeId]) -> ParameterKind {
    let is_norm = |reader: &NodeId| graph.node(*reader).op == Op::BatchNorm;
    let channels = graph.node(slot.node).shape.channels;
    match graph.node(slot.node).op {
        Op::Convolution { groups, .. } if groups > 1 && groups == channels => ParameterKind::Depthwise,
        Op::Convolution { kernel: 1, groups: 1, .. } if !readers.is_empty() && readers.iter().all(is_norm) => {
            ParameterKind::NormalisedPointwise
        }
        Op::BatchNorm => ParameterKind::Vector,
        _ => ParameterKind::OtherWeight,
    }
}

impl Largest {
    /// The extents over all graphs.
    fn of_all(graphs: &[Graph]) -> Result<Vec<Largest>> {
        let mut all: Vec<Largest> = Vec::new();
        let readers: Vec<Vec<Vec<NodeId>>> = graphs.iter().map(Graph::consumers).collect();
        let slots = graphs.iter().zip(&readers).flat_map(|(graph, readers)| {
            graph.slots().iter().map(move |slot| (graph, slot, &readers[slot.node.index()]))
        });
        for (graph, slot, readers) in slots {
            let kind = kind(graph, slot, readers);
            let tensors = graph.tensors(slot);
            let weight = tensors[0].1.clone();
            let is_norm = graph.node(slot.node).op == Op::BatchNorm;
            let has_bias = !is_norm && tensors.len() > 1;
            match all.iter_mut().find(|other| other.name == slot.name()) {
                Some(other) if other.is_norm != is_norm => {
                    bail!(
                        "the tensors '{}' belong to a convolution in one choice and to a norm in another",
                        slot.name()
                    )
                }
                Some(other) => {
                    other.weight.iter_mut().zip(weight).for_each(|(most, extent)| *most = extent.max(*most));
                    other.has_bias |= has_bias;
                    if other.kind != kind {
                        other.kind = ParameterKind::OtherWeight;
                    }
                }
                None => all.push(Largest { name: slot.name().to_string(), is_norm, weight, has_bias, kind }),
            }
        }
        Ok(all)
    }

    /// Adds the parameters, with He's deviation by fan-out as in all other layers.
    fn layer(&self, parameters: &mut Parameters, block: &str) -> Result<Layer> {
        let name = format!("{block}.{}", self.name);
        if self.is_norm {
            return Ok(Layer::Norm(BatchNorm::new(parameters, name, self.weight[0])?));
        }
        let [out, inputs, height, width] = self.weight[..] else { bail!("'{name}' is no convolution") };
        // Each input of a depthwise convolution reaches one output.
        let fan_out = height * width * if inputs == 1 { 1 } else { out };
        let deviation = Initialiser::Normal((2.0 / fan_out as f64).sqrt());
        let weight = parameters.add(format!("{name}.weight"), &self.weight, deviation, self.kind)?;
        let zeros = Initialiser::Constant(0.0);
        let bias = self.has_bias.then(|| parameters.add(format!("{name}.bias"), &[out], zeros, ParameterKind::Vector));
        Ok(Layer::Convolution(weight, bias.transpose()?))
    }
}

impl Custom {
    /// The block at all choices that a subnet may make, the largest first; a smaller kernel is the centre of the
    /// largest, without tensors of its own.
    pub(super) fn new(
        parameters: &mut Parameters,
        name: &str,
        choices: &[&CustomSpec],
        _kernel_sizes: &[usize],
    ) -> Result<Self> {
        let graphs: Vec<Graph> = choices.iter().map(|choice| choice.graph()).collect();
        let mut layers = Vec::new();
        for largest in Largest::of_all(&graphs)? {
            let layer = largest.layer(parameters, name)?;
            layers.push((largest.name, layer));
        }
        if layers.is_empty() {
            bail!("a block of a custom kind has no tensors, but an elastic block needs some");
        }
        let mut block = Custom { layers, groups: Vec::new() };
        let extent = |(name, axis): &(String, Axis)| match (axis, block.layer(name)) {
            (Axis::Input, Some(Layer::Convolution(weight, _))) => parameters.var(*weight).dims()[1],
            (Axis::Output, Some(Layer::Convolution(weight, _))) => parameters.var(*weight).dims()[0],
            (_, Some(Layer::Norm(norm))) => parameters.var(norm.weight).dims()[0],
            (_, None) => 0,
        };
        // A layer that only narrow choices have cannot follow a permutation of all channels.
        let alike = |group: &Group| group.axes.windows(2).all(|pair| extent(&pair[0]) == extent(&pair[1]));
        block.groups = groups(&graphs).into_iter().filter(alike).collect();
        Ok(block)
    }

    pub(super) fn first_parameter(&self) -> ParameterId {
        match &self.layers[0].1 {
            Layer::Convolution(weight, _) => *weight,
            Layer::Norm(norm) => norm.weight,
        }
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.layers.iter().filter_map(|(_, layer)| match layer {
            Layer::Norm(norm) => Some(norm),
            Layer::Convolution(..) => None,
        })
    }

    /// Batch norms of a choice.
    pub(super) fn active_norms(&self, graph: &Graph) -> Vec<&BatchNorm> {
        let of_slot = |slot: &Slot| match self.layer(slot.name())? {
            Layer::Norm(norm) => Some(norm),
            Layer::Convolution(..) => None,
        };
        graph.slots().iter().filter_map(of_slot).collect()
    }

    fn layer(&self, name: &str) -> Option<&Layer> {
        self.layers.iter().find(|(other, _)| other == name).map(|(_, layer)| layer)
    }

    /// Channels between blocks are not sorted.
    pub(super) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        None
    }

    pub(super) fn active(&self, parameters: &Parameters, spec: &CustomSpec) -> Result<Vec<Vec<Active>>> {
        self.active_in(parameters, &spec.graph())
    }

    fn active_in(&self, parameters: &Parameters, graph: &Graph) -> Result<Vec<Vec<Active>>> {
        let of_slot = |slot: &Slot| {
            let tensors = graph.tensors(slot);
            let part = |id: &ParameterId, shape: &[usize]| parameters.part(*id, shape);
            match (self.layer(slot.name()), &tensors[..]) {
                (Some(Layer::Convolution(weight, _)), [(_, shape)]) => Ok(vec![part(weight, shape)]),
                (Some(Layer::Convolution(weight, Some(bias))), [(_, shape), (_, out)]) => {
                    Ok(vec![part(weight, shape), part(bias, out)])
                }
                (Some(Layer::Norm(norm)), [(_, shape), ..]) => Ok(norm.active(parameters, shape[0])),
                _ => bail!("the block has no tensors '{}' as this choice needs them", slot.name()),
            }
        };
        graph.slots().iter().map(of_slot).collect()
    }

    pub(super) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &CustomSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let graph = BlockSpec::Custom(spec.clone()).graph(eps);
        pass.interpret(&graph, x, &self.active_in(parameters, &graph)?)
    }

    /// Sorts the channels of each group by the L1 norm of the weights that read them.
    pub(super) fn sort_channels(&self, parameters: &Parameters, trained: &[&CustomSpec]) -> Result<()> {
        use channel_sorting::{descending, importance, permute, permute_norm};
        let trained: Vec<Graph> = trained.iter().map(|spec| spec.graph()).collect();
        for group in &self.groups {
            let mut total: Vec<f32> = Vec::new();
            for (name, axis) in &group.axes {
                if let (Axis::Input, Some(Layer::Convolution(weight, _))) = (axis, self.layer(name)) {
                    let importance = importance(parameters, *weight)?;
                    total.resize(importance.len(), 0.0);
                    total.iter_mut().zip(importance).for_each(|(total, v)| *total += v);
                }
            }
            let widths: Vec<usize> = trained.iter().flat_map(|graph| group.widths(graph)).collect();
            let order = descending(&total, &widths);
            for (name, axis) in &group.axes {
                match (axis, self.layer(name)) {
                    (Axis::Input, Some(Layer::Convolution(weight, _))) => permute(parameters, *weight, 1, &order)?,
                    (Axis::Output, Some(Layer::Convolution(weight, bias))) => {
                        permute(parameters, *weight, 0, &order)?;
                        bias.iter().try_for_each(|bias| permute(parameters, *bias, 0, &order))?;
                    }
                    (_, Some(Layer::Norm(norm))) => permute_norm(parameters, norm, &order)?,
                    (_, None) => {}
                }
            }
        }
        Ok(())
    }
}
