//! The egg language: operators applied to attributes and operands.
//!
//! A term is an operator's name over children, of which the first is a leaf holding the attributes (the
//! IR's own `Op`) and the others are the operands; so rules are written as text:
//! `(requant ?a (clamp ?c ?x) ?m ?s)`. Other leaves are constants and the values of other regions.
//!
//! The analysis keeps for every class what is known of its value: the type, whose range is the
//! intersection of what every term of the class promises, and the data of constants.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use egg::{Analysis, DidMerge, EGraph, FromOp, FromOpError, Id, Language};
use hawqc_ir::{ConstId, Op, Range, Tensor, TensorType, TypeError, ValueId};

pub(crate) type Terms = EGraph<Term, Types>;

/// A node of the e-graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Term {
    /// The attributes of an operator; the first child of an application.
    Attributes(Op),
    /// A value computed outside of the region.
    Outer(ValueId),
    Constant(ConstId),
    /// An operator by name, applied to its attributes and operands.
    Apply(&'static str, Box<[Id]>),
}

impl Language for Term {
    type Discriminant = (&'static str, usize);

    fn discriminant(&self) -> Self::Discriminant {
        match self {
            Term::Attributes(_) => ("attributes", 0),
            Term::Outer(_) => ("outer", 0),
            Term::Constant(_) => ("constant", 0),
            Term::Apply(name, children) => (name, children.len()),
        }
    }

    fn matches(&self, other: &Term) -> bool {
        match (self, other) {
            (Term::Apply(a, x), Term::Apply(b, y)) => a == b && x.len() == y.len(),
            (Term::Apply(..), _) | (_, Term::Apply(..)) => false,
            (a, b) => a == b,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &mut [],
        }
    }
}

/// Reads the operators of patterns.
impl FromOp for Term {
    type Error = FromOpError;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Term, FromOpError> {
        match Op::NAMES.iter().find(|name| **name == op) {
            Some(name) if !children.is_empty() => Ok(Term::Apply(name, children.into())),
            _ => Err(FromOpError::new(op, children)),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Attributes(op) => write!(f, "{op:?}"),
            Term::Outer(id) => write!(f, "%{}", id.index()),
            Term::Constant(id) => write!(f, "{id:?}"),
            Term::Apply(name, _) => f.write_str(name),
        }
    }
}

/// What is known of a class.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    Attributes(Op),
    /// A value of this type; its data, if it is constant.
    Value(TensorType, Option<Arc<Tensor>>),
    /// A term whose operands do not fit. Rules are not applied where they would make one.
    Invalid(TypeError),
}

impl Fact {
    pub fn ty(&self) -> Option<&TensorType> {
        match self {
            Fact::Value(ty, _) => Some(ty),
            _ => None,
        }
    }

    /// The fact about an operator applied to children (attributes first).
    pub fn of_application<'a>(children: impl IntoIterator<Item = &'a Fact>) -> Fact {
        let mut children = children.into_iter();
        let Some(Fact::Attributes(op)) = children.next() else {
            return Fact::Invalid(TypeError::new("the first child of an application must be its attributes"));
        };
        let types: Option<Vec<&TensorType>> = children.map(Fact::ty).collect();
        let Some(types) = types else {
            return Fact::Invalid(TypeError::new("an operand is not a value"));
        };
        match op.infer(&types) {
            Ok(ty) => Fact::Value(ty, None),
            Err(error) => Fact::Invalid(error),
        }
    }
}

/// The analysis, with what the leaves stand for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Types {
    pub outer: BTreeMap<ValueId, TensorType>,
    pub constants: BTreeMap<ConstId, Arc<Tensor>>,
    /// Two values that were declared equal and cannot be.
    pub conflict: Option<String>,
}

impl Types {
    fn leaf(&self, term: &Term) -> Fact {
        let missing = || Fact::Invalid(TypeError::new(format!("unknown leaf {term}")));
        match term {
            Term::Attributes(op) => Fact::Attributes(op.clone()),
            Term::Outer(id) => self.outer.get(id).map_or_else(missing, |ty| Fact::Value(ty.clone(), None)),
            Term::Constant(id) => {
                self.constants.get(id).map_or_else(missing, |t| Fact::Value(t.ty(), Some(Arc::clone(t))))
            }
            Term::Apply(..) => missing(),
        }
    }
}

impl Analysis<Term> for Types {
    type Data = Fact;

    fn make(egraph: &mut Terms, term: &Term, _id: Id) -> Fact {
        match term {
            Term::Apply(_, children) => Fact::of_application(children.iter().map(|&c| &egraph[c].data)),
            leaf => egraph.analysis.leaf(leaf),
        }
    }

    fn merge(&mut self, to: &mut Fact, from: Fact) -> DidMerge {
        let mut conflict = |a: &dyn fmt::Display, b: &dyn fmt::Display| {
            self.conflict.get_or_insert(format!("{a} and {b} were declared equal"));
            DidMerge(false, true)
        };
        match (&mut *to, from) {
            (Fact::Attributes(a), Fact::Attributes(b)) if *a == b => DidMerge(false, false),
            (Fact::Value(a, data), Fact::Value(b, other_data)) => {
                if a.elem != b.elem || a.shape != b.shape {
                    return conflict(a, &b);
                }
                let Some(range) = meet(a.range, b.range) else {
                    return conflict(a, &b);
                };
                let (had_a, had_b) = (data.is_some(), other_data.is_some());
                let changed = DidMerge(range != a.range || had_b && !had_a, range != b.range || had_a && !had_b);
                a.range = range;
                if !had_a {
                    *data = other_data;
                }
                changed
            }
            (Fact::Invalid(error), _) => conflict(error, &"a term"),
            (_, Fact::Invalid(error)) => conflict(&error, &"a term"),
            _ => conflict(&"attributes", &"a value"),
        }
    }
}

/// The intersection of two ranges; `None` if it is empty or only one of them is a range.
fn meet(a: Option<Range>, b: Option<Range>) -> Option<Option<Range>> {
    match (a, b) {
        (None, None) => Some(None),
        (Some(a), Some(b)) => {
            let (lo, hi) = (a.lo.max(b.lo), a.hi.min(b.hi));
            (lo <= hi).then(|| Some(Range::new(lo, hi)))
        }
        _ => None,
    }
}
