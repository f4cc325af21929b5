//! Tests across crates: file tests, whole networks, differential tests, bad input.
