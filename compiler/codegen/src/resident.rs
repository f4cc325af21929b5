//! Which kernels give up weights that were transformed ahead of time, so that a program's constants fit a limit.

use std::collections::BTreeSet;

use hawqc_ir::{Elem, Op, ValueId};
use hawqc_schedules::ConvGeometry;

use crate::program::{Program, Step};

/// The values whose kernels are to use plain weights: those that win the most memory for the fewest
/// multiply-accumulates first, as many as `limit` asks for, or all.
pub fn to_leave_plain(program: &Program, limit: usize) -> BTreeSet<ValueId> {
    let won = |step: &Step| {
        let kernel = &program.kernels[step.kernel];
        let is_transformed = kernel.schedule.transforms_weights();
        let plain = plain_bytes(program, step.value).filter(|_| is_transformed)?;
        let weights = step.tables.iter().map(|&table| &program.constants[table]).filter(|c| c.is_weights);
        let bytes = weights.map(|c| c.bytes.len()).sum::<usize>().saturating_sub(plain);
        Some((bytes, kernel.lowered.macs.max(1), step.value))
    };
    let mut all: Vec<(usize, u64, ValueId)> = program.steps.iter().filter_map(won).collect();
    // Of two, the one that wins more bytes for each multiply-accumulate.
    all.sort_by(|a, b| (b.0 as u128 * u128::from(a.1)).cmp(&(a.0 as u128 * u128::from(b.1))));
    let mut bytes = program.constant_bytes();
    let needed = all.into_iter().take_while(|&(won, ..)| {
        let is_needed = bytes > limit;
        bytes = bytes.saturating_sub(won);
        is_needed
    });
    needed.map(|(.., value)| value).collect()
}

/// Bytes of a dense convolution's weights as they are packed.
fn plain_bytes(program: &Program, value: ValueId) -> Option<usize> {
    let Op::Kernel(spec) = program.graph.op(value) else {
        return None;
    };
    let geometry = ConvGeometry::of(spec)?;
    let weights = geometry.channels * geometry.groups * geometry.depth;
    Some(if geometry.wei == Elem::I4 { weights.div_ceil(2) } else { weights * geometry.wei.bytes() })
}

#[cfg(test)]
mod tests {
    use hawqc_ir::Rounding;

    use super::*;
    use crate::error::CodegenError;
    use crate::program::Options;
    use crate::target::Target;
    use crate::tests::conv::Build;

    #[test]
    fn transformed_weights_give_way() {
        let mut build = Build::new(Elem::U8, Elem::I8, [28, 28], 64, 64, [3, 3]);
        build.op.pad = [1, 1, 1, 1];
        give_way(&build, "x86-64-v3", 36 * 64 * 64 * 2);
        let build = Build::new(Elem::U4, Elem::I4, [8, 8], 512, 64, [1, 1]);
        give_way(&build, "x86-avx512", 7 * 512 * 64 / 4);
    }

    /// Transformed weights of `bytes` give way to plain ones where a limit leaves no room for them.
    fn give_way(build: &Build, target: &str, bytes: usize) {
        let (graph, _) = build.requantised(Elem::U8, Rounding::HalfUp).graph();
        let within = |max_resident: Option<usize>| {
            let options = Options { max_resident, ..Options::new(Target::parse(target).unwrap()) };
            let program = Program::new(&graph, &options)?;
            let step = &program.steps[0];
            let is_transformed = program.kernels[step.kernel].schedule.transforms_weights();
            Ok::<_, CodegenError>((is_transformed, program.constant_bytes(), step.notes.join("\n")))
        };
        let (is_transformed, free, _) = within(None).unwrap();
        assert!(is_transformed && free > bytes);
        assert_eq!(within(Some(free)).unwrap().1, free);
        let (is_transformed, least, notes) = within(Some(free - 1)).unwrap();
        assert!(!is_transformed && least < free && notes.contains("beyond the limit of memory"), "{notes}");
        let error = within(Some(least - 1)).unwrap_err();
        assert!(matches!(error, CodegenError::Resident { bytes, limit } if bytes == least && limit == least - 1));
    }
}
