//! The order in which nodes can be imported.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tract_onnx::pb::NodeProto;

use super::display_name;
use crate::error::ImportError;

/// Indices of `nodes` such that every node comes after those whose outputs it reads; of several possible orders the one
/// nearest to the file's.
///
/// # Errors
/// `Invalid` if two nodes write one tensor or the graph has a cycle.
pub fn topological(nodes: &[NodeProto]) -> Result<Vec<usize>, ImportError> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = producer.insert(output, index) {
                let message = format!("tensor `{output}` is also written by node `{}`", display_name(&nodes[first]));
                return Err(ImportError::invalid(place(node), message));
            }
        }
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for &from in node.input.iter().filter_map(|i| producer.get(i.as_str())) {
            waiting[index] += 1;
            users[from].push(index);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|&i| waiting[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    match (0..nodes.len()).find(|&i| waiting[i] > 0) {
        None => Ok(order),
        Some(stuck) => {
            Err(ImportError::invalid(place(&nodes[stuck]), "the graph has a cycle through or before this node"))
        }
    }
}

fn place(node: &NodeProto) -> String {
    format!("node `{}` ({})", display_name(node), node.op_type)
}
