//! What the init tells the one who started it, before it becomes the command.

use crate::target::Stubs;
use crate::wire::wire_enum;

/// A message; descriptors may come with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The viewer's side of the terminal comes with this.
    Terminal,
    /// The listener of the recorder's filter comes with this.
    Listener,
    /// All is set up; the command is about to be executed.
    Ready { stubs: Stubs, notes: Vec<String> },
    /// A step failed.
    Failed { step: String, errno: i32, detail: String },
    /// There is no such command.
    NotFound { command: String },
    /// The command cannot be executed.
    NotExecutable { command: String, errno: i32 },
    /// The init is wrong: where, and what it said.
    Panicked { message: String },
}

wire_enum!(Report {
    0 => Terminal,
    1 => Listener,
    2 => Ready { stubs, notes },
    3 => Failed { step, errno, detail },
    4 => NotFound { command },
    5 => NotExecutable { command, errno },
    6 => Panicked { message },
});
