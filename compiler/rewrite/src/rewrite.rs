//! Rewriting: from an integer graph to a cheaper one with the same outputs bit for bit.
//!
//! In: a typed graph; floats may occur, no rule touches them but to move them. Out: a graph whose outputs
//! have the same elements and shapes, ranges within the old ones, and equal values on every input; and a
//! report. Each region (see [`crate::region`]) is saturated and extracted by itself; if what was chosen is
//! not provably as good, the region stays as it was and the report says why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egg::{Id, Language};
use hawqc_ir::{Graph, IrError, Op, ValueId, verify};

use crate::error::RewriteError;
use crate::language::{Fact, Term};
use crate::region::regions;
use crate::report::Report;
use crate::rules::rewrites;
use crate::saturate::{Solved, solve};

/// Applies the rules to a graph; see the module's documentation.
pub fn rewrite(graph: &Graph) -> Result<(Graph, Report), RewriteError> {
    let graph = graph.swept()?;
    let rules = rewrites()?;
    let regions = regions(&graph);
    let solved = regions.iter().map(|region| solve(&graph, region, &rules)).collect::<Result<Vec<_>, _>>()?;
    let mut region_of = BTreeMap::new();
    for (index, region) in regions.iter().enumerate() {
        region_of.extend(region.values.iter().map(|&value| (value, index)));
    }
    let rewritten =
        Builder { old: &graph, solved: &solved, region_of, new: Graph::new(), done: BTreeMap::new() }.build()?;
    verify::check(&rewritten)?;
    let report = Report { regions: solved.into_iter().map(|s| s.report).collect() };
    Ok((rewritten.swept()?, report))
}

/// What is to be built: a value of the old graph, or a class of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Value(ValueId),
    Class(usize, Id),
}

struct Builder<'a> {
    old: &'a Graph,
    solved: &'a [Solved],
    region_of: BTreeMap<ValueId, usize>,
    new: Graph,
    done: BTreeMap<Key, ValueId>,
}

impl Builder<'_> {
    fn build(mut self) -> Result<Graph, RewriteError> {
        for &input in self.old.inputs() {
            let value = self.new.input(self.old.name(input), self.old.ty(input).clone())?;
            self.done.insert(Key::Value(input), value);
        }
        // In the old order, as far as values are still needed.
        let mut roots: Vec<ValueId> = self.solved.iter().flat_map(|s| s.lowered.roots.iter().copied()).collect();
        roots.sort_unstable();
        for root in roots {
            self.demand(Key::Value(root), self.old.name(root))?;
        }
        for (name, id) in self.old.outputs() {
            let value = self.demand(Key::Value(*id), name)?;
            self.new.output(name.clone(), value);
        }
        Ok(self.new)
    }

    /// Builds what a key stands for, operands first. `name` is given to what has no name of its own.
    fn demand(&mut self, key: Key, name: &str) -> Result<ValueId, RewriteError> {
        // Keys whose operands are on the stack above them; meeting one again is a cycle.
        let mut open: BTreeSet<Key> = BTreeSet::new();
        let mut stack = vec![(key, name.to_string())];
        while let Some((key, name)) = stack.last().cloned() {
            if self.done.contains_key(&key) {
                stack.pop();
                continue;
            }
            let name = self.name(key).unwrap_or(name);
            let needs = self.needs(key);
            let missing: Vec<Key> = needs.iter().copied().filter(|k| !self.done.contains_key(k)).collect();
            if missing.is_empty() {
                let args: Vec<ValueId> = needs.iter().map(|k| self.done[k]).collect();
                let value = self.add(key, &name, &args)?;
                self.done.insert(key, value);
                open.remove(&key);
                stack.pop();
                continue;
            }
            if !open.insert(key) {
                let message = "rewriting would make it depend on itself".into();
                return Err(IrError::Invariant { node: name, message }.into());
            }
            stack.extend(missing.into_iter().rev().map(|k| (k, name.clone())));
        }
        Ok(self.done[&key])
    }

    fn name(&self, key: Key) -> Option<String> {
        match key {
            Key::Value(value) => Some(self.old.name(value).to_string()),
            Key::Class(region, id) => self.solved[region].names.get(&id).cloned(),
        }
    }

    fn class(&self, region: usize, id: Id) -> Key {
        Key::Class(region, self.solved[region].lowered.terms.find(id))
    }

    /// What must be built before a key. One that only stands for another needs that one.
    fn needs(&self, key: Key) -> Vec<Key> {
        match key {
            Key::Value(value) => match self.region_of.get(&value) {
                Some(&region) if self.solved[region].extraction.is_some() => {
                    vec![self.class(region, self.solved[region].lowered.ids[&value])]
                }
                _ => self.old.args(value).into_iter().map(Key::Value).collect(),
            },
            Key::Class(region, id) => match self.term(region, id) {
                Some(Term::Outer(value)) => vec![Key::Value(*value)],
                Some(term @ Term::Apply(..)) => {
                    term.children()[1..].iter().map(|&child| self.class(region, child)).collect()
                }
                _ => Vec::new(),
            },
        }
    }

    fn term(&self, region: usize, id: Id) -> Option<&Term> {
        self.solved[region].extraction.as_ref()?.chosen.get(&id)
    }

    fn add(&mut self, key: Key, name: &str, args: &[ValueId]) -> Result<ValueId, RewriteError> {
        let broken = |message: &str| IrError::Invariant { node: name.to_string(), message: message.into() };
        match key {
            Key::Value(value) => match (self.old.op(value), self.old.tensor(value), args) {
                (Op::Const(_), Some(tensor), _) => Ok(self.new.constant(Arc::clone(tensor))),
                (_, _, &[stand_in]) if self.is_replaced(value) => Ok(stand_in),
                _ => Ok(self.new.copy(self.old, value, args)?),
            },
            Key::Class(region, id) => match (self.term(region, id), args) {
                (Some(Term::Outer(_)), &[stand_in]) => Ok(stand_in),
                (Some(Term::Constant(constant)), _) => {
                    let tensor = self.solved[region].lowered.terms.analysis.constants.get(constant);
                    Ok(self.new.constant(Arc::clone(tensor.ok_or_else(|| broken("a constant without data"))?)))
                }
                (Some(Term::Apply(_, children)), _) => match &self.solved[region].lowered.terms[children[0]].data {
                    Fact::Attributes(op) => Ok(self.new.add(name, op.clone(), args)?),
                    _ => Err(broken("a term without attributes").into()),
                },
                _ => Err(broken("a class without a term").into()),
            },
        }
    }

    fn is_replaced(&self, value: ValueId) -> bool {
        self.region_of.get(&value).is_some_and(|&region| self.solved[region].extraction.is_some())
    }
}
