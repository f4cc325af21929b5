//! aarch64 code is compiled, and its instructions looked at, on any machine.

use hawqc_ir::{Elem, Rounding};

use super::conv::Build;
use crate::compile::{ModelInfo, compile};
use crate::program::Options;
use crate::target::Target;

/// The instructions of a convolution's kernel.
fn kernel_assembly(target: &str, changes: &str, src: Elem, wei: Elem) -> String {
    let target = Target::parse(target).unwrap().with_changes(changes).unwrap();
    let mut build = Build::new(src, wei, [6, 6], 16, 32, [3, 3]);
    build.op.pad = [1, 1, 1, 1];
    let (graph, _) = build.requantised(Elem::U8, Rounding::HalfUp).graph();
    let artifact = compile(&graph, &ModelInfo::default(), &Options { listing: true, ..Options::new(target) }).unwrap();
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
            let assembly = kernel_assembly(target, changes, src, wei);
            assert!(count(&assembly, wanted) >= 8, "{target}{changes} {src} {wei}: {assembly}");
            assert_eq!(count(&assembly, "addp"), 0, "{target}{changes} {src} {wei}");
        }
    }
}

#[test]
fn plain_neon_has_no_dot_products() {
    let assembly = kernel_assembly("aarch64", "", Elem::U8, Elem::I8);
    assert_eq!(count(&assembly, "sdot") + count(&assembly, "usdot"), 0);
}
