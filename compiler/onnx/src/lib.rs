//! ONNX in (float and QDQ), ONNX out (QCDQ), and the model zoo written as ONNX.

mod pb_build;
pub mod zoo;
