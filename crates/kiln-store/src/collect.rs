//! Collection: removing what no name and no running command reaches.
//!
//! Rows go first, in one transaction that sees all tags and leases. Files go after it, in a second one that looks
//! again whether a row has come back. A kill in between leaves files without rows, which the next collection
//! removes.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use kiln_oci::{DiffId, Digest, ImageId};
use kiln_sys::lock::{Lock, Sharing};
use rusqlite::{Connection, params};

use crate::Store;
use crate::database::{Durability, all, digest, execute, now};
use crate::error::{Error, Result};
use crate::layers::OVERLAY;

/// Which images a collection removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagesToRemove {
    /// None.
    None,
    /// Those without a name.
    Dangling,
    /// All.
    All,
}

/// What a collection removes. Layers of images that stay, and whatever running commands use, always stay.
#[derive(Clone, Copy, Debug)]
pub struct Collection {
    /// Which images.
    pub images: ImagesToRemove,
    /// How many bytes of build cache stay, the most recently used first; `None` leaves the cache alone.
    pub keep_cache_bytes: Option<u64>,
    /// Only what was made before this time, nanoseconds since the epoch.
    pub until: Option<i64>,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Names that went with their images, as people write them.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub images: Vec<ImageId>,
    /// Layers that are gone, of images or of the build cache.
    pub layers: Vec<DiffId>,
    /// Bytes of blobs, unpacked files and indexes that are gone.
    pub bytes: u64,
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
    /// Collects. One collector works at a time; another one waits.
    pub fn collect(&self, collection: &Collection) -> Result<Collected> {
        let _one = Lock::acquire(&self.root().join("collect.lock"), Sharing::Exclusive)?;
        self.end_dead_leases()?;
        let mut collected = Collected::default();
        let doomed = self.database.write(Durability::Durable, |t| {
            remove_images(t, collection, &mut collected)?;
            doom(t, collection)
        })?;
        self.forget_indexes(&doomed.layers);
        collected.bytes = doomed.bytes;
        collected.layers.clone_from(&doomed.layers);
        self.database.write(Durability::Relaxed, |t| self.remove_files(t, &doomed))?;
        self.database.write(Durability::Relaxed, |t| self.sweep(t))?;
        self.empty_trash()?;
        self.write_layout()?;
        Ok(collected)
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

    /// Removes files that no row names: what a kill left behind.
    fn sweep(&self, t: &Connection) -> Result<()> {
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
        let root = self.root();
        self.sweep_directory(&root.join("index"), |name| layers.contains(name))?;
        self.sweep_directory(&root.join("blobs/sha256"), |name| blobs.contains(name))?;
        self.sweep_directory(&root.join(OVERLAY), |name| name == "l" || snapshots.contains(name))?;
        self.sweep_directory(&root.join(OVERLAY).join("l"), |name| links.contains(name))
    }

    fn sweep_directory(&self, directory: &Path, known: impl Fn(&str) -> bool) -> Result<()> {
        for entry in fs_err::read_dir(directory).map_err(Error::file("list", directory))? {
            let entry = entry.map_err(Error::file("list", directory))?;
            if !entry.file_name().to_str().is_some_and(&known) {
                self.to_trash(&entry.path())?;
            }
        }
        Ok(())
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

    fn empty_trash(&self) -> Result<()> {
        let trash = kiln_sys::root::Directory::open(&self.root().join("trash"))?;
        Ok(trash.clear()?)
    }

    /// Bytes of the build cache: layers that no image has.
    pub fn cache_bytes(&self) -> Result<u64> {
        let connection = self.database.lock();
        Ok(free_layers(&connection)?.iter().map(|layer| layer.bytes).sum())
    }
}

fn remove_images(t: &Connection, collection: &Collection, collected: &mut Collected) -> Result<()> {
    let wanted = match collection.images {
        ImagesToRemove::None => return Ok(()),
        ImagesToRemove::Dangling => "NOT EXISTS (SELECT 1 FROM tags g WHERE g.image = i.id)",
        ImagesToRemove::All => "1",
    };
    let sql = format!(
        "SELECT i.id FROM images i WHERE {wanted} AND i.created < ?1 AND NOT EXISTS \
         (SELECT 1 FROM lease_roots r WHERE r.kind = 'image' AND r.digest = i.id)"
    );
    let images = all(t, &sql, [collection.until.unwrap_or(i64::MAX)], |row| digest(row, 0))?;
    for image in images {
        let names = all(t, "SELECT name FROM tags WHERE image = ?1", [image.as_bytes()], |row| {
            row.get::<_, String>(0)
        })?;
        collected.untagged.extend(names);
        execute(t, "DELETE FROM tags WHERE image = ?1", [image.as_bytes()])?;
        execute(t, "DELETE FROM images WHERE id = ?1", [image.as_bytes()])?;
        collected.images.push(ImageId(image));
    }
    Ok(())
}

struct FreeLayer {
    diff_id: Digest,
    bytes: u64,
    created: i64,
}

/// Layers that no image and no lease has, the most recently used first.
fn free_layers(t: &Connection) -> Result<Vec<FreeLayer>> {
    all(
        t,
        "SELECT l.diff_id, l.created, l.index_size \
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
                created: row.get(1)?,
                bytes: row.get::<_, i64>(2)?.unsigned_abs(),
            })
        },
    )
}

/// Layers that the build cache needs: those of all chains that a record has as its result and that are there.
fn cached_layers(t: &Connection) -> Result<HashSet<Digest>> {
    let present: HashSet<Digest> =
        all(t, "SELECT diff_id FROM layers", [], |row| digest(row, 0))?.into_iter().collect();
    let links: HashMap<Digest, (Digest, Digest)> =
        all(t, "SELECT chain_id, parent, diff_id FROM chains", [], |row| {
            Ok((digest(row, 0)?, (digest(row, 1)?, digest(row, 2)?)))
        })?
        .into_iter()
        .collect();
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

/// Deletes the rows of what goes.
fn doom(t: &Connection, collection: &Collection) -> Result<Doomed> {
    let mut doomed = Doomed::default();
    let cached = cached_layers(t)?;
    let keep = collection.keep_cache_bytes.unwrap_or(u64::MAX);
    let mut kept: u64 = 0;
    for layer in free_layers(t)? {
        if cached.contains(&layer.diff_id) {
            let too_young = collection.until.is_some_and(|until| layer.created >= until);
            if too_young || kept.saturating_add(layer.bytes) <= keep {
                kept = kept.saturating_add(layer.bytes);
                continue;
            }
        }
        doom_layer(t, &layer, &mut doomed)?;
    }
    doom_blobs(t, &mut doomed)?;
    Ok(doomed)
}

fn doom_layer(t: &Connection, layer: &FreeLayer, doomed: &mut Doomed) -> Result<()> {
    let key = layer.diff_id.as_bytes();
    let snapshots = all(t, "SELECT id, link FROM snapshots WHERE diff_id = ?1", [key], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    doomed.snapshots.extend(snapshots);
    execute(t, "DELETE FROM snapshots WHERE diff_id = ?1", [key])?;
    execute(t, "DELETE FROM layers WHERE diff_id = ?1", [key])?;
    doomed.layers.push(DiffId(layer.diff_id));
    doomed.bytes = doomed.bytes.saturating_add(layer.bytes);
    Ok(())
}

/// Blobs that hold no layer, no config and no manifest any more.
fn doom_blobs(t: &Connection, doomed: &mut Doomed) -> Result<()> {
    let blobs = all(
        t,
        "SELECT digest, size FROM blobs b \
         WHERE NOT EXISTS (SELECT 1 FROM layer_blobs l WHERE l.blob = b.digest) \
           AND NOT EXISTS (SELECT 1 FROM images i WHERE i.id = b.digest) \
           AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.digest = b.digest) \
           AND NOT EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'blob' AND r.digest = b.digest)",
        [],
        |row| Ok((digest(row, 0)?, row.get::<_, i64>(1)?)),
    )?;
    for (blob, _) in &blobs {
        execute(t, "DELETE FROM blobs WHERE digest = ?1", [blob.as_bytes()])?;
        doomed.blobs.push(*blob);
    }
    Ok(())
}

/// Marks layers as used now, so that collection takes others first.
pub(crate) fn touch_layers(t: &Connection, layers: &[DiffId]) -> Result<()> {
    let now = now();
    for layer in layers {
        execute(t, "UPDATE layers SET last_used = ?1 WHERE diff_id = ?2", params![now, layer.0.as_bytes()])?;
    }
    Ok(())
}
