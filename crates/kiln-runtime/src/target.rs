//! Finding a place inside a root that is not trusted, making it where it is missing, and taking that back.
//!
//! Paths are walked one component at a time from a descriptor, and symbolic links are read and walked the same way,
//! with the root as `/`. `..` goes back along the descriptors that the walk came by. So no rename, link or mount that
//! happens meanwhile leads outside (CVE-2021-30465, CVE-2024-45310), and a link in `/proc` is nothing but its text
//! (CVE-2024-21626).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::wire::{wire_enum, wire_struct};

/// The kernel's own limit on links in one path.
const MOST_LINKS: usize = 40;

/// A moment of a file's times: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

/// What a stub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StubKind {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A character device, where none could be mounted.
    Device,
}

/// Something made in the root so that there is a place to mount on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Where in the root, without a leading `/`; no component is a symbolic link.
    pub path: PathBuf,
    /// What it is.
    pub kind: StubKind,
}

/// The times of a directory in which stubs were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TouchedParent {
    /// Where in the root, without a leading `/`; empty for the root itself.
    pub path: PathBuf,
    /// When it was last read, before.
    pub accessed: Moment,
    /// When it was last changed, before.
    pub modified: Moment,
    /// When it was last changed, once all stubs were made: if it still says so, nobody else changed it.
    pub modified_by_stubs: Moment,
}

/// What a sandbox left in its root that the process did not make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stubs {
    /// What was made, parents before their children.
    pub made: Vec<Stub>,
    /// The directories whose times that changed.
    pub parents: Vec<TouchedParent>,
}

wire_struct!(Moment { seconds, nanoseconds });
wire_enum!(StubKind { 0 => File, 1 => Directory, 2 => Device });
wire_struct!(Stub { path, kind });
wire_struct!(TouchedParent { path, accessed, modified, modified_by_stubs });
wire_struct!(Stubs { made, parents });

impl Stubs {
    /// Takes the stubs back from the directory that holds them: the overlay's upper, or the root. To be called when no
    /// process of the sandbox lives.
    ///
    /// A stub that was filled, replaced or removed stays as it is. Symbolic links are never followed: a process may
    /// have put one in a stub's way (CVE-2024-23652).
    ///
    /// # Errors
    /// When the directory cannot be opened; single stubs that cannot be reached are left.
    pub fn undo(&self, holder: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let holder = rustix::fs::open(holder, flags, Mode::empty())?;
        // Whether to restore a directory's times must be known before the removals change them.
        let untouched: Vec<&TouchedParent> = self
            .parents
            .iter()
            .filter(|parent| {
                open_below(holder.as_fd(), &parent.path, OFlags::PATH)
                    .and_then(|directory| Ok(stat(directory.as_fd())?.modified == parent.modified_by_stubs))
                    .unwrap_or(false)
            })
            .collect();
        for stub in self.made.iter().rev() {
            remove_stub(holder.as_fd(), stub);
        }
        for parent in untouched {
            if let Ok(directory) =
                open_below(holder.as_fd(), &parent.path, OFlags::RDONLY | OFlags::DIRECTORY)
            {
                let timespec = |moment: Moment| Timespec {
                    tv_sec: moment.seconds,
                    tv_nsec: i64::from(moment.nanoseconds),
                };
                let times = Timestamps {
                    last_access: timespec(parent.accessed),
                    last_modification: timespec(parent.modified),
                };
                let _ = rustix::fs::futimens(&directory, &times);
            }
        }
        Ok(())
    }
}

impl Stubs {
    /// The directories whose times nobody else has changed, neither after `self` was made nor after `later` was.
    pub(crate) fn unchanged_parents(&self, holder: &Path, later: &Self) -> io::Result<Vec<TouchedParent>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let holder = rustix::fs::open(holder, flags, Mode::empty())?;
        let is_unchanged = |parent: &&TouchedParent| {
            let now = open_below(holder.as_fd(), &parent.path, OFlags::PATH)
                .and_then(|directory| Ok(stat(directory.as_fd())?.modified));
            let Ok(now) = now else { return false };
            match later.parents.iter().find(|known| known.path == parent.path) {
                Some(known) => known.modified == parent.modified_by_stubs && known.modified_by_stubs == now,
                None => parent.modified_by_stubs == now,
            }
        };
        Ok(self.parents.iter().filter(is_unchanged).cloned().collect())
    }
}

fn remove_stub(holder: BorrowedFd<'_>, stub: &Stub) {
    let (Some(parent), Some(name)) = (stub.path.parent(), stub.path.file_name()) else { return };
    let Ok(parent) = open_below(holder, parent, OFlags::PATH | OFlags::DIRECTORY) else { return };
    let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let as_made = found.is_ok_and(|found| {
        let kind = FileType::from_raw_mode(found.st_mode);
        match stub.kind {
            StubKind::Directory => kind == FileType::Directory,
            StubKind::File => kind == FileType::RegularFile && found.st_size == 0,
            StubKind::Device => kind == FileType::CharacterDevice,
        }
    });
    if as_made {
        let how = if stub.kind == StubKind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        // A directory that was filled stays.
        let _ = rustix::fs::unlinkat(&parent, name, how);
    }
}

/// Opens a path below a directory, through no link and over no mount.
pub(crate) fn open_below(directory: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// What of a file's status is of interest here.
#[derive(Clone, Copy, Debug)]
struct Status {
    kind: FileType,
    mount: u64,
    accessed: Moment,
    modified: Moment,
}

fn stat(descriptor: BorrowedFd<'_>) -> Result<Status, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(
        descriptor,
        c"",
        flags,
        StatxFlags::BASIC_STATS | StatxFlags::from_bits_retain(MOUNT_ID),
    )?;
    let moment =
        |time: rustix::fs::StatxTimestamp| Moment { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    // Kernels before 5.8 give no mount: the device tells most mounts apart too.
    let device = (u64::from(found.stx_dev_major) << 32) | u64::from(found.stx_dev_minor);
    let known = found.stx_mask & MOUNT_ID != 0;
    Ok(Status {
        kind: FileType::from_raw_mode(found.stx_mode.into()),
        mount: if known { found.stx_mnt_id } else { device },
        accessed: moment(found.stx_atime),
        modified: moment(found.stx_mtime),
    })
}

/// `STATX_MNT_ID`.
const MOUNT_ID: u32 = 0x1000;

/// What to do about a component that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make directories, and the last as given; note them as stubs.
    Stub(StubKind),
    /// Make directories that are to stay.
    Directory,
    /// Fail.
    Refuse,
}

/// A root directory as a sandbox's process sees it, with all that is mounted in it so far.
pub(crate) struct Tree {
    root: OwnedFd,
    mount: u64,
    stubs: Stubs,
}

/// The directories that a walk came by.
struct Trail {
    passed: Vec<(OwnedFd, OsString)>,
}

impl Trail {
    fn path(&self) -> PathBuf {
        self.passed.iter().map(|(_, name)| name).collect()
    }
}

impl Tree {
    /// The tree below a directory.
    pub(crate) fn new(root: OwnedFd) -> io::Result<Self> {
        let mount = stat(root.as_fd())?.mount;
        Ok(Self { root, mount, stubs: Stubs::default() })
    }

    /// The tree below a directory in which stubs were made before.
    pub(crate) fn continued(root: OwnedFd, stubs: Stubs) -> io::Result<Self> {
        Ok(Self { stubs, ..Self::new(root)? })
    }

    /// Opens a place (`O_PATH`), following links inside the tree.
    pub(crate) fn resolve(&mut self, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
        let mut trail = Trail { passed: Vec::new() };
        let mut rest = components(path.as_os_str());
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                trail.passed.pop();
                continue;
            }
            let here = trail.passed.last().map_or(self.root.as_fd(), |(directory, _)| directory.as_fd());
            let found = match open_name(here, &name) {
                Err(Errno::NOENT) if missing != Missing::Refuse => {
                    let last = !rest.iter().any(|name| name != "..");
                    self.make(&trail, &name, missing, last)?
                }
                other => other?,
            };
            match stat(found.as_fd())?.kind {
                FileType::Symlink => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let text = rustix::fs::readlinkat(&found, c"", Vec::new())?;
                    let text = OsStr::from_bytes(text.as_bytes());
                    if text.as_bytes().starts_with(b"/") {
                        trail.passed.clear();
                    }
                    for name in components(text).into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                FileType::Directory => trail.passed.push((found, name)),
                _ if rest.is_empty() => return Ok(found),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        match trail.passed.pop() {
            Some((directory, _)) => Ok(directory),
            None => self.root.try_clone(),
        }
    }

    /// Opens a directory right below the root that must be none but that: where `/proc`, `/sys` and `/dev` go.
    pub(crate) fn own_directory(&mut self, name: &str) -> io::Result<OwnedFd> {
        let name = OsStr::new(name);
        let found = match open_name(self.root.as_fd(), name) {
            Err(Errno::NOENT) => {
                self.make(&Trail { passed: Vec::new() }, name, Missing::Stub(StubKind::Directory), true)?
            }
            other => other?,
        };
        if stat(found.as_fd())?.kind == FileType::Directory { Ok(found) } else { Err(Errno::NOTDIR.into()) }
    }

    fn make(&mut self, trail: &Trail, name: &OsStr, missing: Missing, last: bool) -> io::Result<OwnedFd> {
        let parent = trail.passed.last().map_or(self.root.as_fd(), |(directory, _)| directory.as_fd());
        let status = stat(parent)?;
        let kind = match missing {
            Missing::Stub(kind) if last => kind,
            _ => StubKind::Directory,
        };
        match kind {
            StubKind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
            StubKind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
            }
            StubKind::Device => return Err(Errno::INVAL.into()),
        }
        let made = open_name(parent, name)?;
        if matches!(missing, Missing::Stub(_)) && status.mount == self.mount {
            self.note(trail.path(), name, kind, status);
        }
        Ok(made)
    }

    /// Makes a character device that is to be taken back, in a directory right below the root. Says whether it did: not
    /// if there is something.
    pub(crate) fn device(&mut self, directory: &str, name: &str, number: u64) -> io::Result<bool> {
        let parent = self.own_directory(directory)?;
        let status = stat(parent.as_fd())?;
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, mode, number) {
            Ok(()) => {
                self.note(PathBuf::from(directory), OsStr::new(name), StubKind::Device, status);
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Notes the times of a directory that is going to be changed.
    pub(crate) fn touch(&mut self, path: &Path) -> io::Result<()> {
        let before = stat(open_below(self.root.as_fd(), path, OFlags::PATH)?.as_fd())?;
        self.note_parent(path.to_owned(), before);
        Ok(())
    }

    /// Notes what was made in a directory whose status before is given.
    fn note(&mut self, directory: PathBuf, name: &OsStr, kind: StubKind, before: Status) {
        let path = directory.join(name);
        self.note_parent(directory, before);
        self.stubs.made.push(Stub { path, kind });
    }

    fn note_parent(&mut self, directory: PathBuf, before: Status) {
        let known = self.stubs.made.iter().any(|stub| stub.path == directory)
            || self.stubs.parents.iter().any(|parent| parent.path == directory);
        if !known {
            self.stubs.parents.push(TouchedParent {
                path: directory,
                accessed: before.accessed,
                modified: before.modified,
                modified_by_stubs: before.modified,
            });
        }
    }

    /// What was made, with the times that the parents have now.
    pub(crate) fn into_stubs(mut self) -> Stubs {
        for parent in &mut self.stubs.parents {
            // What is mounted over the parent meanwhile is not it: keep what is known then.
            let now = open_below(self.root.as_fd(), &parent.path, OFlags::PATH)
                .and_then(|directory| stat(directory.as_fd()));
            if let Ok(now) = now {
                parent.modified_by_stubs = now.modified;
            }
        }
        self.stubs
    }
}

fn open_name(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect()
}
