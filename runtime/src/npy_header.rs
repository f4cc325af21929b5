//! The header of an `.npy` file: `\x93NUMPY`, two version bytes, the length of the text, and the
//! text of a Python dictionary `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.

use std::io::{self, Read};

use crate::elem::{Elem, checked_elements};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Headers of the supported types take about a hundred bytes.
const MAX_TEXT_BYTES: usize = 1 << 16;
/// Data starts at a multiple of this.
const DATA_ALIGN: usize = 64;

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("not an .npy file: it does not start with \\x93NUMPY")]
    Magic,
    #[error("the file ends inside the .npy header")]
    Truncated,
    #[error(".npy format version {0}.{1} is not supported; versions 1.0 to 3.0 are")]
    Version(u8, u8),
    #[error("the .npy header is damaged at byte {at}: expected {expected}")]
    Syntax { at: usize, expected: &'static str },
    #[error("the .npy header has {0} bytes; at most {MAX_TEXT_BYTES} are accepted")]
    TooLong(usize),
    #[error(
        "elements of dtype '{0}' are not supported; convert the array to float32, uint8, int8, \
         int16, int32 or int64 with .astype()"
    )]
    Type(String),
    #[error("structured dtypes are not supported")]
    Structured,
    #[error("an array of shape {shape:?} and type {elem} does not fit in memory")]
    TooLarge { elem: Elem, shape: Vec<usize> },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a header says. The number of elements was checked to fit in memory's address range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub elem: Elem,
    /// Of the data; meaningless for one-byte elements.
    pub big_endian: bool,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

impl Header {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads a header; `source` is then at the first element.
    pub fn read(source: &mut impl Read) -> Result<Header, HeaderError> {
        let start: [u8; 8] = read_array(source).map_err(|error| match error {
            HeaderError::Truncated => HeaderError::Magic,
            other => other,
        })?;
        if !start.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let text_bytes = match (start[6], start[7]) {
            (1, 0) => usize::from(u16::from_le_bytes(read_array(source)?)),
            (2 | 3, 0) => u32::from_le_bytes(read_array(source)?) as usize,
            (major, minor) => return Err(HeaderError::Version(major, minor)),
        };
        if text_bytes > MAX_TEXT_BYTES {
            return Err(HeaderError::TooLong(text_bytes));
        }
        let mut text = vec![0; text_bytes];
        source.read_exact(&mut text).map_err(end_of_file)?;
        Parser { text: &text, at: 0 }.header()
    }

    /// The bytes of a version 1 header, padded so that data follows at a multiple of 64 bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeaderError> {
        let extents: String = self.shape.iter().map(|extent| format!("{extent}, ")).collect();
        let shape = match self.shape.len() {
            1 => extents.trim_end(),
            _ => extents.trim_end_matches(", "),
        };
        let order = if self.fortran_order { "True" } else { "False" };
        let kind = descr(self.elem, self.big_endian);
        let mut text = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({shape}), }}");
        let unpadded = MAGIC.len() + 4 + text.len() + 1;
        let padding = unpadded.next_multiple_of(DATA_ALIGN) - unpadded;
        text.push_str(&" ".repeat(padding));
        text.push('\n');
        let length = u16::try_from(text.len()).map_err(|_| HeaderError::TooLong(text.len()))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        Ok(bytes)
    }
}

fn descr(elem: Elem, big_endian: bool) -> String {
    let order = match (elem.size_bytes(), big_endian) {
        (1, _) => '|',
        (_, true) => '>',
        (_, false) => '<',
    };
    let kind = match elem {
        Elem::F32 => 'f',
        Elem::U8 => 'u',
        Elem::I8 | Elem::I16 | Elem::I32 | Elem::I64 => 'i',
    };
    format!("{order}{kind}{}", elem.size_bytes())
}

/// Element type and whether it is big-endian.
fn parse_descr(text: &str) -> Result<(Elem, bool), HeaderError> {
    let unsupported = || HeaderError::Type(text.to_owned());
    let (order, kind) = text.split_at_checked(1).ok_or_else(unsupported)?;
    let big_endian = match order {
        "<" | "|" => false,
        ">" => true,
        "=" => cfg!(target_endian = "big"),
        _ => return Err(unsupported()),
    };
    let elem = match kind {
        "f4" => Elem::F32,
        "u1" => Elem::U8,
        "i1" => Elem::I8,
        "i2" => Elem::I16,
        "i4" => Elem::I32,
        "i8" => Elem::I64,
        _ => return Err(unsupported()),
    };
    Ok((elem, big_endian))
}

fn read_array<const N: usize>(source: &mut impl Read) -> Result<[u8; N], HeaderError> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes).map_err(end_of_file)?;
    Ok(bytes)
}

fn end_of_file(error: io::Error) -> HeaderError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Truncated,
        _ => HeaderError::Io(error),
    }
}

/// Reads the dictionary; its three keys may come in any order.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn header(mut self) -> Result<Header, HeaderError> {
        let (mut kind, mut order, mut shape) = (None, None, None);
        self.expect(b'{', "'{'")?;
        while !self.accept(b'}') {
            let key = self.string()?;
            self.expect(b':', "':'")?;
            match key {
                b"descr" if self.peek() == Some(b'[') => return Err(HeaderError::Structured),
                b"descr" => {
                    let text = String::from_utf8_lossy(self.string()?);
                    kind = Some(parse_descr(&text)?);
                }
                b"fortran_order" => order = Some(self.boolean()?),
                b"shape" => shape = Some(self.shape()?),
                _ => return Err(self.wrong("the key descr, fortran_order or shape")),
            }
            if !self.accept(b',') && self.peek() != Some(b'}') {
                return Err(self.wrong("',' or '}'"));
            }
        }
        let (Some((elem, big_endian)), Some(fortran_order), Some(shape)) = (kind, order, shape) else {
            return Err(self.wrong("all of descr, fortran_order and shape"));
        };
        if checked_elements(elem, &shape).is_none() {
            return Err(HeaderError::TooLarge { elem, shape });
        }
        Ok(Header { elem, big_endian, fortran_order, shape })
    }

    fn wrong(&self, expected: &'static str) -> HeaderError {
        HeaderError::Syntax { at: self.at, expected }
    }

    /// The next byte that is not a space.
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), HeaderError> {
        if self.accept(byte) { Ok(()) } else { Err(self.wrong(expected)) }
    }

    /// A quoted string without escapes.
    fn string(&mut self) -> Result<&'a [u8], HeaderError> {
        let quote = match self.peek() {
            Some(quote @ (b'\'' | b'"')) => quote,
            _ => return Err(self.wrong("a string")),
        };
        let start = self.at + 1;
        let rest = &self.text[start..];
        let Some(length) = rest.iter().position(|&byte| byte == quote) else {
            return Err(self.wrong("a closed string"));
        };
        self.at = start + length + 1;
        Ok(&rest[..length])
    }

    /// The bytes of a word or number.
    fn word(&mut self) -> &'a [u8] {
        self.peek();
        let rest = &self.text[self.at..];
        let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        self.at += length;
        &rest[..length]
    }

    fn boolean(&mut self) -> Result<bool, HeaderError> {
        match self.word() {
            b"True" => Ok(true),
            b"False" => Ok(false),
            _ => Err(self.wrong("True or False")),
        }
    }

    fn shape(&mut self) -> Result<Vec<usize>, HeaderError> {
        let mut shape = Vec::new();
        self.expect(b'(', "'('")?;
        while !self.accept(b')') {
            let digits = str::from_utf8(self.word()).unwrap_or_default();
            // Python 2 wrote long integers as 3L.
            let digits = digits.strip_suffix('L').unwrap_or(digits);
            let extent = digits.parse().map_err(|_| self.wrong("an extent"))?;
            shape.push(extent);
            if !self.accept(b',') && self.peek() != Some(b')') {
                return Err(self.wrong("',' or ')'"));
            }
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Header, HeaderError> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        Header::read(&mut bytes.as_slice())
    }

    #[test]
    fn written_headers_read_back() {
        for elem in Elem::ALL {
            for shape in [vec![], vec![0], vec![7], vec![1, 3, 224, 224]] {
                let header = Header { elem, big_endian: false, fortran_order: false, shape };
                let bytes = header.to_bytes().unwrap();
                assert_eq!(bytes.len() % DATA_ALIGN, 0);
                assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), header);
            }
        }
    }

    #[test]
    fn written_text_is_numpys() {
        let header = Header { elem: Elem::F32, big_endian: false, fortran_order: false, shape: vec![5] };
        let text = header.to_bytes().unwrap();
        let expected = b"\x93NUMPY\x01\x00\x76\x00\
            {'descr': '<f4', 'fortran_order': False, 'shape': (5,), }";
        assert_eq!(&text[..expected.len()], expected);
        assert!(text[expected.len()..].trim_ascii().is_empty());
        assert_eq!(text.last(), Some(&b'\n'));
    }

    #[test]
    fn variants_are_understood() {
        let header = read("{\"shape\":(2L,3),'fortran_order':True,'descr':'>i2'}").unwrap();
        assert_eq!(header.shape, [2, 3]);
        assert!(header.fortran_order && header.big_endian);
        assert_eq!(header.elem, Elem::I16);
    }

    #[test]
    fn bad_headers_say_what_is_wrong() {
        let with = |descr: &str, shape: &str| {
            read(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"))
        };
        for descr in ["'<f8'", "'|O'", "'|b1'", "''", "'\u{e9}4'"] {
            assert!(matches!(with(descr, "(1,)"), Err(HeaderError::Type(_))), "{descr}");
        }
        assert!(matches!(with("[('a', '<f4')]", "(1,)"), Err(HeaderError::Structured)));
        assert!(matches!(with("'<f4'", "(1099511627776, 1099511627776)"), Err(HeaderError::TooLarge { .. })));
        for shape in ["(-1,)", "(1", "(1 2)", "1", "(99999999999999999999999,)", "(,)"] {
            let found = with("'<f4'", shape);
            assert!(matches!(found, Err(HeaderError::Syntax { .. })), "{shape}: {found:?}");
        }
        assert!(matches!(read("{'shape': (1,)}"), Err(HeaderError::Syntax { .. })));
        assert!(matches!(Header::read(&mut b"PK\x03\x04....".as_slice()), Err(HeaderError::Magic)));
        assert!(matches!(Header::read(&mut b"\x93NUMPY\x09\x00\x00\x00".as_slice()), Err(HeaderError::Version(9, 0))));
        assert!(matches!(
            Header::read(&mut b"\x93NUMPY\x02\x00\xff\xff\xff\xff".as_slice()),
            Err(HeaderError::TooLong(_))
        ));
    }
}
