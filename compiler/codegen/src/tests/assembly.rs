//! The instructions of convolutions, for targets that this machine need not be.

use hawqc_ir::{Elem, Rounding};
use hawqc_schedules::Schedule;

use super::conv::Build;
use crate::compile::{ModelInfo, compile};
use crate::program::{Options, machine};
use crate::target::Target;

/// The instructions of a convolution's portable kernel.
fn kernel_assembly(target: &str, changes: &str, src: Elem, wei: Elem, kernel: [usize; 2]) -> String {
    let target = Target::parse(target).unwrap().with_changes(changes).unwrap();
    let build = Build::new(src, wei, [6, 6], 16, 32, kernel);
    let case = build.requantised(Elem::U8, Rounding::HalfUp);
    let (graph, _) = case.graph();
    let portable = Schedule::portable_for(&case.spec(), machine(&target));
    let mut options = Options { listing: true, ..Options::new(target) };
    options.schedules.insert(case.spec(), portable);
    let artifact = compile(&graph, &ModelInfo::default(), &options).unwrap();
    let listing = artifact.listings.iter().find(|l| l.symbol.starts_with("kernel.")).unwrap();
    listing.assembly.clone()
}

fn count(assembly: &str, mnemonic: &str) -> usize {
    assembly.lines().filter(|line| line.split_whitespace().next() == Some(mnemonic)).count()
}

#[test]
fn dot_products_are_single_instructions() {
    for wei in [Elem::I8, Elem::I4] {
        for (target, changes, src, wanted) in [
            ("aarch64-dotprod", "", Elem::U4, "sdot"),
            ("aarch64-dotprod", "", Elem::I8, "sdot"),
            // Made signed by subtracting 128.
            ("aarch64-dotprod", "", Elem::U8, "sdot"),
            ("aarch64", "+i8mm", Elem::U8, "usdot"),
        ] {
            let assembly = kernel_assembly(target, changes, src, wei, [3, 3]);
            assert!(count(&assembly, wanted) >= 8, "{target}{changes} {src} {wei}: {assembly}");
            assert_eq!(count(&assembly, "addp"), 0, "{target}{changes} {src} {wei}");
        }
    }
}

#[test]
fn plain_neon_has_no_dot_products() {
    let assembly = kernel_assembly("aarch64", "", Elem::U8, Elem::I8, [3, 3]);
    assert_eq!(count(&assembly, "sdot") + count(&assembly, "usdot"), 0);
}

/// The innermost loop holds its sums in registers and does nothing but load, unpack and multiply.
#[test]
fn inner_loops_do_not_spill() {
    for target in ["x86-avx512", "x86-avxvnni"] {
        for (src, wei) in [(Elem::U8, Elem::I8), (Elem::I8, Elem::I8), (Elem::U4, Elem::I4)] {
            for kernel in [[1, 1], [3, 3]] {
                let assembly = kernel_assembly(target, "", src, wei, kernel);
                let blocks: Vec<&str> = assembly.split("block").filter(|b| b.contains("vpdpbusd")).collect();
                assert!(!blocks.is_empty(), "{target} {src} {wei} {kernel:?}");
                for block in blocks {
                    assert!(count(block, "vpdpbusd") >= 8, "{target} {src} {wei} {kernel:?}: {block}");
                    assert!(!block.contains("(%rsp)"), "{target} {src} {wei} {kernel:?}: {block}");
                }
            }
        }
    }
}
