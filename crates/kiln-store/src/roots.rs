//! Reading and changing the roots that stacks of layers are: files by path, parts for mounts, captured changes.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_layer::index::Entry;
use kiln_layer::{
    Capture, Changes, ContentSource, GoOn, Kind, LayerContents, LayerIndex, LayerWriter, Marks, Options,
    Outputs, Owners, RootView, Source, Stub, Unpack, Whiteouts,
};
use kiln_oci::{ChainId, DiffId};
use kiln_sys::overlay::TarMount;
use kiln_sys::root::Root;

use crate::Store;
use crate::error::{Error, Result};
use crate::layers::NewLayer;
use crate::lease::Lease;
use crate::snapshots::{PreparedRoot, RootForm, RootWay};
use crate::store::Ownership;
use crate::tar_mounts::Place;
use crate::waiting::Working;

/// The largest file that is read whole, such as passwd: 16 MiB (CVE-2024-9676: larger ones are an attack).
const MAX_WHOLE_FILE: u64 = 16 << 20;

/// What a path of a root is for a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootPart {
    /// A directory: the layers' own directories.
    Directories(Lowers),
    /// A file, in its layer's snapshot.
    File(PathBuf),
    /// A copy of the file or directory, which may be changed.
    Copy(PathBuf),
}

/// The lowers of an overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowers {
    /// What must be mounted first, for some of the directories to be there.
    pub tars: Vec<TarMount>,
    /// The nearest first.
    pub directories: Vec<PathBuf>,
}

impl Lowers {
    /// Whole layers, the nearest first. One that stands higher up, too, is left out: the kernel refuses a lower that
    /// overlaps another, and steps that leave the same layer share its snapshot. The higher one hides all that the lower
    /// one could show.
    pub(crate) fn of(places: impl Iterator<Item = Place>) -> Self {
        let mut lowers = Self::default();
        let mut seen = HashSet::new();
        for place in places {
            if seen.insert(place.identity().to_path_buf()) {
                lowers.add(&place, Path::new(""));
            }
        }
        lowers
    }

    /// A layer's directory at `below`, a path without symbolic links.
    fn add(&mut self, place: &Place, below: &Path) {
        let files = place.files();
        let whole = below.as_os_str().is_empty();
        self.directories.push(if whole { files.to_path_buf() } else { files.join(below) });
        if let Place::Tar(tar) = place {
            self.tars.push(tar.clone());
        }
    }
}

impl Store {
    /// How many layers at the bottom of a stack are hidden whole, by an opaque mark on a root above them.
    pub(crate) fn hidden_below(&self, layers: &[DiffId]) -> Result<usize> {
        for (position, layer) in layers.iter().enumerate().rev() {
            if matches!(continues(&*self.index(*layer)?, b"")?, Continuation::Hides) {
                return Ok(position);
            }
        }
        Ok(0)
    }

    /// The files of the layer at `position` of a stack: from its snapshot if it is there, else from its blob.
    pub fn layer_contents(&self, layers: &[DiffId], position: usize) -> Result<LayerContents> {
        let layer = layers[position];
        let mut sources = Vec::new();
        if let Some(snapshot) = self.find_snapshot(ChainId::of(&layers[..position]), layer)? {
            sources.push(ContentSource::Snapshot(Root::open(&snapshot.diff)?));
        }
        for blob in self.layer_blobs(layer)? {
            let path = self.blob_path(&blob.digest);
            let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?.into_file();
            sources.push(match blob.compression.as_str() {
                "none" => ContentSource::Tar { file, offset: 0 },
                _ => ContentSource::Blob(file),
            });
        }
        Ok(LayerContents::new(self.index(layer)?, sources))
    }

    /// Reads a small file of a root, symbolic links followed inside it; `None` if there is none, or it is no
    /// regular file.
    pub fn read_root_file(&self, view: &RootView, layers: &[DiffId], path: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(node) = view.resolve(path)? else { return Ok(None) };
        let Some(file) = view.file(&node)? else { return Ok(None) };
        if file.entry.kind() != Kind::Regular {
            return Ok(None);
        }
        let read = self.layer_contents(layers, file.layer)?.read(&file.entry, MAX_WHOLE_FILE);
        read.map(Some).map_err(|error| self.unreadable(layers[file.layer], error))
    }

    /// What makes up `path` of a root, symbolic links followed inside it: directories or the file of snapshots, or a
    /// copy. `None` if it is not there.
    pub fn root_part<'a>(
        &self,
        lease: impl Into<Working<'a>>,
        layers: &[DiffId],
        path: &[u8],
        way: RootWay,
    ) -> Result<Option<RootPart>> {
        let lease = lease.into();
        if way == RootWay::Copy {
            return Ok(self.copy_part(lease, layers, path)?.map(RootPart::Copy));
        }
        let view = self.root_view(layers)?;
        let Some(node) = view.resolve(path)? else { return Ok(None) };
        let real = node.path().to_vec();
        let below = kiln_layer::path::to_system(&real);
        if !node.is_directory() {
            let Some((layer, _)) = node.source() else { return Ok(None) };
            let snapshot = self.snapshot(lease, layers, layer)?;
            return Ok(Some(RootPart::File(snapshot.diff.join(below))));
        }
        let places = self.places(lease, layers)?;
        let mut lowers = Lowers::default();
        let mut seen = HashSet::new();
        for layer in (0..layers.len()).rev() {
            let continuation = continues(&*self.index(layers[layer])?, &real)?;
            let joins = matches!(continuation, Continuation::Hides | Continuation::Joins);
            let is_there = match &places[layer] {
                Place::Snapshot(snapshot) => snapshot.diff.join(below).is_dir(),
                Place::Tar(_) => true,
            };
            if joins && is_there && seen.insert(places[layer].identity()) {
                lowers.add(&places[layer], below);
            }
            if matches!(continuation, Continuation::Ends | Continuation::Hides) {
                break;
            }
        }
        if lowers.directories.is_empty() {
            lowers.directories.push(lease.fresh_directory("empty")?);
        }
        Ok(Some(RootPart::Directories(lowers)))
    }

    /// Walks what a step changed in a prepared root once, into a layer that is to be published.
    pub fn capture<'a>(
        &self,
        lease: impl Into<Working<'a>>,
        prepared: &PreparedRoot,
        lower: &RootView,
        owners: Owners<'_>,
        clamp: Option<i64>,
    ) -> Result<NewLayer> {
        let lease = lease.into();
        let go_on = &|| lease.go_on();
        match &prepared.form {
            RootForm::Overlay { upper, .. } => {
                let index = self.capture_upper(upper, (lower, &prepared.stubs), owners, clamp, go_on)?;
                Ok(NewLayer { index, blob: None, snapshot: Some(upper.clone()) })
            }
            RootForm::Copy { directory, copied } => {
                self.capture_copy(&lease, (directory, copied), lower, owners, clamp, go_on)
            }
        }
    }

    fn capture_upper(
        &self,
        upper: &Path,
        (lower, stubs): (&RootView, &[Stub]),
        owners: Owners<'_>,
        clamp: Option<i64>,
        go_on: GoOn<'_>,
    ) -> Result<LayerIndex> {
        let _span = kiln_trace::span("capture");
        let root = Root::open(upper)?;
        let changes = Changes::Upper(match self.ownership() {
            Ownership::Root => Marks::Trusted,
            Ownership::SubIds | Ownership::SingleId => Marks::User,
        });
        let capture = Capture { root: &root, lower, changes, owners, stubs, clamp, go_on };
        Ok(kiln_layer::capture(&capture, None)?.index)
    }

    /// Unpacks a whole root into a directory: layer after layer, whiteouts applied.
    pub fn unpack_layers(&self, lease: &Lease, layers: &[DiffId], directory: &Path) -> Result<()> {
        let root = Root::open(directory)?;
        for (position, layer) in layers.iter().enumerate() {
            let unpack = Unpack { whiteouts: Whiteouts::Apply, ..self.unpacking(&root) };
            let (reader, _) = self.open_layer(lease, &layers[..position], *layer)?;
            kiln_layer::walk(reader, &Options { unpack: Some(unpack), ..Options::default() })?;
        }
        restore_times(&root, &self.root_view(layers)?)
    }

    /// The bytes of a layer as a tar, compressed as its blob is, and their length. A layer without a blob is made
    /// again from its snapshot and index, and must come out with its diff ID.
    pub fn open_layer(&self, lease: &Lease, below: &[DiffId], layer: DiffId) -> Result<(std::fs::File, u64)> {
        let file = match self.layer_blobs(layer)?.first() {
            Some(blob) => {
                let path = self.blob_path(&blob.digest);
                fs_err::File::open(&path).map_err(Error::file("open", &path))?
            }
            None => self.remake_tar(lease, below, layer)?,
        };
        let size = file.metadata().map_err(Error::file("stat", file.path()))?.len();
        Ok((file.into_file(), size))
    }

    /// A file that goes when it is closed: of many layers, one takes room at a time.
    fn remake_tar(&self, lease: &Lease, below: &[DiffId], layer: DiffId) -> Result<fs_err::File> {
        let path = lease.fresh_path("layer.tar");
        let mut output = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
        let written = self.write_tar(below, layer, &mut output);
        let opened = fs_err::File::open(&path).map_err(Error::file("open", &path));
        fs_err::remove_file(&path).map_err(Error::file("remove", &path))?;
        written.and(opened)
    }

    /// Writes the tar of a layer that has no blob, from snapshot and index.
    pub(crate) fn write_tar(
        &self,
        below: &[DiffId],
        layer: DiffId,
        output: &mut (dyn io::Write + Send),
    ) -> Result<()> {
        let _span = kiln_trace::span("make tar again").of(|| layer.to_string());
        let index = self.index(layer)?;
        let snapshot = self.find_snapshot(ChainId::of(below), layer)?.ok_or_else(|| self.unusable(layer))?;
        let root = Root::open(&snapshot.diff)?;
        if index.has_frames() {
            return write_foreign(&index, &root, layer, output);
        }
        if index.writer_version().is_none() {
            return Err(Error::NoLayer(layer));
        }
        let mut writer = LayerWriter::new();
        for entry in index.tree() {
            let entry = entry?;
            let source = if entry.kind() == Kind::Regular && entry.size() > 0 {
                let root = &root;
                Source::Open(Box::new(move || {
                    let path = kiln_layer::path::to_system(entry.path());
                    Ok(Box::new(root.open_file(path)?) as Box<dyn Read>)
                }))
            } else {
                Source::Empty
            };
            writer.add(entry.path(), entry.metadata(), source)?;
        }
        let view = self.root_view(below)?;
        let written = writer.finish(&view, Outputs { tar: Some(output), unpack: None })?;
        if written.diff_id != layer {
            let what = format!("layer {layer} made again from its snapshot");
            return Err(Error::Mismatch { what, expected: layer.0, found: written.diff_id.0 });
        }
        Ok(())
    }
}

/// Gives directories their times again: a layer that only changes what is in a directory does not name it.
fn restore_times(root: &Root, view: &RootView) -> Result<()> {
    for node in view.walk(view.root()?) {
        let node = node?;
        if !node.is_directory() || node.source().is_none() {
            continue;
        }
        let time = view.modified(&node)?;
        if node.path().is_empty() {
            root.directory().set_self(None, None, Some(time))?;
        } else {
            let (parent, name) = root.open_parent(kiln_layer::path::to_system(node.path()))?;
            parent.set_modified(&name, time)?;
        }
    }
    Ok(())
}

/// Writes a foreign tar again, from its frames and its files.
fn write_foreign(index: &LayerIndex, root: &Root, layer: DiffId, output: &mut dyn io::Write) -> Result<()> {
    let open = |entry: &Entry<'_>| -> kiln_layer::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(root.open_file(kiln_layer::path::to_system(entry.path()))?))
    };
    let mut output = io::BufWriter::with_capacity(1 << 20, output);
    let found = kiln_layer::frames::restore(index, &open, &mut output)?;
    let wrote = io::Write::flush(&mut output);
    wrote.map_err(|source| Error::Output { what: format!("layer {layer}"), source })?;
    if found != layer {
        let what = format!("layer {layer} made again from its snapshot");
        return Err(Error::Mismatch { what, expected: layer.0, found: found.0 });
    }
    Ok(())
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
