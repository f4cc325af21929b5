//! QDQ graphs against the integer graphs made of them, both interpreted.

mod net;
mod properties;
mod refusals;
mod rules;
