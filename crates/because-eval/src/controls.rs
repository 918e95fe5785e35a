use because_core::{Node, Prediction, Profiles};
use serde::{Deserialize, Serialize};

use crate::TextMetrics;
use crate::random::SplitMix64;
use crate::text::{Pair, TextStats};

/// What the same figures are for predictions that know nothing of the pair: explanations share their phrasing, so a
/// good part of any BLEU or ROUGE is form. A figure means something as far as it lies above both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Controls {
    /// The model's own predictions, each held against another pair's reference: what the model's style alone earns.
    pub shuffled: Control,
    /// The item's profile behind a fixed opening: what a text that never saw the user earns.
    pub item_profile: Control,
}

/// One control's figures, or why it has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Control {
    /// How the predictions were made.
    pub made_by: String,
    /// The figures over all pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<TextMetrics>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

const SHUFFLES: u64 = 5;
const OPENING: &str = "The user would enjoy this because";

impl Controls {
    /// Both controls for these predictions; item profiles are those of the layer that the explanations were made from.
    #[must_use]
    pub fn of(pairs: &[Prediction], profiles: &Profiles, seed: u64) -> Self {
        Self {
            shuffled: shuffled(pairs, seed),
            item_profile: item_profile(pairs, profiles),
        }
    }
}

fn shuffled(pairs: &[Prediction], seed: u64) -> Control {
    let made_by = format!(
        "predictions shuffled over the pairs so that none keeps its place, mean of {SHUFFLES} shuffles, seed {seed}"
    );
    let metrics: Vec<_> = (0..SHUFFLES)
        .filter_map(|shuffle| derangement(pairs.len(), &mut SplitMix64::stream(seed, shuffle)))
        .map(|places| {
            let moved: Vec<_> = pairs
                .iter()
                .zip(places)
                .map(|(pair, from)| Pair {
                    prediction: &pairs[from].prediction,
                    reference: &pair.reference,
                })
                .collect();
            TextStats::of_pairs(&moved).metrics()
        })
        .collect();
    let metrics = TextMetrics::mean(&metrics);
    Control {
        made_by,
        unavailable: metrics.is_none().then(|| {
            "fewer than two pairs: there is no other place to move a prediction to".into()
        }),
        metrics,
    }
}

/// A random order in which nothing keeps its place, by Sattolo's algorithm: one cycle through everything, in one pass.
fn derangement(n: usize, random: &mut SplitMix64) -> Option<Vec<usize>> {
    if n < 2 {
        return None;
    }
    let mut places: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        places.swap(last, random.below(last));
    }
    Some(places)
}

fn item_profile(pairs: &[Prediction], profiles: &Profiles) -> Control {
    let known: Vec<Option<&str>> = pairs
        .iter()
        .map(|pair| profiles.summary(&Node::Item(pair.item.clone()?)))
        .collect();
    let with_profile = known.iter().flatten().count();
    let made_by = format!(
        "\"{OPENING}\" and the item's profile of layer {} ({with_profile} of {} pairs have one, the others the opening alone)",
        profiles.layer(),
        pairs.len()
    );
    if with_profile == 0 {
        return Control {
            made_by,
            metrics: None,
            unavailable: Some("no pair names an item with a known profile".into()),
        };
    }
    let texts: Vec<String> = known
        .iter()
        .map(|profile| {
            profile.map_or_else(
                || OPENING.to_owned(),
                |profile| format!("{OPENING} {profile}"),
            )
        })
        .collect();
    let generic: Vec<_> = pairs
        .iter()
        .zip(&texts)
        .map(|(pair, prediction)| Pair {
            prediction,
            reference: &pair.reference,
        })
        .collect();
    Control {
        made_by,
        metrics: Some(TextStats::of_pairs(&generic).metrics()),
        unavailable: None,
    }
}

#[cfg(test)]
mod tests {
    use because_core::{Profile, ProfileRecord, Side};
    use proptest::prelude::*;

    use super::*;

    fn pair(item: &str, prediction: &str, reference: &str) -> Prediction {
        Prediction {
            user: None,
            item: Some(item.into()),
            prediction: prediction.into(),
            reference: reference.into(),
        }
    }

    fn profile(item: &str, summary: &str) -> ProfileRecord {
        ProfileRecord {
            kind: Side::Item,
            id: item.into(),
            layer: 2,
            profile: Profile {
                summary: summary.into(),
                reasoning: None,
            },
            neighbors: Vec::new(),
            model: "test".into(),
            prompt: String::new(),
        }
    }

    #[test]
    fn good_predictions_lose_what_is_about_the_pair_when_shuffled() {
        let pairs = [
            pair("tea", "they like green tea", "they like green tea"),
            pair("bar", "they like loud music", "they like loud music"),
        ];
        let controls = Controls::of(&pairs, &Profiles::new(2), 3);
        let shuffled = controls.shuffled.metrics.unwrap();
        assert_eq!(
            shuffled.rouge.rouge1.fmeasure, 0.5,
            "only the shared opening is left"
        );
        assert_eq!(shuffled.pairs, 2);
        assert!(
            controls.item_profile.unavailable.is_some(),
            "no profile is known"
        );
    }

    #[test]
    fn one_pair_cannot_be_shuffled() {
        let control = Controls::of(&[pair("tea", "a", "a")], &Profiles::new(0), 3).shuffled;
        assert!(control.metrics.is_none());
        assert!(
            control
                .unavailable
                .unwrap()
                .starts_with("fewer than two pairs")
        );
    }

    #[test]
    fn the_item_control_reads_the_profile_and_says_how_many_have_one() {
        let profiles = Profiles::from_records(2, [profile("tea", "it is calm")]);
        let pairs = [
            pair("tea", "x", "The user would enjoy this because it is calm"),
            pair("bar", "x", "The user would enjoy this because"),
        ];
        let control = Controls::of(&pairs, &profiles, 3).item_profile;
        assert!(
            control.made_by.contains("layer 2 (1 of 2 pairs"),
            "{}",
            control.made_by
        );
        assert_eq!(control.metrics.unwrap().rouge.rouge_l.fmeasure, 1.0);
    }

    proptest! {
        #[test]
        fn a_derangement_leaves_nothing_in_place(n in 2_usize..40, seed in any::<u64>()) {
            let places = derangement(n, &mut SplitMix64::stream(seed, 0)).unwrap();
            prop_assert!(places.iter().enumerate().all(|(at, from)| at != *from));
            let mut sorted = places;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
    }
}
