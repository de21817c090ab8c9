//! What a vertex does, and the fixed part of its cache key (docs/formats.md, section 6).

use std::sync::{Mutex, PoisonError};

use kiln_graph::{Operation as KeyOperation, Preimage, Value};
use kiln_oci::{DiffId, Digest};

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
    /// The variables, shared with the other steps of its stage.
    pub(crate) environment: Settings,
    pub(crate) directory: String,
    pub(crate) user: String,
    pub(crate) network: NetworkMode,
    pub(crate) security: SecurityMode,
    pub(crate) mounts: Vec<RunMount>,
    /// A heredoc that begins with `#!`: name and content of a file under /dev/pipes.
    pub(crate) script: Option<(String, String)>,
    pub(crate) epoch: Option<i64>,
}

/// The member of a RUN's key that holds its variables.
pub(crate) const ENVIRONMENT: &str = "environment";

/// The variables of the last RUN as they stand in its key: those of the next one are mostly the same, and may be many.
#[derive(Debug, Default)]
pub(crate) struct KeyedEnvironment(Mutex<Option<(Settings, Value)>>);

impl KeyedEnvironment {
    /// The value of the key's member; clones of one share it.
    fn of(&self, environment: &Settings) -> Value {
        let last = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, value)) = &*last()
            && known.is(environment)
        {
            return value.clone();
        }
        let mut pairs: Vec<String> =
            environment.pairs().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.sort();
        let value = Value::from(pairs);
        *last() = Some((environment.clone(), value.clone()));
        value
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
    pub(crate) fn key_operation(
        &self,
        platform: &str,
        ownership: &str,
        environments: &KeyedEnvironment,
    ) -> KeyOperation {
        match self {
            Self::Base(layers) => {
                let layers: Vec<Value> = layers.iter().map(|layer| Value::from(layer.to_string())).collect();
                KeyOperation::new("base", 1, platform).with("layers", layers)
            }
            Self::Run(run) => run.key_operation(platform, ownership, environments),
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
    /// The mounts whose content is in the key, in order, and what they show: of caches what a new one begins with.
    pub(crate) fn keyed_mounts(&self) -> impl Iterator<Item = (&RunMount, MountSource, &str)> {
        self.mounts.iter().filter_map(|mount| match &mount.kind {
            RunMountKind::Cache(CacheMount { source: MountSource::Empty, .. })
            | RunMountKind::Tmpfs { .. } => None,
            RunMountKind::Bind { source, path, .. }
            | RunMountKind::Cache(CacheMount { source, path, .. }) => Some((mount, *source, path.as_str())),
        })
    }

    /// What a step came from whose key says `expected`, and whose bind mounts of the context showed this.
    pub(crate) fn came_from(&self, expected: &Preimage, shown: &[Digest]) -> Preimage {
        let mut preimage = expected.clone();
        let mut shown = shown.iter();
        let inputs = preimage.inputs.iter_mut().filter(|input| input.name != ROOT);
        for (input, (mount, ..)) in inputs.zip(self.keyed_mounts()) {
            if let RunMountKind::Bind { source: MountSource::Context, .. } = mount.kind
                && let Some(digest) = shown.next()
            {
                input.digest = *digest;
            }
        }
        preimage
    }

    fn key_operation(
        &self,
        platform: &str,
        ownership: &str,
        environments: &KeyedEnvironment,
    ) -> KeyOperation {
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
            .with(ENVIRONMENT, environments.of(&self.environment))
            .with("directory", Value::from(self.directory.as_str()))
            .with("user", Value::from(self.user.as_str()))
            .with("network", Value::from(self.network.name()))
            .with("security", Value::from(security))
            .with("ownership", Value::from(ownership))
            .with("mounts", mounts)
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

#[cfg(test)]
mod tests {
    use kiln_graph::Input;

    use super::*;

    #[test]
    fn steps_with_the_same_variables_share_them_in_their_keys() {
        let mut environment = crate::environment::Environment::default();
        environment.set("B", "2");
        environment.set("A", "1");
        let keyed = KeyedEnvironment::default();
        let of = |environment: &crate::environment::Environment| match keyed.of(&environment.settings()) {
            Value::List(list) => list,
            other => panic!("{other:?}"),
        };
        let first = of(&environment);
        assert_eq!(*first, [Value::from("A=1"), Value::from("B=2")]);
        assert!(std::sync::Arc::ptr_eq(&first, &of(&environment)));
        environment.set("A", "3");
        assert_eq!(*of(&environment), [Value::from("A=3"), Value::from("B=2")]);
    }

    #[test]
    fn a_step_came_from_what_its_mounts_showed() {
        let bind = |target: &str, source| RunMount {
            target: target.to_owned(),
            kind: RunMountKind::Bind { source, path: "/".to_owned(), access: Access::ReadOnly },
        };
        let tmpfs = RunMount { target: "/t".to_owned(), kind: RunMountKind::Tmpfs { size: 0 } };
        let run = RunOperation {
            arguments: Vec::new(),
            environment: Settings::default(),
            directory: "/".to_owned(),
            user: String::new(),
            network: NetworkMode::None,
            security: SecurityMode::Sandbox,
            mounts: vec![
                bind("/m", MountSource::Input(1)),
                tmpfs,
                bind("/m", MountSource::Context),
                bind("/n", MountSource::Context),
            ],
            script: None,
            epoch: None,
        };
        let input = |name: &str, content: &str| Input {
            name: name.to_owned(),
            selector: String::new(),
            digest: Digest::of(content.as_bytes()),
        };
        let preimage = |inputs: [&str; 2]| Preimage {
            operation: run.key_operation("linux/amd64", "root", &KeyedEnvironment::default()),
            inputs: vec![
                input(ROOT, "root"),
                input("mount /m", "stage"),
                input("mount /m", inputs[0]),
                input("mount /n", inputs[1]),
            ],
        };
        let expected = preimage(["one", "two"]);
        let shown = |contents: [&str; 2]| contents.map(|content| Digest::of(content.as_bytes()));
        assert_eq!(run.came_from(&expected, &shown(["one", "two"])), expected);
        assert_eq!(run.came_from(&expected, &shown(["one", "new"])), preimage(["one", "new"]));
        assert_eq!(run.came_from(&expected, &shown(["new", "two"])), preimage(["new", "two"]));
    }
}
