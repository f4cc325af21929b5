//! Rewriting whole networks: the same bits, cheaper, and in linear work.

mod networks;
#[path = "networks/random.rs"]
mod random;

use std::collections::BTreeMap;

use hawqc_ir::*;
use hawqc_rewrite::{Report, Stop, check_fused, fuse, rewrite};
use networks::{BASIC_BLOCK, random_inputs};
use proptest::prelude::*;
use random::random_network;

fn read(text: &str) -> Graph {
    let graph = text::parse(text, &BTreeMap::new()).unwrap();
    verify::check_integer(&graph).unwrap();
    graph
}

fn rewrite_and_compare(graph: &Graph) -> (Graph, Report) {
    let (rewritten, report) = rewrite(graph).unwrap();
    verify::check_integer(&rewritten).unwrap();
    let fused = fuse(&rewritten).unwrap();
    check_fused(&fused).unwrap();
    for seed in 0..6 {
        let inputs = random_inputs(graph, seed);
        let expected = interp::run(graph, &inputs).unwrap();
        assert_eq!(expected, interp::run(&rewritten, &inputs).unwrap(), "{}\n{report}", text::print(graph));
        assert_eq!(expected, interp::run(&fused, &inputs).unwrap(), "{}", text::print(&rewritten));
    }
    (rewritten, report)
}

fn ops(graph: &Graph, name: &str) -> usize {
    graph.values().filter(|&id| graph.op(id).name() == name).count()
}

#[test]
fn basic_block() {
    let (rewritten, report) = rewrite_and_compare(&read(BASIC_BLOCK));
    assert!(report.regions.iter().all(|r| r.stop == Stop::Saturated && r.kept.is_none()), "{report}");
    // The two ReLUs of accumulators are gone; that of the sum stays.
    assert_eq!(ops(&rewritten, "clamp"), 1);
    assert_eq!(report.applied().get("requant-of-clamp"), Some(&2));
    let fused = fuse(&rewritten).unwrap();
    networks::expect("basic_block_rewritten.hwq", &networks::kernels(&fused));
}

/// Rewriting a second time finds nothing.
#[test]
fn is_idempotent() {
    let (once, _) = rewrite(&read(BASIC_BLOCK)).unwrap();
    let (twice, report) = rewrite(&once).unwrap();
    assert_eq!(text::print(&once), text::print(&twice));
    assert_eq!(report.changes().count(), 0, "{report}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_networks_keep_every_bit(seed in any::<u64>(), steps in 1usize..40) {
        let graph = random_network(seed, steps);
        verify::check_integer(&graph).unwrap();
        rewrite_and_compare(&graph);
    }
}

/// `blocks` residual blocks over one 16-bit stream, whose every value is read twice.
fn residual_chain(blocks: usize) -> Graph {
    let mut graph = Graph::new();
    let shape = [1, 2, 2, 2];
    let mut stream = graph.input("x", TensorType::new(Elem::I16, shape)).unwrap();
    let constant = |graph: &mut Graph, elem, value| graph.constant(Tensor::from_ints(elem, [1], [value]).unwrap());
    let (mult, shift) = (constant(&mut graph, Elem::I32, 1_500_000_000), constant(&mut graph, Elem::U8, 31));
    let range = Range::new(-32768, 32767);
    for i in 0..blocks {
        let wide = Requant::to_range(range, Elem::I32);
        let pool = MaxPool { kernel: [1, 2], stride: [1, 1], pad: [0, 0, 0, 1], dilation: [1, 1] };
        let branch = graph.add(format!("b{i}.clamp"), Clamp { lo: 0, hi: 9999, elem: Elem::I32 }, &[stream]).unwrap();
        let branch = graph.add(format!("b{i}.pool"), pool, &[branch]).unwrap();
        let branch = graph.add(format!("b{i}.r"), wide.clone(), &[branch, mult, shift]).unwrap();
        let skip = graph.add(format!("b{i}.s"), wide, &[stream, mult, shift]).unwrap();
        let sum = graph.add(format!("b{i}.add"), Add {}, &[skip, branch]).unwrap();
        stream = graph.add(format!("b{i}.out"), Clamp { lo: 0, hi: 32767, elem: Elem::I16 }, &[sum]).unwrap();
    }
    graph.output("y", stream);
    graph
}

/// Counted by tree, a stream shared at every block doubles its price at every block; and sets that grow
/// with the whole network would make the work quadratic.
#[test]
fn long_residual_streams_take_linear_work() {
    let work = |blocks: usize| {
        let graph = residual_chain(blocks);
        let (rewritten, report) = rewrite(&graph).unwrap();
        assert!(rewritten.len() <= graph.len());
        assert!(report.regions.iter().all(|r| r.stop == Stop::Saturated && r.kept.is_none()), "{report}");
        let (before, after): (u64, u64) =
            report.regions.iter().fold((0, 0), |(b, a), r| (b + r.cost_before, a + r.cost_after));
        assert!(after < before);
        let widest = report.regions.iter().map(|r| r.classes).max().unwrap();
        (report.regions.iter().map(|r| r.work).sum::<usize>(), widest)
    };
    let (short, short_widest) = work(64);
    let (long, long_widest) = work(512);
    assert!(long <= short * 9, "{short} steps for 64 blocks, {long} for 512");
    assert!(long_widest <= short_widest * 2, "the sets' width must not grow with the network");
}

/// A clamp that two requants read is not worth keeping for either: with it folded into both, nobody needs
/// it, although each alone saves nothing while the other still reads it.
#[test]
fn shared_nodes_are_priced_once() {
    let text = r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = const seed(1,-8,7) : i4[3,1,1,2]
%2 = conv %0, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-4080,4080>[1,4,4,3] @"conv"
%3 = clamp %2 lo=0 hi=2147483647 elem=i32 : i32<0,4080>[1,4,4,3] @"relu"
%4 = const [1500000000] : i32[1]
%5 = const [34] : u8[1]
%6 = const [36] : u8[1]
%7 = requant %3, %4, %5 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,4,3] @"a"
%8 = requant %3, %4, %6 src_zero=0 dst_zero=0 lo=0 hi=15 round=half_up elem=u4 : u4[1,4,4,3] @"b"
output %7 "a"
output %8 "b"
"#;
    let (rewritten, report) = rewrite_and_compare(&read(text));
    assert_eq!(ops(&rewritten, "clamp"), 0, "{report}");
    assert_eq!(ops(&rewritten, "conv"), 1);
}

/// Requants move to where fewer bytes are stored: before a pooling of accumulators, before a concatenation,
/// before a flattening.
#[test]
fn requants_move_to_the_accumulator() {
    let text = r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = const seed(1,-8,7) : i4[3,1,1,2]
%2 = const seed(2,-8,7) : i4[2,1,1,2]
%3 = const [1500000000,1400000000,1300000000,1200000000,1100000000] : i32[5]
%4 = const [34,34,34,34,35] : u8[5]
%5 = conv %0, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-4080,4080>[1,4,4,3] @"a"
%6 = conv %0, %2 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-3570,3570>[1,4,4,2] @"b"
%7 = concat %5, %6 axis=3 : i32<-4080,4080>[1,4,4,5] @"concat"
%8 = max_pool %7 kernel=[2,2] stride=[2,2] pad=[0,0,0,0] dilation=[1,1] : i32<-4080,4080>[1,2,2,5] @"pool"
%9 = reshape %8 shape=[1,4,5] : i32<-4080,4080>[1,4,5] @"flat"
%10 = requant %9, %3, %4 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,5] @"q"
output %10 "y"
"#;
    let (rewritten, report) = rewrite_and_compare(&read(text));
    let fused = fuse(&rewritten).unwrap();
    let wide = fused.values().filter(|&id| fused.tensor(id).is_none() && fused.ty(id).elem == Elem::I32).count();
    assert_eq!(wide, 0, "{report}\n{}", text::print(&fused));
}

#[test]
fn pads_merge_into_windows() {
    let text = r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = const seed(1,-8,7) : i4[3,3,3,2]
%2 = pad %0 pad=[1,1,1,1] value=7.0 : u8[1,6,6,2] @"pad"
%3 = conv %2, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-36720,36720>[1,4,4,3] @"conv"
output %3 "y"
"#;
    let (rewritten, _) = rewrite_and_compare(&read(text));
    assert_eq!(ops(&rewritten, "pad"), 0);
}

/// One reader of the pooling would have it after the requantisation, another needs it before: pooling
/// twice must not look cheaper.
#[test]
fn readers_agree_on_a_pooling() {
    let text = r#"
%0 = input : i16<0,32767>[1,4,4,2] @"x"
%1 = const [1500000000] : i32[1]
%2 = const [38] : u8[1]
%3 = max_pool %0 kernel=[3,3] stride=[2,2] pad=[1,1,1,1] dilation=[1,1] : i16<0,32767>[1,2,2,2] @"pool"
%4 = requant %3, %1, %2 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,2,2,2] @"q"
output %4 "q"
output %3 "stream"
"#;
    let (rewritten, report) = rewrite_and_compare(&read(text));
    assert_eq!(ops(&rewritten, "max_pool"), 1);
    assert_eq!(report.changes().count(), 0, "{report}");
}

/// A concatenation at 8 bits that only a 4-bit convolution reads is made at 4 bits, in the epilogues.
#[test]
fn concats_are_made_in_their_reader_s_precision() {
    let text = r#"
%0 = input : u8[1,4,4,2] @"x"
%1 = const seed(1,-8,7) : i4[3,1,1,2]
%2 = const seed(2,-8,7) : i4[2,1,1,2]
%3 = const [1500000000] : i32[1]
%4 = const [34] : u8[1]
%5 = conv %0, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-4080,4080>[1,4,4,3] @"a"
%6 = conv %0, %2 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-3570,3570>[1,4,4,2] @"b"
%7 = requant %5, %3, %4 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,4,3] @"a.q"
%8 = requant %6, %3, %4 src_zero=0 dst_zero=0 lo=0 hi=255 round=half_up elem=u8 : u8[1,4,4,2] @"b.q"
%9 = concat %7, %8 axis=3 : u8[1,4,4,5] @"concat"
%10 = requant %9, %3, %4 src_zero=0 dst_zero=0 lo=0 hi=15 round=half_up elem=u4 : u4[1,4,4,5] @"q"
%11 = const seed(3,-8,7) : i4[2,1,1,5]
%12 = conv %10, %11 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-525,525>[1,4,4,2] @"c"
output %12 "y"
"#;
    let (rewritten, report) = rewrite_and_compare(&read(text));
    let fused = fuse(&rewritten).unwrap();
    assert_eq!(ops(&fused, "kernel"), 4, "{report}\n{}", text::print(&fused));
}
