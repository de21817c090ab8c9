//! Running a command for someone who watches: keys go in, output comes out, signals and the window's size are handed on.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kiln_sys::terminal::{self, RawMode, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::RuntimeError;
use crate::launch::{Exit, Finished, Interrupt, Running, Signaller, Stream, Streams, start_interruptibly};
use crate::launcher::Launcher;
use crate::recorder::{LowerFiles, Ownership};
use crate::sandbox::{OwnershipMode, Sandbox, Terminal};
use crate::target::Stubs;

/// Who watches. All three may be the same terminal.
#[derive(Clone, Copy, Debug)]
pub struct Foreground<'a> {
    /// Where keys come from.
    pub input: BorrowedFd<'a>,
    /// Where output goes.
    pub output: BorrowedFd<'a>,
    /// Where errors go.
    pub error: BorrowedFd<'a>,
    /// Whether the command reads `input` at all (`-i`); otherwise it finds the end of the file.
    pub interactive: bool,
    /// Whether the command gets a terminal of its own (`-t`). Then errors go to `output`, and keys are not interpreted
    /// outside of it.
    pub own_terminal: bool,
}

/// Signals that are handed on: all that end a process by default and can be caught, and the window's.
const HANDED_ON: [i32; 9] = [HUP, INT, QUIT, 10, 12, 14, TERM, 18, WINDOW];
/// Of these, those that ask for the end.
const ASK_TO_END: [i32; 4] = [HUP, INT, QUIT, TERM];
const HUP: i32 = 1;
const INT: i32 = 2;
const QUIT: i32 = 3;
const TERM: i32 = 15;
const WINDOW: i32 = 28;
/// After so many requests to end, the command is killed: process 1 ignores what it does not handle.
const PATIENCE: usize = 3;
/// So many bytes can be written to a pipe that has room, without waiting (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;
/// So many are read.
const CHUNK: usize = 16 * 1024;
/// So often before the next look at signals.
const MOST_TURNS: usize = 64;

/// Starts a sandbox in the foreground and waits for its end. Until then this process's signals are handed to the
/// command, and the third `SIGINT`, `SIGTERM` or `SIGQUIT` kills it. Before there is a command the first of these, or
/// `SIGHUP`, ends it all, as if it had killed the command.
///
/// # Errors
/// As [`start`] and [`Running::wait`], and when the terminal cannot be handled.
pub fn run_in_foreground(
    sandbox: &Sandbox,
    watcher: Foreground<'_>,
    below: Option<&LowerFiles>,
    launcher: &Launcher,
) -> Result<Finished, RuntimeError> {
    let failed = |operation: &'static str| move |source| RuntimeError::Process { operation, source };
    let mut sandbox = sandbox.clone();
    let watched = terminal::is_terminal(watcher.input);
    if watcher.own_terminal {
        let size = [watcher.input, watcher.output].into_iter().find_map(|side| terminal::size(side).ok());
        sandbox.process.terminal = match size {
            Some(size) => Terminal::Own { rows: size.ws_row, columns: size.ws_col },
            None => Terminal::Own { rows: 0, columns: 0 },
        };
    }
    let gives_away = sandbox.ownership == OwnershipMode::Kernel && sandbox.process.credentials.uid != 0;
    let input = match watcher.interactive {
        false => Stream::Null,
        true if is_copied(watcher.input, gives_away) => Stream::Pipe,
        true => duplicate(watcher.input).map_err(failed("pass standard input"))?,
    };
    let (output, error, outlets) =
        outputs(watcher, gives_away).map_err(failed("pass standard output and error"))?;
    let streams = Streams { input, output, error };
    let signals = Signals::take_over(&HANDED_ON).map_err(failed("take over signals"))?;
    let early = Early { signals: &signals, came: RefCell::default() };
    let started = start_interruptibly(&sandbox, streams, below, launcher, &early);
    if let (Err(RuntimeError::Interrupted), Some(signal)) = (&started, early.end()) {
        let (stubs, ownership) = (Stubs::default(), Ownership::default());
        return Ok(Finished { exit: Exit::Signal(signal), stubs, notes: Vec::new(), ownership });
    }
    let mut running = started?;
    let raw = if watcher.own_terminal && watcher.interactive && watched {
        Some(RawMode::enter(watcher.input).map_err(failed("put the terminal into raw mode"))?)
    } else {
        None
    };
    let mut exchange =
        Exchange::new(&mut running, watcher, outlets).map_err(failed("follow the command's output"))?;
    exchange.hand_on(&early.came.take());
    exchange.follow(&running, &signals);
    let lost = exchange.lost.take();
    drop((raw, exchange));
    let finished = running.wait()?;
    match lost {
        Some(errno) => Err(failed("write the command's output")(errno.into())),
        None => Ok(finished),
    }
}

/// Whether the command gets a pipe, which is copied, in the place of what its caller has there. With a terminal of the
/// caller's it could read what is typed and change how that is interpreted. And what the command's user is to open by
/// the name of `/dev/stdout` must be given to that user, which is nothing to do to what is the caller's own; devices such
/// as `/dev/null` are everybody's.
fn is_copied(side: BorrowedFd<'_>, gives_away: bool) -> bool {
    let is_device = || {
        rustix::fs::fstat(side)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice)
    };
    terminal::is_terminal(side) || (gives_away && !is_device())
}

fn duplicate(side: BorrowedFd<'_>) -> std::io::Result<Stream> {
    side.try_clone_to_owned().map(Stream::Descriptor)
}

/// What the command gets to write to, and what is to be copied from there.
fn outputs(watcher: Foreground<'_>, gives_away: bool) -> std::io::Result<(Stream, Stream, Vec<Outlet<'_>>)> {
    if watcher.own_terminal {
        return Ok((Stream::Null, Stream::Null, Vec::new()));
    }
    let place = |side| rustix::fs::fstat(side).map(|found| (found.st_dev, found.st_ino, found.st_rdev));
    let (output, error) = (watcher.output, watcher.error);
    let mut outlets = Vec::new();
    let mut pipe = |side| -> std::io::Result<OwnedFd> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        outlets.push(Outlet::new(reader, side)?);
        Ok(writer)
    };
    // One pipe for one place keeps the order in which it is written to.
    let (output, error) = match (is_copied(output, gives_away), is_copied(error, gives_away)) {
        (true, true) if place(output)? == place(error)? => {
            let writer = pipe(output)?;
            (Stream::Made(writer.try_clone()?), Stream::Made(writer))
        }
        (output_copied, error_copied) => {
            let mut stream =
                |side, copied| if copied { pipe(side).map(Stream::Made) } else { duplicate(side) };
            (stream(output, output_copied)?, stream(error, error_copied)?)
        }
    };
    Ok((output, error, outlets))
}

/// Signals that come before there is a command to hand them to.
struct Early<'a> {
    signals: &'a Signals,
    came: RefCell<Vec<i32>>,
}

impl Early<'_> {
    /// The first that asks for the end.
    fn end(&self) -> Option<i32> {
        self.came.borrow().iter().copied().find(|signal| ASK_TO_END.contains(signal))
    }
}

impl Interrupt for Early<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.signals.descriptor()
    }

    fn is_interrupted(&self) -> bool {
        self.came.borrow_mut().extend(self.signals.pending());
        self.end().is_some()
    }
}

/// Where the command writes, and where that is shown.
struct Outlet<'a> {
    /// A pipe, or the watcher's side of the command's terminal. Nothing when there is no more.
    source: Option<OwnedFd>,
    watcher: BorrowedFd<'a>,
    /// The watcher's terminal, by a description of its own, to which nothing is written that would have to wait: of a
    /// terminal it cannot be told how much it takes.
    unwaiting: Option<OwnedFd>,
    /// Output that was read and could not be shown yet.
    unshown: Vec<u8>,
    /// So many bytes are written at once.
    at_once: usize,
    /// So many are still to be read, when the command has ended.
    rest: Option<u64>,
}

/// What an outlet waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// For the command to write, or for nothing any more.
    Dry,
    /// For the watcher to take it.
    Full,
    /// It could not be shown: why, if somebody still wanted it.
    Lost(Option<Errno>),
}

impl<'a> Outlet<'a> {
    fn new(source: OwnedFd, shown: BorrowedFd<'a>) -> std::io::Result<Self> {
        set_nonblocking(&source)?;
        let file = FileType::from_raw_mode(rustix::fs::fstat(shown)?.st_mode) == FileType::RegularFile;
        let at_once = if file { CHUNK } else { AT_ONCE };
        let unwaiting = if terminal::is_terminal(shown) { reopened(shown) } else { None };
        Ok(Self { source: Some(source), watcher: shown, unwaiting, unshown: Vec::new(), at_once, rest: None })
    }

    fn shown(&self) -> BorrowedFd<'_> {
        self.unwaiting.as_ref().map_or(self.watcher, AsFd::as_fd)
    }

    fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match (&self.source, self.unshown.is_empty()) {
            (_, false) => Some((self.shown(), PollFlags::OUT)),
            (Some(source), true) => Some((source.as_fd(), PollFlags::IN)),
            (None, true) => None,
        }
    }

    /// Copies what there is, as far as the watcher takes it at once, and not for ever: signals are heard meanwhile.
    fn show(&mut self) -> Flow {
        for _ in 0..MOST_TURNS {
            if self.unshown.is_empty() && !self.read() {
                return Flow::Dry;
            }
            let mut room = [PollFd::from_borrowed_fd(self.shown(), PollFlags::OUT)];
            if !matches!(poll(&mut room, Some(&Timespec::default())), Ok(1..)) {
                return Flow::Full;
            }
            let at_once = self.unshown.len().min(self.at_once);
            match rustix::io::write(self.shown(), &self.unshown[..at_once]) {
                Ok(count) => drop(self.unshown.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return Flow::Full,
                Err(errno) => {
                    self.unshown.clear();
                    self.source = None;
                    // A terminal that is gone, and a pipe that nobody reads, are missed by nobody.
                    let is_unwatched =
                        errno == Errno::PIPE || errno == Errno::IO && terminal::is_terminal(self.shown());
                    return Flow::Lost((!is_unwatched).then_some(errno));
                }
            }
        }
        Flow::Full
    }

    /// Says whether there was any.
    fn read(&mut self) -> bool {
        let Some(source) = &self.source else { return false };
        let mut bytes = [0_u8; CHUNK];
        let most = self.rest.map_or(CHUNK, |rest| CHUNK.min(usize::try_from(rest).unwrap_or(CHUNK)));
        match rustix::io::read(source, &mut bytes[..most]) {
            Ok(count) if count > 0 => {
                self.unshown.extend_from_slice(&bytes[..count]);
                self.rest = self.rest.map(|rest| rest.saturating_sub(count as u64));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: no process has the terminal open any more.
            _ => self.source = None,
        }
        !self.unshown.is_empty()
    }

    /// No more is read than there is now: where there is no namespace of processes others may write on. A terminal does not
    /// tell how much that is.
    fn end(&mut self) {
        let pipe = self.source.as_ref().filter(|source| !terminal::is_terminal(source.as_fd()));
        self.rest = pipe.and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
    }
}

/// None where it may not be opened, as by who became another user.
fn reopened(side: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", side.as_raw_fd());
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
}

fn set_nonblocking(side: &OwnedFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(side)?;
    Ok(rustix::fs::fcntl_setfl(side, flags | OFlags::NONBLOCK)?)
}

/// What flows between the watcher and the command.
struct Exchange<'a> {
    watcher: Foreground<'a>,
    /// The watcher's side of the command's terminal.
    terminal: Option<OwnedFd>,
    /// Where keys go: the terminal or a pipe.
    keys: Option<OwnedFd>,
    /// Keys that were read and could not be written yet.
    pending: Vec<u8>,
    outlets: Vec<Outlet<'a>>,
    /// Why output was lost that somebody still wanted.
    lost: Option<Errno>,
    signaller: Signaller,
    requests: usize,
}

impl<'a> Exchange<'a> {
    fn new(
        running: &mut Running,
        watcher: Foreground<'a>,
        mut outlets: Vec<Outlet<'a>>,
    ) -> std::io::Result<Self> {
        let terminal = running.terminal.take();
        let keys = match (&terminal, watcher.interactive) {
            (Some(terminal), true) => Some(terminal.try_clone()?),
            _ => running.input.take(),
        };
        // A command that does not read must not keep its output from being read.
        if let Some(keys) = &keys {
            set_nonblocking(keys)?;
        }
        if let Some(terminal) = &terminal {
            outlets.push(Outlet::new(terminal.try_clone()?, watcher.output)?);
        }
        let signaller = running.signaller();
        let pending = Vec::new();
        Ok(Self { watcher, terminal, keys, pending, outlets, lost: None, signaller, requests: 0 })
    }

    /// Until the command has ended and all that it wrote has been shown, or is not waited for any more.
    fn follow(&mut self, running: &Running, signals: &Signals) {
        let mut has_ended = false;
        loop {
            let mut polled = vec![PollFd::from_borrowed_fd(signals.descriptor(), PollFlags::IN)];
            let mut poll_for = |side, flags| {
                polled.push(PollFd::from_borrowed_fd(side, flags));
                polled.len() - 1
            };
            let ended_at = (!has_ended).then(|| poll_for(running.ended(), PollFlags::IN));
            let keys_at =
                self.keys.as_ref().filter(|_| !has_ended).map(|keys| match self.pending.is_empty() {
                    true => poll_for(self.watcher.input, PollFlags::IN),
                    false => poll_for(keys.as_fd(), PollFlags::OUT),
                });
            for (side, flags) in self.outlets.iter().filter_map(Outlet::waits_for) {
                poll_for(side, flags);
            }
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let came = |at: Option<usize>| at.is_some_and(|at| !polled[at].revents().is_empty());
            let (signalled, ended, keys) = (came(Some(0)), came(ended_at), came(keys_at));
            if keys {
                self.pass_keys();
            }
            if signalled {
                let signals = signals.pending();
                if has_ended && signals.iter().any(|signal| ASK_TO_END.contains(signal)) {
                    return;
                }
                self.hand_on(&signals);
            }
            if ended && !has_ended {
                has_ended = true;
                self.outlets.iter_mut().for_each(Outlet::end);
            }
            let is_dry = self.show();
            if has_ended && (is_dry || self.requests >= PATIENCE) {
                return;
            }
        }
    }

    /// Copies what there is; says whether that is all.
    fn show(&mut self) -> bool {
        let mut is_dry = true;
        for number in 0..self.outlets.len() {
            match self.outlets[number].show() {
                Flow::Dry => {}
                Flow::Full => is_dry = false,
                Flow::Lost(reason) => {
                    self.lost = self.lost.or(reason);
                    self.hang_up();
                }
            }
        }
        is_dry
    }

    /// Nobody watches any more. As when a terminal's window is closed: the command is told, and what it writes or reads
    /// there fails; as that into a pipe does.
    fn hang_up(&mut self) {
        if self.terminal.take().is_some() {
            self.keys = None;
            let _ = self.signaller.signal(HUP);
        }
    }

    fn pass_keys(&mut self) {
        if self.pending.is_empty() {
            let mut bytes = [0_u8; 4096];
            match rustix::io::read(self.watcher.input, &mut bytes[..]) {
                Ok(count) if count > 0 => self.pending.extend_from_slice(&bytes[..count]),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The end of the file: the command sees it when the pipe closes.
                _ => {
                    self.keys = None;
                    return;
                }
            }
        }
        let Some(keys) = &self.keys else { return };
        match rustix::io::write(keys, &self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.keys = None,
        }
    }

    fn hand_on(&mut self, signals: &[i32]) {
        for &signal in signals {
            if signal == WINDOW {
                if let (Some(terminal), Ok(size)) = (&self.terminal, terminal::size(self.watcher.input)) {
                    let _ = terminal::set_size(terminal.as_fd(), size);
                }
                continue;
            }
            self.requests += usize::from([INT, TERM, QUIT].contains(&signal));
            let _ =
                if self.requests >= PATIENCE { self.signaller.kill() } else { self.signaller.signal(signal) };
        }
    }
}
