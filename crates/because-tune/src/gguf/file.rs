use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Result, TuneError};
use crate::gguf::header::{Header, Tensor};
use crate::gguf::value::{Kind, Value};
use crate::weights::map;

/// A mapped GGUF file, or all parts of one that was split.
#[derive(Debug, Clone)]
pub(super) struct GgufFile {
    /// What was named.
    pub(super) path: PathBuf,
    /// The first has the metadata.
    parts: Arc<Vec<Part>>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Header,
}

/// A tensor with the file it lies in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) path: &'a Path,
    pub(super) map: &'a Arc<Mmap>,
    pub(super) tensor: &'a Tensor,
}

impl GgufFile {
    /// Maps a file and reads its header; of a split one the first part is named and the others lie beside it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let first = Part::open(path)?;
        let mut file = Self {
            path: path.to_owned(),
            parts: Arc::new(vec![first]),
        };
        let count = file.size("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(file);
        }
        let others = file.others(count)?;
        if let Some(parts) = Arc::get_mut(&mut file.parts) {
            parts.extend(others);
        }
        let tensors: usize = file
            .parts
            .iter()
            .map(|part| part.header.tensors.len())
            .sum();
        match file.size("split.tensors.count")? {
            Some(said) if said != tensors => Err(file.field_fault(
                "split.tensors.count",
                format!("is {said}, the parts have {tensors} tensors"),
            )),
            _ => Ok(file),
        }
    }

    /// The parts after the first, whose names differ in their number alone.
    fn others(&self, count: usize) -> Result<Vec<Part>> {
        const MOST: usize = 99_999;
        let fault = |reason: String| TuneError::Base {
            path: self.path.clone(),
            reason,
        };
        if self.size("split.no")? != Some(0) || count > MOST {
            return Err(fault(format!(
                "is one part of {count}; name the first of them, which ends in -00001-of-{count:05}.gguf"
            )));
        }
        let name = self.path.file_name().and_then(|name| name.to_str());
        let stem = name.and_then(|name| name.strip_suffix(&format!("-00001-of-{count:05}.gguf")));
        let Some(stem) = stem else {
            return Err(fault(format!(
                "is the first part of {count}, but its name does not end in -00001-of-{count:05}.gguf; the names of the \
                 others follow from it"
            )));
        };
        (1..count)
            .map(|number| {
                let own = format!("{stem}-{:05}-of-{count:05}.gguf", number + 1);
                let part = Part::open(&self.path.with_file_name(own))?;
                let said = |key: &str| match part.header.metadata.get(key) {
                    Some(&Value::Unsigned(value)) => usize::try_from(value).ok(),
                    _ => None,
                };
                if (said("split.no"), said("split.count")) != (Some(number), Some(count)) {
                    let reason = format!("is not part {} of {count}, as its name says", number + 1);
                    return Err(TuneError::Base {
                        path: part.path,
                        reason,
                    });
                }
                Ok(part)
            })
            .collect()
    }

    /// All tensors with their names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, Stored<'_>)> {
        self.parts.iter().flat_map(|part| {
            part.header.tensors.iter().map(|(name, tensor)| {
                let (path, map) = (part.path.as_path(), &part.map);
                (name.as_str(), Stored { path, map, tensor })
            })
        })
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| part.header.tensors.contains_key(name))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.parts[0].header.metadata.get(key)
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> TuneError {
        self.field_fault(key, format!("is {}, not {wanted}", value.described()))
    }

    /// A fault of a metadata key.
    pub(super) fn field_fault(&self, key: &str, reason: impl Into<String>) -> TuneError {
        TuneError::ModelConfig {
            path: self.path.clone(),
            field: key.to_owned(),
            reason: reason.into(),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            // As for a folder's configuration: products of two sizes stay far from overflow.
            Some(&Value::Unsigned(size @ 0..=0x7fff_ffff)) => Ok(Some(size as usize)),
            Some(Value::Unsigned(_) | Value::Negative(_)) => {
                Err(self.field_fault(key, "is out of range"))
            }
            Some(other) => Err(self.wrong(key, other, "a whole number")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(number)) => Ok(Some(number)),
            Some(&Value::Unsigned(number)) => Ok(Some(number as f64)),
            Some(other) => Err(self.wrong(key, other, "a number")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(span)) => std::str::from_utf8(&self.bytes()[span.clone()])
                .map(Some)
                .map_err(|_| self.field_fault(key, "is not UTF-8")),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// How many elements an array has.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Array { count, .. }) => Ok(Some(count)),
            Some(other) => Err(self.wrong(key, other, "an array")),
        }
    }

    /// The texts of an array.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let (count, span) = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array {
                of: Kind::Text,
                count,
                bytes,
            }) => (*count, bytes.clone()),
            Some(other) => return Err(self.wrong(key, other, "an array of texts")),
        };
        let mut rest = &self.bytes()[span];
        let mut texts = Vec::with_capacity(count);
        for at in 0..count {
            // The header's reader went the same way.
            let text = rest.split_first_chunk::<8>().and_then(|(length, behind)| {
                let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
                behind.split_at_checked(length)
            });
            let Some((text, behind)) = text else {
                return Err(self.field_fault(key, "ends too early"));
            };
            rest = behind;
            let text = std::str::from_utf8(text)
                .map_err(|_| self.field_fault(key, format!("entry {at} is not UTF-8")))?;
            texts.push(text);
        }
        Ok(Some(texts))
    }

    /// The 32-bit whole numbers of an array.
    pub(super) fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array {
                of: Kind::I32 | Kind::U32,
                bytes,
                ..
            }) => {
                let all = self.bytes()[bytes.clone()].as_chunks::<4>().0.iter();
                Ok(Some(all.map(|&one| i32::from_le_bytes(one)).collect()))
            }
            Some(other) => Err(self.wrong(key, other, "an array of 32-bit whole numbers")),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.parts[0].map
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let fault = |reason: String| TuneError::Base {
            path: path.to_owned(),
            reason,
        };
        if !path.is_file() {
            return Err(fault("no such file".into()));
        }
        let map = Arc::new(map(path)?);
        let header = Header::parse(&map).map_err(fault)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            header,
        })
    }
}
