//! Requantisation in every form, and pointwise steps over several operands.

use hawqc_ir::*;
use hawqc_schedules::Schedule;
use proptest::prelude::*;

use super::harness::{Case, Operand, runnable_targets};
use crate::program::machine;
use crate::target::Target;

/// A requantisation of `values` by constants of shape `shape`.
pub fn requant(op: Requant, src: TensorType, values: Vec<i64>, shape: &[usize], pairs: &[(i64, i64)]) -> Case {
    let tensor = Tensor::from_ints(src.elem, src.shape.clone(), values).unwrap();
    let constant = |elem, values: Vec<i64>| Operand::Constant(Tensor::from_ints(elem, shape, values).unwrap());
    let mult = constant(Elem::I32, pairs.iter().map(|p| p.0).collect());
    let shift = constant(Elem::U8, pairs.iter().map(|p| p.1).collect());
    let name = format!("{op:?} of {src} by {shape:?} {:?}", &pairs[..pairs.len().min(4)]);
    let args = vec![Arg::Operand(0), Arg::Operand(1), Arg::Operand(2)];
    Case {
        name,
        operands: vec![Operand::Input(src, tensor), mult, shift],
        body: vec![(op.into(), args)],
        ..Case::default()
    }
}

pub fn op(round: Rounding, elem: Elem, src_zero: i32, dst_zero: i32) -> Requant {
    let range = elem.range().unwrap();
    Requant { src_zero, dst_zero, lo: range.lo, hi: range.hi, round, elem }
}

/// Values where rounding and clamping happen: extremes, small ones, and ties for a shift.
fn interesting(range: Range, count: usize) -> Vec<i64> {
    let mut values = vec![range.lo, range.hi, range.lo + 1, range.hi - 1, 0, 1, -1, 2, -2, 3, -3, 5, -5, 7, -7];
    for power in 2..31 {
        values.extend([(1 << power) - 1, 1 << power, (1 << power) + 1, -(1 << power), 1 - (1 << power), 3 << power]);
    }
    values.into_iter().map(|v| v.clamp(range.lo, range.hi)).cycle().take(count).collect()
}

const ALL_SHIFTS: std::ops::RangeInclusive<i64> = 1..=62;

#[test]
fn every_shift_and_rounding_per_tensor() {
    let full = Elem::I32.range().unwrap();
    for target in runnable_targets() {
        for shift in ALL_SHIFTS {
            let round = Rounding::ALL[shift as usize % 4];
            let mult = if shift % 3 == 0 { (1 << 31) - 1 } else { 1 << 30 };
            for round in [round, Rounding::ALL[(shift as usize + 1) % 4]] {
                for elem in [Elem::I32, Elem::U8] {
                    let src = TensorType::new(Elem::I32, [1, 1, 13, 15]);
                    let case = requant(op(round, elem, 0, 0), src, interesting(full, 195), &[1], &[(mult, shift)]);
                    case.check_default(&target);
                }
            }
        }
    }
}

#[test]
fn every_shift_at_once_per_channel() {
    for target in runnable_targets() {
        for round in Rounding::ALL {
            for (elem, range) in [
                (Elem::I32, Elem::I32.range().unwrap()),
                (Elem::I32, Range::new(-70_000, 70_000)),
                (Elem::I16, Elem::I16.range().unwrap()),
                (Elem::U8, Elem::U8.range().unwrap()),
            ] {
                let src = TensorType::with_range(elem, [1, 3, 3, 62], range).unwrap();
                for mult in [1 << 30, (1 << 31) - 1, 0x5555_5555, 3, 1, 0] {
                    let pairs: Vec<(i64, i64)> = ALL_SHIFTS.map(|shift| (mult, shift)).collect();
                    let out = if mult % 2 == 0 { Elem::I32 } else { Elem::I8 };
                    let values = interesting(range, 9 * 62);
                    requant(op(round, out, 0, 1), src.clone(), values, &[62], &pairs).check_default(&target);
                }
            }
        }
    }
}

/// In the assembled kernel, which takes shifts whose values fit 32 bits.
#[test]
fn assembled_requantisations() {
    for target in runnable_targets().into_iter().filter(|t| machine(t).wide.iter().any(Option::is_some)) {
        for round in [Rounding::HalfUp, Rounding::Floor] {
            for (elem, range, least) in [
                (Elem::I32, Range::new(-70_000, 70_000), 20),
                (Elem::I16, Elem::I16.range().unwrap(), 18),
                (Elem::U8, Elem::U8.range().unwrap(), 10),
                (Elem::I4, Elem::I4.range().unwrap(), 8),
            ] {
                for (channels, scope) in [(64, 64), (24, 24), (8, 1), (72, 1)] {
                    let src = TensorType::with_range(elem, [1, 3, 5, channels], range).unwrap();
                    for mult in [1 << 30, (1 << 31) - 1, 0x5555_5555, 0] {
                        let pairs: Vec<_> = (least..=62).cycle().take(scope).map(|shift| (mult, shift)).collect();
                        let out = [Elem::I32, Elem::I8, Elem::I16, Elem::U4][mult as usize % 4];
                        let values = interesting(range, 15 * channels);
                        let case = requant(op(round, out, 1, 1), src.clone(), values, &[scope], &pairs);
                        case.check(&target, &[Schedule::Assembled], &[1, 3]);
                    }
                }
            }
        }
    }
}

/// Every value of 16 bits in the assembled kernel, which forms its products in 32 bits.
#[test]
fn assembled_requantisations_of_every_16_bit_value() {
    let range = Range::new(-32_767, 32_767);
    let pairs =
        [(1 << 30, 17), ((1 << 31) - 1, 31), ((1 << 31) - (1 << 15) - 1, 46), (0x5555_5555, 30), (3, 17), (0, 20)];
    for target in runnable_targets().into_iter().filter(|t| machine(t).wide.iter().any(Option::is_some)) {
        for (i, pair) in pairs.into_iter().enumerate() {
            for range in [range, Range::new(0, range.hi)] {
                let src = TensorType::with_range(Elem::I16, [1, 32, 32, 64], range).unwrap();
                let values = (-32_768..32_768).map(|v: i64| v.clamp(range.lo, range.hi)).collect();
                let round = [Rounding::HalfUp, Rounding::Floor][i % 2];
                let out = [Elem::I32, Elem::I16, Elem::U8][i % 3];
                let case = requant(op(round, out, 0, i as i32), src, values, &[1], &[pair]);
                case.check(&target, &[Schedule::Assembled], &[1]);
            }
        }
    }
}

/// Shifts that need the split form (too far apart to be made equal by scaling) and only it.
#[test]
fn distant_shifts_per_channel() {
    for target in runnable_targets() {
        for round in Rounding::ALL {
            let range = Range::new(-5_000_000, 5_000_000);
            let src = TensorType::with_range(Elem::I32, [1, 5, 7, 29], range).unwrap();
            let pairs: Vec<(i64, i64)> =
                (0..29).map(|i| ((1 << 30) + i * 12_345_678, [33, 34, 40, 47, 51, 62, 30][i as usize % 7])).collect();
            requant(op(round, Elem::I32, 0, -3), src, interesting(range, 5 * 7 * 29), &[29], &pairs)
                .check_default(&target);
        }
    }
}

#[test]
fn ties_per_pixel() {
    for target in runnable_targets() {
        for round in Rounding::ALL {
            let src = TensorType::with_range(Elem::I32, [2, 3, 5, 6], Range::new(-40_000, 40_000)).unwrap();
            let pairs: Vec<(i64, i64)> = (0..15).map(|i| (1 << 30, 31 + i % 9)).collect();
            let values = (0..180).map(|i| (i - 90) * 4 + i % 2).collect();
            requant(op(round, Elem::I8, 3, -5), src, values, &[3, 5, 1], &pairs).check_default(&target);
        }
    }
}

/// Two branches requantised and added, with a clamp: the residual form without a convolution.
pub fn residual(elems: [Elem; 2], out: Elem, shape: [usize; 4], seed: u64) -> Case {
    let ty = |elem| TensorType::new(elem, shape);
    let mut operands: Vec<Operand> =
        elems.iter().enumerate().map(|(i, &e)| Operand::extreme(ty(e), seed + i as u64)).collect();
    let k = shape[3];
    for branch in 0..2i64 {
        let mult = (0..k as i64).map(|i| (1 << 30) + i * 1_234_567 * (branch + 1));
        let mult = Tensor::from_ints(Elem::I32, [k], mult).unwrap();
        let shift = Tensor::from_ints(Elem::U8, [k], (0..k as i64).map(|i| 32 + branch * 8 + i % 3)).unwrap();
        operands.extend([Operand::Constant(mult), Operand::Constant(shift)]);
    }
    let wide = Requant::to_range(Range::new(-(1 << 30), (1 << 30) - 1), Elem::I32);
    let range = out.range().unwrap();
    let clamp = Clamp { lo: range.lo.max(0), hi: range.hi, elem: out };
    let body = vec![
        (wide.clone().into(), vec![Arg::Operand(0), Arg::Operand(2), Arg::Operand(3)]),
        (wide.into(), vec![Arg::Operand(1), Arg::Operand(4), Arg::Operand(5)]),
        (Add {}.into(), vec![Arg::Step(0), Arg::Step(1)]),
        (clamp.into(), vec![Arg::Step(2)]),
    ];
    Case { name: format!("residual {elems:?} {out} {shape:?}"), operands, body, ..Case::default() }
}

#[test]
fn residual_sums() {
    for target in runnable_targets() {
        for (i, k) in [1, 3, 4, 5, 8, 15, 16, 17, 24, 35, 40, 48, 64, 72].into_iter().enumerate() {
            let elems =
                [[Elem::I16, Elem::I32], [Elem::U8, Elem::I16], [Elem::U4, Elem::I8], [Elem::I32, Elem::I4]][i % 4];
            let out = [Elem::U8, Elem::U4, Elem::I16, Elem::I32][i % 4];
            residual(elems, out, [1, 3, 2, k], i as u64).check_default(&target);
        }
    }
}

#[test]
fn one_task_and_many_agree() {
    let target = Target::host().unwrap();
    let case = residual([Elem::I16, Elem::I8], Elem::I16, [1, 57, 56, 24], 1);
    let schedules = Schedule::candidates(&case.spec(), machine(&target));
    case.check(&target, &schedules, &[1, 2, 7, 64]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_constants_are_exact(
        lanes in proptest::collection::vec((0i64..1 << 31, 1i64..=62), 1..12),
        spread in 0i64..31,
        base in 1i64..=62,
        narrow: bool,
        bits in 2u32..32,
        zeros in (-200i32..200, -200i32..200),
        round in 0usize..4,
        elem in 0usize..4,
        raw in proptest::collection::vec(any::<i32>(), 48),
    ) {
        let magnitude = (1i64 << (bits - 1)) - 1 - i64::from(zeros.0.abs());
        prop_assume!(magnitude > 0);
        let range = Range::new(-magnitude, magnitude);
        let src = TensorType::with_range(Elem::I32, [1, 2, 2, lanes.len()], range).unwrap();
        let pairs: Vec<(i64, i64)> = lanes
            .iter()
            .map(|&(m, e)| if narrow { (m | 1 << 30, (base + e % (spread + 1)).min(62)) } else { (m, e) })
            .collect();
        let elem = [Elem::I32, Elem::I16, Elem::U8, Elem::I4][elem];
        let values = (0..4 * lanes.len()).map(|i| i64::from(raw[i]).clamp(range.lo, range.hi)).collect();
        let case = requant(op(Rounding::ALL[round], elem, zeros.0, zeros.1), src, values, &[lanes.len()], &pairs);
        case.check_default(&Target::host().unwrap());
    }
}
