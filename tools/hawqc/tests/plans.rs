//! Plans of the digits network at half the budget between 4 and 8 bits: the searched one, one that narrows the largest
//! layers first, and random ones that use as much; how well each does on the test images, in compiled code.
//!
//! `HAWQC_BLESS=1` renews `docs/digits-plans.csv` and `docs/digits-plans.svg`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawqc_driver::{CompileOptions, Precision, Source, Target, compile, float_form, lower};
use hawqc_ir::{Graph, Tensor};
use hawqc_quantize::search::{Freedom, Network, Resource, SearchOptions, solve};
use hawqc_quantize::sensitivity::{Estimator, Measurement, Metric, Settings, choice_name};
use hawqc_quantize::{Calibration, Calibrator, Executor, LayerBits, Method, Options, PrecisionPlan};
use hawqc_runtime::npy::Npz;
use hawqc_runtime::{Session, TensorRef};

// The command's own figure.
#[path = "../src/commands/search/plot.rs"]
mod plot;

const CLASSES: usize = 10;
const PIXELS: usize = 64;
const RANDOM: usize = 20;
/// Random plans use at least the limit less this part of the way from 4 to 8 bits.
const TOLERANCE: f64 = 0.1;

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits").join(file)
}

/// Images one after the other, and their labels.
fn data(file: &str) -> (Vec<f32>, Vec<usize>) {
    let mut archive = Npz::open(&example(file)).unwrap();
    let (images, labels) = (archive.read("images").unwrap(), archive.read("labels").unwrap());
    let labels = labels.as_slice::<i64>().unwrap().iter().map(|&l| l as usize).collect();
    (images.as_slice::<f32>().unwrap().to_vec(), labels)
}

fn image(values: &[f32]) -> Tensor {
    Tensor::from_f32([1, 1, 8, 8], values.to_vec()).unwrap()
}

/// How a plan does on the test images.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Score {
    top1_percent: f64,
    /// Mean cross-entropy of the labels.
    cross_entropy: f64,
    /// Mean Kullback-Leibler divergence from the float network's distribution.
    divergence: f64,
}

/// The network and its test images, all in one batch.
struct Digits {
    source: Source,
    batch: Source,
    graph: Graph,
    calibration: Calibration,
    images: Vec<f32>,
    labels: Vec<usize>,
    float: Vec<Vec<f64>>,
}

impl Digits {
    fn new() -> Digits {
        let source = Source::load(&example("digits.onnx"), Some(1)).unwrap();
        let (images, labels) = data("test.npz");
        let batch = Source::load(&example("digits.onnx"), Some(labels.len())).unwrap();
        let graph = float_form(&source).unwrap();
        let mut calibrator = Calibrator::new(&graph).unwrap();
        for sample in data("calibration.npz").0.chunks(PIXELS) {
            calibrator.observe(&[image(sample)]).unwrap();
        }
        let calibration = calibrator.finish(source.hash.clone()).unwrap();
        let executor = Executor::new(&graph).unwrap();
        let run = |sample| executor.run(&[image(sample)], |_, _| {}).unwrap().remove(0);
        let float = images.chunks(PIXELS).map(|s| softmax(run(s).f32s().unwrap())).collect();
        Digits { source, batch, graph, calibration, images, labels, float }
    }

    fn network(&self, metric: Metric) -> Network {
        let choices = vec![LayerBits::both(8), LayerBits::both(4)];
        let calibration = Some((&self.calibration, Method::Mse));
        let settings = Settings { metric, estimator: Estimator::Scores, choices, seed: 0, calibration };
        let measurement = Measurement::new(&self.graph, &settings).unwrap();
        let (images, labels) = data("calibration.npz");
        let samples: Vec<&[f32]> = images.chunks(PIXELS).collect();
        let run = measurement.run(&self.source.hash, "digits", true, [samples.len(), 4]);
        let measure = |task: hawqc_quantize::sensitivity::Task| {
            measurement.measure(task, &image(samples[task.sample]), Some(labels[task.sample])).unwrap()
        };
        let records: Vec<_> = run.tasks().map(measure).collect();
        let found = run.assemble(measurement.layers().to_vec(), &records).unwrap();
        Network::new(&self.graph, &found.into(), None, &Freedom::default()).unwrap()
    }

    fn score(&self, bits: &[LayerBits]) -> Score {
        let names = hawqc_quantize::plan::quantizable_layers(&self.graph).into_iter().map(|(_, name)| name);
        let plan = PrecisionPlan::new(names.zip(bits.iter().copied()).collect(), 16, "").unwrap();
        let precision = Precision { calibration: self.calibration.clone(), plan, options: Options::default() };
        let options = CompileOptions::new(Target::parse("host").unwrap());
        let model = compile(lower(&self.batch, Some(&precision)).unwrap(), &options).unwrap().load().unwrap();
        let mut session = Session::new(Arc::new(model), Some(1)).unwrap();
        let shape = [self.labels.len(), 1, 8, 8];
        let input = TensorRef::new(&shape, &self.images).unwrap();
        let outputs = session.run(&[input]).unwrap();
        let logits = outputs[0].as_slice::<f32>().unwrap();
        let (mut right, mut cross_entropy, mut divergence) = (0, 0.0, 0.0);
        for ((scores, &label), float) in logits.chunks(CLASSES).zip(&self.labels).zip(&self.float) {
            let found = softmax(scores);
            right += usize::from((0..CLASSES).all(|c| c == label || scores[c] < scores[label]));
            cross_entropy -= found[label].max(1e-30).ln();
            divergence += float.iter().zip(&found).map(|(p, q)| p * (p / q.max(1e-30)).max(1e-30).ln()).sum::<f64>();
        }
        let count = self.labels.len() as f64;
        Score {
            top1_percent: 100.0 * right as f64 / count,
            cross_entropy: cross_entropy / count,
            divergence: divergence / count,
        }
    }
}

fn softmax(scores: &[f32]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = scores.iter().map(|&s| f64::from(s - most).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / total).collect()
}

/// A limit in the middle between all 4 and all 8 bits, and plans for it.
struct Half {
    resource: Resource,
    least: f64,
    most: f64,
}

impl Half {
    fn of(network: &Network, resource: Resource) -> Half {
        let used = |bits| used(network, resource, &network.uniform(LayerBits::both(bits)));
        Half { resource, least: used(4), most: used(8) }
    }

    /// Part of the way from 4 to 8 bits.
    fn limit(&self, share: f64) -> f64 {
        self.least + share * (self.most - self.least)
    }

    fn searched(&self, network: &Network, share: f64) -> Vec<LayerBits> {
        let problem = network.problem(&[(self.resource, self.limit(share))]).unwrap();
        let report = solve(&problem, SearchOptions::default()).unwrap();
        assert!(report.proven);
        network.bits(&report.best[0].choices)
    }

    /// The layers that use most are narrowed until the limit holds.
    fn largest_first(&self, network: &Network) -> Vec<LayerBits> {
        let mut bits = network.uniform(LayerBits::both(8));
        let narrow = network.uniform(LayerBits::both(4));
        while used(network, self.resource, &bits) > self.limit(0.5) {
            let after = |layer: usize| {
                let mut changed = bits.clone();
                changed[layer] = narrow[layer];
                (used(network, self.resource, &changed), changed)
            };
            bits = (0..bits.len()).map(after).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
        }
        bits
    }

    /// Different plans that use nearly all of the limit.
    fn random(&self, network: &Network) -> Vec<Vec<LayerBits>> {
        let (eight, four) = (network.uniform(LayerBits::both(8)), network.uniform(LayerBits::both(4)));
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut plans: Vec<Vec<LayerBits>> = Vec::new();
        while plans.len() < RANDOM {
            // Xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let pick = |layer: usize| if state >> (20 + layer) & 1 == 1 { eight[layer] } else { four[layer] };
            let plan: Vec<LayerBits> = (0..eight.len()).map(pick).collect();
            let near = self.limit(0.5 - TOLERANCE)..=self.limit(0.5);
            if near.contains(&used(network, self.resource, &plan)) && !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        plans
    }
}

fn used(network: &Network, resource: Resource, bits: &[LayerBits]) -> f64 {
    network.totals(bits).get(resource).unwrap()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Of the plans for one limit.
struct Outcome {
    searched: BTreeMap<String, Score>,
    largest: Score,
    random: Vec<Score>,
}

#[test]
fn searched_plans_beside_random_ones() {
    let digits = Digits::new();
    let metrics = [Metric::Hessian, Metric::Fisher, Metric::Output];
    let networks = metrics.map(|metric| (metric, digits.network(metric)));
    let mut csv = String::from("limit,plan,used,top1_percent,cross_entropy,divergence,widths\n");
    let mut outcomes = BTreeMap::new();
    for resource in [Resource::Size, Resource::Bops] {
        let half = Half::of(&networks[0].1, resource);
        let mut line = |name: &str, bits: &[LayerBits]| {
            let score = digits.score(bits);
            let Score { top1_percent, cross_entropy, divergence } = score;
            let share = (used(&networks[0].1, resource, bits) - half.least) / (half.most - half.least);
            let widths = bits.iter().map(|b| choice_name(*b)).collect::<Vec<_>>().join(" ");
            let resource = resource.name();
            writeln!(
                csv,
                "{resource},{name},{share:.3},{top1_percent:.2},{cross_entropy:.5},{divergence:.3e},{widths}"
            )
            .unwrap();
            score
        };
        let mut searched = BTreeMap::new();
        for (metric, network) in &networks {
            let bits = half.searched(network, 0.5);
            searched.insert(metric.to_string(), line(&format!("searched {metric}"), &bits));
        }
        let largest = line("largest layers first", &half.largest_first(&networks[0].1));
        line("uniform w8a8", &networks[0].1.uniform(LayerBits::both(8)));
        line("uniform w4a4", &networks[0].1.uniform(LayerBits::both(4)));
        let random = half.random(&networks[0].1).iter().map(|bits| line("random", bits)).collect();
        outcomes.insert(resource, Outcome { searched, largest, random });
    }
    for (resource, outcome) in &outcomes {
        let middle = |of: fn(&Score) -> f64| median(outcome.random.iter().map(of));
        let (top1, divergence) = (middle(|s| s.top1_percent), middle(|s| s.divergence));
        println!("{}: random {top1:.2} % {:.4} {divergence:.3e}", resource.name(), middle(|s| s.cross_entropy));
        println!("  largest {:?}\n  searched {:?}", outcome.largest, outcome.searched);
        for (metric, score) in &outcome.searched {
            assert!(score.top1_percent >= top1.max(outcome.largest.top1_percent), "{} {metric}", resource.name());
        }
    }
    let (size, bops) = (&outcomes[&Resource::Size], &outcomes[&Resource::Bops]);
    let middle = |outcome: &Outcome| median(outcome.random.iter().map(|s| s.divergence));
    assert!(size.searched.values().all(|s| s.divergence < middle(size)));
    assert!(size.searched["fisher"].divergence <= size.largest.divergence);
    // Where the limit depends on activations, the cost that was measured on the outputs is the one that sees them.
    let found = bops.searched["output"];
    assert!(found.divergence < middle(bops) && found.divergence <= bops.largest.divergence, "{found:?}");
    if std::env::var_os("HAWQC_BLESS").is_some_and(|v| !v.is_empty() && v != "0") {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        std::fs::write(docs.join("digits-plans.csv"), csv).unwrap();
        std::fs::write(docs.join("digits-plans.svg"), figure(&digits, &networks[2].1)).unwrap();
    }
}

/// Divergence against bit operations: searched plans at many limits, and what they are compared with.
fn figure(digits: &Digits, network: &Network) -> String {
    let half = Half::of(network, Resource::Bops);
    let at = |bits: &[LayerBits]| (used(network, Resource::Bops, bits) / 1e9, digits.score(bits).divergence);
    let uniform = [8, 4].map(|bits| network.uniform(LayerBits::both(bits)));
    let mut front: Vec<Vec<LayerBits>> = (0..=20).map(|i| half.searched(network, f64::from(i) / 20.0)).collect();
    front.dedup();
    let figure = plot::Figure {
        x: "bit operations (GBOPS)",
        y: "divergence from the float network on test images",
        front: front.iter().map(|bits| at(bits)).collect(),
        uniform: vec![
            ("uniform w8a8".into(), at(&uniform[0])),
            ("uniform w4a4".into(), at(&uniform[1])),
            ("largest layers first".into(), at(&half.largest_first(network))),
        ],
        random: half.random(network).iter().map(|bits| at(bits)).collect(),
        chosen: Some(at(&half.searched(network, 0.5))),
    };
    plot::svg(&figure).unwrap()
}
