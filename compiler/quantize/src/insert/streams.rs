//! Values of 16 bits that additions combine, which share a scale.
//!
//! A residual stream passes through an addition in every block. With one scale from its first value to its last, an addition
//! takes it as it is, without a multiplication for every element; the values' ranges differ by a few bits, of which 16
//! leave plenty.

use hawqc_ir::{Graph, Op, ValueId};
use petgraph::unionfind::UnionFind;

use super::needs::{Needs, is_fused_clamp};

/// Bits from which on values may share a scale that is not the finest for each.
const WIDE: u8 = 16;

/// See the module's documentation.
pub(super) struct Streams(UnionFind<usize>);

impl Streams {
    pub fn new(graph: &Graph, needs: &Needs) -> Streams {
        let mut streams = UnionFind::new(graph.len());
        let in_stream = |id: ValueId| needs.storage(id).is_some_and(|s| s.bits == WIDE && s.anchor.is_none());
        for id in graph.values() {
            let result = match graph.op(id) {
                Op::Add(_) if needs.storage(id).is_some() => Some(id),
                Op::Add(_) => graph.users(id).into_iter().find(|&user| is_fused_clamp(graph, user)),
                // These give what they read.
                Op::MaxPool(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Pad(_) => Some(id),
                _ => None,
            };
            let Some(result) = result.filter(|&result| in_stream(result)) else { continue };
            for operand in graph.args(id).into_iter().filter(|&operand| in_stream(operand)) {
                streams.union(operand.index(), result.index());
            }
        }
        Streams(streams)
    }

    /// The values that share a scale with `id`.
    pub fn others<'a>(&'a self, graph: &'a Graph, id: ValueId) -> impl Iterator<Item = ValueId> + 'a {
        graph.values().filter(move |&other| other != id && self.0.equiv(id.index(), other.index()))
    }
}
