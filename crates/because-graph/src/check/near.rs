use std::collections::{HashMap, HashSet};

use because_core::{Item, Project, Split, jsonl};
use petgraph::unionfind::UnionFind;

use super::edges::{Edges, Pair, shown, split_of};
use super::words::Words;
use super::{CheckReport, Severity, Tally};
use crate::hash::mix;
use crate::{Result, SplitStrategy};

/// Words in a row that descriptions are compared by.
const SHINGLE: usize = 3;
/// Descriptions with fewer words say too little to know an item by.
const LEAST_WORDS: usize = 8;
/// Two descriptions are nearly the same from this share of common shingles on (Jaccard), two titles from that of words.
const DESCRIPTIONS: f64 = 0.8;
const TITLES: f64 = 0.5;
/// MinHash of 48 numbers in 12 bands of 4: of two descriptions with Jaccard 0.8 one band at least agrees with a chance of
/// 1 - (1 - 0.8^4)^12 = 0.998.
const BANDS: usize = 12;
const ROWS: usize = 4;
/// Items of one band compared with each that follows it: what a whole shop writes under everything makes no more pairs.
const WINDOW: usize = 16;
/// Of two that agree in fewer of their 48 numbers the texts need not be compared: at a Jaccard of 0.8 the count is 38.4 with a
/// standard deviation of 2.8.
const LEAST_AGREE: usize = 25;
/// Words of texts held at once, 8 bytes each; of more the file is read again.
const MOST_WORDS: usize = if cfg!(test) { 40 } else { 1 << 23 };

type Signature = [u32; BANDS * ROWS];

/// Items that are another item over again (an edition, a colour, a relisting) on the other side of the split. Two items are
/// so where their descriptions are nearly the same and their titles at least half: a title alone proves nothing, since chains
/// call all their shops one name, and a description alone neither, since shops write one text under many things.
pub(super) fn check(
    report: &mut CheckReport,
    project: &Project,
    edges: &Edges,
    promised: Option<SplitStrategy>,
) -> Result<()> {
    let path = project.items_path();
    if !path.exists() {
        return Ok(());
    }
    let described = Described::read(project, edges)?;
    if described.items.is_empty() {
        return Ok(());
    }
    let twins = exact(&described, project, edges)?;
    let looked_at = described.items.len();
    report_twins(report, edges, &twins, looked_at, promised);
    Ok(())
}

fn report_twins(
    report: &mut CheckReport,
    edges: &Edges,
    twins: &HashMap<u32, Vec<u32>>,
    looked_at: usize,
    promised: Option<SplitStrategy>,
) {
    let name = |item: u32| edges.table.items.name(item);
    let has = |item: u32, split: Split| edges.items[item as usize] & (1 << split as u8) != 0;
    let mut across: Tally<(&str, &str)> = Tally::default();
    for (&item, others) in twins {
        let known = others
            .iter()
            .filter(|&&other| has(other, Split::Train))
            .map(|&other| name(other));
        // An item that is in train itself needs no twin there.
        if has(item, Split::Test)
            && !has(item, Split::Train)
            && let Some(known) = known.min()
        {
            across.add((name(item), known));
        }
    }
    let severity = match promised {
        Some(SplitStrategy::ItemDisjoint) => Severity::Leak,
        _ => Severity::Warning,
    };
    report.add_tally(
        "near_duplicate_item_in_train",
        severity,
        "a test item that train does not know is nearly the same as one that it knows: it is less new than it looks",
        Some(looked_at),
        across,
        |(item, known)| format!("item {item} is nearly item {known}"),
    );

    let rows = &edges.table.rows;
    let mut own: Tally<(Pair<'_>, &str)> = Tally::default();
    let with_twins: Vec<u32> = (0_u32..)
        .zip(rows)
        .filter(|(_, row)| twins.contains_key(&row.item))
        .map(|(at, _)| at)
        .collect();
    edges.table.each_user(with_twins, |of_user| {
        let row = |at: &u32| &rows[*at as usize];
        let trained: HashSet<u32> = of_user
            .iter()
            .map(row)
            .filter(|row| split_of(row) == Split::Train)
            .map(|row| row.item)
            .collect();
        for row in of_user.iter().map(row) {
            if split_of(row) != Split::Test {
                continue;
            }
            let known = twins[&row.item]
                .iter()
                .filter(|other| trained.contains(other));
            if let Some(known) = known.map(|&other| name(other)).min() {
                own.add((edges.pair(row), known));
            }
        }
    });
    report.add_tally(
        "near_duplicate_of_own_train_item",
        Severity::Leak,
        "the item that a user is tested with is nearly the same as one of the user's train items",
        None,
        own,
        |(pair, known)| format!("{} is nearly item {known}", shown(pair)),
    );
}

/// Items with a description, each by its number in the interactions.
struct Described {
    items: Vec<u32>,
    signatures: Vec<Signature>,
    /// A number of the title, by which items of one band are put beside their like.
    titles: Vec<u64>,
    /// Words of each item's texts, by its number.
    sizes: Vec<usize>,
}

impl Described {
    fn read(project: &Project, edges: &Edges) -> Result<Self> {
        let mut described = Self {
            items: Vec::new(),
            signatures: Vec::new(),
            titles: Vec::new(),
            sizes: vec![0; edges.table.items.len()],
        };
        let mut words = Words::default();
        for item in jsonl::read::<Item>(&project.items_path())? {
            let item = item?;
            let known = edges.table.items.get(item.item.as_str());
            let (Some(at), Some(text)) = (known, &item.description) else {
                continue;
            };
            words.read(text);
            if words.len() < LEAST_WORDS {
                continue;
            }
            described.items.push(at);
            described.signatures.push(signature(words.phrases(SHINGLE)));
            let size = &mut described.sizes[at as usize];
            *size += words.len();
            words.read(item.title.as_deref().unwrap_or_default());
            *size += words.len();
            described.titles.push(mix(0, words.hashes()));
        }
        Ok(described)
    }

    /// Pairs of items that share a band and much else, each once, the lower number first.
    fn candidates(&self) -> Vec<(u32, u32)> {
        let mut pairs = Vec::new();
        for band in 0..BANDS {
            let mut keys: Vec<(u64, u64, u32)> = self
                .signatures
                .iter()
                .zip(self.titles.iter().zip(0..))
                .map(|(signature, (&title, place))| {
                    let rows = &signature[band * ROWS..][..ROWS];
                    let rows: [u64; ROWS] = std::array::from_fn(|row| u64::from(rows[row]));
                    (mix(band as u64, &rows), title, place)
                })
                .collect();
            keys.sort_unstable();
            for same in keys.chunk_by(|a, b| a.0 == b.0) {
                for (place, one) in same.iter().enumerate() {
                    let next = same[place + 1..].iter().take(WINDOW);
                    let next = next.map(|other| (one.2.min(other.2), one.2.max(other.2)));
                    pairs.extend(next.filter(|&(one, other)| self.agree(one, other)));
                }
            }
            pairs.sort_unstable();
            pairs.dedup();
        }
        for (one, other) in &mut pairs {
            let items = [*one, *other].map(|place| self.items[place as usize]);
            (*one, *other) = (items[0].min(items[1]), items[0].max(items[1]));
        }
        pairs.sort_unstable();
        pairs.dedup();
        // An item that has two rows is no twin of itself.
        pairs.retain(|(one, other)| one != other);
        pairs
    }

    fn agree(&self, one: u32, other: u32) -> bool {
        let [one, other] = [one, other].map(|place| &self.signatures[place as usize]);
        one.iter().zip(other).filter(|(a, b)| a == b).count() >= LEAST_AGREE
    }

    /// How many of these pairs, one at least, have no more words than may be held at once, and their items.
    fn at_once(&self, pairs: &[(u32, u32)]) -> (usize, HashSet<u32>) {
        let (mut wanted, mut words) = (HashSet::new(), 0);
        let fit = pairs.iter().take_while(|&&(one, other)| {
            for item in [one, other] {
                if wanted.insert(item) {
                    words += self.sizes[item as usize];
                }
            }
            words <= MOST_WORDS || wanted.len() <= 2
        });
        (fit.count(), wanted)
    }
}

/// What is left of the candidates once their texts, read again, are compared: for each item those that are nearly the same.
fn exact(
    described: &Described,
    project: &Project,
    edges: &Edges,
) -> Result<HashMap<u32, Vec<u32>>> {
    let mut twins: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut candidates = described.candidates();
    // Those that hang together come together, so that few texts are read more than once.
    let mut pieces = UnionFind::<u32>::new(described.sizes.len());
    for &(one, other) in &candidates {
        pieces.union(one, other);
    }
    let pieces = pieces.into_labeling();
    candidates.sort_unstable_by_key(|&(one, other)| (pieces[one as usize], one, other));
    let mut rest = &candidates[..];
    while !rest.is_empty() {
        let (count, wanted) = described.at_once(rest);
        let (pairs, behind) = rest.split_at(count);
        let texts = texts(&wanted, project, edges)?;
        for &(one, other) in pairs {
            let (Some(a), Some(b)) = (texts.get(&one), texts.get(&other)) else {
                continue;
            };
            if jaccard(&a[1], &b[1]) >= DESCRIPTIONS && jaccard(&a[0], &b[0]) >= TITLES {
                twins.entry(one).or_default().push(other);
                twins.entry(other).or_default().push(one);
            }
        }
        rest = behind;
    }
    Ok(twins)
}

/// The words of the titles and the shingles of the descriptions of these items.
fn texts(
    wanted: &HashSet<u32>,
    project: &Project,
    edges: &Edges,
) -> Result<HashMap<u32, [Vec<u64>; 2]>> {
    let mut texts: HashMap<u32, [Vec<u64>; 2]> = HashMap::new();
    let mut words = Words::default();
    for item in jsonl::read::<Item>(&project.items_path())? {
        let item = item?;
        let known = edges.table.items.get(item.item.as_str());
        let Some(at) = known.filter(|at| wanted.contains(at)) else {
            continue;
        };
        words.read(item.title.as_deref().unwrap_or_default());
        let title = set(words.hashes().iter().copied());
        words.read(item.description.as_deref().unwrap_or_default());
        texts.insert(at, [title, set(words.phrases(SHINGLE))]);
    }
    Ok(texts)
}

/// The least number of all shingles under each of 48 orders.
fn signature(shingles: impl Iterator<Item = u64>) -> Signature {
    let mut least = [u32::MAX; BANDS * ROWS];
    for shingle in shingles {
        let mut order = 0x9e37_79b9_7f4a_7c15_u64;
        for least in &mut least {
            order = order.wrapping_add(0x9e37_79b9_7f4a_7c15 << 1);
            let number = (shingle ^ order).wrapping_mul(order | 1);
            *least = (*least).min((number >> 32) as u32);
        }
    }
    least
}

fn set(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The share of what two sorted sets have in common; two empty ones are alike.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut a, mut b) = (a, b);
    let all = a.len() + b.len();
    let mut common = 0;
    while let ([x, rest_a @ ..], [y, rest_b @ ..]) = (a, b) {
        common += usize::from(x == y);
        if x <= y {
            a = rest_a;
        }
        if y <= x {
            b = rest_b;
        }
    }
    match all {
        0 => 1.0,
        _ => common as f64 / (all - common) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[u32]) -> Vec<u64> {
        let mixed = words.iter().map(|&word| mix(1, &[u64::from(word)]));
        set(mixed)
    }

    #[test]
    fn a_signature_agrees_as_often_as_sets_overlap() {
        let one: Vec<u32> = (0..400).collect();
        for (overlap, expected) in [(400, 1.0), (356, 0.8), (267, 0.5), (0, 0.0)] {
            let other: Vec<u32> = (400 - overlap..800 - overlap).collect();
            let (a, b) = (of(&one), of(&other));
            let exact = jaccard(&a, &b);
            assert!((exact - expected).abs() < 0.01, "{exact}");
            let (a, b) = (signature(a.into_iter()), signature(b.into_iter()));
            let agree = a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / 48.0;
            // Four standard deviations of a share drawn 48 times.
            assert!((agree - exact).abs() < 0.29, "{agree} for {exact}");
        }
        assert_eq!(jaccard(&[], &[]), 1.0);
        assert_eq!(jaccard(&[1], &[]), 0.0);
    }
}
