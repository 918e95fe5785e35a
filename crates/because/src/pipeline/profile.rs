use std::borrow::Cow;
use std::collections::HashMap;

use because_core::{Item, Node, Profiles, User, jsonl};
use because_graph::{BipartiteGraph, EDGE_RANK_VERSION, NeighborSampler, Reviews, Sampling};
use because_llm::{ChatModel, ModelId};
use because_propagate::{InitialProfiles, MessagePassing, WordLimits, Written};
use serde_json::json;

use super::{Event, Pipeline, StageReport};
use crate::Result;

impl Pipeline {
    /// PGHIS: writes `profiles.layer0.jsonl` and one file for each layer after it.
    ///
    /// # Errors
    /// When the project cannot be read or the model can no longer be asked.
    pub async fn profile(&self) -> Result<Vec<StageReport>> {
        let project = &self.project;
        let settings = &self.settings.profile;
        let graph = BipartiteGraph::from_project(project)?;
        let model = self.model(&self.settings.llm.model)?;

        let interactions = project.interactions_path();
        let (users, items) = (project.users_path(), project.items_path());
        let depends = self.initial_depends(&model.id());
        let written = async |_| {
            let reviews = Reviews::from_project(project, &graph)?;
            let (users, items) = (project.users()?, project.items()?);
            let sampler = self.sampler_by_data(&graph, &users, &items);
            let written = self
                .initial(&model, &sampler)
                .concurrency(self.settings.llm.in_flight())
                .stop(self.stop.clone())
                .on_progress(|progress| self.progress(progress))
                .run(&graph, &reviews, &users, &items)
                .await?;
            self.save_layer(&written)
        };
        let mut reports = vec![
            self.stage(
                "profile layer 0",
                &depends,
                &[&interactions, &users, &items],
                written,
            )
            .await?,
        ];

        let depends = self.message_depends(&model.id());
        for layer in 1..=settings.layers {
            let [initial, below] = [0, layer - 1].map(|layer| project.profiles_path(layer));
            let written = async |_| {
                let initial = project.profiles(0)?;
                let sampler = self.sampler_by_profiles(&graph, &initial);
                let written = self
                    .messages(&model, &sampler)
                    .concurrency(self.settings.llm.in_flight())
                    .stop(self.stop.clone())
                    .on_progress(|progress| self.progress(progress))
                    .layer(&graph, &initial, &project.profiles(layer - 1)?)
                    .await?;
                self.save_layer(&written)
            };
            let name = format!("profile layer {layer}");
            reports.push(
                self.stage(&name, &depends, &[&interactions, &initial, &below], written)
                    .await?,
            );
        }
        self.forget_layers_above(settings.layers)?;
        Ok(reports)
    }

    /// Layer 0 as the settings have it, not yet told how to run.
    pub(super) fn initial<'a>(
        &self,
        model: &'a dyn ChatModel,
        sampler: &'a dyn NeighborSampler,
    ) -> InitialProfiles<'a> {
        InitialProfiles::new(model)
            .sampler(sampler)
            .interactions(self.settings.profile.interactions)
            .words(self.words())
    }

    /// The layers after it.
    pub(super) fn messages<'a>(
        &self,
        model: &'a dyn ChatModel,
        sampler: &'a dyn NeighborSampler,
    ) -> MessagePassing<'a> {
        MessagePassing::new(model)
            .neighbors(self.settings.profile.neighbors)
            .sampler(sampler)
            .words(self.words())
    }

    /// The sampler of layer 0, when nothing is known but the data: relevance goes by what items say of themselves and by
    /// the profiles that users bring.
    pub(super) fn sampler_by_data(
        &self,
        graph: &BipartiteGraph,
        users: &[User],
        items: &[Item],
    ) -> Box<dyn NeighborSampler> {
        let sampling = self.settings.profile.sampling;
        let mut texts: HashMap<Node, Cow<'_, str>> = HashMap::new();
        if sampling == Sampling::Relevance {
            let of_users = users.iter().filter_map(|row| {
                let profile = row.profile.as_deref()?;
                Some((Node::User(row.user.clone()), profile.into()))
            });
            let of_items = items.iter().map(|row| {
                let attributes = row.attributes.values().map(ToString::to_string);
                let said = [&row.title, &row.description, &row.profile].into_iter();
                let said: Vec<String> = said.flatten().cloned().chain(attributes).collect();
                (Node::Item(row.item.clone()), said.join(" ").into())
            });
            texts = of_users.chain(of_items).collect();
        }
        sampling.sampler(self.settings.seed, graph, |index| {
            texts.remove(&graph.node(index))
        })
    }

    /// The sampler of the layers after it: relevance goes by the initial profiles, which no layer changes.
    pub(super) fn sampler_by_profiles(
        &self,
        graph: &BipartiteGraph,
        initial: &Profiles,
    ) -> Box<dyn NeighborSampler> {
        let sampling = self.settings.profile.sampling;
        sampling.sampler(self.settings.seed, graph, |index| {
            initial.summary(&graph.node(index)).map(Cow::Borrowed)
        })
    }

    fn words(&self) -> WordLimits {
        let mut words = WordLimits::default();
        words.profile = self.settings.profile.words;
        words.shared = self.settings.profile.shared_words;
        words
    }

    /// What layer 0 depends on beside its inputs.
    pub(super) fn initial_depends(&self, model: &ModelId) -> serde_json::Value {
        let settings = &self.settings.profile;
        json!([
            self.settings.seed,
            model,
            settings.interactions,
            settings.sampling,
            EDGE_RANK_VERSION,
            settings.words
        ])
    }

    /// What the layers after it depend on beside theirs.
    pub(super) fn message_depends(&self, model: &ModelId) -> serde_json::Value {
        let settings = &self.settings.profile;
        json!([
            self.settings.seed,
            model,
            settings.neighbors,
            settings.sampling,
            EDGE_RANK_VERSION,
            settings.words,
            settings.shared_words,
        ])
    }

    fn save_layer(
        &self,
        written: &Written,
    ) -> Result<(serde_json::Value, Vec<std::path::PathBuf>)> {
        let profiles = &written.profiles;
        let path = self.project.profiles_path(profiles.layer());
        jsonl::write(&path, profiles.records())?;
        let detail = json!({
            "profiles": profiles.len(),
            "unknown": profiles.records().filter(|record| !record.is_known()).count(),
            "kept_text_of_the_layer_below": written.fallbacks.len(),
        });
        Ok((detail, vec![path]))
    }

    /// A run with fewer layers than the last one must not leave the old upper layers to be taken for its result.
    fn forget_layers_above(&self, layers: usize) -> Result<()> {
        for layer in layers + 1.. {
            let path = self.project.profiles_path(layer);
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(because_core::Error::io("remove", &path, error).into()),
            }
        }
        Ok(())
    }

    fn progress(&self, progress: because_propagate::Progress<'_>) {
        self.tell(&Event::Progress {
            what: progress.stage,
            done: progress.done,
            total: progress.total,
        });
    }
}
