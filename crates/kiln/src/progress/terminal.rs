//! Progress that changes in place on a terminal: all steps with their times, the last lines of those that run.

use std::fmt::Write as _;
use std::time::Duration;

use unicode_width::UnicodeWidthChar;

use super::steps::{News, State, Step, Steps};
use super::{Display, StepId};

/// Last lines shown of a running step, where there is room.
const LOG_LINES: usize = 6;

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    Used,
    Unused,
}

/// The display.
pub(super) struct Terminal {
    size: Box<dyn Fn() -> Size + Send>,
    colours: Colours,
    /// Widths of the lines on the screen, which are painted over next.
    painted: Vec<usize>,
}

/// What a line is, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Head,
    Running,
    Done,
    Failed,
    Stopped,
    Faint,
}

/// A line of the picture.
#[derive(Debug)]
struct Line {
    tone: Tone,
    text: String,
    /// What stands at the right edge.
    right: String,
}

impl Display for Terminal {
    fn changed(&mut self, _: &Steps, _: StepId, _: News, _: Duration) {}

    fn draw(&mut self, steps: &Steps, now: Duration) -> String {
        let size = (self.size)();
        // Below the picture one row stays free for the cursor.
        let lines = picture(steps, now, Room::Rows(size.rows.saturating_sub(1)));
        self.paint(&lines, size)
    }

    fn finish(&mut self, steps: &Steps, now: Duration) -> String {
        let size = (self.size)();
        // Where there was no step there is nothing to show: a build that is refused, or one of the config alone.
        match steps.counts() {
            (_, 0) if self.painted.is_empty() => String::new(),
            (_, 0) => self.paint(&[], size),
            _ => self.paint(&picture(steps, now, Room::Unlimited), size),
        }
    }
}

impl Terminal {
    pub(super) fn new(size: Box<dyn Fn() -> Size + Send>, colours: Colours) -> Self {
        Self { size, colours, painted: Vec::new() }
    }

    /// The bytes that replace the picture on the screen by this one.
    fn paint(&mut self, lines: &[Line], size: Size) -> String {
        let columns = size.columns.max(1);
        // A terminal that became narrower has wrapped what is on it.
        let rows: usize = self.painted.iter().map(|width| width.div_ceil(columns).max(1)).sum();
        let mut out = String::from("\x1b[?25l");
        match rows.min(size.rows.saturating_sub(1)) {
            0 => {}
            up => {
                let _ = write!(out, "\x1b[{up}A");
            }
        }
        out.push('\r');
        self.painted.clear();
        for line in lines {
            let text = fit(line, columns);
            self.painted.push(width(&text));
            match (self.colours, line.tone.code()) {
                (Colours::Used, Some(code)) => {
                    let _ = write!(out, "\x1b[{code}m{text}\x1b[0m");
                }
                _ => out.push_str(&text),
            }
            out.push_str("\x1b[K\n");
        }
        out.push_str("\x1b[J\x1b[?25h");
        out
    }
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Head | Self::Running => None,
            Self::Done => Some("34"),
            Self::Failed => Some("31"),
            Self::Stopped => Some("33"),
            Self::Faint => Some("2"),
        }
    }
}

/// How many rows a picture may have.
#[derive(Debug, Clone, Copy)]
enum Room {
    Rows(usize),
    Unlimited,
}

fn picture(steps: &Steps, now: Duration, room: Room) -> Vec<Line> {
    let (over, all) = steps.counts();
    let finished = if matches!(room, Room::Unlimited) && over == all && over > 0 { " FINISHED" } else { "" };
    let counts = if all > 0 { format!(" ({over}/{all}){finished}") } else { String::new() };
    let head = Line {
        tone: Tone::Head,
        text: format!("[+] Building {:.1}s{counts}", now.as_secs_f64()),
        right: String::new(),
    };
    let begun: Vec<&Step> = steps.begun().map(|(_, step)| step).collect();
    let blocks: Vec<Vec<Line>> = match room {
        Room::Unlimited => begun.iter().map(|step| block(step, now, 0)).collect(),
        Room::Rows(rows) => fitting(&begun, now, rows.saturating_sub(1)),
    };
    std::iter::once(head).chain(blocks.into_iter().flatten()).collect()
}

/// The blocks that fit: running steps before ended ones, later before earlier, in the order in which they began.
fn fitting(begun: &[&Step], now: Duration, rows: usize) -> Vec<Vec<Line>> {
    let running = begun.iter().filter(|step| !step.is_over()).count();
    let quiet: usize =
        begun.iter().filter(|step| !step.is_over()).map(|step| block(step, now, 0).len()).sum();
    let log_lines = (rows.saturating_sub(quiet) / running.max(1)).min(LOG_LINES);
    let mut left = rows;
    let mut blocks: Vec<Option<Vec<Line>>> = begun.iter().map(|_| None).collect();
    for over in [false, true] {
        for (place, step) in begun.iter().enumerate().rev().filter(|(_, step)| step.is_over() == over) {
            let mut lines = block(step, now, if over { 0 } else { log_lines });
            if over && lines.len() > left {
                lines.truncate(1);
            }
            if lines.len() <= left {
                left -= lines.len();
                blocks[place] = Some(lines);
            }
        }
    }
    blocks.into_iter().flatten().collect()
}

fn block(step: &Step, now: Duration, log_lines: usize) -> Vec<Line> {
    let (tone, mark) = match &step.state {
        State::Cached => (Tone::Done, "CACHED "),
        State::Done { .. } => (Tone::Done, ""),
        State::Failed { .. } => (Tone::Failed, "ERROR "),
        State::Cancelled { .. } => (Tone::Stopped, "CANCELED "),
        State::Waiting { .. } => (Tone::Stopped, "WAITING "),
        State::Unseen | State::Running => (Tone::Running, ""),
    };
    let right = format!("{:.1}s", step.took(now).as_secs_f64());
    let mut lines = vec![Line { tone, text: format!(" => {mark}{}", step.name), right }];
    if let State::Waiting { awaited } = &step.state {
        lines.push(faint(format!(" => => for {awaited}")));
    }
    let task_tone = if step.is_over() { Tone::Done } else { Tone::Running };
    lines.extend(step.tasks.iter().map(|task| Line {
        tone: task_tone,
        text: format!(" => => {}", task.line()),
        right: String::new(),
    }));
    if log_lines > 0 && !step.is_over() {
        lines.extend(step.last_lines(log_lines).into_iter().map(|line| faint(format!(" => => # {line}"))));
    }
    lines
}

fn faint(text: String) -> Line {
    Line { tone: Tone::Faint, text, right: String::new() }
}

/// The line cut to the width, its right part at the edge if there is room for both.
fn fit(line: &Line, columns: usize) -> String {
    // The last column stays free: terminals differ in what they do after writing to it.
    let free = columns.saturating_sub(1);
    let right = width(&line.right) + 1;
    if line.right.is_empty() || free < right + 16 {
        return cut(&line.text, free);
    }
    let text = cut(&line.text, free - right);
    let space = free.saturating_sub(width(&text) + width(&line.right));
    format!("{text}{}{}", " ".repeat(space), line.right)
}

fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    text.chars()
        .take_while(|c| {
            used += columns_of(*c);
            used <= columns
        })
        .collect()
}

/// The columns that a text takes at most, whatever the terminal makes of sequences of characters.
fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// The columns that a character adds at most. The selector of an emoji's coloured form makes the character before it wide
/// on terminals that know of it; parts of what is drawn as one (U+200D) are counted as if they stood apart.
fn columns_of(c: char) -> usize {
    match c {
        '\u{fe0f}' => 1,
        c => c.width().unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::super::{Amount, Event, TaskState, Unit};
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A terminal as far as the display needs one: rows of text that wrap when it becomes narrower.
    struct Screen {
        rows: Vec<String>,
        row: usize,
    }

    impl Screen {
        fn write(&mut self, text: &str) {
            let mut rest = text.chars().peekable();
            let mut column = 0;
            while let Some(c) = rest.next() {
                match c {
                    '\x1b' => {
                        rest.next();
                        let mut parameter = String::new();
                        while let Some(c) = rest.next_if(|c| !c.is_ascii_alphabetic()) {
                            parameter.push(c);
                        }
                        match (rest.next(), parameter.as_str()) {
                            (Some('A'), up) => self.row -= up.parse::<usize>().unwrap(),
                            (Some('K'), _) => self.rows[self.row].truncate(column),
                            (Some('J'), _) => {
                                self.rows[self.row].truncate(column);
                                self.rows.truncate(self.row + 1);
                            }
                            _ => {}
                        }
                    }
                    '\r' => column = 0,
                    '\n' => {
                        self.row += 1;
                        column = 0;
                        if self.row == self.rows.len() {
                            self.rows.push(String::new());
                        }
                    }
                    c => {
                        self.rows[self.row].truncate(column);
                        self.rows[self.row].push(c);
                        column = self.rows[self.row].len();
                    }
                }
            }
        }

        fn shrink(&mut self, columns: usize) {
            let wrap = |row: &String| match row.is_empty() {
                true => vec![String::new()],
                false => row
                    .chars()
                    .collect::<Vec<_>>()
                    .chunks(columns)
                    .map(|part| part.iter().collect())
                    .collect(),
            };
            self.rows = self.rows.iter().flat_map(wrap).collect();
            self.row = self.rows.len() - 1;
        }
    }

    struct Fixture {
        steps: Steps,
        terminal: Terminal,
        screen: Screen,
        columns: Arc<AtomicUsize>,
    }

    impl Fixture {
        fn new(columns: usize, rows: usize) -> Self {
            let width = Arc::new(AtomicUsize::new(columns));
            let seen = Arc::clone(&width);
            let size = Box::new(move || Size { columns: seen.load(Ordering::Relaxed), rows });
            Self {
                steps: Steps::default(),
                terminal: Terminal::new(size, Colours::Unused),
                screen: Screen { rows: vec![String::new()], row: 0 },
                columns: width,
            }
        }

        fn apply(&mut self, at: u64, event: Event) {
            self.steps.apply(Duration::from_millis(at), event);
        }

        fn begin(&mut self, at: u64, step: StepId, name: &str) {
            self.apply(at, Event::Named { step, name: name.to_owned() });
            self.apply(at, Event::Started { step });
        }

        fn log(&mut self, at: u64, step: StepId, text: &str) {
            self.apply(at, Event::Log { step, bytes: text.as_bytes().to_vec() });
        }

        fn draw(&mut self, at: u64) -> String {
            let text = self.terminal.draw(&self.steps, Duration::from_millis(at));
            self.screen.write(&text);
            self.shown()
        }

        fn finish(&mut self, at: u64) -> String {
            let text = self.terminal.finish(&self.steps, Duration::from_millis(at));
            self.screen.write(&text);
            self.shown()
        }

        fn shown(&self) -> String {
            self.screen.rows.join("\n")
        }
    }

    fn amount(current: u64, state: TaskState) -> Amount {
        Amount { current, total: Some(2_000_000), unit: Unit::Bytes, state }
    }

    #[test]
    fn a_build() {
        let mut build = Fixture::new(60, 24);
        build.apply(0, Event::Named { step: 9, name: "exporting to image".to_owned() });
        build.begin(0, 1, "[internal] load build context");
        let task = "transferring context:".to_owned();
        build.apply(
            10,
            Event::Progress { step: 1, task: task.clone(), amount: amount(1_000_000, TaskState::Running) },
        );
        insta::assert_snapshot!(build.draw(100), @r"
        [+] Building 0.1s (0/2)
         => [internal] load build context                      0.1s
         => => transferring context: 1.00MB / 2.00MB
        ");
        build.apply(200, Event::Progress { step: 1, task, amount: amount(2_000_000, TaskState::Done) });
        build.apply(200, Event::Completed { step: 1 });
        build.apply(200, Event::Named { step: 2, name: "[1/3] FROM busybox:1.37".to_owned() });
        build.apply(210, Event::Cached { step: 2 });
        build.begin(300, 3, "[2/3] RUN apt-get update && apt-get install -y a-very-long-package-name");
        build.apply(310, Event::Named { step: 4, name: "[other 2/2] RUN make".to_owned() });
        build.apply(
            310,
            Event::Waiting { step: 4, awaited: "process 12, which executes the same step".to_owned() },
        );
        for line in 1..=9 {
            build.log(400, 3, &format!("\x1b[32mline {line}\x1b[0m\n"));
        }
        build.log(500, 3, "10%\r20%\r");
        insta::assert_snapshot!(build.draw(1500), @r"
        [+] Building 1.5s (2/5)
         => [internal] load build context                      0.2s
         => => transferring context: 2.00MB / 2.00MB 0.2s done
         => CACHED [1/3] FROM busybox:1.37                     0.0s
         => [2/3] RUN apt-get update && apt-get install -y a-v 1.2s
         => => # line 5
         => => # line 6
         => => # line 7
         => => # line 8
         => => # line 9
         => => # 20%
         => WAITING [other 2/2] RUN make                       1.2s
         => => for process 12, which executes the same step
        ");
        build.apply(1550, Event::Resumed { step: 4 });
        assert!(build.draw(1550).contains(" => [other 2/2] RUN make "), "it goes on");
        build.apply(1600, Event::Failed { step: 3, message: "exit code: 100".to_owned() });
        build.apply(1600, Event::Cancelled { step: 4 });
        insta::assert_snapshot!(build.finish(1600), @r"
        [+] Building 1.6s (4/5)
         => [internal] load build context                      0.2s
         => => transferring context: 2.00MB / 2.00MB 0.2s done
         => CACHED [1/3] FROM busybox:1.37                     0.0s
         => ERROR [2/3] RUN apt-get update && apt-get install  1.3s
         => CANCELED [other 2/2] RUN make                      1.3s
        ");
    }

    #[test]
    fn a_build_without_steps_leaves_nothing() {
        let mut refused = Fixture::new(60, 24);
        assert_eq!(refused.terminal.finish(&refused.steps, Duration::from_millis(5)), "");
        insta::assert_snapshot!(refused.draw(100), @"[+] Building 0.1s");
        assert_eq!(refused.finish(200), "");
    }

    #[test]
    fn a_low_terminal() {
        let mut build = Fixture::new(40, 8);
        for step in 1..=9 {
            build.begin(0, step, &format!("step {step}"));
            if step != 2 && step != 8 {
                build.apply(100, Event::Completed { step });
            }
        }
        for line in 1..=9 {
            build.log(100, 2, &format!("line {line}\n"));
        }
        insta::assert_snapshot!(build.draw(200), @r"
        [+] Building 0.2s (7/9)
         => step 2                         0.2s
         => => # line 8
         => => # line 9
         => step 7                         0.1s
         => step 8                         0.2s
         => step 9                         0.1s
        ");
        assert_eq!(build.finish(300).lines().count(), 10);
        let mut build = Fixture::new(40, 1);
        build.begin(0, 1, "step");
        insta::assert_snapshot!(build.draw(200), @"[+] Building 0.2s (0/1)");
    }

    #[test]
    fn a_terminal_that_becomes_narrower() {
        let mut build = Fixture::new(50, 24);
        build.begin(0, 1, "[1/2] RUN something that fills the whole line");
        build.begin(0, 2, "[2/2] RUN 世界世界世界世界世界世界世界世界世界世界世界世界");
        build.draw(100);
        build.columns.store(30, Ordering::Relaxed);
        build.screen.shrink(30);
        insta::assert_snapshot!(build.draw(200), @r"
        [+] Building 0.2s (0/2)
         => [1/2] RUN something  0.2s
         => [2/2] RUN 世界世界世 0.2s
        ");
        build.columns.store(10, Ordering::Relaxed);
        build.screen.shrink(10);
        insta::assert_snapshot!(build.draw(300), @r"
        [+] Build
         => [1/2]
         => [2/2]
        ");
    }

    #[test]
    fn hostile_steps() {
        let mut build = Fixture::new(60, 24);
        build.begin(0, 1, "RUN <<EOF\nprintf '\x1b[2J'\nEOF");
        build.log(0, 1, "\x1b[2J\x1b[1;1H\x1b]0;owned\x07fake prompt$ \u{202e}\x1b[8m\n");
        build.log(0, 1, "\u{9b}31m\x1b[999A\x0c\x0b\x1b[?1049h\n");
        build.log(0, 1, &format!("{}\n", "\x1b[31m".repeat(3_000)));
        build.log(0, 1, &format!("{}\n", "wide 世".repeat(2_000)));
        let raw = build.terminal.draw(&build.steps, Duration::from_millis(100));
        build.screen.write(&raw);
        for line in raw.split('\n') {
            let inner =
                line.trim_start_matches("\x1b[?25l").trim_start_matches('\r').trim_end_matches("\x1b[K");
            assert!(inner == "\x1b[J\x1b[?25h" || !inner.contains(char::is_control), "{inner:?}");
            assert!(inner.width() < 60, "{inner:?}");
        }
        insta::assert_snapshot!(build.draw(100), @r"
        [+] Building 0.1s (0/1)
         => RUN <<EOF printf '' EOF                            0.1s
         => => # fake prompt$
         => => # wide 世wide 世wide 世wide 世wide 世wide 世wide 世w
        ");
    }

    #[test]
    fn sequences_of_characters_stay_within_the_line() {
        for part in ["⚠️", "❤️", "👩‍👩‍👧", "🏳️‍🌈", "1️⃣", "🇩🇪", "👍🏽", "世", "e\u{301}", "لا", "\u{fe0f}", "한"]
        {
            for columns in [60, 61, 62, 63] {
                let mut build = Fixture::new(columns, 24);
                build.begin(0, 1, &part.repeat(50));
                build.log(0, 1, &part.repeat(200));
                let raw = build.terminal.draw(&build.steps, Duration::from_millis(100));
                for line in raw.lines().map(|line| line.trim_end_matches("\x1b[K")).skip(1) {
                    let shown = line.trim_start_matches('\r');
                    let apart: usize = shown.chars().filter_map(UnicodeWidthChar::width).sum();
                    if !shown.starts_with('\x1b') {
                        assert!(shown.width().max(apart) < columns, "{part} at {columns}: {shown:?}");
                    }
                }
                assert!(raw.lines().nth(1).unwrap().ends_with(" 0.1s\x1b[K"), "{raw:?}");
            }
        }
    }

    #[test]
    fn colours() {
        let mut build = Fixture::new(40, 24);
        build.terminal.colours = Colours::Used;
        build.begin(0, 1, "one");
        build.log(0, 1, "text\n");
        build.begin(0, 2, "two");
        build.apply(0, Event::Failed { step: 2, message: "no".to_owned() });
        let raw = build.terminal.draw(&build.steps, Duration::ZERO);
        assert!(raw.contains("\x1b[2m => => # text\x1b[0m"), "{raw:?}");
        assert!(raw.contains("\x1b[31m => ERROR two"), "{raw:?}");
    }
}
