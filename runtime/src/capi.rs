//! The C interface declared in `include/hawqc.h`, which documents every function.
//!
//! Every function checks its pointers for null, never unwinds into C, and leaves its message in a
//! thread-local string. Everything else a pointer must satisfy is the C caller's promise, which is
//! what each `# Safety` section below means by *as the header says*.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, TryLockError};

use crate::abi::{ABI_VERSION, ParallelForFn};
use crate::elem::{Elem, checked_elements};
use crate::error::{Error, ErrorClass};
use crate::manifest::{Entry, TensorDesc};
use crate::model::Model;
use crate::session::Session;
use crate::tensor::{TensorMut, TensorRef};

/// `hawqc_status`: 0, or [`ErrorClass::code`].
type Status = i32;
const OK: Status = 0;

/// What a function of this interface failed with.
struct Failure {
    class: ErrorClass,
    message: String,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        Failure { class: error.class(), message: error.to_string() }
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure { class: ErrorClass::Usage, message: message.into() }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure { class: ErrorClass::InvalidInput, message: message.into() }
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The text as a C string; interior zero bytes, which C could not see past, become spaces.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Runs the body of a function of this interface: panics and failures become a status and the
/// thread's last error.
fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    let failure = match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure { class: ErrorClass::Internal, message: panic_message(payload.as_ref()) },
    };
    let message = c_string(&failure.message);
    // During thread exit there is nobody left to ask for the message.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(message)));
    failure.class.code()
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("internal fault: {}", text.unwrap_or("no message"))
}

/// # Safety
/// `pointer` is null or valid for reads for `'a` as the header says.
unsafe fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: by this function's contract.
    unsafe { pointer.as_ref() }.ok_or_else(|| usage(format!("{name} is NULL")))
}

/// # Safety
/// `start` is null or valid for reads of `count` elements for `'a`.
unsafe fn given_slice<'a, T>(start: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if start.is_null() {
        return Err(usage(format!("{name} is NULL")));
    }
    // SAFETY: by this function's contract, and not null.
    Ok(unsafe { slice::from_raw_parts(start, count) })
}

fn check_target<T>(target: *mut T, name: &str) -> Result<(), Failure> {
    if target.is_null() { Err(usage(format!("{name} is NULL"))) } else { Ok(()) }
}

fn parse_entry(entry: i32) -> Result<Entry, Failure> {
    match entry {
        0 => Ok(Entry::Border),
        1 => Ok(Entry::Integer),
        _ => Err(usage(format!("entry {entry} is neither HAWQC_BORDER nor HAWQC_INTEGER"))),
    }
}

/// `hawqc_model`: a model with its texts as C wants them.
pub struct CModel {
    model: Arc<Model>,
    manifest: CString,
    inputs: Vec<CTensor>,
    outputs: Vec<CTensor>,
}

/// One input or output: its name, and its shape at either entry point.
struct CTensor {
    name: CString,
    border_shape: Vec<i64>,
    integer_shape: Vec<i64>,
}

impl CTensor {
    fn new(desc: &TensorDesc) -> CTensor {
        // A manifest's extents fit in memory, hence in an i64.
        let shape = |entry| desc.at(entry).1.iter().map(|&extent| extent as i64).collect();
        CTensor { name: c_string(&desc.name), border_shape: shape(Entry::Border), integer_shape: shape(Entry::Integer) }
    }

    fn info(&self, desc: &TensorDesc, entry: Entry) -> CTensorInfo {
        let (elem, extents) = desc.at(entry);
        let shape = match entry {
            Entry::Border => &self.border_shape,
            Entry::Integer => &self.integer_shape,
        };
        // A manifest's tensors were checked to have a size.
        let elements = checked_elements(elem, extents).unwrap_or(0);
        let integer = desc.integer.as_ref();
        let scale = integer.map_or(&[][..], |integer| &integer.scale);
        CTensorInfo {
            name: self.name.as_ptr(),
            shape: shape.as_ptr(),
            rank: shape.len(),
            elements,
            bytes: elements * elem.size_bytes(),
            scale: if scale.is_empty() { ptr::null() } else { scale.as_ptr() },
            scale_count: scale.len(),
            zero_point: integer.map_or(0, |integer| integer.zero_point),
            elem: c_type(elem),
        }
    }
}

/// `hawqc_type`.
fn c_type(elem: Elem) -> i32 {
    match elem {
        Elem::F32 => 0,
        Elem::U8 => 1,
        Elem::I8 => 2,
        Elem::I16 => 3,
        Elem::I32 => 4,
        Elem::I64 => 5,
    }
}

/// `hawqc_tensor_info`.
#[repr(C)]
pub struct CTensorInfo {
    name: *const c_char,
    shape: *const i64,
    rank: usize,
    elements: usize,
    bytes: usize,
    scale: *const f32,
    scale_count: usize,
    zero_point: i32,
    elem: i32,
}

/// `hawqc_session_options`.
#[repr(C)]
pub struct CSessionOptions {
    threads: i64,
    parallel_for: Option<ParallelForFn>,
    pool: *mut c_void,
}

/// `hawqc_input`.
#[repr(C)]
pub struct CInput {
    data: *const c_void,
    bytes: usize,
}

/// `hawqc_output`.
#[repr(C)]
pub struct COutput {
    data: *mut c_void,
    bytes: usize,
}

/// `hawqc_session`.
pub struct CSession {
    model: Arc<Model>,
    threads: usize,
    session: Mutex<Session>,
}

#[unsafe(no_mangle)]
pub extern "C" fn hawqc_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn hawqc_abi_version() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn hawqc_last_error() -> *const c_char {
    let message = LAST_ERROR.try_with(|last| last.borrow().as_ref().map(|message| message.as_ptr()));
    message.ok().flatten().unwrap_or(c"".as_ptr())
}

/// # Safety
/// As the header says: `path` is null or a C string, `model` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_open(path: *const c_char, model: *mut *mut CModel) -> Status {
    guarded(|| {
        check_target(model, "model")?;
        if path.is_null() {
            return Err(usage("path is NULL"));
        }
        // SAFETY: by this function's contract, and not null.
        let path = unsafe { CStr::from_ptr(path) };
        let opened = CModel::open(&path_of(path)?)?;
        // SAFETY: by this function's contract, and not null.
        unsafe { model.write(Box::into_raw(Box::new(opened))) };
        Ok(())
    })
}

#[cfg(unix)]
fn path_of(path: &CStr) -> Result<std::path::PathBuf, Failure> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())).to_owned())
}

#[cfg(not(unix))]
fn path_of(path: &CStr) -> Result<std::path::PathBuf, Failure> {
    match path.to_str() {
        Ok(path) => Ok(Path::new(path).to_owned()),
        Err(_) => Err(invalid("the path is not UTF-8")),
    }
}

impl CModel {
    fn open(path: &Path) -> Result<CModel, Failure> {
        let model = Model::open(path)?;
        let manifest = model.manifest();
        let text = serde_json::to_string(manifest)
            .map_err(|error| Failure { class: ErrorClass::Internal, message: error.to_string() })?;
        Ok(CModel {
            manifest: c_string(&text),
            inputs: manifest.inputs.iter().map(CTensor::new).collect(),
            outputs: manifest.outputs.iter().map(CTensor::new).collect(),
            model: Arc::new(model),
        })
    }
}

/// # Safety
/// As the header says: `model` is null or came from [`hawqc_model_open`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_close(model: *mut CModel) {
    guarded(|| {
        if !model.is_null() {
            // SAFETY: by this function's contract it is the box `hawqc_model_open` gave away.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// # Safety
/// As the header says: `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_manifest(model: *const CModel) -> *const c_char {
    // SAFETY: by this function's contract.
    unsafe { model.as_ref() }.map_or(ptr::null(), |model| model.manifest.as_ptr())
}

/// # Safety
/// As the header says: `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_input_count(model: *const CModel) -> usize {
    // SAFETY: by this function's contract.
    unsafe { model.as_ref() }.map_or(0, |model| model.inputs.len())
}

/// # Safety
/// As the header says: `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_output_count(model: *const CModel) -> usize {
    // SAFETY: by this function's contract.
    unsafe { model.as_ref() }.map_or(0, |model| model.outputs.len())
}

/// # Safety
/// As the header says: `model` is null or open, `info` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_input(
    model: *const CModel,
    entry: i32,
    index: usize,
    info: *mut CTensorInfo,
) -> Status {
    guarded(|| {
        // SAFETY: by this function's contract.
        let model = unsafe { given(model, "model")? };
        check_target(info, "info")?;
        let found = describe(&model.inputs, &model.model.manifest().inputs, entry, index, "input")?;
        // SAFETY: by this function's contract, and not null.
        unsafe { info.write(found) };
        Ok(())
    })
}

/// # Safety
/// As the header says: `model` is null or open, `info` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_model_output(
    model: *const CModel,
    entry: i32,
    index: usize,
    info: *mut CTensorInfo,
) -> Status {
    guarded(|| {
        // SAFETY: by this function's contract.
        let model = unsafe { given(model, "model")? };
        check_target(info, "info")?;
        let found = describe(&model.outputs, &model.model.manifest().outputs, entry, index, "output")?;
        // SAFETY: by this function's contract, and not null.
        unsafe { info.write(found) };
        Ok(())
    })
}

fn describe(
    tensors: &[CTensor],
    descs: &[TensorDesc],
    entry: i32,
    index: usize,
    role: &str,
) -> Result<CTensorInfo, Failure> {
    let entry = parse_entry(entry)?;
    let found = tensors.get(index).zip(descs.get(index)).map(|(tensor, desc)| tensor.info(desc, entry));
    found.ok_or_else(|| usage(format!("there is no {role} {index}; the model has {}", tensors.len())))
}

/// # Safety
/// As the header says: `model` is null or open, `options` is null or readable and its functions do
/// what the header asks, `session` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_session_create(
    model: *const CModel,
    options: *const CSessionOptions,
    session: *mut *mut CSession,
) -> Status {
    guarded(|| {
        // SAFETY: by this function's contract.
        let (model, options) = unsafe { (given(model, "model")?, options.as_ref()) };
        check_target(session, "session")?;
        let model = Arc::clone(&model.model);
        let threads = options.map_or(0, |options| options.threads);
        let threads = match usize::try_from(threads) {
            Ok(0) => None,
            Ok(threads) => Some(threads),
            Err(_) => return Err(usage(format!("threads is {threads}"))),
        };
        let foreign = options.and_then(|options| Some((options.parallel_for?, options.pool)));
        let created = match (foreign, threads) {
            (None, threads) => Session::new(Arc::clone(&model), threads)?,
            (Some(_), None) => return Err(usage("with parallel_for given, threads must say how many it has")),
            (Some((parallel_for, pool)), Some(threads)) => {
                // SAFETY: by this function's contract.
                unsafe { Session::with_parallel_for(Arc::clone(&model), threads, parallel_for, pool)? }
            }
        };
        let created = CSession { model, threads: created.threads(), session: Mutex::new(created) };
        // SAFETY: by this function's contract, and not null.
        unsafe { session.write(Box::into_raw(Box::new(created))) };
        Ok(())
    })
}

/// # Safety
/// As the header says: `session` is null or came from [`hawqc_session_create`] and is not used
/// again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_session_destroy(session: *mut CSession) {
    guarded(|| {
        if !session.is_null() {
            // SAFETY: by this function's contract it is the box `hawqc_session_create` gave away.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// # Safety
/// As the header says: `session` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_session_threads(session: *const CSession) -> usize {
    // SAFETY: by this function's contract.
    unsafe { session.as_ref() }.map_or(0, |session| session.threads)
}

/// # Safety
/// As the header says: `session` is null or live; `inputs` and `outputs` are null or readable for
/// their counts, and the buffers they name valid for the bytes they say, outputs for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hawqc_session_run(
    session: *mut CSession,
    entry: i32,
    inputs: *const CInput,
    input_count: usize,
    outputs: *const COutput,
    output_count: usize,
) -> Status {
    guarded(|| {
        // SAFETY: by this function's contract.
        let (session, inputs, outputs) = unsafe {
            (
                given(session.cast_const(), "session")?,
                given_slice(inputs, input_count, "inputs")?,
                given_slice(outputs, output_count, "outputs")?,
            )
        };
        let entry = parse_entry(entry)?;
        let manifest = session.model.manifest();
        check_buffers("input", &manifest.inputs, entry, inputs.iter().map(|input| (input.data.addr(), input.bytes)))?;
        check_buffers(
            "output",
            &manifest.outputs,
            entry,
            outputs.iter().map(|output| (output.data.addr(), output.bytes)),
        )?;
        check_overlap(inputs, outputs)?;
        let mut running = match session.session.try_lock() {
            Ok(running) => running,
            // A panic inside a run leaves working memory that the next run overwrites anyway.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(usage("the session is running in another thread"));
            }
        };
        let descs = manifest.inputs.iter().zip(inputs);
        let inputs = descs.map(|(desc, input)| {
            let (elem, shape) = desc.at(entry);
            // SAFETY: the buffer is not null unless empty, as checked, and valid for its bytes by
            // this function's contract.
            let bytes = unsafe { given_slice(input.data.cast(), input.bytes, "data")? };
            Ok(TensorRef::from_bytes(elem, shape, bytes)?)
        });
        let inputs = inputs.collect::<Result<Vec<TensorRef>, Failure>>()?;
        let descs = manifest.outputs.iter().zip(outputs);
        let outputs = descs.map(|(desc, output)| {
            let (elem, shape) = desc.at(entry);
            let bytes: &mut [u8] = if output.bytes == 0 {
                &mut []
            } else {
                // SAFETY: as for inputs, and it overlaps no other buffer, as checked.
                unsafe { slice::from_raw_parts_mut(output.data.cast(), output.bytes) }
            };
            Ok(TensorMut::from_bytes(elem, shape, bytes)?)
        });
        let mut outputs = outputs.collect::<Result<Vec<TensorMut>, Failure>>()?;
        Ok(running.run_into(entry, &inputs, &mut outputs)?)
    })
}

/// Checks number, presence, size and alignment of buffers given as address and bytes.
fn check_buffers(
    role: &str,
    descs: &[TensorDesc],
    entry: Entry,
    given: impl ExactSizeIterator<Item = (usize, usize)>,
) -> Result<(), Failure> {
    if given.len() != descs.len() {
        return Err(usage(format!("the model has {} {role}s, {} were given", descs.len(), given.len())));
    }
    for (index, (desc, (address, bytes))) in descs.iter().zip(given).enumerate() {
        let (elem, shape) = desc.at(entry);
        let expected = checked_elements(elem, shape).unwrap_or(0) * elem.size_bytes();
        let name = &desc.name;
        if bytes != expected {
            return Err(invalid(format!(
                "{role} {index} \"{name}\" is {elem}{shape:?}, {expected} bytes; the buffer has {bytes}"
            )));
        }
        if address == 0 && bytes > 0 {
            return Err(usage(format!("{role} {index} \"{name}\": data is NULL")));
        }
        if !address.is_multiple_of(elem.size_bytes()) {
            return Err(usage(format!("{role} {index} \"{name}\": data is not aligned for {elem}")));
        }
    }
    Ok(())
}

/// Refuses an output that shares bytes with an input or another output. The sizes were checked, so
/// the sums cannot overflow for buffers that exist.
fn check_overlap(inputs: &[CInput], outputs: &[COutput]) -> Result<(), Failure> {
    let range = |start: usize, bytes: usize| (start, start.saturating_add(bytes));
    let shares = |one: (usize, usize), other: (usize, usize)| one.0 < other.1 && other.0 < one.1;
    for (index, output) in outputs.iter().enumerate() {
        let written = range(output.data.addr(), output.bytes);
        let others = outputs[..index].iter().map(|other| range(other.data.addr(), other.bytes));
        let mut buffers = inputs.iter().map(|input| range(input.data.addr(), input.bytes)).chain(others);
        if buffers.any(|buffer| shares(written, buffer)) {
            return Err(usage(format!("output {index} overlaps another buffer")));
        }
    }
    Ok(())
}
