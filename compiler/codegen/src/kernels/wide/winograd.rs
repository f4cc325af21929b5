//! Convolution by an exact integer Winograd algorithm in lanes of 8 or 16 bits.
//!
//! A unit of work prepares its source rows ([`Source`]), transforms the inputs of its tiles to `[position][tile][C]`,
//! and then for every channel block multiplies each position's inputs with its weights ([`Positions`]) and transforms the
//! sums `[sum][tile][block]` to outputs with the epilogue ([`transform`]). With a stride, or with taps in runs, several
//! positions add to a sum.
//!
//! Whether a layer may be computed so is proved from its weights when it is compiled ([`prove`]); a layer that
//! cannot is refused, and another schedule serves.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::{KernelSpec, Range, Tensor};
use hawqc_schedules::winograd::{Kernel, Layer, Proof, Winograd2d, prove};
use hawqc_schedules::{ConvGeometry, DIRECT_MACS_PER_WORK, Machine, Multiply, Units, WinogradSchedule};

use super::call;
use super::epilogue::WideEpilogue;
use super::positions::{Buffers, FIRST_EPILOGUE_TABLE, Group, LITERALS, Order, Positions};
use super::source::Source;
use super::transform::{InputLayout, Outputs, add_literals, assemble_input, assemble_output};
use super::window::Window;
use crate::asm::{AsmError, Isa};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::{Code, UnitPlace};
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered};

struct Winograd {
    /// What makes each position's transformed inputs unsigned, in lanes of 8 bits.
    offsets: Vec<i64>,
    geometry: Geometry,
    isa: Isa,
    schedule: WinogradSchedule,
    units: Units,
    algorithm: Winograd2d,
    source: Source,
    order: Order,
    positions: Positions,
    dst: Dst,
    /// Rows and columns in the result of each output transform, the leaves behind the products'; the input transform is last.
    outputs: Vec<[usize; 2]>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

pub fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    schedule: WinogradSchedule,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let found = ConvGeometry::of(spec).and_then(|conv| conv.dense_machine(machine).map(|wide| (conv, wide)));
    let Some((conv, wide)) = found else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    let isa = Isa::of(wide);
    let kernel = Kernel { taps: geometry.window.kernel, stride: geometry.window.stride };
    let Some(member) = schedule.member(kernel) else {
        return Err(Unsupported::new(format!("`{schedule}` for this convolution")));
    };
    let weights = weights.ints()?;
    let (k, c) = (geometry.group_out, geometry.group_in);
    let pad = i64::from(geometry.pad_value);
    let layer = Layer {
        weights: &weights,
        shape: [k, geometry.window.kernel[0], geometry.window.kernel[1], c],
        src: spec.operands()[src].int_range()?.union(Range::new(pad, pad)),
        bias: bias.as_deref(),
    };
    let proof = prove(&member, &layer).map_err(|refusal| Unsupported::new(refusal.to_string()))?;
    let algorithm = member.algorithm;
    let transformed = algorithm.transform_weights(&weights, k, c);
    let Some(starts) = proof.starts(&transformed, k, bias.as_deref()) else {
        return Err(Unsupported::new(format!("{} with a bias", proof.member)));
    };
    let order = Order::of(&algorithm.sum_of(), algorithm.sums());
    let (transformed, starts) = (order.positions(&transformed), order.sums(&starts));
    let groups = groups(schedule.multiply, &proof, &order, (&transformed, [k, c]))?;
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    add_literals(&algorithm, schedule.lane(), &proof.offsets, &mut epilogue);
    // In the ring of the lanes, so bytes are right with or without sign.
    let overhang = (geometry.channels * schedule.multiply.operand_bytes()) % isa.bytes();
    let source = Source::new(tiled(&geometry, &algorithm), schedule.multiply.operand_bytes(), 0, overhang);
    let units = schedule.units(&conv, wide);
    let unit_tiles = units.rows.sizes().map(|(rows, _)| rows * grid(&geometry, &algorithm)[1]);
    let input_bytes = unit_tiles[0] * geometry.channels * schedule.multiply.operand_bytes();
    let positions = Positions {
        isa,
        multiply: schedule.multiply,
        dot: wide.dot,
        mr: schedule.mr,
        nr: schedule.nr,
        groups,
        unit_tiles,
        channels: [c, k],
        // The last vector of a tile's inputs may reach beyond them, over those of the next tile, which follow.
        inputs_bytes: input_bytes + isa.bytes(),
        products: Vec::new(),
    };
    let mut tables = positions.tables(&transformed, &starts);
    tables.push(epilogue.literal_table(isa));
    tables.extend(requant_tables);
    let mut winograd = Winograd {
        offsets: proof.offsets.clone(),
        geometry,
        isa,
        schedule,
        units,
        source,
        order,
        positions,
        dst,
        outputs: Vec::new(),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
        algorithm,
    };
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let none = WideEpilogue::none(spec)?;
    let leaves = winograd.leaves(&none, &epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "winograd",
        operands,
        tables,
        forms: format!("{}{:?}", epilogue.form(), winograd.positions.groups),
        second: epilogue.has_second(),
        proof: proof.to_string(),
        scratch_bytes: winograd.scratch().iter().sum(),
        units: units.count(),
        work: geometry.macs() / (2 * DIRECT_MACS_PER_WORK as u64),
        macs: geometry.macs(),
        is_border: false,
        leaves,
        body: Box::new(winograd),
    })
}

/// The sums, with how long those of 16 bits last. `transformed`: weights `[position][k][c]` in the order.
fn groups(
    multiply: Multiply,
    proof: &Proof,
    order: &Order,
    (transformed, [k, c]): (&[i64], [usize; 2]),
) -> Result<Vec<Group>, Unsupported> {
    let beyond = || Unsupported::new(format!("{proof}: sums of pairs beyond 16 bits"));
    let most = order.positions(&proof.inputs.iter().map(|range| range.hi).collect::<Vec<_>>());
    order.groups(|places, runs| match multiply {
        // A step adds a pair of products; the proof has the most in any order.
        Multiply::Sum32 if proof.pair_steps == 0 => Err(beyond()),
        Multiply::Sum16 => {
            let of_sum = |first: usize| {
                let most = most[first..][..runs].iter().copied().max().unwrap_or(0);
                let row =
                    move |ki: usize| (0..runs).flat_map(move |run| &transformed[((first + run) * k + ki) * c..][..c]);
                (0..k).map(move |ki| (row(ki).copied().collect::<Vec<i64>>(), most))
            };
            let sums: Vec<(Vec<i64>, i64)> = places.step_by(runs).flat_map(of_sum).collect();
            Window::longest(sums.iter().map(|(row, most)| (row.as_slice(), *most)), runs).ok_or_else(beyond)
        }
        _ => Ok(Window::All),
    })
}

/// Tiles of an image along height and width.
fn grid(geometry: &Geometry, algorithm: &Winograd2d) -> [usize; 2] {
    let m = algorithm.outputs();
    [0, 1].map(|axis| geometry.out[axis].div_ceil(m[axis]))
}

/// The convolution with as many outputs as whole tiles have.
fn tiled(geometry: &Geometry, algorithm: &Winograd2d) -> Geometry {
    let m = algorithm.outputs();
    Geometry { out: [0, 1].map(|axis| geometry.out[axis].next_multiple_of(m[axis])), ..*geometry }
}

impl Winograd {
    fn m(&self) -> [usize; 2] {
        self.algorithm.outputs()
    }

    fn grid(&self) -> [usize; 2] {
        grid(&self.geometry, &self.algorithm)
    }

    /// Scratch bytes of the transformed inputs, the sums and the prepared rows.
    fn scratch(&self) -> [usize; 3] {
        let [inputs, sums] = self.positions.scratch();
        let rows = self.source.scratch_bytes(self.units.rows.largest() * self.m()[0]);
        [inputs, sums, rows].map(|b| b.next_multiple_of(64))
    }

    fn leaves(&mut self, none: &WideEpilogue, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let mut leaves = self.positions.leaves(none)?;
        let m = self.m();
        let [rests, _] = [[0, 1].map(|axis| self.geometry.out[axis] % m[axis]), m];
        for rows in [m[0], rests[0]].into_iter().filter(|&r| r > 0) {
            for columns in [m[1], rests[1]].into_iter().filter(|&r| r > 0) {
                let outputs = Outputs {
                    dst: self.dst,
                    columns: self.geometry.out[1],
                    sums: bytes(self.order.sum_places(), self.positions.sums_bytes()),
                    valid: [rows, columns],
                };
                let code = assemble_output(self.isa, &self.algorithm, epilogue, &outputs)?;
                leaves.push(Leaf { name: format!("outputs.{rows}x{columns}"), code });
                self.outputs.push([rows, columns]);
            }
        }
        let layout = InputLayout {
            row: self.source.row_bytes(),
            pixel: self.positions.tile_input_bytes(),
            positions: bytes(self.order.position_places(), self.positions.inputs_bytes),
        };
        let lane = (self.schedule.lane(), self.offsets.as_slice());
        let code = assemble_input(self.isa, &self.algorithm, lane, epilogue, &layout)?;
        leaves.push(Leaf { name: "inputs".into(), code });
        Ok(leaves)
    }

    fn output(&self, frame: &Frame, valid: [usize; 2]) -> Result<FuncRef, Unsupported> {
        let found = self.outputs.iter().position(|&o| o == valid);
        let leaf = found.and_then(|i| frame.leaves.get(self.positions.products.len() + i));
        leaf.copied().ok_or_else(|| Unsupported::new(format!("no output transform of {valid:?}")))
    }
}

/// Where things of `each` bytes begin.
fn bytes(places: Vec<usize>, each: usize) -> Vec<usize> {
    places.into_iter().map(|place| place * each).collect()
}

/// A unit of work.
struct Unit {
    image: Value,
    /// First tile row, counted in the image.
    first_row: Value,
    /// Tile rows.
    rows: usize,
    /// Where its blocks begin and end.
    blocks: [Value; 2],
    inputs: Value,
    sums: Value,
    prepared: Value,
}

impl Body for Winograd {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let mut outcome = Ok(());
        frame.units(c, |c, unit| {
            let units = self.units;
            let UnitPlace { image, rows: [first_row, end_row], blocks } = c.place(units, unit);
            let [inputs, sums, _] = self.scratch();
            let sums_at = c.add_int(frame.scratch, inputs);
            let prepared = c.add_int(sums_at, sums);
            let unit =
                |rows: usize| Unit { image, first_row, rows, blocks, inputs: frame.scratch, sums: sums_at, prepared };
            let [(larger, _), (smaller, _)] = units.rows.sizes();
            outcome = if larger == smaller {
                self.unit(c, frame, &unit(larger))
            } else {
                let is_smaller = c.is_smaller(units.rows, [first_row, end_row]);
                c.either(is_smaller, |c, is_smaller| {
                    self.unit(c, frame, &unit(if is_smaller { smaller } else { larger }))
                })
            };
        });
        outcome
    }
}

impl Winograd {
    fn unit(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        self.transform_inputs(c, frame, unit)?;
        let tiles = unit.rows * self.grid()[1];
        let buffers = Buffers { inputs: unit.inputs, sums: unit.sums, tiles };
        self.positions.every_block(c, unit.blocks, |c, block, vectors| {
            self.positions.multiply(c, frame, &buffers, (block, vectors))?;
            self.transform_outputs(c, frame, unit, (block, vectors))
        })
    }

    fn transform_inputs(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        let Some(&leaf) = frame.leaves.last() else {
            return Err(Unsupported::new("no input transform"));
        };
        let geometry = &self.geometry;
        let image_bytes = geometry.size[0] * geometry.size[1] * geometry.pixel_bytes();
        let image = c.offset(frame.operands[0], unit.image, image_bytes);
        let m_rows = self.m()[0];
        let first = c.mul_int(unit.first_row, m_rows);
        let rows = c.int(self.source.rows(unit.rows * m_rows));
        let rows = self.source.prepare(c, image, first, rows, unit.prepared);
        let [down, across] = self.algorithm.steps();
        let vectors = c.int(self.positions.tile_input_bytes().div_ceil(self.isa.bytes()));
        let columns = self.grid()[1];
        let tile_bytes = self.positions.tile_input_bytes();
        c.count(unit.rows, 1, |c, row| {
            let from = c.offset(rows, row, down * self.source.row_bytes());
            let to = c.offset(unit.inputs, row, columns * tile_bytes);
            c.count(columns, 1, |c, column| {
                let from = c.offset(from, column, across * tile_bytes);
                let to = c.offset(to, column, tile_bytes);
                call(c, leaf, &[from, to, vectors, frame.tables[LITERALS]]);
            });
        });
        Ok(())
    }

    fn transform_outputs(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, vectors): (Value, usize),
    ) -> Result<(), Unsupported> {
        let (m, grid, out) = (self.m(), self.grid(), self.geometry.out);
        let mut outcome = Ok(());
        let rests = [0, 1].map(|axis| out[axis] % m[axis]);
        c.count(unit.rows, 1, |c, row| {
            let tile_row = c.add(unit.first_row, row);
            let of_row = |c: &mut Code, rows: usize| {
                let (whole, rest) = (out[1] / m[1], rests[1]);
                let tile = |c: &mut Code, column: Value, columns: usize| {
                    self.transform_output(c, frame, unit, (block, vectors), [row, column], [rows, columns])
                };
                let mut result = Ok(());
                if whole > 0 {
                    c.count(whole, 1, |c, column| result = tile(c, column, m[1]));
                }
                if rest > 0 {
                    let column = c.int(whole);
                    result = result.and(tile(c, column, rest));
                }
                result
            };
            outcome = match (rests[0], grid[0]) {
                (0, _) => of_row(c, m[0]),
                (rest, 1) => of_row(c, rest),
                (rest, all) => {
                    let is_whole = c.below(tile_row, all - 1);
                    c.either(is_whole, |c, is_whole| of_row(c, if is_whole { m[0] } else { rest }))
                }
            };
        });
        outcome
    }

    fn transform_output(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, vectors): (Value, usize),
        [row, column]: [Value; 2],
        valid: [usize; 2],
    ) -> Result<(), Unsupported> {
        let leaf = self.output(frame, valid)?;
        let ([m_rows, m_columns], [height, width]) = (self.m(), self.geometry.out);
        let tile = c.mul_int(row, self.grid()[1]);
        let tile = c.add(tile, column);
        let sums = c.offset(unit.sums, tile, self.positions.tile_sum_bytes());
        let y = c.add(unit.first_row, row);
        let y = c.mul_int(y, m_rows);
        let y = c.offset(y, unit.image, height);
        let x = c.mul_int(column, m_columns);
        let pixel = c.offset(x, y, width);
        let channel = c.mul_int(block, self.schedule.nr * self.isa.lanes());
        let element = c.offset(channel, pixel, self.geometry.channels_out());
        let to = self.dst.at(c, frame.dst, pixel, channel);
        let count = c.int(vectors);
        let mut words = vec![sums, to, count, frame.tables[LITERALS]];
        for (i, &bytes) in self.operand_bytes.iter().enumerate() {
            words.push(c.offset(frame.operands[1 + i], element, bytes));
        }
        for (i, &stride) in self.table_strides.iter().enumerate() {
            words.push(c.offset(frame.tables[FIRST_EPILOGUE_TABLE + i], block, stride * self.schedule.nr));
        }
        call(c, leaf, &words);
        Ok(())
    }
}
