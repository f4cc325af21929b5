use std::path::Path;
use std::process::Command;

use cranelift_codegen::ir::{AbiParam, InstBuilder, types};
use cranelift_module::{DataDescription, Linkage, Module};
use hawqc_runtime::abi::Call;

use super::emulate::emulate;
use super::sample::{self, Input, Output};
use super::*;
use crate::object::{CONSTANT_ALIGN, EXPORTS, JitCode, define_constant, jit_module, object_bytes, object_module};
use crate::target::{ROWS, Target};

const SONAME: &str = "libsample.so";

fn targets() -> Vec<Target> {
    ROWS.iter().map(|row| row.target().unwrap()).collect()
}

fn linked(target: &Target) -> Vec<u8> {
    link(&sample::object(target), SONAME, &LinkWith::Own).unwrap()
}

/// Runs a tool, or says loudly that it is not there.
fn tool(name: &str, args: &[&str], file: &Path) -> Option<String> {
    let Ok(output) = Command::new(name).args(args).arg(file).output() else {
        eprintln!("SKIPPED: `{name}` is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    assert!(errors.is_empty(), "{name} warns: {errors}");
    Some(text)
}

/// Calls an entry point of the sample model.
///
/// # Safety
/// `entry` is the code of one of the sample's two entry points, for a target that runs here.
unsafe fn call(entry: unsafe extern "C" fn(*const Call)) -> Output {
    let (input, real) = (Input::extremes(), 20.75f32);
    let inputs = [(&raw const input).cast(), (&raw const real).cast()];
    let mut output = Output::default();
    let outputs = [(&raw mut output).cast()];
    let call = Call {
        inputs: inputs.as_ptr(),
        outputs: outputs.as_ptr(),
        arena: std::ptr::null_mut(),
        threads: 1,
        parallel_for: None,
        pool: std::ptr::null_mut(),
        on_step: None,
        on_step_user: std::ptr::null_mut(),
    };
    // SAFETY: the sample reads one Input and one f32 and writes one Output.
    unsafe { entry(&call) };
    output
}

fn check(output: &Output, doubled: i32) {
    assert_eq!(output.sums, Input::extremes().expected_sums());
    assert_eq!(output.table_address % CONSTANT_ALIGN, 0);
    assert_eq!(output.table_last, *sample::table().last().unwrap());
    assert_eq!(output.doubled, doubled);
}

/// Loads a shared object the way the runtime does and runs both entry points.
fn check_loaded(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.so");
    std::fs::write(&path, bytes).unwrap();
    // SAFETY: the file was just linked and runs nothing when loaded.
    let library = unsafe { libloading::Library::new(&path) }.unwrap();
    let [manifest, run, run_integer] = EXPORTS;
    // SAFETY: the symbols have these types by construction, and the target runs here.
    unsafe {
        let manifest = library.get::<*const u8>(manifest).unwrap();
        assert_eq!(*manifest as usize % 64, 0);
        assert_eq!(std::slice::from_raw_parts(*manifest, 8), b"HAWQCM1\0");
        check(&call(*library.get(run).unwrap()), 41);
        check(&call(*library.get(run_integer).unwrap()), 0);
        assert!(library.get::<*const u8>("step.0.dot").is_err());
    }
}

#[test]
fn loaded_code_equals_jit() {
    for target in targets() {
        if !target.runs_here() {
            eprintln!("SKIPPED: this machine cannot run {target}");
            continue;
        }
        check_loaded(&linked(&target));
        let mut module = jit_module(&target, 1 << 20).unwrap();
        let sample = sample::define(&mut module, &target);
        let code = JitCode::finish(module).unwrap();
        // SAFETY: the addresses are those of the sample's entry points, alive with `code`.
        unsafe {
            type Entry = unsafe extern "C" fn(*const Call);
            let entry = |id| std::mem::transmute::<*const u8, Entry>(code.function(id));
            check(&call(entry(sample.run)), 41);
            check(&call(entry(sample.run_integer)), 0);
        }
    }
}

#[test]
fn same_input_gives_same_bytes() {
    for target in targets() {
        assert!(linked(&target) == linked(&target), "{target}");
    }
}

#[test]
fn installed_compiler_links_the_same_model() {
    let target = Target::host().unwrap();
    let with = LinkWith::Cc { command: "cc".to_owned() };
    match link(&sample::object(&target), SONAME, &with) {
        Ok(bytes) => check_loaded(&bytes),
        Err(LinkError::Cc { message, .. }) if message.contains("No such file") => {
            eprintln!("SKIPPED: `cc` is not installed");
        }
        Err(error) => panic!("{error}"),
    }
    let with = LinkWith::Cc { command: "no-such-compiler".to_owned() };
    assert!(matches!(link(&sample::object(&target), SONAME, &with), Err(LinkError::Cc { .. })));
}

#[test]
fn readelf_and_objdump_understand_it() {
    for target in targets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.so");
        std::fs::write(&path, linked(&target)).unwrap();
        if let Some(text) = tool("readelf", &["-a", "-W"], &path) {
            assert!(!text.contains("NEEDED"), "{text}");
            assert!(text.contains("Library soname: [libsample.so]"), "{text}");
            assert!(text.contains("There are no relocations"), "{text}");
            assert!(!text.contains("RWE"), "{text}");
        }
        tool("readelf", &["--lint", "-a", "-W"], &path);
        let objdump = match target.arch() {
            Arch::X86_64 => "objdump",
            Arch::Aarch64 => "aarch64-linux-gnu-objdump",
        };
        if let Some(text) = tool(objdump, &["-d", "--no-show-raw-insn"], &path) {
            for name in ["step.0.dot", "border.input", "hawqc_run", "hawqc_run_integer"] {
                assert!(text.contains(&format!("<{name}>:")), "{target}: {text}");
            }
            let names = ["hawqc_run", "call", "bl"];
            assert!(names.iter().any(|name| text.contains(name)), "{text}");
        }
    }
}

#[test]
fn missing_exports_are_refused() {
    let target = Target::parse("x86-64-v2").unwrap();
    let mut module = object_module(&target, "m").unwrap();
    define_constant(&mut module, EXPORTS[0], vec![0]).unwrap();
    let error = link(&object_bytes(module).unwrap(), SONAME, &LinkWith::Own).unwrap_err();
    assert!(matches!(error, LinkError::Exports { .. }), "{error}");
    assert!(error.to_string().contains("hawqc_run_integer"), "{error}");
}

#[test]
fn undefined_symbols_are_refused() {
    for target in targets() {
        let mut module = object_module(&target, "m").unwrap();
        sample::define(&mut module, &target);
        let mut signature = module.make_signature();
        signature.params.push(AbiParam::new(types::I64));
        let imported = module.declare_function("memcpy", Linkage::Import, &signature).unwrap();
        sample::define_body(&mut module, "step.1.copy", |module, b, call| {
            let imported = module.declare_func_in_func(imported, b.func);
            b.ins().call(imported, &[call]);
        });
        let error = link(&object_bytes(module).unwrap(), SONAME, &LinkWith::Own).unwrap_err();
        assert!(matches!(&error, LinkError::Undefined { symbols } if symbols == "memcpy"), "{error}");
    }
}

#[test]
fn writable_data_and_stored_addresses_are_refused() {
    for target in targets() {
        for writable in [true, false] {
            let mut module = object_module(&target, "m").unwrap();
            sample::define(&mut module, &target);
            let other = define_constant(&mut module, "const.other", vec![0; 8]).unwrap();
            let id = module.declare_data("const.bad", Linkage::Local, writable, false).unwrap();
            let mut data = DataDescription::new();
            data.define(vec![1; 8].into_boxed_slice());
            if !writable {
                let other = module.declare_data_in_data(other, &mut data);
                data.write_data_addr(0, other, 0);
            }
            module.define_data(id, &data).unwrap();
            let error = link(&object_bytes(module).unwrap(), SONAME, &LinkWith::Own).unwrap_err();
            assert!(matches!(error, LinkError::UnsupportedSection { .. }), "{error}");
        }
    }
}

#[test]
fn damaged_files_are_refused_without_panic() {
    let target = Target::parse("x86-64-v3").unwrap();
    let (object, shared) = (sample::object(&target), linked(&target));
    assert!(matches!(link(b"", SONAME, &LinkWith::Own), Err(LinkError::Malformed { .. })));
    assert!(matches!(link(&shared, SONAME, &LinkWith::Own), Err(LinkError::UnsupportedFile { .. })));
    assert!(matches!(audit_shared_object(&object), Err(AuditError::NotASharedObject)));
    for cut in (0..object.len()).step_by(37) {
        let _ = link(&object[..cut], SONAME, &LinkWith::Own);
        let mut changed = object.clone();
        changed[cut] ^= 0xFF;
        let _ = link(&changed, SONAME, &LinkWith::Own);
    }
    for cut in (0..shared.len()).step_by(37) {
        let _ = audit_shared_object(&shared[..cut]);
    }
    for soname in ["", "a\0b", &"x".repeat(2000)] {
        assert!(link(&object, soname, &LinkWith::Own).is_err());
    }
}

#[test]
fn ordinary_libraries_fail_the_audit() {
    let target = Target::host().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("a.c"), folder.path().join("a.so"));
    std::fs::write(&source, "int puts(const char *); int f(void) { return puts(\"\"); }").unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&output, &source]).status();
    match compiled {
        Ok(status) if status.success() => {
            let error = audit_shared_object(&std::fs::read(&output).unwrap()).unwrap_err();
            assert!(matches!(error, AuditError::Imports { .. }), "{error}");
        }
        _ => eprintln!("SKIPPED: `cc` is not installed"),
    }
    // An export too many, and an executable stack, in a file that is otherwise right.
    let bytes = linked(&target);
    let at = bytes.windows(10).position(|w| w == b"hawqc_run\0").unwrap();
    let mut renamed = bytes.clone();
    renamed[at] = b'x';
    assert!(matches!(audit_shared_object(&renamed), Err(AuditError::Exports { .. })));
}

#[test]
fn aarch64_runs_under_an_emulator() {
    for name in ["aarch64", "aarch64-dotprod"] {
        let target = Target::parse(name).unwrap();
        let bytes = linked(&target);
        let input = Input::extremes();
        let mut data = Vec::new();
        data.extend(input.acc.iter().flat_map(|n| n.to_le_bytes()));
        data.extend(input.unsigned);
        data.extend(input.signed.iter().map(|n| *n as u8));
        let mut output = vec![0u8; 32];
        if !emulate(&bytes, &data, &mut output) {
            return;
        }
        let sums: [i32; 4] =
            std::array::from_fn(|lane| i32::from_le_bytes(output[4 * lane..4 * lane + 4].try_into().unwrap()));
        assert_eq!(sums, input.expected_sums(), "{name}");
        let address = u64::from_le_bytes(output[16..24].try_into().unwrap());
        assert_eq!(address % CONSTANT_ALIGN, 0);
        let last = i32::from_le_bytes(output[24..28].try_into().unwrap());
        assert_eq!(last, *sample::table().last().unwrap());
    }
}
