//! The pipeline as one readable list, from a model file to an artifact.
