//! Floating point of a model's border: arithmetic, comparison, rounding and conversion, rounding to
//! nearest. Not-a-numbers follow the manual: the first operand's, made quiet, else the second's; the
//! default one where none came in.

use iced_x86::Mnemonic;

use crate::decode::{Handler, Inst, Operand};
use crate::fault::{Done, FaultKind};
use crate::flags::Flags;
use crate::machine::Machine;
use crate::masks::compare;
use crate::vector::{Lane, Vector, map1, map2, map3};

trait Float: Lane + PartialOrd {
    fn quiet(self) -> Self;
    fn default_nan() -> Self;
    fn rounded(self, mode: u64) -> Self;
    fn is_nan(self) -> bool;
    fn fused(self, b: Self, c: Self) -> Self;
}

macro_rules! floats {
    ($($type:ty, $quiet:expr;)*) => { $(
        impl Float for $type {
            fn quiet(self) -> Self {
                <$type>::from_bits(self.to_bits() | $quiet)
            }
            fn default_nan() -> Self {
                -<$type>::from_bits(<$type>::INFINITY.to_bits() | $quiet)
            }
            /// By the immediate of `roundps`; mode 4 is the machine's, to nearest.
            fn rounded(self, mode: u64) -> Self {
                match mode & 7 {
                    1 => self.floor(),
                    2 => self.ceil(),
                    3 => self.trunc(),
                    _ => self.round_ties_even(),
                }
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            fn fused(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }
        }
    )* };
}

floats! {
    f32, 1 << 22;
    f64, 1 << 51;
}

/// An operation under the rule for not-a-numbers.
fn exact<T: Float>(f: impl Fn(T, T) -> T) -> impl Fn(T, T) -> T {
    move |a, b| {
        if a.is_nan() {
            return a.quiet();
        }
        if b.is_nan() {
            return b.quiet();
        }
        let value = f(a, b);
        if value.is_nan() { T::default_nan() } else { value }
    }
}

fn root<T: Float>(f: impl Fn(T) -> T) -> impl Fn(T) -> T {
    move |a| {
        if a.is_nan() {
            return a.quiet();
        }
        let value = f(a);
        if value.is_nan() { T::default_nan() } else { value }
    }
}

/// The second operand unless the first is strictly smaller.
fn min<T: Float>(a: T, b: T) -> T {
    if a < b { a } else { b }
}

fn max<T: Float>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

pub(crate) fn select(i: &Inst) -> Option<Handler> {
    // A masked or broadcast scalar is not something kernels have.
    packed(i).or_else(|| if i.mask == 0 { scalar(i) } else { None }).or_else(|| conversions(i)).or_else(|| fused(i))
}

fn packed(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Addps | Vaddps => |m, i| map2::<f32>(m, i, exact(|a, b| a + b)),
        Addpd | Vaddpd => |m, i| map2::<f64>(m, i, exact(|a, b| a + b)),
        Subps | Vsubps => |m, i| map2::<f32>(m, i, exact(|a, b| a - b)),
        Subpd | Vsubpd => |m, i| map2::<f64>(m, i, exact(|a, b| a - b)),
        Mulps | Vmulps => |m, i| map2::<f32>(m, i, exact(|a, b| a * b)),
        Mulpd | Vmulpd => |m, i| map2::<f64>(m, i, exact(|a, b| a * b)),
        Divps | Vdivps => |m, i| map2::<f32>(m, i, exact(|a, b| a / b)),
        Divpd | Vdivpd => |m, i| map2::<f64>(m, i, exact(|a, b| a / b)),
        Minps | Vminps => |m, i| map2::<f32>(m, i, min),
        Minpd | Vminpd => |m, i| map2::<f64>(m, i, min),
        Maxps | Vmaxps => |m, i| map2::<f32>(m, i, max),
        Maxpd | Vmaxpd => |m, i| map2::<f64>(m, i, max),
        Sqrtps | Vsqrtps => |m, i| map1::<f32, f32>(m, i, root(f32::sqrt)),
        Sqrtpd | Vsqrtpd => |m, i| map1::<f64, f64>(m, i, root(f64::sqrt)),
        Roundps | Vroundps => |m, i| map1::<f32, f32>(m, i, root(|a: f32| a.rounded(i.immediate))),
        Roundpd | Vroundpd => |m, i| map1::<f64, f64>(m, i, root(|a: f64| a.rounded(i.immediate))),
        Vrndscaleps if i.immediate >> 4 & 15 == 0 => {
            |m, i| map1::<f32, f32>(m, i, root(|a: f32| a.rounded(i.immediate)))
        }
        Vrndscalepd if i.immediate >> 4 & 15 == 0 => {
            |m, i| map1::<f64, f64>(m, i, root(|a: f64| a.rounded(i.immediate)))
        }
        Cmpps | Vcmpps => |m, i| compare::<f32>(m, i, |a, b| related(i, a, b)),
        Cmppd | Vcmppd => |m, i| compare::<f64>(m, i, |a, b| related(i, a, b)),
        _ => return None,
    })
}

/// The relations of `cmpps`; whether they signal does not matter here.
fn related<T: Float>(i: &Inst, a: T, b: T) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match i.immediate & if i.legacy { 7 } else { 15 } {
        0 => a == b,
        1 => a < b,
        2 => a <= b,
        3 => unordered,
        4 => a != b,
        5 => unordered || a >= b,
        6 => unordered || a > b,
        7 => !unordered,
        8 => unordered || a == b,
        9 => unordered || a < b,
        10 => unordered || a <= b,
        11 => false,
        12 => !unordered && a != b,
        13 => a >= b,
        14 => a > b,
        _ => true,
    }
}

/// `f` of the lowest lanes of the second and third operand, above them the second.
fn low<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, T) -> T) -> Done {
    let (mut out, b) = (m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    f(T::get(&out, 0), T::get(&b, 0)).set(&mut out, 0);
    m.store_bytes(i, &out, T::BYTES, 16)
}

/// Legacy forms with one source: the rest of the destination stays.
fn low_alone<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T) -> T) -> Done {
    let last = if matches!(i.operands[2], Operand::Vector(_) | Operand::Memory) { 2 } else { 1 };
    let (mut out, b) = (m.source(i, 0, 0)?, m.source(i, last, 0)?);
    f(T::get(&b, 0)).set(&mut out, 0);
    m.store_bytes(i, &out, T::BYTES, 16)
}

fn scalar(i: &Inst) -> Option<Handler> {
    if !i.operands.iter().any(|operand| matches!(operand, Operand::Vector(_))) {
        return None;
    }
    use Mnemonic::*;
    Some(match i.mnemonic {
        Addss | Vaddss => |m, i| low::<f32>(m, i, exact(|a, b| a + b)),
        Addsd | Vaddsd => |m, i| low::<f64>(m, i, exact(|a, b| a + b)),
        Subss | Vsubss => |m, i| low::<f32>(m, i, exact(|a, b| a - b)),
        Subsd | Vsubsd => |m, i| low::<f64>(m, i, exact(|a, b| a - b)),
        Mulss | Vmulss => |m, i| low::<f32>(m, i, exact(|a, b| a * b)),
        Mulsd | Vmulsd => |m, i| low::<f64>(m, i, exact(|a, b| a * b)),
        Divss | Vdivss => |m, i| low::<f32>(m, i, exact(|a, b| a / b)),
        Divsd | Vdivsd => |m, i| low::<f64>(m, i, exact(|a, b| a / b)),
        Minss | Vminss => |m, i| low::<f32>(m, i, min),
        Minsd | Vminsd => |m, i| low::<f64>(m, i, min),
        Maxss | Vmaxss => |m, i| low::<f32>(m, i, max),
        Maxsd | Vmaxsd => |m, i| low::<f64>(m, i, max),
        Vsqrtss => |m, i| low::<f32>(m, i, |_, b| root(f32::sqrt)(b)),
        Vsqrtsd => |m, i| low::<f64>(m, i, |_, b| root(f64::sqrt)(b)),
        Vroundss => |m, i| low::<f32>(m, i, |_, b| root(|b: f32| b.rounded(i.immediate))(b)),
        Vroundsd => |m, i| low::<f64>(m, i, |_, b| root(|b: f64| b.rounded(i.immediate))(b)),
        Cmpss | Vcmpss if matches!(i.operands[0], Operand::Vector(_)) => {
            |m, i| low::<f32>(m, i, |a, b| if related(i, a, b) { f32::from_bits(u32::MAX) } else { 0.0 })
        }
        Cmpsd | Vcmpsd if matches!(i.operands[0], Operand::Vector(_)) => {
            |m, i| low::<f64>(m, i, |a, b| if related(i, a, b) { f64::from_bits(u64::MAX) } else { 0.0 })
        }
        Ucomiss | Vucomiss | Comiss | Vcomiss => |m, i| order::<f32>(m, i),
        Ucomisd | Vucomisd | Comisd | Vcomisd => |m, i| order::<f64>(m, i),
        Sqrtss => |m, i| low_alone::<f32>(m, i, root(f32::sqrt)),
        Sqrtsd => |m, i| low_alone::<f64>(m, i, root(f64::sqrt)),
        Roundss => |m, i| low_alone::<f32>(m, i, root(|b: f32| b.rounded(i.immediate))),
        Roundsd => |m, i| low_alone::<f64>(m, i, root(|b: f64| b.rounded(i.immediate))),
        Vcvtsi2ss => |m, i| from_integer(m, i, |a| a as f32),
        Vcvtsi2sd => |m, i| from_integer(m, i, |a| a as f64),
        Cvttss2si | Vcvttss2si => |m, i| to_integer::<f32>(m, i, |a| a.trunc().into()),
        Cvttsd2si | Vcvttsd2si => |m, i| to_integer::<f64>(m, i, f64::trunc),
        Cvtss2si | Vcvtss2si => |m, i| to_integer::<f32>(m, i, |a| a.round_ties_even().into()),
        Cvtsd2si | Vcvtsd2si => |m, i| to_integer::<f64>(m, i, f64::round_ties_even),
        _ => return None,
    })
}

fn order<T: Float>(m: &mut Machine, i: &Inst) -> Done {
    let (a, b) = (T::get(&m.source(i, 0, 0)?, 0), T::get(&m.source(i, 1, 0)?, 0));
    let unordered = a.is_nan() || b.is_nan();
    m.flags = Flags { zero: unordered || a == b, parity: unordered, carry: unordered || a < b, ..Flags::default() };
    Ok(())
}

/// From a general register or memory, into the lowest lane.
fn from_integer<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(i64) -> T) -> Done {
    let mut out = m.source(i, 1, 0)?;
    f(crate::flags::signed(m.get(i, 2)?, m.size(i, 2))).set(&mut out, 0);
    m.store_bytes(i, &out, T::BYTES, 16)
}

fn to_integer<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T) -> f64) -> Done {
    let value = f(T::get(&m.source(i, 1, 0)?, 0));
    let value = match i.size {
        4 if (-2_147_483_648.0..2_147_483_648.0).contains(&value) => value as i32 as u32 as u64,
        4 => 1 << 31,
        8 if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value) => value as i64 as u64,
        8 => 1 << 63,
        _ => return Err(FaultKind::Unsupported),
    };
    m.set(i, 0, value)
}

fn conversions(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Cvtdq2ps | Vcvtdq2ps => |m, i| map1::<i32, f32>(m, i, |a| a as f32),
        Vcvtudq2ps => |m, i| map1::<u32, f32>(m, i, |a| a as f32),
        Cvttps2dq | Vcvttps2dq => |m, i| map1::<f32, i32>(m, i, |a| whole(a.trunc())),
        Cvtps2dq | Vcvtps2dq => |m, i| map1::<f32, i32>(m, i, |a| whole(a.round_ties_even())),
        Vcvttps2udq => |m, i| map1::<f32, u32>(m, i, |a| whole_unsigned(a.trunc())),
        Vcvtps2udq => |m, i| map1::<f32, u32>(m, i, |a| whole_unsigned(a.round_ties_even())),
        _ => return None,
    })
}

fn whole(a: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&a) { a as i32 } else { i32::MIN }
}

fn whole_unsigned(a: f32) -> u32 {
    if (0.0..4_294_967_296.0).contains(&a) { a as u32 } else { u32::MAX }
}

fn multiply_add<T: Float>(a: T, b: T, c: T) -> T {
    if let Some(nan) = [a, b, c].into_iter().find(|x| x.is_nan()) {
        return nan.quiet();
    }
    let value = a.fused(b, c);
    if value.is_nan() { T::default_nan() } else { value }
}

/// Fused multiply and add. The digits name the operands: 132 is first times third plus second.
fn fused(i: &Inst) -> Option<Handler> {
    use Mnemonic::*;
    Some(match i.mnemonic {
        Vfmadd132ps => |m, i| map3::<f32>(m, i, |a, b, c| multiply_add(a, c, b)),
        Vfmadd213ps => |m, i| map3::<f32>(m, i, |a, b, c| multiply_add(b, a, c)),
        Vfmadd231ps => |m, i| map3::<f32>(m, i, |a, b, c| multiply_add(b, c, a)),
        Vfmadd132ss if i.mask == 0 => |m, i| low_fused(m, i, |a, b, c| multiply_add(a, c, b)),
        Vfmadd213ss if i.mask == 0 => |m, i| low_fused(m, i, |a, b, c| multiply_add(b, a, c)),
        Vfmadd231ss if i.mask == 0 => |m, i| low_fused(m, i, |a, b, c| multiply_add(b, c, a)),
        _ => return None,
    })
}

fn low_fused(m: &mut Machine, i: &Inst, f: impl Fn(f32, f32, f32) -> f32) -> Done {
    let (mut out, b, c): (Vector, Vector, Vector) = (m.source(i, 0, 0)?, m.source(i, 1, 0)?, m.source(i, 2, 0)?);
    f(f32::get(&out, 0), f32::get(&b, 0), f32::get(&c, 0)).set(&mut out, 0);
    m.store_bytes(i, &out, 4, 16)
}
