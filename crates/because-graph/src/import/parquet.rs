use std::io::BufRead;
use std::path::Path;

use crate::Result;

/// Without the feature there is only this to say.
#[cfg(not(feature = "parquet"))]
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    Err(crate::Error::Unreadable {
        path: path.to_owned(),
        reason: "Parquet is read only where the feature `parquet` was built in; build with it, or give CSV or JSON Lines"
            .to_owned(),
    })
}

/// The rows as lines of JSON, so that from here on they are rows like any others.
#[cfg(feature = "parquet")]
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    reader::open(path)
}

#[cfg(feature = "parquet")]
mod reader {
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{self, BufRead, Read};
    use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
    use std::path::Path;
    use std::sync::Once;

    use ::parquet::errors::ParquetError;
    use ::parquet::file::reader::SerializedFileReader;
    use ::parquet::record::reader::RowIter;
    use ::parquet::record::{Field, Row};
    use serde_json::Value;

    use crate::{Error, Result};

    /// How many bytes are made at a time.
    const PIECE: usize = 1 << 16;

    /// In the year 9998.
    const LAST_DAY: u32 = 2_932_000;

    struct Lines {
        rows: RowIter<'static>,
        out: Vec<u8>,
        given: usize,
    }

    pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
        let file =
            File::open(path).map_err(|source| because_core::Error::io("open", path, source))?;
        let opened = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            RowIter::from_file_into(Box::new(reader)).project(None)
        });
        let rows = opened.map_err(|error| Error::Unreadable {
            path: path.to_owned(),
            reason: format!("not a Parquet file that can be read: {error}"),
        })?;
        Ok(Box::new(Lines {
            rows,
            out: Vec::new(),
            given: 0,
        }))
    }

    /// The crate stops with a panic at some files that were tampered with; to the caller that is a file that cannot be read.
    fn guarded<T>(
        read: impl FnOnce() -> ::parquet::errors::Result<T>,
    ) -> ::parquet::errors::Result<T> {
        GUARDED.set(true);
        HUSH.call_once(hush);
        let read = catch_unwind(AssertUnwindSafe(read));
        GUARDED.set(false);
        read.unwrap_or_else(|_| Err(ParquetError::General("it contradicts itself".to_owned())))
    }

    static HUSH: Once = Once::new();

    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
    }

    /// Has panics that are caught here say nothing: a program that lives on has no use for where it would have died. All others
    /// go where they went before.
    fn hush() {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                others(panic);
            }
        }));
    }

    impl BufRead for Lines {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            if self.given == self.out.len() {
                self.out.clear();
                self.given = 0;
                while self.out.len() < PIECE
                    && let Some(row) = guarded(|| Ok(self.rows.next().transpose()?.map(object)))
                        .map_err(io::Error::other)?
                {
                    serde_json::to_writer(&mut self.out, &row).map_err(io::Error::other)?;
                    self.out.push(b'\n');
                }
            }
            Ok(&self.out[self.given..])
        }

        fn consume(&mut self, amount: usize) {
            self.given = (self.given + amount).min(self.out.len());
        }
    }

    impl Read for Lines {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let ready = self.fill_buf()?;
            let length = ready.len().min(buffer.len());
            buffer[..length].copy_from_slice(&ready[..length]);
            self.consume(length);
            Ok(length)
        }
    }

    fn object(row: Row) -> Value {
        let fields = row.into_columns().into_iter();
        fields.map(|(name, field)| (name, value(field))).collect()
    }

    fn value(field: Field) -> Value {
        match field {
            Field::Null => Value::Null,
            Field::Bool(truth) => truth.into(),
            Field::Byte(number) => number.into(),
            Field::Short(number) => number.into(),
            Field::Int(number) => number.into(),
            Field::Long(number) => number.into(),
            Field::UByte(number) => number.into(),
            Field::UShort(number) => number.into(),
            Field::UInt(number) => number.into(),
            Field::ULong(number) => number.into(),
            // 4.1 as 32 bits is 4.1 for people, not 4.099999904632568.
            Field::Float(number) => number
                .to_string()
                .parse::<f64>()
                .map_or(Value::Null, Value::from),
            Field::Double(number) => number.into(),
            Field::Str(text) => text.into(),
            Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into(),
            Field::Group(row) => object(row),
            Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
            Field::MapInternal(map) => {
                let entries = map.entries().iter().cloned();
                let named = entries.map(|(key, entry)| match value(key) {
                    Value::String(key) => (key, value(entry)),
                    key => (key.to_string(), value(entry)),
                });
                named.collect()
            }
            number @ (Field::Decimal(_) | Field::Float16(_)) => number
                .to_string()
                .parse::<f64>()
                .map_or(Value::Null, Value::from),
            // Beyond what a calendar can write: left for the reader of times to refuse.
            Field::Date(days) if days.unsigned_abs() > LAST_DAY => days.into(),
            Field::TimestampMillis(time) if time.unsigned_abs() / 86_400_000 > LAST_DAY.into() => {
                time.into()
            }
            Field::TimestampMicros(time)
                if time.unsigned_abs() / 86_400_000_000 > LAST_DAY.into() =>
            {
                time.into()
            }
            // As dates are written: 2018-07-07 22:09:11 +00:00.
            time => time.to_string().into(),
        }
    }

    #[cfg(test)]
    mod tests {
        use std::sync::Arc;

        use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
        use ::parquet::file::writer::SerializedFileWriter;
        use ::parquet::schema::parser::parse_message_type;
        use serde_json::json;

        use super::*;

        fn write(path: &Path) {
            let schema = "message m { REQUIRED BYTE_ARRAY user_id (UTF8); REQUIRED INT64 item_id; OPTIONAL DOUBLE rating; \
                 REQUIRED INT64 timestamp (TIMESTAMP_MILLIS); }";
            let schema = Arc::new(parse_message_type(schema).unwrap());
            let file = File::create(path).unwrap();
            let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let users = [ByteArray::from("ann"), ByteArray::from("bob \"b\"")];
            column
                .typed::<ByteArrayType>()
                .write_batch(&users, None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<Int64Type>()
                .write_batch(&[7, 8], None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<DoubleType>()
                .write_batch(&[4.5], Some(&[1, 0]), None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<Int64Type>()
                .write_batch(&[1_531_001_351_000, 0], None, None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.close().unwrap();
        }

        #[test]
        fn rows_become_lines() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.parquet");
            write(&path);
            let lines: Vec<Value> = open(&path)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
                .collect();
            assert_eq!(
                lines,
                [
                    json!({"user_id": "ann", "item_id": 7, "rating": 4.5, "timestamp": "2018-07-07 22:09:11.000 +00:00"}),
                    json!({"user_id": "bob \"b\"", "item_id": 8, "rating": null, "timestamp": "1970-01-01 00:00:00.000 +00:00"}),
                ]
            );
            let seconds = super::super::super::time::seconds(&lines[0]["timestamp"]);
            assert_eq!(seconds, Some(1_531_001_351));
        }

        #[test]
        fn a_folder_of_parquet_is_imported() {
            let folder = tempfile::tempdir().unwrap();
            write(&folder.path().join("part-0.parquet"));
            std::fs::write(folder.path().join("README.md"), "not read").unwrap();
            let out = because_core::Project::new(folder.path().join("out"));
            let import = crate::Import::new(crate::Format::Parquet, [folder.path()]);
            let summary = import.run(&out).unwrap();
            assert_eq!((summary.read, summary.interactions), (2, 2));
            assert_eq!(
                out.interactions().unwrap()[0].timestamp,
                Some(1_531_001_351)
            );
        }

        #[test]
        fn what_is_caught_says_nothing() {
            let said = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--nocapture", "what_is_broken_is_refused_not_fallen_over"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
            assert!(
                said.contains("1 passed") && !said.contains("panicked"),
                "{said}"
            );
        }

        #[test]
        fn what_is_broken_is_refused_not_fallen_over() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.parquet");
            write(&path);
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut broken = whole.clone();
                broken[at] ^= 0xff;
                std::fs::write(&path, &broken).unwrap();
                if let Ok(lines) = open(&path) {
                    lines.lines().take(10).for_each(drop);
                }
            }
            std::fs::write(&path, &whole[..40]).unwrap();
            let said = open(&path).err().unwrap().to_string();
            assert!(
                said.contains("a.parquet: not a Parquet file that can be read"),
                "{said}"
            );
        }
    }
}
