//! Block kinds that are defined outside this crate: their registry, and the description of a block as its own graph.

use crate::graph::names::{BlockNames, CUSTOM};
use crate::graph::{Builder, Fragment, Graph, NodeId, Shape};
use crate::space::{Activation, ExpandRatio, middle_channels};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

/// A kind of block that is defined outside this crate.
///
/// [`register`] makes it known to this process; a stage of a search space with `block = "NAME"` then has blocks of this
/// kind. Training, costs, latency profiles, search and extraction work with them as with all others. A model folder
/// describes its blocks completely, so that programs that do not know the kind can run it.
///
/// ```
/// use ofa_supernet::blocks::{self, BlockSettings, CustomKind};
/// use ofa_supernet::graph::{Builder, NodeId};
/// use ofa_supernet::space::{Activation, SearchSpace};
///
/// /// A convolution to the middle channels and one back, with a shortcut where the shapes match.
/// fn two_convolutions(settings: &BlockSettings, builder: &mut Builder, x: NodeId) {
///     let (middle, out) = (settings.middle_channels(), settings.out_channels);
///     let kernel = (settings.kernel, settings.stride);
///     let y = builder.convolution_norm_activation(x, ("conv1", "bn1"), middle, kernel, 1, settings.activation);
///     let y = builder.convolution_norm_activation(y, ("conv2", "bn2"), out, (1, 1), 1, Activation::Identity);
///     if settings.keeps_shape() {
///         builder.add(y, x);
///     }
/// }
///
/// blocks::register(CustomKind { name: "two_convolutions", lower: two_convolutions })?;
/// let mut space = SearchSpace::named("tiny")?;
/// space.stages[1].block = Some("two_convolutions".into());
/// space.validate()?;
/// let network = space.network(&space.largest(), 10)?;
/// assert!(network.stages[2][0].to_string().starts_with("two_convolutions 8x8x16: conv1=conv 64 k5 s2;"));
///
/// space.stages[1].block = Some("unheard_of".into());
/// assert!(space.validate().unwrap_err().to_string().contains("two_convolutions"));
/// # Ok::<(), ofa_supernet::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CustomKind {
    /// Name in a stage's `block`: letters, digits and '_'.
    pub name: &'static str,
    /// Emits the nodes of a block that reads the given node; the node emitted last is the output. Equal settings
    /// give equal nodes.
    ///
    /// Tensors with one name are one parameter of the supernet, of the largest shape that any subnet gives it; a subnet
    /// uses its leading channels and the centre of its kernel. Channels inside the block are sorted by importance
    /// before a width stage, those that a sum, a gate or a depthwise convolution connects alike.
    pub lower: fn(&BlockSettings, &mut Builder, NodeId),
}

/// What a block of a custom kind is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSettings {
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Elastic kernel size.
    pub kernel: usize,
    /// Elastic expand ratio.
    pub expand: ExpandRatio,
    /// Stride of the block: the output's height and width are those of the input by it, rounded up.
    pub stride: usize,
    /// The stage's activation.
    pub activation: Activation,
    /// Whether the stage has squeeze-excite.
    pub squeeze_excite: bool,
    /// Height and width of the input map. Nodes may depend on it in their extents only.
    pub input_size: usize,
}

impl BlockSettings {
    /// The input channels times the expand ratio, by the channel rule of all families.
    pub fn middle_channels(&self) -> usize {
        middle_channels(self.in_channels, self.expand.value())
    }

    /// Whether the output has the shape of the input.
    pub fn keeps_shape(&self) -> bool {
        self.stride == 1 && self.in_channels == self.out_channels
    }
}

/// The kinds of this process.
static KINDS: RwLock<Vec<CustomKind>> = RwLock::new(Vec::new());

/// Makes a kind known to this process, once, before spaces that name it are used.
///
/// # Errors
/// A name with other characters than letters, digits and '_', or one that is taken.
pub fn register(kind: CustomKind) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if kind.name.is_empty() || !kind.name.chars().all(plain) {
        return Err(Error::Space(format!("the block kind '{}' needs a name of letters, digits and '_'", kind.name)));
    }
    let mut kinds = KINDS.write().unwrap_or_else(PoisonError::into_inner);
    if kinds.iter().any(|known| known.name == kind.name) {
        return Err(Error::Space(format!("the block kind '{}' is registered already", kind.name)));
    }
    kinds.push(kind);
    Ok(())
}

/// The kind of a name.
///
/// # Errors
/// An unknown name, with the known ones.
pub(crate) fn find(name: &str) -> Result<CustomKind> {
    let kinds = KINDS.read().unwrap_or_else(PoisonError::into_inner);
    let known: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let known = if known.is_empty() { "none".into() } else { known.join(", ") };
    kinds.iter().find(|kind| kind.name == name).copied().ok_or_else(|| {
        Error::Space(format!(
            "no block kind '{name}' is known to this program (known: {known}); use the program that registers it, or leave \
             `block` out for the family's own"
        ))
    })
}

/// A block of a custom kind: its name and its nodes. In files it is one text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CustomSpec {
    kind: Arc<str>,
    fragment: Fragment,
}

impl CustomSpec {
    /// The block of the registered kind `name` for a settings.
    ///
    /// # Errors
    /// An unknown kind, and nodes that do not form a block: an output of another shape than the settings ask for,
    /// layers that no kernel computes.
    pub fn new(name: &str, settings: &BlockSettings) -> Result<Self> {
        let kind = find(name)?;
        let fail = |fault: String| Error::Space(format!("the block kind '{}': {fault}", kind.name));
        let size = settings.input_size;
        let input = Shape { height: size, width: size, channels: settings.in_channels };
        let (mut builder, x) = Builder::new(input, crate::space::DEFAULT_EPSILON);
        (kind.lower)(settings, &mut builder, x);
        let fragment = Fragment::of(&builder.finish()).map_err(fail)?;
        let size = size.div_ceil(settings.stride);
        let wanted = Shape { height: size, width: size, channels: settings.out_channels };
        if fragment.output() != wanted {
            return Err(fail(format!("it makes a map of {} where {wanted} is asked for", fragment.output())));
        }
        Ok(CustomSpec { kind: kind.name.into(), fragment })
    }

    pub(super) fn input(&self) -> Shape {
        self.fragment.input()
    }

    pub(super) fn output(&self) -> Shape {
        self.fragment.output()
    }

    pub(super) fn set_input_size(&mut self, size: usize) {
        self.fragment.resize(size);
    }

    pub(super) fn inner_channels(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    pub(super) fn window(&self) -> Option<(usize, usize)> {
        None
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        self.fragment.check().map_err(|fault| format!("of kind '{}': {fault}", self.kind))
    }

    pub(super) fn names(&self) -> &'static BlockNames {
        &CUSTOM
    }

    /// Whether a backward pass recomputes the activations inside the block: each node keeps its own.
    pub(super) fn recomputes(&self) -> bool {
        false
    }

    pub(super) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        self.fragment.emit(builder, x)
    }

    /// The nodes as a graph of its own, with any epsilon.
    pub(super) fn graph(&self) -> Graph {
        let (mut builder, x) = Builder::new(self.input(), crate::space::DEFAULT_EPSILON);
        self.lower(&mut builder, x);
        builder.finish()
    }
}

impl fmt::Display for CustomSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.fragment)
    }
}

impl FromStr for CustomSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, fragment) = text.split_once(' ').unwrap_or(("", text));
        if kind.is_empty() || !kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err("a block's text begins with its kind, of letters, digits and '_'".into());
        }
        let fragment: Fragment = fragment.parse().map_err(|fault| format!("a block of kind '{kind}': {fault}"))?;
        if fragment.input().height != fragment.input().width {
            return Err(format!("a block of kind '{kind}': its input is {}, it must be a square", fragment.input()));
        }
        Ok(CustomSpec { kind: kind.into(), fragment })
    }
}

impl TryFrom<String> for CustomSpec {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<CustomSpec> for String {
    fn from(spec: CustomSpec) -> String {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kinds_are_checked_and_unknown_ones_told() {
        let kind = |name| CustomKind { name, lower: |_, _, _| {} };
        assert!(register(kind("a b")).unwrap_err().to_string().contains("letters, digits and '_'"));
        register(kind("nothing")).unwrap();
        assert!(register(kind("nothing")).unwrap_err().to_string().contains("registered already"));
        let settings = BlockSettings {
            in_channels: 8,
            out_channels: 8,
            kernel: 3,
            expand: ExpandRatio::try_from(2.0).unwrap(),
            stride: 1,
            activation: Activation::Relu,
            squeeze_excite: false,
            input_size: 4,
        };
        let error = |name| CustomSpec::new(name, &settings).unwrap_err().to_string();
        assert!(error("nothing").contains("'nothing': the number of nodes is 0"), "{}", error("nothing"));
        assert!(error("unknown").contains("nothing"), "{}", error("unknown"));
    }
}
