//! Convolution: forward, and its two adjoints, on lanes.
//!
//! All three are matrix products over *patches*: one row per output position with the source values that the weights of one
//! group meet. Depthwise convolutions, whose rows are too short for that, loop over channels.

use hawqc_ir::{Conv, Window};

use super::lanes::Lanes;
use super::scalar::{Matrix, MatrixMut, Scalar};

/// Patches gathered at a time hold at most this many numbers.
const PATCH_BLOCK: usize = 1 << 18;

/// Geometry of a convolution.
#[derive(Clone, Debug)]
pub(super) struct ConvShape {
    pub conv: Conv,
    /// `[N, H, W, C]` of the source.
    pub src: [usize; 4],
    /// `[K, KH, KW, C/groups]`.
    pub filter: [usize; 4],
    /// `[OH, OW]`.
    pub size: [usize; 2],
}

/// Output positions handled together, and one group of channels.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    group: usize,
}

impl ConvShape {
    /// `dst = bias + src * wei`. The result has as many lanes as the factors together, at most `lanes`.
    pub fn forward<T: Scalar>(&self, src: &[Vec<T>], wei: &[&[T]], bias: Option<&[T]>, lanes: usize) -> Lanes<T> {
        let k = self.filter[0];
        let count = lanes.min(src.len() + wei.len() - 1);
        let mut dst = vec![vec![T::default(); self.positions() * k]; count];
        if let Some(bias) = bias {
            dst[0].chunks_mut(k).for_each(|row| row.copy_from_slice(bias));
        }
        if self.is_depthwise() {
            for (i, src) in src.iter().enumerate() {
                for (wei, dst) in wei.iter().zip(&mut dst[i..]) {
                    self.depthwise_forward(src, wei, dst);
                }
            }
            return dst;
        }
        let mut patches = Vec::new();
        for block in self.blocks() {
            for (i, src) in src.iter().enumerate() {
                let patches = self.patches(src, block, &mut patches);
                for (wei, dst) in wei.iter().zip(&mut dst[i..]) {
                    T::add_product(
                        patches,
                        self.group_weights(wei, block.group).transposed(),
                        self.outputs(dst, block),
                    );
                }
            }
        }
        dst
    }

    /// The adjoint of the source: what `adjoint` of the result means for the source.
    pub fn adjoint_of_source<T: Scalar>(&self, adjoint: &[Vec<T>], wei: &[&[T]], lanes: usize) -> Lanes<T> {
        let count = lanes.min(adjoint.len() + wei.len() - 1);
        let length = self.src.iter().product();
        let mut src = vec![vec![T::default(); length]; count];
        if self.is_depthwise() {
            for (i, adjoint) in adjoint.iter().enumerate() {
                for (wei, src) in wei.iter().zip(&mut src[i..]) {
                    self.depthwise_adjoint_of_source(adjoint, wei, src);
                }
            }
            return src;
        }
        let mut patches = Vec::new();
        for block in self.blocks() {
            let size = [block.rows, self.patch()];
            for (lane, src) in src.iter_mut().enumerate() {
                patches.clear();
                patches.resize(size[0] * size[1], T::default());
                for (i, adjoint) in adjoint.iter().enumerate().take(lane + 1) {
                    let Some(wei) = wei.get(lane - i) else {
                        continue;
                    };
                    let dst = MatrixMut { data: &mut patches, size, row_step: size[1] };
                    T::add_product(self.output_matrix(adjoint, block), self.group_weights(wei, block.group), dst);
                }
                self.scatter(&patches, block, src);
            }
        }
        src
    }

    /// Lane `lane` of the adjoint of the weights.
    pub fn adjoint_of_weights<T: Scalar>(&self, adjoint: &[Vec<T>], src: &[Vec<T>], lane: usize) -> Vec<T> {
        let mut wei = vec![T::default(); self.filter.iter().product()];
        let factors = || adjoint.iter().enumerate().filter_map(|(i, a)| Some((a, src.get(lane.checked_sub(i)?)?)));
        if self.is_depthwise() {
            factors().for_each(|(adjoint, src)| self.depthwise_adjoint_of_weights(adjoint, src, &mut wei));
            return wei;
        }
        let mut patches = Vec::new();
        let size = [self.filter[0] / self.conv.groups, self.patch()];
        for block in self.blocks() {
            for (adjoint, src) in factors() {
                let patches = self.patches(src, block, &mut patches);
                let data = &mut wei[block.group * size[0] * size[1]..][..size[0] * size[1]];
                let dst = MatrixMut { data, size, row_step: size[1] };
                T::add_product(self.output_matrix(adjoint, block).transposed(), patches, dst);
            }
        }
        wei
    }

    fn positions(&self) -> usize {
        self.src[0] * self.size[0] * self.size[1]
    }

    /// Length of a patch.
    fn patch(&self) -> usize {
        self.filter[1] * self.filter[2] * self.filter[3]
    }

    fn is_depthwise(&self) -> bool {
        self.filter[3] == 1 && self.filter[0] == self.conv.groups
    }

    /// Whether an output position reads exactly the source position of the same number.
    fn is_pointwise(&self) -> bool {
        self.filter[1..3] == [1, 1] && self.conv.stride == [1, 1] && self.conv.pad == [0; 4] && self.conv.groups == 1
    }

    fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let (positions, groups) = (self.positions(), self.conv.groups);
        let step = if self.is_pointwise() { positions } else { (PATCH_BLOCK / self.patch()).clamp(1, positions) };
        (0..positions).step_by(step).flat_map(move |first| {
            (0..groups).map(move |group| Block { first, rows: step.min(positions - first), group })
        })
    }

    fn group_weights<'a, T>(&self, wei: &'a [T], group: usize) -> Matrix<'a, T> {
        let size = [self.filter[0] / self.conv.groups, self.patch()];
        Matrix::rows(&wei[group * size[0] * size[1]..][..size[0] * size[1]], size)
    }

    /// Where the block's channels lie in the result: the first number, the size, and the step between rows.
    fn output_place(&self, block: Block) -> (usize, [usize; 2], usize) {
        let k = self.filter[0];
        let per_group = k / self.conv.groups;
        (block.first * k + block.group * per_group, [block.rows, per_group], k)
    }

    fn output_matrix<'a, T>(&self, values: &'a [T], block: Block) -> Matrix<'a, T> {
        let (from, size, step) = self.output_place(block);
        Matrix { data: &values[from..], size, steps: [step, 1] }
    }

    fn outputs<'a, T>(&self, values: &'a mut [T], block: Block) -> MatrixMut<'a, T> {
        let (from, size, row_step) = self.output_place(block);
        MatrixMut { data: &mut values[from..], size, row_step }
    }

    /// The block's patches, zeros in the padding; gathered into `room` unless the source has that form itself.
    fn patches<'a, T: Scalar>(&self, src: &'a [T], block: Block, room: &'a mut Vec<T>) -> Matrix<'a, T> {
        let size = [block.rows, self.patch()];
        if self.is_pointwise() {
            return Matrix::rows(&src[block.first * size[1]..][..size[0] * size[1]], size);
        }
        room.clear();
        room.resize(size[0] * size[1], T::default());
        let cg = self.filter[3];
        self.for_each_tap(block, |row, tap, from| {
            room[row * size[1] + tap * cg..][..cg].copy_from_slice(&src[from..from + cg]);
        });
        Matrix::rows(room, size)
    }

    /// Adds patches to the places their numbers were gathered from.
    fn scatter<T: Scalar>(&self, patches: &[T], block: Block, src: &mut [T]) {
        let (patch, cg) = (self.patch(), self.filter[3]);
        if self.is_pointwise() {
            let to = &mut src[block.first * patch..][..patches.len()];
            return to.iter_mut().zip(patches).for_each(|(d, &p)| *d += p);
        }
        self.for_each_tap(block, |row, tap, from| {
            let patch = &patches[row * patch + tap * cg..][..cg];
            src[from..from + cg].iter_mut().zip(patch).for_each(|(d, &p)| *d += p);
        });
    }

    fn window(&self) -> Window {
        self.conv.window([self.filter[1], self.filter[2]])
    }

    /// Calls `visit(row of the block, tap, first source number of the group)` for every tap in the image.
    fn for_each_tap(&self, block: Block, mut visit: impl FnMut(usize, usize, usize)) {
        let ([_, h, w, c], [_, _, kw, cg], [oh, ow]) = (self.src, self.filter, self.size);
        let window = self.window();
        for row in 0..block.rows {
            let at = block.first + row;
            let (image, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
            window.for_each_tap([h, w], (oy, ox), |ky, kx, y, x| {
                visit(row, ky * kw + kx, ((image * h + y) * w + x) * c + block.group * cg);
            });
        }
    }

    /// All taps of a depthwise convolution: `visit(position, tap, first source number)`.
    fn for_each_depthwise_tap(&self, visit: impl FnMut(usize, usize, usize)) {
        self.for_each_tap(Block { first: 0, rows: self.positions(), group: 0 }, visit);
    }

    fn depthwise_forward<T: Scalar>(&self, src: &[T], wei: &[T], dst: &mut [T]) {
        let (k, wei) = (self.filter[0], self.tap_major(wei));
        self.for_each_depthwise_tap(|at, tap, from| {
            let (src, wei) = (&src[from..from + k], &wei[tap * k..][..k]);
            dst[at * k..][..k].iter_mut().zip(src.iter().zip(wei)).for_each(|(d, (&s, &w))| *d += s * w);
        });
    }

    fn depthwise_adjoint_of_source<T: Scalar>(&self, adjoint: &[T], wei: &[T], src: &mut [T]) {
        let (k, wei) = (self.filter[0], self.tap_major(wei));
        self.for_each_depthwise_tap(|at, tap, from| {
            let (adjoint, wei) = (&adjoint[at * k..][..k], &wei[tap * k..][..k]);
            src[from..from + k].iter_mut().zip(adjoint.iter().zip(wei)).for_each(|(d, (&a, &w))| *d += a * w);
        });
    }

    fn depthwise_adjoint_of_weights<T: Scalar>(&self, adjoint: &[T], src: &[T], wei: &mut [T]) {
        let (k, taps) = (self.filter[0], self.filter[1] * self.filter[2]);
        let mut sums = vec![T::default(); wei.len()];
        self.for_each_depthwise_tap(|at, tap, from| {
            let (adjoint, src) = (&adjoint[at * k..][..k], &src[from..from + k]);
            sums[tap * k..][..k].iter_mut().zip(adjoint.iter().zip(src)).for_each(|(d, (&a, &s))| *d += a * s);
        });
        sums.iter().enumerate().for_each(|(i, &sum)| wei[i % k * taps + i / k] += sum);
    }

    /// Depthwise weights by tap, then channel.
    fn tap_major<T: Scalar>(&self, wei: &[T]) -> Vec<T> {
        let (k, taps) = (self.filter[0], self.filter[1] * self.filter[2]);
        (0..taps * k).map(|i| wei[i % k * taps + i / k]).collect()
    }
}
