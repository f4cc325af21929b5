//! The operators other than convolution: forward and adjoint on lanes.
//!
//! All of them are linear in their operands, once it is known which operand a clamp or maximum passes on; that
//! choice is made by lane 0, and every lane follows it.

use hawqc_ir::{AvgPool, MaxPool};

use super::lanes::Lanes;
use super::scalar::Scalar;

/// What a value is of its operands.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Passes what lies strictly between the bounds.
    Clamp {
        lo: f64,
        hi: f64,
    },
    Sum,
    /// Operand number `i` to the places `to[i]` of the result, of `length`; `background` elsewhere.
    Move {
        to: Vec<Vec<u32>>,
        length: usize,
        background: f64,
    },
    /// The same numbers in the same order.
    Same,
    Max(Pooling<MaxPool>),
    Mean(Pooling<AvgPool>),
}

/// A pool and the shapes it works on.
#[derive(Clone, Debug)]
pub(super) struct Pooling<P> {
    pub pool: P,
    /// `[N, H, W, C]` of the source.
    pub src: [usize; 4],
    /// `[OH, OW]`.
    pub size: [usize; 2],
}

impl Rule {
    /// Whether the adjoint looks at the values of the operands.
    pub fn needs_sources(&self) -> bool {
        matches!(self, Rule::Max(_))
    }

    /// Whether the adjoint looks at the values of the result.
    pub fn needs_result(&self) -> bool {
        matches!(self, Rule::Clamp { .. })
    }

    pub fn forward<T: Scalar>(&self, args: &[&Lanes<T>]) -> Lanes<T> {
        let lanes = args.iter().map(|a| a.len()).max().unwrap_or(0);
        match self {
            Rule::Clamp { lo, hi } => clamp(args[0], T::from_f64(*lo), T::from_f64(*hi)),
            Rule::Same => args[0].clone(),
            Rule::Sum => {
                let mut sum = args[0].clone();
                args[1..].iter().for_each(|a| super::lanes::add_lanes(&mut sum, a));
                sum
            }
            Rule::Move { to, length, background } => {
                let start = |lane| if lane == 0 { T::from_f64(*background) } else { T::default() };
                let moved = |lane: usize| {
                    let mut dst = vec![start(lane); *length];
                    for (to, src) in to.iter().zip(args).filter_map(|(to, a)| Some((to, a.get(lane)?))) {
                        to.iter().zip(src).for_each(|(&at, &s)| dst[at as usize] = s);
                    }
                    dst
                };
                (0..lanes).map(moved).collect()
            }
            Rule::Max(pooling) => {
                let chosen = pooling.chosen(&args[0][0]);
                args[0].iter().map(|src| chosen.iter().map(|&from| src[from as usize]).collect()).collect()
            }
            Rule::Mean(pooling) => args[0].iter().map(|src| pooling.mean(src)).collect(),
        }
    }

    /// What `adjoint` of the result means for operand `position`, whose values are `source` and have `length` numbers.
    pub fn adjoint<T: Scalar>(
        &self,
        adjoint: &Lanes<T>,
        position: usize,
        length: usize,
        source: Option<&Lanes<T>>,
        result: Option<&Lanes<T>>,
    ) -> Lanes<T> {
        let each = |of: &dyn Fn(&[T]) -> Vec<T>| adjoint.iter().map(|lane| of(lane)).collect();
        match (self, source, result) {
            (Rule::Clamp { lo, hi }, _, Some(result)) => {
                let (lo, hi) = (T::from_f64(*lo), T::from_f64(*hi));
                let pass = |(&a, &y): (&T, &T)| if y > lo && y < hi { a } else { T::default() };
                each(&|lane| lane.iter().zip(&result[0]).map(pass).collect())
            }
            (Rule::Move { to, .. }, _, _) => each(&|lane| to[position].iter().map(|&at| lane[at as usize]).collect()),
            (Rule::Max(pooling), Some(source), _) => {
                let chosen = pooling.chosen(&source[0]);
                each(&|lane| {
                    let mut src = vec![T::default(); length];
                    chosen.iter().zip(lane).for_each(|(&from, &a)| src[from as usize] += a);
                    src
                })
            }
            (Rule::Mean(pooling), _, _) => each(&|lane| pooling.spread(lane)),
            // A clamp without its result or a maximum without its source: neither is kept from the rule that asks for it.
            (Rule::Sum | Rule::Same | Rule::Clamp { .. } | Rule::Max(_), _, _) => adjoint.clone(),
        }
    }
}

fn clamp<T: Scalar>(src: &Lanes<T>, lo: T, hi: T) -> Lanes<T> {
    let limit = |&v: &T| if v > lo { if v < hi { v } else { hi } } else { lo };
    let values: Vec<T> = src[0].iter().map(limit).collect();
    let pass = |(&d, &y): (&T, &T)| if y > lo && y < hi { d } else { T::default() };
    let rest: Lanes<T> = src[1..].iter().map(|lane| lane.iter().zip(&values).map(pass).collect()).collect();
    std::iter::once(values).chain(rest).collect()
}

impl Pooling<MaxPool> {
    /// For every number of the result the source number it is: the first of the largest.
    fn chosen<T: Scalar>(&self, src: &[T]) -> Vec<u32> {
        let ([n, h, w, c], [oh, ow]) = (self.src, self.size);
        let window = self.pool.window();
        let mut chosen = vec![u32::MAX; n * oh * ow * c];
        for (at, chosen) in chosen.chunks_mut(c).enumerate() {
            let (image, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
            window.for_each_tap([h, w], (oy, ox), |_, _, y, x| {
                let from = ((image * h + y) * w + x) * c;
                for (channel, best) in chosen.iter_mut().enumerate() {
                    let candidate = from + channel;
                    if *best == u32::MAX || src[candidate] > src[*best as usize] {
                        *best = candidate as u32;
                    }
                }
            });
        }
        chosen
    }
}

impl Pooling<AvgPool> {
    /// Calls `visit(result position, its weight, source position)`, in channels, for every tap in the image.
    fn for_each_tap<T: Scalar>(&self, mut visit: impl FnMut(usize, T, usize)) {
        let ([n, h, w, c], [oh, ow]) = (self.src, self.size);
        let window = self.pool.window();
        for at in 0..n * oh * ow {
            let (image, position) = (at / (oh * ow), (at / ow % oh, at % ow));
            let weight = T::from_f64(1.0 / self.pool.divisor([h, w], position) as f64);
            window.for_each_tap([h, w], position, |_, _, y, x| {
                visit(at * c, weight, ((image * h + y) * w + x) * c);
            });
        }
    }

    fn mean<T: Scalar>(&self, src: &[T]) -> Vec<T> {
        let c = self.src[3];
        let mut dst = vec![T::default(); self.src[0] * self.size[0] * self.size[1] * c];
        self.for_each_tap(|to, weight: T, from| {
            dst[to..to + c].iter_mut().zip(&src[from..from + c]).for_each(|(d, &s)| *d += weight * s);
        });
        dst
    }

    fn spread<T: Scalar>(&self, adjoint: &[T]) -> Vec<T> {
        let c = self.src[3];
        let mut src = vec![T::default(); self.src.iter().product()];
        self.for_each_tap(|to, weight: T, from| {
            src[from..from + c].iter_mut().zip(&adjoint[to..to + c]).for_each(|(s, &a)| *s += weight * a);
        });
        src
    }
}
