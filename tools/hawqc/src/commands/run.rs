//! `hawqc run`: a compiled model on given or made-up inputs.

use std::path::Path;
use std::sync::Arc;

use hawqc_driver::verify::Difference;
use hawqc_driver::{fill, tensors};
use hawqc_runtime::manifest::TensorDesc;
use hawqc_runtime::npy::{Npz, read_npy, write_npz};
use hawqc_runtime::{Entry, Model, Session, Tensor, TensorRef};
use serde_json::json;

use crate::args::{Fill, Global, Run};
use crate::console::{Console, table};
use crate::failure::{Failure, Kind};

pub fn run(args: &Run, global: &Global, console: &Console) -> Result<(), Failure> {
    let model = Arc::new(Model::open(&args.model).map_err(hawqc_runtime::Error::from)?);
    let entry = if args.integer { Entry::Integer } else { Entry::Border };
    let inputs = match (&args.input, args.fill) {
        (Some(path), _) => read_inputs(path, &model.manifest().inputs)?,
        (None, how) => make_inputs(&model, entry, how.unwrap_or(Fill::Random), global.seed)?,
    };
    let views: Vec<TensorRef> = inputs.iter().map(Tensor::view).collect();
    let mut session = Session::new(Arc::clone(&model), global.threads.map(|n| n as usize))?;
    let outputs = session.run_entry(entry, &views).map_err(hawqc_runtime::Error::from)?;
    let names: Vec<&str> = model.manifest().outputs.iter().map(|o| o.name.as_str()).collect();
    if let Some(path) = &args.output {
        let arrays: Vec<(&str, TensorRef)> = names.iter().copied().zip(outputs.iter().map(Tensor::view)).collect();
        write_npz(path, &arrays)?;
    }
    show(&names, &outputs, args.top, console)?;
    match &args.expected {
        None => Ok(()),
        Some(path) => compare(path, &names, &outputs),
    }
}

/// Inputs from a file: one array by the name of each input, or the only one there is.
pub fn read_inputs(path: &Path, descs: &[TensorDesc]) -> Result<Vec<Tensor>, Failure> {
    if path.extension().is_some_and(|e| e == "npy") {
        return match descs {
            [_] => Ok(vec![read_npy(path)?]),
            _ => Err(Failure::usage(format!("the model has {} inputs; give them by name in an .npz", descs.len()))),
        };
    }
    let mut archive = Npz::open(path)?;
    if let ([_], [only]) = (descs, archive.names().as_slice()) {
        return Ok(vec![archive.read(only)?]);
    }
    descs.iter().map(|d| Ok(archive.read(&d.name)?)).collect()
}

/// Inputs nobody gave.
pub fn make_inputs(model: &Model, entry: Entry, how: Fill, seed: u64) -> Result<Vec<Tensor>, Failure> {
    let make = |(index, desc): (usize, &TensorDesc)| {
        let (elem, shape) = desc.at(entry);
        match how {
            Fill::Zeros => Ok(Tensor::zeros(elem, shape.to_vec()).map_err(hawqc_runtime::Error::from)?),
            Fill::Random => Ok(fill::random(elem, shape, seed.wrapping_add(index as u64))?),
        }
    };
    model.manifest().inputs.iter().enumerate().map(make).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f64>, Failure> {
    let tensor = tensors::to_ir_same(tensor)?;
    match tensor.f32s() {
        Ok(values) => Ok(values.iter().map(|&v| v.into()).collect()),
        Err(_) => Ok(tensor.ints().map_err(hawqc_driver::Error::from)?.into_iter().map(|v| v as f64).collect()),
    }
}

/// The largest values of each output.
fn show(names: &[&str], outputs: &[Tensor], top: usize, console: &Console) -> Result<(), Failure> {
    let mut found = Vec::new();
    for (name, output) in names.iter().zip(outputs) {
        let mut ranked: Vec<(usize, f64)> = values(output)?.into_iter().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(top);
        found.push((*name, output.shape(), ranked));
    }
    let json: Vec<_> = found
        .iter()
        .map(|(name, shape, ranked)| {
            let top: Vec<_> = ranked.iter().map(|(i, v)| json!({ "index": i, "value": v })).collect();
            json!({ "output": name, "shape": shape, "top": top })
        })
        .collect();
    console.result(&json, || {
        let rows = |(name, _, ranked): &(&str, &[usize], Vec<(usize, f64)>)| {
            let row = |(i, v): &(usize, f64)| vec![name.to_string(), i.to_string(), format!("{v:.6}")];
            ranked.iter().map(row).collect::<Vec<_>>()
        };
        table(&["output", "index", "value"], found.iter().flat_map(rows))
    })
}

fn compare(path: &Path, names: &[&str], outputs: &[Tensor]) -> Result<(), Failure> {
    let mut archive = Npz::open(path)?;
    for (name, output) in names.iter().zip(outputs) {
        let expected = tensors::to_ir_same(&archive.read(name)?)?;
        let found = tensors::to_ir_same(output)?;
        let difference = Difference::between(*name, &expected, &found).map_err(hawqc_driver::Error::from)?;
        if let Some((index, expected, found)) = difference.first {
            let message = format!(
                "output `{name}` differs from {} by up to {} in the last place, first at {index}: expected {expected}, found {found}",
                path.display(),
                difference.max_lsb()
            );
            return Err(Failure::new(Kind::Mismatch, message));
        }
    }
    Ok(())
}
