//! Dense convolution: any stride, dilation, padding and number of groups.
//!
//! The result is computed in tiles of `mr` pixels by `nr` vectors of four output channels, the
//! accumulators in registers over all taps and input channels. Pixels are counted through the whole
//! batch; beyond the last pixel a tile repeats it, so every tile is full and all its stores are to the
//! result. A pixel's taps are read where they lie; a tap in the padding reads a constant row of
//! the padding's value instead. Where the input channels of a group are not a multiple of four, the
//! patches of a unit's pixels are first gathered into scratch memory ([`super::gather`]) and then read as one tap.
//!
//! Weights are packed at compile time as `[group][channel block][tap][step][nr vectors]` (see
//! [`super::products`]), output channels of a group padded to whole blocks with zeros.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Tensor, Window};
use hawqc_schedules::{ConvSchedule, Schedule};

use super::emit::{Code, LANES};
use super::epilogue::{Epilogue, Site, Slots};
use super::gather::Gather;
use super::products::{Products, STEP, sum_shift, vector_bytes, weight_storage};
use super::{Body, Dst, Frame, Lowered, Table};
use crate::error::Unsupported;
use crate::target::Target;

/// Sizes of a convolution, per group where the name says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub batch: usize,
    /// Input `[H, W]`.
    pub size: [usize; 2],
    pub out: [usize; 2],
    pub channels: usize,
    pub groups: usize,
    pub group_in: usize,
    pub group_out: usize,
    pub window: Window,
    pub pad_value: i32,
    pub src: Elem,
    /// How weights are stored.
    pub wei: Elem,
}

impl Geometry {
    /// Of a spec whose first step is a convolution; also the operands of its source and weights, and
    /// of its bias.
    pub fn of(spec: &KernelSpec) -> Result<(Geometry, [usize; 2], Option<usize>), Unsupported> {
        let step = &spec.steps()[0];
        let (src, wei, bias) = match (&step.op, step.args.as_slice()) {
            (Op::Conv(_), [Arg::Operand(src), Arg::Operand(wei)]) => (*src, *wei, None),
            (Op::Conv(_), [Arg::Operand(src), Arg::Operand(wei), Arg::Operand(bias)]) => (*src, *wei, Some(*bias)),
            _ => return Err(Unsupported::new("a convolution of other than the kernel's operands")),
        };
        let Op::Conv(conv) = &step.op else {
            return Err(Unsupported::new("not a convolution"));
        };
        let (src_ty, wei_ty) = (&spec.operands()[src], &spec.operands()[wei]);
        let ([n, h, w, c], [k, kh, kw, cg], [_, oh, ow, _]) = (src_ty.nhwc()?, wei_ty.nhwc()?, step.ty.nhwc()?);
        let geometry = Geometry {
            batch: n,
            size: [h, w],
            out: [oh, ow],
            channels: c,
            groups: conv.groups,
            group_in: cg,
            group_out: k / conv.groups,
            window: conv.window([kh, kw]),
            pad_value: conv.pad_value,
            src: src_ty.elem,
            wei: weight_storage(wei_ty.elem, step.ty.int_range()?),
        };
        Ok((geometry, [src, wei], bias))
    }

    /// The weights, and the values of the bias if there is one; both must be constant.
    pub fn constants<'t>(
        constants: &[Option<&'t Tensor>],
        wei: usize,
        bias: Option<usize>,
    ) -> Result<(&'t Tensor, Option<Vec<i64>>), Unsupported> {
        let constant = |operand: usize| {
            let missing = || Unsupported::new("a convolution whose weights or bias are not constant");
            constants.get(operand).copied().flatten().ok_or_else(missing)
        };
        let bias = bias.map(constant).transpose()?.map(Tensor::ints).transpose()?;
        Ok((constant(wei)?, bias))
    }

    pub fn pixels(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    pub fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    pub fn channels_out(&self) -> usize {
        self.groups * self.group_out
    }

    pub fn macs(&self) -> u64 {
        (self.pixels() * self.channels_out()) as u64 * (self.taps() * self.group_in) as u64
    }

    pub fn pixel_bytes(&self) -> usize {
        self.channels * self.src.bytes()
    }

    /// Whether some tap of some pixel lies in the padding.
    pub fn is_padded(&self) -> bool {
        self.window.pad != [0; 4]
    }

    /// `count` values of padding.
    pub fn pad_row(&self, count: usize) -> Vec<u8> {
        self.pad_value.to_le_bytes()[..self.src.bytes()].repeat(count)
    }

    /// `(row, column)` of the first tap of pixel `pixel` of the batch, possibly negative, and the
    /// address of its image.
    pub fn origin(&self, c: &mut Code, src: Value, pixel: Value) -> (Value, Value, Value) {
        let [oh, ow] = self.out;
        let (image, pixel) = if self.batch == 1 {
            (None, pixel)
        } else {
            let (image, rest) = c.div_rem(pixel, oh * ow);
            (Some(image), rest)
        };
        let (oy, ox) = c.div_rem(pixel, ow);
        let (y, x) = (c.mul_int(oy, self.window.stride[0]), c.mul_int(ox, self.window.stride[1]));
        let (y, x) = (c.sub_int(y, self.window.pad[0]), c.sub_int(x, self.window.pad[1]));
        let base = match image {
            None => src,
            Some(image) => c.offset(src, image, self.size[0] * self.size[1] * self.pixel_bytes()),
        };
        (y, x, base)
    }
}

struct Conv {
    geometry: Geometry,
    schedule: ConvSchedule,
    products: Products,
    epilogue: Epilogue,
    dst: Dst,
    gather: Option<Gather>,
}

const WEIGHTS: usize = 0;
const BIAS: usize = 1;
const PAD: usize = 2;
const FIRST_EPILOGUE_TABLE: usize = 3;

pub(super) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    target: &Target,
    schedule: Schedule,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let Schedule::Conv(schedule) = schedule else {
        return Err(Unsupported::new(format!("schedule `{schedule}` for a dense convolution")));
    };
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let pad = i64::from(geometry.pad_value);
    let range = spec.operands()[src].int_range()?.union(Range::new(pad, pad));
    let products = Products::choose(target.dot(), geometry.src, range, geometry.wei);
    let order = block_order(&geometry, schedule.nr);
    let gather = (geometry.group_in % STEP != 0).then(|| Gather::new(geometry));
    let slots = Slots { operand: 1, table: FIRST_EPILOGUE_TABLE, order: Some(&order) };
    let (epilogue, requant_tables) = Epilogue::new(spec, 1, constants, slots)?;
    let weights = weights.ints()?;
    let packed = pack(&geometry, schedule.nr, products, gather.is_some(), &weights);
    let pad_values = geometry.group_in.max(gather.as_ref().map_or(0, Gather::pad_values));
    let mut tables = vec![
        Table { bytes: packed, is_weights: true },
        Table::new(start_values(&geometry, products, &order, &weights, bias.as_deref())),
        Table::new(geometry.pad_row(pad_values)),
    ];
    tables.extend(requant_tables);
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let conv = Conv { geometry, schedule, products, epilogue, dst, gather };
    Ok(Lowered {
        family: "conv",
        operands,
        tables,
        forms: conv.epilogue.form(),
        second: conv.epilogue.has_second(),
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: conv.gather.as_ref().map_or(0, |g| g.pixel_bytes() * schedule.tiles * schedule.mr),
        units: conv.pixel_blocks() * conv.channel_groups(),
        work: geometry.macs() / 16,
        macs: geometry.macs(),
        is_border: false,
        body: Box::new(conv),
    })
}

/// The output channel at each place of the padded order `[group][block][4 nr]`.
fn block_order(geometry: &Geometry, nr: usize) -> Vec<Option<usize>> {
    let padded = geometry.group_out.next_multiple_of(LANES * nr);
    let channel = |group: usize, k: usize| (k < geometry.group_out).then_some(group * geometry.group_out + k);
    (0..geometry.groups).flat_map(|group| (0..padded).map(move |k| channel(group, k))).collect()
}

/// Packs `[K, KH, KW, C/groups]` weights. `flat`: a gathered patch is one tap of all its values.
fn pack(geometry: &Geometry, nr: usize, products: Products, flat: bool, weights: &[i64]) -> Vec<u8> {
    let row = geometry.taps() * geometry.group_in;
    let (taps, depth) = if flat { (1, row) } else { (geometry.taps(), geometry.group_in) };
    let blocks = geometry.group_out.div_ceil(LANES * nr);
    let mut out = Vec::new();
    for group in 0..geometry.groups {
        for block in 0..blocks {
            for tap in 0..taps {
                for step in (0..depth).step_by(STEP) {
                    let weight = |k: usize, c: usize| {
                        let (k, c) = (block * LANES * nr + k, step + c);
                        let inside = k < geometry.group_out && c < depth;
                        if inside { weights[(group * geometry.group_out + k) * row + tap * depth + c] } else { 0 }
                    };
                    products.pack(geometry.wei, nr, weight, &mut out);
                }
            }
        }
    }
    out
}

/// The accumulators' start, in block order: the bias and the products' compensation in the scale of
/// the sums, modulo 2^32.
fn start_values(
    geometry: &Geometry,
    products: Products,
    order: &[Option<usize>],
    weights: &[i64],
    bias: Option<&[i64]>,
) -> Vec<u8> {
    let row = geometry.taps() * geometry.group_in;
    let start = |channel: Option<usize>| {
        channel.map_or(0, |k| {
            let sum: i64 = weights[k * row..][..row].iter().sum();
            (bias.map_or(0, |b| b[k]) + products.compensation() * sum) << sum_shift(geometry.wei)
        })
    };
    order.iter().flat_map(|&channel| (start(channel) as i32).to_le_bytes()).collect()
}

impl Conv {
    fn tiles(&self) -> usize {
        self.geometry.pixels().div_ceil(self.schedule.mr)
    }

    fn pixel_blocks(&self) -> usize {
        self.tiles().div_ceil(self.schedule.tiles)
    }

    fn blocks_per_group(&self) -> usize {
        self.geometry.group_out.div_ceil(LANES * self.schedule.nr)
    }

    fn blocks(&self) -> usize {
        self.geometry.groups * self.blocks_per_group()
    }

    fn channel_groups(&self) -> usize {
        self.blocks().div_ceil(self.schedule.blocks)
    }

    /// Steps of one tap.
    fn depth(&self) -> usize {
        self.gather.as_ref().map_or(self.geometry.group_in, Gather::depth)
    }

    fn step_bytes(&self) -> usize {
        vector_bytes(self.geometry.wei) * self.schedule.nr
    }

    fn block_bytes(&self) -> usize {
        let taps = if self.gather.is_some() { 1 } else { self.geometry.taps() };
        taps * self.depth() / STEP * self.step_bytes()
    }
}

/// The channel block and the pixels that tiles are computed for.
struct Place {
    /// Of the block in block order.
    padded_channel: Value,
    channel: Value,
    group: Value,
    weights: Value,
    bias: Value,
    /// First pixel of the unit.
    first_pixel: Value,
    lanes: usize,
}

impl Body for Conv {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let mut outcome = Ok(());
        frame.units(c, |c, unit| outcome = self.unit(c, frame, unit));
        outcome
    }
}

impl Conv {
    fn unit(&self, c: &mut Code, frame: &Frame, unit: Value) -> Result<(), Unsupported> {
        let ConvSchedule { mr, nr, tiles, blocks } = self.schedule;
        let (pixel_block, channel_group) = c.div_rem(unit, self.channel_groups());
        let first_tile = c.mul_int(pixel_block, tiles);
        let end_tile = c.add_int(first_tile, tiles);
        let end_tile = c.min_int(end_tile, self.tiles());
        let first_pixel = c.mul_int(first_tile, mr);
        if let Some(gather) = &self.gather {
            let end_pixel = c.mul_int(end_tile, mr);
            let end_pixel = c.min_int(end_pixel, self.geometry.pixels());
            gather.emit(c, frame.operands[0], frame.tables[PAD], frame.scratch, (first_pixel, end_pixel));
        }
        let first_block = c.mul_int(channel_group, blocks);
        let end_block = c.add_int(first_block, blocks);
        let end_block = c.min_int(end_block, self.blocks());
        let one = c.int(1);
        let mut outcome = Ok(());
        c.range(first_block, end_block, one, |c, block| {
            let (group, inner) = c.div_rem(block, self.blocks_per_group());
            let channel = c.mul_int(group, self.geometry.group_out);
            let place = |lanes: usize, c: &mut Code| Place {
                padded_channel: c.mul_int(block, LANES * nr),
                channel: c.offset(channel, inner, LANES * nr),
                group,
                weights: c.offset(frame.tables[WEIGHTS], block, self.block_bytes()),
                bias: c.offset(frame.tables[BIAS], block, 16 * nr),
                first_pixel,
                lanes,
            };
            let mut run = |c: &mut Code, lanes: usize| {
                let place = place(lanes, c);
                c.range(first_tile, end_tile, one, |c, tile| {
                    let result = self.tile(c, frame, &place, tile);
                    outcome = std::mem::replace(&mut outcome, Ok(())).and(result);
                });
            };
            let full = LANES * nr;
            let rest = self.geometry.group_out % full;
            if rest == 0 {
                run(c, full);
            } else if self.blocks_per_group() == 1 {
                run(c, rest);
            } else {
                let is_full = c.below(inner, self.blocks_per_group() - 1);
                let (run, other) = (std::cell::RefCell::new(run), rest);
                c.if_else(is_full, |c| (run.borrow_mut())(c, full), |c| (run.borrow_mut())(c, other));
            }
        });
        outcome
    }

    fn tile(&self, c: &mut Code, frame: &Frame, place: &Place, tile: Value) -> Result<(), Unsupported> {
        let mr = self.schedule.mr;
        let vectors = place.lanes.div_ceil(LANES);
        let first = c.mul_int(tile, mr);
        let pixels: Vec<Value> = (0..mr)
            .map(|p| {
                let pixel = c.add_int(first, p);
                if self.geometry.pixels().is_multiple_of(mr) {
                    pixel
                } else {
                    c.min_int(pixel, self.geometry.pixels() - 1)
                }
            })
            .collect();
        // Accumulators are ordered [vector][pixel].
        let start: Vec<Value> = (0..vectors)
            .flat_map(|vector| {
                let bias = c.load(types::I32X4, place.bias, 16 * vector);
                std::iter::repeat_n(bias, mr)
            })
            .collect();
        let sums = c.shielded(&start, |c, start| match &self.gather {
            Some(gather) => {
                let patch = |c: &mut Code, p| gather.patch(c, frame.scratch, p, place.first_pixel, place.group);
                let addresses: Vec<Value> = pixels.iter().map(|&p| patch(c, p)).collect();
                self.steps(c, &addresses, place.weights, start).1
            }
            None => self.taps(c, frame, place, &pixels, start),
        });
        for (p, &pixel) in pixels.iter().enumerate() {
            let values: Vec<Value> = (0..vectors)
                .map(|vector| match sum_shift(self.geometry.wei) {
                    0 => sums[vector * mr + p],
                    shift => c.b.ins().sshr_imm_u(sums[vector * mr + p], i64::from(shift)),
                })
                .collect();
            let element = c.offset(place.channel, pixel, self.geometry.channels_out());
            let in_image = if self.epilogue.per_pixel() {
                c.div_rem(pixel, self.geometry.out[0] * self.geometry.out[1]).1
            } else {
                pixel
            };
            let site = Site { element, channel: place.padded_channel, pixel: in_image, lanes: place.lanes };
            let values = self.epilogue.apply(c, frame, site, values)?;
            self.dst.store(c, frame.dst, [pixel, place.channel], &values, place.lanes);
        }
        Ok(())
    }

    /// Sums over all taps, reading the source where it lies.
    fn taps(&self, c: &mut Code, frame: &Frame, place: &Place, pixels: &[Value], start: &[Value]) -> Vec<Value> {
        let geometry = &self.geometry;
        let ([kh, kw], [h, w]) = (geometry.window.kernel, geometry.size);
        let pixel_bytes = geometry.pixel_bytes();
        let group_offset = c.mul_int(place.group, geometry.group_in * geometry.src.bytes());
        let origins: Vec<(Value, Value, Value)> = pixels
            .iter()
            .map(|&pixel| {
                let (y, x, base) = geometry.origin(c, frame.operands[0], pixel);
                (y, x, c.add(base, group_offset))
            })
            .collect();
        let mut carried = vec![place.weights];
        carried.extend_from_slice(start);
        let sums = c.count_with(kh, 1, &carried, |c, ky, carried| {
            let dy = c.mul_int(ky, geometry.window.dilation[0]);
            let rows: Vec<(Value, Value)> = origins
                .iter()
                .map(|&(y0, _, base)| {
                    let y = c.add(y0, dy);
                    (c.below(y, h), c.offset(base, y, w * pixel_bytes))
                })
                .collect();
            c.count_with(kw, 1, carried, |c, kx, carried| {
                let dx = c.mul_int(kx, geometry.window.dilation[1]);
                let addresses: Vec<Value> = origins
                    .iter()
                    .zip(&rows)
                    .map(|(&(_, x0, _), &(row_inside, row))| {
                        let x = c.add(x0, dx);
                        let address = c.offset(row, x, pixel_bytes);
                        if !geometry.is_padded() {
                            return address;
                        }
                        let column_inside = c.below(x, w);
                        let inside = c.and(row_inside, column_inside);
                        c.select(inside, address, frame.tables[PAD])
                    })
                    .collect();
                let (weights, sums) = self.steps(c, &addresses, carried[0], &carried[1..]);
                [vec![weights], sums].concat()
            })
        });
        sums[1..].to_vec()
    }

    /// Adds the products of one tap, its input at `addresses` and its weights from `weights` on;
    /// returns the address behind those weights and the new sums.
    fn steps(&self, c: &mut Code, addresses: &[Value], weights: Value, sums: &[Value]) -> (Value, Vec<Value>) {
        let (products, src, wei) = (self.products, self.geometry.src, self.geometry.wei);
        let mr = addresses.len();
        let mut carried = vec![weights];
        carried.extend_from_slice(sums);
        let out = c.count_with(self.depth(), STEP, &carried, |c, i, carried| {
            let inputs: Vec<Vec<Value>> = addresses
                .iter()
                .map(|&address| {
                    let address = c.offset(address, i, src.bytes());
                    products.load_input(c, src, address)
                })
                .collect();
            let all = products.load_weights(c, wei, carried[0], sums.len() / mr);
            let mut next = vec![c.add_int(carried[0], self.step_bytes())];
            for (index, &sum) in carried[1..].iter().enumerate() {
                next.push(products.multiply(c, sum, &inputs[index % mr], &all[index / mr]));
            }
            next
        });
        (out[0], out[1..].to_vec())
    }
}
