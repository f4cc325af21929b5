//! Bit-preserving egg rules, extraction, and fusion into kernel specs.
