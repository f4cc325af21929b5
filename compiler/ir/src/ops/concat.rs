//! Concatenation.

use super::Operator;
use crate::attributes::attributes;
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::TensorType;

attributes! {
    /// Operands side by side along `axis`; elements equal, other dimensions equal.
    pub struct Concat {
        pub axis: usize,
    }
}

impl Operator for Concat {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [first, rest @ ..] = args else {
            return Err(TypeError::new("expected at least one operand"));
        };
        let mut out = (*first).clone();
        if self.axis >= out.rank() {
            return Err(TypeError::new(format!("axis {} of {out}", self.axis)));
        }
        for arg in rest {
            let others_equal =
                arg.rank() == out.rank() && (0..out.rank()).all(|a| a == self.axis || arg.shape[a] == out.shape[a]);
            if arg.elem != out.elem || !others_equal {
                return Err(TypeError::new(format!("{arg} does not join {first} along axis {}", self.axis)));
            }
            out.shape[self.axis] = out.shape[self.axis].saturating_add(arg.shape[self.axis]);
            out.range = out.range.zip(arg.range).map(|(a, b)| a.union(b));
        }
        Ok(out)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let outer: usize = out.shape[..self.axis].iter().product();
        if out.elem == Elem::F32 {
            let parts = args.iter().map(|a| a.f32s()).collect::<Result<Vec<_>, _>>()?;
            return Tensor::from_f32(out.shape.clone(), interleave(&parts, outer));
        }
        let parts = args.iter().map(|a| a.ints()).collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&[i64]> = parts.iter().map(Vec::as_slice).collect();
        Tensor::from_ints(out.elem, out.shape.clone(), interleave(&parts, outer))
    }
}

/// For each of `outer` steps, the next block of every part.
fn interleave<T: Copy>(parts: &[&[T]], outer: usize) -> Vec<T> {
    let blocks = |step| parts.iter().flat_map(move |p| p[step * p.len() / outer..][..p.len() / outer].iter().copied());
    (0..outer).flat_map(blocks).collect()
}
