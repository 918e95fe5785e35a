use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::data::{Block, Data, Document};
use super::words::stems_of;

/// One object picked from a list by its number.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) number: i64,
    pub(super) chosen: Document,
    /// Every object of the list, the chosen one too.
    pub(super) listed: Vec<Document>,
    /// All other blocks: what the choice is for.
    pub(super) query: Vec<Document>,
    /// It was not ranked: a block gave it away, or it was the only one left.
    pub(super) given: bool,
    /// How many were left out as known to be wrong.
    pub(super) excluded: usize,
}

/// Picks for an integer property the object that best matches the other blocks, if some block lists objects that carry
/// an integer of that name. `allowed` says which numbers the schema takes.
pub(super) fn choose(property: &str, data: &Data, allowed: impl Fn(i64) -> bool) -> Option<Choice> {
    let told = || data.blocks.iter().filter(|block| !block.lists_wrong());
    // An object that carries the number by itself is the answer given away.
    let given = told().find_map(|block| {
        block
            .value
            .is_object()
            .then(|| number(&block.value, property))?
    });
    let list = told()
        .filter(|block| numbered(&block.value, property).next().is_some())
        .max_by_key(|block| {
            (
                block.value.is_array(),
                numbered(&block.value, property).count(),
            )
        })?;
    let query: Vec<Document> = told()
        .filter(|block| block.name != list.name)
        .flat_map(|block| block.documents(1.0))
        .collect();
    let objects: BTreeMap<i64, &Value> = numbered(&list.value, property)
        .rev()
        .filter(|(number, _)| allowed(*number))
        .collect();
    let wrong = wrong(&data.blocks, property);
    let open: Vec<(i64, &Value)> = objects
        .iter()
        .filter(|(number, _)| !wrong.contains(number))
        .map(|(&number, &object)| (number, object))
        .collect();
    let excluded = objects.len() - open.len();
    let open = if open.is_empty() {
        objects.into_iter().collect()
    } else {
        open
    };
    let listed: Vec<Document> = open
        .iter()
        .map(|(_, object)| Document::of(object, 1.0))
        .collect();
    let given = given.and_then(|given| open.iter().position(|(number, _)| *number == given));
    let at = match given {
        Some(at) => at,
        None => best(&query, &listed)?,
    };
    Some(Choice {
        number: open[at].0,
        chosen: Document::of(open[at].1, 1.0),
        listed,
        query,
        given: given.is_some() || open.len() == 1,
        excluded,
    })
}

/// The place of the best match; the first of equals.
pub(super) fn best(query: &[Document], listed: &[Document]) -> Option<usize> {
    let query: Vec<String> = query.iter().flat_map(terms).collect();
    let listed: Vec<Vec<String>> = listed.iter().map(terms).collect();
    let scores = bm25(&query, &listed);
    (0..scores.len()).reduce(|best, at| if scores[at] > scores[best] { at } else { best })
}

/// A document's words for matching, those of its title too.
pub(super) fn terms(document: &Document) -> Vec<String> {
    let mut terms: Vec<String> = document
        .texts
        .iter()
        .flat_map(|text| stems_of(&text.sentences))
        .collect();
    terms.extend(document.title_stems.iter().cloned());
    terms
}

/// Okapi BM25 with `k1 = 1.2` and `b = 0.75`; a word said often in the query counts by the logarithm.
fn bm25(query: &[String], documents: &[Vec<String>]) -> Vec<f64> {
    const K1: f64 = 1.2;
    const B: f64 = 0.75;
    let mut wanted: BTreeMap<&str, f64> = BTreeMap::new();
    for term in query {
        *wanted.entry(term).or_default() += 1.0;
    }
    let counts: Vec<HashMap<&str, f64>> = documents
        .iter()
        .map(|document| {
            let mut counts = HashMap::new();
            for term in document
                .iter()
                .filter(|term| wanted.contains_key(term.as_str()))
            {
                *counts.entry(term.as_str()).or_default() += 1.0;
            }
            counts
        })
        .collect();
    let total = documents.len() as f64;
    let mean = (documents.iter().map(Vec::len).sum::<usize>() as f64 / total.max(1.0)).max(1.0);
    documents
        .iter()
        .zip(&counts)
        .map(|(document, own)| {
            let long = 1.0 - B + B * document.len() as f64 / mean;
            let parts = wanted.iter().filter_map(|(term, times)| {
                let count = own.get(term)?;
                let holding = counts
                    .iter()
                    .filter(|counts| counts.contains_key(term))
                    .count() as f64;
                let rare = (1.0 + (total - holding + 0.5) / (holding + 0.5)).ln();
                Some((1.0 + times.ln()) * rare * count * (K1 + 1.0) / (count + K1 * long))
            });
            parts.sum()
        })
        .collect()
}

fn number(object: &Value, property: &str) -> Option<i64> {
    object.as_object()?.get(property)?.as_i64()
}

fn numbered<'a>(
    value: &'a Value,
    property: &'a str,
) -> impl DoubleEndedIterator<Item = (i64, &'a Value)> {
    let elements = match value {
        Value::Array(elements) => elements.as_slice(),
        Value::Object(_) => std::slice::from_ref(value),
        _ => &[],
    };
    elements
        .iter()
        .filter_map(move |element| Some((number(element, property)?, element)))
}

fn wrong(blocks: &[Block], property: &str) -> BTreeSet<i64> {
    let listed = blocks.iter().filter(|block| block.lists_wrong());
    listed
        .flat_map(|block| match &block.value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        })
        .filter_map(|value| value.as_i64().or_else(|| number(value, property)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bm25_is_what_the_formula_gives() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let scores = bm25(&words("tea"), &[words("tea cake"), words("beer cake")]);
        // ln(1 + 1.5/1.5) * 1 * 2.2 / (1 + 1.2), both as long as the mean.
        assert!((scores[0] - std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(scores[1], 0.0);
    }

    #[test]
    fn the_best_match_wins_and_the_smallest_number_among_equals() {
        let block = |name: &str, value| Block {
            name: name.into(),
            value,
        };
        let data = |wrong| Data {
            blocks: vec![
                block("user", json!({"profile": "Craft beers and quiet patios"})),
                block(
                    "candidates",
                    json!([
                        {"choice": 3, "title": "Opera", "profile": "Arias."},
                        {"choice": 1, "title": "Hops", "profile": "A patio with craft beer."},
                        {"choice": 2, "title": "Malt", "profile": "A patio with craft beer."},
                    ]),
                ),
                block("wrong_choices", wrong),
            ],
            instructions: String::new(),
        };
        let pick = |wrong| {
            choose("choice", &data(wrong), |_| true).map(|choice| (choice.number, choice.excluded))
        };
        assert_eq!(pick(json!([])), Some((1, 0)));
        assert_eq!(pick(json!([1])), Some((2, 1)));
        assert_eq!(pick(json!([{"choice": 1}, 2])), Some((3, 2)));
        assert_eq!(pick(json!([1, 2, 3])), Some((1, 3)));
    }
}
