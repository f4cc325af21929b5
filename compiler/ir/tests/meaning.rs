//! The meaning of the operators, against values worked out by hand and independent formulations.

use hawqc_ir::*;
use proptest::prelude::*;

fn ints(elem: Elem, shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_ints(elem, shape, values.iter().copied()).unwrap()
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values.to_vec()).unwrap()
}

/// Infers, evaluates, and checks that the result lies in the inferred range.
fn apply(op: impl Into<Op>, args: &[&Tensor]) -> Tensor {
    let op = op.into();
    let types: Vec<TensorType> = args.iter().map(|a| a.ty()).collect();
    let ty = op.infer(&types.iter().collect::<Vec<_>>()).unwrap();
    let result = op.eval(args, &ty).unwrap();
    assert_eq!((result.elem(), result.shape()), (ty.elem, ty.shape.as_slice()));
    if let (Some(declared), Some(actual)) = (ty.range, result.range()) {
        assert!(declared.contains(actual), "{actual:?} outside {declared:?}");
    }
    result
}

fn refuses(op: impl Into<Op>, args: &[&Tensor], expected: &str) {
    let types: Vec<TensorType> = args.iter().map(|a| a.ty()).collect();
    let error = op.into().infer(&types.iter().collect::<Vec<_>>()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn convolution_pads_with_its_zero_point() {
    let src = ints(Elem::U8, &[1, 1, 2, 1], &[255, 0]);
    let wei = ints(Elem::I8, &[1, 1, 3, 1], &[-128, 1, 127]);
    let bias = ints(Elem::I32, &[1], &[1000]);
    let conv = Conv { pad: [0, 1, 0, 1], pad_value: 7, ..Conv::unit() };
    let out = apply(conv, &[&src, &wei, &bias]);
    assert_eq!(out.ints().unwrap(), [7 * -128 + 255 + 1000, 255 * -128 + 7 * 127 + 1000]);
}

#[test]
fn grouped_dilated_strided_convolution() {
    // Two groups of one channel; the second is read at twice the distance.
    let src = ints(Elem::I8, &[1, 1, 5, 2], &[1, 10, 2, 20, 3, 30, 4, 40, 5, 50]);
    let wei = ints(Elem::I8, &[2, 1, 2, 1], &[1, 100, 1, -1]);
    let conv = Conv { stride: [1, 2], dilation: [1, 2], groups: 2, ..Conv::unit() };
    let out = apply(conv, &[&src, &wei]);
    assert_eq!(out.shape(), [1, 1, 2, 2]);
    assert_eq!(out.ints().unwrap(), [301, -20, 503, -20]);
}

#[test]
fn accumulators_are_exact_at_the_extremes() {
    let n = 40_000;
    let src = ints(Elem::U8, &[1, 1, 1, n], &vec![255; n]);
    let wei = ints(Elem::I8, &[1, 1, 1, n], &vec![-128; n]);
    assert_eq!(apply(Conv::unit(), &[&src, &wei]).ints().unwrap(), [-(255 * 128 * n as i64)]);
    let wei = ints(Elem::I16, &[1, 1, 1, 2], &[-32768, 255]);
    let src = ints(Elem::I16, &[1, 1, 1, 2], &[32767, -32768]);
    assert_eq!(apply(Conv::unit(), &[&src, &wei]).ints().unwrap(), [-32768 * 32767 - 32768 * 255]);
}

#[test]
fn convolution_refuses_what_does_not_match() {
    let src = ints(Elem::U8, &[1, 2, 2, 4], &[0; 16]);
    let wei = ints(Elem::I8, &[3, 1, 1, 4], &[0; 12]);
    refuses(Conv { groups: 2, ..Conv::unit() }, &[&src, &wei], "groups");
    refuses(Conv::unit(), &[&src, &wei, &ints(Elem::I32, &[2], &[0, 0])], "bias must be [3]");
    refuses(Conv::unit(), &[&src, &wei, &ints(Elem::I8, &[3], &[0; 3])], "all integers");
    refuses(Conv { pad_value: 256, ..Conv::unit() }, &[&src, &wei], "pad_value");
    refuses(Conv { stride: [0, 1], ..Conv::unit() }, &[&src, &wei], "illegal window");
    refuses(Conv::unit(), &[&ints(Elem::U8, &[1, 2, 2, 5], &[0; 20]), &wei], "groups");
    refuses(Conv::unit(), &[&src], "expected 2 or 3 operands");
}

#[test]
fn requant_broadcasts_per_tensor_channel_and_pixel() {
    let src = ints(Elem::I32, &[1, 1, 2, 2], &[10, 20, 30, 40]);
    let half = Dyadic::from_real(0.5).unwrap();
    let one = Dyadic::ONE;
    let with = |shape: &[usize], dyadics: &[Dyadic]| {
        let mult = ints(Elem::I32, shape, &dyadics.iter().map(|d| d.mult.into()).collect::<Vec<_>>());
        let shift = ints(Elem::U8, shape, &dyadics.iter().map(|d| d.shift.into()).collect::<Vec<_>>());
        let requant = Requant { src_zero: 2, dst_zero: -3, ..Requant::to_range(Range::new(-100, 16), Elem::I8) };
        apply(requant, &[&src, &mult, &shift]).ints().unwrap()
    };
    assert_eq!(with(&[1], &[half]), [1, 6, 11, 16]);
    assert_eq!(with(&[2], &[one, half]), [5, 6, 16, 16]);
    assert_eq!(with(&[1, 2, 1], &[half, one]), [1, 6, 16, 16]);
}

#[test]
fn requant_refuses_what_could_overflow() {
    let mult = ints(Elem::I32, &[1], &[1 << 30]);
    let shift = ints(Elem::U8, &[1], &[30]);
    let src = ints(Elem::I32, &[1], &[i32::MIN.into()]);
    let identity = Requant::to_range(Range::new(-128, 127), Elem::I8);
    assert_eq!(apply(identity.clone(), &[&src, &mult, &shift]).ints().unwrap(), [-128]);
    refuses(Requant { src_zero: 1, ..identity.clone() }, &[&src, &mult, &shift], "does not fit i32");
    refuses(identity.clone(), &[&src, &mult, &ints(Elem::U8, &[1], &[63])], "shift must be");
    refuses(identity.clone(), &[&src, &ints(Elem::I32, &[1], &[-1]), &shift], "non-negative");
    refuses(Requant { hi: 128, ..identity }, &[&src, &mult, &shift], "does not fit i8");
}

#[test]
fn border_rounds_half_to_even_and_saturates() {
    let quantize = Quantize { lo: 0, hi: 255, axis: 0, elem: Elem::U8 };
    let src = floats(&[8], &[0.25, 0.75, -0.25, 1e30, -1e30, f32::NAN, f32::INFINITY, 63.5]);
    let out = apply(quantize, &[&src, &floats(&[1], &[0.5]), &ints(Elem::U8, &[1], &[128])]);
    assert_eq!(out.ints().unwrap(), [128, 130, 128, 255, 0, 128, 255, 255]);
    let back = apply(Dequantize { axis: 0 }, &[&out, &floats(&[1], &[0.5]), &ints(Elem::U8, &[1], &[128])]);
    assert_eq!(back.f32s().unwrap(), [0.0, 1.0, 0.0, 63.5, -64.0, 0.0, 63.5, 63.5]);
}

#[test]
fn parameters_follow_their_axis() {
    let scale = floats(&[2], &[1.0, 10.0]);
    let zero = ints(Elem::I8, &[2], &[0, 1]);
    let src = ints(Elem::I8, &[2, 2], &[1, 2, 3, 4]);
    assert_eq!(apply(Dequantize { axis: 0 }, &[&src, &scale, &zero]).f32s().unwrap(), [1.0, 2.0, 20.0, 30.0]);
    assert_eq!(apply(Dequantize { axis: 1 }, &[&src, &scale, &zero]).f32s().unwrap(), [1.0, 10.0, 3.0, 30.0]);
}

#[test]
fn pools_leave_the_padding_out() {
    let src = ints(Elem::I8, &[1, 2, 2, 1], &[-5, -6, -7, -8]);
    let (kernel, stride, pad) = ([2, 2], [2, 2], [1, 1, 1, 1]);
    let max = apply(MaxPool { kernel, stride, pad, dilation: [1, 1] }, &[&src]);
    assert_eq!(max.ints().unwrap(), [-5, -6, -7, -8]);
    let sum = apply(SumPool { kernel: [3, 3], stride: [1, 1], pad, zero: -10 }, &[&src]);
    assert_eq!(sum.ints().unwrap(), [14; 4]);
    let src = floats(&[1, 2, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
    let avg = |count_include_pad| apply(AvgPool { kernel, stride, pad, count_include_pad }, &[&src]);
    assert_eq!(avg(true).f32s().unwrap(), [0.25, 0.5, 0.75, 1.0]);
    assert_eq!(avg(false).f32s().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    refuses(MaxPool { kernel: [1, 1], stride, pad, dilation: [1, 1] }, &[&src], "entirely in the padding");
}

#[test]
fn movement() {
    let src = ints(Elem::U8, &[1, 2, 1, 2], &[1, 2, 3, 4]);
    let both = apply(Concat { axis: 3 }, &[&src, &src]);
    assert_eq!(both.ints().unwrap(), [1, 2, 1, 2, 3, 4, 3, 4]);
    let padded = apply(Pad { pad: [0, 1, 1, 0], value: Real::new(9.0) }, &[&src]);
    assert_eq!(padded.shape(), [1, 3, 2, 2]);
    assert_eq!(padded.ints().unwrap(), [9, 9, 1, 2, 9, 9, 3, 4, 9, 9, 9, 9]);
    let nchw = apply(Transpose::to_nchw(), &[&src]);
    assert_eq!((nchw.shape(), nchw.ints().unwrap()), ([1, 2, 2, 1].as_slice(), vec![1, 3, 2, 4]));
    assert_eq!(apply(Transpose::to_nhwc(), &[&nchw]), src);
    assert_eq!(apply(Reshape { shape: vec![4] }, &[&src]).shape(), [4]);
    refuses(Reshape { shape: vec![5] }, &[&src], "as many elements");
    refuses(Pad { pad: [0; 4], value: Real::new(0.5) }, &[&src], "whole number");
}

#[test]
fn verifier_proves_accumulators_from_actual_weights() {
    // 70,000 taps of 255 * 127 exceed 2^31; with small actual weights they do not.
    let build = |weight: i64| {
        let n = 70_000;
        let mut g = Graph::new();
        let x = g.input("x", TensorType::new(Elem::U8, [1, 1, 1, n])).unwrap();
        let w = g.constant(ints(Elem::I8, &[1, 1, 1, n], &vec![weight; n]));
        let y = g.add("big", Conv::unit(), &[x, w]).unwrap();
        g.output("y", y);
        g
    };
    verify::check_integer(&build(120)).unwrap();
    let error = verify::check_integer(&build(-127)).unwrap_err().to_string();
    assert!(error.contains("`big`") && error.contains("output channel 0"), "{error}");
}

#[test]
fn verifier_finds_floats_between_the_borders() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::new(Elem::F32, [1, 1, 1, 1])).unwrap();
    let scale = g.constant(floats(&[1], &[1.0]));
    let zero = g.constant(ints(Elem::U8, &[1], &[0]));
    let q = g.add("q", Quantize { lo: 0, hi: 255, axis: 0, elem: Elem::U8 }, &[x, scale, zero]).unwrap();
    let d = g.add("d", Dequantize { axis: 0 }, &[q, scale, zero]).unwrap();
    let relu = g.add("relu", ClampReal::relu(), &[d]).unwrap();
    g.output("y", relu);
    verify::check(&g).unwrap();
    let error = verify::check_integer(&g).unwrap_err().to_string();
    assert!(error.contains("relu") && error.contains("between the borders"), "{error}");
}

proptest! {
    /// Convolution against the definition written with explicit coordinates.
    #[test]
    fn convolution_matches_its_definition(
        (h, w, c, k) in (1usize..6, 1usize..6, 1usize..4, 1usize..4),
        (kh, kw) in (1usize..4, 1usize..4),
        stride in [1usize..3, 1usize..3],
        dilation in [1usize..3, 1usize..3],
        pad in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        pad_value in 0i32..256,
        seed in any::<u64>(),
    ) {
        let conv = Conv { stride, pad, dilation, groups: 1, pad_value };
        let src = text::seeded(&TensorType::new(Elem::U8, [1, h, w, c]), seed, Range::new(0, 255)).unwrap();
        let wei = text::seeded(&TensorType::new(Elem::I8, [k, kh, kw, c]), seed ^ 1, Range::new(-128, 127)).unwrap();
        let Ok(ty) = Op::from(conv.clone()).infer(&[&src.ty(), &wei.ty()]) else { return Ok(()) };
        let out = apply(conv.clone(), &[&src, &wei]).ints().unwrap();
        let (x, m) = (src.ints().unwrap(), wei.ints().unwrap());
        let [_, oh, ow, _] = ty.nhwc().unwrap();
        for (oy, ox, oc) in (0..oh).flat_map(|y| (0..ow).flat_map(move |x| (0..k).map(move |c| (y, x, c)))) {
            let mut sum = 0;
            for (ky, kx, ic) in (0..kh).flat_map(|y| (0..kw).flat_map(move |x| (0..c).map(move |c| (y, x, c)))) {
                let y = (oy * stride[0] + ky * dilation[0]) as i64 - pad[0] as i64;
                let xx = (ox * stride[1] + kx * dilation[1]) as i64 - pad[1] as i64;
                let inside = (0..h as i64).contains(&y) && (0..w as i64).contains(&xx);
                let value = if inside { x[(y as usize * w + xx as usize) * c + ic] } else { pad_value.into() };
                sum += value * m[((oc * kh + ky) * kw + kx) * c + ic];
            }
            prop_assert_eq!(out[(oy * ow + ox) * k + oc], sum);
        }
    }

    /// A transposition undone by its inverse is nothing.
    #[test]
    fn transpositions_invert(perm in Just(vec![0usize, 1, 2, 3]).prop_shuffle(), seed in any::<u64>()) {
        let x = text::seeded(&TensorType::new(Elem::I16, [2, 3, 4, 5]), seed, Range::new(-32768, 32767)).unwrap();
        let mut inverse = vec![0; 4];
        perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
        let there = apply(Transpose { perm }, &[&x]);
        prop_assert_eq!(apply(Transpose { perm: inverse }, &[&there]), x);
    }
}
