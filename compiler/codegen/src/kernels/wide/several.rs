//! The inner kernel over several tiles.
//!
//! In: a [`Micro`], and the table of the first tile with the number of tiles ([`Word::Tiles`]). Out: a leaf function, which
//! overwrites its table.
//!
//! A dot product leaves units idle that additions, shifts and packing need, but the machine looks ahead by a few hundred
//! instructions only, fewer than a tile's epilogue has. So where a tile has steps enough the two are mixed: the sums of a
//! tile wait in the frame, and with every few steps of the next tile's first run, or with every short run, one pixel of them
//! is finished.

use hawqc_schedules::OVERLAP_STEPS;

use super::epilogue::{Held, Hold};
use super::micro::{FIXED_WORDS, Micro, ResultWord, Tile, TileCode, UNROLL, Word, begin_run};
use super::store::{Pixels, Vectors};
use crate::asm::{Asm, AsmError, Gpr, Mem};

/// The products that the epilogue of one pixel is put beside.
enum Portion {
    /// So many steps of the first run.
    Steps(usize),
    Run,
}

impl Micro<'_> {
    /// The code of two and more tiles of `mr` pixels by `nr` vectors.
    pub fn assemble_several(&self, mr: usize, nr: usize) -> Result<Vec<u8>, AsmError> {
        if let Some(portion) = self.portion(mr) {
            match self.asking(mr, nr, |ahead| self.overlapped(self.open(mr, nr, ahead), &portion)) {
                Err(AsmError::Registers { .. }) => {}
                done => return done,
            }
        }
        self.asking(mr, nr, |ahead| self.in_turn(self.open(mr, nr, ahead)))
    }

    /// None where a tile is not to be mixed with the epilogue of the tile before.
    fn portion(&self, mr: usize) -> Option<Portion> {
        if !self.is_dot() || self.runs * self.steps < OVERLAP_STEPS {
            return None;
        }
        // The steps of a spread are not parted.
        match self.steps / mr {
            steps if steps > 0 && self.inputs.spread.is_none() => Some(Portion::Steps(steps.min(UNROLL))),
            _ => (self.runs >= mr && self.steps <= UNROLL).then_some(Portion::Run),
        }
    }

    /// One tile after the other.
    fn in_turn(&self, code: TileCode) -> Result<Vec<u8>, AsmError> {
        let TileCode { mut asm, table, literals, tile } = code;
        let held = self.held_by_all(&mut asm, table, literals, &tile);
        asm.repeat_word_down(Mem::word(table, Word::Tiles as usize), |asm| {
            self.whole_tile(asm, table, literals, &tile, held.as_ref());
            self.next_inputs(asm, table, &tile);
            self.next_results(asm, table, tile.mr);
        });
        asm.finish()
    }

    /// The epilogue's constants in registers that no tile needs, if these suffice for all.
    fn held_by_all(&self, asm: &mut Asm, table: Gpr, literals: Gpr, tile: &Tile) -> Option<Held> {
        let hold = Hold::Vectors(tile.nr);
        let free = self.isa.registers().saturating_sub(tile.registers(self.epilogue.temporaries()));
        self.epilogue.holds_all(self.isa, hold, free).then(|| {
            let mut pointers = self.epilogue.pointers(asm, (table, FIXED_WORDS), literals);
            self.epilogue.hold(asm, &mut pointers, hold, free);
            pointers.held()
        })
    }

    /// The epilogue of each tile beside the products of the next.
    fn overlapped(&self, code: TileCode, portion: &Portion) -> Result<Vec<u8>, AsmError> {
        let TileCode { mut asm, table, tile, .. } = code;
        let Tile { mr, nr, .. } = tile;
        let waiting = Waiting { first: asm.frame_slots(mr * nr), pixel_bytes: nr * self.isa.bytes() };
        self.prefetch_results(&mut asm, table, 0..mr, nr);
        let runs = self.begin_runs(&mut asm, table, &tile);
        self.plain_runs(&mut asm, &tile, runs, self.runs);
        let tiles = Mem::word(table, Word::Tiles as usize);
        asm.decrement_word(tiles);
        asm.repeat_word_down(tiles, |asm| {
            self.order_channels(asm, table, &tile);
            waiting.put(asm, &tile);
            self.next_inputs(asm, table, &tile);
            let runs = self.begin_runs(asm, table, &tile);
            match portion {
                Portion::Steps(beside) => {
                    self.first_run(asm, table, &tile, (&waiting, *beside), runs);
                    self.plain_runs(asm, &tile, runs, self.runs - 1);
                }
                Portion::Run => {
                    waiting.every_pixel(asm, mr, |asm, sums| {
                        let run = |asm: &mut Asm| self.plain_run(asm, &tile, runs);
                        asm.beside(run, |asm| self.finish_pixel(asm, table, &tile, sums));
                    });
                    self.plain_runs(asm, &tile, runs, self.runs - mr);
                }
            }
        });
        self.order_channels(&mut asm, table, &tile);
        waiting.put(&mut asm, &tile);
        waiting.every_pixel(&mut asm, mr, |asm, sums| self.finish_pixel(asm, table, &tile, sums));
        asm.finish()
    }

    /// The words of inputs and weights move on to the next tile's.
    fn next_inputs(&self, asm: &mut Asm, table: Gpr, tile: &Tile) {
        asm.add_to_word(Mem::word(table, Word::Pixels as usize), 4 * tile.mr);
        if let Some((ahead, _)) = tile.ahead {
            asm.add_to_word(Mem::word(table, Word::Ahead as usize), ahead.distance()[1]);
        }
    }

    /// The words of results move on by `pixels` pixels.
    fn next_results(&self, asm: &mut Asm, table: Gpr, pixels: usize) {
        for ResultWord { word, pixel_bytes, .. } in self.result_words() {
            asm.add_to_word(Mem::word(table, word), pixels * pixel_bytes);
        }
    }

    /// Begins a tile; returns the runs' address.
    fn begin_runs(&self, asm: &mut Asm, table: Gpr, tile: &Tile) -> Gpr {
        self.begin(asm, table, tile);
        self.start(asm, table, tile);
        asm.argument(table, Word::Runs as usize)
    }

    fn plain_runs(&self, asm: &mut Asm, tile: &Tile, runs: Gpr, count: usize) {
        if count > 0 {
            asm.repeat(count, |asm| self.plain_run(asm, tile, runs));
        }
    }

    fn plain_run(&self, asm: &mut Asm, tile: &Tile, runs: Gpr) {
        begin_run(asm, tile, runs);
        self.steps(asm, tile, self.steps);
    }

    /// A tile's first run with the epilogue of the tile before, a pixel beside so many steps.
    fn first_run(&self, asm: &mut Asm, table: Gpr, tile: &Tile, (waiting, beside): (&Waiting, usize), runs: Gpr) {
        begin_run(asm, tile, runs);
        waiting.every_pixel(asm, tile.mr, |asm, sums| {
            asm.beside(|asm| self.steps(asm, tile, beside), |asm| self.finish_pixel(asm, table, tile, sums));
        });
        self.steps(asm, tile, self.steps - beside * tile.mr);
    }

    /// The epilogue of a pixel whose sums are at `sums`. The words of its results move on to the next pixel's.
    fn finish_pixel(&self, asm: &mut Asm, table: Gpr, tile: &Tile, sums: Mem) {
        let nr = tile.nr;
        self.prefetch_results(asm, table, tile.mr..tile.mr + 1, nr);
        let literals = asm.argument(table, Word::Literals as usize);
        let pointers = self.epilogue.pointers(asm, (table, FIXED_WORDS), literals);
        let to = asm.argument(table, Word::Dst as usize);
        let pixels = Pixels { dst: self.dst, to, literals };
        let load = |asm: &mut Asm, vector: usize| {
            let sum = asm.vec();
            asm.load(sum, Mem { disp: sums.disp + (vector * asm.isa.bytes()) as i32, ..sums });
            Some(sum)
        };
        pixels.finish_pixel(asm, self.epilogue, &pointers, Vectors { pixel: 0, first: 0, count: nr }, load);
        self.next_results(asm, table, 1);
    }
}

/// The sums of a tile in the frame, `[pixel][vector]`.
struct Waiting {
    first: Mem,
    pixel_bytes: usize,
}

impl Waiting {
    fn put(&self, asm: &mut Asm, tile: &Tile) {
        let mut to = self.first;
        for &acc in &tile.acc {
            asm.store(to, acc);
            to.disp += asm.isa.bytes() as i32;
        }
    }

    /// Runs `body` for each of `pixels` pixels with the place of its sums.
    fn every_pixel(&self, asm: &mut Asm, pixels: usize, body: impl FnOnce(&mut Asm, Mem)) {
        let offset = asm.gpr();
        asm.set(offset, 0);
        asm.repeat(pixels, |asm| {
            body(asm, Mem { index: Some(offset), ..self.first });
            asm.add_int(offset, self.pixel_bytes);
        });
    }
}
