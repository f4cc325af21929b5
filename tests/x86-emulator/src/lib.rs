//! An emulator of x86-64 for tests: executes kernels for instruction sets that the test machine lacks.
//!
//! In: machine code at its real addresses ([`Machine::add_code`]) for a set of CPU [`Features`], and
//! arguments. Out: what the code returns and what it did to real memory, or a [`Fault`] that names the
//! instruction.
//!
//! What holds: an instruction outside the given features, an access outside the allowed memory, a
//! misaligned access by an instruction that demands alignment, and a callee-saved register that is
//! not restored are faults. Instructions that are not emulated are faults too, never no-ops. `std` and
//! `popf` are not emulated, so the direction flag is always clear. Undefined values (registers at
//! entry, caller-saved registers after a callback) are filled with a pattern.
//!
//! Not emulated: x87, MMX, gathers, embedded rounding, 32-bit addresses, segments, exceptions and
//! MXCSR (floating point rounds to nearest, with denormals).

mod decode;
mod fault;
mod features;
mod flags;
mod float;
mod general;
mod machine;
mod masks;
mod memory;
mod moves;
mod packed;
mod permute;
mod vector;

pub use fault::{Fault, FaultKind};
pub use features::{Features, UnknownFeature};
pub use flags::Flags;
pub use machine::{Callback, Machine};
pub use vector::Vector;
