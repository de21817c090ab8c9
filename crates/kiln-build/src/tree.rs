//! What COPY, ADD and bind mounts read from: the build context, or the root of an image or stage.

use std::io::Read;
use std::sync::Arc;

use kiln_layer::path::Position;
pub(crate) use kiln_layer::path::{join, shown, split, to_system as to_path};
use kiln_layer::{Kind, Metadata};
use kiln_oci::Digest;

use crate::error::{Error, Result};
use crate::examine::Examined;
use crate::filter::{Filter, FilterState, Wanted};

/// As many symbolic links as BuildKit follows in one path.
const LINKS: usize = 255;

/// One entry of a tree.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Never a hard link: `group` says which entries are one file.
    pub(crate) metadata: Metadata,
    /// SHA-256 of a regular file's bytes, if it is known.
    pub(crate) content: Option<Digest>,
    /// Entries of one tree with the same identity are hard links of each other.
    pub(crate) group: Option<(u64, u64)>,
    /// How the file looked when it was found; the context alone needs it.
    pub(crate) stamp: Option<Stamp>,
}

/// A file of the context as `stat(2)` shows it: it is the same content as long as nothing of this changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: (i64, u32),
    pub(crate) changed: (i64, u32),
    pub(crate) mode: u32,
}

/// An entry below a walked directory.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    /// Relative to the walked directory; empty for that itself.
    pub(crate) path: Box<[u8]>,
    pub(crate) found: Found,
    /// The directory itself is filtered out, but something below it is not.
    pub(crate) is_implied: bool,
}

/// A tree to copy from. Paths are cleaned and relative to the root, which is the empty path; no method follows a
/// symbolic link.
pub(crate) trait SourceTree: Sync {
    /// What is at `path`. Idempotent.
    fn find(&self, path: &[u8]) -> Result<Option<Found>>;

    /// The names in a directory, sorted. Idempotent.
    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// The bytes of a regular file, and how it looks just now if that can change.
    fn open(&self, path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<Stamp>)>;

    /// The content digest of everything at and below `path`, if it is stored. Idempotent.
    fn stored_digest(&self, path: &[u8]) -> Result<Option<Digest>>;

    /// What [`SourceTree::stored_digest`] does not tell: the names at and below `path` of each file that has several there.
    /// Idempotent.
    fn stored_links(&self, _path: &[u8]) -> Result<Vec<Vec<Vec<u8>>>> {
        Ok(Vec::new())
    }

    /// Everything at and below `path` that `filter` wants, in path order.
    fn walk(&self, path: &[u8], filter: &Filter) -> Result<Vec<Below>> {
        let mut below = Vec::new();
        if let Some(found) = self.find(path)? {
            let is_directory = found.metadata.kind == Kind::Directory;
            below.push(Below { path: Box::default(), found, is_implied: false });
            if is_directory {
                descend(self, path, &mut Vec::new(), filter, &filter.root(), &mut below)?;
            }
        }
        Ok(below)
    }

    /// What [`SourceTree::walk`] finds, with its content digest.
    fn examine(&self, path: &[u8], filter: &Filter) -> Result<Examined> {
        Ok(Examined::of(self.walk(path, filter)?))
    }

    /// Whether something is at `path` that the tree does not show. Idempotent.
    fn hides(&self, path: &[u8]) -> bool;

    /// How messages call the tree.
    fn place(&self) -> String;
}

fn descend<T: SourceTree + ?Sized>(
    tree: &T,
    root: &[u8],
    relative: &mut Vec<u8>,
    filter: &Filter,
    state: &FilterState,
    below: &mut Vec<Below>,
) -> Result<()> {
    let directory = join(root, relative);
    let length = relative.len();
    for name in tree.children(&directory)? {
        if length > 0 {
            relative.push(b'/');
        }
        relative.extend_from_slice(&name);
        if let Some(found) = tree.find(&join(root, relative))? {
            let is_directory = found.metadata.kind == Kind::Directory;
            let (wanted, state) = filter.child(state, relative, is_directory);
            let at = below.len();
            if wanted != Wanted::No {
                let is_implied = wanted == Wanted::Below;
                below.push(Below { path: relative.as_slice().into(), found, is_implied });
                if is_directory {
                    descend(tree, root, relative, filter, &state, below)?;
                }
                if is_implied && below.len() == at + 1 {
                    below.pop();
                }
            }
        }
        relative.truncate(length);
    }
    Ok(())
}

/// Whether a symbolic link as the last component of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLink {
    Follow,
    Keep,
}

/// Resolves the symbolic links of `path` inside the tree that `find` shows. What does not exist is taken as it is
/// written, as containerd's `RootPath` does.
pub(crate) fn resolve(
    mut find: impl FnMut(&[u8]) -> Result<Option<(Kind, Arc<[u8]>)>>,
    path: &[u8],
    last: LastLink,
) -> Result<Vec<u8>> {
    let look = |path: &[u8], position| {
        if position == Position::Last && last == LastLink::Keep {
            return Ok(None);
        }
        match find(path)? {
            Some((Kind::Symlink, target)) => Ok(Some(target)),
            Some((kind, _)) if kind != Kind::Directory && position == Position::OnTheWay => {
                Err(Error::NotDirectory(shown(path)))
            }
            _ => Ok(None),
        }
    };
    kiln_layer::path::resolve(path, LINKS, look)?.ok_or_else(|| Error::Loop(shown(path)))
}

/// Resolves the symbolic links of `path` inside `tree`.
pub(crate) fn resolve_in(tree: &dyn SourceTree, path: &[u8], last: LastLink) -> Result<Vec<u8>> {
    let find = |path: &[u8]| {
        let found = tree.find(path)?;
        Ok(found.map(|found| (found.metadata.kind, Arc::from(found.metadata.link.as_slice()))))
    };
    resolve(find, path, last)
}

/// A cleaned path inside a root, without its leading slash.
pub(crate) fn cleaned(path: &str) -> Vec<u8> {
    kiln_dockerfile::clean_path(&format!("/{path}")).into_bytes().split_off(1)
}
