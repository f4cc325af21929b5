//! From kernels to an object, and whatever can be shown or written on the way.

use std::collections::BTreeMap;

use hawqc_codegen::link::link;
use hawqc_codegen::{Artifact, CodegenError, LinkWith, ModelInfo, Options, Target, disasm};
use hawqc_ir::{Graph, KernelSpec, Op, Range, text};
use hawqc_runtime::manifest::LayerDesc;
use hawqc_runtime::{Manifest, Model};
use hawqc_schedules::Schedule;

use crate::error::Error;
use crate::pipeline::{Lowered, pass_names};
use crate::tune::choices::with_available;

/// Choices of code generation.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    pub target: Target,
    /// Give every intermediate value memory of its own, so that it can be looked at after a run.
    pub keep_values: bool,
    /// Most bytes that constants may take; convolutions by transformed weights give way to direct ones.
    pub max_resident: Option<usize>,
}

impl CompileOptions {
    pub fn new(target: Target) -> CompileOptions {
        CompileOptions { target, keep_values: false, max_resident: None }
    }
}

/// A network as an object, with the stages it came through.
#[derive(Debug)]
pub struct Compiled {
    pub lowered: Lowered,
    pub artifact: Artifact,
    options: Options,
}

/// Compiles a lowered network. The same network and options give the same bytes.
pub fn compile(lowered: Lowered, options: &CompileOptions) -> Result<Compiled, Error> {
    compile_tuned(lowered, options, BTreeMap::new())
}

/// Compiles a lowered network with schedules for some of its kernels; those that a kernel's weights refuse are
/// left out.
pub fn compile_tuned(
    lowered: Lowered,
    options: &CompileOptions,
    schedules: BTreeMap<KernelSpec, Schedule>,
) -> Result<Compiled, Error> {
    let info = info(&lowered)?;
    let CompileOptions { keep_values, max_resident, .. } = *options;
    let (artifact, options) = with_available(schedules, |schedules| {
        let options = Options { keep_values, max_resident, schedules, ..Options::new(options.target.clone()) };
        Ok((hawqc_codegen::compile(lowered.kernels(), &info, &options)?, options))
    })?;
    Ok(Compiled { lowered, artifact, options })
}

/// The network in this process with schedules for some of its kernels.
pub(crate) fn load_tuned(
    lowered: &Lowered,
    target: &Target,
    schedules: BTreeMap<KernelSpec, Schedule>,
) -> Result<Model, CodegenError> {
    let info = ModelInfo { hash: lowered.model_hash.clone(), layers: Vec::new() };
    hawqc_codegen::jit(lowered.kernels(), &info, &Options { schedules, ..Options::new(target.clone()) })
}

fn info(lowered: &Lowered) -> Result<ModelInfo, Error> {
    Ok(ModelInfo { hash: lowered.model_hash.clone(), layers: layers(lowered.integer())? })
}

/// What can be emitted besides `graph@<pass>`.
const PRODUCTS: [&str; 9] = ["imported", "egraph", "kernels", "schedule", "clif", "asm", "obj", "header", "so"];

/// Every stage that [`Compiled::emit`] knows, in order of the pipeline.
pub fn stage_names() -> Vec<String> {
    let mut names: Vec<String> = PRODUCTS.iter().map(ToString::to_string).collect();
    let passes = pass_names().map(|pass| format!("graph@{pass}"));
    names.splice(1..1, passes);
    names
}

impl Compiled {
    /// The bytes of a stage; `so` is the linked shared object with the given SONAME.
    pub fn emit(&self, stage: &str, soname: &str, with: &LinkWith) -> Result<Vec<u8>, Error> {
        let graph = |graph: Option<&Graph>| graph.map(|g| text::print(g).into_bytes());
        let found = match stage {
            "so" => Some(link(&self.artifact.object, soname, with)?),
            "obj" => Some(self.artifact.object.clone()),
            "header" => Some(header(&self.artifact.manifest, soname).into_bytes()),
            "imported" => graph(self.lowered.after("imported")),
            "kernels" => graph(Some(self.lowered.kernels())),
            "egraph" => Some(self.lowered.report.to_string().into_bytes()),
            "schedule" => Some(self.artifact.schedules.clone().into_bytes()),
            "clif" | "asm" => Some(self.listing(stage == "clif")?.into_bytes()),
            _ => graph(stage.strip_prefix("graph@").and_then(|pass| self.lowered.after(pass))),
        };
        found.ok_or_else(|| Error::UnknownStage { found: stage.into(), known: stage_names().join(", ") })
    }

    /// The text of every function, generated again with listings.
    fn listing(&self, clif: bool) -> Result<String, Error> {
        let options = Options { listing: true, ..self.options.clone() };
        let artifact = hawqc_codegen::compile(self.lowered.kernels(), &info(&self.lowered)?, &options)?;
        let text =
            |l: &hawqc_codegen::Listing| format!("; {}\n{}\n", l.symbol, if clif { &l.clif } else { &l.assembly });
        Ok(artifact.listings.iter().map(text).collect())
    }

    /// The model in this process, compiled just in time.
    pub fn load(&self) -> Result<Model, Error> {
        Ok(hawqc_codegen::jit(self.lowered.kernels(), &info(&self.lowered)?, &self.options)?)
    }
}

/// The target a compiled model was made for.
pub fn target_of(manifest: &Manifest) -> Result<Target, Error> {
    Ok(Target::from_manifest(&manifest.target, &manifest.arch, &manifest.features)?)
}

/// Disassembles a shared object and lists every floating-point instruction and division between the borders.
pub fn audit(shared_object: &[u8]) -> Result<disasm::Report, Error> {
    Ok(disasm::audit_integer_only(shared_object)?)
}

/// The bits of every convolution, from the actual weights and the ranges of the sources.
fn layers(integer: &Graph) -> Result<Vec<LayerDesc>, Error> {
    let live = integer.live();
    let convs = integer.values().filter(|id| live[id.index()] && matches!(integer.op(*id), Op::Conv(_)));
    let describe = |id| {
        let args = integer.args(id);
        let bits = |index: usize| Ok::<u32, Error>(width(integer.ty(args[index]).int_range()?));
        Ok(LayerDesc { name: integer.name(id).to_string(), weight_bits: bits(1)?, activation_bits: bits(0)? })
    };
    convs.map(describe).collect()
}

/// The smallest number of bits that holds a range: unsigned if it has no negative value.
fn width(range: Range) -> u32 {
    let signed = |bits: u32| range.lo >= -(1i64 << (bits - 1)) && range.hi < 1i64 << (bits - 1);
    let unsigned = |bits: u32| range.lo >= 0 && range.hi < 1i64 << bits;
    (1..=32).find(|&bits| signed(bits) || unsigned(bits)).unwrap_or(32)
}

/// A C header with the model's sizes and shapes.
fn header(manifest: &Manifest, soname: &str) -> String {
    let stem = soname.split('.').next().unwrap_or(soname);
    let prefix: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    let mut defines: BTreeMap<String, String> = BTreeMap::new();
    defines.insert("ARENA_BYTES".into(), manifest.arena_bytes.to_string());
    for (kind, tensors) in [("INPUT", &manifest.inputs), ("OUTPUT", &manifest.outputs)] {
        defines.insert(format!("{kind}S"), tensors.len().to_string());
        for (i, tensor) in tensors.iter().enumerate() {
            let dims: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            defines.insert(
                format!("{kind}_{i}_SHAPE"),
                format!("{{{}}} /* {} {} */", dims.join(", "), tensor.elem, comment(&tensor.name)),
            );
            defines.insert(format!("{kind}_{i}_ELEMENTS"), tensor.shape.iter().product::<usize>().to_string());
        }
    }
    let lines: String = defines.iter().map(|(k, v)| format!("#define {prefix}_{k} {v}\n")).collect();
    format!(
        "/* {soname}: see hawqc.h for the interface. */\n#ifndef {prefix}_MODEL_H\n#define {prefix}_MODEL_H\n{lines}#endif\n"
    )
}

/// A name that cannot end a comment.
fn comment(name: &str) -> String {
    name.replace("*/", "* /").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        let of = |lo, hi| width(Range::new(lo, hi));
        assert_eq!([of(-7, 7), of(-8, 7), of(0, 15), of(-127, 127), of(0, 255), of(0, 31)], [4, 4, 4, 8, 8, 5]);
    }
}
