//! What a step left behind, as a layer: the upper directory of an overlay, or a copied root compared with what it was
//! copied from.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use kiln_oci::{Digest, Hasher};
use kiln_sys::root::{Directory, Root, Time};
use kiln_sys::xattr;
use rustix::fs::{FileType, Stat};

use crate::copy::Copied;
use crate::error::{Error, Result};
use crate::metadata::{Kind, Metadata, normalise_capability};
use crate::path::{self, split, to_system};
use crate::view::{Node, RootView};
use crate::writer::{LayerWriter, Outputs, Source, Written, is_written_attribute};

/// What is captured.
#[derive(Clone, Copy, Debug)]
pub enum Changes<'a> {
    /// The upper directory of an overlay. What it holds without need is removed from it, and times are cut to whole
    /// seconds, so that it is the layer's snapshot afterwards.
    Upper(Marks),
    /// A whole root that was copied from the lower layers, with their times, and how it was then. It is left as it is.
    Copy(&'a Copied),
}

impl Changes<'_> {
    fn is_upper(&self) -> bool {
        matches!(self, Self::Upper(_))
    }
}

/// By which attributes an overlay marks what hides something. The others' are attributes as any: with the first kind every
/// process may set those of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*`, of an overlay that was mounted with `userxattr`.
    User,
}

impl Marks {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }
}

/// What a record says of a file instead of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Owner, where it was set; else the lower layers', else that of new files.
    pub uid: Option<u32>,
    /// Group, where it was set; else the lower layers', else that of new files.
    pub gid: Option<u32>,
    /// The device node that an empty regular file stands for.
    pub device: Option<RecordedDevice>,
}

/// A device node that could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedDevice {
    /// [`Kind::CharacterDevice`] or [`Kind::BlockDevice`].
    pub kind: Kind,
    /// Major and minor number.
    pub number: (u32, u32),
}

/// Finds the recorded owner of a file.
pub type Recorded<'a> = &'a dyn Fn(&Stat) -> Option<Owner>;

/// Whose the files are.
#[derive(Clone, Copy)]
pub enum Owners<'a> {
    /// As the file system says.
    Files,
    /// As a record says; else, for what was copied up, as the lower layers say; else as `fresh` says.
    Recorded {
        /// The record.
        recorded: Recorded<'a>,
        /// Owner and group of files that are neither recorded nor in the lower layers: the step's user.
        fresh: (u32, u32),
    },
}

/// A path that exists only because something was mounted on it.
#[derive(Clone, Debug)]
pub struct Stub {
    /// Its path. It is left out while it is still an empty file or directory.
    pub path: Vec<u8>,
    /// The parent's times after and before the stub was made: when the first still holds, the second is restored.
    pub parent: Option<(Time, Time)>,
}

/// A step's changes to be captured.
#[derive(Clone, Copy)]
pub struct Capture<'a> {
    /// The upper directory or the copied root.
    pub root: &'a Root,
    /// What the step started from.
    pub lower: &'a RootView,
    /// Which of the two it is.
    pub changes: Changes<'a>,
    /// Whose the files are.
    pub owners: Owners<'a>,
    /// Paths to leave out.
    pub stubs: &'a [Stub],
    /// No file of the layer is younger than this, in seconds since the epoch.
    pub clamp: Option<i64>,
    /// Asked before each directory and each piece of a file, which may be as large as a disk: what it gives as an error ends
    /// the walk with [`Error::Read`].
    pub go_on: GoOn<'a>,
}

/// Whether to go on.
pub type GoOn<'a> = &'a (dyn Fn() -> io::Result<()> + Sync);

/// A file that is read as long as one is to go on.
struct Watched<'a> {
    file: File,
    go_on: GoOn<'a>,
}

impl Read for Watched<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (self.go_on)()?;
        self.file.read(bytes)
    }
}

/// Something found that may belong into the layer.
struct Item {
    path: Vec<u8>,
    metadata: Metadata,
    identity: (u64, u64),
    /// It has other names.
    linked: bool,
    fate: Fate,
}

/// Whether an item is part of the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is.
    Changed,
    /// Only if something below it, or another name of it, is.
    Unchanged,
    /// It is not.
    Dropped,
}

/// Captures a step's changes as a layer in the bytes of tar writer version 1, hashed and, if wanted, written to `tar`.
///
/// # Errors
/// When something cannot be read, or an upper directory cannot be put in order.
pub fn capture(capture: &Capture<'_>, tar: Option<&mut (dyn Write + Send)>) -> Result<Written> {
    let mut scan = Scan { capture, items: Vec::new(), stale_marks: Vec::new() };
    scan.run()?;
    scan.keep_needed();
    if let Changes::Upper(marks) = capture.changes {
        scan.tidy_upper(marks)?;
    }
    scan.write(tar)
}

/// A directory to be listed.
struct Visit<'a> {
    path: Vec<u8>,
    directory: Option<Directory>,
    /// What the lower layers have there, if a step's directory continues it.
    lower: Option<Node<'a>>,
    /// Whether it is the directory that a copied root had there.
    place: Place,
    /// The group that new files in it get, if it is not that of who makes them.
    group: Option<u32>,
}

/// A name in a directory, and what it is.
#[derive(Clone, Copy)]
struct Found<'a> {
    directory: &'a Directory,
    name: &'a OsStr,
    stat: &'a Stat,
}

/// The group of what is made in a directory with the set-group-ID bit.
fn inherited_group(directory: &Metadata) -> Option<u32> {
    (directory.mode & 0o2000 != 0).then_some(directory.gid)
}

/// Whether something is where it was copied to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is.
    Kept,
    /// It was made or moved there, or is the upper's.
    New,
}

struct Scan<'a> {
    capture: &'a Capture<'a>,
    items: Vec<Item>,
    /// Directories with an opaque mark that hides nothing.
    stale_marks: Vec<Vec<u8>>,
}

impl<'a> Scan<'a> {
    fn run(&mut self) -> Result<()> {
        let root = self.capture.root.directory();
        let lower = self.capture.lower.root()?;
        let group = self.root(root, &lower)?;
        let place = if self.capture.changes.is_upper() { Place::New } else { Place::Kept };
        let mut visits = vec![Visit { path: Vec::new(), directory: None, lower: Some(lower), place, group }];
        while let Some(visit) = visits.pop() {
            (self.capture.go_on)().map_err(Error::Read)?;
            let opened;
            let directory = match &visit.directory {
                Some(directory) => directory,
                None if visit.path.is_empty() => root,
                None => {
                    opened = self.capture.root.open_directory(to_system(&visit.path))?;
                    &opened
                }
            };
            let mut found = directory.list()?;
            found.sort_by(|left, right| left.name.as_bytes().cmp(right.name.as_bytes()));
            for found in &found {
                let below = self.item(directory, &visit, &found.name)?;
                visits.extend(below);
            }
            if !self.capture.changes.is_upper()
                && let Some(lower) = &visit.lower
            {
                let names: HashSet<&[u8]> = found.iter().map(|found| found.name.as_bytes()).collect();
                for child in self.capture.lower.children(lower)? {
                    if !names.contains(child.name()) {
                        self.mark(child.path().to_vec(), Kind::Whiteout);
                    }
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self, path: Vec<u8>, kind: Kind) {
        let metadata = Metadata::new(kind, 0);
        self.items.push(Item { path, metadata, identity: (0, 0), linked: false, fate: Fate::Changed });
    }

    fn root(&mut self, root: &Directory, lower: &Node<'_>) -> Result<Option<u32>> {
        let stat = root.stat_self()?;
        let found = Found { directory: root, name: OsStr::new(""), stat: &stat };
        let metadata = self.metadata(found, Kind::Directory, Some(lower), None)?;
        let group = inherited_group(&metadata);
        let before = self.capture.lower.metadata(lower)?;
        // The root is written only when the step changed it, never as a mere parent.
        let fate = if same(&metadata, &before) { Fate::Dropped } else { Fate::Changed };
        self.items.push(Item { path: Vec::new(), metadata, identity: (0, 0), linked: false, fate });
        Ok(group)
    }

    /// Looks at one name; a directory is to be visited next.
    fn item(&mut self, directory: &Directory, visit: &Visit<'a>, name: &OsStr) -> Result<Option<Visit<'a>>> {
        let path = path::join(&visit.path, name.as_bytes());
        path::check(&path)?;
        let stat = directory.stat(name)?;
        let lower = match &visit.lower {
            Some(parent) => self.capture.lower.child(parent, name.as_bytes())?,
            None => None,
        };
        if let (Changes::Copy(copied), Some(lower), Place::Kept) = (self.capture.changes, &lower, visit.place)
            && !lower.is_directory()
            && copied.is_untouched(&stat)
        {
            return Ok(None);
        }
        let identity = (stat.st_dev, stat.st_ino);
        let mut item = Item {
            path,
            metadata: Metadata::new(Kind::Whiteout, 0),
            identity,
            linked: false,
            fate: Fate::Changed,
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 && self.capture.changes.is_upper() => {
                Kind::Whiteout
            }
            FileType::RegularFile
                if stat.st_size == 0 && self.mark_of(directory, name, b"whiteout")?.is_some() =>
            {
                Kind::Whiteout
            }
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            // Sockets are no files once their process is gone.
            _ => {
                item.fate = Fate::Dropped;
                self.items.push(item);
                return Ok(None);
            }
        };
        if kind == Kind::Whiteout {
            item.fate = if lower.is_some() { Fate::Changed } else { Fate::Dropped };
            self.items.push(item);
            return Ok(None);
        }
        let found = Found { directory, name, stat: &stat };
        item.metadata = self.metadata(found, kind, lower.as_ref(), visit.group)?;
        let stub = self.capture.stubs.iter().any(|stub| stub.path == item.path);
        if stub && kind == Kind::Regular && stat.st_size == 0 && lower.is_none() {
            item.fate = Fate::Dropped;
            self.items.push(item);
            return Ok(None);
        }
        if kind == Kind::Directory {
            return self.directory(found, item, lower, stub).map(Some);
        }
        item.linked = stat.st_nlink > 1;
        if let Some(lower) = &lower
            && self.is_unchanged(directory, name, &item.metadata, lower)?
        {
            item.fate = Fate::Unchanged;
        }
        self.items.push(item);
        Ok(None)
    }

    fn directory(
        &mut self,
        Found { directory: parent, name, stat }: Found<'_>,
        mut item: Item,
        lower: Option<Node<'a>>,
        stub: bool,
    ) -> Result<Visit<'a>> {
        let lower = lower.filter(Node::is_directory);
        let (marked, place) = match self.capture.changes {
            Changes::Upper(_) => {
                (self.mark_of(parent, name, b"opaque")?.is_some_and(|value| value == b"y"), Place::New)
            }
            Changes::Copy(copied) if copied.is_in_place(parent, name, stat, &item.path) => {
                (false, Place::Kept)
            }
            // An overlay hides what is below a directory that takes the place of another.
            Changes::Copy(_) => (true, Place::New),
        };
        let hides = match &lower {
            Some(lower) if marked => !self.capture.lower.children(lower)?.is_empty(),
            _ => false,
        };
        match &lower {
            Some(lower) if same(&item.metadata, &self.capture.lower.metadata(lower)?) => {
                item.fate = Fate::Unchanged;
            }
            None if stub => item.fate = Fate::Unchanged,
            _ => {}
        }
        if hides {
            self.mark(item.path.clone(), Kind::Opaque);
        } else if marked && self.capture.changes.is_upper() {
            self.stale_marks.push(item.path.clone());
        }
        let path = item.path.clone();
        let group = inherited_group(&item.metadata);
        self.items.push(item);
        Ok(Visit { path, directory: None, lower: lower.filter(|_| !hides), place, group })
    }

    /// The value of a mark, where an overlay made what is captured.
    fn mark_of(&self, directory: &Directory, name: &OsStr, mark: &[u8]) -> Result<Option<Vec<u8>>> {
        let Changes::Upper(marks) = self.capture.changes else { return Ok(None) };
        Ok(xattr::get(directory, name, &[marks.prefix(), mark].concat())?)
    }

    fn metadata(
        &self,
        Found { directory, name, stat }: Found<'_>,
        kind: Kind,
        lower: Option<&Node<'_>>,
        group: Option<u32>,
    ) -> Result<Metadata> {
        let mut metadata = Metadata::new(kind, stat.st_mode & 0o7777);
        (metadata.uid, metadata.gid) = (stat.st_uid, stat.st_gid);
        metadata.modified = Time { seconds: stat.st_mtime, nanoseconds: 0 };
        match kind {
            Kind::Regular => metadata.size = u64::try_from(stat.st_size).unwrap_or(0),
            Kind::Symlink => {
                metadata.mode = 0o777;
                metadata.link = directory.read_link(name)?.as_bytes().to_vec();
            }
            Kind::CharacterDevice | Kind::BlockDevice => {
                metadata.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            }
            _ => {}
        }
        metadata.xattrs = xattr::list(directory, name, is_written_attribute)?;
        for (attribute, value) in &mut metadata.xattrs {
            if attribute == b"security.capability" {
                normalise_capability(value);
            }
        }
        if let Owners::Recorded { recorded, fresh } = self.capture.owners {
            let before = match lower {
                Some(node) if self.is_copied_up(directory, name, kind, node)? => {
                    Some(self.capture.lower.metadata(node)?).filter(|before| before.kind == kind)
                }
                _ => None,
            };
            let fresh = (fresh.0, group.unwrap_or(fresh.1));
            recorded_owner(&mut metadata, recorded(stat), before.as_ref(), fresh);
        }
        Ok(metadata)
    }

    /// Whether an overlay made something of what the lower layers have at its place. It marks files that it copies up, if
    /// they have one name, and directories that took the place of others; no more is known of what can bear no marks.
    fn is_copied_up(
        &self,
        directory: &Directory,
        name: &OsStr,
        kind: Kind,
        lower: &Node<'_>,
    ) -> Result<bool> {
        Ok(match (self.capture.changes, kind) {
            (Changes::Upper(_), Kind::Directory) => self.mark_of(directory, name, b"opaque")?.is_none(),
            (Changes::Upper(_), Kind::Regular) => {
                self.mark_of(directory, name, b"origin")?.is_some() || self.capture.lower.has_links(lower)?
            }
            _ => true,
        })
    }

    /// Whether a file that is not a directory is what the lower layers have.
    fn is_unchanged(
        &self,
        directory: &Directory,
        name: &OsStr,
        metadata: &Metadata,
        lower: &Node<'_>,
    ) -> Result<bool> {
        let Some(before) = self.capture.lower.file(lower)? else { return Ok(false) };
        let found = before.entry.metadata();
        if !same(metadata, &found) || metadata.modified.seconds != found.modified.seconds {
            return Ok(false);
        }
        if metadata.kind != Kind::Regular {
            return Ok(true);
        }
        if metadata.size != found.size {
            return Ok(false);
        }
        let mut file = Watched { file: directory.open_file(name)?, go_on: self.capture.go_on };
        Ok(Some(digest_of(&mut file)?) == before.entry.content())
    }

    /// Unchanged items stay when something below them is in the layer, or another name of the same file is.
    fn keep_needed(&mut self) {
        let mut needed: HashSet<&[u8]> = HashSet::new();
        let mut shared: HashSet<(u64, u64)> = HashSet::new();
        for item in self.items.iter().filter(|item| item.fate == Fate::Changed && item.linked) {
            shared.insert(item.identity);
        }
        let is_linked = |item: &Item| item.linked && shared.contains(&item.identity);
        for item in self.items.iter().filter(|item| item.fate == Fate::Changed || is_linked(item)) {
            let mut above = item.path.as_slice();
            if item.metadata.kind == Kind::Opaque {
                needed.insert(above);
            }
            while !above.is_empty() {
                above = split(above).0;
                if !above.is_empty() && !needed.insert(above) {
                    break;
                }
            }
        }
        let fates: Vec<Fate> = self
            .items
            .iter()
            .map(|item| match item.fate {
                Fate::Unchanged if is_linked(item) || needed.contains(item.path.as_slice()) => Fate::Changed,
                Fate::Unchanged => Fate::Dropped,
                fate => fate,
            })
            .collect();
        for (item, fate) in self.items.iter_mut().zip(fates) {
            item.fate = fate;
            let restored = self.capture.stubs.iter().find(|stub| split(&stub.path).0 == item.path.as_slice());
            if let Some((after, before)) = restored.and_then(|stub| stub.parent)
                && item.metadata.kind == Kind::Directory
                && item.metadata.modified.seconds == after.seconds
            {
                item.metadata.modified = Time { seconds: before.seconds, nanoseconds: 0 };
            }
            if let Some(clamp) = self.capture.clamp {
                item.metadata.modified.seconds = item.metadata.modified.seconds.min(clamp);
            }
        }
        self.items.sort_by(|left, right| path::compare(&left.path, &right.path));
    }

    /// Makes the upper directory equal to the layer: what was left out goes, times get whole seconds.
    fn tidy_upper(&self, marks: Marks) -> Result<()> {
        let root = self.capture.root;
        for path in &self.stale_marks {
            let directory = root.open_directory(to_system(path))?;
            xattr::remove(&directory, OsStr::new(""), &[marks.prefix(), b"opaque"].concat())?;
        }
        let below_root = || self.items.iter().rev().filter(|item| !item.path.is_empty());
        for item in below_root().filter(|item| item.fate == Fate::Dropped) {
            let (parent, name) = root.open_parent(to_system(&item.path))?;
            match item.metadata.kind {
                Kind::Directory => parent.remove_directory(&name)?,
                _ => parent.unlink(&name)?,
            }
        }
        let mut place: Option<(&[u8], Directory)> = None;
        for item in below_root().filter(|item| item.fate == Fate::Changed && !item.metadata.kind.is_mark()) {
            let (parent, name) = split(&item.path);
            let directory = match place.take().filter(|(path, _)| *path == parent) {
                Some((_, directory)) => directory,
                None => root.open_directory(to_system(parent))?,
            };
            directory.set_modified(OsStr::from_bytes(name), item.metadata.modified)?;
            place = Some((parent, directory));
        }
        Ok(())
    }

    fn write(self, tar: Option<&mut (dyn Write + Send)>) -> Result<Written> {
        let (root, go_on) = (self.capture.root, self.capture.go_on);
        let mut writer = LayerWriter::new();
        let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for item in self.items.into_iter().filter(|item| item.fate == Fate::Changed) {
            let Item { path, mut metadata, identity, linked, .. } = item;
            if linked {
                if let Some(first) = first_names.get(&identity) {
                    metadata.kind = Kind::HardLink;
                    metadata.link.clone_from(first);
                    writer.add(&path, metadata, Source::Empty)?;
                    continue;
                }
                first_names.insert(identity, path.clone());
            }
            let source = if metadata.kind == Kind::Regular && metadata.size > 0 {
                let path = path.clone();
                let open = move || root.open_plain(to_system(&path));
                Source::Open(Box::new(move || Ok(Box::new(Watched { file: open()?, go_on }))))
            } else {
                Source::Empty
            };
            writer.add(&path, metadata, source)?;
        }
        writer.finish(self.capture.lower, Outputs { tar, unpack: None })
    }
}

/// Equal in everything that a layer would record, but times and content.
fn same(now: &Metadata, before: &Metadata) -> bool {
    let written = || before.xattrs.iter().filter(|(name, _)| is_written_attribute(name));
    (now.kind, now.mode, now.uid, now.gid, now.device)
        == (before.kind, before.mode, before.uid, before.gid, before.device)
        && (now.kind != Kind::Symlink || now.link == before.link)
        && now.xattrs.iter().eq(written())
}

fn recorded_owner(
    metadata: &mut Metadata,
    recorded: Option<Owner>,
    before: Option<&Metadata>,
    fresh: (u32, u32),
) {
    let owner = recorded.unwrap_or_default();
    metadata.uid = owner.uid.or(before.map(|before| before.uid)).unwrap_or(fresh.0);
    metadata.gid = owner.gid.or(before.map(|before| before.gid)).unwrap_or(fresh.1);
    if let Some(device) = owner.device.filter(|_| metadata.kind == Kind::Regular && metadata.size == 0) {
        (metadata.kind, metadata.device) = (device.kind, device.number);
    }
    // What is below was written without these bits, and with its user's own for directories: they are as they were
    // unless the step changed the mode, or gave a file another owner, which takes them in any kernel.
    let is_directory = metadata.kind == Kind::Directory;
    let keeps = recorded.is_none() || is_directory;
    if let Some(before) = before.filter(|_| keeps) {
        let given = if is_directory { before.mode | 0o700 } else { before.mode };
        if metadata.mode & 0o777 == given & 0o777 {
            metadata.mode = metadata.mode & 0o7000 | before.mode;
        }
    }
}

fn digest_of(file: &mut impl Read) -> Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::Read)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
