use std::collections::HashMap;
use std::sync::Arc;

use because_core::{Profiles, Side};
use because_graph::{BipartiteGraph, NodeIndex};
use because_llm::{ChatRequest, ModelId, Store};
use because_propagate::{InitialCalls, MessagePassing, Start, parse_profile, parse_shared};

use super::row::Counted;
use crate::Result;

/// The profiles of every layer as far as they can be told without asking: from the files of stages that are done, and from
/// answers in the store, looked up when they are wanted. What is not answered yet is stood in for.
pub(super) struct Texts<'a> {
    pub(super) graph: &'a BipartiteGraph,
    pub(super) initial: &'a InitialCalls<'a>,
    pub(super) messages: &'a MessagePassing<'a>,
    pub(super) model: &'a ModelId,
    pub(super) store: Option<&'a Store>,
    pub(super) layers: Vec<Layer>,
    pub(super) stand_in: &'a str,
    pub(super) shared_stand_in: &'a str,
    /// Texts that took a look into the store; `None` for those that nobody has answered.
    looked_up: HashMap<(usize, NodeIndex), Option<Arc<str>>>,
}

/// What is known of a layer's nodes, by their place in the graph.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// Whether there will be a profile.
    pub(super) known: Vec<bool>,
    /// Whether it takes a call.
    pub(super) asked: Vec<bool>,
    /// What a finished stage wrote.
    pub(super) file: Option<Profiles>,
}

/// A question, and what in it is not the real text yet.
pub(super) struct Question {
    pub(super) request: ChatRequest,
    pub(super) profiles: usize,
    pub(super) shared: usize,
}

impl Question {
    /// Whether this is what a run will ask, to the letter.
    pub(super) fn is_exact(&self) -> bool {
        self.profiles + self.shared == 0
    }

    pub(super) fn counted(&self, tokens: u64) -> Counted {
        Counted {
            tokens,
            profiles: self.profiles,
            shared: self.shared,
        }
    }
}

impl<'a> Texts<'a> {
    pub(super) fn new(
        (graph, initial, messages): (
            &'a BipartiteGraph,
            &'a InitialCalls<'a>,
            &'a MessagePassing<'a>,
        ),
        (model, store): (&'a ModelId, Option<&'a Store>),
        (stand_in, shared_stand_in): (&'a str, &'a str),
    ) -> Self {
        Self {
            graph,
            initial,
            messages,
            model,
            store,
            layers: Vec::new(),
            stand_in,
            shared_stand_in,
            looked_up: HashMap::new(),
        }
    }

    /// Adds layer 0, with what its finished stage wrote.
    pub(super) fn add_initial(&mut self, file: Option<Profiles>) {
        let mut layer = Layer::of(self.graph);
        for index in self.graph.nodes(Side::Item) {
            layer.begins(index, self.initial.item(index));
        }
        for index in self.graph.nodes(Side::User) {
            let start = self.initial.user(index, |item| layer.known[item.index()]);
            layer.begins(index, start);
        }
        self.layers.push(layer.written(self.graph, file));
    }

    /// Adds the layer above the last one.
    pub(super) fn add_messages(&mut self, file: Option<Profiles>) {
        let at = self.layers.len();
        let below = &self.layers[at - 1].known;
        let mut layer = Layer::of(self.graph);
        for index in both(self.graph) {
            let place = index.index();
            layer.asked[place] = !self.neighbors(at, index).is_empty();
            layer.known[place] = below[place] || layer.asked[place];
        }
        self.layers.push(layer.written(self.graph, file));
    }

    /// Adds a layer of which only the file matters.
    pub(super) fn add_file(&mut self, file: Profiles) {
        while self.layers.len() < file.layer() {
            self.layers.push(Layer::default());
        }
        let layer = Layer::of(self.graph).written(self.graph, Some(file));
        self.layers.push(layer);
    }

    pub(super) fn is_known(&self, layer: usize, index: NodeIndex) -> bool {
        self.layers[layer].known[index.index()]
    }

    /// A known node's profile at a layer; `None` where it is not written yet.
    pub(super) fn text(&mut self, layer: usize, index: NodeIndex) -> Result<Option<Arc<str>>> {
        if let Some(file) = &self.layers[layer].file {
            return Ok(file.summary(&self.graph.node(index)).map(Arc::from));
        }
        if !self.layers[layer].asked[index.index()] {
            return match layer {
                0 => Ok(self.given(index)),
                _ => self.text(layer - 1, index),
            };
        }
        if self.store.is_none() {
            return Ok(None);
        }
        if let Some(text) = self.looked_up.get(&(layer, index)) {
            return Ok(text.clone());
        }
        let question = match layer {
            0 => Some(self.initial_question(index)?),
            _ => self.update_question(layer, index)?,
        };
        let answer = match question {
            Some(question) => self.answer(&question)?,
            None => None,
        };
        let text = answer
            .and_then(|answer| parse_profile(&answer).ok())
            .map(|profile| Arc::from(profile.summary));
        self.looked_up.insert((layer, index), text.clone());
        Ok(text)
    }

    pub(super) fn initial_question(&mut self, index: NodeIndex) -> Result<Question> {
        if self.graph.side(index) == Side::Item {
            return Ok(Question {
                request: self.initial.item_request(index)?,
                profiles: 0,
                shared: 0,
            });
        }
        let mut profiles = 0;
        let mut texts: HashMap<NodeIndex, Arc<str>> = HashMap::new();
        let history = self.initial.history(index, |item| self.is_known(0, item));
        for item in history.into_iter().map(|neighbor| neighbor.node) {
            if self.is_known(0, item) {
                let text = self.text(0, item)?;
                profiles += usize::from(text.is_none());
                texts.insert(item, text.unwrap_or_else(|| self.stand_in.into()));
            }
        }
        let profile = |item: NodeIndex| texts.get(&item).map(|text| &**text);
        Ok(Question {
            request: self.initial.user_request(index, profile)?,
            profiles,
            shared: 0,
        })
    }

    pub(super) fn aggregate_question(
        &mut self,
        layer: usize,
        index: NodeIndex,
    ) -> Result<Question> {
        let mut profiles = 0;
        let neighbors = self
            .neighbors(layer, index)
            .into_iter()
            .map(|neighbor| self.stood_for(layer - 1, neighbor, &mut profiles))
            .collect::<Result<Vec<_>>>()?;
        let current = self.stood_for(layer - 1, index, &mut profiles)?;
        let neighbors: Vec<&str> = neighbors.iter().filter_map(Option::as_deref).collect();
        let side = self.graph.side(index);
        Ok(Question {
            request: self
                .messages
                .aggregate(side, current.as_deref(), &neighbors),
            profiles,
            shared: 0,
        })
    }

    /// The second question of a message, if its first was answered.
    fn update_question(&mut self, layer: usize, index: NodeIndex) -> Result<Option<Question>> {
        let first = self.aggregate_question(layer, index)?;
        let answer = self.answer(&first)?;
        let Some(shared) = answer.and_then(|answer| parse_shared(&answer).ok()) else {
            return Ok(None);
        };
        self.update_with(layer, index, Some(&shared)).map(Some)
    }

    /// The second question of a message, with what the neighbours share or something in its place.
    pub(super) fn update_with(
        &mut self,
        layer: usize,
        index: NodeIndex,
        shared: Option<&str>,
    ) -> Result<Question> {
        let mut profiles = 0;
        let initial = self.stood_for(0, index, &mut profiles)?;
        let current = self.stood_for(layer - 1, index, &mut profiles)?;
        let side = self.graph.side(index);
        let request = self.messages.update(
            side,
            initial.as_deref(),
            current.as_deref(),
            shared.unwrap_or(self.shared_stand_in),
        );
        Ok(Question {
            request,
            profiles,
            shared: usize::from(shared.is_none()),
        })
    }

    /// What the store has for a question that is exact.
    pub(super) fn answer(&self, question: &Question) -> Result<Option<String>> {
        match self.store {
            Some(store) if question.is_exact() => {
                let key = question.request.key(self.model);
                Ok(store.get(&key)?.map(|response| response.answer))
            }
            _ => Ok(None),
        }
    }

    /// The text of a node, or a stand-in that is counted; `None` where nothing is or will be known.
    pub(super) fn stood_for(
        &mut self,
        layer: usize,
        index: NodeIndex,
        stand_ins: &mut usize,
    ) -> Result<Option<Arc<str>>> {
        if !self.is_known(layer, index) {
            return Ok(None);
        }
        let text = self.text(layer, index)?;
        *stand_ins += usize::from(text.is_none());
        Ok(Some(text.unwrap_or_else(|| self.stand_in.into())))
    }

    fn neighbors(&self, layer: usize, index: NodeIndex) -> Vec<NodeIndex> {
        let below = &self.layers[layer - 1].known;
        self.messages
            .neighbors_of(self.graph, index, layer, |neighbor| below[neighbor.index()])
    }

    fn given(&self, index: NodeIndex) -> Option<Arc<str>> {
        let start = match self.graph.side(index) {
            Side::Item => self.initial.item(index),
            Side::User => self.initial.user(index, |item| self.is_known(0, item)),
        };
        match start {
            Start::FromData(profile) => Some(profile.into()),
            _ => None,
        }
    }
}

impl Layer {
    fn of(graph: &BipartiteGraph) -> Self {
        let nodes = graph.len(Side::User) + graph.len(Side::Item);
        Self {
            known: vec![false; nodes],
            asked: vec![false; nodes],
            file: None,
        }
    }

    fn begins(&mut self, index: NodeIndex, start: Start<'_>) {
        self.known[index.index()] = start != Start::Nothing;
        self.asked[index.index()] = start == Start::Asked;
    }

    /// What a finished stage wrote is what is known, also where a call of it failed.
    fn written(mut self, graph: &BipartiteGraph, file: Option<Profiles>) -> Self {
        if let Some(file) = &file {
            for index in both(graph) {
                self.known[index.index()] = file.summary(&graph.node(index)).is_some();
            }
        }
        self.file = file;
        self
    }
}

pub(super) fn both(graph: &BipartiteGraph) -> impl Iterator<Item = NodeIndex> + '_ {
    graph.nodes(Side::User).chain(graph.nodes(Side::Item))
}
