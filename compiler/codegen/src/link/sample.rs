//! A small compiled model for tests: constants, a step with a dot product and inline vector
//! constants, a float border, and the ABI's entry points.

use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataId, FuncId, Module};

use crate::dot::emit_dot;
use crate::object::{EXPORTS, define_constant, define_function, linkage, object_bytes, object_module};
use crate::target::Target;

/// 67 numbers, so that the table needs more than its first cache line.
pub(crate) fn table() -> Vec<i32> {
    (0..67).map(|i| i * i * 7919 - 100_000).collect()
}

/// What `hawqc_run_integer` reads at `inputs[0]`: accumulators, u8 and i8 operands.
#[repr(C)]
pub(crate) struct Input {
    pub acc: [i32; 4],
    pub unsigned: [u8; 16],
    pub signed: [i8; 16],
}

/// What it writes at `outputs[0]`.
#[repr(C)]
#[derive(Debug, Default, PartialEq, Clone)]
pub(crate) struct Output {
    /// `acc` plus the dot products plus 1, 2, 3, 4.
    pub sums: [i32; 4],
    pub table_address: u64,
    pub table_last: i32,
    /// Written by `hawqc_run` only: twice the f32 at `inputs[1]`, converted to an integer.
    pub doubled: i32,
}

impl Input {
    pub(crate) fn extremes() -> Input {
        Input {
            acc: [0, 1, -1, i32::MAX],
            unsigned: [255, 255, 255, 255, 0, 255, 0, 1, 128, 127, 254, 2, 255, 0, 0, 0],
            signed: [-128, -128, -128, -128, 127, 127, -128, 1, -1, 64, 3, -5, 127, 9, 9, 9],
        }
    }

    pub(crate) fn expected_sums(&self) -> [i32; 4] {
        std::array::from_fn(|lane| {
            let products = (4 * lane..4 * lane + 4).map(|i| i32::from(self.unsigned[i]) * i32::from(self.signed[i]));
            self.acc[lane].wrapping_add(products.sum()).wrapping_add(lane as i32 + 1)
        })
    }
}

pub(crate) struct Sample {
    pub run_integer: FuncId,
    pub run: FuncId,
}

/// Defines the sample model in any module.
pub(crate) fn define<M: Module>(module: &mut M, target: &Target) -> Sample {
    let [manifest, run, run_integer] = EXPORTS;
    define_constant(module, manifest, b"HAWQCM1\0\x02\0\0\0\0\0\0\0{}".to_vec()).unwrap();
    define_constant(module, "const.odd", vec![1, 2, 3]).unwrap();
    let bytes = table().iter().flat_map(|n| n.to_le_bytes()).collect();
    let table = define_constant(module, "const.table", bytes).unwrap();
    let step = define_step(module, target, table);
    let border = define_border(module);
    Sample { run_integer: define_entry(module, run_integer, &[step]), run: define_entry(module, run, &[border, step]) }
}

/// The sample model as an object file.
pub(crate) fn object(target: &Target) -> Vec<u8> {
    let mut module = object_module(target, "sample").unwrap();
    define(&mut module, target);
    object_bytes(module).unwrap()
}

/// A function of one pointer, defined by `body`.
pub(crate) fn define_body<M: Module>(
    module: &mut M,
    name: &str,
    body: impl FnOnce(&mut M, &mut FunctionBuilder, Value),
) -> FuncId {
    let mut ctx = module.make_context();
    ctx.func.signature.params.push(AbiParam::new(types::I64));
    let id = module.declare_function(name, linkage(name), &ctx.func.signature).unwrap();
    let mut fctx = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut ctx.func, &mut fctx);
    let block = b.create_block();
    b.append_block_params_for_function_params(block);
    b.switch_to_block(block);
    let call = b.block_params(block)[0];
    body(module, &mut b, call);
    b.ins().return_(&[]);
    b.seal_all_blocks();
    b.finalize(module.isa().frontend_config());
    define_function(module, id, &mut ctx).unwrap();
    id
}

fn load(b: &mut FunctionBuilder, ty: Type, base: Value, offset: i32) -> Value {
    b.ins().load(ty, MemFlagsData::trusted(), base, offset)
}

/// `(call.inputs[index], call.outputs[0])`
pub(crate) fn pointers(b: &mut FunctionBuilder, call: Value, index: i32) -> (Value, Value) {
    let inputs = load(b, types::I64, call, 0);
    let outputs = load(b, types::I64, call, 8);
    let input = load(b, types::I64, inputs, 8 * index);
    (input, load(b, types::I64, outputs, 0))
}

fn define_step<M: Module>(module: &mut M, target: &Target, table: DataId) -> FuncId {
    define_body(module, "step.0.dot", |module, b, call| {
        let (input, output) = pointers(b, call, 0);
        let acc = load(b, types::I32X4, input, 0);
        let unsigned = load(b, types::I8X16, input, 16);
        let signed = load(b, types::I8X16, input, 32);
        let sums = emit_dot(b, target.dot(), acc, unsigned, signed);
        let counting: Vec<u8> = [1i32, 2, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
        let counting = b.func.dfg.constants.insert(counting.as_slice().into());
        let counting = b.ins().vconst(types::I32X4, counting);
        let sums = b.ins().iadd(sums, counting);
        let global = module.declare_data_in_func(table, b.func);
        let address = b.ins().symbol_value(types::I64, global);
        let last = load(b, types::I32, address, 4 * 66);
        let flags = MemFlagsData::trusted();
        b.ins().store(flags, sums, output, 0);
        b.ins().store(flags, address, output, 16);
        b.ins().store(flags, last, output, 24);
    })
}

fn define_border<M: Module>(module: &mut M) -> FuncId {
    define_body(module, "border.input", |_, b, call| {
        let (input, output) = pointers(b, call, 1);
        let x = load(b, types::F32, input, 0);
        let two = b.ins().f32const(2.0);
        let x = b.ins().fmul(x, two);
        let x = b.ins().fcvt_to_sint_sat(types::I32, x);
        b.ins().store(MemFlagsData::trusted(), x, output, 28);
    })
}

fn define_entry<M: Module>(module: &mut M, name: &str, callees: &[FuncId]) -> FuncId {
    define_body(module, name, |module, b, call| {
        for callee in callees {
            let callee = module.declare_func_in_func(*callee, b.func);
            b.ins().call(callee, &[call]);
        }
    })
}
