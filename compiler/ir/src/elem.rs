//! Element types.

use std::fmt;
use std::str::FromStr;

use crate::types::Range;

/// The element type of a tensor.
///
/// `U4` and `I4` occupy one byte per value in memory. Only the packed weight constants inside
/// kernels hold two 4-bit values per byte; that layout belongs to the kernel, not to the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Elem {
    U4,
    I4,
    U8,
    I8,
    I16,
    I32,
    F32,
}

impl Elem {
    pub const ALL: [Elem; 7] = [Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::F32];

    pub fn is_float(self) -> bool {
        self == Elem::F32
    }

    /// Width of the value in bits.
    pub fn bits(self) -> u32 {
        match self {
            Elem::U4 | Elem::I4 => 4,
            Elem::U8 | Elem::I8 => 8,
            Elem::I16 => 16,
            Elem::I32 | Elem::F32 => 32,
        }
    }

    /// Bytes one value occupies in memory.
    pub fn bytes(self) -> usize {
        (self.bits() as usize).div_ceil(8)
    }

    pub fn is_signed(self) -> bool {
        !matches!(self, Elem::U4 | Elem::U8)
    }

    /// All values the type can hold; `None` for floats.
    pub fn range(self) -> Option<Range> {
        match self {
            Elem::F32 => None,
            e if e.is_signed() => Some(Range::new(-(1i64 << (e.bits() - 1)), (1i64 << (e.bits() - 1)) - 1)),
            e => Some(Range::new(0, (1i64 << e.bits()) - 1)),
        }
    }

    /// The narrowest integer element that holds `range`, or `None` if even `I32` cannot.
    pub fn holding(range: Range) -> Option<Elem> {
        [Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16, Elem::I32]
            .into_iter()
            .find(|e| e.range().is_some_and(|r| r.contains(range)))
    }

    pub fn name(self) -> &'static str {
        match self {
            Elem::U4 => "u4",
            Elem::I4 => "i4",
            Elem::U8 => "u8",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::F32 => "f32",
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Elem {
    type Err = String;
    fn from_str(s: &str) -> Result<Elem, String> {
        Elem::ALL.into_iter().find(|e| e.name() == s).ok_or_else(|| format!("`{s}` is not an element type"))
    }
}
