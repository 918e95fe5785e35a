use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::base::BaseFolder;
use crate::checkpoint::{Checkpoints, State, Totals};
use crate::error::{Result, TuneError, named};
use crate::evaluation::Evaluation;
use crate::learner::Learner;
use crate::memory::Fit;
use crate::model::Qwen;
use crate::prepare::Rows;
use crate::session::{End, Plan, Session, StepRecord};
use crate::train_config::TrainConfig;
use crate::train_log::{Log, TrainEvent, TrainSummary, peak_rss_bytes};
use crate::trainer::Start;

/// A run that is ready to take its steps.
pub(crate) struct Training<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a BaseFolder,
    pub(crate) learner: &'a Learner,
    pub(crate) rows: &'a Rows,
    pub(crate) valid: Option<&'a Rows>,
    pub(crate) plan: Plan,
    pub(crate) fit: Fit,
    /// Tokens of the largest batch, which are evaluated at once, unless batches are cut.
    pub(crate) at_once: usize,
    pub(crate) out: &'a Path,
    pub(crate) log: Option<&'a Path>,
    pub(crate) cancel: Option<Arc<AtomicBool>>,
}

impl Training<'_> {
    /// All steps, with what lies between them, and the result at the end.
    pub(crate) fn run(
        &self,
        model: &Qwen,
        start: Start,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<TrainSummary> {
        let Start {
            mut state,
            parameters,
            optimizer,
            mut checkpoints,
        } = start;
        let mut session = Session::new(self.plan.clone(), model, &parameters, self.cancel.clone());
        if let Some(optimizer) = optimizer {
            session.optimizer = optimizer;
        }
        let mut log = self
            .log
            .map(|path| Log::open(path, state.step))
            .transpose()?;
        if self.is_stale(&state) {
            session.finish();
        }
        let end = session.run(&self.rows.samples, |session, record| {
            state.step = record.step;
            state.totals.add(&record, session.unpadded);
            if let Some(log) = &mut log {
                log.write(&record)?;
            }
            let step = record.step;
            if record.grad_norm == 0.0 {
                let rows = named(&session.lines);
                let reason = format!("step {step}: all gradients are zero{rows}");
                on_event(&TrainEvent::Warning { reason });
            }
            on_event(&TrainEvent::Step(record));
            if let Some(valid) = self.valid.filter(|_| self.is_time(session, step)) {
                let evaluation = self.evaluate(session, valid, &mut state)?;
                if let Some(log) = &mut log {
                    log.write(&evaluation)?;
                }
                if evaluation.best {
                    checkpoints.write_best(step, |draft| {
                        self.learner.write(draft, self.folder, &parameters)
                    })?;
                }
                on_event(&TrainEvent::Evaluated(evaluation));
                if self.is_stale(&state) {
                    session.finish();
                    if let Some(best) = state.evaluations.best() {
                        on_event(&TrainEvent::StoppedEarly {
                            step,
                            best_step: best.step,
                            best_loss: best.loss,
                        });
                    }
                }
            }
            let every = self.config.checkpoint_every;
            let is_last = step == self.plan.steps || self.is_stale(&state);
            if every > 0 && (step.is_multiple_of(every) || is_last) {
                self.save(&mut checkpoints, &state, session, on_event)?;
            }
            Ok(())
        })?;
        if end == End::Cancelled {
            let path = self.save(&mut checkpoints, &state, &session, on_event)?;
            return Err(TuneError::Cancelled {
                step: state.step,
                checkpoint: Some(path),
            });
        }
        match state.evaluations.best() {
            Some(best) if best.step != state.step => {
                checkpoints.restore_best(best.step, |best| self.learner.files(best))?;
            }
            _ => self.learner.write(self.out, self.folder, &parameters)?,
        }
        checkpoints.end()?;
        Ok(self.summary(&state, parameters.elements()))
    }

    /// Whether the validation set is due after this step.
    fn is_time(&self, session: &Session<'_>, step: u64) -> bool {
        let due = match self.config.evaluate_every {
            0 => session.ends_epoch,
            every => step.is_multiple_of(every),
        };
        due || step == self.plan.steps
    }

    fn is_stale(&self, state: &State) -> bool {
        let (patience, min_delta) = (self.config.patience, self.config.min_delta);
        state.evaluations.is_stale(patience, min_delta)
    }

    fn evaluate(
        &self,
        session: &Session<'_>,
        valid: &Rows,
        state: &mut State,
    ) -> Result<Evaluation> {
        let begun = Instant::now();
        let at_once = self.plan.micro_tokens.unwrap_or(self.at_once);
        let loss = session.evaluate(&valid.samples, at_once)?;
        if !loss.is_finite() {
            return Err(TuneError::NotFinite {
                quantity: "validation loss",
                value: loss,
                step: state.step,
                lines: Vec::new(),
            });
        }
        Ok(Evaluation {
            step: state.step,
            loss,
            perplexity: loss.exp(),
            supervised_tokens: valid.supervised(),
            best: state.evaluations.add(state.step, loss),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    fn save(
        &self,
        checkpoints: &mut Checkpoints,
        state: &State,
        session: &Session<'_>,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<std::path::PathBuf> {
        let parameters = session.parameters;
        let path = checkpoints.write(state, parameters, &session.optimizer, |draft| {
            self.learner.keep(draft, self.folder, parameters)
        })?;
        on_event(&TrainEvent::Checkpoint {
            step: state.step,
            path: path.clone(),
        });
        Ok(path)
    }

    fn summary(&self, state: &State, trainable_parameters: u64) -> TrainSummary {
        let totals = state.totals;
        let rate = |tokens: u64| {
            if totals.seconds > 0.0 {
                tokens as f64 / totals.seconds
            } else {
                0.0
            }
        };
        let best = state.evaluations.best();
        TrainSummary {
            steps: state.step,
            rows: self.rows.samples.len(),
            skipped: self.rows.skipped.len(),
            truncated: self.rows.truncated,
            valid_rows: self.valid.map(|valid| valid.samples.len()),
            trainable_parameters,
            tokens: totals.tokens,
            supervised_tokens: totals.supervised_tokens,
            seconds: totals.seconds,
            tokens_per_second: rate(totals.tokens),
            unpadded_tokens_per_second: rate(totals.unpadded_tokens),
            peak_rss_bytes: peak_rss_bytes(),
            first_loss: totals.first_loss,
            last_loss: totals.last_loss,
            best_step: best.map(|best| best.step),
            best_loss: best.map(|best| best.loss),
            stopped_early: state.step < self.plan.steps,
            checkpointing: self.fit.checkpointing,
            micro_batch_tokens: self.plan.micro_tokens,
        }
    }
}

impl Totals {
    fn add(&mut self, record: &StepRecord, unpadded: u64) {
        if self.tokens == 0 {
            self.first_loss = record.loss;
        }
        self.tokens += record.tokens;
        self.unpadded_tokens += unpadded;
        self.supervised_tokens += record.supervised_tokens;
        self.seconds += record.seconds;
        self.last_loss = record.loss;
    }
}
