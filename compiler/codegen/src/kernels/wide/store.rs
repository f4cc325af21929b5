//! Results in registers, stored narrowed with saturation.
//!
//! Bytes are packed, several vectors into one, and limited once they are packed; see [`WideEpilogue::packs`].

use hawqc_ir::Elem;

use super::epilogue::{Pointers, WideEpilogue, pack_orders_at};
use crate::asm::{Asm, Gpr, Mem, V};
use crate::kernels::Dst;

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
    pub dst: Dst,
    /// The first pixel's.
    pub to: Gpr,
    pub literals: Gpr,
}

impl Pixels {
    pub fn at(&self, pixel: usize) -> Mem {
        Mem::at(self.to, pixel * self.dst.pixel_bytes())
    }

    /// The epilogue on the sums of a vector of channels of some pixels, given by number, and their results stored.
    pub fn finish(&self, asm: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, sums: &[(usize, V)]) {
        let (fours, rest) = if self.dst.elem.bytes() == 1 { sums.as_chunks::<4>() } else { (&[][..], sums) };
        for four in fours {
            let results = four.map(|(pixel, sum)| epilogue.emit_packed(asm, pointers, pixel, sum));
            let to = four.map(|(pixel, _)| self.at(pixel));
            let limits = epilogue.byte_limits_at(asm.isa, self.literals);
            let order = pack_orders_at(asm.isa, self.literals).map(|[order, _]| order);
            asm.store_bytes_apart(to, results, self.dst.elem.is_signed(), order, limits);
        }
        for &(pixel, sum) in rest {
            let results = epilogue.emit(asm, pointers, pixel, &[sum]);
            store(asm, self.dst.elem, self.at(pixel), &results, (epilogue, self.literals));
        }
    }
}
