use hawqc_ir::*;

use super::harness::{Case, Operand, runnable_targets};

fn sizes() -> impl Iterator<Item = usize> {
    [1, 3, 4, 5, 15, 16, 17, 35].into_iter()
}

#[test]
fn maximum() {
    for target in runnable_targets() {
        for (i, c) in sizes().enumerate() {
            let elem = [Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::U4, Elem::I4][i % 6];
            let dilation = [1 + i % 2, 1];
            let pool = MaxPool { kernel: [3, 2], stride: [2, 1], pad: [1, 1, 1, 0], dilation };
            let src = Operand::extreme(TensorType::new(elem, [2, 7, 5, c]), 1 + i as u64);
            let name = format!("max {elem} {c}");
            let case = Case { name, operands: vec![src], body: vec![(pool.into(), vec![Arg::Operand(0)])] };
            case.check_default(&target);
        }
    }
}

#[test]
fn sums_requantised_per_tensor_and_per_pixel() {
    for target in runnable_targets() {
        for (i, c) in sizes().enumerate() {
            let (elem, zero) = [(Elem::U8, 128), (Elem::I8, -3), (Elem::U4, 0), (Elem::I16, 7)][i % 4];
            let pool = SumPool { kernel: [3, 3], stride: [1, 2], pad: [1, 1, 1, 1], zero };
            let src = Operand::extreme(TensorType::new(elem, [2, 4, 5, c]), 1 + i as u64);
            let shape = [vec![1], vec![4, 3, 1], vec![c]][i % 3].clone();
            let count: usize = shape.iter().product();
            let mult =
                Tensor::from_ints(Elem::I32, shape.clone(), (0..count as i64).map(|j| (1 << 30) + j * 54_321_000))
                    .unwrap();
            let shift = Tensor::from_ints(Elem::U8, shape.clone(), (0..count as i64).map(|j| 33 + j % 3)).unwrap();
            let requant = Requant::to_range(Elem::U8.range().unwrap(), Elem::U8);
            let body = vec![
                (pool.into(), vec![Arg::Operand(0)]),
                (requant.into(), vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)]),
            ];
            let operands = vec![src, Operand::Constant(mult), Operand::Constant(shift)];
            Case { name: format!("sum {elem} {c} {shape:?}"), operands, body }.check_default(&target);
        }
    }
}

#[test]
fn global_sum() {
    for target in runnable_targets() {
        let pool = SumPool { kernel: [7, 7], stride: [1, 1], pad: [0; 4], zero: 0 };
        let src = Operand::extreme(TensorType::new(Elem::U8, [1, 7, 7, 70]), 3);
        let case =
            Case { name: "global".into(), operands: vec![src], body: vec![(pool.into(), vec![Arg::Operand(0)])] };
        case.check_default(&target);
    }
}
