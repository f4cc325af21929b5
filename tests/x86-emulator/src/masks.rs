//! Instructions on mask registers, and those that make masks of vectors and vectors of masks.

use iced_x86::Mnemonic;

use crate::decode::{Handler, Inst, Operand};
use crate::fault::{Done, FaultKind};
use crate::flags::Flags;
use crate::machine::Machine;
use crate::vector::{Lane, Vector, ones};

/// Registers to a register, on so many bits.
macro_rules! combine {
    ($bits:expr, $f:expr) => {
        |m, i| {
            let f: fn(u64, u64) -> u64 = $f;
            let value = f(m.get(i, 1)?, m.get(i, 2)?) & ones($bits);
            set_mask(m, i, value)
        }
    };
}

macro_rules! shift {
    ($bits:expr, $f:expr) => {
        |m, i| {
            let f: fn(u64, u32) -> u64 = $f;
            let count = i.immediate as u32 & 0xff;
            let value = if count < $bits { f(m.get(i, 1)? & ones($bits), count) & ones($bits) } else { 0 };
            set_mask(m, i, value)
        }
    };
}

macro_rules! move_bits {
    ($bits:expr) => {
        |m, i| {
            let value = m.get(i, 1)? & ones($bits);
            match i.operands[0] {
                Operand::Mask(_) => set_mask(m, i, value),
                _ => m.set(i, 0, value),
            }
        }
    };
}

macro_rules! or_test {
    ($bits:expr) => {
        |m, i| {
            let value = (m.get(i, 0)? | m.get(i, 1)?) & ones($bits);
            m.flags = Flags { zero: value == 0, carry: value == ones($bits), ..Flags::default() };
            Ok(())
        }
    };
}

macro_rules! and_test {
    ($bits:expr) => {
        |m, i| {
            let (a, b) = (m.get(i, 0)?, m.get(i, 1)?);
            let (and, andn) = (a & b & ones($bits), !a & b & ones($bits));
            m.flags = Flags { zero: and == 0, carry: andn == 0, ..Flags::default() };
            Ok(())
        }
    };
}

pub(crate) fn select(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Kmovb => move_bits!(8),
        Kmovw => move_bits!(16),
        Kmovd => move_bits!(32),
        Kmovq => move_bits!(64),
        Kandb => combine!(8, |a, b| a & b),
        Kandw => combine!(16, |a, b| a & b),
        Kandd => combine!(32, |a, b| a & b),
        Kandq => combine!(64, |a, b| a & b),
        Kandnb => combine!(8, |a, b| !a & b),
        Kandnw => combine!(16, |a, b| !a & b),
        Kandnd => combine!(32, |a, b| !a & b),
        Kandnq => combine!(64, |a, b| !a & b),
        Korb => combine!(8, |a, b| a | b),
        Korw => combine!(16, |a, b| a | b),
        Kord => combine!(32, |a, b| a | b),
        Korq => combine!(64, |a, b| a | b),
        Kxorb => combine!(8, |a, b| a ^ b),
        Kxorw => combine!(16, |a, b| a ^ b),
        Kxord => combine!(32, |a, b| a ^ b),
        Kxorq => combine!(64, |a, b| a ^ b),
        Kxnorb => combine!(8, |a, b| !(a ^ b)),
        Kxnorw => combine!(16, |a, b| !(a ^ b)),
        Kxnord => combine!(32, |a, b| !(a ^ b)),
        Kxnorq => combine!(64, |a, b| !(a ^ b)),
        Kaddb => combine!(8, u64::wrapping_add),
        Kaddw => combine!(16, u64::wrapping_add),
        Kaddd => combine!(32, u64::wrapping_add),
        Kaddq => combine!(64, u64::wrapping_add),
        Kunpckbw => combine!(16, |a, b| a << 8 | b & ones(8)),
        Kunpckwd => combine!(32, |a, b| a << 16 | b & ones(16)),
        Kunpckdq => combine!(64, |a, b| a << 32 | b & ones(32)),
        Knotb => |m, i| invert(m, i, 8),
        Knotw => |m, i| invert(m, i, 16),
        Knotd => |m, i| invert(m, i, 32),
        Knotq => |m, i| invert(m, i, 64),
        Kshiftlb => shift!(8, |a, n| a << n),
        Kshiftlw => shift!(16, |a, n| a << n),
        Kshiftld => shift!(32, |a, n| a << n),
        Kshiftlq => shift!(64, |a, n| a << n),
        Kshiftrb => shift!(8, |a, n| a >> n),
        Kshiftrw => shift!(16, |a, n| a >> n),
        Kshiftrd => shift!(32, |a, n| a >> n),
        Kshiftrq => shift!(64, |a, n| a >> n),
        Kortestb => or_test!(8),
        Kortestw => or_test!(16),
        Kortestd => or_test!(32),
        Kortestq => or_test!(64),
        Ktestb => and_test!(8),
        Ktestw => and_test!(16),
        Ktestd => and_test!(32),
        Ktestq => and_test!(64),
        Vpmovm2b => |m, i| spread::<i8>(m, i, -1),
        Vpmovm2w => |m, i| spread::<i16>(m, i, -1),
        Vpmovm2d => |m, i| spread::<i32>(m, i, -1),
        Vpmovm2q => |m, i| spread::<i64>(m, i, -1),
        Vpmovb2m => |m, i| signs::<i8>(m, i, |a| a < 0),
        Vpmovw2m => |m, i| signs::<i16>(m, i, |a| a < 0),
        Vpmovd2m => |m, i| signs::<i32>(m, i, |a| a < 0),
        Vpmovq2m => |m, i| signs::<i64>(m, i, |a| a < 0),
        Pmovmskb | Vpmovmskb => |m, i| signs::<i8>(m, i, |a| a < 0),
        Movmskps | Vmovmskps => |m, i| signs::<i32>(m, i, |a| a < 0),
        Movmskpd | Vmovmskpd => |m, i| signs::<i64>(m, i, |a| a < 0),
        Pcmpeqb | Vpcmpeqb => |m, i| compare::<u8>(m, i, |a, b| a == b),
        Pcmpeqw | Vpcmpeqw => |m, i| compare::<u16>(m, i, |a, b| a == b),
        Pcmpeqd | Vpcmpeqd => |m, i| compare::<u32>(m, i, |a, b| a == b),
        Pcmpeqq | Vpcmpeqq => |m, i| compare::<u64>(m, i, |a, b| a == b),
        Pcmpgtb | Vpcmpgtb => |m, i| compare::<i8>(m, i, |a, b| a > b),
        Pcmpgtw | Vpcmpgtw => |m, i| compare::<i16>(m, i, |a, b| a > b),
        Pcmpgtd | Vpcmpgtd => |m, i| compare::<i32>(m, i, |a, b| a > b),
        Pcmpgtq | Vpcmpgtq => |m, i| compare::<i64>(m, i, |a, b| a > b),
        Vpcmpb => |m, i| compare::<i8>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpw => |m, i| compare::<i16>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpd => |m, i| compare::<i32>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpq => |m, i| compare::<i64>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpub => |m, i| compare::<u8>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpuw => |m, i| compare::<u16>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpud => |m, i| compare::<u32>(m, i, |a, b| related(i, &a, &b)),
        Vpcmpuq => |m, i| compare::<u64>(m, i, |a, b| related(i, &a, &b)),
        Vptestmb => |m, i| compare::<u8>(m, i, |a, b| a & b != 0),
        Vptestmw => |m, i| compare::<u16>(m, i, |a, b| a & b != 0),
        Vptestmd => |m, i| compare::<u32>(m, i, |a, b| a & b != 0),
        Vptestmq => |m, i| compare::<u64>(m, i, |a, b| a & b != 0),
        Vptestnmb => |m, i| compare::<u8>(m, i, |a, b| a & b == 0),
        Vptestnmw => |m, i| compare::<u16>(m, i, |a, b| a & b == 0),
        Vptestnmd => |m, i| compare::<u32>(m, i, |a, b| a & b == 0),
        Vptestnmq => |m, i| compare::<u64>(m, i, |a, b| a & b == 0),
        Ptest | Vptest => |m, i| test(m, i, u64::MAX),
        Vtestps => |m, i| test(m, i, 0x8000_0000_8000_0000),
        Vtestpd => |m, i| test(m, i, 0x8000_0000_0000_0000),
        Vpblendmb => |m, i| blend::<u8>(m, i),
        Vpblendmw => |m, i| blend::<u16>(m, i),
        Vpblendmd | Vblendmps => |m, i| blend::<u32>(m, i),
        Vpblendmq | Vblendmpd => |m, i| blend::<u64>(m, i),
        _ => return None,
    })
}

fn set_mask(m: &mut Machine, i: &Inst, value: u64) -> Done {
    match i.operands[0] {
        Operand::Mask(number) => {
            m.masks[number as usize] = value;
            Ok(())
        }
        _ => Err(FaultKind::Unsupported),
    }
}

fn invert(m: &mut Machine, i: &Inst, bits: usize) -> Done {
    let value = !m.get(i, 1)? & ones(bits);
    set_mask(m, i, value)
}

fn spread<T: Lane>(m: &mut Machine, i: &Inst, all: T) -> Done {
    let mask = m.get(i, 1)?;
    let mut out = Vector::ZERO;
    for lane in (0..i.bytes / T::BYTES).filter(|lane| mask >> lane & 1 == 1) {
        all.set(&mut out, lane);
    }
    m.store(i, &out, T::BYTES)
}

/// A bit per lane, to a mask or general register.
fn signs<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T) -> bool) -> Done {
    let a = m.source(i, 1, 0)?;
    let bits = (0..i.bytes / T::BYTES).fold(0, |bits, lane| bits | u64::from(f(T::get(&a, lane))) << lane);
    match i.operands[0] {
        Operand::Mask(_) => set_mask(m, i, bits),
        _ => m.set(i, 0, bits),
    }
}

/// A comparison per lane: a bit of a mask register, zero where the write mask is, or a lane of ones.
#[inline]
pub(crate) fn compare<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, T) -> bool) -> Done {
    let a = m.source(i, 1, T::BYTES)?;
    let b = m.source(i, 2, T::BYTES)?;
    let lanes = i.bytes / T::BYTES;
    let bits = (0..lanes).fold(0, |bits, lane| bits | u64::from(f(T::get(&a, lane), T::get(&b, lane))) << lane);
    if let Operand::Mask(number) = i.operands[0] {
        m.masks[number as usize] = bits & m.write_mask(i);
        return Ok(());
    }
    let mut out = Vector::ZERO;
    for lane in (0..lanes).filter(|lane| bits >> lane & 1 == 1) {
        out.0[lane * T::BYTES..(lane + 1) * T::BYTES].fill(0xff);
    }
    m.store(i, &out, T::BYTES)
}

/// The eight relations of `vpcmp`.
#[inline]
fn related<T: Ord>(i: &Inst, a: &T, b: &T) -> bool {
    match i.immediate & 7 {
        0 => a == b,
        1 => a < b,
        2 => a <= b,
        3 => false,
        4 => a != b,
        5 => a >= b,
        6 => a > b,
        _ => true,
    }
}

fn test(m: &mut Machine, i: &Inst, bits: u64) -> Done {
    let (a, b) = (m.source(i, 0, 0)?, m.source(i, 1, 0)?);
    let (mut and, mut andn) = (0, 0);
    for lane in 0..i.bytes / 8 {
        let (a, b) = (u64::get(&a, lane), u64::get(&b, lane));
        and |= a & b & bits;
        andn |= !a & b & bits;
    }
    m.flags = Flags { zero: and == 0, carry: andn == 0, ..Flags::default() };
    Ok(())
}

/// The third operand where the mask is one; elsewhere the second, or zero.
fn blend<T: Lane>(m: &mut Machine, i: &Inst) -> Done {
    let a = m.source(i, 1, 0)?;
    let b = m.source(i, 2, T::BYTES)?;
    let mask = m.write_mask(i);
    let Operand::Vector(number) = i.operands[0] else { return Err(FaultKind::Unsupported) };
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / T::BYTES {
        if mask >> lane & 1 == 1 {
            T::get(&b, lane).set(&mut out, lane);
        } else if !i.zeroing {
            T::get(&a, lane).set(&mut out, lane);
        }
    }
    m.vectors[number as usize] = out;
    Ok(())
}
