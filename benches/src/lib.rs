//! What the benches share: a compiled graph whose answers were checked, ready to be timed.

pub mod contender;
pub mod networks;

use std::sync::Arc;

use hawqc_driver::{Compiled, tensors, verify};
use hawqc_ir::Tensor;
use hawqc_runtime::{Entry, Session, Tensor as RuntimeTensor, TensorMut, TensorRef};

/// A model in memory with its inputs and outputs; every run allocates nothing.
pub struct Checked {
    session: Session,
    inputs: Vec<RuntimeTensor>,
    outputs: Vec<RuntimeTensor>,
}

impl Checked {
    /// Loads a model and compares it with the interpreter on `inputs`.
    ///
    /// # Errors
    /// A wrong answer: what is wrong is not worth timing.
    pub fn new(compiled: &Compiled, inputs: &[Tensor], threads: usize) -> Result<Checked, Box<dyn std::error::Error>> {
        let mut session = Session::new(Arc::new(compiled.load()?), Some(threads))?;
        for difference in verify::outputs(compiled.lowered.integer(), &mut session, inputs)? {
            if let Some((index, expected, found)) = difference.first {
                return Err(format!("{}[{index}]: expected {expected}, found {found}", difference.value).into());
            }
        }
        let inputs = inputs.iter().map(tensors::to_runtime).collect::<Result<_, _>>()?;
        let outputs = session.new_outputs(Entry::Border)?;
        Ok(Checked { session, inputs, outputs })
    }

    /// One inference.
    pub fn run(&mut self) -> Result<(), hawqc_runtime::RunError> {
        let inputs: Vec<TensorRef> = self.inputs.iter().map(RuntimeTensor::view).collect();
        let mut outputs: Vec<TensorMut> = self.outputs.iter_mut().map(RuntimeTensor::view_mut).collect();
        self.session.run_into(Entry::Border, &inputs, &mut outputs)
    }
}
