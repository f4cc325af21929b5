//! Constants and the arithmetic on shapes that exporters leave in a graph. Shapes are static, so all of it is computed here.

use hawqc_ir::Elem;

use crate::import::constant::{self, Constant, Payload, data_type_name, elem_of};
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

/// Most elements of a constant made from a shape alone.
const MAX_FILLED: usize = 1 << 20;

const SHAPE_ONLY: &str = "constants, as in computing a shape";

fn integers(dims: Vec<usize>, values: Vec<i64>) -> Value {
    Value::Const(Constant::i64s(dims, values).into())
}

fn floats(dims: Vec<usize>, values: Vec<f32>) -> Value {
    Value::Const(Constant::f32s(dims, values).into())
}

pub fn constant(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    if let Some(proto) = node.tensor("value")? {
        return Ok(Value::Const(constant::decode(proto.clone(), cx.base_dir)?.into()));
    }
    if let Some(v) = node.float("value_float")? {
        return Ok(floats(vec![], vec![v]));
    }
    if let Some(v) = node.floats("value_floats")? {
        return Ok(floats(vec![v.len()], v.to_vec()));
    }
    if let Some(v) = node.int("value_int")? {
        return Ok(integers(vec![], vec![v]));
    }
    if let Some(v) = node.ints("value_ints")? {
        return Ok(integers(vec![v.len()], v.to_vec()));
    }
    Err(unsupported("value", "absent or sparse", "value, value_float(s), value_int(s)", ""))
}

pub fn constant_of_shape(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let shape = node.constant(0, "shape")?.to_i64s()?;
    let dims: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dims = dims.ok_or_else(|| invalid(format!("shape {shape:?}")))?;
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_FILLED);
    let count = count.ok_or_else(|| invalid(format!("shape {shape:?} has more than {MAX_FILLED} elements")))?;
    let value = node.tensor("value")?.map(|t| constant::decode(t.clone(), cx.base_dir)).transpose()?;
    match value {
        None => Ok(floats(dims, vec![0.0; count])),
        Some(v) if v.is_float() => Ok(floats(dims, vec![v.scalar()?; count])),
        Some(v) => match v.to_i64s()?.as_slice() {
            &[v] => Ok(integers(dims, vec![v; count])),
            _ => Err(invalid("attribute `value` is not a scalar")),
        },
    }
}

pub fn shape(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let dims = cx.dims(node.input(0)?);
    let rank = dims.len() as i64;
    let at = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (start, end) = (at(node.int("start")?.unwrap_or(0)), at(node.int("end")?.unwrap_or(rank)));
    let values: Vec<i64> = dims.get(start..end).unwrap_or_default().iter().map(|&d| d as i64).collect();
    Ok(integers(vec![values.len()], values))
}

pub fn gather(_: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let Value::Const(data) = node.input(0)? else {
        return Err(unsupported("input 0", "computed at run time", SHAPE_ONLY, ""));
    };
    let indices = node.constant(1, "indices")?;
    if data.dims.len() != 1 || indices.dims.len() > 1 {
        return Err(unsupported("rank of input 0", format!("{:?}", data.dims), "rank 1", ""));
    }
    axis(node.int("axis")?.unwrap_or(0), 1)?;
    let values = data.to_i64s()?;
    let pick = |i: i64| Ok(values[axis(i, values.len())?]);
    let picked = indices.to_i64s()?.into_iter().map(pick).collect::<Result<Vec<_>, NodeError>>()?;
    Ok(integers(indices.dims.clone(), picked))
}

/// Slices a constant of indices. Bounds are attributes up to opset 9, inputs since.
pub fn slice(_: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let Value::Const(data) = node.input(0)? else {
        return Err(unsupported("input 0", "computed at run time", SHAPE_ONLY, ""));
    };
    let part = |name: &str, input: usize| -> Result<Option<Vec<i64>>, NodeError> {
        if node.opset < 10 {
            return Ok(node.ints(name)?.map(<[i64]>::to_vec));
        }
        node.optional_constant(input, name)?.map(|c| c.to_i64s()).transpose()
    };
    let missing = |name: &str| invalid(format!("`{name}` is missing"));
    let starts = part("starts", 1)?.ok_or_else(|| missing("starts"))?;
    let ends = part("ends", 2)?.ok_or_else(|| missing("ends"))?;
    let axes = part("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if node.opset < 10 { None } else { part("steps", 4)? }.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(invalid("starts, ends, axes and steps differ in length"));
    }
    // The positions taken along every axis.
    let mut taken: Vec<Vec<usize>> = data.dims.iter().map(|&d| (0..d).collect()).collect();
    for (i, &a) in axes.iter().enumerate() {
        let a = axis(a, data.dims.len())?;
        taken[a] = positions(data.dims[a], starts[i], ends[i], steps[i])?;
    }
    let values = data.to_i64s()?;
    let mut offsets = vec![0];
    for (positions, &d) in taken.iter().zip(&data.dims) {
        offsets = offsets.iter().flat_map(|&o| positions.iter().map(move |&p| o * d + p)).collect();
    }
    let dims = taken.iter().map(Vec::len).collect();
    Ok(integers(dims, offsets.into_iter().map(|o| values[o]).collect()))
}

/// What `start..end` by `step` takes of `len` positions; negative bounds count from the end, all are clamped.
fn positions(len: usize, start: i64, end: i64, step: i64) -> Result<Vec<usize>, NodeError> {
    let signed = len as i64;
    let from_end = |v: i64| if v < 0 { v.saturating_add(signed) } else { v };
    let (start, end) = (from_end(start), from_end(end));
    let stride = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX).max(1);
    match step {
        0 => Err(invalid("a step of 0")),
        1.. => {
            let (start, end) = (start.clamp(0, signed), end.clamp(0, signed));
            Ok((start as usize..end as usize).step_by(stride).collect())
        }
        // Downwards from `start` to just above `end`.
        _ => {
            let (start, end) = (start.clamp(-1, signed - 1), end.clamp(-1, signed - 1));
            Ok(((end + 1) as usize..(start + 1) as usize).rev().step_by(stride).collect())
        }
    }
}

/// Between number types of constants; of run-time values only f32 to f32.
pub fn cast(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    const INT64: i64 = 7;
    let to = node.int("to")?.ok_or_else(|| invalid("attribute `to` is missing"))?;
    let elem = i32::try_from(to).ok().and_then(elem_of);
    let refused =
        || unsupported("to", data_type_name(i32::try_from(to).unwrap_or(0)), "float, int32 or int64 of constants", "");
    match node.input(0)? {
        Value::Run(id) if elem == Some(cx.graph.ty(*id).elem) => Ok(Value::Run(*id)),
        Value::Run(_) => Err(refused()),
        Value::Const(constant) => {
            let dims = constant.dims.clone();
            match (constant.is_float(), elem) {
                (true, Some(Elem::F32)) => Ok(Value::Const(constant.clone())),
                (true, None) if to == INT64 => {
                    Ok(integers(dims, constant.to_f32s()?.iter().map(|&v| v as i64).collect()))
                }
                (false, Some(Elem::F32)) if !matches!(*constant.payload, Payload::F32(_)) => {
                    Ok(floats(dims, constant.to_i64s()?.iter().map(|&v| v as f32).collect()))
                }
                // Both integer types of shapes are held as int64.
                (false, Some(Elem::I32)) => Ok(integers(dims, constant.to_i64s()?)),
                (false, None) if to == INT64 => Ok(integers(dims, constant.to_i64s()?)),
                _ => Err(refused()),
            }
        }
    }
}

/// An operation on two constants, of which one may be a scalar.
pub fn arithmetic(
    a: &Constant,
    b: &Constant,
    on_ints: impl Fn(i64, i64) -> Option<i64>,
    on_floats: impl Fn(f32, f32) -> f32,
) -> Result<Value, NodeError> {
    if a.dims != b.dims && a.len() != 1 && b.len() != 1 {
        let found = format!("{:?} and {:?}", a.dims, b.dims);
        return Err(unsupported("shapes of two constants", found, "equal shapes, or one a scalar", ""));
    }
    if a.len() == 0 || b.len() == 0 {
        return Err(invalid("arithmetic on an empty constant"));
    }
    let dims = if (a.len(), a.dims.len()) >= (b.len(), b.dims.len()) { a.dims.clone() } else { b.dims.clone() };
    let count: usize = dims.iter().product();
    fn at<T: Copy>(values: &[T], i: usize) -> T {
        if values.len() == 1 { values[0] } else { values[i] }
    }
    if a.is_float() && b.is_float() {
        let (x, y) = (a.to_f32s()?, b.to_f32s()?);
        return Ok(floats(dims, (0..count).map(|i| on_floats(at(&x, i), at(&y, i))).collect()));
    }
    let (x, y) = (a.to_i64s()?, b.to_i64s()?);
    let values: Option<Vec<i64>> = (0..count).map(|i| on_ints(at(&x, i), at(&y, i))).collect();
    Ok(integers(dims, values.ok_or_else(|| invalid("arithmetic on a shape overflows"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_numpy() {
        let at = |start, end, step| positions(5, start, end, step).unwrap();
        assert_eq!(at(1, 4, 1), [1, 2, 3]);
        assert_eq!(at(0, i64::MAX, 2), [0, 2, 4]);
        assert_eq!(at(-2, i64::MAX, 1), [3, 4]);
        assert_eq!(at(-1, i64::MIN, -1), [4, 3, 2, 1, 0]);
        assert_eq!(at(i64::MAX, 1, -2), [4, 2]);
        assert!(at(3, 1, 1).is_empty() && at(1, 3, -1).is_empty());
        assert_eq!(positions(0, -1, i64::MIN, -1).unwrap(), Vec::<usize>::new());
        assert!(positions(5, 0, 5, 0).is_err());
    }
}
