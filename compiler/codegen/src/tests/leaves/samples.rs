//! Kernels of every wide family, for vectors of every kind, and the assembled functions they consist of.

use std::collections::BTreeMap;

use hawqc_ir::*;
use hawqc_schedules::strassen::MAX_LEVELS;
use hawqc_schedules::{Multiply, Schedule, StrassenSchedule, WideMachine, WideSchedule};

use crate::program::{Options, Program, machine};
use crate::target::Target;
use crate::tests::conv::{Build, with_residual};
use crate::tests::harness::{Case, Operand};
use crate::tests::pointwise;
use crate::tests::second::with_second;

/// Vectors of a target. A target with wider ones uses these where channels do not fill the wider.
pub struct Vectors {
    pub name: &'static str,
    pub target: Target,
    pub wide: WideMachine,
    /// Whether the target has no wider ones.
    pub widest: bool,
}

/// Every kind of vectors that the compiler assembles for.
pub fn kinds() -> Vec<Vectors> {
    let all = [
        ("AVX2", "x86-64-v3", "", 8),
        ("AVX-VNNI", "x86-avxvnni", "", 8),
        ("AVX-512", "x86-avx512-novnni", "", 16),
        ("AVX2 beside AVX-512", "x86-avx512-novnni", "", 8),
        ("AVX-512 VNNI", "x86-avx512", "", 16),
        ("AVX-512 VNNI VL of 256 bits", "x86-avx512", "", 8),
        ("AVX-VNNI beside AVX-512 VNNI", "x86-avx512", "+avxvnni", 8),
    ];
    let kind = |(name, target, changes, lanes): (&'static str, &str, &str, usize)| {
        let target = Target::parse(target).unwrap().with_changes(changes).unwrap();
        let all: Vec<WideMachine> = machine(&target).wide.into_iter().flatten().collect();
        let wide = *all.iter().find(|wide| wide.lanes == lanes).unwrap();
        Vectors { name, widest: wide == all[0], target, wide }
    };
    all.into_iter().map(kind).collect()
}

impl Vectors {
    /// Channels that fill an odd number of these vectors, and so no wider ones.
    fn channels(&self, vectors: usize) -> usize {
        let channels = vectors * self.wide.lanes;
        assert_eq!(machine(&self.target).wide_for(channels), Some(self.wide));
        channels
    }
}

/// A kernel under some of its schedules.
struct Sample {
    label: &'static str,
    case: Case,
    schedules: Vec<Schedule>,
}

impl Sample {
    fn options(&self, vectors: &Vectors, schedule: Schedule) -> Options {
        let mut options = Options::new(vectors.target.clone());
        options.schedules.insert(self.case.spec(), schedule);
        options
    }
}

/// An assembled function.
pub struct Found {
    pub family: &'static str,
    pub schedule: Schedule,
    /// Kernel, sample, schedule, vectors and function. The kernel's name tells whether it is of the border.
    pub name: String,
    pub code: Vec<u8>,
}

/// The assembled functions of all samples of a kind of vectors. A schedule may be refused by the proof that it needs, or
/// a tile of the most pixels for want of general registers; every label has one that is not.
pub fn leaves(vectors: &Vectors) -> Vec<Found> {
    leaves_of(vectors, samples(vectors))
}

/// Those of convolutions by direct products alone.
pub fn direct_leaves(vectors: &Vectors) -> Vec<Found> {
    leaves_of(vectors, direct(vectors))
}

/// Those of images alone.
pub fn image_leaves(vectors: &Vectors) -> Vec<Found> {
    leaves_of(vectors, images(vectors))
}

fn leaves_of(vectors: &Vectors, samples: Vec<Sample>) -> Vec<Found> {
    let (mut all, mut labels) = (Vec::new(), BTreeMap::new());
    for sample in samples {
        let (label, before) = (sample.label, all.len());
        let (graph, _) = sample.case.graph();
        for &schedule in &sample.schedules {
            let program = match Program::new(&graph, &sample.options(vectors, schedule)) {
                Ok(program) => program,
                Err(error) => {
                    let text = error.to_string();
                    let most = matches!(schedule, Schedule::Wide(WideSchedule { mr: 8, .. }));
                    let proof = text.contains("refused") || text.contains("beyond 16 bits");
                    let registers = most && text.contains("general registers are live");
                    assert!(proof || registers, "{label} with {schedule} for {}: {text}", vectors.name);
                    continue;
                }
            };
            let kernel = &program.kernels[0];
            let lowered = &kernel.lowered;
            assert!(!lowered.leaves.is_empty(), "{label} with {schedule} for {}", vectors.name);
            for leaf in &lowered.leaves {
                let name = format!("{} ({label}, `{schedule}`, {}) {}", kernel.name, vectors.name, leaf.name);
                all.push(Found { family: lowered.family, schedule, name, code: leaf.code.clone() });
            }
        }
        *labels.entry(label).or_insert(0) += all.len() - before;
    }
    assert!(labels.values().all(|&count| count > 0), "{}: {labels:?}", vectors.name);
    all
}

/// A model of one kernel for every label, under the first schedule that is not refused.
pub fn models(vectors: &Vectors) -> BTreeMap<&'static str, (Graph, Options)> {
    let mut all = BTreeMap::new();
    for sample in samples(vectors) {
        if all.contains_key(sample.label) {
            continue;
        }
        let (graph, _) = sample.case.graph();
        let mut options = sample.schedules.iter().map(|&schedule| sample.options(vectors, schedule));
        if let Some(options) = options.find(|options| Program::new(&graph, options).is_ok()) {
            all.insert(sample.label, (graph, options));
        }
    }
    all
}

fn samples(vectors: &Vectors) -> Vec<Sample> {
    let mut all = direct(vectors);
    all.extend(winograd(vectors));
    if vectors.widest && vectors.wide.dot {
        all.extend(strassen(vectors));
    }
    all.extend(depthwise(vectors));
    all.extend(pools(vectors));
    all.extend(pointwise_steps(vectors));
    all.extend(images(vectors));
    all
}

/// The candidates that `wanted` takes: those at the ends and some between.
fn some(vectors: &Vectors, case: &Case, count: usize, wanted: impl Fn(&Schedule) -> bool) -> Vec<Schedule> {
    let mut all = Schedule::candidates(&case.spec(), machine(&vectors.target));
    all.retain(wanted);
    let last = all.last().copied();
    let mut some: Vec<Schedule> = all.iter().copied().step_by(1 + all.len() / count).collect();
    some.extend(last.filter(|last| !some.contains(last)));
    some
}

fn is_wide(schedule: &Schedule) -> bool {
    matches!(schedule, Schedule::Wide(_))
}

/// Every tile of every product.
fn tiles(vectors: &Vectors, case: &Case) -> Vec<Schedule> {
    let tile = |multiply| {
        (1..=8).flat_map(move |mr| (1..=4).map(move |nr| WideSchedule { multiply, mr, nr, rows: 3, blocks: 2 }))
    };
    let all = Multiply::ALL.into_iter().flat_map(tile).map(Schedule::Wide);
    all.filter(|s| s.legal(&case.spec(), machine(&vectors.target)).is_ok()).collect()
}

fn direct(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    let mut of = |label, case: Case, schedules: Vec<Schedule>| all.push(Sample { label, case, schedules });
    let [k1, k3, k5, k7] = [1, 3, 5, 7].map(|n| vectors.channels(n));
    for (label, src, wei, out) in [
        ("convolution", Elem::U8, Elem::I8, Elem::U8),
        ("convolution, 4-bit weights", Elem::U8, Elem::I4, Elem::I8),
        ("convolution, 4-bit weights and inputs", Elem::U4, Elem::I4, Elem::U4),
    ] {
        let mut build = Build::new(src, wei, [5, 6], 12, k7, [3, 3]);
        build.op.pad = [1; 4];
        let case = build.requantised(out, Rounding::HalfUp);
        let tiles = tiles(vectors, &case);
        of(label, case, tiles);
    }
    for (label, src, size, c, k, out) in [
        ("convolution, signed inputs", Elem::I8, [4, 9], 16, k5, Elem::I16),
        ("convolution, signed 4-bit outputs", Elem::I8, [4, 9], 16, k5, Elem::I4),
        ("convolution, 16-bit inputs", Elem::I16, [4, 9], 16, k5, Elem::I16),
        ("vector times matrix", Elem::U8, [1, 1], 256, k7, Elem::U8),
    ] {
        let case = Build::new(src, Elem::I8, size, c, k, [1, 1]).requantised(out, Rounding::Floor);
        let schedules = some(vectors, &case, 6, is_wide);
        of(label, case, schedules);
    }
    // Groups that share vectors: their inputs repeat after 2, 4 and 8 dwords, or change places between steps.
    for (group_in, sharing) in [(4, 2), (4, 4), (4, 8), (8, 2)] {
        let groups = k3 * sharing / vectors.wide.lanes;
        let mut build = Build::new(Elem::U8, Elem::I8, [4, 7], group_in * groups, k3, [3, 3]);
        build.op = Conv { pad: [1; 4], groups, ..Conv::unit() };
        let case = build.requantised(Elem::U8, Rounding::HalfUp);
        let schedules = some(vectors, &case, 6, is_wide);
        of("convolution, groups", case, schedules);
    }
    for (label, wei) in [("sums", Elem::I8), ("sums, 4-bit weights", Elem::I4)] {
        let case = Build::new(Elem::U8, wei, [3, 3], 72, k3, [3, 3]).case();
        let schedules = some(vectors, &case, 6, is_wide);
        of(label, case, schedules);
    }
    for (label, wei) in [("stem", Elem::I8), ("stem, 4-bit weights", Elem::I4)] {
        let mut build = Build::new(Elem::U8, wei, [17, 17], 3, k5, [7, 7]);
        build.op = Conv { stride: [2, 2], pad: [3; 4], pad_value: 7, ..Conv::unit() };
        let case = build.requantised(Elem::U8, Rounding::HalfUp);
        let schedules = some(vectors, &case, 6, is_wide);
        of(label, case, schedules);
    }
    for (turn, residual) in [Elem::I16, Elem::I32, Elem::U8, Elem::I8, Elem::U4].into_iter().enumerate() {
        for (k, out) in [(k7, Elem::U8), (k5, Elem::I16), (k3, Elem::I8), (k1, Elem::I32)] {
            let build = Build::new(Elem::U8, [Elem::I8, Elem::I4][turn % 2], [5, 4], 24, k, [1, 1]);
            let case = build.requantised(Elem::I16, Rounding::HalfUp);
            let position = case.operands.len();
            let mut case = with_residual(case, residual, out, turn);
            if residual == Elem::I32 {
                // A wide kernel requantises what the shift leaves in 32 bits.
                let range = Range::new(-(1 << 20), 1 << 20);
                let ty = TensorType::with_range(residual, case.spec().result().shape.clone(), range).unwrap();
                case.operands[position] = Operand::input(ty, 1);
            }
            let schedules = some(vectors, &case, 4, is_wide);
            if out == Elem::I16 {
                of("convolution and second result", with_second(case.clone(), Elem::U8, turn), schedules.clone());
            }
            of("convolution and residual", case, schedules);
        }
    }
    all
}

fn winograd(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    // Of every product and tile the first candidate, or the first and the last.
    let mut of = |label, case: Case, ends: usize| {
        let mut forms: BTreeMap<_, Vec<Schedule>> = BTreeMap::new();
        for schedule in Schedule::candidates(&case.spec(), machine(&vectors.target)) {
            if let Schedule::Winograd(winograd) = schedule {
                forms.entry((winograd.multiply, winograd.outputs)).or_default().push(schedule);
            }
        }
        let of_form = |form: Vec<Schedule>| [form[0], form[form.len() - 1]].into_iter().take(ends);
        all.push(Sample { label, case, schedules: forms.into_values().flat_map(of_form).collect() });
    };
    let build = |src, wei, kernel: [usize; 2]| {
        let vectors_of = if kernel == [3, 3] { 3 } else { 1 };
        // Few weights: the proof looks at each under every tile.
        let mut build = Build::new(src, wei, [9, 7], 20, vectors.channels(vectors_of), kernel);
        let [h, w] = kernel.map(|k| k / 2);
        build.op.pad = [h, w, h, w];
        build
    };
    // Weights of two bits grow within bytes under every tile.
    let narrow = |case: &Case| case.with_weights(|w| w.clamp(-1, 1));
    for (src, out, ends) in [(Elem::U8, Elem::U8, 2), (Elem::I8, Elem::I16, 1)] {
        of("Winograd, 16-bit lanes", build(src, Elem::I8, [3, 3]).requantised(out, Rounding::HalfUp), ends);
    }
    for (src, out, ends) in [(Elem::U4, Elem::U4, 2), (Elem::I4, Elem::I16, 1)] {
        let case = build(src, Elem::I4, [3, 3]).requantised(out, Rounding::HalfUp);
        of("Winograd, 8-bit lanes", narrow(&case), ends);
    }
    // Longer kernels take the same instructions; deriving their transforms takes a second each.
    for kernel in [[1, 3], [3, 1], [5, 5]] {
        let case = build(Elem::U8, Elem::I8, kernel).requantised(Elem::I8, Rounding::HalfUp);
        of("Winograd, other kernels", case, 1);
        let case = build(Elem::U4, Elem::I4, kernel).requantised(Elem::U8, Rounding::Floor);
        of("Winograd, other kernels", narrow(&case), 1);
    }
    let case = build(Elem::U8, Elem::I8, [3, 3]).requantised(Elem::I16, Rounding::HalfUp);
    of("Winograd and second result", with_second(case.clone(), Elem::U8, 0), 1);
    of("Winograd and residual", with_residual(case, Elem::U8, Elem::U8, 0), 1);
    of("Winograd to sums", narrow(&build(Elem::U4, Elem::I4, [3, 3]).case()), 1);
    all
}

fn strassen(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    let lanes = vectors.wide.lanes;
    for (src, out) in [(Elem::U4, Elem::U8), (Elem::I4, Elem::I16)] {
        let build = Build::new(src, Elem::I4, [5, 5], 16 * lanes, 12 * lanes, [1, 1]);
        let case = build.requantised(out, Rounding::HalfUp);
        let residual = with_residual(build.requantised(Elem::I16, Rounding::HalfUp), Elem::U8, out, 1);
        for case in [build.case(), case, residual] {
            let mut schedules = some(vectors, &case, 8, |s| matches!(s, Schedule::Strassen(_)));
            let small = |levels| Schedule::Strassen(StrassenSchedule { levels, mr: 2, nr: 3, tiles: 3, blocks: 1 });
            let legal = |s: &Schedule| s.legal(&case.spec(), machine(&vectors.target)).is_ok();
            schedules.extend((1..=MAX_LEVELS).map(small).filter(legal));
            all.push(Sample { label: "Strassen", case, schedules });
        }
    }
    all
}

fn depthwise(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    let mut of = |label, case: Case| {
        let schedules = some(vectors, &case, 6, |s| matches!(s, Schedule::Depthwise(_)));
        all.push(Sample { label, case, schedules });
    };
    // Cells are prepared for four, two and one vector.
    let c = vectors.channels(7);
    let build = |src, wei, kernel: [usize; 2], stride| {
        let mut build = Build::new(src, wei, [9, 11], c, c, kernel);
        build.op = Conv { stride, pad: [1; 4], groups: c, ..Conv::unit() };
        build
    };
    for (src, wei, kernel, stride, out) in [
        (Elem::U8, Elem::I8, [3, 3], [1, 1], Elem::U8),
        (Elem::I8, Elem::I8, [3, 3], [2, 2], Elem::I8),
        (Elem::I16, Elem::I8, [5, 5], [1, 1], Elem::I16),
        (Elem::U4, Elem::I4, [2, 3], [1, 2], Elem::U4),
        (Elem::I4, Elem::I16, [1, 1], [1, 1], Elem::I32),
    ] {
        let build = build(src, wei, kernel, stride);
        of("depthwise", build.case());
        of("depthwise", build.requantised(out, Rounding::HalfUp));
    }
    for elem in [Elem::I16, Elem::U8] {
        let case = build(Elem::U8, Elem::I8, [3, 3], [1, 1]).requantised(Elem::I16, Rounding::HalfUp);
        of("depthwise and residual", with_residual(case, elem, Elem::U8, 0));
    }
    let case = build(Elem::U8, Elem::I8, [3, 3], [1, 1]).requantised(Elem::I16, Rounding::HalfUp);
    of("depthwise with a second result", with_second(case, Elem::U8, 0));
    all
}

fn constants(elem: Elem, shape: &[usize], value: impl Fn(i64) -> i64) -> Operand {
    let count: usize = shape.iter().product();
    Operand::Constant(Tensor::from_ints(elem, shape, (0..count as i64).map(value)).unwrap())
}

fn assembled(label: &'static str, case: Case) -> Sample {
    Sample { label, case, schedules: vec![Schedule::Assembled] }
}

fn pools(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    for (turn, elem) in
        [Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::U4, Elem::I4, Elem::U8, Elem::I16].into_iter().enumerate()
    {
        let c = vectors.channels([1, 3, 9][turn % 3]);
        let out = [Elem::U8, Elem::I16, Elem::I8, Elem::I32][turn % 4];
        let input = |range: Range| {
            let ty = TensorType::with_range(elem, [2, 9, 13, c], range).unwrap();
            vec![Operand::input(ty, turn as u64)]
        };
        let requantised = |label, op: Op, shape: &[usize]| {
            // A requantisation by a half or less keeps values of 32 bits.
            let mut operands = input(elem.range().unwrap().clamped(-100_000, 100_000));
            operands.push(constants(Elem::I32, shape, |i| (1 << 30) + i % 19 * 54_321));
            operands.push(constants(Elem::U8, shape, |i| 33 + i % 3));
            let requant = Requant::to_range(out.range().unwrap(), out);
            let args = vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)];
            let body = vec![(op, vec![Arg::Operand(0)]), (requant.into(), args)];
            assembled(label, Case { name: format!("{label} {elem}"), operands, body, ..Case::default() })
        };
        for (kernel, stride, pad) in [([3, 3], [2, 2], [1; 4]), ([2, 3], [1, 1], [0; 4])] {
            let max: Op = MaxPool { kernel, stride, pad, dilation: [1, 1] }.into();
            let case = Case {
                name: format!("maximum {elem}"),
                operands: input(elem.range().unwrap()),
                body: vec![(max.clone(), vec![Arg::Operand(0)])],
                ..Case::default()
            };
            all.push(assembled("maximum", case));
            all.push(requantised("maximum, requantised", max, &[1]));
            let sum: Op = SumPool { kernel, stride, pad, zero: [0, 3][turn % 2] }.into();
            all.push(requantised("sum, requantised", sum, &[[1, c][turn % 2]]));
        }
        let square: Op = SumPool { kernel: [8, 8], stride: [1, 1], pad: [0; 4], zero: 3 }.into();
        if elem != Elem::I32 {
            let name = format!("sum {elem}");
            let case = Case {
                name,
                operands: input(elem.range().unwrap()),
                body: vec![(square, vec![Arg::Operand(0)])],
                ..Case::default()
            };
            all.push(assembled("sum", case));
        }
    }
    all
}

fn pointwise_steps(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    let full = |elem: Elem| elem.range().unwrap();
    for (turn, (elem, range, least)) in [
        (Elem::I32, Range::new(-70_000, 70_000), 20),
        (Elem::I16, full(Elem::I16), 18),
        (Elem::I16, Range::new(-32_767, 32_767), 18),
        (Elem::U8, full(Elem::U8), 10),
        (Elem::I8, full(Elem::I8), 10),
        (Elem::I4, full(Elem::I4), 8),
    ]
    .into_iter()
    .enumerate()
    {
        for (vectors_of, per_channel) in [(1, false), (3, true), (5, false), (7, true)] {
            let c = vectors.channels(vectors_of);
            let out = [Elem::I32, Elem::I8, Elem::I16, Elem::U4, Elem::U8][(turn + vectors_of) % 5];
            let round = [Rounding::HalfUp, Rounding::Floor][turn % 2];
            let src = TensorType::with_range(elem, [1, 3, 5, c], range).unwrap();
            let values = (0..15 * c as i64).map(|i| (i * 7919).rem_euclid(range.hi - range.lo + 1) + range.lo);
            let scope = if per_channel { c } else { 1 };
            for shifts in [1, 40] {
                let pairs: Vec<(i64, i64)> =
                    (0..scope as i64).map(|i| ((1 << 30) + i * 1_234_567, least + i % shifts)).collect();
                let op = pointwise::op(round, out, 1, 1);
                let case = pointwise::requant(op, src.clone(), values.clone().collect(), &[scope], &pairs);
                all.push(assembled("requantisation", case));
            }
        }
    }
    for (turn, elems) in [[Elem::I16, Elem::I16], [Elem::U8, Elem::I16], [Elem::U4, Elem::I8], [Elem::I8, Elem::I4]]
        .into_iter()
        .enumerate()
    {
        let out = [Elem::U8, Elem::U4, Elem::I16, Elem::I32][turn];
        for vectors_of in [1, 5] {
            let shape = [1, 3, 2, vectors.channels(vectors_of)];
            all.push(assembled("residual sum", pointwise::residual(elems, out, shape, turn as u64)));
        }
    }
    all
}

fn images(vectors: &Vectors) -> Vec<Sample> {
    let mut all = Vec::new();
    // As many pixels as the vectors have lanes at least, and fewer than those of the target's wider ones.
    let sizes: &[[usize; 2]] = if vectors.widest { &[[5, 7], [4, 16], [33, 32]] } else { &[[2, 4], [3, 5]] };
    for (turn, &[height, width]) in sizes.iter().enumerate() {
        for channels in 1..=4 {
            for elem in [Elem::U8, Elem::I8, Elem::U4] {
                let shape = [1, channels, height, width];
                let values = (0..channels * height * width).map(|i| i as f32 - 100.0).collect();
                let src = Operand::Input(TensorType::new(Elem::F32, shape), Tensor::from_f32(shape, values).unwrap());
                let count = if turn % 2 == 0 { channels } else { 1 };
                let scale = Tensor::from_f32([count], (0..count).map(|i| 0.5 + i as f32).collect()).unwrap();
                let range = elem.range().unwrap();
                let quantize = Quantize { lo: range.lo, hi: range.hi, axis: 3, elem };
                let case = Case {
                    name: format!("image {elem}"),
                    operands: vec![src, Operand::Constant(scale), constants(elem, &[count], |i| i % 2)],
                    body: vec![
                        (Transpose { perm: vec![0, 2, 3, 1] }.into(), vec![Arg::Operand(0)]),
                        (quantize.into(), vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)]),
                    ],
                    ..Case::default()
                };
                all.push(assembled("image", case));
            }
        }
    }
    all
}
