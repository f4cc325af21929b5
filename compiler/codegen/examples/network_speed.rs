//! A network of ResNet-50's shape, as fused kernels with seeded weights: how long it takes to compile,
//! and how long each step runs on one thread.
//!
//! Arguments, all optional: a target name, the bits of weights and activations (8 or 4), and `check` to
//! compare the result with the interpreter (slow).

mod network;

use std::sync::Arc;
use std::time::Instant;

use hawqc_codegen::{ModelInfo, Options, Target, compile, jit};
use hawqc_ir::text::seeded;
use hawqc_ir::{Elem, interp};
use hawqc_runtime::{Entry, Session, Tensor};
use network::{IntRange, Result, resnet50};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = Target::parse(arguments.first().map_or("host", String::as_str))?;
    let four = arguments.get(1).is_some_and(|bits| bits == "4");
    let (act, wei) = if four { (Elem::U4, Elem::I4) } else { (Elem::U8, Elem::I8) };
    let graph = resnet50(act, wei)?;
    let options = Options::new(target);
    let start = Instant::now();
    let artifact = compile(&graph, &ModelInfo::default(), &options)?;
    let (elapsed, manifest) = (start.elapsed(), &artifact.manifest);
    println!("object: {elapsed:.2?}, {} bytes", artifact.object.len());
    println!("arena {} bytes, weights {} bytes", manifest.arena_bytes, manifest.weight_bytes);
    let start = Instant::now();
    let model = Arc::new(jit(&graph, &ModelInfo::default(), &options)?);
    println!("in memory: {:.2?}", start.elapsed());
    let image = seeded(graph.ty(graph.inputs()[0]), 99, Elem::U8.int_range())?;
    let input = Tensor::from_bytes(hawqc_runtime::Elem::U8, image.shape().to_vec(), &image.to_bytes())?;
    let mut session = Session::new(Arc::clone(&model), Some(1))?;
    let mut outputs = session.new_outputs(Entry::Border)?;
    let steps = &model.manifest().steps;
    let mut best = vec![f64::INFINITY; steps.len()];
    for _ in 0..10 {
        let mut marks = Vec::with_capacity(steps.len() + 1);
        let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
        session.run_observed(Entry::Border, &[input.view()], &mut views, &mut |_| marks.push(Instant::now()))?;
        for (best, pair) in best.iter_mut().zip(marks.windows(2)) {
            *best = best.min((pair[1] - pair[0]).as_secs_f64());
        }
    }
    for (step, seconds) in steps.iter().zip(&best) {
        let rate = step.macs as f64 / seconds / 1e9;
        println!("{:>9.1} us {rate:>7.1} GMAC/s  {:<20} {}", seconds * 1e6, step.name, step.kernel);
    }
    println!("sum of the steps' best: {:.2} ms", best.iter().sum::<f64>() * 1e3);
    for threads in [1, 2] {
        let mut session = Session::new(Arc::clone(&model), Some(threads))?;
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let start = Instant::now();
            session.run(&[input.view()])?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{threads} threads: {:.2} ms", best * 1e3);
    }
    if arguments.get(2).is_some_and(|word| word == "check") {
        let expected = interp::run(&graph, &[image])?;
        println!("equal to the interpreter: {}", expected[0].to_bytes() == outputs[0].bytes());
    }
    Ok(())
}
