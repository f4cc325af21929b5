//! Moves between vector registers, memory and general registers; broadcasts, inserts and extracts.

use iced_x86::Mnemonic;

use crate::decode::{Handler, Inst, Operand};
use crate::fault::{Done, FaultKind};
use crate::machine::Machine;
use crate::vector::{Lane, Vector, chosen};

pub(crate) fn select(i: &Inst) -> Option<Handler> {
    let merges = matches!(i.operands[2], Operand::Vector(_));
    let loads = i.operands[2] == Operand::Memory;
    use Mnemonic::*;
    Some(match i.mnemonic {
        Vmovdqu8 => |m, i| whole(m, i, 1),
        Vmovdqu16 => |m, i| whole(m, i, 2),
        Movdqa | Movdqu | Movaps | Movups | Movntdq | Movntps | Movntdqa | Lddqu | Vmovdqa | Vmovdqu | Vmovdqa32
        | Vmovdqu32 | Vmovaps | Vmovups | Vmovntdq | Vmovntps | Vmovntdqa | Vlddqu => |m, i| whole(m, i, 4),
        Movapd | Movupd | Movntpd | Vmovdqa64 | Vmovdqu64 | Vmovapd | Vmovupd | Vmovntpd => |m, i| whole(m, i, 8),
        Movd | Vmovd => |m, i| low(m, i, 4),
        Movq | Vmovq => |m, i| low(m, i, 8),
        Movss | Vmovss if merges => |m, i| replace_low::<u32>(m, i),
        Movsd | Vmovsd if merges => |m, i| replace_low::<u64>(m, i),
        // A load clears the rest, though the legacy form's destination may be listed as a source.
        Movss | Vmovss if loads => |m, i| load_low(m, i, 4),
        Movsd | Vmovsd if loads => |m, i| load_low(m, i, 8),
        Movss | Vmovss => |m, i| low(m, i, 4),
        Movsd | Vmovsd if i.operands.iter().any(|o| matches!(o, Operand::Vector(_))) => |m, i| low(m, i, 8),
        Movhlps | Vmovhlps => |m, i| pair(m, i, 3, 1),
        Movlhps | Vmovlhps => |m, i| pair(m, i, 0, 2),
        Movhps | Movhpd | Vmovhps | Vmovhpd if i.operands[0] == Operand::Memory => |m, i| {
            let mut out = m.source(i, 1, 0)?;
            out.0.copy_within(8..16, 0);
            m.store_bytes(i, &out, 8, 8)
        },
        Movlps | Movlpd | Vmovlps | Vmovlpd if i.operands[0] == Operand::Memory => |m, i| low(m, i, 8),
        Movhps | Movhpd | Vmovhps | Vmovhpd => |m, i| pair(m, i, 0, 2),
        Movlps | Movlpd | Vmovlps | Vmovlpd => |m, i| pair(m, i, 2, 1),
        Vpmaskmovd | Vmaskmovps => |m, i| by_vector::<i32>(m, i, |a| a < 0),
        Vpmaskmovq | Vmaskmovpd => |m, i| by_vector::<i64>(m, i, |a| a < 0),
        Vpbroadcastb => |m, i| repeat(m, i, 1, 1),
        Vpbroadcastw => |m, i| repeat(m, i, 2, 2),
        Vpbroadcastd | Vbroadcastss => |m, i| repeat(m, i, 4, 4),
        Vpbroadcastq | Vbroadcastsd => |m, i| repeat(m, i, 8, 8),
        Movddup | Vmovddup => |m, i| {
            let a = m.source(i, 1, 0)?;
            let out = chosen::<u64>(&a, &a, i.bytes, |lane, _| Some(lane & !1));
            m.store(i, &out, 8)
        },
        Vbroadcasti32x2 | Vbroadcastf32x2 => |m, i| repeat(m, i, 8, 4),
        Vbroadcasti128 | Vbroadcastf128 | Vbroadcasti32x4 | Vbroadcastf32x4 => |m, i| repeat(m, i, 16, 4),
        Vbroadcasti64x2 | Vbroadcastf64x2 => |m, i| repeat(m, i, 16, 8),
        Vbroadcasti32x8 | Vbroadcastf32x8 => |m, i| repeat(m, i, 32, 4),
        Vbroadcasti64x4 | Vbroadcastf64x4 => |m, i| repeat(m, i, 32, 8),
        Pinsrb | Vpinsrb => |m, i| insert(m, i, 1, 1, 16),
        Pinsrw | Vpinsrw => |m, i| insert(m, i, 2, 2, 16),
        Pinsrd | Vpinsrd => |m, i| insert(m, i, 4, 4, 16),
        Pinsrq | Vpinsrq => |m, i| insert(m, i, 8, 8, 16),
        Vinserti128 | Vinsertf128 | Vinserti32x4 | Vinsertf32x4 => |m, i| insert(m, i, 16, 4, i.bytes),
        Vinserti64x2 | Vinsertf64x2 => |m, i| insert(m, i, 16, 8, i.bytes),
        Vinserti32x8 | Vinsertf32x8 => |m, i| insert(m, i, 32, 4, i.bytes),
        Vinserti64x4 | Vinsertf64x4 => |m, i| insert(m, i, 32, 8, i.bytes),
        Insertps | Vinsertps => insert_float,
        Pextrb | Vpextrb => |m, i| extract_to_general(m, i, 1),
        Pextrw | Vpextrw => |m, i| extract_to_general(m, i, 2),
        Pextrd | Vpextrd | Extractps | Vextractps => |m, i| extract_to_general(m, i, 4),
        Pextrq | Vpextrq => |m, i| extract_to_general(m, i, 8),
        Vextracti128 | Vextractf128 | Vextracti32x4 | Vextractf32x4 => |m, i| extract(m, i, 16, 4),
        Vextracti64x2 | Vextractf64x2 => |m, i| extract(m, i, 16, 8),
        Vextracti32x8 | Vextractf32x8 => |m, i| extract(m, i, 32, 4),
        Vextracti64x4 | Vextractf64x4 => |m, i| extract(m, i, 32, 8),
        Vzeroupper => |m, _| {
            m.vectors[..16].iter_mut().for_each(|vector| vector.0[16..].fill(0));
            Ok(())
        },
        Vzeroall => |m, _| {
            m.vectors[..16].fill(Vector::ZERO);
            Ok(())
        },
        _ => return None,
    })
}

fn whole(m: &mut Machine, i: &Inst, element: usize) -> Done {
    let a = m.source(i, 1, element)?;
    m.store(i, &a, element)
}

/// The low bytes, zero-extended in a register.
fn low(m: &mut Machine, i: &Inst, bytes: usize) -> Done {
    move_low(m, i, 1, bytes)
}

fn load_low(m: &mut Machine, i: &Inst, bytes: usize) -> Done {
    move_low(m, i, 2, bytes)
}

fn move_low(m: &mut Machine, i: &Inst, from: usize, bytes: usize) -> Done {
    if i.mask != 0 {
        return Err(FaultKind::Unsupported);
    }
    let mut a = m.source(i, from, 0)?;
    a.0[bytes..].fill(0);
    match i.operands[0] {
        Operand::General { .. } => m.set(i, 0, u64::get(&a, 0)),
        Operand::Memory => m.store_bytes(i, &a, bytes, bytes),
        _ => m.store_bytes(i, &a, bytes, 16),
    }
}

fn replace_low<T: Lane>(m: &mut Machine, i: &Inst) -> Done {
    if i.mask != 0 {
        return Err(FaultKind::Unsupported);
    }
    let (mut out, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    T::get(&b, 0).set(&mut out, 0);
    m.store_bytes(i, &out, T::BYTES, 16)
}

/// Two quarters of the second and third operand's low 16 bytes.
fn pair(m: &mut Machine, i: &Inst, first: usize, second: usize) -> Done {
    let (a, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    let out = chosen::<u64>(&a, &b, 16, |lane, _| Some(if lane == 0 { first } else { second }));
    m.store_bytes(i, &out, 8, 16)
}

/// Loads or stores the lanes that a vector selects.
fn by_vector<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T) -> bool) -> Done {
    let select = m.source(i, 1, 0)?;
    let address = m.address(i);
    let lanes = (0..i.bytes / T::BYTES).filter(|&lane| f(T::get(&select, lane)));
    let at = |lane: usize| lane * T::BYTES..(lane + 1) * T::BYTES;
    if i.operands[0] == Operand::Memory {
        let value = m.source(i, 2, 0)?;
        for lane in lanes {
            m.memory.write(address.wrapping_add(at(lane).start as u64), &value.0[at(lane)])?;
        }
        return Ok(());
    }
    let mut out = Vector::ZERO;
    for lane in lanes {
        m.memory.read_into(address.wrapping_add(at(lane).start as u64), &mut out.0[at(lane)])?;
    }
    m.store(i, &out, T::BYTES)
}

/// The first `block` bytes of the source throughout the destination.
fn repeat(m: &mut Machine, i: &Inst, block: usize, element: usize) -> Done {
    let mut out = m.source(i, 1, 0)?;
    for at in (block..i.bytes).step_by(block) {
        out.0.copy_within(0..block, at);
    }
    m.store(i, &out, element)
}

fn insert(m: &mut Machine, i: &Inst, block: usize, element: usize, bytes: usize) -> Done {
    let (mut out, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    let at = i.immediate as usize % (bytes / block) * block;
    out.0[at..at + block].copy_from_slice(&b.0[..block]);
    m.store_bytes(i, &out, element, bytes)
}

fn insert_float(m: &mut Machine, i: &Inst) -> Done {
    let (mut out, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    let imm = i.immediate as usize;
    let from = if i.operands[2] == Operand::Memory { 0 } else { imm >> 6 & 3 };
    u32::get(&b, from).set(&mut out, imm >> 4 & 3);
    for lane in (0..4).filter(|lane| imm >> lane & 1 == 1) {
        0u32.set(&mut out, lane);
    }
    m.store_bytes(i, &out, 4, 16)
}

fn extract(m: &mut Machine, i: &Inst, block: usize, element: usize) -> Done {
    let mut a = m.source(i, 1, 0)?;
    let at = i.immediate as usize % (i.bytes / block) * block;
    a.0.copy_within(at..at + block, 0);
    m.store_bytes(i, &a, element, block)
}

fn extract_to_general(m: &mut Machine, i: &Inst, block: usize) -> Done {
    let a = m.source(i, 1, 0)?;
    let at = i.immediate as usize % (16 / block) * block;
    let mut value = Vector::ZERO;
    value.0[..block].copy_from_slice(&a.0[at..at + block]);
    m.set(i, 0, u64::get(&value, 0))
}
