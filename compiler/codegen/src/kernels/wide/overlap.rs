//! The inner kernel over several tiles, the epilogue of each beside the products of the next.
//!
//! In: a [`Micro`], and the table of the first tile with the number of those that follow it ([`Word::More`]). Out: a leaf
//! function, which overwrites its table.
//!
//! A dot product leaves units idle that additions, shifts and packing need, but the machine looks ahead by a few hundred
//! instructions only, fewer than a tile's epilogue has. So the two are mixed here: the sums of a tile wait in the frame,
//! and with every few steps of the next tile's first run one pixel of them is finished.

use super::micro::{Ahead, FIXED_WORDS, Micro, Tile, UNROLL, Word, begin_run};
use super::store::store;
use crate::asm::{Asm, AsmError, Gpr, Mem};

/// Steps of a tile from which on they have time for an epilogue; with fewer, storing the sums costs more than is hidden.
const LEAST_STEPS: usize = 16;

impl Micro<'_> {
    /// The code for tiles of `mr` pixels by `nr` vectors; none where it would not be faster than one tile at a time, or
    /// needs more registers than there are.
    pub fn assemble_overlapped(&self, mr: usize, nr: usize) -> Result<Option<Vec<u8>>, AsmError> {
        if !self.is_dot() || self.steps < mr || self.runs * self.steps < LEAST_STEPS {
            return Ok(None);
        }
        let ahead = Ahead::new(self.readers, self.runs * self.steps, self.step_bytes(nr));
        for ahead in [ahead, None] {
            match self.overlapped(mr, nr, ahead) {
                // As in [`Micro::assemble`].
                Err(AsmError::Registers { .. }) => {}
                done => return done.map(Some),
            }
        }
        Ok(None)
    }

    fn overlapped(&self, mr: usize, nr: usize, ahead: Option<Ahead>) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        asm.set_even_mask();
        let literals = asm.argument(table, Word::Literals as usize);
        let mut tile = self.tile(&mut asm, literals, mr, nr);
        tile.ahead = ahead.map(|ahead| (ahead, asm.gpr()));
        let waiting = Waiting { first: asm.frame_slots(mr * nr), pixel_bytes: nr * self.isa.bytes() };
        let runs = self.begin_with_results(&mut asm, table, &tile, 0);
        asm.repeat(self.runs, |asm| self.run(asm, &tile, runs));
        asm.repeat_word_down(Mem::word(table, Word::More as usize), |asm| {
            waiting.put(asm, &tile);
            asm.add_to_word(Mem::word(table, Word::Pixels as usize), 4 * mr);
            if let Some((ahead, _)) = tile.ahead {
                asm.add_to_word(Mem::word(table, Word::Ahead as usize), ahead.distance()[1]);
            }
            // The words still tell where the results of the tile before go.
            let runs = self.begin_with_results(asm, table, &tile, mr);
            self.first_run(asm, table, &tile, &waiting, runs);
            if self.runs > 1 {
                asm.repeat(self.runs - 1, |asm| self.run(asm, &tile, runs));
            }
        });
        waiting.put(&mut asm, &tile);
        waiting.every_pixel(&mut asm, mr, |asm, sums| self.finish_pixel(asm, table, nr, sums));
        asm.finish()
    }

    /// Begins a tile whose results are `pixels` pixels behind what the words say; returns the runs' address.
    fn begin_with_results(&self, asm: &mut Asm, table: Gpr, tile: &Tile, pixels: usize) -> Gpr {
        self.begin(asm, table, tile);
        self.start(asm, table, tile);
        self.prefetch_results(asm, table, pixels..pixels + tile.mr, tile.nr);
        asm.argument(table, Word::Runs as usize)
    }

    fn run(&self, asm: &mut Asm, tile: &Tile, runs: Gpr) {
        begin_run(asm, tile, runs);
        self.steps(asm, tile, self.steps);
    }

    /// A tile's first run with the epilogue of the tile before.
    fn first_run(&self, asm: &mut Asm, table: Gpr, tile: &Tile, waiting: &Waiting, runs: Gpr) {
        begin_run(asm, tile, runs);
        let beside = (self.steps / tile.mr).min(UNROLL);
        waiting.every_pixel(asm, tile.mr, |asm, sums| {
            asm.beside(|asm| self.steps(asm, tile, beside), |asm| self.finish_pixel(asm, table, tile.nr, sums));
        });
        self.steps(asm, tile, self.steps - beside * tile.mr);
    }

    /// The epilogue of a pixel whose sums are at `sums`. The words of its results move on to the next pixel's.
    fn finish_pixel(&self, asm: &mut Asm, table: Gpr, nr: usize, sums: Mem) {
        let literals = asm.argument(table, Word::Literals as usize);
        let pointers = self.epilogue.pointers(asm, (table, FIXED_WORDS), literals);
        let results = self.epilogue.emit_loading(asm, &pointers, nr, sums);
        let dst = asm.argument(table, Word::Dst as usize);
        store(asm, self.dst, Mem::at(dst, 0), &results, (self.epilogue, literals));
        for (word, bytes) in self.result_words() {
            asm.add_to_word(Mem::word(table, word), self.channels * bytes);
        }
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
