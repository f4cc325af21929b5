//! A float graph made ready for derivatives.
//!
//! In: a folded float graph with one input; its first output is the scores of the classes, or their softmax. Out: steps in
//! order, from the input to the scores, each a convolution with its weights or one of the [`Rule`]s. What the
//! first output does not depend on has no step.

use hawqc_ir::{Concat, Conv, Elem, Graph, Op, Pad, Real, Tensor, TensorType, Transpose, TypeError, ValueId};

use super::conv::ConvShape;
use super::error::SensitivityError;
use super::rules::{Pooling, Rule};
use super::scalar::Scalar;
use crate::error::QuantizeError;
use crate::plan::quantizable_layers;
use crate::weights::{check_finite, constant_weights};

/// See the module's documentation. Values are known by their index in the graph.
pub(super) struct Network<T> {
    pub layers: Vec<Layer<T>>,
    pub steps: Vec<Step>,
    pub input: usize,
    /// The scores before any softmax.
    pub logits: usize,
    /// Numbers in every value.
    pub lengths: Vec<usize>,
}

/// A convolution's constants.
pub(super) struct Layer<T> {
    pub name: String,
    pub id: ValueId,
    /// What it reads.
    pub src: ValueId,
    pub wei: Vec<T>,
    pub bias: Option<Vec<T>>,
    pub macs: u64,
}

pub(super) struct Step {
    pub id: usize,
    pub args: Vec<usize>,
    pub kind: Kind,
    /// Whether the value depends on weights at all.
    pub active: bool,
    /// Operands that no later step reads.
    pub dead: Vec<usize>,
}

pub(super) enum Kind {
    Conv { shape: ConvShape, layer: usize },
    Rule(Rule),
}

impl<T: Scalar> Network<T> {
    /// # Errors
    /// An operator that has no derivative here, constant activations, weights that are not finite constants, several
    /// inputs, an output that is no vector of scores for one input.
    pub fn new(graph: &Graph) -> Result<Network<T>, SensitivityError> {
        let &[input] = graph.inputs() else {
            let found = graph.inputs().len();
            let message = format!("sensitivities need a network of one input, found {found}");
            return Err(QuantizeError::Unsupported { node: "network".into(), op: "input".into(), message }.into());
        };
        let logits = logits(graph)?;
        let layers = quantizable_layers(graph).into_iter().map(|(id, name)| layer(graph, id, name));
        let layers = layers.collect::<Result<Vec<Layer<T>>, SensitivityError>>()?;
        let mut network = Network {
            steps: Vec::new(),
            input: input.index(),
            logits: logits.index(),
            lengths: graph.values().map(|id| graph.ty(id).elements()).collect(),
            layers,
        };
        network.add_steps(graph, logits)?;
        network.find_last_uses();
        Ok(network)
    }

    fn add_steps(&mut self, graph: &Graph, logits: ValueId) -> Result<(), SensitivityError> {
        let needed = needed_for(graph, logits);
        let mut active = vec![false; graph.len()];
        for id in graph.values().filter(|id| needed[id.index()]) {
            let mut args = graph.args(id);
            let kind = match graph.op(id) {
                Op::Input(_) | Op::Const(_) => continue,
                Op::Conv(conv) => {
                    let shape = conv_shape(graph, id, conv, &args)?;
                    args.truncate(1);
                    let layer = self.layers.iter().position(|l| l.id == id);
                    Kind::Conv { shape, layer: layer.ok_or_else(|| graph.invariant(id, "a convolution is no layer"))? }
                }
                op => Kind::Rule(rule(graph, id, op, &args)?),
            };
            if args.iter().any(|a| graph.tensor(*a).is_some()) {
                let message = "a constant activation; supported are constant weights and biases of convolutions";
                return Err(unsupported(graph, id, message));
            }
            let is_active = matches!(kind, Kind::Conv { .. }) || args.iter().any(|a| active[a.index()]);
            active[id.index()] = is_active;
            let args = args.into_iter().map(ValueId::index).collect();
            self.steps.push(Step { id: id.index(), args, kind, active: is_active, dead: Vec::new() });
        }
        Ok(())
    }

    fn find_last_uses(&mut self) {
        let mut seen = vec![false; self.lengths.len()];
        seen[self.logits] = true;
        for step in self.steps.iter_mut().rev() {
            for &arg in &step.args {
                if !std::mem::replace(&mut seen[arg], true) {
                    step.dead.push(arg);
                }
            }
        }
    }

    pub fn classes(&self) -> usize {
        self.lengths[self.logits]
    }
}

/// The scores that the first output is, or is the softmax of.
fn logits(graph: &Graph) -> Result<ValueId, SensitivityError> {
    let Some(&(_, output)) = graph.outputs().first() else {
        return Err(QuantizeError::Plan("the network has no output".into()).into());
    };
    let mut id = output;
    let mut scores = output;
    while let Op::Reshape(_) | Op::Softmax(_) = graph.op(id) {
        if let Op::Softmax(_) = graph.op(id)
            && graph.ty(id).shape.last() == Some(&graph.ty(id).elements())
        {
            scores = graph.args(id)[0];
        }
        id = graph.args(id)[0];
    }
    let shape = &graph.ty(scores).shape;
    if !graph.ty(scores).is_float() || shape.iter().filter(|&&d| d > 1).count() != 1 {
        let message =
            format!("sensitivities need one vector of class scores as first output, found {}", graph.ty(scores));
        return Err(unsupported(graph, scores, &message));
    }
    Ok(scores)
}

fn needed_for(graph: &Graph, output: ValueId) -> Vec<bool> {
    let mut needed = vec![false; graph.len()];
    needed[output.index()] = true;
    for id in graph.values().collect::<Vec<_>>().into_iter().rev() {
        if needed[id.index()] {
            graph.args(id).iter().for_each(|a| needed[a.index()] = true);
        }
    }
    needed
}

fn layer<T: Scalar>(graph: &Graph, id: ValueId, name: String) -> Result<Layer<T>, SensitivityError> {
    let args = graph.args(id);
    let numbers = |values: &[f32]| values.iter().map(|&v| T::from_f64(v.into())).collect::<Vec<T>>();
    let wei = constant_weights(graph, id)?;
    let bias = match args.get(2) {
        None => None,
        Some(&bias) => {
            let values = graph.tensor(bias).and_then(|t| t.f32s().ok());
            let values = values.ok_or_else(|| unsupported(graph, id, "the bias must be a float constant"))?;
            check_finite(graph.name(id), "bias", values)?;
            Some(numbers(values))
        }
    };
    let channels = graph.ty(args[1]).shape.first().copied().unwrap_or(1).max(1);
    let macs = (graph.ty(id).elements() as u64).saturating_mul((wei.len() / channels) as u64);
    Ok(Layer { name, id, src: args[0], wei: numbers(wei), bias, macs })
}

fn conv_shape(graph: &Graph, id: ValueId, conv: &Conv, args: &[ValueId]) -> Result<ConvShape, SensitivityError> {
    let shape = |value: ValueId| graph.ty(value).nhwc().map_err(|e| SensitivityError::from(graph.type_error(id, e)));
    let [_, oh, ow, _] = shape(id)?;
    Ok(ConvShape { conv: conv.clone(), src: shape(args[0])?, filter: shape(args[1])?, size: [oh, ow] })
}

fn rule(graph: &Graph, id: ValueId, op: &Op, args: &[ValueId]) -> Result<Rule, SensitivityError> {
    let shape = |value: ValueId| graph.ty(value).nhwc().map_err(|e| SensitivityError::from(graph.type_error(id, e)));
    let moved = |op: Op| places(graph, &op, id, args).map_err(|e| SensitivityError::from(graph.type_error(id, e)));
    let length = graph.ty(id).elements();
    Ok(match op {
        Op::ClampReal(clamp) => Rule::Clamp { lo: clamp.lo.get().into(), hi: clamp.hi.get().into() },
        Op::Add(_) => Rule::Sum,
        Op::Reshape(_) => Rule::Same,
        Op::Transpose(Transpose { perm }) => {
            Rule::Move { to: moved(Transpose { perm: perm.clone() }.into())?, length, background: 0.0 }
        }
        Op::Concat(Concat { axis }) => {
            Rule::Move { to: moved(Concat { axis: *axis }.into())?, length, background: 0.0 }
        }
        Op::Pad(pad) => {
            let marked = Pad { pad: pad.pad, value: Real::new(-1.0) };
            Rule::Move { to: moved(marked.into())?, length, background: pad.value.get().into() }
        }
        Op::MaxPool(pool) => {
            let [_, oh, ow, _] = shape(id)?;
            Rule::Max(Pooling { pool: pool.clone(), src: shape(args[0])?, size: [oh, ow] })
        }
        Op::AvgPool(pool) => {
            let [_, oh, ow, _] = shape(id)?;
            Rule::Mean(Pooling { pool: pool.clone(), src: shape(args[0])?, size: [oh, ow] })
        }
        Op::Softmax(_) => return Err(unsupported(graph, id, "a softmax is supported as the network's end only")),
        _ => {
            let message = "no derivative; sensitivities are those of the float network before quantisation";
            return Err(unsupported(graph, id, message));
        }
    })
}

/// For every operand the places of its numbers in the result of a movement: the interpreter moves numbers that stand for
/// themselves. A result that is no operand's is negative.
fn places(graph: &Graph, op: &Op, id: ValueId, args: &[ValueId]) -> Result<Vec<Vec<u32>>, TypeError> {
    let mut next = 0i64;
    let mut numbered = Vec::with_capacity(args.len());
    for &arg in args {
        let ty = graph.ty(arg);
        numbered.push(Tensor::from_ints(Elem::I32, ty.shape.clone(), next..next + ty.elements() as i64)?);
        next += ty.elements() as i64;
    }
    let out = TensorType::new(Elem::I32, graph.ty(id).shape.clone());
    let moved = op.eval(&numbered.iter().collect::<Vec<_>>(), &out)?.ints()?;
    let mut all = vec![0u32; next as usize];
    for (at, &from) in moved.iter().enumerate() {
        if let Some(place) = usize::try_from(from).ok().and_then(|from| all.get_mut(from)) {
            *place = at as u32;
        }
    }
    let mut rest = all.as_slice();
    let lengths = args.iter().map(|&a| graph.ty(a).elements());
    let split = lengths.map(|length| {
        let (part, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        part.to_vec()
    });
    Ok(split.collect())
}

fn unsupported(graph: &Graph, id: ValueId, message: &str) -> SensitivityError {
    let (node, op) = (graph.name(id).to_string(), graph.op(id).name().to_string());
    QuantizeError::Unsupported { node, op, message: message.into() }.into()
}
