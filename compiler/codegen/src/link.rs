//! From an object file to a shared object that imports nothing, without any installed tool.
//!
//! In: the bytes of a relocatable object for x86-64 or aarch64 Linux whose sections are code and
//! read-only data ([`crate::object::object_bytes`]). Out: the bytes of an ELF shared object that
//! exports exactly [`EXPORTS`](crate::object::EXPORTS), needs no relocation when it is loaded, keeps
//! every other symbol in `.symtab` for disassemblers, and passes [`audit_shared_object`]. Same
//! input, same bytes.
//!
//! The linker is our own because the job is small: one object, no imports, no writable data. All
//! references are relative and resolved here; a reference through the global offset table becomes
//! the address itself. Whatever does not fit this is a [`LinkError`], never a worse file.
//! [`LinkWith::Cc`] asks an installed C compiler instead, and passes the same audit.

mod audit;
mod cc;
mod input;
mod relocate;
mod write;

use thiserror::Error;

pub use audit::{AuditError, audit_shared_object};

use crate::target::Arch;

/// Who links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkWith {
    /// The linker in this module.
    Own,
    /// An installed C compiler driver, called as `<command> -shared ..`, e.g. `cc`.
    Cc { command: String },
}

/// Why an object cannot become a shared object.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("the object file cannot be read: {message}")]
    Malformed { message: String },
    #[error(
        "the object file is {found}; only relocatable 64-bit little-endian ELF for x86-64 and aarch64 can be linked"
    )]
    UnsupportedFile { found: String },
    #[error("section `{section}`: {found} cannot be linked; a model consists of code and read-only data")]
    UnsupportedSection { section: String, found: String },
    #[error("undefined symbols: {symbols}; a model imports nothing")]
    Undefined { symbols: String },
    #[error("defined more than once: {symbol}")]
    Duplicate { symbol: String },
    #[error("exported symbols are {found}, and a model exports exactly {expected}")]
    Exports { found: String, expected: String },
    #[error("relocation {kind} against `{symbol}` at {section}+{offset:#x} is not supported for {arch}: {reason}")]
    UnsupportedRelocation { arch: Arch, kind: String, symbol: String, section: String, offset: u64, reason: String },
    #[error("reference to `{symbol}` at {section}+{offset:#x} is out of reach: {distance} bytes away")]
    OutOfReach { symbol: String, section: String, offset: u64, distance: i64 },
    #[error("`{command}`: {message}")]
    Cc { command: String, message: String },
    #[error("the linked shared object fails its audit: {0}")]
    Audit(#[from] AuditError),
}

/// Links `object` into a shared object with the given SONAME.
pub fn link(object: &[u8], soname: &str, with: &LinkWith) -> Result<Vec<u8>, LinkError> {
    let bytes = match with {
        LinkWith::Own => {
            let input = input::Input::read(object)?;
            let layout = write::Layout::of(&input);
            let images = relocate::apply(&input, &layout)?;
            write::shared_object(&input, &layout, &images, soname)?
        }
        LinkWith::Cc { command } => cc::link(command, object, soname)?,
    };
    audit_shared_object(&bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod emulate;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
