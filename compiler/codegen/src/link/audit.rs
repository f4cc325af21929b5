//! Whether a shared object is what a compiled model must be: code and data that import nothing,
//! export the ABI and no more, and map nothing both writable and executable.

use object::elf;
use object::read::elf::{Dyn, ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol};
use thiserror::Error;

use crate::object::EXPORTS;

/// What a shared object does that a compiled model must not.
#[derive(Debug, Error)]
pub enum AuditError {
    #[error("it cannot be read: {message}")]
    Malformed { message: String },
    #[error("it is not a 64-bit little-endian ELF shared object for x86-64 or aarch64")]
    NotASharedObject,
    #[error("it imports {symbols}")]
    Imports { symbols: String },
    #[error("it exports {found}; a model exports exactly {expected}")]
    Exports { found: String, expected: String },
    #[error("its dynamic section holds {tag}, which a model must not have")]
    Dynamic { tag: String },
    #[error("it has no dynamic section")]
    NoDynamic,
    #[error("a segment at {address:#x} is both writable and executable")]
    WritableCode { address: u64 },
    #[error("it asks for an executable stack")]
    ExecutableStack,
    #[error("it has a segment of type {p_type:#x}, which a model must not have")]
    Segment { p_type: u32 },
}

/// Dynamic tags that only describe symbols, strings, names and versions. Everything else asks the
/// dynamic linker to load other files, to run code or to change bytes.
const HARMLESS_TAGS: &[i64] = &[
    elf::DT_NULL,
    elf::DT_SONAME,
    elf::DT_HASH,
    elf::DT_GNU_HASH,
    elf::DT_SYMTAB,
    elf::DT_STRTAB,
    elf::DT_STRSZ,
    elf::DT_SYMENT,
    elf::DT_VERSYM,
    elf::DT_VERDEF,
    elf::DT_VERDEFNUM,
];

/// Tags with a flag word whose meaning is checked by value: binding symbols within the file is
/// harmless.
const FLAG_TAGS: &[(i64, u64)] = &[
    (elf::DT_FLAGS, elf::DF_SYMBOLIC as u64 | elf::DF_BIND_NOW as u64),
    (elf::DT_FLAGS_1, elf::DF_1_NOW as u64),
    (elf::DT_SYMBOLIC, u64::MAX),
];

/// Checks that a shared object imports nothing, exports exactly the ABI's symbols, needs nothing from
/// the dynamic linker but to be mapped, and maps nothing writable and executable.
pub fn audit_shared_object(bytes: &[u8]) -> Result<(), AuditError> {
    let malformed = |error: object::read::Error| AuditError::Malformed { message: error.to_string() };
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(malformed)?;
    let known = [object::Architecture::X86_64, object::Architecture::Aarch64];
    if file.kind() != object::ObjectKind::Dynamic || !file.is_little_endian() || !known.contains(&file.architecture()) {
        return Err(AuditError::NotASharedObject);
    }
    audit_symbols(&file)?;
    audit_segments(&file)?;
    let mut found_dynamic = false;
    for segment in file.elf_program_headers() {
        let endian = file.endian();
        if let Some(entries) = segment.dynamic(endian, bytes).map_err(malformed)? {
            found_dynamic = true;
            audit_dynamic(endian, entries)?;
        }
    }
    if found_dynamic { Ok(()) } else { Err(AuditError::NoDynamic) }
}

fn audit_symbols(file: &ElfFile64<'_, Endianness>) -> Result<(), AuditError> {
    let mut imports = Vec::new();
    let mut exports = Vec::new();
    for symbol in file.dynamic_symbols() {
        let name = symbol.name().map_err(|error| AuditError::Malformed { message: error.to_string() })?;
        if symbol.is_undefined() {
            imports.push(name);
        } else if symbol.is_global() {
            exports.push(name);
        }
    }
    if !imports.is_empty() {
        return Err(AuditError::Imports { symbols: imports.join(", ") });
    }
    exports.sort_unstable();
    if exports != EXPORTS {
        return Err(AuditError::Exports { found: exports.join(", "), expected: EXPORTS.join(", ") });
    }
    Ok(())
}

fn audit_segments(file: &ElfFile64<'_, Endianness>) -> Result<(), AuditError> {
    let endian = file.endian();
    for segment in file.elf_program_headers() {
        let flags = segment.p_flags(endian);
        match segment.p_type(endian) {
            elf::PT_GNU_STACK if flags & elf::PF_X != 0 => {
                return Err(AuditError::ExecutableStack);
            }
            elf::PT_LOAD if flags & (elf::PF_W | elf::PF_X) == elf::PF_W | elf::PF_X => {
                return Err(AuditError::WritableCode { address: segment.p_vaddr(endian) });
            }
            elf::PT_LOAD | elf::PT_DYNAMIC | elf::PT_PHDR | elf::PT_NOTE => {}
            elf::PT_GNU_STACK | elf::PT_GNU_RELRO | elf::PT_GNU_EH_FRAME | elf::PT_GNU_PROPERTY => {}
            p_type => return Err(AuditError::Segment { p_type }),
        }
    }
    Ok(())
}

fn audit_dynamic(endian: Endianness, entries: &[elf::Dyn64<Endianness>]) -> Result<(), AuditError> {
    for entry in entries {
        let (tag, value) = (entry.d_tag(endian), entry.d_val(endian));
        if tag == elf::DT_NULL {
            break;
        }
        let harmless = HARMLESS_TAGS.contains(&tag);
        let flags = FLAG_TAGS.iter().any(|(known, allowed)| *known == tag && value & !allowed == 0);
        if !harmless && !flags {
            return Err(AuditError::Dynamic { tag: tag_name(tag, value) });
        }
    }
    Ok(())
}

/// What a refused entry asks for, for people.
fn tag_name(tag: i64, value: u64) -> String {
    let names = [
        (elf::DT_NEEDED, "DT_NEEDED (another library)"),
        (elf::DT_RELA, "DT_RELA (relocations)"),
        (elf::DT_REL, "DT_REL (relocations)"),
        (elf::DT_JMPREL, "DT_JMPREL (relocations)"),
        (elf::DT_PLTGOT, "DT_PLTGOT (calls of other libraries)"),
        (elf::DT_TEXTREL, "DT_TEXTREL (relocated code)"),
        (elf::DT_INIT, "DT_INIT (code run when loaded)"),
        (elf::DT_INIT_ARRAY, "DT_INIT_ARRAY (code run when loaded)"),
        (elf::DT_FINI, "DT_FINI (code run when unloaded)"),
        (elf::DT_FINI_ARRAY, "DT_FINI_ARRAY (code run when unloaded)"),
    ];
    let known = names.iter().find(|(known, _)| *known == tag);
    known.map_or_else(|| format!("tag {tag:#x} = {value:#x}"), |(_, name)| (*name).to_owned())
}
