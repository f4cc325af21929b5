//! Which widths each layer gets: the least sum of costs under limits on latency, size and bit operations.
//!
//! In: a network, what each choice of widths costs each layer ([`Costs`]), and how long it takes
//! ([`LatencyTable`](hawqc_schedules::latency::LatencyTable)); [`Network`] makes a [`Problem`] of them, which is
//! plain numbers. Out: the best plans with a proof ([`solve`]), or the limit that cannot be met and the least that
//! can be reached ([`Infeasible`]); the front of best plans over one limit ([`front`]).
//!
//! The problem is an integer linear program: one of several choices per layer, any number of limits on sums, layers
//! tied to each other, and sums that pairs of choices add to. [`solve`] is exact and works in whole numbers: it
//! depends on no tolerance of a solver, finds the second best as it finds the best, and takes pairs as they are
//! instead of a variable for each. Modules, in order: `problem` (plain numbers), `instance` (whole numbers, tied
//! layers merged), `relax` (prices for limits: a lower bound), `branch` (search below a ceiling), `solve` (ever
//! wider searches; infeasibility).

mod branch;
pub mod hawq_tables;
mod instance;
mod network;
mod pareto;
mod problem;
mod relax;
mod solve;
mod tables;
#[cfg(test)]
mod tests;

pub use network::{Freedom, Network, Resource, Totals};
pub use pareto::{FrontError, FrontPoint, front};
pub use problem::{Choice, Infeasible, Layer, Limit, Problem, SeamCost, SearchError, Solution};
pub use solve::{Report, SearchOptions, lagrangian_bound, solve};
pub use tables::Costs;
