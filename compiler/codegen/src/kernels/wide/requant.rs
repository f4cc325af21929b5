//! A requantisation in a wide kernel: its constants, and its instructions on a vector of `i32` lanes.
//!
//! A requantisation is round(v m / 2^e), the 64-bit products of even and odd lanes apart. As in
//! [`crate::kernels::requant`], m is normalised and v may carry a factor 2^k so that E = e + k >= 33. The rounding
//! term 2^(E-1) is then a multiple of 2^32, so it can be added to the high half h of the product:
//! floor((p + 2^(E-1)) / 2^E) = floor((h + 2^(E-33)) / 2^(E-32)), in 32 bits, as |h| <= 2^30 and E <= 62. That |result| <
//! 2^31 before the clamp is checked from the source's range.
//!
//! Values of 16 bits take their products with the halves of m in 32 bits instead ([`Product::Halves`]), those with short m
//! ([`hawqc_ir::Dyadic::short`]) with the upper one alone.

use hawqc_ir::{Arg, KernelSpec, Range, Requant, Rounding, Tensor, TensorType};
use hawqc_schedules::WideMachine;

use crate::asm::{Asm, Binary, Shift, ShiftBy, Src, V};
use crate::error::Unsupported;
use crate::kernels::Table;

/// Vectors of a requantisation's record: multipliers, those of odd lanes moved down, rounding terms, shifts,
/// left shifts. [`Product::Halves`]: upper halves, lower halves, rounding terms, shifts.
pub const RECORD_VECTORS: usize = 5;
const MULT: usize = 0;
const ODD_MULT: usize = 1;
const HALF: usize = 2;
const SHIFT: usize = 3;
const LEFT: usize = 4;
const UPPER: usize = MULT;
const LOWER: usize = ODD_MULT;
/// A requantisation's instructions and where its table stands.
pub struct WideRequant {
    pub op: Requant,
    /// Position among the epilogue's tables.
    pub table: usize,
    /// One record for every vector of channels; otherwise one for all.
    pub per_channel: bool,
    product: Product,
    /// Whether one instruction multiplies pairs and adds them.
    dot: bool,
    /// Limits that some value of the source reaches: i64's where none does.
    pub limits: (i64, i64),
}

/// How v m is formed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Product {
    /// In 64 bits; `scaled`: values are shifted left first.
    Wide { scaled: bool },
    /// v is of 16 bits: its products with the halves of m, each in 32 bits. `signed`: v may be negative.
    Halves { signed: bool },
    /// The same where the lower halves of all m are 0.
    Upper,
}

/// Constants of a requantisation, lane by lane.
#[derive(Clone, Copy)]
struct Lane {
    mult: i32,
    /// E - 32.
    shift: u32,
    /// k.
    left: u32,
    /// 2^(E-33), or 0 to round down.
    half: i32,
}

impl Lane {
    /// The record of [`Product::Halves`]. With m = u 2^16 + l, -2^15 <= v < 2^15 and f = e - 16,
    /// floor((v m + 2^(e-1)) / 2^e) = floor((v u + floor(v l / 2^16) + 2^(f-1)) / 2^f), all within 2^30 + 2^14 + 2^29.
    /// l is rounded to the nearest if v may be negative, so that it is of 16 bits with sign, otherwise down.
    fn halves(&self, signed: bool) -> Option<[i32; RECORD_VECTORS]> {
        let exponent = self.shift + 32 - self.left;
        let mult = i64::from(self.mult);
        let upper = (mult + if signed { 1 << 15 } else { 0 }) >> 16;
        let lower = mult - (upper << 16);
        if mult == 0 {
            return Some([0; RECORD_VECTORS]);
        }
        if upper >= 1 << 15 || !(17..=46).contains(&exponent) {
            return None;
        }
        let half = if self.half == 0 { 0 } else { 1 << (exponent - 17) };
        Some([upper as i32, (lower & 0xffff) as i32, half, exponent as i32 - 16, 0])
    }
}

impl WideRequant {
    /// The step `index` of `spec`, with its table, the `table`th.
    pub fn new(
        spec: &KernelSpec,
        index: usize,
        requant: &Requant,
        constants: &[Option<&Tensor>],
        wide: WideMachine,
        table: usize,
    ) -> Result<(WideRequant, Table), Unsupported> {
        let step = &spec.steps()[index];
        let constant = |position: usize| match step.args.get(position) {
            Some(&Arg::Operand(i)) => constants.get(i).copied().flatten(),
            _ => None,
        };
        let (Some(mult), Some(shift)) = (constant(1), constant(2)) else {
            return Err(Unsupported::new("requant whose mult or shift is not constant"));
        };
        if !matches!(requant.round, Rounding::HalfUp | Rounding::Floor) {
            return Err(Unsupported::new(format!("rounding {:?} in a wide kernel", requant.round)));
        }
        let src = step.args.first().map(|&arg| spec.arg_type(arg)).transpose()?;
        let range = src.and_then(|ty| ty.range).unwrap_or(Range::new(i32::MIN.into(), i32::MAX.into()));
        let zero = i64::from(requant.src_zero);
        let magnitude = Range::new(range.lo - zero, range.hi - zero).magnitude();
        let per_channel = is_per_channel(mult, &step.ty)?;
        let lane = |(m, e)| lane(m, e, magnitude, requant);
        let mut lanes = mult.ints()?.into_iter().zip(shift.ints()?).map(lane).collect::<Result<Vec<Lane>, _>>()?;
        if !per_channel {
            lanes = vec![lanes[0]; wide.lanes];
        }
        let limits = reached_limits(requant, range, &lanes);
        let signed = range.lo < zero;
        let is_short = range.lo - zero >= -(1 << 15) && range.hi - zero < 1 << 15;
        let halves = lanes.iter().map(|lane| lane.halves(signed)).collect::<Option<Vec<_>>>().filter(|_| is_short);
        let (product, records) = match halves {
            Some(halves) if halves.iter().all(|record| record[LOWER] == 0) => (Product::Upper, halves),
            Some(halves) => (Product::Halves { signed }, halves),
            None => {
                let odd = |i: usize| if i.is_multiple_of(2) { lanes[i + 1].mult } else { 0 };
                let record = |(i, l): (usize, &Lane)| [l.mult, odd(i), l.half, l.shift as i32, l.left as i32];
                let scaled = lanes.iter().any(|lane| lane.left > 0);
                (Product::Wide { scaled }, lanes.iter().enumerate().map(record).collect::<Vec<_>>())
            }
        };
        let vectors = records.chunks(wide.lanes).flat_map(|lanes| {
            (0..RECORD_VECTORS).flat_map(|part| lanes.iter().flat_map(move |record| record[part].to_le_bytes()))
        });
        let bytes = vectors.collect();
        let requant = WideRequant { op: requant.clone(), table, per_channel, product, dot: wide.dot, limits };
        Ok((requant, Table::new(bytes)))
    }

    /// What of the constants the code depends on.
    pub fn form(&self) -> String {
        let is = |product: Product| self.product == product;
        let [unsigned, signed] = [false, true].map(|signed| is(Product::Halves { signed }));
        let scaled = is(Product::Wide { scaled: true });
        let limits = [self.limits.0 > i64::MIN, self.limits.1 < i64::MAX];
        let bits = [self.per_channel, unsigned, signed, is(Product::Upper), scaled, limits[0], limits[1]];
        bits.map(|bit| if bit { '1' } else { '0' }).iter().collect()
    }

    /// Emits the instructions, whose constants `part` and `literal` give. Overwrites `value`; the result may be in another
    /// register.
    pub fn emit(&self, asm: &mut Asm, value: V, part: impl Fn(usize) -> Src, literal: impl Fn(i32) -> Src) -> V {
        if self.op.src_zero != 0 {
            asm.binary(Binary::AddI32, value, value, literal(-self.op.src_zero));
        }
        let add_half = |asm: &mut Asm, value: V| {
            if self.op.round != Rounding::Floor {
                asm.binary(Binary::AddI32, value, value, part(HALF));
            }
        };
        let value = match self.product {
            Product::Wide { scaled } => {
                let other = asm.vec();
                if scaled {
                    asm.shift_by(ShiftBy::LeftI32, value, value, part(LEFT));
                }
                asm.shift(Shift::RightU64, other, value, 32);
                asm.binary(Binary::MulEven, value, value, part(MULT));
                asm.binary(Binary::MulEven, other, other, part(self.odd_mult()));
                let high = asm.high_halves(value, other);
                add_half(asm, high);
                high
            }
            Product::Upper => {
                asm.binary(Binary::Maddwd, value, value, part(UPPER));
                add_half(asm, value);
                value
            }
            Product::Halves { signed } => {
                let other = asm.vec();
                if signed {
                    asm.binary(Binary::Maddwd, other, value, part(LOWER));
                    asm.shift(Shift::RightI32, other, other, 16);
                } else {
                    // The upper halves of the lanes are 0.
                    asm.binary(Binary::MulHighU16, other, value, part(LOWER));
                }
                add_half(asm, other);
                if self.dot {
                    asm.dot_i16(other, value, part(UPPER));
                } else {
                    asm.binary(Binary::Maddwd, value, value, part(UPPER));
                    asm.binary(Binary::AddI32, other, other, value);
                }
                other
            }
        };
        asm.shift_by(ShiftBy::RightI32, value, value, part(SHIFT));
        if self.op.dst_zero != 0 {
            asm.binary(Binary::AddI32, value, value, literal(self.op.dst_zero));
        }
        value
    }

    /// The multipliers of odd lanes; those of even ones if all are equal.
    fn odd_mult(&self) -> usize {
        if self.per_channel { ODD_MULT } else { MULT }
    }

    /// The vectors of a record that are read, each as often as it is.
    pub fn parts(&self) -> impl Iterator<Item = usize> {
        let half = (self.op.round != Rounding::Floor).then_some(HALF);
        let left = (self.product == Product::Wide { scaled: true }).then_some(LEFT);
        let second = match self.product {
            Product::Wide { .. } => Some(self.odd_mult()),
            Product::Halves { .. } => Some(LOWER),
            Product::Upper => None,
        };
        [MULT, SHIFT].into_iter().chain(second).chain(half).chain(left)
    }
}

/// The limits of `requant`, but those beyond every result: a requantisation is monotonic, so the ends of the source's
/// range give the extreme ones.
fn reached_limits(requant: &Requant, src: Range, lanes: &[Lane]) -> (i64, i64) {
    let result = |v: i64, lane: &Lane| {
        let product = (i128::from(v - i64::from(requant.src_zero)) * i128::from(lane.mult)) << lane.left;
        let half = i128::from(lane.half) << 32;
        ((product + half) >> (lane.shift + 32)) + i128::from(requant.dst_zero)
    };
    let least = lanes.iter().map(|lane| result(src.lo, lane)).min().unwrap_or(i128::MIN);
    let most = lanes.iter().map(|lane| result(src.hi, lane)).max().unwrap_or(i128::MAX);
    let lo = if least < i128::from(requant.lo) { requant.lo } else { i64::MIN };
    let hi = if most > i128::from(requant.hi) { requant.hi } else { i64::MAX };
    (lo, hi)
}

fn is_per_channel(mult: &Tensor, out: &TensorType) -> Result<bool, Unsupported> {
    let shape = mult.shape();
    if shape.iter().all(|&d| d == 1) {
        return Ok(false);
    }
    match shape {
        [rest @ .., last] if rest.iter().all(|&d| d == 1) && out.shape.last() == Some(last) => Ok(true),
        _ => Err(Unsupported::new(format!("requant constants of shape {shape:?} in a wide kernel"))),
    }
}

fn lane(mult: i64, shift: i64, magnitude: i64, requant: &Requant) -> Result<Lane, Unsupported> {
    let (Ok(mut mult), Ok(mut shift)) = (i32::try_from(mult), u32::try_from(shift)) else {
        return Err(Unsupported::new(format!("requant by {mult} / 2^{shift}")));
    };
    if mult == 0 {
        return Ok(Lane { mult, shift: 0, left: 0, half: 0 });
    }
    while mult > 0 && mult < 1 << 30 && shift < 62 {
        mult *= 2;
        shift += 1;
    }
    let left = 33u32.saturating_sub(shift);
    let limit = i64::from(i32::MAX);
    let scaled = if left < 31 { magnitude.checked_shl(left).filter(|v| v >> left == magnitude) } else { None };
    let result = (i128::from(magnitude) * i128::from(mult)) >> shift;
    let fits = scaled.is_some_and(|v| v <= limit)
        && result + 2 + i128::from(requant.dst_zero).abs() <= i128::from(limit)
        && (1..=62).contains(&shift)
        && mult > 0;
    if !fits {
        return Err(Unsupported::new(format!("requant by {mult} / 2^{shift} beyond 32 bits in a wide kernel")));
    }
    let total = shift + left;
    let half = if requant.round == Rounding::Floor { 0 } else { 1i32 << (total - 33) };
    Ok(Lane { mult, shift: total - 32, left, half })
}
