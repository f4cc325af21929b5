//! `hawqc sensitivity`: what quantising each layer costs, measured sample by sample.
//!
//! Every sample measured is appended to a checkpoint beside the output; the same command continues from
//! there. The result depends neither on interruptions nor on the number of threads.

mod checkpoint;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hawqc_driver::{Source, float_form, write_file};
use hawqc_ir::{Elem, Tensor};
use hawqc_quantize::sensitivity::{
    DECISION_STEP, Estimator, LayerSensitivity, Measurement, Metric, Record, RunHead, Sensitivities, Settings, Task,
    parse_choice, published,
};
use hawqc_quantize::{Calibration, Options};
use indicatif::ProgressBar;
use rayon::prelude::*;

use self::checkpoint::CheckpointFile;
use super::calibrate::single_input;
use super::{check_output, read_text};
use crate::args::{self, Global};
use crate::console::{Console, table};
use crate::data::Dataset;
use crate::failure::{Failure, Kind};

pub fn run(args: &args::Sensitivity, global: &Global, console: &Console) -> Result<(), Failure> {
    check_output(&args.output, &args.model)?;
    let source = Source::load(&args.model, Some(1))?;
    if source.is_quantized() {
        return Err(Failure::usage("the network is quantised already; measure the float network it stems from"));
    }
    let graph = float_form(&source)?;
    let found = match (&args.import, &args.data) {
        (Some(tables), _) => {
            let text = if tables == "hawq" { published::TABLES.into() } else { read_text(Path::new(tables))? };
            published::import(&text, &graph, &source.hash)?
        }
        (None, Some(data)) => measure(args, global, console, &source, &graph, data)?,
        (None, None) => return Err(Failure::usage("give --data")),
    };
    write_file(&args.output, found.to_json().as_bytes())?;
    CheckpointFile::beside(&args.output).remove()?;
    console.note(format!("{}: {}", found.provenance, args.output.display()));
    console.result(&found, || summary(&found))
}

fn measure(
    args: &args::Sensitivity,
    global: &Global,
    console: &Console,
    source: &Source,
    graph: &hawqc_ir::Graph,
    data: &Path,
) -> Result<Sensitivities, Failure> {
    let calibration = match &args.calib {
        Some(path) => Some(Calibration::from_json(&read_text(path)?)?),
        None if args.metric == args::Metric::Output => return Err(hawqc_driver::Error::NotCalibrated.into()),
        None => None,
    };
    if let Some(calibration) = &calibration {
        calibration.check_model(&source.hash)?;
    }
    let settings = Settings {
        metric: match args.metric {
            args::Metric::Hessian => Metric::Hessian,
            args::Metric::Fisher => Metric::Fisher,
            args::Metric::Output => Metric::Output,
        },
        estimator: match args.estimator {
            args::Estimator::Scores => Estimator::Scores,
            args::Estimator::Weights => Estimator::Weights,
        },
        choices: args.choices.iter().map(|c| parse_choice(c)).collect::<Result<_, _>>()?,
        seed: global.seed,
        calibration: calibration.as_ref().map(|c| (c, Options::default().method)),
    };
    let shape = single_input(graph)?;
    let data = Dataset::open(data, &shape)?;
    let measurement = Measurement::new(graph, &settings)?;
    let samples = Samples { data: &data, shape, count: data.len().min(args.samples as usize) };
    let (labelled, identity) = (samples.labelled(), samples.identity()?);
    let sizes = [samples.count, args.probes as usize];
    let run = measurement.run(&source.hash, &identity, labelled, sizes);
    let run = RunHead { shard: args.shard.map_or([0, 1], |(i, n)| [i, n]), ..run };
    let tolerance = Some(args.tolerance).filter(|&t| t > 0.0 && args.shard.is_none());
    let stop = stop_on_interrupt();
    let job = Job { measurement: &measurement, run: &run, samples: &samples, tolerance, stop, console };
    job.finish(CheckpointFile::beside(&args.output), threads(global))
}

/// Threads to use; `None` for as many as the process may use.
fn threads(global: &Global) -> Option<usize> {
    let variable = || std::env::var("HAWQC_THREADS").ok()?.parse().ok().filter(|&n: &usize| n > 0);
    global.threads.map(|n| n as usize).or_else(variable)
}

/// The samples in use, spread evenly over the data.
struct Samples<'a> {
    data: &'a Dataset,
    shape: Vec<usize>,
    count: usize,
}

impl Samples<'_> {
    fn labelled(&self) -> bool {
        self.data.labels().is_ok()
    }

    fn get(&self, sample: usize) -> Result<(Tensor, Option<usize>), Failure> {
        let at = (sample as u64 * self.data.len() as u64 / self.count as u64) as usize;
        let image = Tensor::from_f32(self.shape.clone(), self.data.sample(at)?).map_err(hawqc_driver::Error::from)?;
        Ok((image, self.data.labels().ok().map(|labels| labels[at])))
    }

    /// What tells one set of data from another: how many samples, the first, and the labels.
    fn identity(&self) -> Result<String, Failure> {
        let (first, _) = self.get(0)?;
        let labels = self.data.labels().unwrap_or_default().iter().map(|&l| l as i64);
        let labels: Vec<i64> = labels.map(|l| l.min(i32::MAX.into())).collect();
        let digest = match labels.is_empty() {
            true => 0,
            false => {
                let tensor = Tensor::from_ints(Elem::I32, [labels.len()], labels).map_err(hawqc_driver::Error::from)?;
                tensor.const_id().0
            }
        };
        Ok(format!("{} samples {:016x}", self.data.len(), ((first.const_id().0 ^ digest) >> 64) as u64))
    }
}

struct Job<'a> {
    measurement: &'a Measurement,
    run: &'a RunHead,
    samples: &'a Samples<'a>,
    /// Where to stop early.
    tolerance: Option<f64>,
    /// Whether the user wants to stop.
    stop: Arc<AtomicBool>,
    console: &'a Console,
}

impl Job<'_> {
    /// Measures what the checkpoint does not hold yet.
    fn finish(&self, mut file: CheckpointFile, threads: Option<usize>) -> Result<Sensitivities, Failure> {
        let mut records = file.resume(self.run, self.console)?;
        let tasks: Vec<Task> = self.run.tasks().collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
        let pool = pool.map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
        let bar = self.console.progress("measuring", tasks.len());
        bar.set_position(records.len() as u64);
        let layers = self.measurement.layers();
        let step = DECISION_STEP.next_multiple_of(pool.current_num_threads());
        let used = loop {
            if let Some(enough) = self.enough(&records) {
                break enough;
            }
            let next = self.open(&tasks, &records, step);
            if next.is_empty() {
                break records.len();
            }
            records.extend(pool.install(|| self.measured(&next, &mut file, &bar))?);
            records.sort_by_key(|r| r.task);
            if self.stop.load(Ordering::Relaxed) {
                bar.finish_and_clear();
                let message = format!("interrupted after {} of {} measurements", records.len(), tasks.len());
                return Err(Failure::new(Kind::Interrupted, message).hint("the same command continues from there"));
            }
        };
        bar.finish_and_clear();
        let found = self.run.assemble(layers.to_vec(), &records[..used])?;
        if let Some(tolerance) = self.tolerance.filter(|&t| !found.within(t)) {
            let percent = tolerance * 100.0;
            self.console.note(format!(
                "a standard error is above {percent} % of its cost; more --samples or --probes lower it"
            ));
        }
        Ok(found)
    }

    /// How many of the first records are enough for the tolerance.
    fn enough(&self, records: &[Record]) -> Option<usize> {
        let in_order = records.iter().enumerate().take_while(|(i, r)| r.task == *i).count();
        self.run.enough(self.measurement.layers(), &records[..in_order], self.tolerance?)
    }

    /// The next tasks without a record.
    fn open(&self, tasks: &[Task], records: &[Record], count: usize) -> Vec<Task> {
        let done = |t: &Task| records.binary_search_by_key(&t.number, |r| r.task).is_ok();
        tasks.iter().filter(|t| !done(t)).take(count).copied().collect()
    }

    /// Records of `tasks`, or of some if the user wants to stop.
    fn measured(&self, tasks: &[Task], file: &mut CheckpointFile, bar: &ProgressBar) -> Result<Vec<Record>, Failure> {
        let file = Mutex::new(file);
        let measure = |&task: &Task| -> Result<Option<Record>, Failure> {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (image, label) = self.samples.get(task.sample)?;
            let record = self.measurement.measure(task, &image, label)?;
            let poisoned = |_| Failure::new(Kind::Internal, "a thread failed while it wrote the checkpoint");
            file.lock().map_err(poisoned)?.append(self.run, &record)?;
            bar.inc(1);
            Ok(Some(record))
        };
        let found = tasks.par_iter().map(measure).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// From here on the first interrupt asks to stop, the second stops at once. Where a handler cannot be
/// installed, an interrupt ends the process; the checkpoint then holds what was measured all the same.
fn stop_on_interrupt() -> Arc<AtomicBool> {
    use signal_hook::{consts::SIGINT, flag};
    let stop = Arc::new(AtomicBool::new(false));
    // The handler that ends the process comes first: it looks at what the other sets.
    let _ = flag::register_conditional_shutdown(SIGINT, Kind::Interrupted as i32, Arc::clone(&stop));
    let _ = flag::register(SIGINT, Arc::clone(&stop));
    stop
}

fn summary(found: &Sensitivities) -> String {
    let choices: Vec<&String> =
        found.layers.iter().max_by_key(|l| l.cost.len()).map_or(Vec::new(), |l| l.cost.keys().collect());
    let number = |value: Option<&f64>| value.map_or("-".into(), |v| format!("{v:.3e}"));
    let row = |layer: &LayerSensitivity| {
        let mut cells = vec![layer.name.clone(), layer.parameters.to_string()];
        cells.extend([number(layer.trace.as_ref()), number(layer.trace_stderr.as_ref())]);
        cells.extend(choices.iter().map(|c| number(layer.cost.get(*c))));
        cells
    };
    let header = ["layer", "weights", "trace", "stderr"].into_iter().chain(choices.iter().map(|c| c.as_str()));
    let header: Vec<&str> = header.collect();
    let counts = match found.probes {
        0 => found.provenance.clone(),
        probes => format!("{probes} measurements on {} samples", found.samples),
    };
    format!("{}\n{counts}; costs by width choice", table(&header, found.layers.iter().map(row)))
}
