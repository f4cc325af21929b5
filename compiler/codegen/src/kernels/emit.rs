//! A thin layer over Cranelift's function builder, so that kernels read like loop nests.
//!
//! In: a function under construction. Out: loops with carried values, address arithmetic, and loads
//! and stores of chunks of up to 16 consecutive elements as vectors of four `i32`.
//!
//! Nothing here reads or writes a byte beyond the elements named: a chunk's last, partial vector is
//! loaded and stored lane by lane.

use std::cell::RefCell;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::FunctionBuilder;
use hawqc_ir::Elem;
use hawqc_schedules::{Parts, Units};

/// Lanes of a vector of `i32`.
pub const LANES: usize = 4;
/// Most elements of a chunk.
pub const CHUNK: usize = 16;

/// A function under construction.
pub struct Code<'a> {
    pub b: FunctionBuilder<'a>,
}

/// The upper half of a product with this for `n > 1` is a quotient: [`Code::quotient`].
pub fn reciprocal(n: usize) -> u64 {
    // The ceiling of 2^64 / n.
    u64::MAX / n as u64 + 1
}

/// What a unit of work is.
pub struct UnitPlace {
    pub image: Value,
    /// Where the rows of the image and the blocks of channels begin and end.
    pub rows: [Value; 2],
    pub blocks: [Value; 2],
}

/// Memory that other stores of the function may change, of any alignment.
fn any_memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Memory that nothing changes while the function runs and that may be read at any time at which
/// the address exists.
fn constant_memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_readonly().with_can_move()
}

impl Code<'_> {
    pub fn int(&mut self, value: usize) -> Value {
        // Sizes are at most 2^31 elements of 8 bytes.
        self.b.ins().iconst(types::I64, value as i64)
    }

    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().iadd(a, b)
    }

    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().isub(a, b)
    }

    pub fn add_int(&mut self, a: Value, n: usize) -> Value {
        if n == 0 { a } else { self.b.ins().iadd_imm_s(a, n as i64) }
    }

    pub fn sub_int(&mut self, a: Value, n: usize) -> Value {
        if n == 0 { a } else { self.b.ins().iadd_imm_s(a, -(n as i64)) }
    }

    pub fn mul_int(&mut self, a: Value, n: usize) -> Value {
        match n {
            1 => a,
            n if n.is_power_of_two() => self.b.ins().ishl_imm_u(a, i64::from(n.trailing_zeros())),
            n => self.b.ins().imul_imm_s(a, n as i64),
        }
    }

    /// `base + index * scale`.
    pub fn offset(&mut self, base: Value, index: Value, scale: usize) -> Value {
        let scaled = self.mul_int(index, scale);
        self.add(base, scaled)
    }

    /// The smaller of two non-negative numbers.
    pub fn min_int(&mut self, a: Value, n: usize) -> Value {
        let n = self.int(n);
        self.b.ins().smin(a, n)
    }

    /// `(a / n, a % n)` for `0 <= a < 2^64 / n`, without a division.
    pub fn div_rem(&mut self, a: Value, n: usize) -> (Value, Value) {
        if n == 1 {
            let zero = self.int(0);
            return (a, zero);
        }
        let reciprocal = self.b.ins().iconst(types::I64, reciprocal(n).cast_signed());
        let quotient = self.quotient(a, reciprocal);
        let back = self.mul_int(quotient, n);
        let remainder = self.sub(a, back);
        (quotient, remainder)
    }

    /// `a / n` for the [`reciprocal`] of `n` and `0 <= a < 2^64 / n`.
    ///
    /// With r = ceil(2^64 / n), n * r = 2^64 + e with 0 <= e < n, so a * r / 2^64 = a / n + a * e / (n * 2^64), where the second
    /// term is below 1 / n: it does not reach the next integer.
    pub fn quotient(&mut self, a: Value, reciprocal: Value) -> Value {
        self.b.ins().umulhi(a, reciprocal)
    }

    /// The place of a unit.
    pub fn place(&mut self, units: Units, unit: Value) -> UnitPlace {
        let (row_unit, block_part) = self.div_rem(unit, units.blocks.count);
        let (image, row_part) = self.div_rem(row_unit, units.rows.count);
        UnitPlace { image, rows: self.part(units.rows, row_part), blocks: self.part(units.blocks, block_part) }
    }

    /// Where part `index` begins and ends.
    pub fn part(&mut self, parts: Parts, index: Value) -> [Value; 2] {
        let Parts { all, count } = parts;
        if count == 1 {
            return [self.int(0), self.int(all)];
        }
        if all.is_multiple_of(count) {
            let first = self.mul_int(index, all / count);
            return [first, self.add_int(first, all / count)];
        }
        let before = self.mul_int(index, all);
        let before = self.add_int(before, count - 1);
        let end = self.add_int(before, all);
        [before, end].map(|things| self.div_rem(things, count).0)
    }

    /// Whether a part is one of the smaller.
    pub fn is_smaller(&mut self, parts: Parts, [first, end]: [Value; 2]) -> Value {
        let size = self.sub(end, first);
        self.below(size, parts.largest())
    }

    /// What follows from the number of things of a part.
    pub fn of_part(&mut self, parts: Parts, part: [Value; 2], of: impl Fn(usize) -> usize) -> Value {
        let [larger, smaller] = parts.sizes().map(|(size, _)| of(size));
        if larger == smaller {
            return self.int(larger);
        }
        let is_smaller = self.is_smaller(parts, part);
        let (smaller, larger) = (self.int(smaller), self.int(larger));
        self.select(is_smaller, smaller, larger)
    }

    pub fn less(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::SignedLessThan, a, b)
    }

    /// Whether `0 <= a < n`.
    pub fn below(&mut self, a: Value, n: usize) -> Value {
        self.b.ins().icmp_imm_s(IntCC::UnsignedLessThan, a, n as i64)
    }

    pub fn and(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().band(a, b)
    }

    pub fn select(&mut self, condition: Value, yes: Value, no: Value) -> Value {
        self.b.ins().select(condition, yes, no)
    }

    fn jump(&mut self, block: Block, args: &[Value]) {
        let args: Vec<BlockArg> = args.iter().map(|&v| v.into()).collect();
        self.b.ins().jump(block, &args);
    }

    fn branch(&mut self, condition: Value, yes: (Block, &[Value]), no: (Block, &[Value])) {
        let block_args = |args: &[Value]| args.iter().map(|&v| v.into()).collect::<Vec<BlockArg>>();
        self.b.ins().brif(condition, yes.0, &block_args(yes.1), no.0, &block_args(no.1));
    }

    /// A block with one parameter for each of `like`.
    fn block_like(&mut self, like: &[Value]) -> Block {
        let block = self.b.create_block();
        for &value in like {
            let ty = self.b.func.dfg.value_type(value);
            self.b.append_block_param(block, ty);
        }
        block
    }

    /// `for i in (start..end).step_by(step)`, threading values through the iterations; returns the
    /// values after the last. Where `nonempty`, the caller knows that `start < end`.
    fn loop_with(
        &mut self,
        (start, end, step): (Value, Value, Value),
        nonempty: bool,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let mut entry = vec![start];
        entry.extend_from_slice(carried);
        let head = self.block_like(&entry);
        let exit = self.block_like(carried);
        if nonempty {
            self.jump(head, &entry);
        } else {
            let any = self.less(start, end);
            self.branch(any, (head, &entry), (exit, carried));
        }
        self.b.switch_to_block(head);
        let params = self.b.block_params(head).to_vec();
        let mut next = vec![params[0]];
        next.extend(body(self, params[0], &params[1..]));
        next[0] = self.add(params[0], step);
        let more = self.less(next[0], end);
        self.branch(more, (head, &next), (exit, &next[1..]));
        self.b.seal_block(head);
        self.b.seal_block(exit);
        self.b.switch_to_block(exit);
        self.b.block_params(exit).to_vec()
    }

    /// `for i in (0..count).step_by(step)`, `count > 0`, threading values through.
    pub fn count_with(
        &mut self,
        count: usize,
        step: usize,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let range = (self.int(0), self.int(count), self.int(step));
        if count <= step {
            return body(self, range.0, carried);
        }
        self.loop_with(range, true, carried, body)
    }

    /// Runs `body` inside two loops of one iteration each, threading values through.
    ///
    /// The register allocator spills where a loop is left, if there is such a place between a value's
    /// definition and the code that needs registers; without these loops the results of an
    /// innermost loop are spilled inside it. One loop is not enough.
    pub fn shielded(&mut self, carried: &[Value], body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>) -> Vec<Value> {
        let once = (self.int(0), self.int(1), self.int(1));
        self.loop_with(once, true, carried, |c, _, carried| {
            c.loop_with(once, true, carried, |c, _, carried| body(c, carried))
        })
    }

    /// `for i in (0..count).step_by(step)`; `count > 0`.
    pub fn count(&mut self, count: usize, step: usize, body: impl FnOnce(&mut Self, Value)) {
        self.count_with(count, step, &[], |c, i, _| {
            body(c, i);
            Vec::new()
        });
    }

    /// `for i in (start..end).step_by(step)`.
    pub fn range(&mut self, start: Value, end: Value, step: Value, body: impl FnOnce(&mut Self, Value)) {
        self.loop_with((start, end, step), false, &[], |c, i, _| {
            body(c, i);
            Vec::new()
        });
    }

    /// Runs `yes` or `no`.
    pub fn if_else(&mut self, condition: Value, yes: impl FnOnce(&mut Self), no: impl FnOnce(&mut Self)) {
        let (then, other, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.branch(condition, (then, &[]), (other, &[]));
        self.b.switch_to_block(then);
        self.b.seal_block(then);
        yes(self);
        self.jump(exit, &[]);
        self.b.switch_to_block(other);
        self.b.seal_block(other);
        no(self);
        self.jump(exit, &[]);
        self.b.seal_block(exit);
        self.b.switch_to_block(exit);
    }

    /// Emits `body` for both outcomes of a condition.
    pub fn either<E>(
        &mut self,
        condition: Value,
        mut body: impl FnMut(&mut Self, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let body = RefCell::new(&mut body);
        let (mut yes, mut no) = (Ok(()), Ok(()));
        self.if_else(condition, |c| yes = (body.borrow_mut())(c, true), |c| no = (body.borrow_mut())(c, false));
        yes.and(no)
    }

    pub fn load(&mut self, ty: Type, address: Value, offset: usize) -> Value {
        // Offsets are within one tile or one record.
        self.b.ins().load(ty, any_memory(), address, offset as i32)
    }

    /// A load from memory that nothing changes while the function runs. It may be moved to any
    /// place where `address` is known, so the address must be valid whenever it is computed.
    pub fn load_constant(&mut self, ty: Type, address: Value, offset: usize) -> Value {
        self.b.ins().load(ty, constant_memory(), address, offset as i32)
    }

    pub fn store(&mut self, value: Value, address: Value, offset: usize) {
        self.b.ins().store(any_memory(), value, address, offset as i32);
    }

    pub fn splat_int(&mut self, ty: Type, value: i64) -> Value {
        let lane = self.b.ins().iconst(ty.lane_type(), value & lane_mask(ty.lane_type()));
        self.b.ins().splat(ty, lane)
    }

    /// 16 equal bytes.
    pub fn splat_bytes(&mut self, byte: u8) -> Value {
        let constant = self.b.func.dfg.constants.insert([byte; 16][..].into());
        self.b.ins().vconst(types::I8X16, constant)
    }

    /// The same bits as another vector type.
    pub fn cast(&mut self, ty: Type, value: Value) -> Value {
        let little = MemFlagsData::new().with_endianness(cranelift_codegen::ir::Endianness::Little);
        if self.b.func.dfg.value_type(value) == ty { value } else { self.b.ins().bitcast(ty, little, value) }
    }

    /// Bytes of `a ++ b` chosen by `mask`.
    pub fn shuffle(&mut self, a: Value, b: Value, mask: [u8; 16]) -> Value {
        let (a, b) = (self.cast(types::I8X16, a), self.cast(types::I8X16, b));
        let mask = self.b.func.dfg.immediates.push(mask[..].into());
        self.b.ins().shuffle(a, b, mask)
    }

    /// An element as `i32`.
    pub fn load_element(&mut self, elem: Elem, address: Value, offset: usize) -> Value {
        let (flags, offset) = (any_memory(), offset as i32);
        match elem {
            Elem::U4 | Elem::U8 => self.b.ins().uload8(types::I32, flags, address, offset),
            Elem::I4 | Elem::I8 => self.b.ins().sload8(types::I32, flags, address, offset),
            Elem::I16 => self.b.ins().sload16(types::I32, flags, address, offset),
            Elem::I32 | Elem::F32 => self.b.ins().load(types::I32, flags, address, offset),
        }
    }

    /// Stores the low bits of an `i32`.
    pub fn store_element(&mut self, elem: Elem, value: Value, address: Value, offset: usize) {
        let (flags, offset) = (any_memory(), offset as i32);
        match elem.bytes() {
            1 => self.b.ins().istore8(flags, value, address, offset),
            2 => self.b.ins().istore16(flags, value, address, offset),
            _ => self.b.ins().store(flags, value, address, offset),
        };
    }

    /// [`Code::store_element`] at an offset that may be large.
    pub fn store_element_far(&mut self, elem: Elem, value: Value, address: Value, offset: usize) {
        let address = self.add_int(address, offset);
        self.store_element(elem, value, address, 0);
    }

    /// `a` in the lanes where `a` compares with `b` as said, `b` in the others.
    pub fn float_select(&mut self, condition: FloatCC, a: Value, b: Value) -> Value {
        let mask = self.b.ins().fcmp(condition, a, b);
        let mask = self.cast(types::F32X4, mask);
        self.b.ins().bitselect(mask, a, b)
    }

    /// `lanes` consecutive elements as vectors of four `i32`; lanes beyond are 0.
    pub fn load_chunk(&mut self, elem: Elem, address: Value, lanes: usize) -> Vec<Value> {
        (0..lanes.div_ceil(LANES))
            .map(|i| self.load_lanes(elem, address, i * LANES, (lanes - i * LANES).min(LANES)))
            .collect()
    }

    fn load_lanes(&mut self, elem: Elem, address: Value, first: usize, lanes: usize) -> Value {
        let at = first * elem.bytes();
        if lanes == LANES {
            return self.load_four(elem, address, at);
        }
        let value = self.load_element(elem, address, at);
        let mut vector = self.b.ins().scalar_to_vector(types::I32X4, value);
        for lane in 1..lanes {
            let value = self.load_element(elem, address, at + lane * elem.bytes());
            vector = self.b.ins().insertlane(vector, value, lane as u8);
        }
        vector
    }

    fn load_four(&mut self, elem: Elem, address: Value, at: usize) -> Value {
        match elem {
            Elem::I32 | Elem::F32 => self.load(types::I32X4, address, at),
            Elem::I16 => self.b.ins().sload16x4(any_memory(), address, at as i32),
            Elem::U4 | Elem::U8 | Elem::I4 | Elem::I8 => {
                let bytes = self.load(types::I32, address, at);
                let vector = self.b.ins().scalar_to_vector(types::I32X4, bytes);
                let vector = self.cast(types::I8X16, vector);
                if elem.is_signed() {
                    let vector = self.b.ins().swiden_low(vector);
                    self.b.ins().swiden_low(vector)
                } else {
                    let vector = self.b.ins().uwiden_low(vector);
                    self.b.ins().uwiden_low(vector)
                }
            }
        }
    }

    /// Stores the first `lanes` lanes of vectors of four `i32` as consecutive elements. Every value
    /// lies in the element's range.
    pub fn store_chunk(&mut self, elem: Elem, values: &[Value], address: Value, lanes: usize) {
        let mut first = 0;
        while first < lanes {
            let at = first * elem.bytes();
            let group = &values[first / LANES..];
            let left = lanes - first;
            first += match elem.bytes() {
                1 if left >= 16 => {
                    let vector = self.narrow(elem, [group[0], group[1], group[2], group[3]]);
                    self.store(vector, address, at);
                    16
                }
                1 if left >= LANES => {
                    let vector = self.narrow(elem, [group[0]; 4]);
                    self.store_low(types::I32, vector, address, at);
                    LANES
                }
                2 if left >= 8 => {
                    let vector = self.b.ins().snarrow(group[0], group[1]);
                    self.store(vector, address, at);
                    8
                }
                2 if left >= LANES => {
                    let vector = self.b.ins().snarrow(group[0], group[0]);
                    self.store_low(types::I64, vector, address, at);
                    LANES
                }
                4 if left >= LANES => {
                    self.store(group[0], address, at);
                    LANES
                }
                _ => {
                    for lane in 0..left.min(LANES) {
                        let value = self.b.ins().extractlane(group[0], lane as u8);
                        self.store_element(elem, value, address, at + lane * elem.bytes());
                    }
                    LANES
                }
            };
        }
    }

    /// Four vectors of `i32` as one of bytes. Saturation never happens: the values are in range.
    fn narrow(&mut self, elem: Elem, v: [Value; 4]) -> Value {
        let low = self.b.ins().snarrow(v[0], v[1]);
        let high = self.b.ins().snarrow(v[2], v[3]);
        if elem.is_signed() { self.b.ins().snarrow(low, high) } else { self.b.ins().unarrow(low, high) }
    }

    fn store_low(&mut self, ty: Type, vector: Value, address: Value, at: usize) {
        let vector = self.cast(if ty == types::I32 { types::I32X4 } else { types::I64X2 }, vector);
        let low = self.b.ins().extractlane(vector, 0);
        self.store(low, address, at);
    }

    /// Fills `bytes` bytes with a pattern whose elements divide `bytes`.
    pub fn fill(&mut self, to: Value, pattern: Value, bytes: usize) {
        let wide = bytes / 16 * 16;
        if wide > 0 {
            self.count(wide, 16, |c, i| {
                let to = c.add(to, i);
                c.store(pattern, to, 0);
            });
        }
        let mut at = wide;
        for (ty, size) in [(types::I64X2, 8), (types::I32X4, 4), (types::I16X8, 2), (types::I8X16, 1)] {
            if bytes - at >= size {
                let vector = self.cast(ty, pattern);
                let low = self.b.ins().extractlane(vector, 0);
                self.store(low, to, at);
                at += size;
            }
        }
    }

    /// Copies `bytes` bytes, `bytes > 0`; the regions do not overlap.
    pub fn copy(&mut self, to: Value, from: Value, bytes: usize) {
        let wide = bytes / 16 * 16;
        if wide > 0 {
            self.count(wide, 16, |c, i| {
                let (from, to) = (c.add(from, i), c.add(to, i));
                let value = c.load(types::I8X16, from, 0);
                c.store(value, to, 0);
            });
        }
        let mut at = wide;
        for (ty, size) in [(types::I64, 8), (types::I32, 4), (types::I16, 2), (types::I8, 1)] {
            if bytes - at >= size {
                let value = self.load(ty, from, at);
                self.store(value, to, at);
                at += size;
            }
        }
    }
}

fn lane_mask(ty: Type) -> i64 {
    if ty.bits() >= 64 { -1 } else { (1i64 << ty.bits()) - 1 }
}
