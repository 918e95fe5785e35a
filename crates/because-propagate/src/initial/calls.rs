use std::collections::HashMap;

use because_core::{Attributes, Interaction, Item, Side, User};
use because_graph::{BipartiteGraph, Neighbor, NodeIndex, Reviews};
use because_llm::ChatRequest;

use super::InitialProfiles;
use crate::Result;
use crate::requests::{initial_item_request, initial_user_request};

/// What the calls of layer 0 are made of: pure functions of the data, so that they can be looked at without being made.
/// Made by [`InitialProfiles::calls`].
#[derive(Debug)]
pub struct InitialCalls<'a> {
    stage: &'a InitialProfiles<'a>,
    graph: &'a BipartiteGraph,
    reviews: &'a Reviews,
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
        reviews: &'a Reviews,
        users: &'a [User],
        items: &'a [Item],
    ) -> Self {
        let profiles = users
            .iter()
            .filter_map(|user| Some((user.user.as_str(), user.profile.as_deref()?.trim())));
        Self {
            stage,
            graph,
            reviews,
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
            None if self.reviewed(index).next().is_none() && row.is_none_or(says_nothing) => {
                Start::Nothing
            }
            None => Start::Asked,
        }
    }

    /// How a user comes by theirs; `is_known` tells of which items there is a profile.
    pub fn user(&self, index: NodeIndex, is_known: impl Fn(NodeIndex) -> bool) -> Start<'a> {
        match self.given.get(self.graph.id(index)) {
            Some(profile) => Start::FromData(profile),
            None if self.history(index, is_known).is_empty() => Start::Nothing,
            None => Start::Asked,
        }
    }

    /// The question about an item.
    ///
    /// # Errors
    /// When a review cannot be read.
    pub fn item_request(&self, index: NodeIndex) -> Result<ChatRequest> {
        let bare = bare_item(self.graph.id(index));
        let row = self.row(index).unwrap_or(&bare);
        let reviews = self
            .reviewed(index)
            .map(|neighbor| self.interaction(neighbor))
            .collect::<Result<Vec<_>>>()?;
        let InitialProfiles { prompts, words, .. } = self.stage;
        Ok(initial_item_request(prompts, *words, row, &reviews))
    }

    /// The question about a user, with the profiles of the items they chose.
    ///
    /// # Errors
    /// When a review cannot be read.
    pub fn user_request<'t>(
        &self,
        index: NodeIndex,
        profile: impl Fn(NodeIndex) -> Option<&'t str>,
    ) -> Result<ChatRequest> {
        let history = self.history(index, |item| profile(item).is_some());
        let interactions = history
            .iter()
            .map(|&neighbor| self.interaction(neighbor))
            .collect::<Result<Vec<_>>>()?;
        let history: Vec<_> = interactions
            .iter()
            .zip(history)
            .map(|(interaction, item)| (interaction, self.row(item.node), profile(item.node)))
            .collect();
        let InitialProfiles { prompts, words, .. } = self.stage;
        Ok(initial_user_request(prompts, *words, &history))
    }

    /// The items in that question, in its order.
    pub fn history(&self, index: NodeIndex, is_known: impl Fn(NodeIndex) -> bool) -> Vec<Neighbor> {
        let tells = |neighbor: &Neighbor| {
            is_known(neighbor.node)
                || self.reviews.has(neighbor.edge)
                || self
                    .row(neighbor.node)
                    .is_some_and(|row| row.title.is_some())
        };
        self.sample(index).filter(tells).collect()
    }

    fn row(&self, index: NodeIndex) -> Option<&'a Item> {
        match self.graph.side(index) {
            Side::Item => self.items.get(self.graph.id(index)).copied(),
            Side::User => None,
        }
    }

    /// Those of a node's sample who wrote something.
    fn reviewed(&self, index: NodeIndex) -> impl Iterator<Item = Neighbor> {
        self.sample(index)
            .filter(|neighbor| self.reviews.has(neighbor.edge))
    }

    fn sample(&self, index: NodeIndex) -> impl Iterator<Item = Neighbor> + use<> {
        let InitialProfiles {
            sampler,
            interactions,
            ..
        } = self.stage;
        sampler
            .sample(self.graph, index, 0, *interactions)
            .into_iter()
    }

    fn interaction(&self, neighbor: Neighbor) -> Result<Interaction> {
        Ok(self.reviews.interaction(self.graph, neighbor.edge)?)
    }
}

fn says_nothing(row: &Item) -> bool {
    row.title.is_none() && row.description.is_none() && row.attributes.is_empty()
}

fn bare_item(id: &str) -> Item {
    Item {
        item: id.into(),
        title: None,
        description: None,
        profile: None,
        attributes: Attributes::new(),
    }
}
