//! What can be wrong with a model.

use std::fmt;

/// One thing in a model that cannot be compiled. [`fmt::Display`] gives it on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The ONNX node's name, or that of its first output, or of the tensor concerned.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The attribute, input or other property concerned.
    pub attribute: String,
    /// What the model has.
    pub found: String,
    /// What would be accepted.
    pub supported: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unsupported { node, op, attribute, found, supported, hint } = self;
        write!(f, "node `{node}` ({op}): {attribute} is {found}; supported: {supported}")?;
        if hint.is_empty() { Ok(()) } else { write!(f, "; {hint}") }
    }
}

/// Why a model was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file breaks the rules of ONNX, is damaged, or exceeds a limit. Exit code 3.
    #[error("{place}: {message}")]
    Invalid {
        /// The node, tensor or part of the model.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// The model is well formed but cannot be compiled; every offending node that could be reached is listed. Exit code 4.
    #[error("the model cannot be compiled:{}", .0.iter().map(|u| format!("\n  {u}")).collect::<String>())]
    Unsupported(Vec<Unsupported>),
}

impl ImportError {
    pub(crate) fn invalid(place: impl Into<String>, message: impl Into<String>) -> ImportError {
        ImportError::Invalid { place: place.into(), message: message.into() }
    }

    /// The exit code of the command line for this error.
    pub fn exit_code(&self) -> i32 {
        match self {
            ImportError::Invalid { .. } => 3,
            ImportError::Unsupported(_) => 4,
        }
    }
}
