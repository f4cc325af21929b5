//! The way in: a fused graph becomes an object file with its manifest, or a model in memory.

use std::sync::Mutex;

use hawqc_ir::{Graph, Op, ValueId, text};
use hawqc_runtime::Model;
use hawqc_runtime::abi::{ABI_VERSION, RunFn};
use hawqc_runtime::manifest::{self, LayerDesc, Manifest, StepDesc, ValueDesc};

use crate::error::CodegenError;
use crate::interface::memory_elem;
use crate::kernels::Dst;
use crate::lower::{Listing, lower};
use crate::object::{JIT_RESERVE_MAX_BYTES, JitCode, jit_module, object_bytes, object_module};
use crate::program::{Options, Place, Program};

/// What the manifest says of the source model.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Digest of the source model, in hexadecimal.
    pub hash: String,
    /// Bit widths of the quantised layers.
    pub layers: Vec<LayerDesc>,
}

/// A compiled model, ready to be linked.
#[derive(Debug)]
pub struct Artifact {
    /// A relocatable object ([`crate::link::link`] makes the shared object).
    pub object: Vec<u8>,
    pub manifest: Manifest,
    /// Which schedule each step runs, one line a step.
    pub schedules: String,
    /// The text of every function, if [`Options::listing`] asked for it.
    pub listings: Vec<Listing>,
}

/// Compiles a fused graph to an object file. The same graph and options give the same bytes.
pub fn compile(graph: &Graph, info: &ModelInfo, options: &Options) -> Result<Artifact, CodegenError> {
    let program = Program::new(graph, options)?;
    let manifest = describe(&program, info, options)?;
    let mut module = object_module(&options.target, "model")?;
    let defined = lower(&mut module, &program, manifest.to_blob()?, options.listing)?;
    Ok(Artifact {
        object: object_bytes(module)?,
        manifest,
        schedules: program.schedule_text(),
        listings: defined.listings,
    })
}

/// Compiles a fused graph into this process. The target must be one that this machine can run.
pub fn jit(graph: &Graph, info: &ModelInfo, options: &Options) -> Result<Model, CodegenError> {
    let program = Program::new(graph, options)?;
    let manifest = describe(&program, info, options)?;
    let blob = manifest.to_blob()?;
    let mut module = jit_module(&options.target, reserve_bytes(&program, blob.len()))?;
    let defined = lower(&mut module, &program, blob, options.listing)?;
    let code = JitCode::finish(module)?;
    let entry = |id| {
        // SAFETY: `lower` defines both entry points with the signature of `RunFn`.
        unsafe { std::mem::transmute::<*const u8, RunFn>(code.function(id)) }
    };
    let (run, run_integer) = (entry(defined.run), entry(defined.run_integer));
    // SAFETY: the functions were lowered from the program that the manifest describes, for the
    // target it names; they touch no state but the call's; `code` keeps them mapped.
    let model = unsafe { Model::from_memory(manifest, run, run_integer, Box::new(Mutex::new(code))) };
    model.map_err(|e| CodegenError::Internal(e.to_string()))
}

/// Address space for a program: constants rounded to pages, and ample room for code.
pub(crate) fn reserve_bytes(program: &Program, manifest: usize) -> usize {
    const PAGE: usize = 4096;
    const FUNCTION: usize = 64 << 10;
    let constants = program.constants.iter().map(|c| c.bytes.len()).chain([manifest]);
    let data: usize = constants.map(|bytes| bytes.next_multiple_of(PAGE) + PAGE).sum();
    let functions = program.kernels.len() + program.steps.len() + 16;
    (2 * data + functions * FUNCTION).min(JIT_RESERVE_MAX_BYTES)
}

fn describe(program: &Program, info: &ModelInfo, options: &Options) -> Result<Manifest, CodegenError> {
    let (graph, target) = (program.graph, &options.target);
    let (inputs, outputs) = program.interface.describe(graph);
    let bytes = |weights: bool| {
        program.constants.iter().filter(|c| c.is_weights || !weights).map(|c| c.bytes.len()).sum::<usize>()
    };
    let mut steps = Vec::new();
    let mut values = Vec::new();
    for step in &program.steps {
        let kernel = &program.kernels[step.kernel];
        let Op::Kernel(spec) = graph.op(step.value) else {
            return Err(CodegenError::Internal(format!("step {} is no kernel", step.symbol)));
        };
        steps.push(StepDesc {
            name: step.name.clone(),
            kernel: format!("{} {}", kernel.name, kernel.schedule),
            spec: text::print_spec(spec),
            macs: kernel.lowered.macs,
            notes: step.notes.clone(),
        });
    }
    let live = graph.live();
    let is_result = |value: ValueId| matches!(graph.op(value), Op::Kernel(_) | Op::Second(_)) && live[value.index()];
    for value in graph.values().filter(|&value| options.keep_values && is_result(value)) {
        let Place::Arena(offset) = program.place_of(value)? else {
            return Err(CodegenError::Internal(format!("the result of {} is not in the arena", graph.name(value))));
        };
        let (ty, dst) = (graph.ty(value), program.in_place.home(graph, value).dst);
        let (name, elem, shape) = (graph.name(value).to_owned(), memory_elem(ty), ty.shape.clone());
        let pitch = (dst != Dst::dense(ty)).then_some(dst.pitch);
        values.push(ValueDesc { name, elem, shape, offset, pitch });
    }
    let manifest = Manifest {
        schema: manifest::SCHEMA.into(),
        version: manifest::VERSION,
        abi: ABI_VERSION,
        compiler: concat!("hawqc ", env!("CARGO_PKG_VERSION")).into(),
        target: target.name().to_owned(),
        features: target.feature_names().into_iter().map(str::to_owned).collect(),
        arch: target.arch().name().to_owned(),
        model_hash: info.hash.clone(),
        arena_bytes: program.arena_bytes(),
        constant_bytes: bytes(false),
        weight_bytes: bytes(true),
        inputs,
        outputs,
        layers: info.layers.clone(),
        steps,
        values,
    };
    manifest.check()?;
    Ok(manifest)
}
