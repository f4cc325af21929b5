//! The forms a kernel may take: the grammar of the fused graph, as code.
//!
//! A fused graph holds inputs, constants, `reshape` (an alias: the same bytes) and kernels of exactly
//! these forms, where "pointwise" is requant, add or clamp of integers, every data operand having the
//! shape of the result:
//!
//! | form | steps |
//! |---|---|
//! | conv | `$0 = conv #src, #wei[, #bias]`, then pointwise steps |
//! | pool | `$0 = max_pool` or `sum_pool` of integers, then pointwise steps |
//! | pointwise | pointwise steps only |
//! | movement | one of concat, pad, transpose, of any element |
//! | border in | `quantize`, or `transpose` then `quantize` |
//! | border out | one `dequantize` or one `softmax` |
//!
//! A convolution may have a second result, pointwise in the first and read by a `second` node.
//!
//! Weights, biases, multipliers, shifts, scales and zero points are constants.

use hawqc_ir::{Arg, Graph, KernelSpec, Op, TypeError, ValueId, verify};

use crate::error::RewriteError;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Conv,
    Pool,
    Pointwise,
    Movement,
    BorderIn,
    BorderOut,
}

/// Whether an operator computes each element from the elements at the same place, in integers.
pub(crate) fn is_pointwise(op: &Op) -> bool {
    matches!(op, Op::Requant(_) | Op::Clamp(_) | Op::Add(_))
}

/// How many leading operands of an operator are data; the rest are constant parameters.
pub(crate) fn data_operands(op: &Op, count: usize) -> usize {
    match op {
        Op::Conv(_) | Op::Requant(_) | Op::Quantize(_) | Op::Dequantize(_) => 1,
        _ => count,
    }
}

impl Form {
    /// The form of a kernel, or what keeps it from having one.
    pub fn of(spec: &KernelSpec) -> Result<Form, TypeError> {
        let ops: Vec<&Op> = spec.steps().iter().map(|s| &s.op).collect();
        let integer = |i: usize| spec.steps()[i].ty.range.is_some();
        let form = match ops.as_slice() {
            [Op::Concat(_) | Op::Pad(_) | Op::Transpose(_)] => Form::Movement,
            [Op::Quantize(_)] | [Op::Transpose(_), Op::Quantize(_)] => Form::BorderIn,
            [Op::Dequantize(_) | Op::Softmax(_)] => Form::BorderOut,
            [Op::Conv(_), rest @ ..] if integer(0) && rest.iter().all(|op| is_pointwise(op)) => Form::Conv,
            [Op::MaxPool(_) | Op::SumPool(_), rest @ ..] if integer(0) && rest.iter().all(|op| is_pointwise(op)) => {
                Form::Pool
            }
            ops if integer(0) && ops.iter().all(|op| is_pointwise(op)) => Form::Pointwise,
            _ => {
                let names: Vec<&str> = ops.iter().map(|op| op.name()).collect();
                return Err(TypeError::new(format!("a kernel of {} has none of the known forms", names.join(", "))));
            }
        };
        every_step_is_used(spec)?;
        match spec.second().map(|second| Form::of(second)).transpose()? {
            Some(second) if (form, second) != (Form::Conv, Form::Pointwise) => {
                Err(TypeError::new("a second result that is not pointwise, or not of a convolution"))
            }
            _ => Ok(form),
        }
    }
}

fn every_step_is_used(spec: &KernelSpec) -> Result<(), TypeError> {
    let last = spec.steps().len() - 1;
    let used = |i: usize| spec.steps().iter().any(|s| s.args.contains(&Arg::Step(i)));
    match (0..last).find(|&i| !used(i)) {
        None => Ok(()),
        Some(i) => Err(TypeError::new(format!("step {i} of the kernel is not used"))),
    }
}

/// Checks that a graph is fused: only the node kinds and kernel forms of the module's table.
pub fn check_fused(graph: &Graph) -> Result<(), RewriteError> {
    verify::check(graph)?;
    for id in graph.values() {
        match graph.op(id) {
            Op::Input(_) | Op::Const(_) | Op::Reshape(_) => {}
            Op::Kernel(spec) | Op::Second(spec) => {
                Form::of(spec).map_err(|e| graph.type_error(id, e))?;
                check_parameters(graph, id, spec)?;
            }
            _ => {
                let help = "a fused graph holds inputs, constants, reshapes and kernels";
                return Err(RewriteError::unsupported(graph, id, "left outside of every kernel", help));
            }
        }
    }
    Ok(())
}

fn check_parameters(graph: &Graph, id: ValueId, spec: &KernelSpec) -> Result<(), RewriteError> {
    let args = graph.args(id);
    for step in spec.steps() {
        for parameter in &step.args[data_operands(&step.op, step.args.len())..] {
            let constant = matches!(parameter, Arg::Operand(i) if graph.tensor(args[*i]).is_some());
            if !constant {
                let found = format!("an operand of `{}` that is not a constant", step.op.name());
                return Err(RewriteError::unsupported(graph, id, found, "weights and scales must be constants"));
            }
        }
    }
    Ok(())
}
