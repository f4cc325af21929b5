//! From instructions over physical registers to bytes.

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code, IcedError, Instruction, OpKind, Register};

use super::alloc::Allocation;
use super::{Asm, AsmError, Inst, Isa, Item, Mem, Operand, View};

/// Registers that a function must leave as it found them.
const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

impl From<IcedError> for AsmError {
    fn from(error: IcedError) -> AsmError {
        AsmError::Encode(error.to_string())
    }
}

pub fn encode(asm: &Asm, allocation: &Allocation) -> Result<Vec<u8>, AsmError> {
    let mut out = CodeAssembler::new(64)?;
    let saved: Vec<Register> = CALLEE_SAVED.into_iter().filter(|r| allocation.gprs.contains(r)).collect();
    for &register in &saved {
        out.add_instruction(Instruction::with1(Code::Push_r64, register)?)?;
    }
    // The frame needs no alignment: its vectors are moved by unaligned instructions.
    let frame = asm.frame_bytes as i32;
    if frame > 0 {
        out.add_instruction(Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, frame)?)?;
    }
    let mut labels: Vec<_> = (0..asm.labels).map(|_| out.create_label()).collect();
    for item in &asm.items {
        match item {
            Item::Inst(inst) => out.add_instruction(instruction(asm.isa, inst, allocation)?)?,
            Item::Label(label) => {
                out.set_label(&mut labels[*label])?;
            }
            Item::LoopBack(label) => out.jne(labels[*label])?,
        }
    }
    if frame > 0 {
        out.add_instruction(Instruction::with2(Code::Add_rm64_imm32, Register::RSP, frame)?)?;
    }
    for &register in saved.iter().rev() {
        out.add_instruction(Instruction::with1(Code::Pop_r64, register)?)?;
    }
    out.add_instruction(Instruction::with(Code::VEX_Vzeroupper))?;
    out.add_instruction(Instruction::with(Code::Retnq))?;
    Ok(out.assemble(0)?)
}

fn instruction(isa: Isa, inst: &Inst, allocation: &Allocation) -> Result<Instruction, AsmError> {
    let mut out = Instruction::default();
    out.set_code(inst.code);
    for (position, operand) in (0u32..).zip(&inst.operands) {
        match *operand {
            Operand::Vec(v, view) => {
                let first = match view {
                    View::X => Register::XMM0,
                    View::Y => Register::YMM0,
                    View::Z => Register::ZMM0,
                };
                out.try_set_op_register(position, first + allocation.vecs[v.0 as usize] as u32)?;
            }
            Operand::Gpr(g) => out.try_set_op_register(position, allocation.gprs[g.0 as usize])?,
            Operand::Gpr32(g) => out.try_set_op_register(position, allocation.gprs[g.0 as usize].full_register32())?,
            Operand::Mask(mask) => out.try_set_op_register(position, mask)?,
            Operand::Mem(mem) => set_memory(&mut out, position, mem, allocation)?,
            Operand::Imm(kind, value) => set_immediate(&mut out, position, kind, value)?,
        }
    }
    if let Some(mask) = inst.mask {
        debug_assert!(isa == Isa::Avx512);
        out.set_op_mask(mask);
    }
    Ok(out)
}

fn set_memory(out: &mut Instruction, position: u32, mem: Mem, allocation: &Allocation) -> Result<(), AsmError> {
    out.try_set_op_kind(position, OpKind::Memory)?;
    out.set_memory_base(allocation.gprs[mem.base.0 as usize]);
    out.set_memory_index(mem.index.map_or(Register::None, |g| allocation.gprs[g.0 as usize]));
    out.set_memory_index_scale(1);
    // Size 1 asks for the shortest encoding.
    out.set_memory_displ_size(u32::from(mem.disp != 0));
    out.set_memory_displacement64(i64::from(mem.disp) as u64);
    Ok(())
}

fn set_immediate(out: &mut Instruction, position: u32, kind: OpKind, value: i32) -> Result<(), AsmError> {
    out.try_set_op_kind(position, kind)?;
    match kind {
        OpKind::Immediate8 => out.set_immediate8(value as u8),
        OpKind::Immediate8to64 => out.set_immediate8to64(value.into()),
        OpKind::Immediate32 => out.set_immediate32(value as u32),
        _ => out.set_immediate32to64(value.into()),
    }
    Ok(())
}
