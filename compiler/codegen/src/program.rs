//! From a fused graph to a program: kernels, steps, constants and the place of every value.
//!
//! In: a graph whose operators are all kernels and reshapes (a reshape is the same bytes under another
//! shape). Out: a [`Program`]: the distinct kernels, the steps that run them in order, each with the
//! places of its operands, the constants with duplicates removed, and the memory plan. Concatenations are written in
//! place where they can be ([`InPlace`]). Nothing here knows machine code.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use hawqc_ir::{Graph, KernelSpec, Op, Tensor, ValueId, text};
use hawqc_schedules::{Machine, Schedule, WideMachine};

use crate::error::{CodegenError, Unsupported};
use crate::in_place::InPlace;
use crate::interface::Interface;
use crate::kernels::{self, Dst, Lowered, Placement};
use crate::memory_plan::{self, Block, Scratch};
use crate::resident;
use crate::target::{Arch, Dot, Feature, Target};

/// What to compile for, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// Let no value take the place of another, and record the places in the manifest.
    pub keep_values: bool,
    /// Schedules of particular specs; all others get the default one.
    pub schedules: BTreeMap<KernelSpec, Schedule>,
    /// Keep the text of every function in Cranelift IR and assembly.
    pub listing: bool,
    /// Most bytes that constants may take; weights transformed ahead of time give way to plain ones.
    pub max_resident: Option<usize>,
}

impl Options {
    pub fn new(target: Target) -> Options {
        Options { target, keep_values: false, schedules: BTreeMap::new(), listing: false, max_resident: None }
    }
}

/// The facts of a target that schedules depend on.
pub fn machine(target: &Target) -> Machine {
    let wide_512 = [Feature::Avx512bw, Feature::Avx512dq, Feature::Avx512vl].iter().all(|&f| target.has(f));
    let dot_512 = wide_512 && target.has(Feature::Avx512vnni);
    Machine {
        vector_registers: match target.arch() {
            Arch::X86_64 => 16,
            Arch::Aarch64 => 32,
        },
        quad_dot: matches!(target.dot(), Dot::Vnni | Dot::Sdot | Dot::Usdot),
        wide: [
            wide_512.then_some(WideMachine { lanes: 16, registers: 32, dot: dot_512, evex: dot_512 }),
            target.has(Feature::Avx2).then(|| WideMachine {
                lanes: 8,
                registers: 16,
                dot: target.has(Feature::AvxVnni) || dot_512,
                evex: dot_512 && !target.has(Feature::AvxVnni),
            }),
        ],
    }
}

/// Where bytes lie at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Byte offset in the arena.
    Arena(usize),
    /// The model's input of this position.
    Input(usize),
    /// The program's constant of this position.
    Constant(usize),
}

/// A kernel's code, shared by all steps with the same spec, schedule, distance of pixels and constant-dependent form.
pub struct Kernel {
    /// Name for symbols and people, e.g. `kernel.3.conv`.
    pub name: String,
    pub schedule: Schedule,
    pub lowered: Lowered,
}

/// One run of a kernel.
pub struct Step {
    pub value: ValueId,
    /// Name of the source node.
    pub name: String,
    /// Symbol of the step's function.
    pub symbol: String,
    /// Position of the kernel.
    pub kernel: usize,
    /// The time expected on one thread, what was proved of the step's constants, and why preferred schedules were passed over.
    pub notes: Vec<String>,
    pub dst: Place,
    /// With the second result's behind them.
    pub operands: Vec<Place>,
    /// Positions of the constants.
    pub tables: Vec<usize>,
    /// Whether its tasks have scratch memory.
    pub has_scratch: bool,
    pub max_tasks: usize,
    /// Whether the integer entry point runs it too.
    pub in_integer: bool,
}

/// Constant bytes.
pub struct Constant {
    pub bytes: Vec<u8>,
    pub is_weights: bool,
}

pub struct Program<'g> {
    pub graph: &'g Graph,
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Step>,
    pub constants: Vec<Constant>,
    /// Bytes of the arena that values lie in.
    value_bytes: usize,
    /// Scratch memory, the end of the arena.
    pub scratch: Scratch,
    pub interface: Interface,
    pub copies: Copies,
    pub in_place: InPlace,
    /// The place of each value, by index.
    places: Vec<Option<Place>>,
}

/// A value to copy between a tensor of the caller and the model's own memory.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Position among the inputs or outputs.
    pub port: usize,
    pub place: Place,
    pub bytes: usize,
}

/// The copies at the ends of the two entry points.
#[derive(Default)]
pub struct Copies {
    pub integer_inputs: Vec<Copy>,
    pub border_outputs: Vec<Copy>,
    pub integer_outputs: Vec<Copy>,
}

impl<'g> Program<'g> {
    pub fn new(graph: &'g Graph, options: &Options) -> Result<Program<'g>, CodegenError> {
        let program = Program::build(graph, options, BTreeSet::new())?;
        let Some(limit) = options.max_resident.filter(|&limit| program.constant_bytes() > limit) else {
            return Ok(program);
        };
        let plain = resident::to_leave_plain(&program, limit);
        let program = Program::build(graph, options, plain)?;
        match program.constant_bytes() {
            bytes if bytes > limit => Err(CodegenError::Resident { bytes, limit }),
            _ => Ok(program),
        }
    }

    /// Of values and scratch memory.
    pub fn arena_bytes(&self) -> usize {
        self.scratch.end
    }

    pub fn constant_bytes(&self) -> usize {
        self.constants.iter().map(|c| c.bytes.len()).sum()
    }

    /// `plain` values have no transformed weights.
    fn build(graph: &'g Graph, options: &Options, plain: BTreeSet<ValueId>) -> Result<Program<'g>, CodegenError> {
        let interface = Interface::new(graph)?;
        let mut builder = Builder { plain, ..Builder::default() };
        let kernels = kernel_values(graph)?;
        let in_place = InPlace::new(graph, &interface, &kernels);
        let order: Vec<_> = kernels.iter().copied().filter(|&kernel| in_place.is_step(graph, kernel)).collect();
        let drafts = order
            .iter()
            .map(|&kernel| builder.draft(graph, options, kernel, &in_place.placement(graph, kernel.0)))
            .collect::<Result<Vec<Draft>, _>>()?;
        let (blocks, block_of) = blocks(graph, &interface, &in_place, &order, &drafts);
        let plan = memory_plan::plan(&blocks, options.keep_values)?;
        let needs: Vec<(usize, usize)> = drafts.iter().map(|draft| (draft.scratch_bytes, draft.max_tasks)).collect();
        let scratch = Scratch::new(&needs, plan.arena_bytes)?;
        let mut places = vec![None; graph.len()];
        for (position, &id) in graph.inputs().iter().enumerate() {
            places[id.index()] = Some(Place::Input(position));
        }
        for id in graph.values() {
            match graph.op(id) {
                Op::Reshape(_) => places[id.index()] = graph.args(id).first().and_then(|a| places[a.index()]),
                Op::Const(_) => {}
                _ => {
                    let home = in_place.home(graph, id);
                    if let Some(&block) = block_of.get(&home.whole) {
                        places[id.index()] = Some(Place::Arena(plan.offsets[block] + home.offset_bytes));
                    }
                }
            }
        }
        let mut program = Program {
            graph,
            kernels: Vec::new(),
            steps: Vec::new(),
            constants: Vec::new(),
            value_bytes: plan.arena_bytes,
            scratch,
            interface,
            copies: Copies::default(),
            in_place,
            places,
        };
        for ((index, draft), &(value, _)) in drafts.into_iter().enumerate().zip(&order) {
            let dst = program.place(value, &mut builder)?;
            let operands =
                draft.operands.iter().map(|&arg| program.place(arg, &mut builder)).collect::<Result<Vec<_>, _>>()?;
            let kernel = &builder.kernels[draft.kernel];
            let prefix = if kernel.lowered.is_border { "border" } else { "step" };
            program.steps.push(Step {
                value,
                name: graph.name(value).to_owned(),
                symbol: format!("{prefix}.{index}.{}", sanitised(graph.name(value))),
                kernel: draft.kernel,
                notes: draft.notes,
                dst,
                operands,
                tables: draft.tables,
                has_scratch: draft.scratch_bytes > 0,
                max_tasks: draft.max_tasks,
                in_integer: program.interface.integer_values.contains(&value),
            });
        }
        program.copies = program.plan_copies(&mut builder)?;
        let (kernels, constants) = builder.finish();
        (program.kernels, program.constants) = (kernels, constants);
        Ok(program)
    }

    /// Step `position` alone, under a schedule, as a program of its own. Values have the places of this
    /// program; scratch memory lies behind its values.
    pub fn variant(&self, target: &Target, position: usize, schedule: Schedule) -> Result<Program<'g>, CodegenError> {
        let missing = || CodegenError::Internal(format!("there is no step {position}"));
        let step = self.steps.get(position).ok_or_else(missing)?;
        let Op::Kernel(spec) = self.graph.op(step.value) else {
            return Err(CodegenError::Internal(format!("step {} is no kernel", step.symbol)));
        };
        let schedules = BTreeMap::from([(spec.as_ref().clone(), schedule)]);
        let options = Options { schedules, ..Options::new(target.clone()) };
        let mut builder = Builder::default();
        let placement = self.in_place.placement(self.graph, step.value);
        let draft = builder.draft(self.graph, &options, (step.value, spec), &placement)?;
        let operands =
            draft.operands.iter().map(|&arg| self.place(arg, &mut builder)).collect::<Result<Vec<_>, _>>()?;
        let scratch = Scratch::new(&[(draft.scratch_bytes, draft.max_tasks)], self.value_bytes)?;
        let step = Step {
            name: step.name.clone(),
            symbol: step.symbol.clone(),
            kernel: draft.kernel,
            notes: draft.notes,
            operands,
            tables: draft.tables,
            has_scratch: draft.scratch_bytes > 0,
            max_tasks: draft.max_tasks,
            ..*step
        };
        let (kernels, constants) = builder.finish();
        Ok(Program {
            graph: self.graph,
            kernels,
            steps: vec![step],
            constants,
            value_bytes: self.value_bytes,
            scratch,
            interface: Interface { inputs: Vec::new(), outputs: Vec::new(), integer_values: BTreeSet::new() },
            copies: Copies::default(),
            in_place: self.in_place.clone(),
            places: self.places.clone(),
        })
    }

    /// The place of a value; constants are added where they are first needed.
    fn place(&self, value: ValueId, builder: &mut Builder) -> Result<Place, CodegenError> {
        let root = root(self.graph, value);
        if let Some(tensor) = self.graph.tensor(root) {
            return Ok(Place::Constant(builder.constant(tensor.to_bytes(), false)));
        }
        self.place_of(root)
    }

    /// The place of a value that is no constant.
    pub fn place_of(&self, value: ValueId) -> Result<Place, CodegenError> {
        let place = self.places.get(root(self.graph, value).index()).copied().flatten();
        place.ok_or_else(|| CodegenError::Internal(format!("value {} has no place", value.index())))
    }

    fn plan_copies(&self, builder: &mut Builder) -> Result<Copies, CodegenError> {
        let mut copies = Copies::default();
        let mut copy = |port: usize, value: ValueId| -> Result<Copy, CodegenError> {
            Ok(Copy { port, place: self.place(value, builder)?, bytes: self.graph.ty(value).bytes() })
        };
        for (position, port) in self.interface.inputs.iter().enumerate() {
            if let Some((value, _)) = &port.integer {
                copies.integer_inputs.push(copy(position, *value)?);
            }
        }
        for (position, port) in self.interface.outputs.iter().enumerate() {
            let integer = port.integer.as_ref().map_or(port.value, |(value, _)| *value);
            copies.border_outputs.push(copy(position, port.value)?);
            copies.integer_outputs.push(copy(position, integer)?);
        }
        Ok(copies)
    }

    /// The schedule text of the program: one line for each step.
    pub fn schedule_text(&self) -> String {
        let line = |(index, step): (usize, &Step)| {
            let kernel = &self.kernels[step.kernel];
            let tasks = step.max_tasks;
            format!("{index} {} : {} | {} | tasks<={tasks}\n", step.name, kernel.name, kernel.schedule)
        };
        self.steps.iter().enumerate().map(line).collect()
    }
}

/// The value whose bytes a value has.
pub fn root(graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    while let (Op::Reshape(_), Some(&src)) = (graph.op(value), graph.args(value).first()) {
        value = src;
    }
    value
}

/// The second result of a kernel.
pub fn second(graph: &Graph, kernel: ValueId) -> Option<ValueId> {
    graph.users(kernel).into_iter().find(|&user| matches!(graph.op(user), Op::Second(_)))
}

/// The results of a kernel.
fn results(graph: &Graph, kernel: ValueId) -> impl Iterator<Item = ValueId> {
    [kernel].into_iter().chain(second(graph, kernel))
}

/// The live kernels in order; an error if the graph holds anything else that is live.
pub fn kernel_values(graph: &Graph) -> Result<Vec<(ValueId, &KernelSpec)>, CodegenError> {
    let live = graph.live();
    let mut order = Vec::new();
    for id in graph.values().filter(|id| live[id.index()]) {
        match graph.op(id) {
            Op::Kernel(spec) => order.push((id, spec.as_ref())),
            Op::Input(_) | Op::Const(_) | Op::Reshape(_) | Op::Second(_) => {}
            op => {
                return Err(CodegenError::NotFused { node: graph.name(id).to_owned(), op: op.name().to_owned() });
            }
        }
    }
    Ok(order)
}

/// A step before its operands have places.
struct Draft {
    kernel: usize,
    notes: Vec<String>,
    /// With the second result behind them.
    operands: Vec<ValueId>,
    tables: Vec<usize>,
    scratch_bytes: usize,
    max_tasks: usize,
}

/// Kernels and constants found so far.
#[derive(Default)]
struct Builder {
    kernels: Vec<Kernel>,
    by_key: BTreeMap<(KernelSpec, Schedule, Dst, String), usize>,
    constants: Vec<Constant>,
    by_hash: BTreeMap<u64, Vec<usize>>,
    /// Values whose kernels must not transform weights ahead of time.
    plain: BTreeSet<ValueId>,
}

impl Builder {
    fn draft(
        &mut self,
        graph: &Graph,
        options: &Options,
        (value, spec): (ValueId, &KernelSpec),
        placement: &Placement,
    ) -> Result<Draft, CodegenError> {
        let node =
            || if graph.name(value).is_empty() { format!("%{}", value.index()) } else { graph.name(value).to_owned() };
        let machine = machine(&options.target);
        let args = graph.args(value);
        let constants: Vec<Option<&Tensor>> = args.iter().map(|&a| graph.tensor(a).map(|t| t.as_ref())).collect();
        let plain = self.plain.contains(&value);
        let lower = |schedule: Schedule| match schedule {
            schedule if plain && schedule.transforms_weights() => {
                Err(Unsupported::new("transformed weights beyond the limit of memory"))
            }
            schedule => kernels::lower(spec, &constants, &options.target, schedule, placement),
        };
        let asked = options.schedules.get(spec).filter(|s| !plain || !s.transforms_weights());
        let (schedule, lowered, passed_over) = match asked {
            Some(&schedule) => {
                let checked = schedule.legal(spec, machine);
                checked.map_err(|source| CodegenError::Schedule { node: node(), source })?;
                (schedule, lower(schedule), Vec::new())
            }
            None => default_lowering(spec, machine, lower),
        };
        let mut lowered = lowered.map_err(|reason| CodegenError::Unsupported {
            node: node(),
            reason,
            spec: text::print_spec(spec),
        })?;
        let second = second(graph, value);
        if lowered.second != second.is_some() {
            return Err(CodegenError::Internal(format!("{}: a second result that is not stored or not read", node())));
        }
        let tables = std::mem::take(&mut lowered.tables);
        let count = tables.len();
        let tables = tables.into_iter().map(|table| self.constant(table.bytes, table.is_weights)).collect();
        let proof = Some(std::mem::take(&mut lowered.proof)).filter(|proof| !proof.is_empty());
        let estimate = schedule.estimated_ns(spec, machine).map(|ns| format!("estimate {:.1} us", ns / 1e3));
        let draft = Draft {
            kernel: 0,
            notes: estimate.into_iter().chain(proof).chain(passed_over).collect(),
            operands: lowered.operands.iter().map(|&i| args[i]).chain(second).collect(),
            tables,
            scratch_bytes: lowered.scratch_bytes,
            max_tasks: lowered.max_tasks(),
        };
        let kernels = &mut self.kernels;
        let key = (spec.clone(), schedule, placement.dst, lowered.forms.clone());
        let kernel = *self.by_key.entry(key).or_insert_with(|| {
            let prefix = if lowered.is_border { "border.kernel" } else { "kernel" };
            let name = format!("{prefix}.{}.{}", kernels.len(), lowered.family);
            // The code needs to know how many tables there are, not what they hold.
            lowered.tables = (0..count).map(|_| kernels::Table::new(Vec::new())).collect();
            kernels.push(Kernel { name, schedule, lowered });
            kernels.len() - 1
        });
        Ok(Draft { kernel, ..draft })
    }

    /// The position of a constant, added if there is none with the same bytes.
    fn constant(&mut self, bytes: Vec<u8>, is_weights: bool) -> usize {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let same = self.by_hash.entry(hasher.finish()).or_default();
        if let Some(&found) = same.iter().find(|&&i| self.constants[i].bytes == bytes) {
            self.constants[found].is_weights |= is_weights;
            return found;
        }
        same.push(self.constants.len());
        self.constants.push(Constant { bytes, is_weights });
        self.constants.len() - 1
    }

    fn finish(self) -> (Vec<Kernel>, Vec<Constant>) {
        (self.kernels, self.constants)
    }
}

/// The first preferred schedule that this kernel's constants allow, and why those before it were not.
fn default_lowering(
    spec: &KernelSpec,
    machine: Machine,
    lower: impl Fn(Schedule) -> Result<Lowered, Unsupported>,
) -> (Schedule, Result<Lowered, Unsupported>, Vec<String>) {
    let mut preferred = Schedule::preferred(spec, machine);
    let last = preferred.pop().unwrap_or(Schedule::Default);
    let mut passed_over = Vec::new();
    for schedule in preferred {
        match lower(schedule) {
            Ok(lowered) => return (schedule, Ok(lowered), passed_over),
            Err(reason) => passed_over.push(format!("not `{schedule}`: {reason}")),
        }
    }
    (last, lower(last), passed_over)
}

/// The blocks of memory: one for each result of a kernel that is no part of another; and the block of each such result, which
/// is there from the first step that writes to it on. Step `i` is time `i + 1`: at time 0 integer inputs are copied in, after
/// the last step outputs are copied out.
fn blocks(
    graph: &Graph,
    interface: &Interface,
    in_place: &InPlace,
    order: &[(ValueId, &KernelSpec)],
    drafts: &[Draft],
) -> (Vec<Block>, BTreeMap<ValueId, usize>) {
    let end = order.len() + 1;
    let mut blocks: Vec<Block> = Vec::new();
    let mut block_of = BTreeMap::new();
    for (time, &(value, _)) in order.iter().enumerate() {
        let first = if interface.integer_inputs().any(|v| v == value) { 0 } else { time + 1 };
        for result in results(graph, value) {
            let whole = in_place.home(graph, result).whole;
            let block = *block_of.entry(whole).or_insert(blocks.len());
            if block == blocks.len() {
                blocks.push(Block { bytes: graph.ty(whole).bytes(), first, last: time + 1 });
            }
            blocks[block].last = time + 1;
        }
    }
    for (time, draft) in drafts.iter().enumerate() {
        for &operand in &draft.operands {
            if let Some(&block) = block_of.get(&root(graph, operand)) {
                blocks[block].last = blocks[block].last.max(time + 1);
            }
        }
    }
    let finals: BTreeSet<ValueId> = interface.final_values().map(|v| root(graph, v)).collect();
    for value in finals {
        if let Some(&block) = block_of.get(&value) {
            blocks[block].last = end;
        }
    }
    (blocks, block_of)
}

/// A node's name as part of a symbol.
fn sanitised(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '.' { c } else { '_' };
    name.chars().map(keep).take(64).collect()
}
