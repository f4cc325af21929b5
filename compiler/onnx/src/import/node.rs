//! One ONNX node as an operator's importer sees it: resolved inputs and typed attributes.

use std::rc::Rc;

use hawqc_ir::{IrError, TypeError, ValueId};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use super::constant::Constant;

/// What an ONNX tensor name stands for.
#[derive(Clone)]
pub enum Value {
    /// Known now, in ONNX's order of axes.
    Const(Rc<Constant>),
    /// Computed when the network runs. Rank 4 is `[N, H, W, C]` in the graph, other ranks are as in ONNX.
    Run(ValueId),
}

/// What is wrong with a node; the driver adds its name and operator.
#[derive(Debug)]
pub enum NodeError {
    Invalid(String),
    Unsupported(Box<Refusal>),
}

/// The parts of an [`crate::Unsupported`] that only the operator's importer knows.
#[derive(Debug)]
pub struct Refusal {
    pub attribute: String,
    pub found: String,
    pub supported: String,
    pub hint: String,
}

/// The model breaks the rules of ONNX.
pub fn invalid(message: impl Into<String>) -> NodeError {
    NodeError::Invalid(message.into())
}

/// The model is well formed but not compiled.
pub fn unsupported(attribute: &str, found: impl Into<String>, supported: &str, hint: &str) -> NodeError {
    NodeError::Unsupported(Box::new(Refusal {
        attribute: attribute.into(),
        found: found.into(),
        supported: supported.into(),
        hint: hint.into(),
    }))
}

impl From<TypeError> for NodeError {
    fn from(error: TypeError) -> NodeError {
        invalid(error.to_string())
    }
}

impl From<IrError> for NodeError {
    fn from(error: IrError) -> NodeError {
        match error {
            IrError::Type { source, .. } => source.into(),
            other => invalid(other.to_string()),
        }
    }
}

/// See the module's documentation.
pub struct Node<'a> {
    pub proto: &'a NodeProto,
    /// The node's name, or that of its first output.
    pub name: &'a str,
    /// Version of the operator set the node is bound to.
    pub opset: i64,
    /// One entry per input; absent optional inputs are `None`.
    pub inputs: Vec<Option<Value>>,
}

impl Node<'_> {
    /// Input `index`, which must be there.
    pub fn input(&self, index: usize) -> Result<&Value, NodeError> {
        self.optional(index).ok_or_else(|| invalid(format!("input {index} is missing")))
    }

    /// Input `index`, if it is there.
    pub fn optional(&self, index: usize) -> Option<&Value> {
        self.inputs.get(index).and_then(Option::as_ref)
    }

    /// Input `index`, called `what`, which must be there and constant.
    pub fn constant(&self, index: usize, what: &str) -> Result<&Rc<Constant>, NodeError> {
        match self.input(index)? {
            Value::Const(constant) => Ok(constant),
            Value::Run(_) => Err(computed(what)),
        }
    }

    /// Input `index`, called `what`, which must be constant where it is there.
    pub fn optional_constant(&self, index: usize, what: &str) -> Result<Option<&Rc<Constant>>, NodeError> {
        match self.optional(index) {
            None => Ok(None),
            Some(Value::Const(constant)) => Ok(Some(constant)),
            Some(Value::Run(_)) => Err(computed(what)),
        }
    }

    fn attribute(&self, name: &str, expected: AttributeType) -> Result<Option<&AttributeProto>, NodeError> {
        let Some(attribute) = self.proto.attribute.iter().find(|a| a.name == name) else { return Ok(None) };
        if attribute.r#type != expected as i32 {
            let found = attribute.r#type;
            return Err(invalid(format!("attribute `{name}` has type {found}, expected {}", expected.as_str_name())));
        }
        Ok(Some(attribute))
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Result<Option<i64>, NodeError> {
        Ok(self.attribute(name, AttributeType::Int)?.map(|a| a.i))
    }

    /// A boolean attribute written as 0 or 1.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, NodeError> {
        Ok(self.int(name)?.map_or(default, |v| v != 0))
    }

    /// An integer-list attribute.
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, NodeError> {
        Ok(self.attribute(name, AttributeType::Ints)?.map(|a| a.ints.as_slice()))
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Result<Option<f32>, NodeError> {
        Ok(self.attribute(name, AttributeType::Float)?.map(|a| a.f))
    }

    /// A float-list attribute.
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>, NodeError> {
        Ok(self.attribute(name, AttributeType::Floats)?.map(|a| a.floats.as_slice()))
    }

    /// A string attribute.
    pub fn string(&self, name: &str) -> Result<Option<&str>, NodeError> {
        let Some(attribute) = self.attribute(name, AttributeType::String)? else { return Ok(None) };
        std::str::from_utf8(&attribute.s).map(Some).map_err(|_| invalid(format!("attribute `{name}` is not UTF-8")))
    }

    /// A tensor attribute.
    pub fn tensor(&self, name: &str) -> Result<Option<&TensorProto>, NodeError> {
        Ok(self.attribute(name, AttributeType::Tensor)?.and_then(|a| a.t.as_ref()))
    }

    /// The axes a node works on: an attribute up to opset `until - 1`, then a constant input.
    pub fn axes(&self, until: i64, input: usize) -> Result<Option<Vec<i64>>, NodeError> {
        if self.opset < until {
            return Ok(self.ints("axes")?.map(<[i64]>::to_vec));
        }
        self.optional_constant(input, "axes")?.map(|c| c.to_i64s()).transpose()
    }
}

fn computed(what: &str) -> NodeError {
    unsupported(what, "computed at run time", "a constant", "")
}

/// An axis counted from the end if negative, checked against `rank`.
pub fn axis(value: i64, rank: usize) -> Result<usize, NodeError> {
    let from_start = if value < 0 { value.saturating_add(rank as i64) } else { value };
    usize::try_from(from_start)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| invalid(format!("axis {value} of a tensor of rank {rank}")))
}
