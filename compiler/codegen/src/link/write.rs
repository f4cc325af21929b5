//! Laying out and writing the shared object.
//!
//! ```text
//! R   ELF header, program headers, .hash, .dynsym, .dynstr, .rodata
//! RX  .text
//! RW  .dynamic      (older dynamic linkers write its addresses in place)
//!     .symtab, .strtab, .shstrtab, section headers: not mapped
//! ```
//! Every mapped byte has an address equal to its offset in the file, and each of the three parts
//! starts on a page, so alignment in the file is alignment in memory.

use object::Endianness;
use object::elf;
use object::write::StringId;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, SectionIndex, Sym, Writer};

use super::LinkError;
use super::input::{Input, Kind};
use crate::object::EXPORTS;
use crate::target::Arch;

/// No section may ask for a larger alignment: the smallest page there is.
pub(super) const PAGE_MIN: u64 = 4096;

/// The largest page that systems of an architecture use.
fn page(arch: Arch) -> u64 {
    match arch {
        Arch::X86_64 => 4096,
        Arch::Aarch64 => 65536,
    }
}

/// Filler between functions: a trap on x86-64 (`int3`) and on aarch64 (`udf #0`).
fn filler(arch: Arch) -> u8 {
    match arch {
        Arch::X86_64 => 0xCC,
        Arch::Aarch64 => 0,
    }
}

const SONAME_MAX: usize = 1024;
const SEGMENTS: u32 = 6;
const DYNAMIC_ENTRIES: usize = 7;
const HASH_BUCKETS: u32 = 3;
const EXPORT_COUNT: u32 = EXPORTS.len() as u32;
/// Bytes of an ELF64 symbol.
const SYM_BYTES: u64 = 24;

/// A run of mapped bytes.
#[derive(Clone, Copy)]
pub(super) struct Range {
    /// Address, and offset in the file.
    start: u64,
    bytes: u64,
    align: u64,
}

/// Where everything of the object goes.
pub(super) struct Layout {
    /// The address of each of [`Input::sections`].
    pub sections: Vec<u64>,
    rodata: Range,
    text: Range,
}

impl Layout {
    pub fn of(input: &Input<'_>) -> Layout {
        let mut sections = vec![0; input.sections.len()];
        // Headers, dynamic symbols and strings fit in one page: three exports with short names and a
        // SONAME of at most SONAME_MAX bytes take less than 2 KiB.
        let mut place = |kind, start: u64| {
            let (mut end, mut align) = (start, 1);
            for (section, at) in input.sections.iter().zip(&mut sections) {
                if section.kind == kind {
                    *at = end.next_multiple_of(section.align);
                    end = *at + section.bytes.len() as u64;
                    align = align.max(section.align);
                }
            }
            Range { start, bytes: end - start, align }
        };
        let rodata = place(Kind::Rodata, PAGE_MIN);
        let text_start = (rodata.start + rodata.bytes).next_multiple_of(page(input.arch));
        let text = place(Kind::Text, text_start);
        Layout { sections, rodata, text }
    }
}

/// The shared object's bytes. `images` are the relocated bytes of [`Input::sections`].
pub(super) fn shared_object(
    input: &Input<'_>,
    layout: &Layout,
    images: &[Vec<u8>],
    soname: &str,
) -> Result<Vec<u8>, LinkError> {
    if soname.contains('\0') || soname.is_empty() || soname.len() > SONAME_MAX {
        return Err(LinkError::Malformed {
            message: format!("`{soname}` cannot be a SONAME: 1 to {SONAME_MAX} bytes without NUL"),
        });
    }
    let failed = |error: object::write::Error| LinkError::Malformed { message: error.to_string() };
    let page = page(input.arch);
    let mut bytes = Vec::new();
    let mut w = Writer::new(Endianness::Little, true, &mut bytes);

    // Reserve, in file order.
    w.reserve_file_header();
    w.reserve_program_headers(SEGMENTS);
    w.reserve_null_section_index();
    w.reserve_hash_section_index();
    w.reserve_dynsym_section_index();
    w.reserve_dynstr_section_index();
    let rodata_name = w.add_section_name(b".rodata");
    let rodata_index = (layout.rodata.bytes > 0).then(|| w.reserve_section_index());
    let text_name = w.add_section_name(b".text");
    let text_index = w.reserve_section_index();
    let dynamic_index = w.reserve_dynamic_section_index();
    w.reserve_symtab_section_index();
    w.reserve_strtab_section_index();
    w.reserve_shstrtab_section_index();

    let index_of = |section: usize| match input.sections[section].kind {
        Kind::Text => Some(text_index),
        Kind::Rodata => rodata_index,
    };
    let dynamic_symbols = dynamic_symbols(&mut w, input, layout, index_of);
    let soname = w.add_dynamic_string(soname.as_bytes());
    let (symbols, local_symbols) = static_symbols(&mut w, input, layout, index_of);

    let hash = w.reserve_hash(HASH_BUCKETS, 1 + EXPORT_COUNT) as u64;
    let dynsym = w.reserve_dynsym() as u64;
    let dynstr = w.reserve_dynstr() as u64;
    let dynstr_bytes = w.dynstr_len() as u64;
    w.reserve_until(layout.rodata.start as usize);
    w.reserve(layout.rodata.bytes as usize, 1);
    w.reserve_until(layout.text.start as usize);
    w.reserve(layout.text.bytes as usize, 1);
    w.reserve(0, page as usize);
    let dynamic = w.reserve_dynamic(DYNAMIC_ENTRIES) as u64;
    let mapped_end = w.reserved_len() as u64;
    w.reserve_symtab();
    w.reserve_strtab();
    w.reserve_shstrtab();
    w.reserve_section_headers();

    // Write, in the same order.
    w.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_DYN,
        e_machine: match input.arch {
            Arch::X86_64 => elf::EM_X86_64,
            Arch::Aarch64 => elf::EM_AARCH64,
        },
        e_entry: 0,
        e_flags: 0,
    })
    .map_err(failed)?;
    w.write_align_program_headers();
    let range = |start: u64, end: u64| (start, end - start);
    let text_end = layout.text.start + layout.text.bytes;
    let rodata_end = layout.rodata.start + layout.rodata.bytes;
    let headers = 64 + 56 * u64::from(SEGMENTS);
    for (p_type, p_flags, (start, size), p_align) in [
        (elf::PT_PHDR, elf::PF_R, range(64, headers), 8),
        (elf::PT_LOAD, elf::PF_R, range(0, rodata_end), page),
        (elf::PT_LOAD, elf::PF_R | elf::PF_X, range(layout.text.start, text_end), page),
        (elf::PT_LOAD, elf::PF_R | elf::PF_W, range(dynamic, mapped_end), page),
        (elf::PT_DYNAMIC, elf::PF_R | elf::PF_W, range(dynamic, mapped_end), 8),
        (elf::PT_GNU_STACK, elf::PF_R | elf::PF_W, (0, 0), 16),
    ] {
        w.write_program_header(&ProgramHeader {
            p_type,
            p_flags,
            p_offset: start,
            p_vaddr: start,
            p_paddr: start,
            p_filesz: size,
            p_memsz: size,
            p_align,
        });
    }
    // Chain index 0 is the null symbol; the rest follow EXPORTS.
    w.write_hash(HASH_BUCKETS, 1 + EXPORT_COUNT, |chain| {
        let export = EXPORTS.get((chain as usize).checked_sub(1)?)?;
        Some(elf::hash(export.as_bytes()))
    });
    w.write_null_dynamic_symbol();
    for symbol in &dynamic_symbols {
        w.write_dynamic_symbol(symbol);
    }
    w.write_dynstr();
    w.pad_until(layout.rodata.start as usize);
    write_sections(&mut w, input, layout, images, Kind::Rodata);
    w.pad_until(layout.text.start as usize);
    write_sections(&mut w, input, layout, images, Kind::Text);
    w.pad_until(dynamic as usize);
    w.write_align_dynamic();
    w.write_dynamic_string(elf::DT_SONAME, soname).map_err(failed)?;
    for (tag, value) in [
        (elf::DT_HASH, hash),
        (elf::DT_SYMTAB, dynsym),
        (elf::DT_STRTAB, dynstr),
        (elf::DT_STRSZ, dynstr_bytes),
        (elf::DT_SYMENT, SYM_BYTES),
        (elf::DT_NULL, 0),
    ] {
        w.write_dynamic(tag, value).map_err(failed)?;
    }
    w.write_null_symbol();
    for symbol in &symbols {
        w.write_symbol(symbol);
    }
    w.write_strtab();
    w.write_shstrtab();

    w.write_null_section_header();
    w.write_hash_section_header(hash);
    w.write_dynsym_section_header(dynsym, 1);
    w.write_dynstr_section_header(dynstr);
    let code = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
    let parts =
        [(rodata_index.map(|_| rodata_name), elf::SHF_ALLOC, layout.rodata), (Some(text_name), code, layout.text)];
    for (name, flags, range) in parts {
        if name.is_some() {
            w.write_section_header(&section_header(name, flags, range));
        }
    }
    w.write_dynamic_section_header(dynamic);
    w.write_symtab_section_header(local_symbols);
    w.write_strtab_section_header();
    w.write_shstrtab_section_header();
    debug_assert_eq!(dynamic_index.0, text_index.0 + 1);
    debug_assert_eq!(w.reserved_len(), w.len());
    Ok(bytes)
}

fn section_header(name: Option<StringId>, flags: u32, range: Range) -> SectionHeader {
    SectionHeader {
        name,
        sh_type: elf::SHT_PROGBITS,
        sh_flags: flags.into(),
        sh_addr: range.start,
        sh_offset: range.start,
        sh_size: range.bytes,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: range.align,
        sh_entsize: 0,
    }
}

/// The sections of one kind, with filler between functions and zeros between constants. A function's
/// own bytes never change; only what lies outside every symbol does.
fn write_sections(w: &mut Writer<'_>, input: &Input<'_>, layout: &Layout, images: &[Vec<u8>], kind: Kind) {
    for (index, (section, image)) in input.sections.iter().zip(images).enumerate() {
        if section.kind != kind {
            continue;
        }
        let at = layout.sections[index] as usize;
        if kind == Kind::Rodata {
            w.pad_until(at);
            w.write(image);
            continue;
        }
        let mut covered: Vec<_> = input
            .symbols
            .iter()
            .filter(|symbol| symbol.section == index && symbol.size > 0)
            .map(|symbol| symbol.value as usize..(symbol.value + symbol.size) as usize)
            .collect();
        covered.sort_by_key(|range| (range.start, range.end));
        let filler = filler(input.arch);
        let fill_until = |w: &mut Writer<'_>, until: usize| {
            w.write(&vec![filler; until.saturating_sub(w.len())]);
        };
        for range in covered {
            fill_until(w, at + range.start);
            let written = w.len() - at;
            if range.end > written {
                w.write(&image[written..range.end]);
            }
        }
        fill_until(w, at + image.len());
    }
}

/// The exports, in the order of [`EXPORTS`], which is the order of the hash chains.
fn dynamic_symbols<'a>(
    w: &mut Writer<'a>,
    input: &Input<'a>,
    layout: &Layout,
    index_of: impl Fn(usize) -> Option<SectionIndex>,
) -> Vec<Sym> {
    w.reserve_null_dynamic_symbol_index();
    let exported = |name: &str| {
        let matches = |symbol: &&super::input::Symbol<'_>| symbol.exported && symbol.name == name;
        input.symbols.iter().find(matches)
    };
    EXPORTS
        .iter()
        .filter_map(|name| exported(name))
        .map(|symbol| {
            w.reserve_dynamic_symbol_index();
            let name = w.add_dynamic_string(symbol.name.as_bytes());
            sym(symbol, name, layout, index_of(symbol.section))
        })
        .collect()
}

/// Every named symbol, local ones first as ELF wants them, and one more than the number of local ones
/// (the null symbol is local).
fn static_symbols<'a>(
    w: &mut Writer<'a>,
    input: &Input<'a>,
    layout: &Layout,
    index_of: impl Fn(usize) -> Option<SectionIndex>,
) -> (Vec<Sym>, u32) {
    w.reserve_null_symbol_index();
    let mut symbols = Vec::new();
    let mut local_symbols = 1;
    for exported in [false, true] {
        for symbol in &input.symbols {
            if symbol.named && symbol.exported == exported {
                let section = index_of(symbol.section);
                w.reserve_symbol_index(section);
                let name = w.add_string(symbol.name.as_bytes());
                symbols.push(sym(symbol, name, layout, section));
                local_symbols += u32::from(!exported);
            }
        }
    }
    (symbols, local_symbols)
}

fn sym(symbol: &super::input::Symbol<'_>, name: StringId, layout: &Layout, section: Option<SectionIndex>) -> Sym {
    let binding = if symbol.exported { elf::STB_GLOBAL } else { elf::STB_LOCAL };
    let kind = if symbol.function { elf::STT_FUNC } else { elf::STT_OBJECT };
    Sym {
        name: Some(name),
        section,
        st_info: binding << 4 | kind,
        st_other: elf::STV_DEFAULT,
        st_shndx: 0,
        st_value: layout.sections[symbol.section] + symbol.value,
        st_size: symbol.size,
    }
}
