use std::collections::{HashSet, VecDeque};
#[cfg(test)]
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::prelude::*;

use super::answering::Piece;
use super::pages::PagePool;
use super::prefix::PrefixCache;
use super::row::{Row, RowId};
use super::settings::EngineSettings;
use crate::error::{Result, TuneError};
use crate::infer::{self, Inference, KeyValues, Wants};
use crate::memory;
use crate::ops::PAGE;
use crate::tuned::Loaded;

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
    /// When a setting is out of its range, or the cache is less than one page or more than the memory that is free.
    pub(crate) fn new(model: Arc<Loaded>, settings: EngineSettings) -> Result<Self> {
        settings.check()?;
        let fault = |reason| TuneError::Setting {
            field: "cache_bytes",
            reason,
        };
        let page = KeyValues::page_bytes(&model.base);
        // Twice what all rows can fill at once, the second half for what the prefix cache keeps.
        let row = model.base.config.max_position_embeddings.div_ceil(PAGE);
        let useful = row.saturating_mul(settings.max_rows).saturating_mul(2);
        // The ids of pages are 32 bits wide.
        let useful = useful.min(1 << 24);
        let pages = (settings.cache_bytes / page).min(useful as u64);
        if pages == 0 {
            return Err(fault(format!(
                "{} is not enough for {PAGE} tokens of this model, which take {page}",
                settings.cache_bytes
            )));
        }
        let bytes = pages * page;
        if let Some(free) = memory::available().filter(|&free| free < bytes) {
            return Err(fault(format!(
                "{bytes} bytes of keys and values are more than the {free} bytes of memory that are free"
            )));
        }
        let pages = pages as usize;
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

    /// Checks a row before it is added.
    ///
    /// # Errors
    /// When its prompt has no room, is empty or has a token the model does not know.
    pub(crate) fn check(&self, row: &mut Row) -> Result<()> {
        row.check(&self.model.base.config, self.context())
    }

    /// Puts a row that was checked into the queue.
    pub(crate) fn add(&mut self, mut row: Row) -> RowId {
        row.id = self.next;
        self.next += 1;
        if self.settings.prefix_cache {
            row.hash_pages();
        }
        let id = row.id;
        self.waiting.push_back(row);
        id
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
    pub(crate) fn step(&mut self, pieces: &mut Vec<(RowId, Piece)>) -> Result<()> {
        self.admit();
        let planned = self.plan();
        let chosen = self.compute(&planned)?;
        for (planned, chosen) in planned.iter().zip(chosen) {
            self.note_computed(planned);
            let Some(chosen) = chosen else { continue };
            let (row, chat) = (&mut self.running[planned.row], &self.model.chat);
            match chosen.and_then(|token| guarded(|| row.take(chat, token))) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => pieces.push((row.id, Piece::Text(text))),
                Err(error) => row.fault = Some(error),
            }
        }
        let (ended, running) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(Row::is_ended);
        self.running = running;
        for mut row in ended {
            self.release(&mut row);
            let id = row.id;
            let last = match row.generation() {
                Ok(generation) => Piece::Done(generation),
                Err(error) => Piece::Failed(error),
            };
            pieces.push((id, last));
        }
        Ok(())
    }

    /// Lets rows in while there is room for their prompts beside what those that run have yet to take of theirs, and one page
    /// more for each that runs.
    fn admit(&mut self) {
        while self.running.len() < self.settings.max_rows {
            let Some(mut row) = self.waiting.pop_front() else {
                return;
            };
            if self.settings.prefix_cache {
                take_cached(&mut self.pool, &mut self.prefixes, &mut row);
            }
            let owed: usize = self.running.iter().map(Row::owed_pages).sum();
            let needed = owed + row.owed_pages() + self.running.len();
            if !self.running.is_empty() && self.pool.available() < needed {
                self.release(&mut row);
                self.waiting.push_front(row);
                return;
            }
            // One that was put back is older than some that run.
            let at = self.running.partition_point(|other| other.id < row.id);
            self.running.insert(at, row);
        }
    }

    /// What each row computes in the next step. A row whose next page another one is computing waits for it.
    fn plan(&mut self) -> Vec<Planned> {
        let mut planned = Vec::with_capacity(self.running.len());
        let mut budget = self.settings.prompt_tokens;
        let mut promised = HashSet::new();
        let mut at = 0;
        while at < self.running.len() {
            let row = &mut self.running[at];
            let reads = row.ids.len() - row.computed > 1;
            let mut len = 1;
            if reads {
                if self.settings.prefix_cache {
                    take_cached(&mut self.pool, &mut self.prefixes, row);
                }
                len = match row.waits(&promised) {
                    true => 0,
                    false => (row.ids.len() - row.computed).min(budget),
                };
            }
            if !self.make_room(at, len) {
                // It was the youngest itself.
                let row = self.running.remove(at);
                self.put_back(row);
                continue;
            }
            if len > 0 {
                if reads {
                    budget -= len;
                    promised.extend(self.running[at].promises(len));
                }
                planned.push(Planned { row: at, len });
            }
            at += 1;
        }
        planned
    }

    /// Gives a row pages for `len` more tokens, if need be those of the youngest rows; false if it is the youngest itself and
    /// there are none.
    fn make_room(&mut self, at: usize, len: usize) -> bool {
        loop {
            let row = &mut self.running[at];
            let wanted = (row.computed + len).div_ceil(PAGE);
            let missing = wanted.saturating_sub(row.pages.len());
            if missing == 0 {
                return true;
            }
            if let Some(page) = self.pool.take() {
                row.pages.push(page);
            } else if self.pool.available() > 0 {
                self.prefixes.evict(&mut self.pool, missing);
            } else if self.running.len() == at + 1 {
                return false;
            } else if let Some(youngest) = self.running.pop() {
                self.put_back(youngest);
            }
        }
    }

    fn put_back(&mut self, mut row: Row) {
        self.release(&mut row);
        #[cfg(test)]
        {
            self.seen.put_back += 1;
        }
        let at = self.waiting.partition_point(|other| other.id < row.id);
        self.waiting.insert(at, row);
    }

    fn release(&mut self, row: &mut Row) {
        for page in row.restart() {
            self.pool.release(page);
        }
    }

    /// Computes what is planned; for each whose last token that was, the token chosen after it.
    fn compute(&mut self, planned: &[Planned]) -> Result<Vec<Option<Result<u32>>>> {
        if planned.is_empty() {
            return Ok(Vec::new());
        }
        let base = &self.model.base;
        let pages = self.pool.len();
        if self.cache.is_none() && self.settings.lay_out {
            base.lay_out(pages as u64 * KeyValues::page_bytes(base))?;
        }
        let cache = self
            .cache
            .get_or_insert_with(|| KeyValues::new(base, pages));
        // Rows of one adapter side by side.
        let mut order: Vec<usize> = (0..planned.len()).collect();
        let rows = &self.running;
        order.sort_by_key(|&at| rows[planned[at].row].adapter());
        let pieces: Vec<infer::Piece<'_>> = order
            .iter()
            .map(|&at| {
                let (row, len) = (&rows[planned[at].row], planned[at].len);
                let end = row.computed + len;
                infer::Piece {
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
            .map(|(row, logits)| guarded(|| row.choose(logits)))
            .collect();
        let mut chosen = chosen.into_iter();
        // Both follow the order of the running rows.
        Ok(planned
            .iter()
            .map(|planned| place[planned.row].and_then(|_| chosen.next()))
            .collect())
    }

    /// Notes that a row has computed its part, and shares its pages that are full now, those of its answer too: the next turn
    /// of its chat begins with them, and so does the row itself when it was put back.
    fn note_computed(&mut self, planned: &Planned) {
        let row = &mut self.running[planned.row];
        row.computed += planned.len;
        if !self.settings.prefix_cache {
            return;
        }
        for index in row.shared..row.computed / PAGE {
            let tokens = &row.ids[index * PAGE..(index + 1) * PAGE];
            let page = &mut row.pages[index];
            if let Some(place) = self
                .prefixes
                .insert(&mut self.pool, row.place, tokens, page)
            {
                row.note_shared(place);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn pages_in_use(&self) -> usize {
        self.pool.in_use()
    }

    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.pool.len()
    }

    #[cfg(test)]
    pub(super) fn model(&self) -> &Loaded {
        &self.model
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }
}

/// Goes on with a row from pages that others have computed, as far as there are such. Its last token it computes itself:
/// of that the logits are wanted.
fn take_cached(pool: &mut PagePool, prefixes: &mut PrefixCache, row: &mut Row) {
    // Past a page of its own that is not full there is nothing to be had.
    while row.computed == row.shared * PAGE && row.computed + PAGE < row.ids.len() {
        let tokens = &row.ids[row.computed..row.computed + PAGE];
        let Some((place, page)) = prefixes.next(pool, row.place, tokens) else {
            return;
        };
        row.take_page(place, page);
    }
}

/// What a row does of itself, which a schema has a part in: a panic there is the fault of this row alone.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        let said = said.unwrap_or("no reason given");
        Err(TuneError::Generation {
            reason: format!("a fault of this program: {said}"),
        })
    })
}
