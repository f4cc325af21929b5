use proptest::prelude::*;

use super::*;

/// Every assignment within the limits, by cost.
fn brute_force(problem: &Problem) -> Vec<Solution> {
    let counts: Vec<usize> = problem.layers.iter().map(|l| l.choices.len()).collect();
    let mut all = Vec::new();
    for mut number in 0..counts.iter().product::<usize>() {
        let digit = |count: &usize| {
            let digit = number % count;
            number /= count;
            digit
        };
        let choices: Vec<usize> = counts.iter().map(digit).collect();
        let label = |layer: usize| &problem.layers[layer].choices[choices[layer]].label;
        let solution = problem.evaluate(&choices);
        let within = solution.uses.iter().zip(&problem.limits).all(|(used, limit)| *used <= limit.most);
        if within && problem.ties.iter().all(|&[a, b]| label(a) == label(b)) {
            all.push(solution);
        }
    }
    all.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    all
}

const LABELS: [&str; 4] = ["w8a8", "w4a8", "w4a4", "w2a2"];

/// Layers whose numbers are small integers, so that equal costs and sums that meet a limit exactly are common.
fn problems() -> impl Strategy<Value = Problem> {
    let number = || (0u8..12).prop_map(f64::from);
    let choice = move |limits: usize| (number(), prop::collection::vec(number(), limits));
    let layer = move |limits: usize| prop::collection::vec(choice(limits), 1..=4);
    let ties = prop::collection::vec([0usize..8, 0..8], 0..3);
    let seams = prop::collection::vec(([0usize..8, 0..8], [0usize..4, 0..4], 0usize..3, -3i8..9), 0..8);
    let shape = (1usize..=7, 0usize..=3).prop_flat_map(move |(layers, limits)| {
        let shares = prop::collection::vec(0.0f64..0.8, limits);
        (prop::collection::vec(layer(limits), layers), shares)
    });
    (shape, ties, seams).prop_map(|((layers, shares), ties, seams)| assemble(layers, &shares, &ties, &seams))
}

type Numbers = Vec<Vec<(f64, Vec<f64>)>>;
type Seams = [([usize; 2], [usize; 2], usize, i8)];

fn assemble(layers: Numbers, shares: &[f64], ties: &[[usize; 2]], seams: &Seams) -> Problem {
    let layer = |(index, choices): (usize, Vec<(f64, Vec<f64>)>)| Layer {
        name: format!("layer{index}"),
        choices: choices
            .into_iter()
            .zip(LABELS)
            .map(|((cost, uses), label)| Choice { label: label.into(), cost, uses })
            .collect(),
    };
    let layers: Vec<Layer> = layers.into_iter().enumerate().map(layer).collect();
    let (count, limits) = (layers.len(), shares.len());
    let seam = |&(ends, choices, limit, extra): &([usize; 2], [usize; 2], usize, i8)| {
        let ends = ends.map(|l| l % count);
        let choices = [0, 1].map(|i| choices[i] % layers[ends[i]].choices.len());
        let is_seam = ends[0] != ends[1] && limits > 0;
        is_seam.then(|| SeamCost { layers: ends, choices, limit: limit % limits, extra: extra.into() })
    };
    let seams = seams.iter().filter_map(seam).collect();
    let limit = |(d, share): (usize, &f64)| {
        let most: f64 = layers.iter().map(|l| l.choices.iter().map(|c| c.uses[d]).fold(0.0, f64::max)).sum();
        Limit { name: format!("limit{d}"), fixed: d as f64, most: (share * most).floor() + d as f64 }
    };
    let limits = shares.iter().enumerate().map(limit).collect();
    let ties = ties.iter().map(|tie| tie.map(|l| l % count)).collect();
    Problem { layers, limits, ties, seams }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// The costs of the best assignments are those of all assignments, sorted; bounds are below; refusals are true.
    #[test]
    fn brute_force_agrees(problem in problems(), wanted in 1usize..6) {
        let all = brute_force(&problem);
        match solve(&problem, SearchOptions { wanted, ..SearchOptions::default() }) {
            Ok(report) => {
                prop_assert!(report.proven && report.gap() == 0.0);
                prop_assert_eq!(report.best.len(), wanted.min(all.len()));
                for (found, expected) in report.best.iter().zip(&all) {
                    prop_assert_eq!(found.cost, expected.cost);
                    prop_assert!(all.contains(found));
                }
                for (i, found) in report.best.iter().enumerate() {
                    prop_assert!(report.best[..i].iter().all(|other| other.choices != found.choices));
                }
                prop_assert!(report.relaxed <= all[0].cost && lagrangian_bound(&problem).unwrap() <= all[0].cost + 1e-9);
            }
            Err(SearchError::Infeasible(found)) => {
                prop_assert!(all.is_empty());
                let mut relaxed = problem.clone();
                let goal = problem.limits.iter().position(|l| l.name == found.limit).unwrap();
                for limit in relaxed.limits.iter_mut().filter(|l| !found.with.contains(&l.name)) {
                    limit.most = f64::INFINITY;
                }
                let least = brute_force(&relaxed).iter().map(|s| s.uses[goal]).fold(f64::INFINITY, f64::min);
                prop_assert_eq!(found.least, least);
                prop_assert!(least > problem.limits[goal].most);
            }
            Err(other) => prop_assert!(matches!(other, SearchError::NoCommonChoice { .. }), "{}", other),
        }
    }
}

/// A problem of `count` equal layers that trade cost for use.
fn equal_layers(count: usize, most: f64) -> Problem {
    let choice = |label: &str, cost: f64, used: f64| Choice { label: label.into(), cost, uses: vec![used] };
    let layer = |i: usize| Layer {
        name: format!("layer{i}"),
        choices: vec![choice("w8a8", 1.0, 8.0), choice("w4a8", 2.0, 7.0), choice("w4a4", 5.0, 4.0)],
    };
    let limits = vec![Limit { name: "size".into(), fixed: 0.0, most }];
    Problem { layers: (0..count).map(layer).collect(), limits, ..Problem::default() }
}

#[test]
fn equal_layers_do_not_explode() {
    // 60 layers have 3^60 assignments; 4 in 3 of cost 1 for each unit of use below 480, but 4-bit steps are of 4.
    let report = solve(&equal_layers(60, 399.0), SearchOptions::default()).unwrap();
    assert_eq!((report.best[0].cost, report.proven), (60.0 + 81.0, true));
    assert!(report.steps < 1_000_000, "{}", report.steps);
}

#[test]
fn the_same_problem_has_the_same_plan() {
    let options = SearchOptions { wanted: 4, ..SearchOptions::default() };
    let problem = equal_layers(12, 70.0);
    assert_eq!(solve(&problem, options).unwrap(), solve(&problem, options).unwrap());
}

#[test]
fn an_unfinished_search_says_so() {
    let mut problem = equal_layers(30, 199.0);
    for (i, choice) in problem.layers.iter_mut().flat_map(|l| &mut l.choices).enumerate() {
        choice.cost *= 1.0 + (i * 37 % 101) as f64 / 70.0;
        choice.uses[0] *= 1.0 + (i * 59 % 97) as f64 / 300.0;
    }
    let whole = solve(&problem, SearchOptions::default()).unwrap();
    let cut = solve(&problem, SearchOptions { max_steps: 20, ..SearchOptions::default() }).unwrap();
    assert!(whole.proven && whole.gap() == 0.0);
    assert!(!cut.proven && cut.gap() > 0.0, "{whole:?}\n{cut:?}");
    assert!(cut.bound <= whole.best[0].cost && whole.best[0].cost <= cut.best[0].cost, "{whole:?}\n{cut:?}");
}

#[test]
fn the_binding_limit_is_named() {
    let mut problem = equal_layers(3, 11.0);
    let error = solve(&problem, SearchOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "limit `size` of 11 cannot be met: the least reachable is 12");
    // Two limits, each of which can be met, but not both.
    problem.limits[0].most = 20.0;
    problem.limits.push(Limit { name: "latency".into(), fixed: 1.0, most: 16.0 });
    for choice in problem.layers.iter_mut().flat_map(|l| &mut l.choices) {
        choice.uses.push(12.0 - choice.uses[0]);
    }
    let error = solve(&problem, SearchOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "limit `size` of 20 cannot be met: the least reachable is 21 under the limits `latency`");
}

#[test]
fn malformed_problems_are_refused() {
    let message = |change: &dyn Fn(&mut Problem)| {
        let mut problem = equal_layers(3, 20.0);
        change(&mut problem);
        solve(&problem, SearchOptions::default()).unwrap_err().to_string()
    };
    assert!(message(&|p| p.layers[1].choices[0].cost = f64::NAN).contains("`layer1`, w8a8"));
    assert!(message(&|p| p.layers[1].choices[2].uses.clear()).contains("a use for each limit"));
    assert!(message(&|p| p.layers[2].choices.clear()).contains("no choice"));
    assert!(message(&|p| p.ties.push([0, 3])).contains("tie"));
    let seam = SeamCost { layers: [1, 1], choices: [0, 0], limit: 0, extra: 1.0 };
    assert!(message(&|p| p.seams.push(seam.clone())).contains("seam"));
    assert!(message(&|p| p.limits[0].most = f64::NAN).contains("`size`"));
    assert!(
        message(&|p| {
            p.layers[0].choices.truncate(1);
            p.layers[1].choices.remove(0);
            p.ties.push([0, 1]);
        })
        .contains("`layer0`, `layer1` have no choice in common")
    );
}
