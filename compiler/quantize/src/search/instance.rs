//! A problem in whole numbers: groups of layers that choose together, and what pairs of choices add.
//!
//! Costs and uses are scaled by powers of two and rounded, so that every sum fits 2^50. From here on sums are
//! exact and do not depend on their order; the rounding is of the order of a double's own. Limits are widened by
//! one unit a term, which is what rounding can take away.

use std::collections::BTreeMap;

use super::problem::{Problem, SearchError};
use smallvec::{SmallVec, smallvec};

/// Largest sum, as a power of two.
const BITS: f64 = 50.0;

/// One number for each limit. Latency, size and bit operations stay in place: a search makes an amount at every step.
pub(super) type Uses = SmallVec<[i64; 3]>;

/// What a choice, or a pair of choices, adds: to the objective, and to each limited sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub cost: i64,
    pub uses: Uses,
}

/// What two groups add to what each adds alone.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// The earlier group first.
    pub groups: [usize; 2],
    /// By the option of the first group, then that of the second.
    pub amounts: Vec<Vec<Amount>>,
}

#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// Options of each group; none is empty.
    pub groups: Vec<Vec<Amount>>,
    pub pairs: Vec<Pair>,
    pub limits: Vec<i64>,
}

/// Which options of an [`Instance`] stand for which choices of a [`Problem`].
#[derive(Debug)]
pub(super) struct Grouping {
    /// For every layer its group.
    pub group: Vec<usize>,
    /// For every layer the choice that each option of its group means.
    pub choice: Vec<Vec<usize>>,
}

impl Amount {
    pub fn zero(limits: usize) -> Amount {
        Amount { cost: 0, uses: smallvec![0; limits] }
    }

    pub fn add(&mut self, other: &Amount) {
        self.cost += other.cost;
        self.uses.iter_mut().zip(&other.uses).for_each(|(a, b)| *a += b);
    }

    pub fn within(&self, limits: &[i64]) -> bool {
        self.uses.iter().zip(limits).all(|(used, limit)| used <= limit)
    }
}

impl Instance {
    /// Everything that an assignment, an option for each group, adds up to.
    pub fn total(&self, assignment: &[usize]) -> Amount {
        let mut total = Amount::zero(self.limits.len());
        self.groups.iter().zip(assignment).for_each(|(options, &o)| total.add(&options[o]));
        for pair in &self.pairs {
            total.add(&pair.amounts[assignment[pair.groups[0]]][assignment[pair.groups[1]]]);
        }
        total
    }

    /// At least the cost of every assignment.
    pub fn largest_cost(&self) -> i64 {
        let most = |list: &[Amount]| list.iter().map(|a| a.cost).max().unwrap_or(0);
        let groups: i64 = self.groups.iter().map(|options| most(options)).sum();
        let pair = |p: &Pair| p.amounts.iter().map(|list| most(list)).max().unwrap_or(0);
        groups + self.pairs.iter().map(pair).sum::<i64>()
    }

    /// The problem of the least sum of `uses[goal]` while the limits `kept` hold.
    pub fn least_use(&self, goal: usize, kept: &[usize]) -> Instance {
        let amount = |a: &Amount| Amount { cost: a.uses[goal], uses: kept.iter().map(|&d| a.uses[d]).collect() };
        let list = |options: &Vec<Amount>| options.iter().map(amount).collect::<Vec<_>>();
        let pair = |p: &Pair| Pair { groups: p.groups, amounts: p.amounts.iter().map(list).collect() };
        Instance {
            groups: self.groups.iter().map(list).collect(),
            pairs: self.pairs.iter().map(pair).collect(),
            limits: kept.iter().map(|&d| self.limits[d]).collect(),
        }
    }
}

/// Puts tied layers into one group and scales everything to whole numbers.
///
/// # Errors
/// Tied layers without a choice in common.
pub(super) fn build(problem: &Problem) -> Result<(Instance, Grouping), SearchError> {
    let grouping = group_layers(problem)?;
    let scales = Scales::of(problem);
    let limits = problem.limits.len();
    let count = grouping.group.iter().max().map_or(0, |m| m + 1);
    let mut groups: Vec<Vec<Amount>> = vec![Vec::new(); count];
    for (index, layer) in problem.layers.iter().enumerate() {
        let options = &mut groups[grouping.group[index]];
        options.resize(grouping.choice[index].len(), Amount::zero(limits));
        for (option, &choice) in options.iter_mut().zip(&grouping.choice[index]) {
            option.add(&scales.amount(layer.choices[choice].cost, &layer.choices[choice].uses));
        }
    }
    let pairs = pairs(problem, &grouping, &scales, &mut groups);
    let terms = (problem.layers.len() + problem.seams.len()) as i64;
    let whole = |(d, limit): (usize, &super::problem::Limit)| {
        let scaled = (limit.most - limit.fixed) * scales.uses[d];
        scaled.clamp(-(2f64.powf(BITS + 10.0)), 2f64.powf(BITS + 10.0)).floor() as i64 + terms
    };
    let limits = problem.limits.iter().enumerate().map(whole).collect();
    Ok((Instance { groups, pairs, limits }, grouping))
}

struct Scales {
    cost: f64,
    uses: Vec<f64>,
}

impl Scales {
    fn of(problem: &Problem) -> Scales {
        let choices = || problem.layers.iter().map(|l| &l.choices);
        let largest = |value: &dyn Fn(&super::problem::Choice) -> f64| {
            choices().map(|list| list.iter().map(|c| value(c).abs()).fold(0.0, f64::max)).sum::<f64>()
        };
        let seams = |d: usize| problem.seams.iter().filter(|s| s.limit == d).map(|s| s.extra.abs()).sum::<f64>();
        let uses = (0..problem.limits.len()).map(|d| power(largest(&|c| c.uses[d]) + seams(d)));
        Scales { cost: power(largest(&|c| c.cost)), uses: uses.collect() }
    }

    fn amount(&self, cost: f64, uses: &[f64]) -> Amount {
        let whole = |value: f64, scale: f64| (value * scale).round() as i64;
        let uses = uses.iter().zip(&self.uses).map(|(&u, &s)| whole(u, s)).collect();
        Amount { cost: whole(cost, self.cost), uses }
    }
}

/// The largest power of two that keeps `total` within the range.
fn power(total: f64) -> f64 {
    if total > 0.0 { 2f64.powf((BITS - total.log2()).floor().clamp(-900.0, 900.0)) } else { 1.0 }
}

/// One group per layer or set of tied layers, in the order of their first layers; the options are the labels
/// that all its layers have, in the order of the first layer's choices.
fn group_layers(problem: &Problem) -> Result<Grouping, SearchError> {
    let count = problem.layers.len();
    let mut root: Vec<usize> = (0..count).collect();
    for &[a, b] in &problem.ties {
        let (keep, drop) = (root[a].min(root[b]), root[a].max(root[b]));
        root.iter_mut().filter(|r| **r == drop).for_each(|r| *r = keep);
    }
    let mut number: BTreeMap<usize, usize> = BTreeMap::new();
    let mut grouping = Grouping { group: Vec::new(), choice: Vec::new() };
    for layer in 0..count {
        let next = number.len();
        grouping.group.push(*number.entry(root[layer]).or_insert(next));
        let members = || (0..count).filter(|&l| root[l] == root[layer]);
        let position =
            |l: usize, label: &str| problem.layers[l].choices.iter().position(|choice| choice.label == label);
        let first = &problem.layers[root[layer]].choices;
        let common = first.iter().filter(|c| members().all(|l| position(l, &c.label).is_some()));
        let choices: Vec<usize> = common.filter_map(|c| position(layer, &c.label)).collect();
        if choices.is_empty() {
            let names = members().map(|l| problem.layers[l].name.clone()).collect();
            return Err(SearchError::NoCommonChoice { layers: names });
        }
        grouping.choice.push(choices);
    }
    Ok(grouping)
}

/// Seams as pairs of groups; a seam inside one group is part of its options.
fn pairs(problem: &Problem, grouping: &Grouping, scales: &Scales, groups: &mut [Vec<Amount>]) -> Vec<Pair> {
    let limits = problem.limits.len();
    let mut pairs: BTreeMap<[usize; 2], Vec<Vec<Amount>>> = BTreeMap::new();
    for seam in &problem.seams {
        let mut uses = vec![0.0; limits];
        uses[seam.limit] = seam.extra;
        let amount = scales.amount(0.0, &uses);
        let mut ends: Vec<(usize, Option<usize>)> = (0..2)
            .map(|i| {
                let (layer, choice) = (seam.layers[i], seam.choices[i]);
                (grouping.group[layer], grouping.choice[layer].iter().position(|&c| c == choice))
            })
            .collect();
        ends.sort();
        // A choice that no option means cannot be made.
        let [(a, Some(x)), (b, Some(y))] = ends[..] else { continue };
        if a == b {
            if x == y {
                groups[a][x].add(&amount);
            }
            continue;
        }
        let empty = || vec![vec![Amount::zero(limits); groups[b].len()]; groups[a].len()];
        pairs.entry([a, b]).or_insert_with(empty)[x][y].add(&amount);
    }
    pairs.into_iter().map(|(groups, amounts)| Pair { groups, amounts }).collect()
}

/// How many whole units a cost of 1 is.
pub(super) fn cost_scale(problem: &Problem) -> f64 {
    Scales::of(problem).cost
}
