//! Products of transformed operands, position by position: what Winograd's and Strassen's algorithms share.
//!
//! A unit of work has the inputs of its tiles, `[position][tile][channel]`, and gets the sums of a block of output channels,
//! `[sum][tile][channel of the block]`. A sum is that of one or a few positions, which follow one another. The register
//! tiles are those of the direct kernels ([`Micro`], whose pixels are the tiles and whose runs are a sum's positions).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::Elem;
use hawqc_schedules::Multiply;

use super::epilogue::WideEpilogue;
use super::micro::{Ahead, FIXED_WORDS, Inputs, Load, Micro, Word};
use super::window::Window;
use super::{call, distance, ints};
use crate::asm::{AsmError, Isa};
use crate::error::Unsupported;
use crate::kernels::emit::Code;
use crate::kernels::{Dst, Frame, Leaf, Table};

/// The first tables of such a kernel.
const WEIGHTS: usize = 0;
const START: usize = 1;
const TILES: usize = 2;
const RUNS: usize = 3;
pub const LITERALS: usize = 4;
pub const FIRST_EPILOGUE_TABLE: usize = 5;

pub struct Positions {
    pub isa: Isa,
    pub multiply: Multiply,
    /// Whether one instruction multiplies and adds.
    pub dot: bool,
    /// Tiles and vectors of output channels of a register tile.
    pub mr: usize,
    pub nr: usize,
    /// All sums.
    pub groups: Vec<Group>,
    /// Tiles of a larger and of a smaller unit.
    pub unit_tiles: [usize; 2],
    /// Input and output channels at a position.
    pub channels: [usize; 2],
    /// Bytes from the inputs of one position to those of the next.
    pub inputs_bytes: usize,
    /// `(positions of a sum, tiles, vectors)` of each product kernel, in the order of the leaves.
    pub products: Vec<(usize, usize, usize)>,
}

/// Sums of equally many positions.
#[derive(Clone, Debug)]
pub struct Group {
    pub sums: usize,
    /// Of each sum.
    pub positions: usize,
    pub window: Window,
}

/// The first position and sum of a group, counted among all.
struct First {
    position: usize,
    sum: usize,
}

/// Where a unit's operands and sums are.
pub struct Buffers {
    pub inputs: Value,
    pub sums: Value,
    /// Tiles, one of [`Positions::unit_tiles`].
    pub tiles: usize,
}

impl Positions {
    /// Vectors of output channels.
    pub fn vectors(&self) -> usize {
        self.channels[1] / self.isa.lanes()
    }

    pub fn blocks(&self) -> usize {
        self.vectors().div_ceil(self.nr)
    }

    /// Vectors of the last block, if it has fewer than the others.
    fn rest_vectors(&self) -> usize {
        self.vectors() % self.nr
    }

    /// Bytes of the inputs of a tile at a position.
    pub fn tile_input_bytes(&self) -> usize {
        self.channels[0] * self.multiply.operand_bytes()
    }

    /// Bytes of the sums of a block at a position, of one tile and of all.
    pub fn tile_sum_bytes(&self) -> usize {
        self.nr * self.isa.bytes()
    }

    pub fn sums_bytes(&self) -> usize {
        self.unit_tiles[0] * self.tile_sum_bytes()
    }

    fn steps(&self) -> usize {
        self.channels[0].div_ceil(self.multiply.step())
    }

    pub fn positions(&self) -> usize {
        self.groups.iter().map(|group| group.sums * group.positions).sum()
    }

    pub fn sums(&self) -> usize {
        self.groups.iter().map(|group| group.sums).sum()
    }

    /// Bytes of a unit's inputs, and of a block's sums.
    pub fn scratch(&self) -> [usize; 2] {
        [self.positions() * self.inputs_bytes, self.sums() * self.sums_bytes()]
    }

    fn vector_weights_bytes(&self) -> usize {
        self.steps() * self.isa.bytes()
    }

    /// Register tiles that read the weights of a position and a block.
    fn readers(&self) -> usize {
        self.unit_tiles[0].div_ceil(self.mr)
    }

    /// The first tables. `transformed`: weights, `[position][output channel][input channel]`; `starts`: what sums start from,
    /// `[sum][output channel]`.
    pub fn tables(&self, transformed: &[i64], starts: &[i32]) -> Vec<Table> {
        let tiles: Vec<i32> = (0..self.unit_tiles[0]).map(|tile| (tile * self.tile_input_bytes()) as i32).collect();
        let most = self.groups.iter().map(|group| group.positions).max().unwrap_or(1);
        let runs: Vec<i32> = (0..most).map(|run| (run * self.inputs_bytes) as i32).collect();
        vec![
            Table { bytes: self.pack(transformed), is_weights: true },
            Table::new(ints(starts)),
            Table::new(ints(&tiles)),
            Table::new(ints(&runs)),
        ]
    }

    /// `[block][position][step of channels][vector][lane][channel of the step]`.
    fn pack(&self, transformed: &[i64]) -> Vec<u8> {
        let ([c, k], lanes, multiply) = (self.channels, self.isa.lanes(), self.multiply);
        let mut out = Vec::with_capacity(multiply.operand_bytes() * transformed.len());
        for first in (0..self.vectors()).step_by(self.nr) {
            let vectors = first..(first + self.nr).min(self.vectors());
            for position in 0..self.positions() {
                for step in (0..c).step_by(multiply.step()) {
                    for channel in vectors.start * lanes..vectors.end * lanes {
                        let row = &transformed[(position * k + channel) * c..][..c];
                        for i in step..step + multiply.step() {
                            let weight = row.get(i).copied().unwrap_or(0) as i16;
                            out.extend(&weight.to_le_bytes()[..multiply.operand_bytes()]);
                        }
                    }
                }
            }
        }
        out
    }

    /// The product kernels, which are a kernel's first leaves. `none`: an epilogue without steps.
    pub fn leaves(&mut self, none: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let sizes = self.unit_tiles.into_iter().flat_map(|tiles| [self.mr.min(tiles), tiles % self.mr]);
        let sizes: BTreeSet<usize> = sizes.filter(|&size| size > 0).collect();
        let full = if self.vectors() >= self.nr { self.nr } else { 0 };
        let mut leaves = Vec::new();
        for Group { positions, window, .. } in self.groups.clone() {
            let micro = Micro {
                isa: self.isa,
                multiply: self.multiply,
                dot: self.dot,
                runs: positions,
                steps: self.steps(),
                load: Load::Direct,
                inputs: Inputs::SHARED,
                window,
                readers: self.readers(),
                epilogue: none,
                dst: Dst { elem: Elem::I32, pitch: self.nr * self.isa.lanes() },
                channels: self.nr * self.isa.lanes(),
            };
            for &size in &sizes {
                for vectors in [full, self.rest_vectors()].into_iter().filter(|&v| v > 0) {
                    let name = format!("products.{positions}.{size}x{vectors}");
                    leaves.push(Leaf { name, code: micro.assemble(size, vectors)? });
                    self.products.push((positions, size, vectors));
                }
            }
        }
        Ok(leaves)
    }

    fn product(&self, frame: &Frame, product: (usize, usize, usize)) -> Result<FuncRef, Unsupported> {
        let found = self.products.iter().position(|&p| p == product).and_then(|i| frame.leaves.get(i));
        found.copied().ok_or_else(|| Unsupported::new(format!("no product kernel of {product:?}")))
    }

    /// Runs `body` for the blocks from `first` to before `end`, with the number of each one's vectors.
    pub fn every_block(
        &self,
        c: &mut Code,
        [first, end]: [Value; 2],
        body: impl Fn(&mut Code, Value, usize) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        let one = c.int(1);
        let mut outcome = Ok(());
        c.range(first, end, one, |c, block| {
            outcome = match (self.rest_vectors(), self.blocks()) {
                (0, _) => body(c, block, self.nr),
                (rest, 1) => body(c, block, rest),
                (rest, blocks) => {
                    let is_full = c.below(block, blocks - 1);
                    c.either(is_full, |c, is_full| body(c, block, if is_full { self.nr } else { rest }))
                }
            };
        });
        outcome
    }

    /// The sums of a block.
    pub fn multiply(
        &self,
        c: &mut Code,
        frame: &Frame,
        buffers: &Buffers,
        (block, vectors): (Value, usize),
    ) -> Result<(), Unsupported> {
        let mut first = First { position: 0, sum: 0 };
        for group in &self.groups {
            self.multiply_group(c, frame, buffers, (block, vectors), (group, &first))?;
            first.position += group.sums * group.positions;
            first.sum += group.sums;
        }
        Ok(())
    }

    fn multiply_group(
        &self,
        c: &mut Code,
        frame: &Frame,
        buffers: &Buffers,
        (block, vectors): (Value, usize),
        (group, first): (&Group, &First),
    ) -> Result<(), Unsupported> {
        let (whole, rest) = (buffers.tiles / self.mr, buffers.tiles % self.mr);
        let position_weights = vectors * self.vector_weights_bytes();
        let block_bytes = self.positions() * self.nr * self.vector_weights_bytes();
        let weights = c.offset(frame.tables[WEIGHTS], block, block_bytes);
        let weights = c.add_int(weights, first.position * position_weights);
        let start = c.offset(frame.tables[START], block, self.nr * self.isa.bytes());
        let start = c.add_int(start, first.sum * 4 * self.channels[1]);
        let inputs = c.add_int(buffers.inputs, first.position * self.inputs_bytes);
        let sums = c.add_int(buffers.sums, first.sum * self.sums_bytes());
        let leaf = |tiles: usize| match tiles {
            0 => Ok(None),
            tiles => self.product(frame, (group.positions, tiles, vectors)).map(Some),
        };
        let (leaf, rest_leaf) = (leaf(if whole > 0 { self.mr } else { 0 })?, leaf(rest)?);
        let ahead = Ahead::new(self.readers(), group.positions * self.steps(), vectors * self.isa.bytes());
        c.count(group.sums, 1, |c, sum| {
            let src = c.offset(inputs, sum, group.positions * self.inputs_bytes);
            let weights = c.offset(weights, sum, group.positions * position_weights);
            let start = c.offset(start, sum, 4 * self.channels[1]);
            let sums = c.offset(sums, sum, self.sums_bytes());
            let run = |c: &mut Code, group: Value, leaf: FuncRef| {
                let tile = c.mul_int(group, self.mr);
                let ahead = distance(c, ahead, group);
                let mut words = [frame.dst; FIXED_WORDS];
                words[Word::Pixels as usize] = c.offset(frame.tables[TILES], tile, 4);
                words[Word::Src as usize] = src;
                words[Word::Weights as usize] = weights;
                words[Word::Start as usize] = start;
                words[Word::Dst as usize] = c.offset(sums, tile, self.tile_sum_bytes());
                words[Word::Runs as usize] = frame.tables[RUNS];
                words[Word::Literals as usize] = frame.tables[LITERALS];
                words[Word::Ahead as usize] = ahead;
                call(c, leaf, &words);
            };
            if let Some(leaf) = leaf {
                c.count(whole, 1, |c, group| run(c, group, leaf));
            }
            if let Some(leaf) = rest_leaf {
                let group = c.int(whole);
                run(c, group, leaf);
            }
        });
        Ok(())
    }
}

/// The order in which an algorithm's positions are multiplied and its sums are kept: sums of equally many positions side
/// by side, those of the fewest first.
pub struct Order {
    /// Positions and sums in this order.
    positions: Vec<usize>,
    sums: Vec<usize>,
    /// How many sums have so many positions.
    groups: Vec<(usize, usize)>,
}

impl Order {
    /// `sum_of`: the sum that each position is added to.
    pub fn of(sum_of: &[usize], sums: usize) -> Order {
        let of_sum = |sum: usize| sum_of.iter().enumerate().filter(move |&(_, &s)| s == sum).map(|(p, _)| p);
        let mut by_depth: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        (0..sums).for_each(|sum| by_depth.entry(of_sum(sum).count()).or_default().push(sum));
        let groups = by_depth.iter().map(|(&depth, sums)| (sums.len(), depth)).collect();
        let sums: Vec<usize> = by_depth.into_values().flatten().collect();
        Order { positions: sums.iter().flat_map(|&sum| of_sum(sum)).collect(), sums, groups }
    }

    /// The place of every position.
    pub fn position_places(&self) -> Vec<usize> {
        places(&self.positions)
    }

    pub fn sum_places(&self) -> Vec<usize> {
        places(&self.sums)
    }

    /// `[position][..]`, brought into this order.
    pub fn positions<T: Copy>(&self, values: &[T]) -> Vec<T> {
        arranged(values, &self.positions)
    }

    pub fn sums<T: Copy>(&self, values: &[T]) -> Vec<T> {
        arranged(values, &self.sums)
    }

    /// The groups, of which `window` tells what one has: its positions' places, and how many a sum has.
    pub fn groups<E>(&self, mut window: impl FnMut(Range<usize>, usize) -> Result<Window, E>) -> Result<Vec<Group>, E> {
        let mut first = 0;
        let group = |&(sums, positions): &(usize, usize)| {
            let end = first + sums * positions;
            let window = window(first..end, positions)?;
            first = end;
            Ok(Group { sums, positions, window })
        };
        self.groups.iter().map(group).collect()
    }
}

fn arranged<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    let each = values.len() / order.len().max(1);
    order.iter().flat_map(|&i| &values[i * each..][..each]).copied().collect()
}

fn places(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &i)| places[i] = place);
    places
}
