//! The graph: an append-only, typed dataflow graph, one value per node.
//!
//! A node is added after its operands and never changed, so the graph is acyclic by construction
//! and the order of ids is a topological order, the same on every run. Passes do not edit; they
//! [`Graph::rebuild`], which maps every old value to a new one and drops what no output needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::error::{IrError, TypeError};
use crate::ops::Op;
use crate::tensor::{ConstId, Tensor};
use crate::types::TensorType;

/// A value: the result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }

    fn node(self) -> NodeIndex<u32> {
        NodeIndex::from(self.0)
    }
}

/// An operator applied to operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    /// Type of the result; for constants the range is the span of the actual values.
    pub ty: TensorType,
    /// The ONNX node this one stems from; for people, no meaning depends on it.
    pub name: String,
}

/// See the module's documentation. Edges carry the operand's position.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: DiGraph<Node, u32>,
    inputs: Vec<ValueId>,
    outputs: Vec<(String, ValueId)>,
    constants: BTreeMap<ConstId, (Arc<Tensor>, ValueId)>,
}

impl Graph {
    pub fn new() -> Graph {
        Graph::default()
    }

    /// Adds an input. Inputs are ordered; their names are those of the model.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType) -> Result<ValueId, IrError> {
        let name = name.into();
        ty.check().map_err(|source| IrError::Type { node: name.clone(), op: "input".into(), source })?;
        let id = self.push(Node { op: Op::Input(ty.clone()), ty, name }, &[]);
        self.inputs.push(id);
        Ok(id)
    }

    /// Adds a constant, or finds the one with the same content.
    pub fn constant(&mut self, tensor: impl Into<Arc<Tensor>>) -> ValueId {
        let tensor = tensor.into();
        self.intern(tensor.const_id(), tensor)
    }

    /// Adds a constant whose identity is known; hashing is most of a constant's cost.
    fn intern(&mut self, key: ConstId, tensor: Arc<Tensor>) -> ValueId {
        if let Some(&(_, id)) = self.constants.get(&key) {
            return id;
        }
        let id = self.push(Node { op: Op::Const(key), ty: tensor.ty(), name: String::new() }, &[]);
        self.constants.insert(key, (tensor, id));
        id
    }

    /// Adds an operator; the result's type is inferred.
    pub fn add(&mut self, name: impl Into<String>, op: impl Into<Op>, args: &[ValueId]) -> Result<ValueId, IrError> {
        let (name, op) = (name.into(), op.into());
        let types: Vec<&TensorType> = args.iter().map(|&a| self.ty(a)).collect();
        match op.infer(&types) {
            Ok(ty) => Ok(self.push(Node { op, ty, name }, args)),
            Err(source) => Err(IrError::Type { node: name, op: op.name().into(), source }),
        }
    }

    /// Declares an output of the network.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push((name.into(), value));
    }

    fn push(&mut self, node: Node, args: &[ValueId]) -> ValueId {
        let index = self.nodes.add_node(node);
        for (port, arg) in args.iter().enumerate() {
            self.nodes.add_edge(arg.node(), index, port as u32);
        }
        ValueId(index.index() as u32)
    }

    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values, operands before results.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.len() as u32).map(ValueId)
    }

    pub fn node(&self, id: ValueId) -> &Node {
        &self.nodes[id.node()]
    }

    pub fn op(&self, id: ValueId) -> &Op {
        &self.node(id).op
    }

    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.node(id).ty
    }

    pub fn name(&self, id: ValueId) -> &str {
        &self.node(id).name
    }

    /// The operands, in order.
    pub fn args(&self, id: ValueId) -> Vec<ValueId> {
        let edges = self.nodes.edges_directed(id.node(), Direction::Incoming);
        let mut args: Vec<(u32, ValueId)> = edges.map(|e| (*e.weight(), ValueId(e.source().index() as u32))).collect();
        args.sort_unstable();
        args.into_iter().map(|(_, id)| id).collect()
    }

    /// The nodes that use a value, in order, each once per use. Outputs are not listed.
    pub fn users(&self, id: ValueId) -> Vec<ValueId> {
        let edges = self.nodes.edges_directed(id.node(), Direction::Outgoing);
        let mut users: Vec<ValueId> = edges.map(|e| ValueId(e.target().index() as u32)).collect();
        users.sort_unstable();
        users
    }

    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|&(_, v)| v == id)
    }

    /// The data of a constant; `None` for any other value.
    pub fn tensor(&self, id: ValueId) -> Option<&Arc<Tensor>> {
        match self.op(id) {
            Op::Const(key) => self.constants.get(key).map(|(tensor, _)| tensor),
            _ => None,
        }
    }

    /// All constants by identity.
    pub fn constants(&self) -> impl Iterator<Item = (ConstId, &Arc<Tensor>)> {
        self.constants.iter().map(|(&key, (tensor, _))| (key, tensor))
    }

    /// For every value whether an output depends on it.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.len()];
        for &(_, id) in &self.outputs {
            live[id.index()] = true;
        }
        for id in self.values().collect::<Vec<_>>().into_iter().rev() {
            if live[id.index()] {
                self.args(id).into_iter().for_each(|a| live[a.index()] = true);
            }
        }
        live
    }

    /// Builds a new graph by visiting every live operator of this one, operands first.
    ///
    /// `visit(new, old id, mapped operands)` adds whatever replaces the node to `new` and returns
    /// the value that stands for it. Inputs (all of them) and live constants are copied; outputs
    /// keep their names and order. Values that end up unused stay until the next rebuild.
    pub fn rebuild<E: From<IrError>>(
        &self,
        mut visit: impl FnMut(&mut Graph, ValueId, &[ValueId]) -> Result<ValueId, E>,
    ) -> Result<Graph, E> {
        let mut new = Graph::new();
        let live = self.live();
        let mut map: Vec<Option<ValueId>> = vec![None; self.len()];
        for id in self.values() {
            let mapped = match self.op(id) {
                Op::Input(ty) => new.input(self.name(id), ty.clone())?,
                _ if !live[id.index()] => continue,
                Op::Const(key) => match self.constants.get(key) {
                    Some((tensor, _)) => new.intern(*key, Arc::clone(tensor)),
                    None => return Err(self.invariant(id, "a constant without data").into()),
                },
                _ => {
                    let args: Option<Vec<ValueId>> = self.args(id).iter().map(|a| map[a.index()]).collect();
                    let args = args.ok_or_else(|| self.invariant(id, "an operand comes after its user"))?;
                    visit(&mut new, id, &args)?
                }
            };
            map[id.index()] = Some(mapped);
        }
        for (name, id) in &self.outputs {
            let mapped = map[id.index()].ok_or_else(|| self.invariant(*id, "an output was not built"))?;
            new.output(name.clone(), mapped);
        }
        Ok(new)
    }

    /// The same graph without what no output needs.
    pub fn swept(&self) -> Result<Graph, IrError> {
        self.rebuild(|new, id, args| new.copy(self, id, args))
    }

    /// Adds a node of `other` with mapped operands: the usual default arm of a `rebuild` visit.
    pub fn copy(&mut self, other: &Graph, id: ValueId, args: &[ValueId]) -> Result<ValueId, IrError> {
        self.add(other.name(id), other.op(id).clone(), args)
    }

    /// An error about a node that should not exist.
    pub fn invariant(&self, id: ValueId, message: impl Into<String>) -> IrError {
        let node = format!("%{} {}", id.0, self.name(id));
        IrError::Invariant { node, message: message.into() }
    }

    /// A type error about a node.
    pub fn type_error(&self, id: ValueId, source: TypeError) -> IrError {
        IrError::Type { node: self.name(id).to_string(), op: self.op(id).name().into(), source }
    }
}

impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.inputs == other.inputs
            && self.outputs == other.outputs
            && self.len() == other.len()
            && self.values().all(|id| self.node(id) == other.node(id) && self.args(id) == other.args(id))
    }
}
