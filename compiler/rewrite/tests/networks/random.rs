//! Random integer networks.

use hawqc_ir::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A network of about `steps` operators; every value that nothing reads is an output.
pub fn random_network(seed: u64, steps: usize) -> Graph {
    let mut network = Network { rng: ChaCha8Rng::seed_from_u64(seed), graph: Graph::new(), values: Vec::new() };
    network.inputs();
    for step in 0..steps {
        // What does not fit together is left out.
        if let Some(value) = network.step(step) {
            network.values.push(value);
        }
    }
    network.finish()
}

struct Network {
    rng: ChaCha8Rng,
    graph: Graph,
    values: Vec<ValueId>,
}

impl Network {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())].clone()
    }

    fn size(&mut self) -> usize {
        self.rng.random_range(1..5)
    }

    fn constant(&mut self, elem: Elem, shape: &[usize], lo: i64, hi: i64) -> ValueId {
        let tensor = text::seeded(&TensorType::new(elem, shape), self.rng.random(), Range::new(lo, hi)).unwrap();
        self.graph.constant(tensor)
    }

    fn inputs(&mut self) {
        let shape = [1, self.size(), self.size(), self.size()];
        for elem in [Elem::U8, Elem::I8, Elem::I16] {
            let name = format!("x_{elem}");
            let id = self.graph.input(name, TensorType::new(elem, shape)).unwrap();
            self.values.push(id);
        }
        let image = TensorType::new(Elem::F32, [1, shape[3], shape[1], shape[2]]);
        let image = self.graph.input("image", image).unwrap();
        let image = self.graph.add("image.t", Transpose::to_nhwc(), &[image]).unwrap();
        let scale = self.graph.constant(Tensor::from_f32([1], vec![0.05]).unwrap());
        let zero = self.constant(Elem::U8, &[1], 100, 100);
        let quantize = Quantize { lo: 0, hi: 255, axis: 0, elem: Elem::U8 };
        let quantized = self.graph.add("image.q", quantize, &[image, scale, zero]).unwrap();
        self.values.push(quantized);
    }

    /// Mostly one of the latest values, so that chains and diamonds appear.
    fn any(&mut self) -> ValueId {
        let last = self.values.len() - 1;
        let back = self.rng.random_range(0..4).min(last);
        if self.rng.random_bool(0.8) { self.values[last - back] } else { self.values[self.rng.random_range(0..=last)] }
    }

    fn step(&mut self, step: usize) -> Option<ValueId> {
        let src = self.any();
        let ty = self.graph.ty(src).clone();
        let range = ty.range?;
        let name = format!("n{step}");
        let (op, args): (Op, Vec<ValueId>) = match self.rng.random_range(0..20) {
            0..4 => return self.conv(name, src),
            4..9 => return self.requant(name, src),
            9 | 10 => {
                let lo = self.pick(&[0, range.lo, range.lo / 2]);
                let hi = self.pick(&[i64::from(i32::MAX), range.hi, range.hi / 2]);
                let elem = self.pick(&[ty.elem, Elem::I32, Elem::I16]);
                (Clamp { lo: lo.min(hi), hi: lo.max(hi), elem }.into(), vec![src])
            }
            11 | 12 => {
                let same = |&&id: &&ValueId| self.graph.ty(id).shape == ty.shape;
                let others: Vec<ValueId> = self.values.iter().filter(same).copied().collect();
                (Add {}.into(), vec![src, self.pick(&others)])
            }
            13 | 14 => {
                let (kernel, stride) = ([self.size(), self.size()], self.pick(&[[1, 1], [2, 2]]));
                let pad = [kernel[0] / 2, kernel[1] / 2, 0, 0];
                (MaxPool { kernel, stride, pad, dilation: [1, 1] }.into(), vec![src])
            }
            15 => {
                let kernel = [self.size(), self.size()];
                (SumPool { kernel, stride: [1, 1], pad: [0; 4], zero: self.pick(&[0, 7]) }.into(), vec![src])
            }
            16 => {
                let value = self.pick(&[0.0, 3.0, range.lo.max(-99) as f32]);
                (Pad { pad: [1, 0, self.pick(&[0, 2]), 1], value: Real::new(value) }.into(), vec![src])
            }
            17 => {
                let axis = self.pick(&[1, 3, 3]);
                let others = [src, self.any(), self.any()];
                (Concat { axis }.into(), others[..self.pick(&[2, 3])].to_vec())
            }
            18 => {
                let last = *ty.shape.last()?;
                let shape = self.pick(&[vec![1, 1, ty.elements() / last, last], vec![1, 1, 1, ty.elements()]]);
                (Reshape { shape }.into(), vec![src])
            }
            _ => {
                let perm = self.pick(&[vec![0, 3, 1, 2], vec![0, 2, 3, 1], vec![0, 2, 1, 3]]);
                (Transpose { perm }.into(), vec![src])
            }
        };
        self.add(name, op, &args)
    }

    fn add(&mut self, name: String, op: impl Into<Op>, args: &[ValueId]) -> Option<ValueId> {
        let op = op.into();
        let types: Vec<&TensorType> = args.iter().map(|&a| self.graph.ty(a)).collect();
        let ty = op.infer(&types).ok()?;
        (ty.elements() <= 512).then(|| self.graph.add(name, op, args).unwrap())
    }

    fn conv(&mut self, name: String, src: ValueId) -> Option<ValueId> {
        let channels = *self.graph.ty(src).shape.last()?;
        let groups = self.pick(&[1, 1, channels]);
        let filters = if groups == 1 { self.size() } else { channels };
        let kernel = self.pick(&[1, 3]);
        let pad_value = self.pick(&[0, 0, 3]);
        let wei = self.constant(Elem::I8, &[filters, kernel, kernel, channels / groups], -127, 127);
        let bias = self.constant(Elem::I32, &[filters], -5000, 5000);
        let conv =
            Conv { stride: self.pick(&[[1, 1], [2, 2]]), pad: [kernel / 2; 4], groups, pad_value, ..Conv::unit() };
        let args = [src, wei, bias];
        let count = self.pick(&[2, 3]);
        self.add(name, conv, &args[..count])
    }

    fn requant(&mut self, name: String, src: ValueId) -> Option<ValueId> {
        let ty = self.graph.ty(src).clone();
        let channels = *ty.shape.last()?;
        let elem = self.pick(&[Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16, Elem::I32]);
        let full = elem.range()?;
        let range = if elem == Elem::I32 { Range::new(-32768, 32767) } else { full };
        let magnitude = ty.range?.magnitude().max(1) as f64;
        let unit = self.rng.random_range(0..6) == 0;
        let shape = vec![self.pick(&[1, channels])];
        let scales: Vec<Dyadic> = (0..shape[0])
            .map(|_| {
                let scale = range.hi as f64 / magnitude * self.rng.random_range(0.3..3.0);
                if unit { Dyadic::ONE } else { Dyadic::from_real(scale).unwrap_or(Dyadic::ONE) }
            })
            .collect();
        let mult = Tensor::from_ints(Elem::I32, shape.clone(), scales.iter().map(|d| d.mult.into())).ok()?;
        let shift = Tensor::from_ints(Elem::U8, shape, scales.iter().map(|d| d.shift.into())).ok()?;
        let (mult, shift) = (self.graph.constant(mult), self.graph.constant(shift));
        let (src_zero, dst_zero) = (self.pick(&[0, 0, 5]), self.pick(&[0, 0, 7]));
        let round = self.pick(&Rounding::ALL);
        let requant = Requant { src_zero, dst_zero, round, ..Requant::to_range(range, elem) };
        self.add(name, requant, &[src, mult, shift])
    }

    fn finish(mut self) -> Graph {
        let unread: Vec<ValueId> = self.values.iter().copied().filter(|&v| self.graph.users(v).is_empty()).collect();
        for (i, id) in unread.into_iter().enumerate() {
            let mut id = id;
            if self.rng.random_bool(0.3) {
                let scale = self.graph.constant(Tensor::from_f32([1], vec![0.125]).unwrap());
                let zero = self.constant(Elem::I8, &[1], 0, 0);
                id = self.graph.add(format!("d{i}"), Dequantize { axis: 0 }, &[id, scale, zero]).unwrap();
            }
            self.graph.output(format!("y{i}"), id);
        }
        self.graph
    }
}
