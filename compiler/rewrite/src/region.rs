//! Regions: the parts of a graph that are rewritten on their own.
//!
//! No rule looks through a convolution's result, so values connected other than through one form a
//! region; a convolution belongs to the region of its source. A region of more than [`LIMIT`] values (a
//! long residual stream) is cut into runs of that many, which keeps the work linear in the graph.

use std::collections::BTreeMap;

use hawqc_ir::{Graph, Op, ValueId};

/// Most values of one region.
pub(crate) const LIMIT: usize = 192;

/// Values rewritten together, in order.
#[derive(Debug, PartialEq)]
pub(crate) struct Region {
    pub values: Vec<ValueId>,
}

/// The regions of a graph; every value but inputs and constants is in exactly one.
pub(crate) fn regions(graph: &Graph) -> Vec<Region> {
    let mut connected = Connected { parent: (0..graph.len()).collect() };
    for id in graph.values() {
        for arg in graph.args(id) {
            if !matches!(graph.op(arg), Op::Input(_) | Op::Const(_) | Op::Conv(_)) {
                connected.unite(arg.index(), id.index());
            }
        }
    }
    let mut components: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    for id in graph.values().filter(|&id| !matches!(graph.op(id), Op::Input(_) | Op::Const(_))) {
        components.entry(connected.find(id.index())).or_default().push(id);
    }
    let runs = components
        .into_values()
        .flat_map(|values| values.chunks(LIMIT).map(|run| Region { values: run.to_vec() }).collect::<Vec<_>>());
    runs.collect()
}

/// Disjoint sets; the smallest index stands for a set.
struct Connected {
    parent: Vec<usize>,
}

impl Connected {
    fn find(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]];
            i = self.parent[i];
        }
        i
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hawqc_ir::text;

    use super::*;

    fn indices(graph: &Graph) -> Vec<Vec<usize>> {
        regions(graph).iter().map(|r| r.values.iter().map(|v| v.index()).collect()).collect()
    }

    #[test]
    fn a_convolution_ends_a_region() {
        let text = r#"
%0 = input : u8[1,2,2,1] @"x"
%1 = const [3] : i8[1,1,1,1]
%2 = clamp %0 lo=0 hi=9 elem=u8 : u8<0,9>[1,2,2,1] @"a"
%3 = conv %2, %1 stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 pad_value=0 : i32<-27,27>[1,2,2,1] @"b"
%4 = clamp %3 lo=0 hi=9 elem=u8 : u8<0,9>[1,2,2,1] @"c"
%5 = add %4, %2 : i32<0,18>[1,2,2,1] @"d"
%6 = clamp %3 lo=1 hi=9 elem=u8 : u8<1,9>[1,2,2,1] @"e"
output %5 "d"
output %6 "e"
"#;
        let graph = text::parse(text, &BTreeMap::new()).unwrap();
        // `d` joins what the convolution reads with what reads the convolution.
        assert_eq!(indices(&graph), [vec![2, 3, 4, 5], vec![6]]);
    }

    #[test]
    fn long_regions_are_cut() {
        let mut graph = Graph::new();
        let ty = hawqc_ir::TensorType::new(hawqc_ir::Elem::U8, [1]);
        let mut value = graph.input("x", ty).unwrap();
        for hi in 0..2 * LIMIT as i64 + 5 {
            let clamp = hawqc_ir::Clamp { lo: 0, hi: 255 - hi % 250, elem: hawqc_ir::Elem::U8 };
            value = graph.add("c", clamp, &[value]).unwrap();
        }
        let sizes: Vec<usize> = regions(&graph).iter().map(|r| r.values.len()).collect();
        assert_eq!(sizes, [LIMIT, LIMIT, 5]);
    }
}
