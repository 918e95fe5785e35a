use crate::chat::Chat;
use crate::decoding::{Decoding, Sampler};
use crate::error::{Result, TuneError};
use crate::model::{Cache, Qwen, Tokens};
use crate::ops::into_values;

/// Prompts at once: decoding is bound by reading the weights, which a batch shares.
const BATCH: usize = 16;
/// Prompt tokens at once, which bounds the memory of reading the prompts.
const BATCH_TOKENS: usize = 8192;

/// The tokens of an answer, the one that ended it included, and whether one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(crate) ids: Vec<u32>,
    pub(crate) stopped: bool,
}

struct Row<'a> {
    /// Its place among the prompts.
    index: usize,
    sampler: Sampler<'a>,
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt: usize,
    room: usize,
}

/// Continues each prompt until a stop token, its limit or the end of the context.
pub(crate) fn generate(
    model: &Qwen,
    chat: &Chat,
    prompts: &[Vec<u32>],
    decoding: &Decoding,
) -> Result<Vec<Continuation>> {
    decoding.check()?;
    let context = model.config.max_position_embeddings;
    for prompt in prompts {
        if prompt.is_empty() || prompt.len() >= context {
            return Err(TuneError::ContextTooLong {
                prompt_tokens: prompt.len(),
                context,
            });
        }
        if let Some(id) = prompt
            .iter()
            .find(|&&id| id as usize >= model.config.vocab_size)
        {
            return Err(TuneError::Chat {
                reason: format!("token {id} is unknown to the model"),
            });
        }
    }
    let mut done = vec![
        Continuation {
            ids: Vec::new(),
            stopped: false
        };
        prompts.len()
    ];
    let (mut batch, mut tokens) = (Vec::new(), 0);
    for (index, prompt) in prompts.iter().enumerate() {
        if batch.len() == BATCH || (tokens + prompt.len() > BATCH_TOKENS && !batch.is_empty()) {
            run(model, chat, std::mem::take(&mut batch), &mut done)?;
            tokens = 0;
        }
        tokens += prompt.len();
        batch.push(Row {
            index,
            sampler: Sampler::new(decoding),
            ids: prompt.clone(),
            prompt: prompt.len(),
            room: decoding.max_tokens.min(context - prompt.len()),
        });
    }
    run(model, chat, batch, &mut done)?;
    // What long prompts took is not held until the next ones come.
    model.pool.clear();
    Ok(done)
}

fn run(model: &Qwen, chat: &Chat, mut rows: Vec<Row<'_>>, done: &mut [Continuation]) -> Result<()> {
    let mut cache = Cache::new(rows.len(), &model.config);
    // Rows of the model past the tokenizer are padding that was never trained.
    let known = chat.vocabulary.size().min(model.config.vocab_size);
    let mut fresh: Vec<usize> = rows.iter().map(|row| row.prompt).collect();
    while !rows.is_empty() {
        let new = rows.iter().zip(&fresh).map(|(row, &fresh)| {
            let past = row.ids.len() - fresh;
            (&row.ids[past..], past)
        });
        let tokens = Tokens::after(new);
        let hidden = model.hidden_cached(&tokens, &mut cache)?;
        let last: Vec<u32> = tokens
            .segments
            .iter()
            .map(|segment| (segment.start + segment.len - 1) as u32)
            .collect();
        let mut logits = into_values(model.logits(&hidden, &last)?)?;
        model.pool.recycle(hidden)?;
        let mut keep = Vec::with_capacity(rows.len());
        for (row, logits) in rows
            .iter_mut()
            .zip(logits.chunks_mut(model.config.vocab_size))
        {
            let next = row.sampler.choose(&mut logits[..known], &row.ids);
            row.ids.push(next);
            let stopped = chat.stops().contains(&next);
            let ended = stopped || row.ids.len() - row.prompt >= row.room;
            if ended {
                done[row.index] = Continuation {
                    ids: row.ids[row.prompt..].to_vec(),
                    stopped,
                };
            }
            keep.push(!ended);
        }
        cache.retain(&keep);
        let mut keep = keep.into_iter();
        rows.retain(|_| keep.next().unwrap_or(false));
        fresh = vec![1; rows.len()];
    }
    Ok(())
}
