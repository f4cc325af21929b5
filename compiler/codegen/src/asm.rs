//! Assembling leaf functions for x86-64 with vectors wider than Cranelift's 128 bits.
//!
//! In: instructions over virtual registers, in program order, with counted loops ([`Asm`]). Out: the bytes of a
//! position-independent function of the System V convention with one argument, a table of 64-bit
//! words ([`Asm::finish`]). It calls nothing and keeps the callee-saved registers.
//!
//! There is no spilling: where registers do not suffice, assembling fails, and the schedule that
//! asked for so large a tile is not legal. So an inner loop never holds a spill.
//!
//! All vectors of a function have the [`Isa`]'s width; the few instructions that need the lower 128
//! bits of one say so in their name.

mod alloc;
mod encode;
mod ops;

use hawqc_schedules::WideMachine;
use iced_x86::{Code, OpKind, Register};
use thiserror::Error;

pub use ops::{Binary, Shift, ShiftBy, Widen, pack_orders};

/// A family of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// 256 bits, VEX encoding, 16 registers.
    Avx2,
    /// The same, with AVX-512's dot products of 256 bits instead of AVX-VNNI's.
    Avx512Vl,
    /// 512 bits, EVEX encoding, 32 registers: AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Isa {
    /// The one of these vectors.
    pub const fn of(wide: WideMachine) -> Isa {
        match (wide.lanes == Isa::Avx512.lanes(), wide.evex) {
            (true, _) => Isa::Avx512,
            (false, true) => Isa::Avx512Vl,
            (false, false) => Isa::Avx2,
        }
    }

    /// Bytes of a vector.
    pub const fn bytes(self) -> usize {
        match self {
            Isa::Avx2 | Isa::Avx512Vl => 32,
            Isa::Avx512 => 64,
        }
    }

    /// Lanes of 32 bits.
    pub const fn lanes(self) -> usize {
        self.bytes() / 4
    }

    /// Vector registers.
    pub const fn registers(self) -> usize {
        match self {
            Isa::Avx2 | Isa::Avx512Vl => 16,
            Isa::Avx512 => 32,
        }
    }
}

/// Why a function could not be assembled.
#[derive(Debug, Error)]
pub enum AsmError {
    #[error("{needed} {class} registers are live at once; there are {available}")]
    Registers { class: &'static str, needed: usize, available: usize },
    #[error("an instruction cannot be encoded: {0}")]
    Encode(String),
}

/// A virtual vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V(u32);

/// A virtual general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpr(u32);

/// `[base + index + disp]`.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    pub base: Gpr,
    pub index: Option<Gpr>,
    pub disp: i32,
}

impl Mem {
    pub fn at(base: Gpr, disp: usize) -> Mem {
        // Displacements lie within a tile, a table or a frame, far below 2^31.
        Mem { base, index: None, disp: disp as i32 }
    }

    /// A 64-bit word of a table.
    pub fn word(table: Gpr, word: usize) -> Mem {
        Mem::at(table, 8 * word)
    }

    pub fn indexed(base: Gpr, index: Gpr, disp: usize) -> Mem {
        Mem { base, index: Some(index), disp: disp as i32 }
    }
}

/// A vector in a register or in memory.
#[derive(Clone, Copy, Debug)]
pub enum Src {
    Reg(V),
    Mem(Mem),
}

impl From<V> for Src {
    fn from(v: V) -> Src {
        Src::Reg(v)
    }
}

impl From<Mem> for Src {
    fn from(m: Mem) -> Src {
        Src::Mem(m)
    }
}

/// How much of a vector register an operand names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    X,
    Y,
    Z,
}

#[derive(Clone, Copy, Debug)]
enum Operand {
    Vec(V, View),
    Gpr(Gpr),
    /// The low half of a general register.
    Gpr32(Gpr),
    Mask(Register),
    Mem(Mem),
    Imm(OpKind, i32),
}

#[derive(Clone, Debug)]
struct Inst {
    code: Code,
    operands: Vec<Operand>,
    /// Lanes that are written; the others keep their value.
    mask: Option<Register>,
}

#[derive(Clone, Debug)]
enum Item {
    Inst(Inst),
    /// The head of a loop.
    Label(usize),
    /// Back to the label while the last counting did not reach zero.
    LoopBack(usize),
}

/// The opmask that holds [`Asm::set_even_mask`]'s lanes.
const EVEN: Register = Register::K1;
/// The opmask of [`Asm::zero_unordered`].
const ORDERED: Register = Register::K2;

/// A function under construction.
pub struct Asm {
    pub isa: Isa,
    items: Vec<Item>,
    vecs: u32,
    gprs: u32,
    labels: usize,
    frame_bytes: usize,
}

/// The virtual register that holds the argument.
const ARGUMENT: Gpr = Gpr(0);
/// The virtual register that holds the frame's address.
const FRAME: Gpr = Gpr(1);

impl Asm {
    /// An empty function and the register with its argument.
    pub fn new(isa: Isa) -> (Asm, Gpr) {
        let asm = Asm { isa, items: Vec::new(), vecs: 0, gprs: 2, labels: 0, frame_bytes: 0 };
        (asm, ARGUMENT)
    }

    pub fn vec(&mut self) -> V {
        self.vecs += 1;
        V(self.vecs - 1)
    }

    pub fn vecs(&mut self, count: usize) -> Vec<V> {
        (0..count).map(|_| self.vec()).collect()
    }

    pub fn gpr(&mut self) -> Gpr {
        self.gprs += 1;
        Gpr(self.gprs - 1)
    }

    /// A place of the frame for a vector.
    pub fn frame_slot(&mut self) -> Mem {
        self.frame_slots(1)
    }

    /// The first of so many places, one behind the other.
    pub fn frame_slots(&mut self, count: usize) -> Mem {
        let at = self.frame_bytes;
        self.frame_bytes += count * self.isa.bytes();
        Mem::at(FRAME, at)
    }

    /// A 64-bit word of memory in a new register.
    pub fn load_word(&mut self, from: Mem) -> Gpr {
        let to = self.gpr();
        self.reload_word(to, from);
        to
    }

    pub fn reload_word(&mut self, to: Gpr, from: Mem) {
        self.push(Code::Mov_r64_rm64, [Operand::Gpr(to), Operand::Mem(from)]);
    }

    pub fn store_word(&mut self, to: Mem, from: Gpr) {
        self.push(Code::Mov_rm64_r64, [Operand::Mem(to), Operand::Gpr(from)]);
    }

    /// Adds to a 64-bit word of memory.
    pub fn add_to_word(&mut self, to: Mem, value: usize) {
        if value != 0 {
            self.push(Code::Add_rm64_imm32, [Operand::Mem(to), Operand::Imm(OpKind::Immediate32to64, value as i32)]);
        }
    }

    /// A signed 32-bit word of memory, extended.
    pub fn load_int(&mut self, to: Gpr, from: Mem) {
        self.push(Code::Movsxd_r64_rm32, [Operand::Gpr(to), Operand::Mem(from)]);
    }

    pub fn set(&mut self, to: Gpr, value: usize) {
        self.push(Code::Mov_r32_imm32, [Operand::Gpr32(to), Operand::Imm(OpKind::Immediate32, value as i32)]);
    }

    pub fn add(&mut self, to: Gpr, other: Gpr) {
        self.push(Code::Add_r64_rm64, [Operand::Gpr(to), Operand::Gpr(other)]);
    }

    pub fn add_int(&mut self, to: Gpr, value: usize) {
        if value != 0 {
            self.push(Code::Add_rm64_imm32, [Operand::Gpr(to), Operand::Imm(OpKind::Immediate32to64, value as i32)]);
        }
    }

    /// Runs `body` `count` times, `count > 0`.
    pub fn repeat(&mut self, count: usize, body: impl FnOnce(&mut Asm)) {
        if count == 1 {
            return body(self);
        }
        let counter = self.gpr();
        self.set(counter, count);
        self.repeat_down(counter, body);
    }

    /// Runs `body` as often as `counter`, at least 1, says, counting it down to 0.
    pub fn repeat_down(&mut self, counter: Gpr, body: impl FnOnce(&mut Asm)) {
        self.counted(Operand::Gpr(counter), body);
    }

    /// The same with a counter in memory.
    pub fn repeat_word_down(&mut self, counter: Mem, body: impl FnOnce(&mut Asm)) {
        self.counted(Operand::Mem(counter), body);
    }

    fn counted(&mut self, counter: Operand, body: impl FnOnce(&mut Asm)) {
        let label = self.labels;
        self.labels += 1;
        self.items.push(Item::Label(label));
        body(self);
        self.count_down(counter);
        self.items.push(Item::LoopBack(label));
    }

    fn count_down(&mut self, counter: Operand) {
        self.push(Code::Sub_rm64_imm8, [counter, Operand::Imm(OpKind::Immediate8to64, 1)]);
    }

    pub fn decrement_word(&mut self, word: Mem) {
        self.count_down(Operand::Mem(word));
    }

    /// The instructions of `first` and of `second`, which know nothing of each other, mixed evenly. Neither has loops.
    pub fn beside(&mut self, first: impl FnOnce(&mut Asm), second: impl FnOnce(&mut Asm)) {
        let before = self.items.len();
        first(self);
        let between = self.items.len();
        second(self);
        let second = self.items.split_off(between);
        let first = self.items.split_off(before);
        let (firsts, seconds) = (first.len(), second.len());
        let mut second = second.into_iter().enumerate().peekable();
        for (i, item) in first.into_iter().enumerate() {
            while let Some((_, item)) = second.next_if(|(j, _)| j * firsts < i * seconds) {
                self.items.push(item);
            }
            self.items.push(item);
        }
        self.items.extend(second.map(|(_, item)| item));
    }

    /// Prepares [`Asm::high_halves`].
    pub fn set_even_mask(&mut self) {
        if self.isa == Isa::Avx512 {
            let lanes = self.gpr();
            self.set(lanes, 0x5555);
            self.push(Code::VEX_Kmovw_kr_r32, [Operand::Mask(EVEN), Operand::Gpr32(lanes)]);
        }
    }

    fn push(&mut self, code: Code, operands: impl IntoIterator<Item = Operand>) {
        self.push_masked(code, operands, None);
    }

    fn push_masked(&mut self, code: Code, operands: impl IntoIterator<Item = Operand>, mask: Option<Register>) {
        let operands = operands.into_iter().collect();
        self.items.push(Item::Inst(Inst { code, operands, mask }));
    }

    /// The machine code.
    ///
    /// # Errors
    /// More registers are live at once than there are.
    pub fn finish(self) -> Result<Vec<u8>, AsmError> {
        let allocation = alloc::allocate(&self)?;
        encode::encode(&self, &allocation)
    }
}

#[cfg(test)]
mod tests;
