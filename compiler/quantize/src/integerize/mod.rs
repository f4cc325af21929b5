//! The lowering of a QDQ graph to integers.
//!
//! In: a graph of float operators around `quantize`/`dequantize` pairs, weights being integer constants
//! under a `dequantize`. Out: a graph for which [`verify::check_integer`] holds, with the same
//! inputs and outputs. Integer operators of the source graph are kept as they are.
//!
//! Every float value is given a [form](Form): mostly a sum of scaled integers under a real limit
//! ([`Sum`]), which operators build up and a `quantize` resolves into requantisations. What an
//! integer result means relative to the float graph:
//!
//! * a `quantize` of one term is one requantisation: equal to the float graph up to ties and the
//!   rounding of f32;
//! * a `quantize` of a sum of n terms requantises every term by itself, saturating at
//!   +-(2^31 - 1) / n, then adds, then clamps;
//! * a limit (`clamp_real`) before a `quantize` becomes the quantised limit, which is exact since
//!   quantisation is monotone. Elsewhere it is applied to the integers, at the nearest integers
//!   to its bounds: exact for the bound 0, so for ReLU;
//! * a float bias is rounded (half to even) to the scale of the accumulator.

mod border;
mod conv;
mod error;
mod movement;
mod pool;
mod quantize;
mod scaled;

use std::collections::BTreeMap;
use std::sync::Arc;

use hawqc_ir::{ClampReal, Elem, Graph, IrError, Op, Rounding, Tensor, ValueId, verify};

use error::Obstacle;
pub use error::{IntegerizeError, Problem};
use scaled::{Limit, Sum};

/// Choices left open by the source graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntegerizeOptions {
    /// How every requantisation rounds.
    pub rounding: Rounding,
}

impl Default for IntegerizeOptions {
    fn default() -> IntegerizeOptions {
        IntegerizeOptions { rounding: Rounding::HalfUp }
    }
}

/// [`integerize_with`] the default options.
pub fn integerize(graph: &Graph) -> Result<Graph, IntegerizeError> {
    integerize_with(graph, IntegerizeOptions::default())
}

/// The integer graph of a QDQ graph, or every node that stands in the way.
pub fn integerize_with(graph: &Graph, options: IntegerizeOptions) -> Result<Graph, IntegerizeError> {
    verify::check(graph)?;
    let mut lowering = Lowering::new(graph, options);
    for id in graph.values() {
        let form = lowering.visit(id)?;
        lowering.forms.push(form);
    }
    for (name, id) in graph.outputs() {
        if let Some(value) = lowering.output(*id) {
            lowering.new.output(name.clone(), value);
        }
    }
    if !lowering.problems.is_empty() {
        return Err(IntegerizeError::Nodes(lowering.problems));
    }
    let new = lowering.new.swept()?;
    verify::check_integer(&new)?;
    Ok(new)
}

/// What a value of the source graph is in the new one.
#[derive(Clone, Debug)]
enum Form {
    /// A constant, not yet placed in the new graph.
    Const(Arc<Tensor>),
    /// An integer value.
    Int(ValueId),
    /// Floats of the model's input, only moved so far.
    Before(ValueId),
    /// Floats computed from integers.
    Sum(Sum),
    /// Floats computed from integers, side by side along an axis, scaled differently.
    Concat { axis: usize, parts: Vec<Sum> },
    /// Floats that have left the integers for good.
    After(ValueId),
    /// Not available: no output needs it, or a problem has been reported.
    Missing,
}

impl Form {
    fn describe(&self) -> &'static str {
        match self {
            Form::Const(_) => "a constant",
            Form::Int(_) => "an integer value",
            Form::Before(_) => "floats that no quantize has yet turned into integers",
            Form::Sum(_) => "quantised values",
            Form::Concat { .. } => "concatenated values of different scales",
            Form::After(_) => "floats behind the last quantised value",
            Form::Missing => "nothing",
        }
    }
}

/// The state of the walk: the graph under construction and the form of every value so far.
struct Lowering<'a> {
    old: &'a Graph,
    new: Graph,
    forms: Vec<Form>,
    rounding: Rounding,
    problems: Vec<Problem>,
    live: Vec<bool>,
    /// Whether a value reaches outputs only, through movement and softmax.
    leaves: Vec<bool>,
    /// Floats behind the border, by value of the source graph.
    dequantized: BTreeMap<ValueId, ValueId>,
}

impl<'a> Lowering<'a> {
    fn new(old: &'a Graph, options: IntegerizeOptions) -> Lowering<'a> {
        let live = old.live();
        let mut leaves = vec![true; old.len()];
        for id in old.values().collect::<Vec<_>>().into_iter().rev() {
            let leaving = |op: &Op| matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Softmax(_));
            let stays = |&u: &ValueId| live[u.index()] && !(leaving(old.op(u)) && leaves[u.index()]);
            leaves[id.index()] = !old.users(id).iter().any(stays);
        }
        Lowering {
            old,
            new: Graph::new(),
            forms: Vec::new(),
            rounding: options.rounding,
            problems: Vec::new(),
            live,
            leaves,
            dequantized: BTreeMap::new(),
        }
    }

    /// The form of a value whose operands have theirs.
    fn visit(&mut self, id: ValueId) -> Result<Form, IrError> {
        match self.old.op(id) {
            Op::Input(ty) => {
                let value = self.new.input(self.old.name(id), ty.clone())?;
                return Ok(if ty.is_float() { Form::Before(value) } else { Form::Int(value) });
            }
            _ if !self.live[id.index()] => return Ok(Form::Missing),
            Op::Const(_) => {
                let tensor = self.old.tensor(id).ok_or_else(|| self.old.invariant(id, "a constant without data"))?;
                return Ok(Form::Const(Arc::clone(tensor)));
            }
            _ => {}
        }
        let args: Vec<Form> = self.old.args(id).iter().map(|a| self.forms[a.index()].clone()).collect();
        if args.iter().any(|a| matches!(a, Form::Missing)) {
            return self.stand_in(id);
        }
        match self.lower(id, &args) {
            Ok(form) => Ok(form),
            Err(obstacle) => {
                self.report(id, obstacle);
                self.stand_in(id)
            }
        }
    }

    fn report(&mut self, id: ValueId, Obstacle { found, needed }: Obstacle) {
        let node = match self.old.name(id) {
            "" => format!("%{}", id.index()),
            name => name.to_string(),
        };
        let op = self.old.op(id).name().to_string();
        self.problems.push(Problem { node, op, found, needed });
    }

    /// After a problem: an integer value of the right type lets the walk go on and find more, in a
    /// graph that is thrown away.
    fn stand_in(&mut self, id: ValueId) -> Result<Form, IrError> {
        match self.old.ty(id) {
            ty if ty.is_float() => Ok(Form::Missing),
            ty => Ok(Form::Int(self.new.input(self.old.name(id), ty.clone())?)),
        }
    }

    /// The rule for each operator.
    fn lower(&mut self, id: ValueId, args: &[Form]) -> Result<Form, Obstacle> {
        let op = self.old.op(id);
        if let Op::Dequantize(dequantize) = op {
            return self.dequantize(id, dequantize, args);
        }
        if let Some(tensors) = constants(args) {
            let result = op.eval(&tensors, self.old.ty(id))?;
            return Ok(Form::Const(Arc::new(declared_width(op, result)?)));
        }
        if let Some(values) = self.integers(args) {
            return Ok(Form::Int(self.emit(self.old.name(id), op.clone(), &values)?));
        }
        match op {
            Op::Quantize(quantize) => self.quantize(id, quantize, args),
            Op::Conv(conv) => self.conv(id, conv, args),
            Op::ClampReal(clamp) => limit(clamp, args),
            Op::Add(_) => self.add(id, args),
            Op::MaxPool(_) => self.max_pool(id, args),
            Op::AvgPool(pool) => self.avg_pool(id, pool, args),
            Op::Concat(concat) => self.concat(id, concat, args),
            Op::Reshape(_) | Op::Transpose(_) | Op::Pad(_) => self.movement(id, args),
            Op::Softmax(_) => self.softmax(id, args),
            _ => Err(Obstacle::new(describe_all(args), "integer operands")),
        }
    }

    /// Adds a node; if all operands are constants, its value.
    fn emit(&mut self, name: &str, op: impl Into<Op>, args: &[ValueId]) -> Result<ValueId, IrError> {
        let op = op.into();
        let tensors: Option<Vec<Arc<Tensor>>> = args.iter().map(|&a| self.new.tensor(a).cloned()).collect();
        let Some(tensors) = tensors else {
            return self.new.add(name, op, args);
        };
        let types: Vec<_> = args.iter().map(|&a| self.new.ty(a)).collect();
        let refs: Vec<&Tensor> = tensors.iter().map(|t| &**t).collect();
        let result = op.infer(&types).and_then(|ty| op.eval(&refs, &ty));
        let typed = |source| IrError::Type { node: name.into(), op: op.name().into(), source };
        Ok(self.new.constant(result.map_err(typed)?))
    }

    /// The operands in the new graph, if all are integers.
    fn integers(&mut self, args: &[Form]) -> Option<Vec<ValueId>> {
        let integer = |a: &Form| match a {
            Form::Const(tensor) => tensor.elem() != Elem::F32,
            Form::Int(_) => true,
            _ => false,
        };
        args.iter().all(integer).then(|| args.iter().filter_map(|a| self.place(a)).collect())
    }

    /// The value of an integer or a constant in the new graph.
    fn place(&mut self, form: &Form) -> Option<ValueId> {
        match form {
            Form::Const(tensor) => Some(self.new.constant(Arc::clone(tensor))),
            Form::Int(value) => Some(*value),
            _ => None,
        }
    }

    fn add(&mut self, id: ValueId, args: &[Form]) -> Result<Form, Obstacle> {
        let mut terms = Vec::new();
        for arg in args {
            let Form::Sum(sum) = arg else {
                return Err(Obstacle::new(arg.describe(), "quantised operands, each under a dequantize"));
            };
            terms.extend(self.settled(self.old.name(id), sum)?.terms);
        }
        Ok(Form::Sum(Sum { terms, limit: Limit::NONE }))
    }

    /// What an output of the source graph is in the new one; problems are reported.
    fn output(&mut self, id: ValueId) -> Option<ValueId> {
        let value = match self.forms[id.index()].clone() {
            Form::Missing => return None,
            Form::Before(value) | Form::After(value) => Ok(value),
            form => match self.place(&form) {
                Some(value) => Ok(value),
                None => self.leave(id),
            },
        };
        value.map_err(|obstacle| self.report(id, obstacle)).ok()
    }
}

fn describe_all(args: &[Form]) -> String {
    args.iter().map(Form::describe).collect::<Vec<_>>().join(", ")
}

/// The operands as tensors, if all are constants.
fn constants<'a>(args: &'a [Form]) -> Option<Vec<&'a Tensor>> {
    let tensor = |a: &'a Form| match a {
        Form::Const(tensor) => Some(&**tensor),
        _ => None,
    };
    args.iter().map(tensor).collect()
}

/// Constants quantised to a 4-bit range are 4-bit constants, whatever element holds them.
fn declared_width(op: &Op, tensor: Tensor) -> Result<Tensor, Obstacle> {
    let Op::Quantize(quantize) = op else {
        return Ok(tensor);
    };
    let range = hawqc_ir::Range::new(quantize.lo, quantize.hi);
    match Elem::holding(range) {
        Some(elem) if elem.bits() < tensor.elem().bits() && elem.bits() == 4 => {
            Ok(Tensor::from_ints(elem, tensor.shape(), tensor.ints()?)?)
        }
        _ => Ok(tensor),
    }
}

/// A limit on a sum, or on every part of a concatenation.
fn limit(clamp: &ClampReal, args: &[Form]) -> Result<Form, Obstacle> {
    let next = Limit { lo: clamp.lo.get(), hi: clamp.hi.get() };
    if next.lo == f32::INFINITY || next.hi == f32::NEG_INFINITY {
        return Err(Obstacle::new(format!("a clamp to [{}, {}]", next.lo, next.hi), "bounds that leave finite values"));
    }
    let limited = |sum: &Sum| Sum { limit: sum.limit.then(next), ..sum.clone() };
    match args {
        [Form::Sum(sum)] => Ok(Form::Sum(limited(sum))),
        [Form::Concat { axis, parts }] => Ok(Form::Concat { axis: *axis, parts: parts.iter().map(limited).collect() }),
        _ => Err(Obstacle::new(describe_all(args), "a quantised operand under a dequantize")),
    }
}
