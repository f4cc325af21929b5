//! `hawqc calibrate`: what values activations take on sample data.

use hawqc_driver::{Source, float_form, write_file};
use hawqc_ir::Tensor;
use hawqc_quantize::{Calibration, Calibrator};

use crate::args::Calibrate;
use crate::console::Console;
use crate::data::Dataset;
use crate::failure::Failure;

pub fn run(args: &Calibrate, console: &Console) -> Result<(), Failure> {
    let source = Source::load(&args.model, Some(1))?;
    let calibration = observe(&source, |input| Dataset::open(&args.data, input), args.samples, console)?;
    write_file(&args.output, calibration.to_json().as_bytes())?;
    console.note(format!(
        "{} values observed on {} samples: {}",
        calibration.values().len(),
        calibration.samples(),
        args.output.display()
    ));
    Ok(())
}

/// Streams the data that `open` gives for the network's input through its float form.
pub fn observe(
    source: &Source,
    open: impl FnOnce(&[usize]) -> Result<Dataset, Failure>,
    samples: Option<usize>,
    console: &Console,
) -> Result<Calibration, Failure> {
    if source.is_quantized() {
        return Err(Failure::usage("the network is quantised already and needs no calibration"));
    }
    let graph = float_form(source)?;
    let shape = single_input(&graph)?;
    let data = open(&shape)?;
    let count = samples.unwrap_or(data.len()).min(data.len());
    let mut calibrator = Calibrator::new(&graph)?;
    let bar = console.progress("calibrating", count);
    for index in 0..count {
        let image = Tensor::from_f32(shape.clone(), data.sample(index)?).map_err(hawqc_driver::Error::from)?;
        calibrator.observe(&[image])?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(calibrator.finish(&source.hash)?)
}

/// The shape of the only input, batch 1.
pub fn single_input(graph: &hawqc_ir::Graph) -> Result<Vec<usize>, Failure> {
    match graph.inputs() {
        [input] if graph.ty(*input).shape.first() == Some(&1) => Ok(graph.ty(*input).shape.clone()),
        [input] => {
            Err(Failure::invalid(format!("data is fed one sample at a time; the input is {}", graph.ty(*input))))
        }
        inputs => Err(Failure::invalid(format!("data is fed to one input; the network has {}", inputs.len()))),
    }
}
