//! EVEX encodings, on any machine: 512 bits against the 256-bit forms that `native.rs` holds to the
//! processor, write masks against selection by element, memory and broadcasts against registers.

use std::collections::BTreeSet;

use hawqc_x86_emulator::{Fault, FaultKind, Features, Machine, Vector};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::enumerate::{Evex, Opcode, Shape};
use crate::operands::Random;

const PLAIN: Evex = Evex { length: 2, mask: 0, zeroing: false, broadcast: false };
/// Operands of the enumerated instructions: `reg` (1 where there is no choice), the second 2, `rm` 3.
const REG: u8 = 1;
const RM: u8 = 3;
/// Choices of `reg`, which is part of the opcode for some.
const REGISTERS: [u8; 7] = [0, 1, 2, 4, 5, 6, 7];

fn decode(code: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

fn name(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}

/// Registers with random contents.
fn machine(random: &mut Random) -> Machine {
    let mut machine = Machine::new(Features::all());
    machine.general = std::array::from_fn(|_| random.word());
    machine.vectors = std::array::from_fn(|_| Vector(random.bytes()));
    machine.masks = std::array::from_fn(|_| random.next());
    machine
}

fn copy(from: &Machine) -> Machine {
    let mut machine = Machine::new(Features::all());
    (machine.general, machine.flags) = (from.general, from.flags);
    (machine.vectors, machine.masks) = (from.vectors, from.masks);
    machine
}

/// The machine after one instruction with the base register at `memory`; none if it is not emulated.
fn after(machine: &Machine, code: &[u8], memory: &mut [u8]) -> Option<Result<Machine, Fault>> {
    let mut machine = copy(machine);
    machine.general[3] = memory.as_ptr() as u64;
    // SAFETY: restricted to `memory`.
    let done = unsafe {
        machine.add_code(code.as_ptr(), code.len());
        machine.allow_write(memory.as_mut_ptr(), memory.len());
        machine.step(code.as_ptr())
    };
    match done {
        Ok(_) => Some(Ok(machine)),
        Err(fault) if matches!(fault.kind, FaultKind::Unsupported | FaultKind::Feature(_)) => None,
        Err(fault) => Some(Err(fault)),
    }
}

/// The machine after an instruction on registers that is emulated.
fn on_registers(machine: &Machine, code: &[u8]) -> Option<Machine> {
    after(machine, code, &mut []).map(|done| done.unwrap())
}

/// The register form with whichever of the two uses of the second operand is valid.
fn register_form(opcode: Opcode, evex: Evex, reg: u8, immediate: u8) -> Option<(Vec<u8>, Instruction, bool)> {
    [true, false].into_iter().find_map(|second| {
        let code = opcode.evex(evex, second, Shape::Register, reg, RM, immediate);
        decode(&code).map(|instruction| (code, instruction, second))
    })
}

/// The vector registers among the operands, as sizes.
fn sizes(instruction: &Instruction) -> Vec<usize> {
    let registers = (0..instruction.op_count()).map(|k| instruction.op_register(k));
    registers.filter(|register| register.is_vector_register()).map(|register| register.size()).collect()
}

/// The name of the VEX form.
fn vex_name(name: &str) -> &str {
    match name {
        "vpandd" | "vpandq" => "vpand",
        "vpandnd" | "vpandnq" => "vpandn",
        "vpord" | "vporq" => "vpor",
        "vpxord" | "vpxorq" => "vpxor",
        "vmovdqa32" | "vmovdqa64" => "vmovdqa",
        "vmovdqu32" | "vmovdqu64" => "vmovdqu",
        name => name,
    }
}

#[test]
fn wide_forms_are_the_narrow_forms_in_each_half() {
    // These move data between halves, or use other bits of the immediate for each.
    const ACROSS: [&str; 6] = ["vpermd", "vpermq", "vpermps", "vpermpd", "vshufpd", "vpermilpd"];
    let mut random = Random(5);
    let mut seen = BTreeSet::new();
    for opcode in Opcode::all() {
        for _ in 0..24 {
            let (immediate, reg) = (random.next() as u8, REGISTERS[random.below(7) as usize]);
            let Some((code, wide, second)) = register_form(opcode, PLAIN, reg, immediate) else { continue };
            let form = |w| Opcode { w, ..opcode }.vex(1, second, Shape::Register, reg, RM, immediate);
            let narrow = [opcode.w, 0, 1].into_iter().map(form).find(|code| {
                decode(code).is_some_and(|narrow| {
                    name(&narrow) == vex_name(&name(&wide)) && sizes(&narrow).iter().all(|&bytes| bytes == 32)
                })
            });
            let Some(narrow) = narrow else { continue };
            let all_wide = sizes(&wide).iter().all(|&bytes| bytes == 64) && wide.op_register(0).is_zmm();
            if !all_wide || ACROSS.contains(&name(&wide).as_str()) {
                continue;
            }
            let low = machine(&mut random);
            let Some(found) = on_registers(&low, &code) else { continue };
            let mut high = copy(&low);
            high.vectors.iter_mut().for_each(|vector| vector.0.rotate_left(32));
            let destination = wide.op_register(0).number();
            let halves = [low, high].map(|half| on_registers(&half, &narrow).unwrap().vectors[destination]);
            let mut expected = halves[0];
            expected.0[32..].copy_from_slice(&halves[1].0[..32]);
            assert_eq!(found.vectors[destination], expected, "{wide}");
            seen.insert(name(&wide));
        }
    }
    for name in "vpaddb vpmaddwd vpmaddubsw vpmuldq vpmulld vpackssdw vpackuswb vpshufb vpunpcklbw vpsrad vpsllvd \
                 vpdpbusd vpdpbusds vpdpwssd vpdpwssds vpminsd vpmaxub vpxord vpalignr vpshufd vpsadbw vmulps vpabsd"
        .split_whitespace()
    {
        assert!(seen.contains(name), "{name} was not compared: {seen:?}");
    }
    eprintln!("{} mnemonics compared", seen.len());
}

/// Bytes of the element that a write mask's bit stands for, by the name.
fn element(name: &str) -> usize {
    let letter = |letter: u8| match letter {
        b'b' => 1,
        b'w' => 2,
        b'd' | b's' => 4,
        b'q' => 8,
        letter => panic!("{name}: {letter}"),
    };
    let bytes = name.as_bytes();
    if name.contains("unpck") && !name.ends_with('s') && !name.ends_with("pd") {
        // Of `bw`, `wd`, `dq` and `qdq` the first letter.
        return if name.ends_with("qdq") { 8 } else { letter(bytes[bytes.len() - 2]) };
    }
    if let Some((_, shape)) = name.split_once("32x").or(name.split_once("64x")) {
        assert!(!shape.is_empty());
        return if name.contains("32x") { 4 } else { 8 };
    }
    match name {
        name if name.ends_with("pd") => 8,
        name if name.ends_with("ps") => 4,
        "vpalignr" => 1,
        "vmovsldup" | "vmovshdup" => 4,
        "vmovddup" | "vbroadcastsd" => 8,
        "vmovdqu8" => 1,
        "vmovdqu16" => 2,
        "vmovdqa32" | "vmovdqu32" => 4,
        "vmovdqa64" | "vmovdqu64" => 8,
        "vcvttps2dq" | "vcvtps2dq" | "vcvttps2udq" | "vcvtps2udq" | "vpdpbusds" | "vpdpwssds" => 4,
        _ => letter(bytes[bytes.len() - 1]),
    }
}

/// Bytes that a narrowing move writes.
fn written(name: &str, instruction: &Instruction) -> usize {
    let narrows = name.strip_prefix("vpmov").map(|rest| rest.trim_start_matches(['u', 's']));
    let wide = |letter| match letter {
        'w' => 2,
        'd' => 4,
        _ => 8,
    };
    match narrows {
        Some(rest) if rest.len() == 2 && !rest.contains(['2', 'm', 'x', 'z']) => {
            let source = instruction.op_register(1).size();
            source * element(name) / wide(rest.chars().next().unwrap())
        }
        _ => instruction.op_register(0).size(),
    }
}

#[test]
fn masks_select_elements() {
    let mut random = Random(6);
    let mut seen = BTreeSet::new();
    for opcode in Opcode::all() {
        for round in 0..24 {
            let evex = Evex { length: round % 3, ..PLAIN };
            let (immediate, reg) = (random.next() as u8, REGISTERS[random.below(7) as usize]);
            let Some((plain, instruction, second)) = register_form(opcode, evex, reg, immediate) else { continue };
            let zeroing = round >= 12;
            let masked = Evex { mask: 5, zeroing, ..evex };
            let masked = opcode.evex(masked, second, Shape::Register, reg, RM, immediate);
            if decode(&masked).is_none() {
                continue;
            }
            let before = machine(&mut random);
            let (Some(all), Some(some)) = (on_registers(&before, &plain), on_registers(&before, &masked)) else {
                continue;
            };
            let (name, destination) = (name(&instruction), instruction.op_register(0));
            let n = destination.number();
            seen.insert(name.clone());
            if destination.is_k() {
                assert_eq!(some.masks[n], all.masks[n] & before.masks[5], "{instruction}");
                continue;
            }
            let mut expected = all.vectors[n];
            // A blend without a mask takes the third operand, and keeps the second where it is masked.
            let other = if name.contains("blendm") { 2 } else { n };
            let bytes = element(&name);
            for lane in (0..written(&name, &instruction) / bytes).filter(|lane| before.masks[5] >> lane & 1 == 0) {
                let at = lane * bytes..(lane + 1) * bytes;
                let old = if zeroing { &[0; 64] } else { &before.vectors[other].0 };
                expected.0[at.clone()].copy_from_slice(&old[at]);
            }
            assert_eq!(some.vectors[n], expected, "{instruction} masked, zeroing {zeroing}");
        }
    }
    assert!(seen.len() > 200, "{} {seen:?}", seen.len());
}

#[repr(C, align(64))]
struct Scratch([u8; 64]);

#[test]
fn memory_and_broadcasts_equal_registers() {
    let mut random = Random(7);
    let (mut seen, mut broadcasts) = (BTreeSet::new(), BTreeSet::new());
    for opcode in Opcode::all() {
        for round in 0..12 {
            let evex = Evex { length: round % 3, ..PLAIN };
            let (immediate, reg) = (random.next() as u8, REGISTERS[random.below(7) as usize]);
            let Some((registers, instruction, second)) = register_form(opcode, evex, reg, immediate) else { continue };
            let mut before = machine(&mut random);
            let Some(expected) = on_registers(&before, &registers) else { continue };
            let last = (0..instruction.op_count()).rev().find(|&k| instruction.op_register(k).number() == RM as usize);
            let is_source = last.is_some_and(|k| k > 0 && instruction.op_register(k).is_vector_register());
            let code = opcode.evex(evex, second, Shape::Plain, reg, RM, immediate);
            // A few take another block of a register than the lowest.
            if !is_source || decode(&code).is_none() || instruction.mnemonic() == Mnemonic::Vinsertps {
                continue;
            }
            let mut memory = Scratch(before.vectors[RM as usize].0);
            let same = |found: &Machine, expected: &Machine| {
                assert_eq!(found.vectors[..32], expected.vectors[..32], "{instruction}");
                assert_eq!(found.masks, expected.masks, "{instruction}");
            };
            if let Some(found) = after(&before, &code, &mut memory.0) {
                // Loads of a scalar clear what the move between registers keeps.
                if !name(&instruction).starts_with("vmovs") && !name(&instruction).starts_with("vmov") {
                    same(&found.unwrap(), &expected);
                    seen.insert(name(&instruction));
                }
            }
            let bytes = if opcode.w == 1 { 8 } else { 4 };
            let broadcast = Evex { broadcast: true, ..evex };
            let code = opcode.evex(broadcast, second, Shape::Plain, reg, RM, immediate);
            if decode(&code).is_none_or(|instruction| !instruction.is_broadcast()) {
                continue;
            }
            let element: Vec<u8> = memory.0[..bytes].to_vec();
            let full: Vec<u8> = element.iter().copied().cycle().take(64).collect();
            before.vectors[RM as usize].0.copy_from_slice(&full);
            let expected = on_registers(&before, &registers).unwrap();
            let mut short = element;
            if let Some(found) = after(&before, &code, &mut short) {
                same(&found.unwrap(), &expected);
                broadcasts.insert(name(&instruction));
            }
        }
    }
    assert!(seen.len() > 150 && broadcasts.len() > 100, "{} {}", seen.len(), broadcasts.len());
}

/// The encoding of `name` at a vector length, with its destination in zmm1 or mask 1 and its sources in
/// 2 and 3; for narrowing moves from 1 to 3.
fn find(wanted: &str, length: u8, mask: u8, immediate: u8) -> Vec<u8> {
    let evex = Evex { length, mask, ..PLAIN };
    let found = Opcode::all().find_map(|opcode| {
        register_form(opcode, evex, REG, immediate)
            .filter(|(_, instruction, _)| name(instruction) == wanted && instruction.op_count() > 1)
            .map(|(code, ..)| code)
    });
    found.unwrap_or_else(|| panic!("{wanted} has no encoding"))
}

/// Lanes of a register as the given type.
macro_rules! lanes {
    ($type:ty, $vector:expr) => {
        $vector.0.as_chunks().0.iter().map(|bytes| <$type>::from_le_bytes(*bytes)).collect::<Vec<$type>>()
    };
}

/// Runs `name` on random and extreme registers many times and hands the machine before and after on.
fn many(name: &str, length: u8, immediate: u8, check: impl Fn(&Machine, &Machine)) {
    let code = find(name, length, 0, immediate);
    let mut random = Random(u64::from(immediate) + 11);
    for _ in 0..300 {
        let before = machine(&mut random);
        check(&before, &on_registers(&before, &code).unwrap_or_else(|| panic!("{name} is not emulated")));
    }
}

#[test]
fn dot_products_follow_the_manual() {
    let sum4 = |a: &[u8], b: &[i8]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum::<i64>();
    let sum2 = |a: &[i16], b: &[i16]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum::<i64>();
    let cut = |sum: i64, saturates: bool| {
        if saturates { sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32 } else { sum as i32 }
    };
    for (name, saturates) in [("vpdpbusd", false), ("vpdpbusds", true)] {
        many(name, 2, 0, |before, after| {
            let (a, b) = (lanes!(u8, before.vectors[2]), lanes!(i8, before.vectors[3]));
            let acc = lanes!(i32, before.vectors[1]);
            for (lane, found) in lanes!(i32, after.vectors[1]).into_iter().enumerate() {
                let at = 4 * lane..4 * lane + 4;
                let sum = i64::from(acc[lane]) + sum4(&a[at.clone()], &b[at]);
                assert_eq!(found, cut(sum, saturates), "{name} {lane}");
            }
        });
    }
    for (name, saturates) in [("vpdpwssd", false), ("vpdpwssds", true)] {
        many(name, 2, 0, |before, after| {
            let (a, b) = (lanes!(i16, before.vectors[2]), lanes!(i16, before.vectors[3]));
            let acc = lanes!(i32, before.vectors[1]);
            for (lane, found) in lanes!(i32, after.vectors[1]).into_iter().enumerate() {
                let at = 2 * lane..2 * lane + 2;
                let sum = i64::from(acc[lane]) + sum2(&a[at.clone()], &b[at]);
                assert_eq!(found, cut(sum, saturates), "{name} {lane}");
            }
        });
    }
    // 4 * 255 * 127 on top of the largest number, and 4 * 255 * -128 below the smallest.
    for (name, start, weight, expected) in [
        ("vpdpbusd", i32::MAX, 0x7f, i32::MIN + 129_539),
        ("vpdpbusds", i32::MAX, 0x7f, i32::MAX),
        ("vpdpbusd", i32::MIN, 0x80, i32::MAX - 130_559),
        ("vpdpbusds", i32::MIN, 0x80, i32::MIN),
        ("vpdpbusds", -5, 0x7f, 129_535),
    ] {
        let mut before = machine(&mut Random(1));
        before.vectors[1].0.as_chunks_mut().0.fill(start.to_le_bytes());
        before.vectors[2] = Vector::filled(0xff);
        before.vectors[3] = Vector::filled(weight);
        let after = on_registers(&before, &find(name, 2, 0, 0)).unwrap();
        assert_eq!(lanes!(i32, after.vectors[1]), [expected; 16], "{name}");
    }
}

#[test]
fn narrowing_moves_follow_the_manual() {
    macro_rules! narrows {
        ($($name:literal $wide:ty, $narrow:ty, $saturates:expr;)*) => { $(
            for length in 0..3 {
                many($name, length, 0, |before, after| {
                    let source = lanes!($wide, before.vectors[1]);
                    let found = lanes!($narrow, after.vectors[3]);
                    let lanes = (16 << length) / size_of::<$wide>();
                    for lane in 0..found.len() {
                        let whole = if lane < lanes { i128::from(source[lane]) } else { 0 };
                        let clamped = whole.clamp(<$narrow>::MIN.into(), <$narrow>::MAX.into());
                        let expected = if $saturates { clamped as $narrow } else { whole as $narrow };
                        assert_eq!(found[lane], expected, "{} {lane}", $name);
                    }
                });
            }
        )* };
    }
    narrows! {
        "vpmovwb" i16, i8, false; "vpmovswb" i16, i8, true; "vpmovuswb" u16, u8, true;
        "vpmovdb" i32, i8, false; "vpmovsdb" i32, i8, true; "vpmovusdb" u32, u8, true;
        "vpmovdw" i32, i16, false; "vpmovsdw" i32, i16, true; "vpmovusdw" u32, u16, true;
        "vpmovqb" i64, i8, false; "vpmovsqb" i64, i8, true; "vpmovusqb" u64, u8, true;
        "vpmovqw" i64, i16, false; "vpmovsqw" i64, i16, true; "vpmovusqw" u64, u16, true;
        "vpmovqd" i64, i32, false; "vpmovsqd" i64, i32, true; "vpmovusqd" u64, u32, true;
    }
}

#[test]
fn extensions_and_permutes_cross_lanes() {
    many("vpmovzxbd", 2, 0, |before, after| {
        let expected: Vec<u32> = before.vectors[3].0[..16].iter().map(|b| u32::from(*b)).collect();
        assert_eq!(lanes!(u32, after.vectors[1]), expected);
    });
    many("vpmovsxbw", 2, 0, |before, after| {
        let expected: Vec<i16> = before.vectors[3].0[..32].iter().map(|b| i16::from(*b as i8)).collect();
        assert_eq!(lanes!(i16, after.vectors[1]), expected);
    });
    many("vpmovsxdq", 2, 0, |before, after| {
        let expected: Vec<i64> = lanes!(i32, before.vectors[3])[..8].iter().map(|v| i64::from(*v)).collect();
        assert_eq!(lanes!(i64, after.vectors[1]), expected);
    });
    macro_rules! permutes {
        ($($one:literal $index:literal $table:literal $type:ty;)*) => { $(
            for length in [1, 2] {
                let lanes = (16usize << length) / size_of::<$type>();
                many($one, length, 0, |before, after| {
                    let (index, data) = (lanes!($type, before.vectors[2]), lanes!($type, before.vectors[3]));
                    let expected: Vec<$type> = (0..lanes).map(|n| data[index[n] as usize % lanes]).collect();
                    assert_eq!(lanes!($type, after.vectors[1])[..lanes], expected, $one);
                });
                let pick = |index: $type, a: &[$type], b: &[$type]| {
                    let n = index as usize % (2 * lanes);
                    if n < lanes { a[n] } else { b[n - lanes] }
                };
                many($index, length, 0, |before, after| {
                    let [index, a, b] = [1, 2, 3].map(|n| lanes!($type, before.vectors[n]));
                    let expected: Vec<$type> = (0..lanes).map(|n| pick(index[n], &a, &b)).collect();
                    assert_eq!(lanes!($type, after.vectors[1])[..lanes], expected, $index);
                });
                many($table, length, 0, |before, after| {
                    let [a, index, b] = [1, 2, 3].map(|n| lanes!($type, before.vectors[n]));
                    let expected: Vec<$type> = (0..lanes).map(|n| pick(index[n], &a, &b)).collect();
                    assert_eq!(lanes!($type, after.vectors[1])[..lanes], expected, $table);
                });
            }
        )* };
    }
    permutes! {
        "vpermb" "vpermi2b" "vpermt2b" u8;
        "vpermw" "vpermi2w" "vpermt2w" u16;
        "vpermd" "vpermi2d" "vpermt2d" u32;
        "vpermq" "vpermi2q" "vpermt2q" u64;
    }
    for immediate in [0, 1, 5, 15, 16, 19, 255] {
        many("valignd", 2, immediate, |before, after| {
            let both = [lanes!(u32, before.vectors[3]), lanes!(u32, before.vectors[2])].concat();
            let n = usize::from(immediate) % 16;
            assert_eq!(lanes!(u32, after.vectors[1]), both[n..n + 16]);
        });
        many("vshufi32x4", 2, immediate, |before, after| {
            let [a, b] = [2, 3].map(|n| lanes!(u128, before.vectors[n]));
            let bits = |n: u8| usize::from(immediate >> (2 * n) & 3);
            assert_eq!(lanes!(u128, after.vectors[1]), [a[bits(0)], a[bits(1)], b[bits(2)], b[bits(3)]]);
        });
        many("vinserti32x4", 2, immediate, |before, after| {
            let mut expected = lanes!(u128, before.vectors[2]);
            expected[usize::from(immediate & 3)] = lanes!(u128, before.vectors[3])[0];
            assert_eq!(lanes!(u128, after.vectors[1]), expected);
        });
        many("vextracti64x4", 2, immediate, |before, after| {
            let from = 2 * usize::from(immediate & 1);
            let source = lanes!(u128, before.vectors[1]);
            assert_eq!(lanes!(u128, after.vectors[3]), [source[from], source[from + 1], 0, 0]);
        });
    }
}

#[test]
fn ternary_logic_arithmetic_shifts_and_comparisons() {
    for table in [0x96, 0xca, 0xe8, 0x01, 0x80, 0x6b] {
        many("vpternlogd", 2, table, |before, after| {
            let [a, b, c, found] = [before.vectors[1], before.vectors[2], before.vectors[3], after.vectors[1]];
            for bit in 0..512 {
                let at = |v: &Vector| v.0[bit / 8] >> (bit % 8) & 1;
                let row = at(&a) << 2 | at(&b) << 1 | at(&c);
                assert_eq!(at(&found), table >> row & 1);
            }
        });
    }
    many("vpsravq", 2, 0, |before, after| {
        let (a, n) = (lanes!(i64, before.vectors[2]), lanes!(u64, before.vectors[3]));
        let expected: Vec<i64> =
            (0..8).map(|i| if n[i] > 63 { if a[i] < 0 { -1 } else { 0 } } else { a[i] >> n[i] }).collect();
        assert_eq!(lanes!(i64, after.vectors[1]), expected);
    });
    many("vpsllvw", 2, 0, |before, after| {
        let (a, n) = (lanes!(u16, before.vectors[2]), lanes!(u16, before.vectors[3]));
        let expected: Vec<u16> = (0..32).map(|i| if n[i] > 15 { 0 } else { a[i] << n[i] }).collect();
        assert_eq!(lanes!(u16, after.vectors[1]), expected);
    });
    many("vpmullq", 2, 0, |before, after| {
        let (a, b) = (lanes!(u64, before.vectors[2]), lanes!(u64, before.vectors[3]));
        let expected: Vec<u64> = (0..8).map(|i| (u128::from(a[i]) * u128::from(b[i])) as u64).collect();
        assert_eq!(lanes!(u64, after.vectors[1]), expected);
    });
    many("vpabsq", 2, 0, |before, after| {
        let expected: Vec<u64> = lanes!(i64, before.vectors[3]).iter().map(|v| v.unsigned_abs()).collect();
        assert_eq!(lanes!(u64, after.vectors[1]), expected);
    });
    for relation in 0..8u8 {
        let holds = |order: std::cmp::Ordering| match relation {
            0 => order.is_eq(),
            1 => order.is_lt(),
            2 => order.is_le(),
            3 => false,
            4 => order.is_ne(),
            5 => order.is_ge(),
            6 => order.is_gt(),
            _ => true,
        };
        many("vpcmpd", 2, relation, |before, after| {
            let (a, b) = (lanes!(i32, before.vectors[2]), lanes!(i32, before.vectors[3]));
            let bits = (0..16).fold(0, |bits, n| bits | u64::from(holds(a[n].cmp(&b[n]))) << n);
            assert_eq!(after.masks[1], bits);
        });
        many("vpcmpub", 2, relation, |before, after| {
            let (a, b) = (before.vectors[2].0, before.vectors[3].0);
            let bits = (0..64).fold(0, |bits, n| bits | u64::from(holds(a[n].cmp(&b[n]))) << n);
            assert_eq!(after.masks[1], bits);
        });
    }
}
