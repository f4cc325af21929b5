//! Decoded instructions in the form in which they are executed.
//!
//! Operands are brought into one order for all encodings: the destination, then the sources. A legacy
//! SSE instruction whose destination is also a source has it twice, as its three-operand form would.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, EncodingKind, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, MemorySize, Mnemonic, OpAccess, OpKind, Register, RoundingControl,
};

use crate::fault::{Done, FaultKind};
use crate::features::Features;
use crate::machine::Machine;
use crate::{float, general, masks, moves, packed, permute};

/// Executes an instruction.
pub(crate) type Handler = fn(&mut Machine, &Inst) -> Done;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    None,
    /// `shift` is 8 for `ah` to `bh`, else 0.
    General {
        number: u8,
        size: u8,
        shift: u8,
    },
    Vector(u8),
    Mask(u8),
    Memory,
    Immediate(u64),
}

/// `base + index * scale + displacement`; the base of a RIP-relative address is in the displacement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Address {
    pub base: Option<u8>,
    pub index: Option<u8>,
    pub scale: u64,
    pub displacement: u64,
}

pub(crate) struct Inst {
    pub run: Handler,
    pub address: u64,
    pub next: u64,
    pub mnemonic: Mnemonic,
    pub operands: [Operand; 5],
    pub memory: Address,
    /// Bytes of the memory operand; for a broadcast, of the element.
    pub memory_bytes: usize,
    /// Alignment that the memory operand must have.
    pub align: usize,
    /// Bytes of the first operand, if it is general or memory.
    pub size: usize,
    /// Vector length in bytes.
    pub bytes: usize,
    /// VEX or EVEX: the rest of the destination register becomes zero.
    pub clears_upper: bool,
    pub legacy: bool,
    pub broadcast: bool,
    /// The write mask's register, 0 for none.
    pub mask: u8,
    pub zeroing: bool,
    /// The last immediate.
    pub immediate: u64,
    pub condition: ConditionCode,
    /// Where a direct branch goes.
    pub target: u64,
    /// The feature that the machine lacks, where `run` says so.
    pub missing: &'static str,
    /// Whether the next instruction may be elsewhere.
    pub ends_block: bool,
}

/// The text of the instruction at `address`.
pub(crate) fn text(code: &[u8], address: u64) -> String {
    let mut out = String::new();
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    IntelFormatter::new().format(&instruction, &mut out);
    out
}

/// The instruction at the start of `code`. One that cannot be executed has a handler that says why.
pub(crate) fn decode(code: &[u8], address: u64, features: &Features) -> Inst {
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    let mut inst = plain(&instruction, address);
    if instruction.code() == Code::INVALID {
        return refused(inst, FaultKind::Undecodable);
    }
    if let Some(name) = features.missing(instruction.cpuid_features()) {
        inst.missing = name;
        inst.run = |_, i| Err(FaultKind::Feature(i.missing));
        inst.ends_block = true;
        return inst;
    }
    if !operands(&mut inst, &instruction) {
        return refused(inst, FaultKind::Unsupported);
    }
    let handler = general::select(&instruction, &inst)
        .or_else(|| masks::select(&inst))
        .or_else(|| moves::select(&inst))
        .or_else(|| packed::select(&inst))
        .or_else(|| permute::select(&inst))
        .or_else(|| float::select(&inst));
    match handler {
        Some(handler) => inst.run = handler,
        None => return refused(inst, FaultKind::Unsupported),
    }
    inst
}

fn refused(mut inst: Inst, kind: FaultKind) -> Inst {
    inst.ends_block = true;
    inst.run = match kind {
        FaultKind::Undecodable => |_, _| Err(FaultKind::Undecodable),
        _ => |_, _| Err(FaultKind::Unsupported),
    };
    inst
}

fn plain(instruction: &Instruction, address: u64) -> Inst {
    let encoding = instruction.code().encoding();
    Inst {
        run: |_, _| Err(FaultKind::Unsupported),
        address,
        next: address + instruction.len() as u64,
        mnemonic: instruction.mnemonic(),
        operands: [Operand::None; 5],
        memory: Address::default(),
        memory_bytes: 0,
        align: 1,
        size: 0,
        bytes: 16,
        clears_upper: encoding != EncodingKind::Legacy,
        legacy: encoding == EncodingKind::Legacy,
        broadcast: instruction.is_broadcast(),
        mask: instruction.op_mask().number_if_mask(),
        zeroing: instruction.zeroing_masking(),
        immediate: 0,
        condition: instruction.condition_code(),
        target: 0,
        missing: "",
        ends_block: instruction.flow_control() != iced_x86::FlowControl::Next,
    }
}

trait MaskNumber {
    fn number_if_mask(self) -> u8;
}

impl MaskNumber for Register {
    fn number_if_mask(self) -> u8 {
        if self.is_k() { self.number() as u8 } else { 0 }
    }
}

/// Fills in the operands; false if one is of a kind that is not emulated.
fn operands(inst: &mut Inst, instruction: &Instruction) -> bool {
    let prefixed = instruction.has_lock_prefix() || instruction.has_rep_prefix() || instruction.has_repne_prefix();
    if instruction.rounding_control() != RoundingControl::None || prefixed {
        return false;
    }
    let mut bytes = 0;
    for k in 0..instruction.op_count() {
        let operand = match instruction.op_kind(k) {
            OpKind::Register => {
                let register = instruction.op_register(k);
                if register.is_vector_register() {
                    bytes = bytes.max(register.size());
                }
                register_operand(register)
            }
            OpKind::Memory if memory(inst, instruction) => Some(Operand::Memory),
            OpKind::NearBranch64 => {
                inst.target = instruction.near_branch64();
                Some(Operand::None)
            }
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {
                inst.immediate = instruction.immediate(k);
                Some(Operand::Immediate(inst.immediate))
            }
            _ => None,
        };
        match operand {
            Some(operand) => inst.operands[k as usize] = operand,
            None => return false,
        }
    }
    inst.bytes = if bytes == 0 { 16 } else { bytes };
    inst.size = match inst.operands[0] {
        Operand::General { size, .. } => size.into(),
        Operand::Memory => inst.memory_bytes,
        _ => 0,
    };
    if inst.legacy && matches!(inst.operands[0], Operand::Vector(_)) && reads_destination(instruction) {
        inst.operands.copy_within(0..4, 1);
    }
    inst.align = alignment(inst, bytes);
    true
}

/// Whether a legacy instruction's destination is a source too.
fn reads_destination(instruction: &Instruction) -> bool {
    let mut instruction = *instruction;
    // `pxor xmm0, xmm0` and its like are listed as not reading their operand.
    if instruction.op1_kind() == OpKind::Register && instruction.op0_register() == instruction.op1_register() {
        let first = instruction.op0_register() == Register::XMM0;
        instruction.set_op1_register(if first { Register::XMM1 } else { Register::XMM0 });
    }
    let access = InstructionInfoFactory::new().info(&instruction).op0_access();
    matches!(access, OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn register_operand(register: Register) -> Option<Operand> {
    if register.is_gpr() {
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        let number = register.full_register().number() as u8;
        return Some(Operand::General { number, size: register.size() as u8, shift: if high { 8 } else { 0 } });
    }
    if register.is_vector_register() {
        return Some(Operand::Vector(register.number() as u8));
    }
    register.is_k().then(|| Operand::Mask(register.number() as u8))
}

fn memory(inst: &mut Inst, instruction: &Instruction) -> bool {
    let part = |register: Register| match register {
        Register::None | Register::RIP => Some(None),
        register if register.is_gpr64() => Some(Some(register.number() as u8)),
        _ => None,
    };
    let (Some(base), Some(index)) = (part(instruction.memory_base()), part(instruction.memory_index())) else {
        return false;
    };
    if instruction.segment_prefix() != Register::None {
        return false;
    }
    let size = instruction.memory_size();
    inst.memory = Address {
        base,
        index,
        scale: instruction.memory_index_scale().into(),
        displacement: instruction.memory_displacement64(),
    };
    inst.memory_bytes = size.size();
    size != MemorySize::Unknown || matches!(instruction.mnemonic(), Mnemonic::Lea) || inst.memory_bytes == 0
}

/// The alignment that memory must have: of 16 bytes for legacy SSE, and where the name demands it.
fn alignment(inst: &Inst, vector: usize) -> usize {
    use Mnemonic::*;
    match inst.mnemonic {
        Vmovdqa | Vmovdqa32 | Vmovdqa64 | Vmovaps | Vmovapd | Vmovntdq | Vmovntdqa | Vmovntps | Vmovntpd => vector,
        Movdqu | Movups | Movupd | Lddqu => 1,
        _ if inst.legacy && vector == 16 && inst.memory_bytes == 16 => 16,
        _ => 1,
    }
}
