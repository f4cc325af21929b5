//! The memory plan: where every value lies in the one arena.
//!
//! In: sizes and lifetimes ([`Block`]), counted in steps. Out: a 64-byte aligned offset for each and the
//! arena's size. Blocks whose lifetimes overlap never share a byte. Placed largest first, each where the arena grows least.
//!
//! Tasks take neighbouring units, so what a core has of a block is about a part of it by address: with two threads, one has the
//! lower half and the other the upper. A line that another core wrote last has to be fetched from its cache before it can be
//! written to, which takes five times as long between cores of different third-level caches. So of the places that are left
//! a block gets the one where most bytes belong to the core that had them before and has them after ([`Others::strangeness`]).
//! Scratch memory lies behind all values: that of a task at the same place for every step ([`Scratch`]).

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
    pub fn new(steps: &[(usize, usize)], behind: usize) -> Scratch {
        let mut scratch = Scratch { begins: Vec::new(), end: behind };
        let most = |task: usize| steps.iter().filter(|&&(_, tasks)| tasks > task).map(|&(bytes, _)| bytes).max();
        for bytes in (0..).map_while(most).take_while(|&bytes| bytes > 0) {
            let begin = scratch.end.next_multiple_of(BLOCK_ALIGN);
            scratch.begins.push(begin);
            scratch.end = begin + bytes;
        }
        scratch
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
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first, i));
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<Placed> = Vec::new();
    let mut arena_bytes = 0;
    for i in order {
        let bytes = padded(blocks[i].bytes)?;
        let is_alive = |placed: &&Placed| keep_all || placed.block.alive_with(&blocks[i]);
        let busy: Vec<&Placed> = placed.iter().filter(is_alive).collect();
        let others = Others(placed.iter().filter(|placed| !is_alive(placed)).collect());
        let growth = |start: usize| (start + bytes).max(arena_bytes);
        let mut best = (usize::MAX, f64::INFINITY, 0);
        for start in others.starts(&busy, bytes) {
            // Most places are out of the question by the size of the arena alone.
            if growth(start) <= best.0 && busy.iter().all(|other| other.is_apart(start, bytes)) {
                let found = (growth(start), others.strangeness(&blocks[i], start), start);
                if found < best {
                    best = found
                }
            }
        }
        offsets[i] = best.2;
        placed.push(Placed { block: blocks[i], start: best.2, bytes });
        arena_bytes = best.0;
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

impl Placed {
    fn is_apart(&self, start: usize, bytes: usize) -> bool {
        self.start + self.bytes <= start || start + bytes <= self.start
    }

    /// Where in the block, from 0 to 1, an address is.
    fn part_at(&self, address: f64) -> f64 {
        (address - self.start as f64) / self.bytes as f64
    }
}

/// Blocks that a block may share memory with.
struct Others<'a>(Vec<&'a Placed>);

impl Others<'_> {
    /// Places worth trying for a block, of which one at least is free: at an end of a block, or with a common middle.
    fn starts(&self, busy: &[&Placed], bytes: usize) -> BTreeSet<usize> {
        let ends = |other: &&Placed| [Some(other.start + other.bytes), other.start.checked_sub(bytes)];
        let middle = |other: &&Placed| (other.start + other.bytes / 2).checked_sub(bytes / 2);
        let aligned = |start: usize| start / BLOCK_ALIGN * BLOCK_ALIGN;
        let around = busy.iter().chain(&self.0).flat_map(ends).flatten();
        around.chain(self.0.iter().filter_map(middle).map(aligned)).chain([0]).collect()
    }

    /// How much of a block at `start` belongs to other cores before or after: for every byte the difference of its relative
    /// places in this block and in those that have it before and after, inference following inference.
    fn strangeness(&self, block: &Block, start: usize) -> f64 {
        let own = Placed { block: *block, start, bytes: block.bytes.max(1) };
        let overlapping: Vec<&Placed> =
            self.0.iter().copied().filter(|other| !other.is_apart(start, own.bytes)).collect();
        let inside = |address: &usize| (start..start + own.bytes).contains(address);
        let cuts = overlapping.iter().flat_map(|other| [other.start, other.start + other.bytes]).filter(inside);
        let cuts: BTreeSet<usize> = cuts.chain([start, start + own.bytes]).collect();
        let of_piece = |(&from, &to): (&usize, &usize)| {
            let middle = (from + to) as f64 / 2.0;
            let here = || overlapping.iter().filter(|other| !other.is_apart(from, to - from));
            // Later blocks of the inference before come before all earlier ones of this inference.
            let before = here().max_by_key(|other| (other.block.last < block.first, other.block.last));
            let after = here().min_by_key(|other| (other.block.first < block.last, other.block.first));
            let differs = |other: &&Placed| (other.part_at(middle) - own.part_at(middle)).abs();
            (to - from) as f64 * before.into_iter().chain(after).map(differs).sum::<f64>()
        };
        cuts.iter().zip(cuts.iter().skip(1)).map(of_piece).sum()
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
        let scratch = Scratch::new(&[(1000, 2), (100, 4), (0, 64)], 10);
        assert_eq!(scratch, Scratch { begins: vec![64, 1088, 2112, 2240], end: 2340 });
        assert_eq!(Scratch::new(&[(0, 8)], 10), Scratch { begins: Vec::new(), end: 10 });
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
