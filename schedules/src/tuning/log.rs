//! The tuning log, `tune.jsonl`: one finding a line, only ever appended to.
//!
//! Every line is complete in itself: schema, date, machine, target, threads and network stand in each, so logs
//! may be cut, concatenated and merged. A line that is no JSON, as is left behind by a killed process, is
//! dropped and counted; a line of another schema is an error.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub const SCHEMA: &str = "hawqc.tuning";
pub const VERSION: u32 = 1;

/// Where and of what a finding is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Context {
    /// Fingerprint: CPU model, features, cores.
    pub machine: String,
    pub target: String,
    pub threads: usize,
    /// Digest of the network.
    pub model: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    schema: String,
    version: u32,
    /// UTC, e.g. `2026-01-31T12:00:00Z`.
    pub date: String,
    #[serde(flatten)]
    pub context: Context,
    #[serde(flatten)]
    pub record: Record,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Times of one schedule of one workload in its network.
    Kernel {
        workload: String,
        schedule: String,
        /// Digest of the kernel's machine code.
        kernel: String,
        /// The node where it was measured, and the widths of its network.
        node: String,
        plan: String,
        times_ns: Vec<u64>,
    },
    /// A schedule that the weights of a network do not allow.
    Refused { workload: String, schedule: String, reason: String },
    /// What a workload ships with, after comparison with the default in the whole network.
    Choice { workload: String, schedule: String, kernel: String, plan: String, default_ns: u64, tuned_ns: u64 },
    /// A network's layers and how they are joined.
    Model {
        layers: Vec<String>,
        /// Pairs of layers (by position) of which the first alone computes the input of the second.
        feeds: Vec<[usize; 2]>,
        /// Pairs of layers that read the same value.
        siblings: Vec<[usize; 2]>,
    },
    /// A whole network, measured as it ships.
    Network(Network),
}

/// Times of a network at given widths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The choice of widths if it is one for all inner layers, else `mixture` and its seed.
    pub plan: String,
    /// The choice of each layer.
    pub choices: Vec<String>,
    /// Whole runs, unobserved.
    pub total: Times,
    /// The same network with default schedules, if it was measured beside this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_total: Option<Times>,
    /// One network that all of a log are measured in turns with, so that times of different moments compare: the
    /// first choice of widths with default schedules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Times>,
    /// The steps of each layer.
    pub layers: Vec<LayerTimes>,
    /// All other steps together.
    pub other: Times,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerTimes {
    pub schedule: String,
    #[serde(flatten)]
    pub times: Times,
}

/// Order statistics of a set of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    pub median_ns: u64,
    pub p10_ns: u64,
    pub p90_ns: u64,
    pub count: usize,
}

impl Times {
    pub fn of(times: &[u64]) -> Times {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let last = sorted.len().checked_sub(1);
            last.map_or(0, |last| sorted[last * percent / 100])
        };
        Times { median_ns: at(50), p10_ns: at(10), p90_ns: at(90), count: sorted.len() }
    }

    /// The same multiplied by a factor.
    pub fn scaled(self, factor: f64) -> Times {
        let [median_ns, p10_ns, p90_ns] =
            [self.median_ns, self.p10_ns, self.p90_ns].map(|ns| (ns as f64 * factor).round() as u64);
        Times { median_ns, p10_ns, p90_ns, ..self }
    }
}

/// Why logs cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    #[error("line {line}: {message}")]
    Line { line: usize, message: String },
    #[error("measurements of different machines cannot be joined:\n  {first}\n  {second}")]
    Machines { first: String, second: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    pub rows: Vec<Row>,
    /// Numbers of the lines that were dropped.
    pub torn: Vec<usize>,
}

impl Row {
    /// A finding of now.
    pub fn new(context: &Context, record: Record) -> Row {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Row { schema: SCHEMA.into(), version: VERSION, date: date(seconds), context: context.clone(), record }
    }

    /// Its line, with the line's end.
    pub fn line(&self) -> String {
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

impl Log {
    /// Reads the bytes of a log.
    pub fn parse(bytes: &[u8]) -> Result<Log, LogError> {
        let mut log = Log::default();
        for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else {
                log.torn.push(index + 1);
                continue;
            };
            log.rows.push(row(value).map_err(|message| LogError::Line { line: index + 1, message })?);
        }
        Ok(log)
    }

    /// Reads a log from its file.
    pub fn read(path: &Path) -> Result<Log, LogError> {
        Log::parse(&std::fs::read(path)?)
    }

    /// Whether a file that begins like this is a tuning log.
    pub fn recognises(text: &str) -> bool {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let is_row = |line| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|v| v["schema"] == SCHEMA);
        lines.any(is_row)
    }

    /// The only machine that all rows are of; `None` without rows.
    pub fn machine(&self) -> Result<Option<&str>, LogError> {
        let mut machines = self.rows.iter().map(|row| row.context.machine.as_str());
        let first = machines.next();
        match machines.find(|&m| Some(m) != first) {
            None => Ok(first),
            Some(second) => Err(LogError::Machines { first: first.unwrap_or_default().into(), second: second.into() }),
        }
    }

    /// All rows of several logs in their order, equal ones once.
    ///
    /// # Errors
    /// Rows of different machines.
    pub fn merge(logs: Vec<Log>) -> Result<Log, LogError> {
        let mut seen = BTreeSet::new();
        let mut merged = Log::default();
        for row in logs.into_iter().flat_map(|log| log.rows) {
            if seen.insert(row.line()) {
                merged.rows.push(row);
            }
        }
        merged.machine()?;
        Ok(merged)
    }

    /// The file's text.
    pub fn text(&self) -> String {
        self.rows.iter().map(Row::line).collect()
    }
}

fn row(value: serde_json::Value) -> Result<Row, String> {
    let (schema, version) = (&value["schema"], &value["version"]);
    if schema != SCHEMA || version != VERSION {
        return Err(format!("schema is {schema} {version}; supported is \"{SCHEMA}\" {VERSION}"));
    }
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// A log open for appending.
#[derive(Debug)]
pub struct Appender {
    file: File,
}

impl Appender {
    /// Opens a log or begins one. A torn last line is cut off, so that the next one starts afresh.
    pub fn open(path: &Path) -> Result<Appender, LogError> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let start = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        if start < bytes.len() {
            match serde_json::from_slice::<serde_json::Value>(&bytes[start..]) {
                Ok(_) => file.write_all(b"\n")?,
                Err(_) => file.set_len(start as u64)?,
            }
        }
        file.seek(SeekFrom::End(0))?;
        Ok(Appender { file })
    }

    /// Appends a line in one write.
    pub fn append(&mut self, row: &Row) -> Result<(), LogError> {
        Ok(self.file.write_all(row.line().as_bytes())?)
    }
}

/// Seconds since 1970 as a date and time of day, UTC.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years, so that leap days end a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", era * 400 + year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(machine: &str) -> Context {
        Context { machine: machine.into(), target: "host".into(), threads: 2, model: "ab".into() }
    }

    fn rows(machine: &str) -> Vec<Row> {
        let kernel = |ns: u64| Record::Kernel {
            workload: "conv u8[1] | i8".into(),
            schedule: "default".into(),
            kernel: "0f".into(),
            node: "conv\"1\nä".into(),
            plan: "w8a8".into(),
            times_ns: vec![ns, ns + 1],
        };
        let model = Record::Model { layers: vec!["a".into(), "b".into()], feeds: vec![[0, 1]], siblings: vec![] };
        let network = Record::Network(Network {
            plan: "w8a8".into(),
            choices: vec!["w8a8".into(), "w8a8".into()],
            total: Times::of(&[3, 1, 2]),
            default_total: None,
            reference: Some(Times::of(&[4, 4])),
            layers: vec![LayerTimes { schedule: "default".into(), times: Times::of(&[5]) }],
            other: Times::of(&[]),
        });
        [kernel(7), model, network, kernel(8)].map(|record| Row::new(&context(machine), record)).into()
    }

    fn log(machine: &str) -> Log {
        Log { rows: rows(machine), torn: Vec::new() }
    }

    #[test]
    fn logs_read_back() {
        let log = log("m");
        let text = log.text();
        assert_eq!(text.lines().count(), 4);
        assert_eq!(Log::parse(text.as_bytes()).unwrap(), log);
        assert_eq!(Log::parse(format!("\n{text}\n\n").as_bytes()).unwrap(), log);
        assert!(Log::recognises(&text) && !Log::recognises("{\"schema\": \"hawqc.sensitivity\"}"));
    }

    /// Wherever a log is cut, what is before the cut reads, and going on from there loses nothing else.
    #[test]
    fn a_log_cut_anywhere_reads_and_goes_on() {
        let rows = rows("m");
        let text = Log { rows: rows.clone(), torn: Vec::new() }.text().into_bytes();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tune.jsonl");
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let found = Log::read(&path).unwrap();
            let whole = rows.iter().zip(&found.rows).take_while(|(a, b)| a == b).count();
            assert_eq!(whole, found.rows.len());
            assert!(found.torn.len() <= 1);
            Appender::open(&path).unwrap().append(&rows[0]).unwrap();
            let after = Log::read(&path).unwrap();
            assert_eq!((after.rows.len(), after.torn.len()), (whole + 1, 0), "cut at {cut}");
            assert_eq!(after.rows.last(), Some(&rows[0]));
        }
    }

    #[test]
    fn other_schemas_are_refused() {
        let text = log("m").text();
        for (from, to, message) in [
            ("hawqc.tuning", "hawqc.bits", "schema is \"hawqc.bits\" 1"),
            ("\"version\":1", "\"version\":2", "\"hawqc.tuning\" 2"),
            ("\"threads\":2", "\"threads\":\"2\"", "expected usize"),
            ("\"kind\":\"model\"", "\"kind\":\"modal\"", "modal"),
        ] {
            let error = Log::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("line ") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn merging_drops_repetitions_and_refuses_other_machines() {
        let merged = Log::merge(vec![log("m"), log("m")]).unwrap();
        // A second may have passed between the two.
        assert!([4, 8].contains(&merged.rows.len()));
        let first = log("m");
        assert_eq!(Log::merge(vec![first.clone(), first.clone()]).unwrap(), first);
        let error = Log::merge(vec![log("m"), log("n")]).unwrap_err().to_string();
        assert!(error.contains("different machines") && error.contains("\n  m\n  n"), "{error}");
        assert_eq!(Log::merge(Vec::new()).unwrap().machine().unwrap(), None);
    }

    #[test]
    fn order_statistics_and_dates() {
        let times: Vec<u64> = (0..11).rev().collect();
        assert_eq!(Times::of(&times), Times { median_ns: 5, p10_ns: 1, p90_ns: 9, count: 11 });
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(date(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
