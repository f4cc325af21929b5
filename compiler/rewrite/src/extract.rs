//! Extraction: one term for every class, the whole as cheap as found, a shared term counted once.
//!
//! Greedy and bottom-up over sets: every class holds its best term and the set of classes that this term
//! needs (a bit set); the cost of a term is the sum over the *union* of its operands' sets, so that what
//! two operands share is paid once. Terms are revisited when an operand improves, until nothing improves.
//!
//! A class takes another term only if its key (cost, then width of the range) gets smaller, so this ends.
//! It cannot make a cycle: every term costs at least 1, so the set of a term that needs its own class costs
//! more than what the class already has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use egg::{Id, Language};
use hawqc_ir::{Range, TypeError};

use crate::cost::cost;
use crate::language::{Fact, Term, Terms};

/// The chosen term of every class that has one.
pub(crate) struct Extraction {
    pub chosen: BTreeMap<Id, Term>,
    /// Operand sets united: the work done.
    pub unions: usize,
}

/// A set of classes, by dense index.
#[derive(Clone, Default)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn unite(&mut self, other: &Set) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0
            .iter()
            .enumerate()
            .flat_map(|(i, &word)| (0..64).filter(move |b| word >> b & 1 == 1).map(move |b| i * 64 + b))
    }
}

/// The best term of a class so far.
struct Best {
    key: (u64, u64),
    term: Term,
    /// Cost of the term alone.
    own: u64,
    needs: Set,
}

/// Chooses a term for every class.
pub(crate) fn extract(terms: &Terms) -> Extraction {
    let mut ids: Vec<Id> = terms.classes().map(|class| class.id).collect();
    ids.sort_unstable();
    let index: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    let mut users: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); ids.len()];
    for (user, &id) in ids.iter().enumerate() {
        for child in terms[id].iter().flat_map(|term| term.children()) {
            users[index[&terms.find(*child)]].insert(user);
        }
    }
    let mut best: Vec<Option<Best>> = ids.iter().map(|_| None).collect();
    let mut queue: VecDeque<usize> = (0..ids.len()).collect();
    let mut queued = vec![true; ids.len()];
    let mut unions = 0;
    while let Some(class) = queue.pop_front() {
        queued[class] = false;
        let mut improved = false;
        for term in terms[ids[class]].iter() {
            let Some(candidate) = candidate(terms, &index, &best, ids[class], term, &mut unions) else {
                continue;
            };
            if best[class].as_ref().is_none_or(|b| candidate.key < b.key) {
                best[class] = Some(candidate);
                improved = true;
            }
        }
        if improved {
            for &user in users[class].iter().filter(|&&user| !queued[user]).collect::<Vec<_>>() {
                queued[user] = true;
                queue.push_back(user);
            }
        }
    }
    let chosen = ids.into_iter().zip(best).filter_map(|(id, best)| Some((id, best?.term))).collect();
    Extraction { chosen, unions }
}

/// What a class would be with `term`; `None` while an operand has no term, and where the term would need
/// its own class.
fn candidate(
    terms: &Terms,
    index: &BTreeMap<Id, usize>,
    best: &[Option<Best>],
    id: Id,
    term: &Term,
    unions: &mut usize,
) -> Option<Best> {
    let class = *index.get(&id)?;
    let own = cost(terms, id, term);
    let mut needs = Set::default();
    for child in term.children() {
        needs.unite(&best[*index.get(&terms.find(*child))?].as_ref()?.needs);
        *unions += 1;
    }
    if needs.contains(class) {
        return None;
    }
    let total = needs.iter().filter_map(|i| best[i].as_ref()).fold(own, |sum, b| sum.saturating_add(b.own));
    if own > 0 {
        needs.insert(class);
    }
    Some(Best { key: (total, width(terms, term)), term: term.clone(), own, needs })
}

/// The width of the range that a term promises by itself; the class may know better from another term.
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
