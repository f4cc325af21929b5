//! Random and extreme operands.

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// A word that is random, small, extreme in some width, or made of floats.
    pub fn word(&mut self) -> u64 {
        const EXTREME: [u64; 12] = [
            0,
            u64::MAX,
            1 << 63,
            i64::MAX as u64,
            0x8000_0000_8000_0000,
            0x7fff_ffff_7fff_ffff,
            0x8000_8000_8000_8000,
            0x7fff_7fff_7fff_7fff,
            0x8080_8080_8080_8080,
            0x7f7f_7f7f_7f7f_7f7f,
            0x0001_0001_0001_0001,
            0x0101_0101_0101_0101,
        ];
        const FLOATS: [f32; 12] = [
            0.0,
            -0.0,
            1.0,
            0.5,
            -1.5,
            2.5,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MIN_POSITIVE / 3.0,
            -2_147_483_648.0,
            4_294_967_040.0,
        ];
        match self.below(8) {
            0..3 => self.next(),
            3 => self.below(70),
            4 => EXTREME[self.below(12) as usize],
            5 => (0..8).fold(0, |word, _| word << 8 | EXTREME[self.below(12) as usize] & 0xff),
            6 => {
                let float = |r: &mut Random| u64::from(FLOATS[r.below(12) as usize].to_bits());
                float(self) | float(self) << 32
            }
            _ => {
                let float = |r: &mut Random| u64::from(((r.next() as i32) as f32 / 1000.0).to_bits());
                float(self) | float(self) << 32
            }
        }
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        // Whole registers of small numbers are counts and indices.
        let small = self.below(4) == 0;
        for chunk in out.chunks_mut(8) {
            let word = if small { self.below(40) | self.below(40) << 32 } else { self.word() };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        out
    }
}
