use hawqc_ir::*;

use super::harness::{Case, Operand, runnable_targets};

const ELEMS: [Elem; 7] = Elem::ALL;

#[test]
fn concatenation() {
    for target in runnable_targets() {
        for (i, elem) in ELEMS.into_iter().enumerate() {
            for axis in 0..4 {
                let part = |n: usize| {
                    let mut shape = [2, 3, 2, 5];
                    shape[axis] = n;
                    Operand::input(TensorType::new(elem, shape), (i + n) as u64)
                };
                let operands = vec![part(1), part(7), part(20)];
                let args = (0..3).map(Arg::Operand).collect();
                let name = format!("concat {elem} {axis}");
                Case { name, operands, body: vec![(Concat { axis }.into(), args)], ..Case::default() }
                    .check_default(&target);
            }
        }
    }
}

#[test]
fn padding() {
    for target in runnable_targets() {
        for (i, elem) in ELEMS.into_iter().enumerate() {
            for (c, pad) in [(1, [1, 2, 0, 3]), (3, [0, 1, 2, 0]), (17, [1, 0, 1, 1])] {
                let pad = Pad { pad, value: Real::new(if elem.is_float() { -0.5 } else { 3.0 }) };
                let operands = vec![Operand::input(TensorType::new(elem, [2, 3, 4, c]), i as u64)];
                let name = format!("pad {elem} {c}");
                Case { name, operands, body: vec![(pad.into(), vec![Arg::Operand(0)])], ..Case::default() }
                    .check_default(&target);
            }
        }
    }
}

#[test]
fn transposition() {
    for target in runnable_targets() {
        for (i, elem) in ELEMS.into_iter().enumerate() {
            for (shape, perm) in [
                (vec![2, 3, 4, 17], vec![0, 3, 1, 2]),
                (vec![2, 17, 3, 5], vec![0, 2, 3, 1]),
                (vec![2, 3, 4, 17], vec![2, 0, 1, 3]),
                (vec![3, 9], vec![1, 0]),
                (vec![5], vec![0]),
                (vec![2, 3, 1, 2, 5], vec![4, 2, 0, 3, 1]),
            ] {
                let name = format!("transpose {elem} {shape:?} {perm:?}");
                let operands = vec![Operand::input(TensorType::new(elem, shape), i as u64)];
                let body = vec![(Transpose { perm }.into(), vec![Arg::Operand(0)])];
                Case { name, operands, body, ..Case::default() }.check_default(&target);
            }
        }
    }
}
