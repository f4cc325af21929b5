//! The binary interface between a compiled model and whoever runs it, version [`ABI_VERSION`].
//!
//! A compiled model is machine code that imports nothing: memory, threads and observation arrive
//! through one [`Call`]. It exports [`MANIFEST_SYMBOL`] (bytes, see [`crate::manifest`]) and the
//! two entry points [`RUN_SYMBOL`] and [`RUN_INTEGER_SYMBOL`], both of type [`RunFn`], and nothing
//! else. `include/hawqc.h` declares the same layout for C; both sides assert sizes and offsets at
//! compile time.

use std::ffi::c_void;
use std::mem::{align_of, offset_of, size_of};

/// Version of [`Call`], of the exported symbols and of the manifest's framing.
pub const ABI_VERSION: u32 = 1;

/// Alignment in bytes of [`Call::arena`], and of the constants inside a compiled model.
pub const ARENA_ALIGN: usize = 64;

/// Exported bytes: the framed manifest.
pub const MANIFEST_SYMBOL: &str = "hawqc_manifest";
/// Exported [`RunFn`] whose tensors have the model's own types and layouts, e.g. f32 NCHW.
pub const RUN_SYMBOL: &str = "hawqc_run";
/// Exported [`RunFn`] whose tensors are integers, with no border code: inputs already quantised
/// NHWC integers, outputs the last integers, e.g. i32 accumulators.
pub const RUN_INTEGER_SYMBOL: &str = "hawqc_run_integer";

/// One task of a step: runs part `task` of `tasks`. Tasks of one step are independent.
pub type TaskFn = unsafe extern "C" fn(call: *const Call, task: i64, tasks: i64);

/// Runs `task_fn(call, t, tasks)` exactly once for every `t` in `0..tasks`, in any order and on
/// any threads, and returns when all have finished; what the tasks wrote is then visible to the
/// calling thread. `pool` is [`Call::pool`].
pub type ParallelForFn = unsafe extern "C" fn(pool: *mut c_void, task_fn: TaskFn, call: *const Call, tasks: i64);

/// Observer of progress, called on the thread that called the entry point. `user` is
/// [`Call::on_step_user`].
pub type StepFn = unsafe extern "C" fn(user: *mut c_void, step: i64);

/// Type of both entry points.
pub type RunFn = unsafe extern "C" fn(call: *const Call);

/// Everything one run needs. Every field takes 8 bytes, in this order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// One pointer per input: row-major, of the manifest's element type and shape, aligned to the
    /// element.
    pub inputs: *const *const c_void,
    /// One pointer per output, likewise; outputs overlap neither inputs nor each other.
    pub outputs: *const *mut c_void,
    /// `arena_bytes` bytes, aligned to [`ARENA_ALIGN`]; contents undefined before and after,
    /// except that a model compiled with every value kept leaves them at the manifest's offsets.
    pub arena: *mut u8,
    /// At least 1: the largest number of tasks a step may be split into.
    pub threads: i64,
    /// Not used, and may be null, when `threads` is 1.
    pub parallel_for: Option<ParallelForFn>,
    /// First argument of `parallel_for`.
    pub pool: *mut c_void,
    /// Null, or called before each step with its index and once after the last with the number of
    /// steps.
    pub on_step: Option<StepFn>,
    /// First argument of `on_step`.
    pub on_step_user: *mut c_void,
}

/// Byte offsets of the fields of [`Call`], for code that is generated rather than compiled.
pub mod call_offset {
    /// [`Call::inputs`](super::Call::inputs)
    pub const INPUTS: usize = 0;
    /// [`Call::outputs`](super::Call::outputs)
    pub const OUTPUTS: usize = 8;
    /// [`Call::arena`](super::Call::arena)
    pub const ARENA: usize = 16;
    /// [`Call::threads`](super::Call::threads)
    pub const THREADS: usize = 24;
    /// [`Call::parallel_for`](super::Call::parallel_for)
    pub const PARALLEL_FOR: usize = 32;
    /// [`Call::pool`](super::Call::pool)
    pub const POOL: usize = 40;
    /// [`Call::on_step`](super::Call::on_step)
    pub const ON_STEP: usize = 48;
    /// [`Call::on_step_user`](super::Call::on_step_user)
    pub const ON_STEP_USER: usize = 56;
}

const _: () = {
    assert!(size_of::<Call>() == 64 && align_of::<Call>() == 8);
    assert!(offset_of!(Call, inputs) == call_offset::INPUTS);
    assert!(offset_of!(Call, outputs) == call_offset::OUTPUTS);
    assert!(offset_of!(Call, arena) == call_offset::ARENA);
    assert!(offset_of!(Call, threads) == call_offset::THREADS);
    assert!(offset_of!(Call, parallel_for) == call_offset::PARALLEL_FOR);
    assert!(offset_of!(Call, pool) == call_offset::POOL);
    assert!(offset_of!(Call, on_step) == call_offset::ON_STEP);
    assert!(offset_of!(Call, on_step_user) == call_offset::ON_STEP_USER);
};
