//! COPY, ADD, WORKDIR and bind mounts between graph and store: what is selected goes into keys, what is copied becomes
//! a layer.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use kiln_graph::{Context, Done, Given, Input, Preimage, Stop, Stream};
use kiln_layer::index::Entry;
use kiln_layer::{LayerIndex, LayerWriter, Outputs, RootView};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_store::{NewBlob, NewLayer, StackContents, Working};
use kiln_sys::publish::begin_write_back;
use kiln_sys::root::{Directory, Root};

use crate::copy::{Copying, copy};
use crate::earlier::Earlier;
use crate::engine::{Engine, Step};
use crate::error::{Absence, Error, Result};
use crate::image_tree::{Contents, ImageTree};
use crate::operation::{CopyOperation, MountSource, WorkdirOperation};
use crate::request::CacheUse;
use crate::route::RoutedTree;
use crate::select::{Selection, select, select_mount};
use crate::stopping::Stopping;
use crate::tree::SourceTree;
use crate::wait::FilesWait;
use crate::workdir::workdir;

/// The disk is given so much of a tar at a time.
const WRITE_BACK: u64 = 8 << 20;

/// Role of the edge to what COPY reads.
const SOURCE: &str = "source";

/// A root in the store, opened layer by layer when a file is read.
pub(crate) struct StoredRoot<'a, 'e> {
    engine: &'a Engine<'e>,
    context: Context<'a>,
    view: RootView,
    contents: StackContents,
}

impl<'a, 'e> StoredRoot<'a, 'e> {
    pub(crate) fn new(engine: &'a Engine<'e>, context: &Context<'a>, layers: Vec<DiffId>) -> Result<Self> {
        let view = engine.store.root_view(&layers)?;
        Ok(Self { engine, context: *context, view, contents: StackContents::new(layers) })
    }

    pub(crate) fn tree(&self, name: &str) -> ImageTree<'_> {
        ImageTree::new(&self.view, self, name)
    }
}

impl Contents for StoredRoot<'_, '_> {
    fn open<'b>(
        &'b self,
        _view: &'b RootView,
        layer: usize,
        entry: Entry<'b>,
    ) -> Result<Box<dyn Read + Send + 'b>> {
        let engine = self.engine;
        let patience = FilesWait::new(&self.context);
        let working = || Ok::<_, Error>(Working::with(engine.lease()?, &patience));
        let reader = self.contents.open(engine.store, working, (layer, &entry))?;
        Ok(Box::new(Stopping::new(reader, &engine.cancel)))
    }

    fn go_on(&self) -> Result<()> {
        if self.engine.cancel.is_canceled() { Err(Error::Canceled) } else { Ok(()) }
    }
}

/// Where a layer that is made goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A RUN will need its files.
    Snapshot,
    /// Nothing needs its files yet, or the tar can be mounted: it is written faster.
    Tar,
}

impl Engine<'_> {
    /// What COPY or ADD selects, for its key; `None` if a source's data is gone and can be made again.
    pub(crate) fn copy_input(
        &self,
        operation: &CopyOperation,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> Result<Option<Input>> {
        let selection =
            match self.with_sources(operation, inputs.iter().map(|input| input.result), context, |tree| {
                select(operation, tree)
            }) {
                Err(Error::Store(kiln_store::Error::NoLayer(layer))) => {
                    return self.without(layer, inputs.iter().skip(1));
                }
                other => other?,
            };
        let input =
            Input { name: SOURCE.to_owned(), selector: selection.selector(), digest: selection.digest() };
        self.selections.lock().unwrap_or_else(|e| e.into_inner()).insert(context.vertex(), selection);
        Ok(Some(input))
    }

    /// What a mount shows, for its step's key; `None` if the source's data is gone and can be made again.
    pub(crate) fn mount_input(
        &self,
        target: &str,
        source: MountSource,
        path: &str,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> Result<Option<Input>> {
        let selected =
            match self.with_source(source, inputs.iter().map(|input| input.result), context, |tree| {
                select_mount(path, tree)
            }) {
                Err(Error::Store(kiln_store::Error::NoLayer(layer))) => {
                    let MountSource::Input(position) = source else { return Ok(None) };
                    return self.without(layer, inputs.get(position));
                }
                other => other?,
            };
        Ok(Some(Input {
            name: format!("mount {target}"),
            selector: selected.selector,
            digest: selected.digest,
        }))
    }

    /// What it means that a layer of these inputs has no index: nothing yet if one of them is to be made again.
    fn without<'b>(
        &self,
        layer: DiffId,
        inputs: impl IntoIterator<Item = &'b Given<'b, Step>>,
    ) -> Result<Option<Input>> {
        if inputs.into_iter().any(|input| !input.present) {
            return Ok(None);
        }
        let path = self.store.root().join("index").join(layer.0.hex()).display().to_string();
        Err(Error::LostIndex { layer, path })
    }

    /// Everything that a COPY or ADD takes from, as one tree.
    fn with_sources<T>(
        &self,
        operation: &CopyOperation,
        inputs: impl Iterator<Item = Step> + Clone,
        context: &Context<'_>,
        body: impl FnOnce(&dyn SourceTree) -> Result<T>,
    ) -> Result<T> {
        let mut roots = Vec::new();
        for position in operation.source_inputs() {
            let chain = inputs.clone().nth(position).map_or(ChainId::SCRATCH, |step| step.chain);
            roots.push((position, StoredRoot::new(self, context, self.layers(chain)?)?));
        }
        if roots.is_empty() {
            return self.with_source(operation.from, inputs, context, body);
        }
        // Without paths there is no need for a context.
        let from = if operation.takes_paths() { operation.from } else { MountSource::Empty };
        self.with_source(from, inputs, context, |main| {
            let inputs = roots.iter().map(|(position, root)| {
                let tree: Box<dyn SourceTree + '_> = Box::new(root.tree("the download"));
                (*position, tree)
            });
            body(&RoutedTree { main, inputs: inputs.collect() })
        })
    }

    fn with_source<T>(
        &self,
        source: MountSource,
        mut inputs: impl Iterator<Item = Step>,
        context: &Context<'_>,
        body: impl FnOnce(&dyn SourceTree) -> Result<T>,
    ) -> Result<T> {
        match source {
            MountSource::Context => body(self.context()?),
            MountSource::Empty => body(&StoredRoot::new(self, context, Vec::new())?.tree("an empty root")),
            MountSource::Input(position) => {
                let chain = inputs.nth(position).map_or(ChainId::SCRATCH, |step| step.chain);
                let root = StoredRoot::new(self, context, self.layers(chain)?)?;
                body(&root.tree("the source stage or image"))
            }
        }
    }

    /// Does a COPY or ADD. A file that changed since the key was made makes it begin again, once, under its new key and
    /// without regard to earlier layers.
    pub(crate) fn copy(
        &self,
        operation: &CopyOperation,
        preimage: &Preimage,
        inputs: &[Step],
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        let known = self.selections.lock().unwrap_or_else(|e| e.into_inner()).remove(&context.vertex());
        let selected = |tree: &dyn SourceTree| select(operation, tree);
        let first = match known {
            Some(selection) => selection,
            None => self.with_sources(operation, inputs.iter().copied(), context, selected)?,
        };
        let earlier = match self.request.cache {
            CacheUse::Records => {
                Earlier::of(self.store, &preimage.operation.digest(), preimage.operation.name())?
            }
            CacheUse::Nothing => None,
        };
        let mut preimage = came_from(preimage, &first);
        let layer = match self.copy_once(operation, first, inputs, earlier.as_ref(), context) {
            Err(Error::Changed(_)) => {
                self.forget_context();
                let again = self.with_sources(operation, inputs.iter().copied(), context, selected)?;
                preimage = came_from(&preimage, &again);
                self.copy_once(operation, again, inputs, None, context)
            }
            copied => copied,
        };
        let layer = layer.map_err(Error::stop)?;
        Ok(Done { result: self.made(inputs[0].chain, layer), preimage: Some(preimage) })
    }

    /// Has everything of the context read anew.
    fn forget_context(&self) {
        if let Some(context) = self.opened.get() {
            context.forget();
        }
    }

    fn copy_once(
        &self,
        operation: &CopyOperation,
        mut selection: Selection,
        inputs: &[Step],
        earlier: Option<&Earlier>,
        context: &Context<'_>,
    ) -> Result<DiffId> {
        let parent = inputs[0].chain;
        let parent_root = StoredRoot::new(self, context, self.layers(parent)?)?;
        let parent_tree = parent_root.tree("the image");
        let scratch = Directory::open(self.lease()?.directory())?;
        let is_canceled = &|| context.cancel().is_canceled();
        self.with_sources(operation, inputs.iter().copied(), context, |source| {
            let mut writer = LayerWriter::new();
            let now = operation.epoch.unwrap_or_else(seconds);
            let (parent, scratch) = (&parent_tree, &scratch);
            let copying = Copying { operation, parent, source, scratch, now, earlier, is_canceled };
            let staging = kiln_trace::span("stage copy");
            let copied = copy(copying, &mut selection, &mut writer)?;
            drop(staging);
            for name in &copied.unknown_owners {
                let text = format!("--chown: the image does not know {name:?}: the files belong to root\n");
                context.log(Stream::Error, text.as_bytes());
            }
            let layer = self.write_layer(writer, &parent_root.view, context)?;
            match copied.changed(&layer.index)? {
                Some(path) => Err(Error::Changed(path)),
                None => Ok(self.store.publish_layer(self.lease()?, inputs[0].chain, layer)?),
            }
        })
    }

    /// Makes the directory of a WORKDIR.
    pub(crate) fn workdir(
        &self,
        operation: &WorkdirOperation,
        parent: ChainId,
        context: &Context<'_>,
    ) -> Result<DiffId> {
        let root = StoredRoot::new(self, context, self.layers(parent)?)?;
        let tree = root.tree("the image");
        let mut writer = LayerWriter::new();
        let now = operation.epoch.unwrap_or_else(seconds);
        for name in workdir(operation, &tree, now, &mut writer)? {
            let text = format!("USER: the image does not know {name:?}: the directory belongs to root\n");
            context.log(Stream::Error, text.as_bytes());
        }
        let layer = self.write_layer(writer, &root.view, context)?;
        Ok(self.store.publish_layer(self.lease()?, parent, layer)?)
    }

    /// Writes what was collected, in the form that is wanted next.
    pub(crate) fn write_layer(
        &self,
        writer: LayerWriter<'_>,
        lower: &RootView,
        context: &Context<'_>,
    ) -> Result<NewLayer> {
        let _span = kiln_trace::span("write layer");
        match self.form(context.vertex(), writer.len()) {
            Form::Snapshot => {
                let directory = self.fresh_directory("snapshot")?;
                let root = Root::open(&directory)?;
                let unpack = self.store.unpacking(&root);
                let index = finish(writer, lower, Outputs { tar: None, unpack: Some(unpack) })?.0;
                Ok(NewLayer { index, blob: None, snapshot: Some(directory) })
            }
            Form::Tar => {
                let path = self.lease()?.fresh_path("layer.tar");
                let file = fs_err::File::create_new(&path).map_err(|source| Error::File {
                    action: "make",
                    path: path.display().to_string(),
                    source,
                })?;
                let mut tar = NewTar { file, written: 0, passed_on: 0 };
                let (index, size) = finish(writer, lower, Outputs { tar: Some(&mut tar), unpack: None })?;
                let blob = NewBlob { path, digest: index.diff_id().0, size, compression: "none" };
                Ok(NewLayer { index, blob: Some(blob), snapshot: None })
            }
        }
    }

    /// Makes `directory`, which is empty, what a new cache mount with `from=` of a stage or image begins with, its own owner
    /// and mode included.
    pub(crate) fn materialize_from(
        &self,
        context: &Context<'_>,
        chain: ChainId,
        path: &str,
        directory: &Path,
    ) -> Result<()> {
        let patience = FilesWait::new(context);
        let copy = self.store.copy_part(
            Working::with(self.lease()?, &patience),
            &self.layers(chain)?,
            path.as_bytes(),
        )?;
        let Some(copy) = copy else {
            let place = "the source stage or image".to_owned();
            return Err(Error::NoSource { path: path.to_owned(), place, absence: Absence::Unexplained });
        };
        if !fs_err::symlink_metadata(&copy).is_ok_and(|found| found.is_dir()) {
            return Err(Error::Unsupported("a cache mount that begins with a file".to_owned()));
        }
        fs_err::rename(&copy, directory).map_err(|source| Error::File {
            action: "move into",
            path: directory.display().to_string(),
            source,
        })
    }

    /// A filtered copy of what a bind mount of the context shows, and the digest of that as in a key: files may have changed
    /// since the step's own was made, and again while they are copied, once.
    pub(crate) fn materialize_bind(&self, path: &str) -> Result<(PathBuf, Digest)> {
        let context = self.context()?;
        let copy = || {
            let directory = self.fresh_directory("context")?;
            let mut selected = select_mount(path, context)?;
            crate::materialize::materialize(context, &mut selected, &Directory::open(&directory)?)?;
            let below = directory.join(crate::materialize::NAME);
            // The path was followed to its end: a link that is there now was put in its place, and leads out of the context.
            match fs_err::symlink_metadata(&below) {
                Ok(found) if !found.is_symlink() => Ok((below, selected.digest)),
                _ => Err(Error::Changed(path.to_owned())),
            }
        };
        match copy() {
            Err(Error::Changed(_)) => {
                self.forget_context();
                copy()
            }
            copied => copied,
        }
    }
}

/// A tar being written. The disk begins with it meanwhile: before a name moves to its layer, all of it must be there.
struct NewTar {
    file: fs_err::File,
    written: u64,
    /// How much of that the disk was given.
    passed_on: u64,
}

impl Write for NewTar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.written += length as u64;
        let waiting = self.written - self.passed_on;
        if waiting >= WRITE_BACK {
            begin_write_back(self.file.file(), self.passed_on, waiting);
            self.passed_on = self.written;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What a COPY or ADD came from that took this.
fn came_from(expected: &Preimage, selection: &Selection) -> Preimage {
    let mut preimage = expected.clone();
    for input in preimage.inputs.iter_mut().filter(|input| input.name == SOURCE) {
        input.digest = selection.digest();
    }
    preimage
}

fn finish(writer: LayerWriter<'_>, lower: &RootView, outputs: Outputs<'_>) -> Result<(LayerIndex, u64)> {
    match writer.finish(lower, outputs) {
        Ok(written) => Ok((written.index, written.tar_size)),
        Err(kiln_layer::Error::Changed { path, .. }) => Err(Error::Changed(path)),
        Err(error) => Err(error.into()),
    }
}

fn seconds() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use kiln_store::{Ownership, Store};

    use super::*;
    use crate::lab::{Lab, request};

    #[test]
    fn what_was_remembered_wrongly_is_forgotten() {
        let lab = Lab::new().context(&[("d/f", "mine")]);
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let request = request(lab.context_path(), b"");
        let store = Store::open(&lab.host.path().join("store"), Ownership::SingleId).expect("a store");
        let lease = store.lease_late("test").expect("a lease");
        let key = |engine: &Engine<'_>| {
            let context = engine.context().expect("opened");
            let digest = select_mount("/d", context).expect("examined").digest;
            context.save().expect("saved");
            digest
        };
        let mine = key(&Engine::new(&store, &lease, &request));
        let mut caches = fs_err::read_dir(store.root().join("context")).expect("listed");
        let cache = caches.next().expect("one").expect("read").path();
        let mut bytes = fs_err::read(&cache).expect("read");
        *bytes.last_mut().expect("a digest") ^= 1;
        fs_err::write(&cache, bytes).expect("written");
        let engine = Engine::new(&store, &lease, &request);
        assert_ne!(key(&engine), mine, "what is remembered is believed");
        let (path, digest) = engine.materialize_bind("/d").expect("copied");
        assert_eq!(fs_err::read_to_string(path.join("f")).expect("read"), "mine");
        assert_eq!((digest, key(&engine)), (mine, mine));
        assert_eq!(key(&Engine::new(&store, &lease, &request)), mine);
    }

    #[test]
    fn a_bind_mount_shows_what_its_digest_says() {
        let lab = Lab::new().context(&[("d/f", "mine")]);
        let request = request(lab.context_path(), b"");
        let store = Store::open(&lab.host.path().join("store"), Ownership::SingleId).expect("a store");
        let lease = store.lease_late("test").expect("a lease");
        let engine = Engine::new(&store, &lease, &request);
        let key = || select_mount("/d", engine.context().expect("opened")).expect("examined").digest;
        let mine = key();
        let show = || {
            let (path, digest) = engine.materialize_bind("/d").expect("copied");
            (fs_err::read_to_string(path.join("f")).expect("read"), digest)
        };
        assert_eq!(show(), ("mine".to_owned(), mine));
        // By the time that the step begins it is another file.
        fs_err::write(lab.context_path().join("d/f"), "them").expect("written");
        let (content, digest) = show();
        assert_eq!((content.as_str(), digest), ("them", key()));
        assert_ne!(digest, mine);
    }
}
