//! Costs of a network: folds over the nodes of its graph. Nothing runs.

use super::{Graph, Node, Op, Region, RegionKind};

impl Graph {
    /// Multiply-accumulates of one image's forward pass.
    ///
    /// Counted: every multiplication of an input by a weight in convolutions (the two of squeeze-excite included) and
    /// linear layers. A `k x k` convolution counts `k * k` for every output pixel, padding included. Not counted:
    /// biases, batch norm (it folds into the convolution), activations, pooling, the product with a gate, sums.
    ///
    /// The once-for-all code attaches counters to PyTorch's convolution and linear modules; on an extracted network
    /// these see exactly these nodes, so that both counts are equal.
    pub fn macs(&self) -> u64 {
        self.sum_macs(&self.nodes)
    }

    /// Multiply-accumulates of one layer; those of all [`layers`](Self::layers) add up to [`macs`](Self::macs).
    pub fn layer_macs(&self, layer: &Region) -> u64 {
        self.sum_macs(&self.nodes[layer.nodes.clone()])
    }

    /// All sums of costs saturate: a file can name extents up to [`MAX_CHANNELS`](super::MAX_CHANNELS) and
    /// [`MAX_SIZE`](super::MAX_SIZE).
    fn sum_macs(&self, nodes: &[Node]) -> u64 {
        nodes.iter().map(|node| self.node_macs(node)).fold(0, u64::saturating_add)
    }

    fn node_macs(&self, node: &Node) -> u64 {
        match node.op {
            Op::Convolution { kernel, groups, .. } => {
                let inputs = self.input_channels(node) / groups.max(1) as u64;
                node.shape.values().saturating_mul(inputs.saturating_mul((kernel * kernel) as u64))
            }
            Op::Linear => node.shape.values().saturating_mul(self.input_channels(node)),
            _ => 0,
        }
    }

    fn input_channels(&self, node: &Node) -> u64 {
        node.inputs().first().map_or(0, |&input| self.node(input).shape.channels as u64)
    }

    /// Trainable numbers: weights, biases, scale and shift of batch norms. Running statistics are not trained and not
    /// counted.
    pub fn parameters(&self) -> u64 {
        let of_node = |node: &Node| {
            let out = node.shape.channels as u64;
            match node.op {
                Op::Convolution { kernel, groups, bias, .. } => {
                    out * (self.input_channels(node) / groups.max(1) as u64 * (kernel * kernel) as u64
                        + u64::from(bias))
                }
                Op::BatchNorm => 2 * out,
                Op::Linear => out * (self.input_channels(node) + 1),
                _ => 0,
            }
        };
        self.nodes.iter().map(of_node).fold(0, u64::saturating_add)
    }

    /// Numbers in the tensors of the extracted model: its [`parameters`](Self::parameters), and the running mean and
    /// variance of batch norms.
    pub fn stored_numbers(&self) -> u64 {
        self.parameters().saturating_add(2 * self.norm_widths().map(|width| width as u64).sum::<u64>())
    }

    /// Largest number of activation values of one image that are alive at once, for an engine that runs node by node in
    /// the order of the [schedule](Self::schedule).
    ///
    /// A node's inputs and output are alive while it runs; a value dies with its last reader. Batch norm and
    /// activations work in place, a sum goes into its main path. A gate has no map of its own: its reader multiplies as
    /// it reads, so that map and gate stay alive until then. A layer reads only the output of the layer before it, so
    /// the peak of a network is the largest of its layers' peaks: search combines them block by block.
    pub fn peak_values(&self) -> u64 {
        let mut readers = self.reader_counts();
        // The storages of each node's output (two for a gate), and how many live nodes hold each storage.
        let mut storages: Vec<[Option<usize>; 2]> = vec![[None; 2]; self.nodes.len()];
        let mut holders: Vec<usize> = Vec::new();
        let mut sizes: Vec<u64> = Vec::new();
        let (mut alive, mut peak) = (0u64, 0);
        for id in self.schedule() {
            let node = self.node(id);
            for input in node.inputs() {
                readers[input.index()] -= 1;
            }
            let dying = |input: usize| readers[input] == 0;
            let in_place = match node.op {
                Op::BatchNorm | Op::Activation(_) | Op::HardSigmoid | Op::Add => {
                    let alone =
                        |input: usize| matches!(storages[input], [Some(storage), None] if holders[storage] == 1);
                    let mut inputs = node.inputs().iter().map(|input| input.index());
                    inputs.find(|&input| dying(input) && alone(input))
                }
                _ => None,
            };
            let own = match (node.op, in_place) {
                (Op::Gate, _) => {
                    let [map, factors] = [0, 1].map(|place| storages[node.inputs()[place].index()][0]);
                    [map, factors]
                }
                (_, Some(input)) => storages[input],
                _ => {
                    sizes.push(node.shape.values());
                    holders.push(0);
                    alive = alive.saturating_add(node.shape.values());
                    [Some(sizes.len() - 1), None]
                }
            };
            own.iter().flatten().for_each(|&storage| holders[storage] += 1);
            storages[id.index()] = own;
            peak = peak.max(alive);
            for input in node.inputs().iter().map(|input| input.index()).filter(|&input| dying(input)) {
                for storage in std::mem::take(&mut storages[input]).into_iter().flatten() {
                    holders[storage] -= 1;
                    alive = alive.saturating_sub(if holders[storage] == 0 { sizes[storage] } else { 0 });
                }
            }
        }
        peak
    }

    /// Values that a backward pass through `layer` needs of its forward pass: raw and activated output of each
    /// convolution, outputs of pools and sums. Of a block that recomputes the activations inside it only the raw
    /// outputs are kept.
    pub fn values_kept_for_backward(&self, layer: &Region) -> u64 {
        let recomputes = matches!(layer.kind, RegionKind::Block { recomputes: true });
        let inner = self.inner.iter().filter(|region| layer.contains(region));
        let activated = inner.filter(|_| !recomputes).map(|region| self.nodes[region.nodes.end - 1].shape.values());
        let raw = self.nodes[layer.nodes.clone()].iter().map(|node| match node.op {
            Op::Convolution { .. } | Op::AveragePool { .. } | Op::MaxPool { .. } | Op::Linear => node.shape.values(),
            Op::Add if !recomputes => node.shape.values(),
            _ => 0,
        });
        let output = if recomputes { self.layer_output(layer) } else { 0 };
        activated.chain(raw).fold(output, u64::saturating_add)
    }

    /// Values of a layer's input.
    pub fn layer_input(&self, layer: &Region) -> u64 {
        let first = &self.nodes[layer.nodes.start];
        first.inputs().first().map_or(0, |&input| self.node(input).shape.values())
    }

    /// Values of a layer's output.
    pub fn layer_output(&self, layer: &Region) -> u64 {
        self.nodes[layer.nodes.end - 1].shape.values()
    }

    /// Values of the outputs of a layer's convolutions together.
    pub fn convolution_outputs(&self, layer: &Region) -> u64 {
        let outputs = self.nodes[layer.nodes.clone()].iter().map(|node| match node.op {
            Op::Convolution { .. } => node.shape.values(),
            _ => 0,
        });
        outputs.fold(0, u64::saturating_add)
    }
}
