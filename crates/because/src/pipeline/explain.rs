use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use because_contrast::StudentPrompt;
use because_core::{ItemId, Message, Node, Profiles, Split, UserId, jsonl};
use because_eval::{Evidence, evidence};
use because_graph::BipartiteGraph;
use because_llm::ChatModel;
use because_tune::{Ask, Decoding, Finish, Generation, TuneError, TunedModel};
use serde::Serialize;
use serde_json::Value;

use super::answers::answer_each;
use super::contrast::chosen_pairs;
use super::tune::base_of;
use super::{Event, Pairs, Pipeline};
use crate::{Error, Result};

/// One explanation of the tuned model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explained {
    /// Whom it is for.
    pub user: UserId,
    /// What it is about.
    pub item: ItemId,
    /// The item's name, if it has one.
    pub title: Option<String>,
    /// Why the item is recommended.
    pub explanation: String,
    /// What each sentence rests on.
    pub evidence: Vec<Evidence>,
    /// The profile of the user that the model read.
    pub user_profile: String,
    /// The profile of the item that the model read.
    pub item_profile: String,
    /// The folder of the base, or its hub id.
    pub base: PathBuf,
    /// The folder of the adapter.
    pub adapter: PathBuf,
}

/// What [`Pipeline::explain_split`] did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExplainedSplit {
    /// The file with the explanations.
    pub out: PathBuf,
    /// The pairs asked for.
    pub pairs: usize,
    /// Of these, those that were explained now.
    pub explanations: usize,
    /// Those that were there already, made by the same model from the same prompt.
    pub kept: usize,
    /// Those that could not be explained, as where a prompt is longer than the model's context; they are not in the file, and
    /// an event names each.
    pub failed: usize,
    /// Tokens of the explanations made now.
    pub tokens: u64,
    /// Over the time it took to read the prompts and write them, without loading the model.
    pub tokens_per_second: f64,
    /// How much of the prompts had been computed for another pair.
    pub cached_share: f64,
    /// Seconds from a question to the first token of its answer, waiting for a place in the batch included, for half of them.
    pub first_token_seconds: f64,
    /// Seconds in all.
    pub seconds: f64,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    user: &'a UserId,
    item: &'a ItemId,
    explanation: &'a str,
    evidence: Vec<Evidence>,
    finish: Finish,
    tokens: usize,
    /// Of model, prompt and decoding: with another of these the pair is explained again.
    key: &'a str,
}

/// What a pair is explained from.
struct Question<'a> {
    user: UserId,
    item: ItemId,
    profiles: [&'a str; 2],
    messages: Vec<Message>,
    key: String,
}

impl Pipeline {
    /// Explains one pair with the tuned model, from the profiles of the last layer. `base` and `adapter` stand in for the one
    /// that the adapter was trained on and for `adapter/`.
    ///
    /// # Errors
    /// When one of the two has no profile, or the base or adapter cannot be read.
    pub fn explain(
        &self,
        user: &UserId,
        item: &ItemId,
        base: Option<&Path>,
        adapter: Option<&Path>,
    ) -> Result<Explained> {
        let profiles = self.last_profiles()?;
        let profile = |node: Node| match profiles.summary(&node) {
            Some(summary) => Ok(summary.to_owned()),
            None => Err(Error::Unknown(node)),
        };
        let user_profile = profile(Node::User(user.clone()))?;
        let item_profile = profile(Node::Item(item.clone()))?;
        let title = self
            .project
            .items()?
            .into_iter()
            .find(|row| row.item == *item)
            .and_then(|row| row.title);
        let (base, adapter) = self.student(base, adapter)?;
        let messages =
            StudentPrompt::default().messages(&user_profile, title.as_deref(), &item_profile);
        let model = TunedModel::load(&base, Some(&adapter))?;
        let answer = model.generate(&messages, &self.settings.evaluate.decoding())?;
        let explanation = answer.text.trim().to_owned();
        Ok(Explained {
            user: user.clone(),
            item: item.clone(),
            title,
            evidence: evidence(&explanation, &user_profile, &item_profile),
            explanation,
            user_profile,
            item_profile,
            base,
            adapter,
        })
    }

    /// Explains the pairs of a split that have profiles on both sides, into a file of JSON Lines that grows as explanations come:
    /// `user`, `item`, `explanation`, `evidence`, `finish`, `tokens` and `key`. What the file has already is not made again,
    /// unless the model, the prompt or the settings differ; then its line goes only when all others are there. At the end
    /// the pairs asked for stand in the order of their ids, and behind them those that the file had beside them. A pair that
    /// cannot be explained is told of and counted, and the others go on.
    ///
    /// # Errors
    /// As [`Pipeline::explain`]; when there is no such pair, none can be explained, or the file is there and is none of these;
    /// [`Error::Stopped`] when a stop is requested, with whole lines in the file.
    pub async fn explain_split(
        &self,
        pairs: Pairs,
        out: &Path,
        base: Option<&Path>,
        adapter: Option<&Path>,
    ) -> Result<ExplainedSplit> {
        let begun = Instant::now();
        let (base, adapter) = self.student(base, adapter)?;
        let profiles = self.last_profiles()?;
        let model = TunedModel::load(&base, Some(&adapter))?;
        let decoding = self.settings.evaluate.decoding();
        let questions = self.questions(pairs, &profiles, &model, &decoding)?;

        let Known {
            mut lines,
            others,
            stale,
        } = Known::read(out, &questions)?;
        let kept = lines.iter().flatten().count();
        // Without what a kill has torn. What is out of date is better than nothing as long as nothing else is there.
        let stale = stale.iter().zip(&lines).filter(|(_, line)| line.is_none());
        let stale: Vec<String> = stale.filter_map(|(stale, _)| stale.clone()).collect();
        write_lines(out, lines.iter().flatten().chain(&others).chain(&stale))?;
        let fail = |source| because_core::Error::io("write", out, source);
        let mut file = OpenOptions::new().append(true).open(out).map_err(fail)?;
        let total = questions.len();
        let progress = |done| {
            let what = "explanations";
            self.tell(&Event::Progress { what, done, total });
        };
        progress(kept);
        let left: Vec<usize> = (0..total).filter(|&at| lines[at].is_none()).collect();
        let asks = left.iter().map(|&at| {
            let ask = Ask::chat(questions[at].messages.clone(), decoding.clone());
            (at, ask)
        });
        let mut seen = Seen::default();
        let mut first_failure = None;
        let mut failed = 0;
        let answering = Instant::now();
        let ended = answer_each(&model, asks, &self.stop, |at, answer| {
            let question = &questions[at];
            match answer {
                Ok(generation) => {
                    let line = line(question, &generation);
                    file.write_all(format!("{line}\n").as_bytes())
                        .map_err(fail)?;
                    lines[at] = Some(line);
                    seen.note(&generation);
                }
                Err(error) => {
                    self.tell_failed(
                        "explain",
                        Some(&question.user),
                        Some(&question.item),
                        &error,
                    );
                    failed += 1;
                    first_failure.get_or_insert(error);
                }
            }
            progress(kept + seen.first_tokens.len() + failed);
            Ok(())
        });
        let ended = ended.await;
        let answered_in = answering.elapsed().as_secs_f64();
        file.sync_all().map_err(fail)?;
        let explanations = seen.first_tokens.len();
        match ended {
            Err(Error::Stopped(_)) => {
                let done = kept + explanations;
                let reached = format!("after {done} of {total} explanations");
                return Err(Error::Stopped(reached));
            }
            ended => ended?,
        }
        if let Some(error) = first_failure.filter(|_| kept + explanations == 0) {
            return Err(error.into());
        }
        write_lines(out, lines.iter().flatten().chain(&others))?;
        Ok(ExplainedSplit {
            out: out.to_owned(),
            pairs: total,
            explanations,
            kept,
            failed,
            tokens: seen.tokens,
            tokens_per_second: seen.tokens as f64 / answered_in.max(1e-9),
            cached_share: seen.cached as f64 / (seen.prompts as f64).max(1.0),
            first_token_seconds: seen.median(),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Tells of a pair that a stage went on without.
    pub(super) fn tell_failed(
        &self,
        what: &str,
        user: Option<&UserId>,
        item: Option<&ItemId>,
        error: &TuneError,
    ) {
        let name = |id: Option<&str>| id.unwrap_or("unknown").to_owned();
        let user = name(user.map(UserId::as_str));
        let item = name(item.map(ItemId::as_str));
        let text = format!("user {user}, item {item}: {error}");
        self.tell(&Event::Note { what, text });
    }

    /// Base and adapter, where they are not said the project's own.
    fn student(&self, base: Option<&Path>, adapter: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
        let adapter = adapter.map_or_else(|| self.project.path("adapter"), Path::to_owned);
        if !adapter.is_dir() {
            let hint = "train it with `because train` or `because run`";
            let path = adapter;
            return Err(because_core::Error::Missing { path, hint }.into());
        }
        let base = match base {
            Some(base) => base.to_owned(),
            None => base_of(&adapter)?,
        };
        Ok((base, adapter))
    }

    /// Those of one user follow each other: they begin alike.
    fn questions<'a>(
        &self,
        pairs: Pairs,
        profiles: &'a Profiles,
        model: &TunedModel,
        decoding: &Decoding,
    ) -> Result<Vec<Question<'a>>> {
        let graph = BipartiteGraph::from_project(&self.project)?;
        let known = |node| profiles.summary(&graph.node(node)).is_some();
        let chosen = match pairs.split {
            Split::Hidden => Vec::new(),
            _ => chosen_pairs(&graph, known, pairs, self.settings.seed),
        };
        if chosen.is_empty() {
            return Err(Error::Empty {
                stage: "explain",
                reason: format!(
                    "no pair of split {} has a profile on both sides",
                    pairs.split
                ),
            });
        }
        let items = self.project.items()?;
        let titles: HashMap<&str, &str> = items
            .iter()
            .filter_map(|item| Some((item.item.as_str(), item.title.as_deref()?)))
            .collect();
        let (prompt, id) = (StudentPrompt::default(), model.id());
        let question = |(user, item): (UserId, ItemId)| {
            let of = |node: Node| profiles.summary(&node).unwrap_or_default();
            let sides = [Node::User(user.clone()), Node::Item(item.clone())].map(of);
            let title = titles.get(item.as_str()).copied();
            let messages = prompt.messages(sides[0], title, sides[1]);
            let whole = serde_json::to_vec(&(&id, decoding, &messages)).unwrap_or_default();
            Question {
                key: blake3::hash(&whole).to_hex()[..16].to_owned(),
                profiles: sides,
                user,
                item,
                messages,
            }
        };
        Ok(chosen.into_iter().map(question).collect())
    }
}

/// What the answers took.
#[derive(Default)]
struct Seen {
    tokens: u64,
    prompts: u64,
    cached: u64,
    first_tokens: Vec<f64>,
}

impl Seen {
    fn note(&mut self, generation: &Generation) {
        self.tokens += generation.token_ids.len() as u64;
        self.prompts += generation.prompt_tokens as u64;
        self.cached += generation.cached_tokens as u64;
        self.first_tokens.push(generation.first_token_seconds);
    }

    fn median(&mut self) -> f64 {
        self.first_tokens.sort_unstable_by(f64::total_cmp);
        let middle = self.first_tokens.get(self.first_tokens.len() / 2);
        middle.copied().unwrap_or(0.0)
    }
}

fn line(question: &Question<'_>, generation: &Generation) -> String {
    let explanation = generation.text.trim();
    let [user_profile, item_profile] = question.profiles;
    let line = Line {
        user: &question.user,
        item: &question.item,
        explanation,
        evidence: evidence(explanation, user_profile, item_profile),
        finish: generation.finish,
        tokens: generation.token_ids.len(),
        key: &question.key,
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// What a file has already.
struct Known {
    /// The lines that answer the questions, in their places.
    lines: Vec<Option<String>>,
    /// Those of pairs that are not asked for this time.
    others: Vec<String>,
    /// Those that answer them in another way, in the places of the questions.
    stale: Vec<Option<String>>,
}

impl Known {
    /// A last line that a kill has torn is passed over.
    fn read(path: &Path, questions: &[Question<'_>]) -> Result<Self> {
        let mut known = Self {
            lines: vec![None; questions.len()],
            others: Vec::new(),
            stale: vec![None; questions.len()],
        };
        if !path.exists() {
            return Ok(known);
        }
        let places: HashMap<(&str, &str), usize> = questions
            .iter()
            .enumerate()
            .map(|(at, question)| ((question.user.as_str(), question.item.as_str()), at))
            .collect();
        let fail = |source| because_core::Error::io("read", path, source);
        let mut reader = std::io::BufReader::new(File::open(path).map_err(fail)?);
        let mut number = 0;
        loop {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).map_err(fail)?;
            if line.pop_if(|last| *last == b'\n').is_none() {
                return Ok(known);
            }
            number += 1;
            let json: Value = serde_json::from_slice(&line).unwrap_or_default();
            let field = |name: &str| json[name].as_str();
            let (Some(user), Some(item), Some(key)) = (field("user"), field("item"), field("key"))
            else {
                return Err(because_core::Error::Line {
                    path: path.to_owned(),
                    line: number,
                    reason: "is no explanation of this command; say another --out".into(),
                }
                .into());
            };
            let place = places.get(&(user, item)).copied();
            let text = || String::from_utf8_lossy(&line).into_owned();
            match place {
                Some(at) if questions[at].key == key => known.lines[at] = Some(text()),
                Some(at) => known.stale[at] = Some(text()),
                None => known.others.push(text()),
            }
        }
    }
}

fn write_lines<'a>(path: &Path, lines: impl Iterator<Item = &'a String>) -> Result<()> {
    jsonl::write_atomic(path, |out| {
        for line in lines {
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_out_of_date_is_kept_apart_from_what_is_asked_for() {
        let question = |item: &str| Question {
            user: "u".into(),
            item: item.into(),
            profiles: ["", ""],
            messages: Vec::new(),
            key: "new".into(),
        };
        let line =
            |item: &str, key: &str| format!(r#"{{"user":"u","item":"{item}","key":"{key}"}}"#);
        let written = [line("a", "old"), line("b", "new"), line("c", "old")];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("explained.jsonl");
        std::fs::write(&path, written.join("\n") + "\n{\"user\":").unwrap();
        let [old, new, other] = written.map(Some);
        let known = Known::read(&path, &["a", "b", "d"].map(question)).unwrap();
        assert_eq!(known.lines, [None, new, None]);
        assert_eq!(known.stale, [old, None, None]);
        assert_eq!(known.others, [other.unwrap()]);
    }
}
