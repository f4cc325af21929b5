//! Whole networks: compiled code equals the interpreter in every output element, on one thread and
//! on two, and the shared object keeps the rule of integers only.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawqc_driver::tune::Whole;
use hawqc_driver::{LinkWith, Target, audit, tensors, verify};
use hawqc_onnx::zoo::ZooOptions;
use hawqc_quantize::plan::quantizable_layers;
use hawqc_runtime::Session;
use hawqc_tests::{Network, images};

/// Compiles `network` under each plan and compares it with the interpreter; where it differs, names
/// the first kernel that does.
fn agrees(network: &Network, plans: &[&str]) {
    for &bits in plans {
        let compiled = network.compile(network.plan(bits), Target::host().unwrap(), false).unwrap();
        let model = Arc::new(compiled.load().unwrap());
        let input = images(&network.float, 77);
        for threads in [1, 2] {
            let mut session = Session::new(Arc::clone(&model), Some(threads)).unwrap();
            let differences = verify::outputs(compiled.lowered.integer(), &mut session, &input).unwrap();
            if differences.iter().any(|d| d.max_lsb() > 0) {
                panic!("{bits}, {threads} threads: {}", first_difference(network, bits, threads));
            }
        }
        let object = compiled.emit("so", "model.so", &LinkWith::Own).unwrap();
        let report = audit(&object).unwrap();
        assert!(report.instructions > 0, "the audit saw no instruction");
        assert!(report.findings.is_empty(), "{bits}: {}", report.findings[0]);
    }
}

fn first_difference(network: &Network, bits: &str, threads: usize) -> String {
    let compiled = network.compile(network.plan(bits), Target::host().unwrap(), true).unwrap();
    let mut session = Session::new(Arc::new(compiled.load().unwrap()), Some(threads)).unwrap();
    let differences = verify::per_layer(compiled.lowered.kernels(), &mut session, &images(&network.float, 77)).unwrap();
    match differences.into_iter().find(|d| d.max_lsb() > 0) {
        Some(d) => format!("`{}` differs first: {:?}, {:?}", d.value, d.first, d.histogram),
        None => "no kernel differs when every value is kept: look at the memory plan".into(),
    }
}

fn zoo(name: &str) -> Network {
    Network::zoo(name, &ZooOptions::default())
}

#[test]
fn resnet18() {
    let medium = ["resnet18_modelsize_0.5", "resnet18_bops_0.5", "resnet18_latency_0.5"];
    agrees(&zoo("resnet18"), &[&["8", "4", "w4a8"], medium.as_slice()].concat());
}

#[test]
fn resnet50() {
    let medium = ["resnet50_modelsize_0.5", "resnet50_bops_0.5", "resnet50_latency_0.5"];
    agrees(&zoo("resnet50"), &[&["8", "4"], medium.as_slice()].concat());
}

#[test]
fn resnext50() {
    let small = ZooOptions { image_size: Some(96), ..ZooOptions::default() };
    let network = Network::zoo("resnext50_32x4d", &small);
    agrees(&network, &["8", "4", "w4a8"]);
    for target in ["x86-avx512", "x86-avxvnni", "x86-64-v3"] {
        let compiled = network.compile(network.plan("4"), Target::parse(target).unwrap(), false).unwrap();
        let schedules = compiled.emit("schedule", "", &LinkWith::Own).unwrap();
        let schedules = String::from_utf8(schedules).unwrap();
        assert!(schedules.contains(" wide mul=") && !schedules.contains(" conv mr="), "{target}: {schedules}");
    }
}

#[test]
fn inception_v3() {
    agrees(&zoo("inception_v3"), &["inceptionv3_uniform8", "inceptionv3_uniform4"]);
}

#[test]
fn mobilenet_v2() {
    agrees(&zoo("mobilenet_v2"), &["8", "4"]);
}

#[test]
fn squeezenet_and_vgg() {
    agrees(&zoo("squeezenet1_1"), &["8", "4"]);
    let small = ZooOptions { width: 0.25, classes: 100, ..ZooOptions::default() };
    agrees(&Network::zoo("vgg11_bn", &small), &["8", "4"]);
}

/// A concatenation that is written in place has no step, and the steps' times go to the right workloads and layers.
#[test]
fn squeezenet_has_no_steps_of_concatenations() {
    let network = Network::zoo("squeezenet1_1", &ZooOptions { image_size: Some(64), ..ZooOptions::default() });
    let target = Target::host().unwrap();
    let lowered = network.compile(network.plan("8"), target.clone(), false).unwrap().lowered;
    let inputs = images(&network.float, 77).iter().map(|image| tensors::to_runtime(image).unwrap()).collect();
    let mut whole = Whole::new(&lowered, &target, BTreeMap::new(), None, inputs).unwrap();
    whole.round().unwrap();
    let workloads = whole.by_workload(&lowered);
    assert!(workloads.keys().any(|text| text.contains("conv")), "{workloads:?}");
    assert!(workloads.keys().all(|text| !text.contains("concat")), "{workloads:?}");
    assert!(workloads.values().all(|times| times.iter().all(|&ns| ns > 0)), "{workloads:?}");
    let layers: Vec<String> = quantizable_layers(&network.float).into_iter().map(|(_, name)| name).collect();
    let measured = whole.network(&lowered, &layers, "8", vec!["8".into(); layers.len()]);
    for (name, layer) in layers.iter().zip(&measured.layers) {
        let is_convolution = ["conv ", "wide ", "winograd ", "strassen "].iter().any(|s| layer.schedule.starts_with(s));
        assert!(is_convolution && layer.times.count == 1, "{name}: {layer:?}");
    }
}

#[test]
fn resnet34() {
    agrees(&Network::zoo("resnet34", &ZooOptions { image_size: Some(64), ..ZooOptions::default() }), &["8", "4"]);
}

#[test]
fn digits() {
    let bytes = std::fs::read(hawqc_tests::root().join("examples/digits/digits.onnx")).unwrap();
    agrees(&Network::from_bytes(&bytes, 4), &["8", "4", "w4a8"]);
}
