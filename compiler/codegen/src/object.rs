//! Modules of machine code: an object file for the linker, or code in this process's memory.
//!
//! In: a [`Target`]. Out: a Cranelift [`Module`] for it, either an [`ObjectModule`] whose bytes
//! ([`object_bytes`]) [`crate::link`] turns into a shared object, or a [`JITModule`] that
//! [`JitCode`] makes callable. Lowering is written once, over `M: Module`, and defines everything
//! through [`define_function`] and [`define_constant`], which refuse what a model must not contain:
//! calls into a support library, and data that is writable or not aligned.
//!
//! Same definitions in the same order give the same object bytes.

use std::mem::ManuallyDrop;

use cranelift_codegen::ir::{ExternalName, LibCall, Signature};
use cranelift_codegen::print_errors::pretty_error;
use cranelift_codegen::{Context, FinalizedRelocTarget};
use cranelift_jit::{ArenaMemoryProvider, JITBuilder, JITModule};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleError};
use cranelift_object::{ObjectBuilder, ObjectModule};
use hawqc_runtime::abi;
use thiserror::Error;

use crate::target::{Target, TargetError};

/// The symbols a compiled model exports, and all that it exports, sorted.
pub const EXPORTS: [&str; 3] = [abi::MANIFEST_SYMBOL, abi::RUN_SYMBOL, abi::RUN_INTEGER_SYMBOL];

/// Alignment in bytes of every constant, at run time.
pub const CONSTANT_ALIGN: u64 = abi::ARENA_ALIGN as u64;

/// Symbol prefix of the functions that may use floating point: the model's border.
pub const BORDER_PREFIX: &str = "border.";

/// Symbol prefix of the functions that run one step (a kernel) of a model.
pub const STEP_PREFIX: &str = "step.";

/// Why machine code could not be made.
#[derive(Debug, Error)]
pub enum ObjectError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("cannot make a machine-code module for {target}: {message}")]
    Module { target: String, message: String },
    #[error("cannot define `{symbol}`: {message}")]
    Define { symbol: String, message: String },
    #[error(
        "`{symbol}` was compiled to a call of the support routine {libcall}, which a model cannot \
         import: lower the operation to instructions the target has"
    )]
    LibCall { symbol: String, libcall: LibCall },
    #[error("machine code cannot run here: it is for {target}, and this machine lacks {missing}")]
    NotRunnable { target: String, missing: String },
    #[error("symbols are declared but imported, and a model imports nothing: {symbols}")]
    Imported { symbols: String },
    #[error("cannot write the object file: {message}")]
    Write { message: String },
}

/// The linkage to declare `symbol` with: exported for the ABI's own symbols, local for all others.
pub fn linkage(symbol: &str) -> Linkage {
    if EXPORTS.contains(&symbol) { Linkage::Export } else { Linkage::Local }
}

/// An empty position-independent object file for `target`. `name` goes into its file symbol.
pub fn object_module(target: &Target, name: &str) -> Result<ObjectModule, ObjectError> {
    let builder = ObjectBuilder::new(target.isa(true)?, name, cranelift_module::default_libcall_names())
        .map_err(|error| module_error(target, &error))?;
    Ok(ObjectModule::new(builder))
}

/// The bytes of a finished object file, for [`crate::link::link`].
pub fn object_bytes(module: ObjectModule) -> Result<Vec<u8>, ObjectError> {
    module.finish().emit().map_err(|error| ObjectError::Write { message: error.to_string() })
}

/// An empty module in this process's memory. `reserve_bytes` bounds code and constants together
/// (address space only, rounded up to pages for each run of code or constants; at most 1 GiB, which
/// keeps every reference within reach). Defining more fails.
///
/// Refused where this machine lacks one of the target's features.
pub fn jit_module(target: &Target, reserve_bytes: usize) -> Result<JITModule, ObjectError> {
    if !target.runs_here() {
        let missing = target.missing_here();
        let missing: Vec<_> = missing.iter().map(|feature| feature.name()).collect();
        return Err(ObjectError::NotRunnable { target: target.name().to_owned(), missing: missing.join(", ") });
    }
    if reserve_bytes > JIT_RESERVE_MAX_BYTES {
        return Err(ObjectError::Module {
            target: target.name().to_owned(),
            message: format!("{reserve_bytes} bytes asked for, at most {JIT_RESERVE_MAX_BYTES}"),
        });
    }
    let memory = ArenaMemoryProvider::new_with_size(reserve_bytes).map_err(|e| ObjectError::Module {
        target: target.name().to_owned(),
        message: format!("reserving {reserve_bytes} bytes: {e}"),
    })?;
    let mut builder = JITBuilder::with_isa(target.isa(false)?, cranelift_module::default_libcall_names());
    builder.memory_provider(Box::new(memory));
    Ok(JITModule::new(builder))
}

/// Largest `reserve_bytes` of [`jit_module`].
pub const JIT_RESERVE_MAX_BYTES: usize = 1 << 30;

/// Compiles `ctx` and defines it as `func`. Afterwards `ctx.compiled_code()` is the machine code;
/// the caller clears the context.
pub fn define_function<M: Module>(module: &mut M, func: FuncId, ctx: &mut Context) -> Result<(), ObjectError> {
    let declaration = module.declarations().get_function_decl(func);
    let name = declaration.linkage_name(func).into_owned();
    if let Err(error) = module.define_function(func, ctx) {
        let message = match error {
            ModuleError::Compilation(error) => pretty_error(&ctx.func, error),
            error => error.to_string(),
        };
        return Err(ObjectError::Define { symbol: name, message });
    }
    let Some(code) = ctx.compiled_code() else {
        return Err(ObjectError::Define { symbol: name, message: "the code generator returned no code".to_owned() });
    };
    for reloc in code.buffer.relocs() {
        if let FinalizedRelocTarget::ExternalName(ExternalName::LibCall(call)) = reloc.target {
            return Err(ObjectError::LibCall { symbol: name, libcall: call });
        }
    }
    Ok(())
}

/// Declares and defines a function by its machine code, which refers to nothing outside itself.
pub fn define_code<M: Module>(
    module: &mut M,
    symbol: &str,
    signature: &Signature,
    code: &[u8],
) -> Result<FuncId, ObjectError> {
    let failed = |error: ModuleError| ObjectError::Define { symbol: symbol.to_owned(), message: error.to_string() };
    let id = module.declare_function(symbol, linkage(symbol), signature).map_err(failed)?;
    module.define_function_bytes(id, CONSTANT_ALIGN, code, &[]).map_err(failed)?;
    Ok(id)
}

/// Declares and defines read-only bytes under `name`, aligned to [`CONSTANT_ALIGN`].
pub fn define_constant<M: Module>(module: &mut M, name: &str, bytes: Vec<u8>) -> Result<DataId, ObjectError> {
    let failed = |error: ModuleError| ObjectError::Define { symbol: name.to_owned(), message: error.to_string() };
    let id = module.declare_data(name, linkage(name), false, false).map_err(failed)?;
    let mut data = DataDescription::new();
    data.set_align(CONSTANT_ALIGN);
    data.define(bytes.into_boxed_slice());
    module.define_data(id, &data).map_err(failed)?;
    Ok(id)
}

fn module_error(target: &Target, error: &ModuleError) -> ObjectError {
    ObjectError::Module { target: target.name().to_owned(), message: error.to_string() }
}

/// Callable code. Dropping it frees the memory.
pub struct JitCode {
    module: ManuallyDrop<JITModule>,
}

impl JitCode {
    /// Makes a module's definitions callable. Every declared function and constant must have been
    /// defined, by [`define_function`] and [`define_constant`].
    pub fn finish(mut module: JITModule) -> Result<JitCode, ObjectError> {
        let imported: Vec<String> = module
            .declarations()
            .get_functions()
            .filter(|(_, declaration)| declaration.linkage == Linkage::Import)
            .map(|(id, declaration)| declaration.linkage_name(id).into_owned())
            .collect();
        if !imported.is_empty() {
            return Err(ObjectError::Imported { symbols: imported.join(", ") });
        }
        module.finalize_definitions().map_err(|error| ObjectError::Write { message: error.to_string() })?;
        Ok(JitCode { module: ManuallyDrop::new(module) })
    }

    /// The address of a function, valid until `self` is dropped.
    pub fn function(&self, id: FuncId) -> *const u8 {
        self.module.get_finalized_function(id)
    }

    /// The address and length in bytes of a constant, valid until `self` is dropped.
    pub fn constant(&self, id: DataId) -> (*const u8, usize) {
        self.module.get_finalized_data(id)
    }
}

impl Drop for JitCode {
    fn drop(&mut self) {
        // SAFETY: taken once, here; `module` is not touched again. Addresses handed out are
        // documented to end with `self`.
        unsafe { ManuallyDrop::take(&mut self.module).free_memory() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types};
    use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

    /// Defines `name(p: *const i32) -> i32` returning the `p`th of the constants {7, 9}.
    fn define<M: Module>(module: &mut M, name: &str) -> Result<(FuncId, DataId), ObjectError> {
        let mut bytes = 7i32.to_le_bytes().to_vec();
        bytes.extend(9i32.to_le_bytes());
        define_constant(module, "const.odd", vec![1])?;
        let data = define_constant(module, "const.pair", bytes)?;
        let mut ctx = module.make_context();
        ctx.func.signature.params.push(AbiParam::new(types::I64));
        ctx.func.signature.returns.push(AbiParam::new(types::I32));
        let id = module.declare_function(name, linkage(name), &ctx.func.signature).unwrap();
        let mut fctx = FunctionBuilderContext::new();
        let mut b = FunctionBuilder::new(&mut ctx.func, &mut fctx);
        let block = b.create_block();
        b.append_block_params_for_function_params(block);
        b.switch_to_block(block);
        b.seal_all_blocks();
        let global = module.declare_data_in_func(data, b.func);
        let base = b.ins().symbol_value(types::I64, global);
        let index = b.block_params(block)[0];
        let offset = b.ins().ishl_imm_u(index, 2);
        let address = b.ins().iadd(base, offset);
        let value = b.ins().load(types::I32, MemFlagsData::trusted(), address, 0);
        b.ins().return_(&[value]);
        b.finalize(module.isa().frontend_config());
        define_function(module, id, &mut ctx)?;
        Ok((id, data))
    }

    #[test]
    fn jit_runs_and_aligns_constants() {
        let mut module = jit_module(&Target::host().unwrap(), 1 << 20).unwrap();
        let (id, data) = define(&mut module, "step.0.pair").unwrap();
        let code = JitCode::finish(module).unwrap();
        // SAFETY: the code was just compiled with this signature and `code` is alive.
        let run: unsafe extern "C" fn(i64) -> i32 = unsafe { std::mem::transmute(code.function(id)) };
        // SAFETY: the constant has two elements.
        assert_eq!(unsafe { [run(0), run(1)] }, [7, 9]);
        let (address, len) = code.constant(data);
        assert_eq!((address as usize % 64, len), (0, 8));
    }

    #[test]
    fn jit_refuses_what_cannot_run_or_fit() {
        let other = if cfg!(target_arch = "aarch64") { "x86-64-v2" } else { "aarch64" };
        let other = Target::parse(other).unwrap();
        assert!(matches!(jit_module(&other, 1 << 20), Err(ObjectError::NotRunnable { .. })));
        let host = Target::host().unwrap();
        let mut module = jit_module(&host, 4096).unwrap();
        assert!(matches!(
            define_constant(&mut module, "const.large", vec![0; 1 << 16]),
            Err(ObjectError::Define { symbol, .. }) if symbol == "const.large"
        ));
        assert!(jit_module(&host, JIT_RESERVE_MAX_BYTES + 1).is_err());
    }

    #[test]
    fn object_bytes_repeat() {
        for row in crate::target::ROWS {
            let target = row.target().unwrap();
            let bytes = || {
                let mut module = object_module(&target, "model").unwrap();
                define(&mut module, "hawqc_run").unwrap();
                object_bytes(module).unwrap()
            };
            assert_eq!(bytes(), bytes(), "{target}");
        }
    }

    #[test]
    fn support_routines_are_refused() {
        let target = Target::parse("x86-64-v2").unwrap();
        let mut module = object_module(&target, "model").unwrap();
        let mut ctx = module.make_context();
        let signature = &mut ctx.func.signature;
        signature.params.push(AbiParam::new(types::F32));
        signature.returns.push(AbiParam::new(types::F32));
        let id = module.declare_function("border.fma", Linkage::Local, &ctx.func.signature).unwrap();
        let mut fctx = FunctionBuilderContext::new();
        let mut b = FunctionBuilder::new(&mut ctx.func, &mut fctx);
        let block = b.create_block();
        b.append_block_params_for_function_params(block);
        b.switch_to_block(block);
        b.seal_all_blocks();
        let x = b.block_params(block)[0];
        let y = b.ins().fma(x, x, x);
        b.ins().return_(&[y]);
        b.finalize(module.isa().frontend_config());
        assert!(matches!(
            define_function(&mut module, id, &mut ctx),
            Err(ObjectError::LibCall { libcall: LibCall::FmaF32, .. })
        ));
    }
}
