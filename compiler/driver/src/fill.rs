//! Made-up inputs.

use hawqc_ir::{Range, TensorType, text};
use hawqc_runtime::{Elem, Tensor};

use crate::error::Error;
use crate::tensors::{to_ir_elem, to_runtime};

/// Uniformly random values, the same for the same seed: floats in [-4, 4), integers over their whole range.
pub fn random(elem: Elem, shape: &[usize], seed: u64) -> Result<Tensor, Error> {
    let elem = to_ir_elem(elem)?;
    let ty = TensorType::new(elem, shape);
    // `seeded` divides the integers by 256 for floats.
    let range = elem.range().unwrap_or(Range::new(-1024, 1023));
    to_runtime(&text::seeded(&ty, seed, range).map_err(hawqc_ir::TypeError::new)?)
}
