//! `--timings` and `--trace`: where a command's time went, as a table and as a file for Perfetto.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use kiln_trace::{Event, Trace};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::failure::{Failure, Kind};
use crate::units;

/// What was asked for, and where it goes.
pub(crate) struct Timings {
    /// Print the table.
    table: bool,
    /// Write the trace to this file, which is open already: a path that cannot be written is told before the work.
    file: Option<(PathBuf, File)>,
    command: Option<kiln_trace::Span>,
}

impl Timings {
    /// Starts recording if the command line asks for it.
    pub(crate) fn start(arguments: &Arguments) -> Result<Self> {
        let file = match arguments.trace() {
            Some(path) => {
                if path.as_os_str() == "-" {
                    let failure = Failure::new(Kind::Usage, "cannot write the trace to standard output");
                    return Err(failure.hint("name a file, or ./- for one of that name").into());
                }
                // What is in it is left alone until there is a trace: the command may read it.
                let mut options = fs_err::OpenOptions::new();
                options.write(true).create(true).truncate(false);
                let file = options.open(path).map_err(|error| failed(path, error))?;
                Some((path.to_path_buf(), file.into_file()))
            }
            None => None,
        };
        let table = arguments.timings();
        let command = (table || file.is_some()).then(|| {
            kiln_trace::start();
            kiln_trace::span(COMMAND)
        });
        Ok(Self { table, file, command })
    }

    /// Writes what was asked for.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.command);
        let Some(trace) = kiln_trace::finish() else { return Ok(()) };
        if self.table {
            crate::output::aside(&table(&trace));
        }
        match self.file {
            Some((path, file)) => write(file, &trace).map_err(|error| failed(&path, error)),
            None => Ok(()),
        }
    }
}

fn write(file: File, trace: &Trace) -> std::io::Result<()> {
    // Pipes and devices cannot be emptied.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    let mut file = BufWriter::new(file);
    serde_json::to_writer(&mut file, &chrome(trace))?;
    file.flush()
}

fn failed(path: &Path, error: std::io::Error) -> anyhow::Error {
    Failure::new(Kind::World, format!("cannot write the trace {}", path.display())).caused_by(error).into()
}

/// The span around everything else.
const COMMAND: &str = "command";

/// The trace event format that Perfetto and chrome://tracing read: one complete event for each span, times in
/// microseconds.
fn chrome(trace: &Trace) -> Value {
    let process = std::process::id();
    let meta = |name: &str, thread: u32, value: &str| json!({"name": name, "ph": "M", "pid": process, "tid": thread, "args": {"name": value}});
    let mut events = vec![meta("process_name", 0, "kiln")];
    events.extend(trace.threads.iter().map(|(number, name)| meta("thread_name", *number, name)));
    events.extend(trace.events.iter().map(|event| {
        let mut arguments = serde_json::Map::new();
        if !event.subject.is_empty() {
            arguments.insert("subject".to_owned(), event.subject.as_str().into());
        }
        for (name, number) in [("count", event.count), ("bytes", event.bytes)] {
            if number > 0 {
                arguments.insert(name.to_owned(), number.into());
            }
        }
        json!({
            "name": event.name, "cat": "kiln", "ph": "X", "pid": process, "tid": event.thread,
            "ts": micros(event.began), "dur": micros(event.took), "args": arguments,
        })
    }));
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What the spans of one name add up to.
#[derive(Default)]
struct Phase {
    own: Duration,
    total: Duration,
    times: u64,
    count: u64,
    bytes: u64,
}

/// The phases, those with most time of their own first, then the threads.
fn table(trace: &Trace) -> String {
    let mut phases: BTreeMap<&str, Phase> = BTreeMap::new();
    let mut threads: BTreeMap<u32, (Duration, Duration)> = BTreeMap::new();
    for (event, own) in trace.events.iter().zip(trace.own_times()) {
        let phase = phases.entry(event.name).or_default();
        phase.own += own;
        phase.total += event.took;
        phase.times += 1;
        phase.count += event.count;
        phase.bytes += event.bytes;
        let (busy, waiting) = threads.entry(event.thread).or_default();
        *(if is_wait(event) { waiting } else { busy }) += own;
    }
    let mut phases: Vec<(&str, Phase)> = phases.into_iter().collect();
    phases.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.own));
    let mut text = format!(
        "\n{} from beginning to end; own: not in another phase of the same thread\n\n{:<22}{:>11}{:>7}{:>11}{:>8}{:>10}{:>10}\n",
        shown(trace.took),
        "phase",
        "own",
        "",
        "total",
        "times",
        "things",
        "bytes"
    );
    for (name, phase) in &phases {
        let part = 100.0 * phase.own.as_secs_f64() / trace.took.as_secs_f64().max(f64::MIN_POSITIVE);
        let count = if phase.count > 0 { phase.count.to_string() } else { String::new() };
        let bytes = if phase.bytes > 0 { units::human_size(phase.bytes) } else { String::new() };
        text.push_str(
            format!(
                "{name:<22}{:>11}{:>7}{:>11}{:>8}{count:>10}{bytes:>10}",
                shown(phase.own),
                format!("{part:.1} %"),
                shown(phase.total),
                phase.times
            )
            .trim_end(),
        );
        text.push('\n');
    }
    text.push_str(&format!("\n{:<22}{:>11}{:>18}\n", "thread", "works", "waits for others"));
    for (number, name) in &trace.threads {
        let (busy, waiting) = threads.get(number).copied().unwrap_or_default();
        text.push_str(&format!("{name:<22}{:>11}{:>18}\n", shown(busy), shown(waiting)));
    }
    text
}

fn is_wait(event: &Event) -> bool {
    event.name.starts_with("wait ")
}

fn shown(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 0.1 => format!("{:.2} ms", seconds * 1e3),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let event = |name, thread, began: u64, took: u64, bytes| Event {
            name,
            subject: if thread == 2 { "[1/2] \"COPY\"".to_owned() } else { String::new() },
            thread,
            began: Duration::from_micros(began),
            took: Duration::from_micros(took),
            count: 0,
            bytes,
        };
        Trace {
            events: vec![
                event(COMMAND, 1, 0, 10_000, 0),
                event("wait for reader", 1, 0, 2_000, 0),
                event("hash context", 1, 4_000, 6_000, 5_000_000),
                event("unpack files", 2, 1_000, 500, 0),
            ],
            threads: vec![(1, "main".to_owned()), (2, "worker 2".to_owned())],
            took: Duration::from_micros(10_000),
        }
    }

    #[test]
    fn the_table_tells_own_time_from_total() {
        insta::assert_snapshot!(table(&trace()), @r"
        10.00 ms from beginning to end; own: not in another phase of the same thread
        
        phase                         own             total   times    things     bytes
        hash context              6.00 ms 60.0 %    6.00 ms       1                 5MB
        command                   2.00 ms 20.0 %   10.00 ms       1
        wait for reader           2.00 ms 20.0 %    2.00 ms       1
        unpack files               500 µs  5.0 %     500 µs       1
        
        thread                      works  waits for others
        main                      8.00 ms           2.00 ms
        worker 2                   500 µs              0 µs
        ");
    }

    #[test]
    fn the_trace_is_in_chromes_format() {
        let text = chrome(&trace()).to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        let events = value["traceEvents"].as_array().unwrap();
        assert_eq!(events.iter().filter(|event| event["ph"] == "M").count(), 3);
        let last = events.last().unwrap();
        assert_eq!(
            (&last["name"], &last["ts"], &last["dur"]),
            (&json!("unpack files"), &json!(1000.0), &json!(500.0))
        );
        assert_eq!(last["args"]["subject"], "[1/2] \"COPY\"");
    }
}
