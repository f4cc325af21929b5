//! Fusion of hand-made networks: the exact kernels, and the same bits.

mod networks;

use std::collections::BTreeMap;

use hawqc_ir::*;
use hawqc_rewrite::{RewriteError, check_fused, fuse};
use networks::{BASIC_BLOCK, expect, kernels, random_inputs};

fn read(text: &str) -> Graph {
    let graph = text::parse(text, &BTreeMap::new()).unwrap();
    verify::check_integer(&graph).unwrap();
    graph
}

fn fuse_and_compare(graph: &Graph) -> Graph {
    let fused = fuse(graph).unwrap();
    check_fused(&fused).unwrap();
    for seed in 0..8 {
        let inputs = random_inputs(graph, seed);
        assert_eq!(interp::run(graph, &inputs).unwrap(), interp::run(&fused, &inputs).unwrap());
    }
    fused
}

#[test]
fn basic_block() {
    let fused = fuse_and_compare(&read(BASIC_BLOCK));
    expect("basic_block.hwq", &kernels(&fused));
}

/// Two convolutions joined by an addition: the later anchors, the other is stored where it is narrowest.
#[test]
fn two_branches() {
    let fused = fuse_and_compare(&read(
        r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = const seed(1,-8,7) : i4[3,1,1,2]
%2 = const seed(2,-8,7) : i4[3,3,3,2]
%3 = const splat(1500000000) : i32[3]
%4 = const splat(33) : u8[3]
%5 = const [1073741824] : i32[1]
%6 = const [30] : u8[1]
%7 = conv %0, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-4080,4080>[1,4,4,3] @"shortcut"
%8 = requant %7, %3, %4 src_zero=0 dst_zero=0 lo=-200 hi=200 round=half_up elem=i16 : i16<-200,200>[1,4,4,3] @"shortcut.r"
%9 = requant %8, %5, %6 src_zero=0 dst_zero=0 lo=-1000 hi=1000 round=half_up elem=i32 : i32<-1000,1000>[1,4,4,3] @"shortcut.w"
%10 = conv %0, %2 stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=0 : i32<-36720,36720>[1,4,4,3] @"conv"
%11 = requant %10, %3, %4 src_zero=0 dst_zero=0 lo=-1000 hi=1000 round=half_up elem=i32 : i32<-1000,1000>[1,4,4,3] @"conv.r"
%12 = add %9, %11 : i32<-2000,2000>[1,4,4,3] @"add"
%13 = clamp %12 lo=0 hi=255 elem=u8 : u8[1,4,4,3] @"relu"
output %13 "y"
"#,
    ));
    let text = kernels(&fused);
    let names: Vec<&str> = text.lines().filter_map(|l| l.split_once(" @").map(|(_, name)| name)).collect();
    assert_eq!(names, ["\"x\"", "\"shortcut\"", "\"conv\""]);
    let shortcut = fused.values().find(|&id| fused.name(id) == "shortcut").unwrap();
    assert_eq!(fused.ty(shortcut).elem, Elem::I16);
}

/// A stream that a convolution reads in 8 bits and an addition in 16: the kernel that makes it stores both. The same values in 4
/// bits are a kernel of their own, as is what an addition has a part in.
#[test]
fn second_results() {
    let fused = fuse_and_compare(&read(
        r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = input : i16<-900,900>[1,4,4,3] @"stream"
%2 = const seed(2,-8,7) : i4[3,3,3,2]
%3 = const splat(1500000000) : i32[3]
%4 = const splat(33) : u8[3]
%5 = const [1073741824] : i32[1]
%6 = const [38] : u8[1]
%7 = conv %0, %2 stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=0 : i32<-36720,36720>[1,4,4,3] @"conv"
%8 = requant %7, %3, %4 src_zero=0 dst_zero=0 lo=-1000 hi=1000 round=half_up elem=i16 : i16<-1000,1000>[1,4,4,3] @"conv.r"
%9 = add %1, %8 : i32<-1900,1900>[1,4,4,3] @"sum"
%10 = requant %9, %5, %6 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,4,3] @"sum.r"
%11 = requant %8, %5, %6 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,4,3] @"bytes"
%12 = requant %8, %5, %6 src_zero=0 dst_zero=0 lo=0 hi=15 round=half_up elem=u4 : u4[1,4,4,3] @"nibbles"
output %8 "wide"
output %10 "joined"
output %11 "bytes"
output %12 "nibbles"
"#,
    ));
    let ops: Vec<(&str, &str)> = fused
        .values()
        .filter(|&id| matches!(fused.op(id), Op::Kernel(_) | Op::Second(_)))
        .map(|id| (fused.op(id).name(), fused.name(id)))
        .collect();
    assert_eq!(ops, [("kernel", "conv"), ("kernel", "sum"), ("second", "bytes"), ("kernel", "nibbles")]);
}

#[test]
fn refuses_what_is_not_integer() {
    let text = r#"
%0 = input : f32[1,4,4,2] @"x"
%1 = clamp_real %0 lo=0.0 hi=inf : f32[1,4,4,2] @"relu1"
output %1 "y"
"#;
    let graph = text::parse(text, &BTreeMap::new()).unwrap();
    let Err(RewriteError::Unsupported { node, .. }) = fuse(&graph) else {
        panic!("must be refused");
    };
    assert_eq!(node, "relu1");
}

#[test]
fn fused_graphs_are_checked() {
    let graph = read(BASIC_BLOCK);
    assert!(check_fused(&graph).unwrap_err().to_string().contains("left outside"));
    assert!(fuse(&fuse(&graph).unwrap()).unwrap_err().to_string().contains("kernel already"));
}
