//! What was recorded: owners and device nodes of files that the kernel keeps under other ones.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

/// When an inode came into being: it tells apart files that had the same number one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

/// A device node that is kept as an empty regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// A block device, not a character device.
    pub block: bool,
    /// The driver.
    pub major: u32,
    /// The device.
    pub minor: u32,
}

/// What was recorded of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The user that owns it, if that was set.
    pub uid: Option<u32>,
    /// The group that owns it, if that was set.
    pub gid: Option<u32>,
    /// The device node that it stands for.
    pub device: Option<DeviceNode>,
    birth: Option<Birth>,
}

/// Records by file: device and inode in the overlay's upper directory, or in the root directory where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    records: HashMap<(u64, u64), Record>,
}

impl Ownership {
    /// What was recorded of a file. `birth` is its birth time (`statx(2)`), where the filesystem has one.
    #[must_use]
    pub fn of(&self, device: u64, inode: u64, birth: Option<Birth>) -> Option<&Record> {
        self.records.get(&(device, inode)).filter(|record| record.birth == birth)
    }

    /// What was recorded of an open file, which may be open as a mere place (`O_PATH`).
    #[must_use]
    pub fn of_file(&self, file: BorrowedFd<'_>) -> Option<&Record> {
        if self.records.is_empty() {
            return None;
        }
        let (device, inode, birth) = key_of(file).ok()?;
        self.of(device, inode, birth)
    }

    /// What was recorded of a file, by number alone: for who has called [`Ownership::verify`].
    #[must_use]
    pub fn of_inode(&self, device: u64, inode: u64) -> Option<&Record> {
        self.records.get(&(device, inode))
    }

    /// Forgets records of files that are not below a directory any more, so that a number that was used again for
    /// another file finds nothing. To be called when no process of the sandbox lives.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn verify(&mut self, holder: &Path) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let inodes: HashSet<u64> = self.records.keys().map(|(_, inode)| *inode).collect();
        let mut found = HashMap::new();
        let mut waiting = vec![rustix::fs::open(holder, DIRECTORY, Mode::empty())?];
        while let Some(directory) = waiting.pop() {
            self.keep(directory.as_fd(), &mut found);
            for entry in rustix::fs::Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                if entry.file_type() == FileType::Directory {
                    waiting.push(rustix::fs::openat(&directory, name, DIRECTORY, Mode::empty())?);
                } else if inodes.contains(&entry.ino()) {
                    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    self.keep(
                        rustix::fs::openat(&directory, name, place, Mode::empty())?.as_fd(),
                        &mut found,
                    );
                }
            }
        }
        self.records = found;
        Ok(())
    }

    fn keep(&self, file: BorrowedFd<'_>, found: &mut HashMap<(u64, u64), Record>) {
        if let Some(record) = self.of_file(file)
            && let Ok((device, inode, _)) = key_of(file)
        {
            found.insert((device, inode), *record);
        }
    }

    /// How many files have a record.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn entry(&mut self, device: u64, inode: u64, birth: Option<Birth>) -> &mut Record {
        let record = self.records.entry((device, inode)).or_default();
        if record.birth != birth {
            // Another file had the number before.
            *record = Record { birth, ..Record::default() };
        }
        record
    }

    pub(super) fn note_owner(
        &mut self,
        device: u64,
        inode: u64,
        birth: Option<Birth>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) {
        let record = self.entry(device, inode, birth);
        record.uid = uid.or(record.uid);
        record.gid = gid.or(record.gid);
    }

    pub(super) fn note_device(&mut self, device: u64, inode: u64, birth: Option<Birth>, node: DeviceNode) {
        *self.entry(device, inode, birth) = Record { device: Some(node), birth, ..Record::default() };
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A file's device, inode and birth.
pub(super) fn key_of(file: BorrowedFd<'_>) -> Result<(u64, u64, Option<Birth>), Errno> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    let birth = (found.stx_mask & StatxFlags::BTIME.bits() != 0)
        .then_some(Birth { seconds: found.stx_btime.tv_sec, nanoseconds: found.stx_btime.tv_nsec });
    Ok((rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino, birth))
}

/// Whether a file is on the same mount as a directory; a kernel before 5.8 cannot tell, and says yes.
pub(super) fn is_on(directory: &OwnedFd, file: BorrowedFd<'_>) -> bool {
    mount_of(directory.as_fd()) == mount_of(file)
}

/// The mount that a file is on.
pub(super) fn mount_of(file: BorrowedFd<'_>) -> Option<u64> {
    /// `STATX_MNT_ID`.
    const MOUNT: u32 = 0x1000;
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(file, c"", flags, StatxFlags::from_bits_retain(MOUNT)).ok()?;
    (found.stx_mask & MOUNT != 0).then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_another_file() {
        let (first, second) =
            (Some(Birth { seconds: 1, nanoseconds: 2 }), Some(Birth { seconds: 3, nanoseconds: 4 }));
        let mut ownership = Ownership::default();
        ownership.note_owner(1, 2, first, Some(100), None);
        ownership.note_owner(1, 2, first, None, Some(50));
        let record = ownership.of(1, 2, first).copied().expect("recorded");
        assert_eq!((record.uid, record.gid), (Some(100), Some(50)));
        assert_eq!(ownership.of(1, 2, second), None);
        ownership.note_owner(1, 2, second, None, Some(7));
        let record = ownership.of(1, 2, second).copied().expect("recorded");
        assert_eq!((record.uid, record.gid), (None, Some(7)));
        assert_eq!(ownership.len(), 1);
    }
}
