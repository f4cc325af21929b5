//! The inner kernel: a register tile of pixels by vectors of output channels, over all taps and input
//! channels, with the epilogue on the sums in registers.
//!
//! In: a [`Micro`]. Out: a leaf function over a table of words ([`Word`]). The tile's pixels are consecutive in
//! the result; where their inputs lie is told by an offset for each. Inputs are read in *runs* of consecutive
//! bytes (a row of taps), an offset for each run; weights as `[run][step][vector]`.
//!
//! A *step* is four bytes of every pixel, repeated in all lanes and multiplied with one vector of weights for
//! each vector of output channels; vectors of other groups have other inputs ([`Inputs`]). `Sum16` adds the 16-bit pairs
//! of a window of steps before widening; its 32-bit sums wait in the frame.

use std::ops::Range;

use hawqc_schedules::{Multiply, Spread};

use super::epilogue::{Held, Hold, WideEpilogue};
use super::store::{Pixels, Vectors};
use super::window::Window;
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, Src, V, Widen};
use crate::kernels::Dst;

/// Words of the argument's table; the epilogue's operands and tables follow.
#[derive(Clone, Copy)]
pub enum Word {
    /// Byte offsets of the tile's pixels (i32).
    Pixels,
    Src,
    Weights,
    Start,
    Dst,
    /// Byte offsets of the runs (i32).
    Runs,
    Literals,
    /// Bytes from the weights to what is asked for while they are read ([`Ahead`]).
    Ahead,
    /// Number of tiles ([`Micro::assemble_several`]).
    Tiles,
}

/// Words before the epilogue's.
pub const FIXED_WORDS: usize = 9;

/// How the weights that a kernel reads become operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// They are operands.
    Direct,
    /// i8 to i16.
    Extend,
    /// Two vectors in one: low halves of the bytes, then high halves, each 8 too large.
    Nibbles,
}

/// Which inputs the vectors of a tile are multiplied with.
#[derive(Clone, Copy)]
pub struct Inputs {
    /// Vectors side by side with the same inputs.
    pub section: usize,
    /// Bytes from these inputs to those of the next section.
    pub section_bytes: usize,
    /// How the lanes of a section of one vector are given inputs, and where among the literals the order lies that
    /// brings its sums into the order of channels. A run's steps are then the spread's.
    pub spread: Option<(Spread, usize)>,
}

impl Inputs {
    /// All vectors have the same.
    pub const SHARED: Inputs = Inputs { section: usize::MAX, section_bytes: 0, spread: None };
}

/// What inner kernels of one convolution have in common.
pub struct Micro<'a> {
    pub isa: Isa,
    pub multiply: Multiply,
    /// Whether one instruction multiplies pairs of 16 bits and adds them to the sums.
    pub dot: bool,
    pub runs: usize,
    /// Steps of a run.
    pub steps: usize,
    pub load: Load,
    pub inputs: Inputs,
    pub window: Window,
    /// Tiles that read the same weights, one after the other.
    pub readers: usize,
    pub epilogue: &'a WideEpilogue,
    pub dst: Dst,
    /// Output channels, from one pixel of the epilogue's operands to the next.
    pub channels: usize,
}

/// A word that leads to values of the tile's pixels and channels.
pub(super) struct ResultWord {
    pub word: usize,
    pub elem_bytes: usize,
    /// From one pixel to the next.
    pub pixel_bytes: usize,
}

/// How far ahead weights are asked for that are read once; hardware stops at the ends of pages.
const PREFETCH_BYTES: usize = 4096;
const CACHE_LINE: usize = 64;
/// Steps that the inner loop holds.
pub(super) const UNROLL: usize = 4;

/// How tiles ask for the weights that follow theirs: each for its share of every round of the inner loop, so that memory
/// is asked evenly. Where many tiles read the same weights they come from a near cache anyway.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Cache lines of a tile's share.
    lines: usize,
    /// From these weights to those that follow.
    stream_bytes: usize,
}

impl Ahead {
    /// For weights of `steps` steps of `step_bytes`. None where a tile's share would be less than a line.
    pub fn new(readers: usize, steps: usize, step_bytes: usize) -> Option<Ahead> {
        let lines = UNROLL * step_bytes / CACHE_LINE;
        (readers <= lines).then(|| Ahead { lines: lines.div_ceil(readers), stream_bytes: steps * step_bytes })
    }

    /// The word [`Word::Ahead`] of the first of the tiles, and what a tile's is more than the one's before.
    pub fn distance(&self) -> [usize; 2] {
        [self.stream_bytes, self.lines * CACHE_LINE]
    }
}

/// A function under construction with the registers of its tile.
pub(super) struct TileCode {
    pub asm: Asm,
    pub table: Gpr,
    pub literals: Gpr,
    pub tile: Tile,
}

pub(super) struct Tile {
    pub mr: usize,
    pub nr: usize,
    /// Sums, `[pixel][vector]`.
    pub acc: Vec<V>,
    pixels: Vec<Gpr>,
    offset: Gpr,
    weights: Gpr,
    input: V,
    products: Vec<V>,
    /// Registers for the weights of a step; empty where they are read as operands.
    held: Vec<V>,
    /// `Sum32`: ones.
    ones: Option<V>,
    /// `Nibbles`: the mask of a low half, and the excess.
    nibble: Option<[V; 2]>,
    pub ahead: Option<(Ahead, Gpr)>,
}

impl Tile {
    /// Registers that its products or its epilogue, which needs `temporaries` beside the sums, take.
    pub fn registers(&self, temporaries: usize) -> usize {
        let constants = usize::from(self.ones.is_some()) + if self.nibble.is_some() { 2 } else { 0 };
        self.acc.len() + temporaries.max(1 + self.products.len() + self.held.len() + constants)
    }
}

impl Micro<'_> {
    /// Registers of a tile that holds a step's weights: sums, weights, an input, a product in flight, constants.
    pub fn registers_holding_weights(multiply: Multiply, load: Load, mr: usize, nr: usize) -> usize {
        let in_flight = usize::from(multiply != Multiply::Dot && nr > 1);
        let ones = usize::from(multiply == Multiply::Sum32);
        let nibble = if load == Load::Nibbles { 2 } else { 0 };
        mr * nr + nr + 1 + in_flight + ones + nibble
    }

    /// The code of a tile of `mr` pixels by `nr` vectors.
    pub fn assemble(&self, mr: usize, nr: usize) -> Result<Vec<u8>, AsmError> {
        self.asking(mr, nr, |ahead| {
            let TileCode { mut asm, table, literals, tile } = self.open(mr, nr, ahead);
            self.whole_tile(&mut asm, table, literals, &tile, None);
            asm.finish()
        })
    }

    /// `code` with tiles that ask for weights ahead where that is useful and registers allow.
    pub(super) fn asking(
        &self,
        mr: usize,
        nr: usize,
        code: impl Fn(Option<Ahead>) -> Result<Vec<u8>, AsmError>,
    ) -> Result<Vec<u8>, AsmError> {
        // A tile of one pixel has its own way.
        let ahead = Ahead::new(self.readers, self.runs * self.steps, self.step_bytes(nr)).filter(|_| mr > 1);
        match code(ahead) {
            // A large tile may leave no register for the distance.
            Err(AsmError::Registers { .. }) if ahead.is_some() => code(None),
            done => done,
        }
    }

    /// A function that has loaded what tiles share.
    pub(super) fn open(&self, mr: usize, nr: usize, ahead: Option<Ahead>) -> TileCode {
        let (mut asm, table) = Asm::new(self.isa);
        asm.set_even_mask();
        let literals = asm.argument(table, Word::Literals as usize);
        let mut tile = self.tile(&mut asm, mr, nr);
        tile.ahead = ahead.map(|ahead| (ahead, asm.gpr()));
        TileCode { asm, table, literals, tile }
    }

    /// A tile from its addresses to its results, the epilogue's constants held if they are given.
    pub(super) fn whole_tile(&self, asm: &mut Asm, table: Gpr, literals: Gpr, tile: &Tile, held: Option<&Held>) {
        self.begin(asm, table, tile);
        let slots = self.start(asm, table, tile);
        self.prefetch_results(asm, table, 0..tile.mr, tile.nr);
        let runs = asm.argument(table, Word::Runs as usize);
        asm.repeat(self.runs, |asm| {
            begin_run(asm, tile, runs);
            self.run(asm, tile, literals, &slots);
        });
        if self.multiply == Multiply::Sum16 {
            self.last_widening(asm, table, tile, literals, &slots);
        }
        self.order_channels(asm, table, tile);
        self.finish(asm, table, tile, held);
    }

    /// The products of a run, and its sums of 16 bits widened where they must be.
    fn run(&self, asm: &mut Asm, tile: &Tile, literals: Gpr, slots: &[Mem]) {
        match (self.multiply, self.window) {
            (Multiply::Sum16, Window::Steps(window)) => {
                let (whole, rest) = (self.steps / window, self.steps % window);
                if whole > 0 {
                    asm.repeat(whole, |asm| {
                        self.steps(asm, tile, window);
                        self.widen(asm, tile, literals, slots);
                    });
                }
                if rest > 0 {
                    self.steps(asm, tile, rest);
                    self.widen(asm, tile, literals, slots);
                }
            }
            (Multiply::Sum16, Window::Run) => {
                self.steps(asm, tile, self.steps);
                self.widen(asm, tile, literals, slots);
            }
            _ => self.steps(asm, tile, self.steps),
        }
    }

    /// Brings sums into the order of channels.
    pub(super) fn order_channels(&self, asm: &mut Asm, table: Gpr, tile: &Tile) {
        if let Some((_, order)) = self.inputs.spread {
            let order = Mem::at(asm.argument(table, Word::Literals as usize), order);
            asm.load(tile.input, order);
            tile.acc.iter().for_each(|&acc| asm.binary(Binary::Permute, acc, tile.input, acc));
        }
    }

    /// The epilogue on a tile's sums.
    fn finish(&self, asm: &mut Asm, table: Gpr, tile: &Tile, held: Option<&Held>) {
        let literals = asm.argument(table, Word::Literals as usize);
        let dst = asm.argument(table, Word::Dst as usize);
        let mut pointers = self.epilogue.pointers(asm, (table, FIXED_WORDS), literals);
        match held {
            Some(held) => pointers.keep(held),
            None => {
                let free = self.isa.registers().saturating_sub(tile.acc.len() + self.epilogue.temporaries());
                self.epilogue.hold(asm, &mut pointers, Hold::Uniform, free);
            }
        }
        let pixels = Pixels { dst: self.dst, to: dst, literals };
        for (pixel, sums) in tile.acc.chunks(tile.nr).enumerate() {
            let vectors = Vectors { pixel, first: 0, count: sums.len() };
            pixels.finish_pixel(asm, self.epilogue, &pointers, vectors, |_, vector| Some(sums[vector]));
        }
    }

    /// Asks for what the epilogue will touch. From one pixel to the next it is too far for the hardware to guess.
    pub(super) fn prefetch_results(&self, asm: &mut Asm, table: Gpr, pixels: Range<usize>, nr: usize) {
        for ResultWord { word, elem_bytes, pixel_bytes } in self.result_words() {
            let first = asm.argument(table, word);
            for pixel in pixels.clone() {
                let of_pixel = (0..nr * self.isa.lanes() * elem_bytes).step_by(CACHE_LINE);
                of_pixel.for_each(|at| asm.prefetch(Mem::at(first, pixel * pixel_bytes + at)));
            }
        }
    }

    /// The words that lead to results and to what is combined with them.
    pub(super) fn result_words(&self) -> Vec<ResultWord> {
        let operand = |(i, elem_bytes): (usize, usize)| ResultWord {
            word: FIXED_WORDS + i,
            elem_bytes,
            pixel_bytes: self.channels * elem_bytes,
        };
        let dst = ResultWord {
            word: Word::Dst as usize,
            elem_bytes: self.dst.elem.bytes(),
            pixel_bytes: self.dst.pixel_bytes(),
        };
        self.epilogue.operand_bytes().into_iter().enumerate().map(operand).chain([dst]).collect()
    }

    /// Whether one instruction forms and sums products.
    pub(super) fn is_dot(&self) -> bool {
        self.multiply == Multiply::Dot || self.multiply == Multiply::I16 && self.dot
    }

    fn tile(&self, asm: &mut Asm, mr: usize, nr: usize) -> Tile {
        let acc = asm.vecs(mr * nr);
        let pixels = (0..mr).map(|_| asm.gpr()).collect();
        let (weights, offset, input) = (asm.gpr(), asm.gpr(), asm.vec());
        let ones = (self.multiply == Multiply::Sum32).then(|| asm.vec());
        let nibble = (self.load == Load::Nibbles).then(|| [asm.vec(), asm.vec()]);
        let needed = Micro::registers_holding_weights(self.multiply, self.load, mr, nr);
        let holds = self.load != Load::Direct || mr > 1 && needed <= self.isa.registers();
        let held = if holds { asm.vecs(nr) } else { Vec::new() };
        // All products of a pixel but the last are in flight at once, as far as registers allow.
        let taken = needed - usize::from(nr > 1) - if holds { 0 } else { nr };
        let in_flight = if self.multiply == Multiply::Dot { 0 } else { nr - 1 };
        let products = asm.vecs(in_flight.min(self.isa.registers().saturating_sub(taken).max(1)));
        Tile { mr, nr, acc, pixels, offset, weights, input, products, held, ones, nibble, ahead: None }
    }

    /// Addresses of a tile's inputs and weights, and the constants of its products, whose registers its epilogue may need.
    pub(super) fn begin(&self, asm: &mut Asm, table: Gpr, tile: &Tile) {
        let src = asm.argument(table, Word::Src as usize);
        let offsets = asm.argument(table, Word::Pixels as usize);
        for (p, &pixel) in tile.pixels.iter().enumerate() {
            asm.load_int(pixel, Mem::at(offsets, 4 * p));
            asm.add(pixel, src);
        }
        asm.reload_word(tile.weights, Mem::word(table, Word::Weights as usize));
        let literals = asm.argument(table, Word::Literals as usize);
        if let Some(ones) = tile.ones {
            asm.load(ones, Mem::at(literals, 0));
        }
        if let Some([mask, excess]) = tile.nibble {
            asm.load(mask, Mem::at(literals, self.epilogue.nibble_mask(self.isa)));
            asm.load(excess, Mem::at(literals, self.epilogue.nibble_excess(self.isa)));
        }
        if let Some((_, distance)) = tile.ahead {
            asm.reload_word(distance, Mem::word(table, Word::Ahead as usize));
        }
    }

    /// Bytes of the weights of a step, as they are read.
    pub(super) fn step_bytes(&self, nr: usize) -> usize {
        let operands = nr * self.isa.bytes();
        if self.load == Load::Direct { operands } else { operands / 2 }
    }

    /// Initial sums; the frame's places for 32-bit sums where 16-bit ones are widened more than once.
    pub(super) fn start(&self, asm: &mut Asm, table: Gpr, tile: &Tile) -> Vec<Mem> {
        let start = asm.argument(table, Word::Start as usize);
        let at = |v: usize| Mem::at(start, v * self.isa.bytes());
        if self.multiply != Multiply::Sum16 {
            let (first, others) = tile.acc.split_at(tile.nr);
            first.iter().enumerate().for_each(|(v, &acc)| asm.load(acc, at(v)));
            others.iter().zip(first.iter().cycle()).for_each(|(&acc, &start)| asm.copy(acc, start));
            return Vec::new();
        }
        let mut slots = Vec::new();
        if self.window != Window::All {
            for index in 0..tile.acc.len() {
                let slot = asm.frame_slot();
                asm.load(tile.input, at(index % tile.nr));
                asm.store(slot, tile.input);
                slots.push(slot);
            }
        }
        tile.acc.iter().for_each(|&acc| asm.zero(acc));
        slots
    }

    /// `count` steps, the offset and the weights' address advancing.
    pub(super) fn steps(&self, asm: &mut Asm, tile: &Tile, count: usize) {
        let (whole, rest) = (count / UNROLL, count % UNROLL);
        let block = |asm: &mut Asm, steps: usize| {
            for step in 0..steps {
                self.step(asm, tile, step);
            }
            if tile.mr == 1 {
                let bytes = steps * self.step_bytes(tile.nr);
                (0..bytes).step_by(CACHE_LINE).for_each(|at| asm.prefetch(Mem::at(tile.weights, PREFETCH_BYTES + at)));
            }
            if let Some((ahead, distance)) = tile.ahead {
                let line = |line: usize| Mem::indexed(tile.weights, distance, line * CACHE_LINE);
                (0..ahead.lines).for_each(|i| asm.prefetch_second(line(i)));
            }
            asm.add_int(tile.offset, 4 * steps);
            asm.add_int(tile.weights, steps * self.step_bytes(tile.nr));
        };
        if whole > 0 {
            asm.repeat(whole, |asm| block(asm, UNROLL));
        }
        if rest > 0 {
            block(asm, rest);
        }
    }

    fn step(&self, asm: &mut Asm, tile: &Tile, step: usize) {
        let at = step * self.step_bytes(tile.nr);
        self.load_weights(asm, tile, at);
        let section = self.inputs.section.min(tile.nr);
        for (p, first) in (0..tile.mr).flat_map(|p| (0..tile.nr).step_by(section).map(move |first| (p, first))) {
            self.load_input(asm, tile, p, first / section, step);
            let acc = &tile.acc[p * tile.nr..][..tile.nr];
            // Products first, then sums: an order that leaves no unit waiting.
            let in_flight = tile.products.len();
            let (mut next, end) = (first, first + section);
            while next < end {
                let first = next;
                // The input is needed until the last product, which takes its place.
                next = if in_flight == 0 || end - first <= in_flight + 1 { end } else { first + in_flight };
                let group = first..next;
                let product = |v: usize| match tile.products.get(v - first) {
                    Some(&p) if v + 1 < end => p,
                    _ => tile.input,
                };
                for v in group.clone() {
                    let weights = match tile.held.get(v) {
                        Some(&held) => Src::Reg(held),
                        None => Src::Mem(Mem::at(tile.weights, at + v * self.isa.bytes())),
                    };
                    match self.multiply {
                        Multiply::I16 if self.dot => asm.dot_i16(acc[v], tile.input, weights),
                        Multiply::I16 => asm.binary(Binary::Maddwd, product(v), tile.input, weights),
                        Multiply::Sum16 | Multiply::Sum32 => {
                            asm.binary(Binary::Maddubs, product(v), tile.input, weights);
                        }
                        Multiply::Dot => asm.dot_u8i8(acc[v], tile.input, weights),
                    }
                }
                if let Some(ones) = tile.ones {
                    group.clone().for_each(|v| asm.binary(Binary::Maddwd, product(v), product(v), ones));
                }
                let sum = match self.multiply {
                    Multiply::Dot => continue,
                    Multiply::I16 if self.dot => continue,
                    Multiply::Sum16 => Binary::AddI16,
                    Multiply::I16 | Multiply::Sum32 => Binary::AddI32,
                };
                group.for_each(|v| asm.binary(sum, acc[v], acc[v], product(v)));
            }
        }
    }

    /// The inputs of a step of a pixel, for the vectors of a section.
    fn load_input(&self, asm: &mut Asm, tile: &Tile, pixel: usize, section: usize, step: usize) {
        let at =
            |disp: usize| Mem::indexed(tile.pixels[pixel], tile.offset, section * self.inputs.section_bytes + disp);
        let Some((Spread { dwords, steps }, _)) = self.inputs.spread else {
            return asm.broadcast_i32(tile.input, at(4 * step));
        };
        asm.broadcast(tile.input, at(0), dwords);
        if !step.is_multiple_of(steps) {
            asm.exchange(tile.input, step % steps);
        }
    }

    fn load_weights(&self, asm: &mut Asm, tile: &Tile, at: usize) {
        let bytes = self.isa.bytes();
        match self.load {
            Load::Direct => {
                for (v, &held) in tile.held.iter().enumerate() {
                    asm.load(held, Mem::at(tile.weights, at + v * bytes));
                }
            }
            Load::Extend => {
                for (v, &held) in tile.held.iter().enumerate() {
                    asm.load_widened(Widen::I8ToI16, held, Mem::at(tile.weights, at + v * bytes / 2));
                }
            }
            Load::Nibbles => {
                let Some(constants) = tile.nibble else { return };
                for (pair, held) in tile.held.chunks(2).enumerate() {
                    asm.load(held[0], Mem::at(tile.weights, at + pair * bytes));
                    unpack_nibbles(asm, held[0], held[0], held[1], constants);
                }
            }
        }
    }

    /// Adds the 16-bit sums to those in the frame and clears them.
    fn widen(&self, asm: &mut Asm, tile: &Tile, literals: Gpr, slots: &[Mem]) {
        for (&acc, &slot) in tile.acc.iter().zip(slots) {
            asm.binary(Binary::Maddwd, acc, acc, Mem::at(literals, 0));
            asm.binary(Binary::AddI32, acc, acc, slot);
            asm.store(slot, acc);
            asm.zero(acc);
        }
    }

    fn last_widening(&self, asm: &mut Asm, table: Gpr, tile: &Tile, literals: Gpr, slots: &[Mem]) {
        if self.window != Window::All {
            for (&acc, &slot) in tile.acc.iter().zip(slots) {
                asm.load(acc, slot);
            }
            return;
        }
        let start = asm.argument(table, Word::Start as usize);
        for (index, &acc) in tile.acc.iter().enumerate() {
            asm.binary(Binary::Maddwd, acc, acc, Mem::at(literals, 0));
            asm.binary(Binary::AddI32, acc, acc, Mem::at(start, index % tile.nr * self.isa.bytes()));
        }
    }
}

/// The offset of the next run.
pub(super) fn begin_run(asm: &mut Asm, tile: &Tile, runs: Gpr) {
    asm.load_int(tile.offset, Mem::at(runs, 0));
    asm.add_int(runs, 4);
}

/// The two vectors of i8 in `packed` ([`Load::Nibbles`]); `low` may be `packed`.
fn unpack_nibbles(asm: &mut Asm, packed: V, low: V, high: V, [mask, excess]: [V; 2]) {
    asm.shift(Shift::RightU16, high, packed, 4);
    asm.binary(Binary::And, low, packed, mask);
    asm.binary(Binary::And, high, high, mask);
    asm.binary(Binary::SubI8, low, low, excess);
    asm.binary(Binary::SubI8, high, high, excess);
}

/// A leaf function that turns packed weights into operands once for many tiles. Its table: where from, where
/// to, the number of pairs of vectors, the literals.
pub fn assemble_expand(isa: Isa, load: Load, epilogue: &WideEpilogue) -> Result<Vec<u8>, AsmError> {
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    let [from, to, pairs, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
    let [low, high] = [a.vec(), a.vec()];
    let bytes = isa.bytes();
    let constants = [a.vec(), a.vec()];
    if load == Load::Nibbles {
        a.load(constants[0], Mem::at(literals, epilogue.nibble_mask(isa)));
        a.load(constants[1], Mem::at(literals, epilogue.nibble_excess(isa)));
    }
    a.repeat_down(pairs, |a| {
        if load == Load::Nibbles {
            a.load(low, Mem::at(from, 0));
            unpack_nibbles(a, low, low, high, constants);
        } else {
            a.load_widened(Widen::I8ToI16, low, Mem::at(from, 0));
            a.load_widened(Widen::I8ToI16, high, Mem::at(from, bytes / 2));
        }
        a.store(Mem::at(to, 0), low);
        a.store(Mem::at(to, bytes), high);
        a.add_int(from, bytes);
        a.add_int(to, 2 * bytes);
    });
    asm.finish()
}
