use std::collections::BTreeMap;

use hawqc_ir::{Arg, Conv, Elem, KernelSpec, TensorType};

use super::*;
use crate::wide::tiles;
use crate::{Machine, Schedule};

const DATA: &str = include_str!("../../data/zen3_avx2.txt");
const WIDE: WideMachine = WideMachine { lanes: 8, registers: 16, dot: false };
const AVX2: Machine = Machine { vector_registers: 16, quad_dot: false, wide: [Some(WIDE), None] };

/// A convolution with what its schedules took.
struct Measured {
    spec: KernelSpec,
    geometry: ConvGeometry,
    ns: BTreeMap<Schedule, f64>,
}

impl Measured {
    fn wide(&self) -> impl Iterator<Item = (WideSchedule, f64)> {
        self.ns.iter().filter_map(|(schedule, &ns)| match schedule {
            Schedule::Wide(wide) => Some((*wide, ns)),
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

fn measured() -> Vec<Measured> {
    let mut all: Vec<Measured> = Vec::new();
    for line in DATA.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with("conv ") {
            let spec = spec(line);
            all.push(Measured { geometry: ConvGeometry::of(&spec).unwrap(), spec, ns: BTreeMap::new() });
        } else {
            let (ns, schedule) = line.split_once(' ').unwrap();
            all.last_mut().unwrap().ns.insert(schedule.parse().unwrap(), ns.parse().unwrap());
        }
    }
    all
}

/// Prices of least squared relative error.
fn fit(all: &[Measured]) -> [f64; TERMS] {
    let mut system = [[0.0; TERMS + 1]; TERMS];
    for (schedule, ns, measured) in all.iter().flat_map(|m| m.wide().map(move |(s, ns)| (s, ns, m))) {
        let shares = schedule.counts(&measured.geometry, WIDE).map(|count| count / ns);
        for (row, share) in system.iter_mut().zip(shares) {
            row.iter_mut().zip(shares).for_each(|(entry, other)| *entry += share * other);
            row[TERMS] += share;
        }
    }
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
    let fitted = fit(&measured());
    for (price, fitted) in PRICES.into_iter().zip(fitted) {
        assert!(fitted > 0.0 && (price / fitted - 1.0).abs() < 5e-3, "{PRICES:?} against {fitted:?}");
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

/// The tile of least estimate loses little against the fastest measured schedule.
#[test]
fn estimates_order_schedules() {
    let (mut regrets, mut correlations, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for measured in measured() {
        // Every tile with the blocking it has by default.
        let defaults = tiles(&measured.geometry, AVX2);
        let schedules: Vec<_> = measured.wide().filter(|(schedule, _)| defaults.contains(schedule)).collect();
        let ns: Vec<f64> = schedules.iter().map(|s| s.1).collect();
        // Few are measured where a neighbouring workload already told the best.
        if ns.len() < 3 {
            continue;
        }
        let estimates: Vec<f64> = schedules.iter().map(|s| s.0.estimated_ns(&measured.geometry, WIDE)).collect();
        let best = (0..ns.len()).min_by(|&a, &b| estimates[a].total_cmp(&estimates[b])).unwrap();
        regrets.push(ns[best] / measured.least(|s| matches!(s, Schedule::Wide(_))) - 1.0);
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
        "{} convolutions, {} schedules: regret {regret:.4} (median {middle:.4}), rank correlation {correlation:.3}, error {error:.3}",
        regrets.len(),
        errors.len()
    );
    assert!(regret < 0.03 && correlation > 0.8 && error < 0.1);
}

/// The default prefers Winograd's algorithm where it was faster than every direct schedule, and nowhere else but in one case,
/// which is close.
#[test]
fn winograd_is_the_default_where_it_is_faster() {
    let mut differing = Vec::new();
    for measured in measured() {
        let least = |winograd: bool| measured.least(|s| matches!(s, Schedule::Winograd(_)) == winograd);
        if least(true).is_finite() {
            let chosen = matches!(Schedule::default_for(&measured.spec, AVX2), Schedule::Winograd(_));
            if chosen != (least(true) < least(false)) {
                differing.push((measured.geometry.src, measured.geometry.wei, measured.geometry.image_rows));
            }
        }
    }
    assert_eq!(differing, [(Elem::U8, Elem::I4, 14)]);
}
