//! HAWQ-V3's published configurations on the networks they were published for.

use hawqc_ir::{Graph, Op};
use hawqc_onnx::{ImportOptions, import, zoo};
use hawqc_quantize::{LayerBits, PrecisionPlan, fold_batch_norm, hawq};

/// The folded network, as narrow as the zoo makes it: structure does not depend on width.
fn network(name: &str, image_size: usize) -> Graph {
    let options = zoo::ZooOptions { width: 0.125, image_size: Some(image_size), ..zoo::ZooOptions::default() };
    let onnx = zoo::write(name, &options).unwrap();
    fold_batch_norm(&import(&onnx, &ImportOptions::default()).unwrap().graph).unwrap()
}

fn bits(plan: &PrecisionPlan) -> impl Fn(&str) -> u8 {
    |name| {
        let bits = plan.layers().iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no layer {name}")).1;
        assert_eq!(bits.activations, bits.weights);
        bits.weights
    }
}

fn narrow(plan: &PrecisionPlan) -> Vec<&str> {
    plan.layers().iter().filter(|(_, b)| *b == LayerBits::both(4)).map(|(n, _)| n.as_str()).collect()
}

#[test]
fn every_published_configuration_applies() {
    let names = hawq::published_names().unwrap();
    assert_eq!(names.len(), 24);
    for (network_name, zoo_names, size, layers) in [
        ("resnet18", &["resnet18"][..], 64, 21),
        ("resnet50", &["resnet50", "resnet50_v1"], 64, 54),
        ("inceptionv3", &["inception_v3"], 107, 95),
    ] {
        for zoo_name in zoo_names {
            let graph = network(zoo_name, size);
            for name in names.iter().filter(|n| n.starts_with(network_name)) {
                let plan = hawq::plan(&graph, name).unwrap();
                assert_eq!(plan.layers().len(), layers);
                assert_eq!(plan.resolve(&graph).unwrap().len(), layers);
                assert_eq!(plan.residual_bits(), 16);
                let all_eight = narrow(&plan).is_empty();
                assert_eq!(all_eight, name.ends_with("uniform8"), "{name}");
            }
        }
    }
}

#[test]
fn resnet_units_get_their_bits() {
    let graph = network("resnet18", 64);
    let plan = hawq::plan(&graph, "resnet18_modelsize_high").unwrap();
    assert_eq!(narrow(&plan), ["layer3.1.conv2", "layer4.1.conv2"]);
    assert_eq!(plan.provenance(), "HAWQ-V3 resnet18_modelsize_high");

    let graph = network("resnet50", 64);
    let plan = hawq::plan(&graph, "resnet50_bops_medium").unwrap();
    assert_eq!(plan, {
        let same = hawq::plan(&graph, "resnet50_bops_0.5").unwrap();
        PrecisionPlan::new(same.layers().to_vec(), 16, plan.provenance()).unwrap()
    });
    let config = hawq::published("resnet50_bops_0.5").unwrap();
    let published = |key: &str| config.iter().find(|(k, _)| k == key).unwrap().1;
    let bits = bits(&plan);
    for stage in 1..=4 {
        for unit in 1..=[3, 4, 6, 3][stage - 1] {
            let (torch, hawq) = (format!("layer{stage}.{}", unit - 1), format!("stage{stage}.unit{unit}"));
            for conv in 1..=3 {
                assert_eq!(bits(&format!("{torch}.conv{conv}")), published(&format!("{hawq}.quant_convbn{conv}")));
            }
            if unit == 1 {
                assert_eq!(bits(&format!("{torch}.downsample.0")), published(&format!("{hawq}.quant_identity_convbn")));
            }
        }
    }
    assert_eq!((bits("conv1"), bits("fc")), (8, 8));
}

/// One module at a time gets another width, so that a wrong place shows.
#[test]
fn inception_branches_get_their_bits() {
    let graph = network("inception_v3", 107);
    for (key, torch) in [
        ("q_init_block.q_conv4.q_convbn", "Conv2d_3b_1x1"),
        ("stage1.unit2.branches.branch1.q_conv.q_convbn", "Mixed_5c.branch1x1"),
        ("stage1.unit3.branches.branch2.q_conv_list.q_conv2.q_convbn", "Mixed_5d.branch5x5_2"),
        ("stage1.unit1.branches.branch4.q_conv.q_convbn", "Mixed_5b.branch_pool"),
        ("stage2.unit1.branches.branch1.q_conv_list.q_conv1.q_convbn", "Mixed_6a.branch3x3"),
        ("stage2.unit5.branches.branch3.q_conv_list.q_conv4.q_convbn", "Mixed_6e.branch7x7dbl_4"),
        ("stage3.unit1.branches.branch2.q_conv_list.q_conv3.q_convbn", "Mixed_7a.branch7x7x3_3"),
        ("stage3.unit2.branches.branch2.q_conv1x3.q_convbn", "Mixed_7b.branch3x3_2a"),
        ("stage3.unit3.branches.branch3.q_conv3x1.q_convbn", "Mixed_7c.branch3x3dbl_3b"),
        ("stage3.unit3.branches.branch3.q_conv_list.q_conv2.q_convbn", "Mixed_7c.branch3x3dbl_2"),
    ] {
        let mut config = hawq::published("inceptionv3_uniform8").unwrap();
        let key = format!("features.{key}");
        config.iter_mut().find(|(k, _)| *k == key).unwrap().1 = 4;
        let plan = hawq::apply(&graph, &config, "test").unwrap();
        assert_eq!(narrow(&plan), [format!("{torch}.conv")]);
    }
}

#[test]
fn order_of_execution_does_not_matter() {
    // The same network with every operand pair of an addition built the other way round.
    let graph = network("resnet18", 64);
    let swapped = graph
        .rebuild(|new, id, args| {
            let mut args = args.to_vec();
            if let Op::Add(_) = graph.op(id) {
                args.reverse();
            }
            new.copy(&graph, id, &args)
        })
        .unwrap();
    let plan = |g: &Graph| hawq::plan(g, "resnet18_bops_0.5").unwrap();
    assert_eq!(plan(&graph), plan(&swapped));
}

#[test]
fn misfits_are_named() {
    let graph = network("resnet18", 64);
    let error = |name: &str| hawq::plan(&graph, name).unwrap_err().to_string();
    assert!(error("resnet18_bops").contains("resnet18_bops_0.5"));
    assert!(error("resnet50_uniform8").contains("has no counterpart"), "{}", error("resnet50_uniform8"));
    assert!(error("inceptionv3_uniform8").contains("has no counterpart"));
    let unknown = vec![("stage1.unit1.quant_conv".to_string(), 8)];
    let error = hawq::apply(&graph, &unknown, "test").unwrap_err().to_string();
    assert!(error.contains("`stage1.unit1.quant_conv` is not the name of a HAWQ module"), "{error}");
}
