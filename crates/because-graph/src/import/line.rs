use because_core::{Rejected, Split};
use serde::Serialize;
use serde_json::Value;

use super::record::{Fault, InteractionRow};

/// Writes an interaction as its line of `interactions.jsonl`, without the end that [`split_end`] puts on it once the split
/// is known.
pub(super) fn interaction(row: &InteractionRow, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"user\":");
    text(&row.user, out);
    out.extend_from_slice(b",\"item\":");
    text(&row.item, out);
    if let Some(rating) = row.rating {
        out.extend_from_slice(b",\"rating\":");
        json(&rating, out);
    }
    if let Some(review) = &row.review {
        out.extend_from_slice(b",\"review\":");
        text(review, out);
    }
    if let Some(timestamp) = row.timestamp {
        out.extend_from_slice(b",\"timestamp\":");
        json(&timestamp, out);
    }
    out.push(b'\n');
}

pub(super) fn split_end(split: Split) -> &'static [u8] {
    match split {
        Split::Train => b",\"split\":\"train\"}\n",
        Split::Valid => b",\"split\":\"valid\"}\n",
        Split::Test => b",\"split\":\"test\"}\n",
        Split::Hidden => b",\"split\":\"hidden\"}\n",
    }
}

/// What an interaction's line says, as a row of `rejected.jsonl`.
pub(super) fn fields(line: &[u8]) -> Value {
    let line = [line, b"}"].concat();
    serde_json::from_slice(&line).unwrap_or_default()
}

/// Writes the row that was refused as its line of `rejected.jsonl`.
pub(super) fn rejected(file: &str, line: u64, fault: Fault, record: Value, out: &mut Vec<u8>) {
    let row = Rejected {
        file: file.to_owned(),
        line,
        field: fault.field,
        reason: fault.reason,
        record,
    };
    of(&row, out);
}

/// Writes a record as a line.
pub(super) fn of(record: &impl Serialize, out: &mut Vec<u8>) {
    json(record, out);
    out.push(b'\n');
}

pub(super) fn json(value: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to memory does not fail, and nothing we write has keys that are no texts.
    let _ = serde_json::to_writer(out, value);
}

/// Most texts need no escape, which one pass without a branch tells.
fn text(text: &str, out: &mut Vec<u8>) {
    let needs_escape = text.bytes().fold(false, |needs, byte| {
        needs | (byte < 0x20) | (byte == b'"') | (byte == b'\\')
    });
    if needs_escape {
        json(&text, out);
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_what_serde_makes_of_the_interaction(
            (user, item) in (".{0,4}", "[\u{0}-\u{7f}]{0,4}"),
            rating in prop::option::of(prop::num::f64::NORMAL | prop::num::f64::ZERO),
            review in prop::option::of("[a\"\\\\\n\u{1}\u{7f}\u{2028}ü]{0,12}"),
            timestamp: Option<i64>,
            split in prop::sample::select(Split::ALL.to_vec()),
        ) {
            let expected = Interaction {
                rating, timestamp, split: Some(split), review: review.clone(),
                ..Interaction::new(user.as_str(), item.as_str())
            };
            let row = InteractionRow {
                user: user.into(), item: item.into(), rating, timestamp, split: None, review: review.map(Into::into),
            };
            let mut line = Vec::new();
            interaction(&row, &mut line);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert!(!line.contains(&b'\n'));
            let told = fields(&line);
            line.extend_from_slice(split_end(split));
            let line = String::from_utf8(line).unwrap();
            prop_assert_eq!(line.trim_end(), serde_json::to_string(&expected).unwrap());
            let without = Interaction { split: None, ..expected };
            let without = serde_json::to_string(&without).unwrap();
            prop_assert_eq!(told, serde_json::from_str::<Value>(&without).unwrap());
        }
    }
}
