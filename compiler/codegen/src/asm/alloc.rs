//! Linear-scan register allocation (Poletto and Sarkar, 1999) without spilling.
//!
//! A virtual register is live from its first to its last appearance; one that appears before a loop and in it
//! is live to the loop's end. Registers are given out in order of first appearance.

use iced_x86::Register;

use super::{ARGUMENT, Asm, AsmError, FRAME, Item, Operand};

/// The physical register of every virtual one.
pub struct Allocation {
    /// By number: the index of the vector register.
    pub vecs: Vec<usize>,
    pub gprs: Vec<Register>,
}

/// General registers in the order in which they are given out: those that need no saving first, the
/// argument's last.
const GPRS: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
    Register::RDI,
];

/// First and last position at which a register is live.
type Interval = Option<(usize, usize)>;

pub fn allocate(asm: &Asm) -> Result<Allocation, AsmError> {
    let mut vecs: Vec<Interval> = vec![None; asm.vecs as usize];
    let mut gprs: Vec<Interval> = vec![None; asm.gprs as usize];
    gprs[ARGUMENT.0 as usize] = Some((0, 0));
    for (position, item) in asm.items.iter().enumerate() {
        let Item::Inst(inst) = item else { continue };
        for operand in &inst.operands {
            match operand {
                Operand::Vec(v, _) => extend(&mut vecs[v.0 as usize], position),
                Operand::Gpr(g) | Operand::Gpr32(g) => extend(&mut gprs[g.0 as usize], position),
                Operand::Mem(mem) => {
                    extend(&mut gprs[mem.base.0 as usize], position);
                    mem.index.iter().for_each(|g| extend(&mut gprs[g.0 as usize], position));
                }
                Operand::Mask(_) | Operand::Imm(..) => {}
            }
        }
    }
    // Inner loops end first, so an interval that reaches an inner loop's end is seen by the outer.
    for (end, item) in asm.items.iter().enumerate() {
        let &Item::LoopBack(label) = item else { continue };
        let start = asm.items[..end].iter().position(|i| matches!(i, Item::Label(l) if *l == label)).unwrap_or(0);
        for (first, last) in vecs.iter_mut().chain(&mut gprs).flatten() {
            if *first < start && *last > start {
                *last = (*last).max(end);
            }
        }
    }
    // The frame is addressed by the stack pointer, which is not given out.
    gprs[FRAME.0 as usize] = None;
    let vecs = scan(&vecs, &mut vec![None; asm.isa.registers()], "vector")?;
    // The argument's own register, the last one, is given out again when the argument is done with.
    let argument = gprs[ARGUMENT.0 as usize].take();
    let mut busy_until = vec![None; GPRS.len()];
    busy_until[GPRS.len() - 1] = argument.map(|(_, last)| last);
    let mut gprs: Vec<Register> =
        scan(&gprs, &mut busy_until, "general")?.into_iter().map(|index| GPRS[index]).collect();
    gprs[ARGUMENT.0 as usize] = GPRS[GPRS.len() - 1];
    gprs[FRAME.0 as usize] = Register::RSP;
    Ok(Allocation { vecs, gprs })
}

fn extend(interval: &mut Interval, position: usize) {
    let (first, _) = interval.unwrap_or((position, position));
    *interval = Some((first, position));
}

/// Indices into `busy_until` such that registers live at once differ. `busy_until`: the last position at
/// which a register is taken already.
fn scan(intervals: &[Interval], busy_until: &mut [Option<usize>], class: &'static str) -> Result<Vec<usize>, AsmError> {
    let mut order: Vec<(usize, usize, usize)> =
        intervals.iter().enumerate().filter_map(|(i, interval)| interval.map(|(a, b)| (a, b, i))).collect();
    order.sort_unstable();
    let mut out = vec![0; intervals.len()];
    for (first, last, i) in order {
        let Some(free) = busy_until.iter().position(|busy| busy.is_none_or(|until| until < first)) else {
            let needed = intervals.iter().flatten().filter(|(a, b)| *a <= first && first <= *b).count();
            return Err(AsmError::Registers { class, needed, available: busy_until.len() });
        };
        busy_until[free] = Some(last);
        out[i] = free;
    }
    Ok(out)
}
