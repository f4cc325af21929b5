//! Runs one kernel with its operands against guard pages, and compares with the interpreter: through
//! the JIT, or, for an x86-64 target that does not run on this machine, linked and in the emulator. A kernel whose pixels
//! may lie apart also writes them into a concatenation, between neighbours that must stay as they are.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use hawqc_ir::text::seeded;
use hawqc_ir::*;
use hawqc_runtime::abi::{self, Call, RunFn, TaskFn};
use hawqc_schedules::Schedule;
use hawqc_x86_emulator::{Features, Machine};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, elf};

use crate::kernels::writes_apart;
use crate::link::{LinkWith, link};
use crate::lower::lower;
use crate::object::{JitCode, jit_module, object_bytes, object_module};
use crate::program::{Options, Program};
use crate::target::{Arch, Target};

/// A buffer that ends, or starts, at a page that cannot be touched.
pub struct Guarded {
    base: *mut u8,
    total: usize,
    start: *mut u8,
    len: usize,
}

const PAGE: usize = 4096;

unsafe extern "C" {
    fn mmap(addr: *mut c_void, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut c_void;
    fn mprotect(addr: *mut c_void, len: usize, prot: i32) -> i32;
    fn munmap(addr: *mut c_void, len: usize) -> i32;
}

impl Guarded {
    /// `len` bytes of 0xa5, flush with the guard page behind (`at_end`) or before them.
    pub fn new(len: usize, at_end: bool) -> Guarded {
        let inner = len.max(1).next_multiple_of(PAGE);
        let total = inner + 2 * PAGE;
        // SAFETY: an anonymous private mapping of fresh pages (PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS).
        let base = unsafe { mmap(std::ptr::null_mut(), total, 0, 0x22, -1, 0) }.cast::<u8>();
        assert_ne!(base as isize, -1);
        // SAFETY: inside the mapping just made; read and write.
        assert_eq!(unsafe { mprotect(base.add(PAGE).cast(), inner, 3) }, 0);
        let shift = if at_end { inner - len } else { 0 };
        // SAFETY: inside the mapping.
        let start = unsafe { base.add(PAGE + shift) };
        let mut buffer = Guarded { base, total, start, len };
        buffer.bytes().fill(0xa5);
        buffer
    }

    pub fn holding(bytes: &[u8], at_end: bool) -> Guarded {
        let mut buffer = Guarded::new(bytes.len(), at_end);
        buffer.bytes().copy_from_slice(bytes);
        buffer
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start..start + len` is mapped for reading and writing while `self` lives.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { munmap(self.base.cast(), self.total) };
    }
}

/// Runs the tasks of a step one after the other, the last first.
unsafe extern "C" fn backwards(_: *mut c_void, run: TaskFn, call: *const Call, tasks: i64) {
    for task in (0..tasks).rev() {
        // SAFETY: as the model called us.
        unsafe { run(call, task, tasks) };
    }
}

/// A program's code where it can be run.
enum Code {
    Native { run: RunFn, _code: Box<JitCode> },
    Emulated(Box<Emulated>),
}

impl Code {
    fn of(program: &Program, target: &Target) -> Code {
        if is_emulated(target) {
            return Code::Emulated(Box::new(Emulated::load(program, target)));
        }
        let mut module = jit_module(target, 64 << 20).unwrap();
        let defined = lower(&mut module, program, Vec::from(*b"test"), false).unwrap();
        let code = JitCode::finish(module).unwrap();
        // SAFETY: `lower` defines entry points of this type, and `code` is kept with the pointer.
        let run = unsafe { std::mem::transmute::<*const u8, RunFn>(code.function(defined.run)) };
        Code::Native { run, _code: Box::new(code) }
    }

    /// Runs `call`, whose `inputs` and `outputs` point at tables of as many addresses as there are
    /// buffers.
    fn run(&self, call: &Call, inputs: &[Guarded], outputs: &[Guarded], arena: &Guarded) {
        match self {
            // SAFETY: every buffer has the size the program asks for and outlives the call.
            Code::Native { run, .. } => unsafe { run(call) },
            Code::Emulated(emulated) => emulated.run(call, inputs, outputs, arena),
        }
    }
}

/// A linked model for an emulated x86-64, mapped where a loader would.
struct Emulated {
    machine: RefCell<Machine>,
    /// What is mapped, and how far into it.
    readable: Vec<(usize, usize)>,
    entry: *const u8,
    image: Guarded,
}

impl Emulated {
    fn load(program: &Program, target: &Target) -> Emulated {
        let mut module = object_module(target, "model").unwrap();
        lower(&mut module, program, Vec::from(*b"test"), false).unwrap();
        let shared = link(&object_bytes(module).unwrap(), "model.so", &LinkWith::Own).unwrap();
        let file = ElfFile64::<Endianness>::parse(&*shared).unwrap();
        let endian = file.endian();
        let run = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(abi::RUN_SYMBOL)).unwrap();
        let loads = || file.elf_program_headers().iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
        let end = loads().map(|header| header.p_vaddr(endian) + header.p_memsz(endian)).max().unwrap();
        let mut image = Guarded::new(end as usize, false);
        let mut machine = Machine::new(Features::named(target.features().iter().map(|f| f.name())).unwrap());
        let mut readable = Vec::new();
        for header in loads() {
            let (at, bytes) = (header.p_vaddr(endian) as usize, header.data(endian, &*shared).unwrap());
            image.bytes()[at..at + bytes.len()].copy_from_slice(bytes);
            readable.push((at, bytes.len()));
            if header.p_flags(endian) & elf::PF_X != 0 {
                // SAFETY: inside the image, which lives as long as the machine.
                unsafe { machine.add_code(image.start.add(at), bytes.len()) };
            }
        }
        machine.on_call(
            backwards as *const () as u64,
            Box::new(|machine, [_, run, call, tasks, ..]| {
                for task in (0..tasks).rev() {
                    // SAFETY: the machine's memory is restricted, see `run`.
                    unsafe { machine.call(run as *const u8, &[call, task, tasks])? };
                }
                Ok(0)
            }),
        );
        // SAFETY: the symbol is inside the image.
        let entry = unsafe { image.start.add(run.address() as usize) };
        Emulated { machine: RefCell::new(machine), readable, entry, image }
    }

    fn run(&self, call: &Call, inputs: &[Guarded], outputs: &[Guarded], arena: &Guarded) {
        let mut machine = self.machine.borrow_mut();
        machine.forbid_all();
        // SAFETY: all of it is alive and of these sizes while the code runs, and nothing else may be touched.
        let done = unsafe {
            for &(at, bytes) in &self.readable {
                machine.allow_read(self.image.start.add(at), bytes);
            }
            machine.allow_read(std::ptr::from_ref(call).cast(), size_of::<Call>());
            machine.allow_read(call.inputs.cast(), size_of_val(&call.inputs) * inputs.len());
            machine.allow_read(call.outputs.cast(), size_of_val(&call.outputs) * outputs.len());
            inputs.iter().for_each(|buffer| machine.allow_read(buffer.start, buffer.len));
            outputs.iter().chain([arena]).for_each(|buffer| machine.allow_write(buffer.start, buffer.len));
            machine.call(self.entry, &[std::ptr::from_ref(call) as u64])
        };
        if let Err(fault) = done {
            let at = fault.address.wrapping_sub(self.image.start as u64);
            panic!("emulated code, at {at:#x} of its image: {fault}");
        }
    }
}

/// Whether code for `target` is run in the emulator: it is x86-64, and this machine cannot run it or
/// `HAWQC_EMULATE=all` asks for it.
fn is_emulated(target: &Target) -> bool {
    let asked = std::env::var("HAWQC_EMULATE").is_ok_and(|value| value == "all");
    target.arch() == Arch::X86_64 && (asked || !target.runs_here())
}

/// A graph to be compiled and run.
struct Trial {
    graph: Graph,
    inputs: Vec<Tensor>,
    expected: Vec<Tensor>,
    /// Of its program.
    steps: usize,
}

/// A kernel with its operands.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub name: String,
    pub operands: Vec<Operand>,
    pub body: Vec<(Op, Vec<Arg>)>,
    /// A requantisation of the result that makes a second one, with its constants.
    pub second: Option<(Requant, [Tensor; 2])>,
}

#[derive(Clone, Debug)]
pub enum Operand {
    Constant(Tensor),
    /// A declared type and a value of it.
    Input(TensorType, Tensor),
}

impl Operand {
    pub fn input(ty: TensorType, seed: u64) -> Operand {
        let range = ty.range.unwrap_or(Range::new(-2000, 2000));
        let tensor = seeded(&ty, seed, range).unwrap();
        Operand::Input(ty, tensor)
    }

    /// The extremes of the type's range in a pattern that depends on the seed.
    pub fn extreme(ty: TensorType, seed: u64) -> Operand {
        let range = ty.range.unwrap();
        let choice = seeded(&TensorType::new(Elem::U8, ty.shape.clone()), seed, Range::new(0, 5)).unwrap();
        let pick = |c: i64| if c % 2 == seed as i64 % 2 { range.lo } else { range.hi };
        let values =
            choice.ints().unwrap().into_iter().map(|c| if seed.is_multiple_of(3) { range.hi } else { pick(c) });
        Operand::Input(ty.clone(), Tensor::from_ints(ty.elem, ty.shape.clone(), values).unwrap())
    }

    fn ty(&self) -> TensorType {
        match self {
            Operand::Constant(tensor) => tensor.ty(),
            Operand::Input(ty, _) => ty.clone(),
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Operand::Constant(tensor) | Operand::Input(_, tensor) => tensor,
        }
    }
}

impl Case {
    pub fn spec(&self) -> KernelSpec {
        let types = self.operands.iter().map(Operand::ty).collect();
        let spec = KernelSpec::new(types, self.body.clone()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        match &self.second {
            None => spec,
            Some(second) => {
                let second = second_spec(spec.result(), second);
                spec.with_second(Arc::new(second)).unwrap_or_else(|e| panic!("{}: {e}", self.name))
            }
        }
    }

    pub fn graph(&self) -> (Graph, Vec<Tensor>) {
        let (mut graph, mut inputs) = (Graph::new(), Vec::new());
        let value = self.add_to(&mut graph, &mut inputs);
        graph.output("y", value);
        let spec = self.spec();
        if let Some(second) = spec.second() {
            let mut args = graph.args(value).split_off(spec.second_operands());
            args.insert(0, value);
            let second = graph.add("second", Op::Second(Arc::clone(second)), &args).unwrap();
            graph.output("second", second);
        }
        verify::check(&graph).unwrap();
        (graph, inputs)
    }

    fn add_to(&self, graph: &mut Graph, inputs: &mut Vec<Tensor>) -> ValueId {
        let mut args = Vec::new();
        for operand in &self.operands {
            args.push(match operand {
                Operand::Constant(tensor) => graph.constant(tensor.clone()),
                Operand::Input(ty, tensor) => {
                    inputs.push(tensor.clone());
                    graph.input(format!("x{}", inputs.len()), ty.clone()).unwrap()
                }
            });
        }
        let parameters = self.second.iter().flat_map(|(_, constants)| constants.clone());
        args.extend(parameters.map(|tensor| graph.constant(tensor)));
        graph.add(self.name.clone(), Op::Kernel(Arc::new(self.spec())), &args).unwrap()
    }

    /// The kernel alone.
    fn alone(&self) -> Trial {
        let (graph, inputs) = self.graph();
        Trial { graph, inputs, expected: self.expected(), steps: 1 }
    }

    /// The kernel's result between those of two kernels that run before it, all written where they are joined; `None` where
    /// pixels cannot lie apart.
    fn joined(&self) -> Option<Trial> {
        let spec = self.spec();
        let out = spec.result();
        let (true, Some(range)) = (writes_apart(&spec), out.elem.range()) else { return None };
        let (mut graph, mut inputs, axis) = (Graph::new(), Vec::new(), out.rank() - 1);
        let neighbours = [3, 5].map(|channels| {
            let mut shape = out.shape.clone();
            shape[axis] = channels;
            let operand = Operand::input(TensorType::with_range(out.elem, shape, range).unwrap(), channels as u64);
            let clamp = Clamp { lo: range.lo, hi: range.hi, elem: out.elem };
            let body = vec![(clamp.into(), vec![Arg::Operand(0)])];
            let neighbour = Case { name: "neighbour".into(), operands: vec![operand], body, ..Case::default() };
            (neighbour.add_to(&mut graph, &mut inputs), neighbour.expected().remove(0))
        });
        let [(left, left_value), (right, right_value)] = neighbours;
        let args = [left, self.add_to(&mut graph, &mut inputs), right];
        let types = args.iter().map(|&arg| graph.ty(arg).clone()).collect();
        let concat =
            KernelSpec::new(types, vec![(Concat { axis }.into(), (0..3).map(Arg::Operand).collect())]).unwrap();
        let expected = concat.eval(&[&left_value, &self.expected()[0], &right_value]).unwrap();
        let value = graph.add("joined", Op::Kernel(Arc::new(concat)), &args).unwrap();
        graph.output("y", value);
        Some(Trial { graph, inputs, expected: vec![expected], steps: 3 })
    }

    /// The results.
    pub fn expected(&self) -> Vec<Tensor> {
        let (graph, inputs) = self.graph();
        interp::run(&graph, &inputs).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// The same with each weight, operand 1, replaced.
    pub fn with_weights(&self, change: impl Fn(i64) -> i64) -> Case {
        let mut case = self.clone();
        let weights = case.operands[1].tensor();
        let changed = weights.ints().unwrap().into_iter().map(change);
        case.operands[1] = Operand::Constant(Tensor::from_ints(weights.elem(), weights.shape(), changed).unwrap());
        case
    }

    /// Whether the operands' values allow a schedule; a schedule may only be refused by its proof.
    pub fn allows(&self, target: &Target, schedule: Schedule) -> bool {
        let (graph, _) = self.graph();
        let mut options = Options::new(target.clone());
        options.schedules.insert(self.spec(), schedule);
        match Program::new(&graph, &options) {
            Ok(_) => true,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("refused") || text.contains("beyond 16 bits"), "{}: {text}", self.name);
                false
            }
        }
    }

    /// Checks every given schedule, with the given numbers of tasks, on a target.
    pub fn check(&self, target: &Target, schedules: &[Schedule], threads: &[i64]) {
        let (alone, joined) = (self.alone(), self.joined());
        for &schedule in schedules {
            self.run_trials(&alone, joined.as_ref(), target, Some(schedule), threads);
        }
    }

    /// Checks the schedule that is chosen where none is asked for.
    pub fn check_default(&self, target: &Target) {
        self.run_trials(&self.alone(), self.joined().as_ref(), target, None, &[1, 3]);
    }

    fn run_trials(
        &self,
        alone: &Trial,
        joined: Option<&Trial>,
        target: &Target,
        schedule: Option<Schedule>,
        threads: &[i64],
    ) {
        let runs: Vec<(i64, bool)> = threads.iter().flat_map(|&threads| [(threads, true), (threads, false)]).collect();
        self.run_trial(alone, target, schedule, &runs);
        if let Some(joined) = joined {
            self.run_trial(joined, target, schedule, &runs[runs.len() - 1..]);
        }
    }

    /// Compiles once and runs with numbers of threads, and with buffers before or behind their guard pages.
    fn run_trial(&self, trial: &Trial, target: &Target, schedule: Option<Schedule>, runs: &[(i64, bool)]) {
        let Trial { graph, inputs, expected, steps } = trial;
        let mut options = Options::new(target.clone());
        options.schedules.extend(schedule.map(|schedule| (self.spec(), schedule)));
        let mut program = Program::new(graph, &options).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert_eq!(program.steps.len(), *steps, "{}", self.name);
        // Small cases would never be split.
        for step in &mut program.steps {
            let units = program.kernels[step.kernel].lowered.units;
            step.max_tasks = if step.has_scratch { step.max_tasks } else { units.min(64) };
        }
        let code = Code::of(&program, target);
        for &(threads, at_end) in runs {
            let found = self.run(&code, &program, inputs, expected, threads, at_end);
            for (expected, found) in expected.iter().zip(found) {
                if found != expected.to_bytes() {
                    let found = Tensor::from_bytes(expected.elem(), expected.shape(), &found).unwrap();
                    panic!(
                        "{} on {target}, {threads} threads:\n{}{}",
                        self.name,
                        program.schedule_text(),
                        difference(expected, &found)
                    );
                }
            }
        }
    }

    fn run(
        &self,
        code: &Code,
        program: &Program,
        inputs: &[Tensor],
        expected: &[Tensor],
        threads: i64,
        at_end: bool,
    ) -> Vec<Vec<u8>> {
        let inputs: Vec<Guarded> = inputs.iter().map(|t| Guarded::holding(&t.to_bytes(), at_end)).collect();
        let guarded = |tensor: &Tensor| Guarded::new(tensor.to_bytes().len(), at_end);
        let mut outputs: Vec<Guarded> = expected.iter().map(guarded).collect();
        let mut arena = Guarded::new(program.arena_bytes(), at_end);
        let input_pointers: Vec<*const c_void> = inputs.iter().map(|i| i.start.cast_const().cast()).collect();
        let output_pointers: Vec<*mut c_void> = outputs.iter().map(|o| o.start.cast()).collect();
        let call = Call {
            inputs: input_pointers.as_ptr(),
            outputs: output_pointers.as_ptr(),
            arena: arena.start,
            threads,
            parallel_for: Some(backwards),
            pool: std::ptr::null_mut(),
            on_step: None,
            on_step_user: std::ptr::null_mut(),
        };
        code.run(&call, &inputs, &outputs, &arena);
        let outputs: Vec<Vec<u8>> = outputs.iter_mut().map(|output| output.bytes().to_vec()).collect();
        if program.steps.iter().all(|step| !step.has_scratch) && outputs.len() == 1 {
            let used = outputs[0].len();
            assert!(arena.bytes()[used..].iter().all(|&b| b == 0xa5), "{} wrote behind its result", self.name);
        }
        outputs
    }
}

/// The kernel of a second result.
fn second_spec(first: &TensorType, (requant, constants): &(Requant, [Tensor; 2])) -> KernelSpec {
    let operands = [first.clone()].into_iter().chain(constants.iter().map(Tensor::ty)).collect();
    let args = (0..3).map(Arg::Operand).collect();
    KernelSpec::new(operands, vec![(requant.clone().into(), args)]).unwrap()
}

fn difference(expected: &Tensor, found: &Tensor) -> String {
    let (e, f) = match (expected.ints(), found.ints()) {
        (Ok(e), Ok(f)) => (e, f),
        _ => {
            let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|v| v.to_bits().into()).collect::<Vec<i64>>();
            (bits(expected), bits(found))
        }
    };
    let wrong: Vec<usize> = (0..e.len()).filter(|&i| e[i] != f[i]).collect();
    let first: Vec<String> =
        wrong.iter().take(8).map(|&i| format!("  [{i}] expected {} found {}", e[i], f[i])).collect();
    format!("{} of {} elements of {:?} differ\n{}", wrong.len(), e.len(), expected.shape(), first.join("\n"))
}

/// The targets whose code can be run here: by this machine, or in the emulator. What is emulated or
/// skipped is named on standard error, and is a failure where `HAWQC_REQUIRE` names one of the features
/// that this machine lacks (or is `all`).
pub fn runnable_targets() -> Vec<Target> {
    let required = std::env::var("HAWQC_REQUIRE").unwrap_or_default();
    let mut out = Vec::new();
    for name in ["x86-64-v2", "x86-64-v3", "x86-avxvnni", "x86-avx512", "aarch64", "aarch64-dotprod", "aarch64-i8mm"] {
        let target = match name {
            "aarch64-i8mm" => Target::parse("aarch64").unwrap().with_changes("+i8mm").unwrap(),
            name => Target::parse(name).unwrap(),
        };
        if target.runs_here() && !is_emulated(&target) {
            out.push(target);
            continue;
        }
        let missing: Vec<&str> = target.missing_here().iter().map(|f| f.name()).collect();
        if is_emulated(&target) {
            eprintln!("EMULATED: kernels for {name} run in the emulator (this machine lacks {missing:?})");
        } else {
            eprintln!("SKIPPED: kernels for {name} do not run on this machine (it lacks {missing:?})");
        }
        let demanded = !target.runs_here() && required.split(',').any(|r| r == "all" || missing.contains(&r));
        assert!(!demanded, "HAWQC_REQUIRE={required}, and {name} cannot run here");
        if is_emulated(&target) {
            out.push(target);
        }
    }
    assert!(!out.is_empty());
    out
}
