//! What an image archive is made of: files by name, in a tar or in a directory, whose names and links stay inside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use kiln_layer::Limits;
use kiln_layer::archive::{Archive, Entry, EntryType};
use kiln_oci::{Descriptor, Digest, MAX_DOCUMENT_SIZE};
use kiln_sys::root::Root;

use crate::error::{Error, Result};

/// Members of an archive; more are refused.
const MAX_MEMBERS: usize = 100_000;
/// Bytes of all members' names and link targets; more are refused.
const MAX_NAMES: usize = 64 << 20;

/// Where an archive's members are.
pub(crate) enum Members {
    /// In a file, by offset and size.
    Archive { name: String, file: Arc<File>, members: BTreeMap<String, Member>, end: End },
    /// In a directory.
    Directory { name: String, root: Root },
}

/// How an archive ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should, with blocks of zeros.
    Marked,
    /// After a member: all that comes may be there, or not.
    Unmarked,
}

#[derive(Clone, Debug)]
pub(crate) enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// Where a layout has a blob.
pub(crate) fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Finds the members of a tar.
pub(crate) fn scan(name: &str, file: File) -> Result<Members> {
    let length = file.metadata().map_err(Error::file("stat", name))?.len();
    let file = Arc::new(file);
    let mut members = BTreeMap::new();
    let mut offset = 0;
    let mut names = 0;
    let mut entry = Entry::default();
    loop {
        let reader =
            BufReader::with_capacity(4096, Window { file: Arc::clone(&file), offset, end: u64::MAX });
        let mut archive = Archive::at(reader, offset);
        if !archive.next_entry(&mut entry)? {
            break;
        }
        let path = clean_member(&entry.name);
        names += entry.name.len() + entry.link.len();
        if names > MAX_NAMES {
            return Err(Error::archive(name, format!("its names have more than {MAX_NAMES} bytes")));
        }
        if entry.sparse {
            // Its bytes are not in one piece.
            return Err(Error::archive(name, format!("{path} is a sparse file, which is not read")));
        }
        let member = match entry.kind {
            EntryType::Regular => Some(Member::File { offset: entry.content_offset, size: entry.size }),
            EntryType::Symlink => {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let joined = format!("/{parent}/{target}");
                Some(Member::Link(clean_member(joined.as_bytes())))
            }
            EntryType::HardLink => Some(Member::Link(clean_member(&entry.link))),
            _ => None,
        };
        if let Some(member) = member {
            members.insert(path, member);
        }
        if members.len() > MAX_MEMBERS {
            return Err(Error::archive(name, format!("it has more than {MAX_MEMBERS} members")));
        }
        let stored = if matches!(entry.kind, EntryType::Regular) { entry.size } else { 0 };
        if entry.content_offset.saturating_add(stored) > length {
            let path = clean_member(&entry.name);
            let reason = format!("it is truncated: it ends after {length} bytes, in the middle of {path}");
            return Err(Error::archive(name, reason));
        }
        offset = entry.content_offset + stored.div_ceil(512) * 512;
    }
    let end = if offset < length { End::Marked } else { End::Unmarked };
    Ok(Members::Archive { name: name.to_owned(), file, members, end })
}

/// A member's name as others refer to it: relative, without `.` and `..`.
fn clean_member(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Members {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Archive { name, .. } | Self::Directory { name, .. } => name,
        }
    }

    pub(crate) fn has(&self, member: &str) -> bool {
        match self {
            Self::Archive { members, .. } => members.contains_key(member),
            Self::Directory { root, .. } => root.stat(Path::new(member)).is_ok(),
        }
    }

    /// Whether something is there, but not the end of an archive.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(self, Self::Archive { end: End::Unmarked, members, .. } if !members.is_empty())
    }

    /// Opens a member; links are followed, inside the archive.
    fn open(&self, member: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        let missing = || {
            let hint = if self.is_cut_off() { ": it is truncated" } else { "" };
            Error::archive(self.name(), format!("{member} is named but not in it{hint}"))
        };
        match self {
            Self::Archive { file, members, .. } => {
                let mut name = clean_member(member.as_bytes());
                for _ in 0..16 {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::Link(target) => name.clone_from(target),
                        Member::File { offset, size } => {
                            let window = Window {
                                file: Arc::clone(file),
                                offset: *offset,
                                end: offset.saturating_add(*size),
                            };
                            return Ok((Box::new(window), *size));
                        }
                    }
                }
                Err(Error::archive(self.name(), format!("{member} is a link to itself")))
            }
            Self::Directory { root, .. } => {
                let file = root.open_file(Path::new(member)).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(),
                    _ => Error::Path(error),
                })?;
                let size = file.metadata().map_err(Error::file("stat", member))?.len();
                Ok((Box::new(file), size))
            }
        }
    }

    /// A small JSON document.
    pub(crate) fn document(&self, member: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.open(member)?;
        if size > MAX_DOCUMENT_SIZE {
            let reason = format!("{member} has {size} bytes; at most {MAX_DOCUMENT_SIZE} are read");
            return Err(Error::archive(self.name(), reason));
        }
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT_SIZE + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::file("read", self.name()))?;
        if bytes.len() as u64 != size {
            return Err(Error::archive(self.name(), format!("{member} is truncated")));
        }
        Ok(bytes)
    }

    /// A document by its descriptor, verified.
    pub(crate) fn verified(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_member(&descriptor.digest))?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            let what = format!("{}: {}", self.name(), blob_member(&descriptor.digest));
            return Err(Error::Mismatch { what, expected: descriptor.digest, found });
        }
        if bytes.len() as u64 != descriptor.size {
            let reason = format!(
                "{} has {} bytes, its descriptor says {}",
                descriptor.digest,
                bytes.len(),
                descriptor.size
            );
            return Err(Error::archive(self.name(), reason));
        }
        Ok(bytes)
    }

    /// Copies a member into a new file, in the kernel where that is possible. One of another size than is `expected`, or too
    /// large for a layer, is not read: a file of holes would fill the disk.
    pub(crate) fn copy(&self, member: &str, expected: Option<u64>, path: &Path) -> Result<()> {
        let (reader, size) = self.open(member)?;
        if let Some(expected) = expected.filter(|expected| *expected != size) {
            let reason = format!("{member} has {size} bytes, its descriptor says {expected}");
            return Err(Error::archive(self.name(), reason));
        }
        let most = Limits::default().bytes;
        if size > most {
            let reason = format!("{member} has {size} bytes; at most {most} are read");
            return Err(Error::archive(self.name(), reason));
        }
        // One byte more shows that it grows meanwhile.
        let mut reader = reader.take(size + 1);
        let _span = kiln_trace::span("copy blob").with_bytes(size);
        let mut output = fs_err::File::create_new(path).map_err(Error::file("make", path))?;
        let copied = io::copy(&mut reader, &mut output).map_err(Error::file("copy into", path))?;
        if copied != size {
            let reason = if copied < size { "is truncated" } else { "has grown while it was read" };
            return Err(Error::archive(self.name(), format!("{member} {reason}")));
        }
        Ok(())
    }
}

/// A part of a file.
struct Window {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
