//! Made-up values, the same for the same seed.

use hawqc_ir::{Graph, Range, Tensor, TensorType, TypeError, text};
use hawqc_runtime as rt;

use crate::error::Error;
use crate::tensors::{to_ir_elem, to_runtime};

/// Uniformly random values of a type: floats in [-4, 4), integers over their range.
pub fn value(ty: &TensorType, seed: u64) -> Result<Tensor, Error> {
    // `seeded` divides the integers by 256 for floats.
    let range = ty.range.unwrap_or(Range::new(-1024, 1023));
    Ok(text::seeded(ty, seed, range).map_err(TypeError::new)?)
}

/// Random inputs of a graph.
pub fn inputs(graph: &Graph, seed: u64) -> Result<Vec<Tensor>, Error> {
    let one = |(index, &id)| value(graph.ty(id), seed.wrapping_mul(1000).wrapping_add(index as u64));
    graph.inputs().iter().enumerate().map(one).collect()
}

/// A random tensor of the runtime, integers over the element's whole range.
pub fn random(elem: rt::Elem, shape: &[usize], seed: u64) -> Result<rt::Tensor, Error> {
    to_runtime(&value(&TensorType::new(to_ir_elem(elem)?, shape), seed)?)
}
