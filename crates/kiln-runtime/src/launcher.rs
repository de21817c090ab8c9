//! Starting inits, if need be before it is known what they are to set up.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kiln_sys::process::{self, Child, Launch, Namespaces, Starting};
use kiln_sys::terminal;
use rustix::fs::{Mode, OFlags};

use crate::cgroup::CommandCgroup;
use crate::error::RuntimeError;
use crate::init::Outline;
use crate::sandbox::{Confinement, Isolation, Network};
use crate::wire::Wire;

/// Starts the sandboxes of one kiln command and holds what they share: a cgroup, and an init that waits for the next of
/// them. To be dropped when all of them have ended.
#[derive(Debug, Default)]
pub struct Launcher {
    // Before the cgroup, which is removed when nothing lives in it.
    ahead: Mutex<Option<Ahead>>,
    cgroup: CommandCgroup,
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

    /// Begins to start the init of a sandbox that is to come, unless one waits already. Nothing waits for it, and nothing
    /// is said if it fails: who needs it starts another.
    pub fn expect(&self, confinement: Confinement) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.is_none() {
            *ahead = self.launch(confinement).ok().map(|init| Ahead { confinement, init: Some(init) });
        }
    }

    /// The one that waits, if it is of that kind, or else a new one.
    pub(crate) fn init(&self, confinement: Confinement) -> Result<Init, RuntimeError> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = ahead.take_if(|ahead| ahead.confinement == confinement);
        drop(ahead);
        match fitting.and_then(|mut ahead| ahead.init.take()) {
            Some(init) => Ok(init),
            None => self.launch(confinement),
        }
    }

    /// A new one.
    pub(crate) fn launch(&self, confinement: Confinement) -> Result<Init, RuntimeError> {
        let set_up = |step: &str| {
            let step = step.to_owned();
            move |source| RuntimeError::SetUp { step, detail: String::new(), source }
        };
        let (cgroup, membership) =
            self.cgroup.admit(confinement).map_err(set_up("enter the command's cgroup"))?;
        let (control, far_control) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| set_up("make a control socket")(errno.into()))?;
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
        };
        let starting = launch.start().map_err(|source| RuntimeError::Launch { source })?;
        Ok(Init { starting, control })
    }
}

/// Streams to begin with.
fn nothing() -> io::Result<[OwnedFd; 3]> {
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

/// An init that was started before it was needed. Dropping it ends it.
#[derive(Debug)]
struct Ahead {
    confinement: Confinement,
    init: Option<Init>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(init) = self.init.take()
            && let Ok(child) = init.starting.wait()
        {
            let _ = child.signal(KILL);
            let _ = child.wait();
        }
    }
}

const KILL: i32 = 9;

/// An init that waits to be told what to set up.
#[derive(Debug)]
pub(crate) struct Init {
    starting: Starting,
    control: OwnedFd,
}

impl Init {
    /// Waits until it runs.
    pub(crate) fn started(self) -> Result<(Child, OwnedFd), RuntimeError> {
        let child = self.starting.wait().map_err(|source| RuntimeError::Launch { source })?;
        Ok((child, self.control))
    }
}

/// Tells an init what to set up, and gives it the command's streams. That it has ended is no error here: what it reported
/// before is still to be read.
pub(crate) fn hand_over(
    control: BorrowedFd<'_>,
    description: &OwnedFd,
    streams: &[OwnedFd; 3],
) -> io::Result<()> {
    let [input, output, error] = streams;
    let descriptors = [description.as_fd(), input.as_fd(), output.as_fd(), error.as_fd()];
    match terminal::send_with_descriptors(control, b"!", &descriptors) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(())
        }
        sent => sent,
    }
}
