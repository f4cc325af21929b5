use std::collections::BTreeMap;

use hawqc_ir::{Arg, Conv, Elem, KernelSpec, TensorType};

use super::*;
use crate::{Machine, Schedule};

/// Measurements of a machine.
struct Source {
    data: &'static str,
    wide: WideMachine,
    /// Bounds of mean regret and rank correlation. On the second machine most candidates are within a few per cent.
    regret: f64,
    correlation: f64,
    /// Most that is lost where the default is not the faster algorithm.
    loss: f64,
    /// Source, weights and height of convolutions where the default is not the faster algorithm, which are close.
    differing: &'static [(Elem, Elem, usize)],
}

const ZEN4: WideMachine = WideMachine { lanes: 16, registers: 32, dot: true, evex: true };

/// Prices are fitted to all but the last.
const SOURCES: [Source; 3] = [
    Source {
        data: include_str!("../../data/zen3_avx2.txt"),
        wide: WideMachine { lanes: 8, registers: 16, dot: false, evex: false },
        regret: 0.035,
        correlation: 0.8,
        loss: 0.08,
        differing: &[(Elem::U8, Elem::I4, 14)],
    },
    Source {
        data: include_str!("../../data/zen4_avx512.txt"),
        wide: ZEN4,
        regret: 0.035,
        correlation: 0.65,
        loss: 0.08,
        differing: &[],
    },
    // Algorithms of Winograd where several products share a sum.
    Source {
        data: include_str!("../../data/zen4_avx512_sums.txt"),
        wide: ZEN4,
        regret: 0.03,
        correlation: 0.6,
        loss: 0.13,
        // Weights of 7x7 pixels that a benchmark finds in a cache.
        differing: &[(Elem::U4, Elem::I4, 7)],
    },
];

/// A convolution with what its schedules took.
struct Measured {
    spec: KernelSpec,
    geometry: ConvGeometry,
    ns: BTreeMap<Schedule, f64>,
}

impl Measured {
    /// Every schedule that is estimated, its counts, and what it took.
    fn estimated(&self, wide: WideMachine) -> impl Iterator<Item = ([f64; TERMS], f64)> {
        self.ns.iter().filter_map(move |(schedule, &ns)| match schedule {
            Schedule::Wide(schedule) => Some((schedule.counts(&self.geometry, wide), ns)),
            Schedule::Winograd(schedule) => Some((schedule.counts(&self.geometry, wide), ns)),
            _ => None,
        })
    }

    /// The least time of those a schedule of which is wanted.
    fn least(&self, wanted: impl Fn(&Schedule) -> bool) -> f64 {
        self.ns.iter().filter(|(s, _)| wanted(s)).map(|(_, &ns)| ns).fold(f64::INFINITY, f64::min)
    }
}

/// Reads `conv u8[1,7,7,64] i8[64,3,3,64] stride=[1,1] pad=[1,1,1,1]`.
fn spec(line: &str) -> KernelSpec {
    let words: Vec<&str> = line.split(' ').collect();
    let numbers = |text: &str| -> Vec<usize> { text.split(',').map(|n| n.parse().unwrap()).collect() };
    let inner = |text: &str| numbers(text.split_once('[').unwrap().1.trim_end_matches(']'));
    let tensor = |text: &str| {
        let elem: Elem = text.split_once('[').unwrap().0.parse().unwrap();
        TensorType::new(elem, inner(text))
    };
    let stride = inner(words[3]).try_into().unwrap();
    let pad: [usize; 4] = inner(words[4]).try_into().unwrap();
    let op = Conv { stride, pad, ..Conv::unit() };
    let operands = vec![tensor(words[1]), tensor(words[2])];
    KernelSpec::new(operands, vec![(op.into(), vec![Arg::Operand(0), Arg::Operand(1)])]).unwrap()
}

fn measured(source: &Source) -> Vec<Measured> {
    let machine = source.machine();
    let mut all: Vec<Measured> = Vec::new();
    for line in source.data.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with("conv ") {
            let spec = spec(line);
            all.push(Measured { geometry: ConvGeometry::of(&spec).unwrap(), spec, ns: BTreeMap::new() });
        } else {
            let (ns, schedule) = line.split_once(' ').unwrap();
            all.last_mut().unwrap().ns.insert(schedule.parse().unwrap(), ns.parse().unwrap());
        }
    }
    // Channels that do not fill the widest vectors have narrower ones.
    all.retain(|m| m.geometry.wide_machine(machine) == Some(source.wide));
    all
}

impl Source {
    fn machine(&self) -> Machine {
        let quad_dot = self.wide.dot;
        Machine { vector_registers: self.wide.registers, quad_dot, wide: [Some(self.wide), None] }
    }
}

/// Prices of least squared relative error, none of them negative: what would be is left out.
fn fit(all: &[Measured], wide: WideMachine) -> [f64; TERMS] {
    let mut used = [true; TERMS];
    loop {
        let fitted = least_squares(all, wide, used);
        match (0..TERMS).filter(|&term| fitted[term] < 0.0).min_by(|&a, &b| fitted[a].total_cmp(&fitted[b])) {
            Some(term) => used[term] = false,
            None => return fitted,
        }
    }
}

fn least_squares(all: &[Measured], wide: WideMachine, used: [bool; TERMS]) -> [f64; TERMS] {
    let mut system = [[0.0; TERMS + 1]; TERMS];
    for (measured, (counts, ns)) in all.iter().flat_map(|m| m.estimated(wide).map(move |e| (m, e))) {
        // Fast ones matter most: a default is chosen among them.
        let weight = (measured.least(|_| true) / ns).powi(4);
        let shares: [f64; TERMS] = std::array::from_fn(|term| if used[term] { counts[term] / ns } else { 0.0 });
        for (row, share) in system.iter_mut().zip(shares) {
            row.iter_mut().zip(shares).for_each(|(entry, other)| *entry += weight * share * other);
            row[TERMS] += weight * share;
        }
    }
    (0..TERMS).filter(|&term| !used[term]).for_each(|term| system[term][term] = 1.0);
    // Elimination; the matrix is positive definite.
    for pivot in 0..TERMS {
        let chosen = system[pivot];
        for (_, row) in system.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
            let factor = row[pivot] / chosen[pivot];
            row.iter_mut().zip(chosen).for_each(|(entry, other)| *entry -= factor * other);
        }
    }
    std::array::from_fn(|i| system[i][TERMS] / system[i][i])
}

#[test]
fn prices_are_those_of_the_measurements() {
    for source in &SOURCES[..2] {
        let (fitted, prices) = (fit(&measured(source), source.wide), prices(source.wide));
        let agree = prices.iter().zip(fitted).all(|(price, fitted)| (price - fitted).abs() <= 5e-3 * fitted + 1e-4);
        assert!(agree, "{prices:?} against {fitted:.4?}");
    }
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    order.into_iter().enumerate().for_each(|(rank, index)| ranks[index] = rank as f64);
    ranks
}

/// Spearman's.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(a, b)| (a - b).powi(2)).sum();
    let count = a.len() as f64;
    1.0 - 6.0 * squares / (count * (count * count - 1.0))
}

/// The schedule of least estimate loses little against the fastest measured one.
#[test]
fn estimates_order_schedules() {
    for source in &SOURCES {
        let (mut regrets, mut correlations, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for measured in measured(source) {
            let (estimates, ns): (Vec<f64>, Vec<f64>) =
                measured.estimated(source.wide).map(|(counts, ns)| (total_ns(counts, source.wide), ns)).unzip();
            // Few are measured where a neighbouring workload already told the best.
            if ns.len() < 3 {
                continue;
            }
            let best = (0..ns.len()).min_by(|&a, &b| estimates[a].total_cmp(&estimates[b])).unwrap();
            let regret = ns[best] / ns.iter().copied().fold(f64::INFINITY, f64::min) - 1.0;
            regrets.push(regret);
            correlations.push(rank_correlation(&ns, &estimates));
            errors.extend(ns.iter().zip(&estimates).map(|(ns, estimate)| (estimate / ns - 1.0).abs()));
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (regret, correlation) = (mean(&regrets), mean(&correlations));
        let (middle, error) = (median(&mut regrets), median(&mut errors));
        println!(
            "{} convolutions, {} schedules: regret {regret:.4} (median {middle:.4}), rank correlation \
             {correlation:.3}, error {error:.3}",
            regrets.len(),
            errors.len()
        );
        assert!(regret < source.regret && correlation > source.correlation && error < 0.1);
    }
}

/// The default prefers Winograd's algorithm where it was faster than every direct schedule, and nowhere else but in a few
/// cases, which are close.
#[test]
fn winograd_is_the_default_where_it_is_faster() {
    for source in &SOURCES {
        let mut differing = Vec::new();
        for measured in measured(source) {
            let least = |winograd: bool| measured.least(|s| matches!(s, Schedule::Winograd(_)) == winograd);
            let (winograd, direct) = (least(true), least(false));
            if winograd.is_finite() && direct.is_finite() {
                let chosen = matches!(Schedule::default_for(&measured.spec, source.machine()), Schedule::Winograd(_));
                let geometry = &measured.geometry;
                let loss = if chosen { winograd / direct } else { direct / winograd } - 1.0;
                assert!(loss < source.loss, "{} {} {}: {loss}", geometry.src, geometry.wei, geometry.image_rows);
                if chosen != (winograd < direct) {
                    differing.push((geometry.src, geometry.wei, geometry.image_rows));
                }
            }
        }
        assert_eq!(differing, source.differing);
    }
}
