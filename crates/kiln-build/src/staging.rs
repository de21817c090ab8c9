//! What an operation leaves behind on top of its parent, before it becomes a layer.
//!
//! Like an overlay's upper directory, but in memory and without file content: lookups see what was staged over what the
//! parent has. In the end, entries that are as the parent has them are left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kiln_layer::path::WHITEOUT;
use kiln_layer::{Kind, LayerWriter, Metadata};
use kiln_oci::Digest;
use kiln_sys::root::Time;

use crate::error::{Error, Result};
use crate::tree::{Found, LastLink, SourceTree, join, resolve, shown, split};

/// Where the bytes of a staged file come from.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    /// It has none, or is empty.
    None,
    /// A heredoc.
    Inline(Arc<[u8]>),
    /// A file of the tree that is copied from.
    Source(Arc<[u8]>),
    /// A file of the parent.
    Parent(Arc<[u8]>),
    /// Part of the file that holds what was unpacked: its offset.
    Spool(u64),
}

/// An entry to be.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// Never a hard link.
    pub(crate) metadata: Metadata,
    pub(crate) bytes: Bytes,
    /// SHA-256 of the bytes, if it is known.
    pub(crate) content: Option<Digest>,
    /// Entries of one group are hard links of each other.
    pub(crate) group: Option<usize>,
}

impl Staged {
    /// Anything but a regular file.
    pub(crate) fn plain(metadata: Metadata) -> Self {
        Self { metadata, bytes: Bytes::None, content: None, group: None }
    }
}

/// A file whose bytes are asked for.
pub(crate) struct Wanted<'a> {
    /// In the layer.
    pub(crate) path: &'a [u8],
    pub(crate) bytes: &'a Bytes,
    pub(crate) size: u64,
    pub(crate) content: Option<Digest>,
}

struct Slot {
    staged: Staged,
    /// What the parent has there.
    lower: Option<Box<Found>>,
}

/// The staged entries.
pub(crate) struct Staging<'a> {
    parent: &'a dyn SourceTree,
    /// What the parent was asked last: most paths are looked at, then written.
    asked: RefCell<Option<(Vec<u8>, Option<Found>)>>,
    /// The directory that was asked for last by [`Staging::shows_below`], with the answer.
    shown: RefCell<Option<(Vec<u8>, bool)>>,
    /// By path with NUL for `/`, so that the order is that of components.
    slots: BTreeMap<Vec<u8>, Slot>,
    /// Paths where nothing of the parent shows through any more.
    hidden: BTreeSet<Vec<u8>>,
    /// Whiteouts and opaque marks that an archive brought along.
    marks: Vec<(Vec<u8>, Kind)>,
    groups: usize,
    /// What all names of a group have, where a later one said so.
    inodes: HashMap<usize, Metadata>,
    /// Times are not after this.
    clamp: Option<i64>,
    /// The time of directories that are made on the way.
    made: i64,
}

/// What is at a path now.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) metadata: Metadata,
    pub(crate) content: Option<Digest>,
    /// Where it is staged already, where its bytes come from.
    pub(crate) staged: Option<(Bytes, Option<usize>)>,
}

/// Mode and owner of directories that are made on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making {
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
}

fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

/// A name that a layer would take for a mark cannot be put anywhere.
fn check_name(path: &[u8], staged: &Staged) -> Result<()> {
    if !split(path).1.starts_with(WHITEOUT) {
        return Ok(());
    }
    let action = match &staged.bytes {
        Bytes::Source(source) => format!("copy {} to {}", shown(source), shown(path)),
        _ => format!("make {}", shown(path)),
    };
    Err(Error::ReservedName { action })
}

impl<'a> Staging<'a> {
    /// Nothing staged on `parent`. `now` is the time of what is made, in seconds since the epoch; with `epoch`, nothing
    /// is later than that.
    pub(crate) fn new(parent: &'a dyn SourceTree, now: i64, epoch: Option<i64>) -> Self {
        Self {
            parent,
            asked: RefCell::new(None),
            shown: RefCell::new(None),
            slots: BTreeMap::new(),
            hidden: BTreeSet::new(),
            marks: Vec::new(),
            groups: 0,
            inodes: HashMap::new(),
            clamp: epoch,
            made: epoch.unwrap_or(now),
        }
    }

    /// A time as the layer may have it.
    pub(crate) fn time(&self, seconds: i64) -> Time {
        Time { seconds: self.clamp.map_or(seconds, |clamp| seconds.min(clamp)), nanoseconds: 0 }
    }

    /// The time of what is made by the operation itself.
    pub(crate) fn made(&self) -> Time {
        Time { seconds: self.made, nanoseconds: 0 }
    }

    /// A number for entries that are hard links of each other.
    pub(crate) fn new_group(&mut self) -> usize {
        self.groups += 1;
        self.groups
    }

    /// Gives all names of a group, those to come too, one owner, mode and time.
    pub(crate) fn set_inode(&mut self, group: usize, metadata: Metadata) {
        self.inodes.insert(group, metadata);
    }

    fn inode(&self, staged: &Staged) -> Option<&Metadata> {
        self.inodes.get(&staged.group?)
    }

    /// What the parent has at `path`, unless that is hidden.
    fn lower(&self, path: &[u8]) -> Result<Option<Found>> {
        if self.hidden.contains(path) || !path.is_empty() && !self.shows_below(split(path).0) {
            return Ok(None);
        }
        let mut asked = self.asked.borrow_mut();
        if let Some((_, found)) = asked.as_ref().filter(|(known, _)| known == path) {
            return Ok(found.clone());
        }
        let found = self.parent.find(path)?;
        *asked = Some((path.to_vec(), found.clone()));
        Ok(found)
    }

    /// Whether the parent's entries show through in a directory, if nothing else is staged for them.
    fn shows_below(&self, directory: &[u8]) -> bool {
        let mut last = self.shown.borrow_mut();
        match last.as_ref() {
            Some((known, shows)) if known == directory => *shows,
            _ => {
                let shows = self.finds_shown(directory);
                *last = Some((directory.to_vec(), shows));
                shows
            }
        }
    }

    fn finds_shown(&self, directory: &[u8]) -> bool {
        let mut above = directory;
        loop {
            if let Some(slot) = self.slots.get(&key(above)) {
                // What is no directory in the parent has nothing below it there; what is one was looked at before.
                let is_directory =
                    slot.lower.as_ref().is_some_and(|lower| lower.metadata.kind == Kind::Directory);
                if !is_directory || slot.staged.metadata.kind != Kind::Directory {
                    return false;
                }
                if self.hidden.is_empty() {
                    return true;
                }
            }
            if self.hidden.contains(above) {
                return false;
            }
            if above.is_empty() {
                return true;
            }
            above = split(above).0;
        }
    }

    /// What is at `path`; a symbolic link is not followed.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<Seen>> {
        if let Some(slot) = self.slots.get(&key(path)) {
            let staged = &slot.staged;
            return Ok(Some(Seen {
                metadata: self.inode(staged).unwrap_or(&staged.metadata).clone(),
                content: staged.content,
                staged: Some((staged.bytes.clone(), staged.group)),
            }));
        }
        let lower = self.lower(path)?;
        Ok(lower.map(|found| Seen { metadata: found.metadata, content: found.content, staged: None }))
    }

    /// Follows the symbolic links of `path` below `root`, as if that were the root of everything.
    pub(crate) fn resolve_below(&self, root: &[u8], path: &[u8], last: LastLink) -> Result<Vec<u8>> {
        let find = |path: &[u8]| {
            let seen = self.find(&join(root, path))?;
            Ok(seen.map(|seen| (seen.metadata.kind, Arc::from(seen.metadata.link))))
        };
        Ok(join(root, &resolve(find, path, last)?))
    }

    /// Follows the symbolic links of `path`.
    pub(crate) fn resolve(&self, path: &[u8], last: LastLink) -> Result<Vec<u8>> {
        self.resolve_below(b"", path, last)
    }

    /// Puts an entry at a resolved path, in place of what was there. The root itself is never staged.
    pub(crate) fn put(&mut self, path: &[u8], staged: Staged) -> Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        check_name(path, &staged)?;
        let key = key(path);
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.staged = staged;
            self.note_put(path);
            return Ok(());
        }
        let lower = self.lower(path)?;
        self.insert(key, path, staged, lower);
        Ok(())
    }

    /// As [`Staging::put`], of anything but a directory, unless there is a directory.
    pub(crate) fn put_file(&mut self, path: &[u8], staged: Staged) -> Result<()> {
        let refused = || Error::FileOverDirectory(shown(path));
        let key = key(path);
        if let Some(slot) = self.slots.get_mut(&key) {
            if slot.staged.metadata.kind == Kind::Directory {
                return Err(refused());
            }
            check_name(path, &staged)?;
            slot.staged = staged;
            self.note_put(path);
            return Ok(());
        }
        let lower = self.lower(path)?;
        if path.is_empty() || lower.as_ref().is_some_and(|lower| lower.metadata.kind == Kind::Directory) {
            return Err(refused());
        }
        check_name(path, &staged)?;
        self.insert(key, path, staged, lower);
        Ok(())
    }

    fn insert(&mut self, key: Vec<u8>, path: &[u8], staged: Staged, lower: Option<Found>) {
        self.slots.insert(key, Slot { staged, lower: lower.map(Box::new) });
        self.note_put(path);
    }

    /// Forgets what a new entry may have changed: nothing in its own directory.
    fn note_put(&mut self, path: &[u8]) {
        let last = self.shown.get_mut();
        if last.as_ref().is_some_and(|(directory, _)| directory != split(path).0) {
            *last = None;
        }
    }

    /// Removes what is at and below a resolved path, the parent's too.
    pub(crate) fn remove(&mut self, path: &[u8]) {
        *self.shown.get_mut() = None;
        let start = key(path);
        let below: Vec<Vec<u8>> = self
            .slots
            .range(start.clone()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(&start) && (key.len() == start.len() || key[start.len()] == 0))
            .cloned()
            .collect();
        for key in below {
            self.slots.remove(&key);
        }
        self.hidden.insert(path.to_vec());
    }

    /// Remembers a whiteout or opaque mark.
    pub(crate) fn mark(&mut self, path: Vec<u8>, kind: Kind) {
        self.marks.push((path, kind));
    }

    /// Makes the directory at a resolved path with its missing parents. A directory below one with the set-group-ID bit
    /// gets that bit, and unless an owner is given the group, as from the kernel.
    pub(crate) fn make_directories(&mut self, path: &[u8], making: Making) -> Result<()> {
        let mut inherited = None;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        let ends: Vec<usize> = if path.is_empty() { Vec::new() } else { ends.chain([path.len()]).collect() };
        for end in ends {
            let here = &path[..end];
            match self.find(here)? {
                Some(seen) if seen.metadata.kind == Kind::Directory => {
                    inherited = (seen.metadata.mode & 0o2000 != 0).then_some(seen.metadata.gid);
                }
                Some(_) => return Err(Error::NotDirectory(shown(here))),
                None => {
                    let mut metadata = Metadata::new(Kind::Directory, making.mode & 0o777);
                    metadata.modified = self.made();
                    if let Some(gid) = inherited {
                        metadata.mode |= 0o2000;
                        metadata.gid = gid;
                    }
                    if let Some((uid, gid)) = making.owner {
                        (metadata.uid, metadata.gid) = (uid, gid);
                    }
                    self.put(here, Staged::plain(metadata))?;
                }
            }
        }
        Ok(())
    }

    /// Gives what differs from the parent to `out`, in path order but for marks; `open` makes a source of a file's bytes.
    /// Files whose content must turn out as it is known here are collected in `expected`.
    pub(crate) fn write<'w>(
        mut self,
        out: &mut LayerWriter<'w>,
        mut open: impl FnMut(&Wanted<'_>) -> kiln_layer::Source<'w>,
    ) -> Result<Vec<Expected>> {
        for slot in self.slots.values_mut() {
            if let Some(inode) = slot.staged.group.and_then(|group| self.inodes.get(&group)) {
                slot.staged.metadata.clone_from(inode);
            }
        }
        let mut members: HashMap<usize, usize> = HashMap::new();
        for group in self.slots.values().filter_map(|slot| slot.staged.group) {
            *members.entry(group).or_default() += 1;
        }
        let linked = |slot: &Slot| slot.staged.group.is_some_and(|group| members[&group] > 1);
        let mut changed = Vec::with_capacity(self.slots.len());
        let mut last: Option<&[u8]> = None;
        for (key, slot) in self.slots.iter().rev() {
            let holds_changed = last
                .is_some_and(|last| last.len() > key.len() && last.starts_with(key) && last[key.len()] == 0);
            let is_changed = holds_changed || linked(slot) || slot.differs();
            if is_changed {
                last = Some(key);
            }
            changed.push(is_changed);
        }
        changed.reverse();
        let mut expected = Vec::new();
        let mut first: HashMap<usize, Vec<u8>> = HashMap::new();
        for path in &self.hidden {
            self.write_mark(path, out)?;
        }
        for (path, kind) in &self.marks {
            if self.parent.find(path)?.is_some() {
                out.add(path, Metadata::new(*kind, 0), kiln_layer::Source::Empty)?;
            }
        }
        for ((key, slot), _) in self.slots.into_iter().zip(changed).filter(|(_, changed)| *changed) {
            let path = path_of(&key);
            let Staged { mut metadata, bytes, content, group } = slot.staged;
            if let Some(group) = group {
                if let Some(link) = first.get(&group) {
                    metadata.kind = Kind::HardLink;
                    metadata.link.clone_from(link);
                    metadata.size = 0;
                    out.add(&path, metadata, kiln_layer::Source::Empty)?;
                    continue;
                }
                first.insert(group, path.clone());
            }
            if let (Bytes::Source(source), Some(content)) = (&bytes, content) {
                expected.push(Expected { path: path.clone(), source: Arc::clone(source), content });
            }
            let source = match metadata.kind {
                Kind::Regular => open(&Wanted { path: &path, bytes: &bytes, size: metadata.size, content }),
                _ => kiln_layer::Source::Empty,
            };
            out.add(&path, metadata, source)?;
        }
        Ok(expected)
    }

    /// A removed path: a whiteout, or an opaque mark where a directory took its place. Anything else hides it anyway.
    fn write_mark(&self, path: &[u8], out: &mut LayerWriter<'_>) -> Result<()> {
        let Some(lower) = self.parent.find(path)? else { return Ok(()) };
        let kind = match self.slots.get(&key(path)).map(|slot| slot.staged.metadata.kind) {
            None => Kind::Whiteout,
            Some(Kind::Directory) if lower.metadata.kind == Kind::Directory => Kind::Opaque,
            Some(_) => return Ok(()),
        };
        Ok(out.add(path, Metadata::new(kind, 0), kiln_layer::Source::Empty)?)
    }
}

/// A file of the layer and what its bytes were when the key was made.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// In the layer.
    pub(crate) path: Vec<u8>,
    /// In the tree that was copied from.
    pub(crate) source: Arc<[u8]>,
    pub(crate) content: Digest,
}

impl Slot {
    /// Whether the parent has something else there. A directory's time alone is no difference.
    fn differs(&self) -> bool {
        let Some(lower) = &self.lower else { return true };
        let (new, old) = (&self.staged.metadata, &lower.metadata);
        let same = new.kind == old.kind
            && new.mode == old.mode
            && (new.uid, new.gid) == (old.uid, old.gid)
            && new.size == old.size
            && new.device == old.device
            && new.link == old.link
            && new.xattrs == old.xattrs;
        let content = match new.kind {
            Kind::Directory => true,
            Kind::Regular => {
                new.modified.seconds == old.modified.seconds
                    && self.staged.content.is_some()
                    && self.staged.content == lower.content
            }
            _ => new.modified.seconds == old.modified.seconds,
        };
        !(same && content)
    }
}
