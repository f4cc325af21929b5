//! `hawqc sensitivity` as users meet it, on the bundled network and images: the same bytes whole, in shards, on any number
//! of threads and after an interruption; every way to fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_quantize::sensitivity::Sensitivities;
use serde_json::Value;
use tempfile::TempDir;

const DIGITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits");

/// A command line with `@` for the folder of the bundled network and `[]` for that of the outputs.
fn command(line: &str, out: &TempDir) -> Command {
    let folder = out.path().to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawqc"));
    command.args(line.split_whitespace().map(|a| a.replace('@', DIGITS).replace("[]", folder)));
    command
}

fn expect(line: &str, out: &TempDir, code: i32, text: &str) -> String {
    let found = command(line, out).output().unwrap();
    let stdout = String::from_utf8(found.stdout).unwrap();
    let all = format!("{stdout}{}", String::from_utf8(found.stderr).unwrap());
    assert_eq!(found.status.code(), Some(code), "hawqc {line}\n{all}");
    assert!(all.contains(text), "hawqc {line}: no `{text}` in\n{all}");
    stdout
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read(out: &TempDir, name: &str) -> String {
    std::fs::read_to_string(out.path().join(name)).unwrap()
}

fn files(out: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

const MEASURE: &str = "sensitivity @/digits.onnx --data @/calibration.npz";

#[test]
fn every_metric_gives_every_layer_a_cost() {
    let out = folder();
    expect("calibrate @/digits.onnx --data @/calibration.npz -o []/calib.json", &out, 0, "");
    for metric in ["hessian", "fisher", "output"] {
        let line = format!("{MEASURE} --calib []/calib.json --metric {metric} --json -o []/{metric}.json");
        let found: Value = serde_json::from_str(&expect(&line, &out, 0, "")).unwrap();
        assert_eq!(found, serde_json::from_str::<Value>(&read(&out, &format!("{metric}.json"))).unwrap());
        assert_eq!((&found["schema"], &found["metric"]), (&"hawqc.sensitivity".into(), &metric.into()));
        let layers = found["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 10);
        for layer in layers {
            let cost = |choice: &str| layer["cost"][choice].as_f64().unwrap();
            assert!(cost("w4a4") > cost("w8a8") && cost("w8a8") > 0.0, "{layer}");
            assert_eq!(cost("w4a8") == cost("w4a4"), metric != "output", "{layer}");
            assert_eq!(layer["trace"].is_number(), metric != "output", "{layer}");
        }
    }
    assert_eq!(files(&out).len(), 4, "{:?}", files(&out));
}

#[test]
fn shards_and_threads_do_not_change_a_byte() {
    let out = folder();
    for (threads, name) in [(1, "one"), (3, "three")] {
        expect(&format!("{MEASURE} --threads {threads} -o []/{name}.json"), &out, 0, "measurements");
    }
    assert_eq!(read(&out, "one.json"), read(&out, "three.json"));
    let whole = format!("{MEASURE} --samples 10 --probes 2");
    expect(&format!("{whole} --tolerance 0 -o []/whole.json"), &out, 0, "20 measurements");
    (0..3).for_each(|i| drop(expect(&format!("{whole} --shard {i}/3 -o []/{i}.json"), &out, 0, "")));
    let parts = [2, 0, 1].map(|i| Sensitivities::from_json(&read(&out, &format!("{i}.json"))).unwrap());
    assert_eq!(Sensitivities::merge(parts.to_vec()).unwrap().to_json(), read(&out, "whole.json"));
}

/// Starts measuring and interrupts as soon as some samples are done.
#[cfg(unix)]
fn interrupt(line: &str, out: &TempDir, partial: &Path) {
    let lines = |path: &Path| std::fs::read(path).map_or(0, |t| t.iter().filter(|&&b| b == b'\n').count());
    let enough = lines(partial) + 5;
    let mut child = command(line, out).stderr(std::process::Stdio::null()).spawn().unwrap();
    while lines(partial) < enough {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    let out = folder();
    let line = format!("{MEASURE} --estimator weights --probes 6 --tolerance 0 -o []/s.json");
    let partial = out.path().join("s.json.partial");
    interrupt(&line, &out, &partial);
    assert_eq!(files(&out), std::slice::from_ref(&partial));
    // A line that was cut off as it was written.
    let mut text = std::fs::read(&partial).unwrap();
    text.truncate(text.len() - 7);
    std::fs::write(&partial, text).unwrap();
    expect(&format!("{MEASURE} --estimator weights --probes 6 --seed 1 -o []/s.json"), &out, 3, "seed");
    interrupt(&line, &out, &partial);
    let stdout = expect(&line, &out, 0, "measurements are there already");
    assert!(stdout.contains("768 measurements on 128 samples"), "{stdout}");
    let resumed = read(&out, "s.json");
    assert_eq!(files(&out), [out.path().join("s.json")]);
    expect(&line, &out, 0, "");
    assert_eq!(resumed, read(&out, "s.json"));
}

#[test]
fn failures_are_told_and_leave_nothing() {
    let out = folder();
    let zoo = ZooOptions { image_size: Some(16), classes: 10, width: 0.5, seed: 1 };
    let other = folder();
    std::fs::write(other.path().join("m.onnx"), zoo::write("tiny_resnet", &zoo).unwrap()).unwrap();
    let tiny = other.path().join("m.onnx");
    for (line, code, text) in [
        (format!("{MEASURE} --metric output"), 3, "calibrate"),
        (format!("{MEASURE} --choices w8a8,w4"), 2, "`w4` is not a width choice"),
        (format!("{MEASURE} --shard 0/2 --tolerance 0.1"), 2, "--tolerance"),
        (format!("{MEASURE} --tolerance 2"), 2, "between 0 and 1"),
        ("sensitivity @/digits.onnx".into(), 2, "--data"),
        ("sensitivity @/digits.onnx --data @/missing.npz".into(), 3, "missing.npz"),
        (format!("sensitivity {} --data @/test.npz", tiny.display()), 3, "[450, 1, 8, 8]"),
        ("sensitivity @/digits.onnx --import hawq".into(), 3, "none fits the network"),
        ("sensitivity @/digits.onnx --import @/mixed.json".into(), 3, "published tables"),
    ] {
        expect(&format!("{line} -o []/s.json"), &out, code, text);
        assert!(files(&out).is_empty(), "{line} leaves {:?}", files(&out));
    }
    let line = format!("sensitivity {} --data @/test.npz -o {}", tiny.display(), tiny.display());
    expect(&line, &out, 2, "the network itself");
}

#[test]
fn published_traces_are_those_of_the_network() {
    let out = folder();
    let network = zoo::write("resnet18", &ZooOptions { image_size: Some(64), ..ZooOptions::default() }).unwrap();
    std::fs::write(out.path().join("r.onnx"), network).unwrap();
    expect("sensitivity []/r.onnx --import hawq -o []/s.json", &out, 0, "HAWQ-V3's published table of resnet18");
    let found = Sensitivities::from_json(&read(&out, "s.json")).unwrap();
    assert_eq!(found.layers.len(), 21);
    assert_eq!(found.layers.iter().filter(|l| l.trace.is_none()).count(), 2);
    // HAWQ's table, second row and a shortcut.
    assert!(found.layers.iter().any(|l| l.trace == Some(0.03162379) && l.perturbation["w4"] == 3.9691));
    let shortcut = found.layers.iter().find(|l| l.trace == Some(0.06931772)).unwrap();
    assert_eq!((shortcut.parameters, shortcut.cost["w4a4"]), (8192, 0.06931772 * 0.6827));
}
