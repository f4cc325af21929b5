//! The pipeline: which passes a network goes through, as one list.
//!
//! Each pass says what form of graph it needs and gives; a list whose forms do not meet is refused
//! before anything runs, and the form is checked after every pass. The graph after each pass is kept
//! for whoever wants to look at it (`--emit graph@<pass>`).

use std::time::{Duration, Instant};

use hawqc_ir::Graph;
use hawqc_quantize::{Calibration, PrecisionPlan};

use crate::error::Error;
use crate::form::Form;
use crate::source::Source;

/// How a float network becomes integer.
#[derive(Clone, Debug)]
pub struct Precision {
    pub calibration: Calibration,
    pub plan: PrecisionPlan,
    pub options: hawqc_quantize::Options,
}

/// What the passes may look at besides the graph.
struct Context<'a> {
    precision: Option<&'a Precision>,
    rewritten: Option<hawqc_rewrite::Report>,
}

/// One row of the pipeline.
struct Pass {
    name: &'static str,
    needs: Form,
    gives: Form,
    run: fn(&Graph, &mut Context) -> Result<Graph, Error>,
}

/// From a float network to one with quantisation.
const QUANTIZE: &[Pass] = &[
    Pass { name: "fold", needs: Form::Float, gives: Form::Float, run: |g, _| Ok(hawqc_quantize::fold_batch_norm(g)?) },
    Pass { name: "insert", needs: Form::Float, gives: Form::Qdq, run: insert },
];

/// From a network with quantisation to kernels.
const LOWER: &[Pass] = &[
    Pass { name: "integerize", needs: Form::Qdq, gives: Form::Integer, run: |g, _| Ok(hawqc_quantize::integerize(g)?) },
    Pass { name: "rewrite", needs: Form::Integer, gives: Form::Integer, run: rewrite },
    Pass { name: "fuse", needs: Form::Integer, gives: Form::Kernels, run: |g, _| Ok(hawqc_rewrite::fuse(g)?) },
];

fn insert(graph: &Graph, context: &mut Context) -> Result<Graph, Error> {
    let Precision { calibration, plan, options } = context.precision.ok_or(Error::NotCalibrated)?;
    Ok(hawqc_quantize::insert(graph, calibration, plan, *options)?)
}

fn rewrite(graph: &Graph, context: &mut Context) -> Result<Graph, Error> {
    let (graph, report) = hawqc_rewrite::rewrite(graph)?;
    context.rewritten = Some(report);
    Ok(graph)
}

/// The names of all passes, in order.
pub fn pass_names() -> impl Iterator<Item = &'static str> {
    QUANTIZE.iter().chain(LOWER).map(|p| p.name)
}

/// The graph after one pass.
#[derive(Clone, Debug)]
pub struct Stage {
    /// `imported`, or the pass.
    pub name: &'static str,
    pub graph: Graph,
    pub elapsed: Duration,
}

/// A network on its way from the file to kernels, with every stage it went through.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Digest of the model, in hexadecimal.
    pub model_hash: String,
    stages: Vec<Stage>,
    /// What the egg rules did.
    pub report: hawqc_rewrite::Report,
}

impl Lowered {
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The graph after `pass`, if the network went through it.
    pub fn after(&self, pass: &str) -> Option<&Graph> {
        self.stages.iter().find(|s| s.name == pass).map(|s| &s.graph)
    }

    /// The integer network as lowered, before any rewriting: what the interpreter takes as the definition.
    pub fn integer(&self) -> &Graph {
        self.after("integerize").unwrap_or(&self.stages[0].graph)
    }

    /// The network as kernels.
    pub fn kernels(&self) -> &Graph {
        // Lowering puts the imported graph first and at least one pass behind it.
        &self.stages[self.stages.len() - 1].graph
    }
}

/// The float network that calibration observes and plans speak of.
pub fn float_form(source: &Source) -> Result<Graph, Error> {
    let mut context = Context { precision: None, rewritten: None };
    let stages = run(&source.graph, Form::Float, &QUANTIZE[..1], &mut context)?;
    Ok(stages.into_iter().next_back().map(|s| s.graph).unwrap_or_default())
}

/// The float network with quantisation simulated by `quantize`/`dequantize` pairs.
pub fn quantize(source: &Source, precision: &Precision) -> Result<Graph, Error> {
    let mut context = Context { precision: Some(precision), rewritten: None };
    let stages = run(&source.graph, Form::Float, QUANTIZE, &mut context)?;
    Ok(stages.into_iter().next_back().map(|s| s.graph).unwrap_or_default())
}

/// All the way to kernels. A network that is not quantised needs a `precision`.
pub fn lower(source: &Source, precision: Option<&Precision>) -> Result<Lowered, Error> {
    let mut context = Context { precision, rewritten: None };
    let stages = if source.is_quantized() {
        run(&source.graph, Form::Qdq, LOWER, &mut context)?
    } else {
        let passes: Vec<&Pass> = QUANTIZE.iter().chain(LOWER).collect();
        run(&source.graph, Form::Float, passes, &mut context)?
    };
    Ok(Lowered { model_hash: source.hash.clone(), stages, report: context.rewritten.unwrap_or_default() })
}

/// A network that is integer already, to kernels.
pub fn lower_integer(graph: &Graph) -> Result<Lowered, Error> {
    let mut context = Context { precision: None, rewritten: None };
    let stages = run(graph, Form::Integer, &LOWER[1..], &mut context)?;
    let model_hash = blake3::hash(hawqc_ir::text::print(graph).as_bytes()).to_hex().to_string();
    Ok(Lowered { model_hash, stages, report: context.rewritten.unwrap_or_default() })
}

/// Runs `passes` one after the other, checking the form of the graph before the first and after each.
fn run<'p>(
    graph: &Graph,
    form: Form,
    passes: impl IntoIterator<Item = &'p Pass>,
    context: &mut Context,
) -> Result<Vec<Stage>, Error> {
    let passes: Vec<&Pass> = passes.into_iter().collect();
    check_order(form, &passes)?;
    let broken = |pass| move |source| Error::Pass { pass, source };
    form.check(graph).map_err(broken("import"))?;
    let mut stages = vec![Stage { name: "imported", graph: graph.clone(), elapsed: Duration::ZERO }];
    for pass in passes {
        let start = Instant::now();
        let graph = (pass.run)(&stages[stages.len() - 1].graph, context)?;
        let elapsed = start.elapsed();
        pass.gives.check(&graph).map_err(broken(pass.name))?;
        stages.push(Stage { name: pass.name, graph, elapsed });
    }
    Ok(stages)
}

/// Each pass must be given the form it needs.
fn check_order(first: Form, passes: &[&Pass]) -> Result<(), Error> {
    let mut form = first;
    for pass in passes {
        if pass.needs != form {
            return Err(Error::Order { pass: pass.name, needs: pass.needs, found: form });
        }
        form = pass.gives;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_fits_together() {
        let all: Vec<&Pass> = QUANTIZE.iter().chain(LOWER).collect();
        check_order(Form::Float, &all).unwrap();
        check_order(Form::Qdq, &LOWER.iter().collect::<Vec<_>>()).unwrap();
        let swapped: Vec<&Pass> = all.into_iter().rev().collect();
        assert!(check_order(Form::Float, &swapped).is_err());
    }
}
