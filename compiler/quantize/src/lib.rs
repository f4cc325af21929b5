//! Batch-norm folding, calibration, precision plans, and the lowering of a QDQ graph to integers.
