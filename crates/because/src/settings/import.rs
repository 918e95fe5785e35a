use std::path::{Path, PathBuf};

use because_core::jsonl;
use because_graph::{ColdStart, Filter, Format, Import, Plan, Ratio, SplitStrategy};
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::{Error, Result};

/// Where the interactions of a project come from and what was done with them: all it takes to import them again.
///
/// ```
/// let text = r#"
/// [import]
/// format = "csv"
/// paths = ["ratings.csv"]
/// split = "user-time"
/// seed = 7
///
/// [import.filter]
/// from = "2018-01-01"
/// k_core_users = 5
///
/// [import.cold]
/// users = 0.1
/// keep = [0, 2, 4]
/// "#;
/// let settings: because::Settings = text.parse()?;
/// let import = settings.import.ok_or("there is one")?;
/// assert_eq!(import.plan().filter.k_core_users, Some(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ImportSettings {
    /// What the files are.
    pub format: Format,
    /// Files, or a folder that holds them; a relative path is one in the folder of the settings.
    pub paths: Vec<PathBuf>,
    /// How to split; the rows' own splits, or by lot, where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitStrategy>,
    /// The proportions of train, valid and test.
    #[serde(default)]
    pub ratio: Ratio,
    /// The lot of everything that is drawn at the import; the other stages have their own.
    #[serde(default)]
    pub seed: u64,
    /// What is left out.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub filter: Filter,
    /// Who is made cold.
    #[serde(default, skip_serializing_if = "ColdStart::is_nobody")]
    pub cold: ColdStart,
}

fn is_nothing(filter: &Filter) -> bool {
    *filter == Filter::default()
}

impl ImportSettings {
    /// Of these files, everything else as it is where nobody says anything.
    #[must_use]
    pub fn new(format: Format, paths: Vec<PathBuf>) -> Self {
        let Plan {
            seed,
            split,
            ratio,
            filter,
            cold,
            ..
        } = Plan::default();
        Self {
            format,
            paths,
            split,
            ratio,
            seed,
            filter,
            cold,
        }
    }

    /// What is done with the interactions once they are read.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        plan.seed = self.seed;
        plan.split = self.split;
        plan.ratio = self.ratio;
        plan.filter = self.filter.clone();
        plan.cold = self.cold.clone();
        plan
    }

    /// The import itself.
    #[must_use]
    pub fn import(&self) -> Import {
        Import::new(self.format, &self.paths).plan(self.plan())
    }

    /// Takes relative paths from this folder, so that they mean the same from everywhere.
    ///
    /// # Errors
    /// When the folder is a relative one and where we are cannot be told.
    pub fn resolve(&mut self, folder: &Path) -> Result<()> {
        for path in &mut self.paths {
            let joined = folder.join(&path);
            *path = std::path::absolute(&joined)
                .map_err(|source| because_core::Error::io("find", &joined, source))?;
        }
        Ok(())
    }

    /// Writes this as the `[import]` of a file of settings and leaves the rest of the file as it is, comments included; where
    /// there is no file it makes one.
    ///
    /// # Errors
    /// When the file is there and holds no settings, or cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut settings = Settings::default();
        let mut rest = String::new();
        if path.exists() {
            settings = Settings::load(path)?;
            let text = std::fs::read_to_string(path)
                .map_err(|source| because_core::Error::io("read", path, source))?;
            rest = without_import(&text);
        }
        settings.import = Some(self.clone());
        let section =
            toml::to_string(&Section { import: self }).map_err(|error| unfit(path, error))?;
        if !rest.is_empty() {
            rest.truncate(rest.trim_end().len());
            rest.push_str("\n\n");
        }
        let text = rest + &section;
        // A table told apart by its first line could be a line of a text of several lines.
        let read_back: Settings = toml::from_str(&text).map_err(|source| Error::Settings {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if read_back != settings {
            let said = "its [import] cannot be told from the rest; take it out by hand";
            return Err(unfit(path, said));
        }
        jsonl::write_atomic(path, |out| out.write_all(text.as_bytes()))?;
        Ok(())
    }
}

#[derive(Serialize)]
struct Section<'a> {
    import: &'a ImportSettings,
}

fn unfit(path: &Path, said: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, said);
    because_core::Error::io("write", path, source).into()
}

/// The lines of all other tables.
fn without_import(text: &str) -> String {
    let mut ours = false;
    text.split_inclusive('\n')
        .filter(|line| {
            if let Some(table) = line.trim_start().strip_prefix('[') {
                let name = table.trim_start();
                ours = ["import]", "import.", "import "]
                    .iter()
                    .any(|begin| name.starts_with(begin));
            }
            !ours
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_file_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("because.toml");
        let mine = "# mine\nseed = 3\n\n[import]\nformat = \"csv\"\npaths = []\n[import.filter]\nmin_rating = 1.0\n\n\
                    # how deep\n[profile]\nlayers = 1 # one\n";
        std::fs::write(&path, mine).unwrap();
        let mut import = ImportSettings::new(Format::Jsonl, vec!["a.jsonl".into()]);
        import.split = Some(SplitStrategy::Time);
        import.filter.to = Some("2020-01-01".parse().unwrap());
        import.cold.items = Some("7".parse().unwrap());
        for _ in 0..2 {
            import.save(&path).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# mine\nseed = 3\n\n"), "{text}");
            assert!(text.contains("[profile]\nlayers = 1 # one\n"), "{text}");
            assert_eq!(text.matches("[import]").count(), 1, "{text}");
            let read = Settings::load(&path).unwrap();
            assert_eq!((read.seed, read.profile.layers), (3, 1));
            assert_eq!(read.import, Some(import.clone()));
        }
        let whole = Settings::load(&path).unwrap();
        whole.save(&path).unwrap();
        assert_eq!(Settings::load(&path).unwrap().import, Some(import));
    }

    #[test]
    fn what_looks_like_a_table_and_is_a_text_is_not_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("because.toml");
        let tricky = "[train]\nbase = \"\"\"\n[import]\n\"\"\"\n";
        std::fs::write(&path, tricky).unwrap();
        let import = ImportSettings::new(Format::Csv, vec![]);
        assert!(import.save(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), tricky);
        std::fs::write(&path, "[improt]\n").unwrap();
        assert!(
            import
                .save(&path)
                .unwrap_err()
                .to_string()
                .contains("because.toml")
        );
    }

    #[test]
    fn a_setting_of_another_name_is_refused() {
        for wrong in [
            "[import]\nformat = \"csv\"\npaths = []\nk_core = 5\n",
            "[import]\nformat = \"csv\"\npaths = []\n[import.filter]\nfrom = \"soon\"\n",
            "[import]\npaths = []\n",
        ] {
            assert!(wrong.parse::<Settings>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn relative_paths_are_of_the_folder_of_the_settings() {
        let mut import = ImportSettings::new(Format::Csv, vec!["r.csv".into(), "/b.csv".into()]);
        import.resolve(Path::new("/data")).unwrap();
        assert_eq!(
            import.paths,
            [Path::new("/data/r.csv"), Path::new("/b.csv")]
        );
    }
}
