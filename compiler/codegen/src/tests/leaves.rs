//! The assembled functions of every wide family, for every kind of vectors, judged from their bytes: CPU features,
//! integers only, the calling convention, and what a second decoder reads.

mod discipline;
mod objdump;
mod samples;

use std::collections::{BTreeMap, BTreeSet};

use hawqc_schedules::{Multiply, Schedule};
use iced_x86::code_asm::{CodeAssembler, ptr, r12, rax, rbx, rdi, rsp, ymm0, ymmword_ptr};
use iced_x86::{Code, Decoder, DecoderOptions, IcedError, Instruction, Register};

use crate::asm::Isa;
use crate::compile::{ModelInfo, compile};
use crate::disasm::{Problem, audit_features, audit_function, audit_integer_only};
use crate::link::{LinkWith, link};
use crate::target::Target;
use objdump::{by_iced, by_objdump, disagreements, listing};
use samples::{Found, Vectors, direct_leaves, image_leaves, kinds, leaves, models};

fn kind(name: &str) -> Vectors {
    kinds().into_iter().find(|kind| kind.name == name).unwrap()
}

/// What is wrong with assembled functions, for people; nothing if nothing is.
fn problems(found: &[&Found], target: &Target) -> Vec<String> {
    let mut all = Vec::new();
    for Found { name, code, .. } in found {
        let report = audit_function(name, code, target);
        all.extend(report.findings.iter().map(ToString::to_string));
        // Every byte is an instruction that control flow reaches.
        let lines = by_iced(code);
        if lines.iter().map(|line| line.bytes).sum::<usize>() != code.len() || lines.len() != report.instructions {
            all.push(format!("{name}: {} instructions in a row, {} reached", lines.len(), report.instructions));
        }
        all.extend(discipline::check(code).err().map(|problem| format!("{name}: {problem}")));
    }
    all
}

/// Each assembled function once.
fn distinct(found: &[Found]) -> Vec<&Found> {
    let by_code: BTreeMap<&[u8], &Found> = found.iter().map(|found| (found.code.as_slice(), found)).collect();
    by_code.into_values().collect()
}

/// Where iced-x86 and objdump read functions differently; none if there is no objdump.
fn misread(found: &[&Found]) -> Option<Vec<String>> {
    let code: Vec<u8> = found.iter().flat_map(|found| found.code.iter().copied()).collect();
    let ends: Vec<usize> = found
        .iter()
        .scan(0, |end, found| {
            *end += found.code.len();
            Some(*end)
        })
        .collect();
    let name = |at: usize| found.get(ends.partition_point(|&end| end <= at)).map_or("behind the code", |f| &f.name);
    let different = disagreements(&by_iced(&code), &by_objdump(&code)?);
    Some(different.into_iter().map(|(at, text)| format!("{}: {text}", name(at))).collect())
}

/// The families, and the algorithms' variants, that a kind of vectors has.
fn expected_forms(vectors: &Vectors) -> BTreeSet<String> {
    let multiplies = Multiply::ALL.into_iter().filter(|&multiply| multiply != Multiply::Dot || vectors.wide.dot);
    let mut all: BTreeSet<String> =
        ["depthwise", "wide_pool", "wide_pointwise", "wide_image"].map(str::to_owned).into_iter().collect();
    for multiply in multiplies {
        all.insert(format!("wide {}", multiply.name()));
        let outputs: &[[usize; 2]] = match multiply {
            Multiply::I16 => &[[4, 4], [4, 2], [3, 2], [2, 2]],
            _ => &[[3, 2], [2, 2]],
        };
        // Of 3x3 taps; others have further tiles.
        all.extend(outputs.iter().map(|[h, w]| format!("winograd {} {h}x{w}", multiply.name())));
    }
    // Strassen's channels are a multiple of the widest vectors. Two levels need 32 registers.
    let levels = if vectors.widest && vectors.wide.dot { vectors.wide.registers / 16 } else { 0 };
    all.extend((1..=levels).map(|levels| format!("strassen {levels}")));
    all
}

fn form(found: &Found) -> String {
    let family = found.family;
    match found.schedule {
        Schedule::Wide(wide) => format!("{family} {}", wide.multiply.name()),
        Schedule::Winograd(winograd) => {
            let [h, w] = winograd.outputs;
            format!("{family} {} {h}x{w}", winograd.multiply.name())
        }
        Schedule::Strassen(strassen) => format!("{family} {}", strassen.levels),
        _ => family.to_owned(),
    }
}

/// Audits the functions of all samples; the encodings among them.
fn audit(vectors: &Vectors) -> BTreeSet<Code> {
    let name = vectors.name;
    let found = leaves(vectors);
    let forms: BTreeSet<String> = found.iter().map(form).collect();
    let missing: Vec<String> = expected_forms(vectors).difference(&forms).cloned().collect();
    assert!(missing.is_empty(), "{name}: {missing:?} among {forms:?}");
    let found = distinct(&found);
    let bytes = Isa::of(vectors.wide).bytes();
    for Found { name, code, .. } in &found {
        let widest = widest_vector(code);
        assert!([0, bytes].contains(&widest), "{name}: vectors of {widest} bytes");
    }
    let mut wrong = problems(&found, &vectors.target);
    wrong.extend(misread(&found).unwrap_or_default());
    assert!(wrong.is_empty(), "{name}: {} problems:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    found.iter().flat_map(|found| decoded(&found.code)).map(|instruction| instruction.code()).collect()
}

fn decoded(code: &[u8]) -> Vec<Instruction> {
    Decoder::new(64, code, DecoderOptions::NONE).into_iter().collect()
}

/// Bytes of the widest vector register in an instruction; 0 without one.
fn widest_vector(code: &[u8]) -> usize {
    let registers = |i: Instruction| (0..i.op_count()).map(move |operand| i.op_register(operand));
    let vectors = decoded(code).into_iter().flat_map(registers).filter(|register| register.is_vector_register());
    vectors.map(Register::size).max().unwrap_or(0)
}

/// The encodings that the assembler's source names: rows of its tables, and codes.
fn named_encodings() -> BTreeSet<String> {
    let sources = [include_str!("../asm.rs"), include_str!("../asm/ops.rs"), include_str!("../asm/encode.rs")];
    let code = sources.iter().flat_map(|source| source.lines()).filter(|line| !line.trim_start().starts_with("//"));
    let words = code.flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))));
    let known: BTreeSet<String> = Code::values().map(|code| format!("{code:?}")).collect();
    let named = |word: &str| {
        let row = ["VEX_", "EVEX_"].iter().any(|prefix| word.starts_with(prefix)).then_some(word);
        row.or(word.strip_prefix("Code::")).filter(|word| known.contains(*word)).map(str::to_owned)
    };
    words.filter_map(named).collect()
}

/// Bytes are limited from above after they were packed; no sample has signed ones in vectors of 256 bits.
const IN_NO_KERNEL: [&str; 1] = ["VEX_Vpminsb_ymm_ymm_ymmm256"];

#[test]
fn assembled_functions_are_what_their_targets_run() {
    let kinds = kinds();
    let seen: BTreeSet<Code> = std::thread::scope(|scope| {
        let audits: Vec<_> = kinds.iter().map(|vectors| scope.spawn(|| audit(vectors))).collect();
        audits.into_iter().flat_map(|audit| audit.join().unwrap()).collect()
    });
    // No instruction that can be assembled has escaped.
    let seen: BTreeSet<String> = seen.iter().map(|code| format!("{code:?}")).collect();
    let named = named_encodings();
    assert!(named.len() > 100, "{}", named.len());
    let unseen: Vec<&String> = named.difference(&seen).collect();
    assert_eq!(unseen, IN_NO_KERNEL, "in no sample");
}

/// The loop nests around the assembled functions too.
#[test]
fn models_of_wide_kernels_are_what_their_targets_run() {
    for vectors in kinds() {
        for (label, (graph, options)) in models(&vectors) {
            let artifact = compile(&graph, &ModelInfo::default(), &options).unwrap();
            let shared = link(&artifact.object, "model.so", &LinkWith::Own).unwrap();
            for report in [audit_integer_only(&shared).unwrap(), audit_features(&shared, &vectors.target).unwrap()] {
                assert!(report.is_clean(), "{label} for {}: {:#?}", vectors.name, report.findings);
                assert_eq!(report.border_functions > 0, label == "image", "{label}");
            }
        }
    }
}

#[test]
fn functions_for_other_targets_are_found() {
    for (built, form_of, judged, feature, instruction) in [
        ("AVX-512 VNNI", "wide dot", "x86-64-v3", "avx512f", "vpbroadcastd zmm"),
        ("AVX-512 VNNI", "wide dot", "x86-avx512-novnni", "avx512vnni", "vpdpbusd zmm"),
        ("AVX-512", "wide i16", "x86-64-v3", "avx512bw", "vpmaddwd zmm"),
        ("AVX-VNNI", "wide dot", "x86-64-v3", "avxvnni", "vpdpbusd ymm"),
        ("AVX-512 VNNI VL of 256 bits", "wide dot", "x86-avxvnni", "avx512vl", "vpdpbusd ymm"),
        ("AVX-VNNI beside AVX-512 VNNI", "wide dot", "x86-avx512", "avxvnni", "vpdpbusd ymm"),
        ("AVX2", "wide i16", "x86-64-v2", "avx2", "vpmaddwd ymm"),
    ] {
        let leaves = direct_leaves(&kind(built));
        let found = leaves.iter().find(|found| form(found) == form_of).unwrap();
        let target = Target::parse(judged).unwrap();
        let wrong = problems(&[found], &target);
        let names_all = |text: &&String| {
            text.starts_with(&found.name) && text.contains(instruction) && text.ends_with(&format!("needs {feature}"))
        };
        assert!(wrong.iter().any(|text| names_all(&text)), "{built} on {target}: {wrong:#?}");
        assert!(found.name.starts_with("kernel.0.wide (convolution, `wide mul="), "{}", found.name);
    }
}

#[test]
fn floats_are_for_the_border() {
    for vectors in kinds() {
        for found in image_leaves(&vectors) {
            assert!(problems(&[&found], &vectors.target).is_empty());
            let name = found.name.strip_prefix("border.").unwrap();
            let report = audit_function(name, &found.code, &vectors.target);
            let floats = report.findings.iter().filter(|finding| finding.problem == Problem::Float);
            // Quotient, rounding, two limits, comparison and conversion of a channel at least.
            assert!(floats.count() >= 6, "{name}: {:#?}", report.findings);
        }
    }
}

#[test]
fn disagreements_of_decoders_are_found() {
    let code = [0x62, 0xf2, 0x75, 0x48, 0x50, 0x47, 0x01, 0xc5, 0xf8, 0x77, 0x06];
    let good = "
0000000000000000 <.data>:
   0:\t62 f2 75 48 50 47 01 \tvpdpbusd zmm0,zmm1,ZMMWORD PTR [rdi+0x40]
   7:\tc5 f8 77             \tvzeroupper
";
    let bad = "   a:\t06                   \t(bad)\n";
    let places = |text: &str, bytes: usize| -> Vec<usize> {
        disagreements(&by_iced(&code[..bytes]), &listing(text)).into_iter().map(|(at, _)| at).collect()
    };
    assert!(places(good, 10).is_empty());
    // What neither can read is no agreement.
    assert_eq!(places(&format!("{good}{bad}"), 11), [10]);
    for (from, to, found) in [
        ("vpdpbusd", "vpdpbusds", &[0][..]),
        ("zmm1", "zmm17", &[0]),
        ("+0x40", "+0x1", &[0]),
        ("47 01 ", "47 ", &[0]),
        ("   7:\tc5 f8 77             \tvzeroupper\n", "", &[7]),
        ("   7:\tc5 f8 77 ", "   8:\tc5 f8 ", &[7, 8]),
    ] {
        assert!(good.contains(from));
        assert_eq!(places(&good.replace(from, to), 10), found, "{from} {to}");
    }
}

/// A function of the given instructions.
fn function(emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    emit(&mut asm).unwrap();
    asm.assemble(0).unwrap()
}

/// A function that saves `rbx`, has a frame of 64 bytes, and does `body`.
fn framed(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    function(|a| {
        a.push(rbx)?;
        a.sub(rsp, 64)?;
        body(a)?;
        a.add(rsp, 64)?;
        a.pop(rbx)?;
        a.vzeroupper()?;
        a.ret()
    })
}

#[test]
fn breaches_of_the_calling_convention_are_found() {
    let good = framed(|a| {
        let mut head = a.create_label();
        a.mov(rbx, ptr(rdi))?;
        a.set_label(&mut head)?;
        a.vmovdqu(ymmword_ptr(rsp + 32), ymm0)?;
        a.sub(rbx, 1)?;
        a.jne(head)
    });
    assert_eq!(discipline::check(&good), Ok(()));
    for (code, found) in [
        (framed(|a| a.mov(r12, rdi)), "changes R12, which is not saved"),
        (framed(|a| a.vmovdqu(ymmword_ptr(rsp + 40), ymm0)), "outside the frame"),
        (framed(|a| a.vmovdqu(ymmword_ptr(rsp - 32), ymm0)), "outside the frame"),
        (framed(|a| a.vmovdqu(ymmword_ptr(rsp + rax + 40), ymm0)), "outside the frame"),
        (framed(|a| a.sub(rsp, 8)), "moves the stack pointer"),
        (framed(|a| a.push(rdi)), "moves the stack pointer"),
        (framed(|a| a.call(rdi)), "is neither a jump nor goes on"),
        (framed(|a| a.ret()), "is neither a jump nor goes on"),
        (framed(|a| a.jne(0)), "leaves the body"),
        (function(|a| a.push(rax)), "pushes RAX"),
        (function(|a| a.ret()), "lacks its last vzeroupper"),
        (function(|a| a.vzeroupper()), "lacks its last ret"),
        (
            function(|a| {
                a.push(rbx)?;
                a.push(r12)?;
                a.pop(rbx)?;
                a.pop(r12)?;
                a.vzeroupper()?;
                a.ret()
            }),
            "does not pop RBX in its turn",
        ),
        (
            function(|a| {
                a.sub(rsp, 64)?;
                a.add(rsp, 32)?;
                a.vzeroupper()?;
                a.ret()
            }),
            "does not free 64 bytes of frame",
        ),
    ] {
        let problem = discipline::check(&code).unwrap_err();
        assert!(problem.contains(found), "{problem}, not {found}");
    }
}
