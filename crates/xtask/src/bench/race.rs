//! Running a workload: each engine in turn, again and again, and what comes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::engines::{Engine, Task};
use super::figures;
use super::inputs;
use super::measure;
use super::options::Size;
use super::outcome::{Measured, Outcome, Row, Same};
use super::same;
use super::workload::{Check, Start, Workload};

/// What a run may take, and how much of it is over.
pub(crate) struct Clock {
    started: Instant,
    budget: Option<Duration>,
    /// What an earlier run took for what this one has to do.
    expected: Option<Duration>,
    all: usize,
    left: usize,
}

impl Clock {
    pub(crate) fn start(budget: Option<Duration>, expected: Option<Duration>, workloads: usize) -> Self {
        Self { started: Instant::now(), budget, expected, all: workloads, left: workloads }
    }

    /// Seconds that the workload at hand may take: its share of what is left.
    fn allowance(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let share = |budget: Duration| {
            budget.saturating_sub(self.started.elapsed()).as_secs_f64() / self.left.max(1) as f64
        };
        self.budget.map_or(6.0, share).clamp(4.0, 60.0)
    }

    /// `12/50, 8 of about 30 min`
    fn told(&self) -> String {
        let minutes = |time: Duration| format!("{:.0}", time.as_secs_f64() / 60.0);
        let about = self.expected.map_or_else(String::new, |time| format!(" of about {}", minutes(time)));
        format!("{}/{}, {}{about} min", self.all - self.left, self.all, minutes(self.started.elapsed()))
    }
}

/// The engines and where they work.
pub(crate) struct Race {
    /// kiln first.
    pub(crate) engines: Vec<Box<dyn Engine>>,
    /// What each engine's store was prepared for.
    prepared: Vec<Option<String>>,
    place: PathBuf,
    size: Size,
    clock: Clock,
    /// Waited before a repeat that begins with an emptied store.
    rest: Duration,
    /// Files are changed to something new each time.
    turn: usize,
}

/// Seconds. What ends sooner may do so between two looks at its memory, and is looked at more than once.
const BRIEF: f64 = 0.02;

impl Race {
    pub(crate) fn new(
        engines: Vec<Box<dyn Engine>>,
        place: &Path,
        size: Size,
        clock: Clock,
        rest: Duration,
    ) -> Self {
        let prepared = engines.iter().map(|_| None).collect();
        Self { engines, prepared, place: place.to_path_buf(), size, clock, rest, turn: 0 }
    }

    /// Measures a workload: A B A B, then each once more under watch for its memory.
    pub(crate) fn run(&mut self, workload: &Workload) -> Row {
        let mut outcomes: Vec<Outcome> = self
            .engines
            .iter()
            .map(|engine| {
                let able = |tasks| commands(engine.as_ref(), tasks).is_some();
                if able(&workload.tasks) && able(&workload.before) {
                    Outcome::Measured(Measured::default())
                } else {
                    Outcome::Lacking
                }
            })
            .collect();
        let started = Instant::now();
        // A store that is kept is made in the first round alone: the second tells how long one takes.
        let telling = if workload.start == Start::Fresh { 1 } else { 2 };
        let (mut rounds, mut wanted) = (0, usize::MAX);
        while rounds < wanted {
            let began = Instant::now();
            for (number, outcome) in outcomes.iter_mut().enumerate() {
                let Outcome::Measured(measured) = outcome else { continue };
                match self.once(number, workload) {
                    Ok(seconds) => measured.seconds.push(seconds),
                    Err(error) => *outcome = Outcome::Failed(format!("{error:#}")),
                }
            }
            rounds += 1;
            if rounds == telling {
                wanted = self.repeats(workload, began.elapsed().as_secs_f64());
            }
        }
        let same = self.compare(workload, &outcomes);
        for (number, outcome) in outcomes.iter_mut().enumerate() {
            let Outcome::Measured(measured) = outcome else { continue };
            let looks = if measured.seconds.iter().any(|taken| *taken < BRIEF) { 4 } else { 1 };
            match self.watched(number, workload, looks) {
                Ok(memory) => measured.memory = memory,
                Err(error) => *outcome = Outcome::Failed(format!("{error:#}")),
            }
            if let Outcome::Measured(measured) = outcome {
                measured.stored = stored(&self.engines[number].store());
            }
        }
        if let Some(context) = &workload.changes {
            // As it was made, for the workloads to come.
            let _ = inputs::change(context, 0);
        }
        let named = self.engines.iter().map(|engine| engine.name().to_owned());
        let row = Row {
            name: workload.name.clone(),
            group: workload.group().to_owned(),
            title: workload.title.clone(),
            #[expect(clippy::cast_precision_loss, reason = "sizes are small")]
            growth: workload.growth.map(|(curve, size)| (curve.to_owned(), size as f64)),
            results: named.zip(outcomes).collect(),
            same,
            took: started.elapsed().as_secs_f64(),
        };
        self.clock.left = self.clock.left.saturating_sub(1);
        tell(&row, &self.clock);
        row
    }

    /// How often in all, a round of all engines taking so many seconds, with all that is not timed. One more round watches the
    /// memory.
    fn repeats(&self, workload: &Workload, round: f64) -> usize {
        let (least, most) = match self.size {
            Size::Quick => (2, 5),
            Size::Whole if round > 20.0 => (2, 5),
            Size::Whole => (3, 11),
        };
        let most = if workload.start == Start::Fresh { most.min(5) } else { most };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        let fitting = (self.clock.allowance() / round.max(0.001)) as usize;
        fitting.saturating_sub(1).clamp(least, most)
    }

    /// One repeat, timed.
    fn once(&mut self, number: usize, workload: &Workload) -> Result<f64> {
        self.prepare(number, workload)?;
        if workload.start == Start::Fresh {
            std::thread::sleep(self.rest);
        }
        measure::settle();
        let engine = self.engines[number].as_ref();
        let commands = commands(engine, &workload.tasks).context("no such command")?;
        measure::time(commands, &self.log())
    }

    /// The most memory that was seen in so many repeats.
    fn watched(&mut self, number: usize, workload: &Workload, looks: usize) -> Result<u64> {
        let mut most = 0;
        for _ in 0..looks {
            most = most.max(self.watched_once(number, workload)?);
        }
        Ok(most)
    }

    /// One repeat, its memory watched.
    fn watched_once(&mut self, number: usize, workload: &Workload) -> Result<u64> {
        self.prepare(number, workload)?;
        let engine = self.engines[number].as_ref();
        let others: Vec<u32> = self
            .engines
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, engine)| engine.daemons())
            .collect();
        let commands = commands(engine, &workload.tasks).context("no such command")?;
        measure::peak_memory(commands, &self.log(), &engine.daemons(), &others)
    }

    /// Brings an engine's store to where the workload starts.
    fn prepare(&mut self, number: usize, workload: &Workload) -> Result<()> {
        let kept = match &workload.start {
            Start::Fresh => None,
            Start::Kept(name) => Some(name.clone()),
        };
        let log = self.log();
        if kept.is_none() || self.prepared[number] != kept {
            self.prepared[number] = None;
            let images: Vec<_> = workload.images.iter().collect();
            let engine = &mut self.engines[number];
            engine.reset(&images).context("cannot empty the store")?;
            let before = commands(engine.as_ref(), &workload.before)
                .ok_or_else(|| anyhow!("{} cannot be prepared for this", engine.name()))?;
            measure::time(before, &log).context("cannot prepare the store")?;
            self.prepared[number] = kept;
        }
        for task in &workload.tasks {
            if let Task::Save { to, .. } = task {
                let _ = std::fs::remove_file(to);
            }
        }
        if let Some(context) = &workload.changes {
            self.turn += 1;
            inputs::change(context, self.turn)?;
        }
        Ok(())
    }

    /// Whether the peers did what kiln did.
    fn compare(&self, workload: &Workload, outcomes: &[Outcome]) -> BTreeMap<String, Same> {
        let measured = |number: usize| matches!(outcomes[number], Outcome::Measured(_));
        let peers = (1..self.engines.len()).filter(|number| measured(*number));
        if workload.check == Check::Exit {
            return peers
                .filter(|_| measured(0))
                .map(|number| (self.engines[number].name().to_owned(), Same::Exit))
                .collect();
        }
        if !measured(0) || peers.clone().next().is_none() {
            return BTreeMap::new();
        }
        let Some(build) = workload.tasks.iter().find(|task| matches!(task, Task::Build { .. })) else {
            return BTreeMap::new();
        };
        let files = |number: usize| -> Result<_> {
            let archive = self.place.join("compared.tar");
            let _ = std::fs::remove_file(&archive);
            let engine = &self.engines[number];
            if workload.changes.is_some() {
                // Each engine saw another content: what is compared is the last.
                measure::time(
                    commands(engine.as_ref(), std::slice::from_ref(build)).unwrap_or_default(),
                    &self.log(),
                )?;
            }
            engine.export(build, &archive)?;
            let files = same::files(&archive, &self.place.join("compared"));
            let _ = std::fs::remove_file(&archive);
            files
        };
        let own = files(0);
        peers
            .map(|number| {
                let version = self.engines[number].version().unwrap_or_default();
                let same = match (&own, files(number)) {
                    (Ok(own), Ok(other)) => same::compare(own, &other, &version),
                    (Err(error), _) => Same::Unknown(format!("kiln: {error:#}")),
                    (_, Err(error)) => Same::Unknown(format!("{error:#}")),
                };
                (self.engines[number].name().to_owned(), same)
            })
            .collect()
    }

    fn log(&self) -> PathBuf {
        self.place.join("last-output")
    }
}

fn commands(engine: &dyn Engine, tasks: &[Task]) -> Option<Vec<Command>> {
    tasks.iter().map(|task| engine.command(task)).collect()
}

/// Bytes that a directory takes on disk, each file once.
fn stored(directory: &Path) -> u64 {
    let mut du = Command::new("du");
    du.args(["--summarize", "--block-size=1"]).arg(directory);
    // du ends with an error when a file went while it looked.
    let text =
        du.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// A line for whoever waits.
fn tell(row: &Row, clock: &Clock) {
    let mut line = format!("[{}] {:<28}", clock.told(), row.name);
    let kiln = row.median("kiln");
    for (name, outcome) in &row.results {
        let told = match outcome {
            Outcome::Measured(measured) => {
                let median = figures::median(&measured.seconds);
                let against = match (kiln, median) {
                    (Some(kiln), Some(median)) if name != "kiln" => {
                        format!(" ({})", figures::ratio(median / kiln))
                    }
                    _ => String::new(),
                };
                format!(
                    "{}{against} {}",
                    median.map_or_else(String::new, figures::seconds),
                    figures::bytes(measured.memory)
                )
            }
            Outcome::Lacking => "-".to_owned(),
            Outcome::Failed(error) => format!("FAILED {error}"),
        };
        line.push_str(&format!("  {name} {told}"));
    }
    for (peer, same) in &row.same {
        match same {
            Same::Files(_) | Same::Exit => {}
            Same::Excused { count, reason, .. } => {
                line.push_str(&format!("\n    {count} files excused: {reason}"));
            }
            Same::Differs { count, first } => {
                line.push_str(&format!("\n    {count} files differ from {peer}: {first:?}"));
            }
            Same::Unknown(reason) => line.push_str(&format!("\n    not compared with {peer}: {reason}")),
        }
    }
    println!("{line}");
}
