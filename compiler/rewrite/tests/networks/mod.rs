//! Networks and inputs shared by the tests.

#![allow(dead_code, reason = "every test uses a part")]

use hawqc_ir::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A ResNet basic block with a strided 1x1 shortcut as integerisation leaves it: a 16-bit residual
/// stream, ReLU as a clamp of the accumulator, ReLU of the sum, the borders and a classifier.
pub const BASIC_BLOCK: &str = include_str!("basic_block_in.hwq");

/// Values for every input: extremes, or random within the declared range.
pub fn random_inputs(graph: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    graph.inputs().iter().map(|&id| random_tensor(graph.ty(id), &mut rng)).collect()
}

pub fn random_tensor(ty: &TensorType, rng: &mut impl Rng) -> Tensor {
    let extremes = rng.random_range(0..3) == 0;
    let Some(range) = ty.range else {
        let values = (0..ty.elements()).map(|_| rng.random_range(-4.0..4.0f32) * if extremes { 1e3 } else { 1.0 });
        return Tensor::from_f32(ty.shape.clone(), values.collect()).unwrap();
    };
    let values = (0..ty.elements()).map(|_| match (extremes, rng.random_bool(0.5)) {
        (true, true) => range.lo,
        (true, false) => range.hi,
        (false, _) => rng.random_range(range.lo..=range.hi),
    });
    Tensor::from_ints(ty.elem, ty.shape.clone(), values).unwrap()
}

/// The kernels of a fused graph, with their operands.
pub fn kernels(graph: &Graph) -> String {
    let lines = text::print(graph);
    let keep = |line: &&str| !line.contains(" = const ");
    lines.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

/// Compares with a file beside this one; `HAWQC_BLESS=1` writes it instead.
pub fn expect(file: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
    if std::env::var_os("HAWQC_BLESS").is_some() {
        std::fs::write(&path, format!("{found}\n")).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected.trim_end(), "\n{found}");
}
