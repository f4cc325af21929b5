//! aarch64 instructions, decoded as far as the audit needs: where control goes, whether the
//! instruction is floating-point arithmetic or a division, and which feature it needs.
//!
//! The tables follow the encoding index of the Arm Architecture Reference Manual, "Data Processing --
//! Scalar Floating-Point and Advanced SIMD" for floating point; `u`, `size`, `opcode` are its names
//! of the fields. Moves are not arithmetic: `fmov` in all forms, `fcsel`, `movi`. Scalable vectors,
//! matrix extensions and unallocated encodings are not decoded, which makes them findings.

use super::{Class, Decoded, Flow, Need};
use crate::target::Feature;

pub(super) fn decode(bytes: &[u8], address: u64) -> Option<Decoded> {
    let word = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    Some(Decoded {
        bytes: 4,
        flow: flow(word, address)?,
        class: class(word)?,
        needs: needs(word),
        text: format!(".inst {word:#010x}"),
    })
}

/// `bits` bits of `word` from bit `low` up.
fn field(word: u32, low: u32, bits: u32) -> u32 {
    word >> low & ((1 << bits) - 1)
}

/// `address` plus a signed word offset of `bits` bits from bit `low` up.
fn target(word: u32, low: u32, bits: u32, address: u64) -> u64 {
    let unused = 32 - bits;
    let offset = ((field(word, low, bits) << unused) as i32 >> unused) as i64 * 4;
    address.wrapping_add_signed(offset)
}

/// None for system calls, exception returns and other control flow that generated code has not.
fn flow(word: u32, address: u64) -> Option<Flow> {
    if word >> 16 == 0 {
        return Some(Flow::Stop); // udf
    }
    // Branches, exceptions and system instructions: op0 (bits 28..25) is 101x.
    if field(word, 26, 3) != 0b101 {
        return Some(Flow::Next);
    }
    let flow = match word {
        _ if word & 0xFC00_0000 == 0x1400_0000 => Flow::Jump(target(word, 0, 26, address)),
        _ if word & 0xFC00_0000 == 0x9400_0000 => Flow::Call(target(word, 0, 26, address)),
        // b.cond, cbz, cbnz
        _ if word & 0xFF00_0010 == 0x5400_0000 => Flow::Branch(target(word, 5, 19, address)),
        _ if word & 0x7E00_0000 == 0x3400_0000 => Flow::Branch(target(word, 5, 19, address)),
        // tbz, tbnz
        _ if word & 0x7E00_0000 == 0x3600_0000 => Flow::Branch(target(word, 5, 14, address)),
        _ if word & 0xFFFF_FC1F == 0xD61F_0000 => Flow::ComputedJump,
        _ if word & 0xFFFF_FC1F == 0xD63F_0000 => Flow::ComputedCall,
        _ if word & 0xFFFF_FC1F == 0xD65F_0000 => Flow::Stop, // ret
        _ if word & 0xFFE0_001F == 0xD420_0000 => Flow::Stop, // brk
        // hint (nop, bti, csdb), barriers
        _ if word & 0xFFFF_F01F == 0xD503_201F => Flow::Next,
        _ if word & 0xFFFF_F01F == 0xD503_301F => Flow::Next,
        _ => return None,
    };
    Some(flow)
}

/// None for encodings that are unallocated or of extensions that no target has.
fn class(word: u32) -> Option<Class> {
    let float = |is_float| if is_float { Class::Float } else { Class::Other };
    match field(word, 25, 4) {
        0b0000 if word >> 16 == 0 => Some(Class::Other), // udf
        0b0000..=0b0011 => None,
        0b0101 | 0b1101 => {
            let is_division = word & 0x7FE0_F800 == 0x1AC0_0800;
            Some(if is_division { Class::Division } else { Class::Other })
        }
        0b0111 | 0b1111 => {
            let scalar_float = word & 0x5E00_0000 == 0x1E00_0000;
            if scalar_float {
                return Some(float(scalar_is_float(word)));
            }
            if word >> 31 != 0 {
                return None; // SHA-3, SM3, SM4 and unallocated
            }
            Some(float(vector_is_float(word)))
        }
        _ => Some(Class::Other),
    }
}

/// Scalar floating point: bits 30 and 28..25 are 0 and 1111.
fn scalar_is_float(word: u32) -> bool {
    let three_sources = field(word, 24, 1) == 1;
    let fixed_point = field(word, 21, 1) == 0;
    if three_sources || fixed_point {
        return true;
    }
    if field(word, 10, 6) == 0 {
        // Between general and vector registers: all convert but fmov.
        let (kind, rmode, opcode) = (field(word, 22, 2), field(word, 19, 2), field(word, 16, 3));
        let fmov = matches!(opcode, 0b110 | 0b111) && (rmode == 0b00 || (rmode == 0b01 && kind == 0b10));
        return !fmov;
    }
    if field(word, 10, 5) == 0b10000 {
        return field(word, 15, 6) != 0; // one source: fmov is 0
    }
    // Immediate (xx100) and select (xx11) only move; compares and two sources compute.
    let immediate = field(word, 10, 3) == 0b100;
    let select = field(word, 10, 2) == 0b11;
    !(immediate || select)
}

/// Advanced SIMD, vector (bit 28 clear) and scalar (bits 30 and 28 set) alike: the scalar forms use
/// the vector forms' opcodes.
fn vector_is_float(word: u32) -> bool {
    let u = field(word, 29, 1);
    let size = field(word, 22, 2);
    let bit = |at| field(word, at, 1) == 1;
    let opcode5 = field(word, 12, 5); // two registers, across lanes, pairwise
    if bit(24) {
        return if bit(10) {
            // Shift by immediate; immh = 0 is a modified immediate, a move.
            !bit(23) && field(word, 19, 4) != 0 && matches!(field(word, 11, 5), 0b11100 | 0b11111)
        } else {
            element_is_float(u, size, field(word, 12, 4))
        };
    }
    match (bit(21), bit(10)) {
        // Three registers of the same type.
        (true, true) => field(word, 11, 5) >= 0b11000,
        (true, false) if bit(11) => match field(word, 17, 4) {
            0b0000 => matches!(opcode5, 0b01100..=0b01111 | 0b10110 | 0b10111) || opcode5 >= 0b11000,
            // Across lanes, and pairwise in the scalar form.
            0b1000 => matches!(opcode5, 0b01100 | 0b01101 | 0b01111),
            0b1100 => true, // two registers, half precision
            _ => false,
        },
        (true, false) => false, // three different types: integers
        (false, true) if bit(15) => {
            // Three registers, extra: fcmla, fcadd, bfdot, bfmmla have the top bit.
            bit(14)
        }
        // Three registers of the same type, half precision; else copies.
        (false, true) => bit(22) && !bit(14),
        (false, false) => false, // permutes, tables, extract, SHA
    }
}

/// Vector by indexed element.
fn element_is_float(u: u32, size: u32, opcode: u32) -> bool {
    match opcode {
        0b0001 | 0b0101 | 0b1001 => true,          // fmla, fmls, fmul; fcmla
        0b0011 | 0b0111 => u == 1,                 // fcmla
        0b0000 | 0b0100 => u == 0,                 // fmlal, fmlsl
        0b1000 | 0b1100 => u == 1 && size == 0b10, // fmlal2, fmlsl2
        0b1111 => u == 0 && size & 1 == 1,         // bfdot, bfmlal
        _ => false,
    }
}

fn needs(word: u32) -> Vec<Need> {
    let unlisted = |name: &str| vec![Need::Unlisted(name.to_owned())];
    // Three registers, extra, and by element: sdot, udot; usdot, sudot, smmla, ummla, usmmla.
    let extra = word & 0x9F20_FC00;
    let element = word & 0x9F00_F400;
    let size = field(word, 22, 2);
    let u = field(word, 29, 1);
    if (extra == 0x0E00_9400 || element == 0x0F00_E000) && size == 0b10 {
        return vec![Need::Feature(Feature::Dotprod)];
    }
    let matrix = matches!(extra, 0x0E00_A400 | 0x0E00_AC00);
    if (extra == 0x0E00_9C00 || matrix) && size == 0b10 {
        return vec![Need::Feature(Feature::I8mm)];
    }
    if element == 0x0F00_F000 && u == 0 && size & 1 == 0 {
        return vec![Need::Feature(Feature::I8mm)];
    }
    // Large System Extensions: atomic memory operations, compare and swap.
    if word & 0x3F20_0C00 == 0x3820_0000 || word & 0x3FA0_7C00 == 0x08A0_7C00 {
        return unlisted("lse");
    }
    // Half precision: scalar type 11, vector three registers and two registers.
    let scalar = word & 0x5E00_0000 == 0x1E00_0000 && size == 0b11;
    let three = word & 0x9F60_C400 == 0x0E40_0400;
    let two = word & 0x9F7E_0C00 == 0x0E78_0800;
    if scalar || three || two {
        return unlisted("fp16");
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Deterministic words in every group of encodings, densest in the vector and scalar
    /// floating-point groups.
    fn words() -> Vec<u32> {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as u32
        };
        let mut words = Vec::new();
        for _ in 0..60_000 {
            words.push(next() & !0x1E00_0000 | 0x0E00_0000);
            words.push(next() & !0x5E00_0000 | 0x1E00_0000);
            // Sparse groups: two registers, across lanes, extra, element; division.
            words.push(next() & !0x9F3E_0C00 | 0x0E20_0800);
            words.push(next() & !0x9F3E_0C00 | 0x0E30_0800);
            words.push(next() & !0xDF3E_0C00 | 0x5E20_0800);
            words.push(next() & !0x9F20_8400 | 0x0E00_8400);
            words.push(next() & !0x9F00_0400 | 0x0F00_0000);
            words.push(next() & !0x9FFE_0C00 | 0x0E78_0800);
        }
        for _ in 0..20_000 {
            words.push(next());
            words.push(next() & !0x7FE0_0000 | 0x1AC0_0000);
        }
        words
    }

    /// The class by mnemonic; none where it is not an instruction.
    fn by_name(name: &str) -> Option<Class> {
        if name.starts_with(".inst") || name == "udf" {
            return None;
        }
        let moves = ["fmov", "fcsel"];
        let odd = ["scvtf", "ucvtf", "urecpe", "ursqrte", "fjcvtzs"];
        let float = (name.starts_with('f') || name.starts_with("bf"))
            && name != "bfm"
            && !["bfi", "bfxil", "bfc"].contains(&name);
        Some(if ["sdiv", "udiv"].contains(&name) {
            Class::Division
        } else if (float && !moves.contains(&name)) || odd.contains(&name) {
            Class::Float
        } else {
            Class::Other
        })
    }

    #[test]
    fn classes_agree_with_objdump() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.bin");
        let words = words();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let Ok(output) = Command::new("aarch64-linux-gnu-objdump")
            .args(["-D", "-z", "-b", "binary", "-m", "aarch64"])
            .arg(&path)
            .output()
        else {
            eprintln!("SKIPPED: `aarch64-linux-gnu-objdump` is not installed");
            return;
        };
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let (mut compared, mut floats, mut divisions, mut wrong) = (0, 0, 0, Vec::new());
        for line in text.lines() {
            let mut columns = line.split('\t');
            let (Some(_), Some(word), Some(name)) = (columns.next(), columns.next(), columns.next()) else {
                continue;
            };
            let word = u32::from_str_radix(word.trim(), 16).unwrap();
            let Some(expected) = by_name(name.trim()) else {
                continue;
            };
            let Some(found) = class(word) else {
                // Not decoded is a finding whatever it is, so it may be anything.
                continue;
            };
            compared += 1;
            floats += usize::from(expected == Class::Float);
            divisions += usize::from(expected == Class::Division);
            if found != expected {
                wrong.push(format!("{word:08x} {name}: {found:?}"));
            }
        }
        wrong.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        assert!(wrong.is_empty(), "{} {:#?}", wrong.len(), &wrong[..wrong.len().min(60)]);
        assert!(compared > 50_000, "{compared}");
        assert!(floats > 10_000 && divisions > 100, "{floats} {divisions}");
    }

    #[test]
    fn control_flow() {
        let at = 0x1000;
        for (word, expected) in [
            (0x1400_0002, Some(Flow::Jump(0x1008))),
            (0x17FF_FFFF, Some(Flow::Jump(0xFFC))),
            (0x9400_0010, Some(Flow::Call(0x1040))),
            (0x5400_0041, Some(Flow::Branch(0x1008))),
            (0xB4FF_FFE0, Some(Flow::Branch(0xFFC))),
            (0x3600_0040, Some(Flow::Branch(0x1008))),
            (0x3707_FFE0, Some(Flow::Branch(0xFFC))),
            (0xD61F_0020, Some(Flow::ComputedJump)),
            (0xD63F_0020, Some(Flow::ComputedCall)),
            (0xD65F_03C0, Some(Flow::Stop)),
            (0xD420_0000, Some(Flow::Stop)),
            (0x0000_C11F, Some(Flow::Stop)),
            (0xD503_201F, Some(Flow::Next)),
            (0x8B01_0000, Some(Flow::Next)),
            (0xD400_0001, None),
        ] {
            assert_eq!(flow(word, at), expected, "{word:08x}");
        }
    }

    #[test]
    fn features() {
        let dotprod = Need::Feature(Feature::Dotprod);
        let i8mm = Need::Feature(Feature::I8mm);
        for (word, expected) in [
            (0x4E82_9420, vec![dotprod.clone()]), // sdot v0.4s, v1.16b, v2.16b
            (0x6E82_9420, vec![dotprod.clone()]), // udot
            (0x4F82_E020, vec![dotprod]),         // sdot v0.4s, v1.16b, v2.4b[0]
            (0x4E82_9C20, vec![i8mm.clone()]),    // usdot
            (0x4E82_A420, vec![i8mm.clone()]),    // smmla
            (0x4F82_F020, vec![i8mm]),            // usdot by element
            (0x4EA2_8420, vec![]),                // add v0.4s, v1.4s, v2.4s
            (0x0E22_C020, vec![]),                // smull
        ] {
            assert_eq!(needs(word), expected, "{word:08x}");
        }
        assert_eq!(needs(0x4E42_1420), [Need::Unlisted("fp16".to_owned())]); // fadd v0.8h
        assert_eq!(needs(0xB820_0020), [Need::Unlisted("lse".to_owned())]); // ldadd
    }
}
