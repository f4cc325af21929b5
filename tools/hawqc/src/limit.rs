//! Limits as users write them: a quantity with a unit, or a share such as `0.77x`.

/// A limit on a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// In nanoseconds, bytes or bit operations.
    Absolute(f64),
    /// Of what uniform w8a8 uses.
    Share(f64),
}

impl Limit {
    /// The limit as a quantity, where uniform w8a8 uses `uniform`.
    pub fn of(self, uniform: f64) -> f64 {
        match self {
            Limit::Absolute(most) => most,
            Limit::Share(share) => share * uniform,
        }
    }
}

/// Reads a limit on latency, in nanoseconds.
pub fn latency(text: &str) -> Result<Limit, String> {
    parse(text, "12ms or 0.77x", &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)])
}

/// Reads a limit on size, in bytes.
pub fn size(text: &str) -> Result<Limit, String> {
    let units = [
        ("B", 1.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
    ];
    parse(text, "15MB, 800KiB or 0.6x", &units)
}

/// Reads a number of bytes.
pub fn bytes(text: &str) -> Result<usize, String> {
    match size(text) {
        Ok(Limit::Absolute(bytes)) => Ok(bytes as usize),
        _ => Err(format!("`{text}` is no number of bytes such as 15MB or 800KiB")),
    }
}

/// Reads a limit on bit operations.
pub fn bops(text: &str) -> Result<Limit, String> {
    parse(text, "90G or 0.5x", &[("", 1.0), ("M", 1e6), ("G", 1e9), ("T", 1e12)])
}

fn parse(text: &str, examples: &str, units: &[(&str, f64)]) -> Result<Limit, String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let value: Option<f64> = number.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0);
    let value = value.ok_or_else(|| format!("`{text}` is not a limit such as {examples}"))?;
    if unit == "x" {
        return Ok(Limit::Share(value));
    }
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, scale)) => Ok(Limit::Absolute(value * scale)),
        None => Err(format!("`{text}` has no known unit; write for instance {examples}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_and_shares() {
        assert_eq!(latency("12ms"), Ok(Limit::Absolute(12e6)));
        assert_eq!(latency("0.77x"), Ok(Limit::Share(0.77)));
        assert_eq!(size("1.5MiB"), Ok(Limit::Absolute(1_572_864.0)));
        assert_eq!(bops("90G"), Ok(Limit::Absolute(90e9)));
        assert_eq!(bops("9e10"), Ok(Limit::Absolute(90e9)));
        for text in ["", "ms", "-1ms", "0x", "12", "12MB", "nanms"] {
            assert!(latency(text).is_err(), "{text}");
        }
    }
}
