//! A part of a network as data: nodes without positions in a network, and a text that parses.
//!
//! The text begins with height, width and channels of the input; the nodes follow in order, numbered from 1 (0 is the
//! input). A node is `NAME=OPERATION ARGUMENTS of NUMBERS`: nodes without tensors have no name, and a node that reads
//! only the node before it omits the numbers. For example, a 3x3 convolution with a shortcut:
//!
//! ```text
//! 16x16x24: conv=conv 24 k3 s1; bn=norm; add of 2 0; relu
//! ```

use super::builder::strided;
use super::{Builder, Graph, NodeId, Op, Shape};
use crate::quote::shortened;
use crate::space::Activation;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NameError, StrDeserializer};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most channels of a layer: far more than every real network has, and far less than overflows or exhausts memory.
pub const MAX_CHANNELS: usize = 1 << 20;
/// Largest height and width of a map.
pub const MAX_SIZE: usize = 4096;
/// Largest kernel of a convolution.
pub const MAX_KERNEL: usize = 15;
/// Most nodes of a fragment.
const MAX_NODES: usize = 256;

/// A part of a network that reads one map and writes one.
///
/// A fragment that exists has been checked: each node fits what it reads, every output but the last is read, and there
/// are kernels for all of it.
///
/// ```
/// use ofa_supernet::graph::Fragment;
///
/// let text = "16x16x24: conv=conv 24 k3 s1; bn=norm; add of 2 0; relu";
/// let fragment: Fragment = text.parse().unwrap();
/// assert_eq!(fragment.to_string(), text);
/// assert_eq!((fragment.output().width, fragment.output().channels), (16, 24));
/// assert!("16x16x24: conv=conv 32 k3 s1; add of 1 0".parse::<Fragment>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fragment {
    input: Shape,
    output: Shape,
    nodes: Arc<[Element]>,
}

/// A node of a fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Element {
    op: Op,
    /// Numbers of the nodes that it reads.
    inputs: Vec<usize>,
    /// Output channels of a convolution; other operations keep those of their first input.
    channels: Option<usize>,
    /// Name of its tensors; empty without.
    name: Cow<'static, str>,
}

impl Element {
    /// Extent of the output, for the extents of what it reads.
    fn shape(&self, inputs: &[Shape]) -> Shape {
        let Some(&input) = inputs.first() else { return Shape { height: 0, width: 0, channels: 0 } };
        let resized = |size: &dyn Fn(usize) -> usize| Shape {
            height: size(input.height),
            width: size(input.width),
            channels: self.channels.unwrap_or(input.channels),
        };
        match self.op {
            Op::Convolution { kernel, stride, padding, .. } => resized(&|size| strided(size, kernel, stride, padding)),
            Op::MaxPool { window, stride, padding } => resized(&|size| strided(size, window, stride, padding)),
            Op::AveragePool { window, padding } => {
                resized(&|size| size.saturating_add(padding).div_ceil(window.max(1)))
            }
            Op::GlobalAveragePool => resized(&|_| 1),
            _ => input,
        }
    }

    /// Checks the operation against the extents of what it reads.
    fn check(&self, inputs: &[Shape]) -> Result<(), String> {
        let has_tensors = matches!(self.op, Op::Convolution { .. } | Op::BatchNorm);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if has_tensors != (1..=64).contains(&self.name.len()) || !self.name.chars().all(plain) {
            return Err(
                "a convolution or norm needs a name of letters, digits, '_' and '.', no other node has one".into()
            );
        }
        match (self.op, inputs) {
            (Op::Convolution { kernel, stride, padding, groups, .. }, [input]) => {
                let channels = self.channels.unwrap_or(0);
                within("number of channels", channels, 1, MAX_CHANNELS)?;
                within("kernel", kernel, 1, MAX_KERNEL)?;
                within("stride", stride, 1, 2)?;
                if kernel % 2 == 0 || padding != kernel / 2 {
                    return Err(format!(
                        "the kernel is {kernel} with padding {padding}; it must be odd, the padding half of it"
                    ));
                }
                if groups != 1 && (groups, groups) != (input.channels, channels) {
                    return Err(format!(
                        "a convolution from {} to {channels} channels has {groups} groups; possible are 1, and as many as both",
                        input.channels
                    ));
                }
                Ok(())
            }
            (Op::MaxPool { window: 3, stride: 2, padding: 1 }, [_]) => Ok(()),
            (Op::MaxPool { .. }, [_]) => Err("a max pool has windows of 3 pixels, stride 2 and padding 1".into()),
            (Op::AveragePool { window, padding }, [_]) => {
                within("window", window, 2, MAX_SIZE)?;
                within("padding", padding, 0, window - 1)
            }
            (Op::BatchNorm | Op::Activation(_) | Op::HardSigmoid | Op::GlobalAveragePool, [_]) => Ok(()),
            (Op::Add, [one, other]) if one == other => Ok(()),
            (Op::Add, [one, other]) => Err(format!("maps of {one} and {other} cannot be added")),
            (Op::Gate, [map, factors]) if *factors == Shape { height: 1, width: 1, ..*map } => Ok(()),
            (Op::Gate, [map, factors]) => Err(format!("{factors} are no factors for the channels of a map of {map}")),
            (op, _) => Err(format!("{op:?} cannot stand in a block, or has another number of inputs")),
        }
    }
}

impl Fragment {
    /// The nodes of `graph`, which read its input; the last is the output.
    ///
    /// # Errors
    /// The first node that does not fit, or that no kernel computes.
    pub fn of(graph: &Graph) -> Result<Self, String> {
        let element = |(index, node): (usize, &super::Node)| {
            let slot = graph.slots().iter().find(|slot| slot.node.index() == index);
            Element {
                op: node.op,
                inputs: node.inputs().iter().map(|input| input.index()).collect(),
                channels: matches!(node.op, Op::Convolution { .. }).then_some(node.shape.channels),
                name: slot.map(|slot| slot.name.clone()).unwrap_or_default(),
            }
        };
        let nodes = graph.nodes().iter().enumerate().skip(1).map(element).collect();
        Fragment::new(graph.nodes()[0].shape, nodes)
    }

    fn new(input: Shape, nodes: Vec<Element>) -> Result<Self, String> {
        let fragment = Fragment { input, output: input, nodes: nodes.into() };
        let output = fragment.checked()?;
        Ok(Fragment { output, ..fragment })
    }

    /// Extent of the input.
    pub fn input(&self) -> Shape {
        self.input
    }

    /// Extent of the output.
    pub fn output(&self) -> Shape {
        self.output
    }

    /// The fragment for maps of another size. Whether it can have that size, [`check`](Self::check) says.
    pub(crate) fn resize(&mut self, size: usize) {
        self.input = Shape { height: size, width: size, channels: self.input.channels };
        self.output = self.shapes().pop().unwrap_or(self.input);
    }

    /// Checks the fragment at its size.
    ///
    /// # Errors
    /// The first node that does not fit.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.checked().map(drop)
    }

    /// Emits the nodes into a larger graph, where they read `x`.
    pub(crate) fn emit(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        let mut ids = vec![x];
        for node in self.nodes.iter() {
            let inputs: Vec<NodeId> = node.inputs.iter().map(|&input| ids[input]).collect();
            let shapes: Vec<Shape> = inputs.iter().map(|&input| builder.shape(input)).collect();
            let id = builder.push(node.op, &inputs, node.shape(&shapes));
            if !node.name.is_empty() {
                builder.slot(id, node.name.clone());
            }
            ids.push(id);
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.op == Op::BatchNorm) {
            // A norm reads a convolution, and only that: see `checked`.
            if node.inputs != [index] {
                continue;
            }
            let mut readers = self.nodes.iter().filter(|other| other.inputs.contains(&(index + 1)));
            let activated = match (self.nodes.get(index + 1), readers.next(), readers.next()) {
                (Some(next), Some(reader), None) => reader == next && matches!(next.op, Op::Activation(_)),
                _ => false,
            };
            let first = ids[index].index();
            builder.inner_region(first..first + 2 + usize::from(activated));
        }
        ids.pop().unwrap_or(x)
    }

    /// Extents of the input and of every node.
    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = vec![self.input];
        for node in self.nodes.iter() {
            let inputs: Vec<Shape> = node.inputs.iter().map(|&input| shapes[input]).collect();
            shapes.push(node.shape(&inputs));
        }
        shapes
    }

    /// Checks everything; the output's extent.
    fn checked(&self) -> Result<Shape, String> {
        within("size of the input", self.input.height, 1, MAX_SIZE)?;
        within("size of the input", self.input.width, 1, MAX_SIZE)?;
        within("number of input channels", self.input.channels, 1, MAX_CHANNELS)?;
        within("number of nodes", self.nodes.len(), 1, MAX_NODES)?;
        let mut shapes = vec![self.input];
        let mut readers = vec![Vec::new(); self.nodes.len() + 1];
        let mut names = HashSet::new();
        for (number, node) in (1..).zip(self.nodes.iter()) {
            let fail = |fault: String| Err(format!("node {number}: {fault}"));
            if let Some(input) = node.inputs.iter().find(|&&input| input >= number) {
                return fail(format!("it reads node {input}, which does not come before it"));
            }
            if matches!(node.inputs[..], [one, other] if one == other) {
                return fail("it reads one node twice".into());
            }
            let inputs: Vec<Shape> = node.inputs.iter().map(|&input| shapes[input]).collect();
            if let Err(fault) = node.check(&inputs) {
                return fail(fault);
            }
            if !node.name.is_empty() && !names.insert(&node.name) {
                return fail(format!("another node has the name '{}' too", node.name));
            }
            node.inputs.iter().for_each(|&input| readers[input].push(number));
            shapes.push(node.shape(&inputs));
        }
        for (number, node) in (1..).zip(self.nodes.iter()).filter(|(_, node)| node.op == Op::BatchNorm) {
            let input = node.inputs[0];
            if input == 0 || self.nodes[input - 1].channels.is_none() || readers[input].len() > 1 {
                return Err(format!("node {number}: a norm must be the only reader of a convolution"));
            }
        }
        match readers[..self.nodes.len()].iter().position(Vec::is_empty) {
            Some(0) => Err("no node reads the input".into()),
            Some(number) => Err(format!("node {number}: no other node reads it, and it is not the last")),
            None => Ok(shapes[self.nodes.len()]),
        }
    }
}

fn within(what: &str, value: usize, low: usize, high: usize) -> Result<(), String> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!("the {what} is {value}, it must be between {low} and {high}"))
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

impl fmt::Display for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.input)?;
        for (index, node) in self.nodes.iter().enumerate() {
            f.write_str(if index == 0 { " " } else { "; " })?;
            if !node.name.is_empty() {
                write!(f, "{}=", node.name)?;
            }
            match node.op {
                Op::Convolution { kernel, stride, groups, bias, .. } => {
                    write!(f, "conv {} k{kernel} s{stride}", node.channels.unwrap_or(0))?;
                    if groups != 1 {
                        write!(f, " g{groups}")?;
                    }
                    f.write_str(if bias { " bias" } else { "" })?;
                }
                Op::BatchNorm => f.write_str("norm")?,
                // The name of the activation in files.
                Op::Activation(activation) => activation.serialize(&mut *f)?,
                Op::HardSigmoid => f.write_str("hard_sigmoid")?,
                Op::GlobalAveragePool => f.write_str("global_average_pool")?,
                Op::AveragePool { window, padding: 0 } => write!(f, "average_pool {window}")?,
                Op::AveragePool { window, padding } => write!(f, "average_pool {window} p{padding}")?,
                Op::MaxPool { .. } => f.write_str("max_pool")?,
                Op::Add => f.write_str("add")?,
                Op::Gate => f.write_str("gate")?,
                Op::Input | Op::Linear => unreachable!("checked: these stand in no fragment"),
            }
            if node.inputs != [index] {
                f.write_str(" of")?;
                node.inputs.iter().try_for_each(|input| write!(f, " {input}"))?;
            }
        }
        Ok(())
    }
}

impl FromStr for Fragment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str, found: &str| format!("'{}' is not {what}", shortened(found));
        let (input, nodes) = text.split_once(':').ok_or_else(|| bad("an extent, ':' and nodes", text))?;
        let extents: Vec<usize> = input.trim().split('x').map_while(|part| part.parse().ok()).collect();
        let [height, width, channels] = extents[..] else { return Err(bad("an extent such as 32x32x16", input)) };
        if input.trim().split('x').count() != 3 {
            return Err(bad("an extent such as 32x32x16", input));
        }
        let mut elements = Vec::new();
        for (index, text) in nodes.split(';').enumerate() {
            if index == MAX_NODES {
                return Err(format!("there are more than {MAX_NODES} nodes"));
            }
            let element = element(text, index)
                .ok_or_else(|| bad("a node such as 'conv1=conv 64 k3 s1' or 'add of 2 0'", text.trim()))?;
            elements.push(element);
        }
        Fragment::new(Shape { height, width, channels }, elements)
    }
}

/// The node of a text; `before` is the number of the node before it.
fn element(text: &str, before: usize) -> Option<Element> {
    let (name, rest) = text.split_once('=').unwrap_or(("", text));
    let mut words = rest.split_whitespace().peekable();
    let word = words.next()?;
    let mut channels = None;
    // `None` if the word is not there, and an error in it if it is no number.
    let mut given = |prefix: &str| Some(words.next_if(|word| word.starts_with(prefix))?[prefix.len()..].parse());
    let op = match word {
        "conv" => {
            channels = Some(given("")?.ok()?);
            let (kernel, stride) = (given("k")?.ok()?, given("s")?.ok()?);
            let groups = given("g").unwrap_or(Ok(1)).ok()?;
            let bias = words.next_if_eq(&"bias").is_some();
            Op::Convolution { kernel, stride, padding: kernel / 2, groups, bias }
        }
        "norm" => Op::BatchNorm,
        "hard_sigmoid" => Op::HardSigmoid,
        "global_average_pool" => Op::GlobalAveragePool,
        "average_pool" => {
            let window = given("")?.ok()?;
            Op::AveragePool { window, padding: given("p").unwrap_or(Ok(0)).ok()? }
        }
        "max_pool" => Op::MaxPool { window: 3, stride: 2, padding: 1 },
        "add" => Op::Add,
        "gate" => Op::Gate,
        other => {
            let name: StrDeserializer<NameError> = other.into_deserializer();
            Op::Activation(Activation::deserialize(name).ok().filter(|found| *found != Activation::Identity)?)
        }
    };
    let mut inputs = vec![before];
    if words.next_if_eq(&"of").is_some() {
        inputs = words.by_ref().take(2).map(|word| word.parse().ok()).collect::<Option<_>>()?;
    }
    words.next().is_none().then(|| Element { op, inputs, channels, name: Cow::Owned(name.trim().to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_text_is_one_sentence() {
        let good = "8x8x16: a=conv 32 k3 s2; b=norm; relu; global_average_pool; c=conv 32 k1 s1 bias; hard_sigmoid; gate of 3 6; d=conv 8 k1 s1";
        let fragment: Fragment = good.parse().unwrap();
        assert_eq!(fragment.to_string(), good);
        assert_eq!(fragment.output(), Shape { height: 4, width: 4, channels: 8 });
        for (old, new, part) in [
            ("8x8x16", "8x8", "extent"),
            ("8x8x16", "8x8x16x3", "extent"),
            ("8x8x16", "0x8x16", "size of the input is 0"),
            ("8x8x16", "8x4097x16", "size of the input is 4097"),
            ("8x8x16", "8x8x1048577", "input channels is 1048577"),
            ("8x8x16", "99999999999999999999x8x16", "extent"),
            (":", "", "'8x8x16 a=conv"),
            ("a=conv 32", "a=conv 0", "node 1: the number of channels is 0"),
            ("a=conv 32", "a=conv 18446744073709551615", "number of channels is 18446744073709551615"),
            ("a=conv 32", "conv 32", "needs a name"),
            ("a=conv 32", "a/b=conv 32", "needs a name"),
            ("relu", "x=relu", "no other node has one"),
            ("b=norm", "a=norm", "the name 'a' too"),
            ("k3", "k4", "must be odd"),
            ("k3", "k17", "kernel is 17"),
            ("k3", "k18446744073709551615", "kernel is 18446744073709551615"),
            ("s2", "s3", "stride is 3"),
            ("s2", "s0", "stride is 0"),
            ("s2", "s2 g4", "4 groups"),
            ("s2", "s2 g0", "0 groups"),
            ("s2", "s2 s2", "is not a node"),
            ("s2", "s2 g?", "is not a node"),
            ("relu", "average_pool 3 pX", "is not a node"),
            ("relu", "average_pool 3 p-1", "is not a node"),
            ("relu", "identity", "is not a node"),
            ("relu", "softmax", "is not a node"),
            ("relu", "average_pool 1", "window is 1"),
            ("relu", "relu of 5", "node 3: it reads node 5"),
            ("relu", "relu of 3", "node 3: it reads node 3"),
            ("relu", "relu of 2 1", "another number of inputs"),
            ("gate of 3 6", "gate of 3", "another number of inputs"),
            ("gate of 3 6", "gate of 3 3", "twice"),
            ("gate of 3 6", "gate of 3 6 1", "is not a node"),
            ("gate of 3 6", "gate of 6 3", "no factors"),
            ("gate of 3 6", "add of 3 6", "cannot be added"),
            ("gate of 3 6", "relu of 3", "node 6: no other node reads it"),
            ("relu;", "relu of 1;", "only reader of a convolution"),
            ("d=conv 8 k1 s1", "", "'' is not a node"),
        ] {
            assert!(good.contains(old), "{old}");
            let error = good.replacen(old, new, 1).parse::<Fragment>().expect_err(new);
            assert!(error.contains(part) && !error.contains('\n'), "{new}: {error}");
        }
        let alone = "8x8x16: b=norm; relu".parse::<Fragment>().unwrap_err();
        assert!(alone.contains("node 1: a norm must be the only reader"), "{alone}");
        let long = format!("8x8x16:{}", " relu;".repeat(1000));
        assert!(long.parse::<Fragment>().unwrap_err().contains("more than 256 nodes"));
    }

    #[test]
    fn another_size_is_checked_again() {
        let mut fragment: Fragment = "1x1x8: a=conv 8 k1 s1; gate of 0 1".parse().unwrap();
        fragment.check().unwrap();
        fragment.resize(4);
        assert!(fragment.check().unwrap_err().contains("no factors"));
        let mut fragment: Fragment = "5x5x8: a=conv 8 k3 s2".parse().unwrap();
        fragment.resize(9);
        assert_eq!((fragment.output().height, fragment.check()), (5, Ok(())));
        fragment.resize(0);
        assert!(fragment.check().is_err());
    }
}
