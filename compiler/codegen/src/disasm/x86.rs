//! x86-64 instructions, decoded by iced-x86.
//!
//! # What counts as floating point
//! The name decides, and what is not known to be harmless counts. An instruction is floating-point
//! arithmetic if it is an x87 instruction, or if its name contains `cvt` or ends in the suffix of a
//! floating-point type (`ps pd ss sd ph sh bf16`), unless
//! - it begins with `p` or `vp`: packed integers (`pabsd`, `vpdpbusd`) and permutes (`vpermps`);
//! - it begins with `tdpb` and ends in `d`: integer matrix products;
//! - it is in [`BIT_MOVES`].
//!
//! Integer division is `div` and `idiv`.

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, Mnemonic};

use super::{Class, Decoded, Flow, Need};
use crate::target::Feature;

/// Instructions with a floating-point name that only move, select or combine bits, without the `v` of
/// their three-operand forms.
const BIT_MOVES: &[&str] = &[
    "andnpd",
    "andnps",
    "andpd",
    "andps",
    "blendmpd",
    "blendmps",
    "blendpd",
    "blendps",
    "blendvpd",
    "blendvps",
    "broadcastsd",
    "broadcastss",
    "compresspd",
    "compressps",
    "expandpd",
    "expandps",
    "extractps",
    "insertps",
    "maskmovpd",
    "maskmovps",
    "movapd",
    "movaps",
    "movhlps",
    "movhpd",
    "movhps",
    "movlhps",
    "movlpd",
    "movlps",
    "movmskpd",
    "movmskps",
    "movntpd",
    "movntps",
    "movsd",
    "movsh",
    "movss",
    "movupd",
    "movups",
    "orpd",
    "orps",
    "shufpd",
    "shufps",
    "unpckhpd",
    "unpckhps",
    "unpcklpd",
    "unpcklps",
    "xorpd",
    "xorps",
];

pub(super) fn decode(bytes: &[u8], address: u64) -> Option<Decoded> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    Some(Decoded {
        bytes: instruction.len() as u64,
        flow: flow(&instruction)?,
        class: class(instruction.mnemonic(), instruction.cpuid_features()),
        needs: needs(instruction.cpuid_features()),
        text: text(&instruction),
    })
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    text
}

/// None for instructions that enter the system or start a transaction: generated code has none.
fn flow(instruction: &Instruction) -> Option<Flow> {
    let target = instruction.near_branch_target();
    Some(match instruction.flow_control() {
        FlowControl::Next => Flow::Next,
        FlowControl::UnconditionalBranch => Flow::Jump(target),
        FlowControl::ConditionalBranch => Flow::Branch(target),
        FlowControl::Call => Flow::Call(target),
        FlowControl::IndirectCall => Flow::ComputedCall,
        FlowControl::IndirectBranch => Flow::ComputedJump,
        FlowControl::Return | FlowControl::Exception => Flow::Stop,
        FlowControl::Interrupt if instruction.mnemonic() == Mnemonic::Int3 => Flow::Stop,
        FlowControl::Interrupt | FlowControl::XbeginXabortXend => return None,
    })
}

pub(super) fn class(mnemonic: Mnemonic, cpuid: &[CpuidFeature]) -> Class {
    if matches!(mnemonic, Mnemonic::Div | Mnemonic::Idiv) {
        return Class::Division;
    }
    let x87 = [
        CpuidFeature::FPU,
        CpuidFeature::FPU287,
        CpuidFeature::FPU287XL_ONLY,
        CpuidFeature::FPU387,
        CpuidFeature::FPU387SL_ONLY,
    ];
    if cpuid.iter().any(|feature| x87.contains(feature)) {
        return Class::Float;
    }
    let name = format!("{mnemonic:?}").to_lowercase();
    if name.starts_with('p') || name.starts_with("vp") {
        return Class::Other;
    }
    let plain = name.strip_prefix('v').unwrap_or(&name);
    let float_name = ["ps", "pd", "ss", "sd", "ph", "sh", "bf16"].iter().any(|suffix| plain.ends_with(suffix))
        || plain.contains("cvt");
    let integer_matrix = plain.starts_with("tdpb") && plain.ends_with('d');
    if float_name && !integer_matrix && !BIT_MOVES.contains(&plain) { Class::Float } else { Class::Other }
}

fn needs(cpuid: &[CpuidFeature]) -> Vec<Need> {
    cpuid.iter().filter_map(|feature| need(*feature)).collect()
}

/// None for what every x86-64 processor has, or executes as a no-op (`endbr64`, `pause`).
fn need(cpuid: CpuidFeature) -> Option<Need> {
    let feature = match cpuid {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL186
        | CpuidFeature::INTEL286
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486
        | CpuidFeature::X64
        | CpuidFeature::CMOV
        | CpuidFeature::CX8
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::FXSR
        | CpuidFeature::MMX
        | CpuidFeature::MULTIBYTENOP
        | CpuidFeature::CET_IBT
        | CpuidFeature::PAUSE
        | CpuidFeature::SSE
        | CpuidFeature::SSE2 => return None,
        CpuidFeature::SSE3 => Feature::Sse3,
        CpuidFeature::SSSE3 => Feature::Ssse3,
        CpuidFeature::SSE4_1 => Feature::Sse41,
        CpuidFeature::SSE4_2 => Feature::Sse42,
        CpuidFeature::POPCNT => Feature::Popcnt,
        CpuidFeature::AVX => Feature::Avx,
        CpuidFeature::AVX2 => Feature::Avx2,
        CpuidFeature::FMA => Feature::Fma,
        CpuidFeature::BMI1 => Feature::Bmi1,
        CpuidFeature::BMI2 => Feature::Bmi2,
        CpuidFeature::LZCNT => Feature::Lzcnt,
        CpuidFeature::AVX_VNNI => Feature::AvxVnni,
        CpuidFeature::AVX512F => Feature::Avx512f,
        CpuidFeature::AVX512CD => Feature::Avx512cd,
        CpuidFeature::AVX512BW => Feature::Avx512bw,
        CpuidFeature::AVX512DQ => Feature::Avx512dq,
        CpuidFeature::AVX512VL => Feature::Avx512vl,
        CpuidFeature::AVX512_VNNI => Feature::Avx512vnni,
        CpuidFeature::AVX512_VBMI => Feature::Avx512vbmi,
        CpuidFeature::AVX512_VBMI2 => Feature::Avx512vbmi2,
        CpuidFeature::AVX512_BITALG => Feature::Avx512bitalg,
        CpuidFeature::GFNI => Feature::Gfni,
        other => return Some(Need::Unlisted(format!("{other:?}").to_lowercase())),
    };
    Some(Need::Feature(feature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, MemorySize};

    /// Instructions whose memory operand has a floating-point element type are floating point, but
    /// for moves; iced's operand table is a second opinion on the rule by name.
    #[test]
    fn rule_by_name_agrees_with_operand_types() {
        let float_types =
            [MemorySize::Float16, MemorySize::Float32, MemorySize::Float64, MemorySize::Float80, MemorySize::BFloat16];
        // Moves and permutes whose names have no suffix of a type.
        let moves = [
            "vbroadcastf",
            "vextractf",
            "vinsertf",
            "vgather",
            "vscatter",
            "vperm",
            "movddup",
            "vmovddup",
            "movshdup",
            "vmovshdup",
            "movsldup",
            "vmovsldup",
            "vpgather",
            "vpscatter",
            "movntss",
            "movntsd",
            "vshuff",
        ];
        let (mut floats, mut others) = (0, 0);
        for code in Code::values() {
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            let name = format!("{:?}", code.mnemonic()).to_lowercase();
            let found = class(code.mnemonic(), code.cpuid_features());
            let element = instruction.memory_size().element_type();
            let plain = name.strip_prefix('v').unwrap_or(&name);
            let exempt = BIT_MOVES.contains(&plain) || moves.iter().any(|m| name.starts_with(m));
            // Extensions that this decoder is built without, or that 64-bit processors never had.
            let abandoned = [
                CpuidFeature::KNC,
                CpuidFeature::XOP,
                CpuidFeature::D3NOW,
                CpuidFeature::D3NOWEXT,
                CpuidFeature::CYRIX_D3NOW,
            ];
            if code.cpuid_features().iter().any(|f| abandoned.contains(f)) {
                continue;
            }
            if float_types.contains(&element) {
                if !exempt {
                    floats += 1;
                    assert_eq!(found, Class::Float, "{code:?}");
                }
            } else if found == Class::Float {
                others += 1;
            }
        }
        assert!(floats > 500, "{floats}");
        assert!(others > 0);
    }

    fn class_of(bytes: &[u8]) -> Class {
        decode(bytes, 0).unwrap().class
    }

    #[test]
    fn known_encodings() {
        // addps xmm0, xmm1; cvtsi2ss xmm0, eax; fld1; vfmadd213ps; sqrtsd
        for bytes in [
            &[0x0F, 0x58, 0xC1][..],
            &[0xF3, 0x0F, 0x2A, 0xC0],
            &[0xD9, 0xE8],
            &[0xC4, 0xE2, 0x71, 0xA8, 0xC2],
            &[0xF2, 0x0F, 0x51, 0xC0],
            &[0x0F, 0x2E, 0xC1],
        ] {
            assert_eq!(class_of(bytes), Class::Float, "{bytes:x?}");
        }
        // div ecx; idiv rcx
        assert_eq!(class_of(&[0xF7, 0xF1]), Class::Division);
        assert_eq!(class_of(&[0x48, 0xF7, 0xF9]), Class::Division);
        // movaps, xorps, pmaddwd, vpdpbusd (EVEX), imul, pabsd
        for bytes in [
            &[0x0F, 0x28, 0xC1][..],
            &[0x0F, 0x57, 0xC0],
            &[0x66, 0x0F, 0xF5, 0xC1],
            &[0x62, 0xF2, 0x75, 0x48, 0x50, 0xC2],
            &[0x0F, 0xAF, 0xC1],
            &[0x66, 0x0F, 0x38, 0x1E, 0xC1],
        ] {
            assert_eq!(class_of(bytes), Class::Other, "{bytes:x?}");
        }
        assert!(decode(&[0x0F, 0x05], 0).is_none_or(|d| d.class == Class::Other));
        assert!(decode(&[0xCD, 0x80], 0).is_none());
        assert!(decode(&[0x06], 0).is_none());
    }
}
