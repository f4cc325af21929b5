//! A histogram that grows with its values, and the clipping points read from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bins on either side of zero.
const BINS: usize = 1024;
/// Smallest exponent of the range; smaller values share the first bin.
const MIN_EXPONENT: i32 = -100;

/// Counts of values in 1024 equal bins on either side of zero, up to +-2^exponent.
///
/// Bin i of `positive` counts `[i, i+1) * 2^exponent / 1024`, and `negative` the mirror image. The
/// exponent is the smallest with all magnitudes below 2^exponent; when it grows by one, pairs of
/// bins merge exactly. The histogram of a set of values is therefore the same in whatever
/// order they come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    exponent: i32,
    positive: Vec<u64>,
    negative: Vec<u64>,
}

/// How the clipping point of an activation is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The largest magnitude seen.
    MinMax,
    /// The magnitude that this percentage of values does not exceed, in (0, 100].
    Percentile(f64),
    /// The point of the smallest expected squared error.
    Mse,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::MinMax => f.write_str("minmax"),
            Method::Percentile(p) => write!(f, "percentile:{p}"),
            Method::Mse => f.write_str("mse"),
        }
    }
}

/// What `percentile` alone means.
const PERCENTILE: f64 = 99.99;

impl FromStr for Method {
    type Err = String;

    /// `minmax`, `mse`, `percentile` (99.99) or `percentile:99.9`.
    fn from_str(s: &str) -> Result<Method, String> {
        match s {
            "minmax" => Ok(Method::MinMax),
            "mse" => Ok(Method::Mse),
            "percentile" => Ok(Method::Percentile(PERCENTILE)),
            _ => {
                let percent = s.strip_prefix("percentile:").and_then(|p| p.parse::<f64>().ok());
                let legal = percent.filter(|p| *p > 0.0 && *p <= 100.0);
                legal.map(Method::Percentile).ok_or_else(|| {
                    format!("`{s}` is not a calibration method; supported are minmax, mse, percentile and percentile:P, P in (0, 100]")
                })
            }
        }
    }
}

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram { exponent: MIN_EXPONENT, positive: vec![0; BINS], negative: vec![0; BINS] }
    }

    /// Adds finite values of magnitude at most `max_abs`.
    pub(super) fn add(&mut self, data: &[f32], max_abs: f32) {
        while f64::from(max_abs) >= self.limit() {
            self.double();
        }
        // A power of two: the product is exact. exponent <= 128, so that the factor is a normal f32.
        let bins_per_unit = (BINS as f64 / self.limit()) as f32;
        for &v in data {
            let bin = (v.abs() * bins_per_unit) as usize;
            let side = if v < 0.0 { &mut self.negative } else { &mut self.positive };
            side[bin.min(BINS - 1)] += 1;
        }
    }

    fn double(&mut self) {
        self.exponent += 1;
        for side in [&mut self.positive, &mut self.negative] {
            for i in 0..BINS {
                side[i] = if i < BINS / 2 { side[2 * i] + side[2 * i + 1] } else { 0 };
            }
        }
    }

    fn limit(&self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.positive.iter().chain(&self.negative).sum()
    }

    /// Without empty bins at the ends.
    pub(super) fn trimmed(mut self) -> Histogram {
        for side in [&mut self.positive, &mut self.negative] {
            let used = side.iter().rposition(|&n| n > 0).map_or(0, |i| i + 1);
            side.truncate(used);
        }
        self
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let sized = self.positive.len() <= BINS && self.negative.len() <= BINS;
        let exponent = (MIN_EXPONENT..=128).contains(&self.exponent);
        let total = self.positive.iter().chain(&self.negative).try_fold(0u64, |sum, &n| sum.checked_add(n));
        if sized && exponent && total.is_some() {
            return Ok(());
        }
        Err(format!(
            "a histogram has at most {BINS} bins a side, an exponent in {MIN_EXPONENT}..=128 and a count in u64"
        ))
    }

    /// Centres of the bins that hold values, with their counts.
    fn bins(&self) -> impl Iterator<Item = (f64, u64)> {
        let width = self.limit() / BINS as f64;
        let side = move |counts: &[u64], sign: f64| -> Vec<(f64, u64)> {
            let filled = counts.iter().enumerate().filter(|&(_, &n)| n > 0);
            filled.map(|(i, &n)| (sign * (i as f64 + 0.5) * width, n)).collect()
        };
        side(&self.positive, 1.0).into_iter().chain(side(&self.negative, -1.0))
    }

    /// The upper edge of the bin that holds the magnitude which `percent` of all values do not exceed.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let mut left = (self.count() as f64 * percent / 100.0).ceil().max(1.0);
        let count = |side: &[u64], i: usize| side.get(i).copied().unwrap_or(0) as f64;
        for i in 0..BINS {
            left -= count(&self.positive, i) + count(&self.negative, i);
            if left <= 0.0 {
                return (i + 1) as f64 * self.limit() / BINS as f64;
            }
        }
        self.limit()
    }

    /// The clipping point of least expected squared error among hundredths of `max_abs`, for integers
    /// `[lo, hi]` without zero point and the scale `point / hi`.
    ///
    /// Within a bin values count as spread evenly around its centre.
    pub(super) fn least_squares(&self, max_abs: f64, lo: i64, hi: i64) -> f64 {
        let bins: Vec<(f64, u64)> = self.bins().collect();
        let error = |point: f64| -> f64 {
            let scale = point / hi as f64;
            let square = |&(x, n): &(f64, u64)| {
                let rounded = (x / scale).round_ties_even().clamp(lo as f64, hi as f64) * scale;
                n as f64 * (x - rounded).powi(2)
            };
            bins.iter().map(square).sum()
        };
        let mut best = (max_abs, error(max_abs));
        for hundredths in (5..100).rev() {
            let point = max_abs * f64::from(hundredths) / 100.0;
            let e = error(point);
            if e < best.1 {
                best = (point, e);
            }
        }
        best.0
    }
}
