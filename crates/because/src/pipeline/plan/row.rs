use because_llm::Paid;

use super::amounts::{Amounts, Interval};
use super::models::Speaker;

/// What an answer is, which says how long it may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Profile,
    Shared,
    Verdict,
}

/// Words of English as tokens.
const TOKENS_A_WORD: f64 = 1.35;
/// A profile brings one or two sentences of reasoning along.
const REASONING_SENTENCES: Interval = Interval {
    low: 20.0,
    expected: 40.0,
    high: 60.0,
};
/// Braces and names of fields.
const FRAME: f64 = 8.0;
/// What a reasoning model thinks before it explains, in tokens: DeepSeek-R1 and its like on tasks as short as ours.
const THOUGHT: Interval = Interval {
    low: 300.0,
    expected: 1000.0,
    high: 4000.0,
};
/// A model stays below the length it is asked for, and seldom overshoots by more than half.
const FILLED: Interval = Interval {
    low: 0.5,
    expected: 0.85,
    high: 1.5,
};

/// The text in an answer that later prompts hold, in tokens.
pub(super) fn text_tokens(words: usize) -> Interval {
    FILLED.each(|share| share * words as f64 * TOKENS_A_WORD)
}

/// A whole answer, in tokens.
pub(super) fn answer_tokens(answer: Answer, words: usize, thinks: bool) -> Interval {
    let text = text_tokens(words).each(|tokens| tokens + FRAME);
    let text = match answer {
        Answer::Profile => text.plus(REASONING_SENTENCES),
        Answer::Shared | Answer::Verdict => text,
    };
    if thinks { text.plus(THOUGHT) } else { text }
}

/// Prompts that are added up: how many, their tokens with stand-ins in them, and how many stand-ins those are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) calls: f64,
    pub(super) tokens: f64,
    squares: f64,
    pub(super) profiles: f64,
    pub(super) shared: f64,
}

/// A prompt that was counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) tokens: u64,
    /// Stand-ins for profiles in it.
    pub(super) profiles: usize,
    /// Stand-ins for what neighbours share.
    pub(super) shared: usize,
}

impl Sum {
    pub(super) fn add(&mut self, prompt: Counted) {
        let tokens = prompt.tokens as f64;
        self.calls += 1.0;
        self.tokens += tokens;
        self.squares += tokens * tokens;
        self.profiles += prompt.profiles as f64;
        self.shared += prompt.shared as f64;
    }

    /// How far the mean of a sample may be from that of all, as a share of it (95 %).
    fn sampling_error(&self, of: f64) -> f64 {
        if self.calls < 2.0 || self.calls >= of {
            return 0.0;
        }
        let mean = self.tokens / self.calls;
        let variance = (self.squares / self.calls - mean * mean).max(0.0);
        1.96 * (variance / self.calls * (1.0 - self.calls / of)).sqrt() / mean
    }
}

/// The calls of one kind, as they were looked at: all of them, or a sample.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) stage: String,
    pub(super) answer: Answer,
    pub(super) words: usize,
    /// How many nodes or pairs have such a call.
    pub(super) asked: usize,
    /// How many of those were looked at.
    pub(super) looked: usize,
    /// Calls whose number is known, all of them and those without an answer.
    pub(super) whole: Sum,
    pub(super) left: Sum,
    /// Pairs whose next question has no answer yet, by how many questions they may still take.
    pub(super) open: Vec<Sum>,
    /// What was paid for these calls, where their prompts are known.
    pub(super) paid: Paid,
    /// The prompts that were answered, as they were estimated.
    pub(super) estimated: u64,
    /// Found, and asked, in contrastive questions answered so far.
    pub(super) found: u64,
    pub(super) picked: u64,
    /// Whether the stage is done and nothing of it will be asked again.
    pub(super) done: bool,
}

impl Row {
    pub(super) fn new(stage: String, answer: Answer, words: usize) -> Self {
        Self {
            stage,
            answer,
            words,
            asked: 0,
            looked: 0,
            whole: Sum::default(),
            left: Sum::default(),
            open: Vec::new(),
            paid: Paid::default(),
            estimated: 0,
            found: 0,
            picked: 0,
            done: false,
        }
    }

    /// Whether nothing is left to ask, as far as it was looked.
    pub(super) fn is_answered(&self) -> bool {
        self.done || self.left.calls == 0.0
    }

    /// How likely a contrastive question is answered right, from those that were and a guess that weighs as much as ten.
    fn luck(&self) -> f64 {
        (self.found as f64 + 7.0) / (self.picked as f64 + 10.0)
    }

    pub(super) fn amounts(&self, of: &Sums<'_>) -> (Amounts, Amounts) {
        let whole = self.of(&self.whole, of);
        let left = match self.done {
            true => Amounts::nothing(),
            false => self.of(&self.left, of),
        };
        (whole, left)
    }

    fn of(&self, single: &Sum, of: &Sums<'_>) -> Amounts {
        let answer = self.answer_length(of);
        let mut calls = Interval::exactly(single.calls);
        let mut prompts = of.prompt_tokens(single);
        for (at, chain) in self.open.iter().enumerate() {
            let (more, tokens) = self.chain(at + 1, chain, answer, of);
            calls = calls.plus(more);
            prompts = prompts.plus(tokens);
        }
        if self.looked > 0 && self.looked < self.asked {
            let scale = self.asked as f64 / self.looked as f64;
            let share = single.calls / self.looked as f64;
            // The share of calls that are left is itself estimated from the sample.
            let doubt = 1.96 * (share * (1.0 - share).max(0.0) / self.looked as f64).sqrt();
            calls = calls.each(|calls| calls * scale);
            calls.low = (calls.low - doubt * self.asked as f64).max(0.0);
            calls.high =
                (calls.high + doubt * self.asked as f64).min(calls.high.max(self.asked as f64));
            let sums = self.open.iter().chain([single]);
            let error = sums
                .map(|sum| sum.sampling_error(self.asked as f64))
                .fold(0.0, f64::max)
                + if share > 0.0 { doubt / share } else { 0.0 };
            prompts = prompts.each(|tokens| tokens * scale);
            prompts = Interval::new(
                prompts.low * (1.0 - error).max(0.0),
                prompts.expected,
                prompts.high * (1.0 + error),
            );
        }
        of.speaker.amounts(calls, prompts, calls.times(answer))
    }

    /// Questions about pairs of which each may take `most`: asked again until the pick is right.
    fn chain(
        &self,
        most: usize,
        first: &Sum,
        answer: Interval,
        of: &Sums<'_>,
    ) -> (Interval, Interval) {
        let wrong = 1.0 - self.luck();
        let grows =
            answer.each(|tokens| tokens.min(text_tokens(self.words).high + FRAME) + of.feedback);
        let prompt = of.prompt_tokens(first);
        let (mut calls, mut tokens) = (Interval::default(), Interval::default());
        for turn in 0..most {
            let asked = Interval::new(
                if turn == 0 { 1.0 } else { 0.0 },
                wrong.powi(turn as i32),
                1.0,
            );
            let grown = grows.each(|tokens| tokens * turn as f64 * first.calls * of.speaker.ratio);
            calls = calls.plus(asked.each(|share| share * first.calls));
            tokens = tokens.plus(prompt.plus(grown).times(asked));
        }
        (calls, tokens)
    }

    /// An answer's tokens: what was seen in this row, or in others of its kind, else a guess.
    fn answer_length(&self, of: &Sums<'_>) -> Interval {
        if let Some(mean) = mean_answer(&self.paid) {
            return Interval::around(mean, 0.1);
        }
        let alike = of
            .rows
            .iter()
            .filter(|row| (row.answer, row.words) == (self.answer, self.words));
        let mut paid = Paid::default();
        for row in alike {
            paid += row.paid;
        }
        match mean_answer(&paid) {
            Some(mean) => Interval::around(mean, 0.25),
            None => answer_tokens(self.answer, self.words, of.speaker.thinks),
        }
    }
}

/// The mean length of answers, where there are enough of them to tell.
fn mean_answer(paid: &Paid) -> Option<f64> {
    (paid.answered >= 5)
        .then(|| paid.answered_usage.completion_tokens as f64 / paid.answered as f64)
}

/// What all rows of a model are turned into amounts with.
pub(super) struct Sums<'a> {
    pub(super) speaker: &'a Speaker,
    /// All rows of that model.
    pub(super) rows: &'a [Row],
    /// Tokens of the stand-ins in counted prompts, and of the texts they stand for.
    pub(super) profile_stand_in: f64,
    pub(super) profile: Interval,
    pub(super) shared_stand_in: f64,
    pub(super) shared: Interval,
    /// Tokens of the turn that says a pick was wrong.
    pub(super) feedback: f64,
}

impl Sums<'_> {
    fn prompt_tokens(&self, sum: &Sum) -> Interval {
        let texts = self
            .profile
            .each(|tokens| (tokens - self.profile_stand_in) * sum.profiles)
            .plus(
                self.shared
                    .each(|tokens| (tokens - self.shared_stand_in) * sum.shared),
            );
        let counted = texts.each(|tokens| tokens + sum.tokens);
        let error = self.speaker.count_error;
        Interval::new(
            counted.low * (1.0 - error),
            counted.expected,
            counted.high * (1.0 + error),
        )
        .each(|tokens| tokens.max(0.0) * self.speaker.ratio)
    }
}
