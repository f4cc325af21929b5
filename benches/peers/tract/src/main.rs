//! One tract process of the comparison: `tract-worker MODEL.onnx IMAGE.f32 THREADS`.
//!
//! The image is raw little-endian f32 of the model's input shape. Standard output gets one line of JSON when the first
//! inference is done, then one line for each line of standard input, as `worker.py` describes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tract_linalg::multithread::Executor;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::matmul::optimized::OptMatMul;

const VERSION: &str = "0.23.9";

/// What goes wrong is told in one line, which compare.py reports.
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, image, threads] = arguments.as_slice() else {
        anyhow::bail!("usage: tract-worker MODEL.onnx IMAGE.f32 THREADS");
    };
    let threads: usize = threads.parse()?;
    let pixels: Vec<f32> = std::fs::read(image)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    let baseline = memory("VmRSS")?;
    let start = Instant::now();
    let model = tract_onnx::onnx().model_for_path(model)?.into_optimized()?;
    let did = operations(&model);
    let shape = model.input_fact(0)?.shape.as_concrete().context("the input has a fixed shape")?.to_vec();
    let executor = if threads == 1 { Executor::SingleThread } else { Executor::multithread(threads) };
    let options = RunOptions { executor: Some(executor), ..Default::default() };
    let runnable = model.into_runnable_with_options(&options)?;
    let mut state = runnable.spawn()?;
    let load = start.elapsed();

    let input: TValue = Tensor::from_shape(&shape, &pixels)?.into();
    let start = Instant::now();
    let outputs = state.run(tvec!(input.clone()))?;
    let first = start.elapsed();
    let logits = outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect::<Vec<_>>();
    reply(&json!({
        "version": VERSION,
        "load_ms": load.as_secs_f64() * 1e3,
        "first_ms": first.as_secs_f64() * 1e3,
        "baseline_kib": baseline,
        "imported_kib": baseline,
        "peak_kib": memory("VmHWM")?,
        "logits": logits,
    }))?;

    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim() == "did" {
            reply(&json!(did))?;
            continue;
        }
        let runs: usize = line.trim().parse()?;
        state.run(tvec!(input.clone()))?;
        let (mut wall, mut cpu) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
        for _ in 0..runs {
            let (start, busy) = (Instant::now(), processor_time());
            state.run(tvec!(input.clone()))?;
            wall.push(start.elapsed().as_nanos() as u64);
            cpu.push(processor_time() - busy);
        }
        reply(&json!({ "wall": wall, "cpu": cpu }))?;
    }
    Ok(())
}

fn reply(value: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Nanoseconds that all threads of this process have run for.
fn processor_time() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// How many nodes of each operator and element type the optimised network has, products by their kernels before the others.
fn operations(model: &TypedModel) -> String {
    let mut counts = BTreeMap::new();
    for node in model.nodes() {
        let product = node.op_as::<OptMatMul>();
        let what = match product {
            Some(product) => {
                let kernels: BTreeSet<&str> = product.mmm.iter().map(|kernel| kernel.name()).collect();
                format!("{} by {}", node.op.name(), Vec::from_iter(kernels).join(" or "))
            }
            None => {
                let element = node.outputs.first().map_or(String::new(), |o| format!("{:?}", o.fact.datum_type));
                format!("{} {element}", node.op.name())
            }
        };
        *counts.entry((product.is_none(), what)).or_insert(0) += 1;
    }
    let mut counts: Vec<((bool, String), i32)> = counts.into_iter().collect();
    counts.sort_by_key(|((other, _), n)| (*other, -n));
    let products = counts.iter().filter(|((other, _), _)| !other).count();
    let shown: Vec<String> = counts.iter().take(products + 8).map(|((_, what), n)| format!("{n} {what}")).collect();
    shown.join(", ")
}

/// KiB, from /proc/self/status.
fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context("/proc/self/status")?;
    Ok(line.split_whitespace().nth(1).context("/proc/self/status")?.parse()?)
}
