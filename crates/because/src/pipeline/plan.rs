mod amounts;
mod models;
mod row;
mod survey;
mod texts;

use because_core::Profiles;
use because_graph::{BipartiteGraph, ItemCosine, Reviews};
use because_llm::{ChatModel, ModelId, ModelSpec, Price, Store};
use serde::Serialize;

use super::spending::is_paid;
use super::{Pairs, Pipeline};
use crate::Result;
use crate::journal::{Journal, fingerprint};

pub use amounts::{Amounts, Interval, Taken};
use models::Speaker;
use row::{Row, Sums};
use survey::Survey;

/// What a plan looks at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Whether the profiles are planned; without them, explanations are planned from the profiles there are.
    pub profiles: bool,
    /// Whether the explanations are.
    pub explanations: bool,
    /// Which pairs are explained; those of the settings where it is not said.
    pub pairs: Option<Vec<Pairs>>,
    /// Up to how many calls of a kind are looked at one by one; of more, as many are drawn by seed.
    pub sample: usize,
    /// Seconds that a call takes; what the store has seen, or else a guess, where it is not said.
    pub latency_secs: Option<f64>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            profiles: true,
            explanations: true,
            pairs: None,
            sample: 5000,
            latency_secs: None,
        }
    }
}

/// What a run will ask of models and what that comes to, told without asking anything. Serialised, it is what
/// `because plan --json` prints.
///
/// Prompts are the real ones where what they hold is known (texts of the data, answers in `llm.sqlite`) and have stand-ins of
/// the configured length where it is not. What is answered already costs nothing more: `whole` is the run from its
/// beginning, `left` what is still to be paid.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// Stage by stage, a line for each kind of call.
    pub stages: Vec<StagePlan>,
    /// All of it.
    pub whole: Amounts,
    /// What is not answered yet.
    pub left: Amounts,
    /// What the project has really taken, with failures, repetitions, repairs and calls that this plan does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// The part of `taken` that is no call of this plan: repairs, and calls with other settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_elsewhere: Option<Taken>,
    /// What this plan said of the whole before anything was answered, to compare with `taken`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Amounts>,
    /// Calls at once.
    pub concurrency: usize,
    models: Vec<Speaker>,
    /// What the figures rest on, in words.
    pub notes: Vec<String>,
}

/// One kind of call in a [`Plan`].
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct StagePlan {
    /// Which stage, and which of its calls.
    pub stage: String,
    /// The model that is asked.
    pub model: String,
    /// All of these calls.
    pub whole: Amounts,
    /// Those that are not answered yet.
    pub left: Amounts,
    /// What those that are answered took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// What was said of the whole before anything was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Amounts>,
    /// How many of how many calls were looked at, where that is not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<[usize; 2]>,
}

impl Pipeline {
    /// Tells what a run will cost before it is paid for: calls, tokens, money and hours, stage by stage. Asks no model and
    /// needs no network and no key.
    ///
    /// # Errors
    /// When the project, a price or a tokenizer cannot be read, or there are no pairs to explain.
    pub fn plan(&self, options: &PlanOptions) -> Result<Plan> {
        let graph = BipartiteGraph::from_project(&self.project)?;
        let reviews = match options.profiles {
            true => Reviews::from_project(&self.project, &graph)?,
            false => Reviews::none(),
        };
        let data = (&graph, &reviews);
        let path = self.project.llm_path();
        let store = path.exists().then(|| Store::open(path)).transpose()?;
        let totals = store.as_ref().map(Store::totals).transpose()?;
        let asked_before = totals.filter(|totals| !totals.models.is_empty());

        let plan = self.survey(data, options, store.as_ref())?;
        let Some(totals) = asked_before else {
            return Ok(plan);
        };
        let forecast = self.survey(data, options, None)?;
        let mut plan = plan;
        let prices = self.prices()?;
        let mut taken = Taken {
            usage: totals.usage,
            usd: Some(0.0),
            ..Taken::default()
        };
        for (model, total) in &totals.models {
            taken.calls += total.attempts;
            let cost = self
                .price_of(model, &prices)
                .map(|price| price.cost(&total.usage));
            taken.usd = taken
                .usd
                .zip(cost)
                .map(|(sum, cost)| sum + cost as f64 / 1e9);
        }
        plan.taken_elsewhere = plan
            .stages
            .iter()
            .all(|stage| stage.sampled.is_none())
            .then(|| elsewhere(taken, &plan.stages));
        plan.taken = Some(taken);
        for (stage, before) in plan.stages.iter_mut().zip(forecast.stages) {
            stage.forecast = Some(before.whole);
        }
        plan.forecast = Some(forecast.whole);
        Ok(plan)
    }

    /// Looks at every call, or a sample of each kind, with the answers of this store.
    fn survey(
        &self,
        (graph, reviews): (&BipartiteGraph, &Reviews),
        options: &PlanOptions,
        store: Option<&Store>,
    ) -> Result<Plan> {
        let settings = &self.settings.profile;
        let (users, items) = (self.project.users()?, self.project.items()?);
        let [writer, reasoner] = [&self.settings.llm.model, self.settings.reasoner()];
        let opened = self.unasked_model(writer, store)?;
        let writer_id = opened.id();
        let reasoner_id = if writer == reasoner {
            writer_id.clone()
        } else {
            self.unasked_model(reasoner, store)?.id()
        };
        let mut speakers = vec![self.speaker(writer, &writer_id, options)?];
        if reasoner_id != writer_id {
            speakers.push(self.speaker(reasoner, &reasoner_id, options)?);
        }
        let explains = speakers.len() - 1;

        let written = match options.profiles {
            true => self.written_layer(0, &writer_id, store)?,
            false => None,
        };
        let of_data = self.sampler_by_data(graph, &users, &items);
        let of_messages = written
            .as_ref()
            .map(|written| self.sampler_by_profiles(graph, written));
        let initial = self.initial(&opened, &of_data);
        let messages = self.messages(&opened, of_messages.as_ref().unwrap_or(&of_data));
        let calls = initial.calls(graph, reviews, &users, &items);
        let stand_ins = [settings.words, settings.shared_words].map(survey::stand_in);
        let mut survey = Survey::new(
            (graph, &calls, &messages),
            (&writer_id, store),
            (&stand_ins[0], &stand_ins[1]),
            (options.sample, self.settings.seed),
            &speakers[0].tokens,
        );
        let words = (settings.words, settings.shared_words);
        let mut profiles_done = true;
        if options.profiles {
            let mut file = written;
            profiles_done = file.is_some();
            survey.initial(file.take(), words)?;
            for layer in 1..=settings.layers {
                if profiles_done {
                    file = self.written_layer(layer, &writer_id, store)?;
                }
                profiles_done = file.is_some();
                survey.messages(file.take(), words)?;
            }
        } else {
            survey.profiles(self.last_profiles()?);
        }
        let by_writer = survey.rows.len();
        if options.explanations {
            let scorer = ItemCosine::new(graph);
            let wanted = match &options.pairs {
                Some(pairs) => pairs.clone(),
                None => self.all_pairs()?,
            };
            let done = profiles_done
                && store.is_some()
                && self.contrast_done(&reasoner_id, &wanted, options.pairs.is_some())?;
            survey.explanations(
                (self.contrast_settings(), &wanted),
                (&reasoner_id, &speakers[explains].tokens),
                &scorer,
                &items,
                done,
            )?;
        }
        let ids = [writer_id.clone(), reasoner_id.clone()];
        let sight = survey.finish(&ids[..=explains])?;
        let rows = sight.rows;
        for (at, speaker) in speakers.iter_mut().enumerate() {
            let own = |place: usize| (if place < by_writer { 0 } else { explains }) == at;
            let rows = rows.iter().enumerate().filter(|(place, _)| own(*place));
            speaker.learn(rows.map(|(_, row)| row));
            speaker.saw(&sight.paid[at]);
        }
        let mut plan = Plan {
            stages: Vec::new(),
            whole: Amounts::nothing(),
            left: Amounts::nothing(),
            taken: None,
            taken_elsewhere: None,
            forecast: None,
            concurrency: self.settings.llm.concurrency,
            models: Vec::new(),
            notes: Vec::new(),
        };
        let prices = self.prices()?;
        for (place, row) in rows.iter().enumerate() {
            let (speaker, rows) = match place < by_writer {
                true => (&speakers[0], &rows[..by_writer]),
                false => (&speakers[explains], &rows[by_writer..]),
            };
            let sums = Sums {
                speaker,
                rows,
                profile_stand_in: sight.profile_stand_in,
                profile: sight.profile,
                shared_stand_in: sight.shared_stand_in,
                shared: sight.shared,
                feedback: sight.feedback,
            };
            let (whole, left) = row.amounts(&sums);
            plan.whole = plan.whole.plus(whole);
            plan.left = plan.left.plus(left);
            let sampled = (row.looked < row.asked).then_some([row.looked, row.asked]);
            let price = self.price_of(&speaker.model, &prices);
            plan.stages.push(StagePlan {
                stage: row.stage.clone(),
                model: speaker.model.clone(),
                whole: whole.whole(),
                left: left.whole(),
                taken: (row.paid.calls > 0 && sampled.is_none()).then(|| Taken {
                    calls: row.paid.calls,
                    usage: row.paid.usage,
                    usd: price.map(|price| price.cost(&row.paid.usage) as f64 / 1e9),
                }),
                forecast: None,
                sampled,
            });
        }
        plan.whole = plan.whole.whole();
        plan.left = plan.left.whole();
        plan.notes = self.notes(&speakers, &plan);
        plan.models = speakers;
        Ok(plan)
    }

    fn speaker(&self, spec: &ModelSpec, id: &ModelId, options: &PlanOptions) -> Result<Speaker> {
        let llm = &self.settings.llm;
        let price = match is_paid(spec) {
            true => self.prices()?.get(&id.model).cloned(),
            false => Some(Price::free()),
        };
        Ok(Speaker::new(
            id,
            self.counter(spec, &id.model)?,
            price,
            (options, llm),
        ))
    }

    /// What a model that the project has asked costs: nothing where it is none of a server's.
    fn price_of(&self, model: &str, prices: &because_llm::PriceTable) -> Option<Price> {
        let paid = [&self.settings.llm.model, self.settings.reasoner()]
            .iter()
            .any(|spec| matches!(spec, ModelSpec::OpenAi { model: name, .. } if name == model));
        match prices.get(model) {
            Some(price) => Some(price.clone()),
            None if paid => None,
            None => Some(Price::free()),
        }
    }

    /// The profiles of a layer whose stage is done.
    fn written_layer(
        &self,
        layer: usize,
        model: &ModelId,
        store: Option<&Store>,
    ) -> Result<Option<Profiles>> {
        let project = &self.project;
        let path = project.profiles_path(layer);
        if store.is_none() || !path.exists() {
            return Ok(None);
        }
        let interactions = project.interactions_path();
        let [first, second] = match layer {
            0 => [project.users_path(), project.items_path()],
            _ => [0, layer - 1].map(|layer| project.profiles_path(layer)),
        };
        let depends = match layer {
            0 => self.initial_depends(model),
            _ => self.message_depends(model),
        };
        let name = format!("profile layer {layer}");
        let print = fingerprint(&name, &depends, &[&interactions, &first, &second])?;
        let done = Journal::open(project)?.is_done(project, &name, &print)?;
        Ok(done.then(|| project.profiles(layer)).transpose()?)
    }

    fn contrast_done(&self, model: &ModelId, wanted: &[Pairs], one: bool) -> Result<bool> {
        let project = &self.project;
        let Some(layer) = project.last_layer() else {
            return Ok(false);
        };
        let name = match wanted {
            [pairs] if one => format!("contrast {}", pairs.split),
            _ => "contrast".to_owned(),
        };
        let inputs = [
            project.interactions_path(),
            project.profiles_path(layer),
            project.items_path(),
        ];
        let inputs: Vec<_> = inputs.iter().map(std::path::PathBuf::as_path).collect();
        let print = fingerprint(&name, &self.contrast_depends(model, wanted), &inputs)?;
        Ok(Journal::open(project)?.is_done(project, &name, &print)?)
    }

    fn notes(&self, speakers: &[Speaker], plan: &Plan) -> Vec<String> {
        let mut notes: Vec<String> = speakers.iter().map(Speaker::said).collect();
        if plan.stages.iter().any(|stage| stage.sampled.is_some()) {
            notes.push(format!(
                "where there are many calls, some were drawn by seed {} and the rest goes by them",
                self.settings.seed
            ));
        }
        notes.push(
            "repetitions of failed calls and repairs of answers that do not fit come on top".into(),
        );
        notes
    }
}

/// What was taken beside the calls of these stages.
fn elsewhere(all: Taken, stages: &[StagePlan]) -> Taken {
    let mut rest = all;
    for taken in stages.iter().filter_map(|stage| stage.taken.as_ref()) {
        let (sum, part) = (&mut rest.usage, &taken.usage);
        rest.calls = rest.calls.saturating_sub(taken.calls);
        for (sum, part) in [
            (&mut sum.prompt_tokens, part.prompt_tokens),
            (&mut sum.completion_tokens, part.completion_tokens),
            (&mut sum.cached_tokens, part.cached_tokens),
            (&mut sum.reasoning_tokens, part.reasoning_tokens),
        ] {
            *sum = sum.saturating_sub(part);
        }
        rest.usd = rest
            .usd
            .zip(taken.usd)
            .map(|(sum, part)| (sum - part).max(0.0));
    }
    rest
}
