//! Snapshots: unpacked layers, and roots made of them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_layer::{Options, Unpack, Whiteouts};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_sys::overlay::{MOST_LOWERS, Overlay, Upper};
use kiln_sys::root::Root;
use rusqlite::params;

use crate::Store;
use crate::error::{Error, Result};
use crate::layers::{NewLayer, OVERLAY, snapshot_key};
use crate::lease::Lease;
use crate::roots::Lowers;
use crate::store::Ownership;

/// A root that a process can be given. It goes with its lease.
#[derive(Clone, Debug)]
pub struct PreparedRoot {
    /// The layers, the nearest first, and where changes go.
    pub overlay: Overlay,
    /// What it was made of, from the bottom to the top.
    pub layers: Vec<DiffId>,
}

impl PreparedRoot {
    /// The directory that takes what is changed.
    pub fn upper(&self) -> Option<&Path> {
        self.overlay.upper.as_ref().map(|upper| upper.upper.as_path())
    }
}

/// Paths of an unpacked layer, as `inspect` shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPaths {
    /// The layer's own directory under overlay2/.
    pub directory: PathBuf,
    /// Its files.
    pub diff: PathBuf,
}

impl Store {
    /// How whiteouts are written in snapshots here.
    pub(crate) fn whiteouts(&self) -> Whiteouts {
        match self.ownership() {
            Ownership::Root => Whiteouts::OverlayTrusted,
            Ownership::SubIds | Ownership::SingleId => Whiteouts::OverlayUser,
        }
    }

    /// How layers are unpacked into `root`, a snapshot.
    pub fn unpacking<'a>(&self, root: &'a Root) -> Unpack<'a> {
        let ownership = match self.ownership() {
            Ownership::Root | Ownership::SubIds => kiln_layer::Ownership::Keep,
            Ownership::SingleId => kiln_layer::Ownership::Ignore,
        };
        Unpack { root, whiteouts: self.whiteouts(), ownership, clamp: None }
    }

    /// The snapshot of a layer on `parent`, if it is there.
    pub fn find_snapshot(&self, parent: ChainId, layer: DiffId) -> Result<Option<SnapshotPaths>> {
        let key = snapshot_key(&*self.index(layer)?, parent);
        self.snapshot_by_key(&key)
    }

    fn snapshot_by_key(&self, key: &Digest) -> Result<Option<SnapshotPaths>> {
        let row = self.database.one(
            "SELECT id FROM snapshots WHERE key = ?1 AND ownership = ?2 AND (boot IS NULL OR boot = ?3)",
            params![key.as_bytes(), self.ownership().name(), self.boot],
            |row| row.get::<_, String>(0),
        )?;
        Ok(row.map(|id| {
            let directory = self.root().join(OVERLAY).join(id);
            SnapshotPaths { diff: directory.join("diff"), directory }
        }))
    }

    /// The snapshots of a stack of layers, from the bottom to the top; missing ones are unpacked. Two processes
    /// that need the same one do not both unpack it.
    pub fn snapshots(&self, lease: &Lease, layers: &[DiffId]) -> Result<Vec<SnapshotPaths>> {
        (0..layers.len()).map(|position| self.snapshot(lease, layers, position)).collect()
    }

    /// The snapshot of the layer at `position` of a stack; if it is missing, it is unpacked.
    pub(crate) fn snapshot(
        &self,
        lease: &Lease,
        layers: &[DiffId],
        position: usize,
    ) -> Result<SnapshotPaths> {
        let (below, layer) = (&layers[..position], layers[position]);
        let parent = ChainId::of(below);
        match self.find_snapshot(parent, layer)? {
            Some(snapshot) => Ok(snapshot),
            None => self.make_snapshot(lease, below, parent, layer),
        }
    }

    pub(crate) fn make_snapshot(
        &self,
        lease: &Lease,
        below: &[DiffId],
        parent: ChainId,
        layer: DiffId,
    ) -> Result<SnapshotPaths> {
        let key = snapshot_key(&*self.index(layer)?, parent);
        let _claim = self.claim_files(&key)?;
        if let Some(snapshot) = self.snapshot_by_key(&key)? {
            return Ok(snapshot);
        }
        let blob = self.layer_blobs(layer)?.into_iter().next().ok_or(Error::NoLayer(layer))?;
        let path = self.blob_path(&blob.digest);
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        let directory = lease.fresh_path("unpack");
        fs_err::create_dir(&directory).map_err(Error::file("make", &directory))?;
        let root = Root::open(&directory)?;
        let walk =
            kiln_layer::walk(file, &Options { unpack: Some(self.unpacking(&root)), ..Options::default() })?;
        if walk.diff_id != layer {
            let what = format!("layer {layer} in the store");
            return Err(Error::Mismatch { what, expected: layer.0, found: walk.diff_id.0 });
        }
        if !walk.index.stands_alone() {
            self.complete_snapshot(below, &walk.index, &root)?;
        }
        let new = NewLayer { index: walk.index, blob: None, snapshot: Some(directory) };
        self.publish_layer(lease, parent, new)?;
        self.snapshot_by_key(&key)?.ok_or(Error::NoLayer(layer))
    }

    /// Gives a snapshot what its layer only implies: metadata of directories, files of lower layers that it links to.
    pub(crate) fn complete_snapshot(
        &self,
        below: &[DiffId],
        index: &kiln_layer::LayerIndex,
        root: &Root,
    ) -> Result<()> {
        let view = self.root_view(below)?;
        let contents = self.contents(below)?;
        let open = |layer: usize, entry: &kiln_layer::index::Entry<'_>| contents[layer].open(entry);
        Ok(kiln_layer::complete(index, &view, &self.unpacking(root), &open)?)
    }

    /// Prepares a root over a stack of layers, with a fresh place for changes.
    pub fn prepare_root(&self, lease: &Lease, layers: &[DiffId]) -> Result<PreparedRoot> {
        if layers.len() >= MOST_LOWERS {
            return Err(Error::TooManyLayers { layers: layers.len(), most: MOST_LOWERS - 1 });
        }
        let mut lowers = Lowers::of(self.places(lease, layers)?.into_iter().rev());
        let make = |name: &str| {
            let path = lease.fresh_path(name);
            fs_err::create_dir(&path).map_err(Error::file("make", &path))?;
            // The upper's mode is that of `/`, whatever the caller's umask.
            let mode = std::fs::Permissions::from_mode(0o755);
            fs_err::set_permissions(&path, mode).map_err(Error::file("set the mode of", &path))?;
            Ok::<_, Error>(path)
        };
        if lowers.directories.is_empty() {
            lowers.directories.push(make("empty")?);
        }
        let upper = Upper { upper: make("upper")?, work: make("work")? };
        let userxattr = self.ownership() != Ownership::Root;
        let overlay = Overlay {
            tars: lowers.tars,
            lowers: lowers.directories,
            upper: Some(upper),
            userxattr,
            volatile: true,
        };
        Ok(PreparedRoot { overlay, layers: layers.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar_mounts::Place;

    #[test]
    fn a_layer_that_comes_twice_is_mounted_once() {
        let place = |name: &str| {
            Place::Snapshot(SnapshotPaths { directory: PathBuf::from("d"), diff: PathBuf::from(name) })
        };
        let lowers = Lowers::of(["c", "a", "b", "a", "base"].map(place).into_iter());
        assert_eq!(lowers.directories, ["c", "a", "b", "base"].map(PathBuf::from));
    }
}
