//! The picture of all steps of a build.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::log::{self, Lines, sanitise};
use super::{Amount, Event, StepId, TaskState, Unit};
use crate::units::progress_size;

/// Lines kept of each step, for the display and for the report of a failure.
const KEPT: usize = 50;

/// All steps that were named, and the order in which they began.
#[derive(Debug, Default)]
pub(super) struct Steps {
    steps: BTreeMap<StepId, Step>,
    begun: Vec<StepId>,
}

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) tasks: Vec<Task>,
    lines: Lines,
    kept: VecDeque<String>,
    began: Duration,
}

/// Where a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Unseen,
    Running,
    Waiting { awaited: String },
    Cached,
    Done { took: Duration },
    Failed { took: Duration, message: String },
    Cancelled { took: Duration },
}

/// A part of a step that tells how far it is.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) amount: Amount,
    pub(super) began: Duration,
    pub(super) changed: Duration,
}

/// A change, for displays that print changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It runs, or waits.
    Began,
    /// Lines to print, with their times.
    Lines(Vec<String>),
    /// The task of this number changed.
    Task(usize),
    /// It will not change any more, unless it begins again.
    Ended,
}

/// A step that failed and the last it had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailedStep {
    pub(crate) name: String,
    /// The error, without the step.
    pub(crate) message: String,
    /// Its last lines, each with its time.
    pub(crate) lines: Vec<String>,
}

impl Steps {
    /// Takes note of an event and tells what changed.
    pub(super) fn apply(&mut self, at: Duration, event: Event) -> Vec<(StepId, News)> {
        let id = event.step();
        if let Event::Named { step, name } = event {
            self.steps.entry(step).or_insert_with(|| Step::new(&name)).name = log::name(&name);
            return Vec::new();
        }
        let step = self.steps.entry(id).or_insert_with(|| Step::new(&format!("step {id}")));
        if step.state == State::Unseen {
            self.begun.push(id);
            step.began = at;
        }
        let mut news = Vec::new();
        match event {
            Event::Named { .. } => {}
            Event::Started { .. } => {
                step.state = State::Running;
                step.began = at;
                news.push(News::Began);
            }
            Event::Waiting { awaited, .. } => {
                let awaited = sanitise(awaited.as_bytes());
                news.push(News::Began);
                news.push(News::Lines(vec![format!("waiting for {awaited}")]));
                step.state = State::Waiting { awaited };
            }
            Event::Resumed { .. } => step.state = State::Running,
            Event::Log { bytes, .. } => {
                let lines = step.lines.take(&bytes);
                news.extend(step.keep(lines, at));
            }
            Event::Progress { task, amount, .. } => news.push(News::Task(step.progress(&task, amount, at))),
            Event::Cached { .. } => {
                step.state = State::Cached;
                news.push(News::Ended);
            }
            Event::Completed { .. } => news.extend(step.end(at, |took| State::Done { took })),
            Event::Failed { message, .. } => {
                let message = sanitise(message.as_bytes());
                news.extend(step.end(at, |took| State::Failed { took, message }));
            }
            Event::Cancelled { .. } => news.extend(step.end(at, |took| State::Cancelled { took })),
        }
        news.into_iter().map(|news| (id, news)).collect()
    }

    /// The steps that began, in that order.
    pub(super) fn begun(&self) -> impl Iterator<Item = (StepId, &Step)> {
        self.begun.iter().filter_map(|id| self.steps.get(id).map(|step| (*id, step)))
    }

    pub(super) fn get(&self, id: StepId) -> Option<&Step> {
        self.steps.get(&id)
    }

    /// How many steps were named, and how many of them ended.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.steps.values().filter(|step| step.is_over()).count(), self.steps.len())
    }

    /// The steps that failed, in the order in which they began.
    pub(super) fn failed(&self) -> Vec<FailedStep> {
        self.begun()
            .filter_map(|(_, step)| match &step.state {
                State::Failed { message, .. } => Some(FailedStep {
                    name: step.name.clone(),
                    message: message.clone(),
                    lines: step.kept.iter().cloned().collect(),
                }),
                _ => None,
            })
            .collect()
    }
}

impl Step {
    fn new(name: &str) -> Self {
        Self {
            name: log::name(name),
            state: State::Unseen,
            tasks: Vec::new(),
            lines: Lines::default(),
            kept: VecDeque::new(),
            began: Duration::ZERO,
        }
    }

    /// Whether it ended.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.state, State::Unseen | State::Running | State::Waiting { .. })
    }

    /// How long it took, or has taken until now.
    pub(super) fn took(&self, now: Duration) -> Duration {
        match self.state {
            State::Done { took } | State::Failed { took, .. } | State::Cancelled { took } => took,
            State::Cached | State::Unseen => Duration::ZERO,
            State::Running | State::Waiting { .. } => now.saturating_sub(self.began),
        }
    }

    /// The last `count` lines that are not blank, the one that has begun included, without their times.
    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        let rest = self.lines.rest();
        let kept = self.kept.iter().map(|line| line.split_once(' ').map_or(line.as_str(), |(_, text)| text));
        let all = kept.chain(rest.as_deref()).map(str::trim_end).filter(|line| !line.is_empty());
        let mut lines: Vec<String> = all.rev().take(count).map(str::to_owned).collect();
        lines.reverse();
        lines
    }

    fn keep(&mut self, lines: Vec<String>, at: Duration) -> Option<News> {
        if lines.is_empty() {
            return None;
        }
        let time = log_time(at.saturating_sub(self.began));
        let lines: Vec<String> = lines.into_iter().map(|line| format!("{time} {line}")).collect();
        let skip = lines.len().saturating_sub(KEPT);
        self.kept.extend(lines[skip..].iter().cloned());
        self.kept.drain(..self.kept.len().saturating_sub(KEPT));
        Some(News::Lines(lines))
    }

    fn end(&mut self, at: Duration, state: impl FnOnce(Duration) -> State) -> Vec<News> {
        let rest = self.lines.end();
        let lines = self.keep(rest.into_iter().collect(), at);
        self.state = state(at.saturating_sub(self.began));
        lines.into_iter().chain([News::Ended]).collect()
    }

    fn progress(&mut self, name: &str, amount: Amount, at: Duration) -> usize {
        let name = sanitise(name.as_bytes());
        let place = self.tasks.iter().position(|task| task.name == name).unwrap_or_else(|| {
            self.tasks.push(Task { name, amount, began: at, changed: at });
            self.tasks.len() - 1
        });
        self.tasks[place].amount = amount;
        self.tasks[place].changed = at;
        place
    }
}

impl Task {
    /// `transferring context: 1.20MB / 4.42MB 0.3s done`.
    pub(super) fn line(&self) -> String {
        let size = |count: u64| match self.amount.unit {
            Unit::Bytes => progress_size(count),
            Unit::Items => count.to_string(),
        };
        let mut line = self.name.clone();
        match (self.amount.current, self.amount.total) {
            (current, Some(total)) => line.push_str(&format!(" {} / {}", size(current), size(total))),
            (0, None) => {}
            (current, None) => line.push_str(&format!(" {}", size(current))),
        }
        let took = self.changed.saturating_sub(self.began);
        if took > Duration::from_millis(50) {
            line.push_str(&format!(" {:.1}s", took.as_secs_f64()));
        }
        if self.amount.state == TaskState::Done {
            line.push_str(" done");
        }
        line
    }
}

impl Event {
    fn step(&self) -> StepId {
        match self {
            Self::Named { step, .. }
            | Self::Started { step }
            | Self::Cached { step }
            | Self::Waiting { step, .. }
            | Self::Resumed { step }
            | Self::Log { step, .. }
            | Self::Progress { step, .. }
            | Self::Completed { step }
            | Self::Failed { step, .. }
            | Self::Cancelled { step } => *step,
        }
    }
}

/// Seconds with the digits that a line of a log needs: `0.123`, `12.35`, `123.4`.
fn log_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let digits = match time.as_secs() {
        0..10 => 3,
        10..100 => 2,
        _ => 1,
    };
    format!("{seconds:.digits$}")
}
