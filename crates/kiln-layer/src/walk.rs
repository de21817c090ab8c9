//! The one walk over a layer that comes in: digests, index and, if wanted, its files, in one pass.
//!
//! Three stages run at once: reading with decompression and the hash of the stream; parsing with the hash of each file;
//! writing of the files.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read};
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use kiln_oci::{DiffId, Digest};
use kiln_sys::root::Time;

use crate::archive::{self, Archive, Piece};
use crate::compression::Compression;
use crate::error::{EntryProblem, Error, Result};
use crate::index::LayerIndex;
use crate::index::build::{Builder, Content, New, Totals};
use crate::metadata::{Kind, is_overlay_attribute, normalise_capability};
use crate::path::{self, OPAQUE, WHITEOUT, split};
use crate::stream::{self, Chunk, ChunkReader, Streamed};
use crate::unpack::{Placed, Unpack, Unpacker};

/// How large a layer may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed tar, and of its files with their holes.
    pub bytes: u64,
    /// Entries.
    pub entries: u32,
    /// Components of symbolic links' targets that entries are looked for along: the way of a single one may be long.
    pub detours: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Detours of 64 components for as many entries as there may be: a second or two.
        Self { bytes: 256 << 30, entries: 4_000_000, detours: 1 << 28 }
    }
}

/// What a walk does beside digests and index.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// How large the layer may be.
    pub limits: Limits,
    /// Where its files go, if they are wanted now.
    pub unpack: Option<Unpack<'a>>,
    /// The largest layer whose files are wanted. They wait in memory until the walk knows; of a larger one none is written.
    pub largest_unpacked: Option<Size>,
}

/// A size of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of its files, with their holes.
    pub bytes: u64,
    /// Entries.
    pub entries: u32,
}

/// What a walk found.
#[derive(Debug)]
pub struct Walk {
    /// Digest of the bytes as they came.
    pub blob: Digest,
    /// Length of the bytes as they came.
    pub blob_size: u64,
    /// How they were compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the uncompressed tar.
    pub tar_size: u64,
    /// The index; its bytes are what is stored.
    pub index: LayerIndex,
    /// Whether its files were written.
    pub is_unpacked: bool,
}

/// As many symbolic links as the kernel follows in one path.
pub(crate) const LINKS: usize = 40;

/// Walks a layer to its end.
///
/// On an error whatever was unpacked is the caller's to remove. Hard links into lower layers, and the metadata of
/// directories that the layer only implies, are not in the snapshot when the index says that the layer does not stand
/// alone.
///
/// # Errors
/// When the layer is damaged, hostile or over a limit, or a file cannot be written.
pub fn walk<R: Read + Send>(reader: R, options: &Options<'_>) -> Result<Walk> {
    let limits = options.limits;
    let _span = kiln_trace::span("walk layer");
    let (chunk_sender, chunks) = mpsc::sync_channel(stream::DEPTH);
    let (streamed, unpacked, parsed) = thread::scope(|scope| {
        let streaming = scope.spawn(move || stream::run(reader, limits.bytes, &chunk_sender));
        let (writing, unpacking) = match &options.unpack {
            Some(unpack) => {
                let (sender, operations) = mpsc::sync_channel(stream::DEPTH);
                let writing = match options.largest_unpacked {
                    Some(largest) => Writing::Waiting { sender, largest, batches: Vec::new() },
                    None => Writing::Now(sender),
                };
                (writing, Some(scope.spawn(move || write(unpack, &operations))))
            }
            None => (Writing::Nothing, None),
        };
        let parsed = Walker::new(ChunkReader::new(chunks), limits, writing).run();
        let streamed = streaming.join().unwrap_or(Err(Error::Worker));
        let unpacked = unpacking.map_or(Ok(()), |thread| thread.join().unwrap_or(Err(Error::Worker)));
        (streamed, unpacked, parsed)
    });
    let (streamed, Parsed { builder, is_unpacked }) = match (streamed, unpacked, parsed) {
        (Ok(streamed), Ok(()), Ok(parsed)) => (streamed, parsed),
        // A stage that stopped because its neighbour did is not the cause.
        (streamed, unpacked, parsed) => {
            let errors = [streamed.err(), unpacked.err(), parsed.err()];
            return Err(errors
                .into_iter()
                .flatten()
                .find(|e| !matches!(e, Error::Worker))
                .unwrap_or(Error::Worker));
        }
    };
    let Streamed { blob, blob_size, compression, diff_id, size } = streamed;
    let index = builder.finish(&Totals { diff_id, tar_size: size, writer: 0 })?;
    Ok(Walk { blob, blob_size, compression, diff_id, tar_size: size, index, is_unpacked })
}

/// What the parsing stage tells the writing stage.
enum Operation {
    Entry(Placed),
    Data(Chunk, Range<usize>),
    Hole(u64),
}

/// Operations are handed over in batches: waking a thread costs more than most of them.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 512 << 10;

/// Whether what is parsed is handed on.
enum Writing {
    /// It is not.
    Nothing,
    /// At once.
    Now(SyncSender<Vec<Operation>>),
    /// At the end, if the layer is no larger than this.
    Waiting { sender: SyncSender<Vec<Operation>>, largest: Size, batches: Vec<Vec<Operation>> },
}

/// What the parsing stage made.
struct Parsed {
    builder: Builder,
    is_unpacked: bool,
}

fn write(unpack: &Unpack<'_>, operations: &Receiver<Vec<Operation>>) -> Result<()> {
    let mut unpacker = Unpacker::new(unpack)?;
    for batch in operations {
        let _span = kiln_trace::span("unpack files");
        for operation in batch {
            match operation {
                Operation::Entry(placed) => unpacker.entry(placed)?,
                Operation::Data(chunk, range) => unpacker.data(&chunk[range])?,
                Operation::Hole(length) => unpacker.hole(length)?,
            }
        }
    }
    unpacker.finish()
}

struct Walker {
    archive: Archive<ChunkReader>,
    builder: Builder,
    limits: Limits,
    writing: Writing,
    batch: Vec<Operation>,
    batch_bytes: usize,
    /// The symbolic links of this layer so far: entries whose path goes through one belong where it leads.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The directory that was looked for last: entries mostly come directory by directory.
    last: Option<Followed>,
    /// How many components the links' targets have added to the ways so far.
    detours: u64,
    /// Bytes of files so far, holes included.
    content_bytes: u64,
}

/// Where the way to a directory led.
struct Followed {
    directory: Vec<u8>,
    /// The same without symbolic links.
    resolved: Vec<u8>,
}

impl Followed {
    /// Whether a link that comes or goes at or below `path` may lead elsewhere. Where the way met none, only what is on it
    /// counts.
    fn depends_on(&self, path: &[u8]) -> bool {
        self.resolved != self.directory || self.directory == path || path::is_below(&self.directory, path)
    }
}

impl Walker {
    fn new(reader: ChunkReader, limits: Limits, writing: Writing) -> Self {
        Self {
            archive: Archive::new(reader),
            builder: Builder::new(),
            limits,
            writing,
            batch: Vec::new(),
            batch_bytes: 0,
            links: BTreeMap::new(),
            last: None,
            detours: 0,
            content_bytes: 0,
        }
    }

    fn run(mut self) -> Result<Parsed> {
        let _span = kiln_trace::span("parse tar");
        let mut entry = archive::Entry::default();
        let mut cleaned = Vec::new();
        while self.archive.next_entry(&mut entry)? {
            if self.builder.len() >= self.limits.entries as usize {
                return Err(Error::Limit { what: "entries", limit: self.limits.entries.into() });
            }
            path::clean(&entry.name, &mut cleaned);
            if path::components(&cleaned).any(is_aufs) {
                continue;
            }
            self.entry(&mut entry, &cleaned)?;
        }
        let is_unpacked = self.hand_over_the_rest()?;
        if self.archive.has_stray_padding() {
            self.builder.set_stray_padding();
        }
        // Padding and whatever follows the end still belong to the stream's digest.
        let reader = self.archive.reader();
        loop {
            let length = reader.fill_buf().map_err(Error::Read)?.len();
            if length == 0 {
                return Ok(Parsed { builder: self.builder, is_unpacked });
            }
            reader.consume(length);
        }
    }

    fn entry(&mut self, entry: &mut archive::Entry, cleaned: &[u8]) -> Result<()> {
        let (kind, path) = self.placed(entry, cleaned)?;
        let bad = |problem| Error::Entry { path: path::shown(&path), problem };
        if path.is_empty() && !matches!(kind, Kind::Directory | Kind::Opaque) {
            return Err(bad(EntryProblem::RootNotDirectory));
        }
        entry.xattrs.retain(|(name, _)| !is_overlay_attribute(name));
        for (_, value) in entry.xattrs.iter_mut().filter(|(name, _)| name == b"security.capability") {
            normalise_capability(value);
        }
        let link = match kind {
            Kind::Symlink if entry.link.is_empty() => return Err(bad(EntryProblem::EmptyLink)),
            Kind::Symlink if entry.link.len() > path::LONGEST => return Err(bad(EntryProblem::PathTooLong)),
            Kind::Symlink => std::mem::take(&mut entry.link),
            Kind::HardLink => {
                let mut target = Vec::new();
                path::clean(&entry.link, &mut target);
                path::check(&target)?;
                self.follow_parents(&target)?
            }
            _ => Vec::new(),
        };
        if kind == Kind::HardLink && link.is_empty() {
            return Err(bad(EntryProblem::LinkToDirectory));
        }
        let mode = match kind {
            Kind::Symlink => 0o777,
            Kind::Whiteout | Kind::Opaque => 0,
            _ => entry.mode,
        };
        let real = !kind.is_mark();
        let number = self.builder.add(&New {
            path: &path,
            kind,
            mode,
            uid: if real { entry.uid } else { 0 },
            gid: if real { entry.gid } else { 0 },
            modified: Time { seconds: entry.seconds, nanoseconds: entry.nanoseconds },
            size: if kind == Kind::Regular { entry.size } else { 0 },
            link: &link,
            device: if matches!(kind, Kind::CharacterDevice | Kind::BlockDevice) {
                entry.device
            } else {
                (0, 0)
            },
            xattrs: if real { &entry.xattrs } else { &[] },
            content_offset: if entry.sparse { entry.header_offset } else { entry.content_offset },
            sparse: entry.sparse && kind == Kind::Regular,
        })?;
        self.remember_links(kind, &path, &link);
        let keep = kind == Kind::Regular && self.builder.wants_fact(&path, entry.size);
        self.give_up_if_too_large(if kind == Kind::Regular { entry.size } else { 0 });
        if self.writes() {
            self.push(Operation::Entry(Placed {
                path,
                kind,
                mode,
                uid: entry.uid,
                gid: entry.gid,
                modified: Time { seconds: entry.seconds, nanoseconds: entry.nanoseconds },
                link,
                device: entry.device,
                xattrs: std::mem::take(&mut entry.xattrs),
            }))?;
        }
        if kind == Kind::Regular { self.content(number, entry.size, keep) } else { Ok(()) }
    }

    /// What an entry is in a layer, and where it belongs.
    fn placed(&mut self, entry: &archive::Entry, cleaned: &[u8]) -> Result<(Kind, Vec<u8>)> {
        let (parent, name) = split(cleaned);
        if name == OPAQUE {
            path::check(parent)?;
            let mut inside = parent.to_vec();
            inside.extend_from_slice(b"/x");
            return Ok((Kind::Opaque, split(&self.follow_parents(&inside)?).0.to_vec()));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::Entry { path: path::shown(cleaned), problem: EntryProblem::Whiteout });
            }
            let hidden = path::join(parent, hidden);
            path::check(&hidden)?;
            return Ok((Kind::Whiteout, self.follow_parents(&hidden)?));
        }
        path::check(cleaned)?;
        Ok((entry.kind_in_layer(), self.follow_parents(cleaned)?))
    }

    /// Replaces the symbolic links of this layer in the directories of `path`, inside the root. The last component stays.
    fn follow_parents(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        let (parent, name) = split(path);
        if self.links.is_empty() || parent.is_empty() {
            return Ok(path.strip_prefix(b"/").unwrap_or(path).to_vec());
        }
        let followed = match self.last.take_if(|last| last.directory == parent) {
            Some(same) => same,
            None => self.follow(parent, path)?,
        };
        let joined = path::join(&followed.resolved, name);
        self.last = Some(followed);
        path::check(&joined)?;
        Ok(joined)
    }

    /// Follows the way to a directory, for the entry at `path`.
    fn follow(&mut self, directory: &[u8], path: &[u8]) -> Result<Followed> {
        let look = |path: &[u8], _| Ok::<_, Error>(self.links.get(path));
        let mut detour = 0;
        let resolved = path::resolve_counting(directory, LINKS, &mut detour, look)?;
        self.detours += detour;
        if self.detours > self.limits.detours {
            return Err(Error::Limit { what: "steps along symbolic links", limit: self.limits.detours });
        }
        let resolved =
            resolved.ok_or_else(|| Error::Entry { path: path::shown(path), problem: EntryProblem::Loop })?;
        Ok(Followed { directory: directory.to_vec(), resolved })
    }

    fn remember_links(&mut self, kind: Kind, path: &[u8], target: &[u8]) {
        if kind.is_mark() {
            return;
        }
        let mut changed = true;
        if kind == Kind::Symlink {
            self.links.insert(path.to_vec(), target.to_vec());
        } else {
            changed = self.links.remove(path).is_some();
        }
        if kind == Kind::HardLink
            && let Some(target) = self.links.get(target).cloned()
        {
            // Another name of a symbolic link is one, too.
            self.links.insert(path.to_vec(), target);
            changed = true;
        }
        if kind != Kind::Directory && !self.links.is_empty() {
            // What is no directory has nothing below it any more.
            let start = [path, b"/"].concat();
            while let Some((below, _)) =
                self.links.range(start.clone()..).next().filter(|(p, _)| path::is_below(p, path))
            {
                let below = below.clone();
                self.links.remove(&below);
                changed = true;
            }
        }
        if changed {
            self.last.take_if(|last| last.depends_on(path));
        }
    }

    fn content(&mut self, number: u32, size: u64, keep: bool) -> Result<()> {
        self.content_bytes = self.content_bytes.saturating_add(size);
        if self.content_bytes > self.limits.bytes {
            return Err(Error::Limit { what: "bytes in files", limit: self.limits.bytes });
        }
        let mut content = Content::new(keep);
        loop {
            match self.archive.piece(usize::MAX)? {
                Piece::Data(bytes) => {
                    content.update(bytes);
                    let length = bytes.len();
                    if self.writes() {
                        let (chunk, range) = self.archive.reader().share(length);
                        self.batch_bytes += length;
                        self.push(Operation::Data(chunk, range))?;
                    }
                    self.archive.consume(length);
                }
                Piece::Hole(length) => {
                    hash_zeros(&mut content, length);
                    if self.writes() {
                        self.push(Operation::Hole(length))?;
                    }
                }
                Piece::End => break,
            }
        }
        content.finish(&mut self.builder, number);
        Ok(())
    }

    fn push(&mut self, operation: Operation) -> Result<()> {
        self.batch.push(operation);
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        match &mut self.writing {
            Writing::Nothing => Ok(()),
            Writing::Now(sender) => send(sender, batch),
            Writing::Waiting { batches, .. } => {
                batches.push(batch);
                Ok(())
            }
        }
    }

    fn writes(&self) -> bool {
        !matches!(self.writing, Writing::Nothing)
    }

    /// Forgets what waits for a layer that turns out larger, with an entry of `more` bytes, than those that are unpacked.
    fn give_up_if_too_large(&mut self, more: u64) {
        if let Writing::Waiting { largest, .. } = &self.writing
            && (self.builder.len() > largest.entries as usize
                || self.content_bytes.saturating_add(more) > largest.bytes)
        {
            self.writing = Writing::Nothing;
            self.batch.clear();
        }
    }

    /// Whether the files are written.
    fn hand_over_the_rest(&mut self) -> Result<bool> {
        self.flush()?;
        match std::mem::replace(&mut self.writing, Writing::Nothing) {
            Writing::Nothing => Ok(false),
            Writing::Now(_) => Ok(true),
            Writing::Waiting { sender, batches, .. } => {
                batches.into_iter().try_for_each(|batch| send(&sender, batch))?;
                Ok(true)
            }
        }
    }
}

fn send(sender: &SyncSender<Vec<Operation>>, batch: Vec<Operation>) -> Result<()> {
    let _span = kiln_trace::span("wait for unpacking");
    sender.send(batch).map_err(|_| Error::Worker)
}

/// Marks of AUFS itself (`.wh..wh.aufs`, `.wh..wh.plnk`), which mean nothing to anybody else.
fn is_aufs(component: &[u8]) -> bool {
    component.starts_with(b".wh..wh.") && component != OPAQUE
}

pub(crate) fn hash_zeros(content: &mut Content, mut length: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while length > 0 {
        let now = length.min(ZEROS.len() as u64) as usize;
        content.update(&ZEROS[..now]);
        length -= now as u64;
    }
}

#[cfg(test)]
mod tests {
    use kiln_sys::root::Root;
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::Metadata;
    use crate::unpack::{Ownership, Whiteouts};
    use crate::view::RootView;
    use crate::writer::{LayerWriter, Outputs, Source};

    /// Of a layer that turns out too large not even the files are there that came before that.
    #[test]
    fn only_small_layers_are_unpacked_where_that_is_wanted() {
        let mut writer = LayerWriter::new();
        // More than are handed over at once.
        for number in 0..300_u32 {
            let metadata = Metadata { size: 2, ..Metadata::new(Kind::Regular, 0o644) };
            writer.add(format!("{number:03}").as_bytes(), metadata, Source::Bytes(b"x\n".to_vec())).unwrap();
        }
        let mut tar = Vec::new();
        writer.finish(&RootView::default(), Outputs { tar: Some(&mut tar), unpack: None }).unwrap();
        for (bytes, entries, expect) in
            [(600, 300, 300), (599, 300, 0), (600, 299, 0), (0, 0, 0), (u64::MAX, u32::MAX, 300)]
        {
            let directory = tempfile::tempdir().unwrap();
            let root = Root::open(directory.path()).unwrap();
            let (whiteouts, ownership) = (Whiteouts::Refuse, Ownership::Ignore);
            let options = Options {
                unpack: Some(Unpack { root: &root, whiteouts, ownership, clamp: None }),
                largest_unpacked: Some(Size { bytes, entries }),
                ..Options::default()
            };
            let walk = walk(&tar[..], &options).unwrap();
            assert_eq!(walk.is_unpacked, expect > 0, "{bytes} {entries}");
            assert_eq!((walk.index.entry_count(), walk.index.content_size()), (300, 600));
            let files = fs_err::read_dir(directory.path()).unwrap();
            let whole = files.filter(|file| fs_err::read(file.as_ref().unwrap().path()).unwrap() == b"x\n");
            assert_eq!(whole.count(), expect, "{bytes} {entries}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// What is remembered of a way is what following it again would give, among the links that are there.
        #[test]
        fn ways_that_are_remembered_are_true(
            entries in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        Kind::Directory, Kind::Regular, Kind::Symlink, Kind::Symlink, Kind::HardLink, Kind::Whiteout,
                    ]),
                    "[ab][+.]?(/[+.]?[ab]){0,3}",
                    "(/|\\.\\./|\\./)?([ab][+.]?(/[+.]?[ab]){0,2})?",
                ),
                0..24,
            ),
        ) {
            let (_sender, chunks) = mpsc::sync_channel(1);
            let mut walker = Walker::new(ChunkReader::new(chunks), Limits::default(), Writing::Nothing);
            let mut links: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            for (kind, path, target) in &entries {
                let (directory, _) = split(path.as_bytes());
                let there =
                    |path: &[u8]| links.iter().find(|link| link.0 == path).map(|link| link.1.clone());
                let expect = path::resolve(directory, LINKS, |path, _| Ok::<_, Error>(there(path)));
                let found = walker.follow_parents(path.as_bytes()).ok();
                let found_parent = found.as_deref().map(|found| split(found).0.to_vec());
                prop_assert_eq!(found_parent, expect.expect("nothing fails"));
                let Some(found) = found else { continue };
                walker.remember_links(*kind, &found, target.as_bytes());
                let new = match kind {
                    Kind::Whiteout => continue,
                    Kind::Symlink => Some(target.clone().into_bytes()),
                    Kind::HardLink if found == target.as_bytes() => None,
                    Kind::HardLink => there(target.as_bytes()),
                    _ => None,
                };
                let is_there = |link: &[u8]| {
                    let mut above = path::components(link);
                    let is_at_or_below = path::components(&found).all(|name| above.next() == Some(name));
                    !is_at_or_below || *kind == Kind::Directory && link != found
                };
                links.retain(|link| is_there(&link.0));
                links.extend(new.map(|new| (found.clone(), new)));
            }
        }
    }
}
