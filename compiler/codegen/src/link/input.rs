//! Reading the object file: its code, its read-only data, its symbols and relocations.
//!
//! Afterwards every symbol is defined at a known place of a known section, exactly the ABI's symbols
//! are global, and every relocation names a symbol.

use std::collections::BTreeSet;

use object::elf;
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionFlags, SectionIndex,
    SymbolKind,
};

use super::LinkError;
use crate::object::EXPORTS;
use crate::target::Arch;

/// What is mapped how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Read and execute.
    Text,
    /// Read only.
    Rodata,
}

/// One section of the object that is part of the program.
pub(super) struct Section<'a> {
    pub name: &'a str,
    pub kind: Kind,
    /// A power of two.
    pub align: u64,
    pub bytes: &'a [u8],
    pub relocations: Vec<Relocation>,
}

pub(super) struct Relocation {
    /// From the section's start.
    pub offset: u64,
    /// ELF's number, `R_X86_64_..` or `R_AARCH64_..`.
    pub r_type: u32,
    pub addend: i64,
    /// Index into [`Input::symbols`].
    pub symbol: usize,
}

pub(super) struct Symbol<'a> {
    pub name: &'a str,
    /// Index into [`Input::sections`].
    pub section: usize,
    /// From the section's start.
    pub value: u64,
    pub size: u64,
    pub function: bool,
    pub exported: bool,
    /// False for section symbols and unnamed ones.
    pub named: bool,
}

pub(super) struct Input<'a> {
    pub arch: Arch,
    /// In file order.
    pub sections: Vec<Section<'a>>,
    /// In file order.
    pub symbols: Vec<Symbol<'a>>,
}

impl<'a> Input<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Input<'a>, LinkError> {
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(malformed)?;
        let arch = architecture(&file)?;
        let mut sections = Vec::new();
        // Where each of the file's sections went.
        let mut places = Vec::new();
        for section in file.sections() {
            if let Some(kind) = kind(&section)? {
                let index = section.index().0;
                places.resize(places.len().max(index + 1), None);
                places[index] = Some(sections.len());
                sections.push(Section {
                    name: section.name().map_err(malformed)?,
                    kind,
                    align: section.align().max(1),
                    bytes: section.data().map_err(malformed)?,
                    relocations: Vec::new(),
                });
            }
        }
        let place = |index: SectionIndex| places.get(index.0).copied().flatten();
        let (symbols, symbol_places) = symbols(&file, &sections, place)?;
        for section in file.sections() {
            let Some(at) = place(section.index()) else {
                continue;
            };
            for (offset, relocation) in section.relocations() {
                let name = sections[at].name;
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    return Err(malformed(format!("{name}+{offset:#x}: not an ELF relocation")));
                };
                let symbol = match relocation.target() {
                    RelocationTarget::Symbol(index) => symbol_places.get(index.0).copied().flatten(),
                    _ => None,
                };
                let Some(symbol) = symbol else {
                    return Err(malformed(format!("{name}+{offset:#x}: a relocation names no symbol of the program")));
                };
                sections[at].relocations.push(Relocation { offset, r_type, addend: relocation.addend(), symbol });
            }
        }
        Ok(Input { arch, sections, symbols })
    }
}

fn malformed(error: impl ToString) -> LinkError {
    LinkError::Malformed { message: error.to_string() }
}

fn architecture(file: &ElfFile64<'_, Endianness>) -> Result<Arch, LinkError> {
    let arch = match file.architecture() {
        object::Architecture::X86_64 => Some(Arch::X86_64),
        object::Architecture::Aarch64 => Some(Arch::Aarch64),
        _ => None,
    };
    match arch {
        Some(arch) if file.is_little_endian() && file.kind() == object::ObjectKind::Relocatable => Ok(arch),
        _ => Err(LinkError::UnsupportedFile { found: format!("{:?} for {:?}", file.kind(), file.architecture()) }),
    }
}

/// How a section is mapped; none if it is not part of the program.
fn kind<'a>(section: &impl ObjectSection<'a>) -> Result<Option<Kind>, LinkError> {
    let SectionFlags::Elf { sh_flags } = section.flags() else {
        return Err(malformed("not an ELF section"));
    };
    if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || section.size() == 0 {
        return Ok(None);
    }
    let refuse = |found: &str| {
        Err(LinkError::UnsupportedSection {
            section: section.name().unwrap_or("?").to_owned(),
            found: found.to_owned(),
        })
    };
    if sh_flags & u64::from(elf::SHF_TLS) != 0 {
        return refuse("thread-local data");
    }
    if sh_flags & u64::from(elf::SHF_WRITE) != 0 {
        return refuse("writable data, or constants that hold addresses,");
    }
    if !section.align().max(1).is_power_of_two() || section.align() > super::write::PAGE_MIN {
        return refuse("this alignment");
    }
    if sh_flags & u64::from(elf::SHF_EXECINSTR) != 0 {
        return Ok(Some(Kind::Text));
    }
    match section.kind() {
        object::SectionKind::ReadOnlyData | object::SectionKind::ReadOnlyString => Ok(Some(Kind::Rodata)),
        other => refuse(&format!("{other:?}")),
    }
}

type Symbols<'a> = (Vec<Symbol<'a>>, Vec<Option<usize>>);

/// The program's symbols, and where each of the file's symbols went.
fn symbols<'a>(
    file: &ElfFile64<'a, Endianness>,
    sections: &[Section<'a>],
    place: impl Fn(SectionIndex) -> Option<usize>,
) -> Result<Symbols<'a>, LinkError> {
    let mut symbols = Vec::new();
    let mut places = Vec::new();
    let mut undefined = BTreeSet::new();
    let mut exported = BTreeSet::new();
    for symbol in file.symbols() {
        let name = symbol.name().map_err(malformed)?;
        if symbol.kind() == SymbolKind::File {
            continue;
        }
        if symbol.is_undefined() {
            undefined.insert(name);
            continue;
        }
        let Some(section) = symbol.section_index().and_then(&place) else {
            continue;
        };
        let end = symbol.address().checked_add(symbol.size());
        if end.is_none_or(|end| end > sections[section].bytes.len() as u64) {
            return Err(malformed(format!("symbol `{name}` leaves its section")));
        }
        // Default visibility and not local: what a dynamic linker would see.
        let visible = symbol.scope() == object::SymbolScope::Dynamic;
        if visible && !exported.insert(name) {
            return Err(LinkError::Duplicate { symbol: name.to_owned() });
        }
        let index = symbol.index().0;
        places.resize(places.len().max(index + 1), None);
        places[index] = Some(symbols.len());
        symbols.push(Symbol {
            name,
            section,
            value: symbol.address(),
            size: symbol.size(),
            function: symbol.kind() == SymbolKind::Text,
            exported: visible,
            named: symbol.kind() != SymbolKind::Section && !name.is_empty(),
        });
    }
    if !undefined.is_empty() {
        return Err(LinkError::Undefined { symbols: Vec::from_iter(undefined).join(", ") });
    }
    if !exported.iter().copied().eq(EXPORTS) {
        return Err(LinkError::Exports { found: Vec::from_iter(exported).join(", "), expected: EXPORTS.join(", ") });
    }
    Ok((symbols, places))
}
