use std::borrow::Cow;
use std::io;
use std::sync::{Mutex, PoisonError};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::get_frame_content_size;

/// Answers of a kilobyte shrink to half at this level. Level 1 makes them a sixth smaller still and takes half as long again;
/// the next ones gain a twentieth.
const LEVEL: i32 = -1;

/// What is shorter hardly shrinks, and stays readable in any SQLite tool.
const SHORTEST: usize = 200;

/// More than any answer has; what claims more is no answer of ours.
const LONGEST: u64 = 1 << 30;

/// An answer as it lies in the file: text where that is shorter, else compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packed {
    Plain(String),
    Zstd(Vec<u8>),
}

impl ToSql for Packed {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Plain(text) => ValueRef::Text(text.as_bytes()),
            Self::Zstd(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl FromSql for Packed {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Text(text) => Ok(Self::Plain(
                std::str::from_utf8(text)
                    .map_err(FromSqlError::other)?
                    .to_owned(),
            )),
            ValueRef::Blob(bytes) => Ok(Self::Zstd(bytes.to_owned())),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// Packs and unpacks, with contexts that are made once for as many as do it at the same time.
#[derive(Default)]
pub(super) struct Codec {
    packers: Mutex<Vec<Compressor<'static>>>,
    unpackers: Mutex<Vec<Decompressor<'static>>>,
}

impl Codec {
    pub(super) fn pack(&self, text: String) -> Packed {
        if text.len() < SHORTEST {
            return Packed::Plain(text);
        }
        // Without memory for a context the answer is kept all the same.
        let packed = lent(
            &self.packers,
            || Compressor::new(LEVEL),
            |packer| packer.compress(text.as_bytes()),
        );
        match packed {
            Ok(bytes) if bytes.len() < text.len() => Packed::Zstd(bytes),
            _ => Packed::Plain(text),
        }
    }

    /// The JSON of an answer.
    pub(super) fn unpack<'a>(&self, packed: &'a Packed) -> io::Result<Cow<'a, [u8]>> {
        let bytes = match packed {
            Packed::Plain(text) => return Ok(Cow::Borrowed(text.as_bytes())),
            Packed::Zstd(bytes) => bytes,
        };
        let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message);
        let length = match get_frame_content_size(bytes) {
            Ok(Some(length)) if length <= LONGEST => length as usize,
            _ => return Err(invalid("no compressed answer")),
        };
        lent(&self.unpackers, Decompressor::new, |unpacker| {
            unpacker.decompress(bytes, length).map(Cow::Owned)
        })
    }
}

/// Lends a context for one use; it comes back unless the use panics.
fn lent<C, T>(
    contexts: &Mutex<Vec<C>>,
    new: impl FnOnce() -> io::Result<C>,
    used: impl FnOnce(&mut C) -> io::Result<T>,
) -> io::Result<T> {
    let locked = || contexts.lock().unwrap_or_else(PoisonError::into_inner);
    let idle = locked().pop();
    let mut context = idle.map_or_else(new, Ok)?;
    let result = used(&mut context);
    locked().push(context);
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(text in ".{0,20}", times in 0..200usize) {
            let codec = Codec::default();
            let text = text.repeat(times);
            let packed = codec.pack(text.clone());
            prop_assert_eq!(codec.unpack(&packed).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_not_a_large_allocation() {
        let codec = Codec::default();
        for bytes in [
            &b"plain"[..],
            b"",
            &[
                0x28, 0xb5, 0x2f, 0xfd, 0xe0, 255, 255, 255, 255, 255, 255, 255, 127,
            ],
        ] {
            assert!(codec.unpack(&Packed::Zstd(bytes.to_vec())).is_err());
        }
        // A cut frame.
        let Packed::Zstd(mut bytes) = codec.pack("to and fro ".repeat(100)) else {
            panic!("it shrinks")
        };
        bytes.truncate(bytes.len() / 2);
        assert!(codec.unpack(&Packed::Zstd(bytes)).is_err());
    }

    #[test]
    fn short_answers_stay_text() {
        let codec = Codec::default();
        assert_eq!(codec.pack("{}".into()), Packed::Plain("{}".into()));
    }
}
