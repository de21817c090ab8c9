//! Mounts by descriptor: new filesystems, clones of trees, attributes, attaching, and changing the root.
//!
//! Nothing here takes a target as a path. A mount is made detached (it has no place in any tree), configured, and
//! then attached onto a descriptor that the caller resolved. A process that dies half way leaves nothing behind.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

/// How a mount may be used; the attributes of `mount_setattr(2)` that containers need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Nothing below may be written.
    pub read_only: bool,
    /// Set-user-ID bits and file capabilities have no effect.
    pub no_suid: bool,
    /// Device nodes cannot be opened.
    pub no_devices: bool,
    /// Nothing below can be executed.
    pub no_exec: bool,
}

impl Attributes {
    /// All four restrictions but `read_only`, as Docker gives `/proc`, `/dev/shm` and `/dev/mqueue`.
    pub const INERT: Self = Self { read_only: false, no_suid: true, no_devices: true, no_exec: true };
    /// All four restrictions, as Docker gives `/sys`.
    pub const INERT_READ_ONLY: Self = Self { read_only: true, ..Self::INERT };

    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, self.no_suid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.no_devices);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.no_exec);
        flags
    }

    fn classic_flags(self) -> libc::c_ulong {
        let mut flags = 0;
        for (wanted, flag) in [
            (self.read_only, libc::MS_RDONLY),
            (self.no_suid, libc::MS_NOSUID),
            (self.no_devices, libc::MS_NODEV),
            (self.no_exec, libc::MS_NOEXEC),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        flags
    }
}

/// Whether an operation reaches the mounts below a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The one mount.
    Single,
    /// The mount and all below it.
    Recursive,
}

/// The kernel refused to make a filesystem.
#[derive(Debug, thiserror::Error)]
#[error("mount {filesystem}: {source}{}", if log.is_empty() { String::new() } else { format!(" (the kernel says: {log})") })]
pub struct FilesystemRefused {
    /// The filesystem's type, such as `overlay`.
    pub filesystem: String,
    /// What the kernel wrote into the context's log, empty if nothing.
    pub log: String,
    /// The system call's error.
    pub source: io::Error,
}

/// A filesystem that is being configured (`fsopen(2)`, kernel 5.2).
#[derive(Debug)]
pub struct FilesystemContext {
    filesystem: String,
    context: OwnedFd,
}

impl FilesystemContext {
    /// Opens a context for a filesystem of the given type.
    ///
    /// # Errors
    /// The kernel's refusal: the type is unknown, or mounting is not permitted.
    pub fn open(filesystem: &str) -> Result<Self, FilesystemRefused> {
        let context = rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
            FilesystemRefused { filesystem: filesystem.to_owned(), log: String::new(), source: errno.into() }
        })?;
        Ok(Self { filesystem: filesystem.to_owned(), context })
    }

    /// Sets a parameter to a string; at most 255 bytes.
    ///
    /// # Errors
    /// The kernel's refusal of the parameter or its value.
    pub fn set(&self, key: &str, value: impl AsRef<Path>) -> Result<(), FilesystemRefused> {
        rustix::mount::fsconfig_set_string(&self.context, key, value.as_ref())
            .map_err(|errno| self.refused(errno))
    }

    /// Sets a parameter that has no value.
    ///
    /// # Errors
    /// The kernel's refusal of the parameter.
    pub fn set_flag(&self, key: &str) -> Result<(), FilesystemRefused> {
        rustix::mount::fsconfig_set_flag(&self.context, key).map_err(|errno| self.refused(errno))
    }

    /// Makes the filesystem and a detached mount of it.
    ///
    /// # Errors
    /// The kernel's refusal, with its log.
    pub fn mount(self, attributes: Attributes) -> Result<OwnedFd, FilesystemRefused> {
        rustix::mount::fsconfig_create(&self.context).map_err(|errno| self.refused(errno))?;
        rustix::mount::fsmount(&self.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags())
            .map_err(|errno| self.refused(errno))
    }

    fn refused(&self, errno: rustix::io::Errno) -> FilesystemRefused {
        let mut log = Vec::new();
        let mut line = [0_u8; 512];
        while let Ok(length) = rustix::io::read(&self.context, &mut line[..]) {
            if length == 0 {
                break;
            }
            if !log.is_empty() {
                log.extend_from_slice(b"; ");
            }
            log.extend_from_slice(line[..length].trim_ascii());
        }
        FilesystemRefused {
            filesystem: self.filesystem.clone(),
            log: String::from_utf8_lossy(&log).into_owned(),
            source: errno.into(),
        }
    }
}

/// Makes a filesystem from parameters and mounts it detached.
///
/// # Errors
/// The kernel's refusal, with its log.
pub fn filesystem(
    kind: &str,
    parameters: &[(&str, &str)],
    attributes: Attributes,
) -> Result<OwnedFd, FilesystemRefused> {
    let context = FilesystemContext::open(kind)?;
    for (key, value) in parameters {
        if value.is_empty() {
            context.set_flag(key)?;
        } else {
            context.set(key, value)?;
        }
    }
    context.mount(attributes)
}

/// Clones the mount under a descriptor (a directory or a file of it) as a detached one: a bind mount without a place.
///
/// # Errors
/// The kernel's refusal.
pub fn clone_tree(source: BorrowedFd<'_>, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if depth == Depth::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(source, c"", flags)?)
}

/// Attaches a detached mount onto what a descriptor points at.
///
/// # Errors
/// The kernel's refusal; `ENOTDIR` when a directory would cover a file or the other way round.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", target, c"", flags)?)
}

/// Adds restrictions to a mount; never takes one away.
///
/// Before kernel 5.12 a single attached mount is remounted instead; a recursive change is then refused with `ENOSYS`.
///
/// # Errors
/// The kernel's refusal.
pub fn restrict(mount: BorrowedFd<'_>, attributes: Attributes, depth: Depth) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let change =
        MountAttr { set: u64::from(attributes.flags().bits()), clear: 0, propagation: 0, user_namespace: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if depth == Depth::Recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a terminated empty string, `change` lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) && depth == Depth::Single {
        return remount(mount, attributes);
    }
    Err(error)
}

/// The way of kernels before 5.12: remount through the descriptor's name in /proc, keeping what is locked.
fn remount(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let name = CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
    let present = rustix::fs::fstatvfs(mount)?.f_flag.bits() as libc::c_ulong;
    let kept =
        present & (libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME);
    let flags = libc::MS_REMOUNT | libc::MS_BIND | attributes.classic_flags() | kept;
    // SAFETY: all pointers are null or terminated strings that outlive the call.
    let result =
        unsafe { libc::mount(std::ptr::null(), name.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cuts the whole tree of this mount namespace off from all others, so that nothing done here shows outside.
///
/// # Errors
/// The kernel's refusal.
pub fn make_everything_private() -> io::Result<()> {
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// What became of the old root in [`change_root`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldRoot {
    /// It is unmounted.
    Gone,
    /// It is covered (an initramfs cannot be pivoted away); only the root directory was changed.
    Covered,
}

/// Makes a detached mount the root of this process's mount namespace. The current directory becomes the new root.
/// The namespace must be private to the caller.
///
/// # Errors
/// The kernel's refusal, with the step's name.
pub fn attach_root(mount: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", CWD, c"/", flags)?)
}

/// Makes a mount that [`attach_root`] put over `/` the root, and unmounts the old one.
///
/// # Errors
/// The kernel's refusal.
pub fn change_root(mount: BorrowedFd<'_>) -> io::Result<OldRoot> {
    rustix::process::fchdir(mount)?;
    match rustix::process::pivot_root(c".", c".") {
        Ok(()) => {
            // The old root now lies on top of the new one, at the same place.
            rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
            rustix::process::chdir(c"/")?;
            Ok(OldRoot::Gone)
        }
        Err(rustix::io::Errno::INVAL) => {
            rustix::process::chroot(c".")?;
            rustix::process::chdir(c"/")?;
            Ok(OldRoot::Covered)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a path of the host without following what stands in the last place if that is a symbolic link to a device or
/// the like; no access to the content is asked for (`O_PATH`).
///
/// # Errors
/// The kernel's refusal.
pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Mounts by the interface before 5.2, for options that do not fit `fsconfig(2)`; relative names in `options` start
/// from the current directory.
pub(crate) fn mount_classic(
    kind: &str,
    target: BorrowedFd<'_>,
    attributes: Attributes,
    options: &Path,
) -> io::Result<()> {
    let name = CString::new(format!("/proc/self/fd/{}", target.as_fd().as_raw_fd()))?;
    let kind = CString::new(kind)?;
    let options = CString::new(options.as_os_str().as_bytes())?;
    // SAFETY: all pointers are terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            name.as_ptr(),
            kind.as_ptr(),
            attributes.classic_flags(),
            options.as_ptr().cast(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
