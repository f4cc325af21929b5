//! Kernels: from a [`KernelSpec`] and its constants to machine code.
//!
//! In: a spec in one of the supported forms, the data of its constant operands, a target and a
//! schedule. Out: a [`Lowered`] kernel: a [`Body`] that emits the code, the constant tables the code reads,
//! and how the work may be split.
//!
//! The contract of every body, wherever its code comes from: it is a function
//! `(pointers, first, end)`, where `pointers` is a table of addresses in the order of
//! [`Frame`]: the result, the operands in [`Lowered::operands`], the second result, the tables, and scratch memory of its own.
//! It does the units of work from `first` to before `end`, and writes their parts of the result and nothing else, so nothing
//! between pixels that lie apart ([`Dst`]); the parts of all [`Lowered::units`] together are the whole. Units mostly follow each
//! other as their results do in memory, so that neighbours, which a core has in its cache, stay together. It reads no byte outside
//! its operands and calls nothing.

mod border;
mod conv;
mod depthwise;
mod dst;
pub mod emit;
pub mod epilogue;
mod gather;
mod literals;
mod movement;
mod pointwise;
mod pool;
mod products;
mod requant;
mod rows;
mod wide;

use cranelift_codegen::ir::{FuncRef, Value, types};
use hawqc_ir::{KernelSpec, Op, Tensor};
use hawqc_schedules::{ConvGeometry, Schedule, TASK_WORK};

use crate::error::Unsupported;
use crate::program::machine;
use crate::target::Target;
pub use dst::Dst;
use emit::Code;

/// Most tasks a step is ever split into; bounds scratch memory.
pub const MAX_TASKS: usize = 64;

/// Emits the code of a kernel.
pub trait Body: Sync {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported>;
}

/// What the memory plan asks of a kernel.
pub struct Placement {
    pub dst: Dst,
    /// The operands of a concatenation that lie in its result already.
    pub written: Vec<usize>,
}

/// A constant table.
pub struct Table {
    pub bytes: Vec<u8>,
    pub is_weights: bool,
}

impl Table {
    pub fn new(bytes: Vec<u8>) -> Table {
        Table { bytes, is_weights: false }
    }
}

/// An assembled function over a table of words: it calls nothing, refers to nothing, and keeps the
/// callee-saved registers.
pub struct Leaf {
    pub name: String,
    pub code: Vec<u8>,
}

/// A kernel ready to be emitted.
pub struct Lowered {
    /// Short name of the family, for symbols and people.
    pub family: &'static str,
    pub body: Box<dyn Body>,
    /// Assembled functions that the body calls.
    pub leaves: Vec<Leaf>,
    /// Operands of the spec that the body reads through pointers, in the order of the pointer
    /// table.
    pub operands: Vec<usize>,
    /// Whether the body stores the second result of the spec; its place follows the operands' in the pointer table.
    pub second: bool,
    pub tables: Vec<Table>,
    /// What of the constants the code (not only the tables) depends on, as text.
    pub forms: String,
    /// What had to be proved of the constants for this code to be exact; empty if nothing.
    pub proof: String,
    /// Scratch memory of one task.
    pub scratch_bytes: usize,
    /// Independent units of work.
    pub units: usize,
    /// Element operations, for the serial cut-off.
    pub work: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Whether the code handles floats.
    pub is_border: bool,
}

impl Lowered {
    /// Most tasks this kernel may be split into: 1 where handing over costs more than it gains.
    pub fn max_tasks(&self) -> usize {
        let by_work = usize::try_from(self.work / TASK_WORK as u64).unwrap_or(MAX_TASKS);
        self.units.min(by_work).clamp(1, MAX_TASKS)
    }
}

/// Addresses and numbers a body runs with.
pub struct Frame {
    pub dst: Value,
    /// In the order of [`Lowered::operands`], then the second result, if there is one.
    pub operands: Vec<Value>,
    pub tables: Vec<Value>,
    /// Scratch memory, which no other task uses meanwhile; null if the kernel needs none.
    pub scratch: Value,
    /// The units of work to do: the first, and the one behind the last.
    pub units: [Value; 2],
    /// In the order of [`Lowered::leaves`].
    pub leaves: Vec<FuncRef>,
}

impl Frame {
    /// Loads the addresses from the pointer table.
    pub fn load(c: &mut Code, lowered: &Lowered, pointers: Value, units: [Value; 2], leaves: Vec<FuncRef>) -> Frame {
        let operands = lowered.operands.len() + usize::from(lowered.second);
        let count = 1 + operands + lowered.tables.len();
        let mut all: Vec<Value> = (0..count).map(|i| c.load(types::I64, pointers, 8 * i)).collect();
        let scratch = match lowered.scratch_bytes {
            0 => c.int(0),
            _ => c.load(types::I64, pointers, 8 * count),
        };
        let tables = all.split_off(1 + operands);
        let operands = all.split_off(1);
        Frame { dst: all[0], operands, tables, scratch, units, leaves }
    }

    /// Runs `body` for every unit.
    pub fn units(&self, c: &mut Code, body: impl FnOnce(&mut Code, Value)) {
        let [first, end] = self.units;
        let one = c.int(1);
        c.range(first, end, one, body);
    }
}

/// Whether kernels of this spec, under any schedule, can write a result whose pixels lie apart; a second result is read from
/// the first, whose pixels then follow each other.
pub fn writes_apart(spec: &KernelSpec) -> bool {
    spec.second().is_none()
        && spec.steps().first().is_some_and(|first| match &first.op {
            Op::Conv(_) | Op::MaxPool(_) | Op::SumPool(_) | Op::Requant(_) | Op::Add(_) | Op::Clamp(_) => true,
            Op::Concat(concat) => concat.axis + 1 == first.ty.rank(),
            _ => false,
        })
}

/// Chooses the family for a spec. `constants[i]` is the data of operand `i` if it is constant.
pub fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    target: &Target,
    schedule: Schedule,
    placement: &Placement,
) -> Result<Lowered, Unsupported> {
    let dst = placement.dst;
    if dst != Dst::dense(spec.result()) && !writes_apart(spec) {
        return Err(Unsupported::new("a result whose pixels lie apart"));
    }
    let Some(first) = spec.steps().first() else {
        return Err(Unsupported::new("a kernel without steps"));
    };
    let floats = spec.operands().iter().map(|ty| ty.is_float());
    match &first.op {
        Op::Quantize(_) | Op::Dequantize(_) | Op::Softmax(_) => border::lower(spec, constants),
        Op::Transpose(_) if spec.steps().len() == 2 => match schedule {
            Schedule::Assembled => wide::image::lower(spec, constants, machine(target)),
            _ => border::lower(spec, constants),
        },
        Op::Concat(_) | Op::Pad(_) | Op::Transpose(_) if spec.steps().len() == 1 => movement::lower(spec, placement),
        _ if floats.into_iter().any(|float| float) => Err(Unsupported::new(format!("`{}` of floats", first.op.name()))),
        Op::Conv(_) if ConvGeometry::of(spec).is_none() => match schedule {
            Schedule::Depthwise(schedule) => wide::depthwise::lower(spec, constants, machine(target), schedule, dst),
            _ => depthwise::lower(spec, constants, dst),
        },
        Op::Conv(_) => match schedule {
            Schedule::Wide(schedule) => wide::lower(spec, constants, machine(target), schedule, dst),
            Schedule::Winograd(schedule) => wide::winograd::lower(spec, constants, machine(target), schedule, dst),
            Schedule::Strassen(schedule) => wide::strassen::lower(spec, constants, machine(target), schedule, dst),
            schedule => conv::lower(spec, constants, target, schedule, dst),
        },
        Op::MaxPool(_) | Op::SumPool(_) => match schedule {
            Schedule::Assembled => wide::pool::lower(spec, constants, machine(target), dst),
            _ => pool::lower(spec, constants, dst),
        },
        Op::Requant(_) | Op::Add(_) | Op::Clamp(_) => match schedule {
            Schedule::Assembled => wide::pointwise::lower(spec, constants, machine(target), dst),
            _ => pointwise::lower(spec, constants, dst),
        },
        op => Err(Unsupported::new(format!("a kernel starting with `{}`", op.name()))),
    }
}
