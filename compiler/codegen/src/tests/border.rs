use hawqc_ir::*;

use super::harness::{Case, Operand, runnable_targets};

/// Floats where rounding, clamping and special values happen.
fn floats(count: usize) -> Vec<f32> {
    let special =
        [0.0, -0.0, 0.25, 0.75, -0.25, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40];
    let other = (0..count).map(|i| (i as f32 - count as f32 / 2.0) * 0.125);
    special.into_iter().chain(other).take(count).collect()
}

fn constant(elem: Elem, values: Vec<i64>) -> Operand {
    Operand::Constant(Tensor::from_ints(elem, [values.len()], values).unwrap())
}

#[test]
fn quantize() {
    for target in runnable_targets() {
        for (shape, perm) in [
            (vec![1, 3, 5, 9], Some(vec![0, 2, 3, 1])),
            (vec![2, 1, 4, 4], Some(vec![0, 2, 3, 1])),
            (vec![1, 4, 3, 7], Some(vec![0, 2, 3, 1])),
            (vec![2, 3, 67, 71], Some(vec![0, 2, 3, 1])),
            (vec![1, 2, 3, 21], None),
            (vec![1, 7], None),
        ] {
            for (elem, zero) in [(Elem::U8, 128), (Elem::I8, 0), (Elem::U4, 8), (Elem::I16, -100)] {
                for per_axis in [false, true] {
                    let count = shape.iter().product();
                    let ty = TensorType::new(Elem::F32, shape.clone());
                    let src = Tensor::from_f32(shape.clone(), floats(count)).unwrap();
                    let out_shape = perm.as_ref().map_or(Ok(shape.clone()), |p| permuted_shape(&shape, p)).unwrap();
                    for (axis, &size) in out_shape.iter().enumerate() {
                        let n = if per_axis { size } else { 1 };
                        let scale = (0..n).map(|i| 0.5 + i as f32 * 0.37).collect();
                        let scale = Operand::Constant(Tensor::from_f32([n], scale).unwrap());
                        let zero = constant(elem, (0..n as i64).map(|i| zero + i % 2).collect());
                        let range = elem.range().unwrap();
                        let op = Quantize { lo: range.lo, hi: range.hi, axis, elem };
                        let mut body: Vec<(Op, Vec<Arg>)> = Vec::new();
                        let mut first = Arg::Operand(0);
                        if let Some(perm) = &perm {
                            body.push((Transpose { perm: perm.clone() }.into(), vec![first]));
                            first = Arg::Step(0);
                        }
                        body.push((op.into(), vec![first, Arg::Operand(1), Arg::Operand(2)]));
                        let operands = vec![Operand::Input(ty.clone(), src.clone()), scale, zero];
                        let name = format!("quantize {elem} {shape:?} {perm:?} axis {axis} {per_axis}");
                        Case { name, operands, body, ..Case::default() }.check_default(&target);
                    }
                }
            }
        }
    }
}

#[test]
fn dequantize() {
    for target in runnable_targets() {
        for (i, elem) in [Elem::I32, Elem::U8, Elem::I16, Elem::I4].into_iter().enumerate() {
            for (shape, axis) in [(vec![1, 1, 1, 10], 3), (vec![3, 7], 0), (vec![2, 3, 5, 4], 1)] {
                for n in [1, shape[axis]] {
                    let ty = TensorType::with_range(
                        elem,
                        shape.clone(),
                        elem.range().unwrap().clamped(-1 << 31, (1 << 31) - 300),
                    );
                    let src = Operand::input(ty.unwrap(), i as u64);
                    let scale = Tensor::from_f32([n], (0..n).map(|j| 1e-3 * (j as f32 + 0.7)).collect()).unwrap();
                    let zero = constant(Elem::I32, vec![if elem == Elem::I32 { 0 } else { -5 }; n]);
                    let body =
                        vec![(Dequantize { axis }.into(), vec![Arg::Operand(0), Arg::Operand(1), Arg::Operand(2)])];
                    let name = format!("dequantize {elem} {shape:?} {axis} {n}");
                    Case { name, operands: vec![src, Operand::Constant(scale), zero], body, ..Case::default() }
                        .check_default(&target);
                }
            }
        }
    }
}

#[test]
fn softmax() {
    for target in runnable_targets() {
        for (rows, row, scale) in [(1, 10, 1.0), (3, 1000, 0.05), (2, 1, 3.0), (4, 7, 40.0)] {
            let ty = TensorType::new(Elem::F32, [rows, row]);
            let values = (0..rows * row).map(|i| ((i * 7919) % 1009) as f32 * 0.01 * scale - 3.0).collect();
            let src = Operand::Input(ty, Tensor::from_f32([rows, row], values).unwrap());
            let case = Case {
                name: format!("softmax {rows} {row}"),
                operands: vec![src],
                body: vec![(Softmax {}.into(), vec![Arg::Operand(0)])],
                ..Case::default()
            };
            case.check_default(&target);
        }
    }
}
