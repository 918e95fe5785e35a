use std::ops::Range;

/// A value of a GGUF file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    Float(f64),
    Bool(bool),
    /// Where its bytes lie in the file.
    Text(Range<usize>),
    Array {
        of: Kind,
        count: usize,
        /// Where all its elements lie.
        bytes: Range<usize>,
    },
}

impl Value {
    pub(super) fn signed(value: i64) -> Self {
        match u64::try_from(value) {
            Ok(value) => Self::Unsigned(value),
            Err(_) => Self::Negative(value),
        }
    }

    /// What it is, for messages.
    pub(super) fn described(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Negative(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Text(_) => "a text",
            Self::Array { .. } => "an array",
        }
    }
}

/// The type of a value, in the order of its numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    pub(super) fn new(number: u32) -> Result<Self, String> {
        const ALL: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        let kind = usize::try_from(number).ok().and_then(|at| ALL.get(at));
        kind.copied()
            .ok_or_else(|| format!("{number} is not a type of value"))
    }

    /// Bytes of one; of a text, at least.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text | Self::Array => 8,
        }
    }
}
