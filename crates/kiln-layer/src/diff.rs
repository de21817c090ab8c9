//! What differs between two roots.

use crate::error::Result;
use crate::metadata::Kind;
use crate::view::{Node, RootView};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the new root has it.
    Added,
    /// Both have it, with other metadata (times apart) or content.
    Modified,
    /// Only the old root has it.
    Deleted,
}

/// What a path was or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its kind, hard links resolved.
    pub kind: Kind,
    /// Its size if it is a regular file.
    pub size: u64,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: Change,
    /// What it was.
    pub before: Option<Side>,
    /// What it is.
    pub after: Option<Side>,
}

/// The differences from `old` to `new`, in path order. Everything below an added or deleted directory is listed, too; a
/// directory that differs only by what it holds is not.
///
/// # Errors
/// When an index is damaged.
pub fn diff(old: &RootView, new: &RootView) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    let mut pending = vec![(Some(old.root()?), Some(new.root()?))];
    while let Some((before, after)) = pending.pop() {
        if let (Some(before), Some(after)) = (&before, &after)
            && old.digest(before)? == new.digest(after)?
        {
            continue;
        }
        let sides = (side(old, before.as_ref())?, side(new, after.as_ref())?);
        let path = before.as_ref().or(after.as_ref()).map(|node| node.path().to_vec()).unwrap_or_default();
        let change = match (&before, &after) {
            (None, _) => Some(Change::Added),
            (_, None) => Some(Change::Deleted),
            (Some(before), Some(after)) => own_change(old, before, new, after)?.then_some(Change::Modified),
        };
        if let Some(change) = change {
            differences.push(Difference { path, change, before: sides.0, after: sides.1 });
        }
        let mut pairs = pair(children(old, before.as_ref())?, children(new, after.as_ref())?);
        pairs.reverse();
        pending.append(&mut pairs);
    }
    Ok(differences)
}

type Pair<'a> = (Option<Node<'a>>, Option<Node<'a>>);

fn children<'a>(view: &'a RootView, node: Option<&Node<'a>>) -> Result<Vec<Node<'a>>> {
    match node {
        Some(node) if node.is_directory() => view.children(node),
        _ => Ok(Vec::new()),
    }
}

fn pair<'a>(old: Vec<Node<'a>>, new: Vec<Node<'a>>) -> Vec<Pair<'a>> {
    let mut pairs = Vec::with_capacity(old.len().max(new.len()));
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => old.name().cmp(new.name()),
        };
        pairs.push(match order {
            std::cmp::Ordering::Less => (old.next(), None),
            std::cmp::Ordering::Greater => (None, new.next()),
            std::cmp::Ordering::Equal => (old.next(), new.next()),
        });
    }
}

fn side(view: &RootView, node: Option<&Node<'_>>) -> Result<Option<Side>> {
    let Some(node) = node else { return Ok(None) };
    let metadata = view.metadata(node)?;
    Ok(Some(Side { kind: metadata.kind, size: metadata.size }))
}

/// Whether a path differs itself, and not only in what is below it.
fn own_change(old: &RootView, before: &Node<'_>, new: &RootView, after: &Node<'_>) -> Result<bool> {
    if !(before.is_directory() && after.is_directory()) {
        return Ok(true);
    }
    let (before, after) = (old.metadata(before)?, new.metadata(after)?);
    Ok((before.mode, before.uid, before.gid, &before.xattrs)
        != (after.mode, after.uid, after.gid, &after.xattrs))
}
