//! Waiting for other commands, which is told when it takes long.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use kiln_sys::lock::{Lock, Sharing, holders};

use crate::Store;
use crate::collect::COLLECT_LOCK;
use crate::error::Result;
use crate::late_lease::LOOK_LOCK;

/// Who waits longer than this says for whom.
const PATIENCE: Duration = Duration::from_secs(1);

/// A command waits for others, and has for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What the others do.
    pub awaited: Awaited,
    /// Their process IDs, as far as they can be told: those in another PID namespace cannot.
    pub processes: Vec<u32>,
}

/// What others do that a collection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// They collect.
    Collection,
    /// They look things up, and have no lease yet.
    LookUp,
}

impl Awaited {
    fn lock(self) -> &'static str {
        match self {
            Self::Collection => COLLECT_LOCK,
            Self::LookUp => LOOK_LOCK,
        }
    }

    /// What the wait is called in a trace.
    fn span(self) -> &'static str {
        match self {
            Self::Collection => "wait for other collections",
            Self::LookUp => "wait for builds that look things up",
        }
    }
}

/// Tells of a wait.
pub(crate) type Tell = Box<dyn Fn(&Wait) + Send + Sync>;

impl Store {
    /// From now on `tell` is called, once for each wait and from another thread, when something waits for other commands
    /// for longer than a second. Only the first call counts.
    pub fn tell_waits(&self, tell: impl Fn(&Wait) + Send + Sync + 'static) {
        let _ = self.tell_wait.set(Box::new(tell));
    }

    /// Waits until nobody does `awaited`; while the lock is held, nobody does.
    pub(crate) fn exclude(&self, awaited: Awaited) -> Result<Lock> {
        let path = self.root().join(awaited.lock());
        if let Some(lock) = Lock::try_acquire(&path, Sharing::Exclusive)? {
            return Ok(lock);
        }
        let _span = kiln_trace::span(awaited.span());
        let Some(tell) = self.tell_wait.get() else { return Ok(Lock::acquire(&path, Sharing::Exclusive)?) };
        acquire_telling(&path, || tell(&Wait { awaited, processes: holders(&path) }))
    }
}

/// Waits for the lock, and calls `tell` if that takes long.
fn acquire_telling(path: &Path, tell: impl Fn() + Send) -> Result<Lock> {
    let (held, waits) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                tell();
            }
        });
        let lock = Lock::acquire(path, Sharing::Exclusive);
        drop(held);
        Ok(lock?)
    })
}
