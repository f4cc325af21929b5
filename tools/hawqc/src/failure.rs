//! How the tool fails: a message, what to do about it, and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, as documented in `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal = 1,
    Usage = 2,
    /// Invalid input, or over a limit.
    Invalid = 3,
    /// Something in the network is not supported.
    Unsupported = 4,
    /// Results differ.
    Mismatch = 5,
    /// This CPU lacks a feature.
    Cpu = 6,
    /// Stopped by the user; what was done so far is kept.
    Interrupted = 130,
    /// Limits that cannot be met.
    Infeasible = 7,
}

/// An error on its way to the user.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), hint: None }
    }

    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Invalid, message)
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An I/O error with the file it concerns.
pub fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |e| Failure::invalid(format!("{}: {e}", path.display()))
}
