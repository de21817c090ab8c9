//! A process over a prepared root: namespaces, mounts, system call filters, capabilities, terminals.
//!
//! Entry: [`Sandbox`], which is a value; [`start`] and [`run`] make it happen. The binary calls [`init_if_asked`] first
//! thing in `main`, since a sandbox's first process is the same program, started again.
//!
//! This crate must never know what an image is. No program of the root runs outside of a sandbox, no descriptor but 0,
//! 1 and 2 reaches the command, nothing stays mounted, and what this machine cannot isolate is said in the notes.
#![forbid(unsafe_code)]

mod capability;
mod cgroup;
mod chroot;
mod error;
mod failure;
mod filesystems;
mod first;
mod foreground;
mod init;
mod launch;
mod launcher;
mod machine;
mod placement;
mod recorder;
mod report;
mod sandbox;
mod seccomp;
mod target;
mod wire;

pub use capability::Capabilities;
pub use cgroup::CommandCgroup;
pub use error::RuntimeError;
pub use foreground::{Foreground, run_in_foreground};
pub use init::init_if_asked;
pub use launch::{
    Exit, Finished, Interrupt, Running, Signaller, Stream, Streams, run, start, start_interruptibly,
};
pub use launcher::Launcher;
pub use machine::{Availability, Cgroups, Machine, capabilities_of_this_machine};
pub use recorder::{Birth, DeviceNode, LowerFile, LowerFiles, Ownership, Record};
pub use sandbox::{
    BindSource, Confinement, FirstProcess, Isolation, Mount, MountKind, Network, OwnershipMode, Process,
    ProvidedFile, RootSource, Sandbox, Security, Terminal,
};
pub use target::{Moment, Stub, StubKind, Stubs, TouchedParent};
