//! Topology against published parameter counts, and activations run through an independent executor.

use prost::Message;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;

use super::*;

/// Elements of all initialisers that training would adjust.
fn parameters(bytes: &[u8]) -> i64 {
    let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
    let trained = graph.initializer.iter().filter(|t| !t.name.contains("running_"));
    trained.map(|t| t.dims.iter().product::<i64>()).sum()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // torchvision's documented `num_params`; InceptionV3 without the auxiliary classifier's 3,326,696.
    for (name, count) in [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet50_v1", 25_557_032),
        ("resnext50_32x4d", 25_028_904),
        ("inception_v3", 27_161_264 - 3_326_696),
        ("mobilenet_v2", 3_504_872),
        ("squeezenet1_1", 1_235_496),
        ("vgg11_bn", 132_868_840),
    ] {
        assert_eq!(parameters(&write(name, &ZooOptions::default()).unwrap()), count, "{name}");
    }
}

#[test]
fn same_options_same_bytes_other_seed_other_weights() {
    let small = ZooOptions { image_size: Some(32), width: 0.25, classes: 10, ..Default::default() };
    let a = write("resnet18", &small).unwrap();
    assert_eq!(a, write("resnet18", &small).unwrap());
    assert_ne!(a, write("resnet18", &ZooOptions { seed: 1, ..small }).unwrap());
}

#[test]
fn bad_options_are_named() {
    let with = |o: ZooOptions, name: &str| write(name, &o).unwrap_err().to_string();
    let d = ZooOptions::default;
    assert!(with(d(), "alexnet").contains("alexnet"));
    assert!(with(ZooOptions { width: f64::NAN, ..d() }, "resnet18").contains("width"));
    assert!(with(ZooOptions { classes: 0, ..d() }, "resnet18").contains("classes"));
    assert!(with(ZooOptions { image_size: Some(0), ..d() }, "resnet18").contains("image_size"));
    assert!(with(ZooOptions { image_size: Some(40), width: 0.1, ..d() }, "inception_v3").contains("too small"));
}

/// Root mean square of the output of every convolution's normalisation or activation, in execution order.
fn activations(bytes: &[u8], size: usize) -> Vec<(String, f64)> {
    let model = tract_onnx::onnx().model_for_read(&mut &bytes[..]).unwrap();
    let outlets: Vec<_> = model
        .nodes
        .iter()
        .filter(|n| !n.inputs.is_empty() && !n.name.is_empty())
        .map(|n| (n.name.clone(), OutletId::new(n.id, 0)))
        .collect();
    let model = model.with_output_outlets(&outlets.iter().map(|o| o.1).collect::<Vec<_>>()).unwrap();
    let runnable = model.into_typed().unwrap().into_runnable().unwrap();
    let mut state = 0x9e37_79b9_u32;
    let image: Vec<f32> = (0..3 * size * size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 12f32.sqrt()
        })
        .collect();
    let image = Tensor::from_shape(&[1, 3, size, size], &image).unwrap();
    let outputs = runnable.run(tvec!(image.into())).unwrap();
    outlets
        .into_iter()
        .zip(outputs.iter())
        .map(|((name, _), t)| {
            let view = t.to_plain_array_view::<f32>().unwrap();
            let sum: f64 = view.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            (name, (sum / view.len() as f64).sqrt())
        })
        .collect()
}

#[test]
fn activations_stay_of_order_one() {
    for (name, size, width) in [
        ("resnet18", 96, 0.5),
        ("resnet34", 64, 0.25),
        ("resnet50", 96, 0.25),
        ("resnext50_32x4d", 96, 0.5),
        ("inception_v3", 139, 0.25),
        ("mobilenet_v2", 96, 0.5),
        ("squeezenet1_1", 96, 0.5),
        ("vgg11_bn", 64, 0.25),
        ("tiny_resnet", 32, 1.0),
    ] {
        let options = ZooOptions { image_size: Some(size), width, classes: 10, seed: 7 };
        let rms = activations(&write(name, &options).unwrap(), size);
        assert!(rms.len() > 15, "{name}: {} values seen", rms.len());
        for (node, value) in rms {
            assert!((0.1..8.0).contains(&value), "{name}: {node} has rms {value}");
        }
    }
}
