//! Steps under several schedules: whatever is chosen, results are the interpreter's; digests tell kernels apart.

use hawqc_ir::interp;
use hawqc_runtime::Pool;
use hawqc_schedules::Schedule;

use super::harness::runnable_targets;
use super::model::{NETWORK, buffer, image, network};
use crate::error::CodegenError;
use crate::program::machine;
use crate::target::Target;
use crate::variants::{KernelHashes, Variants};

#[test]
fn every_choice_computes_the_same() {
    let graph = network(NETWORK);
    let pool = Pool::new(2).unwrap();
    for target in runnable_targets().into_iter().filter(Target::runs_here) {
        let mut variants = Variants::new(&graph, &target).unwrap();
        let mut added: Vec<(usize, usize)> = Vec::new();
        for step in 0..variants.len() {
            let spec = variants.spec(step).unwrap();
            let default = variants.default_schedule(step);
            for schedule in Schedule::candidates(spec, machine(&target)).into_iter().filter(|&s| s != default) {
                match variants.add(step, schedule) {
                    Ok(position) => {
                        assert_eq!(variants.variant(step, position).unwrap().schedule(), schedule);
                        added.push((step, position));
                    }
                    // Not with these weights.
                    Err(CodegenError::Unsupported { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(added.len() > 20, "{} candidates on {target}", added.len());
        let mut times = Vec::new();
        for (round, chunk) in added.chunks(7).enumerate() {
            chunk.iter().for_each(|&(step, position)| variants.choose(step, position));
            let input = image(round as u64);
            let expected = interp::run(&graph, std::slice::from_ref(&input)).unwrap();
            variants.run(&[buffer(&input).view()], (round % 2 == 0).then_some(&pool), &mut times).unwrap();
            assert_eq!(times.len(), variants.len());
            // The outputs are the last step's and `block.conv`'s.
            let found = [variants.len() - 1, 3].map(|step| variants.result(step).unwrap());
            let expected = [&expected[0], &expected[1]].map(hawqc_ir::Tensor::to_bytes);
            assert_eq!(found, expected, "round {round} on {target}: {chunk:?}");
        }
        let (step, position) = added[0];
        variants.remove(step, position);
        assert!(variants.variant(step, position).is_none() && variants.variant(step, 0).is_some());
        assert!(variants.run(&[], None, &mut times).is_err());
    }
}

#[test]
fn digests_are_those_of_the_code_that_runs() {
    let graph = network(NETWORK);
    let target = Target::host().unwrap();
    let hashes = KernelHashes::new(&graph, &target).unwrap();
    let mut variants = Variants::new(&graph, &target).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for (step, (_, spec, default)) in hashes.steps().enumerate() {
        assert_eq!(variants.default_schedule(step), default);
        for schedule in Schedule::candidates(spec, machine(&target)) {
            let Ok(position) = variants.add(step, schedule) else {
                continue;
            };
            let hash = variants.variant(step, position).unwrap().hash().to_owned();
            assert_eq!(hashes.hash(step, schedule).unwrap(), hash, "{schedule}");
            seen.entry(step).or_insert_with(Vec::new).push(hash);
        }
    }
    // Schedules of one convolution give different code, all but those that its size makes equal.
    let distinct = |all: &Vec<String>| all.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(seen.values().any(|all| all.len() > 8 && distinct(all) > all.len() / 2));
}
