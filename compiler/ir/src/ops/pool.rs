//! Pooling over spatial windows.

use super::window::{Padding, Window};
use super::{Operator, operands};
use crate::attributes::attributes;
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::{Data, Tensor};
use crate::types::{Range, TensorType};

attributes! {
    /// Maximum over the taps that lie in the image; every window must contain one.
    pub struct MaxPool {
        pub kernel: [usize; 2],
        pub stride: [usize; 2],
        pub pad: Padding,
        pub dilation: [usize; 2],
    }
}

attributes! {
    /// Sum of `src - zero` over the taps that lie in the image, in i32; the padding contributes nothing.
    pub struct SumPool {
        pub kernel: [usize; 2],
        pub stride: [usize; 2],
        pub pad: Padding,
        pub zero: i32,
    }
}

attributes! {
    /// Mean of floats. Padding counts as zeros if `count_include_pad`, else only taps in the image count.
    pub struct AvgPool {
        pub kernel: [usize; 2],
        pub stride: [usize; 2],
        pub pad: Padding,
        pub count_include_pad: bool,
    }
}

impl MaxPool {
    pub fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad, dilation: self.dilation }
    }
}

impl SumPool {
    pub fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad, dilation: [1, 1] }
    }
}

impl AvgPool {
    pub fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad, dilation: [1, 1] }
    }

    /// By how many taps the sum is divided at output `(oy, ox)` of an image of `size`.
    pub fn divisor(&self, size: [usize; 2], at: (usize, usize)) -> usize {
        if self.count_include_pad {
            return self.kernel[0] * self.kernel[1];
        }
        let mut count = 0;
        self.window().for_each_tap(size, at, |_, _, _, _| count += 1);
        count
    }
}

fn pooled_shape(window: Window, src: &TensorType) -> Result<Vec<usize>, TypeError> {
    let [n, h, w, c] = src.nhwc()?;
    let [oh, ow] = window.output_size([h, w])?;
    if !window.never_empty([h, w])? {
        return Err(TypeError::new("a window lies entirely in the padding"));
    }
    Ok(vec![n, oh, ow, c])
}

/// Folds every window: `fold(accumulator, value)` over the taps in the image, starting from `start`.
fn fold_windows<T: Copy, A: Copy>(
    window: Window,
    src: (&[T], &[usize]),
    out: &TensorType,
    start: A,
    fold: impl Fn(A, T) -> A,
) -> Result<Vec<A>, TypeError> {
    let (values, &[_, h, w, c]) = src else {
        return Err(TypeError::new("expected rank 4"));
    };
    let [n, oh, ow, _] = out.nhwc()?;
    let mut dst = vec![start; out.elements()];
    for position in 0..n * oh * ow {
        let (image, oy, ox) = (position / (oh * ow), position / ow % oh, position % ow);
        let dst = &mut dst[position * c..][..c];
        window.for_each_tap([h, w], (oy, ox), |_, _, y, x| {
            let src = &values[((image * h + y) * w + x) * c..][..c];
            for (d, &s) in dst.iter_mut().zip(src) {
                *d = fold(*d, s);
            }
        });
    }
    Ok(dst)
}

impl Operator for MaxPool {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        let shape = pooled_shape(self.window(), src)?;
        Ok(TensorType { elem: src.elem, shape, range: src.range })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        if let Data::F32(values) = src.data() {
            let max = fold_windows(self.window(), (values, src.shape()), out, f32::NEG_INFINITY, f32::max)?;
            return Tensor::from_f32(out.shape.clone(), max);
        }
        let max = fold_windows(self.window(), (&src.ints()?, src.shape()), out, i64::MIN, i64::max)?;
        Tensor::from_ints(out.elem, out.shape.clone(), max)
    }
}

impl Operator for SumPool {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        let range = src.int_range()?;
        let shape = pooled_shape(self.window(), src)?;
        let taps = (self.kernel[0] * self.kernel[1]) as i64;
        let (lo, hi) = (range.lo - i64::from(self.zero), range.hi - i64::from(self.zero));
        // A window cut by the border holds fewer taps, so the sum may be nearer to zero.
        let range = Range::new(lo.saturating_mul(taps).min(lo), hi.saturating_mul(taps).max(hi));
        TensorType::with_range(Elem::I32, shape, range)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let zero = i64::from(self.zero);
        let sums = fold_windows(self.window(), (&src.ints()?, src.shape()), out, 0i64, |sum, v| sum + v - zero)?;
        Tensor::from_ints(Elem::I32, out.shape.clone(), sums)
    }
}

impl Operator for AvgPool {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        if !src.is_float() {
            return Err(TypeError::new(format!("expected floats, found {src}")));
        }
        Ok(TensorType::new(Elem::F32, pooled_shape(self.window(), src)?))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let sums =
            fold_windows(self.window(), (src.f32s()?, src.shape()), out, 0f64, |sum, v: f32| sum + f64::from(v))?;
        let (&[_, h, w, c], [_, oh, ow, _]) = (src.shape(), out.nhwc()?) else {
            return Err(TypeError::new("expected rank 4"));
        };
        let mean = |(i, sum): (usize, f64)| {
            let position = i / c;
            (sum / self.divisor([h, w], (position / ow % oh, position % ow)) as f64) as f32
        };
        Tensor::from_f32(out.shape.clone(), sums.into_iter().enumerate().map(mean).collect())
    }
}
