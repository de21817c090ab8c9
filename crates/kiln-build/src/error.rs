//! Why a build fails.

use std::fmt;

use kiln_dockerfile::Span;
use kiln_oci::{DocumentError, ReferenceError, UserError};

/// Why something is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing is known.
    Unexplained,
    /// It is excluded by the ignore file.
    Ignored,
    /// It would be this, if case did not count.
    OtherCase(String),
    /// Symbolic links lead from it to this path, where nothing is.
    Link(String),
    /// A symbolic link is on the way, which `--parents` does not follow.
    BehindLink,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unexplained => Ok(()),
            Self::Ignored => write!(f, ": it is excluded by the ignore file"),
            Self::OtherCase(path) => write!(f, ": there is {path:?}, and case counts"),
            Self::BehindLink => write!(f, ": --parents follows no symbolic link on the way"),
            Self::Link(path) => write!(f, ": symbolic links lead from it to {path:?}, which is not in there"),
        }
    }
}

/// A failed build.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile cannot be built; every fault, rendered with its lines.
    #[error("{0}")]
    Dockerfile(String),
    /// One instruction cannot be built.
    #[error("{message}")]
    Instruction {
        /// What is wrong.
        message: String,
        /// Where in the Dockerfile.
        span: Span,
        /// What may be meant.
        hint: Option<String>,
    },
    /// A base image is not in the store.
    #[error("{reference}: no such image in the store at {store}{}", near_stage.as_ref().map(|near| format!(" (did you mean the stage {near}?)")).unwrap_or_default())]
    NoBase {
        /// What was looked for, in full.
        reference: String,
        /// Where.
        store: String,
        /// FROM or --from.
        span: Span,
        /// A stage of nearly that name.
        near_stage: Option<String>,
    },
    /// A source of COPY or ADD, or of a bind mount.
    #[error("{path:?} not found in {place}{absence}")]
    NoSource {
        /// As written.
        path: String,
        /// The build context, or which stage or image.
        place: String,
        /// What is known of why.
        absence: Absence,
    },
    /// A layer that the store counts among those that are there.
    #[error(
        "the index of layer {layer} is gone from {path}: `kiln system check` tells what else is, and how to repair it"
    )]
    LostIndex {
        /// The layer.
        layer: kiln_oci::DiffId,
        /// Where its index should be.
        path: String,
    },
    /// A file changed while it was read, twice.
    #[error("{0} changed while it was read")]
    Changed(String),
    /// `--chmod`
    #[error("{0:?} is no mode: expected an octal number from 0 to 7777, or changes such as u=rwX,go-w")]
    Mode(String),
    /// A path of the image goes through something that is no directory.
    #[error("{0} is not a directory")]
    NotDirectory(String),
    /// A directory would be copied onto something else.
    #[error("cannot copy a directory over {0}, which is not a directory")]
    DirectoryOverFile(String),
    /// Something else would be copied onto a directory.
    #[error("cannot copy a file over {0}, which is a directory")]
    FileOverDirectory(String),
    /// Something that should be a regular file.
    #[error("{0} is not a regular file")]
    NotFile(String),
    /// A file that is read whole.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        path: String,
        /// In bytes.
        limit: u64,
    },
    /// Symbolic links lead in a circle.
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
    /// What ADD takes from the web is not what `--checksum` says.
    #[error("digest mismatch for {url}: expected {expected}, found {found}")]
    Checksum {
        /// Where it came from.
        url: String,
        /// As written.
        expected: String,
        /// Of what came, by the same algorithm.
        found: String,
    },
    /// A git repository.
    #[error("{remote}: {problem}")]
    Git {
        /// Without credentials.
        remote: String,
        /// What is wrong, or what git said.
        problem: String,
    },
    /// git got on with nothing for too long, or next to it.
    #[error("{remote}: the server sent nothing for {} seconds", after.as_secs())]
    GitStalled {
        /// Without credentials.
        remote: String,
        /// How long was waited.
        after: std::time::Duration,
    },
    /// A git repository takes more than it may.
    #[error("{remote}: larger than {limit} bytes")]
    GitTooLarge {
        /// Without credentials.
        remote: String,
        /// In bytes.
        limit: u64,
    },
    /// A git repository has more of something than it may.
    #[error("{remote}: more than {limit} {what}")]
    GitTooMany {
        /// Without credentials.
        remote: String,
        /// Of what.
        what: &'static str,
        /// How many it may have.
        limit: usize,
    },
    /// There is no git.
    #[error("git repositories are read with the git program, which is not on PATH")]
    NoGit,
    /// A download.
    #[error(transparent)]
    Remote(#[from] kiln_remote::Error),
    /// An archive that ADD unpacks.
    #[error("cannot unpack {path}")]
    Archive {
        /// Which.
        path: String,
        /// What is wrong with it.
        source: kiln_layer::Error,
    },
    /// An entry of an archive that ADD unpacks.
    #[error("cannot unpack {path}: entry {entry}: {problem}")]
    ArchiveEntry {
        /// Which archive.
        path: String,
        /// Its entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that a layer takes for a whiteout (OCI image-spec `layer.md`, "Whiteouts").
    #[error("cannot {action}: in a layer, a name that begins with .wh. says that a file is removed")]
    ReservedName {
        /// What was to be done, and with which file.
        action: String,
    },
    /// A layer could not be made or read.
    #[error(transparent)]
    Layer(#[from] kiln_layer::Error),
    /// A step must be executed, and [`crate::Executions::Refused`] was asked for.
    #[error("a step is not in the cache")]
    NeedsFiles,
    /// A command would have to be run, and [`crate::Executions::WithoutCommands`] was asked for.
    #[error("no command can be run here: {reason}")]
    NoCommands {
        /// Why not.
        reason: String,
    },
    /// A RUN step ended with a status other than 0.
    #[error("process {command:?} did not complete successfully: exit code: {status}")]
    Exit {
        /// The arguments, joined.
        command: String,
        /// As a shell shows it: 128 and the signal's number if a signal ended it.
        status: i32,
    },
    /// The build asks for what only `--allow` grants.
    #[error("{what} needs an allowance: --allow {allowance}")]
    NotAllowed {
        /// What asked.
        what: String,
        /// What to say.
        allowance: &'static str,
    },
    /// Something of the Dockerfile language that this version does not build.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A user or group.
    #[error(transparent)]
    User(#[from] UserError),
    /// A reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A config.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A RUN step's command could not be started.
    #[error("process {command:?} could not be started (exit code {status})")]
    NotStarted {
        /// The arguments, joined.
        command: String,
        /// 126 or 127.
        status: i32,
        /// Why.
        source: kiln_runtime::RuntimeError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] kiln_store::Error),
    /// A path.
    #[error(transparent)]
    Path(#[from] kiln_sys::root::FileError),
    /// The sandbox.
    #[error(transparent)]
    Runtime(#[from] kiln_runtime::RuntimeError),
    /// A word could not be expanded, or a value is not what it should be.
    #[error(transparent)]
    Syntax(#[from] kiln_dockerfile::Error),
    /// A pattern of the ignore file.
    #[error("cannot read the ignore file")]
    IgnoreFile(#[source] kiln_dockerfile::Error),
    /// A file of the context or the store.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An instruction of `--change`.
    #[error("cannot apply the change {change:?}: {reason}")]
    Change {
        /// As given.
        change: String,
        /// What is wrong.
        reason: String,
    },
    /// Ctrl-C.
    #[error("canceled")]
    Canceled,
}

impl Error {
    /// How an operation stops for it.
    pub(crate) fn stop(self) -> kiln_graph::Stop<Self> {
        if crate::stopping::is_end(&self) {
            kiln_graph::Stop::Canceled
        } else {
            kiln_graph::Stop::Failed(self)
        }
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
