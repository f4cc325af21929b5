//! The rules: tables of rows, one file per topic.
//!
//! A row says that its left side equals its right side *bit for bit, for every value of the operands'
//! types*, where its condition holds. Its contract:
//! * the right side has the element and the shape of the left (checked when it is applied), and a range
//!   within the left's, so that whatever accepted the left accepts the right;
//! * where that range is strictly tighter, the right side is also cheaper, so that extraction never goes
//!   back to the wider one;
//! * the right side has no leaf that the left lacks, except constants.
//!
//! In patterns, the first child of an operator is its attributes. A group in braces stands for two and
//! more operands, `#` for their position: `(concat ?k {?x#})`.
//!
//! To add a rule, add a row. The test below instantiates every row's left side with random operands and
//! attributes, applies the row and interprets both sides; a row that never fires there fails.

mod clamp;
mod concat;
mod pad;
mod pool;
mod requant;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use egg::{Applier, ENodeOrVar, Id, Language, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use hawqc_ir::{
    Clamp, Concat, Conv, Dyadic, MaxPool, Op, Pad, Range, Requant, Reshape, SumPool, Tensor, TensorType, Transpose,
};

use crate::error::RewriteError;
use crate::language::{Fact, Term, Terms, Types};

/// One rule.
pub struct Row {
    /// In kebab-case; it appears in reports.
    pub name: &'static str,
    pub left: &'static str,
    pub right: &'static str,
    /// Why both sides are equal.
    pub because: &'static str,
    /// The condition: `None` where the row does not apply, else what the right side has beyond the left.
    pub(crate) given: fn(&Match) -> Option<Bindings>,
}

/// Every rule, by topic.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [clamp::ROWS, requant::ROWS, pool::ROWS, concat::ROWS, shape::ROWS, pad::ROWS].into_iter().flatten()
}

/// Groups in braces are matched with up to this many operands.
const MAX_OPERANDS: usize = 8;

/// The rules as egg runs them. Rows with groups give one rewrite per number of operands, named
/// `row/operands`.
pub(crate) fn rewrites() -> Result<Vec<Rewrite<Term, Types>>, RewriteError> {
    rows().map(compile).collect::<Result<Vec<_>, _>>().map(|lists| lists.into_iter().flatten().collect())
}

pub(crate) fn compile(row: &'static Row) -> Result<Vec<Rewrite<Term, Types>>, RewriteError> {
    if !row.left.contains('{') {
        return Ok(vec![compile_for(row, 0, row.name.to_string())?]);
    }
    (2..=MAX_OPERANDS).map(|count| compile_for(row, count, format!("{}/{count}", row.name))).collect()
}

fn compile_for(row: &'static Row, count: usize, name: String) -> Result<Rewrite<Term, Types>, RewriteError> {
    let error = |message: String| RewriteError::Rule { rule: row.name.into(), message };
    let parse = |side: &str| expand(side, count).parse::<Pattern<Term>>().map_err(|e| error(e.to_string()));
    let applier = RowApplier { row, count, right: parse(row.right)?.ast };
    Rewrite::new(name, parse(row.left)?, applier).map_err(error)
}

/// Writes every group `{..}` out `count` times, `#` being the position.
pub(crate) fn expand(pattern: &str, count: usize) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (group, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        let copies: Vec<String> = (0..count).map(|i| group.replace('#', &i.to_string())).collect();
        out.push_str(&copies.join(" "));
        rest = after;
    }
    out + rest
}

/// What a row's right side has beyond its left: attributes and constants by variable.
#[derive(Default)]
pub(crate) struct Bindings(Vec<(String, Binding)>);

enum Binding {
    Op(Op),
    Tensor(Tensor),
}

impl Bindings {
    pub fn new() -> Bindings {
        Bindings::default()
    }

    pub fn op(mut self, var: &str, op: impl Into<Op>) -> Bindings {
        self.0.push((format!("?{var}"), Binding::Op(op.into())));
        self
    }

    pub fn tensor(mut self, var: impl AsRef<str>, tensor: Tensor) -> Bindings {
        self.0.push((format!("?{}", var.as_ref()), Binding::Tensor(tensor)));
        self
    }
}

/// A row that only needs its left side to be present.
pub(crate) fn always(_: &Match) -> Option<Bindings> {
    Some(Bindings::new())
}

/// The condition holds, and the right side needs nothing else.
pub(crate) fn only_if(condition: bool) -> Option<Bindings> {
    condition.then(Bindings::new)
}

/// A match of a row's left side, as its condition sees it. Variables are named without `?`.
pub(crate) struct Match<'a> {
    terms: &'a Terms,
    subst: &'a Subst,
    /// How many operands the groups stand for.
    pub count: usize,
}

macro_rules! attributes {
    ($($function:ident: $op:ident),*) => {$(
        pub fn $function(&self, var: &str) -> Option<&$op> {
            match self.fact(var)? {
                Fact::Attributes(Op::$op(op)) => Some(op),
                _ => None,
            }
        }
    )*};
}

impl Match<'_> {
    attributes!(
        clamp: Clamp, concat: Concat, conv: Conv, max_pool: MaxPool, pad: Pad, requant: Requant, reshape: Reshape,
        sum_pool: SumPool, transpose: Transpose
    );

    fn fact(&self, var: &str) -> Option<&Fact> {
        let var: Var = format!("?{var}").parse().ok()?;
        Some(&self.terms[*self.subst.get(var)?].data)
    }

    pub fn ty(&self, var: &str) -> Option<&TensorType> {
        self.fact(var)?.ty()
    }

    /// The range of an integer operand.
    pub fn range(&self, var: &str) -> Option<Range> {
        self.ty(var)?.range
    }

    pub fn tensor(&self, var: &str) -> Option<&Arc<Tensor>> {
        match self.fact(var)? {
            Fact::Value(_, tensor) => tensor.as_ref(),
            _ => None,
        }
    }

    /// The scales of a requant, from the constants it is given.
    pub fn dyadics(&self, mult: &str, shift: &str) -> Option<Vec<Dyadic>> {
        let (mult, shift) = (self.tensor(mult)?.ints().ok()?, self.tensor(shift)?.ints().ok()?);
        let pairs = mult.into_iter().zip(shift);
        pairs.map(|(m, s)| Some(Dyadic { mult: i32::try_from(m).ok()?, shift: u8::try_from(s).ok()? })).collect()
    }
}

/// Applies a row to its matches.
struct RowApplier {
    row: &'static Row,
    count: usize,
    right: PatternAst<Term>,
}

impl Applier<Term, Types> for RowApplier {
    fn apply_one(
        &self,
        terms: &mut Terms,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        _: Symbol,
    ) -> Vec<Id> {
        let Some(bindings) = (self.row.given)(&Match { terms, subst, count: self.count }) else {
            return Vec::new();
        };
        let subst = bind(terms, subst, bindings);
        if !self.fits(terms, class, &subst) {
            return Vec::new();
        }
        match self.instantiate(terms, &subst) {
            Some(right) if terms.union(class, right) => vec![class],
            _ => Vec::new(),
        }
    }
}

fn bind(terms: &mut Terms, subst: &Subst, bindings: Bindings) -> Subst {
    let mut subst = subst.clone();
    for (name, binding) in bindings.0 {
        let term = match binding {
            Binding::Op(op) => Term::Attributes(op),
            Binding::Tensor(tensor) => {
                let id = tensor.const_id();
                terms.analysis.constants.insert(id, Arc::new(tensor));
                Term::Constant(id)
            }
        };
        if let Ok(var) = name.parse() {
            subst.insert(var, terms.add(term));
        }
    }
    subst
}

impl RowApplier {
    /// Whether the right side is well typed, with element and shape of the class. Checked before any
    /// term is added, so that the e-graph only ever holds valid terms.
    fn fits(&self, terms: &Terms, class: Id, subst: &Subst) -> bool {
        let mut facts: Vec<Fact> = Vec::new();
        for node in &self.right {
            let fact = match node {
                ENodeOrVar::Var(var) => subst.get(*var).map(|&id| terms[id].data.clone()),
                ENodeOrVar::ENode(term) => {
                    Some(Fact::of_application(term.children().iter().map(|&c| &facts[usize::from(c)])))
                }
            };
            match fact {
                Some(Fact::Invalid(_)) | None => return false,
                Some(fact) => facts.push(fact),
            }
        }
        match (facts.last().and_then(Fact::ty), terms[class].data.ty()) {
            (Some(right), Some(left)) => right.elem == left.elem && right.shape == left.shape,
            _ => false,
        }
    }

    fn instantiate(&self, terms: &mut Terms, subst: &Subst) -> Option<Id> {
        let mut ids: Vec<Id> = Vec::new();
        for node in &self.right {
            let id = match node {
                ENodeOrVar::Var(var) => *subst.get(*var)?,
                ENodeOrVar::ENode(term) => terms.add(term.clone().map_children(|c| ids[usize::from(c)])),
            };
            ids.push(id);
        }
        ids.last().copied()
    }
}
