//! Every encoding: opcodes of all maps under all prefixes, followed by operands of one shape.

use crate::operands::Random;

/// How the operand that may be in memory is encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Register,
    /// `[rbx]`
    Plain,
    /// `[rbx + 2 * rsi + disp8]`, at 8 more than a multiple of 64 if rsi is 8.
    Indexed,
}

impl Shape {
    pub const ALL: [Shape; 3] = [Shape::Register, Shape::Plain, Shape::Indexed];

    /// ModRM and what follows, up to the immediate.
    fn operand(self, reg: u8, rm: u8) -> Vec<u8> {
        match self {
            Shape::Register => vec![0xc0 | reg << 3 | rm],
            Shape::Plain => vec![reg << 3 | 3],
            Shape::Indexed => vec![0x40 | reg << 3 | 4, 0x73, if reg & 1 == 0 { 16 } else { 56 }],
        }
    }
}

/// `code`, and bytes for any immediate behind it.
fn complete(code: &[u8], shape: Shape, reg: u8, random: &mut Random) -> Vec<u8> {
    let mut code = code.to_vec();
    code.extend(shape.operand(reg, random.below(8) as u8));
    code.extend(random.bytes::<8>());
    code
}

pub fn legacy(shape: Shape, random: &mut Random, mut f: impl FnMut(&[u8])) {
    const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2]] {
        for rex in [0, 0x40, 0x48] {
            for map in MAPS {
                for opcode in 0..=255 {
                    for reg in 0..8 {
                        let mut code = prefix.to_vec();
                        // The base register of a memory operand stays rbx.
                        let free = if shape == Shape::Register { 5 } else { 4 };
                        if rex != 0 {
                            code.push(rex | random.next() as u8 & free);
                        }
                        code.extend(map);
                        code.push(opcode);
                        f(&complete(&code, shape, reg, random));
                    }
                }
            }
        }
    }
}

pub fn vex(shape: Shape, random: &mut Random, mut f: impl FnMut(&[u8])) {
    for map in 1..=3 {
        for bits in 0..16u8 {
            let (w, length_and_prefix) = (bits >> 3, bits & 7);
            for opcode in 0..=255 {
                for unused in [true, false] {
                    // Inverted: R, X, B, and the register in vvvv.
                    let free = if shape == Shape::Register { 0xa0 } else { 0x80 };
                    let high = !(random.next() as u8 & free) & 0xe0;
                    let vvvv = if unused { 15 } else { random.below(16) as u8 };
                    let code = [0xc4, high | map, w << 7 | vvvv << 3 | length_and_prefix, opcode];
                    let reg = random.below(8) as u8;
                    f(&complete(&code, shape, reg, random));
                }
            }
        }
    }
}

/// What EVEX adds to an encoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evex {
    /// 0, 1, 2 for 128, 256, 512 bits.
    pub length: u8,
    pub mask: u8,
    pub zeroing: bool,
    pub broadcast: bool,
}

/// One opcode: its map, the prefix it stands for, W, and the byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Opcode {
    pub map: u8,
    pub prefix: u8,
    pub w: u8,
    pub byte: u8,
}

impl Opcode {
    pub fn all() -> impl Iterator<Item = Opcode> {
        (1..=3u8).flat_map(|map| {
            (0..8u8)
                .flat_map(move |bits| (0..=255).map(move |byte| Opcode { map, prefix: bits & 3, w: bits >> 2, byte }))
        })
    }

    /// `reg`, register 2 or none, then `rm`, then the immediate.
    pub fn evex(self, evex: Evex, second: bool, shape: Shape, reg: u8, rm: u8, immediate: u8) -> Vec<u8> {
        let vvvv = if second { !2 & 15 } else { 15 };
        let flags = u8::from(evex.zeroing) << 7 | evex.length << 5 | u8::from(evex.broadcast) << 4;
        let mut code = vec![0x62, 0xf0 | self.map, self.w << 7 | vvvv << 3 | 4 | self.prefix];
        code.extend([flags | 8 | evex.mask, self.byte]);
        self.rest(code, shape, reg, rm, immediate)
    }

    pub fn vex(self, length: u8, second: bool, shape: Shape, reg: u8, rm: u8, immediate: u8) -> Vec<u8> {
        let vvvv = if second { !2 & 15 } else { 15 };
        let code = vec![0xc4, 0xe0 | self.map, self.w << 7 | vvvv << 3 | length << 2 | self.prefix, self.byte];
        self.rest(code, shape, reg, rm, immediate)
    }

    fn rest(self, mut code: Vec<u8>, shape: Shape, reg: u8, rm: u8, immediate: u8) -> Vec<u8> {
        code.extend(shape.operand(reg, rm));
        code.push(immediate);
        code
    }
}
