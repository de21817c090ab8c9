//! Mounts by descriptor: new filesystems, clones of trees, attributes, attaching, and changing the root.
//!
//! Nothing here takes a target as a path. A mount is made detached (it has no place in any tree), configured, and
//! then attached onto a descriptor that the caller resolved. A process that dies half way leaves nothing behind.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
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

/// Makes a filesystem from parameters and mounts it detached. In `/proc/mounts` its source has the name of its type, as with
/// other engines, where the kernel would say `none`.
///
/// # Errors
/// The kernel's refusal, with its log.
pub fn filesystem(
    kind: &str,
    parameters: &[(&str, &str)],
    attributes: Attributes,
) -> Result<OwnedFd, FilesystemRefused> {
    let context = FilesystemContext::open(kind)?;
    context.set("source", kind)?;
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
/// Before kernel 5.12 an attached mount, and each one below it, is remounted instead.
///
/// # Errors
/// The kernel's refusal.
pub fn restrict(mount: BorrowedFd<'_>, attributes: Attributes, depth: Depth) -> io::Result<()> {
    match set_attributes(mount, attributes, depth) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => match depth {
            Depth::Single => remount(mount, attributes),
            Depth::Recursive => remount_all(mount, attributes),
        },
        result => result,
    }
}

/// Clones the mount under a descriptor of a directory as a detached one with restrictions.
///
/// Before kernel 5.12 nothing that is detached can be restricted: the clone gets a place for a moment, in the mount
/// namespace of the calling thread, which must be private to it.
///
/// # Errors
/// The kernel's refusal.
pub fn clone_restricted(source: BorrowedFd<'_>, attributes: Attributes) -> io::Result<OwnedFd> {
    let tree = clone_tree(source, Depth::Single)?;
    match set_attributes(tree.as_fd(), attributes, Depth::Single) {
        Ok(()) => Ok(tree),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => with_place(|place| {
            attach(tree.as_fd(), place()?.as_fd())?;
            remount(tree.as_fd(), attributes)?;
            clone_tree(tree.as_fd(), Depth::Single)
        }),
        Err(error) => Err(error),
    }
}

/// Lets `work` mount onto a directory, for which it gets a function that opens it as it is then. What it mounted there is
/// taken off again. The directory is one of an otherwise unseen tmpfs over the root of this thread's mount namespace, which must be private to it.
pub(crate) fn with_place<T>(
    work: impl FnOnce(&dyn Fn() -> io::Result<OwnedFd>) -> io::Result<T>,
) -> io::Result<T> {
    let scratch = filesystem("tmpfs", &[], Attributes::INERT).map_err(|refused| refused.source)?;
    rustix::fs::mkdirat(&scratch, c"place", Mode::RWXU)?;
    attach_root(scratch.as_fd())?;
    let result =
        work(&|| Ok(rustix::fs::openat(&scratch, c"place", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?));
    let name = format!("/proc/self/fd/{}", scratch.as_raw_fd());
    rustix::mount::unmount(name, UnmountFlags::DETACH)?;
    result
}

/// `mount_setattr(2)`, kernel 5.12.
fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, depth: Depth) -> io::Result<()> {
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
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `statvfs(3)` and `mount(2)` have numbers of their own for it (kernel 5.10).
const ST_NOSYMFOLLOW: u64 = 0x2000;
const MS_NOSYMFOLLOW: libc::c_ulong = 0x100;

/// The way of kernels before 5.12: remount through the descriptor's name in /proc, keeping what is locked.
fn remount(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let name = CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
    let present = rustix::fs::fstatvfs(mount)?.f_flag;
    let mut kept = present.bits() as libc::c_ulong
        & (libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
    if present.bits() & ST_NOSYMFOLLOW != 0 {
        kept |= MS_NOSYMFOLLOW;
    }
    // What becomes of times of access stays as it is as long as nothing is said of them; whatever is said counts for all.
    let flags = libc::MS_REMOUNT | libc::MS_BIND | attributes.classic_flags() | kept;
    // SAFETY: all pointers are null or terminated strings that outlive the call.
    let result =
        unsafe { libc::mount(std::ptr::null(), name.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Remounts an attached mount and all that are mounted below it.
fn remount_all(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    remount(mount, attributes)?;
    let table = fs_err::read("/proc/thread-self/mountinfo")?;
    for (identifier, path) in mounted_below(&table, mount_id(mount)?) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let below = rustix::fs::openat2(mount, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        if mount_id(below.as_fd())? != identifier {
            return Err(io::Error::other("mounts changed meanwhile"));
        }
        remount(below.as_fd(), attributes)?;
    }
    Ok(())
}

/// The mounts below a mount that are not covered: identifiers, and paths from that mount on.
fn mounted_below(table: &[u8], top: u64) -> Vec<(u64, PathBuf)> {
    let number = |field: Option<&[u8]>| str::from_utf8(field?).ok()?.parse::<u64>().ok();
    let mounts: Vec<(u64, u64, PathBuf)> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let (identifier, parent) = (number(fields.next())?, number(fields.next())?);
            Some((identifier, parent, unescaped(fields.nth(2)?)))
        })
        .collect();
    let Some((_, _, start)) = mounts.iter().find(|(identifier, ..)| *identifier == top) else {
        return Vec::new();
    };
    let mut found = vec![top];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(mounts.iter().filter(|mount| mount.1 == parent).map(|mount| mount.0));
        next += 1;
    }
    let is_covered = |of: u64, at: &Path| mounts.iter().any(|(_, parent, path)| *parent == of && path == at);
    mounts
        .iter()
        .filter(|(identifier, _, path)| {
            *identifier != top && found.contains(identifier) && !is_covered(*identifier, path)
        })
        .filter_map(|(identifier, _, path)| Some((*identifier, path.strip_prefix(start).ok()?.to_owned())))
        .collect()
}

/// A path of `/proc/self/mountinfo`, where a blank, a tab, a line's end and a backslash are octal numbers.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits.filter(|_| *first == b'\\') {
            Some(digits) => {
                path.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
                rest = &more[3..];
            }
            None => {
                path.push(*first);
                rest = more;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// The identifier that `/proc/self/mountinfo` has for the mount under a descriptor.
fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let about = fs_err::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let line = about.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| io::ErrorKind::Unsupported.into())
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

/// Opens a path of the host, through symbolic links; no access to the content is asked for (`O_PATH`).
///
/// # Errors
/// The kernel's refusal.
pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// As [`open_place`], but for what has no reason to be a symbolic link.
///
/// # Errors
/// The kernel's refusal; `ELOOP` if a link stands in the last place.
pub fn open_place_itself(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) {
        FileType::Symlink => Err(rustix::io::Errno::LOOP.into()),
        _ => Ok(place),
    }
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

#[cfg(test)]
mod tests {
    use rustix::mount::MountFlags;

    use super::*;

    #[test]
    fn mounts_below_are_found() {
        let table = b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /x rw - tmpfs b rw\n5 4 0:2 / /x/a\\040b/c rw - tmpfs b rw\n\
            4 2 0:2 / /x/a\\040b rw - tmpfs b rw\n3 1 0:2 / /xy rw - tmpfs b rw\n6 2 0:3 / /x/d rw - tmpfs b rw\n\
            7 6 0:3 / /x/d rw - tmpfs b rw\n";
        let found = |top| mounted_below(table, top);
        let expect = [(5, "a b/c"), (4, "a b"), (7, "d")].map(|(id, path)| (id, PathBuf::from(path)));
        assert_eq!(found(2), expect);
        assert_eq!(found(3), []);
        assert_eq!(found(9), []);
        assert_eq!(unescaped(br"\134040\04"), PathBuf::from(r"\040\04"));
    }

    /// The way of old kernels works on new ones, too.
    #[test]
    fn restrictions_reach_all_below_without_mount_setattr() {
        let directory = tempfile::tempdir().expect("a directory");
        let in_own_namespace = || {
            if let Err(error) = crate::process::separate_mounts() {
                crate::skipped::skipped(&format!("a mount namespace needs root: {error}"));
                return;
            }
            let tmpfs = || filesystem("tmpfs", &[], Attributes::default()).expect("made");
            let (top, below) = (tmpfs(), tmpfs());
            let place = open_place(directory.path()).expect("opened");
            attach(top.as_fd(), place.as_fd()).expect("attached");
            let inner = directory.path().join("a b\\c");
            fs_err::create_dir(&inner).expect("made");
            attach(below.as_fd(), open_place(&inner).expect("opened").as_fd()).expect("attached");
            remount_all(top.as_fd(), Attributes { read_only: true, ..Attributes::INERT }).expect("remounted");
            for path in [directory.path(), &inner] {
                let error = fs_err::write(path.join("file"), "").expect_err("it is read-only");
                assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{error}");
                let flags = rustix::fs::fstatvfs(open_place(path).expect("opened")).expect("stat").f_flag;
                assert!(flags.contains(rustix::fs::StatVfsMountFlags::NODEV), "{flags:?}");
            }
            let restricted = with_place(|place| {
                attach(tmpfs().as_fd(), place()?.as_fd())?;
                remount(place()?.as_fd(), Attributes::INERT_READ_ONLY)?;
                clone_tree(place()?.as_fd(), Depth::Single)
            });
            let flags = rustix::fs::fstatvfs(restricted.expect("cloned")).expect("stat").f_flag;
            assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
        };
        std::thread::scope(|scope| scope.spawn(in_own_namespace).join()).expect("the test passes");
    }

    /// Mounts a tmpfs with a flag onto a directory, in a mount namespace of its own. What a kernel does not know it ignores.
    fn mount_with(flag: MountFlags, directory: &Path) -> io::Result<()> {
        Ok(rustix::mount::mount("none", directory, "tmpfs", flag, None)?)
    }

    /// How `/proc/self/mountinfo` describes the mount's attributes.
    fn described(mount: BorrowedFd<'_>) -> io::Result<String> {
        let identifier = mount_id(mount)?.to_string();
        let table = fs_err::read_to_string("/proc/thread-self/mountinfo")?;
        let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let line = lines.find(|fields| fields[0] == identifier).ok_or(io::ErrorKind::NotFound)?;
        Ok(line[5].to_owned())
    }

    /// Remounts what is on a directory; what it was before, and what it has become.
    fn remounted(directory: &Path) -> io::Result<(String, String)> {
        let place = open_place(directory)?;
        let before = described(place.as_fd())?;
        remount(place.as_fd(), Attributes { read_only: true, ..Attributes::default() })?;
        Ok((before, described(place.as_fd())?))
    }

    const KEPT: [MountFlags; 9] = [
        MountFlags::NOSUID,
        MountFlags::NODEV,
        MountFlags::NOEXEC,
        MountFlags::from_bits_retain(MS_NOSYMFOLLOW as u32),
        MountFlags::RELATIME,
        MountFlags::NOATIME,
        MountFlags::NODIRATIME,
        MountFlags::NOATIME.union(MountFlags::NODIRATIME),
        MountFlags::STRICTATIME.union(MountFlags::NODIRATIME),
    ];

    #[test]
    fn a_remount_keeps_what_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let in_own_namespace = || {
            if let Err(error) = crate::process::separate_mounts() {
                crate::skipped::skipped(&format!("a mount namespace needs root: {error}"));
                return;
            }
            for flag in KEPT {
                mount_with(flag, directory.path()).expect("mounted");
                let (before, after) = remounted(directory.path()).expect("remounted");
                assert_eq!(before.replacen("rw", "ro", 1), after, "{flag:?}");
            }
        };
        std::thread::scope(|scope| scope.spawn(in_own_namespace).join()).expect("the test passes");
    }

    /// Of mounts that came from another user's namespace the kernel refuses to take anything away.
    #[test]
    fn mounts_of_others_are_remounted() {
        use std::os::unix::process::CommandExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        for flag in KEPT {
            let place = directory.path().to_owned();
            let mut program = std::process::Command::new("/bin/true");
            let prepare = move || {
                crate::process::separate_mounts()?;
                mount_with(flag, &place)?;
                let flags = rustix::thread::UnshareFlags::NEWUSER | rustix::thread::UnshareFlags::NEWNS;
                // SAFETY: this process has one thread, whose memory and descriptors do not depend on either.
                unsafe { rustix::thread::unshare_unsafe(flags)? };
                let (before, after) = remounted(&place)?;
                let same = before.replacen("rw", "ro", 1) == after;
                if same { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EILSEQ)) }
            };
            // SAFETY: the C library keeps the allocator usable behind fork, and no other lock is taken.
            unsafe { program.pre_exec(prepare) };
            match program.status() {
                Err(error) if !rustix::process::geteuid().is_root() => {
                    crate::skipped::skipped(&format!("a mount namespace needs root: {error}"));
                    return;
                }
                status => assert!(status.expect("remounted").success(), "{flag:?}"),
            }
        }
    }
}
