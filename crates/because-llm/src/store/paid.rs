use rusqlite::Row;

use super::{Store, unsigned};
use crate::{Result, Usage};

/// What calls that went out came to, as the store's `attempts` have it.
///
/// ```
/// use because_llm::{Audited, ChatModel, ChatRequest, Message, Offline, Paid, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = Audited::new(Offline, store.clone());
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// store.flush()?;
/// let mut all = Paid::default();
/// store.each_paid(|call| all += call.paid)?;
/// assert_eq!((all.calls, all.answered), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paid {
    /// Calls that went out, good or bad.
    pub calls: u64,
    /// Those that were answered.
    pub answered: u64,
    /// The tokens of all of them.
    pub usage: Usage,
    /// The tokens of those that were answered.
    pub answered_usage: Usage,
    /// How long those that were answered took together, in milliseconds.
    pub answered_ms: u64,
}

/// One call that went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PaidCall<'a> {
    /// The bytes of its request's key.
    pub key: &'a [u8],
    /// The model that was asked.
    pub model: &'a str,
    /// Where that is.
    pub endpoint: &'a str,
    /// What it came to.
    pub paid: Paid,
}

impl Store {
    /// Goes through every call that went out, in one pass and in no particular order.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file cannot be read.
    pub fn each_paid(&self, mut each: impl FnMut(PaidCall<'_>)) -> Result<()> {
        const CALLS: &str = "SELECT key, model, endpoint, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens,
            outcome = 'ok', coalesce(latency_ms, 0) FROM attempts";
        self.read(|reader| {
            let mut statement = reader.prepare(CALLS)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(PaidCall {
                    key: row.get_ref(0)?.as_blob()?,
                    model: row.get_ref(1)?.as_str()?,
                    endpoint: row.get_ref(2)?.as_str()?,
                    paid: paid(row)?,
                });
            }
            Ok(())
        })
    }
}

fn paid(row: &Row<'_>) -> rusqlite::Result<Paid> {
    let usage = Usage {
        prompt_tokens: unsigned(row, 3)?,
        completion_tokens: unsigned(row, 4)?,
        cached_tokens: unsigned(row, 5)?,
        reasoning_tokens: unsigned(row, 6)?,
    };
    let mut paid = Paid {
        calls: 1,
        usage,
        ..Paid::default()
    };
    if row.get(7)? {
        paid.answered = 1;
        paid.answered_usage = usage;
        paid.answered_ms = unsigned(row, 8)?;
    }
    Ok(paid)
}

impl std::ops::AddAssign for Paid {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.answered += other.answered;
        self.usage += other.usage;
        self.answered_usage += other.answered_usage;
        self.answered_ms += other.answered_ms;
    }
}
