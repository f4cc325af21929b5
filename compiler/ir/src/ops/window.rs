//! Sliding windows over the two spatial axes, shared by convolution and pooling.

use crate::error::TypeError;

/// Padding `[top, left, bottom, right]`, in pixels (the order of ONNX).
pub type Padding = [usize; 4];

/// The geometry of a window sliding over `[H, W]`. Pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub pad: Padding,
    pub dilation: [usize; 2],
}

/// Bound on every geometric attribute, so that positions never overflow.
const MAX_ATTRIBUTE: usize = 1 << 20;

impl Window {
    /// Rows and columns of the result for an input of `size` = `[H, W]`.
    pub fn output_size(&self, size: [usize; 2]) -> Result<[usize; 2], TypeError> {
        let all = [self.kernel, self.stride, self.dilation].concat();
        if all.iter().any(|&v| v == 0 || v > MAX_ATTRIBUTE) || self.pad.iter().any(|&v| v > MAX_ATTRIBUTE) {
            return Err(TypeError::new(format!("illegal window {self:?}")));
        }
        let mut out = [0; 2];
        for axis in 0..2 {
            let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = size[axis] + self.pad[axis] + self.pad[axis + 2];
            if padded < extent {
                return Err(TypeError::new(format!("a window of {extent} does not fit into {padded} padded pixels")));
            }
            out[axis] = (padded - extent) / self.stride[axis] + 1;
        }
        Ok(out)
    }

    /// The input coordinate that tap `tap` of output position `out` reads along `axis`
    /// (0 vertical, 1 horizontal); `None` in the padding.
    pub fn source(&self, axis: usize, out: usize, tap: usize, size: usize) -> Option<usize> {
        (out * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.pad[axis]).filter(|&p| p < size)
    }

    /// Whether every window contains at least one pixel that is not padding.
    pub fn never_empty(&self, size: [usize; 2]) -> Result<bool, TypeError> {
        let out = self.output_size(size)?;
        Ok((0..2).all(|axis| {
            (0..out[axis]).all(|o| (0..self.kernel[axis]).any(|t| self.source(axis, o, t, size[axis]).is_some()))
        }))
    }

    /// Calls `visit(tap_y, tap_x, y, x)` for every tap of output `(oy, ox)` that lies in the image.
    pub fn for_each_tap(
        &self,
        size: [usize; 2],
        (oy, ox): (usize, usize),
        mut visit: impl FnMut(usize, usize, usize, usize),
    ) {
        for ky in 0..self.kernel[0] {
            let Some(y) = self.source(0, oy, ky, size[0]) else {
                continue;
            };
            for kx in 0..self.kernel[1] {
                if let Some(x) = self.source(1, ox, kx, size[1]) {
                    visit(ky, kx, y, x);
                }
            }
        }
    }
}
