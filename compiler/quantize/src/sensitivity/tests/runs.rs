//! Runs: the same result whole, in shards and resumed; what does not belong together is refused.

use super::*;
use crate::plan::LayerBits;
use crate::sensitivity::{
    Estimator, Measurement, Metric, Record, RunHead, Sensitivities, SensitivityError, Settings, checkpoint_head,
    checkpoint_line, parse_choice, published, read_checkpoint,
};
use crate::test_networks::{residual_network, tensor};

fn settings(metric: Metric, estimator: Estimator, seed: u64) -> Settings<'static> {
    let choices = vec![LayerBits::both(8), LayerBits::both(4), LayerBits { weights: 4, activations: 8 }];
    Settings { metric, estimator, choices, seed, calibration: None }
}

fn measurement(metric: Metric, seed: u64) -> Measurement {
    Measurement::new(&every_operator(2), &settings(metric, Estimator::Weights, seed)).unwrap()
}

fn records(measurement: &Measurement, run: &RunHead) -> Vec<Record> {
    let measure = |task: crate::sensitivity::Task| {
        measurement.measure(task, &tensor(task.sample as u64, &[1, 3, 8, 8]), run.labelled.then_some(task.sample % 5))
    };
    run.tasks().map(|task| measure(task).unwrap()).collect()
}

fn finished(measurement: &Measurement, run: &RunHead) -> Sensitivities {
    run.assemble(measurement.layers().to_vec(), &records(measurement, run)).unwrap()
}

#[test]
fn shards_merge_to_the_whole() {
    for metric in [Metric::Hessian, Metric::Fisher] {
        let measurement = measurement(metric, 3);
        let run = measurement.run("m", "d", false, [5, 2]);
        let whole = finished(&measurement, &run);
        let shard = |i| finished(&measurement, &RunHead { shard: [i, 3], ..run.clone() });
        let read_back = |s: Sensitivities| Sensitivities::from_json(&s.to_json()).unwrap();
        let merged = Sensitivities::merge(vec![read_back(shard(2)), read_back(shard(0)), shard(1)]).unwrap();
        assert_eq!(merged.to_json(), whole.to_json());
        assert_eq!(finished(&self::measurement(metric, 3), &run), whole);
        assert_ne!(
            finished(&self::measurement(metric, 4), &self::measurement(metric, 4).run("m", "d", false, [5, 2])),
            whole
        );
        assert_eq!((whole.samples, whole.probes), (5, 10));
    }
}

#[test]
fn what_is_not_of_one_run_does_not_merge() {
    let measurement = measurement(Metric::Hessian, 3);
    let of = |model: &str, i| {
        let run = measurement.run(model, "d", false, [4, 1]);
        finished(&measurement, &RunHead { shard: [i, 2], ..run })
    };
    let refused = |parts: Vec<Sensitivities>| Sensitivities::merge(parts).unwrap_err();
    assert!(matches!(refused(vec![of("m", 0), of("n", 1)]), SensitivityError::OtherModel { .. }));
    assert_eq!(refused(vec![of("m", 0), of("m", 0)]), SensitivityError::RepeatedShard { index: 0, count: 2 });
    assert_eq!(refused(vec![of("m", 1)]), SensitivityError::MissingShards { missing: "0".into(), count: 2 });
    assert_eq!(refused(vec![]), SensitivityError::NoRecords);
    let whole = finished(&measurement, &measurement.run("m", "d", false, [4, 1]));
    assert_eq!(refused(vec![of("m", 0), whole]), SensitivityError::NotAShard { position: 1 });
    let fisher = self::measurement(Metric::Fisher, 3);
    let run = RunHead { shard: [1, 2], ..fisher.run("m", "d", false, [4, 1]) };
    assert!(matches!(refused(vec![of("m", 0), finished(&fisher, &run)]), SensitivityError::MixedMetrics { .. }));
    let seed = self::measurement(Metric::Hessian, 4);
    let scores = Measurement::new(&every_operator(2), &settings(Metric::Hessian, Estimator::Scores, 3)).unwrap();
    let run = RunHead { shard: [1, 2], ..scores.run("m", "d", false, [4, 1]) };
    assert!(refused(vec![of("m", 0), finished(&scores, &run)]).to_string().contains("random signs over"));
    let run = RunHead { shard: [1, 2], ..seed.run("m", "d", false, [4, 1]) };
    let error = refused(vec![of("m", 0), finished(&seed, &run)]).to_string();
    assert_eq!(error, "shard 1/2 holds seed 4, the first file 3; merge shards of one run only");
}

#[test]
fn a_torn_checkpoint_resumes_to_the_same_result() {
    let measurement = measurement(Metric::Hessian, 3);
    let run = measurement.run("m", "d", false, [4, 2]);
    let all = records(&measurement, &run);
    let mut text = checkpoint_head(&run);
    // Written as threads finish, in any order; one twice.
    [5, 0, 3, 0, 7].iter().for_each(|&i| text += &checkpoint_line(&all[i]));
    let torn = &text.as_bytes()[..text.len() - 9];
    let found = read_checkpoint(torn, &run).unwrap();
    assert_eq!(found.records, [0, 3, 5].map(|i| all[i].clone()));
    assert_eq!(found.whole_bytes, text.len() - checkpoint_line(&all[7]).len());
    let mut resumed = found.records;
    resumed.extend([1, 2, 4, 6, 7].map(|i| all[i].clone()));
    resumed.sort_by_key(|r| r.task);
    assert_eq!(
        run.assemble(measurement.layers().to_vec(), &resumed),
        run.assemble(measurement.layers().to_vec(), &all)
    );
    for cut in 0..text.len() {
        assert!(read_checkpoint(&text.as_bytes()[..cut], &run).is_ok(), "cut at {cut}");
    }
    let other = measurement.run("m", "other", false, [4, 2]);
    assert!(read_checkpoint(text.as_bytes(), &other).unwrap_err().to_string().contains("data"));
    let shard = RunHead { shard: [0, 2], ..run.clone() };
    assert!(read_checkpoint(text.as_bytes(), &shard).is_err());
    let broken = text.replace("\"task\":3", "\"task\":93");
    assert!(read_checkpoint(broken.as_bytes(), &run).unwrap_err().to_string().contains("line 4: task 93"));
}

#[test]
fn it_stops_when_the_error_is_small_enough() {
    let measurement = measurement(Metric::Hessian, 3);
    let run = measurement.run("m", "d", false, [8, 40]);
    let all = records(&measurement, &run);
    let layers = measurement.layers();
    let (loose, tight) = (run.enough(layers, &all, 1.0).unwrap(), run.enough(layers, &all, 0.3).unwrap());
    assert!(loose <= tight && loose % 8 == 0 && tight < all.len(), "{loose} {tight}");
    assert_eq!(run.enough(layers, &all[..tight], 0.3), Some(tight));
    assert_eq!(run.enough(layers, &all[..tight - 1], 0.3), None);
    assert_eq!(run.enough(layers, &all, 0.0), None);
}

#[test]
fn files_are_checked() {
    let measurement = measurement(Metric::Fisher, 3);
    let found = finished(&measurement, &measurement.run("m", "d", true, [2, 9]));
    assert_eq!(found.probes, 2, "with labels nothing is random");
    let text = found.to_json();
    assert_eq!(Sensitivities::from_json(&text).unwrap(), found);
    found.check_model("m").unwrap();
    assert!(found.check_model("n").is_err());
    for (from, to, message) in [
        ("\"hawqc.sensitivity\"", "\"hawqc.bits\"", "hawqc.bits 1"),
        ("\"version\": 1", "\"version\": 2", "hawqc.sensitivity 2"),
        ("\"fisher\"", "\"guess\"", "guess"),
        ("\"name\": \"grouped\"", "\"name\": \"conv1\"", "`conv1` is given twice"),
        ("\"w8a8\"", "\"w9a8\"", "`w9a8` is not a width choice"),
        ("\"w8a8\": ", "\"w8a8\": -", "not negative"),
    ] {
        let error = Sensitivities::from_json(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for bad in ["", "w8", "w8a9", "w1a8", "w08a8", "w8a8x", "W8A8"] {
        assert!(parse_choice(bad).is_err(), "{bad}");
    }
}

#[test]
fn published_tables_find_their_layers() {
    let graph = crate::fold_batch_norm(&residual_network(1)).unwrap();
    let row = |name: &str, params: usize, trace: f64| {
        format!(
            r#"{{"name":"{name}","hessian_trace_avg":{trace},"delta_w8_sq":0.5,"delta_w4_sq":3,"params":{params},"i":1}}"#
        )
    };
    let table = |params| {
        let rows =
            [row("stage1.unit1.quant_convbn2", 576, 2.0), row("stage2.unit1.quant_identity_convbn", params, 0.25)];
        format!(r#"{{"nets":{{"small":{{"layers":[{}]}}}}}}"#, rows.join(","))
    };
    let found = published::import(&table(96), &graph, "m").unwrap();
    let layer = |name: &str| found.layers.iter().find(|l| l.name == name).unwrap();
    assert_eq!((layer("block1.conv2").cost["w4a8"], layer("block1.conv2").cost["w8a8"]), (6.0, 1.0));
    assert_eq!(layer("block2.short").cost["w4a4"], 0.75);
    assert_eq!(layer("conv1").cost.keys().collect::<Vec<_>>(), ["w8a8"]);
    assert_eq!(Sensitivities::from_json(&found.to_json()).unwrap(), found);
    let error = published::import(&table(95), &graph, "m").unwrap_err().to_string();
    assert!(error.contains("small: `block2.short` has 96 weights"), "{error}");
    let error = published::import(published::TABLES, &graph, "m").unwrap_err().to_string();
    assert!(error.contains("resnet18: ") && error.contains("resnet50: "), "{error}");
}
