//! The entry: workers that take tasks from the schedule until the targets are there.

use std::any::Any;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use crate::schedule::{Known, Schedule, Task};
use crate::step::{Step, Steps};
use crate::{Cancel, Context, Event, Events, Executor, Graph, Key, Records, Stop, VertexId};

/// What is to be solved.
#[derive(Debug, Clone)]
pub struct Request<'a, O> {
    /// The graph
    pub graph: &'a Graph<O>,
    /// Whose results are wanted, data included
    pub targets: &'a [VertexId],
    /// Which vertices must not use records
    pub no_cache: NoCache,
    /// How many operations may run at once
    pub parallelism: NonZeroUsize,
}

/// Which vertices must not use records. Their results are recorded all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// None: all may use records.
    #[default]
    None,
    /// All
    All,
    /// These
    Vertices(BTreeSet<VertexId>),
}

impl NoCache {
    /// Whether this vertex must not use records.
    pub fn covers(&self, vertex: VertexId) -> bool {
        match self {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Vertices(vertices) => vertices.contains(&vertex),
        }
    }
}

/// How a vertex got its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was recorded before.
    Record,
    /// Another vertex of this solve with the same key was executed.
    Vertex(VertexId),
    /// Another solve, mostly another process, executed it while this one waited.
    OtherProcess,
    /// It was executed.
    Executed,
}

/// The results of a solve, by vertex; vertices that no target needs have none.
#[derive(Debug, Clone)]
pub struct Solution<R> {
    solved: Vec<Option<Solved<R>>>,
}

#[derive(Debug, Clone)]
struct Solved<R> {
    key: Key,
    result: R,
    origin: Origin,
    present: bool,
    duration: Duration,
}

impl<R> Solution<R> {
    /// The vertex's result. Only of targets, and of what was executed, the data is certain to be present.
    pub fn result(&self, vertex: VertexId) -> Option<&R> {
        self.solved(vertex).map(|solved| &solved.result)
    }

    /// The key that the result was found or recorded under.
    pub fn key(&self, vertex: VertexId) -> Option<Key> {
        self.solved(vertex).map(|solved| solved.key)
    }

    /// How the vertex got its result.
    pub fn origin(&self, vertex: VertexId) -> Option<Origin> {
        self.solved(vertex).map(|solved| solved.origin)
    }

    /// How many operations were executed.
    pub fn executions(&self) -> usize {
        self.solved.iter().flatten().filter(|solved| solved.origin == Origin::Executed).count()
    }

    fn solved(&self, vertex: VertexId) -> Option<&Solved<R>> {
        self.solved.get(vertex.index())?.as_ref()
    }
}

/// Why there is no solution.
#[derive(Debug, thiserror::Error)]
pub enum SolveError<E: std::error::Error + 'static> {
    /// The caller's token was set before the targets were there.
    #[error("canceled")]
    Canceled,
    /// A vertex failed; the others were canceled.
    #[error("{name} failed")]
    Failed {
        /// The vertex that failed first
        vertex: VertexId,
        /// Its name
        name: String,
        /// Why
        #[source]
        error: E,
        /// Vertices that failed after it, before they noticed that they were canceled
        others: Vec<Failure<E>>,
    },
}

/// A vertex that failed.
#[derive(Debug)]
pub struct Failure<E> {
    /// The vertex
    pub vertex: VertexId,
    /// Its name
    pub name: String,
    /// Why
    pub error: E,
}

/// What ends a solve before its targets are there: the caller's token, and the first failure.
#[derive(Debug, Clone)]
pub struct Ending {
    cancel: Cancel,
    stop: Cancel,
}

impl Ending {
    /// That of one solve, which `cancel` ends.
    pub fn new(cancel: &Cancel) -> Ending {
        Ending { cancel: cancel.clone(), stop: cancel.child() }
    }

    /// Set by either: what [`Context::cancel`] gives, for those who work for the solve and have no context.
    pub fn token(&self) -> &Cancel {
        &self.stop
    }
}

/// Gives the results of the targets, executing what has no record.
///
/// The calling thread works too; others are started only when there is more than one thing to do. Events
/// come in a fixed order when `parallelism` is one. With the first failure, or when the token of `ending` is set, no further
/// operation is started and running ones are told to stop; the call returns when they have.
///
/// # Panics
/// When a target is not of the graph, and when the executor or the records panic.
pub fn solve<O, X, S>(
    request: &Request<'_, O>,
    executor: &X,
    records: &S,
    events: &dyn Events,
    ending: &Ending,
) -> Result<Solution<X::Result>, SolveError<X::Error>>
where
    O: Sync,
    X: Executor<O>,
    S: Records<Result = X::Result>,
    X::Error: From<S::Error>,
{
    let _span = kiln_trace::span("solve");
    let workers = Workers {
        steps: Steps { graph: request.graph, executor, records, no_cache: &request.no_cache },
        events,
        ending,
        began: Instant::now(),
        limit: request.parallelism.get(),
        shared: Mutex::new(Shared {
            schedule: Schedule::new(request.graph, request.targets),
            started: 1,
            idle: 0,
            failures: Vec::new(),
            panic: None,
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| workers.work(scope));
    let shared = workers.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    let solution = conclude(request, shared)?;
    // Nothing has needed their data, and nothing will.
    for (vertex, _) in request.graph.vertices() {
        if let Some(&Solved { origin, duration: saved, present: false, .. }) = solution.solved(vertex) {
            events.emit(workers.began.elapsed(), Event::Cached { vertex, origin, saved });
        }
    }
    Ok(solution)
}

fn conclude<O, R: Clone, E: std::error::Error>(
    request: &Request<'_, O>,
    shared: Shared<'_, O, R, E>,
) -> Result<Solution<R>, SolveError<E>> {
    if let Some(panic) = shared.panic {
        resume_unwind(panic);
    }
    let mut failures = shared.failures.into_iter();
    if let Some(Failure { vertex, name, error }) = failures.next() {
        return Err(SolveError::Failed { vertex, name, error, others: failures.collect() });
    }
    let is_there = |target: &VertexId| shared.schedule.known(*target).is_some_and(Known::is_present);
    if !request.targets.iter().all(is_there) {
        return Err(SolveError::Canceled);
    }
    let solved = shared.schedule.into_known().map(|known| {
        known.map(|known| {
            let present = known.is_present();
            let Known { key, result, origin, duration, .. } = known;
            Solved { key, result, origin, present, duration }
        })
    });
    Ok(Solution { solved: solved.collect() })
}

struct Workers<'a, O, X: Executor<O>, S> {
    steps: Steps<'a, O, X, S>,
    events: &'a dyn Events,
    ending: &'a Ending,
    began: Instant,
    limit: usize,
    shared: Mutex<Shared<'a, O, X::Result, X::Error>>,
    changed: Condvar,
}

struct Shared<'a, O, R, E> {
    schedule: Schedule<'a, O, R>,
    /// Threads that work, idle ones included
    started: usize,
    idle: usize,
    failures: Vec<Failure<E>>,
    panic: Option<Box<dyn Any + Send>>,
}

impl<'a, O, X, S> Workers<'a, O, X, S>
where
    O: Sync,
    X: Executor<O>,
    S: Records<Result = X::Result>,
    X::Error: From<S::Error>,
{
    /// What each thread does.
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        while let Some(task) = self.next(scope) {
            let vertex = task.vertex;
            let context =
                Context { vertex, cancel: &self.ending.stop, events: self.events, began: self.began };
            let outcome = catch_unwind(AssertUnwindSafe(|| self.steps.take(task, &context)));
            self.end(&context, outcome);
        }
        // Those who wait for a task learn that there will be none.
        self.changed.notify_all();
    }

    /// Waits for a task; `None` when there will be none.
    fn next<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Option<Task<'a, X::Result>> {
        let mut shared = self.shared();
        loop {
            if self.ending.stop.is_canceled() {
                return None;
            }
            if let Some(task) = shared.schedule.take() {
                if shared.schedule.has_ready() && shared.idle == 0 && shared.started < self.limit {
                    shared.started += 1;
                    scope.spawn(|| self.work(scope));
                }
                return Some(task);
            }
            if !shared.schedule.is_running() {
                return None;
            }
            let _span = kiln_trace::span("wait for other steps");
            shared.idle += 1;
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
            shared.idle -= 1;
        }
    }

    fn end(&self, context: &Context<'_>, outcome: std::thread::Result<Step<X::Result, X::Error>>) {
        let vertex = context.vertex;
        let outcome = match outcome {
            // Whatever it says, it was interrupted.
            Ok(Err(Stop::Failed(_))) if self.ending.cancel.is_canceled() => Ok(Err(Stop::Canceled)),
            outcome => outcome,
        };
        match &outcome {
            Ok(Err(Stop::Failed(error))) => context.emit(Event::Failed { vertex, message: chain(error) }),
            Ok(Err(Stop::Canceled)) => context.emit(Event::Canceled { vertex }),
            Ok(Ok(_)) | Err(_) => {}
        }
        let mut shared = self.shared();
        match outcome {
            Ok(Ok(outcome)) => {
                shared.schedule.end(vertex, outcome);
                self.changed.notify_all();
                return;
            }
            Ok(Err(Stop::Canceled)) => {}
            Ok(Err(Stop::Failed(error))) => {
                let name = self.steps.graph.vertex(vertex).name.clone();
                shared.failures.push(Failure { vertex, name, error });
            }
            Err(panic) => shared.panic = Some(panic),
        }
        shared.schedule.abandon();
        drop(shared);
        self.ending.stop.cancel();
        self.changed.notify_all();
    }

    fn shared(&self) -> MutexGuard<'_, Shared<'a, O, X::Result, X::Error>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error and its sources, separated by colons. What one says of its source is not said again.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
        source = error.source();
    }
    message
}
