//! What `stat(2)` and `statx(2)` write, as bytes for another process, with other owners in it.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What is to be said instead of what the file system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bits that the mode has besides.
    pub mode: u32,
}

/// Offsets of mode, user and group, and the length, in what the kernel calls `struct stat` here.
#[cfg(target_arch = "x86_64")]
const LAYOUT: Option<(usize, usize, usize, usize)> = Some((24, 28, 32, 144));
/// The generic one.
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const LAYOUT: Option<(usize, usize, usize, usize)> = Some((16, 24, 28, 128));
/// Not known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const LAYOUT: Option<(usize, usize, usize, usize)> = None;

/// What `fstat(2)` of an open file, which may be a mere place, writes for a program of this processor.
///
/// # Errors
/// The kernel's refusal; `ENOSYS` where the structure is not known.
pub fn stat_bytes(file: BorrowedFd<'_>, shown: Shown) -> io::Result<Vec<u8>> {
    let Some((mode, uid, gid, length)) = LAYOUT else {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    };
    // The kernel writes no more than its structure's length.
    let mut bytes = vec![0_u8; length.max(256)];
    // SAFETY: the buffer is larger than the structure, and the path is terminated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_newfstatat,
            file.as_raw_fd(),
            c"".as_ptr(),
            bytes.as_mut_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    bytes.truncate(length);
    put(&mut bytes, uid, shown.uid);
    put(&mut bytes, gid, shown.gid);
    let before = u32::from_ne_bytes([bytes[mode], bytes[mode + 1], bytes[mode + 2], bytes[mode + 3]]);
    put(&mut bytes, mode, before | shown.mode);
    Ok(bytes)
}

/// What `statx(2)` of an open file writes.
///
/// # Errors
/// The kernel's refusal.
pub fn statx_bytes(file: BorrowedFd<'_>, flags: u32, mask: u32, shown: Shown) -> io::Result<Vec<u8>> {
    const LENGTH: usize = 256;
    let (uid, gid, mode) = (20, 24, 28);
    // How the answer is to be synchronised; which file it is of was decided before.
    let flags = (flags as i32 & libc::AT_STATX_SYNC_TYPE) | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    let mut bytes = vec![0_u8; LENGTH];
    // SAFETY: the buffer has the structure's length, and the path is terminated.
    let result = unsafe {
        libc::syscall(libc::SYS_statx, file.as_raw_fd(), c"".as_ptr(), flags, mask, bytes.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    put(&mut bytes, uid, shown.uid);
    put(&mut bytes, gid, shown.gid);
    let before = u16::from_ne_bytes([bytes[mode], bytes[mode + 1]]);
    bytes[mode..mode + 2].copy_from_slice(&(before | shown.mode as u16).to_ne_bytes());
    Ok(bytes)
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn everything_but_the_owners_is_the_files() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4711).expect("set");
        let metadata = file.metadata().expect("stat");
        let shown = Shown { uid: 0x0102_0304, gid: 0x0506_0708, mode: 0o6000 };
        let same = |bytes: &[u8], number: u64| bytes.windows(8).any(|window| window == number.to_ne_bytes());
        let has = |bytes: &[u8], number: u32| bytes.windows(4).any(|window| window == number.to_ne_bytes());
        if LAYOUT.is_some() {
            let bytes = stat_bytes(file.as_fd(), shown).expect("stat");
            // SAFETY: the kernel's structure is the C library's on these processors, and the bytes are as many.
            let read = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<libc::stat>()) };
            assert_eq!((read.st_uid, read.st_gid), (shown.uid, shown.gid));
            assert_eq!(read.st_mode, metadata.mode() | 0o6000);
            assert_eq!((read.st_ino, read.st_size), (metadata.ino(), 4711));
        }
        let bytes = statx_bytes(file.as_fd(), 0, libc::STATX_BASIC_STATS, shown).expect("statx");
        // SAFETY: the structure is 256 bytes in every version of the kernel.
        let read = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<libc::statx>()) };
        assert_eq!((read.stx_uid, read.stx_gid), (shown.uid, shown.gid));
        assert_eq!(u32::from(read.stx_mode), metadata.mode() | 0o6000);
        assert!(same(&bytes, metadata.ino()) && has(&bytes, 4711));
    }
}
