//! What a process may do and as whom: users, groups, capabilities, resource limits. Reached through
//! [`process`](crate::process).

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;

/// The user and groups a process acts as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Additional groups.
    pub groups: Vec<u32>,
}

/// Changes all user and group identifiers of this (single-threaded) process.
///
/// # Errors
/// The kernel's refusal: `EINVAL` for an identifier that the user namespace does not map.
pub fn become_user(credentials: &Credentials, may_set_groups: bool) -> io::Result<()> {
    require_known(credentials)?;
    let user = rustix::process::Uid::from_raw(credentials.uid);
    let group = rustix::process::Gid::from_raw(credentials.gid);
    if may_set_groups {
        let groups: Vec<_> =
            credentials.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups)?;
    }
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// The number with all bits set means "leave as it is" to the kernel and is nobody's.
fn require_known(credentials: &Credentials) -> io::Result<()> {
    let identifiers = credentials.groups.iter().chain([&credentials.uid, &credentials.gid]);
    if identifiers.into_iter().any(|identifier| *identifier == u32::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

/// Capabilities as a set of bits, numbered as the kernel does.
pub type CapabilityBits = u64;

/// The capabilities that this process may use.
///
/// # Errors
/// The kernel's refusal.
pub fn capabilities() -> io::Result<CapabilityBits> {
    Ok(rustix::thread::capabilities(None)?.effective.bits())
}

/// Takes every capability that is not in `kept` out of the bounding set, and empties the ambient set.
///
/// # Errors
/// The kernel's refusal.
pub fn bound_capabilities(kept: CapabilityBits) -> io::Result<()> {
    for number in 0..64 {
        if kept & (1 << number) != 0 {
            continue;
        }
        // SAFETY: numbers only; one that is unknown is refused.
        unsafe {
            if libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) == 1
                && libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets the effective and permitted sets to those of `kept` that are permitted now; the inheritable set becomes empty
/// (CVE-2022-24769).
///
/// # Errors
/// The kernel's refusal.
pub fn set_capabilities(kept: CapabilityBits) -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let present = rustix::thread::capabilities(None)?;
    let kept = CapabilitySet::from_bits_retain(kept) & present.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Forbids this process and its descendants to gain privileges by executing a file.
///
/// # Errors
/// The kernel's refusal.
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// The limits of a process that can be set, by the kernel's number (`RLIMIT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// The kernel's number of the resource.
    pub resource: u32,
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Sets a limit as far as it may: without `CAP_SYS_RESOURCE` a hard limit cannot grow.
///
/// # Errors
/// The kernel's refusal of what it should permit.
///
/// Returns whether the limit is as asked for.
pub fn limit(wanted: ResourceLimit) -> io::Result<bool> {
    // SAFETY: both structures are valid, and the kernel refuses unknown numbers.
    unsafe {
        let exact = libc::rlimit { rlim_cur: wanted.soft, rlim_max: wanted.hard };
        if libc::setrlimit(wanted.resource as _, &raw const exact) == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EPERM) {
            return Err(error);
        }
        let mut present: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(wanted.resource as _, &raw mut present) != 0 {
            return Err(io::Error::last_os_error());
        }
        let hard = wanted.hard.min(present.rlim_max);
        let nearest = libc::rlimit { rlim_cur: wanted.soft.min(hard), rlim_max: hard };
        if libc::setrlimit(wanted.resource as _, &raw const nearest) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(false)
}
