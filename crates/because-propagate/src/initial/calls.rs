use std::collections::HashMap;

use because_core::{Attributes, Interaction, Item, Node, Side, User};
use because_graph::{BipartiteGraph, NodeIndex};
use because_llm::ChatRequest;

use super::InitialProfiles;
use crate::requests::{initial_item_request, initial_user_request};

/// What the calls of layer 0 are made of: pure functions of the data, so that they can be looked at without being made.
/// Made by [`InitialProfiles::calls`].
#[derive(Debug)]
pub struct InitialCalls<'a> {
    stage: &'a InitialProfiles<'a>,
    graph: &'a BipartiteGraph,
    items: HashMap<&'a str, &'a Item>,
    /// The profiles that users bring.
    given: HashMap<&'a str, &'a str>,
}

/// How a node comes by its initial profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// The data brings it.
    FromData(&'a str),
    /// Nothing is known of the node.
    Nothing,
    /// A model is asked.
    Asked,
}

impl<'a> InitialCalls<'a> {
    pub(super) fn new(
        stage: &'a InitialProfiles<'a>,
        graph: &'a BipartiteGraph,
        users: &'a [User],
        items: &'a [Item],
    ) -> Self {
        let profiles = users
            .iter()
            .filter_map(|user| Some((user.user.as_str(), user.profile.as_deref()?.trim())));
        Self {
            stage,
            graph,
            items: items
                .iter()
                .map(|item| (item.item.as_str(), item))
                .collect(),
            given: profiles
                .filter(|(_, profile)| !profile.is_empty())
                .collect(),
        }
    }

    /// How an item comes by its profile.
    #[must_use]
    pub fn item(&self, index: NodeIndex) -> Start<'a> {
        let row = self.row(index);
        let given = row
            .and_then(|row| row.profile.as_deref())
            .map(str::trim)
            .filter(|profile| !profile.is_empty());
        match given {
            Some(profile) => Start::FromData(profile),
            None if self.reviews(index).is_empty() && row.is_none_or(says_nothing) => {
                Start::Nothing
            }
            None => Start::Asked,
        }
    }

    /// How a user comes by theirs; `is_known` tells of which items there is a profile.
    pub fn user(&self, index: NodeIndex, is_known: impl Fn(NodeIndex) -> bool) -> Start<'a> {
        match self.given.get(self.graph.node(index).id()) {
            Some(profile) => Start::FromData(profile),
            None if self.history(index, is_known).is_empty() => Start::Nothing,
            None => Start::Asked,
        }
    }

    /// The question about an item.
    #[must_use]
    pub fn item_request(&self, index: NodeIndex) -> ChatRequest {
        let bare = bare_item(self.graph.node(index));
        let row = self.row(index).unwrap_or(&bare);
        let InitialProfiles { prompts, words, .. } = self.stage;
        initial_item_request(prompts, *words, row, &self.reviews(index))
    }

    /// The question about a user, with the profiles of the items they chose.
    pub fn user_request<'t>(
        &self,
        index: NodeIndex,
        profile: impl Fn(NodeIndex) -> Option<&'t str>,
    ) -> ChatRequest {
        let history: Vec<_> = self
            .history(index, |item| profile(item).is_some())
            .into_iter()
            .map(|(interaction, item)| (interaction, self.row(item), profile(item)))
            .collect();
        let InitialProfiles { prompts, words, .. } = self.stage;
        initial_user_request(prompts, *words, &history)
    }

    /// The items in that question, in its order.
    pub fn history(
        &self,
        index: NodeIndex,
        is_known: impl Fn(NodeIndex) -> bool,
    ) -> Vec<(&'a Interaction, NodeIndex)> {
        let InitialProfiles {
            sampler,
            interactions,
            ..
        } = self.stage;
        let sample = sampler.sample(self.graph, index, 0, *interactions);
        let read = sample
            .into_iter()
            .map(|neighbor| (self.graph.interaction(neighbor.interaction), neighbor.node));
        read.filter(|(interaction, item)| {
            is_known(*item)
                || speaks(interaction)
                || self.row(*item).is_some_and(|row| row.title.is_some())
        })
        .collect()
    }

    fn row(&self, index: NodeIndex) -> Option<&'a Item> {
        let node = self.graph.node(index);
        match node.side() {
            Side::Item => self.items.get(node.id()).copied(),
            Side::User => None,
        }
    }

    fn reviews(&self, index: NodeIndex) -> Vec<&'a Interaction> {
        let InitialProfiles {
            sampler,
            interactions,
            ..
        } = self.stage;
        let sample = sampler.sample(self.graph, index, 0, *interactions);
        let interactions = sample
            .iter()
            .map(|neighbor| self.graph.interaction(neighbor.interaction));
        interactions
            .filter(|interaction| speaks(interaction))
            .collect()
    }
}

fn speaks(interaction: &Interaction) -> bool {
    interaction
        .review
        .as_deref()
        .is_some_and(|review| !review.trim().is_empty())
}

fn says_nothing(row: &Item) -> bool {
    row.title.is_none() && row.description.is_none() && row.attributes.is_empty()
}

fn bare_item(node: &Node) -> Item {
    Item {
        item: node.id().into(),
        title: None,
        description: None,
        profile: None,
        attributes: Attributes::new(),
    }
}
