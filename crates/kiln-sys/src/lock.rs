//! Locks between processes that the kernel releases when the holder dies: `flock(2)`, and `fcntl(2)` where others use that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::root::FileError;

/// How a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of holders, no exclusive one.
    Shared,
    /// One holder.
    Exclusive,
}

/// A held lock; dropping it releases it. Descriptors that a fork copies hold it too, so it is close-on-exec.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the record lock of one byte of a file for writing, as SQLite does (`F_SETLK`): false if another process has it. It
/// is gone as soon as this process closes any descriptor of the file.
///
/// # Errors
/// When the file system knows no such locks.
pub fn try_lock_byte(file: &File, offset: u64) -> io::Result<bool> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = offset.try_into().map_err(io::Error::other)?;
    range.l_len = 1;
    // SAFETY: the structure lives through the call, and the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}

/// The processes that hold a lock on the file at `path`, as far as `/proc/locks` shows them: none of other PID namespaces.
pub fn holders(path: &Path) -> Vec<u32> {
    /// The list comes in pieces: a lock that is let go between two of them hides another one from a look.
    const LOOKS: usize = 4;
    let look = || {
        let (Ok(stat), Ok(locks)) = (rustix::fs::lstat(path), fs_err::read_to_string("/proc/locks")) else {
            return Vec::new();
        };
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        listed(&locks, device, stat.st_ino)
    };
    (0..LOOKS).map(|_| look()).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Who holds a lock on a file, from the lines of `/proc/locks` (proc_locks(5)): `1: FLOCK ADVISORY WRITE 12 08:01:345 0 EOF`,
/// or `1: -> FLOCK ...` for one who waits. Some file systems give a file another device than the one that is shown there:
/// without a device driver, both have the major number 0, and the inode decides.
fn listed(locks: &str, device: (u32, u32), inode: u64) -> Vec<u32> {
    let held = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, process, file, ..] = words[..] else { return None };
        let mut numbers = file.splitn(3, ':');
        let mut part = || u32::from_str_radix(numbers.next()?, 16).ok();
        let (major, minor) = (part()?, part()?);
        let is_same = (major, minor) == device || (major, device.0) == (0, 0);
        (is_same && numbers.next()? == inode.to_string()).then_some(((major, minor), process.parse().ok()?))
    };
    let found: Vec<((u32, u32), u32)> = locks.lines().filter_map(held).collect();
    let is_exact = found.iter().any(|(shown, _)| *shown == device);
    let holders = found.into_iter().filter(|(shown, _)| !is_exact || *shown == device);
    let mut holders: Vec<u32> = holders.map(|(_, process)| process).collect();
    // Who holds it shared in two places, or a line that is in two pieces of the list.
    holders.sort_unstable();
    holders.dedup();
    holders
}

fn open(path: &Path) -> Result<File, FileError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|error| FileError::new("open the lock", path, error))
}

impl Lock {
    /// Waits until the lock on the file at `path` (made when missing) is ours.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn acquire(path: &Path, sharing: Sharing) -> Result<Self, FileError> {
        let file = open(path)?;
        let operation = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Exclusive => FlockOperation::LockExclusive,
        };
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                result => {
                    result.map_err(|error| FileError::new("lock", path, error))?;
                    return Ok(Self { _file: file });
                }
            }
        }
    }

    /// Takes the lock if it is free; `None` when somebody holds it.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn try_acquire(path: &Path, sharing: Sharing) -> Result<Option<Self>, FileError> {
        let file = open(path)?;
        let operation = match sharing {
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
            Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(FileError::new("lock", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_from_those_who_wait() {
        let locks = "1: FLOCK  ADVISORY  READ 12 08:01:345 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 13 08:01:345 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 14 08:01:345 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 15 08:02:345 0 EOF\n\
                     4: POSIX  ADVISORY  READ 16 00:1f:345 128 128\n\
                     5: FLOCK  ADVISORY  READ 17 00:20:345 0 EOF\n\
                     6: FLOCK  ADVISORY  READ 18 00:1f:34 0 EOF\n";
        assert_eq!(listed(locks, (8, 1), 345), [12, 14]);
        assert_eq!(listed(locks, (8, 3), 345), []);
        assert_eq!(listed(locks, (0, 0x1f), 345), [16]);
        assert_eq!(listed(locks, (0, 0x2f), 345), [16, 17]);
        assert_eq!(listed("nothing\n1: FLOCK\n", (0, 0), 0), []);
    }

    #[test]
    fn a_holder_is_found() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let path = host.path().join("lock");
        assert_eq!(holders(&path), []);
        let _shared = Lock::acquire(&path, Sharing::Shared).expect("locked");
        assert_eq!(holders(&path), [std::process::id()]);
    }

    #[test]
    fn exclusive_excludes_until_dropped() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let path = host.path().join("lock");
        let shared = Lock::acquire(&path, Sharing::Shared).expect("locked");
        assert!(Lock::try_acquire(&path, Sharing::Shared).expect("tried").is_some());
        assert!(Lock::try_acquire(&path, Sharing::Exclusive).expect("tried").is_none());
        drop(shared);
        assert!(Lock::try_acquire(&path, Sharing::Exclusive).expect("tried").is_some());
    }
}
