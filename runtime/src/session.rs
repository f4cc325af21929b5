//! Running a model: owned working memory, threads, checked tensors.
//!
//! A [`Session`] belongs to one caller at a time; many sessions may share one [`Model`] and one
//! [`Pool`]. Tensors are checked against the manifest before the model's code sees a pointer.

use std::alloc::{self, Layout};
use std::any::Any;
use std::ffi::c_void;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use crate::abi::{ARENA_ALIGN, Call, ParallelForFn};
use crate::elem::Elem;
use crate::error::Error;
use crate::manifest::{Entry, TensorDesc};
use crate::model::Model;
use crate::pool::{MAX_THREADS, Pool, ThreadsError, default_threads};
use crate::tensor::{Tensor, TensorError, TensorMut, TensorRef};

/// Why a model was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the model has {expected} {role}s ({names}), {found} were given")]
    Count {
        /// `input` or `output`.
        role: &'static str,
        expected: usize,
        names: String,
        found: usize,
    },
    #[error(
        "{role} {index} \"{name}\" is {expected_elem}{expected_shape:?}, \
         {found_elem}{found_shape:?} was given"
    )]
    Mismatch {
        /// `input` or `output`.
        role: &'static str,
        index: usize,
        name: String,
        expected_elem: Elem,
        expected_shape: Vec<usize>,
        found_elem: Elem,
        found_shape: Vec<usize>,
    },
    #[error("no memory for the model's arena of {bytes} bytes")]
    Arena { bytes: usize },
    #[error("the model keeps {kept} intermediate values; there is none with index {index}")]
    NoValue { index: usize, kept: usize },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Who runs the tasks of a step.
enum Threads {
    /// The calling thread alone.
    One,
    Pool(Arc<Pool>),
    Foreign {
        threads: i64,
        parallel_for: ParallelForFn,
        pool: *mut c_void,
    },
}

impl Threads {
    /// The three fields of [`Call`] about threads.
    fn for_call(&self) -> (i64, Option<ParallelForFn>, *mut c_void) {
        match self {
            Threads::One => (1, None, ptr::null_mut()),
            Threads::Pool(pool) => {
                let address: *const Pool = Arc::as_ptr(pool);
                // At most MAX_THREADS.
                let threads = pool.threads() as i64;
                (threads, Some(Pool::parallel_for), address.cast_mut().cast())
            }
            Threads::Foreign { threads, parallel_for, pool } => (*threads, Some(*parallel_for), *pool),
        }
    }
}

// SAFETY: the only member that is not Send by itself is the foreign pool's pointer, and whoever
// makes a `Threads::Foreign` promises it may be used from any thread (`Session::with_parallel_for`).
unsafe impl Send for Threads {}

/// A model with working memory and threads, ready to run.
pub struct Session {
    model: Arc<Model>,
    arena: Arena,
    threads: Threads,
    pointers: Pointers,
}

impl Session {
    /// A session with a pool of its own of `threads` threads, or of
    /// [`default_threads`] when `None`.
    pub fn new(model: Arc<Model>, threads: Option<usize>) -> Result<Session, Error> {
        let threads = match threads {
            Some(threads) => threads,
            None => default_threads()?,
        };
        let threads = match threads {
            1 => Threads::One,
            _ => Threads::Pool(Arc::new(Pool::new(threads)?)),
        };
        Ok(Session::build(model, threads)?)
    }

    /// A session on a pool it shares with others. Sessions that run at the same time take turns on
    /// the pool's workers.
    pub fn with_pool(model: Arc<Model>, pool: Arc<Pool>) -> Result<Session, Error> {
        Ok(Session::build(model, Threads::Pool(pool))?)
    }

    /// A session on threads of the caller's, for steps of at most `threads` tasks.
    ///
    /// # Safety
    /// `parallel_for(pool, ..)` must do what [`ParallelForFn`] says, from any thread, for as long as
    /// the session lives, and not unwind.
    pub unsafe fn with_parallel_for(
        model: Arc<Model>,
        threads: usize,
        parallel_for: ParallelForFn,
        pool: *mut c_void,
    ) -> Result<Session, Error> {
        let count = match i64::try_from(threads) {
            Ok(count) if (1..=MAX_THREADS).contains(&threads) => count,
            _ => {
                return Err(Error::Threads(ThreadsError::Count { source_name: "threads", found: threads.to_string() }));
            }
        };
        let threads = Threads::Foreign { threads: count, parallel_for, pool };
        Ok(Session::build(model, threads)?)
    }

    fn build(model: Arc<Model>, threads: Threads) -> Result<Session, RunError> {
        let manifest = model.manifest();
        let bytes = manifest.arena_bytes;
        let arena = Arena::new(bytes).ok_or(RunError::Arena { bytes })?;
        let pointers = Pointers {
            inputs: Vec::with_capacity(manifest.inputs.len()),
            outputs: Vec::with_capacity(manifest.outputs.len()),
        };
        Ok(Session { model, arena, threads, pointers })
    }

    /// The model this session runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Largest number of tasks a step is split into.
    pub fn threads(&self) -> usize {
        // Between 1 and MAX_THREADS.
        self.threads.for_call().0 as usize
    }

    /// Runs the model on tensors of its own types and layouts.
    pub fn run(&mut self, inputs: &[TensorRef]) -> Result<Vec<Tensor>, RunError> {
        self.run_entry(Entry::Border, inputs)
    }

    /// Runs the model on integers, with no border code.
    pub fn run_integer(&mut self, inputs: &[TensorRef]) -> Result<Vec<Tensor>, RunError> {
        self.run_entry(Entry::Integer, inputs)
    }

    /// Runs one of the entry points into new tensors.
    pub fn run_entry(&mut self, entry: Entry, inputs: &[TensorRef]) -> Result<Vec<Tensor>, RunError> {
        let mut outputs = self.new_outputs(entry)?;
        let mut views: Vec<TensorMut> = outputs.iter_mut().map(Tensor::view_mut).collect();
        self.run_into(entry, inputs, &mut views)?;
        Ok(outputs)
    }

    /// Zeroed tensors of the types and shapes of an entry point's outputs, for
    /// [`Session::run_into`].
    pub fn new_outputs(&self, entry: Entry) -> Result<Vec<Tensor>, RunError> {
        let outputs = &self.model.manifest().outputs;
        let new = |desc: &TensorDesc| {
            let (elem, shape) = desc.at(entry);
            Ok(Tensor::zeros(elem, shape.to_vec())?)
        };
        outputs.iter().map(new).collect()
    }

    /// Runs one of the entry points into the caller's tensors. Allocates nothing.
    pub fn run_into(&mut self, entry: Entry, inputs: &[TensorRef], outputs: &mut [TensorMut]) -> Result<(), RunError> {
        self.call(entry, inputs, outputs, None)
    }

    /// Like [`Session::run_into`], and calls `on_step(i)` on this thread before step `i` of the
    /// manifest and once after the last with the number of steps. If `on_step` panics the run ends
    /// first and the panic continues.
    pub fn run_observed(
        &mut self,
        entry: Entry,
        inputs: &[TensorRef],
        outputs: &mut [TensorMut],
        on_step: &mut dyn FnMut(usize),
    ) -> Result<(), RunError> {
        let mut observer = Observer { on_step, panic: None };
        self.call(entry, inputs, outputs, Some(&mut observer))?;
        match observer.panic {
            Some(payload) => panic::resume_unwind(payload),
            None => Ok(()),
        }
    }

    /// Copy of the intermediate value `index` of [`crate::Manifest::values`] as the last run left
    /// it. Before the first run it is zero.
    pub fn kept_value(&self, index: usize) -> Result<Tensor, RunError> {
        let values = &self.model.manifest().values;
        let desc = values.get(index).ok_or(RunError::NoValue { index, kept: values.len() })?;
        let mut tensor = Tensor::zeros(desc.elem, desc.shape.clone())?;
        let [row, pitch] = desc.row_bytes();
        for (index, into) in tensor.bytes_mut().chunks_mut(row.max(1)).enumerate() {
            // The manifest was checked: the value lies inside the arena.
            into.copy_from_slice(&self.arena.bytes()[desc.offset + index * pitch..][..row]);
        }
        Ok(tensor)
    }

    fn call(
        &mut self,
        entry: Entry,
        inputs: &[TensorRef],
        outputs: &mut [TensorMut],
        observer: Option<&mut Observer>,
    ) -> Result<(), RunError> {
        let manifest = self.model.manifest();
        let given = inputs.iter().map(|input| (input.elem(), input.shape()));
        check("input", &manifest.inputs, entry, given)?;
        let given = outputs.iter().map(|output| (output.elem(), output.shape()));
        check("output", &manifest.outputs, entry, given)?;

        let pointers = &mut self.pointers;
        pointers.inputs.clear();
        let starts = inputs.iter().map(|input| input.bytes().as_ptr().cast());
        pointers.inputs.extend(starts);
        pointers.outputs.clear();
        let starts = outputs.iter_mut().map(|output| output.bytes_mut().as_mut_ptr().cast());
        pointers.outputs.extend(starts);

        let (threads, parallel_for, pool) = self.threads.for_call();
        let on_step: Option<crate::abi::StepFn> = match observer {
            Some(_) => Some(Observer::step),
            None => None,
        };
        let call = Call {
            inputs: pointers.inputs.as_ptr(),
            outputs: pointers.outputs.as_ptr(),
            arena: self.arena.start.as_ptr(),
            threads,
            parallel_for,
            pool,
            on_step,
            on_step_user: observer.map_or(ptr::null_mut(), |observer| ptr::from_mut(observer).cast()),
        };
        // SAFETY: every tensor has the type and shape the manifest names, is aligned to its element
        // and, being borrowed, live and unaliased; the arena is exclusive through `&mut self`, of
        // the manifest's size and aligned; the pool and the observer outlive the call.
        unsafe { self.model.entry_point(entry)(&call) };
        pointers.inputs.clear();
        pointers.outputs.clear();
        Ok(())
    }
}

fn check<'a>(
    role: &'static str,
    descs: &[TensorDesc],
    entry: Entry,
    given: impl ExactSizeIterator<Item = (Elem, &'a [usize])>,
) -> Result<(), RunError> {
    if given.len() != descs.len() {
        let names: Vec<&str> = descs.iter().map(|desc| desc.name.as_str()).collect();
        return Err(RunError::Count { role, expected: descs.len(), names: names.join(", "), found: given.len() });
    }
    for (index, (desc, (found_elem, found_shape))) in descs.iter().zip(given).enumerate() {
        let (elem, shape) = desc.at(entry);
        if (elem, shape) != (found_elem, found_shape) {
            return Err(RunError::Mismatch {
                role,
                index,
                name: desc.name.clone(),
                expected_elem: elem,
                expected_shape: shape.to_vec(),
                found_elem,
                found_shape: found_shape.to_vec(),
            });
        }
    }
    Ok(())
}

/// The tensors' addresses during one run, kept for their capacity; empty between runs.
struct Pointers {
    inputs: Vec<*const c_void>,
    outputs: Vec<*mut c_void>,
}

// SAFETY: the vectors are empty between runs, so no pointer crosses to another thread.
unsafe impl Send for Pointers {}

/// A step hook and the panic it ended with.
struct Observer<'a> {
    on_step: &'a mut dyn FnMut(usize),
    panic: Option<Box<dyn Any + Send>>,
}

impl Observer<'_> {
    /// [`crate::abi::StepFn`] for an observer.
    ///
    /// # Safety
    /// `user` points to a live observer that nothing else uses now.
    unsafe extern "C" fn step(user: *mut c_void, step: i64) {
        // SAFETY: by this function's contract.
        let observer = unsafe { &mut *user.cast::<Observer>() };
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        if observer.panic.is_none() {
            let on_step = AssertUnwindSafe(|| (observer.on_step)(step));
            observer.panic = panic::catch_unwind(on_step).err();
        }
    }
}

/// Working memory of a model: zeroed at first, aligned to [`ARENA_ALIGN`].
struct Arena {
    allocated: NonNull<u8>,
    layout: Layout,
    /// The first aligned address.
    start: NonNull<u8>,
    bytes: usize,
}

impl Arena {
    /// `None` when memory does not suffice. An empty arena still has an aligned address.
    fn new(bytes: usize) -> Option<Arena> {
        // Without an alignment to ask for, zeroed memory comes from the system untouched, and what no task uses never takes
        // a page.
        let layout = Layout::from_size_align(bytes.checked_add(ARENA_ALIGN)?, 1).ok()?;
        // SAFETY: the layout's size is not zero.
        let allocated = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        // SAFETY: less than `ARENA_ALIGN` bytes on, within the allocation.
        let start = unsafe { allocated.add(allocated.align_offset(ARENA_ALIGN)) };
        Some(Arena { allocated, layout, start, bytes })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: from `start` on the allocation has at least `bytes` bytes, initialised when allocated;
        // the model writes only during a run, which borrows the session mutably.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used afterwards.
        unsafe { alloc::dealloc(self.allocated.as_ptr(), self.layout) };
    }
}

// SAFETY: the arena owns its memory.
unsafe impl Send for Arena {}
