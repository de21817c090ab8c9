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
        /// Number of users, root included.
        users: u32,
        /// Number of groups, root's included.
        groups: u32,
    },
    /// A namespace in which there is root alone, which is the user.
    SingleId {
        /// Why there are no more.
        reason: String,
    },
    /// No namespace may be made.
    Unavailable {
        /// Why not.
        reason: String,
    },
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
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            sub_uids: PathBuf::from("/etc/subuid"),
            sub_gids: PathBuf::from("/etc/subgid"),
            helpers: ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].map(PathBuf::from).to_vec(),
            user: None,
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
        (Some(helper), Ok(plan)) => helper.finish().map(|()| UserNamespace::SubIds {
            users: plan.uids.iter().map(|range| range.count).sum::<u32>() + 1,
            groups: plan.gids.iter().map(|range| range.count).sum::<u32>() + 1,
        }),
        (_, Err(reason)) => Err(reason.clone()),
        (None, Ok(_)) => Err("no helper process".to_owned()),
    };
    let entered = match mapped {
        Ok(entered) => entered,
        Err(reason) => {
            map_self_alone(uid, gid)?;
            UserNamespace::SingleId { reason }
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
    let cause = if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
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

/// The maps to write with the helpers.
#[derive(Clone, Debug)]
struct MapPlan {
    uid: u32,
    gid: u32,
    uids: Vec<Range>,
    gids: Vec<Range>,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

impl MapPlan {
    fn find(configuration: &Configuration, uid: u32, gid: u32) -> Result<Self, String> {
        let user = configuration.user.as_deref();
        let of = |file: &Path| {
            let found = ranges(&fs_err::read_to_string(file).unwrap_or_default(), user, uid);
            if found.is_empty() {
                Err(format!("{} has no range for this user", file.display()))
            } else {
                Ok(found)
            }
        };
        let program = |name: &str| {
            let found = configuration
                .helpers
                .iter()
                .map(|directory| directory.join(name))
                .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok());
            found.ok_or_else(|| format!("{name} is not installed (Debian: package uidmap)"))
        };
        Ok(Self {
            uid,
            gid,
            uids: of(&configuration.sub_uids)?,
            gids: of(&configuration.sub_gids)?,
            newuidmap: program("newuidmap")?,
            newgidmap: program("newgidmap")?,
        })
    }

    fn arguments(pid: i32, own: u32, ranges: &[Range]) -> Vec<String> {
        let mut arguments = vec![pid.to_string(), "0".to_owned(), own.to_string(), "1".to_owned()];
        let mut inside: u32 = 1;
        for range in ranges {
            let count = range.count.min(u32::MAX - 1 - inside);
            arguments.extend([inside.to_string(), range.first.to_string(), count.to_string()]);
            inside += count;
        }
        arguments
    }
}

/// A process that stays outside of the namespace and runs the mapping programs when told.
struct Helper {
    pid: i32,
    go: OwnedFd,
}

impl Helper {
    fn start(plan: &MapPlan) -> io::Result<Self> {
        let target = rustix::process::getpid().as_raw_nonzero().get();
        let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        match process::fork()? {
            Forked::Parent(pid) => Ok(Self { pid, go }),
            Forked::Child => {
                drop(go);
                // Nothing to read means that the other process gave up or died.
                let told = rustix::io::read(wait.as_fd(), &mut [0_u8; 1][..]);
                let done = told == Ok(1)
                    && Self::run(&plan.newuidmap, &MapPlan::arguments(target, plan.uid, &plan.uids))
                    && Self::run(&plan.newgidmap, &MapPlan::arguments(target, plan.gid, &plan.gids));
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

    /// The program's own message has gone to standard error if it refused.
    fn finish(self) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        rustix::io::write(&self.go, b"!").map_err(|errno| failed(errno.into()))?;
        match process::wait_for(Some(self.pid)).map_err(failed)? {
            (_, Ended::Exited(0)) => Ok(()),
            _ => Err("newuidmap or newgidmap refused".to_owned()),
        }
    }
}

/// Maps root inside to the user outside, and nobody else. A process may do that for itself if it gives up setgroups.
fn map_self_alone(uid: u32, gid: u32) -> io::Result<()> {
    // An earlier attempt may have written the users' map and failed at the groups'.
    let empty = |path: &str| fs_err::read_to_string(path).is_ok_and(|map| map.trim().is_empty());
    if empty("/proc/self/uid_map") {
        fs_err::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    }
    if empty("/proc/self/gid_map") {
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
        let arguments = MapPlan::arguments(
            7,
            1000,
            &[Range { first: 100_000, count: 65536 }, Range { first: 9, count: u32::MAX }],
        );
        assert_eq!(
            arguments.join(" "),
            format!("7 0 1000 1 1 100000 65536 65537 9 {}", u32::MAX - 1 - 65537)
        );
    }

    #[test]
    fn an_identifier_is_looked_up_in_a_map() {
        assert!(maps("0 1000 1\n1 100000 65536\n", 5));
        assert!(!maps("0 1000 1\n", 5));
        assert!(maps("         0          0 4294967295\n", 5));
    }
}
