//! Errors of rewriting and fusion.

use hawqc_ir::{Graph, IrError, ValueId};
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Error)]
pub enum RewriteError {
    #[error(transparent)]
    Ir(#[from] IrError),
    /// An operator that an integer graph may not contain at this stage.
    #[error("node `{node}` ({op}): {found}; {help}")]
    Unsupported { node: String, op: String, found: String, help: String },
    /// A row of the rule tables that cannot be read.
    #[error("rule `{rule}`: {message}")]
    Rule { rule: String, message: String },
}

impl RewriteError {
    pub(crate) fn unsupported(
        graph: &Graph,
        id: ValueId,
        found: impl Into<String>,
        help: impl Into<String>,
    ) -> RewriteError {
        let (node, op) = (graph.name(id).to_string(), graph.op(id).name().to_string());
        RewriteError::Unsupported { node, op, found: found.into(), help: help.into() }
    }
}
