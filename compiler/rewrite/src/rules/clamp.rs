//! Clamps: of each other, into a requant's bounds, and away.

use hawqc_ir::{Clamp, Requant};

use super::requant::{limited, narrows};
use super::{Bindings, Match, Row, only_if};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "clamp-noop",
        left: "(clamp ?a ?x)",
        right: "?x",
        because: "no value of the operand lies outside of the bounds",
        given: |m| {
            let (clamp, ty) = (m.clamp("a")?, m.ty("x")?);
            let range = ty.range?;
            only_if(ty.elem == clamp.elem && clamp.lo <= range.lo && range.hi <= clamp.hi)
        },
    },
    Row {
        name: "clamp-of-clamp",
        left: "(clamp ?a (clamp ?b ?x))",
        right: "(clamp ?c ?x)",
        because: "clamping is monotone and idempotent, so the bounds of the inner are clamped by the outer",
        given: |m| {
            let (outer, inner) = (m.clamp("a")?, m.clamp("b")?);
            let within = |v: i64| v.clamp(outer.lo, outer.hi);
            let clamp = Clamp { lo: within(inner.lo), hi: within(inner.hi), elem: outer.elem };
            Some(Bindings::new().op("c", clamp))
        },
    },
    Row {
        name: "clamp-of-requant",
        left: "(clamp ?a (requant ?r ?x ?m ?s))",
        right: "(requant ?c ?x ?m ?s)",
        because: "a requant ends in a clamp, and two clamps are one",
        given: |m| {
            let (clamp, requant) = (m.clamp("a")?, m.requant("r")?);
            let within = |v: i64| v.clamp(clamp.lo, clamp.hi);
            let merged =
                Requant { lo: within(requant.lo), hi: within(requant.hi), elem: clamp.elem, ..requant.clone() };
            Some(Bindings::new().op("c", merged))
        },
    },
    Row {
        name: "requant-of-clamp",
        left: "(requant ?r (clamp ?a ?x) ?m ?s)",
        right: "(requant ?c ?x ?m ?s)",
        because: "every rounding is monotone and mult >= 0, so limits of the source become limits of the result, \
                  the same for every channel or without effect on it",
        given: requant_of_clamp,
    },
];

/// A ReLU of an accumulator disappears here: its bound 0 becomes the requant's own lower bound.
fn requant_of_clamp(m: &Match) -> Option<Bindings> {
    let (requant, clamp) = (m.requant("r")?, m.clamp("a")?);
    if narrows(clamp.elem, m.ty("x")?) {
        return None;
    }
    let merged = limited(requant, &m.dyadics("m", "s")?, m.range("x")?, (clamp.lo, clamp.hi))?;
    Some(Bindings::new().op("c", merged))
}
