//! Waiting for other commands, which is told when it takes long, and work that ends with what it is for.

use std::io::{self, Read};
use std::ops::{ControlFlow, Deref};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use kiln_sys::lock::{Lock, Sharing, holders};

use crate::Store;
use crate::collect::COLLECT_LOCK;
use crate::error::{Error, Result};
use crate::late_lease::LOOK_LOCK;
use crate::lease::Lease;

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

/// What others do that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// They collect.
    Collection,
    /// They look things up, and have no lease yet.
    LookUp,
    /// They make the files of a layer ready, which are needed here, too.
    Files,
}

impl Awaited {
    /// What the wait is called in a trace.
    fn span(self) -> &'static str {
        match self {
            Self::Collection => "wait for other collections",
            Self::LookUp => "wait for builds that look things up",
            Self::Files => "wait for files of a layer",
        }
    }
}

/// What somebody does until others have made the files of a layer ready, which he needs.
pub trait Patience: Sync {
    /// Waits a moment, or breaks off, which ends what needs the files with [`Error::Stopped`]. Called again and again as long
    /// as others are at it.
    fn pause(&self, busy: &FilesBusy<'_>) -> ControlFlow<()>;
    /// The wait is over.
    fn end(&self);
    /// Whether to break off what is read and written meanwhile: asked again and again.
    fn is_over(&self) -> bool;
}

/// Files of a layer that others make ready.
#[derive(Clone, Copy, Debug)]
pub struct FilesBusy<'a> {
    lock: &'a Path,
}

impl FilesBusy<'_> {
    /// The processes that make them just now, this one perhaps among them; those of another PID namespace cannot be told.
    pub fn holders(&self) -> Vec<u32> {
        holders(self.lock)
    }
}

/// Who makes things under a lease, and may have to wait for others: without [`Patience`] as long as it takes.
#[derive(Clone, Copy)]
pub struct Working<'a> {
    lease: &'a Lease,
    patience: Option<&'a dyn Patience>,
}

impl<'a> Working<'a> {
    /// Somebody who waits in a way of his own.
    pub fn with(lease: &'a Lease, patience: &'a dyn Patience) -> Self {
        Self { lease, patience: Some(patience) }
    }

    /// Fails with [`Error::Stopped`] inside once what this is for is given up.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        match self.patience.is_some_and(Patience::is_over) {
            true => Err(io::Error::other(Error::Stopped)),
            false => Ok(()),
        }
    }

    /// A reader that goes on no longer than this.
    pub(crate) fn watched<R>(self, inner: R) -> Watched<'a, R> {
        Watched { inner, working: self }
    }
}

/// A reader that fails once what is read is not needed any more.
pub(crate) struct Watched<'a, R> {
    inner: R,
    working: Working<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.working.go_on()?;
        self.inner.read(bytes)
    }
}

impl<'a> From<&'a Lease> for Working<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self { lease, patience: None }
    }
}

impl Deref for Working<'_> {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        self.lease
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

    /// Waits until nobody collects; while the lock is held, nobody does.
    pub(crate) fn exclude_collections(&self) -> Result<Lock> {
        self.exclude(Awaited::Collection, &self.root().join(COLLECT_LOCK))
    }

    /// Waits until nobody looks things up; while the lock is held, nobody does.
    pub(crate) fn exclude_look_ups(&self) -> Result<Lock> {
        self.exclude(Awaited::LookUp, &self.root().join(LOOK_LOCK))
    }

    /// Waits for the lock of those who make some files ready.
    pub(crate) fn lock_files(&self, path: &Path, waiting: Working<'_>) -> Result<Lock> {
        let Some(patience) = waiting.patience else { return self.exclude(Awaited::Files, path) };
        if let Some(lock) = Lock::try_acquire(path, Sharing::Exclusive)? {
            return Ok(lock);
        }
        let _span = kiln_trace::span(Awaited::Files.span());
        let wait = || loop {
            if patience.pause(&FilesBusy { lock: path }).is_break() {
                return Err(Error::Stopped);
            }
            if let Some(lock) = Lock::try_acquire(path, Sharing::Exclusive)? {
                return Ok(lock);
            }
        };
        let lock = wait();
        patience.end();
        lock
    }

    fn exclude(&self, awaited: Awaited, path: &Path) -> Result<Lock> {
        if let Some(lock) = Lock::try_acquire(path, Sharing::Exclusive)? {
            return Ok(lock);
        }
        let _span = kiln_trace::span(awaited.span());
        let Some(tell) = self.tell_wait.get() else { return Ok(Lock::acquire(path, Sharing::Exclusive)?) };
        acquire_telling(path, || tell(&Wait { awaited, processes: holders(path) }))
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kiln_oci::Digest;

    use super::*;
    use crate::records::Claim;
    use crate::store::Ownership;

    /// Breaks off after some rounds, or lets go of what it waits for.
    struct Rounds {
        most: usize,
        held: Mutex<Option<Claim>>,
        waited: AtomicUsize,
        ended: AtomicUsize,
    }

    impl Patience for Rounds {
        fn pause(&self, busy: &FilesBusy<'_>) -> ControlFlow<()> {
            assert_eq!(busy.holders(), [std::process::id()]);
            if self.waited.fetch_add(1, Ordering::Relaxed) < self.most {
                return ControlFlow::Continue(());
            }
            match self.held.lock().unwrap().take() {
                Some(_) => ControlFlow::Continue(()),
                None => ControlFlow::Break(()),
            }
        }

        fn is_over(&self) -> bool {
            false
        }

        fn end(&self) {
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_makes_files_ready_is_waited_for_with_patience() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let key = Digest::of(b"layer");
        let claim = || store.claim_files(&key, (&lease).into()).unwrap();
        let wait = |held: Option<Claim>| {
            let rounds = Rounds {
                most: 2,
                held: Mutex::new(held),
                waited: Default::default(),
                ended: Default::default(),
            };
            let claimed = store.claim_files(&key, Working::with(&lease, &rounds));
            assert_eq!((rounds.waited.into_inner(), rounds.ended.into_inner()), (3, 1));
            claimed
        };
        let held = claim();
        // Who makes them needs the tar of another layer, whose lock may have the same name but for its kind.
        drop(store.claim_tar(kiln_oci::DiffId(key), (&lease).into()).unwrap());
        assert!(matches!(wait(None), Err(Error::Stopped)));
        drop(wait(Some(held)).unwrap());

        let (sender, told) = mpsc::channel();
        store.tell_waits(move |wait| sender.send(wait.clone()).unwrap());
        let held = claim();
        std::thread::scope(|scope| {
            let other = scope.spawn(claim);
            let wait = told.recv_timeout(Duration::from_secs(60));
            drop(held);
            other.join().unwrap();
            assert_eq!(wait, Ok(Wait { awaited: Awaited::Files, processes: vec![std::process::id()] }));
        });
    }
}
