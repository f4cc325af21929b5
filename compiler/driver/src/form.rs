//! The grammar of a graph at each point of the pipeline, checked after every pass.

use std::fmt;

use hawqc_ir::{Graph, IrError, Op, ValueId, verify};

/// What a graph may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Floats, no quantisation.
    Float,
    /// Floats with `quantize` and `dequantize` around integers.
    Qdq,
    /// Integers, with floats at the border only.
    Integer,
    /// Kernels, reshapes and leaves.
    Kernels,
}

impl Form {
    /// Checks that `graph` has this form and holds the invariants of `hawqc_ir::verify`.
    pub fn check(self, graph: &Graph) -> Result<(), IrError> {
        match self {
            Form::Integer => verify::check_integer(graph)?,
            _ => verify::check(graph)?,
        }
        let live = graph.live();
        match graph.values().find(|&id| live[id.index()] && !self.admits(graph, id)) {
            None => Ok(()),
            Some(id) => Err(graph.invariant(id, format!("`{}` has no place in the {self} form", graph.op(id).name()))),
        }
    }

    fn admits(self, graph: &Graph, id: ValueId) -> bool {
        match (self, graph.op(id)) {
            (_, Op::Input(_) | Op::Const(_) | Op::Reshape(_)) => true,
            (Form::Kernels, op) => matches!(op, Op::Kernel(_) | Op::Second(_)),
            (_, Op::Kernel(_) | Op::Second(_)) => false,
            (Form::Float, Op::Quantize(_) | Op::Dequantize(_) | Op::Requant(_) | Op::Clamp(_) | Op::SumPool(_)) => {
                false
            }
            _ => true,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Float => "float",
            Form::Qdq => "QDQ",
            Form::Integer => "integer",
            Form::Kernels => "kernel",
        })
    }
}
