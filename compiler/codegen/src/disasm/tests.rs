use cranelift_codegen::ir::{InstBuilder, JumpTableData, MemFlagsData, types};

use super::*;
use crate::link::{LinkWith, link, sample};
use crate::object::{object_bytes, object_module};
use crate::target::ROWS;

fn targets() -> Vec<Target> {
    ROWS.iter().map(|row| row.target().unwrap()).collect()
}

fn link_own(object: &[u8]) -> Vec<u8> {
    link(object, "libsample.so", &LinkWith::Own).unwrap()
}

/// The sample model and one more function of one pointer.
fn with_function(
    target: &Target,
    name: &str,
    body: impl FnOnce(&mut cranelift_frontend::FunctionBuilder, cranelift_codegen::ir::Value),
) -> Vec<u8> {
    let mut module = object_module(target, "m").unwrap();
    sample::define(&mut module, target);
    sample::define_body(&mut module, name, |_, b, p| body(b, p));
    link_own(&object_bytes(module).unwrap())
}

#[test]
fn sample_is_clean_everywhere() {
    for target in targets() {
        let bytes = link_own(&sample::object(&target));
        let report = audit_integer_only(&bytes).unwrap();
        assert!(report.is_clean(), "{target}: {:#?}", report.findings);
        assert_eq!((report.functions, report.border_functions), (4, 1));
        assert!(report.instructions > 20, "{}", report.instructions);
        let report = audit_features(&bytes, &target).unwrap();
        assert!(report.is_clean(), "{target}: {:#?}", report.findings);
    }
}

#[test]
fn floats_and_divisions_are_found_outside_the_border_only() {
    for target in targets() {
        for (prefix, found) in [("step.9.", true), ("other", true), ("border.", false)] {
            let bytes = with_function(&target, &format!("{prefix}float"), |b, p| {
                let flags = MemFlagsData::trusted();
                let x = b.ins().load(types::F32X4, flags, p, 0);
                let y = b.ins().fadd(x, x);
                b.ins().store(flags, y, p, 0);
            });
            let report = audit_integer_only(&bytes).unwrap();
            let floats = report.findings.iter().filter(|f| f.problem == Problem::Float);
            assert_eq!(floats.count(), usize::from(found), "{target} {prefix}");

            let bytes = with_function(&target, &format!("{prefix}divide"), |b, p| {
                let flags = MemFlagsData::trusted();
                let x = b.ins().load(types::I32, flags, p, 0);
                let y = b.ins().load(types::I32, flags, p, 4);
                let z = b.ins().udiv(x, y);
                b.ins().store(flags, z, p, 0);
            });
            let report = audit_integer_only(&bytes).unwrap();
            assert_eq!(report.findings.len(), usize::from(found), "{target} {prefix}");
            for finding in report.findings {
                assert_eq!(finding.problem, Problem::Division);
                assert_eq!(finding.function, format!("{prefix}divide"));
            }
        }
    }
}

#[test]
fn computed_jumps_are_found() {
    for target in targets() {
        let bytes = with_function(&target, "step.9.table", |b, p| {
            let index = b.ins().load(types::I32, MemFlagsData::trusted(), p, 0);
            let blocks: Vec<_> = (0..5).map(|_| b.create_block()).collect();
            let end = b.create_block();
            let calls: Vec<_> = blocks.iter().map(|block| b.func.dfg.block_call(*block, &[])).collect();
            let default = b.func.dfg.block_call(end, &[]);
            let table = b.create_jump_table(JumpTableData::new(default, &calls));
            b.ins().br_table(index, table);
            for (i, block) in blocks.iter().enumerate() {
                b.switch_to_block(*block);
                let value = b.ins().iconst(types::I32, 100 + i as i64 * i as i64);
                b.ins().store(MemFlagsData::trusted(), value, p, 4);
                b.ins().jump(end, &[]);
            }
            b.switch_to_block(end);
        });
        let report = audit_integer_only(&bytes).unwrap();
        let jumps = report.findings.iter().filter(|finding| finding.problem == Problem::ComputedJump);
        assert_eq!(jumps.count(), 1, "{target}: {:#?}", report.findings);
    }
}

#[test]
fn features_beyond_the_target_are_found() {
    for (built, judged, feature) in [
        ("x86-64-v3", "x86-64-v2", "avx"),
        ("x86-avxvnni", "x86-64-v3", "avxvnni"),
        ("x86-avx512", "x86-avx512-novnni", "avx512vnni"),
        ("aarch64-dotprod", "aarch64", "dotprod"),
    ] {
        let built = Target::parse(built).unwrap();
        let judged = Target::parse(judged).unwrap();
        let report = audit_features(&link_own(&sample::object(&built)), &judged).unwrap();
        let wanted = Problem::Feature(feature.to_owned());
        let found = report.findings.iter().any(|finding| finding.problem == wanted);
        assert!(found, "{built} on {judged}: {:#?}", report.findings);
    }
    let arm = link_own(&sample::object(&Target::parse("aarch64").unwrap()));
    let other = Target::parse("x86-64-v3").unwrap();
    assert!(matches!(audit_features(&arm, &other), Err(DisasmError::OtherArch { .. })));
}

/// The offset in the file of a function's code, from its symbol (addresses equal offsets).
fn code_of(bytes: &[u8], name: &str) -> Range<usize> {
    let file = ElfFile64::<Endianness>::parse(bytes).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    let start = symbol.address() as usize;
    start..start + symbol.size() as usize
}

#[test]
fn hidden_code_is_found() {
    let target = Target::parse("x86-64-v2").unwrap();
    let bytes = link_own(&sample::object(&target));
    let step = code_of(&bytes, "step.0.dot");

    // A jump into the middle of another function, and one out of the code.
    for wild in [code_of(&bytes, "border.input").start as i32 + 1, 0] {
        let mut changed = bytes.clone();
        let relative = wild - (step.start as i32 + 5);
        changed[step.start] = 0xE9;
        changed[step.start + 1..step.start + 5].copy_from_slice(&relative.to_le_bytes());
        let report = audit_integer_only(&changed).unwrap();
        let expected = Problem::WildTarget(wild as u64);
        assert_eq!(report.findings[0].problem, expected);
    }
    // Overlapping instructions: jump into the immediate of `mov eax, imm32`.
    let mut changed = bytes.clone();
    let hidden = [0xB8, 0x0F, 0x58, 0xC1, 0xC3, 0x74, 0xFA, 0xC3];
    changed[step.start..step.start + hidden.len()].copy_from_slice(&hidden);
    let report = audit_integer_only(&changed).unwrap();
    let problems: Vec<_> = report.findings.iter().map(|f| &f.problem).collect();
    assert!(problems.contains(&&Problem::Float), "{problems:?}");
    assert!(problems.iter().any(|p| matches!(p, Problem::WildTarget(_))));

    // Bytes between functions that are not filler.
    let names = ["step.0.dot", "border.input", "hawqc_run_integer"];
    let ends = names.map(|name| code_of(&bytes, name).end);
    let gap = ends.into_iter().find(|end| bytes[*end] == 0xCC).unwrap();
    let mut changed = bytes.clone();
    changed[gap] = 0xF4;
    assert!(matches!(audit_integer_only(&changed), Err(DisasmError::Uncovered { .. })));
}

#[test]
fn damaged_code_is_reported_without_panic() {
    for target in targets() {
        let bytes = link_own(&sample::object(&target));
        for at in (0..bytes.len()).step_by(41) {
            let mut changed = bytes.clone();
            changed[at] = changed[at].wrapping_add(0x55);
            let _ = audit_integer_only(&changed);
            let _ = audit_features(&bytes[..at], &target);
        }
    }
    let object = sample::object(&Target::host().unwrap());
    assert!(audit_integer_only(&object).is_err());
    assert!(audit_integer_only(b"no").is_err());
}

#[test]
fn random_code_terminates() {
    let target = Target::parse("x86-avx512").unwrap();
    let bytes = link_own(&sample::object(&target));
    let step = code_of(&bytes, "step.0.dot");
    proptest::proptest!(|(code in proptest::collection::vec(proptest::num::u8::ANY, step.len()))| {
        let mut changed = bytes.clone();
        changed[step.clone()].copy_from_slice(&code);
        let _ = audit_integer_only(&changed);
    });
}
