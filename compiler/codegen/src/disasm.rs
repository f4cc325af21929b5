//! The audit of produced machine code: what the bytes do, judged from the bytes.
//!
//! In: a shared object with a symbol table ([`crate::link::link`]). Out: a [`Report`] of every
//! instruction that breaks a rule, with its function and address. [`audit_integer_only`] holds code
//! to integers: no floating-point arithmetic, conversion or comparison and no division outside the
//! functions whose names begin with [`BORDER_PREFIX`](crate::object::BORDER_PREFIX).
//! [`audit_features`] holds all code to a target's features.
//!
//! What makes it hard to get past: every byte that is mapped executable belongs to exactly one
//! function or is filler; a function is read by following its control flow from its first byte, so
//! constants between instructions are neither taken for code nor able to hide any; and control flow
//! that cannot be followed (a computed jump, a jump or call to somewhere that is not an instruction
//! of the same function or the start of a function, overlapping instructions, an undecodable one) is
//! itself a finding. Computed calls are allowed: the ABI's callbacks need them. A `br_table` compiles
//! to a computed jump and so does not pass.
//!
//! Moves, shuffles and bitwise logic with floating-point names (`movaps`, `xorps`, `fmov`) are not
//! arithmetic: compilers use them for integers. The exact rules are in [`x86`] and [`aarch64`].

mod aarch64;
mod x86;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, SymbolKind};
use thiserror::Error;

use crate::object::BORDER_PREFIX;
use crate::target::{Arch, Feature, Target};

/// Why code cannot be audited at all.
#[derive(Debug, Error)]
pub enum DisasmError {
    #[error("the shared object cannot be read: {message}")]
    Malformed { message: String },
    #[error("only x86-64 and aarch64 code can be audited, this is {found}")]
    UnsupportedArch { found: String },
    #[error("the shared object names no functions, so borders cannot be told from the rest")]
    NoFunctions,
    #[error("function `{function}` at {address:#x} is not inside executable memory")]
    Unmapped { function: String, address: u64 },
    #[error("functions `{first}` and `{second}` overlap at {address:#x}")]
    Overlap { first: String, second: String, address: u64 },
    #[error("{bytes} executable bytes at {address:#x} belong to no function")]
    Uncovered { address: u64, bytes: u64 },
    #[error("the code is for {found}, the target {target} is for {expected}")]
    OtherArch { found: Arch, target: String, expected: Arch },
}

/// What is wrong with an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Floating-point arithmetic, conversion or comparison outside a border function.
    Float,
    /// Integer division outside a border function.
    Division,
    /// It needs this CPU feature, which the target does not have.
    Feature(String),
    /// A jump to a computed address.
    ComputedJump,
    /// A jump, call or fall-through to somewhere that is not the start of an instruction of the same
    /// function or of a function.
    WildTarget(u64),
    /// Not an instruction that generated code uses.
    Undecodable,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Float => f.write_str("floating point"),
            Problem::Division => f.write_str("division"),
            Problem::Feature(name) => write!(f, "needs {name}"),
            Problem::ComputedJump => f.write_str("computed jump"),
            Problem::WildTarget(target) => write!(f, "leaves its function for {target:#x}"),
            Problem::Undecodable => f.write_str("not a known instruction"),
        }
    }
}

/// One instruction that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub function: String,
    pub address: u64,
    /// The instruction as text (x86-64) or as a word (aarch64).
    pub instruction: String,
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { function, address, instruction, problem } = self;
        write!(f, "{function} at {address:#x}: `{instruction}`: {problem}")
    }
}

/// What an audit saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Functions looked at.
    pub functions: usize,
    /// Of these, functions of the border.
    pub border_functions: usize,
    /// Instructions looked at.
    pub instructions: usize,
    /// In the order of addresses within each function; empty if the code keeps the rules.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Holds every function but the border's to integer code without division.
pub fn audit_integer_only(shared_object: &[u8]) -> Result<Report, DisasmError> {
    let code = Code::read(shared_object)?;
    Ok(code.audit(beyond_integers))
}

/// Holds every function to the features of `target`.
pub fn audit_features(shared_object: &[u8], target: &Target) -> Result<Report, DisasmError> {
    let code = Code::read(shared_object)?;
    if code.arch != target.arch() {
        return Err(DisasmError::OtherArch {
            found: code.arch,
            target: target.name().to_owned(),
            expected: target.arch(),
        });
    }
    Ok(code.audit(|_, decoded| beyond_features(target, decoded)))
}

/// Holds one function, `code` alone, to the features of `target` and to what a function of that name may compute.
#[cfg(test)]
pub(crate) fn audit_function(name: &str, code: &[u8], target: &Target) -> Report {
    let function = Function { name: name.to_owned(), range: 0..code.len() as u64 };
    let code = Code {
        arch: target.arch(),
        segments: vec![Segment { address: 0, bytes: code }],
        functions: vec![function],
        starts: BTreeSet::from([0]),
    };
    code.audit(|function, decoded| {
        let mut problems = beyond_integers(function, decoded);
        problems.extend(beyond_features(target, decoded));
        problems
    })
}

fn beyond_integers(function: &Function, decoded: &Decoded) -> Vec<Problem> {
    if function.is_border() {
        return Vec::new();
    }
    let problem = match decoded.class {
        Class::Float => Problem::Float,
        Class::Division => Problem::Division,
        Class::Other => return Vec::new(),
    };
    vec![problem]
}

fn beyond_features(target: &Target, decoded: &Decoded) -> Vec<Problem> {
    let missing = decoded.needs.iter().filter(|need| match need {
        Need::Feature(feature) => !target.has(*feature),
        Need::Unlisted(_) => true,
    });
    missing.map(|need| Problem::Feature(need.to_string())).collect()
}

/// What an instruction computes, as far as the audit cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Float,
    Division,
    Other,
}

/// A CPU feature beyond the architecture's base.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Feature(Feature),
    /// One that no target has.
    Unlisted(String),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Feature(feature) => f.write_str(feature.name()),
            Need::Unlisted(name) => f.write_str(name),
        }
    }
}

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    /// To the target only.
    Jump(u64),
    /// To the target or the next instruction.
    Branch(u64),
    /// To the target, then the next instruction.
    Call(u64),
    /// To a computed address, then the next instruction.
    ComputedCall,
    ComputedJump,
    /// Return or trap.
    Stop,
}

/// One instruction, decoded.
struct Decoded {
    bytes: u64,
    flow: Flow,
    class: Class,
    needs: Vec<Need>,
    text: String,
}

/// Decodes the instruction at the start of `bytes`, which is at `address`; none if there is none.
fn decode(arch: Arch, bytes: &[u8], address: u64) -> Option<Decoded> {
    match arch {
        Arch::X86_64 => x86::decode(bytes, address),
        Arch::Aarch64 => aarch64::decode(bytes, address),
    }
}

struct Function {
    name: String,
    range: Range<u64>,
}

impl Function {
    fn is_border(&self) -> bool {
        self.name.starts_with(BORDER_PREFIX)
    }
}

/// A run of executable bytes.
struct Segment<'a> {
    address: u64,
    bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    fn get(&self, range: &Range<u64>) -> Option<&'a [u8]> {
        let start = usize::try_from(range.start.checked_sub(self.address)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.address)?).ok()?;
        self.bytes.get(start..end)
    }
}

/// The executable bytes of a shared object, cut into functions.
struct Code<'a> {
    arch: Arch,
    segments: Vec<Segment<'a>>,
    /// Sorted by address, disjoint, each within a segment.
    functions: Vec<Function>,
    starts: BTreeSet<u64>,
}

impl<'a> Code<'a> {
    fn read(bytes: &'a [u8]) -> Result<Code<'a>, DisasmError> {
        let malformed = |error: object::read::Error| DisasmError::Malformed { message: error.to_string() };
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(malformed)?;
        let arch = match file.architecture() {
            object::Architecture::X86_64 => Arch::X86_64,
            object::Architecture::Aarch64 => Arch::Aarch64,
            other => {
                return Err(DisasmError::UnsupportedArch { found: format!("{other:?}") });
            }
        };
        let endian = file.endian();
        let mut segments = Vec::new();
        for header in file.elf_program_headers() {
            if header.p_type(endian) == elf::PT_LOAD && header.p_flags(endian) & elf::PF_X != 0 {
                let data = header.data(endian, bytes);
                segments.push(Segment {
                    address: header.p_vaddr(endian),
                    bytes: data.map_err(|()| DisasmError::Malformed {
                        message: "an executable segment lies outside the file".to_owned(),
                    })?,
                });
            }
        }
        let mut functions = Vec::new();
        for symbol in file.symbols() {
            if symbol.kind() == SymbolKind::Text && !symbol.is_undefined() && symbol.size() > 0 {
                let start = symbol.address();
                functions.push(Function {
                    name: symbol.name().map_err(malformed)?.to_owned(),
                    range: start..start.saturating_add(symbol.size()),
                });
            }
        }
        functions.sort_by_key(|function| function.range.start);
        let code = Code { arch, segments, starts: functions.iter().map(|f| f.range.start).collect(), functions };
        code.check_cover()?;
        Ok(code)
    }

    /// Every function is mapped, none overlap, and nothing but filler lies between them.
    fn check_cover(&self) -> Result<(), DisasmError> {
        if self.functions.is_empty() {
            return Err(DisasmError::NoFunctions);
        }
        for pair in self.functions.windows(2) {
            if let [first, second] = pair
                && first.range.end > second.range.start
            {
                return Err(DisasmError::Overlap {
                    first: first.name.clone(),
                    second: second.name.clone(),
                    address: second.range.start,
                });
            }
        }
        for function in &self.functions {
            if self.bytes_of(&function.range).is_none() {
                return Err(DisasmError::Unmapped { function: function.name.clone(), address: function.range.start });
            }
        }
        for segment in &self.segments {
            let end = segment.address.saturating_add(segment.bytes.len() as u64);
            let mut at = segment.address;
            let inside = |function: &&Function| function.range.start >= segment.address && function.range.end <= end;
            for function in self.functions.iter().filter(inside) {
                self.check_filler(segment, at..function.range.start)?;
                at = function.range.end;
            }
            self.check_filler(segment, at..end)?;
        }
        Ok(())
    }

    /// `int3`, `nop` and zeros (a trap or nothing on both architectures) between functions.
    fn check_filler(&self, segment: &Segment<'_>, range: Range<u64>) -> Result<(), DisasmError> {
        let filler: &[u8] = match self.arch {
            Arch::X86_64 => &[0x00, 0x90, 0xCC],
            Arch::Aarch64 => &[0x00],
        };
        let gap = segment.get(&range).unwrap_or_default();
        if gap.iter().all(|byte| filler.contains(byte)) {
            Ok(())
        } else {
            Err(DisasmError::Uncovered { address: range.start, bytes: range.end - range.start })
        }
    }

    fn bytes_of(&self, range: &Range<u64>) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| segment.get(range))
    }

    /// Reads every function, asking `judge` about every instruction.
    fn audit(&self, judge: impl Fn(&Function, &Decoded) -> Vec<Problem>) -> Report {
        let mut report = Report {
            functions: self.functions.len(),
            border_functions: self.functions.iter().filter(|f| f.is_border()).count(),
            ..Report::default()
        };
        for function in &self.functions {
            let walk = self.walk(function);
            report.instructions += walk.instructions.len();
            for (&address, decoded) in &walk.instructions {
                let wild = walk.problems.iter().filter(|(at, _)| *at == address);
                let problems = wild.map(|(_, problem)| problem.clone());
                for problem in judge(function, decoded).into_iter().chain(problems) {
                    report.findings.push(Finding {
                        function: function.name.clone(),
                        address,
                        instruction: decoded.text.clone(),
                        problem,
                    });
                }
            }
            for address in walk.undecodable {
                report.findings.push(Finding {
                    function: function.name.clone(),
                    address,
                    instruction: "?".to_owned(),
                    problem: Problem::Undecodable,
                });
            }
        }
        report
    }

    /// Follows a function's control flow from its start.
    fn walk(&self, function: &Function) -> Walk {
        let mut walk = Walk::default();
        let bytes = self.bytes_of(&function.range).unwrap_or_default();
        let mut pending = vec![function.range.start];
        while let Some(address) = pending.pop() {
            if walk.instructions.contains_key(&address) || walk.undecodable.contains(&address) {
                continue;
            }
            let at = (address - function.range.start) as usize;
            let decoded = bytes.get(at..).and_then(|rest| decode(self.arch, rest, address));
            let Some(decoded) = decoded else {
                walk.undecodable.insert(address);
                continue;
            };
            let next = address + decoded.bytes;
            let goes = match decoded.flow {
                Flow::Next | Flow::ComputedCall => vec![next],
                Flow::Jump(target) => vec![target],
                Flow::Branch(target) => vec![next, target],
                Flow::Call(target) => {
                    if !self.starts.contains(&target) {
                        walk.problems.push((address, Problem::WildTarget(target)));
                    }
                    vec![next]
                }
                Flow::ComputedJump => {
                    walk.problems.push((address, Problem::ComputedJump));
                    Vec::new()
                }
                Flow::Stop => Vec::new(),
            };
            for target in goes {
                if function.range.contains(&target) {
                    pending.push(target);
                } else if decoded.flow != Flow::Jump(target) || !self.starts.contains(&target) {
                    walk.problems.push((address, Problem::WildTarget(target)));
                }
            }
            walk.instructions.insert(address, decoded);
        }
        walk.find_overlaps();
        walk
    }
}

/// What following a function's control flow found.
#[derive(Default)]
struct Walk {
    instructions: BTreeMap<u64, Decoded>,
    undecodable: BTreeSet<u64>,
    /// Problems of control flow, with the address of their instruction.
    problems: Vec<(u64, Problem)>,
}

impl Walk {
    /// Instructions that begin inside another one are bytes read in two ways.
    fn find_overlaps(&mut self) {
        let mut end = 0;
        for (&address, decoded) in &self.instructions {
            if address < end {
                self.problems.push((address, Problem::WildTarget(address)));
            }
            end = end.max(address + decoded.bytes);
        }
    }
}

#[cfg(test)]
mod tests;
