use std::collections::BTreeMap;

/// What to print beside each figure so that another person can get the same one. The form is sacrebleu's, with what its
/// own leaves out: the order, what happens to space at the ends, and whose definition is followed.
pub(crate) fn all() -> BTreeMap<String, String> {
    let ours = concat!("version:because-", env!("CARGO_PKG_VERSION"));
    let mut signatures = BTreeMap::new();
    for tokenizer in ["13a", "none"] {
        for order in 1..=4 {
            signatures.insert(
                format!("bleu{order}.{tokenizer}"),
                format!("nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|order:{order}|trim:end|{ours}|as:sacrebleu-2.5.1"),
            );
        }
    }
    for (name, stem) in [("rouge", "no"), ("rouge_stemmed", "porter-nltk")] {
        signatures.insert(
            name.into(),
            format!("nrefs:1|case:lower|tok:a-z0-9|stem:{stem}|lsum:newline|mean:pairs|trim:no|{ours}|as:rouge-score-0.1.2"),
        );
    }
    signatures.insert(
        "chrf".into(),
        format!(
            "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|beta:2|trim:no|{ours}|as:sacrebleu-2.5.1"
        ),
    );
    for name in ["distinct", "unique_sentence_ratio", "mean_tokens"] {
        signatures.insert(
            name.into(),
            format!("case:mixed|tok:python-split|trim:no|{ours}"),
        );
    }
    signatures
}
