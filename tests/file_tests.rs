//! File tests: `files/<command>/*.hwq`, each a comment on what it shows, a graph, a line
//! `=== expected`, and what the command makes of the graph. `HAWQC_BLESS=1` renews the expectations.
//!
//! | command | expectation | checked besides |
//! |---|---|---|
//! | `print` | the graph, printed | the print reads back as an equal graph |
//! | `verify` | `ok`, or what is wrong with it as an integer graph | |
//! | `integerize` | the integer graph of a QDQ graph | |
//! | `rewrite` | the graph after the egg rules, and which rules were of use | same results |
//! | `fuse` | the graph of kernels | same results |
//! | `lower` | the graph of kernels, rewritten before | same results |
//! | `run` | the outputs for extreme and for seeded inputs | compiled code gives them too |

mod agree;
mod expectation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hawqc_driver::lower_integer;
use hawqc_ir::{Data, Graph, Op, Range, Tensor, TensorType, interp, text, verify};

const SEPARATOR: &str = "=== expected\n";

type Outcome = Result<String, String>;
/// What a command makes of a graph's text.
type Command = fn(&str) -> Outcome;

const COMMANDS: &[(&str, Command)] = &[
    ("print", print),
    ("verify", verify),
    ("integerize", integerize),
    ("rewrite", rewrite),
    ("fuse", fuse),
    ("lower", lower),
    ("run", run),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("files")
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    entries
}

fn check_folder(name: &str) {
    let (_, command) = COMMANDS.iter().find(|c| c.0 == name).unwrap();
    let files = entries(&folder().join(name));
    assert!(!files.is_empty(), "files/{name} is empty");
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| check_file(file, *command).err().map(|e| format!("{}: {e}", file.display())))
        .collect();
    assert!(failures.is_empty(), "{} of {} fail\n{}", failures.len(), files.len(), failures.join("\n"));
}

fn check_file(path: &Path, command: Command) -> Result<(), String> {
    if path.extension().is_none_or(|e| e != "hwq") {
        return Err("not a .hwq file".into());
    }
    let content = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (source, expected) = match content.split_once(SEPARATOR) {
        Some((source, expected)) => (source, Some(expected)),
        None => (content.as_str(), None),
    };
    if !source.starts_with("// ") {
        return Err("must begin with a comment on what it shows".into());
    }
    let found = command(source)?;
    if expectation::blessing() {
        let content = format!("{}\n\n{SEPARATOR}{}\n", source.trim_end(), found.trim_end());
        return std::fs::write(path, content).map_err(|e| e.to_string());
    }
    let expected = expected.ok_or("no expectation; HAWQC_BLESS=1 writes it")?;
    expectation::compare(expected, &found)
}

fn read(source: &str) -> Result<Graph, String> {
    text::parse(source, &BTreeMap::new()).map_err(|e| e.to_string())
}

fn read_integer(source: &str) -> Result<Graph, String> {
    let graph = read(source)?;
    verify::check_integer(&graph).map_err(|e| e.to_string())?;
    Ok(graph)
}

fn print(source: &str) -> Outcome {
    let graph = read(source)?;
    let printed = text::print(&graph);
    let store = graph.constants().map(|(id, tensor)| (id, tensor.clone())).collect();
    let again = text::parse(&printed, &store).map_err(|e| format!("does not read back: {e}\n{printed}"))?;
    if again == graph { Ok(printed) } else { Err(format!("reads back as another graph\n{printed}")) }
}

fn verify(source: &str) -> Outcome {
    Ok(match read_integer(source) {
        Ok(_) => "ok".into(),
        Err(e) => e,
    })
}

fn integerize(source: &str) -> Outcome {
    match hawqc_quantize::integerize(&read(source)?) {
        Ok(graph) => Ok(text::print(&graph)),
        Err(e) => Ok(e.to_string()),
    }
}

fn rewrite(source: &str) -> Outcome {
    let graph = read_integer(source)?;
    let (rewritten, report) = hawqc_rewrite::rewrite(&graph).map_err(|e| e.to_string())?;
    verify::check_integer(&rewritten).map_err(|e| e.to_string())?;
    same_results(&graph, &rewritten)?;
    let changes: Vec<String> = report.changes().map(|c| format!("// {c}\n")).collect();
    Ok(text::print(&rewritten) + &changes.concat())
}

fn fuse(source: &str) -> Outcome {
    let graph = read_integer(source)?;
    let fused = hawqc_rewrite::fuse(&graph).map_err(|e| e.to_string())?;
    hawqc_rewrite::check_fused(&fused).map_err(|e| e.to_string())?;
    same_results(&graph, &fused)?;
    Ok(text::print(&fused))
}

fn lower(source: &str) -> Outcome {
    let graph = read_integer(source)?;
    let lowered = lower_integer(&graph).map_err(|e| e.to_string())?;
    same_results(&graph, lowered.kernels())?;
    Ok(text::print(lowered.kernels()))
}

fn run(source: &str) -> Outcome {
    let graph = read_integer(source)?;
    let inputs: Vec<Vec<Tensor>> = FILLS.iter().map(|fill| fill_all(&graph, *fill)).collect();
    let mut out = String::new();
    for (fill, input) in FILLS.iter().zip(&inputs) {
        let outputs = interp::run(&graph, input).map_err(|e| e.to_string())?;
        for ((name, _), tensor) in graph.outputs().iter().zip(&outputs) {
            out += &format!("{fill:?}: {name} = {}\n", values(tensor));
        }
    }
    agree::check(&graph, || lower_integer(&graph), &agree::targets(), &inputs)?;
    Ok(out)
}

/// How the inputs of a graph are made up.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// The least value of the declared range.
    Low,
    /// The greatest.
    High,
    /// One of the two, by chance; of floats also the special ones.
    Extremes(u64),
    /// Any value.
    Any(u64),
}

const FILLS: &[Fill] = &[Fill::Low, Fill::High, Fill::Extremes(1), Fill::Any(2), Fill::Any(3)];

fn fill_all(graph: &Graph, fill: Fill) -> Vec<Tensor> {
    let inputs = graph.inputs().iter().enumerate();
    inputs.map(|(index, &id)| fill_one(graph.ty(id), fill, index as u64).unwrap()).collect()
}

fn fill_one(ty: &TensorType, fill: Fill, index: u64) -> Result<Tensor, String> {
    const SPECIAL: [f32; 10] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 0.5];
    let seed = |seed: u64| seed.wrapping_mul(1000).wrapping_add(index);
    let choose = |of: i64, by: u64| {
        text::seeded(&TensorType::new(hawqc_ir::Elem::I32, ty.shape.clone()), by, Range::new(0, of - 1))
    };
    let made = match (ty.range, fill) {
        (Some(range), Fill::Any(by)) => return text::seeded(ty, seed(by), range),
        // `seeded` divides by 256 for floats.
        (None, Fill::Any(by)) => return text::seeded(ty, seed(by), Range::new(-2048, 2047)),
        (Some(range), Fill::Low) => Tensor::from_ints(ty.elem, ty.shape.clone(), vec![range.lo; ty.elements()]),
        (Some(range), Fill::High) => Tensor::from_ints(ty.elem, ty.shape.clone(), vec![range.hi; ty.elements()]),
        (None, Fill::Low) => Tensor::from_f32(ty.shape.clone(), vec![f32::MIN; ty.elements()]),
        (None, Fill::High) => Tensor::from_f32(ty.shape.clone(), vec![f32::MAX; ty.elements()]),
        (Some(range), Fill::Extremes(by)) => {
            let high = choose(2, seed(by))?.ints().map_err(|e| e.to_string())?;
            let values = high.into_iter().map(|h| if h == 1 { range.hi } else { range.lo });
            Tensor::from_ints(ty.elem, ty.shape.clone(), values)
        }
        (None, Fill::Extremes(by)) => {
            let which = choose(SPECIAL.len() as i64, seed(by))?.ints().map_err(|e| e.to_string())?;
            Tensor::from_f32(ty.shape.clone(), which.into_iter().map(|w| SPECIAL[w as usize]).collect())
        }
    };
    made.map_err(|e| e.to_string())
}

/// A tensor's values, or their hash where there are many.
fn values(tensor: &Tensor) -> String {
    let shown: Vec<String> = match tensor.data() {
        Data::F32(values) => values.iter().map(|v| format!("{v:?}")).collect(),
        _ => tensor.ints().unwrap().iter().map(i64::to_string).collect(),
    };
    let ty = TensorType::new(tensor.elem(), tensor.shape());
    if shown.len() <= 32 { format!("{ty} {}", shown.join(" ")) } else { format!("{ty} hash({:?})", tensor.const_id()) }
}

/// Whether two graphs agree on every fill; NaN equals NaN.
fn same_results(one: &Graph, other: &Graph) -> Result<(), String> {
    for fill in FILLS {
        let inputs = fill_all(one, *fill);
        let [a, b] = [one, other].map(|g| interp::run(g, &inputs).map_err(|e| e.to_string()));
        let bytes = |t: &Tensor| (t.elem(), t.shape().to_vec(), t.to_bytes());
        if !a?.iter().map(bytes).eq(b?.iter().map(bytes)) {
            return Err(format!("the results differ for {fill:?}"));
        }
    }
    Ok(())
}

#[test]
fn prints() {
    check_folder("print");
}

#[test]
fn verifies() {
    check_folder("verify");
}

#[test]
fn integerizes() {
    check_folder("integerize");
}

#[test]
fn rewrites() {
    check_folder("rewrite");
}

#[test]
fn fuses() {
    check_folder("fuse");
}

#[test]
fn lowers() {
    check_folder("lower");
}

#[test]
fn runs() {
    check_folder("run");
}

#[test]
fn every_folder_is_a_command_and_every_operator_is_shown() {
    let known: BTreeSet<&str> = COMMANDS.iter().map(|c| c.0).collect();
    let folders: Vec<PathBuf> = entries(&folder());
    let names: BTreeSet<&str> = folders.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, known);
    let operators = |command: &str| -> BTreeSet<&'static str> {
        let graphs = entries(&folder().join(command)).into_iter().map(|file| {
            let content = std::fs::read_to_string(file).unwrap();
            read(content.split(SEPARATOR).next().unwrap()).unwrap()
        });
        let graphs: Vec<Graph> = graphs.collect();
        let ops = graphs.iter().flat_map(|g| g.values().map(|id| g.op(id).name()));
        ops.collect()
    };
    let printed = operators("print");
    let ran = operators("run");
    // A network is in floats before it is quantised only, and in kernels after it is fused.
    let compiled = |name: &&&str| !matches!(**name, "avg_pool" | "clamp_real");
    assert!(Op::NAMES.iter().all(|name| printed.contains(name)), "not printed: {printed:?}");
    assert!(Op::NAMES.iter().filter(compiled).all(|name| ran.contains(name)), "not run: {ran:?}");
}
