//! Instructions on general registers, flags and control flow.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use crate::decode::{Handler, Inst, Operand};
use crate::fault::{Done, FaultKind};
use crate::flags::{Flags, cut, signed};
use crate::machine::{Machine, RSP};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

pub(crate) fn select(instruction: &Instruction, i: &Inst) -> Option<Handler> {
    if i.condition != ConditionCode::None {
        return conditional(instruction);
    }
    // The vector instruction `movsd` and others share mnemonics with general ones.
    if i.operands.iter().any(|operand| matches!(operand, Operand::Vector(_) | Operand::Mask(_))) {
        return None;
    }
    let word = i.size == 2;
    use Mnemonic::*;
    Some(match i.mnemonic {
        Nop | Endbr64 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw | Sfence | Lfence | Mfence
        | Pause => |_, _| Ok(()),
        Mov | Movzx => |m, i| {
            let value = m.get(i, 1)?;
            m.set(i, 0, value)
        },
        Movsx | Movsxd => |m, i| {
            let value = signed(m.get(i, 1)?, m.size(i, 1)) as u64;
            m.set(i, 0, cut(value, i.size))
        },
        Lea => |m, i| m.set(i, 0, cut(m.address(i), i.size)),
        Xchg => |m, i| {
            let (a, b) = (m.get(i, 0)?, m.get(i, 1)?);
            m.set(i, 0, b)?;
            m.set(i, 1, a)
        },
        Add => |m, i| arithmetic(m, i, |flags, size, a, b| flags.add(size, a, b, false)),
        Adc => |m, i| arithmetic(m, i, |flags, size, a, b| flags.add(size, a, b, flags.carry)),
        Sub => |m, i| arithmetic(m, i, |flags, size, a, b| flags.sub(size, a, b, false)),
        Sbb => |m, i| arithmetic(m, i, |flags, size, a, b| flags.sub(size, a, b, flags.carry)),
        And => |m, i| arithmetic(m, i, |flags, size, a, b| flags.logic(size, a & b)),
        Or => |m, i| arithmetic(m, i, |flags, size, a, b| flags.logic(size, a | b)),
        Xor => |m, i| arithmetic(m, i, |flags, size, a, b| flags.logic(size, a ^ b)),
        Cmp => |m, i| {
            let (a, b) = (m.get(i, 0)?, m.get(i, 1)?);
            m.flags.sub(i.size, a, b, false);
            Ok(())
        },
        Test => |m, i| {
            let value = m.get(i, 0)? & m.get(i, 1)?;
            m.flags.logic(i.size, value);
            Ok(())
        },
        Inc => |m, i| step(m, i, |flags, size, a| flags.add(size, a, 1, false)),
        Dec => |m, i| step(m, i, |flags, size, a| flags.sub(size, a, 1, false)),
        Neg => |m, i| {
            let a = m.get(i, 0)?;
            let value = m.flags.sub(i.size, 0, a, false);
            m.set(i, 0, value)
        },
        Not => |m, i| {
            let value = cut(!m.get(i, 0)?, i.size);
            m.set(i, 0, value)
        },
        Imul => |m, i| match (i.operands[1], i.operands[2]) {
            (Operand::None, _) => multiply_wide(m, i, true),
            (_, Operand::None) => multiply(m, i, 0, 1),
            _ => multiply(m, i, 1, 2),
        },
        Mul => |m, i| multiply_wide(m, i, false),
        Div => |m, i| divide(m, i, false),
        Idiv => |m, i| divide(m, i, true),
        Shl | Sal => |m, i| shift(m, i, shl),
        Shr => |m, i| shift(m, i, shr),
        Sar => |m, i| shift(m, i, sar),
        Rol => |m, i| shift(m, i, rol),
        Ror => |m, i| shift(m, i, ror),
        Shlx => |m, i| shift_plain(m, i, |a, n, size| cut(a << n, size)),
        Shrx => |m, i| shift_plain(m, i, |a, n, _| a >> n),
        Sarx => |m, i| shift_plain(m, i, |a, n, size| cut((signed(a, size) >> n) as u64, size)),
        Rorx => |m, i| {
            let a = m.get(i, 1)?;
            let value = rotated(a, i.size, 8 * i.size as u32 - i.immediate as u32 % (8 * i.size as u32));
            m.set(i, 0, value)
        },
        Andn => |m, i| {
            let value = cut(!m.get(i, 1)? & m.get(i, 2)?, i.size);
            m.flags.logic(i.size, value);
            m.set(i, 0, value)
        },
        Bextr => |m, i| {
            let (a, control) = (m.get(i, 1)?, m.get(i, 2)?);
            let (start, length) = (control & 0xff, control >> 8 & 0xff);
            let moved = if start < 64 { a >> start } else { 0 };
            let value = if length < 64 { moved & ((1 << length) - 1) } else { moved };
            m.flags.logic(i.size, value);
            m.set(i, 0, value)
        },
        Bzhi => |m, i| {
            let (a, n) = (m.get(i, 1)?, m.get(i, 2)? & 0xff);
            let value = if n < 8 * i.size as u64 { a & ((1 << n) - 1) } else { a };
            m.flags.logic(i.size, value);
            m.flags.carry = n >= 8 * i.size as u64;
            m.set(i, 0, value)
        },
        Blsr => |m, i| lowest(m, i, |a| a & a.wrapping_sub(1), |a| a == 0),
        Blsmsk => |m, i| lowest(m, i, |a| a ^ a.wrapping_sub(1), |a| a == 0),
        Blsi => |m, i| lowest(m, i, |a| a & a.wrapping_neg(), |a| a != 0),
        Mulx => |m, i| {
            let product = u128::from(cut(m.general[RDX], i.size)) * u128::from(m.get(i, 2)?);
            // The same register twice receives the high half.
            m.set(i, 1, cut(product as u64, i.size))?;
            m.set(i, 0, cut((product >> (8 * i.size)) as u64, i.size))
        },
        Pdep => |m, i| {
            let (mut bits, mut mask, mut value) = (m.get(i, 1)?, m.get(i, 2)?, 0);
            while mask != 0 {
                if bits & 1 == 1 {
                    value |= mask & mask.wrapping_neg();
                }
                bits >>= 1;
                mask &= mask - 1;
            }
            m.set(i, 0, value)
        },
        Pext => |m, i| {
            let (bits, mut mask, mut value, mut at) = (m.get(i, 1)?, m.get(i, 2)?, 0, 0);
            while mask != 0 {
                value |= u64::from(bits & mask & mask.wrapping_neg() != 0) << at;
                at += 1;
                mask &= mask - 1;
            }
            m.set(i, 0, value)
        },
        Tzcnt => |m, i| count(m, i, |a, bits| if a == 0 { bits } else { a.trailing_zeros() }),
        Lzcnt => |m, i| count(m, i, |a, bits| a.leading_zeros() + bits - 64),
        Popcnt => |m, i| {
            let a = m.get(i, 1)?;
            m.flags = Flags { zero: a == 0, ..Flags::default() };
            m.set(i, 0, a.count_ones().into())
        },
        Bsf => |m, i| scan(m, i, u64::trailing_zeros),
        Bsr => |m, i| scan(m, i, |a| 63 - a.leading_zeros()),
        Bt if i.operands[0] != Operand::Memory => |m, i| {
            let n = m.get(i, 1)? % (8 * i.size as u64);
            m.flags.carry = m.get(i, 0)? >> n & 1 == 1;
            Ok(())
        },
        Bswap if !word => |m, i| {
            let value = m.get(i, 0)?.swap_bytes() >> (64 - 8 * i.size);
            m.set(i, 0, value)
        },
        Cwde => |m, _| extend(m, 2, 4),
        Cdqe => |m, _| extend(m, 4, 8),
        Cdq => |m, _| sign_to_rdx(m, 4),
        Cqo => |m, _| sign_to_rdx(m, 8),
        Push if pushable(i) => |m, i| {
            let value = match i.operands[0] {
                Operand::Immediate(value) => value,
                _ => m.get(i, 0)?,
            };
            m.push(value)
        },
        Pop if i.size == 8 => |m, i| {
            let value = m.pop()?;
            m.set(i, 0, value)
        },
        Leave => |m, _| {
            m.general[RSP] = m.general[5];
            m.general[5] = m.pop()?;
            Ok(())
        },
        Jmp => |m, i| {
            m.rip = branch(m, i)?;
            Ok(())
        },
        Call => |m, i| {
            let target = branch(m, i)?;
            m.push(i.next)?;
            m.rip = target;
            Ok(())
        },
        Ret if i.operands[0] == Operand::None => |m, _| {
            m.rip = m.pop()?;
            Ok(())
        },
        _ => return None,
    })
}

fn pushable(i: &Inst) -> bool {
    i.size == 8 || matches!(i.operands[0], Operand::Immediate(_))
}

fn conditional(instruction: &Instruction) -> Option<Handler> {
    if instruction.code().is_jcc_short_or_near() {
        return Some(|m, i| {
            if holds(i.condition, m.flags) {
                m.rip = i.target;
            }
            Ok(())
        });
    }
    match (format!("{:?}", instruction.mnemonic()).to_lowercase(), instruction.op_count()) {
        (name, 1) if name.starts_with("set") => Some(|m, i| m.set(i, 0, holds(i.condition, m.flags).into())),
        (name, 2) if name.starts_with("cmov") => Some(|m, i| {
            let (old, new) = (m.get(i, 0)?, m.get(i, 1)?);
            m.set(i, 0, if holds(i.condition, m.flags) { new } else { old })
        }),
        _ => None,
    }
}

#[inline]
fn holds(condition: ConditionCode, flags: Flags) -> bool {
    let less = flags.sign != flags.overflow;
    match condition {
        ConditionCode::None => false,
        ConditionCode::o => flags.overflow,
        ConditionCode::no => !flags.overflow,
        ConditionCode::b => flags.carry,
        ConditionCode::ae => !flags.carry,
        ConditionCode::e => flags.zero,
        ConditionCode::ne => !flags.zero,
        ConditionCode::be => flags.carry || flags.zero,
        ConditionCode::a => !flags.carry && !flags.zero,
        ConditionCode::s => flags.sign,
        ConditionCode::ns => !flags.sign,
        ConditionCode::p => flags.parity,
        ConditionCode::np => !flags.parity,
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || flags.zero,
        ConditionCode::g => !less && !flags.zero,
    }
}

fn branch(m: &Machine, i: &Inst) -> Done<u64> {
    match i.operands[0] {
        Operand::None => Ok(i.target),
        _ if i.size == 8 => m.get(i, 0),
        _ => Err(FaultKind::Unsupported),
    }
}

#[inline]
fn arithmetic(m: &mut Machine, i: &Inst, f: impl Fn(&mut Flags, usize, u64, u64) -> u64) -> Done {
    let (a, b) = (m.get(i, 0)?, m.get(i, 1)?);
    let mut flags = m.flags;
    let value = f(&mut flags, i.size, a, b);
    m.set(i, 0, value)?;
    m.flags = flags;
    Ok(())
}

/// `inc` and `dec`: the carry stays.
fn step(m: &mut Machine, i: &Inst, f: impl Fn(&mut Flags, usize, u64) -> u64) -> Done {
    let a = m.get(i, 0)?;
    let carry = m.flags.carry;
    let value = f(&mut m.flags, i.size, a);
    m.flags.carry = carry;
    m.set(i, 0, value)
}

fn multiply(m: &mut Machine, i: &Inst, first: usize, second: usize) -> Done {
    let (a, b) = (signed(m.get(i, first)?, i.size), signed(m.get(i, second)?, i.size));
    let product = i128::from(a) * i128::from(b);
    let value = cut(product as u64, i.size);
    m.flags.carry = i128::from(signed(value, i.size)) != product;
    m.flags.overflow = m.flags.carry;
    m.set(i, 0, value)
}

fn multiply_wide(m: &mut Machine, i: &Inst, is_signed: bool) -> Done {
    let (a, b, bits) = (cut(m.general[RAX], i.size), m.get(i, 0)?, 8 * i.size as u32);
    let (product, fits) = if is_signed {
        let product = i128::from(signed(a, i.size)) * i128::from(signed(b, i.size));
        (product as u128, i128::from(signed(cut(product as u64, i.size), i.size)) == product)
    } else {
        let product = u128::from(a) * u128::from(b);
        (product, product >> bits == 0)
    };
    write_pair(m, i.size, product as u64, (product >> bits) as u64);
    (m.flags.carry, m.flags.overflow) = (!fits, !fits);
    Ok(())
}

/// Writes ax, or dx:ax, edx:eax, rdx:rax.
fn write_pair(m: &mut Machine, size: usize, low: u64, high: u64) {
    match size {
        1 => m.general[RAX] = m.general[RAX] & !0xffff | (high & 0xff) << 8 | low & 0xff,
        2 => {
            m.general[RAX] = m.general[RAX] & !0xffff | low & 0xffff;
            m.general[RDX] = m.general[RDX] & !0xffff | high & 0xffff;
        }
        size => (m.general[RAX], m.general[RDX]) = (cut(low, size), cut(high, size)),
    }
}

fn divide(m: &mut Machine, i: &Inst, is_signed: bool) -> Done {
    if !m.division {
        return Err(FaultKind::Division);
    }
    let (divisor, bits) = (m.get(i, 0)?, 8 * i.size as u32);
    let high = if i.size == 1 { m.general[RAX] >> 8 & 0xff } else { cut(m.general[RDX], i.size) };
    let dividend = u128::from(high) << bits | u128::from(cut(m.general[RAX], i.size));
    if divisor == 0 {
        return Err(FaultKind::DivideError);
    }
    let (quotient, remainder) = if is_signed {
        let dividend = (dividend << (128 - 2 * bits)) as i128 >> (128 - 2 * bits);
        let divisor = i128::from(signed(divisor, i.size));
        let quotient = dividend.wrapping_div(divisor);
        if quotient != i128::from(signed(cut(quotient as u64, i.size), i.size)) {
            return Err(FaultKind::DivideError);
        }
        (quotient as u64, dividend.wrapping_rem(divisor) as u64)
    } else {
        let quotient = dividend / u128::from(divisor);
        if quotient >> bits != 0 {
            return Err(FaultKind::DivideError);
        }
        (quotient as u64, (dividend % u128::from(divisor)) as u64)
    };
    write_pair(m, i.size, quotient, remainder);
    Ok(())
}

/// A shift by a count that is not zero: the result, the carry and the overflow flag.
type Shift = fn(a: u64, count: u32, size: usize) -> (u64, bool, bool);

fn shift(m: &mut Machine, i: &Inst, f: Shift) -> Done {
    let count = match i.operands[1] {
        Operand::Immediate(count) => count as u32,
        _ => m.general[RCX] as u32,
    } & if i.size == 8 { 63 } else { 31 };
    let a = m.get(i, 0)?;
    if count == 0 {
        // A 32-bit destination is still extended.
        return m.set(i, 0, a);
    }
    let (value, carry, overflow) = f(a, count, i.size);
    m.flags.carry = carry;
    m.flags.overflow = overflow;
    if !matches!(i.mnemonic, Mnemonic::Rol | Mnemonic::Ror) {
        m.flags.of_result(value, i.size);
    }
    m.set(i, 0, value)
}

fn shl(a: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let wide = u128::from(a) << count;
    let (value, carry) = (cut(wide as u64, size), wide >> (8 * size) & 1 == 1);
    (value, carry, (signed(value, size) < 0) != carry)
}

fn shr(a: u64, count: u32, size: usize) -> (u64, bool, bool) {
    (a >> count, a >> (count - 1) & 1 == 1, signed(a, size) < 0)
}

fn sar(a: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let a = signed(a, size);
    (cut((a >> count) as u64, size), a >> (count - 1) & 1 == 1, false)
}

fn rotated(a: u64, size: usize, left: u32) -> u64 {
    let bits = 8 * size as u32;
    let left = left % bits;
    if left == 0 { a } else { cut(a << left, size) | a >> (bits - left) }
}

fn rol(a: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let value = rotated(a, size, count);
    (value, value & 1 == 1, (signed(value, size) < 0) != (value & 1 == 1))
}

fn ror(a: u64, count: u32, size: usize) -> (u64, bool, bool) {
    let bits = 8 * size as u32;
    let value = rotated(a, size, bits - count % bits);
    let (top, below) = (value >> (bits - 1) & 1, value >> (bits - 2) & 1);
    (value, top == 1, top != below)
}

fn shift_plain(m: &mut Machine, i: &Inst, f: impl Fn(u64, u32, usize) -> u64) -> Done {
    let (a, count) = (m.get(i, 1)?, m.get(i, 2)? as u32 & (8 * i.size as u32 - 1));
    m.set(i, 0, f(a, count, i.size))
}

fn lowest(m: &mut Machine, i: &Inst, f: impl Fn(u64) -> u64, carry: impl Fn(u64) -> bool) -> Done {
    let a = m.get(i, 1)?;
    let value = cut(f(a), i.size);
    m.flags.logic(i.size, value);
    m.flags.carry = carry(a);
    m.set(i, 0, value)
}

fn count(m: &mut Machine, i: &Inst, f: impl Fn(u64, u32) -> u32) -> Done {
    let a = m.get(i, 1)?;
    let value = f(a, 8 * i.size as u32).into();
    m.flags.carry = a == 0;
    m.flags.zero = value == 0;
    m.set(i, 0, value)
}

fn scan(m: &mut Machine, i: &Inst, f: impl Fn(u64) -> u32) -> Done {
    let a = m.get(i, 1)?;
    m.flags.zero = a == 0;
    if a == 0 { Ok(()) } else { m.set(i, 0, f(a).into()) }
}

fn extend(m: &mut Machine, from: usize, to: usize) -> Done {
    m.general[RAX] = cut(signed(m.general[RAX], from) as u64, to);
    Ok(())
}

fn sign_to_rdx(m: &mut Machine, size: usize) -> Done {
    m.general[RDX] = cut((signed(m.general[RAX], size) >> 63) as u64, size);
    Ok(())
}
