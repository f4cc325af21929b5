//! Targets: which machine a model is compiled for.
//!
//! In: a target name ([`Target::parse`]), an optional list of feature changes
//! ([`Target::with_changes`]), or the architecture and feature names of a manifest
//! ([`Target::from_manifest`]). Out: a [`Target`], which everything below asks instead of asking the
//! build machine. A target's features are always closed: a feature is present only together with
//! every feature it [`requires`](Feature::requires).
//!
//! Adding a target is one row in [`ROWS`]; adding a feature is one row in the table in
//! `target/feature.rs`.

mod feature;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use thiserror::Error;

pub use feature::Feature;

/// Instruction set architecture of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// The manifest's spelling, equal to Rust's `target_arch`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// The architecture this compiler runs on, if it is one that models can be compiled for.
    pub fn host() -> Option<Arch> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == std::env::consts::ARCH)
    }

    fn triple(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64-unknown-linux-gnu",
            Arch::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Features without which the 128-bit vector code cannot be generated.
    fn minimum(self) -> &'static [Feature] {
        match self {
            Arch::X86_64 => &[Feature::Sse3, Feature::Ssse3, Feature::Sse41],
            Arch::Aarch64 => &[Feature::Neon],
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the portable 128-bit kernels form an 8-bit dot product on a target. Every strategy gives the
/// same exact result; see [`crate::dot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dot {
    /// x86 `vpdpbusd xmm`: one instruction (AVX-VNNI, or AVX-512 VNNI with VL).
    Vnni,
    /// x86 `pmaddwd` on operands widened to 16 bits (SSE4.1 or AVX).
    Pmaddwd,
    /// aarch64 `sdot`: one instruction where the unsigned operand stays below 128, else three.
    Sdot,
    /// aarch64 `usdot`: one instruction.
    Usdot,
    /// Widening multiplies and pairwise adds, on any machine.
    Widening,
}

/// One row of the table of targets.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    /// None: the architecture this compiler runs on.
    pub arch: Option<Arch>,
    /// For people, one line.
    pub description: &'static str,
    features: Features,
}

/// Where a row's features come from. What a listed feature requires need not be listed.
#[derive(Clone, Copy, Debug)]
enum Features {
    /// Whatever the machine this compiler runs on has.
    Detected,
    Listed(&'static [Feature]),
}

const V3: &[Feature] = &[Feature::Avx2, Feature::Fma, Feature::Popcnt, Feature::Bmi1, Feature::Bmi2, Feature::Lzcnt];

/// The targets, in the order in which `hawqc targets` lists them.
pub const ROWS: &[Row] = &[
    Row {
        name: "host",
        arch: None,
        description: "the machine this compiler runs on, with every feature it has",
        features: Features::Detected,
    },
    Row {
        name: "x86-64-v2",
        arch: Some(Arch::X86_64),
        description: "x86-64 with SSE4.2 (2008 and later)",
        features: Features::Listed(&[Feature::Sse42, Feature::Popcnt]),
    },
    Row {
        name: "x86-64-v3",
        arch: Some(Arch::X86_64),
        description: "x86-64 with AVX2 (Haswell, Zen and later)",
        features: Features::Listed(V3),
    },
    Row {
        name: "x86-avxvnni",
        arch: Some(Arch::X86_64),
        description: "x86-64 with AVX2 and its 8-bit dot product (Alder Lake, Zen 5 and later)",
        features: Features::Listed(&[
            Feature::AvxVnni,
            Feature::Fma,
            Feature::Popcnt,
            Feature::Bmi1,
            Feature::Bmi2,
            Feature::Lzcnt,
        ]),
    },
    Row {
        name: "x86-avx512",
        arch: Some(Arch::X86_64),
        description: "x86-64 with AVX-512 F, CD, BW, DQ, VL and VNNI (Cascade Lake, Zen 4 and later)",
        features: Features::Listed(&[
            Feature::Avx512cd,
            Feature::Avx512bw,
            Feature::Avx512dq,
            Feature::Avx512vl,
            Feature::Avx512vnni,
            Feature::Popcnt,
            Feature::Bmi1,
            Feature::Bmi2,
            Feature::Lzcnt,
        ]),
    },
    Row {
        name: "x86-avx512-novnni",
        arch: Some(Arch::X86_64),
        description: "x86-64 with AVX-512 F, CD, BW, DQ and VL, without VNNI (Skylake server)",
        features: Features::Listed(&[
            Feature::Avx512cd,
            Feature::Avx512bw,
            Feature::Avx512dq,
            Feature::Avx512vl,
            Feature::Popcnt,
            Feature::Bmi1,
            Feature::Bmi2,
            Feature::Lzcnt,
        ]),
    },
    Row {
        name: "aarch64",
        arch: Some(Arch::Aarch64),
        description: "64-bit ARM with NEON (any ARMv8)",
        features: Features::Listed(&[Feature::Neon]),
    },
    Row {
        name: "aarch64-dotprod",
        arch: Some(Arch::Aarch64),
        description: "64-bit ARM with NEON and its 8-bit dot product (Cortex-A76, Neoverse N1, Apple M1)",
        features: Features::Listed(&[Feature::Dotprod]),
    },
];

/// Why a target cannot be had.
#[derive(Debug, Error)]
pub enum TargetError {
    #[error("unknown target `{found}`{suggestion}; the targets are {valid}")]
    UnknownTarget {
        found: String,
        /// Empty, or "(did you mean ..?)".
        suggestion: String,
        valid: String,
    },
    #[error("unknown CPU feature `{found}` of {arch}{suggestion}; its features are {valid}")]
    UnknownFeature {
        arch: Arch,
        found: String,
        /// Empty, or "(did you mean ..?)".
        suggestion: String,
        valid: String,
    },
    #[error("CPU feature change `{found}`: write `+feature` or `-feature`, separated by commas")]
    MalformedChange { found: String },
    #[error("CPU feature `{feature}` cannot be removed: generated code for {arch} needs at least {minimum}")]
    BelowMinimum { feature: Feature, arch: Arch, minimum: String },
    #[error("target `host`: this machine lacks {missing}, which generated code for {arch} always uses")]
    HostTooOld { arch: Arch, missing: String },
    #[error("architecture `{found}` cannot be compiled for; the architectures are x86_64 and aarch64")]
    UnknownArch { found: String },
    #[error("code generator for {arch}: {message}")]
    Isa { arch: Arch, message: String },
}

/// A machine to compile for. Closed under [`Feature::requires`]; all features belong to `arch`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    name: String,
    arch: Arch,
    features: BTreeSet<Feature>,
}

impl Target {
    /// The target called `name` in [`ROWS`].
    pub fn parse(name: &str) -> Result<Target, TargetError> {
        let Some(row) = ROWS.iter().find(|row| row.name == name) else {
            let valid: Vec<_> = ROWS.iter().map(|row| row.name).collect();
            return Err(TargetError::UnknownTarget {
                found: name.to_owned(),
                suggestion: suggestion(name, &valid),
                valid: valid.join(", "),
            });
        };
        row.target()
    }

    /// The machine this compiler runs on, with every feature it has.
    pub fn host() -> Result<Target, TargetError> {
        Target::parse("host")
    }

    /// The target a manifest describes.
    pub fn from_manifest<S: AsRef<str>>(name: &str, arch: &str, features: &[S]) -> Result<Target, TargetError> {
        let arch = [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .find(|known| known.name() == arch)
            .ok_or_else(|| TargetError::UnknownArch { found: arch.to_owned() })?;
        let mut target = Target { name: name.to_owned(), arch, features: BTreeSet::new() };
        for feature in features {
            target.add(Feature::parse(arch, feature.as_ref())?);
        }
        Ok(target)
    }

    /// This target with `changes` such as `+vbmi,-vnni` applied from left to right. Adding a feature
    /// adds what it requires; removing one removes what requires it. The name becomes the old one
    /// followed by the difference, e.g. `x86-avx512+avx512vbmi-avx512vnni`.
    pub fn with_changes(&self, changes: &str) -> Result<Target, TargetError> {
        let mut target = self.clone();
        for change in changes.split(',').map(str::trim).filter(|change| !change.is_empty()) {
            if let Some(name) = change.strip_prefix('+') {
                target.add(Feature::parse(self.arch, name)?);
            } else if let Some(name) = change.strip_prefix('-') {
                target.remove(Feature::parse(self.arch, name)?)?;
            } else {
                return Err(TargetError::MalformedChange { found: change.to_owned() });
            }
        }
        for feature in target.features.difference(&self.features) {
            target.name.push('+');
            target.name.push_str(feature.name());
        }
        for feature in self.features.difference(&target.features) {
            target.name.push('-');
            target.name.push_str(feature.name());
        }
        Ok(target)
    }

    fn add(&mut self, feature: Feature) {
        if self.features.insert(feature) {
            for &required in feature.requires() {
                self.add(required);
            }
        }
    }

    fn remove(&mut self, feature: Feature) -> Result<(), TargetError> {
        if self.arch.minimum().contains(&feature) {
            return Err(TargetError::BelowMinimum {
                feature,
                arch: self.arch,
                minimum: names(self.arch.minimum().iter().copied()),
            });
        }
        self.features.remove(&feature);
        let dependents: Vec<_> =
            self.features.iter().copied().filter(|present| present.requires().contains(&feature)).collect();
        dependents.into_iter().try_for_each(|dependent| self.remove(dependent))
    }

    /// The name for people and manifests.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn arch(&self) -> Arch {
        self.arch
    }

    pub fn features(&self) -> &BTreeSet<Feature> {
        &self.features
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// The manifest's list of features: everything the code may use beyond the architecture's base.
    pub fn feature_names(&self) -> Vec<&'static str> {
        self.features.iter().map(|feature| feature.name()).collect()
    }

    /// Whether the machine this compiler runs on can run code for the target.
    pub fn runs_here(&self) -> bool {
        Arch::host() == Some(self.arch) && self.missing_here().is_empty()
    }

    /// The target's features that the machine this compiler runs on lacks.
    pub fn missing_here(&self) -> Vec<Feature> {
        self.features.iter().copied().filter(|feature| !feature.detected()).collect()
    }

    /// The fastest way this target has to form 8-bit dot products in 128-bit vectors.
    pub fn dot(&self) -> Dot {
        let evex_vnni = self.has(Feature::Avx512vnni) && self.has(Feature::Avx512vl);
        match self.arch {
            Arch::X86_64 if self.has(Feature::AvxVnni) || evex_vnni => Dot::Vnni,
            Arch::X86_64 => Dot::Pmaddwd,
            Arch::Aarch64 if self.has(Feature::I8mm) => Dot::Usdot,
            Arch::Aarch64 if self.has(Feature::Dotprod) => Dot::Sdot,
            Arch::Aarch64 => Dot::Widening,
        }
    }

    /// Cranelift's code generator for exactly this target's features, whatever the build machine
    /// has. An object for a shared library needs `pic`; the JIT needs the opposite.
    pub(crate) fn isa(&self, pic: bool) -> Result<OwnedTargetIsa, TargetError> {
        let failed = |message: String| TargetError::Isa { arch: self.arch, message };
        let mut shared = settings::builder();
        for (name, value) in [
            ("opt_level", "speed"),
            ("is_pic", if pic { "true" } else { "false" }),
            ("use_colocated_libcalls", "false"),
            ("enable_probestack", "false"),
            ("unwind_info", "false"),
            ("enable_verifier", "true"),
            // 64 bytes, a cache line; without it x86-64 functions are not aligned at all.
            ("log2_min_function_alignment", "6"),
        ] {
            shared.set(name, value).map_err(|error| failed(format!("setting {name}: {error}")))?;
        }
        let mut builder = isa::lookup_by_name(self.arch.triple()).map_err(|error| failed(error.to_string()))?;
        for flag in Feature::of(self.arch).filter_map(|f| Some((f.cranelift_flag()?, self.has(f)))) {
            let (name, present) = flag;
            builder
                .set(name, if present { "true" } else { "false" })
                .map_err(|error| failed(format!("setting {name}: {error}")))?;
        }
        let isa: Arc<_> = builder.finish(settings::Flags::new(shared)).map_err(|error| failed(error.to_string()))?;
        Ok(isa)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Row {
    /// The target this row describes. Fails only for `host`, where the machine is too old or of an
    /// architecture that cannot be compiled for.
    pub fn target(&self) -> Result<Target, TargetError> {
        let Some(arch) = self.arch.or(Arch::host()) else {
            return Err(TargetError::UnknownArch { found: std::env::consts::ARCH.to_owned() });
        };
        let mut target = Target { name: self.name.to_owned(), arch, features: BTreeSet::new() };
        match self.features {
            Features::Listed(listed) => listed.iter().for_each(|&feature| target.add(feature)),
            Features::Detected => {
                // A feature whose requirement is not usable here (a virtual machine may hide it) is
                // left out, which keeps the set closed.
                let detected = |feature: &Feature| detected_with_requirements(*feature);
                target.features = Feature::of(arch).filter(detected).collect();
                let missing: Vec<_> = arch.minimum().iter().copied().filter(|feature| !target.has(*feature)).collect();
                if !missing.is_empty() {
                    return Err(TargetError::HostTooOld { arch, missing: names(missing) });
                }
            }
        }
        Ok(target)
    }
}

fn detected_with_requirements(feature: Feature) -> bool {
    feature.detected() && feature.requires().iter().all(|&required| detected_with_requirements(required))
}

fn names(features: impl IntoIterator<Item = Feature>) -> String {
    let names: Vec<_> = features.into_iter().map(Feature::name).collect();
    names.join(", ")
}

/// " (did you mean `x`?)" for the nearest valid name, or nothing if none is near.
fn suggestion(found: &str, valid: &[&str]) -> String {
    let nearest = valid.iter().map(|name| (edit_distance(found, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + found.chars().count() / 4 => {
            format!(" (did you mean `{name}`?)")
        }
        _ => String::new(),
    }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
