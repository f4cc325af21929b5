//! Resolving references. Every reference of a model is relative, so this is done once, here, and
//! nothing is left for the dynamic linker.
//!
//! References through the global offset table are relaxed to the address itself, as linkers do for
//! symbols that cannot be replaced: on x86-64 `mov r, [rip + slot]` becomes `lea r, [rip + symbol]`;
//! on aarch64 `ldr x, [x, slot]` becomes `add x, x, symbol`.
//!
//! S is the symbol's address, A the addend, P the place, as in the two ABIs' supplements; `Page(x)`
//! is x with its low 12 bits cleared.

use object::elf;

use super::LinkError;
use super::input::{Input, Relocation, Section};
use super::write::Layout;
use crate::target::Arch;

/// The sections' bytes with every reference resolved, in the order of [`Input::sections`].
pub(super) fn apply(input: &Input<'_>, layout: &Layout) -> Result<Vec<Vec<u8>>, LinkError> {
    let mut images = Vec::with_capacity(input.sections.len());
    for (index, section) in input.sections.iter().enumerate() {
        let mut image = section.bytes.to_vec();
        for relocation in &section.relocations {
            let symbol = &input.symbols[relocation.symbol];
            let reference = Reference {
                arch: input.arch,
                section,
                relocation,
                symbol: symbol.name,
                target: layout.sections[symbol.section].wrapping_add(symbol.value),
                place: layout.sections[index].wrapping_add(relocation.offset),
            };
            match input.arch {
                Arch::X86_64 => reference.apply_x86(&mut image)?,
                Arch::Aarch64 => reference.apply_aarch64(&mut image)?,
            }
        }
        images.push(image);
    }
    Ok(images)
}

/// One reference, with the addresses of both its ends.
struct Reference<'a> {
    arch: Arch,
    section: &'a Section<'a>,
    relocation: &'a Relocation,
    symbol: &'a str,
    /// S
    target: u64,
    /// P
    place: u64,
}

impl Reference<'_> {
    fn apply_x86(&self, image: &mut [u8]) -> Result<(), LinkError> {
        match self.relocation.r_type {
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {}
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
                self.relax_x86(image)?;
            }
            elf::R_X86_64_64 | elf::R_X86_64_32 | elf::R_X86_64_32S => {
                return Err(self.unsupported("an absolute address would need work at load time"));
            }
            _ => return Err(self.unsupported("unknown kind")),
        }
        let distance = self.distance()?;
        let Ok(value) = i32::try_from(distance) else {
            return Err(self.out_of_reach(distance));
        };
        self.field(image)?.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// `mov r64, [rip + disp32]` (REX.W 8B /r with mod 00, rm 101) to `lea` (8D). The displacement
    /// then counts from the end of the same instruction, so the addend stays.
    fn relax_x86(&self, image: &mut [u8]) -> Result<(), LinkError> {
        let at = self.relocation.offset as usize;
        let mov = at.checked_sub(3).and_then(|start| image.get_mut(start..at));
        match mov {
            Some([rex, opcode @ 0x8B, modrm])
                if *rex & 0xF8 == 0x48 && *modrm & 0xC7 == 0x05 && self.relocation.addend == -4 =>
            {
                *opcode = 0x8D;
                Ok(())
            }
            _ => Err(self.unsupported("only a 64-bit `mov` of the address can do without a table")),
        }
    }

    fn apply_aarch64(&self, image: &mut [u8]) -> Result<(), LinkError> {
        match self.relocation.r_type {
            elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => {
                let distance = self.distance()?;
                if distance & 3 != 0 || !(-(1 << 27)..1 << 27).contains(&distance) {
                    return Err(self.out_of_reach(distance));
                }
                let word = self.word(image)? & 0xFC00_0000;
                self.put(image, word | ((distance >> 2) as u32 & 0x03FF_FFFF))
            }
            elf::R_AARCH64_PREL32 => {
                let distance = self.distance()?;
                let Ok(value) = i32::try_from(distance) else {
                    return Err(self.out_of_reach(distance));
                };
                self.put(image, value as u32)
            }
            elf::R_AARCH64_ADR_PREL_PG_HI21 | elf::R_AARCH64_ADR_GOT_PAGE => {
                let pages = (self.address()? >> 12) as i64 - (self.place >> 12) as i64;
                if !(-(1 << 20)..1 << 20).contains(&pages) {
                    return Err(self.out_of_reach(pages << 12));
                }
                let adrp = self.word(image)?;
                if adrp & 0x9F00_0000 != 0x9000_0000 {
                    return Err(self.unsupported("the instruction is not `adrp`"));
                }
                let bits = pages as u32;
                let immediate = (bits & 3) << 29 | (bits >> 2 & 0x7_FFFF) << 5;
                self.put(image, adrp & 0x9F00_001F | immediate)
            }
            elf::R_AARCH64_ADD_ABS_LO12_NC => {
                let add = self.word(image)?;
                if add & 0xFFC0_0000 != 0x9100_0000 {
                    return Err(self.unsupported("the instruction is not a 64-bit `add`"));
                }
                let low = self.address()? as u32 & 0xFFF;
                self.put(image, add & 0xFFC0_03FF | low << 10)
            }
            elf::R_AARCH64_LD64_GOT_LO12_NC => {
                let ldr = self.word(image)?;
                if ldr & 0xFFC0_0000 != 0xF940_0000 || self.relocation.addend != 0 {
                    return Err(self.unsupported("the instruction is not a 64-bit `ldr`"));
                }
                let low = self.address()? as u32 & 0xFFF;
                self.put(image, 0x9100_0000 | ldr & 0x3FF | low << 10)
            }
            elf::R_AARCH64_ABS64 | elf::R_AARCH64_ABS32 => {
                Err(self.unsupported("an absolute address would need work at load time"))
            }
            _ => Err(self.unsupported("unknown kind")),
        }
    }

    /// S + A. Addresses are below 2^63, so the sum is computed in i64.
    fn address(&self) -> Result<u64, LinkError> {
        (self.target as i64)
            .checked_add(self.relocation.addend)
            .and_then(|address| u64::try_from(address).ok())
            .ok_or_else(|| self.out_of_reach(self.relocation.addend))
    }

    /// S + A - P
    fn distance(&self) -> Result<i64, LinkError> {
        (self.target as i64 - self.place as i64)
            .checked_add(self.relocation.addend)
            .ok_or_else(|| self.out_of_reach(self.relocation.addend))
    }

    /// The four bytes at the place.
    fn field<'i>(&self, image: &'i mut [u8]) -> Result<&'i mut [u8], LinkError> {
        let field = usize::try_from(self.relocation.offset).ok().and_then(|at| image.get_mut(at..at.checked_add(4)?));
        field.ok_or_else(|| self.unsupported("it lies outside its section"))
    }

    fn word(&self, image: &mut [u8]) -> Result<u32, LinkError> {
        let field = self.field(image)?;
        Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
    }

    fn put(&self, image: &mut [u8], word: u32) -> Result<(), LinkError> {
        self.field(image)?.copy_from_slice(&word.to_le_bytes());
        Ok(())
    }

    fn unsupported(&self, reason: &str) -> LinkError {
        LinkError::UnsupportedRelocation {
            arch: self.arch,
            kind: self.relocation.r_type.to_string(),
            symbol: self.symbol.to_owned(),
            section: self.section.name.to_owned(),
            offset: self.relocation.offset,
            reason: reason.to_owned(),
        }
    }

    fn out_of_reach(&self, distance: i64) -> LinkError {
        LinkError::OutOfReach {
            symbol: self.symbol.to_owned(),
            section: self.section.name.to_owned(),
            offset: self.relocation.offset,
            distance,
        }
    }
}
