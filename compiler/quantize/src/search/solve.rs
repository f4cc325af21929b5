//! From a problem to its best assignments, with a proof.
//!
//! The relaxation gives a lower bound and some assignments within the limits. Then the search runs with ever more
//! partial assignments side by side: what a narrow one finds is the ceiling of the next, and the first that drops
//! nothing has proven its answer. Below a ceiling, an option whose own relaxation exceeds it is left out before the
//! search.

use super::branch::{marginals, search, without};
use super::instance::{Amount, Grouping, Instance, build, cost_scale};
use super::problem::{Infeasible, Problem, SearchError, Solution};
use super::relax::{Chain, Relaxed, UNIT, best_prices};

/// Partial assignments side by side in the first search, and how many times as many in each further one.
const FIRST_WIDTH: usize = if cfg!(test) { 2 } else { 256 };
const WIDER: usize = 8;
/// What memory bears.
const MOST_WIDTH: usize = 1 << 21;

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchOptions {
    /// How many assignments, the best first.
    pub wanted: usize,
    /// Steps after which the best assignments so far are given with the gap that remains.
    pub max_steps: u64,
}

impl Default for SearchOptions {
    fn default() -> SearchOptions {
        SearchOptions { wanted: 1, max_steps: 4_000_000_000 }
    }
}

/// The best assignments of a problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// By cost, each assignment once; fewer than wanted if there are no more.
    pub best: Vec<Solution>,
    /// The Lagrangian bound: no assignment within the limits costs less, whatever the search says.
    pub relaxed: f64,
    /// The proven bound on the least cost: the least cost itself if the search was complete.
    pub bound: f64,
    /// Whether the search was complete, so that `best` are the best.
    pub proven: bool,
    pub steps: u64,
}

impl Report {
    /// How much cheaper an assignment could be than the best one here, relative to its cost; 0 if proven.
    pub fn gap(&self) -> f64 {
        match self.best.first() {
            Some(best) if best.cost > self.bound => (best.cost - self.bound) / best.cost.abs().max(f64::MIN_POSITIVE),
            _ => 0.0,
        }
    }
}

/// The `options.wanted` cheapest assignments within the limits.
///
/// # Errors
/// Limits that cannot be met; tied layers without a common choice; a malformed problem.
pub fn solve(problem: &Problem, options: SearchOptions) -> Result<Report, SearchError> {
    problem.check()?;
    let (instance, grouping) = build(problem)?;
    let outcome = match cheapest(&instance, options) {
        Some(outcome) => outcome,
        None => {
            find_infeasible(problem, &instance, options)?;
            return Err(SearchError::Unsettled { steps: options.max_steps });
        }
    };
    let solution = |(_, assignment): &(i64, Vec<usize>)| problem.evaluate(&grouping.choices(assignment));
    let best: Vec<Solution> = outcome.best.iter().map(solution).collect();
    // Bounds are known in whole units; back to the problem's own through the best assignment, whose cost is both.
    let (units, cost) = (outcome.best[0].0 as f64, best[0].cost);
    let scale = cost_scale(problem);
    let real = |bound: f64| cost + (bound.min(units) - units) / scale;
    let (relaxed, bound) = (real(outcome.relaxed), real(outcome.bound));
    Ok(Report { best, relaxed, bound, proven: outcome.proven, steps: outcome.steps })
}

/// The Lagrangian bound by itself, without any search: no assignment within the limits costs less.
pub fn lagrangian_bound(problem: &Problem) -> Result<f64, SearchError> {
    problem.check()?;
    let (instance, _) = build(problem)?;
    let chain = Chain::new(&instance, (0..instance.groups.len()).collect());
    Ok(best_prices(&chain).bound / UNIT / cost_scale(problem))
}

/// The least value that a limited sum can take while the other limits hold.
pub(super) fn least_use(problem: &Problem, goal: usize, options: SearchOptions) -> Result<f64, SearchError> {
    problem.check()?;
    let (instance, grouping) = build(problem)?;
    let kept: Vec<usize> = (0..instance.limits.len()).filter(|&d| d != goal).collect();
    let options = SearchOptions { wanted: 1, ..options };
    match cheapest(&instance.least_use(goal, &kept), options) {
        Some(least) => Ok(problem.evaluate(&grouping.choices(&least.best[0].1)).uses[goal]),
        None => {
            find_infeasible(problem, &instance, options)?;
            Err(SearchError::Unsettled { steps: options.max_steps })
        }
    }
}

impl Grouping {
    /// The choice of every layer.
    fn choices(&self, assignment: &[usize]) -> Vec<usize> {
        self.group.iter().zip(&self.choice).map(|(&group, choices)| choices[assignment[group]]).collect()
    }
}

/// The best assignments of an instance; never empty.
struct Outcome {
    best: Vec<(i64, Vec<usize>)>,
    /// Lagrangian bound and proven bound on the least cost, in whole units.
    relaxed: f64,
    bound: f64,
    proven: bool,
    steps: u64,
}

/// `None` if there is no assignment within the limits, or none was found within the number of steps.
fn cheapest(instance: &Instance, options: SearchOptions) -> Option<Outcome> {
    let chain = Chain::new(instance, (0..instance.groups.len()).collect());
    let relaxed = best_prices(&chain);
    let witness = witness(instance, &relaxed);
    // Without a witness settle first whether there is an assignment, which needs no assignment to begin with.
    let steps = if witness.is_some() { 0 } else { is_feasible(instance, options)? };
    Run { instance, options, relaxed, steps, best: witness.into_iter().collect() }.widen(&chain)
}

struct Run<'i> {
    instance: &'i Instance,
    options: SearchOptions,
    relaxed: Relaxed,
    steps: u64,
    best: Vec<(i64, Vec<usize>)>,
}

impl Run<'_> {
    fn widen(mut self, chain: &Chain) -> Option<Outcome> {
        let relaxed = self.relaxed.bound / UNIT;
        let (mut bound, mut width) = (relaxed, FIRST_WIDTH);
        // Steps of a search one partial assignment wide.
        let thread: usize = self.instance.groups.iter().map(Vec::len).sum();
        loop {
            let left = self.options.max_steps.saturating_sub(self.steps) / thread.max(1) as u64;
            let most = usize::try_from(left).unwrap_or(usize::MAX).clamp(1, MOST_WIDTH);
            let dropped = self.below(chain, self.ceiling(), width.min(most));
            // What can only lie above the new ceiling is no loss.
            let dropped = dropped.filter(|&d| d <= self.ceiling() as f64);
            bound = dropped.map_or(bound, |d| d.max(bound));
            if dropped.is_none() || width >= most {
                let (least, proven) = (self.best.first()?.0 as f64, dropped.is_none());
                let bound = if proven { least } else { bound.min(least) };
                return Some(Outcome { best: self.best, relaxed, bound, proven, steps: self.steps });
            }
            width *= WIDER;
        }
    }

    /// What a further assignment may cost.
    fn ceiling(&self) -> i64 {
        match self.best.get(self.options.wanted - 1) {
            Some((cost, _)) => cost - 1,
            None => self.instance.largest_cost(),
        }
    }

    /// Takes the best assignments of cost at most `ceiling`; the bound on those dropped, if any were.
    fn below(&mut self, chain: &Chain, ceiling: i64, width: usize) -> Option<f64> {
        let mut keep: Vec<Vec<usize>> = self.instance.groups.iter().map(|g| (0..g.len()).collect()).collect();
        let prices = &self.relaxed.prices;
        let owed: f64 = self.instance.limits.iter().zip(prices).map(|(&b, p)| b as f64 * p).sum();
        let most = (owed + ceiling as f64) * UNIT + 1e-12 * (1.0 + prices.iter().sum::<f64>());
        let least = marginals(chain, prices);
        for (keep, least) in keep.iter_mut().zip(&least) {
            keep.retain(|&o| least[o] <= most);
        }
        if keep.iter().any(Vec::is_empty) {
            return None;
        }
        let reduced = without(self.instance, &keep);
        let chain = Chain::new(&reduced, order(&reduced, &keep, &least));
        let again = best_prices(&chain);
        let found = search(&chain, &price_rows(&again.prices), ceiling, self.options.wanted, width);
        self.steps += found.steps;
        for (cost, mut assignment) in found.best {
            assignment.iter_mut().zip(&keep).for_each(|(option, keep)| *option = keep[*option]);
            self.best.push((cost, assignment));
        }
        self.best.sort();
        self.best.dedup();
        self.best.truncate(self.options.wanted);
        found.dropped
    }
}

/// Groups without a choice first, then those whose second option costs most; where pairs remain, the given order.
fn order(instance: &Instance, keep: &[Vec<usize>], least: &[Vec<f64>]) -> Vec<usize> {
    let is_free = |g: usize| instance.groups[g].len() > 1;
    let paired = instance.pairs.iter().any(|p| p.groups.iter().all(|&g| is_free(g)));
    let second = |g: usize| {
        let mut values: Vec<f64> = keep[g].iter().map(|&o| least[g][o]).collect();
        values.sort_by(f64::total_cmp);
        values.get(1).map_or(0.0, |v| v - values[0])
    };
    let mut order: Vec<usize> = (0..instance.groups.len()).collect();
    if paired {
        order.sort_by_key(|&g| is_free(g));
    } else {
        order.sort_by(|&a, &b| is_free(a).cmp(&is_free(b)).then(second(b).total_cmp(&second(a))));
    }
    order
}

/// Price vectors around the best one.
fn price_rows(best: &[f64]) -> Vec<Vec<f64>> {
    let mut rows = vec![best.to_vec()];
    for factor in [0.97, 1.03, 0.85, 1.17, 0.5, 1.5] {
        for d in 0..best.len() {
            let scaled = |(i, p): (usize, &f64)| if i == d { p * factor } else { *p };
            rows.push(best.iter().enumerate().map(scaled).collect());
        }
    }
    rows
}

/// The cheapest of the assignments that the relaxation met and that keep the limits.
fn witness(instance: &Instance, relaxed: &Relaxed) -> Option<(i64, Vec<usize>)> {
    let totals = relaxed.seen.iter().map(|a| (instance.total(a), a));
    let within = totals.filter(|(total, _)| total.within(&instance.limits));
    within.map(|(Amount { cost, .. }, a)| (cost, a.clone())).min()
}

/// Steps taken to find an assignment within the limits; `None` if there is none.
fn is_feasible(instance: &Instance, options: SearchOptions) -> Option<u64> {
    let mut steps = 0;
    for goal in 0..instance.limits.len() {
        let kept: Vec<usize> = (0..goal).collect();
        let least = cheapest(&instance.least_use(goal, &kept), SearchOptions { wanted: 1, ..options })?;
        steps += least.steps;
        if least.best[0].0 > instance.limits[goal] {
            return None;
        }
    }
    Some(steps)
}

/// The limit that cannot be met, as an error.
fn find_infeasible(problem: &Problem, instance: &Instance, options: SearchOptions) -> Result<(), SearchError> {
    let count = instance.limits.len();
    let least = |goal: usize, kept: &[usize]| {
        cheapest(&instance.least_use(goal, kept), SearchOptions { wanted: 1, ..options }).map(|o| o.best[0].clone())
    };
    let name = |d: usize| problem.limits[d].name.clone();
    let (_, grouping) = build(problem)?;
    let error = |goal: usize, assignment: &[usize], kept: &[usize]| {
        let reached = problem.evaluate(&grouping.choices(assignment)).uses[goal];
        let with = kept.iter().map(|&d| name(d)).collect();
        SearchError::Infeasible(Infeasible { limit: name(goal), most: problem.limits[goal].most, least: reached, with })
    };
    // By itself first, then together with ever more of the others.
    for size in 0..count {
        for goal in 0..count {
            let others: Vec<usize> = (0..count).filter(|&d| d != goal).collect();
            for kept in subsets(&others, size) {
                match least(goal, &kept) {
                    Some((cost, assignment)) if cost > instance.limits[goal] => {
                        return Err(error(goal, &assignment, &kept));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn subsets(of: &[usize], size: usize) -> Vec<Vec<usize>> {
    match (size, of) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [first, rest @ ..]) => {
            let with = subsets(rest, size - 1).into_iter().map(|s| [&[*first], s.as_slice()].concat());
            with.chain(subsets(rest, size)).collect()
        }
    }
}
