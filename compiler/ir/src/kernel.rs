//! Kernel specifications: what a fused kernel computes, and nothing about how.

use std::sync::Arc;

use crate::error::TypeError;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Where a step of a kernel takes a value from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arg {
    /// An operand of the kernel.
    Operand(usize),
    /// The result of an earlier step.
    Step(usize),
}

/// One operator inside a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    pub op: Op,
    pub args: Vec<Arg>,
    /// The result's type, as inferred.
    pub ty: TensorType,
}

/// A straight-line function over typed operands; its result is the last step's.
///
/// A kernel may have a *second result*, which another kernel computes from the first one and from the last operands.
///
/// Holds no names, no data and no schedule, and is canonical (equal computations over equal types
/// compare equal if written in the same order), so it keys tuning tables and caches. Its meaning is
/// its steps, interpreted one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelSpec {
    operands: Vec<TensorType>,
    steps: Vec<Step>,
    second: Option<Arc<KernelSpec>>,
}

impl KernelSpec {
    /// A kernel from operators whose arguments are operands or earlier steps; at least one step,
    /// no leaves and no kernels inside.
    pub fn new(operands: Vec<TensorType>, body: Vec<(Op, Vec<Arg>)>) -> Result<KernelSpec, TypeError> {
        let mut spec = KernelSpec { operands, steps: Vec::new(), second: None };
        for (op, args) in body {
            if matches!(op, Op::Input(_) | Op::Const(_) | Op::Kernel(_) | Op::Second(_)) {
                return Err(TypeError::new(format!("`{}` cannot stand inside a kernel", op.name())));
            }
            let types = args.iter().map(|&a| spec.arg_type(a)).collect::<Result<Vec<_>, _>>()?;
            let ty = op.infer(&types)?;
            spec.steps.push(Step { op, args, ty });
        }
        if spec.steps.is_empty() {
            return Err(TypeError::new("a kernel needs at least one step"));
        }
        Ok(spec)
    }

    /// This kernel with a second result. The first operand of `second` is the first result; its others are put behind this
    /// kernel's.
    ///
    /// # Errors
    /// A second result is there already or is of another value, or `second` has two itself.
    pub fn with_second(mut self, second: Arc<KernelSpec>) -> Result<KernelSpec, TypeError> {
        if self.second.is_some() || second.second.is_some() {
            return Err(TypeError::new("a kernel has two results at most"));
        }
        match second.operands.split_first() {
            Some((first, others)) if first == self.result() => self.operands.extend_from_slice(others),
            _ => return Err(TypeError::new(format!("a second result of something else than {}", self.result()))),
        }
        self.second = Some(second);
        Ok(self)
    }

    pub fn operands(&self) -> &[TensorType] {
        &self.operands
    }

    /// The kernel that makes the second result of the first and of the last operands.
    pub fn second(&self) -> Option<&Arc<KernelSpec>> {
        self.second.as_ref()
    }

    /// The position of the first operand of the second result alone.
    pub fn second_operands(&self) -> usize {
        let own = self.second.as_ref().map_or(0, |second| second.operands.len() - 1);
        self.operands.len() - own
    }

    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The type of an argument of a step.
    pub fn arg_type(&self, arg: Arg) -> Result<&TensorType, TypeError> {
        let found = match arg {
            Arg::Operand(i) => self.operands.get(i),
            Arg::Step(i) => self.steps.get(i).map(|s| &s.ty),
        };
        found.ok_or_else(|| TypeError::new(format!("{arg:?} does not exist (yet)")))
    }

    /// The type of the (first) result.
    pub fn result(&self) -> &TensorType {
        // `new` guarantees a step.
        &self.steps[self.steps.len() - 1].ty
    }

    pub(crate) fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        if args.len() != self.operands.len() {
            return Err(TypeError::new(format!("expected {} operands, found {}", self.operands.len(), args.len())));
        }
        for (i, (arg, operand)) in args.iter().zip(&self.operands).enumerate() {
            if *arg != operand {
                return Err(TypeError::new(format!("operand {i} must be {operand}, found {arg}")));
            }
        }
        Ok(self.result().clone())
    }

    /// Interprets the steps one after the other. A second result is not computed.
    pub fn eval(&self, args: &[&Tensor]) -> Result<Tensor, TypeError> {
        let mut results: Vec<Tensor> = Vec::new();
        for step in &self.steps {
            let values = step.args.iter().map(|&arg| match arg {
                Arg::Operand(i) => args.get(i).copied(),
                Arg::Step(i) => results.get(i),
            });
            let values: Option<Vec<&Tensor>> = values.collect();
            let values = values.ok_or_else(|| TypeError::new("an argument is missing"))?;
            results.push(step.op.eval(&values, &step.ty)?);
        }
        results.pop().ok_or_else(|| TypeError::new("a kernel needs at least one step"))
    }
}
