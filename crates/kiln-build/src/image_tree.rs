//! The root of an image or stage as a tree to copy from, and as the parent that COPY writes onto.

use std::io::Read;

use kiln_layer::index::Entry;
use kiln_layer::view::{Node, RootView};
use kiln_layer::{Kind, Metadata};
use kiln_oci::Digest;

use crate::error::Result;
use crate::filter::{Filter, FilterState, Wanted};
use crate::tree::{Below, Found, SourceTree, Stamp, join};

/// Gives the bytes of files in layers. Reading the same entry twice gives the same bytes.
pub(crate) trait Contents: Sync {
    /// The bytes of a regular file: an entry, which is no hard link, of the layer with this number from the bottom of
    /// `view`.
    fn open<'a>(
        &'a self,
        view: &'a RootView,
        layer: usize,
        entry: Entry<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>>;
}

/// An image's or stage's root.
pub(crate) struct ImageTree<'a> {
    view: &'a RootView,
    contents: &'a dyn Contents,
    name: String,
}

impl<'a> ImageTree<'a> {
    /// A tree of `view`; `name` is what messages call it.
    pub(crate) fn new(view: &'a RootView, contents: &'a dyn Contents, name: impl Into<String>) -> Self {
        Self { view, contents, name: name.into() }
    }

    pub(crate) fn view(&self) -> &'a RootView {
        self.view
    }

    fn found(&self, node: &Node<'_>) -> Result<Found> {
        let resolved = self.view.file(node)?;
        let Some(resolved) = resolved else {
            let metadata = if node.is_directory() {
                Metadata::implied_directory()
            } else {
                // A hard link whose target is nowhere is an empty file.
                Metadata { kind: Kind::Regular, size: 0, link: Vec::new(), ..self.view.metadata(node)? }
            };
            return Ok(Found { metadata, content: None, group: None, stamp: None });
        };
        let metadata = resolved.entry.metadata();
        let group = (metadata.kind == Kind::Regular)
            .then_some((resolved.layer as u64, u64::from(resolved.entry.number())));
        Ok(Found { metadata, content: resolved.entry.content(), group, stamp: None })
    }

    fn descend(
        &self,
        node: &Node<'_>,
        relative: &[u8],
        filter: &Filter,
        state: &FilterState,
        below: &mut Vec<Below>,
    ) -> Result<()> {
        for child in self.view.children(node)? {
            let path = join(relative, child.name());
            let is_directory = child.is_directory();
            let (wanted, state) = filter.child(state, &path, is_directory);
            if wanted == Wanted::No {
                continue;
            }
            let at = below.len();
            let is_implied = wanted == Wanted::Below;
            below.push(Below { path: path.as_slice().into(), found: self.found(&child)?, is_implied });
            if is_directory {
                self.descend(&child, &path, filter, &state, below)?;
            }
            if is_implied && below.len() == at + 1 {
                below.pop();
            }
        }
        Ok(())
    }
}

impl SourceTree for ImageTree<'_> {
    fn find(&self, path: &[u8]) -> Result<Option<Found>> {
        self.view.lookup(path)?.map(|node| self.found(&node)).transpose()
    }

    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(node) = self.view.lookup(directory)? else { return Ok(Vec::new()) };
        Ok(self.view.children(&node)?.iter().map(|child| child.name().to_vec()).collect())
    }

    fn open(&self, path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<Stamp>)> {
        let resolved = match self.view.lookup(path)? {
            Some(node) => self.view.file(&node)?,
            None => None,
        };
        let reader: Box<dyn Read + Send + '_> = match resolved {
            Some(resolved) => self.contents.open(self.view, resolved.layer, resolved.entry)?,
            None => Box::new(std::io::empty()),
        };
        Ok((reader, None))
    }

    fn stored_digest(&self, path: &[u8]) -> Result<Option<Digest>> {
        Ok(self.view.content_digest(path)?)
    }

    fn stored_links(&self, path: &[u8]) -> Result<Vec<[Vec<u8>; 2]>> {
        let mut links = Vec::new();
        for layer in self.view.layers() {
            for position in layer.below(path)? {
                let entry = layer.effective(position)?;
                if entry.kind() == Kind::HardLink {
                    links.push([entry.path().to_vec(), entry.link().to_vec()]);
                }
            }
        }
        Ok(links)
    }

    fn walk(&self, path: &[u8], filter: &Filter) -> Result<Vec<Below>> {
        let mut below = Vec::new();
        if let Some(node) = self.view.lookup(path)? {
            below.push(Below { path: Box::default(), found: self.found(&node)?, is_implied: false });
            if node.is_directory() {
                self.descend(&node, b"", filter, &filter.root(), &mut below)?;
            }
        }
        Ok(below)
    }

    fn hides(&self, _path: &[u8]) -> bool {
        false
    }

    fn place(&self) -> String {
        self.name.clone()
    }
}
