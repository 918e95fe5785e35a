use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use futures_timer::Delay;

use crate::RequestKey;

/// Says to other processes which requests this one is about to pay for.
///
/// A claim is a lock on one byte of the file beside the store, chosen by the key. The system lets go of it when its process
/// ends, however it ends, so nobody ever waits for the dead. Where there are no such locks (they are Linux's), every claim
/// is granted, and two processes that ask the same at the same moment both pay.
#[derive(Debug, Clone)]
pub(super) struct Claims(Option<Arc<File>>);

/// Held while a request is asked.
#[derive(Debug)]
pub(crate) struct Claim {
    file: Option<Arc<File>>,
    byte: i64,
}

impl Claims {
    pub(super) fn new(file: Option<Arc<File>>) -> Self {
        Self(file)
    }

    /// Waits until no other process claims this request.
    pub(super) async fn claim(&self, key: &RequestKey) -> Claim {
        let mut wait = Duration::from_millis(5);
        loop {
            if let Some(claim) = self.try_claim(key) {
                return claim;
            }
            Delay::new(wait).await;
            wait = (wait * 2).min(Duration::from_millis(250));
        }
    }

    fn try_claim(&self, key: &RequestKey) -> Option<Claim> {
        let mut start = [0; 8];
        start.copy_from_slice(&key.as_bytes()[..8]);
        // Two keys for one byte only make one of them wait.
        let byte = i64::from_le_bytes(start) & (i64::MAX >> 1);
        let file = self.0.clone();
        let free = file.as_ref().is_none_or(|file| system::lock(file, byte));
        free.then_some(Claim { file, byte })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            system::unlock(file, self.byte);
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod system {
    use std::fs::File;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    /// False only if another holds it: a system that cannot lock does not stop a run.
    pub(super) fn lock(file: &File, byte: i64) -> bool {
        !matches!(
            set(file, byte, libc::F_WRLCK),
            Err(Errno::EAGAIN | Errno::EACCES)
        )
    }

    pub(super) fn unlock(file: &File, byte: i64) {
        let _ = set(file, byte, libc::F_UNLCK);
    }

    fn set(file: &File, byte: i64, kind: libc::c_int) -> nix::Result<i32> {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the system's own constants, in the width it wants them"
        )]
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock))
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod system {
    use std::fs::File;

    pub(super) fn lock(_: &File, _: i64) -> bool {
        true
    }

    pub(super) fn unlock(_: &File, _: i64) {}
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::{ChatRequest, Message, ModelId};

    #[test]
    fn what_one_opening_claims_another_waits_for() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(folder.path().join("lock"))
                .unwrap();
            Claims::new(Some(Arc::new(file)))
        };
        let key = |text: &str| ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default());
        let (one, other) = (open(), open());
        let held = one.try_claim(&key("a")).unwrap();
        assert!(other.try_claim(&key("a")).is_none());
        assert!(other.try_claim(&key("b")).is_some());
        drop(held);
        assert!(other.try_claim(&key("a")).is_some());
        let held = one.try_claim(&key("a"));
        drop((one, held));
        assert!(other.try_claim(&key("a")).is_some());
    }
}
