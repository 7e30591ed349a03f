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
    /// Widths of the group in the choices with the largest input and output, descending.
    pub widths: Vec<usize>,
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
/// weight reads.
pub(super) fn groups(graphs: &[Graph]) -> Vec<Group> {
    let mut sets = Sets(Vec::new());
    let outside = sets.add();
    // Each slot's name and axis, with its set.
    let mut axes: Vec<(String, Axis, usize)> = Vec::new();
    let mut widths: Vec<(usize, usize)> = Vec::new();
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
            widths.extend(graph.nodes().iter().zip(&nodes).map(|(node, &member)| (member, node.shape.channels)));
        }
    }
    let mut found: Vec<usize> = axes.iter().map(|(.., member)| sets.of(*member)).collect();
    found.sort_unstable();
    found.dedup();
    let group = |set: usize| {
        let own = axes.iter().filter(|(.., member)| sets.of(*member) == set);
        let axes: Vec<(String, Axis)> = own.map(|(name, axis, _)| (name.clone(), *axis)).collect();
        let own = widths.iter().filter(|(member, _)| sets.of(*member) == set);
        let mut widths: Vec<usize> = own.map(|(_, channels)| *channels).collect();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        widths.dedup();
        Group { axes, widths }
    };
    let groups = found.into_iter().filter(|set| *set != sets.of(outside)).map(group);
    groups.filter(|group| group.axes.iter().any(|(_, axis)| *axis == Axis::Input) && !group.widths.is_empty()).collect()
}
