//! The front of plans of which none is both cheaper and smaller than another, by sweeping one limit.

use super::network::{Network, Resource, Totals};
use super::problem::SearchError;
use super::solve::{SearchOptions, least_use, solve};
use crate::error::QuantizeError;
use crate::plan::LayerBits;

/// A plan on the front.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontPoint {
    /// The limit it is best under.
    pub limit: f64,
    pub bits: Vec<LayerBits>,
    pub totals: Totals,
    pub cost: f64,
    /// The proven bound on the cost under the limit.
    pub bound: f64,
    pub proven: bool,
}

/// Why a front cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrontError {
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(transparent)]
    Network(#[from] QuantizeError),
}

/// The best plans under `count` limits on `over`, evenly spaced from the least that can be reached to what the
/// cheapest plan of all uses; other limits stay. By rising use, dominated plans left out.
pub fn front(
    network: &Network,
    over: Resource,
    others: &[(Resource, f64)],
    count: usize,
    options: SearchOptions,
) -> Result<Vec<FrontPoint>, FrontError> {
    let limited = |most: f64| {
        let mut limits: Vec<(Resource, f64)> = others.iter().copied().filter(|(r, _)| *r != over).collect();
        limits.push((over, most));
        network.problem(&limits)
    };
    let options = SearchOptions { wanted: 1, ..options };
    let open = limited(f64::INFINITY)?;
    let goal = open.limits.len() - 1;
    let least = least_use(&open, goal, options)?;
    let most = solve(&open, options)?.best[0].uses[goal];
    let mut points: Vec<FrontPoint> = Vec::new();
    for step in 0..count.max(2) {
        let share = step as f64 / (count.max(2) - 1) as f64;
        let limit = least + share * (most - least);
        let report = solve(&limited(limit)?, options)?;
        let best = &report.best[0];
        let bits = network.bits(&best.choices);
        let totals = network.totals(&bits);
        points.push(FrontPoint { limit, bits, totals, cost: best.cost, bound: report.bound, proven: report.proven });
    }
    Ok(undominated(points, over))
}

fn undominated(mut points: Vec<FrontPoint>, over: Resource) -> Vec<FrontPoint> {
    let used = |p: &FrontPoint| p.totals.get(over).unwrap_or(f64::INFINITY);
    points.sort_by(|a, b| used(a).total_cmp(&used(b)).then(a.cost.total_cmp(&b.cost)));
    let mut front: Vec<FrontPoint> = Vec::new();
    for point in points {
        if front.last().is_none_or(|last| point.cost < last.cost) {
            front.push(point);
        }
    }
    front
}
