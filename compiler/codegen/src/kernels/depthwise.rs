//! Depthwise convolution: one input and one output channel per group.
//!
//! Weights are packed at compile time as `[tap][C]`, the channels padded with zeros to whole chunks.

use cranelift_codegen::ir::InstBuilder;
use hawqc_ir::{Elem, KernelSpec, Tensor};

use super::conv::Geometry;
use super::emit::{CHUNK, Code};
use super::epilogue::{Epilogue, Slots};
use super::rows::Rows;
use super::{Body, Frame, Lowered, Table};
use crate::error::Unsupported;

struct Depthwise {
    geometry: Geometry,
    rows: Rows,
    epilogue: Epilogue,
    dst: Elem,
    /// How the weights are stored.
    weight: Elem,
}

const WEIGHTS: usize = 0;
const BIAS: usize = 1;
const PAD: usize = 2;

pub(super) fn lower(spec: &KernelSpec, constants: &[Option<&Tensor>]) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let slots = Slots { operand: 1, table: 3, order: None };
    let (epilogue, requant_tables) = Epilogue::new(spec, 1, constants, slots)?;
    let (weights, taps) = (weights.ints()?, geometry.taps());
    let (channels, padded) = (geometry.channels, geometry.channels.next_multiple_of(CHUNK));
    let weight = if geometry.wei == Elem::I16 { Elem::I16 } else { Elem::I8 };
    let value = |tap: usize, k: usize| if k < channels { weights[k * taps + tap] } else { 0 };
    let packed = (0..taps).flat_map(|tap| (0..padded).map(move |k| (tap, k)));
    let packed = packed.flat_map(|(tap, k)| value(tap, k).to_le_bytes()[..weight.bytes()].to_vec()).collect();
    let mut start = bias.unwrap_or_default();
    start.resize(padded, 0);
    let mut tables = vec![
        Table { bytes: packed, is_weights: true },
        Table::new(start.iter().flat_map(|&b| (b as i32).to_le_bytes()).collect()),
        Table::new(geometry.pad_row(CHUNK)),
    ];
    tables.extend(requant_tables);
    let image = geometry.out[0] * geometry.out[1];
    let rows = Rows { pixels: geometry.pixels(), channels, image, cost: taps + spec.steps().len() };
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    Ok(Lowered {
        family: "depthwise",
        operands,
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: 0,
        units: rows.units(),
        work: rows.work(),
        macs: geometry.macs(),
        is_border: false,
        body: Box::new(Depthwise { geometry, rows, epilogue, dst: spec.result().elem, weight }),
    })
}

impl Body for Depthwise {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let padded = self.geometry.channels.next_multiple_of(CHUNK);
        self.rows.emit(c, frame, self.epilogue.per_pixel(), |c, pixel, site| {
            let bias = c.offset(frame.tables[BIAS], site.channel, Elem::I32.bytes());
            let weights = c.offset(frame.tables[WEIGHTS], site.channel, self.weight.bytes());
            let whole = site.lanes.next_multiple_of(4);
            let start = c.load_chunk(Elem::I32, bias, whole);
            let place = (pixel, site.channel, site.lanes);
            let addresses = (frame.operands[0], frame.tables[PAD]);
            let values = self.geometry.fold_taps(c, addresses, place, &start, |c, tap, input, acc| {
                let weights = c.offset(weights, tap, padded * self.weight.bytes());
                let weights = c.load_chunk(self.weight, weights, whole);
                (0..acc.len())
                    .map(|i| {
                        let product = c.b.ins().imul(input[i], weights[i]);
                        c.b.ins().iadd(acc[i], product)
                    })
                    .collect()
            });

            let values = self.epilogue.apply(c, frame, site, values)?;
            let dst = c.offset(frame.dst, site.element, self.dst.bytes());
            c.store_chunk(self.dst, &values, dst, site.lanes);
            Ok(())
        })
    }
}
