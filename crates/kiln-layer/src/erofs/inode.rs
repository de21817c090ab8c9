//! Inodes of an EROFS image, always in their extended form, with their extended attributes behind them.

use kiln_sys::root::Time;

use super::Unmountable;
use crate::error::Result;
use crate::metadata::{Kind, is_overlay_attribute};

/// Inodes are numbered by the slots they start at.
pub(super) const SLOT: usize = 32;
/// An extended inode, without attributes.
pub(super) const INODE: usize = 64;

/// Where the content of an inode is.
#[derive(Clone, Copy)]
pub(super) enum Format {
    /// In successive blocks from `place` on.
    Blocks,
    /// Behind the inode.
    Inline,
}

/// An inode to be written, with one link.
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) format: Format,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Time,
    pub(super) size: u64,
    /// The first block of the content, or the number of a device.
    pub(super) place: u32,
}

impl Default for Inode {
    fn default() -> Self {
        Self {
            kind: Kind::Regular,
            format: Format::Blocks,
            mode: 0,
            uid: 0,
            gid: 0,
            modified: Time { seconds: 0, nanoseconds: 0 },
            size: 0,
            place: 0,
        }
    }
}

impl Inode {
    /// Appends the inode and its attributes; `number` is what 32-bit programs see.
    pub(super) fn write(&self, number: u32, attributes: &Attributes, to: &mut Vec<u8>) {
        let format: u16 = match self.format {
            Format::Blocks => 1,
            Format::Inline => 1 | 2 << 1,
        };
        let mut bytes = [0; INODE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &format.to_le_bytes());
        put(2, &attributes.count().to_le_bytes());
        put(4, &(type_bits(self.kind) | (self.mode & 0o7777) as u16).to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.place.to_le_bytes());
        put(20, &number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.modified.seconds.to_le_bytes());
        put(40, &self.modified.nanoseconds.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        to.extend_from_slice(&bytes);
        to.extend_from_slice(attributes.bytes());
    }
}

pub(super) fn set_size(inode: &mut [u8], size: u64) {
    inode[8..16].copy_from_slice(&size.to_le_bytes());
}

pub(super) fn set_first_block(inode: &mut [u8], block: u32) {
    inode[16..20].copy_from_slice(&block.to_le_bytes());
}

/// Adds to the number of the first block.
pub(super) fn move_first_block(inode: &mut [u8], by: u32) {
    add(&mut inode[16..20], by);
}

pub(super) fn set_links(inode: &mut [u8], links: u32) {
    inode[44..48].copy_from_slice(&links.to_le_bytes());
}

pub(super) fn add_link(inode: &mut [u8]) {
    add(&mut inode[44..48], 1);
}

fn add(number: &mut [u8], by: u32) {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(number);
    number.copy_from_slice(&u32::from_le_bytes(bytes).wrapping_add(by).to_le_bytes());
}

fn type_bits(kind: Kind) -> u16 {
    match kind {
        Kind::Regular | Kind::HardLink => 0o100_000,
        Kind::Directory | Kind::Opaque => 0o040_000,
        Kind::Symlink => 0o120_000,
        Kind::CharacterDevice | Kind::Whiteout => 0o020_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Fifo => 0o010_000,
    }
}

/// The number by which a directory says what a name is.
pub(super) fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::Regular | Kind::HardLink => 1,
        Kind::Directory | Kind::Opaque => 2,
        Kind::CharacterDevice | Kind::Whiteout => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
    }
}

/// The extended attributes of one inode as they stand behind it: empty, or a header and entries.
#[derive(Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
}

const HEADER: usize = 12;
const USER: u8 = 1;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

impl Attributes {
    /// Takes those of a layer's entry that unpacking would write.
    pub(super) fn set<'x>(
        &mut self,
        kind: Kind,
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<()> {
        self.bytes.clear();
        let mut before: &[u8] = b"";
        for (name, value) in xattrs {
            let twice = before == name;
            before = name;
            if twice || name.len() > 255 || name.contains(&0) || is_overlay_attribute(name) {
                return Err(Unmountable::Attribute.into());
            }
            let (namespace, rest) = if let Some(rest) = name.strip_prefix(b"user.") {
                if !matches!(kind, Kind::Regular | Kind::Directory) {
                    // The kernel lets nothing else have them (xattr(7)).
                    continue;
                }
                (USER, rest)
            } else if let Some(rest) = name.strip_prefix(b"trusted.") {
                (TRUSTED, rest)
            } else if let Some(rest) = name.strip_prefix(b"security.") {
                // Version 2, as the kernel stores it; another it would convert or refuse (capabilities(7)).
                if rest == b"capability" && (value.len() != 20 || value[3] != 2) {
                    return Err(Unmountable::Attribute.into());
                }
                (SECURITY, rest)
            } else if name.starts_with(b"system.") {
                // Access control lists change the mode.
                return Err(Unmountable::Attribute.into());
            } else {
                // A namespace that no file system knows.
                continue;
            };
            self.add(namespace, rest, value)?;
        }
        Ok(())
    }

    /// Adds overlayfs's mark of an opaque directory.
    pub(super) fn add_opaque(&mut self) -> Result<()> {
        self.add(TRUSTED, b"overlay.opaque", b"y")
    }

    fn add(&mut self, namespace: u8, name: &[u8], value: &[u8]) -> Result<()> {
        let (Ok(name_length @ 1..), Ok(value_length)) =
            (u8::try_from(name.len()), u16::try_from(value.len()))
        else {
            return Err(Unmountable::Attribute.into());
        };
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER, 0);
        }
        self.bytes.extend_from_slice(&[name_length, namespace]);
        self.bytes.extend_from_slice(&value_length.to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        super::pad(&mut self.bytes, 4);
        // What `count` gives must fit into 16 bits.
        if (self.bytes.len() - HEADER) / 4 >= usize::from(u16::MAX) {
            return Err(Unmountable::Attribute.into());
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Their size as the inode says it: 0 for none, else 1 and the number of 4-byte words behind the header.
    fn count(&self) -> u16 {
        match self.bytes.len() {
            0 => 0,
            length => 1 + ((length - HEADER) / 4) as u16,
        }
    }
}
