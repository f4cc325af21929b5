//! Builds the hand-written model of `c/model.c` with the system's C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use hawqc_runtime::abi::ABI_VERSION;
use hawqc_runtime::manifest::{self, IntegerDesc, Manifest, StepDesc, TensorDesc, ValueDesc};
use hawqc_runtime::{Elem, cpu};

/// The crate's folder.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The C compiler, or `None` with a loud remark. With `cc` in `HAWQC_REQUIRE` its absence fails.
pub fn c_compiler(test: &str) -> Option<PathBuf> {
    let name = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    if Command::new(&name).arg("--version").output().is_ok_and(|found| found.status.success()) {
        return Some(name.into());
    }
    let required = std::env::var("HAWQC_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|item| item == "cc"), "{test}: no C compiler, and HAWQC_REQUIRE wants cc");
    eprintln!("SKIPPED {test}: there is no C compiler ({})", name.to_string_lossy());
    None
}

/// The manifest of `c/model.c` for this machine.
pub fn manifest() -> Manifest {
    let step = |name: &str| StepDesc {
        name: name.into(),
        kernel: "by hand".into(),
        spec: name.into(),
        macs: 6,
        notes: Vec::new(),
    };
    let desc = |name: &str, elem, shape: &[usize], integer| TensorDesc {
        name: name.into(),
        elem,
        shape: shape.to_vec(),
        integer,
    };
    let integer = |elem, shape: &[usize], zero_point| {
        Some(IntegerDesc { elem, shape: shape.to_vec(), scale: vec![0.5], zero_point })
    };
    Manifest {
        schema: manifest::SCHEMA.into(),
        version: manifest::VERSION,
        abi: ABI_VERSION,
        compiler: "by hand".into(),
        target: "test".into(),
        features: vec![],
        arch: cpu::ARCH.into(),
        model_hash: "0".into(),
        arena_bytes: 64 + 24,
        constant_bytes: 0,
        weight_bytes: 0,
        inputs: vec![desc("x", Elem::F32, &[1, 2, 3], integer(Elem::U8, &[1, 3, 2], 7))],
        outputs: vec![desc("y", Elem::F32, &[6], integer(Elem::I32, &[6], 0)), desc("z", Elem::I32, &[2], None)],
        layers: vec![],
        steps: vec![step("scale"), step("sum")],
        values: vec![ValueDesc { name: "scaled".into(), elem: Elem::I32, shape: vec![6], offset: 64, pitch: None }],
    }
}

/// Compiles `c/model.c` with these flags and this framed manifest into `folder/name`.
pub fn build_framed(cc: &Path, folder: &Path, name: &str, blob: &[u8], flags: &[&str]) -> PathBuf {
    let include = folder.join(format!("{name}.d"));
    std::fs::create_dir_all(&include).unwrap();
    let text: String = blob.iter().map(|byte| format!("{byte},")).collect();
    std::fs::write(include.join("manifest.inc"), text).unwrap();
    let path = folder.join(name);
    let output = Command::new(cc)
        .args(["-shared", "-nostdlib", "-fPIC", "-O1", "-std=c11", "-Wall", "-Werror", "-Wno-unused-function"])
        .args(["-ffreestanding", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns"])
        .args(flags)
        .arg("-I")
        .arg(&include)
        .arg("-I")
        .arg(crate_folder().join("include"))
        .arg("-o")
        .arg(&path)
        .arg(crate_folder().join("tests/c/model.c"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// Compiles `c/model.c` with this manifest.
pub fn build(cc: &Path, folder: &Path, name: &str, manifest: &Manifest, flags: &[&str]) -> PathBuf {
    build_framed(cc, folder, name, &manifest.to_blob().unwrap(), flags)
}
