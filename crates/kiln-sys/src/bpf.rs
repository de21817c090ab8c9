//! Programs that the kernel runs when a process of a cgroup makes or opens a device (`BPF_PROG_TYPE_CGROUP_DEVICE`,
//! kernel 4.15), loaded and attached by bpf(2).

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::terminal::owned;

/// One instruction of an extended BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// The register that is changed or compared, and in the upper half of the byte the one that is read.
    pub registers: u8,
    /// How far to jump, or where in memory to read.
    pub offset: i16,
    /// The operand.
    pub operand: i32,
}

const LOAD_PROGRAM: libc::c_int = 5;
const ATTACH_PROGRAM: libc::c_int = 8;
const DEVICE_PROGRAM: u32 = 15;
const DEVICE_HOOK: u32 = 6;
/// Programs of the cgroups above hold, too.
const ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` as loading takes it; the kernel takes the rest for zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// The same, as attaching takes it.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    hook: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, argument: &T) -> libc::c_long {
    // SAFETY: the argument is one of the two above, valid for reading and of the size that is given; what it points at
    // outlives the call; neither command writes to it.
    unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(argument), size_of::<T>()) }
}

/// Gives the kernel a program that decides on devices. It lives as long as its descriptor, or what it is attached to.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` (or `CAP_BPF`) outside of any user namespace, `EINVAL` for kernels without such
/// programs and for programs that the kernel cannot prove harmless.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: DEVICE_PROGRAM,
        count: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: program.as_ptr() as u64,
        // Only the licence GPL has a meaning to the kernel, for functions that are not called here.
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"kiln_devices\0\0\0\0",
    };
    owned(bpf(LOAD_PROGRAM, &load))
}

/// Attaches a program to a cgroup of version 2, for as long as that exists. What a program of a cgroup above forbids stays
/// forbidden.
///
/// # Errors
/// `EPERM` where a cgroup above has a program that permits no other, `EBADF` for what is no cgroup.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        hook: DEVICE_HOOK,
        flags: ALLOW_MULTI,
    };
    if bpf(ATTACH_PROGRAM, &attach) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
