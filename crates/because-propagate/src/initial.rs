use std::collections::HashMap;

use because_core::{Interaction, Item, Node, Profile, ProfileRecord, Profiles, Side, User};
use because_graph::{BipartiteGraph, NeighborSampler, NodeIndex, UniformSampler};
use because_llm::{ChatModel, Stop};

use crate::requests::{initial_item_request, initial_user_request, parse_profile};
use crate::run::{Run, ask};
use crate::{Progress, Prompts, Result, WordLimits, Written};

/// Writes the layer-0 profile of every node: items first, from their own text and reviews, then users, from the profiles of
/// the items they chose and what they wrote about them. Only train interactions are read.
///
/// A node whose row brings a profile keeps it and costs no call; a node of which nothing is known gets a sentence that says
/// so and costs no call either.
pub struct InitialProfiles<'a> {
    model: &'a dyn ChatModel,
    prompts: Prompts,
    words: WordLimits,
    sampler: Box<dyn NeighborSampler + 'a>,
    interactions: usize,
    run: Run<'a>,
}

impl std::fmt::Debug for InitialProfiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InitialProfiles")
            .field("model", &self.model.id())
            .finish_non_exhaustive()
    }
}

impl<'a> InitialProfiles<'a> {
    /// Written by this model, with a uniform sample of 8 interactions a node (RLMRec's examples show six) and seed 0.
    pub fn new(model: &'a dyn ChatModel) -> Self {
        Self {
            model,
            prompts: Prompts::default(),
            words: WordLimits::default(),
            sampler: Box::new(UniformSampler { seed: 0 }),
            interactions: 8,
            run: Run::default(),
        }
    }

    /// Which of a node's train interactions are read.
    #[must_use]
    pub fn sampler(mut self, sampler: impl NeighborSampler + 'a) -> Self {
        self.sampler = Box::new(sampler);
        self
    }

    /// How many of them at most.
    #[must_use]
    pub fn interactions(mut self, interactions: usize) -> Self {
        self.interactions = interactions;
        self
    }

    /// Templates of your own.
    #[must_use]
    pub fn prompts(mut self, prompts: Prompts) -> Self {
        self.prompts = prompts;
        self
    }

    /// How long a profile may become.
    #[must_use]
    pub fn words(mut self, words: WordLimits) -> Self {
        self.words = words;
        self
    }

    /// At most this many calls in flight; 16 where it is not said.
    #[must_use]
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.run.concurrency = calls;
        self
    }

    /// Obeys this stop.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.run.stop = stop;
        self
    }

    /// Tells how far it has come.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(Progress<'_>) + Send + Sync + 'a) -> Self {
        self.run.progress = Some(Box::new(progress));
        self
    }

    /// Writes them. `users` and `items` may lack rows: the graph says which nodes there are.
    ///
    /// # Errors
    /// When the model can no longer be asked, or a stop was requested. Every answer paid for is in the model's cache, if it
    /// has one, so the same call goes on where it ended.
    pub async fn run(
        &self,
        graph: &BipartiteGraph,
        users: &[User],
        items: &[Item],
    ) -> Result<Written> {
        let items: HashMap<&str, &Item> = items
            .iter()
            .map(|item| (item.item.as_str(), item))
            .collect();
        let given: HashMap<&str, &str> = users
            .iter()
            .filter_map(|user| Some((user.user.as_str(), user.profile.as_deref()?.trim())))
            .filter(|(_, profile)| !profile.is_empty())
            .collect();
        let mut written = Written {
            profiles: Profiles::new(0),
            fallbacks: Vec::new(),
        };

        let mut asked = Vec::new();
        for index in graph.nodes(Side::Item) {
            let row = items.get(graph.node(index).id()).copied();
            let given = row
                .and_then(|row| row.profile.as_deref())
                .map(str::trim)
                .filter(|profile| !profile.is_empty());
            let reviews = self.sample(graph, index);
            match given {
                Some(profile) => written
                    .profiles
                    .insert(from_data(graph.node(index), profile)),
                None if says_nothing(row, &reviews) => {
                    written.profiles.insert(unknown(graph.node(index)))
                }
                None => asked.push((index, row, reviews)),
            }
        }
        let total = asked.len();
        let jobs = asked.into_iter().map(|(index, row, reviews)| {
            let bare = bare_item(graph.node(index));
            let request =
                initial_item_request(&self.prompts, self.words, row.unwrap_or(&bare), &reviews);
            self.write(
                graph.node(index),
                request,
                self.prompts.initial_item.fingerprint(),
            )
        });
        self.run
            .nodes("layer-0 items", &mut written, total, jobs, unknown)
            .await?;

        let mut requests = Vec::new();
        for index in graph.nodes(Side::User) {
            let node = graph.node(index);
            let history: Vec<_> = self
                .sampler
                .sample(graph, index, 0, self.interactions)
                .into_iter()
                .map(|neighbor| {
                    let item = graph.node(neighbor.node);
                    let row = items.get(item.id()).copied();
                    (
                        graph.interaction(neighbor.interaction),
                        row,
                        written.profiles.summary(item),
                    )
                })
                .filter(|(interaction, row, profile)| {
                    profile.is_some()
                        || speaks(interaction)
                        || row.is_some_and(|row| row.title.is_some())
                })
                .collect();
            match given.get(node.id()) {
                Some(profile) => written.profiles.insert(from_data(node, profile)),
                None if history.is_empty() => written.profiles.insert(unknown(node)),
                None => requests.push((
                    node,
                    initial_user_request(&self.prompts, self.words, &history),
                )),
            }
        }
        let total = requests.len();
        let jobs = requests.into_iter().map(|(node, request)| {
            self.write(node, request, self.prompts.initial_user.fingerprint())
        });
        self.run
            .nodes("layer-0 users", &mut written, total, jobs, unknown)
            .await?;
        Ok(written)
    }

    fn sample<'g>(&self, graph: &'g BipartiteGraph, index: NodeIndex) -> Vec<&'g Interaction> {
        let sample = self.sampler.sample(graph, index, 0, self.interactions);
        let interactions = sample
            .iter()
            .map(|neighbor| graph.interaction(neighbor.interaction));
        interactions
            .filter(|interaction| speaks(interaction))
            .collect()
    }

    async fn write(
        &self,
        node: &Node,
        request: because_llm::ChatRequest,
        prompt: String,
    ) -> (Node, Result<ProfileRecord, because_llm::ChatError>) {
        let profile = ask(self.model, request, parse_profile).await;
        let record = profile.map(|profile| ProfileRecord {
            kind: node.side(),
            id: node.id().to_owned(),
            layer: 0,
            profile,
            neighbors: Vec::new(),
            model: self.model.id().model,
            prompt,
        });
        (node.clone(), record)
    }
}

fn speaks(interaction: &Interaction) -> bool {
    interaction
        .review
        .as_deref()
        .is_some_and(|review| !review.trim().is_empty())
}

fn says_nothing(row: Option<&Item>, reviews: &[&Interaction]) -> bool {
    reviews.is_empty()
        && row.is_none_or(|row| {
            row.title.is_none() && row.description.is_none() && row.attributes.is_empty()
        })
}

fn bare_item(node: &Node) -> Item {
    Item {
        item: node.id().into(),
        title: None,
        description: None,
        profile: None,
        attributes: because_core::Attributes::new(),
    }
}

fn from_data(node: &Node, profile: &str) -> ProfileRecord {
    given(node, profile.to_owned(), ProfileRecord::FROM_DATA)
}

fn unknown(node: &Node) -> ProfileRecord {
    given(
        node,
        format!("Nothing is known of this {} yet.", node.side()),
        ProfileRecord::FROM_NOTHING,
    )
}

fn given(node: &Node, summary: String, model: &str) -> ProfileRecord {
    ProfileRecord {
        kind: node.side(),
        id: node.id().to_owned(),
        layer: 0,
        profile: Profile {
            summary,
            reasoning: None,
        },
        neighbors: Vec::new(),
        model: model.to_owned(),
        prompt: String::new(),
    }
}
