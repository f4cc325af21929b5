//! Names of what is written: the graph's own where they are unique, numbered where not.

use std::collections::HashSet;

use hawqc_ir::{Graph, Op, ValueId};

/// A unique ONNX name for every value, and fresh ones for what a value needs besides.
pub struct Names {
    of: Vec<String>,
    taken: HashSet<String>,
}

impl Names {
    /// Inputs and outputs keep their names. Operators that compute come next, so that a layer keeps its name even where
    /// the quantisers around it bear the same one.
    pub fn new(graph: &Graph) -> Names {
        let mut names = Names { of: vec![String::new(); graph.len()], taken: HashSet::new() };
        names.taken.extend(graph.outputs().iter().map(|(name, _)| name.clone()));
        for &id in graph.inputs() {
            names.of[id.index()] = graph.name(id).to_string();
            names.taken.insert(graph.name(id).to_string());
        }
        for computing in [true, false] {
            for id in graph.values() {
                let op = graph.op(id);
                let moves = matches!(
                    op,
                    Op::Const(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::Reshape(_) | Op::Transpose(_)
                );
                if matches!(op, Op::Input(_)) || moves == computing {
                    continue;
                }
                let base = match op {
                    Op::Const(_) => constant(graph, id),
                    _ if graph.name(id).is_empty() => op.name().to_string(),
                    _ => graph.name(id).to_string(),
                };
                names.of[id.index()] = names.fresh(&base);
            }
        }
        names
    }

    pub fn of(&self, id: ValueId) -> &str {
        &self.of[id.index()]
    }

    /// `base`, or `base` with the first free number.
    pub fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            name = format!("{base}_{number}");
            number += 1;
        }
        name
    }
}

/// A constant is called after its first user and what it is to it.
fn constant(graph: &Graph, id: ValueId) -> String {
    let Some(&user) = graph.users(id).first() else { return "constant".into() };
    let port = graph.args(user).iter().position(|&a| a == id);
    let part = match (graph.op(user), port) {
        (Op::Conv(_), Some(2)) => "bias",
        (Op::Conv(_), _) => "weight",
        (Op::Dequantize(_), Some(0)) => "integers",
        _ => "constant",
    };
    format!("{}.{part}", graph.name(user))
}
