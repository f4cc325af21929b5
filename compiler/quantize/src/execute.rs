//! A fast float executor, for calibration and as the yardstick of accuracy.
//!
//! In: any graph without fused kernels, and its inputs. Out: what [`hawqc_ir::interp`] gives, float sums excepted:
//! convolutions accumulate in f32 in another order, so results differ in the last bits. Float convolutions
//! run as matrix products on all threads of rayon's pool; every other operator is the interpreter's own.

use std::sync::Arc;

use hawqc_ir::{Conv, Graph, IrError, Op, Tensor, TypeError, ValueId};
use rayon::prelude::*;

use crate::error::QuantizeError;

/// A graph prepared to be run many times.
pub struct Executor<'g> {
    graph: &'g Graph,
    steps: Vec<Step>,
    /// Constants, and what depends on constants only.
    fixed: Vec<Option<Arc<Tensor>>>,
}

struct Step {
    id: ValueId,
    args: Vec<ValueId>,
    /// Operands that no later step needs.
    dead: Vec<ValueId>,
}

/// Runs a graph once; see [`Executor`].
pub fn execute(
    graph: &Graph,
    inputs: &[Tensor],
    observe: impl FnMut(ValueId, &Tensor),
) -> Result<Vec<Tensor>, QuantizeError> {
    Executor::new(graph)?.run(inputs, observe)
}

impl<'g> Executor<'g> {
    /// Computes what does not depend on the inputs, such as dequantised weights.
    pub fn new(graph: &'g Graph) -> Result<Executor<'g>, QuantizeError> {
        let live = graph.live();
        let mut fixed: Vec<Option<Arc<Tensor>>> = vec![None; graph.len()];
        let mut steps = Vec::new();
        for id in graph.values().filter(|id| live[id.index()]) {
            let args = graph.args(id);
            match graph.op(id) {
                Op::Input(_) => {}
                Op::Const(_) => fixed[id.index()] = graph.tensor(id).cloned(),
                _ => {
                    let known: Option<Vec<&Tensor>> = args.iter().map(|a| fixed[a.index()].as_deref()).collect();
                    match known {
                        Some(known) => fixed[id.index()] = Some(Arc::new(evaluate(graph, id, &known)?)),
                        None => steps.push(Step { id, args, dead: Vec::new() }),
                    }
                }
            }
        }
        let mut executor = Executor { graph, steps, fixed };
        executor.find_last_uses();
        Ok(executor)
    }

    fn find_last_uses(&mut self) {
        let mut seen = vec![false; self.graph.len()];
        self.graph.outputs().iter().for_each(|(_, id)| seen[id.index()] = true);
        for step in self.steps.iter_mut().rev() {
            for &arg in &step.args {
                if !seen[arg.index()] {
                    seen[arg.index()] = true;
                    step.dead.push(arg);
                }
            }
        }
    }

    /// The outputs for the given inputs, in order. `observe` sees the inputs and then every computed
    /// value that depends on them, in the graph's order.
    ///
    /// # Errors
    /// Inputs whose number or type is not the graph's.
    pub fn run(
        &self,
        inputs: &[Tensor],
        mut observe: impl FnMut(ValueId, &Tensor),
    ) -> Result<Vec<Tensor>, QuantizeError> {
        let mut values: Vec<Option<Arc<Tensor>>> = self.fixed.clone();
        self.place_inputs(inputs, &mut values)?;
        for (&id, tensor) in self.graph.inputs().iter().zip(inputs) {
            observe(id, tensor);
        }
        for step in &self.steps {
            let args: Option<Vec<&Tensor>> = step.args.iter().map(|a| values[a.index()].as_deref()).collect();
            let args = args.ok_or_else(|| self.graph.invariant(step.id, "an operand has no value"))?;
            let result = evaluate(self.graph, step.id, &args)?;
            observe(step.id, &result);
            step.dead.iter().for_each(|a| values[a.index()] = None);
            values[step.id.index()] = Some(Arc::new(result));
        }
        let output = |(_, id): &(String, ValueId)| {
            values[id.index()].as_deref().cloned().ok_or_else(|| self.graph.invariant(*id, "an output has no value"))
        };
        Ok(self.graph.outputs().iter().map(output).collect::<Result<_, IrError>>()?)
    }

    fn place_inputs(&self, inputs: &[Tensor], values: &mut [Option<Arc<Tensor>>]) -> Result<(), IrError> {
        let ids = self.graph.inputs();
        if inputs.len() != ids.len() {
            return Err(IrError::InputCount { expected: ids.len(), found: inputs.len() });
        }
        for (&id, tensor) in ids.iter().zip(inputs) {
            let expected = self.graph.ty(id);
            let in_range = expected.range.zip(tensor.range()).is_none_or(|(e, f)| e.contains(f));
            if tensor.elem() != expected.elem || tensor.shape() != expected.shape || !in_range {
                let (expected, found) = (expected.to_string(), tensor.ty().to_string());
                return Err(IrError::Input { name: self.graph.name(id).into(), expected, found });
            }
            values[id.index()] = Some(Arc::new(tensor.clone()));
        }
        Ok(())
    }
}

fn evaluate(graph: &Graph, id: ValueId, args: &[&Tensor]) -> Result<Tensor, QuantizeError> {
    let out = graph.ty(id);
    let result = match graph.op(id) {
        Op::Conv(conv) if out.is_float() => convolve(conv, args, &out.shape),
        op => op.eval(args, out),
    };
    Ok(result.map_err(|e| graph.type_error(id, e))?)
}

/// Rows of the patch matrix gathered at a time hold at most this many floats, 4 MiB.
const PATCH_BLOCK: usize = 1 << 20;

/// Geometry of a float convolution with its operands.
struct Problem<'a> {
    conv: &'a Conv,
    src: &'a [f32],
    wei: &'a [f32],
    bias: Option<&'a [f32]>,
    /// `[H, W, C]` of the source.
    image: [usize; 3],
    /// `[K, KH, KW, C/groups]`.
    filter: [usize; 4],
    /// `[OH, OW]`.
    size: [usize; 2],
}

/// A float convolution; shapes have been accepted by the type rule.
fn convolve(conv: &Conv, args: &[&Tensor], out_shape: &[usize]) -> Result<Tensor, TypeError> {
    let rank4 = |shape: &[usize]| {
        <[usize; 4]>::try_from(shape).map_err(|_| TypeError::new(format!("expected rank 4, found {shape:?}")))
    };
    let [src, wei, bias @ ..] = args else {
        return Err(TypeError::new("expected 2 or 3 operands"));
    };
    let bias = bias.first().map(|b| b.f32s()).transpose()?;
    let [_, h, w, c] = rank4(src.shape())?;
    let [n, oh, ow, k] = rank4(out_shape)?;
    let filter = rank4(wei.shape())?;
    let problem = Problem { conv, src: src.f32s()?, wei: wei.f32s()?, bias, image: [h, w, c], filter, size: [oh, ow] };
    let rows = n * oh * ow;
    let mut dst = vec![0f32; rows * k];
    let patch = filter[1] * filter[2] * filter[3];
    // Few blocks: every product packs all the weights.
    let share = rows.div_ceil(rayon::current_num_threads());
    let block = (PATCH_BLOCK / patch.max(1)).clamp(1, share.max(1));
    dst.par_chunks_mut(block * k).enumerate().for_each(|(i, dst)| problem.rows(i * block, dst));
    Tensor::from_f32(out_shape, dst)
}

impl Problem<'_> {
    /// Computes output positions `first..`, as many as `dst` has rows of K.
    fn rows(&self, first: usize, dst: &mut [f32]) {
        let k = self.filter[0];
        for row in dst.chunks_mut(k) {
            match self.bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0.0),
            }
        }
        if self.filter[3] == 1 && k == self.conv.groups {
            return self.depthwise_rows(first, dst);
        }
        let rows = dst.len() / k;
        let patch = self.filter[1] * self.filter[2] * self.filter[3];
        let c = self.image[2];
        if self.is_pointwise() {
            return accumulate_product(&self.src[first * c..][..rows * c], self.wei, dst, [rows, patch, k], [0, k]);
        }
        let mut patches = vec![0f32; rows * patch];
        let per_group = k / self.conv.groups;
        for group in 0..self.conv.groups {
            self.gather(first, group, &mut patches);
            let wei = &self.wei[group * per_group * patch..][..per_group * patch];
            accumulate_product(&patches, wei, dst, [rows, patch, per_group], [group * per_group, k]);
        }
    }

    /// Whether an output position reads exactly the source position of the same number.
    fn is_pointwise(&self) -> bool {
        self.filter[1..3] == [1, 1] && self.conv.stride == [1, 1] && self.conv.pad == [0; 4] && self.conv.groups == 1
    }

    /// Image, row and column of an output position.
    fn position(&self, index: usize) -> (usize, usize, usize) {
        let [oh, ow] = self.size;
        (index / (oh * ow), index / ow % oh, index % ow)
    }

    /// One row per output position: the source values of one group in the order of a weight row, zeros in the padding.
    fn gather(&self, first: usize, group: usize, patches: &mut [f32]) {
        let ([h, w, c], [_, kh, kw, cg]) = (self.image, self.filter);
        let window = self.conv.window([kh, kw]);
        for (i, patch) in patches.chunks_mut(kh * kw * cg).enumerate() {
            let (image, oy, ox) = self.position(first + i);
            patch.fill(0.0);
            window.for_each_tap([h, w], (oy, ox), |ky, kx, y, x| {
                let from = ((image * h + y) * w + x) * c + group * cg;
                patch[(ky * kw + kx) * cg..][..cg].copy_from_slice(&self.src[from..from + cg]);
            });
        }
    }

    fn depthwise_rows(&self, first: usize, dst: &mut [f32]) {
        let ([h, w, c], [k, kh, kw, _]) = (self.image, self.filter);
        let window = self.conv.window([kh, kw]);
        let taps = kh * kw;
        // Tap-major, so that the innermost loop runs over channels.
        let wei: Vec<f32> = (0..taps * k).map(|i| self.wei[i % k * taps + i / k]).collect();
        for (i, dst) in dst.chunks_mut(k).enumerate() {
            let (image, oy, ox) = self.position(first + i);
            window.for_each_tap([h, w], (oy, ox), |ky, kx, y, x| {
                let src = &self.src[((image * h + y) * w + x) * c..][..c];
                let wei = &wei[(ky * kw + kx) * k..][..k];
                dst.iter_mut().zip(src.iter().zip(wei)).for_each(|(d, (s, w))| *d += s * w);
            });
        }
    }
}

/// `dst[m, column + n] += sum_p src[m, p] * wei[n, p]` for row-major `src [M,P]` and `wei [N,P]`, and
/// `dst` of M rows of `stride` values.
fn accumulate_product(src: &[f32], wei: &[f32], dst: &mut [f32], [m, p, n]: [usize; 3], [column, stride]: [usize; 2]) {
    assert!(src.len() >= m * p && wei.len() >= n * p && column + n <= stride && dst.len() >= m * stride);
    let (p_step, stride) = (p as isize, stride as isize);
    // SAFETY: by the assertion every address the product forms lies in its slice: src rows of p
    // values, wei read as its transpose (rows 1 apart, columns p apart), and of every dst row the
    // n values from `column` on. dst is borrowed mutably, so it overlaps neither source.
    unsafe {
        let dst = dst.as_mut_ptr().add(column);
        matrixmultiply::sgemm(m, p, n, 1.0, src.as_ptr(), p_step, 1, wei.as_ptr(), 1, p_step, 1.0, dst, stride, 1);
    }
}

#[cfg(test)]
mod tests {
    use hawqc_ir::interp;
    use proptest::prelude::*;

    use super::*;
    use crate::test_networks::{Net, relative_difference, residual_network, tensor};

    #[test]
    fn network_equals_interpreter() {
        let graph = residual_network(1);
        let input = [tensor(5, &[1, 3, 12, 12])];
        let mut expected = Vec::new();
        let slow = interp::run_observed(&graph, &input, |id, t| expected.push((id, t.clone()))).unwrap();
        let mut found = Vec::new();
        let fast = execute(&graph, &input, |id, t| found.push((id, t.clone()))).unwrap();
        assert!(relative_difference(&slow[0], &fast[0]) < 1e-5);
        // The executor shows the input as well.
        assert_eq!(found.len(), expected.len() + 1);
        for ((id, e), (found_id, f)) in expected.iter().zip(&found[1..]) {
            assert_eq!(id, found_id);
            assert!(relative_difference(e, f) < 1e-5);
        }
    }

    #[test]
    fn wrong_inputs_are_refused() {
        let graph = residual_network(1);
        let error = execute(&graph, &[tensor(5, &[1, 3, 12, 11])], |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("image"), "{error}");
        assert!(execute(&graph, &[], |_, _| {}).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn convolutions_equal_interpreter(
            image in (1usize..3, 1usize..8, 1usize..8),
            groups in 1usize..4,
            channels in (1usize..4, 1usize..4),
            kernel in (1usize..4, 1usize..4),
            stride in (1usize..3, 1usize..3),
            pad in any::<[bool; 4]>(),
            dilation in 1usize..3,
            seed in any::<u32>(),
        ) {
            let mut net = Net::new(seed.into());
            let shape = [image.0, image.1, image.2, channels.0 * groups];
            let x = net.input(&shape);
            let conv = Conv {
                stride: [stride.0, stride.1],
                pad: pad.map(|p| usize::from(p) * 2),
                dilation: [dilation, 1],
                groups,
                pad_value: 0,
            };
            let k = channels.1 * groups;
            let wei = net.constant(&[k, kernel.0, kernel.1, channels.0], 1.0);
            let Ok(x) = net.graph.add("conv", conv, &[x, wei]) else { return Ok(()) };
            net.output(x);
            let input = [tensor(u64::from(seed) + 1, &shape)];
            let expected = interp::run(&net.graph, &input).unwrap();
            let found = execute(&net.graph, &input, |_, _| {}).unwrap();
            prop_assert!(relative_difference(&expected[0], &found[0]) < 1e-5);
        }
    }
}
