//! Descent: a choice is improved one class at a time, judged by the cost of everything the roots need.
//!
//! The greedy choice is best for each class alone and may be wrong together: if one reader of a pooling
//! wants it before and another after a requantisation, both poolings are paid.

use super::{Choice, Problem};

/// Passes over all classes; each that does not improve the total is the last.
const PASSES: usize = 8;

/// A choice that no change of a single class makes cheaper (or the one after [`PASSES`] passes), its total
/// cost, and the number of terms visited. The cost is `u64::MAX` if the start already has a cycle or a
/// hole.
pub(super) fn improve(problem: &Problem, roots: &[usize], mut choice: Choice) -> (Choice, u64, usize) {
    let mut walk = Walk { problem, state: vec![State::New; problem.ids.len()], visited: 0 };
    let mut cost = walk.total(roots, &choice).unwrap_or(u64::MAX);
    for _ in 0..PASSES {
        let before = cost;
        for class in 0..choice.len() {
            // Only what is needed matters, and the walk has marked it.
            if problem.terms[class].len() < 2 || walk.state[class] == State::New {
                continue;
            }
            let mut kept = choice[class];
            for position in 0..problem.terms[class].len() {
                choice[class] = Some(position);
                match walk.total(roots, &choice) {
                    Some(total) if total < cost => (cost, kept) = (total, Some(position)),
                    _ => {}
                }
            }
            choice[class] = kept;
            walk.total(roots, &choice);
        }
        if cost == before {
            break;
        }
    }
    (choice, cost, walk.visited)
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Open,
    Done,
}

struct Walk<'a> {
    problem: &'a Problem,
    state: Vec<State>,
    visited: usize,
}

impl Walk<'_> {
    /// The cost of everything `roots` need; `None` if a class needs itself or has no term.
    fn total(&mut self, roots: &[usize], choice: &Choice) -> Option<u64> {
        self.state.fill(State::New);
        let mut stack: Vec<usize> = roots.to_vec();
        let mut total = 0u64;
        while let Some(&class) = stack.last() {
            self.visited += 1;
            match self.state[class] {
                State::Done => _ = stack.pop(),
                State::Open => {
                    self.state[class] = State::Done;
                    stack.pop();
                }
                State::New => {
                    let term = &self.problem.terms[class][choice[class]?];
                    total = total.saturating_add(term.own);
                    self.state[class] = State::Open;
                    for &child in &term.children {
                        match self.state[child] {
                            State::New => stack.push(child),
                            State::Open => return None,
                            State::Done => {}
                        }
                    }
                }
            }
        }
        Some(total)
    }
}
