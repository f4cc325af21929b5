//! Convolutions by schedules, each answer compared with the interpreter's before it is timed.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawqc_codegen::{ModelInfo, Options, Target, jit, machine};
use hawqc_driver::{lower_integer, tensors, verify};
use hawqc_ir::{Graph, KernelSpec, Op, Tensor};
use hawqc_runtime::{Entry, Session, Tensor as RuntimeTensor, TensorMut, TensorRef};
use hawqc_schedules::Schedule;
use hawqc_tests::images;

use crate::networks::{ConvShape, convolution};

/// How long a schedule is timed while the fastest is looked for, and in a round.
const SEARCH: Duration = Duration::from_millis(12);
const ROUND: Duration = Duration::from_millis(20);
const ROUNDS: usize = 9;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// What a bench of convolutions is asked for: a part of the layers' names, `--target=NAME`, `--all` to print the time of every
/// schedule while the fastest is looked for.
pub struct Arguments {
    pub filter: String,
    pub target: Target,
    pub all: bool,
}

impl Arguments {
    pub fn read() -> Outcome<Arguments> {
        let (options, names): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with('-'));
        let target = match options.iter().find_map(|option| option.strip_prefix("--target=")) {
            Some(name) => Target::parse(name)?,
            None => Target::host()?,
        };
        let all = options.iter().any(|option| option == "--all");
        Ok(Arguments { filter: names.into_iter().next().unwrap_or_default(), target, all })
    }
}

/// A convolution by one schedule, ready to run.
pub struct Contender {
    pub schedule: Schedule,
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
pub struct Layer {
    graph: Graph,
    kernels: Graph,
    spec: KernelSpec,
    inputs: Vec<Tensor>,
}

impl Layer {
    pub fn new(shape: ConvShape, bits: u32) -> Outcome<Layer> {
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
    pub fn fastest(&self, target: &Target, all: bool, wanted: impl Fn(&Schedule) -> bool) -> Outcome<Contender> {
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

/// The time of each, in seconds: the median of the medians of rounds in which all are timed in turn.
pub fn interleaved<const N: usize>(contenders: &mut [Contender; N]) -> Outcome<[f64; N]> {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            times.push(contender.time(ROUND)?);
        }
    }
    Ok(times.map(median))
}
