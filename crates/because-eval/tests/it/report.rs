use because_core::{
    Candidate, Explanation, Prediction, Profile, ProfileRecord, Profiles, Role, Side,
};
use because_eval::{
    ContrastSummary, Controls, LossPoint, ProfileLayer, Report, Sample, Settings, TextStats,
    TrainingSummary,
};
use serde_json::{Value, json};

const SPITE: &str = "<script>alert('x')</script> \"quoted\" & {{ title }} \u{202e}txet";

fn predictions() -> Vec<Prediction> {
    let pair = |user: &str, item: &str, prediction: &str, reference: &str| Prediction {
        user: Some(user.into()),
        item: Some(item.into()),
        prediction: prediction.into(),
        reference: reference.into(),
    };
    vec![
        pair(
            "ana",
            "saga",
            "You pick long novels with maps, and this saga has both.",
            "This saga is as long as the novels you pick, with maps.",
        ),
        pair(
            "bo",
            "bar",
            "You like quiet bars, and this one plays no music.",
            "No music is played here, which suits your quiet evenings.",
        ),
        pair("cy", SPITE, SPITE, "A reference with <b>marks</b>."),
    ]
}

fn explanation(user: &str, place: usize, picks: &[&str]) -> Explanation {
    let candidate = |item: &str, role| Candidate {
        item: item.into(),
        role,
        scorer: None,
        rank: None,
        score: None,
    };
    let mut candidates = vec![
        candidate("opera", Role::Hard),
        candidate("tea", Role::Random),
    ];
    candidates.insert(place, candidate("saga", Role::Positive));
    Explanation {
        user: user.into(),
        item: "saga".into(),
        explanation: format!("Because {user} reads long novels. {SPITE}"),
        reasoning: None,
        accepted: picks.last() == Some(&"saga"),
        attempts: picks.len(),
        picks: picks.iter().map(|&pick| pick.into()).collect(),
        candidates,
        answer_shown: false,
        model: "offline".into(),
        prompt: "f00d".into(),
        seed: 7,
    }
}

fn profiles() -> Profiles {
    let profile = |kind, id: &str, summary: &str| ProfileRecord {
        kind,
        id: id.into(),
        layer: 1,
        profile: Profile {
            summary: summary.into(),
            reasoning: None,
        },
        neighbors: Vec::new(),
        model: "offline".into(),
        prompt: String::new(),
    };
    Profiles::from_records(
        1,
        [
            profile(Side::User, "ana", "reads long novels with maps"),
            profile(
                Side::Item,
                "saga",
                "a long novel with maps for patient readers",
            ),
            profile(Side::Item, "bar", "a quiet bar without music"),
        ],
    )
}

fn report() -> Report {
    let mut settings = Settings::default();
    settings.profile_model = Some("offline".into());
    settings.explanation_model = Some("offline".into());
    settings.base = Some("tiny".into());
    settings.seed = Some(7);
    settings.layers = Some(1);
    settings.neighbors = Some(8);
    settings.hard_negatives = Some(1);
    settings.random_negatives = Some(1);
    settings.max_attempts = Some(3);
    settings.split = Some("test".into());
    settings
        .other
        .insert("sampler".into(), json!({"name": SPITE, "alpha": 0.5}));
    let rows = [
        explanation("ana", 0, &["saga"]),
        explanation("bo", 1, &["tea", "saga"]),
        explanation("cy", 2, &["tea", "tea", "opera"]),
    ];
    let pairs = predictions();
    let profiles = profiles();
    let mut training = TrainingSummary::new(
        (1..=6)
            .map(|step| LossPoint {
                step,
                loss: 4.0 / step as f64,
            })
            .collect(),
    );
    training.valid_losses = vec![
        LossPoint { step: 3, loss: 2.0 },
        LossPoint { step: 6, loss: 1.5 },
    ];
    training.examples = Some(24);
    training.trainable_parameters = Some(12_288);
    Report::new(format!("Three readers {SPITE}"))
        .settings(settings)
        .graph(json!({"users": 3, "items": 4, "interactions": 9, "splits": {"train": 6, "test": 3}, "density": 0.75, SPITE: SPITE}))
        .profile_layer(ProfileLayer::of(&profiles))
        .contrast(ContrastSummary::of(&rows))
        .training(training)
        .text(&TextStats::of(&pairs), Controls::of(&pairs, &profiles, 7), 7)
        .sample(Sample::from(&rows[0]).item_title("The Long Saga"))
        .sample(&rows[2])
        .sample(&pairs[2])
        .note(format!("A note of the run: {SPITE}"))
}

/// A snapshot outlives a release.
fn without_version(text: &str) -> String {
    text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

/// The last digits of an exponential differ between systems.
fn rounded(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, rounded(value)))
            .collect(),
        Value::Array(values) => values.into_iter().map(rounded).collect(),
        Value::Number(number) if number.is_f64() => json!(
            format!("{:.9}", number.as_f64().unwrap())
                .parse::<f64>()
                .unwrap()
        ),
        other => other,
    }
}

#[test]
fn the_page_is_as_it_was_approved() {
    insta::assert_snapshot!("report.html", without_version(&report().to_html().unwrap()));
}

#[test]
fn the_json_is_as_it_was_approved() {
    let written = serde_json::from_str(&report().to_json().unwrap()).unwrap();
    let text = serde_json::to_string_pretty(&rounded(written)).unwrap();
    insta::assert_snapshot!("report.json", without_version(&text));
}

#[test]
fn nothing_of_others_is_markup() {
    let page = report().to_html().unwrap();
    assert!(!page.contains("<script") && !page.contains("<b>marks"));
    assert!(page.contains("&lt;script&gt;"));
    assert!(
        page.contains("{{ title }}"),
        "text that looks like a template is text"
    );
    assert!(
        !page.contains("http://") && !page.contains("https://") && !page.contains("src="),
        "the page needs nothing else"
    );
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    assert_eq!(report().to_html().unwrap(), report().to_html().unwrap());
    assert_eq!(report().to_json().unwrap(), report().to_json().unwrap());
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = Report::new("Nothing yet").to_html().unwrap();
    assert!(page.contains("Nothing yet") && page.contains("cannot be reproduced"));
    assert!(!page.contains("<h2>Training"));
}

#[test]
fn the_same_input_in_other_sizes_renders() {
    let empty = TextStats::of(&[]);
    let page = Report::new("x")
        .text(&empty, Controls::of(&[], &Profiles::default(), 1), 1)
        .contrast(ContrastSummary::of(&[]))
        .training(TrainingSummary::default())
        .graph(json!("not an object"))
        .to_html()
        .unwrap();
    assert!(page.contains("fewer than two pairs"));
    assert!(!page.contains("NaN"));
}
