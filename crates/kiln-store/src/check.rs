//! `system check`: everything in the store against its digest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::Path;

use kiln_layer::{LayerIndex, Options, Walk};
use kiln_oci::{ChainId, DiffId, Digest, Hasher, ImageId};
use rusqlite::{Connection, params};
use rustix::fs::Access;

use crate::Store;
use crate::database::{Durability, all, digest};
use crate::error::{Error, OtherOwners, Result};
use crate::layers::{OVERLAY, snapshot_is_source};
use crate::stale::Stale;
use crate::tar_mounts::MOUNTS;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SQLite finds its file damaged.
    Database {
        /// What SQLite says.
        message: String,
    },
    /// An image whose config does not have its digest, or cannot be read.
    Config {
        /// The image.
        image: ImageId,
        /// What is wrong.
        reason: String,
    },
    /// A layer of an image that is not there.
    MissingLayer {
        /// The image.
        image: ImageId,
        /// The layer.
        layer: DiffId,
    },
    /// A layer whose index cannot be read, or tells of something else than is in the layer.
    Index {
        /// The layer.
        layer: DiffId,
        /// What is wrong.
        reason: String,
    },
    /// A layer that has neither a blob nor a snapshot that it can be made from.
    NoSource {
        /// The layer.
        layer: DiffId,
    },
    /// A layer that comes out of its snapshot with another digest, or not at all.
    Snapshot {
        /// The layer.
        layer: DiffId,
        /// What is wrong.
        reason: String,
    },
    /// A blob whose file is gone or is not what it was, or a layer's that cannot be walked.
    Blob {
        /// The blob.
        blob: Digest,
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database { message } => write!(f, "kiln.db: {message}"),
            Self::Config { image, reason } => write!(f, "image {image}: {reason}"),
            Self::MissingLayer { image, layer } => {
                write!(f, "image {image}: layer {layer} is not in the store")
            }
            Self::Index { layer, reason } => write!(f, "index of layer {layer}: {reason}"),
            Self::NoSource { layer } => write!(f, "layer {layer}: neither a blob nor a snapshot holds it"),
            Self::Snapshot { layer, reason } => write!(f, "snapshot of layer {layer}: {reason}"),
            Self::Blob { blob, reason } => write!(f, "blob {blob}: {reason}"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Files that nothing names, relative to the store: what a kill or an earlier boot left behind. The next collection
    /// removes them.
    pub garbage: Vec<String>,
    /// Images that need something that is wrong.
    pub damaged: Vec<ImageId>,
    /// Layers whose files this process cannot use, and whose those are: they were not read.
    pub unread: Vec<(DiffId, OtherOwners)>,
    /// How many images were looked at.
    pub images: u64,
    /// How many layers.
    pub layers: u64,
    /// How many blobs were hashed.
    pub blobs: u64,
}

/// What is looked at.
enum Looked {
    Everything,
    /// What has these digests.
    These(HashSet<Digest>),
}

impl Looked {
    /// What faults are about.
    fn at(faults: &[Fault]) -> Self {
        let digest = |fault: &Fault| match fault {
            Fault::Database { .. } => None,
            Fault::Config { image, .. } | Fault::MissingLayer { image, .. } => Some(image.0),
            Fault::Index { layer, .. } | Fault::NoSource { layer } | Fault::Snapshot { layer, .. } => {
                Some(layer.0)
            }
            Fault::Blob { blob, .. } => Some(*blob),
        };
        Self::These(faults.iter().filter_map(digest).collect())
    }

    fn takes(&self, digest: &Digest) -> bool {
        match self {
            Self::Everything => true,
            Self::These(these) => these.contains(digest),
        }
    }
}

impl Store {
    /// Reads everything and compares it with its digest. Changes nothing.
    ///
    /// Other commands go on meanwhile. What looks wrong is looked at once more while nobody collects, so that what is
    /// being removed is no fault.
    pub fn check(&self) -> Result<Checked> {
        let mut checked = Checked::default();
        self.check_database(&mut checked)?;
        let stale = self.stale(&self.database.lock())?;
        self.check_all(&Looked::Everything, &stale, &mut checked)?;
        checked.garbage = {
            let connection = self.database.lock();
            self.garbage(&connection, &stale)?
        };
        if !checked.faults.is_empty() || !checked.garbage.is_empty() {
            self.look_again(&mut checked)?;
        }
        checked.damaged = self.damaged(&checked.faults)?;
        Ok(checked)
    }

    fn check_all(&self, looked: &Looked, stale: &Stale, checked: &mut Checked) -> Result<()> {
        self.check_images(looked, checked)?;
        self.check_blobs(looked, stale, checked)?;
        self.check_layers(looked, stale, checked)
    }

    /// Leaves the faults that are none of another command's doing.
    fn look_again(&self, checked: &mut Checked) -> Result<()> {
        let _alone = match self.exclude_collections() {
            Ok(alone) => alone,
            // Where nothing can be written nobody removes anything.
            Err(_) if rustix::fs::access(self.root(), Access::WRITE_OK).is_err() => return Ok(()),
            Err(error) => return Err(error),
        };
        let stale = self.stale(&self.database.lock())?;
        let mut again = Checked::default();
        self.check_all(&Looked::at(&checked.faults), &stale, &mut again)?;
        checked.faults.retain(|fault| matches!(fault, Fault::Database { .. }));
        checked.faults.append(&mut again.faults);
        checked.unread.append(&mut again.unread);
        if !checked.garbage.is_empty() {
            // Files come and go together with their rows, in transactions.
            let garbage = self.database.write(Durability::Relaxed, |t| self.garbage(t, &stale))?;
            // What was not there before is another command's.
            checked.garbage.retain(|name| garbage.contains(name));
        }
        Ok(())
    }

    fn damaged(&self, faults: &[Fault]) -> Result<Vec<ImageId>> {
        let mut damaged = BTreeSet::new();
        let mut add = |sql: &str, wrong: &Digest| -> Result<()> {
            damaged.extend(self.database.all(sql, [wrong.as_bytes()], |row| digest(row, 0))?);
            Ok(())
        };
        for fault in faults {
            match fault {
                Fault::Database { .. } => {}
                Fault::Config { image, .. } => add("SELECT ?1", &image.0)?,
                Fault::MissingLayer { layer, .. }
                | Fault::Index { layer, .. }
                | Fault::NoSource { layer }
                | Fault::Snapshot { layer, .. } => {
                    add("SELECT image FROM image_layers WHERE diff_id = ?1", &layer.0)?;
                }
                Fault::Blob { blob, .. } => add(
                    "SELECT i.image FROM image_layers i JOIN layer_blobs x ON x.diff_id = i.diff_id \
                     WHERE x.blob = ?1 UNION SELECT image FROM manifests WHERE digest = ?1 \
                     UNION SELECT id FROM images WHERE id = ?1",
                    blob,
                )?,
            }
        }
        Ok(damaged.into_iter().map(ImageId).collect())
    }

    fn check_database(&self, checked: &mut Checked) -> Result<()> {
        let messages = self.database.all("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))?;
        let damaged = messages.into_iter().filter(|message| message != "ok");
        checked.faults.extend(damaged.map(|message| Fault::Database { message }));
        Ok(())
    }

    fn check_images(&self, looked: &Looked, checked: &mut Checked) -> Result<()> {
        for summary in self.images()?.into_iter().filter(|summary| looked.takes(&summary.id.0)) {
            checked.images += 1;
            let id = summary.id;
            let image = match self.image(id) {
                Ok(image) => image,
                Err(Error::NoImage(_)) => continue,
                Err(error) => {
                    let reason = error.to_string();
                    checked.faults.push(Fault::Config { image: id, reason });
                    continue;
                }
            };
            let found = Digest::of(&image.config_bytes);
            if found != id.0 {
                let reason = format!("its config has the digest {found}");
                checked.faults.push(Fault::Config { image: id, reason });
            }
            for layer in image.config.rootfs.diff_ids {
                if self.layer(layer)?.is_none() {
                    checked.faults.push(Fault::MissingLayer { image: id, layer });
                }
            }
        }
        Ok(())
    }

    fn check_blobs(&self, looked: &Looked, stale: &Stale, checked: &mut Checked) -> Result<()> {
        let blobs = self.database.all("SELECT digest, size FROM blobs ORDER BY digest", [], |row| {
            Ok((digest(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        let layers = self.database.all("SELECT blob, diff_id FROM layer_blobs", [], |row| {
            Ok((digest(row, 0)?, DiffId(digest(row, 1)?)))
        })?;
        let layers: HashMap<Digest, DiffId> = layers.into_iter().collect();
        for (blob, size) in blobs.into_iter().filter(|(blob, _)| !stale.blobs.contains(blob)) {
            let layer = layers.get(&blob).copied();
            if !looked.takes(&blob) && !layer.is_some_and(|layer| looked.takes(&layer.0)) {
                continue;
            }
            checked.blobs += 1;
            let walked = layer.map(|layer| (layer, self.walk_blob(&blob)));
            // A walk hashes the blob, too.
            let fault = match &walked {
                Some((_, Ok(walk))) if (walk.blob, walk.blob_size) == (blob, size) => None,
                Some((_, Err(error))) => self.blob_fault(&blob, size).or_else(|| Some(error.to_string())),
                _ => self.blob_fault(&blob, size),
            };
            match (fault, walked) {
                (Some(reason), _) => checked.faults.push(Fault::Blob { blob, reason }),
                (None, Some((layer, Ok(walk)))) => self.check_index(layer, &walk.index, checked),
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn walk_blob(&self, blob: &Digest) -> Result<Walk> {
        let path = self.blob_path(blob);
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        Ok(kiln_layer::walk(file, &Options::default())?)
    }

    /// Whether the index of a layer is one of what is in it. An index that is not there is told with the layers.
    fn check_index(&self, layer: DiffId, walked: &LayerIndex, checked: &mut Checked) {
        let Ok(index) = self.index(layer) else { return };
        if index.diff_id() != layer || index.agrees_with(walked) {
            return;
        }
        let fault =
            Fault::Index { layer, reason: "it tells of something else than is in the layer".to_owned() };
        if !checked.faults.contains(&fault) {
            checked.faults.push(fault);
        }
    }

    fn blob_fault(&self, blob: &Digest, size: u64) -> Option<String> {
        let hash = || -> io::Result<(Digest, u64)> {
            let mut hasher = Hasher::new();
            let mut file = fs_err::File::open(self.blob_path(blob))?;
            let length = io::copy(&mut file, &mut hasher)?;
            Ok((hasher.finish(), length))
        };
        match hash() {
            Err(error) => Some(error.to_string()),
            Ok((_, length)) if length != size => Some(format!("it has {length} bytes, expected {size}")),
            Ok((found, _)) if found != *blob => Some(format!("its bytes have the digest {found}")),
            Ok(_) => None,
        }
    }

    fn check_layers(&self, looked: &Looked, stale: &Stale, checked: &mut Checked) -> Result<()> {
        let is_looked_at = |layer: &DiffId| looked.takes(&layer.0) && !stale.layers.contains(&layer.0);
        for layer in self.all_layers()?.into_iter().filter(is_looked_at) {
            checked.layers += 1;
            let from_snapshot = match self.index(layer) {
                Ok(index) if index.diff_id() == layer => snapshot_is_source(&index),
                Ok(index) => {
                    let reason = format!("it is that of {}", index.diff_id());
                    checked.faults.push(Fault::Index { layer, reason });
                    continue;
                }
                Err(error) => {
                    checked.faults.push(Fault::Index { layer, reason: error.to_string() });
                    continue;
                }
            };
            let has_blob = !self.layer_blobs(layer)?.is_empty();
            match self.chain_with_snapshot(layer)? {
                Some(below) if from_snapshot => match self.walk_snapshot(&below, layer) {
                    Ok(walk) => self.check_index(layer, &walk.index, checked),
                    Err(error) => {
                        let reason = error.to_string();
                        checked.faults.push(Fault::Snapshot { layer, reason });
                    }
                },
                _ if !has_blob => match self.other_owners(layer)? {
                    Some(owners) => checked.unread.push((layer, owners)),
                    None => checked.faults.push(Fault::NoSource { layer }),
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Walks the tar of a layer that is unpacked while it is made again.
    fn walk_snapshot(&self, below: &[DiffId], layer: DiffId) -> Result<Walk> {
        let failed = Error::file("make a pipe for", self.root());
        let (tar, mut output) = io::pipe().map_err(failed)?;
        std::thread::scope(|scope| {
            let walking = scope.spawn(move || {
                let walked = kiln_layer::walk(&tar, &Options::default());
                // Else what is wrong with the snapshot would not be told, but that nobody reads on.
                io::copy(&mut &tar, &mut io::sink()).ok();
                walked
            });
            let written = self.write_tar(below, layer, &mut output);
            drop(output);
            let walked = walking.join().unwrap_or(Err(kiln_layer::Error::Worker));
            written?;
            Ok(walked?)
        })
    }

    /// The layers below `layer` in a stack where it is unpacked.
    fn chain_with_snapshot(&self, layer: DiffId) -> Result<Option<Vec<DiffId>>> {
        let parents = self.database.all(
            "SELECT parent FROM chains WHERE diff_id = ?1",
            params![layer.0.as_bytes()],
            |row| digest(row, 0).map(ChainId),
        )?;
        for parent in parents {
            let Some(below) = self.chain_layers(parent)? else { continue };
            let whole = below.iter().all(|layer| matches!(self.layer(*layer), Ok(Some(_))));
            let snapshot = self.find_snapshot(parent, layer)?;
            if whole && snapshot.is_some_and(|snapshot| snapshot.diff.is_dir()) {
                return Ok(Some(below.to_vec()));
            }
        }
        Ok(None)
    }

    /// Files that no row names which will stay.
    fn garbage(&self, t: &Connection, stale: &Stale) -> Result<Vec<String>> {
        let hex = |sql: &str, stale: &HashSet<Digest>| -> Result<HashSet<String>> {
            let rows = all(t, sql, [], |row| digest(row, 0))?;
            Ok(rows.iter().filter(|row| !stale.contains(*row)).map(Digest::hex).collect())
        };
        let text = |sql: &str| -> Result<HashSet<String>> {
            Ok(all(t, sql, [], |row| row.get(0))?.into_iter().collect())
        };
        let (mut snapshots, mut links) =
            (text("SELECT id FROM snapshots")?, text("SELECT link FROM snapshots")?);
        for snapshot in &stale.snapshots {
            snapshots.remove(&snapshot.id);
            links.remove(&snapshot.link);
        }
        snapshots.insert("l".to_owned());
        let layers = hex("SELECT diff_id FROM layers", &stale.layers)?;
        let tmp = self.root().join("tmp");
        let mut leases = text("SELECT id FROM leases")?;
        leases.retain(|id| crate::lease::is_alive(&tmp.join(id)));
        let mut caches = text("SELECT directory FROM cache_mounts")?;
        caches.extend(caches.clone().into_iter().map(|name| name + ".lock"));
        let mounts = format!("{MOUNTS}/{}", self.mounts_of_boot());
        let mut garbage = Vec::new();
        let mut add = |directory: &str, known: &dyn Fn(&str) -> bool| -> Result<()> {
            let unknown = unknown(&self.root().join(directory), known)?;
            garbage.extend(unknown.into_iter().map(|name| format!("{directory}/{name}")));
            Ok(())
        };
        add("index", &|name| layers.contains(name))?;
        add(MOUNTS, &|name| self.keeps_mounts(name, !leases.is_empty()))?;
        add(&mounts, &|name| layers.contains(name))?;
        let blobs = hex("SELECT digest FROM blobs", &stale.blobs)?;
        add("blobs/sha256", &|name| blobs.contains(name))?;
        add(OVERLAY, &|name| snapshots.contains(name))?;
        add("overlay2/l", &|name| links.contains(name))?;
        add("cache", &|name| caches.contains(name))?;
        // The row of a lease goes before its files, and one may have begun since.
        add("tmp", &|name| leases.contains(name) || crate::lease::is_alive(&tmp.join(name)))?;
        add("trash", &|_| false)?;
        let temporary = |name: &str| !kiln_sys::publish::is_temporary(name.as_ref());
        garbage.extend(unknown(self.root(), &temporary)?);
        garbage.sort();
        Ok(garbage)
    }
}

fn unknown(directory: &Path, known: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut unknown = Vec::new();
    let entries = match fs_err::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(unknown),
        entries => entries.map_err(Error::file("list", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::file("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known(&name) {
            unknown.push(name);
        }
    }
    Ok(unknown)
}
