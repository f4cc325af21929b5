//! Printing graphs.

use std::fmt::Write;

use crate::graph::{Graph, ValueId};
use crate::kernel::{Arg, KernelSpec};
use crate::ops::Op;
use crate::tensor::{Data, Tensor};
use crate::types::TensorType;

/// Constants of up to this many elements are written out.
const LITERAL_ELEMENTS: usize = 16;

/// The canonical text of a graph.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    for id in graph.values() {
        print_node(&mut out, graph, id);
    }
    for (name, id) in graph.outputs() {
        let _ = writeln!(out, "output %{} {name:?}", id.index());
    }
    out
}

// Writing to a string cannot fail, so the results of `write!` carry nothing.
fn print_node(out: &mut String, graph: &Graph, id: ValueId) {
    let node = graph.node(id);
    let _ = write!(out, "%{} = {}", id.index(), node.op.name());
    if let Some(tensor) = graph.tensor(id) {
        let ty = TensorType::new(tensor.elem(), tensor.shape());
        let _ = write!(out, " {} : {ty}", literal(tensor));
    } else {
        let args: Vec<String> = graph.args(id).iter().map(|a| format!("%{}", a.index())).collect();
        print_application(out, &args, &node.op);
        let _ = write!(out, " : {}", node.ty);
    }
    if !node.name.is_empty() {
        let _ = write!(out, " @{:?}", node.name);
    }
    out.push('\n');
}

fn print_application(out: &mut String, args: &[String], op: &Op) {
    if !args.is_empty() {
        let _ = write!(out, " {}", args.join(", "));
    }
    for (key, value) in op.fields() {
        let _ = write!(out, " {key}={value}");
    }
    if let Op::Kernel(spec) | Op::Second(spec) = op {
        let _ = write!(out, " {{\n{}}}", print_spec(spec));
    }
}

/// The body of a kernel, one step a line; behind a line `second #n`, that of its second result, whose
/// `#0` is the first and whose other operands are the kernel's from `#n` on.
pub fn print_spec(spec: &KernelSpec) -> String {
    let mut out = String::new();
    for (i, step) in spec.steps().iter().enumerate() {
        let arg = |a: &Arg| match a {
            Arg::Operand(i) => format!("#{i}"),
            Arg::Step(i) => format!("${i}"),
        };
        let _ = write!(out, "  ${i} = {}", step.op.name());
        let args: Vec<String> = step.args.iter().map(arg).collect();
        print_application(&mut out, &args, &step.op);
        let _ = writeln!(out, " : {}", step.ty);
    }
    if let Some(second) = spec.second() {
        let _ = write!(out, "  second #{}\n{}", spec.second_operands(), print_spec(second));
    }
    out
}

fn literal(tensor: &Tensor) -> String {
    fn of<T: PartialEq + std::fmt::Debug>(values: &[T]) -> Option<String> {
        let (first, rest) = values.split_first()?;
        if !rest.is_empty() && rest.iter().all(|v| v == first) {
            return Some(format!("splat({first:?})"));
        }
        let items: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        (values.len() <= LITERAL_ELEMENTS).then(|| format!("[{}]", items.join(",")))
    }
    let short = match tensor.data() {
        Data::U8(v) => of(v),
        Data::I8(v) => of(v),
        Data::I16(v) => of(v),
        Data::I32(v) => of(v),
        // NaN has many forms and does not equal itself; such constants go by hash.
        Data::F32(v) if v.iter().all(|x| x.is_finite() && !(*x == 0.0 && x.is_sign_negative())) => of(v),
        Data::F32(_) => None,
    };
    short.unwrap_or_else(|| format!("hash({:?})", tensor.const_id()))
}
