//! Running a command for someone who watches: keys go in, output comes out, signals and the window's size are handed on.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kiln_sys::terminal::{self, RawMode, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::RuntimeError;
use crate::launch::{Exit, Finished, Interrupt, Running, Signaller, Stream, Streams, start_interruptibly};
use crate::launcher::Launcher;
use crate::recorder::{LowerFiles, Ownership};
use crate::sandbox::{Sandbox, Terminal};
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
    let duplicate = |side: BorrowedFd<'_>| side.try_clone_to_owned().map(Stream::Descriptor);
    let input = match watcher.interactive {
        false => Stream::Null,
        // The command has a session of its own, which may not read another session's terminal.
        true if watched => Stream::Pipe,
        true => duplicate(watcher.input).map_err(failed("pass standard input"))?,
    };
    let streams = Streams {
        input,
        output: duplicate(watcher.output).map_err(failed("pass standard output"))?,
        error: duplicate(watcher.error).map_err(failed("pass standard error"))?,
    };
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
        Exchange::new(&mut running, watcher).map_err(failed("follow the command's terminal"))?;
    exchange.hand_on(&early.came.take());
    exchange.follow(&running, &signals);
    drop(raw);
    running.wait()
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

/// What flows between the watcher and the command.
struct Exchange<'a> {
    watcher: Foreground<'a>,
    /// The watcher's side of the command's terminal.
    terminal: Option<OwnedFd>,
    /// Where keys go: the terminal or a pipe.
    keys: Option<OwnedFd>,
    /// Keys that were read and could not be written yet.
    pending: Vec<u8>,
    /// Output that was read and could not be shown yet.
    unshown: Vec<u8>,
    signaller: Signaller,
    requests: usize,
}

impl<'a> Exchange<'a> {
    fn new(running: &mut Running, watcher: Foreground<'a>) -> std::io::Result<Self> {
        let terminal = running.terminal.take();
        let keys = match (&terminal, watcher.interactive) {
            (Some(terminal), true) => Some(terminal.try_clone()?),
            _ => running.input.take(),
        };
        // A command that does not read must not keep its output from being read.
        for side in terminal.iter().chain(&keys) {
            let flags = rustix::fs::fcntl_getfl(side)?;
            rustix::fs::fcntl_setfl(side, flags | OFlags::NONBLOCK)?;
        }
        let signaller = running.signaller();
        Ok(Self { watcher, terminal, keys, pending: Vec::new(), unshown: Vec::new(), signaller, requests: 0 })
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
            let output_at = match &self.terminal {
                _ if !self.unshown.is_empty() => Some(poll_for(self.watcher.output, PollFlags::OUT)),
                terminal => terminal.as_ref().map(|terminal| poll_for(terminal.as_fd(), PollFlags::IN)),
            };
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let came = |at: Option<usize>| at.is_some_and(|at| !polled[at].revents().is_empty());
            let (signalled, ended) = (came(Some(0)), came(ended_at));
            let (keys, output) = (came(keys_at), came(output_at));
            if output {
                self.show();
            }
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
            has_ended |= ended;
            if has_ended {
                self.show();
                if self.unshown.is_empty() || self.requests >= PATIENCE {
                    return;
                }
            }
        }
    }

    /// Copies what there is of the terminal's output, as far as the watcher takes it at once: signals are heard meanwhile.
    fn show(&mut self) {
        loop {
            if self.unshown.is_empty() && !self.read_output() {
                return;
            }
            let mut room = [PollFd::from_borrowed_fd(self.watcher.output, PollFlags::OUT)];
            if !matches!(poll(&mut room, Some(&Timespec::default())), Ok(1..)) {
                return;
            }
            let at_once = self.unshown.len().min(AT_ONCE);
            match rustix::io::write(self.watcher.output, &self.unshown[..at_once]) {
                Ok(count) => drop(self.unshown.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => return self.hang_up(),
            }
        }
    }

    /// Says whether there was any.
    fn read_output(&mut self) -> bool {
        let Some(terminal) = &self.terminal else { return false };
        let mut bytes = [0_u8; 16 * 1024];
        match rustix::io::read(terminal, &mut bytes[..]) {
            Ok(count) if count > 0 => self.unshown.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: no process has the terminal open any more.
            _ => self.terminal = None,
        }
        !self.unshown.is_empty()
    }

    /// Nobody watches any more. As when a terminal's window is closed: the command is told, and what it writes or reads
    /// there fails.
    fn hang_up(&mut self) {
        self.unshown.clear();
        self.terminal = None;
        self.keys = None;
        let _ = self.signaller.signal(HUP);
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
