use std::fmt;
use std::path::Path;

/// A model's name on a hub: `owner/name`, or `owner/name@revision` for a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubId {
    owner: String,
    name: String,
    revision: Option<String>,
}

impl HubId {
    /// What a path says if it is read as a hub id; `None` where it can only be a path. Nothing is looked up.
    pub(crate) fn parse(path: &Path) -> Option<Self> {
        let (id, revision) = match path.to_str()?.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (path.to_str()?, None),
        };
        let (owner, name) = id.split_once('/')?;
        let good = is_name(owner) && is_name(name) && revision.is_none_or(is_revision);
        good.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// The branch, tag or commit; `main` where none was said.
    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// `owner/name`, as other programs know it.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Whose model it is.
    #[cfg(feature = "hub")]
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// The revision, where one was said.
    pub(crate) fn said_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The same model at this commit.
    pub(crate) fn at(&self, commit: &str) -> Self {
        Self {
            revision: Some(commit.to_owned()),
            ..self.clone()
        }
    }

    /// The name alone.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folder in a cache, by the convention that all of the hub's clients share.
    pub(super) fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// The hub's own rule for both halves of an id; it also keeps a name from leading out of the cache.
fn is_name(text: &str) -> bool {
    let ends = |edge: Option<char>| edge.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.len() <= 96
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !text.contains("--")
        && !text.contains("..")
}

/// Branches may hold slashes (`refs/pr/1`), but no part may lead elsewhere.
fn is_revision(text: &str) -> bool {
    text.len() <= 200
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./+".contains(c))
        && text.split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// Whether a text can stand as the name of one file, wherever it came from.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && !text.starts_with('.')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for text in [
            "Qwen/Qwen2.5-0.5B-Instruct",
            "a/b",
            "a/b@main",
            "a/b@refs/pr/1",
            "a_b/c-d@v1.0+x",
        ] {
            assert_eq!(HubId::parse(Path::new(text)).unwrap().to_string(), text);
        }
        for text in [
            "tiny", "", "a/b/c", "/a/b", "./a/b", "./b", "../b", "a/..", "a/b/", "a/", "~/b",
            "a b/c", "a--b/c", "a/b@", "a/b@../c", "a/b@/c", "a/b@c//d", "a/b@c\\d", "a/b@c/..",
            "a/b@c/.", "a/b?c", "a/\u{e4}",
        ] {
            assert_eq!(HubId::parse(Path::new(text)), None, "{text}");
        }
        let id = HubId::parse(Path::new("Qwen/Qwen2.5@v1")).unwrap();
        assert_eq!(
            (id.revision(), id.repository().as_str(), id.name()),
            ("v1", "Qwen/Qwen2.5", "Qwen2.5")
        );
        assert_eq!(id.folder(), "models--Qwen--Qwen2.5");
    }
}
