//! Latency tables: how long each layer takes at each width; `latency.json`.
//!
//! In: measurements, gathered elsewhere. Out: the predicted latency of a choice of widths,
//! [`LatencyTable::predict`]: the fixed time, plus the median of each layer's choice, plus the seams whose two
//! choices both hold. What holds of a table that was read or [checked](LatencyTable::check): names do not
//! repeat, every layer has a choice, times are finite and at least 0 (a seam may also save time), and a seam
//! speaks of two different layers and of choices these layers have.
//!
//! A choice of widths is text, `w{weights}a{activations}`, for instance `w4a8`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

const SCHEMA: &str = "hawqc.latency";
const VERSION: u32 = 1;

/// Latencies of one network on one machine; see the module's documentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyTable {
    /// Fingerprint: CPU model, features, cores.
    pub machine: String,
    /// Name of the target that was compiled for.
    pub target: String,
    pub threads: usize,
    /// Digest of the network.
    pub model_hash: String,
    /// Time of everything that no width changes.
    pub fixed_ns: f64,
    /// Every quantisable layer once, in the graph's order.
    pub layers: Vec<LayerLatency>,
    pub seams: Vec<Seam>,
}

/// The times of one layer by choice of widths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerLatency {
    pub name: String,
    pub choices: BTreeMap<String, Timing>,
}

/// What was measured for one layer at one choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    pub median_ns: f64,
    pub p10_ns: f64,
    pub p90_ns: f64,
    /// Number of measurements; 0 if the time was given, not measured here.
    pub count: usize,
    /// Text of the schedule that was measured; empty if unknown.
    pub schedule: String,
}

/// Extra time when two layers have these choices: conversions between differing widths, effects of caches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seam {
    pub layers: [String; 2],
    pub choices: [String; 2],
    pub extra_ns: f64,
}

/// Why a latency table cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LatencyError {
    #[error("latency.json: {0}")]
    File(String),
    #[error("latency.json: schema is {found}; supported is {SCHEMA} {VERSION}")]
    Schema { found: String },
    #[error("latency.json: layer `{layer}`: {message}")]
    Layer { layer: String, message: String },
    #[error("latency.json: seam between `{first}` and `{second}`: {message}")]
    Seam { first: String, second: String, message: String },
    #[error("no latency for layer `{layer}` at {choice}; the table has {known}")]
    Missing { layer: String, choice: String, known: String },
}

#[derive(Serialize, Deserialize)]
struct Head {
    schema: String,
    version: u32,
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    table: &'a LatencyTable,
}

impl Timing {
    /// A time that was given, not measured here.
    pub fn given(ns: f64) -> Timing {
        Timing { median_ns: ns, p10_ns: ns, p90_ns: ns, count: 0, schedule: String::new() }
    }
}

impl LatencyTable {
    /// Reads `latency.json` and checks it.
    pub fn from_json(text: &str) -> Result<LatencyTable, LatencyError> {
        let error = |e: serde_json::Error| LatencyError::File(e.to_string());
        let mut value: serde_json::Value = serde_json::from_str(text).map_err(error)?;
        let head: Head = Head::deserialize(&value).map_err(error)?;
        if head.schema != SCHEMA || head.version != VERSION {
            return Err(LatencyError::Schema { found: format!("{} {}", head.schema, head.version) });
        }
        if let Some(members) = value.as_object_mut() {
            members.remove("schema");
            members.remove("version");
        }
        let table: LatencyTable = serde_json::from_value(value).map_err(error)?;
        table.check()?;
        Ok(table)
    }

    /// The file's text; equal tables give equal bytes.
    pub fn to_json(&self) -> String {
        let head = Head { schema: SCHEMA.into(), version: VERSION };
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string_pretty(&File { head, table: self }).unwrap_or_default() + "\n"
    }

    /// Reads bare lists as HAWQ publishes them: an object from width (`8`, `int8`, `w8a8`, `latency_int8`) to
    /// milliseconds, one number a layer of `names`.
    ///
    /// Lists that are two shorter leave out the first and the last layer, as HAWQ's do: these stay at 8 bits
    /// and count nothing.
    pub fn from_lists(text: &str, names: &[String], model_hash: &str) -> Result<LatencyTable, LatencyError> {
        let lists: BTreeMap<String, Vec<f64>> =
            serde_json::from_str(text).map_err(|e| LatencyError::File(e.to_string()))?;
        let mut layers: Vec<LayerLatency> =
            names.iter().map(|n| LayerLatency { name: n.clone(), choices: BTreeMap::new() }).collect();
        for (key, list) in &lists {
            let choice = width_choice(key)
                .ok_or_else(|| LatencyError::File(format!("`{key}` is not a width; write 8, int8 or w8a8")))?;
            let skipped = match names.len() - list.len().min(names.len()) {
                0 if list.len() == names.len() => 0,
                2 => 1,
                _ => {
                    let message = format!(
                        "`{key}` has {} numbers; the network has {} layers ({} without the first and the last)",
                        list.len(),
                        names.len(),
                        names.len().saturating_sub(2)
                    );
                    return Err(LatencyError::File(message));
                }
            };
            for (layer, ms) in layers[skipped..].iter_mut().zip(list) {
                layer.choices.insert(choice.clone(), Timing::given(ms * 1e6));
            }
        }
        for layer in layers.iter_mut().filter(|l| l.choices.is_empty()) {
            layer.choices.insert("w8a8".into(), Timing::given(0.0));
        }
        let table = LatencyTable {
            machine: "given".into(),
            target: "given".into(),
            threads: 1,
            model_hash: model_hash.into(),
            fixed_ns: 0.0,
            layers,
            seams: Vec::new(),
        };
        table.check()?;
        Ok(table)
    }

    /// Predicted nanoseconds of a network whose layers have these choices.
    ///
    /// # Errors
    /// A layer of the table that `choices` does not name, or at a choice that was not measured.
    pub fn predict(&self, choices: &BTreeMap<String, String>) -> Result<f64, LatencyError> {
        let chosen = |name: &str| choices.get(name).map(String::as_str);
        let mut total = self.fixed_ns;
        for layer in &self.layers {
            let choice = chosen(&layer.name).unwrap_or("no choice");
            let timing = layer.choices.get(choice).ok_or_else(|| layer.missing(choice))?;
            total += timing.median_ns;
        }
        let holds = |seam: &&Seam| (0..2).all(|i| chosen(&seam.layers[i]) == Some(seam.choices[i].as_str()));
        Ok(total + self.seams.iter().filter(holds).map(|seam| seam.extra_ns).sum::<f64>())
    }

    /// Checks what the module's documentation says of a table.
    pub fn check(&self) -> Result<(), LatencyError> {
        if !is_time(self.fixed_ns) {
            return Err(LatencyError::File(format!("fixed_ns is {}", self.fixed_ns)));
        }
        let mut names = BTreeSet::new();
        for layer in &self.layers {
            let error = |message: String| Err(LatencyError::Layer { layer: layer.name.clone(), message });
            if !names.insert(&layer.name) {
                return error("is given twice".into());
            }
            if layer.choices.is_empty() {
                return error("has no times".into());
            }
            for (choice, timing) in &layer.choices {
                if width_choice(choice).as_deref() != Some(choice) {
                    return error(format!("`{choice}` is not a choice of widths such as w4a8"));
                }
                if ![timing.median_ns, timing.p10_ns, timing.p90_ns].into_iter().all(is_time) {
                    return error(format!("{choice}: a time is not finite or below 0"));
                }
            }
        }
        self.seams.iter().try_for_each(|seam| self.check_seam(seam))
    }

    fn check_seam(&self, seam: &Seam) -> Result<(), LatencyError> {
        let error = |message: String| {
            let [first, second] = seam.layers.clone();
            Err(LatencyError::Seam { first, second, message })
        };
        if seam.layers[0] == seam.layers[1] {
            return error("a seam joins two different layers".into());
        }
        if !seam.extra_ns.is_finite() {
            return error(format!("extra_ns is {}", seam.extra_ns));
        }
        for (name, choice) in seam.layers.iter().zip(&seam.choices) {
            match self.layers.iter().find(|l| l.name == *name) {
                None => return error(format!("there is no layer `{name}`")),
                Some(layer) if !layer.choices.contains_key(choice) => {
                    return error(format!("layer `{name}` has no time at {choice}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

impl LayerLatency {
    fn missing(&self, choice: &str) -> LatencyError {
        let known: Vec<&str> = self.choices.keys().map(String::as_str).collect();
        LatencyError::Missing { layer: self.name.clone(), choice: choice.into(), known: known.join(", ") }
    }
}

fn is_time(ns: f64) -> bool {
    ns.is_finite() && ns >= 0.0
}

/// `w4a8` from `w4a8`; one number, bare or behind `int`, stands for both widths.
fn width_choice(text: &str) -> Option<String> {
    let number = |t: &str| t.parse::<u8>().ok().filter(|b| (2..=8).contains(b) && t.len() == 1);
    let text = text.strip_prefix("latency_").unwrap_or(text);
    let (weights, activations) = match text.strip_prefix('w').and_then(|rest| rest.split_once('a')) {
        Some((weights, activations)) => (number(weights)?, number(activations)?),
        None => {
            let bits = number(text.strip_prefix("int").unwrap_or(text))?;
            (bits, bits)
        }
    };
    Some(format!("w{weights}a{activations}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> LatencyTable {
        let layer = |name: &str, w8: f64, w4: f64| LayerLatency {
            name: name.into(),
            choices: [("w8a8".to_string(), Timing::given(w8)), ("w4a4".to_string(), Timing::given(w4))].into(),
        };
        LatencyTable {
            machine: "a machine".into(),
            target: "x86-avx512".into(),
            threads: 2,
            model_hash: "ab".into(),
            fixed_ns: 100.0,
            layers: vec![layer("b", 10.0, 7.0), layer("a", 20.0, 12.5)],
            seams: vec![Seam {
                layers: ["b".into(), "a".into()],
                choices: ["w8a8".into(), "w4a4".into()],
                extra_ns: 1.25,
            }],
        }
    }

    fn choices(pairs: [(&str, &str); 2]) -> BTreeMap<String, String> {
        pairs.into_iter().map(|(n, c)| (n.to_string(), c.to_string())).collect()
    }

    #[test]
    fn seams_count_where_both_choices_hold() {
        let table = table();
        let predict = |b, a| table.predict(&choices([("b", b), ("a", a)])).unwrap();
        assert_eq!(predict("w8a8", "w8a8"), 130.0);
        assert_eq!(predict("w4a4", "w4a4"), 119.5);
        assert_eq!(predict("w8a8", "w4a4"), 123.75);
        assert_eq!(predict("w4a4", "w8a8"), 127.0);
        let error = table.predict(&choices([("b", "w4a8"), ("a", "w8a8")])).unwrap_err();
        assert_eq!(error.to_string(), "no latency for layer `b` at w4a8; the table has w4a4, w8a8");
        assert!(table.predict(&choices([("b", "w4a4"), ("c", "w8a8")])).is_err());
    }

    #[test]
    fn files_read_back() {
        let text = table().to_json();
        assert!(text.starts_with("{\n  \"schema\": \"hawqc.latency\",\n  \"version\": 1,"), "{text}");
        assert_eq!(LatencyTable::from_json(&text).unwrap(), table());
        assert_eq!(LatencyTable::from_json(&text).unwrap().to_json(), text);
    }

    #[test]
    fn bad_tables_are_refused() {
        let text = table().to_json();
        for (from, to, message) in [
            ("hawqc.latency", "hawqc.bits", "schema is hawqc.bits 1"),
            ("\"version\": 1", "\"version\": 2", "hawqc.latency 2"),
            ("\"threads\": 2", "\"threads\": 2, \"cores\": 2", "cores"),
            ("\"fixed_ns\": 100.0", "\"fixed_ns\": -1", "fixed_ns is -1"),
            ("\"median_ns\": 12.5", "\"median_ns\": -12.5", "layer `a`: w4a4"),
            ("\"name\": \"a\"", "\"name\": \"b\"", "given twice"),
            ("\"w4a4\": {", "\"4\": {", "`4` is not a choice"),
            ("\"b\",\n        \"a\"", "\"b\", \"c\"", "no layer `c`"),
            ("\"w8a8\",\n        \"w4a4\"", "\"w8a8\", \"w4a8\"", "`a` has no time at w4a8"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let error = LatencyTable::from_json(&changed).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn bare_lists() {
        let names: Vec<String> = ["first", "a", "b", "last"].map(String::from).into();
        let table = LatencyTable::from_lists(r#"{"int8": [2.5, 1], "4": [1.5, 0.5]}"#, &names, "").unwrap();
        let ns = |layer: usize, choice: &str| table.layers[layer].choices.get(choice).map(|t| t.median_ns);
        assert_eq!((ns(1, "w8a8"), ns(1, "w4a4"), ns(2, "w4a4")), (Some(2.5e6), Some(1.5e6), Some(0.5e6)));
        assert_eq!((ns(0, "w8a8"), ns(0, "w4a4"), ns(3, "w8a8")), (Some(0.0), None, Some(0.0)));
        let full = LatencyTable::from_lists(r#"{"w4a8": [4, 3, 2, 1]}"#, &names, "").unwrap();
        assert_eq!(full.layers[3].choices["w4a8"].median_ns, 1e6);
        for bad in [r#"{"8": [1]}"#, r#"{"8": [1, 2, 3, 4, 5]}"#, r#"{"9": [1, 2]}"#, r#"{"8": [-1, 2]}"#, "[1]"] {
            assert!(LatencyTable::from_lists(bad, &names, "").is_err(), "{bad}");
        }
    }
}
