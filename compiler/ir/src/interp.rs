//! The reference interpreter: plain, slow, exact. It defines every result.

use std::sync::Arc;

use crate::error::IrError;
use crate::graph::{Graph, ValueId};
use crate::ops::Op;
use crate::tensor::Tensor;

/// The outputs of a graph for the given inputs, in order.
pub fn run(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, IrError> {
    run_observed(graph, inputs, |_, _| {})
}

/// As [`run`], showing every live operator's result to `observe` as soon as it is there. A value
/// is dropped after its last use, so memory stays near the widest cut of the graph.
pub fn run_observed(
    graph: &Graph,
    inputs: &[Tensor],
    mut observe: impl FnMut(ValueId, &Tensor),
) -> Result<Vec<Tensor>, IrError> {
    check_inputs(graph, inputs)?;
    let mut given = inputs.iter();
    let live = graph.live();
    let last_use = last_uses(graph, &live);
    let mut values: Vec<Option<Arc<Tensor>>> = vec![None; graph.len()];
    for id in graph.values() {
        let value = match graph.op(id) {
            Op::Input(_) => given.next().map(|t| Arc::new(t.clone())),
            _ if !live[id.index()] => continue,
            Op::Const(_) => graph.tensor(id).cloned(),
            op => {
                let args = graph.args(id);
                let tensors: Option<Vec<&Tensor>> = args.iter().map(|a| values[a.index()].as_deref()).collect();
                let tensors = tensors.ok_or_else(|| graph.invariant(id, "an operand has no value"))?;
                let result = op.eval(&tensors, graph.ty(id)).map_err(|e| graph.type_error(id, e))?;
                observe(id, &result);
                args.iter().filter(|a| last_use[a.index()] == id.index()).for_each(|a| values[a.index()] = None);
                Some(Arc::new(result))
            }
        };
        values[id.index()] = value;
    }
    let take = |(_, id): &(String, ValueId)| values[id.index()].as_deref().cloned();
    let outputs: Option<Vec<Tensor>> = graph.outputs().iter().map(take).collect();
    outputs.ok_or_else(|| IrError::Invariant { node: "output".into(), message: "an output has no value".into() })
}

fn check_inputs(graph: &Graph, inputs: &[Tensor]) -> Result<(), IrError> {
    if inputs.len() != graph.inputs().len() {
        return Err(IrError::InputCount { expected: graph.inputs().len(), found: inputs.len() });
    }
    for (&id, tensor) in graph.inputs().iter().zip(inputs) {
        let (expected, found) = (graph.ty(id), tensor.ty());
        let in_range = match (expected.range, found.range) {
            (Some(expected), Some(found)) => expected.contains(found),
            _ => true,
        };
        if expected.elem != found.elem || expected.shape != found.shape || !in_range {
            let name = graph.name(id).to_string();
            return Err(IrError::Input { name, expected: expected.to_string(), found: found.to_string() });
        }
    }
    Ok(())
}

/// For every value the index of its last user; `usize::MAX` for outputs.
fn last_uses(graph: &Graph, live: &[bool]) -> Vec<usize> {
    let mut last = vec![0; graph.len()];
    for id in graph.values().filter(|id| live[id.index()]) {
        graph.args(id).into_iter().for_each(|a| last[a.index()] = id.index());
    }
    graph.outputs().iter().for_each(|(_, id)| last[id.index()] = usize::MAX);
    last
}
