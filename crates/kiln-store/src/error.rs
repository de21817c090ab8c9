//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use kiln_oci::{DiffId, Digest, DigestError, DocumentError, ReferenceError};

use crate::refusal::is_full;

/// By whom files of a layer were made that this process cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherOwners {
    /// By root.
    Root,
    /// By a user with subordinate IDs, where this process has none.
    SubIds,
    /// By a user with other subordinate IDs.
    OtherSubIds,
    /// By a user without subordinate IDs.
    SingleId,
}

impl std::fmt::Display for OtherOwners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Root => "by root",
            Self::SubIds => "with subordinate IDs",
            Self::OtherSubIds => "with other subordinate IDs",
            Self::SingleId => "without subordinate IDs",
        })
    }
}

/// An error of the store. Each variant names the operation's subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the store.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A path; the error names it itself.
    #[error(transparent)]
    Path(#[from] kiln_sys::root::FileError),
    /// A layer could not be read or written.
    #[error(transparent)]
    Layer(#[from] kiln_layer::Error),
    /// The index of a layer is damaged, or newer than this kiln.
    #[error("cannot use {}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: kiln_layer::Error,
    },
    /// SQLite.
    #[error("store database: cannot {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// `kiln.db` is damaged, or something else, or gone while there are layers.
    #[error(
        "the store's database {} {found}: put back a copy of it, or move {} away and load, import or build the images again",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    LostDatabase {
        /// The file.
        path: PathBuf,
        /// What is there instead, such as `is empty`.
        found: &'static str,
        /// SQLite's answer.
        source: Option<rusqlite::Error>,
    },
    /// Something else has the name of a file that the store writes.
    #[error("{} is no file, and kiln writes one there: remove it", path.display())]
    InTheWay {
        /// What is there.
        path: PathBuf,
    },
    /// SQLite opens no files whose paths are that long.
    #[error("the path of the store at {} is too long: {found} bytes with symbolic links followed, and kiln takes {most} at most; --root or KILN_ROOT names another place", path.display())]
    LongPath {
        /// Where the store was to be.
        path: PathBuf,
        /// Bytes of its path.
        found: usize,
        /// As many are taken.
        most: usize,
    },
    /// The store was written by a newer kiln.
    #[error("the store at {} has schema version {found}; this kiln knows {known}: use a newer kiln, or another --root", path.display())]
    NewerStore {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that is known.
        known: i64,
    },
    /// `kiln.db` belongs to another program.
    #[error("{} is not a kiln database (application_id {found:#x})", path.display())]
    NotKiln {
        /// The file.
        path: PathBuf,
        /// Its application_id.
        found: i64,
    },
    /// The directory is not empty, and no store.
    #[error("{} holds {found:?} and is no kiln store; choose an empty directory, or one that is not there yet, with --root", path.display())]
    NotStore {
        /// The directory.
        path: PathBuf,
        /// The name of something in it.
        found: String,
    },
    /// The directory is somebody else's, who can change all that is in it.
    #[error("{} belongs to user {owner}, and kiln runs as user {own}: the store must be your own; choose another directory with --root", path.display())]
    ForeignStore {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// SQLite's shared memory does not work there.
    #[error("the store cannot be on {file_system} at {}: its locks do not hold between machines; choose a local directory with --root", path.display())]
    NetworkFileSystem {
        /// The store.
        path: PathBuf,
        /// Such as `NFS`.
        file_system: &'static str,
    },
    /// No image by this name or ID.
    #[error("No such image: {0}")]
    NoImage(String),
    /// Several images begin with these digits.
    #[error("image ID {0} is ambiguous: {1} images begin with it")]
    AmbiguousId(String, usize),
    /// Removal by ID would take several names.
    #[error("conflict: unable to delete {0} (must be forced) - image is referenced in multiple repositories")]
    SeveralNames(String),
    /// A layer is known but its data is gone.
    #[error("layer {0} is not in the store")]
    NoLayer(DiffId),
    /// A layer's files are there, and no blob, but this process cannot use them.
    #[error("the files of layer {layer} were made {owners}, and this process cannot use them")]
    OtherOwners {
        /// The layer.
        layer: DiffId,
        /// Whose they are.
        owners: OtherOwners,
    },
    /// Whenever the layers of an image had been synced, one of them had been collected and made anew.
    #[error("other commands make the image's layers anew faster than they can be synced; try again")]
    Restless,
    /// More layers than overlayfs stacks.
    #[error("an image of {layers} layers cannot be run: overlayfs stacks at most {most}")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
        /// How many can be mounted.
        most: usize,
    },
    /// A blob is not in the store.
    #[error("blob {0} is not in the store")]
    NoBlob(Digest),
    /// What is in the store is not what was put there.
    #[error("{what} in the store is damaged: {reason}")]
    Damaged {
        /// The blob or layer.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// Bytes do not have the digest that was promised.
    #[error("{what}: digest is {found}, expected {expected}")]
    Mismatch {
        /// What was read.
        what: String,
        /// The promise.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// An archive that is not an image archive, or contradicts itself.
    #[error("{archive}: {reason}")]
    Archive {
        /// Name of the archive.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// No bytes at all.
    #[error("it is empty: expected {expected}")]
    Empty {
        /// What it was to be.
        expected: &'static str,
    },
    /// An archive or directory that is nothing that holds images.
    #[error("neither manifest.json (docker archive) nor index.json (OCI layout) is in it")]
    NoImages,
    /// A manifest, index or config.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The caller asked to give up.
    #[error("interrupted")]
    Stopped,
    /// The output could not be written.
    #[error("cannot write {what}")]
    Output {
        /// Which output.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Whether a file is not there.
    pub(crate) fn is_missing(&self) -> bool {
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match self {
            Self::File { source, .. } => missing(source),
            Self::Path(error) => missing(&error.source),
            _ => false,
        }
    }

    /// Whether there was no room for what was written.
    pub(crate) fn is_full_disk(&self) -> bool {
        match self {
            Self::File { source, .. } => is_full(source),
            Self::Path(error) => is_full(&error.source),
            _ => false,
        }
    }

    /// Whether this user may not do it.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn archive(archive: &str, reason: impl Into<String>) -> Self {
        Self::Archive { archive: archive.to_owned(), reason: reason.into() }
    }
}

/// The store's result.
pub type Result<T> = std::result::Result<T, Error>;
