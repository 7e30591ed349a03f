//! An ONNX graph that grows: unique names, constants of their own, and the shape of every value.

use super::super::Batch;
use super::proto::{
    Attribute, AttributeKind, Dimension, Element, Extent, Graph, Node, Shape, Tensor, TensorType, Type, Value,
};
use std::collections::HashSet;

/// Name of the graph's input.
pub const INPUT: &str = "input";
/// Name of the graph's output.
pub const LOGITS: &str = "logits";
/// Name of the graph's output after softmax.
pub const PROBABILITIES: &str = "probabilities";

/// Ending of the names of values: some engines keep the names of nodes and values in one table.
const VALUE: &str = ".out";

/// A graph that grows.
pub struct Writer {
    graph: Graph,
    /// Names of nodes, values and constants.
    names: HashSet<String>,
    batch: Batch,
}

impl Writer {
    /// A graph without nodes.
    pub fn new(batch: Batch) -> Self {
        let graph = Graph { name: "ofa".into(), ..Graph::default() };
        Writer { graph, names: [INPUT, LOGITS, PROBABILITIES].map(String::from).into(), batch }
    }

    /// Declares the graph's input, `shape` without the batch.
    pub fn input(&mut self, element: Element, shape: &[usize]) -> String {
        let value = value(INPUT, element, std::iter::once(self.batch()).chain(fixed(shape)));
        self.graph.input.push(value);
        INPUT.into()
    }

    /// A constant of `f32`; scalars have no extents.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Element::Float, dims, bytes)
    }

    /// Adds a node whose output has `shape`, without the batch. Returns the name of the output.
    pub fn node(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        shape: &[usize],
    ) -> String {
        self.typed_node(operator, name, inputs, attributes, (Element::Float, shape))
    }

    /// [`node`](Self::node) with an output of another type than f32.
    pub fn typed_node(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        (element, shape): (Element, &[usize]),
    ) -> String {
        let extents = std::iter::once(self.batch()).chain(fixed(shape));
        self.add(operator, name, inputs, attributes, element, extents)
    }

    /// [`node`](Self::node) that reads constants only: its output has no batch.
    pub fn constant_node(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        shape: &[usize],
    ) -> String {
        self.add(operator, name, inputs, attributes, Element::Float, fixed(shape))
    }

    fn add(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        element: Element,
        extents: impl Iterator<Item = Extent>,
    ) -> String {
        let name = self.unique(name);
        let output = self.unique(&format!("{name}{VALUE}"));
        self.graph.node.push(Node {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![output.clone()],
            name,
            op_type: operator.into(),
            attribute: attributes,
        });
        self.graph.value_info.push(value(&output, element, extents));
        output
    }

    /// Renames the output of the last node, which nothing reads yet.
    pub fn rename_last(&mut self, name: &str) -> String {
        if let (Some(node), Some(value)) = (self.graph.node.last_mut(), self.graph.value_info.last_mut()) {
            node.output = vec![name.into()];
            value.name = name.into();
        }
        name.into()
    }

    /// The graph; the output of the last node is the graph's.
    pub fn finish(mut self) -> Graph {
        self.graph.output.extend(self.graph.value_info.pop());
        self.graph
    }

    /// A constant of bytes in little-endian order.
    pub fn constant(&mut self, name: &str, element: Element, dims: &[usize], raw_data: Vec<u8>) -> String {
        let name = self.unique(name);
        let dims = dims.iter().map(|&extent| extent as i64).collect();
        self.graph.initializer.push(Tensor { dims, data_type: element.into(), name: name.clone(), raw_data });
        name
    }

    /// A name that nothing has yet: `wanted`, with other characters than the permitted replaced, a number where it is
    /// taken, and without the endings of the values that it was made of.
    fn unique(&mut self, wanted: &str) -> String {
        let permitted = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '_' };
        let wanted = wanted.replace(&format!("{VALUE}."), ".");
        let mut name: String = wanted.chars().map(permitted).collect();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name.insert_str(0, "node_");
        }
        let taken = (2..).map(|number| format!("{name}_{number}"));
        let free = std::iter::once(name.clone()).chain(taken).find(|name| !self.names.contains(name));
        let name = free.unwrap_or(name);
        self.names.insert(name.clone());
        name
    }

    /// First extent of all values that depend on the images.
    fn batch(&self) -> Extent {
        match self.batch {
            Batch::Fixed(batch) => Extent::Fixed(batch as i64),
            Batch::Dynamic => Extent::Named("batch".into()),
        }
    }
}

fn fixed(shape: &[usize]) -> impl Iterator<Item = Extent> {
    shape.iter().map(|&extent| Extent::Fixed(extent as i64))
}

fn value(name: &str, element: Element, extents: impl Iterator<Item = Extent>) -> Value {
    let dim = extents.map(|extent| Dimension { value: Some(extent) }).collect();
    let tensor_type = Some(TensorType { elem_type: element.into(), shape: Some(Shape { dim }) });
    Value { name: name.into(), r#type: Some(Type { tensor_type }) }
}

/// An attribute that is a real number.
pub fn float(name: &str, f: f32) -> Attribute {
    Attribute { name: name.into(), f: Some(f), kind: AttributeKind::Float.into(), ..Attribute::default() }
}

/// An attribute that is a whole number.
pub fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i: Some(i), kind: AttributeKind::Int.into(), ..Attribute::default() }
}

/// An attribute that is a list of whole numbers.
pub fn ints(name: &str, values: &[usize]) -> Attribute {
    let ints = values.iter().map(|&value| value as i64).collect();
    Attribute { name: name.into(), ints, kind: AttributeKind::Ints.into(), ..Attribute::default() }
}
