//! Progress as lines, each with the number of its step: for pipes, files and logs.
//!
//! One step has the floor at a time. Lines of the others wait until they get it, so that what belongs together
//! stands together; nobody waits for long.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::steps::{News, State, Step, Steps};
use super::{Display, StepId, TaskState};

/// A step keeps the floor this long while others wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// With this many lines waiting a step gets the floor at once.
const CROWDED: usize = 1000;
/// A task is told about again after this share of its total, or after `PATIENCE`.
const SHARE: f64 = 0.05;

/// The display.
#[derive(Debug, Default)]
pub(super) struct Plain {
    text: String,
    numbers: BTreeMap<StepId, usize>,
    waiting: BTreeMap<StepId, Vec<String>>,
    floor: Option<Floor>,
    told: BTreeMap<(StepId, usize), (Duration, u64)>,
}

/// Who speaks, and since when.
#[derive(Debug, Clone, Copy)]
struct Floor {
    step: StepId,
    since: Duration,
}

impl Display for Plain {
    fn changed(&mut self, steps: &Steps, id: StepId, news: News, at: Duration) {
        let Some(step) = steps.get(id) else { return };
        match news {
            News::Began => {
                self.waiting.entry(id).or_default();
            }
            News::Lines(lines) => self.waiting.entry(id).or_default().extend(lines),
            News::Task(number) => {
                let Some(task) = step.tasks.get(number) else { return };
                let due = match self.told.get(&(id, number)) {
                    None => true,
                    Some((then, current)) => {
                        let total = task.amount.total.unwrap_or(0).max(1) as f64;
                        let more = task.amount.current.saturating_sub(*current) as f64 / total;
                        (task.amount.total.is_some() && more >= SHARE) || at.saturating_sub(*then) >= PATIENCE
                    }
                };
                if due || task.amount.state == TaskState::Done {
                    self.told.insert((id, number), (at, task.amount.current));
                    self.waiting.entry(id).or_default().push(task.line());
                }
            }
            News::Ended => {
                self.take_floor(id, step, at);
                self.print_waiting(id);
                let end = match &step.state {
                    State::Cached => "CACHED".to_owned(),
                    State::Failed { message, .. } => format!("ERROR: {message}"),
                    State::Cancelled { .. } => "CANCELED".to_owned(),
                    _ => format!("DONE {:.1}s", step.took(at).as_secs_f64()),
                };
                self.print(id, &end);
                self.waiting.remove(&id);
                self.floor = None;
                return;
            }
        }
        let speaks = self.floor.is_some_and(|floor| floor.step == id);
        let crowded = self.waiting.get(&id).is_some_and(|lines| lines.len() >= CROWDED);
        if speaks || self.floor.is_none() || crowded {
            self.take_floor(id, step, at);
            self.print_waiting(id);
        }
    }

    fn draw(&mut self, steps: &Steps, now: Duration) -> String {
        let patient = self.floor.is_some_and(|floor| now.saturating_sub(floor.since) < PATIENCE);
        let next =
            self.waiting.iter().filter(|(_, lines)| !lines.is_empty()).max_by_key(|(_, lines)| lines.len());
        if let (false, Some((&id, _))) = (patient, next)
            && let Some(step) = steps.get(id)
        {
            self.take_floor(id, step, now);
            self.print_waiting(id);
        }
        std::mem::take(&mut self.text)
    }

    fn finish(&mut self, steps: &Steps, now: Duration) -> String {
        for id in self.waiting.keys().copied().collect::<Vec<_>>() {
            if let Some(step) = steps.get(id)
                && self.waiting.get(&id).is_some_and(|lines| !lines.is_empty())
            {
                self.take_floor(id, step, now);
                self.print_waiting(id);
            }
        }
        std::mem::take(&mut self.text)
    }
}

impl Plain {
    fn take_floor(&mut self, id: StepId, step: &Step, at: Duration) {
        if self.floor.is_some_and(|floor| floor.step == id) {
            return;
        }
        if let Some(previous) = self.floor {
            self.print(previous.step, "...");
        }
        if !self.numbers.is_empty() {
            self.text.push('\n');
        }
        let next = self.numbers.len() + 1;
        self.numbers.entry(id).or_insert(next);
        self.print(id, &step.name);
        self.floor = Some(Floor { step: id, since: at });
    }

    fn print_waiting(&mut self, id: StepId) {
        let lines = self.waiting.get_mut(&id).map(std::mem::take).unwrap_or_default();
        lines.iter().for_each(|line| self.print(id, line));
    }

    fn print(&mut self, id: StepId, line: &str) {
        let number = self.numbers.get(&id).copied().unwrap_or(0);
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "#{number} {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Amount, Event, Unit};
    use super::*;

    /// Plays events, milliseconds first; a tick follows each.
    fn play(events: Vec<(u64, Event)>) -> String {
        let mut steps = Steps::default();
        let mut plain = Plain::default();
        let mut out = String::new();
        let mut last = Duration::ZERO;
        for (at, event) in events {
            last = Duration::from_millis(at);
            for (id, news) in steps.apply(last, event) {
                plain.changed(&steps, id, news, last);
            }
            out.push_str(&plain.draw(&steps, last));
        }
        out + &plain.finish(&steps, last)
    }

    fn named(step: StepId, name: &str) -> (u64, Event) {
        (0, Event::Named { step, name: name.to_owned() })
    }

    fn log(at: u64, step: StepId, text: &str) -> (u64, Event) {
        (at, Event::Log { step, bytes: text.as_bytes().to_vec() })
    }

    fn task(at: u64, current: u64, state: TaskState) -> (u64, Event) {
        let amount = Amount { current, total: Some(1_000_000), unit: Unit::Bytes, state };
        (at, Event::Progress { step: 1, task: "transferring context:".to_owned(), amount })
    }

    #[test]
    fn a_build() {
        let text = play(vec![
            named(1, "[internal] load build context"),
            named(2, "[1/3] FROM busybox:1.37"),
            named(3, "[2/3] RUN echo before; exit 7"),
            named(4, "[3/3] COPY . ."),
            (1, Event::Started { step: 1 }),
            task(2, 0, TaskState::Running),
            task(3, 10_000, TaskState::Running),
            task(4, 500_000, TaskState::Running),
            task(300, 1_000_000, TaskState::Done),
            (301, Event::Completed { step: 1 }),
            (302, Event::Cached { step: 2 }),
            (303, Event::Started { step: 3 }),
            (304, Event::Waiting { step: 4, awaited: "process 12, which executes the same step".to_owned() }),
            log(426, 3, "before\n\x1b[31merr"),
            log(427, 3, " or\x1b[0m\n"),
            (500, Event::Failed { step: 3, message: "process \"/bin/sh -c echo before; exit 7\" did not complete successfully: exit code: 7".to_owned() }),
            (501, Event::Cancelled { step: 4 }),
        ]);
        insta::assert_snapshot!(text, @r#"
        #1 [internal] load build context
        #1 transferring context: 0B / 1.00MB
        #1 transferring context: 500.00kB / 1.00MB
        #1 transferring context: 1.00MB / 1.00MB 0.3s done
        #1 DONE 0.3s

        #2 [1/3] FROM busybox:1.37
        #2 CACHED

        #3 [2/3] RUN echo before; exit 7
        #3 0.123 before
        #3 0.124 err or
        #3 ERROR: process "/bin/sh -c echo before; exit 7" did not complete successfully: exit code: 7

        #4 [3/3] COPY . .
        #4 waiting for process 12, which executes the same step
        #4 CANCELED
        "#);
    }

    #[test]
    fn a_step_that_waits_for_a_while() {
        let awaited = |text: &str| text.to_owned();
        let text = play(vec![
            named(1, "[1/1] RUN x"),
            (0, Event::Started { step: 1 }),
            (1000, Event::Waiting { step: 1, awaited: awaited("cache mount k, held by process 12") }),
            (3000, Event::Waiting { step: 1, awaited: awaited("cache mount k, held by \x1b[31mprocess 13") }),
            (4000, Event::Resumed { step: 1 }),
            log(4100, 1, "a\n"),
            (4200, Event::Completed { step: 1 }),
        ]);
        insta::assert_snapshot!(text, @r"
        #1 [1/1] RUN x
        #1 waiting for cache mount k, held by process 12
        #1 waiting for cache mount k, held by process 13
        #1 4.100 a
        #1 DONE 4.2s
        ");
    }

    #[test]
    fn taking_turns() {
        let text = play(vec![
            named(1, "one"),
            named(2, "two"),
            (0, Event::Started { step: 1 }),
            (0, Event::Started { step: 2 }),
            log(100, 1, "a\n"),
            log(200, 2, "waits\n"),
            log(300, 1, "b\n"),
            log(5100, 1, "c\n"),
            log(5200, 2, "speaks\n"),
            log(12_345, 1, "d\n"),
            (12_500, Event::Completed { step: 2 }),
            (13_000, Event::Completed { step: 1 }),
        ]);
        insta::assert_snapshot!(text, @r"
        #1 one
        #1 0.100 a
        #1 0.300 b
        #1 5.100 c
        #1 ...

        #2 two
        #2 0.200 waits
        #2 5.200 speaks
        #2 ...

        #1 one
        #1 12.35 d
        #1 ...

        #2 two
        #2 DONE 12.5s

        #1 one
        #1 DONE 13.0s
        ");
    }

    #[test]
    fn a_cached_step_may_run_after_all() {
        let text = play(vec![
            named(1, "[1/1] RUN x"),
            (1, Event::Cached { step: 1 }),
            (5, Event::Started { step: 1 }),
            (105, Event::Completed { step: 1 }),
        ]);
        insta::assert_snapshot!(text, @r"
        #1 [1/1] RUN x
        #1 CACHED

        #1 [1/1] RUN x
        #1 DONE 0.1s
        ");
    }

    #[test]
    fn hostile_steps() {
        let text = play(vec![
            named(1, "RUN <<EOF\necho \x1b[2J\nEOF"),
            (0, Event::Started { step: 1 }),
            log(
                1,
                1,
                "\x1b]0;owned\x07\x1b[1;1H\x1b[2Kroot@host# \u{202e}txt.exe\r\n#1 DONE 0.0s\n\x1b[8mhidden",
            ),
            (2, Event::Failed { step: 1, message: "bad\n#2 fake \x1b[31m".to_owned() }),
        ]);
        insta::assert_snapshot!(text, @r"
        #1 RUN <<EOF echo  EOF
        #1 0.001 root@host# txt.exe
        #1 0.001 #1 DONE 0.0s
        #1 0.002 hidden
        #1 ERROR: bad #2 fake
        ");
    }
}
