//! EROFS images that are files, mounted without a block device (Linux 6.12, `CONFIG_EROFS_FS_BACKED_BY_FILE`).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::mount::{Attributes, FilesystemContext, FilesystemRefused};

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Images cannot be mounted here: not by this kernel, without this privilege, or from this file system. Whoever can do
    /// without a mount should.
    #[error("no EROFS mounts here: {0}")]
    NotHere(#[source] FilesystemRefused),
    /// The kernel refused this image.
    #[error(transparent)]
    Failed(#[from] FilesystemRefused),
}

impl MountError {
    /// What the kernel said.
    pub fn into_refused(self) -> FilesystemRefused {
        match self {
            Self::NotHere(refused) | Self::Failed(refused) => refused,
        }
    }

    fn of(refused: FilesystemRefused) -> Self {
        // EROFS is unknown; mounting is forbidden; the image needs a block device (no support for files, a file system
        // whose files cannot back one, or too many stacked ones); features that are not known yet.
        let absent = [libc::ENODEV, libc::ENOSYS, libc::EPERM, libc::ENOTBLK, libc::EINVAL, libc::EOPNOTSUPP];
        match refused.source.raw_os_error() {
            Some(errno) if absent.contains(&errno) => Self::NotHere(refused),
            _ => Self::Failed(refused),
        }
    }
}

/// Mounts the image in `metadata`, whose files' content is in `data`, detached and read-only; device nodes in it cannot be
/// opened. Both must be regular files opened for reading; they are named by their descriptors, so nothing can take their
/// place. The mount keeps them open. `/proc` must be mounted.
///
/// # Errors
/// [`MountError::NotHere`] when no image could be mounted here, as far as the kernel tells.
pub fn mount(metadata: BorrowedFd<'_>, data: BorrowedFd<'_>) -> Result<OwnedFd, MountError> {
    let attempt = || {
        let context = FilesystemContext::open("erofs")?;
        context.set("source", name(metadata))?;
        context.set("device", name(data))?;
        context.set_flag("ro")?;
        context.mount(Attributes { read_only: true, no_devices: true, ..Attributes::default() })
    };
    attempt().map_err(MountError::of)
}

fn name(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
