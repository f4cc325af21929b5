//! `hawqc demo`: the whole job on the bundled network and real images.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use hawqc_driver::{CompileOptions, LinkWith, Precision, Source, audit, compile, lower, verify, write_file};
use hawqc_ir::Tensor;
use hawqc_quantize::{Calibration, Options, PrecisionPlan};
use hawqc_runtime::{Model, Session, Tensor as RuntimeTensor};
use serde::Serialize;

use super::bench::{self, Limit};
use super::{calibrate, eval, target};
use crate::args::{Cli, Demo, Global};
use crate::console::{Console, bytes, table, time};
use crate::data::Dataset;
use crate::failure::{Failure, Kind, io};

const NETWORK: &[u8] = include_bytes!("../../../../examples/digits/digits.onnx");
const CALIBRATION: &[u8] = include_bytes!("../../../../examples/digits/calibration.npz");
const TEST: &[u8] = include_bytes!("../../../../examples/digits/test.npz");
/// Which layers the mixed plan keeps at 8 bits.
const MIXED: &str = include_str!("../../../../examples/digits/mixed.json");
/// The search for a plan, as one would type it, each file feeding the next.
const SEARCH: [&str; 5] = [
    "calibrate digits.onnx --data calibration.npz -o calib.json",
    "tune digits.onnx --calib calib.json --time-budget 10s -o tune.jsonl",
    "table tune.jsonl -o latency.json",
    "sensitivity digits.onnx --calib calib.json --data calibration.npz --samples 64 -o sens.json",
    "search digits.onnx --sensitivity sens.json --latency latency.json --max-size 0.6x -o bits.json",
];

/// Words of [`SEARCH`] with these extensions are files of the demo's folder.
const FILES: [&str; 4] = ["onnx", "npz", "json", "jsonl"];

/// One line of the closing table.
#[derive(Serialize)]
struct Row {
    plan: String,
    top1_percent: f64,
    weight_bytes: usize,
    arena_bytes: Option<usize>,
    file_bytes: Option<usize>,
    latency_ns: u64,
}

pub fn run(args: &Demo, global: &Global, console: &Console) -> Result<(), Failure> {
    let scratch = tempfile::tempdir().map_err(io(Path::new("temporary folder")))?;
    let folder = args.keep.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let place = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        write_file(&path, content).map(|()| path)
    };
    let network = place("digits.onnx", NETWORK)?;
    let (calibration, test) = (place("calibration.npz", CALIBRATION)?, place("test.npz", TEST)?);

    console.note("network: digits, a residual network for 8x8 images; float ONNX, batch norms not folded");
    let source = Source::load(&network, Some(1))?;
    let calibration = calibrate::observe(&source, |input| Dataset::open(&calibration, input), None, console)?;
    console.note(format!("calibrated on {} images", calibration.samples()));
    let graph = hawqc_driver::float_form(&source)?;
    let data = Dataset::open(&test, &calibrate::single_input(&graph)?)?;

    let plans = [
        ("W8A8", PrecisionPlan::uniform(&graph, 8, 8)?),
        ("W4A4", PrecisionPlan::uniform(&graph, 4, 4)?),
        ("mixed", PrecisionPlan::from_json(MIXED)?),
        ("searched", search(folder, args, global, console)?),
    ];
    let mut rows = vec![float_row(&graph, &data, console)?];
    for (name, plan) in plans {
        let job = Job { source: &source, calibration: &calibration, data: &data, folder, args, global };
        rows.push(job.run(name, plan, console)?);
    }
    console.result(&rows, || closing_table(&rows, data.len()))
}

/// Tunes, measures and searches: the plan of least sensitivity within 60 % of the weights of W8A8.
fn search(folder: &Path, args: &Demo, global: &Global, console: &Console) -> Result<PrecisionPlan, Failure> {
    let log = folder.join("tune.jsonl");
    if log.exists() {
        std::fs::remove_file(&log).map_err(io(&log))?;
    }
    for line in SEARCH {
        console.note(format!("$ hawqc {line}"));
        let extension = |word: &str| Path::new(word).extension().and_then(|e| e.to_str()).map(str::to_owned);
        let is_file = |word: &str| extension(word).is_some_and(|e| FILES.contains(&e.as_str()));
        let place = |word: &str| if is_file(word) { folder.join(word).into_os_string() } else { word.into() };
        let mut words: Vec<OsString> = ["hawqc"].map(OsString::from).into();
        words.extend(line.split(' ').map(place));
        words.extend(global.threads.iter().flat_map(|n| ["--threads".into(), n.to_string().into()]));
        if line.starts_with("tune") {
            words.extend(["--target".into(), OsString::from(&args.target.target)]);
            words.extend(args.target.cpu_features.iter().flat_map(|f| ["--cpu-features".into(), f.into()]));
        }
        let cli = Cli::try_parse_from(words).map_err(|e| Failure::invalid(e.to_string()))?;
        super::run(&cli, &console.aside())?;
    }
    let path = folder.join("bits.json");
    let text = std::fs::read_to_string(&path).map_err(io(&path))?;
    Ok(PrecisionPlan::from_json(&text)?)
}

fn float_row(graph: &hawqc_ir::Graph, data: &Dataset, console: &Console) -> Result<Row, Failure> {
    let start = Instant::now();
    let accuracy = eval::float(graph, data, None, console)?;
    let latency_ns = start.elapsed().as_nanos() as u64 / accuracy.samples.max(1) as u64;
    let live = graph.live();
    let constants = graph.values().filter(|&id| live[id.index()] && graph.tensor(id).is_some());
    let weight_bytes = constants.map(|id| graph.ty(id).bytes()).sum();
    let top1_percent = accuracy.top1_percent();
    Ok(Row { plan: "float".into(), top1_percent, weight_bytes, arena_bytes: None, file_bytes: None, latency_ns })
}

struct Job<'a> {
    source: &'a Source,
    calibration: &'a Calibration,
    data: &'a Dataset,
    folder: &'a Path,
    args: &'a Demo,
    global: &'a Global,
}

impl Job<'_> {
    /// Quantises, compiles, loads, checks and measures one plan.
    fn run(&self, name: &str, plan: PrecisionPlan, console: &Console) -> Result<Row, Failure> {
        let precision = Precision { calibration: self.calibration.clone(), plan, options: Options::default() };
        let lowered = lower(self.source, Some(&precision))?;
        let options = CompileOptions::new(target(&self.args.target)?);
        let compiled = compile(lowered, &options)?;
        let path = self.folder.join(format!("digits-{}.so", name.to_lowercase()));
        let object = compiled.emit("so", &format!("digits-{name}.so"), &LinkWith::Own)?;
        write_file(&path, &object)?;
        let report = audit(&object)?;
        if let Some(finding) = report.findings.first() {
            return Err(Failure::new(Kind::Mismatch, format!("{name}: not integer only: {finding}")));
        }
        let model = Arc::new(Model::open(&path).map_err(hawqc_runtime::Error::from)?);
        let mut session = Session::new(Arc::clone(&model), self.global.threads.map(|n| n as usize))?;
        let accuracy = eval::compiled(&mut session, self.data, None, console)?;
        let elements = self.check_bits(&compiled, &mut session)?;
        console.note(format!(
            "{name}: {} steps, {} instructions between the borders all integer, {elements} outputs equal to the interpreter's",
            model.manifest().steps.len(),
            report.instructions
        ));
        Ok(Row {
            plan: name.into(),
            top1_percent: accuracy.top1_percent(),
            weight_bytes: model.manifest().weight_bytes,
            arena_bytes: Some(model.manifest().arena_bytes),
            file_bytes: Some(object.len()),
            latency_ns: self.latency(&mut session)?,
        })
    }

    fn image(&self, index: usize, shape: &[usize]) -> Result<Tensor, Failure> {
        Ok(Tensor::from_f32(shape, self.data.sample(index)?).map_err(hawqc_driver::Error::from)?)
    }

    /// Compares outputs with the interpreter's, bit for bit; the number of values compared.
    fn check_bits(&self, compiled: &hawqc_driver::Compiled, session: &mut Session) -> Result<usize, Failure> {
        let shape = eval::input_shape(session)?;
        let mut elements = 0;
        for index in 0..self.data.len() {
            for difference in verify::outputs(compiled.lowered.integer(), session, &[self.image(index, &shape)?])? {
                if let Some((at, expected, found)) = difference.first {
                    let message = format!("image {index}, output {at}: expected {expected}, found {found}");
                    return Err(Failure::new(Kind::Mismatch, message));
                }
                elements += difference.elements;
            }
        }
        Ok(elements)
    }

    fn latency(&self, session: &mut Session) -> Result<u64, Failure> {
        let shape = eval::input_shape(session)?;
        let image = RuntimeTensor::new(shape, self.data.sample(0)?).map_err(hawqc_runtime::Error::from)?;
        let limit = Limit { warmup: 20, iterations: None, duration: Duration::from_millis(500) };
        Ok(bench::measure(session, &[image], limit)?.median_ns)
    }
}

fn closing_table(rows: &[Row], images: usize) -> String {
    let optional = |b: Option<usize>| b.map_or("-".into(), bytes);
    let row = |r: &Row| {
        let latency = time(Duration::from_nanos(r.latency_ns));
        let top1 = format!("{:.2} %", r.top1_percent);
        vec![r.plan.clone(), top1, bytes(r.weight_bytes), optional(r.arena_bytes), optional(r.file_bytes), latency]
    };
    let header = ["plan", "top-1", "weights", "arena", "file", "latency"];
    format!(
        "{}\ntop-1 on {images} test images; latency of one image; float runs in the reference executor",
        table(&header, rows.iter().map(row))
    )
}
