/// What can go wrong when a report is written; measuring itself cannot fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder or a file of the report could not be written.
    #[error(transparent)]
    File(#[from] because_core::Error),
    /// The figures could not be turned into JSON.
    #[error("report.json: a figure cannot be written as json")]
    Json(#[source] serde_json::Error),
    /// The page could not be filled in.
    #[error("report.html: the page cannot be rendered")]
    Page(#[source] minijinja::Error),
}

/// The result of everything in this crate that writes.
pub type Result<T, E = Error> = std::result::Result<T, E>;
