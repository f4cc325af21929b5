//! CPU features: one row each.

use std::fmt;

use super::{Arch, TargetError, suggestion};

#[cfg(target_arch = "x86_64")]
macro_rules! detect {
    (X86_64, $name:tt) => {
        std::arch::is_x86_feature_detected!($name)
    };
    (Aarch64, $name:tt) => {
        false
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! detect {
    (X86_64, $name:tt) => {
        false
    };
    (Aarch64, $name:tt) => {
        std::arch::is_aarch64_feature_detected!($name)
    };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! detect {
    ($arch:ident, $name:tt) => {
        false
    };
}

macro_rules! features {
    ($($variant:ident $arch:ident $name:tt $flag:expr, $alias:expr, [$($requires:ident)*];)*) => {
        /// A CPU feature that generated code may use. Features that no generated code needs are not
        /// listed, so that a manifest never demands them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature { $($variant),* }

        impl Feature {
            /// Every feature, in the order in which manifests list them.
            pub const ALL: &'static [Feature] = &[$(Feature::$variant),*];

            /// The name in the spelling of `is_x86_feature_detected!` (or its aarch64 sibling).
            pub fn name(self) -> &'static str {
                match self { $(Feature::$variant => $name),* }
            }

            /// The architecture that has the feature.
            pub fn arch(self) -> Arch {
                match self { $(Feature::$variant => Arch::$arch),* }
            }

            /// The features that this one cannot be used without (directly).
            pub fn requires(self) -> &'static [Feature] {
                match self { $(Feature::$variant => &[$(Feature::$requires),*]),* }
            }

            /// Whether the machine this compiler runs on has the feature and its operating system
            /// lets it be used.
            pub fn detected(self) -> bool {
                match self { $(Feature::$variant => detect!($arch, $name)),* }
            }

            /// A second, shorter name accepted on the command line.
            fn alias(self) -> Option<&'static str> {
                match self { $(Feature::$variant => $alias),* }
            }

            /// The Cranelift setting that lets Cranelift use the feature; none where only assembled
            /// kernels can use it.
            pub(super) fn cranelift_flag(self) -> Option<&'static str> {
                match self { $(Feature::$variant => $flag),* }
            }
        }
    };
}

features! {
    Sse3 X86_64 "sse3" Some("has_sse3"), None, [];
    Ssse3 X86_64 "ssse3" Some("has_ssse3"), None, [Sse3];
    Sse41 X86_64 "sse4.1" Some("has_sse41"), Some("sse41"), [Ssse3];
    Sse42 X86_64 "sse4.2" Some("has_sse42"), Some("sse42"), [Sse41];
    Popcnt X86_64 "popcnt" Some("has_popcnt"), None, [];
    Avx X86_64 "avx" Some("has_avx"), None, [Sse42];
    Avx2 X86_64 "avx2" Some("has_avx2"), None, [Avx];
    Fma X86_64 "fma" Some("has_fma"), None, [Avx];
    Bmi1 X86_64 "bmi1" Some("has_bmi1"), None, [];
    Bmi2 X86_64 "bmi2" Some("has_bmi2"), None, [];
    Lzcnt X86_64 "lzcnt" Some("has_lzcnt"), None, [];
    AvxVnni X86_64 "avxvnni" Some("has_avx_vnni"), None, [Avx2];
    Avx512f X86_64 "avx512f" Some("has_avx512f"), None, [Avx2 Fma];
    Avx512cd X86_64 "avx512cd" None, None, [Avx512f];
    Avx512bw X86_64 "avx512bw" None, None, [Avx512f];
    // Cranelift would multiply 32-bit lanes into 64 bits by `vpmullq` (three operations) and not `vpmuldq` (one).
    Avx512dq X86_64 "avx512dq" None, None, [Avx512f];
    Avx512vl X86_64 "avx512vl" Some("has_avx512vl"), None, [Avx512f];
    Avx512vnni X86_64 "avx512vnni" Some("has_avx512vnni"), Some("vnni"), [Avx512f];
    Avx512vbmi X86_64 "avx512vbmi" Some("has_avx512vbmi"), Some("vbmi"), [Avx512bw];
    Avx512vbmi2 X86_64 "avx512vbmi2" None, Some("vbmi2"), [Avx512bw];
    Avx512bitalg X86_64 "avx512bitalg" Some("has_avx512bitalg"), Some("bitalg"), [Avx512bw];
    Gfni X86_64 "gfni" None, None, [Sse41];
    Neon Aarch64 "neon" None, None, [];
    Dotprod Aarch64 "dotprod" Some("has_dotprod"), None, [Neon];
    I8mm Aarch64 "i8mm" Some("has_i8mm"), None, [Dotprod];
}

impl Feature {
    /// The feature of `arch` called `name` (its own name or its short one).
    pub fn parse(arch: Arch, name: &str) -> Result<Feature, TargetError> {
        Feature::of(arch).find(|feature| feature.name() == name || feature.alias() == Some(name)).ok_or_else(|| {
            let valid: Vec<_> = Feature::of(arch).map(Feature::name).collect();
            TargetError::UnknownFeature {
                arch,
                found: name.to_owned(),
                suggestion: suggestion(name, &valid),
                valid: valid.join(", "),
            }
        })
    }

    /// Every feature of `arch`.
    pub fn of(arch: Arch) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| feature.arch() == arch)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
