//! Vector registers as lanes, and the way from operands to lanes and back: broadcast, write masks and
//! what becomes of the rest of the destination. Every packed instruction is a lane function applied
//! by one of the helpers here, whatever its encoding.

use crate::decode::{Inst, Operand};
use crate::fault::{Done, FaultKind};
use crate::machine::Machine;

/// A vector register of 512 bits; the shorter ones are its low bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Vector(pub [u8; 64]);

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.rchunks(8).try_for_each(|chunk| {
            f.write_str(" ")?;
            chunk.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
        })
    }
}

impl Vector {
    pub const ZERO: Vector = Vector([0; 64]);

    pub fn filled(byte: u8) -> Vector {
        Vector([byte; 64])
    }
}

/// An element of a vector.
pub(crate) trait Lane: Copy {
    const BYTES: usize;
    fn get(vector: &Vector, lane: usize) -> Self;
    fn set(self, vector: &mut Vector, lane: usize);
}

macro_rules! lanes {
    ($($type:ty)*) => { $(
        impl Lane for $type {
            const BYTES: usize = size_of::<$type>();
            #[inline(always)]
            fn get(vector: &Vector, lane: usize) -> $type {
                <$type>::from_le_bytes(vector.0.as_chunks().0[lane])
            }
            #[inline(always)]
            fn set(self, vector: &mut Vector, lane: usize) {
                vector.0.as_chunks_mut().0[lane] = self.to_le_bytes();
            }
        }
    )* };
}

lanes!(u8 u16 u32 u64 u128 i8 i16 i32 i64 f32 f64);

impl Machine {
    /// The write mask, all ones without one.
    #[inline]
    pub(crate) fn write_mask(&self, i: &Inst) -> u64 {
        if i.mask == 0 { u64::MAX } else { self.masks[i.mask as usize] }
    }

    /// Operand `k` as a vector; zero behind a shorter operand. From memory, elements of `element`
    /// bytes that the write mask leaves out are not read (0: all are read).
    #[inline]
    pub(crate) fn source(&self, i: &Inst, k: usize, element: usize) -> Done<Vector> {
        match i.operands[k] {
            Operand::Vector(number) => Ok(self.vectors[number as usize]),
            Operand::Memory => self.source_memory(i, element),
            Operand::General { number, .. } => {
                let mut out = Vector::ZERO;
                self.general[number as usize].set(&mut out, 0);
                Ok(out)
            }
            _ => Err(FaultKind::Unsupported),
        }
    }

    fn source_memory(&self, i: &Inst, element: usize) -> Done<Vector> {
        let address = self.address(i);
        if !address.is_multiple_of(i.align as u64) {
            return Err(FaultKind::Misaligned { address, bytes: i.align });
        }
        let mut out = Vector::ZERO;
        let bytes = i.memory_bytes;
        if bytes > 64 {
            return Err(FaultKind::Unsupported);
        }
        let mask = self.write_mask(i);
        if i.broadcast {
            if element != 0 && mask & ones(i.bytes / element) == 0 {
                return Ok(out);
            }
            self.memory.read_into(address, &mut out.0[..bytes])?;
            for at in (bytes..i.bytes).step_by(bytes) {
                out.0.copy_within(0..bytes, at);
            }
        } else if i.mask == 0 || element == 0 {
            self.memory.read_into(address, &mut out.0[..bytes])?;
        } else {
            for lane in (0..bytes / element).filter(|lane| mask >> lane & 1 == 1) {
                let at = lane * element;
                self.memory.read_into(address.wrapping_add(at as u64), &mut out.0[at..at + element])?;
            }
        }
        Ok(out)
    }

    /// Writes the whole vector length to the destination, under the write mask per `element` bytes.
    #[inline]
    pub(crate) fn store(&mut self, i: &Inst, value: &Vector, element: usize) -> Done {
        self.store_bytes(i, value, element, i.bytes)
    }

    /// Writes the low `bytes` bytes to the destination.
    #[inline]
    pub(crate) fn store_bytes(&mut self, i: &Inst, value: &Vector, element: usize, bytes: usize) -> Done {
        match i.operands[0] {
            Operand::Vector(number) => {
                let mask = self.write_mask(i);
                let register = &mut self.vectors[number as usize];
                if i.mask == 0 {
                    register.0[..bytes].copy_from_slice(&value.0[..bytes]);
                } else {
                    for lane in 0..bytes / element {
                        let at = lane * element..(lane + 1) * element;
                        if mask >> lane & 1 == 1 {
                            register.0[at.clone()].copy_from_slice(&value.0[at]);
                        } else if i.zeroing {
                            register.0[at].fill(0);
                        }
                    }
                }
                if i.clears_upper {
                    register.0[bytes..].fill(0);
                }
                Ok(())
            }
            Operand::Memory => self.store_memory(i, value, element, bytes),
            _ => Err(FaultKind::Unsupported),
        }
    }

    fn store_memory(&mut self, i: &Inst, value: &Vector, element: usize, bytes: usize) -> Done {
        let address = self.address(i);
        if !address.is_multiple_of(i.align as u64) {
            return Err(FaultKind::Misaligned { address, bytes: i.align });
        }
        if i.mask == 0 {
            return self.memory.write(address, &value.0[..bytes]);
        }
        let mask = self.write_mask(i);
        for lane in (0..bytes / element).filter(|lane| mask >> lane & 1 == 1) {
            let at = lane * element;
            self.memory.write(address.wrapping_add(at as u64), &value.0[at..at + element])?;
        }
        Ok(())
    }
}

/// `n` low ones.
pub(crate) fn ones(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// `f` of each lane of the second operand.
#[inline]
pub(crate) fn map1<S: Lane, D: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(S) -> D) -> Done {
    let a = m.source(i, 1, S::BYTES)?;
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / S::BYTES {
        f(S::get(&a, lane)).set(&mut out, lane);
    }
    m.store(i, &out, S::BYTES)
}

/// `f` of corresponding lanes of the second and third operand.
#[inline]
pub(crate) fn map2<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, T) -> T) -> Done {
    let a = m.source(i, 1, T::BYTES)?;
    let b = m.source(i, 2, T::BYTES)?;
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / T::BYTES {
        f(T::get(&a, lane), T::get(&b, lane)).set(&mut out, lane);
    }
    m.store(i, &out, T::BYTES)
}

/// `f` of corresponding lanes of the destination and of the second and third operand.
#[inline]
pub(crate) fn map3<T: Lane>(m: &mut Machine, i: &Inst, f: impl Fn(T, T, T) -> T) -> Done {
    let acc = m.source(i, 0, T::BYTES)?;
    let a = m.source(i, 1, T::BYTES)?;
    let b = m.source(i, 2, T::BYTES)?;
    let mut out = Vector::ZERO;
    for lane in 0..i.bytes / T::BYTES {
        f(T::get(&acc, lane), T::get(&a, lane), T::get(&b, lane)).set(&mut out, lane);
    }
    m.store(i, &out, T::BYTES)
}

/// For each wide lane the sum of `f` of the narrow lanes in it, beginning with `start` of the
/// destination's wide lane; `finish` brings the sum to the width of the lane.
#[inline]
pub(crate) fn sums<A: Lane, B: Lane, D: Lane>(
    m: &mut Machine,
    i: &Inst,
    start: impl Fn(D) -> i64,
    f: impl Fn(A, B) -> i64,
    finish: impl Fn(i64) -> D,
) -> Done {
    let acc = m.source(i, 0, D::BYTES)?;
    let a = m.source(i, 1, D::BYTES)?;
    let b = m.source(i, 2, D::BYTES)?;
    let mut out = Vector::ZERO;
    let parts = D::BYTES / A::BYTES;
    for lane in 0..i.bytes / D::BYTES {
        let mut sum = start(D::get(&acc, lane));
        for part in lane * parts..(lane + 1) * parts {
            sum += f(A::get(&a, part), B::get(&b, part));
        }
        finish(sum).set(&mut out, lane);
    }
    m.store(i, &out, D::BYTES)
}

/// Each lane of the result from the lanes of the second operand followed by those of the third:
/// `pick(lane, lanes of one operand)`, none for zero. Masked per `element` bytes.
#[inline]
pub(crate) fn choose2<T: Lane>(
    m: &mut Machine,
    i: &Inst,
    element: usize,
    pick: impl Fn(usize, usize) -> Option<usize>,
) -> Done {
    let a = m.source(i, 1, 0)?;
    let b = m.source(i, 2, 0)?;
    let out = chosen::<T>(&a, &b, i.bytes, pick);
    m.store(i, &out, element)
}

/// Each lane of the result from the lanes of the second operand.
#[inline]
pub(crate) fn choose1<T: Lane>(m: &mut Machine, i: &Inst, element: usize, pick: impl Fn(usize) -> usize) -> Done {
    let a = m.source(i, 1, 0)?;
    let out = chosen::<T>(&a, &a, i.bytes, |lane, _| Some(pick(lane)));
    m.store(i, &out, element)
}

#[inline]
pub(crate) fn chosen<T: Lane>(
    a: &Vector,
    b: &Vector,
    bytes: usize,
    pick: impl Fn(usize, usize) -> Option<usize>,
) -> Vector {
    let lanes = bytes / T::BYTES;
    let mut out = Vector::ZERO;
    for lane in 0..lanes {
        match pick(lane, lanes) {
            Some(from) if from < lanes => T::get(a, from).set(&mut out, lane),
            Some(from) => T::get(b, from - lanes).set(&mut out, lane),
            None => {}
        }
    }
    out
}
