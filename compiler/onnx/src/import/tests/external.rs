//! Tensor data in files of their own, and attempts to reach beyond the model's folder.

use tract_onnx::pb::StringStringEntryProto;
use tract_onnx::pb::tensor_proto::DataLocation;

use super::*;
use crate::pb_build::raw_tensor;

fn conv_with(entries: &[(&str, &str)]) -> Vec<u8> {
    model(&[1, 2, 1, 1], |m| {
        let external_data =
            entries.iter().map(|(k, v)| StringStringEntryProto { key: k.to_string(), value: v.to_string() });
        m.constant(TensorProto {
            data_location: Some(DataLocation::External as i32),
            external_data: external_data.collect(),
            ..raw_tensor("w", DataType::Float, &[1, 2, 1, 1], vec![])
        });
        m.node("c", "Conv", &["x", "w"], "y", vec![]);
    })
}

fn outcome(folder: &Path, entries: &[(&str, &str)]) -> Result<Imported, String> {
    let options = ImportOptions { base_dir: Some(folder), batch: None };
    import(&conv_with(entries), &options).map_err(|e| {
        assert_eq!(e.exit_code(), 3);
        e.to_string()
    })
}

#[test]
fn only_files_below_the_folder_are_read() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let values: Vec<u8> = [0.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.join("data/w.bin"), &values).unwrap();
    std::fs::write(outside.path().join("secret.bin"), &values).unwrap();

    let ok = outcome(&folder, &[("location", "data/w.bin"), ("offset", "4"), ("length", "8")]).unwrap();
    let x = Tensor::from_f32([1, 2, 1, 1], vec![1.0, 10.0]).unwrap();
    assert_eq!(interp::run(&ok.graph, &[x]).unwrap()[0].f32s().unwrap(), [32.0]);
    assert!(outcome(&folder, &[("location", "data/w.bin")]).is_ok());

    let absolute = outside.path().join("secret.bin").display().to_string();
    for location in ["../secret.bin", "data/../../secret.bin", &absolute, "/etc/passwd", ""] {
        assert!(outcome(&folder, &[("location", location)]).is_err(), "{location}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("secret.bin"), folder.join("link.bin")).unwrap();
        assert!(outcome(&folder, &[("location", "link.bin")]).unwrap_err().contains("leads out"));
        std::os::unix::fs::symlink(outside.path(), folder.join("up")).unwrap();
        assert!(outcome(&folder, &[("location", "up/secret.bin")]).unwrap_err().contains("leads out"));
    }
}

#[test]
fn offsets_and_lengths_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("w.bin"), [0; 12]).unwrap();
    let with = |offset: &str, length: &str| {
        outcome(folder.path(), &[("location", "w.bin"), ("offset", offset), ("length", length)])
    };
    assert!(with("4", "8").is_ok());
    for (offset, length) in [("5", "8"), ("18446744073709551615", "8"), ("-1", "8"), ("0", "12"), ("0", "x")] {
        assert!(with(offset, length).is_err(), "{offset} {length}");
    }
    assert!(outcome(folder.path(), &[("location", "missing.bin")]).unwrap_err().contains("missing.bin"));
    assert!(outcome(folder.path(), &[("location", ".")]).is_err());
    assert!(outcome(folder.path(), &[]).unwrap_err().contains("location"));
    assert!(invalid_message(&conv_with(&[("location", "w.bin")])).contains("does not come from a file"));
}
