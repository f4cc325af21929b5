//! `--pareto`: the front of best plans over one resource, as CSV and as a figure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hawqc_quantize::LayerBits;
use hawqc_quantize::search::{FrontError, FrontPoint, Resource, Totals, front};
use hawqc_quantize::sensitivity::choice_name;

use super::plot::{Figure, svg};
use super::{Job, unit};
use crate::args::{Global, Search};
use crate::console::Console;
use crate::failure::{Failure, Kind};

/// A plan that is no point of the front, for comparison.
struct Other {
    kind: String,
    bits: Vec<LayerBits>,
    totals: Totals,
}

/// Refuses files that are neither CSV nor SVG.
pub fn check_names(paths: &[PathBuf]) -> Result<(), Failure> {
    match paths.iter().find(|p| !is(p, "csv") && !is(p, "svg")) {
        Some(path) => Err(Failure::usage(format!("--pareto {}: the name must end in .csv or .svg", path.display()))),
        None => Ok(()),
    }
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

/// The files asked for, with their contents.
pub fn files(
    job: &Job,
    args: &Search,
    global: &Global,
    chosen: &[LayerBits],
    console: &Console,
) -> Result<Vec<(PathBuf, String)>, Failure> {
    if args.pareto.is_empty() {
        return Ok(Vec::new());
    }
    let default = if job.tables.latency.is_some() { Resource::Latency } else { Resource::Size };
    let over = args.pareto_over.as_deref().and_then(Resource::named).unwrap_or(default);
    let points = front(&job.network, over, &job.limits, args.pareto_points as usize, job.options);
    let points = points.map_err(|error| match error {
        FrontError::Search(error) => job.failure(error),
        FrontError::Network(error) => error.into(),
    })?;
    if points.iter().any(|p| !p.proven) {
        console.warn("some points of the front are not proven; raise --max-steps");
    }
    let mut others =
        vec![other(job, "uniform w8a8", LayerBits::both(8)), other(job, "uniform w4a4", LayerBits::both(4))];
    let random = (0..args.pareto_random).map(|index| {
        let bits = random_plan(job, global.seed, index, args.pareto_random);
        Other { kind: "random".into(), totals: job.network.totals(&bits), bits }
    });
    others.extend(random);
    if args.output.is_some() {
        others.push(Other { kind: "chosen".into(), totals: job.network.totals(chosen), bits: chosen.to_vec() });
    }
    let file = |path: &PathBuf| {
        let content = if is(path, "csv") {
            csv(&points, &others)
        } else {
            svg(&figure(job, over, &points, &others)).map_err(|e| Failure::new(Kind::Internal, e))?
        };
        Ok((path.clone(), content))
    };
    args.pareto.iter().map(file).collect()
}

fn other(job: &Job, kind: &str, bits: LayerBits) -> Other {
    let bits = job.network.uniform(bits);
    Other { kind: kind.into(), totals: job.network.totals(&bits), bits }
}

/// A plan whose layers leave their widest choice with a chance that grows with `index`.
fn random_plan(job: &Job, seed: u64, index: usize, count: usize) -> Vec<LayerBits> {
    let mut state = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(index as u64);
    // SplitMix64.
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let leaning = (index as f64 + 0.5) / count as f64;
    let pick = |choices: &[LayerBits]| {
        let leaves = (next() >> 11) as f64 / (1u64 << 53) as f64;
        let other = 1 + next() as usize % (choices.len() - 1).max(1);
        choices[if leaves < leaning && choices.len() > 1 { other } else { 0 }]
    };
    let mut bits: Vec<LayerBits> = job.network.choices().map(pick).collect();
    job.network.agree(&mut bits);
    bits
}

fn csv(points: &[FrontPoint], others: &[Other]) -> String {
    let mut text = String::from("kind,limit,latency_ns,size_bytes,bops,cost,bound,proven,plan\n");
    let plan = |bits: &[LayerBits]| bits.iter().map(|b| choice_name(*b)).collect::<Vec<_>>().join(" ");
    let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    let mut line = |kind: &str, limit, totals: &Totals, rest: [String; 2], bits: &[LayerBits]| {
        let (latency, cost) = (number(totals.latency_ns), number(totals.cost));
        let [bound, proven] = rest;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{kind},{},{latency},{},{},{cost},{bound},{proven},{}",
            number(limit),
            totals.size_bytes,
            totals.bops,
            plan(bits)
        );
    };
    for p in points {
        line("optimal", Some(p.limit), &p.totals, [p.bound.to_string(), p.proven.to_string()], &p.bits);
    }
    for other in others {
        line(&other.kind, None, &other.totals, Default::default(), &other.bits);
    }
    text
}

fn figure(job: &Job, over: Resource, points: &[FrontPoint], others: &[Other]) -> Figure<'static> {
    let (scale, _) = unit(over);
    let at = |totals: &Totals| Some((totals.get(over)? / scale, totals.cost?));
    let of = |kind: &str| others.iter().filter(|o| o.kind == kind).filter_map(|o| at(&o.totals)).collect::<Vec<_>>();
    let uniform = others.iter().filter(|o| o.kind.starts_with("uniform"));
    Figure {
        x: match over {
            Resource::Latency => "latency (ms)",
            Resource::Size => "size of weights (MB)",
            Resource::Bops => "bit operations (GBOPS)",
        },
        y: match job.tables.costs.metric.as_str() {
            "hessian" => "sum of costs (Hessian trace x squared error)",
            "fisher" => "sum of costs (Fisher)",
            "output" => "sum of costs (output error)",
            "weights" => "squared error of weights",
            _ => "sum of costs",
        },
        front: points.iter().filter_map(|p| at(&p.totals)).collect(),
        uniform: uniform.filter_map(|o| Some((o.kind.clone(), at(&o.totals)?))).collect(),
        random: of("random"),
        chosen: of("chosen").first().copied(),
    }
}
