//! Channels of a graph that belong together: where one tensor is permuted, the others must be permuted alike.

use crate::graph::{Graph, NodeId, Op};

/// Dimension of a slot's tensors that holds channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Dimension 1 of a convolution's weight: the layer reads the channels.
    Input,
    /// Dimension 0: the layer writes them.
    Output,
}

/// Channels inside a block that can be permuted without changing what the block computes at its largest.
#[derive(Debug)]
pub(super) struct Group {
    /// All tensors that hold the channels, by name of the slot.
    pub axes: Vec<(String, Axis)>,
}

impl Group {
    /// Numbers of these channels in a graph of the block, one per tensor that it has.
    pub fn widths(&self, graph: &Graph) -> Vec<usize> {
        let width = |(name, axis): &(String, Axis)| {
            let slot = graph.slots().iter().find(|slot| slot.name() == name)?;
            let holder = match axis {
                Axis::Input => *graph.node(slot.node).inputs().first()?,
                Axis::Output => slot.node,
            };
            Some(graph.node(holder).shape.channels)
        };
        self.axes.iter().filter_map(width).collect()
    }
}

/// Things that have channels; those that a layer connects become one set.
struct Sets(Vec<usize>);

impl Sets {
    fn add(&mut self) -> usize {
        self.0.push(self.0.len());
        self.0.len() - 1
    }

    fn of(&self, mut member: usize) -> usize {
        while self.0[member] != member {
            member = self.0[member];
        }
        member
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.of(one), self.of(other));
        self.0[one] = other;
    }
}

/// The groups of a block's graphs at all choices, the largest first. Slots of one name are one slot.
///
/// Channels of the block's input and output are in no group, since other blocks hold them too, nor are those that no
/// weight reads, or that only choices with a narrower input or output have.
pub(super) fn groups(graphs: &[Graph]) -> Vec<Group> {
    let mut sets = Sets(Vec::new());
    let outside = sets.add();
    // Each slot's name and axis, with its set.
    let mut axes: Vec<(String, Axis, usize)> = Vec::new();
    let mut at_largest: Vec<usize> = Vec::new();
    let largest = |graph: &Graph| {
        let channels = |graph: &Graph, id: NodeId| graph.node(id).shape.channels;
        let ends = |graph: &Graph| (graph.nodes()[0].shape.channels, channels(graph, graph.output()));
        graphs.first().is_some_and(|first| ends(first) == ends(graph))
    };
    for graph in graphs {
        let nodes: Vec<usize> = graph.nodes().iter().map(|_| sets.add()).collect();
        sets.join(nodes[0], outside);
        sets.join(nodes[graph.output().index()], outside);
        for (index, node) in graph.nodes().iter().enumerate() {
            let dense = matches!(node.op, Op::Convolution { groups: 1, .. });
            let slot = graph.slots().iter().find(|slot| slot.node.index() == index);
            let mut axis = |axis: Axis, member: usize, sets: &mut Sets| {
                let Some(name) = slot.map(|slot| slot.name()) else { return };
                match axes.iter().find(|(other, kind, _)| (other.as_str(), *kind) == (name, axis)) {
                    Some((.., set)) => sets.join(*set, member),
                    None => axes.push((name.to_string(), axis, member)),
                }
            };
            axis(Axis::Output, nodes[index], &mut sets);
            for input in node.inputs().iter().map(|input| nodes[input.index()]) {
                if dense {
                    axis(Axis::Input, input, &mut sets);
                } else {
                    sets.join(input, nodes[index]);
                }
            }
        }
        if largest(graph) {
            at_largest.extend(nodes);
        }
    }
    let mut found: Vec<usize> = axes.iter().map(|(.., member)| sets.of(*member)).collect();
    found.sort_unstable();
    found.dedup();
    let group = |set: usize| {
        let own = axes.iter().filter(|(.., member)| sets.of(*member) == set);
        Group { axes: own.map(|(name, axis, _)| (name.clone(), *axis)).collect() }
    };
    let is_at_largest = |set: &usize| at_largest.iter().any(|member| sets.of(*member) == *set);
    let sets_inside = found.into_iter().filter(|set| *set != sets.of(outside)).filter(is_at_largest);
    sets_inside.map(group).filter(|group| group.axes.iter().any(|(_, axis)| *axis == Axis::Input)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Shape};
    use crate::space::{Activation, reduced_channels};

    /// A block with squeeze-excite and `middle` channels inside.
    fn block(middle: usize) -> Graph {
        let (mut b, x) = Builder::new(Shape { height: 4, width: 4, channels: 16 }, 1e-5);
        let y = b.convolution_norm_activation(x, ("expand", "norm"), middle, (3, 1), 1, Activation::Relu);
        let pooled = b.global_average_pool(y);
        let reduced = b.pointwise(pooled, "reduce", reduced_channels(middle), true);
        let reduced = b.activation(reduced, Activation::Relu);
        let expanded = b.pointwise(reduced, "excite", middle, true);
        let factors = b.hard_sigmoid(expanded);
        let y = b.gate(y, factors);
        b.convolution_norm_activation(y, ("project", "last"), 16, (1, 1), 1, Activation::Identity);
        b.finish()
    }

    #[test]
    fn a_group_has_a_width_at_each_ratio_even_if_two_are_equal() {
        let graphs = [64, 48, 32].map(block);
        let groups = groups(&graphs);
        let widths = |name: &str| {
            let writes = |group: &&Group| group.axes.contains(&(name.to_string(), Axis::Output));
            let group = groups.iter().find(writes).unwrap();
            graphs.each_ref().map(|graph| group.widths(graph)[0])
        };
        assert_eq!((groups.len(), widths("expand"), widths("reduce")), (2, [64, 48, 32], [16, 16, 8]));
    }
}
