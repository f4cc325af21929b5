//! Loading and running compiled models: ABI, CPU check, thread pool, C interface, npy and npz.
//!
//! Knows nothing of the compiler: the [`abi`] and the [`manifest`] are all the two share.

pub mod abi;
pub mod elem;
pub mod manifest;

pub use elem::Elem;
pub use manifest::Manifest;
