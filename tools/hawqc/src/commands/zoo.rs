//! `hawqc zoo`: well-known networks with random weights.

use hawqc_driver::write_file;
use hawqc_onnx::zoo::{self, ZooOptions};

use crate::args::{Global, Zoo};
use crate::console::{Console, bytes};
use crate::failure::Failure;

pub fn run(args: &Zoo, global: &Global, console: &Console) -> Result<(), Failure> {
    let (Some(name), Some(output)) = (&args.name, &args.output) else {
        return console.result(&zoo::NAMES, || zoo::NAMES.join("\n"));
    };
    let options =
        ZooOptions { image_size: args.image_size, seed: global.seed, classes: args.classes, ..ZooOptions::default() };
    let model = zoo::write(name, &options).map_err(|e| Failure::usage(e.to_string()))?;
    write_file(output, &model)?;
    console.note(format!("wrote {} ({})", output.display(), bytes(model.len())));
    Ok(())
}
