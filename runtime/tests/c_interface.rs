//! `include/hawqc.h` against the built library: a C program that uses every function.

mod built;

use std::path::{Path, PathBuf};
use std::process::Command;

use built::{build, c_compiler, crate_folder, manifest};

/// The folder of this test's program, where Cargo also puts the crate's libraries.
fn library_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap().to_owned();
    assert!(folder.join("libhawqc_runtime.so").exists(), "no libhawqc_runtime.so in {}", folder.display());
    folder
}

/// Compiles a C program against the header and the shared library, with every warning an error.
fn build_program(cc: &Path, source: &Path, program: &Path) {
    let libraries = library_folder();
    let output = Command::new(cc)
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-I"])
        .arg(crate_folder().join("include"))
        .arg(source)
        .arg("-o")
        .arg(program)
        .arg(libraries.join("libhawqc_runtime.so"))
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_c_program_uses_every_function() {
    let Some(cc) = c_compiler("a_c_program_uses_every_function") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = build(&cc, folder.path(), "m.so", &manifest(), &[]);
    let mut wide = manifest();
    wide.features = vec!["no-such-feature".into()];
    let wide = build(&cc, folder.path(), "wide.so", &wide, &[]);

    let program = folder.path().join("interface");
    build_program(&cc, &crate_folder().join("tests/c/interface.c"), &program);
    let output = Command::new(&program).arg(&model).arg(&wide).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_example_program_runs_a_model() {
    let Some(cc) = c_compiler("the_example_program_runs_a_model") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = build(&cc, folder.path(), "m.so", &manifest(), &[]);
    let program = folder.path().join("run-model");
    build_program(&cc, &crate_folder().join("../examples/c/main.c"), &program);
    let input = folder.path().join("x.f32");
    let bytes: Vec<u8> = [1.0f32, -2.0, 8.0, 4.0, 0.5, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(&input, &bytes).unwrap();
    let run = |arguments: &[&str]| Command::new(&program).args(arguments).output().unwrap();

    let (model, input) = (model.to_str().unwrap(), input.to_str().unwrap());
    let output = run(&[model, "--input", input, "--top", "3", "--threads", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let expected = "input x: f32[1,2,3] output y: f32[6] 2 16 3 8 5 6 output z: i32[2] 0 14 1 2";
    assert_eq!(words.join(" "), expected);
    assert!(output.status.success());
    let random = || run(&[model, "--threads", "2", "--seed", "7"]).stdout;
    assert_eq!(random(), random());

    std::fs::write(input, &bytes[1..]).unwrap();
    assert_eq!(run(&[model, "--input", input]).status.code(), Some(3));
    assert_eq!(run(&[input]).status.code(), Some(3));
    assert_eq!(run(&[model, "--threads"]).status.code(), Some(2));
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
