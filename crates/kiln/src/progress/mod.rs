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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// It is being executed. May follow `Cached`, when what it is made from had to be made again.
    Started { step: StepId },
    /// Its result was known.
    Cached { step: StepId },
    /// Others are waited for: `awaited` says for what, and who they are.
    Waiting { step: StepId, awaited: String },
    /// It goes on after that.
    Resumed { step: StepId },
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

/// What is said when a display panics: what it panicked with is above it.
const BROKEN: &str = "kiln: warning: progress is not shown any more: this is a bug in kiln, please report it with the lines above; the build goes on\n";

/// How often a display is drawn at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// A display. Its thread starts when there is something to wait for: what takes no time is shown at the end.
pub(crate) struct Progress {
    stage: Arc<Mutex<Stage>>,
}

/// Where the events go.
enum Stage {
    /// Nothing has been waited for yet.
    Kept { show: Box<Show>, events: Vec<(Duration, Event)> },
    /// To the display's thread.
    Shown { sender: SyncSender<(Duration, Event)>, thread: JoinHandle<Steps> },
    /// Nowhere: it is over.
    Over,
}

impl Progress {
    /// Starts to show progress on `output`. `started` is the moment that events count from.
    pub(crate) fn start(mode: Mode, output: impl Write + Send + 'static, started: Instant) -> Self {
        let changes = matches!(mode, Mode::Terminal { .. });
        let display: Box<dyn Display> = match mode {
            Mode::Plain => Box::new(Plain::default()),
            Mode::Terminal { size, colours } => Box::new(Terminal::new(size, colours)),
            Mode::Quiet => Box::new(Quiet),
        };
        let show = Box::new(Show {
            display,
            output: Box::new(output),
            steps: Steps::default(),
            started,
            drawn: Duration::ZERO,
        });
        let mut stage = Stage::Kept { show, events: Vec::new() };
        if changes {
            stage.begin();
        }
        Self { stage: Arc::new(Mutex::new(stage)) }
    }

    /// A handle to send events with; any number of threads may have one.
    pub(crate) fn sender(&self) -> EventSender {
        EventSender(Arc::clone(&self.stage))
    }

    /// Draws the last picture and tells what failed. Nobody may send any more.
    pub(crate) fn finish(self) -> Vec<FailedStep> {
        let stage = std::mem::replace(&mut *lock(&self.stage), Stage::Over);
        let steps = match stage {
            Stage::Kept { mut show, events } => {
                events.into_iter().for_each(|(at, event)| show.take(at, event));
                show.finish()
            }
            Stage::Shown { sender, thread } => {
                drop(sender);
                thread.join().unwrap_or_else(|_| {
                    // The steps are gone with it; the build is not.
                    let _ = std::io::stderr().write_all(BROKEN.as_bytes());
                    Steps::default()
                })
            }
            Stage::Over => Steps::default(),
        };
        steps.failed()
    }
}

fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// Starts the display's thread, with what was kept.
    fn begin(&mut self) {
        *self = match std::mem::replace(self, Self::Over) {
            Self::Kept { mut show, events } => {
                // Bounded: a step that floods its output waits for the terminal instead of filling the memory.
                let (sender, receiver) = sync_channel(1024);
                let thread = std::thread::spawn(move || {
                    events.into_iter().for_each(|(at, event)| show.take(at, event));
                    show.follow(&receiver)
                });
                Self::Shown { sender, thread }
            }
            begun => begun,
        };
    }
}

/// Sends events to a display.
#[derive(Clone)]
pub(crate) struct EventSender(Arc<Mutex<Stage>>);

impl EventSender {
    /// Sends `event`, which happened `at` that time after the start.
    pub(crate) fn send(&self, at: Duration, event: Event) {
        let mut stage = lock(&self.0);
        if let Stage::Kept { show, events } = &mut *stage {
            let instant =
                matches!(event, Event::Named { .. } | Event::Cached { .. } | Event::Completed { .. });
            events.push((at, event));
            if !instant || show.started.elapsed() >= INTERVAL {
                stage.begin();
            }
            return;
        }
        let Stage::Shown { sender, .. } = &*stage else { return };
        let sender = sender.clone();
        drop(stage);
        // The display is gone only if its thread panicked; the build goes on unseen.
        let _ = sender.send((at, event));
    }
}

/// What draws, and what it has drawn.
struct Show {
    display: Box<dyn Display>,
    output: Box<dyn Write + Send>,
    steps: Steps,
    started: Instant,
    drawn: Duration,
}

impl Show {
    fn take(&mut self, at: Duration, event: Event) {
        for (step, news) in self.steps.apply(at, event) {
            self.ask(|display, steps| {
                display.changed(steps, step, news, at);
                String::new()
            });
        }
    }

    /// Writes what the display says. If it panics it is never asked again: the build and what is known of its steps are worth
    /// more than their picture.
    fn ask(&mut self, question: impl FnOnce(&mut dyn Display, &Steps) -> String) {
        let (display, steps) = (self.display.as_mut(), &self.steps);
        match catch_unwind(AssertUnwindSafe(|| question(display, steps))) {
            Ok(text) => self.write(&text),
            Err(_) => {
                self.display = Box::new(Quiet);
                self.write(BROKEN);
            }
        }
    }

    // A closed standard error must not end the build: what cannot be written is not.
    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush());
        }
    }

    fn follow(mut self, receiver: &Receiver<(Duration, Event)>) -> Steps {
        loop {
            let wait = INTERVAL.saturating_sub(self.started.elapsed().saturating_sub(self.drawn));
            match receiver.recv_timeout(wait) {
                Ok((at, event)) => self.take(at, event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = self.started.elapsed();
            if now.saturating_sub(self.drawn) >= INTERVAL {
                self.drawn = now;
                self.ask(|display, steps| display.draw(steps, now));
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Steps {
        let now = self.started.elapsed();
        self.ask(|display, steps| display.finish(steps, now));
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_display_that_panics_takes_nothing_with_it() {
        struct Broken;
        impl Display for Broken {
            fn changed(&mut self, _: &Steps, _: StepId, _: News, _: Duration) {}

            fn draw(&mut self, _: &Steps, _: Duration) -> String {
                panic!("a test of a display that panics")
            }

            fn finish(&mut self, _: &Steps, _: Duration) -> String {
                panic!("a test of a display that panics")
            }
        }
        let sink = Sink::default();
        let progress = Progress::start(Mode::Quiet, sink.clone(), Instant::now());
        match &mut *lock(&progress.stage) {
            Stage::Kept { show, .. } => show.display = Box::new(Broken),
            _ => panic!("nothing was sent"),
        }
        let sender = progress.sender();
        let at = Duration::from_millis(1);
        sender.send(at, Event::Started { step: 1 });
        std::thread::sleep(INTERVAL * 2);
        sender.send(at, Event::Log { step: 1, bytes: b"the reason\n".to_vec() });
        sender.send(at, Event::Failed { step: 1, message: "exit code: 1".to_owned() });
        let failed = progress.finish();
        assert_eq!(failed[0].lines, ["0.000 the reason"]);
        assert_eq!(String::from_utf8(sink.0.lock().unwrap().clone()).unwrap(), BROKEN, "said once");
    }

    #[test]
    fn what_takes_no_time_needs_no_thread() {
        let sink = Sink::default();
        let progress = Progress::start(Mode::Plain, sink.clone(), Instant::now());
        let sender = progress.sender();
        sender.send(Duration::ZERO, Event::Named { step: 1, name: "FROM a".to_owned() });
        sender.send(Duration::ZERO, Event::Cached { step: 1 });
        assert!(matches!(*lock(&progress.stage), Stage::Kept { .. }));
        assert!(progress.finish().is_empty());
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "#1 FROM a\n#1 CACHED\n");

        let progress = Progress::start(Mode::Plain, sink, Instant::now());
        progress.sender().send(Duration::ZERO, Event::Started { step: 1 });
        assert!(matches!(*lock(&progress.stage), Stage::Shown { .. }));
        progress.finish();
    }
}
