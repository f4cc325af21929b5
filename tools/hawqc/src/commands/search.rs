//! `hawqc search`: the widths of every layer, as cheap as the limits allow, with a proof.

mod front;
mod plot;
mod rescore;
mod tables;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hawqc_driver::{Source, float_form, write_file};
use hawqc_ir::Graph;
use hawqc_quantize::LayerBits;
use hawqc_quantize::search::{
    Freedom, Infeasible, Network, Report, Resource, SearchError, SearchOptions, Totals, solve,
};
use hawqc_quantize::sensitivity::choice_name;
use serde::Serialize;

use self::rescore::{Rescored, rescore};
use self::tables::Tables;
use super::check_output;
use crate::args::{Global, Search};
use crate::console::{Console, table, time};
use crate::failure::{Failure, Kind};

/// The answer, as printed and as JSON.
#[derive(Serialize)]
struct Summary {
    metric: String,
    /// Of the chosen plan.
    cost: f64,
    /// The least cost there is; with `proven` false, a bound on it.
    bound: f64,
    /// The Lagrangian bound, which needs no search.
    relaxed_bound: f64,
    gap: f64,
    proven: bool,
    steps: u64,
    seconds: f64,
    resources: Vec<ResourceLine>,
    layers: Vec<LayerLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rescored: Vec<Rescored>,
    written: Vec<PathBuf>,
}

#[derive(Serialize)]
struct ResourceLine {
    name: &'static str,
    used: f64,
    limit: Option<f64>,
    uniform_w8a8: Option<f64>,
}

#[derive(Serialize)]
struct LayerLine {
    name: String,
    weights: u8,
    activations: u8,
}

/// Everything a search needs.
struct Job {
    source: Source,
    graph: Graph,
    tables: Tables,
    network: Network,
    limits: Vec<(Resource, f64)>,
    /// What uniform w8a8 uses.
    eight: Totals,
    options: SearchOptions,
}

pub fn run(args: &Search, global: &Global, console: &Console) -> Result<(), Failure> {
    args.output.iter().chain(&args.pareto).try_for_each(|output| check_output(output, &args.model))?;
    front::check_names(&args.pareto)?;
    let job = Job::new(args, console)?;
    let start = Instant::now();
    let problem = job.network.problem(&job.limits)?;
    let report = solve(&problem, job.options).map_err(|e| job.failure(e))?;
    let seconds = start.elapsed().as_secs_f64();
    if !report.proven {
        console.warn(format!("not proven: the search ended after {} steps; raise --max-steps", report.steps));
    }
    let plans: Vec<Vec<LayerBits>> = report.best.iter().map(|s| job.network.bits(&s.choices)).collect();
    let rescored = match args.rescore {
        Some(_) => rescore(&job, &plans, &report, args, global, console)?,
        None => Vec::new(),
    };
    let chosen = rescored.iter().position(|r| r.chosen).unwrap_or(0);
    let mut files = Vec::new();
    if let Some(output) = &args.output {
        let plan = job.network.plan(&plans[chosen], job.provenance(&report, &rescored))?;
        files.push((output.clone(), plan.to_json()));
    }
    files.extend(front::files(&job, args, global, &plans[chosen], console)?);
    for (path, content) in &files {
        write_file(path, content.as_bytes())?;
    }
    let written = files.into_iter().map(|(path, _)| path).collect();
    let summary = job.summary(&report, &plans[chosen], chosen, seconds, rescored, written);
    console.result(&summary, || text(&summary, &plans[chosen]))
}

impl Job {
    fn new(args: &Search, console: &Console) -> Result<Job, Failure> {
        let source = Source::load(&args.model, Some(1))?;
        if source.is_quantized() {
            return Err(Failure::usage("the network is quantised already; search takes the float network"));
        }
        let graph = float_form(&source)?;
        let tables = Tables::read(args, &source, &graph, console)?;
        let freedom = Freedom {
            choices: args.choices.clone(),
            ties: args.tie.iter().map(|(a, b)| [a.clone(), b.clone()]).chain(tables.ties.iter().cloned()).collect(),
            tie_shared: args.tie_shared,
            free_edges: args.free_edges,
        };
        let network = Network::new(&graph, &tables.costs, tables.latency.as_ref(), &freedom)?;
        let eight = network.totals(&vec![LayerBits::both(8); network.choices().count()]);
        let mut limits = Vec::new();
        let wanted = [args.max_latency, args.max_size, args.max_bops];
        for (resource, limit) in Resource::ALL.into_iter().zip(wanted) {
            if let Some(limit) = limit {
                limits.push((resource, limit.of(baseline(resource, limit, &eight)?)));
            }
        }
        let wanted = args.rescore.unwrap_or(1) as usize;
        let options = SearchOptions { wanted, max_steps: args.max_steps };
        Ok(Job { source, graph, tables, network, limits, eight, options })
    }

    /// An error of the search for people: with units and shares.
    fn failure(&self, error: SearchError) -> Failure {
        let SearchError::Infeasible(Infeasible { limit, most, least, with }) = &error else {
            let kind = match error {
                SearchError::NoCommonChoice { .. } => Kind::Usage,
                _ => Kind::Invalid,
            };
            return Failure::new(kind, error.to_string());
        };
        let Some(resource) = Resource::named(limit) else {
            return Failure::new(Kind::Infeasible, error.to_string());
        };
        let others = match with.as_slice() {
            [] => String::new(),
            names => format!(" while the limit on {} holds", names.join(" and ")),
        };
        let share = self.eight.get(resource).map_or(String::new(), |eight| format!(" ({:.3}x)", least / eight));
        let message = format!(
            "the limit on {limit} of {} cannot be met{others}; the least reachable is {}{share}",
            quantity(resource, *most),
            quantity(resource, *least)
        );
        Failure::new(Kind::Infeasible, message).hint(match with.as_slice() {
            [] => format!("raise --max-{limit}, or allow narrower widths"),
            names => format!("raise --max-{limit} or --max-{}, or allow narrower widths", names.join(" or --max-")),
        })
    }

    /// What a plan comes from: objective, limits, proof, and the digests of the tables.
    fn provenance(&self, report: &Report, rescored: &[Rescored]) -> String {
        let limit =
            |(resource, most): &(Resource, f64)| format!("{} <= {}", resource.name(), quantity(*resource, *most));
        let limits = match self.limits.as_slice() {
            [] => "no limit".to_string(),
            limits => limits.iter().map(limit).collect::<Vec<_>>().join(", "),
        };
        let proof = if report.proven { "proven optimal".into() } else { format!("gap {:.2e}", report.gap()) };
        let chosen = rescored
            .iter()
            .find(|r| r.chosen)
            .map_or(String::new(), |r| format!("; rank {} of {} by {} on data", r.rank, rescored.len(), r.measure()));
        format!(
            "search: least {} cost under {limits}; {proof}{chosen}; {}",
            self.tables.costs.metric, self.tables.identity
        )
    }

    fn summary(
        &self,
        report: &Report,
        bits: &[LayerBits],
        chosen: usize,
        seconds: f64,
        rescored: Vec<Rescored>,
        written: Vec<PathBuf>,
    ) -> Summary {
        let totals = self.network.totals(bits);
        let line = |resource: Resource| {
            let limit = self.limits.iter().find(|(r, _)| *r == resource).map(|(_, most)| *most);
            let used = totals.get(resource)?;
            Some(ResourceLine { name: resource.name(), used, limit, uniform_w8a8: self.eight.get(resource) })
        };
        let names = hawqc_quantize::plan::quantizable_layers(&self.graph).into_iter();
        let layer = |((_, name), bits): ((_, String), &LayerBits)| LayerLine {
            name,
            weights: bits.weights,
            activations: bits.activations,
        };
        Summary {
            metric: self.tables.costs.metric.clone(),
            cost: report.best[chosen].cost,
            bound: report.bound,
            relaxed_bound: report.relaxed,
            gap: report.gap(),
            proven: report.proven,
            steps: report.steps,
            seconds,
            resources: Resource::ALL.into_iter().filter_map(line).collect(),
            layers: names.zip(bits).map(layer).collect(),
            rescored,
            written,
        }
    }
}

/// What uniform w8a8 uses, if `limit` is a share of it.
fn baseline(resource: Resource, limit: crate::limit::Limit, eight: &Totals) -> Result<f64, Failure> {
    match (limit, eight.get(resource)) {
        (crate::limit::Limit::Absolute(_), _) => Ok(0.0),
        (_, Some(used)) => Ok(used),
        (_, None) => Err(Failure::usage(format!(
            "a share as limit on {} needs a table with every layer at w8a8; give a quantity",
            resource.name()
        ))),
    }
}

/// A quantity of a resource for people.
fn quantity(resource: Resource, value: f64) -> String {
    format!("{:.4} {}", value / unit(resource).0, unit(resource).1)
}

/// The unit a resource is shown in, and its size.
fn unit(resource: Resource) -> (f64, &'static str) {
    match resource {
        Resource::Latency => (1e6, "ms"),
        Resource::Size => (1e6, "MB"),
        Resource::Bops => (1e9, "GBOPS"),
    }
}

fn text(summary: &Summary, bits: &[LayerBits]) -> String {
    let row = |line: &ResourceLine| {
        let resource = Resource::named(line.name).unwrap_or(Resource::Size);
        let optional = |value: Option<f64>| value.map_or("-".into(), |v| quantity(resource, v));
        let share = line.uniform_w8a8.map_or("-".into(), |eight| format!("{:.3}x", line.used / eight));
        vec![line.name.into(), quantity(resource, line.used), optional(line.limit), optional(line.uniform_w8a8), share]
    };
    let header = ["", "plan", "limit", "uniform w8a8", "share"];
    let mut text = table(&header, summary.resources.iter().map(row));
    let mut counts: Vec<(String, usize)> = Vec::new();
    for name in bits.iter().map(|b| choice_name(*b)) {
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect();
    let proof = if summary.proven { "proven optimal" } else { "not proven" };
    text += &format!(
        "\nlayers: {}\n{} cost {:.6e}, gap {:.2e} ({proof}); Lagrangian bound {:.6e}; {} steps in {}",
        counts.join(", "),
        summary.metric,
        summary.cost,
        summary.gap,
        summary.relaxed_bound,
        summary.steps,
        time(Duration::from_secs_f64(summary.seconds))
    );
    if !summary.rescored.is_empty() {
        text = format!("{}\n{text}", rescore::table_of(&summary.rescored));
    }
    text
}
