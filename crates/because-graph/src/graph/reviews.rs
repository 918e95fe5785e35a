use std::borrow::Borrow;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use because_core::{Interaction, Project, Split};
use petgraph::graph::{EdgeIndex, NodeIndex};

use super::BipartiteGraph;
use super::read::{interactions, trimmed};
use crate::table::Ids;
use crate::{Error, Result};

/// What users wrote about items, beside the graph: only of train edges, so that no text that is held out can be asked for.
///
/// Of a project the texts stay in `interactions.jsonl`, and 8 bytes are held for each: where its line begins. A packed file
/// cannot be read from its middle, so of `interactions.jsonl.gz` and `.zst` the train reviews themselves are held in memory;
/// unpack the file where that is too much.
///
/// ```
/// use because_core::{Interaction, Split};
/// use because_graph::{BipartiteGraph, Reviews};
///
/// let review = |text: &str| Some(text.to_owned());
/// let seen = [
///     Interaction { review: review("Sand."), ..Interaction::new("ann", "dune") },
///     Interaction { review: review("No."), split: Some(Split::Test), ..Interaction::new("bob", "dune") },
/// ];
/// let graph = BipartiteGraph::new(&seen)?;
/// let reviews = Reviews::of(&graph, &seen);
/// let dune = graph.item("dune").expect("it has two edges");
/// let edges: Vec<_> = graph.whole().edges_of(dune).map(|edge| edge.index).collect();
/// assert_eq!(reviews.interaction(&graph, edges[0])?.review.as_deref(), Some("Sand."));
/// assert!(!reviews.has(edges[1]), "what is held out is not read");
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Reviews {
    places: Places,
    source: Source,
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Nowhere,
    Memory(Vec<Box<str>>),
    File {
        path: PathBuf,
        file: Mutex<BufReader<File>>,
    },
}

impl Reviews {
    /// No reviews at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of the interactions that a graph was made of, copied; what is no train edge of the graph is passed over.
    pub fn of<I>(graph: &BipartiteGraph, interactions: I) -> Self
    where
        I: IntoIterator<Item: Borrow<Interaction>>,
    {
        let (mut texts, mut places) = (Vec::new(), Gathered::new(graph));
        for interaction in interactions {
            let interaction = interaction.borrow();
            let Some(review) = interaction.review.as_deref().filter(|text| speaks(text)) else {
                continue;
            };
            let user = graph.user(interaction.user.as_str());
            let item = graph.item(interaction.item.as_str());
            if let Some(edge) = user.zip(item).and_then(|ends| train_edge(graph, ends)) {
                places.put(edge, texts.len() as u64);
                texts.push(review.into());
            }
        }
        Self {
            places: places.packed(),
            source: Source::Memory(texts),
        }
    }

    /// Those of a project's interactions, of which the graph was made.
    ///
    /// # Errors
    /// When the file cannot be read or a line is no interaction.
    pub fn from_project(project: &Project, graph: &BipartiteGraph) -> Result<Self> {
        let path = project.interactions_path();
        if path.extension().is_some_and(|packed| packed != "jsonl") {
            return Self::from_packed(project, graph);
        }
        let mut nodes = Known::default();
        let mut places = Gathered::new(graph);
        interactions(&path, |start, read| {
            if read.review.is_some_and(|said| said.0)
                && let Some(ends) = nodes.ends(graph, &read.user.0, &read.item.0)?
                && let Some(edge) = train_edge(graph, ends)
            {
                places.put(edge, start);
            }
            Ok(())
        })?;
        let file =
            File::open(&path).map_err(|source| because_core::Error::io("open", &path, source))?;
        Ok(Self {
            places: places.packed(),
            source: Source::File {
                path,
                file: Mutex::new(BufReader::new(file)),
            },
        })
    }

    fn from_packed(project: &Project, graph: &BipartiteGraph) -> Result<Self> {
        let mut failed = None;
        let read = because_core::jsonl::read::<Interaction>(&project.interactions_path())?;
        let rows = read.map_while(|row| row.map_err(|error| failed = Some(error)).ok());
        let reviews = Self::of(graph, rows);
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(reviews),
        }
    }

    /// Whether there is a review of a train edge that is more than blanks.
    #[must_use]
    pub fn has(&self, edge: EdgeIndex) -> bool {
        self.places.of(edge).is_some()
    }

    /// The interaction that an edge stands for, with its review where there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or was changed since it was opened.
    ///
    /// # Panics
    /// When there is no such edge in the graph.
    pub fn interaction(&self, graph: &BipartiteGraph, edge: EdgeIndex) -> Result<Interaction> {
        let mut interaction = graph.interaction(edge);
        let Some(place) = self.places.of(edge) else {
            return Ok(interaction);
        };
        match &self.source {
            Source::Nowhere => {}
            Source::Memory(texts) => interaction.review = Some(texts[place as usize].to_string()),
            Source::File { path, file } => {
                let line = line_at(file, place)
                    .map_err(|source| because_core::Error::io("read", path, source))?;
                let read: Option<Interaction> = serde_json::from_slice(trimmed(&line)).ok();
                let same = read.filter(|read| {
                    let ends = (&read.user, &read.item);
                    ends == (&interaction.user, &interaction.item) && read.review.is_some()
                });
                let Some(read) = same else {
                    return Err(Error::Changed {
                        path: path.clone(),
                        user: interaction.user,
                        item: interaction.item,
                    });
                };
                interaction.review = read.review;
            }
        }
        Ok(interaction)
    }
}

fn line_at(file: &Mutex<BufReader<File>>, start: u64) -> std::io::Result<Vec<u8>> {
    // Nothing half done is behind a lock that a panic left: every reader begins with its own seek.
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut line = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_until(b'\n', &mut line)?;
    Ok(line)
}

fn speaks(review: &str) -> bool {
    !review.trim().is_empty()
}

fn train_edge(graph: &BipartiteGraph, (user, item): (NodeIndex, NodeIndex)) -> Option<EdgeIndex> {
    let edge = graph.edge_between(user, item)?;
    (edge.weight.split == Split::Train).then_some(edge.index)
}

/// Ids met in a file and where they are in the graph, so that each is searched for once.
#[derive(Default)]
struct Known {
    users: (Ids, Vec<Option<NodeIndex>>),
    items: (Ids, Vec<Option<NodeIndex>>),
}

impl Known {
    fn ends(
        &mut self,
        graph: &BipartiteGraph,
        user: &str,
        item: &str,
    ) -> Result<Option<(NodeIndex, NodeIndex)>> {
        let known = |(ids, nodes): &mut (Ids, Vec<Option<NodeIndex>>), id, find: &dyn Fn() -> _| {
            let number = ids.intern(id)? as usize;
            if number == nodes.len() {
                nodes.push(find());
            }
            Ok::<_, Error>(nodes[number])
        };
        let user = known(&mut self.users, user, &|| graph.user(user))?;
        let item = known(&mut self.items, item, &|| graph.item(item))?;
        Ok(user.zip(item))
    }
}

/// Places by edge while they are gathered.
struct Gathered(Vec<u64>);

const NOWHERE: u64 = u64::MAX;

impl Gathered {
    fn new(graph: &BipartiteGraph) -> Self {
        Self(vec![NOWHERE; graph.edge_count()])
    }

    fn put(&mut self, edge: EdgeIndex, place: u64) {
        self.0[edge.index()] = place;
    }

    fn packed(self) -> Places {
        let mut places = self.0;
        let mut blocks = Vec::with_capacity(places.len().div_ceil(64));
        let mut before = 0;
        for edges in places.chunks(64) {
            let bit = |(at, place): (usize, &u64)| u64::from(*place != NOWHERE) << at;
            let present = edges.iter().enumerate().map(bit).sum::<u64>();
            blocks.push((present, before));
            before += present.count_ones();
        }
        places.retain(|&place| place != NOWHERE);
        places.shrink_to_fit();
        Places { blocks, places }
    }
}

/// A place for some of the edges: 64 edges share a word that says which have one, and how many have one before them.
#[derive(Debug, Default)]
struct Places {
    blocks: Vec<(u64, u32)>,
    places: Vec<u64>,
}

impl Places {
    fn of(&self, edge: EdgeIndex) -> Option<u64> {
        let (present, before) = *self.blocks.get(edge.index() / 64)?;
        let bit = 1_u64 << (edge.index() % 64);
        let among = (present & (bit - 1)).count_ones() as usize;
        (present & bit != 0).then(|| self.places[before as usize + among])
    }
}
