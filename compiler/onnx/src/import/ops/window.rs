//! Geometry of sliding windows, shared by convolution and pooling.

use hawqc_ir::{Padding, Window};

use crate::import::node::{Node, NodeError, invalid, unsupported};

/// Largest kernel, stride, dilation or padding; far beyond any network, and small enough that checking a window is quick.
const MAX_ATTRIBUTE: i64 = 4096;
/// Largest height and width of an image under a window.
const MAX_SIDE: usize = 1 << 20;

/// Two values, vertical first, of at least `min`.
pub fn pair(node: &Node, name: &str, min: i64) -> Result<Option<[usize; 2]>, NodeError> {
    let Some(values) = node.ints(name)? else { return Ok(None) };
    let &[v, h] = values else {
        return Err(unsupported(name, format!("{values:?}"), "two values, as for images", ""));
    };
    let check = |v: i64| match usize::try_from(v) {
        Ok(u) if v >= min && v <= MAX_ATTRIBUTE => Ok(u),
        _ => Err(invalid(format!("attribute `{name}` is {values:?}; each value must be {min} to {MAX_ATTRIBUTE}"))),
    };
    Ok(Some([check(v)?, check(h)?]))
}

/// Stride, padding and dilation of a node whose window has the size `kernel`, over an image of `size`. With
/// `auto_pad` the padding follows from the size.
pub fn window(node: &Node, size: [usize; 2], kernel: [usize; 2]) -> Result<Window, NodeError> {
    if size.iter().any(|&s| s > MAX_SIDE) {
        return Err(invalid(format!("an image of {size:?} is larger than {MAX_SIDE} along a side")));
    }
    if kernel.iter().any(|&k| k == 0 || k > MAX_SIDE) {
        return Err(invalid(format!("a window of {kernel:?}")));
    }
    let stride = pair(node, "strides", 1)?.unwrap_or([1, 1]);
    let dilation = pair(node, "dilations", 1)?.unwrap_or([1, 1]);
    let pad = match node.string("auto_pad")?.unwrap_or("NOTSET") {
        "NOTSET" => explicit(node)?,
        "VALID" => [0; 4],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => same(mode == "SAME_UPPER", size, kernel, stride, dilation),
        other => return Err(invalid(format!("attribute `auto_pad` is `{other}`"))),
    };
    Ok(Window { kernel, stride, pad, dilation })
}

fn explicit(node: &Node) -> Result<Padding, NodeError> {
    let Some(values) = node.ints("pads")? else { return Ok([0; 4]) };
    let padding: Option<Vec<usize>> =
        values.iter().map(|&v| usize::try_from(v).ok().filter(|_| v <= MAX_ATTRIBUTE)).collect();
    match padding.as_deref() {
        Some(&[top, left, bottom, right]) => Ok([top, left, bottom, right]),
        Some(_) => Err(unsupported("pads", format!("{values:?}"), "four values, as for images", "")),
        None => Err(unsupported(
            "pads",
            format!("{values:?}"),
            "values from 0 to 4096",
            "crop with a smaller kernel instead",
        )),
    }
}

/// Padding after which the output has ceil(size / stride) positions; an odd pixel goes to the end if `upper`.
fn same(upper: bool, size: [usize; 2], kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> Padding {
    let [(top, bottom), (left, right)] = [0, 1].map(|axis| {
        let out = size[axis].div_ceil(stride[axis]);
        let extent = (kernel[axis] - 1) * dilation[axis] + 1;
        let total = ((out - 1) * stride[axis] + extent).saturating_sub(size[axis]);
        let (small, large) = (total / 2, total - total / 2);
        if upper { (small, large) } else { (large, small) }
    });
    [top, left, bottom, right]
}

/// Rows and columns to add at the end so that rounding the output size down gives what `ceil_mode` gives: the size
/// rounded up, without a last window that would start in the end padding.
pub fn ceil_extension(window: &Window, size: [usize; 2]) -> [usize; 2] {
    [0, 1].map(|axis| {
        let (stride, begin, end) = (window.stride[axis], window.pad[axis], window.pad[axis + 2]);
        let extent = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
        let padded = size[axis] + begin + end;
        let Some(span) = padded.checked_sub(extent) else { return 0 };
        let last_start = span.div_ceil(stride) * stride;
        if last_start >= size[axis] + begin { 0 } else { (last_start + extent).saturating_sub(padded) }
    })
}
