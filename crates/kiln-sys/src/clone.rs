//! Making a process that shares this one's memory until it has become another program, in a cgroup from its first
//! instruction on where the kernel can do that.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// What the new process runs. It must make system calls only, and end by `execve` or `_exit`.
pub(crate) type Entry = extern "C" fn(*mut libc::c_void) -> libc::c_int;

/// The new process's stack.
#[repr(C, align(16))]
struct Stack([u8; 64 * 1024]);

/// Makes a process that runs `entry` with `argument`, and returns when it has become another program or has ended.
/// `namespaces` are flags of clone(2).
///
/// # Safety
/// `entry` must be as said there, and `argument` what it expects, for the whole of the call.
///
/// # Errors
/// The kernel's refusal.
pub(crate) unsafe fn share_memory(
    entry: Entry,
    argument: *mut libc::c_void,
    namespaces: libc::c_int,
) -> io::Result<(Pid, OwnedFd)> {
    let mut stack = Box::<Stack>::new_uninit();
    let mut pidfd: libc::c_int = -1;
    let flags = namespaces | SHARING | libc::SIGCHLD;
    // SAFETY: with CLONE_VFORK this thread sleeps until the child has called exec or exit, so `stack` and `argument`
    // outlive the child's use of them; the stack pointer is the aligned end of `stack`.
    let pid =
        unsafe { libc::clone(entry, stack.as_mut_ptr().add(1).cast(), flags, argument, &raw mut pidfd) };
    started(pid.into(), pidfd)
}

const SHARING: libc::c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;

fn started(pid: i64, pidfd: libc::c_int) -> io::Result<(Pid, OwnedFd)> {
    let error = io::Error::last_os_error();
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(error)?;
    // SAFETY: the kernel stored a new descriptor there, which nothing else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// As [`share_memory`], in a cgroup of version 2, given by its directory.
///
/// # Safety
/// As there.
///
/// # Errors
/// `ENOSYS` for processors for which this is not written and before kernel 5.3, `E2BIG` or `EINVAL` before 5.7; else the
/// kernel's refusal.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn share_memory_in_cgroup(
    entry: Entry,
    argument: *mut libc::c_void,
    namespaces: libc::c_int,
    cgroup: BorrowedFd<'_>,
) -> io::Result<(Pid, OwnedFd)> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut stack = Box::<Stack>::new_uninit();
    let mut pidfd: libc::c_int = -1;
    let wanted = Clone3 {
        flags: (namespaces | SHARING) as u64 | CLONE_INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of::<Stack>() as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..Clone3::default()
    };
    let result: i64;
    // SAFETY: as in `share_memory`. The kernel keeps every register but the three that are named as changed, so the child
    // finds `entry` and `argument` in its copy of them; it goes on with the end of `stack`, which is aligned, as its stack
    // pointer, and never comes back from `entry`. The parent jumps over what is the child's.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const wanted,
            in("rsi") size_of::<Clone3>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    started(result, pidfd)
}

/// Not written for this processor: a function of the system's library for it does not exist.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn share_memory_in_cgroup(
    _: Entry,
    _: *mut libc::c_void,
    _: libc::c_int,
    _: BorrowedFd<'_>,
) -> io::Result<(Pid, OwnedFd)> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// `struct clone_args` as of kernel 5.7.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
#[repr(C)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
