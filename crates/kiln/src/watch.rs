//! From the graph's events to the display's.

use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use kiln_build::Watcher;
use kiln_graph::{Cancel, Event as GraphEvent, Events, Unit as GraphUnit, VertexId};

use crate::progress::{Amount, Event, EventSender, TaskState, Unit};

/// Hands a build's events to the display.
pub(crate) struct Watch {
    sender: EventSender,
    cancel: Cancel,
    /// Signals are waited for from here on.
    interruptible: Once,
}

impl Watch {
    /// Once something is made, an interrupt cancels `cancel`. Before that it ends the process, which leaves a lease at most,
    /// for the next collection.
    pub(crate) fn new(sender: EventSender, cancel: &Cancel) -> Self {
        Self { sender, cancel: cancel.clone(), interruptible: Once::new() }
    }
}

/// The step of a vertex.
fn step(vertex: VertexId) -> u64 {
    vertex.index() as u64
}

/// The step of notes that belong to no vertex.
const NOTES: u64 = u64::MAX;

impl Watcher for Watch {
    fn planned(&self, steps: &[(VertexId, String)]) {
        for (vertex, name) in steps {
            self.sender.send(Duration::ZERO, Event::Named { step: step(*vertex), name: name.clone() });
        }
    }

    fn note(&self, text: &str) {
        let at = Duration::ZERO;
        self.sender.send(at, Event::Named { step: NOTES, name: text.to_owned() });
        self.sender.send(at, Event::Started { step: NOTES });
        self.sender.send(at, Event::Completed { step: NOTES });
    }

    fn works(&self) {
        self.interruptible.call_once(|| {
            if let Err(error) = crate::interrupt::cancel_on_interrupt(&self.cancel) {
                self.note(&format!("an interrupt will end the build at once: {error}"));
            }
        });
    }
}

impl Events for Watch {
    fn emit(&self, at: Duration, event: GraphEvent) {
        let event = match event {
            GraphEvent::Started { vertex, .. } => Event::Started { step: step(vertex) },
            GraphEvent::Cached { vertex, .. } => Event::Cached { step: step(vertex) },
            GraphEvent::WaitingForOtherProcess { vertex, holder, .. } => {
                let awaited = format!("{holder}, which executes the same step");
                Event::Waiting { step: step(vertex), awaited }
            }
            GraphEvent::Waiting { vertex, awaited } => Event::Waiting { step: step(vertex), awaited },
            GraphEvent::Resumed { vertex } => Event::Resumed { step: step(vertex) },
            GraphEvent::Log { vertex, bytes, .. } => Event::Log { step: step(vertex), bytes },
            GraphEvent::Progress { vertex, current, total, unit } => {
                let unit = match unit {
                    GraphUnit::Bytes => Unit::Bytes,
                    _ => Unit::Items,
                };
                let amount = Amount { current, total, unit, state: TaskState::Running };
                Event::Progress { step: step(vertex), task: "copying".to_owned(), amount }
            }
            GraphEvent::Completed { vertex, .. } | GraphEvent::Restored { vertex, .. } => {
                Event::Completed { step: step(vertex) }
            }
            GraphEvent::Failed { vertex, message, .. } => Event::Failed { step: step(vertex), message },
            GraphEvent::Canceled { vertex, .. } => Event::Cancelled { step: step(vertex) },
            _ => return,
        };
        self.sender.send(at, event);
    }
}

/// Keeps a build's events until it is known whether they are to be shown.
#[derive(Default)]
pub(crate) struct Rehearsal {
    kept: Mutex<Vec<Kept>>,
}

enum Kept {
    Planned(Vec<(VertexId, String)>),
    Note(String),
    Event(Duration, GraphEvent),
}

impl Rehearsal {
    fn keep(&self, kept: Kept) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }

    /// Tells it all to another.
    pub(crate) fn repeat(self, watcher: &impl Watcher) {
        for kept in self.kept.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match kept {
                Kept::Planned(steps) => watcher.planned(&steps),
                Kept::Note(text) => watcher.note(&text),
                Kept::Event(at, event) => watcher.emit(at, event),
            }
        }
    }
}

impl Watcher for Rehearsal {
    fn planned(&self, steps: &[(VertexId, String)]) {
        self.keep(Kept::Planned(steps.to_vec()));
    }

    fn note(&self, text: &str) {
        self.keep(Kept::Note(text.to_owned()));
    }
}

impl Events for Rehearsal {
    fn emit(&self, at: Duration, event: GraphEvent) {
        self.keep(Kept::Event(at, event));
    }
}
