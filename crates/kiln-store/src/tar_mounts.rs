//! Layers that are mounted where their tar is, instead of being unpacked.
//!
//! An EROFS image that points into the tar takes milliseconds to make, and nothing of the layer is written a second time.
//! The images are a cache: they are kept by boot, since nobody syncs them, and go with their layer.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kiln_layer::{Compression, LayerIndex, Options, Size};
use kiln_oci::{ChainId, DiffId, HashingWriter};
use kiln_sys::overlay::TarMount;
use kiln_sys::publish::unnamed_file;

use crate::Store;
use crate::database::Durability;
use crate::error::{Error, Result};
use crate::layers::NewBlob;
use crate::lease::Lease;
use crate::snapshots::SnapshotPaths;
use crate::store::Ownership;
use crate::waiting::Working;

/// A foreign layer of no more bytes and entries than this is unpacked all the same: that takes milliseconds once, and then
/// all processes share the pages of its programs, while each mount has its own.
pub(crate) const SMALL: Size = Size { bytes: 16 << 20, entries: 1024 };

/// Where the images are, by boot.
pub(crate) const MOUNTS: &str = "mounts";

/// Where a layer of a root is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Unpacked.
    Snapshot(SnapshotPaths),
    /// In its tar, to be mounted.
    Tar(TarMount),
}

impl Place {
    /// Where its files are, once what has to be mounted is.
    pub(crate) fn files(&self) -> &Path {
        match self {
            Self::Snapshot(snapshot) => &snapshot.diff,
            Self::Tar(tar) => &tar.at,
        }
    }

    /// What tells it from other layers.
    pub(crate) fn identity(&self) -> &Path {
        match self {
            Self::Snapshot(snapshot) => &snapshot.diff,
            Self::Tar(tar) => &tar.tar,
        }
    }
}

impl Store {
    /// Whether this process can mount the tars of layers: as root, on Linux 6.12 or later, with EROFS.
    pub fn mounts_tars(&self) -> bool {
        *self
            .mounts_tars
            .get_or_init(|| self.ownership() == Ownership::Root && can_mount(self.root()).unwrap_or(false))
    }

    /// From now on layers are always unpacked.
    pub fn never_mount_tars(&self) {
        let _ = self.mounts_tars.set(false);
    }

    /// The layers of a stack, from the bottom to the top, where they can be used: unpacked, or in their tars. What is
    /// neither is made ready.
    pub(crate) fn places(&self, lease: Working<'_>, layers: &[DiffId]) -> Result<Vec<Place>> {
        let mut parent = ChainId::SCRATCH;
        let mut places = Vec::with_capacity(layers.len());
        for (position, layer) in layers.iter().enumerate() {
            let place = match self.leased_snapshot(&lease, parent, *layer)? {
                Some(snapshot) => Place::Snapshot(snapshot),
                None => match self.tar_mount(lease, *layer)? {
                    Some(tar) => Place::Tar(tar),
                    None => {
                        Place::Snapshot(self.make_snapshot(lease, &layers[..position], parent, *layer)?)
                    }
                },
            };
            places.push(place);
            parent = parent.with(*layer);
        }
        Ok(places)
    }

    /// How to mount a layer, if that can be done.
    fn tar_mount(&self, lease: Working<'_>, layer: DiffId) -> Result<Option<TarMount>> {
        if !self.mounts_tars() {
            return Ok(None);
        }
        let mounted = || lease.mounted.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = mounted().get(&layer) {
            return Ok(Some(known.clone()));
        }
        let index = self.index(layer)?;
        let is_foreign = index.writer_version().is_none();
        let is_small = index.content_size() <= SMALL.bytes && index.entry_count() <= SMALL.entries;
        if is_foreign && is_small {
            return Ok(None);
        }
        let Some(metadata) = self.metadata_image(&lease, &index)? else { return Ok(None) };
        let Some(tar) = self.plain_tar(lease, layer)? else { return Ok(None) };
        let at = lease.fresh_path("layer");
        fs_err::create_dir(&at).map_err(Error::file("make", &at))?;
        let tar = TarMount { metadata, tar, at };
        Ok(Some(mounted().entry(layer).or_insert(tar).clone()))
    }

    /// The name of the directory of images that this kiln made in this boot.
    pub(crate) fn mounts_of_boot(&self) -> String {
        format!("{}-{}", self.boot, kiln_layer::erofs::VERSION)
    }

    /// Whether a directory of images may be in use. Another version of kiln may be at work in this boot, too; who uses an
    /// image has a lease.
    pub(crate) fn keeps_mounts(&self, name: &str, anybody_works: bool) -> bool {
        name == self.mounts_of_boot() || anybody_works && name.starts_with(&self.boot)
    }

    /// The EROFS image of a layer, made if it is not there; `None` if the layer must be unpacked.
    fn metadata_image(&self, lease: &Lease, index: &LayerIndex) -> Result<Option<PathBuf>> {
        let directory = self.root().join(MOUNTS).join(self.mounts_of_boot());
        let path = directory.join(index.diff_id().0.hex());
        if path.exists() {
            return Ok(Some(path));
        }
        let _span = kiln_trace::span("write EROFS image");
        let fresh = lease.fresh_path("erofs");
        let mut file = fs_err::File::create_new(&fresh).map_err(Error::file("make", &fresh))?;
        match write_image(index, file.file_mut()) {
            Err(kiln_layer::Error::Unmountable(_)) => return Ok(None),
            written => written?,
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(Error::file("make", &directory))?;
        fs_err::rename(&fresh, &path).map_err(Error::file("publish", &path))?;
        Ok(Some(path))
    }

    /// The uncompressed tar of a layer that has a blob; a compressed one is decompressed, and kept beside it.
    pub(crate) fn plain_tar(&self, lease: Working<'_>, layer: DiffId) -> Result<Option<PathBuf>> {
        let Some(blob) = self.layer_blobs(layer)?.into_iter().next() else { return Ok(None) };
        if blob.compression == "none" {
            return Ok(Some(self.blob_path(&blob.digest)));
        }
        // Two processes that need it do not both decompress it.
        let _claim = self.claim_tar(layer, lease)?;
        let plain = self.blob_path(&layer.0);
        if self.layer_blobs(layer)?.iter().any(|blob| blob.compression == "none") {
            return Ok(Some(plain));
        }
        let new = self.decompress(lease, layer, &self.blob_path(&blob.digest))?;
        self.database.write(Durability::Relaxed, |t| self.insert_layer_blob(t, layer, &new))?;
        Ok(Some(plain))
    }

    fn decompress(&self, lease: Working<'_>, layer: DiffId, blob: &Path) -> Result<NewBlob> {
        let _span = kiln_trace::span("decompress layer").of(|| layer.to_string());
        let path = lease.fresh_path("layer.tar");
        let output = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
        let input = fs_err::File::open(blob).map_err(Error::file("open", blob))?;
        let mut input = io::BufReader::with_capacity(1 << 20, lease.watched(input.into_file()));
        let first = io::BufRead::fill_buf(&mut input).map_err(Error::file("read", blob))?;
        let mut input = Compression::detect(first).decoder(input)?;
        let mut output = HashingWriter::new(output.into_file());
        io::copy(&mut input, &mut output).map_err(Error::file("decompress", blob))?;
        let (digest, size) = output.finish();
        if digest != layer.0 {
            let what = format!("layer {layer} in the store");
            return Err(Error::Mismatch { what, expected: layer.0, found: digest });
        }
        Ok(NewBlob { path, digest, size, compression: "none" })
    }
}

fn write_image(index: &LayerIndex, file: &mut File) -> kiln_layer::Result<()> {
    let mut output = io::BufWriter::with_capacity(1 << 18, file);
    kiln_layer::erofs::write(index, 0, &mut output)?;
    output.flush().map_err(kiln_layer::Error::Write)
}

/// Tries it with an empty layer on the store's own file system. Nothing is attached anywhere. Over a file system that is
/// stacked on another one, the image could be mounted, but no overlay over it (`FILESYSTEM_MAX_STACK_DEPTH`).
fn can_mount(root: &Path) -> io::Result<bool> {
    const OVERLAYFS: i64 = 0x794c_7630;
    const ECRYPTFS: i64 = 0xf15f;
    let _span = kiln_trace::span("try EROFS");
    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    if [OVERLAYFS, ECRYPTFS].contains(&(rustix::fs::statfs(root)?.f_type as i64)) {
        return Ok(false);
    }
    let tar = [0; 1024];
    let walk = kiln_layer::walk(&tar[..], &Options::default()).map_err(io::Error::other)?;
    let root = fs_err::File::open(root)?;
    let (mut metadata, mut data) = (unnamed_file(root.as_fd())?, unnamed_file(root.as_fd())?);
    data.write_all(&tar)?;
    write_image(&walk.index, &mut metadata).map_err(io::Error::other)?;
    Ok(kiln_sys::erofs::mount(metadata.as_fd(), data.as_fd()).is_ok())
}
