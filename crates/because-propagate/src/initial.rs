mod calls;

use because_core::{Item, Node, Profile, ProfileRecord, Profiles, Side, User};
use because_graph::{BipartiteGraph, NeighborSampler, NodeIndex, Reviews, UniformSampler};
use because_llm::{ChatModel, Stop};

use crate::requests::parse_profile;
use crate::run::{Run, ask};
use crate::{Progress, Prompts, Result, WordLimits, Written};

pub use calls::{InitialCalls, Start};

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

    /// Writes them. `users` and `items` may lack rows: the graph says which nodes there are. `reviews` are those of the
    /// graph, [`Reviews::none`] where nobody wrote any.
    ///
    /// # Errors
    /// When a review cannot be read, the model can no longer be asked, or a stop was requested. Every answer paid for is in the model's cache, if it
    /// has one, so the same call goes on where it ended.
    pub async fn run(
        &self,
        graph: &BipartiteGraph,
        reviews: &Reviews,
        users: &[User],
        items: &[Item],
    ) -> Result<Written> {
        let calls = self.calls(graph, reviews, users, items);
        let mut written = Written {
            profiles: Profiles::new(0),
            fallbacks: Vec::new(),
        };

        let asked = first_known(graph, Side::Item, &mut written.profiles, |index| {
            calls.item(index)
        });
        let mut unread = None;
        let jobs = asked.iter().map_while(|&index| {
            let request = kept_apart(calls.item_request(index), &mut unread)?;
            let prompt = self.prompts.initial_item.fingerprint();
            Some(self.write(graph.node(index), request, prompt))
        });
        self.run
            .nodes("layer-0 items", &mut written, asked.len(), jobs, unknown)
            .await?;
        unread.map_or(Ok(()), Err)?;

        let mut users = Profiles::new(0);
        let items = &written.profiles;
        let asked = first_known(graph, Side::User, &mut users, |index| {
            calls.user(index, |item| items.summary(&graph.node(item)).is_some())
        });
        let mut of_users = Written {
            profiles: users,
            fallbacks: Vec::new(),
        };
        let mut unread = None;
        let jobs = asked.iter().map_while(|&index| {
            let request = calls.user_request(index, |item| items.summary(&graph.node(item)));
            let request = kept_apart(request, &mut unread)?;
            let prompt = self.prompts.initial_user.fingerprint();
            Some(self.write(graph.node(index), request, prompt))
        });
        self.run
            .nodes("layer-0 users", &mut of_users, asked.len(), jobs, unknown)
            .await?;
        unread.map_or(Ok(()), Err)?;
        for record in of_users.profiles.into_records() {
            written.profiles.insert(record);
        }
        written.fallbacks.extend(of_users.fallbacks);
        Ok(written)
    }

    /// What the calls of layer 0 are made of, for whoever wants to know them without making them.
    #[must_use]
    pub fn calls<'c>(
        &'c self,
        graph: &'c BipartiteGraph,
        reviews: &'c Reviews,
        users: &'c [User],
        items: &'c [Item],
    ) -> InitialCalls<'c> {
        InitialCalls::new(self, graph, reviews, users, items)
    }

    async fn write(
        &self,
        node: Node,
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
        (node, record)
    }
}

/// A question, or nothing and its error put by: what is under way is awaited before the run ends with it.
fn kept_apart(
    request: Result<because_llm::ChatRequest>,
    unread: &mut Option<crate::Error>,
) -> Option<because_llm::ChatRequest> {
    request.map_err(|error| *unread = Some(error)).ok()
}

/// Gathers the profiles that cost no call, and gives back who has to be asked about.
fn first_known<'g>(
    graph: &BipartiteGraph,
    side: Side,
    profiles: &mut Profiles,
    start: impl Fn(NodeIndex) -> Start<'g>,
) -> Vec<NodeIndex> {
    let mut asked = Vec::new();
    for index in graph.nodes(side) {
        match start(index) {
            Start::FromData(profile) => profiles.insert(from_data(&graph.node(index), profile)),
            Start::Nothing => profiles.insert(unknown(&graph.node(index))),
            Start::Asked => asked.push(index),
        }
    }
    asked
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
