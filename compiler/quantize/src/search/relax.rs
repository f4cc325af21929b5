//! The Lagrangian relaxation: limits become prices, and what remains is solved exactly.
//!
//! For prices p >= 0, `L(p) = min over assignments of cost + p (uses - limits)` is at most the cost of every
//! assignment that meets the limits. The minimum is found from the last group to the first: [`Chain`] says
//! which earlier groups a tail of the order still depends on through pairs, its *frontier*; its states are the
//! combinations of their options. L is concave; [`best_prices`] maximises it with the ellipsoid method, which in
//! so few dimensions is fast, needs no step size, and says by itself how far it is from the maximum.

use super::instance::{Amount, Instance};

/// Unit of amounts here: sums of amounts are then at most 1.
pub(super) const UNIT: f64 = 1.0 / (1u64 << 50) as f64;
/// A frontier of more states is cut: pairs that leave it are bounded by their least value.
const MAX_STATES: usize = if cfg!(test) { 16 } else { 4096 };
/// The ellipsoid stops at this distance from the maximum, relative to the largest cost.
const CLOSE: f64 = 1e-9;
const MAX_ROUNDS: usize = 3000;

/// A linear order of the groups with the frontier before each of them.
pub(super) struct Chain<'i> {
    pub instance: &'i Instance,
    /// Groups in order.
    pub order: Vec<usize>,
    pub links: Vec<Link>,
}

/// What one place of the order has to know of those before it.
pub(super) struct Link {
    /// Combinations of options of the frontier.
    pub states: usize,
    /// State after the place, by the state before it times the number of options plus the option.
    pub next: Vec<u32>,
    /// Pairs with earlier groups: the pair, and whether this group is the pair's second.
    pub pairs: Vec<BackPair>,
    /// Whether the state tells everything about the places before that pairs still need.
    pub is_whole: bool,
}

pub(super) struct BackPair {
    pub pair: usize,
    /// Place of the earlier group.
    pub place: usize,
    /// Whether the earlier group is the pair's first.
    pub earlier_first: bool,
    /// The option of the earlier group by state, if the frontier still holds it.
    pub option: Option<Vec<u16>>,
}

impl BackPair {
    pub fn amount<'a>(&self, instance: &'a Instance, earlier: usize, here: usize) -> &'a Amount {
        let (first, second) = if self.earlier_first { (earlier, here) } else { (here, earlier) };
        &instance.pairs[self.pair].amounts[first][second]
    }
}

impl<'i> Chain<'i> {
    pub fn new(instance: &'i Instance, order: Vec<usize>) -> Chain<'i> {
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(p, &g)| place[g] = p);
        // The last place that each place is paired with.
        let mut last: Vec<usize> = (0..order.len()).collect();
        for pair in &instance.pairs {
            let [a, b] = pair.groups.map(|g| place[g]);
            last[a.min(b)] = last[a.min(b)].max(a.max(b));
        }
        let options = |p: usize| instance.groups[order[p]].len();
        let mut frontier: Vec<usize> = Vec::new();
        let mut cut = 0;
        let mut links = Vec::with_capacity(order.len());
        for here in 0..order.len() {
            let is_whole = here > cut;
            let mut after: Vec<usize> = frontier.iter().copied().chain([here]).filter(|&p| last[p] > here).collect();
            while after.iter().map(|&p| options(p)).product::<usize>() > MAX_STATES {
                cut = cut.max(last[after.remove(0)]);
            }
            let states = frontier.iter().map(|&p| options(p)).product();
            let decode = |mut state: usize| -> Vec<usize> {
                let digit = |&p: &usize| {
                    let digit = state % options(p);
                    state /= options(p);
                    digit
                };
                frontier.iter().map(digit).collect()
            };
            let mut next = Vec::with_capacity(states * options(here));
            for state in 0..states {
                let held = decode(state);
                for option in 0..options(here) {
                    let value = |p: usize| frontier.iter().position(|&q| q == p).map_or(option, |i| held[i]);
                    next.push(after.iter().rev().fold(0, |s, &p| s * options(p) + value(p)) as u32);
                }
            }
            let back = |(index, pair): (usize, &super::instance::Pair)| {
                let [a, b] = pair.groups.map(|g| place[g]);
                let earlier = a.min(b);
                (a.max(b) == here).then(|| BackPair {
                    pair: index,
                    place: earlier,
                    earlier_first: a < b,
                    option: frontier
                        .iter()
                        .position(|&p| p == earlier)
                        .map(|i| (0..states).map(|s| decode(s)[i] as u16).collect()),
                })
            };
            let pairs = instance.pairs.iter().enumerate().filter_map(back).collect();
            links.push(Link { states, next, pairs, is_whole });
            frontier = after;
        }
        Chain { instance, order, links }
    }

    pub fn options(&self, place: usize) -> &'i [Amount] {
        &self.instance.groups[self.order[place]]
    }

    /// The least value of each tail by the state before it: `tails[p][state]`, one more place than there are groups.
    pub fn tails(&self, value: &impl Fn(&Amount) -> f64) -> Vec<Vec<f64>> {
        let mut tails = vec![vec![0.0]; self.order.len() + 1];
        for here in (0..self.order.len()).rev() {
            let link = &self.links[here];
            let states = (0..link.states).map(|state| {
                let values = self.values(here, state, &tails[here + 1], value);
                values.fold(f64::INFINITY, f64::min)
            });
            tails[here] = states.collect();
        }
        tails
    }

    /// The least value of the tail from `here`, by the option taken here.
    fn values(
        &self,
        here: usize,
        state: usize,
        after: &[f64],
        value: &impl Fn(&Amount) -> f64,
    ) -> impl Iterator<Item = f64> {
        let next = &self.links[here].next[state * self.options(here).len()..];
        self.steps(here, state, value).zip(next).map(|(step, &next)| step + after[next as usize])
    }

    /// What each option here adds in a state.
    pub fn steps(&self, here: usize, state: usize, value: &impl Fn(&Amount) -> f64) -> impl Iterator<Item = f64> {
        self.options(here).iter().enumerate().map(move |(option, amount)| {
            let back = self.links[here].pairs.iter();
            value(amount) + back.map(|back| self.pair_value(back, state, option, value)).sum::<f64>()
        })
    }

    fn pair_value(&self, back: &BackPair, state: usize, option: usize, value: &impl Fn(&Amount) -> f64) -> f64 {
        match &back.option {
            Some(earlier) => value(back.amount(self.instance, earlier[state].into(), option)),
            None => {
                let earlier = 0..self.options(back.place).len();
                earlier.map(|e| value(back.amount(self.instance, e, option))).fold(f64::INFINITY, f64::min)
            }
        }
    }

    /// An assignment of least value, by group.
    fn minimiser(&self, tails: &[Vec<f64>], value: &impl Fn(&Amount) -> f64) -> Vec<usize> {
        let (mut assignment, mut state) = (vec![0; self.order.len()], 0);
        for here in 0..self.order.len() {
            let values: Vec<f64> = self.values(here, state, &tails[here + 1], value).collect();
            let option = (0..values.len()).fold(0, |best, o| if values[o] < values[best] { o } else { best });
            assignment[self.order[here]] = option;
            state = self.links[here].next[state * values.len() + option] as usize;
        }
        assignment
    }
}

/// Value of an amount at prices.
pub(super) fn priced(prices: &[f64]) -> impl Fn(&Amount) -> f64 + '_ {
    move |amount| {
        let uses: f64 = amount.uses.iter().zip(prices).map(|(&u, p)| u as f64 * p).sum();
        (amount.cost as f64 + uses) * UNIT
    }
}

/// Prices with the bound they give, and what was seen on the way to them.
pub(super) struct Relaxed {
    pub prices: Vec<f64>,
    /// At most the cost of every assignment within the limits, in units of 2^50.
    pub bound: f64,
    /// Assignments that were least at some prices, each once, in the order seen.
    pub seen: Vec<Vec<usize>>,
}

/// Maximises the bound over prices.
pub(super) fn best_prices(chain: &Chain) -> Relaxed {
    let instance = chain.instance;
    let dims = instance.limits.len();
    let mut ellipsoid = Ellipsoid::new(steepest(instance).into_iter().map(|s| 16.0 * s).collect());
    let mut best = Relaxed { prices: vec![0.0; dims], bound: f64::NEG_INFINITY, seen: Vec::new() };
    // Without prices first, then from the centre.
    let mut prices = vec![0.0; dims];
    for round in 0..MAX_ROUNDS {
        let cut = match (0..dims).find(|&d| prices[d] < 0.0) {
            // Prices below 0 mean nothing: cut them off.
            Some(d) => (0..dims).map(|i| f64::from(i == d)).collect(),
            None => {
                let value = priced(&prices);
                let tails = chain.tails(&value);
                let owed: f64 = instance.limits.iter().zip(&prices).map(|(&b, p)| b as f64 * UNIT * p).sum();
                let bound = tails[0][0] - owed;
                let assignment = chain.minimiser(&tails, &value);
                let used = instance.total(&assignment);
                if bound > best.bound {
                    (best.bound, best.prices) = (bound, prices.clone());
                }
                if !best.seen.contains(&assignment) {
                    best.seen.push(assignment);
                }
                let slope = |(u, b): (&i64, &i64)| (u - b) as f64 * UNIT;
                used.uses.iter().zip(&instance.limits).map(slope).collect::<Vec<f64>>()
            }
        };
        let is_price = prices.iter().all(|&p| p >= 0.0);
        if dims == 0 || (is_price && round == 0 && cut.iter().all(|&s| s <= 0.0)) {
            break;
        }
        if round > 0 {
            match ellipsoid.keep(&cut) {
                Some(reach) if !is_price || reach > CLOSE => {}
                _ => break,
            }
        }
        prices = ellipsoid.centre.clone();
    }
    best
}

/// For each limit the highest price at which some group would still change its choice for that limit alone.
fn steepest(instance: &Instance) -> Vec<f64> {
    let amounts = || instance.groups.iter();
    let slope = |d: usize| {
        let ratios = amounts().flat_map(|options| {
            options.iter().flat_map(move |a| {
                options.iter().map(move |b| {
                    let (gain, loss) = ((a.uses[d] - b.uses[d]) as f64, (b.cost - a.cost) as f64);
                    if gain > 0.0 { loss / gain } else { 0.0 }
                })
            })
        });
        ratios.fold(1e-6, f64::max)
    };
    (0..instance.limits.len()).map(slope).collect()
}

/// The prices that can still be best: `(p - centre)' shape^-1 (p - centre) <= 1`.
struct Ellipsoid {
    centre: Vec<f64>,
    shape: Vec<Vec<f64>>,
}

impl Ellipsoid {
    /// Around the box from 0 to `largest`.
    fn new(largest: Vec<f64>) -> Ellipsoid {
        let dims = largest.len();
        let radius = |l: f64| l * l / 4.0 * dims as f64;
        let row = |i: usize| (0..dims).map(|j| if i == j { radius(largest[i]) } else { 0.0 }).collect();
        Ellipsoid { centre: largest.iter().map(|l| l / 2.0).collect(), shape: (0..dims).map(row).collect() }
    }

    /// Keeps the half in direction `slope`; the reach is how much a linear function of that slope can still grow.
    fn keep(&mut self, slope: &[f64]) -> Option<f64> {
        let dims = slope.len();
        let product: Vec<f64> = self.shape.iter().map(|row| row.iter().zip(slope).map(|(a, b)| a * b).sum()).collect();
        let reach = product.iter().zip(slope).map(|(a, b)| a * b).sum::<f64>().sqrt();
        if !reach.is_finite() || reach <= 0.0 {
            return None;
        }
        let step: Vec<f64> = product.iter().map(|p| p / reach).collect();
        let n = dims as f64;
        self.centre.iter_mut().zip(&step).for_each(|(c, s)| *c += s / (n + 1.0));
        // In one dimension the half of an interval is an interval.
        let (grow, shrink) = if dims == 1 { (0.25, 0.0) } else { (n * n / (n * n - 1.0), 2.0 / (n + 1.0)) };
        for (i, row) in self.shape.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry = grow * (*entry - shrink * step[i] * step[j]);
            }
        }
        Some(reach)
    }
}
