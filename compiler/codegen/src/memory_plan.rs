//! The memory plan: where every value lies in the one arena.
//!
//! In: sizes and lifetimes ([`Block`]), counted in steps. Out: a 64-byte aligned offset for each and the
//! arena's size. Blocks whose lifetimes overlap never share a byte. Placed largest first, each where the arena grows least.
//!
//! Tasks take neighbouring units, so what a core has of a block is about a part of it by address: with two threads, one has the
//! lower half and the other the upper. A line that another core wrote last has to be fetched from its cache before it can be
//! written to, which takes five times as long between cores of different third-level caches. So of the places that are left
//! a block gets the one where most bytes belong to the core that had them before and has them after (`Others::strangeness`).
//! Scratch memory lies behind all values: that of a task at the same place for every step ([`Scratch`]).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use thiserror::Error;

/// Alignment of every block, in bytes.
pub const BLOCK_ALIGN: usize = 64;
/// Largest arena.
pub const ARENA_MAX_BYTES: usize = 1 << 40;

/// Something that needs memory from the start of step `first` to the end of step `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Byte offset of each block.
    pub offsets: Vec<usize>,
    pub arena_bytes: usize,
}

/// Where the scratch memory of each task begins, whatever the step: a core that runs the same task of one step after the other
/// has it in its cache, and no other core writes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    pub begins: Vec<usize>,
    pub end: usize,
}

impl Scratch {
    /// For steps of so many bytes a task and so many tasks, behind so many bytes of other things.
    pub fn new(steps: &[(usize, usize)], behind: usize) -> Result<Scratch, PlanError> {
        let mut scratch = Scratch { begins: Vec::new(), end: behind.next_multiple_of(BLOCK_ALIGN) };
        let most = |task: usize| steps.iter().filter(|&&(_, tasks)| tasks > task).map(|&(bytes, _)| bytes).max();
        for bytes in (0..).map_while(most).take_while(|&bytes| bytes > 0) {
            scratch.begins.push(scratch.end);
            scratch.end += padded(bytes)?;
            if scratch.end > ARENA_MAX_BYTES {
                return Err(PlanError::TooLarge);
            }
        }
        Ok(scratch)
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("the network needs more than {ARENA_MAX_BYTES} bytes of working memory")]
    TooLarge,
    #[error("internal error of the memory plan: blocks {0} and {1} overlap")]
    Overlap(usize, usize),
}

impl Block {
    fn alive_with(&self, other: &Block) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Plans the arena. With `keep_all`, no block shares memory with any other.
pub fn plan(blocks: &[Block], keep_all: bool) -> Result<MemoryPlan, PlanError> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (Reverse(blocks[i].bytes), blocks[i].first, i));
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<Placed> = Vec::new();
    let mut arena_bytes = 0;
    for i in order {
        let bytes = padded(blocks[i].bytes)?;
        let is_alive = |other: &&Placed| keep_all || other.block.alive_with(&blocks[i]);
        let gaps = gaps(placed.iter().filter(is_alive), bytes);
        let others = Others::of(placed.iter().filter(|other| !is_alive(other)), &blocks[i]);
        let (size, _, start) = others.best_start(&gaps, bytes, arena_bytes);
        offsets[i] = start;
        placed.push(Placed { block: blocks[i], start, bytes });
        arena_bytes = size;
        if arena_bytes > ARENA_MAX_BYTES {
            return Err(PlanError::TooLarge);
        }
    }
    let plan = MemoryPlan { offsets, arena_bytes };
    plan.check(blocks, keep_all)?;
    Ok(plan)
}

fn padded(bytes: usize) -> Result<usize, PlanError> {
    let padded = bytes.max(1).checked_next_multiple_of(BLOCK_ALIGN);
    padded.filter(|&b| b <= ARENA_MAX_BYTES).ok_or(PlanError::TooLarge)
}

/// A block that has a place.
struct Placed {
    block: Block,
    start: usize,
    /// With what aligns it.
    bytes: usize,
}

/// The ranges of at least `bytes` bytes that no busy block has; the last has no end.
fn gaps<'a>(busy: impl Iterator<Item = &'a Placed>, bytes: usize) -> Vec<(usize, usize)> {
    let mut busy: Vec<(usize, usize)> = busy.map(|other| (other.start, other.start + other.bytes)).collect();
    busy.sort_unstable();
    let (mut gaps, mut end) = (Vec::new(), 0);
    for (from, to) in busy {
        if from >= end + bytes {
            gaps.push((end, from));
        }
        end = end.max(to);
    }
    gaps.push((end, usize::MAX));
    gaps
}

/// Blocks that a block may share memory with.
struct Others<'a> {
    /// Those that have a byte before the block, the last one first: inference follows inference, so those after the block are
    /// before all that come before it in the same inference.
    before: Vec<&'a Placed>,
    /// Those that have a byte after it, the first one first.
    after: Vec<&'a Placed>,
}

impl<'a> Others<'a> {
    fn of(others: impl Iterator<Item = &'a Placed>, block: &Block) -> Others<'a> {
        let mut before: Vec<&Placed> = others.collect();
        let mut after = before.clone();
        before.sort_by_key(|other| Reverse((other.block.last < block.first, other.block.last)));
        after.sort_by_key(|other| (other.block.first < block.last, other.block.first));
        Others { before, after }
    }

    /// The size of the arena, [`Others::strangeness`], and the start of `bytes` bytes that are best in this order. Tried are
    /// both ends of the gaps, and in them the places at an end of another block or with a common middle.
    fn best_start(&self, gaps: &[(usize, usize)], bytes: usize, arena_bytes: usize) -> (usize, f64, usize) {
        let aligned = |start: usize| start / BLOCK_ALIGN * BLOCK_ALIGN;
        let around = |other: &&Placed| {
            let middle = (other.start + other.bytes / 2).checked_sub(bytes / 2).map(aligned);
            [Some(other.start + other.bytes), other.start.checked_sub(bytes), middle]
        };
        let ends = gaps.iter().flat_map(|&(from, to)| [Some(from), (to < usize::MAX).then(|| to - bytes)]);
        let starts: BTreeSet<usize> = ends.chain(self.before.iter().flat_map(around)).flatten().collect();
        let is_free = |start: usize| {
            let gap = gaps.partition_point(|&(from, _)| from <= start).checked_sub(1).map(|i| gaps[i]);
            gap.is_some_and(|(_, to)| start + bytes <= to)
        };
        let mut best = (usize::MAX, f64::INFINITY, 0);
        for start in starts.into_iter().filter(|&start| is_free(start)) {
            let size = arena_bytes.max(start + bytes);
            // Later places make the arena larger still.
            if size > best.0 {
                break;
            }
            let found = (size, self.strangeness(start, bytes), start);
            if found < best {
                best = found;
            }
        }
        best
    }

    /// How much of a block belongs to other cores before or after: for every byte the difference of its relative places in this
    /// block and in those that have it before and after.
    fn strangeness(&self, start: usize, bytes: usize) -> f64 {
        let part = |from: usize, block_bytes: usize, middle: f64| (middle - from as f64) / block_bytes as f64;
        let of = |others: &[&Placed]| {
            let (mut open, mut sum) = (vec![(start, start + bytes)], 0.0);
            for other in others {
                if open.is_empty() {
                    break;
                }
                let mut rest = Vec::with_capacity(open.len() + 1);
                for (from, to) in open {
                    let shared = (from.max(other.start), to.min(other.start + other.bytes));
                    if shared.0 >= shared.1 {
                        rest.push((from, to));
                        continue;
                    }
                    let middle = (shared.0 + shared.1) as f64 / 2.0;
                    let differs = part(start, bytes, middle) - part(other.start, other.bytes, middle);
                    sum += (shared.1 - shared.0) as f64 * differs.abs();
                    rest.extend([(from, shared.0), (shared.1, to)].into_iter().filter(|(from, to)| from < to));
                }
                open = rest;
            }
            sum
        };
        of(&self.before) + of(&self.after)
    }
}

impl MemoryPlan {
    /// Checks that no two blocks alive at the same time (or at all, with `keep_all`) share a byte.
    fn check(&self, blocks: &[Block], keep_all: bool) -> Result<(), PlanError> {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&i| self.offsets[i]);
        for (position, &a) in order.iter().enumerate() {
            let end = self.offsets[a] + blocks[a].bytes;
            for &b in order[position + 1..].iter().take_while(|&&b| self.offsets[b] < end) {
                if keep_all || blocks[a].alive_with(&blocks[b]) {
                    return Err(PlanError::Overlap(a, b));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_needs_two_blocks() {
        let chain: Vec<Block> = (0..10).map(|i| Block { bytes: 1000, first: i, last: i + 1 }).collect();
        let plan = plan(&chain, false).unwrap();
        assert_eq!(plan.arena_bytes, 2 * 1024);
    }

    #[test]
    fn kept_values_share_nothing() {
        let chain: Vec<Block> = (0..10).map(|i| Block { bytes: 64, first: i, last: i }).collect();
        assert_eq!(plan(&chain, true).unwrap().arena_bytes, 640);
    }

    /// A smaller block lies in the middle of a larger one of another time, where its halves belong to the same cores, while the
    /// arena grows by neither place.
    #[test]
    fn halves_stay_with_their_cores() {
        let large = Block { bytes: 4096, first: 0, last: 0 };
        let small = Block { bytes: 1024, first: 1, last: 2 };
        assert_eq!(plan(&[large, small], false).unwrap().offsets, [0, 1536]);
        // Of two of the same time the larger has the middle.
        let busy = Block { bytes: 2048, first: 1, last: 1 };
        assert_eq!(plan(&[large, small, busy], false).unwrap().offsets, [0, 0, 1024]);
    }

    #[test]
    fn tasks_have_the_same_scratch_memory_at_every_step() {
        let scratch = Scratch::new(&[(1000, 2), (100, 4), (0, 64)], 64).unwrap();
        assert_eq!(scratch, Scratch { begins: vec![64, 1088, 2112, 2240], end: 2368 });
        assert_eq!(Scratch::new(&[(0, 8)], 64).unwrap(), Scratch { begins: Vec::new(), end: 64 });
        assert_eq!(Scratch::new(&[(ARENA_MAX_BYTES, 2)], 0), Err(PlanError::TooLarge));
        assert_eq!(Scratch::new(&[(usize::MAX, 1)], 0), Err(PlanError::TooLarge));
    }

    /// Places tried grow with the square of the blocks' number; this takes a fraction of a second.
    #[test]
    fn a_thousand_blocks_are_planned() {
        let chain: Vec<Block> =
            (0..1000).map(|i| Block { bytes: 64 * (1 + i * 617 % 1000), first: i, last: i + 1 }).collect();
        let ends = chain.windows(2).map(|pair| pair[0].bytes + pair[1].bytes);
        assert!(plan(&chain, false).unwrap().arena_bytes < 2 * ends.max().unwrap());
    }

    #[test]
    fn an_overlap_is_found() {
        let blocks = [Block { bytes: 10, first: 0, last: 2 }, Block { bytes: 10, first: 2, last: 3 }];
        let bad = MemoryPlan { offsets: vec![0, 0], arena_bytes: 64 };
        assert_eq!(bad.check(&blocks, false), Err(PlanError::Overlap(0, 1)));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let blocks = [Block { bytes: usize::MAX, first: 0, last: 0 }];
        assert_eq!(plan(&blocks, false), Err(PlanError::TooLarge));
    }

    proptest! {
        #[test]
        fn live_blocks_never_overlap(
            raw in proptest::collection::vec((0usize..5000, 0usize..40, 0usize..12), 1..60),
            keep_all: bool,
        ) {
            let blocks: Vec<Block> =
                raw.iter().map(|&(bytes, first, length)| Block { bytes, first, last: first + length }).collect();
            let plan = plan(&blocks, keep_all).unwrap();
            for (i, a) in blocks.iter().enumerate() {
                prop_assert_eq!(plan.offsets[i] % BLOCK_ALIGN, 0);
                prop_assert!(plan.offsets[i] + a.bytes <= plan.arena_bytes);
                for (j, b) in blocks.iter().enumerate().skip(i + 1) {
                    let together = keep_all || (a.first <= b.last && b.first <= a.last);
                    let apart = plan.offsets[i] + a.bytes <= plan.offsets[j] || plan.offsets[j] + b.bytes <= plan.offsets[i];
                    prop_assert!(!together || apart || a.bytes == 0 || b.bytes == 0);
                }
            }
        }
    }
}
