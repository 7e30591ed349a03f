//! The tape: what a training step records, and the loop that goes back over it.
//!
//! A network is a chain of layers. In a forward pass that will be followed by a backward pass each layer puts one
//! record on the tape: a function that owns what the layer saved (its input, its packed weights, the raw outputs of its
//! convolutions) and computes gradients from the one at the layer's output. A backward pass takes the records from the
//! end of the tape, one after the other. A record is consumed by its call, so that saved values are freed as soon as
//! they were used, and no gradient can be computed twice.
//!
//! **Tree of uses.** Layers that several subnets of a step share (the trunk) have a tape of their own, which ends where
//! the subnets part; each subnet starts a new tape at the trunk's output. Gradients at the trunk's output are summed in
//! the order of the subnets, and the sum goes back over the trunk's tape once. A block with a shortcut is such a tree
//! inside one record: two tapes, whose gradients at the block's input are summed.
//!
//! **Pieces.** [`Tape::backward_to`] halts at any record. The gradients of the later layers are then final, and several
//! processes exchange them while the earlier layers are computed.
//!
//! **Buffers.** Gradients of parameters are added to the [`Gradients`] that the caller passes, and belong to it. Each
//! subnet has its own, and the step adds them up in the order of the subnets: sums do not depend on which subnet
//! was computed first.
//!
//! **Executors.** Records of layers with kernels call these kernels. Where there are none (GPUs, f64) and for the small
//! operations around them, a record owns candle's graph of its layer's operations and calls candle's backward for
//! this part ([`Pass::trace`](super::Pass::trace)). The loop is the same. Blocks that are described by a graph are such
//! parts, with kernels as operations of candle's graph where a region has one.

use super::Gradients;
use candle_core::{Result, Tensor, bail};

/// The backward pass of one layer: takes the gradient at the layer's output, adds those of its parameters, and returns
/// the one at its input; none if the input is the images.
type Record = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<Option<Tensor>> + Send + Sync>;

/// Records of the layers of a forward pass, in its order.
#[derive(Default)]
pub struct Tape {
    records: Vec<Record>,
    /// Whether the first layer reads images, which need no gradient.
    from_images: bool,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "a tape of {} layers", self.records.len())
    }
}

impl Tape {
    /// An empty tape whose first layer will read images.
    pub(crate) fn from_images() -> Self {
        Tape { records: Vec::new(), from_images: true }
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether the next layer's record must return a gradient at its input.
    pub(crate) fn needs_input_gradient(&self) -> bool {
        !(self.from_images && self.records.is_empty())
    }

    /// Records the next layer.
    pub(crate) fn push(
        &mut self,
        record: impl FnOnce(Tensor, &mut Gradients) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) {
        self.records.push(Box::new(record));
    }

    /// Goes back from the output, where the gradient is `gradient`, until `len` records are left. Returns the gradient
    /// at the output of the layer before.
    pub(crate) fn backward_to(
        &mut self,
        len: usize,
        gradient: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let mut gradient = Some(gradient);
        for record in self.records.drain(len..).rev() {
            let Some(at_output) = gradient.take() else { bail!("a layer behind the first one gave no input gradient") };
            gradient = record(at_output, gradients)?;
        }
        Ok(gradient)
    }

    /// Adds the gradients of all parameters that the forward pass used, given the gradient at its output.
    ///
    /// # Errors
    /// A gradient of another shape, or a failed tensor operation.
    pub fn backward(mut self, gradient: Tensor, gradients: &mut Gradients) -> crate::Result<()> {
        self.backward_to(0, gradient, gradients)?;
        Ok(())
    }
}
