//! The operators. One file each: attributes, type rule, meaning.
//!
//! To add an operator: write its file, add a row to the table below. Exhaustive matches elsewhere
//! then name the other sites.

mod add;
mod clamp;
mod concat;
mod conv;
pub mod exp;
mod pad;
mod pool;
mod quantize;
mod requant;
mod reshape;
mod softmax;
mod transpose;
mod window;

use std::sync::Arc;

pub use add::Add;
pub use clamp::{Clamp, ClampReal, Real};
pub use concat::Concat;
pub use conv::Conv;
pub use pad::Pad;
pub use pool::{AvgPool, MaxPool, SumPool};
pub use quantize::{Dequantize, Quantize};
pub use requant::Requant;
pub use reshape::Reshape;
pub use softmax::Softmax;
pub use transpose::{Transpose, permuted_shape};
pub use window::{Padding, Window};

use crate::attributes::Fields;
use crate::error::TypeError;
use crate::kernel::KernelSpec;
use crate::tensor::{ConstId, Tensor};
use crate::types::TensorType;

/// What every operator defines.
pub(crate) trait Operator {
    /// The result's type, or why the operands are not accepted. Total: never panics.
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError>;

    /// The result. `out` is what `infer` returned for the arguments' declared types.
    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError>;
}

macro_rules! operators {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// An operator with its attributes; no tensor data.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op {
            /// A value given from outside.
            Input(TensorType),
            /// A constant held by the graph.
            Const(ConstId),
            $($(#[$doc])* $variant($variant),)*
            /// A fused kernel: a straight-line function over its operands.
            Kernel(Arc<KernelSpec>),
            /// The second result of the kernel that the first operand is the first result of. It means what
            /// [`Op::Kernel`] would.
            Second(Arc<KernelSpec>),
        }

        impl Op {
            /// The name used in the text form.
            pub fn name(&self) -> &'static str {
                match self {
                    Op::Input(_) => "input",
                    Op::Const(_) => "const",
                    $(Op::$variant(_) => $name,)*
                    Op::Kernel(_) => "kernel",
                    Op::Second(_) => "second",
                }
            }

            /// Names of the operators that have attributes in `key=value` form.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
                match self {
                    Op::Input(_) | Op::Const(_) | Op::Kernel(_) | Op::Second(_) => Vec::new(),
                    $(Op::$variant(op) => op.fields(),)*
                }
            }

            pub(crate) fn from_fields(name: &str, fields: &mut Fields) -> Result<Op, String> {
                match name {
                    $($name => Ok(Op::$variant($variant::from_fields(fields)?)),)*
                    _ => Err(format!("`{name}` is not an operator")),
                }
            }

            /// The type of the result for operands of the given types.
            pub fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
                let ty = match self {
                    Op::Input(ty) => ty.clone(),
                    Op::Const(_) => return Err(TypeError::new("a constant's type comes from its data")),
                    $(Op::$variant(op) => op.infer(args)?,)*
                    Op::Kernel(spec) | Op::Second(spec) => spec.infer(args)?,
                };
                ty.check()?;
                Ok(ty)
            }

            /// The meaning of the operator: its result on actual values.
            pub fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
                match self {
                    Op::Input(_) | Op::Const(_) => Err(TypeError::new("a leaf is not evaluated")),
                    $(Op::$variant(op) => op.eval(args, out),)*
                    Op::Kernel(spec) | Op::Second(spec) => spec.eval(args),
                }
            }
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op { Op::$variant(op) }
        })*
    };
}

operators! {
    /// Sum of two values of one shape.
    Add = "add",
    /// Mean over windows of floats.
    AvgPool = "avg_pool",
    /// Integers limited to a range and stored as an element.
    Clamp = "clamp",
    /// Floats limited to a range.
    ClampReal = "clamp_real",
    /// Values side by side along an axis.
    Concat = "concat",
    /// Two-dimensional convolution.
    Conv = "conv",
    /// Integers to floats.
    Dequantize = "dequantize",
    /// Maximum over windows.
    MaxPool = "max_pool",
    /// A constant border.
    Pad = "pad",
    /// Floats to integers.
    Quantize = "quantize",
    /// Dyadic requantisation.
    Requant = "requant",
    /// The same values under another shape.
    Reshape = "reshape",
    /// Normalised exponentials along the last axis.
    Softmax = "softmax",
    /// Sum over windows of integers.
    SumPool = "sum_pool",
    /// Axes in another order.
    Transpose = "transpose",
}

/// The operands, or how many were expected.
pub(crate) fn operands<'a, T, const N: usize>(args: &[&'a T]) -> Result<[&'a T; N], TypeError> {
    <[&T; N]>::try_from(args).map_err(|_| TypeError::new(format!("expected {N} operands, found {}", args.len())))
}
