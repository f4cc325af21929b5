//! Patches of a convolution, gathered into scratch memory.
//!
//! In: the source and a range of output pixels. Out: for every pixel and group the values under its
//! window, `[KH][KW][C/groups]` without gaps, each patch padded to a multiple of four values. What
//! the padding of a patch holds does not matter: its weights are zero.

use cranelift_codegen::ir::Value;

use super::conv::Geometry;
use super::emit::Code;
use super::products::STEP;

pub(super) struct Gather {
    geometry: Geometry,
}

impl Gather {
    pub fn new(geometry: Geometry) -> Gather {
        Gather { geometry }
    }

    /// Values of a patch.
    pub fn depth(&self) -> usize {
        (self.geometry.taps() * self.geometry.group_in).next_multiple_of(STEP)
    }

    fn patch_bytes(&self) -> usize {
        self.depth() * self.geometry.src.bytes()
    }

    /// Bytes of all patches of a pixel.
    pub fn pixel_bytes(&self) -> usize {
        self.patch_bytes() * self.geometry.groups
    }

    /// Values the row of padding must have.
    pub fn pad_values(&self) -> usize {
        self.geometry.window.kernel[1] * self.geometry.group_in
    }

    /// The patch of a pixel, where `scratch` holds those from `first_pixel` on.
    pub fn patch(&self, c: &mut Code, scratch: Value, pixel: Value, first_pixel: Value, group: Value) -> Value {
        let index = c.sub(pixel, first_pixel);
        let patches = c.offset(scratch, index, self.pixel_bytes());
        c.offset(patches, group, self.patch_bytes())
    }

    /// Gathers the patches of the pixels in `first..end`.
    pub fn emit(&self, c: &mut Code, src: Value, pad: Value, scratch: Value, (first, end): (Value, Value)) {
        let one = c.int(1);
        c.range(first, end, one, |c, pixel| {
            let (y0, x0, image) = self.geometry.origin(c, src, pixel);
            c.count(self.geometry.groups, 1, |c, group| {
                let patch = self.patch(c, scratch, pixel, first, group);
                let base = c.offset(image, group, self.geometry.group_in * self.geometry.src.bytes());
                self.emit_patch(c, (y0, x0, base), pad, patch);
            });
        });
    }

    fn emit_patch(&self, c: &mut Code, (y0, x0, base): (Value, Value, Value), pad: Value, patch: Value) {
        let geometry = &self.geometry;
        let ([kh, kw], [h, w]) = (geometry.window.kernel, geometry.size);
        let tap_bytes = geometry.group_in * geometry.src.bytes();
        c.count(kh, 1, |c, ky| {
            let y = c.offset(y0, ky, geometry.window.dilation[0]);
            let row_inside = c.below(y, h);
            let row = c.offset(base, y, w * geometry.pixel_bytes());
            let to = c.offset(patch, ky, kw * tap_bytes);
            let each_tap = &|c: &mut Code| {
                c.count(kw, 1, |c, kx| {
                    let x = c.offset(x0, kx, geometry.window.dilation[1]);
                    let column_inside = c.below(x, w);
                    let inside = c.and(row_inside, column_inside);
                    let from = c.offset(row, x, geometry.pixel_bytes());
                    let from = c.select(inside, from, pad);
                    let to = c.offset(to, kx, tap_bytes);
                    c.copy(to, from, tap_bytes);
                });
            };
            let contiguous = geometry.groups == 1 && geometry.window.dilation[1] == 1;
            if !contiguous || kw > w {
                return each_tap(c);
            }
            // All taps of the row lie side by side where none is in the left or right padding.
            let all_inside = c.below(x0, w - kw + 1);
            c.if_else(
                all_inside,
                |c| {
                    let from = c.offset(row, x0, geometry.pixel_bytes());
                    let from = c.select(row_inside, from, pad);
                    c.copy(to, from, kw * tap_bytes);
                },
                each_tap,
            );
        });
    }
}
