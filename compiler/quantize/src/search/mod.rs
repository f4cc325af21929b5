//! Which width each layer gets: the least sum of costs under limits.
mod branch;
mod instance;
mod problem;
mod relax;
mod solve;

pub use problem::{Choice, Infeasible, Layer, Limit, Problem, SeamCost, SearchError, Solution};
pub use solve::{Report, SearchOptions, lagrangian_bound, solve};

#[cfg(test)]
mod tests;
