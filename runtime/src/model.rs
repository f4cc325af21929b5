//! A compiled model in memory: its manifest and its two entry points.
//!
//! [`Model::open`] loads a shared object after checking it ([`crate::object_file`]) and after
//! checking that this CPU has what the code uses, so nothing of the file runs on a CPU it is not
//! for. [`Model::from_memory`] makes a model of code that is already in memory.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::abi::{RUN_INTEGER_SYMBOL, RUN_SYMBOL, RunFn};
use crate::cpu;
use crate::error::ErrorClass;
use crate::manifest::{Entry, Manifest, ManifestError};
use crate::object_file::{ObjectError, read_manifest};

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: ObjectError },
    #[error("the model's manifest cannot be used: {0}")]
    Manifest(#[from] ManifestError),
    #[error(
        "{model}: compiled for {needs} (target {target}), but this machine is {}: compile it \
         again for this machine, e.g. with --target host",
        cpu::ARCH
    )]
    Architecture { model: String, target: String, needs: String },
    #[error(
        "{model}: compiled for target {target}, which needs {}; this CPU has only {}: compile it \
         again for this machine, e.g. with --target host",
        missing.join(" "), present.join(" ")
    )]
    CpuFeatures { model: String, target: String, missing: Vec<String>, present: Vec<&'static str> },
    #[error("{}: the dynamic loader refused it: {reason}", path.display())]
    Dynamic { path: PathBuf, reason: String },
}

impl LoadError {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            LoadError::Architecture { .. } | LoadError::CpuFeatures { .. } => ErrorClass::WrongCpu,
            LoadError::File { .. } | LoadError::Manifest(_) | LoadError::Dynamic { .. } => ErrorClass::InvalidInput,
        }
    }
}

/// A model whose code is in memory and may run on this CPU.
pub struct Model {
    manifest: Manifest,
    run: RunFn,
    run_integer: RunFn,
    /// Keeps the code mapped.
    _code: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a compiled model. The file's machine code is trusted: open only what you would run.
    ///
    /// # Errors
    /// [`LoadError::File`] when the file is missing, damaged or not a model;
    /// [`LoadError::Architecture`] and [`LoadError::CpuFeatures`] when it is for another CPU, in
    /// which case nothing was loaded.
    pub fn open(path: &Path) -> Result<Model, LoadError> {
        let manifest = Model::read_manifest(path)?;
        check_cpu(&manifest, &path.display().to_string())?;
        let refused = |reason: String| LoadError::Dynamic { path: path.to_owned(), reason };
        let name = loader_name(path).map_err(|error| refused(error.to_string()))?;
        // SAFETY: `read_manifest` saw that the file runs nothing when loaded or unloaded.
        let library = unsafe { libloading::Library::new(name) }.map_err(|error| refused(error.to_string()))?;
        let entry = |symbol: &str| {
            // SAFETY: by the ABI a symbol of this name in a model has type `RunFn`. The pointer
            // stays valid while `library` lives, which moves into the model.
            unsafe { library.get::<RunFn>(symbol) }.map(|symbol| *symbol).map_err(|error| refused(error.to_string()))
        };
        let (run, run_integer) = (entry(RUN_SYMBOL)?, entry(RUN_INTEGER_SYMBOL)?);
        Ok(Model { manifest, run, run_integer, _code: Box::new(library) })
    }

    /// Reads the manifest of a model file, of any CPU, without loading it.
    pub fn read_manifest(path: &Path) -> Result<Manifest, LoadError> {
        read_manifest(path).map_err(|source| LoadError::File { path: path.to_owned(), source })
    }

    /// Makes a model of code that is already in memory, e.g. compiled just in time. The CPU is
    /// checked as for a file.
    ///
    /// # Safety
    /// `run` and `run_integer` must behave as [`crate::abi`] says for the tensors, arena size and
    /// steps in `manifest`, use no CPU feature that `manifest.features` omits, be callable from any
    /// thread and from several at once, and stay valid until `code` is dropped.
    pub unsafe fn from_memory(
        manifest: Manifest,
        run: RunFn,
        run_integer: RunFn,
        code: Box<dyn Any + Send + Sync>,
    ) -> Result<Model, LoadError> {
        manifest.check()?;
        check_cpu(&manifest, "the model in memory")?;
        Ok(Model { manifest, run, run_integer, _code: code })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn entry_point(&self, entry: Entry) -> RunFn {
        match entry {
            Entry::Border => self.run,
            Entry::Integer => self.run_integer,
        }
    }
}

fn check_cpu(manifest: &Manifest, model: &str) -> Result<(), LoadError> {
    if manifest.arch != cpu::ARCH {
        return Err(LoadError::Architecture {
            model: model.to_owned(),
            target: manifest.target.clone(),
            needs: manifest.arch.clone(),
        });
    }
    let missing = cpu::missing(&manifest.features);
    if missing.is_empty() {
        return Ok(());
    }
    Err(LoadError::CpuFeatures {
        model: model.to_owned(),
        target: manifest.target.clone(),
        missing,
        present: cpu::detected(),
    })
}

/// A name for `path` that no library in this process was loaded under.
///
/// The dynamic loader returns a loaded library for a name it has seen even if another file has that
/// name by now, as after compiling a model anew while the old one is still loaded. It only then
/// compares the files themselves, and still shares one file loaded twice. So every load spells the
/// folder differently: the bits of a counter as `/` or `/.` before the file's name.
fn loader_name(path: &Path) -> io::Result<OsString> {
    static LOADS: AtomicU32 = AtomicU32::new(1);
    let path = fs::canonicalize(path)?;
    let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("the path has no file name"));
    };
    if path.as_os_str().as_encoded_bytes().contains(&b'$') {
        return Err(io::Error::other("the path contains '$', which the dynamic loader would expand"));
    }
    let mut name = folder.as_os_str().to_owned();
    let load = LOADS.fetch_add(1, Ordering::Relaxed);
    for bit in (0..=load.ilog2()).rev() {
        name.push(if load >> bit & 1 == 1 { "/." } else { "/" });
    }
    name.push("/");
    name.push(file);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn loader_names_differ_and_mean_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.so");
        fs::write(&path, b"x").unwrap();
        let names: HashSet<OsString> = (0..200).map(|_| loader_name(&path).unwrap()).collect();
        assert_eq!(names.len(), 200);
        let whole = fs::canonicalize(&path).unwrap();
        for name in names {
            assert_eq!(fs::canonicalize(name).unwrap(), whole);
        }
    }

    #[test]
    fn missing_and_foreign_files_are_invalid_input() {
        let folder = tempfile::tempdir().unwrap();
        let garbage = folder.path().join("garbage.so");
        fs::write(&garbage, b"not an object file at all").unwrap();
        let empty = folder.path().join("empty.so");
        fs::write(&empty, b"").unwrap();
        for path in [&folder.path().join("none.so"), &garbage, &empty, &folder.path().into()] {
            let error = Model::open(path).unwrap_err();
            assert_eq!(error.class(), ErrorClass::InvalidInput, "{error}");
            assert!(error.to_string().contains(&path.display().to_string()));
        }
    }
}
