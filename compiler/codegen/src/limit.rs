//! The most that one core multiplies: what a convolution's speed is compared with.
//!
//! In: a target that this machine can run, and a way of forming products. Out: multiply-accumulates per second of a loop of
//! nothing else, its operands in registers, with as many sums as registers hold.

use std::time::{Duration, Instant};

use hawqc_schedules::{Multiply, Schedule, WideMachine};

use crate::asm::{Asm, AsmError, Binary, Isa, Mem};
use crate::error::CodegenError;
use crate::object::{JitCode, define_code, jit_module};
use crate::program::machine;
use crate::target::Target;
use cranelift_codegen::ir::{AbiParam, types};
use cranelift_module::Module;

/// Repetitions of the loop's body in a call.
const REPETITIONS: usize = 20_000;
/// Steps of every sum in the loop's body.
const STEPS: usize = 4;
/// How long to measure; the clock frequency of a core that was idle takes some time to rise.
const DURATION: Duration = Duration::from_millis(60);
/// Registers that are no sums: two operands, ones, two products in flight.
const OTHERS: usize = 5;

/// The limits of a core of this machine, each measured when it is first asked for.
pub struct Limits<'t> {
    target: &'t Target,
    /// Multiply-accumulates per second.
    measured: Vec<(Multiply, f64)>,
}

impl<'t> Limits<'t> {
    pub fn new(target: &'t Target) -> Limits<'t> {
        Limits { target, measured: Vec::new() }
    }

    /// Those measured so far, multiply-accumulates per second.
    pub fn measured(&self) -> &[(Multiply, f64)] {
        &self.measured
    }

    /// What share of the limit of one core `macs` multiply-accumulates in `ns` nanoseconds are, by [`direct_products`];
    /// `None` for schedules without.
    ///
    /// # Errors
    /// As of [`macs_per_second`].
    pub fn share(&mut self, schedule: Schedule, macs: u64, ns: u64) -> Result<Option<f64>, CodegenError> {
        let Some(multiply) = direct_products(schedule, self.target).filter(|_| macs > 0 && ns > 0) else {
            return Ok(None);
        };
        let limit = match self.measured.iter().find(|(known, _)| *known == multiply) {
            Some(&(_, limit)) => limit,
            None => {
                let limit = macs_per_second(self.target, multiply)?;
                self.measured.push((multiply, limit));
                limit
            }
        };
        Ok(Some(macs as f64 / (ns as f64 / 1e9) / limit))
    }
}

/// How a schedule's convolution would be formed directly on `target`: what it is compared with. `None` for schedules
/// that multiply nothing, or in portable code.
fn direct_products(schedule: Schedule, target: &Target) -> Option<Multiply> {
    let multiply = match schedule {
        Schedule::Wide(wide) => wide.multiply,
        Schedule::Winograd(winograd) => winograd.multiply,
        Schedule::Strassen(_) => Multiply::Dot,
        _ => return None,
    };
    Some(if widest(target).is_some_and(|wide| wide.dot) { Multiply::Dot } else { multiply })
}

fn widest(target: &Target) -> Option<WideMachine> {
    machine(target).wide.into_iter().flatten().next()
}

/// Multiply-accumulates per second of one core, the median of many runs.
///
/// # Errors
/// The target has no vectors of 256 bits or no such products, or this machine cannot run its code.
fn macs_per_second(target: &Target, multiply: Multiply) -> Result<f64, CodegenError> {
    let wide = widest(target).filter(|wide| multiply != Multiply::Dot || wide.dot);
    let Some(wide) = wide else {
        let name = target.name();
        return Err(CodegenError::Internal(format!("target {name} has no such products to measure")));
    };
    let isa = Isa::of(wide);
    let sums = isa.registers() - OTHERS;
    let code = assemble(isa, multiply, wide.dot, sums).map_err(|e| CodegenError::Internal(e.to_string()))?;
    let mut module = jit_module(target, 1 << 20)?;
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    let id = define_code(&mut module, "limit", &signature, &code)?;
    let code = JitCode::finish(module)?;
    // SAFETY: the function was assembled above with one argument, of which it reads the first two words; it keeps the
    // registers that belong to the caller, and `code` keeps it mapped. `jit_module` refuses targets that cannot run here.
    let run = unsafe { std::mem::transmute::<*const u8, extern "C" fn(*const u64)>(code.function(id)) };
    let ones = [1i16; 32];
    let words = [ones.as_ptr() as u64, REPETITIONS as u64];
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < DURATION || times.len() < 3 {
        let began = Instant::now();
        run(words.as_ptr());
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let products = 4 * wide.lanes / multiply.operand_bytes();
    Ok((REPETITIONS * STEPS * sums * products) as f64 / times[times.len() / 2])
}

/// The loop. Its table: where ones of 16 bits are, how often.
fn assemble(isa: Isa, multiply: Multiply, dot: bool, sums: usize) -> Result<Vec<u8>, AsmError> {
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    let [from, count] = [0, 1].map(|word| a.argument(table, word));
    let sums = a.vecs(sums);
    sums.iter().for_each(|&sum| a.zero(sum));
    let [x, w] = [a.vec(), a.vec()];
    [x, w].into_iter().for_each(|v| a.load(v, Mem::at(from, 0)));
    let (products, ones) = (a.vecs(2), w);
    a.repeat_down(count, |a| {
        for step in 0..STEPS {
            for (i, &sum) in sums.iter().enumerate() {
                let product = products[(i + step) % products.len()];
                match multiply {
                    Multiply::Dot => a.dot_u8i8(sum, x, w),
                    Multiply::I16 if dot => a.dot_i16(sum, x, w),
                    Multiply::I16 => {
                        a.binary(Binary::Maddwd, product, x, w);
                        a.binary(Binary::AddI32, sum, sum, product);
                    }
                    Multiply::Sum16 | Multiply::Sum32 => {
                        a.binary(Binary::Maddubs, product, x, w);
                        if multiply == Multiply::Sum32 {
                            a.binary(Binary::Maddwd, product, product, ones);
                        }
                        let add = if multiply == Multiply::Sum16 { Binary::AddI16 } else { Binary::AddI32 };
                        a.binary(add, sum, sum, product);
                    }
                }
            }
        }
    });
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_product_of_this_machine_has_a_limit() {
        let target = Target::host().unwrap();
        let Some(wide) = widest(&target) else {
            println!("SKIPPED: this machine has no vectors of 256 bits");
            return;
        };
        for multiply in Multiply::ALL {
            let rate = macs_per_second(&target, multiply);
            assert_eq!(rate.is_ok(), multiply != Multiply::Dot || wide.dot);
            assert!(rate.is_ok_and(|rate| rate > 1e6) || multiply == Multiply::Dot);
        }
    }

    #[test]
    fn a_schedule_is_compared_with_direct_products() {
        let target = Target::parse("x86-avx512").unwrap();
        let schedule: Schedule = "winograd mul=i16 m=4x4 mr=6 nr=2 rows=2 blocks=4".parse().unwrap();
        assert_eq!(direct_products(schedule, &target), Some(Multiply::Dot));
        let target = Target::parse("x86-64-v3").unwrap();
        assert_eq!(direct_products(schedule, &target), Some(Multiply::I16));
        assert_eq!(direct_products(Schedule::Default, &target), None);
    }
}
