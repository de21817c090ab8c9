//! Terminals: the pair that a container gets, the caller's own in raw mode, sizes, and signals as a stream.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, Termios};

pub use rustix::termios::Winsize;

/// A new terminal: the side that the container's process uses and the one that its viewer reads and writes.
#[derive(Debug)]
pub struct Pair {
    /// The viewer's side.
    pub viewer: OwnedFd,
    /// The process's side.
    pub process: OwnedFd,
}

/// Opens a pair in a given `devpts` filesystem, whose root `devpts` is. The process's side is opened by the kernel from
/// the viewer's (`TIOCGPTPEER`), never by a name that a container could have replaced (CVE-2025-52565).
///
/// # Errors
/// The kernel's refusal.
pub fn open_pair(devpts: BorrowedFd<'_>) -> io::Result<Pair> {
    let viewer = rustix::fs::openat(
        devpts,
        c"ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::pty::unlockpt(&viewer)?;
    let flags =
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let process = rustix::pty::ioctl_tiocgptpeer(&viewer, flags)?;
    Ok(Pair { viewer, process })
}

/// Makes a terminal the controlling one of this process's session, and its descriptors 0, 1 and 2.
///
/// # Errors
/// The kernel's refusal.
pub fn adopt(terminal: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    for number in 0..3 {
        // SAFETY: `dup3` onto the standard numbers replaces what they refer to and frees nothing that Rust owns: the
        // standard streams never own their descriptors.
        if unsafe { libc::dup3(terminal.as_raw_fd(), number, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether a descriptor is a terminal.
#[must_use]
pub fn is_terminal(descriptor: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(descriptor)
}

/// The size of a terminal.
///
/// # Errors
/// The kernel's refusal.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Winsize> {
    Ok(rustix::termios::tcgetwinsize(terminal)?)
}

/// Sets the size of a terminal; its foreground processes are told.
///
/// # Errors
/// The kernel's refusal.
pub fn set_size(terminal: BorrowedFd<'_>, size: Winsize) -> io::Result<()> {
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// The caller's terminal in raw mode; dropping this restores it.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts a terminal into raw mode: every key goes to the process, none is interpreted here.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOTTY` when it is no terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let before = rustix::termios::tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal: terminal.try_clone_to_owned()?, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Signals sent to this process, as bytes in a pipe. One such stream can exist at a time; dropping it gives the signals
/// their former actions back.
///
/// The pipe stays open for ever: when the stream is dropped, a handler on another thread may be about to write, and what
/// it wrote would go to whatever had the number by then. A process takes signals over a few times at most.
#[derive(Debug)]
pub struct Signals {
    numbers: ManuallyDrop<OwnedFd>,
    before: Vec<(i32, libc::sigaction)>,
}

static WRITER: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(number: libc::c_int) {
    let writer: RawFd = WRITER.load(Ordering::Relaxed);
    if writer >= 0 {
        let byte = number as u8;
        // SAFETY: `write` and the location of errno may be used in a signal handler; errno is put back.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            libc::write(writer, (&raw const byte).cast(), 1);
            *errno = before;
        }
    }
}

impl Signals {
    /// Takes over the given signals, but for a SIGHUP that is ignored, as by nohup(1).
    ///
    /// # Errors
    /// The kernel's refusal; `EBUSY` while another stream exists.
    pub fn take_over(signals: &[i32]) -> io::Result<Self> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (numbers, writer) = rustix::pipe::pipe_with(flags)?;
        WRITER
            .compare_exchange(-1, writer.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        std::mem::forget(writer);
        let mut stream = Self { numbers: ManuallyDrop::new(numbers), before: Vec::new() };
        for signal in signals {
            // SAFETY: the handler is async-signal-safe and lives for ever; both structures are valid.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let mut before: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as *const () as libc::sighandler_t;
                action.sa_flags = libc::SA_RESTART;
                if libc::sigaction(*signal, &raw const action, &raw mut before) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if *signal == libc::SIGHUP && before.sa_sigaction == libc::SIG_IGN {
                    libc::sigaction(*signal, &raw const before, std::ptr::null_mut());
                    continue;
                }
                stream.before.push((*signal, before));
            }
        }
        Ok(stream)
    }

    /// Readable when a signal has come.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.numbers.as_fd()
    }

    /// The signals that have come since the last call.
    #[must_use]
    pub fn pending(&self) -> Vec<i32> {
        let mut bytes = [0_u8; 64];
        let count = rustix::io::read(self.descriptor(), &mut bytes[..]).unwrap_or(0);
        bytes[..count].iter().map(|byte| i32::from(*byte)).collect()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: the structure is the one the kernel gave.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
        WRITER.store(-1, Ordering::SeqCst);
    }
}

/// Sends open descriptors and a message through a socket of a pair.
///
/// # Errors
/// The kernel's refusal.
pub fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    rustix::net::sendmsg(socket, &[io::IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and the descriptors that came with it; an empty message is the other side's end.
///
/// # Errors
/// The kernel's refusal.
pub fn receive_with_descriptors(
    socket: BorrowedFd<'_>,
    message: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut parts = [io::IoSliceMut::new(message)];
        match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                let mut descriptors = Vec::new();
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = part {
                        descriptors.extend(rights);
                    }
                }
                return Ok((received.bytes, descriptors));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes the ownership of a number that a kernel interface returned.
pub(crate) fn owned(number: i64) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the callers pass what a system call just returned as a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}
