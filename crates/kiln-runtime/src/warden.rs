//! A process that outlives kiln by a moment, to kill what kiln left running.
//!
//! The kernel kills a sandbox's first process when kiln dies, but forgets to as soon as that process changes its user or gains
//! capabilities: `su` and `gosu` do, and so does every program with a set-user-ID bit. So another process of kiln's, the
//! warden, gets a descriptor of each first process before that becomes the command. When its bell ends then kiln has ended,
//! however that came, and it kills those that live; of what is in their namespaces nothing outlives them.
//!
//! A sandbox costs kiln one message and the warden nothing: messages wait in the socket until many have come, or the end.
//!
//! If the warden itself is killed, the next sandbox that starts finds that out, and another one gets what the first one had.
//!
//! The warden holds nothing of kiln's but its ends of both: no lock, pipe, terminal or directory waits for it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kiln_sys::process::{self, Child, Launch, Lifetime, Namespaces, Starting};
use kiln_sys::terminal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::init::CONTROL;
use crate::launcher::{is_hang_up, nothing, socket_pair};

/// The name under which it is started.
pub(crate) const NAME: &str = "kiln-warden";

const KILL: i32 = 9;

/// The warden of one kiln command, started with its first sandbox.
#[derive(Debug, Default)]
pub(crate) struct Warden(Mutex<Watch>);

/// Who watches, and what.
#[derive(Debug, Default)]
struct Watch {
    post: Option<Post>,
    /// Sandboxes' first processes, and some that have gone since.
    watched: Vec<Weak<Child>>,
}

impl Warden {
    /// Begins to start it, unless it was before. Nothing waits for it.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let mut watch = self.lock();
        if watch.post.is_none() {
            watch.post = Some(Post::new()?);
        }
        Ok(())
    }

    /// From now on a process dies with this one.
    pub(crate) fn watch(&self, process: &Arc<Child>) -> io::Result<()> {
        let mut watch = self.lock();
        let watch = &mut *watch;
        watch.watched.retain(|process| process.strong_count() > 0);
        watch.watched.push(Arc::downgrade(process));
        if let Some(post) = watch.post.as_mut()
            && post.started().is_ok()
        {
            match post.watch(process.pidfd()) {
                Err(error) if is_hang_up(&error) => {}
                // Another one in its place would end it, and with it all that it watches.
                watched => return watched,
            }
        }
        // It was not begun yet, or could not be started; or somebody killed it, and what it watched is nobody's.
        let post = watch.post.insert(Post::new()?);
        watch.watched.iter().filter_map(Weak::upgrade).try_for_each(|process| post.watch(process.pidfd()))
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A warden that was started. It ends when this is dropped, which [`wait_for_wardens`] waits for.
#[derive(Debug)]
struct Post {
    /// By which it gets descriptors.
    socket: OwnedFd,
    /// A pipe that tells it to look for them, and whose end is kiln's.
    bell: OwnedFd,
    sent: usize,
    process: Process,
}

/// So many descriptors wait for the warden at most; a socket holds more than a hundred.
const UNREAD: usize = 32;

/// How often, and after how long, a descriptor is sent again that could not be sent because so many are on their way.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
enum Process {
    Starting(Starting),
    Runs(Child),
    /// It could not be started.
    None,
}

impl Post {
    fn new() -> io::Result<Self> {
        let (socket, far) = socket_pair()?;
        let (hearing, bell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (executable, _) = process::own_executable()?;
        let [input, output, error] = nothing()?;
        let launch = Launch {
            executable,
            arguments: vec![CString::from(c"kiln-warden")],
            namespaces: Namespaces::default(),
            cgroup: None,
            descriptors: vec![input, output, error, far, hearing],
            lifetime: Lifetime::ItsOwn,
        };
        Ok(Self { socket, bell, sent: 0, process: Process::Starting(launch.start()?) })
    }

    fn watch(&mut self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        self.started()?;
        let mut attempts = 0;
        while let Err(error) = terminal::send_with_descriptors(self.socket.as_fd(), b"!", &[pidfd]) {
            // A user may have so many descriptors on their way, in all sockets of all processes.
            if error.raw_os_error() != Some(Errno::TOOMANYREFS.raw_os_error()) || attempts == ATTEMPTS {
                return Err(error);
            }
            attempts += 1;
            self.ring()?;
            std::thread::sleep(PAUSE);
        }
        self.sent += 1;
        if self.sent.is_multiple_of(UNREAD) { self.ring() } else { Ok(()) }
    }

    fn ring(&self) -> io::Result<()> {
        rustix::io::write(&self.bell, b"!")?;
        Ok(())
    }

    /// Waits until it is a program of its own, which nothing that ends kiln ends.
    fn started(&mut self) -> io::Result<()> {
        self.process = match std::mem::replace(&mut self.process, Process::None) {
            Process::Starting(starting) => Process::Runs(starting.wait()?),
            known => known,
        };
        Ok(())
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        let _ = self.started();
        if let Process::Runs(child) = std::mem::replace(&mut self.process, Process::None) {
            ending().push(child);
        }
    }
}

/// Waits until the wardens of this process have ended that are not needed any more; to be called last. Who ends without that
/// leaves them to process 1, which may be one that waits for nobody.
pub fn wait_for_wardens() {
    for warden in ending().drain(..) {
        let _ = warden.wait();
    }
}

/// Those that were told to end. That takes longer than most of what is still to be done then.
fn ending() -> MutexGuard<'static, Vec<Child>> {
    static ENDING: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the warden does. Its signals stay blocked, as they are in every process between its making and its program, so that
/// none but a kill ends it.
pub(crate) fn run() -> ! {
    let (Ok(socket), Ok(bell)) = (process::inherited(CONTROL), process::inherited(CONTROL + 1)) else {
        process::leave(125)
    };
    process::close_from(CONTROL + 2);
    let _ = process::new_session();
    let _ = rustix::process::chdir(c"/");
    let _ = rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK);
    let mut watched: Vec<OwnedFd> = Vec::new();
    loop {
        let rang = rustix::io::read(&bell, &mut [0_u8; 16][..]);
        watched.retain(|pidfd| lives(pidfd.as_fd()));
        while let Ok((1, descriptors)) = terminal::receive_with_descriptors(socket.as_fd(), &mut [0_u8; 1]) {
            watched.extend(descriptors);
        }
        if rang == Ok(0) {
            break;
        }
    }
    for pidfd in &watched {
        let _ = process::send_signal(pidfd.as_fd(), KILL);
    }
    process::leave(0)
}

fn lives(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1))
}
