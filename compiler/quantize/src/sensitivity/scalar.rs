//! The numbers that derivatives are computed in: f32 for speed; f64 so that tests can tell exact from nearly.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A float type with a matrix product.
pub(super) trait Scalar:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Into<f64>
    + 'static
{
    fn from_f64(value: f64) -> Self;

    /// `dst += a * b`.
    fn add_product(a: Matrix<'_, Self>, b: Matrix<'_, Self>, dst: MatrixMut<'_, Self>);
}

/// A matrix in a slice: entry (i, j) at `i * steps[0] + j * steps[1]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub size: [usize; 2],
    pub steps: [usize; 2],
}

/// The same to be written; different entries lie at different places.
pub(super) struct MatrixMut<'a, T> {
    pub data: &'a mut [T],
    pub size: [usize; 2],
    /// From one row to the next, at least the length of a row; entries of a row lie side by side.
    pub row_step: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows one after the other.
    pub fn rows(data: &'a [T], size: [usize; 2]) -> Matrix<'a, T> {
        Matrix { data, size, steps: [size[1], 1] }
    }

    pub fn transposed(self) -> Matrix<'a, T> {
        let ([rows, columns], [down, right]) = (self.size, self.steps);
        Matrix { data: self.data, size: [columns, rows], steps: [right, down] }
    }

    fn fits(&self) -> bool {
        self.size.contains(&0)
            || (self.size[0] - 1) * self.steps[0] + (self.size[1] - 1) * self.steps[1] < self.data.len()
    }
}

macro_rules! scalar {
    ($float:ty, $product:path) => {
        impl Scalar for $float {
            fn from_f64(value: f64) -> $float {
                value as $float
            }

            fn add_product(a: Matrix<'_, $float>, b: Matrix<'_, $float>, dst: MatrixMut<'_, $float>) {
                let ([m, k], [_, n]) = (a.size, b.size);
                let of_dst = Matrix { data: &*dst.data, size: dst.size, steps: [dst.row_step, 1] };
                assert!(b.size[0] == k && dst.size == [m, n] && dst.row_step >= n);
                assert!(a.fits() && b.fits() && of_dst.fits());
                if [m, n, k].contains(&0) {
                    return;
                }
                let step = |s: usize| s as isize;
                let (pa, pb, row) = (a.data.as_ptr(), b.data.as_ptr(), step(dst.row_step));
                let ([a0, a1], [b0, b1]) = (a.steps.map(step), b.steps.map(step));
                // SAFETY: by the assertions every address of the three matrices lies in its slice, and rows of
                // dst do not overlap. dst is borrowed mutably, so it overlaps neither source.
                unsafe { $product(m, k, n, 1.0, pa, a0, a1, pb, b0, b1, 1.0, dst.data.as_mut_ptr(), row, 1) }
            }
        }
    };
}

scalar!(f32, matrixmultiply::sgemm);
scalar!(f64, matrixmultiply::dgemm);
