//! ONNX in (float and QDQ), ONNX out (QCDQ), and the model zoo written as ONNX.

mod error;
mod export;
mod import;
mod pb_build;
pub mod zoo;

pub use error::{ImportError, Unsupported};
pub use export::{ExportError, Format, export};
pub use import::{ImportOptions, Imported, OPSETS, import};
