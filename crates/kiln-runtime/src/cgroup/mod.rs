//! The cgroup of one kiln command, which holds its containers to the usual devices.
//!
//! It is made when the first container starts, as a child of the cgroup that kiln itself is in, so that whatever holds kiln
//! holds the containers; and it is removed with the command. The command keeps a lock on its directory: a cgroup whose lock
//! is free belongs to a command that was killed, and the next one removes it.

mod devices;
mod hierarchy;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kiln_sys::{bpf, process};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::sandbox::{Confinement, Isolation, OwnershipMode, Security};
use hierarchy::{Hierarchy, Version};

/// Where the kernel's view of the hierarchies is mounted in a container.
const SHOWN_AT: &str = "/sys/fs/cgroup";
/// The beginning of the names of kiln's cgroups.
const PREFIX: &str = "kiln-";

/// The cgroup of one kiln command, made when it is first needed. It is removed when this is dropped, which must come after
/// the last container's end.
#[derive(Debug, Default)]
pub struct CommandCgroup {
    held: OnceLock<Result<Held, String>>,
}

/// A directory of a hierarchy, and where a container sees it, relative to `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownCgroup {
    pub(crate) directory: PathBuf,
    pub(crate) at: PathBuf,
}
crate::wire::wire_struct!(ShownCgroup { directory, at });

/// Whether a container is in its command's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// It is not: no device node can be opened but those that kiln provides.
    None,
    /// It is, so that every device node may be at hand; it sees these of the cgroup hierarchies.
    Member { shown: Vec<ShownCgroup> },
}
crate::wire::wire_enum!(Membership { 0 => None, 1 => Member { shown } });

impl CommandCgroup {
    /// One that is not made yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it, if that was not tried before; for `kiln info`.
    ///
    /// # Errors
    /// Why containers cannot be held to the usual devices here.
    pub fn make(&self) -> Result<(), String> {
        self.held().as_ref().map(drop).map_err(Clone::clone)
    }

    fn held(&self) -> &Result<Held, String> {
        self.held.get_or_init(|| {
            if !crate::seccomp::is_known_processor() {
                return Err("kiln has no profile of system calls for this processor".to_owned());
            }
            let _span = kiln_trace::span("make a cgroup");
            Held::make()
        })
    }

    /// What a sandbox's process starts in, and what it sees.
    ///
    /// A container that may do everything is left out. So is one that no filter keeps from clone3(2), which leads into any
    /// cgroup that can be seen at all; and one in a user namespace, where the kernel lets no device be opened anyway.
    pub(crate) fn admit(
        &self,
        confinement: Confinement,
    ) -> io::Result<(Option<process::Cgroup>, Membership)> {
        let Confinement { isolation, security, ownership, network: _ } = confinement;
        let admitted = isolation == Isolation::Namespaces
            && security == Security::Sandboxed
            && ownership == OwnershipMode::Kernel
            && crate::seccomp::is_known_processor();
        match admitted.then(|| self.held()) {
            Some(Ok(held)) => Ok((Some(held.entrance()?), Membership::Member { shown: held.shown.clone() })),
            _ => Ok((None, Membership::None)),
        }
    }
}

/// A cgroup that exists, with its lock.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    directory: OwnedFd,
    version: Version,
    shown: Vec<ShownCgroup>,
}

impl Held {
    /// Makes one that holds its members to the usual devices: of version 2, or else of version 1.
    fn make() -> Result<Self, String> {
        let hierarchies = hierarchy::of_this_process();
        let of = |version: Version| hierarchies.iter().find(move |found| found.version == version);
        let make = |version, limit: fn(&Self) -> io::Result<()>| {
            let hierarchy = of(version).ok_or_else(|| "it is not mounted".to_owned())?;
            Self::make_in(hierarchy, &hierarchies, limit).map_err(|error| error.to_string())
        };
        make(Version::Two, Self::filter_devices).or_else(|two| {
            make(Version::OneWithDevices, Self::list_devices)
                .map_err(|one| format!("cgroup version 2: {two}; devices of version 1: {one}"))
        })
    }

    fn make_in(
        hierarchy: &Hierarchy,
        all: &[Hierarchy],
        limit: fn(&Self) -> io::Result<()>,
    ) -> io::Result<Self> {
        hierarchy.check()?;
        sweep(&hierarchy.own)?;
        let (path, directory) = fresh(&hierarchy.own)?;
        let shown = all
            .iter()
            .filter(|shown| *shown == hierarchy || shown.is_own_alone())
            .filter_map(|shown| {
                let at = shown.mounted.strip_prefix(SHOWN_AT).ok()?.to_owned();
                let directory = if shown == hierarchy { &path } else { &shown.own };
                Some(ShownCgroup { directory: directory.clone(), at })
            })
            .collect();
        // Dropped on the way out of an error, it is removed again.
        let held = Self { path, directory, version: hierarchy.version, shown };
        limit(&held)?;
        Ok(held)
    }

    /// Version 2: a program of the kernel's decides.
    fn filter_devices(&self) -> io::Result<()> {
        let kind = fs_err::read(self.path.join("cgroup.type"))?;
        if kind.trim_ascii() != b"domain" {
            let kind = String::from_utf8_lossy(&kind).trim().to_owned();
            return Err(io::Error::other(format!("kiln runs in a cgroup of threads ({kind})")));
        }
        let program = bpf::load_device_program(&devices::program())?;
        bpf::attach_device_program(self.directory.as_fd(), program.as_fd())
    }

    /// Version 1: a list decides.
    fn list_devices(&self) -> io::Result<()> {
        fs_err::write(self.path.join("devices.deny"), "a")?;
        for line in devices::lines() {
            match fs_err::write(self.path.join("devices.allow"), line) {
                // The cgroups above do not permit it.
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
                written => written?,
            }
        }
        Ok(())
    }

    fn entrance(&self) -> io::Result<process::Cgroup> {
        Ok(match self.version {
            Version::Two => process::Cgroup::Directory(self.directory.try_clone()?),
            Version::One | Version::OneWithDevices => {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                process::Cgroup::Tasks(rustix::fs::openat(&self.directory, "tasks", flags, Mode::empty())?)
            }
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A process that has ended may be counted for a moment. What stays is the next command's to remove.
        for _ in 0..50 {
            match rustix::fs::rmdir(&self.path) {
                Err(Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(1)),
                _ => break,
            }
        }
    }
}

/// Makes a cgroup and takes its lock.
fn fresh(parent: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    loop {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let pid = rustix::process::getpid().as_raw_nonzero();
        let path = parent.join(format!("{PREFIX}{pid}-{}.{:09}", now.tv_sec, now.tv_nsec));
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        match locked(&path)? {
            Some(directory) if is_named(&directory, &path) => return Ok((path, directory)),
            // Another command took it for a left one before it was locked, and removes it.
            _ => {}
        }
    }
}

/// Takes the lock of a cgroup; `None` if another command holds it, or it is gone.
fn locked(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        directory => directory?,
    };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        taken => Ok(taken.map(|()| Some(directory))?),
    }
}

fn is_named(directory: &OwnedFd, path: &Path) -> bool {
    let same = |held: rustix::fs::Stat, named: rustix::fs::Stat| {
        (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
    };
    matches!((rustix::fs::fstat(directory), rustix::fs::lstat(path)), (Ok(held), Ok(named)) if same(held, named))
}

/// Whether a cgroup's name is one that [`fresh`] gives.
fn is_made(name: &[u8]) -> bool {
    let numbers = name.strip_prefix(PREFIX.as_bytes()).and_then(|rest| std::str::from_utf8(rest).ok());
    let Some((pid, time)) = numbers.and_then(|numbers| numbers.split_once('-')) else { return false };
    let Some((seconds, fraction)) = time.split_once('.') else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(pid) && is_number(seconds) && is_number(fraction) && fraction.len() == 9
}

/// Removes what killed commands left.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(parent)? {
        let entry = entry?;
        if is_made(entry.file_name().as_bytes())
            && let Some(_lock) = locked(&entry.path())?
        {
            // One in which processes are still dying stays for the next command.
            let _ = rustix::fs::rmdir(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_left_alone() {
        for (name, made) in [
            ("kiln-12-345.000000001", true),
            ("kiln-runner", false),
            ("kiln-1-2", false),
            ("kiln--2.000000001", false),
            ("kiln-1-2.1", false),
            ("other-1-2.000000001", false),
        ] {
            assert_eq!(is_made(name.as_bytes()), made, "{name}");
        }
    }
}
