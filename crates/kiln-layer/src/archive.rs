//! The one tar parser: v7, ustar, pax and GNU, as a stream.
//!
//! It reads what Go's `archive/tar` reads, since that is what the field's engines see, and refuses what other readers
//! would read differently. Which size governs: a pax `size` record over the header's field, for the content of the entry
//! alone (CVE-2025-62518, CVE-2026-33055).

mod header;
mod pax;
mod sparse;

use std::io::BufRead;

use crate::error::{Error, Result, TarProblem};
use crate::metadata::Kind;
use header::Block;
pub use sparse::Region;

const BLOCK: usize = 512;
/// The largest extended header or sparse map, the limit of Go's reader (CVE-2025-58183).
pub const MAXIMUM_EXTENDED: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EntryType {
    /// A regular file, contiguous or sparse included.
    #[default]
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A hard link.
    HardLink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
}

/// One entry, as the archive says it: nothing is cleaned.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// What it is.
    pub kind: EntryType,
    /// Its name.
    pub name: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// The low twelve mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification: seconds.
    pub seconds: i64,
    /// Time of last modification: nanoseconds.
    pub nanoseconds: u32,
    /// Size of the file, holes included.
    pub size: u64,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.`), sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the first header of the entry starts.
    pub header_offset: u64,
    /// Where the content starts.
    pub content_offset: u64,
    /// Whether the archive leaves holes out.
    pub sparse: bool,
}

impl Entry {
    /// What it is in a layer, if its name means nothing else.
    pub fn kind_in_layer(&self) -> Kind {
        match self.kind {
            EntryType::Regular => Kind::Regular,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::HardLink => Kind::HardLink,
            // What overlayfs itself takes for a whiteout cannot be anything else in a snapshot.
            EntryType::CharacterDevice if self.device == (0, 0) => Kind::Whiteout,
            EntryType::CharacterDevice => Kind::CharacterDevice,
            EntryType::BlockDevice => Kind::BlockDevice,
            EntryType::Fifo => Kind::Fifo,
        }
    }
}

/// The next part of an entry's content.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Bytes; the reader must be told with [`Archive::consume`] how many were used.
    Data(&'a [u8]),
    /// So many zero bytes that the archive leaves out.
    Hole(u64),
    /// There is no more.
    End,
}

/// A tar being read.
pub struct Archive<R> {
    reader: R,
    offset: u64,
    /// Stored bytes of the current entry that are still to come.
    remaining: u64,
    padding: u64,
    stray_padding: bool,
    regions: Vec<Region>,
    region: usize,
    /// Position in the file's content.
    position: u64,
    size: u64,
    sparse: bool,
    extended: Vec<u8>,
    /// No NUL ends the extended header's text, neither in it nor right after it.
    extended_goes_on: bool,
    pax: pax::Records,
}

fn damaged(offset: u64, problem: TarProblem) -> Error {
    Error::Tar { offset, problem }
}

impl<R: BufRead> Archive<R> {
    /// Starts to read at byte 0 of an archive.
    pub fn new(reader: R) -> Self {
        Self::at(reader, 0)
    }

    /// Starts to read at a header that is `offset` bytes into an archive.
    pub fn at(reader: R, offset: u64) -> Self {
        Self {
            reader,
            offset,
            remaining: 0,
            padding: 0,
            stray_padding: false,
            regions: Vec::new(),
            region: 0,
            position: 0,
            size: 0,
            sparse: false,
            extended: Vec::new(),
            extended_goes_on: false,
            pax: pax::Records::default(),
        }
    }

    /// The reader, and the bytes read from it.
    pub fn into_inner(self) -> (R, u64) {
        (self.reader, self.offset)
    }

    /// Whether anything but zeros stood behind a file in its last block, so far.
    pub fn has_stray_padding(&self) -> bool {
        self.stray_padding
    }

    /// The reader below.
    pub fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Goes to the next entry, skipping what is left of the current one. False at the end of the archive; whatever
    /// follows the end is not read.
    ///
    /// # Errors
    /// When the archive breaks its format or the reader fails.
    pub fn next_entry(&mut self, entry: &mut Entry) -> Result<bool> {
        self.skip(self.remaining)?;
        self.skip_padding()?;
        (self.remaining, self.padding) = (0, 0);
        self.pax.clear();
        let (mut long_name, mut long_link) = (None, None);
        let (mut first, mut has_pax) = (None, false);
        loop {
            let at = self.offset;
            let mut block = Block::default();
            if !self.block(&mut block)? {
                if first.is_some() {
                    return Err(damaged(at, TarProblem::Truncated));
                }
                return Ok(false);
            }
            if block.is_zero() {
                return self.end(at, first.is_some());
            }
            let disagree = |about| damaged(at, TarProblem::Disagreement(about));
            block.check(at)?;
            if block.flag() == b'g' && (has_pax || long_name.is_some() || long_link.is_some()) {
                // Go's reader forgets what came before it.
                return Err(disagree("a global header between an entry's headers"));
            }
            first.get_or_insert(at);
            match block.flag() {
                b'g' => {
                    self.extended_header(&block, at)?;
                    pax::check_global(&self.extended, at)?;
                }
                b'x' if has_pax => return Err(disagree("two extended headers of one entry")),
                b'x' => {
                    self.extended_header(&block, at)?;
                    self.pax.parse(&self.extended, at)?;
                    has_pax = true;
                }
                b'L' if long_name.is_some() => return Err(disagree("two long names of one entry")),
                b'K' if long_link.is_some() => return Err(disagree("two long links of one entry")),
                b'L' => {
                    self.extended_header(&block, at)?;
                    long_name = Some(self.long_text().ok_or_else(|| disagree("where a long name ends"))?);
                }
                b'K' => {
                    self.extended_header(&block, at)?;
                    long_link = Some(self.long_text().ok_or_else(|| disagree("where a long link ends"))?);
                }
                _ => {
                    entry.header_offset = first.unwrap_or(at);
                    self.entry(&block, at, entry, long_name, long_link)?;
                    return Ok(true);
                }
            }
        }
    }

    /// What a GNU long name or link says.
    fn long_text(&self) -> Option<Vec<u8>> {
        let text = until_nul(&self.extended);
        // Without an end of its own, some readers read on in what fills the block.
        (!text.is_empty() && !self.extended_goes_on).then(|| text.to_vec())
    }

    fn end(&mut self, at: u64, inside: bool) -> Result<bool> {
        if inside {
            return Err(damaged(at, TarProblem::Truncated));
        }
        let mut second = Block::default();
        if self.block(&mut second)? && !second.is_zero() {
            return Err(damaged(at, TarProblem::LoneZeroBlock));
        }
        Ok(false)
    }

    fn entry(
        &mut self,
        block: &Block,
        at: u64,
        entry: &mut Entry,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<()> {
        block.read_into(entry, at)?;
        let named_like_directory = entry.name.ends_with(b"/");
        self.pax.apply(entry, at)?;
        for (long, value, from_pax) in [
            (long_name, &mut entry.name, self.pax.has_path() || self.pax.speaks_of_sparse()),
            (long_link, &mut entry.link, self.pax.has_link()),
        ] {
            if let Some(long) = long {
                if from_pax && *value != long {
                    return Err(damaged(at, TarProblem::Ambiguous));
                }
                *value = long;
            }
        }
        if block.flag() == 0 && entry.name.ends_with(b"/") != named_like_directory {
            // Python asks the name of the header itself whether it is a directory.
            return Err(damaged(at, TarProblem::Disagreement("a directory by one of its names")));
        }
        entry.kind = match block.flag() {
            0 if entry.name.ends_with(b"/") => EntryType::Directory,
            0 | b'0' | b'7' | b'S' => EntryType::Regular,
            b'1' => EntryType::HardLink,
            b'2' => EntryType::Symlink,
            b'3' => EntryType::CharacterDevice,
            b'4' => EntryType::BlockDevice,
            b'5' => EntryType::Directory,
            b'6' => EntryType::Fifo,
            other => return Err(damaged(at, TarProblem::Type(other))),
        };
        let disagree = |about| Err(damaged(at, TarProblem::Disagreement(about)));
        match entry.kind {
            EntryType::Regular => {}
            // All agree that a header's size is that of the link's target, but not that a record's is.
            EntryType::HardLink if !self.pax.has_size() => {}
            // GNU tar skips so many bytes, Go and Python take them for the next header.
            _ if entry.size != 0 => return disagree("the content of what is no file"),
            _ => {}
        }
        let stored = if entry.kind == EntryType::Regular { entry.size } else { 0 };
        entry.size = stored;
        self.start_content(stored);
        self.sparse = false;
        if block.flag() == b'S' {
            self.old_sparse(block, at, entry)?;
        } else if entry.kind == EntryType::Regular {
            self.pax_sparse(at, entry)?;
        }
        if (block.flag() == b'S' || !self.sparse) && self.pax.speaks_of_sparse() {
            // Python takes the size or name from it all the same.
            return disagree("a sparse file that is none");
        }
        if entry.kind == EntryType::Regular && entry.name.ends_with(b"/") {
            // GNU tar takes it for a directory.
            return disagree("a file whose name ends in a slash");
        }
        entry.sparse = self.sparse;
        entry.content_offset = self.offset;
        self.size = entry.size;
        Ok(())
    }

    fn start_content(&mut self, stored: u64) {
        self.remaining = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        self.position = 0;
        self.region = 0;
    }

    fn old_sparse(&mut self, block: &Block, at: u64, entry: &mut Entry) -> Result<()> {
        let real = block.sparse_real_size(at)?;
        self.regions.clear();
        let mut extended = block.sparse_regions(at, &mut self.regions)?;
        while extended {
            let mut extension = Block::default();
            if !self.block(&mut extension)? {
                return Err(damaged(at, TarProblem::Truncated));
            }
            extended = extension.sparse_extension(at, &mut self.regions)?;
        }
        sparse::check(&self.regions, real, self.remaining).ok_or_else(|| damaged(at, TarProblem::Sparse))?;
        entry.size = real;
        self.sparse = true;
        Ok(())
    }

    fn pax_sparse(&mut self, at: u64, entry: &mut Entry) -> Result<()> {
        let Some(sparse) = self.pax.sparse(at)? else { return Ok(()) };
        if let Some(name) = sparse.name {
            entry.name = name;
        }
        if let Some(size) = sparse.size {
            entry.size = size;
        }
        self.regions.clear();
        match sparse.map {
            Some(map) => {
                sparse::parse_list(&map, &mut self.regions).ok_or_else(|| damaged(at, TarProblem::Sparse))?;
            }
            None => self.read_map(at)?,
        }
        if sparse.regions.is_some_and(|regions| regions != self.regions.len() as u64) {
            return Err(damaged(at, TarProblem::Sparse));
        }
        sparse::check(&self.regions, entry.size, self.remaining)
            .ok_or_else(|| damaged(at, TarProblem::Sparse))?;
        self.sparse = true;
        Ok(())
    }

    /// GNU sparse 1.0: the map is text in the first blocks of the content.
    fn read_map(&mut self, at: u64) -> Result<()> {
        let mut text = Vec::new();
        let mut lines = 0;
        loop {
            if text.len() as u64 >= MAXIMUM_EXTENDED {
                return Err(damaged(at, TarProblem::ExtendedHeaderSize));
            }
            let mut block = Block::default();
            if self.remaining < BLOCK as u64 || !self.block(&mut block)? {
                return Err(damaged(at, TarProblem::Sparse));
            }
            self.remaining -= BLOCK as u64;
            text.extend_from_slice(block.bytes());
            lines += block.bytes().iter().filter(|byte| **byte == b'\n').count();
            let wanted = sparse::lines_of_map(&text).ok_or_else(|| damaged(at, TarProblem::Sparse))?;
            if wanted.is_some_and(|wanted| lines > wanted) {
                return sparse::parse_map(&text, &mut self.regions)
                    .ok_or_else(|| damaged(at, TarProblem::Sparse));
            }
        }
    }

    /// The next part of the current entry's content, at most `most` bytes of data.
    ///
    /// # Errors
    /// When the archive ends too early or the reader fails.
    pub fn piece(&mut self, most: usize) -> Result<Piece<'_>> {
        let mut available = self.remaining;
        if self.sparse {
            while self.regions.get(self.region).is_some_and(|region| self.position >= region.end()) {
                self.region += 1;
            }
            match self.regions.get(self.region) {
                Some(region) if self.position < region.offset => {
                    let hole = region.offset - self.position;
                    self.position = region.offset;
                    return Ok(Piece::Hole(hole));
                }
                Some(region) => available = region.end() - self.position,
                None => {
                    let hole = self.size - self.position;
                    self.position = self.size;
                    return Ok(if hole == 0 { Piece::End } else { Piece::Hole(hole) });
                }
            }
        }
        if available == 0 {
            return Ok(Piece::End);
        }
        let at = self.offset;
        let buffer = self.reader.fill_buf().map_err(Error::Read)?;
        if buffer.is_empty() {
            return Err(damaged(at, TarProblem::Truncated));
        }
        let length = buffer.len().min(most).min(usize::try_from(available).unwrap_or(usize::MAX));
        Ok(Piece::Data(&buffer[..length]))
    }

    /// Says how many bytes of the last [`Piece::Data`] were used.
    pub fn consume(&mut self, length: usize) {
        self.reader.consume(length);
        self.offset += length as u64;
        self.position += length as u64;
        self.remaining -= length as u64;
    }

    fn extended_header(&mut self, block: &Block, at: u64) -> Result<()> {
        let size = block.size(at)?;
        if size > MAXIMUM_EXTENDED {
            return Err(damaged(at, TarProblem::ExtendedHeaderSize));
        }
        let mut extended = std::mem::take(&mut self.extended);
        extended.resize(usize::try_from(size).unwrap_or_default(), 0);
        let whole = self.fill(&mut extended)?;
        self.extended = extended;
        if whole < self.extended.len() {
            return Err(damaged(at, TarProblem::Truncated));
        }
        let padding = (size.wrapping_neg() % BLOCK as u64) as usize;
        let mut rest = [0; BLOCK];
        if self.fill(&mut rest[..padding])? < padding {
            return Err(damaged(self.offset, TarProblem::Truncated));
        }
        self.extended_goes_on = !self.extended.contains(&0) && rest[0] != 0;
        Ok(())
    }

    /// Reads one block; false at the end of the stream.
    fn block(&mut self, block: &mut Block) -> Result<bool> {
        let at = self.offset;
        match self.fill(block.bytes_mut())? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(damaged(at, TarProblem::Truncated)),
        }
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<usize> {
        let wanted = bytes.len();
        while !bytes.is_empty() {
            let buffer = self.reader.fill_buf().map_err(Error::Read)?;
            if buffer.is_empty() {
                break;
            }
            let length = buffer.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut(length);
            now.copy_from_slice(&buffer[..length]);
            bytes = later;
            self.reader.consume(length);
            self.offset += length as u64;
        }
        Ok(wanted - bytes.len())
    }

    fn skip_padding(&mut self) -> Result<()> {
        let mut padding = [0; BLOCK];
        let padding = &mut padding[..self.padding as usize % BLOCK];
        let length = padding.len();
        let at = self.offset;
        if self.fill(padding)? < length {
            return Err(damaged(at, TarProblem::Truncated));
        }
        self.stray_padding |= padding.iter().any(|byte| *byte != 0);
        Ok(())
    }

    fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let buffer = self.reader.fill_buf().map_err(Error::Read)?;
            if buffer.is_empty() {
                return Err(damaged(self.offset, TarProblem::Truncated));
            }
            let now = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            self.reader.consume(now);
            self.offset += now as u64;
            length -= now as u64;
        }
        Ok(())
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}
