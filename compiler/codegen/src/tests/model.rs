//! Whole models: both entry points, the manifest, the object file and its audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawqc_ir::{Graph, Tensor, interp, text};
use hawqc_runtime::{Entry, Model, Session, Tensor as Buffer};

use crate::compile::{ModelInfo, compile, jit};
use crate::disasm::{audit_features, audit_integer_only};
use crate::error::CodegenError;
use crate::link::{LinkWith, link};
use crate::program::Options;
use crate::target::{ROWS, Target};

/// A small residual network with every kind of kernel.
pub const NETWORK: &str = r#"
%0 = input : f32[1,3,9,8] @"image"
%1 = const splat(0.05) : f32[1]
%2 = const splat(7) : u8[1]
%3 = kernel %0, %1, %2 {
  $0 = transpose #0 perm=[0,2,3,1] : f32[1,9,8,3]
  $1 = quantize $0, #1, #2 lo=0 hi=255 axis=3 elem=u8 : u8[1,9,8,3]
} : u8[1,9,8,3] @"input quantised"
%4 = const seed(1,-127,127) : i8[20,3,3,3]
%5 = const seed(2,-3000,3000) : i32[20]
%6 = const seed(3,1073741824,2147483647) : i32[20]
%7 = const seed(4,38,41) : u8[20]
%8 = kernel %3, %4, %5, %6, %7 {
  $0 = conv #0, #1, #2 stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=7 : i32<RANGE>[1,9,8,20]
  $1 = requant $0, #3, #4 src_zero=0 dst_zero=0 lo=0 hi=15 round=half_up elem=u4 : u4[1,9,8,20]
} : u4[1,9,8,20] @"stem"
%9 = kernel %8 {
  $0 = max_pool #0 kernel=[3,3] stride=[2,2] pad=[1,1,1,1] dilation=[1,1] : u4[1,5,4,20]
} : u4[1,5,4,20] @"pool"
%10 = const seed(5,-8,7) : i4[20,3,3,20]
%11 = const seed(6,-300,300) : i32[20]
%12 = const seed(7,1073741824,2147483647) : i32[1]
%13 = const splat(31) : u8[1]
%14 = kernel %9, %10, %11, %6, %7, %12, %13 {
  $0 = conv #0, #1, #2 stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=0 : i32<RANGE>[1,5,4,20]
  $1 = requant $0, #3, #4 src_zero=0 dst_zero=0 lo=-1000000 hi=1000000 round=half_up elem=i32 : i32<-1000000,1000000>[1,5,4,20]
  $2 = requant #0, #5, #6 src_zero=0 dst_zero=0 lo=-1000000 hi=1000000 round=half_even elem=i32 : i32<-1000000,1000000>[1,5,4,20]
  $3 = add $1, $2 : i32<-2000000,2000000>[1,5,4,20]
  $4 = clamp $3 lo=-128 hi=127 elem=i8 : i8[1,5,4,20]
} : i8[1,5,4,20] @"block.conv"
%15 = const seed(8,-127,127) : i8[20,3,3,1]
%16 = kernel %14, %15, %11, %6, %7 {
  $0 = conv #0, #1, #2 stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=20 pad_value=0 : i32<RANGE>[1,5,4,20]
  $1 = requant $0, #3, #4 src_zero=0 dst_zero=3 lo=-128 hi=127 round=half_away elem=i8 : i8[1,5,4,20]
} : i8[1,5,4,20] @"depthwise"
%17 = kernel %16, %14 {
  $0 = concat #0, #1 axis=3 : i8[1,5,4,40]
} : i8[1,5,4,40] @"concat"
%18 = const splat(26) : u8[1]
%19 = kernel %17, %12, %18 {
  $0 = sum_pool #0 kernel=[5,4] stride=[1,1] pad=[0,0,0,0] zero=0 : i32<-2560,2540>[1,1,1,40]
  $1 = requant $0, #1, #2 src_zero=0 dst_zero=0 lo=-128 hi=127 round=half_up elem=i8 : i8[1,1,1,40]
} : i8[1,1,1,40] @"mean"
%20 = const seed(9,-127,127) : i8[10,1,1,40]
%21 = kernel %19, %20 {
  $0 = conv #0, #1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<RANGE>[1,1,1,10]
} : i32<RANGE>[1,1,1,10] @"fc"
%22 = reshape %21 shape=[1,10] : i32<RANGE>[1,10] @"flat"
%23 = const splat(0.0002) : f32[1]
%24 = const splat(0) : i32[1]
%25 = kernel %22, %23, %24 {
  $0 = dequantize #0, #1, #2 axis=1 : f32[1,10]
} : f32[1,10] @"logits"
%26 = kernel %25 {
  $0 = softmax #0 : f32[1,10]
} : f32[1,10] @"probabilities"
output %26 "probabilities"
output %14 "features"
"#;

/// Parses a network whose inferred ranges are left out (`RANGE`): the parser's complaint about an
/// impossible one says what they are, first to last.
pub fn network(source: &str) -> Graph {
    let mut source = source.replace("RANGE", "0,0");
    loop {
        match text::parse(&source, &BTreeMap::new()) {
            Ok(graph) => return graph,
            Err(error) => {
                let message = error.to_string();
                let (_, inferred) = message.split_once("inferred ").unwrap_or_else(|| panic!("{message}"));
                let range = inferred.split(['<', '>']).nth(1).unwrap_or_else(|| panic!("{message}"));
                let next = source.replacen("<0,0>", &format!("<{range}>"), 1);
                assert_ne!(next, source, "{message}");
                source = next;
            }
        }
    }
}

pub fn image(seed: u64) -> Tensor {
    let ty = hawqc_ir::TensorType::new(hawqc_ir::Elem::F32, [1, 3, 9, 8]);
    text::seeded(&ty, seed, hawqc_ir::Range::new(-2500, 2500)).unwrap()
}

pub fn buffer(tensor: &Tensor) -> Buffer {
    let ty = tensor.ty();
    Buffer::from_bytes(crate::interface::memory_elem(&ty), ty.shape, &tensor.to_bytes()).unwrap()
}

fn info() -> ModelInfo {
    ModelInfo { hash: "00ff".into(), layers: Vec::new() }
}

/// Runs a model at both entry points, with several threads, and compares every output and, if kept,
/// every value with the interpreter.
fn check(graph: &Graph, model: Arc<Model>, threads: usize) {
    let mut session = Session::new(Arc::clone(&model), Some(threads)).unwrap();
    for seed in 0..3 {
        let input = image(seed);
        let mut kernels = Vec::new();
        let expected = interp::run_observed(graph, std::slice::from_ref(&input), |id, tensor| {
            if matches!(graph.op(id), hawqc_ir::Op::Kernel(_)) {
                kernels.push(tensor.clone());
            }
        })
        .unwrap();
        let mut seen = Vec::new();
        let input = buffer(&input);
        let mut outputs = session.new_outputs(Entry::Border).unwrap();
        let mut views: Vec<_> = outputs.iter_mut().map(Buffer::view_mut).collect();
        session.run_observed(Entry::Border, &[input.view()], &mut views, &mut |step| seen.push(step)).unwrap();
        assert_eq!(seen, (0..=kernels.len()).collect::<Vec<_>>());
        for (found, expected) in outputs.iter().zip(&expected) {
            assert_eq!(found.bytes(), expected.to_bytes());
        }
        let kept = model.manifest().values.len();
        for (index, kernel) in kernels.iter().enumerate().take(kept) {
            assert_eq!(session.kept_value(index).unwrap().bytes(), kernel.to_bytes(), "value {index}");
        }
        // The quantised image in, the accumulators out.
        let outputs = session.run_integer(&[buffer(&kernels[0]).view()]).unwrap();
        assert_eq!(outputs[0].bytes(), kernels[7].to_bytes());
        assert_eq!(outputs[1].bytes(), expected[1].to_bytes());
    }
}

#[test]
fn both_entry_points_equal_the_interpreter() {
    let graph = network(NETWORK);
    for keep_values in [false, true] {
        let options = Options { keep_values, ..Options::new(Target::host().unwrap()) };
        let model = Arc::new(jit(&graph, &info(), &options).unwrap());
        let manifest = model.manifest();
        assert_eq!(manifest.values.len(), if keep_values { manifest.steps.len() } else { 0 });
        assert_eq!(manifest.steps.len(), 10);
        let integer = manifest.inputs[0].integer.as_ref().unwrap();
        assert_eq!((integer.shape.as_slice(), integer.zero_point), (&[1, 9, 8, 3][..], 7));
        let integer = manifest.outputs[0].integer.as_ref().unwrap();
        assert_eq!((integer.shape.as_slice(), integer.scale.as_slice()), (&[1, 10][..], &[0.0002f32][..]));
        assert!(manifest.outputs[1].integer.is_none());
        check(&graph, Arc::clone(&model), 1);
        check(&graph, model, 3);
    }
}

#[test]
fn memory_is_reused_and_constants_are_shared() {
    let graph = network(NETWORK);
    let target = Target::host().unwrap();
    let plain = compile(&graph, &info(), &Options::new(target.clone())).unwrap();
    let kept = compile(&graph, &info(), &Options { keep_values: true, ..Options::new(target) }).unwrap();
    assert!(plain.manifest.arena_bytes < kept.manifest.arena_bytes);
    let weights = 20 * 28 + 20 * 9 * 20 / 2 + 9 * 32 + 12 * 40;
    assert!(plain.manifest.weight_bytes < 2 * weights, "{}", plain.manifest.weight_bytes);
}

#[test]
fn objects_link_to_clean_reproducible_models() {
    let graph = network(NETWORK);
    for row in ROWS {
        let target = row.target().unwrap();
        let options = Options::new(target.clone());
        let artifact = compile(&graph, &info(), &options).unwrap();
        assert_eq!(artifact.object, compile(&graph, &info(), &options).unwrap().object, "{target}");
        let shared = link(&artifact.object, "model.so", &LinkWith::Own).unwrap();
        let report = audit_integer_only(&shared).unwrap();
        assert!(report.is_clean(), "{target}: {report:?}");
        let report = audit_features(&shared, &target).unwrap();
        assert!(report.is_clean(), "{target}: {report:?}");
        if target.runs_here() {
            let file = tempfile::Builder::new().suffix(".so").tempfile().unwrap();
            std::fs::write(file.path(), &shared).unwrap();
            let model = Model::open(file.path()).unwrap();
            assert_eq!(model.manifest(), &artifact.manifest);
            check(&graph, Arc::new(model), 2);
        }
    }
}

#[test]
fn listings_show_every_function() {
    let graph = network(NETWORK);
    let options = Options { listing: true, ..Options::new(Target::parse("x86-64-v3").unwrap()) };
    let artifact = compile(&graph, &info(), &options).unwrap();
    for symbol in ["hawqc_run", "hawqc_run_integer", "step.1.stem", "border.0.input_quantised"] {
        let listing = artifact.listings.iter().find(|l| l.symbol == symbol).unwrap();
        assert!(listing.clif.contains("return") && listing.assembly.contains("ret"), "{symbol}");
    }
    assert_eq!(artifact.schedules.lines().count(), artifact.manifest.steps.len());
}

/// Outputs that are an input, a constant, one value twice, or another shape of a value.
#[test]
fn any_value_can_be_an_output() {
    let graph = network(
        r#"
%0 = input : u8[1,2,2,3] @"a"
%1 = input : i16[1,2,2,3] @"b"
%2 = const seed(1,-9,9) : i8[5]
%3 = kernel %0, %1 {
  $0 = add #0, #1 : i32<-32768,33022>[1,2,2,3]
} : i32<-32768,33022>[1,2,2,3] @"sum"
%4 = reshape %3 shape=[12] : i32<-32768,33022>[12] @"flat"
output %0 "input"
output %2 "constant"
output %3 "sum"
output %4 "again"
output %3 "once more"
"#,
    );
    let model = Arc::new(jit(&graph, &info(), &Options::new(Target::host().unwrap())).unwrap());
    let a = text::seeded(graph.ty(graph.inputs()[0]), 3, hawqc_ir::Range::new(0, 255)).unwrap();
    let b = text::seeded(graph.ty(graph.inputs()[1]), 4, hawqc_ir::Range::new(-999, 999)).unwrap();
    let expected = interp::run(&graph, &[a.clone(), b.clone()]).unwrap();
    let mut session = Session::new(model, Some(1)).unwrap();
    let (a, b) = (buffer(&a), buffer(&b));
    for entry in [Entry::Border, Entry::Integer] {
        let found = session.run_entry(entry, &[a.view(), b.view()]).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.bytes(), expected.to_bytes());
        }
    }
}

#[test]
fn what_is_not_supported_names_the_node() {
    let unfused =
        network("%0 = input : i8[4] @\"x\"\n%1 = add %0, %0 : i32<-256,254>[4] @\"the sum\"\noutput %1 \"y\"");
    let options = Options::new(Target::host().unwrap());
    let error = compile(&unfused, &info(), &options).unwrap_err();
    assert!(matches!(&error, CodegenError::NotFused { node, .. } if node == "the sum"), "{error}");
    let floats = network(
        r#"
%0 = input : f32[4] @"x"
%1 = kernel %0, %0 {
  $0 = add #0, #1 : f32[4]
} : f32[4] @"float sum"
output %1 "y"
"#,
    );
    let error = compile(&floats, &info(), &options).unwrap_err().to_string();
    assert!(error.contains("`float sum`") && error.contains("`add` of floats"), "{error}");
}
