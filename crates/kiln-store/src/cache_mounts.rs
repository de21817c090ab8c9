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

/// Which directory a cache mount is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheMountIdentity {
    /// As the Dockerfile says: any text.
    pub id: String,
    /// What it begins with; empty if that is an empty directory of root's. Each has directories of its own.
    pub base: String,
}

impl CacheMountIdentity {
    /// What the store calls it; `sibling` is not 0 for those that private uses make.
    fn name(&self, ownership: &str, sibling: u32) -> String {
        // A Dockerfile's text has no NUL: these are told apart whatever it says.
        let mut name = format!("{ownership}\0{}", self.id.replace('\0', "\u{fffd}"));
        if !self.base.is_empty() {
            name.push_str(&format!("\0+{}", self.base));
        }
        if sibling > 0 {
            name.push_str(&format!("\0{sibling}"));
        }
        name
    }

    /// For people, of a name in the store.
    pub(crate) fn describe(name: &str) -> String {
        let mut parts = name.split('\0').skip(1);
        let id = parts.next().unwrap_or_default();
        match parts.next().and_then(|part| part.strip_prefix('+')) {
            Some(base) => format!("cache mount {id} ({base})"),
            None => format!("cache mount {id}"),
        }
    }
}

/// A cache mount in use. Its lock is free once this is dropped, or its process dies.
#[derive(Debug)]
pub struct CacheMountUse {
    identity: CacheMountIdentity,
    path: PathBuf,
    fresh: bool,
    _lock: Lock,
}

impl CacheMountUse {
    /// What it was taken as.
    pub fn identity(&self) -> &CacheMountIdentity {
        &self.identity
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is not filled yet; what is in it was left by a step that was cut off.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

impl Store {
    /// Takes a cache mount for use, making it if there is none. Its identity never becomes a path.
    ///
    /// One that is not filled yet ([`CacheMountUse::is_fresh`]) is the caller's alone, whatever `sharing` says: it is to
    /// be emptied, filled, reported with [`Store::cache_mount_is_filled`] and taken anew.
    pub fn cache_mount(
        &self,
        identity: &CacheMountIdentity,
        sharing: CacheMountSharing,
    ) -> Result<CacheMountUse> {
        let mut sibling = 0;
        loop {
            // Private ones that are in use get siblings. Files of one ownership mode are not another one's.
            let (path, filled) = self.cache_directory(&identity.name(self.ownership().name(), sibling))?;
            let lock_path = path.with_extension("lock");
            let lock = match sharing {
                CacheMountSharing::Private => Lock::try_acquire(&lock_path, Sharing::Exclusive)?,
                CacheMountSharing::Shared if filled => Some(Lock::acquire(&lock_path, Sharing::Shared)?),
                _ => Some(Lock::acquire(&lock_path, Sharing::Exclusive)?),
            };
            let Some(lock) = lock else {
                sibling += 1;
                continue;
            };
            if !fs_err::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                // It was collected between look-up and lock; or a step that had it in its root removed or replaced it.
                self.forget_cache_directory(&path)?;
            } else if filled || !self.is_filled(&path)? {
                return Ok(CacheMountUse { identity: identity.clone(), path, fresh: !filled, _lock: lock });
            }
            // Else somebody filled it while this process waited: take it as it is now.
        }
    }

    /// From now on the mount is taken as it is.
    pub fn cache_mount_is_filled(&self, used: &CacheMountUse) -> Result<()> {
        self.database.write(Durability::Relaxed, |t| {
            execute(t, "UPDATE cache_mounts SET filled = 1 WHERE directory = ?1", [name_of(&used.path)])
                .map(|_| ())
        })
    }

    fn is_filled(&self, path: &Path) -> Result<bool> {
        let row = self.database.one(
            "SELECT filled FROM cache_mounts WHERE directory = ?1",
            [name_of(path)],
            |row| row.get::<_, bool>(0),
        )?;
        Ok(row.unwrap_or(true))
    }

    /// The directory of a name, and whether it is filled.
    fn cache_directory(&self, name: &str) -> Result<(PathBuf, bool)> {
        let caches = self.root().join("cache");
        self.database.write(Durability::Relaxed, |t| {
            let known = all(t, "SELECT directory, filled FROM cache_mounts WHERE id = ?1", [name], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
            })?;
            if let Some((directory, filled)) = known.into_iter().next() {
                execute(t, "UPDATE cache_mounts SET last_used = ?1 WHERE id = ?2", params![now(), name])?;
                return Ok((caches.join(directory), filled));
            }
            let directory = crate::store::random_hex(16)?;
            let path = caches.join(&directory);
            fs_err::create_dir(&path).map_err(Error::file("make", &path))?;
            execute(
                t,
                "INSERT INTO cache_mounts VALUES (?1, ?2, ?3, ?3, 0)",
                params![name, directory, now()],
            )?;
            Ok((path, false))
        })
    }

    /// Forgets a directory that is gone. By its own name: the id may have a new one by now, in use.
    fn forget_cache_directory(&self, path: &Path) -> Result<()> {
        self.database.write(Durability::Relaxed, |t| {
            execute(t, "DELETE FROM cache_mounts WHERE directory = ?1", [name_of(path)]).map(|_| ())
        })
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ownership;

    fn plain(id: &str) -> CacheMountIdentity {
        CacheMountIdentity { id: id.to_owned(), base: String::new() }
    }

    #[test]
    fn each_base_has_directories_and_locks_of_its_own() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let other = |base: &str| CacheMountIdentity { id: "id".to_owned(), base: base.to_owned() };
        let identities =
            [plain("id"), other("uid=1"), other("uid=2"), other("1"), plain("id\0+uid=1"), plain("id\u{0}1")];
        // All are held at once.
        let used: Vec<CacheMountUse> = identities
            .iter()
            .flat_map(|identity| {
                [(identity, CacheMountSharing::Locked), (identity, CacheMountSharing::Private)]
            })
            .map(|(identity, sharing)| store.cache_mount(identity, sharing).unwrap())
            .collect();
        let paths: std::collections::BTreeSet<&Path> = used.iter().map(CacheMountUse::path).collect();
        assert_eq!(paths.len(), used.len());
        let shown: Vec<String> =
            store.disk_usage().unwrap().cache.into_iter().map(|item| item.description).collect();
        for description in ["cache mount id", "cache mount id (uid=1)", "cache mount id (1)"] {
            assert_eq!(shown.iter().filter(|shown| *shown == description).count(), 2, "{shown:?}");
        }
        drop(used);
        let cache = crate::CacheToRemove::Unused;
        let collected = store.collect(&crate::Collection { cache, ..Default::default() }).unwrap();
        assert_eq!(collected.cache_mounts.len(), 2 * identities.len());
    }

    #[test]
    fn a_mount_whose_filling_was_cut_off_is_filled_again() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let cut_off = store.cache_mount(&plain("id"), CacheMountSharing::Shared).unwrap();
        assert!(cut_off.is_fresh());
        drop(cut_off);
        let used = store.cache_mount(&plain("id"), CacheMountSharing::Shared).unwrap();
        assert!(used.is_fresh());
        store.cache_mount_is_filled(&used).unwrap();
        drop(used);
        let first = store.cache_mount(&plain("id"), CacheMountSharing::Shared).unwrap();
        let second = store.cache_mount(&plain("id"), CacheMountSharing::Shared).unwrap();
        assert!(!first.is_fresh() && first.path() == second.path());
    }

    #[test]
    fn what_is_no_directory_is_no_cache() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let used = store.cache_mount(&plain("id"), CacheMountSharing::Locked).unwrap();
        store.cache_mount_is_filled(&used).unwrap();
        let first = used.path().to_path_buf();
        drop(used);
        let elsewhere = host.path().join("elsewhere");
        fs_err::create_dir(&elsewhere).unwrap();
        fs_err::write(elsewhere.join("file"), "the host's").unwrap();
        fs_err::remove_dir(&first).unwrap();
        fs_err::os::unix::fs::symlink(&elsewhere, &first).unwrap();
        let used = store.cache_mount(&plain("id"), CacheMountSharing::Locked).unwrap();
        assert!(used.is_fresh() && used.path() != first);
        drop(used);
        store.collect(&crate::Collection::default()).unwrap();
        assert!(fs_err::symlink_metadata(&first).is_err() && elsewhere.join("file").exists());
    }

    #[test]
    fn forgetting_spares_the_directory_that_took_the_place() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        // One process has looked the first directory up; it is collected, and another process makes the second.
        let (first, _) = store.cache_directory(&plain("id").name("root", 0)).unwrap();
        store
            .collect(&crate::Collection { cache: crate::CacheToRemove::Unused, ..Default::default() })
            .unwrap();
        let used = store.cache_mount(&plain("id"), CacheMountSharing::Shared).unwrap();
        store.forget_cache_directory(&first).unwrap();
        store.collect(&crate::Collection::default()).unwrap();
        assert!(used.path().is_dir());
    }
}
