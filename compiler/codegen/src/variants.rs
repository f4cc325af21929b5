//! A network in this process whose steps exist under several schedules at once.
//!
//! In: a fused graph. Out: [`Variants`]: every step is code of its own, all of them work on one arena with
//! one memory plan, and each run chooses which schedule every step runs under. Changing the choice
//! compiles nothing, so runs with different choices can follow each other, each kernel between the
//! neighbours, threads and cache contents that it has in the network. The results are those of the
//! compiled network, bit for bit; they stay in the arena.
//!
//! [`kernel_hash`] tells the machine code of a kernel from any other.

use std::ffi::c_void;
use std::ptr;
use std::time::Instant;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{FuncRef, Function, GlobalValue, Signature};
use cranelift_codegen::{Context, isa};
use cranelift_module::{
    DataDescription, DataId, FuncId, FuncOrDataId, Linkage, Module, ModuleDeclarations, ModuleReloc, ModuleResult,
};
use hawqc_ir::{Graph, KernelSpec, Op};
use hawqc_runtime::abi::{Call, RunFn};
use hawqc_runtime::{Pool, TensorRef};
use hawqc_schedules::Schedule;

use crate::compile::reserve_bytes;
use crate::error::CodegenError;
use crate::interface::memory_elem;
use crate::lower::lower;
use crate::object::{JitCode, jit_module, object_module};
use crate::program::{Options, Program};
use crate::target::Target;

/// One step under one schedule, as code in this process.
pub struct Variant {
    schedule: Schedule,
    hash: String,
    run: RunFn,
    /// Keeps `run` mapped.
    _code: JitCode,
}

impl Variant {
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Digest of the kernel's machine code.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// 64 bytes of the arena, aligned as the ABI asks.
#[derive(Clone)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// See the module's documentation.
pub struct Variants<'g> {
    program: Program<'g>,
    target: Target,
    /// The variants of every step; the first is the one the network is compiled with by default.
    variants: Vec<Vec<Option<Variant>>>,
    chosen: Vec<usize>,
    arena: Vec<Line>,
}

impl<'g> Variants<'g> {
    /// Every step under its default schedule.
    pub fn new(graph: &'g Graph, target: &Target) -> Result<Variants<'g>, CodegenError> {
        let program = Program::new(graph, &Options::new(target.clone()))?;
        let count = program.steps.len();
        let arena = vec![Line([0; 64]); program.arena_bytes().div_ceil(64)];
        let mut made = Variants {
            program,
            target: target.clone(),
            variants: (0..count).map(|_| Vec::new()).collect(),
            chosen: vec![0; count],
            arena,
        };
        for step in 0..count {
            made.add(step, made.default_schedule(step))?;
        }
        // Code and data of the variants replace those of the program.
        made.program.constants.clear();
        Ok(made)
    }

    pub fn len(&self) -> usize {
        self.program.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The source node of a step.
    pub fn name(&self, step: usize) -> &str {
        &self.program.steps[step].name
    }

    /// The specification of a step's kernel.
    pub fn spec(&self, step: usize) -> Option<&'g KernelSpec> {
        match self.program.graph.op(self.program.steps[step].value) {
            Op::Kernel(spec) => Some(spec),
            _ => None,
        }
    }

    /// What the step is compiled with if nothing else is asked for.
    pub fn default_schedule(&self, step: usize) -> Schedule {
        self.program.kernels[self.program.steps[step].kernel].schedule
    }

    /// Adds a variant of a step and returns its position.
    ///
    /// # Errors
    /// The schedule cannot be had for this kernel and its weights.
    pub fn add(&mut self, step: usize, schedule: Schedule) -> Result<usize, CodegenError> {
        let program = self.program.variant(&self.target, step, schedule)?;
        let module = jit_module(&self.target, reserve_bytes(&program, 0))?;
        let mut module = Hashing { inner: module, hasher: blake3::Hasher::new() };
        let defined = lower(&mut module, &program, vec![0], false)?;
        let hash = module.digest();
        let code = JitCode::finish(module.inner)?;
        // SAFETY: `lower` defines the entry point with the signature of `RunFn`.
        let run = unsafe { std::mem::transmute::<*const u8, RunFn>(code.function(defined.run)) };
        let lines = program.arena_bytes().div_ceil(64);
        if lines > self.arena.len() {
            self.arena.resize(lines, Line([0; 64]));
        }
        self.variants[step].push(Some(Variant { schedule, hash, run, _code: code }));
        Ok(self.variants[step].len() - 1)
    }

    /// A variant that was added and not removed.
    pub fn variant(&self, step: usize, position: usize) -> Option<&Variant> {
        self.variants.get(step)?.get(position)?.as_ref()
    }

    /// Frees a variant; the default one stays. A step that ran under it is back at the default.
    pub fn remove(&mut self, step: usize, position: usize) {
        if position > 0
            && let Some(variant) = self.variants[step].get_mut(position)
        {
            *variant = None;
            if self.chosen[step] == position {
                self.chosen[step] = 0;
            }
        }
    }

    /// Lets a step run under a variant from now on; one that is not there means the default.
    pub fn choose(&mut self, step: usize, position: usize) {
        self.chosen[step] = if self.variant(step, position).is_some() { position } else { 0 };
    }

    /// Runs the network once and writes the nanoseconds of every step to `times`. Without a pool on this
    /// thread alone.
    ///
    /// # Errors
    /// Inputs of other types or shapes than the network's.
    pub fn run(&mut self, inputs: &[TensorRef], pool: Option<&Pool>, times: &mut Vec<u64>) -> Result<(), CodegenError> {
        self.check(inputs)?;
        let pointers: Vec<*const c_void> = inputs.iter().map(|input| input.bytes().as_ptr().cast()).collect();
        let call = Call {
            inputs: pointers.as_ptr(),
            outputs: ptr::null(),
            arena: self.arena.as_mut_ptr().cast(),
            threads: pool.map_or(1, |pool| pool.threads() as i64),
            parallel_for: pool.map(|_| Pool::parallel_for as _),
            pool: pool.map_or(ptr::null_mut(), |pool| ptr::from_ref(pool).cast_mut().cast()),
            on_step: None,
            on_step_user: ptr::null_mut(),
        };
        let chosen = self.variants.iter().zip(&self.chosen);
        let entries: Vec<RunFn> =
            chosen.filter_map(|(all, &position)| all.get(position)?.as_ref().map(|v| v.run)).collect();
        times.clear();
        times.reserve(entries.len());
        let mut last = Instant::now();
        for entry in entries {
            // SAFETY: the code was lowered from a program over this arena's plan, which is at least as long as any variant
            // needs, and `_code` keeps it mapped; inputs have the graph's types and live through the call, as does `pool`;
            // a program of one step copies no outputs.
            unsafe { entry(&call) };
            let now = Instant::now();
            times.push((now - last).as_nanos() as u64);
            last = now;
        }
        Ok(())
    }

    fn check(&self, inputs: &[TensorRef]) -> Result<(), CodegenError> {
        let graph = self.program.graph;
        let fits = |(&id, input): (&hawqc_ir::ValueId, &TensorRef)| {
            let ty = graph.ty(id);
            memory_elem(ty) == input.elem() && ty.shape == input.shape()
        };
        if inputs.len() == graph.inputs().len() && graph.inputs().iter().zip(inputs).all(fits) {
            return Ok(());
        }
        Err(CodegenError::Internal("inputs are not of the network's types".to_owned()))
    }

    /// The bytes of a step's result as the last run left them; another value may have taken its place since.
    #[cfg(test)]
    pub fn result(&self, step: usize) -> Option<Vec<u8>> {
        let step = &self.program.steps[step];
        let crate::program::Place::Arena(offset) = step.dst else {
            return None;
        };
        let all: Vec<u8> = self.arena.iter().flat_map(|line| line.0).collect();
        Some(all[offset..offset + self.program.graph.ty(step.value).bytes()].to_vec())
    }
}

/// The digest of the machine code that the step of a network would have under each of several schedules;
/// `None` where one cannot be had. Nothing needs to run here, so the target may be any.
pub struct KernelHashes<'g> {
    program: Program<'g>,
    target: Target,
}

impl<'g> KernelHashes<'g> {
    pub fn new(graph: &'g Graph, target: &Target) -> Result<KernelHashes<'g>, CodegenError> {
        Ok(KernelHashes { program: Program::new(graph, &Options::new(target.clone()))?, target: target.clone() })
    }

    /// The name, the specification and the default schedule of every step.
    pub fn steps(&self) -> impl Iterator<Item = (&'g str, &'g KernelSpec, Schedule)> {
        let graph = self.program.graph;
        self.program.steps.iter().filter_map(move |step| match graph.op(step.value) {
            Op::Kernel(spec) => {
                Some((graph.name(step.value), spec.as_ref(), self.program.kernels[step.kernel].schedule))
            }
            _ => None,
        })
    }

    /// The digest for the step at `position`.
    ///
    /// # Errors
    /// The schedule cannot be had for this kernel and its weights.
    pub fn hash(&self, position: usize, schedule: Schedule) -> Result<String, CodegenError> {
        let mut program = self.program.variant(&self.target, position, schedule)?;
        program.constants.iter_mut().for_each(|constant| constant.bytes = vec![0]);
        let module = object_module(&self.target, "kernel")?;
        let mut module = Hashing { inner: module, hasher: blake3::Hasher::new() };
        lower(&mut module, &program, vec![0], false)?;
        Ok(module.digest())
    }
}

/// A module that takes the digest of the kernels defined in it: their machine code before relocation.
struct Hashing<M: Module> {
    inner: M,
    hasher: blake3::Hasher,
}

/// Prefixes of the symbols that a kernel's machine code consists of.
const KERNEL_PREFIXES: [&str; 3] = ["kernel.", "border.kernel.", "leaf."];

impl<M: Module> Hashing<M> {
    fn add(&mut self, func: FuncId, code: &[u8]) {
        let name = self.inner.declarations().get_function_decl(func).linkage_name(func);
        if KERNEL_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            self.hasher.update(&(code.len() as u64).to_le_bytes());
            self.hasher.update(code);
        }
    }

    /// The first 64 bits, in hexadecimal.
    fn digest(&self) -> String {
        self.hasher.finalize().to_hex().chars().take(16).collect()
    }
}

impl<M: Module> Module for Hashing<M> {
    fn isa(&self) -> &dyn isa::TargetIsa {
        self.inner.isa()
    }

    fn declarations(&self) -> &ModuleDeclarations {
        self.inner.declarations()
    }

    fn get_name(&self, name: &str) -> Option<FuncOrDataId> {
        self.inner.get_name(name)
    }

    fn declare_function(&mut self, name: &str, linkage: Linkage, signature: &Signature) -> ModuleResult<FuncId> {
        self.inner.declare_function(name, linkage, signature)
    }

    fn declare_anonymous_function(&mut self, signature: &Signature) -> ModuleResult<FuncId> {
        self.inner.declare_anonymous_function(signature)
    }

    fn declare_data(&mut self, name: &str, linkage: Linkage, writable: bool, tls: bool) -> ModuleResult<DataId> {
        self.inner.declare_data(name, linkage, writable, tls)
    }

    fn declare_anonymous_data(&mut self, writable: bool, tls: bool) -> ModuleResult<DataId> {
        self.inner.declare_anonymous_data(writable, tls)
    }

    fn declare_func_in_func(&mut self, func: FuncId, within: &mut Function) -> FuncRef {
        self.inner.declare_func_in_func(func, within)
    }

    fn declare_data_in_func(&self, data: DataId, func: &mut Function) -> GlobalValue {
        self.inner.declare_data_in_func(data, func)
    }

    fn define_function_with_control_plane(
        &mut self,
        func: FuncId,
        ctx: &mut Context,
        plane: &mut ControlPlane,
    ) -> ModuleResult<()> {
        self.inner.define_function_with_control_plane(func, ctx, plane)?;
        if let Some(code) = ctx.compiled_code() {
            let bytes = code.code_buffer().to_vec();
            self.add(func, &bytes);
        }
        Ok(())
    }

    fn define_function_bytes(
        &mut self,
        func: FuncId,
        alignment: u64,
        bytes: &[u8],
        relocs: &[ModuleReloc],
    ) -> ModuleResult<()> {
        self.inner.define_function_bytes(func, alignment, bytes, relocs)?;
        self.add(func, bytes);
        Ok(())
    }

    fn define_data(&mut self, data: DataId, description: &DataDescription) -> ModuleResult<()> {
        self.inner.define_data(data, description)
    }
}
