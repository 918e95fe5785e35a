use because_core::{Item, ProfileRecord, Project, Side, Split, User, jsonl};

use super::edges::{Edges, Line, shown};
use super::words::{PHRASE, Words};
use super::{CheckReport, Severity, Tally};
use crate::Result;
use crate::hash::{id_key, mix};

/// Phrases of texts held at most; of more a share is held that follows from the phrases themselves. 16 bytes each.
const PHRASES: usize = 8 << 20;
/// Held-out reviews looked at at most, drawn by lot where there are more.
const REVIEWS: usize = 500_000;
/// Phrases held of a held-out review: those with the lowest numbers, which is a fair draw.
const SKETCH: usize = 8;
/// A phrase that more texts, or more held-out reviews, have than this is what everybody writes.
const COMMON: usize = 64;

/// Looks for held-out reviews in what may be known: in profiles, in descriptions and in train reviews. Reviews pass by
/// twice and are never held; memory is bounded by the two numbers above.
pub(super) struct Quotes {
    texts: Vec<Text>,
    phrases: Phrases,
    reviews: Reviews,
    words: Words,
}

struct Text {
    of: Kind,
    side: Side,
    id: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Given by the data, or made by a layer.
    Profile(Option<usize>),
    Description,
    /// Never reported: whoever writes about a thing names it.
    Title,
}

impl Quotes {
    pub(super) fn of_texts(project: &Project) -> Result<Self> {
        let mut quotes = Self {
            texts: Vec::new(),
            phrases: Phrases::default(),
            reviews: Reviews::default(),
            words: Words::default(),
        };
        let path = project.users_path();
        if path.exists() {
            for user in jsonl::read::<User>(&path)? {
                let user = user?;
                let id = user.user.as_str();
                quotes.add(Kind::Profile(None), Side::User, id, user.profile.as_deref());
            }
        }
        let path = project.items_path();
        if path.exists() {
            for item in jsonl::read::<Item>(&path)? {
                let item = item?;
                for (of, text) in [
                    (Kind::Profile(None), &item.profile),
                    (Kind::Description, &item.description),
                    (Kind::Title, &item.title),
                ] {
                    quotes.add(of, Side::Item, item.item.as_str(), text.as_deref());
                }
            }
        }
        for layer in project.last_layer().map_or(0..0, |last| 0..last + 1) {
            for record in jsonl::read::<ProfileRecord>(&project.profiles_path(layer))? {
                let record = record?;
                // What the data brought was looked at where it brought it.
                if record.model != ProfileRecord::FROM_DATA {
                    let text = Some(&*record.profile.summary);
                    quotes.add(Kind::Profile(Some(layer)), record.kind, &record.id, text);
                }
            }
        }
        quotes.phrases.sort();
        Ok(quotes)
    }

    fn add(&mut self, of: Kind, side: Side, id: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        self.words.read(text);
        // Shorter texts have no phrase, and more than can be numbered are not looked at.
        let (true, Ok(at)) = (self.words.len() >= PHRASE, u32::try_from(self.texts.len())) else {
            return;
        };
        self.texts.push(Text {
            of,
            side,
            id: id.to_owned(),
        });
        for phrase in self.words.phrases(PHRASE) {
            self.phrases.add(phrase, at);
        }
    }

    /// The first time that the interactions pass by: what train reviews say is known, what held-out ones say is noted.
    pub(super) fn see_first(&mut self, row: u32, line: &Line) {
        let Some(review) = &line.review else { return };
        self.words.read(review);
        if line.split() == Split::Train {
            for phrase in self.words.phrases(PHRASE) {
                self.phrases.know(phrase);
            }
        } else {
            self.reviews.add(row, line, &self.words);
        }
    }

    /// The second time: held-out reviews against the texts, train reviews against what was noted.
    pub(super) fn check(
        mut self,
        report: &mut CheckReport,
        project: &Project,
        edges: &Edges,
    ) -> Result<()> {
        if self.reviews.seen == 0 {
            return Ok(());
        }
        let texts = &self.texts;
        self.phrases
            .know_what_is_public(|at| match texts[at as usize].of {
                Kind::Description | Kind::Title => true,
                Kind::Profile(_) => false,
            });
        self.reviews.sort();
        let (mut in_profiles, mut in_descriptions) = (Tally::default(), Tally::default());
        let mut named = Vec::new();
        for (row, line) in (0_u32..).zip(jsonl::read::<Line>(&project.interactions_path())?) {
            let line = line?;
            let Some(review) = &line.review else { continue };
            self.words.read(review);
            if line.split() == Split::Train {
                self.reviews.compare(row, &self.words, edges);
                continue;
            }
            named.clear();
            for (place, phrase) in self.words.phrases(PHRASE).enumerate() {
                for at in self.phrases.unknown(phrase) {
                    if named.contains(&at) {
                        continue;
                    }
                    named.push(at);
                    let quoted = self.words.words(place, PHRASE);
                    let found = (at, quoted, line.shown(), line.split());
                    match texts[at as usize].of {
                        Kind::Profile(_) => in_profiles.add(found),
                        Kind::Description => in_descriptions.add(found),
                        Kind::Title => {}
                    }
                }
            }
        }
        let said = |(at, quoted, pair, split): (u32, String, String, Split)| {
            let Text { of, side, id } = &texts[at as usize];
            let layer = match of {
                Kind::Profile(Some(layer)) => format!("layer {layer} of "),
                _ => String::new(),
            };
            let side = if *side == Side::User { "user" } else { "item" };
            format!("{layer}{side} {id}: {quoted:?} of {pair} ({split})")
        };
        // Without a text there was nothing to look at.
        let any = |is: fn(Kind) -> bool| texts.iter().any(|text| is(text.of));
        if any(|of| matches!(of, Kind::Profile(_))) {
            report.add_tally(
                "profile_quotes_held_out_review",
                Severity::Leak,
                "a profile has eight words in a row of a held-out review that are in no train review and no description",
                None,
                in_profiles,
                said,
            );
        }
        if any(|of| of == Kind::Description) {
            report.add_tally(
                "description_shares_words_with_held_out_review",
                Severity::Warning,
                "a description has eight words in a row of a held-out review that are in no train review; as a rule the review \
                 quotes the description",
                None,
                in_descriptions,
                said,
            );
        }
        self.reviews.report(report, edges);
        Ok(())
    }
}

/// Which texts have which phrases.
#[derive(Default)]
struct Phrases {
    /// Only phrases are held whose number has none of these bits.
    mask: u64,
    entries: Vec<(u64, u32)>,
    known: Vec<bool>,
    index: Index,
}

impl Phrases {
    fn add(&mut self, phrase: u64, text: u32) {
        // Room is made before it is needed: one more than fits would have the list double.
        while phrase & self.mask == 0 && self.entries.len() >= PHRASES {
            self.mask = self.mask << 1 | 1;
            self.entries.retain(|(phrase, _)| phrase & self.mask == 0);
        }
        if phrase & self.mask == 0 {
            self.entries.push((phrase, text));
        }
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        self.entries.dedup();
        keep_rare(&mut self.entries, |_| {});
        self.known = vec![false; self.entries.len()];
        self.index = Index::of(&self.entries);
    }

    fn range(&self, phrase: u64) -> std::ops::Range<usize> {
        if phrase & self.mask != 0 {
            return 0..0;
        }
        self.index.range(&self.entries, phrase)
    }

    fn know(&mut self, phrase: u64) {
        let range = self.range(phrase);
        // All entries of a phrase become known at once.
        if !range.is_empty() && !self.known[range.start] {
            self.known[range].fill(true);
        }
    }

    /// What a text open to everybody says is no secret in another.
    fn know_what_is_public(&mut self, is_public: impl Fn(u32) -> bool) {
        let mut from = 0;
        for same in self.entries.chunk_by(|a, b| a.0 == b.0) {
            if same.iter().any(|&(_, text)| is_public(text)) {
                for (place, &(_, text)) in same.iter().enumerate() {
                    self.known[from + place] |= !is_public(text);
                }
            }
            from += same.len();
        }
    }

    fn unknown(&self, phrase: u64) -> impl Iterator<Item = u32> + '_ {
        self.range(phrase)
            .filter(|&at| !self.known[at])
            .map(|at| self.entries[at].1)
    }
}

/// Sketches of held-out reviews, and where each was met again.
#[derive(Default)]
struct Reviews {
    seen: usize,
    /// Only reviews are held whose lot has none of these bits.
    mask: u64,
    noted: Vec<Noted>,
    sketches: Vec<Sketch>,
    entries: Vec<(u64, u32)>,
    index: Index,
    hits: Vec<(u32, u64)>,
}

/// A review when it is first met.
struct Noted {
    row: u32,
    lot: u64,
    phrases: [u64; SKETCH],
    size: u8,
}

/// What is left of it once its phrases are among those of all.
struct Sketch {
    row: u32,
    /// How many phrases of it count.
    size: u8,
    /// The first train reviews that repeat it: of the same user, of another.
    repeated: [Option<u32>; 2],
}

impl Reviews {
    fn add(&mut self, row: u32, line: &Line, words: &Words) {
        self.seen += 1;
        let lot = mix(0, &[id_key(line.user.as_str()), id_key(line.item.as_str())]);
        let mut phrases: Vec<u64> = words.phrases(PHRASE).collect();
        phrases.sort_unstable();
        phrases.dedup();
        // Of fewer than four phrases too little is said to tell a repetition from a habit.
        if lot & self.mask != 0 || phrases.len() < SKETCH / 2 {
            return;
        }
        let size = phrases.len().min(SKETCH) as u8;
        phrases.resize(SKETCH, 0);
        let mut noted = Noted {
            row,
            lot,
            phrases: [0; SKETCH],
            size,
        };
        noted.phrases.copy_from_slice(&phrases[..SKETCH]);
        self.noted.push(noted);
        while self.noted.len() > REVIEWS {
            self.mask = self.mask << 1 | 1;
            self.noted.retain(|noted| noted.lot & self.mask == 0);
        }
    }

    fn sort(&mut self) {
        let noted = std::mem::take(&mut self.noted);
        let phrases: usize = noted.iter().map(|noted| usize::from(noted.size)).sum();
        self.entries.reserve_exact(phrases);
        self.sketches.reserve_exact(noted.len());
        for (at, noted) in (0_u32..).zip(&noted) {
            let phrases = noted.phrases[..usize::from(noted.size)].iter();
            self.entries.extend(phrases.map(|&phrase| (phrase, at)));
            self.sketches.push(Sketch {
                row: noted.row,
                size: noted.size,
                repeated: [None; 2],
            });
        }
        drop(noted);
        self.entries.sort_unstable();
        let sketches = &mut self.sketches;
        keep_rare(&mut self.entries, |at| sketches[at as usize].size -= 1);
        self.index = Index::of(&self.entries);
    }

    fn compare(&mut self, row: u32, words: &Words, edges: &Edges) {
        self.hits.clear();
        for phrase in words.phrases(PHRASE) {
            let found = &self.entries[self.index.range(&self.entries, phrase)];
            self.hits
                .extend(found.iter().map(|&(phrase, at)| (at, phrase)));
        }
        self.hits.sort_unstable();
        self.hits.dedup();
        for same in self.hits.chunk_by(|a, b| a.0 == b.0) {
            let sketch = &mut self.sketches[same[0].0 as usize];
            let size = usize::from(sketch.size);
            if size < SKETCH / 2 || same.len() * 4 < size * 3 {
                continue;
            }
            let rows = &edges.table.rows;
            let same_user = rows[row as usize].user == rows[sketch.row as usize].user;
            sketch.repeated[usize::from(!same_user)].get_or_insert(row);
        }
    }

    fn report(&self, report: &mut CheckReport, edges: &Edges) {
        let pair = |row: u32| edges.pair(&edges.table.rows[row as usize]);
        let looked_at = self.sketches.len();
        let said = |(held_out, known)| format!("{} repeats {}", shown(held_out), shown(known));
        let [mut own, mut others] = [Tally::default(), Tally::default()];
        for sketch in &self.sketches {
            match sketch.repeated {
                [Some(row), _] => own.add((pair(sketch.row), pair(row))),
                [None, Some(row)] => others.add((pair(sketch.row), pair(row))),
                [None, None] => {}
            }
        }
        report.add_tally(
            "own_review_repeated_in_train",
            Severity::Leak,
            "three quarters of what a held-out review says stand in a train review of the same user",
            Some(looked_at),
            own,
            said,
        );
        report.add_tally(
            "review_repeated_in_train",
            Severity::Warning,
            "three quarters of what a held-out review says stand in a train review of somebody else",
            Some(looked_at),
            others,
            said,
        );
    }
}

/// Keeps the entries whose phrase is not what everybody writes; `dropped` gets the others.
fn keep_rare(entries: &mut Vec<(u64, u32)>, mut dropped: impl FnMut(u32)) {
    let (mut from, mut kept) = (0, 0);
    while let Some(&(phrase, _)) = entries.get(from) {
        let same = entries[from..].iter().take_while(|entry| entry.0 == phrase);
        let to = from + same.count();
        if to - from <= COMMON {
            entries.copy_within(from..to, kept);
            kept += to - from;
        } else {
            entries[from..to].iter().for_each(|&(_, at)| dropped(at));
        }
        from = to;
    }
    entries.truncate(kept);
}

/// Where each phrase begins among sorted entries. Most phrases asked for are not there, which a few bits tell at once; the
/// others are found through the first bits of their numbers, since a search among millions would cost more than all the rest.
#[derive(Default)]
struct Index {
    /// Where the entries begin whose numbers begin with these bits.
    starts: Vec<u32>,
    shift: u32,
    filter: Vec<u64>,
}

impl Index {
    fn of(entries: &[(u64, u32)]) -> Self {
        let bits = (entries.len() / 4).max(2).next_power_of_two().ilog2();
        let shift = 64 - bits;
        let mut starts = vec![0_u32; (1 << bits) + 1];
        let mut filter = vec![0; 1 << bits];
        for &(phrase, _) in entries {
            starts[(phrase >> shift) as usize + 1] += 1;
            let (word, bit) = place(shift, phrase);
            filter[word] |= bit;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Self {
            starts,
            shift,
            filter,
        }
    }

    fn range(&self, entries: &[(u64, u32)], phrase: u64) -> std::ops::Range<usize> {
        if entries.is_empty() {
            return 0..0;
        }
        let (word, bit) = place(self.shift, phrase);
        if self.filter[word] & bit == 0 {
            return 0..0;
        }
        let bucket = (phrase >> self.shift) as usize;
        let [from, to] = [bucket, bucket + 1].map(|at| self.starts[at] as usize);
        let below = entries[from..to]
            .iter()
            .take_while(|entry| entry.0 < phrase);
        let from = from + below.count();
        let same = entries[from..to]
            .iter()
            .take_while(|entry| entry.0 == phrase);
        from..from + same.count()
    }
}

/// Some sixteen bits for each phrase.
fn place(shift: u32, phrase: u64) -> (usize, u64) {
    ((phrase >> shift) as usize, 1 << (phrase >> 8 & 63))
}
