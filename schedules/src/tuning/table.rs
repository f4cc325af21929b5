//! From a tuning log to a latency table.
//!
//! In: the rows of one network on one machine at one number of threads. Out: a [`LatencyTable`] whose
//! prediction is additive:
//!
//! * A **layer** at a choice takes what its steps took in the network that has this choice everywhere.
//! * **Fixed** is what these networks took beyond their layers: pools, residual copies, borders, hand-over.
//! * A **seam** is what mixtures took beyond that. Two kinds exist. Where one layer alone feeds another, the
//!   first one's epilogue writes what the second reads, so its time may depend on the second's activation
//!   width. Where two layers read one value at different widths, there is a copy for each.
//!
//! Networks are measured at different times, when the machine as a whole may be faster or slower. So all times are
//! taken relative to the reference network that was measured in turns with each, and those of a mixture are divided
//! by the median, over its layers, of what they then took relative to the uniform networks.
//!
//! Seams are fitted by least squares with a penalty on their squares (ridge regression). The first kind decouples:
//! each parameter is the mean of its observations, drawn by one more toward the mean of all seams of its
//! choices relative to their layers' times. The second kind is solved over all mixtures together. A table has
//! every seam that its layers' choices allow, observed or not, so its structure does not depend on
//! which mixtures were measured; without any mixture it has none.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::log::{Log, Network, Record};
use crate::latency::{LatencyTable, LayerLatency, Seam, Timing};

/// Weight of the prior of a seam, in observations.
const PRIOR: f64 = 1.0;

/// What the plan of a network that is no uniform one begins with.
pub const MIXTURE: &str = "mixture";

/// Why there is no table.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TableError {
    #[error("the log measures no whole network; finish it with `hawqc tune --resume`")]
    Unfinished,
    #[error("the log holds measurements of {0}; make a table of one at a time")]
    Several(String),
    #[error("the network measured as `{plan}` has {found} layers; the model has {expected}")]
    Layers { plan: String, found: usize, expected: usize },
}

/// How the layers of a network are joined; see [`Record::Model`].
struct Model<'a> {
    layers: &'a [String],
    feeds: &'a [[usize; 2]],
    siblings: &'a [[usize; 2]],
}

/// Makes the table of a log.
pub fn table(log: &Log) -> Result<LatencyTable, TableError> {
    let contexts: BTreeSet<_> = log.rows.iter().map(|row| &row.context).collect();
    let context = match contexts.iter().collect::<Vec<_>>().as_slice() {
        [] => return Err(TableError::Unfinished),
        [context] => (**context).clone(),
        several => {
            let what =
                |c: &&&super::log::Context| format!("target {} on {} threads, model {}", c.target, c.threads, c.model);
            return Err(TableError::Several(several.iter().map(what).collect::<Vec<_>>().join("; ")));
        }
    };
    let model = log.rows.iter().find_map(|row| match &row.record {
        Record::Model { layers, feeds, siblings } => Some(Model { layers, feeds, siblings }),
        _ => None,
    });
    let model = model.ok_or(TableError::Unfinished)?;
    // A later measurement of the same plan replaces an earlier one.
    let mut networks: BTreeMap<&str, &Network> = BTreeMap::new();
    for row in &log.rows {
        if let Record::Network(network) = &row.record {
            networks.insert(&network.plan, network);
        }
    }
    for network in networks.values() {
        if network.layers.len() != model.layers.len() || network.choices.len() != model.layers.len() {
            let (found, expected) = (network.layers.len(), model.layers.len());
            return Err(TableError::Layers { plan: network.plan.clone(), found, expected });
        }
    }
    let networks: Vec<Network> = comparable(networks.into_values());
    let (uniform, mixtures): (Vec<&Network>, Vec<&Network>) =
        networks.iter().partition(|network| !network.plan.starts_with(MIXTURE));
    if uniform.is_empty() {
        return Err(TableError::Unfinished);
    }
    let layers: Vec<LayerLatency> = (0..model.layers.len()).map(|i| layer(&model, i, &uniform)).collect();
    let fixed_ns = fixed(&layers, &uniform);
    let mixtures: Vec<Mixture> = mixtures.into_iter().map(|n| Mixture::new(n, &layers)).collect();
    let mut seams = Vec::new();
    if !mixtures.is_empty() {
        seams.extend(feed_seams(&model, &layers, &mixtures));
        seams.extend(sibling_seams(&model, &layers, &uniform, &mixtures));
    }
    Ok(LatencyTable {
        machine: context.machine,
        target: context.target,
        threads: context.threads,
        model_hash: context.model,
        fixed_ns,
        layers,
        seams,
    })
}

/// The networks with all times as if the reference network had always taken its median time.
fn comparable<'a>(networks: impl Iterator<Item = &'a Network>) -> Vec<Network> {
    let networks: Vec<&Network> = networks.collect();
    let reference = |network: &Network| network.reference.map(|t| t.median_ns as f64).filter(|ns| *ns > 0.0);
    let typical = middle(&networks.iter().filter_map(|n| reference(n)).collect::<Vec<f64>>());
    let scaled = |network: &&Network| {
        let factor = reference(network).map_or(1.0, |own| typical / own);
        let mut network = (*network).clone();
        let layers = network.layers.iter_mut().map(|layer| &mut layer.times);
        layers.chain([&mut network.total, &mut network.other]).for_each(|times| *times = times.scaled(factor));
        network
    };
    networks.iter().map(scaled).collect()
}

/// A layer's times by choice; of uniform networks with the same choice there (as in first and last layers) the
/// median one.
fn layer(model: &Model, index: usize, uniform: &[&Network]) -> LayerLatency {
    let mut found: BTreeMap<String, Vec<Timing>> = BTreeMap::new();
    for network in uniform {
        let (times, schedule) = (network.layers[index].times, network.layers[index].schedule.clone());
        found.entry(network.choices[index].clone()).or_default().push(Timing {
            median_ns: times.median_ns as f64,
            p10_ns: times.p10_ns as f64,
            p90_ns: times.p90_ns as f64,
            count: times.count,
            schedule,
        });
    }
    let middle = |mut timings: Vec<Timing>| {
        timings.sort_by(|a, b| a.median_ns.total_cmp(&b.median_ns));
        let middle = (timings.len() - 1) / 2;
        timings.swap_remove(middle)
    };
    let choices = found.into_iter().map(|(choice, timings)| (choice, middle(timings))).collect();
    LayerLatency { name: model.layers[index].clone(), choices }
}

fn base(layers: &[LayerLatency], index: usize, choice: &str) -> Option<f64> {
    layers[index].choices.get(choice).map(|t| t.median_ns)
}

/// The mean, over the uniform networks, of whole runs less their layers.
fn fixed(layers: &[LayerLatency], uniform: &[&Network]) -> f64 {
    let rest = |network: &&Network| {
        let sum: f64 = network.choices.iter().enumerate().filter_map(|(i, c)| base(layers, i, c)).sum();
        network.total.median_ns as f64 - sum
    };
    (uniform.iter().map(rest).sum::<f64>() / uniform.len() as f64).max(0.0)
}

/// The activation part of a choice of widths.
fn activations(choice: &str) -> &str {
    choice.split_once('a').map_or(choice, |(_, a)| a)
}

fn seam(model: &Model, [i, j]: [usize; 2], choices: [&str; 2], extra_ns: f64) -> Seam {
    let name = |i: usize| model.layers[i].clone();
    Seam { layers: [name(i), name(j)], choices: choices.map(str::to_owned), extra_ns }
}

/// A network of mixed widths, with the machine's speed then relative to that of the uniform networks' measurement.
struct Mixture<'a> {
    network: &'a Network,
    slowness: f64,
}

impl Mixture<'_> {
    fn new<'a>(network: &'a Network, layers: &[LayerLatency]) -> Mixture<'a> {
        let ratio = |(i, choice): (usize, &String)| {
            let base = base(layers, i, choice).filter(|ns| *ns > 0.0)?;
            Some(network.layers[i].times.median_ns as f64 / base)
        };
        let ratios: Vec<f64> = network.choices.iter().enumerate().filter_map(ratio).collect();
        let slowness = middle(&ratios);
        Mixture { network, slowness: if slowness > 0.0 { slowness } else { 1.0 } }
    }

    /// What a layer would have taken when the uniform networks were measured.
    fn layer(&self, index: usize) -> f64 {
        self.network.layers[index].times.median_ns as f64 / self.slowness
    }
}

/// Seams where one layer feeds another with different activations.
fn feed_seams(model: &Model, layers: &[LayerLatency], mixtures: &[Mixture]) -> Vec<Seam> {
    // What a mixture adds to layer `i` that has choice `c` and feeds activations `a`.
    let mut extra: BTreeMap<(usize, &str, &str), Vec<f64>> = BTreeMap::new();
    let mut relative: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for mixture in mixtures {
        let network = mixture.network;
        for &[i, j] in model.feeds {
            let (own, next) = (network.choices[i].as_str(), activations(&network.choices[j]));
            let Some(base) = base(layers, i, own).filter(|_| activations(own) != next) else {
                continue;
            };
            let found = mixture.layer(i) - base;
            extra.entry((i, own, next)).or_default().push(found);
            relative.entry((own, next)).or_default().push(found / base.max(1.0));
        }
    }
    let mut seams = Vec::new();
    for &[i, j] in model.feeds {
        for own in layers[i].choices.keys() {
            for other in layers[j].choices.keys().filter(|c| activations(c) != activations(own)) {
                let next = activations(other);
                let prior = relative.get(&(own.as_str(), next)).map_or(0.0, |all| middle(all));
                let prior = prior * base(layers, i, own).unwrap_or(0.0);
                let seen = extra.get(&(i, own.as_str(), next)).map_or(&[][..], Vec::as_slice);
                let value = (seen.iter().sum::<f64>() + PRIOR * prior) / (seen.len() as f64 + PRIOR);
                seams.push(seam(model, [i, j], [own, other], value));
            }
        }
    }
    seams
}

/// The median.
fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Seams where two layers read one value at different widths: the time outside layers that mixtures have more.
fn sibling_seams(model: &Model, layers: &[LayerLatency], uniform: &[&Network], mixtures: &[Mixture]) -> Vec<Seam> {
    let usual = middle(&uniform.iter().map(|n| n.other.median_ns as f64).collect::<Vec<_>>());
    let differs = |network: &Network, [i, j]: [usize; 2]| {
        f64::from(activations(&network.choices[i]) != activations(&network.choices[j]))
    };
    let rows: Vec<(Vec<f64>, f64)> = mixtures
        .iter()
        .map(|mixture| {
            let features = model.siblings.iter().map(|&pair| differs(mixture.network, pair)).collect();
            (features, mixture.network.other.median_ns as f64 / mixture.slowness - usual)
        })
        .collect();
    let extra = ridge(&rows, model.siblings.len(), PRIOR);
    let mut seams = Vec::new();
    for (&[i, j], extra) in model.siblings.iter().zip(extra) {
        for own in layers[i].choices.keys() {
            for other in layers[j].choices.keys().filter(|c| activations(c) != activations(own)) {
                seams.push(seam(model, [i, j], [own, other], extra));
            }
        }
    }
    seams
}

/// The `x` with the least `|A x - b|^2 + penalty |x|^2`, by elimination on the normal equations, which the
/// penalty makes positive definite.
fn ridge(rows: &[(Vec<f64>, f64)], count: usize, penalty: f64) -> Vec<f64> {
    let mut m = vec![vec![0.0; count + 1]; count];
    for (i, line) in m.iter_mut().enumerate() {
        line[i] = penalty;
        for (features, value) in rows {
            (0..count).for_each(|j| line[j] += features[i] * features[j]);
            line[count] += features[i] * value;
        }
    }
    for pivot in 0..count {
        let row = m[pivot].clone();
        for line in m.iter_mut().skip(pivot + 1) {
            let factor = line[pivot] / row[pivot];
            line.iter_mut().zip(&row).for_each(|(x, p)| *x -= factor * p);
        }
    }
    let mut x = vec![0.0; count];
    for i in (0..count).rev() {
        let behind: f64 = (i + 1..count).map(|j| m[i][j] * x[j]).sum();
        x[i] = (m[i][count] - behind) / m[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::log::{Context, LayerTimes, Row, Times};
    use super::*;

    const CHOICES: [&str; 3] = ["w8a8", "w4a4", "w4a8"];

    fn context() -> Context {
        Context { machine: "m".into(), target: "host".into(), threads: 1, model: "ab".into() }
    }

    fn times(ns: f64) -> Times {
        Times { median_ns: ns as u64, p10_ns: ns as u64, p90_ns: ns as u64, count: 9 }
    }

    /// Four layers: 0 feeds 1; 2 and 3 read the same. Layer `i` at choice `c` takes `1000 (i + 1) + 100 c`; 300
    /// more if it feeds other activations than its own; other activations of 2 and 3 cost 700.
    fn network(plan: &str, choice: [usize; 4]) -> Row {
        let own = |i: usize| 1000.0 * (i + 1) as f64 + 100.0 * choice[i] as f64;
        let act = |i: usize| activations(CHOICES[choice[i]]);
        let mut layer: Vec<f64> = (0..4).map(own).collect();
        if act(0) != act(1) {
            layer[0] += 300.0;
        }
        let other = if act(2) != act(3) { 1200.0 } else { 500.0 };
        let total = layer.iter().sum::<f64>() + other + 50.0;
        let layers = layer.iter().map(|&ns| LayerTimes { schedule: "default".into(), times: times(ns) }).collect();
        let record = Network {
            plan: plan.into(),
            choices: choice.map(|c| CHOICES[c].to_string()).into(),
            total: times(total),
            default_total: None,
            reference: Some(times(10_000.0)),
            layers,
            other: times(other),
        };
        Row::new(&context(), Record::Network(record))
    }

    fn log(mixtures: usize) -> Log {
        let layers = ["a", "b", "c", "d"].map(String::from).into();
        let model = Record::Model { layers, feeds: vec![[0, 1]], siblings: vec![[2, 3]] };
        let mut rows = vec![Row::new(&context(), model)];
        rows.extend((0..3).map(|c| network(CHOICES[c], [c; 4])));
        for seed in 0..mixtures {
            let choice = [seed % 3, seed / 3 % 3, (seed + 1) % 3, seed / 2 % 3];
            rows.push(network(&format!("mixture {seed}"), choice));
        }
        Log { rows, torn: Vec::new() }
    }

    fn predicted(table: &LatencyTable, choice: [usize; 4]) -> f64 {
        let named = |(i, c): (usize, usize)| (table.layers[i].name.clone(), CHOICES[c].to_string());
        table.predict(&choice.into_iter().enumerate().map(named).collect()).unwrap()
    }

    #[test]
    fn uniform_networks_are_predicted_exactly() {
        let table = table(&log(0)).unwrap();
        table.check().unwrap();
        assert!(table.seams.is_empty());
        assert_eq!(table.fixed_ns, 550.0);
        for c in 0..3 {
            assert_eq!(predicted(&table, [c; 4]), 10_000.0 + 400.0 * c as f64 + 550.0);
        }
    }

    #[test]
    fn seams_are_fitted() {
        let table = table(&log(27)).unwrap();
        table.check().unwrap();
        for choice in [[0, 1, 0, 0], [0, 2, 1, 2], [1, 0, 0, 1], [2, 1, 2, 2], [2, 0, 1, 1]] {
            let row = network("", choice);
            let Record::Network(truth) = row.record else { unreachable!() };
            let truth = truth.total.median_ns as f64;
            let error = (predicted(&table, choice) - truth).abs() / truth;
            assert!(error < 0.01, "{choice:?}: {error}");
        }
    }

    /// Networks measured while the machine was half as fast give the same table; mixtures also without reference.
    #[test]
    fn the_speed_of_the_machine_is_not_in_the_table() {
        let quiet = table(&log(27)).unwrap();
        let slow = |row: &mut Row| {
            let Record::Network(network) = &mut row.record else { unreachable!() };
            let all = network.layers.iter_mut().map(|l| &mut l.times).chain(network.reference.as_mut());
            all.chain([&mut network.other, &mut network.total]).for_each(|t| t.median_ns *= 2);
        };
        let mut disturbed = log(27);
        slow(&mut disturbed.rows[2]);
        disturbed.rows[4..].iter_mut().step_by(3).for_each(slow);
        assert_eq!(table(&disturbed).unwrap().layers[1].choices["w4a4"].median_ns, 2100.0);
        let mut disturbed = log(27);
        disturbed.rows.iter_mut().skip(4).step_by(2).for_each(slow);
        for row in &mut disturbed.rows[1..] {
            let Record::Network(network) = &mut row.record else { unreachable!() };
            network.reference = None;
        }
        for (a, b) in quiet.seams.iter().zip(&table(&disturbed).unwrap().seams) {
            assert!((a.extra_ns - b.extra_ns).abs() < 1.0, "{a:?} {b:?}");
        }
    }

    /// Which mixtures were measured changes no layer, choice or seam, only numbers.
    #[test]
    fn the_structure_is_that_of_the_network() {
        let structure = |table: LatencyTable| {
            let layers: Vec<_> =
                table.layers.into_iter().map(|l| (l.name, l.choices.into_keys().collect::<Vec<_>>())).collect();
            (layers, table.seams.into_iter().map(|s| (s.layers, s.choices)).collect::<Vec<_>>())
        };
        assert_eq!(structure(table(&log(1)).unwrap()), structure(table(&log(20)).unwrap()));
        assert_eq!(structure(table(&log(1)).unwrap()).1.len(), 8);
    }

    #[test]
    fn what_is_not_one_finished_log_is_refused() {
        assert_eq!(table(&Log::default()), Err(TableError::Unfinished));
        let mut unfinished = log(0);
        unfinished.rows.truncate(1);
        assert_eq!(table(&unfinished), Err(TableError::Unfinished));
        let mut several = log(0);
        several.rows[1].context.threads = 2;
        assert!(table(&several).unwrap_err().to_string().contains("on 2 threads"));
    }

    #[test]
    fn least_squares() {
        let rows = [(vec![1.0, 0.0], 3.0), (vec![0.0, 1.0], 5.0), (vec![1.0, 1.0], 8.0)];
        let x = ridge(&rows, 2, 1e-9);
        assert!((x[0] - 3.0).abs() < 1e-6 && (x[1] - 5.0).abs() < 1e-6, "{x:?}");
        assert_eq!(ridge(&[], 2, 1.0), [0.0, 0.0]);
    }
}
