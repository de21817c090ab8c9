//! What a vertex does, and the fixed part of its cache key (docs/formats.md, section 6).

use kiln_graph::{Operation as KeyOperation, Value};
use kiln_oci::DiffId;

use crate::checksum::Checksum;
use crate::environment::Settings;
use crate::git::GitAddress;
use crate::request::NetworkMode;

/// What a vertex does.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Layers that are in the store already: an image, or none.
    Base(Vec<DiffId>),
    /// RUN.
    Run(Box<RunOperation>),
    /// COPY and ADD.
    Copy(Box<CopyOperation>),
    /// WORKDIR.
    Workdir(WorkdirOperation),
    /// What ADD takes from the web: a root with one file.
    Download(DownloadOperation),
    /// What ADD takes from a repository: a root with the files of a commit.
    Git(Box<GitAddress>),
}

/// Role of the edge to the parent.
pub(crate) const ROOT: &str = "root";

/// RUN.
#[derive(Clone, Debug)]
pub(crate) struct RunOperation {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: StepEnvironment,
    pub(crate) directory: String,
    pub(crate) user: String,
    pub(crate) network: NetworkMode,
    pub(crate) security: SecurityMode,
    pub(crate) mounts: Vec<RunMount>,
    /// A heredoc that begins with `#!`: name and content of a file under /dev/pipes.
    pub(crate) script: Option<(String, String)>,
    pub(crate) epoch: Option<i64>,
}

/// The variables of a RUN, shared with the other steps of its stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepEnvironment {
    pub(crate) settings: Settings,
    /// Proxy variables whose values were build arguments: they are in no key.
    pub(crate) withheld: Vec<String>,
}

impl StepEnvironment {
    /// Names and values, in order.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.pairs().into_iter().filter(|(name, _)| !self.withheld.iter().any(|known| known == name))
    }
}

/// `RUN --security`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecurityMode {
    Sandbox,
    Insecure,
}

/// `RUN --mount`.
#[derive(Clone, Debug)]
pub(crate) struct RunMount {
    /// Absolute.
    pub(crate) target: String,
    pub(crate) kind: RunMountKind,
}

/// The kinds of `RUN --mount` that are built.
#[derive(Clone, Debug)]
pub(crate) enum RunMountKind {
    Bind { source: MountSource, path: String, access: Access },
    Cache(CacheMount),
    Tmpfs { size: u64 },
}

/// `RUN --mount=type=cache`.
#[derive(Clone, Debug)]
pub(crate) struct CacheMount {
    pub(crate) id: String,
    pub(crate) sharing: CacheSharing,
    pub(crate) source: MountSource,
    pub(crate) path: String,
    /// What a directory of its own begins with, where the Dockerfile says so.
    pub(crate) owner: Option<CacheOwner>,
    pub(crate) access: Access,
}

/// `uid=`, `gid=` and `mode=` of a cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl CacheOwner {
    /// What stands in for what is not said.
    pub(crate) const ROOT: Self = Self { uid: 0, gid: 0, mode: 0o755 };
}

/// What a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// An empty directory.
    Empty,
    /// The build context.
    Context,
    /// An input of the vertex, by position.
    Input(usize),
}

/// Whether a mount may be written to. Writes to a bind mount are thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// `sharing=` of a cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheSharing {
    Shared,
    Private,
    Locked,
}

/// COPY and ADD.
#[derive(Clone, Debug)]
pub(crate) struct CopyOperation {
    pub(crate) sources: Vec<CopySource>,
    /// Where the paths of `sources` are looked up.
    pub(crate) from: MountSource,
    /// Absolute; ends in `/` if the Dockerfile's does, or is `.`.
    pub(crate) destination: String,
    /// `--chown` as written.
    pub(crate) owner: Option<String>,
    /// `--chmod`, octal or symbolic, as written.
    pub(crate) mode: Option<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) parents: bool,
    pub(crate) link: bool,
    pub(crate) kind: CopyKind,
    pub(crate) epoch: Option<i64>,
}

/// One source of COPY or ADD.
#[derive(Clone, Debug)]
pub(crate) enum CopySource {
    /// A path or pattern.
    Path(String),
    /// A heredoc.
    Inline { name: String, content: String },
    /// The file that an input of the vertex, a [`DownloadOperation`], gives; `name` is what it is called inside of a
    /// directory that it is copied into.
    Download { input: usize, name: String, unpack: bool },
    /// Everything that an input of the vertex, a repository, gives.
    Repository { input: usize },
}

/// How archives among the sources are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyKind {
    /// COPY, or ADD --unpack=false.
    Plain,
    /// ADD: local archives are unpacked.
    Unpack,
}

/// A file from the web.
#[derive(Clone, Debug)]
pub(crate) struct DownloadOperation {
    /// As written.
    pub(crate) url: String,
    /// `--checksum`
    pub(crate) checksum: Option<Checksum>,
}

/// WORKDIR: makes the directory if it is not there.
#[derive(Clone, Debug)]
pub(crate) struct WorkdirOperation {
    pub(crate) path: String,
    /// USER as it stands, empty for root.
    pub(crate) user: String,
    pub(crate) epoch: Option<i64>,
}

impl Operation {
    /// The fixed part of the key.
    pub(crate) fn key_operation(&self, platform: &str, ownership: &str) -> KeyOperation {
        match self {
            Self::Base(layers) => {
                let layers: Vec<Value> = layers.iter().map(|layer| Value::from(layer.to_string())).collect();
                KeyOperation::new("base", 1, platform).with("layers", Value::List(layers))
            }
            Self::Run(run) => run.key_operation(platform, ownership),
            Self::Copy(copy) => copy.key_operation(platform),
            Self::Workdir(workdir) => KeyOperation::new("workdir", 1, platform)
                .with("path", Value::from(workdir.path.as_str()))
                .with("user", Value::from(workdir.user.as_str()))
                .with("epoch", Value::from(workdir.epoch)),
            // When the file was changed is added by whoever asks the server.
            Self::Download(_) => {
                KeyOperation::new("download", 1, platform).with("modified", Value::from(None::<i64>))
            }
            Self::Git(address) => KeyOperation::new("git", 2, platform)
                .with("git_dir", Value::from(address.keeps_git_dir()))
                .with("submodules", Value::from(address.submodules)),
        }
    }
}

impl RunOperation {
    fn key_operation(&self, platform: &str, ownership: &str) -> KeyOperation {
        let mut environment: Vec<String> =
            self.environment.pairs().map(|(name, value)| format!("{name}={value}")).collect();
        environment.sort();
        let mounts: Vec<Value> = self.mounts.iter().map(RunMount::value).collect();
        let security = match self.security {
            SecurityMode::Sandbox => "sandbox",
            SecurityMode::Insecure => "insecure",
        };
        let script = self
            .script
            .as_ref()
            .map(|(name, content)| Value::object([("name", name.as_str()), ("content", content.as_str())]));
        KeyOperation::new("run", 1, platform)
            .with("arguments", Value::from(self.arguments.clone()))
            .with("environment", Value::from(environment))
            .with("directory", Value::from(self.directory.as_str()))
            .with("user", Value::from(self.user.as_str()))
            .with("network", Value::from(self.network.name()))
            .with("security", Value::from(security))
            .with("ownership", Value::from(ownership))
            .with("mounts", Value::List(mounts))
            .with("script", script.unwrap_or(Value::Null))
            .with("epoch", Value::from(self.epoch))
    }
}

impl RunMount {
    fn value(&self) -> Value {
        let target = ("target", Value::from(self.target.as_str()));
        let access = |access: Access| {
            let name = match access {
                Access::ReadOnly => "ro",
                Access::ReadWrite => "rw",
            };
            ("access", Value::from(name))
        };
        match &self.kind {
            RunMountKind::Bind { access: mode, .. } => {
                Value::object([("kind", Value::from("bind")), target, access(*mode)])
            }
            RunMountKind::Cache(CacheMount { id, sharing, owner, access: writable, path, .. }) => {
                let CacheOwner { uid, gid, mode } = owner.unwrap_or(CacheOwner::ROOT);
                let sharing = match sharing {
                    CacheSharing::Shared => "shared",
                    CacheSharing::Private => "private",
                    CacheSharing::Locked => "locked",
                };
                Value::object([
                    ("kind", Value::from("cache")),
                    target,
                    ("id", Value::from(id.as_str())),
                    ("sharing", Value::from(sharing)),
                    ("path", Value::from(path.as_str())),
                    ("uid", Value::from(uid)),
                    ("gid", Value::from(gid)),
                    ("mode", Value::from(mode)),
                    access(*writable),
                ])
            }
            RunMountKind::Tmpfs { size } => Value::object([
                ("kind", Value::from("tmpfs")),
                target,
                ("size", Value::from(i64::try_from(*size).unwrap_or(i64::MAX))),
            ]),
        }
    }
}

impl CopyOperation {
    /// The inputs, by position, that single sources are taken from.
    pub(crate) fn source_inputs(&self) -> impl Iterator<Item = usize> {
        self.sources.iter().filter_map(|source| match source {
            CopySource::Download { input, .. } | CopySource::Repository { input } => Some(*input),
            CopySource::Path(_) | CopySource::Inline { .. } => None,
        })
    }

    /// Whether a source is a path of what [`CopyOperation::from`] says.
    pub(crate) fn takes_paths(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, CopySource::Path(_)))
    }
    fn key_operation(&self, platform: &str) -> KeyOperation {
        let kind = match self.kind {
            CopyKind::Plain => "copy",
            CopyKind::Unpack => "add",
        };
        KeyOperation::new("copy", 1, platform)
            .with("destination", Value::from(self.destination.as_str()))
            .with("owner", Value::from(self.owner.clone()))
            .with("mode", Value::from(self.mode.clone()))
            .with("kind", Value::from(kind))
            .with("parents", Value::from(self.parents))
            .with("link", Value::from(self.link))
            .with("epoch", Value::from(self.epoch))
    }
}
