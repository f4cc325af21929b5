//! The pointwise end of a wide kernel: requantisations, sums and clamps on vectors of `i32` lanes in
//! registers.
//!
//! The steps of a second result are an epilogue of their own, whose values are loaded from where the first result has just
//! been stored.
//!
//! In: the pointwise steps of a spec and the constants of its requantisations. Out: tables, and the instructions
//! for the sums of a tile. What cannot be had here (roundings to even or away from zero, constants of one pixel,
//! results beyond 32 bits) is refused, and the portable kernel, which has it, serves instead.

use std::collections::BTreeMap;

use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Tensor};
use hawqc_schedules::WideMachine;

use super::requant::{RECORD_VECTORS, WideRequant};
use crate::asm::{Asm, Binary, Gpr, Isa, Mem, Src, V, Widen, pack_orders};
use crate::error::Unsupported;
use crate::kernels::Table;

/// See the module's documentation.
pub struct WideEpilogue {
    spec: KernelSpec,
    /// The first pointwise step: 0 if there is nothing else.
    first: usize,
    requants: BTreeMap<usize, WideRequant>,
    /// Constants in every lane, a vector each, behind the fixed ones.
    literals: Vec<i32>,
    /// The steps of the second result, whose one operand is the first result; its tables are behind this one's.
    second: Option<Box<WideEpilogue>>,
}

/// Registers with the addresses an epilogue reads from, and with constants.
pub struct Pointers {
    /// Of each operand.
    operands: Vec<(usize, Gpr)>,
    tables: Vec<Gpr>,
    literals: Gpr,
    held: Held,
    /// What the second result needs stays in memory until then, as registers are few: the words of its place and of its tables.
    second: Option<(Mem, Vec<Mem>)>,
}

/// Constants in registers.
#[derive(Clone, Default)]
pub struct Held(Vec<(Constant, V)>);

impl Pointers {
    pub fn held(self) -> Held {
        self.held
    }

    /// Makes the steps read constants that other pointers to the same channels hold.
    pub fn keep(&mut self, held: &Held) {
        self.held = held.clone();
    }
}

/// A vector of a result.
#[derive(Clone, Copy)]
pub struct Site {
    /// Pixels and vectors of channels behind the pointers.
    pub pixel: usize,
    pub vector: usize,
    /// Whether the vector is stored packed with others, which limits it ([`WideEpilogue::packs`]).
    pub packed: bool,
}

/// A vector that an epilogue reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constant {
    /// A part of the record of a vector of channels, counted from the table's first; 0 if all have the same.
    Part {
        table: usize,
        vector: usize,
        part: usize,
    },
    Literal(i32),
}

/// Which constants [`WideEpilogue::hold`] may keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Those that are the same in all channels.
    Uniform,
    /// Those of so many vectors of channels too.
    Vectors(usize),
}

/// In every lane of the first literals: pairs of one, nibble masks, nibble excess.
const FIXED_LITERALS: [i32; 3] = [0x0001_0001, 0x0f0f_0f0f, 0x0808_0808];

impl WideEpilogue {
    /// The steps of `spec` from the second on, or all of them if the first is pointwise too.
    pub fn new(
        spec: &KernelSpec,
        constants: &[Option<&Tensor>],
        wide: WideMachine,
    ) -> Result<(WideEpilogue, Vec<Table>), Unsupported> {
        let mut tables = Vec::new();
        let mut epilogue = WideEpilogue::of(spec, constants, wide, &mut tables)?;
        if let Some(second) = spec.second() {
            let own: Vec<Option<&Tensor>> =
                [None].into_iter().chain(constants[spec.second_operands()..].iter().copied()).collect();
            let mut others = Vec::new();
            let mut second = WideEpilogue::of(second, &own, wide, &mut others)?;
            tables.extend(others);
            second.literals[FIXED_LITERALS.len()..].iter().for_each(|&value| epilogue.limit_literal(value));
            second.literals.clone_from(&epilogue.literals);
            epilogue.second = Some(Box::new(second));
        }
        Ok((epilogue, tables))
    }

    /// The steps without those of a second result. Adds their tables to `tables`.
    fn of(
        spec: &KernelSpec,
        constants: &[Option<&Tensor>],
        wide: WideMachine,
        tables: &mut Vec<Table>,
    ) -> Result<WideEpilogue, Unsupported> {
        let is_pointwise = matches!(spec.steps()[0].op, Op::Requant(_) | Op::Add(_) | Op::Clamp(_));
        let mut epilogue = WideEpilogue {
            spec: spec.clone(),
            first: usize::from(!is_pointwise),
            requants: BTreeMap::new(),
            literals: FIXED_LITERALS.to_vec(),
            second: None,
        };
        for (index, step) in spec.steps().iter().enumerate().skip(epilogue.first) {
            match &step.op {
                Op::Requant(requant) => {
                    let (requant, table) = WideRequant::new(spec, index, requant, constants, wide, tables.len())?;
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
        for limit in epilogue.byte_limits().into_iter().flatten() {
            epilogue.limit_literal(limit);
        }
        for operand in epilogue.operands() {
            let ty = &spec.operands()[operand];
            if ty.shape != spec.result().shape || ty.is_float() {
                return Err(Unsupported::new(format!("operand {operand} of type {ty} in a pointwise step")));
            }
        }
        Ok(epilogue)
    }

    /// No steps: sums of `spec`'s convolution as they are.
    pub fn none(spec: &KernelSpec) -> Result<WideEpilogue, Unsupported> {
        let step = &spec.steps()[0];
        let spec = KernelSpec::new(spec.operands().to_vec(), vec![(step.op.clone(), step.args.clone())])?;
        let literals = FIXED_LITERALS.to_vec();
        Ok(WideEpilogue { spec, first: 1, requants: BTreeMap::new(), literals, second: None })
    }

    /// What of the constants the code depends on.
    pub fn form(&self) -> String {
        let form = |(step, requant): (&usize, &WideRequant)| format!("{step}:{} ", requant.form());
        self.stages().flat_map(|stage| stage.requants.iter().map(form)).collect()
    }

    /// This one and that of the second result.
    fn stages(&self) -> impl Iterator<Item = &WideEpilogue> {
        [self].into_iter().chain(self.second.as_deref())
    }

    /// Whether there is a second result, whose place follows those of the operands.
    pub fn has_second(&self) -> bool {
        self.second.is_some()
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

    /// Bytes of an element of each of these, then of the second result.
    pub fn operand_bytes(&self) -> Vec<usize> {
        let operands = self.operands().into_iter().map(|i| self.spec.operands()[i].elem);
        operands.chain(self.second.as_ref().map(|second| second.elem())).map(Elem::bytes).collect()
    }

    /// Of the (first) result.
    pub fn elem(&self) -> Elem {
        self.spec.result().elem
    }

    /// By which bytes each table advances for a vector of channels, in the tables' order.
    pub fn table_strides(&self, isa: Isa) -> Vec<usize> {
        let stride = |r: &WideRequant| if r.per_channel { RECORD_VECTORS * isa.bytes() } else { 0 };
        self.stages().flat_map(|stage| stage.requants.values().map(stride)).collect()
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
        limits(lo, hi).into_iter().flatten().for_each(|limit| self.limit_literal(limit));
    }

    fn limit_literal(&mut self, limit: i32) {
        if !self.literals[FIXED_LITERALS.len()..].contains(&limit) {
            self.literals.push(limit);
        }
    }

    /// Where a constant lies.
    pub fn at(&self, isa: Isa, literals: Gpr, value: i32) -> Mem {
        let found = self.literals[FIXED_LITERALS.len()..].iter().position(|&v| v == value).unwrap_or(0);
        Mem::at(literals, (FIXED_LITERALS.len() + orders(isa) + found) * isa.bytes())
    }

    /// The addresses of operands and of the second result (at the tile's first pixel and channel) and of tables (at its first
    /// channel), which are words of `table` from `first_word` on.
    pub fn pointers(&self, asm: &mut Asm, (table, first_word): (Gpr, usize), literals: Gpr) -> Pointers {
        let operands = self.operands();
        let first_table = first_word + self.operand_bytes().len();
        let tables = (0..self.requants.len()).map(|i| asm.argument(table, first_table + i)).collect();
        let second = self.second.as_ref().map(|second| {
            let first_table = first_table + self.requants.len();
            let words = (0..second.requants.len()).map(|i| Mem::word(table, first_table + i)).collect();
            (Mem::word(table, first_word + operands.len()), words)
        });
        let load = |(i, operand): (usize, &usize)| (*operand, asm.argument(table, first_word + i));
        let operands = operands.iter().enumerate().map(load).collect();
        Pointers { operands, tables, literals, held: Held::default(), second }
    }

    /// The epilogue that makes the second result of the first one, stored at `first` where the pointers are; its pointers, and
    /// where its result goes.
    pub fn second(&self, asm: &mut Asm, pointers: &Pointers, first: Gpr) -> Option<(&WideEpilogue, Pointers, Gpr)> {
        let (epilogue, (to, tables)) = (self.second.as_deref()?, pointers.second.as_ref()?);
        let operands = epilogue.operands().into_iter().map(|operand| (operand, first)).collect();
        let tables = tables.iter().map(|&word| asm.load_word(word)).collect();
        let own = Pointers { operands, tables, literals: pointers.literals, held: Held::default(), second: None };
        Some((epilogue, own, asm.load_word(*to)))
    }

    /// Makes the second result go to the place in a word of memory.
    pub fn place_second(&self, asm: &mut Asm, pointers: &Pointers, place: Mem) {
        if let Some((to, _)) = &pointers.second {
            let place = asm.load_word(place);
            asm.store_word(*to, place);
        }
    }

    /// Loads constants into up to `free` registers, those first that are read most often. Held ones of
    /// [`Hold::Vectors`] are those of the vectors that the pointers are at.
    pub fn hold(&self, asm: &mut Asm, pointers: &mut Pointers, hold: Hold, free: usize) {
        pointers.held.0.clear();
        for constant in self.holdable(asm.isa, hold).into_iter().take(free) {
            let register = asm.vec();
            let from = self.place(asm.isa, pointers, constant);
            asm.load(register, from);
            pointers.held.0.push((constant, register));
        }
    }

    /// Whether [`WideEpilogue::hold`] would keep all of them.
    pub fn holds_all(&self, isa: Isa, hold: Hold, free: usize) -> bool {
        self.holdable(isa, hold).len() <= free
    }

    /// The constants that may be held, each once, those first that are read most often.
    fn holdable(&self, isa: Isa, hold: Hold) -> Vec<Constant> {
        let mut uses: Vec<(Constant, usize)> = Vec::new();
        for constant in self.constants(isa, hold) {
            match uses.iter_mut().find(|(known, _)| *known == constant) {
                Some((_, count)) => *count += 1,
                None => uses.push((constant, 1)),
            }
        }
        uses.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        uses.into_iter().map(|(constant, _)| constant).collect()
    }

    /// Registers that the steps of a sum need beside it.
    pub fn temporaries(&self) -> usize {
        1 + self.operands().len()
    }

    /// Every reading of a constant that may be held.
    fn constants(&self, isa: Isa, hold: Hold) -> Vec<Constant> {
        let mut all = Vec::new();
        let last = self.spec.steps().len() - 1;
        for (index, step) in self.spec.steps().iter().enumerate().skip(self.first) {
            let whole = self.whole(index == last);
            if let Some(requant) = self.requants.get(&index) {
                let vectors = match hold {
                    _ if !requant.per_channel => 1,
                    Hold::Uniform => 0,
                    Hold::Vectors(vectors) => vectors,
                };
                let table = requant.table;
                let parts = |vector| requant.parts().map(move |part| Constant::Part { table, vector, part });
                all.extend((0..vectors).flat_map(parts));
                let zeros = [-requant.op.src_zero, requant.op.dst_zero];
                all.extend(zeros.into_iter().filter(|&zero| zero != 0).map(Constant::Literal));
                let limits = needed_limits(requant.limits, whole).into_iter().flatten().map(Constant::Literal);
                all.extend(limits.filter(|_| index < last || !self.packs(isa, 2)));
            } else if let Op::Clamp(clamp) = &step.op {
                let limits = needed_limits((clamp.lo, clamp.hi), whole).into_iter().flatten().map(Constant::Literal);
                all.extend(limits.filter(|_| index < last || !self.packs(isa, 2)));
            }
        }
        all
    }

    /// The range that the store enforces after the last step: values are in their types' ranges, so its saturation is
    /// the clamp to the whole range.
    fn whole(&self, is_last: bool) -> Option<Range> {
        self.spec.result().elem.range().filter(|_| is_last && self.spec.result().elem != Elem::I32)
    }

    /// Where a constant lies.
    fn place(&self, isa: Isa, pointers: &Pointers, constant: Constant) -> Mem {
        match constant {
            Constant::Part { table, vector, part } => {
                Mem::at(pointers.tables[table], (vector * RECORD_VECTORS + part) * isa.bytes())
            }
            Constant::Literal(value) => self.at(isa, pointers.literals, value),
        }
    }

    /// A constant as an operand.
    fn constant(&self, isa: Isa, pointers: &Pointers, constant: Constant) -> Src {
        match pointers.held.0.iter().find(|(held, _)| *held == constant) {
            Some(&(_, register)) => register.into(),
            None => self.place(isa, pointers, constant).into(),
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
        let strides = self.table_strides(asm.isa);
        for (&pointer, stride) in pointers.tables.iter().zip(&strides) {
            asm.add_int(pointer, vectors * stride);
        }
        if let Some((second, (to, tables))) = self.second.as_ref().zip(pointers.second.as_ref()) {
            asm.add_to_word(*to, vectors * asm.isa.lanes() * second.elem().bytes());
            for (&table, stride) in tables.iter().zip(&strides[pointers.tables.len()..]) {
                asm.add_to_word(table, vectors * stride);
            }
        }
    }

    /// Moves the pointers to operands and to the second result on by `pixels` pixels.
    pub fn advance_pixels(&self, asm: &mut Asm, pointers: &Pointers, pixels: usize) {
        for &(operand, pointer) in &pointers.operands {
            asm.add_int(pointer, pixels * self.channels() * self.spec.operands()[operand].elem.bytes());
        }
        if let Some((second, (to, _))) = self.second.as_ref().zip(pointers.second.as_ref()) {
            asm.add_to_word(*to, pixels * self.channels() * second.elem().bytes());
        }
    }

    fn channels(&self) -> usize {
        self.spec.result().shape.last().copied().unwrap_or(1)
    }

    /// Emits the steps for a vector: on its `sum`, where the first step is the convolution's or pool's. Overwrites `sum`.
    pub fn emit(&self, asm: &mut Asm, pointers: &Pointers, site: Site, sum: Option<V>) -> V {
        let element = site.pixel * self.channels() + site.vector * asm.isa.lanes();
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
            let limited = !site.packed || index < last;
            let whole = self.whole(index == last);
            match &step.op {
                Op::Requant(_) => {
                    let requant = &self.requants[&index];
                    let isa = asm.isa;
                    let constant = |constant: Constant| self.constant(isa, pointers, constant);
                    let (table, vector) = (requant.table, if requant.per_channel { site.vector } else { 0 });
                    let part = |part: usize| constant(Constant::Part { table, vector, part });
                    let scaled = requant.emit(asm, value, part, |value| constant(Constant::Literal(value)));
                    if limited {
                        self.clamp(asm, pointers, scaled, requant.limits, whole);
                    }
                    results.push(scaled);
                }
                Op::Clamp(clamp) => {
                    if limited {
                        self.clamp(asm, pointers, value, (clamp.lo, clamp.hi), whole);
                    }
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

    /// Whether that many vectors are packed to bytes before they are stored, and so limited as bytes.
    pub fn packs(&self, isa: Isa, vectors: usize) -> bool {
        isa == Isa::Avx512 && self.elem().bytes() == 1 && vectors > 1
    }

    /// Where [`WideEpilogue::byte_limits`] lie.
    pub fn byte_limits_at(&self, isa: Isa, literals: Gpr) -> [Option<Mem>; 2] {
        self.byte_limits().map(|limit| limit.map(|limit| self.at(isa, literals, limit)))
    }

    /// The last step's limits that packing to bytes does not enforce, in every byte.
    fn byte_limits(&self) -> [Option<i32>; 2] {
        let last = self.spec.steps().len() - 1;
        let limits = match &self.spec.steps()[last].op {
            Op::Requant(_) => self.requants.get(&last).map_or((i64::MIN, i64::MAX), |requant| requant.limits),
            Op::Clamp(clamp) => (clamp.lo, clamp.hi),
            _ => (i64::MIN, i64::MAX),
        };
        let elem = self.spec.result().elem;
        let whole = elem.range().filter(|_| elem.bytes() == 1);
        // Of the limits that there are, none is beyond the type.
        let within =
            |limit: i64| whole.filter(|_| limit != i64::MIN && limit != i64::MAX).map(|r| limit.clamp(r.lo, r.hi));
        let limits = (within(limits.0).unwrap_or(i64::MIN), within(limits.1).unwrap_or(i64::MAX));
        let [low, high] = needed_limits(limits, self.whole(true));
        let low = low.filter(|&low| low != 0 || self.spec.result().elem.is_signed());
        [low, high].map(|limit| limit.map(|limit| splat_byte(limit.into())))
    }

    /// Limits lanes; a limit that the store's saturation to `whole` enforces costs nothing.
    fn clamp(&self, asm: &mut Asm, pointers: &Pointers, value: V, limits: (i64, i64), whole: Option<Range>) {
        let isa = asm.isa;
        for (op, limit) in [Binary::MaxI32, Binary::MinI32].into_iter().zip(needed_limits(limits, whole)) {
            if let Some(limit) = limit {
                asm.binary(op, value, value, self.constant(isa, pointers, Constant::Literal(limit)));
            }
        }
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

/// A byte, modulo 256, in every byte of a lane.
pub fn splat_byte(value: i64) -> i32 {
    (value as u8 as u32 * 0x0101_0101).cast_signed()
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
