//! From a [`Program`] to functions in a module: kernels, steps and the two entry points.
//!
//! * `kernel.<n>.<family>` (`border.kernel.<n>.<family>` if it handles floats): a kernel's body, called with a
//!   table of addresses and the units of work to do;
//! * `leaf.<n>.<name>`: an assembled function that kernels call;
//! * `step.<i>.<name>` (`border.<i>.<name>`): a task function of the ABI, which collects a step's addresses
//!   and calls its kernel for the task's share of the units;
//! * `hawqc_run` and `hawqc_run_integer`: all steps in order, each observed, each handed to the caller's
//!   `parallel_for` where it may be split and threads are there; and the copies at the ends.
//!
//! The same program gives the same functions in the same order, whatever the module.

use std::collections::BTreeMap;

use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Function, InstBuilder, Signature, StackSlotData, StackSlotKind, UserFuncName, Value, types,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataId, FuncId, Module};
use hawqc_runtime::abi::{self, call_offset};

use crate::error::CodegenError;
use crate::kernels::emit::{Code, reciprocal};
use crate::kernels::{Frame, Leaf, MAX_TASKS};
use crate::object::{ObjectError, define_code, define_constant, define_function, linkage};
use crate::program::{Constant, Copy, Place, Program, Step};

/// The text of a function at two stages.
#[derive(Clone, Debug)]
pub struct Listing {
    pub symbol: String,
    /// Cranelift IR, before optimisation.
    pub clif: String,
    /// Instructions of the target, in Cranelift's notation.
    pub assembly: String,
}

/// What lowering defined.
pub struct Defined {
    pub run: FuncId,
    pub run_integer: FuncId,
    pub listings: Vec<Listing>,
}

/// Defines all of a program in `module`; `manifest` is the framed manifest.
pub fn lower<M: Module>(
    module: &mut M,
    program: &Program,
    manifest: Vec<u8>,
    listing: bool,
) -> Result<Defined, CodegenError> {
    let of = |(index, constant): (usize, &Constant)| {
        define_constant(module, &format!("const.{index}"), constant.bytes.clone())
    };
    let constants = program.constants.iter().enumerate().map(of).collect::<Result<Vec<_>, _>>()?;
    let reciprocals = define_constant(module, "reciprocals", reciprocals())?;
    let begins = program.scratch.begins.iter().flat_map(|&begin| (begin as u64).to_le_bytes()).collect();
    let scratch_begins = define_constant(module, "scratch", begins)?;
    define_constant(module, abi::MANIFEST_SYMBOL, manifest)?;
    let mut lowering = Lowering {
        module,
        program,
        listing,
        listings: Vec::new(),
        constants,
        reciprocals,
        scratch_begins,
        leaves: BTreeMap::new(),
    };
    let kernels = (0..program.kernels.len()).map(|i| lowering.kernel(i)).collect::<Result<Vec<_>, _>>()?;
    let steps = program.steps.iter().map(|s| lowering.step(s, kernels[s.kernel])).collect::<Result<Vec<_>, _>>()?;
    let copies = &program.copies;
    let run = lowering.entry(abi::RUN_SYMBOL, &steps, |_| true, &[], &copies.border_outputs)?;
    let run_integer = lowering.entry(
        abi::RUN_INTEGER_SYMBOL,
        &steps,
        |step| step.in_integer,
        &copies.integer_inputs,
        &copies.integer_outputs,
    )?;
    Ok(Defined { run, run_integer, listings: lowering.listings })
}

/// Those of all numbers of tasks that a step is split into, two and more.
fn reciprocals() -> Vec<u8> {
    let of = |tasks: usize| if tasks < 2 { 0 } else { reciprocal(tasks) };
    (0..=MAX_TASKS).flat_map(|tasks| of(tasks).to_le_bytes()).collect()
}

struct Lowering<'a, M: Module> {
    module: &'a mut M,
    program: &'a Program<'a>,
    listing: bool,
    listings: Vec<Listing>,
    constants: Vec<DataId>,
    /// [`reciprocals`].
    reciprocals: DataId,
    /// Where the scratch memory of each task begins in the arena.
    scratch_begins: DataId,
    /// Assembled functions by their code.
    leaves: BTreeMap<Vec<u8>, FuncId>,
}

impl<M: Module> Lowering<'_, M> {
    fn signature(&self, parameters: usize) -> Signature {
        let mut signature = self.module.make_signature();
        signature.params.extend(std::iter::repeat_n(AbiParam::new(types::I64), parameters));
        signature
    }

    /// Defines `symbol(i64; parameters)`.
    fn define(
        &mut self,
        symbol: &str,
        parameters: usize,
        emit: impl FnOnce(&mut Self, &mut Code, &[Value]) -> Result<(), CodegenError>,
    ) -> Result<FuncId, CodegenError> {
        let signature = self.signature(parameters);
        let declared = self.module.declare_function(symbol, linkage(symbol), &signature);
        let id = declared.map_err(|e| ObjectError::Define { symbol: symbol.to_owned(), message: e.to_string() })?;
        let function = Function::with_name_signature(UserFuncName::user(0, id.as_u32()), signature);
        let mut ctx = Context::for_function(function);
        ctx.set_disasm(self.listing);
        let mut builder_context = FunctionBuilderContext::new();
        let mut c = Code { b: FunctionBuilder::new(&mut ctx.func, &mut builder_context) };
        let block = c.b.create_block();
        c.b.append_block_params_for_function_params(block);
        c.b.switch_to_block(block);
        c.b.seal_block(block);
        let params = c.b.block_params(block).to_vec();
        emit(self, &mut c, &params)?;
        c.b.ins().return_(&[]);
        c.b.finalize(self.module.isa().frontend_config());
        let clif = if self.listing { ctx.func.display().to_string() } else { String::new() };
        define_function(self.module, id, &mut ctx)?;
        if self.listing {
            let assembly = ctx.compiled_code().and_then(|code| code.vcode.clone()).unwrap_or_default();
            self.listings.push(Listing { symbol: symbol.to_owned(), clif, assembly });
        }
        Ok(id)
    }

    fn kernel(&mut self, index: usize) -> Result<FuncId, CodegenError> {
        let kernel = &self.program.kernels[index];
        let prefix = if kernel.lowered.is_border { "border.leaf" } else { "leaf" };
        let leaves = kernel.lowered.leaves.iter().map(|leaf| self.leaf(prefix, leaf)).collect::<Result<Vec<_>, _>>()?;
        self.define(&kernel.name, 3, |lowering, c, params| {
            let leaves = leaves.iter().map(|&id| lowering.module.declare_func_in_func(id, c.b.func)).collect();
            let frame = Frame::load(c, &kernel.lowered, params[0], [params[1], params[2]], leaves);
            let emitted = kernel.lowered.body.emit(c, &frame);
            emitted.map_err(|reason| CodegenError::Internal(format!("{}: {reason}", kernel.name)))
        })
    }

    /// Defines an assembled function, once for all kernels that have the same.
    fn leaf(&mut self, prefix: &str, leaf: &Leaf) -> Result<FuncId, CodegenError> {
        if let Some(&id) = self.leaves.get(&leaf.code) {
            return Ok(id);
        }
        let symbol = format!("{prefix}.{}.{}", self.leaves.len(), leaf.name);
        let id = define_code(self.module, &symbol, &self.signature(1), &leaf.code)?;
        self.leaves.insert(leaf.code.clone(), id);
        Ok(id)
    }

    fn step(&mut self, step: &Step, kernel: FuncId) -> Result<FuncId, CodegenError> {
        self.define(&step.symbol, 3, |lowering, c, params| {
            let [call, task, tasks] = [params[0], params[1], params[2]];
            let lowered = &lowering.program.kernels[step.kernel].lowered;
            let tables = step.tables.iter().map(|&table| Place::Constant(table));
            let places = [step.dst].into_iter().chain(step.operands.iter().copied()).chain(tables);
            let mut addresses: Vec<Value> = places.map(|place| lowering.address(c, call, place)).collect();
            if step.has_scratch {
                addresses.push(lowering.scratch(c, call, task));
            }
            let bytes = 8 * addresses.len() as u32;
            let slot = c.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 3));
            for (index, address) in addresses.into_iter().enumerate() {
                c.b.ins().stack_store(types::I64, address, slot, 8 * index as i32);
            }
            let pointers = c.b.ins().stack_addr(types::I64, slot, 0);
            let callee = lowering.module.declare_func_in_func(kernel, c.b.func);
            let [first, end] = match step.max_tasks {
                1 => [c.int(0), c.int(lowered.units)],
                _ => lowering.share(c, lowered.units, [task, tasks]),
            };
            c.b.ins().call(callee, &[pointers, first, end]);
            Ok(())
        })
    }

    /// Scratch memory of a task.
    fn scratch(&mut self, c: &mut Code, call: Value, task: Value) -> Value {
        let arena = c.load(types::I64, call, call_offset::ARENA);
        let begin = self.entry_of(c, self.scratch_begins, task);
        c.add(arena, begin)
    }

    /// An entry of a table of numbers of 8 bytes.
    fn entry_of(&mut self, c: &mut Code, table: DataId, index: Value) -> Value {
        let table = self.module.declare_data_in_func(table, c.b.func);
        let table = c.b.ins().symbol_value(types::I64, table);
        let entry = c.offset(table, index, 8);
        c.load_constant(types::I64, entry, 0)
    }

    /// The units of a task, one of `tasks` even parts ([`hawqc_schedules::Parts`]).
    fn share(&mut self, c: &mut Code, units: usize, [task, tasks]: [Value; 2]) -> [Value; 2] {
        let reciprocal = self.entry_of(c, self.reciprocals, tasks);
        let round_up = c.sub_int(tasks, 1);
        let start = |c: &mut Code, task: Value| {
            let before = c.mul_int(task, units);
            let before = c.add(before, round_up);
            c.quotient(before, reciprocal)
        };
        let (first, next) = (start(c, task), c.add_int(task, 1));
        // One task has no reciprocal.
        let before_end = c.less(next, tasks);
        let (end, all) = (start(c, next), c.int(units));
        [first, c.select(before_end, end, all)]
    }

    fn address(&mut self, c: &mut Code, call: Value, place: Place) -> Value {
        match place {
            Place::Arena(offset) => {
                let arena = c.load(types::I64, call, call_offset::ARENA);
                c.add_int(arena, offset)
            }
            Place::Input(index) => {
                let inputs = c.load(types::I64, call, call_offset::INPUTS);
                c.load(types::I64, inputs, 8 * index)
            }
            Place::Constant(index) => {
                let global = self.module.declare_data_in_func(self.constants[index], c.b.func);
                c.b.ins().symbol_value(types::I64, global)
            }
        }
    }

    fn entry(
        &mut self,
        symbol: &str,
        steps: &[FuncId],
        runs: impl Fn(&Step) -> bool,
        inputs: &[Copy],
        outputs: &[Copy],
    ) -> Result<FuncId, CodegenError> {
        self.define(symbol, 1, |lowering, c, params| {
            let call = params[0];
            for copy in inputs {
                let tensors = c.load(types::I64, call, call_offset::INPUTS);
                let from = c.load(types::I64, tensors, 8 * copy.port);
                let to = lowering.address(c, call, copy.place);
                c.copy(to, from, copy.bytes);
            }
            for (index, step) in lowering.program.steps.iter().enumerate().filter(|(_, step)| runs(step)) {
                lowering.observe(c, call, index);
                lowering.run_step(c, call, step, steps[index]);
            }
            lowering.observe(c, call, lowering.program.steps.len());
            for copy in outputs {
                let tensors = c.load(types::I64, call, call_offset::OUTPUTS);
                let to = c.load(types::I64, tensors, 8 * copy.port);
                let from = lowering.address(c, call, copy.place);
                c.copy(to, from, copy.bytes);
            }
            Ok(())
        })
    }

    /// `if (call->on_step) call->on_step(call->on_step_user, index)`
    fn observe(&self, c: &mut Code, call: Value, index: usize) {
        let signature = self.signature(2);
        let observer = c.load(types::I64, call, call_offset::ON_STEP);
        let present = c.b.ins().icmp_imm_s(IntCC::NotEqual, observer, 0);
        c.if_else(
            present,
            |c| {
                let user = c.load(types::I64, call, call_offset::ON_STEP_USER);
                let index = c.int(index);
                let signature = c.b.import_signature(signature);
                c.b.ins().call_indirect(signature, observer, &[user, index]);
            },
            |_| {},
        );
    }

    fn run_step(&mut self, c: &mut Code, call: Value, step: &Step, function: FuncId) {
        let callee = self.module.declare_func_in_func(function, c.b.func);
        let alone = |c: &mut Code| {
            let (zero, one) = (c.int(0), c.int(1));
            c.b.ins().call(callee, &[call, zero, one]);
        };
        if step.max_tasks == 1 {
            return alone(c);
        }
        let signature = self.signature(4);
        let threads = c.load(types::I64, call, call_offset::THREADS);
        let tasks = c.min_int(threads, step.max_tasks);
        let several = c.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, tasks, 1);
        c.if_else(
            several,
            |c| {
                let parallel_for = c.load(types::I64, call, call_offset::PARALLEL_FOR);
                let pool = c.load(types::I64, call, call_offset::POOL);
                let function = c.b.ins().func_addr(types::I64, callee);
                let signature = c.b.import_signature(signature);
                c.b.ins().call_indirect(signature, parallel_for, &[pool, function, call, tasks]);
            },
            alone,
        );
    }
}
