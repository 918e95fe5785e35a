use std::collections::HashMap;

use because_contrast::{Contrast, Explainer, Verdict};
use because_core::{Item, ItemId, Node, Profiles, Role, Side};
use because_graph::{BipartiteGraph, ItemScorer, NodeIndex, edge_rank};
use because_llm::{ChatRequest, ModelId, Offline, Paid, RequestKey, Store, TokenCounter};
use because_propagate::{InitialCalls, MessagePassing};

use super::amounts::Interval;
use super::row::{Answer, Counted, Row, Sum, text_tokens};
use super::texts::{Question, Texts, both};
use crate::Result;
use crate::pipeline::Pairs;
use crate::pipeline::contrast::chosen_pairs;

/// Goes through the calls of a run in its order, without making them.
pub(super) struct Survey<'a> {
    texts: Texts<'a>,
    counter: &'a TokenCounter,
    pub(super) rows: Vec<Row>,
    /// The questions that a run will ask to the letter, each once: in which row, and how long.
    met: HashMap<RequestKey, Met>,
    sample: usize,
    seed: u64,
    /// Lengths of texts that are known, in tokens.
    profile_lengths: Lengths,
    shared_lengths: Lengths,
    feedback: f64,
    words: (usize, usize),
}

/// Where a question was met.
#[derive(Debug, Clone, Copy)]
struct Met {
    row: usize,
    tokens: u64,
}

/// What a survey saw.
pub(super) struct Sight {
    pub(super) rows: Vec<Row>,
    pub(super) profile_stand_in: f64,
    pub(super) profile: Interval,
    pub(super) shared_stand_in: f64,
    pub(super) shared: Interval,
    pub(super) feedback: f64,
    /// What was paid to each of the models asked about.
    pub(super) paid: Vec<Paid>,
}

#[derive(Debug, Default)]
struct Lengths {
    texts: u64,
    tokens: u64,
}

impl Lengths {
    /// Enough to know a mean by; counting more would only take time.
    const ENOUGH: u64 = 500;

    fn note(&mut self, counter: &TokenCounter, text: &str) {
        if self.texts < Self::ENOUGH {
            self.texts += 1;
            self.tokens += counter.text(text);
        }
    }

    fn of(&self, words: usize) -> Interval {
        match self.texts {
            0..20 => text_tokens(words),
            texts => Interval::around(self.tokens as f64 / texts as f64, 0.1),
        }
    }
}

impl<'a> Survey<'a> {
    pub(super) fn new(
        sources: (
            &'a BipartiteGraph,
            &'a InitialCalls<'a>,
            &'a MessagePassing<'a>,
        ),
        answers: (&'a ModelId, Option<&'a Store>),
        stand_ins: (&'a str, &'a str),
        (sample, seed): (usize, u64),
        counter: &'a TokenCounter,
    ) -> Self {
        Self {
            texts: Texts::new(sources, answers, stand_ins),
            counter,
            rows: Vec::new(),
            met: HashMap::new(),
            sample: sample.max(1),
            seed,
            profile_lengths: Lengths::default(),
            shared_lengths: Lengths::default(),
            feedback: 0.0,
            words: (0, 0),
        }
    }

    /// Layer 0: items, then users.
    pub(super) fn initial(&mut self, file: Option<Profiles>, words: (usize, usize)) -> Result<()> {
        self.words = words;
        let done = file.is_some();
        self.texts.add_initial(file);
        for (side, name) in [(Side::Item, "items"), (Side::User, "users")] {
            let mut row = Row::new(format!("profile layer 0 {name}"), Answer::Profile, words.0);
            row.done = done;
            let asked: Vec<NodeIndex> = self.asked(0, self.texts.graph.nodes(side)).collect();
            for index in self.drawn(&mut row, asked) {
                let question = self.texts.initial_question(index)?;
                let answered = self.look(&mut row, self.rows.len(), &question)?;
                if answered.is_some()
                    && let Some(text) = self.texts.text(0, index)?
                {
                    self.profile_lengths.note(self.counter, &text);
                }
            }
            self.rows.push(row);
        }
        Ok(())
    }

    /// The layer above the last one: two questions a node.
    pub(super) fn messages(&mut self, file: Option<Profiles>, words: (usize, usize)) -> Result<()> {
        let layer = self.texts.layers.len();
        let done = file.is_some();
        self.texts.add_messages(file);
        let name = |what: &str| format!("profile layer {layer} {what}");
        let mut first = Row::new(name("aggregate"), Answer::Shared, words.1);
        let mut second = Row::new(name("update"), Answer::Profile, words.0);
        (first.done, second.done) = (done, done);
        let asked: Vec<NodeIndex> = self.asked(layer, both(self.texts.graph)).collect();
        second.asked = asked.len();
        for index in self.drawn(&mut first, asked) {
            second.looked += 1;
            let question = self.texts.aggregate_question(layer, index)?;
            let shared = self
                .look(&mut first, self.rows.len(), &question)?
                .and_then(|answer| because_propagate::parse_shared(&answer).ok());
            if let Some(shared) = &shared {
                self.shared_lengths.note(self.counter, shared);
            }
            let question = self.texts.update_with(layer, index, shared.as_deref())?;
            self.look(&mut second, self.rows.len() + 1, &question)?;
        }
        self.rows.push(first);
        self.rows.push(second);
        Ok(())
    }

    /// Takes profiles as they are.
    pub(super) fn profiles(&mut self, profiles: Profiles) {
        self.texts.add_file(profiles);
    }

    /// The questions about pairs, with the last layer's profiles.
    pub(super) fn explanations(
        &mut self,
        (contrast, wanted): (Contrast, &[Pairs]),
        (model, counter): (&'a ModelId, &'a TokenCounter),
        scorer: &dyn ItemScorer,
        items: &[Item],
        done: bool,
    ) -> Result<()> {
        const WORDS: usize = 60;
        let graph = self.texts.graph;
        let layer = self.texts.layers.len() - 1;
        let explainer = Explainer::new(Offline::new()).contrast(contrast);
        // While profiles are not written, only the number of candidates is known of a prompt; ranking them would tell no
        // more than drawing them.
        let sampler = match self.profiles_are_written() {
            true => contrast.sampler(scorer),
            false => Contrast {
                hard: 0,
                random: contrast.hard + contrast.random,
                ..contrast
            }
            .sampler(scorer),
        };
        let titles: HashMap<&str, &str> = items
            .iter()
            .filter_map(|item| Some((item.item.as_str(), item.title.as_deref()?)))
            .collect();
        let bare = ChatRequest::default();
        let fed_back = explainer.next_question(bare.clone(), "", &[0]);
        self.feedback = (counter.request(&fed_back) - counter.request(&bare)) as f64;
        self.texts.model = model;
        self.counter = counter;
        for pairs in wanted {
            let mut row = Row::new(format!("contrast {}", pairs.split), Answer::Verdict, WORDS);
            row.done = done;
            let known = |index| self.texts.is_known(layer, index);
            let chosen = chosen_pairs(graph, known, *pairs, self.seed);
            row.asked = chosen.len();
            let share = self.sample.min(MOST_PAIRS) as f64 / chosen.len().max(1) as f64;
            for (user, item) in chosen {
                let drawn = edge_rank(self.seed, PAIRS, Side::User, user.as_str(), item.as_str());
                if share < 1.0 && drawn as f64 >= share * 2f64.powi(64) {
                    continue;
                }
                row.looked += 1;
                let candidates = explainer.candidates(graph, &sampler, &user, &item);
                let mut stand_ins = 0;
                let mut texts = HashMap::new();
                let nodes = candidates
                    .iter()
                    .map(|candidate| Node::Item(candidate.item.clone()))
                    .chain([Node::User(user.clone())]);
                for node in nodes {
                    if let Some(index) = graph.index(&node)
                        && let Some(text) = self.texts.stood_for(layer, index, &mut stand_ins)?
                    {
                        texts.insert(node, text);
                    }
                }
                let title = |item: &ItemId| titles.get(item.as_str()).copied();
                let profile = |node: &Node| texts.get(node).map(|text| &**text);
                let Some(request) = explainer.question(&user, &candidates, title, profile) else {
                    continue;
                };
                let positive = candidates
                    .iter()
                    .position(|candidate| candidate.role == Role::Positive);
                let mut question = Question {
                    request,
                    profiles: stand_ins,
                    shared: 0,
                };
                let mut wrong = Vec::new();
                let most = contrast.max_attempts.max(1);
                while wrong.len() < most {
                    let (answer, counted) = self.count(self.rows.len(), &question)?;
                    let Some(answer) = answer else {
                        let left = most - wrong.len();
                        if row.open.len() < left {
                            row.open.resize(left, Sum::default());
                        }
                        row.open[left - 1].add(counted);
                        break;
                    };
                    row.whole.add(counted);
                    row.picked += 1;
                    let Ok(verdict) = Verdict::parse(&answer, candidates.len()) else {
                        break;
                    };
                    if Some(verdict.pick) == positive {
                        row.found += 1;
                        break;
                    }
                    wrong.push(verdict.pick);
                    question.request = explainer.next_question(question.request, &answer, &wrong);
                }
            }
            self.rows.push(row);
        }
        Ok(())
    }

    /// Adds what was paid for the questions met, and to these models, as the store has it.
    pub(super) fn finish(mut self, models: &[ModelId]) -> Result<Sight> {
        let mut paid = vec![Paid::default(); models.len()];
        if let Some(store) = self.texts.store {
            let met: HashMap<&[u8], Met> = self
                .met
                .iter()
                .map(|(key, met)| (&key.as_bytes()[..], *met))
                .collect();
            let rows = &mut self.rows;
            store.each_paid(|call| {
                for (model, paid) in models.iter().zip(&mut paid) {
                    if (call.model, call.endpoint) == (&*model.model, &*model.endpoint) {
                        *paid += call.paid;
                    }
                }
                if let Some(met) = met.get(call.key) {
                    rows[met.row].paid += call.paid;
                    rows[met.row].estimated += met.tokens * call.paid.answered;
                }
            })?;
        }
        let counted = |text: &str| self.counter.text(text) as f64;
        Ok(Sight {
            paid,
            profile_stand_in: counted(self.texts.stand_in),
            profile: self.profile_lengths.of(self.words.0),
            shared_stand_in: counted(self.texts.shared_stand_in),
            shared: self.shared_lengths.of(self.words.1),
            feedback: self.feedback,
            rows: self.rows,
        })
    }

    fn profiles_are_written(&self) -> bool {
        let last = self.texts.layers.last();
        last.is_some_and(|layer| layer.file.is_some())
            || self.texts.store.is_some() && self.rows.iter().all(Row::is_answered)
    }

    fn asked<'s>(
        &'s self,
        layer: usize,
        nodes: impl Iterator<Item = NodeIndex> + 's,
    ) -> impl Iterator<Item = NodeIndex> + 's {
        let asked = &self.texts.layers[layer].asked;
        nodes.filter(|index| asked[index.index()])
    }

    /// All of these, or a seeded sample where there are too many.
    fn drawn(&self, row: &mut Row, asked: Vec<NodeIndex>) -> Vec<NodeIndex> {
        row.asked = asked.len();
        let mut drawn = asked;
        if drawn.len() > self.sample {
            let graph = self.texts.graph;
            let lot = |index: &NodeIndex| {
                edge_rank(self.seed, PAIRS, graph.side(*index), graph.id(*index), "")
            };
            drawn.select_nth_unstable_by_key(self.sample, lot);
            drawn.truncate(self.sample);
            drawn.sort_unstable();
        }
        row.looked = drawn.len();
        drawn
    }

    /// Adds a question that is asked once; gives back its answer, where there is one. One that a run has met before costs
    /// nothing.
    fn look(&mut self, row: &mut Row, place: usize, question: &Question) -> Result<Option<String>> {
        let all = row.looked == row.asked;
        if all && question.is_exact() {
            let key = question.request.key(self.texts.model);
            if self.met.contains_key(&key) {
                row.asked -= 1;
                row.looked -= 1;
                return self.texts.answer(question);
            }
        }
        let (answer, counted) = self.count(place, question)?;
        row.whole.add(counted);
        if answer.is_none() {
            row.left.add(counted);
        }
        Ok(answer)
    }

    /// Counts a question and remembers it, if it is what a run will ask; with its answer, if it has one.
    fn count(&mut self, row: usize, question: &Question) -> Result<(Option<String>, Counted)> {
        let tokens = self.counter.request(&question.request);
        if question.is_exact() {
            let key = question.request.key(self.texts.model);
            self.met.insert(key, Met { row, tokens });
        }
        Ok((self.texts.answer(question)?, question.counted(tokens)))
    }
}

/// Pairs looked at in a split: finding the candidates of one takes as long as a thousand other questions.
const MOST_PAIRS: usize = 1000;
/// Tells the lots of a sample from those of a run's own draws.
const PAIRS: usize = usize::MAX;

/// A text of so many words as a profile might have, for prompts whose real text is not written yet.
pub(super) fn stand_in(words: usize) -> String {
    const TEXT: &str = "This user enjoys quiet strategy games with hidden information and long stories about travel and \
        politics, prefers careful pacing over spectacle, values detailed worlds and honest characters, often chooses \
        older titles that reward patience, dislikes shallow humour and rushed endings, and returns to makers whose \
        earlier work they praised in their reviews.";
    let words: Vec<&str> = TEXT.split_whitespace().cycle().take(words.max(1)).collect();
    words.join(" ")
}
