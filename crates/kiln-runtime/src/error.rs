//! What can go wrong around a sandbox; a command that merely fails is no error.

use std::io;

use crate::launch::Exit;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The kernel did not start a process with these namespaces.
    #[error("cannot start a process in new namespaces: {source}")]
    Launch {
        /// The kernel's answer; `EPERM` where the privilege is missing.
        source: io::Error,
    },
    /// A step between the start of the process and the command failed.
    #[error("cannot {step}: {source}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    SetUp {
        /// The step, as a verb phrase.
        step: String,
        /// What the kernel said besides, empty if nothing.
        detail: String,
        /// The system call's error.
        source: io::Error,
    },
    /// There is no such command in the root. Docker's status for it is 127.
    #[error("{}: command not found", if command.is_empty() { "\"\"" } else { command })]
    CommandNotFound {
        /// As it was given.
        command: String,
    },
    /// The command is there and cannot be executed. Docker's status for it is 126.
    #[error("{command}: cannot execute: {source}")]
    CommandNotExecutable {
        /// As it was given.
        command: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process died before it became the command.
    #[error("the sandbox's first process {} while it was set up", how(*exit))]
    Died {
        /// How.
        exit: Exit,
    },
    /// The process that was to become the command came upon a fault of kiln's own.
    #[error("the sandbox's first process {message}")]
    Panicked {
        /// Where, and what it said: a verb phrase.
        message: String,
    },
    /// The start was given up, as [`crate::Interrupt`] wanted.
    #[error("the start of the sandbox was interrupted")]
    Interrupted,
    /// The process cannot be waited for, signalled or fed.
    #[error("{operation}: {source}")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn how(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("ended with status {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

impl RuntimeError {
    /// The exit status that Docker gives for it: 127, 126, or 125 for what is not the command's fault.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            _ => 125,
        }
    }

    /// Whether the failure is that an overlay cannot be mounted here, so that a copied root would do.
    #[must_use]
    pub fn is_overlay_refused(&self) -> bool {
        use rustix::io::Errno;
        // An upper on a file system that cannot be one, a missing privilege, a kernel without overlays, an old one.
        const REFUSALS: [Errno; 6] =
            [Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::NODEV, Errno::NOTSUP, Errno::NOSYS];
        let Self::SetUp { step, source, .. } = self else { return false };
        step == "mount overlay"
            && REFUSALS.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
    }
}
