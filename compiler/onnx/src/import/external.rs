//! Tensor data in files of their own.
//!
//! Comes in: the key-value pairs of a `TensorProto`, the number of bytes its dimensions need, and the model's folder. Goes
//! out: exactly those bytes. What holds: nothing outside the model's folder is opened, links included, and nothing is
//! allocated before the file is known to be long enough.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use tract_onnx::pb::StringStringEntryProto;

use super::node::{NodeError, invalid};

/// Reads `bytes` bytes of the data file named by `entries`.
pub fn read(entries: &[StringStringEntryProto], bytes: usize, base_dir: Option<&Path>) -> Result<Vec<u8>, NodeError> {
    let value = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let number = |key: &str| {
        let parse =
            |v: &str| v.parse::<u64>().map_err(|_| invalid(format!("external data: {key} is `{v}`, not a number")));
        value(key).map(parse).transpose()
    };
    let location = value("location").ok_or_else(|| invalid("external data without a location"))?;
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    if length.is_some_and(|l| l != bytes as u64) {
        return Err(invalid(format!(
            "external data of {} bytes, but its dimensions need {bytes}",
            length.unwrap_or(0)
        )));
    }
    let base_dir = base_dir.ok_or_else(|| invalid("external data, but the model does not come from a file"))?;
    let relative = Path::new(location);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid(format!("external data at `{location}`: only paths below the model's folder are opened")));
    }
    let failed = |error: std::io::Error| invalid(format!("external data at `{location}`: {error}"));
    let folder = base_dir.canonicalize().map_err(failed)?;
    let path = folder.join(relative).canonicalize().map_err(failed)?;
    if !path.starts_with(&folder) {
        return Err(invalid(format!("external data at `{location}` leads out of the model's folder")));
    }
    let metadata = path.metadata().map_err(failed)?;
    let end = offset.checked_add(bytes as u64);
    if !metadata.is_file() || end.is_none_or(|end| end > metadata.len()) {
        let found = metadata.len();
        return Err(invalid(format!(
            "external data at `{location}`: {bytes} bytes at offset {offset} of a file of {found}"
        )));
    }
    let mut file = File::open(&path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut data = vec![0; bytes];
    file.read_exact(&mut data).map_err(failed)?;
    Ok(data)
}
