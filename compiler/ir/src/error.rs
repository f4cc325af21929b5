//! Errors of the IR.

use thiserror::Error;

/// An operator applied to operands it does not accept. The graph adds the node's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct TypeError(String);

impl TypeError {
    pub fn new(message: impl Into<String>) -> TypeError {
        TypeError(message.into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IrError {
    #[error("node `{node}` ({op}): {source}")]
    Type { node: String, op: String, source: TypeError },
    #[error("invariant broken at `{node}`: {message}")]
    Invariant { node: String, message: String },
    #[error("line {line}: {message}")]
    Parse { line: usize, message: String },
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input { name: String, expected: String, found: String },
    #[error("expected {expected} inputs, found {found}")]
    InputCount { expected: usize, found: usize },
}
