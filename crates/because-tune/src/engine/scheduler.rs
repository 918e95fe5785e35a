use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use rayon::prelude::*;

use super::pages::PagePool;
use super::prefix::PrefixCache;
use super::row::{Outcome, Row, RowId};
use super::settings::EngineSettings;
use crate::error::{Result, TuneError};
use crate::infer::{Inference, KeyValues, Piece, Wants};
use crate::ops::PAGE;
use crate::tuned::{Generation, Loaded};

/// What a step brought for a row.
#[derive(Debug)]
pub(crate) enum Event {
    /// More of its text.
    Text(String),
    /// Its end.
    Done(Generation),
    /// Its end without an answer.
    Failed(TuneError),
}

/// Continuous batching: each step computes one token for every row that writes and a piece of the prompts of those that
/// read, and a row that ends makes room at once.
///
/// When pages run out the youngest row goes back into the queue and is computed again later. Which rows run together, in which
/// pieces prompts are read and what comes from the prefix cache changes no row's answer, as [`Inference`] says.
#[derive(Debug)]
pub(crate) struct Scheduler {
    model: Arc<Loaded>,
    settings: EngineSettings,
    pool: PagePool,
    /// Made when it is first needed.
    cache: Option<KeyValues>,
    prefixes: PrefixCache,
    inference: Inference,
    /// By age, those that were put back among them.
    waiting: VecDeque<Row>,
    /// By age.
    running: Vec<Row>,
    next: RowId,
    #[cfg(test)]
    pub(super) seen: Seen,
}

/// What tests want to know.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Of each row the hashes of the logits its tokens were chosen from.
    pub(super) bits: std::collections::BTreeMap<RowId, Vec<u64>>,
    pub(super) put_back: usize,
}

/// One row's share in a step.
struct Planned {
    /// Its place among the running rows.
    row: usize,
    len: usize,
}

impl Scheduler {
    /// # Errors
    /// When a setting is out of its range, or the memory is less than one page.
    pub(crate) fn new(model: Arc<Loaded>, settings: EngineSettings) -> Result<Self> {
        settings.check()?;
        let page = KeyValues::page_bytes(&model.base);
        let pages = settings.cache_bytes / page;
        if pages == 0 {
            return Err(TuneError::Setting {
                field: "cache_bytes",
                reason: format!(
                    "{} is not enough for {PAGE} tokens of this model, which take {page}",
                    settings.cache_bytes
                ),
            });
        }
        // More than all rows could fill would be of use to the prefix cache alone; ids of pages are 32 bits wide.
        let pages = usize::try_from(pages.min(1 << 24)).unwrap_or(1 << 24);
        Ok(Self {
            pool: PagePool::new(pages),
            model,
            settings,
            cache: None,
            prefixes: PrefixCache::default(),
            inference: Inference::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            next: 0,
            #[cfg(test)]
            seen: Seen::default(),
        })
    }

    /// Tokens a row can have, prompt and answer: those of the model's context, or what fits into the cache.
    pub(crate) fn context(&self) -> usize {
        let model = self.model.base.config.max_position_embeddings;
        // The last token of an answer is never computed.
        model.min(self.pool.len() * PAGE + 1)
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Puts a row into the queue.
    ///
    /// # Errors
    /// When its prompt has no room, is empty or has a token the model does not know.
    pub(crate) fn add(&mut self, row: Row) -> Result<RowId> {
        let context = self.context();
        let mut row = row;
        row.check(&self.model.base.config, context)?;
        row.id = self.next;
        self.next += 1;
        let id = row.id;
        self.waiting.push_back(row);
        Ok(id)
    }

    /// Forgets a row, wherever it is.
    pub(crate) fn cancel(&mut self, id: RowId) {
        if let Some(at) = self.running.iter().position(|row| row.id == id) {
            let mut row = self.running.remove(at);
            self.release(&mut row);
        }
        self.waiting.retain(|row| row.id != id);
    }

    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        for mut row in std::mem::take(&mut self.running) {
            self.release(&mut row);
        }
        self.waiting.clear();
    }

    /// Computes one step and tells what it brought, in no order among rows.
    ///
    /// # Errors
    /// When the step as a whole failed; then no row will come to an end any more.
    pub(crate) fn step(&mut self, events: &mut Vec<(RowId, Event)>) -> Result<()> {
        self.admit();
        let planned = self.plan();
        let chosen = self.compute(&planned)?;
        for (planned, chosen) in planned.iter().zip(chosen) {
            self.note_computed(planned);
            if let Some(chosen) = chosen {
                let row = &mut self.running[planned.row];
                let outcome = chosen.and_then(|token| row.take(&self.model.chat, token));
                let id = row.id;
                match outcome {
                    Ok(Outcome { text, .. }) if !text.is_empty() => {
                        events.push((id, Event::Text(text)));
                    }
                    Ok(_) => {}
                    Err(error) => row.fault = Some(error),
                }
            }
        }
        let (ended, running) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(Row::is_ended);
        self.running = running;
        for mut row in ended {
            self.release(&mut row);
            let id = row.id;
            let event = match row.generation() {
                Ok(generation) => Event::Done(generation),
                Err(error) => Event::Failed(error),
            };
            events.push((id, event));
        }
        Ok(())
    }

    /// Lets rows in while there is room for their prompts, and one page more for each that runs.
    fn admit(&mut self) {
        while self.running.len() < self.settings.max_rows {
            let Some(mut row) = self.waiting.pop_front() else {
                return;
            };
            self.take_cached(&mut row);
            let needed = row.ids.len().div_ceil(PAGE) - row.pages.len();
            let spare = self.running.len();
            if !self.running.is_empty() && self.pool.available() < needed + spare {
                self.release(&mut row);
                self.waiting.push_front(row);
                return;
            }
            // One that was put back is older than some that run.
            let at = self.running.partition_point(|other| other.id < row.id);
            self.running.insert(at, row);
        }
    }

    /// Goes on with a row from pages that others have computed, as far as there are such. Its last token it computes itself:
    /// of that the logits are wanted.
    fn take_cached(&mut self, row: &mut Row) {
        if !self.settings.prefix_cache || !row.computed.is_multiple_of(PAGE) {
            return;
        }
        while row.computed + PAGE < row.ids.len() {
            let tokens = &row.ids[row.computed..row.computed + PAGE];
            let Some((place, page)) = self.prefixes.next(&mut self.pool, row.place, tokens) else {
                return;
            };
            row.place = place;
            row.pages.push(page);
            row.computed += PAGE;
            row.note_cached();
        }
    }

    /// What each row computes in the next step. A row whose next page another one is computing waits for it.
    fn plan(&mut self) -> Vec<Planned> {
        let mut planned = Vec::with_capacity(self.running.len());
        let mut budget = self.settings.prompt_tokens;
        let mut promised = HashSet::new();
        let mut at = 0;
        while at < self.running.len() {
            let mut row = std::mem::replace(&mut self.running[at], Row::hollow());
            let left = row.ids.len() - row.computed;
            let mut len = left;
            if left > 1 {
                // Past its prompt a row has pages of its own, which the tree does not know.
                let reads = row.computed < row.prompt;
                if reads {
                    self.take_cached(&mut row);
                }
                len = (row.ids.len() - row.computed).min(budget);
                if reads && self.settings.prefix_cache && row.waits(&promised) {
                    len = 0;
                }
            }
            let fits = self.make_room(&mut row, &mut len, at);
            if fits && len > 0 {
                if left > 1 {
                    budget -= len;
                    promised.extend(row.promises(len));
                }
                planned.push(Planned { row: at, len });
            }
            if fits {
                self.running[at] = row;
                at += 1;
            } else {
                // It was the youngest itself.
                self.running.remove(at);
                self.put_back(row);
            }
        }
        planned
    }

    /// Gives a row pages for `len` more tokens, if need be those of the youngest rows; false if it is the youngest itself and
    /// there are none.
    fn make_room(&mut self, row: &mut Row, len: &mut usize, at: usize) -> bool {
        let wanted = (row.computed + *len).div_ceil(PAGE);
        while row.pages.len() < wanted {
            if let Some(page) = self.pool.take() {
                row.pages.push(page);
                continue;
            }
            if self.pool.available() > 0 {
                self.prefixes.evict(&mut self.pool);
                continue;
            }
            if self.running.len() == at + 1 {
                return false;
            }
            if let Some(youngest) = self.running.pop() {
                self.put_back(youngest);
            }
        }
        true
    }

    fn put_back(&mut self, mut row: Row) {
        self.release(&mut row);
        row.again = true;
        #[cfg(test)]
        {
            self.seen.put_back += 1;
        }
        let at = self.waiting.partition_point(|other| other.id < row.id);
        self.waiting.insert(at, row);
    }

    fn release(&mut self, row: &mut Row) {
        for page in row.pages.drain(..) {
            self.pool.release(page);
        }
        row.computed = 0;
        row.place = row.root();
    }

    /// Computes what is planned; for each whose last token that was, the token chosen after it.
    fn compute(&mut self, planned: &[Planned]) -> Result<Vec<Option<Result<u32>>>> {
        if planned.is_empty() {
            return Ok(Vec::new());
        }
        let base = &self.model.base;
        let pages = self.pool.len();
        if self.cache.is_none() && self.settings.lay_out {
            base.lay_out(self.settings.cache_bytes)?;
        }
        let cache = self
            .cache
            .get_or_insert_with(|| KeyValues::new(base, pages));
        // Rows of one adapter side by side.
        let mut order: Vec<usize> = (0..planned.len()).collect();
        let rows = &self.running;
        let adapter = |at: &usize| {
            let overlay = rows[planned[*at].row].overlay.as_ref();
            overlay.map_or(0, |overlay| overlay.id)
        };
        order.sort_by_key(adapter);
        let pieces: Vec<Piece<'_>> = order
            .iter()
            .map(|&at| {
                let (row, len) = (&rows[planned[at].row], planned[at].len);
                let end = row.computed + len;
                Piece {
                    tokens: &row.ids[row.computed..end],
                    past: row.computed,
                    pages: &row.pages,
                    overlay: row.overlay.as_deref(),
                    wants: match end == row.ids.len() {
                        true => Wants::Last,
                        false => Wants::Nothing,
                    },
                }
            })
            .collect();
        let wants: Vec<bool> = pieces
            .iter()
            .map(|piece| piece.wants == Wants::Last)
            .collect();
        // On a thread of the pool, from which small pieces of work need no call across threads.
        let inference = &mut self.inference;
        let logits = rayon::scope(|_| inference.forward(base, cache, &pieces))?;
        let mut place = vec![None; self.running.len()];
        let wanting = order.iter().zip(wants).filter(|(_, wants)| *wants);
        for (index, (&at, _)) in wanting.enumerate() {
            place[planned[at].row] = Some(index);
        }
        // Rows of the model past the tokenizer are padding that was never trained.
        let vocabulary = base.config.vocab_size;
        let known = self.model.chat.vocabulary.size().min(vocabulary);
        let mut logits: Vec<Option<&mut [f32]>> = logits
            .chunks_exact_mut(vocabulary)
            .map(|logits| Some(&mut logits[..known]))
            .collect();
        let mut choices: Vec<(&mut Row, &mut [f32])> = Vec::with_capacity(logits.len());
        for (row, place) in self.running.iter_mut().zip(&place) {
            if let Some(logits) = place.and_then(|place| logits[place].take()) {
                #[cfg(test)]
                {
                    let bits: Vec<u32> = logits.iter().map(|logit| logit.to_bits()).collect();
                    let mut hasher = DefaultHasher::new();
                    bits.hash(&mut hasher);
                    self.seen
                        .bits
                        .entry(row.id)
                        .or_default()
                        .push(hasher.finish());
                }
                choices.push((row, logits));
            }
        }
        let chosen: Vec<Result<u32>> = choices
            .into_par_iter()
            .with_max_len(1)
            .map(|(row, logits)| row.choose(logits))
            .collect();
        let mut chosen = chosen.into_iter();
        // Both follow the order of the running rows.
        Ok(planned
            .iter()
            .map(|planned| place[planned.row].and_then(|_| chosen.next()))
            .collect())
    }

    /// Notes that a row has computed its part, and shares the pages of its prompt that are full now.
    fn note_computed(&mut self, planned: &Planned) {
        let row = &mut self.running[planned.row];
        let before = row.computed / PAGE;
        row.computed += planned.len;
        if !self.settings.prefix_cache {
            return;
        }
        for index in before..row.computed.min(row.prompt) / PAGE {
            let tokens = &row.ids[index * PAGE..(index + 1) * PAGE];
            let page = &mut row.pages[index];
            if let Some(place) = self
                .prefixes
                .insert(&mut self.pool, row.place, tokens, page)
            {
                row.place = place;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn pages_in_use(&self) -> usize {
        self.pool.in_use()
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }
}

/// Hashes of the pages of a prompt, each with all before it, by which rows see that another is computing what they need.
pub(super) fn page_hashes(adapter: u64, prompt: &[u32]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    adapter.hash(&mut hasher);
    prompt
        .chunks_exact(PAGE)
        .map(|page| {
            page.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
}
