//! Exact search: every assignment whose cost is at most a ceiling, the best ones kept.
//!
//! Depth first along a [`Chain`]. A partial assignment is given up when, at any of several price vectors, what it
//! adds up to plus the least that its tail can add exceeds the ceiling, or when a limit alone cannot be kept. One
//! price vector would do for correctness; several make up for not solving the relaxation anew at every step. A
//! partial assignment that equals an earlier one in its exact sums and in what the tail depends on is given up
//! when as many were seen as are wanted.

use super::instance::{Amount, Instance};
use super::relax::{Chain, UNIT, priced};

/// Slots of the memory of partial assignments seen.
const SLOTS: usize = 1 << 16;
/// Rounding error of a bound, in units of the largest cost, for prices that sum to 1.
const ROUNDING: f64 = 1e-12;

/// What a search gives: the cheapest assignments at or below the ceiling.
pub(super) struct Found {
    /// By cost, then by options.
    pub best: Vec<(i64, Vec<usize>)>,
    /// Whether every assignment at or below the ceiling was considered.
    pub complete: bool,
    pub steps: u64,
}

/// A lower bound: amounts count cost times `cost` plus uses at `prices`, and must stay at or below `most`.
struct Row {
    cost: f64,
    prices: Vec<f64>,
}

impl Row {
    fn value(&self, amount: &Amount) -> f64 {
        let uses: f64 = amount.uses.iter().zip(&self.prices).map(|(&u, p)| u as f64 * p).sum();
        (amount.cost as f64 * self.cost + uses) * UNIT
    }

    /// The largest value of an assignment of at most this cost within the limits.
    fn most(&self, ceiling: i64, limits: &[i64]) -> f64 {
        let owed: f64 = limits.iter().zip(&self.prices).map(|(&b, p)| b as f64 * p).sum();
        let rounding = ROUNDING * (self.cost + self.prices.iter().sum::<f64>());
        (ceiling as f64 * self.cost + owed) * UNIT + rounding
    }
}

/// The cheapest `wanted` assignments of cost at most `ceiling`, in at most `max_steps` steps.
pub(super) fn search(chain: &Chain, prices: &[Vec<f64>], ceiling: i64, wanted: usize, max_steps: u64) -> Found {
    let limits = &chain.instance.limits;
    let mut rows: Vec<Row> = prices.iter().map(|p| Row { cost: 1.0, prices: p.clone() }).collect();
    let alone = |d: usize| Row { cost: 0.0, prices: (0..limits.len()).map(|i| f64::from(i == d)).collect() };
    rows.extend((0..limits.len()).map(alone));
    let mut search = Search::new(chain, rows, ceiling, wanted, max_steps);
    search.visit(0, 0);
    Found { complete: search.steps < max_steps, best: search.best, steps: search.steps }
}

struct Search<'c> {
    chain: &'c Chain<'c>,
    rows: Vec<Row>,
    /// Per place: row values by option.
    values: Vec<Vec<f64>>,
    /// Per place and pair with an earlier one: row values by the earlier option, then this one.
    pair_values: Vec<Vec<Vec<f64>>>,
    /// Per place: least row values of the tail by state.
    tails: Vec<Vec<f64>>,
    /// Options of a place by state, the most promising first.
    promising: Vec<Vec<u16>>,
    most: Vec<f64>,
    /// Row values of the partial assignment before each place.
    sums: Vec<f64>,
    exact: Vec<Amount>,
    taken: Vec<usize>,
    best: Vec<(i64, Vec<usize>)>,
    ceiling: i64,
    wanted: usize,
    steps: u64,
    max_steps: u64,
    seen: Vec<Option<Seen>>,
}

/// A partial assignment as far as its tail is concerned.
struct Seen {
    place: u32,
    state: u32,
    exact: Amount,
    times: usize,
}

impl<'c> Search<'c> {
    fn new(chain: &'c Chain<'c>, rows: Vec<Row>, ceiling: i64, wanted: usize, max_steps: u64) -> Search<'c> {
        let places = chain.order.len();
        let each = |amount: &Amount| rows.iter().map(|r| r.value(amount)).collect::<Vec<f64>>();
        let values: Vec<Vec<f64>> = (0..places).map(|p| chain.options(p).iter().flat_map(each).collect()).collect();
        let pair_values = (0..places).map(|p| {
            let back = chain.links[p].pairs.iter().map(|back| {
                let earlier = 0..chain.options(back.place).len();
                let here = |e| (0..chain.options(p).len()).map(move |o| back.amount(chain.instance, e, o));
                earlier.flat_map(here).flat_map(each).collect()
            });
            back.collect()
        });
        let tails = interleave(&rows.iter().map(|r| chain.tails(&|a| r.value(a))).collect::<Vec<_>>());
        let mut search = Search {
            chain,
            values,
            pair_values: pair_values.collect(),
            promising: Vec::new(),
            tails,
            most: vec![0.0; rows.len()],
            sums: vec![0.0; (places + 1) * rows.len()],
            exact: vec![Amount::zero(chain.instance.limits.len()); places + 1],
            taken: vec![0; places],
            best: Vec::new(),
            ceiling,
            wanted,
            steps: 0,
            max_steps,
            seen: Vec::new(),
            rows,
        };
        search.seen.resize_with(SLOTS, || None);
        search.promising = (0..places).map(|p| search.rank(p)).collect();
        search.lower(ceiling);
        search
    }

    /// Options of a place by state in the order of the first row.
    fn rank(&self, place: usize) -> Vec<u16> {
        let (rows, link) = (self.rows.len(), &self.chain.links[place]);
        let options = self.chain.options(place).len();
        let by_state = (0..link.states).flat_map(|state| {
            let value = |o: usize| {
                let next = link.next[state * options + o] as usize;
                self.values[place][o * rows] + self.tails[place + 1][next * rows]
            };
            let mut order: Vec<u16> = (0..options as u16).collect();
            order.sort_by(|&a, &b| value(a.into()).total_cmp(&value(b.into())));
            order
        });
        by_state.collect()
    }

    fn lower(&mut self, ceiling: i64) {
        self.ceiling = ceiling;
        let limits = &self.chain.instance.limits;
        self.most = self.rows.iter().map(|r| r.most(ceiling, limits)).collect();
    }

    fn visit(&mut self, place: usize, state: usize) {
        if place == self.chain.order.len() {
            return self.record();
        }
        let link = &self.chain.links[place];
        let options = self.chain.options(place).len();
        if options > 1 && self.is_repeated(place, state) {
            return;
        }
        for rank in 0..options {
            let option = usize::from(self.promising[place][state * options + rank]);
            let next = link.next[state * options + option] as usize;
            self.steps += 1;
            if self.steps >= self.max_steps {
                return;
            }
            if self.extend(place, option, next) {
                self.taken[place] = option;
                self.visit(place + 1, next);
            }
        }
    }

    /// Adds an option to the partial assignment; whether it can still stay at or below the ceiling and within limits.
    fn extend(&mut self, place: usize, option: usize, next: usize) -> bool {
        let rows = self.rows.len();
        let (before, after) = self.sums.split_at_mut((place + 1) * rows);
        let (before, after) = (&before[place * rows..], &mut after[..rows]);
        let own = &self.values[place][option * rows..][..rows];
        after.iter_mut().zip(before).zip(own).for_each(|((after, before), own)| *after = before + own);
        let (chain, options) = (self.chain, self.chain.options(place));
        for (back, values) in chain.links[place].pairs.iter().zip(&self.pair_values[place]) {
            let index = self.taken[back.place] * options.len() + option;
            after.iter_mut().zip(&values[index * rows..][..rows]).for_each(|(after, value)| *after += value);
        }
        let tail = &self.tails[place + 1][next * rows..][..rows];
        let over = after.iter().zip(tail).zip(&self.most).any(|((sum, tail), most)| sum + tail > *most);
        if over {
            return false;
        }
        let (before, after) = self.exact.split_at_mut(place + 1);
        let (before, after) = (&before[place], &mut after[0]);
        after.clone_from(before);
        after.add(&options[option]);
        for back in &chain.links[place].pairs {
            after.add(back.amount(chain.instance, self.taken[back.place], option));
        }
        true
    }

    /// Whether as many partial assignments like this one were seen as assignments are wanted.
    fn is_repeated(&mut self, place: usize, state: usize) -> bool {
        let exact = &self.exact[place];
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let head = mix(mix(mix(1, place as u64), state as u64), exact.cost as u64);
        let hash = exact.uses.iter().fold(head, |h, &u| mix(h, u as u64));
        let slot = &mut self.seen[(hash >> 40) as usize % SLOTS];
        if let Some(seen) = slot
            && (seen.place as usize, seen.state as usize) == (place, state)
            && seen.exact == *exact
        {
            seen.times += 1;
            return seen.times > self.wanted;
        }
        *slot = Some(Seen { place: place as u32, state: state as u32, exact: exact.clone(), times: 1 });
        false
    }

    fn record(&mut self) {
        let total = &self.exact[self.chain.order.len()];
        if total.cost > self.ceiling || !total.within(&self.chain.instance.limits) {
            return;
        }
        let mut assignment = vec![0; self.taken.len()];
        self.chain.order.iter().zip(&self.taken).for_each(|(&group, &option)| assignment[group] = option);
        let entry = (total.cost, assignment);
        let at = self.best.partition_point(|other| *other < entry);
        self.best.insert(at, entry);
        self.best.truncate(self.wanted);
        if self.best.len() == self.wanted {
            let ceiling = self.best[self.wanted - 1].0 - 1;
            self.lower(ceiling);
        }
    }
}

/// From rows of tails to tails of rows.
fn interleave(rows: &[Vec<Vec<f64>>]) -> Vec<Vec<f64>> {
    let Some(first) = rows.first() else { return Vec::new() };
    let at = |place: usize| (0..first[place].len()).flat_map(move |state| rows.iter().map(move |r| r[place][state]));
    (0..first.len()).map(|place| at(place).collect()).collect()
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
