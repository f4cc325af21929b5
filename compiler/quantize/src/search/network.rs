//! The problem of a network: which choices its layers have, and what each uses of latency, size and bit operations.
//!
//! Size counts weights, `parameters * weight bits / 8` bytes; BOPS count `multiply-accumulates * weight bits *
//! activation bits`. Both come from the network. Latency and costs come from tables. The first and the last layers
//! stay at 8 bits unless they are freed, which is HAWQ's rule.

use std::collections::BTreeMap;

use hawqc_ir::{Graph, Op, ValueId};
use hawqc_schedules::latency::LatencyTable;

use super::problem::{Choice, Layer, Limit, Problem, SeamCost};
use super::tables::Costs;
use crate::error::QuantizeError;
use crate::plan::{LayerBits, PrecisionPlan, RESIDUAL_BITS, quantizable_layers};
use crate::sensitivity::{choice_name, parse_choice};

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// In nanoseconds.
    Latency,
    /// Of the weights, in bytes.
    Size,
    /// In bit operations.
    Bops,
}

impl Resource {
    pub const ALL: [Resource; 3] = [Resource::Latency, Resource::Size, Resource::Bops];

    pub fn name(self) -> &'static str {
        match self {
            Resource::Latency => "latency",
            Resource::Size => "size",
            Resource::Bops => "bops",
        }
    }

    /// The resource of a name.
    pub fn named(name: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|r| r.name() == name)
    }
}

/// What a search may choose from.
#[derive(Clone, Debug, Default)]
pub struct Freedom {
    /// Widths to choose from; without, all that the tables know.
    pub choices: Option<Vec<LayerBits>>,
    /// Layers that must have the same widths, by name.
    pub ties: Vec<[String; 2]>,
    /// Whether layers that read the same value must have the same widths.
    pub tie_shared: bool,
    /// Whether the first and the last layers may leave 8 bits.
    pub free_edges: bool,
}

/// A network with its tables, ready to be searched.
#[derive(Clone, Debug)]
pub struct Network {
    layers: Vec<NetworkLayer>,
    ties: Vec<[usize; 2]>,
    latency: Option<LatencyTable>,
}

#[derive(Clone, Debug)]
struct NetworkLayer {
    name: String,
    parameters: u64,
    macs: u64,
    /// Choices in the order of [`Problem`]: wide to narrow, so that equal plans are preferred wide.
    choices: Vec<LayerBits>,
    costs: BTreeMap<String, f64>,
}

/// What a plan uses and costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// `None` if there is no latency table, or it lacks a choice of the plan.
    pub latency_ns: Option<f64>,
    pub size_bytes: f64,
    pub bops: f64,
    /// `None` if the costs lack a choice of the plan.
    pub cost: Option<f64>,
}

impl Totals {
    pub fn get(&self, resource: Resource) -> Option<f64> {
        match resource {
            Resource::Latency => self.latency_ns,
            Resource::Size => Some(self.size_bytes),
            Resource::Bops => Some(self.bops),
        }
    }
}

impl Network {
    /// Puts a folded network and its tables together.
    ///
    /// # Errors
    /// A layer that the tables do not know or that is left without a choice; a tie that names no layer.
    pub fn new(
        graph: &Graph,
        costs: &Costs,
        latency: Option<&LatencyTable>,
        freedom: &Freedom,
    ) -> Result<Network, QuantizeError> {
        let nodes = quantizable_layers(graph);
        // Edges are what a uniform plan spares.
        let uniform = PrecisionPlan::uniform(graph, 4, 4)?;
        let mut layers = Vec::new();
        for ((id, name), (_, bits)) in nodes.iter().zip(uniform.layers()) {
            let is_fixed = *bits == LayerBits::both(8) && !freedom.free_edges;
            layers.push(network_layer(graph, *id, name, is_fixed, costs, latency, freedom)?);
        }
        let names: Vec<&str> = nodes.iter().map(|(_, name)| name.as_str()).collect();
        let index = |name: &String| {
            let found = names.iter().position(|n| n == name);
            found.ok_or_else(|| QuantizeError::Plan(format!("tie: no convolution is named `{name}`")))
        };
        let mut ties = Vec::new();
        for [a, b] in &freedom.ties {
            ties.push([index(a)?, index(b)?]);
        }
        if freedom.tie_shared {
            let source = |i: usize| graph.args(nodes[i].0)[0];
            let same = |b: usize| (0..b).find(|&a| source(a) == source(b)).map(|a| [a, b]);
            ties.extend((0..nodes.len()).filter_map(same));
        }
        Ok(Network { layers, ties, latency: latency.cloned() })
    }

    /// Cheapest widths under limits, absolute, in the units of [`Resource`].
    ///
    /// # Errors
    /// A limit on latency without a latency table.
    pub fn problem(&self, limits: &[(Resource, f64)]) -> Result<Problem, QuantizeError> {
        let table = self.latency.as_ref();
        if table.is_none() && limits.iter().any(|(r, _)| *r == Resource::Latency) {
            return Err(QuantizeError::Plan("a limit on latency needs a latency table".into()));
        }
        let layer = |layer: &NetworkLayer| {
            let choice = |&bits: &LayerBits| Choice {
                label: choice_name(bits),
                cost: layer.costs.get(&choice_name(bits)).copied().unwrap_or_default(),
                uses: limits
                    .iter()
                    .map(|(resource, _)| self.used(layer, *resource, bits).unwrap_or_default())
                    .collect(),
            };
            Layer { name: layer.name.clone(), choices: layer.choices.iter().map(choice).collect() }
        };
        let fixed = |resource| if resource == Resource::Latency { table.map_or(0.0, |t| t.fixed_ns) } else { 0.0 };
        let limit =
            |&(resource, most): &(Resource, f64)| Limit { name: resource.name().into(), fixed: fixed(resource), most };
        Ok(Problem {
            layers: self.layers.iter().map(layer).collect(),
            limits: limits.iter().map(limit).collect(),
            ties: self.ties.clone(),
            seams: self.seams(limits),
        })
    }

    fn seams(&self, limits: &[(Resource, f64)]) -> Vec<SeamCost> {
        let at = limits.iter().position(|(r, _)| *r == Resource::Latency);
        let (Some(limit), Some(table)) = (at, &self.latency) else { return Vec::new() };
        let seam = |seam: &hawqc_schedules::latency::Seam| {
            let layer = |i: usize| self.layers.iter().position(|l| l.name == seam.layers[i]);
            let layers = [layer(0)?, layer(1)?];
            let choice =
                |i: usize| self.layers[layers[i]].choices.iter().position(|&b| choice_name(b) == seam.choices[i]);
            Some(SeamCost { layers, choices: [choice(0)?, choice(1)?], limit, extra: seam.extra_ns })
        };
        table.seams.iter().filter_map(seam).collect()
    }

    fn used(&self, layer: &NetworkLayer, resource: Resource, bits: LayerBits) -> Option<f64> {
        let (weights, activations) = (f64::from(bits.weights), f64::from(bits.activations));
        match resource {
            Resource::Latency => {
                let timings = self.latency.as_ref()?.layers.iter().find(|l| l.name == layer.name)?;
                timings.choices.get(&choice_name(bits)).map(|t| t.median_ns)
            }
            Resource::Size => Some(layer.parameters as f64 * weights / 8.0),
            Resource::Bops => Some(layer.macs as f64 * weights * activations),
        }
    }

    /// The widths that the choices of a [`Solution`](super::Solution) mean, in the graph's order.
    pub fn bits(&self, choices: &[usize]) -> Vec<LayerBits> {
        self.layers.iter().zip(choices).map(|(layer, &choice)| layer.choices[choice]).collect()
    }

    /// The same widths everywhere, where a layer has them; else its widest choice.
    pub fn uniform(&self, bits: LayerBits) -> Vec<LayerBits> {
        let of = |layer: &NetworkLayer| if layer.choices.contains(&bits) { bits } else { layer.choices[0] };
        self.layers.iter().map(of).collect()
    }

    /// Gives tied layers the widths of the first of them.
    pub fn agree(&self, bits: &mut [LayerBits]) {
        // Once for every tie, so that chains of ties agree too.
        for _ in &self.ties {
            self.ties.iter().for_each(|&[a, b]| bits[a.max(b)] = bits[a.min(b)]);
        }
    }

    /// The choices of every layer, in the graph's order.
    pub fn choices(&self) -> impl Iterator<Item = &[LayerBits]> {
        self.layers.iter().map(|l| l.choices.as_slice())
    }

    /// What a plan uses and costs, whether or not its widths could be chosen.
    pub fn totals(&self, bits: &[LayerBits]) -> Totals {
        let layers = || self.layers.iter().zip(bits);
        let sum = |resource| layers().map(|(l, &b)| self.used(l, resource, b)).sum::<Option<f64>>();
        let named = layers().map(|(l, &b)| (l.name.clone(), choice_name(b))).collect();
        Totals {
            latency_ns: self.latency.as_ref().and_then(|t| t.predict(&named).ok()),
            size_bytes: sum(Resource::Size).unwrap_or_default(),
            bops: sum(Resource::Bops).unwrap_or_default(),
            cost: layers().map(|(l, &b)| l.costs.get(&choice_name(b)).copied()).sum(),
        }
    }

    /// The plan of these widths.
    pub fn plan(&self, bits: &[LayerBits], provenance: String) -> Result<PrecisionPlan, QuantizeError> {
        let layers = self.layers.iter().zip(bits).map(|(l, &b)| (l.name.clone(), b)).collect();
        PrecisionPlan::new(layers, RESIDUAL_BITS, provenance)
    }
}

fn network_layer(
    graph: &Graph,
    id: ValueId,
    name: &str,
    is_fixed: bool,
    costs: &Costs,
    latency: Option<&LatencyTable>,
    freedom: &Freedom,
) -> Result<NetworkLayer, QuantizeError> {
    let unknown = |table: &str| QuantizeError::Plan(format!("the {table} table does not know layer `{name}`"));
    let own = costs.layers.get(name).ok_or_else(|| unknown("sensitivity"))?;
    let timings = match latency {
        Some(table) => Some(table.layers.iter().find(|l| l.name == name).ok_or_else(|| unknown("latency"))?),
        None => None,
    };
    let is_wanted = |bits: &LayerBits| match (&freedom.choices, is_fixed) {
        (_, true) => *bits == LayerBits::both(8),
        (Some(wanted), false) => wanted.contains(bits),
        (None, false) => true,
    };
    let is_timed = |bits: &LayerBits| timings.is_none_or(|t| t.choices.contains_key(&choice_name(*bits)));
    let mut choices: Vec<LayerBits> = own.keys().filter_map(|key| parse_choice(key).ok()).collect();
    choices.retain(|bits| is_wanted(bits) && is_timed(bits));
    choices.sort_by_key(|bits| std::cmp::Reverse((bits.weights, bits.activations)));
    if choices.is_empty() {
        let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
        let timed = timings.map_or("no table".into(), |t| t.choices.keys().cloned().collect::<Vec<_>>().join(", "));
        let wanted = if is_fixed { "w8a8, as a first or last layer" } else { "the given choices" };
        let message = format!(
            "layer `{name}` is left without a choice: it may have {wanted}; costs are known of {known}, times of {timed}"
        );
        return Err(QuantizeError::Plan(message));
    }
    let (parameters, macs) = work(graph, id);
    Ok(NetworkLayer { name: name.into(), parameters, macs, choices, costs: own.clone() })
}

/// Parameters and multiply-accumulates of a convolution, for the graph's batch.
fn work(graph: &Graph, id: ValueId) -> (u64, u64) {
    debug_assert!(matches!(graph.op(id), Op::Conv(_)));
    let product = |shape: &[usize]| shape.iter().map(|&d| d as u64).product::<u64>();
    let weights = graph.args(id).get(1).map_or(&[][..], |&w| &graph.ty(w).shape);
    let per_output = product(weights.get(1..).unwrap_or_default());
    (product(weights), product(&graph.ty(id).shape) * per_output)
}
