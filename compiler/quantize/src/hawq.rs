//! HAWQ-V3's bit configurations, applied to a network by the place of each convolution.
//!
//! HAWQ names modules of its own networks (`stage2.unit1.quant_identity_convbn`); other exporters name and
//! order convolutions differently. So the structure decides which is which:
//!
//! * ResNet: every addition closes a unit. Of its two branches, the one with more convolutions is the
//!   unit's body, the other its identity (no convolution or one). A unit with an identity convolution starts a
//!   stage, except the very first unit. Before the units comes the initial convolution, after them the output.
//! * InceptionV3: every concatenation that is not the branch of another closes a unit; its operands are the
//!   branches in order. A unit with a max-pool branch starts a stage. The 1x3 and 3x1 convolutions of an inner
//!   concatenation are told apart by their shape.
//!
//! Weight bits are those of the configuration; a layer's activation bits equal its weight bits, which holds
//! in every published configuration; the residual stream gets the bits of `quant_act_int32`, 16 where
//! there is none.
//!
//! The published configurations (`data/hawq_bit_configs.json`, MIT License, (c) Zhen Dong) are found by name, see
//! [`published`].

use std::collections::BTreeMap;

use hawqc_ir::{Graph, Op, ValueId};
use serde::Deserialize;

use crate::error::QuantizeError;
use crate::json::Pairs;
use crate::plan::{LayerBits, PrecisionPlan, RESIDUAL_BITS, quantizable_layers};

const DATA: &str = include_str!("../data/hawq_bit_configs.json");

/// Bits by HAWQ's name of the module.
pub type BitConfig = Vec<(String, u8)>;

#[derive(Deserialize)]
struct Published {
    networks: BTreeMap<String, Network>,
}

#[derive(Deserialize)]
struct Network {
    modules: Vec<String>,
    configs: Pairs<Vec<u8>>,
}

fn read_published() -> Result<Published, QuantizeError> {
    let error = |e: serde_json::Error| QuantizeError::File { file: "hawq_bit_configs.json", message: e.to_string() };
    serde_json::from_str(DATA).map_err(error)
}

/// Names of the published configurations, such as `resnet50_bops_0.5`.
pub fn published_names() -> Result<Vec<String>, QuantizeError> {
    let published = read_published()?;
    let names = published
        .networks
        .iter()
        .flat_map(|(network, n)| n.configs.0.iter().map(move |c| format!("{network}_{}", c.0)));
    Ok(names.collect())
}

/// A published configuration by name; for the budgets 0.75, 0.5 and 0.25 one may also say `high`, `medium` and `low`.
pub fn published(name: &str) -> Result<BitConfig, QuantizeError> {
    let published = read_published()?;
    let mut wanted = name.to_string();
    for (word, number) in [("high", "0.75"), ("medium", "0.5"), ("low", "0.25")] {
        if let Some(head) = name.strip_suffix(word) {
            wanted = format!("{head}{number}");
        }
    }
    for (network, n) in published.networks {
        for (config, bits) in n.configs.0 {
            if format!("{network}_{config}") == wanted {
                return Ok(n.modules.into_iter().zip(bits).collect());
            }
        }
    }
    let message = format!("HAWQ publishes no configuration `{name}`; known are {}", published_names()?.join(", "));
    Err(QuantizeError::Plan(message))
}

/// The plan of the published configuration `name` for a network; see [`published`] and [`apply`].
pub fn plan(graph: &Graph, name: &str) -> Result<PrecisionPlan, QuantizeError> {
    apply(graph, &published(name)?, &format!("HAWQ-V3 {name}"))
}

/// Whether every name is that of a HAWQ module.
pub(crate) fn names_modules(config: &BitConfig) -> bool {
    !config.is_empty() && config.iter().all(|(key, _)| module(key).is_some())
}

/// The plan that a configuration means for a network.
///
/// # Errors
/// A module name that is not HAWQ's, a network of another structure, layers that do not match one to one.
pub fn apply(graph: &Graph, config: &BitConfig, provenance: &str) -> Result<PrecisionPlan, QuantizeError> {
    let mut weights: BTreeMap<Place, (&str, u8)> = BTreeMap::new();
    let mut residual = RESIDUAL_BITS;
    for (key, bits) in config {
        match module(key) {
            Some(Module::Weights(place)) => {
                if weights.insert(place, (key, *bits)).is_some() {
                    return Err(QuantizeError::Plan(format!("HAWQ module `{key}` is given twice")));
                }
            }
            Some(Module::Residual) => residual = *bits,
            Some(Module::Activation) => {}
            None => return Err(QuantizeError::Plan(format!("`{key}` is not the name of a HAWQ module"))),
        }
    }
    let places = places(graph, config.iter().map(|(key, _)| key.as_str()))?;
    let layers = quantizable_layers(graph).into_iter().map(|(id, name)| {
        let place = places.get(&id);
        let found = place.and_then(|place| weights.remove(place));
        let place = place.map_or("a place of its own".into(), Place::to_string);
        let missing =
            || QuantizeError::Plan(format!("node `{name}` ({place}) has no counterpart in HAWQ's configuration"));
        let (_, bits) = found.ok_or_else(missing)?;
        Ok((name, LayerBits::both(bits)))
    });
    let layers = layers.collect::<Result<Vec<_>, QuantizeError>>()?;
    if let Some((key, _)) = weights.into_values().next() {
        return Err(QuantizeError::Plan(format!("HAWQ module `{key}` has no counterpart in the network")));
    }
    PrecisionPlan::new(layers, residual, provenance)
}

/// For every quantisable layer of a network, in order, which of the named modules it is, if any.
///
/// # Errors
/// A name that is not that of a HAWQ module with weights, a network of another structure, a module without
/// counterpart in it.
pub(crate) fn match_modules(graph: &Graph, names: &[&str]) -> Result<Vec<Option<usize>>, QuantizeError> {
    let mut modules: BTreeMap<Place, usize> = BTreeMap::new();
    for (index, name) in names.iter().enumerate() {
        let Some(Module::Weights(place)) = module(name) else {
            return Err(QuantizeError::Plan(format!("`{name}` is not the name of a HAWQ module with weights")));
        };
        if modules.insert(place, index).is_some() {
            return Err(QuantizeError::Plan(format!("HAWQ module `{name}` is given twice")));
        }
    }
    let places = places(graph, names.iter().copied())?;
    let layers = quantizable_layers(graph).into_iter();
    let matched = layers.map(|(id, _)| places.get(&id).and_then(|place| modules.remove(place))).collect();
    match modules.into_values().next() {
        None => Ok(matched),
        Some(index) => {
            let message = format!("HAWQ module `{}` has no counterpart in the network", names[index]);
            Err(QuantizeError::Plan(message))
        }
    }
}

/// The names of the network's convolutions that HAWQ's modules of these names are, in the same order.
///
/// # Errors
/// Those of [`match_modules`].
pub(crate) fn layers_of(graph: &Graph, modules: &[&str]) -> Result<Vec<String>, QuantizeError> {
    let mut names = vec![String::new(); modules.len()];
    for (index, (_, name)) in match_modules(graph, modules)?.into_iter().zip(quantizable_layers(graph)) {
        index.into_iter().for_each(|index| names[index].clone_from(&name));
    }
    Ok(names)
}

/// Where a convolution stands in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// One of those before the first unit, counted from 1.
    Initial(usize),
    /// Stage and unit, the branch (0 the only one), and the convolution in it.
    Unit {
        stage: usize,
        unit: usize,
        branch: usize,
        conv: InUnit,
    },
    Output,
}

/// Which convolution of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum InUnit {
    /// Counted from 1.
    Number(usize),
    Identity,
    OneByThree,
    ThreeByOne,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Initial(n) => write!(f, "initial convolution {n}"),
            Place::Unit { stage, unit, branch, conv } => {
                write!(f, "stage {stage}, unit {unit}, branch {branch}, {conv:?}")
            }
            Place::Output => f.write_str("output"),
        }
    }
}

/// What the bits of a module are those of.
enum Module {
    Weights(Place),
    Activation,
    Residual,
}

const INCEPTION: &str = "features.";

/// Reads a module's name.
fn module(key: &str) -> Option<Module> {
    let last = key.rsplit('.').next()?;
    let weights = |place| Some(Module::Weights(place));
    match last {
        "quant_act_int32" => return Some(Module::Residual),
        "quant_init_convbn" | "quant_init_block_convbn" => return weights(Place::Initial(1)),
        "quant_output" | "q_fc" => return weights(Place::Output),
        _ if last.starts_with("quant_act") || last.starts_with("q_") && last.contains("_act") => {
            return Some(Module::Activation);
        }
        "quant_input" => return Some(Module::Activation),
        _ => {}
    }
    let mut parts = key.strip_prefix(INCEPTION).unwrap_or(key).split('.');
    let numbered = |text: &str, prefix: &str| text.strip_prefix(prefix)?.parse::<usize>().ok();
    let first = parts.next()?;
    if first == "q_init_block" {
        return weights(Place::Initial(numbered(parts.next()?, "q_conv")?));
    }
    let (stage, unit) = (numbered(first, "stage")?, numbered(parts.next()?, "unit")?);
    let rest: Vec<&str> = parts.collect();
    let (branch, conv) = match rest.as_slice() {
        ["quant_identity_convbn"] => (0, InUnit::Identity),
        [conv] => (0, InUnit::Number(numbered(conv, "quant_convbn")?)),
        ["branches", branch, inner @ .., "q_convbn"] => {
            let conv = match inner {
                ["q_conv"] => InUnit::Number(1),
                ["q_conv_list", conv] => InUnit::Number(numbered(conv, "q_conv")?),
                ["q_conv1x3"] => InUnit::OneByThree,
                ["q_conv3x1"] => InUnit::ThreeByOne,
                _ => return None,
            };
            (numbered(branch, "branch")?, conv)
        }
        _ => return None,
    };
    weights(Place::Unit { stage, unit, branch, conv })
}

type Places = BTreeMap<ValueId, Place>;

/// A path that only one value after the other reads, from its end back to a value that several read
/// or that starts it.
struct Chain {
    /// Convolutions, first to last.
    convs: Vec<ValueId>,
    max_pooled: bool,
    /// Where it starts: the value it reads.
    start: ValueId,
}

/// The chain that ends in `end`, which `readers` nodes read.
fn chain_to(graph: &Graph, end: ValueId, readers: usize) -> Chain {
    let mut chain = Chain { convs: Vec::new(), max_pooled: false, start: end };
    while graph.users(chain.start).len() == if chain.start == end { readers } else { 1 } {
        match graph.op(chain.start) {
            Op::Conv(_) => chain.convs.push(chain.start),
            Op::MaxPool(_) => chain.max_pooled = true,
            Op::ClampReal(_) | Op::AvgPool(_) => {}
            _ => break,
        }
        chain.start = graph.args(chain.start)[0];
    }
    chain.convs.reverse();
    chain
}

/// The places of a network whose modules have these names.
fn places<'a>(graph: &Graph, mut names: impl Iterator<Item = &'a str>) -> Result<Places, QuantizeError> {
    if names.any(|name| name.starts_with(INCEPTION)) { inception_places(graph) } else { resnet_places(graph) }
}

fn resnet_places(graph: &Graph) -> Result<Places, QuantizeError> {
    let mut places = Places::new();
    let (mut stage, mut unit) = (1, 0);
    for id in graph.values().filter(|&id| matches!(graph.op(id), Op::Add(_))) {
        let chains: Vec<Chain> = graph.args(id).into_iter().map(|a| chain_to(graph, a, 1)).collect();
        let [a, b] = chains.as_slice() else {
            continue;
        };
        let (body, identity) = if a.convs.len() >= b.convs.len() { (a, b) } else { (b, a) };
        if identity.convs.len() > 1 || body.convs.len() <= identity.convs.len() || body.start != identity.start {
            let message = format!("the addition `{}` does not close a ResNet unit", graph.name(id));
            return Err(QuantizeError::Plan(message));
        }
        if !identity.convs.is_empty() && unit > 0 {
            (stage, unit) = (stage + 1, 0);
        }
        unit += 1;
        let at = |conv| Place::Unit { stage, unit, branch: 0, conv };
        let numbered = body.convs.iter().enumerate().map(|(i, &id)| (id, at(InUnit::Number(i + 1))));
        places.extend(numbered);
        places.extend(identity.convs.iter().map(|&id| (id, at(InUnit::Identity))));
    }
    place_ends(graph, &mut places);
    Ok(places)
}

fn inception_places(graph: &Graph) -> Result<Places, QuantizeError> {
    let mut places = Places::new();
    let (mut stage, mut unit) = (1, 0);
    let is_concat = |id: ValueId| matches!(graph.op(id), Op::Concat(_));
    let is_branch = |id: ValueId| matches!(graph.users(id).as_slice(), [user] if is_concat(*user));
    for id in graph.values().filter(|&id| is_concat(id) && !is_branch(id)) {
        let mut branches = Vec::new();
        for &end in &graph.args(id) {
            branches.push(if is_concat(end) { split_branch(graph, end)? } else { plain_branch(graph, end, 1) });
        }
        if unit > 0 && branches.iter().any(|b| b.max_pooled) {
            (stage, unit) = (stage + 1, 0);
        }
        unit += 1;
        for (i, branch) in branches.into_iter().enumerate() {
            let at = |conv| Place::Unit { stage, unit, branch: i + 1, conv };
            places.extend(branch.convs.into_iter().map(|(id, conv)| (id, at(conv))));
        }
    }
    place_ends(graph, &mut places);
    Ok(places)
}

struct Branch {
    convs: Vec<(ValueId, InUnit)>,
    max_pooled: bool,
}

fn plain_branch(graph: &Graph, end: ValueId, readers: usize) -> Branch {
    let chain = chain_to(graph, end, readers);
    let numbered = chain.convs.into_iter().enumerate().map(|(i, id)| (id, InUnit::Number(i + 1)));
    Branch { convs: numbered.collect(), max_pooled: chain.max_pooled }
}

/// A chain that ends in a 1x3 and a 3x1 convolution side by side, concatenated in `end`.
fn split_branch(graph: &Graph, end: ValueId) -> Result<Branch, QuantizeError> {
    let parts: Vec<Chain> = graph.args(end).into_iter().map(|part| chain_to(graph, part, 1)).collect();
    let mut split = Vec::new();
    for conv in parts.iter().flat_map(|p| &p.convs) {
        match graph.ty(graph.args(*conv)[1]).shape[1..3] {
            [1, 3] => split.push((*conv, InUnit::OneByThree)),
            [3, 1] => split.push((*conv, InUnit::ThreeByOne)),
            _ => {}
        }
    }
    let [a, b] = parts.as_slice() else {
        return Err(no_split(graph, end));
    };
    if split.len() != 2 || a.convs.len() + b.convs.len() != 2 || a.start != b.start {
        return Err(no_split(graph, end));
    }
    let mut branch = plain_branch(graph, a.start, 2);
    branch.convs.extend(split);
    Ok(branch)
}

fn no_split(graph: &Graph, end: ValueId) -> QuantizeError {
    let found = graph.name(end);
    QuantizeError::Plan(format!("the concatenation `{found}` does not join a 1x3 and a 3x1 convolution of one value"))
}

/// The convolutions outside all units: the last is the output, the others come first.
fn place_ends(graph: &Graph, places: &mut Places) {
    let mut outside: Vec<ValueId> = quantizable_layers(graph).into_iter().map(|(id, _)| id).collect();
    outside.retain(|id| !places.contains_key(id));
    if let Some(last) = outside.pop() {
        places.insert(last, Place::Output);
    }
    places.extend(outside.into_iter().enumerate().map(|(i, id)| (id, Place::Initial(i + 1))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_networks::residual_network;

    #[test]
    fn every_published_module_has_a_place() {
        let layers = |name: &str| {
            let config = published(name).unwrap();
            let modules: Vec<Module> = config.iter().map(|(key, _)| module(key).unwrap()).collect();
            modules.into_iter().filter(|m| matches!(m, Module::Weights(_))).count()
        };
        assert_eq!(["resnet18_uniform4", "resnet50_bops_low", "inceptionv3_uniform8"].map(layers), [21, 54, 95]);
        assert_eq!(published_names().unwrap().len(), 24);
        for bad in ["", "stage1", "stage1.unit1", "stagex.unit1.quant_convbn1", "stage1.unit1.quant_convbn", "conv1"] {
            assert!(module(bad).is_none(), "{bad}");
        }
    }

    /// In every published configuration the width of an activation is that of the weights it meets.
    #[test]
    fn activations_have_the_width_of_the_weights_they_meet() {
        for name in published_names().unwrap().iter().filter(|n| n.starts_with("resnet")) {
            let config = published(name).unwrap();
            for pair in config.windows(2) {
                if let [(act, a), (conv, w)] = pair
                    && matches!(module(act), Some(Module::Activation))
                    && matches!(module(conv), Some(Module::Weights(_)))
                {
                    assert_eq!(a, w, "{name}: {act}, {conv}");
                }
            }
        }
    }

    #[test]
    fn places_follow_the_structure() {
        let graph = crate::fold_batch_norm(&residual_network(1)).unwrap();
        let places = resnet_places(&graph).unwrap();
        let named: Vec<String> = places.iter().map(|(id, place)| format!("{}: {place}", graph.name(*id))).collect();
        assert_eq!(
            named,
            [
                "conv1: initial convolution 1",
                "block1.conv1: stage 1, unit 1, branch 0, Number(1)",
                "block1.conv2: stage 1, unit 1, branch 0, Number(2)",
                "block2.conv1: stage 2, unit 1, branch 0, Number(1)",
                "block2.conv2: stage 2, unit 1, branch 0, Number(2)",
                "block2.short: stage 2, unit 1, branch 0, Identity",
                "left: initial convolution 2",
                "right: initial convolution 3",
                "fc: output",
            ]
        );
    }

    #[test]
    fn files_may_use_the_names_of_hawq() {
        let graph = crate::fold_batch_norm(&residual_network(1)).unwrap();
        let error = PrecisionPlan::read(r#"{"quant_init_convbn": 8, "quant_output": 8}"#, &graph).unwrap_err();
        assert!(error.to_string().contains("node `block1.conv1` (stage 1"), "{error}");
    }
}
