//! Compiled code against the interpreter, bit for bit: on every target this machine runs, on one
//! thread and on two.

use std::sync::Arc;

use hawqc_driver::verify::{self, Difference};
use hawqc_driver::{CompileOptions, Error, Lowered, TARGETS, Target, compile, tensors};
use hawqc_ir::{Graph, Tensor, interp};
use hawqc_runtime::Session;

/// The targets whose code runs on this machine.
pub fn targets() -> Vec<Target> {
    let all = TARGETS.iter().filter_map(|row| Target::parse(row.name).ok());
    all.filter(Target::runs_here).collect()
}

/// Compiles `lower()` for each of `targets`, runs it on every one of `inputs` and compares each output with
/// what `reference` gives under the interpreter. The error says what differs first.
pub fn check(
    reference: &Graph,
    lower: impl Fn() -> Result<Lowered, Error>,
    targets: &[Target],
    inputs: &[Vec<Tensor>],
) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let expected = inputs.iter().map(|x| interp::run(reference, x)).collect::<Result<Vec<_>, _>>();
    let expected = expected.map_err(|e| e.to_string())?;
    for target in targets {
        let options = CompileOptions::new(target.clone());
        let compiled = compile(lower().map_err(text)?, &options).map_err(text)?;
        let model = Arc::new(compiled.load().map_err(text)?);
        for threads in [1, 2] {
            let mut session = Session::new(Arc::clone(&model), Some(threads)).map_err(|e| e.to_string())?;
            for (case, (input, expected)) in inputs.iter().zip(&expected).enumerate() {
                let found = run(&mut session, input, expected).map_err(text)?;
                if let Some(output) = first_difference(reference, expected, &found)? {
                    let kernel = first_kernel(lower().map_err(text)?, target, threads, input)?;
                    let place = format!("{}, {threads} threads, input {case}", target.name());
                    return Err(format!("{place}: {output}; {kernel}"));
                }
            }
        }
    }
    Ok(())
}

/// Runs a model; outputs come back with the elements of `expected`.
fn run(session: &mut Session, inputs: &[Tensor], expected: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let found = verify::run(session, inputs)?;
    found.iter().zip(expected).map(|(f, e)| tensors::to_ir(f, e.elem())).collect()
}

fn first_difference(graph: &Graph, expected: &[Tensor], found: &[Tensor]) -> Result<Option<String>, String> {
    if expected.len() != found.len() {
        return Err(format!("{} outputs, expected {}", found.len(), expected.len()));
    }
    for ((name, _), (e, f)) in graph.outputs().iter().zip(expected.iter().zip(found)) {
        let difference = Difference::between(name, e, f).map_err(|e| e.to_string())?;
        if let Some((at, e, f)) = difference.first {
            return Ok(Some(format!("output `{name}` differs at {at}: expected {e}, found {f}")));
        }
    }
    Ok(None)
}

/// Which kernel differs first when every value is kept.
fn first_kernel(lowered: Lowered, target: &Target, threads: usize, input: &[Tensor]) -> Result<String, String> {
    let text = |e: Error| e.to_string();
    let options = CompileOptions { keep_values: true, ..CompileOptions::new(target.clone()) };
    let compiled = compile(lowered, &options).map_err(text)?;
    let model = Arc::new(compiled.load().map_err(text)?);
    let mut session = Session::new(model, Some(threads)).map_err(|e| e.to_string())?;
    let layers = verify::per_layer(compiled.lowered.kernels(), &mut session, input).map_err(text)?;
    Ok(match layers.into_iter().find(|d| d.max_lsb() > 0) {
        Some(d) => format!("kernel `{}` differs first: {:?}", d.value, d.first),
        None => "no kernel differs when every value is kept: look at the memory plan".into(),
    })
}
