//! The two faces of a model: tensors in the network's own types, and integers without any border.
//!
//! In: a fused graph. Out: an [`Interface`], which says for every input and output which value stands
//! for it at either entry point, and which kernels the integer entry point runs.
//!
//! An input has an integer form if exactly one `quantize` kernel follows it (through float data
//! movement) and that kernel follows no other input. An output has one if it follows from one
//! `dequantize` kernel through float kernels of one operand. Scales must be one for the tensor or one
//! per entry of the last axis. What has no integer form is the same at both entry points.

use std::collections::{BTreeMap, BTreeSet};

use hawqc_ir::{Arg, Graph, IrError, KernelSpec, Op, TensorType, ValueId};
use hawqc_runtime::Elem as MemoryElem;
use hawqc_runtime::manifest::{IntegerDesc, TensorDesc};

use crate::error::CodegenError;

/// A tensor at the boundary.
pub struct Port {
    pub name: String,
    /// The value at the border entry point.
    pub value: ValueId,
    /// The value at the integer entry point, and its description, if it differs.
    pub integer: Option<(ValueId, IntegerDesc)>,
}

pub struct Interface {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Kernels that the integer entry point runs.
    pub integer_values: BTreeSet<ValueId>,
}

impl Interface {
    pub fn new(graph: &Graph) -> Result<Interface, CodegenError> {
        if graph.outputs().is_empty() {
            return Err(graph_error("the graph has no output").into());
        }
        let sources = float_sources(graph);
        let inputs: Vec<Port> = graph
            .inputs()
            .iter()
            .map(|&value| Port {
                name: graph.name(value).to_owned(),
                value,
                integer: quantised(graph, &sources, value).and_then(|q| Some((q, describe(graph, q, q)?))),
            })
            .collect();
        let outputs: Vec<Port> = graph
            .outputs()
            .iter()
            .map(|(name, value)| Port {
                name: name.clone(),
                value: *value,
                integer: dequantised(graph, *value).and_then(|(d, src)| Some((src, describe(graph, d, src)?))),
            })
            .collect();
        let mut interface = Interface { inputs, outputs, integer_values: BTreeSet::new() };
        interface.integer_values = interface.reachable(graph);
        Ok(interface)
    }

    /// Values that the integer entry point fills from its inputs.
    pub fn integer_inputs(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().filter_map(|port| port.integer.as_ref().map(|(value, _)| *value))
    }

    /// Values that outputs are copied from at either entry point.
    pub fn final_values(&self) -> impl Iterator<Item = ValueId> {
        let values = |port: &Port| [Some(port.value), port.integer.as_ref().map(|(value, _)| *value)];
        self.outputs.iter().flat_map(values).flatten()
    }

    /// Kernels needed for the integer outputs, given the integer inputs.
    fn reachable(&self, graph: &Graph) -> BTreeSet<ValueId> {
        let given: BTreeSet<ValueId> = self.integer_inputs().collect();
        let mut found = BTreeSet::new();
        let mut open: Vec<ValueId> =
            self.outputs.iter().map(|port| port.integer.as_ref().map_or(port.value, |(value, _)| *value)).collect();
        while let Some(value) = open.pop() {
            if given.contains(&value) || !found.insert(value) {
                continue;
            }
            open.extend(graph.args(value));
        }
        found
    }

    /// The manifest's description of the inputs and the outputs.
    pub fn describe(&self, graph: &Graph) -> (Vec<TensorDesc>, Vec<TensorDesc>) {
        let desc = |port: &Port| {
            let ty = graph.ty(port.value);
            TensorDesc {
                name: port.name.clone(),
                elem: memory_elem(ty),
                shape: ty.shape.clone(),
                integer: port.integer.as_ref().map(|(_, desc)| desc.clone()),
            }
        };
        (self.inputs.iter().map(desc).collect(), self.outputs.iter().map(desc).collect())
    }
}

fn graph_error(message: &str) -> IrError {
    IrError::Invariant { node: "graph".into(), message: message.into() }
}

/// The element type of a value in memory, where 4-bit values occupy a byte each.
pub fn memory_elem(ty: &TensorType) -> MemoryElem {
    match ty.elem {
        hawqc_ir::Elem::U4 | hawqc_ir::Elem::U8 => MemoryElem::U8,
        hawqc_ir::Elem::I4 | hawqc_ir::Elem::I8 => MemoryElem::I8,
        hawqc_ir::Elem::I16 => MemoryElem::I16,
        hawqc_ir::Elem::I32 => MemoryElem::I32,
        hawqc_ir::Elem::F32 => MemoryElem::F32,
    }
}

/// For every value the inputs that it follows from through floats alone; for an integer result of a
/// kernel over floats, those of its operands.
fn float_sources(graph: &Graph) -> BTreeMap<ValueId, BTreeSet<ValueId>> {
    let mut sources: BTreeMap<ValueId, BTreeSet<ValueId>> = BTreeMap::new();
    for id in graph.values() {
        let own = match graph.op(id) {
            Op::Input(ty) if ty.is_float() => BTreeSet::from([id]),
            Op::Input(_) | Op::Const(_) => BTreeSet::new(),
            _ => graph
                .args(id)
                .iter()
                .filter(|&&a| graph.ty(a).is_float())
                .flat_map(|a| sources.get(a).cloned().unwrap_or_default())
                .collect(),
        };
        sources.insert(id, own);
    }
    sources
}

/// The one quantised form of a float input.
fn quantised(graph: &Graph, sources: &BTreeMap<ValueId, BTreeSet<ValueId>>, input: ValueId) -> Option<ValueId> {
    let live = graph.live();
    let follows = |id: &ValueId| *id != input && live[id.index()] && sources[id].contains(&input);
    let mut forms = graph.values().filter(follows).filter(|&id| !graph.ty(id).is_float());
    let (form, None) = (forms.next()?, forms.next()) else {
        return None;
    };
    let read_as_float = graph.values().filter(follows).any(|id| graph.is_output(id) && graph.ty(id).is_float());
    let only = sources[&form].len() == 1 && !read_as_float && !graph.is_output(input);
    // A reshape after the quantize has the same sources only through floats, so `form` is a kernel.
    (only && matches!(graph.op(form), Op::Kernel(_))).then_some(form)
}

/// The `dequantize` kernel that a float output follows from, and that kernel's source.
fn dequantised(graph: &Graph, output: ValueId) -> Option<(ValueId, ValueId)> {
    let mut value = output;
    while graph.ty(value).is_float() {
        let args = graph.args(value);
        match graph.op(value) {
            Op::Kernel(spec) if is_dequantize(spec) => return Some((value, *args.first()?)),
            Op::Kernel(_) | Op::Reshape(_) if args.len() == 1 => value = args[0],
            _ => return None,
        }
    }
    None
}

fn is_dequantize(spec: &KernelSpec) -> bool {
    matches!(spec.steps(), [step] if matches!(step.op, Op::Dequantize(_)))
}

/// Scale and zero point of a quantize or dequantize kernel, as the description of the integer value
/// `of`; `None` where they vary along another axis than the last.
fn describe(graph: &Graph, kernel: ValueId, of: ValueId) -> Option<IntegerDesc> {
    let Op::Kernel(spec) = graph.op(kernel) else {
        return None;
    };
    let step = spec.steps().last()?;
    let axis = match &step.op {
        Op::Quantize(op) => op.axis,
        Op::Dequantize(op) => op.axis,
        _ => return None,
    };
    let args = graph.args(kernel);
    let constant = |position: usize| match step.args.get(position) {
        Some(&Arg::Operand(i)) => graph.tensor(*args.get(i)?),
        _ => None,
    };
    let (scale, zero) = (constant(1)?.f32s().ok()?.to_vec(), constant(2)?.ints().ok()?);
    let ty = graph.ty(of);
    if scale.len() > 1 && axis + 1 != ty.rank() || zero.iter().any(|z| *z != zero[0]) {
        return None;
    }
    let zero_point = i32::try_from(*zero.first()?).ok()?;
    Some(IntegerDesc { elem: memory_elem(ty), shape: ty.shape.clone(), scale, zero_point })
}
