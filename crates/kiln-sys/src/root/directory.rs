//! One opened directory, whose names are single components.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, StatxFlags, Uid};
use rustix::io::Errno;

use super::{FileError, Result, Time};

/// One opened directory. Every `name` is a single component.
#[derive(Debug)]
pub struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) name: PathBuf,
}

/// One name found in a directory.
#[derive(Debug, Clone)]
pub struct Found {
    /// The name.
    pub name: OsString,
    /// Its type as the directory tells it; `Unknown` where the file system does not.
    pub kind: FileType,
}

/// The names found in a directory, in one piece of memory that serves for the next directory, too.
#[derive(Debug, Default)]
pub struct Names {
    text: Vec<u8>,
    /// Where each begins and ends.
    found: Vec<(usize, usize, FileType)>,
    /// What the kernel writes into.
    buffer: Vec<u8>,
}

impl Names {
    /// Every name with its type as the directory tells it.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&OsStr, FileType)> {
        self.found.iter().map(|(start, end, kind)| (OsStr::from_bytes(&self.text[*start..*end]), *kind))
    }

    /// How long all names are together.
    pub fn text_size(&self) -> usize {
        self.text.len()
    }

    fn sort(&mut self) {
        let text = &self.text;
        self.found.sort_unstable_by(|left, right| text[left.0..left.1].cmp(&text[right.0..right.1]));
    }
}

impl Directory {
    /// Opens a directory of the host.
    ///
    /// # Errors
    /// When it cannot be opened or is not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            sys::open(path, flags, Mode::empty()).map_err(|error| FileError::new("open", path, error))?;
        Ok(Self { fd, name: path.to_path_buf() })
    }

    /// Another handle on the same directory.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|error| FileError::new("open", &self.name, error))?;
        Ok(Self { fd, name: self.name.clone() })
    }

    /// What errors call this directory.
    pub fn name(&self) -> &Path {
        &self.name
    }

    pub(super) fn shown(&self, name: impl AsRef<Path>) -> PathBuf {
        let name = name.as_ref();
        self.name.join(name.strip_prefix("/").unwrap_or(name))
    }

    fn failed<T>(
        &self,
        operation: &'static str,
        name: impl AsRef<OsStr>,
        result: rustix::io::Result<T>,
    ) -> Result<T> {
        result.map_err(|error| FileError::new(operation, self.shown(name.as_ref()), error))
    }

    /// Opens the directory `name`; a symbolic link is refused.
    ///
    /// # Errors
    /// When it is missing or not a directory.
    pub fn open_directory(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        let name = name.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = single(name).and_then(|()| sys::openat(&self.fd, name, flags, Mode::empty()));
        Ok(Self { fd: self.failed("open", name, opened)?, name: self.shown(name) })
    }

    /// Opens the directory `name` as a place only (`O_PATH`): enough to work below it, not to list it.
    ///
    /// # Errors
    /// When it is missing or not a directory.
    pub fn open_place(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        let name = name.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = single(name).and_then(|()| sys::openat(&self.fd, name, flags, Mode::empty()));
        Ok(Self { fd: self.failed("open", name, opened)?, name: self.shown(name) })
    }

    /// Opens the regular file `name` for reading. The caller checks with `fstat` that it is one when it matters; a FIFO
    /// does not block.
    ///
    /// # Errors
    /// When it is missing, or a symbolic link.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> Result<std::fs::File> {
        let name = name.as_ref();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = single(name).and_then(|()| sys::openat(&self.fd, name, flags, Mode::empty()));
        self.failed("open", name, opened).map(std::fs::File::from)
    }

    /// Makes the regular file `name`, which must not exist, and opens it for writing.
    ///
    /// # Errors
    /// `AlreadyExists` when anything has that name.
    pub fn create_file(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<std::fs::File> {
        let name = name.as_ref();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = single(name)
            .and_then(|()| sys::openat(&self.fd, name, flags, Mode::from_raw_mode(mode & 0o7777)));
        self.failed("create", name, opened).map(std::fs::File::from)
    }

    /// Makes the directory `name`.
    ///
    /// # Errors
    /// `AlreadyExists` when anything has that name.
    pub fn make_directory(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
        let name = name.as_ref();
        let made =
            single(name).and_then(|()| sys::mkdirat(&self.fd, name, Mode::from_raw_mode(mode & 0o7777)));
        self.failed("make the directory", name, made)
    }

    /// Makes the symbolic link `name`.
    ///
    /// # Errors
    /// `AlreadyExists` when anything has that name.
    pub fn make_symlink(&self, name: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        let made = single(name).and_then(|()| sys::symlinkat(target.as_ref(), &self.fd, name));
        self.failed("make the symbolic link", name, made)
    }

    /// Gives `name` in `from` a second name here. A symbolic link is linked itself.
    ///
    /// # Errors
    /// `AlreadyExists` when anything has that name; `NotFound` when the source is missing.
    pub fn make_link(&self, name: impl AsRef<OsStr>, from: &Self, source: impl AsRef<OsStr>) -> Result<()> {
        let (name, source) = (name.as_ref(), source.as_ref());
        let made = single(name)
            .and_then(|()| single(source))
            .and_then(|()| sys::linkat(&from.fd, source, &self.fd, name, AtFlags::empty()));
        self.failed("make the hard link", name, made)
    }

    /// Makes a device node, FIFO or empty file.
    ///
    /// # Errors
    /// `AlreadyExists` when anything has that name; `PermissionDenied` for devices without CAP_MKNOD.
    pub fn make_node(
        &self,
        name: impl AsRef<OsStr>,
        kind: FileType,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<()> {
        let name = name.as_ref();
        let device = sys::makedev(major, minor);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let made = single(name).and_then(|()| sys::mknodat(&self.fd, name, kind, mode, device));
        self.failed("make the node", name, made)
    }

    /// Removes `name`, which is not a directory.
    ///
    /// # Errors
    /// When it is missing or a directory.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        let done = single(name).and_then(|()| sys::unlinkat(&self.fd, name, AtFlags::empty()));
        self.failed("remove", name, done)
    }

    /// Removes the empty directory `name`.
    ///
    /// # Errors
    /// When it is missing, not a directory or not empty.
    pub fn remove_directory(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        let done = single(name).and_then(|()| sys::unlinkat(&self.fd, name, AtFlags::REMOVEDIR));
        self.failed("remove", name, done)
    }

    /// What `name` is; a symbolic link is not followed.
    ///
    /// # Errors
    /// When it is missing.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> Result<Stat> {
        let name = name.as_ref();
        let found = single(name).and_then(|()| sys::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW));
        self.failed("stat", name, found)
    }

    /// When `name` came into being, where the file system knows that.
    ///
    /// # Errors
    /// When it is missing.
    pub fn birth(&self, name: impl AsRef<OsStr>) -> Result<Option<Time>> {
        let name = name.as_ref();
        let found = single(name)
            .and_then(|()| sys::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME));
        let found = self.failed("stat", name, found)?;
        let time = Time { seconds: found.stx_btime.tv_sec, nanoseconds: found.stx_btime.tv_nsec };
        Ok((found.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(time))
    }

    /// What this directory is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stat_self(&self) -> Result<Stat> {
        self.failed("stat", "", sys::fstat(&self.fd))
    }

    /// Where the symbolic link `name` points.
    ///
    /// # Errors
    /// When it is missing or not a symbolic link.
    pub fn read_link(&self, name: impl AsRef<OsStr>) -> Result<OsString> {
        let name = name.as_ref();
        let read = single(name).and_then(|()| sys::readlinkat(&self.fd, name, Vec::new()));
        self.failed("read the symbolic link", name, read)
            .map(|target| OsString::from_vec(target.into_bytes()))
    }

    /// Sets all twelve mode bits of `name`, which must not be a symbolic link; a device is not opened.
    ///
    /// # Errors
    /// When it is missing or a symbolic link.
    pub fn set_mode(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
        let name = name.as_ref();
        let done = single(name).and_then(|()| set_mode_at(self.fd.as_fd(), name, mode & 0o7777));
        self.failed("set the mode of", name, done)
    }

    /// Sets the owner of `name`; of a symbolic link its own.
    ///
    /// # Errors
    /// When it is missing, or the kernel refuses.
    pub fn set_owner(&self, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> Result<()> {
        let name = name.as_ref();
        let done = single(name).and_then(|()| {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            sys::chownat(&self.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        });
        self.failed("set the owner of", name, done)
    }

    /// Sets the time of last modification of `name`; of a symbolic link its own.
    ///
    /// # Errors
    /// When it is missing, or the kernel refuses.
    pub fn set_modified(&self, name: impl AsRef<OsStr>, time: Time) -> Result<()> {
        let name = name.as_ref();
        let done = single(name)
            .and_then(|()| sys::utimensat(&self.fd, name, &time.timestamps(), AtFlags::SYMLINK_NOFOLLOW));
        self.failed("set the time of", name, done)
    }

    /// Sets mode, owner or time of the directory itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_self(&self, mode: Option<u32>, owner: Option<(u32, u32)>, time: Option<Time>) -> Result<()> {
        let own = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        if let Some((uid, gid)) = owner {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.failed(
                "set the owner of",
                "",
                sys::chownat(&self.fd, "", owner.0, owner.1, AtFlags::EMPTY_PATH),
            )?;
        }
        if let Some(mode) = mode {
            let done = sys::chmod(&own, Mode::from_raw_mode(mode & 0o7777));
            self.failed("set the mode of", "", done)?;
        }
        if let Some(time) = time {
            let done = sys::utimensat(CWD, &own, &time.timestamps(), AtFlags::empty());
            self.failed("set the time of", "", done)?;
        }
        Ok(())
    }

    /// The names in this directory, unsorted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self) -> Result<Vec<Found>> {
        self.failed("list", "", self.entries())
    }

    /// The names in this directory, sorted bytewise. It must have been opened for reading, not as a place.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list_sorted(&mut self, names: &mut Names) -> Result<()> {
        names.text.clear();
        names.found.clear();
        let read = self.read_names(names);
        self.failed("list", "", read)?;
        names.sort();
        Ok(())
    }

    fn read_names(&self, names: &mut Names) -> rustix::io::Result<()> {
        sys::seek(&self.fd, sys::SeekFrom::Start(0))?;
        names.buffer.reserve(64 << 10);
        let mut reader = sys::RawDir::new(&self.fd, names.buffer.spare_capacity_mut());
        while let Some(entry) = reader.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let start = names.text.len();
                names.text.extend_from_slice(name);
                names.found.push((start, names.text.len(), entry.file_type()));
            }
        }
        Ok(())
    }

    fn entries(&self) -> rustix::io::Result<Vec<Found>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = sys::openat(&self.fd, ".", flags, Mode::empty())?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut reader = sys::RawDir::new(fd, buffer.spare_capacity_mut());
        let mut found = Vec::new();
        while let Some(entry) = reader.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                found.push(Found { name: OsStr::from_bytes(name).to_os_string(), kind: entry.file_type() });
            }
        }
        Ok(found)
    }

    /// Removes `name` and everything below it, by descriptor, whatever the depth. A missing name is fine.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        match self.unlink(name) {
            Err(error) if error.source.raw_os_error() == Some(libc::EISDIR) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
        if let Some(directory) = unless_gone(self.open_removable(name))? {
            directory.clear()?;
        }
        unless_gone(self.remove_directory(name)).map(drop)
    }

    /// Removes everything below this directory, whatever the depth: only two descriptors are open at a time, and the way
    /// back up is checked by device and inode. What somebody else removes meanwhile is removed.
    ///
    /// # Errors
    /// When something cannot be removed, or the tree is moved meanwhile.
    pub fn clear(&self) -> Result<()> {
        struct Level {
            rest: Vec<Found>,
            identity: (u64, u64),
            child: OsString,
        }
        let mut levels: Vec<Level> = Vec::new();
        let mut current = self.try_clone()?;
        let mut rest = unless_gone(self.list())?.unwrap_or_default();
        loop {
            let Some(found) = rest.pop() else {
                let Some(level) = levels.pop() else { return Ok(()) };
                current = current.open_above(level.identity)?;
                unless_gone(current.remove_directory(&level.child))?;
                rest = level.rest;
                continue;
            };
            if found.kind != FileType::Directory {
                match current.unlink(&found.name) {
                    Err(error) if error.source.raw_os_error() == Some(libc::EISDIR) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    result => {
                        result?;
                        continue;
                    }
                }
            } else if current.remove_directory(&found.name).is_ok() {
                continue;
            }
            let Some(below) = unless_gone(current.open_removable(&found.name))? else { continue };
            let stat = current.stat_self()?;
            let list = unless_gone(below.list())?.unwrap_or_default();
            let rest_here = std::mem::replace(&mut rest, list);
            levels.push(Level { rest: rest_here, identity: (stat.st_dev, stat.st_ino), child: found.name });
            current = below;
        }
    }

    fn open_above(&self, identity: (u64, u64)) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.failed("open", "..", sys::openat(&self.fd, "..", flags, Mode::empty()))?;
        let stat = self.failed("stat", "..", sys::fstat(&fd))?;
        if (stat.st_dev, stat.st_ino) != identity {
            return self.failed("return from", "", Err(Errno::STALE));
        }
        Ok(Self { fd, name: self.name.parent().unwrap_or(Path::new("")).to_path_buf() })
    }

    /// Opens a directory that is about to be removed, whose mode may forbid it to us.
    fn open_removable(&self, name: &OsStr) -> Result<Self> {
        match self.open_directory(name) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.set_mode(name, 0o700)?;
                self.open_directory(name)
            }
            result => {
                let directory = result?;
                if rustix::process::geteuid().is_root() {
                    return Ok(directory);
                }
                let mode = directory.stat_self()?.st_mode;
                if mode & 0o700 != 0o700 {
                    self.set_mode(name, 0o700)?;
                }
                Ok(directory)
            }
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Directory> for OwnedFd {
    fn from(directory: Directory) -> Self {
        directory.fd
    }
}

/// `None` of what is not there any more.
fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// A name must be one component; anything else would be resolved by the kernel without our rules.
fn single(name: &OsStr) -> rustix::io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// `fchmodat2(2)` where it exists (Linux 6.6), else through an `O_PATH` descriptor: neither follows a link nor opens a
/// device.
fn set_mode_at(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    let text = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is borrowed and open, the string is NUL-terminated and lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            directory.as_raw_fd(),
            text.as_ptr(),
            mode,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => {}
        code => return Err(Errno::from_raw_os_error(code.unwrap_or(libc::EIO))),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = sys::openat(directory, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(sys::fstat(&fd)?.st_mode) == FileType::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    sys::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::from_raw_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::super::set_file;
    use super::super::tests::scratch;
    use super::*;

    #[test]
    fn two_may_remove_one_tree() {
        for _ in 0..5 {
            let host = tempfile::tempdir().expect("a temporary directory");
            for number in 0..200 {
                let path = host.path().join(format!("tree/{}/{}/{number}", number % 7, number % 5));
                fs_err::create_dir_all(&path).expect("made");
                fs_err::write(path.join("file"), "").expect("written");
            }
            let directory = Directory::open(host.path()).expect("opened");
            let both = std::sync::Barrier::new(2);
            let remove = || {
                both.wait();
                directory.remove_all("tree")
            };
            let removed = std::thread::scope(|scope| {
                [scope.spawn(remove), scope.spawn(remove)].map(|thread| thread.join().expect("joined"))
            });
            for removed in removed {
                removed.expect("removed");
            }
            assert_eq!(fs_err::read_dir(host.path()).expect("listed").count(), 0);
        }
    }

    #[test]
    fn names_are_listed_in_order_and_anew() {
        let (_host, root) = scratch();
        let top = root.directory();
        top.make_directory("b", 0o755).expect("made");
        for name in ["c", "a", "b-", "b.b", "B"] {
            top.create_file(name, 0o644).expect("created");
        }
        let mut names = Names::default();
        for directory in ["", "b", ""] {
            let mut opened = root.open_directory(Path::new(directory)).expect("opened");
            for _ in 0..2 {
                opened.list_sorted(&mut names).expect("listed");
                let found: Vec<_> = names.iter().collect();
                let expected =
                    if directory.is_empty() { &["B", "a", "b", "b-", "b.b", "c"][..] } else { &[] };
                assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected);
                assert!(found.iter().all(|(name, kind)| (*kind == FileType::Directory) == (*name == "b")));
            }
        }
        // More than one buffer holds.
        let many = root.directory().open_directory("b").expect("opened");
        for number in 0..3000 {
            many.create_file(format!("a-rather-long-name-{number:04}"), 0o644).expect("created");
        }
        root.open_directory(Path::new("b")).expect("opened").list_sorted(&mut names).expect("listed");
        let expected = (0..3000).map(|number| format!("a-rather-long-name-{number:04}"));
        assert!(names.iter().map(|(name, _)| name.to_os_string()).eq(expected.map(OsString::from)));
    }

    #[test]
    fn names_are_single_components() {
        let (_host, root) = scratch();
        for name in ["", ".", "..", "a/b", "/etc"] {
            assert!(root.directory().make_directory(name, 0o755).is_err(), "{name:?}");
            assert!(root.directory().stat(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn mode_never_follows_a_link() {
        let (host, root) = scratch();
        fs_err::write(host.path().join("canary"), "").expect("written");
        let before = fs_err::metadata(host.path().join("canary")).expect("stat");
        root.directory().make_symlink("link", "../canary").expect("linked");
        root.directory().set_mode("link", 0o4777).expect_err("a link has no mode");
        let after = fs_err::metadata(host.path().join("canary")).expect("stat");
        assert_eq!(before.permissions(), after.permissions());
    }

    #[test]
    fn deep_trees_are_removed() {
        let (host, root) = scratch();
        let mut current = root.directory().try_clone().expect("clone");
        for _ in 0..5000 {
            current.make_directory("d", 0o755).expect("made");
            current.make_symlink("s", "/").expect("linked");
            current = Directory { fd: current.open_directory("d").expect("opened").fd, name: "d".into() };
        }
        drop(current);
        root.directory().remove_all("d").expect("removed");
        root.directory().remove_all("d").expect("missing is fine");
        root.directory().remove_all("s").expect("removed");
        assert!(root.directory().list().expect("list").is_empty());
        assert!(host.path().exists());
    }

    #[test]
    fn times_and_modes_are_set() {
        let (_host, root) = scratch();
        let file = root.directory().create_file("f", 0o600).expect("created");
        let time = Time { seconds: -5, nanoseconds: 7 };
        set_file(&file, None, Some(0o4755), Some(time)).expect("set");
        let stat = root.directory().stat("f").expect("stat");
        assert_eq!((stat.st_mode & 0o7777, Time::modified(&stat)), (0o4755, time));
        root.directory().set_self(Some(0o700), None, Some(time)).expect("set");
        assert_eq!(Time::modified(&root.directory().stat_self().expect("stat")), time);
    }
}
