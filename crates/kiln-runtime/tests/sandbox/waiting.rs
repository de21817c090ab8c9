//! Inits that are started before it is known what they are to set up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_runtime::{
    Confinement, Exit, Foreground, Interrupt, Isolation, Launcher, Mount, MountKind, Network, OwnershipMode,
    RuntimeError, Sandbox, Security, Streams, run_in_foreground, wait_for_wardens,
};
use kiln_sys::namespace::UserNamespace;
use rustix::event::EventfdFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("an_init_waits_for_its_sandbox", waits),
    ("an_init_of_another_kind_is_not_used", another_kind),
    ("each_kind_of_sandbox_has_inits_of_its_own", kinds),
    ("an_init_that_died_is_replaced", died),
    ("an_init_that_died_before_it_was_told_anything_is_replaced", died_untold),
    ("an_init_that_died_later_is_not_replaced", died_later),
    ("an_init_that_cannot_make_its_filesystems_is_replaced", failed),
    ("a_panic_of_an_init_is_told", panicked),
    ("an_init_that_waits_holds_nothing", holds_nothing),
    ("an_init_that_nobody_needs_ends", unneeded),
    ("an_init_that_waits_dies_with_kiln", death_of_kiln),
    ("nothing_is_left_of_what_watches_inits", watched),
    ("a_start_can_be_interrupted", interrupted),
    ("a_start_is_interrupted_by_a_person", interrupted_by_a_person),
];

/// The file in the current directory that says how an init is to fail.
const SPOILED: &str = "spoiled";

/// Makes an init fail as a case wants it. Its environment is empty; its directory is that of whoever started it.
pub(crate) fn spoil() {
    match fs_err::read_to_string(SPOILED).unwrap_or_default().as_str() {
        "descriptors" => {
            let few = rustix::process::Rlimit { current: Some(8), maximum: Some(8) };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, few).expect("limited");
        }
        "panic" => drop(std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            panic!("as a test wants");
        })),
        _ => {}
    }
}

/// Does something while inits fail in this way.
fn spoiled<T>(fixture: &Fixture, how: &str, work: impl FnOnce() -> T) -> T {
    let before = fs_err::canonicalize(".").expect("a directory");
    let place = fixture.empty("spoiled");
    fs_err::write(place.join(SPOILED), how).expect("written");
    std::env::set_current_dir(&place).expect("entered");
    let done = work();
    std::env::set_current_dir(before).expect("left");
    done
}

/// The children of this process that run or have not been waited for.
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").expect("listed") {
        let Ok(pid) = entry.expect("an entry").file_name().to_string_lossy().parse::<i32>() else { continue };
        let status = fs_err::read(format!("/proc/{pid}/status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.is_some_and(|parent| parent.trim() == own) {
            found.push(pid);
        }
    }
    found
}

/// The inits that wait: children of this process that are nothing else yet.
fn waiting() -> Vec<i32> {
    let mut found = children();
    found.retain(|pid| {
        fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().starts_with(b"kiln-init\0")
    });
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

/// A sandbox that takes long to set up.
fn slow(fixture: &Fixture, script: &str) -> Sandbox {
    let mut sandbox = fixture.shell(script);
    let tmpfs =
        |target: String| Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: target.into() };
    let below = (0..4000).map(|number| tmpfs(format!("/m/{number}")));
    sandbox.mounts = std::iter::once(tmpfs("/m".to_owned())).chain(below).collect();
    sandbox
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process"), signal).expect("signalled");
}

/// Stops a process and waits until it has stopped.
fn stop(pid: i32) {
    signal(pid, Signal::STOP);
    eventually("it stops", || {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && line.contains('T'))
    });
}

fn is_there(pid: i32) -> bool {
    fs_err::symlink_metadata(format!("/proc/{pid}")).is_ok()
}

fn kinds(fixture: &Fixture) {
    let usual = fixture.shell("true").confinement();
    let ownership = match usual.ownership {
        OwnershipMode::Kernel => OwnershipMode::Recorded,
        OwnershipMode::Recorded => OwnershipMode::Kernel,
    };
    let kinds = [
        usual,
        Confinement { network: Network::None, ..usual },
        Confinement { security: Security::Insecure, ..usual },
        Confinement { ownership, ..usual },
    ];
    let status = |confinement: Confinement, launcher: &Launcher| {
        let mut sandbox = fixture.shell("exit 4");
        sandbox.confine(confinement);
        kiln_runtime::run(&sandbox, Streams::piped(), launcher).expect("runs").exit.status()
    };
    for kind in kinds {
        let (launcher, pid) = expecting(kind);
        for other in kinds.into_iter().filter(|other| *other != kind) {
            assert_eq!(status(other, &launcher), 4, "{other:?}");
            assert_eq!(waiting(), [pid], "{kind:?} is not {other:?}");
        }
        assert_eq!(status(kind, &launcher), 4, "{kind:?}");
        assert!(!is_there(pid), "it was the command");
    }
    let launcher = Launcher::new();
    launcher.expect(Confinement { isolation: Isolation::Chroot, ..usual });
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(waiting(), [] as [i32; 0], "other steps could reach it");
}

fn died(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 3");
    let (launcher, pid) = expecting(sandbox.confinement());
    signal(pid, Signal::KILL);
    eventually("it ends", || waiting().is_empty());
    let ended = kiln_runtime::run(&sandbox, Streams::piped(), &launcher).expect("another one starts");
    assert_eq!(ended.exit.status(), 3);
}

fn unneeded(fixture: &Fixture) {
    let (launcher, pid) = expecting(fixture.shell("true").confinement());
    drop(launcher);
    assert!(fs_err::symlink_metadata(format!("/proc/{pid}")).is_err(), "it was waited for");
}

fn died_untold(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 3");
    let (launcher, pid) = expecting(sandbox.confinement());
    stop(pid);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| kiln_runtime::run(&sandbox, Streams::piped(), &launcher));
        // It is told by then, and has not listened.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!ended.is_finished());
        signal(pid, Signal::KILL);
        assert_eq!(ended.join().expect("lives").expect("another one starts").exit.status(), 3);
    });
}

fn died_later(fixture: &Fixture) {
    let sandbox = slow(fixture, "echo begun > /tmp/begun");
    let (launcher, pid) = expecting(sandbox.confinement());
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| kiln_runtime::run(&sandbox, Streams::piped(), &launcher));
        eventually("it mounts", || {
            let mounts = fs_err::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            mounts.contains(" /m/1 ")
        });
        signal(pid, Signal::KILL);
        let error = ended.join().expect("lives").map(|finished| finished.exit).expect_err("it had begun");
        assert!(matches!(error, RuntimeError::Died { exit: Exit::Signal(9) }), "{error}");
        assert!(error.to_string().contains("was killed by signal 9 while it was set up"), "{error}");
    });
    let kiln_runtime::RootSource::Overlay { overlay } = &sandbox.root else { panic!("an overlay") };
    let upper = &overlay.upper.as_ref().expect("an upper").upper;
    assert!(!upper.join("tmp/begun").exists());
    assert!(!is_there(pid));
}

fn failed(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 3");
    let confinement = sandbox.confinement();
    let launcher = Launcher::new();
    spoiled(fixture, "descriptors", || {
        launcher.expect(confinement);
        // It starts, and ends soon.
        std::thread::sleep(Duration::from_millis(300));
        eventually("it fails", || waiting().is_empty());
    });
    let ended = kiln_runtime::run(&sandbox, Streams::piped(), &launcher).expect("another one starts");
    assert_eq!(ended.exit.status(), 3);
    // If that one fails as well, it is said.
    let error = spoiled(fixture, "descriptors", || {
        kiln_runtime::run(&sandbox, Streams::piped(), &launcher).map(|finished| finished.exit)
    });
    let error = error.expect_err("it cannot start").to_string();
    assert!(error.starts_with("cannot mount ") && error.contains("Too many open files"), "{error}");
}

fn panicked(fixture: &Fixture) {
    let launcher = Launcher::new();
    let run = |sandbox: Sandbox| {
        let ended = kiln_runtime::run(&sandbox, Streams::piped(), &launcher);
        ended.map(|finished| finished.exit.status())
    };
    let error = spoiled(fixture, "panic", || {
        launcher.expect(fixture.shell("true").confinement());
        std::thread::sleep(Duration::from_millis(200));
        run(slow(fixture, "exit 3"))
    });
    // The one that waited was replaced by one that panics, too.
    let error = error.expect_err("it cannot start");
    let told = error.to_string();
    assert!(matches!(error, RuntimeError::Panicked { .. }), "{told}");
    assert!(
        told.starts_with("the sandbox's first process panicked at ") && told.ends_with(" as a test wants"),
        "{told}"
    );
    assert_eq!(run(fixture.shell("exit 3")).expect("runs"), 3);
}

/// The mounts of a process: of which device, which directory of it, where.
fn mounts(pid: &str) -> Vec<String> {
    let table = fs_err::read_to_string(format!("/proc/{pid}/mountinfo")).expect("read");
    let mut mounts: Vec<String> =
        table.lines().map(|line| line.split(' ').skip(2).take(3).collect::<Vec<_>>().join(" ")).collect();
    mounts.sort();
    mounts
}

/// An init that is started while a command runs keeps nothing of it: no end of its pipes, none of its mounts. So its output
/// ends with it, and its directories can be moved, removed and mounted again.
fn holds_nothing(fixture: &Fixture) {
    let root = fixture.root(&[]);
    let mut running = kiln_runtime::start(
        &root.shell("echo x > /tmp/x; read line"),
        Streams { input: kiln_runtime::Stream::Pipe, ..Streams::piped() },
        None,
        &fixture.launcher,
    )
    .expect("starts");
    // One that a careless caller left open across exec.
    let leaked = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).expect("open");
    let again = root.shell("exec ls /proc/self/fd");
    let (launcher, pid) = expecting(again.confinement());
    let waits = pid.to_string();
    let entries = fs_err::read_dir(format!("/proc/{pid}/fd")).expect("listed").flatten();
    let links = entries.filter_map(|entry| fs_err::read_link(entry.path()).ok());
    let held: Vec<_> = links.map(|link| link.display().to_string()).collect();
    let pipes = [&running.input, &running.output, &running.error].map(|end| {
        let number = std::os::fd::AsRawFd::as_raw_fd(end.as_ref().expect("a pipe"));
        fs_err::read_link(format!("/proc/self/fd/{number}")).expect("read").display().to_string()
    });
    assert!(!pipes.iter().any(|pipe| held.contains(pipe)), "{pipes:?} in {held:?}");
    // Others mount things on this machine, too.
    let same_mounts = || eventually("its mounts are ours", || mounts(&waits) == mounts("self"));
    same_mounts();
    drop(running.input.take());
    let output = crate::fixture::text(running.output.take());
    assert_eq!((output.as_str(), running.wait().expect("waits").exit), ("", Exit::Code(1)));
    assert_eq!(waiting(), [pid]);
    same_mounts();
    let holder = root.upper.parent().expect("a parent");
    fs_err::rename(&root.upper, holder.join("moved")).expect("moved");
    fs_err::remove_dir_all(holder.join("work")).expect("removed");
    for name in ["upper", "work"] {
        fs_err::create_dir(holder.join(name)).expect("made");
    }
    let mut running = kiln_runtime::start(&again, Streams::piped(), None, &launcher).expect("starts");
    let output = crate::fixture::text(running.output.take());
    assert!(running.wait().expect("waits").exit.success());
    drop(leaked);
    // The fourth is the one by which ls reads the directory.
    assert_eq!(output.lines().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

fn death_of_kiln(fixture: &Fixture) {
    if fixture.user != UserNamespace::None {
        return;
    }
    // Another kiln, which is killed while an init starts or waits.
    for round in 0..20 {
        let place = fs_err::canonicalize(fixture.empty("place")).expect("a name");
        let mut kiln = Command::new(std::env::current_exe().expect("a name"))
            .arg("--expecting")
            .env("TMPDIR", &place)
            .current_dir(&place)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = kiln.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut output, &mut [0_u8; 8]).expect("it expects");
        std::thread::sleep(Duration::from_micros(500 * round));
        kiln.kill().expect("killed");
        kiln.wait().expect("waited");
        let is_in = |entry: &Path| fs_err::read_link(entry.join("cwd")).is_ok_and(|link| link == place);
        eventually("it ends with kiln", || {
            !fs_err::read_dir("/proc").expect("listed").flatten().any(|entry| is_in(&entry.path()))
        });
    }
    let mounts = fs_err::read_to_string("/proc/self/mounts").expect("read");
    assert!(!mounts.contains(fixture.directory.path().to_str().expect("a name")));
}

/// What the other kiln of the case above does.
pub(crate) fn endless(fixture: &Fixture) {
    let launcher = Launcher::new();
    launcher.expect(fixture.shell("true").confinement());
    println!("expects");
    std::thread::sleep(Duration::from_secs(1000));
    drop(launcher);
}

/// What a test interrupts with.
struct Bell {
    descriptor: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes()).expect("rung");
    }
}

impl Interrupt for Bell {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn is_interrupted(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }
}

/// An init is stopped, so that it never becomes the command; then `work` is to end by what `interrupt` does.
fn stuck<T: Send>(
    sandbox: &Sandbox,
    work: impl FnOnce(&Launcher) -> T + Send,
    interrupt: impl FnOnce(),
) -> T {
    let (launcher, pid) = expecting(sandbox.confinement());
    stop(pid);
    std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&launcher));
        interrupt();
        let begun = Instant::now();
        while !working.is_finished() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = working.is_finished();
        if !ended {
            signal(pid, Signal::KILL);
        }
        let done = working.join().expect("lives");
        assert!(ended, "the start is not given up");
        assert!(!is_there(pid), "it was waited for");
        done
    })
}

fn interrupted(fixture: &Fixture) {
    let descriptor = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("made");
    let bell = Bell { descriptor, rung: AtomicBool::new(false) };
    let start = |sandbox: &Sandbox, launcher: &Launcher| {
        kiln_runtime::start_interruptibly(sandbox, Streams::piped(), None, launcher, &bell).map(drop)
    };
    let ring = || {
        std::thread::sleep(Duration::from_millis(100));
        bell.ring();
    };
    let sandbox = fixture.shell("exit 3");
    let started = stuck(&sandbox, |launcher| start(&sandbox, launcher), ring);
    assert!(matches!(started, Err(RuntimeError::Interrupted)), "{started:?}");
    // It still rings.
    assert!(matches!(start(&fixture.shell("true"), &Launcher::new()), Err(RuntimeError::Interrupted)));
    bell.rung.store(false, Ordering::SeqCst);
    rustix::io::read(&bell.descriptor, &mut [0_u8; 8]).expect("silenced");
    start(&fixture.shell("true"), &Launcher::new()).expect("starts");
}

fn interrupted_by_a_person(fixture: &Fixture) {
    let sandbox = fixture.shell("exit 3");
    let nothing =
        rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).expect("opened");
    let side = nothing.as_fd();
    let watcher =
        Foreground { input: side, output: side, error: side, interactive: false, own_terminal: false };
    let start =
        |launcher: &Launcher| run_in_foreground(&sandbox, watcher, None, launcher).map(|ended| ended.exit);
    let signals = || {
        eventually("signals are taken over", || {
            let status = fs_err::read_to_string("/proc/self/status").expect("read");
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
            u64::from_str_radix(caught.trim(), 16).expect("a number") & (1 << (Signal::INT.as_raw() - 1)) != 0
        });
        // One that is no reason to end comes first.
        for signal in [Signal::WINCH, Signal::INT] {
            kill_process(rustix::process::getpid(), signal).expect("sent");
        }
    };
    assert_eq!(stuck(&sandbox, start, signals).expect("it ended"), Exit::Signal(2));
}

fn watched(fixture: &Fixture) {
    let before = children();
    let ran = run(&fixture.shell("true")).expect("starts");
    assert_eq!(ran.finished.exit, Exit::Code(0), "{}", ran.error);
    wait_for_wardens();
    let mut left = children();
    left.retain(|pid| !before.contains(pid));
    assert_eq!(left, Vec::<i32>::new());
}
