//! The emulator against this machine: every encoding that both execute, on random and extreme
//! operands, must leave the same registers, the same memory and the same defined flags.
//!
//! Encodings are enumerated, not listed: all opcodes of all maps under all prefixes, with register and
//! memory operands. `COVERED` is what must have been among them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;

use hawqc_x86_emulator::{Fault, FaultKind, Features, Flags, Machine};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, Register};

use crate::enumerate::{Shape, legacy, vex};
use crate::operands::Random;

unsafe extern "C" {
    fn mmap(addr: *mut c_void, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> i32;
}

/// What an instruction sees and leaves, without the stack pointer.
#[derive(Clone, Debug, PartialEq)]
#[repr(C)]
struct State {
    general: [u64; 16],
    flags: u64,
    vectors: [[u8; 32]; 16],
}

const FLAGS_AT: u32 = 128;
const VECTORS_AT: u32 = 136;

/// Machine code that loads a [`State`], executes one instruction and stores the state.
struct Native {
    page: *mut u8,
}

const PAGE: usize = 4096;

impl Native {
    fn new() -> Native {
        // SAFETY: a fresh anonymous private page, readable, writable and executable.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, 7, 0x22, -1, 0) }.cast::<u8>();
        assert_ne!(page as isize, -1);
        Native { page }
    }

    fn execute(&mut self, instruction: &[u8], state: &mut State) {
        let mut code = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x57];
        let vectors = |code: &mut Vec<u8>, opcode: u8, base: u8| {
            for n in 0..16u32 {
                code.extend([0xc5, if n < 8 { 0xfe } else { 0x7e }, opcode, 0x80 | (n as u8 & 7) << 3 | base]);
                code.extend((VECTORS_AT + 32 * n).to_le_bytes());
            }
        };
        let general = |code: &mut Vec<u8>, opcode: u8, base: u8, n: u8| {
            code.extend([if n < 8 { 0x48 } else { 0x4c }, opcode, 0x40 | (n & 7) << 3 | base, 8 * n]);
        };
        vectors(&mut code, 0x6f, 7);
        code.extend([0xff, 0xb7]);
        code.extend(FLAGS_AT.to_le_bytes());
        code.push(0x9d);
        for n in (0..16).filter(|n| ![4, 7].contains(n)) {
            general(&mut code, 0x8b, 7, n);
        }
        general(&mut code, 0x8b, 7, 7);
        code.extend(instruction);
        code.extend([0x9c, 0x50, 0x48, 0x8b, 0x44, 0x24, 0x10]);
        for n in (1..16).filter(|n| *n != 4) {
            general(&mut code, 0x89, 0, n);
        }
        code.extend([0x59, 0x48, 0x89, 0x08, 0x59, 0x48, 0x89, 0x88]);
        code.extend(FLAGS_AT.to_le_bytes());
        vectors(&mut code, 0x7f, 0);
        code.extend([0xc5, 0xf8, 0x77, 0x5f, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
        assert!(code.len() < PAGE);
        // SAFETY: the page is ours; the code restores callee-saved registers, clears the upper vector
        // halves and touches `state` and what its one instruction names, which the emulator allowed.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            let run: extern "C" fn(*mut State) = std::mem::transmute(self.page);
            run(state);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the page of `new`.
        unsafe { munmap(self.page.cast(), PAGE) };
    }
}

const MEMORY: usize = 128;

#[repr(C, align(64))]
struct Scratch([u8; MEMORY]);

const STATUS: u64 = 0x8d5;

fn detected() -> Features {
    macro_rules! detect {
        ($($name:tt)*) => { vec![$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    let all = detect!["sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "bmi1" "bmi2" "lzcnt"];
    Features::named(all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)).unwrap()
}

/// The flags that the instruction leaves defined.
fn defined(instruction: &Instruction) -> u64 {
    let bits = [(1, 0x800), (2, 0x80), (4, 0x40), (8, 0x10), (16, 1), (32, 4)];
    let undefined = instruction.rflags_undefined();
    bits.iter().filter(|(iced, _)| undefined & iced == 0).map(|(_, bit)| bit).sum()
}

fn touches_stack_pointer(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    info.used_registers().iter().any(|used| used.register().full_register() == Register::RSP)
}

struct Comparison {
    native: Native,
    features: Features,
    random: Random,
    covered: BTreeSet<Mnemonic>,
    compared: usize,
    wrong: BTreeMap<Mnemonic, String>,
}

impl Comparison {
    fn new() -> Comparison {
        Comparison {
            native: Native::new(),
            features: detected(),
            random: Random(0x1234_5678_9abc_def1),
            covered: BTreeSet::new(),
            compared: 0,
            wrong: BTreeMap::new(),
        }
    }

    /// Executes the instruction at the start of `code` on both, if both can.
    fn compare(&mut self, code: &[u8], rounds: usize) {
        let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        if instruction.is_invalid()
            || instruction.flow_control() != FlowControl::Next
            || touches_stack_pointer(&instruction)
        {
            return;
        }
        let code = &code[..instruction.len()];
        for _ in 0..rounds {
            match self.once(&instruction, code) {
                Ok(()) => {}
                Err(fault) if fault.kind == FaultKind::Unsupported => return,
                // Not for this machine, or not to be tried on it.
                Err(fault) if matches!(fault.kind, FaultKind::Feature(_)) => return,
                Err(_) => {}
            }
        }
    }

    fn once(&mut self, instruction: &Instruction, code: &[u8]) -> Result<(), Fault> {
        let mut memory = Scratch(self.random.bytes());
        let mut state = State {
            general: std::array::from_fn(|_| self.random.word()),
            flags: 0x202 | self.random.word() & STATUS,
            vectors: std::array::from_fn(|_| self.random.bytes()),
        };
        // The operand is at [rbx] or [rbx + 2 rsi + disp8].
        state.general[3] = memory.0.as_ptr() as u64;
        state.general[6] = 8;
        if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
            state.general[2] &= 3;
        }
        let before = state.clone();
        let memory_before = memory.0;
        let mut machine = Machine::new(self.features.clone());
        machine.division = true;
        machine.general = state.general;
        machine.flags = Flags::from_bits(state.flags);
        for (vector, value) in machine.vectors.iter_mut().zip(&state.vectors) {
            vector.0[..32].copy_from_slice(value);
        }
        // SAFETY: the machine's memory is restricted to the scratch.
        unsafe {
            machine.add_code(code.as_ptr(), code.len());
            machine.allow_write(memory.0.as_mut_ptr(), MEMORY);
            machine.step(code.as_ptr())?;
        }
        let emulated_memory = std::mem::replace(&mut memory.0, memory_before);
        self.native.execute(code, &mut state);
        self.compared += 1;
        self.covered.insert(instruction.mnemonic());
        let mut emulated = State {
            general: machine.general,
            flags: machine.flags.bits(),
            vectors: std::array::from_fn(|n| std::array::from_fn(|byte| machine.vectors[n].0[byte])),
        };
        emulated.general[4] = state.general[4];
        state.flags &= STATUS & defined(instruction);
        emulated.flags &= defined(instruction);
        if (&state, memory.0) != (&emulated, emulated_memory) {
            let mut text = format!("{instruction} ({code:02x?})\n");
            for n in 0..16 {
                if state.general[n] != emulated.general[n] {
                    let (b, s, e) = (before.general[n], state.general[n], emulated.general[n]);
                    text += &format!("  general {n}: {b:x} -> {s:x}, emulated {e:x}\n");
                }
                if state.vectors[n] != emulated.vectors[n] {
                    let (s, e) = (state.vectors[n], emulated.vectors[n]);
                    text += &format!("  vector {n}: {s:02x?}\n  emulated {e:02x?}\n");
                }
            }
            if state.flags != emulated.flags {
                text += &format!("  flags {:x} -> {:x}, emulated {:x}\n", before.flags, state.flags, emulated.flags);
            }
            if memory.0 != emulated_memory {
                text += &format!("  memory {:02x?}\n  emulated {:02x?}\n", memory.0, emulated_memory);
            }
            self.wrong.entry(instruction.mnemonic()).or_insert(text);
        }
        Ok(())
    }

    fn finish(self, covered: &str) {
        let names: Vec<String> = self.covered.iter().map(|m| format!("{m:?}").to_lowercase()).collect();
        eprintln!("{} executions of {} mnemonics compared: {}", self.compared, names.len(), names.join(" "));
        assert!(
            self.wrong.is_empty(),
            "{} differ:\n{}",
            self.wrong.len(),
            self.wrong.values().cloned().collect::<String>()
        );
        let missing: Vec<&str> =
            covered.split_whitespace().filter(|name| !names.iter().any(|known| known == name)).collect();
        assert!(missing.is_empty(), "not compared: {missing:?}");
    }
}

fn can_compare() -> bool {
    let can = std::arch::is_x86_feature_detected!("avx2");
    if !can {
        eprintln!("SKIPPED: the comparison of the emulator with the machine needs AVX2");
    }
    can
}

/// Of the legacy encodings at least these.
const COVERED: &str = "adc add and andnps andpd bsf bsr bswap bt cdq cdqe cmovb cmovg cmovl cmovne cmp cmpps cqo cvtdq2ps cvtps2dq \
     cvttps2dq cwde dec div divps endbr64 idiv imul inc lddqu lea maxps minps mov movaps movd movdqa movdqu movhps \
     movlps movmskps movq movss movsx movsxd movups movzx mul mulps neg nop not or orps pabsd packssdw packsswb \
     packusdw packuswb paddb paddd paddq paddw palignr pand pandn pavgb pblendvb pblendw pcmpeqb pcmpeqd pcmpgtd \
     pcmpgtw pextrb pextrd pextrq pextrw phaddd phaddw pinsrb pinsrd pinsrq pinsrw pmaddubsw pmaddwd pmaxsb pmaxsd \
     pmaxsw pmaxub pmaxud pmaxuw pminsb pminsd pminsw pminub pminud pminuw pmovmskb pmovsxbd pmovsxbw pmovsxdq \
     pmovsxwd pmovzxbd pmovzxbw pmovzxdq pmovzxwd pmuldq pmulhrsw pmulhuw pmulhw pmulld pmullw pmuludq popcnt por \
     psadbw pshufb pshufd pshufhw pshuflw psignb psignd psignw pslld pslldq psllq psllw psrad psraw psrld psrldq \
     psrlq psrlw psubb psubd psubq psubw ptest punpckhbw punpckhdq punpckhqdq punpckhwd punpcklbw punpckldq \
     punpcklqdq punpcklwd pxor rol ror roundps roundss sqrtss sar sbb setb setg shl shr shufps sub subps test tzcnt unpcklps xchg \
     xor xorps";

/// Of the VEX encodings at least these.
const COVERED_VEX: &str = "andn bextr blsr bzhi mulx pdep pext rorx sarx shlx shrx vaddps vandps vblendps vbroadcasti128 vbroadcastss \
     vcmpps vcvtdq2ps vcvttps2dq vdivps vextracti128 vfmadd213ps vinserti128 vmaxps vminps vmovaps vmovd vmovdqa \
     vmovdqu vmovhps vmovlps vmovmskps vmovq vmovss vmovups vmulps vpabsb vpabsd vpabsw vpackssdw vpacksswb \
     vpackusdw vpackuswb vpaddb vpaddd vpaddq vpaddsw vpaddw vpalignr vpand vpandn vpavgb vpblendd vpblendvb \
     vpblendw vpbroadcastb vpbroadcastd vpbroadcastq vpbroadcastw vpcmpeqb vpcmpeqd vpcmpeqq vpcmpgtb vpcmpgtd \
     vpcmpgtq vperm2i128 vpermd vpermq vpextrb vpextrd vpextrq vpextrw vphaddd vphaddw vpinsrb vpinsrd vpinsrq \
     vpmaddubsw vpmaddwd vpmaskmovd vpmaxsb vpmaxsd vpmaxsw vpmaxub vpmaxud vpmaxuw vpminsb vpminsd vpminsw vpminub \
     vpminud vpminuw vpmovmskb vpmovsxbd vpmovsxbw vpmovsxdq vpmovsxwd vpmovzxbd vpmovzxbq vpmovzxbw vpmovzxdq \
     vpmovzxwd vpmuldq vpmulhrsw vpmulhw vpmulld vpmullw vpmuludq vpor vpsadbw vpshufb vpshufd vpshufhw vpshuflw \
     vpsignb vpsignd vpsignw vpslld vpslldq vpsllq vpsllvd vpsllvq vpsllw vpsrad vpsravd vpsraw vpsrld vpsrldq \
     vpsrlq vpsrlvd vpsrlvq vpsrlw vpsubb vpsubd vpsubq vpsubw vptest vpunpckhbw vpunpckhdq vpunpckhqdq vpunpckhwd \
     vpunpcklbw vpunpckldq vpunpcklqdq vpunpcklwd vpxor vroundps vshufps vsubps vtestps vzeroupper";

#[test]
fn legacy_encodings_equal_the_machine() {
    if !can_compare() {
        return;
    }
    let mut comparison = Comparison::new();
    let mut random = Random(77);
    for shape in Shape::ALL {
        legacy(shape, &mut random, |code| comparison.compare(code, 8));
    }
    // Of a register with itself: pxor, psubd, pcmpeqd, xorps, movaps, unpcklps; vpxor.
    let before = comparison.compared;
    let same: [&[u8]; 7] = [
        &[0x66, 0x0f, 0xef, 0xe4],
        &[0x66, 0x0f, 0xfa, 0xe4],
        &[0x66, 0x0f, 0x76, 0xe4],
        &[0x0f, 0x57, 0xe4],
        &[0x0f, 0x28, 0xe4],
        &[0x0f, 0x14, 0xe4],
        &[0xc5, 0xd9, 0xef, 0xe4],
    ];
    same.iter().for_each(|code| comparison.compare(code, 10));
    assert_eq!(comparison.compared, before + 70);
    comparison.finish(COVERED);
}

#[test]
fn vex_encodings_equal_the_machine() {
    if !can_compare() {
        return;
    }
    let mut comparison = Comparison::new();
    let mut random = Random(78);
    for _ in 0..4 {
        for shape in Shape::ALL {
            vex(shape, &mut random, |code| comparison.compare(code, 6));
        }
    }
    comparison.finish(COVERED_VEX);
}
