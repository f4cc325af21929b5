//! Requants: by one, of each other where nothing is lost, and stored narrower.
//!
//! A requant of a requant rounds twice. Merging the two scales would round once and give other bits, so
//! no row does that; only where one of them does not round at all, they become one.

use hawqc_ir::{Clamp, Dyadic, Elem, Range, Requant, Rounding, Tensor, TensorType};

use super::{Bindings, Match, Row};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "requant-by-one",
        left: "(requant ?r ?x ?m ?s)",
        right: "(clamp ?c ?x)",
        because: "a scale of exactly 1 between equal zero points leaves only the clamp",
        given: |m| {
            let r = m.requant("r")?;
            let clamp = Clamp { lo: r.lo, hi: r.hi, elem: r.elem };
            (r.src_zero == r.dst_zero && all_one(&m.dyadics("m", "s")?)).then(|| Bindings::new().op("c", clamp))
        },
    },
    Row {
        name: "requant-by-one-of-requant",
        left: "(requant ?o (requant ?i ?x ?m ?s) ?n ?t)",
        right: "(requant ?c ?x ?m ?s)",
        because: "a scale of exactly 1 only moves the zero point and clamps",
        given: by_one_of_requant,
    },
    Row {
        name: "requant-of-requant-by-one",
        left: "(requant ?o (requant ?i ?x ?m ?s) ?n ?t)",
        right: "(requant ?c ?x ?n ?t)",
        because: "a scale of exactly 1 only moves the zero point and clamps, and its limits pass through the outer",
        given: requant_of_by_one,
    },
    Row {
        name: "floor-of-floor",
        left: "(requant ?o (requant ?i ?x ?m ?s) ?n ?t)",
        right: "(requant ?c ?x ?m ?u)",
        because: "floor(floor(v / 2^a) / 2^b) = floor(v / 2^(a+b)), where the inner does not clamp",
        given: floor_of_floor,
    },
    Row {
        name: "narrow-left-of-add",
        left: "(add ?p (requant ?r ?x ?m ?s) (requant ?q ?y ?n ?t))",
        right: "(add ?p (requant ?c ?x ?m ?s) (requant ?q ?y ?n ?t))",
        because: "addition reads integers of any element, so a term may be stored in the narrowest that holds \
                  what the source can become",
        given: narrowed,
    },
    Row {
        name: "narrow-right-of-add",
        left: "(add ?p (requant ?q ?y ?n ?t) (requant ?r ?x ?m ?s))",
        right: "(add ?p (requant ?q ?y ?n ?t) (requant ?c ?x ?m ?s))",
        because: "addition reads integers of any element, so a term may be stored in the narrowest that holds \
                  what the source can become",
        given: narrowed,
    },
];

/// Whether every scale is exactly 1, which leaves every integer as it is under every rounding.
fn all_one(dyadics: &[Dyadic]) -> bool {
    dyadics.iter().all(|d| i64::from(d.mult) == 1i64 << d.shift)
}

/// A requant that gives for every value of `range` what `requant` gives for the value clamped to
/// `limits`; `None` where the limits act on channels differently.
///
/// Let f_j be channel j's map, clamp included. All f_j are monotone, so `f_j(max(v, lo))` equals
/// `max(f_j(v), f_j(lo))`, and one bound serves every channel if each f_j(lo) either is that bound or is
/// reached by the smallest value of the range anyway, so that the limit had no effect.
pub(super) fn limited(requant: &Requant, dyadics: &[Dyadic], range: Range, limits: (i64, i64)) -> Option<Requant> {
    // The type rule of the merged requant; the products below need it too.
    let fits = |v: i64| i32::try_from(v - i64::from(requant.src_zero)).is_ok();
    if !fits(range.lo) || !fits(range.hi) {
        return None;
    }
    let within = |v: i64| v.clamp(limits.0, limits.1);
    let ends = |v: i64| -> Vec<(i64, i64)> {
        dyadics.iter().map(|&d| (requant.apply(within(v), d), requant.apply(v, d))).collect()
    };
    let (low, high) = (ends(range.lo), ends(range.hi));
    let untouched = |ends: &[(i64, i64)]| ends.iter().all(|(limited, free)| limited == free);
    // A bound that has no effect is left as it is: what it could be tightened to depends on the range.
    let lo = if untouched(&low) { requant.lo } else { low.iter().map(|e| e.0).min()? };
    let hi = if untouched(&high) { requant.hi } else { high.iter().map(|e| e.0).max()? };
    let agrees = |ends: &[(i64, i64)], bound| ends.iter().all(|&(limited, free)| limited == bound || limited == free);
    (agrees(&low, lo) && agrees(&high, hi) && lo <= hi).then(|| Requant { lo, hi, ..requant.clone() })
}

fn by_one_of_requant(m: &Match) -> Option<Bindings> {
    let (outer, inner) = (m.requant("o")?, m.requant("i")?);
    let offset = i64::from(outer.dst_zero) - i64::from(outer.src_zero);
    let bound = |v: i64| (v + offset).clamp(outer.lo, outer.hi);
    let merged = Requant {
        dst_zero: i32::try_from(i64::from(inner.dst_zero) + offset).ok()?,
        lo: bound(inner.lo),
        hi: bound(inner.hi),
        elem: outer.elem,
        ..inner.clone()
    };
    all_one(&m.dyadics("n", "t")?).then(|| Bindings::new().op("c", merged))
}

fn requant_of_by_one(m: &Match) -> Option<Bindings> {
    let (outer, inner) = (m.requant("o")?, m.requant("i")?);
    if !all_one(&m.dyadics("m", "s")?) || narrows(inner.elem, m.ty("x")?) {
        return None;
    }
    let offset = i64::from(inner.dst_zero) - i64::from(inner.src_zero);
    let src_zero = i32::try_from(i64::from(outer.src_zero) - offset).ok()?;
    let moved = Requant { src_zero, ..outer.clone() };
    let limits = (inner.lo - offset, inner.hi - offset);
    Some(Bindings::new().op("c", limited(&moved, &m.dyadics("n", "t")?, m.range("x")?, limits)?))
}

fn floor_of_floor(m: &Match) -> Option<Bindings> {
    let (outer, inner) = (m.requant("o")?, m.requant("i")?);
    let (inner_scales, outer_scales) = (m.dyadics("m", "s")?, m.dyadics("n", "t")?);
    let range = m.range("x")?;
    let floors = inner.round == Rounding::Floor && outer.round == Rounding::Floor;
    if !floors || inner.dst_zero != outer.src_zero || !is_free(inner, &inner_scales, range) {
        return None;
    }
    // The outer scale must be 2^-b with b >= 0, the same everywhere.
    let exponent = |d: &Dyadic| {
        let log = u32::try_from(d.mult).ok().filter(|m| m.is_power_of_two())?.trailing_zeros();
        u32::from(d.shift).checked_sub(log)
    };
    let b = exponent(outer_scales.first()?)?;
    if outer_scales.iter().any(|d| exponent(d) != Some(b)) {
        return None;
    }
    let shifts = inner_scales.iter().map(|d| i64::from(d.shift) + i64::from(b));
    if shifts.clone().any(|s| s > i64::from(Dyadic::MAX_SHIFT)) {
        return None;
    }
    let shift = Tensor::from_ints(Elem::U8, m.ty("s")?.shape.clone(), shifts).ok()?;
    let merged = Requant { src_zero: inner.src_zero, ..outer.clone() };
    Some(Bindings::new().op("c", merged).tensor("u", shift))
}

/// Whether a requant's own clamp has no effect on any value of `range`.
fn is_free(requant: &Requant, dyadics: &[Dyadic], range: Range) -> bool {
    let unclamped = Requant { lo: i64::MIN, hi: i64::MAX, ..requant.clone() };
    image(&unclamped, dyadics, range).is_some_and(|i| Range::new(requant.lo, requant.hi).contains(i))
}

/// Whether a value stored as `elem` takes less memory than the one it is made from. If it is read several
/// times it had better be stored: no row makes its readers read the wider one instead.
pub(super) fn narrows(elem: Elem, src: &TensorType) -> bool {
    elem.bytes() < src.elem.bytes()
}

/// Narrows one term of an addition where both come from something wider, as where two convolutions meet:
/// one of them has to be stored. A residual operand that is narrow in memory is not stored again.
fn narrowed(m: &Match) -> Option<Bindings> {
    let requant = m.requant("r")?;
    let image = image(requant, &m.dyadics("m", "s")?, m.range("x")?)?;
    // 4-bit values occupy a byte each as well.
    let elem = match Elem::holding(image)? {
        Elem::U4 => Elem::U8,
        Elem::I4 => Elem::I8,
        wide => wide,
    };
    let (src, full) = (m.ty("x")?, elem.range()?);
    let (lo, hi) = (requant.lo.max(full.lo), requant.hi.min(full.hi));
    let gains = elem.bytes() < requant.elem.bytes() && narrows(elem, src) && narrows(elem, m.ty("y")?);
    gains.then(|| Bindings::new().op("c", Requant { lo, hi, elem, ..requant.clone() }))
}

/// The range of a requant's results for sources within `range`.
fn image(requant: &Requant, dyadics: &[Dyadic], range: Range) -> Option<Range> {
    let lo = dyadics.iter().map(|&d| requant.apply(range.lo, d)).min()?;
    let hi = dyadics.iter().map(|&d| requant.apply(range.hi, d)).max()?;
    Some(Range::new(lo, hi))
}

/// Whether the constants of a requant are one per tensor.
pub(super) fn per_tensor(m: &Match, mult: &str) -> bool {
    m.ty(mult).is_some_and(|ty| ty.elements() == 1)
}

/// Whether the constants of a requant vary along the last axis at most.
pub(super) fn per_channel(m: &Match, mult: &str) -> bool {
    m.ty(mult).is_some_and(|ty| ty.shape.iter().rev().skip(1).all(|&d| d == 1))
}
