use std::collections::BTreeMap;
use std::ops::Range;

use crate::gguf::value::{Kind, Value};

/// Keys and tensors of one file at most; the largest published models have a few thousand.
const MOST: u64 = 1 << 16;
/// A key or the name of a tensor is no longer than this.
const LONGEST_NAME: usize = 1 << 12;

/// What stands before the numbers in a GGUF file (versions 2 and 3; ggml's `docs/gguf.md`).
///
/// Texts and arrays are not copied: a value says where in the file they lie, and every such place was seen to lie in the
/// file. So what reading takes of memory is bounded by the number of keys, whatever lengths a file claims.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Outermost first, as everywhere but in the file.
    pub(super) shape: Vec<usize>,
    /// The number ggml gives the type.
    pub(super) ggml_type: u32,
    /// Where its numbers begin in the file.
    pub(super) start: usize,
}

impl Header {
    /// Reads the header at the beginning of a file's bytes; the fault says where in them it is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4) != Some(b"GGUF") {
            return Err("is not a GGUF file: it does not begin with GGUF".into());
        }
        match cursor.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err("is a big-endian GGUF file, which is not read here".into());
            }
            version => {
                return Err(format!(
                    "is GGUF version {version}; only versions 2 and 3 are read"
                ));
            }
        }
        let tensors = cursor.count("tensors")?;
        let keys = cursor.count("keys")?;
        let mut header = Self::default();
        for _ in 0..keys {
            let key = cursor.name()?;
            let value = cursor
                .value()
                .map_err(|reason| format!("{key}: {reason}"))?;
            if header.metadata.insert(key.clone(), value).is_some() {
                return Err(format!("{key}: is there twice"));
            }
        }
        let alignment = header.alignment()?;
        for _ in 0..tensors {
            let name = cursor.name()?;
            let tensor = cursor.tensor(alignment);
            let tensor = tensor.map_err(|reason| format!("tensor {name}: {reason}"))?;
            if header.tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!("tensor {name}: is there twice"));
            }
        }
        let data = cursor.at.next_multiple_of(alignment);
        for (name, tensor) in &mut header.tensors {
            let start = tensor.start.checked_add(data);
            tensor.start = start
                .filter(|&start| start <= bytes.len())
                .ok_or_else(|| format!("tensor {name}: begins behind the end of the file"))?;
        }
        Ok(header)
    }

    /// What the offsets of tensors are multiples of.
    fn alignment(&self) -> Result<usize, String> {
        match self.metadata.get("general.alignment") {
            None => Ok(32),
            Some(&Value::Unsigned(size)) if size.is_power_of_two() && size <= 1 << 20 => {
                Ok(size as usize)
            }
            Some(_) => Err("general.alignment: is not a power of two below a million".into()),
        }
    }
}

/// A place in a file's bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// As [`Cursor::take`], for a length that the file claims.
    fn span(&mut self, count: u64) -> Result<Range<usize>, String> {
        let start = self.at;
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| self.take(count));
        match taken {
            Some(_) => Ok(start..self.at),
            None => Err(format!(
                "at byte {start} the file claims {count} bytes, and has {}",
                self.bytes.len() - start
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let at = self.at;
        self.take(N)
            .and_then(|taken| taken.first_chunk().copied())
            .ok_or_else(|| format!("the file ends at byte {at}, in the middle of its header"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, of: &str) -> Result<u64, String> {
        match self.u64()? {
            count @ 0..=MOST => Ok(count),
            count => Err(format!(
                "claims {count} {of}; more than {MOST} are not read"
            )),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        let at = self.at;
        let length = self.u64()?;
        let span = self.span(length)?;
        if span.len() > LONGEST_NAME {
            return Err(format!("at byte {at} is a name of {length} bytes"));
        }
        std::str::from_utf8(&self.bytes[span])
            .map(str::to_owned)
            .map_err(|_| format!("at byte {at} is a name that is not UTF-8"))
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = Kind::new(self.u32()?)?;
        if kind != Kind::Array {
            return self.one(kind);
        }
        let of = Kind::new(self.u32()?)?;
        let count = self.u64()?;
        let bytes = match of {
            Kind::Array => return Err("arrays of arrays are not read".into()),
            Kind::Text => {
                let start = self.at;
                for _ in 0..count {
                    let length = self.u64()?;
                    self.span(length)?;
                }
                start..self.at
            }
            _ => self.span(count.saturating_mul(of.size()))?,
        };
        // What lies in the file was counted by it.
        let count = count as usize;
        Ok(Value::Array { of, count, bytes })
    }

    fn one(&mut self, kind: Kind) -> Result<Value, String> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I8 => Value::signed(i8::from_le_bytes(self.array()?).into()),
            Kind::I16 => Value::signed(i16::from_le_bytes(self.array()?).into()),
            Kind::I32 => Value::signed(i32::from_le_bytes(self.array()?).into()),
            Kind::I64 => Value::signed(i64::from_le_bytes(self.array()?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Kind::Bool => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("{other} is neither true nor false")),
            },
            Kind::Text => {
                let length = self.u64()?;
                Value::Text(self.span(length)?)
            }
            Kind::Array => unreachable!("the caller reads arrays"),
        })
    }

    fn tensor(&mut self, alignment: usize) -> Result<Tensor, String> {
        const MOST_DIMENSIONS: u32 = 4;
        let dimensions = match self.u32()? {
            count @ 1..=MOST_DIMENSIONS => count,
            count => return Err(format!("has {count} dimensions")),
        };
        let mut shape = (0..dimensions)
            .map(|_| {
                let size = self.u64()?;
                usize::try_from(size).map_err(|_| format!("has a dimension of {size}"))
            })
            .collect::<Result<Vec<_>, String>>()?;
        shape.reverse();
        let ggml_type = self.u32()?;
        let offset = self.u64()?;
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| start.is_multiple_of(alignment))
            .ok_or_else(|| format!("offset {offset} is not a multiple of {alignment}"))?;
        Ok(Tensor {
            shape,
            ggml_type,
            start,
        })
    }
}
