//! Padding: merged into the window that reads it, and moved past what treats every value alike.

use hawqc_ir::{Conv, MaxPool, Pad, Padding, Real, SumPool};

use super::requant::per_channel;
use super::{Bindings, Match, Row, only_if};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "pad-noop",
        left: "(pad ?p ?x)",
        right: "?x",
        because: "nothing is added",
        given: |m| only_if(m.pad("p")?.pad == [0; 4]),
    },
    Row {
        name: "pad-of-pad",
        left: "(pad ?p (pad ?q ?x))",
        right: "(pad ?c ?x)",
        because: "both add the same value",
        given: |m| {
            let (outer, inner) = (m.pad("p")?, m.pad("q")?);
            let merged = Pad { pad: sum(outer.pad, inner.pad), value: inner.value };
            (outer.value == inner.value).then(|| Bindings::new().op("c", merged))
        },
    },
    Row {
        name: "conv-of-pad",
        left: "(conv ?c (pad ?p ?x) ?w)",
        right: "(conv ?d ?x ?w)",
        because: "taps outside of the image read the value that the pad writes there",
        given: |m| Some(Bindings::new().op("d", padded_conv(m)?)),
    },
    Row {
        name: "conv-with-bias-of-pad",
        left: "(conv ?c (pad ?p ?x) ?w ?b)",
        right: "(conv ?d ?x ?w ?b)",
        because: "taps outside of the image read the value that the pad writes there",
        given: |m| Some(Bindings::new().op("d", padded_conv(m)?)),
    },
    Row {
        name: "max-pool-of-pad",
        left: "(max_pool ?c (pad ?p ?x))",
        right: "(max_pool ?d ?x)",
        because: "the value is no greater than any other, and every window keeps a pixel of the image",
        given: |m| {
            let (pool, pad) = (m.max_pool("c")?, m.pad("p")?);
            let merged = MaxPool { pad: sum(pool.pad, pad.pad), ..pool.clone() };
            (whole(pad)? <= m.range("x")?.lo).then(|| Bindings::new().op("d", merged))
        },
    },
    Row {
        name: "sum-pool-of-pad",
        left: "(sum_pool ?c (pad ?p ?x))",
        right: "(sum_pool ?d ?x)",
        because: "the value is the zero point, which adds nothing",
        given: |m| {
            let (pool, pad) = (m.sum_pool("c")?, m.pad("p")?);
            let merged = SumPool { pad: sum(pool.pad, pad.pad), ..pool.clone() };
            (whole(pad)? == i64::from(pool.zero)).then(|| Bindings::new().op("d", merged))
        },
    },
    Row {
        name: "requant-into-pad",
        left: "(requant ?r (pad ?p ?x) ?m ?s)",
        right: "(pad ?q (requant ?r ?x ?m ?s))",
        because: "every scale that acts on the border gives the same value there",
        given: |m| {
            let (requant, pad) = (m.requant("r")?, m.pad("p")?);
            let value = whole(pad)?;
            let mut images = m.dyadics("m", "s")?.into_iter().map(|d| requant.apply(value, d));
            let image = images.next()?;
            let agrees = images.all(|v| v == image);
            let value = real(image)?;
            (agrees && per_channel(m, "m")).then(|| Bindings::new().op("q", Pad { pad: pad.pad, value }))
        },
    },
    Row {
        name: "clamp-into-pad",
        left: "(clamp ?a (pad ?p ?x))",
        right: "(pad ?q (clamp ?a ?x))",
        because: "a clamp treats every value alike, the border's too",
        given: |m| {
            let (clamp, pad) = (m.clamp("a")?, m.pad("p")?);
            let value = real(whole(pad)?.clamp(clamp.lo, clamp.hi))?;
            Some(Bindings::new().op("q", Pad { pad: pad.pad, value }))
        },
    },
];

fn sum(a: Padding, b: Padding) -> Padding {
    [0, 1, 2, 3].map(|side| a[side].saturating_add(b[side]))
}

/// The value of a pad of integers, which its type rule keeps whole and below 2^24.
fn whole(pad: &Pad) -> Option<i64> {
    let value = pad.value.get();
    (value.fract() == 0.0 && value.abs() < 16_777_216.0).then_some(value as i64)
}

/// An integer as the value of a pad, if it is exact there.
fn real(value: i64) -> Option<Real> {
    (value.abs() < 1 << 24).then(|| Real::new(value as f32))
}

/// The convolution with the pad in front of it as padding of its own: both must write the same value,
/// unless the convolution does not pad at all.
fn padded_conv(m: &Match) -> Option<Conv> {
    let (conv, pad) = (m.conv("c")?, m.pad("p")?);
    let pad_value = i32::try_from(whole(pad)?).ok()?;
    let compatible = conv.pad == [0; 4] || conv.pad_value == pad_value;
    let integer = m.range("x").is_some();
    (compatible && integer).then(|| Conv { pad: sum(conv.pad, pad.pad), pad_value, ..conv.clone() })
}
