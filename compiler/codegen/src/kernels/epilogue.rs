//! The pointwise end of every integer kernel: requantisations, sums and clamps on vectors of four
//! `i32`, evaluated where the values already are in registers.
//!
//! In: the steps of a spec from some step on, and the constants of its requantisations. Out: an
//! [`Epilogue`], which knows the form and the table of every requantisation, and emits the steps for a
//! chunk of channels ([`Epilogue::apply`]). Every intermediate value lies within its type, hence in
//! an `i32` lane.

use std::collections::BTreeMap;

use cranelift_codegen::ir::{InstBuilder, Value};
use hawqc_ir::{Arg, KernelSpec, Op, Range, Tensor};

use super::emit::{Code, LANES};
use super::literals::{LiteralTable, Literals};
use super::requant::{RequantForm, RequantTable, Scope};
use super::{Frame, Table};
use crate::error::Unsupported;

/// The pointwise steps of a spec, from `first` to the last, and those of its second result.
pub struct Epilogue {
    spec: KernelSpec,
    first: usize,
    /// Form of the requantisation at each step that is one, and the position of its table in the
    /// frame.
    requants: BTreeMap<usize, (RequantForm, usize)>,
    /// Position of the first operand in the frame.
    operand_slot: usize,
    /// Constants of the steps; their table is the one before the requantisations'.
    literals: Literals,
    literal_slot: usize,
    /// The steps of the second result; its operand is the first, its place in the frame follows the operands'.
    second: Option<Box<Epilogue>>,
}

/// Where a chunk of values lies in the result.
#[derive(Clone, Copy)]
pub struct Site {
    /// Index of the chunk's first element in the whole result.
    pub element: Value,
    /// Index of the chunk's first element in its pixel: a multiple of 4.
    pub channel: Value,
    /// Index of the pixel in its image; only read if [`Epilogue::per_pixel`].
    pub pixel: Value,
    /// Elements of the chunk.
    pub lanes: usize,
}

/// Where an epilogue's operands and tables stand in the frame, and how channels are counted there.
#[derive(Clone, Copy)]
pub struct Slots<'a> {
    /// Position of the first operand among the frame's operands.
    pub operand: usize,
    /// Position of the first table among the frame's tables.
    pub table: usize,
    /// The channel at each place that [`Site::channel`] counts; `None` for the natural order.
    pub order: Option<&'a [Option<usize>]>,
}

impl Epilogue {
    /// The pointwise steps from `first` on, and their tables in order. `constants[i]` is the data of
    /// operand `i` if it is constant.
    pub fn new(
        spec: &KernelSpec,
        first: usize,
        constants: &[Option<&Tensor>],
        slots: Slots,
    ) -> Result<(Epilogue, Vec<Table>), Unsupported> {
        let (mut epilogue, mut tables) = Epilogue::of(spec, first, constants, slots)?;
        if let Some(second) = spec.second() {
            let own: Vec<Option<&Tensor>> =
                [None].into_iter().chain(constants[spec.second_operands()..].iter().copied()).collect();
            let slots = Slots {
                operand: slots.operand + epilogue.operands().len(),
                table: slots.table + tables.len(),
                ..slots
            };
            let (second, others) = Epilogue::of(second, 0, &own, slots)?;
            tables.extend(others);
            epilogue.second = Some(Box::new(second));
        }
        Ok((epilogue, tables))
    }

    /// The steps without those of a second result.
    fn of(
        spec: &KernelSpec,
        first: usize,
        constants: &[Option<&Tensor>],
        slots: Slots,
    ) -> Result<(Epilogue, Vec<Table>), Unsupported> {
        let mut requants = BTreeMap::new();
        let mut tables = Vec::new();
        let mut literals = Literals::default();
        for (index, step) in spec.steps().iter().enumerate().skip(first) {
            match &step.op {
                Op::Requant(requant) => {
                    let constant = |position: usize| match step.args.get(position) {
                        Some(&Arg::Operand(i)) => constants.get(i).copied().flatten(),
                        _ => None,
                    };
                    let (Some(mult), Some(shift)) = (constant(1), constant(2)) else {
                        return Err(Unsupported::new("requant whose mult or shift is not constant"));
                    };
                    let src = step.args.first().map(|&arg| spec.arg_type(arg)).transpose()?;
                    let range = src.and_then(|ty| ty.range).unwrap_or(Range::new(i32::MIN.into(), i32::MAX.into()));
                    let table = RequantTable::new(requant, range, [mult, shift], &step.ty, slots.order)?;
                    table.form.add_literals(requant, &mut literals);
                    requants.insert(index, (table.form, slots.table + 1 + tables.len()));
                    tables.push(Table::new(table.bytes));
                }
                Op::Add(_) if !step.ty.is_float() => {}
                Op::Clamp(clamp) => clamp_literals(Range::new(clamp.lo, clamp.hi), &mut literals),
                op => return Err(Unsupported::new(format!("`{}` among the pointwise steps of a kernel", op.name()))),
            }
        }
        tables.insert(0, Table::new(literals.bytes()));
        let (operand_slot, literal_slot) = (slots.operand, slots.table);
        let spec_of = spec.clone();
        let epilogue = Epilogue { spec: spec_of, first, requants, operand_slot, literals, literal_slot, second: None };
        for operand in epilogue.operands() {
            let ty = &spec.operands()[operand];
            if ty.shape != spec.result().shape {
                return Err(Unsupported::new(format!(
                    "operand {operand} of type {ty} is broadcast in a pointwise step"
                )));
            }
        }
        Ok((epilogue, tables))
    }

    /// What of the constants the machine code depends on besides the spec.
    pub fn form(&self) -> String {
        self.forms().map(|(step, form)| format!("{step}:{form:?} ")).collect()
    }

    /// The forms of all requantisations, by their steps.
    fn forms(&self) -> impl Iterator<Item = (usize, RequantForm)> {
        let stages = [self].into_iter().chain(self.second.as_deref());
        stages.flat_map(|stage| stage.requants.iter().map(|(&step, &(form, _))| (step, form)))
    }

    /// Whether there is a second result, whose place follows those of the operands.
    pub fn has_second(&self) -> bool {
        self.second.is_some()
    }

    /// Whether the same happens to every element, wherever it lies.
    pub fn is_uniform(&self) -> bool {
        self.forms().all(|(_, form)| form.scope == Scope::Tensor)
    }

    /// Whether a table is indexed by pixel.
    pub fn per_pixel(&self) -> bool {
        self.forms().any(|(_, form)| form.scope == Scope::Pixel)
    }

    /// The operands that pointwise steps read as values, each once.
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

    /// The result of the last step for a chunk, where `values` are the results of step `first - 1`
    /// (empty if `first` is 0). Stores the second result.
    pub fn apply(
        &self,
        c: &mut Code,
        frame: &Frame,
        site: Site,
        values: Vec<Value>,
    ) -> Result<Vec<Value>, Unsupported> {
        let results = self.steps(c, frame, site, (&values, None))?;
        if let Some(second) = &self.second {
            let place = frame.operands.get(second.operand_slot).copied();
            let place = place.ok_or_else(|| Unsupported::new("a second result without its place"))?;
            let elem = second.spec.result().elem;
            let dst = c.offset(place, site.element, elem.bytes());
            let values = second.steps(c, frame, site, (&[], Some(&results)))?;
            c.store_chunk(elem, &values, dst, site.lanes);
        }
        Ok(results)
    }

    /// The steps for a chunk. `given` are the vectors of the first operand, where it is not in memory.
    fn steps(
        &self,
        c: &mut Code,
        frame: &Frame,
        site: Site,
        (values, given): (&[Value], Option<&[Value]>),
    ) -> Result<Vec<Value>, Unsupported> {
        let missing = || Unsupported::new("a pointwise step without its operand");
        let mut operands = BTreeMap::new();
        let in_memory = if given.is_none() { self.operands() } else { Vec::new() };
        for (position, i) in in_memory.into_iter().enumerate() {
            let elem = self.spec.operands()[i].elem;
            let base = *frame.operands.get(self.operand_slot + position).ok_or_else(missing)?;
            operands.insert(i, (elem, c.offset(base, site.element, elem.bytes())));
        }
        let mut tables = BTreeMap::new();
        for (&step, &(form, position)) in &self.requants {
            let base = *frame.tables.get(position).ok_or_else(missing)?;
            let address = match form.scope {
                Scope::Tensor => base,
                Scope::Channel => c.offset(base, site.channel, form.record_bytes() / LANES),
                Scope::Pixel => c.offset(base, site.pixel, form.record_bytes()),
            };
            tables.insert(step, address);
        }
        let address = *frame.tables.get(self.literal_slot).ok_or_else(missing)?;
        let literals = LiteralTable { literals: &self.literals, address };
        let vectors = site.lanes.div_ceil(LANES);
        let mut out = Vec::with_capacity(vectors);
        for vector in 0..vectors {
            let lanes = (site.lanes - vector * LANES).min(LANES);
            let mut results: BTreeMap<usize, Value> = BTreeMap::new();
            if let Some(&value) = values.get(vector) {
                results.insert(self.first.wrapping_sub(1), value);
            }
            for (index, step) in self.spec.steps().iter().enumerate().skip(self.first) {
                let arg = |c: &mut Code, position: usize| match step.args.get(position) {
                    Some(Arg::Step(i)) => results.get(i).copied().ok_or_else(missing),
                    Some(Arg::Operand(0)) if given.is_some() => {
                        given.and_then(|given| given.get(vector)).copied().ok_or_else(missing)
                    }
                    Some(Arg::Operand(i)) => {
                        let &(elem, address) = operands.get(i).ok_or_else(missing)?;
                        let address = c.add_int(address, vector * LANES * elem.bytes());
                        c.load_chunk(elem, address, lanes).first().copied().ok_or_else(missing)
                    }
                    None => Err(missing()),
                };
                let first = arg(c, 0)?;
                let value = match &step.op {
                    Op::Requant(requant) => {
                        let (form, _) = self.requants[&index];
                        form.emit(c, requant, first, (tables[&index], literals), vector)
                    }
                    Op::Add(_) => {
                        let second = arg(c, 1)?;
                        c.b.ins().iadd(first, second)
                    }
                    Op::Clamp(clamp) => clamp_lanes(c, first, Range::new(clamp.lo, clamp.hi), literals),
                    op => return Err(Unsupported::new(format!("`{}` among pointwise steps", op.name()))),
                };
                results.insert(index, value);
            }
            let last = results.get(&(self.spec.steps().len() - 1)).copied();
            out.push(last.ok_or_else(missing)?);
        }
        Ok(out)
    }
}

/// The limits that an `i32` may exceed.
fn limits(range: Range) -> [Option<i32>; 2] {
    let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
    // The clamps keep both within an i32.
    let limit = |bound: i64| bound.clamp(min, max) as i32;
    [(range.lo > min).then(|| limit(range.lo)), (range.hi < max).then(|| limit(range.hi))]
}

/// Adds the constants of [`clamp_lanes`].
pub fn clamp_literals(range: Range, literals: &mut Literals) {
    limits(range).into_iter().flatten().for_each(|limit| literals.add_i32(limit));
}

/// Limits lanes of `i32` to `range`; a bound that no `i32` exceeds costs nothing.
pub fn clamp_lanes(c: &mut Code, value: Value, range: Range, literals: LiteralTable) -> Value {
    let [lo, hi] = limits(range).map(|limit| limit.map(|limit| literals.i32(c, limit)));
    let value = lo.map_or(value, |lo| c.b.ins().smax(value, lo));
    hi.map_or(value, |hi| c.b.ins().smin(value, hi))
}
