//! Leases: what a running command uses is not collected.
//!
//! A lease is a row and a locked file. A free lock means that its owner is dead, whatever PID namespaces lie
//! between; the collector then removes the row and the directory.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kiln_oci::{ChainId, DiffId, Digest, ImageId};
use kiln_sys::lock::{Lock, Sharing};
use kiln_sys::overlay::TarMount;
use kiln_sys::root::Directory;
use rusqlite::{Connection, params};

use crate::Store;
use crate::collect::Collection;
use crate::database::{Database, Durability, all, execute, now};
use crate::error::{Error, Result};
use crate::snapshots::{PreparedRoot, RootForm, SnapshotPaths};

/// The file in a lease's directory that its owner holds locked.
const LOCK: &str = "lock";

/// A lease of this process. Dropping it removes its row and its directory.
pub struct Lease {
    id: String,
    directory: PathBuf,
    database: Arc<Database>,
    next: AtomicU64,
    /// Chains whose layers are all leased, so that asking again costs nothing.
    kept: Mutex<HashSet<ChainId>>,
    /// How layers are mounted: the same way in every root, since each is in a mount namespace of its own.
    pub(crate) mounted: Mutex<HashMap<DiffId, TarMount>>,
    /// Where the snapshots of leased layers are, by the chain that each one ends: nothing moves them.
    pub(crate) snapshots: Mutex<HashMap<ChainId, SnapshotPaths>>,
    /// What nothing needs any more, to be removed when there is time.
    spent: Mutex<Vec<Discarded>>,
    /// Released last: once it is free, the collector may sweep the directory.
    lock: Option<Lock>,
}

/// What is discarded, in the lease's directory.
#[derive(Debug)]
enum Discarded {
    /// What the kernel made of an overlay's work directory.
    Work(PathBuf),
    /// Files of a step, of any number.
    Files(PathBuf),
}

/// Discarded files that are still to be removed, which may take long.
#[derive(Debug)]
pub struct Spent {
    directory: Directory,
    names: Vec<OsString>,
}

impl Spent {
    /// Removes them. What cannot be removed goes with the lease.
    pub fn remove(self) {
        let _span = kiln_trace::span("remove discarded files");
        for name in &self.names {
            let _ = self.directory.remove_all(name);
        }
    }
}

/// Something that a lease keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leased {
    /// A layer: its index, blobs and snapshots.
    Layer(DiffId),
    /// An image with all its layers.
    Image(ImageId),
    /// A blob that belongs to no layer yet.
    Blob(Digest),
}

impl Leased {
    fn row(self) -> (&'static str, Digest) {
        match self {
            Self::Layer(layer) => ("layer", layer.0),
            Self::Image(image) => ("image", image.0),
            Self::Blob(blob) => ("blob", blob),
        }
    }
}

impl Store {
    /// Takes a lease for a command, which is named in `kiln system df -v` and in errors.
    pub fn lease(&self, command: &str) -> Result<Lease> {
        self.lease_with(command, |_, _| Ok(Vec::new()))
    }

    /// Takes a lease that keeps what `keep` makes it keep, from the beginning: one transaction.
    pub(crate) fn lease_with(
        &self,
        command: &str,
        keep: impl FnOnce(&Connection, &Lease) -> Result<Vec<ChainId>>,
    ) -> Result<Lease> {
        let id = crate::store::random_hex(8)?;
        let _span = kiln_trace::span("begin lease");
        let directory = self.root().join("tmp").join(&id);
        let mut lease = Lease {
            id,
            directory,
            database: Arc::clone(&self.database),
            next: AtomicU64::new(0),
            kept: Mutex::default(),
            mounted: Mutex::default(),
            snapshots: Mutex::default(),
            spent: Mutex::default(),
            lock: None,
        };
        // All of it in one transaction: for the collector, a directory without a row is nobody's.
        let kept = self.database.write(Durability::Relaxed, |t| {
            fs_err::create_dir(&lease.directory).map_err(Error::file("make", &lease.directory))?;
            lease.lock = Some(Lock::acquire(&lease.directory.join(LOCK), Sharing::Exclusive)?);
            execute(t, "INSERT INTO leases VALUES (?1, ?2, ?3)", params![lease.id, command, now()])?;
            keep(t, &lease)
        })?;
        lease.note_kept(kept);
        Ok(lease)
    }

    /// Passes the outcome of a command's work on. If it failed, the lease keeps nothing any more, and what had been
    /// published for it alone is collected.
    pub(crate) fn undo_failed<T>(&self, lease: &Lease, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            // The first failure is the one to tell. What cannot be removed now goes with the next collection.
            let _ = lease.clear().and_then(|()| self.collect(&Collection::default()));
        }
        outcome
    }
}

impl Lease {
    /// Directory for in-flight work, in the store's file system, so that it can be published by rename.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A fresh path in the lease's directory.
    pub fn fresh_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}-{name}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Keeps something from collection as long as the lease lives.
    pub fn keep(&self, what: Leased) -> Result<()> {
        self.database.write(Durability::Relaxed, |t| self.keep_in(t, what))
    }

    pub(crate) fn has_kept(&self, chain: ChainId) -> bool {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&chain)
    }

    pub(crate) fn note_kept(&self, chains: Vec<ChainId>) {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(chains);
    }

    /// As [`Lease::keep`], in a transaction that also found or made it. Who leases a layer uses it: collection takes
    /// those first that were leased longest ago.
    pub(crate) fn keep_in(&self, t: &Connection, what: Leased) -> Result<()> {
        let (kind, digest) = what.row();
        execute(
            t,
            "INSERT INTO lease_roots VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![self.id, kind, digest.as_bytes()],
        )?;
        if let Leased::Image(image) = what {
            if all(t, "SELECT 1 FROM images WHERE id = ?1", [image.0.as_bytes()], |_| Ok(()))?.is_empty() {
                return Err(Error::NoImage(image.to_string()));
            }
            // The image may go while its layers are in use, and their order goes with it.
            execute(
                t,
                "INSERT INTO lease_roots SELECT ?1, 'layer', diff_id FROM image_layers WHERE image = ?2 \
                 ON CONFLICT DO NOTHING",
                params![self.id, image.0.as_bytes()],
            )?;
        }
        if let Leased::Layer(layer) = what {
            execute(
                t,
                "UPDATE layers SET last_used = ?1 WHERE diff_id = ?2",
                params![now(), layer.0.as_bytes()],
            )?;
        }
        Ok(())
    }

    /// Says that nothing needs the rest of a root any more, whose changes were published.
    pub fn discard(&self, root: &PreparedRoot) {
        let mut spent = self.spent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &root.form {
            RootForm::Overlay { overlay, upper } => {
                spent.push(Discarded::Files(upper.clone()));
                spent.extend(overlay.upper.as_ref().map(|upper| Discarded::Work(upper.work.clone())));
            }
            RootForm::Copy { directory, .. } => spent.push(Discarded::Files(directory.clone())),
        }
    }

    /// Removes what was discarded and is quickly removed, and gives back what may not be. To be called while there is
    /// something to wait for; what stays goes with the lease.
    #[must_use = "what is given back is still there"]
    pub fn tidy(&self) -> Option<Spent> {
        let discarded =
            std::mem::take(&mut *self.spent.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let directory = Directory::open(&self.directory).ok()?;
        let mut names = Vec::new();
        for discarded in discarded {
            let (Discarded::Work(path) | Discarded::Files(path)) = &discarded;
            let Some(name) = path.file_name().filter(|_| path.parent() == Some(&self.directory)) else {
                continue;
            };
            match (&discarded, directory.remove_directory(name)) {
                (Discarded::Work(_), Err(_)) => drop(directory.remove_all(name)),
                // It mostly became the layer's, or is empty.
                (Discarded::Files(_), Err(error)) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    names.push(name.to_owned());
                }
                _ => {}
            }
        }
        (!names.is_empty()).then_some(Spent { directory, names })
    }

    /// Removes all that is in the lease's directory but the lock.
    fn remove_files(&self) -> Result<()> {
        let directory = Directory::open(&self.directory)?;
        for found in directory.list()? {
            if found.name != LOCK {
                directory.remove_all(&found.name)?;
            }
        }
        Ok(())
    }

    /// Lets go of everything that was leased and removes the files of unfinished work.
    fn clear(&self) -> Result<()> {
        // Files first: on a full disk they are what makes room for the rows' change.
        self.remove_files()?;
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.mounted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.database.write(Durability::Relaxed, |t| {
            execute(t, "DELETE FROM lease_roots WHERE lease = ?1", [&self.id]).map(|_| ())
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _span = kiln_trace::span("end lease");
        let _ = self
            .database
            .write(Durability::Relaxed, |t| execute(t, "DELETE FROM leases WHERE id = ?1", [&self.id]));
        // The lock goes last: without it, a collection takes what is left for a dead command's.
        let _ = self.remove_files();
        if let (Some(parent), Some(name)) = (self.directory.parent(), self.directory.file_name()) {
            let _ = Directory::open(parent).and_then(|parent| parent.remove_all(name));
        }
        drop(self.lock.take());
    }
}

/// Whether the lease in this directory has a living owner. The row is made after the lock is held, so a lease
/// with a row and a free lock is dead.
pub(crate) fn is_alive(directory: &Path) -> bool {
    let lock = directory.join(LOCK);
    match lock.try_exists() {
        Ok(false) => false,
        // In doubt it is: a live lease must not be ended for want of a descriptor.
        _ => !matches!(Lock::try_acquire(&lock, Sharing::Exclusive), Ok(Some(_))),
    }
}
