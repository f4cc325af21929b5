//! Tuning a network on this machine, and what follows from it.
//!
//! In: a network, the widths of interest, a target this machine runs. Out: lines for the tuning log. Every
//! candidate is timed inside the network ([`InContext`]), winners are compared with the defaults in the
//! whole network ([`Whole`]), and the network as it ships is measured at every width and in a few random
//! mixtures, from which [`hawqc_schedules::tuning::table`] makes the latency table. [`Choices`] is the way
//! back from a log to schedules. [`job`] is the order of it all.

pub mod choices;
pub mod context;
pub mod job;
pub mod structure;
pub mod whole;

use std::fs;

use hawqc_runtime::cpu;

pub use choices::Choices;
pub use context::InContext;
pub use job::{Job, Limit, Progress};
pub use structure::Structure;
pub use whole::Whole;

/// What this machine is, as far as it bears on speed: the CPU's model as it names itself, its features, its cores.
pub fn fingerprint() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let named = ["vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part"];
    let named: Vec<&str> = named.iter().filter_map(|name| field(name)).collect();
    let named = if named.is_empty() { cpu::ARCH.to_owned() } else { named.join(" ") };
    format!("{named}; {}; {cores} cores", cpu::detected().join(" "))
}
