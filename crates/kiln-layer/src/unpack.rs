//! Writing a layer's files below a directory, which may be hostile or become so with every entry.
//!
//! Paths come cleaned and without symbolic links of their own layer. Below a fresh snapshot every component is opened by
//! descriptor without following anything; only onto a tree that exists already ([`Whiteouts::Apply`]) may a parent be a
//! symbolic link, and then the kernel resolves it inside the root.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt;

use kiln_sys::root::{self, Directory, FileError, Root, Time};
use kiln_sys::xattr;
use rustix::fs::FileType;

use crate::error::{EntryProblem, Error, Result};
use crate::metadata::{Kind, Xattr};
use crate::path::{self, split, to_system};

/// How whiteouts and opaque marks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// For overlayfs mounted with privileges: devices 0/0 and `trusted.overlay.opaque`.
    OverlayTrusted,
    /// For overlayfs mounted with `userxattr`: devices 0/0 and `user.overlay.opaque`.
    OverlayUser,
    /// They remove what is there: the directory holds the lower layers' files.
    Apply,
    /// There are none: a name that says so is an error. The directory is empty, and what comes is no layer.
    Refuse,
}

impl Whiteouts {
    /// Whether what is written is a plain directory, not one for overlayfs.
    fn is_plain(self) -> bool {
        matches!(self, Self::Apply | Self::Refuse)
    }
}

/// Whose the written files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// As the layer says.
    Keep,
    /// All ours, with a single UID: owners stay in the index, devices become empty files, and of the attributes only
    /// `user.*` are written.
    Ignore,
    /// As [`Ownership::Ignore`], but with all bits of their modes, and with those besides without which we could not read
    /// them: nobody runs them where they are.
    Modes,
}

impl Ownership {
    /// The mode of what is written for an entry of this kind and mode.
    pub fn mode(self, kind: Kind, mode: u32) -> u32 {
        match (self, kind) {
            (Self::Keep, _) => mode,
            // The sticky bit means nobody else.
            (Self::Ignore, Kind::Directory) => mode & 0o1777 | 0o700,
            // Without the owner, set-user-ID bits would mean someone else.
            (Self::Ignore, _) => mode & 0o777,
            (Self::Modes, Kind::Directory) => mode | 0o500,
            (Self::Modes, _) => mode | 0o400,
        }
    }
}

/// Where and how a layer is unpacked.
#[derive(Debug)]
pub struct Unpack<'a> {
    /// The directory; a snapshot's is empty and ours alone.
    pub root: &'a Root,
    /// How whiteouts are written.
    pub whiteouts: Whiteouts,
    /// Whose the files are.
    pub ownership: Ownership,
    /// No file is younger than this, in seconds since the epoch.
    pub clamp: Option<i64>,
}

/// One entry to be written.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<Xattr>,
}

/// A regular file being written.
struct Open {
    file: File,
    placed: Placed,
    hole_at_end: Option<u64>,
    position: u64,
}

/// Directories held open at once; what is deeper is opened anew for each use.
const HELD: usize = 64;

/// A layer being unpacked.
pub(crate) struct Unpacker<'a> {
    to: &'a Unpack<'a>,
    /// The directories of `place`, from the root's first component down, with the length of their paths.
    held: Vec<(usize, Directory)>,
    place: Vec<u8>,
    /// What directories get at the end, and whether they were made with their mode.
    directories: BTreeMap<Vec<u8>, (Placed, ModeSet)>,
    /// In a flat tree: what this layer made, which its own marks must not remove.
    made: HashSet<Vec<u8>>,
    /// In a flat tree: the marks that were obeyed, by their own paths. Once is enough.
    cleared: HashSet<Vec<u8>>,
    open: Option<Open>,
    own_umask: bool,
    ours: (u32, u32),
    chown_always: bool,
}

impl<'a> Unpacker<'a> {
    /// Starts on a thread of its own, whose umask it clears.
    pub(crate) fn new(to: &'a Unpack<'a>) -> Result<Self> {
        let inherits_group = to.root.directory().stat_self()?.st_mode & 0o2000 != 0;
        Ok(Self {
            to,
            held: Vec::new(),
            place: Vec::new(),
            directories: BTreeMap::new(),
            made: HashSet::new(),
            cleared: HashSet::new(),
            open: None,
            own_umask: root::clear_own_umask(),
            ours: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            chown_always: inherits_group || to.whiteouts.is_plain(),
        })
    }

    /// Writes an entry; of a regular file the content follows with [`data`](Self::data) and [`hole`](Self::hole).
    pub(crate) fn entry(&mut self, placed: Placed) -> Result<()> {
        self.close()?;
        match self.make(&placed) {
            Ok(Made::Whole) => {}
            Ok(Made::Directory(mode_set)) => {
                self.directories.insert(placed.path.clone(), (placed, mode_set));
            }
            Ok(Made::File(file)) => {
                self.open = Some(Open { file, placed, hole_at_end: None, position: 0 });
            }
            Err(error) => return Err(error.of_entry(&placed.path)),
        }
        Ok(())
    }

    fn make(&mut self, placed: &Placed) -> Result<Made> {
        if self.to.whiteouts == Whiteouts::Refuse && placed.kind.is_mark() {
            let path = path::shown(&placed.path);
            return Err(Error::Entry { path, problem: EntryProblem::ReservedName });
        }
        if self.to.whiteouts.is_plain() && !placed.kind.is_mark() {
            self.made.insert(placed.path.clone());
            // A directory that it is in is this layer's, too, without an entry of its own.
            let mut above = split(&placed.path).0;
            while !above.is_empty() && !self.made.contains(above) {
                self.made.insert(above.to_vec());
                above = split(above).0;
            }
        }
        match placed.kind {
            Kind::Opaque => self.opaque(&placed.path)?,
            _ if placed.path.is_empty() => return Ok(Made::Directory(ModeSet::No)),
            Kind::Directory => return self.directory(placed).map(Made::Directory),
            Kind::Regular => return self.file(placed).map(Made::File),
            Kind::HardLink => self.link(placed)?,
            Kind::Whiteout => self.whiteout(placed)?,
            Kind::Symlink | Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => self.node(placed)?,
        }
        Ok(Made::Whole)
    }

    fn file(&mut self, placed: &Placed) -> Result<File> {
        let mode = self.mode(placed) & 0o777;
        self.create(&placed.path, |parent, name| parent.create_file(name, mode))
    }

    /// Runs `make` in the parent of `path`; what has the name already makes room and `make` runs again.
    fn create<T>(
        &mut self,
        path: &[u8],
        make: impl Fn(&Directory, &OsStr) -> std::result::Result<T, FileError>,
    ) -> Result<T> {
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        match make(self.parent(parent)?, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.parent(parent)?.remove_all(name)?;
                self.forget(path);
                Ok(make(self.parent(parent)?, name)?)
            }
            result => Ok(result?),
        }
    }

    /// Drops what is held of a path that was removed, and what directories at and below it were to get: whatever has their
    /// names next is another thing.
    fn forget(&mut self, path: &[u8]) {
        self.directories.remove(path);
        let below = [path, b"/"].concat();
        while let Some((directory, _)) = self.directories.range(below.clone()..).next()
            && directory.starts_with(&below)
        {
            let directory = directory.clone();
            self.directories.remove(&directory);
        }
        if self.place == path || path::is_below(&self.place, path) {
            self.held.clear();
            self.place.clear();
        }
    }

    fn node(&mut self, placed: &Placed) -> Result<()> {
        let mode = self.mode(placed);
        let (major, minor) = placed.device;
        let kind = match placed.kind {
            Kind::CharacterDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            _ => FileType::Symlink,
        };
        let placeholder = self.to.ownership != Ownership::Keep;
        self.create(&placed.path, |parent, name| match kind {
            FileType::Symlink => parent.make_symlink(name, OsStr::from_bytes(&placed.link)),
            FileType::Fifo => parent.make_node(name, FileType::Fifo, mode & 0o777, 0, 0),
            _ if placeholder => parent.create_file(name, mode & 0o666).map(drop),
            _ => match parent.make_node(name, kind, mode & 0o777, major, minor) {
                // A user namespace may make no device nodes. One could not be opened in a sandbox anyway.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    parent.create_file(name, mode & 0o666).map(drop)
                }
                made => made,
            },
        })?;
        self.dress(placed)
    }

    /// Owner, mode, attributes and time of what is not a regular file or directory.
    fn dress(&mut self, placed: &Placed) -> Result<()> {
        let (parent, name) = split(&placed.path);
        let name = OsStr::from_bytes(name);
        let time = self.time(placed);
        let owner = self.owner(placed);
        let mode = self.mode(placed);
        let wants_mode = placed.kind != Kind::Symlink
            && (!self.own_umask || mode & 0o7000 != 0)
            && self.to.ownership != Ownership::Ignore;
        let ownership = self.to.ownership;
        let parent = self.parent(parent)?;
        if let Some((uid, gid)) = owner {
            let set = parent.set_owner(name, uid, gid);
            set.map_err(|error| unmapped(&error.source, placed, (uid, gid)).unwrap_or_else(|| error.into()))?;
        }
        if wants_mode {
            parent.set_mode(name, mode)?;
        }
        set_xattrs(parent, name, placed, ownership)?;
        Ok(parent.set_modified(name, time)?)
    }

    fn mode(&self, placed: &Placed) -> u32 {
        self.to.ownership.mode(placed.kind, placed.mode)
    }

    fn time(&self, placed: &Placed) -> Time {
        match self.to.clamp {
            Some(seconds) if seconds <= placed.modified.seconds => Time { seconds, nanoseconds: 0 },
            _ => placed.modified,
        }
    }

    fn owner(&self, placed: &Placed) -> Option<(u32, u32)> {
        let wanted = (placed.uid, placed.gid);
        let needed = self.to.ownership == Ownership::Keep && (self.chown_always || wanted != self.ours);
        needed.then_some(wanted)
    }

    fn link(&mut self, placed: &Placed) -> Result<()> {
        let (from, source) = split(&placed.link);
        if placed.link == placed.path {
            // A lower layer's file under its own name: it is copied when the snapshot is completed.
            return Ok(());
        }
        let from = match self.find(from)? {
            Some(from) => from.try_clone()?,
            None => return self.make_room(&placed.path),
        };
        let source = OsStr::from_bytes(source);
        match from.stat(source) {
            // A lower layer holds it: it is copied when the snapshot is completed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make_room(&placed.path),
            Err(error) => return Err(error.into()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let problem = EntryProblem::LinkToDirectory;
                return Err(Error::Entry { path: path::shown(&placed.path), problem });
            }
            Ok(stat) if self.is_whiteout(&stat) => return Ok(()),
            Ok(_) => {}
        }
        self.create(&placed.path, |parent, name| parent.make_link(name, &from, source))
    }

    /// Removes what this layer had at a path where something of a lower layer is to be.
    fn make_room(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        let Some(parent) = self.find(parent)? else { return Ok(()) };
        match parent.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => {
                parent.remove_all(name)?;
                self.forget(path);
                Ok(())
            }
        }
    }

    fn is_whiteout(&self, stat: &rustix::fs::Stat) -> bool {
        !self.to.whiteouts.is_plain()
            && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == 0
    }

    fn directory(&mut self, placed: &Placed) -> Result<ModeSet> {
        let (parent, name) = split(&placed.path);
        let name = OsStr::from_bytes(name);
        // Our own access comes first; the real mode is set at the end.
        let mode = placed.mode & 0o777 | 0o700;
        match self.parent(parent)?.make_directory(name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let stat = self.parent(parent)?.stat(name)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    self.replace_by_directory(&placed.path, mode, self.is_whiteout(&stat))?;
                }
                // It may have been implied, or given before with another mode.
                Ok(ModeSet::No)
            }
            result => {
                result?;
                Ok(if self.own_umask { ModeSet::Yes } else { ModeSet::No })
            }
        }
    }

    /// A directory beside a whiteout of the same name is opaque.
    fn replace_by_directory(&mut self, path: &[u8], mode: u32, opaque: bool) -> Result<()> {
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        let parent = self.parent(parent)?;
        parent.unlink(name)?;
        parent.make_directory(name, mode)?;
        if opaque {
            self.opaque(path)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, placed: &Placed) -> Result<()> {
        let (parent, name) = split(&placed.path);
        let name = OsStr::from_bytes(name);
        if self.to.whiteouts.is_plain() {
            return if self.cleared.insert(placed.path.clone()) {
                self.remove_lower(&placed.path)
            } else {
                Ok(())
            };
        }
        match self.parent(parent)?.make_node(name, FileType::CharacterDevice, 0, 0, 0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let stat = self.parent(parent)?.stat(name)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.opaque(&placed.path)?;
                }
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn opaque(&mut self, path: &[u8]) -> Result<()> {
        let attribute: &[u8] = match self.to.whiteouts {
            Whiteouts::OverlayTrusted => b"trusted.overlay.opaque",
            Whiteouts::OverlayUser => b"user.overlay.opaque",
            Whiteouts::Apply | Whiteouts::Refuse if !self.cleared.insert(path::join(path, path::OPAQUE)) => {
                return Ok(());
            }
            Whiteouts::Apply | Whiteouts::Refuse => {
                let Some(directory) = self.find(path)? else { return Ok(()) };
                for found in listed(directory)? {
                    self.remove_lower(&path::join(path, found.as_bytes()))?;
                }
                return Ok(());
            }
        };
        let directory = self.parent(path)?;
        Ok(xattr::set(directory, OsStr::new(""), attribute, b"y")?)
    }

    /// Removes what a lower layer left at `path`, sparing what this layer made.
    fn remove_lower(&mut self, path: &[u8]) -> Result<()> {
        let mut pending = vec![path.to_vec()];
        while let Some(path) = pending.pop() {
            let (parent, name) = split(&path);
            let name = OsStr::from_bytes(name);
            let made = self.made.contains(&path);
            let Some(parent) = self.find(parent)? else { continue };
            let directory = match parent.stat(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                stat => FileType::from_raw_mode(stat?.st_mode) == FileType::Directory,
            };
            if !made {
                parent.remove_all(name)?;
                self.forget(&path);
            } else if directory {
                let names = listed(&parent.open_directory(name)?)?;
                pending.extend(names.iter().map(|name| path::join(&path, name.as_bytes())));
            }
        }
        Ok(())
    }

    /// Bytes of the open file.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.position += bytes.len() as u64;
        open.hole_at_end = None;
        let result = open.file.write_all(bytes);
        result.map_err(|error| self.failed("write", error))
    }

    /// Zero bytes of the open file that take no room.
    pub(crate) fn hole(&mut self, length: u64) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.position += length;
        open.hole_at_end = Some(open.position);
        let result = open.file.seek(SeekFrom::Start(open.position));
        result.map(drop).map_err(|error| self.failed("write", error))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        let path = self.open.as_ref().map_or(&[][..], |open| &open.placed.path);
        self.failed_at(path, operation, source)
    }

    fn failed_at(&self, path: &[u8], operation: &'static str, source: io::Error) -> Error {
        let shown = self.to.root.directory().name().join(to_system(path));
        Error::from(FileError { operation, path: shown, source }).of_entry(path)
    }

    /// Finishes the open file: owner before mode, so that set-user-ID bits stay; attributes after all writing, which would
    /// clear capabilities; the time last.
    fn close(&mut self) -> Result<()> {
        let Some(Open { file, placed, hole_at_end, .. }) = self.open.take() else { return Ok(()) };
        let (this, path) = (&*self, &placed.path);
        let failed = |operation| move |source| this.failed_at(path, operation, source);
        if let Some(length) = hole_at_end {
            file.set_len(length).map_err(failed("set the length of"))?;
        }
        let owner = self.owner(&placed);
        let mode = self.mode(&placed);
        let mode = (!self.own_umask || mode & 0o7000 != 0).then_some(mode);
        let time = if placed.xattrs.is_empty() { Some(self.time(&placed)) } else { None };
        root::set_file(&file, owner, mode, time).map_err(|source| {
            let unmapped = owner.and_then(|owner| unmapped(&source, &placed, owner));
            unmapped.unwrap_or_else(|| failed("set the metadata of")(source))
        })?;
        if !placed.xattrs.is_empty() {
            let (parent, name) = split(&placed.path);
            let (time, ownership) = (self.time(&placed), self.to.ownership);
            let parent = self.parent(parent).map_err(|error| error.of_entry(&placed.path))?;
            set_xattrs(parent, OsStr::from_bytes(name), &placed, ownership)?;
            let timed = root::set_file(&file, None, None, Some(time));
            timed.map_err(|source| self.failed_at(&placed.path, "set the time of", source))?;
        }
        Ok(())
    }

    /// Sets what directories get last: modes that may shut us out, and times that every entry in them changes.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.close()?;
        let directories = std::mem::take(&mut self.directories);
        for (placed, mode_set) in directories.values().rev() {
            self.finish_directory(placed, *mode_set).map_err(|error| error.of_entry(&placed.path))?;
        }
        Ok(())
    }

    fn finish_directory(&mut self, placed: &Placed, mode_set: ModeSet) -> Result<()> {
        let Some(directory) = self.find_own(&placed.path)? else { return Ok(()) };
        set_xattrs(&directory, OsStr::new(""), placed, self.to.ownership)?;
        let mode = self.mode(placed);
        let made_so = mode_set == ModeSet::Yes && mode & !0o777 == 0 && mode & 0o700 == 0o700;
        let mode = (!made_so).then_some(mode);
        let owner = self.owner(placed);
        directory.set_self(mode, owner, Some(self.time(placed))).map_err(|error| {
            let unmapped = owner.and_then(|owner| unmapped(&error.source, placed, owner));
            unmapped.unwrap_or_else(|| error.into())
        })
    }

    /// The directory at `path` if there is one.
    fn find(&mut self, path: &[u8]) -> Result<Option<&Directory>> {
        match self.descend(path, Missing::Fail) {
            Ok(()) => {}
            Err(Error::File(error)) if is_no_directory(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(self.current()))
    }

    /// As [`find`](Self::find), but a symbolic link to a directory is none.
    fn find_own(&mut self, path: &[u8]) -> Result<Option<Directory>> {
        let (parent, name) = split(path);
        let Some(parent) = self.find(parent)? else { return Ok(None) };
        if path.is_empty() {
            return Ok(Some(parent.try_clone()?));
        }
        match parent.open_place(OsStr::from_bytes(name)) {
            Err(error) if is_no_directory(&error) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    /// The directory at `path`, made with its parents where the layer implies it.
    fn parent(&mut self, path: &[u8]) -> Result<&Directory> {
        if self.place != path {
            self.descend(path, Missing::Make)?;
        }
        Ok(self.current())
    }

    fn current(&self) -> &Directory {
        self.held.last().map_or(self.to.root.directory(), |held| &held.1)
    }

    /// Makes `path` the current place, keeping the directories it shares with the place before.
    fn descend(&mut self, path: &[u8], missing: Missing) -> Result<()> {
        while let Some((length, _)) = self.held.last() {
            let shared = *length <= path.len()
                && self.place[..*length] == path[..*length]
                && (*length == path.len() || path[*length] == b'/');
            if shared {
                break;
            }
            self.held.pop();
        }
        let mut start = self.held.last().map_or(0, |held| held.0 + 1);
        self.place.truncate(start.saturating_sub(1));
        while start < path.len() {
            let end =
                path[start..].iter().position(|byte| *byte == b'/').map_or(path.len(), |slash| start + slash);
            let below = self.step(path, start..end, missing)?;
            if self.held.len() >= HELD {
                // The deepest one only; it is reached again from the held ones when it is left.
                self.held.pop();
            }
            self.held.push((end, below));
            self.place.clear();
            self.place.extend_from_slice(&path[..end]);
            start = end + 1;
        }
        Ok(())
    }

    fn step(&mut self, path: &[u8], name: std::ops::Range<usize>, missing: Missing) -> Result<Directory> {
        let whole = &path[..name.end];
        let name = OsStr::from_bytes(&path[name]);
        let error = match self.current().open_place(name) {
            Ok(below) => return Ok(below),
            Err(error) => error,
        };
        match (error.kind(), missing) {
            (io::ErrorKind::NotFound, Missing::Make) => {
                self.current().make_directory(name, 0o755)?;
                if !self.own_umask {
                    self.current().set_mode(name, 0o755)?;
                }
                if self.to.whiteouts.is_plain() {
                    self.made.insert(whole.to_vec());
                }
                Ok(self.current().open_place(name)?)
            }
            (io::ErrorKind::NotFound, Missing::Fail) => Err(error.into()),
            _ if self.to.whiteouts.is_plain() => Ok(self.to.root.open_directory(to_system(whole))?),
            (_, Missing::Make) if self.is_whiteout(&self.current().stat(name)?) => {
                // The whiteout of a directory that the layer makes anew.
                let here = self.current();
                here.unlink(name)?;
                here.make_directory(name, 0o755)?;
                let below = here.open_place(name)?;
                let attribute: &[u8] = match self.to.whiteouts {
                    Whiteouts::OverlayUser => b"user.overlay.opaque",
                    _ => b"trusted.overlay.opaque",
                };
                xattr::set(&below, OsStr::new(""), attribute, b"y")?;
                Ok(below)
            }
            _ => Err(error.into()),
        }
    }
}

/// What was made of an entry, and so what is left to do.
enum Made {
    /// All of it.
    Whole,
    /// A directory that gets its metadata at the end.
    Directory(ModeSet),
    /// A regular file whose content comes.
    File(File),
}

/// Whether a directory already has its mode, special bits apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ModeSet {
    Yes,
    No,
}

/// What happens when a directory on the way is missing.
#[derive(Clone, Copy)]
enum Missing {
    Make,
    Fail,
}

/// Whether no directory is there.
fn is_no_directory(error: &FileError) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn listed(directory: &Directory) -> Result<Vec<std::ffi::OsString>> {
    Ok(directory.list()?.into_iter().map(|found| found.name).collect())
}

/// What it means that an owner cannot be set, if it means that it is none here.
fn unmapped(source: &io::Error, placed: &Placed, (uid, gid): (u32, u32)) -> Option<Error> {
    let is_unmapped = source.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error());
    is_unmapped.then(|| Error::Owner { path: path::shown(&placed.path), uid, gid })
}

/// Writes attributes. File systems without them, and namespaces that are not ours to write, are passed over, as the
/// field's engines do; a capability that cannot be written is an error, since programs would fail without it.
fn set_xattrs(parent: &Directory, name: &OsStr, placed: &Placed, ownership: Ownership) -> Result<()> {
    for (attribute, value) in &placed.xattrs {
        if ownership != Ownership::Keep && !attribute.starts_with(b"user.") {
            continue;
        }
        match xattr::set(parent, name, attribute, value) {
            Err(error)
                if error.source.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && attribute != b"security.capability" => {
            }
            result => result.map_err(|error| Error::Attribute {
                path: path::shown(&placed.path),
                attribute: String::from_utf8_lossy(attribute).into_owned(),
                source: error.source,
            })?,
        }
    }
    Ok(())
}
