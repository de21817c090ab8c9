//! Starting a sandbox, and holding one that runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use kiln_sys::process::{self, Child, Ended};
use kiln_sys::terminal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::RuntimeError;
use crate::init;
use crate::launcher::{Launcher, MadeStreams, Told, hand_over, is_hang_up};
use crate::placement::Placements;
use crate::recorder::{LowerFiles, Ownership, Recorder};
use crate::report::Report;
use crate::sandbox::{Isolation, OwnershipMode, RootSource, Sandbox, Security};
use crate::target::Stubs;
use crate::wire::Wire;

/// What one of the process's three streams is.
#[derive(Debug)]
pub enum Stream {
    /// That of this process.
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe, whose other end is in [`Running`]. It is the command's user's, who may open it by its name.
    Pipe,
    /// A given descriptor, which stays as it is.
    Descriptor(OwnedFd),
    /// A pipe that was made for the command, and is given to its user.
    Made(OwnedFd),
}

/// The process's streams. A terminal of its own takes the place of all three.
#[derive(Debug)]
pub struct Streams {
    /// What it reads.
    pub input: Stream,
    /// Where it writes.
    pub output: Stream,
    /// Where it complains.
    pub error: Stream,
}

impl Streams {
    /// All three are those of this process.
    #[must_use]
    pub fn inherit() -> Self {
        Self { input: Stream::Inherit, output: Stream::Inherit, error: Stream::Inherit }
    }

    /// Nothing to read, and two pipes.
    #[must_use]
    pub fn piped() -> Self {
        Self { input: Stream::Null, output: Stream::Pipe, error: Stream::Pipe }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With a status.
    Code(u8),
    /// By a signal.
    Signal(i32),
}

impl Exit {
    /// The status as a shell gives it: 128 and the signal's number for one that was killed.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => init::status_of(Ended::Killed(signal)),
        }
    }

    /// Whether the status is 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What is left of a sandbox.
#[derive(Debug)]
pub struct Finished {
    /// How the command ended.
    pub exit: Exit,
    /// What was made in the root that the command did not make; see [`Stubs::undo`].
    pub stubs: Stubs,
    /// What this machine could not give, a line each.
    pub notes: Vec<String>,
    /// Owners and device nodes that were only pretended; empty with [`OwnershipMode::Kernel`].
    pub ownership: Ownership,
}

/// A command that runs. Dropping it kills the command and waits.
#[derive(Debug)]
pub struct Running {
    child: Arc<Child>,
    isolation: Isolation,
    stubs: Stubs,
    notes: Vec<String>,
    recorder: Option<JoinHandle<Ownership>>,
    /// Where nothing can be mounted: what is in the root meanwhile.
    placements: Option<Placements>,
    /// The other end of its standard input, if that is a pipe.
    pub input: Option<OwnedFd>,
    /// The other end of its standard output, if that is a pipe.
    pub output: Option<OwnedFd>,
    /// The other end of its standard error, if that is a pipe.
    pub error: Option<OwnedFd>,
    /// The viewer's side of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    waited: bool,
}

/// Signals a command from any thread.
#[derive(Clone, Debug)]
pub struct Signaller {
    child: Arc<Child>,
    isolation: Isolation,
}

impl Signaller {
    /// Sends a signal to the command.
    ///
    /// # Errors
    /// The kernel's refusal. A command that has ended is no error.
    pub fn signal(&self, number: i32) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Process { operation: "signal the command", source };
        self.child.signal(number).map_err(failed)
    }

    /// Kills the command and everything that it started.
    ///
    /// # Errors
    /// The kernel's refusal. A command that has ended is no error.
    pub fn kill(&self) -> Result<(), RuntimeError> {
        // Without a namespace of processes there is only the group to go by.
        if self.isolation == Isolation::Chroot {
            let _ = self.child.signal_group(KILL);
        }
        self.signal(KILL)
    }
}

const KILL: i32 = 9;

impl Running {
    /// A handle to signal the command with, from any thread.
    #[must_use]
    pub fn signaller(&self) -> Signaller {
        Signaller { child: Arc::clone(&self.child), isolation: self.isolation }
    }

    /// Becomes readable when the command has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// What this machine could not give, a line each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Waits for the end of the command. When this returns, all its processes are gone and nothing is mounted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn wait(mut self) -> Result<Finished, RuntimeError> {
        self.waited = true;
        let _span = kiln_trace::span("unmount");
        let failed = |source| RuntimeError::Process { operation: "wait for the command", source };
        let ended = self.child.ended().map_err(failed)?;
        // Its number is still its group's.
        let taken_out = self.take_out();
        self.child.wait().map_err(failed)?;
        let ownership = self.recorder.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        taken_out
            .map_err(|source| RuntimeError::Process { operation: "take files out of the root", source })?;
        Ok(Finished {
            exit: exit_of(ended),
            stubs: std::mem::take(&mut self.stubs),
            notes: std::mem::take(&mut self.notes),
            ownership,
        })
    }
}

impl Running {
    /// Ends what outlived the command where there is no namespace that does, and empties the root of what is not its own.
    fn take_out(&mut self) -> io::Result<()> {
        let Some(placements) = self.placements.take() else { return Ok(()) };
        let _ = self.child.signal_group(KILL);
        let ended = crate::placement::end_processes(placements.root());
        // What was moved in is somebody's, whoever lives.
        self.stubs = placements.undo(std::mem::take(&mut self.stubs))?;
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.waited {
            let _ = self.signaller().kill();
            let _ = self.child.ended();
            let _ = self.take_out();
            let _ = self.child.wait();
        }
    }
}

fn exit_of(ended: Ended) -> Exit {
    match ended {
        Ended::Exited(code) => Exit::Code(code),
        Ended::Killed(signal) => Exit::Signal(signal),
    }
}

/// Says whether the start of a sandbox is to be given up, which mostly takes milliseconds, but waits for disks and servers
/// that what is mounted may be on.
pub trait Interrupt {
    /// Readable when there may be reason to.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Whether there is. Asked when the descriptor is readable, which it is not for ever unless there is.
    fn is_interrupted(&self) -> bool;
}

/// Sets a sandbox up and starts its command. When this returns, the command's program runs.
///
/// `below` tells the owners of files that were there before, where owners are recorded. `launcher` must outlive the command and
/// all that it starts.
///
/// # Errors
/// Whatever keeps the command from being started. Nothing is left mounted or running then; stubs may be left in the
/// root, which is to be thrown away.
pub fn start(
    sandbox: &Sandbox,
    streams: Streams,
    below: Option<&LowerFiles>,
    launcher: &Launcher,
) -> Result<Running, RuntimeError> {
    start_unless(sandbox, streams, below, launcher, None)
}

/// As [`start`], but gives up as soon as `interrupt` wants that.
///
/// # Errors
/// As [`start`], and [`RuntimeError::Interrupted`].
pub fn start_interruptibly(
    sandbox: &Sandbox,
    streams: Streams,
    below: Option<&LowerFiles>,
    launcher: &Launcher,
    interrupt: &dyn Interrupt,
) -> Result<Running, RuntimeError> {
    start_unless(sandbox, streams, below, launcher, Some(interrupt))
}

fn start_unless(
    sandbox: &Sandbox,
    streams: Streams,
    below: Option<&LowerFiles>,
    launcher: &Launcher,
    interrupt: Option<&dyn Interrupt>,
) -> Result<Running, RuntimeError> {
    let _span = kiln_trace::span("mount and start");
    let set_up = |step: &str| {
        let step = step.to_owned();
        move |source| RuntimeError::SetUp { step, detail: String::new(), source }
    };
    let confinement = sandbox.confinement();
    let waiting = launcher.waiting(confinement);
    let fresh = if waiting.is_some() { None } else { Some(launcher.launch(confinement)?) };
    let mut described = init::Description { sandbox: sandbox.clone(), filter: filter_for(sandbox) };
    described.sandbox.mounts.sort_by_key(|mount| mount.target.components().count());
    let sandbox = &described.sandbox;
    let description = process::sealed_memory("kiln-sandbox", &described.encode())
        .map_err(set_up("pass the sandbox's description"))?;
    let own_terminal = sandbox.process.terminal != crate::sandbox::Terminal::None;
    let ends = Ends::open(streams, own_terminal).map_err(set_up("open the command's streams"))?;
    let [far_input, far_output, far_error] = ends.far;
    // That one could not be started before it was needed is no reason not to try again.
    let waiting = waiting.and_then(|init| init.started().ok());
    let is_early = waiting.is_some();
    let (child, control) = match (waiting, fresh) {
        (Some(waiting), _) => waiting,
        (None, Some(fresh)) => fresh.started()?,
        (None, None) => launcher.launch(confinement)?.started()?,
    };
    let mut running = Running {
        child: Arc::new(child),
        isolation: sandbox.isolation,
        stubs: Stubs::default(),
        notes: Vec::new(),
        recorder: None,
        placements: None,
        input: far_input,
        output: far_output,
        error: far_error,
        terminal: None,
        waited: false,
    };
    if let (RootSource::Directory { path }, Isolation::Chroot) = (&sandbox.root, sandbox.isolation) {
        let made = Placements::make(path, sandbox).map_err(set_up("put files into the root"))?;
        running.placements = Some(made);
    }
    let begin = |running: &mut Running, control: OwnedFd| -> Result<(), (Told, RuntimeError)> {
        launcher.watch(&running.child).map_err(|error| (Told::Read, error))?;
        let told = hand_over(control.as_fd(), &description, (&ends.near, ends.made))
            .map_err(|source| (Told::Unread, set_up("pass the sandbox's description")(source)))?;
        follow(running, sandbox, below, (&control, interrupt), told)
    };
    match begin(&mut running, control) {
        // It waited for long, and was killed for want of memory, perhaps; or it lacked what there is again now.
        Err((Told::Unread, _)) if is_early => {
            let (child, control) = launcher.launch(confinement)?.started()?;
            let _ = running.child.wait();
            running.child = Arc::new(child);
            begin(&mut running, control).map_err(|(_, error)| error)?;
        }
        begun => begun.map_err(|(_, error)| error)?,
    }
    Ok(running)
}

/// Starts a sandbox with the given streams and waits for its end.
///
/// # Errors
/// As [`start`] and [`Running::wait`].
pub fn run(sandbox: &Sandbox, streams: Streams, launcher: &Launcher) -> Result<Finished, RuntimeError> {
    start(sandbox, streams, None, launcher)?.wait()
}

fn filter_for(sandbox: &Sandbox) -> Vec<u64> {
    match (sandbox.security, sandbox.ownership) {
        (Security::Insecure, OwnershipMode::Kernel) => Vec::new(),
        (security, ownership) => crate::seccomp::filter(sandbox.process.capabilities, security, ownership),
    }
}

/// Reads the init's reports until it has become the command. An error comes with whether it can have begun.
fn follow(
    running: &mut Running,
    sandbox: &Sandbox,
    below: Option<&LowerFiles>,
    (control, interrupt): (&OwnedFd, Option<&dyn Interrupt>),
    mut told: Told,
) -> Result<(), (Told, RuntimeError)> {
    let mut message = vec![0_u8; 256 * 1024];
    let mut ready = false;
    loop {
        if interrupt.is_some_and(|interrupt| is_given_up(control.as_fd(), interrupt)) {
            return Err((Told::Read, RuntimeError::Interrupted));
        }
        let (length, descriptors) = match terminal::receive_with_descriptors(control.as_fd(), &mut message) {
            Err(error) if is_hang_up(&error) && told == Told::Read => {
                told = Told::Unread;
                continue;
            }
            Err(source) => {
                return Err((told, RuntimeError::Process { operation: "read the init's report", source }));
            }
            Ok(received) => received,
        };
        if length == 0 {
            return if ready { Ok(()) } else { Err((told, died(running))) };
        }
        ready |= heed(running, sandbox, below, control, (&message[..length], descriptors))
            .map_err(|error| (told, error))?;
    }
}

/// Waits for a report or the end of the init, unless there is reason to give up before.
fn is_given_up(control: BorrowedFd<'_>, interrupt: &dyn Interrupt) -> bool {
    let descriptor = interrupt.descriptor();
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(control, PollFlags::IN),
            PollFd::from_borrowed_fd(descriptor, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // The report is waited for without it.
            Err(_) => return false,
        }
        // What is said comes first: it may be that the command has begun, to whom the request goes then.
        if !polled[0].revents().is_empty() {
            return false;
        }
        if !polled[1].revents().is_empty() && interrupt.is_interrupted() {
            return true;
        }
    }
}

/// How the init ended, which has closed its socket. Whoever ends what it left running waits for it.
fn died(running: &Running) -> RuntimeError {
    match running.child.ended() {
        Ok(ended) => RuntimeError::Died { exit: exit_of(ended) },
        Err(source) => RuntimeError::Process { operation: "wait for the init", source },
    }
}

/// Does what a report asks for; says whether the init is ready.
fn heed(
    running: &mut Running,
    sandbox: &Sandbox,
    below: Option<&LowerFiles>,
    control: &OwnedFd,
    (message, descriptors): (&[u8], Vec<OwnedFd>),
) -> Result<bool, RuntimeError> {
    let garbled = || RuntimeError::Process {
        operation: "read the init's report",
        source: io::ErrorKind::InvalidData.into(),
    };
    let report = Report::decode(message).map_err(|_| garbled())?;
    let mut descriptors = descriptors.into_iter();
    match report {
        Report::Terminal => running.terminal = descriptors.next(),
        Report::Listener => {
            let failed = |source| RuntimeError::Process { operation: "start recording owners", source };
            let listener = descriptors.next().ok_or_else(garbled)?;
            let (pid, ended) = (running.child.pid(), running.child.pidfd());
            let recorder = Recorder::new(sandbox, below.cloned(), listener, pid, ended).map_err(failed)?;
            running.recorder = Some(recorder.run().map_err(failed)?);
            terminal::send_with_descriptors(control.as_fd(), b"!", &[]).map_err(failed)?;
        }
        Report::Ready { stubs, notes } => {
            (running.stubs, running.notes) = (stubs, notes);
            if sandbox.security == Security::Sandboxed && !crate::seccomp::is_known_processor() {
                let note = "not isolated: there is no system call profile for this processor";
                running.notes.push(note.to_owned());
            }
            return Ok(true);
        }
        Report::Failed { step, errno, detail } => {
            let source = match errno {
                0 => io::Error::other(detail.clone()),
                errno => io::Error::from_raw_os_error(errno),
            };
            let detail = if errno == 0 { String::new() } else { detail };
            return Err(RuntimeError::SetUp { step, detail, source });
        }
        Report::NotFound { command } => return Err(RuntimeError::CommandNotFound { command }),
        Report::Panicked { message } => return Err(RuntimeError::Panicked { message }),
        Report::NotExecutable { command, errno } => {
            let source = io::Error::from_raw_os_error(errno);
            return Err(RuntimeError::CommandNotExecutable { command, source });
        }
    }
    Ok(false)
}

struct Ends {
    near: [OwnedFd; 3],
    far: [Option<OwnedFd>; 3],
    made: MadeStreams,
}

impl Ends {
    fn open(streams: Streams, own_terminal: bool) -> io::Result<Self> {
        let streams = if own_terminal {
            [Stream::Null, Stream::Null, Stream::Null]
        } else {
            [streams.input, streams.output, streams.error]
        };
        let mut number = 0;
        let mut made = MadeStreams::default();
        let opened = streams.map(|stream| {
            if matches!(stream, Stream::Pipe | Stream::Made(_)) {
                made.0 |= 1 << number;
            }
            number += 1;
            Self::end(stream, number - 1)
        });
        let [input, output, error] = opened;
        let ((a, x), (b, y), (c, z)) = (input?, output?, error?);
        Ok(Self { near: [a, b, c], far: [x, y, z], made })
    }

    fn end(stream: Stream, number: usize) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        Ok(match stream {
            Stream::Descriptor(given) | Stream::Made(given) => (given, None),
            Stream::Null => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                (rustix::fs::open("/dev/null", flags, Mode::empty())?, None)
            }
            Stream::Inherit => {
                let own = match number {
                    0 => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0),
                    1 => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 0),
                    _ => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0),
                };
                match own {
                    Ok(own) => (own, None),
                    // The caller closed it.
                    Err(_) => return Self::end(Stream::Null, number),
                }
            }
            Stream::Pipe => {
                let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                if number == 0 { (reader, Some(writer)) } else { (writer, Some(reader)) }
            }
        })
    }
}
