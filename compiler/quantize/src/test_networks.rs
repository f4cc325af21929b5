//! Small float networks for the tests of this crate.

use hawqc_ir::{
    Add, AvgPool, ClampReal, Concat, Conv, Elem, Graph, MaxPool, Reshape, Tensor, TensorType, Transpose, ValueId,
};

/// `n` reproducible values in [-1, 1).
pub fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_f32(shape, random(seed, shape.iter().product())).unwrap()
}

/// A graph under construction, with a seed that advances.
pub struct Net {
    pub graph: Graph,
    pub seed: u64,
}

impl Net {
    pub fn new(seed: u64) -> Net {
        Net { graph: Graph::new(), seed }
    }

    pub fn input(&mut self, shape: &[usize]) -> ValueId {
        self.graph.input("image", TensorType::new(Elem::F32, shape)).unwrap()
    }

    pub fn constant(&mut self, shape: &[usize], scale: f32) -> ValueId {
        self.seed += 1;
        let values = random(self.seed, shape.iter().product()).into_iter().map(|v| v * scale).collect();
        self.graph.constant(Tensor::from_f32(shape, values).unwrap())
    }

    pub fn conv(&mut self, name: &str, src: ValueId, k: usize, size: usize, conv: Conv) -> ValueId {
        let row = self.graph.ty(src).shape[3] / conv.groups;
        let wei = self.constant(&[k, size, size, row], 1.5 / ((size * size * row) as f32).sqrt());
        let bias = self.constant(&[k], 0.3);
        self.graph.add(name, conv, &[src, wei, bias]).unwrap()
    }

    /// Batch normalisation as it is imported.
    pub fn norm(&mut self, name: &str, src: ValueId) -> ValueId {
        let channels = self.graph.ty(src).shape[3];
        self.conv(name, src, channels, 1, Conv { groups: channels, ..Conv::unit() })
    }

    pub fn relu(&mut self, name: &str, src: ValueId) -> ValueId {
        self.graph.add(name, ClampReal::relu(), &[src]).unwrap()
    }

    pub fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> ValueId {
        self.graph.add(name, Add {}, &[a, b]).unwrap()
    }

    pub fn output(&mut self, value: ValueId) {
        self.graph.output("logits", value);
    }
}

pub fn padded(stride: usize) -> Conv {
    Conv { stride: [stride; 2], pad: [1; 4], ..Conv::unit() }
}

/// What importing a small residual classifier gives: NCHW in, a max-pool stem, an identity block, a
/// block with a strided shortcut, a concatenation, pooling and a dense layer.
pub fn residual_network(seed: u64) -> Graph {
    let mut net = Net::new(seed);
    let image = net.input(&[1, 3, 12, 12]);
    let x = net.graph.add("image", Transpose::to_nhwc(), &[image]).unwrap();
    let x = net.conv("conv1", x, 8, 3, padded(1));
    let x = net.norm("bn1", x);
    let x = net.relu("relu1", x);
    let pool = MaxPool { kernel: [3; 2], stride: [2; 2], pad: [1; 4], dilation: [1; 2] };
    let x = net.graph.add("pool1", pool, &[x]).unwrap();
    let y = net.conv("block1.conv1", x, 8, 3, padded(1));
    let y = net.norm("block1.bn1", y);
    let y = net.relu("block1.relu1", y);
    let y = net.conv("block1.conv2", y, 8, 3, padded(1));
    let y = net.norm("block1.bn2", y);
    let y = net.add("block1.add", y, x);
    let x = net.relu("block1.relu2", y);
    let y = net.conv("block2.conv1", x, 12, 3, padded(2));
    let y = net.relu("block2.relu1", y);
    let y = net.conv("block2.conv2", y, 12, 3, padded(1));
    let short = net.conv("block2.short", x, 12, 1, Conv { stride: [2; 2], ..Conv::unit() });
    let y = net.add("block2.add", y, short);
    let x = net.relu("block2.relu2", y);
    let left = net.conv("left", x, 4, 1, Conv::unit());
    let left = net.relu("left.relu", left);
    let right = net.conv("right", x, 6, 3, padded(1));
    let right = net.relu("right.relu", right);
    let x = net.graph.add("join", Concat { axis: 3 }, &[left, right]).unwrap();
    let pool = AvgPool { kernel: [3; 2], stride: [1; 2], pad: [0; 4], count_include_pad: false };
    let x = net.graph.add("avgpool", pool, &[x]).unwrap();
    let x = net.graph.add("flatten", Transpose::to_nchw(), &[x]).unwrap();
    let x = net.graph.add("flatten", Reshape { shape: vec![1, 10] }, &[x]).unwrap();
    let x = net.graph.add("fc", Reshape { shape: vec![1, 1, 1, 10] }, &[x]).unwrap();
    let x = net.conv("fc", x, 5, 1, Conv::unit());
    let x = net.graph.add("fc", Reshape { shape: vec![1, 5] }, &[x]).unwrap();
    net.output(x);
    net.graph
}

/// Largest difference of two float tensors, relative to the largest magnitude of the first.
pub fn relative_difference(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (a.f32s().unwrap(), b.f32s().unwrap());
    assert_eq!(a.len(), b.len());
    let max = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}
