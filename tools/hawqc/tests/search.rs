//! `hawqc search` as users meet it, on the bundled digits network with made-up tables and on a ResNet-18 with HAWQ's.

use std::path::{Path, PathBuf};
use std::process::Command;

use hawqc_onnx::{ImportOptions, import, zoo};
use hawqc_quantize::{PrecisionPlan, fold_batch_norm, hawq};
use hawqc_runtime::{Elem, Tensor, npy};
use hawqc_schedules::latency::{LatencyTable, LayerLatency, Seam, Timing};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The digits network with tables for it.
struct Fixture {
    folder: TempDir,
    names: Vec<String>,
}

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits").join(file)
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let onnx = std::fs::read(example("digits.onnx")).unwrap();
        let hash = blake3::hash(&onnx).to_hex().to_string();
        let graph = fold_batch_norm(&import(&onnx, &ImportOptions::default()).unwrap().graph).unwrap();
        let plan = PrecisionPlan::uniform(&graph, 8, 8).unwrap();
        let names: Vec<String> = plan.layers().iter().map(|(name, _)| name.clone()).collect();
        let layer = |(i, name): (usize, &String)| {
            let scale = 1.0 + (i * 7 % 5) as f64;
            json!({"name": name, "parameters": 1, "macs": 1, "perturbation": {},
                "cost": {"w8a8": 0.01 * scale, "w4a8": 0.3 * scale, "w4a4": scale}})
        };
        let layers: Vec<Value> = names.iter().enumerate().map(layer).collect();
        let sensitivity = json!({"schema": "hawqc.sensitivity", "version": 1, "model_hash": hash,
            "metric": "hessian", "samples": 8, "probes": 8, "provenance": "made up", "layers": layers});
        let times = |i: usize| {
            let base = 1000.0 * (1 + i * 3 % 4) as f64;
            [("w8a8", 1.0), ("w4a8", 0.8), ("w4a4", 0.5)].map(|(c, f)| (c.to_string(), Timing::given(base * f)))
        };
        let table = LatencyTable {
            machine: "made up".into(),
            target: "host".into(),
            threads: 1,
            model_hash: hash,
            fixed_ns: 500.0,
            layers: names
                .iter()
                .enumerate()
                .map(|(i, name)| LayerLatency { name: name.clone(), choices: times(i).into() })
                .collect(),
            seams: names
                .windows(2)
                .map(|pair| Seam {
                    layers: [pair[0].clone(), pair[1].clone()],
                    choices: ["w4a4".into(), "w8a8".into()],
                    extra_ns: 150.0,
                })
                .collect(),
        };
        std::fs::write(folder.path().join("sens.json"), sensitivity.to_string()).unwrap();
        std::fs::write(folder.path().join("latency.json"), table.to_json()).unwrap();
        Fixture { folder, names }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `hawqc` with `[]` standing for the folder and `M` for the network; gives exit code and both streams.
    fn run(&self, line: &str) -> (i32, String, String) {
        let folder = self.folder.path().to_str().unwrap();
        let network = example("digits.onnx");
        let argument = |word: &str| match word {
            "M" => network.to_str().unwrap().to_string(),
            "CALIBRATION" => example("calibration.npz").to_str().unwrap().to_string(),
            "TEST" => example("test.npz").to_str().unwrap().to_string(),
            word => word.replace("[]", folder),
        };
        let output =
            Command::new(env!("CARGO_BIN_EXE_hawqc")).args(line.split_whitespace().map(argument)).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stderr.contains("internal error"), "{line}: {stderr}");
        (output.status.code().unwrap_or(-1), stdout, stderr)
    }

    fn ok(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 0, "{line}\n{stdout}{stderr}");
        stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap()
    }
}

const TABLES: &str = "search M --sensitivity []/sens.json --latency []/latency.json";

#[test]
fn limits_hold_and_plans_compile() {
    let fixture = Fixture::new();
    let line = format!("{TABLES} --json --max-latency 0.8x --max-size 0.7x --max-bops 0.75x -o []/bits.json");
    let answer = fixture.json(&line);
    assert_eq!((&answer["proven"], &answer["gap"]), (&json!(true), &json!(0.0)));
    assert!(answer["relaxed_bound"].as_f64() <= answer["cost"].as_f64());
    for (line, share) in answer["resources"].as_array().unwrap().iter().zip([0.8, 0.7, 0.75]) {
        let number = |key: &str| line[key].as_f64().unwrap();
        assert!(number("used") <= number("limit") && number("limit") == share * number("uniform_w8a8"), "{line}");
    }
    let first = fixture.read("bits.json");
    let plan = PrecisionPlan::from_json(&first).unwrap();
    let names: Vec<&String> = plan.layers().iter().map(|(name, _)| name).collect();
    assert_eq!(names, fixture.names.iter().collect::<Vec<_>>());
    let ends = [&plan.layers()[0], &plan.layers()[fixture.names.len() - 1]];
    assert!(ends.iter().all(|(_, bits)| (bits.weights, bits.activations) == (8, 8)));
    for part in
        ["least hessian cost under latency <= ", "size <= ", "bops <= ", "proven optimal", "sensitivity ", "model "]
    {
        assert!(plan.provenance().contains(part), "{}", plan.provenance());
    }
    // The same tables give the same bytes.
    fixture.json(&line);
    assert_eq!(fixture.read("bits.json"), first);
    fixture.ok("calibrate M --data CALIBRATION -o []/calib.json");
    fixture.ok("compile M --calib []/calib.json --bits []/bits.json -o []/m.so");
    // Freed, the ends give something up; restricted, all do.
    let free = fixture.json(&line.replace("--json", "--json --free-edges"));
    assert!(free["cost"].as_f64() <= answer["cost"].as_f64());
    let few = fixture.json(&line.replace("--json", "--json --choices w8a8,w4a4"));
    assert!(few["cost"].as_f64() >= answer["cost"].as_f64());
    assert!(few["layers"].as_array().unwrap().iter().all(|l| l["weights"] == l["activations"]));
}

#[test]
fn ties_agree() {
    let fixture = Fixture::new();
    let widths = |answer: &Value, layer: usize| {
        let layer = &answer["layers"][layer];
        (layer["weights"].as_u64(), layer["activations"].as_u64())
    };
    let line = format!("{TABLES} --json --max-latency 0.8x -o []/bits.json");
    let open = fixture.json(&line);
    let (a, b) =
        (1..9).flat_map(|a| (1..9).map(move |b| (a, b))).find(|&(a, b)| widths(&open, a) != widths(&open, b)).unwrap();
    let tied = fixture.json(&format!("{line} --tie {}={}", fixture.names[a], fixture.names[b]));
    assert_eq!(widths(&tied, a), widths(&tied, b));
    assert!(tied["cost"].as_f64() >= open["cost"].as_f64());
    assert_eq!(fixture.run(&format!("{line} --tie {}=nothing", fixture.names[a])).0, 3);
}

#[test]
fn limits_that_cannot_be_met_are_named() {
    let fixture = Fixture::new();
    let refused = |limits: &str, parts: &[&str]| {
        let (code, stdout, stderr) = fixture.run(&format!("{TABLES} {limits} -o []/none.json"));
        assert_eq!((code, stdout.as_str()), (7, ""), "{limits}: {stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{limits}: {stderr}");
        assert!(!fixture.at("none.json").exists());
    };
    refused(
        "--max-latency 1us",
        &["limit on latency of 0.0010 ms cannot be met", "least reachable is", "--max-latency"],
    );
    refused("--max-size 0.9x --max-bops 0.01x", &["limit on bops", "least reachable is", "x)"]);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let fixture = Fixture::new();
    for (line, code, part) in [
        ("search M --max-latency 1ms -o []/b.json", 2, "--latency"),
        ("search M --max-latency 12 -o []/b.json", 2, "no known unit"),
        ("search M --max-size 0.5x", 2, "required"),
        ("search M --rescore 2 -o []/b.json", 2, "--data"),
        ("search M --pareto []/front.png", 2, ".csv or .svg"),
        ("search M --latency []/sens.json -o []/b.json", 3, "sens.json"),
        ("search M --hawq-tables published -o []/b.json", 3, "resnet18, resnet50"),
    ] {
        let (found, stdout, stderr) = fixture.run(line);
        assert_eq!((found, stdout.as_str()), (code, ""), "{line}: {stderr}");
        assert!(stderr.contains(part), "{line}: {stderr}");
        assert!(!fixture.at("b.json").exists());
    }
    let other = fixture.read("sens.json").replacen("\"model_hash\":\"", "\"model_hash\":\"0", 1);
    std::fs::write(fixture.at("other.json"), other).unwrap();
    let (code, _, stderr) = fixture.run("search M --sensitivity []/other.json -o []/b.json");
    assert!(code == 3 && stderr.contains("belong to model"), "{stderr}");
}

#[test]
fn the_front_falls_and_is_drawn() {
    let fixture = Fixture::new();
    let line = format!("{TABLES} --max-latency 0.8x --pareto []/front.csv --pareto []/front.svg --pareto-points 12");
    fixture.ok(&format!("{line} -o []/bits.json"));
    let text = fixture.read("front.csv");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0].join(","), "kind,limit,latency_ns,size_bytes,bops,cost,bound,proven,plan");
    let number = |row: &[&str], column: usize| row[column].parse::<f64>().unwrap();
    let of = |kind: &str| rows.iter().filter(|r| r[0] == kind).cloned().collect::<Vec<_>>();
    let front = of("optimal");
    assert!(front.len() > 4, "{text}");
    for pair in front.windows(2) {
        assert!(number(&pair[0], 2) < number(&pair[1], 2) && number(&pair[0], 5) > number(&pair[1], 5));
    }
    assert!(front.iter().all(|row| number(row, 2) <= number(row, 1) && row[5] == row[6] && row[7] == "true"));
    // A point's cost is the least of all plans within its limit.
    let others = [of("random"), of("uniform w8a8"), of("uniform w4a4"), of("chosen")].concat();
    assert_eq!(others.len(), 203);
    for row in others {
        let looser = front.iter().filter(|point| number(point, 1) >= number(&row, 2));
        assert!(looser.into_iter().all(|point| number(point, 5) <= number(&row, 5)), "{row:?}");
    }
    let svg = fixture.read("front.svg");
    assert!(["latency (ms)", "optimal plans", "chosen plan"].iter().all(|part| svg.contains(part)));
    fixture.ok(&format!("{line} -o []/bits.json"));
    assert_eq!((fixture.read("front.csv"), fixture.read("front.svg")), (text, svg));
}

#[test]
fn the_best_plans_are_scored_again() {
    let fixture = Fixture::new();
    fixture.ok("calibrate M --data CALIBRATION -o []/calib.json");
    let line =
        format!("{TABLES} --json --max-latency 0.75x --rescore 3 --data TEST --calib []/calib.json -o []/bits.json");
    let answer = fixture.json(&line);
    let plans = answer["rescored"].as_array().unwrap();
    assert_eq!(plans.len(), 3);
    let number = |plan: &Value, key: &str| plan[key].as_f64().unwrap();
    assert!(plans.windows(2).all(|pair| number(&pair[0], "cost") <= number(&pair[1], "cost")));
    let chosen: Vec<&Value> = plans.iter().filter(|p| p["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert!(plans.iter().all(|p| number(p, "top1_percent") <= number(chosen[0], "top1_percent")));
    assert!(plans.iter().all(|p| number(p, "top1_percent") > 90.0 && number(p, "divergence") > 0.0));
    assert!(fixture.read("bits.json").contains("of 3 by top-1 on data"));
}

/// A residual network without labels: plans are compared by their distance from the float network.
#[test]
fn the_best_plans_of_a_residual_network_are_scored_again() {
    let fixture = Fixture::new();
    fixture.ok("zoo resnet18 --image-size 32 --classes 10 -o []/net.onnx");
    let values: Vec<u8> =
        (0..8 * 3 * 32 * 32).flat_map(|i: u32| f32::to_le_bytes((i * 7919 % 251) as f32 / 251.0)).collect();
    let images = Tensor::from_bytes(Elem::F32, vec![8, 3, 32, 32], &values).unwrap();
    npy::write_npz(&fixture.at("images.npz"), &[("images", images.view())]).unwrap();
    fixture.ok("calibrate []/net.onnx --data []/images.npz -o []/net.calib.json");
    fixture.ok(
        "sensitivity []/net.onnx --data []/images.npz --calib []/net.calib.json --metric output --samples 4 -o []/net.sens.json",
    );
    let answer = fixture.json(
        "search []/net.onnx --json --sensitivity []/net.sens.json --max-size 0.7x --rescore 3 --data []/images.npz \
         --calib []/net.calib.json -o []/bits.json",
    );
    let plans = answer["rescored"].as_array().unwrap();
    assert_eq!(plans.len(), 3);
    let divergence = |plan: &Value| plan["divergence"].as_f64().unwrap();
    let chosen: Vec<&Value> = plans.iter().filter(|p| p["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert!(plans.iter().all(|p| divergence(p) > 0.0 && divergence(p) >= divergence(chosen[0])), "{plans:?}");
    fixture.ok("compile []/net.onnx --calib []/net.calib.json --bits []/bits.json -o []/net.so");
}

#[test]
fn tables_may_be_missing() {
    let fixture = Fixture::new();
    let answer = fixture.json("search M --json --max-size 0.7x -o []/bits.json");
    assert_eq!((&answer["metric"], &answer["proven"]), (&json!("weights"), &json!(true)));
    assert_eq!(answer["resources"].as_array().unwrap().len(), 2);
    // Bare lists of milliseconds, without the first and the last layer.
    let inner = fixture.names.len() - 2;
    let list = |ms: f64| vec![ms; inner];
    std::fs::write(fixture.at("lists.json"), json!({"int8": list(2.0), "int4": list(1.0)}).to_string()).unwrap();
    let answer = fixture.json("search M --json --latency []/lists.json --max-latency 11ms -o []/bits.json");
    let narrow = answer["layers"].as_array().unwrap().iter().filter(|l| l["weights"] == 4).count();
    assert_eq!(narrow, 2 * inner - 11);
}

/// From HAWQ's tables to HAWQ's plan, by way of the command line.
#[test]
fn hawq_is_reproduced() {
    let fixture = Fixture::new();
    let options = zoo::ZooOptions { width: 0.125, image_size: Some(64), ..zoo::ZooOptions::default() };
    let onnx = zoo::write("resnet18", &options).unwrap();
    std::fs::write(fixture.at("resnet18.onnx"), &onnx).unwrap();
    let graph = fold_batch_norm(&import(&onnx, &ImportOptions::default()).unwrap().graph).unwrap();
    for (limit, config) in [("4.79493356ms", "0.75"), ("4.2461798ms", "0.5"), ("3.69742604ms", "0.25")] {
        fixture.ok(&format!("search []/resnet18.onnx --hawq-tables published --max-latency {limit} -o []/bits.json"));
        let found = PrecisionPlan::from_json(&fixture.read("bits.json")).unwrap();
        let published = hawq::plan(&graph, &format!("resnet18_latency_{config}")).unwrap();
        assert_eq!(found.layers(), published.layers(), "{config}");
    }
}
