//! The generic build graph.
//!
//! This crate owns vertices and their edges, cache keys and their preimages, the order in which operations run,
//! their deduplication within a process and between processes, cancellation, progress events, and the
//! explanation of a miss. It must never know what a Dockerfile, a layer or a process is: what an operation means
//! is behind [`Executor`], where records are kept is behind [`Records`].
//!
//! The entry is [`solve`]. It visits every vertex that the targets need, in four steps at most:
//!
//! 1. **Identify.** Once the results of its inputs are known, the executor tells the operation's [`Preimage`],
//!    whose digest is the [`Key`].
//! 2. **Look up.** A record with that key is the result. Whether its data still exists does not matter here, so
//!    the vertices above go on at once. A vertex that runs again and gives what it gave before therefore leaves
//!    everything above it cached.
//! 3. **Restore.** A result without data, whose data is needed by a miss above it or by being a target, may be
//!    brought back by the executor.
//! 4. **Execute.** Under a claim on its key, so that of all vertices and processes with that key one runs it.
//!
//! When a result without data had to be made again, the vertices above it are identified again, and what they are
//! made from is the new result. So a solve knows one result for a vertex in the end, and the next solve finds just
//! those.
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as kiln_graph;

mod cancel;
pub mod contract;
mod event;
mod execution;
mod graph;
mod key;
pub mod memory;
mod record;
mod schedule;
#[cfg(test)]
mod simulation;
mod solve;
mod step;
mod value;
mod why;

pub use cancel::{Cancel, OnCancel};
pub use event::{Event, Events, Stream, Unit};
pub use execution::{Context, Done, Executor, Given, Identity, Stop};
pub use graph::{Edge, Graph, Vertex, VertexId};
pub use key::{Input, Key, Operation, OperationError, Preimage, PreimageError};
pub use record::{Claim, Earlier, Entry, Record, Records};
pub use solve::{Ending, Failure, NoCache, Origin, Request, Solution, SolveError, solve};
pub use value::Value;
pub use why::{Reason, reasons};
