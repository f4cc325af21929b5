//! `hawqc eval`: top-1 and top-5 on labelled data.

use std::sync::Arc;

use hawqc_driver::{Source, float_form};
use hawqc_ir::Tensor;
use hawqc_quantize::Executor;
use hawqc_runtime::{Model, Session, TensorRef};
use serde::Serialize;

use super::calibrate::single_input;
use super::is_compiled;
use crate::args::{Eval, Global};
use crate::console::Console;
use crate::data::Dataset;
use crate::failure::Failure;

/// How often the right class was first, or among the first five.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Accuracy {
    pub samples: usize,
    pub top1: usize,
    pub top5: usize,
}

impl Accuracy {
    /// Counts one sample; an error if there is no score for its label.
    fn record(&mut self, scores: &[f32], label: usize) -> Result<(), Failure> {
        let classes = scores.len();
        let missing = || Failure::invalid(format!("label {label} is beyond the network's {classes} classes"));
        // The rank of the label: scores above it, and equal ones before it.
        let &own = scores.get(label).ok_or_else(missing)?;
        let ahead = scores.iter().enumerate().filter(|&(i, &s)| s > own || (s == own && i < label)).count();
        self.samples += 1;
        self.top1 += usize::from(ahead < 1);
        self.top5 += usize::from(ahead < 5);
        Ok(())
    }

    /// Share of samples whose label came first, in percent.
    pub fn top1_percent(&self) -> f64 {
        100.0 * self.top1 as f64 / self.samples.max(1) as f64
    }

    fn top5_percent(&self) -> f64 {
        100.0 * self.top5 as f64 / self.samples.max(1) as f64
    }
}

pub fn run(args: &Eval, global: &Global, console: &Console) -> Result<(), Failure> {
    let accuracy = if is_compiled(&args.model) {
        let model = Model::open(&args.model).map_err(hawqc_runtime::Error::from)?;
        let mut session = Session::new(Arc::new(model), global.threads.map(|n| n as usize))?;
        let data = Dataset::open(&args.data, &input_shape(&session)?)?;
        compiled(&mut session, &data, args.shard, console)?
    } else {
        let source = Source::load(&args.model, Some(1))?;
        let graph = if source.is_quantized() { source.graph } else { float_form(&source)? };
        let data = Dataset::open(&args.data, &single_input(&graph)?)?;
        float(&graph, &data, args.shard, console)?
    };
    console.result(&accuracy, || {
        format!(
            "top-1 {:.2} %, top-5 {:.2} % of {} samples",
            accuracy.top1_percent(),
            accuracy.top5_percent(),
            accuracy.samples
        )
    })
}

/// The shape of a compiled model's only input.
pub fn input_shape(session: &Session) -> Result<Vec<usize>, Failure> {
    match session.model().manifest().inputs.as_slice() {
        [input] => Ok(input.shape.clone()),
        inputs => Err(Failure::invalid(format!("data is fed to one input; the model has {}", inputs.len()))),
    }
}

/// Accuracy of a compiled model.
pub fn compiled(
    session: &mut Session,
    data: &Dataset,
    shard: Option<(usize, usize)>,
    console: &Console,
) -> Result<Accuracy, Failure> {
    let shape = input_shape(session)?;
    count(data, shard, console, |image| {
        let input = TensorRef::new(&shape, image).map_err(hawqc_runtime::Error::from)?;
        let outputs = session.run(&[input]).map_err(hawqc_runtime::Error::from)?;
        let scores = outputs.first().and_then(|o| o.as_slice::<f32>());
        scores.map(<[f32]>::to_vec).ok_or_else(|| Failure::invalid("the model's first output is not f32"))
    })
}

/// Accuracy of a float graph (or of one with simulated quantisation).
pub fn float(
    graph: &hawqc_ir::Graph,
    data: &Dataset,
    shard: Option<(usize, usize)>,
    console: &Console,
) -> Result<Accuracy, Failure> {
    let shape = single_input(graph)?;
    let executor = Executor::new(graph)?;
    count(data, shard, console, |image| {
        let input = Tensor::from_f32(shape.clone(), image.to_vec()).map_err(hawqc_driver::Error::from)?;
        let outputs = executor.run(&[input], |_, _| {})?;
        let scores = outputs.first().and_then(|o| o.f32s().ok());
        scores.map(<[f32]>::to_vec).ok_or_else(|| Failure::invalid("the network's first output is not f32"))
    })
}

fn count(
    data: &Dataset,
    shard: Option<(usize, usize)>,
    console: &Console,
    mut scores: impl FnMut(&[f32]) -> Result<Vec<f32>, Failure>,
) -> Result<Accuracy, Failure> {
    let labels = data.labels()?;
    let (part, parts) = shard.unwrap_or((0, 1));
    let range = data.len() * part / parts..data.len() * (part + 1) / parts;
    let bar = console.progress("evaluating", range.len());
    let mut accuracy = Accuracy::default();
    for index in range {
        accuracy.record(&scores(&data.sample(index)?)?, labels[index])?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(accuracy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first() {
        let mut accuracy = Accuracy::default();
        accuracy.record(&[1.0, 1.0, 0.0], 1).unwrap();
        accuracy.record(&[1.0, 1.0, 0.0], 0).unwrap();
        accuracy.record(&[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 5).unwrap();
        assert!(accuracy.record(&[1.0], 7).is_err());
        assert_eq!((accuracy.samples, accuracy.top1, accuracy.top5), (3, 1, 2));
    }
}
