//! An image's tree, answered from the indexes of its layers: lookups from the top down, whiteouts applied, hard links
//! resolved. Nothing is merged before it is asked for.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use kiln_oci::Digest;

use rustix::fs::FileType;

use crate::error::{Error, Result};
use crate::index::{Entry, LayerIndex, LinkTarget};
use crate::metadata::{Children, Kind, Metadata, Tail, Time};
use crate::path::{self, is_below, split};
use crate::walk::LINKS;

/// A stack of layers, seen as one root.
#[derive(Clone, Debug, Default)]
pub struct RootView {
    layers: Vec<Arc<LayerIndex>>,
    /// The files that hard links lead to, by layer and entry: looked for when they are first asked for.
    linked: Arc<OnceLock<HashSet<(usize, u32)>>>,
}

/// What one layer holds strictly below a directory: positions in its effective tree.
#[derive(Clone, Debug)]
struct Part {
    layer: usize,
    range: Range<u32>,
}

/// A path of a view that exists.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    path: Vec<u8>,
    /// The layer and the entry that decide what it is; a directory that layers only imply has none.
    entry: Option<(usize, Entry<'a>)>,
    /// What is below it, from the top layer down.
    parts: Vec<Part>,
}

/// Whose a file is, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and mode, as in `struct stat`.
    pub mode: u32,
    /// [`RootView::has_links`].
    pub has_links: bool,
}

impl<'a> Node<'a> {
    /// Its path, without symbolic links.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Its last component.
    pub fn name(&self) -> &[u8] {
        split(&self.path).1
    }

    /// The number of the layer, from the bottom, and the entry in it that decide what it is. None for a directory that
    /// layers only imply. The entry may be a hard link.
    pub fn source(&self) -> Option<(usize, Entry<'a>)> {
        self.entry
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.entry.is_none_or(|(_, entry)| entry.kind() == Kind::Directory)
    }
}

/// A file with its hard links resolved: the entry that carries content and metadata.
#[derive(Clone, Copy, Debug)]
pub struct Resolved<'a> {
    /// The number of the layer from the bottom.
    pub layer: usize,
    /// The entry; no hard link.
    pub entry: Entry<'a>,
}

impl RootView {
    /// A view of layers, from the bottom to the top.
    pub fn new(layers: Vec<Arc<LayerIndex>>) -> Self {
        Self { layers, ..Self::default() }
    }

    /// The layers, from the bottom to the top.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// The view without its top layers.
    pub fn below(&self, layers: usize) -> Self {
        Self::new(self.layers[..layers.min(self.layers.len())].to_vec())
    }

    /// The root directory.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn root(&self) -> Result<Node<'_>> {
        let mut node = Node { path: Vec::new(), entry: None, parts: Vec::new() };
        for (layer, index) in self.layers.iter().enumerate().rev() {
            let below = index.below(b"")?;
            let mut opaque = false;
            for position in 0..below.start {
                let entry = index.effective(position)?;
                match entry.kind() {
                    Kind::Opaque => opaque = true,
                    Kind::Directory if node.entry.is_none() => node.entry = Some((layer, entry)),
                    _ => {}
                }
            }
            if !below.is_empty() {
                node.parts.push(Part { layer, range: below });
            }
            if opaque {
                break;
            }
        }
        Ok(node)
    }

    /// What is at `path`; no symbolic link is followed.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Node<'_>>> {
        let mut node = self.root()?;
        for name in path::components(path) {
            match self.child(&node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// The entry `name` of a directory.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn child(&self, directory: &Node<'_>, name: &[u8]) -> Result<Option<Node<'_>>> {
        let path = path::join(&directory.path, name);
        let mut found = Found::default();
        for part in &directory.parts {
            let index = &self.layers[part.layer];
            let start = index.partition(part.range.clone(), |other| path::compare(other, &path).is_lt())?;
            let end = index.partition(start..part.range.end, |other| {
                other == path.as_slice() || is_below(other, &path)
            })?;
            if start < end && found.add(self, &path, part.layer, start..end)? == Below::Hidden {
                break;
            }
        }
        Ok(found.node(path))
    }

    /// What is at `path`, following symbolic links inside the root, `..` included.
    ///
    /// # Errors
    /// When an index is damaged or symbolic links lead in a circle.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Node<'_>>> {
        let mut stack = vec![self.root()?];
        let mut pending: Vec<Vec<u8>> = stacked(path);
        let mut followed = 0;
        while let Some(name) = pending.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(top) = stack.last() else { return Ok(None) };
            let Some(child) = self.child(top, &name)? else { return Ok(None) };
            let target = match self.file(&child)? {
                Some(file) if file.entry.kind() == Kind::Symlink => Some(file.entry.link()),
                _ => None,
            };
            let Some(target) = target else {
                stack.push(child);
                continue;
            };
            followed += 1;
            if followed > LINKS {
                return Err(Error::Loop { path: path::shown(path) });
            }
            if target.starts_with(b"/") {
                stack.truncate(1);
            }
            pending.extend(stacked(target));
        }
        Ok(stack.pop())
    }

    /// The entry that carries content and metadata of `node`: hard links are resolved, into lower layers too. None for an
    /// implied directory, and for a hard link whose target is nowhere.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn file(&self, node: &Node<'_>) -> Result<Option<Resolved<'_>>> {
        let Some((mut layer, entry)) = node.entry else { return Ok(None) };
        let mut number = entry.number();
        // Every step goes to an earlier entry or a lower layer; a damaged index may not.
        for _ in 0..=self.layers.len() {
            let entry = self.layers[layer].entry(number)?;
            match entry.link_target() {
                LinkTarget::None => return Ok(Some(Resolved { layer, entry })),
                LinkTarget::Entry(target) => {
                    let target = self.layers[layer].entry(target)?;
                    if target.kind() != Kind::HardLink {
                        return Ok(Some(Resolved { layer, entry: target }));
                    }
                    number = target.number();
                }
                LinkTarget::Lower => {
                    let lower = self.below(layer);
                    let Some((below, found)) = lower.lookup(entry.link())?.and_then(|node| node.entry) else {
                        return Ok(None);
                    };
                    (layer, number) = (below, found.number());
                }
            }
        }
        Err(Error::Index("hard links in a circle"))
    }

    /// Everything known of `node` but its content, hard links resolved.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn metadata(&self, node: &Node<'_>) -> Result<Metadata> {
        Ok(match self.file(node)? {
            Some(resolved) => resolved.entry.metadata(),
            None => match node.entry {
                None => Metadata::implied_directory(),
                Some((_, entry)) => entry.metadata(),
            },
        })
    }

    /// What is at `path`, as `lstat` tells it; symbolic links are not followed.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn status(&self, path: &[u8]) -> Result<Option<Status>> {
        let Some(node) = self.lookup(path)? else { return Ok(None) };
        let (uid, gid, mode, kind) = match self.file(&node)? {
            Some(file) => (file.entry.uid(), file.entry.gid(), file.entry.mode(), file.entry.kind()),
            None => {
                let metadata = self.metadata(&node)?;
                (metadata.uid, metadata.gid, metadata.mode, metadata.kind)
            }
        };
        let kind = match kind {
            Kind::Regular | Kind::HardLink => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::CharacterDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Whiteout | Kind::Opaque => return Ok(None),
        };
        let has_links = self.has_links(&node)?;
        Ok(Some(Status { uid, gid, mode: mode | kind.as_raw_mode(), has_links }))
    }

    /// Whether the file that `node` is has, or had in some layer, another name.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn has_links(&self, node: &Node<'_>) -> Result<bool> {
        let linked = match self.linked.get() {
            Some(linked) => linked,
            None => {
                let linked = self.linked_files()?;
                self.linked.get_or_init(|| linked)
            }
        };
        Ok(match node.entry {
            Some((_, entry)) if entry.kind() == Kind::HardLink => true,
            Some((layer, entry)) => linked.contains(&(layer, entry.number())),
            None => false,
        })
    }

    fn linked_files(&self) -> Result<HashSet<(usize, u32)>> {
        let mut linked = HashSet::new();
        for (layer, index) in self.layers.iter().enumerate() {
            for entry in index.tree() {
                let entry = entry?;
                if entry.kind() != Kind::HardLink {
                    continue;
                }
                let node =
                    Node { path: entry.path().to_vec(), entry: Some((layer, entry)), parts: Vec::new() };
                if let Some(file) = self.file(&node)? {
                    linked.insert((file.layer, file.entry.number()));
                }
            }
        }
        Ok(linked)
    }

    /// Size of the file that `node` is, hard links resolved; zero for anything else.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn size(&self, node: &Node<'_>) -> Result<u64> {
        Ok(self.file(node)?.map_or(0, |resolved| resolved.entry.size()))
    }

    /// Last modification of `node`, hard links resolved.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn modified(&self, node: &Node<'_>) -> Result<Time> {
        Ok(self.file(node)?.map_or(Time::default(), |resolved| resolved.entry.modified()))
    }

    /// What a directory holds, in order of name.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn children(&self, directory: &Node<'_>) -> Result<Vec<Node<'_>>> {
        let mut children = Vec::new();
        let mut parts = directory.parts.clone();
        let skip = if directory.path.is_empty() { 0 } else { directory.path.len() + 1 };
        loop {
            let mut next: Option<&[u8]> = None;
            for part in parts.iter().filter(|part| !part.range.is_empty()) {
                let path = self.layers[part.layer].effective_path(part.range.start)?;
                let below = Some(path)
                    .filter(|path| is_below(path, &directory.path))
                    .and_then(|path| path.get(skip..));
                let name = below.and_then(|below| below.split(|byte| *byte == b'/').next());
                let name = name.filter(|name| !name.is_empty()).ok_or(Error::Index("order"))?;
                if next.is_none_or(|next| name < next) {
                    next = Some(name);
                }
            }
            let Some(name) = next else { return Ok(children) };
            let path = path::join(&directory.path, name);
            let mut found = Found::default();
            let (mut hidden, mut progress) = (false, false);
            for part in parts.iter_mut().filter(|part| !part.range.is_empty()) {
                let index = &self.layers[part.layer];
                let start = part.range.start;
                let end = index.partition(part.range.clone(), |other| {
                    other == path.as_slice() || is_below(other, &path)
                })?;
                if start < end {
                    progress = true;
                    part.range.start = end;
                    if !hidden {
                        hidden = found.add(self, &path, part.layer, start..end)? == Below::Hidden;
                    }
                }
            }
            if !progress {
                return Err(Error::Index("order"));
            }
            children.extend(found.node(path));
        }
    }

    /// `node` and everything below it, in path order.
    pub fn walk<'a>(&'a self, node: Node<'a>) -> Nodes<'a> {
        Nodes { view: self, pending: vec![node] }
    }

    /// The content digest of `path` (docs/formats.md, section 3); a subtree that one layer holds alone costs nothing.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn content_digest(&self, path: &[u8]) -> Result<Option<Digest>> {
        self.lookup(path)?.map(|node| self.digest(&node)).transpose()
    }

    /// The content digest of a node.
    ///
    /// # Errors
    /// When an index is damaged.
    pub fn digest(&self, node: &Node<'_>) -> Result<Digest> {
        self.digest_knowing(node, &mut Lowered::default())
    }

    /// Without recursion: a tree may be as deep as a path is long.
    fn digest_knowing(&self, node: &Node<'_>, lowered: &mut Lowered) -> Result<Digest> {
        struct Open<'a> {
            directory: Node<'a>,
            pending: std::vec::IntoIter<Node<'a>>,
            children: Children,
        }
        let mut open: Vec<Open<'_>> = Vec::new();
        let mut next = node.clone();
        loop {
            let mut done = match self.shallow_digest(&next, lowered)? {
                Some(digest) => Some((digest, next)),
                None => {
                    let pending = self.children(&next)?.into_iter();
                    open.push(Open { directory: next, pending, children: Children::default() });
                    None
                }
            };
            next = loop {
                let Some(top) = open.last_mut() else {
                    return done.map(|(digest, _)| digest).ok_or(Error::Index("order"));
                };
                if let Some((digest, child)) = done.take() {
                    top.children.add(b"", child.name(), &digest);
                }
                if let Some(child) = top.pending.next() {
                    break child;
                }
                let digest = self.metadata(&top.directory)?.content_digest(&Tail::Children(&top.children));
                done = open.pop().map(|closed| (digest, closed.directory));
            };
        }
    }

    /// The digest of what needs no look at its children.
    fn shallow_digest(&self, node: &Node<'_>, lowered: &mut Lowered) -> Result<Option<Digest>> {
        let stored = self.stored_digest(node, lowered)?;
        if stored.is_some() || node.is_directory() {
            return Ok(stored);
        }
        let content = self.file(node)?.and_then(|resolved| resolved.entry.content());
        Ok(Some(self.metadata(node)?.content_digest(&Tail::of(content.as_ref()))))
    }

    /// The digest that one layer keeps, when the node is that layer's alone and nothing in it points lower.
    fn stored_digest(&self, node: &Node<'_>, lowered: &mut Lowered) -> Result<Option<Digest>> {
        let Some((layer, entry)) = node.entry else { return Ok(None) };
        let index = &self.layers[layer];
        let alone = node.parts.iter().all(|part| part.layer == layer);
        if !alone || entry.link_target() == LinkTarget::Lower {
            return Ok(None);
        }
        let clean = !index.has_marks() && index.stands_alone();
        for part in node.parts.iter().filter(|_| !clean) {
            if lowered.is_in(index, part)? {
                return Ok(None);
            }
        }
        if !clean && index.effective_path(index.below(&node.path)?.start.saturating_sub(1))? == node.path {
            // An opaque mark on the directory itself enters the layer's own digest.
            let position = index.below(&node.path)?.start - 1;
            if index.effective(position)?.kind().is_mark() {
                return Ok(None);
            }
        }
        index.position(&node.path)?.map(|position| index.tree_digest(position)).transpose()
    }
}

/// Where something points to lower layers: marks, and hard links to their files. A part is looked through once, whatever is
/// asked of its own parts then.
#[derive(Default)]
struct Lowered {
    /// What was looked through last.
    seen: Option<Part>,
    /// The positions in it, in order.
    positions: Vec<u32>,
    #[cfg(test)]
    looked_at: usize,
}

impl Lowered {
    /// Whether anything in a part of `index` does.
    fn is_in(&mut self, index: &LayerIndex, part: &Part) -> Result<bool> {
        let knows = |seen: &Part| {
            seen.layer == part.layer
                && seen.range.start <= part.range.start
                && part.range.end <= seen.range.end
        };
        if !self.seen.as_ref().is_some_and(knows) {
            self.seen = None;
            self.positions.clear();
            for position in part.range.clone() {
                let entry = index.effective(position)?;
                if entry.kind().is_mark() || entry.link_target() == LinkTarget::Lower {
                    self.positions.push(position);
                }
            }
            self.seen = Some(part.clone());
            #[cfg(test)]
            {
                self.looked_at += part.range.len();
            }
        }
        let first = self.positions.partition_point(|position| *position < part.range.start);
        Ok(self.positions.get(first).is_some_and(|position| *position < part.range.end))
    }
}

#[derive(PartialEq, Eq)]
enum Below {
    /// Lower layers still count.
    Open,
    /// Lower layers are hidden.
    Hidden,
}

/// A path being put together from the top layer down.
#[derive(Default)]
struct Found<'a> {
    exists: bool,
    entry: Option<(usize, Entry<'a>)>,
    parts: Vec<Part>,
}

impl<'a> Found<'a> {
    /// Adds what one layer has for `path`: `range` covers its entries for the path and for everything below.
    fn add(&mut self, view: &'a RootView, path: &[u8], layer: usize, range: Range<u32>) -> Result<Below> {
        let index = &view.layers[layer];
        let mut position = range.start;
        let mut below = Below::Open;
        while position < range.end && index.effective_path(position)? == path {
            let entry = index.effective(position)?;
            position += 1;
            match entry.kind() {
                Kind::Whiteout => return Ok(Below::Hidden),
                Kind::Opaque => {
                    self.exists = true;
                    below = Below::Hidden;
                }
                Kind::Directory => {
                    self.exists = true;
                    self.entry.get_or_insert((layer, entry));
                }
                _ => {
                    // A directory of an upper layer hides a lower file.
                    if !self.exists {
                        self.exists = true;
                        self.entry = Some((layer, entry));
                    }
                    return Ok(Below::Hidden);
                }
            }
        }
        if position < range.end {
            // Whatever is below implies the directory, a whiteout too: unpacking makes it.
            self.exists = true;
            self.parts.push(Part { layer, range: position..range.end });
        }
        Ok(below)
    }

    fn node(self, path: Vec<u8>) -> Option<Node<'a>> {
        self.exists.then_some(Node { path, entry: self.entry, parts: self.parts })
    }
}

fn stacked(path: &[u8]) -> Vec<Vec<u8>> {
    let mut components: Vec<Vec<u8>> = path::components(path).map(<[u8]>::to_vec).collect();
    components.reverse();
    components
}

/// An iterator over a subtree.
#[derive(Debug)]
pub struct Nodes<'a> {
    view: &'a RootView,
    pending: Vec<Node<'a>>,
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Result<Node<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.pending.pop()?;
        if !node.parts.is_empty() {
            match self.view.children(&node) {
                Ok(children) => self.pending.extend(children.into_iter().rev()),
                Err(error) => {
                    self.pending.clear();
                    return Some(Err(error));
                }
            }
        }
        Some(Ok(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::{LayerWriter, Outputs, Source};

    /// A mark at the end of what is nested deep costs no look at everything for each directory above it.
    #[test]
    fn what_points_lower_is_looked_for_once() {
        const DEPTH: usize = 900;
        const FILES: usize = 2000;
        let mut writer = LayerWriter::new();
        let mut path = Vec::new();
        for _ in 0..DEPTH {
            path = path::join(&path, b"d");
            writer.add(&path, Metadata::new(Kind::Directory, 0o755), Source::Empty).expect("added");
        }
        for number in 0..FILES {
            let file = path::join(&path, format!("{number:04}").as_bytes());
            writer.add(&file, Metadata::new(Kind::Regular, 0o644), Source::Empty).expect("added");
        }
        let mark = path::join(&path, b"z");
        writer.add(&mark, Metadata::new(Kind::Whiteout, 0), Source::Empty).expect("added");
        let written = writer.finish(&RootView::default(), Outputs::default()).expect("written");
        let view = RootView::new(vec![Arc::new(written.index)]);
        let node = view.lookup(b"d").expect("whole").expect("there");
        let mut lowered = Lowered::default();
        view.digest_knowing(&node, &mut lowered).expect("whole");
        assert_eq!(lowered.looked_at, DEPTH - 1 + FILES + 1);
    }
}
