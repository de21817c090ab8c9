//! The root of an image or stage as a tree to copy from, and as the parent that COPY writes onto.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use kiln_layer::index::Entry;
use kiln_layer::path::is_below;
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

    /// Whether to go on, asked for each directory that is walked.
    ///
    /// # Errors
    /// [`crate::Error::Canceled`] if not.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }
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
        self.contents.go_on()?;
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

    fn stored_links(&self, path: &[u8]) -> Result<Vec<Vec<Vec<u8>>>> {
        // Every name of a file that has several is a link in some layer, or the file that one leads to in the end.
        let mut names = BTreeSet::new();
        for layer in self.view.layers() {
            for position in layer.below(path)? {
                let entry = layer.effective(position)?;
                if entry.kind() == Kind::HardLink
                    && let Some(node) = self.view.lookup(entry.path())?
                    && let Some(file) = self.view.file(&node)?
                {
                    names.extend([entry.path().to_vec(), file.entry.path().to_vec()]);
                }
            }
        }
        let mut groups: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
        for name in names {
            if !is_below(&name, path) {
                continue;
            }
            let Some(node) = self.view.lookup(&name)? else { continue };
            if let Some(group) = self.found(&node)?.group {
                groups.entry(group).or_default().push(name);
            }
        }
        Ok(groups.into_values().filter(|names| names.len() > 1).collect())
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

#[cfg(test)]
mod tests {
    use kiln_layer::{LayerWriter, Source};

    use super::*;
    use crate::lab::Image;

    /// A layer with the file `d/a` and its other names.
    fn linked(names: &[&str]) -> Image {
        let mut image = Image::default();
        let mut writer = LayerWriter::new();
        let file = Metadata { size: 1, ..Metadata::new(Kind::Regular, 0o644) };
        writer.add(b"d/a", file, Source::Bytes(b"x".to_vec())).expect("added");
        for name in names {
            let link = Metadata { link: b"d/a".to_vec(), ..Metadata::new(Kind::HardLink, 0o644) };
            writer.add(name.as_bytes(), link, Source::Empty).expect("added");
        }
        image.add(writer);
        image
    }

    #[track_caller]
    fn links(image: &Image, path: &str) -> Vec<String> {
        let view = image.view();
        let links = ImageTree::new(&view, image, "").stored_links(path.as_bytes()).expect("links");
        links.iter().map(|group| String::from_utf8_lossy(&group.join(&b' ')).into_owned()).collect()
    }

    /// Files whose build was canceled.
    struct Ended;

    impl Contents for Ended {
        fn open<'a>(&'a self, _: &'a RootView, _: usize, _: Entry<'a>) -> Result<Box<dyn Read + Send + 'a>> {
            Ok(Box::new(std::io::empty()))
        }

        fn go_on(&self) -> Result<()> {
            Err(crate::Error::Canceled)
        }
    }

    #[test]
    fn a_walk_ends_with_the_build() {
        let view = Image::default().with(&[("d/", 0o755, "")]).view();
        let walked = ImageTree::new(&view, &Ended, "").walk(b"d", &Filter::default());
        assert!(matches!(walked, Err(crate::Error::Canceled)));
    }

    #[test]
    fn names_of_one_file_are_those_that_are_seen() {
        let image = linked(&["d/b", "d/s/c", "e"]);
        assert_eq!(links(&image, ""), ["d/a d/b d/s/c e"]);
        assert_eq!(links(&image, "d"), ["d/a d/b d/s/c"], "what is elsewhere is nothing to it");
        assert_eq!(links(&image, "d/s"), [""; 0]);
        // A file of its own now, though it looks as before.
        assert_eq!(links(&image.with(&[("d/a", 0o644, "x")]), "d"), ["d/b d/s/c"]);
        assert_eq!(links(&linked(&["d/b"]).with(&[("d/a", 0o644, "x")]), ""), [""; 0]);
    }

    /// A foreign tar may lead from link to link, and through what is not copied.
    #[test]
    fn names_through_other_places_are_seen() {
        let mut tar = Vec::new();
        for (path, kind, link) in
            [("d/a", Kind::Regular, ""), ("e/x", Kind::HardLink, "d/a"), ("d/c", Kind::HardLink, "e/x")]
        {
            let metadata = Metadata { link: link.as_bytes().to_vec(), ..Metadata::new(kind, 0o644) };
            kiln_layer::tar::write_header(path.as_bytes(), &metadata, &mut tar);
        }
        tar.resize(tar.len() + 1024, 0);
        let walk = kiln_layer::walk(&tar[..], &kiln_layer::Options::default()).expect("walked");
        let layer = crate::lab::Layer { index: std::sync::Arc::new(walk.index), tar: tar.into() };
        assert_eq!(links(&Image(vec![layer]), "d"), ["d/a d/c"]);
    }
}
