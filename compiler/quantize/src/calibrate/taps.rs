//! Means of what the taps of a convolution read.

use hawqc_ir::{Conv, Graph, Op, ValueId};

/// Sums, over output positions and samples, of what each tap of a convolution reads.
pub(super) struct TapSums<'g> {
    pub conv: ValueId,
    pub source: ValueId,
    op: &'g Conv,
    /// `[H, W, C]` of the source.
    image: [usize; 3],
    kernel: [usize; 2],
    /// `[N, OH, OW]`.
    positions: [usize; 3],
    /// `[KH, KW, C]`.
    sums: Vec<f64>,
}

impl<'g> TapSums<'g> {
    /// `None` unless `id` is a float convolution.
    pub fn new(graph: &'g Graph, id: ValueId) -> Option<TapSums<'g>> {
        let Op::Conv(op) = graph.op(id) else {
            return None;
        };
        let (source, wei) = (graph.args(id)[0], graph.args(id)[1]);
        let [_, h, w, c] = graph.ty(source).nhwc().ok()?;
        let [_, kh, kw, _] = graph.ty(wei).nhwc().ok()?;
        let [n, oh, ow, _] = graph.ty(id).nhwc().ok()?;
        let sums = vec![0.0; kh * kw * c];
        let float = graph.ty(source).is_float();
        let (image, kernel, positions) = ([h, w, c], [kh, kw], [n, oh, ow]);
        float.then_some(TapSums { conv: id, source, op, image, kernel, positions, sums })
    }

    /// Adds one sample of the source.
    pub fn add(&mut self, src: &[f32]) {
        let ([h, w, c], [n, oh, ow]) = (self.image, self.positions);
        let window = self.op.window(self.kernel);
        let kw = self.kernel[1];
        for (tap, sums) in self.sums.chunks_mut(c).enumerate() {
            let columns: Vec<usize> = (0..ow).filter_map(|o| window.source(1, o, tap % kw, w)).collect();
            for image in 0..n {
                for y in (0..oh).filter_map(|o| window.source(0, o, tap / kw, h)) {
                    for x in &columns {
                        let pixel = &src[((image * h + y) * w + x) * c..][..c];
                        sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += f64::from(v));
                    }
                }
            }
        }
    }

    /// Means over `samples` samples.
    pub fn means(self, samples: u64) -> Vec<f32> {
        let positions = self.positions.iter().product::<usize>() as f64 * samples as f64;
        self.sums.into_iter().map(|sum| (sum / positions) as f32).collect()
    }
}
