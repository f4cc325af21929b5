//! Compiled code against the reference interpreter.

use std::collections::BTreeMap;

use hawqc_ir::{Data, Graph, Op, Tensor, TypeError, ValueId, interp};
use hawqc_runtime::{Session, Tensor as RuntimeTensor, TensorRef};

use crate::error::Error;
use crate::tensors;

/// How far one value is from its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub value: String,
    pub elements: usize,
    /// Elements by their distance, in units of the last place; only distances above 0.
    pub histogram: BTreeMap<u64, usize>,
    /// The first element that differs: index, expected, found.
    pub first: Option<(usize, f64, f64)>,
}

impl Difference {
    /// Compares two tensors of one type. Integers differ by their distance; floats by the number of
    /// representable values between them, so that 0 means equal bits (or two NaNs, or zeros of either sign).
    pub fn between(value: impl Into<String>, expected: &Tensor, found: &Tensor) -> Result<Difference, TypeError> {
        if expected.elem() != found.elem() || expected.shape() != found.shape() {
            return Err(TypeError::new(format!(
                "expected {}{:?}, found {}{:?}",
                expected.elem(),
                expected.shape(),
                found.elem(),
                found.shape()
            )));
        }
        let mut out =
            Difference { value: value.into(), elements: expected.len(), histogram: BTreeMap::new(), first: None };
        match (expected.data(), found.data()) {
            (Data::F32(e), Data::F32(f)) => {
                for (i, (&e, &f)) in e.iter().zip(f).enumerate() {
                    out.record(i, ulps(e, f), e.into(), f.into());
                }
            }
            _ => {
                for (i, (e, f)) in expected.ints()?.into_iter().zip(found.ints()?).enumerate() {
                    out.record(i, e.abs_diff(f), e as f64, f as f64);
                }
            }
        }
        Ok(out)
    }

    fn record(&mut self, index: usize, distance: u64, expected: f64, found: f64) {
        if distance > 0 {
            *self.histogram.entry(distance).or_default() += 1;
            self.first.get_or_insert((index, expected, found));
        }
    }

    /// Adds another sample's differences of the same value.
    pub fn merge(&mut self, other: Difference) {
        self.elements += other.elements;
        other.histogram.into_iter().for_each(|(distance, count)| *self.histogram.entry(distance).or_default() += count);
        self.first = self.first.or(other.first);
    }

    /// The largest distance.
    pub fn max_lsb(&self) -> u64 {
        self.histogram.keys().next_back().copied().unwrap_or(0)
    }
}

/// The number of f32 values between two.
fn ulps(a: f32, b: f32) -> u64 {
    if a.is_nan() && b.is_nan() {
        return 0;
    }
    // Orders floats like integers: negative numbers count down from zero.
    let rank = |x: f32| {
        let bits = i64::from(x.to_bits());
        if x.is_sign_negative() { (1i64 << 31) - bits } else { bits }
    };
    rank(a).abs_diff(rank(b))
}

/// Runs both sides on `inputs` and compares every output.
pub fn outputs(reference: &Graph, session: &mut Session, inputs: &[Tensor]) -> Result<Vec<Difference>, Error> {
    let expected = interp::run(reference, inputs)?;
    let found = run(session, inputs)?;
    let compare = |((name, _), (expected, found)): (&(String, ValueId), (&Tensor, &RuntimeTensor))| {
        Ok(Difference::between(name, expected, &tensors::to_ir(found, expected.elem())?)?)
    };
    reference.outputs().iter().zip(expected.iter().zip(&found)).map(compare).collect()
}

/// Compares every kernel's result. The session's model must have been compiled with every value kept.
pub fn per_layer(kernels: &Graph, session: &mut Session, inputs: &[Tensor]) -> Result<Vec<Difference>, Error> {
    let mut expected = Vec::new();
    interp::run_observed(kernels, inputs, |id, tensor| {
        if matches!(kernels.op(id), Op::Kernel(_) | Op::Second(_)) {
            expected.push((kernels.name(id).to_string(), tensor.clone()));
        }
    })?;
    run(session, inputs)?;
    let kept = session.model().manifest().values.len();
    if kept != expected.len() {
        return Err(Error::KeptValues { expected: expected.len(), found: kept });
    }
    let compare = |(index, (name, expected)): (usize, (String, Tensor))| {
        let found = session.kept_value(index).map_err(hawqc_runtime::Error::from)?;
        let found = tensors::to_ir(&found, expected.elem())?.reshaped(expected.shape())?;
        Ok(Difference::between(name, &expected, &found)?)
    };
    expected.into_iter().enumerate().map(compare).collect()
}

/// Runs a compiled model on the interpreter's kind of tensors.
pub fn run(session: &mut Session, inputs: &[Tensor]) -> Result<Vec<RuntimeTensor>, Error> {
    let given = inputs.iter().map(tensors::to_runtime).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<TensorRef> = given.iter().map(RuntimeTensor::view).collect();
    Ok(session.run(&views).map_err(hawqc_runtime::Error::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawqc_ir::Elem;

    #[test]
    fn distances() {
        let ints = |v: [i64; 3]| Tensor::from_ints(Elem::I8, [3], v).unwrap();
        let d = Difference::between("x", &ints([1, -128, 5]), &ints([1, 127, 4])).unwrap();
        assert_eq!((d.max_lsb(), d.first), (255, Some((1, -128.0, 127.0))));
        assert_eq!(d.histogram, BTreeMap::from([(1, 1), (255, 1)]));
        assert_eq!(ulps(0.0, -0.0), 0);
        assert_eq!(ulps(1.0, 1.0 + f32::EPSILON), 1);
        assert_eq!(ulps(-f32::MIN_POSITIVE, f32::MIN_POSITIVE), 2 << 23);
        assert!(ulps(f32::NAN, 1.0) > 0);
        assert!(Difference::between("x", &ints([0; 3]), &Tensor::from_f32([3], vec![0.0; 3]).unwrap()).is_err());
    }
}
