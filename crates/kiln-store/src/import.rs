//! `import`: a root file system's tar becomes an image of one layer.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use kiln_layer::{Compression, Limits, Options, Walk};
use kiln_oci::{ChainId, HashingWriter, History, ImageConfig, ImageId, Reference};
use kiln_sys::root::Root;

use crate::Store;
use crate::archive_in::Unpacking;
use crate::error::{Error, Result};
use crate::layers::{NewBlob, NewLayer};
use crate::lease::Lease;
use crate::store::Ownership;
use crate::tar_mounts::SMALL;

impl Store {
    /// Imports a tar, in any compression, as the one layer of an image. `config` has the platform and what
    /// `--change` made of it; layers, history and time are filled in here. After a failure the lease keeps nothing,
    /// and the layer does not stay.
    pub fn import(
        &self,
        lease: &Lease,
        input: File,
        config: ImageConfig,
        history: History,
        name: Option<&Reference>,
    ) -> Result<ImageId> {
        self.undo_failed(lease, self.import_layer(lease, input, config, history, name))
    }

    fn import_layer(
        &self,
        lease: &Lease,
        mut input: File,
        mut config: ImageConfig,
        history: History,
        name: Option<&Reference>,
    ) -> Result<ImageId> {
        let layer = match self.import_in_place(lease, &input)? {
            Some(layer) => layer,
            None => {
                let path = lease.fresh_path("blob");
                let mut copy = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
                if is_file(&input)? {
                    io::copy(&mut input, &mut copy).map_err(Error::file("copy into", &path))?;
                    drop(copy);
                    let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
                    self.walk_layer(lease, &[], file, &path, Unpacking::IfNeeded)?
                } else {
                    self.walk_stream(lease, Keeping::new(input, copy), &path)?
                }
            }
        };
        // A command that failed on the other side of a pipe, more often than not.
        if layer.index.tar_size() == 0 {
            return Err(Error::Empty { expected: "a tar archive" });
        }
        // What is damaged of what is there does not stay for what has just come.
        self.drop_what_is_gone(layer.index.diff_id())?;
        let diff_id = self.publish_layer(lease, ChainId::SCRATCH, layer)?;
        config.rootfs.diff_ids = vec![diff_id];
        config.created.clone_from(&history.created);
        config.history = vec![history];
        let bytes = config.to_bytes();
        let names: Vec<Reference> = name.cloned().into_iter().collect();
        self.publish_shown(lease, &bytes, None, &names)
    }

    /// What may have no end is walked while it comes, so that it goes on no longer than it is a layer.
    fn walk_stream(&self, lease: &Lease, mut stream: Keeping, path: &Path) -> Result<NewLayer> {
        let walked = self.walk_layer(lease, &[], &mut stream, path, Unpacking::IfNeeded);
        match stream.failed {
            Some(failed) => Err(Error::file("copy into", path)(failed)),
            None => walked,
        }
    }

    /// A plain tar in a regular file is walked where it is and not stored a second time: its frames are kept in the
    /// index, so that snapshot and index give it back byte for byte. Where that cannot be done, or where the tar itself is
    /// mounted instead of being unpacked, what was found of it goes with a copy. `None` if it is to be walked elsewhere.
    fn import_in_place(&self, lease: &Lease, input: &File) -> Result<Option<NewLayer>> {
        let read = |source| Error::File { action: "read", path: "the archive".into(), source };
        let before = input.metadata().map_err(read)?;
        let mut first = [0; 512];
        if self.ownership() != Ownership::Root
            || !self.keeps_snapshots()
            || !before.is_file()
            || (&*input).stream_position().map_err(read)? != 0
        {
            return Ok(None);
        }
        let length = input.read_at(&mut first, 0).map_err(read)?;
        if Compression::detect(&first[..length]) != Compression::Plain {
            return Ok(None);
        }
        // Where tars are mounted, a small layer is unpacked all the same: how many entries it has, the walk shows.
        let largest_unpacked = self.mounts_tars().then_some(SMALL);
        if largest_unpacked.is_some_and(|largest| before.len() > largest.bytes) {
            return Ok(None);
        }
        let directory = lease.fresh_path("unpack");
        fs_err::create_dir(&directory).map_err(Error::file("make", &directory))?;
        let root = Root::open(&directory)?;
        let reader = input.try_clone().map_err(read)?;
        let unpack = Some(self.unpacking(&root));
        let walk = kiln_layer::walk(reader, &Options { unpack, largest_unpacked, ..Options::default() })?;
        // The snapshot of one that does not stand alone would be that of one chain, and no source for the others.
        if walk.is_unpacked && walk.index.stands_alone() {
            let framed = kiln_layer::frames::with_frames(&walk.index, input, 0)?;
            let after = input.metadata().map_err(read)?;
            let stamp =
                |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            if let Some(index) = framed.filter(|_| stamp(&before) == stamp(&after)) {
                return Ok(Some(NewLayer { index, blob: None, snapshot: Some(directory) }));
            }
        }
        (&*input).rewind().map_err(read)?;
        let blob = copy_of(lease, input, &walk)?;
        if blob.digest != walk.blob {
            // The file has changed since. Only what was copied can be what was walked.
            (&*input).rewind().map_err(read)?;
            return Ok(None);
        }
        let snapshot = (!self.mounts_tars()).then_some(directory);
        if snapshot.is_some() && !walk.index.stands_alone() {
            self.complete_snapshot(lease.into(), &[], &walk.index, &root)?;
        }
        Ok(Some(NewLayer { index: walk.index, blob: Some(blob), snapshot }))
    }
}

/// A copy of what was walked, to be kept.
fn copy_of(lease: &Lease, input: &File, walk: &Walk) -> Result<NewBlob> {
    let path = lease.fresh_path("blob");
    let copy = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
    let mut input = io::BufReader::with_capacity(1 << 18, input).take(walk.blob_size);
    let mut copy = HashingWriter::new(copy.into_file());
    io::copy(&mut input, &mut copy).map_err(Error::file("copy into", &path))?;
    let (digest, size) = copy.finish();
    Ok(NewBlob { path, digest, size, compression: walk.compression.name() })
}

fn is_file(input: &File) -> Result<bool> {
    let metadata = input.metadata().map_err(|source| Error::File {
        action: "read",
        path: "the archive".into(),
        source,
    })?;
    Ok(metadata.is_file())
}

/// A stream that is kept in a file as it is read.
struct Keeping {
    input: File,
    copy: fs_err::File,
    /// How much more there may be.
    left: u64,
    /// Why it could not be kept.
    failed: Option<io::Error>,
}

impl Keeping {
    fn new(input: File, copy: fs_err::File) -> Self {
        Self { input, copy, left: Limits::default().bytes, failed: None }
    }
}

impl Read for Keeping {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(bytes)?;
        // However little a compressed stream may come to.
        self.left = self.left.checked_sub(length as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Err(error) = self.copy.write_all(&bytes[..length]) {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(length)
    }
}
