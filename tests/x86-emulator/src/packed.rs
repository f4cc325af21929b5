//! Arithmetic, logic and shifts of packed integers.

use iced_x86::Mnemonic;

use crate::decode::{Handler, Inst, Operand};
use crate::fault::Done;
use crate::machine::Machine;
use crate::vector::{Lane, Vector, map1, map2, map3, sums};

pub(crate) fn select(i: &Inst) -> Option<Handler> {
    arithmetic(i).or_else(|| logic(i)).or_else(|| shifts(i)).or_else(|| products(i))
}

fn arithmetic(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Paddb | Vpaddb => |m, i| map2(m, i, u8::wrapping_add),
        Paddw | Vpaddw => |m, i| map2(m, i, u16::wrapping_add),
        Paddd | Vpaddd => |m, i| map2(m, i, u32::wrapping_add),
        Paddq | Vpaddq => |m, i| map2(m, i, u64::wrapping_add),
        Psubb | Vpsubb => |m, i| map2(m, i, u8::wrapping_sub),
        Psubw | Vpsubw => |m, i| map2(m, i, u16::wrapping_sub),
        Psubd | Vpsubd => |m, i| map2(m, i, u32::wrapping_sub),
        Psubq | Vpsubq => |m, i| map2(m, i, u64::wrapping_sub),
        Paddsb | Vpaddsb => |m, i| map2(m, i, i8::saturating_add),
        Paddsw | Vpaddsw => |m, i| map2(m, i, i16::saturating_add),
        Paddusb | Vpaddusb => |m, i| map2(m, i, u8::saturating_add),
        Paddusw | Vpaddusw => |m, i| map2(m, i, u16::saturating_add),
        Psubsb | Vpsubsb => |m, i| map2(m, i, i8::saturating_sub),
        Psubsw | Vpsubsw => |m, i| map2(m, i, i16::saturating_sub),
        Psubusb | Vpsubusb => |m, i| map2(m, i, u8::saturating_sub),
        Psubusw | Vpsubusw => |m, i| map2(m, i, u16::saturating_sub),
        Pavgb | Vpavgb => |m, i| map2::<u8>(m, i, |a, b| (u16::from(a) + u16::from(b)).div_ceil(2) as u8),
        Pavgw | Vpavgw => |m, i| map2::<u16>(m, i, |a, b| (u32::from(a) + u32::from(b)).div_ceil(2) as u16),
        Pminub | Vpminub => |m, i| map2(m, i, u8::min),
        Pminuw | Vpminuw => |m, i| map2(m, i, u16::min),
        Pminud | Vpminud => |m, i| map2(m, i, u32::min),
        Vpminuq => |m, i| map2(m, i, u64::min),
        Pminsb | Vpminsb => |m, i| map2(m, i, i8::min),
        Pminsw | Vpminsw => |m, i| map2(m, i, i16::min),
        Pminsd | Vpminsd => |m, i| map2(m, i, i32::min),
        Vpminsq => |m, i| map2(m, i, i64::min),
        Pmaxub | Vpmaxub => |m, i| map2(m, i, u8::max),
        Pmaxuw | Vpmaxuw => |m, i| map2(m, i, u16::max),
        Pmaxud | Vpmaxud => |m, i| map2(m, i, u32::max),
        Vpmaxuq => |m, i| map2(m, i, u64::max),
        Pmaxsb | Vpmaxsb => |m, i| map2(m, i, i8::max),
        Pmaxsw | Vpmaxsw => |m, i| map2(m, i, i16::max),
        Pmaxsd | Vpmaxsd => |m, i| map2(m, i, i32::max),
        Vpmaxsq => |m, i| map2(m, i, i64::max),
        Pabsb | Vpabsb => |m, i| map1(m, i, i8::wrapping_abs),
        Pabsw | Vpabsw => |m, i| map1(m, i, i16::wrapping_abs),
        Pabsd | Vpabsd => |m, i| map1(m, i, i32::wrapping_abs),
        Vpabsq => |m, i| map1(m, i, i64::wrapping_abs),
        Psignb | Vpsignb => |m, i| map2::<i8>(m, i, |a, b| a.wrapping_mul(b.signum())),
        Psignw | Vpsignw => |m, i| map2::<i16>(m, i, |a, b| a.wrapping_mul(b.signum())),
        Psignd | Vpsignd => |m, i| map2::<i32>(m, i, |a, b| a.wrapping_mul(b.signum())),
        Vplzcntd => |m, i| map1(m, i, u32::leading_zeros),
        Vplzcntq => |m, i| map1::<u64, u64>(m, i, |a| a.leading_zeros().into()),
        Phaddw | Vphaddw => |m, i| horizontal(m, i, u16::wrapping_add),
        Phaddd | Vphaddd => |m, i| horizontal(m, i, u32::wrapping_add),
        Phaddsw | Vphaddsw => |m, i| horizontal(m, i, i16::saturating_add),
        Phsubw | Vphsubw => |m, i| horizontal(m, i, u16::wrapping_sub),
        Phsubd | Vphsubd => |m, i| horizontal(m, i, u32::wrapping_sub),
        Phsubsw | Vphsubsw => |m, i| horizontal(m, i, i16::saturating_sub),
        _ => return None,
    })
}

fn logic(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Pand | Vpand | Vpandd | Andps | Vandps => |m, i| map2::<u32>(m, i, |a, b| a & b),
        Vpandq | Andpd | Vandpd => |m, i| map2::<u64>(m, i, |a, b| a & b),
        Pandn | Vpandn | Vpandnd | Andnps | Vandnps => |m, i| map2::<u32>(m, i, |a, b| !a & b),
        Vpandnq | Andnpd | Vandnpd => |m, i| map2::<u64>(m, i, |a, b| !a & b),
        Por | Vpor | Vpord | Orps | Vorps => |m, i| map2::<u32>(m, i, |a, b| a | b),
        Vporq | Orpd | Vorpd => |m, i| map2::<u64>(m, i, |a, b| a | b),
        Pxor | Vpxor | Vpxord | Xorps | Vxorps => |m, i| map2::<u32>(m, i, |a, b| a ^ b),
        Vpxorq | Xorpd | Vxorpd => |m, i| map2::<u64>(m, i, |a, b| a ^ b),
        Vpternlogd => |m, i| map3::<u32>(m, i, |a, b, c| ternary(i.immediate, [a, b, c].map(u64::from)) as u32),
        Vpternlogq => |m, i| map3::<u64>(m, i, |a, b, c| ternary(i.immediate, [a, b, c])),
        _ => return None,
    })
}

/// Each bit of the result is the table's bit at the number that the three operands' bits spell.
fn ternary(table: u64, [a, b, c]: [u64; 3]) -> u64 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |out, row| {
        let equal = |x: u64, bit: u32| if row >> bit & 1 == 1 { x } else { !x };
        out | equal(a, 2) & equal(b, 1) & equal(c, 0)
    })
}

fn shifts(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Psllw | Vpsllw => |m, i| shift::<u16>(m, i, |a, n| if n < 16 { a << n } else { 0 }),
        Pslld | Vpslld => |m, i| shift(m, i, left32),
        Psllq | Vpsllq => |m, i| shift(m, i, left64),
        Psrlw | Vpsrlw => |m, i| shift::<u16>(m, i, |a, n| if n < 16 { a >> n } else { 0 }),
        Psrld | Vpsrld => |m, i| shift(m, i, right32),
        Psrlq | Vpsrlq => |m, i| shift(m, i, right64),
        Psraw | Vpsraw => |m, i| shift::<i16>(m, i, |a, n| a >> n.min(15)),
        Psrad | Vpsrad => |m, i| shift::<i32>(m, i, |a, n| a >> n.min(31)),
        Vpsraq => |m, i| shift::<i64>(m, i, |a, n| a >> n.min(63)),
        Vprold => |m, i| map1::<u32, u32>(m, i, |a| a.rotate_left(i.immediate as u32 % 32)),
        Vprolq => |m, i| map1::<u64, u64>(m, i, |a| a.rotate_left(i.immediate as u32 % 64)),
        Vprord => |m, i| map1::<u32, u32>(m, i, |a| a.rotate_right(i.immediate as u32 % 32)),
        Vprorq => |m, i| map1::<u64, u64>(m, i, |a| a.rotate_right(i.immediate as u32 % 64)),
        Vpsllvw => |m, i| map2::<u16>(m, i, |a, n| if n < 16 { a << n } else { 0 }),
        Vpsllvd => |m, i| map2::<u32>(m, i, |a, n| left32(a, n.into())),
        Vpsllvq => |m, i| map2::<u64>(m, i, left64),
        Vpsrlvw => |m, i| map2::<u16>(m, i, |a, n| if n < 16 { a >> n } else { 0 }),
        Vpsrlvd => |m, i| map2::<u32>(m, i, |a, n| right32(a, n.into())),
        Vpsrlvq => |m, i| map2::<u64>(m, i, right64),
        Vpsravw => |m, i| map2::<i16>(m, i, |a, n| a >> (n as u16).min(15)),
        Vpsravd => |m, i| map2::<i32>(m, i, |a, n| a >> (n as u32).min(31)),
        Vpsravq => |m, i| map2::<i64>(m, i, |a, n| a >> (n as u64).min(63)),
        Vprolvd => |m, i| map2::<u32>(m, i, |a, n| a.rotate_left(n % 32)),
        Vprolvq => |m, i| map2::<u64>(m, i, |a, n| a.rotate_left(n as u32 % 64)),
        Vprorvd => |m, i| map2::<u32>(m, i, |a, n| a.rotate_right(n % 32)),
        Vprorvq => |m, i| map2::<u64>(m, i, |a, n| a.rotate_right(n as u32 % 64)),
        _ => return None,
    })
}

fn left32(a: u32, n: u64) -> u32 {
    if n < 32 { a << n } else { 0 }
}

fn left64(a: u64, n: u64) -> u64 {
    if n < 64 { a << n } else { 0 }
}

fn right32(a: u32, n: u64) -> u32 {
    if n < 32 { a >> n } else { 0 }
}

fn right64(a: u64, n: u64) -> u64 {
    if n < 64 { a >> n } else { 0 }
}

/// By an immediate, or by the low 64 bits of a vector.
fn shift<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, u64) -> T) -> Done {
    let (a, count) = match i.operands[2] {
        Operand::Immediate(count) => (m.source(i, 1, T::BYTES)?, count & 0xff),
        _ => (m.source(i, 1, 0)?, u64::get(&m.source(i, 2, 0)?, 0)),
    };
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / T::BYTES {
        f(T::get(&a, lane), count).set(&mut out, lane);
    }
    m.store(i, &out, T::BYTES)
}

fn products(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Pmullw | Vpmullw => |m, i| map2(m, i, u16::wrapping_mul),
        Pmulld | Vpmulld => |m, i| map2(m, i, u32::wrapping_mul),
        Vpmullq => |m, i| map2(m, i, u64::wrapping_mul),
        Pmulhw | Vpmulhw => |m, i| map2::<i16>(m, i, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        Pmulhuw | Vpmulhuw => |m, i| map2::<u16>(m, i, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        Pmulhrsw | Vpmulhrsw => {
            |m, i| map2::<i16>(m, i, |a, b| ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16)
        }
        Pmuldq | Vpmuldq => |m, i| map2::<i64>(m, i, |a, b| i64::from(a as i32) * i64::from(b as i32)),
        Pmuludq | Vpmuludq => |m, i| map2::<u64>(m, i, |a, b| u64::from(a as u32) * u64::from(b as u32)),
        Pmaddwd | Vpmaddwd => |m, i| sums::<i16, i16, i32>(m, i, |_| 0, multiply, |sum| sum as i32),
        Pmaddubsw | Vpmaddubsw => |m, i| {
            let cut = |sum: i64| sum.clamp(i16::MIN.into(), i16::MAX.into()) as i16;
            sums::<u8, i8, i16>(m, i, |_| 0, multiply, cut)
        },
        Psadbw | Vpsadbw => |m, i| sums::<u8, u8, u64>(m, i, |_| 0, |a, b| a.abs_diff(b).into(), |sum| sum as u64),
        Vpdpbusd => |m, i| sums::<u8, i8, i32>(m, i, i64::from, multiply, |sum| sum as i32),
        Vpdpbusds => |m, i| sums::<u8, i8, i32>(m, i, i64::from, multiply, saturated),
        Vpdpwssd => |m, i| sums::<i16, i16, i32>(m, i, i64::from, multiply, |sum| sum as i32),
        Vpdpwssds => |m, i| sums::<i16, i16, i32>(m, i, i64::from, multiply, saturated),
        _ => return None,
    })
}

fn multiply(a: impl Into<i64>, b: impl Into<i64>) -> i64 {
    a.into() * b.into()
}

fn saturated(sum: i64) -> i32 {
    sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// In each 16 bytes: `f` of neighbours of the second operand, then of the third.
fn horizontal<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, T) -> T) -> Done {
    let (a, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    let (mut out, half) = (Vector::ZERO, 8 / T::BYTES);
    for lane in 0..i.bytes / T::BYTES {
        let (block, at) = (lane / (2 * half) * 2 * half, lane % (2 * half));
        let (from, first) = if at < half { (&a, block + 2 * at) } else { (&b, block + 2 * (at - half)) };
        f(T::get(from, first), T::get(from, first + 1)).set(&mut out, lane);
    }
    m.store(i, &out, T::BYTES)
}
