//! Directories of `RUN --mount=type=cache`.

use std::path::{Path, PathBuf};

use kiln_sys::lock::{Lock, Sharing};
use rusqlite::params;

use crate::Store;
use crate::database::{Durability, all, execute, now};
use crate::error::{Error, Result};

/// `sharing=` of a cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMountSharing {
    /// Any number of steps at once.
    Shared,
    /// A step that finds it in use gets another one.
    Private,
    /// A step that finds it in use waits.
    Locked,
}

/// A cache mount in use. Its lock is free once this is dropped, or its process dies.
#[derive(Debug)]
pub struct CacheMountUse {
    path: PathBuf,
    fresh: bool,
    _lock: Lock,
}

impl CacheMountUse {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was just made, and is empty.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

impl Store {
    /// Takes a cache mount for use, making it if there is none. The id is any text: it never becomes a path.
    pub fn cache_mount(&self, id: &str, sharing: CacheMountSharing) -> Result<CacheMountUse> {
        let mut number = 0;
        loop {
            // Private ones that are in use get siblings.
            let name = if number == 0 { id.to_owned() } else { format!("{id}\0{number}") };
            let (path, fresh) = self.cache_directory(&name)?;
            let lock_path = path.with_extension("lock");
            let lock = match sharing {
                CacheMountSharing::Shared => Some(Lock::acquire(&lock_path, Sharing::Shared)?),
                CacheMountSharing::Locked => Some(Lock::acquire(&lock_path, Sharing::Exclusive)?),
                CacheMountSharing::Private => Lock::try_acquire(&lock_path, Sharing::Exclusive)?,
            };
            match lock {
                Some(lock) if path.is_dir() => return Ok(CacheMountUse { path, fresh, _lock: lock }),
                // It was collected between look-up and lock.
                Some(_) => self.forget_cache_directory(&path)?,
                None => number += 1,
            }
        }
    }

    fn cache_directory(&self, name: &str) -> Result<(PathBuf, bool)> {
        // Files of one ownership mode are not another one's.
        let id = format!("{}\0{name}", self.ownership().name());
        let caches = self.root().join("cache");
        self.database.write(Durability::Relaxed, |t| {
            let known = all(t, "SELECT directory FROM cache_mounts WHERE id = ?1", [&id], |row| {
                row.get::<_, String>(0)
            })?;
            if let Some(directory) = known.into_iter().next() {
                execute(t, "UPDATE cache_mounts SET last_used = ?1 WHERE id = ?2", params![now(), id])?;
                return Ok((caches.join(directory), false));
            }
            let directory = crate::store::random_hex(16)?;
            let path = caches.join(&directory);
            fs_err::create_dir(&path).map_err(Error::file("make", &path))?;
            execute(t, "INSERT INTO cache_mounts VALUES (?1, ?2, ?3, ?3)", params![id, directory, now()])?;
            Ok((path, true))
        })
    }

    /// Forgets a directory that is gone. By its own name: the id may have a new one by now, in use.
    fn forget_cache_directory(&self, path: &Path) -> Result<()> {
        let directory = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.database.write(Durability::Relaxed, |t| {
            execute(t, "DELETE FROM cache_mounts WHERE directory = ?1", [directory]).map(|_| ())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ownership;

    #[test]
    fn forgetting_spares_the_directory_that_took_the_place() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        // One process has looked the first directory up; it is collected, and another process makes the second.
        let (first, _) = store.cache_directory("id").unwrap();
        store
            .collect(&crate::Collection { cache: crate::CacheToRemove::Unused, ..Default::default() })
            .unwrap();
        let used = store.cache_mount("id", CacheMountSharing::Shared).unwrap();
        store.forget_cache_directory(&first).unwrap();
        store.collect(&crate::Collection::default()).unwrap();
        assert!(used.path().is_dir());
    }
}
