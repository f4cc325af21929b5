//! The language of hawqc: what a network is at every stage of compilation, and what it means.
//!
//! * [`TensorType`]: element, static shape, and for integers the range of values.
//! * [`Op`]: a closed set of operators, each with attributes, a total type rule and a meaning.
//! * [`Graph`]: an append-only, typed dataflow graph, one value per node.
//! * [`interp`]: the reference interpreter. It *defines* results; everything fast equals it bit for bit.
//! * [`verify`]: the written list of invariants, checked between passes.
//! * [`text`]: a form that reads back: `parse(print(g)) == g`.
//!
//! The same graph type carries a float network, a float network with `quantize`/`dequantize` pairs
//! ("QDQ form"), an integer network, and a network of fused kernels. Activations are NHWC and
//! row-major, logically and in memory; convolution weights are `[K, KH, KW, C/groups]`.

mod attributes;
mod dyadic;
mod elem;
mod error;
mod graph;
pub mod interp;
mod kernel;
mod ops;
mod tensor;
pub mod text;
mod types;
pub mod verify;

pub use dyadic::{Dyadic, Rounding, round_shift};
pub use elem::Elem;
pub use error::{IrError, TypeError};
pub use graph::{Graph, Node, ValueId};
pub use kernel::{Arg, KernelSpec, Step};
pub use ops::{
    Add, AvgPool, Clamp, ClampReal, Concat, Conv, Dequantize, MaxPool, Op, Pad, Padding, Quantize, Real, Requant,
    Reshape, Softmax, SumPool, Transpose, Window, exp, permuted_shape,
};
pub use tensor::{ConstId, Data, Tensor};
pub use types::{Range, TensorType};
