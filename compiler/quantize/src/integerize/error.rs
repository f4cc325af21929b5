//! Why a graph cannot be computed in integers.

use std::fmt;

use hawqc_ir::{IrError, TypeError};
use thiserror::Error;

/// Every node that stands in the way, or a broken graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IntegerizeError {
    /// In graph order; nodes that merely depend on an offending one are not listed again.
    #[error("the network cannot be computed in integers:{}", list(.0))]
    Nodes(Vec<Problem>),
    #[error(transparent)]
    Graph(#[from] IrError),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("\n  {p}")).collect()
}

/// One offending node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub node: String,
    pub op: String,
    pub found: String,
    pub needed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { node, op, found, needed } = self;
        write!(f, "node `{node}` ({op}): found {found}; needed: {needed}")
    }
}

/// What a rule ran into; the walk adds the node.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub found: String,
    pub needed: String,
}

impl Obstacle {
    pub fn new(found: impl Into<String>, needed: impl Into<String>) -> Obstacle {
        Obstacle { found: found.into(), needed: needed.into() }
    }
}

impl From<TypeError> for Obstacle {
    fn from(error: TypeError) -> Obstacle {
        Obstacle::new(format!("\"{error}\""), "operands that the integer operator accepts; quantize them before")
    }
}

impl From<IrError> for Obstacle {
    fn from(error: IrError) -> Obstacle {
        match error {
            IrError::Type { source, .. } => source.into(),
            other => Obstacle::new(other.to_string(), "a well-formed graph"),
        }
    }
}
