//! The command line, declared once: names, help, parsing, completions and manual follow from here.

mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use self::values::{duration, pair, part, percentile, shard, widths};
use crate::limit::{self, Limit};

/// Compiles convolutional networks to integer-only, mixed int4/int8 shared objects.
#[derive(Debug, Parser)]
#[command(name = "hawqc", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Without a command, `hawqc [FLAGS] M.onnx` means `hawqc compile [FLAGS] M.onnx`.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// The arguments with `compile` put in where no command is named but a network is.
///
/// That is so if the first argument is a flag or a network (`.onnx`), some argument is a network, and none is the
/// name of a command.
pub fn with_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_network = |arg: &OsString| Path::new(arg).extension().is_some_and(|e| e == "onnx");
    let is_flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    let names: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_string()).collect();
    let given = args.get(1..).unwrap_or_default();
    let implied = given.first().is_some_and(|first| is_flag(first) || is_network(first))
        && given.iter().any(is_network)
        && !given.iter().any(|arg| names.iter().any(|name| arg == name.as_str()));
    if implied {
        args.insert(1, "compile".into());
    }
    args
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Results as JSON on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, no notes.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More detail on standard error; repeat for more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to colour messages.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Threads to use; by default all the process may use.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Seed of everything random.
    #[arg(long, global = true, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole job on the bundled network and real images, ends with a table.
    Demo(Demo),
    /// What a network or a compiled model contains.
    Inspect(Inspect),
    /// Observe activations on sample data.
    Calibrate(Calibrate),
    /// Write the quantised network as ONNX.
    Quantize(Quantize),
    /// What quantising each layer costs.
    Sensitivity(Sensitivity),
    /// Choose every layer's widths: the least sum of costs under limits, proven.
    Search(Search),
    /// Find the fastest schedules on this machine by measuring them.
    Tune(Tune),
    /// Make a latency table from a tuning log, or check how well it predicts.
    Table(Table),
    /// Join tuning logs of one machine.
    Merge(Merge),
    /// Compile a network to a shared object.
    Compile(Compile),
    /// Run a compiled model.
    Run(Run),
    /// Measure a compiled model's latency.
    Bench(Bench),
    /// Compare a compiled model with the reference interpreter, bit for bit.
    Verify(Verify),
    /// Top-1 and top-5 on labelled data.
    Eval(Eval),
    /// Which kernels a model consists of, and why.
    Explain(Explain),
    /// The targets that can be compiled for.
    Targets(Targets),
    /// Write a well-known network with random weights as ONNX.
    Zoo(Zoo),
    /// Completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// The manual page.
    Man,
}

/// How a float network becomes integer. Networks with QDQ nodes bring this along and need none of it.
#[derive(Clone, Debug, Args)]
pub struct Precision {
    /// Calibration file, from `hawqc calibrate`.
    #[arg(long, value_name = "CALIB.json")]
    pub calib: Option<PathBuf>,
    /// 8, 4, w4a8, w7a8, ..., hawq:CONFIG, or a bits.json file; by default 8.
    #[arg(long, value_name = "BITS")]
    pub bits: Option<String>,
    /// Batch size; by default the network's own, or 1 where it leaves it open.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Option<u32>,
    /// How activation ranges are chosen from the calibration.
    #[arg(long, value_enum, default_value_t = Method::Mse)]
    pub method: Method,
    /// Percentile kept by `--method percentile`.
    #[arg(long, default_value_t = 99.99, value_name = "P", value_parser = percentile)]
    pub percentile: f64,
    /// Width of the residual stream, 8 or 16; by default that of the plan.
    #[arg(long, value_name = "BITS")]
    pub residual_bits: Option<u8>,
    /// Leave biases as they are instead of correcting them for the mean error of rounded weights.
    #[arg(long)]
    pub no_bias_correction: bool,
}

#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Target, see `hawqc targets`.
    #[arg(long, value_name = "TARGET", default_value = "host")]
    pub target: String,
    /// Features to add or remove, e.g. +vbmi,-avx512vnni.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub cpu_features: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Keep the compiled models in this folder.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct Inspect {
    /// Network (.onnx) or compiled model (.so).
    pub model: PathBuf,
    /// Write the graph in Graphviz's language.
    #[arg(long, value_name = "FILE")]
    pub dot: Option<PathBuf>,
    /// Draw the graph.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// List only what cannot be compiled.
    #[arg(long)]
    pub unsupported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    Minmax,
    Percentile,
    Mse,
}

#[derive(Clone, Debug, Args)]
pub struct Calibrate {
    /// Float network.
    pub model: PathBuf,
    /// Sample data: .npz with `images`, or a folder of images.
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// Use at most this many samples.
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Calibration file to write.
    #[arg(short, long, value_name = "CALIB.json")]
    pub output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Qdq,
    Qcdq,
}

#[derive(Clone, Debug, Args)]
pub struct Quantize {
    /// Float network.
    pub model: PathBuf,
    #[command(flatten)]
    pub precision: Precision,
    /// Form of the written network.
    #[arg(long, value_enum, default_value_t = Format::Qcdq)]
    pub format: Format,
    /// Network to write.
    #[arg(short, long, value_name = "Q.onnx")]
    pub output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Average trace of the Hessian of the loss, times the squared error of the weights.
    Hessian,
    /// Mean squared gradients in place of the Hessian.
    Fisher,
    /// Divergence of the outputs when one layer is quantised, its input included.
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Estimator {
    /// The scores of the classes: fewest samples.
    Scores,
    /// All weights, with exact Hessian-vector products.
    Weights,
}

#[derive(Clone, Debug, Args)]
pub struct Sensitivity {
    /// Float network.
    pub model: PathBuf,
    /// Sample data: .npz with `images` and, if there are any, `labels`; or a folder of images.
    #[arg(long, value_name = "DATA", required_unless_present = "import")]
    pub data: Option<PathBuf>,
    /// Calibration file, from `hawqc calibrate`; `--metric output` needs it.
    #[arg(long, value_name = "CALIB.json")]
    pub calib: Option<PathBuf>,
    /// What stands for the sensitivity of a layer.
    #[arg(long, value_enum, default_value_t = Metric::Hessian)]
    pub metric: Metric,
    /// Over what the random signs are drawn that estimate the Hessian's trace.
    #[arg(long, value_enum, default_value_t = Estimator::Scores)]
    pub estimator: Estimator,
    /// Use at most this many samples, spread evenly over the data.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Random vectors for each sample; used only where one each is not enough.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub probes: u32,
    /// Stop when the standard error of every cost is at most this part of it, or of the mean cost if that is more.
    #[arg(long, value_name = "PART", default_value_t = 0.1, value_parser = part)]
    pub tolerance: f64,
    /// Width choices, weights and activations, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "w8a8,w4a4,w4a8")]
    pub choices: Vec<String>,
    /// Measure part i of n, e.g. 0/4; for `hawqc merge`. Never stops early.
    #[arg(long, value_name = "I/N", value_parser = shard, conflicts_with = "tolerance")]
    pub shard: Option<(usize, usize)>,
    /// Measure nothing, take published traces: `hawq`, or a file of such tables.
    #[arg(long, value_name = "TABLES.json", conflicts_with_all = ["data", "calib", "shard"])]
    pub import: Option<String>,
    /// Sensitivities to write; beside them stands a checkpoint, `.partial`, until all is measured.
    #[arg(short, long, value_name = "SENS.json")]
    pub output: PathBuf,
}

// The group is how `Cli` tells that a network was given; clap leaves it empty where arguments are flattened.
#[derive(Clone, Debug, Args)]
pub struct Compile {
    /// Network (.onnx).
    pub model: PathBuf,
    #[command(flatten)]
    pub precision: Precision,
    #[command(flatten)]
    pub target: TargetArgs,
    /// What to write, separated by commas: so, obj, header, or a stage (see `hawqc explain --stages`).
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "so")]
    pub emit: Vec<String>,
    /// File to write; further emitted files stand beside it. By default the model's name with `.so`.
    #[arg(short, long, value_name = "M.so")]
    pub output: Option<PathBuf>,
    /// Keep every intermediate value in the arena, for `verify --per-layer`.
    #[arg(long)]
    pub keep_values: bool,
    /// Link with `cc` instead of the built-in linker.
    #[arg(long)]
    pub link_with_cc: bool,
    /// Tuning log, from `hawqc tune`, to take schedules from.
    #[arg(long, value_name = "TUNE.jsonl")]
    pub tuning: Option<PathBuf>,
    /// Most bytes that weights and tables may take, e.g. 30MiB: fast convolutions by transformed weights give way to
    /// direct ones.
    #[arg(long, value_name = "BYTES", value_parser = limit::bytes)]
    pub max_resident: Option<usize>,
}

#[derive(Clone, Debug, Args)]
pub struct Tune {
    /// Network (.onnx). `--bits` is a list of uniform widths, by default 8,4,w4a8.
    pub model: PathBuf,
    #[command(flatten)]
    pub precision: Precision,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Time for everything, e.g. 2m or 90s.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration, conflicts_with = "trials")]
    pub time_budget: std::time::Duration,
    /// Runs of the network for each width, instead of a time.
    #[arg(long, value_name = "N")]
    pub trials: Option<usize>,
    /// Go on with a log that exists.
    #[arg(long)]
    pub resume: bool,
    /// Tune part i of n of the workloads, e.g. 0/4; join the logs with `hawqc merge`, then go on with `--resume`.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Random mixtures of the widths to measure, for what the latency table adds where widths meet.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub mixtures: usize,
    /// Log to write or to go on with.
    #[arg(short, long, value_name = "TUNE.jsonl")]
    pub output: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct Table {
    /// Tuning log, from `hawqc tune`.
    pub log: PathBuf,
    /// Table to write.
    #[arg(short, long, value_name = "LATENCY.json", required_unless_present = "validate")]
    pub output: Option<PathBuf>,
    /// Measure N random mixtures and compare them with what the table predicts.
    #[arg(long, value_name = "N", requires = "network")]
    pub validate: Option<usize>,
    /// The network that was tuned, for `--validate`.
    #[arg(long, value_name = "M.onnx")]
    pub network: Option<PathBuf>,
    #[command(flatten)]
    pub precision: Precision,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct Merge {
    /// Files of one kind.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// File to write.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct Search {
    /// Float network.
    pub model: PathBuf,
    /// What each choice costs each layer, from `hawqc sensitivity`; without, the rounding of weights counts.
    #[arg(long, value_name = "SENS.json")]
    pub sensitivity: Option<PathBuf>,
    /// How long each choice takes, from `hawqc table`, or bare lists of milliseconds.
    #[arg(long, value_name = "LATENCY.json")]
    pub latency: Option<PathBuf>,
    /// Take both from HAWQ's tables: `published`, or a file of that form.
    #[arg(long, value_name = "TABLES", conflicts_with_all = ["sensitivity", "latency"])]
    pub hawq_tables: Option<String>,
    /// Limit on latency: a time, or a share of uniform w8a8, e.g. 12ms or 0.77x.
    #[arg(long, value_name = "TIME", value_parser = limit::latency)]
    pub max_latency: Option<Limit>,
    /// Limit on the size of the weights, e.g. 15MB, 800KiB or 0.6x.
    #[arg(long, value_name = "SIZE", value_parser = limit::size)]
    pub max_size: Option<Limit>,
    /// Limit on bit operations (multiply-accumulates x weight bits x activation bits), e.g. 90G or 0.5x.
    #[arg(long, value_name = "BOPS", value_parser = limit::bops)]
    pub max_bops: Option<Limit>,
    /// Widths to choose from, e.g. w8a8,w4a4,w4a8; by default all that the tables know.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = widths)]
    pub choices: Option<Vec<hawqc_quantize::LayerBits>>,
    /// Two layers that must have the same widths; may be given several times.
    #[arg(long, value_name = "A=B", value_parser = pair)]
    pub tie: Vec<(String, String)>,
    /// Layers that read the same value must have the same widths.
    #[arg(long)]
    pub tie_shared: bool,
    /// Let the first and the last layers leave 8 bits.
    #[arg(long)]
    pub free_edges: bool,
    /// Write the front of best plans as .csv or .svg; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub pareto: Vec<PathBuf>,
    /// What the front trades against cost; by default latency where it is known, else size.
    #[arg(long, value_name = "RESOURCE", value_parser = ["latency", "size", "bops"], requires = "pareto")]
    pub pareto_over: Option<String>,
    /// Number of limits that the front is solved for.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub pareto_points: u32,
    /// Number of random plans shown beside the front.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub pareto_random: usize,
    /// Compile the K best plans, evaluate them on data, and take the most accurate.
    #[arg(long, value_name = "K", requires_all = ["data", "calib"], value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rescore: Option<u32>,
    /// Data for `--rescore`: .npz with `images` and perhaps `labels`, or a folder of images.
    #[arg(long, value_name = "DATA", requires = "rescore")]
    pub data: Option<PathBuf>,
    /// Calibration for `--rescore`.
    #[arg(long, value_name = "CALIB.json", requires = "rescore")]
    pub calib: Option<PathBuf>,
    /// Steps after which the search ends with the gap that remains.
    #[arg(long, value_name = "N", default_value_t = 4_000_000_000)]
    pub max_steps: u64,
    /// Plan to write.
    #[arg(short, long, value_name = "BITS.json", required_unless_present = "pareto")]
    pub output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fill {
    Random,
    Zeros,
}

#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Compiled model.
    pub model: PathBuf,
    /// Inputs by name (.npz), or the only input (.npy).
    #[arg(short, long, value_name = "X.npz", required_unless_present = "fill")]
    pub input: Option<PathBuf>,
    /// Make inputs up.
    #[arg(long, value_enum, conflicts_with = "input")]
    pub fill: Option<Fill>,
    /// Write the outputs.
    #[arg(short, long, value_name = "Y.npz")]
    pub output: Option<PathBuf>,
    /// Compare the outputs with these; any difference is an error.
    #[arg(long, value_name = "Y.npz")]
    pub expected: Option<PathBuf>,
    /// Print the largest values of each output.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub top: usize,
    /// Use the integer entry: integers in, integers out.
    #[arg(long)]
    pub integer: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// Compiled model.
    pub model: PathBuf,
    /// Runs before measuring.
    #[arg(long, default_value_t = 5)]
    pub warmup: usize,
    /// Runs to measure.
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub iters: Option<usize>,
    /// Time to measure, e.g. 5s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub duration: std::time::Duration,
    /// Time of each step.
    #[arg(long)]
    pub profile: bool,
    /// The steps' median times, one behind the other, for chrome://tracing or Perfetto.
    #[arg(long, value_name = "TRACE.json", requires = "profile")]
    pub trace: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// The network the model was compiled from, or only the compiled model with `--integer-only`.
    #[arg(required = true, num_args = 1..=2, value_names = ["M.onnx", "m.so"])]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub precision: Precision,
    /// `interp`, `float`, or an .npz with expected outputs.
    #[arg(long, default_value = "interp", value_name = "REFERENCE")]
    pub against: String,
    /// Inputs (.npz); random ones by default.
    #[arg(short, long, value_name = "X.npz")]
    pub input: Option<PathBuf>,
    /// Random inputs to try.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Compare every kernel's result, and name the first that differs.
    #[arg(long)]
    pub per_layer: bool,
    /// Disassemble the model: no floating point and no division between the borders.
    #[arg(long)]
    pub integer_only: bool,
    /// Largest difference allowed, in units of the last place.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_lsb: u64,
}

#[derive(Clone, Debug, Args)]
pub struct Eval {
    /// Network (.onnx, evaluated in floats) or compiled model (.so).
    pub model: PathBuf,
    /// Labelled data: .npz with `images` and `labels`, or a folder with one folder a class.
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// Evaluate part i of n, e.g. 0/4.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
}

#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// Network (.onnx) or compiled model (.so).
    #[arg(required_unless_present = "stages")]
    pub model: Option<PathBuf>,
    /// Only this node: what was proved of it, which schedules were passed over and why.
    pub node: Option<String>,
    /// Tuning log with measured times of the node's schedules.
    #[arg(long, value_name = "TUNE.jsonl", requires = "node")]
    pub tuning: Option<PathBuf>,
    #[command(flatten)]
    pub precision: Precision,
    #[command(flatten)]
    pub target: TargetArgs,
    /// List the stages of compilation that `--emit` can write.
    #[arg(long)]
    pub stages: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Targets {
    /// Only what this machine is.
    #[arg(long)]
    pub host: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Zoo {
    /// Name of the network; without one, the list of names.
    pub name: Option<String>,
    /// File to write.
    #[arg(short, long, value_name = "M.onnx", required_unless_present = "list")]
    pub output: Option<PathBuf>,
    /// List the names.
    #[arg(long, conflicts_with_all = ["name", "output"])]
    pub list: bool,
    /// Height and width of the input; by default the network's own.
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Number of classes.
    #[arg(long, default_value_t = 1000)]
    pub classes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(args: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(with_command(args.split(' ').map(OsString::from)))
    }

    #[test]
    fn no_command_means_compile() {
        for text in ["hawqc --target x86-avx512 m.onnx", "hawqc m.onnx --target x86-avx512", "hawqc --json m.onnx"] {
            let cli = parse(text).unwrap();
            assert!(matches!(&cli.command, Command::Compile(c) if c.model == Path::new("m.onnx")), "{text}");
        }
        assert!(matches!(parse("hawqc --json inspect m.onnx").unwrap().command, Command::Inspect(_)));
        assert!(parse("hawqc fly m.onnx").unwrap_err().to_string().contains("unrecognized subcommand 'fly'"));
        assert!(parse("hawqc").is_err());
    }
}
