//! Where the time of a command goes: spans, recorded only while somebody asked for them.
//!
//! This crate owns the recorder, the one state that is global to a process. It must never print, read the environment,
//! or cost anything when nobody asked: then a span is one load of an atomic.
//!
//! Entry: [`span`] in libraries; [`start`] and [`finish`] in the binary. The names of spans are the words of
//! `docs/architecture.md`, and every name is in one place of the code, so that a table of them can be read.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static RECORDING: AtomicBool = AtomicBool::new(false);
static THREADS: AtomicU32 = AtomicU32::new(0);
static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

thread_local! {
    /// This thread's number; 0 until its first span ends.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Recorded {
    began: Instant,
    events: Vec<Event>,
    threads: Vec<(u32, String)>,
}

/// A span that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was done.
    pub name: &'static str,
    /// With what: a step's name, a path. Empty where there is but one.
    pub subject: String,
    /// The thread's number, as in [`Trace::threads`].
    pub thread: u32,
    /// From [`start`] on.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
    /// How many things it was done with: files, entries, rows. 0 where nothing is counted.
    pub count: u64,
    /// How many bytes went through it. 0 where none are counted.
    pub bytes: u64,
}

/// Everything between [`start`] and [`finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Sorted by thread, then by beginning; of two that begin together the longer comes first.
    pub events: Vec<Event>,
    /// Numbers and names of the threads that had spans.
    pub threads: Vec<(u32, String)>,
    /// From beginning to end.
    pub took: Duration,
}

/// Something that is being done; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    name: &'static str,
    subject: String,
    began: Instant,
    count: u64,
    bytes: u64,
}

/// Begins a span.
#[inline]
pub fn span(name: &'static str) -> Span {
    if RECORDING.load(Ordering::Relaxed) { Span::open(name) } else { Span(None) }
}

impl Span {
    #[cold]
    fn open(name: &'static str) -> Self {
        Self(Some(Box::new(Open { name, subject: String::new(), began: Instant::now(), count: 0, bytes: 0 })))
    }

    /// Says what it is done with. The text is made only while spans are recorded.
    #[inline]
    pub fn of(mut self, subject: impl FnOnce() -> String) -> Self {
        if let Some(open) = &mut self.0 {
            open.subject = subject();
        }
        self
    }

    /// Counts things that it is done with.
    #[inline]
    pub fn count(&mut self, more: usize) {
        if let Some(open) = &mut self.0 {
            open.count += more as u64;
        }
    }

    /// Counts bytes that go through it.
    #[inline]
    pub fn bytes(&mut self, more: u64) {
        if let Some(open) = &mut self.0 {
            open.bytes += more;
        }
    }

    /// As [`Span::bytes`], for a span that lives to the end of its block.
    #[inline]
    pub fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes(bytes);
        self
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            close(*open);
        }
    }
}

#[cold]
fn close(open: Open) {
    let ended = Instant::now();
    let mut guard = recorded();
    let Some(recorded) = &mut *guard else { return };
    let thread = this_thread(recorded, open.name);
    recorded.events.push(Event {
        name: open.name,
        subject: open.subject,
        thread,
        began: open.began.saturating_duration_since(recorded.began),
        took: ended.saturating_duration_since(open.began.max(recorded.began)),
        count: open.count,
        bytes: open.bytes,
    });
}

/// The number of this thread. One without a name is called after what it did first.
fn this_thread(recorded: &mut Recorded, first: &str) -> u32 {
    let mut number = THREAD.get();
    if number == 0 {
        number = THREADS.fetch_add(1, Ordering::Relaxed) + 1;
        THREAD.set(number);
    }
    if !recorded.threads.iter().any(|(known, _)| *known == number) {
        let name = std::thread::current().name().map_or_else(|| format!("{first} ({number})"), str::to_owned);
        recorded.threads.push((number, name));
    }
    number
}

fn recorded() -> MutexGuard<'static, Option<Recorded>> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records spans from now on; what was recorded before is thrown away.
pub fn start() {
    *recorded() = Some(Recorded { began: Instant::now(), events: Vec::new(), threads: Vec::new() });
    RECORDING.store(true, Ordering::Relaxed);
}

/// Stops recording and gives the spans that have ended; `None` if nothing was recorded.
pub fn finish() -> Option<Trace> {
    RECORDING.store(false, Ordering::Relaxed);
    let Recorded { began, mut events, mut threads } = recorded().take()?;
    events.sort_by(|a, b| a.thread.cmp(&b.thread).then(a.began.cmp(&b.began)).then(b.took.cmp(&a.took)));
    threads.sort();
    Some(Trace { events, threads, took: began.elapsed() })
}

impl Trace {
    /// The time that each event spent in no other one of its thread: for each event, in the order of
    /// [`Trace::events`].
    pub fn own_times(&self) -> Vec<Duration> {
        let mut own: Vec<Duration> = self.events.iter().map(|event| event.took).collect();
        // Those that have begun and not ended, the innermost last.
        let mut around: Vec<usize> = Vec::new();
        for (number, event) in self.events.iter().enumerate() {
            while let Some(outer) = around.last().map(|outer| &self.events[*outer])
                && (outer.thread != event.thread || outer.began + outer.took <= event.began)
            {
                around.pop();
            }
            if let Some(outer) = around.last() {
                own[*outer] = own[*outer].saturating_sub(event.took);
            }
            around.push(number);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorder is one for all tests of this process.
    static ONE: Mutex<()> = Mutex::new(());

    fn one_at_a_time() -> MutexGuard<'static, ()> {
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn nothing_is_recorded_unless_it_was_asked_for() {
        let _one = one_at_a_time();
        let _ = finish();
        drop(span("idle").of(|| panic!("made although nobody asked")));
        assert_eq!(finish(), None);
    }

    #[test]
    fn spans_nest_and_count() {
        let _one = one_at_a_time();
        start();
        {
            let mut outer = span("outer").of(|| "all".to_owned());
            outer.count(2);
            drop(span("inner").with_bytes(5));
            std::thread::spawn(|| drop(span("elsewhere"))).join().unwrap();
            drop(span("inner"));
        }
        let trace = finish().unwrap();
        let told: Vec<_> =
            trace.events.iter().map(|e| (e.name, e.subject.as_str(), e.count, e.bytes)).collect();
        assert_eq!(
            told,
            [("outer", "all", 2, 0), ("inner", "", 0, 5), ("inner", "", 0, 0), ("elsewhere", "", 0, 0)]
        );
        assert_eq!(trace.threads.len(), 2);
        let outer = &trace.events[0];
        for inner in &trace.events[1..3] {
            assert!(inner.began >= outer.began && inner.began + inner.took <= outer.began + outer.took);
        }
        let own = trace.own_times();
        assert_eq!(own[0] + own[1] + own[2], outer.took);
        assert_eq!(own[3], trace.events[3].took);
        assert!(trace.took >= outer.took);
    }

    #[test]
    fn a_span_that_outlives_the_recording_is_dropped() {
        let _one = one_at_a_time();
        start();
        let open = span("late");
        assert_eq!(finish().unwrap().events, []);
        drop(open);
        assert_eq!(finish(), None);
    }
}
