//! On which file systems a file that was changed can be told by its status.
//!
//! Images give every edition of a file the same times and numbers; what is far away, or made up by a program, may have no
//! change time of its own, or that of another clock.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, StatxFlags};

const OVERLAY: u64 = 0x794c_7630;
const BTRFS: u64 = 0x9123_683e;

/// Those whose files cannot be told by their status.
const UNTOLD: [u64; 22] = [
    // Images.
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // EROFS
    0x9660,      // ISO 9660
    0x1501_3346, // UDF
    0x28cd_3d45, // cramfs
    // Programs.
    0x6573_5546, // FUSE
    // Other machines' clocks.
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x0bd0_0bd3, // Lustre
    0x5346_414f, // OpenAFS
    0x6b41_4653, // AFS
    0x7375_7245, // Coda
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    // The folders that a host shares with its virtual machines.
    0x786f_4256, // VirtualBox
    0xbacb_acbc, // VMware
    // No change time.
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
];

/// The file systems of a context.
#[derive(Debug)]
pub(crate) struct FileSystems {
    /// Device and kind of the one that the context's own directory is on.
    device: u64,
    kind: u64,
    identity: [u8; 8],
    /// Of other devices whether they are parts of that one.
    others: Mutex<BTreeMap<u64, bool>>,
}

impl FileSystems {
    /// Those of a context whose directory is on this device; none if no change can be told.
    pub(crate) fn of(directory: impl AsFd, device: u64) -> Option<Self> {
        let directory = directory.as_fd();
        let kind = kind(directory).filter(|kind| !UNTOLD.contains(kind))?;
        let identity = rustix::fs::fstatvfs(directory).ok()?.f_fsid.to_le_bytes();
        Some(Self { device, kind, identity, others: Mutex::default() })
    }

    /// What tells the context's own file system from another one that is mounted in its place later.
    pub(crate) fn identity(&self) -> [u8; 8] {
        self.identity
    }

    /// Whether a change of an open file on this device can be told. What is mounted below the context can be exchanged for
    /// something that has the same numbers: that never can.
    pub(crate) fn tell(&self, file: impl AsFd, device: u64) -> bool {
        let file = file.as_fd();
        (device == self.device || self.is_part(file, device))
            // An overlay says what the layer below says, which may be on an image: those know no time of birth.
            && (self.kind != OVERLAY || is_born(file))
    }

    /// Parts of an overlay and subvolumes have devices of their own.
    fn is_part(&self, file: impl AsFd, device: u64) -> bool {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        *others
            .entry(device)
            .or_insert_with(|| matches!(self.kind, OVERLAY | BTRFS) && kind(file) == Some(self.kind))
    }
}

fn kind(file: impl AsFd) -> Option<u64> {
    let status = rustix::fs::fstatfs(file).ok()?;
    Some(u64::try_from(status.f_type).unwrap_or_default() & 0xffff_ffff)
}

fn is_born(file: impl AsFd) -> bool {
    let status = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    status.is_ok_and(|status| status.stx_mask & StatxFlags::BTIME.bits() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str) -> (fs_err::File, u64) {
        let file = fs_err::File::open(path).expect("opened");
        let device = rustix::fs::fstat(&file).expect("a status").st_dev;
        (file, device)
    }

    #[test]
    fn what_is_mounted_below_is_not_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let (context, device) = open(directory.path().to_str().expect("UTF-8"));
        let (other, elsewhere) = open("/proc/self/status");
        let own = tempfile::tempfile_in(directory.path()).expect("a file");
        let own_device = rustix::fs::fstat(&own).expect("a status").st_dev;
        let systems = FileSystems::of(&context, device).expect("told");
        assert!(systems.tell(&own, own_device));
        assert!(!systems.tell(&other, elsewhere));
        assert!(!systems.tell(&other, elsewhere), "it is remembered");
    }

    #[test]
    fn an_overlay_tells_of_files_that_know_when_they_were_born() {
        let (image, device) = open("/proc/self/status");
        let systems = |kind| FileSystems { device, kind, identity: [0; 8], others: Mutex::default() };
        assert!(!systems(OVERLAY).tell(&image, device), "as on an image");
        assert!(systems(BTRFS).tell(&image, device));
        let born = tempfile::tempfile().expect("a file");
        let device = rustix::fs::fstat(&born).expect("a status").st_dev;
        let systems = FileSystems { device, kind: OVERLAY, identity: [0; 8], others: Mutex::default() };
        assert!(systems.tell(&born, device));
    }
}
