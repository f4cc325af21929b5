//! Concatenation: what is done to every part may be done to the whole.

use hawqc_ir::{Elem, Tensor};

use super::requant::{per_channel, per_tensor};
use super::{Bindings, Match, Row, always, only_if};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "concat-of-requants",
        left: "(concat ?k {(requant ?r ?x# ?m# ?s#)})",
        right: "(requant ?r (concat ?k {?x#}) ?m ?s)",
        because: "each value keeps its scale: the channels' scales are joined like the channels",
        given: |m| {
            let axis = m.concat("k")?.axis;
            let channels = axis + 1 == m.ty("x0")?.rank();
            let join = |name: &str| join(m, name, if channels { Some(axis) } else { None });
            Some(Bindings::new().tensor("m", join("m")?).tensor("s", join("s")?))
        },
    },
    Row {
        name: "requant-of-concat",
        left: "(requant ?r (concat ?k {?x#}) ?m ?s)",
        right: "(concat ?k {(requant ?r ?x# ?m# ?s#)})",
        because: "each value keeps its scale: the channels' scales are split like the channels",
        given: split,
    },
    Row {
        name: "concat-of-clamps",
        left: "(concat ?k {(clamp ?a ?x#)})",
        right: "(clamp ?a (concat ?k {?x#}))",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "clamp-of-concat",
        left: "(clamp ?a (concat ?k {?x#}))",
        right: "(concat ?k {(clamp ?a ?x#)})",
        because: "a clamp treats every value alike",
        given: always,
    },
    Row {
        name: "concat-of-single",
        left: "(concat ?k ?x)",
        right: "?x",
        because: "nothing is joined",
        given: |m| only_if(m.ty("x").is_some()),
    },
];

/// One constant for the whole from those of the parts: the same one if all are equal and do not vary
/// along the axis, else one value per channel if the parts are joined along the channels (`axis`).
fn join(m: &Match, name: &str, axis: Option<usize>) -> Option<Tensor> {
    let parts = (0..m.count).map(|i| m.tensor(&format!("{name}{i}"))).collect::<Option<Vec<_>>>()?;
    let every = |test: fn(&Match, &str) -> bool| (0..m.count).all(|i| test(m, &format!("m{i}")));
    let uniform = every(per_tensor) || axis.is_none() && every(per_channel);
    if uniform && all_equal(m, "m") && all_equal(m, "s") {
        return Some(parts.first()?.as_ref().clone());
    }
    let axis = axis.filter(|_| every(per_channel))?;
    let mut values = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let channels = *m.ty(&format!("x{i}"))?.shape.get(axis)?;
        let ints = part.ints().ok()?;
        values.extend((0..channels).map(|c| ints[if ints.len() == 1 { 0 } else { c }]));
    }
    constant(parts.first()?.elem(), values)
}

/// Whether every part has the same constant.
fn all_equal(m: &Match, name: &str) -> bool {
    let parts: Option<Vec<_>> = (0..m.count).map(|i| m.tensor(&format!("{name}{i}"))).collect();
    parts.is_some_and(|parts| parts.windows(2).all(|pair| pair[0] == pair[1]))
}

fn split(m: &Match) -> Option<Bindings> {
    let axis = m.concat("k")?.axis;
    let along_channels = axis + 1 == m.ty("x0")?.rank();
    let by_channel = !per_tensor(m, "m") && along_channels;
    if !per_channel(m, "m") {
        return None;
    }
    let (mult, shift) = (m.tensor("m")?, m.tensor("s")?);
    let mut bindings = Bindings::new();
    let mut from = 0;
    for i in 0..m.count {
        let channels = *m.ty(&format!("x{i}"))?.shape.get(axis)?;
        let part = |tensor: &Tensor| -> Option<Tensor> {
            if !by_channel {
                return Some(tensor.clone());
            }
            constant(tensor.elem(), tensor.ints().ok()?.get(from..from + channels)?.to_vec())
        };
        bindings = bindings.tensor(format!("m{i}"), part(mult)?).tensor(format!("s{i}"), part(shift)?);
        from += channels;
    }
    Some(bindings)
}

fn constant(elem: Elem, values: Vec<i64>) -> Option<Tensor> {
    Tensor::from_ints(elem, [values.len()], values).ok()
}
