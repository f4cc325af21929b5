//! Exact integer convolution with fewer multiplications.
//!
//! In: the taps and stride of a convolution, then its actual weights and the range of its inputs. Out:
//! the [`members`] of a family of algorithms, and for each either a [`Proof`] that it gives every bit of
//! the convolution in lanes of 8 or 16 bits, or a [`Refusal`] that says what does not fit.
//!
//! A member computes `m` outputs of a convolution with `r` taps from `n = m + r - 1` inputs with `n`
//! multiplications instead of `m * r`: `at * ((g w) .* (bt x)) = divisor * y` ([`Transform1d`]). A few
//! of them add up to a filter with a stride or with many taps ([`Filter`]), and two dimensions nest ([`Winograd2d`]). All matrices are integral; what is left is an exact division
//! ([`Divisor`]). The argument is in `docs/winograd.md`; what holds here:
//!
//! - Transforms of inputs ([`Program`]) are additions, subtractions and multiplications by constants.
//!   They may wrap in lanes of any width: these are ring operations modulo `2^bits`, so a final value
//!   that fits its lane is right whatever its intermediates did.
//! - Transformed inputs and weights must fit their lanes, because the product of two lanes is wider than
//!   a lane. This is what [`prove`] bounds, per position, from the weights.
//! - Accumulators and the output transform are exact modulo `2^32`. The odd part of the divisor leaves
//!   by its inverse modulo `2^32`, the power of two by an arithmetic shift: right where
//!   `y * 2^shift` fits 32 bits.
//!
//! Sources: Toom (1963) and Cook (1966), products of polynomials through their values at points;
//! Winograd, "Arithmetic Complexity of Computations" (1980), the same for filters by transposition;
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), nested in two dimensions
//! for small kernels.

mod filter;
mod matrix;
mod member;
mod nested;
mod program;
mod proof;
mod search;
mod transform;

pub use filter::{Filter, Piece};
pub use matrix::Matrix;
pub use member::{Kernel, Lane, Member, members};
pub use nested::Winograd2d;
pub use program::{Op, Program};
pub use proof::{Layer, Proof, Refusal, prove};
pub use transform::{Divisor, MAX_N, POINTS, Point, Transform1d};

#[cfg(test)]
mod tests;
