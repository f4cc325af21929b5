//! Dense row-major tensors with a dynamic type and shape: owned ([`Tensor`]) and borrowed
//! ([`TensorRef`], [`TensorMut`]).
//!
//! Always true: the number of elements is the product of the shape, and borrowed bytes are aligned
//! to the element.

use crate::elem::{Elem, checked_elements};

/// Why a tensor cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    #[error("shape {shape:?} has {expected:?} elements of {elem}, but {found} were given")]
    Length { elem: Elem, shape: Vec<usize>, expected: Option<usize>, found: usize },
    #[error("a tensor of type {elem} and shape {shape:?} does not fit in memory")]
    TooLarge { elem: Elem, shape: Vec<usize> },
    #[error("a buffer for {elem} must be aligned to {} bytes", elem.size_bytes())]
    Alignment { elem: Elem },
}

mod sealed {
    pub trait Sealed {}
}

/// Rust types that are elements of tensors.
pub trait Element: sealed::Sealed + bytemuck::Pod {
    /// The element type this Rust type is.
    const ELEM: Elem;
    /// Wraps a vector of this type.
    fn into_data(values: Vec<Self>) -> Data;
    /// The vector inside `data`, if it is of this type.
    fn of(data: &Data) -> Option<&Vec<Self>>;
    /// The vector inside `data`, if it is of this type.
    fn of_mut(data: &mut Data) -> Option<&mut Vec<Self>>;
}

macro_rules! elements {
    ($($type:ty => $name:ident),* $(,)?) => {
        /// The elements of a tensor, row-major.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Data {
            $($name(Vec<$type>),)*
        }

        impl Data {
            /// The element type.
            pub fn elem(&self) -> Elem {
                match self {
                    $(Data::$name(_) => Elem::$name,)*
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Data::$name(values) => values.len(),)*
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// `elements` zeros, or `None` when memory does not suffice.
            fn zeros(elem: Elem, elements: usize) -> Option<Data> {
                match elem {
                    $(Elem::$name => {
                        let mut values: Vec<$type> = Vec::new();
                        values.try_reserve_exact(elements).ok()?;
                        values.resize(elements, <$type>::default());
                        Some(Data::$name(values))
                    })*
                }
            }

            fn bytes(&self) -> &[u8] {
                match self {
                    $(Data::$name(values) => bytemuck::cast_slice(values),)*
                }
            }

            fn bytes_mut(&mut self) -> &mut [u8] {
                match self {
                    $(Data::$name(values) => bytemuck::cast_slice_mut(values),)*
                }
            }
        }

        $(
            impl sealed::Sealed for $type {}
            impl Element for $type {
                const ELEM: Elem = Elem::$name;
                fn into_data(values: Vec<Self>) -> Data {
                    Data::$name(values)
                }
                fn of(data: &Data) -> Option<&Vec<Self>> {
                    match data {
                        Data::$name(values) => Some(values),
                        _ => None,
                    }
                }
                fn of_mut(data: &mut Data) -> Option<&mut Vec<Self>> {
                    match data {
                        Data::$name(values) => Some(values),
                        _ => None,
                    }
                }
            }
        )*
    };
}

elements!(f32 => F32, u8 => U8, i8 => I8, i16 => I16, i32 => I32, i64 => I64);

/// An owned tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor of `values` in row-major order.
    pub fn new<T: Element>(shape: Vec<usize>, values: Vec<T>) -> Result<Tensor, TensorError> {
        Tensor::from_data(shape, T::into_data(values))
    }

    /// A tensor of `data` in row-major order.
    pub fn from_data(shape: Vec<usize>, data: Data) -> Result<Tensor, TensorError> {
        check_length(data.elem(), &shape, data.len())?;
        Ok(Tensor { shape, data })
    }

    /// A tensor of zeros.
    pub fn zeros(elem: Elem, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        let data = checked_elements(elem, &shape).and_then(|elements| Data::zeros(elem, elements));
        match data {
            Some(data) => Ok(Tensor { shape, data }),
            None => Err(TensorError::TooLarge { elem, shape }),
        }
    }

    /// A tensor copied from the bytes of its elements, of this machine's byte order; any alignment.
    pub fn from_bytes(elem: Elem, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor, TensorError> {
        check_bytes(elem, &shape, bytes.len())?;
        let mut tensor = Tensor::zeros(elem, shape)?;
        tensor.bytes_mut().copy_from_slice(bytes);
        Ok(tensor)
    }

    /// The element type.
    pub fn elem(&self) -> Elem {
        self.data.elem()
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, giving up the shape.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The elements as `T`, or `None` when they are of another type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        T::of(&self.data).map(Vec::as_slice)
    }

    /// The elements as `T`, or `None` when they are of another type.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        T::of_mut(&mut self.data).map(Vec::as_mut_slice)
    }

    /// The elements' bytes in this machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The elements' bytes in this machine's byte order.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.bytes_mut()
    }

    /// A view of this tensor.
    pub fn view(&self) -> TensorRef<'_> {
        TensorRef { elem: self.elem(), shape: &self.shape, bytes: self.data.bytes() }
    }

    /// A writable view of this tensor.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        TensorMut { elem: self.data.elem(), shape: &self.shape, bytes: self.data.bytes_mut() }
    }

    /// The same elements under another shape.
    pub fn reshaped(self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        Tensor::from_data(shape, self.data)
    }
}

/// A borrowed tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    elem: Elem,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorRef<'a> {
    /// A view of `values` in row-major order.
    pub fn new<T: Element>(shape: &'a [usize], values: &'a [T]) -> Result<Self, TensorError> {
        check_length(T::ELEM, shape, values.len())?;
        Ok(TensorRef { elem: T::ELEM, shape, bytes: bytemuck::cast_slice(values) })
    }

    /// A view of elements given as bytes, which must be aligned to the element.
    pub fn from_bytes(elem: Elem, shape: &'a [usize], bytes: &'a [u8]) -> Result<Self, TensorError> {
        check_bytes(elem, shape, bytes.len())?;
        check_alignment(elem, bytes)?;
        Ok(TensorRef { elem, shape, bytes })
    }

    /// The element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements' bytes in this machine's byte order, aligned to the element.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// An owned copy.
    pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(self.elem, self.shape.to_vec(), self.bytes)
    }
}

/// A writable borrowed tensor.
#[derive(Debug)]
pub struct TensorMut<'a> {
    elem: Elem,
    shape: &'a [usize],
    bytes: &'a mut [u8],
}

impl<'a> TensorMut<'a> {
    /// A view of `values` in row-major order.
    pub fn new<T: Element>(shape: &'a [usize], values: &'a mut [T]) -> Result<Self, TensorError> {
        check_length(T::ELEM, shape, values.len())?;
        Ok(TensorMut { elem: T::ELEM, shape, bytes: bytemuck::cast_slice_mut(values) })
    }

    /// A view of elements given as bytes, which must be aligned to the element.
    pub fn from_bytes(elem: Elem, shape: &'a [usize], bytes: &'a mut [u8]) -> Result<Self, TensorError> {
        check_bytes(elem, shape, bytes.len())?;
        check_alignment(elem, bytes)?;
        Ok(TensorMut { elem, shape, bytes })
    }

    /// The element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// The elements' bytes in this machine's byte order, aligned to the element.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

fn check_length(elem: Elem, shape: &[usize], found: usize) -> Result<(), TensorError> {
    let expected = checked_elements(elem, shape);
    if expected == Some(found) {
        return Ok(());
    }
    Err(TensorError::Length { elem, shape: shape.to_vec(), expected, found })
}

fn check_bytes(elem: Elem, shape: &[usize], bytes: usize) -> Result<(), TensorError> {
    // `checked_elements` bounds the product, so it cannot overflow.
    let expected = checked_elements(elem, shape).map(|elements| elements * elem.size_bytes());
    if expected == Some(bytes) {
        return Ok(());
    }
    Err(TensorError::Length {
        elem,
        shape: shape.to_vec(),
        expected: expected.map(|bytes| bytes / elem.size_bytes()),
        found: bytes / elem.size_bytes(),
    })
}

fn check_alignment(elem: Elem, bytes: &[u8]) -> Result<(), TensorError> {
    if bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(elem.size_bytes()) {
        Ok(())
    } else {
        Err(TensorError::Alignment { elem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_must_match_the_shape() {
        assert!(Tensor::new(vec![2, 2], vec![1i8; 4]).is_ok());
        assert!(Tensor::new(vec![2, 2], vec![1i8; 5]).is_err());
        assert!(Tensor::new(vec![], vec![1.0f32]).is_ok());
        assert!(Tensor::new(vec![3, 0], Vec::<i64>::new()).is_ok());
        assert!(TensorRef::from_bytes(Elem::I32, &[2], &[0; 7]).is_err());
    }

    #[test]
    fn absurd_sizes_are_errors() {
        for shape in [vec![1 << 40, 1 << 40], vec![1 << 60]] {
            let found = Tensor::zeros(Elem::F32, shape.clone());
            assert!(matches!(found, Err(TensorError::TooLarge { .. })), "{shape:?}");
        }
    }

    #[test]
    fn every_type_views_as_itself_only() {
        for elem in Elem::ALL {
            let mut tensor = Tensor::zeros(elem, vec![3]).unwrap();
            assert_eq!(tensor.elem(), elem);
            assert_eq!(tensor.bytes().len(), 3 * elem.size_bytes());
            assert_eq!(tensor.view_mut().elem(), elem);
            assert_eq!(tensor.as_slice::<i16>().is_some(), elem == Elem::I16);
            tensor.bytes_mut()[0] = 1;
            assert_eq!(tensor.view().to_tensor().unwrap(), tensor);
        }
    }

    #[test]
    fn misaligned_bytes_are_refused() {
        let values = [0i64; 4];
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        assert!(TensorRef::from_bytes(Elem::I64, &[1], &bytes[8..16]).is_ok());
        assert!(TensorRef::from_bytes(Elem::I64, &[0], &bytes[4..4]).is_ok());
        assert_eq!(
            TensorRef::from_bytes(Elem::I64, &[1], &bytes[4..12]).unwrap_err(),
            TensorError::Alignment { elem: Elem::I64 }
        );
    }
}
