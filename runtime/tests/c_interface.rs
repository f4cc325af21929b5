//! `include/hawqc.h` against the built library: a C program that uses every function.

mod built;

use std::path::PathBuf;
use std::process::Command;

use built::{build, c_compiler, crate_folder, manifest};

/// The folder of this test's program, where Cargo also puts the crate's libraries.
fn library_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap().to_owned();
    assert!(folder.join("libhawqc_runtime.so").exists(), "no libhawqc_runtime.so in {}", folder.display());
    folder
}

#[test]
fn a_c_program_uses_every_function() {
    let Some(cc) = c_compiler("a_c_program_uses_every_function") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = build(&cc, folder.path(), "m.so", &manifest(), &[]);
    let mut wide = manifest();
    wide.features = vec!["no-such-feature".into()];
    let wide = build(&cc, folder.path(), "wide.so", &wide, &[]);

    let libraries = library_folder();
    let program = folder.path().join("interface");
    let output = Command::new(&cc)
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-I"])
        .arg(crate_folder().join("include"))
        .arg(crate_folder().join("tests/c/interface.c"))
        .arg("-o")
        .arg(&program)
        .arg(libraries.join("libhawqc_runtime.so"))
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(&program).arg(&model).arg(&wide).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_header_is_cpp_too() {
    let header = crate_folder().join("include/hawqc.h");
    let mut check = Command::new("c++");
    check.args(["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-x", "c++"]);
    let Ok(output) = check.arg(header).output() else {
        eprintln!("SKIPPED the_header_is_cpp_too: there is no C++ compiler (c++)");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every function the header declares is defined in the Rust source, and the other way round.
#[test]
fn header_and_source_name_the_same_functions() {
    let header = std::fs::read_to_string(crate_folder().join("include/hawqc.h")).unwrap();
    let source = std::fs::read_to_string(crate_folder().join("src/capi.rs")).unwrap();
    let library = header.split("---- 2. The library").nth(1).unwrap();
    let name = |text: &str| {
        let name = &text[text.find("hawqc_")?..];
        Some(name[..name.find('(')?].to_owned())
    };
    // A declaration starts in the first column with its result type.
    let starts = ["hawqc_status hawqc_", "const char *hawqc_", "size_t hawqc_", "uint32_t hawqc_", "void hawqc_"];
    let mut declared: Vec<String> = library
        .lines()
        .filter_map(|line| starts.iter().find_map(|start| line.strip_prefix(&start[..start.len() - 6])))
        .filter_map(name)
        .collect();
    let mut defined: Vec<String> =
        source.lines().filter(|line| line.contains("extern \"C\" fn hawqc_")).filter_map(name).collect();
    declared.sort();
    defined.sort();
    assert!(declared.len() > 10);
    assert_eq!(declared, defined);
}
