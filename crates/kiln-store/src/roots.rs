//! Reading and changing the roots that stacks of layers are: files by path, parts for mounts, captured changes.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_layer::view::Resolved;
use kiln_layer::{Capture, Changes, Compression, Kind, LayerIndex, Options, Owners, RootView, Unpack, Whiteouts};
use kiln_oci::{ChainId, DiffId};
use kiln_sys::root::Root;

use crate::Store;
use crate::error::{Error, Result};
use crate::lease::Lease;

/// The largest file that is read whole, such as passwd: 16 MiB (CVE-2024-9676: larger ones are an attack).
const MAX_WHOLE_FILE: u64 = 16 << 20;

/// What a path of a root is for a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootPart {
    /// A directory: the layers' own directories, the nearest first.
    Directories(Vec<PathBuf>),
    /// A file, in its layer's snapshot.
    File(PathBuf),
}

impl Store {
    /// Opens a regular file of a root. The bytes are those that the index describes.
    pub fn open_file(&self, layers: &[DiffId], file: &Resolved<'_>) -> Result<Box<dyn Read + Send>> {
        let layer = layers[file.layer];
        let entry = &file.entry;
        if let Some(bytes) = self.index(layer)?.fact(entry.number())? {
            return Ok(Box::new(io::Cursor::new(bytes.to_vec())));
        }
        let parent = ChainId::of(&layers[..file.layer]);
        if let Some(snapshot) = self.find_snapshot(parent, layer)? {
            let root = Root::open(&snapshot.diff)?;
            let path = Path::new(std::ffi::OsStr::from_bytes(entry.path()));
            return Ok(Box::new(root.open_file(path)?));
        }
        self.open_in_blob(layer, file)
    }

    fn open_in_blob(&self, layer: DiffId, file: &Resolved<'_>) -> Result<Box<dyn Read + Send>> {
        let blob = self.layer_blobs(layer)?.into_iter().next().ok_or(Error::NoLayer(layer))?;
        let path = self.blob_path(&blob.digest);
        let error = |source| Error::File { action: "read", path: path.clone(), source };
        let mut tar = fs_err::File::open(&path).map_err(error)?;
        let offset = file.entry.content_offset();
        if file.entry.is_sparse() {
            return self.read_sparse(tar.into_file(), &blob.compression, file).map(|bytes| {
                Box::new(io::Cursor::new(bytes)) as Box<dyn Read + Send>
            });
        }
        if blob.compression == "none" {
            tar.seek(SeekFrom::Start(offset)).map_err(error)?;
            return Ok(Box::new(tar.take(file.entry.size())));
        }
        let mut decoder = decoder(&blob.compression, io::BufReader::with_capacity(1 << 16, tar.into_file()))?;
        io::copy(&mut decoder.by_ref().take(offset), &mut io::sink()).map_err(error)?;
        let mut bytes = Vec::new();
        decoder.take(file.entry.size()).read_to_end(&mut bytes).map_err(error)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    /// A sparse file goes through the tar parser, which knows its holes.
    fn read_sparse(&self, tar: std::fs::File, compression: &str, file: &Resolved<'_>) -> Result<Vec<u8>> {
        use kiln_layer::archive::{Archive, Entry, Piece};
        let mut reader = decoder(compression, io::BufReader::new(tar))?;
        let offset = file.entry.content_offset();
        io::copy(&mut reader.by_ref().take(offset), &mut io::sink())
            .map_err(|source| Error::File { action: "read", path: "layer".into(), source })?;
        let mut archive = Archive::at(io::BufReader::new(reader), offset);
        let mut entry = Entry::default();
        archive.next_entry(&mut entry)?;
        let mut bytes = Vec::new();
        loop {
            let length = match archive.piece(1 << 16)? {
                Piece::Data(data) => {
                    bytes.extend_from_slice(data);
                    data.len()
                }
                Piece::Hole(length) => {
                    bytes.resize(bytes.len() + usize::try_from(length).unwrap_or(0), 0);
                    0
                }
                Piece::End => return Ok(bytes),
            };
            archive.consume(length);
        }
    }

    /// Reads a small file of a root, symbolic links followed inside it; `None` if there is none, or it is no
    /// regular file.
    pub fn read_root_file(&self, view: &RootView, layers: &[DiffId], path: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(node) = view.resolve(path)? else { return Ok(None) };
        let Some(file) = view.file(&node)? else { return Ok(None) };
        if file.entry.kind() != Kind::Regular {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let reader = self.open_file(layers, &file)?;
        reader
            .take(MAX_WHOLE_FILE)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::File { action: "read", path: String::from_utf8_lossy(path).into_owned().into(), source })?;
        Ok(Some(bytes))
    }

    /// The directories (or the file) of snapshots that make up `path` of a root, symbolic links followed inside it;
    /// `None` if it is not there.
    pub fn directory_lowers(&self, lease: &Lease, layers: &[DiffId], path: &[u8]) -> Result<Option<RootPart>> {
        let view = self.root_view(layers)?;
        let Some(node) = view.resolve(path)? else { return Ok(None) };
        let real = node.path().to_vec();
        let snapshots = self.snapshots(lease, layers)?;
        let below = |layer: usize| snapshots[layer].diff.join(std::ffi::OsStr::from_bytes(&real));
        if !node.is_directory() {
            return Ok(node.source().map(|(layer, _)| RootPart::File(below(layer))));
        }
        let mut lowers = Vec::new();
        for layer in (0..layers.len()).rev() {
            let index = self.index(layers[layer])?;
            match continues(&index, &real)? {
                Continuation::Ends => break,
                Continuation::Hides => {
                    lowers.push(below(layer));
                    break;
                }
                Continuation::Joins => lowers.push(below(layer)),
                Continuation::Absent => {}
            }
        }
        lowers.retain(|lower| lower.is_dir());
        if lowers.is_empty() {
            let empty = lease.fresh_path("empty");
            fs_err::create_dir(&empty).map_err(Error::file("make", &empty))?;
            lowers.push(empty);
        }
        Ok(Some(RootPart::Directories(lowers)))
    }

    /// Walks what a step left in `upper` once, into an index; `upper` is the snapshot afterwards.
    pub fn capture(
        &self,
        upper: &Path,
        lower: &RootView,
        owners: Owners<'_>,
        clamp: Option<i64>,
    ) -> Result<LayerIndex> {
        let root = Root::open(upper)?;
        let changes = Changes::Upper;
        let capture = Capture { root: &root, lower, changes, owners, stubs: &[], clamp };
        Ok(kiln_layer::capture(&capture, None)?.index)
    }

    /// Unpacks `path` of a root into a directory: layer after layer, whiteouts applied.
    pub fn unpack_layers(&self, layers: &[DiffId], directory: &Path) -> Result<()> {
        let root = Root::open(directory)?;
        for layer in layers {
            let unpack =
                Unpack { whiteouts: Whiteouts::Apply, ..self.unpack_into(&root) };
            let reader = self.open_layer_tar(*layer)?;
            kiln_layer::walk(reader, &Options { unpack: Some(unpack), ..Options::default() })?;
        }
        Ok(())
    }
}

/// What a layer says of a directory.
enum Continuation {
    /// It is removed, or something else, here: lower layers do not count, nor does this one.
    Ends,
    /// It is here, and hides lower layers.
    Hides,
    /// It is here, over lower layers.
    Joins,
    /// Nothing.
    Absent,
}

fn continues(index: &LayerIndex, path: &[u8]) -> Result<Continuation> {
    let mut hides = false;
    let mut at = Vec::new();
    let mut present = true;
    for component in std::iter::once(&b""[..]).chain(kiln_layer::path::components(path)) {
        if !component.is_empty() {
            at = kiln_layer::path::join(&at, component);
        }
        let mut position = index.position(&at)?;
        present = position.is_some() || at.is_empty();
        while let Some(number) = position {
            let entry = index.effective(number)?;
            match entry.kind() {
                Kind::Opaque => hides = true,
                Kind::Directory => {}
                _ => return Ok(Continuation::Ends),
            }
            position = (number + 1 < index.effective_count() && index.effective(number + 1)?.path() == at)
                .then_some(number + 1);
        }
    }
    let below = index.below(path)?;
    Ok(match (present || !below.is_empty(), hides) {
        (true, true) => Continuation::Hides,
        (true, false) => Continuation::Joins,
        (false, true) => Continuation::Ends,
        (false, false) => Continuation::Absent,
    })
}

/// A decoder by the name that the database has.
pub(crate) fn decoder<'a>(
    compression: &str,
    reader: impl io::BufRead + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>> {
    let compression = [Compression::Plain, Compression::Gzip, Compression::Zstd, Compression::Xz, Compression::Bzip2]
        .into_iter()
        .find(|known| known.name() == compression)
        .unwrap_or(Compression::Plain);
    Ok(compression.decoder(reader)?)
}
