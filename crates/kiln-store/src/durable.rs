//! What a name makes durable: of every layer its index and one source, the image's documents, and the layers as they are
//! under its manifest.
//!
//! A snapshot that can be made again from a blob keeps its mark: after a power cut it is dropped and unpacked again.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use kiln_layer::Kind;
use kiln_oci::{DiffId, Digest};
use kiln_sys::publish::sync_files;
use kiln_sys::root::Root;
use rusqlite::types::Value;
use rusqlite::{Connection, params};

use crate::Store;
use crate::database::{all, digest};
use crate::error::{Error, Result};
use crate::layers::OVERLAY;
use crate::store::Marks;

/// More files than this are not synced one by one: the whole file system is.
const MOST_FILES: usize = 512;

/// Whether index and one source of a layer, `l`, are durable; `?2` is the ownership mode.
pub(crate) const DURABLE_LAYER: &str = "l.boot IS NULL AND (l.snapshot_is_source AND EXISTS \
       (SELECT 1 FROM snapshots s WHERE s.diff_id = l.diff_id AND s.ownership = ?2 AND s.boot IS NULL) \
     OR EXISTS (SELECT 1 FROM layer_blobs x JOIN blobs b ON b.digest = x.blob \
                WHERE x.diff_id = l.diff_id AND b.boot IS NULL))";

/// What is not durable yet of what an image needs.
#[derive(Default)]
struct Unsynced {
    files: Vec<PathBuf>,
    /// Snapshots that are the only source of their layer.
    snapshots: Vec<(DiffId, PathBuf)>,
    /// How many files these have at most.
    entries: usize,
    blobs: BTreeSet<Digest>,
    marks: Marks,
}

impl Store {
    /// Makes the layers of an image durable, and the blobs that are its documents or that these name. Gives the marks that may be cleared now.
    pub(crate) fn make_durable(&self, layers: &[DiffId], documents: &[Digest]) -> Result<Marks> {
        let mut unsynced = Unsynced::default();
        for layer in layers {
            self.unsynced_layer(*layer, &mut unsynced)?;
        }
        for document in documents {
            let marked = "SELECT created FROM blobs WHERE digest = ?1 AND boot = ?2";
            let created =
                self.database.one(marked, params![document.as_bytes(), self.boot], |row| row.get(0))?;
            if let Some(created) = created {
                self.unsynced_blob(document, created, &mut unsynced);
            }
        }
        let (marks, synced) = if unsynced.files.len() + unsynced.entries > MOST_FILES {
            // Taken before the sync, so that what another process writes meanwhile keeps its mark.
            (self.marks()?, self.sync())
        } else {
            let synced = self.sync_each(&unsynced);
            (unsynced.marks, synced)
        };
        if synced.is_err() {
            self.distrust(&marks)?;
        }
        synced.map(|()| marks)
    }

    /// Whether index and one source of a layer are durable.
    pub(crate) fn is_durable(&self, t: &Connection, layer: DiffId) -> Result<bool> {
        let rows = all(
            t,
            &format!("SELECT 1 FROM layers l WHERE l.diff_id = ?1 AND {DURABLE_LAYER}"),
            params![layer.0.as_bytes(), self.owners()],
            |_| Ok(()),
        )?;
        Ok(!rows.is_empty())
    }

    /// Whether index and a snapshot of a layer are durable that files of other owners are in: an image that has a name may get
    /// another one whoever can use it.
    pub(crate) fn is_durable_for_others(&self, t: &Connection, layer: DiffId) -> Result<bool> {
        let rows = all(
            t,
            "SELECT 1 FROM layers l JOIN snapshots s USING (diff_id) WHERE l.diff_id = ?1 AND l.boot IS NULL \
             AND l.snapshot_is_source AND s.boot IS NULL AND s.ownership <> ?2",
            params![layer.0.as_bytes(), self.owners()],
            |_| Ok(()),
        )?;
        Ok(!rows.is_empty())
    }

    fn sync_each(&self, unsynced: &Unsynced) -> Result<()> {
        let mut files = Vec::with_capacity(unsynced.files.len() + unsynced.entries);
        match self.open_all(unsynced, &mut files) {
            Ok(()) => {}
            Err(error) if error.is_missing() => return Err(error),
            // A file that its owner may not read, with a single UID; more files than the process may open.
            Err(_) => return self.sync(),
        }
        if files.is_empty() && unsynced.marks.is_empty() {
            return Ok(());
        }
        let mut span = kiln_trace::span("sync files");
        span.count(files.len());
        let open = |path: &Path| fs_err::File::open(path).map_err(Error::file("open", path));
        let root = open(self.root())?;
        let parents = [
            open(&self.root().join("index"))?.into_file(),
            open(&self.root().join("blobs/sha256"))?.into_file(),
        ];
        // A snapshot is more than regular files in two directories.
        let parents = unsynced.snapshots.is_empty().then_some(&parents[..]);
        sync_files(root.as_fd(), &files, parents).map_err(Error::file("sync files of", self.root()))
    }

    fn open_all(&self, unsynced: &Unsynced, files: &mut Vec<File>) -> Result<()> {
        for path in &unsynced.files {
            files.push(fs_err::File::open(path).map_err(Error::file("open", path))?.into_file());
        }
        let snapshots = &unsynced.snapshots;
        snapshots.iter().try_for_each(|(layer, diff)| self.open_files(*layer, diff, files))
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
        let row = self.database.one(
            "SELECT boot, entries, created, snapshot_is_source FROM layers WHERE diff_id = ?1",
            [key],
            |row| {
                let entries = row.get::<_, u32>(1)? as usize;
                Ok((row.get::<_, Option<String>>(0)?, entries, row.get(2)?, row.get::<_, bool>(3)?))
            },
        )?;
        let Some((boot, entries, created, snapshot_is_source)) = row else { return Ok(()) };
        match boot {
            Some(boot) if boot != self.boot => return Err(Error::NoLayer(layer)),
            Some(_) => {
                unsynced.files.push(self.index_path(layer));
                unsynced.marks.add("layers", "diff_id", bytes(&layer.0), created);
            }
            None => {}
        }
        let blobs = self.database.all(
            "SELECT b.digest, b.boot IS NULL, b.created FROM layer_blobs l JOIN blobs b ON b.digest = l.blob \
             WHERE l.diff_id = ?1 AND (b.boot IS NULL OR b.boot = ?2) ORDER BY b.size",
            params![key, self.boot],
            |row| Ok((digest(row, 0)?, row.get::<_, bool>(1)?, row.get(2)?)),
        )?;
        match blobs.first() {
            Some(_) if blobs.iter().any(|(_, durable, _)| *durable) => {}
            Some((smallest, _, created)) => {
                self.unsynced_blob(smallest, *created, unsynced);
            }
            None if snapshot_is_source => self.unsynced_snapshot(layer, entries, unsynced)?,
            None => {}
        }
        Ok(())
    }

    fn unsynced_blob(&self, blob: &Digest, created: i64, unsynced: &mut Unsynced) {
        if unsynced.blobs.insert(*blob) {
            unsynced.files.push(self.blob_path(blob));
            unsynced.marks.add("blobs", "digest", bytes(blob), created);
        }
    }

    fn unsynced_snapshot(&self, layer: DiffId, entries: usize, unsynced: &mut Unsynced) -> Result<()> {
        let mut snapshots = self.database.all(
            "SELECT id, boot, created, ownership = ?2 FROM snapshots WHERE diff_id = ?1 \
             AND (boot IS NULL OR boot = ?3) ORDER BY ownership <> ?2",
            params![layer.0.as_bytes(), self.owners(), self.boot],
            |row| {
                let (id, boot) = (row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?);
                Ok((id, boot, row.get(2)?, row.get::<_, bool>(3)?))
            },
        )?;
        // Others' count where there is none of our own.
        if snapshots.first().is_some_and(|(.., own)| *own) {
            snapshots.retain(|(.., own)| *own);
        }
        if snapshots.iter().any(|(_, boot, ..)| boot.is_none()) {
            return Ok(());
        }
        if let Some((id, _, created, _)) = snapshots.into_iter().next() {
            unsynced.entries = unsynced.entries.saturating_add(entries);
            unsynced.snapshots.push((layer, self.root().join(OVERLAY).join(&id).join("diff")));
            unsynced.marks.add("snapshots", "id", Value::Text(id), created);
        }
        Ok(())
    }
}

fn bytes(digest: &Digest) -> Value {
    Value::Blob(digest.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use kiln_layer::{LayerWriter, Metadata, Outputs, RootView, Source};
    use kiln_oci::{ChainId, ImageConfig, Platform};

    use super::*;
    use crate::layers::{NewBlob, NewLayer};
    use crate::lease::Lease;
    use crate::store::Ownership;

    /// Publishes a layer of one file as a snapshot, with or without a blob, and an image of it.
    fn publish(store: &Store, lease: &Lease, text: &str, with_blob: bool) -> DiffId {
        let mut writer = LayerWriter::new();
        let metadata = Metadata { size: text.len() as u64, ..Metadata::new(Kind::Regular, 0o644) };
        writer.add(b"file", metadata, Source::Bytes(text.as_bytes().to_vec())).unwrap();
        let (path, directory) = (lease.fresh_path("blob"), lease.fresh_path("snapshot"));
        fs_err::create_dir(&directory).unwrap();
        let root = Root::open(&directory).unwrap();
        let mut tar = fs_err::File::create_new(&path).unwrap();
        let outputs = Outputs { tar: Some(&mut tar), unpack: Some(store.unpacking(&root)) };
        let written = writer.finish(&RootView::new(Vec::new()), outputs).unwrap();
        let (layer, size) = (written.diff_id, written.index.tar_size());
        let blob = with_blob.then_some(NewBlob { path, digest: layer.0, size, compression: "none" });
        let new = NewLayer { index: written.index, blob, snapshot: Some(directory) };
        store.publish_layer(lease, ChainId::SCRATCH, new).unwrap();
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = vec![layer];
        store.publish_image(&config.to_bytes(), &[format!("{text}:1").parse().unwrap()]).unwrap();
        layer
    }

    /// Whether the rows of a layer's index, blobs and snapshots are without a mark.
    fn durable(store: &Store, layer: DiffId) -> [Option<bool>; 3] {
        [
            "SELECT boot IS NULL FROM layers WHERE diff_id = ?1",
            "SELECT boot IS NULL FROM blobs WHERE digest = ?1",
            "SELECT boot IS NULL FROM snapshots WHERE diff_id = ?1",
        ]
        .map(|sql| store.database.one(sql, [layer.0.as_bytes()], |row| row.get(0)).unwrap())
    }

    #[test]
    fn one_source_of_each_layer_becomes_durable_and_a_snapshot_is_made_again() {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().join("store");
        let mut store = Store::open(&path, Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let with_blob = publish(&store, &lease, "blob", true);
        assert_eq!(durable(&store, with_blob), [Some(true), Some(true), Some(false)]);
        let alone = publish(&store, &lease, "alone", false);
        assert_eq!(durable(&store, alone), [Some(true), None, Some(true)]);

        // After a power cut the one is dropped and made again, the other is trusted.
        let before = store.find_snapshot(ChainId::SCRATCH, with_blob).unwrap().unwrap();
        let kept = store.find_snapshot(ChainId::SCRATCH, alone).unwrap().unwrap();
        store.boot = "another boot".to_owned();
        assert_eq!(store.find_snapshot(ChainId::SCRATCH, with_blob).unwrap(), None);
        assert_eq!(store.find_snapshot(ChainId::SCRATCH, alone).unwrap(), Some(kept));
        fs_err::write(before.diff.join("file"), "torn").unwrap();
        let again = store.snapshots(&lease, &[with_blob]).unwrap().remove(0);
        assert_eq!(fs_err::read_to_string(again.diff.join("file")).unwrap(), "blob");
        assert!(store.is_usable(&store.database.lock(), with_blob).unwrap());
    }

    /// A layer whose file is gone is not named, and is not trusted again.
    #[test]
    fn what_is_not_there_is_not_synced() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let layer = publish(&store, &lease, "one", false);
        let marked = "UPDATE snapshots SET boot = ?1";
        store.database.lock().execute(marked, [&store.boot]).unwrap();
        let snapshot = store.find_snapshot(ChainId::SCRATCH, layer).unwrap().unwrap();
        fs_err::remove_file(snapshot.diff.join("file")).unwrap();
        assert!(store.make_durable(&[layer], &[]).is_err_and(|error| error.is_missing()));
        assert!(!store.is_usable(&store.database.lock(), layer).unwrap());
    }

    #[test]
    fn a_mark_is_cleared_of_the_file_that_was_synced_and_no_other() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let layer = publish(&store, &lease, "one", true);
        let mark = |created: i64| {
            let sql = "UPDATE layers SET boot = ?1, created = ?2";
            store.database.lock().execute(sql, params![store.boot, created]).unwrap();
        };
        let clear = |marks: &Marks| {
            let clear = |t: &rusqlite::Transaction<'_>| crate::store::clear_marks(t, marks, &store.boot);
            store.database.write(crate::database::Durability::Relaxed, clear).unwrap();
            store.is_durable(&store.database.lock(), layer).unwrap()
        };
        mark(1);
        let marks = store.marks().unwrap();
        mark(2);
        assert!(!clear(&marks), "the layer was made anew meanwhile");
        assert!(clear(&store.marks().unwrap()));
        mark(3);
        store.distrust(&store.marks().unwrap()).unwrap();
        assert!(!store.is_usable(&store.database.lock(), layer).unwrap(), "a failed sync is not forgotten");
    }

    #[test]
    fn what_another_boot_wrote_and_nobody_synced_gets_no_name() {
        let host = tempfile::tempdir().unwrap();
        let mut store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let layer = publish(&store, &lease, "one", true);
        let mark = "UPDATE layers SET boot = 'an earlier boot'";
        store.database.lock().execute(mark, []).unwrap();
        store.boot = "this boot".to_owned();
        store.indexes.get_mut().unwrap().clear();
        assert!(matches!(store.index(layer), Err(Error::NoLayer(_))), "a torn index is not read");
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = vec![layer];
        let named = store.publish_image(&config.to_bytes(), &["two:1".parse().unwrap()]);
        assert!(matches!(named, Err(Error::NoLayer(missing)) if missing == layer), "{named:?}");
    }
}
