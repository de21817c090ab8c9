//! Inits that are started before it is known what they are to set up.

use std::time::{Duration, Instant};

use kiln_runtime::{Confinement, Launcher, Network, Streams};

use crate::Case;
use crate::fixture::Fixture;

pub(crate) const CASES: &[Case] = &[
    ("an_init_waits_for_its_sandbox", waits),
    ("an_init_of_another_kind_is_not_used", another_kind),
    ("an_init_that_died_is_replaced", died),
    ("an_init_that_nobody_needs_ends", unneeded),
];

/// The inits that wait: children of this process that are nothing else yet.
fn waiting() -> Vec<i32> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").expect("listed") {
        let Ok(pid) = entry.expect("an entry").file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name: &str| fs_err::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let status = read("status");
        let status = String::from_utf8_lossy(&status);
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let is_init = read("cmdline").starts_with(b"kiln-init\0");
        if parent.is_some_and(|parent| parent.trim() == own) && is_init {
            found.push(pid);
        }
    }
    found
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", waiting());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn expecting(confinement: Confinement) -> (Launcher, i32) {
    let launcher = Launcher::new();
    launcher.expect(confinement);
    launcher.expect(confinement);
    eventually("it starts", || !waiting().is_empty());
    let [pid] = waiting()[..] else { panic!("one waits: {:?}", waiting()) };
    (launcher, pid)
}

fn waits(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 7");
    let (launcher, pid) = expecting(sandbox.confinement());
    let running = kiln_runtime::start(&sandbox, Streams::piped(), None, &launcher).expect("starts");
    assert_eq!(waiting(), [] as [i32; 0], "it is the command now");
    let ended = running.wait().expect("waited");
    assert_eq!(ended.exit.status(), 7);
    assert!(fs_err::symlink_metadata(format!("/proc/{pid}")).is_err(), "it was that process");
}

fn another_kind(fixture: &Fixture) {
    let mut sandbox = fixture.shell("cat /proc/net/dev");
    let (launcher, pid) = expecting(sandbox.confinement());
    sandbox.network = Network::None;
    let running = kiln_runtime::start(&sandbox, Streams::piped(), None, &launcher).expect("starts");
    let mut output = String::new();
    let mut pipe = fs_err::File::from_parts(
        std::fs::File::from(running.output.as_ref().expect("a pipe").try_clone().expect("cloned")),
        "output",
    );
    std::io::Read::read_to_string(&mut pipe, &mut output).expect("read");
    assert!(running.wait().expect("waited").exit.success());
    assert_eq!(output.lines().filter(|line| line.contains(':')).count(), 1, "loopback alone: {output}");
    assert_eq!(waiting(), [pid]);
}

fn died(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 3");
    let (launcher, pid) = expecting(sandbox.confinement());
    let killed = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).expect("killed");
    eventually("it ends", || waiting().is_empty());
    let ended = kiln_runtime::run(&sandbox, Streams::piped(), &launcher).expect("another one starts");
    assert_eq!(ended.exit.status(), 3);
}

fn unneeded(fixture: &Fixture) {
    let (launcher, pid) = expecting(fixture.shell("true").confinement());
    drop(launcher);
    assert!(fs_err::symlink_metadata(format!("/proc/{pid}")).is_err(), "it was waited for");
}
