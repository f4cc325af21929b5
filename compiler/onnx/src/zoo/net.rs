//! Layers of a random network, each written to ONNX while the moments of its output are carried along.
//!
//! Every [`Tensor`] knows the mean and variance of each of its channels over random inputs, taking channels and positions
//! as independent. A convolution of weights `w` has mean `sum w m` and variance `sum w^2 v`; ReLU and Clip use the
//! rectified-Gaussian moments. Batch normalisation divides by the root of the second moment that is left after its
//! running mean, so that a normalised channel has second moment `gamma^2 + beta^2` at any depth.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tract_onnx::pb::{AttributeProto, TensorProto, tensor_proto::DataType};

use super::{ZooError, ZooOptions};
use crate::pb_build::{ModelBuilder, f32_tensor, float, int, ints, tensor};

/// The part of a channel's mean that batch normalisation takes as its running mean. With all of it, what distinguishes two
/// inputs, and equally every fault of the modelled moments, grows by 1.5 a layer relative to the rest (0.5 / 0.34, the
/// second moment of a rectified Gaussian over its variance), and a network as deep as InceptionV3 explodes; with none of
/// it, all inputs end up with nearly the same output.
const REMOVED: f64 = 0.25;

/// A float activation of one image: its ONNX name, geometry and per-channel moments.
#[derive(Clone)]
pub struct Tensor {
    name: String,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    mean: Vec<f64>,
    var: Vec<f64>,
}

/// Geometry of a convolution or pooling window.
#[derive(Clone, Copy)]
pub struct Window {
    kernel: [usize; 2],
    stride: usize,
    pad: [usize; 2],
    ceil: bool,
}

impl Window {
    /// A square window with the same padding on all sides.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Window { kernel: [kernel; 2], stride, pad: [pad; 2], ceil: false }
    }

    /// A rectangular window of stride one, padded to keep the size.
    pub fn same(height: usize, width: usize) -> Self {
        Window { kernel: [height, width], stride: 1, pad: [height / 2, width / 2], ceil: false }
    }

    /// The same window with the output size rounded up instead of down.
    pub fn ceil(self) -> Self {
        Window { ceil: true, ..self }
    }

    /// Output length along `axis` for an input length, `None` where no window fits. With rounding up, a last window
    /// that would start in the trailing padding is dropped, as ONNX and torch both define.
    fn output_len(&self, axis: usize, len: usize) -> Option<usize> {
        let span = (len + 2 * self.pad[axis]).checked_sub(self.kernel[axis])?;
        let out = if self.ceil { span.div_ceil(self.stride) } else { span / self.stride } + 1;
        let starts_in_padding = self.ceil && (out - 1) * self.stride >= len + self.pad[axis];
        Some(if starts_in_padding { out - 1 } else { out })
    }

    fn attributes(&self) -> Vec<AttributeProto> {
        let [kh, kw] = self.kernel.map(|v| v as i64);
        let [ph, pw] = self.pad.map(|v| v as i64);
        let s = self.stride as i64;
        vec![ints("kernel_shape", &[kh, kw]), ints("pads", &[ph, pw, ph, pw]), ints("strides", &[s, s])]
    }
}

/// A network being written.
pub struct Net {
    model: ModelBuilder,
    rng: ChaCha8Rng,
    image_size: usize,
    classes: usize,
    width: f64,
}

impl Net {
    pub fn new(name: &str, image_size: usize, options: &ZooOptions) -> Self {
        Net {
            model: ModelBuilder::new(name, 17),
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            image_size,
            classes: options.classes,
            width: options.width,
        }
    }

    /// Declares the network's input: three channels of zero mean and unit variance.
    pub fn image(&mut self) -> Tensor {
        let s = self.image_size;
        self.model.input("input", DataType::Float, &[1, 3, s, s]);
        Tensor { name: "input".into(), channels: 3, height: s, width: s, mean: vec![0.0; 3], var: vec![1.0; 3] }
    }

    /// Declares the output and encodes the model.
    pub fn finish(mut self, logits: &Tensor) -> Vec<u8> {
        self.model.node("output", "Identity", &[&logits.name], "output", vec![]);
        self.model.output("output", DataType::Float, &[1, logits.channels]);
        self.model.finish()
    }

    /// Outputs of the classifier.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Height and width of the input.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// A published channel count times the width factor.
    pub fn scaled(&self, channels: usize) -> usize {
        if self.width == 1.0 {
            return channels;
        }
        let fours = (channels as f64 * self.width / 4.0).round().max(1.0);
        4 * fours as usize
    }

    /// MobileNet's rounding of a scaled channel count: to a multiple of 8, never below nine tenths of the exact value.
    pub fn scaled_by_8(&self, channels: usize) -> usize {
        let exact = channels as f64 * self.width;
        let rounded = 8.0 * ((exact + 4.0) / 8.0).floor().max(1.0);
        (if rounded < 0.9 * exact { rounded + 8.0 } else { rounded }) as usize
    }

    /// Convolution with He-style weights, `groups` dividing both channel counts. `bias` adds one of standard deviation 0.1.
    pub fn conv(
        &mut self,
        name: &str,
        x: &Tensor,
        channels: usize,
        window: Window,
        groups: usize,
        bias: bool,
    ) -> Result<Tensor, ZooError> {
        let mut y = self.windowed(name, x, window)?;
        let (group_in, group_out) = (x.channels / groups, channels / groups);
        let taps = window.kernel[0] * window.kernel[1];
        let fan_in = group_in * taps;
        let weights = self.normals(channels * fan_in, (2.0 / fan_in as f64).sqrt());
        let biases = if bias { self.normals(channels, 0.1) } else { vec![0.0; channels] };
        for k in 0..channels {
            let first = k / group_out * group_in;
            let row = &weights[k * fan_in..(k + 1) * fan_in];
            let (mut mean, mut var) = (f64::from(biases[k]), 0.0);
            for (c, taps) in row.chunks_exact(taps).enumerate() {
                let (m, v) = (x.mean[first + c], x.var[first + c]);
                for w in taps.iter().map(|&w| f64::from(w)) {
                    mean += w * m;
                    var += w * w * v;
                }
            }
            y.mean.push(mean);
            y.var.push(var);
        }
        y.channels = channels;
        let [kh, kw] = window.kernel;
        let mut inputs = vec![x.name.clone(), self.f32s(name, "weight", &[channels, group_in, kh, kw], &weights)];
        if bias {
            inputs.push(self.f32s(name, "bias", &[channels], &biases));
        }
        let mut attributes = window.attributes();
        attributes.push(ints("dilations", &[1, 1]));
        attributes.push(int("group", groups as i64));
        self.node(name, "Conv", &inputs, &y.name, attributes);
        Ok(y)
    }

    /// Batch normalisation of a convolution's output; gamma is near `scale`, beta near zero.
    pub fn batch_norm(&mut self, name: &str, x: &Tensor, epsilon: f32, scale: f64) -> Tensor {
        let n = x.channels;
        let gamma: Vec<f32> = self.normals(n, 0.1).iter().map(|g| ((1.0 + f64::from(*g)) * scale) as f32).collect();
        let beta = self.normals(n, 0.1);
        let rest: Vec<f64> = x.mean.iter().map(|m| (1.0 - REMOVED) * m).collect();
        let power: Vec<f64> = rest.iter().zip(&x.var).map(|(r, v)| r * r + v).collect();
        let mean: Vec<f32> = x.mean.iter().map(|m| (REMOVED * m) as f32).collect();
        let var: Vec<f32> = power.iter().map(|&p| p as f32).collect();
        let mut inputs = vec![x.name.clone()];
        for (part, values) in [("weight", &gamma), ("bias", &beta), ("running_mean", &mean), ("running_var", &var)] {
            inputs.push(self.f32s(name, part, &[n], values));
        }
        let y = Tensor {
            name: output_of(name),
            mean: (0..n).map(|c| f64::from(gamma[c]) * rest[c] / power[c].sqrt() + f64::from(beta[c])).collect(),
            var: (0..n).map(|c| f64::from(gamma[c]).powi(2) * x.var[c] / power[c]).collect(),
            ..*x
        };
        self.node(
            name,
            "BatchNormalization",
            &inputs,
            &y.name,
            vec![float("epsilon", epsilon), float("momentum", 0.9)],
        );
        y
    }

    /// max(x, 0).
    pub fn relu(&mut self, name: &str, x: &Tensor) -> Tensor {
        let y = rectified(name, x);
        self.node(name, "Relu", std::slice::from_ref(&x.name), &y.name, vec![]);
        y
    }

    /// min(max(x, 0), 6), with the bounds as Constant nodes. Moments ignore the upper bound, six deviations away.
    pub fn relu6(&mut self, name: &str, x: &Tensor) -> Tensor {
        let y = rectified(name, x);
        let mut inputs = vec![x.name.clone()];
        for (part, value) in [("min", 0.0), ("max", 6.0)] {
            let node = format!("{name}.{part}");
            self.node(&node, "Constant", &[], &output_of(&node), vec![tensor("value", f32_tensor("", &[], &[value]))]);
            inputs.push(output_of(&node));
        }
        self.node(name, "Clip", &inputs, &y.name, vec![]);
        y
    }

    /// Maximum over the window. The moments are upper estimates for rectified, spatially correlated values.
    pub fn max_pool(&mut self, name: &str, x: &Tensor, window: Window) -> Result<Tensor, ZooError> {
        let mut y = self.windowed(name, x, window)?;
        y.mean = x.mean.iter().zip(&x.var).map(|(m, v)| m + 0.8 * v.sqrt()).collect();
        y.var = x.var.clone();
        let mut attributes = window.attributes();
        attributes.push(int("ceil_mode", i64::from(window.ceil)));
        self.node(name, "MaxPool", std::slice::from_ref(&x.name), &y.name, attributes);
        Ok(y)
    }

    /// Mean over the window, padding counted as zeros. Neighbours are taken as fully correlated, an upper estimate of the variance.
    pub fn avg_pool(&mut self, name: &str, x: &Tensor, window: Window) -> Result<Tensor, ZooError> {
        let mut y = self.windowed(name, x, window)?;
        y.mean = x.mean.clone();
        y.var = x.var.clone();
        let mut attributes = window.attributes();
        attributes.push(int("count_include_pad", 1));
        self.node(name, "AveragePool", std::slice::from_ref(&x.name), &y.name, attributes);
        Ok(y)
    }

    /// Mean over the whole image, `[1, C, 1, 1]`.
    pub fn global_avg_pool(&mut self, name: &str, x: &Tensor) -> Tensor {
        let pixels = (x.height * x.width) as f64;
        let y = Tensor {
            name: output_of(name),
            height: 1,
            width: 1,
            mean: x.mean.clone(),
            var: x.var.iter().map(|v| v / pixels.sqrt()).collect(),
            ..*x
        };
        self.node(name, "GlobalAveragePool", std::slice::from_ref(&x.name), &y.name, vec![]);
        y
    }

    /// `[1, C, H, W]` to `[1, C*H*W]`.
    pub fn flatten(&mut self, name: &str, x: &Tensor) -> Tensor {
        let pixels = x.height * x.width;
        let spread = |v: &[f64]| v.iter().flat_map(|&e| std::iter::repeat_n(e, pixels)).collect();
        let y = Tensor {
            name: output_of(name),
            channels: x.channels * pixels,
            height: 1,
            width: 1,
            mean: spread(&x.mean),
            var: spread(&x.var),
        };
        self.node(name, "Flatten", std::slice::from_ref(&x.name), &y.name, vec![int("axis", 1)]);
        y
    }

    /// Fully connected layer with He-style weights stored `[out, in]`, as torch exports them.
    pub fn gemm(&mut self, name: &str, x: &Tensor, outputs: usize) -> Tensor {
        let inputs = x.channels;
        let weights = self.normals(outputs * inputs, (2.0 / inputs as f64).sqrt());
        let biases = self.normals(outputs, 0.1);
        let (mean, var) = weights
            .chunks_exact(inputs)
            .zip(&biases)
            .map(|(row, &b)| {
                let terms = row.iter().map(|&w| f64::from(w)).zip(x.mean.iter().zip(&x.var));
                terms.fold((f64::from(b), 0.0), |(m, v), (w, (xm, xv))| (m + w * xm, v + w * w * xv))
            })
            .unzip();
        let y = Tensor { name: output_of(name), channels: outputs, height: 1, width: 1, mean, var };
        let weight = self.f32s(name, "weight", &[outputs, inputs], &weights);
        let bias = self.f32s(name, "bias", &[outputs], &biases);
        let attributes = vec![float("alpha", 1.0), float("beta", 1.0), int("transB", 1)];
        self.node(name, "Gemm", &[x.name.clone(), weight, bias], &y.name, attributes);
        y
    }

    /// Elementwise sum of two tensors of one shape.
    pub fn add(&mut self, name: &str, a: &Tensor, b: &Tensor) -> Tensor {
        let sum = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p + q).collect();
        let y = Tensor { name: output_of(name), mean: sum(&a.mean, &b.mean), var: sum(&a.var, &b.var), ..*a };
        self.node(name, "Add", &[a.name.clone(), b.name.clone()], &y.name, vec![]);
        y
    }

    /// Concatenation over channels.
    pub fn concat(&mut self, name: &str, parts: &[&Tensor]) -> Tensor {
        let y = Tensor {
            name: output_of(name),
            channels: parts.iter().map(|p| p.channels).sum(),
            mean: parts.iter().flat_map(|p| p.mean.iter().copied()).collect(),
            var: parts.iter().flat_map(|p| p.var.iter().copied()).collect(),
            ..*parts[0]
        };
        let inputs: Vec<String> = parts.iter().map(|p| p.name.clone()).collect();
        self.node(name, "Concat", &inputs, &y.name, vec![int("axis", 1)]);
        y
    }

    /// The output of a window over `x` with moments still to be filled in.
    fn windowed(&self, name: &str, x: &Tensor, window: Window) -> Result<Tensor, ZooError> {
        let sizes = (window.output_len(0, x.height), window.output_len(1, x.width));
        let (Some(height), Some(width)) = sizes else {
            return Err(ZooError::ImageTooSmall { image_size: self.image_size, node: name.into() });
        };
        Ok(Tensor { name: output_of(name), channels: x.channels, height, width, mean: vec![], var: vec![] })
    }

    fn node(&mut self, name: &str, op: &str, inputs: &[String], output: &str, attributes: Vec<AttributeProto>) {
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.model.node(name, op, &inputs, output, attributes);
    }

    fn f32s(&mut self, node: &str, part: &str, dims: &[usize], values: &[f32]) -> String {
        let t: TensorProto = f32_tensor(&format!("{node}.{part}"), dims, values);
        self.model.constant(t)
    }

    /// `n` values of zero mean and the given deviation. Each is a sum of four 16-bit uniforms: bell-shaped, bounded at
    /// 3.5 deviations, and computed without any library function whose last bit depends on the machine.
    fn normals(&mut self, n: usize, deviation: f64) -> Vec<f32> {
        // Four uniforms on [0, 2^16) have variance 4 * (2^32 - 1) / 12.
        let unit = ((4.0 * (65536.0 * 65536.0 - 1.0)) / 12.0f64).sqrt();
        (0..n)
            .map(|_| {
                let bits = self.rng.next_u64();
                let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
                ((sum as f64 - 131_070.0) / unit * deviation) as f32
            })
            .collect()
    }
}

/// The tensor that the node `name` writes.
fn output_of(name: &str) -> String {
    format!("{name}.out")
}

/// Moments of max(x, 0) for Gaussian x: with r = m/s, E = m F(r) + s f(r), E2 = (m^2 + s^2) F(r) + m s f(r).
fn rectified(name: &str, x: &Tensor) -> Tensor {
    let (mean, var) = x
        .mean
        .iter()
        .zip(&x.var)
        .map(|(&m, &v)| {
            let s = v.sqrt().max(1e-9);
            let r = m / s;
            let density = (-0.5 * r * r).exp() / (2.0 * std::f64::consts::PI).sqrt();
            // Logistic approximation of the normal distribution function, within 2e-4 (Page, 1977).
            let below = 1.0 / (1.0 + (-1.5976 * r - 0.070_56 * r * r * r).exp());
            let first = m * below + s * density;
            let second = (m * m + v) * below + m * s * density;
            (first, (second - first * first).max(0.0))
        })
        .unzip();
    Tensor { name: output_of(name), mean, var, ..*x }
}
