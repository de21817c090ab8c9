//! Entering a user namespace, so that one who is not root may mount and own what containers need.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::UnshareFlags;

use crate::process::{self, Ended, Forked};

/// What [`enter_user_namespace`] made of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserNamespace {
    /// Nothing was needed: this process may mount already.
    None,
    /// A namespace in which the user is root and ranges of sub-UIDs and sub-GIDs are all others.
    SubIds {
        /// Who they are outside.
        maps: IdMaps,
    },
    /// A namespace in which there is root alone, which is the user.
    SingleId {
        /// Why there are no more.
        reason: String,
        /// Whether there should have been.
        lack: Lack,
    },
    /// No namespace may be made.
    Unavailable {
        /// Why not.
        reason: String,
    },
}

/// Why a user has no sub-identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// None were given, or nothing is installed that could map them.
    NotGiven,
    /// They were given and could not be mapped.
    Refused,
}

/// A range of identifiers in a user namespace, and what they are outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first one inside.
    pub inside: u32,
    /// The first one outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Who the users and groups of a user namespace are outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// The users.
    pub users: Vec<Extent>,
    /// The groups.
    pub groups: Vec<Extent>,
}

impl IdMaps {
    /// Those of the user namespace that this process is in.
    ///
    /// # Errors
    /// Where `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let read = |path: &str| fs_err::read_to_string(path).map(|text| extents(&text));
        Ok(Self { users: read("/proc/self/uid_map")?, groups: read("/proc/self/gid_map")? })
    }

    /// Which of these identifiers is not mapped, if one is not: no process here can become it.
    #[must_use]
    pub fn lack(&self, credentials: &process::Credentials) -> Option<String> {
        let lacks = |extents: &[Extent], id: u32| {
            let holds = |extent: &Extent| id.checked_sub(extent.inside).is_some_and(|at| at < extent.count);
            !extents.iter().any(holds)
        };
        let told = |kind: &str, id: u32, extents: &[Extent], file: &str| {
            let count: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
            format!(
                "{kind} {id} is none of the {count} {kind}s that are mapped here, as far as the ranges of {file} go"
            )
        };
        if lacks(&self.users, credentials.uid) {
            return Some(told("user", credentials.uid, &self.users, "/etc/subuid"));
        }
        let mut groups = std::iter::once(&credentials.gid).chain(&credentials.groups);
        let group = groups.find(|group| lacks(&self.groups, **group))?;
        Some(told("group", *group, &self.groups, "/etc/subgid"))
    }

    /// Those that [`enter_user_namespace`] would ask for here, as far as that can be told without asking.
    ///
    /// # Errors
    /// Why there would be one identifier alone.
    pub fn expected(configuration: &Configuration) -> Result<Self, (String, Lack)> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        MapPlan::find(configuration, uid, gid).map(|plan| plan.maps)
    }
}

fn extents(map: &str) -> Vec<Extent> {
    let read = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || fields.next()?.ok();
        Some(Extent { inside: next()?, outside: next()?, count: next()? })
    };
    map.lines().filter_map(read).collect()
}

/// A range of identifiers given to a user in `/etc/subuid` or `/etc/subgid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first identifier outside of the namespace.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Where user namespaces' helpers and ranges are.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The file of ranges of users, `/etc/subuid`.
    pub sub_uids: PathBuf,
    /// The file of ranges of groups, `/etc/subgid`.
    pub sub_gids: PathBuf,
    /// Directories in which `newuidmap` and `newgidmap` are looked for.
    pub helpers: Vec<PathBuf>,
    /// The user's name, if known: ranges are given to names more often than to numbers.
    pub user: Option<String>,
    /// The user's group in passwd, if known: the helpers refuse who has another one.
    pub group: Option<u32>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            sub_uids: PathBuf::from("/etc/subuid"),
            sub_gids: PathBuf::from("/etc/subgid"),
            helpers: ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].map(PathBuf::from).to_vec(),
            user: None,
            group: None,
        }
    }
}

/// The ranges that a file of sub-identifiers gives to a user, who is named or numbered there.
#[must_use]
pub fn ranges(file: &str, user: Option<&str>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    file.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let mine = owner == number || user.is_some_and(|name| name == owner);
            let range = Range { first: first.parse().ok()?, count: count.parse().ok()? };
            (mine && range.count > 0 && fields.next().is_none()).then_some(range)
        })
        .collect()
}

/// Brings this process into a user namespace and a mount namespace of its own, if it is not privileged enough without.
///
/// Must be called before any thread exists. The process keeps its identifier, its parent and its memory: it moves by
/// `unshare(2)`, while a helper process that stayed outside writes the maps. With sub-identifiers that is the work of
/// the privileged programs `newuidmap` and `newgidmap`; without, this process maps itself alone.
///
/// # Errors
/// Only what leaves the process half way in: a map that could not be written after the namespace was made. What is
/// merely not to be had is an answer ([`UserNamespace::Unavailable`]).
pub fn enter_user_namespace(configuration: &Configuration) -> io::Result<UserNamespace> {
    if may_mount() {
        return Ok(UserNamespace::None);
    }
    if let Err(error) = process::require_single_thread() {
        return Ok(UserNamespace::Unavailable {
            reason: format!("this process has several threads ({error})"),
        });
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let plan = MapPlan::find(configuration, uid, gid);
    let helper = match &plan {
        Ok(plan) => Some(Helper::start(plan)?),
        Err(_) => None,
    };
    // The new credentials must not make /proc/self belong to root, or the helper could not write the maps.
    if let Err(errno) = unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) {
        if let Some(helper) = helper {
            helper.dismiss();
        }
        return Ok(UserNamespace::Unavailable { reason: refusal_of_namespaces(errno) });
    }
    let mapped = match (helper, &plan) {
        (Some(helper), Ok(plan)) => match helper.finish() {
            Ok(()) => Ok(UserNamespace::SubIds { maps: plan.maps.clone() }),
            Err(reason) => Err((reason, Lack::Refused)),
        },
        (_, Err(lack)) => Err(lack.clone()),
        (None, Ok(_)) => Err(("no helper process".to_owned(), Lack::Refused)),
    };
    let entered = match mapped {
        Ok(entered) => entered,
        Err((reason, lack)) => {
            map_self_alone(uid, gid)?;
            UserNamespace::SingleId { reason, lack }
        }
    };
    let root = process::Credentials::default();
    process::become_user(&root, matches!(entered, UserNamespace::SubIds { .. }))?;
    crate::mount::make_everything_private()?;
    Ok(entered)
}

fn may_mount() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    rustix::process::geteuid().is_root() && process::capabilities().is_ok_and(|own| own & SYS_ADMIN != 0)
}

fn unshare(flags: UnshareFlags) -> Result<(), rustix::io::Errno> {
    // SAFETY: only namespaces are asked for; no descriptor table is split from another thread's.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn refusal_of_namespaces(errno: rustix::io::Errno) -> String {
    let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cause = if errno == rustix::io::Errno::PERM && is_in_changed_root() {
        "it gives none to a process whose root directory was changed by chroot"
    } else if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "kernel.unprivileged_userns_clone is 0"
    } else if read("/proc/sys/user/max_user_namespaces") == "0" {
        "user.max_user_namespaces is 0"
    } else if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "kernel.apparmor_restrict_unprivileged_userns is 1"
    } else {
        "a container around this one may forbid it"
    };
    format!("the kernel refuses a user namespace: {} ({cause})", io::Error::from(errno))
}

/// Whether this process's root directory is in the midst of a file system, where only `chroot(2)` leads.
fn is_in_changed_root() -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, "/", AtFlags::empty(), StatxFlags::empty());
    found.is_ok_and(|found| {
        found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
            && !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

/// As many lines as the kernel takes in a map.
const MOST_EXTENTS: usize = 340;

/// The maps to write with the helpers.
#[derive(Clone, Debug)]
struct MapPlan {
    maps: IdMaps,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

impl MapPlan {
    fn find(configuration: &Configuration, uid: u32, gid: u32) -> Result<Self, (String, Lack)> {
        let user = configuration.user.as_deref();
        let of = |file: &Path, own: u32| {
            let found = ranges(&fs_err::read_to_string(file).unwrap_or_default(), user, uid);
            if found.is_empty() {
                return Err((format!("{} has no range for this user", file.display()), Lack::NotGiven));
            }
            Ok(Self::extents(own, &found))
        };
        let program = |name: &str| {
            let found = configuration
                .helpers
                .iter()
                .map(|directory| directory.join(name))
                .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok());
            found.ok_or_else(|| (format!("{name} is not installed (Debian: package uidmap)"), Lack::NotGiven))
        };
        let maps =
            IdMaps { users: of(&configuration.sub_uids, uid)?, groups: of(&configuration.sub_gids, gid)? };
        let plan = Self { maps, newuidmap: program("newuidmap")?, newgidmap: program("newgidmap")? };
        let files =
            [(&configuration.sub_uids, &plan.maps.users), (&configuration.sub_gids, &plan.maps.groups)];
        for (file, extents) in files {
            if let Some(refusal) = refusal_of_extents(extents) {
                return Err((format!("{}: {refusal}", file.display()), Lack::Refused));
            }
        }
        if let Some(group) = configuration.group.filter(|group| *group != gid) {
            let reason = format!(
                "newgidmap serves who has the group {group}, as in /etc/passwd, and this is group {gid}"
            );
            return Err((reason, Lack::Refused));
        }
        // Root need not gain any.
        if uid != 0 && rustix::thread::no_new_privs().is_ok_and(|refused| refused) {
            let reason = "newuidmap gains no privileges in a process with no_new_privs";
            return Err((reason.to_owned(), Lack::Refused));
        }
        Ok(plan)
    }

    /// The user first, and the ranges behind.
    fn extents(own: u32, ranges: &[Range]) -> Vec<Extent> {
        let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
        let mut inside: u32 = 1;
        for range in ranges {
            let count = range.count.min(u32::MAX - 1 - inside);
            extents.push(Extent { inside, outside: range.first, count });
            inside += count;
        }
        extents
    }

    fn arguments(pid: i32, extents: &[Extent]) -> Vec<String> {
        let numbers = extents.iter().flat_map(|extent| [extent.inside, extent.outside, extent.count]);
        std::iter::once(pid.to_string()).chain(numbers.map(|number| number.to_string())).collect()
    }
}

/// Why the kernel would refuse a map.
fn refusal_of_extents(extents: &[Extent]) -> Option<String> {
    if extents.len() > MOST_EXTENTS {
        let most = MOST_EXTENTS - 1;
        return Some(format!(
            "{} ranges for this user, and the kernel maps at most {most}",
            extents.len() - 1
        ));
    }
    let mut sorted = extents.to_vec();
    sorted.sort_by_key(|extent| extent.outside);
    let overlap = sorted
        .windows(2)
        .find(|pair| u64::from(pair[0].outside) + u64::from(pair[0].count) > u64::from(pair[1].outside))?;
    Some(format!("what this user has overlaps at {}, which the kernel does not map", overlap[1].outside))
}

/// A process that stays outside of the namespace and runs the mapping programs when told.
struct Helper {
    pid: i32,
    go: OwnedFd,
    /// What the programs have to say.
    said: OwnedFd,
}

impl Helper {
    fn start(plan: &MapPlan) -> io::Result<Self> {
        let target = rustix::process::getpid().as_raw_nonzero().get();
        let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (said, say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        match process::fork()? {
            Forked::Parent(pid) => Ok(Self { pid, go, said }),
            Forked::Child => {
                drop((go, said));
                let _ = rustix::stdio::dup2_stderr(&say);
                drop(say);
                // Nothing to read means that the other process gave up or died.
                let told = rustix::io::read(wait.as_fd(), &mut [0_u8; 1][..]);
                let done = told == Ok(1)
                    && Self::run(&plan.newuidmap, &MapPlan::arguments(target, &plan.maps.users))
                    && Self::run(&plan.newgidmap, &MapPlan::arguments(target, &plan.maps.groups));
                process::leave(u8::from(!done));
            }
        }
    }

    fn run(program: &Path, arguments: &[String]) -> bool {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        match process::fork() {
            Ok(Forked::Child) => {
                process::execute_in_child(program, &arguments);
                process::leave(1)
            }
            Ok(Forked::Parent(pid)) => {
                process::wait_for(Some(pid)).is_ok_and(|(_, ended)| ended == Ended::Exited(0))
            }
            Err(_) => false,
        }
    }

    /// A helper whose pipe closes before it was told to go on ends.
    fn dismiss(self) {
        drop(self.go);
        let _ = process::wait_for(Some(self.pid));
    }

    /// What the program that refused said is the reason.
    fn finish(self) -> Result<(), String> {
        use io::Read as _;
        const MOST_SAID: u64 = 4096;

        let failed = |error: io::Error| error.to_string();
        rustix::io::write(&self.go, b"!").map_err(|errno| failed(errno.into()))?;
        let (mut text, mut said) = (Vec::new(), std::fs::File::from(self.said));
        (&mut said).take(MOST_SAID).read_to_end(&mut text).map_err(failed)?;
        // Whatever more it says must not keep it.
        io::copy(&mut said, &mut io::sink()).map_err(failed)?;
        let (_, ended) = process::wait_for(Some(self.pid)).map_err(failed)?;
        match (ended, said_first(&text)) {
            (Ended::Exited(0), _) => Ok(()),
            (_, Some(line)) => Err(line),
            (_, None) => Err("newuidmap or newgidmap refused".to_owned()),
        }
    }
}

/// The first line of a program's message.
fn said_first(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

/// Maps root inside to the user outside, and nobody else. A process may do that for itself if it gives up setgroups.
fn map_self_alone(uid: u32, gid: u32) -> io::Result<()> {
    // An earlier attempt may have written the users' map and failed at the groups'.
    let is_empty = |path: &str| match fs_err::read_to_string(path) {
        Ok(map) => Ok(map.trim().is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            "/proc is not mounted: a user namespace cannot be set up without",
        )),
        Err(error) => Err(error),
    };
    if is_empty("/proc/self/uid_map")? {
        fs_err::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    }
    if is_empty("/proc/self/gid_map")? {
        match fs_err::write("/proc/self/setgroups", "deny") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs_err::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
    }
    Ok(())
}

/// Whether this process's user namespace lets `setgroups(2)` through.
#[must_use]
pub fn may_set_groups() -> bool {
    fs_err::read_to_string("/proc/self/setgroups").map_or(true, |answer| answer.trim() != "deny")
}

/// Whether this process's user namespace maps the identifier.
#[must_use]
pub fn is_mapped(map: &Path, identifier: u32) -> bool {
    fs_err::read_to_string(map).is_ok_and(|text| maps(&text, identifier))
}

fn maps(map: &str, identifier: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) => {
                (first..first.saturating_add(count)).contains(&u64::from(identifier))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let file = "# comment\nann:100000:65536\n1000:300000:10\nbob:1:2\nann:bad:1\nann:5:0\nann:7:8:9\n";
        let check = |user, uid, expect: &[(u32, u32)]| {
            let found: Vec<_> =
                ranges(file, user, uid).iter().map(|range| (range.first, range.count)).collect();
            assert_eq!(found, expect);
        };
        check(Some("ann"), 1000, &[(100_000, 65536), (300_000, 10)]);
        check(None, 1000, &[(300_000, 10)]);
        check(Some("eve"), 7, &[]);
    }

    #[test]
    fn maps_put_the_user_first_and_the_ranges_behind() {
        let ranges = [Range { first: 100_000, count: 65536 }, Range { first: 9, count: u32::MAX }];
        let arguments = MapPlan::arguments(7, &MapPlan::extents(1000, &ranges));
        assert_eq!(
            arguments.join(" "),
            format!("7 0 1000 1 1 100000 65536 65537 9 {}", u32::MAX - 1 - 65537)
        );
    }

    #[test]
    fn what_is_asked_for_reads_as_what_the_kernel_shows() {
        let planned = MapPlan::extents(1000, &[Range { first: 100_000, count: 65536 }]);
        assert_eq!(extents("         0       1000          1\n         1     100000      65536\n"), planned);
    }

    #[test]
    fn who_is_not_mapped_is_named() {
        let maps = IdMaps {
            users: MapPlan::extents(1000, &[Range { first: 100_000, count: 65536 }]),
            groups: MapPlan::extents(1000, &[Range { first: 100_000, count: 1 }]),
        };
        let check = |uid, gid, groups: &[u32], expect: Option<&str>| {
            let credentials = process::Credentials { uid, gid, groups: groups.to_vec() };
            assert_eq!(maps.lack(&credentials).as_deref(), expect);
        };
        check(65536, 1, &[0, 1], None);
        let user = "user 70000 is none of the 65537 users that are mapped here, as far as the ranges of /etc/subuid go";
        check(70000, 0, &[], Some(user));
        let group =
            "group 27 is none of the 2 groups that are mapped here, as far as the ranges of /etc/subgid go";
        check(0, 0, &[0, 1, 27, 28], Some(group));
        check(0, 27, &[], Some(group));
    }

    #[test]
    fn ranges_that_the_kernel_would_refuse_are_told() {
        let check = |own: u32, found: &[(u32, u32)], expect: Option<&str>| {
            let ranges: Vec<Range> = found.iter().map(|&(first, count)| Range { first, count }).collect();
            let refusal = refusal_of_extents(&MapPlan::extents(own, &ranges));
            assert_eq!(refusal.as_deref(), expect);
        };
        check(1000, &[(100_000, 10), (100_010, 10)], None);
        let overlap = "what this user has overlaps at 100005, which the kernel does not map";
        check(1000, &[(100_005, 10), (100_000, 10)], Some(overlap));
        check(100_005, &[(100_000, 10)], Some(overlap));
        let many: Vec<(u32, u32)> = (0..340).map(|number| (100_000 + number, 1)).collect();
        check(1000, &many[..339], None);
        check(1000, &many, Some("340 ranges for this user, and the kernel maps at most 339"));
    }

    #[test]
    fn a_refusal_is_one_line() {
        let said = b"\nnewuidmap: uid range [0-1) -> [5-6) not allowed\nusage: \x1b\n";
        assert_eq!(said_first(said).as_deref(), Some("newuidmap: uid range [0-1) -> [5-6) not allowed"));
        assert_eq!(said_first(b"\n"), None);
    }

    #[test]
    fn an_identifier_is_looked_up_in_a_map() {
        assert!(maps("0 1000 1\n1 100000 65536\n", 5));
        assert!(!maps("0 1000 1\n", 5));
        assert!(maps("         0          0 4294967295\n", 5));
    }
}
