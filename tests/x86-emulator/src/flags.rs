//! The status flags and the arithmetic that sets them.
//!
//! `size` is the operand's size in bytes; results are cut to it. Flags that the manual leaves undefined
//! get some value.

/// The status flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub carry: bool,
    pub parity: bool,
    pub adjust: bool,
    pub zero: bool,
    pub sign: bool,
    pub overflow: bool,
}

/// The low `size` bytes.
#[inline]
pub(crate) fn cut(value: u64, size: usize) -> u64 {
    if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }
}

/// The low `size` bytes as a signed number.
#[inline]
pub(crate) fn signed(value: u64, size: usize) -> i64 {
    let unused = 64 - 8 * size as u32;
    ((value << unused) as i64) >> unused
}

impl Flags {
    /// As bits of `rflags`.
    pub fn bits(self) -> u64 {
        u64::from(self.carry)
            | u64::from(self.parity) << 2
            | u64::from(self.adjust) << 4
            | u64::from(self.zero) << 6
            | u64::from(self.sign) << 7
            | u64::from(self.overflow) << 11
    }

    pub fn from_bits(bits: u64) -> Flags {
        let bit = |n: u32| bits >> n & 1 == 1;
        Flags { carry: bit(0), parity: bit(2), adjust: bit(4), zero: bit(6), sign: bit(7), overflow: bit(11) }
    }

    /// Sign, zero and parity of a result.
    #[inline]
    pub(crate) fn of_result(&mut self, result: u64, size: usize) {
        self.zero = result == 0;
        self.sign = signed(result, size) < 0;
        self.parity = (result as u8).count_ones().is_multiple_of(2);
    }

    #[inline]
    pub(crate) fn add(&mut self, size: usize, a: u64, b: u64, carry: bool) -> u64 {
        let wide = u128::from(a) + u128::from(b) + u128::from(carry);
        let result = cut(wide as u64, size);
        self.carry = wide >> (8 * size) != 0;
        self.overflow = signed((a ^ result) & (b ^ result), size) < 0;
        self.adjust = (a ^ b ^ result) & 16 != 0;
        self.of_result(result, size);
        result
    }

    #[inline]
    pub(crate) fn sub(&mut self, size: usize, a: u64, b: u64, borrow: bool) -> u64 {
        let result = cut(a.wrapping_sub(b).wrapping_sub(borrow.into()), size);
        self.carry = u128::from(a) < u128::from(b) + u128::from(borrow);
        self.overflow = signed((a ^ b) & (a ^ result), size) < 0;
        self.adjust = (a ^ b ^ result) & 16 != 0;
        self.of_result(result, size);
        result
    }

    #[inline]
    pub(crate) fn logic(&mut self, size: usize, result: u64) -> u64 {
        (self.carry, self.overflow, self.adjust) = (false, false, false);
        self.of_result(result, size);
        result
    }
}
