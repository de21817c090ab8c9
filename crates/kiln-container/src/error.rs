//! What keeps a container from being run; a command that merely fails is no error.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A layer index's.
    #[error(transparent)]
    Layer(#[from] kiln_layer::Error),
    /// The user cannot be found in the image.
    #[error(transparent)]
    User(#[from] kiln_oci::UserError),
    /// The command could not be started, or not be followed.
    #[error(transparent)]
    Runtime(#[from] kiln_runtime::RuntimeError),
    /// This process may neither mount nor change its root directory.
    #[error("no command can be run here: {0}")]
    NoIsolation(String),
    /// Neither the image nor the request says what to run.
    #[error("no command specified")]
    NoCommand,
    /// The working directory is relative.
    #[error("the working directory '{0}' is invalid, it needs to be an absolute path")]
    RelativeDirectory(String),
    /// What a volume needs on the host cannot be made.
    #[error("cannot make {path} for a volume: {source}")]
    Volume {
        /// The path on the host.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("cannot make a container ID: {0}")]
    Random(io::Error),
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit status that Docker gives for it: 127, 126, or 125 for what is not the command's fault.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Runtime(error) => error.status(),
            _ => 125,
        }
    }
}
