//! Element types of tensors as they lie in memory.
//!
//! Four-bit activations occupy one byte each, so in memory they are `u8` or `i8`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Element type of a tensor in memory. The serialised names are those of [`Elem::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elem {
    F32,
    U8,
    I8,
    I16,
    I32,
    I64,
}

impl Elem {
    /// Every element type.
    pub const ALL: [Elem; 6] = [Elem::F32, Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::I64];

    /// Bytes of one element, which is also its alignment.
    pub const fn size_bytes(self) -> usize {
        match self {
            Elem::U8 | Elem::I8 => 1,
            Elem::I16 => 2,
            Elem::F32 | Elem::I32 => 4,
            Elem::I64 => 8,
        }
    }

    /// The name used in manifests and messages, e.g. `"f32"`.
    pub const fn name(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::U8 => "u8",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Number of elements of `shape`, or `None` when a tensor of that shape and type cannot exist in
/// memory (more than `isize::MAX` bytes). Rank 0 has one element.
pub fn checked_elements(elem: Elem, shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let elements = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
    let bytes = elements.checked_mul(elem.size_bytes())?;
    isize::try_from(bytes).ok().map(|_| elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serialised_name_is_the_name() {
        for elem in Elem::ALL {
            let text = serde_json::to_string(&elem).unwrap();
            assert_eq!(text, format!("\"{}\"", elem.name()));
            assert_eq!(serde_json::from_str::<Elem>(&text).unwrap(), elem);
        }
    }

    #[test]
    fn absurd_shapes_have_no_size() {
        assert_eq!(checked_elements(Elem::F32, &[]), Some(1));
        assert_eq!(checked_elements(Elem::F32, &[2, 3]), Some(6));
        assert_eq!(checked_elements(Elem::F32, &[usize::MAX, 2, 0]), Some(0));
        assert_eq!(checked_elements(Elem::U8, &[1 << 40, 1 << 40]), None);
        assert_eq!(checked_elements(Elem::I64, &[1 << 61]), None);
    }
}
