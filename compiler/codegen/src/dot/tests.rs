use super::*;
use crate::link::{LinkWith, emulate::emulate, link, sample};
use crate::object::{
    EXPORTS, JitCode, define_constant, define_function, jit_module, linkage, object_bytes, object_module,
};
use crate::target::{Arch, ROWS, Target};
use cranelift_codegen::Context;
use cranelift_codegen::ir::{AbiParam, MemFlagsData};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{FuncId, Module};
use proptest::prelude::*;

/// What a test function computes from an accumulator and two byte vectors.
type Emit = fn(&mut FunctionBuilder, Dot, Value, Value, Value) -> Value;

const ACC: i32 = 0;
const LEFT: i32 = 16;
const RIGHT: i32 = 32;
const OUT: i32 = 48;

/// Defines `step(p: *mut [u8; 64])`: the accumulator at 0, operands at 16 and 32, result at 48.
fn define<M: Module>(module: &mut M, dot: Dot, emit: Emit) -> (FuncId, Context) {
    let mut ctx = module.make_context();
    ctx.set_disasm(true);
    ctx.func.signature.params.push(AbiParam::new(types::I64));
    let name = "step.0.dot";
    let id = module.declare_function(name, linkage(name), &ctx.func.signature).unwrap();
    let mut fctx = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut ctx.func, &mut fctx);
    let block = b.create_block();
    b.append_block_params_for_function_params(block);
    b.switch_to_block(block);
    b.seal_all_blocks();
    let p = b.block_params(block)[0];
    let flags = MemFlagsData::trusted();
    let acc = b.ins().load(types::I32X4, flags, p, ACC);
    let left = b.ins().load(types::I8X16, flags, p, LEFT);
    let right = b.ins().load(types::I8X16, flags, p, RIGHT);
    let out = emit(&mut b, dot, acc, left, right);
    b.ins().store(flags, out, p, OUT);
    b.ins().return_(&[]);
    b.finalize(module.isa().frontend_config());
    define_function(module, id, &mut ctx).unwrap();
    (id, ctx)
}

/// The instructions of a test function for `target`, one mnemonic each, prologue and epilogue
/// included. x86 through a decoder, aarch64 through Cranelift's own listing.
fn mnemonics(target: &Target, dot: Dot, emit: Emit) -> Vec<String> {
    let mut module = object_module(target, "dot").unwrap();
    let (_, ctx) = define(&mut module, dot, emit);
    let code = ctx.compiled_code().unwrap();
    match target.arch() {
        Arch::X86_64 => iced_x86::Decoder::new(64, code.buffer.data(), 0)
            .into_iter()
            .map(|instruction| format!("{:?}", instruction.mnemonic()).to_lowercase())
            .take_while(|mnemonic| mnemonic != "ret")
            .collect(),
        Arch::Aarch64 => code
            .vcode
            .as_ref()
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect(),
    }
}

fn count(mnemonics: &[String], wanted: &str) -> usize {
    mnemonics.iter().filter(|name| *name == wanted).count()
}

fn target(name: &str) -> Target {
    Target::parse(name).unwrap()
}

/// Instructions that do arithmetic: all but moves, frame set-up and `ret`.
fn arithmetic(mnemonics: &[String]) -> usize {
    let moves = [
        "push", "pop", "mov", "movdqu", "vmovdqu", "movups", "vmovups", "movdqa", "vmovdqa", "movaps", "vmovaps",
        "ldr", "str", "stp", "ldp", "ret", "movupd", "vmovupd",
    ];
    mnemonics.iter().filter(|name| !moves.contains(&name.as_str())).count()
}

#[test]
fn dot_folds_to_one_instruction() {
    let i8mm = target("aarch64").with_changes("+i8mm").unwrap();
    for (target, emit, instruction) in [
        (target("x86-avxvnni"), emit_dot as Emit, "vpdpbusd"),
        (target("x86-avx512"), emit_dot, "vpdpbusd"),
        (target("x86-avx512"), emit_dot_7bit, "vpdpbusd"),
        (target("aarch64-dotprod"), emit_dot_7bit, "sdot"),
        (target("aarch64-dotprod"), emit_dot_signed, "sdot"),
        (i8mm.clone(), emit_dot, "usdot"),
        (i8mm, emit_dot_signed, "sdot"),
    ] {
        let code = mnemonics(&target, target.dot(), emit);
        assert_eq!(count(&code, instruction), 1, "{target}: {code:?}");
        assert_eq!(arithmetic(&code), 1, "{target}: {code:?}");
    }
}

#[test]
fn dot_folds_to_few_instructions() {
    let dotprod = target("aarch64-dotprod");
    let code = mnemonics(&dotprod, dotprod.dot(), emit_dot);
    assert_eq!(count(&code, "sdot"), 3, "{code:?}");

    for name in ["x86-avxvnni", "x86-avx512"] {
        let target = target(name);
        let code = mnemonics(&target, target.dot(), emit_dot_signed);
        assert_eq!(count(&code, "vpdpbusd"), 2, "{name}: {code:?}");
    }
    for (name, multiply) in [("x86-64-v2", "pmaddwd"), ("x86-64-v3", "vpmaddwd"), ("x86-avx512-novnni", "vpmaddwd")] {
        let target = target(name);
        for emit in [emit_dot as Emit, emit_dot_signed] {
            let code = mnemonics(&target, target.dot(), emit);
            assert_eq!(count(&code, multiply), 2, "{name}: {code:?}");
            assert!(arithmetic(&code) <= 10, "{name}: {code:?}");
        }
    }
    let aarch64 = target("aarch64");
    let code = mnemonics(&aarch64, aarch64.dot(), emit_dot_signed);
    assert_eq!(count(&code, "smull") + count(&code, "smull2"), 2);
    assert_eq!(count(&code, "saddlp"), 2, "{code:?}");
}

#[test]
fn four_bit_dot_is_pmaddubsw() {
    for row in ROWS {
        let target = row.target().unwrap();
        if target.arch() != Arch::X86_64 {
            continue;
        }
        let code = mnemonics(&target, target.dot(), four_bit);
        let folded = count(&code, "pmaddubsw") + count(&code, "vpmaddubsw");
        assert_eq!(folded, 1, "{target}: {code:?}");
        let widened = count(&code, "pmaddwd") + count(&code, "vpmaddwd");
        assert_eq!(widened, 1, "{target}: {code:?}");
    }
}

/// One 4-bit step from zero, widened into the accumulator.
fn four_bit(b: &mut FunctionBuilder, dot: Dot, acc: Value, u: Value, s: Value) -> Value {
    let zero = splat(b, types::I16X8, 0);
    let acc16 = emit_dot_4bit(b, dot, zero, u, s);
    emit_widen_4bit(b, acc, acc16)
}

/// As many 4-bit steps as 16 bits hold, all with the same operands.
fn four_bit_steps(b: &mut FunctionBuilder, dot: Dot, acc: Value, u: Value, s: Value) -> Value {
    let mut acc16 = splat(b, types::I16X8, 0);
    for _ in 0..DOT_4BIT_STEPS {
        acc16 = emit_dot_4bit(b, dot, acc16, u, s);
    }
    emit_widen_4bit(b, acc, acc16)
}

/// The low and high halves of both operands, sign-extended, through [`emit_pair_dot`].
fn pair_dot(b: &mut FunctionBuilder, _: Dot, acc: Value, x: Value, y: Value) -> Value {
    let (x_low, y_low) = (b.ins().swiden_low(x), b.ins().swiden_low(y));
    emit_pair_dot(b, acc, x_low, y_low)
}

/// Compiled test functions for one target and strategy.
struct Runner {
    name: String,
    code: JitCode,
    id: FuncId,
}

impl Runner {
    fn new(target: &Target, dot: Dot, emit: Emit) -> Runner {
        let mut module = jit_module(target, 1 << 20).unwrap();
        let (id, _) = define(&mut module, dot, emit);
        Runner { name: format!("{target} {dot:?}"), code: JitCode::finish(module).unwrap(), id }
    }

    /// Every target this machine can run, with its own strategy and with the generic one.
    fn all(emit: Emit) -> Vec<Runner> {
        Runner::with(emit, true)
    }

    /// Every target this machine can run, with its own strategy and perhaps the generic one.
    fn with(emit: Emit, generic: bool) -> Vec<Runner> {
        let mut runners = Vec::new();
        for row in ROWS {
            let target = row.target().unwrap();
            if !target.runs_here() {
                eprintln!("SKIPPED: this machine cannot run {target}");
                continue;
            }
            runners.push(Runner::new(&target, target.dot(), emit));
            if generic {
                runners.push(Runner::new(&target, Dot::Widening, emit));
            }
        }
        runners
    }

    fn run(&self, acc: [i32; 4], left: [u8; 16], right: [u8; 16]) -> [i32; 4] {
        let mut memory = [0u8; 64];
        for (lane, value) in acc.iter().enumerate() {
            memory[4 * lane..4 * lane + 4].copy_from_slice(&value.to_le_bytes());
        }
        memory[16..32].copy_from_slice(&left);
        memory[32..48].copy_from_slice(&right);
        // SAFETY: compiled with this signature, and `self.code` is alive.
        let run: unsafe extern "C" fn(*mut u8) = unsafe { std::mem::transmute(self.code.function(self.id)) };
        // SAFETY: the function reads and writes within these 64 bytes.
        unsafe { run(memory.as_mut_ptr()) };
        std::array::from_fn(|lane| {
            let at = OUT as usize + 4 * lane;
            i32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
        })
    }
}

fn expected(acc: [i32; 4], products: impl Fn(usize) -> i32) -> [i32; 4] {
    std::array::from_fn(|lane| (4 * lane..4 * lane + 4).fold(acc[lane], |sum, i| sum.wrapping_add(products(i))))
}

fn check(runners: &[Runner], acc: [i32; 4], left: [u8; 16], right: [u8; 16], product: fn(u8, u8) -> i32) {
    let expected = expected(acc, |i| product(left[i], right[i]));
    for runner in runners {
        let found = runner.run(acc, left, right);
        assert_eq!(found, expected, "{} {left:?} {right:?}", runner.name);
    }
}

const ACCS: [[i32; 4]; 3] = [[0; 4], [i32::MAX, i32::MIN, -1, 1], [1 << 24, -(1 << 24), 32767, -32768]];

/// Every pair of `left` and `right` values, alone in all lanes and mixed with its neighbours.
fn check_grid(runners: &[Runner], left: &[u8], right: &[u8], product: fn(u8, u8) -> i32) {
    assert!(!runners.is_empty());
    for acc in ACCS {
        for i in 0..left.len() {
            for j in 0..right.len() {
                check(runners, acc, [left[i]; 16], [right[j]; 16], product);
                let mixed_left = std::array::from_fn(|lane| left[(i + lane) % left.len()]);
                let mixed_right = std::array::from_fn(|lane| right[(j + 3 * lane) % right.len()]);
                check(runners, acc, mixed_left, mixed_right, product);
            }
        }
    }
}

const UNSIGNED: [u8; 9] = [0, 1, 2, 63, 64, 127, 128, 254, 255];
const SIGNED: [u8; 8] = [0, 1, 127, 126, 128, 129, 255, 64];

fn unsigned_product(u: u8, s: u8) -> i32 {
    i32::from(u) * i32::from(s as i8)
}

fn signed_product(a: u8, b: u8) -> i32 {
    i32::from(a as i8) * i32::from(b as i8)
}

#[test]
fn dot_is_exact_at_the_extremes() {
    check_grid(&Runner::all(emit_dot), &UNSIGNED, &SIGNED, unsigned_product);
}

#[test]
fn seven_bit_dot_is_exact_at_the_extremes() {
    check_grid(&Runner::all(emit_dot_7bit), &UNSIGNED[..6], &SIGNED, unsigned_product);
}

#[test]
fn signed_dot_is_exact_at_the_extremes() {
    check_grid(&Runner::all(emit_dot_signed), &SIGNED, &SIGNED, signed_product);
}

#[test]
fn four_bit_dot_is_exact_at_the_extremes() {
    let signed = [-8i8, -7, -1, 0, 1, 7].map(|value| value as u8);
    check_grid(&Runner::with(four_bit, false), &[0, 1, 7, 8, 15], &signed, unsigned_product);
    let steps = Runner::with(four_bit_steps, false);
    check_grid(&steps, &[0, 1, 15], &signed, |u, s| DOT_4BIT_STEPS as i32 * unsigned_product(u, s));
}

#[test]
fn pair_dot_is_exact_at_the_extremes() {
    let runners = Runner::all(pair_dot);
    for x in SIGNED {
        for y in SIGNED {
            for runner in &runners {
                let found = runner.run([5, -5, i32::MAX, 0], [x; 16], [y; 16]);
                let pair = 2 * signed_product(x, y);
                let expected = [5, -5, i32::MAX, 0].map(|acc: i32| acc.wrapping_add(pair));
                assert_eq!(found, expected, "{}", runner.name);
            }
        }
    }
}

proptest! {
    #[test]
    fn dot_is_exact(acc: [i32; 4], left: [u8; 16], right: [u8; 16]) {
        thread_local! {
            static RUNNERS: [Vec<Runner>; 2] =
                [Runner::all(emit_dot), Runner::all(emit_dot_signed)];
        }
        RUNNERS.with(|[unsigned, signed]| {
            check(unsigned, acc, left, right, unsigned_product);
            check(signed, acc, left, right, signed_product);
        });
    }
}

/// Signed 4-bit values where the other functions take any byte.
fn four_bit_signed(byte: u8) -> u8 {
    ((byte << 4) as i8 >> 4) as u8
}

/// The same functions on aarch64, where this machine cannot run them itself.
#[test]
fn aarch64_is_exact_under_an_emulator() {
    const BLOCKS: usize = 36;
    let lane = |values: &[u8], block: usize, i: usize| values[(block + i * (1 + block % 5)) % values.len()];
    let mut input = Vec::new();
    let mut blocks = Vec::new();
    for block in 0..BLOCKS {
        let acc = ACCS[block % ACCS.len()];
        let left: [u8; 16] = std::array::from_fn(|i| lane(&UNSIGNED, block, i));
        let right: [u8; 16] = std::array::from_fn(|i| lane(&SIGNED, block / 4, 3 * i));
        input.extend(acc.iter().flat_map(|n| n.to_le_bytes()));
        input.extend(left);
        input.extend(right);
        input.extend(left.map(|byte| byte & 127));
        input.extend(left.map(|byte| byte & 15));
        input.extend(right.map(four_bit_signed));
        blocks.push((acc, left, right));
    }
    // What is computed, the offsets of its operands, and what one product is.
    type Product = fn(u8, u8) -> i32;
    let functions: [(Emit, i32, i32, Product); 5] = [
        (emit_dot, 16, 32, unsigned_product),
        (emit_dot_7bit, 48, 32, |u, s| unsigned_product(u & 127, s)),
        (emit_dot_signed, 16, 32, signed_product),
        (four_bit, 64, 80, |u, s| unsigned_product(u & 15, four_bit_signed(s))),
        (four_bit_steps, 64, 80, |u, s| DOT_4BIT_STEPS as i32 * unsigned_product(u & 15, four_bit_signed(s))),
    ];
    let plain = target("aarch64");
    for target in [plain.clone(), target("aarch64-dotprod"), plain.with_changes("+i8mm").unwrap()] {
        let mut module = object_module(&target, "dot").unwrap();
        let [manifest, run, run_integer] = EXPORTS;
        define_constant(&mut module, manifest, vec![0]).unwrap();
        sample::define_body(&mut module, run, |_, _, _| {});
        sample::define_body(&mut module, run_integer, |_, b, call| {
            let (from, to) = sample::pointers(b, call, 0);
            let flags = MemFlagsData::trusted();
            for block in 0..BLOCKS as i32 {
                for (i, (emit, left, right, _)) in functions.iter().enumerate() {
                    let acc = b.ins().load(types::I32X4, flags, from, 96 * block);
                    let left = b.ins().load(types::I8X16, flags, from, 96 * block + left);
                    let right = b.ins().load(types::I8X16, flags, from, 96 * block + right);
                    let out = emit(b, target.dot(), acc, left, right);
                    b.ins().store(flags, out, to, 80 * block + 16 * i as i32);
                }
            }
        });
        let shared = link(&object_bytes(module).unwrap(), "dot.so", &LinkWith::Own).unwrap();
        let mut output = vec![0; 80 * BLOCKS];
        if !emulate(&shared, &input, &mut output) {
            return;
        }
        let mut found = output.chunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().unwrap()));
        for (block, (acc, left, right)) in blocks.iter().enumerate() {
            for (i, (.., product)) in functions.iter().enumerate() {
                let expected = expected(*acc, |lane| product(left[lane], right[lane]));
                let found: [i32; 4] = std::array::from_fn(|_| found.next().unwrap());
                assert_eq!(found, expected, "{target} function {i} block {block}");
            }
        }
    }
}
