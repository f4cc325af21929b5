use std::collections::BTreeSet;

use hawqc_ir::*;
use hawqc_schedules::{Multiply, Schedule, WideSchedule};

use super::conv::{Build, with_residual};
use super::harness::{Case, runnable_targets};
use crate::program::machine;
use crate::target::Target;

/// Input channels, output channels and groups.
const SHAPES: [[usize; 3]; 16] = [
    // Whole vectors to a group, the last with inputs that are no whole steps.
    [24, 24, 3],
    [64, 128, 2],
    [36, 96, 6],
    [10, 160, 2],
    // Several groups to a vector, with one, two and four steps; one and two inputs.
    [32, 32, 8],
    [16, 48, 4],
    [64, 64, 8],
    [64, 32, 8],
    [64, 16, 4],
    [128, 32, 8],
    [32, 32, 16],
    [16, 32, 16],
    // Groups joined by zeros.
    [48, 48, 4],
    [32, 96, 8],
    [8, 32, 8],
    [40, 40, 5],
];

const ELEMS: [(Elem, Elem); 8] = [
    (Elem::U8, Elem::I8),
    (Elem::I8, Elem::I8),
    (Elem::U8, Elem::I4),
    (Elem::I16, Elem::I8),
    (Elem::U4, Elem::I4),
    (Elem::I8, Elem::I4),
    (Elem::U4, Elem::I8),
    (Elem::I4, Elem::I8),
];

/// Every legal wide schedule of `mr` and `nr`.
fn wide(case: &Case, target: &Target, mr: &[usize], nr: &[usize]) -> Vec<Schedule> {
    let spec = case.spec();
    let mut all = Vec::new();
    for multiply in Multiply::ALL {
        for (&mr, &nr) in mr.iter().flat_map(|mr| nr.iter().map(move |nr| (mr, nr))) {
            let schedule = Schedule::Wide(WideSchedule { multiply, mr, nr, rows: 2, blocks: 2 });
            all.extend(schedule.legal(&spec, machine(target)).is_ok().then_some(schedule));
        }
    }
    all
}

/// Groups of every kind, all products, operands at their extremes, windows of every form, each way out.
#[test]
fn grouped_convolutions_agree() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for (turn, [c, k, groups]) in SHAPES.into_iter().enumerate() {
            for (step, (src, wei)) in ELEMS.into_iter().enumerate() {
                let (kernel, stride, pad, dilation) = [
                    ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
                    ([1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
                    ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
                    ([2, 3], [1, 2], [0, 2, 1, 0], [2, 1]),
                    ([1, 1], [2, 2], [0, 0, 0, 0], [1, 1]),
                    ([3, 2], [1, 1], [0, 0, 0, 0], [1, 2]),
                ][(turn + step) % 6];
                let mut build = Build::new(src, wei, [4 + turn % 2, 5 + step % 3], c, k, kernel);
                build.batch = 1 + step % 2;
                let pad_value = [0, src.range().unwrap().hi as i32, src.range().unwrap().lo as i32][(turn + step) % 3];
                build.op = Conv { stride, pad, dilation, groups, pad_value };
                build.bias = step % 3 > 0;
                build.extreme = [None, Some(1), Some(2), Some(3)][(turn + step / 2) % 4];
                let requantised = build.requantised([Elem::U8, Elem::I8, Elem::U4][step % 3], Rounding::HalfUp);
                let stream = with_residual(build.requantised(Elem::I16, Rounding::HalfUp), Elem::I16, Elem::I16, turn);
                let case = [build.case(), requantised, stream][(turn + step) % 3].clone();
                let all = wide(&case, &target, &[1, 3, 4, 7], &[1, 2, 3, 4]);
                let mut some: Vec<Schedule> = all.iter().copied().skip(step % 3).step_by(1 + all.len() / 4).collect();
                some.extend(Schedule::candidates(&case.spec(), machine(&target)).first());
                tried.extend(some.iter().filter_map(|s| match s {
                    Schedule::Wide(wide) => Some((turn, wide.multiply.operand_bytes())),
                    _ => None,
                }));
                case.check(&target, &some, &[1, 3]);
            }
        }
        let wide = machine(&target).wide.iter().any(Option::is_some);
        assert_eq!(tried.len(), if wide { 2 * SHAPES.len() } else { 0 }, "{target}: {tried:?}");
    }
}

/// Every tile, of few pixels, whose weights become operands while a tile is computed, and of more.
#[test]
fn every_grouped_tile_agrees() {
    for target in runnable_targets() {
        for ([c, k, groups], size) in
            [([64, 64, 8], [2, 2]), ([32, 96, 8], [3, 7]), ([32, 128, 2], [3, 7]), ([96, 96, 24], [3, 7])]
        {
            for (src, wei) in [(Elem::U8, Elem::I8), (Elem::U8, Elem::I4), (Elem::U4, Elem::I4)] {
                let mut build = Build::new(src, wei, size, c, k, [3, 3]);
                build.op = Conv { pad: [1; 4], groups, ..Conv::unit() };
                let case = build.requantised(Elem::U8, Rounding::HalfUp);
                let tiles = wide(&case, &target, &[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 4]);
                assert_eq!(tiles.is_empty(), machine(&target).wide == [None, None], "{target}");
                case.check(&target, &tiles, &[2]);
            }
        }
    }
}

/// Large enough that scratch memory is divided among tasks, as it is by default and by the tuner's candidates.
#[test]
fn grouped_candidates_agree() {
    for target in runnable_targets() {
        for [c, k, groups] in [[128, 128, 32], [64, 128, 4]] {
            let mut build = Build::new(Elem::U8, Elem::I8, [19, 20], c, k, [3, 3]);
            build.op = Conv { stride: [2, 1], pad: [1; 4], groups, ..Conv::unit() };
            let case = build.requantised(Elem::U8, Rounding::HalfUp);
            let all = Schedule::candidates(&case.spec(), machine(&target));
            let is_wide = machine(&target).wide.iter().any(Option::is_some);
            assert_eq!(matches!(all[0], Schedule::Wide(_)), is_wide, "{target}: {}", all[0]);
            case.check(&target, &all[..1], &[1, 2, 64]);
            let some: Vec<Schedule> = all.iter().copied().step_by(1 + all.len() / 6).collect();
            case.check(&target, &some, &[3]);
        }
    }
}
