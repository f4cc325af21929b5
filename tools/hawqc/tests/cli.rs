//! The command line as users meet it: the whole way from a network to numbers, every exit code, JSON
//! that parses, the same bytes for the same input, and no file left behind by a command that fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_runtime::{Tensor, npy};
use prost::Message;
use serde_json::Value;
use tempfile::TempDir;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::{ModelProto, NodeProto, tensor_proto::DataType, type_proto};

const OTHER_CPU: &str = if cfg!(target_arch = "aarch64") { "x86-64-v2" } else { "aarch64" };

/// What a command did.
struct Outcome {
    command: String,
    code: i32,
    stdout: String,
    stderr: String,
}

fn hawqc<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_hawqc")).args(args).output().unwrap();
    let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    let outcome = Outcome {
        command: format!("hawqc {}", args.join(" ")),
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(!all.contains("panicked") && !all.contains("internal error"), "{}: {all}", outcome.command);
    outcome
}

impl Outcome {
    fn expect(self, code: i32, text: &str) -> Outcome {
        let Outcome { command, code: found, stdout, stderr } = &self;
        assert_eq!(*found, code, "{command}\n{stdout}{stderr}");
        assert!(stdout.contains(text) || stderr.contains(text), "{command}: no `{text}` in\n{stdout}{stderr}");
        if code != 0 {
            assert!(stdout.is_empty() || code == 5, "{command}: a result although it failed: {stdout}");
            assert!(stderr.contains("error"), "{command}: {stderr}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.command, self.stdout))
    }
}

/// `hawqc` with arguments separated by spaces, `{}` standing for the fixture's folder; must succeed.
fn ok(line: &str) -> Outcome {
    run(line).expect(0, "")
}

fn run(line: &str) -> Outcome {
    let folder = FIXTURE.path().to_str().unwrap();
    let args: Vec<String> = line.split_whitespace().map(|a| a.replace("{}", folder)).collect();
    hawqc(&args)
}

fn network(name: &str) -> Vec<u8> {
    let options = ZooOptions { image_size: Some(16), classes: 10, width: 0.5, seed: 1 };
    zoo::write(name, &options).unwrap()
}

fn images(count: usize, size: usize) -> Tensor {
    let values = (0..count * 3 * size * size).map(|i| ((i * 7919 + i / 13 * 31) % 601) as f32 / 150.0 - 2.0);
    Tensor::new(vec![count, 3, size, size], values.collect()).unwrap()
}

/// A small network `m.onnx`, `data.npz`, `calib.json` and `m.so`, made once.
static FIXTURE: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("m.onnx"), network("tiny_resnet")).unwrap();
    let labels = Tensor::new(vec![6], vec![0i64, 1, 2, 3, 4, 9]).unwrap();
    npy::write_npz(&at("data.npz"), &[("images", images(6, 16).view()), ("labels", labels.view())]).unwrap();
    npy::write_npz(&at("wrong.npz"), &[("images", images(2, 8).view())]).unwrap();
    npy::write_npy(&at("x.npy"), images(1, 16).view()).unwrap();
    let text = |name: &str| at(name).to_str().unwrap().to_string();
    let calibrate = ["calibrate", &text("m.onnx"), "--data", &text("data.npz"), "-o", &text("calib.json")];
    hawqc(&calibrate).expect(0, "");
    let compile = ["compile", &text("m.onnx"), "--calib", &text("calib.json"), "-o", &text("m.so")];
    hawqc(&compile).expect(0, "");
    folder
});

fn fixture(name: &str) -> PathBuf {
    FIXTURE.path().join(name)
}

/// A fresh folder for output, by path in text; checked to be empty by [`nothing_in`].
fn scratch() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap().to_string();
    (folder, path)
}

fn nothing_in(folder: &Path, command: &str) {
    let left: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{command} leaves {left:?}");
}

/// A line that must fail with `code` and say `text`, leaving nothing in the folder that `[]` stands for.
fn fails(line: &str, code: i32, text: &str) -> Outcome {
    let (folder, out) = scratch();
    let outcome = run(&line.replace("[]", &out)).expect(code, text);
    nothing_in(folder.path(), line);
    outcome
}

/// Writes a changed copy of the network beside the fixture.
fn edited(name: &str, edit: impl FnOnce(&mut ModelProto)) {
    let mut model = ModelProto::decode(network("tiny_resnet").as_slice()).unwrap();
    edit(&mut model);
    std::fs::write(fixture(name), model.encode_to_vec()).unwrap();
}

fn input_type(model: &mut ModelProto) -> &mut type_proto::Tensor {
    let input = &mut model.graph.as_mut().unwrap().input[0];
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_mut().unwrap().value.as_mut() else {
        panic!("the input is no tensor");
    };
    tensor
}

fn nodes(model: &mut ModelProto) -> &mut Vec<NodeProto> {
    &mut model.graph.as_mut().unwrap().node
}

#[test]
fn from_a_network_to_numbers() {
    let (_folder, out) = scratch();
    let line = |text: &str| ok(&text.replace("[]", &out));
    line("zoo tiny_resnet --image-size 16 --classes 10 -o []/z.onnx");
    line("calibrate []/z.onnx --data {}/data.npz --samples 3 -o []/z.json");
    line("compile []/z.onnx --calib []/z.json --bits w4a8 -o []/z.so").expect(0, "steps");
    line("inspect []/z.so").expect(0, "W4A8");
    line("run []/z.so -i {}/x.npy -o []/y.npz");
    line("run []/z.so -i {}/x.npy --expected []/y.npz");
    line("run []/z.so --fill zeros --integer");
    line("verify []/z.so --integer-only").expect(0, "no floating point");
    line("verify []/z.onnx []/z.so --calib []/z.json --bits w4a8");
    line("verify []/z.onnx []/z.so --calib []/z.json --bits w4a8 --per-layer");
    line("verify []/z.onnx []/z.so --calib []/z.json --bits w4a8 --against float").expect(0, "dB");
    line("bench []/z.so --warmup 1 --iters 3").expect(0, "median");
    line("bench []/z.so --warmup 1 --iters 3 --profile").expect(0, "conv1");
    line("eval []/z.so --data {}/data.npz").expect(0, "6 samples");
    line("eval []/z.onnx --data {}/data.npz --shard 1/3").expect(0, "2 samples");
    line("explain []/z.so").expect(0, "conv1");
    for format in ["qcdq", "qdq"] {
        line(&format!("quantize []/z.onnx --calib []/z.json --bits 4 --format {format} -o []/q.onnx"));
        line("inspect []/q.onnx").expect(0, "quantised");
        line("compile []/q.onnx -o []/q.so");
        line("verify []/q.onnx []/q.so --threads 2");
    }
}

/// A profile as a trace, what was proved of a node, and memory limits.
#[test]
fn explanations_traces_and_limits() {
    let (folder, out) = scratch();
    let text = |line: &str| ok(&line.replace("[]", &out));
    text("bench {}/m.so --warmup 0 --iters 2 --profile --trace []/t.json");
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(folder.path().join("t.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.len() > 5 && events.iter().all(|e| e["ph"] == "X" && e["dur"].is_number()), "{trace}");
    let options = ZooOptions { image_size: Some(64), classes: 10, width: 0.5, seed: 1 };
    std::fs::write(folder.path().join("r.onnx"), zoo::write("resnet18", &options).unwrap()).unwrap();
    npy::write_npz(&folder.path().join("x.npz"), &[("images", images(2, 64).view())]).unwrap();
    text("calibrate []/r.onnx --data []/x.npz -o []/r.json");
    // The target need not be this machine.
    let target = "--calib []/r.json --target x86-64-v3";
    let found = text(&format!("explain []/r.onnx layer2.1.conv1 {target} --bits 4")).stdout;
    assert!(found.contains("/i8 legal: transformed weights in"), "{found}");
    let bytes = |limit: &str| {
        text(&format!("compile []/r.onnx {target} {limit} --json -o []/r.so")).json()["constant_bytes"]
            .as_u64()
            .unwrap()
    };
    let free = bytes("");
    let limit = free * 9 / 10;
    assert!(bytes(&format!("--max-resident {limit}B")) <= limit);
    let line = format!("compile {out}/r.onnx {target} --max-resident 100KB -o {out}/r.so").replace("[]", &out);
    fails(&line, 7, "without any transformed weights");
    fails("bench {}/m.so --trace t.json", 2, "--profile");
}

/// The exported quantised network computes exactly what compiling the float network directly gives.
#[test]
fn quantised_export_gives_the_same_outputs() {
    let (folder, out) = scratch();
    let line = |text: &str| ok(&text.replace("[]", &out));
    line("compile {}/m.onnx --calib {}/calib.json --bits 4 -o []/direct.so");
    line("quantize {}/m.onnx --calib {}/calib.json --bits 4 -o []/q.onnx");
    line("compile []/q.onnx -o []/exported.so");
    fails(&format!("compile {out}/q.onnx --bits 8 -o {out}/other.so"), 2, "quantised already");
    line("run []/direct.so -i {}/x.npy -o []/direct.npz");
    line("run []/exported.so -i {}/x.npy -o []/exported.npz");
    let read = |name: &str| npy::Npz::open(&folder.path().join(name)).unwrap().read_all().unwrap();
    assert_eq!(read("direct.npz"), read("exported.npz"));
}

#[test]
fn damaged_models_are_invalid() {
    let bytes = network("tiny_resnet");
    for (index, length) in [0, 1, 100, bytes.len() / 2, bytes.len() - 1].into_iter().enumerate() {
        let name = format!("cut{index}.onnx");
        std::fs::write(fixture(&name), &bytes[..length]).unwrap();
        fails(&format!("compile {{}}/{name} --calib {{}}/calib.json -o []/m.so"), 3, "");
    }
    std::fs::write(fixture("text.onnx"), "this is not a network").unwrap();
    fails("compile {}/text.onnx -o []/m.so", 3, "ONNX");
    for round in 0..24 {
        let mut copy = bytes.clone();
        copy[(round * 7919 + 13) % bytes.len()] ^= 1 << (round % 8);
        std::fs::write(fixture("flipped.onnx"), &copy).unwrap();
        let found = run("inspect {}/flipped.onnx");
        assert!([0, 3, 4].contains(&found.code), "round {round}: {} {}", found.code, found.stderr);
    }
}

#[test]
fn malformed_networks_are_invalid() {
    edited("cyclic.onnx", |m| {
        let last = nodes(m).last().unwrap().output[0].clone();
        nodes(m)[1].input[0] = last;
    });
    fails("compile {}/cyclic.onnx --calib {}/calib.json -o []/m.so", 3, "");
    edited("huge.onnx", |m| {
        let dims = &mut input_type(m).shape.as_mut().unwrap().dim;
        dims[2].value = Some(Dim::DimValue(1 << 40));
    });
    fails("compile {}/huge.onnx --calib {}/calib.json -o []/m.so", 3, "1099511627776");
    edited("nan.onnx", |m| {
        let weights = &mut m.graph.as_mut().unwrap().initializer[0];
        weights.raw_data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    fails("compile {}/nan.onnx --calib {}/calib.json -o []/m.so", 3, "NaN");
    fails("calibrate {}/nan.onnx --data {}/data.npz -o []/c.json", 3, "NaN");
    edited("short.onnx", |m| m.graph.as_mut().unwrap().initializer[0].raw_data.truncate(5));
    fails("compile {}/short.onnx --calib {}/calib.json -o []/m.so", 3, "");
}

#[test]
fn unsupported_networks_name_every_node() {
    edited("unsupported.onnx", |m| {
        for (index, name) in [(1, "first"), (4, "second")] {
            nodes(m)[index].op_type = "Erf".into();
            nodes(m)[index].attribute.clear();
            nodes(m)[index].name = name.into();
        }
    });
    let outcome = fails("compile {}/unsupported.onnx --calib {}/calib.json -o []/m.so", 4, "`first`");
    assert!(outcome.stderr.contains("`second`") && outcome.stderr.contains("Erf"), "{}", outcome.stderr);
    let listed = ok("inspect {}/unsupported.onnx --unsupported --json").json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    edited("double.onnx", |m| input_type(m).elem_type = DataType::Double as i32);
    fails("compile {}/double.onnx --calib {}/calib.json -o []/m.so", 4, "float");
}

#[test]
fn calibration_and_data_must_fit() {
    fails("compile {}/m.onnx -o []/m.so", 3, "calibrate");
    fails("calibrate {}/m.onnx --data {}/wrong.npz -o []/c.json", 3, "[2, 3, 8, 8]");
    fails("calibrate {}/m.onnx --data {}/missing.npz -o []/c.json", 3, "missing.npz");
    fails("calibrate {}/m.onnx --data {}/calib.json -o []/c.json", 3, "");
    fails("eval {}/m.so --data {}/wrong.npz", 3, "[2, 3, 8, 8]");
    fails("run {}/m.so -i {}/wrong.npz", 3, "");
    fails("run {}/m.so -i {}/data.npz -o []/y.npz", 3, "");
    fails("run {}/missing.so --fill zeros", 3, "missing.so");
    std::fs::write(fixture("torn.json"), &std::fs::read(fixture("calib.json")).unwrap()[..99]).unwrap();
    fails("compile {}/m.onnx --calib {}/torn.json -o []/m.so", 3, "torn.json");
    let other = ZooOptions { image_size: Some(16), classes: 7, ..ZooOptions::default() };
    std::fs::write(fixture("other.onnx"), zoo::write("tiny_resnet", &other).unwrap()).unwrap();
    fails("compile {}/other.onnx --calib {}/calib.json -o []/m.so", 3, "belongs to model");
    fails("verify {}/other.onnx {}/m.so --calib {}/calib.json", 3, "not compiled from");
    std::fs::write(fixture("bits.json"), r#"{"no.such.layer": 4}"#).unwrap();
    fails("compile {}/m.onnx --calib {}/calib.json --bits {}/bits.json -o []/m.so", 3, "no.such.layer");
}

#[test]
fn wrong_usage() {
    fails("compile {}/m.onnx --calib {}/calib.json --target z80 -o []/m.so", 2, "z80");
    fails("compile {}/m.onnx --calib {}/calib.json --cpu-features +warp -o []/m.so", 2, "warp");
    fails("compile {}/m.onnx --calib {}/calib.json --emit smoke -o []/m.so", 2, "smoke");
    fails("compile", 2, "Usage");
    fails("", 2, "Usage");
    fails("fly {}/m.onnx", 2, "Usage");
    fails("zoo no_such_network -o []/z.onnx", 2, "no_such_network");
    fails("bench {}/m.so --duration 5parsecs", 2, "parsecs");
    fails("eval {}/m.so --data {}/data.npz --shard 3/3", 2, "3/3");
}

#[test]
fn compiled_models_of_another_cpu_or_none() {
    let (_folder, out) = scratch();
    ok(&format!("compile {{}}/m.onnx --calib {{}}/calib.json --target {OTHER_CPU} -o {out}/other.so"));
    ok(&format!("inspect {out}/other.so")).expect(0, OTHER_CPU);
    ok(&format!("verify {out}/other.so --integer-only"));
    for command in ["run --fill zeros", "bench --iters 1", "eval --data {}/data.npz"] {
        let (name, rest) = command.split_once(' ').unwrap();
        fails(&format!("{name} {out}/other.so {rest}"), 6, "");
    }
    let sound = std::fs::read(fixture("m.so")).unwrap();
    for (index, bytes) in
        [&b""[..], b"\x7fELF", &[0x41; 5000], &sound[..sound.len() / 2], &sound[..64]].iter().enumerate()
    {
        let path = fixture(&format!("garbage{index}.so"));
        std::fs::write(&path, bytes).unwrap();
        fails(&format!("run {} --fill zeros", path.display()), 3, "garbage");
        fails(&format!("inspect {}", path.display()), 3, "garbage");
        fails(&format!("verify {} --integer-only", path.display()), 3, "");
    }
}

#[test]
fn differences_are_mismatches() {
    fails("verify {}/m.onnx {}/m.so --calib {}/calib.json --bits 4", 5, "differs");
    ok("verify {}/m.onnx {}/m.so --calib {}/calib.json --bits 4 --max-lsb 18446744073709551615");
    let (folder, out) = scratch();
    ok(&format!("run {{}}/m.so -i {{}}/x.npy -o {out}/y.npz"));
    let path = folder.path().join("y.npz");
    let (name, found) = npy::Npz::open(&path).unwrap().read_all().unwrap().remove(0);
    let mut values = found.as_slice::<f32>().unwrap().to_vec();
    values[3] = f32::from_bits(values[3].to_bits() + 1);
    let changed = Tensor::new(found.shape().to_vec(), values).unwrap();
    npy::write_npz(&path, &[(&name, changed.view())]).unwrap();
    run(&format!("run {{}}/m.so -i {{}}/x.npy --expected {out}/y.npz")).expect(5, "differs");
}

#[test]
fn json_parses() {
    assert!(ok("inspect {}/m.onnx --json").json()["macs"].as_u64().unwrap() > 1000);
    assert_eq!(ok("inspect {}/m.so --json").json()["schema"], "hawqc.manifest");
    assert!(ok("targets --json").json().as_array().unwrap().len() > 5);
    assert_eq!(ok("targets --host --json").json().as_array().unwrap().len(), 1);
    assert!(ok("run {}/m.so -i {}/x.npy --json").json()[0]["top"][4]["value"].is_number());
    assert_eq!(ok("bench {}/m.so --warmup 0 --iters 2 --json").json()["runs"], 2);
    assert_eq!(ok("eval {}/m.so --data {}/data.npz --json").json()["samples"], 6);
    assert!(ok("explain {}/m.so --json").json()["steps"].as_array().unwrap().len() > 5);
    assert_eq!(ok("verify {}/m.onnx {}/m.so --calib {}/calib.json --json").json()[0]["max_lsb"], 0);
    assert!(ok("verify {}/m.so --integer-only --json").json()["instructions"].as_u64().unwrap() > 100);
    assert!(ok("zoo --list --json").json().as_array().unwrap().len() >= 8);
    let (_folder, out) = scratch();
    let compiled = ok(&format!("compile {{}}/m.onnx --calib {{}}/calib.json --json -o {out}/m.so")).json();
    assert!(compiled["weight_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let one = compiled_bytes("--threads 1");
    assert!(one == compiled_bytes("--threads 2"), "compiling twice gives different bytes");
    assert!(one == std::fs::read(fixture("m.so")).unwrap(), "compiling elsewhere gives different bytes");
    let (folder, out) = scratch();
    ok(&format!("calibrate {{}}/m.onnx --data {{}}/data.npz -o {out}/calib.json"));
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    assert!(read(folder.path().join("calib.json")) == read(fixture("calib.json")), "calibrations differ");
}

fn compiled_bytes(options: &str) -> Vec<u8> {
    let (folder, out) = scratch();
    ok(&format!("compile {{}}/m.onnx --calib {{}}/calib.json {options} -o {out}/m.so"));
    std::fs::read(folder.path().join("m.so")).unwrap()
}

#[test]
fn without_a_subcommand_it_compiles() {
    let (folder, out) = scratch();
    ok(&format!("--target x86-64-v3 {{}}/m.onnx --calib {{}}/calib.json -o {out}/m.so"));
    assert!(folder.path().join("m.so").exists());
    ok("--help").expect(0, "compile");
    ok("--version").expect(0, "hawqc");
}

#[test]
fn every_stage_is_emitted() {
    let (folder, out) = scratch();
    let stages = ok("explain --stages").stdout;
    let stages: Vec<&str> = stages.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert!(stages.len() >= 8, "{stages:?}");
    let list = stages.join(",");
    ok(&format!("compile {{}}/m.onnx --calib {{}}/calib.json --emit {list} -o {out}/m.so"));
    let files: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), stages.len(), "{files:?}");
    assert!(files.iter().all(|f| std::fs::metadata(f).unwrap().len() > 0), "{files:?}");
}

#[test]
fn completions_and_manual() {
    ok("completions bash").expect(0, "hawqc");
    ok("man").expect(0, "hawqc");
}

/// Top-1 on real images, as promised: float, 8 bits, 4 bits.
#[test]
fn demo_reaches_its_accuracy() {
    let rows = ok("demo --json").json();
    let top1 = |plan: &str| {
        let row = rows.as_array().unwrap().iter().find(|r| r["plan"] == plan);
        row.unwrap_or_else(|| panic!("no {plan} in {rows}"))["top1_percent"].as_f64().unwrap()
    };
    let float = top1("float");
    assert!(float >= 98.0, "{rows}");
    assert!((float - top1("W8A8")).abs() <= 0.5, "{rows}");
    for plan in ["W4A4", "mixed", "searched"] {
        assert!(float - top1(plan) <= 2.0, "{plan}: {rows}");
    }
    let (_folder, out) = scratch();
    ok(&format!("demo --quiet --keep {out}/kept")).expect(0, "W4A4");
    ok(&format!("verify {out}/kept/digits-w4a4.so --integer-only"));
}

#[test]
fn graphs_are_drawn() {
    let (folder, out) = scratch();
    ok(&format!("inspect {{}}/m.onnx --dot {out}/g.dot --svg {out}/g.svg"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(read("g.dot").starts_with("digraph") && read("g.dot").contains("->"));
    assert!(read("g.svg").contains("<svg") && read("g.svg").contains("conv"));
}

#[test]
fn the_network_is_not_overwritten() {
    let (folder, out) = scratch();
    ok(&format!("zoo tiny_resnet -o {out}/n.onnx"));
    let before = std::fs::read(folder.path().join("n.onnx")).unwrap();
    fails(&format!("compile {out}/n.onnx --calib {{}}/calib.json -o {out}/n.onnx"), 2, "the network itself");
    assert_eq!(std::fs::read(folder.path().join("n.onnx")).unwrap(), before);
}

#[test]
fn per_layer_verification_looks_at_the_given_model_too() {
    let (_folder, out) = scratch();
    ok(&format!("compile {{}}/m.onnx --calib {{}}/calib.json --bits 4 -o {out}/m4.so"));
    let rest = "--calib {}/calib.json --per-layer";
    ok(&format!("verify {{}}/m.onnx {out}/m4.so {rest} --bits 4"));
    fails(&format!("verify {{}}/m.onnx {out}/m4.so {rest} --bits 8"), 5, "differs");
}
