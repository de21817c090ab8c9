//! A bench for tests: a context on disk, layers in memory, and Dockerfiles whose COPY, ADD and WORKDIR are done.

use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};

use kiln_layer::index::Entry;
use kiln_layer::{Kind, LayerIndex, LayerWriter, Outputs, RootView, Source, Written};
use kiln_oci::{DiffId, Digest, ImageConfig, Platform, Reference};
use kiln_sys::root::Directory;

use crate::context::BuildContext;
use crate::copy::{Copied, Copying, copy};
use crate::error::{Error, Result};
use crate::image_tree::{Contents, ImageTree};
use crate::lower::{BaseImage, Bases, lower};
use crate::operation::{MountSource, Operation};
use crate::request::{BuildRequest, CacheUse, Lent, NetworkMode};
use crate::select::{Selection, select};
use crate::tree::{Found, SourceTree, Stamp};
use crate::workdir::workdir;

/// Seconds since the epoch of everything that is made.
pub(crate) const NOW: i64 = 1_600_000_000;

/// A layer with its tar.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) index: Arc<LayerIndex>,
    pub(crate) tar: Arc<[u8]>,
}

/// A stack of layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image(pub(crate) Vec<Layer>);

impl Contents for Image {
    fn open<'a>(
        &'a self,
        _view: &'a RootView,
        layer: usize,
        entry: Entry<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        let start = entry.content_offset() as usize;
        Ok(Box::new(Cursor::new(&self.0[layer].tar[start..start + entry.size() as usize])))
    }
}

impl Image {
    pub(crate) fn view(&self) -> RootView {
        RootView::new(self.0.iter().map(|layer| Arc::clone(&layer.index)).collect())
    }

    /// Everything in the image: `type mode owner path [-> target | content]`.
    pub(crate) fn tree(&self) -> Vec<String> {
        let view = self.view();
        let tree = ImageTree::new(&view, self, "the image");
        let below = tree.walk(b"", &crate::filter::Filter::default()).expect("a tree");
        let mut lines = Vec::new();
        for entry in &below[1..] {
            let metadata = &entry.found.metadata;
            let mut line = format!(
                "{} {:04o} {}:{} {}",
                letter(metadata.kind),
                metadata.mode,
                metadata.uid,
                metadata.gid,
                String::from_utf8_lossy(&entry.path)
            );
            if metadata.kind == Kind::Symlink {
                line.push_str(" -> ");
                line.push_str(&String::from_utf8_lossy(&metadata.link));
            }
            if metadata.kind == Kind::Regular {
                let (reader, _) = tree.open(&entry.path).expect("opened");
                line.push_str(" = ");
                line.push_str(&std::io::read_to_string(reader).expect("text"));
            }
            lines.push(line);
        }
        lines
    }

    /// The entries of the top layer: `type path`.
    pub(crate) fn top(&self) -> Vec<String> {
        let Some(layer) = self.0.last() else { return Vec::new() };
        let entries = layer.index.entries().map(|entry| entry.expect("an entry"));
        entries.map(|e| format!("{} {}", letter(e.kind()), String::from_utf8_lossy(e.path()))).collect()
    }

    pub(crate) fn add(&mut self, writer: LayerWriter<'_>) -> Written {
        let mut tar = Vec::new();
        let written =
            writer.finish(&self.view(), Outputs { tar: Some(&mut tar), unpack: None }).expect("a layer");
        let index = LayerIndex::from_bytes(written.index.bytes().to_vec()).expect("an index");
        self.0.push(Layer { index: Arc::new(index), tar: tar.into() });
        written
    }

    /// Adds a layer of `(path, mode, content)`: a path that ends in `/` is a directory, content that begins with `->` a
    /// symbolic link.
    pub(crate) fn with(mut self, entries: &[(&str, u32, &str)]) -> Self {
        let mut writer = LayerWriter::new();
        for (path, mode, content) in entries {
            let (kind, source) = if path.ends_with('/') {
                (Kind::Directory, Source::Empty)
            } else if content.starts_with("->") {
                (Kind::Symlink, Source::Empty)
            } else {
                (Kind::Regular, Source::Bytes(content.as_bytes().to_vec()))
            };
            let mut metadata = kiln_layer::Metadata::new(kind, *mode);
            metadata.modified.seconds = 1_000_000_000;
            match kind {
                Kind::Symlink => metadata.link = content.as_bytes()[2..].to_vec(),
                Kind::Regular => metadata.size = content.len() as u64,
                _ => {}
            }
            writer.add(path.trim_end_matches('/').as_bytes(), metadata, source).expect("added");
        }
        self.add(writer);
        self
    }
}

/// A tree whose files have other bytes, of the same size and status, each time that one is opened; the last ones stay.
pub(crate) struct Shifting<'a> {
    tree: &'a dyn SourceTree,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl<'a> Shifting<'a> {
    pub(crate) fn new(tree: &'a dyn SourceTree, bytes: &[&[u8]]) -> Self {
        let bytes = bytes.iter().rev().map(|bytes| bytes.to_vec()).collect();
        Self { tree, bytes: Mutex::new(bytes) }
    }
}

impl SourceTree for Shifting<'_> {
    fn find(&self, path: &[u8]) -> Result<Option<Found>> {
        self.tree.find(path)
    }

    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.tree.children(directory)
    }

    fn open(&self, path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<Stamp>)> {
        let (_, stamp) = self.tree.open(path)?;
        let mut bytes = self.bytes.lock().expect("nobody panicked");
        let now = if bytes.len() > 1 { bytes.pop() } else { bytes.last().cloned() };
        Ok((Box::new(Cursor::new(now.expect("bytes"))), stamp))
    }

    fn stored_digest(&self, path: &[u8]) -> Result<Option<Digest>> {
        self.tree.stored_digest(path)
    }

    fn hides(&self, path: &[u8]) -> bool {
        self.tree.hides(path)
    }

    fn place(&self) -> String {
        self.tree.place()
    }
}

pub(crate) fn letter(kind: Kind) -> char {
    match kind {
        Kind::Regular => 'f',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::HardLink => 'h',
        Kind::CharacterDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::Whiteout => 'w',
        Kind::Opaque => 'o',
    }
}

/// A build of `dockerfile` in `context` without any options.
pub(crate) fn request(context: std::path::PathBuf, dockerfile: &[u8]) -> BuildRequest {
    BuildRequest {
        context,
        context_kind: crate::request::ContextKind::Lasting,
        dockerfile: dockerfile.to_vec(),
        dockerfile_name: "Dockerfile".to_owned(),
        ignore: Vec::new(),
        target: None,
        build_args: std::collections::BTreeMap::new(),
        labels: std::collections::BTreeMap::new(),
        names: Vec::new(),
        cache: CacheUse::Records,
        network: NetworkMode::Default,
        allowed: Vec::new(),
        lent: Lent::default(),
        resolv_conf: Vec::new(),
        platform: Platform::host(),
        parallelism: 1,
        executions: crate::request::Executions::Allowed(kiln_runtime::Isolation::Namespaces),
        remote: kiln_remote::Settings::default(),
        git: crate::git::GitProgram::default(),
    }
}

/// A context and base images.
pub(crate) struct Lab {
    pub(crate) host: tempfile::TempDir,
    pub(crate) bases: Vec<(String, Image)>,
}

/// What a Dockerfile came to.
pub(crate) struct Outcome {
    pub(crate) image: Image,
    /// Of every COPY and ADD, in order.
    pub(crate) selections: Vec<Digest>,
    pub(crate) unknown_owners: Vec<String>,
}

struct LabBases<'a>(&'a [(String, Image)]);

impl Bases for LabBases<'_> {
    fn find(
        &mut self,
        reference: &Reference,
        platform: &Platform,
        _span: kiln_dockerfile::Span,
    ) -> Result<BaseImage> {
        let name = reference.to_string();
        let (_, image) = self
            .0
            .iter()
            .find(|(known, _)| name.contains(known.as_str()))
            .ok_or_else(|| Error::Unsupported(name.clone()))?;
        let mut config = ImageConfig::scratch(platform);
        config.rootfs.diff_ids = image.0.iter().map(|layer| layer.index.diff_id()).collect::<Vec<DiffId>>();
        Ok(BaseImage { config, pinned: name })
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let host = tempfile::tempdir().expect("a temporary directory");
        fs_err::create_dir(host.path().join("context")).expect("made");
        fs_err::create_dir(host.path().join("scratch")).expect("made");
        fs_err::create_dir(host.path().join("caches")).expect("made");
        Self { host, bases: Vec::new() }
    }

    pub(crate) fn context_path(&self) -> std::path::PathBuf {
        self.host.path().join("context")
    }

    /// Writes files into the context: `->` makes a symbolic link, a trailing `/` a directory.
    pub(crate) fn context(self, files: &[(&str, &str)]) -> Self {
        for (name, content) in files {
            let path = self.context_path().join(name);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("made");
            if name.ends_with('/') {
                fs_err::create_dir_all(&path).expect("made");
            } else if let Some(target) = content.strip_prefix("->") {
                std::os::unix::fs::symlink(target, &path).expect("linked");
            } else {
                fs_err::write(&path, content).expect("written");
            }
        }
        self
    }

    pub(crate) fn base(mut self, name: &str, image: Image) -> Self {
        self.bases.push((name.to_owned(), image));
        self
    }

    pub(crate) fn open(&self) -> BuildContext<'static> {
        let ignore = fs_err::read(self.context_path().join(".dockerignore")).unwrap_or_default();
        let caches = Directory::open(&self.host.path().join("caches")).expect("opened");
        BuildContext::open(&self.context_path(), &ignore, Some(caches)).expect("a context")
    }

    pub(crate) fn build(&self, dockerfile: &str) -> Result<Outcome> {
        self.build_with(dockerfile, &mut |_, _| panic!("RUN"))
    }

    /// Builds the last stage of a Dockerfile; `run` makes the layer of a RUN.
    pub(crate) fn build_with(
        &self,
        dockerfile: &str,
        run: &mut dyn FnMut(usize, &mut Image),
    ) -> Result<Outcome> {
        let parsed = kiln_dockerfile::parse(dockerfile.as_bytes());
        assert!(!parsed.has_errors(), "{dockerfile}");
        let request = request(self.context_path(), dockerfile.as_bytes());
        let lowered = lower(&parsed.dockerfile, &request, &mut LabBases(&self.bases))?;
        let context = self.open();
        let scratch = Directory::open(&self.host.path().join("scratch")).expect("opened");
        let mut outcome =
            Outcome { image: Image::default(), selections: Vec::new(), unknown_owners: Vec::new() };
        let mut images: Vec<Image> = Vec::new();
        for (step, (_, vertex)) in lowered.graph.vertices().enumerate() {
            let input = |position: usize| images[vertex.inputs()[position].vertex.index()].clone();
            let image = match &vertex.operation {
                Operation::Base(layers) => {
                    let known = self.bases.iter().map(|(_, image)| image);
                    let found = known.clone().find(|image| {
                        image.0.iter().map(|layer| layer.index.diff_id()).eq(layers.iter().copied())
                    });
                    found.cloned().unwrap_or_default()
                }
                Operation::Download(_) | Operation::Git(_) => panic!("nothing is downloaded here"),
                Operation::Run(_) => {
                    let mut image = input(0);
                    run(step, &mut image);
                    image
                }
                Operation::Workdir(operation) => {
                    let mut image = input(0);
                    let parent = image.clone();
                    let view = parent.view();
                    let tree = ImageTree::new(&view, &parent, "the image");
                    let mut writer = LayerWriter::new();
                    outcome.unknown_owners.extend(workdir(operation, &tree, NOW, &mut writer)?);
                    image.add(writer);
                    image
                }
                Operation::Copy(operation) => {
                    let mut image = input(0);
                    let parent = image.clone();
                    let parent_view = parent.view();
                    let parent_tree = ImageTree::new(&parent_view, &parent, "the image");
                    let from =
                        if operation.from == MountSource::Context { Image::default() } else { input(1) };
                    let from_view = from.view();
                    let from_tree = ImageTree::new(&from_view, &from, "the stage");
                    let source: &dyn SourceTree =
                        if operation.from == MountSource::Context { &context } else { &from_tree };
                    let mut selection: Selection = select(operation, source)?;
                    outcome.selections.push(selection.digest());
                    let mut writer = LayerWriter::new();
                    let copying = Copying {
                        operation,
                        parent: &parent_tree,
                        source,
                        scratch: &scratch,
                        now: NOW,
                        earlier: None,
                        is_canceled: &|| false,
                    };
                    let copied: Copied = copy(copying, &mut selection, &mut writer)?;
                    let written = image.add(writer);
                    assert_eq!(copied.changed(&written.index)?, None);
                    outcome.unknown_owners.extend(copied.unknown_owners);
                    image
                }
            };
            images.push(image);
        }
        context.save()?;
        if let Some(target) = lowered.target {
            outcome.image = images[target.index()].clone();
        }
        Ok(outcome)
    }
}
