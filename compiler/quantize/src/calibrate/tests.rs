use hawqc_ir::{Conv, Graph, Tensor};
use proptest::prelude::*;

use super::*;
use crate::test_networks::{Net, random, residual_network, tensor};

fn gathered(parts: &[&[f32]]) -> Statistics {
    let mut gathered = Gathered::new();
    parts.iter().for_each(|p| gathered.add(p).unwrap());
    gathered.finish()
}

fn calibration(graph: &Graph, seeds: std::ops::Range<u64>) -> Calibration {
    let mut calibrator = Calibrator::new(graph).unwrap();
    seeds.for_each(|seed| calibrator.observe(&[tensor(seed, &[1, 3, 12, 12])]).unwrap());
    calibrator.finish("abc").unwrap()
}

#[test]
fn names_are_unique() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 2, 2, 2]);
    let x = net.relu("a#2", x);
    let x = net.relu("a", x);
    let x = net.relu("a", x);
    let x = net.relu("", x);
    net.relu("", x);
    assert_eq!(value_names(&net.graph), ["image", "a#2", "a", "a#3", "clamp_real", "clamp_real#2"]);
}

#[test]
fn statistics_of_a_network() {
    let graph = residual_network(1);
    let calibration = calibration(&graph, 0..4);
    assert_eq!(calibration.samples(), 4);
    let values = calibration.values();
    assert!(values.contains_key("relu1") && !values.contains_key("bn1"), "clamped values are not recorded");
    let relu = calibration.get("n", "relu1").unwrap();
    assert!(relu.min == 0.0 && relu.max > 0.0);
    let source = calibration.get("n", "block1.relu1").unwrap();
    let taps = calibration.tap_means("block1.conv2").unwrap();
    assert_eq!(taps.len(), 3 * 3 * 8);
    assert!(taps.iter().all(|&m| m >= 0.0 && m < source.max));
    assert_eq!(source.histogram.count(), 4 * 6 * 6 * 8);

    let text = calibration.to_json();
    assert_eq!(Calibration::from_json(&text).unwrap(), calibration);
    assert_eq!(self::calibration(&graph, 0..4).to_json(), text);
}

/// With the weights as factors, the means of all taps add up to the mean of the convolution's output.
#[test]
fn taps_weighted_are_the_mean_output() {
    let mut net = Net::new(3);
    let shape = [2, 5, 4, 6];
    let x = net.input(&shape);
    let conv = Conv { stride: [2, 1], pad: [1, 0, 2, 1], dilation: [1, 2], groups: 3, pad_value: 0 };
    let wei = net.constant(&[6, 3, 2, 2], 1.0);
    let y = net.graph.add("conv", conv, &[x, wei]).unwrap();
    net.output(y);
    let mut calibrator = Calibrator::new(&net.graph).unwrap();
    let mut sums = [0f64; 6];
    let mut positions = 0;
    for seed in 0..3 {
        let image = [tensor(seed, &shape)];
        calibrator.observe(&image).unwrap();
        let output = hawqc_ir::interp::run(&net.graph, &image).unwrap().remove(0);
        for pixel in output.f32s().unwrap().chunks(6) {
            sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += f64::from(v));
            positions += 1;
        }
    }
    let calibration = calibrator.finish("m").unwrap();
    let taps = calibration.tap_means("conv").unwrap();
    let wei = net.graph.tensor(wei).unwrap().f32s().unwrap();
    for (k, sum) in sums.into_iter().enumerate() {
        let terms = (0..12).map(|i| f64::from(wei[k * 12 + i] * taps[i / 2 * 6 + k / 2 * 2 + i % 2]));
        assert!((terms.sum::<f64>() - sum / f64::from(positions)).abs() < 1e-5);
    }
}

#[test]
fn files_that_are_not_calibrations_are_refused() {
    let text = calibration(&residual_network(1), 0..1).to_json();
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("hawqc.calibration", "other"),
        ("\"min\":0.0", "\"min\":1e30"),
        ("\"exponent\":", "\"exponent\":400,\"x\":"),
    ] {
        assert!(text.contains(from));
        let error = Calibration::from_json(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().starts_with("calib.json: "), "{error}");
    }
    assert!(Calibration::from_json("").is_err());
    let calibration = Calibration::from_json(&text).unwrap();
    assert!(calibration.check_model("abc").is_ok());
    assert!(matches!(calibration.check_model("abd"), Err(QuantizeError::OtherModel { .. })));
}

#[test]
fn not_finite_values_and_no_samples_are_errors() {
    let graph = residual_network(1);
    assert_eq!(Calibrator::new(&graph).unwrap().finish("m"), Err(QuantizeError::NoSamples));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = random(1, 432);
        values[7] = bad;
        let image = Tensor::from_f32([1, 3, 12, 12], values).unwrap();
        let error = Calibrator::new(&graph).unwrap().observe(&[image]).unwrap_err();
        assert!(matches!(&error, QuantizeError::NotFinite { value, sample: 0, .. } if value == "image"), "{error}");
    }
    // Finite inputs may still overflow inside.
    let mut net = Net::new(1);
    let x = net.input(&[1, 1, 1, 1]);
    let wei = net.graph.constant(Tensor::from_f32([1, 1, 1, 1], vec![f32::MAX]).unwrap());
    let x = net.graph.add("huge", Conv::unit(), &[x, wei]).unwrap();
    net.output(x);
    let two = Tensor::from_f32([1, 1, 1, 1], vec![2.0]).unwrap();
    let error = Calibrator::new(&net.graph).unwrap().observe(&[two]).unwrap_err();
    assert!(error.to_string().contains("`huge`"), "{error}");
}

#[test]
fn clipping_points() {
    // 999 values evenly in (0, 1), and one outlier.
    let mut values: Vec<f32> = (0..9990).map(|i| (i % 999) as f32 / 1000.0).collect();
    values.extend([8.0; 10]);
    let statistics = gathered(&[&values]);
    assert_eq!(statistics.clipping_point(Method::MinMax, 0, 255), 8.0);
    let percentile = statistics.clipping_point(Method::Percentile(99.9), 0, 255);
    assert!((0.99..1.02).contains(&percentile), "{percentile}");
    assert_eq!(statistics.clipping_point(Method::Percentile(100.0), 0, 255), 8.0);
    // At 8 bits a step of 8/255 costs less than clipping the outliers; at 2 bits clipping pays.
    let at = |hi| statistics.clipping_point(Method::Mse, 0, hi);
    assert!(at(255) > 7.5, "{}", at(255));
    let squares = |point: f32, hi: f32| -> f32 {
        let scale = point / hi;
        values.iter().map(|v| (v - (v / scale).round().min(hi) * scale).powi(2)).sum()
    };
    let best = (5..=100).map(|h| squares(8.0 * h as f32 / 100.0, 3.0)).fold(f32::INFINITY, f32::min);
    assert!(squares(at(3), 3.0) <= best * 1.02);
    assert_eq!(gathered(&[&[0.0, -0.0]]).clipping_point(Method::Mse, 0, 255), 1.0);
}

#[test]
fn methods_read_back() {
    for method in [Method::MinMax, Method::Mse, Method::Percentile(99.9)] {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    assert_eq!("percentile".parse(), Ok(Method::Percentile(99.99)));
    for bad in ["", "max", "percentile:0", "percentile:101", "percentile:nan"] {
        assert!(bad.parse::<Method>().is_err());
    }
}

proptest! {
    #[test]
    fn statistics_do_not_depend_on_order(
        parts in prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 1..20), 1..5),
        tiny in prop::collection::vec(-1e-30f32..1e-30, 1..5),
    ) {
        let mut parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        parts.push(&tiny);
        let forward = gathered(&parts);
        parts.reverse();
        prop_assert_eq!(&gathered(&parts), &forward);
        let all = parts.concat();
        prop_assert_eq!(gathered(&[&all]), forward.clone());
        prop_assert_eq!(forward.histogram.count(), all.len() as u64);
    }

    #[test]
    fn extreme_magnitudes_are_counted(values in prop::collection::vec(any::<f32>(), 1..50)) {
        let finite: Vec<f32> = values.into_iter().filter(|v| v.is_finite()).collect();
        prop_assume!(!finite.is_empty());
        let statistics = gathered(&[&finite]);
        prop_assert_eq!(statistics.histogram.count(), finite.len() as u64);
        prop_assert!(statistics.check().is_ok());
        for method in [Method::MinMax, Method::Mse, Method::Percentile(99.0)] {
            let point = statistics.clipping_point(method, -128, 127);
            prop_assert!(point > 0.0 && point <= statistics.max_abs().max(1.0));
        }
    }
}
