//! Strassen's algorithm in a network of ResNet-50's shape with 4-bit weights and activations, on one thread.
//!
//! Three versions of the network take turns: direct products, and Strassen's algorithm of one and of two levels in the 1x1
//! convolutions that have it by default. Prints how many times faster they are than direct products. Arguments, both optional:
//! the number of turns, and `all` for Strassen's algorithm wherever it may be asked for.

mod network;

use std::sync::Arc;
use std::time::Instant;

use hawqc_codegen::{ModelInfo, Options, Target, jit, machine};
use hawqc_ir::text::seeded;
use hawqc_ir::{Elem, Graph, KernelSpec, Op};
use hawqc_runtime::manifest::Manifest;
use hawqc_runtime::{Entry, Session, Tensor};
use hawqc_schedules::Schedule;
use network::{IntRange, Result, resnet50};

/// Runs of a turn, the first of which, when others' weights are in the caches, does not count.
const RUNS: usize = 4;

struct Version {
    manifest: Manifest,
    session: Session,
    /// Seconds of every step, and of the whole.
    steps: Vec<Vec<f64>>,
    whole: Vec<f64>,
}

/// The schedule of a kernel that has Strassen's algorithm by default, or if `all` may have it, with so many levels.
fn schedule(spec: &KernelSpec, target: &Target, levels: usize, all: bool) -> Option<Schedule> {
    let machine = machine(target);
    let strassen_levels = |schedule: &Schedule| match schedule {
        Schedule::Strassen(strassen) => strassen.levels,
        _ => 0,
    };
    let (preferred, candidates) = (Schedule::preferred(spec, machine), Schedule::candidates(spec, machine));
    if !all && strassen_levels(preferred.first()?) == 0 || candidates.iter().all(|s| strassen_levels(s) == 0) {
        return None;
    }
    preferred.into_iter().chain(candidates).find(|s| strassen_levels(s) == levels)
}

impl Version {
    fn new(graph: &Graph, target: &Target, levels: usize, all: bool) -> Result<Version> {
        let mut options = Options::new(target.clone());
        for value in graph.values() {
            if let Op::Kernel(spec) = graph.op(value)
                && let Some(schedule) = schedule(spec, target, levels, all)
            {
                options.schedules.insert(spec.as_ref().clone(), schedule);
            }
        }
        let model = Arc::new(jit(graph, &ModelInfo::default(), &options)?);
        let manifest = model.manifest().clone();
        let steps = vec![Vec::new(); manifest.steps.len()];
        Ok(Version { manifest, session: Session::new(model, Some(1))?, steps, whole: Vec::new() })
    }

    /// Runs, and returns the bytes of the result.
    fn turn(&mut self, input: &Tensor) -> Result<Vec<u8>> {
        let mut outputs = self.session.new_outputs(Entry::Border)?;
        for run in 0..RUNS {
            let mut marks = Vec::with_capacity(self.steps.len() + 1);
            let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
            let mut mark = |_| marks.push(Instant::now());
            self.session.run_observed(Entry::Border, &[input.view()], &mut views, &mut mark)?;
            if run == 0 {
                continue;
            }
            let times: Vec<f64> = marks.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
            self.steps.iter_mut().zip(&times).for_each(|(all, &time)| all.push(time));
            self.whole.push(times.iter().sum());
        }
        Ok(outputs.iter().flat_map(|output| output.bytes().to_vec()).collect())
    }
}

/// The lower quartile.
fn quartile(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let turns = arguments.first().map_or(Ok(60), |turns| turns.parse())?;
    let all = arguments.get(1).is_some_and(|word| word == "all");
    let target = Target::parse("host")?;
    let graph = resnet50(Elem::U4, Elem::I4)?;
    let image = seeded(graph.ty(graph.inputs()[0]), 99, Elem::U8.int_range())?;
    let input = Tensor::from_bytes(hawqc_runtime::Elem::U8, image.shape().to_vec(), &image.to_bytes())?;
    let version = |levels: usize| Version::new(&graph, &target, levels, all);
    let mut versions = (0..=2).map(version).collect::<Result<Vec<_>>>()?;
    for _ in 0..turns {
        let results = versions.iter_mut().map(|version| version.turn(&input)).collect::<Result<Vec<_>>>()?;
        if results.iter().any(|result| *result != results[0]) {
            return Err("results differ".into());
        }
    }
    let print = |name: &str, times: [f64; 3]| {
        let [direct, one, two] = times;
        println!("{name:<20} {:>8.1} us  1 level {:.3}  2 levels {:.3}", direct * 1e6, direct / one, direct / two);
    };
    let of = |times: &dyn Fn(&Version) -> f64| [0, 1, 2].map(|i| times(&versions[i]));
    for (step, record) in versions[0].manifest.steps.iter().enumerate() {
        if versions[1].manifest.steps[step].kernel.contains("strassen") {
            print(&record.name, of(&|version| quartile(&version.steps[step])));
        }
    }
    print("network", of(&|version| quartile(&version.whole)));
    let bytes = [0, 1, 2].map(|i| versions[i].manifest.weight_bytes);
    println!("bytes of weights: {} direct, {} 1 level, {} 2 levels", bytes[0], bytes[1], bytes[2]);
    Ok(())
}
