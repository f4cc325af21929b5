//! Values of arguments that are more than a word or a number.

use std::time::Duration;

use hawqc_quantize::LayerBits;
use hawqc_quantize::sensitivity::parse_choice;

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: f64 = digits.parse().map_err(|_| format!("`{text}` is not a time such as 5s or 500ms"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => value / 1e3,
        "" | "s" => value,
        "m" => value * 60.0,
        unit => return Err(format!("unknown unit `{unit}`; use ms, s or m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

pub(super) fn widths(text: &str) -> Result<LayerBits, String> {
    parse_choice(text).map_err(|_| format!("`{text}` is not a choice of widths such as w4a8"))
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.into(), b.into())),
        _ => Err(format!("`{text}` is not A=B with the names of two layers")),
    }
}

pub(super) fn percentile(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| *p > 0.0 && *p <= 100.0)
        .ok_or_else(|| format!("`{text}` is not above 0 and at most 100"))
}

pub(super) fn part(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| *p >= 0.0 && *p <= 1.0).ok_or_else(|| format!("`{text}` is not between 0 and 1"))
}

pub(super) fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(format!("`{text}` is not I/N with I < N")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shards() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("5 parsecs").is_err() && duration("-1s").is_err());
        assert_eq!(shard("0/4"), Ok((0, 4)));
        assert!(shard("4/4").is_err() && shard("x").is_err());
    }
}
