//! The bytes of a layer's files, from the first source that has them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiln_sys::root::Root;

use crate::archive::{self, Archive, Piece};
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::index::{Entry, LayerIndex, LinkTarget};
use crate::metadata::Kind;
use crate::path::{self, to_system};

/// Where a layer's files can be read.
#[derive(Debug)]
pub enum ContentSource {
    /// The directory the layer is unpacked in.
    Snapshot(Root),
    /// The uncompressed tar, at an offset of a file.
    Tar {
        /// The file.
        file: File,
        /// Where the tar starts in it.
        offset: u64,
    },
    /// The blob as it came; the whole of it is decompressed up to the content.
    Blob(File),
}

/// A reader of one file's content.
pub type ContentReader<'a> = Box<dyn Read + Send + 'a>;

/// The files of one layer.
#[derive(Debug)]
pub struct LayerContents {
    index: Arc<LayerIndex>,
    sources: Vec<ContentSource>,
}

impl LayerContents {
    /// The files of the layer with this index, from `sources` in order of preference. Without any, only the facts of the
    /// index can be read.
    pub fn new(index: Arc<LayerIndex>, sources: Vec<ContentSource>) -> Self {
        Self { index, sources }
    }

    /// The index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }

    /// Whether everything that stands before this file in a compressed blob is decompressed to read it: no source has
    /// it at hand.
    ///
    /// # Errors
    /// When the index is damaged.
    pub fn is_far(&self, entry: &Entry<'_>) -> Result<bool> {
        if !self.sources.iter().all(|source| matches!(source, ContentSource::Blob(_))) {
            return Ok(false);
        }
        let file = match entry.link_target() {
            LinkTarget::Entry(target) => self.index.entry(target)?,
            LinkTarget::None | LinkTarget::Lower => *entry,
        };
        Ok(file.size() > 0 && self.index.fact(file.number())?.is_none())
    }

    /// Opens the content of a regular file of this layer, or of a hard link to one in it.
    ///
    /// # Errors
    /// When the entry has no content, no source has it, or a source cannot be read.
    pub fn open(&self, entry: &Entry<'_>) -> Result<ContentReader<'_>> {
        let none = || Error::NoSource { path: path::shown(entry.path()) };
        let file = match entry.link_target() {
            LinkTarget::None => *entry,
            LinkTarget::Entry(target) => self.index.entry(target)?,
            LinkTarget::Lower => return Err(none()),
        };
        if file.kind() != Kind::Regular {
            return Err(none());
        }
        // A superseded file is under its path no longer, but a hard link may still be one of its names.
        let named = [entry, &file].into_iter().find(|entry| !entry.is_superseded());
        for source in &self.sources {
            if let (ContentSource::Snapshot(root), Some(named)) = (source, named) {
                match root.open_plain(to_system(named.path())) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => return Ok(Box::new(result?.take(file.size()))),
                }
            }
        }
        if let Some(bytes) = self.index.fact(file.number())? {
            return Ok(Box::new(bytes));
        }
        for source in &self.sources {
            match source {
                ContentSource::Snapshot(_) => {}
                ContentSource::Tar { file: tar, offset } => {
                    let reader = At { file: tar, offset: offset + file.content_offset() };
                    return content_at(Box::new(reader), &file);
                }
                ContentSource::Blob(blob) => {
                    let mut reader = inflate(blob)?;
                    skip(&mut reader, file.content_offset())?;
                    return content_at(reader, &file);
                }
            }
        }
        Err(none())
    }

    /// The content of a file of at most `most` bytes; a larger one is an error.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the file is larger.
    pub fn read(&self, entry: &Entry<'_>, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(entry)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::Read)?;
        if bytes.len() as u64 > most {
            return Err(Error::Limit { what: "bytes in a file that is read whole", limit: most });
        }
        Ok(bytes)
    }
}

/// A reader at an offset of its own, so that a file can be read from several places at once.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(bytes, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

fn inflate(blob: &File) -> Result<ContentReader<'_>> {
    let mut first = [0; 8];
    let length = blob.read_at(&mut first, 0).map_err(Error::Read)?;
    let reader = BufReader::with_capacity(128 << 10, At { file: blob, offset: 0 });
    Compression::detect(&first[..length]).decoder(reader)
}

fn skip(reader: &mut impl Read, length: u64) -> Result<()> {
    let skipped = io::copy(&mut reader.take(length), &mut io::sink()).map_err(Error::Read)?;
    if skipped < length {
        return Err(Error::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// The content of `file` from a reader that stands at its offset.
fn content_at<'a>(reader: ContentReader<'a>, file: &Entry<'_>) -> Result<ContentReader<'a>> {
    if !file.is_sparse() {
        return Ok(Box::new(reader.take(file.size())));
    }
    let mut archive = Archive::at(BufReader::new(reader), file.content_offset());
    if !archive.next_entry(&mut archive::Entry::default())? {
        return Err(Error::Index("no entry at the offset of a sparse file"));
    }
    Ok(Box::new(Sparse { archive, hole: 0 }))
}

/// A sparse file with its holes filled in.
struct Sparse<R> {
    archive: Archive<R>,
    hole: u64,
}

impl<R: io::BufRead> Read for Sparse<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.hole == 0 {
            match self.archive.piece(bytes.len()).map_err(io::Error::other)? {
                Piece::End => return Ok(0),
                Piece::Hole(length) => self.hole = length,
                Piece::Data(data) => {
                    let length = data.len();
                    bytes[..length].copy_from_slice(data);
                    self.archive.consume(length);
                    return Ok(length);
                }
            }
        }
        let length = usize::try_from(self.hole).unwrap_or(usize::MAX).min(bytes.len());
        bytes[..length].fill(0);
        self.hole -= length as u64;
        Ok(length)
    }
}
