//! Models loaded from shared objects and from memory, run through sessions; and files that must not
//! be loaded.

mod built;

use std::ffi::c_void;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use built::{build, build_framed, c_compiler, manifest};
use hawqc_runtime::abi::{Call, TaskFn};
use hawqc_runtime::model::LoadError;
use hawqc_runtime::{Elem, Entry, ErrorClass, Model, Pool, RunError, Session, Tensor, TensorRef, cpu};

const X: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, -6.0];

fn x() -> Tensor {
    Tensor::new(vec![1, 2, 3], X.to_vec()).unwrap()
}

fn open(path: &Path) -> Arc<Model> {
    Arc::new(Model::open(path).unwrap())
}

/// Runs the model of `c/model.c` at both entry points and checks every output.
fn check_runs(session: &mut Session, scale: i32) {
    let outputs = session.run(&[x().view()]).unwrap();
    let expected: Vec<f32> = X.iter().map(|value| value * scale as f32).collect();
    assert_eq!(outputs[0].as_slice::<f32>().unwrap(), expected);
    assert_eq!(outputs[1].as_slice::<i32>().unwrap(), [9, session.threads() as i32]);
    let kept = session.kept_value(0).unwrap();
    let expected: Vec<i32> = X.iter().map(|value| *value as i32 * scale).collect();
    assert_eq!((kept.shape(), kept.as_slice::<i32>().unwrap()), (&[6][..], &expected[..]));

    let integers = Tensor::new(vec![1, 3, 2], vec![0u8, 1, 2, 3, 4, 255]).unwrap();
    let outputs = session.run_integer(&[integers.view()]).unwrap();
    let expected: Vec<i32> = [0, 1, 2, 3, 4, 255].iter().map(|value| value * scale).collect();
    assert_eq!(outputs[0].as_slice::<i32>().unwrap(), expected);
    assert_eq!(outputs[1].as_slice::<i32>().unwrap()[0], 265);
}

#[test]
fn a_model_runs_with_any_threads() {
    let Some(cc) = c_compiler("a_model_runs_with_any_threads") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = open(&build(&cc, folder.path(), "m.so", &manifest(), &[]));
    assert_eq!(*model.manifest(), manifest());
    for threads in 1..=4 {
        let mut session = Session::new(Arc::clone(&model), Some(threads)).unwrap();
        assert_eq!(session.threads(), threads);
        for _ in 0..1000 {
            check_runs(&mut session, 2);
        }
    }
    let pool = Arc::new(Pool::new(2).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut session = Session::with_pool(Arc::clone(&model), Arc::clone(&pool)).unwrap();
            scope.spawn(move || (0..1000).for_each(|_| check_runs(&mut session, 2)));
        }
    });
}

#[test]
fn a_callers_threads_are_used() {
    unsafe extern "C" fn backwards(pool: *mut c_void, task_fn: TaskFn, call: *const Call, tasks: i64) {
        // SAFETY: `pool` is the vector below, and the model asks for each task once.
        unsafe {
            (*pool.cast::<Vec<i64>>()).push(tasks);
            (0..tasks).rev().for_each(|task| task_fn(call, task, tasks));
        }
    }
    let Some(cc) = c_compiler("a_callers_threads_are_used") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = open(&build(&cc, folder.path(), "m.so", &manifest(), &[]));
    let mut calls: Vec<i64> = Vec::new();
    let pool = std::ptr::from_mut(&mut calls).cast();
    // SAFETY: `backwards` runs every task once, and the vector outlives the session.
    let mut session = unsafe { Session::with_parallel_for(Arc::clone(&model), 9, backwards, pool) }.unwrap();
    check_runs(&mut session, 2);
    drop(session);
    assert_eq!(calls, [6, 6]);
    // SAFETY: never run.
    let none = unsafe { Session::with_parallel_for(model, 0, backwards, std::ptr::null_mut()) };
    assert_eq!(none.err().unwrap().class(), ErrorClass::Usage);
}

#[test]
fn steps_are_observed_in_order() {
    let Some(cc) = c_compiler("steps_are_observed_in_order") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = open(&build(&cc, folder.path(), "m.so", &manifest(), &[]));
    let mut session = Session::new(model, Some(2)).unwrap();
    let x = x();
    let mut outputs = session.new_outputs(Entry::Border).unwrap();
    let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
    let mut seen = Vec::new();
    session.run_observed(Entry::Border, &[x.view()], &mut views, &mut |step| seen.push(step)).unwrap();
    assert_eq!(seen, [0, 1, 2]);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut stop = |step| {
            if step == 1 {
                std::panic::resume_unwind(Box::new("stop"));
            }
        };
        session.run_observed(Entry::Border, &[x.view()], &mut views, &mut stop)
    }));
    assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "stop");
    check_runs(&mut session, 2);
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let Some(cc) = c_compiler("wrong_tensors_are_refused_by_name") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = open(&build(&cc, folder.path(), "m.so", &manifest(), &[]));
    let mut session = Session::new(model, Some(1)).unwrap();
    let error = session.run(&[]).unwrap_err();
    assert_eq!(error.to_string(), "the model has 1 inputs (x), 0 were given");
    let error = session.run(&[TensorRef::new(&[1, 3, 2], &X).unwrap()]).unwrap_err();
    assert_eq!(error.to_string(), "input 0 \"x\" is f32[1, 2, 3], f32[1, 3, 2] was given");
    let error = session.run(&[TensorRef::new(&[1, 2, 3], &[0u8; 6]).unwrap()]).unwrap_err();
    assert_eq!(error.to_string(), "input 0 \"x\" is f32[1, 2, 3], u8[1, 2, 3] was given");
    let error = session.run_integer(&[x().view()]).unwrap_err();
    assert_eq!(error.to_string(), "input 0 \"x\" is u8[1, 3, 2], f32[1, 2, 3] was given");
    let x = x();
    let mut outputs = session.new_outputs(Entry::Integer).unwrap();
    let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
    let error = session.run_into(Entry::Border, &[x.view()], &mut views).unwrap_err();
    assert_eq!(error.to_string(), "output 0 \"y\" is f32[6], i32[6] was given");
    assert!(matches!(session.kept_value(1), Err(RunError::NoValue { index: 1, kept: 1 })));
}

#[test]
fn a_replaced_file_is_loaded_anew() {
    let Some(cc) = c_compiler("a_replaced_file_is_loaded_anew") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = build(&cc, folder.path(), "m.so", &manifest(), &[]);
    let mut old = Session::new(open(&path), Some(1)).unwrap();
    let newer = build(&cc, folder.path(), "newer.so", &manifest(), &["-DSCALE=3"]);
    fs::rename(newer, &path).unwrap();
    let mut new = Session::new(open(&path), Some(1)).unwrap();
    check_runs(&mut new, 3);
    check_runs(&mut old, 2);
}

#[test]
fn a_model_for_another_cpu_is_not_loaded() {
    let Some(cc) = c_compiler("a_model_for_another_cpu_is_not_loaded") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut wide = manifest();
    wide.features = vec!["avx99".into()];
    let path = build(&cc, folder.path(), "wide.so", &wide, &[]);
    let error = Model::open(&path).unwrap_err();
    assert_eq!(error.class(), ErrorClass::WrongCpu);
    assert!(matches!(&error, LoadError::CpuFeatures { missing, .. } if missing == &["avx99"]));
    assert!(error.to_string().contains("needs avx99; this CPU has only "), "{error}");

    let (arch, machine) = if cpu::ARCH == "x86_64" { ("aarch64", 183u16) } else { ("x86_64", 62) };
    let mut foreign = manifest();
    foreign.arch = arch.into();
    let path = build(&cc, folder.path(), "foreign.so", &foreign, &[]);
    let error = Model::open(&path).unwrap_err();
    assert!(error.to_string().contains("ELF machine number"), "{error}");
    let mut bytes = fs::read(&path).unwrap();
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = Model::open(&path).unwrap_err();
    assert_eq!(error.class(), ErrorClass::WrongCpu);
    assert!(matches!(error, LoadError::Architecture { .. }));
    assert_eq!(Model::read_manifest(&path).unwrap(), foreign);
}

#[test]
fn what_is_not_a_model_is_not_loaded() {
    let Some(cc) = c_compiler("what_is_not_a_model_is_not_loaded") else { return };
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, blob: &[u8], flags: &[&str], why: &str| {
        let opened = Model::open(&build_framed(&cc, folder.path(), name, blob, flags));
        let Err(error) = opened else { panic!("{name} was loaded") };
        assert_eq!(error.class(), ErrorClass::InvalidInput);
        assert!(error.to_string().contains(why), "{error}");
    };
    let good = manifest().to_blob().unwrap();
    refused("import.so", &good, &["-DIMPORT"], "it imports imported_function");
    refused("runs.so", &good, &["-DCONSTRUCTOR"], "it runs code when loaded");
    refused("half.so", &good, &["-DOMIT_RUN_INTEGER"], "it does not export hawqc_run_integer");
    refused("mute.so", &good, &["-DOMIT_MANIFEST"], "it does not export hawqc_manifest");
    refused("magic.so", b"HAWQCM9\0aaaaaaaaaaaa", &[], "magic");
    let mut long = good.clone();
    long[8..16].copy_from_slice(&(1u64 << 24).to_le_bytes());
    refused("long.so", &long, &[], "hawqc_manifest does not lie in the file");
    let mut newer = serde_json::to_value(manifest()).unwrap();
    newer["abi"] = 2.into();
    let text = newer.to_string();
    let mut blob = b"HAWQCM1\0".to_vec();
    blob.extend_from_slice(&(text.len() as u64).to_le_bytes());
    blob.extend_from_slice(text.as_bytes());
    refused("newer.so", &blob, &[], "compiled for ABI version 2");
}

#[test]
fn damaged_files_never_reach_the_loader_or_panic() {
    let Some(cc) = c_compiler("damaged_files_never_reach_the_loader_or_panic") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = build(&cc, folder.path(), "m.so", &manifest(), &[]);
    let bytes = fs::read(&path).unwrap();
    for length in (0..bytes.len()).step_by(61) {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = Model::open(&path).unwrap_err();
        assert_eq!(error.class(), ErrorClass::InvalidInput, "{length}: {error}");
    }
    for at in (0..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, damaged).unwrap();
        // Only read: what a flipped bit of machine code does cannot be known.
        let _ = Model::read_manifest(&path);
    }
}

#[test]
fn code_in_memory_is_a_model() {
    /// Adds one to the one input.
    unsafe extern "C" fn run(call: *const Call) {
        // SAFETY: the session passes one f32 input and one f32 output.
        unsafe {
            let call = &*call;
            *(*call.outputs).cast::<f32>() = *(*call.inputs).cast::<f32>() + 1.0;
            assert!(call.arena.addr().is_multiple_of(64));
        }
    }
    let mut small = manifest();
    small.arena_bytes = 0;
    small.values.clear();
    small.outputs.truncate(1);
    for desc in small.inputs.iter_mut().chain(&mut small.outputs) {
        (desc.shape, desc.integer) = (vec![], None);
    }
    let code = Arc::new("stands for the code's memory");
    // SAFETY: `run` does what the manifest says and lives for ever.
    let model = unsafe { Model::from_memory(small.clone(), run, run, Box::new(Arc::clone(&code))) }.unwrap();
    let mut session = Session::new(Arc::new(model), Some(1)).unwrap();
    for entry in [Entry::Border, Entry::Integer] {
        let outputs = session.run_entry(entry, &[TensorRef::new(&[], &[41.0f32]).unwrap()]).unwrap();
        assert_eq!((outputs[0].elem(), outputs[0].as_slice::<f32>().unwrap()), (Elem::F32, &[42.0][..]));
    }
    assert_eq!(Arc::strong_count(&code), 2);
    drop(session);
    assert_eq!(Arc::strong_count(&code), 1);

    small.features = vec!["avx99".into()];
    // SAFETY: never run.
    let model = unsafe { Model::from_memory(small, run, run, Box::new(())) };
    assert_eq!(model.unwrap_err().class(), ErrorClass::WrongCpu);
}

#[test]
fn an_arena_beyond_memory_is_an_error() {
    unsafe extern "C" fn run(_call: *const Call) {}
    let mut huge = manifest();
    huge.arena_bytes = 1 << 62;
    // SAFETY: never run.
    let model = unsafe { Model::from_memory(huge, run, run, Box::new(())) }.unwrap();
    let error = Session::new(Arc::new(model), Some(1)).err().unwrap();
    assert!(error.to_string().contains("arena of 4611686018427387904 bytes"), "{error}");
}
