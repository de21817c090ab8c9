//! Files that appear whole or not at all, how they become durable, and the boot they were written in.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

mod unfinished;

use std::ffi::{CString, OsStr};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::root::{Directory, FileError};
pub use unfinished::UnfinishedDirectory;

type Result<T> = std::result::Result<T, FileError>;

/// Renames `from` to `to`, replacing what was there. Atomic.
///
/// # Errors
/// When the kernel refuses.
pub fn rename_over(from: (&Directory, &OsStr), to: (&Directory, &OsStr)) -> Result<()> {
    rustix::fs::renameat(from.0, from.1, to.0, to.1)
        .map_err(|error| FileError::new("publish", to.0.name().join(to.1), error))
}

/// Writes `bytes` under a temporary name in `directory`, then renames it to `name`, replacing what was there: a reader
/// sees the old bytes or the new ones.
///
/// # Errors
/// When the kernel refuses; the temporary name is removed.
pub fn write_over(directory: &Directory, name: &OsStr, bytes: &[u8], mode: u32) -> Result<()> {
    let (temporary, mut file) = create_temporary(directory, mode)?;
    let result = file
        .write_all(bytes)
        .map_err(|error| FileError::new("write", directory.name().join(&temporary), error))
        .and_then(|()| rename_over((directory, temporary.as_ref()), (directory, name)));
    if result.is_err() {
        let _ = directory.unlink(&temporary);
    }
    result
}

/// What temporary names of files begin with.
const TEMPORARY: &str = ".tmp-";

/// Whether a name is one of those that files have before they are published.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Makes a file under a name nobody else uses.
///
/// # Errors
/// When the kernel refuses.
pub fn create_temporary(directory: &Directory, mode: u32) -> Result<(String, std::fs::File)> {
    loop {
        let name = format!("{TEMPORARY}{:016x}", random());
        match directory.create_file(&name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (name, file)),
        }
    }
}

/// A file that has no name until it is complete: whatever ends the process before, nothing of it stays. Where the file
/// system cannot do that it has a temporary name, which goes when this is dropped.
#[derive(Debug)]
pub struct Unnamed<'a> {
    directory: &'a Directory,
    temporary: Option<String>,
    file: std::fs::File,
}

impl<'a> Unnamed<'a> {
    /// Makes a file in `directory`, to be written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(directory: &'a Directory, mode: u32) -> Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, c".", flags, Mode::from_raw_mode(mode)) {
            Ok(file) => Ok(Self { directory, temporary: None, file: file.into() }),
            // What file systems and kernels answer that do not know it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let (name, file) = create_temporary(directory, mode)?;
                Ok(Self { directory, temporary: Some(name), file })
            }
            Err(error) => Err(FileError::new("make a file in", directory.name(), error)),
        }
    }

    /// Its bytes.
    pub fn file(&mut self) -> &mut std::fs::File {
        &mut self.file
    }

    /// Gives it a name, replacing what had it.
    ///
    /// # Errors
    /// When the kernel refuses; what had the name stays.
    pub fn rename_over(mut self, name: &OsStr) -> Result<()> {
        if self.temporary.is_none() {
            // A link never replaces anything: where the name is taken, the file gets another one first.
            match self.link(name) {
                Err(Errno::EXIST) => {}
                linked => {
                    let path = self.directory.name().join(name);
                    return linked.map_err(|error| FileError::new("publish", path, error));
                }
            }
            let temporary = format!("{TEMPORARY}{:016x}", random());
            self.link(temporary.as_ref())
                .map_err(|error| FileError::new("make", self.directory.name().join(&temporary), error))?;
            self.temporary = Some(temporary);
        }
        if let Some(temporary) = &self.temporary {
            rename_over((self.directory, temporary.as_ref()), (self.directory, name))?;
        }
        self.temporary = None;
        Ok(())
    }

    fn link(&self, name: &OsStr) -> rustix::io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, file.as_str(), self.directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = self.directory.unlink(temporary);
        }
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Asks ext4 to give every directory that is made in this one a block group of its own (`chattr +T`, ext4(5)), with all that
/// is made below it later.
///
/// Without a journal ext4 does not reuse the inode of a file that was removed less than a minute ago, and looks at each of
/// those in the group anew for every file that it makes: where much is removed and made, that is most of the time it takes.
///
/// # Errors
/// When the file system knows no such flag.
pub fn spread_directories(directory: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::ioctl_getflags(&directory)? | rustix::fs::IFlags::TOPDIR;
    Ok(rustix::fs::ioctl_setflags(&directory, flags)?)
}

/// Asks the kernel to begin writing a part of a file to the disk, so that there is less to wait for when it is made
/// durable. Nothing depends on it: a failure shows when the file is synced.
pub fn begin_write_back(file: &std::fs::File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return };
    // SAFETY: the descriptor is borrowed and open; the call reads and writes no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Makes everything written to the file system of `fd` durable, with one `syncfs(2)`.
///
/// # Errors
/// When a write to the disk failed (since Linux 5.8).
pub fn sync_file_system(fd: impl AsFd) -> io::Result<()> {
    rustix::fs::syncfs(fd).map_err(io::Error::from)
}

/// More than this are not synced one by one.
const FEW: usize = 16;

/// Makes `files`, their names and the directories above them durable, all of which are on the file system of
/// `directory`.
///
/// On ext4 (with a journal) and XFS, which commit changes of metadata in order, the data of the files is written first, all
/// at once; then one `fsync(2)` of a new file commits the journal, which holds every change of metadata before it, and
/// flushes the disk's cache. Elsewhere a few files are synced one by one with `parents`, the directories that hold their
/// names. Many files, or none known of some of the parents, get one [`sync_file_system`], which also waits for what other
/// programs wrote.
///
/// # Errors
/// When a write to the disk failed.
pub fn sync_files(
    directory: BorrowedFd<'_>,
    files: &[std::fs::File],
    parents: Option<&[std::fs::File]>,
) -> io::Result<()> {
    if !commits_in_order(directory) {
        return match parents {
            Some(parents) if files.len() + parents.len() <= FEW => {
                files.iter().chain(parents).try_for_each(std::fs::File::sync_all)
            }
            _ => sync_file_system(directory),
        };
    }
    for flags in [
        libc::SYNC_FILE_RANGE_WRITE,
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER,
    ] {
        for file in files {
            // SAFETY: only numbers are passed; the descriptor is open through the call.
            if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    match unnamed_file(directory) {
        Ok(newest) => newest.sync_all(),
        Err(_) => sync_file_system(directory),
    }
}

/// Makes a file without a name on the file system of `directory`; it goes when it is closed (`O_TMPFILE`).
///
/// # Errors
/// When the file system knows no such files, or the kernel refuses.
pub fn unnamed_file(directory: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Whether a commit of the newest change of metadata commits every older one, too.
fn commits_in_order(directory: BorrowedFd<'_>) -> bool {
    const EXT4: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    let Ok(stat) = rustix::fs::fstatfs(directory) else { return false };
    #[allow(clippy::cast_sign_loss, reason = "a magic number, whose type differs between architectures")]
    match stat.f_type as u64 {
        XFS => true,
        EXT4 => has_journal(directory),
        _ => false,
    }
}

/// Whether the ext4 file system has a journal: without one, `fsync(2)` writes one file alone.
fn has_journal(directory: BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(directory) else { return false };
    let device = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let Ok(link) = rustix::fs::readlink(format!("/sys/dev/block/{device}"), Vec::new()) else { return false };
    let link = link.to_string_lossy().into_owned();
    let Some(name) = Path::new(&link).file_name().and_then(OsStr::to_str) else { return false };
    let task = CString::new(format!("/sys/fs/ext4/{name}/journal_task"));
    let Ok(task) = task.map(|path| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
    else {
        return false;
    };
    // The process that commits the journal; `<none>` without one.
    let text = task.map_err(io::Error::from).and_then(|task| io::read_to_string(std::fs::File::from(task)));
    text.is_ok_and(|text| text.trim().parse::<u32>().is_ok())
}

/// The identity of this boot of the machine: what is not synced and carries another one may be lost.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let file = rustix::fs::openat(CWD, path, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
        .map_err(|error| FileError::new("read", path, error))?;
    let text =
        io::read_to_string(std::fs::File::from(file)).map_err(|error| FileError::new("read", path, error))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_replaces_what_was_there() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(host.path()).expect("opened");
        for text in ["one", "two"] {
            write_over(&directory, "x".as_ref(), text.as_bytes(), 0o600).expect("written");
            assert_eq!(fs_err::read_to_string(host.path().join("x")).expect("read"), text);
        }
        sync_file_system(&directory).expect("synced");
        let file = fs_err::File::open(host.path().join("x")).expect("opened").into_file();
        let count = || fs_err::read_dir(host.path()).expect("read").count();
        let before = count();
        let parent = fs_err::File::open(host.path()).expect("opened").into_file();
        for parents in [None, Some(&[parent][..])] {
            sync_files(directory.as_fd(), std::slice::from_ref(&file), parents).expect("synced");
        }
        assert_eq!(count(), before, "nothing is left behind");
        assert_eq!(boot_id().expect("read").len(), 36);
    }

    #[test]
    fn a_file_without_a_name_gets_one_when_it_is_complete() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(host.path()).expect("opened");
        let names = || fs_err::read_dir(host.path()).expect("listed").count();
        let mut given_up = Unnamed::create(&directory, 0o600).expect("created");
        given_up.file().write_all(b"half").expect("written");
        drop(given_up);
        assert_eq!(names(), 0);
        for text in ["one", "two"] {
            let mut file = Unnamed::create(&directory, 0o640).expect("created");
            file.file().write_all(text.as_bytes()).expect("written");
            file.rename_over("x".as_ref()).expect("named");
            assert_eq!(fs_err::read_to_string(host.path().join("x")).expect("read"), text);
            assert_eq!(names(), 1);
        }
        // As where the file system cannot do without a name.
        let named = |text: &str| {
            let (name, mut file) = create_temporary(&directory, 0o600).expect("created");
            file.write_all(text.as_bytes()).expect("written");
            Unnamed { directory: &directory, temporary: Some(name), file }
        };
        drop(named("half"));
        assert_eq!(names(), 1);
        named("three").rename_over("x".as_ref()).expect("named");
        assert_eq!(fs_err::read_to_string(host.path().join("x")).expect("read"), "three");
        directory.make_directory("d", 0o755).expect("made");
        named("four").rename_over("d".as_ref()).expect_err("a directory is not replaced");
        let file = Unnamed::create(&directory, 0o600).expect("created");
        file.rename_over("d".as_ref()).expect_err("a directory is not replaced");
        assert_eq!(names(), 2);
    }
}
