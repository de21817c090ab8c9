//! What can go wrong with a layer.

use std::io;

use kiln_sys::root::FileError;

use crate::erofs::Unmountable;
use crate::path;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layer's bytes could not be read.
    #[error("read the layer")]
    Read(#[source] io::Error),
    /// The layer's bytes could not be written.
    #[error("write the layer")]
    Write(#[source] io::Error),
    /// The compressed stream is damaged, or followed by something else.
    #[error("damaged or cut off ({compression})")]
    Decompress {
        /// The compression found by its magic.
        compression: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The compressed stream is followed by bytes that belong to no member.
    #[error("the {compression} stream is followed by bytes that are not {compression}")]
    TrailingBytes {
        /// The compression found by its magic.
        compression: &'static str,
    },
    /// The tar breaks its format.
    #[error("{}: {problem}", if *offset == 0 { "no tar archive".to_owned() } else { format!("damaged tar at byte {offset}") })]
    Tar {
        /// Where the header or block starts in the uncompressed tar.
        offset: u64,
        /// What is wrong.
        problem: TarProblem,
    },
    /// An entry that no layer may hold.
    #[error("layer entry {path}: {problem}")]
    Entry {
        /// The entry, for people.
        path: String,
        /// What is wrong.
        problem: EntryProblem,
    },
    /// What an entry says could not be done where it was unpacked.
    #[error("layer entry {path}: cannot {operation} it")]
    Unpack {
        /// The entry, for people.
        path: String,
        /// What was tried, as a verb phrase ("set the owner of").
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An entry's owner is none that this process can give files to: chown(2)'s `EINVAL`, for what is not mapped into the user
    /// namespace.
    #[error(
        "layer entry {path}: its owner {uid}:{gid} is not among the user and group IDs that there are here"
    )]
    Owner {
        /// The entry, for people.
        path: String,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// An extended attribute of an entry could not be set.
    #[error("layer entry {path}: cannot set the attribute {attribute}")]
    Attribute {
        /// The entry, for people.
        path: String,
        /// The attribute's name, for people.
        attribute: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The layer goes beyond a limit.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The layer index is damaged.
    #[error("damaged layer index: {0}")]
    Index(&'static str),
    /// The layer index has a version that this kiln does not know.
    #[error("layer index: {what} has version {found}, this kiln knows {known}")]
    IndexVersion {
        /// The file format or a section.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The version known here.
        known: u32,
    },
    /// Symbolic links lead in a circle, or too far.
    #[error("{path}: too many levels of symbolic links")]
    Loop {
        /// The path that was looked up.
        path: String,
    },
    /// The bytes of a file are in none of the layer's sources.
    #[error("{path}: the layer has no source left for its content")]
    NoSource {
        /// The file.
        path: String,
    },
    /// The layer cannot be mounted without unpacking it.
    #[error("the layer must be unpacked: {0}")]
    Unmountable(#[from] Unmountable),
    /// A file on disk could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file changed while it was read into a layer.
    #[error("{path}: the file changed while it was read (expected {expected} bytes)")]
    Changed {
        /// The file, by its path in the layer.
        path: String,
        /// The size it was announced with.
        expected: u64,
    },
    /// A thread of the pipeline ended without a word.
    #[error("a worker thread stopped unexpectedly")]
    Worker,
}

impl Error {
    /// The same, of the entry at `path`: where it is unpacked says nothing to who made the layer. A full disk is no matter
    /// of an entry's.
    pub(crate) fn of_entry(self, path: &[u8]) -> Self {
        let FileError { operation, source, .. } = match self {
            Self::File(error) if !is_of_the_disk(error.kind()) => error,
            other => return other,
        };
        let path = path::shown(path);
        match source.kind() {
            io::ErrorKind::NotADirectory => Self::Entry { path, problem: EntryProblem::ParentNotDirectory },
            _ => Self::Unpack { path, operation, source },
        }
    }
}

/// Whether it would be so for any file on the disk.
fn is_of_the_disk(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// How a tar breaks its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// Neither sum of the header's bytes is the checksum it carries.
    #[error("wrong header checksum")]
    Checksum,
    /// A single zero block, then more.
    #[error("a zero block in the middle")]
    LoneZeroBlock,
    /// The stream ends inside an entry.
    #[error("ends in the middle of an entry")]
    Truncated,
    /// A number field is neither octal nor base-256, or out of range.
    #[error("bad number in field {0}")]
    Number(&'static str),
    /// An extended header does not follow POSIX pax.
    #[error("bad pax record")]
    Pax,
    /// An extended header that is larger than any reader takes.
    #[error("extended header larger than 1 MiB")]
    ExtendedHeaderSize,
    /// Two extended headers give the entry different names or links.
    #[error("two extended headers disagree")]
    Ambiguous,
    /// A global header changes what readers see of the entries; readers disagree on it.
    #[error("a global header overrides names, sizes or owners")]
    GlobalOverride,
    /// Something that other readers of tar take for something else.
    #[error("readers of tar disagree about {0}")]
    Disagreement(&'static str),
    /// A sparse map that is out of order, overlapping or beyond the file.
    #[error("bad sparse map")]
    Sparse,
    /// A type that layers do not hold.
    #[error("entry type {:?} is not supported", char::from(*.0))]
    Type(u8),
}

/// Why an entry may not be in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// The root must be a directory.
    #[error("the root of a layer must be a directory")]
    RootNotDirectory,
    /// `.wh.`, `.wh..` and `.wh...` name nothing that could be hidden.
    #[error("a whiteout of nothing")]
    Whiteout,
    /// The entry is below something that is not a directory.
    #[error("its parent is not a directory")]
    ParentNotDirectory,
    /// A hard link to a directory.
    #[error("a hard link to a directory")]
    LinkToDirectory,
    /// A hard link that takes the place of the directory in which its target is.
    #[error("a hard link in the place of the directory that holds its target")]
    LinkInside,
    /// Its name or link is longer than the kernel takes.
    #[error("its path is too long")]
    PathTooLong,
    /// It is nested deeper than allowed.
    #[error("its path is too deep")]
    TooDeep,
    /// Symbolic links in its own path lead in a circle.
    #[error("too many levels of symbolic links")]
    Loop,
    /// A symbolic link to nothing.
    #[error("a link without a target")]
    EmptyLink,
    /// Two layers' sources cannot be written as one entry.
    #[error("an entry of a kind that a layer cannot hold")]
    Kind,
    /// A record of a tar begins with its key and a `=` (POSIX pax): a reader would cut the attribute's name there.
    #[error("an attribute of it has a = in its name, which no tar can hold")]
    AttributeName,
    /// Readers of tars take so much for an entry, ours as well.
    #[error("its extended attributes are larger than a tar can hold")]
    Attributes,
    /// The name would be read as a whiteout.
    #[error("its name is reserved for whiteouts")]
    ReservedName,
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
