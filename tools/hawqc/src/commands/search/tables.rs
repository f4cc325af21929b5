//! The tables a search reads, whichever form they have, and their digests.

use std::path::Path;

use hawqc_driver::Source;
use hawqc_ir::Graph;
use hawqc_quantize::LayerBits;
use hawqc_quantize::plan::quantizable_layers;
use hawqc_quantize::search::Costs;
use hawqc_quantize::search::hawq_tables::HawqTables;
use hawqc_quantize::sensitivity::Sensitivities;
use hawqc_schedules::latency::LatencyTable;

use super::super::read_text;
use crate::args::Search;
use crate::console::Console;
use crate::failure::Failure;

/// What each choice costs and how long it takes.
pub struct Tables {
    pub costs: Costs,
    pub latency: Option<LatencyTable>,
    /// Ties that come with the tables.
    pub ties: Vec<[String; 2]>,
    /// Which tables these are, by digest.
    pub identity: String,
}

impl Tables {
    pub fn read(args: &Search, source: &Source, graph: &Graph, console: &Console) -> Result<Tables, Failure> {
        if let Some(name) = &args.hawq_tables {
            return Tables::of_hawq(name, graph);
        }
        let mut ties = Vec::new();
        let mut identity = Vec::new();
        let costs = match &args.sensitivity {
            Some(path) => {
                let text = read_text(path)?;
                identity.push(format!("sensitivity {}", digest(&text)));
                read_costs(path, &text, source, graph, &mut ties)?
            }
            None => {
                console.note("no --sensitivity: cost is the squared rounding error of the weights");
                let choices = args.choices.clone().unwrap_or_else(|| vec![LayerBits::both(8), LayerBits::both(4)]);
                let eight = [LayerBits::both(8)].into_iter().filter(|b| !choices.contains(b));
                Costs::of_weights(graph, &choices.iter().copied().chain(eight).collect::<Vec<_>>())?
            }
        };
        let latency = match &args.latency {
            Some(path) => {
                let text = read_text(path)?;
                identity.push(format!("latency {}", digest(&text)));
                Some(read_latency(path, &text, source, graph)?)
            }
            None => None,
        };
        if latency.is_none() && args.max_latency.is_some() {
            return Err(Failure::usage("--max-latency needs a latency table").hint("give --latency LATENCY.json"));
        }
        identity.push(format!("model {}", &source.hash[..source.hash.len().min(DIGITS)]));
        Ok(Tables { costs, latency, ties, identity: identity.join(", ") })
    }

    /// Both tables as HAWQ publishes them, and its ties.
    fn of_hawq(name: &str, graph: &Graph) -> Result<Tables, Failure> {
        let (tables, identity) = match name {
            "published" => (HawqTables::published()?, "HAWQ's published tables".to_string()),
            path => {
                let text = read_text(Path::new(path))?;
                (HawqTables::from_json(&text).map_err(at(Path::new(path)))?, format!("tables {}", digest(&text)))
            }
        };
        let fitted = tables.of(graph)?;
        Ok(Tables { costs: fitted.costs(graph), latency: Some(fitted.latencies(graph)), ties: fitted.ties(), identity })
    }
}

fn read_costs(
    path: &Path,
    text: &str,
    source: &Source,
    graph: &Graph,
    ties: &mut Vec<[String; 2]>,
) -> Result<Costs, Failure> {
    if is_hawq(text) {
        let tables = HawqTables::from_json(text).map_err(at(path))?;
        let fitted = tables.of(graph).map_err(at(path))?;
        *ties = fitted.ties();
        return Ok(fitted.costs(graph));
    }
    let found = Sensitivities::from_json(text).map_err(at(path))?;
    found.check_model(&source.hash).map_err(at(path))?;
    Ok(found.into())
}

fn read_latency(path: &Path, text: &str, source: &Source, graph: &Graph) -> Result<LatencyTable, Failure> {
    if is_hawq(text) {
        let tables = HawqTables::from_json(text).map_err(at(path))?;
        return Ok(tables.of(graph).map_err(at(path))?.latencies(graph));
    }
    let table = if has_member(text, "schema") {
        LatencyTable::from_json(text).map_err(at(path))?
    } else {
        let names: Vec<String> = quantizable_layers(graph).into_iter().map(|(_, name)| name).collect();
        LatencyTable::from_lists(text, &names, &source.hash).map_err(at(path))?
    };
    if table.model_hash != source.hash {
        let message = format!("belongs to model {}, this is model {}; tune this model", table.model_hash, source.hash);
        return Err(at(path)(message));
    }
    Ok(table)
}

fn is_hawq(text: &str) -> bool {
    has_member(text, "networks")
}

fn has_member(text: &str, key: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.get(key).is_some())
}

fn at<E: ToString>(path: &Path) -> impl Fn(E) -> Failure + '_ {
    move |e| Failure::invalid(format!("{}: {}", path.display(), e.to_string()))
}

/// Digits of a digest that identify a file.
const DIGITS: usize = 16;

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_string()
}
