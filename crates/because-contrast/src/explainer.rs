use std::collections::HashMap;

use because_core::{Candidate, Explanation, Item, ItemId, Node, Profiles, Role, UserId};
use because_graph::{BipartiteGraph, ItemScorer};
use because_llm::{ChatError, ChatModel, ChatRequest, Halted, Stop, drive};
use serde::{Deserialize, Serialize};

use crate::negatives::draw;
use crate::{ContrastivePrompt, Error, HardAndRandom, NegativeSampler, Result, Shown, Verdict};

/// The settings of the contrast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contrast {
    /// Hard negatives a pair: the paper's k = 2; more gave it diminishing gains and more tries.
    pub hard: usize,
    /// Random negatives a pair: the paper's m = 5.
    pub random: usize,
    /// How many answers are asked for before a pair is given up. The paper does not say.
    pub max_attempts: usize,
    /// The seed of the negatives and of the order in which candidates are shown.
    pub seed: u64,
}

impl Default for Contrast {
    fn default() -> Self {
        Self {
            hard: 2,
            random: 5,
            max_attempts: 3,
            seed: 0,
        }
    }
}

impl Contrast {
    /// The negatives that these settings ask for, the hard ones by this scorer.
    #[must_use]
    pub fn sampler<S: ItemScorer>(&self, scorer: S) -> HardAndRandom<S> {
        HardAndRandom::new(scorer)
            .hard(self.hard)
            .random(self.random)
            .seed(self.seed)
    }
}

/// A pair that has no explanation, and why.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Who.
    pub user: UserId,
    /// What.
    pub item: ItemId,
    /// Why: no item is left to compare with, or what became of the model's answer.
    pub reason: String,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Explained {
    /// One for each pair, accepted or not, by user and item. A pair without any readable answer has an empty explanation.
    pub explanations: Vec<Explanation>,
    /// Which pairs those are, by user and item.
    pub failed: Vec<Failed>,
}

/// Puts pairs to a model until it finds the chosen item or has no tries left.
pub struct Explainer<'a, M> {
    model: M,
    contrast: Contrast,
    prompt: ContrastivePrompt,
    concurrency: usize,
    stop: Stop,
    progress: Option<Box<dyn Fn(usize, usize) + Send + Sync + 'a>>,
}

impl<M: ChatModel> std::fmt::Debug for Explainer<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer")
            .field("model", &self.model.id())
            .field("contrast", &self.contrast)
            .finish_non_exhaustive()
    }
}

impl<'a, M: ChatModel> Explainer<'a, M> {
    /// Explained by this model, with the paper's numbers of negatives and three tries a pair.
    pub fn new(model: M) -> Self {
        Self {
            model,
            contrast: Contrast::default(),
            prompt: ContrastivePrompt::default(),
            concurrency: 16,
            stop: Stop::default(),
            progress: None,
        }
    }

    /// Negatives, tries and seed.
    #[must_use]
    pub fn contrast(mut self, contrast: Contrast) -> Self {
        self.contrast = contrast;
        self
    }

    /// Templates of your own.
    #[must_use]
    pub fn prompt(mut self, prompt: ContrastivePrompt) -> Self {
        self.prompt = prompt;
        self
    }

    /// At most this many pairs in work; 16 where it is not said.
    #[must_use]
    pub fn concurrency(mut self, pairs: usize) -> Self {
        self.concurrency = pairs;
        self
    }

    /// Obeys this stop.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Tells how many pairs are done, and of how many.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(usize, usize) + Send + Sync + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Explains these pairs, with hard negatives by `scorer`. `items` bring the titles shown; rows may be missing.
    ///
    /// # Errors
    /// When a pair is not in the graph, the settings leave no negatives, the model can no longer be asked, or a stop was
    /// requested. Every answer paid for is in the model's cache, if it has one.
    pub async fn run(
        &self,
        graph: &BipartiteGraph,
        scorer: &dyn ItemScorer,
        profiles: &Profiles,
        items: &[Item],
        pairs: &[(UserId, ItemId)],
    ) -> Result<Explained> {
        if self.contrast.hard + self.contrast.random == 0 {
            return Err(Error::NoNegativesAsked);
        }
        let sampler = self.contrast.sampler(scorer);
        self.run_with(graph, &sampler, profiles, items, pairs).await
    }

    /// The same with negatives of your own choosing.
    ///
    /// # Errors
    /// As [`Explainer::run`].
    pub async fn run_with(
        &self,
        graph: &BipartiteGraph,
        sampler: &dyn NegativeSampler,
        profiles: &Profiles,
        items: &[Item],
        pairs: &[(UserId, ItemId)],
    ) -> Result<Explained> {
        let titles: HashMap<&str, &str> = items
            .iter()
            .filter_map(|item| Some((item.item.as_str(), item.title.as_deref()?)))
            .collect();
        for (user, item) in pairs {
            for node in [Node::User(user.clone()), Node::Item(item.clone())] {
                if graph.index(&node).is_none() {
                    return Err(Error::UnknownNode { node });
                }
            }
        }
        let total = pairs.len();
        let report = |done| {
            if let Some(progress) = &self.progress {
                progress(done, total);
            }
        };
        report(0);
        let titles = &titles;
        // The pairs of one user in a row: their prompts have the same beginning, up to the user's profile, which a server's
        // cache of prefixes then still holds.
        let mut pairs: Vec<&(UserId, ItemId)> = pairs.iter().collect();
        pairs.sort();
        let jobs = pairs.into_iter().map(|(user, item)| async move {
            let mut explanation = self.unexplained(graph, sampler, user, item);
            let failed = match self.explain(profiles, titles, &mut explanation).await {
                Ok(()) => None,
                Err(error) if error.is_fatal() || error.is_retryable() => return Err(error),
                Err(error) => Some(error.to_string()),
            };
            Ok((explanation, failed))
        });
        let mut explained = Explained::default();
        let mut done = 0;
        let ended = drive(
            jobs,
            self.concurrency,
            &self.stop,
            |(explanation, failed)| {
                done += 1;
                if let Some(reason) = failed {
                    let Explanation { user, item, .. } = &explanation;
                    tracing::warn!(%user, %item, reason, "pair has no explanation");
                    explained.failed.push(Failed {
                        user: user.clone(),
                        item: item.clone(),
                        reason,
                    });
                }
                explained.explanations.push(explanation);
                report(done);
            },
        )
        .await;
        match ended {
            Ok(()) => {}
            Err(Halted::Failed(source)) => {
                return Err(Error::Model {
                    done,
                    total,
                    source,
                });
            }
            Err(_) => return Err(Error::Stopped { done, total }),
        }
        explained
            .explanations
            .sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
        explained
            .failed
            .sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
        Ok(explained)
    }

    /// What the model chooses from: the positive among its negatives, in an order drawn by a seeded hash, so that its place
    /// is uniform and the same on every run. Nothing where the graph lacks the pair.
    #[must_use]
    pub fn candidates(
        &self,
        graph: &BipartiteGraph,
        sampler: &dyn NegativeSampler,
        user: &UserId,
        item: &ItemId,
    ) -> Vec<Candidate> {
        let (Some(user_index), Some(item_index)) =
            (graph.user(user.as_str()), graph.item(item.as_str()))
        else {
            return Vec::new();
        };
        let seed = self.contrast.seed;
        let mut candidates = sampler.negatives(graph, user_index, item_index);
        candidates.push(Candidate {
            item: item.clone(),
            role: Role::Positive,
            scorer: None,
            rank: None,
            score: None,
        });
        candidates.sort_by_cached_key(|candidate| {
            draw(
                "order",
                seed,
                &[user.as_str(), item.as_str(), candidate.item.as_str()],
            )
        });
        candidates
    }

    /// The first question about a pair; `None` where there is nothing to compare with.
    pub fn question<'t>(
        &self,
        user: &UserId,
        candidates: &[Candidate],
        title: impl Fn(&ItemId) -> Option<&'t str>,
        profile: impl Fn(&Node) -> Option<&'t str>,
    ) -> Option<ChatRequest> {
        if candidates.len() < 2 {
            return None;
        }
        let shown: Vec<Shown<'_>> = candidates
            .iter()
            .map(|candidate| Shown {
                title: title(&candidate.item),
                profile: profile(&Node::Item(candidate.item.clone())),
            })
            .collect();
        let about = profile(&Node::User(user.clone()));
        Some(self.prompt.request(about, &shown, self.contrast.seed))
    }

    /// The question after a wrong pick; `wrong` are all wrong picks so far, from zero, the last one last.
    #[must_use]
    pub fn next_question(&self, asked: ChatRequest, answer: &str, wrong: &[usize]) -> ChatRequest {
        self.prompt.feed_back(asked, answer, wrong)
    }

    /// The record of a pair before anything was asked.
    fn unexplained(
        &self,
        graph: &BipartiteGraph,
        sampler: &dyn NegativeSampler,
        user: &UserId,
        item: &ItemId,
    ) -> Explanation {
        let candidates = self.candidates(graph, sampler, user, item);
        Explanation {
            user: user.clone(),
            item: item.clone(),
            explanation: String::new(),
            reasoning: None,
            accepted: false,
            attempts: 0,
            picks: Vec::new(),
            candidates,
            answer_shown: false,
            model: self.model.id().model,
            prompt: self.prompt.fingerprint(),
            seed: self.contrast.seed,
        }
    }

    /// Asks until the pick is right or no tries are left. What was found out by then stays in the record, whatever ends it.
    async fn explain(
        &self,
        profiles: &Profiles,
        titles: &HashMap<&str, &str>,
        record: &mut Explanation,
    ) -> Result<(), ChatError> {
        let title = |item: &ItemId| titles.get(item.as_str()).copied();
        let profile = |node: &Node| profiles.summary(node);
        let Some(mut request) = self.question(&record.user, &record.candidates, title, profile)
        else {
            let message = "no item is left to compare with: the user touched them all".to_owned();
            return Err(ChatError::Permanent {
                status: None,
                message,
            });
        };
        let mut wrong = Vec::new();
        while record.attempts < self.contrast.max_attempts.max(1) {
            record.attempts += 1;
            let response = self.model.chat(&request).await?;
            let verdict =
                Verdict::parse(&response.answer, record.candidates.len()).map_err(|reason| {
                    let excerpt = because_core::text::excerpt(&response.answer, 120);
                    ChatError::Invalid {
                        reason,
                        excerpt,
                        attempts: 1,
                    }
                })?;
            let pick = &record.candidates[verdict.pick];
            record.accepted = pick.role == Role::Positive;
            record.picks.push(pick.item.clone());
            record.explanation = verdict.explanation;
            record.reasoning = response.reasoning;
            if record.accepted {
                break;
            }
            wrong.push(verdict.pick);
            request = self.next_question(request, &response.answer, &wrong);
        }
        Ok(())
    }
}
