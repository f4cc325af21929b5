//! Folding of float graphs: what an exporter writes as several nodes becomes one convolution.
//!
//! In: a float graph (batch normalisation stands in it as a depthwise 1x1 convolution). Out: a float
//! graph with the same inputs, outputs and values up to f32 rounding, in which
//! * a depthwise 1x1 convolution is merged into the convolution before it, or else into those after
//!   it where that is exact at the border of the image;
//! * a border of zeros is part of the convolution that reads it;
//! * consecutive clamps are one, data movements that cancel are gone, and a transpose that moves
//!   only axes of length 1 is a reshape.
//!
//! Scaled weights and biases are computed in f64 and rounded once.

use hawqc_ir::{ClampReal, Conv, Graph, Op, Real, Reshape, Tensor, Transpose, TypeError, ValueId};

use crate::error::QuantizeError;

/// See the module's documentation. Repeats until nothing changes.
///
/// # Errors
/// Only if the graph itself is malformed.
pub fn fold_batch_norm(graph: &Graph) -> Result<Graph, QuantizeError> {
    let mut graph = graph.swept()?;
    loop {
        let simplified = graph.rebuild(|new, id, args| simplify(&graph, new, id, args))?.swept()?;
        let merged = simplified.rebuild(|new, id, args| merge(&simplified, new, id, args))?.swept()?;
        if merged == graph {
            return Ok(graph);
        }
        graph = merged;
    }
}

/// Movements and clamps that can be expressed by fewer nodes.
fn simplify(old: &Graph, new: &mut Graph, id: ValueId, args: &[ValueId]) -> Result<ValueId, QuantizeError> {
    let name = old.name(id);
    Ok(match (old.op(id), args) {
        (Op::Transpose(t), &[src]) => simplify_transpose(new, name, t, src)?,
        (Op::Reshape(r), &[src]) => simplify_reshape(new, name, &r.shape, src)?,
        (Op::ClampReal(outer), &[src]) => match new.op(src).clone() {
            Op::ClampReal(inner) => {
                let limit = |v: Real| Real::new(v.get().max(outer.lo.get()).min(outer.hi.get()));
                let both = ClampReal { lo: limit(inner.lo), hi: limit(inner.hi) };
                let src = operand(new, src, 0);
                new.add(name, both, &[src])?
            }
            _ => new.copy(old, id, args)?,
        },
        _ => new.copy(old, id, args)?,
    })
}

fn simplify_transpose(new: &mut Graph, name: &str, t: &Transpose, src: ValueId) -> Result<ValueId, QuantizeError> {
    if t.keeps_order(&new.ty(src).shape) {
        let shape: Vec<usize> = t.perm.iter().map(|&a| new.ty(src).shape[a]).collect();
        return simplify_reshape(new, name, &shape, src);
    }
    if let Op::Transpose(inner) = new.op(src) {
        let perm: Vec<usize> = t.perm.iter().map(|&a| inner.perm[a]).collect();
        let src = operand(new, src, 0);
        return simplify_transpose(new, name, &Transpose { perm }, src);
    }
    Ok(new.add(name, t.clone(), &[src])?)
}

fn simplify_reshape(new: &mut Graph, name: &str, shape: &[usize], src: ValueId) -> Result<ValueId, QuantizeError> {
    let src = if let Op::Reshape(_) = new.op(src) { operand(new, src, 0) } else { src };
    if new.ty(src).shape == shape {
        return Ok(src);
    }
    Ok(new.add(name, Reshape { shape: shape.to_vec() }, &[src])?)
}

/// Neighbours that one convolution can stand for.
fn merge(old: &Graph, new: &mut Graph, id: ValueId, args: &[ValueId]) -> Result<ValueId, QuantizeError> {
    let Op::Conv(conv) = old.op(id) else {
        return Ok(new.copy(old, id, args)?);
    };
    let old_src = old.args(id)[0];
    // A source that other nodes need too is computed anyway; merging would only repeat its work.
    let sole = old.users(old_src).len() == 1 && !old.is_output(old_src);
    if sole
        && let Some(scale) = channel_affine(new, conv, args)?
        && let Op::Conv(before) = new.op(args[0]).clone()
        && let Some(parts) = parts_of(new, &new.args(args[0]))?
    {
        return scale_outputs(new, old.name(old_src), before, parts, &scale);
    }
    if let Op::Pad(pad) = new.op(args[0])
        && pad.value.get() == 0.0
        && new.ty(args[0]).is_float()
    {
        let mut padded = conv.clone();
        padded.pad.iter_mut().zip(pad.pad).for_each(|(total, p)| *total += p);
        let mut args = args.to_vec();
        args[0] = operand(new, args[0], 0);
        return Ok(new.add(old.name(id), padded, &args)?);
    }
    if let Op::Conv(before) = new.op(args[0]).clone()
        && absorbed_by_users(old, old_src)?
        && let Some(scale) = channel_affine(new, &before, &new.args(args[0]))?
        // The source may have taken up another affine step since, and with it a shift.
        && (conv.pad == [0; 4] || scale.shift.iter().all(|&s| s == 0.0))
        && let Some(parts) = parts_of(new, args)?
    {
        let src = operand(new, args[0], 0);
        return scale_inputs(new, old.name(id), conv, src, parts, &scale);
    }
    Ok(new.copy(old, id, args)?)
}

/// `dst[c] = factor[c] * src[c] + shift[c]`.
struct ChannelAffine {
    factor: Vec<f32>,
    shift: Vec<f32>,
}

/// Weights and bias of a convolution whose both are constant.
struct Parts {
    src: ValueId,
    wei: Vec<f32>,
    wei_shape: Vec<usize>,
    bias: Vec<f32>,
}

/// The affine map a convolution stands for, if it treats every channel and pixel by itself.
fn channel_affine(graph: &Graph, conv: &Conv, args: &[ValueId]) -> Result<Option<ChannelAffine>, QuantizeError> {
    let Some(parts) = parts_of(graph, args)? else {
        return Ok(None);
    };
    let channels = graph.ty(args[0]).shape[3];
    let pointwise = conv.stride == [1, 1] && conv.pad == [0; 4] && parts.wei_shape == [channels, 1, 1, 1];
    let depthwise = conv.groups == channels;
    Ok((pointwise && depthwise).then_some(ChannelAffine { factor: parts.wei, shift: parts.bias }))
}

/// Whether every user of the affine convolution `id` is a convolution that can take it over exactly:
/// one that reads no padding, or any if nothing is shifted. (The padding of the user is zeros after
/// the shift, but would be zeros before it.)
fn absorbed_by_users(graph: &Graph, id: ValueId) -> Result<bool, QuantizeError> {
    let Op::Conv(conv) = graph.op(id) else {
        return Ok(false);
    };
    let Some(affine) = channel_affine(graph, conv, &graph.args(id))? else {
        return Ok(false);
    };
    let no_shift = affine.shift.iter().all(|&s| s == 0.0);
    let mut all = !graph.is_output(id);
    for user in graph.users(id) {
        all &= match graph.op(user) {
            Op::Conv(c) => (c.pad == [0; 4] || no_shift) && parts_of(graph, &graph.args(user))?.is_some(),
            _ => false,
        };
    }
    Ok(all)
}

fn scale_outputs(
    new: &mut Graph,
    name: &str,
    conv: Conv,
    parts: Parts,
    affine: &ChannelAffine,
) -> Result<ValueId, QuantizeError> {
    let row = parts.wei.len() / affine.factor.len();
    let scaled = |(i, &w): (usize, &f32)| (f64::from(w) * f64::from(affine.factor[i / row])) as f32;
    let wei = parts.wei.iter().enumerate().map(scaled).collect();
    let shifted =
        |(k, &b): (usize, &f32)| (f64::from(b) * f64::from(affine.factor[k]) + f64::from(affine.shift[k])) as f32;
    let bias = parts.bias.iter().enumerate().map(shifted).collect();
    rebuild_conv(new, name, conv, parts.src, parts.wei_shape, wei, bias)
}

fn scale_inputs(
    new: &mut Graph,
    name: &str,
    conv: &Conv,
    src: ValueId,
    parts: Parts,
    affine: &ChannelAffine,
) -> Result<ValueId, QuantizeError> {
    let &[k, kh, kw, group_channels] = parts.wei_shape.as_slice() else {
        return Err(QuantizeError::at(name, "conv", TypeError::new("weights are not of rank 4")));
    };
    let row = kh * kw * group_channels;
    let channel = |i: usize| i / row / (k / conv.groups) * group_channels + i % group_channels;
    let scaled = |(i, &w): (usize, &f32)| (f64::from(w) * f64::from(affine.factor[channel(i)])) as f32;
    let wei = parts.wei.iter().enumerate().map(scaled).collect();
    let mut sums: Vec<f64> = parts.bias.iter().map(|&b| f64::from(b)).collect();
    for (i, &w) in parts.wei.iter().enumerate() {
        sums[i / row] += f64::from(w) * f64::from(affine.shift[channel(i)]);
    }
    let bias = sums.into_iter().map(|b| b as f32).collect();
    rebuild_conv(new, name, conv.clone(), src, parts.wei_shape, wei, bias)
}

fn rebuild_conv(
    new: &mut Graph,
    name: &str,
    conv: Conv,
    src: ValueId,
    wei_shape: Vec<usize>,
    wei: Vec<f32>,
    bias: Vec<f32>,
) -> Result<ValueId, QuantizeError> {
    let tensor =
        |shape: Vec<usize>, data| Tensor::from_f32(shape, data).map_err(|e| QuantizeError::at(name, "conv", e));
    let bias = tensor(vec![bias.len()], bias)?;
    let wei = tensor(wei_shape, wei)?;
    let (wei, bias) = (new.constant(wei), new.constant(bias));
    Ok(new.add(name, conv, &[src, wei, bias])?)
}

/// Source, weights and bias (zeros if there is none) from the operands of a float convolution.
fn parts_of(graph: &Graph, args: &[ValueId]) -> Result<Option<Parts>, QuantizeError> {
    let [src, wei, bias @ ..] = args else {
        return Ok(None);
    };
    let floats = |id: ValueId| graph.tensor(id).and_then(|t| t.f32s().ok());
    let Some(weights) = floats(*wei) else {
        return Ok(None);
    };
    let wei_shape = graph.ty(*wei).shape.clone();
    let bias = match bias.first() {
        None => vec![0.0; wei_shape[0]],
        Some(&b) => match floats(b) {
            Some(values) => values.to_vec(),
            None => return Ok(None),
        },
    };
    Ok(Some(Parts { src: *src, wei: weights.to_vec(), wei_shape, bias }))
}

/// Operand `position` of a node that has it.
fn operand(graph: &Graph, id: ValueId, position: usize) -> ValueId {
    graph.args(id)[position]
}

#[cfg(test)]
mod tests {
    use hawqc_ir::{Graph, Op, Pad, Tensor, interp, verify};
    use proptest::prelude::*;

    use super::*;
    use crate::test_networks::{Net, padded, relative_difference, residual_network, tensor};

    fn check_same(graph: &Graph, folded: &Graph, input: &Tensor) {
        verify::check(folded).unwrap();
        let expected = interp::run(graph, std::slice::from_ref(input)).unwrap();
        let found = interp::run(folded, std::slice::from_ref(input)).unwrap();
        for (e, f) in expected.iter().zip(&found) {
            assert_eq!(e.shape(), f.shape());
            assert!(relative_difference(e, f) < 1e-5);
        }
    }

    fn count(graph: &Graph, op: &str) -> usize {
        graph.values().filter(|&id| graph.op(id).name() == op).count()
    }

    #[test]
    fn residual_network_folds() {
        let graph = residual_network(3);
        let folded = fold_batch_norm(&graph).unwrap();
        check_same(&graph, &folded, &tensor(1, &[1, 3, 12, 12]));
        assert_eq!((count(&graph, "conv"), count(&folded, "conv")), (12, 9));
        // Only the input is transposed; around the dense layer one reshape at the end is left.
        assert_eq!((count(&folded, "transpose"), count(&folded, "reshape")), (1, 1));
        assert_eq!(fold_batch_norm(&folded).unwrap(), folded);
    }

    #[test]
    fn affine_before_padding_stays_unless_it_only_scales() {
        for (shift, left) in [(0.5, 2), (0.0, 1)] {
            let mut net = Net::new(5);
            let x = net.input(&[1, 5, 5, 3]);
            let wei = net.constant(&[3, 1, 1, 1], 1.0);
            let bias = net.graph.constant(Tensor::from_f32([3], vec![shift; 3]).unwrap());
            let x = net.graph.add("norm", Conv { groups: 3, ..Conv::unit() }, &[x, wei, bias]).unwrap();
            let x = net.conv("conv", x, 4, 3, padded(1));
            net.output(x);
            let folded = fold_batch_norm(&net.graph).unwrap();
            check_same(&net.graph, &folded, &tensor(2, &[1, 5, 5, 3]));
            assert_eq!(count(&folded, "conv"), left);
        }
    }

    #[test]
    fn shift_taken_up_on_the_way_stays_before_padding() {
        let mut net = Net::new(5);
        let x = net.input(&[1, 5, 5, 3]);
        let x = net.norm("shift", x);
        let wei = net.constant(&[3, 1, 1, 1], 1.0);
        let x = net.graph.add("scale", Conv { groups: 3, ..Conv::unit() }, &[x, wei]).unwrap();
        let x = net.conv("conv", x, 4, 3, padded(1));
        net.output(x);
        let folded = fold_batch_norm(&net.graph).unwrap();
        check_same(&net.graph, &folded, &tensor(2, &[1, 5, 5, 3]));
        assert_eq!(count(&folded, "conv"), 2);
    }

    #[test]
    fn affine_is_absorbed_by_all_its_users_or_none() {
        for with_relu in [false, true] {
            let mut net = Net::new(7);
            let x = net.input(&[1, 5, 5, 6]);
            let x = net.norm("norm", x);
            let a = net.conv("a", x, 4, 3, Conv { groups: 2, ..Conv::unit() });
            let b = net.conv("b", x, 4, 3, Conv::unit());
            let y = net.add("sum", a, b);
            net.output(y);
            if with_relu {
                let relu = net.relu("relu", x);
                net.graph.output("side", relu);
            }
            let folded = fold_batch_norm(&net.graph).unwrap();
            check_same(&net.graph, &folded, &tensor(2, &[1, 5, 5, 6]));
            assert_eq!(count(&folded, "conv"), if with_relu { 3 } else { 2 });
        }
    }

    #[test]
    fn shared_convolution_keeps_its_value() {
        let mut net = Net::new(9);
        let x = net.input(&[1, 4, 4, 2]);
        let x = net.conv("conv", x, 3, 1, Conv::unit());
        let y = net.norm("norm", x);
        let y = net.add("sum", x, y);
        net.output(y);
        let folded = fold_batch_norm(&net.graph).unwrap();
        assert_eq!(folded, net.graph.swept().unwrap());
    }

    #[test]
    fn zero_border_joins_convolution_and_clamps_join() {
        let mut net = Net::new(11);
        let x = net.input(&[1, 4, 4, 2]);
        let clamp = |lo, hi| ClampReal { lo: Real::new(lo), hi: Real::new(hi) };
        let x = net.graph.add("relu", clamp(0.0, f32::INFINITY), &[x]).unwrap();
        let x = net.graph.add("limit", clamp(-1.0, 0.5), &[x]).unwrap();
        let x = net.graph.add("pad", Pad { pad: [1, 0, 2, 3], value: Real::new(0.0) }, &[x]).unwrap();
        let x = net.conv("conv", x, 3, 3, padded(1));
        net.output(x);
        let folded = fold_batch_norm(&net.graph).unwrap();
        check_same(&net.graph, &folded, &tensor(4, &[1, 4, 4, 2]));
        let ops: Vec<&Op> = folded.values().map(|id| folded.op(id)).collect();
        assert!(ops.contains(&&clamp(0.0, 0.5).into()));
        assert!(ops.iter().any(|op| matches!(op, Op::Conv(c) if c.pad == [2, 1, 3, 4])));
        assert_eq!(folded.len(), 5);
    }

    proptest! {
        #[test]
        fn chains_of_movements_keep_the_value(steps in prop::collection::vec(0usize..4, 0..8), size in 1usize..4) {
            let mut net = Net::new(1);
            let shape = [1, size, 2, 3];
            let mut x = net.input(&shape);
            for step in steps {
                let shape = net.graph.ty(x).shape.clone();
                let op: Op = match step {
                    0 => Transpose::to_nchw().into(),
                    1 => Transpose::to_nhwc().into(),
                    2 => Transpose { perm: vec![0, 2, 1, 3] }.into(),
                    _ => Reshape { shape: vec![1, shape[3], shape[1], shape[2]] }.into(),
                };
                x = net.graph.add("step", op, &[x]).unwrap();
            }
            net.output(x);
            let folded = fold_batch_norm(&net.graph).unwrap();
            prop_assert!(folded.len() <= net.graph.len());
            let input = tensor(8, &shape);
            let run = |g: &Graph| interp::run(g, std::slice::from_ref(&input)).unwrap();
            prop_assert_eq!(run(&net.graph), run(&folded));
        }
    }
}
