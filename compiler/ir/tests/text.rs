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

const TWO_RESULTS: &str = r#"
%0 = input : u8[1,2,2,1] @"input"
%1 = const [3,-5] : i8[2,1,1,1]
%2 = const splat(1073741824) : i32[2]
%3 = const [31,30] : u8[2]
%4 = const splat(1073741824) : i32[1]
%5 = const splat(33) : u8[1]
%6 = kernel %0, %1, %2, %3, %4, %5 {
  $0 = conv #0, #1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-1275,1275>[1,2,2,2]
  $1 = requant $0, #2, #3 src_zero=0 dst_zero=0 lo=-900 hi=900 round=half_up elem=i16 : i16<-900,900>[1,2,2,2]
  second #4
  $0 = requant #0, #1, #2 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,2,2,2]
} : i16<-900,900>[1,2,2,2] @"conv"
%7 = second %6, %4, %5 {
  $0 = requant #0, #1, #2 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,2,2,2]
} : u8[1,2,2,2] @"requant"
output %6 "stream"
output %7 "bytes"
"#;

#[test]
fn two_results() {
    let graph = text::parse(TWO_RESULTS, &BTreeMap::new()).unwrap();
    verify::check(&graph).unwrap();
    assert_eq!(graph, text::parse(&text::print(&graph), &store(&graph)).unwrap());
    let x = Tensor::from_ints(Elem::U8, [1, 2, 2, 1], [0, 1, 100, 255]).unwrap();
    let [stream, bytes] = <[Tensor; 2]>::try_from(interp::run(&graph, &[x]).unwrap()).unwrap();
    assert_eq!(stream.ints().unwrap(), [0, 0, 2, -5, 150, -500, 383, -900]);
    assert_eq!(bytes.ints().unwrap(), [0, 0, 0, 0, 19, 0, 48, 0]);
    // A second result is one of its kernel.
    let other = TWO_RESULTS.replace(
        "%7 = second %6, %4, %5 {\n  $0 = requant #0, #1, #2 src_zero=0",
        "%7 = second %6, %4, %5 {\n  $0 = requant #0, #1, #2 src_zero=1",
    );
    let error = verify::check(&text::parse(&other, &BTreeMap::new()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("second result of a kernel that has none"), "{error}");
    for (from, to, expected) in [
        ("second #4", "second #9", "no operand of the kernel"),
        ("second #4", "second #3", "does not exist"),
        (
            "lo=0 hi=255 round=half_up elem=u8 : u8[1,2,2,2]\n} : i16",
            "lo=0 hi=255 round=half_up elem=u8 : i8[1,2,2,2]\n} : i16",
            "declared",
        ),
    ] {
        let error = text::parse(&TWO_RESULTS.replacen(from, to, 1), &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{from} -> {to}: {error}");
    }
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
