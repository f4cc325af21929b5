//! One error type over the parts of this crate, and the class a program's exit code follows from.

use crate::model::LoadError;
use crate::npy::NpyError;
use crate::pool::ThreadsError;
use crate::session::RunError;
use crate::tensor::TensorError;

/// What kind of failure an error is; decides exit codes and the C interface's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The caller asked for something that makes no sense: command-line exit code 2.
    Usage,
    /// A file, tensor or size is invalid or over a limit: exit code 3.
    InvalidInput,
    /// The model needs a CPU this machine is not: exit code 6.
    WrongCpu,
    /// Anything else: exit code 1.
    Internal,
}

impl ErrorClass {
    /// The command line's exit code for this class, which is also the C interface's status.
    pub const fn code(self) -> i32 {
        match self {
            ErrorClass::Internal => 1,
            ErrorClass::Usage => 2,
            ErrorClass::InvalidInput => 3,
            ErrorClass::WrongCpu => 6,
        }
    }
}

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Npy(#[from] NpyError),
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

impl Error {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Load(error) => error.class(),
            Error::Run(_) | Error::Tensor(_) | Error::Npy(_) => ErrorClass::InvalidInput,
            Error::Threads(error) => error.class(),
        }
    }
}
