//! Paths under a root that may be hostile: resolved once by the kernel, used by descriptor afterwards.
//!
//! A [`Root`] resolves whole paths with `openat2(2)` and `RESOLVE_IN_ROOT`, so that absolute symbolic links and `..`
//! stay inside. A [`Directory`] is one opened directory; its methods take a single name and never follow a symbolic
//! link, and none of them opens a device, a FIFO or a socket.

#[cfg(any(test, feature = "without-openat2"))]
mod by_component;
mod directory;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    self as sys, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

#[cfg(feature = "without-openat2")]
use by_component::openat2;
pub use directory::{Directory, Found, Names};
#[cfg(not(feature = "without-openat2"))]
use rustix::fs::openat2;

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb phrase ("open", "set the owner of").
    pub operation: &'static str,
    /// The path, for people: under a root it starts with the root's own name.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { operation, path: path.into(), source: source.into() }
    }

    /// The kind of the cause, for callers that treat "not found" and the like apart.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

type Result<T> = std::result::Result<T, FileError>;

/// A moment of a file: seconds since the epoch and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds, below one thousand million.
    pub nanoseconds: u32,
}

impl Time {
    /// The time of last modification in `stat`.
    pub fn modified(stat: &Stat) -> Self {
        Self { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
    }

    fn timestamps(self) -> Timestamps {
        let modified = Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() };
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified }
    }
}

/// A directory that is the root of every path given to it.
#[derive(Debug)]
pub struct Root {
    directory: Directory,
}

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    /// Opens the directory at `path` of the host.
    ///
    /// # Errors
    /// When it cannot be opened or is not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        Directory::open(path).map(|directory| Self { directory })
    }

    /// Takes a directory that is open already; `name` is what errors call it.
    pub fn from_fd(fd: OwnedFd, name: impl Into<PathBuf>) -> Self {
        Self { directory: Directory { fd, name: name.into() } }
    }

    /// The root itself as a directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Another handle on the same root.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        self.directory.try_clone().map(|directory| Self { directory })
    }

    /// Finds `path`, following symbolic links inside the root; the descriptor is `O_PATH`.
    ///
    /// # Errors
    /// When nothing is there, or the kernel refuses.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        self.openat2("resolve", path, OFlags::PATH, Mode::empty())
    }

    /// Like [`resolve`](Self::resolve), but a symbolic link as the last component is itself the result.
    ///
    /// # Errors
    /// When nothing is there, or the kernel refuses.
    pub fn resolve_link(&self, path: &Path) -> Result<OwnedFd> {
        self.openat2("resolve", path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
    }

    /// Opens `path` with `flags`, following symbolic links inside the root. Reading never blocks on a FIFO and never
    /// opens a device: anything but a regular file or directory is refused.
    ///
    /// # Errors
    /// When nothing is there, it is neither file nor directory, or the kernel refuses.
    pub fn open_file(&self, path: &Path) -> Result<std::fs::File> {
        let found = self.resolve(path)?;
        reopen(found.as_fd(), OFlags::RDONLY)
            .map(std::fs::File::from)
            .map_err(|error| self.error("open", path, error))
    }

    /// Opens the regular file at `path` for reading, following no symbolic link at all. The caller knows that it is one: a
    /// FIFO would not block, a device would be opened.
    ///
    /// # Errors
    /// When nothing is there, or a symbolic link is on the way.
    pub fn open_plain(&self, path: &Path) -> Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = IN_ROOT | ResolveFlags::NO_SYMLINKS;
        openat2(&self.directory.fd, path, flags, Mode::empty(), resolve)
            .map(std::fs::File::from)
            .map_err(|error| self.error("open", path, error))
    }

    /// Opens the directory at `path`, following symbolic links inside the root.
    ///
    /// # Errors
    /// When nothing is there or it is not a directory.
    pub fn open_directory(&self, path: &Path) -> Result<Directory> {
        let fd = self.openat2("open", path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Directory { fd, name: self.directory.shown(path) })
    }

    /// Opens the directory that holds `path`, and gives the last component. `path` must name something below the root.
    ///
    /// # Errors
    /// When the parent is missing or not a directory, or `path` ends in `..` or names the root.
    pub fn open_parent(&self, path: &Path) -> Result<(Directory, OsString)> {
        let name = path.file_name().ok_or_else(|| self.error("open the parent of", path, Errno::INVAL))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let fd = self.openat2("open", parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((Directory { fd, name: self.directory.shown(parent) }, name.to_os_string()))
    }

    /// Makes the directory at `path` with every missing parent, mode 0755, and opens it. Dangling symbolic links are not
    /// followed into existence.
    ///
    /// # Errors
    /// When a component is not a directory, or the kernel refuses.
    pub fn make_directories(&self, path: &Path) -> Result<Directory> {
        match self.open_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let parent = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or_else(|| self.error("make", path, Errno::INVAL))?;
        match parent.make_directory(name, 0o755) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_directory(path),
            result => result.and_then(|()| parent.open_directory(name)),
        }
    }

    /// What `path` is, following symbolic links inside the root.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn stat(&self, path: &Path) -> Result<Stat> {
        let found = self.resolve(path)?;
        sys::fstat(&found).map_err(|error| self.error("stat", path, error))
    }

    fn openat2(&self, operation: &'static str, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let inside = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match openat2(&self.directory.fd, inside, flags | OFlags::CLOEXEC, mode, IN_ROOT) {
                // A concurrent rename or mount makes the kernel give up on a path with "..": try again (openat2(2)).
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result.map_err(|error| self.error(operation, path, error)),
            }
        }
    }

    fn error(&self, operation: &'static str, path: &Path, error: Errno) -> FileError {
        FileError::new(operation, self.directory.shown(path), error)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.fd.as_fd()
    }
}

/// Opens what an `O_PATH` descriptor shows: a regular file or a directory, nothing else.
fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match FileType::from_raw_mode(sys::fstat(fd)?.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Err(Errno::INVAL),
    }
    sys::openat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Sets mode, owner and time of an open file, in the order that keeps set-user-ID bits.
///
/// # Errors
/// When the kernel refuses; the error does not name the file.
pub fn set_file(
    file: &std::fs::File,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    time: Option<Time>,
) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        sys::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if let Some(mode) = mode {
        sys::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?;
    }
    if let Some(time) = time {
        sys::futimens(file, &time.timestamps())?;
    }
    Ok(())
}

/// Gives this thread alone a file mode creation mask of zero, so that modes given at creation hold. False when a sandbox
/// forbids it: then modes must be set afterwards.
pub fn clear_own_umask() -> bool {
    // SAFETY: unsharing CLONE_FS gives this thread its own root, working directory and umask; memory and descriptors
    // stay shared, so nothing that Rust relies on changes.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return false;
    }
    rustix::process::umask(Mode::empty());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn scratch() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs_err::create_dir(directory.path().join("root")).expect("root");
        let root = Root::open(&directory.path().join("root")).expect("opened");
        (directory, root)
    }

    #[test]
    fn links_stay_inside() {
        let (host, root) = scratch();
        fs_err::write(host.path().join("secret"), "outside").expect("written");
        let top = root.directory();
        top.make_directory("etc", 0o755).expect("made");
        for (name, target) in [
            ("absolute", "/secret"),
            ("up", "../secret"),
            ("deep", "etc/../../../secret"),
            ("etc/x", "../../secret"),
        ] {
            let (parent, last) = root.open_parent(Path::new(name)).expect("parent");
            parent.make_symlink(&last, target).expect("linked");
            let error = root.open_file(Path::new(name)).expect_err("nothing inside has that name");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}");
        }
        fs_err::write(host.path().join("root/secret"), "inside").expect("written");
        for name in ["absolute", "up", "deep", "etc/x"] {
            let text = io::read_to_string(root.open_file(Path::new(name)).expect("opened")).expect("read");
            assert_eq!(text, "inside", "{name}");
        }
    }

    #[test]
    fn a_fifo_is_not_opened() {
        let (_host, root) = scratch();
        root.directory().make_node("pipe", FileType::Fifo, 0o644, 0, 0).expect("made");
        root.open_file(Path::new("pipe")).expect_err("a FIFO is no file");
    }

    #[test]
    fn directories_are_made_inside() {
        let (host, root) = scratch();
        root.directory().make_symlink("out", "/a").expect("linked");
        root.make_directories(Path::new("a/b/c")).expect("made");
        root.make_directories(Path::new("/out/d")).expect("made");
        assert!(host.path().join("root/a/d").is_dir() && host.path().join("root/a/b/c").is_dir());
    }
}
