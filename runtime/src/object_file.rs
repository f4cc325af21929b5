//! Reads a compiled model's shared object without loading it.
//!
//! Comes in: a path. Goes out: the [`Manifest`], once the file holds what makes loading harmless:
//! a 64-bit little-endian ELF shared object whose segments lie inside the file, that needs no
//! library, imports no symbol, runs nothing when loaded or unloaded, and exports the manifest and
//! both entry points, the latter inside executable segments. Only the needed parts of the file are
//! read, and a model for another architecture can be read as well.

use std::fs::File;
use std::io;
use std::path::Path;

use object::LittleEndian;
use object::elf;
use object::read::elf::{Dyn as _, ElfFile64, ProgramHeader as _};
use object::read::{Object as _, ObjectSymbol as _, ReadCache, ReadRef as _};

use crate::abi::{MANIFEST_SYMBOL, RUN_INTEGER_SYMBOL, RUN_SYMBOL};
use crate::manifest::{HEADER_BYTES, Manifest, ManifestError, text_bytes};

/// Why a file is not a compiled model.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is not a 64-bit little-endian ELF file ({0})")]
    NotElf(object::read::Error),
    #[error("is a damaged or truncated shared object: {0}")]
    Damaged(String),
    #[error("is an ELF file but not a compiled model: {0}")]
    NotAModel(String),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

type Elf<'data> = ElfFile64<'data, LittleEndian, &'data ReadCache<File>>;

/// Checks the file at `path` and reads its manifest.
pub fn read_manifest(path: &Path) -> Result<Manifest, ObjectError> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file").into());
    }
    let cache = ReadCache::new(file);
    let object = Model { elf: Elf::parse(&cache).map_err(ObjectError::NotElf)?, data: &cache };
    object.check_segments()?;
    object.check_dynamic()?;
    object.check_entry(RUN_SYMBOL)?;
    object.check_entry(RUN_INTEGER_SYMBOL)?;
    let manifest = object.manifest()?;
    object.check_machine(&manifest.arch)?;
    Ok(manifest)
}

struct Model<'data> {
    elf: Elf<'data>,
    data: &'data ReadCache<File>,
}

impl<'data> Model<'data> {
    fn check_segments(&self) -> Result<(), ObjectError> {
        let header = self.elf.elf_header();
        if header.e_type.get(LittleEndian) != elf::ET_DYN {
            return Err(ObjectError::NotAModel("it is not a shared object".into()));
        }
        let file_bytes = self.data.len().map_err(|()| ObjectError::Damaged("its length cannot be read".into()))?;
        for segment in self.elf.elf_program_headers() {
            if segment.p_type(LittleEndian) == elf::PT_INTERP {
                return Err(ObjectError::NotAModel("it is a program".into()));
            }
            let (offset, size) = segment.file_range(LittleEndian);
            let end = offset.checked_add(size);
            if end.is_none_or(|end| end > file_bytes) {
                return Err(ObjectError::Damaged(format!(
                    "a segment of {size} bytes at offset {offset} ends beyond the file's \
                     {file_bytes} bytes"
                )));
            }
        }
        Ok(())
    }

    /// What the dynamic loader would do besides mapping and relocating: nothing may remain.
    fn check_dynamic(&self) -> Result<(), ObjectError> {
        let mut has_dynamic = false;
        for segment in self.elf.elf_program_headers() {
            let entries =
                segment.dynamic(LittleEndian, self.data).map_err(|error| ObjectError::Damaged(error.to_string()))?;
            for entry in entries.unwrap_or_default() {
                has_dynamic = true;
                let refused = match entry.d_tag(LittleEndian) {
                    elf::DT_NULL => break,
                    elf::DT_NEEDED => "it needs another library",
                    elf::DT_INIT | elf::DT_FINI | elf::DT_INIT_ARRAY | elf::DT_FINI_ARRAY => {
                        "it runs code when loaded or unloaded"
                    }
                    _ => continue,
                };
                return Err(ObjectError::NotAModel(refused.into()));
            }
        }
        if !has_dynamic {
            return Err(ObjectError::NotAModel("it has no dynamic section".into()));
        }
        for symbol in self.elf.dynamic_symbols() {
            let name = symbol.name().unwrap_or("(unreadable name)");
            if symbol.is_undefined() && !name.is_empty() {
                return Err(ObjectError::NotAModel(format!("it imports {name}")));
            }
        }
        Ok(())
    }

    /// Address of an exported symbol.
    fn export(&self, name: &str) -> Result<u64, ObjectError> {
        self.elf
            .dynamic_symbols()
            .find(|symbol| {
                let exported = symbol.elf_symbol().st_bind() == elf::STB_GLOBAL;
                exported && !symbol.is_undefined() && symbol.name() == Ok(name)
            })
            .map(|symbol| symbol.address())
            .ok_or_else(|| ObjectError::NotAModel(format!("it does not export {name}")))
    }

    /// The file's bytes that will lie at `address`, if one segment with all of `flags` holds them.
    fn bytes_at(&self, address: u64, size: u64, flags: u32) -> Option<&'data [u8]> {
        self.elf.elf_program_headers().iter().find_map(|segment| {
            let wanted = segment.p_type(LittleEndian) == elf::PT_LOAD && segment.p_flags(LittleEndian) & flags == flags;
            let inside = address.checked_sub(segment.p_vaddr(LittleEndian))?;
            let (offset, file_size) = segment.file_range(LittleEndian);
            let end = inside.checked_add(size)?;
            if !wanted || end > file_size {
                return None;
            }
            let data = self.data;
            data.read_bytes_at(offset.checked_add(inside)?, size).ok()
        })
    }

    fn check_entry(&self, name: &str) -> Result<(), ObjectError> {
        let address = self.export(name)?;
        match self.bytes_at(address, 1, elf::PF_R | elf::PF_X) {
            Some(_) => Ok(()),
            None => Err(ObjectError::Damaged(format!("{name} does not lie in executable code"))),
        }
    }

    fn manifest(&self) -> Result<Manifest, ObjectError> {
        let address = self.export(MANIFEST_SYMBOL)?;
        let outside = || ObjectError::Damaged(format!("{MANIFEST_SYMBOL} does not lie in the file"));
        let header = self.bytes_at(address, HEADER_BYTES as u64, elf::PF_R).ok_or_else(outside)?;
        let size = HEADER_BYTES + text_bytes(header)?;
        let blob = self.bytes_at(address, size as u64, elf::PF_R).ok_or_else(outside)?;
        Ok(Manifest::from_blob(blob)?)
    }

    fn check_machine(&self, arch: &str) -> Result<(), ObjectError> {
        let machine = self.elf.elf_header().e_machine.get(LittleEndian);
        let expected = match arch {
            "x86_64" => elf::EM_X86_64,
            "aarch64" => elf::EM_AARCH64,
            _ => {
                return Err(ObjectError::Damaged(format!("its manifest names the unknown architecture \"{arch}\"")));
            }
        };
        if machine == expected {
            return Ok(());
        }
        Err(ObjectError::Damaged(format!("its manifest says {arch} but its ELF machine number is {machine}")))
    }
}
