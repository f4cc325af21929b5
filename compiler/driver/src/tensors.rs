//! The compiler's tensors and the runtime's, and the way between them.

use hawqc_ir as ir;
use hawqc_runtime as rt;

use crate::error::Error;

/// The runtime's element for the memory of an IR element.
pub fn runtime_elem(elem: ir::Elem) -> rt::Elem {
    match elem {
        ir::Elem::U4 | ir::Elem::U8 => rt::Elem::U8,
        ir::Elem::I4 | ir::Elem::I8 => rt::Elem::I8,
        ir::Elem::I16 => rt::Elem::I16,
        ir::Elem::I32 => rt::Elem::I32,
        ir::Elem::F32 => rt::Elem::F32,
    }
}

/// The same values as a tensor of the runtime.
pub fn to_runtime(tensor: &ir::Tensor) -> Result<rt::Tensor, Error> {
    let elem = runtime_elem(tensor.elem());
    let made = rt::Tensor::from_bytes(elem, tensor.shape().to_vec(), &tensor.to_bytes());
    Ok(made.map_err(rt::Error::from)?)
}

/// A tensor of the runtime as IR values of `elem`, whose memory it must have.
pub fn to_ir(tensor: &rt::Tensor, elem: ir::Elem) -> Result<ir::Tensor, Error> {
    if runtime_elem(elem) != tensor.elem() {
        return Err(ir::TypeError::new(format!("expected {elem}, found {}", tensor.elem())).into());
    }
    Ok(ir::Tensor::from_bytes(elem, tensor.shape(), tensor.bytes())?)
}

/// A tensor of the runtime as IR values of the element with the same name.
pub fn to_ir_same(tensor: &rt::Tensor) -> Result<ir::Tensor, Error> {
    to_ir(tensor, to_ir_elem(tensor.elem())?)
}

/// The IR element with the name of a runtime element.
pub fn to_ir_elem(elem: rt::Elem) -> Result<ir::Elem, Error> {
    match elem {
        rt::Elem::F32 => Ok(ir::Elem::F32),
        rt::Elem::U8 => Ok(ir::Elem::U8),
        rt::Elem::I8 => Ok(ir::Elem::I8),
        rt::Elem::I16 => Ok(ir::Elem::I16),
        rt::Elem::I32 => Ok(ir::Elem::I32),
        rt::Elem::I64 => Err(ir::TypeError::new("i64 tensors have no counterpart in the IR").into()),
    }
}
