//! `hawqc quantize`: the network with its quantisation, as ONNX.

use hawqc_driver::{Error, Source, write_file};
use hawqc_onnx::{Format as OnnxFormat, export};

use super::{check_output, precision};
use crate::args::{Format, Quantize};
use crate::console::{Console, bytes};
use crate::failure::Failure;

pub fn run(args: &Quantize, console: &Console) -> Result<(), Failure> {
    check_output(&args.output, &args.model)?;
    let source = Source::load(&args.model, args.precision.batch.map(|n| n as usize))?;
    let Some(precision) = precision(&args.precision, &source)? else {
        return Err(Failure::usage("the network is quantised already"));
    };
    let graph = hawqc_driver::quantize(&source, &precision)?;
    let format = match args.format {
        Format::Qdq => OnnxFormat::Qdq,
        Format::Qcdq => OnnxFormat::Qcdq,
    };
    let model = export(&graph, format).map_err(Error::from)?;
    write_file(&args.output, &model)?;
    console.note(format!("wrote {} ({})", args.output.display(), bytes(model.len())));
    Ok(())
}
