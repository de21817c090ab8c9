//! A root copied out of its layers, for where no overlay can be mounted, and what of it was there before a step.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::Duration;

use kiln_sys::root::{Directory, Time};
use rustix::fs::{FileType, Stat};

use crate::complete::{OpenLower, placed};
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::metadata::Kind;
use crate::path::{self, to_system};
use crate::unpack::{Unpack, Unpacker};
use crate::view::{Node, RootView};

/// Zeros of this length are not written.
const HOLE: usize = 4096;

/// How a copy was when it was made: what has not been touched since needs no comparison.
#[derive(Debug, Default)]
pub struct Copied {
    /// Where each directory is, by device and inode.
    directories: HashMap<(u64, u64), Vec<u8>>,
    /// Every change (`ctime`) since is at this moment or later, and everything that was copied is earlier.
    since: Time,
}

impl Copied {
    /// Whether nothing but a look has been taken at a file since.
    pub(crate) fn is_untouched(&self, stat: &Stat) -> bool {
        Time { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 } < self.since
    }

    /// Whether a directory is the one that was copied to `path`, and not moved or made there.
    pub(crate) fn is_in_place(&self, parent: &Directory, name: &OsStr, stat: &Stat, path: &[u8]) -> bool {
        let known = self.directories.get(&(stat.st_dev, stat.st_ino)).is_some_and(|place| place == path);
        // The number of a directory that was removed may be used again.
        known && parent.birth(name).is_ok_and(|birth| birth.is_none_or(|birth| birth < self.since))
    }
}

/// Copies `node` and everything below it to `name` of an empty directory; an empty name means the directory itself.
///
/// Names that are links to one file become files of their own: that is what an overlay makes of them as soon as one is
/// changed. Runs on the calling thread, whose umask it clears.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy(
    view: &RootView,
    node: Node<'_>,
    name: &[u8],
    unpack: &Unpack<'_>,
    open: OpenLower<'_>,
) -> Result<()> {
    let from = node.path().to_vec();
    let mut unpacker = Unpacker::new(unpack)?;
    for node in view.walk(node) {
        let node = node?;
        let below = node.path()[from.len()..].strip_prefix(b"/").unwrap_or(&node.path()[from.len()..]);
        let mut metadata = view.metadata(&node)?;
        metadata.link = if metadata.kind == Kind::Symlink { metadata.link } else { Vec::new() };
        let kind = metadata.kind;
        unpacker.entry(placed(
            if name.is_empty() { below.to_vec() } else { path::join(name, below) },
            metadata,
        ))?;
        if kind == Kind::Regular
            && let Some(file) = view.file(&node)?
            && file.entry.size() > 0
        {
            write(&mut unpacker, file.layer, &file.entry, open)?;
        }
    }
    unpacker.finish()
}

fn write(unpacker: &mut Unpacker<'_>, layer: usize, entry: &Entry<'_>, open: OpenLower<'_>) -> Result<()> {
    let mut reader = open(layer, entry)?;
    let mut buffer = vec![0; 128 << 10];
    let mut rest = entry.size();
    while rest > 0 {
        let length = reader.read(&mut buffer).map_err(Error::Read)?;
        if length == 0 {
            return Err(Error::Read(std::io::ErrorKind::UnexpectedEof.into()));
        }
        rest = rest.saturating_sub(length as u64);
        for part in buffer[..length].chunks(HOLE) {
            if part.len() == HOLE && part.iter().all(|byte| *byte == 0) {
                unpacker.hole(part.len() as u64)?;
            } else {
                unpacker.data(part)?;
            }
        }
    }
    Ok(())
}

/// Notes how a root is that was just copied with [`copy`], so that [`capture`](crate::capture) finds what a step changes
/// in it. Waits until the file system's clock shows another moment: a few milliseconds.
///
/// # Errors
/// When the root cannot be read.
pub fn note_copied(view: &RootView, unpack: &Unpack<'_>) -> Result<Copied> {
    let root = unpack.root.directory();
    let mut directories = HashMap::new();
    for node in view.walk(view.root()?) {
        let node = node?;
        if node.is_directory() {
            let stat = match node.path() {
                b"" => root.stat_self()?,
                path => unpack.root.stat(to_system(path))?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.insert((stat.st_dev, stat.st_ino), node.path().to_vec());
            }
        }
    }
    let mark = || -> Result<Time> {
        let mode = root.stat_self()?.st_mode;
        root.set_self(Some(mode), None, None)?;
        let stat = root.stat_self()?;
        Ok(Time { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 })
    };
    let first = mark()?;
    let mut since = mark()?;
    // A clock of whole seconds is the coarsest that there is. Of one that stands still, everything counts as touched.
    for _ in 0..2000 {
        if since > first {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        since = mark()?;
    }
    Ok(Copied { directories, since })
}
