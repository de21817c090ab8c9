//! Starting processes in new namespaces, waiting for them, ending them, and what a process does to itself before it
//! becomes another program.
//!
//! A multi-threaded program must not allocate between `clone` and `exec`. [`Launch`] therefore prepares everything
//! before, shares its memory with the child (no page table is copied, whatever the program's size) and lets the child
//! only move descriptors and call `execveat`. All further setting up is the work of the program that is started:
//! kiln itself, single-threaded then.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, mpsc};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

pub use crate::privilege::{
    CapabilityBits, Credentials, ResourceLimit, become_user, bound_capabilities, capabilities,
    forbid_new_privileges, limit, set_capabilities,
};

use crate::clone;
use crate::mount::{self, Attributes, Depth};

/// The namespaces that a started process gets for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mounts.
    pub mount: bool,
    /// Process identifiers; the process is the first of them.
    pub pid: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Network devices, addresses and ports.
    pub network: bool,
}

impl Namespaces {
    fn flags(self) -> libc::c_int {
        [
            (self.mount, libc::CLONE_NEWNS),
            (self.pid, libc::CLONE_NEWPID),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (self.network, libc::CLONE_NEWNET),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// A program to start; see [`Launch::start`].
#[derive(Debug)]
pub struct Launch {
    /// The program's file, as [`own_executable`] gives it.
    pub executable: OwnedFd,
    /// The program's arguments, its name first. Its environment is empty.
    pub arguments: Vec<CString>,
    /// The namespaces it gets.
    pub namespaces: Namespaces,
    /// The cgroup in which it begins; this process's own if none is given.
    pub cgroup: Option<Cgroup>,
    /// Its descriptors 0, 1, 2 and so on. No other descriptor survives, as far as this process marked them
    /// close-on-exec; the program is to close what else it finds.
    pub descriptors: Vec<OwnedFd>,
    /// How long it may live.
    pub lifetime: Lifetime,
}

/// How long a started process may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as this process, unless it changes its user: it gets `SIGKILL` when this process dies.
    Starters,
    /// As long as it likes.
    ItsOwn,
}

/// A cgroup to start a process in.
#[derive(Debug)]
pub enum Cgroup {
    /// One of version 2: its directory.
    Directory(OwnedFd),
    /// One of version 1: its `tasks`, open for writing.
    Tasks(OwnedFd),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with a status.
    Exited(u8),
    /// A signal killed it.
    Killed(i32),
}

/// A started process. Dropping this neither waits for it nor ends it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process identifier as this process sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Readable when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for its end. To be called once.
    ///
    /// # Errors
    /// The kernel's refusal; `ECHILD` when it was waited for before.
    pub fn wait(&self) -> io::Result<Ended> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    return Ok(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Ended::Exited(code as u8),
                        (None, signal) => Ended::Killed(signal.unwrap_or(libc::SIGKILL)),
                    });
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends it a signal. One that has ended already is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        send_signal(self.pidfd.as_fd(), signal)
    }

    /// Sends a signal to every process of the group that it leads, if it leads one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        // SAFETY: `kill` takes numbers only.
        match unsafe { libc::kill(-self.pid(), signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sends a signal to a process. One that has ended already is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; no signal information is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// A program that another thread is starting.
#[derive(Debug)]
pub struct Starting {
    answer: mpsc::Receiver<io::Result<Child>>,
}

impl Starting {
    /// Waits until it runs.
    ///
    /// # Errors
    /// The kernel's refusal: `EPERM` when the namespaces may not be made.
    pub fn wait(self) -> io::Result<Child> {
        self.answer.recv().map_err(|_| io::Error::other("the launching thread is gone"))?
    }
}

impl Launch {
    /// Begins to start the program, and does not wait.
    ///
    /// All programs are started by one thread that lives as long as this process: the kernel's "signal me when my
    /// parent dies" means the parent's *thread*. All signals are blocked in the started process.
    ///
    /// # Errors
    /// When that thread cannot be started.
    pub fn start(self) -> io::Result<Starting> {
        type Job = (Launch, mpsc::SyncSender<io::Result<Child>>);
        static LAUNCHER: OnceLock<Mutex<Option<mpsc::Sender<Job>>>> = OnceLock::new();
        let launcher = LAUNCHER.get_or_init(|| Mutex::new(None));
        let (answer, answered) = mpsc::sync_channel(1);
        let mut sender = launcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sender.is_none() {
            let (jobs, received) = mpsc::channel::<Job>();
            std::thread::Builder::new().name("launcher".to_owned()).spawn(move || {
                for (launch, answer) in received {
                    let _ = answer.send(launch.start_here());
                }
            })?;
            *sender = Some(jobs);
        }
        if let Some(jobs) = sender.as_ref() {
            jobs.send((self, answer)).map_err(|_| io::Error::other("the launching thread is gone"))?;
        }
        Ok(Starting { answer: answered })
    }

    fn start_here(mut self) -> io::Result<Child> {
        // Sources above every target number, so that moving one never overwrites another.
        let lowest_free = self.descriptors.len() as RawFd;
        for descriptor in self.descriptors.iter_mut().chain(std::iter::once(&mut self.executable)) {
            if descriptor.as_raw_fd() < lowest_free {
                *descriptor = rustix::io::fcntl_dupfd_cloexec(&*descriptor, lowest_free)?;
            }
        }
        let mut arguments: Vec<*const libc::c_char> =
            self.arguments.iter().map(|text| text.as_ptr()).collect();
        arguments.push(std::ptr::null());
        let sources: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let name = CString::new(format!("/proc/self/fd/{}", self.executable.as_raw_fd()))?;
        let mut plan = Plan {
            executable: self.executable.as_raw_fd(),
            name: name.as_ptr(),
            arguments: arguments.as_ptr(),
            sources: sources.as_ptr(),
            count: sources.len(),
            tasks: None,
            lifetime: self.lifetime,
            error: 0,
        };
        let child = self.start_with(&mut plan)?;
        if plan.error != 0 {
            child.wait()?;
            return Err(io::Error::from_raw_os_error(plan.error));
        }
        Ok(child)
    }

    /// Makes the child. It is in its cgroup at once where the kernel can do that, and otherwise joins it by itself, which
    /// may wait for every processor of the machine.
    fn start_with(&self, plan: &mut Plan) -> io::Result<Child> {
        let flags = self.namespaces.flags();
        let mut joining = None;
        if let Some(Cgroup::Directory(directory)) = &self.cgroup {
            let argument = std::ptr::from_mut(plan).cast();
            // SAFETY: `child` only makes system calls; `plan` and all that it points at live in the caller. Signals are
            // blocked, so that no handler runs on the shared memory.
            let started = with_signals_blocked(|| unsafe {
                clone::share_memory_in_cgroup(child, argument, flags, directory.as_fd())
            });
            match started.map_err(|error| (error.raw_os_error(), error)) {
                Err((Some(libc::ENOSYS | libc::E2BIG | libc::EINVAL | libc::EPERM), _)) => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    joining = Some(rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty())?);
                }
                Ok((pid, pidfd)) => return Ok(Child { pid, pidfd }),
                Err((_, error)) => return Err(error),
            }
        }
        plan.tasks = match &self.cgroup {
            Some(Cgroup::Tasks(tasks)) => Some(tasks.as_raw_fd()),
            _ => joining.as_ref().map(AsRawFd::as_raw_fd),
        };
        let argument = std::ptr::from_mut(plan).cast();
        // SAFETY: as above.
        let (pid, pidfd) = with_signals_blocked(|| unsafe { clone::share_memory(child, argument, flags) })?;
        Ok(Child { pid, pidfd })
    }
}

/// What the child needs between `clone` and `exec`.
struct Plan {
    executable: RawFd,
    /// The executable by a name.
    name: *const libc::c_char,
    arguments: *const *const libc::c_char,
    sources: *const RawFd,
    count: usize,
    /// Where it is to write itself, to join a cgroup.
    tasks: Option<RawFd>,
    lifetime: Lifetime,
    error: i32,
}

extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `argument` is the `Plan` of `start_here`, whose thread sleeps until this function is done with it; all
    // pointers in it are valid as said there. Only async-signal-safe system calls are made.
    unsafe {
        let plan = &mut *argument.cast::<Plan>();
        if plan.lifetime == Lifetime::Starters {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        }
        if let Some(tasks) = plan.tasks
            && libc::write(tasks, c"0".as_ptr().cast(), 1) != 1
        {
            plan.error = *libc::__errno_location();
            libc::_exit(127);
        }
        for target in 0..plan.count {
            if libc::dup3(*plan.sources.add(target), target as RawFd, 0) < 0 {
                plan.error = *libc::__errno_location();
                libc::_exit(127);
            }
        }
        let environment = [std::ptr::null::<libc::c_char>()];
        libc::syscall(
            libc::SYS_execveat,
            plan.executable,
            c"".as_ptr(),
            plan.arguments,
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        // The security module TOMOYO, before 6.12, and some emulators look for `/dev/fd`, which not every root has. By the other
        // name it is the same file, as well protected.
        if *libc::__errno_location() == libc::ENOENT {
            libc::execve(plan.name, plan.arguments, environment.as_ptr());
        }
        plan.error = *libc::__errno_location();
        libc::_exit(127)
    }
}

fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are valid for writing; `pthread_sigmask` changes this thread's mask only.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let done = work();
    // SAFETY: the set is valid; `pthread_sigmask` changes this thread's mask only.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
    done
}

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
}
