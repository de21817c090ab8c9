//! What takes space in the store. Sizes come from the database; only cache mounts, whose files are the steps', are
//! looked through.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_oci::{DiffId, Digest, ImageId};

use crate::Store;
use crate::database::{all, digest};
use crate::error::Result;

/// What the lease of a container is taken for.
pub const CONTAINER: &str = "run";

/// A container that runs.
struct Container {
    image: ImageId,
    /// Its lease's directory, where its own files are.
    files: PathBuf,
}

/// What takes space.
#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// Images, newest first.
    pub images: Vec<ImageUsage>,
    /// Bytes of unpacked files of all images' layers, each layer once.
    pub image_bytes: u64,
    /// Bytes of those that no running container needs.
    pub unused_image_bytes: u64,
    /// How many containers run.
    pub containers: u64,
    /// Bytes of the files that are theirs alone.
    pub container_bytes: u64,
    /// How many blobs of layers there are.
    pub blobs: u64,
    /// How many of them hold a layer of an image.
    pub blobs_of_images: u64,
    /// Bytes of all blobs of layers.
    pub blob_bytes: u64,
    /// Bytes of those that hold no layer of an image.
    pub unused_blob_bytes: u64,
    /// The build cache.
    pub cache: Vec<CacheItem>,
}

/// What an image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// Digest of the config.
    pub id: ImageId,
    /// All names, sorted.
    pub names: Vec<String>,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Bytes of files in all layers.
    pub size: u64,
    /// Bytes of files in layers that other images have too.
    pub shared: u64,
    /// How many containers run from it.
    pub containers: u64,
}

/// What an image has of the store: its layers with the bytes of their files.
type LayersOfImages = Vec<(Digest, Digest, u64)>;

/// What an item of the build cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheItemKind {
    /// The layer that a step made.
    Layer,
    /// The directory of a cache mount.
    Mount,
}

/// A layer or a directory of the build cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheItem {
    /// What it is.
    pub kind: CacheItemKind,
    /// Hexadecimal digits of the layer's diff ID, or the directory's name.
    pub id: String,
    /// The step, or the mount's id.
    pub description: String,
    /// Bytes that its removal gives back.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Nanoseconds since the epoch.
    pub last_used: i64,
    /// How many records have it.
    pub records: u64,
    /// Whether a running command uses it.
    pub in_use: bool,
    /// Whether an image has it, too, so that nothing is gained by removing it.
    pub shared: bool,
}

impl Store {
    /// What takes space, and what of it could go.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let containers = self.containers()?;
        let layers = self.layers_of_images()?;
        let mut usage = DiskUsage {
            images: self.image_usage(&layers, &containers)?,
            containers: containers.len() as u64,
            container_bytes: containers.iter().map(|container| bytes_below(&container.files)).sum(),
            ..DiskUsage::default()
        };
        let connection = self.database.lock();
        let number = |sql: &str| -> Result<Vec<u64>> {
            let row = all(&connection, sql, [], |row| {
                (0..row.as_ref().column_count())
                    .map(|column| row.get::<_, Option<i64>>(column).map(|n| n.unwrap_or(0).unsigned_abs()))
                    .collect()
            })?;
            Ok(row.into_iter().next().unwrap_or_default())
        };
        const OF_IMAGES: &str =
            "SELECT l.blob FROM layer_blobs l JOIN image_layers i ON i.diff_id = l.diff_id";
        usage.image_bytes =
            number("SELECT sum(files_size) FROM layers WHERE diff_id IN (SELECT diff_id FROM image_layers)")?
                [0];
        let needed: HashMap<Digest, u64> = layers
            .iter()
            .filter(|(image, ..)| containers.iter().any(|container| container.image.0 == *image))
            .map(|(_, layer, size)| (*layer, *size))
            .collect();
        usage.unused_image_bytes = usage.image_bytes.saturating_sub(needed.values().sum());
        let blobs =
            number("SELECT count(*), sum(size) FROM blobs WHERE digest IN (SELECT blob FROM layer_blobs)")?;
        let used = number(&format!("SELECT count(*), sum(size) FROM blobs WHERE digest IN ({OF_IMAGES})"))?;
        (usage.blobs, usage.blob_bytes) = (blobs[0], blobs[1]);
        usage.blobs_of_images = used[0];
        usage.unused_blob_bytes = blobs[1].saturating_sub(used[1]);
        drop(connection);
        usage.cache = self.cached_layer_items()?;
        usage.cache.extend(self.cache_mount_items()?);
        Ok(usage)
    }

    fn layers_of_images(&self) -> Result<LayersOfImages> {
        self.database.all(
            "SELECT i.image, i.diff_id, l.files_size FROM image_layers i JOIN layers l USING (diff_id)",
            [],
            |row| Ok((digest(row, 0)?, digest(row, 1)?, row.get::<_, i64>(2)?.unsigned_abs())),
        )
    }

    /// The containers that run: each has a lease, which keeps its image.
    fn containers(&self) -> Result<Vec<Container>> {
        let mut containers = self.database.all(
            "SELECT l.id, r.digest FROM leases l JOIN lease_roots r ON r.lease = l.id \
             WHERE l.command = ?1 AND r.kind = 'image'",
            [CONTAINER],
            |row| {
                Ok(Container {
                    files: self.root().join("tmp").join(row.get::<_, String>(0)?),
                    image: ImageId(digest(row, 1)?),
                })
            },
        )?;
        containers.retain(|container| crate::lease::is_alive(&container.files));
        Ok(containers)
    }

    fn image_usage(&self, rows: &LayersOfImages, containers: &[Container]) -> Result<Vec<ImageUsage>> {
        let mut owners: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (image, layer, _) in rows {
            let owners = owners.entry(*layer).or_default();
            if owners.last() != Some(image) {
                owners.push(*image);
            }
        }
        let mut shared: HashMap<Digest, u64> = HashMap::new();
        for (image, layer, size) in rows {
            if owners.get(layer).is_some_and(|owners| owners.len() > 1) {
                *shared.entry(*image).or_default() += size;
            }
        }
        let images = self.images()?;
        let usage = |image: crate::ImageSummary| ImageUsage {
            id: image.id,
            names: image.names,
            created: image.created,
            size: image.size,
            shared: shared.get(&image.id.0).copied().unwrap_or(0),
            containers: containers.iter().filter(|container| container.image == image.id).count() as u64,
        };
        Ok(images.into_iter().map(usage).collect())
    }

    /// Layers that records have, and layers that nothing has.
    fn cached_layer_items(&self) -> Result<Vec<CacheItem>> {
        self.database.all(
            "SELECT l.diff_id, coalesce(max(r.name), ''), l.created, l.last_used, count(r.key), \
               EXISTS (SELECT 1 FROM lease_roots x WHERE x.kind = 'layer' AND x.digest = l.diff_id), \
               EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = l.diff_id) AS shared, \
               l.index_size + l.files_size * (SELECT count(*) FROM snapshots s WHERE s.diff_id = l.diff_id) \
               + coalesce((SELECT sum(b.size) FROM layer_blobs y JOIN blobs b ON b.digest = y.blob \
                           WHERE y.diff_id = l.diff_id), 0) \
             FROM layers l LEFT JOIN records r ON r.layer = l.diff_id \
             GROUP BY l.diff_id HAVING count(r.key) > 0 OR shared = 0 ORDER BY l.last_used, l.diff_id",
            [],
            |row| {
                Ok(CacheItem {
                    kind: CacheItemKind::Layer,
                    id: digest(row, 0)?.hex(),
                    description: row.get(1)?,
                    created: row.get(2)?,
                    last_used: row.get(3)?,
                    records: row.get::<_, i64>(4)?.unsigned_abs(),
                    in_use: row.get(5)?,
                    shared: row.get(6)?,
                    size: row.get::<_, i64>(7)?.unsigned_abs(),
                })
            },
        )
    }

    fn cache_mount_items(&self) -> Result<Vec<CacheItem>> {
        let caches = self.root().join("cache");
        let mut items = self.database.all(
            "SELECT directory, id, created, last_used FROM cache_mounts ORDER BY last_used",
            [],
            |row| {
                let directory: String = row.get(0)?;
                let id: String = row.get(1)?;
                Ok(CacheItem {
                    kind: CacheItemKind::Mount,
                    description: crate::CacheMountIdentity::describe(&id),
                    size: 0,
                    created: row.get(2)?,
                    last_used: row.get(3)?,
                    records: 1,
                    in_use: false,
                    shared: false,
                    id: directory,
                })
            },
        )?;
        for item in &mut items {
            let path = caches.join(&item.id);
            item.in_use = is_held(&path.with_extension("lock"));
            item.size = bytes_below(&path);
        }
        Ok(items)
    }

    /// Layers that are in the store, by diff ID.
    pub(crate) fn all_layers(&self) -> Result<Vec<DiffId>> {
        self.database.all("SELECT diff_id FROM layers ORDER BY diff_id", [], |row| digest(row, 0).map(DiffId))
    }
}

/// Whether somebody holds a lock. It is not kept while anything else is done: a step would find its cache mount in use.
fn is_held(lock: &Path) -> bool {
    matches!(kiln_sys::lock::Lock::try_acquire(lock, kiln_sys::lock::Sharing::Exclusive), Ok(None))
}

/// Bytes of regular files below a directory, hard links counted for each name. What cannot be read counts nothing.
pub(crate) fn bytes_below(directory: &Path) -> u64 {
    let mut pending = vec![directory.to_path_buf()];
    let mut bytes: u64 = 0;
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs_err::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() {
                bytes = bytes.saturating_add(metadata.size());
            }
        }
    }
    bytes
}
