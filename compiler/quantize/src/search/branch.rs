//! Exact search: every assignment whose cost is at most a ceiling, place by place.
//!
//! At each place of a [`Chain`] the partial assignments that can still matter stand side by side. One is given up
//! when, at any of several price vectors, what it adds up to plus the least that its tail can add exceeds the
//! ceiling, or when a limit alone cannot be kept; and when as many others as are wanted, of the same state, neither
//! cost nor use more. If more are left than the width, those of the highest bounds are dropped, and the least of
//! their bounds is what the search proves.

use std::collections::VecDeque;

use super::instance::{Amount, Instance};
use super::relax::{Chain, UNIT, priced};

/// Rounding error of a bound, in units of the largest cost, for prices that sum to 1.
const ROUNDING: f64 = 1e-12;
/// How many partial assignments of a state one is compared with.
const RIVALS: usize = 2;

/// What a search gives: the cheapest assignments at or below the ceiling.
pub(super) struct Found {
    /// By cost, then by options.
    pub best: Vec<(i64, Vec<usize>)>,
    /// The least cost that an assignment which was dropped could have; `None` if none was.
    pub dropped: Option<f64>,
    pub steps: u64,
}

/// A lower bound: cost plus uses at `prices`, less what the limits are worth.
struct Row {
    prices: Vec<f64>,
    owed: f64,
    /// Least values of the tail, by place and state.
    tails: Vec<Vec<f64>>,
    rounding: f64,
}

impl Row {
    fn new(chain: &Chain, prices: &[f64]) -> Row {
        let owed = chain.instance.limits.iter().zip(prices).map(|(&b, p)| b as f64 * p).sum::<f64>() * UNIT;
        let rounding = ROUNDING * (1.0 + prices.iter().sum::<f64>());
        Row { tails: chain.tails(&priced(prices)), prices: prices.to_vec(), owed, rounding }
    }

    /// At most the cost of any whole assignment within the limits that begins like this.
    fn bound(&self, place: usize, state: usize, cost: i64, uses: &[i64]) -> f64 {
        let uses: f64 = uses.iter().zip(&self.prices).map(|(&u, p)| u as f64 * p).sum();
        (cost as f64 + uses) * UNIT + self.tails[place][state] - self.owed - self.rounding
    }
}

/// A partial assignment: what it adds up to, and how it came about.
#[derive(Clone, Debug)]
struct Partial {
    state: u32,
    option: u16,
    /// Index among the partial assignments of the place before.
    parent: u32,
    total: Amount,
    bound: f64,
}

/// The cheapest `wanted` assignments of cost at most `ceiling`, with at most `width` partial ones at a place.
pub(super) fn search(chain: &Chain, prices: &[Vec<f64>], ceiling: i64, wanted: usize, width: usize) -> Found {
    let limits = chain.instance.limits.len();
    let rows = prices.iter().map(|p| Row::new(chain, p)).collect();
    let least = (0..limits).map(|d| chain.tails(&|a: &Amount| a.uses[d] as f64)).collect();
    let start = Partial { state: 0, option: 0, parent: 0, total: Amount::zero(limits), bound: 0.0 };
    let mut search =
        Search { chain, rows, least, ceiling, wanted, width, places: vec![vec![start]], dropped: None, steps: 0 };
    for place in 0..chain.order.len() {
        search.extend(place);
    }
    let last = chain.order.len();
    let whole = |index: usize| (search.places[last][index].total.cost, search.assignment(index));
    let mut best: Vec<_> = (0..search.places[last].len()).map(whole).collect();
    best.sort();
    best.truncate(wanted);
    Found { best, dropped: search.dropped, steps: search.steps }
}

struct Search<'c> {
    chain: &'c Chain<'c>,
    rows: Vec<Row>,
    /// By limit, place and state: the least that the tail uses.
    least: Vec<Vec<Vec<f64>>>,
    ceiling: i64,
    wanted: usize,
    width: usize,
    /// Partial assignments before each place.
    places: Vec<Vec<Partial>>,
    dropped: Option<f64>,
    steps: u64,
}

impl Search<'_> {
    /// All continuations at `place` that can still matter.
    fn extend(&mut self, place: usize) {
        let (link, options) = (&self.chain.links[place], self.chain.options(place));
        let (mut next, mut total) = (Vec::new(), Amount::zero(self.least.len()));
        let (mut rows, mut earlier) = (std::mem::take(&mut self.rows), Vec::new());
        for (parent, partial) in self.places[place].iter().enumerate() {
            earlier.clear();
            earlier.extend(link.pairs.iter().map(|back| match &back.option {
                Some(by_state) => by_state[partial.state as usize].into(),
                None => self.taken(place, parent, back.place),
            }));
            for (option, amount) in options.iter().enumerate() {
                self.steps += 1;
                total.clone_from(&partial.total);
                total.add(amount);
                for (back, &earlier) in link.pairs.iter().zip(&earlier) {
                    total.add(back.amount(self.chain.instance, earlier, option));
                }
                let state = link.next[partial.state as usize * options.len() + option];
                if let Some(bound) = self.bound(&mut rows, place + 1, state as usize, &total) {
                    let (option, parent) = (option as u16, parent as u32);
                    next.push(Partial { state, option, parent, total: total.clone(), bound });
                }
            }
        }
        self.rows = rows;
        if self.chain.links.get(place + 1).is_none_or(|link| link.is_whole) {
            next = undominated(next, self.wanted);
        }
        if next.len() > self.width {
            let (_, least, _) = next.select_nth_unstable_by(self.width, |a, b| a.bound.total_cmp(&b.bound));
            let bound = least.bound / UNIT;
            self.dropped = Some(self.dropped.map_or(bound, |d| d.min(bound)));
            next.truncate(self.width);
        }
        self.places.push(next);
    }

    /// The bound of a partial assignment; `None` if no whole one matters. The row that told so is asked first the next
    /// time: it often tells of the next one too.
    fn bound(&self, rows: &mut [Row], place: usize, state: usize, total: &Amount) -> Option<f64> {
        let limits = total.uses.iter().zip(&self.chain.instance.limits).zip(&self.least);
        if limits.into_iter().any(|((&used, &limit), least)| used as f64 + least[place][state] > limit as f64) {
            return None;
        }
        let most = self.ceiling as f64 * UNIT;
        let mut bound = f64::NEG_INFINITY;
        for index in 0..rows.len() {
            bound = rows[index].bound(place, state, total.cost, &total.uses).max(bound);
            if bound > most {
                rows.swap(0, index);
                return None;
            }
        }
        Some(bound)
    }

    /// The option that a partial assignment before `place` takes at an earlier place.
    fn taken(&self, place: usize, index: usize, earlier: usize) -> usize {
        let ancestor = (earlier + 2..=place).rev().fold(index, |i, p| self.places[p][i].parent as usize);
        self.places[earlier + 1][ancestor].option.into()
    }

    fn assignment(&self, index: usize) -> Vec<usize> {
        let mut assignment = vec![0; self.chain.order.len()];
        let mut at = index;
        for place in (0..assignment.len()).rev() {
            let partial = &self.places[place + 1][at];
            assignment[self.chain.order[place]] = partial.option.into();
            at = partial.parent as usize;
        }
        assignment
    }
}

/// Leaves out what `wanted` others of the same state neither exceed in cost nor in any use.
fn undominated(mut all: Vec<Partial>, wanted: usize) -> Vec<Partial> {
    let key = |p: &Partial| (p.state, p.total.cost);
    all.sort_unstable_by(|a, b| {
        key(a).cmp(&key(b)).then_with(|| a.total.uses.cmp(&b.total.uses)).then(a.parent.cmp(&b.parent))
    });
    let (mut kept, mut state) = (Vec::with_capacity(all.len()), None);
    // The latest kept of this state, of no higher cost; with one wanted, only those of undominated uses.
    let mut rivals: VecDeque<usize> = VecDeque::new();
    let within = |a: &Partial, b: &Partial| a.total.uses.iter().zip(&b.total.uses).all(|(a, b)| a <= b);
    for partial in all {
        if state != Some(partial.state) {
            state = Some(partial.state);
            rivals.clear();
        }
        if rivals.iter().filter(|&&rival| within(&kept[rival], &partial)).count() >= wanted {
            continue;
        }
        if wanted == 1 {
            rivals.retain(|&rival| !within(&partial, &kept[rival]));
        }
        rivals.push_back(kept.len());
        if rivals.len() > RIVALS.max(wanted) {
            rivals.pop_front();
        }
        kept.push(partial);
    }
    kept
}

/// For every group the least value of the relaxation at `prices` by the option it takes.
pub(super) fn marginals(chain: &Chain, prices: &[f64]) -> Vec<Vec<f64>> {
    let value = priced(prices);
    let tails = chain.tails(&value);
    let mut heads = vec![0.0];
    let mut marginals = vec![Vec::new(); chain.order.len()];
    for here in 0..chain.order.len() {
        let (link, options) = (&chain.links[here], chain.options(here).len());
        let mut least = vec![f64::INFINITY; options];
        let mut next_heads = vec![f64::INFINITY; tails[here + 1].len()];
        for (state, &before) in heads.iter().enumerate() {
            let onward = chain.steps(here, state, &value);
            for (option, step) in onward.enumerate() {
                let next = link.next[state * options + option] as usize;
                let head = before + step;
                next_heads[next] = next_heads[next].min(head);
                least[option] = least[option].min(head + tails[here + 1][next]);
            }
        }
        heads = next_heads;
        marginals[chain.order[here]] = least;
    }
    marginals
}

/// An instance without some options, and the options that remain of each group.
pub(super) fn without(instance: &Instance, keep: &[Vec<usize>]) -> Instance {
    let pick = |list: &[Amount], keep: &[usize]| keep.iter().map(|&o| list[o].clone()).collect::<Vec<_>>();
    let pair = |pair: &super::instance::Pair| {
        let [a, b] = pair.groups;
        let amounts = keep[a].iter().map(|&x| pick(&pair.amounts[x], &keep[b])).collect();
        super::instance::Pair { groups: pair.groups, amounts }
    };
    Instance {
        groups: instance.groups.iter().zip(keep).map(|(list, keep)| pick(list, keep)).collect(),
        pairs: instance.pairs.iter().map(pair).collect(),
        limits: instance.limits.clone(),
    }
}
