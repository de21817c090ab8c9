//! Collection: removing what no name and no running command reaches.
//!
//! Rows go first, in one transaction that sees all tags and leases. Files go after it, in a second one that looks
//! again whether a row has come back. A kill in between leaves files without rows, which the next collection
//! removes.

use std::collections::HashSet;
use std::path::Path;

use kiln_oci::{DiffId, Digest, ImageId, Reference};
use kiln_sys::lock::{Lock, Sharing};
use rusqlite::{Connection, params};

use crate::Store;
use crate::chains::Links;
use crate::database::{Durability, all, digest, execute};
use crate::error::{Error, Result};
use crate::images::NO_TIME;
use crate::late_lease::LOOK_LOCK;
use crate::layers::OVERLAY;
use crate::reserve;
use crate::tar_mounts::MOUNTS;

/// The most bytes of layers that the build cache keeps of itself.
const LARGEST_CACHE: u64 = 20_000_000_000;

/// The most files, and bytes in them, that are kept in each directory of what is only remembered.
const MOST_REMEMBERED: (usize, u64) = (1_000, 256 << 20);
/// Held by the one collection that goes on.
pub(crate) const COLLECT_LOCK: &str = "collect.lock";

/// Which images a collection removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImagesToRemove {
    /// None.
    #[default]
    None,
    /// Those without a name.
    Dangling,
    /// All.
    All,
}

/// How much of the build cache a collection removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheToRemove {
    /// None.
    #[default]
    Nothing,
    /// The layers that were used longest ago, until no more than so many bytes of layers are left.
    Over(u64),
    /// All layers that no image has, and the cache mounts that no step uses.
    Unused,
    /// The same, and every record: the next build runs all its steps.
    All,
}

impl CacheToRemove {
    /// How many bytes of layers stay.
    fn kept_bytes(self) -> u64 {
        match self {
            Self::Nothing => u64::MAX,
            Self::Over(bytes) => bytes,
            Self::Unused | Self::All => 0,
        }
    }
}

/// What a collection removes. Layers of images that stay, and whatever running commands use, always stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collection<'a> {
    /// Which images.
    pub images: ImagesToRemove,
    /// Of those, only these.
    pub only: Option<&'a HashSet<ImageId>>,
    /// How much of the build cache.
    pub cache: CacheToRemove,
    /// Only images that were made, and cache that was last used, before this time, nanoseconds since the epoch.
    pub until: Option<i64>,
}

/// An image that a collection removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectedImage {
    /// Its ID.
    pub id: ImageId,
    /// The names that went with it, as people write them.
    pub names: Vec<String>,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that are gone.
    pub images: Vec<CollectedImage>,
    /// Layers that are gone with them.
    pub image_layers: Vec<DiffId>,
    /// Layers of the build cache that are gone.
    pub cache_layers: Vec<DiffId>,
    /// Cache mounts that are gone, by directory name.
    pub cache_mounts: Vec<String>,
    /// Bytes of blobs, unpacked files, indexes and cache mounts that are gone.
    pub bytes: u64,
    /// Why some of their files stay in the store's `trash` or `cache`: they belong to identifiers that are this user's no longer.
    pub not_removed: Option<String>,
}

/// Rows that went; their files follow.
#[derive(Default)]
struct Doomed {
    layers: Vec<DiffId>,
    blobs: Vec<Digest>,
    snapshots: Vec<(String, String)>,
    bytes: u64,
}

impl Store {
    /// Collects. One collector works at a time; another one waits, and says so ([`Store::tell_waits`]).
    pub fn collect(&self, collection: &Collection<'_>) -> Result<Collected> {
        let _span = kiln_trace::span("collect");
        let _one = self.exclude_collections()?;
        // Others have the reserve while they are waited for, unless there is no room for the lock's own file.
        let _alone = self.with_reserve(|| self.exclude_look_ups())?;
        self.collect_with_reserve(collection)
    }

    /// Collects while both locks are held. If that fails, what is left of the room is set aside again.
    fn collect_with_reserve(&self, collection: &Collection<'_>) -> Result<Collected> {
        reserve::release(self.root())?;
        let collected = self.collect_alone(collection);
        reserve::make(self.root());
        collected
    }

    /// Collects if nobody has to be waited for.
    fn try_collect(&self, collection: &Collection<'_>) -> Result<Collected> {
        let lock = |name| Lock::try_acquire(&self.root().join(name), Sharing::Exclusive);
        let Some(_one) = lock(COLLECT_LOCK)? else { return Ok(Collected::default()) };
        let Some(_alone) = lock(LOOK_LOCK)? else { return Ok(Collected::default()) };
        self.collect_with_reserve(collection)
    }

    /// Collects while both locks are held and the reserve is free.
    fn collect_alone(&self, collection: &Collection<'_>) -> Result<Collected> {
        crate::store::make_directories(self.root())?;
        self.end_dead_leases()?;
        let mut collected = Collected::default();
        let doomed = self.database.write(Durability::Durable, |t| {
            let layers = remove_images(t, collection, &mut collected)?;
            if collection.cache == CacheToRemove::All {
                execute(t, "DELETE FROM records", [])?;
                execute(t, "DELETE FROM operations", [])?;
            }
            crate::records::trim(t)?;
            let doomed = self.doom(t, collection)?;
            let of_image = |layer: &DiffId| layers.contains(&layer.0);
            (collected.image_layers, collected.cache_layers) =
                doomed.layers.iter().partition(|l| of_image(l));
            Ok(doomed)
        })?;
        self.forget_indexes(&doomed.layers);
        collected.bytes = doomed.bytes;
        self.database.write(Durability::Relaxed, |t| self.remove_files(t, &doomed))?;
        if matches!(collection.cache, CacheToRemove::Unused | CacheToRemove::All) {
            self.remove_cache_mounts(collection.until, &mut collected)?;
        }
        let swept = self.database.write(Durability::Relaxed, |t| self.sweep(t))?;
        collected.not_removed = swept.or(self.empty_trash()?);
        self.forget_what_is_only_remembered(collection.cache)?;
        self.sweep_layout()?;
        self.write_layout()?;
        Ok(collected)
    }

    /// Trims the build cache to nine tenths of [`Store::cache_cap`] if it has outgrown that: the layers that were used
    /// longest ago go first. So do records, of which there is a most, too. Two queries if it has not. While another
    /// command collects or a build looks things up, it is left to the next build: none waits for another one here.
    pub fn collect_if_needed(&self) -> Result<Collected> {
        let _span = kiln_trace::span("trim cache");
        let cap = self.cache_cap()?;
        if self.cache_bytes()? <= cap && !crate::records::are_too_many(&self.database.lock())? {
            return Ok(Collected::default());
        }
        // Some room is left, so that not every build that follows has to trim again.
        let cache = CacheToRemove::Over(cap - cap / 10);
        self.try_collect(&Collection { cache, ..Collection::default() })
    }

    /// The most bytes of layers that the build cache keeps of itself: a tenth of its file system or 20 GB, whichever
    /// is less.
    pub fn cache_cap(&self) -> Result<u64> {
        let root = self.root();
        let stat = rustix::fs::statvfs(root)
            .map_err(|errno| Error::file("stat the file system of", root)(errno.into()))?;
        Ok((stat.f_blocks.saturating_mul(stat.f_frsize) / 10).min(LARGEST_CACHE))
    }

    /// Removes the cache mounts that no step uses now.
    fn remove_cache_mounts(&self, until: Option<i64>, collected: &mut Collected) -> Result<()> {
        let caches = self.root().join("cache");
        let mounts = self.database.all(
            "SELECT directory FROM cache_mounts WHERE last_used < ?1",
            [until.unwrap_or(i64::MAX)],
            |row| row.get::<_, String>(0),
        )?;
        for directory in mounts {
            let path = caches.join(&directory);
            let lock_path = path.with_extension("lock");
            let Some(_lock) = Lock::try_acquire(&lock_path, Sharing::Exclusive)? else { continue };
            let bytes = crate::usage::bytes_below(&path);
            // One that may not be moved is nobody's cache any more all the same; the sweep says why it stays.
            match self.to_trash(&path) {
                Err(error) if error.is_refused() => {}
                moved => {
                    moved?;
                    collected.bytes = collected.bytes.saturating_add(bytes);
                }
            }
            self.database.write(Durability::Relaxed, |t| {
                execute(t, "DELETE FROM cache_mounts WHERE directory = ?1", [&directory]).map(|_| ())
            })?;
            self.to_trash(&lock_path)?;
            collected.cache_mounts.push(directory);
        }
        Ok(())
    }

    /// Deletes the rows of what goes.
    fn doom(&self, t: &Connection, collection: &Collection<'_>) -> Result<Doomed> {
        let mut doomed = self.doom_stale(t)?;
        let links = crate::chains::links(t)?;
        let cached = cached_layers(t, &links)?;
        let keep = collection.cache.kept_bytes();
        let mut kept: u64 = 0;
        for layer in free_layers(t)? {
            if cached.contains(&layer.diff_id) {
                let too_young = collection.until.is_some_and(|until| layer.last_used >= until);
                if too_young || kept.saturating_add(layer.bytes) <= keep {
                    kept = kept.saturating_add(layer.bytes);
                    continue;
                }
            }
            doom_layer(t, &layer.diff_id, &mut doomed)?;
            doomed.bytes = doomed.bytes.saturating_add(layer.bytes);
        }
        doomed.bytes = doomed.bytes.saturating_add(crate::superseded::forget(t)?);
        doom_blobs(t, &mut doomed)?;
        crate::chains::prune(t, &links)?;
        Ok(doomed)
    }

    /// What a power cut may have torn takes no more space.
    fn doom_stale(&self, t: &Connection) -> Result<Doomed> {
        let stale = self.stale(t)?;
        let mut doomed = Doomed { bytes: stale.bytes, ..Doomed::default() };
        for snapshot in stale.snapshots {
            execute(t, "DELETE FROM snapshots WHERE id = ?1", [&snapshot.id])?;
            doomed.snapshots.push((snapshot.id, snapshot.link));
        }
        for blob in stale.blobs {
            execute(t, "DELETE FROM blobs WHERE digest = ?1", [blob.as_bytes()])?;
            doomed.blobs.push(blob);
        }
        for layer in stale.layers {
            doom_layer(t, &layer, &mut doomed)?;
        }
        Ok(doomed)
    }

    fn forget_indexes(&self, layers: &[DiffId]) {
        let mut indexes = self.indexes.lock().unwrap_or_else(|e| e.into_inner());
        for layer in layers {
            indexes.remove(layer);
        }
    }

    /// Removes leases whose owners are dead, with their directories.
    pub(crate) fn end_dead_leases(&self) -> Result<()> {
        let leases = self.database.all("SELECT id FROM leases", [], |row| row.get::<_, String>(0))?;
        for id in leases {
            let directory = self.root().join("tmp").join(&id);
            if crate::lease::is_alive(&directory) {
                continue;
            }
            self.database.write(Durability::Relaxed, |t| {
                execute(t, "DELETE FROM leases WHERE id = ?1", [&id]).map(|_| ())
            })?;
            self.to_trash(&directory)?;
        }
        Ok(())
    }

    fn remove_files(&self, t: &Connection, doomed: &Doomed) -> Result<()> {
        for layer in &doomed.layers {
            if all(t, "SELECT 1 FROM layers WHERE diff_id = ?1", [layer.0.as_bytes()], |_| Ok(()))?.is_empty()
            {
                self.to_trash(&self.index_path(*layer))?;
                self.to_trash(&self.root().join(MOUNTS).join(self.mounts_of_boot()).join(layer.0.hex()))?;
            }
        }
        for blob in &doomed.blobs {
            if all(t, "SELECT 1 FROM blobs WHERE digest = ?1", [blob.as_bytes()], |_| Ok(()))?.is_empty() {
                self.to_trash(&self.blob_path(blob))?;
            }
        }
        let overlay = self.root().join(OVERLAY);
        for (id, link) in &doomed.snapshots {
            let link = overlay.join("l").join(link);
            let _ = fs_err::remove_file(link);
            self.to_trash(&overlay.join(id))?;
        }
        Ok(())
    }

    /// Removes files that no row names: what a kill left behind. Gives the first reason why something may not be: a directory
    /// of somebody else's cannot be moved.
    fn sweep(&self, t: &Connection) -> Result<Option<String>> {
        let known = |table: &str, column: &str| -> Result<HashSet<String>> {
            let rows = all(t, &format!("SELECT {column} FROM {table}"), [], |row| digest(row, 0))?;
            Ok(rows.iter().map(Digest::hex).collect())
        };
        let layers = known("layers", "diff_id")?;
        let blobs = known("blobs", "digest")?;
        let snapshots: HashSet<String> =
            all(t, "SELECT id FROM snapshots", [], |row| row.get(0))?.into_iter().collect();
        let links: HashSet<String> =
            all(t, "SELECT link FROM snapshots", [], |row| row.get(0))?.into_iter().collect();
        let caches: HashSet<String> =
            all(t, "SELECT directory FROM cache_mounts", [], |row| row.get(0))?.into_iter().collect();
        let leases: HashSet<String> =
            all(t, "SELECT id FROM leases", [], |row| row.get(0))?.into_iter().collect();
        let root = self.root();
        let tmp = root.join("tmp");
        let mounts = root.join(MOUNTS);
        let overlay = root.join(OVERLAY);
        let swept = [
            self.sweep_directory(&tmp, |name| {
                leases.contains(name) || crate::lease::is_alive(&tmp.join(name))
            })?,
            self.sweep_directory(&root.join("cache"), |name| {
                caches.contains(name.strip_suffix(".lock").unwrap_or(name))
            })?,
            self.sweep_directory(&root.join("index"), |name| layers.contains(name))?,
            self.sweep_directory(&mounts, |name| self.keeps_mounts(name, !leases.is_empty()))?,
            self.sweep_directory(&mounts.join(self.mounts_of_boot()), |name| layers.contains(name))?,
            self.sweep_directory(&root.join("blobs/sha256"), |name| blobs.contains(name))?,
            self.sweep_directory(&overlay, |name| name == "l" || snapshots.contains(name))?,
            self.sweep_directory(&overlay.join("l"), |name| links.contains(name))?,
        ];
        Ok(swept.into_iter().flatten().next())
    }

    /// What contexts and addresses held, which saves work, goes when there is much of it: what was written longest ago
    /// first.
    fn forget_what_is_only_remembered(&self, cache: CacheToRemove) -> Result<()> {
        let most = if cache == CacheToRemove::All { (0, 0) } else { MOST_REMEMBERED };
        for name in ["context", "downloads"] {
            let directory = self.root().join(name);
            let Ok(entries) = fs_err::read_dir(&directory) else { continue };
            let mut files = Vec::new();
            for entry in entries {
                let entry = entry.map_err(Error::file("list", &directory))?;
                // Another process may have replaced it.
                let Ok(metadata) = entry.metadata() else { continue };
                files.push((metadata.modified().ok(), metadata.len(), entry.path()));
            }
            files.sort_by_key(|(time, ..)| std::cmp::Reverse(*time));
            let mut bytes: u64 = 0;
            for (number, (_, size, path)) in files.into_iter().enumerate() {
                bytes = bytes.saturating_add(size);
                if number >= most.0 || bytes > most.1 {
                    let _ = fs_err::remove_file(path);
                }
            }
        }
        Ok(())
    }

    /// Gives the first reason why something may not be removed.
    fn sweep_directory(&self, directory: &Path, known: impl Fn(&str) -> bool) -> Result<Option<String>> {
        let entries = match fs_err::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(Error::file("list", directory))?,
        };
        let mut not_removed = None;
        for entry in entries {
            let entry = entry.map_err(Error::file("list", directory))?;
            if entry.file_name().to_str().is_some_and(&known) {
                continue;
            }
            match self.to_trash(&entry.path()) {
                Err(error) if error.is_refused() => {
                    not_removed.get_or_insert_with(|| {
                        let source = std::error::Error::source(&error).map(ToString::to_string);
                        format!("{error}: {}", source.unwrap_or_default())
                    });
                }
                moved => moved?,
            }
        }
        Ok(not_removed)
    }

    /// Moves something out of the way; what is gone already is no error.
    fn to_trash(&self, path: &Path) -> Result<()> {
        let target = self.root().join("trash").join(crate::store::random_hex(16)?);
        match fs_err::rename(path, &target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what is in the trash; gives the first reason why something may not be. The rest goes all the same: what
    /// stays must not keep every later collection from its end.
    fn empty_trash(&self) -> Result<Option<String>> {
        let trash = kiln_sys::root::Directory::open(&self.root().join("trash"))?;
        let mut not_removed = None;
        for item in trash.list()? {
            match trash.remove_all(&item.name) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    not_removed.get_or_insert_with(|| format!("{error}: {}", error.source));
                }
                result => result?,
            }
        }
        Ok(not_removed)
    }

    /// Bytes of the build cache: layers that no image has.
    pub fn cache_bytes(&self) -> Result<u64> {
        let connection = self.database.lock();
        Ok(free_layers(&connection)?.iter().map(|layer| layer.bytes).sum())
    }
}

/// Removes images, and gives the layers that they had.
fn remove_images(
    t: &Connection,
    collection: &Collection<'_>,
    collected: &mut Collected,
) -> Result<HashSet<Digest>> {
    let mut layers = HashSet::new();
    let wanted = match collection.images {
        ImagesToRemove::None => return Ok(layers),
        ImagesToRemove::Dangling => "NOT EXISTS (SELECT 1 FROM tags g WHERE g.image = i.id)",
        ImagesToRemove::All => "1",
    };
    let sql = format!(
        "SELECT i.id FROM images i WHERE {wanted} AND (?1 IS NULL OR i.created < ?1 AND i.created <> ?2) AND NOT EXISTS \
         (SELECT 1 FROM lease_roots r WHERE r.kind = 'image' AND r.digest = i.id)"
    );
    let images = all(t, &sql, params![collection.until, NO_TIME], |row| digest(row, 0))?;
    let images = images.into_iter().map(ImageId);
    for id in images.filter(|id| collection.only.is_none_or(|only| only.contains(id))) {
        let image = id.0.as_bytes();
        let names = all(t, "SELECT name FROM tags WHERE image = ?1 ORDER BY name", [image], |row| {
            row.get::<_, String>(0)
        })?;
        let familiar = |name: String| name.parse::<Reference>().map_or(name, |name| name.familiar());
        layers.extend(all(t, "SELECT diff_id FROM image_layers WHERE image = ?1", [image], |row| {
            digest(row, 0)
        })?);
        execute(t, "DELETE FROM tags WHERE image = ?1", [image])?;
        execute(t, "DELETE FROM images WHERE id = ?1", [image])?;
        collected.images.push(CollectedImage { id, names: names.into_iter().map(familiar).collect() });
    }
    Ok(layers)
}

/// Documents are listed through indexes, which are small, and not looked up one by one: rows that hold a document flow over
/// onto pages of their own, which each comparison with such a row reads.
const UNUSED_BLOBS: &str = "SELECT digest FROM blobs WHERE digest NOT IN \
     (SELECT blob FROM layer_blobs UNION ALL SELECT id FROM images UNION ALL SELECT digest FROM manifests \
      UNION ALL SELECT digest FROM lease_roots WHERE kind = 'blob')";

struct FreeLayer {
    diff_id: Digest,
    bytes: u64,
    last_used: i64,
}

/// Layers that no image and no lease has, the most recently used first.
fn free_layers(t: &Connection) -> Result<Vec<FreeLayer>> {
    all(
        t,
        "SELECT l.diff_id, l.last_used, l.index_size \
           + coalesce((SELECT sum(b.size) FROM layer_blobs x JOIN blobs b ON b.digest = x.blob WHERE x.diff_id = l.diff_id), 0) \
           + l.files_size * (SELECT count(*) FROM snapshots s WHERE s.diff_id = l.diff_id) \
         FROM layers l \
         WHERE NOT EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = l.diff_id) \
           AND NOT EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'layer' AND r.digest = l.diff_id) \
         ORDER BY l.last_used DESC",
        [],
        |row| {
            Ok(FreeLayer {
                diff_id: digest(row, 0)?,
                last_used: row.get(1)?,
                bytes: row.get::<_, i64>(2)?.unsigned_abs(),
            })
        },
    )
}

/// Layers that the build cache needs: those of all chains that a record has as its result and that are there.
fn cached_layers(t: &Connection, links: &Links) -> Result<HashSet<Digest>> {
    let present: HashSet<Digest> =
        all(t, "SELECT diff_id FROM layers", [], |row| digest(row, 0))?.into_iter().collect();
    let results = all(t, "SELECT DISTINCT result FROM records", [], |row| digest(row, 0))?;
    let mut needed = HashSet::new();
    for result in results {
        let mut chain = Vec::new();
        let mut at = result;
        while let Some((parent, layer)) = links.get(&at) {
            chain.push(*layer);
            at = *parent;
        }
        if chain.iter().all(|layer| present.contains(layer)) {
            needed.extend(chain);
        }
    }
    Ok(needed)
}

fn doom_layer(t: &Connection, layer: &Digest, doomed: &mut Doomed) -> Result<()> {
    let key = layer.as_bytes();
    let snapshots = all(t, "SELECT id, link FROM snapshots WHERE diff_id = ?1", [key], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    doomed.snapshots.extend(snapshots);
    execute(t, "DELETE FROM snapshots WHERE diff_id = ?1", [key])?;
    execute(t, "DELETE FROM layers WHERE diff_id = ?1", [key])?;
    doomed.layers.push(DiffId(*layer));
    Ok(())
}

/// Blobs that hold no layer, no config and no manifest any more.
fn doom_blobs(t: &Connection, doomed: &mut Doomed) -> Result<()> {
    let blobs = all(t, UNUSED_BLOBS, [], |row| digest(row, 0))?;
    for blob in blobs {
        execute(t, "DELETE FROM blobs WHERE digest = ?1", [blob.as_bytes()])?;
        doomed.blobs.push(blob);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ownership;

    /// A comparison with a row that holds a document may read more pages than the whole index has.
    #[test]
    fn no_document_is_read_for_what_becomes_of_blobs() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let plan = store
            .database
            .all(&format!("EXPLAIN QUERY PLAN {UNUSED_BLOBS}"), [], |row| row.get::<_, String>("detail"));
        let plan = plan.unwrap();
        for table in ["images", "manifests"] {
            let scan = format!("SCAN {table} USING COVERING INDEX {table}_");
            let steps: Vec<_> = plan.iter().filter(|step| step.contains(table)).collect();
            assert!(steps.len() == 1 && steps[0].starts_with(&scan), "{plan:#?}");
        }
    }
}
