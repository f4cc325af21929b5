//! Times of exact search on made-up problems, with the Lagrangian bound beside the optimum.
//!
//! `cargo run --release -p hawqc-quantize --example search_speed`. Two kinds: `free` draws costs and uses
//! independently; `layers` has layers of very different size and sensitivity whose narrower choices use less and
//! cost several times more. Limits stand at a share of the way from the least to the largest sums.

use std::time::Instant;

use hawqc_quantize::search::{Choice, Layer, Limit, Problem, SeamCost, SearchOptions, lagrangian_bound, solve};

/// Xorshift: enough for made-up numbers.
struct Random(u64);

impl Random {
    /// In [0, 1).
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Free,
    Layers,
    /// As `Layers`, with extra latency between neighbours of different widths.
    Seams,
}

fn layer(index: usize, choices: usize, limits: usize, kind: Kind, random: &mut Random) -> Layer {
    let sizes: Vec<f64> = (0..limits).map(|_| (random.next() * 4.0).exp()).collect();
    let sensitivity = (random.next() * 6.0).exp();
    let mut choice = |c: usize| {
        let width = 1.0 - c as f64 / choices as f64;
        let (cost, uses) = match kind {
            Kind::Free => (random.next(), (0..limits).map(|_| random.next()).collect()),
            _ => (
                sensitivity * (0.1 + random.next()) * 4f64.powi(c as i32),
                sizes.iter().map(|s| s * width * (0.9 + 0.2 * random.next())).collect(),
            ),
        };
        Choice { label: c.to_string(), cost, uses }
    };
    Layer { name: format!("layer{index}"), choices: (0..choices).map(&mut choice).collect() }
}

fn problem(seed: u64, layers: usize, choices: usize, limits: usize, share: f64, kind: Kind) -> Problem {
    let mut random = Random(seed * 7919 + 12345);
    for _ in 0..10 {
        random.next();
    }
    let layers: Vec<Layer> = (0..layers).map(|i| layer(i, choices, limits, kind, &mut random)).collect();
    let limit = |d: usize| {
        let extreme = |start: f64, pick: fn(f64, f64) -> f64| {
            layers.iter().map(|l| l.choices.iter().map(|c| c.uses[d]).fold(start, pick)).sum::<f64>()
        };
        let (least, most) = (extreme(f64::MAX, f64::min), extreme(0.0, f64::max));
        Limit { name: format!("limit{d}"), fixed: 0.0, most: least + share * (most - least) }
    };
    let limits: Vec<Limit> = (0..limits).map(limit).collect();
    let mut seams = Vec::new();
    if let Kind::Seams = kind {
        for (first, layer) in layers.iter().enumerate().take(layers.len() - 1) {
            for (a, b) in (0..choices).flat_map(|a| (0..choices).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                let extra = layer.choices[0].uses[0] * 0.1 * random.next();
                seams.push(SeamCost { layers: [first, first + 1], choices: [a, b], limit: 0, extra });
            }
        }
    }
    Problem { layers, limits, ties: Vec::new(), seams }
}

fn main() {
    println!("layers choices limits kind share: seconds, steps, cost, Lagrangian bound, its distance");
    for kind in [Kind::Free, Kind::Layers, Kind::Seams] {
        for (layers, choices, limits) in [(54, 2, 3), (54, 3, 3), (300, 6, 3)] {
            for (seed, share) in (0..4).flat_map(|seed| [0.3, 0.5].map(|share| (seed, share))) {
                let problem = problem(seed, layers, choices, limits, share, kind);
                let start = Instant::now();
                let report = solve(&problem, SearchOptions::default());
                let seconds = start.elapsed().as_secs_f64();
                match (report, lagrangian_bound(&problem)) {
                    (Ok(report), Ok(bound)) => {
                        let (cost, steps, proven) = (report.best[0].cost, report.steps, report.proven);
                        let distance = (cost - bound) / cost;
                        println!(
                            "{layers} {choices} {limits} {kind:?} {share}: {seconds:.3} s, {steps} steps, {cost:.4}, \
                             {bound:.4}, {distance:.1e}, proven {proven}"
                        );
                    }
                    (Err(error), _) | (_, Err(error)) => {
                        println!("{layers} {choices} {limits} {kind:?} {share}: {error}")
                    }
                }
            }
        }
    }
}
