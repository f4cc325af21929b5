//! 8-bit and 4-bit dot products of 128-bit vectors in Cranelift IR.
//!
//! In: vectors of bytes (`i8x16`) and an accumulator. Out: the accumulator plus the dot products,
//! exact for every operand value, wrapping like `iadd` only where the accumulator itself overflows.
//! Each function gives the same result for every [`Dot`]; the strategy chooses instructions only,
//! and is valid only on targets that chose it ([`crate::target::Target::dot`]), except
//! [`Dot::Widening`], which is valid everywhere.
//!
//! Cranelift has no dot-product operation. It recognises these exact trees, operand order
//! included, and nothing near them (the other order becomes a dozen instructions, correct and
//! slow), which is why the tests look at the machine code:
//!
//! | instruction | tree | settings |
//! |---|---|---|
//! | `vpdpbusd` | `iadd(quad(imul(swiden s, uwiden u)), acc)` | `has_avx_vnni`, or `has_avx512vnni` and `has_avx512vl` |
//! | `sdot` | `iadd(quad(imul(swiden a, swiden b)), acc)` | `has_dotprod` |
//! | `usdot` | `iadd(quad(imul(uwiden u, swiden s)), acc)` | `has_i8mm` |
//! | `pmaddwd` | `iadd_pairwise(imul(swiden_low x, swiden_low y), imul(swiden_high x, swiden_high y))` | |
//! | `pmaddubsw` | `x86_pmaddubsw(s, u)` | |
//!
//! where `quad(p)` is `iadd_pairwise(iadd_pairwise(swiden_low p_low, swiden_high p_low),
//! iadd_pairwise(swiden_low p_high, swiden_high p_high))`. An operand that is a `splat` of a constant
//! is widened at compile time, and the tree is no longer there: load it, or use `vconst`.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use cranelift_frontend::FunctionBuilder;

use crate::target::Dot;

/// How many [`emit_dot_4bit`] results a 16-bit lane can hold: each adds at most 2 * 15 * 8 = 240 in
/// magnitude, and 136 * 240 = 32640 < 32768. Then [`emit_widen_4bit`] and start again from zero.
pub const DOT_4BIT_STEPS: usize = 136;

/// `acc[i] + sum over j in 0..4 of unsigned[4i+j] * signed[4i+j]`, in `i32x4`, for u8 and i8 over
/// their full ranges.
///
/// A product lies in [-32640, 32385] and so is exact in 16 bits; the four are added in 32 bits.
pub fn emit_dot(
    b: &mut FunctionBuilder,
    dot: Dot,
    acc: Value,
    unsigned: Value,
    signed: Value,
) -> Value {
    match dot {
        Dot::Vnni => unsigned_tree(b, acc, unsigned, signed, Order::SignedFirst),
        Dot::Usdot | Dot::Widening => unsigned_tree(b, acc, unsigned, signed, Order::UnsignedFirst),
        Dot::Pmaddwd => {
            let (u_low, u_high) = (b.ins().uwiden_low(unsigned), b.ins().uwiden_high(unsigned));
            pmaddwd_dot(b, acc, (u_low, u_high), signed)
        }
        Dot::Sdot => {
            // u = 2 (u >> 1) + (u & 1), and both parts are below 128.
            let half = b.ins().ushr_imm_u(unsigned, 1);
            let one = splat(b, types::I8X16, 1);
            let odd = b.ins().band(unsigned, one);
            let acc = signed_tree(b, acc, half, signed);
            let acc = signed_tree(b, acc, half, signed);
            signed_tree(b, acc, odd, signed)
        }
    }
}

/// [`emit_dot`] where every unsigned byte is below 128, as a 4-bit or 7-bit activation is. One
/// instruction for [`Dot::Sdot`] too.
pub fn emit_dot_7bit(
    b: &mut FunctionBuilder,
    dot: Dot,
    acc: Value,
    unsigned: Value,
    signed: Value,
) -> Value {
    match dot {
        Dot::Sdot => signed_tree(b, acc, unsigned, signed),
        Dot::Vnni | Dot::Usdot | Dot::Pmaddwd | Dot::Widening => {
            emit_dot(b, dot, acc, unsigned, signed)
        }
    }
}

/// `acc[i] + sum over j in 0..4 of left[4i+j] * right[4i+j]`, in `i32x4`, for i8 over its full
/// range.
///
/// On [`Dot::Vnni`] this takes two dot products. Where one operand is constant it is cheaper to add
/// 128 to the other (`bxor` with 0x80), use [`emit_dot`], and start the accumulator from
/// `-128 * sum(constant)`.
pub fn emit_dot_signed(
    b: &mut FunctionBuilder,
    dot: Dot,
    acc: Value,
    left: Value,
    right: Value,
) -> Value {
    match dot {
        Dot::Sdot | Dot::Usdot | Dot::Widening => signed_tree(b, acc, left, right),
        Dot::Pmaddwd => {
            let (l_low, l_high) = (b.ins().swiden_low(left), b.ins().swiden_high(left));
            pmaddwd_dot(b, acc, (l_low, l_high), right)
        }
        Dot::Vnni => {
            // left = (left ^ 0x80) - 128, both terms unsigned, and -128 w = 128 (!w) + 128. The four
            // 128s of a lane join the accumulator first. (Subtracting a second sum instead, or a
            // `splat` for `sign`, is rewritten by the optimiser into a tree that does not fold.)
            let sign = b.func.dfg.constants.insert([0x80u8; 16][..].into());
            let sign = b.ins().vconst(types::I8X16, sign);
            let biased = b.ins().bxor(left, sign);
            let complement = b.ins().bnot(right);
            let offset = splat(b, types::I32X4, 4 * 128);
            let acc = b.ins().iadd(acc, offset);
            let acc = unsigned_tree(b, acc, biased, right, Order::SignedFirst);
            unsigned_tree(b, acc, sign, complement, Order::SignedFirst)
        }
    }
}

/// `acc[i] + x[2i] * y[2i] + x[2i+1] * y[2i+1]`, in `i32x4`, for vectors of 16-bit values
/// (`i16x8`): x86 `pmaddwd`. With activations and weights widened once and used many times, this is
/// the fast form of [`Dot::Pmaddwd`], whose [`emit_dot`] widens each time.
///
/// Exact unless all four values are -32768.
pub fn emit_pair_dot(b: &mut FunctionBuilder, acc: Value, x: Value, y: Value) -> Value {
    let pairs = pairs(b, x, y);
    b.ins().iadd(acc, pairs)
}

/// `acc16[i] + unsigned[2i] * signed[2i] + unsigned[2i+1] * signed[2i+1]`, in `i16x8`, for unsigned
/// bytes in 0..=15 and signed bytes in -8..=7. At most [`DOT_4BIT_STEPS`] in a row.
///
/// Here [`Dot::Widening`] too belongs to aarch64 only: x86 has no multiplication of 8-bit lanes, and
/// compiling it there fails.
pub fn emit_dot_4bit(
    b: &mut FunctionBuilder,
    dot: Dot,
    acc16: Value,
    unsigned: Value,
    signed: Value,
) -> Value {
    let pairs = match dot {
        // Cannot saturate: a pair is at most 240 in magnitude.
        Dot::Vnni | Dot::Pmaddwd => b.ins().x86_pmaddubsw(signed, unsigned),
        Dot::Sdot | Dot::Usdot | Dot::Widening => {
            // A product lies in [-120, 105] and so is exact in 8 bits.
            let products = b.ins().imul(unsigned, signed);
            let (low, high) = (b.ins().swiden_low(products), b.ins().swiden_high(products));
            b.ins().iadd_pairwise(low, high)
        }
    };
    b.ins().iadd(pairs, acc16)
}

/// `acc[i] + acc16[2i] + acc16[2i+1]`, in `i32x4`: the 16-bit sums of [`emit_dot_4bit`] in the lanes
/// of [`emit_dot`].
pub fn emit_widen_4bit(b: &mut FunctionBuilder, acc: Value, acc16: Value) -> Value {
    let (low, high) = (b.ins().swiden_low(acc16), b.ins().swiden_high(acc16));
    let sums = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(sums, acc)
}

/// Which operand of the multiplication is the unsigned one: x86 and aarch64 differ.
enum Order {
    SignedFirst,
    UnsignedFirst,
}

fn unsigned_tree(
    b: &mut FunctionBuilder,
    acc: Value,
    unsigned: Value,
    signed: Value,
    order: Order,
) -> Value {
    let (u_low, u_high) = (b.ins().uwiden_low(unsigned), b.ins().uwiden_high(unsigned));
    let (s_low, s_high) = (b.ins().swiden_low(signed), b.ins().swiden_high(signed));
    let (low, high) = match order {
        Order::SignedFirst => (b.ins().imul(s_low, u_low), b.ins().imul(s_high, u_high)),
        Order::UnsignedFirst => (b.ins().imul(u_low, s_low), b.ins().imul(u_high, s_high)),
    };
    add_quads(b, acc, low, high)
}

fn signed_tree(b: &mut FunctionBuilder, acc: Value, left: Value, right: Value) -> Value {
    let (l_low, l_high) = (b.ins().swiden_low(left), b.ins().swiden_high(left));
    let (r_low, r_high) = (b.ins().swiden_low(right), b.ins().swiden_high(right));
    let low = b.ins().imul(l_low, r_low);
    let high = b.ins().imul(l_high, r_high);
    add_quads(b, acc, low, high)
}

/// `acc` plus the sums of four neighbours of the 16-bit products `low ++ high`.
fn add_quads(b: &mut FunctionBuilder, acc: Value, low: Value, high: Value) -> Value {
    let mut widened_pairs = |products| {
        let (low, high) = (b.ins().swiden_low(products), b.ins().swiden_high(products));
        b.ins().iadd_pairwise(low, high)
    };
    let (low, high) = (widened_pairs(low), widened_pairs(high));
    let quads = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(quads, acc)
}

fn pmaddwd_dot(
    b: &mut FunctionBuilder,
    acc: Value,
    (left_low, left_high): (Value, Value),
    right: Value,
) -> Value {
    let (r_low, r_high) = (b.ins().swiden_low(right), b.ins().swiden_high(right));
    let low = pairs(b, left_low, r_low);
    let high = pairs(b, left_high, r_high);
    let quads = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(quads, acc)
}

fn splat(b: &mut FunctionBuilder, ty: Type, value: i64) -> Value {
    let lane = b.ins().iconst(ty.lane_type(), value);
    b.ins().splat(ty, lane)
}

/// Products of 16-bit values added in pairs, `i32x4`.
fn pairs(b: &mut FunctionBuilder, x: Value, y: Value) -> Value {
    let (x_low, x_high) = (b.ins().swiden_low(x), b.ins().swiden_high(x));
    let (y_low, y_high) = (b.ins().swiden_low(y), b.ins().swiden_high(y));
    let low = b.ins().imul(x_low, y_low);
    let high = b.ins().imul(x_high, y_high);
    b.ins().iadd_pairwise(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{JitCode, define_function, jit_module, linkage, object_module};
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
        let id = module
            .declare_function(name, linkage(name), &ctx.func.signature)
            .unwrap();
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
            "push", "pop", "mov", "movdqu", "vmovdqu", "movups", "vmovups", "movdqa", "vmovdqa",
            "movaps", "vmovaps", "ldr", "str", "stp", "ldp", "ret", "movupd", "vmovupd",
        ];
        mnemonics
            .iter()
            .filter(|name| !moves.contains(&name.as_str()))
            .count()
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
        for (name, multiply) in [
            ("x86-64-v2", "pmaddwd"),
            ("x86-64-v3", "vpmaddwd"),
            ("x86-avx512-novnni", "vpmaddwd"),
        ] {
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
            Runner {
                name: format!("{target} {dot:?}"),
                code: JitCode::finish(module).unwrap(),
                id,
            }
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
            let run: unsafe extern "C" fn(*mut u8) =
                unsafe { std::mem::transmute(self.code.function(self.id)) };
            // SAFETY: the function reads and writes within these 64 bytes.
            unsafe { run(memory.as_mut_ptr()) };
            std::array::from_fn(|lane| {
                let at = OUT as usize + 4 * lane;
                i32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
            })
        }
    }

    fn expected(acc: [i32; 4], products: impl Fn(usize) -> i32) -> [i32; 4] {
        std::array::from_fn(|lane| {
            (4 * lane..4 * lane + 4).fold(acc[lane], |sum, i| sum.wrapping_add(products(i)))
        })
    }

    fn check(
        runners: &[Runner],
        acc: [i32; 4],
        left: [u8; 16],
        right: [u8; 16],
        product: fn(u8, u8) -> i32,
    ) {
        let expected = expected(acc, |i| product(left[i], right[i]));
        for runner in runners {
            let found = runner.run(acc, left, right);
            assert_eq!(found, expected, "{} {left:?} {right:?}", runner.name);
        }
    }

    const ACCS: [[i32; 4]; 3] = [
        [0; 4],
        [i32::MAX, i32::MIN, -1, 1],
        [1 << 24, -(1 << 24), 32767, -32768],
    ];

    /// Every pair of `left` and `right` values, alone in all lanes and mixed with its neighbours.
    fn check_grid(runners: &[Runner], left: &[u8], right: &[u8], product: fn(u8, u8) -> i32) {
        assert!(!runners.is_empty());
        for acc in ACCS {
            for i in 0..left.len() {
                for j in 0..right.len() {
                    check(runners, acc, [left[i]; 16], [right[j]; 16], product);
                    let mixed_left = std::array::from_fn(|lane| left[(i + lane) % left.len()]);
                    let mixed_right =
                        std::array::from_fn(|lane| right[(j + 3 * lane) % right.len()]);
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
        check_grid(
            &Runner::all(emit_dot_7bit),
            &UNSIGNED[..6],
            &SIGNED,
            unsigned_product,
        );
    }

    #[test]
    fn signed_dot_is_exact_at_the_extremes() {
        check_grid(
            &Runner::all(emit_dot_signed),
            &SIGNED,
            &SIGNED,
            signed_product,
        );
    }

    #[test]
    fn four_bit_dot_is_exact_at_the_extremes() {
        let signed = [-8i8, -7, -1, 0, 1, 7].map(|value| value as u8);
        check_grid(
            &Runner::with(four_bit, false),
            &[0, 1, 7, 8, 15],
            &signed,
            unsigned_product,
        );
        let steps = Runner::with(four_bit_steps, false);
        check_grid(&steps, &[0, 1, 15], &signed, |u, s| {
            DOT_4BIT_STEPS as i32 * unsigned_product(u, s)
        });
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
}
