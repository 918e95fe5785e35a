use std::path::PathBuf;

use because_core::{ItemId, UserId};

/// What can go wrong between raw files and a graph; each variant says where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the project or of the input could not be read or written.
    #[error(transparent)]
    File(#[from] because_core::Error),
    /// A path to import from does not exist.
    #[error("{}: no such file or folder; name files, or a folder that holds them", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A folder holds nothing that the reader looks for.
    #[error("{}: no file to import in this folder; looked for {looked_for}, or name the files themselves", path.display())]
    NothingToImport {
        /// The folder.
        path: PathBuf,
        /// The names that would have been read.
        looked_for: String,
    },
    /// A CSV file cannot be read by its first row.
    #[error("{}: line {line}: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Where the header stands.
        line: u64,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A file of a kind that is not read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do instead.
        reason: String,
    },
    /// The import would write over one of the files it reads.
    #[error("{}: this file would be read and written over; choose another output directory", path.display())]
    InputIsOutput {
        /// The file.
        path: PathBuf,
    },
    /// Nothing is left to build a graph from after rejecting and filtering.
    #[error("no interaction left: {account}")]
    NoInteractions {
        /// What became of the rows that were read, and what to do.
        account: String,
    },
    /// A setting that cannot be worked with.
    #[error("{name} {value} {reason}")]
    Setting {
        /// Its name as in the setters.
        name: &'static str,
        /// What was given.
        value: String,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// A split by time met an interaction without one.
    #[error(
        "user {user}, item {item}: no timestamp, so there is no split by time; use another, such as `random` or `leave-one-out`"
    )]
    NoTimestamp {
        /// Who.
        user: UserId,
        /// With what.
        item: ItemId,
    },
    /// The rows' own splits are asked for and one has none.
    #[error(
        "user {user}, item {item}: no split of its own; use another than `rows`, or give every row its split"
    )]
    NoSplit {
        /// Who.
        user: UserId,
        /// With what.
        item: ItemId,
    },
    /// The same user and item come twice where one edge must be.
    #[error(
        "user {user}, item {item}: two interactions for one edge; `because import` keeps one and lists the other"
    )]
    DuplicatePair {
        /// Who.
        user: UserId,
        /// With what.
        item: ItemId,
    },
    /// A file is not any more what it was when the graph was made of it.
    #[error("{}: was changed while it was in use: the line of user {user}, item {item} is not where it was", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Whose line was looked for.
        user: UserId,
        /// About what.
        item: ItemId,
    },
    /// A graph of no interactions.
    #[error("a graph needs at least one interaction and none was given")]
    EmptyGraph,
    /// More nodes or edges than a 32-bit index can name.
    #[error("{count} {what} are more than one graph can hold ({})", u32::MAX - 1)]
    TooLarge {
        /// "nodes", "interactions" or "bytes of ids".
        what: &'static str,
        /// How many there were.
        count: usize,
    },
}

impl Error {
    /// Whether what the caller gave is at fault and not the machine.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::File(error) => error.is_bad_input(),
            _ => true,
        }
    }
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
