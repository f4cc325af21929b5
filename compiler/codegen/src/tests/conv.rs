use hawqc_ir::text::seeded;
use hawqc_ir::*;
use hawqc_schedules::Schedule;

use super::harness::{Case, Operand, runnable_targets};
use crate::program::machine;

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

    fn case(&self) -> Case {
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
        Case { name: format!("{self:?}"), operands, body: vec![(self.op.clone().into(), args)] }
    }

    /// With a requantisation per channel to `out`.
    fn requantised(&self, out: Elem, round: Rounding) -> Case {
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

#[test]
fn a_small_convolution() {
    for target in runnable_targets() {
        let mut build = Build::new(Elem::U8, Elem::I8, [5, 6], 8, 20, [3, 3]);
        build.op.pad = [1, 1, 1, 1];
        build.case().check_default(&target);
        build.requantised(Elem::U8, Rounding::HalfUp).check_default(&target);
    }
}

#[test]
fn every_schedule_agrees() {
    for target in runnable_targets() {
        let mut build = Build::new(Elem::U8, Elem::I4, [5, 6], 8, 36, [3, 2]);
        build.op.pad = [1, 0, 1, 1];
        let case = build.requantised(Elem::I8, Rounding::HalfEven);
        let schedules = Schedule::candidates(&case.spec(), machine(&target));
        case.check(&target, &schedules, &[1, 2]);
    }
}
