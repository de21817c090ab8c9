//! Whose the files of snapshots are that were made with sub-identifiers: the owners in them are shifted by ranges, which
//! may be others tomorrow.
//!
//! The first process that makes such files in a store writes its ranges down in `sub-ids`; for these alone the database says
//! `sub-ids`. With ranges that map one of their identifiers otherwise, or not at all, it says `sub-ids:` and a digest.

use std::fmt::Write as _;
use std::io;

use kiln_oci::Digest;
use kiln_sys::lock::{Lock, Sharing};
use kiln_sys::namespace::{Extent, IdMaps};

use crate::error::{Error, Result};
use crate::store::{Ownership, Store};

/// The file of the ranges, in the store's root.
pub(crate) const NAME: &str = "sub-ids";

/// Whether ranges are those of this process, or what it would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// This process is in their user namespace.
    Entered,
    /// Files say so.
    Expected,
}

impl Store {
    /// Says which ranges are the sub-identifiers of files that this process makes and uses. Without effect in another mode
    /// than [`Ownership::SubIds`].
    pub fn with_maps(mut self, maps: &IdMaps, certainty: Certainty) -> Result<Self> {
        if self.ownership() != Ownership::SubIds {
            return Ok(self);
        }
        let mut fits = self.first_maps()?;
        if certainty == Certainty::Entered && Self::is_news(fits.as_ref(), maps) {
            // Two processes with other ranges cannot both be the first. Who sweeps temporary files away has this lock, too.
            let _one = Lock::acquire(&self.root().join("layout.lock"), Sharing::Exclusive)?;
            fits = self.first_maps()?;
            if Self::is_news(fits.as_ref(), maps) {
                match self.replace(NAME, written(maps).as_bytes()) {
                    // The next process says it.
                    Err(error) if error.is_full_disk() => {}
                    replaced => {
                        replaced?;
                        // What is known of the files outlasts a power cut as they do.
                        for path in [&self.root().join(NAME), self.root()] {
                            let synced = fs_err::File::open(path).and_then(|file| file.sync_all());
                            synced.map_err(Error::file("sync", path))?;
                        }
                    }
                }
            }
        }
        if fits.is_some_and(|first| !extends(maps, &first)) && !self.is_idmapped() {
            let digest = Digest::of(written(maps).as_bytes()).hex();
            self.set_owners(format!("{}:{}", Ownership::SubIds.name(), &digest[..16]));
        }
        Ok(self)
    }

    /// Whether `maps` are to be written down: nothing is known yet, as in a store of an earlier version, or they have more.
    fn is_news(first: Option<&IdMaps>, maps: &IdMaps) -> bool {
        first.is_none_or(|first| first != maps && extends(maps, first))
    }

    /// Whether the store is on a mount that maps owners itself: what is on the disk does not depend on ranges there, which are
    /// others in each container of some clusters.
    fn is_idmapped(&self) -> bool {
        use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
        let found = statx(CWD, self.root(), AtFlags::empty(), StatxFlags::MNT_ID);
        let mounts = fs_err::read_to_string("/proc/self/mountinfo");
        matches!((found, mounts), (Ok(found), Ok(mounts)) if is_idmapped(&mounts, found.stx_mnt_id))
    }

    fn first_maps(&self) -> Result<Option<IdMaps>> {
        let path = self.root().join(NAME);
        match fs_err::read_to_string(&path) {
            Ok(text) => Ok(read(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", &path)(error)),
        }
    }
}

/// Whether a mount maps owners (mount_setattr(2), `MOUNT_ATTR_IDMAP`), by the options of the mount in proc_pid_mountinfo(5).
fn is_idmapped(mountinfo: &str, id: u64) -> bool {
    let id = id.to_string();
    let mut mounts =
        mountinfo.lines().map(|line| line.split(' ')).filter(|line| line.clone().next() == Some(&*id));
    mounts.any(|mut line| {
        line.nth(5).is_some_and(|options| options.split(',').any(|option| option == "idmapped"))
    })
}

/// Whether `maps` has all identifiers of `first`, and maps them alike.
fn extends(maps: &IdMaps, first: &IdMaps) -> bool {
    let all = |now: &[Extent], then: &[Extent]| {
        then.iter().all(|then| {
            now.iter().any(|now| {
                let (start, shift) =
                    (i64::from(then.inside), i64::from(then.outside) - i64::from(then.inside));
                shift == i64::from(now.outside) - i64::from(now.inside)
                    && i64::from(now.inside) <= start
                    && start + i64::from(then.count) <= i64::from(now.inside) + i64::from(now.count)
            })
        })
    };
    all(&maps.users, &first.users) && all(&maps.groups, &first.groups)
}

/// The last line.
const END: &str = "end\n";

fn written(maps: &IdMaps) -> String {
    let mut text = String::new();
    for (kind, extents) in [("user", &maps.users), ("group", &maps.groups)] {
        for Extent { inside, outside, count } in extents {
            let _ = writeln!(text, "{kind} {inside} {outside} {count}");
        }
    }
    text + END
}

/// `None` of what a power cut tore.
fn read(text: &str) -> Option<IdMaps> {
    let text = text.strip_suffix(END)?;
    let mut maps = IdMaps::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let extents = match fields.next()? {
            "user" => &mut maps.users,
            "group" => &mut maps.groups,
            _ => return None,
        };
        let mut number = || fields.next()?.parse().ok();
        extents.push(Extent { inside: number()?, outside: number()?, count: number()? });
    }
    (!maps.users.is_empty() && !maps.groups.is_empty()).then_some(maps)
}

#[cfg(test)]
mod tests {
    use kiln_oci::{ChainId, DiffId};

    use super::*;
    use crate::cache_mounts::{CacheMountIdentity, CacheMountSharing};

    fn maps(ranges: &[(u32, u32)]) -> IdMaps {
        let mut extents = vec![Extent { inside: 0, outside: 1000, count: 1 }];
        for &(outside, count) in ranges {
            let inside = extents.iter().map(|extent| extent.count).sum();
            extents.push(Extent { inside, outside, count });
        }
        IdMaps { users: extents.clone(), groups: extents }
    }

    /// Files that were made with other ranges have other owners: to use them would be to keep wrong ones for good.
    #[test]
    fn what_was_made_with_other_ranges_is_not_used() {
        let host = tempfile::tempdir().unwrap();
        let open = |ranges: &[(u32, u32)], certainty| {
            let store = Store::open(&host.path().join("store"), Ownership::SubIds).unwrap();
            store.with_maps(&maps(ranges), certainty).unwrap()
        };
        let layer = DiffId(Digest::of(b"layer"));
        let is_usable = |ranges: &[(u32, u32)], certainty| {
            let store = open(ranges, certainty);
            let connection = store.database.lock();
            store.is_usable(&connection, layer).unwrap()
        };
        let cache = |ranges: &[(u32, u32)]| {
            let identity = CacheMountIdentity { id: "id".to_owned(), base: String::new() };
            let wait = |_: &crate::CacheMountBusy<'_>| std::ops::ControlFlow::Break(());
            let store = open(ranges, Certainty::Entered);
            let used = store.cache_mount(&identity, CacheMountSharing::Shared, wait).unwrap().unwrap();
            store.cache_mount_is_filled(&used).unwrap();
            used.path().to_path_buf()
        };
        // As an earlier version left it.
        let store = Store::open(&host.path().join("store"), Ownership::SubIds).unwrap();
        let insert = |t: &rusqlite::Transaction<'_>| {
            let key = layer.0.as_bytes();
            let row = "INSERT INTO layers VALUES (?1, 0, 0, 0, 1, 1, 0, NULL, 0, 0, 1)";
            crate::database::execute(t, row, [key])?;
            let row = "INSERT INTO snapshots VALUES ('s', 'l', ?1, 'sub-ids', ?1, NULL, 0)";
            crate::database::execute(t, row, [key])?;
            crate::chains::insert_link(t, ChainId::SCRATCH, layer)
        };
        store.database.write(crate::database::Durability::Relaxed, insert).unwrap();
        drop(store);
        let first = [(300_000, 65536)];
        assert!(is_usable(&[(5, 7)], Certainty::Expected), "what is only expected decides nothing");
        assert!(is_usable(&first, Certainty::Entered));
        let first_cache = cache(&first);
        for others in
            [&[(299_000, 65536)][..], &[(500_000, 65536)], &[(300_000, 1000)], &[(5, 7), (300_000, 65536)]]
        {
            for certainty in [Certainty::Expected, Certainty::Entered] {
                assert!(!is_usable(others, certainty), "{others:?}");
            }
            let other_cache = cache(others);
            assert_ne!(other_cache, first_cache, "{others:?}");
            assert_eq!(other_cache, cache(others), "{others:?}");
        }
        // More of the same is no other, and less of it is then.
        let more = [(300_000, 100_000), (5, 7)];
        assert!(is_usable(&first, Certainty::Entered));
        assert!(is_usable(&more, Certainty::Expected) && is_usable(&first, Certainty::Expected));
        assert!(is_usable(&more, Certainty::Entered) && !is_usable(&first, Certainty::Entered));
        assert_eq!(cache(&more), first_cache);
        // A power cut tore it.
        fs_err::write(host.path().join("store").join(NAME), "").unwrap();
        assert!(is_usable(&more, Certainty::Entered));
    }

    #[test]
    fn mounts_that_map_owners_are_told() {
        let mounts = "36 35 98:0 / / rw,noatime - ext4 /dev/a rw\n37 36 98:0 /x /x rw,idmapped,nosuid - ext4 /dev/a rw\n";
        assert_eq!([36, 37, 3, 38].map(|id| is_idmapped(mounts, id)), [false, true, false, false]);
    }

    #[test]
    fn ranges_are_read_as_they_were_written() {
        let maps = maps(&[(300_000, 65536), (5, 7)]);
        assert_eq!(read(&written(&maps)), Some(maps.clone()));
        let text = written(&maps);
        for length in 0..text.len() {
            assert_eq!(read(&text[..length]), None);
        }
    }
}
