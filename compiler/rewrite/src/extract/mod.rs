//! Extraction: one term for every class, the whole as cheap as found, a shared term counted once.
//!
//! Two starting points, [`greedy`] from the bottom up and the region as it was, are each improved by
//! [`descent`]; the cheaper is taken, and the region as it was if nothing is cheaper. Deterministic.

mod descent;
mod greedy;

use std::collections::BTreeMap;

use egg::{Id, Language};
use hawqc_ir::{Range, TypeError};

use crate::cost::cost;
use crate::language::{Fact, Term, Terms};

/// The chosen term of every class that has one.
pub(crate) struct Extraction {
    pub chosen: BTreeMap<Id, Term>,
    /// Sets united and terms visited: the work done.
    pub work: usize,
}

/// An e-graph by dense indices. Leaves cost nothing, every other term at least 1.
struct Problem {
    ids: Vec<Id>,
    index: BTreeMap<Id, usize>,
    /// The terms of every class, in the e-graph's order.
    terms: Vec<Vec<Candidate>>,
}

struct Candidate {
    term: Term,
    /// Cost of the term alone.
    own: u64,
    /// Width of the range that the term promises by itself; the class may know better from another.
    width: u64,
    children: Vec<usize>,
}

/// For every class the position of its chosen term.
type Choice = Vec<Option<usize>>;

/// Chooses terms for the classes that `roots` need. `original` is the term every class had before, where
/// it had one.
pub(crate) fn extract(terms: &Terms, roots: &[Id], original: &BTreeMap<Id, Term>) -> Extraction {
    let problem = Problem::new(terms);
    let roots: Vec<usize> = roots.iter().map(|&id| problem.index[&terms.find(id)]).collect();
    let (greedy, mut work) = greedy::choose(&problem);
    let before = problem.choice_of(original, &greedy);
    let (mut best, mut best_cost) = (before.clone(), u64::MAX);
    // The region as it was comes first, and what follows must be strictly cheaper.
    for start in [before, greedy] {
        let (choice, cost, visited) = descent::improve(&problem, &roots, start);
        work += visited;
        if cost < best_cost {
            (best, best_cost) = (choice, cost);
        }
    }
    let chosen = problem.ids.iter().zip(&problem.terms).zip(best);
    let chosen = chosen.filter_map(|((&id, terms), choice)| Some((id, terms[choice?].term.clone()))).collect();
    Extraction { chosen, work }
}

impl Problem {
    fn new(terms: &Terms) -> Problem {
        let mut ids: Vec<Id> = terms.classes().map(|class| class.id).collect();
        ids.sort_unstable();
        let index: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let candidate = |id: Id, term: &Term| Candidate {
            term: term.clone(),
            own: cost(terms, id, term),
            width: width(terms, term),
            children: term.children().iter().map(|&c| index[&terms.find(c)]).collect(),
        };
        let terms = ids.iter().map(|&id| terms[id].iter().map(|term| candidate(id, term)).collect()).collect();
        Problem { ids, index, terms }
    }

    /// The given terms, and for the other classes what `rest` chose.
    fn choice_of(&self, given: &BTreeMap<Id, Term>, rest: &Choice) -> Choice {
        let position = |class: usize, term: &Term| {
            let children: Option<Vec<usize>> = term.children().iter().map(|c| self.index.get(c).copied()).collect();
            let children = children?;
            let same = |c: &Candidate| c.term.matches(term) && c.children == children;
            self.terms[class].iter().position(same)
        };
        let chosen = self.ids.iter().enumerate().map(|(class, id)| {
            let given = given.get(id).and_then(|term| position(class, term));
            given.or(rest[class])
        });
        chosen.collect()
    }
}

fn width(terms: &Terms, term: &Term) -> u64 {
    let Term::Apply(_, children) = term else {
        return 0;
    };
    let fact = Fact::of_application(children.iter().map(|&c| &terms[c].data));
    let span = |range: Range| range.hi.abs_diff(range.lo);
    fact.ty().and_then(|ty| ty.range).map_or(0, span)
}

impl Extraction {
    /// The classes that `roots` need, operands first; an error if they need themselves.
    pub fn needed(&self, terms: &Terms, roots: impl IntoIterator<Item = Id>) -> Result<Vec<Id>, TypeError> {
        let mut order = Vec::new();
        // `false` while a class's operands are being visited.
        let mut done: BTreeMap<Id, bool> = BTreeMap::new();
        let mut stack: Vec<Id> = roots.into_iter().map(|id| terms.find(id)).collect();
        while let Some(&id) = stack.last() {
            let missing = || TypeError::new(format!("class {id} has no term"));
            let term = self.chosen.get(&id).ok_or_else(missing)?;
            match done.get(&id) {
                Some(true) => {
                    stack.pop();
                }
                Some(false) => {
                    done.insert(id, true);
                    order.push(id);
                    stack.pop();
                }
                None => {
                    done.insert(id, false);
                    for child in term.children().iter().rev().map(|&c| terms.find(c)) {
                        match done.get(&child) {
                            Some(true) => {}
                            Some(false) => return Err(TypeError::new(format!("class {child} needs itself"))),
                            None => stack.push(child),
                        }
                    }
                }
            }
        }
        Ok(order)
    }
}
