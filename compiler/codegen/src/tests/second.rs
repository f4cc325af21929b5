//! Convolutions that store a second, narrower result.

use std::collections::BTreeMap;

use hawqc_ir::*;
use hawqc_schedules::Schedule;

use super::conv::{Build, with_residual};
use super::harness::{Case, runnable_targets};
use crate::program::machine;

/// `case` with a second result of `elem`. By `turn`: short multipliers and long ones, one and one for each channel, zero points,
/// roundings that the portable kernels alone have.
pub fn with_second(mut case: Case, elem: Elem, turn: usize) -> Case {
    let first = case.spec().result().clone();
    let (bits, range) = (first.elem.bits(), elem.range().unwrap());
    let channels = if turn % 4 == 2 { first.shape.last().copied().unwrap() } else { 1 };
    let mult =
        |i: usize| if turn.is_multiple_of(2) { (20_000 + 97 * i as i64) << 16 } else { 1_555_555_555 + i as i64 };
    // A few values beyond the limits.
    let shift = |i: usize| (31 + bits - elem.bits() - 1 + u32::from(i % 3 == 1)).into();
    let constants = [
        Tensor::from_ints(Elem::I32, [channels], (0..channels).map(mult)).unwrap(),
        Tensor::from_ints(Elem::U8, [channels], (0..channels).map(shift)).unwrap(),
    ];
    let mut requant = Requant::to_range(range, elem);
    match turn % 6 {
        3 => (requant.src_zero, requant.dst_zero) = (-3, 5),
        4 => (requant.lo, requant.hi) = (range.lo + 1, range.hi - 2),
        5 => requant.round = Rounding::HalfEven,
        _ => {}
    }
    case.second = Some((requant, constants));
    case.name += &format!(", second {elem} {turn}");
    case
}

/// One schedule of each kind and product: the first, or another by `turn`.
fn kinds(case: &Case, machine: hawqc_schedules::Machine, turn: usize) -> Vec<Schedule> {
    let mut all: BTreeMap<String, Vec<Schedule>> = BTreeMap::new();
    for schedule in Schedule::candidates(&case.spec(), machine) {
        let text = schedule.to_string();
        let kind = text.split(" mr=").next().unwrap_or_default().to_owned();
        all.entry(kind).or_default().push(schedule);
    }
    all.into_values().map(|schedules| schedules[turn % schedules.len()]).collect()
}

fn builds() -> Vec<Build> {
    let pad = |pad: usize, groups: usize| Conv { pad: [pad; 4], groups, ..Conv::unit() };
    let build = |src, wei, size, c, k, taps: usize, groups| {
        let op = pad(taps / 2, groups);
        Build { op, ..Build::new(src, wei, size, c, k, [taps, taps]) }
    };
    vec![
        // Few products, whose tiles follow one another, and many, beside which the tile before is finished.
        build(Elem::U8, Elem::I8, [5, 9], 12, 64, 1, 1),
        build(Elem::U8, Elem::I8, [7, 13], 96, 80, 1, 1),
        build(Elem::U4, Elem::I4, [6, 7], 128, 48, 1, 1),
        build(Elem::U8, Elem::I8, [1, 1], 64, 40, 1, 1),
        // Winograd's algorithms, Strassen's.
        build(Elem::U8, Elem::I8, [6, 9], 16, 32, 3, 1),
        build(Elem::U4, Elem::I4, [7, 6], 32, 48, 3, 1),
        build(Elem::U4, Elem::I4, [3, 5], 256, 64, 1, 1),
        // Channels that no vector holds, groups, depthwise.
        build(Elem::I8, Elem::I8, [4, 5], 9, 21, 3, 1),
        build(Elem::U8, Elem::I8, [5, 6], 64, 64, 3, 4),
        build(Elem::U8, Elem::I8, [6, 9], 48, 48, 3, 48),
    ]
}

#[test]
fn second_results_agree() {
    for target in runnable_targets() {
        let mut stored = 0;
        for (i, mut build) in builds().into_iter().enumerate() {
            for turn in 0..3 {
                let turn = turn * 5 + i;
                build.extreme = [None, Some(1), Some(2), Some(3)][turn % 4];
                let stream = build.requantised(Elem::I16, Rounding::HalfUp);
                let bytes = build.requantised(Elem::U8, Rounding::HalfUp);
                let residual = with_residual(stream.clone(), [Elem::I16, Elem::U8][turn % 2], Elem::I16, turn % 5);
                for case in [
                    with_second(stream, [Elem::U8, Elem::I8][turn % 2], turn),
                    with_second(residual, [Elem::U8, Elem::U4][turn % 2], turn + 1),
                    with_second(bytes, Elem::U4, turn + 2),
                ] {
                    let schedules: Vec<Schedule> = kinds(&case, machine(&target), turn)
                        .into_iter()
                        .filter(|&schedule| case.allows(&target, schedule))
                        .collect();
                    stored += schedules.len();
                    case.check(&target, &schedules, &[1, 3]);
                    case.check_default(&target);
                }
            }
        }
        assert!(stored >= 90, "{target}: {stored}");
    }
}
