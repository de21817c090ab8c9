//! Starting inits, if need be before it is known what they are to set up.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_sys::process::{self, Child, Launch, Lifetime, Namespaces, Starting};
use kiln_sys::terminal;
use rustix::fs::{Mode, OFlags};

use crate::cgroup::CommandCgroup;
use crate::error::RuntimeError;
use crate::init::Outline;
use crate::sandbox::{Confinement, Isolation, Network};
use crate::warden::Warden;
use crate::wire::Wire;

/// Starts the sandboxes of one kiln command and holds what they share: a cgroup, a warden, and an init that waits for the next
/// of them. To be dropped when all of them have ended.
#[derive(Debug, Default)]
pub struct Launcher {
    // Before the cgroup, which is removed when nothing lives in it.
    ahead: Mutex<Option<Ahead>>,
    cgroup: CommandCgroup,
    warden: Warden,
}

impl Launcher {
    /// One that has made nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The cgroup of its sandboxes.
    #[must_use]
    pub fn cgroup(&self) -> &CommandCgroup {
        &self.cgroup
    }

    /// Begins to start the init of a sandbox that is to come, unless one of its kind waits already. Nothing waits for it,
    /// and nothing is said if it fails: who needs it starts another.
    ///
    /// Where there is only `chroot` none is started: it would have nothing to make, and other steps could reach it.
    pub fn expect(&self, confinement: Confinement) {
        if confinement.isolation == Isolation::Chroot {
            return;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.as_ref().is_none_or(|ahead| ahead.confinement != confinement) {
            *ahead = self.launch(confinement).ok().map(|init| Ahead { confinement, init });
        }
    }

    /// The one that waits, if it is of that kind.
    pub(crate) fn waiting(&self, confinement: Confinement) -> Option<Init> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.take_if(|ahead| ahead.confinement == confinement).map(|ahead| ahead.init)
    }

    /// A new one.
    pub(crate) fn launch(&self, confinement: Confinement) -> Result<Init, RuntimeError> {
        let set_up = |step: &str| {
            let step = step.to_owned();
            move |source| RuntimeError::SetUp { step, detail: String::new(), source }
        };
        let (cgroup, membership) =
            self.cgroup.admit(confinement).map_err(set_up("enter the command's cgroup"))?;
        let (control, far_control) = socket_pair().map_err(set_up("make a control socket"))?;
        let outline = Outline { confinement, membership }.encode();
        terminal::send_with_descriptors(control.as_fd(), &outline, &[])
            .map_err(set_up("pass the sandbox's outline"))?;
        let (executable, _) = process::own_executable().map_err(set_up("protect kiln's own program"))?;
        let [input, output, error] = nothing().map_err(set_up("open /dev/null"))?;
        let launch = Launch {
            executable,
            arguments: vec![CString::from(c"kiln-init")],
            namespaces: namespaces(confinement),
            cgroup,
            descriptors: vec![input, output, error, far_control],
            lifetime: Lifetime::Starters,
        };
        let starting = launch.start().map_err(|source| RuntimeError::Launch { source })?;
        // After the init, which somebody waits for.
        self.warden.begin().map_err(set_up("start the warden"))?;
        Ok(Init(Some((starting, control))))
    }

    /// Has an init killed if this process dies, whatever it becomes.
    pub(crate) fn watch(&self, init: &Arc<Child>) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::SetUp {
            step: "start the warden".to_owned(),
            detail: String::new(),
            source,
        };
        self.warden.watch(init).map_err(failed)
    }
}

/// Two ends, by which messages and descriptors go.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Streams to begin with.
pub(crate) fn nothing() -> io::Result<[OwnedFd; 3]> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok([null.try_clone()?, null.try_clone()?, null])
}

fn namespaces(confinement: Confinement) -> Namespaces {
    match confinement.isolation {
        Isolation::Chroot => Namespaces::default(),
        Isolation::Namespaces => Namespaces {
            mount: true,
            pid: true,
            ipc: true,
            uts: true,
            network: confinement.network == Network::None,
        },
    }
}

/// An init that was started before it was needed.
#[derive(Debug)]
struct Ahead {
    confinement: Confinement,
    init: Init,
}

const KILL: i32 = 9;

/// An init that waits to be told what to set up. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Init(Option<(Starting, OwnedFd)>);

impl Init {
    /// Waits until it runs.
    pub(crate) fn started(mut self) -> Result<(Child, OwnedFd), RuntimeError> {
        let taken = || RuntimeError::Launch { source: io::ErrorKind::NotFound.into() };
        let (starting, control) = self.0.take().ok_or_else(taken)?;
        let child = starting.wait().map_err(|source| RuntimeError::Launch { source })?;
        Ok((child, control))
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if let Some((starting, _control)) = self.0.take()
            && let Ok(child) = starting.wait()
        {
            let _ = child.signal(KILL);
            let _ = child.wait();
        }
    }
}

/// Whether an init read what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing says that it did not.
    Read,
    /// It ended before that, and has touched nothing.
    Unread,
}

/// Which of a command's three streams kiln made for it, a bit each: those become its user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MadeStreams(pub(crate) u8);

impl MadeStreams {
    /// All three.
    pub(crate) const ALL: Self = Self(0b111);

    pub(crate) fn has(self, number: usize) -> bool {
        self.0 & (1 << number) != 0
    }
}

/// Tells an init what to set up, and gives it the command's streams. That it has ended is no error: what it reported before is
/// still to be read.
pub(crate) fn hand_over(
    control: BorrowedFd<'_>,
    description: &OwnedFd,
    (streams, made): (&[OwnedFd; 3], MadeStreams),
) -> io::Result<Told> {
    let [input, output, error] = streams;
    let descriptors = [description.as_fd(), input.as_fd(), output.as_fd(), error.as_fd()];
    match terminal::send_with_descriptors(control, &[made.0], &descriptors) {
        Ok(()) => Ok(Told::Read),
        Err(error) if is_hang_up(&error) => Ok(Told::Unread),
        Err(error) => Err(error),
    }
}

/// Whether the other side of a socket was closed. That it was before all was read comes first, once, and then what it said.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
