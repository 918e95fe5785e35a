use because_core::{Node, ProfileRecord, Profiles, Side};
use because_graph::{BipartiteGraph, NeighborSampler, NodeIndex, UniformSampler};
use because_llm::{ChatError, ChatModel, ChatRequest, Stop};

use crate::requests::{aggregate_request, parse_profile, parse_shared, update_request};
use crate::run::{Run, ask};
use crate::{Error, Progress, Prompts, Result, WordLimits, Written};

/// The layers of PGHIS: at each, every node's profile is rewritten from what a sample of its train neighbours share.
///
/// Layer L of both sides reads only layer L-1, so the result does not depend on the order of nodes, on concurrency or on
/// restarts. A node without neighbours that are known keeps its text and costs no call.
pub struct MessagePassing<'a> {
    model: &'a dyn ChatModel,
    layers: usize,
    neighbors: usize,
    sampler: Box<dyn NeighborSampler + 'a>,
    prompts: Prompts,
    words: WordLimits,
    run: Run<'a>,
}

impl std::fmt::Debug for MessagePassing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessagePassing")
            .field("model", &self.model.id())
            .field("layers", &self.layers)
            .field("neighbors", &self.neighbors)
            .finish_non_exhaustive()
    }
}

impl<'a> MessagePassing<'a> {
    /// Two layers over a uniform sample of 8 neighbours with seed 0. The paper does not state its own numbers; the text
    /// networks next to it use two layers.
    pub fn new(model: &'a dyn ChatModel) -> Self {
        Self {
            model,
            layers: 2,
            neighbors: 8,
            sampler: Box::new(UniformSampler { seed: 0 }),
            prompts: Prompts::default(),
            words: WordLimits::default(),
            run: Run::default(),
        }
    }

    /// How many layers follow the initial one.
    #[must_use]
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// How many neighbours of a node are read at each layer.
    #[must_use]
    pub fn neighbors(mut self, neighbors: usize) -> Self {
        self.neighbors = neighbors;
        self
    }

    /// Which neighbours are read.
    #[must_use]
    pub fn sampler(mut self, sampler: impl NeighborSampler + 'a) -> Self {
        self.sampler = Box::new(sampler);
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

    /// At most this many nodes in work; 16 where it is not said.
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

    /// Runs every layer and gives them back in order, the first after the initial one first.
    ///
    /// # Errors
    /// When the initial profiles lack a node, the model can no longer be asked, or a stop was requested.
    pub async fn run(&self, graph: &BipartiteGraph, initial: Profiles) -> Result<Vec<Written>> {
        let mut layers: Vec<Written> = Vec::with_capacity(self.layers);
        for _ in 0..self.layers {
            let below = layers.last().map_or(&initial, |written| &written.profiles);
            let written = self.layer(graph, &initial, below).await?;
            layers.push(written);
        }
        Ok(layers)
    }

    /// Runs the one layer above `below`; for layer 1, `below` is `initial` itself.
    ///
    /// # Errors
    /// As [`MessagePassing::run`].
    pub async fn layer(
        &self,
        graph: &BipartiteGraph,
        initial: &Profiles,
        below: &Profiles,
    ) -> Result<Written> {
        let layer = below.layer() + 1;
        let mut written = Written {
            profiles: Profiles::new(layer),
            fallbacks: Vec::new(),
        };
        let is_known = |index: NodeIndex| below.summary(&graph.node(index)).is_some();
        let mut senders = Vec::new();
        for index in graph.nodes(Side::User).chain(graph.nodes(Side::Item)) {
            let node = graph.node(index);
            for (profiles, layer) in [(initial, 0), (below, below.layer())] {
                if profiles.record(&node).is_none() {
                    return Err(Error::NoProfile { node, layer });
                }
            }
            if self.neighbors_of(graph, index, layer, is_known).is_empty() {
                written.profiles.insert(kept(below, &node, layer));
            } else {
                senders.push(index);
            }
        }
        let total = senders.len();
        let prompt = self.prompts.message_fingerprint();
        let jobs = senders.into_iter().map(|index| {
            let prompt = prompt.clone();
            let node = graph.node(index);
            let neighbors: Vec<_> = self
                .neighbors_of(graph, index, layer, is_known)
                .into_iter()
                .map(|neighbor| graph.node(neighbor))
                .collect();
            async move {
                let record = self
                    .message(&node, &neighbors, layer, initial, below, prompt)
                    .await;
                (node, record)
            }
        });
        let stage = format!("layer-{layer} profiles");
        self.run
            .nodes(&stage, &mut written, total, jobs, |node| {
                kept(below, node, layer)
            })
            .await?;
        Ok(written)
    }

    /// The neighbours whose profiles a node reads at a layer, in the order they are shown: those of its sample that are
    /// known. A node without any is not asked about.
    pub fn neighbors_of(
        &self,
        graph: &BipartiteGraph,
        index: NodeIndex,
        layer: usize,
        is_known: impl Fn(NodeIndex) -> bool,
    ) -> Vec<NodeIndex> {
        let sample = self.sampler.sample(graph, index, layer, self.neighbors);
        let nodes = sample.into_iter().map(|neighbor| neighbor.node);
        nodes.filter(|neighbor| is_known(*neighbor)).collect()
    }

    /// The first question of a node's message: what its neighbours share.
    #[must_use]
    pub fn aggregate(&self, side: Side, current: Option<&str>, neighbors: &[&str]) -> ChatRequest {
        aggregate_request(&self.prompts, self.words, side, current, neighbors)
    }

    /// The second: the profile of the next layer.
    #[must_use]
    pub fn update(
        &self,
        side: Side,
        initial: Option<&str>,
        current: Option<&str>,
        shared: &str,
    ) -> ChatRequest {
        update_request(&self.prompts, self.words, side, initial, current, shared)
    }

    /// Aggregates what the neighbours share, then updates the node's profile from it.
    async fn message(
        &self,
        node: &Node,
        neighbors: &[Node],
        layer: usize,
        initial: &Profiles,
        below: &Profiles,
        prompt: String,
    ) -> Result<ProfileRecord, ChatError> {
        let side = node.side();
        let texts: Vec<&str> = neighbors
            .iter()
            .filter_map(|neighbor| below.summary(neighbor))
            .collect();
        let current = below.summary(node);
        let aggregate = self.aggregate(side, current, &texts);
        let shared = ask(self.model, aggregate, parse_shared).await?;
        let update = self.update(side, initial.summary(node), current, &shared);
        let profile = ask(self.model, update, parse_profile).await?;
        Ok(ProfileRecord {
            kind: side,
            id: node.id().to_owned(),
            layer,
            profile,
            neighbors: neighbors
                .iter()
                .map(|neighbor| neighbor.id().to_owned())
                .collect(),
            model: self.model.id().model,
            prompt,
        })
    }
}

/// The text of the layer below, as this layer's.
fn kept(below: &Profiles, node: &Node, layer: usize) -> ProfileRecord {
    let record = below
        .record(node)
        .expect("every node was checked to have one before the first call");
    ProfileRecord {
        layer,
        neighbors: Vec::new(),
        ..record.clone()
    }
}
