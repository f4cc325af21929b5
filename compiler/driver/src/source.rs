//! A model file, read and imported.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use hawqc_ir::{Graph, Op, ValueId};
use hawqc_onnx::{ImportOptions, import};

use crate::error::Error;

/// Largest model file that is read. ONNX's protobuf ends at 2 GiB.
const MAX_MODEL_BYTES: u64 = 2 << 30;

/// An imported network.
pub struct Source {
    /// Digest of the file's bytes, in hexadecimal.
    pub hash: String,
    /// As imported: floats, or QDQ form.
    pub graph: Graph,
    /// IR values by the names of ONNX tensors.
    pub tensors: BTreeMap<String, ValueId>,
}

impl Source {
    /// Reads a file; external data is looked for in its folder. `batch` overrides the network's own batch size.
    pub fn load(path: &Path, batch: Option<usize>) -> Result<Source, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        if bytes > MAX_MODEL_BYTES {
            return Err(Error::TooLarge { path: path.into(), bytes, limit: MAX_MODEL_BYTES });
        }
        let mut data = Vec::new();
        file.read_to_end(&mut data).map_err(io)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Source::from_bytes(&data, Some(folder), batch)
    }

    /// Imports a model from memory; without a folder, external data is refused.
    pub fn from_bytes(bytes: &[u8], folder: Option<&Path>, batch: Option<usize>) -> Result<Source, Error> {
        let imported = import(bytes, &ImportOptions { base_dir: folder, batch })?;
        let hash = blake3::hash(bytes).to_hex().to_string();
        Ok(Source { hash, graph: imported.graph, tensors: imported.tensors })
    }

    /// Whether the network brings its own quantisation.
    pub fn is_quantized(&self) -> bool {
        let live = self.graph.live();
        let is_border = |op: &Op| matches!(op, Op::Quantize(_) | Op::Dequantize(_));
        self.graph.values().any(|id| live[id.index()] && is_border(self.graph.op(id)))
    }
}
