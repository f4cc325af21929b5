//! Two-dimensional convolution.

use super::Operator;
use super::window::{Padding, Window};
use crate::attributes::attributes;
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::{Data, Tensor};
use crate::types::{Range, TensorType};

attributes! {
    /// `dst[n,y,x,k] = bias[k] + sum src[n, y', x', c] * wei[k, ky, kx, c]`.
    ///
    /// Operands: `src [N,H,W,C]`, `wei [K,KH,KW,C/groups]`, and optionally `bias [K]`. All floats, or
    /// integers with an i32 bias and an i32 result. A tap outside the image reads `pad_value`
    /// (the zero point of an asymmetric source; 0 for floats).
    pub struct Conv {
        pub stride: [usize; 2],
        pub pad: Padding,
        pub dilation: [usize; 2],
        pub groups: usize,
        pub pad_value: i32,
    }
}

impl Conv {
    /// A dense convolution without stride, padding or dilation.
    pub fn unit() -> Conv {
        Conv { stride: [1, 1], pad: [0; 4], dilation: [1, 1], groups: 1, pad_value: 0 }
    }

    pub fn window(&self, kernel: [usize; 2]) -> Window {
        Window { kernel, stride: self.stride, pad: self.pad, dilation: self.dilation }
    }
}

impl Operator for Conv {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let (src, wei, bias) = match args {
            [src, wei] => (src, wei, None),
            [src, wei, bias] => (src, wei, Some(bias)),
            _ => {
                return Err(TypeError::new(format!("expected 2 or 3 operands, found {}", args.len())));
            }
        };
        let [n, h, w, c] = src.nhwc()?;
        let [k, kh, kw, cg] = wei.nhwc()?;
        if self.groups == 0 || c % self.groups != 0 || k % self.groups != 0 || cg != c / self.groups {
            return Err(TypeError::new(format!(
                "weights [K={k}, .., C/groups={cg}] do not match {c} channels in {} groups",
                self.groups
            )));
        }
        if let Some(bias) = bias
            && bias.shape != [k]
        {
            return Err(TypeError::new(format!("bias must be [{k}], found {bias}")));
        }
        let [oh, ow] = self.window([kh, kw]).output_size([h, w])?;
        let shape = vec![n, oh, ow, k];
        let float_bias = bias.is_none_or(|b| b.is_float());
        let i32_bias = bias.is_none_or(|b| b.elem == Elem::I32);
        if src.is_float() && wei.is_float() && float_bias && self.pad_value == 0 {
            return Ok(TensorType::new(Elem::F32, shape));
        }
        let (Some(src_range), Some(wei_range), true) = (src.range, wei.range, i32_bias) else {
            return Err(TypeError::new(format!("operands must be all floats or all integers, found {src} and {wei}")));
        };
        if src.elem == Elem::I32 || wei.elem == Elem::I32 {
            return Err(TypeError::new("i32 operands are not multiplied; requantise first"));
        }
        if src.elem.range().is_none_or(|r| !r.contains(Range::new(self.pad_value.into(), self.pad_value.into()))) {
            return Err(TypeError::new(format!("pad_value {} does not fit {}", self.pad_value, src.elem)));
        }
        let magnitude = src_range.magnitude().max(i64::from(self.pad_value).abs());
        let sum = ((kh * kw * cg) as i64).saturating_mul(magnitude).saturating_mul(wei_range.magnitude());
        let worst = Range::new(-sum, sum).saturating_add(bias.and_then(|b| b.range).unwrap_or(Range::new(0, 0)));
        // The bound from types alone; that accumulators fit is proved from the actual weights by the verifier.
        TensorType::with_range(Elem::I32, shape, worst.clamped(i32::MIN.into(), i32::MAX.into()))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let bias = args.get(2);
        match (args[0].data(), args[1].data()) {
            (Data::F32(src), Data::F32(wei)) => {
                let bias = bias.map(|b| b.f32s()).transpose()?;
                let mut dst = vec![0f32; out.elements()];
                self.for_each_output(args, out, 0.0, src, |index, k, patch| {
                    let row = &wei[k * patch.len()..][..patch.len()];
                    // f64 accumulation: the float network is an oracle, not a contract.
                    let sum: f64 = patch.iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    dst[index] = (sum + bias.map_or(0.0, |b| f64::from(b[k]))) as f32;
                })?;
                Tensor::from_f32(out.shape.clone(), dst)
            }
            _ => {
                let (src, wei) = (narrow(args[0])?, narrow(args[1])?);
                let bias = bias.map(|b| b.ints()).transpose()?;
                let small = args[0].elem().bits() < 16 && args[1].elem().bits() < 16;
                let mut dst = vec![0i64; out.elements()];
                self.for_each_output(args, out, self.pad_value as i16, &src, |index, k, patch| {
                    let row = &wei[k * patch.len()..][..patch.len()];
                    let sum = if small { dot_small(patch, row) } else { dot(patch, row) };
                    dst[index] = sum + bias.as_ref().map_or(0, |b| b[k]);
                })?;
                Tensor::from_ints(Elem::I32, out.shape.clone(), dst)
            }
        }
    }
}

impl Conv {
    /// Gathers, for every output position and group, the patch of source values in the order of a
    /// weight row, and calls `visit(output index, k, patch)` for every channel.
    fn for_each_output<T: Copy>(
        &self,
        args: &[&Tensor],
        out: &TensorType,
        pad: T,
        src: &[T],
        mut visit: impl FnMut(usize, usize, &[T]),
    ) -> Result<(), TypeError> {
        let [_, h, w, c] = args[0].ty_shape()?;
        let [k, kh, kw, cg] = args[1].ty_shape()?;
        let [n, oh, ow, _] = out.nhwc()?;
        let window = self.window([kh, kw]);
        let per_group = k / self.groups;
        let mut patch = vec![pad; kh * kw * cg];
        for position in 0..n * oh * ow {
            let (image, oy, ox) = (position / (oh * ow), position / ow % oh, position % ow);
            for group in 0..self.groups {
                patch.fill(pad);
                window.for_each_tap([h, w], (oy, ox), |ky, kx, y, x| {
                    let from = ((image * h + y) * w + x) * c + group * cg;
                    patch[(ky * kw + kx) * cg..][..cg].copy_from_slice(&src[from..from + cg]);
                });
                for channel in group * per_group..(group + 1) * per_group {
                    visit(position * k + channel, channel, &patch);
                }
            }
        }
        Ok(())
    }
}

/// Operands of at most 16 bits, as i16; u8 values fit as they are.
fn narrow(tensor: &Tensor) -> Result<Vec<i16>, TypeError> {
    match tensor.data() {
        Data::U8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
        Data::I8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
        Data::I16(v) => Ok(v.clone()),
        _ => Err(TypeError::new(format!("{} operands are not multiplied", tensor.elem()))),
    }
}

/// Sum of products, in i64.
fn dot(a: &[i16], b: &[i16]) -> i64 {
    a.iter().zip(b).map(|(&x, &w)| i64::from(x) * i64::from(w)).sum()
}

/// The same for values of at most 8 bits, in blocks: |x * w| <= 255 * 128 < 2^15, so that 2^15
/// products stay below 2^30 and a block's sum is exact in i32.
fn dot_small(a: &[i16], b: &[i16]) -> i64 {
    const BLOCK: usize = 1 << 15;
    let block = |(a, b): (&[i16], &[i16])| -> i64 {
        a.iter().zip(b).fold(0i32, |sum, (&x, &w)| sum.wrapping_add(i32::from(x).wrapping_mul(i32::from(w)))).into()
    };
    a.chunks(BLOCK).zip(b.chunks(BLOCK)).map(block).sum()
}

impl Tensor {
    fn ty_shape(&self) -> Result<[usize; 4], TypeError> {
        <[usize; 4]>::try_from(self.shape())
            .map_err(|_| TypeError::new(format!("expected rank 4, found {:?}", self.shape())))
    }
}
