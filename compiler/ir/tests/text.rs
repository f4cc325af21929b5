//! The text form reads back, and refuses what is wrong.

use std::collections::BTreeMap;

use hawqc_ir::*;

fn store(graph: &Graph) -> BTreeMap<ConstId, std::sync::Arc<Tensor>> {
    graph.constants().map(|(id, t)| (id, t.clone())).collect()
}

const NETWORK: &str = r#"
// A small integer network.
%0 = input : f32[1,4,4,1] @"input"
%1 = const [0.5] : f32[1]
%2 = const [128] : u8[1]
%3 = quantize %0, %1, %2 lo=0 hi=255 axis=0 elem=u8 : u8[1,4,4,1] @"q \"x\" \n"
%4 = const seed(7,-8,7) : i4[3,3,3,1]
%5 = const [5,-6,7] : i32[3]
%6 = conv %3, %4, %5 stride=[2,1] pad=[1,1,1,1] dilation=[1,1] groups=1 pad_value=128 : i32<-18366,18367>[1,2,4,3] @"conv"
%7 = const splat(1073741824) : i32[3]
%8 = const [40,41,62] : u8[3]
%9 = kernel %6, %7, %8 {
  $0 = requant #0, #1, #2 src_zero=0 dst_zero=3 lo=0 hi=15 round=half_up elem=u4 : u4[1,2,4,3]
  $1 = max_pool $0 kernel=[2,2] stride=[1,1] pad=[0,0,1,1] dilation=[1,1] : u4[1,2,4,3]
} : u4[1,2,4,3] @"requant"
output %9 "out"
"#;

#[test]
fn print_reads_back() {
    let graph = text::parse(NETWORK, &BTreeMap::new()).unwrap();
    verify::check(&graph).unwrap();
    let printed = text::print(&graph);
    let again = text::parse(&printed, &store(&graph)).unwrap();
    assert_eq!(graph, again);
    assert_eq!(printed, text::print(&again));
}

#[test]
fn large_constants_need_their_store() {
    let graph = text::parse(NETWORK, &BTreeMap::new()).unwrap();
    let error = text::parse(&text::print(&graph), &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("not in the store"), "{error}");
}

#[test]
fn interprets() {
    let graph = text::parse(NETWORK, &BTreeMap::new()).unwrap();
    let x = Tensor::from_f32([1, 4, 4, 1], (0..16).map(|i| i as f32 - 8.0).collect()).unwrap();
    let out = interp::run(&graph, &[x]).unwrap();
    assert_eq!(out[0].shape(), [1, 2, 4, 3]);
    // A shift of 62 leaves nothing but the zero point in the last channel.
    assert!(out[0].ints().unwrap().chunks(3).all(|c| c[2] == 3));
}

#[test]
fn errors_name_the_line() {
    for (from, to, expected) in [
        ("pad=[1,1,1,1]", "pad=[1,1,1]", "attribute `pad`"),
        ("groups=1", "groups=1 colour=2", "unknown attribute `colour`"),
        ("%5 stride", "%50 stride", "not a value above"),
        ("lo=0 hi=15", "lo=9 hi=3", "empty clamp"),
        ("[1,2,4,3] @\"conv\"", "[1,2,4,4] @\"conv\"", "declared"),
        ("splat(1073741824)", "splat(-1)", "mult must be non-negative"),
        ("f32[1,4,4,1]", "f32[1,4294967296,4294967296,1]", "more than"),
        ("output %9", "output %99", "not a value above"),
    ] {
        let text = NETWORK.replacen(from, to, 1);
        assert_ne!(text, NETWORK);
        let error = text::parse(&text, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with("line ") && error.contains(expected), "{from} -> {to}: {error}");
    }
}
