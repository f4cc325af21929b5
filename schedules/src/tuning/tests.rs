//! The search over a machine that is made up: every schedule has a time, disturbed in a known way.

use std::collections::BTreeMap;

use super::log::Context;
use super::*;

fn schedule(tiles: usize) -> Schedule {
    format!("conv mr=2 nr=2 tiles={tiles} blocks=1").parse().unwrap()
}

fn task(workload: &str, candidates: usize) -> Task {
    Task { workload: workload.into(), candidates: (1..=candidates).map(schedule).collect(), known: BTreeMap::new() }
}

/// What ran, and how long things take: schedule `tiles` of a task takes `|tiles - best| * 50 + 1000`.
struct Machine {
    best: Vec<usize>,
    refused: Vec<Schedule>,
    kernel: &'static str,
    ready: Vec<(usize, Schedule)>,
    runs: usize,
}

impl Machine {
    fn new(best: &[usize]) -> Machine {
        Machine { best: best.into(), refused: Vec::new(), kernel: "k", ready: Vec::new(), runs: 0 }
    }
}

fn tiles(schedule: Schedule) -> usize {
    (1..1000).find(|&t| self::schedule(t) == schedule).unwrap()
}

impl Measure for Machine {
    type Error = ();

    fn prepare(&mut self, task: usize, schedule: Schedule) -> Result<Prepared, ()> {
        if self.refused.contains(&schedule) {
            return Ok(Prepared::Refused("no proof".into()));
        }
        assert!(!self.ready.contains(&(task, schedule)), "{schedule} made twice");
        self.ready.push((task, schedule));
        Ok(Prepared::Ready(self.kernel.into()))
    }

    fn discard(&mut self, task: usize, schedule: Schedule) {
        self.ready.retain(|&r| r != (task, schedule));
    }

    fn run(&mut self, chosen: &[Schedule]) -> Result<Vec<u64>, ()> {
        self.runs += 1;
        let noise = [0, 7, 2000, 13, 1][self.runs % 5];
        let time = |(task, (&s, &best)): (usize, (&Schedule, &usize))| {
            assert!(self.ready.contains(&(task, s)) || tiles(s) == 1, "{s} is not ready");
            (tiles(s).abs_diff(best) * 50 + 1000 + noise) as u64
        };
        Ok(chosen.iter().zip(&self.best).enumerate().map(time).collect())
    }
}

/// Runs the search; what it found, as text, and rows for the log.
fn found(tasks: &[Task], machine: &mut Machine, runs: usize) -> (Outcome, Vec<Row>, Vec<String>) {
    let context = Context { machine: "m".into(), target: "t".into(), threads: 1, model: String::new() };
    let (mut rows, mut warnings) = (Vec::new(), Vec::new());
    let outcome =
        search(tasks, machine, &mut Budget { runs, more: &mut |done| done < runs }, &mut |event| match event {
            Event::Measured { task, schedule, kernel, times } => {
                let record = Record::Kernel {
                    workload: tasks[task].workload.clone(),
                    schedule: schedule.to_string(),
                    kernel: kernel.into(),
                    node: String::new(),
                    plan: String::new(),
                    times_ns: times.into(),
                };
                rows.push(Row::new(&context, record));
            }
            Event::Refused { schedule, reason, .. } => warnings.push(format!("{schedule}: {reason}")),
            Event::Stale { schedule, .. } => warnings.push(format!("{schedule} is stale")),
        });
    (outcome.unwrap(), rows, warnings)
}

/// The tasks with what the rows say of them.
fn with_known(tasks: &[Task], rows: &[Row]) -> Vec<Task> {
    let mut tasks = tasks.to_vec();
    for row in rows {
        let Record::Kernel { workload, schedule, kernel, times_ns, .. } = &row.record else { unreachable!() };
        let task = tasks.iter_mut().find(|t| t.workload == *workload).unwrap();
        let known = task.known.entry(schedule.parse().unwrap()).or_default();
        known.kernel.clone_from(kernel);
        known.times.extend(times_ns);
    }
    tasks
}

#[test]
fn every_task_finds_its_best() {
    let tasks = [task("a", 12), task("b", 30), task("c", 1)];
    let mut machine = Machine::new(&[7, 23, 1]);
    let (outcome, rows, warnings) = found(&tasks, &mut machine, 2000);
    assert_eq!(outcome.best, [schedule(7), schedule(23), schedule(1)]);
    assert!(outcome.complete && outcome.runs < 2000 && warnings.is_empty());
    assert_eq!(outcome.tried[..2], [12, 30]);
    // Losers were freed: the default and the winner are left.
    assert!(machine.ready.iter().all(|&(task, s)| s == outcome.best[task] || s == schedule(1)));
    assert!(rows.len() >= 42);
}

#[test]
fn the_same_measurements_give_the_same_search() {
    let tasks = [task("a", 12), task("b", 30)];
    let all = |_| found(&tasks, &mut Machine::new(&[7, 23]), 500).1.into_iter().map(|r| r.record).collect::<Vec<_>>();
    assert_eq!(all(0), all(1));
}

#[test]
fn a_small_budget_tries_a_selection() {
    let mut tasks = [task("a", 200)];
    tasks[0].candidates = ranked("a", &tasks[0].candidates, &[]).0;
    let mut machine = Machine::new(&[100]);
    let (outcome, _, _) = found(&tasks, &mut machine, 90);
    assert!(outcome.runs <= 90 && outcome.tried[0] < 40);
    assert!(tiles(outcome.best[0]).abs_diff(100) < 40, "{}", outcome.best[0]);
}

#[test]
fn an_interrupted_search_goes_on_from_its_rows() {
    let tasks = [task("a", 12), task("b", 30)];
    let whole = found(&tasks, &mut Machine::new(&[7, 23]), 600).0;
    for cut in [0, 1, 9, 33, 50] {
        let (_, mut rows, _) = found(&tasks, &mut Machine::new(&[7, 23]), 600);
        rows.truncate(cut);
        let (outcome, more, warnings) = found(&with_known(&tasks, &rows), &mut Machine::new(&[7, 23]), 600);
        assert_eq!(outcome.best, whole.best);
        assert!(warnings.is_empty() && outcome.complete);
        rows.extend(more);
        let again = found(&with_known(&tasks, &rows), &mut Machine::new(&[7, 23]), 600).0;
        assert_eq!(again.best, whole.best);
        assert!(again.runs < whole.runs / 4, "{} of {} again", again.runs, whole.runs);
    }
}

#[test]
fn rows_of_other_machine_code_are_stale() {
    let tasks = [task("a", 6)];
    let rows = found(&tasks, &mut Machine::new(&[3]), 600).1;
    let mut changed = Machine { kernel: "other", ..Machine::new(&[5]) };
    let (outcome, _, warnings) = found(&with_known(&tasks, &rows), &mut changed, 600);
    assert_eq!((outcome.best[0], warnings.len()), (schedule(5), 6));
}

#[test]
fn refused_candidates_are_dropped() {
    let tasks = [task("a", 6)];
    let mut machine = Machine { refused: vec![schedule(4), schedule(5)], ..Machine::new(&[4]) };
    let (outcome, rows, warnings) = found(&tasks, &mut machine, 600);
    assert_eq!(outcome.best, [schedule(3)]);
    assert_eq!(warnings.len(), 2);
    assert!(
        rows.iter().all(|r| !matches!(&r.record, Record::Kernel { schedule: s, .. } if *s == schedule(4).to_string()))
    );
}

#[test]
fn the_nearest_workload_ranks_candidates() {
    let near = "conv u8[1,28,28,64] i8[64,3,3,64] stride=[1,1] | i32";
    let (far, other) = (near.replace("28", "7"), near.replace("u8", "u4"));
    let tasks = [task(near, 9), task(&far, 9), task(&other, 9)];
    let rows = found(&tasks, &mut Machine::new(&[8, 2, 5]), 900).1;
    let wanted = near.replace("28", "20");
    let (order, from) = ranked(&wanted, &tasks[0].candidates, &rows);
    assert_eq!((order[0], order[1], from.as_deref()), (schedule(1), schedule(8), Some(near)));
    assert_eq!(order.len(), 9);
    let (order, from) = ranked("pool u8[1] | u8", &tasks[0].candidates, &rows);
    assert_eq!((order[0], from), (schedule(1), None));
}

#[test]
fn any_beginning_of_the_order_is_fair() {
    for count in [1, 2, 3, 8, 9, 100] {
        let candidates: Vec<Schedule> = (1..=count).map(schedule).collect();
        let (order, _) = ranked("w", &candidates, &[]);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!((sorted, order[0]), (candidates, schedule(1)));
        if count == 100 {
            let tried: Vec<usize> = order[..20].iter().map(|&s| tiles(s)).collect();
            assert!((2..8).all(|near| tried.contains(&near)), "{tried:?}");
            assert!((0..4).all(|q| tried.iter().any(|t| (q * 25..=q * 25 + 25).contains(t))), "{tried:?}");
        }
    }
}
