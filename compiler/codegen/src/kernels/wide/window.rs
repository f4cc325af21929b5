//! How long sums of byte products stay within 16 bits.
//!
//! In: the weights of every sum, in the order in which a kernel multiplies them, and the largest input. Out: after how
//! many steps the 16-bit sums must be added to 32-bit ones. Inputs are not negative; a step is four consecutive
//! products, of which a lane sums the first two and another lane the last two.

use std::fmt;

/// When 16-bit sums are widened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// Once, at the end.
    All,
    /// After every run.
    Run,
    /// After so many steps of a run.
    Steps(usize),
}

/// `16-bit sums of 8 products`.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Window::All => f.write_str("16-bit sums of all products"),
            Window::Run => f.write_str("16-bit sums of a row of taps"),
            Window::Steps(steps) => write!(f, "16-bit sums of {} products", 2 * steps),
        }
    }
}

/// Products of a step.
const STEP: usize = 4;

impl Window {
    /// The longest window after which no sum can have left 16 bits, whatever the inputs; `None` if not even one step
    /// is safe. Each of `sums` has its weights `[run][value]`, all of one length, and the largest of its inputs.
    pub fn longest<'a>(sums: impl Iterator<Item = (&'a [i64], i64)> + Clone, runs: usize) -> Option<Window> {
        let steps = sums.clone().next().map_or(1, |(weights, _)| (weights.len() / runs).div_ceil(STEP)).max(1);
        let parts = (2..=steps).map(|parts| Window::Steps(steps.div_ceil(parts)));
        let mut windows = [Window::All, Window::Run].into_iter().chain(parts).chain([Window::Steps(1)]);
        windows.find(|window| sums.clone().all(|(weights, most)| window.fits(weights, most, runs)))
    }

    fn fits(self, weights: &[i64], most: i64, runs: usize) -> bool {
        let run_values = (weights.len() / runs).max(1);
        let window = match self {
            Window::Steps(steps) => steps * STEP,
            _ => run_values,
        };
        let mut lanes = [(0, 0); 2];
        weights.chunks(run_values).flat_map(|run| run.chunks(window)).all(|part| {
            if self != Window::All {
                lanes = [(0, 0); 2];
            }
            for step in part.chunks(STEP) {
                for (pair, (low, high)) in step.chunks(STEP / 2).zip(&mut lanes) {
                    *low += pair.iter().map(|w| w.min(&0) * most).sum::<i64>();
                    *high += pair.iter().map(|w| w.max(&0) * most).sum::<i64>();
                }
            }
            lanes.iter().all(|&(low, high)| low >= i16::MIN.into() && high <= i16::MAX.into())
        })
    }
}
