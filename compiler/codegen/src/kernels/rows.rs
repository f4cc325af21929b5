//! Kernels that go through the result pixel by pixel, a chunk of channels at a time.

use cranelift_codegen::ir::Value;
use hawqc_schedules::TASK_WORK;

use super::Frame;
use super::emit::{CHUNK, Code};
use super::epilogue::Site;
use crate::error::Unsupported;

/// A result of `pixels` pixels of `channels` channels each, next to each other in memory.
#[derive(Clone, Copy)]
pub struct Rows {
    pub pixels: usize,
    pub channels: usize,
    /// Pixels of an image, for constants indexed by pixel.
    pub image: usize,
    /// Operations for each element, which decides how the work is split.
    pub cost: usize,
}

impl Rows {
    /// Pixels of a unit of work.
    fn block(&self) -> usize {
        let wanted = (TASK_WORK / 4).div_ceil(self.channels * self.cost);
        wanted.clamp(1, self.pixels)
    }

    pub fn units(&self) -> usize {
        self.pixels.div_ceil(self.block())
    }

    pub fn work(&self) -> u64 {
        (self.pixels * self.channels) as u64 * self.cost as u64 / 4
    }

    /// Emits `chunk(pixel of the batch, site)` for every chunk of this task.
    pub fn emit(
        &self,
        c: &mut Code,
        frame: &Frame,
        per_pixel: bool,
        chunk: impl Fn(&mut Code, Value, Site) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        let one = c.int(1);
        let mut outcome = Ok(());
        frame.units(c, |c, unit| {
            let first = c.mul_int(unit, self.block());
            let end = c.add_int(first, self.block());
            let end = c.min_int(end, self.pixels);
            c.range(first, end, one, |c, pixel| {
                let in_image = if per_pixel { c.div_rem(pixel, self.image).1 } else { pixel };
                let mut run = |c: &mut Code, channel: Value, lanes: usize| {
                    let element = c.offset(channel, pixel, self.channels);
                    let result = chunk(c, pixel, Site { element, channel, pixel: in_image, lanes });
                    outcome = std::mem::replace(&mut outcome, Ok(())).and(result);
                };
                let whole = self.channels / CHUNK * CHUNK;
                if whole > 0 {
                    c.count(whole, CHUNK, |c, channel| run(c, channel, CHUNK));
                }
                if self.channels > whole {
                    let channel = c.int(whole);
                    run(c, channel, self.channels - whole);
                }
            });
        });
        outcome
    }
}
