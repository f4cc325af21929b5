use hawqc_ir::*;
use hawqc_schedules::Schedule;

use super::conv::{Build, pairs, with_residual};
use super::harness::runnable_targets;
use crate::program::machine;

/// Every wide depthwise schedule, and the portable kernel: rows around the tile, windows of every shape, extreme
/// operands.
#[test]
fn depthwise_agrees() {
    for target in runnable_targets() {
        let mut tried = 0;
        for (turn, (src, wei)) in pairs().into_iter().enumerate() {
            for (step, (kernel, stride, pad, dilation)) in [
                ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
                ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
                ([5, 5], [1, 2], [2, 0, 1, 2], [1, 1]),
                ([1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
                ([2, 3], [3, 1], [4, 2, 3, 1], [3, 2]),
                ([4, 1], [2, 3], [0, 0, 2, 0], [1, 1]),
                ([5, 5], [1, 1], [2, 2, 2, 2], [1, 1]),
                ([3, 3], [2, 2], [0, 0, 1, 1], [1, 1]),
                ([3, 3], [1, 1], [2, 2, 2, 2], [2, 2]),
                ([7, 7], [1, 1], [3, 3, 3, 3], [1, 1]),
                ([3, 1], [1, 1], [1, 0, 1, 0], [1, 1]),
            ]
            .into_iter()
            .enumerate()
            {
                let c = [48, 8, 16, 24, 112, 56][(turn + step) % 6];
                let mut build = Build::new(src, wei, [5 + step % 3, 9 + (turn + step) % 9], c, c, kernel);
                build.batch = 1 + turn % 2;
                let pad_value = [0, src.range().unwrap().hi as i32, src.range().unwrap().lo as i32][turn % 3];
                build.op = Conv { stride, pad, dilation, groups: c, pad_value };
                build.bias = (turn + step) % 3 > 0;
                build.extreme = [None, Some(1), Some(2), Some(3)][(turn + step) % 4];
                // With 16-bit operands at their extremes only a short sum fits 32 bits.
                if src == Elem::I16 && wei == Elem::I16 && kernel != [1, 1] {
                    continue;
                }
                let out = [Elem::U8, Elem::I16, Elem::I8, Elem::U4][(turn + step) % 4];
                for case in [build.case(), build.requantised(out, Rounding::HalfUp)] {
                    let all = Schedule::candidates(&case.spec(), machine(&target));
                    tried += all.iter().filter(|s| matches!(s, Schedule::Depthwise(_))).count();
                    // Those of the ends and some between.
                    let some: Vec<Schedule> = all.iter().copied().step_by(1 + all.len() / 5).collect();
                    case.check(&target, &some, &[1, 3]);
                    case.check(&target, &all[all.len() - 1..], &[2]);
                }
            }
        }
        let wide = machine(&target).wide.iter().any(Option::is_some);
        assert!(wide == (tried > 0), "{target}: {tried} depthwise schedules");
    }
}

/// `clamp(requant(depthwise) + requant(residual))`.
#[test]
fn depthwise_with_a_residual() {
    for target in runnable_targets() {
        let mut build = Build::new(Elem::U8, Elem::I8, [6, 10], 32, 32, [3, 3]);
        build.op = Conv { pad: [1; 4], groups: 32, ..Conv::unit() };
        for (turn, elem) in [Elem::I16, Elem::I8].into_iter().enumerate() {
            let case = with_residual(build.requantised(Elem::I16, Rounding::HalfUp), elem, Elem::U8, turn);
            let all = Schedule::candidates(&case.spec(), machine(&target));
            case.check(&target, &all, &[1, 2]);
        }
    }
}

/// Large enough that scratch memory is divided among tasks.
#[test]
fn tasks_have_their_own_rows() {
    for target in runnable_targets() {
        let mut build = Build::new(Elem::U8, Elem::I8, [41, 40], 96, 96, [3, 3]);
        build.op = Conv { pad: [1; 4], groups: 96, ..Conv::unit() };
        let case = build.requantised(Elem::U8, Rounding::HalfUp);
        let schedule = Schedule::default_for(&case.spec(), machine(&target));
        case.check(&target, &[schedule], &[1, 2, 3]);
    }
}
