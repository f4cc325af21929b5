//! The commands, one file each, and what they share.

mod bench;
mod calibrate;
mod compile;
mod demo;
mod eval;
mod explain;
mod inspect;
mod merge;
mod quantize;
mod run;
mod search;
mod sensitivity;
mod table;
mod targets;
mod tune;
mod verify;
mod zoo;

use std::path::Path;

use clap::CommandFactory;
use hawqc_driver::{Class, Error, Precision, Source, Target};
use hawqc_quantize::{BiasCorrection, Calibration, Method, Options, PrecisionPlan, hawq};
use hawqc_runtime as rt;

use crate::args::{self, Cli, Command};
use crate::console::Console;
use crate::failure::{Failure, Kind, io};

/// Does what the arguments ask for.
pub fn run(cli: &Cli, console: &Console) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => demo::run(args, global, console),
        Command::Inspect(args) => inspect::run(args, console),
        Command::Calibrate(args) => calibrate::run(args, console),
        Command::Quantize(args) => quantize::run(args, console),
        Command::Sensitivity(args) => sensitivity::run(args, global, console),
        Command::Search(args) => search::run(args, global, console),
        Command::Tune(args) => tune::run(args, global, console),
        Command::Table(args) => table::run(args, global, console),
        Command::Merge(args) => merge::run(args, console),
        Command::Compile(args) => compile::run(args, global, console),
        Command::Run(args) => run::run(args, global, console),
        Command::Bench(args) => bench::run(args, global, console),
        Command::Verify(args) => verify::run(args, global, console),
        Command::Eval(args) => eval::run(args, global, console),
        Command::Explain(args) => explain::run(args, console),
        Command::Targets(args) => targets::run(args, console),
        Command::Zoo(args) => zoo::run(args, global, console),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "hawqc", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut std::io::stdout())
            .map_err(io(Path::new("standard output"))),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match error.class() {
            Class::Internal => Kind::Internal,
            Class::Usage => Kind::Usage,
            Class::Invalid => Kind::Invalid,
            Class::Unsupported => Kind::Unsupported,
            Class::Cpu => Kind::Cpu,
            Class::Infeasible => Kind::Infeasible,
        };
        let failure = Failure::new(kind, error.to_string());
        match error {
            Error::NotCalibrated => {
                failure.hint("hawqc calibrate MODEL --data DATA -o calib.json, then give --calib calib.json")
            }
            _ => failure,
        }
    }
}

impl From<rt::Error> for Failure {
    fn from(error: rt::Error) -> Failure {
        Error::from(error).into()
    }
}

impl From<rt::npy::NpyError> for Failure {
    fn from(error: rt::npy::NpyError) -> Failure {
        rt::Error::from(error).into()
    }
}

impl From<hawqc_quantize::QuantizeError> for Failure {
    fn from(error: hawqc_quantize::QuantizeError) -> Failure {
        Error::from(error).into()
    }
}

impl From<hawqc_quantize::sensitivity::SensitivityError> for Failure {
    fn from(error: hawqc_quantize::sensitivity::SensitivityError) -> Failure {
        use hawqc_quantize::sensitivity::SensitivityError as Sens;
        match error {
            Sens::Quantize(error) => error.into(),
            Sens::Choice(_) => Failure::usage(error.to_string()),
            _ => Failure::invalid(error.to_string()),
        }
    }
}

/// The target the arguments name.
fn target(args: &args::TargetArgs) -> Result<Target, Failure> {
    let target = Target::parse(&args.target).map_err(Error::from)?;
    match &args.cpu_features {
        None => Ok(target),
        Some(changes) => Ok(target.with_changes(changes).map_err(Error::from)?),
    }
}

/// The target as the arguments spell it; what tuning logs know it by.
fn target_text(args: &args::TargetArgs) -> String {
    match &args.cpu_features {
        None => args.target.clone(),
        Some(changes) => format!("{} {changes}", args.target),
    }
}

/// Whether a file is a compiled model rather than a network.
fn is_compiled(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "so")
}

/// Refuses to write over the network that is read.
fn check_output(output: &Path, model: &Path) -> Result<(), Failure> {
    match (output.canonicalize(), model.canonicalize()) {
        (Ok(output), Ok(model)) if output == model => {
            Err(Failure::usage(format!("{} is the network itself; give another output", model.display())))
        }
        _ => Ok(()),
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(io(path))
}

/// How `source` becomes integer: `None` if it brings its own quantisation.
fn precision(args: &args::Precision, source: &Source) -> Result<Option<Precision>, Failure> {
    if source.is_quantized() {
        let given = [("--calib", args.calib.is_some()), ("--bits", args.bits.is_some())];
        if let Some((flag, _)) = given.iter().find(|(_, is_given)| *is_given) {
            return Err(Failure::usage(format!("the network is quantised already; {flag} has no meaning for it")));
        }
        return Ok(None);
    }
    let path = args.calib.as_ref().ok_or(Error::NotCalibrated)?;
    let calibration =
        Calibration::from_json(&read_text(path)?).map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
    calibration.check_model(&source.hash)?;
    let graph = hawqc_driver::float_form(source)?;
    let mut plan = plan(args.bits.as_deref().unwrap_or("8"), &graph)?;
    if let Some(bits) = args.residual_bits {
        plan = plan.with_residual_bits(bits)?;
    }
    Ok(Some(Precision { calibration, plan, options: options(args) }))
}

fn options(args: &args::Precision) -> Options {
    let method = match args.method {
        args::Method::Minmax => Method::MinMax,
        args::Method::Mse => Method::Mse,
        args::Method::Percentile => Method::Percentile(args.percentile),
    };
    let bias_correction =
        if args.no_bias_correction { BiasCorrection::None } else { Options::default().bias_correction };
    Options { method, bias_correction }
}

/// The plan that `--bits` names.
fn plan(bits: &str, graph: &hawqc_ir::Graph) -> Result<PrecisionPlan, Failure> {
    let uniform = |w, a| Ok(PrecisionPlan::uniform(graph, w, a)?);
    if let Some(config) = bits.strip_prefix("hawq:") {
        return Ok(hawq::plan(graph, config)?);
    }
    let widths = |text: &str| {
        let (w, a) = text.strip_prefix('w')?.split_once('a')?;
        Some((w.parse().ok()?, a.parse().ok()?))
    };
    match (bits.parse::<u8>(), widths(bits)) {
        (Ok(b), _) => uniform(b, b),
        (_, Some((w, a))) => uniform(w, a),
        _ => PrecisionPlan::read(&read_text(Path::new(bits))?, graph)
            .map_err(|e| Failure::invalid(format!("{bits}: {e}"))),
    }
}
