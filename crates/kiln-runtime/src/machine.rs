//! What this machine lets kiln do, found by trying; for `kiln info`, on demand only.

use std::path::Path;

use kiln_sys::overlay::Overlay;
use kiln_sys::process::{self, Protection};
use kiln_sys::seccomp;

use crate::capability::{Capabilities, bits};
use crate::cgroup::CommandCgroup;
use crate::sandbox::Isolation;

/// Whether something can be had here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Yes,
    /// It cannot, and why.
    No {
        /// The reason, such as the kernel's answer.
        reason: String,
    },
}

/// The cgroup hierarchies of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 1 alone.
    One,
    /// Version 2 alone.
    Two,
    /// Version 1 with an empty version 2 beside it.
    Hybrid,
    /// None is mounted.
    None,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// How a command can be isolated, and why not better; or why none can be run.
    pub isolation: Result<(Isolation, Option<String>), String>,
    /// Whether overlays with an upper work in the probed directory.
    pub overlay: Availability,
    /// Whether there is a system call profile for this processor and a kernel that takes it.
    pub seccomp: Availability,
    /// Whether owners can be recorded where there is a single identifier.
    pub recorded_ownership: Availability,
    /// How kiln's own program is protected from what runs in a container.
    pub protection: Option<Protection>,
    /// The capabilities that kiln itself lacks of those that a container gets by default.
    pub missing_capabilities: Capabilities,
    /// Whether containers can be held to the usual devices, so that the device nodes in their roots can be opened.
    pub device_rules: Availability,
    /// The cgroup hierarchies.
    pub cgroups: Cgroups,
    /// The kernel's release.
    pub kernel: String,
}

/// Tries what this process, as it is now, can do. `scratch` is an empty, writable directory where the store is, and is
/// left empty. Costs a few milliseconds.
#[must_use]
pub fn capabilities_of_this_machine(scratch: &Path, userxattr: bool) -> Machine {
    let own = process::capabilities().unwrap_or(0);
    let answer =
        |problem: Option<String>| problem.map_or(Availability::Yes, |reason| Availability::No { reason });
    let overlay = Overlay::probe(scratch, userxattr).err().map(|refused| refused.to_string());
    let processor =
        (!crate::seccomp::is_known_processor()).then(|| "no profile for this processor".to_owned());
    let notify = (!seccomp::can_notify()).then(|| "the kernel cannot hand system calls over".to_owned());
    Machine {
        isolation: best_isolation(own),
        overlay: answer(overlay),
        seccomp: answer(processor.clone()),
        recorded_ownership: answer(processor.or(notify)),
        protection: process::own_executable().ok().map(|(_, protection)| protection),
        missing_capabilities: Capabilities::DEFAULT.difference(Capabilities::from_bits(own)),
        device_rules: answer(CommandCgroup::new().make().err()),
        cgroups: cgroups(&fs_err::read_to_string("/proc/self/mounts").unwrap_or_default()),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    }
}

fn best_isolation(own: u64) -> Result<(Isolation, Option<String>), String> {
    if own & bits::SYS_ADMIN != 0 {
        Ok((Isolation::Namespaces, None))
    } else if own & bits::SYS_CHROOT != 0 {
        let reason = "CAP_SYS_ADMIN is missing and a user namespace was not entered";
        Ok((Isolation::Chroot, Some(reason.to_owned())))
    } else {
        Err("neither CAP_SYS_ADMIN nor CAP_SYS_CHROOT".to_owned())
    }
}

impl Isolation {
    /// The best that this process can do, without trying anything.
    ///
    /// # Errors
    /// The reason why no command can be run.
    pub fn best() -> Result<Self, String> {
        best_isolation(process::capabilities().unwrap_or(0)).map(|best| best.0)
    }
}

fn cgroups(mounts: &str) -> Cgroups {
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => Cgroups::Hybrid,
        (true, false) => Cgroups::One,
        (false, true) => Cgroups::Two,
        (false, false) => Cgroups::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_told_apart() {
        let one = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let two = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroups(one), Cgroups::One);
        assert_eq!(cgroups(two), Cgroups::Two);
        assert_eq!(cgroups(&[one, two].concat()), Cgroups::Hybrid);
        assert_eq!(cgroups("proc /cgroup proc rw 0 0\n"), Cgroups::None);
    }

    #[test]
    fn isolation_follows_capabilities() {
        assert_eq!(best_isolation(u64::MAX), Ok((Isolation::Namespaces, None)));
        let chroot = best_isolation(bits::SYS_CHROOT);
        assert!(matches!(chroot, Ok((Isolation::Chroot, Some(_)))), "{chroot:?}");
        assert!(best_isolation(0).is_err());
    }
}
