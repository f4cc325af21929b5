//! Concatenations whose operands are written where they are joined.
//!
//! In: the kernels of a graph. Out: [`InPlace`]: whose block of memory every kernel's result lies in, where there, and how
//! far apart its pixels are. Some operands of a concatenation are *parts* of it and lie in its block, which may in turn be
//! a part of another one's; all other results have blocks of their own. A concatenation copies what of its operands is no
//! part of it; if all are parts it is no step of the program.
//!
//! A part is a kernel's result that is joined once, that nothing else reads, that no entry point takes or gives, and whose
//! kernel can write it where it belongs: in one piece, where the concatenation has one piece of every operand, else, if
//! it joins channels, as pixels that lie apart.

use std::collections::{BTreeMap, BTreeSet};

use hawqc_ir::{Arg, Graph, KernelSpec, Op, ValueId};

use crate::error::CodegenError;
use crate::interface::Interface;
use crate::kernels::{Dst, Placement, writes_apart};
use crate::program::{kernel_values, root};

/// See the module's documentation.
#[derive(Clone)]
pub struct InPlace {
    parts: BTreeMap<ValueId, Home>,
}

/// Where a kernel's result lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The value that has the block of memory.
    pub whole: ValueId,
    /// Of the first pixel in this block.
    pub offset_bytes: usize,
    pub dst: Dst,
}

impl InPlace {
    /// `kernels`: the live kernels in order.
    pub fn new(graph: &Graph, interface: &Interface, kernels: &[(ValueId, &KernelSpec)]) -> InPlace {
        let live = graph.live();
        let entries = interface.final_values().chain(interface.integer_inputs());
        let entries: BTreeSet<ValueId> = entries.map(|value| root(graph, value)).collect();
        let is_read_once = |value: ValueId| {
            let readers = graph.users(value).into_iter().filter(|reader| live[reader.index()]).count();
            readers == 1 && !entries.contains(&value)
        };
        let mut all = InPlace { parts: BTreeMap::new() };
        // What a concatenation is a part of is known before its own parts.
        for &(value, spec) in kernels.iter().rev() {
            let Some(concat) = Concatenation::of(spec) else { continue };
            let home = all.home(graph, value);
            let args = graph.args(value);
            let mut before = 0;
            for &(operand, block) in &concat.operands {
                let part = args[operand];
                let is_joined_once = concat.operands.iter().filter(|&&(other, _)| other == operand).count() == 1;
                let dst = if concat.outer == 1 { Dst::dense(graph.ty(part)) } else { home.dst };
                let fits = |spec: &KernelSpec| concat.outer == 1 || concat.joins_channels && writes_apart(spec);
                let can_be = matches!(graph.op(part), Op::Kernel(spec) if fits(spec));
                if can_be && is_joined_once && is_read_once(part) {
                    let offset_bytes = home.offset_bytes + before * dst.elem.bytes();
                    all.parts.insert(part, Home { whole: home.whole, offset_bytes, dst });
                }
                before += block;
            }
        }
        all
    }

    /// Where a kernel's result lies.
    pub fn home(&self, graph: &Graph, value: ValueId) -> Home {
        let own = || Home { whole: value, offset_bytes: 0, dst: Dst::dense(graph.ty(value)) };
        self.parts.get(&value).copied().unwrap_or_else(own)
    }

    /// The same, as the kernel has to know it.
    pub fn placement(&self, graph: &Graph, value: ValueId) -> Placement {
        let args = graph.args(value);
        let written = (0..args.len()).filter(|&operand| self.parts.contains_key(&args[operand])).collect();
        Placement { dst: self.home(graph, value).dst, written }
    }

    /// Whether a kernel has anything to do.
    pub fn is_step(&self, graph: &Graph, (value, spec): (ValueId, &KernelSpec)) -> bool {
        let args = graph.args(value);
        let is_part = |&(operand, _): &(usize, usize)| self.parts.contains_key(&args[operand]);
        !Concatenation::of(spec).is_some_and(|concat| concat.operands.iter().all(is_part))
    }
}

struct Concatenation {
    /// Pieces of every operand.
    outer: usize,
    /// Whether it joins along the last axis.
    joins_channels: bool,
    /// Operands of the spec in the order in which they are joined, each with the elements of one piece.
    operands: Vec<(usize, usize)>,
}

impl Concatenation {
    fn of(spec: &KernelSpec) -> Option<Concatenation> {
        let [step] = spec.steps() else { return None };
        let Op::Concat(concat) = &step.op else { return None };
        let operand = |arg: &Arg| match arg {
            Arg::Operand(i) => Some((*i, spec.operands()[*i].shape[concat.axis..].iter().product())),
            Arg::Step(_) => None,
        };
        Some(Concatenation {
            outer: step.ty.shape[..concat.axis].iter().product(),
            joins_channels: concat.axis + 1 == step.ty.rank(),
            operands: step.args.iter().map(operand).collect::<Option<_>>()?,
        })
    }
}

/// The kernels of a fused graph that run as steps, in the order of the steps: all but the concatenations that have nothing
/// left to copy.
pub fn steps(graph: &Graph) -> Result<Vec<ValueId>, CodegenError> {
    let kernels = kernel_values(graph)?;
    let in_place = InPlace::new(graph, &Interface::new(graph)?, &kernels);
    Ok(kernels.into_iter().filter(|&kernel| in_place.is_step(graph, kernel)).map(|(value, _)| value).collect())
}
