//! Reshapes and transposes: among each other, and past what treats every value alike.

use hawqc_ir::{Reshape, Transpose, permuted_shape};

use super::requant::{per_channel, per_tensor};
use super::{Bindings, Match, Row, always, only_if};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "reshape-of-reshape",
        left: "(reshape ?a (reshape ?b ?x))",
        right: "(reshape ?a ?x)",
        because: "row-major order is kept by both",
        given: always,
    },
    Row {
        name: "reshape-noop",
        left: "(reshape ?a ?x)",
        right: "?x",
        because: "the shape is the same",
        given: |m| only_if(m.reshape("a")?.shape == m.ty("x")?.shape),
    },
    Row {
        name: "transpose-of-transpose",
        left: "(transpose ?a (transpose ?b ?x))",
        right: "(transpose ?c ?x)",
        because: "permutations compose",
        given: |m| {
            let (outer, inner) = (m.transpose("a")?, m.transpose("b")?);
            let perm: Option<Vec<usize>> = outer.perm.iter().map(|&a| inner.perm.get(a).copied()).collect();
            Some(Bindings::new().op("c", Transpose { perm: perm? }))
        },
    },
    Row {
        name: "transpose-keeping-order",
        left: "(transpose ?a ?x)",
        right: "(reshape ?c ?x)",
        because: "where only axes of length 1 move, the order in memory stays",
        given: |m| {
            let (transpose, shape) = (m.transpose("a")?, &m.ty("x")?.shape);
            let shape_after = permuted_shape(shape, &transpose.perm).ok()?;
            transpose.keeps_order(shape).then(|| Bindings::new().op("c", Reshape { shape: shape_after }))
        },
    },
    Row {
        name: "requant-into-reshape",
        left: "(requant ?r (reshape ?h ?x) ?m ?s)",
        right: "(reshape ?h (requant ?r ?x ?m ?s))",
        because: "the scale is the same everywhere, or the last axis stays the last",
        given: same_scale_after_reshape,
    },
    Row {
        name: "requant-out-of-reshape",
        left: "(reshape ?h (requant ?r ?x ?m ?s))",
        right: "(requant ?r (reshape ?h ?x) ?m ?s)",
        because: "the scale is the same everywhere, or the last axis stays the last",
        given: same_scale_after_reshape,
    },
    Row {
        name: "clamp-into-reshape",
        left: "(clamp ?a (reshape ?h ?x))",
        right: "(reshape ?h (clamp ?a ?x))",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "clamp-out-of-reshape",
        left: "(reshape ?h (clamp ?a ?x))",
        right: "(clamp ?a (reshape ?h ?x))",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "requant-into-transpose",
        left: "(requant ?r (transpose ?t ?x) ?m ?s)",
        right: "(transpose ?t (requant ?r ?x ?m ?s))",
        because: "the scale is the same everywhere",
        given: |m| only_if(per_tensor(m, "m")),
    },
    Row {
        name: "requant-out-of-transpose",
        left: "(transpose ?t (requant ?r ?x ?m ?s))",
        right: "(requant ?r (transpose ?t ?x) ?m ?s)",
        because: "the scale is the same everywhere",
        given: |m| only_if(per_tensor(m, "m")),
    },
    Row {
        name: "clamp-into-transpose",
        left: "(clamp ?a (transpose ?t ?x))",
        right: "(transpose ?t (clamp ?a ?x))",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "clamp-out-of-transpose",
        left: "(transpose ?t (clamp ?a ?x))",
        right: "(clamp ?a (transpose ?t ?x))",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "add-of-reshapes",
        left: "(add ?p (reshape ?h ?x) (reshape ?h ?y))",
        right: "(reshape ?h (add ?p ?x ?y))",
        because: "both operands are read in the same order",
        given: |m| only_if(m.ty("x")?.shape == m.ty("y")?.shape),
    },
    Row {
        name: "add-of-transposes",
        left: "(add ?p (transpose ?t ?x) (transpose ?t ?y))",
        right: "(transpose ?t (add ?p ?x ?y))",
        because: "both operands are read in the same order",
        given: always,
    },
];

/// With row-major order kept, the channel of a value is its position modulo the last dimension.
fn same_scale_after_reshape(m: &Match) -> Option<Bindings> {
    let last = m.reshape("h")?.shape.last() == m.ty("x")?.shape.last();
    only_if(per_tensor(m, "m") || per_channel(m, "m") && last && m.ty("m")?.rank() == 1)
}
