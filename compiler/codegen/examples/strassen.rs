//! Strassen's algorithm beside direct products: 1x1 convolutions with requantisation, through the JIT, on one thread.
//!
//! Every answer is compared with the interpreter. The fastest direct and Strassen schedules of a layer are found in a first
//! pass; then they and the default take turns. A turn's first run, when others' weights and values are in the caches,
//! counts apart. Arguments, both optional: part of a layer's name, and the number of turns.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use hawqc_codegen::target::Target;
use hawqc_codegen::{ModelInfo, Options, jit, machine};
use hawqc_ir::text::seeded;
use hawqc_ir::{Arg, Conv, Elem, Graph, KernelSpec, Op, Range, Requant, Tensor, TensorType};
use hawqc_runtime::session::Session;
use hawqc_runtime::tensor::Tensor as Buffer;
use hawqc_schedules::Schedule;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Images, their height and width, input and output channels.
struct Layer {
    name: &'static str,
    images: usize,
    size: [usize; 2],
    c: usize,
    k: usize,
}

const fn layer(name: &'static str, size: [usize; 2], c: usize, k: usize) -> Layer {
    Layer { name, images: 1, size, c, k }
}

const LAYERS: [Layer; 12] = [
    layer("56x56 256->64", [56, 56], 256, 64),
    layer("28x28 128->512", [28, 28], 128, 512),
    layer("28x28 512->128", [28, 28], 512, 128),
    layer("28x28 512->256", [28, 28], 512, 256),
    layer("14x14 256->1024", [14, 14], 256, 1024),
    layer("14x14 1024->256", [14, 14], 1024, 256),
    layer("14x14 1024->512", [14, 14], 1024, 512),
    layer("7x7 512->2048", [7, 7], 512, 2048),
    layer("7x7 2048->512", [7, 7], 2048, 512),
    // Dense layers: a row of pixels for every row of a batch, and once an image for each.
    layer("64 rows 1024->1024", [64, 1], 1024, 1024),
    Layer { images: 64, ..layer("64 images 1024->1024", [1, 1], 1024, 1024) },
    layer("128 rows 2048->2048", [128, 1], 2048, 2048),
];

/// Runs of a turn, the first of which counts apart, and those of the first pass.
const TURN: usize = 4;
const FIRST_PASS_RUNS: usize = 12;

impl Layer {
    fn graph(&self) -> Result<(Graph, KernelSpec)> {
        let src = TensorType::new(Elem::U4, [self.images, self.size[0], self.size[1], self.c]);
        let wei = TensorType::new(Elem::I4, [self.k, 1, 1, self.c]);
        let range = wei.int_range()?;
        let per_channel = |elem, range| seeded(&TensorType::new(elem, [self.k]), 3, range);
        let constants = [
            seeded(&wei, 1, range)?,
            per_channel(Elem::I32, Range::new(-1000, 1000))?,
            per_channel(Elem::I32, Range::new(1 << 30, (1 << 31) - 1))?,
            per_channel(Elem::U8, Range::new(38, 40))?,
        ];
        let mut types = vec![src.clone()];
        types.extend(constants.iter().map(Tensor::ty));
        let requant = Requant::to_range(Range::new(0, 15), Elem::U4);
        let body: Vec<(Op, Vec<Arg>)> = vec![
            (Conv::unit().into(), vec![Arg::Operand(0), Arg::Operand(1), Arg::Operand(2)]),
            (requant.into(), vec![Arg::Step(0), Arg::Operand(3), Arg::Operand(4)]),
        ];
        let spec = KernelSpec::new(types, body)?;
        let mut graph = Graph::new();
        let mut args = vec![graph.input("x", src)?];
        args.extend(constants.map(|tensor| graph.constant(tensor)));
        let value = graph.add(self.name, Op::Kernel(Arc::new(spec.clone())), &args)?;
        graph.output("y", value);
        Ok((graph, spec))
    }
}

/// A schedule of a layer, ready to run.
struct Contender {
    schedule: Schedule,
    session: Session,
    /// Seconds of first runs of a turn, and of the others.
    first: Vec<f64>,
    warm: Vec<f64>,
}

impl Contender {
    fn new(graph: &Graph, spec: &KernelSpec, target: &Target, schedule: Schedule) -> Result<Contender> {
        let mut options = Options::new(target.clone());
        options.schedules.insert(spec.clone(), schedule);
        let model = jit(graph, &ModelInfo::default(), &options)?;
        Ok(Contender {
            schedule,
            session: Session::new(Arc::new(model), Some(1))?,
            first: Vec::new(),
            warm: Vec::new(),
        })
    }

    fn turn(&mut self, input: &Buffer, runs: usize) -> Result<()> {
        for run in 0..runs {
            let start = Instant::now();
            self.session.run(&[input.view()])?;
            let seconds = start.elapsed().as_secs_f64();
            if run == 0 { &mut self.first } else { &mut self.warm }.push(seconds);
        }
        Ok(())
    }

    /// What it competes with its like for.
    fn group(&self) -> String {
        match self.schedule {
            Schedule::Strassen(strassen) => format!("{} level", strassen.levels),
            _ => "direct".to_owned(),
        }
    }
}

/// The lower quartile.
fn quartile(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied().unwrap_or(f64::INFINITY)
}

fn measure(layer: &Layer, target: &Target, turns: usize) -> Result<()> {
    let (graph, spec) = layer.graph()?;
    let range = spec.operands()[0].int_range()?;
    let input = seeded(&spec.operands()[0], 9, range)?;
    let buffer = Buffer::from_bytes(hawqc_runtime::Elem::U8, input.shape().to_vec(), &input.to_bytes())?;
    let expected = hawqc_ir::interp::run(&graph, &[input])?[0].to_bytes();
    let mut best: BTreeMap<String, Contender> = BTreeMap::new();
    let mut default = None;
    for (index, schedule) in Schedule::candidates(&spec, machine(target)).into_iter().enumerate() {
        if matches!(schedule, Schedule::Conv(_)) {
            continue;
        }
        let mut contender = Contender::new(&graph, &spec, target, schedule)?;
        if contender.session.run(&[buffer.view()])?[0].bytes() != expected {
            return Err(format!("{}: wrong answer with {schedule}", layer.name).into());
        }
        contender.turn(&buffer, FIRST_PASS_RUNS)?;
        let time = quartile(&contender.warm);
        if index == 0 {
            default = Some(Contender::new(&graph, &spec, target, schedule)?);
        }
        let group = contender.group();
        if best.get(&group).is_none_or(|b| time < quartile(&b.warm)) {
            best.insert(group, contender);
        }
    }
    let mut all: Vec<(String, Contender)> = default.map(|d| ("default".to_owned(), d)).into_iter().collect();
    all.extend(best);
    for (_, contender) in &mut all {
        (contender.first, contender.warm) = (Vec::new(), Vec::new());
    }
    for _ in 0..turns {
        for (_, contender) in &mut all {
            contender.turn(&buffer, TURN)?;
        }
    }
    let direct = all.iter().find(|(name, _)| name == "direct").map(|(_, c)| [quartile(&c.first), quartile(&c.warm)]);
    let [direct_first, direct_warm] = direct.unwrap_or([f64::NAN; 2]);
    let macs = (layer.images * layer.size[0] * layer.size[1] * layer.c * layer.k) as f64;
    for (name, contender) in &all {
        let (first, warm) = (quartile(&contender.first), quartile(&contender.warm));
        println!(
            "{:<22} {name:<7} {:>8.1} us {:>6.1} GMAC/s  {:.3} warm {:.3} first  {}",
            layer.name,
            warm * 1e6,
            macs / warm / 1e9,
            direct_warm / warm,
            direct_first / first,
            contender.schedule
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let only = arguments.first().map_or("", String::as_str);
    let turns = arguments.get(1).map_or(Ok(60), |turns| turns.parse())?;
    let target = Target::parse("host")?;
    println!("speed over the fastest direct schedule, above 1 is faster; lower quartiles of {turns} turns");
    for layer in LAYERS.iter().filter(|layer| layer.name.contains(only)) {
        measure(layer, &target, turns)?;
    }
    Ok(())
}
