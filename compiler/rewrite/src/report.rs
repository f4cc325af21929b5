//! What rewriting did, for people.

use std::collections::BTreeMap;
use std::fmt;

/// Why saturation of a region stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No rule finds anything new.
    Saturated,
    /// The limit on rounds was reached.
    Rounds(usize),
    /// The limit on terms was reached.
    Terms(usize),
    /// Any other reason egg gives.
    Other(String),
}

/// A value that is computed by another operator than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The ONNX node the value stems from.
    pub name: String,
    pub before: String,
    pub after: String,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionReport {
    /// The ONNX node of the region's first value.
    pub name: String,
    pub values: usize,
    pub terms: usize,
    pub classes: usize,
    pub rounds: usize,
    pub stop: Stop,
    /// New equalities found, by rule.
    pub applied: BTreeMap<String, usize>,
    /// Steps that extraction took.
    pub work: usize,
    /// Estimated cost of the region; see the cost model.
    pub cost_before: u64,
    pub cost_after: u64,
    pub changes: Vec<Change>,
    /// Why the region was left as it was, although something cheaper was found.
    pub kept: Option<String>,
}

/// What rewriting did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub regions: Vec<RegionReport>,
}

impl Report {
    /// New equalities found, by rule.
    pub fn applied(&self) -> BTreeMap<String, usize> {
        let mut sum = BTreeMap::new();
        for (rule, count) in self.regions.iter().flat_map(|r| &r.applied) {
            *sum.entry(rule.clone()).or_default() += count;
        }
        sum
    }

    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.regions.iter().flat_map(|r| &r.changes)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Saturated => f.write_str("saturated"),
            Stop::Rounds(limit) => write!(f, "stopped after {limit} rounds"),
            Stop::Terms(limit) => write!(f, "stopped at {limit} terms"),
            Stop::Other(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.name, self.before, self.after)
    }
}

/// Totals by rule, then every region in which something changed.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = |of: fn(&RegionReport) -> u64| self.regions.iter().map(of).sum::<u64>();
        let (before, after) = (cost(|r| r.cost_before), cost(|r| r.cost_after));
        writeln!(f, "{} regions, estimated cost {before} -> {after}", self.regions.len())?;
        for (rule, count) in self.applied() {
            writeln!(f, "  {rule}: {count}")?;
        }
        for region in &self.regions {
            let notable = !region.changes.is_empty() || region.kept.is_some() || region.stop != Stop::Saturated;
            if notable {
                write!(f, "{region}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for RegionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RegionReport { name, values, terms, classes, rounds, stop, .. } = self;
        writeln!(f, "region {name}: {values} values, {terms} terms in {classes} classes, {rounds} rounds, {stop}")?;
        for change in &self.changes {
            writeln!(f, "  {change}")?;
        }
        if let Some(reason) = &self.kept {
            writeln!(f, "  left as it was: {reason}")?;
        }
        Ok(())
    }
}
