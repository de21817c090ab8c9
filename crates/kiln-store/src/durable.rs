//! What a name makes durable: of every layer its index and one source, and the image's documents.
//!
//! A snapshot that can be made again from a blob keeps its mark: after a power cut it is dropped and unpacked again.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use kiln_layer::Kind;
use kiln_oci::{DiffId, Digest};
use kiln_sys::publish::sync_files;
use kiln_sys::root::Root;
use rusqlite::params;
use rusqlite::types::Value;

use crate::Store;
use crate::database::digest;
use crate::error::{Error, Result};
use crate::layers::OVERLAY;
use crate::store::Marks;

/// More files than this are not synced one by one: the whole file system is.
const MOST_FILES: usize = 512;

/// What is not durable yet of what an image needs.
#[derive(Default)]
struct Unsynced {
    files: Vec<PathBuf>,
    /// Snapshots that are the only source of their layer.
    snapshots: Vec<(DiffId, PathBuf)>,
    /// How many files these have at most.
    entries: usize,
    marks: Marks,
}

impl Store {
    /// Makes the layers of an image and its documents durable. Gives the marks that may be cleared now.
    pub(crate) fn make_durable(&self, layers: &[DiffId], documents: &[Digest]) -> Result<Marks> {
        let mut unsynced = Unsynced::default();
        for layer in layers {
            self.unsynced_layer(*layer, &mut unsynced)?;
        }
        for document in documents {
            let boot = "SELECT boot FROM blobs WHERE digest = ?1 AND boot = ?2";
            let marked = self.database.one(boot, params![document.as_bytes(), self.boot], |_| Ok(()))?;
            if marked.is_some() {
                unsynced.files.push(self.blob_path(document));
                unsynced.marks.add("blobs", "digest", bytes(document));
            }
        }
        if unsynced.files.len() + unsynced.entries > MOST_FILES {
            // Taken before the sync, so that what another process writes meanwhile keeps its mark.
            let marks = self.marks()?;
            self.sync()?;
            return Ok(marks);
        }
        self.sync_each(&unsynced)?;
        Ok(unsynced.marks)
    }

    fn sync_each(&self, unsynced: &Unsynced) -> Result<()> {
        let mut files = Vec::with_capacity(unsynced.files.len() + unsynced.entries);
        for path in &unsynced.files {
            files.push(fs_err::File::open(path).map_err(Error::file("open", path))?.into_file());
        }
        for (layer, diff) in &unsynced.snapshots {
            if self.open_files(*layer, diff, &mut files).is_err() {
                // A file that its owner may not read, with a single UID.
                return self.sync();
            }
        }
        if files.is_empty() && unsynced.marks.is_empty() {
            return Ok(());
        }
        let root = fs_err::File::open(self.root()).map_err(Error::file("open", self.root()))?;
        sync_files(root.as_fd(), &files).map_err(Error::file("sync files of", self.root())).map(drop)
    }

    /// The regular files of a snapshot, opened.
    fn open_files(&self, layer: DiffId, diff: &Path, files: &mut Vec<File>) -> Result<()> {
        let root = Root::open(diff)?;
        for entry in self.index(layer)?.tree() {
            let entry = entry?;
            if entry.kind() == Kind::Regular && entry.size() > 0 {
                files.push(root.open_plain(kiln_layer::path::to_system(entry.path()))?);
            }
        }
        Ok(())
    }

    fn unsynced_layer(&self, layer: DiffId, unsynced: &mut Unsynced) -> Result<()> {
        let key = layer.0.as_bytes();
        let Some((boot, entries)) = self.database.one(
            "SELECT boot, entries FROM layers WHERE diff_id = ?1",
            [key],
            |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, u32>(1)? as usize)),
        )?
        else {
            return Ok(());
        };
        if boot.is_some() {
            unsynced.files.push(self.index_path(layer));
            unsynced.marks.add("layers", "diff_id", bytes(&layer.0));
        }
        let blobs = self.database.all(
            "SELECT b.digest, b.boot IS NULL FROM layer_blobs l JOIN blobs b ON b.digest = l.blob \
             WHERE l.diff_id = ?1 AND (b.boot IS NULL OR b.boot = ?2) ORDER BY b.size",
            params![key, self.boot],
            |row| Ok((digest(row, 0)?, row.get::<_, bool>(1)?)),
        )?;
        match blobs.first() {
            Some(_) if blobs.iter().any(|(_, durable)| *durable) => {}
            Some((smallest, _)) => {
                unsynced.files.push(self.blob_path(smallest));
                unsynced.marks.add("blobs", "digest", bytes(smallest));
            }
            None => self.unsynced_snapshot(layer, entries, unsynced)?,
        }
        Ok(())
    }

    fn unsynced_snapshot(&self, layer: DiffId, entries: usize, unsynced: &mut Unsynced) -> Result<()> {
        let snapshots = self.database.all(
            "SELECT id, boot FROM snapshots WHERE diff_id = ?1 AND ownership = ?2 \
             AND (boot IS NULL OR boot = ?3)",
            params![layer.0.as_bytes(), self.ownership().name(), self.boot],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)),
        )?;
        if snapshots.iter().any(|(_, boot)| boot.is_none()) {
            return Ok(());
        }
        if let Some((id, _)) = snapshots.into_iter().next() {
            unsynced.entries = unsynced.entries.saturating_add(entries);
            unsynced.snapshots.push((layer, self.root().join(OVERLAY).join(&id).join("diff")));
            unsynced.marks.add("snapshots", "id", Value::Text(id));
        }
        Ok(())
    }
}

fn bytes(digest: &Digest) -> Value {
    Value::Blob(digest.as_bytes().to_vec())
}
