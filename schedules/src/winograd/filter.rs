//! One dimension of an algorithm: a convolution as the sum of a few transforms.
//!
//! A convolution `y_i = sum_t w_t x_{s i + t}` of stride `s` is the sum of its `s` phases: with `t = f + s k`,
//! `y_i = sum_f sum_k w_{f + s k} X_{i+k}` where `X_a = x_{s a + f}` is a phase of the input. Every phase is a
//! convolution of stride 1, with `ceil((taps - f) / s)` taps. Three taps at stride 2 give phases of two taps
//! (`f = 0`: `w_0, w_2` on even inputs) and of one tap (`f = 1`: `w_1` on odd inputs). At stride 1 the same sum splits
//! many taps into runs of few (`7 = 3 + 3 + 1`), which grow less than one transform of all.
//!
//! [`Piece`]s have the same outputs and are brought to the same divisor, so that their products may be added as soon as
//! they have the same column of `at`: transforms at a point all have multiples of one column, and a transform of one tap
//! has unit columns, which are those at zero and at infinity. Factors are moved into the weights so that columns
//! become equal, as far as weights do not grow much by it.

use super::matrix::{Matrix, gcd, lcm};
use super::program::Program;
use super::transform::{MAX_N, Transform1d};

/// Taps `first, first + stride, ..` of a filter, `transform.r` of them, on the inputs `x[stride * a + first]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    pub first: usize,
    pub transform: Transform1d,
}

/// `at * sums = divisor * y` with `y_i = sum_t w_t x_{stride * i + t}` for all `w` and `x`, where a sum is that of the
/// products `(g w) .* (bt x)` that [`Filter::sum_of`] puts there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    pub taps: usize,
    pub stride: usize,
    /// Their products follow one another.
    pub pieces: Vec<Piece>,
    /// Products by inputs.
    pub bt: Matrix,
    /// Products by taps.
    pub g: Matrix,
    /// The sum that each product is added to.
    pub sum_of: Vec<usize>,
    /// Outputs by sums.
    pub at: Matrix,
    pub divisor: u64,
}

/// What weights may grow by for a sum less: in two dimensions weights of four bits stay bytes, `7 * 4 * 4 = 112`.
const SHARED_GROWTH: i64 = 4;

/// A product before factors are shared out between weights and outputs.
struct Product {
    /// The column of `at` and the row of `g`, both primitive, and what their product is to be multiplied by.
    column: Vec<i64>,
    row: Vec<i64>,
    factor: i64,
}

impl Product {
    /// How far weights grow if the column keeps the factor `kept`.
    fn growth(&self, kept: i64) -> i64 {
        self.factor / kept * self.row.iter().map(|v| v.abs()).sum::<i64>()
    }
}

impl Filter {
    /// Tiles of `m` outputs; at stride 1 taps may be split into `runs`, no runs leave them whole. `None` where a
    /// transform would need too many points or there would be too many sums.
    pub fn new(m: usize, taps: usize, stride: usize, runs: &[usize]) -> Option<Filter> {
        let pieces = pieces(m, taps, stride, runs)?;
        let divisor = pieces.iter().try_fold(1, |acc, p| lcm(acc, i64::try_from(p.transform.divisor).ok()?))?;
        let growth = pieces.iter().map(|p| p.transform.g.growth()).max()?;
        let products: Option<Vec<Vec<Product>>> = pieces.iter().map(|p| products(&p.transform, divisor)).collect();
        let products: Vec<Product> = products?.into_iter().flatten().collect();
        let (sum_of, kept) = share(&products, growth);
        let sums = sum_of.iter().max()? + 1;
        if sums > MAX_N {
            return None;
        }
        let places: Vec<(&Piece, usize)> =
            pieces.iter().flat_map(|piece| (0..piece.transform.n).map(move |i| (piece, i))).collect();
        // Entries `first, first + stride, ..` of a row.
        let spread = |piece: &Piece, at: usize, row: &[i64]| {
            let index = at.checked_sub(piece.first).filter(|i| i.is_multiple_of(stride))? / stride;
            row.get(index).copied()
        };
        let bt = Matrix::from_fn(products.len(), stride * (m - 1) + taps, |p, input| {
            let (piece, i) = places[p];
            spread(piece, input, piece.transform.bt.row(i)).unwrap_or(0)
        });
        let g = Matrix::from_fn(products.len(), taps, |p, tap| {
            spread(places[p].0, tap, &products[p].row).unwrap_or(0) * (products[p].factor / kept[p])
        });
        let first_of = |sum: usize| sum_of.iter().position(|&s| s == sum).unwrap_or(0);
        let at = Matrix::from_fn(m, sums, |k, sum| products[first_of(sum)].column[k] * kept[first_of(sum)]);
        Some(Filter { taps, stride, pieces, bt, g, sum_of, at, divisor: u64::try_from(divisor).ok()? })
    }

    /// Outputs of a tile.
    pub fn outputs(&self) -> usize {
        self.at.rows()
    }

    /// Inputs of a tile.
    pub fn inputs(&self) -> usize {
        self.bt.cols()
    }

    pub fn products(&self) -> usize {
        self.sum_of.len()
    }

    pub fn sums(&self) -> usize {
        self.at.cols()
    }

    /// `z` with `at * z = divisor * (1, .., 1)`: added to the sums, `b * z` adds `b` to every output.
    pub fn ones(&self) -> Option<Vec<i64>> {
        let divisor = i64::try_from(self.divisor).ok()?;
        let (at, sums) = (&self.at, self.sums());
        let constant = (0..sums).find_map(|i| {
            let first = at.get(0, i);
            let same = (1..at.rows()).all(|k| at.get(k, i) == first);
            let unit = || (0..sums).map(|j| if i == j { divisor / first } else { 0 }).collect();
            (same && first != 0 && divisor % first == 0).then(unit)
        });
        // A diagonal `at` has no constant column.
        constant.or_else(|| {
            let z: Vec<i64> = (0..sums).map(|i| divisor / at.column_content(i).max(1)).collect();
            (at.apply(&z) == vec![divisor; at.rows()]).then_some(z)
        })
    }

    /// How the inputs of each piece are transformed.
    pub fn input_programs(&self) -> Vec<Program> {
        self.pieces.iter().map(|piece| piece.transform.input_program()).collect()
    }

    /// How sums are transformed.
    pub fn output_program(&self) -> Program {
        Program::of(&self.at)
    }
}

fn pieces(m: usize, taps: usize, stride: usize, runs: &[usize]) -> Option<Vec<Piece>> {
    if taps == 0 || stride == 0 || (!runs.is_empty() && (stride != 1 || runs.iter().sum::<usize>() != taps)) {
        return None;
    }
    let sizes: Vec<(usize, usize)> = if runs.is_empty() {
        (0..stride.min(taps)).map(|first| (first, (taps - first).div_ceil(stride))).collect()
    } else {
        runs.iter().enumerate().map(|(i, &run)| (runs[..i].iter().sum(), run)).collect()
    };
    sizes.into_iter().map(|(first, r)| Some(Piece { first, transform: Transform1d::best(m, r)? })).collect()
}

/// The products of a transform whose divisor becomes `divisor`.
fn products(transform: &Transform1d, divisor: i64) -> Option<Vec<Product>> {
    let more = divisor / i64::try_from(transform.divisor).ok()?;
    let product = |i: usize| {
        let row = transform.g.row(i);
        let of_row = row.iter().fold(0, |acc, &v| gcd(acc, v));
        let of_column = transform.at.column_content(i);
        Some(Product {
            column: (0..transform.m).map(|k| transform.at.get(k, i) / of_column).collect(),
            row: row.iter().map(|v| v / of_row).collect(),
            factor: of_row.checked_mul(of_column)?.checked_mul(more)?,
        })
    };
    (0..transform.n).map(product).collect()
}

/// The sum of every product, and the factor that its column of `at` keeps: the least with which no weight grows beyond
/// `growth`. Products of parallel columns share a sum where they may keep the same factor, for which weights may grow to
/// [`SHARED_GROWTH`].
fn share(products: &[Product], growth: i64) -> (Vec<usize>, Vec<i64>) {
    let (mut sum_of, mut kept) = (vec![0; products.len()], vec![1; products.len()]);
    let mut sums = 0;
    for (p, product) in products.iter().enumerate() {
        if products[..p].iter().any(|before| before.column == product.column) {
            continue;
        }
        let parallel: Vec<usize> = (p..products.len()).filter(|&q| products[q].column == product.column).collect();
        let shared = [growth, SHARED_GROWTH].into_iter().find_map(|most| least_factor(products, &parallel, most));
        for group in parallel.chunks(if shared.is_some() { parallel.len() } else { 1 }) {
            for &q in group {
                sum_of[q] = sums;
                // A row of `g` alone grows no further than all of them.
                kept[q] = shared.or(least_factor(products, group, growth)).unwrap_or(products[q].factor);
            }
            sums += 1;
        }
    }
    (sum_of, kept)
}

fn least_factor(products: &[Product], group: &[usize], growth: i64) -> Option<i64> {
    let common = group.iter().fold(0, |acc, &q| gcd(acc, products[q].factor));
    (1..=common).filter(|t| common % t == 0).find(|&t| group.iter().all(|&q| products[q].growth(t) <= growth))
}
