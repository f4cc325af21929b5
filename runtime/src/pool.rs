//! A fork-join thread pool for short parallel loops.
//!
//! # Protocol
//!
//! A loop of `n` tasks is described by a `Job` on the caller's stack. Its tasks are dealt out as lanes, of which there are at
//! most 64: lane `l` is the tasks `l`, `l + 64` and so on. Three atomics carry the loop:
//! `job` points to it, `unclaimed` has a bit for every lane nobody has taken, `unfinished` counts lanes not yet
//! done. The caller writes `job` and `unfinished`, then stores all bits to `unclaimed`. Caller and
//! workers alike claim a lane by clearing its bit, read `job` only
//! after a successful claim, run the lane's tasks and decrement `unfinished`. The caller returns when
//! `unfinished` is zero: it joins on tasks done, never on workers having arrived, so a worker that
//! sleeps through the whole loop delays nobody.
//!
//! A thread claims the lane of its own number if it can, and any other only then, a thread without a lane some turns later: what
//! task `t` of one loop leaves in a core's cache is what task `t` of the next one wants there.
//!
//! # Why it is correct
//!
//! - *A claim sees its own job.* The claim is an acquire compare-and-swap on `unclaimed` whose old value
//!   comes from the caller's release store, directly or through other claims (read-modify-writes
//!   continue a release sequence). So the claimer sees the `job` and `unfinished` written before
//!   that store. It cannot see later ones: the caller writes those only after `unfinished` reached
//!   zero, which needs the claimer's own decrement.
//! - *The value of `unclaimed` carries no identity, and needs none.* A worker may load it during one
//!   loop and swap it during the next; the swap then claims a lane of the next loop, and the job is
//!   read after it.
//! - *The job outlives its use.* Its last use by a claimer precedes that claimer's decrement of
//!   `unfinished` (release), which the caller's acquire load of zero observes before returning. The
//!   same edge makes the tasks' writes visible to the caller.
//! - *No wake-up of a worker is lost.* A worker going to sleep adds itself to `sleepers` and then
//!   loads `unclaimed`; the caller stores `unclaimed` and then loads `sleepers`; all four are
//!   sequentially consistent, so at least one of the two sees the other. If the caller sees the
//!   sleeper it notifies under the mutex that the worker holds from before its load until it waits.
//!   A lost wake-up would cost speed only: the caller runs every lane nobody claims.
//! - *No wake-up of the caller is lost.* The caller sets `CALLER_WAITS` in `unfinished` itself, so
//!   the decrement that leaves only that bit knows it must notify, and does so under the mutex
//!   under which the caller tests the count.
//!
//! Only one loop runs on the workers at a time; a second caller, or a task that starts a loop of its
//! own, finds `busy` set and runs its tasks itself.

use std::any::Any;
use std::ffi::c_void;
use std::hint;
use std::mem;
use std::num::NonZeroUsize;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::abi::{Call, TaskFn};
use crate::error::ErrorClass;

/// Largest number of threads of a pool, of which 64 take part in a loop.
pub const MAX_THREADS: usize = 1024;
/// Environment variable that sets the default number of threads.
pub const THREADS_VARIABLE: &str = "HAWQC_THREADS";

/// Turns of the waiting loop before a thread goes to sleep: about 0.1 ms, depending on how long the
/// CPU's pause takes. Waking a sleeping thread costs its waker some 15 us and the thread as much again,
/// so workers stay awake through the single-threaded steps between two loops of one run.
const SPIN_TURNS: u32 = 10_000;
/// Every this many turns the waiting thread offers its CPU to others, which may be what it waits for.
const TURNS_PER_YIELD: u32 = 256;
/// Loops and time that [`Pool::meeting_time`] takes at most, and turns that a task waits.
const MEETINGS: usize = 1001;
const MEETINGS_TIME: Duration = Duration::from_millis(100);
const MEETING_TURNS: u32 = 10_000;
/// Lanes of a loop at most: bits of `unclaimed`.
const MAX_LANES: usize = 64;
/// Turns that a thread without a lane leaves to the threads of unclaimed ones: some microseconds.
const PATIENCE: u32 = 100;
/// Bit of `unfinished` that says the caller sleeps.
const CALLER_WAITS: usize = 1 << (usize::BITS - 1);

/// Why a pool cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    #[error("{source_name}: \"{found}\" is not a number of threads from 1 to {MAX_THREADS}")]
    Count {
        /// Where the number came from, e.g. `HAWQC_THREADS`.
        source_name: &'static str,
        found: String,
    },
    #[error("cannot start a thread: {0}")]
    Spawn(#[from] std::io::Error),
}

impl ThreadsError {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            ThreadsError::Count { .. } => ErrorClass::Usage,
            ThreadsError::Spawn(_) => ErrorClass::Internal,
        }
    }
}

/// Number of threads to use when the caller does not say: [`THREADS_VARIABLE`] if set, otherwise
/// the CPUs this process may use (affinity and cgroup quota considered).
pub fn default_threads() -> Result<usize, ThreadsError> {
    match std::env::var_os(THREADS_VARIABLE) {
        None => Ok(available_threads()),
        Some(text) => {
            let text = text.to_string_lossy().into_owned();
            parse_threads(&text).ok_or(ThreadsError::Count { source_name: THREADS_VARIABLE, found: text })
        }
    }
}

fn parse_threads(text: &str) -> Option<usize> {
    let count = text.trim().parse().ok()?;
    (1..=MAX_THREADS).contains(&count).then_some(count)
}

fn available_threads() -> usize {
    let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    count.min(MAX_THREADS)
}

/// One parallel loop. Lives on the caller's stack while `unfinished` is not zero.
struct Job {
    run: unsafe fn(context: *const (), task: usize, tasks: usize),
    context: *const (),
    tasks: usize,
}

struct Shared {
    job: AtomicPtr<Job>,
    unclaimed: AtomicU64,
    unfinished: AtomicUsize,
    busy: AtomicBool,
    shutdown: AtomicBool,
    sleepers: AtomicUsize,
    work_lock: Mutex<()>,
    work_arrived: Condvar,
    done_lock: Mutex<()>,
    all_done: Condvar,
    spin_turns: u32,
}

/// One turn of a waiting loop.
fn pause(turn: u32) {
    if turn % TURNS_PER_YIELD == TURNS_PER_YIELD - 1 {
        thread::yield_now();
    } else {
        hint::spin_loop();
    }
}

fn has_lane(unclaimed: u64, thread: usize) -> bool {
    thread < MAX_LANES && unclaimed >> thread & 1 == 1
}

/// The mutexes guard no data, so a poisoned one is as good as new.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a>(condition: &Condvar, guard: MutexGuard<'a, ()>) -> MutexGuard<'a, ()> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes a lane of the current loop, that of `thread` if it is there; `None` when all are taken.
    fn claim(&self, thread: usize) -> Option<usize> {
        let mut unclaimed = self.unclaimed.load(Ordering::Relaxed);
        while unclaimed > 0 {
            let lane = if has_lane(unclaimed, thread) { thread } else { unclaimed.ilog2() as usize };
            let rest = unclaimed & !(1 << lane);
            match self.unclaimed.compare_exchange_weak(unclaimed, rest, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(lane),
                Err(found) => unclaimed = found,
            }
        }
        None
    }

    /// Runs lanes of the current loop until all are claimed.
    fn work(&self, thread: usize) {
        while let Some(lane) = self.claim(thread) {
            // SAFETY: after a claim `job` is the claimed lane's job and lives until the decrement
            // of `unfinished` below (module head). A task runs exactly once, because it is in one lane and each lane's bit
            // is cleared once.
            unsafe {
                let job = &*self.job.load(Ordering::Relaxed);
                for task in (lane..job.tasks).step_by(MAX_LANES) {
                    (job.run)(job.context, task, job.tasks);
                }
            }
            let before = self.unfinished.fetch_sub(1, Ordering::AcqRel);
            if before == (1 | CALLER_WAITS) {
                let _guard = lock(&self.done_lock);
                self.all_done.notify_all();
            }
        }
    }

    /// Returns when every task of the current loop is done.
    fn join(&self) {
        for turn in 0..self.spin_turns {
            if self.unfinished.load(Ordering::Acquire) == 0 {
                return;
            }
            pause(turn);
        }
        if self.unfinished.fetch_or(CALLER_WAITS, Ordering::AcqRel) != 0 {
            let mut guard = lock(&self.done_lock);
            while self.unfinished.load(Ordering::Acquire) != CALLER_WAITS {
                guard = wait(&self.all_done, guard);
            }
        }
        self.unfinished.store(0, Ordering::Relaxed);
    }

    /// Runs `job` on this thread and every worker that comes in time.
    fn run(&self, job: &Job) {
        self.job.store(ptr::from_ref(job).cast_mut(), Ordering::Relaxed);
        let lanes = job.tasks.min(MAX_LANES);
        self.unfinished.store(lanes, Ordering::Relaxed);
        self.unclaimed.store(u64::MAX >> (MAX_LANES - lanes), Ordering::SeqCst);
        let sleepers = self.sleepers.load(Ordering::SeqCst);
        if sleepers > 0 {
            let _guard = lock(&self.work_lock);
            for _ in 0..sleepers.min(lanes - 1) {
                self.work_arrived.notify_one();
            }
        }
        self.work(0);
        self.join();
    }

    /// Waits, first awake and then asleep, until there is work or the pool ends; false at the end.
    fn wait_for_work(&self, thread: usize) -> bool {
        let mut patience = PATIENCE;
        for turn in 0..self.spin_turns {
            if self.shutdown.load(Ordering::Relaxed) {
                return false;
            }
            match self.unclaimed.load(Ordering::Relaxed) {
                0 => patience = PATIENCE,
                unclaimed if has_lane(unclaimed, thread) || patience == 0 => return true,
                _ => patience -= 1,
            }
            pause(turn);
        }
        let mut guard = lock(&self.work_lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let work = loop {
            if self.shutdown.load(Ordering::SeqCst) {
                break false;
            }
            if self.unclaimed.load(Ordering::SeqCst) > 0 {
                break true;
            }
            guard = wait(&self.work_arrived, guard);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        work
    }
}

/// A pool of threads that share the tasks of one loop at a time with the thread that started it.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, counting the caller of each loop: `threads - 1` are started.
    /// With more threads than CPUs, waiting threads sleep at once instead of spinning.
    pub fn new(threads: usize) -> Result<Pool, ThreadsError> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(ThreadsError::Count { source_name: "threads", found: threads.to_string() });
        }
        let crowded = threads > available_threads();
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(ptr::null_mut()),
            unclaimed: AtomicU64::new(0),
            unfinished: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            work_lock: Mutex::new(()),
            work_arrived: Condvar::new(),
            done_lock: Mutex::new(()),
            all_done: Condvar::new(),
            spin_turns: if crowded { 0 } else { SPIN_TURNS },
        });
        // Built first, so that a failure to start a thread ends those already started.
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("hawqc-{index}")).spawn(move || {
                while shared.wait_for_work(index) {
                    shared.work(index);
                }
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that take part in a loop, counting its caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(task)` once for every `task` in `0..tasks`, in any order and on any of the
    /// pool's threads, and returns when all are done. If a task panics the others still run, and
    /// the first panic continues in the caller.
    pub fn for_each<F: Fn(usize) + Sync>(&self, tasks: usize, body: F) {
        struct Context<F> {
            body: F,
            panic: Mutex<Option<Box<dyn Any + Send>>>,
        }
        /// # Safety
        /// `context` points to a live `Context<F>`.
        unsafe fn run<F: Fn(usize) + Sync>(context: *const (), task: usize, _tasks: usize) {
            // SAFETY: by this function's contract; shared access suffices as F is Sync.
            let context = unsafe { &*context.cast::<Context<F>>() };
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| (context.body)(task))) {
                let mut first = context.panic.lock().unwrap_or_else(PoisonError::into_inner);
                match *first {
                    None => *first = Some(payload),
                    // Dropping a payload may panic, and a task must not unwind.
                    Some(_) => mem::forget(payload),
                }
            }
        }
        let context = Context { body, panic: Mutex::new(None) };
        self.run(&Job { run: run::<F>, context: ptr::from_ref(&context).cast(), tasks });
        let first = context.panic.into_inner();
        if let Some(payload) = first.unwrap_or_else(PoisonError::into_inner) {
            panic::resume_unwind(payload);
        }
    }

    /// What it takes all threads to begin a loop together and to end it: the median of loops whose every task waits for all
    /// others. Cores that share a cache take a fraction of what others do. `None` of one thread, and of more than there are CPUs.
    pub fn meeting_time(&self) -> Option<Duration> {
        let threads = self.threads().min(MAX_LANES);
        if threads == 1 || self.shared.spin_turns == 0 {
            return None;
        }
        let meet = |_| {
            let arrived = AtomicUsize::new(0);
            let start = Instant::now();
            self.for_each(threads, |_| {
                arrived.fetch_add(1, Ordering::AcqRel);
                // A loop that finds the pool busy runs its tasks one after the other.
                for turn in 0..MEETING_TURNS {
                    if arrived.load(Ordering::Acquire) == threads {
                        break;
                    }
                    pause(turn);
                }
            });
            start.elapsed()
        };
        let begin = Instant::now();
        let mut times: Vec<Duration> =
            (0..MEETINGS).take_while(|_| begin.elapsed() < MEETINGS_TIME).map(meet).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// Runs `job` to its end; `job.run` must not unwind.
    fn run(&self, job: &Job) {
        let alone = job.tasks <= 1 || self.workers.is_empty();
        if alone || self.shared.busy.swap(true, Ordering::Acquire) {
            for task in 0..job.tasks {
                // SAFETY: the context is live while the job is, and each task runs once.
                unsafe { (job.run)(job.context, task, job.tasks) };
            }
            return;
        }
        self.shared.run(job);
        self.shared.busy.store(false, Ordering::Release);
    }

    /// [`crate::abi::ParallelForFn`] for a pool of this type.
    ///
    /// # Safety
    /// `pool` points to a live [`Pool`]; `task_fn(call, t, tasks)` may be called once for every `t`
    /// in `0..tasks` from any thread, and does not unwind.
    pub unsafe extern "C" fn parallel_for(pool: *mut c_void, task_fn: TaskFn, call: *const Call, tasks: i64) {
        struct Context {
            task_fn: TaskFn,
            call: *const Call,
        }
        /// # Safety
        /// `context` points to a live `Context` whose function may be called with this task.
        unsafe fn run(context: *const (), task: usize, tasks: usize) {
            // SAFETY: by this function's contract. Both numbers came from an i64.
            unsafe {
                let context = &*context.cast::<Context>();
                (context.task_fn)(context.call, task as i64, tasks as i64);
            }
        }
        let context = Context { task_fn, call };
        // SAFETY: by this function's contract.
        let pool = unsafe { &*pool.cast::<Pool>() };
        pool.run(&Job { run, context: ptr::from_ref(&context).cast(), tasks: usize::try_from(tasks).unwrap_or(0) });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.work_lock);
            self.shared.work_arrived.notify_all();
        }
        for worker in self.workers.drain(..) {
            // Workers catch every panic of a task, so there is no failure to report.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop body whose cost differs widely between tasks.
    fn uneven(task: usize, round: usize) -> u64 {
        let turns = if (task + round).is_multiple_of(7) { 300 } else { task % 3 };
        (0..turns as u64).fold(task as u64, |sum, turn| hint::black_box(sum ^ turn))
    }

    #[test]
    fn every_task_runs_once_and_is_seen() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            let mut plain = vec![0u32; 64];
            for round in 0..100_000 {
                let tasks = round % 9;
                let start = plain.as_mut_ptr().addr();
                // Plain, non-atomic writes: a missing happens-before edge shows as a stale value.
                let cells: Vec<AtomicPtr<u32>> = plain[..tasks].iter_mut().map(|cell| AtomicPtr::new(cell)).collect();
                pool.for_each(tasks, |task| {
                    hint::black_box(uneven(task, round));
                    // SAFETY: each task has its own cell and runs once.
                    unsafe { *cells[task].load(Ordering::Relaxed) += 1 };
                });
                assert_eq!(start, plain.as_ptr().addr());
                for (task, count) in plain.iter_mut().enumerate() {
                    let expected = u32::from(task < tasks);
                    assert_eq!(*count, expected, "threads {threads} round {round} task {task}");
                    *count = 0;
                }
            }
        }
    }

    #[test]
    fn tasks_beyond_the_lanes_run_once() {
        let pool = Pool::new(3).unwrap();
        for tasks in [MAX_LANES - 1, MAX_LANES, MAX_LANES + 1, 5 * MAX_LANES + 7] {
            let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(tasks, |task| {
                runs[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(runs.into_iter().all(|count| count.into_inner() == 1), "{tasks} tasks");
        }
    }

    #[test]
    fn threads_meet() {
        assert_eq!(Pool::new(1).unwrap().meeting_time(), None);
        assert_eq!(Pool::new(available_threads() + 1).unwrap().meeting_time(), None);
        assert!(available_threads() == 1 || Pool::new(2).unwrap().meeting_time().is_some());
    }

    /// Claims alone, without threads: the own lane first, then the others.
    #[test]
    fn a_thread_claims_its_own_lane_first() {
        let pool = Pool::new(1).unwrap();
        let claims = |thread: usize, lanes: u64| {
            pool.shared.unclaimed.store(lanes, Ordering::Relaxed);
            std::iter::from_fn(|| pool.shared.claim(thread)).collect::<Vec<usize>>()
        };
        assert_eq!(claims(0, 0b1111), [0, 3, 2, 1]);
        assert_eq!(claims(2, 0b1111), [2, 3, 1, 0]);
        assert_eq!(claims(5, 0b0011), [1, 0]);
        assert_eq!(claims(2 + MAX_LANES, 0b1111), [3, 2, 1, 0]);
        assert_eq!(claims(1, 0), Vec::<usize>::new());
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicU64::new(0);
        for _ in 0..50 {
            thread::sleep(std::time::Duration::from_millis(2));
            pool.for_each(8, |task| {
                total.fetch_add(task as u64, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 50 * 28);
    }

    #[test]
    fn all_threads_take_part() {
        let pool = Pool::new(3).unwrap();
        let arrived = AtomicUsize::new(0);
        // Ends only when three threads are inside at once.
        pool.for_each(3, |_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
        });
        assert_eq!(arrived.into_inner(), 3);
    }

    #[test]
    fn callers_at_once_and_nested_loops() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        pool.for_each(4, |_| {
                            pool.for_each(2, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 2000 * 8);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2).unwrap();
        let done = AtomicUsize::new(0);
        let caught = panic::catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(10, |task| {
                if task == 3 {
                    panic::resume_unwind(Box::new("task three"));
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "task three");
        assert_eq!(done.load(Ordering::Relaxed), 9);
        pool.for_each(5, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 14);
    }

    #[test]
    fn thread_counts_are_checked() {
        assert!(Pool::new(0).is_err());
        assert!(Pool::new(MAX_THREADS + 1).is_err());
        assert_eq!(parse_threads(" 3 "), Some(3));
        for text in ["", "0", "-1", "many", "1025", "1.5"] {
            assert_eq!(parse_threads(text), None, "{text}");
        }
    }

    #[test]
    fn many_pools_come_and_go() {
        for round in 0..300 {
            let pool = Pool::new(1 + round % 4).unwrap();
            if round % 3 > 0 {
                pool.for_each(round % 5, |_| {});
            }
        }
    }
}
