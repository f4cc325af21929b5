//! Damaged input: models and graphs with bits flipped, cut off or with pieces moved. Whatever arrives,
//! the compiler answers with a network or with an error; overflow checks are on. The damage is the same
//! on every run.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hawqc_driver::{Error, Lowered, Precision, Source, float_form, lower, lower_integer};
use hawqc_ir::{Elem, Range, TensorType, text, verify};
use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_quantize::{Calibrator, Options, PrecisionPlan};
use hawqc_tests::images;

/// A fixed sequence of numbers.
struct Chance(u64);

impl Chance {
    fn below(&mut self, count: usize) -> usize {
        self.0 += 1;
        let ty = TensorType::new(Elem::I32, [1]);
        let drawn = text::seeded(&ty, self.0, Range::new(0, count.max(1) as i64 - 1)).unwrap();
        drawn.ints().unwrap()[0] as usize
    }
}

/// One to three wounds: a flipped bit, a byte set, a piece cut out, doubled or moved; or the end is missing.
fn damage(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + chance.below(3) {
        if out.is_empty() {
            break;
        }
        let at = chance.below(out.len());
        let piece = at..(at + 1 + chance.below(24)).min(out.len());
        match chance.below(12) {
            0..=5 => out[at] ^= 1 << chance.below(8),
            6 => out[at] = [0, 1, 0x7f, 0x80, 0xff, b'9', b' ', b'['][chance.below(8)],
            7 => drop(out.drain(piece)),
            8 => {
                let copy = out[piece].to_vec();
                out.splice(at..at, copy);
            }
            9 | 10 => {
                let copy: Vec<u8> = out.drain(piece).collect();
                let to = chance.below(out.len() + 1);
                out.splice(to..to, copy);
            }
            _ => out.truncate(at),
        }
    }
    out
}

/// The whole way from a model's bytes to kernels, calibrated on one image if it is in floats.
fn import_and_lower(bytes: &[u8]) -> Result<Lowered, Error> {
    let source = Source::from_bytes(bytes, None, Some(1))?;
    if source.is_quantized() {
        return lower(&source, None);
    }
    let float = float_form(&source)?;
    let small = |&id: &hawqc_ir::ValueId| float.ty(id).elements() <= 1 << 16;
    if !float.inputs().iter().all(small) || macs(&float) > 1 << 28 {
        // Legal, but the time is for other damage.
        return Err(Error::NotCalibrated);
    }
    let mut calibrator = Calibrator::new(&float)?;
    calibrator.observe(&images(&float, 1))?;
    let plan = PrecisionPlan::uniform(&float, 8, 8)?;
    let precision = Precision { calibration: calibrator.finish(&source.hash)?, plan, options: Options::default() };
    lower(&source, Some(&precision))
}

fn macs(graph: &hawqc_ir::Graph) -> usize {
    let one = |id: hawqc_ir::ValueId| match graph.op(id) {
        hawqc_ir::Op::Conv(_) => {
            let wei = graph.ty(graph.args(id)[1]);
            graph.ty(id).elements().saturating_mul(wei.elements() / wei.shape[0])
        }
        _ => graph.ty(id).elements(),
    };
    graph.values().map(one).fold(0, usize::saturating_add)
}

/// Damages `original` `rounds` times; returns how many were accepted. A panic fails, and keeps the input.
fn survive<T>(name: &str, original: &[u8], rounds: usize, read: impl Fn(&[u8]) -> Option<T>) -> usize {
    assert!(read(original).is_some(), "{name}: the sound input is refused");
    let mut chance = Chance(seed_of(name));
    let mut accepted = 0;
    for round in 0..rounds {
        let damaged = damage(original, &mut chance);
        match catch_unwind(AssertUnwindSafe(|| read(&damaged).is_some())) {
            Ok(ok) => accepted += usize::from(ok),
            Err(_) => {
                let path = std::env::temp_dir().join(format!("hawqc-damaged-{}-{round}", name.replace('/', "-")));
                std::fs::write(&path, &damaged).unwrap();
                panic!("{name}, round {round} panics; the input is {}", path.display());
            }
        }
    }
    accepted
}

/// A seed from a name.
fn seed_of(name: &str) -> u64 {
    name.bytes().fold(7, |seed: u64, b| seed.wrapping_mul(31).wrapping_add(b.into())) << 20
}

fn data(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == extension));
    files.sort();
    files
}

#[test]
fn float_models() {
    let options = ZooOptions { image_size: Some(8), width: 0.25, classes: 3, seed: 1 };
    let bytes = zoo::write("tiny_resnet", &options).unwrap();
    let rounds = 1500;
    let accepted = survive("tiny_resnet", &bytes, rounds, |b| import_and_lower(b).ok());
    assert!(accepted > rounds / 20 && accepted < rounds, "{accepted} of {rounds} accepted");
}

#[test]
fn quantised_models() {
    let (mut accepted, mut total) = (0, 0);
    for file in data("data/qdq", "onnx") {
        let bytes = std::fs::read(&file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        accepted += survive(&name, &bytes, 80, |b| import_and_lower(b).ok());
        total += 80;
    }
    assert!(total > 2000 && accepted > total / 20 && accepted < total, "{accepted} of {total} accepted");
}

#[test]
fn graph_texts() {
    let (mut accepted, mut total) = (0, 0);
    for command in ["print", "run", "lower", "integerize"] {
        for file in data(&format!("files/{command}"), "hwq") {
            let text = std::fs::read_to_string(&file).unwrap();
            let source = text.split("=== expected").next().unwrap();
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let lower_it = matches!(command, "run" | "lower");
            // Constants of 66311 elements take the time of many small ones.
            if name.contains("at_the_limit") {
                continue;
            }
            accepted += survive(&name, source.as_bytes(), 150, |b| read_graph(b, lower_it));
            total += 150;
        }
    }
    assert!(total > 4000 && accepted > total / 20 && accepted < total, "{accepted} of {total} accepted");
}

/// Parses, verifies, prints and reads back; lowers integer graphs.
fn read_graph(bytes: &[u8], lower_it: bool) -> Option<()> {
    let text = String::from_utf8_lossy(bytes);
    if text.lines().any(declares_much) {
        return None;
    }
    let graph = text::parse(&text, &BTreeMap::new()).ok()?;
    let store = graph.constants().map(|(id, tensor)| (id, tensor.clone())).collect();
    assert_eq!(text::parse(&text::print(&graph), &store).unwrap(), graph);
    if lower_it && verify::check_integer(&graph).is_ok() {
        // Refusals are fine, but a broken invariant is a mistake of the passes.
        if let Err(e @ Error::Pass { .. }) = lower_integer(&graph) {
            panic!("{e}");
        }
    }
    Some(())
}

/// Whether a line asks for a written constant of so many elements that memory would be the test.
fn declares_much(line: &str) -> bool {
    let Some((_, shape)) = line.rsplit_once('[').filter(|_| line.contains("const")) else { return false };
    let dims = shape.trim_end_matches(']').split(',').filter_map(|d| d.trim().parse::<usize>().ok());
    dims.fold(1, usize::saturating_mul) > 1 << 20
}
