//! Pooling: what is monotone commutes with a maximum.

use hawqc_ir::{Clamp, Elem};

use super::requant::per_channel;
use super::{Bindings, Row, always, only_if};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "requant-into-max-pool",
        left: "(requant ?r (max_pool ?p ?x) ?m ?s)",
        right: "(max_pool ?p (requant ?r ?x ?m ?s))",
        because: "a requant is monotone, and the scale is the same over every window",
        given: |m| only_if(per_channel(m, "m")),
    },
    Row {
        name: "requant-out-of-max-pool",
        left: "(max_pool ?p (requant ?r ?x ?m ?s))",
        right: "(requant ?r (max_pool ?p ?x) ?m ?s)",
        because: "a requant is monotone, and the scale is the same over every window",
        given: |m| only_if(per_channel(m, "m")),
    },
    Row {
        name: "clamp-into-max-pool",
        left: "(clamp ?a (max_pool ?p ?x))",
        right: "(max_pool ?p (clamp ?a ?x))",
        because: "a clamp is monotone",
        given: always,
    },
    Row {
        name: "clamp-out-of-max-pool",
        left: "(max_pool ?p (clamp ?a ?x))",
        right: "(clamp ?a (max_pool ?p ?x))",
        because: "a clamp is monotone",
        given: always,
    },
    Row {
        name: "max-pool-of-single",
        left: "(max_pool ?p ?x)",
        right: "?x",
        because: "the maximum of one value is the value",
        given: |m| {
            let pool = m.max_pool("p")?;
            only_if(pool.kernel == [1, 1] && pool.stride == [1, 1] && pool.pad == [0; 4] && m.range("x").is_some())
        },
    },
    Row {
        name: "sum-pool-of-single",
        left: "(sum_pool ?p ?x)",
        right: "(clamp ?c ?x)",
        because: "the sum of one value is the value, stored as i32",
        given: |m| {
            let (pool, range) = (m.sum_pool("p")?, m.range("x")?);
            let single = pool.kernel == [1, 1] && pool.stride == [1, 1] && pool.pad == [0; 4] && pool.zero == 0;
            single.then(|| Bindings::new().op("c", Clamp { lo: range.lo, hi: range.hi, elem: Elem::I32 }))
        },
    },
];
