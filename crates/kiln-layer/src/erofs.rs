//! The EROFS image of a layer: its metadata alone, whose files are pieces of the uncompressed tar (docs/formats.md, section 8).
//!
//! The kernel mounts such an image with the tar as a second device, so that a layer needs no unpacking. The format is that
//! of Linux: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. An image shows what [`crate::walk`] would unpack
//! for overlayfs with privileges; where that cannot be promised there is none.

mod inode;
mod listing;

use std::io::Write;

use crate::error::{Error, Result};
use crate::index::{Entry, LayerIndex, LinkTarget};
use crate::metadata::{Kind, Metadata};
use crate::path::{is_below, split};
use inode::{Attributes, Format, INODE, Inode, SLOT};
use listing::Listing;

/// The version of the images that [`write()`] makes, for whoever keeps them.
pub const VERSION: u32 = 2;
/// The size of a block: that of the tar's, so that every file starts at one.
const BLOCK: usize = 512;
const SUPERBLOCK: usize = 1024;
const DEVICE: usize = 128;
const FIRST_INODE: usize = SUPERBLOCK + 128 + DEVICE;
/// Where the tar's first block is in the one address space of both devices; the image's own blocks end before.
const TAR: u64 = 1 << 28;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes carry times of their own.
const FEATURE_TIMES: u32 = 2;
const FEATURE_DEVICES: u32 = 8;
/// How many bits of a major and a minor number fit.
const DEVICE_BITS: (u32, u32) = (12, 20);

/// Why a layer has no image. It must be unpacked instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unmountable {
    /// Files or directories of lower layers belong to its snapshot.
    #[error("it does not stand alone")]
    NotAlone,
    /// A file whose content is not in one piece of the tar.
    #[error("it holds a sparse file")]
    Sparse,
    /// Bytes that are no file's would show where a program maps a file beyond its end.
    #[error("its tar holds something in the padding of files")]
    Padding,
    /// An extended attribute that the kernel would change or refuse.
    #[error("it holds an extended attribute that only the kernel can write")]
    Attribute,
    /// Device numbers that the format cannot hold, or that overlayfs would take for a whiteout.
    #[error("it holds a device whose numbers cannot be written")]
    Device,
    /// A name that no file system takes.
    #[error("it holds a name that no file system takes")]
    Name,
    /// It, or the tar, is larger than the format's addresses reach.
    #[error("it is too large")]
    Size,
}

/// Writes the image of a layer whose uncompressed tar starts at byte `offset`, a multiple of 512, of the file that will be
/// mounted with it. Gives the image's length. The same layer and offset give the same image.
///
/// # Errors
/// [`Error::Unmountable`] when the layer must be unpacked instead; nothing is written then. Otherwise when the index is
/// damaged or `out` refuses.
pub fn write(index: &LayerIndex, offset: u64, out: &mut dyn Write) -> Result<u64> {
    if !index.stands_alone() {
        return Err(Unmountable::NotAlone.into());
    }
    if index.has_stray_padding() {
        return Err(Unmountable::Padding.into());
    }
    let image = Image::new(index, offset)?.filled()?;
    for part in [&image.inodes, &image.blocks] {
        out.write_all(part).map_err(Error::Write)?;
    }
    Ok((image.inodes.len() + image.blocks.len()) as u64)
}

/// A directory whose content comes.
struct Open<'a> {
    path: &'a [u8],
    nid: u32,
    links: u32,
    listing: Listing<'a>,
}

struct Image<'a> {
    index: &'a LayerIndex,
    offset: u64,
    /// The image from its start to the last inode.
    inodes: Vec<u8>,
    /// What follows: names of directories, long symbolic links.
    blocks: Vec<u8>,
    /// The inodes whose first block counts from the start of `blocks`.
    relative: Vec<usize>,
    /// The inode of each entry of the tar that has one; none is 0.
    nids: Vec<u32>,
    /// All whiteouts are one file.
    whiteout: Option<u32>,
    open: Vec<Open<'a>>,
    attributes: Attributes,
    count: u64,
}

impl<'a> Image<'a> {
    fn new(index: &'a LayerIndex, offset: u64) -> Result<Self> {
        let end = offset.checked_add(index.tar_size()).ok_or(Unmountable::Size)?;
        if !offset.is_multiple_of(BLOCK as u64) || TAR + end.div_ceil(BLOCK as u64) >= u64::from(u32::MAX) {
            return Err(Unmountable::Size.into());
        }
        let mut inodes = Vec::with_capacity(FIRST_INODE + (index.effective_count() as usize + 8) * INODE);
        inodes.resize(FIRST_INODE, 0);
        Ok(Self {
            index,
            offset,
            inodes,
            blocks: Vec::new(),
            relative: Vec::new(),
            nids: vec![0; index.entry_count() as usize],
            whiteout: None,
            open: Vec::new(),
            attributes: Attributes::default(),
            count: 0,
        })
    }

    fn filled(mut self) -> Result<Self> {
        let count = self.index.effective_count();
        let mut position = self.root()?;
        while position < count {
            let entry = self.index.effective(position)?;
            position += 1;
            self.enter(split(entry.path()).0)?;
            let (nid, kind) = match entry.kind() {
                Kind::Directory => {
                    let opaque = self.is_opaque(position, entry.path())?;
                    position += u32::from(opaque);
                    (self.directory(entry.path(), &entry.metadata(), opaque)?, Kind::Directory)
                }
                Kind::Opaque => return Err(Error::Index("an opaque mark without a directory")),
                Kind::Whiteout => (self.whiteout()?, Kind::Whiteout),
                _ => self.file(&entry)?,
            };
            self.name(&entry, nid, kind)?;
        }
        while !self.open.is_empty() {
            self.close();
        }
        self.seal()?;
        Ok(self)
    }

    /// Starts the root, and gives the position of the first entry below it.
    fn root(&mut self) -> Result<u32> {
        let mut position = 0;
        let mut metadata = Metadata::implied_directory();
        if self.index.effective_count() > 0 {
            let first = self.index.effective(0)?;
            if first.path().is_empty() && first.kind() == Kind::Directory {
                metadata = first.metadata();
                position = 1;
            }
        }
        let opaque = self.is_opaque(position, b"")?;
        self.directory(b"", &metadata, opaque)?;
        Ok(position + u32::from(opaque))
    }

    fn is_opaque(&self, position: u32, path: &[u8]) -> Result<bool> {
        if position >= self.index.effective_count() {
            return Ok(false);
        }
        let next = self.index.effective(position)?;
        Ok(next.kind() == Kind::Opaque && next.path() == path)
    }

    /// Closes directories until the one at `path` is the innermost.
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        while let Some(top) = self.open.last().filter(|top| top.path != path) {
            if !is_below(path, top.path) && self.open.len() > 1 {
                self.close();
            } else {
                return Err(Error::Index("an entry without its directory"));
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        let Some(Open { nid, links, listing, .. }) = self.open.pop() else { return };
        let at = nid as usize * SLOT;
        let first = self.blocks.len() / BLOCK;
        let size = listing.finish(&mut self.blocks);
        inode::set_size(&mut self.inodes[at..], size as u64);
        inode::set_first_block(&mut self.inodes[at..], first as u32);
        inode::set_links(&mut self.inodes[at..], links);
        self.relative.push(at);
    }

    /// Adds a name to the innermost directory.
    fn name(&mut self, entry: &Entry<'a>, nid: u32, kind: Kind) -> Result<()> {
        let name = split(entry.path()).1;
        if name.len() > 255 || matches!(name, b"" | b"." | b"..") || name.contains(&0) {
            return Err(Unmountable::Name.into());
        }
        // A directory is the innermost one itself by now.
        let parent = self.open.len().checked_sub(if kind == Kind::Directory { 2 } else { 1 });
        let parent = parent.and_then(|parent| self.open.get_mut(parent));
        let parent = parent.ok_or(Error::Index("an entry without its directory"))?;
        parent.links += u32::from(kind == Kind::Directory);
        let added = parent.listing.add(name, nid, inode::file_type(kind));
        added.then_some(()).ok_or(Error::Index("entries out of order"))
    }

    fn directory(&mut self, path: &'a [u8], metadata: &Metadata, opaque: bool) -> Result<u32> {
        let xattrs = metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        self.attributes.set(Kind::Directory, xattrs)?;
        if opaque {
            self.attributes.add_opaque()?;
        }
        let inode = Inode {
            kind: Kind::Directory,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            modified: metadata.modified,
            ..Inode::default()
        };
        let nid = self.add(&inode, b"");
        let parent = self.open.last().map_or(nid, |parent| parent.nid);
        self.open.push(Open { path, nid, links: 2, listing: Listing::new(nid, parent) });
        Ok(nid)
    }

    fn whiteout(&mut self) -> Result<u32> {
        if let Some(nid) = self.whiteout {
            inode::add_link(&mut self.inodes[nid as usize * SLOT..]);
            return Ok(nid);
        }
        self.attributes.set(Kind::Whiteout, std::iter::empty())?;
        let nid = self.add(&Inode { kind: Kind::Whiteout, ..Inode::default() }, b"");
        self.whiteout = Some(nid);
        Ok(nid)
    }

    /// The inode of what is no directory and no mark, and its kind; hard links share their target's.
    fn file(&mut self, name: &Entry<'a>) -> Result<(u32, Kind)> {
        let entry = match name.link_target() {
            LinkTarget::None => *name,
            LinkTarget::Entry(number) => self.index.entry(number)?,
            LinkTarget::Lower => return Err(Unmountable::NotAlone.into()),
        };
        let kind = entry.kind();
        let known = self.nids.get(entry.number() as usize).copied().ok_or(Error::Index("entry number"))?;
        if known != 0 {
            inode::add_link(&mut self.inodes[known as usize * SLOT..]);
            return Ok((known, kind));
        }
        self.attributes.set(kind, entry.xattrs())?;
        let mut inode = Inode {
            kind,
            mode: entry.mode(),
            uid: entry.uid(),
            gid: entry.gid(),
            modified: entry.modified(),
            ..Inode::default()
        };
        let nid = match kind {
            Kind::Regular => {
                (inode.size, inode.place) = (entry.size(), self.content(&entry)?);
                self.add(&inode, b"")
            }
            Kind::Symlink => self.symlink(inode, entry.link())?,
            Kind::CharacterDevice | Kind::BlockDevice => {
                inode.place = device(entry.kind(), entry.device())?;
                self.add(&inode, b"")
            }
            Kind::Fifo => self.add(&inode, b""),
            Kind::Directory | Kind::HardLink | Kind::Whiteout | Kind::Opaque => {
                return Err(Error::Index("link"));
            }
        };
        self.nids[entry.number() as usize] = nid;
        Ok((nid, kind))
    }

    /// The block where a file's content starts.
    fn content(&self, entry: &Entry<'_>) -> Result<u32> {
        if entry.is_sparse() {
            return Err(Unmountable::Sparse.into());
        }
        if entry.size() == 0 {
            return Ok(0);
        }
        let start = entry.content_offset();
        let end = start.checked_add(entry.size());
        if !start.is_multiple_of(BLOCK as u64) || end.is_none_or(|end| end > self.index.tar_size()) {
            return Err(Error::Index("content offset"));
        }
        let block = TAR + (self.offset + start) / BLOCK as u64;
        u32::try_from(block).map_err(|_| Unmountable::Size.into())
    }

    fn symlink(&mut self, mut inode: Inode, target: &[u8]) -> Result<u32> {
        // The kernel reads a link in pages of at least 4096 bytes, its end included.
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            return Err(Unmountable::Name.into());
        }
        inode.size = target.len() as u64;
        if INODE + self.attributes.bytes().len() + target.len() <= BLOCK {
            inode.format = Format::Inline;
            return Ok(self.add(&inode, target));
        }
        inode.place = (self.blocks.len() / BLOCK) as u32;
        self.blocks.extend_from_slice(target);
        pad(&mut self.blocks, BLOCK);
        let nid = self.add(&inode, b"");
        self.relative.push(nid as usize * SLOT);
        Ok(nid)
    }

    /// Appends an inode with the attributes that were set, and gives its number.
    fn add(&mut self, inode: &Inode, inline: &[u8]) -> u32 {
        pad(&mut self.inodes, SLOT);
        let length = INODE + self.attributes.bytes().len() + inline.len();
        if length <= BLOCK && self.inodes.len() % BLOCK + length > BLOCK {
            // Inline content must not cross a block's end; what crosses none is read faster, too.
            pad(&mut self.inodes, BLOCK);
        }
        self.count += 1;
        let nid = self.inodes.len() / SLOT;
        inode.write(self.count as u32, &self.attributes, &mut self.inodes);
        self.inodes.extend_from_slice(inline);
        nid as u32
    }

    /// Fixes addresses and writes the superblock.
    fn seal(&mut self) -> Result<()> {
        pad(&mut self.inodes, BLOCK);
        let first = self.inodes.len() / BLOCK;
        let total = (first + self.blocks.len() / BLOCK) as u64;
        // Below this, every number of a block and of an inode fits into 32 bits.
        if total >= TAR {
            return Err(Unmountable::Size.into());
        }
        for at in std::mem::take(&mut self.relative) {
            inode::move_first_block(&mut self.inodes[at..], first as u32);
        }
        let mut put = |at: usize, value: &[u8]| self.inodes[at..at + value.len()].copy_from_slice(value);
        let superblock = SUPERBLOCK;
        put(superblock, &MAGIC.to_le_bytes());
        put(superblock + 8, &FEATURE_TIMES.to_le_bytes());
        put(superblock + 12, &[BLOCK.trailing_zeros() as u8]);
        put(superblock + 14, &((FIRST_INODE / SLOT) as u16).to_le_bytes());
        put(superblock + 16, &self.count.to_le_bytes());
        put(superblock + 36, &(total as u32).to_le_bytes());
        let diff_id = self.index.diff_id();
        put(superblock + 48, &diff_id.0.as_bytes()[..16]);
        put(superblock + 80, &FEATURE_DEVICES.to_le_bytes());
        put(superblock + 86, &1_u16.to_le_bytes());
        let device = FIRST_INODE - DEVICE;
        put(superblock + 88, &((device / DEVICE) as u16).to_le_bytes());
        put(device, diff_id.0.hex().as_bytes());
        let blocks = (self.offset + self.index.tar_size()).div_ceil(BLOCK as u64);
        put(device + 64, &(blocks as u32).to_le_bytes());
        put(device + 68, &(TAR as u32).to_le_bytes());
        Ok(())
    }
}

/// Device numbers as Linux writes them to disk (`new_encode_dev`).
fn device(kind: Kind, (major, minor): (u32, u32)) -> Result<u32> {
    let fits = major >> DEVICE_BITS.0 == 0 && minor >> DEVICE_BITS.1 == 0;
    if !fits || (kind == Kind::CharacterDevice && (major, minor) == (0, 0)) {
        return Err(Unmountable::Device.into());
    }
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}
