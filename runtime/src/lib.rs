//! Loading and running compiled models: ABI, CPU check, thread pool, C interface, npy and npz.
//!
//! Knows nothing of the compiler: the [`abi`] and the [`manifest`] are all the two share.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use hawqc_runtime::{Model, Session, npy};
//!
//! # fn main() -> Result<(), hawqc_runtime::Error> {
//! let model = Arc::new(Model::open(Path::new("model.so"))?);
//! let mut session = Session::new(model, None)?;
//! let image = npy::read_npy(Path::new("image.npy"))?;
//! let outputs = session.run(&[image.view()])?;
//! println!("{:?}", outputs[0].as_slice::<f32>());
//! # Ok(())
//! # }
//! ```

pub mod abi;
mod capi;
pub mod cpu;
pub mod elem;
pub mod error;
pub mod manifest;
pub mod model;
pub mod npy;
pub mod npy_header;
pub mod object_file;
pub mod pool;
pub mod session;
pub mod tensor;
pub mod whole_file;

pub use elem::Elem;
pub use error::{Error, ErrorClass};
pub use manifest::{Entry, Manifest};
pub use model::{LoadError, Model};
pub use pool::Pool;
pub use session::{RunError, Session};
pub use tensor::{Tensor, TensorError, TensorMut, TensorRef};
