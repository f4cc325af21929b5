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

use crate::asm::{Asm, Binary, Gpr, Isa, Mem, Shift, ShiftBy, V, Widen};
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

/// A requantisation's instructions and where its table stands.
struct WideRequant {
    op: Requant,
    /// Position among the epilogue's tables.
    table: usize,
    /// One record for every vector of channels; otherwise one for all.
    per_channel: bool,
    /// Whether values are shifted left first.
    scaled: bool,
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

/// Registers with the addresses an epilogue reads from.
pub struct Pointers {
    /// Of each operand.
    operands: Vec<(usize, Gpr)>,
    tables: Vec<Gpr>,
    literals: Gpr,
}

/// Vectors of a requantisation's record: multipliers, those of odd lanes moved down, rounding terms, shifts,
/// left shifts.
const RECORD_VECTORS: usize = 5;
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
                    epilogue.clamp_literals(requant.op.lo, requant.op.hi);
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
        let form =
            |(step, r): (&usize, &WideRequant)| format!("{step}:{}{} ", u8::from(r.per_channel), u8::from(r.scaled));
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
        Table::new(self.literals.iter().flat_map(|&v| v.to_le_bytes().repeat(isa.lanes())).collect())
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
        Mem::at(literals, (FIXED_LITERALS.len() + found) * isa.bytes())
    }

    /// The registers with the addresses of operands (at the tile's first pixel and channel) and of tables (at
    /// its first channel), which are words of `table` from `first_word` on.
    pub fn pointers(&self, asm: &mut Asm, (table, first_word): (Gpr, usize), literals: Gpr) -> Pointers {
        let operands = self.operands();
        let tables = (0..self.requants.len()).map(|i| asm.argument(table, first_word + operands.len() + i)).collect();
        let load = |(i, operand): (usize, &usize)| (*operand, asm.argument(table, first_word + i));
        Pointers { operands: operands.iter().enumerate().map(load).collect(), tables, literals }
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

    /// Emits the steps for the sum of one vector of channels, `vector` vectors behind the pointers', of a pixel, `pixel`
    /// pixels behind them.
    pub fn emit_one(&self, asm: &mut Asm, pointers: &Pointers, pixel: usize, vector: usize, sum: V) -> V {
        let channels = self.spec.result().shape.last().copied().unwrap_or(1);
        self.vector(asm, pointers, pixel * channels, vector, Some(sum))
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
        let (tables, literals) = (&pointers.tables, pointers.literals);
        let mut results: Vec<V> = sum.into_iter().collect();
        let last = self.spec.steps().len() - 1;
        for (index, step) in self.spec.steps().iter().enumerate().skip(self.first) {
            let arg = |asm: &mut Asm, position: usize| match step.args[position] {
                Arg::Step(i) => results[i],
                Arg::Operand(i) => load(asm, i),
            };
            let value = arg(asm, 0);
            // Values are in their types' ranges, so the store's saturation is the clamp to the whole range.
            let saturates = index == last && self.spec.result().elem != Elem::I32;
            let whole = self.spec.result().elem.range().filter(|_| saturates);
            match &step.op {
                Op::Requant(_) => {
                    let requant = &self.requants[&index];
                    self.requant(asm, requant, (tables[requant.table], literals), vector, value);
                    self.clamp(asm, literals, value, (requant.op.lo, requant.op.hi), whole);
                }
                Op::Clamp(clamp) => self.clamp(asm, literals, value, (clamp.lo, clamp.hi), whole),
                _ => {
                    let other = arg(asm, 1);
                    asm.binary(Binary::AddI32, value, value, other);
                }
            }
            results.push(value);
        }
        results[last]
    }

    fn requant(&self, asm: &mut Asm, requant: &WideRequant, (table, literals): (Gpr, Gpr), vector: usize, value: V) {
        let isa = asm.isa;
        let record = if requant.per_channel { vector * RECORD_VECTORS } else { 0 };
        let part = |i: usize| Mem::at(table, (record + i) * isa.bytes());
        if requant.op.src_zero != 0 {
            asm.binary(Binary::AddI32, value, value, self.at(isa, literals, -requant.op.src_zero));
        }
        if requant.scaled {
            asm.shift_by(ShiftBy::LeftI32, value, value, part(4));
        }
        let odd = asm.vec();
        asm.shift(Shift::RightU64, odd, value, 32);
        asm.binary(Binary::MulEven, value, value, part(0));
        asm.binary(Binary::MulEven, odd, odd, part(1));
        asm.shift(Shift::RightU64, value, value, 32);
        asm.blend_odd(value, odd);
        if requant.op.round != Rounding::Floor {
            asm.binary(Binary::AddI32, value, value, part(2));
        }
        asm.shift_by(ShiftBy::RightI32, value, value, part(3));
        if requant.op.dst_zero != 0 {
            asm.binary(Binary::AddI32, value, value, self.at(isa, literals, requant.op.dst_zero));
        }
    }

    /// Limits lanes; a limit that the store's saturation to `whole` enforces costs nothing.
    fn clamp(&self, asm: &mut Asm, literals: Gpr, value: V, (lo, hi): (i64, i64), whole: Option<Range>) {
        let [low, high] = limits(lo, hi);
        let isa = asm.isa;
        // A container of 4 bits is stored as a byte, whose saturation is wider.
        let bytes = whole.filter(|r| *r != Range::new(0, 15) && *r != Range::new(-8, 7));
        if let Some(low) = low.filter(|_| bytes.is_none_or(|r| r.lo != lo)) {
            asm.binary(Binary::MaxI32, value, value, self.at(isa, literals, low));
        }
        if let Some(high) = high.filter(|_| bytes.is_none_or(|r| r.hi != hi)) {
            asm.binary(Binary::MinI32, value, value, self.at(isa, literals, high));
        }
    }
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
    let scaled = lanes.iter().any(|lane| lane.left > 0);
    let bytes = lanes.chunks(isa.lanes()).flat_map(record).collect();
    Ok((WideRequant { op: requant.clone(), table, per_channel, scaled }, Table::new(bytes)))
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

/// The bytes of a record, in the order of [`RECORD_VECTORS`].
fn record(lanes: &[Lane]) -> Vec<u8> {
    let ints = |f: &dyn Fn(usize) -> i32| (0..lanes.len()).flat_map(|i| f(i).to_le_bytes()).collect::<Vec<u8>>();
    [
        ints(&|i| lanes[i].mult),
        ints(&|i| if i % 2 == 0 { lanes[i + 1].mult } else { 0 }),
        ints(&|i| lanes[i].half),
        ints(&|i| lanes[i].shift as i32),
        ints(&|i| lanes[i].left as i32),
    ]
    .concat()
}
