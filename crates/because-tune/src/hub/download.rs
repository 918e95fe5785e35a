use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use because_core::jsonl::write_atomic;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};

use super::Hub;
use super::cache::{EXPECTED, INDEX, REQUIRED, Repository, SINGLE, Snapshot, shards};
use super::client::{Client, Remote};
use super::fault::{HubFault, no_model_in};
use super::id::HubId;

/// What some checkpoints have beside: a template of its own file, and the tokenizer's special words.
const OPTIONAL: [&str; 3] = [
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];
const NEEDED: &str = "a base needs config.json, tokenizer.json and model.safetensors (or its shards with \
                      model.safetensors.index.json); .bin checkpoints cannot be run, and a .gguf file only by its path";
/// How often a download says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// A hub that asks for a longer pause is better left alone until the person comes back.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Fills the cache with what a base needs of one commit.
pub(super) fn run(hub: &Hub, id: &HubId, repository: &Repository) -> Result<Snapshot> {
    let work = || {
        let client = Client::new(hub, id).map_err(|fault| at(id, fault))?;
        let download = Download {
            hub,
            id,
            repository,
            client,
            reached: Cell::new(false),
        };
        download.run()
    };
    // The HTTP client must not wait on a thread that drives an async runtime, and the caller's may be one.
    let tell = tracing::dispatcher::get_default(Clone::clone);
    let work = || tracing::dispatcher::with_default(&tell, work);
    std::thread::scope(|scope| {
        scope
            .spawn(work)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Download<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    repository: &'a Repository,
    client: Client,
    /// Whether the hub has answered at all. If not, a machine without a connection is likelier than a bad moment.
    reached: Cell<bool>,
}

/// A digest of what has come, and how much that is.
struct Tally {
    digest: Context,
    bytes: u64,
}

impl Download<'_> {
    fn run(&self) -> Result<Snapshot> {
        let revision = self.id.revision();
        let config = self
            .look_up(revision, REQUIRED[0])?
            .ok_or_else(|| self.no_file(REQUIRED[0]))?;
        let snapshot = self.repository.snapshot(&config.commit).ok_or_else(|| {
            self.fault(HubFault::NotAHub {
                endpoint: self.client.endpoint(),
                reason: format!("{:?} is no commit", config.commit),
            })
        })?;
        self.take(&snapshot, REQUIRED[0], &config)?;
        // A model that cannot be run is better refused before its weights have come.
        QwenConfig::read(&snapshot.path.join(REQUIRED[0]))?;
        for file in &REQUIRED[1..] {
            if !self.get(&snapshot, file)? {
                return Err(self.no_file(file));
            }
        }
        for file in EXPECTED.into_iter().chain(OPTIONAL) {
            let absence = self.repository.absence(&snapshot, file);
            if !absence.exists() && !self.get(&snapshot, file)? {
                write(&absence, b"")?;
            }
        }
        self.weights(&snapshot)?;
        if revision != snapshot.commit {
            // Last, so that a branch never leads to half a model.
            let commit = snapshot.commit.as_bytes();
            write(&self.repository.reference(revision), commit)?;
        }
        Ok(snapshot)
    }

    fn weights(&self, snapshot: &Snapshot) -> Result<()> {
        let index = snapshot.path.join(INDEX);
        if !index.is_file() {
            if self.get(snapshot, SINGLE)? {
                return Ok(());
            }
            if !self.get(snapshot, INDEX)? {
                return Err(self.no_file(SINGLE));
            }
        }
        let shards = shards(&index).map_err(|reason| TuneError::Weights {
            path: index.clone(),
            reason,
        })?;
        for shard in shards {
            if !self.get(snapshot, &shard)? {
                return Err(self.no_file(&shard));
            }
        }
        Ok(())
    }

    /// Whether the file is in the snapshot now; `false` where the repository has none.
    fn get(&self, snapshot: &Snapshot, file: &str) -> Result<bool> {
        // A commit does not change, so what is here of it is right.
        if snapshot.path.join(file).is_file() {
            return Ok(true);
        }
        match self.look_up(&snapshot.commit, file)? {
            Some(remote) => self.take(snapshot, file, &remote).map(|()| true),
            None => Ok(false),
        }
    }

    fn look_up(&self, revision: &str, file: &str) -> Result<Option<Remote>> {
        self.patiently(
            || 0,
            || {
                self.client
                    .look_up(revision, file)
                    .map_err(|fault| self.fault(fault))
            },
        )
    }

    /// Puts a file into its place, whole.
    fn take(&self, snapshot: &Snapshot, file: &str, remote: &Remote) -> Result<()> {
        let place = snapshot.path.join(file);
        if place.is_file() {
            return Ok(());
        }
        let blob = self.repository.blob(&remote.etag);
        let partial = self.repository.partial(&remote.etag);
        let _lock = self.lock(&self.repository.lock(&remote.etag), file)?;
        if place.is_file() {
            return Ok(());
        }
        let is_whole = std::fs::metadata(&blob)
            .is_ok_and(|here| here.is_file() && remote.size.is_none_or(|size| size == here.len()));
        if !is_whole {
            make_folder_of(&blob)?;
            self.patiently(
                || std::fs::metadata(&partial).map_or(0, |here| here.len()),
                || self.receive(&snapshot.commit, file, remote, &partial),
            )?;
            std::fs::rename(&partial, &blob)
                .map_err(|error| TuneError::io("rename", &partial, error))?;
        }
        make_folder_of(&place)?;
        link(&blob, &remote.etag, &place).map_err(|error| TuneError::io("link", &place, error))
    }

    /// One try to bring a blob to its end. What had come before is kept and only the rest is asked for.
    fn receive(&self, commit: &str, file: &str, remote: &Remote, partial: &Path) -> Result<()> {
        let io = |error| TuneError::io("write", partial, error);
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(partial)
            .map_err(io)?;
        let mut tally = Tally::of(&mut out).map_err(io)?;
        if remote.size.is_some_and(|size| tally.bytes > size) {
            tally = Tally::empty(&mut out).map_err(io)?;
        }
        let mut size = remote.size;
        let goes_on = tally.bytes > 0;
        if size != Some(tally.bytes) || size == Some(0) {
            let Some(mut body) = self
                .client
                .open(commit, file, tally.bytes)
                .map_err(|fault| self.fault(fault))?
            else {
                Tally::empty(&mut out).map_err(io)?;
                return Err(self.damaged(file, "the hub has less of it than came before"));
            };
            size = size.or(body.size);
            if body.start != tally.bytes {
                if body.start != 0 {
                    return Err(self.damaged(file, "another part came than was asked for"));
                }
                // The server cannot go on in the middle.
                tally = Tally::empty(&mut out).map_err(io)?;
            }
            if body.size.zip(size).is_some_and(|(sent, said)| sent != said) {
                Tally::empty(&mut out).map_err(io)?;
                let (sent, said) = (shown(body.size), shown(size));
                return Err(self.damaged(
                    file,
                    &format!("{sent} bytes are sent, {said} were announced"),
                ));
            }
            self.copy(file, &mut body.response, &mut out, &mut tally, size)?;
        }
        out.sync_all().map_err(io)?;
        let bytes = tally.bytes;
        if let Err(reason) = tally.check(size, &remote.etag) {
            if size.is_some_and(|size| bytes < size) {
                return Err(self.cut(file, bytes, size, "the connection ended"));
            }
            Tally::empty(&mut out).map_err(io)?;
            let begun = if goes_on {
                " (begun in an earlier try)"
            } else {
                ""
            };
            return Err(self.damaged(file, &format!("{reason}{begun}")));
        }
        Ok(())
    }

    fn copy(
        &self,
        file: &str,
        from: &mut impl Read,
        out: &mut File,
        tally: &mut Tally,
        size: Option<u64>,
    ) -> Result<()> {
        let mut buffer = vec![0; 1 << 17];
        let (begun, mut told) = (Instant::now(), Instant::now());
        let id = self.id;
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let of = size.map_or_else(|| "?".to_owned(), megabytes);
        let is_large = size.is_none_or(|size| size > 10_000_000);
        if is_large {
            let here = megabytes(tally.bytes);
            tracing::info!("{id}: downloading {file}, {here} of {of} are here");
        }
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let reason = self.client.clean(&error.to_string());
                    return Err(self.cut(file, tally.bytes, size, &reason));
                }
            };
            out.write_all(&buffer[..read])
                .map_err(|error| TuneError::io("write", &self.repository.folder(), error))?;
            tally.add(&buffer[..read]);
            if size.is_some_and(|size| tally.bytes > size) {
                break;
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tracing::info!("{id}: {file}: {} of {of}", megabytes(tally.bytes));
            }
        }
        if is_large {
            tracing::info!("{id}: {file} took {:.1} s", begun.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Tries again what may do better later; as long as more comes each time, without end.
    fn patiently<T>(&self, come: impl Fn() -> u64, work: impl Fn() -> Result<T>) -> Result<T> {
        let mut tries = 0;
        loop {
            let before = come();
            let fault = match work() {
                Err(TuneError::Hub { fault, .. }) if fault.is_passing() => fault,
                done => {
                    self.reached.set(true);
                    return done;
                }
            };
            let is_silent = matches!(fault, HubFault::Unreachable { .. }) && !self.reached.get();
            let most = self
                .hub
                .patience
                .tries
                .min(if is_silent { 2 } else { u32::MAX });
            tries = if come() > before { 1 } else { tries + 1 };
            let asked = match fault {
                HubFault::RateLimited { seconds, .. } => seconds.map(Duration::from_secs),
                _ => None,
            };
            let pause = asked.unwrap_or(self.hub.patience.pause * 2_u32.pow(tries - 1));
            if tries >= most || pause > LONGEST_PAUSE {
                return Err(self.fault(fault));
            }
            // Who was never reached is told of once, in the error.
            if !is_silent {
                tracing::warn!("{}: {fault}; trying again", self.id);
            }
            std::thread::sleep(pause);
        }
    }

    /// Two processes that want one file: the second waits and finds it.
    fn lock(&self, path: &Path, file: &str) -> Result<File> {
        let io = |error| TuneError::io("lock", path, error);
        make_folder_of(path)?;
        let lock = File::create(path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!(
                    "{}: another process downloads {file}; waiting for it",
                    self.id
                );
                lock.lock().map_err(io)?;
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        Ok(lock)
    }

    /// A fault with what the client could not know.
    fn fault(&self, mut fault: HubFault) -> TuneError {
        match &mut fault {
            HubFault::Unreachable { advice, .. } => {
                *advice = match self.reached.get() {
                    true => "what has come is kept, and the same command goes on from there".into(),
                    false => format!(
                        "there is {}; {}",
                        no_model_in(&self.repository.folder()),
                        self.hub.advice(self.id, self.repository)
                    ),
                }
            }
            HubFault::NoRevision { revision } => self.id.revision().clone_into(revision),
            _ => {}
        }
        at(self.id, fault)
    }

    fn no_file(&self, file: &str) -> TuneError {
        self.fault(HubFault::NoFile {
            file: file.to_owned(),
            needed: NEEDED,
        })
    }

    fn cut(&self, file: &str, have: u64, size: Option<u64>, reason: &str) -> TuneError {
        self.fault(HubFault::Cut {
            file: file.to_owned(),
            have,
            size: shown(size),
            reason: reason.to_owned(),
        })
    }

    fn damaged(&self, file: &str, reason: &str) -> TuneError {
        self.fault(HubFault::Damaged {
            file: file.to_owned(),
            reason: reason.to_owned(),
        })
    }
}

impl Tally {
    /// Of what is in a file; leaves it at its end.
    fn of(file: &mut File) -> std::io::Result<Self> {
        let mut tally = Self {
            digest: Context::new(&SHA256),
            bytes: 0,
        };
        file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; 1 << 17];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(tally),
                read => tally.add(&buffer[..read]),
            }
        }
    }

    /// Of the same file with nothing in it.
    fn empty(file: &mut File) -> std::io::Result<Self> {
        file.set_len(0)?;
        Self::of(file)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Large files are known to the hub by their SHA-256. What is known by another name (a Git object's, a mirror's own) has
    /// only its size.
    fn check(self, size: Option<u64>, etag: &str) -> Result<(), String> {
        if size.is_some_and(|size| size != self.bytes) {
            return Err(format!("{} bytes came, not {}", self.bytes, shown(size)));
        }
        let digest = self.digest.finish();
        let digest: String = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let is_sha256 = etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit());
        match is_sha256 && !etag.eq_ignore_ascii_case(&digest) {
            true => Err(format!("its SHA-256 is {digest}, the hub's {etag}")),
            false => Ok(()),
        }
    }
}

fn at(id: &HubId, fault: HubFault) -> TuneError {
    TuneError::Hub {
        id: id.to_string(),
        fault,
    }
}

fn shown(size: Option<u64>) -> String {
    size.map_or_else(|| "?".to_owned(), |size| size.to_string())
}

fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|error| TuneError::io("create", folder, error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder_of(path)?;
    Ok(write_atomic(path, |out| out.write_all(bytes))?)
}

/// Lets a snapshot's file lead to its blob; where links are not to be had, the blob itself moves there.
fn link(blob: &Path, etag: &str, place: &Path) -> std::io::Result<()> {
    if place.symlink_metadata().is_ok() {
        // A link to a blob that was removed.
        std::fs::remove_file(place)?;
    }
    let target: PathBuf = ["..", "..", "blobs", etag].iter().collect();
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&target, place);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(&target, place);
    #[cfg(not(any(unix, windows)))]
    let linked: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
    linked.or_else(|_| std::fs::rename(blob, place))
}
