//! Fusion: from an integer graph to a graph of kernels.
//!
//! In: an integer graph (floats at the border only). Out: a graph of inputs, constants, reshapes and
//! kernels as described in [`crate::forms`], with the same outputs bit for bit.
//!
//! Kernels are cut from the outputs backwards. A value is *materialised* if something other than a
//! pointwise operator reads it, if it has readers in more than one kernel, or if it is an output. The
//! kernel of a materialised value is the cone of pointwise operators above it whose results nobody else
//! needs, ending at one anchor (convolution or pooling) at most. Every inner value of a cone has all its
//! readers inside, so kernels never depend on each other in a cycle.
//!
//! When several anchors meet in one cone (a residual addition joining two convolutions), one convolution
//! stays, the one that leaves the fewest bytes to the others or else the latest, and every other branch is
//! materialised where it is narrowest.
//!
//! A kernel of pointwise steps over the result of a convolution's kernel and nothing else becomes the second result of that
//! kernel, the first such one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use hawqc_ir::{Arg, Graph, IrError, KernelSpec, Op, ValueId};

use crate::error::RewriteError;
use crate::forms::{check_fused, data_operands, is_pointwise};

/// Fuses an integer graph into kernels; see the module's documentation.
pub fn fuse(graph: &Graph) -> Result<Graph, RewriteError> {
    let graph = graph.swept()?;
    check_operators(&graph)?;
    let cones = Cutter { graph: &graph, materialised: BTreeSet::new() }.cut();
    let fused = build(&graph, &cones)?;
    check_fused(&fused)?;
    Ok(fused)
}

/// The nodes of one kernel.
struct Cone {
    /// Convolution or pooling, or the transpose before a quantize.
    anchor: Option<ValueId>,
    /// Every node of the kernel; the result is the last.
    members: BTreeSet<ValueId>,
}

struct Cutter<'a> {
    graph: &'a Graph,
    /// Values that were chosen to be results of kernels of their own.
    materialised: BTreeSet<ValueId>,
}

fn is_anchor(op: &Op) -> bool {
    matches!(op, Op::Conv(_) | Op::MaxPool(_) | Op::SumPool(_))
}

impl Cutter<'_> {
    /// One cone for every materialised value that is neither leaf nor reshape.
    fn cut(mut self) -> BTreeMap<ValueId, Cone> {
        let mut cones = BTreeMap::new();
        let mut covered: BTreeSet<ValueId> = BTreeSet::new();
        let ids: Vec<ValueId> = self.graph.values().collect();
        for root in ids.into_iter().rev() {
            if matches!(self.graph.op(root), Op::Input(_) | Op::Const(_) | Op::Reshape(_)) || covered.contains(&root) {
                continue;
            }
            let cone = self.settle(root);
            covered.extend(&cone.members);
            cones.insert(root, cone);
        }
        cones
    }

    /// The cone of a root, after cutting off branches until one anchor is left.
    fn settle(&mut self, root: ValueId) -> Cone {
        loop {
            let (members, anchors) = self.grow(root);
            let Some(anchor) = self.best_anchor(&anchors, root, &members) else {
                return Cone { anchor: self.border_transpose(root), members: self.with_border(members, root) };
            };
            let Some(&other) = anchors.iter().find(|&&a| a != anchor) else {
                return Cone { anchor: Some(anchor), members };
            };
            let cut = self.narrowest(other, anchor, root, &members);
            self.materialised.insert(cut);
        }
    }

    /// The anchor to keep: a convolution before a pooling, then the one that leaves the fewest bytes to be
    /// stored by the others, then the latest.
    fn best_anchor(&self, anchors: &[ValueId], root: ValueId, members: &BTreeSet<ValueId>) -> Option<ValueId> {
        let stored = |anchor: ValueId| -> usize {
            let others = anchors.iter().filter(|&&other| other != anchor);
            others.map(|&other| self.graph.ty(self.narrowest(other, anchor, root, members)).bytes()).sum()
        };
        let rank = |id: &ValueId| (matches!(self.graph.op(*id), Op::Conv(_)), Reverse(stored(*id)), *id);
        anchors.iter().copied().max_by_key(rank)
    }

    /// Every node above `root` that belongs to its kernel alone, and the anchors among them.
    fn grow(&self, root: ValueId) -> (BTreeSet<ValueId>, Vec<ValueId>) {
        let mut members = BTreeSet::from([root]);
        let mut anchors = Vec::new();
        if is_anchor(self.graph.op(root)) {
            anchors.push(root);
        }
        if !is_pointwise(self.graph.op(root)) {
            return (members, anchors);
        }
        // Largest id first: when a value is visited, all its readers have been.
        let mut queue = BinaryHeap::from(self.data_args(root));
        while let Some(id) = queue.pop() {
            let op = self.graph.op(id);
            // An anchor needs its source in memory.
            let inner = |u: &ValueId| members.contains(u) && !anchors.contains(u);
            let exclusive =
                self.graph.users(id).iter().all(inner) && !self.graph.is_output(id) && !self.materialised.contains(&id);
            if members.contains(&id) || !exclusive || !(is_pointwise(op) || is_anchor(op)) {
                continue;
            }
            members.insert(id);
            if is_anchor(op) {
                anchors.push(id);
            } else {
                queue.extend(self.data_args(id));
            }
        }
        (members, anchors)
    }

    fn data_args(&self, id: ValueId) -> Vec<ValueId> {
        let mut args = self.graph.args(id);
        args.truncate(data_operands(self.graph.op(id), args.len()));
        args
    }

    /// Where to cut the branch of `other` off the cone of `root`, which keeps `anchor`: of the values
    /// that every path from `other` passes before it meets `anchor`, the one of the fewest bytes, and
    /// of those the last, which leaves the least work to the reader.
    fn narrowest(&self, other: ValueId, anchor: ValueId, root: ValueId, members: &BTreeSet<ValueId>) -> ValueId {
        let below_anchor = self.descendants(anchor, members);
        let mut best = other;
        let mut at = other;
        loop {
            let users: BTreeSet<ValueId> = self.graph.users(at).into_iter().collect();
            let mut users = users.into_iter();
            let (Some(user), None) = (users.next(), users.next()) else {
                return best;
            };
            if user == root || below_anchor.contains(&user) {
                return best;
            }
            at = user;
            if self.graph.ty(at).bytes() <= self.graph.ty(best).bytes() {
                best = at;
            }
        }
    }

    fn descendants(&self, from: ValueId, members: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::from([from]);
        for &id in members.range(from..) {
            if self.graph.args(id).iter().any(|a| found.contains(a)) {
                found.insert(id);
            }
        }
        found
    }

    /// The transpose that a `quantize` at the border reads through.
    fn border_transpose(&self, root: ValueId) -> Option<ValueId> {
        let src = *self.graph.args(root).first()?;
        let fused = matches!(self.graph.op(root), Op::Quantize(_))
            && matches!(self.graph.op(src), Op::Transpose(_))
            && self.graph.users(src).len() == 1
            && !self.graph.is_output(src);
        fused.then_some(src)
    }

    fn with_border(&self, mut members: BTreeSet<ValueId>, root: ValueId) -> BTreeSet<ValueId> {
        members.extend(self.border_transpose(root));
        members
    }
}

/// Refuses what no kernel form can hold, with the node's name.
fn check_operators(graph: &Graph) -> Result<(), RewriteError> {
    for id in graph.values() {
        let op = graph.op(id);
        let args = graph.args(id);
        let float_arithmetic = match op {
            Op::AvgPool(_) | Op::ClampReal(_) => true,
            Op::Conv(_) | Op::Add(_) | Op::MaxPool(_) => graph.ty(id).is_float(),
            _ => false,
        };
        if float_arithmetic {
            let help = "fusion takes an integer graph; quantise and integerise the network first";
            return Err(RewriteError::unsupported(graph, id, "computes in floats", help));
        }
        if let Op::Kernel(_) = op {
            return Err(RewriteError::unsupported(graph, id, "is a kernel already", "fuse a graph once"));
        }
        let parameters = &args[data_operands(op, args.len())..];
        if let Some(&variable) = parameters.iter().find(|&&a| graph.tensor(a).is_none()) {
            let found = format!("operand `{}` is computed, not constant", graph.name(variable));
            return Err(RewriteError::unsupported(graph, id, found, "weights and scales must be constants"));
        }
    }
    Ok(())
}

fn build(graph: &Graph, cones: &BTreeMap<ValueId, Cone>) -> Result<Graph, RewriteError> {
    let seconds = seconds(graph, cones)?;
    let mut new = Graph::new();
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for id in graph.values() {
        let mapped = match (graph.op(id), cones.get(&id)) {
            (Op::Input(ty), _) => new.input(graph.name(id), ty.clone())?,
            (Op::Const(_), _) => match graph.tensor(id) {
                Some(tensor) => new.constant(Arc::clone(tensor)),
                None => return Err(graph.invariant(id, "a constant without data").into()),
            },
            (Op::Reshape(_), _) => {
                let args = mapped_args(graph, &map, id, &graph.args(id))?;
                new.copy(graph, id, &args)?
            }
            (_, Some(cone)) => {
                let (mut spec, mut operands) = kernel(graph, id, cone)?;
                if let Some(second) = seconds.get(&id) {
                    spec = spec.with_second(Arc::clone(&second.spec)).map_err(|e| graph.type_error(id, e))?;
                    for &parameter in &second.operands[1..] {
                        let tensor = graph.tensor(parameter).ok_or_else(|| graph.invariant(id, "no constant"))?;
                        map.insert(parameter, new.constant(Arc::clone(tensor)));
                        operands.push(parameter);
                    }
                }
                let is_second = operands.first().is_some_and(|src| seconds.get(src).is_some_and(|s| s.value == id));
                let op = if is_second { Op::Second } else { Op::Kernel };
                let operands = mapped_args(graph, &map, id, &operands)?;
                new.add(kernel_name(graph, id, cone), op(Arc::new(spec)), &operands)?
            }
            // Inside another kernel.
            (_, None) => continue,
        };
        map.insert(id, mapped);
    }
    for (name, id) in graph.outputs() {
        new.output(name.clone(), mapped_args(graph, &map, *id, &[*id])?[0]);
    }
    Ok(new)
}

/// A second result.
struct Second {
    value: ValueId,
    /// Over the first result and constants.
    spec: Arc<KernelSpec>,
    operands: Vec<ValueId>,
}

/// Second results by the values of their kernels.
fn seconds(graph: &Graph, cones: &BTreeMap<ValueId, Cone>) -> Result<BTreeMap<ValueId, Second>, RewriteError> {
    let mut found = BTreeMap::new();
    let is_conv = |value: &ValueId| {
        cones.get(value).and_then(|cone| cone.anchor).is_some_and(|a| matches!(graph.op(a), Op::Conv(_)))
    };
    for (&value, cone) in cones.iter().filter(|(_, cone)| cone.members.iter().all(|&m| is_pointwise(graph.op(m)))) {
        let (spec, operands) = kernel(graph, value, cone)?;
        let reads = spec.steps().iter().flat_map(|step| &step.args).filter(|arg| **arg == Arg::Operand(0)).count();
        if let Some((src, parameters)) = operands.split_first()
            && is_conv(src)
            && reads == 1
            && parameters.iter().all(|&p| graph.tensor(p).is_some())
        {
            found.entry(*src).or_insert(Second { value, spec: Arc::new(spec), operands });
        }
    }
    Ok(found)
}

fn mapped_args(
    graph: &Graph,
    map: &BTreeMap<ValueId, ValueId>,
    id: ValueId,
    args: &[ValueId],
) -> Result<Vec<ValueId>, IrError> {
    let mapped: Option<Vec<ValueId>> = args.iter().map(|a| map.get(a).copied()).collect();
    mapped.ok_or_else(|| graph.invariant(id, "an operand was fused away"))
}

/// The ONNX node a kernel is named after: its anchor, else its addition, else its result.
fn kernel_name<'a>(graph: &'a Graph, root: ValueId, cone: &Cone) -> &'a str {
    let anchor = cone.anchor.filter(|&a| is_anchor(graph.op(a)));
    let addition = || cone.members.iter().rev().copied().find(|&m| matches!(graph.op(m), Op::Add(_)));
    graph.name(anchor.or_else(addition).unwrap_or(root))
}

/// A kernel's body and operands: the anchor first, then the steps in the order in which the result
/// needs them, operands of an addition that depend on the anchor first. Equal computations thereby get
/// equal specs, whatever order the graph was built in.
fn kernel(graph: &Graph, root: ValueId, cone: &Cone) -> Result<(KernelSpec, Vec<ValueId>), RewriteError> {
    let mut writer =
        Writer { graph, cone, anchored: BTreeSet::new(), steps: BTreeMap::new(), operands: vec![], body: vec![] };
    if let Some(anchor) = cone.anchor {
        writer.anchored.insert(anchor);
        writer.visit(anchor);
    }
    for &id in &cone.members {
        if graph.args(id).iter().any(|a| writer.anchored.contains(a)) {
            writer.anchored.insert(id);
        }
    }
    writer.visit(root);
    let types = writer.operands.iter().map(|&id| graph.ty(id).clone()).collect();
    let spec = KernelSpec::new(types, writer.body).map_err(|e| graph.type_error(root, e))?;
    Ok((spec, writer.operands))
}

struct Writer<'a> {
    graph: &'a Graph,
    cone: &'a Cone,
    /// Members that depend on the anchor.
    anchored: BTreeSet<ValueId>,
    steps: BTreeMap<ValueId, usize>,
    operands: Vec<ValueId>,
    body: Vec<(Op, Vec<Arg>)>,
}

impl Writer<'_> {
    /// The argument that stands for a value, writing the steps it needs first. Iterative, since a
    /// cone may be a long chain.
    fn visit(&mut self, root: ValueId) {
        let mut stack = vec![root];
        while let Some(&id) = stack.last() {
            if self.steps.contains_key(&id) {
                stack.pop();
                continue;
            }
            let args = self.ordered_args(id);
            let missing = args.iter().find(|a| self.cone.members.contains(a) && !self.steps.contains_key(a));
            if let Some(&missing) = missing {
                stack.push(missing);
                continue;
            }
            let args = args.into_iter().map(|a| self.arg(a)).collect();
            self.steps.insert(id, self.body.len());
            self.body.push((self.graph.op(id).clone(), args));
            stack.pop();
        }
    }

    fn ordered_args(&self, id: ValueId) -> Vec<ValueId> {
        let mut args = self.graph.args(id);
        if matches!(self.graph.op(id), Op::Add(_)) {
            args.sort_by_key(|a| !self.anchored.contains(a));
        }
        args
    }

    /// A step, an operand already listed, or a new operand. Constants are listed once per use, so that
    /// the form of a kernel does not depend on whether two of them happen to be equal.
    fn arg(&mut self, id: ValueId) -> Arg {
        if let Some(&step) = self.steps.get(&id) {
            return Arg::Step(step);
        }
        let known = self.operands.iter().position(|&o| o == id).filter(|_| self.graph.tensor(id).is_none());
        Arg::Operand(known.unwrap_or_else(|| {
            self.operands.push(id);
            self.operands.len() - 1
        }))
    }
}
