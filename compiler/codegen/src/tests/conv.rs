use std::collections::{BTreeMap, BTreeSet};

use hawqc_ir::text::seeded;
use hawqc_ir::*;
use hawqc_schedules::strassen::MAX_LEVELS;
use hawqc_schedules::{Multiply, Schedule, StrassenSchedule, WideMachine, WideSchedule};

use super::harness::{Case, Operand, runnable_targets};
use crate::program::machine;
use crate::target::Target;

/// A convolution to be built.
#[derive(Clone, Debug)]
pub struct Build {
    pub src: Elem,
    pub wei: Elem,
    pub size: [usize; 2],
    pub batch: usize,
    pub c: usize,
    pub k: usize,
    pub kernel: [usize; 2],
    pub op: Conv,
    pub bias: bool,
    pub extreme: Option<u64>,
}

impl Build {
    pub fn new(src: Elem, wei: Elem, size: [usize; 2], c: usize, k: usize, kernel: [usize; 2]) -> Build {
        Build { src, wei, size, batch: 1, c, k, kernel, op: Conv::unit(), bias: true, extreme: None }
    }

    pub fn case(&self) -> Case {
        let seed = (self.c * 31 + self.k * 7 + self.size[0]) as u64;
        let src = TensorType::new(self.src, [self.batch, self.size[0], self.size[1], self.c]);
        let wei = TensorType::new(self.wei, [self.k, self.kernel[0], self.kernel[1], self.c / self.op.groups]);
        let (src, wei) = match self.extreme {
            Some(seed) => (Operand::extreme(src, seed), Operand::extreme(wei, seed + 1)),
            None => (Operand::input(src, seed), Operand::input(wei, seed + 1)),
        };
        let Operand::Input(_, wei) = wei else { unreachable!() };
        let mut operands = vec![src, Operand::Constant(wei)];
        if self.bias {
            let ty = TensorType::new(Elem::I32, [self.k]);
            operands.push(Operand::Constant(seeded(&ty, seed + 2, Range::new(-100_000, 100_000)).unwrap()));
        }
        let args = (0..operands.len()).map(Arg::Operand).collect();
        Case { name: format!("{self:?}"), operands, body: vec![(self.op.clone().into(), args)], ..Case::default() }
    }

    /// With a requantisation per channel to `out`.
    pub fn requantised(&self, out: Elem, round: Rounding) -> Case {
        let mut case = self.case();
        let mult = seeded(&TensorType::new(Elem::I32, [self.k]), 5, Range::new(1 << 30, i32::MAX.into())).unwrap();
        let shift = seeded(&TensorType::new(Elem::U8, [self.k]), 6, Range::new(38, 42)).unwrap();
        let n = case.operands.len();
        case.operands.extend([Operand::Constant(mult), Operand::Constant(shift)]);
        let range = out.range().unwrap();
        let requant = Requant { round, ..Requant::to_range(range, out) };
        case.body.push((requant.into(), vec![Arg::Step(0), Arg::Operand(n), Arg::Operand(n + 1)]));
        case
    }
}

pub fn pairs() -> Vec<(Elem, Elem)> {
    let sources = [Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16];
    let weights = [Elem::I4, Elem::I8, Elem::I16];
    sources.into_iter().flat_map(|src| weights.into_iter().map(move |wei| (src, wei))).collect()
}

/// Sizes around a tile edge.
fn around(tile: usize) -> [usize; 5] {
    [1, tile - 1, tile, tile + 1, 2 * tile + 3].map(|n| n.max(1))
}

#[test]
fn every_element_type_at_the_extremes() {
    for target in runnable_targets() {
        for (src, wei) in pairs() {
            for (c, extreme) in [(8, 1), (8, 2), (12, 3), (5, 1), (3, 6)] {
                let mut build = Build::new(src, wei, [4, 5], c, 20, [3, 3]);
                // With 16-bit operands at their extremes only a short sum fits 32 bits.
                if src == Elem::I16 && wei == Elem::I16 {
                    build.c = 1;
                    build.kernel = [1, 1];
                    build.bias = false;
                }
                build.op.pad = [1, 1, 1, 1];
                build.op.pad_value = src.range().unwrap().hi as i32;
                build.extreme = Some(extreme);
                if build.kernel == [1, 1] {
                    build.op.pad = [0; 4];
                }
                build.case().check_default(&target);
                build.requantised(Elem::I8, Rounding::HalfUp).check_default(&target);
            }
        }
    }
}

#[test]
fn sizes_around_the_tile() {
    for target in runnable_targets() {
        let mut turn = 0;
        for k in around(16).into_iter().chain([2, 4, 40]) {
            for width in around(3) {
                turn += 1;
                let (src, wei) = pairs()[turn % 6 + 6];
                let c = [4, 8, 3, 16, 1, 20][turn % 6];
                let mut build = Build::new(src, wei, [3, width], c, k, [1 + turn % 3, 1]);
                build.op.pad = [1, 0, 1, 0];
                build.requantised(Elem::U8, Rounding::ALL[turn % 4]).check_default(&target);
            }
        }
    }
}

#[test]
fn strides_dilations_groups_and_paddings() {
    for target in runnable_targets() {
        for (turn, &(c, k, groups)) in
            [(8, 8, 1), (8, 12, 2), (16, 36, 4), (6, 9, 3), (6, 6, 6), (17, 17, 17), (4, 8, 4), (35, 35, 35)]
                .iter()
                .enumerate()
        {
            for (step, (stride, pad, dilation, kernel)) in [
                ([1, 1], [0, 0, 0, 0], [1, 1], [1, 1]),
                ([2, 1], [1, 2, 0, 1], [1, 1], [3, 3]),
                ([2, 2], [0, 1, 1, 0], [2, 1], [2, 3]),
                ([1, 3], [2, 3, 2, 3], [1, 3], [3, 2]),
                ([1, 1], [6, 7, 6, 7], [1, 1], [7, 1]),
            ]
            .into_iter()
            .enumerate()
            {
                let (src, wei) = pairs()[(turn * 5 + step) % 14];
                let mut build = Build::new(src, wei, [6, 7], c, k, kernel);
                build.batch = 1 + turn % 2;
                build.op = Conv { stride, pad, dilation, groups, pad_value: if step == 1 { 5 } else { 0 } };
                build.bias = step % 2 == 0;
                build.case().check_default(&target);
                build.requantised(Elem::U4, Rounding::ALL[step % 4]).check_default(&target);
            }
        }
    }
}

/// Adds the requantised residual to the last step of `case`, whose second step it is, and clamps to `out`.
pub fn with_residual(mut case: Case, residual: Elem, out: Elem, turn: usize) -> Case {
    let n = case.operands.len();
    let ty = TensorType::new(residual, case.spec().result().shape.clone());
    let constant = |elem, value| Operand::Constant(Tensor::from_ints(elem, [1], [value]).unwrap());
    case.operands.extend([
        Operand::extreme(ty, 1 + turn as u64),
        constant(Elem::I32, 1_555_555_555),
        constant(Elem::U8, 31 + turn as i64),
    ]);
    let wide = Requant::to_range(Range::new(-(1 << 30), 1 << 30), Elem::I32);
    let range = out.range().unwrap();
    case.body.extend([
        (wide.into(), vec![Arg::Operand(n), Arg::Operand(n + 1), Arg::Operand(n + 2)]),
        (Add {}.into(), vec![Arg::Step(1), Arg::Step(2)]),
        (Clamp { lo: range.lo, hi: range.hi, elem: out }.into(), vec![Arg::Step(3)]),
    ]);
    case.name += &format!(" + {residual}");
    case
}

/// The residual form of the fused graph: `clamp(requant(conv) + requant(residual))`.
#[test]
fn residual_epilogues() {
    for target in runnable_targets() {
        for (turn, residual) in [Elem::I16, Elem::I32, Elem::U8, Elem::I8, Elem::U4].into_iter().enumerate() {
            for (k, out) in [(16, Elem::U8), (18, Elem::I16), (7, Elem::U4), (32, Elem::I32)] {
                let build = Build::new(Elem::U8, [Elem::I8, Elem::I4][turn % 2], [5, 4], 12, k, [1, 1]);
                let case = with_residual(build.requantised(Elem::I16, Rounding::HalfUp), residual, out, turn);
                case.check_default(&target);
            }
        }
    }
}

#[test]
fn every_schedule_agrees() {
    for target in runnable_targets() {
        for (wei, c, k) in [(Elem::I4, 8, 36), (Elem::I8, 3, 20), (Elem::I8, 12, 64)] {
            let mut build = Build::new(Elem::U8, wei, [5, 6], c, k, [3, 2]);
            build.op.pad = [1, 0, 1, 1];
            let case = build.requantised(Elem::I8, Rounding::HalfEven);
            let schedules = Schedule::candidates(&case.spec(), machine(&target));
            case.check(&target, &schedules, &[1, 2]);
        }
    }
}

/// Every tile of the assembled kernels, few of which are candidates: so few pixels that weights become operands while a tile
/// is computed, and more. A tile of 8 pixels may be refused for want of general registers.
#[test]
fn every_wide_tile_agrees() {
    for target in runnable_targets() {
        let mut tried = 0;
        for (src, wei) in [(Elem::U8, Elem::I4), (Elem::U4, Elem::I4), (Elem::U8, Elem::I8), (Elem::I8, Elem::I8)] {
            for size in [[2, 2], [3, 7]] {
                let mut build = Build::new(src, wei, size, 12, 96, [3, 3]);
                build.op.pad = [1, 1, 1, 1];
                let case = build.requantised(Elem::U8, Rounding::HalfUp);
                let tiles = Multiply::ALL.into_iter().flat_map(|multiply| {
                    (1..8)
                        .flat_map(move |mr| (1..5).map(move |nr| WideSchedule { multiply, mr, nr, rows: 2, blocks: 2 }))
                });
                let legal = |s: &Schedule| s.legal(&case.spec(), machine(&target)).is_ok();
                let schedules: Vec<Schedule> = tiles.map(Schedule::Wide).filter(legal).collect();
                tried += schedules.len();
                case.check(&target, &schedules, &[2]);
            }
        }
        let wide = machine(&target).wide.iter().any(Option::is_some);
        assert!(wide == (tried > 0), "{target}: {tried} tiles");
    }
}

#[test]
fn one_task_and_many_agree() {
    for target in runnable_targets() {
        for (c, groups) in [(16, 1), (3, 1), (40, 40)] {
            let mut build = Build::new(Elem::U8, Elem::I8, [19, 20], c, if groups > 1 { c } else { 72 }, [3, 3]);
            build.op = Conv { stride: [2, 1], pad: [1, 1, 1, 1], groups, ..Conv::unit() };
            let case = build.requantised(Elem::U8, Rounding::HalfUp);
            let schedule = Schedule::default_for(&case.spec(), machine(&target));
            case.check(&target, &[schedule], &[1, 2, 5, 64]);
        }
    }
}

/// A sum too large for the packed form of 4-bit weights (2^27) is still exact.
#[test]
fn four_bit_weights_without_head_room() {
    for target in runnable_targets() {
        let mut build = Build::new(Elem::U8, Elem::I4, [1, 1], 66_000, 4, [1, 1]);
        build.extreme = Some(3);
        build.bias = false;
        build.case().check_default(&target);
    }
}

/// Every Winograd tile in lanes of 8 and of 16 bits, its schedules in turn, with whole and cut tiles, extreme operands,
/// and each way out. Schedules that the weights rule out are refused.
#[test]
fn winograd_agrees() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for (turn, size) in [[1, 1], [4, 4], [5, 9], [8, 6], [13, 7]].into_iter().enumerate() {
            for (src, wei) in [(Elem::U8, Elem::I8), (Elem::I8, Elem::I8), (Elem::U4, Elem::I4), (Elem::I4, Elem::I4)] {
                let mut build = Build::new(src, wei, size, 64 << (turn % 2), [16, 48, 32][turn % 3], [3, 3]);
                build.op.pad = [1, 1, 1, 1];
                build.op.pad_value = src.range().unwrap().hi as i32 * (turn as i32 % 2);
                build.batch = 1 + turn % 2;
                build.extreme = [None, Some(1), Some(2), Some(3)][turn % 4];
                build.bias = turn % 3 > 0;
                let case = build.requantised([Elem::U8, Elem::I16, Elem::U4][turn % 3], Rounding::HalfUp);
                // Weights of two bits, which every tile grows within bytes.
                let narrow = case.with_weights(|w| w.clamp(-1, 1));
                for (i, case) in [build.case(), case, narrow].into_iter().enumerate() {
                    tried.extend(check_winograd(&case, &target, turn + i).into_iter().map(|(m, o, _)| (m, o)));
                }
            }
        }
        let wide: Vec<WideMachine> = machine(&target).wide.into_iter().flatten().collect();
        let bytes =
            [Multiply::Sum16, Multiply::Sum32].into_iter().chain(wide.iter().any(|w| w.dot).then_some(Multiply::Dot));
        let in_bytes = bytes.flat_map(|multiply| [[3, 2], [2, 2]].map(|outputs| (multiply, outputs)));
        let in_words = [[4, 4], [4, 2], [3, 2], [2, 2]].map(|outputs| (Multiply::I16, outputs));
        let expected: BTreeSet<_> = in_words.into_iter().chain(in_bytes).filter(|_| !wide.is_empty()).collect();
        assert_eq!(tried, expected, "{target}");
    }
}

/// Kernels that are no 3x3 squares.
#[test]
fn winograd_of_other_kernels_agrees() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for kernel in [[1, 3], [3, 1], [1, 5], [5, 1], [5, 5], [1, 7], [7, 1]] {
            for (turn, (src, wei)) in
                [(Elem::U8, Elem::I8), (Elem::I8, Elem::I8), (Elem::U4, Elem::I4)].into_iter().enumerate()
            {
                let mut build = Build::new(src, wei, [9, 5 + 4 * turn], 64, [16, 48, 32][turn], kernel);
                let [h, w] = kernel.map(|k| k / 2);
                build.op.pad = [h, w, h, w];
                build.op.pad_value = src.range().unwrap().hi as i32;
                build.extreme = [Some(1), None, Some(2)][turn];
                let case = build.requantised([Elem::I16, Elem::U8, Elem::U4][turn], Rounding::HalfUp);
                let narrow = case.with_weights(|w| w.clamp(-1, 1));
                let found = [case, narrow].into_iter().enumerate();
                let found = found.flat_map(|(i, case)| check_winograd(&case, &target, turn + i));
                tried.extend(found.filter(|(_, _, split)| !split).map(|(_, outputs, _)| (kernel, outputs)));
            }
        }
        let wide = machine(&target).wide.iter().any(Option::is_some);
        assert_eq!(tried.len(), if wide { 11 } else { 0 }, "{target}: {tried:?}");
    }
}

/// Stride 2, whose products of several phases share sums: whole and cut tiles, padding on either side or none, residuals.
#[test]
fn winograd_of_strided_kernels_agrees() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for (turn, size) in [[2, 2], [7, 8], [8, 15], [13, 6], [9, 9]].into_iter().enumerate() {
            for (src, wei) in [(Elem::U8, Elem::I8), (Elem::I8, Elem::I8), (Elem::U4, Elem::I4), (Elem::I4, Elem::I4)] {
                let mut build = Build::new(src, wei, size, 32 << (turn % 2), [16, 48, 32][turn % 3], [3, 3]);
                build.op.stride = [2, 2];
                build.op.pad = [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 2, 1], [0, 0, 1, 1]][turn];
                if size[0] == 2 {
                    build.op.pad = [1, 1, 1, 1];
                }
                build.op.pad_value = src.range().unwrap().hi as i32 * (turn as i32 % 2);
                build.batch = 1 + turn % 2;
                build.extreme = [Some(3), Some(1), None, Some(2)][turn % 4];
                build.bias = turn % 3 < 2;
                let residual = build.requantised(Elem::I16, Rounding::HalfUp);
                let residual = with_residual(residual, [Elem::I16, Elem::U8][turn % 2], Elem::U8, turn);
                let narrow = build.case().with_weights(|w| w.clamp(-1, 1));
                for (i, case) in [build.case(), residual, narrow].into_iter().enumerate() {
                    tried.extend(check_winograd(&case, &target, turn + i).into_iter().map(|(m, o, _)| (m, o)));
                }
            }
        }
        let wide: Vec<WideMachine> = machine(&target).wide.into_iter().flatten().collect();
        let bytes =
            [Multiply::Sum16, Multiply::Sum32].into_iter().chain(wide.iter().any(|w| w.dot).then_some(Multiply::Dot));
        let tiles = [[4, 3], [4, 2], [3, 3], [3, 2], [2, 2]];
        let in_bytes = bytes.flat_map(|multiply| tiles.map(|outputs| (multiply, outputs)));
        let in_words = tiles.into_iter().chain([[4, 4]]).map(|outputs| (Multiply::I16, outputs));
        let expected: BTreeSet<_> = in_words.into_iter().chain(in_bytes).filter(|_| !wide.is_empty()).collect();
        assert_eq!(tried, expected, "{target}");
    }
}

/// Taps in runs: every tile in every lane that operands of two to eight bits fit.
#[test]
fn winograd_of_split_kernels_agrees() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for kernel in [[5, 5], [1, 5], [5, 1], [1, 7], [7, 1]] {
            for (turn, (src, wei)) in
                [(Elem::U8, Elem::I8), (Elem::I8, Elem::I8), (Elem::U4, Elem::I4)].into_iter().enumerate()
            {
                let mut build = Build::new(src, wei, [6 + turn, 9 - 2 * turn], 32, [32, 16, 48][turn], kernel);
                let [h, w] = kernel.map(|k| k / 2);
                // Not the same on both sides.
                build.op.pad = [h, w.saturating_sub(1), h.saturating_sub(1), w];
                build.op.pad_value = src.range().unwrap().lo as i32;
                build.extreme = [Some(2), Some(3), None][turn];
                build.bias = turn > 0;
                let case = build.requantised([Elem::U8, Elem::I16, Elem::U4][turn], Rounding::HalfUp);
                let residual = with_residual(case.clone(), Elem::I16, Elem::U8, turn);
                let narrow = case.with_weights(|w| w.clamp(-1, 1));
                for (i, case) in [case, residual, narrow].into_iter().enumerate() {
                    let of_runs = check_winograd(&case, &target, turn + i).into_iter().filter(|(_, _, split)| *split);
                    tried.extend(of_runs.map(|(multiply, outputs, _)| (kernel, multiply, outputs)));
                }
            }
        }
        let wide: Vec<WideMachine> = machine(&target).wide.into_iter().flatten().collect();
        let dot = wide.iter().any(|w| w.dot);
        let lanes = Multiply::ALL.into_iter().filter(|&m| !wide.is_empty() && (m != Multiply::Dot || dot));
        let mut expected = BTreeSet::new();
        for multiply in lanes {
            let squares = [[4, 4], [3, 2], [2, 2]].map(|outputs| ([5, 5], outputs));
            let fives = [([1, 5], [1, 4]), ([5, 1], [4, 1])];
            let sevens = [([1, 7], [1, 3]), ([1, 7], [1, 4]), ([7, 1], [3, 1]), ([7, 1], [4, 1])];
            // Inputs of 4 bits that grow 100 times are no bytes.
            let fit = |outputs| multiply == Multiply::I16 || outputs != [4, 4];
            let all = squares.into_iter().chain(fives).chain(sevens).filter(|&(_, outputs)| fit(outputs));
            expected.extend(all.map(|(kernel, outputs)| (kernel, multiply, outputs)));
        }
        assert_eq!(tried, expected, "{target}");
    }
}

/// Checks a schedule of every product and algorithm that the case's weights allow; which these were, and whether taps are
/// in runs.
fn check_winograd(case: &Case, target: &Target, turn: usize) -> BTreeSet<(Multiply, [usize; 2], bool)> {
    let mut all: BTreeMap<_, Vec<Schedule>> = BTreeMap::new();
    for schedule in Schedule::candidates(&case.spec(), machine(target)) {
        if let Schedule::Winograd(winograd) = schedule {
            let algorithm = (winograd.multiply, winograd.outputs, !winograd.runs.is_empty());
            all.entry(algorithm).or_default().push(schedule);
        }
    }
    all.retain(|_, schedules| {
        let schedule = schedules[turn % schedules.len()];
        let allowed = case.allows(target, schedule);
        if allowed {
            case.check(target, &[schedule], &[1, 3]);
        }
        allowed
    });
    all.into_keys().collect()
}

/// Strassen's algorithm at both levels, its schedules in turn, with whole and cut tiles and units, extreme operands, and each
/// way out. Where operands may not fit bytes it is refused.
#[test]
fn strassen_agrees() {
    for target in runnable_targets() {
        let mut tried = BTreeSet::new();
        for (turn, size) in [[1, 1], [1, 2], [3, 5], [4, 4], [9, 13]].into_iter().enumerate() {
            for (src, wei) in [(Elem::U4, Elem::I4), (Elem::I4, Elem::I4), (Elem::U4, Elem::I8), (Elem::U8, Elem::I4)] {
                let mut build = Build::new(src, wei, size, [256, 512][turn % 2], [64, 192, 128][turn % 3], [1, 1]);
                build.batch = 1 + turn % 2;
                build.extreme = [None, Some(1), Some(2), Some(3)][turn % 4];
                build.bias = turn % 3 > 0;
                let case = build.requantised([Elem::U8, Elem::I16, Elem::U4][turn % 3], Rounding::HalfUp);
                let residual = build.requantised(Elem::I16, Rounding::HalfUp);
                let residual = with_residual(residual, [Elem::I16, Elem::U8][turn % 2], Elem::U8, turn);
                let narrow = build.case().with_weights(|w| w.clamp(-31, 31));
                for (i, case) in [build.case(), case, residual, narrow].into_iter().enumerate() {
                    let found = check_strassen(&case, &target, turn + i);
                    assert!(found.is_empty() || src != Elem::U8 && (wei == Elem::I4 || i == 3), "{}", case.name);
                    tried.extend(found);
                }
            }
        }
        let dots = machine(&target).wide.into_iter().flatten().filter(|w| w.dot).map(|w| w.registers);
        // Two levels need 32 registers.
        let expected: BTreeSet<usize> = (1..=dots.max().map_or(0, |registers| registers / 16)).collect();
        assert_eq!(tried, expected, "{target}");
    }
}

/// Checks two schedules of every level that the case's operands allow; which levels these were.
fn check_strassen(case: &Case, target: &Target, turn: usize) -> BTreeSet<usize> {
    let (spec, machine) = (case.spec(), machine(target));
    let mut allowed = BTreeSet::new();
    for levels in 1..=MAX_LEVELS {
        // Units and channel blocks that nothing divides, and what is worth trying.
        let small = [3, 1].map(|tiles| Schedule::Strassen(StrassenSchedule { levels, mr: 2, nr: 3, tiles, blocks: 1 }));
        let Some(&small) = small.iter().find(|s| s.legal(&spec, machine).is_ok()) else {
            continue;
        };
        if !case.allows(target, small) {
            continue;
        }
        let of_level = |s: &Schedule| matches!(s, Schedule::Strassen(strassen) if strassen.levels == levels);
        let candidates: Vec<Schedule> = Schedule::candidates(&spec, machine).into_iter().filter(of_level).collect();
        let mut schedules = vec![small];
        schedules.extend(candidates.get(turn % candidates.len().max(1)));
        case.check(target, &schedules, &[1, 3]);
        allowed.insert(levels);
    }
    allowed
}
