//! The layer index: what a layer holds, read in place (docs/formats.md, section 2).

pub(crate) mod build;

use std::fs::File;
use std::ops::Range;

use kiln_oci::{DiffId, Digest};
use kiln_sys::mmap::Map;
use kiln_sys::root::FileError;

use crate::error::{Error, Result};
use crate::metadata::{Kind, Metadata, Time};
use crate::path;

const MAGIC: &[u8; 8] = b"kilnidx\n";
const VERSION: u32 = 1;
const HEADER: usize = 96;
const SECTION: usize = 24;
const RECORD: usize = 112;
/// "In a lower layer", as the entry a hard link points to.
const LOWER: u32 = u32::MAX;
const FLAG_SUPERSEDED: u8 = 1;
const FLAG_SPARSE: u8 = 2;
const FLAG_STANDS_ALONE: u32 = 1;
const FLAG_MARKS: u32 = 2;
const FLAG_STRAY_PADDING: u32 = 4;

/// Sections, by their number in the format.
#[derive(Clone, Copy)]
enum Section {
    Entries = 1,
    Strings = 2,
    Sorted = 3,
    Trees = 4,
    Xattrs = 5,
    Facts = 6,
    Frames = 7,
}

const SECTIONS: usize = 7;

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Map),
}

/// The index of one layer.
///
/// Opening checks the frame; every reading checks its bounds. A damaged index gives errors or wrong answers, never a
/// panic.
#[derive(Debug)]
pub struct LayerIndex {
    bytes: Bytes,
    sections: [Range<usize>; SECTIONS],
}

/// Where the content of a hard link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// The entry is no hard link.
    None,
    /// Another entry of this layer.
    Entry(u32),
    /// The path, in a lower layer.
    Lower,
}

impl LayerIndex {
    /// Maps the index in `file`.
    ///
    /// # Errors
    /// When it cannot be mapped, is damaged or newer than this kiln.
    pub fn open(file: &File, name: &std::path::Path) -> Result<Self> {
        let map = Map::of(file).map_err(|source| FileError {
            operation: "map",
            path: name.to_path_buf(),
            source,
        })?;
        Self::check(Bytes::Mapped(map))
    }

    /// Takes the bytes of an index.
    ///
    /// # Errors
    /// When it is damaged or newer than this kiln.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::check(Bytes::Owned(bytes))
    }

    fn check(bytes: Bytes) -> Result<Self> {
        let mut index = Self { bytes, sections: [const { 0..0 }; SECTIONS] };
        let all = index.bytes();
        if all.len() < HEADER || &all[..8] != MAGIC {
            return Err(Error::Index("no index file"));
        }
        let version = u32_at(all, 8);
        if version != VERSION {
            return Err(Error::IndexVersion { what: "file", found: version, known: VERSION });
        }
        if u64_at(all, 56) != all.len() as u64 {
            return Err(Error::Index("wrong length"));
        }
        let count = u32_at(all, 12) as usize;
        let table = all.get(HEADER..).and_then(|rest| rest.get(..count.checked_mul(SECTION)?));
        let table = table.ok_or(Error::Index("section table outside of the file"))?;
        let mut sections = [const { 0..0 }; SECTIONS];
        for section in table.chunks_exact(SECTION) {
            let (id, version) = (u32_at(section, 0), u32_at(section, 4));
            let Some(slot) = (id as usize).checked_sub(1).and_then(|slot| sections.get_mut(slot)) else {
                continue;
            };
            if version != 1 {
                return Err(Error::IndexVersion { what: "section", found: version, known: 1 });
            }
            let start = usize::try_from(u64_at(section, 8)).ok();
            let range = start.and_then(|start| {
                let end = start.checked_add(usize::try_from(u64_at(section, 16)).ok()?)?;
                (end <= all.len()).then_some(start..end)
            });
            *slot = range.ok_or(Error::Index("section outside of the file"))?;
        }
        let (entries, effective) = (u32_at(all, 64) as usize, u32_at(all, 68) as usize);
        let sizes =
            [(0, entries.checked_mul(RECORD)), (2, effective.checked_mul(4)), (3, effective.checked_mul(32))];
        if sizes.into_iter().any(|(slot, size)| Some(sections[slot].len()) != size) {
            return Err(Error::Index("sections disagree with the header"));
        }
        index.sections = sections;
        Ok(index)
    }

    /// The same index with a further section.
    fn with_section(&self, section: Section, content: &[u8]) -> Result<Self> {
        let all = self.bytes();
        let count = u32_at(all, 12) as usize;
        let table_end = HEADER + count * SECTION;
        let mut file = Vec::with_capacity(all.len() + SECTION + content.len());
        file.extend_from_slice(&all[..12]);
        file.extend_from_slice(&(count as u32 + 1).to_le_bytes());
        file.extend_from_slice(&all[16..56]);
        let total = all.len() + SECTION + content.len();
        file.extend_from_slice(&(total as u64).to_le_bytes());
        file.extend_from_slice(&all[64..HEADER]);
        for entry in all[HEADER..table_end].chunks_exact(SECTION) {
            file.extend_from_slice(&entry[..8]);
            file.extend_from_slice(&(u64_at(entry, 8) + SECTION as u64).to_le_bytes());
            file.extend_from_slice(&entry[16..]);
        }
        for number in [section as u32, 1] {
            file.extend_from_slice(&number.to_le_bytes());
        }
        file.extend_from_slice(&((all.len() + SECTION) as u64).to_le_bytes());
        file.extend_from_slice(&(content.len() as u64).to_le_bytes());
        file.extend_from_slice(&all[table_end..]);
        file.extend_from_slice(content);
        Self::from_bytes(file)
    }

    /// The index with the frames of its tar: see [`crate::frames`].
    pub(crate) fn with_frames(&self, compressed: &[u8]) -> Result<Self> {
        self.with_section(Section::Frames, compressed)
    }

    /// The compressed frames, if the index keeps them.
    pub(crate) fn frames(&self) -> Option<&[u8]> {
        Some(self.section(Section::Frames)).filter(|frames| !frames.is_empty())
    }

    /// Whether the tar can be made again from this index and the layer's snapshot, though it is foreign.
    pub fn has_frames(&self) -> bool {
        self.frames().is_some()
    }

    /// The file's bytes, for storing it.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }

    /// Whether it says the same of the layer as one that was made of the tar just now. Who wrote the tar and how it is made again
    /// are not in the tar.
    pub fn agrees_with(&self, walked: &Self) -> bool {
        let header = |index: &Self| {
            let bytes = index.bytes();
            [bytes[16..56].to_vec(), bytes[64..84].to_vec()]
        };
        let sections = [
            Section::Entries,
            Section::Strings,
            Section::Sorted,
            Section::Trees,
            Section::Xattrs,
            Section::Facts,
        ];
        header(self) == header(walked)
            && sections.into_iter().all(|section| self.section(section) == walked.section(section))
    }

    fn section(&self, section: Section) -> &[u8] {
        self.bytes().get(self.sections[section as usize - 1].clone()).unwrap_or_default()
    }

    /// The diff ID of the layer.
    pub fn diff_id(&self) -> DiffId {
        DiffId(digest_at(self.bytes(), 16))
    }

    /// Length of the uncompressed tar.
    pub fn tar_size(&self) -> u64 {
        u64_at(self.bytes(), 48)
    }

    /// How many entries the tar has.
    pub fn entry_count(&self) -> u32 {
        u32_at(self.bytes(), 64)
    }

    /// How many entries the effective tree has, marks included.
    pub fn effective_count(&self) -> u32 {
        u32_at(self.bytes(), 68)
    }

    /// Sum of the sizes of the regular files in the effective tree, hard links once.
    pub fn content_size(&self) -> u64 {
        u64_at(self.bytes(), 72)
    }

    /// Whether the layer implies no directory and links to no lower file, so that its snapshot fits any chain.
    pub fn stands_alone(&self) -> bool {
        u32_at(self.bytes(), 80) & FLAG_STANDS_ALONE != 0
    }

    /// Whether the layer hides anything of lower layers.
    pub fn has_marks(&self) -> bool {
        u32_at(self.bytes(), 80) & FLAG_MARKS != 0
    }

    /// Whether the tar has anything but zeros behind a file in its last block.
    pub fn has_stray_padding(&self) -> bool {
        u32_at(self.bytes(), 80) & FLAG_STRAY_PADDING != 0
    }

    /// The version of kiln's tar writer that made the layer; none for a foreign one.
    pub fn writer_version(&self) -> Option<u32> {
        Some(u32_at(self.bytes(), 84)).filter(|version| *version != 0)
    }

    /// The entry with this number, in tar order.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn entry(&self, number: u32) -> Result<Entry<'_>> {
        let start = (number as usize).checked_mul(RECORD).ok_or(Error::Index("entry number"))?;
        let record =
            self.section(Section::Entries).get(start..).and_then(|rest| rest.first_chunk::<RECORD>());
        let record = record.ok_or(Error::Index("entry number"))?;
        let strings = self.section(Section::Strings);
        let path = slice(strings, u32_at(record, 0), u32_at(record, 4)).ok_or(Error::Index("path"))?;
        let link = slice(strings, u32_at(record, 40), u32_at(record, 44)).ok_or(Error::Index("link"))?;
        let kind = Kind::from_number(record[8]).ok_or(Error::Index("kind"))?;
        let (first, count) = (u32_at(record, 52) as usize, u32_at(record, 56) as usize);
        let range = first
            .checked_mul(16)
            .zip(count.checked_mul(16))
            .and_then(|(start, length)| self.section(Section::Xattrs).get(start..)?.get(..length));
        let xattrs = range.ok_or(Error::Index("xattrs"))?;
        for xattr in xattrs.chunks_exact(16) {
            let name = slice(strings, u32_at(xattr, 0), u32_at(xattr, 4));
            let value = slice(strings, u32_at(xattr, 8), u32_at(xattr, 12));
            name.and(value).ok_or(Error::Index("xattr"))?;
        }
        Ok(Entry { number, record, path, link, kind, strings, xattrs })
    }

    /// All entries in tar order, superseded ones included.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry<'_>>> {
        (0..self.entry_count()).map(|number| self.entry(number))
    }

    /// The entry at `position` of the effective tree in path order.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn effective(&self, position: u32) -> Result<Entry<'_>> {
        let start = position as usize * 4;
        let number = self.section(Section::Sorted).get(start..).and_then(|rest| rest.first_chunk::<4>());
        self.entry(u32::from_le_bytes(*number.ok_or(Error::Index("position"))?))
    }

    /// The effective tree in path order.
    pub fn tree(&self) -> impl Iterator<Item = Result<Entry<'_>>> {
        (0..self.effective_count()).map(|position| self.effective(position))
    }

    pub(crate) fn effective_path(&self, position: u32) -> Result<&[u8]> {
        let start = position as usize * 4;
        let number = self.section(Section::Sorted).get(start..).and_then(|rest| rest.first_chunk::<4>());
        let number = u32::from_le_bytes(*number.ok_or(Error::Index("position"))?) as usize;
        let record = number.checked_mul(RECORD).and_then(|start| self.section(Section::Entries).get(start..));
        let record = record.filter(|record| record.len() >= RECORD).ok_or(Error::Index("entry number"))?;
        slice(self.section(Section::Strings), u32_at(record, 0), u32_at(record, 4))
            .ok_or(Error::Index("path"))
    }

    /// The first position in `range` whose path does not satisfy `before`, which must be true of a prefix of the range.
    pub(crate) fn partition(&self, range: Range<u32>, before: impl Fn(&[u8]) -> bool) -> Result<u32> {
        let (mut low, mut high) = (range.start, range.end);
        // Gallop first: what is looked for is usually near.
        let mut step = 1;
        while low + step < high && before(self.effective_path(low + step)?) {
            low += step;
            step *= 2;
        }
        high = high.min(low.saturating_add(step));
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.effective_path(middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The positions in the effective tree of everything strictly below `directory`; marks on the directory itself are
    /// not among them.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn below(&self, directory: &[u8]) -> Result<Range<u32>> {
        let all = 0..self.effective_count();
        let start = self.partition(all.clone(), |other| path::compare(other, directory).is_le())?;
        let end = self.partition(start..all.end, |other| path::is_below(other, directory))?;
        Ok(start..end)
    }

    /// The position of the first entry of the effective tree for `path`: the real entry if there is one, else a mark.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn position(&self, path: &[u8]) -> Result<Option<u32>> {
        let all = 0..self.effective_count();
        let position = self.partition(all.clone(), |other| path::compare(other, path).is_lt())?;
        Ok((position < all.end && self.effective_path(position)? == path).then_some(position))
    }

    /// The entry of the effective tree for `path`, marks included.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn find(&self, path: &[u8]) -> Result<Option<Entry<'_>>> {
        self.position(path)?.map(|position| self.effective(position)).transpose()
    }

    /// Finds one path after the other, fastest in path order.
    pub fn finder(&self) -> Finder<'_> {
        Finder { index: self, from: 0 }
    }

    /// The content digest of the entry at `position`, recursive for a directory (this layer's own tree, marks included).
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn tree_digest(&self, position: u32) -> Result<Digest> {
        let start = position as usize * 32;
        let bytes = self.section(Section::Trees).get(start..).and_then(|rest| rest.first_chunk::<32>());
        bytes.map(|bytes| Digest::from_bytes(*bytes)).ok_or(Error::Index("position"))
    }

    /// The bytes of the file that entry `number` is, if the index keeps them.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn fact(&self, number: u32) -> Result<Option<&[u8]>> {
        let facts = self.section(Section::Facts);
        let Some(count) = facts.first_chunk::<4>().map(|count| u32::from_le_bytes(*count) as usize) else {
            return Ok(None);
        };
        let table = count.checked_mul(12).and_then(|length| facts.get(8..)?.get(..length));
        let table = table.ok_or(Error::Index("facts"))?;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let fact = &table[middle * 12..];
            match u32_at(fact, 0).cmp(&number) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    let bytes = slice(&facts[8 + count * 12..], u32_at(fact, 4), u32_at(fact, 8));
                    return bytes.map(Some).ok_or(Error::Index("facts"));
                }
            }
        }
        Ok(None)
    }

    /// The numbers of the entries whose bytes the index keeps.
    pub fn facts(&self) -> impl Iterator<Item = u32> {
        let facts = self.section(Section::Facts);
        let count = facts.first_chunk::<4>().map_or(0, |count| u32::from_le_bytes(*count) as usize);
        facts.get(8..).unwrap_or_default().chunks_exact(12).take(count).map(|fact| u32_at(fact, 0))
    }
}

/// Looks paths up in the effective tree, each beginning where the last was.
#[derive(Debug)]
pub struct Finder<'a> {
    index: &'a LayerIndex,
    /// The position of the last path, or where it would be.
    from: u32,
}

impl<'a> Finder<'a> {
    /// As [`LayerIndex::find`].
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Entry<'a>>> {
        let all = 0..self.index.effective_count();
        if self.from > 0 && path::compare(self.index.effective_path(self.from - 1)?, path).is_ge() {
            self.from = 0;
        }
        self.from = self.index.partition(self.from..all.end, |other| path::compare(other, path).is_lt())?;
        let found = self.from < all.end && self.index.effective_path(self.from)? == path;
        found.then(|| self.index.effective(self.from)).transpose()
    }
}

/// One entry of a layer, read in place.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    number: u32,
    record: &'a [u8; RECORD],
    path: &'a [u8],
    link: &'a [u8],
    kind: Kind,
    strings: &'a [u8],
    xattrs: &'a [u8],
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("number", &self.number)
            .field("path", &path::shown(self.path))
            .field("metadata", &self.metadata())
            .finish()
    }
}

impl<'a> Entry<'a> {
    /// Its number in tar order.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its path; for a mark the path that it acts on.
    pub fn path(&self) -> &'a [u8] {
        self.path
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a later entry took its place.
    pub fn is_superseded(&self) -> bool {
        self.record[9] & FLAG_SUPERSEDED != 0
    }

    /// Whether the tar leaves holes out, so that the content is not in one piece. The content offset is then that of the
    /// entry's first header.
    pub fn is_sparse(&self) -> bool {
        self.record[9] & FLAG_SPARSE != 0
    }

    /// The low twelve mode bits.
    pub fn mode(&self) -> u32 {
        u16::from_le_bytes([self.record[10], self.record[11]]).into()
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        u32_at(self.record, 12)
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        u32_at(self.record, 16)
    }

    /// Last modification, as the tar has it.
    pub fn modified(&self) -> Time {
        Time { seconds: u64_at(self.record, 24) as i64, nanoseconds: u32_at(self.record, 20) }
    }

    /// Size of a regular file.
    pub fn size(&self) -> u64 {
        u64_at(self.record, 32)
    }

    /// Target of a symbolic link as written, or of a hard link as a path of the layer.
    pub fn link(&self) -> &'a [u8] {
        self.link
    }

    /// Where a hard link's content is.
    pub fn link_target(&self) -> LinkTarget {
        match (self.kind, u32_at(self.record, 48)) {
            (Kind::HardLink, LOWER) => LinkTarget::Lower,
            (Kind::HardLink, number) => LinkTarget::Entry(number),
            _ => LinkTarget::None,
        }
    }

    /// Device numbers.
    pub fn device(&self) -> (u32, u32) {
        (u32_at(self.record, 60), u32_at(self.record, 64))
    }

    /// Where the content starts in the uncompressed tar.
    pub fn content_offset(&self) -> u64 {
        u64_at(self.record, 72)
    }

    /// SHA-256 of a regular file's bytes; a hard link within the layer repeats its target's.
    pub fn content(&self) -> Option<Digest> {
        let digest = digest_at(self.record, 80);
        let known = match self.link_target() {
            LinkTarget::None => self.kind == Kind::Regular,
            LinkTarget::Entry(_) => digest != Digest::default(),
            LinkTarget::Lower => false,
        };
        known.then_some(digest)
    }

    /// Extended attributes, sorted by name.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let strings = self.strings;
        self.xattrs.chunks_exact(16).map(move |xattr| {
            let name = slice(strings, u32_at(xattr, 0), u32_at(xattr, 4)).unwrap_or_default();
            (name, slice(strings, u32_at(xattr, 8), u32_at(xattr, 12)).unwrap_or_default())
        })
    }

    /// Everything but path and content, copied.
    pub fn metadata(&self) -> Metadata {
        Metadata {
            kind: self.kind,
            mode: self.mode(),
            uid: self.uid(),
            gid: self.gid(),
            modified: self.modified(),
            size: self.size(),
            device: self.device(),
            link: self.link.to_vec(),
            xattrs: self.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        }
    }
}

fn slice(bytes: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    bytes.get(offset as usize..)?.get(..length as usize)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(&bytes[at..at + 32]);
    Digest::from_bytes(digest)
}
