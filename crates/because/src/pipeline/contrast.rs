use std::path::PathBuf;

use because_contrast::{Contrast, Explainer, StudentPrompt};
use because_core::{
    Explanation, ItemId, Node, Reference, Role, SftExample, Side, Split, UserId, jsonl,
};
use because_graph::{BipartiteGraph, EDGE_RANK_VERSION, ItemCosine, NodeIndex};
use because_llm::{ChatModel, ModelId};
use serde_json::json;

use super::{Event, Pipeline, StageReport};
use crate::{Error, Result};

/// Which pairs of a split are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pairs {
    /// The split they come from.
    pub split: Split,
    /// At most so many, drawn by seed; all of them where it is `None`.
    pub limit: Option<usize>,
}

impl Pipeline {
    /// CPEG over some pairs of one split. `explanations.jsonl` keeps the pairs of other splits that it has.
    ///
    /// # Errors
    /// When there are no profiles, no such pairs, or the model can no longer be asked.
    pub async fn contrast(&self, pairs: Pairs) -> Result<StageReport> {
        if pairs.split == Split::Hidden {
            return Err(Error::Empty {
                stage: "contrast",
                reason:
                    "hidden interactions are there not to be known; choose train, valid or test"
                        .into(),
            });
        }
        self.contrast_stage(
            &format!("contrast {}", pairs.split),
            &[pairs],
            Keep::OtherSplits,
        )
        .await
    }

    /// CPEG over the pairs that the settings ask for. Test pairs are explained only where the data brings no reference
    /// explanations.
    ///
    /// # Errors
    /// As [`Pipeline::contrast`].
    pub async fn contrast_all(&self) -> Result<StageReport> {
        let wanted = self.all_pairs()?;
        self.contrast_stage("contrast", &wanted, Keep::Nothing)
            .await
    }

    /// The pairs that the settings ask for.
    pub(super) fn all_pairs(&self) -> Result<Vec<Pairs>> {
        let settings = &self.settings.contrast;
        let mut wanted = vec![
            Pairs {
                split: Split::Train,
                limit: Some(settings.train_limit),
            },
            Pairs {
                split: Split::Valid,
                limit: Some(settings.valid_limit),
            },
        ];
        if self.test_references()?.is_empty() {
            wanted.push(Pairs {
                split: Split::Test,
                limit: Some(settings.test_limit),
            });
        }
        Ok(wanted)
    }

    /// What the explanations depend on beside their inputs.
    pub(super) fn contrast_depends(&self, model: &ModelId, wanted: &[Pairs]) -> serde_json::Value {
        let limits: Vec<_> = wanted
            .iter()
            .map(|pairs| (pairs.split, pairs.limit))
            .collect();
        json!([model, self.contrast_settings(), limits, EDGE_RANK_VERSION])
    }

    pub(super) fn contrast_settings(&self) -> Contrast {
        let settings = &self.settings.contrast;
        Contrast {
            hard: settings.hard,
            random: settings.random,
            max_attempts: settings.max_attempts,
            seed: self.settings.seed,
        }
    }

    async fn contrast_stage(
        &self,
        name: &str,
        wanted: &[Pairs],
        keep: Keep,
    ) -> Result<StageReport> {
        let project = &self.project;
        let profiles = self.last_profiles()?;
        let model = self.model(self.settings.reasoner())?;
        let contrast = self.contrast_settings();
        let depends = self.contrast_depends(&model.id(), wanted);
        let interactions = project.interactions_path();
        let profiles_path = project.profiles_path(profiles.layer());
        let items_path = project.items_path();
        let explain = async |_| {
            let graph = BipartiteGraph::from_project(project)?;
            let mut pairs = Vec::new();
            for wanted in wanted {
                let known = |node: NodeIndex| profiles.summary(&graph.node(node)).is_some();
                pairs.extend(chosen_pairs(&graph, known, *wanted, self.settings.seed));
            }
            if pairs.is_empty() {
                let splits: Vec<_> = wanted.iter().map(|pairs| pairs.split.as_str()).collect();
                return Err(Error::Empty {
                    stage: "contrast",
                    reason: format!(
                        "no pair of split {} has a profile on both sides",
                        splits.join(", ")
                    ),
                });
            }
            let scorer = ItemCosine::new(&graph);
            let explained = Explainer::new(&model)
                .contrast(contrast)
                .concurrency(self.settings.llm.in_flight())
                .stop(self.stop.clone())
                .on_progress(|done, total| {
                    self.tell(&Event::Progress {
                        what: "pairs",
                        done,
                        total,
                    })
                })
                .run(&graph, &scorer, &profiles, &project.items()?, &pairs)
                .await?;
            let detail = detail(&explained.explanations, explained.failed.len());
            let mut all = explained.explanations;
            if keep == Keep::OtherSplits && project.path("explanations.jsonl").exists() {
                let of_these_splits = |explanation: &Explanation| {
                    let split = split_of(&graph, &explanation.user, &explanation.item);
                    split.is_none_or(|split| wanted.iter().any(|pairs| pairs.split == split))
                };
                all.extend(
                    project
                        .explanations()?
                        .into_iter()
                        .filter(|explanation| !of_these_splits(explanation)),
                );
                all.sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
            }
            let path = project.path("explanations.jsonl");
            jsonl::write(&path, &all)?;
            Ok((detail, vec![path]))
        };
        self.stage(
            name,
            &depends,
            &[&interactions, &profiles_path, &items_path],
            explain,
        )
        .await
    }

    /// Turns explanations and references into `sft.{train,valid,test}.jsonl`.
    ///
    /// # Errors
    /// When there are no explanations, or none that may be learnt from.
    pub async fn examples(&self) -> Result<StageReport> {
        let project = &self.project;
        let profiles = self.last_profiles()?;
        let prompt = StudentPrompt::default();
        let include_rejected = self.settings.contrast.include_rejected;
        let depends = json!([prompt.fingerprint(), include_rejected]);
        let inputs = [
            project.interactions_path(),
            project.profiles_path(profiles.layer()),
            project.path("explanations.jsonl"),
            project.items_path(),
            project.references_path(),
        ];
        let inputs: Vec<_> = inputs.iter().map(PathBuf::as_path).collect();
        let write = async |_| {
            let graph = BipartiteGraph::from_project(project)?;
            let items = project.items()?;
            let titles: std::collections::HashMap<&str, &str> = items
                .iter()
                .filter_map(|item| Some((item.item.as_str(), item.title.as_deref()?)))
                .collect();
            let example = |user: &UserId, item: &ItemId, text: &str| -> Option<SftExample> {
                let about_user = profiles.summary(&Node::User(user.clone()))?;
                let about_item = profiles.summary(&Node::Item(item.clone()))?;
                let title = titles.get(item.as_str()).copied();
                Some(prompt.example((user, about_user), (item, title, about_item), text))
            };
            let explanations = project.explanations()?;
            let references = self.test_references()?;
            let mut outputs = Vec::new();
            let mut counts = serde_json::Map::new();
            for split in Split::USED {
                let of_split =
                    |user: &UserId, item: &ItemId| split_of(&graph, user, item) == Some(split);
                let mut examples: Vec<SftExample> =
                    if split == Split::Test && !references.is_empty() {
                        references
                            .iter()
                            .filter_map(|row| example(&row.user, &row.item, &row.explanation))
                            .collect()
                    } else {
                        explanations
                            .iter()
                            .filter(|row| {
                                row.accepted || (include_rejected && !row.explanation.is_empty())
                            })
                            .filter(|row| of_split(&row.user, &row.item))
                            .filter_map(|row| example(&row.user, &row.item, &row.explanation))
                            .collect()
                    };
                examples.sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
                if split == Split::Train && examples.is_empty() {
                    return Err(Error::Empty {
                        stage: "examples",
                        reason: "explanations.jsonl has no accepted explanation of a train pair"
                            .to_owned(),
                    });
                }
                counts.insert(split.to_string(), examples.len().into());
                let path = project.sft_path(split);
                jsonl::write(&path, &examples)?;
                outputs.push(path);
            }
            Ok((counts.into(), outputs))
        };
        self.stage("examples", &depends, &inputs, write).await
    }

    /// The references of the data that lie on test interactions. Those on others are no test: the model may have learnt from
    /// the very interaction.
    fn test_references(&self) -> Result<Vec<Reference>> {
        let mut references = self.project.references()?;
        if !references.is_empty() {
            let graph = BipartiteGraph::from_project(&self.project)?;
            references.retain(|row| split_of(&graph, &row.user, &row.item) == Some(Split::Test));
        }
        Ok(references)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    OtherSplits,
    Nothing,
}

fn split_of(graph: &BipartiteGraph, user: &UserId, item: &ItemId) -> Option<Split> {
    graph.split_of(graph.user(user.as_str())?, graph.item(item.as_str())?)
}

/// The pairs of a split with a profile on both sides: all of them, or a seeded sample, by user and item.
pub(super) fn chosen_pairs(
    graph: &BipartiteGraph,
    is_known: impl Fn(NodeIndex) -> bool,
    wanted: Pairs,
    seed: u64,
) -> Vec<(UserId, ItemId)> {
    let users = graph.nodes(Side::User).filter(|&user| is_known(user));
    let mut pairs: Vec<(u64, NodeIndex, NodeIndex)> = users
        .flat_map(|user| {
            let items = graph.neighbors(user, wanted.split).iter();
            items
                .filter(|&&item| is_known(item))
                .map(move |&item| (graph.edge_rank(seed, 0, user, item), user, item))
        })
        .collect();
    pairs.sort_unstable();
    pairs.truncate(wanted.limit.unwrap_or(usize::MAX));
    // Indices are in id order.
    pairs.sort_unstable_by_key(|&(_, user, item)| (user, item));
    pairs
        .into_iter()
        .map(|(_, user, item)| (graph.id(user).into(), graph.id(item).into()))
        .collect()
}

fn detail(explanations: &[Explanation], failed: usize) -> serde_json::Value {
    let positive_first = |explanation: &Explanation| {
        let first = explanation.picks.first();
        first.is_some_and(|pick| {
            explanation
                .candidates
                .iter()
                .any(|shown| shown.role == Role::Positive && shown.item == *pick)
        })
    };
    json!({
        "pairs": explanations.len(),
        "accepted": explanations.iter().filter(|explanation| explanation.accepted).count(),
        "right_at_once": explanations.iter().filter(|explanation| positive_first(explanation)).count(),
        "answers": explanations.iter().map(|explanation| explanation.attempts).sum::<usize>(),
        "failed": failed,
    })
}
