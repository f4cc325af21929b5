//! Members of the family: which transforms, on which lanes, for a convolution.

use std::fmt;

use super::filter::Filter;
use super::nested::Winograd2d;

/// Taps and stride along height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub taps: [usize; 2],
    pub stride: [usize; 2],
}

/// What transformed inputs and weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Inputs without sign (an offset makes them so), weights with sign.
    I8,
    /// Both with sign.
    I16,
}

impl Lane {
    pub fn bits(self) -> u32 {
        match self {
            Lane::I8 => 8,
            Lane::I16 => 16,
        }
    }
}

/// An algorithm for a convolution, and the lanes it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub algorithm: Winograd2d,
    pub lane: Lane,
}

impl Member {
    /// Tiles of `outputs`, at stride 1 with the taps of a dimension split into `runs`; no runs leave
    /// them whole. `None` where a transform would need too many points.
    pub fn new(kernel: Kernel, outputs: [usize; 2], runs: [&[usize]; 2], lane: Lane) -> Option<Member> {
        let filter = |d: usize| Filter::new(outputs[d], kernel.taps[d], kernel.stride[d], runs[d]);
        Some(Member { algorithm: Winograd2d { rows: filter(0)?, cols: filter(1)? }, lane })
    }

    /// The member of `kernel` that prints as `text`.
    pub fn find(kernel: Kernel, text: &str) -> Option<Member> {
        members(kernel).into_iter().find(|member| member.to_string() == text)
    }

    pub fn kernel(&self) -> Kernel {
        let filters = [&self.algorithm.rows, &self.algorithm.cols];
        Kernel { taps: filters.map(|f| f.taps), stride: filters.map(|f| f.stride) }
    }

    /// Outputs of a tile, along height and width.
    pub fn outputs(&self) -> [usize; 2] {
        self.algorithm.outputs()
    }

    /// Multiplications of a tile, per input and output channel.
    pub fn multiplications(&self) -> usize {
        self.algorithm.positions()
    }

    /// Multiplications of a tile without transforms.
    pub fn direct_multiplications(&self) -> usize {
        self.outputs().into_iter().chain(self.kernel().taps).product()
    }
}

/// Tiles and runs worth trying along one dimension.
fn choices(taps: usize, stride: usize) -> &'static [(usize, &'static [usize])] {
    match (taps, stride) {
        (1, _) => &[(1, &[])],
        (2, 1) | (3, 2) => &[(2, &[]), (3, &[]), (4, &[])],
        (3, 1) => &[(2, &[]), (3, &[]), (4, &[]), (6, &[])],
        (5, 1) => &[(2, &[]), (4, &[]), (2, &[3, 2]), (3, &[3, 2]), (4, &[3, 2])],
        (7, 1) => &[(2, &[]), (2, &[3, 3, 1]), (4, &[3, 3, 1]), (2, &[4, 3]), (3, &[4, 3])],
        _ => &[],
    }
}

/// The members worth trying for a kernel, in lanes of 8 and 16 bits, those that multiply least first
/// (16 bits counting double). Empty where the family has nothing to offer.
pub fn members(kernel: Kernel) -> Vec<Member> {
    let [rows, cols] = [0, 1].map(|d| choices(kernel.taps[d], kernel.stride[d]));
    let pairs = rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col)));
    let alike = pairs.filter(|((mh, split_h), (mw, split_w))| {
        let one_dimension = rows.len() == 1 || cols.len() == 1;
        one_dimension || (mh.abs_diff(*mw) <= 2 && split_h == split_w)
    });
    let lanes = alike.flat_map(|pair| [Lane::I8, Lane::I16].map(|lane| (pair, lane)));
    let all = lanes.filter_map(|((row, col), lane)| Member::new(kernel, [row.0, col.0], [row.1, col.1], lane));
    let mut all: Vec<Member> =
        all.filter(|member| member.multiplications() < member.direct_multiplications()).collect();
    // The cost per output; all tiles divide 144 outputs.
    all.sort_by_key(|member| {
        let bytes = member.lane.bits() as usize / 8;
        144 * bytes * member.multiplications() / member.outputs().into_iter().product::<usize>()
    });
    all
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.bits())
    }
}

/// `F(2x2,3x3)/i8`; with stride 2 `F(2x2,3x3:2x2)/i8`; with runs `F(1x2,1x(3+3+1))/i8`.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mh, mw] = self.outputs();
        let taps = |filter: &Filter| {
            let runs: Vec<String> = filter.pieces.iter().map(|piece| piece.transform.r.to_string()).collect();
            if filter.stride > 1 || runs.len() == 1 { filter.taps.to_string() } else { format!("({})", runs.join("+")) }
        };
        write!(f, "F({mh}x{mw},{}x{}", taps(&self.algorithm.rows), taps(&self.algorithm.cols))?;
        let [sh, sw] = self.kernel().stride;
        if (sh, sw) != (1, 1) {
            write!(f, ":{sh}x{sw}")?;
        }
        write!(f, ")/{}", self.lane)
    }
}
