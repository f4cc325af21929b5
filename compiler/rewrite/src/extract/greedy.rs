//! Bottom-up over sets: every class holds its best term and the set of classes that this term needs (a
//! bit set); the cost of a term is the sum over the *union* of its operands' sets, so that what two
//! operands share is paid once. Classes are revisited when an operand improves, until nothing improves.
//!
//! A class takes another term only if its key (cost, then width of the range) gets smaller, so this ends.
//! It cannot make a cycle: every term costs at least 1, so the set of a term that needs its own class costs
//! more than what the class already has.

use std::collections::{BTreeSet, VecDeque};

use super::{Candidate, Choice, Problem};

/// A set of classes.
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
        let bits = |word: u64| (0..64).filter(move |b| word >> b & 1 == 1);
        self.0.iter().enumerate().flat_map(move |(i, &word)| bits(word).map(move |b| i * 64 + b))
    }
}

/// The best term of a class so far.
struct Best {
    key: (u64, u64),
    position: usize,
    own: u64,
    needs: Set,
}

/// A term for every class that has one without a cycle, and the number of sets united.
pub(super) fn choose(problem: &Problem) -> (Choice, usize) {
    let count = problem.ids.len();
    let mut users: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); count];
    for (user, terms) in problem.terms.iter().enumerate() {
        terms.iter().flat_map(|term| &term.children).for_each(|&child| _ = users[child].insert(user));
    }
    let mut best: Vec<Option<Best>> = (0..count).map(|_| None).collect();
    let mut queue: VecDeque<usize> = (0..count).collect();
    let mut queued = vec![true; count];
    let mut work = 0;
    while let Some(class) = queue.pop_front() {
        queued[class] = false;
        let mut improved = false;
        for (position, term) in problem.terms[class].iter().enumerate() {
            work += term.children.len();
            let Some(candidate) = weigh(&best, class, position, term) else {
                continue;
            };
            if best[class].as_ref().is_none_or(|b| candidate.key < b.key) {
                best[class] = Some(candidate);
                improved = true;
            }
        }
        for &user in users[class].iter().filter(|_| improved) {
            if !queued[user] {
                queued[user] = true;
                queue.push_back(user);
            }
        }
    }
    (best.into_iter().map(|b| b.map(|b| b.position)).collect(), work)
}

/// What a class would be with a term; `None` while an operand has none, and where the term would need its
/// own class.
fn weigh(best: &[Option<Best>], class: usize, position: usize, term: &Candidate) -> Option<Best> {
    let mut needs = Set::default();
    for &child in &term.children {
        needs.unite(&best[child].as_ref()?.needs);
    }
    if needs.contains(class) {
        return None;
    }
    let own = |i: usize| best[i].as_ref().map_or(0, |b| b.own);
    let total = needs.iter().map(own).fold(term.own, u64::saturating_add);
    if term.own > 0 {
        needs.insert(class);
    }
    Some(Best { key: (total, term.width), position, own: term.own, needs })
}
