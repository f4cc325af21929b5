//! What the running CPU is and can do, by the names `is_x86_feature_detected!` and
//! `is_aarch64_feature_detected!` use. Detection includes the operating system's support for the
//! wider registers.

/// Architecture of this process, as in [`crate::Manifest::arch`].
pub const ARCH: &str = std::env::consts::ARCH;

macro_rules! feature_table {
    ($detect:path: $($name:tt)*) => {
        /// Every feature name this crate knows on this architecture, with its presence.
        fn table() -> Vec<(&'static str, bool)> {
            use $detect as detect;
            vec![$(($name, detect!($name))),*]
        }
    };
}

#[cfg(target_arch = "x86_64")]
feature_table!(std::arch::is_x86_feature_detected:
    "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "f16c"
    "bmi1" "bmi2" "lzcnt" "avxvnni" "gfni"
    "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma"
    "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg" "avx512vpopcntdq" "avx512bf16"
);

#[cfg(target_arch = "aarch64")]
feature_table!(std::arch::is_aarch64_feature_detected:
    "neon" "dotprod" "i8mm" "fp16" "bf16" "sve" "sve2"
);

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn table() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Features this CPU has, out of those this crate knows.
pub fn detected() -> Vec<&'static str> {
    let mut found = table();
    found.retain(|&(_, present)| present);
    found.into_iter().map(|(name, _)| name).collect()
}

/// The entries of `features` this CPU lacks, in order; a name this crate does not know counts as
/// lacking.
pub fn missing(features: &[String]) -> Vec<String> {
    let present = detected();
    features.iter().filter(|feature| !present.contains(&feature.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_detected_is_not_missing() {
        let names: Vec<String> = detected().into_iter().map(String::from).collect();
        assert!(missing(&names).is_empty());
        #[cfg(target_arch = "x86_64")]
        assert!(names.iter().any(|name| name == "sse2"));
        #[cfg(target_arch = "aarch64")]
        assert!(names.iter().any(|name| name == "neon"));
    }

    #[test]
    fn unknown_names_are_missing() {
        let asked = ["no-such-feature".to_owned()];
        assert_eq!(missing(&asked), asked);
    }
}
