//! What a caller asks of a build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_oci::{Platform, Reference};
use kiln_runtime::Isolation;

use crate::git::GitProgram;

/// A build. Nothing in it was read from the environment by this crate.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The directory that COPY, ADD and bind mounts see.
    pub context: PathBuf,
    /// Whether that directory is there for later builds, too.
    pub context_kind: ContextKind,
    /// The Dockerfile's bytes.
    pub dockerfile: Vec<u8>,
    /// How the Dockerfile is named in messages.
    pub dockerfile_name: String,
    /// Bytes of `<Dockerfile>.dockerignore` or `.dockerignore`.
    pub ignore: Vec<u8>,
    /// Stage to build; the last one if `None`.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--tag`.
    pub names: Vec<Reference>,
    /// Which steps may come from the cache.
    pub cache: CacheUse,
    /// The network of RUN steps that do not say otherwise.
    pub network: NetworkMode,
    /// What `--allow` grants.
    pub allowed: Vec<Entitlement>,
    /// What the machine lends to RUN without a trace in layer, history or key.
    pub lent: Lent,
    /// Bytes of the machine's resolv.conf, which RUN steps with a network see.
    pub resolv_conf: Vec<u8>,
    /// The platform of base images and of the result.
    pub platform: Platform,
    /// How many steps run at once.
    pub parallelism: usize,
    /// Whether steps may be executed.
    pub executions: Executions,
    /// How ADD reaches the web.
    pub remote: kiln_remote::Settings,
    /// What ADD reads repositories with.
    pub git: GitProgram,
}

/// What becomes of the context's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// It stays: what is learned of its files is remembered.
    Lasting,
    /// It goes with the build.
    Passing {
        /// Modes of files that have others on the disk.
        modes: Arc<GivenModes>,
    },
}

/// The twelve mode bits of files and directories, by their paths in the context, that the build takes for theirs instead of
/// those on the disk: with a mode that forbids its owner to read it a file could not be copied.
pub type GivenModes = BTreeMap<Vec<u8>, u32>;

/// `--no-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// Steps with a record are not run.
    Records,
    /// Every step is run.
    Nothing,
}

/// Whether steps may be executed, or only found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executions {
    /// They may, with commands held this way.
    Allowed(Isolation),
    /// They may, but for commands: the first RUN ends the build with [`crate::Error::NoCommands`].
    WithoutCommands {
        /// Why none can be run here.
        reason: String,
    },
    /// They may not: the first one ends the build with [`crate::Error::NeedsFiles`]. For a process that is not yet who
    /// may own files of layers.
    Refused,
}

/// The network of a RUN step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// Whatever the machine gives by default; today its own network.
    Default,
    /// Loopback alone.
    None,
    /// The machine's own network, which must be allowed.
    Host,
}

impl NetworkMode {
    /// As it is written on the command line and in keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// What a build may only do when the user allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
}

impl Entitlement {
    /// As it is written behind `--allow`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
        }
    }
}

/// Files and variables of the machine that RUN steps see while they run. They are in no key, no history and no
/// layer: a company's CA bundle, its proxies, its package settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// Variables, which the image's own override.
    pub environment: Vec<(String, String)>,
    /// Files: path inside and bytes. They are mounted read-only.
    pub files: Vec<(String, Vec<u8>)>,
}

impl BuildRequest {
    /// Proxy variables among the build arguments: RUN sees them, in both cases of letters. No key and no history has those
    /// that the Dockerfile does not declare.
    pub(crate) fn proxies(&self) -> Vec<(String, String)> {
        let given =
            self.build_args.iter().filter(|(name, _)| kiln_dockerfile::predefined::is_proxy_arg(name));
        given
            .flat_map(|(name, value)| {
                [(name.to_uppercase(), value.clone()), (name.to_lowercase(), value.clone())]
            })
            .collect()
    }
}
