//! `--trace` and `--timings`: what they write, and that nothing changes without them.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Spans that stand around others and say nothing themselves.
const AROUND: [&str; 2] = ["command", "solve"];

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let context = directory.path().join("context");
        fs_err::create_dir_all(context.join("src")).expect("made");
        for number in 0..300 {
            fs_err::write(context.join(format!("src/{number}")), "text\n".repeat(500)).expect("written");
        }
        fs_err::write(context.join("Dockerfile"), "FROM scratch\nWORKDIR /w\nCOPY src .\n").expect("written");
        Self { directory }
    }

    fn kiln(&self, words: &[&str]) -> Output {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(words).env("KILN_ROOT", self.directory.path().join("store"));
        kiln.current_dir(self.directory.path()).stdin(Stdio::null()).output().expect("kiln starts")
    }

    fn trace(&self) -> Vec<Value> {
        let bytes = fs_err::read(self.directory.path().join("trace.json")).expect("a trace");
        let value: Value = serde_json::from_slice(&bytes).expect("JSON");
        let events = value["traceEvents"].as_array().expect("events").iter();
        events.filter(|event| event["ph"] == "X").cloned().collect()
    }
}

/// Beginning and end.
fn range(event: &Value) -> (f64, f64) {
    let began = event["ts"].as_f64().expect("ts");
    (began, began + event["dur"].as_f64().expect("dur"))
}

/// The part of a command's time that its spans tell.
fn part_told(events: &[Value]) -> f64 {
    let (began, ended) =
        events.iter().find(|event| event["name"] == "command").map(range).expect("a command");
    let told = |event: &&Value| !AROUND.iter().any(|name| event["name"] == *name);
    let mut ranges: Vec<(f64, f64)> = events.iter().filter(told).map(range).collect();
    ranges.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut covered, mut until) = (0.0, began);
    for (from, to) in ranges {
        covered += (to - from.max(until)).max(0.0);
        until = until.max(to);
    }
    covered / (ended - began)
}

/// A build's events. What waits for a processor between two spans is told by none, so that a busy machine gets some tries.
fn events_of_a_build() -> Vec<Value> {
    let mut parts = Vec::new();
    for _ in 0..8 {
        let fixture = Fixture::new();
        let built =
            fixture.kiln(&["build", "--progress", "plain", "--trace", "trace.json", "-t", "a", "context"]);
        assert!(built.status.success(), "{built:?}");
        let events = fixture.trace();
        let part = part_told(&events);
        if part > 0.9 {
            return events;
        }
        parts.push((part, events));
    }
    panic!("too little of each build is told: {parts:#?}");
}

#[test]
fn a_trace_covers_a_build_with_nested_spans() {
    let events = events_of_a_build();

    // On one thread, spans are apart or one is in the other.
    for a in &events {
        for b in events.iter().filter(|b| b["tid"] == a["tid"]) {
            let ((a_from, a_to), (b_from, b_to)) = (range(a), range(b));
            let slack = 0.001;
            let apart = a_to <= b_from + slack || b_to <= a_from + slack;
            let inside = |from: f64, to: f64, (outer_from, outer_to): (f64, f64)| {
                from >= outer_from - slack && to <= outer_to + slack
            };
            let nested = inside(a_from, a_to, range(b)) || inside(b_from, b_to, range(a));
            assert!(apart || nested, "{a} {b}");
        }
    }
    let names: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    for name in [
        "open store",
        "parse",
        "lower",
        "hash context",
        "compute key",
        "execute",
        "publish layer",
        "sync files",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let executed = events.iter().filter(|event| event["name"] == "execute");
    let steps: Vec<&str> = executed.filter_map(|event| event["args"]["subject"].as_str()).collect();
    assert!(steps.iter().any(|step| step.contains("WORKDIR /w")), "{steps:?}");
}

#[test]
fn timings_are_a_table_after_everything_else() {
    let fixture = Fixture::new();
    let plain = fixture.kiln(&["build", "-q", "-t", "a", "context"]);
    assert_eq!(plain.stderr, b"", "nothing is told that was not asked for");
    assert!(!fixture.directory.path().join("trace.json").exists());
    let timed = fixture.kiln(&["build", "-q", "-t", "a", "context", "--timings"]);
    assert_eq!(plain.stdout, timed.stdout);
    let table = String::from_utf8(timed.stderr).expect("text");
    assert!(table.contains("look record up") && table.contains("from beginning to end"), "{table}");
    let failed = fixture.kiln(&["--timings", "history", "nothing"]);
    let text = String::from_utf8(failed.stderr).expect("text");
    let (message, table) = (text.find("kiln: "), text.find("open store"));
    assert!(message.is_some() && message < table && failed.status.code() == Some(1), "{text}");
}

#[test]
fn a_trace_that_cannot_be_written_is_told_first() {
    let fixture = Fixture::new();
    let refused = fixture.kiln(&["--trace", "missing/trace.json", "build", "-t", "a", "context"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).expect("text");
    assert!(text.starts_with("kiln: cannot write the trace missing/trace.json"), "{text}");
    assert!(!fixture.directory.path().join("store").exists());
}

#[test]
fn the_file_of_a_trace_is_left_alone_until_there_is_one() {
    let fixture = Fixture::new();
    let place = fixture.directory.path();
    // The command reads what the trace takes the place of.
    fs_err::copy(place.join("context/Dockerfile"), place.join("trace.json")).expect("copied");
    let built = fixture.kiln(&["build", "--trace", "trace.json", "-f", "trace.json", "-t", "a", "context"]);
    assert!(built.status.success(), "{built:?}");
    assert!(!fixture.trace().is_empty());
    // A trace that is shorter than what was there is whole, too.
    fs_err::write(place.join("trace.json"), "x".repeat(1 << 20)).expect("written");
    assert!(fixture.kiln(&["version", "--trace", "trace.json"]).status.success());
    assert!(!fixture.trace().is_empty());
    let refused = fixture.kiln(&["version", "--trace", "-"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(!place.join("-").exists());
    // The file is on a full disk; the command's own status stays.
    for (words, status) in [(&["image", "ls"][..], 1), (&["run", "nosuch"][..], 125)] {
        let output = fixture.kiln(&[&["--trace", "/dev/full"], words].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("cannot write the trace /dev/full"), "{told}");
        assert_eq!(output.status.code(), Some(status), "{told}");
    }
}
