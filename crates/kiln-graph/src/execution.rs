//! What the graph asks of those who know what operations mean.

use std::time::{Duration, Instant};

use crate::{Cancel, Event, Events, Preimage, Stream, Unit, VertexId};

/// Knows what operations mean. Called from several threads at once.
pub trait Executor<O>: Sync {
    /// What an operation gives. Cheap to clone; names data rather than holding it. As long as a clone lives, data
    /// that is present stays present.
    type Result: Clone + Send + Sync;
    /// Why an operation failed. Errors of the [`crate::Records`] in use must convert into it.
    type Error: std::error::Error + Send + 'static;

    /// Tells everything that decides the operation's result. Reads, hashes; changes nothing: idempotent. Called when the
    /// results of all inputs are known, once more if one of them changes. Data may be missing: that of inputs
    /// whose digests cannot be told without it is asked for with [`Identity::NeedsData`].
    fn preimage(
        &self,
        operation: &O,
        inputs: &[Given<'_, Self::Result>],
        context: &Context<'_>,
    ) -> Result<Identity, Stop<Self::Error>>;

    /// Does the operation. All inputs' data is present. Atomic: without `Ok`, nothing that it made is
    /// seen by others. Called at most once for a key at a time, in all processes that share the records, but
    /// again after a failure. Must look at [`Context::cancel`].
    fn execute(
        &self,
        operation: &O,
        preimage: &Preimage,
        inputs: &[Given<'_, Self::Result>],
        context: &Context<'_>,
    ) -> Result<Done<Self::Result>, Stop<Self::Error>>;

    /// A vertex has a result whose data is present, and was not executed for it: whatever was kept since
    /// [`Executor::preimage`] for its execution is of no more use. Idempotent.
    fn settled(&self, _operation: &O, _context: &Context<'_>) {}

    /// Brings back the data of a result that was recorded earlier, from elsewhere and without executing.
    /// Idempotent, atomic. `None` when that is not possible, and then the operation is executed again.
    fn restore(
        &self,
        _operation: &O,
        _result: &Self::Result,
        _context: &Context<'_>,
    ) -> Result<Option<Self::Result>, Stop<Self::Error>> {
        Ok(None)
    }
}

/// An input's result, as its user gets it.
#[derive(Debug, Clone)]
pub struct Given<'a, R> {
    /// The role that the edge gives it
    pub role: &'a str,
    /// The result
    pub result: R,
    /// Whether the result's data is there
    pub present: bool,
}

/// What an executor can say about an operation's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The preimage
    Known(Preimage),
    /// It cannot be told before the data of these inputs (positions) is present. Asking only for what
    /// is present is a bug of the executor and panics.
    NeedsData(Vec<usize>),
}

/// An operation that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<R> {
    /// The result, its data present
    pub result: R,
    /// What the result really came from, if that is not what [`Executor::preimage`] had said, such as a file
    /// that was changed meanwhile. The record is stored under this one's key.
    pub preimage: Option<Preimage>,
}

impl<R> From<R> for Done<R> {
    fn from(result: R) -> Done<R> {
        Done { result, preimage: None }
    }
}

/// Why an operation did not end well. `?` makes one from an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop<E> {
    /// It was told to stop by the token, and did.
    Canceled,
    /// It failed.
    Failed(E),
}

impl<E> From<E> for Stop<E> {
    fn from(error: E) -> Stop<E> {
        Stop::Failed(error)
    }
}

/// What an operation may ask and tell while it goes on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub(crate) vertex: VertexId,
    pub(crate) cancel: &'a Cancel,
    pub(crate) events: &'a dyn Events,
    pub(crate) began: Instant,
}

impl<'a> Context<'a> {
    /// The vertex that is worked on.
    pub fn vertex(&self) -> VertexId {
        self.vertex
    }

    /// The token that tells the operation to stop: the caller canceled, or another vertex failed.
    pub fn cancel(&self) -> &'a Cancel {
        self.cancel
    }

    /// Shows what the operation wrote.
    pub fn log(&self, stream: Stream, bytes: &[u8]) {
        self.emit(Event::Log { vertex: self.vertex, stream, bytes: bytes.to_vec() });
    }

    /// Shows how far the operation is.
    pub fn progress(&self, current: u64, total: Option<u64>, unit: Unit) {
        self.emit(Event::Progress { vertex: self.vertex, current, total, unit });
    }

    /// Says that the operation waits, for what and for whom. Again, it is for somebody else.
    pub fn waits(&self, awaited: &str) {
        self.emit(Event::Waiting { vertex: self.vertex, awaited: awaited.to_owned() });
    }

    /// Says that the operation no longer waits.
    pub fn resumes(&self) {
        self.emit(Event::Resumed { vertex: self.vertex });
    }

    pub(crate) fn emit(&self, event: Event) {
        self.events.emit(self.elapsed(), event);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
