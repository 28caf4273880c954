//! NumPy arrays: `.npy`.

use std::io::Read;

use super::tensor::{Array, Element, read as read_tensor};
use super::{ImportOptions, Imported};
use crate::error::{Place, TraceError, quote};
use crate::input::Source;

/// Longest header. NumPy itself refuses more than 10,000 bytes.
const MAX_HEADER: usize = 64 << 10;

/// Most axes.
const MAX_AXES: usize = 8;

/// Reads a file that is one array.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    read_tensor("NumPy array", source, options, || {
        open(Box::new(source.stream()?), String::new(), source.place())
    })
}

/// Reads the header; what follows are the elements.
pub(super) fn open(
    mut data: Box<dyn Read + Send>,
    name: String,
    place: Place,
) -> Result<Array, TraceError> {
    let mut exact = |bytes: usize| -> Result<Vec<u8>, TraceError> {
        let mut read = vec![0; bytes];
        let result = data.read_exact(&mut read);
        result.map_err(|source| TraceError::reading(place.clone().field("header"), source))?;
        Ok(read)
    };
    let fail = |field: &str, expected: &str, found: &[u8]| {
        TraceError::invalid(place.clone().field(field), expected, quote(found))
    };
    let start = exact(8)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(fail("header", "\\x93NUMPY", &start[..6]));
    }
    let length = match start[6] {
        1 => {
            let two = exact(2)?;
            usize::from(u16::from_le_bytes([two[0], two[1]]))
        }
        2 | 3 => {
            let four = exact(4)?;
            u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize
        }
        version => return Err(fail("version", "1, 2 or 3", version.to_string().as_bytes())),
    };
    if length > MAX_HEADER {
        let found = length.to_string();
        return Err(fail("header", "at most 65536 bytes", found.as_bytes()));
    }
    let header = exact(length)?;
    let text = String::from_utf8_lossy(&header);
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let broken = |key: &str| fail(key, "a header of NumPy", &header);
    let descr = value("descr").ok_or_else(|| broken("descr"))?;
    let code = descr
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''));
    let code = code.map(|(code, _)| code).ok_or_else(|| broken("descr"))?;
    let fortran = value("fortran_order").ok_or_else(|| broken("fortran_order"))?;
    let shape = value("shape").and_then(parse_shape);
    let shape = shape.ok_or_else(|| broken("shape"))?;
    if !fortran.starts_with("False") && shape.len() > 1 {
        return Err(fail(
            "fortran_order",
            "rows in order (save numpy.ascontiguousarray(array))",
            b"True",
        ));
    }
    let (order, kind) = code.split_at_checked(1).ok_or_else(|| broken("descr"))?;
    let element = match kind {
        "i1" | "i2" | "i4" | "i8" => Element::Signed(usize::from(kind.as_bytes()[1] - b'0')),
        "u1" | "u2" | "u4" | "u8" => Element::Unsigned(usize::from(kind.as_bytes()[1] - b'0')),
        "f4" | "f8" => Element::Float(usize::from(kind.as_bytes()[1] - b'0')),
        _ => {
            return Err(fail(
                "descr",
                "integers, float32 or float64 (an array of objects holds a pickle, which is not run)",
                code.as_bytes(),
            ));
        }
    };
    Ok(Array {
        name,
        element,
        big_endian: order == ">",
        shape,
        data,
    })
}

/// `(3, 4)` at the start of `text`.
fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    let parts = inside.split(',').map(str::trim);
    let mut shape = Vec::new();
    for part in parts.filter(|part| !part.is_empty()) {
        shape.push(part.trim_end_matches('L').parse().ok()?);
    }
    (shape.len() <= MAX_AXES).then_some(shape)
}
