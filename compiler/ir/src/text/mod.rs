//! The text form of graphs: canonical, and it reads back.
//!
//! ```text
//! %0 = input : f32[1,8,8,1] @"input"
//! %1 = const [1,-2,3] : i8[3]
//! %2 = const splat(1073741824) : i32[1]
//! %3 = const hash(00ff...) : i8[64,3,3,64]
//! %4 = conv %0, %1, %2 stride=[1,1] pad=[1,1,1,1] ... : i32<-100,100>[1,8,8,3] @"layer1.conv1"
//! %5 = kernel %4, %1 {
//!   $0 = requant #0, #1, #1 src_zero=0 ... : u8[1,8,8,3]
//! } : u8[1,8,8,3] @"layer1.conv1"
//! output %5 "logits"
//! ```
//!
//! `%n` is a value, `#n` an operand of the enclosing kernel, `$n` a step of it. A type is
//! `elem<lo,hi>[shape]`; the range is left out where it is the element's whole range, and ignored for
//! constants, whose range is that of their data. Large constants print as `hash(...)` and are
//! looked up in the store given to [`parse`]; files may instead use `splat(v)` or
//! `seed(n,lo,hi)` (a fixed pseudo-random sequence).

mod parse;
mod print;

pub use parse::{parse, seeded};
pub use print::{print, print_spec};
