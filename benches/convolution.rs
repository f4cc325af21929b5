//! The distinct convolutions of ResNet-50 and some of InceptionV3 on one thread, requantisation included: direct kernels and
//! the fastest schedules of all at 8 and at 4 bits, beside the most that the core multiplies.
//!
//! Every schedule's answer is compared with the interpreter's before it is timed. The fastest are looked for first, then timed
//! in interleaved rounds; a time is the median of the rounds' medians. Arguments: a part of the layers' names;
//! `--target=NAME`; `--all` to print the time of every schedule while the fastest is looked for.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawqc_benches::networks::{ConvShape, convolution};
use hawqc_codegen::{ModelInfo, Options, Target, jit, limit, machine};
use hawqc_driver::{lower_integer, tensors, verify};
use hawqc_ir::{Graph, KernelSpec, Op, Tensor};
use hawqc_runtime::{Entry, Session, Tensor as RuntimeTensor, TensorMut, TensorRef};
use hawqc_schedules::Schedule;
use hawqc_tests::images;

const fn square(size: usize, channels: usize, kernels: usize, window: usize, stride: usize) -> ConvShape {
    ConvShape::square(size, channels, kernels, window, stride)
}

const SHAPES: [ConvShape; 26] = [
    square(56, 64, 64, 3, 1),
    square(28, 128, 128, 3, 1),
    square(14, 256, 256, 3, 1),
    square(7, 512, 512, 3, 1),
    square(56, 128, 128, 3, 2),
    square(28, 256, 256, 3, 2),
    square(14, 512, 512, 3, 2),
    square(56, 64, 64, 1, 1),
    square(56, 64, 256, 1, 1),
    square(56, 256, 64, 1, 1),
    square(56, 256, 128, 1, 1),
    square(28, 128, 512, 1, 1),
    square(28, 512, 128, 1, 1),
    square(28, 512, 256, 1, 1),
    square(14, 256, 1024, 1, 1),
    square(14, 1024, 256, 1, 1),
    square(14, 1024, 512, 1, 1),
    square(7, 512, 2048, 1, 1),
    square(7, 2048, 512, 1, 1),
    square(224, 3, 64, 7, 2),
    square(35, 288, 384, 3, 2).without_padding(),
    square(35, 96, 96, 3, 2).without_padding(),
    square(17, 192, 320, 3, 2).without_padding(),
    square(35, 48, 64, 5, 1),
    square(17, 192, 192, 7, 1).windowed([1, 7]),
    square(17, 160, 160, 7, 1).windowed([7, 1]),
];

/// How long a schedule is timed while the fastest is looked for, and in a round.
const SEARCH: Duration = Duration::from_millis(12);
const ROUND: Duration = Duration::from_millis(20);
const ROUNDS: usize = 9;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A convolution by one schedule, ready to run.
struct Contender {
    schedule: Schedule,
    session: Session,
    inputs: Vec<RuntimeTensor>,
    outputs: Vec<RuntimeTensor>,
}

impl Contender {
    /// None if the weights rule the schedule out.
    fn new(layer: &Layer, target: &Target, schedule: Schedule) -> Outcome<Option<Contender>> {
        let mut options = Options::new(target.clone());
        options.schedules.insert(layer.spec.clone(), schedule);
        let Ok(model) = jit(&layer.kernels, &ModelInfo::default(), &options) else {
            return Ok(None);
        };
        let mut session = Session::new(Arc::new(model), Some(1))?;
        for difference in verify::outputs(&layer.graph, &mut session, &layer.inputs)? {
            if let Some((index, expected, found)) = difference.first {
                return Err(format!("{schedule}: [{index}]: expected {expected}, found {found}").into());
            }
        }
        let inputs = layer.inputs.iter().map(tensors::to_runtime).collect::<Result<_, _>>()?;
        let outputs = session.new_outputs(Entry::Border)?;
        Ok(Some(Contender { schedule, session, inputs, outputs }))
    }

    /// The median time of runs for about `duration`, in seconds.
    fn time(&mut self, duration: Duration) -> Outcome<f64> {
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < 3 || start.elapsed() < duration {
            let inputs: Vec<TensorRef> = self.inputs.iter().map(RuntimeTensor::view).collect();
            let mut outputs: Vec<TensorMut> = self.outputs.iter_mut().map(RuntimeTensor::view_mut).collect();
            let began = Instant::now();
            self.session.run_into(Entry::Border, &inputs, &mut outputs)?;
            times.push(began.elapsed().as_secs_f64());
        }
        Ok(median(times))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A convolution at one width.
struct Layer {
    graph: Graph,
    kernels: Graph,
    spec: KernelSpec,
    inputs: Vec<Tensor>,
}

impl Layer {
    fn new(shape: ConvShape, bits: u32) -> Outcome<Layer> {
        let graph = convolution(shape, bits)?;
        let kernels = lower_integer(&graph)?.kernels().clone();
        let spec = kernels.values().find_map(|id| match kernels.op(id) {
            Op::Kernel(spec) => Some(spec.as_ref().clone()),
            _ => None,
        });
        let inputs = images(&graph, 3);
        Ok(Layer { spec: spec.ok_or("a graph without kernels")?, graph, kernels, inputs })
    }

    /// The fastest of the schedules that are `wanted`; prints them `all`.
    fn fastest(&self, target: &Target, all: bool, wanted: impl Fn(&Schedule) -> bool) -> Outcome<Contender> {
        let mut best: Option<(f64, Contender)> = None;
        for schedule in Schedule::candidates(&self.spec, machine(target)).into_iter().filter(wanted) {
            let Some(mut contender) = Contender::new(self, target, schedule)? else {
                continue;
            };
            let time = contender.time(SEARCH)?;
            if all {
                println!("{:.0} {schedule}", time * 1e9);
            }
            if best.as_ref().is_none_or(|(least, _)| time < *least) {
                best = Some((time, contender));
            }
        }
        Ok(best.ok_or("no schedule for this target")?.1)
    }
}

fn main() -> Outcome<()> {
    let (options, names): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with('-'));
    let filter = names.into_iter().next().unwrap_or_default();
    let target = match options.iter().find_map(|option| option.strip_prefix("--target=")) {
        Some(name) => Target::parse(name)?,
        None => Target::host()?,
    };
    let all = options.iter().any(|option| option == "--all");
    let mut limits = limit::Limits::new(&target);
    println!(
        "| layer | direct 8 bits | GMAC/s | of limit | 8 bits | over direct | direct 4 bits | 4 bits | over direct | \
         over direct 8 bits |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for shape in SHAPES.into_iter().filter(|shape| shape.to_string().contains(&filter)) {
        let (wide, narrow) = (Layer::new(shape, 8)?, Layer::new(shape, 4)?);
        let is_direct = |s: &Schedule| matches!(s, Schedule::Wide(_) | Schedule::Conv(_));
        let is_assembled = |s: &Schedule| !matches!(s, Schedule::Conv(_));
        let mut contenders = [
            wide.fastest(&target, false, is_direct)?,
            wide.fastest(&target, all, is_assembled)?,
            narrow.fastest(&target, false, is_direct)?,
            narrow.fastest(&target, all, is_assembled)?,
        ];
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for (contender, times) in contenders.iter_mut().zip(&mut times) {
                times.push(contender.time(ROUND)?);
            }
        }
        let [direct, eight, direct_four, four] = times.map(median);
        let ns = (direct * 1e9) as u64;
        let share = limits.share(contenders[0].schedule, shape.macs(), ns)?.ok_or("a portable kernel was fastest")?;
        let rate = shape.macs() as f64 / direct;
        let us = |seconds: f64, contender: &Contender| format!("{:.1} us `{}`", seconds * 1e6, contender.schedule);
        println!(
            "| {shape} | {} | {:.1} | {:.0} % | {} | {:.2} | {} | {} | {:.2} | {:.2} |",
            us(direct, &contenders[0]),
            rate / 1e9,
            100.0 * share,
            us(eight, &contenders[1]),
            direct / eight,
            us(direct_four, &contenders[2]),
            us(four, &contenders[3]),
            direct_four / four,
            direct / four,
        );
    }
    for (multiply, limit) in limits.measured() {
        println!("limit of a core by `{}`: {:.1} GMAC/s", multiply.name(), limit / 1e9);
    }
    Ok(())
}
