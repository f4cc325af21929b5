//! Sets of CPU features.

use iced_x86::CpuidFeature;
use thiserror::Error;

/// The features of the emulated machine. Every x86-64 processor's (up to SSE2) are always there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    names: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a feature the emulator knows")]
pub struct UnknownFeature(pub String);

/// A feature in the decoder's terms and in the spelling of `is_x86_feature_detected!`.
const KNOWN: &[(CpuidFeature, &str)] = &[
    (CpuidFeature::SSE3, "sse3"),
    (CpuidFeature::SSSE3, "ssse3"),
    (CpuidFeature::SSE4_1, "sse4.1"),
    (CpuidFeature::SSE4_2, "sse4.2"),
    (CpuidFeature::POPCNT, "popcnt"),
    (CpuidFeature::AVX, "avx"),
    (CpuidFeature::AVX2, "avx2"),
    (CpuidFeature::FMA, "fma"),
    (CpuidFeature::F16C, "f16c"),
    (CpuidFeature::BMI1, "bmi1"),
    (CpuidFeature::BMI2, "bmi2"),
    (CpuidFeature::LZCNT, "lzcnt"),
    (CpuidFeature::AVX_VNNI, "avxvnni"),
    (CpuidFeature::AVX512F, "avx512f"),
    (CpuidFeature::AVX512CD, "avx512cd"),
    (CpuidFeature::AVX512BW, "avx512bw"),
    (CpuidFeature::AVX512DQ, "avx512dq"),
    (CpuidFeature::AVX512VL, "avx512vl"),
    (CpuidFeature::AVX512_VNNI, "avx512vnni"),
    (CpuidFeature::AVX512_VBMI, "avx512vbmi"),
    (CpuidFeature::AVX512_VBMI2, "avx512vbmi2"),
    (CpuidFeature::AVX512_BITALG, "avx512bitalg"),
];

/// What every x86-64 processor has.
const BASE: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CET_IBT,
    CpuidFeature::PREFETCHW,
];

impl Features {
    /// Features by name. What they require is not added: name it.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Features, UnknownFeature> {
        let known = |name: &str| KNOWN.iter().find(|(_, known)| *known == name).map(|(_, known)| *known);
        let names = names.into_iter().map(|name| known(name).ok_or_else(|| UnknownFeature(name.to_owned())));
        Ok(Features { names: names.collect::<Result<_, _>>()? })
    }

    /// Every feature the emulator knows.
    pub fn all() -> Features {
        Features { names: KNOWN.iter().map(|(_, name)| *name).collect() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// The first of `needed` that is not in the set.
    pub(crate) fn missing(&self, needed: &[CpuidFeature]) -> Option<&'static str> {
        needed.iter().filter(|feature| !BASE.contains(feature)).find_map(|feature| {
            match KNOWN.iter().find(|(known, _)| known == feature) {
                Some((_, name)) if self.has(name) => None,
                Some((_, name)) => Some(*name),
                None => Some("a feature the emulator does not know"),
            }
        })
    }
}
