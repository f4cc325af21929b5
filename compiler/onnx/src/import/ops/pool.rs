//! Pooling, and means over space.

use hawqc_ir::{AvgPool, MaxPool, Op, Pad, Real, ValueId, Window};

use super::window;
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

pub fn max(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.value(node.name, node.input(0)?)?;
    let mut window = pool_window(cx, node, src)?;
    if node.flag("ceil_mode", false)? {
        // A maximum does not see padding, so more of it at the end changes the size only.
        let [bottom, right] = window::ceil_extension(&window, size(cx, src)?);
        window.pad[2] += bottom;
        window.pad[3] += right;
    }
    let Window { kernel, stride, pad, dilation } = window;
    Ok(Value::Run(cx.graph.add(node.name, MaxPool { kernel, stride, pad, dilation }, &[src])?))
}

pub fn average(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let mut src = cx.image(node.name, node.input(0)?)?;
    let mut window = pool_window(cx, node, src)?;
    if window.dilation != [1, 1] {
        return Err(unsupported("dilations", format!("{:?}", window.dilation), "[1, 1]", ""));
    }
    let mut count_include_pad = node.flag("count_include_pad", false)?;
    if node.flag("ceil_mode", false)? {
        let extension = window::ceil_extension(&window, size(cx, src)?);
        if extension != [0, 0] {
            if count_include_pad && window.pad != [0; 4] {
                // The declared padding counts, the extension does not: make the former part of the image.
                src = cx.graph.add(node.name, Pad { pad: window.pad, value: Real::new(0.0) }, &[src])?;
                window.pad = [0; 4];
            }
            count_include_pad = false;
            window.pad[2] += extension[0];
            window.pad[3] += extension[1];
        }
    }
    let op = AvgPool { kernel: window.kernel, stride: window.stride, pad: window.pad, count_include_pad };
    Ok(Value::Run(cx.graph.add(node.name, op, &[src])?))
}

pub fn global_average(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.image(node.name, node.input(0)?)?;
    Ok(Value::Run(mean(cx, node, src)?))
}

pub fn global_max(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.image(node.name, node.input(0)?)?;
    let op = MaxPool { kernel: size(cx, src)?, stride: [1, 1], pad: [0; 4], dilation: [1, 1] };
    Ok(Value::Run(cx.graph.add(node.name, op, &[src])?))
}

pub fn reduce_mean(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.image(node.name, node.input(0)?)?;
    let axes = node.axes(18, 1)?.unwrap_or_default();
    let mut found = axes.iter().map(|&a| axis(a, 4)).collect::<Result<Vec<_>, _>>()?;
    found.sort_unstable();
    if found != [2, 3] {
        return Err(unsupported("axes", format!("{axes:?}"), "the spatial axes [2, 3]", ""));
    }
    let kept = mean(cx, node, src)?;
    if node.flag("keepdims", true)? {
        return Ok(Value::Run(kept));
    }
    let [n, _, _, c] = cx.graph.ty(kept).nhwc()?;
    Ok(Value::Run(cx.reshape(node.name, kept, &[n, c])?))
}

/// The mean over the whole image, `[N, 1, 1, C]`.
fn mean(cx: &mut Context, node: &Node, src: ValueId) -> Result<ValueId, NodeError> {
    let op = AvgPool { kernel: size(cx, src)?, stride: [1, 1], pad: [0; 4], count_include_pad: false };
    Ok(cx.graph.add(node.name, Op::from(op), &[src])?)
}

fn size(cx: &Context, src: ValueId) -> Result<[usize; 2], NodeError> {
    let [_, h, w, _] = cx.graph.ty(src).nhwc()?;
    Ok([h, w])
}

/// The declared window. Padding must be smaller than the window, as every runtime demands.
fn pool_window(cx: &Context, node: &Node, src: ValueId) -> Result<Window, NodeError> {
    if cx.graph.ty(src).rank() != 4 {
        let dims = format!("{:?}", cx.run_dims(src));
        return Err(unsupported("rank of input 0", dims, "rank 4 [N,C,H,W]", ""));
    }
    let kernel =
        window::pair(node, "kernel_shape", 1)?.ok_or_else(|| invalid("attribute `kernel_shape` is missing"))?;
    let window = window::window(node, size(cx, src)?, kernel)?;
    let extent = [0, 1].map(|a| (kernel[a] - 1) * window.dilation[a] + 1);
    if window.pad.iter().enumerate().any(|(i, &p)| p >= extent[i % 2]) {
        return Err(invalid(format!("attribute `pads` {:?} reaches beyond the window {kernel:?}", window.pad)));
    }
    Ok(window)
}
