//! Snapshots: unpacked layers, and roots made of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kiln_layer::{Copied, Options, Stub, Unpack, Whiteouts};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_sys::overlay::{MOST_LOWERS, Overlay, Upper};
use kiln_sys::root::Root;
use rusqlite::params;

use crate::Store;
use crate::error::{Error, Result};
use crate::layers::{OVERLAY, snapshot_key};
use crate::lease::Lease;
use crate::mount_points::GivenFiles;
use crate::roots::Lowers;
use crate::stack::StackContents;
use crate::store::Ownership;
use crate::waiting::Working;

/// How a root is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootWay {
    /// The layers are stacked, and changes go elsewhere.
    Overlay,
    /// The layers' files are copied: for where no overlay can be mounted.
    Copy,
}

/// What a prepared root is.
#[derive(Debug)]
pub enum RootForm {
    /// The layers, the nearest first, and where changes go.
    Overlay {
        /// To be mounted.
        overlay: Overlay,
        /// The directory that takes what is changed.
        upper: PathBuf,
    },
    /// A directory with everything in it, that is changed itself.
    Copy {
        /// The directory.
        directory: PathBuf,
        /// How it is before it is changed.
        copied: Copied,
    },
}

/// A root that a process can be given. It goes with its lease.
#[derive(Debug)]
pub struct PreparedRoot {
    /// What it is.
    pub form: RootForm,
    /// What it was made of, from the bottom to the top.
    pub layers: Vec<DiffId>,
    /// What is in it for mounts alone.
    pub(crate) stubs: Vec<Stub>,
}

impl PreparedRoot {
    /// How it was put together.
    pub fn way(&self) -> RootWay {
        match self.form {
            RootForm::Overlay { .. } => RootWay::Overlay,
            RootForm::Copy { .. } => RootWay::Copy,
        }
    }

    /// The directory in which changes are found.
    pub fn changed(&self) -> &Path {
        match &self.form {
            RootForm::Overlay { upper, .. } => upper,
            RootForm::Copy { directory, .. } => directory,
        }
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

    /// As [`Self::find_snapshot`], for a layer that is leased: asked for once only.
    pub(crate) fn leased_snapshot(
        &self,
        lease: &Lease,
        parent: ChainId,
        layer: DiffId,
    ) -> Result<Option<SnapshotPaths>> {
        let chain = parent.with(layer);
        let known = || lease.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(snapshot) = known().get(&chain) {
            return Ok(Some(snapshot.clone()));
        }
        let found = self.find_snapshot(parent, layer)?;
        if let Some(snapshot) = &found {
            known().insert(chain, snapshot.clone());
        }
        Ok(found)
    }

    fn snapshot_by_key(&self, key: &Digest) -> Result<Option<SnapshotPaths>> {
        let row = self.database.one(
            "SELECT id FROM snapshots WHERE key = ?1 AND ownership = ?2 AND (boot IS NULL OR boot = ?3)",
            params![key.as_bytes(), self.owners(), self.boot],
            |row| row.get::<_, String>(0),
        )?;
        Ok(row.map(|id| {
            let directory = self.root().join(OVERLAY).join(id);
            SnapshotPaths { diff: directory.join("diff"), directory }
        }))
    }

    /// The snapshots of a stack of layers, from the bottom to the top; missing ones are unpacked. Two processes
    /// that need the same one do not both unpack it.
    pub fn snapshots<'a>(
        &self,
        lease: impl Into<Working<'a>>,
        layers: &[DiffId],
    ) -> Result<Vec<SnapshotPaths>> {
        let lease = lease.into();
        (0..layers.len()).map(|position| self.snapshot(lease, layers, position)).collect()
    }

    /// The snapshot of the layer at `position` of a stack; if it is missing, it is unpacked.
    pub(crate) fn snapshot(
        &self,
        lease: Working<'_>,
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
        lease: Working<'_>,
        below: &[DiffId],
        parent: ChainId,
        layer: DiffId,
    ) -> Result<SnapshotPaths> {
        let _span = kiln_trace::span("make snapshot").of(|| layer.to_string());
        let key = snapshot_key(&*self.index(layer)?, parent);
        let _claim = self.claim_files(&key, lease)?;
        if let Some(snapshot) = self.snapshot_by_key(&key)? {
            return Ok(snapshot);
        }
        let blob = self.layer_blobs(layer)?.into_iter().next().ok_or(Error::NoLayer(layer))?;
        let path = self.blob_path(&blob.digest);
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        let directory = lease.fresh_path("unpack");
        fs_err::create_dir(&directory).map_err(Error::file("make", &directory))?;
        let root = Root::open(&directory)?;
        let options = Options { unpack: Some(self.unpacking(&root)), ..Options::default() };
        let walk = kiln_layer::walk(lease.watched(file), &options)?;
        if walk.diff_id != layer {
            let what = format!("layer {layer} in the store");
            return Err(Error::Mismatch { what, expected: layer.0, found: walk.diff_id.0 });
        }
        if !walk.index.stands_alone() {
            self.complete_snapshot(lease, below, &walk.index, &root)?;
        }
        self.publish_snapshot(&lease, parent, &walk.index, &directory)?;
        self.snapshot_by_key(&key)?.ok_or(Error::NoLayer(layer))
    }

    /// Gives a snapshot what its layer only implies: metadata of directories, files of lower layers that it links to.
    pub(crate) fn complete_snapshot(
        &self,
        lease: Working<'_>,
        below: &[DiffId],
        index: &kiln_layer::LayerIndex,
        root: &Root,
    ) -> Result<()> {
        let view = self.root_view(below)?;
        let contents = StackContents::new(below.to_vec());
        let open = |layer: usize, entry: &kiln_layer::index::Entry<'_>| {
            contents.open_for_layers(self, lease, (layer, entry))
        };
        Ok(kiln_layer::complete(index, &view, &self.unpacking(root), &open)?)
    }

    /// Refuses a stack that overlayfs could not mount with `more` layers on it. One that comes twice counts once, and
    /// what an opaque root hides not at all.
    pub fn check_stackable(&self, layers: &[DiffId], more: usize) -> Result<()> {
        if layers.len() + more <= MOST_LOWERS {
            return Ok(());
        }
        let hidden = self.hidden_below(layers)?;
        let mut parent = ChainId::of(&layers[..hidden]);
        let mut stacked = HashSet::new();
        for layer in &layers[hidden..] {
            stacked.insert(snapshot_key(&*self.index(*layer)?, parent));
            parent = parent.with(*layer);
        }
        match stacked.len() + more {
            count if count > MOST_LOWERS => {
                Err(Error::TooManyLayers { layers: layers.len() + more, most: MOST_LOWERS })
            }
            _ => Ok(()),
        }
    }

    /// Prepares a root of a stack of layers, with a fresh place for changes.
    pub fn prepare_root<'a>(
        &self,
        lease: impl Into<Working<'a>>,
        layers: &[DiffId],
        way: RootWay,
        given: GivenFiles,
    ) -> Result<PreparedRoot> {
        let lease = lease.into();
        let mut span = kiln_trace::span("prepare root");
        span.count(layers.len());
        let (form, stubs) = match way {
            RootWay::Overlay => self.stack_root(lease, layers, given)?,
            RootWay::Copy => {
                let (directory, copied) = self.copy_root(lease, layers)?;
                (RootForm::Copy { directory, copied }, Vec::new())
            }
        };
        Ok(PreparedRoot { form, layers: layers.to_vec(), stubs })
    }

    fn stack_root(
        &self,
        lease: Working<'_>,
        layers: &[DiffId],
        given: GivenFiles,
    ) -> Result<(RootForm, Vec<Stub>)> {
        self.check_stackable(layers, 0)?;
        let places = self.places(lease, layers)?;
        // For overlayfs the root of a lower is never opaque: what such a layer hides is left out.
        let hidden = self.hidden_below(layers)?;
        let mut lowers = Lowers::of(places.into_iter().skip(hidden).rev());
        let mut stubs = Vec::new();
        if lowers.directories.len() < MOST_LOWERS {
            lowers.directories.push(self.mount_points(given)?);
            stubs = given.stubs();
        }
        let upper = lease.fresh_directory("upper")?;
        // The upper's owner and mode are those of `/`.
        let view = self.root_view(layers)?;
        self.dress(&upper, &view.metadata(&view.root()?)?)?;
        let work = lease.fresh_directory("work")?;
        let userxattr = self.ownership() != Ownership::Root;
        let overlay = Overlay {
            tars: lowers.tars,
            lowers: lowers.directories,
            upper: Some(Upper { upper: upper.clone(), work }),
            userxattr,
            volatile: true,
        };
        Ok((RootForm::Overlay { overlay, upper }, stubs))
    }

    /// Gives a directory the owner and mode that a layer's has.
    pub fn dress(&self, directory: &Path, metadata: &kiln_layer::Metadata) -> Result<()> {
        let (owner, mode) = match self.ownership() {
            Ownership::Root | Ownership::SubIds => (Some((metadata.uid, metadata.gid)), metadata.mode),
            Ownership::SingleId => (None, metadata.mode & 0o1777 | 0o700),
        };
        Ok(Root::open(directory)?.directory().set_self(Some(mode), owner, None)?)
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
