//! Cells: the blocks of a source's rows and columns that one lane of a dot product multiplies.
//!
//! In: a window along one axis, and how many rows or columns a cell has. Out: where outputs begin, and which taps
//! meet what a cell holds. An output that begins in the second row or column of a cell is in another *phase* than
//! one that begins in the first: its taps meet other places of the cells.

/// A window along one axis, over cells of `cell` rows or columns, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellAxis {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub cell: usize,
}

impl CellAxis {
    /// Places of a cell that some output begins in; the first ones.
    pub fn phases(&self) -> usize {
        if self.stride.is_multiple_of(self.cell) { 1 } else { self.cell }
    }

    /// The cell and the phase of an output.
    pub fn begin(&self, output: usize) -> (usize, usize) {
        let at = output * self.stride;
        (at / self.cell, at % self.cell)
    }

    /// The tap that meets a place of a cell, which is counted from the one that the output begins in.
    pub fn tap(&self, phase: usize, cell: usize, place: usize) -> Option<usize> {
        let at = (cell * self.cell + place).checked_sub(phase)?;
        let tap = at / self.dilation;
        (at.is_multiple_of(self.dilation) && tap < self.kernel).then_some(tap)
    }

    /// The cells that taps of an output lie in, counted likewise.
    pub fn cells(&self, phase: usize) -> Vec<usize> {
        let mut cells: Vec<usize> = (0..self.kernel).map(|tap| (phase + tap * self.dilation) / self.cell).collect();
        cells.dedup();
        cells
    }

    /// The cells that taps of an output in any phase lie in.
    pub fn all_cells(&self) -> Vec<usize> {
        let mut cells: Vec<usize> = (0..self.phases()).flat_map(|phase| self.cells(phase)).collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    }

    /// Cells that the windows of `outputs` outputs from the first on span.
    pub fn extent(&self, outputs: usize) -> usize {
        ((outputs - 1) * self.stride + (self.kernel - 1) * self.dilation) / self.cell + 1
    }
}
