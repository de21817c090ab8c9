//! What a build says about itself while it goes on.

use std::time::Duration;

use crate::{Origin, Reason, VertexId};

/// Takes events. `at` is the time since [`crate::solve`] was called.
///
/// Called from several threads, without a lock held; for one vertex the calls come in order. Any
/// `Fn(Duration, Event)` will do.
pub trait Events: Sync {
    /// Takes one event; should not wait for long, since the build waits for it.
    fn emit(&self, at: Duration, event: Event);
}

impl<F: Fn(Duration, Event) + Sync> Events for F {
    fn emit(&self, at: Duration, event: Event) {
        self(at, event);
    }
}

/// Something happened to a vertex.
///
/// A vertex that is executed gives `Missed`, `Started`, then `Completed`, `Failed` or `Canceled`. A vertex that
/// is not gives `Cached`, or `Restored` if its data was gone and needed. Where the data is gone and nothing has needed it,
/// `Cached` comes at the end of a solve that went well.
/// All of that comes again when an input's result was replaced because its data had to be made again. `Log`,
/// `Progress`, `Waiting` and `Resumed` come at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// There is no usable record: the operation is about to be executed.
    Missed {
        /// The vertex
        vertex: VertexId,
        /// What keeps the nearest record from being used; never empty
        reasons: Vec<Reason>,
    },
    /// Execution begins.
    Started {
        /// The vertex
        vertex: VertexId,
    },
    /// The result is known without executing.
    Cached {
        /// The vertex
        vertex: VertexId,
        /// Where the result is from; never [`Origin::Executed`]
        origin: Origin,
        /// How long the execution took that made it
        saved: Duration,
    },
    /// Another solve, mostly another process, executes the same key and is waited for.
    WaitingForOtherProcess {
        /// The vertex
        vertex: VertexId,
        /// Who executes it, as far as is known
        holder: String,
    },
    /// The operation waits for something that others use.
    Waiting {
        /// The vertex
        vertex: VertexId,
        /// What it is, and who uses it as far as is known
        awaited: String,
    },
    /// The operation has what it waited for, or waits no longer.
    Resumed {
        /// The vertex
        vertex: VertexId,
    },
    /// The operation wrote something.
    Log {
        /// The vertex
        vertex: VertexId,
        /// Where to
        stream: Stream,
        /// What; may end in the middle of a line or character
        bytes: Vec<u8>,
    },
    /// The operation got further.
    Progress {
        /// The vertex
        vertex: VertexId,
        /// How much is done
        current: u64,
        /// How much there is, if known
        total: Option<u64>,
        /// Of what
        unit: Unit,
    },
    /// The result's data was brought back without executing.
    Restored {
        /// The vertex
        vertex: VertexId,
        /// How long that took
        duration: Duration,
    },
    /// Execution ended well and its result is recorded.
    Completed {
        /// The vertex
        vertex: VertexId,
        /// How long the execution took
        duration: Duration,
    },
    /// The vertex failed: telling its key, executing it, or looking up or storing its record.
    Failed {
        /// The vertex
        vertex: VertexId,
        /// The error and its sources, on one line
        message: String,
    },
    /// The vertex was interrupted because the build was canceled or another vertex failed.
    Canceled {
        /// The vertex
        vertex: VertexId,
    },
}

impl Event {
    /// The vertex it happened to.
    pub fn vertex(&self) -> VertexId {
        match *self {
            Event::Missed { vertex, .. }
            | Event::Started { vertex }
            | Event::Cached { vertex, .. }
            | Event::WaitingForOtherProcess { vertex, .. }
            | Event::Waiting { vertex, .. }
            | Event::Resumed { vertex }
            | Event::Log { vertex, .. }
            | Event::Progress { vertex, .. }
            | Event::Restored { vertex, .. }
            | Event::Completed { vertex, .. }
            | Event::Failed { vertex, .. }
            | Event::Canceled { vertex } => vertex,
        }
    }
}

/// Where an operation writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// What it has to say
    Output,
    /// What it complains about
    Error,
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes
    Bytes,
    /// Files, layers or other things
    Items,
}
