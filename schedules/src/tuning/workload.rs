//! Workloads: what of a kernel's specification its speed depends on, as one line of text.
//!
//! The text lists operands and steps, without the bounds of requantisations, which differ from layer to layer
//! and change nothing about speed, and with no more of the ranges of inputs and weights than how many bits they take
//! if these are fewer than the element's, as in `i8:7`: schedules may be legal for narrow values only.
//! An example:
//!
//! `conv u8[1,28,28,128] i8[128,3,3,128] stride=[1,1] ... | i32[128] ... | requant $0 #3 #4 ... u8`
//!
//! The first part is the anchor, the second the other operands, the rest the pointwise steps; behind a `&` follows the kernel
//! of a second result. Layers with
//! equal texts are measured once; [`distance`] says how far two workloads are apart.

use std::fmt::Write;

use hawqc_ir::{Arg, KernelSpec, Op, TensorType, text};

/// Added to the distance for different pointwise steps.
const OTHER_STEPS: f64 = 0.5;

/// The text of a specification's workload.
pub fn text(spec: &KernelSpec) -> String {
    let lines = text::print_spec(spec);
    let mut out = String::new();
    for (index, (step, line)) in spec.steps().iter().zip(lines.lines()).enumerate() {
        let mut words = line.split_whitespace().skip(2);
        if index > 0 {
            out.push_str(" | ");
        }
        out.push_str(words.next().unwrap_or_default());
        let anchor = if index == 0 { anchor_operands(spec, step) } else { Vec::new() };
        anchor.iter().for_each(|ty| push_type(&mut out, ty, narrower(ty)));
        // Behind the last word with a value stands `: type`.
        for word in words.take_while(|w| *w != ":") {
            let bound = matches!(step.op, Op::Requant(_) | Op::Clamp(_))
                && ["lo=", "hi="].iter().any(|key| word.starts_with(key));
            let operand = index == 0 && (word.starts_with('#') || word.starts_with('$'));
            if !bound && !operand {
                let _ = write!(out, " {}", word.trim_end_matches(','));
            }
        }
        if index == 0 {
            out.push_str(" |");
            spec.operands()[..spec.second_operands()]
                .iter()
                .skip(anchor.len())
                .for_each(|ty| push_type(&mut out, ty, None));
        }
        let _ = write!(out, " {}", step.ty.elem);
    }
    if let Some(second) = spec.second() {
        let _ = write!(out, " & {}", text(second));
    }
    out
}

/// The operands of the first step up to the first that is not one.
fn anchor_operands<'a>(spec: &'a KernelSpec, step: &hawqc_ir::Step) -> Vec<&'a TensorType> {
    let operand = |(i, arg): (usize, &Arg)| match arg {
        Arg::Operand(o) if *o == i && i < 2 => spec.operands().get(i),
        _ => None,
    };
    step.args.iter().enumerate().map_while(operand).collect()
}

fn push_type(out: &mut String, ty: &TensorType, bits: Option<u32>) {
    let dims: Vec<String> = ty.shape.iter().map(usize::to_string).collect();
    let bits = bits.map(|bits| format!(":{bits}")).unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = write!(out, " {}{bits}[{}]", ty.elem, dims.join(","));
}

/// The bits that a type's values take, if fewer than its element has.
fn narrower(ty: &TensorType) -> Option<u32> {
    let (range, whole) = (ty.range?, ty.elem.range()?);
    let fits = |bits: &u32| match ty.elem.is_signed() {
        true => range.lo >= -(1 << (bits - 1)) && range.hi < 1 << (bits - 1),
        false => range.hi < 1 << bits,
    };
    (1..32).find(fits).filter(|&bits| whole.hi >= 1 << if ty.elem.is_signed() { bits - 1 } else { bits })
}

/// How far two workloads are apart: the logarithms of the ratios of their dimensions, summed. Infinite if
/// they compute different things or on different types.
pub fn distance(a: &str, b: &str) -> f64 {
    if a == b {
        return 0.0;
    }
    let split = |text: &'_ str| {
        let (anchor, rest) = text.split_once(" |").unwrap_or((text, ""));
        let steps = rest.split_once(" | ").map_or("", |(_, steps)| steps);
        (anchor.to_owned(), steps.to_owned())
    };
    let ((anchor_a, steps_a), (anchor_b, steps_b)) = (split(a), split(b));
    let (words_a, words_b) = (anchor_a.split(' '), anchor_b.split(' '));
    if words_a.clone().count() != words_b.clone().count() {
        return f64::INFINITY;
    }
    let anchor: f64 = words_a.zip(words_b).map(|(x, y)| word_distance(x, y)).sum();
    anchor + if steps_a == steps_b { 0.0 } else { OTHER_STEPS }
}

/// Types of one element are as far apart as their shapes; any other words must be equal.
fn word_distance(a: &str, b: &str) -> f64 {
    if a == b {
        return 0.0;
    }
    let (Some((elem_a, dims_a)), Some((elem_b, dims_b))) = (a.split_once('['), b.split_once('[')) else {
        return f64::INFINITY;
    };
    let numbers = |dims: &str| -> Vec<f64> { dims.trim_end_matches(']').split(',').flat_map(str::parse).collect() };
    let (x, y) = (numbers(dims_a), numbers(dims_b));
    if elem_a != elem_b || elem_a.contains('=') || x.len() != y.len() {
        return f64::INFINITY;
    }
    x.iter().zip(&y).map(|(x, y)| (x / y).ln().abs()).sum()
}

#[cfg(test)]
mod tests {
    use hawqc_ir::{Conv, Elem, Range, Requant};

    use super::*;

    fn conv(size: usize, channels: usize, wei: Elem, top: i64, wide: bool) -> KernelSpec {
        let src = TensorType::new(Elem::U8, [1, size, size, channels]);
        let wei = TensorType::with_range(wei, [64, 3, 3, channels], Range::new(-top, top)).unwrap();
        let scale = |elem| TensorType::with_range(elem, [64], Range::new(1, 62)).unwrap();
        let bias = TensorType::with_range(Elem::I32, [64], Range::new(-top, top)).unwrap();
        let operands = vec![src, wei, bias, scale(Elem::I32), scale(Elem::U8)];
        let (range, elem) = if wide { (Range::new(-9, top), Elem::I16) } else { (Range::new(0, top), Elem::U8) };
        let steps = vec![
            (Conv { pad: [1; 4], ..Conv::unit() }.into(), (0..3).map(Arg::Operand).collect()),
            (Requant::to_range(range, elem).into(), vec![Arg::Step(0), Arg::Operand(3), Arg::Operand(4)]),
        ];
        KernelSpec::new(operands, steps).unwrap()
    }

    #[test]
    fn bits_matter_ranges_do_not() {
        let a = text(&conv(28, 64, Elem::I8, 127, false));
        assert_eq!(
            a,
            "conv u8[1,28,28,64] i8[64,3,3,64] stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=0 | \
             i32[64] i32[64] u8[64] i32 | requant $0 #3 #4 src_zero=0 dst_zero=0 round=half_up elem=u8 u8"
        );
        assert_eq!(a, text(&conv(28, 64, Elem::I8, 90, false)));
        // Only how many bits they take.
        let narrow = text(&conv(28, 64, Elem::I8, 63, false));
        assert!(narrow.starts_with("conv u8[1,28,28,64] i8:7[64,3,3,64]"), "{narrow}");
        assert_eq!(narrow, text(&conv(28, 64, Elem::I8, 40, false)));
    }

    #[test]
    fn distances() {
        let base = text(&conv(28, 64, Elem::I8, 127, false));
        let top = |wei| if wei == Elem::I8 { 100 } else { 7 };
        let other = |size, channels, wei, wide| distance(&base, &text(&conv(size, channels, wei, top(wei), wide)));
        assert_eq!(other(28, 64, Elem::I8, false), 0.0);
        assert_eq!(other(28, 64, Elem::I8, true), OTHER_STEPS);
        assert_eq!(other(28, 64, Elem::I4, false), f64::INFINITY);
        let near = other(28, 128, Elem::I8, false);
        assert!(near > 0.0 && near < other(56, 128, Elem::I8, false));
        assert_eq!(distance(&base, "add i8[1] i8[1] | i8"), f64::INFINITY);
    }
}
