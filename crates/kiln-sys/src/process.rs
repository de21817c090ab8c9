//! Starting processes in new namespaces, waiting for them, ending them, and what a process does to itself before it
//! becomes another program.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

mod launch;

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Resource, Rlimit, Signal};

pub use self::launch::{Cgroup, Child, Ended, Launch, Lifetime, Namespaces, Starting, send_signal};
pub use crate::privilege::{
    CapabilityBits, Credentials, ResourceLimit, become_user, bound_capabilities, capabilities,
    forbid_new_privileges, limit, set_capabilities,
};

use crate::mount::{self, Attributes, Depth};

/// Gives every signal its default action and blocks none, as a newly started program expects.
pub fn reset_signals() {
    // SAFETY: numbers out of range are refused by the kernel; the empty set is valid.
    unsafe {
        for number in 1..=64 {
            if number != libc::SIGKILL && number != libc::SIGSTOP {
                libc::signal(number, libc::SIG_DFL);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Lets this process be told how its children end, whatever its caller had set: where SIGCHLD is ignored, which an execution does
/// not change, the kernel forgets them at once (wait(2), NOTES).
pub fn remember_children() {
    // SAFETY: no handler is set that could run.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Lets writes beyond the largest size of a file that this process may make (`ulimit -f`) fail, as those to a full disk do,
/// instead of ending the process. Programs that it starts inherit that, until [`reset_signals`].
pub fn report_large_files() {
    // SAFETY: no handler is set that could run.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// How [`own_executable`] keeps the running program's file from being overwritten through `/proc/<pid>/exe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// A read-only mount that no namespace shows.
    ReadOnlyMount,
    /// A sealed copy in memory.
    SealedCopy,
}

/// The running program's own file, in a form that what runs in a container cannot overwrite (CVE-2019-5736).
///
/// # Errors
/// The kernel's refusal to open or copy the file.
pub fn own_executable() -> io::Result<(OwnedFd, Protection)> {
    static KEPT: OnceLock<Mutex<Option<(OwnedFd, Protection)>>> = OnceLock::new();
    let mut kept =
        KEPT.get_or_init(|| Mutex::new(None)).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((file, protection)) = kept.as_ref() {
        return Ok((file.try_clone()?, *protection));
    }
    let (file, protection) = match read_only_executable() {
        Ok(file) => (file, Protection::ReadOnlyMount),
        Err(_) => (sealed_executable()?, Protection::SealedCopy),
    };
    *kept = Some((file.try_clone()?, protection));
    Ok((file, protection))
}

fn read_only_executable() -> io::Result<OwnedFd> {
    let own = mount::open_place(Path::new("/proc/self/exe"))?;
    let tree = mount::clone_tree(own.as_fd(), Depth::Single).or_else(|_| {
        // What was opened before this process got a mount namespace of its own can be cloned by its name only.
        let name = rustix::fs::readlink("/proc/self/exe", Vec::new())?;
        let named = mount::open_place(Path::new(OsStr::from_bytes(name.as_bytes())))?;
        let (opened, running) = (rustix::fs::fstat(&named)?, rustix::fs::fstat(&own)?);
        if (opened.st_dev, opened.st_ino) != (running.st_dev, running.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        mount::clone_tree(named.as_fd(), Depth::Single)
    })?;
    mount::restrict(tree.as_fd(), Attributes { read_only: true, ..Attributes::default() }, Depth::Single)?;
    Ok(tree)
}

fn sealed_executable() -> io::Result<OwnedFd> {
    let own = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let copy = rustix::fs::memfd_create("kiln", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    while rustix::fs::sendfile(&copy, &own, None, 1 << 30)? > 0 {}
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(copy)
}

/// A file in memory that holds `content` and cannot be changed any more.
///
/// # Errors
/// The kernel's refusal.
pub fn sealed_memory(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < content.len() {
        written += rustix::io::pwrite(&file, &content[written..], written as u64)?;
    }
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file)
}

/// Takes a descriptor that the one who started this program left under a number.
///
/// # Errors
/// When nothing is open under that number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asking for the flags of any number is harmless.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and the contract of a started program gives it to the caller alone. Close-on-exec is
    // a flag of the descriptor.
    unsafe {
        libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Marks every descriptor from `first` on as to be closed by `exec`.
///
/// # Errors
/// That of reading `/proc/self/fd`, which takes the place of `close_range(2)` where the kernel is older than 5.11 or a
/// filter refuses it.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: numbers only; close-on-exec does not close what others own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return Ok(());
    }
    for entry in fs_err::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|number| *number >= first) {
            // SAFETY: as above.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` on: what the one who started this program left open by accident. Only for a program
/// that has opened nothing above itself, first thing.
pub fn close_from(first: RawFd) {
    // SAFETY: nothing in this process owns these numbers, as the caller promises.
    if unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    // Before kernel 5.9.
    let Ok(entries) = fs_err::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<RawFd> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number >= first) {
        // SAFETY: as above; the listing itself is closed by now.
        unsafe { libc::close(number) };
    }
}

/// Becomes another program.
///
/// # Errors
/// Returns only when the kernel refused.
pub fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all are terminated strings in lists that end with null, and live through the call.
    unsafe {
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    io::Error::last_os_error()
}

/// What [`fork`] returns, in either process.
#[derive(Debug)]
pub enum Forked {
    /// This is the new process.
    Child,
    /// This is the old one; the new one's identifier.
    Parent(i32),
}

/// Splits a single-threaded process in two.
///
/// # Errors
/// The kernel's refusal, and `EBUSY` when this process has more than one thread.
pub fn fork() -> io::Result<Forked> {
    require_single_thread()?;
    // SAFETY: with a single thread no lock can be held by another, so the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Waits a moment for threads that have ended: whoever joined them may be told before the kernel has taken them off.
///
/// # Errors
/// `EBUSY` when this process has more than one thread.
pub(crate) fn require_single_thread() -> io::Result<()> {
    for _ in 0..200 {
        if fs_err::read_dir("/proc/self/task").map_or(1, Iterator::count) == 1 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Waits for any child, or for the one named; the identifier and how it ended. For a container's first process, which
/// inherits every orphan.
///
/// # Errors
/// The kernel's refusal; `ECHILD` when there is none.
pub fn wait_for(pid: Option<i32>) -> io::Result<(i32, Ended)> {
    let mut status = 0;
    loop {
        // SAFETY: the status is valid for writing.
        let ended = unsafe { libc::waitpid(pid.unwrap_or(-1), &raw mut status, 0) };
        if ended > 0 {
            let how = if libc::WIFEXITED(status) {
                Ended::Exited(libc::WEXITSTATUS(status) as u8)
            } else {
                Ended::Killed(libc::WTERMSIG(status))
            };
            return Ok((ended, how));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Becomes a program of the host that gets the standard streams and nothing else that is open here; for `newuidmap`.
pub(crate) fn execute_in_child(program: &Path, arguments: &[&OsStr]) -> io::Error {
    let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let list: Vec<CString> =
        std::iter::once(program.as_os_str()).chain(arguments.iter().copied()).map(text).collect();
    if let Err(error) = close_on_exec_from(3) {
        return error;
    }
    execute(&text(program.as_os_str()), &list, &[])
}

/// Ends this process at once, without running anything that was registered for its end.
pub fn leave(status: u8) -> ! {
    // SAFETY: `_exit` does not return and touches no memory.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Starts a session and process group of its own.
///
/// # Errors
/// `EPERM` when this process leads a group already.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid().map(drop).map_err(Into::into)
}

/// Asks the kernel to kill this process when the thread that started it dies. A change of user takes that back.
///
/// # Errors
/// The kernel's refusal.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Does something that looks at files and processes as another user would, on a thread of its own. `None` if it panicked.
pub fn looking_as<T: Send>(uid: u32, gid: u32, look: impl FnOnce() -> T + Send) -> Option<T> {
    let look = move || {
        // SAFETY: both take numbers only, and change this thread alone.
        unsafe {
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
        look()
    };
    std::thread::scope(|scope| scope.spawn(look).join().ok())
}

/// Lets a program that is started be asked to end (SIGTERM) when the thread that starts it dies, however that comes: it
/// may pass that on to programs of its own.
pub fn ends_with_parent(command: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have died before.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls, and neither allocates nor locks.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, ask);
    }
}

/// Bounds the memory that a program and each of its own may have for data (`RLIMIT_DATA`), in bytes.
pub fn limits_memory(command: &mut std::process::Command, bytes: u64) {
    let limit = move || {
        let known = rustix::process::getrlimit(Resource::Data);
        // A lower one stays.
        let bytes = known.maximum.map_or(bytes, |maximum| maximum.min(bytes));
        let bytes = known.current.map_or(bytes, |current| current.min(bytes));
        Ok(rustix::process::setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
    };
    // SAFETY: between fork and exec the closure makes two system calls, and neither allocates nor locks.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, limit);
    }
}

/// Joins a new, empty session keyring, so that the caller's keys are out of reach.
///
/// # Errors
/// `ENOSYS` without keyrings, `EDQUOT` when the user has too many.
pub fn leave_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback device of this network namespace up.
///
/// # Errors
/// The kernel's refusal.
pub fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the structure is plain data, its name is terminated, and the kernel reads and writes it alone.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives this thread a mount namespace of its own, cut off from all others, and directories of its own as
/// [`separate_directories`] does. What is mounted in it goes with the thread.
///
/// # Errors
/// The kernel's refusal: `EPERM` without the privilege.
pub fn separate_mounts() -> io::Result<()> {
    separate_directories()?;
    // SAFETY: only mounts are split from other threads', nothing that memory or descriptors depend on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    crate::mount::make_everything_private()
}

/// Gives this process a view of the cgroup trees that begins at its own cgroups.
///
/// # Errors
/// The kernel's refusal.
pub fn separate_cgroups() -> io::Result<()> {
    // SAFETY: only the view of cgroups is split, nothing that memory or descriptors depend on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP).map_err(Into::into) }
}

/// Gives this thread a root directory, current directory and file mode mask of its own, so that it may change them
/// without the process's other threads.
///
/// # Errors
/// The kernel's refusal.
pub fn separate_directories() -> io::Result<()> {
    // SAFETY: only directories are split from other threads', nothing that memory or descriptors depend on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS).map_err(Into::into) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;
    use crate::seccomp::{Instruction, Listener, install};

    /// Lets a system call fail for this thread and what it starts.
    fn refuse(call: libc::c_long, error: i32) -> io::Result<()> {
        let instruction =
            |code: u32, if_false, operand| Instruction { code: code as u16, if_true: 0, if_false, operand };
        let program = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | error as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        rustix::thread::set_no_new_privs(true)?;
        install(&program, Listener::None).map(drop)
    }

    /// From now on this process has no `close_range(2)`, as on a kernel before 5.9.
    fn refuse_close_range() -> io::Result<()> {
        refuse(libc::SYS_close_range, libc::ENOSYS)?;
        // SAFETY: numbers only; nothing is open there.
        let result = unsafe { libc::syscall(libc::SYS_close_range, libc::c_uint::MAX, libc::c_uint::MAX, 0) };
        match io::Error::last_os_error() {
            error if result != 0 && error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            _ => Err(io::Error::other("the filter does not work")),
        }
    }

    #[test]
    fn programs_of_the_host_get_no_descriptors_on_any_kernel() {
        let file = tempfile::tempfile().expect("a file");
        for prepare in [|| Ok(()), refuse_close_range] {
            // SAFETY: the number is open, and the copy is nobody else's.
            let open = unsafe { OwnedFd::from_raw_fd(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 3)) };
            let look = |test: &str| format!("test {test} /proc/self/fd/{}", open.as_raw_fd());
            let shell = |command: String| {
                let mut starting = Command::new("/bin/false");
                let become_shell = move || {
                    prepare()?;
                    Err(execute_in_child(Path::new("/bin/sh"), &[OsStr::new("-c"), OsStr::new(&command)]))
                };
                // SAFETY: the C library keeps the allocator usable behind fork, and no other lock is taken.
                unsafe { starting.pre_exec(become_shell) };
                starting.status().expect("started").success()
            };
            assert!(Command::new("/bin/sh").args(["-c", &look("-e")]).status().expect("started").success());
            assert!(shell(look("! -e")));
        }
    }

    /// As where TOMOYO misses `/dev/fd`.
    #[test]
    fn a_program_starts_where_execveat_misses_it() {
        let launched = |executable: OwnedFd, arguments: &[&CStr]| {
            let arguments = arguments.iter().map(|text| CString::from(*text)).collect();
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let (namespaces, descriptors) = (Namespaces::default(), vec![null.try_clone().unwrap(), null]);
            let lifetime = Lifetime::Starters;
            let launch = Launch { executable, arguments, namespaces, cgroup: None, descriptors, lifetime };
            // The filter is one thread's, which the program does not outlive.
            let thread = std::thread::spawn(move || {
                refuse(libc::SYS_execveat, libc::ENOENT)?;
                launch.start_here()?.wait()
            });
            thread.join().unwrap()
        };
        let missing = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(launched(missing, &[c"nothing"]).is_err());
        for executable in [own_executable().unwrap().0, sealed_executable().unwrap()] {
            let ended = launched(executable, &[c"listing", c"--list"]).unwrap();
            assert_eq!(ended, Ended::Exited(0));
        }
    }

    #[test]
    fn a_group_is_signalled_until_its_leader_was_waited_for() {
        let open =
            |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let null = || open("/dev/null", OFlags::RDWR);
        let (mut reader, writer) = io::pipe().unwrap();
        let arguments = ["setsid", "sh", "-c", "sleep 1000 & exit 3"];
        let launch = Launch {
            executable: open("/usr/bin/setsid", OFlags::PATH),
            arguments: arguments.iter().map(|text| CString::new(*text).unwrap()).collect(),
            namespaces: Namespaces::default(),
            cgroup: None,
            descriptors: vec![null(), writer.into(), null()],
            lifetime: Lifetime::Starters,
        };
        let leader = launch.start().unwrap().wait().unwrap();
        for _ in 0..2 {
            assert_eq!(leader.ended().unwrap(), Ended::Exited(3));
        }
        leader.signal_group(libc::SIGKILL).unwrap();
        // What it left running has the other end.
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
        assert_eq!(leader.wait().unwrap(), Ended::Exited(3));
        // The number is nobody's now, and could be somebody else's.
        leader.signal_group(libc::SIGKILL).unwrap();
        leader.ended().unwrap_err();
    }
}
