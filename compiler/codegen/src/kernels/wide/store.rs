//! Results in registers, stored narrowed with saturation.
//!
//! Bytes are packed, several vectors into one, and limited once they are packed; see [`WideEpilogue::packs`].

use hawqc_ir::Elem;

use super::epilogue::{Pointers, WideEpilogue, pack_orders_at};
use crate::asm::{Asm, Gpr, Mem, V};

/// Stores the results of an epilogue for one pixel, narrowed with saturation.
pub fn store(asm: &mut Asm, dst: Elem, to: Mem, mut vectors: &[V], (epilogue, literals): (&WideEpilogue, Gpr)) {
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
    pub dst: Elem,
    /// The first pixel's.
    pub to: Gpr,
    /// From one pixel to the next.
    pub channels: usize,
    pub literals: Gpr,
}

impl Pixels {
    fn at(&self, pixel: usize) -> Mem {
        Mem::at(self.to, pixel * self.channels * self.dst.bytes())
    }

    /// The epilogue on the sums of a vector of channels of some pixels, given by number, and their results stored.
    pub fn finish(&self, asm: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, sums: &[(usize, V)]) {
        let most = if self.dst.bytes() == 1 { 4 } else { 1 };
        for some in sums.chunks(most) {
            if let &[(pixel, sum)] = some {
                let results = epilogue.emit(asm, pointers, pixel, &[sum]);
                store(asm, self.dst, self.at(pixel), &results, (epilogue, self.literals));
                continue;
            }
            let result = |&(pixel, sum): &(usize, V)| epilogue.emit_packed(asm, pointers, pixel, sum);
            let results: Vec<V> = some.iter().map(result).collect();
            let to: Vec<Mem> = some.iter().map(|&(pixel, _)| self.at(pixel)).collect();
            let limits = epilogue.byte_limits_at(asm.isa, self.literals);
            let order = pack_orders_at(asm.isa, self.literals).map(|[order, _]| order);
            asm.store_bytes_apart(&to, &results, self.dst.is_signed(), order, limits);
        }
    }
}
