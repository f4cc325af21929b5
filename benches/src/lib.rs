//! Kernel, layer and model timings, answers checked before timing.
