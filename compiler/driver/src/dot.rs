//! Graphs in the language of Graphviz.

use std::fmt::Write;

use hawqc_ir::{Graph, Op};

/// The live operators of a graph; constants are left out.
pub fn print(graph: &Graph) -> String {
    let live = graph.live();
    let shown = |op: &Op| !matches!(op, Op::Const(_));
    let mut out = String::from("digraph {\n  node [shape=box, fontname=\"sans-serif\"];\n");
    for id in graph.values().filter(|&id| live[id.index()] && shown(graph.op(id))) {
        let label = format!("{} {}\n{}", graph.op(id).name(), graph.name(id), graph.ty(id));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  v{} [label={label:?}];", id.index());
        for arg in graph.args(id).into_iter().filter(|&a| shown(graph.op(a))) {
            let _ = writeln!(out, "  v{} -> v{};", arg.index(), id.index());
        }
    }
    out + "}\n"
}
