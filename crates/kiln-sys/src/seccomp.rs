//! Installing system call filters, and answering calls that a filter hands to a supervisor.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::terminal::owned;

/// One instruction of a classic BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How far to jump when the comparison holds.
    pub if_true: u8,
    /// How far to jump when it does not.
    pub if_false: u8,
    /// The operand.
    pub operand: u32,
}

/// Whether calls can be handed to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The filter answers everything itself.
    None,
    /// The filter may hand calls to the holder of the returned descriptor.
    Notify,
}

/// Installs a filter for this process and all its descendants.
///
/// # Errors
/// The kernel's refusal: `EACCES` without `CAP_SYS_ADMIN` and without "no new privileges", `EBUSY` when a listener
/// exists already.
pub fn install(program: &[Instruction], listener: Listener) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let flags = match listener {
        Listener::None => 0,
        Listener::Notify => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the kernel copies the program and does not write to it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match (result, listener) {
        (number, Listener::Notify) => owned(number).map(Some),
        (0, Listener::None) => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this kernel can hand calls to a supervisor (5.0).
#[must_use]
pub fn can_notify() -> bool {
    let action: u32 = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the pointer is to a valid number.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// The kernel's name of this waiting call.
    pub id: u64,
    /// The calling thread, as the supervisor sees it.
    pub pid: u32,
    /// The architecture of the call (`AUDIT_ARCH_*`).
    pub architecture: u32,
    /// The call's number in that architecture.
    pub number: i32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// How a waiting call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It returns this.
    Value(i64),
    /// It fails with this error number.
    Fail(i32),
    /// The kernel does it.
    Continue,
}

/// Takes the next waiting call.
///
/// # Errors
/// `ENOENT` when the caller died meanwhile, `EINTR`.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: the structure is plain data, zeroed as the kernel demands, and written by the kernel alone.
    let raw = unsafe {
        let mut raw: libc::seccomp_notif = std::mem::zeroed();
        if libc::ioctl(listener.as_raw_fd(), NOTIF_RECV as _, &raw mut raw) != 0 {
            return Err(io::Error::last_os_error());
        }
        raw
    };
    Ok(Notification {
        id: raw.id,
        pid: raw.pid,
        architecture: raw.data.arch,
        number: raw.data.nr,
        arguments: raw.data.args,
    })
}

/// Whether the caller still waits: to be asked after its memory or descriptors were looked at by its identifier, which
/// another process may have got meanwhile.
#[must_use]
pub fn still_waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the pointer is to a valid number.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ID_VALID as _, &raw const id) == 0 }
}

/// Answers a waiting call.
///
/// # Errors
/// `ENOENT` when the caller does not wait any more.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let mut response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
    match answer {
        Answer::Value(value) => response.val = value,
        Answer::Fail(errno) => response.error = -errno,
        Answer::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    }
    // SAFETY: the structure is valid and read by the kernel alone.
    match unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND as _, &raw mut response) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets caller and supervisor take turns on one processor, where the kernel can (6.6): they never work at once, and waking
/// another processor costs more than the work.
pub fn take_turns(listener: BorrowedFd<'_>) {
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: the kernel takes the flags as a number, and refuses what it does not know.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), NOTIF_SET_FLAGS as _, SYNC_WAKE_UP);
    }
}

const fn request(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((b'!' as u64) << 8) | number
}
const NOTIF_RECV: u64 = request(3, 0, size_of::<libc::seccomp_notif>());
const NOTIF_SEND: u64 = request(3, 1, size_of::<libc::seccomp_notif_resp>());
const NOTIF_SET_FLAGS: u64 = request(1, 4, size_of::<u64>());
const NOTIF_ID_VALID: u64 = request(1, 2, size_of::<u64>());

/// Reads bytes from another process's memory; the number read may be smaller at the end of a mapping.
///
/// # Errors
/// The kernel's refusal.
pub fn read_memory(pid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the local vector is `into`; the remote address is the other process's affair and checked by the kernel.
    let read =
        unsafe { libc::process_vm_readv(pid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes bytes into another process's memory.
///
/// # Errors
/// The kernel's refusal.
pub fn write_memory(pid: u32, address: u64, from: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: from.len() };
    // SAFETY: as in `read_memory`; the local side is only read.
    let written =
        unsafe { libc::process_vm_writev(pid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(written) == Ok(from.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}
