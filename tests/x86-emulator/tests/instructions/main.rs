//! Instructions one by one.

mod coverage;
mod enumerate;
mod evex;
mod faults;
#[cfg(target_arch = "x86_64")]
mod native;
mod operands;
