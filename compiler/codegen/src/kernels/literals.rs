//! Vector constants that code loads where it uses them.
//!
//! The compiler hoists a constant written in the code out of every loop, where it holds a register
//! all the time; a convolution's inner loop needs them all. Literals are therefore collected in a
//! table when a kernel is lowered, and loaded by address. One that is not in the table still works,
//! as a constant in the code.

use cranelift_codegen::ir::{Value, types};

use super::emit::Code;

/// Distinct 16-byte constants in the order of their table.
#[derive(Clone, Debug, Default)]
pub struct Literals {
    entries: Vec<[u8; 16]>,
}

/// The same with the address of the table.
#[derive(Clone, Copy)]
pub struct LiteralTable<'a> {
    pub literals: &'a Literals,
    pub address: Value,
}

fn repeated<const N: usize>(lane: [u8; N]) -> [u8; 16] {
    std::array::from_fn(|i| lane[i % N])
}

impl Literals {
    fn add(&mut self, entry: [u8; 16]) {
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
    }

    /// Adds four times `value`.
    pub fn add_i32(&mut self, value: i32) {
        self.add(repeated(value.to_le_bytes()));
    }

    /// Adds two times `value`.
    pub fn add_i64(&mut self, value: i64) {
        self.add(repeated(value.to_le_bytes()));
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.entries.concat()
    }
}

impl LiteralTable<'_> {
    fn position(&self, entry: [u8; 16]) -> Option<usize> {
        self.literals.entries.iter().position(|e| *e == entry)
    }

    /// Four times `value`.
    pub fn i32(&self, c: &mut Code, value: i32) -> Value {
        match self.position(repeated(value.to_le_bytes())) {
            Some(at) => c.load(types::I32X4, self.address, 16 * at),
            None => c.splat_int(types::I32X4, value.into()),
        }
    }

    /// Two times `value`.
    pub fn i64(&self, c: &mut Code, value: i64) -> Value {
        match self.position(repeated(value.to_le_bytes())) {
            Some(at) => c.load(types::I64X2, self.address, 16 * at),
            None => c.splat_int(types::I64X2, value),
        }
    }
}
