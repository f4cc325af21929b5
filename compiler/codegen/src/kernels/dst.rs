//! Where the pixels of a result lie in memory, a pixel being the values along the last axis.

use cranelift_codegen::ir::Value;
use hawqc_ir::{Elem, TensorType};

use super::emit::Code;

/// See the module's documentation. The first pixel lies at the result's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dst {
    pub elem: Elem,
    /// Elements from one pixel to the next: the result's channels, or more where others lie between its pixels, which its
    /// kernel must leave as they are.
    pub pitch: usize,
}

impl Dst {
    /// A result whose pixels follow each other.
    pub fn dense(ty: &TensorType) -> Dst {
        Dst { elem: ty.elem, pitch: ty.shape.last().copied().unwrap_or(1) }
    }

    /// Bytes from one pixel to the next.
    pub fn pixel_bytes(self) -> usize {
        self.pitch * self.elem.bytes()
    }

    /// The address of a channel of a pixel.
    pub fn at(self, c: &mut Code, base: Value, pixel: Value, channel: Value) -> Value {
        let element = c.offset(channel, pixel, self.pitch);
        c.offset(base, element, self.elem.bytes())
    }

    /// Stores `lanes` values from a channel of a pixel on.
    pub fn store(self, c: &mut Code, base: Value, [pixel, channel]: [Value; 2], values: &[Value], lanes: usize) {
        let to = self.at(c, base, pixel, channel);
        c.store_chunk(self.elem, values, to, lanes);
    }
}
