use std::io::BufRead;
use std::path::Path;

use crate::{Error, Result};

/// Without the feature `parquet` there is only this to say.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    Err(Error::Unreadable {
        path: path.to_owned(),
        reason: "Parquet is read only where the feature `parquet` was built in; build with it, or give CSV or JSON Lines".to_owned(),
    })
}
