//! ResNet-18, quantised by onnxruntime and compiled by us, against onnxruntime's integers: every layer by
//! itself within one unit, and the same class for whole images. (Through a whole network a rounding that
//! falls the other way changes what later layers read, so there the distance grows with depth.)
//!
//! Needs Python with the packages of `tools/python/requirements.txt`: `HAWQC_PYTHON`, or `python3`.
//! Without it the test says that it is skipped; `HAWQC_REQUIRE=onnxruntime` makes it fail instead.

mod agree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hawqc_driver::{CompileOptions, Source, Target, compile, lower, tensors, verify};
use hawqc_ir::{Elem, Tensor, interp};
use hawqc_runtime::Session;
use hawqc_runtime::npy::Npz;

fn python() -> Option<PathBuf> {
    let python = std::env::var_os("HAWQC_PYTHON").map_or("python3".into(), PathBuf::from);
    let check = Command::new(&python).args(["-c", "import onnx, onnxruntime, torch, torchvision"]).output();
    let found = check.as_ref().is_ok_and(|o| o.status.success());
    if found {
        return Some(python);
    }
    let why = check.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stderr).trim().to_string());
    let message = format!("{} cannot run onnxruntime and torchvision: {why}", python.display());
    let required = std::env::var("HAWQC_REQUIRE").is_ok_and(|v| v.split(',').any(|f| f == "onnxruntime"));
    assert!(!required, "{message}");
    eprintln!("SKIPPED: {message}");
    None
}

fn arrays(path: &Path) -> BTreeMap<String, Tensor> {
    let arrays = Npz::open(path).unwrap().read_all().unwrap();
    arrays.into_iter().map(|(name, t)| (name, tensors::to_ir_same(&t).unwrap())).collect()
}

/// Image `index` of an array `[images, ...]`, batch 1.
fn image(all: &Tensor, index: usize) -> Tensor {
    let mut shape = all.shape().to_vec();
    let count = all.len() / shape[0];
    shape[0] = 1;
    Tensor::from_f32(shape, all.f32s().unwrap()[index * count..][..count].to_vec()).unwrap()
}

/// Elements by their distance in units.
type Histogram = BTreeMap<u64, usize>;

/// Our integers against the recorded ones: both are given as reals that are multiples of `lsb`.
fn count(histogram: &mut Histogram, ours: &Tensor, theirs: &Tensor, lsb: f32) {
    assert_eq!(ours.shape(), theirs.shape());
    for (a, b) in ours.f32s().unwrap().iter().zip(theirs.f32s().unwrap()) {
        *histogram.entry(((a - b) / lsb).round().abs() as u64).or_default() += 1;
    }
}

/// Every layer on its own recorded inputs; compiled code equals the interpreter, which is within one unit.
fn check_layers(folder: &Path) {
    let mut total = Histogram::new();
    let mut layers = 0;
    let targets = agree::targets();
    while let Some(model) = Some(folder.join(format!("{layers:03}.onnx"))).filter(|p| p.exists()) {
        let recorded = arrays(&model.with_extension("npz"));
        let source = Source::load(&model, Some(1)).unwrap();
        let lowered = lower(&source, None).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        let integer = lowered.integer();
        let lsb = recorded["lsb"].f32s().unwrap()[0];
        let mut histogram = Histogram::new();
        let mut inputs = Vec::new();
        for index in 0..recorded["y"].shape()[0] {
            let input: Vec<Tensor> =
                integer.inputs().iter().map(|&id| image(&recorded[integer.name(id)], index)).collect();
            let output = interp::run(integer, &input).unwrap();
            count(&mut histogram, &output[0], &image(&recorded["y"], index), lsb);
            inputs.push(input);
        }
        let name = integer.outputs()[0].0.clone();
        let worst = histogram.keys().next_back().copied().unwrap_or(0);
        assert!(worst <= 1, "{} ({name}): {histogram:?}", model.display());
        let agrees = agree::check(integer, || lower(&source, None), &targets, &inputs[..1]);
        agrees.unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        histogram.into_iter().for_each(|(lsb, n)| *total.entry(lsb).or_default() += n);
        layers += 1;
    }
    assert!(layers >= 20, "{layers} layers in {}", folder.display());
    eprintln!("{}: {layers} layers, elements by distance {total:?}", folder.display());
}

fn top1(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a))).unwrap()
}

/// Whole images through compiled code.
fn check_network(folder: &Path, images: &Tensor) {
    let source = Source::load(&folder.join("model.onnx"), Some(1)).unwrap();
    let expected = arrays_of(&folder.join("expected.npz"), &["logits"]);
    let lowered = lower(&source, None).unwrap();
    let options = CompileOptions::new(Target::host().unwrap());
    let compiled = compile(lowered, &options).unwrap();
    let mut session = Session::new(Arc::new(compiled.load().unwrap()), None).unwrap();
    let (mut classes, mut worst) = (Vec::new(), 0f32);
    for index in 0..images.shape()[0] {
        let output = verify::run(&mut session, &[image(images, index)]).unwrap();
        let theirs = image(&expected["logits"], index);
        let (ours, theirs) = (output[0].as_slice::<f32>().unwrap(), theirs.f32s().unwrap());
        worst = ours.iter().zip(theirs).fold(worst, |w, (a, b)| w.max((a - b).abs()));
        assert_eq!(top1(ours), top1(theirs), "image {index} of {}", folder.display());
        classes.push(top1(ours));
    }
    eprintln!("{}: the same classes {classes:?}, logits at most {worst} apart", folder.display());
}

/// Some arrays of an archive that also holds elements the compiler has not.
fn arrays_of(path: &Path, names: &[&str]) -> BTreeMap<String, Tensor> {
    let mut archive = Npz::open(path).unwrap();
    let read = |name: &&str| (name.to_string(), tensors::to_ir(&archive.read(name).unwrap(), Elem::F32).unwrap());
    names.iter().map(read).collect()
}

#[test]
fn resnet18_layer_by_layer() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = hawqc_tests::root().join("tools/python/make_qdq.py");
    let made = Command::new(python)
        .arg(script)
        .args(["--model", "resnet18", "--image-size", "64", "--layers", "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let images = &arrays_of(&folder.path().join("inputs.npz"), &["image"])["image"];
    for kind in ["u8", "i8"] {
        let folder = folder.path().join(kind);
        check_layers(&folder.join("layers"));
        check_network(&folder, images);
    }
}
