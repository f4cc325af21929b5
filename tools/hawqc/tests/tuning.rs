//! `tune`, `table` and `merge` as users meet them: a log that survives being killed, and what is made of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_runtime::{Tensor, npy};
use serde_json::Value;
use tempfile::TempDir;

fn command(line: &str) -> Command {
    let folder = FIXTURE.path().to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawqc"));
    command.args(line.split_whitespace().map(|arg| arg.replace("{}", folder)));
    command
}

/// Runs a command; its standard output and error.
fn run(line: &str, code: i32) -> (String, String) {
    let output = command(line).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "hawqc {line}\n{stdout}{stderr}");
    (stdout, stderr)
}

/// A small network with its calibration, and a log of tuning it.
static FIXTURE: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let options = ZooOptions { image_size: Some(16), classes: 10, width: 0.5, seed: 1 };
    std::fs::write(at("m.onnx"), zoo::write("tiny_resnet", &options).unwrap()).unwrap();
    let values = (0..2 * 3 * 16 * 16).map(|i| ((i * 7919 + i / 13 * 31) % 601) as f32 / 150.0 - 2.0);
    let images = Tensor::new(vec![2, 3, 16, 16], values.collect()).unwrap();
    npy::write_npz(&at("data.npz"), &[("images", images.view())]).unwrap();
    for line in ["calibrate {}/m.onnx --data {}/data.npz -o {}/calib.json", TUNE] {
        let line = line.replace("{}", folder.path().to_str().unwrap());
        let output = Command::new(env!("CARGO_BIN_EXE_hawqc")).args(line.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    folder
});

const TUNE: &str = "tune {}/m.onnx --calib {}/calib.json --trials 45 --mixtures 2 --threads 1 -o {}/tune.jsonl";

fn fixture(name: &str) -> PathBuf {
    FIXTURE.path().join(name)
}

/// The lines of a log, each of which must be JSON.
fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Layers, their choices and the seams of the table of a log.
fn structure(log: &Path) -> Vec<String> {
    let path = log.with_extension("json");
    run(&format!("table {} -o {}", log.display(), path.display()), 0);
    let table: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let layers = table["layers"].as_array().unwrap().iter();
    let layers = layers.map(|l| format!("{}: {:?}", l["name"], l["choices"].as_object().unwrap().keys()));
    let seams = table["seams"].as_array().unwrap().iter().map(|s| format!("{} {}", s["layers"], s["choices"]));
    layers.chain(seams).collect()
}

#[test]
fn a_log_holds_all_that_was_measured() {
    let rows = rows(&fixture("tune.jsonl"));
    let of = |kind: &str| rows.iter().filter(|r| r["kind"] == kind).collect::<Vec<_>>();
    for row in of("kernel") {
        for key in ["workload", "target", "machine", "schedule", "kernel", "date"] {
            assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {row}");
        }
        assert!(row["threads"] == 1 && !row["times_ns"].as_array().unwrap().is_empty(), "{row}");
    }
    let plans: Vec<&str> = of("network").iter().map(|r| r["plan"].as_str().unwrap()).collect();
    assert_eq!(plans, ["w8a8", "w4a4", "w4a8", "mixture 1", "mixture 2"]);
    // Each workload is decided once, also if several widths have it.
    let decided: Vec<&str> = of("choice").iter().map(|r| r["workload"].as_str().unwrap()).collect();
    assert_eq!(decided.len(), decided.iter().collect::<BTreeSet<_>>().len());
    let measured: BTreeSet<&str> = of("kernel").iter().map(|r| r["workload"].as_str().unwrap()).collect();
    assert_eq!(measured, decided.into_iter().collect());
    // Nothing ships that was slower than the default.
    assert!(of("choice").iter().all(|r| r["tuned_ns"].as_u64() <= r["default_ns"].as_u64()));
}

#[test]
fn a_log_makes_a_table_and_schedules() {
    let log = fixture("tune.jsonl");
    let structure = structure(&log);
    assert!(structure[0].contains("conv1") && structure.iter().any(|s| s.contains("w4a8")), "{structure:?}");
    let both = "compile {}/m.onnx --calib {}/calib.json --bits w4a8";
    run(&format!("{both} -o {{}}/plain.so"), 0);
    let (_, notes) = run(&format!("{both} --tuning {{}}/tune.jsonl -o {{}}/tuned.so"), 0);
    assert!(notes.contains("0 of the nearest") && !notes.contains("warning"), "{notes}");
    run("verify {}/m.onnx {}/tuned.so --calib {}/calib.json --bits w4a8", 0);
    // A mixture has kernels that no uniform network has; they take the schedules of the nearest.
    let layers: Vec<String> = structure.iter().take_while(|s| s.contains(": [")).cloned().collect();
    let bits = layers.iter().enumerate().map(|(i, l)| format!("{}: {}", l.split(':').next().unwrap(), 4 + 4 * (i % 2)));
    std::fs::write(fixture("mixed.json"), format!("{{{}}}", bits.collect::<Vec<_>>().join(", "))).unwrap();
    let line = "compile {}/m.onnx --calib {}/calib.json --bits {}/mixed.json --tuning {}/tune.jsonl -o {}/mixed.so";
    let (_, notes) = run(line, 0);
    assert!(!notes.contains(" 0 of the nearest"), "{notes}");
    run("verify {}/m.onnx {}/mixed.so --calib {}/calib.json --bits {}/mixed.json", 0);
    let (_, error) = run(&line.replace("-o", "--target x86-64-v2 -o"), 3);
    assert!(error.contains("no schedule for target x86-64-v2"), "{error}");
}

#[test]
fn validation_reports_every_mixture() {
    let line = "table {}/tune.jsonl --validate 2 --network {}/m.onnx --calib {}/calib.json --json";
    let found: Value = serde_json::from_str(&run(line, 0).0).unwrap();
    assert_eq!(found["checks"].as_array().unwrap().len(), 2);
    assert!(found["worst_error"].as_f64().unwrap() >= found["median_error"].as_f64().unwrap());
}

#[test]
fn stale_rows_are_said_and_not_used() {
    let text = std::fs::read_to_string(fixture("tune.jsonl")).unwrap();
    let mut changed = 0;
    let change = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        if row["kind"] == "choice" {
            row["kernel"] = "0123456789abcdef".into();
            changed += 1;
        }
        row.to_string() + "\n"
    };
    std::fs::write(fixture("stale.jsonl"), text.lines().map(change).collect::<String>()).unwrap();
    assert!(changed > 3);
    let line = "compile {}/m.onnx --calib {}/calib.json --tuning {}/stale.jsonl -o {}/stale.so";
    let (_, notes) = run(line, 0);
    assert!(notes.contains("stale: the kernel measured for conv") && notes.contains("schedules: 0 tuned"), "{notes}");
    let (_, notes) = run(&format!("{} --resume", TUNE.replace("tune.jsonl", "stale.jsonl")), 0);
    assert!(notes.contains("is tuned again"), "{notes}");
}

#[test]
fn wrong_logs_are_refused() {
    let (_, error) = run(TUNE, 2);
    assert!(error.contains("exists already") && error.contains("--resume"), "{error}");
    let text = std::fs::read_to_string(fixture("tune.jsonl")).unwrap();
    let other = text.replace("\"machine\":\"", "\"machine\":\"another ");
    std::fs::write(fixture("other.jsonl"), &other).unwrap();
    let (_, error) = run("merge {}/tune.jsonl {}/other.jsonl -o {}/merged.jsonl", 3);
    assert!(error.contains("different machines") && error.contains("another "), "{error}");
    let (_, error) = run(&format!("{} --resume", TUNE.replace("tune.jsonl", "other.jsonl")), 3);
    assert!(error.contains("another machine"), "{error}");
    let (_, error) = run("merge {}/tune.jsonl {}/calib.json -o {}/merged.jsonl", 3);
    assert!(error.contains("hawqc.calibration"), "{error}");
    let (_, error) = run("merge {}/calib.json -o {}/merged.jsonl", 3);
    assert!(error.contains("cannot be merged"), "{error}");
    std::fs::write(fixture("empty.jsonl"), "").unwrap();
    let (_, error) = run("table {}/empty.jsonl -o {}/t.json", 3);
    assert!(error.contains("measures no whole network"), "{error}");
    let (_, error) = run("tune {}/m.onnx --calib {}/calib.json --bits 9 -o {}/bad.jsonl", 2);
    assert!(error.contains("not a width"), "{error}");
    assert!(!fixture("merged.jsonl").exists() && !fixture("t.json").exists() && !fixture("bad.jsonl").exists());
}

#[test]
fn shards_join_and_finish() {
    let tune = |shard: &str, out: &str| {
        run(&format!("{} {shard} --bits 8,4", TUNE.replace("tune.jsonl", out)), 0);
    };
    tune("--shard 0/2", "a.jsonl");
    tune("--shard 1/2", "b.jsonl");
    run("merge {}/a.jsonl {}/b.jsonl -o {}/joined.jsonl", 0);
    let workloads = |name: &str| -> BTreeSet<String> {
        let rows = rows(&fixture(name)).into_iter().filter(|r| r["kind"] == "kernel");
        rows.map(|r| r["workload"].as_str().unwrap().to_owned()).collect()
    };
    let (a, b) = (workloads("a.jsonl"), workloads("b.jsonl"));
    assert!(!a.is_empty() && !b.is_empty());
    assert_eq!(workloads("joined.jsonl"), a.union(&b).cloned().collect());
    tune("--resume", "joined.jsonl");
    assert!(structure(&fixture("joined.jsonl")).iter().any(|s| s.contains("w4a4")));
}

/// Killed at twenty moments and gone on with, a log parses and gives the table that an undisturbed one gives.
#[test]
fn killing_at_random_moments_loses_nothing() {
    let log = fixture("killed.jsonl");
    let line = format!("{} --resume", TUNE.replace("tune.jsonl", "killed.jsonl"));
    let mut seed = 12345u64;
    for round in 0..20 {
        let mut child = command(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(10 + (seed >> 33) % 300));
        // It may have finished before.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("error"), "round {round}: {stderr}");
    }
    // As if the last kill had come in the middle of a write.
    if log.exists() {
        let mut bytes = std::fs::read(&log).unwrap();
        bytes.extend_from_slice(b"{\"schema\":\"hawqc.tuning\",\"version\":1,\"date\":\"20");
        std::fs::write(&log, bytes).unwrap();
    }
    let (_, notes) = run(&line, 0);
    assert!(notes.contains("is cut short; it was dropped"), "{notes}");
    rows(&log);
    assert_eq!(structure(&log), structure(&fixture("tune.jsonl")));
    let before = rows(&log).len();
    run(&line, 0);
    assert_eq!(rows(&log).len(), before, "a finished log is not added to");
}
