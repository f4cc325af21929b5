//! NumPy's `.npy` and `.npz` files, in and out.
//!
//! Read: format versions 1 to 3, either byte order, C or Fortran order (brought to row-major); the
//! types of [`Elem`]. Whatever a header claims, memory grows only with the data that is there.
//! Written: version 1, little-endian, C order, archives uncompressed and with fixed dates, so the
//! same tensors give the same bytes; a file appears whole or not at all.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::elem::Elem;
use crate::npy_header::{Header, HeaderError};
use crate::tensor::{Element, Tensor, TensorError, TensorRef};
use crate::whole_file;

/// Why a file cannot be read or written; names the file, and in an archive the array.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct NpyError {
    place: String,
    problem: NpyProblem,
}

impl NpyError {
    /// What is wrong.
    pub fn problem(&self) -> &NpyProblem {
        &self.problem
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum NpyProblem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("the file is cut short: shape {shape:?} of {elem} needs {expected} bytes of data")]
    Truncated { elem: Elem, shape: Vec<usize>, expected: usize },
    #[error("there is more data than the shape {shape:?} of {elem} needs")]
    Trailing { elem: Elem, shape: Vec<usize> },
    #[error("not a readable .npz archive: {0}")]
    Archive(#[from] zip::result::ZipError),
    #[error("no array \"{name}\"; the archive has: {present}")]
    NoArray { name: String, present: String },
}

/// Reads one array from an `.npy` file.
pub fn read_npy(path: &Path) -> Result<Tensor, NpyError> {
    let read = || read_tensor(BufReader::new(File::open(path)?));
    read().map_err(|problem| at(path, None, problem))
}

/// Writes one array as an `.npy` file.
pub fn write_npy(path: &Path, tensor: TensorRef) -> Result<(), NpyError> {
    whole_file::replace(path, |file| {
        let mut out = BufWriter::new(file);
        write_tensor(&mut out, tensor)?;
        Ok(out.flush()?)
    })
    .map_err(|problem: NpyProblem| at(path, None, problem))
}

/// Writes named arrays as an uncompressed `.npz` archive, in the given order.
pub fn write_npz(path: &Path, arrays: &[(&str, TensorRef)]) -> Result<(), NpyError> {
    whole_file::replace(path, |file| {
        let mut archive = ZipWriter::new(BufWriter::new(file));
        for (name, tensor) in arrays {
            let options = SimpleFileOptions::DEFAULT
                .compression_method(CompressionMethod::Stored)
                .large_file(tensor.bytes().len() >= 1 << 31);
            archive.start_file(format!("{name}.npy"), options)?;
            write_tensor(&mut archive, *tensor)?;
        }
        Ok(archive.finish()?.flush()?)
    })
    .map_err(|problem: NpyProblem| at(path, None, problem))
}

/// An open `.npz` archive; arrays are read one at a time.
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl Npz {
    /// Opens an archive and reads its directory.
    pub fn open(path: &Path) -> Result<Npz, NpyError> {
        let open = || Ok(ZipArchive::new(BufReader::new(File::open(path)?))?);
        let archive = open().map_err(|problem| at(path, None, problem))?;
        let path = path.to_owned();
        Ok(Npz { path, archive })
    }

    /// Names of the arrays, in the archive's order.
    pub fn names(&self) -> Vec<String> {
        let files = (0..self.archive.len()).filter_map(|index| self.archive.name_for_index(index));
        let arrays = files.filter_map(|file| Some(file.ok()?.strip_suffix(".npy")?.to_owned()));
        arrays.collect()
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.archive.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// Reads one array.
    pub fn read(&mut self, name: &str) -> Result<Tensor, NpyError> {
        let found = match self.archive.index_for_name(&format!("{name}.npy")) {
            Some(index) => self.read_index(index),
            None => Err(NpyProblem::NoArray { name: name.to_owned(), present: self.names().join(", ") }),
        };
        found.map_err(|problem| at(&self.path, Some(name), problem))
    }

    /// Reads every array, in the archive's order.
    pub fn read_all(&mut self) -> Result<Vec<(String, Tensor)>, NpyError> {
        let names = self.names();
        names.into_iter().map(|name| self.read(&name).map(|tensor| (name, tensor))).collect()
    }

    fn read_index(&mut self, index: usize) -> Result<Tensor, NpyProblem> {
        let file = self.archive.by_index(index)?;
        read_tensor(BufReader::new(file))
    }
}

fn at(path: &Path, array: Option<&str>, problem: NpyProblem) -> NpyError {
    let place = match array {
        Some(array) => format!("{} [{array}]", path.display()),
        None => path.display().to_string(),
    };
    NpyError { place, problem }
}

fn read_tensor(mut source: impl Read) -> Result<Tensor, NpyProblem> {
    let header = Header::read(&mut source)?;
    let tensor = match header.elem {
        Elem::F32 => read_elements::<f32>(source, &header),
        Elem::U8 => read_elements::<u8>(source, &header),
        Elem::I8 => read_elements::<i8>(source, &header),
        Elem::I16 => read_elements::<i16>(source, &header),
        Elem::I32 => read_elements::<i32>(source, &header),
        Elem::I64 => read_elements::<i64>(source, &header),
    }?;
    Ok(tensor)
}

/// Elements read at a time, so that memory follows what is really there.
const CHUNK_ELEMENTS: usize = 1 << 16;

fn read_elements<T: Element>(mut source: impl Read, header: &Header) -> Result<Tensor, NpyProblem> {
    let elements = header.elements();
    let mut values: Vec<T> = Vec::new();
    while values.len() < elements {
        let start = values.len();
        let end = elements.min(start + CHUNK_ELEMENTS);
        values.resize(end, T::zeroed());
        let bytes = bytemuck::cast_slice_mut(&mut values[start..]);
        source.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => NpyProblem::Truncated {
                elem: T::ELEM,
                shape: header.shape.clone(),
                expected: elements * T::ELEM.size_bytes(),
            },
            _ => NpyProblem::Io(error),
        })?;
        if header.big_endian != cfg!(target_endian = "big") {
            for element in bytes.chunks_exact_mut(T::ELEM.size_bytes()) {
                element.reverse();
            }
        }
    }
    // Reading on to the end also makes an archive verify its checksum.
    if source.read(&mut [0])? != 0 {
        return Err(NpyProblem::Trailing { elem: T::ELEM, shape: header.shape.clone() });
    }
    if header.fortran_order {
        values = row_major(&values, &header.shape);
    }
    Ok(Tensor::new(header.shape.clone(), values)?)
}

/// Reorders column-major elements.
fn row_major<T: Element>(values: &[T], shape: &[usize]) -> Vec<T> {
    let mut index = vec![0; shape.len()];
    let mut reordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        let source = index.iter().zip(shape).rev().fold(0, |offset, (&position, &extent)| offset * extent + position);
        reordered.push(values[source]);
        for (position, &extent) in index.iter_mut().zip(shape).rev() {
            *position += 1;
            if *position < extent {
                break;
            }
            *position = 0;
        }
    }
    reordered
}

fn write_tensor(out: &mut impl Write, tensor: TensorRef) -> Result<(), NpyProblem> {
    let header =
        Header { elem: tensor.elem(), big_endian: false, fortran_order: false, shape: tensor.shape().to_vec() };
    out.write_all(&header.to_bytes()?)?;
    if cfg!(target_endian = "little") {
        out.write_all(tensor.bytes())?;
        return Ok(());
    }
    for element in tensor.bytes().chunks_exact(tensor.elem().size_bytes()) {
        let mut element = element.to_vec();
        element.reverse();
        out.write_all(&element)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn every_type() -> Vec<Tensor> {
        vec![
            Tensor::new(vec![2, 2], vec![1.5f32, -0.0, f32::MIN_POSITIVE, f32::INFINITY]).unwrap(),
            Tensor::new(vec![3], vec![0u8, 7, 255]).unwrap(),
            Tensor::new(vec![], vec![-128i8]).unwrap(),
            Tensor::new(vec![1, 2], vec![i16::MIN, i16::MAX]).unwrap(),
            Tensor::new(vec![2, 1, 1], vec![i32::MIN, i32::MAX]).unwrap(),
            Tensor::new(vec![0, 4], Vec::<i64>::new()).unwrap(),
        ]
    }

    #[test]
    fn every_type_round_trips() {
        let folder = folder();
        let path = folder.path().join("x.npy");
        for tensor in every_type() {
            write_npy(&path, tensor.view()).unwrap();
            assert_eq!(read_npy(&path).unwrap(), tensor);
        }
    }

    #[test]
    fn archives_round_trip_and_are_reproducible() {
        let folder = folder();
        let path = folder.path().join("x.npz");
        let tensors = every_type();
        let names = ["f", "a/b", "c", "d", "e", "empty"];
        let arrays: Vec<_> = names.into_iter().zip(tensors.iter().map(Tensor::view)).collect();
        write_npz(&path, &arrays).unwrap();
        let bytes = fs::read(&path).unwrap();
        let mut archive = Npz::open(&path).unwrap();
        assert_eq!(archive.names(), names);
        for ((name, tensor), expected) in archive.read_all().unwrap().into_iter().zip(&tensors) {
            assert_eq!(&tensor, expected, "{name}");
        }
        assert!(archive.contains("c") && !archive.contains("x"));
        let missing = archive.read("images").unwrap_err();
        assert!(matches!(missing.problem(), NpyProblem::NoArray { .. }));
        assert!(missing.to_string().contains("f, a/b, c"), "{missing}");
        write_npz(&path, &arrays).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn compressed_archives_are_read() {
        let folder = folder();
        let path = folder.path().join("x.npz");
        let tensor = Tensor::new(vec![1000], vec![9i32; 1000]).unwrap();
        let mut archive = ZipWriter::new(File::create(&path).unwrap());
        let options = SimpleFileOptions::DEFAULT.compression_method(CompressionMethod::Deflated);
        archive.start_file("x.npy", options).unwrap();
        write_tensor(&mut archive, tensor.view()).unwrap();
        archive.finish().unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(Npz::open(&path).unwrap().read("x").unwrap(), tensor);
    }

    #[test]
    fn fortran_order_and_big_endian_become_native() {
        let header = Header { elem: Elem::I16, big_endian: true, fortran_order: true, shape: vec![2, 3] };
        let mut bytes = header.to_bytes().unwrap();
        for value in [0i16, 10, 1, 11, 2, 12] {
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        let expected = Tensor::new(vec![2, 3], vec![0i16, 1, 2, 10, 11, 12]).unwrap();
        assert_eq!(read_tensor(bytes.as_slice()).unwrap(), expected);
    }

    #[test]
    fn every_truncation_and_surplus_is_an_error() {
        let mut bytes = Vec::new();
        let tensor = Tensor::new(vec![2, 3], vec![1.0f32; 6]).unwrap();
        write_tensor(&mut bytes, tensor.view()).unwrap();
        for length in 0..bytes.len() {
            assert!(read_tensor(&bytes[..length]).is_err(), "{length}");
        }
        assert!(matches!(read_tensor(&bytes[..bytes.len() - 1]), Err(NpyProblem::Truncated { expected: 24, .. })));
        bytes.push(0);
        assert!(matches!(read_tensor(bytes.as_slice()), Err(NpyProblem::Trailing { .. })));
    }

    #[test]
    fn a_header_of_terabytes_allocates_nothing_much() {
        let header = Header { elem: Elem::F32, big_endian: false, fortran_order: false, shape: vec![1 << 20, 1 << 20] };
        let bytes = header.to_bytes().unwrap();
        assert!(matches!(read_tensor(bytes.as_slice()), Err(NpyProblem::Truncated { .. })));
    }

    #[test]
    fn damaged_archives_are_errors_that_name_the_file() {
        let folder = folder();
        let path = folder.path().join("x.npz");
        let tensor = Tensor::new(vec![64], vec![3u8; 64]).unwrap();
        write_npz(&path, &[("x", tensor.view())]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = Npz::open(&path).err().unwrap();
            assert!(error.to_string().contains("x.npz"), "{error}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            // A changed element must be noticed by the checksum; a changed name or date may be read.
            if let Ok(found) = Npz::open(&path).and_then(|mut archive| archive.read("x")) {
                assert_eq!(found, tensor, "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend_from_slice(&tail);
            let _ = read_tensor(bytes.as_slice());
        }

        #[test]
        fn edited_headers_never_panic(at in 0usize..128, byte in any::<u8>()) {
            let mut bytes = Vec::new();
            let tensor = Tensor::new(vec![2, 3], vec![1i32; 6]).unwrap();
            write_tensor(&mut bytes, tensor.view()).unwrap();
            bytes[at] = byte;
            let _ = read_tensor(bytes.as_slice());
        }
    }
}
