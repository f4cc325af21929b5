//! From a float graph to one with `quantize`/`dequantize` pairs ("QDQ").
//!
//! In: a folded float graph, its calibration, a precision plan. Out: the same graph in which
//! * weights are integer constants under a `dequantize`, one scale per output channel ([`crate::weights`]);
//! * biases stay floats, so that whoever lowers them chooses the accumulator's scale s_x * s_w;
//! * every stored activation passes through a `quantize` and a `dequantize`; which ones, and how wide, is
//!   told by [`needs`], their scales by [`format`] and [`streams`];
//! * clamps stand between accumulator and `quantize`, and movements and max-pools read and give stored values.
//!
//! The zero point is 0 throughout. The graph's float meaning under the interpreter is the network with
//! quantisation simulated.

mod format;
mod grid;
mod needs;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use hawqc_ir::{Conv, Dequantize, Elem, Graph, Op, Quantize, Tensor, TypeError, ValueId};

use self::format::{Format, Span};
pub(crate) use self::grid::{ActivationGrid, activation_grids};
use self::needs::Needs;
pub(crate) use self::needs::is_fused_clamp;
use self::streams::Streams;
use crate::bias::corrected_bias;
use crate::calibrate::{Calibration, Method, value_names};
use crate::error::QuantizeError;
use crate::plan::{LayerBits, PrecisionPlan};
use crate::weights::{QuantizedWeights, check_finite, constant_weights};

/// Bits of every convolution.
type Layers = BTreeMap<ValueId, LayerBits>;

/// Which layers get their bias corrected for the mean error of rounded weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasCorrection {
    None,
    /// Layers of at most 4 weight bits.
    Narrow,
    All,
}

/// Choices that are not part of the plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// How clipping points of activations of up to 8 bits are chosen; inputs are never clipped.
    pub method: Method,
    pub bias_correction: BiasCorrection,
}

impl Default for Options {
    fn default() -> Options {
        Options { method: Method::Mse, bias_correction: BiasCorrection::All }
    }
}

/// See the module's documentation.
///
/// # Errors
/// A plan for other nodes, a value without calibration, weights that are not finite constants, an
/// operator that has no integer form.
pub fn insert(
    graph: &Graph,
    calibration: &Calibration,
    plan: &PrecisionPlan,
    options: Options,
) -> Result<Graph, QuantizeError> {
    check_operators(graph)?;
    let layers: Layers = plan.resolve(graph)?.into_iter().collect();
    let needs = Needs::new(graph, &layers, plan.residual_bits());
    let mut inserter = Inserter {
        graph,
        calibration,
        options,
        layers: &layers,
        names: value_names(graph),
        streams: Streams::new(graph, &needs),
        needs,
        known: known_bounds(graph, calibration)?,
        carried: BTreeMap::new(),
        copies: Vec::new(),
    };
    let qdq = graph.rebuild(|new, id, args| inserter.visit(new, id, args))?;
    Ok(qdq.swept()?)
}

/// A value of the new graph and, if it is stored, its format.
type Carried = (ValueId, Option<Format>);

struct Inserter<'a> {
    graph: &'a Graph,
    calibration: &'a Calibration,
    options: Options,
    layers: &'a Layers,
    names: Vec<String>,
    needs: Needs<'a>,
    streams: Streams,
    known: Vec<Bounds>,
    /// What stands for each old value.
    carried: BTreeMap<ValueId, Carried>,
    /// Narrower copies: old value, format, new value.
    copies: Vec<(ValueId, Format, ValueId)>,
}

impl Inserter<'_> {
    /// Adds what replaces an old node, and returns its stored value.
    fn visit(&mut self, new: &mut Graph, id: ValueId, args: &[ValueId]) -> Result<ValueId, QuantizeError> {
        let mut operands = Vec::with_capacity(args.len());
        for (&old, &mapped) in self.graph.args(id).iter().zip(args) {
            operands.push(self.operand(new, id, old, mapped)?);
        }
        let values: Vec<ValueId> = operands.iter().map(|o| o.0).collect();
        let raw = match self.graph.op(id) {
            Op::Conv(conv) => self.convolution(new, id, conv, operands[0])?,
            _ => new.copy(self.graph, id, &values)?,
        };
        let keeps_format = matches!(
            self.graph.op(id),
            Op::MaxPool(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Pad(_) | Op::Concat(_)
        );
        let carried = match self.needs.storage(id) {
            None => (raw, None),
            Some(_) if keeps_format && operands[0].1.is_some() => (raw, operands[0].1),
            Some(_) => self.store(new, id, raw)?,
        };
        self.carried.insert(id, carried);
        Ok(carried.0)
    }

    /// Quantises a value to its storage.
    fn store(&self, new: &mut Graph, id: ValueId, raw: ValueId) -> Result<Carried, QuantizeError> {
        let Some(storage) = self.needs.storage(id) else {
            return Ok((raw, None));
        };
        let mut format = self.format(id, storage.anchor.unwrap_or(id), storage.bits)?;
        for member in self.streams.others(self.graph, id) {
            format.scale = format.scale.max(self.format(member, member, storage.bits)?.scale);
        }
        Ok((self.quantized(new, id, raw, format)?, Some(format)))
    }

    /// Operand `old` of `user`, in the form the user needs.
    fn operand(
        &mut self,
        new: &mut Graph,
        user: ValueId,
        old: ValueId,
        mapped: ValueId,
    ) -> Result<Carried, QuantizeError> {
        if self.graph.tensor(old).is_some() {
            return Ok((mapped, None));
        }
        let need = self.needs.need(user, old);
        let carried = match self.carried.get(&old) {
            Some(&carried) => carried,
            // An input: not visited, so stored when first needed.
            None if need.is_some() => self.store(new, old, mapped)?,
            None => return Ok((mapped, None)),
        };
        self.carried.insert(old, carried);
        let (Some(need), Some(stored)) = (need, carried.1) else {
            return Ok(carried);
        };
        let format = match need.anchor {
            None if stored.bits == need.bits || need.or_wider && stored.bits > need.bits => return Ok(carried),
            None => self.format(old, old, need.bits)?,
            Some(anchor) => self.format(old, anchor, need.bits)?,
        };
        if format == stored {
            return Ok(carried);
        }
        let copy = self.copies.iter().find(|c| c.0 == old && c.1 == format).map(|c| c.2);
        let value = match copy {
            Some(value) => value,
            None => self.quantized(new, old, carried.0, format)?,
        };
        self.copies.push((old, format, value));
        Ok((value, Some(format)))
    }

    /// The format of `id` at `bits` with the statistics of `source`.
    fn format(&self, id: ValueId, source: ValueId, bits: u8) -> Result<Format, QuantizeError> {
        let name = &self.names[source.index()];
        let statistics = self.calibration.get(self.graph.name(id), name)?;
        let known = self.known[source.index()];
        let method = if self.needs.is_border(id) { Method::MinMax } else { self.options.method };
        let span = Span { statistics, non_negative: known.non_negative, upper: known.upper };
        Ok(Format::new(&span, bits, method))
    }

    /// `dequantize(quantize(value))`.
    fn quantized(
        &self,
        new: &mut Graph,
        id: ValueId,
        value: ValueId,
        format: Format,
    ) -> Result<ValueId, QuantizeError> {
        let name = self.graph.name(id);
        let scale = self.tensor(id, Tensor::from_f32([1], vec![format.scale]))?;
        let zero = self.tensor(id, Tensor::from_ints(format.elem, [1], [0]))?;
        let (scale, zero) = (new.constant(scale), new.constant(zero));
        let quantize = Quantize { lo: format.lo, hi: format.hi, axis: 0, elem: format.elem };
        let quantized = new.add(name, quantize, &[value, scale, zero])?;
        Ok(new.add(name, Dequantize { axis: 0 }, &[quantized, scale, zero])?)
    }

    /// The convolution with quantised weights; its result is the accumulator's real value.
    fn convolution(
        &self,
        new: &mut Graph,
        id: ValueId,
        conv: &Conv,
        (src, format): Carried,
    ) -> Result<ValueId, QuantizeError> {
        let node = self.graph.name(id);
        let (Some(bits), Some(format)) = (self.layers.get(&id), format) else {
            return Err(self.graph.invariant(id, "a convolution without bits or with a float source").into());
        };
        let args = self.graph.args(id);
        let wei = constant_weights(self.graph, id)?;
        let bias = self.bias(id, &args)?;
        let units: Vec<f64> = bias.iter().map(|&b| f64::from(b.abs()) / f64::from(format.scale)).collect();
        let quantized = QuantizedWeights::new(wei, bits.weights, &units);
        let correct = match self.options.bias_correction {
            BiasCorrection::None => false,
            BiasCorrection::Narrow => bits.weights <= 4,
            BiasCorrection::All => true,
        };
        let bias = if correct {
            let taps = self.calibration.tap_means(&self.names[id.index()])?;
            corrected_bias(conv.groups, &self.graph.ty(args[1]).shape, wei, &quantized.dequantized(), taps, &bias)
                .map_err(|e| QuantizeError::at(node, "conv", e))?
        } else {
            bias
        };
        let channels = bias.len();
        let integers = self.tensor(id, quantized.tensor(&self.graph.ty(args[1]).shape))?;
        let zeros = self.tensor(id, Tensor::from_ints(quantized.elem(), [channels], vec![0; channels]))?;
        let scales = self.tensor(id, Tensor::from_f32([channels], quantized.scales))?;
        let bias = self.tensor(id, Tensor::from_f32([channels], bias))?;
        let constants = [integers, scales, zeros].map(|t| new.constant(t));
        let wei = new.add(format!("{node}.weight"), Dequantize { axis: 0 }, &constants)?;
        let bias = new.constant(bias);
        Ok(new.add(node, conv.clone(), &[src, wei, bias])?)
    }

    /// The bias of a convolution, zeros if it has none.
    fn bias(&self, id: ValueId, args: &[ValueId]) -> Result<Vec<f32>, QuantizeError> {
        let Some(&bias) = args.get(2) else {
            return Ok(vec![0.0; self.graph.ty(id).shape[3]]);
        };
        let values = self.graph.tensor(bias).and_then(|t| t.f32s().ok());
        let values = values.ok_or_else(|| unsupported(self.graph, id, "the bias must be a float constant"))?;
        check_finite(self.graph.name(id), "bias", values)?;
        Ok(values.to_vec())
    }

    fn tensor(&self, id: ValueId, tensor: Result<Tensor, TypeError>) -> Result<Tensor, QuantizeError> {
        Ok(tensor.map_err(|e| self.graph.type_error(id, e))?)
    }
}

fn unsupported(graph: &Graph, id: ValueId, message: &str) -> QuantizeError {
    let (node, op) = (graph.name(id).to_string(), graph.op(id).name().to_string());
    QuantizeError::Unsupported { node, op, message: message.into() }
}

const QUANTISED: &str = "the network is quantised already; quantise the float network it stems from";

/// Refuses what is quantised already and what has no integer form.
fn check_operators(graph: &Graph) -> Result<(), QuantizeError> {
    let live = graph.live();
    for id in graph.values().filter(|id| live[id.index()]) {
        let constant_operand = graph.args(id).into_iter().any(|a| graph.tensor(a).is_some());
        let message = match graph.op(id) {
            Op::Const(_) | Op::Conv(_) => continue,
            Op::Input(ty) if ty.elem == Elem::F32 => continue,
            Op::Pad(pad) if pad.value.get() != 0.0 => "only a border of zeros is exact in every scale",
            Op::Add(_) | Op::AvgPool(_) | Op::ClampReal(_) | Op::Concat(_) | Op::MaxPool(_) if !constant_operand => {
                continue;
            }
            Op::Pad(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Softmax(_) if !constant_operand => continue,
            Op::Input(_) | Op::Clamp(_) | Op::Dequantize(_) | Op::Kernel(_) | Op::Second(_) => QUANTISED,
            Op::Quantize(_) | Op::Requant(_) | Op::SumPool(_) => QUANTISED,
            _ => "a constant activation; supported are constant weights and biases of convolutions",
        };
        return Err(unsupported(graph, id, message));
    }
    Ok(())
}

/// What holds for a value whatever the input.
#[derive(Clone, Copy)]
struct Bounds {
    non_negative: bool,
    upper: f32,
}

/// Bounds that follow from clamps. An input counts as never negative if it never was in calibration:
/// the network's first operation clamps it.
fn known_bounds(graph: &Graph, calibration: &Calibration) -> Result<Vec<Bounds>, QuantizeError> {
    let names = value_names(graph);
    let none = Bounds { non_negative: false, upper: f32::INFINITY };
    let mut known: Vec<Bounds> = vec![none; graph.len()];
    for id in graph.values() {
        let args: Vec<Bounds> = graph.args(id).iter().map(|a| known[a.index()]).collect();
        let all = Bounds {
            non_negative: args.iter().all(|b| b.non_negative),
            upper: args.iter().map(|b| b.upper).fold(f32::NEG_INFINITY, f32::max),
        };
        known[id.index()] = match graph.op(id) {
            Op::Input(_) => {
                let min = calibration.get(graph.name(id), &names[id.index()])?.min;
                Bounds { non_negative: min >= 0.0, ..none }
            }
            Op::ClampReal(clamp) => {
                let (lo, hi) = (clamp.lo.get(), clamp.hi.get());
                // A bound of at most 0 leaves nothing to scale by.
                let upper = if hi > 0.0 { all.upper.min(hi) } else { f32::INFINITY };
                Bounds { non_negative: all.non_negative || lo >= 0.0, upper }
            }
            Op::Add(_) => Bounds { upper: f32::INFINITY, ..all },
            Op::MaxPool(_) | Op::AvgPool(_) | Op::Concat(_) | Op::Pad(_) | Op::Reshape(_) | Op::Transpose(_) => all,
            _ => none,
        };
    }
    Ok(known)
}
