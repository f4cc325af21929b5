//! The manifest: what a compiled model says of itself.
//!
//! Inside the shared object it is framed as [`MAGIC`], the length `n` of the text as a
//! little-endian `u64`, then `n` bytes of UTF-8 JSON. [`Manifest::to_blob`] and
//! [`Manifest::from_blob`] convert; `from_blob` refuses what does not hold the invariants listed
//! at [`Manifest::check`], so a manifest that was read needs no further checks. Unknown fields are
//! ignored.

use serde::{Deserialize, Serialize};

use crate::abi::ABI_VERSION;
use crate::elem::{Elem, checked_elements};

/// First bytes of the framed manifest.
pub const MAGIC: [u8; 8] = *b"HAWQCM1\0";
/// Bytes before the JSON text: the magic and the length.
pub const HEADER_BYTES: usize = 16;
/// Longest JSON text that is accepted.
pub const MAX_TEXT_BYTES: usize = 256 << 20;
/// [`Manifest::schema`] of every manifest.
pub const SCHEMA: &str = "hawqc.manifest";
/// [`Manifest::version`] written, and the only one read.
pub const VERSION: u32 = 1;

/// Description of a compiled model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Version of this structure: [`VERSION`].
    pub version: u32,
    /// Version of the binary interface: [`ABI_VERSION`].
    pub abi: u32,
    /// Name and version of the compiler, e.g. `hawqc 0.1.0`.
    pub compiler: String,
    /// Target name, e.g. `x86-64-v3`.
    pub target: String,
    /// CPU features the code may use, as `is_x86_feature_detected!` spells them.
    pub features: Vec<String>,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Digest of the source model, in hexadecimal.
    pub model_hash: String,
    /// Bytes of working memory one run needs.
    pub arena_bytes: usize,
    /// Bytes of all constants in the object.
    pub constant_bytes: usize,
    /// Bytes of the (packed) weights among them.
    pub weight_bytes: usize,
    pub inputs: Vec<TensorDesc>,
    pub outputs: Vec<TensorDesc>,
    /// Bit widths of the quantised layers, in graph order.
    pub layers: Vec<LayerDesc>,
    /// Steps in order of execution; the index is the number passed to the step hook.
    pub steps: Vec<StepDesc>,
    /// The results of all kernels, in the order of the network, and where they lie in the arena after a run: filled only
    /// when the model was compiled with every value kept. A concatenation is among them even if it is no step.
    pub values: Vec<ValueDesc>,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorDesc {
    pub name: String,
    /// Type at the border entry point.
    pub elem: Elem,
    /// Shape at the border entry point, row-major.
    pub shape: Vec<usize>,
    /// The same tensor at the integer entry point; `None` when the model has no integer form of it,
    /// and then [`TensorDesc::elem`] and [`TensorDesc::shape`] hold there too.
    pub integer: Option<IntegerDesc>,
}

/// Which of a model's two functions to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Tensors in the model's own types and layouts: [`crate::abi::RUN_SYMBOL`].
    Border,
    /// Integers in and out, no border code: [`crate::abi::RUN_INTEGER_SYMBOL`].
    Integer,
}

impl TensorDesc {
    /// Element type and shape at an entry point.
    pub fn at(&self, entry: Entry) -> (Elem, &[usize]) {
        match (&self.integer, entry) {
            (Some(integer), Entry::Integer) => (integer.elem, &integer.shape),
            _ => (self.elem, &self.shape),
        }
    }
}

/// An input or output at the integer entry point: `real = scale * (integer - zero_point)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntegerDesc {
    pub elem: Elem,
    /// Row-major; rank 4 tensors are NHWC.
    pub shape: Vec<usize>,
    /// One for the tensor, or one per entry of the last axis.
    pub scale: Vec<f32>,
    pub zero_point: i32,
}

/// One quantised layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerDesc {
    pub name: String,
    pub weight_bits: u32,
    pub activation_bits: u32,
}

/// One step of execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDesc {
    /// Name of the source node.
    pub name: String,
    /// Name of the kernel that runs it.
    pub kernel: String,
    /// Canonical text of the kernel's specification.
    pub spec: String,
    /// Multiply-accumulate operations.
    pub macs: u64,
    /// What was proved of the step's constants, and why faster schedules were passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One intermediate value kept in the arena.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValueDesc {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<usize>,
    /// Byte offset in the arena.
    pub offset: usize,
    /// Elements from one row of the last axis to the next; `None` if the rows follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitch: Option<usize>,
}

/// Why bytes are not a manifest this runtime can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest does not start with the magic bytes HAWQCM1")]
    Magic,
    #[error("the manifest is cut short: {expected} bytes announced, {found} present")]
    Truncated { expected: u64, found: u64 },
    #[error("the manifest announces {0} bytes of text; at most {MAX_TEXT_BYTES} are accepted")]
    TooLong(u64),
    #[error("the manifest cannot be read as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("schema is \"{found}\", expected \"{SCHEMA}\"")]
    Schema { found: String },
    #[error("manifest version is {found}; this runtime reads version {VERSION}")]
    Version { found: u32 },
    #[error(
        "the model was compiled for ABI version {found}; this runtime supports version \
         {ABI_VERSION}: compile the model again with the matching hawqc"
    )]
    Abi { found: u32 },
    #[error("{tensor}: a tensor of type {elem} and shape {shape:?} does not fit in memory")]
    Shape { tensor: String, elem: Elem, shape: Vec<usize> },
    #[error("{tensor}: {found} scales for shape {shape:?}; expected 1 or one per last-axis entry")]
    Scales { tensor: String, found: usize, shape: Vec<usize> },
    #[error(
        "value {name} needs bytes {offset}..{end:?} of an arena of {arena_bytes} bytes at a \
         multiple of its element size"
    )]
    ValueOffset { name: String, offset: usize, end: Option<usize>, arena_bytes: usize },
}

/// The part that is read first, so that a manifest of another version says so instead of failing
/// on a field.
#[derive(Deserialize)]
struct Versions {
    schema: String,
    version: u32,
    abi: u32,
}

impl Manifest {
    /// The framed bytes to place under [`crate::abi::MANIFEST_SYMBOL`].
    pub fn to_blob(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let text = serde_json::to_vec(self)?;
        if text.len() > MAX_TEXT_BYTES {
            return Err(ManifestError::TooLong(text.len() as u64));
        }
        let mut blob = Vec::with_capacity(HEADER_BYTES + text.len());
        blob.extend_from_slice(&MAGIC);
        blob.extend_from_slice(&(text.len() as u64).to_le_bytes());
        blob.extend_from_slice(&text);
        Ok(blob)
    }

    /// Reads the framed bytes; anything after the announced text is ignored.
    pub fn from_blob(blob: &[u8]) -> Result<Manifest, ManifestError> {
        let text_bytes = text_bytes(blob)?;
        let text = blob[HEADER_BYTES..].get(..text_bytes).ok_or_else(|| ManifestError::Truncated {
            expected: (HEADER_BYTES + text_bytes) as u64,
            found: blob.len() as u64,
        })?;
        let versions: Versions = serde_json::from_slice(text)?;
        if versions.schema != SCHEMA {
            return Err(ManifestError::Schema { found: versions.schema });
        }
        if versions.version != VERSION {
            return Err(ManifestError::Version { found: versions.version });
        }
        if versions.abi != ABI_VERSION {
            return Err(ManifestError::Abi { found: versions.abi });
        }
        let manifest: Manifest = serde_json::from_slice(text)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what every reader may rely on: schema and versions are the ones named above, every
    /// tensor can exist in memory, scales are one or one per last-axis entry, and every kept value
    /// lies inside the arena at a multiple of its element size.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.schema != SCHEMA {
            return Err(ManifestError::Schema { found: self.schema.clone() });
        }
        if self.version != VERSION {
            return Err(ManifestError::Version { found: self.version });
        }
        if self.abi != ABI_VERSION {
            return Err(ManifestError::Abi { found: self.abi });
        }
        for desc in self.inputs.iter().chain(&self.outputs) {
            desc.check()?;
        }
        for value in &self.values {
            value.check(self.arena_bytes)?;
        }
        Ok(())
    }
}

/// Length of the JSON text announced by the first [`HEADER_BYTES`] bytes of a framed manifest.
pub fn text_bytes(header: &[u8]) -> Result<usize, ManifestError> {
    let found = header.len() as u64;
    let Some((magic, rest)) = header.split_first_chunk::<8>() else {
        return Err(ManifestError::Truncated { expected: HEADER_BYTES as u64, found });
    };
    if *magic != MAGIC {
        return Err(ManifestError::Magic);
    }
    let Some(length) = rest.first_chunk::<8>() else {
        return Err(ManifestError::Truncated { expected: HEADER_BYTES as u64, found });
    };
    let length = u64::from_le_bytes(*length);
    match usize::try_from(length) {
        Ok(bytes) if bytes <= MAX_TEXT_BYTES => Ok(bytes),
        _ => Err(ManifestError::TooLong(length)),
    }
}

fn check_shape(tensor: &str, elem: Elem, shape: &[usize]) -> Result<usize, ManifestError> {
    checked_elements(elem, shape).ok_or_else(|| ManifestError::Shape {
        tensor: tensor.to_owned(),
        elem,
        shape: shape.to_vec(),
    })
}

impl TensorDesc {
    fn check(&self) -> Result<(), ManifestError> {
        check_shape(&self.name, self.elem, &self.shape)?;
        let Some(integer) = &self.integer else {
            return Ok(());
        };
        check_shape(&self.name, integer.elem, &integer.shape)?;
        let scales = integer.scale.len();
        if scales != 1 && integer.shape.last() != Some(&scales) {
            return Err(ManifestError::Scales {
                tensor: self.name.clone(),
                found: scales,
                shape: integer.shape.clone(),
            });
        }
        Ok(())
    }
}

impl ValueDesc {
    /// Bytes of a row of the last axis, and from one to the next.
    pub(crate) fn row_bytes(&self) -> [usize; 2] {
        let row = self.shape.last().copied().unwrap_or(1);
        [row, self.pitch.unwrap_or(row)].map(|elements| elements.saturating_mul(self.elem.size_bytes()))
    }

    fn check(&self, arena_bytes: usize) -> Result<(), ManifestError> {
        let bytes = check_shape(&self.name, self.elem, &self.shape)? * self.elem.size_bytes();
        let [row, pitch] = self.row_bytes();
        let gaps = (bytes / row.max(1)).saturating_sub(1);
        let end =
            pitch.checked_sub(row).and_then(|gap| gap.checked_mul(gaps)?.checked_add(bytes)?.checked_add(self.offset));
        let inside = end.is_some_and(|end| end <= arena_bytes);
        if inside && self.offset.is_multiple_of(self.elem.size_bytes()) {
            return Ok(());
        }
        Err(ManifestError::ValueOffset { name: self.name.clone(), offset: self.offset, end, arena_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            schema: SCHEMA.into(),
            version: VERSION,
            abi: ABI_VERSION,
            compiler: "hawqc 0.1.0".into(),
            target: "x86-64-v3".into(),
            features: vec!["avx2".into()],
            arch: "x86_64".into(),
            model_hash: "00ff".into(),
            arena_bytes: 256,
            constant_bytes: 10,
            weight_bytes: 8,
            inputs: vec![TensorDesc {
                name: "x".into(),
                elem: Elem::F32,
                shape: vec![1, 3, 2, 2],
                integer: Some(IntegerDesc {
                    elem: Elem::U8,
                    shape: vec![1, 2, 2, 3],
                    scale: vec![0.1, 1.0e-7, 3.402_823_5e38],
                    zero_point: 3,
                }),
            }],
            outputs: vec![],
            layers: vec![LayerDesc { name: "conv".into(), weight_bits: 4, activation_bits: 8 }],
            steps: vec![StepDesc {
                name: "conv".into(),
                kernel: "portable".into(),
                spec: "conv".into(),
                macs: 1 << 40,
                notes: vec!["exact".into()],
            }],
            values: vec![ValueDesc { name: "v".into(), elem: Elem::I32, shape: vec![4, 8], offset: 128, pitch: None }],
        }
    }

    #[test]
    fn round_trips_exactly() {
        let manifest = sample();
        let mut blob = manifest.to_blob().unwrap();
        assert_eq!(Manifest::from_blob(&blob).unwrap(), manifest);
        blob.extend_from_slice(&[0; 40]);
        assert_eq!(Manifest::from_blob(&blob).unwrap(), manifest);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let blob = sample().to_blob().unwrap();
        for length in 0..blob.len() {
            let found = Manifest::from_blob(&blob[..length]);
            assert!(matches!(found, Err(ManifestError::Truncated { .. })), "length {length}: {found:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_read_or_refused() {
        let blob = sample().to_blob().unwrap();
        for byte in 0..blob.len() {
            for bit in 0..8 {
                let mut damaged = blob.clone();
                damaged[byte] ^= 1 << bit;
                if let Ok(manifest) = Manifest::from_blob(&damaged) {
                    manifest.check().unwrap();
                    assert!(byte >= HEADER_BYTES, "damaged header byte {byte} was accepted");
                }
            }
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_versions_come_first() {
        let reframe = |text: &str| {
            let mut blob = MAGIC.to_vec();
            blob.extend_from_slice(&(text.len() as u64).to_le_bytes());
            blob.extend_from_slice(text.as_bytes());
            Manifest::from_blob(&blob)
        };
        let text = serde_json::to_string(&sample()).unwrap();
        let extended = text.replacen('{', "{\"later\":[1],", 1);
        assert_eq!(reframe(&extended).unwrap(), sample());
        let newer = r#"{"schema":"hawqc.manifest","version":1,"abi":2}"#;
        assert!(matches!(reframe(newer), Err(ManifestError::Abi { found: 2 })));
        let newer = r#"{"schema":"hawqc.manifest","version":7,"abi":1}"#;
        assert!(matches!(reframe(newer), Err(ManifestError::Version { found: 7 })));
        let other = r#"{"schema":"other","version":1,"abi":1}"#;
        assert!(matches!(reframe(other), Err(ManifestError::Schema { .. })));
    }

    #[test]
    fn impossible_contents_are_refused() {
        let mut manifest = sample();
        manifest.inputs[0].shape = vec![1 << 40, 1 << 40];
        assert!(matches!(manifest.check(), Err(ManifestError::Shape { .. })));
        let mut manifest = sample();
        manifest.values[0].offset = 132;
        assert!(matches!(manifest.check(), Err(ManifestError::ValueOffset { .. })));
        let mut manifest = sample();
        manifest.values[0].offset = 2;
        assert!(matches!(manifest.check(), Err(ManifestError::ValueOffset { .. })));
        for (pitch, arena_bytes) in [(7, 256), (9, 256), (9, 256 + 11), (usize::MAX, 256), (usize::MAX / 4, 256)] {
            let mut manifest = sample();
            (manifest.arena_bytes, manifest.values[0].pitch) = (arena_bytes, Some(pitch));
            assert!(matches!(manifest.check(), Err(ManifestError::ValueOffset { .. })), "{pitch}");
        }
        let mut manifest = sample();
        (manifest.arena_bytes, manifest.values[0].pitch) = (256 + 12, Some(9));
        manifest.check().unwrap();
        let mut manifest = sample();
        if let Some(integer) = &mut manifest.inputs[0].integer {
            integer.scale = vec![1.0, 2.0];
        }
        assert!(matches!(manifest.check(), Err(ManifestError::Scales { .. })));
    }
}
