//! Small integer networks with seeded weights.

use std::fmt;

use hawqc_ir::{
    Add, Clamp, Conv, Dyadic, Elem, Graph, IrError, Range, Requant, Tensor, TensorType, TypeError, ValueId, text,
};

/// A convolution of a square image.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    /// Height and width of the input.
    pub size: usize,
    pub channels: usize,
    pub kernels: usize,
    /// Height and width of the window.
    pub window: [usize; 2],
    pub stride: usize,
    /// Above and below, left and right.
    pub pad: [usize; 2],
    pub groups: usize,
}

impl ConvShape {
    /// With a square window and padding that keeps the size at stride 1.
    pub const fn square(size: usize, channels: usize, kernels: usize, window: usize, stride: usize) -> ConvShape {
        ConvShape { size, channels, kernels, window: [window; 2], stride, pad: [window / 2; 2], groups: 1 }
    }

    /// With another window, padded likewise.
    pub const fn windowed(self, window: [usize; 2]) -> ConvShape {
        ConvShape { window, pad: [window[0] / 2, window[1] / 2], ..self }
    }

    pub const fn without_padding(self) -> ConvShape {
        ConvShape { pad: [0; 2], ..self }
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self) -> u64 {
        let out = [0, 1].map(|axis| (self.size + 2 * self.pad[axis] - self.window[axis]) / self.stride + 1);
        (out[0] * out[1] * self.channels / self.groups * self.kernels * self.window[0] * self.window[1]) as u64
    }
}

impl fmt::Display for ConvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConvShape { size, channels, kernels, window: [height, width], stride, pad, groups } = self;
        let valid = if *pad == [height / 2, width / 2] { "" } else { " without padding" };
        write!(f, "{size}x{size}x{channels} {height}x{width}/{stride} to {kernels}{valid}")?;
        if *groups > 1 { write!(f, " in {groups} groups") } else { Ok(()) }
    }
}

/// One convolution with requantisation, unsigned in and out.
pub fn convolution(shape: ConvShape, bits: u32) -> Result<Graph, IrError> {
    let mut builder = Builder::new(shape, bits)?;
    let sum = builder.conv(builder.input, 1)?;
    let out = builder.activate(sum)?;
    builder.graph.output("y", out);
    Ok(builder.graph)
}

/// conv, relu, conv, plus the input, relu.
pub fn residual_block(shape: ConvShape, bits: u32) -> Result<Graph, IrError> {
    let mut builder = Builder::new(shape, bits)?;
    let first = builder.conv(builder.input, 1)?;
    let hidden = builder.activate(first)?;
    let second = builder.conv(hidden, 2)?;
    let (branch, identity) = (builder.widen(second)?, builder.widen(builder.input)?);
    let sum = builder.graph.add("add", Add {}, &[branch, identity])?;
    let out = builder.graph.add("relu", Clamp { lo: 0, hi: (1 << bits) - 1, elem: builder.elem() }, &[sum])?;
    builder.graph.output("y", out);
    Ok(builder.graph)
}

/// Weights as trained ones are spread, few of them large: means of three evenly spread ones, within `top`.
fn bell_shaped(ty: &TensorType, seed: u64, top: i64) -> Result<Tensor, TypeError> {
    let even = |i: u64| text::seeded(ty, 3 * seed + i, Range::new(-top, top)).map_err(TypeError::new)?.ints();
    let [a, b, c] = [even(0)?, even(1)?, even(2)?];
    let mean = a.iter().zip(&b).zip(&c).map(|((a, b), c)| (a + b + c).div_euclid(3));
    Tensor::from_ints(ty.elem, ty.shape.clone(), mean)
}

struct Builder {
    graph: Graph,
    shape: ConvShape,
    bits: u32,
    input: ValueId,
}

impl Builder {
    fn new(shape: ConvShape, bits: u32) -> Result<Builder, IrError> {
        let mut graph = Graph::new();
        let elem = if bits <= 4 { Elem::U4 } else { Elem::U8 };
        let input = graph.input("x", TensorType::new(elem, [1, shape.size, shape.size, shape.channels]))?;
        Ok(Builder { graph, shape, bits, input })
    }

    fn elem(&self) -> Elem {
        if self.bits <= 4 { Elem::U4 } else { Elem::U8 }
    }

    fn constant(&mut self, tensor: Result<Tensor, TypeError>) -> Result<ValueId, IrError> {
        let tensor = tensor.map_err(|source| IrError::Type { node: "constant".into(), op: "const".into(), source })?;
        Ok(self.graph.constant(tensor))
    }

    fn conv(&mut self, src: ValueId, seed: u64) -> Result<ValueId, IrError> {
        let ConvShape { channels, kernels, window, stride, pad, groups, .. } = self.shape;
        let top = (1i64 << (self.bits - 1)) - 1;
        let elem = if self.bits <= 4 { Elem::I4 } else { Elem::I8 };
        let wei = TensorType::new(elem, [kernels, window[0], window[1], channels / groups]);
        let wei = self.constant(bell_shaped(&wei, seed, top))?;
        let bias = TensorType::new(Elem::I32, [kernels]);
        let bias = self.constant(text::seeded(&bias, seed, Range::new(-1000, 1000)).map_err(TypeError::new))?;
        let [y, x] = pad;
        let conv = Conv { stride: [stride; 2], pad: [y, x, y, x], groups, ..Conv::unit() };
        self.graph.add(format!("conv{seed}"), conv, &[src, wei, bias])
    }

    /// Requantises accumulators to the activation's range, one factor per channel.
    fn activate(&mut self, sum: ValueId) -> Result<ValueId, IrError> {
        let range = Range::new(0, (1 << self.bits) - 1);
        let elem = self.elem();
        self.requant(
            sum,
            Requant::to_range(range, elem),
            1.0 / ((self.shape.channels / self.shape.groups) as f64).sqrt() / 64.0,
        )
    }

    /// Requantises one branch of an addition to i32.
    fn widen(&mut self, value: ValueId) -> Result<ValueId, IrError> {
        let wide = Range::new(-(1 << 30), (1 << 30) - 1);
        self.requant(value, Requant::to_range(wide, Elem::I32), 0.37)
    }

    fn requant(&mut self, value: ValueId, requant: Requant, scale: f64) -> Result<ValueId, IrError> {
        let count = self.graph.ty(value).shape[3];
        let dyadics: Vec<Dyadic> =
            (0..count).filter_map(|c| Dyadic::from_real(scale * (1.0 + c as f64 / count as f64))).collect();
        let mult = self.constant(Tensor::from_ints(Elem::I32, [count], dyadics.iter().map(|d| d.mult.into())))?;
        let shift = self.constant(Tensor::from_ints(Elem::U8, [count], dyadics.iter().map(|d| d.shift.into())))?;
        self.graph.add("requant", requant, &[value, mult, shift])
    }
}
