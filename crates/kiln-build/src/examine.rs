//! What a tree holds at and below a path, with its content digest.

use std::collections::BTreeMap;

use kiln_layer::Kind;
use kiln_layer::metadata::{Children, Tail};
use kiln_layer::path::is_below;
use kiln_oci::Digest;

use crate::context_walk::Walked;
use crate::tree::{Below, split};

/// What was found at and below a path.
#[derive(Debug)]
pub(crate) struct Examined {
    /// Its content digest; of nothing at all, zero.
    pub(crate) digest: Digest,
    /// The names of the files that have several, relative to the path: content digests do not tell them from equal files.
    pub(crate) links: Vec<Vec<Vec<u8>>>,
    pub(crate) entries: Entries,
}

/// The entries themselves, which are wanted less often than their digest.
#[derive(Debug)]
pub(crate) enum Entries {
    /// In path order, the root first.
    Known(Vec<Below>),
    /// Those of a directory of the context, which comes first, and of what was walked below it.
    Walked(Box<Below>, Walked),
}

impl Examined {
    /// What `entries` are, whose contents are known: in path order, the root first.
    pub(crate) fn of(entries: Vec<Below>) -> Self {
        let (digest, links) = (tree_digest(&entries), links(&entries));
        Self { digest, links, entries: Entries::Known(entries) }
    }

    /// Whether nothing is at the path.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(&self.entries, Entries::Known(entries) if entries.is_empty())
    }
}

impl Entries {
    /// All of them, in path order, the root first.
    pub(crate) fn all(self) -> Vec<Below> {
        match self {
            Self::Known(entries) => entries,
            Self::Walked(root, walked) => walked.entries(*root),
        }
    }
}

fn links(entries: &[Below]) -> Vec<Vec<Vec<u8>>> {
    let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.found.metadata.kind == Kind::Regular) {
        if let Some(group) = entry.found.group {
            groups.entry(group).or_default().push(entry.path.to_vec());
        }
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

/// The content digest of a tree (docs/formats.md, section 3), whose entries are in path order, the root first.
pub(crate) fn tree_digest(entries: &[Below]) -> Digest {
    let mut rest = entries;
    match entries.first() {
        Some(_) => take_digest(&mut rest),
        None => Digest::default(),
    }
}

/// The digest of the first entry with everything below it, which is taken off.
fn take_digest(entries: &mut &[Below]) -> Digest {
    let Some((first, rest)) = entries.split_first() else { return Digest::default() };
    *entries = rest;
    match first.found.metadata.kind {
        Kind::Directory => {
            let mut children = Children::default();
            while let Some(next) = entries.first().filter(|next| is_below(&next.path, &first.path)) {
                let digest = take_digest(entries);
                children.add(b"", split(&next.path).1, &digest);
            }
            first.found.metadata.content_digest(&Tail::Children(&children))
        }
        Kind::Regular => {
            let content = first.found.content.unwrap_or_default();
            first.found.metadata.content_digest(&Tail::Content(&content))
        }
        _ => first.found.metadata.content_digest(&Tail::Nothing),
    }
}
