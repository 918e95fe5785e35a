//! What the fuzz targets call: each reader on bytes without a file. Each stops with a panic where a law is broken.

use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use serde_json::Value;

use super::entries::Entries;
use super::markup::Markup;
use super::parse::Parser;
use super::record::{Record, RecordKind};
use super::{literal, time};
use crate::Format;

/// Reads bytes as the lines of a file of this name: no row may stop the reader, the quick and the long way must read the same
/// from it, and what is taken has ids and finite ratings.
pub fn rows(format: Format, name: &str, bytes: &[u8]) {
    let path = Path::new(name);
    let mut parser = Parser::of(format, path);
    let mut lines = bytes.split(|&byte| byte == b'\n');
    if parser.has_header()
        && let Some(header) = lines.next()
        && parser.read_header(path, 1, header).is_err()
    {
        return;
    }
    parser.decide_kind(lines.clone());
    for row in lines.filter(|row| !row.trim_ascii().is_empty()) {
        check(&mut parser, row);
    }
}

fn check(parser: &mut Parser, row: &[u8]) {
    assert!(
        !parser.disagrees_with_itself(row),
        "two ways, two readings: {:?}",
        String::from_utf8_lossy(row)
    );
    parser.raw(row);
    match parser.parse(row) {
        Ok(Record::Interaction(found)) => {
            assert_eq!(
                parser.kind().unwrap_or(RecordKind::Interaction),
                RecordKind::Interaction
            );
            assert!(!found.user.trim().is_empty() && !found.item.trim().is_empty());
            assert_eq!(
                (found.user.trim(), found.item.trim()),
                (&*found.user, &*found.item)
            );
            assert!(found.rating.is_none_or(f64::is_finite));
            assert!(found.review.is_none_or(|review| !review.trim().is_empty()));
        }
        Ok(Record::Reference(found)) => assert!(!found.user.as_str().is_empty()),
        Ok(Record::User(found)) => assert!(!found.user.as_str().is_empty()),
        Ok(Record::Item(found)) => assert!(!found.item.as_str().is_empty()),
        Err(fault) => assert!(!fault.reason.is_empty() && fault.reason.len() < 2000),
    }
}

/// Reads a text as a Python literal; what JSON makes of it is read the same again.
pub fn python(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match literal::parse(text) {
        Ok(value) => {
            // Plain as `repr` writes it, a value reads as itself; JSON's `true`, `false` and `null` are no literals.
            if !has_words(&value) {
                assert_eq!(literal::parse(&value.to_string()).as_ref(), Ok(&value));
            }
        }
        Err(error) => assert!(error.at <= text.len()),
    }
}

fn has_words(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        // JSON and Python write the same number with other digits at times.
        Value::Number(number) => number.is_f64(),
        Value::String(text) => text.contains('/'),
        Value::Array(list) => list.iter().any(has_words),
        Value::Object(fields) => fields.values().any(has_words),
    }
}

/// Reads a text as a time, as a text of a page, and bytes as a file of entries.
pub fn texts(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let read = time::from_text(text);
        assert_eq!(read, time::seconds(&Value::from(text)));
        for markup in [Markup::None, Markup::Entities, Markup::Html] {
            markup.plain(text.into());
        }
    }
    let read = |piece| {
        let mut lines = Vec::new();
        let source = BufReader::with_capacity(piece, Cursor::new(bytes.to_vec()));
        let ended = Entries::of(Box::new(source)).read_to_end(&mut lines);
        assert!(ended.is_ok());
        lines
    };
    assert_eq!(read(1), read(4096), "pieces make no difference");
}
