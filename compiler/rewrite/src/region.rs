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
