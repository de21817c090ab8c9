//! Several trees as one, for an ADD whose sources are in several places.

use std::io::Read;

use kiln_oci::Digest;

use crate::error::Result;
use crate::examine::Examined;
use crate::filter::Filter;
use crate::tree::{Below, Found, SourceTree, Stamp};

/// Begins the path of something in another tree than the main one. No name in a file system holds it.
const MARK: u8 = 0;

/// The path of `path` in the tree of an input.
pub(crate) fn routed(input: usize, path: &[u8]) -> Vec<u8> {
    let mut routed = vec![MARK];
    routed.extend_from_slice(input.to_string().as_bytes());
    if !path.is_empty() {
        routed.push(b'/');
        routed.extend_from_slice(path);
    }
    routed
}

/// A path for people: what is in another tree has only its name.
pub(crate) fn shown(path: &[u8], name: &[u8]) -> String {
    if path.first() == Some(&MARK) {
        String::from_utf8_lossy(name).into_owned()
    } else {
        crate::tree::shown(path)
    }
}

/// The input and the path in its tree that [`routed`] made one of.
fn parted(path: &[u8]) -> Option<(usize, &[u8])> {
    let rest = path.strip_prefix(&[MARK])?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let input = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((input, rest.get(end + 1..).unwrap_or_default()))
}

/// A tree, and those of inputs under [`routed`] paths.
pub(crate) struct RoutedTree<'a> {
    pub(crate) main: &'a dyn SourceTree,
    pub(crate) inputs: Vec<(usize, Box<dyn SourceTree + 'a>)>,
}

impl RoutedTree<'_> {
    fn of<'p>(&self, path: &'p [u8]) -> (&dyn SourceTree, &'p [u8]) {
        let found = parted(path).and_then(|(input, rest)| {
            let (_, tree) = self.inputs.iter().find(|(known, _)| *known == input)?;
            Some((&**tree, rest))
        });
        found.unwrap_or((self.main, path))
    }
}

impl SourceTree for RoutedTree<'_> {
    fn find(&self, path: &[u8]) -> Result<Option<Found>> {
        let (tree, path) = self.of(path);
        tree.find(path)
    }

    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (tree, directory) = self.of(directory);
        tree.children(directory)
    }

    fn open(&self, path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<Stamp>)> {
        let (tree, path) = self.of(path);
        tree.open(path)
    }

    fn stored_digest(&self, path: &[u8]) -> Result<Option<Digest>> {
        let (tree, path) = self.of(path);
        tree.stored_digest(path)
    }

    fn stored_links(&self, path: &[u8]) -> Result<Vec<Vec<Vec<u8>>>> {
        let (tree, path) = self.of(path);
        tree.stored_links(path)
    }

    fn walk(&self, path: &[u8], filter: &Filter) -> Result<Vec<Below>> {
        let (tree, path) = self.of(path);
        tree.walk(path, filter)
    }

    fn examine(&self, path: &[u8], filter: &Filter) -> Result<Examined> {
        let (tree, path) = self.of(path);
        tree.examine(path, filter)
    }

    fn hides(&self, path: &[u8]) -> bool {
        let (tree, path) = self.of(path);
        tree.hides(path)
    }

    fn place(&self) -> String {
        self.main.place()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_trees() {
        assert_eq!(parted(&routed(12, b"a/b")), Some((12, &b"a/b"[..])));
        assert_eq!(parted(&routed(1, b"")), Some((1, &b""[..])));
        assert_eq!(parted(b"1/a"), None);
        assert_eq!(parted(b"\0x/a"), None);
        assert_eq!(shown(&routed(1, b"x"), b"name"), "name");
        assert_eq!(shown(b"a/b", b"b"), "/a/b");
    }
}
