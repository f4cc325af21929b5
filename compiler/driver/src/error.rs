//! Any error of the compiler, and the class an exit code follows from.

use std::path::PathBuf;

use thiserror::Error;

/// What kind of failure an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A mistake of ours.
    Internal,
    /// The request makes no sense.
    Usage,
    /// A file is invalid, or something exceeds a limit.
    Invalid,
    /// Well-formed, but this compiler cannot compile it.
    Unsupported,
    /// This machine's CPU lacks a feature.
    Cpu,
    /// A limit that was asked for cannot be met.
    Infeasible,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {bytes} bytes exceed the limit of {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error(transparent)]
    Import(#[from] hawqc_onnx::ImportError),
    #[error(transparent)]
    Export(#[from] hawqc_onnx::ExportError),
    #[error(transparent)]
    Quantize(#[from] hawqc_quantize::QuantizeError),
    #[error(transparent)]
    Integerize(#[from] hawqc_quantize::IntegerizeError),
    #[error(transparent)]
    Rewrite(#[from] hawqc_rewrite::RewriteError),
    #[error(transparent)]
    Codegen(#[from] hawqc_codegen::CodegenError),
    #[error(transparent)]
    Link(#[from] hawqc_codegen::link::LinkError),
    #[error(transparent)]
    Audit(#[from] hawqc_codegen::disasm::DisasmError),
    #[error(transparent)]
    Target(#[from] hawqc_codegen::target::TargetError),
    #[error(transparent)]
    Runtime(Box<hawqc_runtime::Error>),
    /// An invariant of the graph broke after a pass.
    #[error("after {pass}: {source}")]
    Pass { pass: &'static str, source: hawqc_ir::IrError },
    #[error(transparent)]
    Ir(#[from] hawqc_ir::IrError),
    #[error("the network is in floats: calibrate it first, then give the calibration")]
    NotCalibrated,
    #[error("pass `{pass}` needs the {needs} form and is given the {found} form")]
    Order { pass: &'static str, needs: crate::form::Form, found: crate::form::Form },
    #[error(transparent)]
    Type(#[from] hawqc_ir::TypeError),
    #[error("the model keeps {found} of {expected} values; compile it with every value kept")]
    KeptValues { expected: usize, found: usize },
    #[error("tuning log: {0}")]
    TuningLog(#[from] hawqc_schedules::tuning::log::LogError),
    #[error("`{found}` is not a stage; stages are: {known}")]
    UnknownStage { found: String, known: String },
}

impl From<hawqc_runtime::Error> for Error {
    fn from(error: hawqc_runtime::Error) -> Error {
        Error::Runtime(Box::new(error))
    }
}

impl Error {
    pub fn class(&self) -> Class {
        use hawqc_runtime::error::ErrorClass;
        match self {
            Error::Codegen(hawqc_codegen::CodegenError::Resident { .. }) => Class::Infeasible,
            Error::Import(hawqc_onnx::ImportError::Unsupported(_)) | Error::Integerize(_) | Error::Codegen(_) => {
                Class::Unsupported
            }
            Error::Quantize(hawqc_quantize::QuantizeError::Unsupported { .. }) | Error::Export(_) => Class::Unsupported,
            Error::Target(_) | Error::UnknownStage { .. } => Class::Usage,
            Error::Pass { .. } | Error::Order { .. } | Error::Rewrite(_) | Error::Link(_) => Class::Internal,
            Error::Runtime(e) => match e.class() {
                ErrorClass::Internal => Class::Internal,
                ErrorClass::Usage => Class::Usage,
                ErrorClass::InvalidInput => Class::Invalid,
                ErrorClass::WrongCpu => Class::Cpu,
            },
            Error::Io { .. }
            | Error::TooLarge { .. }
            | Error::Import(_)
            | Error::Quantize(_)
            | Error::Ir(_)
            | Error::Type(_)
            | Error::KeptValues { .. }
            | Error::Audit(_)
            | Error::TuningLog(_)
            | Error::NotCalibrated => Class::Invalid,
        }
    }
}
