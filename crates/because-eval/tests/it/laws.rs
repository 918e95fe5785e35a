use because_core::Prediction;
use because_eval::{TextMetrics, TextStats};
use proptest::prelude::*;

fn pair((prediction, reference): (String, String)) -> Prediction {
    Prediction {
        user: None,
        item: None,
        prediction,
        reference,
    }
}

/// Words of a small vocabulary, so that texts meet, and any character at all, so that nothing is taken for granted.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::collection::vec(
            "(the|user|likes|tea|and|3\\.5|well-made|running|caf\u{e9}),?",
            0..20
        )
        .prop_map(|words| words.join(" ")),
        "\\PC{0,30}",
        proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
    ]
}

fn pairs() -> impl Strategy<Value = Vec<Prediction>> {
    proptest::collection::vec((text(), text()).prop_map(pair), 0..12)
}

fn scores(metrics: &TextMetrics) -> Vec<(f64, f64)> {
    let mut scores = vec![
        (metrics.chrf, 100.0),
        (metrics.unique_sentence_ratio, 1.0),
        (metrics.distinct.distinct1, 1.0),
        (metrics.distinct.distinct2, 1.0),
    ];
    for bleu in [metrics.bleu.tok_13a, metrics.bleu.tok_none] {
        scores.extend([bleu.bleu1, bleu.bleu2, bleu.bleu3, bleu.bleu4].map(|score| (score, 100.0)));
    }
    for rouge in [metrics.rouge, metrics.rouge_stemmed] {
        for score in [rouge.rouge1, rouge.rouge2, rouge.rouge_l, rouge.rouge_lsum] {
            scores
                .extend([score.precision, score.recall, score.fmeasure].map(|score| (score, 1.0)));
        }
    }
    scores
}

fn assert_same(a: &TextMetrics, b: &TextMetrics) {
    assert_eq!(a.pairs, b.pairs);
    for ((a, _), (b, _)) in scores(a).into_iter().zip(scores(b)) {
        assert!((a - b).abs() < 1e-9, "{a} and {b}");
    }
}

proptest! {
    #[test]
    fn every_score_is_in_its_range(pairs in pairs()) {
        for (score, most) in scores(&TextMetrics::of(&pairs)) {
            prop_assert!((0.0..=most + 1e-9).contains(&score), "{} of {}", score, most);
        }
    }

    #[test]
    fn the_order_of_pairs_does_not_matter(pairs in pairs(), turn in 0_usize..12) {
        let mut turned = pairs.clone();
        turned.rotate_left(turn.min(pairs.len()));
        turned.reverse();
        assert_same(&TextMetrics::of(&turned), &TextMetrics::of(&pairs));
    }

    #[test]
    fn an_empty_prediction_lowers_rouge_and_raises_nothing_else(pairs in pairs(), reference in text()) {
        let mut more = pairs.clone();
        more.push(pair((String::new(), reference)));
        let (before, after) = (TextMetrics::of(&pairs), TextMetrics::of(&more));
        prop_assert!(after.rouge.rouge1.fmeasure <= before.rouge.rouge1.fmeasure + 1e-12);
        prop_assert!(after.bleu.tok_13a.bleu4 <= before.bleu.tok_13a.bleu4 + 1e-9);
    }

    #[test]
    fn identical_texts_are_perfect(words in proptest::collection::vec("[a-z]{1,8}", 4..30)) {
        let text = words.join(" ");
        let metrics = TextMetrics::of(&[pair((text.clone(), text))]);
        for bleu in [metrics.bleu.tok_13a, metrics.bleu.tok_none] {
            prop_assert!((bleu.bleu4 - 100.0).abs() < 1e-9 && (bleu.bleu1 - 100.0).abs() < 1e-9);
        }
        prop_assert!((metrics.chrf - 100.0).abs() < 1e-9);
        for rouge in [metrics.rouge, metrics.rouge_stemmed] {
            for score in [rouge.rouge1, rouge.rouge2, rouge.rouge_l, rouge.rouge_lsum] {
                prop_assert!((score.fmeasure - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn rouge_is_the_other_way_round_with_the_sides_swapped(prediction in text(), reference in text()) {
        let there = TextMetrics::of(&[pair((prediction.clone(), reference.clone()))]);
        let back = TextMetrics::of(&[pair((reference, prediction))]);
        prop_assert_eq!(there.rouge.rouge2.precision, back.rouge.rouge2.recall);
        prop_assert_eq!(there.rouge.rouge_l.recall, back.rouge.rouge_l.precision);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn intervals_are_ordered_and_reproducible(pairs in pairs(), seed in any::<u64>()) {
        let stats = TextStats::of(&pairs);
        let intervals = stats.intervals(seed);
        for interval in [intervals.bleu4_13a, intervals.rouge_l, intervals.chrf] {
            prop_assert!(interval.low <= interval.high);
        }
        prop_assert_eq!(intervals, TextStats::of(&pairs).intervals(seed));
    }
}

#[test]
fn intervals_hold_the_figure_and_narrow_with_more_pairs() {
    let make = |n: usize| -> Vec<Prediction> {
        (0..n)
            .map(|i| {
                pair((
                    format!("they like tea, cake and seat {} by the window", i % 13),
                    format!(
                        "they like tea, cake and seat {} at the door {}",
                        i % 7,
                        i % 3
                    ),
                ))
            })
            .collect()
    };
    let mut widths = Vec::new();
    for n in [40, 1000] {
        let stats = TextStats::of(&make(n));
        let (metrics, intervals) = (stats.metrics(), stats.intervals(5));
        let all = [
            (intervals.bleu4_13a, metrics.bleu.tok_13a.bleu4),
            (intervals.rouge_l, metrics.rouge.rouge_l.fmeasure),
            (intervals.chrf, metrics.chrf),
        ];
        for (interval, figure) in all {
            assert!(
                (interval.low..=interval.high).contains(&figure),
                "{figure} in {interval:?}"
            );
        }
        widths.push(intervals.rouge_l.high - intervals.rouge_l.low);
    }
    assert!(
        widths[1] < widths[0] / 3.0,
        "{widths:?}: five times narrower is expected of 25 times the pairs"
    );
}
