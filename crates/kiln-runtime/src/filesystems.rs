//! The filesystems that every sandbox has: `/proc`, `/dev` and `/sys`, as Docker gives them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_sys::mount::{self, Attributes, Depth, FilesystemRefused};
use kiln_sys::namespace;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::cgroup::{Membership, ShownCgroup};
use crate::failure::{Failure, at};
use crate::sandbox::Security;
use crate::target::Tree;

/// What is hidden (moby `daemon/pkg/oci/defaults.go`): files by `/dev/null`, directories by an empty one.
const MASKED_IN_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const MASKED_IN_SYS: [&str; 2] = ["devices/virtual/powercap", "firmware"];
const READ_ONLY_IN_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Nodes of `/dev`: name, major, minor.
pub(crate) const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// What becomes of device nodes in a root and in what is mounted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// They cannot be opened.
    Dead,
    /// They can, as far as the rules for devices permit.
    Opened,
}

impl Nodes {
    /// What every mount of a sandbox is restricted to at least.
    pub(crate) fn usual(self) -> Attributes {
        Attributes { no_devices: self == Self::Dead, ..Attributes::default() }
    }
}

/// The filesystems themselves, shown nowhere yet: all that can be made before the root is known.
pub(crate) struct Filesystems {
    proc: Result<OwnedFd, FilesystemRefused>,
    scratch: Scratch,
    dev: OwnedFd,
    devpts: OwnedFd,
    shm: OwnedFd,
    mqueue: Result<OwnedFd, FilesystemRefused>,
    sys: Result<OwnedFd, FilesystemRefused>,
    nodes: Nodes,
}

impl Filesystems {
    /// Makes them.
    ///
    /// Where device nodes are dead, the filesystem of `/dev` itself forbids to open them, and each of the usual ones becomes a
    /// mount that permits it.
    pub(crate) fn new(security: Security, nodes: Nodes) -> Result<Self, Failure> {
        let proc = mount::filesystem("proc", &[], Attributes::INERT);
        let scratch = Scratch::new()?;
        let attributes = Attributes { no_suid: true, ..nodes.usual() };
        let dev = mount::filesystem("tmpfs", &[("mode", "755"), ("size", "65536k")], attributes)?;
        for node in NODES {
            let step = |error: io::Error| at(&format!("make /dev/{}", node.0))(error);
            if (nodes, scratch.nodes) == (Nodes::Opened, DeviceNodes::Made) {
                make_node(dev.as_fd(), node).map_err(|errno| step(errno.into()))?;
            } else {
                make_file(dev.as_fd(), node.0, 0o666).map_err(step)?;
            }
        }
        for (name, text) in LINKS {
            rustix::fs::symlinkat(text, &dev, name)
                .map_err(|errno| at("make links in /dev")(errno.into()))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
                .map_err(|errno| at(&format!("make /dev/{name}"))(errno.into()))?;
        }
        let sys_attributes = match security {
            Security::Sandboxed => Attributes::INERT_READ_ONLY,
            Security::Insecure => Attributes::INERT,
        };
        Ok(Self {
            proc,
            scratch,
            dev,
            devpts: make_devpts()?,
            shm: mount::filesystem("tmpfs", &[("mode", "1777"), ("size", "65536k")], Attributes::INERT)?,
            mqueue: mount::filesystem("mqueue", &[], Attributes::INERT),
            // A namespace that does not own its network may not make one.
            sys: mount::filesystem("sysfs", &[], sys_attributes),
            nodes,
        })
    }
}

/// What later steps need of the filesystems that were mounted.
pub(crate) struct Mounted {
    /// The root of the sandbox's own `devpts`.
    pub(crate) devpts: OwnedFd,
    /// Its `/dev`.
    pub(crate) dev: OwnedFd,
    /// What single mounts come from.
    pub(crate) scratch: Scratch,
}

/// Mounts them all.
pub(crate) fn mount_all(
    made: Filesystems,
    tree: &mut Tree,
    security: Security,
    membership: &Membership,
    notes: &mut Vec<String>,
) -> Result<Mounted, Failure> {
    let Filesystems { proc, scratch, dev, devpts, shm, mqueue, sys, nodes } = made;
    let proc = mount_proc(proc, tree, notes)?;
    let target = tree.own_directory("dev").map_err(at("find the root's /dev, which must be a directory"))?;
    mount::attach(scratch.root.as_fd(), target.as_fd()).map_err(at("mount a scratch filesystem"))?;
    mount::attach(dev.as_fd(), target.as_fd()).map_err(at("mount /dev"))?;
    if (nodes, scratch.nodes) != (Nodes::Opened, DeviceNodes::Made) {
        for node in NODES {
            let step = |error: io::Error| at(&format!("make /dev/{}", node.0))(error);
            let place = open_own(dev.as_fd(), node.0).map_err(step)?;
            scratch.attach_node(node, place.as_fd()).map_err(step)?;
        }
    }
    let attach = |name: &str, made: &OwnedFd| -> Result<(), Failure> {
        let step = |error: io::Error| at(&format!("mount /dev/{name}"))(error);
        let place = open_own(dev.as_fd(), name).map_err(step)?;
        mount::attach(made.as_fd(), place.as_fd()).map_err(step)
    };
    attach("pts", &devpts)?;
    attach("shm", &shm)?;
    match mqueue {
        Ok(mqueue) => attach("mqueue", &mqueue)?,
        Err(refused) => notes.push(format!("there are no message queues in /dev/mqueue: {refused}")),
    }
    let sys = mount_sys(sys, tree, membership, notes)?;
    if security == Security::Sandboxed {
        restrict_paths(&scratch, proc.as_fd(), sys.as_ref().map(AsFd::as_fd))?;
    }
    Ok(Mounted { devpts, dev, scratch })
}

fn mount_proc(
    made: Result<OwnedFd, FilesystemRefused>,
    tree: &mut Tree,
    notes: &mut Vec<String>,
) -> Result<OwnedFd, Failure> {
    let target =
        tree.own_directory("proc").map_err(at("find the root's /proc, which must be a directory"))?;
    let proc = match made {
        Ok(proc) => proc,
        Err(refused) if refused.source.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            notes.push("/proc is that of the host: a container around this one forbids a new one".to_owned());
            let host = mount::open_place(Path::new("/proc")).map_err(at("open /proc"))?;
            mount::clone_tree(host.as_fd(), Depth::Recursive).map_err(at("bind /proc"))?
        }
        Err(refused) => return Err(Failure::from(refused)),
    };
    mount::attach(proc.as_fd(), target.as_fd()).map_err(at("mount /proc"))?;
    Ok(proc)
}

fn make_devpts() -> Result<OwnedFd, Failure> {
    const TERMINAL_GROUP: u32 = 5;
    let mut options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
    if namespace::is_mapped(Path::new("/proc/self/gid_map"), TERMINAL_GROUP) {
        options.push(("gid", "5"));
    }
    let attributes = Attributes { no_devices: false, ..Attributes::INERT };
    Ok(mount::filesystem("devpts", &options, attributes)?)
}

/// A filesystem in memory from which single files and directories are mounted. It lies under the sandbox's `/dev`,
/// where nothing reaches it: before kernel 6.15 only what is attached can be cloned.
pub(crate) struct Scratch {
    root: OwnedFd,
    nodes: DeviceNodes,
}

/// Where device nodes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceNodes {
    /// They are made in the scratch.
    Made,
    /// They are the host's: a user namespace may make none, or only what looks so.
    Host,
}

impl Scratch {
    /// Makes it; it is of use when it has been attached.
    fn new() -> Result<Self, Failure> {
        let attributes = Attributes { no_suid: true, ..Attributes::default() };
        let root = mount::filesystem("tmpfs", &[("mode", "700")], attributes)?;
        rustix::fs::mkdirat(&root, "empty", Mode::from_raw_mode(0o555))
            .map_err(|errno| at("make an empty directory")(errno.into()))?;
        let nodes = match make_node(root.as_fd(), NODES[0]) {
            // A recorder around this kiln pretends to have made it.
            Ok(()) if !is_node(root.as_fd(), NODES[0]) => DeviceNodes::Host,
            Ok(()) => DeviceNodes::Made,
            Err(Errno::PERM) => DeviceNodes::Host,
            Err(errno) => return Err(at(&format!("make /dev/{}", NODES[0].0))(errno.into())),
        };
        Ok(Self { root, nodes })
    }

    /// Mounts a device node.
    fn attach_node(&self, (name, major, minor): (&str, u32, u32), place: BorrowedFd<'_>) -> io::Result<()> {
        let node = match self.nodes {
            DeviceNodes::Made => {
                match make_node(self.root.as_fd(), (name, major, minor)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                open_own(self.root.as_fd(), name)?
            }
            DeviceNodes::Host => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(CWD, format!("/dev/{name}"), flags, Mode::empty())?
            }
        };
        // A container around this one may have put anything there.
        let status = rustix::fs::fstat(&node)?;
        let device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && status.st_rdev == rustix::fs::makedev(major, minor);
        if !device {
            return Err(Errno::NODEV.into());
        }
        mount::attach(mount::clone_tree(node.as_fd(), Depth::Single)?.as_fd(), place)
    }

    /// Hides what is at a place: a directory by an empty one, anything else by the null device.
    fn hide(&self, place: BorrowedFd<'_>) -> io::Result<()> {
        if FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode) != FileType::Directory {
            return self.attach_node(NODES[0], place);
        }
        let empty = open_own(self.root.as_fd(), "empty")?;
        let cover = mount::clone_tree(empty.as_fd(), Depth::Single)?;
        mount::attach(cover.as_fd(), place)?;
        mount::restrict(cover.as_fd(), Attributes::INERT_READ_ONLY, Depth::Single)
    }

    /// Mounts a file with the given content.
    pub(crate) fn attach_file(
        &self,
        name: &str,
        contents: &[u8],
        attributes: Attributes,
        place: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let written = make_file(self.root.as_fd(), name, 0o644)?;
        let mut rest = contents;
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&written, rest)?..];
        }
        let file = mount::clone_tree(open_own(self.root.as_fd(), name)?.as_fd(), Depth::Single)?;
        mount::attach(file.as_fd(), place)?;
        mount::restrict(file.as_fd(), attributes, Depth::Single)
    }
}

fn mount_sys(
    made: Result<OwnedFd, FilesystemRefused>,
    tree: &mut Tree,
    membership: &Membership,
    notes: &mut Vec<String>,
) -> Result<Option<OwnedFd>, Failure> {
    let target = tree.own_directory("sys").map_err(at("find the root's /sys, which must be a directory"))?;
    let host = |path: &str, depth: Depth| -> io::Result<OwnedFd> {
        let tree = mount::clone_tree(mount::open_place(Path::new(path))?.as_fd(), depth)?;
        mount::restrict(tree.as_fd(), Attributes::INERT_READ_ONLY, depth)?;
        Ok(tree)
    };
    // The host's brings its cgroups along, which members of another may not see.
    let depth = match membership {
        Membership::Member { .. } => Depth::Single,
        Membership::None => Depth::Recursive,
    };
    let whole = made.is_err() && depth == Depth::Recursive;
    let sys = match made.or_else(|refused| host("/sys", depth).map_err(|_| refused)) {
        Ok(sys) => sys,
        Err(refused) => {
            notes.push(format!("/sys is empty: {refused}"));
            return Ok(None);
        }
    };
    mount::attach(sys.as_fd(), target.as_fd()).map_err(at("mount /sys"))?;
    if whole {
        return Ok(Some(sys));
    }
    let Ok(place) = open_inside(sys.as_fd(), "fs/cgroup") else { return Ok(Some(sys)) };
    match membership {
        Membership::Member { shown } => {
            show_cgroups(shown, place.as_fd()).map_err(at("mount /sys/fs/cgroup"))?;
        }
        // Version 1, version 2 or both, as the host has them; never writable (CVE-2023-25809).
        Membership::None => {
            if let Ok(cgroup) = host("/sys/fs/cgroup", Depth::Recursive) {
                mount::attach(cgroup.as_fd(), place.as_fd()).map_err(at("mount /sys/fs/cgroup"))?;
            }
        }
    }
    Ok(Some(sys))
}

/// Mounts the container's own place in each hierarchy, read-only.
///
/// No more than that: for clone3(2) it is enough to see a cgroup, writable or not, to start a process in it.
fn show_cgroups(shown: &[ShownCgroup], place: BorrowedFd<'_>) -> io::Result<()> {
    let attach = |cgroup: &ShownCgroup, place: BorrowedFd<'_>| -> io::Result<()> {
        let directory = mount::open_place(&cgroup.directory)?;
        let tree = mount::clone_tree(directory.as_fd(), Depth::Single)?;
        // Before kernel 5.12 a mount can be made read-only when it is attached already: better none.
        match mount::restrict(tree.as_fd(), Attributes::INERT_READ_ONLY, Depth::Single) {
            Ok(()) => mount::attach(tree.as_fd(), place),
            Err(_) => Ok(()),
        }
    };
    if let [only] = shown
        && only.at.as_os_str().is_empty()
    {
        return attach(only, place);
    }
    let root = mount::filesystem("tmpfs", &[("mode", "755")], Attributes::INERT)
        .map_err(|refused| refused.source)?;
    mount::attach(root.as_fd(), place)?;
    for cgroup in shown {
        let Some(name) = cgroup.at.to_str().filter(|name| !name.is_empty() && !name.contains('/')) else {
            continue;
        };
        rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o555))?;
        attach(cgroup, open_own(root.as_fd(), name)?.as_fd())?;
        // As everybody knows the controllers that share a hierarchy: `cpu` is a link to `cpu,cpuacct`.
        for controller in name.split(',').filter(|controller| *controller != name) {
            rustix::fs::symlinkat(name, &root, controller)?;
        }
    }
    mount::restrict(root.as_fd(), Attributes::INERT_READ_ONLY, Depth::Single)
}

fn restrict_paths(
    scratch: &Scratch,
    proc: BorrowedFd<'_>,
    sys: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    for path in READ_ONLY_IN_PROC {
        let Ok(place) = open_inside(proc, path) else { continue };
        let step = |error: io::Error| at(&format!("make /proc/{path} read-only"))(error);
        let same = mount::clone_tree(place.as_fd(), Depth::Recursive).map_err(step)?;
        let attached = mount::attach(same.as_fd(), place.as_fd());
        attached.map_err(step)?;
        let depth = Depth::Recursive;
        mount::restrict(same.as_fd(), Attributes::INERT_READ_ONLY, depth)
            .or_else(|_| mount::restrict(same.as_fd(), Attributes::INERT_READ_ONLY, Depth::Single))
            .map_err(step)?;
    }
    let hide = |place: BorrowedFd<'_>| scratch.hide(place).map_err(at("hide a path of /proc or /sys"));
    for path in MASKED_IN_PROC {
        if let Ok(place) = open_inside(proc, path) {
            hide(place.as_fd())?;
        }
    }
    let Some(sys) = sys else { return Ok(()) };
    for path in MASKED_IN_SYS {
        if let Ok(place) = open_inside(sys, path) {
            hide(place.as_fd())?;
        }
    }
    for cpu in processors(sys) {
        if let Ok(place) = open_inside(sys, &format!("devices/system/cpu/cpu{cpu}/thermal_throttle")) {
            hide(place.as_fd())?;
        }
    }
    Ok(())
}

/// The numbers of this machine's processors, also of those that are offline.
fn processors(sys: BorrowedFd<'_>) -> Vec<u32> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = [0_u8; 4096];
    let length = rustix::fs::openat2(sys, "devices/system/cpu/present", flags, Mode::empty(), resolve)
        .and_then(|file| rustix::io::read(file, &mut text[..]))
        .unwrap_or(0);
    numbers(&String::from_utf8_lossy(&text[..length]))
}

/// Those of a list of the kernel's, such as `0-3,8`.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Opens a path of a filesystem that the kernel alone fills, through no link.
fn open_inside(filesystem: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(filesystem, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes a character device node for everybody.
fn make_node(directory: BorrowedFd<'_>, (name, major, minor): (&str, u32, u32)) -> Result<(), Errno> {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
}

/// Whether a directory has that node under its name.
fn is_node(directory: BorrowedFd<'_>, (name, major, minor): (&str, u32, u32)) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|status| {
        FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && status.st_rdev == rustix::fs::makedev(major, minor)
    })
}

/// Makes an empty file.
pub(crate) fn make_file(directory: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))?)
}

/// Opens what this program made itself in a directory that nobody else sees.
pub(crate) fn open_own(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_have_gaps() {
        let check = |list: &str, expect: &[u32]| assert_eq!(numbers(list), expect, "{list:?}");
        check("0-1\n", &[0, 1]);
        check("0\n", &[0]);
        check("0-2,5,8-9\n", &[0, 1, 2, 5, 8, 9]);
        check("", &[]);
        check("\n", &[]);
    }

    #[test]
    fn this_machine_has_processors() {
        let sys = rustix::fs::open("/sys", OFlags::PATH, Mode::empty()).expect("opened");
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(processors(sys.as_fd()).len() >= usable);
    }
}
