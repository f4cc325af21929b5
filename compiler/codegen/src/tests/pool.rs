use hawqc_ir::*;
use hawqc_schedules::Schedule;

use super::harness::{Case, Operand, runnable_targets};
use crate::program::machine;
use crate::target::Target;

fn sizes() -> impl Iterator<Item = usize> {
    [1, 3, 4, 5, 8, 15, 16, 17, 24, 32, 35, 40, 48, 64, 72].into_iter()
}

/// Checks every schedule that the kernel's constants allow; whether the assembled one was among them.
fn check_all(case: &Case, target: &Target) -> bool {
    let all = Schedule::candidates(&case.spec(), machine(target));
    case.check_default(target);
    case.check(target, &all[all.len() - 1..], &[1, 3]);
    all[0] == Schedule::Assembled
}

#[test]
fn maximum() {
    for target in runnable_targets() {
        let mut assembled = 0;
        for (i, c) in sizes().enumerate() {
            let elem = [Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::U4, Elem::I4][i % 6];
            for pool in [
                MaxPool { kernel: [3, 2], stride: [2, 1], pad: [1, 1, 1, 0], dilation: [1 + i % 2, 1] },
                MaxPool { kernel: [3, 3], stride: [2, 2], pad: [1; 4], dilation: [1, 1] },
                MaxPool { kernel: [1, 2], stride: [1, 2], pad: [0; 4], dilation: [1, 3] },
            ] {
                let ty = TensorType::new(elem, [2, 7, 5 + i, c]);
                let src = Operand::extreme(ty.clone(), 1 + i as u64);
                let name = format!("max {elem} {c} {pool:?}");
                let mut case = Case {
                    name,
                    operands: vec![src],
                    body: vec![(pool.into(), vec![Arg::Operand(0)])],
                    ..Case::default()
                };
                assembled += usize::from(check_all(&case, &target));
                let constant = |elem, value| Operand::Constant(Tensor::from_ints(elem, [1], [value]).unwrap());
                let out = [Elem::U8, Elem::I16, Elem::I8][i % 3];
                let requant = Requant::to_range(out.range().unwrap(), out);
                case.operands.extend([constant(Elem::I32, 1_555_555_555), constant(Elem::U8, 31 + i as i64 % 3)]);
                case.body.push((requant.into(), vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)]));
                case.name += " requantised";
                // Values of 32 bits at their extremes would be beyond 32 bits after such a requantisation.
                if elem != Elem::I32 {
                    check_all(&case, &target);
                }
            }
        }
        let wide = machine(&target).wide.iter().any(Option::is_some);
        assert!(wide == (assembled > 0), "{target}: {assembled} assembled");
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
                Tensor::from_ints(Elem::I32, shape.clone(), (0..count as i64).map(|j| (1 << 30) + j % 19 * 54_321_000))
                    .unwrap();
            let shift = Tensor::from_ints(Elem::U8, shape.clone(), (0..count as i64).map(|j| 33 + j % 3)).unwrap();
            let requant = Requant::to_range(Elem::U8.range().unwrap(), Elem::U8);
            let body = vec![
                (pool.into(), vec![Arg::Operand(0)]),
                (requant.into(), vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)]),
            ];
            let operands = vec![src, Operand::Constant(mult), Operand::Constant(shift)];
            let case = Case { name: format!("sum {elem} {c} {shape:?}"), operands, body, ..Case::default() };
            case.check_default(&target);
            case.check(&target, &[Schedule::Default], &[1, 3]);
        }
    }
}

#[test]
fn global_sum() {
    for target in runnable_targets() {
        for (i, c) in [70, 72, 80].into_iter().enumerate() {
            for zero in [0, 9] {
                let pool = SumPool { kernel: [7, 7], stride: [1, 1], pad: [0; 4], zero };
                let elem = [Elem::U8, Elem::I16][i % 2];
                let src = Operand::extreme(TensorType::new(elem, [1, 7, 7, c]), 3);
                let body = vec![(pool.into(), vec![Arg::Operand(0)])];
                check_all(
                    &Case { name: format!("global {elem} {c}"), operands: vec![src], body, ..Case::default() },
                    &target,
                );
            }
        }
    }
}

/// Large enough that scratch memory is divided among tasks.
#[test]
fn tasks_have_their_own_rows() {
    for target in runnable_targets() {
        let src = Operand::extreme(TensorType::new(Elem::I8, [2, 40, 41, 96]), 1);
        let max = MaxPool { kernel: [3, 3], stride: [1, 2], pad: [1; 4], dilation: [1, 1] };
        let sum = SumPool { kernel: [3, 3], stride: [2, 1], pad: [1; 4], zero: -3 };
        for op in [Op::from(max), Op::from(sum)] {
            let name = format!("{op:?}");
            let case =
                Case { name, operands: vec![src.clone()], body: vec![(op, vec![Arg::Operand(0)])], ..Case::default() };
            let schedule = Schedule::default_for(&case.spec(), machine(&target));
            case.check(&target, &[schedule], &[1, 2, 3]);
        }
    }
}
