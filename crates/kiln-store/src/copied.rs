//! Roots without an overlay: copied out of their layers, and compared with them afterwards.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kiln_layer::index::Entry;
use kiln_layer::{Capture, Changes, Copied, GoOn, LayerContents, Owners, RootView};
use kiln_oci::{ChainId, DiffId};
use kiln_sys::root::{Directory, FileError, Root};
use rustix::fs::FileType;

use crate::Store;
use crate::database::Durability;
use crate::error::{Error, Result};
use crate::layers::{NewBlob, NewLayer};
use crate::lease::Lease;
use crate::stack::StackContents;
use crate::waiting::Working;

impl Store {
    /// Why no unpacked layers can be kept here for overlays, if so: an overlay keeps no whiteouts of another one, and who
    /// may not administer the machine writes no opaque marks. Then layers live as blobs, and roots are copied out of
    /// those.
    pub fn snapshots_refused(&self) -> Option<&str> {
        let refused = self.snapshots_refused.get_or_init(|| match self.try_marks() {
            Ok(refused) => refused,
            Err(error) => Some(error.to_string()),
        });
        refused.as_deref()
    }

    /// Whether unpacked layers can be kept.
    pub(crate) fn keeps_snapshots(&self) -> bool {
        self.snapshots_refused().is_none()
    }

    /// In a transaction, as the beginning of a lease: for a collection a directory without a lease is nobody's.
    fn try_marks(&self) -> Result<Option<String>> {
        self.database.write(Durability::Relaxed, |_| self.try_marks_alone())
    }

    /// While nobody sweeps.
    fn try_marks_alone(&self) -> Result<Option<String>> {
        let tmp = Directory::open(&self.root().join("tmp"))?;
        let name = format!("marks-{}", crate::store::random_hex(8)?);
        tmp.make_directory(&name, 0o700)?;
        let directory = tmp.open_directory(&name)?;
        let attribute: &[u8] = match self.whiteouts() {
            kiln_layer::Whiteouts::OverlayTrusted => b"trusted.overlay.opaque",
            _ => b"user.overlay.opaque",
        };
        let refusal = |error: &FileError| {
            format!("the store's file system takes no marks of overlays: {}", error.source)
        };
        let written = directory
            .make_node("whiteout", FileType::CharacterDevice, 0, 0, 0)
            .and_then(|()| kiln_sys::xattr::set(&directory, OsStr::new(""), attribute, b"y"));
        drop(directory);
        tmp.remove_all(&name)?;
        Ok(written.err().map(|error| refusal(&error)))
    }

    /// Copies the root of a stack of layers into a fresh directory.
    pub(crate) fn copy_root(&self, lease: Working<'_>, layers: &[DiffId]) -> Result<(PathBuf, Copied)> {
        let view = self.root_view(layers)?;
        let path = lease.fresh_directory("root")?;
        let root = Root::open(&path)?;
        let copied = self.copying(lease, layers, |open| {
            let unpack = self.unpacking(&root);
            kiln_layer::copy(&view, view.root()?, b"", &unpack, open)?;
            kiln_layer::note_copied(&view, &unpack)
        })?;
        Ok((path, copied))
    }

    /// Copies a file or directory of a root, symbolic links followed inside it; `None` if it is not there. What the copy is
    /// called is no name of the root's.
    pub fn copy_part<'a>(
        &self,
        lease: impl Into<Working<'a>>,
        layers: &[DiffId],
        path: &[u8],
    ) -> Result<Option<PathBuf>> {
        let lease = lease.into();
        const NAME: &str = "part";
        let view = self.root_view(layers)?;
        let Some(node) = view.resolve(path)? else { return Ok(None) };
        let holder = lease.fresh_directory("part")?;
        let root = Root::open(&holder)?;
        self.copying(lease, layers, |open| {
            kiln_layer::copy(&view, node, NAME.as_bytes(), &self.unpacking(&root), open)
        })?;
        Ok(Some(holder.join(NAME)))
    }

    /// Copies on a thread of its own, whose umask is nobody else's.
    fn copying<T: Send>(
        &self,
        lease: Working<'_>,
        layers: &[DiffId],
        copy: impl FnOnce(kiln_layer::OpenLower<'_>) -> kiln_layer::Result<T> + Send,
    ) -> Result<T> {
        let contents = StackContents::new(layers.to_vec());
        let open = |layer: usize, entry: &Entry<'_>| contents.open_for_layers(self, lease, (layer, entry));
        let outcome = std::thread::scope(|scope| scope.spawn(|| copy(&open)).join());
        match outcome {
            Ok(outcome) => Ok(outcome?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The contents of a layer in a form in which each file is found at once: its snapshot, or its tar, which is
    /// decompressed once and kept.
    pub(crate) fn flat_contents(
        &self,
        lease: Working<'_>,
        layers: &[DiffId],
        position: usize,
    ) -> Result<LayerContents> {
        let layer = layers[position];
        let blobs = self.layer_blobs(layer)?;
        let has_files = self.index(layer)?.content_size() > 0;
        let is_compressed = blobs.iter().all(|blob| blob.compression != "none");
        if has_files
            && is_compressed
            && self.find_snapshot(ChainId::of(&layers[..position]), layer)?.is_none()
        {
            self.plain_tar(lease, layer)?;
        }
        self.layer_contents(layers, position)
    }

    /// What a step changed in a copied root, as a layer with a blob. The copy is removed.
    pub(crate) fn capture_copy(
        &self,
        lease: &Lease,
        (directory, copied): (&Path, &Copied),
        lower: &RootView,
        owners: Owners<'_>,
        clamp: Option<i64>,
        go_on: GoOn<'_>,
    ) -> Result<NewLayer> {
        let root = Root::open(directory)?;
        let path = lease.fresh_path("layer.tar");
        let file = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
        let mut file = io::BufWriter::with_capacity(1 << 20, file);
        let changes = Changes::Copy(copied);
        let capture = Capture { root: &root, lower, changes, owners, stubs: &[], clamp, go_on };
        let written = kiln_layer::capture(&capture, Some(&mut file))?;
        io::Write::flush(&mut file).map_err(Error::file("write", &path))?;
        drop(root);
        if let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) {
            Directory::open(parent)?.remove_all(name)?;
        }
        let digest = written.diff_id.0;
        let blob = NewBlob { path, digest, size: written.tar_size, compression: "none" };
        Ok(NewLayer { index: written.index, blob: Some(blob), snapshot: None })
    }
}

impl Lease {
    /// A fresh, empty directory in the lease's, of mode 755 whatever the caller's umask: steps of any user see some of
    /// them.
    pub fn fresh_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.fresh_path(name);
        std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(Error::file("make", &path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&path, mode).map_err(Error::file("set the mode of", &path))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Collection, Ownership};

    /// One process collects while others find out what the store's file system takes.
    #[test]
    fn collections_leave_what_tries_the_file_system() {
        let host = tempfile::tempdir().unwrap();
        let open = || Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let expect = open().snapshots_refused().map(str::to_owned);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    open().collect(&Collection::default()).unwrap();
                }
            });
            let found = (0..200).map(|_| open().snapshots_refused().map(str::to_owned));
            let other = found.into_iter().find(|found| *found != expect);
            done.store(true, Ordering::Relaxed);
            assert_eq!(other, None);
        });
    }
}
