//! Members of the family: which transforms, on which lanes, for a convolution.
//!
//! # Parts
//!
//! Along one dimension a convolution `y_i = sum_t w_t x_{s i + t}` of stride `s` is the sum of its `s`
//! phases: with `t = f + s k`, `y_i = sum_f sum_k w_{f + s k} X_{i+k}` where `X_a = x_{s a + f}` is a
//! phase of the input. Every phase is a convolution of stride 1, with `ceil((taps - f) / s)` taps. Three
//! taps at stride 2 give phases of two taps (`f = 0`: `w_0, w_2` on even inputs) and of one tap (`f = 1`:
//! `w_1` on odd inputs); in two dimensions 2x2, 2x1, 1x2 and 1x1 taps. At stride 1 the same sum splits
//! many taps into runs of few (`7 = 3 + 3 + 1`), which grow less than one transform of all.
//!
//! A [`Piece`] is one such sum in one dimension; a [`Part`] is a pair of pieces. All parts have the same
//! outputs and the same divisor: their outputs before the division are added. Equal columns of `at`, of
//! whatever part, may share accumulators.

use std::fmt;

use super::matrix::lcm;
use super::nested::Winograd2d;
use super::transform::Transform1d;

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

/// Taps `first, first + stride, ..` of one dimension, `transform.r` of them, on the inputs
/// `x[stride * a + first]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    pub first: usize,
    pub transform: Transform1d,
}

/// Taps `[first[0] + stride[0] * i][first[1] + stride[1] * j]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    pub first: [usize; 2],
    pub transform: Winograd2d,
}

/// An algorithm for a convolution, and the lanes it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub kernel: Kernel,
    pub rows: Vec<Piece>,
    pub cols: Vec<Piece>,
    pub lane: Lane,
}

impl Member {
    /// Tiles of `outputs`, at stride 1 with the taps of a dimension split into `runs`; no runs leave
    /// them whole. `None` where a transform would need too many points.
    pub fn new(kernel: Kernel, outputs: [usize; 2], runs: [&[usize]; 2], lane: Lane) -> Option<Member> {
        let pieces = |d: usize| pieces(kernel.taps[d], kernel.stride[d], outputs[d], runs[d]);
        Some(Member { kernel, rows: pieces(0)?, cols: pieces(1)?, lane })
    }

    /// The member of `kernel` that prints as `text`.
    pub fn find(kernel: Kernel, text: &str) -> Option<Member> {
        members(kernel).into_iter().find(|member| member.to_string() == text)
    }

    /// Outputs of a tile, along height and width.
    pub fn outputs(&self) -> [usize; 2] {
        [&self.rows, &self.cols].map(|pieces| pieces.first().map_or(1, |piece| piece.transform.m))
    }

    /// Not empty; all of one divisor.
    pub fn parts(&self) -> Vec<Part> {
        let pairs = self.rows.iter().flat_map(|row| self.cols.iter().map(move |col| (row, col)));
        let part = |(row, col): (&Piece, &Piece)| Part {
            first: [row.first, col.first],
            transform: Winograd2d { rows: row.transform.clone(), cols: col.transform.clone() },
        };
        pairs.map(part).collect()
    }

    /// Multiplications of a tile, per input and output channel.
    pub fn multiplications(&self) -> usize {
        let n = |pieces: &[Piece]| pieces.iter().map(|piece| piece.transform.n).sum::<usize>();
        n(&self.rows) * n(&self.cols)
    }

    /// Multiplications of a tile without transforms.
    pub fn direct_multiplications(&self) -> usize {
        self.outputs().into_iter().chain(self.kernel.taps).product()
    }
}

impl Part {
    /// This part's taps, `[k][rows.r][cols.r][c]`, of weights `[k][kh][kw][c]`.
    pub fn weights(&self, kernel: Kernel, weights: &[i64], k: usize, c: usize) -> Vec<i64> {
        let [kh, kw] = kernel.taps;
        let (rows, cols) = (self.transform.rows.r, self.transform.cols.r);
        let mut out = Vec::with_capacity(k * rows * cols * c);
        for (ki, i, j) in (0..k).flat_map(|ki| (0..rows).flat_map(move |i| (0..cols).map(move |j| (ki, i, j)))) {
            let tap = (self.first[0] + kernel.stride[0] * i, self.first[1] + kernel.stride[1] * j);
            out.extend_from_slice(&weights[((ki * kh + tap.0) * kw + tap.1) * c..][..c]);
        }
        out
    }
}

/// The pieces of one dimension, brought to one divisor.
fn pieces(taps: usize, stride: usize, m: usize, runs: &[usize]) -> Option<Vec<Piece>> {
    if taps == 0 || stride == 0 || (!runs.is_empty() && (stride != 1 || runs.iter().sum::<usize>() != taps)) {
        return None;
    }
    let sizes: Vec<(usize, usize)> = if runs.is_empty() {
        (0..stride.min(taps)).map(|first| (first, (taps - first).div_ceil(stride))).collect()
    } else {
        runs.iter().enumerate().map(|(i, &run)| (runs[..i].iter().sum(), run)).collect()
    };
    let transforms: Option<Vec<Transform1d>> = sizes.iter().map(|&(_, r)| Transform1d::best(m, r)).collect();
    let transforms = transforms?;
    let divisor = transforms.iter().try_fold(1, |acc, t| lcm(acc, i64::try_from(t.divisor).ok()?))?;
    let divisor = u64::try_from(divisor).ok()?;
    let growth = transforms.iter().map(|t| t.g.growth()).max()?;
    let pieces = sizes.into_iter().zip(transforms);
    pieces.map(|((first, _), t)| Some(Piece { first, transform: t.with_divisor(divisor, growth)? })).collect()
}

/// Tiles and runs worth trying along one dimension.
fn choices(taps: usize, stride: usize) -> &'static [(usize, &'static [usize])] {
    match (taps, stride) {
        (1, _) => &[(1, &[])],
        (2, 1) | (3, 2) => &[(2, &[]), (3, &[]), (4, &[])],
        (3, 1) => &[(2, &[]), (3, &[]), (4, &[]), (6, &[])],
        (5, 1) => &[(2, &[]), (4, &[]), (2, &[3, 2]), (4, &[3, 2])],
        (7, 1) => &[(2, &[]), (2, &[3, 3, 1]), (2, &[4, 3])],
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
        let taps = |d: usize, pieces: &[Piece]| {
            let runs: Vec<String> = pieces.iter().map(|piece| piece.transform.r.to_string()).collect();
            if self.kernel.stride[d] > 1 || runs.len() == 1 {
                self.kernel.taps[d].to_string()
            } else {
                format!("({})", runs.join("+"))
            }
        };
        write!(f, "F({mh}x{mw},{}x{}", taps(0, &self.rows), taps(1, &self.cols))?;
        let [sh, sw] = self.kernel.stride;
        if (sh, sw) != (1, 1) {
            write!(f, ":{sh}x{sw}")?;
        }
        write!(f, ")/{}", self.lane)
    }
}
