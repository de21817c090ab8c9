//! COPY and ADD: what was selected, staged onto the parent's root by the rules of BuildKit's file operations
//! (`solver/llbsolver/file` and `tonistiigi/fsutil/copy`).

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use kiln_layer::{Kind, LayerIndex, LayerWriter, Metadata};
use kiln_oci::Digest;
use kiln_sys::root::Directory;

use crate::error::{Error, Result};
use crate::image_tree::{Contents, ImageTree};
use crate::mode::ModeChange;
use crate::operation::{CopyKind, CopyOperation};
use crate::owner::find_owner;
use crate::select::{RootContent, SelectedRoot, Selection};
use crate::staging::{Bytes, Expected, Making, Staged, Staging};
use crate::tree::{Below, LastLink, SourceTree, cleaned, join, shown, split};
use crate::unpack::{Spool, unpack};

/// What a COPY or ADD is given.
#[derive(Clone, Copy)]
pub(crate) struct Copying<'a> {
    pub(crate) operation: &'a CopyOperation,
    /// The root that is built on.
    pub(crate) parent: &'a ImageTree<'a>,
    /// The context, or the root that `--from` names.
    pub(crate) source: &'a dyn SourceTree,
    /// Takes a nameless file with what ADD unpacks.
    pub(crate) scratch: &'a Directory,
    /// Seconds since the epoch.
    pub(crate) now: i64,
}

/// What is known once everything was given to the layer writer.
#[derive(Debug)]
pub(crate) struct Copied {
    expected: Vec<Expected>,
    /// Names in `--chown` that the image does not know: their files belong to root.
    pub(crate) unknown_owners: Vec<String>,
}

impl Copied {
    /// The file of the source that was not as the key says when it was copied, if there is one.
    ///
    /// # Errors
    /// When the index is damaged.
    pub(crate) fn changed(&self, index: &LayerIndex) -> Result<Option<String>> {
        for expected in &self.expected {
            let written = index.find(&expected.path)?.and_then(|entry| entry.content());
            if written != Some(expected.content) {
                return Ok(Some(shown(&expected.source)));
            }
        }
        Ok(None)
    }
}

/// Gives the entries of a COPY's or ADD's layer to `out`. Nothing is read yet but archives to unpack and, in a stage or
/// image, what was selected without being walked.
///
/// Finish the writer, then ask [`Copied::changed`]. A writer that fails with `kiln_layer::Error::Changed` says the same:
/// a file changed since its key was made.
///
/// # Errors
/// When the destination cannot take what is copied, a mode or owner makes no sense, or an archive is damaged.
pub(crate) fn copy<'w>(
    copying: Copying<'w>,
    selection: &mut Selection,
    out: &mut LayerWriter<'w>,
) -> Result<Copied> {
    let Copying { operation, parent, source, scratch, now } = copying;
    let mode = operation.mode.as_deref().map(ModeChange::parse).transpose()?;
    // As in BuildKit, --chmod turns --link off.
    let unlinked = !operation.link || mode.is_some();
    let base: &dyn SourceTree = if unlinked { parent } else { &NothingBelow };
    let owner = match &operation.owner {
        Some(text) if unlinked => Some(find_owner(text, parent)?),
        Some(text) => {
            let nothing = kiln_layer::RootView::default();
            Some(find_owner(text, &ImageTree::new(&nothing, &NothingBelow, ""))?)
        }
        None => None,
    };
    let mut copier = Copier {
        staging: Staging::new(base, now, operation.epoch),
        source,
        owner: owner.as_ref().map(|owner| (owner.uid, owner.gid)),
        mode,
        destination: &operation.destination,
        spool: Spool::new(scratch),
    };
    for selected in &mut selection.sources {
        for root in &mut selected.roots {
            if operation.kind == CopyKind::Unpack
                && let RootContent::Tree { path, .. } = &root.content
                && copier.unpack(path)?
            {
                continue;
            }
            copier.root(root)?;
        }
    }
    let spool = copier.spool.finish()?;
    let expected = copier.staging.write(out, |bytes, size| match bytes {
        Bytes::None => kiln_layer::Source::Empty,
        Bytes::Inline(bytes) => kiln_layer::Source::Bytes(bytes.to_vec()),
        Bytes::Source(path) => open_later(source, path),
        Bytes::Parent(path) => open_later(parent, path),
        Bytes::Spool(offset) => spool.source(*offset, size),
    })?;
    Ok(Copied { expected, unknown_owners: owner.map(|owner| owner.unknown).unwrap_or_default() })
}

fn open_later<'w>(tree: &'w dyn SourceTree, path: &Arc<[u8]>) -> kiln_layer::Source<'w> {
    let path = Arc::clone(path);
    kiln_layer::Source::Open(Box::new(move || match tree.open(&path) {
        Ok((reader, _)) => {
            let reader: Box<dyn Read + 'w> = reader;
            Ok(reader)
        }
        Err(Error::Path(error)) => Err(kiln_layer::Error::File(error)),
        Err(Error::Layer(error)) => Err(error),
        Err(error) => Err(kiln_layer::Error::Read(io::Error::other(error))),
    }))
}

/// What `COPY --link` builds on.
struct NothingBelow;

impl SourceTree for NothingBelow {
    fn find(&self, path: &[u8]) -> Result<Option<crate::tree::Found>> {
        let metadata = Metadata::implied_directory();
        let root = crate::tree::Found { metadata, content: None, group: None, stamp: None };
        Ok(path.is_empty().then_some(root))
    }

    fn children(&self, _directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    fn open(&self, _path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<crate::tree::Stamp>)> {
        Ok((Box::new(io::empty()), None))
    }

    fn stored_digest(&self, _path: &[u8]) -> Result<Option<Digest>> {
        Ok(None)
    }

    fn hash(&self, _path: &[u8], _entries: &mut [Below]) -> Result<()> {
        Ok(())
    }

    fn hides(&self, _path: &[u8]) -> bool {
        false
    }

    fn place(&self) -> String {
        String::new()
    }
}

impl Contents for NothingBelow {
    fn open<'a>(
        &'a self,
        _view: &'a kiln_layer::RootView,
        _layer: usize,
        _entry: kiln_layer::index::Entry<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(Box::new(io::empty()))
    }
}

struct Copier<'a> {
    staging: Staging<'a>,
    source: &'a dyn SourceTree,
    owner: Option<(u32, u32)>,
    mode: Option<ModeChange>,
    destination: &'a str,
    spool: Spool<'a>,
}

impl Copier<'_> {
    /// How directories on the way are made: with `--chmod` in octal they get that mode, too.
    fn making(&self) -> Making {
        let mode = match self.mode {
            Some(ModeChange::Octal(mode)) => mode,
            _ => 0o755,
        };
        Making { mode, owner: self.owner }
    }

    /// Unpacks the file at `path` if it is an archive.
    fn unpack(&mut self, path: &[u8]) -> Result<bool> {
        let destination = cleaned(self.destination);
        unpack(&mut self.staging, self.source, path, &destination, self.owner, &mut self.spool)
    }

    /// Copies one selected file, or the contents of one selected directory.
    fn root(&mut self, root: &mut SelectedRoot) -> Result<()> {
        let making = self.making();
        let destination = cleaned(self.destination);
        let is_directory = self.destination.ends_with('/') || self.destination.ends_with("/.");
        let ensured = if is_directory { &destination[..] } else { split(&destination).0 };
        let ensured = self.staging.resolve(ensured, LastLink::Follow)?;
        self.staging.make_directories(&ensured, making)?;
        let mut target = self.staging.resolve(&destination, LastLink::Follow)?;
        let name = root.name.clone();
        let source = self.source;
        if let RootContent::Inline(bytes) = &root.content {
            let bytes = Arc::from(bytes.as_slice());
            target = self.file_target(target, &name)?;
            return self.inline(&target, bytes);
        }
        let path = match &root.content {
            RootContent::Tree { path, .. } => path.clone(),
            RootContent::Inline(_) => Vec::new(),
        };
        let entries = root.load(source)?;
        let Some((first, below)) = entries.split_first() else { return Ok(()) };
        if first.found.metadata.kind == Kind::Directory {
            self.directory(&target, first, &path, below)
        } else {
            let target = self.file_target(target, &name)?;
            self.entry(&target, &path, first, &mut HashMap::new())
        }
    }

    /// Where a file goes: into the destination if that is a directory.
    fn file_target(&mut self, destination: Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        let seen = self.staging.find(&destination)?;
        let into = seen.is_some_and(|seen| seen.metadata.kind == Kind::Directory);
        let target = if into { join(&destination, name) } else { destination };
        self.staging.make_directories(split(&target).0, self.making())?;
        Ok(target)
    }

    fn directory(&mut self, target: &[u8], first: &Below, path: &[u8], below: &[Below]) -> Result<()> {
        match self.staging.find(target)? {
            None => self.staging.make_directories(target, self.making())?,
            Some(seen) if seen.metadata.kind == Kind::Directory => {}
            Some(_) => return Err(Error::DirectoryOverFile(shown(target))),
        }
        let mut links = HashMap::new();
        for entry in below {
            let to = join(target, &entry.path);
            self.entry(&to, &join(path, &entry.path), entry, &mut links)?;
        }
        // Of the selected directory itself nothing but its time is taken over.
        if let Some(mut seen) = self.staging.find(target)? {
            seen.metadata.modified = self.staging.time(first.found.metadata.modified.seconds);
            self.staging.put(target, Staged::plain(seen.metadata))?;
        }
        Ok(())
    }

    fn inline(&mut self, target: &[u8], bytes: Arc<[u8]>) -> Result<()> {
        let mut metadata = Metadata::new(Kind::Regular, 0o644);
        metadata.size = bytes.len() as u64;
        metadata.modified = self.staging.made();
        self.adjust(&mut metadata);
        self.refuse_directory(target)?;
        let content = Some(Digest::of(&bytes));
        self.staging.put(target, Staged { metadata, bytes: Bytes::Inline(bytes), content, group: None })
    }

    /// Copies one entry to a resolved path whose directory is there.
    fn entry(
        &mut self,
        target: &[u8],
        path: &[u8],
        entry: &Below,
        links: &mut HashMap<(u64, u64), usize>,
    ) -> Result<()> {
        let found = &entry.found;
        let mut metadata = found.metadata.clone();
        metadata.modified = self.staging.time(metadata.modified.seconds);
        metadata.xattrs.retain(|(name, _)| name == b"security.capability");
        if metadata.kind == Kind::Directory {
            return self.subdirectory(target, metadata, entry.is_implied);
        }
        self.adjust(&mut metadata);
        self.refuse_directory(target)?;
        if metadata.kind != Kind::Regular {
            return self.staging.put(target, Staged::plain(metadata));
        }
        let group = found.group.map(|group| match links.get(&group) {
            Some(number) => *number,
            None => {
                let number = self.staging.new_group();
                links.insert(group, number);
                number
            }
        });
        let bytes = Bytes::Source(Arc::from(path));
        self.staging.put(target, Staged { metadata, bytes, content: found.content, group })
    }

    /// A directory below the selected one brings all its metadata, onto one that is there, too; one that is there only for
    /// the sake of what is below it brings its mode.
    fn subdirectory(&mut self, target: &[u8], mut metadata: Metadata, is_implied: bool) -> Result<()> {
        let plain_mode = metadata.mode;
        self.adjust(&mut metadata);
        match self.staging.find(target)? {
            Some(seen) if seen.metadata.kind != Kind::Directory => {
                return Err(Error::DirectoryOverFile(shown(target)));
            }
            Some(seen) if is_implied => metadata = Metadata { mode: plain_mode, ..seen.metadata },
            Some(seen) if metadata.xattrs.is_empty() => metadata.xattrs = seen.metadata.xattrs,
            _ => {}
        }
        self.staging.put(target, Staged::plain(metadata))
    }

    fn adjust(&self, metadata: &mut Metadata) {
        if let Some((uid, gid)) = self.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if let Some(mode) = self.mode.as_ref().filter(|_| metadata.kind != Kind::Symlink) {
            metadata.mode = mode.apply(metadata.mode, metadata.kind == Kind::Directory);
        }
    }

    fn refuse_directory(&self, target: &[u8]) -> Result<()> {
        match self.staging.find(target)? {
            Some(seen) if seen.metadata.kind == Kind::Directory => {
                Err(Error::FileOverDirectory(shown(target)))
            }
            _ => Ok(()),
        }
    }
}
