//! Progress of a build on standard error: what people see while it goes on, and what is left to read afterwards.
//!
//! The build sends [`Event`]s; a thread of its own keeps the picture of all steps ([`steps::Steps`]) and lets a
//! display draw it. Nothing that a step writes reaches a terminal as it is ([`log`]).

mod choice;
pub(crate) mod excerpt;
pub(crate) mod log;
mod plain;
mod steps;
mod terminal;

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::plain::Plain;
pub(crate) use self::steps::FailedStep;
use self::steps::{News, Steps};
use self::terminal::Terminal;
pub(crate) use self::terminal::{Colours, Size};

/// A step of the build: a vertex of the graph, or one of the command's own doings (the context, the image).
pub(crate) type StepId = u64;

/// Something happened to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is such a step. Comes before anything else about it.
    Named { step: StepId, name: String },
    /// It is being executed. May follow `Cached`, when the result is needed and gone.
    Started { step: StepId },
    /// Its result was known.
    Cached { step: StepId },
    /// Somebody else executes the same and is waited for.
    Waiting { step: StepId, holder: String },
    /// It wrote something, to either of its streams; may end anywhere.
    Log { step: StepId, bytes: Vec<u8> },
    /// It got further in one of its tasks.
    Progress { step: StepId, task: String, amount: Amount },
    /// It ended well.
    Completed { step: StepId },
    /// It failed.
    Failed { step: StepId, message: String },
    /// It was interrupted.
    Cancelled { step: StepId },
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) current: u64,
    pub(crate) total: Option<u64>,
    pub(crate) unit: Unit,
    pub(crate) state: TaskState,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Items,
}

/// Whether a task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    Running,
    Done,
}

/// How progress is shown.
pub(crate) enum Mode {
    /// Line after line.
    Plain,
    /// Lines that change in place.
    Terminal { size: Box<dyn Fn() -> Size + Send>, colours: Colours },
    /// Not at all.
    Quiet,
}

/// Draws the steps. Times are counted from the start of the build.
trait Display: Send {
    /// Takes note of a change.
    fn changed(&mut self, steps: &Steps, step: StepId, news: News, at: Duration);
    /// What to write now.
    fn draw(&mut self, steps: &Steps, now: Duration) -> String;
    /// What to write at the very end.
    fn finish(&mut self, steps: &Steps, now: Duration) -> String;
}

struct Quiet;

impl Display for Quiet {
    fn changed(&mut self, _: &Steps, _: StepId, _: News, _: Duration) {}

    fn draw(&mut self, _: &Steps, _: Duration) -> String {
        String::new()
    }

    fn finish(&mut self, _: &Steps, _: Duration) -> String {
        String::new()
    }
}

/// How often a display is drawn at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// A running display.
pub(crate) struct Progress {
    sender: SyncSender<(Duration, Event)>,
    thread: JoinHandle<Steps>,
}

impl Progress {
    /// Starts to show progress on `output`. `started` is the moment that events count from.
    pub(crate) fn start(mode: Mode, output: impl Write + Send + 'static, started: Instant) -> Self {
        // Bounded: a step that floods its output waits for the terminal instead of filling the memory.
        let (sender, receiver) = sync_channel(1024);
        let display: Box<dyn Display> = match mode {
            Mode::Plain => Box::new(Plain::default()),
            Mode::Terminal { size, colours } => Box::new(Terminal::new(size, colours)),
            Mode::Quiet => Box::new(Quiet),
        };
        let thread = std::thread::spawn(move || show(display, output, &receiver, started));
        Self { sender, thread }
    }

    /// A handle to send events with; any number of threads may have one.
    pub(crate) fn sender(&self) -> EventSender {
        EventSender(self.sender.clone())
    }

    /// Draws the last picture and tells what failed. All senders must be gone.
    pub(crate) fn finish(self) -> Vec<FailedStep> {
        drop(self.sender);
        self.thread.join().map(|steps| steps.failed()).unwrap_or_default()
    }
}

/// Sends events to a display.
#[derive(Clone)]
pub(crate) struct EventSender(SyncSender<(Duration, Event)>);

impl EventSender {
    /// Sends `event`, which happened `at` that time after the start.
    pub(crate) fn send(&self, at: Duration, event: Event) {
        // The display is gone only if its thread panicked; the build goes on unseen.
        let _ = self.0.send((at, event));
    }
}

fn show(
    mut display: Box<dyn Display>,
    mut output: impl Write,
    receiver: &Receiver<(Duration, Event)>,
    started: Instant,
) -> Steps {
    let mut steps = Steps::default();
    let mut drawn = Duration::ZERO;
    // A closed standard error must not end the build: what cannot be written is not.
    let mut write = |text: String| {
        if !text.is_empty() {
            let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        }
    };
    loop {
        let wait = INTERVAL.saturating_sub(started.elapsed().saturating_sub(drawn));
        match receiver.recv_timeout(wait) {
            Ok((at, event)) => {
                for (step, news) in steps.apply(at, event) {
                    display.changed(&steps, step, news, at);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = started.elapsed();
        if now.saturating_sub(drawn) >= INTERVAL {
            drawn = now;
            write(display.draw(&steps, now));
        }
    }
    write(display.finish(&steps, started.elapsed()));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_build_from_several_threads() {
        let sink = Sink::default();
        let progress = Progress::start(Mode::Plain, sink.clone(), Instant::now());
        let threads: Vec<_> = (0..4)
            .map(|step| {
                let sender = progress.sender();
                std::thread::spawn(move || {
                    let at = Duration::from_millis(1);
                    sender.send(at, Event::Named { step, name: format!("step {step}") });
                    sender.send(at, Event::Started { step });
                    for line in 0..500 {
                        sender.send(at, Event::Log { step, bytes: format!("line {line}\n").into_bytes() });
                    }
                    sender.send(
                        at,
                        match step {
                            0 => Event::Failed { step, message: "exit code: 7".to_owned() },
                            _ => Event::Completed { step },
                        },
                    );
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let failed = progress.finish();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].name, "step 0");
        assert_eq!(failed[0].lines.last().unwrap(), "0.000 line 499");
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches(" 0.000 line ").count(), 2000);
        assert_eq!(text.matches("DONE 0.0s").count(), 3);
        assert_eq!(text.matches("ERROR: exit code: 7").count(), 1);
    }
}
