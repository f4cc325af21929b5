use super::*;

#[test]
fn every_row_is_closed_and_has_a_code_generator() {
    for row in ROWS {
        let target = row.target().unwrap();
        for feature in target.features() {
            assert_eq!(feature.arch(), target.arch(), "{target}");
            for required in feature.requires() {
                assert!(target.has(*required), "{target}: {feature} {required}");
            }
        }
        for minimum in target.arch().minimum() {
            assert!(target.has(*minimum), "{target} lacks {minimum}");
        }
        for pic in [false, true] {
            let isa = target.isa(pic).unwrap();
            assert_eq!(isa.flags().is_pic(), pic);
        }
    }
}

#[test]
fn code_generator_gets_exactly_the_features() {
    for row in ROWS {
        let target = row.target().unwrap();
        let isa = target.isa(true).unwrap();
        for feature in Feature::of(target.arch()) {
            let Some(name) = feature.cranelift_flag() else {
                continue;
            };
            let flags = isa.isa_flags();
            let flag = flags.iter().find(|flag| flag.name == name).unwrap();
            assert_eq!(flag.as_bool(), Some(target.has(feature)), "{target} {name}");
        }
    }
}

#[test]
fn dot_strategy_of_each_row() {
    let expected = [
        ("x86-64-v2", Dot::Pmaddwd),
        ("x86-64-v3", Dot::Pmaddwd),
        ("x86-avxvnni", Dot::Vnni),
        ("x86-avx512", Dot::Vnni),
        ("x86-avx512-novnni", Dot::Pmaddwd),
        ("aarch64", Dot::Widening),
        ("aarch64-dotprod", Dot::Sdot),
    ];
    for (name, dot) in expected {
        assert_eq!(Target::parse(name).unwrap().dot(), dot, "{name}");
    }
    assert_eq!(expected.len() + 1, ROWS.len());
    let i8mm = Target::parse("aarch64").unwrap().with_changes("+i8mm");
    assert_eq!(i8mm.unwrap().dot(), Dot::Usdot);
}

#[test]
fn changes_keep_the_set_closed() {
    let base = Target::parse("x86-avx512").unwrap();
    let changed = base.with_changes("+vbmi, -vnni").unwrap();
    assert_eq!(changed.name(), "x86-avx512+avx512vbmi-avx512vnni");
    assert!(changed.has(Feature::Avx512vbmi) && !changed.has(Feature::Avx512vnni));
    assert_eq!(changed.dot(), Dot::Pmaddwd);

    let sse = base.with_changes("-avx").unwrap();
    assert_eq!(sse.feature_names(), ["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "bmi1", "bmi2", "lzcnt"]);
    let up = Target::parse("x86-64-v2").unwrap().with_changes("+avx512vbmi").unwrap();
    assert!(up.has(Feature::Avx512bw) && up.has(Feature::Avx2) && up.has(Feature::Fma));
    assert_eq!(base.with_changes("").unwrap(), base);
}

#[test]
fn refusals_name_what_is_valid() {
    let error = Target::parse("x86-avx52").unwrap_err().to_string();
    assert!(error.contains("did you mean `x86-avx512`?"), "{error}");
    assert!(error.contains("aarch64-dotprod"), "{error}");
    assert!(matches!(
        Target::parse("riscv"),
        Err(TargetError::UnknownTarget { suggestion, .. }) if suggestion.is_empty()
    ));
    let base = Target::parse("x86-64-v3").unwrap();
    let error = base.with_changes("+avx512vmbi").unwrap_err().to_string();
    assert!(error.contains("did you mean `avx512vbmi`?"), "{error}");
    assert!(matches!(
        base.with_changes("avx2"),
        Err(TargetError::MalformedChange { found }) if found == "avx2"
    ));
    assert!(matches!(base.with_changes("+dotprod"), Err(TargetError::UnknownFeature { .. })));
    assert!(matches!(base.with_changes("-sse3"), Err(TargetError::BelowMinimum { feature: Feature::Sse3, .. })));
}

#[test]
fn manifest_round_trip() {
    for row in ROWS {
        let target = row.target().unwrap();
        let names = target.feature_names();
        let again = Target::from_manifest(target.name(), target.arch().name(), &names).unwrap();
        assert_eq!(again, target);
    }
    assert!(matches!(Target::from_manifest("x", "riscv64", &[] as &[&str]), Err(TargetError::UnknownArch { .. })));
}

#[test]
fn host_runs_here() {
    assert!(Target::host().unwrap().runs_here());
}
