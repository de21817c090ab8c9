//! The engines: kiln and those that it is measured beside. Each has a store of its own below the bench's directory.

mod buildkit;
mod containers;
pub(crate) mod daemon;
mod docker;
mod kiln;
mod umoci;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::archives::Image;
use super::options::PeerKind;

pub(crate) use kiln::{Kiln, User};

/// What a saved image's layers are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One thing for an engine to do.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Build {
        context: PathBuf,
        dockerfile: PathBuf,
        tag: String,
    },
    Load {
        archive: PathBuf,
    },
    Save {
        image: String,
        to: PathBuf,
        compression: Compression,
    },
    Import {
        tar: PathBuf,
        name: String,
    },
    /// A container without a network of its own.
    Run {
        image: String,
        words: Vec<String>,
    },
    Images,
    History {
        image: String,
    },
    Inspect {
        image: String,
    },
    DiskUsage,
    /// Removes what no name reaches, without asking.
    Prune,
    Version,
}

/// An engine.
pub(crate) trait Engine {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// What it says its version is.
    fn version(&self) -> Result<String>;

    /// Empties its store and puts these images in. Idempotent.
    fn reset(&mut self, images: &[&Image]) -> Result<()>;

    /// The command that does a task, if it has one.
    fn command(&self, task: &Task) -> Option<Command>;

    /// Writes the image that `build` made as a docker archive, whatever that takes.
    fn export(&self, build: &Task, to: &Path) -> Result<()>;

    /// Processes that work for it.
    fn daemons(&self) -> Vec<u32>;

    /// Where its store is.
    fn store(&self) -> PathBuf;
}

/// Starts a peer with a store below `place`.
pub(crate) fn start(kind: PeerKind, place: &Path) -> Result<Box<dyn Engine>> {
    Ok(match kind {
        PeerKind::Docker => Box::new(docker::Docker::start(place)?),
        PeerKind::Buildkit => Box::new(buildkit::Buildkit::start(place)?),
        PeerKind::Buildah => Box::new(containers::Containers::new(containers::Program::Buildah, place)?),
        PeerKind::Podman => Box::new(containers::Containers::new(containers::Program::Podman, place)?),
        PeerKind::Umoci => Box::new(umoci::Umoci::new(place)?),
    })
}

/// Debian's package that has a peer.
pub(crate) fn package(kind: PeerKind) -> Option<(&'static str, &'static str)> {
    match kind {
        PeerKind::Docker => Some(("dockerd", "docker.io")),
        PeerKind::Buildkit => None,
        PeerKind::Buildah => Some(("buildah", "buildah")),
        PeerKind::Podman => Some(("podman", "podman")),
        PeerKind::Umoci => Some(("umoci", "umoci")),
    }
}

/// The image that a build makes.
fn tag_of(build: &Task) -> &str {
    match build {
        Task::Build { tag, .. } => tag,
        _ => "",
    }
}
