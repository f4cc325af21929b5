//! Choosing schedules by measuring them.
//!
//! In: [`Task`]s (a workload with its candidates and what is known of them) and something that can
//! [`Measure`]. Out: the best schedule of every task, and an [`Event`] for everything that was found, to be
//! written to the [`log`] at once. One run of the network measures one candidate of every task, so
//! kernels are timed between their own neighbours. Candidates take turns; each keeps its turn for
//! a few runs of which the first, which finds its weights out of the caches, does not count.
//!
//! Where the budget allows every candidate is tried, by [`halving`]; else those that did best for the nearest
//! workload known, and behind them, in turns, those most like the default and an even selection of all.

pub mod halving;
pub mod log;
pub mod table;
pub mod workload;

use std::collections::BTreeMap;

use crate::Schedule;
use halving::Halving;
use log::{Record, Row};

/// Runs for which a candidate keeps its turn; the first is not counted.
const TURN: usize = 3;

/// Something that can run a network with given schedules.
pub trait Measure {
    type Error;

    /// Makes a candidate of a task ready to run.
    fn prepare(&mut self, task: usize, schedule: Schedule) -> Result<Prepared, Self::Error>;

    /// Frees what `prepare` made.
    fn discard(&mut self, task: usize, schedule: Schedule);

    /// Runs the network once, task `i` under `chosen[i]`; the nanoseconds of each task.
    fn run(&mut self, chosen: &[Schedule]) -> Result<Vec<u64>, Self::Error>;
}

/// Whether a candidate can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// With the digest of its machine code.
    Ready(String),
    /// Not with this network's weights, for this reason.
    Refused(String),
}

/// What is known of a candidate from earlier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Digest of the machine code that was measured.
    pub kernel: String,
    pub times: Vec<u64>,
}

/// A workload to tune.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its text, see [`workload`].
    pub workload: String,
    /// The default first, then in the order in which they should be tried, see [`ranked`].
    pub candidates: Vec<Schedule>,
    pub known: BTreeMap<Schedule, Known>,
}

/// Something worth a line in the log, or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Measured {
        task: usize,
        schedule: Schedule,
        kernel: &'a str,
        times: &'a [u64],
    },
    Refused {
        task: usize,
        schedule: Schedule,
        reason: &'a str,
    },
    /// What was known is of machine code that is no longer emitted.
    Stale {
        task: usize,
        schedule: Schedule,
    },
}

/// When to stop.
pub struct Budget<'a> {
    /// Runs that can be expected to fit; decides how many candidates are tried, how often.
    pub runs: usize,
    /// Asked after every run, with the number of runs so far: whether there may be another.
    pub more: &'a mut dyn FnMut(usize) -> bool,
}

/// The schedules to run next, and whether they were given up because the budget ended.
pub struct Outcome {
    /// Of every task, the best found.
    pub best: Vec<Schedule>,
    /// Number of candidates of every task that were measured, now or earlier.
    pub tried: Vec<usize>,
    /// Whether every task was brought to its end.
    pub complete: bool,
    pub runs: usize,
}

/// Searches the candidates of all tasks at once.
pub fn search<M: Measure>(
    tasks: &[Task],
    measure: &mut M,
    budget: &mut Budget,
    on_event: &mut dyn FnMut(Event),
) -> Result<Outcome, M::Error> {
    let mut races = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        races.push(Race::new(index, task, budget.runs, measure, on_event)?);
    }
    let mut runs = 0;
    'search: loop {
        let mut turns = Vec::new();
        for race in &mut races {
            turns.push(race.turn(measure, on_event)?);
        }
        if turns.iter().all(Option::is_none) {
            break;
        }
        let chosen: Vec<Schedule> = races.iter().zip(&turns).map(|(race, &turn)| race.schedule(turn)).collect();
        for run in 0..TURN {
            if !(budget.more)(runs) {
                break 'search;
            }
            let times = measure.run(&chosen)?;
            runs += 1;
            for ((race, &turn), &ns) in races.iter_mut().zip(&turns).zip(&times) {
                if let (Some(candidate), true) = (turn, run > 0) {
                    race.record(candidate, ns, on_event);
                }
            }
        }
    }
    for race in &mut races {
        race.flush(on_event);
    }
    Ok(Outcome {
        best: races.iter().map(|race| race.schedule(None)).collect(),
        tried: races.iter().map(|race| race.halving.tried()).collect(),
        complete: races.iter_mut().all(|race| race.halving.next_candidate().is_none()),
        runs,
    })
}

/// One task being searched.
struct Race {
    task: usize,
    halving: Halving,
    candidates: Vec<Schedule>,
    /// Digest of the machine code of each candidate, once it is ready.
    kernels: Vec<Option<String>>,
    /// How many of a candidate's times were reported.
    reported: Vec<usize>,
}

impl Race {
    fn new<M: Measure>(
        index: usize,
        task: &Task,
        runs: usize,
        measure: &mut M,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Race, M::Error> {
        let measurements = runs / TURN * (TURN - 1);
        let count = task.candidates.len().min(halving::affordable(measurements));
        let candidates = task.candidates[..count].to_vec();
        let first = halving::first_rung(count, measurements);
        let mut race = Race {
            task: index,
            halving: Halving::new(count, first),
            candidates,
            kernels: vec![None; count],
            reported: vec![0; count],
        };
        // The first candidate is the default, which is ready wherever the task exists.
        for candidate in 0..count {
            let schedule = race.candidates[candidate];
            let Some(known) = task.known.get(&schedule) else {
                continue;
            };
            if !race.prepare(candidate, measure, on_event)? {
                continue;
            }
            if race.kernels[candidate].as_deref() == Some(known.kernel.as_str()) {
                race.halving.know(candidate, &known.times);
                race.reported[candidate] = known.times.len();
            } else {
                on_event(Event::Stale { task: index, schedule });
            }
        }
        Ok(race)
    }

    /// Whether the candidate can run.
    fn prepare<M: Measure>(
        &mut self,
        candidate: usize,
        measure: &mut M,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<bool, M::Error> {
        let schedule = self.candidates[candidate];
        if self.kernels[candidate].is_some() {
            return Ok(true);
        }
        match measure.prepare(self.task, schedule)? {
            Prepared::Ready(kernel) => {
                self.kernels[candidate] = Some(kernel);
                Ok(true)
            }
            Prepared::Refused(reason) => {
                self.halving.refuse(candidate);
                on_event(Event::Refused { task: self.task, schedule, reason: &reason });
                Ok(false)
            }
        }
    }

    /// The candidate whose turn it is, ready to run.
    fn turn<M: Measure>(
        &mut self,
        measure: &mut M,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Option<usize>, M::Error> {
        loop {
            let next = self.halving.next_candidate();
            for lost in self.halving.take_lost() {
                if lost > 0 && self.kernels[lost].take().is_some() {
                    measure.discard(self.task, self.candidates[lost]);
                }
            }
            match next {
                Some(candidate) if !self.prepare(candidate, measure, on_event)? => {}
                next => return Ok(next),
            }
        }
    }

    /// The schedule of a turn; without one, the best so far.
    fn schedule(&self, turn: Option<usize>) -> Schedule {
        self.candidates[turn.unwrap_or_else(|| self.halving.best())]
    }

    fn record(&mut self, candidate: usize, ns: u64, on_event: &mut dyn FnMut(Event)) {
        if self.halving.record(candidate, ns) {
            self.report(candidate, on_event);
        }
    }

    fn report(&mut self, candidate: usize, on_event: &mut dyn FnMut(Event)) {
        let times = self.halving.times(candidate);
        if let (Some(kernel), true) = (&self.kernels[candidate], times.len() > self.reported[candidate]) {
            let (task, schedule) = (self.task, self.candidates[candidate]);
            on_event(Event::Measured { task, schedule, kernel, times: &times[self.reported[candidate]..] });
            self.reported[candidate] = times.len();
        }
    }

    fn flush(&mut self, on_event: &mut dyn FnMut(Event)) {
        for candidate in 0..self.candidates.len() {
            self.report(candidate, on_event);
        }
    }
}

/// The candidates in the order in which they should be tried: the default, then as the nearest workload in
/// `rows` ranks them, then the others in [`spread`] order. With the text of that workload, if there is one.
pub fn ranked(workload: &str, candidates: &[Schedule], rows: &[Row]) -> (Vec<Schedule>, Option<String>) {
    let mut nearest: Option<(f64, &str)> = None;
    let mut scores: BTreeMap<&str, BTreeMap<Schedule, Vec<u64>>> = BTreeMap::new();
    for row in rows {
        let Record::Kernel { workload: other, schedule, times_ns, .. } = &row.record else {
            continue;
        };
        let Ok(schedule) = schedule.parse::<Schedule>() else {
            continue;
        };
        scores.entry(other).or_default().entry(schedule).or_default().extend(times_ns);
        let distance = workload::distance(workload, other);
        if distance.is_finite() && nearest.is_none_or(|(d, _)| distance < d) {
            nearest = Some((distance, other));
        }
    }
    let Some((&first, others)) = candidates.split_first() else {
        return (Vec::new(), None);
    };
    let mut others = spread(first, others);
    if let Some((_, text)) = nearest {
        let score = |s: &Schedule| scores.get(text)?.get(s).map(|times| halving::score(times));
        // Stable: what is not known keeps its place behind.
        others.sort_by_key(|s| score(s).unwrap_or(u64::MAX));
    }
    (std::iter::once(first).chain(others).collect(), nearest.map(|(_, text)| text.to_owned()))
}

/// All of `others`, so that any beginning of the list is a fair choice: in turns the one most like `first` and the
/// next of an even selection.
fn spread(first: Schedule, others: &[Schedule]) -> Vec<Schedule> {
    let mut near = others.to_vec();
    near.sort_by(|a, b| unlike(first, *a).total_cmp(&unlike(first, *b)));
    // Positions in the order of their bits reversed: every beginning covers the list evenly.
    let bits = others.len().next_power_of_two().ilog2();
    let reversed = |i: usize| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) };
    let even = (0..1usize << bits).filter_map(|i| others.get(reversed(i)).copied());
    let mut taken = std::collections::BTreeSet::new();
    let turns = near.iter().copied().zip(even.chain(std::iter::repeat(first)));
    let all = turns.flat_map(|(near, even)| [near, even]).filter(|&s| s != first && taken.insert(s));
    all.collect()
}

/// How unlike two schedules are: the logarithms of the ratios of their numbers, summed, by their texts; schedules of
/// different kinds are further apart than any of one kind.
fn unlike(a: Schedule, b: Schedule) -> f64 {
    let (a, b) = (a.to_string(), b.to_string());
    let word = |(x, y): (&str, &str)| {
        let number = |w: &str| w.split_once('=').and_then(|(_, n)| n.parse::<f64>().ok());
        match (number(x), number(y)) {
            (Some(x), Some(y)) if x > 0.0 && y > 0.0 => (x / y).ln().abs(),
            _ if x == y => 0.0,
            _ => 1e3,
        }
    };
    a.split(' ').zip(b.split(' ')).map(word).sum()
}

#[cfg(test)]
mod tests;
