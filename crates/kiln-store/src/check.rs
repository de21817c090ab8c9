//! `system check`: everything in the store against its digest.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::path::Path;

use kiln_oci::{ChainId, DiffId, Digest, Hasher, ImageId};
use rusqlite::params;

use crate::Store;
use crate::database::digest;
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
    /// A layer whose index cannot be read or is another layer's.
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
    /// A blob whose file is gone, or is not what it was.
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

impl Store {
    /// Reads everything and compares it with its digest. Changes nothing.
    pub fn check(&self) -> Result<Checked> {
        let mut checked = Checked::default();
        self.check_database(&mut checked)?;
        let stale = self.stale(&self.database.lock())?;
        self.check_images(&mut checked)?;
        self.check_blobs(&stale, &mut checked)?;
        self.check_layers(&stale, &mut checked)?;
        checked.garbage = self.garbage(&stale)?;
        checked.damaged = self.damaged(&checked.faults)?;
        Ok(checked)
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

    fn check_images(&self, checked: &mut Checked) -> Result<()> {
        for summary in self.images()? {
            checked.images += 1;
            let id = summary.id;
            let image = match self.image(id) {
                Ok(image) => image,
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

    fn check_blobs(&self, stale: &Stale, checked: &mut Checked) -> Result<()> {
        let blobs = self.database.all("SELECT digest, size FROM blobs ORDER BY digest", [], |row| {
            Ok((digest(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        for (blob, size) in blobs.into_iter().filter(|(blob, _)| !stale.blobs.contains(blob)) {
            checked.blobs += 1;
            if let Some(reason) = self.blob_fault(&blob, size) {
                checked.faults.push(Fault::Blob { blob, reason });
            }
        }
        Ok(())
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

    fn check_layers(&self, stale: &Stale, checked: &mut Checked) -> Result<()> {
        for layer in self.all_layers()?.into_iter().filter(|layer| !stale.layers.contains(&layer.0)) {
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
                Some(below) if from_snapshot => {
                    if let Err(error) = self.write_tar(&below, layer, &mut io::sink()) {
                        let reason = error.to_string();
                        checked.faults.push(Fault::Snapshot { layer, reason });
                    }
                }
                _ if !has_blob => match self.other_owners(layer)? {
                    Some(owners) => checked.unread.push((layer, owners)),
                    None => checked.faults.push(Fault::NoSource { layer }),
                },
                _ => {}
            }
        }
        Ok(())
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
    fn garbage(&self, stale: &Stale) -> Result<Vec<String>> {
        let hex = |sql: &str, stale: &HashSet<Digest>| -> Result<HashSet<String>> {
            let rows = self.database.all(sql, [], |row| digest(row, 0))?;
            Ok(rows.iter().filter(|row| !stale.contains(*row)).map(Digest::hex).collect())
        };
        let text = |sql: &str| -> Result<HashSet<String>> {
            Ok(self.database.all(sql, [], |row| row.get(0))?.into_iter().collect())
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
        // One may have begun since.
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
