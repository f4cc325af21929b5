//! Results in registers, stored narrowed with saturation.
//!
//! Bytes are packed, several vectors into one, and limited once they are packed; see [`WideEpilogue::packs`].

use hawqc_ir::Elem;

use super::epilogue::{Pointers, Site, WideEpilogue, pack_orders_at};
use crate::asm::{Asm, Gpr, Mem, V};
use crate::kernels::Dst;

/// Stores the results of an epilogue for one pixel, narrowed with saturation.
fn store(asm: &mut Asm, dst: Elem, to: Mem, mut vectors: &[V], (epilogue, literals): (&WideEpilogue, Gpr)) {
    let lanes = asm.isa.lanes();
    let orders = pack_orders_at(asm.isa, literals);
    if let (true, Some([order, _])) = (epilogue.packs(asm.isa, vectors.len()), orders) {
        let limits = epilogue.byte_limits_at(asm.isa, literals);
        return asm.store_bytes_packed(to, vectors, dst.is_signed(), order, limits);
    }
    let mut to = to;
    while !vectors.is_empty() {
        let stored = match (dst.bytes(), vectors, orders) {
            (1, &[a, b, ..], _) => {
                asm.store_bytes_pair(to, [a, b], dst.is_signed());
                2
            }
            (1, _, _) => {
                asm.store_bytes(to, vectors[0], dst.is_signed());
                1
            }
            (2, &[a, b, ..], Some([_, order])) => {
                asm.store_i16_pair(to, [a, b], order);
                2
            }
            (2, _, _) => {
                asm.store_i16(to, vectors[0]);
                1
            }
            _ => {
                asm.store(to, vectors[0]);
                1
            }
        };
        vectors = &vectors[stored..];
        to.disp += (stored * lanes * dst.bytes()) as i32;
    }
}

/// Where the results of consecutive pixels go.
#[derive(Clone, Copy)]
pub struct Pixels {
    pub dst: Dst,
    /// The first pixel's.
    pub to: Gpr,
    pub literals: Gpr,
}

/// Consecutive vectors of a pixel.
#[derive(Clone, Copy)]
pub struct Vectors {
    pub pixel: usize,
    pub first: usize,
    pub count: usize,
}

impl Pixels {
    /// A vector of the results of a pixel.
    pub fn at(&self, pixel: usize, vector: usize, lanes: usize) -> Mem {
        Mem::at(self.to, pixel * self.dst.pixel_bytes() + vector * lanes * self.dst.elem.bytes())
    }

    /// Where second results go, with their epilogue and its pointers. The first ones do not lie apart.
    fn second<'a>(
        &self,
        asm: &mut Asm,
        epilogue: &'a WideEpilogue,
        pointers: &Pointers,
    ) -> Option<(Pixels, &'a WideEpilogue, Pointers)> {
        let (second, pointers, to) = epilogue.second(asm, pointers, self.to)?;
        Some((Pixels { dst: Dst { elem: second.elem(), ..self.dst }, to, ..*self }, second, pointers))
    }

    /// The epilogue on the sums of some vectors of a pixel, and their results stored. `sum` gives the sum of a vector, if the
    /// epilogue begins with one.
    pub fn finish_pixel(
        &self,
        asm: &mut Asm,
        epilogue: &WideEpilogue,
        pointers: &Pointers,
        vectors: Vectors,
        sum: impl Fn(&mut Asm, usize) -> Option<V>,
    ) {
        let Vectors { pixel, first, count } = vectors;
        let packed = epilogue.packs(asm.isa, count);
        let result = |vector: usize| {
            let sum = sum(asm, vector);
            epilogue.emit(asm, pointers, Site { pixel, vector: first + vector, packed }, sum)
        };
        let results: Vec<V> = (0..count).map(result).collect();
        store(asm, self.dst.elem, self.at(pixel, first, asm.isa.lanes()), &results, (epilogue, self.literals));
        if let Some((pixels, second, pointers)) = self.second(asm, epilogue, pointers) {
            pixels.finish_values(asm, second, &pointers, vectors);
        }
    }

    /// The same for an epilogue that begins with operands.
    pub fn finish_values(&self, asm: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, vectors: Vectors) {
        self.finish_pixel(asm, epilogue, pointers, vectors, |_, _| None);
    }

    /// The epilogue on the sums of a vector of channels of some pixels, given by number, and their results stored.
    pub fn finish(&self, asm: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, sums: &[(usize, V)]) {
        let sums: Vec<(usize, Option<V>)> = sums.iter().map(|&(pixel, sum)| (pixel, Some(sum))).collect();
        self.finish_pixels(asm, epilogue, pointers, &sums);
    }

    fn finish_pixels(&self, asm: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, sums: &[(usize, Option<V>)]) {
        for some in sums.chunks(if self.dst.elem.bytes() == 1 { 4 } else { 1 }) {
            let packed = some.len() > 1;
            let result = |&(pixel, sum): &(usize, Option<V>)| {
                epilogue.emit(asm, pointers, Site { pixel, vector: 0, packed }, sum)
            };
            let results: Vec<V> = some.iter().map(result).collect();
            let to: Vec<Mem> = some.iter().map(|&(pixel, _)| self.at(pixel, 0, asm.isa.lanes())).collect();
            if packed {
                let limits = epilogue.byte_limits_at(asm.isa, self.literals);
                let order = pack_orders_at(asm.isa, self.literals).map(|[order, _]| order);
                asm.store_bytes_apart(&to, &results, self.dst.elem.is_signed(), order, limits);
            } else {
                store(asm, self.dst.elem, to[0], &results, (epilogue, self.literals));
            }
        }
        if let Some((pixels, second, pointers)) = self.second(asm, epilogue, pointers) {
            let again: Vec<(usize, Option<V>)> = sums.iter().map(|&(pixel, _)| (pixel, None)).collect();
            pixels.finish_pixels(asm, second, &pointers, &again);
        }
    }
}
