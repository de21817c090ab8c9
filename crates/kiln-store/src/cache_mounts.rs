//! Directories of `RUN --mount=type=cache`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kiln_sys::lock::{Lock, Sharing, holders};
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

/// A cache mount that others hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheMountBusy<'a> {
    lock: &'a Path,
}

impl CacheMountBusy<'_> {
    /// The processes that hold it just now, this one perhaps among them; those of another PID namespace cannot be told.
    pub fn holders(&self) -> Vec<u32> {
        holders(self.lock)
    }
}

impl Store {
    /// Takes a cache mount for use, making it if there is none. Its identity never becomes a path.
    ///
    /// As long as others hold it `wait` is called again and again; it waits a moment, or breaks off, and then there is `None`.
    ///
    /// One that is not filled yet ([`CacheMountUse::is_fresh`]) is the caller's alone, whatever `sharing` says: it is to
    /// be emptied, filled, reported with [`Store::cache_mount_is_filled`] and taken anew.
    pub fn cache_mount(
        &self,
        identity: &CacheMountIdentity,
        sharing: CacheMountSharing,
        mut wait: impl FnMut(&CacheMountBusy<'_>) -> ControlFlow<()>,
    ) -> Result<Option<CacheMountUse>> {
        let mut sibling = 0;
        loop {
            // Private ones that are in use get siblings. Files of one ownership mode are not another one's.
            let (path, filled) = self.cache_directory(&identity.name(self.owners(), sibling))?;
            let lock_path = path.with_extension("lock");
            let busy = CacheMountBusy { lock: &lock_path };
            let wanted = match sharing {
                CacheMountSharing::Shared if filled => Sharing::Shared,
                _ => Sharing::Exclusive,
            };
            let lock = loop {
                match Lock::try_acquire(&lock_path, wanted)? {
                    Some(lock) => break Some(lock),
                    None if sharing == CacheMountSharing::Private => {
                        sibling += 1;
                        break None;
                    }
                    None if wait(&busy).is_break() => return Ok(None),
                    // Whoever filled it may share it, and has it for long.
                    None if !filled && self.is_filled(&path)? => break None,
                    None => {}
                }
            };
            let Some(lock) = lock else { continue };
            if !fs_err::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                // It was collected between look-up and lock; or a step that had it in its root removed or replaced it.
                self.forget_cache_directory(&path)?;
            } else if filled || !self.is_filled(&path)? {
                let identity = identity.clone();
                return Ok(Some(CacheMountUse { identity, path, fresh: !filled, _lock: lock }));
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

    /// Takes what nobody holds.
    fn take(store: &Store, identity: &CacheMountIdentity, sharing: CacheMountSharing) -> CacheMountUse {
        let taken = store.cache_mount(identity, sharing, |_| ControlFlow::Break(()));
        taken.unwrap().expect("nobody holds it")
    }

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
            .map(|(identity, sharing)| take(&store, identity, sharing))
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
        let cut_off = take(&store, &plain("id"), CacheMountSharing::Shared);
        assert!(cut_off.is_fresh());
        drop(cut_off);
        let used = take(&store, &plain("id"), CacheMountSharing::Shared);
        assert!(used.is_fresh());
        store.cache_mount_is_filled(&used).unwrap();
        drop(used);
        let first = take(&store, &plain("id"), CacheMountSharing::Shared);
        let second = take(&store, &plain("id"), CacheMountSharing::Shared);
        assert!(!first.is_fresh() && first.path() == second.path());
    }

    #[test]
    fn what_is_no_directory_is_no_cache() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let used = take(&store, &plain("id"), CacheMountSharing::Locked);
        store.cache_mount_is_filled(&used).unwrap();
        let first = used.path().to_path_buf();
        drop(used);
        let elsewhere = host.path().join("elsewhere");
        fs_err::create_dir(&elsewhere).unwrap();
        fs_err::write(elsewhere.join("file"), "the host's").unwrap();
        fs_err::remove_dir(&first).unwrap();
        fs_err::os::unix::fs::symlink(&elsewhere, &first).unwrap();
        let used = take(&store, &plain("id"), CacheMountSharing::Locked);
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
        let used = take(&store, &plain("id"), CacheMountSharing::Shared);
        store.forget_cache_directory(&first).unwrap();
        store.collect(&crate::Collection::default()).unwrap();
        assert!(used.path().is_dir());
    }

    #[test]
    fn one_that_is_held_is_waited_for_until_the_wait_is_broken_off() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let mut held = Some(take(&store, &plain("id"), CacheMountSharing::Locked));
        store.cache_mount_is_filled(held.as_ref().unwrap()).unwrap();
        for sharing in [CacheMountSharing::Locked, CacheMountSharing::Shared] {
            let mut waits = 0;
            let given_up = store.cache_mount(&plain("id"), sharing, |busy| {
                waits += 1;
                assert_eq!(busy.holders(), [std::process::id()]);
                if waits == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(given_up.unwrap().is_none());
            assert_eq!(waits, 3);
        }
        let directory = held.as_ref().unwrap().path().to_path_buf();
        let taken = store.cache_mount(&plain("id"), CacheMountSharing::Locked, |_| {
            held = None;
            ControlFlow::Continue(())
        });
        assert_eq!(taken.unwrap().unwrap().path(), directory);
    }

    #[test]
    fn who_fills_one_keeps_nobody_from_sharing_it() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let mut first = Some(take(&store, &plain("id"), CacheMountSharing::Shared));
        assert!(first.as_ref().unwrap().is_fresh());
        let mut waits = 0;
        let second = store.cache_mount(&plain("id"), CacheMountSharing::Shared, |_| {
            waits += 1;
            store.cache_mount_is_filled(first.as_ref().unwrap()).unwrap();
            first = None;
            first = Some(take(&store, &plain("id"), CacheMountSharing::Shared));
            if waits == 1 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let second = second.unwrap().expect("shared with the first");
        assert!(!second.is_fresh() && second.path() == first.unwrap().path());
    }
}
