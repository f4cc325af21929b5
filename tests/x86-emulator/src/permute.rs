//! Shuffles, unpacks, packs, permutes, blends, and conversions between widths of integers.

use iced_x86::Mnemonic;

use crate::decode::{Handler, Inst, Operand};
use crate::fault::Done;
use crate::machine::Machine;
use crate::vector::{Lane, Vector, choose1, choose2};

pub(crate) fn select(i: &Inst) -> Option<Handler> {
    shuffles(i).or_else(|| permutes(i)).or_else(|| packs(i)).or_else(|| extensions(i)).or_else(|| narrowings(i))
}

fn shuffles(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Pshufd | Vpshufd => |m, i| choose1::<u32>(m, i, 4, |lane| lane & !3 | two_bits(i, lane & 3)),
        Pshuflw | Vpshuflw => {
            |m, i| choose1::<u16>(m, i, 2, |lane| if lane & 4 == 0 { lane & !7 | two_bits(i, lane & 3) } else { lane })
        }
        Pshufhw | Vpshufhw => |m, i| {
            choose1::<u16>(m, i, 2, |lane| if lane & 4 == 0 { lane } else { lane & !7 | 4 | two_bits(i, lane & 3) })
        },
        Shufps | Vshufps => |m, i| {
            choose2::<u32>(m, i, 4, |lane, lanes| {
                Some((lane & !3 | two_bits(i, lane & 3)) + if lane & 2 == 0 { 0 } else { lanes })
            })
        },
        Shufpd | Vshufpd => |m, i| {
            choose2::<u64>(m, i, 8, |lane, lanes| {
                Some(lane & !1 | bit(i, lane) | if lane & 1 == 0 { 0 } else { lanes })
            })
        },
        Vpermilps if by_immediate(i) => |m, i| choose1::<u32>(m, i, 4, |lane| lane & !3 | two_bits(i, lane & 3)),
        Vpermilpd if by_immediate(i) => |m, i| choose1::<u64>(m, i, 8, |lane| lane & !1 | bit(i, lane)),
        Vpermilps => |m, i| by_lanes::<u32>(m, i, 1, 2, 4, |lane, index, _| Some(lane & !3 | index as usize & 3)),
        Vpermilpd => |m, i| by_lanes::<u64>(m, i, 1, 2, 8, |lane, index, _| Some(lane & !1 | index as usize >> 1 & 1)),
        Pshufb | Vpshufb => |m, i| {
            by_lanes::<u8>(m, i, 1, 2, 1, |lane, index, _| (index < 128).then_some(lane & !15 | index as usize & 15))
        },
        Punpcklbw | Vpunpcklbw => |m, i| unpack::<u8>(m, i, 0),
        Punpcklwd | Vpunpcklwd => |m, i| unpack::<u16>(m, i, 0),
        Punpckldq | Vpunpckldq | Unpcklps | Vunpcklps => |m, i| unpack::<u32>(m, i, 0),
        Punpcklqdq | Vpunpcklqdq | Unpcklpd | Vunpcklpd => |m, i| unpack::<u64>(m, i, 0),
        Punpckhbw | Vpunpckhbw => |m, i| unpack::<u8>(m, i, 1),
        Punpckhwd | Vpunpckhwd => |m, i| unpack::<u16>(m, i, 1),
        Punpckhdq | Vpunpckhdq | Unpckhps | Vunpckhps => |m, i| unpack::<u32>(m, i, 1),
        Punpckhqdq | Vpunpckhqdq | Unpckhpd | Vunpckhpd => |m, i| unpack::<u64>(m, i, 1),
        Movsldup | Vmovsldup => |m, i| choose1::<u32>(m, i, 4, |lane| lane & !1),
        Movshdup | Vmovshdup => |m, i| choose1::<u32>(m, i, 4, |lane| lane | 1),
        // The first source is the upper half of what is shifted.
        Palignr | Vpalignr => |m, i| {
            choose2::<u8>(m, i, 1, |lane, lanes| {
                let from = (lane & 15) + i.immediate as usize % 256;
                match from {
                    0..16 => Some(lanes + (lane & !15) + from),
                    16..32 => Some((lane & !15) + from - 16),
                    _ => None,
                }
            })
        },
        Valignd => |m, i| align::<u32>(m, i),
        Valignq => |m, i| align::<u64>(m, i),
        Pslldq | Vpslldq => |m, i| choose_bytes(m, i, |at, n| at.checked_sub(n)),
        Psrldq | Vpsrldq => |m, i| choose_bytes(m, i, |at, n| Some(at + n).filter(|from| *from < 16)),
        Pblendw | Vpblendw => |m, i| blend::<u16>(m, i, 7),
        Vpblendd | Blendps | Vblendps => |m, i| blend::<u32>(m, i, 7),
        Blendpd | Vblendpd => |m, i| blend::<u64>(m, i, 7),
        Pblendvb | Vpblendvb => |m, i| blend_by_sign::<i8>(m, i, |a| a < 0),
        Blendvps | Vblendvps => |m, i| blend_by_sign::<i32>(m, i, |a| a < 0),
        Blendvpd | Vblendvpd => |m, i| blend_by_sign::<i64>(m, i, |a| a < 0),
        _ => return None,
    })
}

fn by_immediate(i: &Inst) -> bool {
    matches!(i.operands[2], Operand::Immediate(_))
}

/// Two bits of the immediate.
fn two_bits(i: &Inst, n: usize) -> usize {
    i.immediate as usize >> (2 * n) & 3
}

/// One bit of the immediate.
fn bit(i: &Inst, n: usize) -> usize {
    i.immediate as usize >> n & 1
}

fn unpack<T: Lane>(m: &mut Machine, i: &Inst, high: usize) -> Done {
    let n = 16 / T::BYTES;
    choose2::<T>(m, i, T::BYTES, |lane, lanes| {
        let from = lane / n * n + high * n / 2 + lane % n / 2;
        Some(if lane % 2 == 0 { from } else { from + lanes })
    })
}

fn align<T: Lane>(m: &mut Machine, i: &Inst) -> Done {
    choose2::<T>(m, i, T::BYTES, |lane, lanes| {
        let from = lane + i.immediate as usize % lanes;
        Some(if from < lanes { from + lanes } else { from - lanes })
    })
}

fn choose_bytes(m: &mut Machine, i: &Inst, f: impl Fn(usize, usize) -> Option<usize>) -> Done {
    let a = m.source(i, 1, 0)?;
    let n = i.immediate as usize % 256;
    let out = crate::vector::chosen::<u8>(&a, &a, i.bytes, |lane, _| Some((lane & !15) + f(lane & 15, n)?));
    m.store(i, &out, 1)
}

/// The third operand where the immediate's bit is one; bits repeat after `wrap + 1` lanes.
fn blend<T: Lane>(m: &mut Machine, i: &Inst, wrap: usize) -> Done {
    choose2::<T>(m, i, T::BYTES, |lane, lanes| Some(if bit(i, lane & wrap) == 0 { lane } else { lane + lanes }))
}

/// The third operand where the fourth, or xmm0, has its sign set.
fn blend_by_sign<T: Lane>(m: &mut Machine, i: &Inst, negative: impl Fn(T) -> bool) -> Done {
    let signs = if i.legacy { m.vectors[0] } else { m.source(i, 3, 0)? };
    choose2::<T>(m, i, T::BYTES, |lane, lanes| Some(if negative(T::get(&signs, lane)) { lane + lanes } else { lane }))
}

/// Chooses lanes of operand `data` by the lanes of operand `index`: `pick(lane, index, lanes)`.
fn by_lanes<T: Lane + Into<u64>>(
    m: &mut Machine,
    i: &Inst,
    data: usize,
    index: usize,
    element: usize,
    pick: impl Fn(usize, u64, usize) -> Option<usize>,
) -> Done {
    let (a, indices) = (m.source(i, data, 0)?, m.source(i, index, 0)?);
    let out =
        crate::vector::chosen::<T>(&a, &a, i.bytes, |lane, lanes| pick(lane, T::get(&indices, lane).into(), lanes));
    m.store(i, &out, element)
}

fn permutes(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Vpermq | Vpermpd if by_immediate(i) => |m, i| choose1::<u64>(m, i, 8, |lane| lane & !3 | two_bits(i, lane & 3)),
        Vpermb => |m, i| permute::<u8>(m, i),
        Vpermw => |m, i| permute::<u16>(m, i),
        Vpermd | Vpermps => |m, i| permute::<u32>(m, i),
        Vpermq | Vpermpd => |m, i| permute::<u64>(m, i),
        Vpermi2b => |m, i| permute_two::<u8>(m, i, 0, 1),
        Vpermi2w => |m, i| permute_two::<u16>(m, i, 0, 1),
        Vpermi2d | Vpermi2ps => |m, i| permute_two::<u32>(m, i, 0, 1),
        Vpermi2q | Vpermi2pd => |m, i| permute_two::<u64>(m, i, 0, 1),
        Vpermt2b => |m, i| permute_two::<u8>(m, i, 1, 0),
        Vpermt2w => |m, i| permute_two::<u16>(m, i, 1, 0),
        Vpermt2d | Vpermt2ps => |m, i| permute_two::<u32>(m, i, 1, 0),
        Vpermt2q | Vpermt2pd => |m, i| permute_two::<u64>(m, i, 1, 0),
        Vperm2i128 | Vperm2f128 => |m, i| {
            choose2::<u128>(m, i, 16, |lane, _| {
                let control = i.immediate as usize >> (4 * lane);
                (control & 8 == 0).then_some(control & 3)
            })
        },
        Vshufi32x4 | Vshuff32x4 => |m, i| shuffle_blocks(m, i, 4),
        Vshufi64x2 | Vshuff64x2 => |m, i| shuffle_blocks(m, i, 8),
        _ => return None,
    })
}

fn permute<T: Lane + Into<u64>>(m: &mut Machine, i: &Inst) -> Done {
    by_lanes::<T>(m, i, 2, 1, T::BYTES, |_, index, lanes| Some(index as usize % lanes))
}

/// Lanes of two tables, the operands `first` and 2, by the lanes of operand `index`.
fn permute_two<T: Lane + Into<u64>>(m: &mut Machine, i: &Inst, index: usize, first: usize) -> Done {
    let (indices, a, b) = (m.source(i, index, 0)?, m.source(i, first, 0)?, m.source(i, 2, 0)?);
    let out = crate::vector::chosen::<T>(&a, &b, i.bytes, |lane, lanes| {
        Some(T::get(&indices, lane).into() as usize % (2 * lanes))
    });
    m.store(i, &out, T::BYTES)
}

/// Blocks of 16 bytes: the lower half of the result from the second operand, the rest from the third.
fn shuffle_blocks(m: &mut Machine, i: &Inst, element: usize) -> Done {
    choose2::<u128>(m, i, element, |lane, lanes| {
        let from = if lanes == 4 { two_bits(i, lane) } else { bit(i, lane) };
        Some(if lane < lanes / 2 { from } else { from + lanes })
    })
}

fn packs(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Packsswb | Vpacksswb => |m, i| pack::<i16, i8>(m, i, |a| a.clamp(-128, 127) as i8),
        Packuswb | Vpackuswb => |m, i| pack::<i16, u8>(m, i, |a| a.clamp(0, 255) as u8),
        Packssdw | Vpackssdw => |m, i| pack::<i32, i16>(m, i, |a| a.clamp(-32768, 32767) as i16),
        Packusdw | Vpackusdw => |m, i| pack::<i32, u16>(m, i, |a| a.clamp(0, 65535) as u16),
        _ => return None,
    })
}

fn pack<S: Lane, D: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(S) -> D) -> Done {
    // Broadcasts are of the wide elements; the write mask is of the narrow ones.
    let (a, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    let (mut out, n) = (Vector::ZERO, 16 / S::BYTES);
    for lane in 0..i.bytes / D::BYTES {
        let (block, at) = (lane / (2 * n) * n, lane % (2 * n));
        let from = if at < n { S::get(&a, block + at) } else { S::get(&b, block + at - n) };
        f(from).set(&mut out, lane);
    }
    m.store(i, &out, D::BYTES)
}

fn extensions(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Pmovzxbw | Vpmovzxbw => |m, i| extend::<u8, u16>(m, i, u16::from),
        Pmovzxbd | Vpmovzxbd => |m, i| extend::<u8, u32>(m, i, u32::from),
        Pmovzxbq | Vpmovzxbq => |m, i| extend::<u8, u64>(m, i, u64::from),
        Pmovzxwd | Vpmovzxwd => |m, i| extend::<u16, u32>(m, i, u32::from),
        Pmovzxwq | Vpmovzxwq => |m, i| extend::<u16, u64>(m, i, u64::from),
        Pmovzxdq | Vpmovzxdq => |m, i| extend::<u32, u64>(m, i, u64::from),
        Pmovsxbw | Vpmovsxbw => |m, i| extend::<i8, i16>(m, i, i16::from),
        Pmovsxbd | Vpmovsxbd => |m, i| extend::<i8, i32>(m, i, i32::from),
        Pmovsxbq | Vpmovsxbq => |m, i| extend::<i8, i64>(m, i, i64::from),
        Pmovsxwd | Vpmovsxwd => |m, i| extend::<i16, i32>(m, i, i32::from),
        Pmovsxwq | Vpmovsxwq => |m, i| extend::<i16, i64>(m, i, i64::from),
        Pmovsxdq | Vpmovsxdq => |m, i| extend::<i32, i64>(m, i, i64::from),
        _ => return None,
    })
}

fn extend<S: Lane, D: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(S) -> D) -> Done {
    let a = m.source(i, 1, S::BYTES)?;
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / D::BYTES {
        f(S::get(&a, lane)).set(&mut out, lane);
    }
    m.store(i, &out, D::BYTES)
}

macro_rules! narrowings {
    ($mnemonic:expr; $($cut:ident $signed:ident $unsigned:ident: $wide:ident $uwide:ident $narrow:ident $unarrow:ident;)*) => {
        match $mnemonic {
            $(
                Mnemonic::$cut => Some(|m, i| narrow::<$wide, $narrow>(m, i, |a| a as $narrow)),
                Mnemonic::$signed => Some(|m, i| {
                    narrow::<$wide, $narrow>(m, i, |a| a.clamp($narrow::MIN.into(), $narrow::MAX.into()) as $narrow)
                }),
                Mnemonic::$unsigned => Some(|m, i| {
                    narrow::<$uwide, $unarrow>(m, i, |a| a.min($unarrow::MAX.into()) as $unarrow)
                }),
            )*
            _ => None,
        }
    };
}

fn narrowings(i: &Inst) -> Option<Handler> {
    narrowings! { i.mnemonic;
        Vpmovwb Vpmovswb Vpmovuswb: i16 u16 i8 u8;
        Vpmovdb Vpmovsdb Vpmovusdb: i32 u32 i8 u8;
        Vpmovqb Vpmovsqb Vpmovusqb: i64 u64 i8 u8;
        Vpmovdw Vpmovsdw Vpmovusdw: i32 u32 i16 u16;
        Vpmovqw Vpmovsqw Vpmovusqw: i64 u64 i16 u16;
        Vpmovqd Vpmovsqd Vpmovusqd: i64 u64 i32 u32;
    }
}

fn narrow<S: Lane, D: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(S) -> D) -> Done {
    let a = m.source(i, 1, 0)?;
    let mut out = Vector::ZERO;
    let lanes = i.bytes / S::BYTES;
    for lane in 0..lanes {
        f(S::get(&a, lane)).set(&mut out, lane);
    }
    m.store_bytes(i, &out, D::BYTES, lanes * D::BYTES)
}
