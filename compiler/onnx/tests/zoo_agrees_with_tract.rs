//! Every network of the zoo, made small: the interpreter on the imported graph against tract on the same file.

use hawqc_ir::{Tensor, interp};
use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_onnx::{ImportOptions, import};
use tract_onnx::prelude::*;

/// Deterministic values of zero mean and unit variance.
fn noise(n: usize, mut state: u32) -> Vec<f32> {
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 12f32.sqrt()
        })
        .collect()
}

fn tract(bytes: &[u8], shape: &[usize], data: &[f32]) -> Vec<f32> {
    let model = tract_onnx::onnx().model_for_read(&mut &bytes[..]).unwrap().into_typed().unwrap();
    let input = tract_onnx::prelude::Tensor::from_shape(shape, data).unwrap();
    let outputs = model.into_runnable().unwrap().run(tvec!(input.into())).unwrap();
    outputs[0].to_plain_array_view::<f32>().unwrap().iter().copied().collect()
}

#[test]
fn every_network_agrees() {
    for (name, size, width) in [
        ("resnet18", 48, 0.125),
        ("resnet34", 40, 0.125),
        ("resnet50", 40, 0.125),
        ("resnet50_v1", 40, 0.125),
        ("resnext50_32x4d", 40, 0.125),
        ("inception_v3", 79, 0.1),
        ("mobilenet_v2", 48, 0.25),
        ("squeezenet1_1", 47, 0.125),
        ("vgg11_bn", 64, 0.05),
        ("tiny_resnet", 16, 0.5),
    ] {
        let options = ZooOptions { image_size: Some(size), width, classes: 13, seed: 3 };
        let bytes = zoo::write(name, &options).unwrap();
        let imported = import(&bytes, &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let shape = [1, 3, size, size];
        let image = noise(3 * size * size, 11);
        let ours = interp::run(&imported.graph, &[Tensor::from_f32(shape, image.clone()).unwrap()]).unwrap();
        let theirs = tract(&bytes, &shape, &image);
        let ours = ours[0].f32s().unwrap();
        assert_eq!(ours.len(), 13, "{name}");
        let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-3 * largest, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn batch_is_chosen_at_import() {
    let options = ZooOptions { image_size: Some(16), width: 0.5, classes: 10, seed: 0 };
    let bytes = zoo::write("tiny_resnet", &options).unwrap();
    let run = |batch: Option<usize>, images: &[f32]| {
        let imported = import(&bytes, &ImportOptions { batch, ..Default::default() }).unwrap();
        let shape = [batch.unwrap_or(1), 3, 16, 16];
        let outputs = interp::run(&imported.graph, &[Tensor::from_f32(shape, images.to_vec()).unwrap()]).unwrap();
        outputs[0].f32s().unwrap().to_vec()
    };
    let images = noise(2 * 3 * 16 * 16, 5);
    let (first, second) = images.split_at(3 * 16 * 16);
    assert_eq!(run(Some(2), &images), [run(None, first), run(None, second)].concat());
}
