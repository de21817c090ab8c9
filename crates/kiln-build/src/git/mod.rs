//! Git repositories as sources: of ADD, and as contexts.
//!
//! As a download, a repository is a vertex of its own: its result is a root with the files of one commit, and its key is
//! that commit's hash. Which commit a branch or tag is at, the repository is asked by every build.

mod address;
mod repository;

use std::path::{Path, PathBuf};

use kiln_dockerfile::GitSource;
use kiln_graph::{Context, Done, Identity, Input, Operation as KeyOperation, Preimage, Stop};
use kiln_layer::{Kind, LayerWriter, RootView, Source};
use kiln_oci::{ChainId, Digest};

pub(crate) use address::GitAddress;
pub(crate) use repository::Commit;
pub use repository::GitProgram;
use repository::{Git, Stopping};

use crate::context::BuildContext;
use crate::engine::{Engine, Step};
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::request::Executions;
use crate::tree::SourceTree as _;

/// Checks a repository out below `place`, an empty directory of its own, and gives the directory that `source` means.
///
/// # Errors
/// When the address makes no sense, there is no git, or the repository is not what is asked for.
pub fn check_out(program: &GitProgram, source: &GitSource, place: &Path) -> Result<PathBuf> {
    let address = GitAddress::parse(source)?;
    let git = Git { program, address: &address, stopping: Stopping::Together, place };
    git.check_out(&git.resolve()?)
}

impl Engine<'_> {
    fn git_in<'a>(&'a self, address: &'a GitAddress, place: &'a Path, context: &'a Context<'_>) -> Git<'a> {
        let stopping = match self.request.executions {
            Executions::Allowed(_) | Executions::WithoutCommands { .. } => Stopping::Token(context.cancel()),
            // Nobody listens for interrupts yet.
            Executions::Refused => Stopping::Together,
        };
        Git { program: &self.request.git, address, stopping, place }
    }

    /// The key of a repository: its commit.
    pub(crate) fn git_identity(
        &self,
        address: &GitAddress,
        key: KeyOperation,
        context: &Context<'_>,
    ) -> std::result::Result<Identity, Stop<Error>> {
        let place = self.fresh_directory("git")?;
        let git = self.git_in(address, &place, context);
        let commit = git.resolve().map_err(stopped)?;
        let identity = Preimage { operation: key, inputs: vec![input(address, &commit)] };
        self.commits.lock().unwrap_or_else(|e| e.into_inner()).insert(context.vertex(), commit);
        Ok(Identity::Known(identity))
    }

    /// Makes the root with the commit's files.
    pub(crate) fn git(
        &self,
        address: &GitAddress,
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        let place = self.fresh_directory("git")?;
        let git = self.git_in(address, &place, context);
        let known = self.commits.lock().unwrap_or_else(|e| e.into_inner()).remove(&context.vertex());
        let commit = match known {
            Some(commit) => commit,
            None => git.resolve().map_err(stopped)?,
        };
        let directory = git.check_out(&commit).map_err(stopped)?;
        let tree = BuildContext::open(&directory, b"", None)?;
        let mut writer = LayerWriter::new();
        for below in tree.walk(b"", &Filter::default())? {
            if below.path.is_empty() {
                continue;
            }
            let source = match below.found.metadata.kind {
                Kind::Regular => {
                    let path = directory.join(crate::tree::to_path(&below.path));
                    Source::Open(Box::new(move || crate::download::open(&path)))
                }
                _ => Source::Empty,
            };
            writer.add(&below.path, below.found.metadata, source).map_err(Error::from)?;
        }
        let layer = self.write_layer(writer, &RootView::default(), context)?;
        let layer = self.store.publish_layer(self.lease()?, ChainId::SCRATCH, layer).map_err(Error::from)?;
        let _ = fs_err::remove_dir_all(&place);
        Ok(self.made(ChainId::SCRATCH, layer).into())
    }
}

fn input(address: &GitAddress, commit: &Commit) -> Input {
    let mut selector = commit.hash.clone();
    if !address.directory.is_empty() {
        selector.push(':');
        selector.push_str(&address.directory);
    }
    if let Some(tag) = &commit.tag {
        // That the tag leads to the commit is known only where it was fetched.
        selector.push_str(&format!("\ntag {tag}"));
    }
    if address.keeps_git_dir() {
        // What is in .git besides the commit.
        let reference = commit.reference.as_deref().unwrap_or_default();
        selector.push_str(&format!("\n{reference}\n{}", kiln_remote::shown(&address.remote)));
    }
    Input { name: "commit".to_owned(), digest: Digest::of(selector.as_bytes()), selector }
}

fn stopped(error: Error) -> Stop<Error> {
    match error {
        Error::Canceled => Stop::Canceled,
        error => Stop::Failed(error),
    }
}
