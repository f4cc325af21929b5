//! Pointwise steps alone, over one or more operands of the result's shape.

use hawqc_ir::{Elem, KernelSpec, Tensor};

use super::emit::Code;
use super::epilogue::{Epilogue, Slots};
use super::rows::Rows;
use super::{Body, Frame, Lowered};
use crate::error::Unsupported;

struct Pointwise {
    rows: Rows,
    epilogue: Epilogue,
    dst: Elem,
}

pub(super) fn lower(spec: &KernelSpec, constants: &[Option<&Tensor>]) -> Result<Lowered, Unsupported> {
    let (epilogue, tables) = Epilogue::new(spec, 0, constants, Slots { operand: 0, table: 0, order: None })?;
    let out = spec.result();
    let mut channels = out.shape.last().copied().unwrap_or(1);
    if epilogue.is_uniform() {
        // The shape does not matter, so rows are made long.
        let fitting = [4096, 1024, 256, 64, 16].into_iter().find(|&n| out.elements().is_multiple_of(n));
        channels = fitting.unwrap_or(if out.elements() < 4096 { out.elements() } else { channels });
    }
    let image = out.nhwc().map_or(1, |[_, h, w, _]| h * w);
    let rows = Rows { pixels: out.elements() / channels, channels, image, cost: spec.steps().len() };
    Ok(Lowered {
        family: "pointwise",
        operands: epilogue.operands(),
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: 0,
        units: rows.units(),
        work: rows.work(),
        macs: 0,
        is_border: false,
        body: Box::new(Pointwise { rows, epilogue, dst: out.elem }),
    })
}

impl Body for Pointwise {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        self.rows.emit(c, frame, self.epilogue.per_pixel(), |c, _, site| {
            let values = self.epilogue.apply(c, frame, site, Vec::new())?;
            let dst = c.offset(frame.dst, site.element, self.dst.bytes());
            c.store_chunk(self.dst, &values, dst, site.lanes);
            Ok(())
        })
    }
}
