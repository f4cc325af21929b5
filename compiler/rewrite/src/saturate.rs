//! One region: into an e-graph, through the rules, and out again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use egg::{Id, Rewrite, Runner, SimpleScheduler, StopReason};
use hawqc_ir::{Graph, Op, TensorType, TypeError, ValueId};

use crate::cost::{cost, cost_in};
use crate::error::RewriteError;
use crate::extract::{Extraction, extract};
use crate::language::{Fact, Term, Terms, Types};
use crate::region::Region;
use crate::report::{Change, RegionReport, Stop};

/// Rounds of rule application; regions settle in three or four.
const ROUND_LIMIT: usize = 16;
/// Terms of one e-graph; a region of [`crate::region::LIMIT`] values has a few thousand.
const TERM_LIMIT: usize = 20_000;

/// A region as an e-graph.
pub(crate) struct Lowered {
    pub terms: Terms,
    /// The class of every value of the region, as it was added.
    pub ids: BTreeMap<ValueId, Id>,
    /// The values that something outside of the region reads.
    pub roots: Vec<ValueId>,
}

/// A region with the terms chosen for it; without them it stays as it was.
pub(crate) struct Solved {
    pub lowered: Lowered,
    pub extraction: Option<Extraction>,
    /// The name a class had before, of its first value.
    pub names: BTreeMap<Id, String>,
    pub report: RegionReport,
}

/// Adds the values of a region to a new e-graph.
pub(crate) fn lower(graph: &Graph, region: &Region) -> Lowered {
    let inside: BTreeSet<ValueId> = region.values.iter().copied().collect();
    let mut terms = Terms::new(Types::default());
    let mut ids: BTreeMap<ValueId, Id> = BTreeMap::new();
    for &value in &region.values {
        let mut children = vec![terms.add(Term::Attributes(graph.op(value).clone()))];
        for arg in graph.args(value) {
            children.push(match (ids.get(&arg), graph.op(arg), graph.tensor(arg)) {
                (Some(&id), ..) => id,
                (None, Op::Const(key), Some(tensor)) => {
                    terms.analysis.constants.insert(*key, tensor.clone());
                    terms.add(Term::Constant(*key))
                }
                _ => {
                    terms.analysis.outer.insert(arg, graph.ty(arg).clone());
                    terms.add(Term::Outer(arg))
                }
            });
        }
        let id = terms.add(Term::Apply(graph.op(value).name(), children.into()));
        ids.insert(value, id);
    }
    terms.rebuild();
    let read_outside = |id: ValueId| graph.is_output(id) || graph.users(id).iter().any(|u| !inside.contains(u));
    let roots = region.values.iter().copied().filter(|&id| read_outside(id)).collect();
    Lowered { terms, ids, roots }
}

/// Saturates a region and extracts from it.
pub(crate) fn solve(graph: &Graph, region: &Region, rules: &[Rewrite<Term, Types>]) -> Result<Solved, RewriteError> {
    let lowered = lower(graph, region);
    let runner = Runner::<Term, Types, ()>::new(Types::default())
        .with_egraph(lowered.terms)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ROUND_LIMIT)
        .with_node_limit(TERM_LIMIT)
        // Never by the clock: the same input gives the same network.
        .with_time_limit(Duration::MAX)
        .run(rules);
    let mut applied: BTreeMap<String, usize> = BTreeMap::new();
    for (rule, count) in runner.iterations.iter().flat_map(|i| &i.applied) {
        let row = rule.as_str().split('/').next().unwrap_or_default();
        *applied.entry(row.to_string()).or_default() += count;
    }
    let stop = match runner.stop_reason {
        Some(StopReason::Saturated) => Stop::Saturated,
        Some(StopReason::IterationLimit(_)) => Stop::Rounds(ROUND_LIMIT),
        Some(StopReason::NodeLimit(_)) => Stop::Terms(TERM_LIMIT),
        other => Stop::Other(format!("{other:?}")),
    };
    let rounds = runner.iterations.len();
    let lowered = Lowered { terms: runner.egraph, ..lowered };
    let name = region.values.first().map_or("", |&id| graph.name(id)).to_string();
    if let Some(conflict) = &lowered.terms.analysis.conflict {
        return Err(RewriteError::Rule {
            rule: format!("one of {:?}, near `{name}`", applied.keys()),
            message: conflict.clone(),
        });
    }
    let roots: Vec<Id> = lowered.roots.iter().map(|value| lowered.ids[value]).collect();
    let extraction = extract(&lowered.terms, &roots, &original_terms(graph, &lowered));
    let report = RegionReport {
        name,
        values: region.values.len(),
        terms: lowered.terms.total_number_of_nodes(),
        classes: lowered.terms.number_of_classes(),
        rounds,
        stop,
        applied,
        work: extraction.work,
        cost_before: region.values.iter().map(|&id| cost_in(graph, id)).sum(),
        cost_after: 0,
        changes: Vec::new(),
        kept: None,
    };
    Ok(decide(graph, region, lowered, extraction, report))
}

/// The term each class had before; of several values that turned out equal, the first.
fn original_terms(graph: &Graph, lowered: &Lowered) -> BTreeMap<Id, Term> {
    let terms = &lowered.terms;
    let mut original = BTreeMap::new();
    for (&value, &id) in &lowered.ids {
        let attributes = terms.lookup(Term::Attributes(graph.op(value).clone()));
        let operands = graph.args(value).into_iter().map(|arg| match (lowered.ids.get(&arg), graph.op(arg)) {
            (Some(&id), _) => Some(terms.find(id)),
            (None, Op::Const(key)) => terms.lookup(Term::Constant(*key)),
            (None, _) => terms.lookup(Term::Outer(arg)),
        });
        let children: Option<Vec<Id>> = std::iter::once(attributes).chain(operands).collect();
        if let Some(children) = children {
            let term = Term::Apply(graph.op(value).name(), children.into());
            original.entry(terms.find(id)).or_insert(term);
        }
    }
    original
}

/// Takes the extraction if it promises no less than the region did.
fn decide(
    graph: &Graph,
    region: &Region,
    lowered: Lowered,
    extraction: Extraction,
    mut report: RegionReport,
) -> Solved {
    let terms = &lowered.terms;
    let mut names: BTreeMap<Id, String> = BTreeMap::new();
    for (&value, &id) in &lowered.ids {
        names.entry(terms.find(id)).or_insert_with(|| graph.name(value).to_string());
    }
    match promises(graph, &lowered, &extraction) {
        Ok(needed) => {
            let chosen = needed.iter().filter_map(|id| Some((*id, extraction.chosen.get(id)?)));
            report.cost_after = chosen.map(|(id, term)| cost(terms, id, term)).sum();
            report.changes = changes(graph, region, &lowered, &extraction, &needed);
            return Solved { lowered, extraction: Some(extraction), names, report };
        }
        Err(error) => report.kept = Some(error.to_string()),
    }
    report.cost_after = report.cost_before;
    Solved { lowered, extraction: None, names, report }
}

/// The classes that the roots need, operands first, after checking that every chosen term is well typed on
/// its chosen operands and that no root has a wider range than before.
fn promises(graph: &Graph, lowered: &Lowered, extraction: &Extraction) -> Result<Vec<Id>, TypeError> {
    let terms = &lowered.terms;
    let needed = extraction.needed(terms, lowered.roots.iter().map(|value| lowered.ids[value]))?;
    let mut facts: BTreeMap<Id, Fact> = BTreeMap::new();
    for &id in &needed {
        let fact = match extraction.chosen.get(&id) {
            Some(Term::Apply(_, children)) => {
                Fact::of_application(children.iter().filter_map(|&c| facts.get(&terms.find(c))))
            }
            _ => terms[id].data.clone(),
        };
        if let Fact::Invalid(error) = fact {
            return Err(error);
        }
        facts.insert(id, fact);
    }
    for &root in &lowered.roots {
        let (before, after) = (graph.ty(root), facts.get(&terms.find(lowered.ids[&root])).and_then(Fact::ty));
        let within = after.is_some_and(|after| {
            let range = before.range.zip(after.range).is_none_or(|(before, after)| before.contains(after));
            range && before.elem == after.elem && before.shape == after.shape
        });
        if !within {
            let after = after.map_or("nothing".into(), TensorType::to_string);
            return Err(TypeError::new(format!("`{}` would be {after} instead of {before}", graph.name(root))));
        }
    }
    Ok(needed)
}

/// The values that are still computed, but by another term.
fn changes(graph: &Graph, region: &Region, lowered: &Lowered, extraction: &Extraction, needed: &[Id]) -> Vec<Change> {
    let terms = &lowered.terms;
    let needed: BTreeSet<Id> = needed.iter().copied().collect();
    let mut changes = Vec::new();
    for &value in &region.values {
        let class = terms.find(lowered.ids[&value]);
        let Some(chosen) = extraction.chosen.get(&class).filter(|_| needed.contains(&class)) else {
            continue;
        };
        let original = match (chosen, graph.op(value)) {
            (Term::Apply(_, children), op) => {
                let same_op = matches!(&terms[children[0]].data, Fact::Attributes(a) if a == op);
                let args = graph.args(value);
                let data = args.iter().filter_map(|arg| lowered.ids.get(arg)).map(|&id| terms.find(id));
                let kept: Vec<Id> = children[1..].iter().map(|&c| terms.find(c)).collect();
                same_op && data.into_iter().all(|id| kept.contains(&id))
            }
            _ => false,
        };
        if !original {
            let before = describe_value(graph, region, value, 3);
            let after = describe_term(graph, terms, extraction, class, 3);
            changes.push(Change { name: graph.name(value).to_string(), before, after });
        }
    }
    changes
}

/// An operator with its attributes over its data operands, to some depth.
fn describe_value(graph: &Graph, region: &Region, value: ValueId, depth: usize) -> String {
    let inside = region.values.binary_search(&value).is_ok();
    if !inside || depth == 0 {
        return format!("`{}`", graph.name(value));
    }
    let args = graph.args(value).into_iter().filter(|&a| graph.tensor(a).is_none());
    let args: Vec<String> = args.map(|a| describe_value(graph, region, a, depth - 1)).collect();
    describe(graph.op(value), &args)
}

fn describe_term(graph: &Graph, terms: &Terms, extraction: &Extraction, id: Id, depth: usize) -> String {
    match extraction.chosen.get(&terms.find(id)) {
        Some(Term::Outer(value)) => format!("`{}`", graph.name(*value)),
        Some(Term::Apply(name, children)) => {
            let Fact::Attributes(op) = &terms[children[0]].data else {
                return (*name).to_string();
            };
            if depth == 0 {
                return format!("{}(..)", op.name());
            }
            let data = children[1..].iter().filter(|&&c| matches!(terms[c].data, Fact::Value(_, None)));
            let args: Vec<String> = data.map(|&c| describe_term(graph, terms, extraction, c, depth - 1)).collect();
            describe(op, &args)
        }
        _ => String::new(),
    }
}

fn describe(op: &Op, args: &[String]) -> String {
    let bounds = match op {
        Op::Requant(r) => format!("[{},{}] {} ", r.lo, r.hi, r.elem),
        Op::Clamp(c) => format!("[{},{}] {} ", c.lo, c.hi, c.elem),
        _ => String::new(),
    };
    format!("{}({bounds}{})", op.name(), args.join(", "))
}
