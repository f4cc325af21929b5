//! Why emulation stopped.

use thiserror::Error;

/// A fault of one instruction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at {address:#x}: `{instruction}`: {kind}")]
pub struct Fault {
    pub address: u64,
    /// Its text; for faults of the call as a whole, what stands at `address`.
    pub instruction: String,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FaultKind {
    #[error("the emulator does not know this instruction")]
    Unsupported,
    #[error("these bytes are not an instruction")]
    Undecodable,
    #[error("it needs {0}, which is not among the machine's features")]
    Feature(&'static str),
    #[error("{bytes} bytes at {address:#x} must be aligned to {bytes}")]
    Misaligned { address: u64, bytes: usize },
    #[error("{bytes} bytes at {address:#x} may not be read")]
    Read { address: u64, bytes: usize },
    #[error("{bytes} bytes at {address:#x} may not be written")]
    Write { address: u64, bytes: usize },
    #[error("it continues at {0:#x}, which is neither code nor a callback")]
    OutsideCode(u64),
    #[error("division is not allowed")]
    Division,
    #[error("the quotient does not exist or does not fit")]
    DivideError,
    #[error("the callee-saved register {register} is {found:#x} on return, was {expected:#x}")]
    CalleeSaved { register: &'static str, expected: u64, found: u64 },
    #[error("the stack pointer {0:#x} at a call is not 8 more than a multiple of 16")]
    StackAlignment(u64),
    #[error("more than {0} instructions")]
    Limit(u64),
}

/// What executing an instruction gives.
pub(crate) type Done<T = ()> = Result<T, FaultKind>;
