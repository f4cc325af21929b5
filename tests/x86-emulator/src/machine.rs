//! Registers, calls and the loop that executes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::rc::Rc;

use crate::decode::{Inst, Operand, decode, text};
use crate::fault::{Done, Fault, FaultKind};
use crate::features::Features;
use crate::flags::{Flags, cut};
use crate::memory::Memory;
use crate::vector::Vector;

/// Where the outermost code and what a callback calls return to; no such address can be mapped.
const RETURN: u64 = 0xffff_dead_0000_0000;
const STACK_BYTES: usize = 1 << 20;
const RED_ZONE: u64 = 128;
const LONGEST_INSTRUCTION: u64 = 15;
const LONGEST_BLOCK: usize = 256;
const JUNK: u64 = 0xa5c3_9617_e4d2_8b0f;

pub(crate) const RSP: usize = 4;
/// Arguments in order: rdi, rsi, rdx, rcx, r8, r9.
const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
const CALLEE_SAVED: [(usize, &str); 7] =
    [(3, "rbx"), (5, "rbp"), (RSP, "rsp"), (12, "r12"), (13, "r13"), (14, "r14"), (15, "r15")];

/// Stands in for a function outside the code: gets the first six integer arguments, returns rax.
pub type Callback = Box<dyn FnMut(&mut Machine, [u64; 6]) -> Result<u64, Fault>>;

/// An x86-64 processor with some features, in this process's memory.
pub struct Machine {
    /// rax rcx rdx rbx rsp rbp rsi rdi r8 to r15.
    pub general: [u64; 16],
    pub flags: Flags,
    pub vectors: [Vector; 32],
    pub masks: [u64; 8],
    /// Whether `div` and `idiv` are executed; a fault otherwise.
    pub division: bool,
    /// A fault after so many instructions (checked at branches).
    pub limit: u64,
    /// Instructions executed so far.
    pub executed: u64,
    pub(crate) rip: u64,
    pub(crate) memory: Memory,
    features: Features,
    code: Vec<Range<u64>>,
    blocks: HashMap<u64, Rc<[Inst]>, BuildHasherDefault<AddressHasher>>,
    callbacks: HashMap<u64, Callback>,
    /// Empty until something is called.
    stack: Vec<u8>,
    depth: usize,
}

/// Addresses hash by one multiplication.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

impl Machine {
    pub fn new(features: Features) -> Machine {
        Machine {
            general: [JUNK; 16],
            flags: Flags::default(),
            vectors: [Vector::filled(0xa5); 32],
            masks: [JUNK; 8],
            division: false,
            limit: u64::MAX,
            executed: 0,
            rip: 0,
            memory: Memory::new(),
            features,
            code: Vec::new(),
            blocks: HashMap::default(),
            callbacks: HashMap::new(),
            stack: Vec::new(),
            depth: 0,
        }
    }

    /// Lets `bytes` at `start` be executed. They are decoded once: they may not change while the
    /// machine lives.
    ///
    /// # Safety
    /// The memory must be readable while the machine lives.
    pub unsafe fn add_code(&mut self, start: *const u8, bytes: usize) {
        self.code.push(start as u64..start as u64 + bytes as u64);
    }

    /// Lets memory be read. The first call of `allow_*` restricts the code to what is allowed and to
    /// its stack; without any it may touch everything.
    ///
    /// # Safety
    /// The memory must be readable while the machine executes.
    pub unsafe fn allow_read(&mut self, start: *const u8, bytes: usize) {
        self.memory.allow(start as u64, bytes, false);
    }

    /// Lets memory be read and written.
    ///
    /// # Safety
    /// The memory must be readable and writable while the machine executes.
    pub unsafe fn allow_write(&mut self, start: *mut u8, bytes: usize) {
        self.memory.allow(start as u64, bytes, true);
    }

    /// Takes back every `allow_*`: only the stack is left, until more is allowed.
    pub fn forbid_all(&mut self) {
        self.memory.forbid();
    }

    /// Calls of `address` go to `callback`, which may call back in.
    pub fn on_call(&mut self, address: u64, callback: Callback) {
        self.callbacks.insert(address, callback);
    }

    /// Calls the function at `entry` by the System V convention with up to six integer arguments.
    ///
    /// # Safety
    /// What the code touches must be memory it may touch: allowed memory if any was named, else
    /// whatever it computes.
    pub unsafe fn call(&mut self, entry: *const u8, args: &[u64]) -> Result<u64, Fault> {
        assert!(args.len() <= ARGUMENTS.len(), "at most six arguments");
        let outer = self.general[RSP];
        if self.stack.is_empty() {
            self.stack = vec![0xa5; STACK_BYTES];
            self.memory.set_stack(self.stack.as_ptr() as u64, STACK_BYTES);
        }
        if self.depth == 0 {
            self.general = std::array::from_fn(|n| JUNK.rotate_left(n as u32 * 4));
            self.general[RSP] = (self.stack.as_ptr() as u64 + STACK_BYTES as u64) & !63;
        } else {
            self.general[RSP] = (self.general[RSP] - RED_ZONE) & !63;
        }
        self.scramble();
        for (&register, &value) in ARGUMENTS.iter().zip(args) {
            self.general[register] = value;
        }
        let saved = self.general;
        let rip = self.rip;
        self.general[RSP] -= 8;
        let top = self.general[RSP];
        self.memory.write(top, &RETURN.to_le_bytes()).map_err(|kind| self.fault(entry as u64, kind))?;
        self.rip = entry as u64;
        self.depth += 1;
        let done = self.run();
        self.depth -= 1;
        done?;
        for (register, name) in CALLEE_SAVED {
            let (expected, found) = (saved[register], self.general[register]);
            if expected != found {
                return Err(self.fault(entry as u64, FaultKind::CalleeSaved { register: name, expected, found }));
            }
        }
        self.rip = rip;
        self.general[RSP] = outer;
        Ok(self.general[0])
    }

    /// Executes the one instruction at `address`, and says where the next one is.
    ///
    /// # Safety
    /// As for [`Machine::call`].
    pub unsafe fn step(&mut self, address: *const u8) -> Result<u64, Fault> {
        let address = address as u64;
        let inst = decode(self.code_at(address), address, &self.features);
        self.rip = inst.next;
        (inst.run)(self, &inst).map_err(|kind| self.fault(address, kind))?;
        Ok(self.rip)
    }

    fn run(&mut self) -> Result<(), Fault> {
        let mut last = self.rip;
        loop {
            let block = match self.blocks.get(&self.rip) {
                Some(block) => Rc::clone(block),
                None if self.rip == RETURN => return Ok(()),
                None if self.callbacks.contains_key(&self.rip) => {
                    self.callback(last)?;
                    continue;
                }
                None => match self.block(self.rip) {
                    Some(block) => block,
                    None => return Err(self.fault(last, FaultKind::OutsideCode(self.rip))),
                },
            };
            for inst in block.iter() {
                self.rip = inst.next;
                if let Err(kind) = (inst.run)(self, inst) {
                    return Err(self.fault(inst.address, kind));
                }
                last = inst.address;
            }
            self.executed += block.len() as u64;
            if self.executed > self.limit {
                return Err(self.fault(last, FaultKind::Limit(self.limit)));
            }
        }
    }

    /// Runs the callback at `rip` as a called function, and returns to its caller.
    fn callback(&mut self, caller: u64) -> Result<(), Fault> {
        let address = self.rip;
        let before = self.general;
        if before[RSP] % 16 != 8 {
            return Err(self.fault(caller, FaultKind::StackAlignment(before[RSP])));
        }
        // Taken out while it runs, so that it can have the machine.
        let Some(mut callback) = self.callbacks.remove(&address) else {
            return Err(self.fault(caller, FaultKind::OutsideCode(address)));
        };
        let result = callback(self, ARGUMENTS.map(|register| before[register]));
        self.callbacks.insert(address, callback);
        let result = result?;
        self.scramble();
        for (register, _) in CALLEE_SAVED {
            self.general[register] = before[register];
        }
        self.general[0] = result;
        self.rip = self.pop().map_err(|kind| self.fault(caller, kind))?;
        Ok(())
    }

    /// Fills what a called function may overwrite.
    fn scramble(&mut self) {
        for register in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
            self.general[register] = JUNK ^ register as u64;
        }
        self.vectors = std::array::from_fn(|n| Vector::filled(0xa5 ^ n as u8));
        self.masks = [JUNK; 8];
        self.flags = Flags::default();
    }

    /// The instructions from `address` to the next branch.
    fn block(&mut self, address: u64) -> Option<Rc<[Inst]>> {
        let mut block = Vec::new();
        let mut next = address;
        while block.len() < LONGEST_BLOCK {
            let code = self.code_at(next);
            if code.is_empty() {
                break;
            }
            let inst = decode(code, next, &self.features);
            next = inst.next;
            let ends = inst.ends_block;
            block.push(inst);
            if ends {
                break;
            }
        }
        if block.is_empty() {
            return None;
        }
        let block: Rc<[Inst]> = block.into();
        self.blocks.insert(address, Rc::clone(&block));
        Some(block)
    }

    /// The bytes of code from `address` on, as many as an instruction may have.
    fn code_at(&self, address: u64) -> &[u8] {
        match self.code.iter().find(|range| range.contains(&address)) {
            // SAFETY: inside a range that `add_code` was promised to be readable.
            Some(range) => unsafe {
                let bytes = (range.end - address).min(LONGEST_INSTRUCTION);
                std::slice::from_raw_parts(address as *const u8, bytes as usize)
            },
            None => &[],
        }
    }

    fn fault(&self, address: u64, kind: FaultKind) -> Fault {
        Fault { address, instruction: text(self.code_at(address), address), kind }
    }

    #[inline]
    pub(crate) fn address(&self, i: &Inst) -> u64 {
        let mut address = i.memory.displacement;
        if let Some(base) = i.memory.base {
            address = address.wrapping_add(self.general[base as usize]);
        }
        if let Some(index) = i.memory.index {
            address = address.wrapping_add(self.general[index as usize].wrapping_mul(i.memory.scale));
        }
        address
    }

    pub(crate) fn read_sized(&self, address: u64, size: usize) -> Done<u64> {
        Ok(match size {
            1 => u64::from(self.memory.read::<1>(address)?[0]),
            2 => u16::from_le_bytes(self.memory.read(address)?).into(),
            4 => u32::from_le_bytes(self.memory.read(address)?).into(),
            8 => u64::from_le_bytes(self.memory.read(address)?),
            _ => return Err(FaultKind::Unsupported),
        })
    }

    /// Operand `k` as a number, cut to its size (immediates to the first operand's).
    #[inline]
    pub(crate) fn get(&self, i: &Inst, k: usize) -> Done<u64> {
        match i.operands[k] {
            Operand::General { number, size, shift } => Ok(cut(self.general[number as usize] >> shift, size.into())),
            Operand::Immediate(value) => Ok(cut(value, i.size)),
            Operand::Memory => self.read_sized(self.address(i), i.memory_bytes),
            Operand::Mask(number) => Ok(self.masks[number as usize]),
            _ => Err(FaultKind::Unsupported),
        }
    }

    /// The size of operand `k`.
    pub(crate) fn size(&self, i: &Inst, k: usize) -> usize {
        match i.operands[k] {
            Operand::General { size, .. } => size.into(),
            Operand::Memory => i.memory_bytes,
            _ => i.size,
        }
    }

    /// Writes operand `k`: a 32-bit register's upper half becomes zero, a narrower one's rest stays.
    #[inline]
    pub(crate) fn set(&mut self, i: &Inst, k: usize, value: u64) -> Done {
        match i.operands[k] {
            Operand::General { number, size, shift } => {
                let register = &mut self.general[number as usize];
                *register = match size {
                    8 => value,
                    4 => value & 0xffff_ffff,
                    size => {
                        let ones = cut(u64::MAX, size.into()) << shift;
                        *register & !ones | value << shift & ones
                    }
                };
                Ok(())
            }
            Operand::Memory => {
                let bytes = value.to_le_bytes();
                match bytes.get(..i.memory_bytes) {
                    Some(bytes) if !bytes.is_empty() => self.memory.write(self.address(i), bytes),
                    _ => Err(FaultKind::Unsupported),
                }
            }
            _ => Err(FaultKind::Unsupported),
        }
    }

    pub(crate) fn push(&mut self, value: u64) -> Done {
        let top = self.general[RSP].wrapping_sub(8);
        self.memory.write(top, &value.to_le_bytes())?;
        self.general[RSP] = top;
        Ok(())
    }

    pub(crate) fn pop(&mut self) -> Done<u64> {
        let top = self.general[RSP];
        let value = u64::from_le_bytes(self.memory.read(top)?);
        self.general[RSP] = top.wrapping_add(8);
        Ok(value)
    }
}
