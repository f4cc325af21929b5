//! The memory plan: where every value lies in the one arena.
//!
//! In: sizes and lifetimes ([`Block`]), counted in steps. Out: a 64-byte aligned offset for each and the
//! arena's size. Blocks whose lifetimes overlap never share a byte. Placed largest first, each into
//! the smallest gap that holds it between the blocks alive at the same time.

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
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_bytes = 0;
    for i in order {
        let bytes = padded(blocks[i].bytes)?;
        let mut busy: Vec<(usize, usize)> = Vec::new();
        for &other in &placed {
            if keep_all || blocks[other].alive_with(&blocks[i]) {
                busy.push((offsets[other], offsets[other] + padded(blocks[other].bytes)?));
            }
        }
        offsets[i] = best_gap(&mut busy, bytes);
        placed.push(i);
        arena_bytes = arena_bytes.max(offsets[i] + bytes);
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

/// The start of the smallest gap of at least `bytes` between the busy ranges, else of the space
/// behind the last.
fn best_gap(busy: &mut [(usize, usize)], bytes: usize) -> usize {
    busy.sort_unstable();
    let mut end = 0;
    let mut best: Option<(usize, usize)> = None;
    for &(from, to) in busy.iter() {
        let gap = from.saturating_sub(end);
        if gap >= bytes && best.is_none_or(|(size, _)| gap < size) {
            best = Some((gap, end));
        }
        end = end.max(to);
    }
    best.map_or(end, |(_, start)| start)
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
