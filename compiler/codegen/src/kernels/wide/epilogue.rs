//! The pointwise end of a wide kernel: requantisations, sums and clamps on vectors of `i32` lanes in
//! registers.
//!
//! In: the pointwise steps of a spec and the constants of its requantisations. Out: tables, and the instructions
//! for the sums of a tile. What cannot be had here (roundings to even or away from zero, constants of one pixel,
//! results beyond 32 bits) is refused, and the portable kernel, which has it, serves instead.
//!
//! A requantisation is round(v m / 2^e), the 64-bit products of even and odd lanes apart. As in
//! [`crate::kernels::requant`], m is normalised and v may carry a factor 2^k so that E = e + k >= 33. The rounding
//! term 2^(E-1) is then a multiple of 2^32, so it can be added to the high half h of the product:
//! floor((p + 2^(E-1)) / 2^E) = floor((h + 2^(E-33)) / 2^(E-32)), in 32 bits, as |h| <= 2^30 and E <= 62. That |result| <
//! 2^31 before the clamp is checked from the source's range.

use std::collections::BTreeMap;

use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Requant, Rounding, Tensor, TensorType};

use crate::asm::{Asm, Binary, Gpr, Isa, Mem, Shift, ShiftBy, Src, V, Widen, pack_orders};
use crate::error::Unsupported;
use crate::kernels::Table;

/// Constants of a requantisation, lane by lane.
#[derive(Clone, Copy)]
struct Lane {
    mult: i32,
    /// E - 32.
    shift: u32,
    /// k.
    left: u32,
    /// 2^(E-33), or 0 to round down.
    half: i32,
}

impl Lane {
    /// The record of [`Product::Halves`]. With m = u 2^16 + l, |v| < 2^15 and f = e - 16,
    /// floor((v m + 2^(e-1)) / 2^e) = floor((v u + floor(v l / 2^16) + 2^(f-1)) / 2^f), all within 2^30 + 2^14 + 2^29.
    /// l is rounded to the nearest if v may be negative, so that it is of 16 bits with sign, otherwise down.
    fn halves(&self, signed: bool) -> Option<[i32; RECORD_VECTORS]> {
        let exponent = self.shift + 32 - self.left;
        let mult = i64::from(self.mult);
        let upper = (mult + if signed { 1 << 15 } else { 0 }) >> 16;
        let lower = mult - (upper << 16);
        if mult == 0 {
            return Some([0; RECORD_VECTORS]);
        }
        let fits = upper < 1 << 15 && (17..=46).contains(&exponent);
        let half = if self.half == 0 { 0 } else { 1 << (exponent.max(17) - 17) };
        fits.then_some([upper as i32, (lower & 0xffff) as i32, half, exponent as i32 - 16, 0])
    }
}

/// A requantisation's instructions and where its table stands.
struct WideRequant {
    op: Requant,
    /// Position among the epilogue's tables.
    table: usize,
    /// One record for every vector of channels; otherwise one for all.
    per_channel: bool,
    product: Product,
    /// Limits that some value of the source reaches: i64's where none does.
    limits: (i64, i64),
}

/// How v m is formed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Product {
    /// In 64 bits; `scaled`: values are shifted left first.
    Wide { scaled: bool },
    /// v is of 16 bits: its products with the halves of m, each in 32 bits. `signed`: v may be negative.
    Halves { signed: bool },
}

/// See the module's documentation.
pub struct WideEpilogue {
    spec: KernelSpec,
    /// The first pointwise step: 0 if there is nothing else.
    first: usize,
    requants: BTreeMap<usize, WideRequant>,
    /// Constants in every lane, a vector each, behind the fixed ones.
    literals: Vec<i32>,
}

/// Registers with the addresses an epilogue reads from, and with constants.
pub struct Pointers {
    /// Of each operand.
    operands: Vec<(usize, Gpr)>,
    tables: Vec<Gpr>,
    literals: Gpr,
    held: Vec<(Constant, V)>,
}

/// A vector that an epilogue reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constant {
    /// A vector of the record of the table's first channels.
    Part { table: usize, part: usize },
    Literal(i32),
}

/// Which constants [`WideEpilogue::hold`] may keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Those that are the same in all channels.
    Uniform,
    /// Those of one vector of channels too.
    Vector,
}

/// Vectors of a requantisation's record: multipliers, those of odd lanes moved down, rounding terms, shifts,
/// left shifts. [`Product::Halves`]: upper halves, lower halves, rounding terms, shifts.
const RECORD_VECTORS: usize = 5;
const MULT: usize = 0;
const ODD_MULT: usize = 1;
const HALF: usize = 2;
const SHIFT: usize = 3;
const LEFT: usize = 4;
const UPPER: usize = MULT;
const LOWER: usize = ODD_MULT;
/// In every lane of the first literals: pairs of one, nibble masks, nibble excess.
const FIXED_LITERALS: [i32; 3] = [0x0001_0001, 0x0f0f_0f0f, 0x0808_0808];

impl WideEpilogue {
    /// The steps of `spec` from the second on, or all of them if the first is pointwise too.
    pub fn new(
        spec: &KernelSpec,
        constants: &[Option<&Tensor>],
        isa: Isa,
    ) -> Result<(WideEpilogue, Vec<Table>), Unsupported> {
        let is_pointwise = matches!(spec.steps()[0].op, Op::Requant(_) | Op::Add(_) | Op::Clamp(_));
        let mut epilogue = WideEpilogue {
            spec: spec.clone(),
            first: usize::from(!is_pointwise),
            requants: BTreeMap::new(),
            literals: FIXED_LITERALS.to_vec(),
        };
        let mut tables = Vec::new();
        for (index, step) in spec.steps().iter().enumerate().skip(epilogue.first) {
            match &step.op {
                Op::Requant(requant) => {
                    let (requant, table) = requant_table(spec, index, requant, constants, isa, tables.len())?;
                    epilogue.literal(-requant.op.src_zero);
                    epilogue.literal(requant.op.dst_zero);
                    epilogue.clamp_literals(requant.limits.0, requant.limits.1);
                    epilogue.requants.insert(index, requant);
                    tables.push(table);
                }
                Op::Add(_) if !step.ty.is_float() => {}
                Op::Clamp(clamp) => epilogue.clamp_literals(clamp.lo, clamp.hi),
                op => return Err(Unsupported::new(format!("`{}` among the pointwise steps of a kernel", op.name()))),
            }
        }
        // Steps overwrite their first argument's register, so a result may have one reader only.
        let results = || spec.steps().iter().flat_map(|s| &s.args).filter(|arg| matches!(arg, Arg::Step(_)));
        if results().enumerate().any(|(i, arg)| results().skip(i + 1).any(|other| other == arg)) {
            return Err(Unsupported::new("a step whose result is read twice in a wide kernel"));
        }
        for operand in epilogue.operands() {
            let ty = &spec.operands()[operand];
            if ty.shape != spec.result().shape || ty.is_float() {
                return Err(Unsupported::new(format!("operand {operand} of type {ty} in a pointwise step")));
            }
        }
        Ok((epilogue, tables))
    }

    /// No steps: sums of `spec`'s convolution as they are.
    pub fn none(spec: &KernelSpec) -> Result<WideEpilogue, Unsupported> {
        let step = &spec.steps()[0];
        let spec = KernelSpec::new(spec.operands().to_vec(), vec![(step.op.clone(), step.args.clone())])?;
        Ok(WideEpilogue { spec, first: 1, requants: BTreeMap::new(), literals: FIXED_LITERALS.to_vec() })
    }

    /// What of the constants the code depends on.
    pub fn form(&self) -> String {
        let form = |(step, r): (&usize, &WideRequant)| {
            let is = |product: Product| r.product == product;
            let [unsigned, signed] = [false, true].map(|signed| is(Product::Halves { signed }));
            let scaled = is(Product::Wide { scaled: true });
            let bits = [r.per_channel, unsigned, signed, scaled, r.limits.0 > i64::MIN, r.limits.1 < i64::MAX];
            format!("{step}:{} ", bits.map(|bit| if bit { '1' } else { '0' }).iter().collect::<String>())
        };
        self.requants.iter().map(form).collect()
    }

    /// The operands that the steps read as values, each once.
    pub fn operands(&self) -> Vec<usize> {
        let mut out = Vec::new();
        for step in &self.spec.steps()[self.first..] {
            let values = if matches!(step.op, Op::Requant(_)) { &step.args[..1] } else { &step.args[..] };
            for arg in values {
                if let &Arg::Operand(i) = arg
                    && !out.contains(&i)
                {
                    out.push(i);
                }
            }
        }
        out
    }

    /// Bytes of an element of each of these.
    pub fn operand_bytes(&self) -> Vec<usize> {
        self.operands().iter().map(|&i| self.spec.operands()[i].elem.bytes()).collect()
    }

    /// By which bytes each table advances for a vector of channels, in the tables' order.
    pub fn table_strides(&self, isa: Isa) -> Vec<usize> {
        self.requants.values().map(|r| if r.per_channel { RECORD_VECTORS * isa.bytes() } else { 0 }).collect()
    }

    /// Adds a constant that the kernel itself needs ([`WideEpilogue::at`]).
    pub fn literal(&mut self, value: i32) {
        if value != 0 && !self.literals[FIXED_LITERALS.len()..].contains(&value) {
            self.literals.push(value);
        }
    }

    pub fn literal_table(&self, isa: Isa) -> Table {
        let repeated = |v: &i32| vec![*v; isa.lanes()];
        let (fixed, others) = self.literals.split_at(FIXED_LITERALS.len());
        let orders = if isa == Isa::Avx512 { pack_orders().concat() } else { Vec::new() };
        let lanes = fixed.iter().flat_map(repeated).chain(orders).chain(others.iter().flat_map(repeated));
        Table::new(lanes.flat_map(i32::to_le_bytes).collect())
    }

    pub fn nibble_mask(&self, isa: Isa) -> usize {
        isa.bytes()
    }

    pub fn nibble_excess(&self, isa: Isa) -> usize {
        2 * isa.bytes()
    }

    fn clamp_literals(&mut self, lo: i64, hi: i64) {
        limits(lo, hi).into_iter().flatten().for_each(|limit| {
            if !self.literals[FIXED_LITERALS.len()..].contains(&limit) {
                self.literals.push(limit);
            }
        });
    }

    /// Where a constant lies.
    pub fn at(&self, isa: Isa, literals: Gpr, value: i32) -> Mem {
        let found = self.literals[FIXED_LITERALS.len()..].iter().position(|&v| v == value).unwrap_or(0);
        Mem::at(literals, (FIXED_LITERALS.len() + orders(isa) + found) * isa.bytes())
    }

    /// The registers with the addresses of operands (at the tile's first pixel and channel) and of tables (at
    /// its first channel), which are words of `table` from `first_word` on.
    pub fn pointers(&self, asm: &mut Asm, (table, first_word): (Gpr, usize), literals: Gpr) -> Pointers {
        let operands = self.operands();
        let tables = (0..self.requants.len()).map(|i| asm.argument(table, first_word + operands.len() + i)).collect();
        let load = |(i, operand): (usize, &usize)| (*operand, asm.argument(table, first_word + i));
        Pointers { operands: operands.iter().enumerate().map(load).collect(), tables, literals, held: Vec::new() }
    }

    /// Loads constants into up to `free` registers, those first that are read most often. Held ones of
    /// [`Hold::Vector`] are those of the vector that the pointers are at.
    pub fn hold(&self, asm: &mut Asm, pointers: &mut Pointers, hold: Hold, free: usize) {
        let mut uses: Vec<(Constant, usize)> = Vec::new();
        for constant in self.constants(hold) {
            match uses.iter_mut().find(|(known, _)| *known == constant) {
                Some((_, count)) => *count += 1,
                None => uses.push((constant, 1)),
            }
        }
        uses.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        pointers.held.clear();
        for (constant, _) in uses.into_iter().take(free) {
            let register = asm.vec();
            let from = self.place(asm.isa, pointers, constant, 0);
            asm.load(register, from);
            pointers.held.push((constant, register));
        }
    }

    /// Registers that the steps of a sum need beside it.
    pub fn temporaries(&self) -> usize {
        1 + self.operands().len()
    }

    /// Every reading of a constant that may be held.
    fn constants(&self, hold: Hold) -> Vec<Constant> {
        let mut all = Vec::new();
        let last = self.spec.steps().len() - 1;
        for (index, step) in self.spec.steps().iter().enumerate().skip(self.first) {
            let whole = self.whole(index == last);
            if let Some(requant) = self.requants.get(&index) {
                if hold == Hold::Vector || !requant.per_channel {
                    all.extend(requant.parts().map(|part| Constant::Part { table: requant.table, part }));
                }
                let zeros = [-requant.op.src_zero, requant.op.dst_zero];
                all.extend(zeros.into_iter().filter(|&zero| zero != 0).map(Constant::Literal));
                all.extend(needed_limits(requant.limits, whole).into_iter().flatten().map(Constant::Literal));
            } else if let Op::Clamp(clamp) = &step.op {
                all.extend(needed_limits((clamp.lo, clamp.hi), whole).into_iter().flatten().map(Constant::Literal));
            }
        }
        all
    }

    /// The range that the store enforces after the last step: values are in their types' ranges, so its saturation is
    /// the clamp to the whole range.
    fn whole(&self, is_last: bool) -> Option<Range> {
        self.spec.result().elem.range().filter(|_| is_last && self.spec.result().elem != Elem::I32)
    }

    /// Where a constant lies for the vector `vector` vectors behind the pointers.
    fn place(&self, isa: Isa, pointers: &Pointers, constant: Constant, vector: usize) -> Mem {
        match constant {
            Constant::Part { table, part } => {
                let is_per_channel = self.requants.values().any(|r| r.table == table && r.per_channel);
                let record = if is_per_channel { vector * RECORD_VECTORS } else { 0 };
                Mem::at(pointers.tables[table], (record + part) * isa.bytes())
            }
            Constant::Literal(value) => self.at(isa, pointers.literals, value),
        }
    }

    /// A constant as an operand.
    fn constant(&self, isa: Isa, pointers: &Pointers, constant: Constant, vector: usize) -> Src {
        match pointers.held.iter().find(|(held, _)| *held == constant) {
            Some(&(_, register)) => register.into(),
            None => self.place(isa, pointers, constant, vector).into(),
        }
    }

    /// Moves the pointers on by a vector of channels.
    pub fn advance(&self, asm: &mut Asm, pointers: &Pointers) {
        self.advance_by(asm, pointers, 1);
    }

    pub fn advance_by(&self, asm: &mut Asm, pointers: &Pointers, vectors: usize) {
        for &(operand, pointer) in &pointers.operands {
            asm.add_int(pointer, vectors * asm.isa.lanes() * self.spec.operands()[operand].elem.bytes());
        }
        for (&pointer, stride) in pointers.tables.iter().zip(self.table_strides(asm.isa)) {
            asm.add_int(pointer, vectors * stride);
        }
    }

    /// Emits the steps for the sums of a pixel that is `pixel` pixels behind the tile's first, and returns
    /// the registers with the results.
    pub fn emit(&self, asm: &mut Asm, pointers: &Pointers, pixel: usize, sums: &[V]) -> Vec<V> {
        let channels = self.spec.result().shape.last().copied().unwrap_or(1);
        let vector = |(vector, &sum): (usize, &V)| self.vector(asm, pointers, pixel * channels, vector, Some(sum));
        sums.iter().enumerate().map(vector).collect()
    }

    /// Emits the steps, of which none waits for a sum, for the next `vectors` vectors.
    pub fn emit_values(&self, asm: &mut Asm, pointers: &Pointers, vectors: usize) -> Vec<V> {
        (0..vectors).map(|vector| self.vector(asm, pointers, 0, vector, None)).collect()
    }

    /// The last step's result for a vector of the pixel that begins at `element`.
    fn vector(&self, asm: &mut Asm, pointers: &Pointers, element: usize, vector: usize, sum: Option<V>) -> V {
        let element = element + vector * asm.isa.lanes();
        let load = |asm: &mut Asm, operand: usize| {
            let elem = self.spec.operands()[operand].elem;
            let to = asm.vec();
            if let Some((_, pointer)) = pointers.operands.iter().find(|(o, _)| *o == operand) {
                load_values(asm, elem, to, Mem::at(*pointer, element * elem.bytes()));
            }
            to
        };
        let mut results: Vec<V> = sum.into_iter().collect();
        let last = self.spec.steps().len() - 1;
        for (index, step) in self.spec.steps().iter().enumerate().skip(self.first) {
            let arg = |asm: &mut Asm, position: usize| match step.args[position] {
                Arg::Step(i) => results[i],
                Arg::Operand(i) => load(asm, i),
            };
            let value = arg(asm, 0);
            let whole = self.whole(index == last);
            match &step.op {
                Op::Requant(_) => {
                    let requant = &self.requants[&index];
                    let scaled = self.requant(asm, requant, pointers, vector, value);
                    self.clamp(asm, pointers, scaled, requant.limits, whole);
                    results.push(scaled);
                }
                Op::Clamp(clamp) => {
                    self.clamp(asm, pointers, value, (clamp.lo, clamp.hi), whole);
                    results.push(value);
                }
                _ => {
                    let other = arg(asm, 1);
                    asm.binary(Binary::AddI32, value, value, other);
                    results.push(value);
                }
            }
        }
        results[last]
    }

    /// Overwrites `value`; the result may be in another register.
    fn requant(&self, asm: &mut Asm, requant: &WideRequant, pointers: &Pointers, vector: usize, value: V) -> V {
        let isa = asm.isa;
        let part = |part: usize| self.constant(isa, pointers, Constant::Part { table: requant.table, part }, vector);
        let literal = |value: i32| self.constant(isa, pointers, Constant::Literal(value), vector);
        if requant.op.src_zero != 0 {
            asm.binary(Binary::AddI32, value, value, literal(-requant.op.src_zero));
        }
        let other = asm.vec();
        let value = match requant.product {
            Product::Wide { scaled } => {
                if scaled {
                    asm.shift_by(ShiftBy::LeftI32, value, value, part(LEFT));
                }
                asm.shift(Shift::RightU64, other, value, 32);
                asm.binary(Binary::MulEven, value, value, part(MULT));
                asm.binary(Binary::MulEven, other, other, part(requant.odd_mult()));
                asm.high_halves(value, other)
            }
            Product::Halves { signed } => {
                if signed {
                    asm.binary(Binary::Maddwd, other, value, part(LOWER));
                    asm.shift(Shift::RightI32, other, other, 16);
                } else {
                    // The upper halves of the lanes are 0.
                    asm.binary(Binary::MulHighU16, other, value, part(LOWER));
                }
                asm.binary(Binary::Maddwd, value, value, part(UPPER));
                asm.binary(Binary::AddI32, value, value, other);
                value
            }
        };
        if requant.op.round != Rounding::Floor {
            asm.binary(Binary::AddI32, value, value, part(HALF));
        }
        asm.shift_by(ShiftBy::RightI32, value, value, part(SHIFT));
        if requant.op.dst_zero != 0 {
            asm.binary(Binary::AddI32, value, value, literal(requant.op.dst_zero));
        }
        value
    }

    /// Limits lanes; a limit that the store's saturation to `whole` enforces costs nothing.
    fn clamp(&self, asm: &mut Asm, pointers: &Pointers, value: V, limits: (i64, i64), whole: Option<Range>) {
        let isa = asm.isa;
        for (op, limit) in [Binary::MaxI32, Binary::MinI32].into_iter().zip(needed_limits(limits, whole)) {
            if let Some(limit) = limit {
                asm.binary(op, value, value, self.constant(isa, pointers, Constant::Literal(limit), 0));
            }
        }
    }
}

impl WideRequant {
    /// The multipliers of odd lanes; those of even ones if all are equal.
    fn odd_mult(&self) -> usize {
        if self.per_channel { ODD_MULT } else { MULT }
    }

    /// The vectors of a record that are read, each as often as it is.
    fn parts(&self) -> impl Iterator<Item = usize> {
        let half = (self.op.round != Rounding::Floor).then_some(HALF);
        let left = (self.product == Product::Wide { scaled: true }).then_some(LEFT);
        let second = if matches!(self.product, Product::Halves { .. }) { LOWER } else { self.odd_mult() };
        [MULT, second, SHIFT].into_iter().chain(half).chain(left)
    }
}

/// The limits that lanes are compared with, where the store's saturation to `whole` does not enforce them.
fn needed_limits((lo, hi): (i64, i64), whole: Option<Range>) -> [Option<i32>; 2] {
    // A container of 4 bits is stored as a byte, whose saturation is wider.
    let bytes = whole.filter(|r| *r != Range::new(0, 15) && *r != Range::new(-8, 7));
    let [low, high] = limits(lo, hi);
    [low.filter(|_| bytes.is_none_or(|r| r.lo != lo)), high.filter(|_| bytes.is_none_or(|r| r.hi != hi))]
}

/// Vectors of orders among the fixed literals.
fn orders(isa: Isa) -> usize {
    if isa == Isa::Avx512 { pack_orders().len() } else { 0 }
}

/// Where [`pack_orders`] lie, which 512-bit vectors have.
pub fn pack_orders_at(isa: Isa, literals: Gpr) -> Option<[Mem; 2]> {
    let first = FIXED_LITERALS.len();
    (isa == Isa::Avx512).then(|| [first, first + 1].map(|vector| Mem::at(literals, vector * isa.bytes())))
}

/// The limits that an `i32` may exceed.
fn limits(lo: i64, hi: i64) -> [Option<i32>; 2] {
    let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
    let limit = |bound: i64| bound.clamp(min, max) as i32;
    [(lo > min).then(|| limit(lo)), (hi < max).then(|| limit(hi))]
}

/// Loads a vector's worth of values as `i32` lanes.
pub fn load_values(asm: &mut Asm, elem: Elem, to: V, from: Mem) {
    match elem {
        Elem::U4 | Elem::U8 => asm.load_widened(Widen::U8ToI32, to, from),
        Elem::I4 | Elem::I8 => asm.load_widened(Widen::I8ToI32, to, from),
        Elem::I16 => asm.load_widened(Widen::I16ToI32, to, from),
        Elem::I32 | Elem::F32 => asm.load(to, from),
    }
}

fn requant_table(
    spec: &KernelSpec,
    index: usize,
    requant: &Requant,
    constants: &[Option<&Tensor>],
    isa: Isa,
    table: usize,
) -> Result<(WideRequant, Table), Unsupported> {
    let step = &spec.steps()[index];
    let constant = |position: usize| match step.args.get(position) {
        Some(&Arg::Operand(i)) => constants.get(i).copied().flatten(),
        _ => None,
    };
    let (Some(mult), Some(shift)) = (constant(1), constant(2)) else {
        return Err(Unsupported::new("requant whose mult or shift is not constant"));
    };
    if !matches!(requant.round, Rounding::HalfUp | Rounding::Floor) {
        return Err(Unsupported::new(format!("rounding {:?} in a wide kernel", requant.round)));
    }
    let src = step.args.first().map(|&arg| spec.arg_type(arg)).transpose()?;
    let range = src.and_then(|ty| ty.range).unwrap_or(Range::new(i32::MIN.into(), i32::MAX.into()));
    let zero = i64::from(requant.src_zero);
    let magnitude = Range::new(range.lo - zero, range.hi - zero).magnitude();
    let per_channel = is_per_channel(mult, &step.ty)?;
    let lane = |(m, e)| lane(m, e, magnitude, requant);
    let mut lanes = mult.ints()?.into_iter().zip(shift.ints()?).map(lane).collect::<Result<Vec<Lane>, _>>()?;
    if !per_channel {
        lanes = vec![lanes[0]; isa.lanes()];
    }
    let limits = reached_limits(requant, range, &lanes);
    let signed = range.lo < zero;
    let halves = lanes.iter().map(|lane| lane.halves(signed)).collect::<Option<_>>().filter(|_| magnitude < 1 << 15);
    let (product, records) = match halves {
        Some(halves) => (Product::Halves { signed }, halves),
        None => {
            let odd = |i: usize| if i % 2 == 0 { lanes[i + 1].mult } else { 0 };
            let record = |(i, l): (usize, &Lane)| [l.mult, odd(i), l.half, l.shift as i32, l.left as i32];
            let scaled = lanes.iter().any(|lane| lane.left > 0);
            (Product::Wide { scaled }, lanes.iter().enumerate().map(record).collect::<Vec<_>>())
        }
    };
    let vectors = records.chunks(isa.lanes()).flat_map(|lanes| {
        (0..RECORD_VECTORS).flat_map(|part| lanes.iter().flat_map(move |record| record[part].to_le_bytes()))
    });
    let bytes = vectors.collect();
    Ok((WideRequant { op: requant.clone(), table, per_channel, product, limits }, Table::new(bytes)))
}

/// The limits of `requant`, but those beyond every result: a requantisation is monotonic, so the ends of the source's
/// range give the extreme ones.
fn reached_limits(requant: &Requant, src: Range, lanes: &[Lane]) -> (i64, i64) {
    let result = |v: i64, lane: &Lane| {
        let product = i128::from(v - i64::from(requant.src_zero)) * i128::from(lane.mult) << lane.left;
        let half = i128::from(lane.half) << 32;
        ((product + half) >> (lane.shift + 32)) + i128::from(requant.dst_zero)
    };
    let least = lanes.iter().map(|lane| result(src.lo, lane)).min().unwrap_or(i128::MIN);
    let most = lanes.iter().map(|lane| result(src.hi, lane)).max().unwrap_or(i128::MAX);
    let lo = if least < i128::from(requant.lo) { requant.lo } else { i64::MIN };
    let hi = if most > i128::from(requant.hi) { requant.hi } else { i64::MAX };
    (lo, hi)
}

fn is_per_channel(mult: &Tensor, out: &TensorType) -> Result<bool, Unsupported> {
    let shape = mult.shape();
    if shape.iter().all(|&d| d == 1) {
        return Ok(false);
    }
    match shape {
        [rest @ .., last] if rest.iter().all(|&d| d == 1) && out.shape.last() == Some(last) => Ok(true),
        _ => Err(Unsupported::new(format!("requant constants of shape {shape:?} in a wide kernel"))),
    }
}

fn lane(mult: i64, shift: i64, magnitude: i64, requant: &Requant) -> Result<Lane, Unsupported> {
    let (Ok(mut mult), Ok(mut shift)) = (i32::try_from(mult), u32::try_from(shift)) else {
        return Err(Unsupported::new(format!("requant by {mult} / 2^{shift}")));
    };
    if mult == 0 {
        return Ok(Lane { mult, shift: 0, left: 0, half: 0 });
    }
    while mult > 0 && mult < 1 << 30 && shift < 62 {
        mult *= 2;
        shift += 1;
    }
    let left = 33u32.saturating_sub(shift);
    let limit = i64::from(i32::MAX);
    let scaled = if left < 31 { magnitude.checked_shl(left).filter(|v| v >> left == magnitude) } else { None };
    let result = (i128::from(magnitude) * i128::from(mult)) >> shift;
    let fits = scaled.is_some_and(|v| v <= limit)
        && result + 2 + i128::from(requant.dst_zero).abs() <= i128::from(limit)
        && (1..=62).contains(&shift)
        && mult > 0;
    if !fits {
        return Err(Unsupported::new(format!("requant by {mult} / 2^{shift} beyond 32 bits in a wide kernel")));
    }
    let total = shift + left;
    let half = if requant.round == Rounding::Floor { 0 } else { 1i32 << (total - 33) };
    Ok(Lane { mult, shift: total - 32, left, half })
}
