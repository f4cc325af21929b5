//! Successive halving: which of many candidates is the fastest, spending most measurements on the best.
//!
//! Every candidate is measured a few times; the better half is measured until it has twice as many, and so on
//! until one is left. A candidate counts by the lower quartile of its times: disturbance only ever adds
//! time. All depends on the measured times alone, so what an earlier session measured counts as if it
//! had been measured now.

/// Times that a candidate needs in the first rung if the budget is small.
const LEAST: usize = 2;
/// Times beyond which more say nothing new.
const MOST: usize = 64;
/// Candidates that take turns with each other.
const GROUP: usize = 8;

/// Lower quartile. 0 times are the worst score.
pub fn score(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    if sorted.is_empty() { u64::MAX } else { sorted[(sorted.len() - 1) / 4] }
}

/// Measurements of all rungs for one measurement in the first: rungs after the first need half the candidates as
/// many times again.
fn cost(candidates: usize) -> usize {
    let rungs = candidates.max(2).next_power_of_two().ilog2() as usize;
    candidates + candidates * (rungs.saturating_sub(1)) / 2
}

/// How many candidates `measurements` suffice for.
pub fn affordable(measurements: usize) -> usize {
    (2..4096).take_while(|&n| cost(n) * LEAST <= measurements).last().unwrap_or(2)
}

/// How often each candidate is measured in the first rung.
pub fn first_rung(candidates: usize, measurements: usize) -> usize {
    (measurements / cost(candidates).max(1)).clamp(LEAST, MOST / 4)
}

/// See the module's documentation. Candidates are known by position.
#[derive(Clone, Debug)]
pub struct Halving {
    times: Vec<Vec<u64>>,
    alive: Vec<bool>,
    refused: Vec<bool>,
    /// Times every candidate alive needs before the next halving.
    wanted: usize,
    lost: Vec<usize>,
}

impl Halving {
    pub fn new(candidates: usize, first: usize) -> Halving {
        Halving {
            times: vec![Vec::new(); candidates],
            alive: vec![true; candidates],
            refused: vec![false; candidates],
            wanted: first.max(1),
            lost: Vec::new(),
        }
    }

    /// Adds times from earlier.
    pub fn know(&mut self, candidate: usize, times: &[u64]) {
        self.times[candidate].extend(times);
    }

    /// Takes a candidate out that cannot run.
    pub fn refuse(&mut self, candidate: usize) {
        self.alive[candidate] = false;
        self.refused[candidate] = true;
    }

    /// Adds a time; whether the candidate has all that it needs for now.
    pub fn record(&mut self, candidate: usize, ns: u64) -> bool {
        self.times[candidate].push(ns);
        self.times[candidate].len() >= self.wanted
    }

    pub fn times(&self, candidate: usize) -> &[u64] {
        &self.times[candidate]
    }

    /// The candidate to measure next; `None` when one is left.
    pub fn next_candidate(&mut self) -> Option<usize> {
        loop {
            let alive: Vec<usize> = (0..self.alive.len()).filter(|&i| self.alive[i]).collect();
            if alive.len() <= 1 {
                return None;
            }
            let short = alive.iter().copied().filter(|&i| self.times[i].len() < self.wanted);
            if let Some(next) = short.take(GROUP).min_by_key(|&i| (self.times[i].len(), i)) {
                return Some(next);
            }
            let mut order = alive;
            order.sort_by_key(|&i| (score(&self.times[i]), i));
            for lost in order.split_off(order.len().div_ceil(2)) {
                self.alive[lost] = false;
                self.lost.push(lost);
            }
            self.wanted = (self.wanted * 2).min(MOST);
        }
    }

    /// Candidates that lost since last asked.
    pub fn take_lost(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.lost)
    }

    /// The best so far; the first if nothing is known.
    pub fn best(&self) -> usize {
        let alive = (0..self.times.len()).filter(|&i| self.alive[i]);
        let measured = alive.filter(|&i| !self.times[i].is_empty());
        measured.min_by_key(|&i| (score(&self.times[i]), i)).unwrap_or(0)
    }

    /// Candidates with at least one time, or refused.
    pub fn tried(&self) -> usize {
        self.times.iter().zip(&self.refused).filter(|(times, refused)| !times.is_empty() || **refused).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of candidate `i`, disturbed now and then; a sequence known in advance.
    fn time(truth: u64, turn: usize) -> u64 {
        truth + [0, 40, 3, 900, 7][turn % 5]
    }

    fn race(truth: &[u64], first: usize) -> (Halving, usize) {
        let mut halving = Halving::new(truth.len(), first);
        let mut turns = 0;
        while let Some(next) = halving.next_candidate() {
            halving.record(next, time(truth[next], turns));
            turns += 1;
            assert!(turns < 10_000);
        }
        (halving, turns)
    }

    #[test]
    fn the_fastest_wins() {
        for fastest in 0..21 {
            let truth: Vec<u64> =
                (0..21).map(|i| if i == fastest { 1000 } else { 1100 + 37 * (i as u64 % 7) }).collect();
            let (halving, turns) = race(&truth, 4);
            assert_eq!(halving.best(), fastest);
            assert!(turns <= 2 * 4 * cost(21), "{turns} turns");
            assert!(halving.times(fastest).len() > halving.times((fastest + 1) % 21).len());
        }
    }

    #[test]
    fn what_was_known_counts() {
        let truth: Vec<u64> = (0..9).map(|i| 500 + 30 * i).collect();
        let (whole, turns) = race(&truth, 2);
        let mut halving = Halving::new(9, 2);
        (0..9).for_each(|i| halving.know(i, whole.times(i)));
        assert_eq!(halving.next_candidate(), None);
        assert_eq!(halving.best(), whole.best());
        let mut half = Halving::new(9, 2);
        (0..5).for_each(|i| half.know(i, whole.times(i)));
        let mut more = 0;
        while let Some(next) = half.next_candidate() {
            half.record(next, time(truth[next], more));
            more += 1;
        }
        assert!(more < turns);
        assert_eq!(half.best(), whole.best());
    }

    #[test]
    fn refused_candidates_are_not_asked_for() {
        let mut halving = Halving::new(3, 2);
        halving.refuse(0);
        halving.refuse(2);
        assert_eq!((halving.next_candidate(), halving.best(), halving.tried()), (None, 0, 2));
        halving.know(1, &[5]);
        assert_eq!(halving.best(), 1);
    }

    #[test]
    fn budgets() {
        assert_eq!(affordable(0), 2);
        for measurements in [50, 200, 1000] {
            let count = affordable(measurements);
            assert!(cost(count) * LEAST <= measurements && cost(count + 1) * LEAST > measurements);
        }
        assert_eq!(first_rung(10, 0), LEAST);
        assert_eq!(first_rung(2, 1 << 20), MOST / 4);
    }
}
