//! What kernels for AVX-512 are made of is emulated, and instructions on masks mean what the manual says.

use std::collections::BTreeSet;

use hawqc_x86_emulator::{FaultKind, Features, Flags, Machine};
use iced_x86::{Decoder, DecoderOptions};

use crate::enumerate::{Evex, Opcode, Shape};

const EVEX: &str = "vmovdqa32 vmovdqa64 vmovdqu8 vmovdqu16 vmovdqu32 vmovdqu64 vmovd vmovq vpbroadcastb vpbroadcastw \
    vpbroadcastd vpbroadcastq vbroadcasti32x4 vbroadcasti64x4 vpaddb vpaddw vpaddd vpaddq vpsubb vpsubw vpsubd vpsubq \
    vpaddsw vpaddusb vpsubsw vpsubusb vpmulld vpmullq vpmullw vpmulhw vpmulhrsw vpmuldq vpmuludq vpmaddwd vpmaddubsw \
    vpdpbusd vpdpbusds vpdpwssd vpdpwssds vpminsb vpminsw vpminsd vpminsq vpminub vpminuw vpminud vpminuq vpmaxsb \
    vpmaxsw vpmaxsd vpmaxsq vpmaxub vpmaxuw vpmaxud vpmaxuq vpandd vpandq vpandnd vpandnq vpord vporq vpxord vpxorq \
    vpternlogd vpternlogq vpsllw vpslld vpsllq vpsrlw vpsrld vpsrlq vpsraw vpsrad vpsraq vpslldq vpsrldq vpsllvw \
    vpsllvd vpsllvq vpsrlvw vpsrlvd vpsrlvq vpsravw vpsravd vpsravq vprold vprorvq vpblendmb vpblendmw vpblendmd \
    vpblendmq vpshufd vpshufb vpshuflw vpshufhw vpalignr valignd valignq vpunpcklbw vpunpckhbw vpunpcklwd vpunpckhwd \
    vpunpckldq vpunpckhdq vpunpcklqdq vpunpckhqdq vpacksswb vpackuswb vpackssdw vpackusdw vpermb vpermw vpermd vpermq \
    vpermi2b vpermi2w vpermi2d vpermi2q vpermt2b vpermt2w vpermt2d vpermt2q vshufi32x4 vshufi64x2 vinserti32x4 \
    vinserti64x2 vinserti32x8 vinserti64x4 vextracti32x4 vextracti64x2 vextracti32x8 vextracti64x4 vpmovsxbw vpmovsxbd \
    vpmovsxbq vpmovsxwd vpmovsxwq vpmovsxdq vpmovzxbw vpmovzxbd vpmovzxbq vpmovzxwd vpmovzxwq vpmovzxdq vpmovwb \
    vpmovswb vpmovuswb vpmovdb vpmovsdb vpmovusdb vpmovqb vpmovsqb vpmovusqb vpmovdw vpmovsdw vpmovusdw vpmovqw \
    vpmovsqw vpmovusqw vpmovqd vpmovsqd vpmovusqd vpabsb vpabsw vpabsd vpabsq vpcmpeqb vpcmpeqw vpcmpeqd vpcmpeqq \
    vpcmpgtb vpcmpgtw vpcmpgtd vpcmpgtq vpcmpb vpcmpw vpcmpd vpcmpq vpcmpub vpcmpuw vpcmpud vpcmpuq vptestmb vptestmd \
    vptestnmw vptestnmq vpmovm2b vpmovm2d vpmovb2m vpmovd2m vpsadbw vpinsrb vpinsrd vpextrw vpextrq vplzcntd vcvtdq2ps \
    vcvtps2dq vmulps vaddps vsubps vminps vmaxps vdivps vrndscaleps vcmpps vfmadd231ps";

#[repr(C, align(64))]
struct Aligned([u8; 64]);

/// `reg`, whether there is a second operand, and where the last is.
fn forms() -> impl Iterator<Item = (u8, bool, Shape)> {
    (0..8).flat_map(|reg| {
        let shapes = [Shape::Register, Shape::Plain];
        shapes.into_iter().flat_map(move |shape| [(reg, true, shape), (reg, false, shape)])
    })
}

#[test]
fn what_kernels_need_is_emulated() {
    let (mut emulated, mut memory) = (BTreeSet::new(), Aligned([0; 64]));
    for opcode in Opcode::all() {
        for length in 0..3 {
            // `reg` is part of the opcode of shifts; the immediate of `vrndscaleps` must not scale.
            for (reg, second, shape) in forms() {
                let evex = Evex { length, mask: 0, zeroing: false, broadcast: false };
                let code = opcode.evex(evex, second, shape, reg, 3, 1);
                let instruction = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
                let mut machine = Machine::new(Features::all());
                machine.general[3] = memory.0.as_ptr() as u64;
                // SAFETY: restricted to `memory`.
                let done = unsafe {
                    machine.add_code(code.as_ptr(), code.len());
                    machine.allow_write(memory.0.as_mut_ptr(), memory.0.len());
                    machine.step(code.as_ptr())
                };
                match done.map_err(|fault| fault.kind) {
                    Ok(_) => drop(emulated.insert(format!("{:?}", instruction.mnemonic()).to_lowercase())),
                    Err(FaultKind::Undecodable | FaultKind::Unsupported | FaultKind::Feature(_)) => {}
                    Err(kind) => panic!("{instruction}: {kind}"),
                }
            }
        }
    }
    let missing: Vec<&str> = EVEX.split_whitespace().filter(|name| !emulated.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The machine after `name` with masks 2 and 3, or 3 alone, as sources and mask 1 as destination; for
/// those that only set flags, after it with masks 1 and 3. Both 1 and 2 hold `a`, and 3 holds `b`.
fn masks(name: &str, immediate: u8, a: u64, b: u64) -> Machine {
    let code = Opcode::all()
        .flat_map(|opcode| [(opcode, 1, true), (opcode, 0, false)])
        .map(|(opcode, length, second)| opcode.vex(length, second, Shape::Register, 1, 3, immediate))
        .find(|code| {
            let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
            let on_masks = instruction.op0_register().is_k() && instruction.op1_register().is_k();
            format!("{:?}", instruction.mnemonic()).to_lowercase() == name && on_masks
        });
    let code = code.unwrap_or_else(|| panic!("{name} has no encoding"));
    let mut machine = Machine::new(Features::all());
    machine.masks = [u64::MAX, a, a, b, 0, 0, 0, 0];
    // SAFETY: the instruction is on registers.
    unsafe {
        machine.add_code(code.as_ptr(), code.len());
        machine.step(code.as_ptr()).unwrap();
    }
    machine
}

#[test]
fn mask_instructions_follow_the_manual() {
    const A: u64 = 0xf0f0_1234_8765_cc33;
    const B: u64 = 0xff00_4321_0ff0_a5a5;
    for (name, immediate, expected) in [
        ("kmovb", 0, 0xa5),
        ("kmovw", 0, 0xa5a5),
        ("kmovd", 0, 0x0ff0_a5a5),
        ("kmovq", 0, B),
        ("kandw", 0, 0x8421),
        ("kandq", 0, A & B),
        ("kandnw", 0, 0x2184),
        ("kord", 0, 0x8ff5_edb7),
        ("kxorb", 0, 0x96),
        ("kxnorw", 0, 0x9669),
        ("knotw", 0, 0x5a5a),
        ("knotd", 0, 0xf00f_5a5a),
        ("kaddb", 0, 0xd8),
        ("kunpckbw", 0, 0x33a5),
        ("kunpckwd", 0, 0xcc33_a5a5),
        ("kunpckdq", 0, 0x8765_cc33_0ff0_a5a5),
        ("kshiftlw", 4, 0x5a50),
        ("kshiftrw", 4, 0x0a5a),
        ("kshiftrd", 31, 0),
        ("kshiftrq", 63, 1),
        ("kshiftlb", 8, 0),
        ("kshiftlq", 200, 0),
    ] {
        assert_eq!(masks(name, immediate, A, B).masks[1], expected, "{name}");
    }
    for (name, a, b, zero, carry) in [
        ("kortestw", 0xff_0000, 0, true, false),
        ("kortestw", 0xff00, 0xff, false, true),
        ("kortestb", 0xff00, 0xff, false, true),
        ("kortestq", u64::MAX << 32, 1, false, false),
        ("ktestw", 0xf0, 0x0f, true, false),
        ("ktestw", 0xf0, 0x70, false, true),
        ("ktestd", 0xf0, 0x1f, false, false),
        ("ktestb", 0xf00, 0xf00, true, true),
    ] {
        let expected = Flags { zero, carry, ..Flags::default() };
        assert_eq!(masks(name, 0, a, b).flags, expected, "{name} {a:x} {b:x}");
    }
}
