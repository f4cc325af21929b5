//! Which width every value of a float graph is stored in, decided from what its users need.
//!
//! A value is stored once, at the widest width that a user needs; a user that needs fewer bits reads
//! a narrower copy. Not stored at all, that is kept as the accumulator of whatever computes it, are
//! * the operand of a fused clamp (the clamp's result is stored),
//! * one convolution per addition, which the addition requantises directly,
//! * convolutions that leave the network.

use hawqc_ir::{Graph, Op, ValueId};

use super::Layers;

/// Narrowest width that average pooling and the border work with.
const COARSEST: u8 = 8;
/// Width of values other than accumulators that leave the network.
const OUTPUT_BITS: u8 = 16;

/// How a user wants to read a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Need {
    pub bits: u8,
    /// Wider will do as well.
    pub or_wider: bool,
    /// The value must have the scale of this concatenation.
    pub anchor: Option<ValueId>,
}

/// In what form a value is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage {
    pub bits: u8,
    pub anchor: Option<ValueId>,
}

/// Needs and storage of all values of a graph.
pub(super) struct Needs<'a> {
    graph: &'a Graph,
    layers: &'a Layers,
    residual_bits: u8,
    live: Vec<bool>,
    border: Vec<bool>,
    /// Values behind a softmax that only leave: floats of the border.
    leaving: Vec<bool>,
    /// For an addition the operand it takes as an accumulator.
    direct: Vec<Option<ValueId>>,
    storage: Vec<Option<Storage>>,
}

impl<'a> Needs<'a> {
    pub fn new(graph: &'a Graph, layers: &'a Layers, residual_bits: u8) -> Needs<'a> {
        let mut needs = Needs {
            graph,
            layers,
            residual_bits,
            live: graph.live(),
            border: border_values(graph),
            leaving: leaving_values(graph),
            direct: direct_operands(graph),
            storage: vec![None; graph.len()],
        };
        for id in graph.values().collect::<Vec<_>>().into_iter().rev() {
            if needs.live[id.index()] && graph.ty(id).is_float() && !matches!(graph.op(id), Op::Const(_)) {
                needs.storage[id.index()] = needs.decide(id);
            }
        }
        needs
    }

    pub fn storage(&self, id: ValueId) -> Option<Storage> {
        self.storage[id.index()]
    }

    /// Whether the value is an input or an input merely moved.
    pub fn is_border(&self, id: ValueId) -> bool {
        self.border[id.index()]
    }

    /// How `user` wants to read its operand `value`; `None` to take it as it is.
    pub fn need(&self, user: ValueId, value: ValueId) -> Option<Need> {
        let exactly = |bits, anchor| Need { bits, or_wider: false, anchor };
        let stored = self.storage[user.index()];
        match self.graph.op(user) {
            Op::Conv(_) => self.layers.get(&user).map(|bits| exactly(bits.activations, None)),
            Op::Add(_) if self.direct[user.index()] == Some(value) => None,
            Op::Add(_) => Some(exactly(self.residual_bits, None)),
            Op::AvgPool(_) => Some(Need { bits: COARSEST, or_wider: true, anchor: None }),
            Op::ClampReal(_) if is_fused_clamp(self.graph, user) => None,
            Op::ClampReal(_) => stored.map(|s| exactly(s.bits, None)),
            Op::Reshape(_) | Op::Transpose(_) if self.border[user.index()] => None,
            Op::MaxPool(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Pad(_) => {
                stored.map(|s| exactly(s.bits, s.anchor.filter(|_| is_sole_user(self.graph, user, value))))
            }
            Op::Concat(_) => stored.map(|s| exactly(s.bits, s.anchor)),
            Op::Softmax(_) => self.need_at_border(value),
            _ => None,
        }
    }

    /// What leaving the network needs: accumulators leave as they are.
    fn need_at_border(&self, value: ValueId) -> Option<Need> {
        let wide = Need { bits: OUTPUT_BITS, or_wider: false, anchor: None };
        (!carries_accumulator(self.graph, value)).then_some(wide)
    }

    /// The storage of a value whose users are decided.
    fn decide(&self, id: ValueId) -> Option<Storage> {
        if self.leaving[id.index()] {
            return None;
        }
        let users: Vec<ValueId> = self.graph.users(id).into_iter().filter(|u| self.live[u.index()]).collect();
        let mut needs: Vec<Need> = users.iter().filter_map(|&u| self.need(u, id)).collect();
        if self.graph.is_output(id) {
            needs.extend(self.need_at_border(id));
        }
        let widest = needs.iter().map(|n| n.bits).max()?;
        if self.border[id.index()] {
            return Some(Storage { bits: widest.max(COARSEST), anchor: None });
        }
        // A value that others read too keeps its own scale, since the common one may be far too coarse for
        // them; the concatenation reads a copy.
        let lone = users.len() == 1 && !self.graph.is_output(id);
        let anchor = needs.iter().filter(|n| lone && n.bits == widest).find_map(|n| n.anchor);
        let own = matches!(self.graph.op(id), Op::Concat(_)).then_some(id);
        Some(Storage { bits: widest, anchor: anchor.or(own) })
    }
}

/// For every value whether it is a softmax, or moved from one, that nothing computes with afterwards.
fn leaving_values(graph: &Graph) -> Vec<bool> {
    let moves = |id: ValueId| matches!(graph.op(id), Op::Reshape(_) | Op::Transpose(_));
    let mut leaving = vec![false; graph.len()];
    for id in graph.values() {
        let moved = moves(id) && leaving[graph.args(id)[0].index()];
        leaving[id.index()] = moved || matches!(graph.op(id), Op::Softmax(_));
    }
    for id in graph.values().collect::<Vec<_>>().into_iter().rev() {
        leaving[id.index()] &= graph.users(id).into_iter().all(|user| moves(user) && leaving[user.index()]);
    }
    leaving
}

/// Whether a clamp limits an accumulator that nothing else reads, so that it becomes a bound of the requantisation.
pub(crate) fn is_fused_clamp(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.op(id), Op::ClampReal(_))
        && graph.args(id).first().is_some_and(|&src| {
            matches!(graph.op(src), Op::Conv(_) | Op::Add(_) | Op::AvgPool(_)) && is_sole_user(graph, id, src)
        })
}

fn is_sole_user(graph: &Graph, user: ValueId, value: ValueId) -> bool {
    graph.users(value) == [user] && !graph.is_output(value)
}

/// For every value whether it is an input or an input merely moved.
pub(super) fn border_values(graph: &Graph) -> Vec<bool> {
    let mut border = vec![false; graph.len()];
    for id in graph.values() {
        border[id.index()] = match graph.op(id) {
            Op::Input(_) => true,
            Op::Reshape(_) | Op::Transpose(_) => graph.args(id).iter().all(|a| border[a.index()]),
            _ => false,
        };
    }
    border
}

/// Whether the value is a convolution's accumulator, merely moved and read by nothing on the way.
fn carries_accumulator(graph: &Graph, id: ValueId) -> bool {
    match graph.op(id) {
        Op::Conv(_) => graph.users(id).len() + usize::from(graph.is_output(id)) == 1,
        Op::Reshape(_) | Op::Transpose(_) => {
            let src = graph.args(id)[0];
            graph.users(src).len() == 1 && carries_accumulator(graph, src)
        }
        _ => false,
    }
}

/// For every addition the operand that is requantised from its accumulator: of the operands that are a
/// convolution (perhaps clamped) for this addition alone, the one with most convolutions before it,
/// and of equals the later one.
fn direct_operands(graph: &Graph) -> Vec<Option<ValueId>> {
    let mut depth = vec![0usize; graph.len()];
    let mut direct = vec![None; graph.len()];
    for id in graph.values() {
        let args = graph.args(id);
        let before = args.iter().map(|a| depth[a.index()]).max().unwrap_or(0);
        depth[id.index()] = before + usize::from(matches!(graph.op(id), Op::Conv(_)));
        if let Op::Add(_) = graph.op(id) {
            let candidates = args.into_iter().filter(|&a| is_sole_user(graph, id, a) && is_convolution(graph, a));
            direct[id.index()] = candidates.max_by_key(|a| (depth[a.index()], a.index()));
        }
    }
    direct
}

fn is_convolution(graph: &Graph, id: ValueId) -> bool {
    match graph.op(id) {
        Op::Conv(_) => true,
        Op::ClampReal(_) => is_fused_clamp(graph, id) && matches!(graph.op(graph.args(id)[0]), Op::Conv(_)),
        _ => false,
    }
}
