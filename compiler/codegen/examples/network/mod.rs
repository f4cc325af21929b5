//! A network of ResNet-50's shape, as fused kernels with seeded weights.

use std::error::Error;
use std::sync::Arc;

use hawqc_ir::text::seeded;
use hawqc_ir::{
    Add, Arg, Clamp, Conv, Elem, Graph, KernelSpec, MaxPool, Op, Range, Requant, SumPool, TensorType, ValueId,
};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Network {
    graph: Graph,
    act: Elem,
    wei: Elem,
    seed: u64,
}

/// The graph for activations and weights of these types.
pub fn resnet50(act: Elem, wei: Elem) -> Result<Graph> {
    Network::build(act, wei)
}

/// What follows a convolution.
enum End {
    /// To an activation.
    Activation,
    /// To the residual stream.
    Stream,
    /// Added to the residual stream.
    Sum(ValueId),
}

impl Network {
    fn constant(&mut self, elem: Elem, shape: &[usize], range: Range) -> Result<ValueId> {
        self.seed += 1;
        Ok(self.graph.constant(seeded(&TensorType::new(elem, shape), self.seed, range)?))
    }

    fn kernel(&mut self, name: &str, args: &[ValueId], body: Vec<(Op, Vec<Arg>)>) -> Result<ValueId> {
        let types = args.iter().map(|&a| self.graph.ty(a).clone()).collect();
        Ok(self.graph.add(name, Op::Kernel(Arc::new(KernelSpec::new(types, body)?)), args)?)
    }

    fn dyadic(&mut self, channels: usize, shift: i64) -> Result<[ValueId; 2]> {
        let mult = self.constant(Elem::I32, &[channels], Range::new(1 << 30, (1 << 31) - 1))?;
        let shift =
            self.constant(Elem::U8, &[channels], Range::new(shift, if channels > 1 { shift + 2 } else { shift }))?;
        Ok([mult, shift])
    }

    fn conv(&mut self, name: &str, src: ValueId, k: usize, size: usize, stride: usize, end: End) -> Result<ValueId> {
        let c = self.graph.ty(src).shape[3];
        let wei = if c == 3 { Elem::I8 } else { self.wei };
        let depth = (size * size * c) as u32;
        let range = wei.int_range();
        let wei = self.constant(wei, &[k, size, size, c], range)?;
        let bias = self.constant(Elem::I32, &[k], Range::new(-2000, 2000))?;
        let bits = 2 * range.hi.ilog2() as i64 + i64::from(depth.ilog2()) / 2;
        let [mult, shift] = self.dyadic(k, 31 + bits)?;
        let conv = Conv { stride: [stride; 2], pad: [size / 2; 4], ..Conv::unit() };
        let mut body: Vec<(Op, Vec<Arg>)> = vec![(conv.into(), (0..3).map(Arg::Operand).collect())];
        let mut args = vec![src, wei, bias, mult, shift];
        let scaled = vec![Arg::Step(0), Arg::Operand(3), Arg::Operand(4)];
        match end {
            End::Activation => {
                let range = self.act.int_range();
                body.push((Requant::to_range(range, self.act).into(), scaled));
            }
            End::Stream => body.push((Requant::to_range(Elem::I16.int_range(), Elem::I16).into(), scaled)),
            End::Sum(residual) => {
                let [mult, shift] = self.dyadic(1, 31)?;
                args.extend([residual, mult, shift]);
                let wide = Requant::to_range(Range::new(-(1 << 29), 1 << 29), Elem::I32);
                body.push((wide.clone().into(), scaled));
                body.push((wide.into(), vec![Arg::Operand(5), Arg::Operand(6), Arg::Operand(7)]));
                body.push((Add {}.into(), vec![Arg::Step(1), Arg::Step(2)]));
                body.push((Clamp { lo: 0, hi: 32767, elem: Elem::I16 }.into(), vec![Arg::Step(3)]));
            }
        }
        self.kernel(name, &args, body)
    }

    /// The residual stream as an activation.
    fn activation(&mut self, name: &str, src: ValueId) -> Result<ValueId> {
        let [mult, shift] = self.dyadic(1, 32)?;
        let requant = Requant::to_range(self.act.int_range(), self.act);
        self.kernel(name, &[src, mult, shift], vec![(requant.into(), (0..3).map(Arg::Operand).collect())])
    }

    fn build(act: Elem, wei: Elem) -> Result<Graph> {
        let mut net = Network { graph: Graph::new(), act, wei, seed: 0 };
        let input = net.graph.input("image", TensorType::new(Elem::U8, [1, 224, 224, 3]))?;
        let stem = net.conv("stem", input, 64, 7, 2, End::Stream)?;
        let pool = MaxPool { kernel: [3, 3], stride: [2, 2], pad: [1; 4], dilation: [1, 1] };
        let mut stream = net.kernel("pool", &[stem], vec![(pool.into(), vec![Arg::Operand(0)])])?;
        for (stage, (blocks, width)) in [(3, 64), (4, 128), (6, 256), (3, 512)].into_iter().enumerate() {
            for block in 0..blocks {
                let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
                let stride = if block == 0 && stage > 0 { 2 } else { 1 };
                let src = net.activation(&name("quant"), stream)?;
                if block == 0 {
                    stream = net.conv(&name("shortcut"), src, 4 * width, 1, stride, End::Stream)?;
                }
                let a = net.conv(&name("conv1"), src, width, 1, 1, End::Activation)?;
                let b = net.conv(&name("conv2"), a, width, 3, stride, End::Activation)?;
                stream = net.conv(&name("conv3"), b, 4 * width, 1, 1, End::Sum(stream))?;
            }
        }
        let pool = SumPool { kernel: [7, 7], stride: [1, 1], pad: [0; 4], zero: 0 };
        let [mult, shift] = net.dyadic(1, 37)?;
        let requant = Requant::to_range(act.int_range(), act);
        let body = vec![
            (pool.into(), vec![Arg::Operand(0)]),
            (requant.into(), vec![Arg::Step(0), Arg::Operand(1), Arg::Operand(2)]),
        ];
        let mean = net.kernel("mean", &[stream, mult, shift], body)?;
        let wei = net.constant(Elem::I8, &[1000, 1, 1, 2048], Elem::I8.int_range())?;
        let body = vec![(Conv::unit().into(), vec![Arg::Operand(0), Arg::Operand(1)])];
        let logits = net.kernel("fc", &[mean, wei], body)?;
        net.graph.output("logits", logits);
        Ok(net.graph)
    }
}

/// The range of an integer element.
pub trait IntRange {
    fn int_range(self) -> Range;
}

impl IntRange for Elem {
    fn int_range(self) -> Range {
        self.range().unwrap_or(Range::new(0, 0))
    }
}
