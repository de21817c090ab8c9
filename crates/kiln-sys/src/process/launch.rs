//! Starting the program that sets up a container, by a child that shares this program's memory until it becomes that one.
//!
//! A multi-threaded program must not allocate between `clone` and `exec`. [`Launch`] therefore prepares everything
//! before, shares its memory with the child (no page table is copied, whatever the program's size) and lets the child
//! only move descriptors and call `execveat`. All further setting up is the work of the program that is started:
//! kiln itself, single-threaded then.

#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::clone;

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
    /// Its number is its own, and its group's, until it was waited for.
    number: Mutex<Number>,
}

/// Whose a process's number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Its,
    Anybodys,
}

impl Child {
    fn new((pid, pidfd): (Pid, OwnedFd)) -> Self {
        Self { pid, pidfd, number: Mutex::new(Number::Its) }
    }

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

    /// Waits for its end, and leaves its number to it: its group can still be signalled.
    ///
    /// # Errors
    /// The kernel's refusal; `ECHILD` when [`Child::wait`] came before.
    pub fn ended(&self) -> io::Result<Ended> {
        self.wait_with(WaitIdOptions::NOWAIT)
    }

    /// Waits for its end, after which its number may be anybody's. To be called once.
    ///
    /// # Errors
    /// The kernel's refusal; `ECHILD` when it was waited for before.
    pub fn wait(&self) -> io::Result<Ended> {
        self.ended()?;
        let mut number = self.number();
        *number = Number::Anybodys;
        self.wait_with(WaitIdOptions::empty())
    }

    fn wait_with(&self, options: WaitIdOptions) -> io::Result<Ended> {
        let options = options | WaitIdOptions::EXITED;
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
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

    fn number(&self) -> MutexGuard<'_, Number> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends it a signal. One that has ended already is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        send_signal(self.pidfd.as_fd(), signal)
    }

    /// Sends a signal to every process of the group that it leads, if it leads one. Once it was waited for this does nothing.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        // Held until the signal is sent.
        let number = self.number();
        if *number == Number::Anybodys {
            return Ok(());
        }
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
        let mut sender = launcher.lock().unwrap_or_else(PoisonError::into_inner);
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

    pub(super) fn start_here(mut self) -> io::Result<Child> {
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
                Ok(started) => return Ok(Child::new(started)),
                Err((_, error)) => return Err(error),
            }
        }
        plan.tasks = match &self.cgroup {
            Some(Cgroup::Tasks(tasks)) => Some(tasks.as_raw_fd()),
            _ => joining.as_ref().map(AsRawFd::as_raw_fd),
        };
        let argument = std::ptr::from_mut(plan).cast();
        // SAFETY: as above.
        let started = with_signals_blocked(|| unsafe { clone::share_memory(child, argument, flags) })?;
        Ok(Child::new(started))
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
