//! Making a layer: entries in any order become a tar, its digests, its index and, if wanted, its snapshot, in one pass.
//!
//! Every source is read once. Reading with the hash of each file, the hash of the stream, its writing, and the writing of
//! the snapshot run at once.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::thread;

use kiln_oci::DiffId;
use kiln_sys::root::Time;

use crate::archive::MAXIMUM_EXTENDED;
use crate::complete::placed;
use crate::error::{EntryProblem, Error, Result};
use crate::index::LayerIndex;
use crate::index::build::{Builder, Content, New, Totals};
use crate::metadata::{Kind, Metadata, Xattr, normalise_capability};
use crate::outlet::Outlets;
use crate::path::{self, WHITEOUT, split};
use crate::tar::{self, WRITER};
use crate::unpack::Unpack;
use crate::view::RootView;
use crate::walk::{LINKS, Limits};

/// A file's bytes, opened when its turn comes.
pub type Opener<'a> = Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>> + 'a>;

/// Where the bytes of an entry come from.
pub enum Source<'a> {
    /// It has none: anything but a regular file, or an empty one.
    Empty,
    /// These.
    Bytes(Vec<u8>),
    /// A reader that gives exactly as many bytes as the metadata says.
    Open(Opener<'a>),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Open(_) => "Open",
        })
    }
}

#[derive(Debug)]
struct Pending<'a> {
    path: Vec<u8>,
    metadata: Metadata,
    source: Source<'a>,
}

/// A layer being made.
#[derive(Debug, Default)]
pub struct LayerWriter<'a> {
    entries: Vec<Pending<'a>>,
    /// What they take in a tar, at least.
    bytes: u64,
}

/// What takes the uncompressed tar.
pub type Tar<'a> = &'a mut (dyn Write + Send);

/// Where a layer goes beside its digests and index.
#[derive(Default)]
pub struct Outputs<'a> {
    /// Takes the uncompressed tar, in large pieces.
    pub tar: Option<Tar<'a>>,
    /// Takes the files.
    pub unpack: Option<Unpack<'a>>,
}

/// A layer that was made.
#[derive(Debug)]
pub struct Written {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the uncompressed tar.
    pub tar_size: u64,
    /// The index; its bytes are what is stored.
    pub index: LayerIndex,
}

impl<'a> LayerWriter<'a> {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries were added; a path that was added twice counts once.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry; the last one for a path wins. A hard link's target is another path of this layer, or of a lower
    /// one. Attributes and times are reduced to what the tar writer writes.
    ///
    /// # Errors
    /// When path or attributes cannot be in a layer, and when that would become larger than a layer that comes in may be: a file of
    /// holes is made in no time, and takes hours to read.
    pub fn add(&mut self, path: &[u8], mut metadata: Metadata, source: Source<'a>) -> Result<()> {
        let bad = |problem| Error::Entry { path: path::shown(path), problem };
        if path::components(path).any(|name| name.starts_with(WHITEOUT)) {
            return Err(bad(EntryProblem::ReservedName));
        }
        let mut cleaned = Vec::new();
        path::clean(path, &mut cleaned);
        if cleaned.is_empty() && !matches!(metadata.kind, Kind::Directory | Kind::Opaque) {
            return Err(bad(EntryProblem::RootNotDirectory));
        }
        path::check(&cleaned)?;
        reduce(&mut metadata);
        if metadata.xattrs.iter().any(|(name, _)| name.contains(&b'=')) {
            return Err(bad(EntryProblem::AttributeName));
        }
        let record = |(name, value): &Xattr| name.len() + value.len() + RECORD;
        if metadata.xattrs.iter().map(record).sum::<usize>() as u64 > MAXIMUM_EXTENDED - PATHS {
            return Err(bad(EntryProblem::Attributes));
        }
        let block = tar::BLOCK as u64;
        let limits = Limits::default();
        self.bytes = self
            .bytes
            .saturating_add(block)
            .saturating_add(metadata.size.div_ceil(block).saturating_mul(block));
        if self.bytes > limits.bytes {
            return Err(Error::Limit { what: "bytes", limit: limits.bytes });
        }
        if self.entries.len() >= limits.entries as usize {
            return Err(Error::Limit { what: "entries", limit: limits.entries.into() });
        }
        self.entries.push(Pending { path: cleaned, metadata, source });
        Ok(())
    }

    /// Puts the entries in order and makes the layer. Parents that were not added get the metadata that `lower` has for
    /// them, or mode 0755, owner 0:0 and their first child's time.
    ///
    /// # Errors
    /// When a source, the tar or the snapshot cannot be read or written; a source with another size than announced is
    /// [`Error::Changed`].
    pub fn finish(mut self, lower: &RootView, outputs: Outputs<'_>) -> Result<Written> {
        let order = kiln_trace::span("order entries");
        self.settle();
        self.add_parents(lower)?;
        self.order_links()?;
        drop(order);
        let entries = self.entries;
        let (written, ended) = thread::scope(|scope| {
            let mut out = Outlets::new(scope, outputs);
            let emitter = Emitter { builder: Builder::new(), out: &mut out, header: Vec::new() };
            let written = emitter.run(entries);
            let ended = out.end(written.is_ok());
            (written, ended)
        });
        match (written, ended) {
            (Ok((builder, tar_size)), Ok(diff_id)) => {
                let index = builder.finish(&Totals { diff_id, tar_size, writer: WRITER })?;
                Ok(Written { diff_id, tar_size, index })
            }
            (written, ended) => {
                let errors = [ended.err(), written.err()];
                Err(errors
                    .into_iter()
                    .flatten()
                    .find(|e| !matches!(e, Error::Worker))
                    .unwrap_or(Error::Worker))
            }
        }
    }

    /// Sorts, and leaves one real entry and at most one mark for each path.
    fn settle(&mut self) {
        self.entries.sort_by(|left, right| path::compare(&left.path, &right.path));
        let mut settled: Vec<Pending<'a>> = Vec::with_capacity(self.entries.len());
        let mut entries = std::mem::take(&mut self.entries).into_iter().peekable();
        while let Some(first) = entries.next() {
            let (mut real, mut mark) = (None, None);
            let mut next = Some(first);
            while let Some(entry) = next {
                let path = entry.path.clone();
                if entry.metadata.kind.is_mark() {
                    mark = Some(entry);
                } else {
                    real = Some(entry);
                }
                next = entries.next_if(|entry| entry.path == path);
            }
            let directory = real.as_ref().is_none_or(|real| real.metadata.kind == Kind::Directory);
            if let (Some(mark), Some(_)) = (&mut mark, &real) {
                mark.metadata.kind = Kind::Opaque;
            }
            settled.extend(real);
            settled.extend(mark.filter(|_| directory));
        }
        self.entries = settled;
    }

    fn add_parents(&mut self, lower: &RootView) -> Result<()> {
        let mut missing: Vec<Pending<'a>> = Vec::new();
        let mut above: Vec<&[u8]> = vec![b""];
        for entry in &self.entries {
            let parent = match entry.metadata.kind {
                Kind::Opaque => entry.path.as_slice(),
                _ => split(&entry.path).0,
            };
            while above.last().is_some_and(|top| *top != parent && !path::is_below(parent, top)) {
                above.pop();
            }
            while let Some(top) = above.last().filter(|top| **top != parent) {
                let skip = if top.is_empty() { 0 } else { top.len() + 1 };
                let end = parent[skip..]
                    .iter()
                    .position(|byte| *byte == b'/')
                    .map_or(parent.len(), |end| skip + end);
                let path = &parent[..end];
                let below = lower.lookup(path)?.filter(|node| node.is_directory());
                let mut metadata = match &below {
                    Some(node) => lower.metadata(node)?,
                    None => Metadata { modified: entry.metadata.modified, ..Metadata::implied_directory() },
                };
                reduce(&mut metadata);
                missing.push(Pending { path: path.to_vec(), metadata, source: Source::Empty });
                above.push(path);
            }
            if entry.metadata.kind == Kind::Directory && !entry.path.is_empty() {
                above.push(&entry.path);
            }
        }
        if !missing.is_empty() {
            self.entries.extend(missing);
            // Stable: a directory that was missing comes before the mark on it, as it was added later with the same path
            // only when no real entry had it.
            self.entries.sort_by(|left, right| {
                path::compare(&left.path, &right.path)
                    .then(left.metadata.kind.is_mark().cmp(&right.metadata.kind.is_mark()))
            });
        }
        Ok(())
    }

    /// The first path in order holds the content, the others are links to it.
    fn order_links(&mut self) -> Result<()> {
        let mut groups: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        for (number, entry) in self.entries.iter().enumerate() {
            if entry.metadata.kind == Kind::HardLink {
                groups.entry(self.linked_file(entry)).or_default().push(number);
            }
        }
        for (target, mut links) in groups {
            let Some(target) = self.position(&target) else { continue };
            if self.entries[target].metadata.kind == Kind::Directory {
                let problem = EntryProblem::LinkToDirectory;
                return Err(Error::Entry { path: path::shown(&self.entries[links[0]].path), problem });
            }
            links.retain(|link| *link != target);
            let first = links.iter().copied().fold(target, usize::min);
            let mut file = self.entries[target].metadata.clone();
            let source = std::mem::replace(&mut self.entries[target].source, Source::Empty);
            let path = self.entries[first].path.clone();
            for number in links.into_iter().chain([target]) {
                let metadata = Metadata {
                    kind: Kind::HardLink,
                    size: 0,
                    link: path.clone(),
                    xattrs: Vec::new(),
                    ..file.clone()
                };
                self.entries[number].metadata = metadata;
            }
            file.modified.nanoseconds = 0;
            self.entries[first].metadata = file;
            self.entries[first].source = source;
        }
        Ok(())
    }

    /// The position of the real entry for `path`.
    fn position(&self, path: &[u8]) -> Option<usize> {
        let order = |entry: &Pending<'_>| {
            path::compare(&entry.path, path).then(entry.metadata.kind.is_mark().cmp(&false))
        };
        self.entries.binary_search_by(order).ok()
    }

    /// The path that a hard link means at the end of a row of links.
    fn linked_file(&self, link: &Pending<'_>) -> Vec<u8> {
        let mut target = link.metadata.link.clone();
        for _ in 0..LINKS {
            match self.position(&target).map(|position| &self.entries[position].metadata) {
                Some(next) if next.kind == Kind::HardLink => target.clone_from(&next.link),
                _ => break,
            }
        }
        target
    }
}

/// More than a record takes besides an attribute's name and value: its length, `SCHILY.xattr.`, `=` and a line break.
const RECORD: usize = 32;
/// More than the records of an entry's path, link and numbers take.
const PATHS: u64 = 16 << 10;

/// Leaves what the tar writer writes.
fn reduce(metadata: &mut Metadata) {
    metadata.modified = Time { seconds: metadata.modified.seconds, nanoseconds: 0 };
    metadata.xattrs.retain(|(name, _)| is_written_attribute(name));
    metadata.xattrs.sort();
    for (name, value) in &mut metadata.xattrs {
        if name == b"security.capability" {
            normalise_capability(value);
        }
    }
    match metadata.kind {
        Kind::Symlink => metadata.mode = 0o777,
        Kind::Whiteout | Kind::Opaque => *metadata = Metadata::new(metadata.kind, 0),
        _ => {}
    }
    if metadata.kind != Kind::Regular {
        metadata.size = 0;
    }
}

/// Whether the tar writer writes an attribute.
pub(crate) fn is_written_attribute(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Makes the bytes of the tar and the index of it.
struct Emitter<'o, 'scope, 'env, 'a> {
    builder: Builder,
    out: &'o mut Outlets<'scope, 'env, 'a>,
    header: Vec<u8>,
}

impl<'scope, 'a: 'scope> Emitter<'_, 'scope, '_, 'a> {
    fn run(mut self, entries: Vec<Pending<'_>>) -> Result<(Builder, u64)> {
        let mut span = kiln_trace::span("read files");
        for entry in entries {
            self.entry(entry)?;
            span.count(1);
        }
        self.out.put(&[0; 2 * tar::BLOCK])?;
        Ok((self.builder, self.out.position()))
    }

    fn entry(&mut self, entry: Pending<'_>) -> Result<()> {
        let Pending { path, metadata, source } = entry;
        self.header.clear();
        tar::write_header(&path, &metadata, &mut self.header);
        self.out.put(&self.header)?;
        let regular = metadata.kind == Kind::Regular;
        let number = self.builder.add(&New {
            path: &path,
            kind: metadata.kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            modified: metadata.modified,
            size: metadata.size,
            link: &metadata.link,
            device: metadata.device,
            xattrs: &metadata.xattrs,
            content_offset: self.out.position(),
            sparse: false,
        })?;
        if !regular && !self.out.wants_files() {
            return Ok(());
        }
        let keep = regular && self.builder.wants_fact(&path, metadata.size);
        let size = metadata.size;
        let shown = if regular { path.clone() } else { Vec::new() };
        if self.out.wants_files() {
            self.out.entry(placed(path, metadata));
        }
        if regular {
            let mut content = Content::new(keep);
            let read = self.content(source, size, &mut content)?;
            if read != size {
                return Err(Error::Changed { path: path::shown(&shown), expected: size });
            }
            content.finish(&mut self.builder, number);
            let padding = (size.wrapping_neg() % tar::BLOCK as u64) as usize;
            self.out.put(&[0; tar::BLOCK][..padding])?;
        }
        Ok(())
    }

    /// Copies a source; the number of bytes it had, at most one more than announced.
    fn content(&mut self, source: Source<'_>, size: u64, content: &mut Content) -> Result<u64> {
        let mut reader: Box<dyn Read + '_> = match source {
            Source::Empty => return Ok(0),
            Source::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
            Source::Open(open) => open()?,
        };
        let mut total = 0;
        loop {
            // One byte more than announced shows a file that grew.
            let room = self.out.room((size - total).saturating_add(1))?;
            let length = match reader.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Read(error)),
                Ok(0) => return Ok(total),
                Ok(length) => length,
            };
            total += length as u64;
            if total > size {
                return Ok(total);
            }
            content.update(self.out.fill(length));
        }
    }
}
