//! What a layer says of one path, and the content digest made from it (docs/formats.md, section 3).

use kiln_oci::{Digest, Hasher};
pub use kiln_sys::root::Time;

/// An extended attribute: full name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What an entry of a layer is; the numbers are those of the index format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// Another name of a file of this or a lower layer.
    HardLink = 4,
    /// A character device.
    CharacterDevice = 5,
    /// A block device.
    BlockDevice = 6,
    /// A FIFO.
    Fifo = 7,
    /// The path is removed from lower layers.
    Whiteout = 8,
    /// What lower layers hold in the directory is hidden.
    Opaque = 9,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::HardLink,
            5 => Self::CharacterDevice,
            6 => Self::BlockDevice,
            7 => Self::Fifo,
            8 => Self::Whiteout,
            9 => Self::Opaque,
            _ => return None,
        })
    }

    /// Whether it is a mark on lower layers instead of a file.
    pub fn is_mark(self) -> bool {
        matches!(self, Self::Whiteout | Self::Opaque)
    }
}

/// Everything about an entry but its path and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// The low twelve mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub modified: Time,
    /// Size of a regular file in bytes, else zero.
    pub size: u64,
    /// Device numbers of devices, else zero.
    pub device: (u32, u32),
    /// Target of a symbolic link as written; of a hard link the path in the layer.
    pub link: Vec<u8>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

impl Metadata {
    /// A plain entry of this kind and mode: owner 0:0, at the epoch, empty.
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            modified: Time::default(),
            size: 0,
            device: (0, 0),
            link: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// A directory of mode 0755 and owner 0:0: what a layer implies without saying it.
    pub fn implied_directory() -> Self {
        Self::new(Kind::Directory, 0o755)
    }

    /// The content digest of an entry with this metadata (docs/formats.md, section 3). What a hard link names is not in it.
    pub fn content_digest(&self, tail: &Tail<'_>) -> Digest {
        let hashed = Hashed {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            device: self.device,
            link: &self.link,
        };
        let xattrs = self.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        content_digest(&hashed, xattrs, tail)
    }
}

/// What a content digest is made from, beside the bytes.
pub(crate) struct Hashed<'a> {
    /// What the entry is; a hard link counts as a regular file.
    pub(crate) kind: Kind,
    /// The low twelve mode bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Size of a regular file.
    pub(crate) size: u64,
    /// Device numbers.
    pub(crate) device: (u32, u32),
    /// What it links to; counts for symbolic links alone.
    pub(crate) link: &'a [u8],
}

/// What the digest ends with.
pub enum Tail<'a> {
    /// Anything else.
    Nothing,
    /// The content of a regular file.
    Content(&'a Digest),
    /// What a directory holds.
    Children(&'a Children),
}

impl<'a> Tail<'a> {
    /// Of what is no directory.
    pub fn of(content: Option<&'a Digest>) -> Self {
        content.map_or(Self::Nothing, Self::Content)
    }
}

/// The children of a directory as they enter its digest.
#[derive(Default)]
pub struct Children {
    count: u32,
    bytes: Vec<u8>,
}

impl Children {
    /// Adds the next child in order of name; the name is `prefix` and `name` together.
    pub fn add(&mut self, prefix: &[u8], name: &[u8], digest: &Digest) {
        self.count += 1;
        self.bytes.reserve(4 + prefix.len() + name.len() + digest.as_bytes().len());
        self.bytes.extend_from_slice(&((prefix.len() + name.len()) as u32).to_le_bytes());
        self.bytes.extend_from_slice(prefix);
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(digest.as_bytes());
    }
}

const PREFIX: &[u8] = b"kiln-content-1\n";

/// The content digest of an entry.
pub(crate) fn content_digest<'a>(
    hashed: &Hashed<'_>,
    xattrs: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    tail: &Tail<'_>,
) -> Digest {
    let link = if hashed.kind == Kind::Symlink { hashed.link } else { b"" };
    let mut bytes = Vec::with_capacity(192);
    bytes.extend_from_slice(PREFIX);
    bytes.push(if hashed.kind == Kind::HardLink { Kind::Regular as u8 } else { hashed.kind as u8 });
    for number in [hashed.mode, hashed.uid, hashed.gid] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&hashed.size.to_le_bytes());
    for number in [hashed.device.0, hashed.device.1, link.len() as u32] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(link);
    bytes.extend_from_slice(&(xattrs.len() as u32).to_le_bytes());
    for (name, value) in xattrs {
        for text in [name, value] {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text);
        }
    }
    let mut hasher = Hasher::new();
    match tail {
        Tail::Nothing => {}
        Tail::Content(digest) => bytes.extend_from_slice(digest.as_bytes()),
        Tail::Children(children) => {
            bytes.extend_from_slice(&children.count.to_le_bytes());
            hasher.update(&bytes);
            bytes.clear();
            hasher.update(&children.bytes);
        }
    }
    hasher.update(&bytes);
    hasher.finish()
}

/// The content digest of a whiteout or opaque mark: its kind alone.
pub(crate) fn mark_digest(kind: Kind) -> Digest {
    let mut bytes = PREFIX.to_vec();
    bytes.push(kind as u8);
    Digest::of(&bytes)
}

/// Whether an attribute may come from or go into a layer at all: overlayfs's own marks never do.
pub(crate) fn is_overlay_attribute(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// `security.capability` in its version 2 form: version 3 carries the root of one user namespace, which means nothing
/// elsewhere (capabilities(7), "File capability extended attribute versioning").
pub(crate) fn normalise_capability(value: &mut Vec<u8>) {
    if value.len() == 24 && value[3] == 3 {
        value[3] = 2;
        value.truncate(20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These digests are in cache keys and in indexes.
    #[test]
    fn content_digests_stay_as_they_are() {
        let mut metadata = Metadata {
            uid: 1000,
            gid: 50,
            modified: Time { seconds: 1, nanoseconds: 2 },
            size: 3,
            device: (4, 5),
            link: b"to/where".to_vec(),
            xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
            ..Metadata::new(Kind::Regular, 0o4755)
        };
        let content = Digest::of(b"abc");
        let mut children = Children::default();
        children.add(b".wh.", b"name", &content);
        let mut check = |kind: Kind, tail: &Tail<'_>, digest: &str| {
            metadata.kind = kind;
            assert_eq!(metadata.content_digest(tail).hex(), digest, "{kind:?}");
            metadata.modified.seconds += 1;
        };
        let file = "3a7e8dc71b7a1c5c8a2ca684b72f6f17b23488983729258f92d161ecee74865f";
        check(Kind::Regular, &Tail::Content(&content), file);
        // Another name of a file is the file, wherever the first one is.
        check(Kind::HardLink, &Tail::Content(&content), file);
        check(
            Kind::Regular,
            &Tail::Nothing,
            "888681b81df8dcb52d92c29a9e108afc6673001355a212a0de0d8750ca13c1e8",
        );
        check(
            Kind::Directory,
            &Tail::Children(&children),
            "9789bf0013f0b20345cd3fd0423f22d327c6dee50f73fa35c583bcb17917766f",
        );
        check(
            Kind::Symlink,
            &Tail::Nothing,
            "24913e7ac094827b9a6c3fa93ec5e62690457271acdbe89a29f03e1e12475cb6",
        );
        check(
            Kind::CharacterDevice,
            &Tail::Nothing,
            "7942eb67c1f4e9d2aea854f6edc1630f1fb9eb1a3807251dbd36d048d62ea12a",
        );
        check(
            Kind::BlockDevice,
            &Tail::Nothing,
            "1848f7e1299f9de517a422563ab9a3742c6b643b9ac5356236f705dbd5ed12b2",
        );
        check(Kind::Fifo, &Tail::Nothing, "0049fbb21c924630d3cef0ba5a3bdd18db8642bc5e7ebfe959edee5c6e8191ba");
    }
}
