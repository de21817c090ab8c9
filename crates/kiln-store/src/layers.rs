//! Layers: publishing them, and reading their indexes.
//!
//! A layer is published in one write transaction that moves its files into place and inserts its rows. The
//! collector moves files away only in a write transaction in which the rows are gone, so the two never meet.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_layer::{Kind, LayerIndex, RootView};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_sys::root::{Directory, Root};
use rusqlite::{Connection, params};
use rustix::fs::FileType;

use crate::Store;
use crate::database::{Durability, all, execute, now};
use crate::error::{Error, Result};
use crate::lease::{Lease, Leased};
use crate::store::{random, random_hex};

/// A layer as the database knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of regular files, hard links once.
    pub files_size: u64,
    /// Whether its snapshot fits any chain.
    pub stands_alone: bool,
    /// Version of kiln's tar writer, 0 for a foreign layer.
    pub writer: u32,
}

/// A layer to publish; its files are in the lease's directory.
pub struct NewLayer {
    /// The index.
    pub index: LayerIndex,
    /// The layer's bytes, if they are kept.
    pub blob: Option<NewBlob>,
    /// The unpacked files, if they are there.
    pub snapshot: Option<PathBuf>,
}

/// A blob to publish.
#[derive(Clone, Debug)]
pub struct NewBlob {
    /// Where its file is now.
    pub path: PathBuf,
    /// Digest of the file.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// `none`, `gzip`, `zstd`, `xz`, `bzip2`.
    pub compression: &'static str,
}

/// A blob that holds a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the file.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// `none`, `gzip`, `zstd`, `xz`, `bzip2`.
    pub compression: String,
}

/// Where snapshots are.
pub(crate) const OVERLAY: &str = "overlay2";

impl Store {
    /// Publishes a layer on `parent` and leases it. Idempotent: what is there already is kept, and the new files
    /// go with the lease.
    pub fn publish_layer(&self, lease: &Lease, parent: ChainId, layer: NewLayer) -> Result<DiffId> {
        let _span = kiln_trace::span("publish layer");
        let diff_id = layer.index.diff_id();
        if layer.blob.is_none()
            && layer.snapshot.is_some()
            && self.publish_again(lease, parent, &layer.index)?
        {
            return Ok(diff_id);
        }
        if self.layer(diff_id)?.is_some() {
            // What is trusted and not there would keep its place.
            self.drop_what_is_gone(diff_id)?;
        }
        let index_path = lease.fresh_path("index");
        fs_err::write(&index_path, layer.index.bytes()).map_err(Error::file("write", &index_path))?;
        let snapshot = match &layer.snapshot {
            Some(path) => Some(self.stage_snapshot(lease, path)?),
            None => None,
        };
        let is_its_index = self.database.write(Durability::Relaxed, |t| {
            let is_its_index = self.insert_layer(t, &layer.index, &index_path)?;
            if let Some(blob) = &layer.blob {
                self.insert_layer_blob(t, diff_id, blob)?;
            }
            if let Some(staged) = &snapshot {
                self.insert_snapshot(t, &layer.index, parent, staged)?;
            }
            crate::chains::insert_link(t, parent, diff_id)?;
            lease.keep_in(t, Leased::Layer(diff_id))?;
            Ok(is_its_index)
        })?;
        if is_its_index {
            let index = Arc::new(layer.index);
            self.indexes.lock().unwrap_or_else(|e| e.into_inner()).insert(diff_id, index);
        }
        Ok(diff_id)
    }

    /// Leases a layer and puts it on `parent`, if it is there with its files: then there is nothing to publish, as after each
    /// but the first of the steps that change nothing.
    fn publish_again(&self, lease: &Lease, parent: ChainId, index: &LayerIndex) -> Result<bool> {
        let layer = index.diff_id();
        let is_there = |t: &Connection| -> Result<bool> {
            Ok(self.is_usable(t, layer)?
                && self.has_files(t, &snapshot_key(index, parent))?
                && has_size(&self.index_path(layer), signed(index.bytes().len() as u64)))
        };
        if !is_there(&self.database.lock())? {
            return Ok(false);
        }
        self.database.write(Durability::Relaxed, |t| {
            // It may have been collected meanwhile.
            if !is_there(t)? {
                return Ok(false);
            }
            crate::chains::insert_link(t, parent, layer)?;
            lease.keep_in(t, Leased::Layer(layer))?;
            Ok(true)
        })
    }

    /// Whether there is a snapshot of a key, with its directory.
    fn has_files(&self, t: &Connection, key: &Digest) -> Result<bool> {
        let rows = all(
            t,
            "SELECT id FROM snapshots WHERE key = ?1 AND ownership = ?2 AND (boot IS NULL OR boot = ?3)",
            params![key.as_bytes(), self.owners(), self.boot],
            |row| row.get::<_, String>(0),
        )?;
        Ok(rows.first().is_some_and(|id| self.root().join(OVERLAY).join(id).join("diff").is_dir()))
    }

    /// Publishes the unpacked files of a layer on `parent` and leases it, if it is still there: nobody who unpacks it keeps
    /// a collection from removing it.
    pub(crate) fn publish_snapshot(
        &self,
        lease: &Lease,
        parent: ChainId,
        index: &LayerIndex,
        files: &std::path::Path,
    ) -> Result<()> {
        let diff_id = index.diff_id();
        let staged = self.stage_snapshot(lease, files)?;
        self.database.write(Durability::Relaxed, |t| {
            if !self.is_usable(t, diff_id)? {
                return Err(Error::NoLayer(diff_id));
            }
            self.insert_snapshot(t, index, parent, &staged)?;
            crate::chains::insert_link(t, parent, diff_id)?;
            lease.keep_in(t, Leased::Layer(diff_id))
        })
    }

    /// Moves a layer's index into place unless one is there that serves as well; says whether it did.
    fn insert_layer(&self, t: &Connection, index: &LayerIndex, file: &std::path::Path) -> Result<bool> {
        let diff_id = index.diff_id();
        let source = snapshot_is_source(index);
        // What gives the tar back takes the place of what does not, where no blob is left that holds the layer. Another
        // ownership's snapshot may need the index that is there, and is as well served by it.
        if self.trusted(t, "layers", "diff_id", &diff_id.0)?
            && (!source || self.gives_the_tar_back(t, diff_id)? || self.is_usable(t, diff_id)?)
        {
            return Ok(false);
        }
        let path = self.index_path(diff_id);
        fs_err::rename(file, &path).map_err(Error::file("publish", &path))?;
        execute(
            t,
            "INSERT INTO layers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10) \
             ON CONFLICT (diff_id) DO UPDATE SET tar_size = ?2, files_size = ?3, entries = ?4, stands_alone = ?5, \
             writer = ?6, index_size = ?7, boot = ?8, created = ?9, last_used = ?9, snapshot_is_source = ?10",
            params![
                diff_id.0.as_bytes(),
                signed(index.tar_size()),
                signed(index.content_size()),
                index.entry_count(),
                index.stands_alone(),
                index.writer_version().unwrap_or(0),
                signed(index.bytes().len() as u64),
                self.boot,
                now(),
                source
            ],
        )?;
        Ok(true)
    }

    /// Whether a snapshot of the layer would be a source of it, by its index.
    fn gives_the_tar_back(&self, t: &Connection, layer: DiffId) -> Result<bool> {
        let sql = "SELECT snapshot_is_source FROM layers WHERE diff_id = ?1";
        Ok(all(t, sql, [layer.0.as_bytes()], |row| row.get(0))?.first().copied().unwrap_or(false))
    }

    pub(crate) fn insert_layer_blob(&self, t: &Connection, diff_id: DiffId, blob: &NewBlob) -> Result<()> {
        self.insert_blob(t, blob)?;
        execute(
            t,
            "INSERT INTO layer_blobs VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![diff_id.0.as_bytes(), blob.digest.as_bytes(), blob.compression],
        )?;
        Ok(())
    }

    /// Moves a blob into place unless it is there.
    pub(crate) fn insert_blob(&self, t: &Connection, blob: &NewBlob) -> Result<()> {
        if self.blob_is_whole(t, &blob.digest)? {
            return Ok(());
        }
        let path = self.blob_path(&blob.digest);
        fs_err::rename(&blob.path, &path).map_err(Error::file("publish", &path))?;
        execute(
            t,
            "INSERT INTO blobs VALUES (?1, ?2, ?3, ?4) ON CONFLICT (digest) DO UPDATE SET size = ?2, boot = ?3, created = ?4",
            params![blob.digest.as_bytes(), signed(blob.size), self.boot, now()],
        )?;
        Ok(())
    }

    /// Whether a blob can be trusted and its file is there, as far as its size tells.
    pub(crate) fn blob_is_whole(&self, t: &Connection, blob: &Digest) -> Result<bool> {
        let sql = "SELECT size FROM blobs WHERE digest = ?1 AND (boot IS NULL OR boot = ?2)";
        let sizes = all(t, sql, params![blob.as_bytes(), self.boot], |row| row.get::<_, i64>(0))?;
        Ok(sizes.first().is_some_and(|size| has_size(&self.blob_path(blob), *size)))
    }

    /// Looks whether the files of a layer are there and as long as they should be. Those that are not are trusted no more,
    /// as if a power cut had torn them, so that what comes takes their place; says whether there were any.
    pub(crate) fn drop_what_is_gone(&self, layer: DiffId) -> Result<bool> {
        let torn = self.torn_snapshots(layer)?;
        if torn.is_empty() && self.gone(&self.database.lock(), layer)?.is_empty() {
            return Ok(false);
        }
        self.indexes.lock().unwrap_or_else(|e| e.into_inner()).remove(&layer);
        self.database.write(Durability::Relaxed, |t| {
            // Another process may have brought them meanwhile.
            let mut gone = self.gone(t, layer)?;
            gone.snapshots.extend(torn);
            if gone.index {
                execute(
                    t,
                    "UPDATE layers SET boot = ?1 WHERE diff_id = ?2",
                    params![GONE, layer.0.as_bytes()],
                )?;
            }
            for blob in &gone.blobs {
                execute(t, "UPDATE blobs SET boot = ?1 WHERE digest = ?2", params![GONE, blob.as_bytes()])?;
            }
            for id in &gone.snapshots {
                execute(t, "UPDATE snapshots SET boot = ?1 WHERE id = ?2", params![GONE, id])?;
            }
            Ok(!gone.is_empty())
        })
    }

    /// Where snapshots are the only source of a layer: those of this ownership that lack a file, or have one of another size.
    fn torn_snapshots(&self, layer: DiffId) -> Result<Vec<String>> {
        let ids = self.database.all(
            "SELECT s.id FROM snapshots s JOIN layers l USING (diff_id) WHERE s.diff_id = ?1 AND s.ownership = ?3 \
             AND (s.boot IS NULL OR s.boot = ?2) AND l.snapshot_is_source AND NOT EXISTS \
               (SELECT 1 FROM layer_blobs x JOIN blobs b ON b.digest = x.blob \
                WHERE x.diff_id = s.diff_id AND (b.boot IS NULL OR b.boot = ?2))",
            params![layer.0.as_bytes(), self.boot, self.owners()],
            |row| row.get::<_, String>(0),
        )?;
        if ids.is_empty() {
            return Ok(ids);
        }
        // Without an index nobody knows; that it is gone is found out elsewhere.
        let Ok(index) = self.index(layer) else { return Ok(Vec::new()) };
        let mut torn = Vec::new();
        for id in ids {
            if !holds_files(&self.root().join(OVERLAY).join(&id).join("diff"), &index)? {
                torn.push(id);
            }
        }
        Ok(torn)
    }

    fn gone(&self, t: &Connection, layer: DiffId) -> Result<Gone> {
        let of_layer = params![layer.0.as_bytes(), self.boot];
        let indexes = all(
            t,
            "SELECT index_size FROM layers WHERE diff_id = ?1 AND (boot IS NULL OR boot = ?2)",
            of_layer,
            |row| row.get::<_, i64>(0),
        )?;
        let blobs = all(
            t,
            "SELECT b.digest, b.size FROM layer_blobs l JOIN blobs b ON b.digest = l.blob \
             WHERE l.diff_id = ?1 AND (b.boot IS NULL OR b.boot = ?2)",
            of_layer,
            |row| Ok((crate::database::digest(row, 0)?, row.get::<_, i64>(1)?)),
        )?;
        let snapshots = all(
            t,
            "SELECT id FROM snapshots WHERE diff_id = ?1 AND (boot IS NULL OR boot = ?2)",
            of_layer,
            |row| row.get::<_, String>(0),
        )?;
        let is_there = |id: &String| !is_gone(&self.root().join(OVERLAY).join(id).join("diff"));
        let is_whole = |blob: &Digest, size: i64| !is_torn(&self.blob_path(blob), size);
        Ok(Gone {
            index: indexes.iter().any(|size| is_torn(&self.index_path(layer), *size)),
            blobs: blobs
                .into_iter()
                .filter(|(blob, size)| !is_whole(blob, *size))
                .map(|(blob, _)| blob)
                .collect(),
            snapshots: snapshots.into_iter().filter(|id| !is_there(id)).collect(),
        })
    }

    /// Whether a row exists whose file was written to the end: in this boot, or synced.
    pub(crate) fn trusted(&self, t: &Connection, table: &str, column: &str, digest: &Digest) -> Result<bool> {
        let rows =
            all(t, &format!("SELECT boot FROM {table} WHERE {column} = ?1"), [digest.as_bytes()], |row| {
                row.get::<_, Option<String>>(0)
            })?;
        Ok(rows.first().is_some_and(|boot| boot.as_ref().is_none_or(|boot| *boot == self.boot)))
    }

    /// Gives a new snapshot its name and its small files, still in the lease's directory.
    fn stage_snapshot(&self, lease: &Lease, files: &std::path::Path) -> Result<StagedSnapshot> {
        let id = random_hex(32)?;
        let link = short_link()?;
        let directory = lease.fresh_path("snapshot");
        let make = |path: &std::path::Path| fs_err::create_dir(path).map_err(Error::file("make", path));
        make(&directory)?;
        make(&directory.join("work"))?;
        let diff = directory.join("diff");
        fs_err::rename(files, &diff).map_err(Error::file("move", files))?;
        let link_file = directory.join("link");
        fs_err::write(&link_file, &link).map_err(Error::file("write", &link_file))?;
        Ok(StagedSnapshot { id, link, directory })
    }

    fn insert_snapshot(
        &self,
        t: &Connection,
        index: &LayerIndex,
        parent: ChainId,
        staged: &StagedSnapshot,
    ) -> Result<()> {
        let key = snapshot_key(index, parent);
        let known = all(
            t,
            "SELECT boot FROM snapshots WHERE key = ?1 AND ownership = ?2",
            params![key.as_bytes(), self.owners()],
            |row| row.get::<_, Option<String>>(0),
        )?;
        match known.first() {
            Some(boot) if boot.as_ref().is_none_or(|boot| *boot == self.boot) => return Ok(()),
            Some(_) => {
                execute(
                    t,
                    "DELETE FROM snapshots WHERE key = ?1 AND ownership = ?2",
                    params![key.as_bytes(), self.owners()],
                )?;
            }
            None => {}
        }
        self.write_lower(t, parent, &staged.directory)?;
        let overlay = self.root().join(OVERLAY);
        let target = overlay.join(&staged.id);
        fs_err::rename(&staged.directory, &target).map_err(Error::file("publish", &target))?;
        let link = overlay.join("l").join(&staged.link);
        fs_err::os::unix::fs::symlink(format!("../{}/diff", staged.id), &link)
            .map_err(Error::file("make the link", &link))?;
        execute(
            t,
            "INSERT INTO snapshots VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                staged.id,
                staged.link,
                key.as_bytes(),
                self.owners(),
                index.diff_id().0.as_bytes(),
                self.boot,
                now()
            ],
        )?;
        Ok(())
    }

    /// `lower` as people know it: short links, the nearest first. Only for reading; kiln itself asks the database.
    fn write_lower(&self, t: &Connection, parent: ChainId, directory: &std::path::Path) -> Result<()> {
        let links = all(
            t,
            "WITH RECURSIVE below (chain, parent, layer, depth) AS \
               (SELECT chain_id, parent, diff_id, 0 FROM chains WHERE chain_id = ?1 \
                UNION ALL SELECT c.chain_id, c.parent, c.diff_id, b.depth + 1 \
                FROM below b JOIN chains c ON c.chain_id = b.parent) \
             SELECT s.link FROM below b JOIN snapshots s \
             ON s.key IN (b.layer, b.chain) AND s.ownership = ?2 AND s.diff_id = b.layer ORDER BY b.depth",
            params![parent.0.as_bytes(), self.owners()],
            |row| row.get::<_, String>(0).map(|link| format!("l/{link}")),
        )?;
        if links.is_empty() {
            return Ok(());
        }
        let path = directory.join("lower");
        fs_err::write(&path, links.join(":")).map_err(Error::file("write", &path))
    }

    /// What is known of a layer, if it is there.
    pub fn layer(&self, diff_id: DiffId) -> Result<Option<LayerInfo>> {
        self.database.one(
            "SELECT tar_size, files_size, stands_alone, writer FROM layers WHERE diff_id = ?1",
            [diff_id.0.as_bytes()],
            |row| {
                Ok(LayerInfo {
                    diff_id,
                    tar_size: row.get::<_, i64>(0)?.unsigned_abs(),
                    files_size: row.get::<_, i64>(1)?.unsigned_abs(),
                    stands_alone: row.get(2)?,
                    writer: row.get(3)?,
                })
            },
        )
    }

    /// The blobs that hold a layer, uncompressed ones first. Those that a power cut may have torn are not among them.
    pub fn layer_blobs(&self, diff_id: DiffId) -> Result<Vec<LayerBlob>> {
        self.database.all(
            "SELECT b.digest, b.size, l.compression FROM layer_blobs l JOIN blobs b ON b.digest = l.blob \
             WHERE l.diff_id = ?1 AND (b.boot IS NULL OR b.boot = ?2) ORDER BY l.compression <> 'none', b.created",
            params![diff_id.0.as_bytes(), self.boot],
            |row| {
                Ok(LayerBlob {
                    digest: crate::database::digest(row, 0)?,
                    size: row.get::<_, i64>(1)?.unsigned_abs(),
                    compression: row.get(2)?,
                })
            },
        )
    }

    /// The index of a layer. Mapped once for each process. [`Error::NoLayer`] says that there is none, and nothing else.
    pub fn index(&self, diff_id: DiffId) -> Result<Arc<LayerIndex>> {
        if let Some(index) = self.indexes.lock().unwrap_or_else(|e| e.into_inner()).get(&diff_id) {
            return Ok(Arc::clone(index));
        }
        // What a power cut may have torn is not read.
        if !self.trusted(&self.database.lock(), "layers", "diff_id", &diff_id.0)? {
            return Err(Error::NoLayer(diff_id));
        }
        let path = self.index_path(diff_id);
        let file = fs_err::File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoLayer(diff_id),
            _ => Error::file("open", &path)(error),
        })?;
        let index = LayerIndex::open(file.file(), &path).map_err(|error| match error {
            kiln_layer::Error::File(named) => Error::Path(named),
            source => Error::Index { path, source },
        })?;
        let index = Arc::new(index);
        self.indexes.lock().unwrap_or_else(|e| e.into_inner()).insert(diff_id, Arc::clone(&index));
        Ok(index)
    }

    /// The tree of a stack of layers, from the bottom to the top.
    pub fn root_view(&self, layers: &[DiffId]) -> Result<RootView> {
        let indexes = layers.iter().map(|layer| self.index(*layer)).collect::<Result<Vec<_>>>()?;
        Ok(RootView::new(indexes))
    }

    pub(crate) fn index_path(&self, diff_id: DiffId) -> PathBuf {
        self.root().join("index").join(diff_id.0.hex())
    }

    /// Where a blob's file is.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }
}

/// What of a layer is trusted, and is not there as it should be.
struct Gone {
    index: bool,
    blobs: Vec<Digest>,
    snapshots: Vec<String>,
}

impl Gone {
    fn is_empty(&self) -> bool {
        !self.index && self.blobs.is_empty() && self.snapshots.is_empty()
    }
}

/// The mark of a file that was found gone or cut off: no boot is named so.
const GONE: &str = "gone";

/// Whether a file is certainly not there: an error of the disk says nothing about it.
fn is_gone(path: &std::path::Path) -> bool {
    fs_err::symlink_metadata(path).is_err_and(|error| is_absence(error.kind()))
}

fn is_absence(error: std::io::ErrorKind) -> bool {
    matches!(error, std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Whether a file is certainly gone, or of another size.
fn is_torn(path: &std::path::Path, size: i64) -> bool {
    match fs_err::symlink_metadata(path) {
        Ok(found) => !found.is_file() || found.len() != size.unsigned_abs(),
        Err(_) => is_gone(path),
    }
}

/// Whether a directory holds the regular files of a layer, as far as their sizes tell.
fn holds_files(directory: &std::path::Path, index: &LayerIndex) -> Result<bool> {
    let root = match Root::open(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        root => root?,
    };
    // What one directory holds comes together.
    let mut parent: Option<(&std::path::Path, Directory)> = None;
    for entry in index.tree() {
        let entry = entry?;
        if entry.kind() != Kind::Regular {
            continue;
        }
        let path = kiln_layer::path::to_system(entry.path());
        let above = path.parent().unwrap_or(std::path::Path::new(""));
        let known = parent.take().filter(|(path, _)| *path == above);
        let opened = known.map_or_else(|| Ok((above, root.open_parent(path)?.0)), Ok);
        let found = opened.and_then(|(_, directory)| {
            let (_, directory) = parent.insert((above, directory));
            directory.stat(path.file_name().unwrap_or_default())
        });
        match found {
            Ok(found) => {
                let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
                if !is_file || found.st_size.unsigned_abs() != entry.size() {
                    return Ok(false);
                }
            }
            Err(error) if is_absence(error.kind()) => return Ok(false),
            // An error of the disk says nothing about it.
            Err(_) => {}
        }
    }
    Ok(true)
}

fn has_size(path: &std::path::Path, size: i64) -> bool {
    fs_err::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size.unsigned_abs())
}

struct StagedSnapshot {
    id: String,
    link: String,
    directory: PathBuf,
}

/// Whether the layer's tar can be made again from its snapshot: kiln wrote it, or its frames are kept.
pub(crate) fn snapshot_is_source(index: &LayerIndex) -> bool {
    index.writer_version().is_some() || index.has_frames()
}

/// Shared by every chain if the layer stands alone, else bound to its chain.
pub(crate) fn snapshot_key(index: &LayerIndex, parent: ChainId) -> Digest {
    if index.stands_alone() { index.diff_id().0 } else { parent.with(index.diff_id()).0 }
}

/// 26 letters and digits, as overlay2's short links have.
fn short_link() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    Ok(random(26)?.into_iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Ownership;

    /// A collection came while it was unpacked.
    #[test]
    fn files_of_a_layer_that_is_gone_are_not_published() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let index = kiln_layer::walk(&[0; 1024][..], &kiln_layer::Options::default()).unwrap().index;
        let count = |table: &str| {
            let sql = format!("SELECT count(*) FROM {table}");
            store.database.one(&sql, [], |row| row.get::<_, i64>(0)).unwrap().unwrap()
        };
        let publish = || {
            let files = lease.fresh_directory("files").unwrap();
            store.publish_snapshot(&lease, ChainId::SCRATCH, &index, &files)
        };
        assert!(matches!(publish(), Err(Error::NoLayer(gone)) if gone == index.diff_id()));
        assert_eq!(["layers", "snapshots", "lease_roots"].map(count), [0; 3]);
        let path = lease.fresh_path("blob");
        fs_err::write(&path, [0; 1024]).unwrap();
        let blob = NewBlob { path, digest: index.diff_id().0, size: 1024, compression: "none" };
        let layer = kiln_layer::walk(&[0; 1024][..], &kiln_layer::Options::default()).unwrap().index;
        store
            .publish_layer(
                &lease,
                ChainId::SCRATCH,
                NewLayer { index: layer, blob: Some(blob), snapshot: None },
            )
            .unwrap();
        publish().unwrap();
        assert_eq!(["layers", "snapshots", "lease_roots"].map(count), [1; 3]);
    }

    #[test]
    fn a_blob_of_another_boot_is_no_source() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::Root).unwrap();
        let (layer, blob) = (DiffId(Digest::of(b"layer")), Digest::of(b"blob"));
        let marked = |boot: &str| {
            store
                .database
                .write(Durability::Relaxed, |t| {
                    let layer = layer.0.as_bytes();
                    execute(
                        t,
                        "INSERT OR REPLACE INTO layers VALUES (?1, 0, 0, 0, 1, 1, 0, NULL, 0, 0, 1)",
                        [layer],
                    )?;
                    let row = params![blob.as_bytes(), boot];
                    execute(t, "INSERT OR REPLACE INTO blobs VALUES (?1, 4, ?2, 0)", row)?;
                    let row = params![layer, blob.as_bytes()];
                    execute(t, "INSERT OR REPLACE INTO layer_blobs VALUES (?1, ?2, 'gzip')", row)
                })
                .unwrap();
            store.layer_blobs(layer).unwrap().len()
        };
        assert_eq!(marked(&store.boot), 1);
        assert_eq!(marked("another boot"), 0);
    }
}
