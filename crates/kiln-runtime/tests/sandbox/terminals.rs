//! Terminals.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kiln_runtime::{Exit, Foreground, Sandbox, Streams, Terminal, run_in_foreground};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("a_terminal_is_the_sandboxes_own", own_terminal),
    ("a_watcher_sees_the_terminal", watcher),
    ("keys_reach_a_command_without_a_terminal", keys_without_terminal),
    ("a_persons_terminal_is_not_lent", not_lent),
    ("streams_are_the_users", streams_of_users),
    ("a_callers_files_stay_its_own", callers_files),
    ("the_third_request_kills", third_request),
    ("a_terminal_that_nobody_watches_is_hung_up", unwatched),
    // Whose writer is told that it would wait, and whose writer waits.
    ("signals_are_heard_while_nobody_reads", |fixture| unread(fixture, unread_pipe(PipeFlags::NONBLOCK))),
    ("signals_are_heard_while_a_writer_waits", |fixture| unread(fixture, unread_pipe(PipeFlags::empty()))),
    ("signals_are_heard_while_a_terminal_stands_still", |fixture| unread(fixture, watching())),
];

fn own_terminal(fixture: &Fixture) {
    let mut sandbox =
        fixture.shell("tty; stty size; read line; echo got $line; stty size; ls -l /dev/console | wc -l");
    sandbox.process.terminal = Terminal::Own { rows: 33, columns: 77 };
    let mut running =
        kiln_runtime::start(&sandbox, Streams::inherit(), None, &fixture.launcher).expect("starts");
    let terminal = running.terminal.take().expect("a terminal");
    let mut seen = String::new();
    let mut bytes = [0_u8; 256];
    let mut read_until = |seen: &mut String, word: &str| {
        while !seen.contains(word) {
            match rustix::io::read(&terminal, &mut bytes[..]) {
                Ok(0) | Err(_) => break,
                Ok(count) => seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
            }
        }
    };
    read_until(&mut seen, "33 77");
    let size = kiln_sys::terminal::Winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    kiln_sys::terminal::set_size(terminal.as_fd(), size).expect("resize");
    rustix::io::write(&terminal, b"hello\n").expect("write");
    read_until(&mut seen, "never");
    assert!(running.wait().expect("waits").exit.success(), "{seen}");
    for expect in ["/dev/pts/0", "33 77", "got hello", "10 20", "\r\n1\r\n"] {
        assert!(seen.contains(expect), "{expect} in {seen}");
    }
}

/// The watcher's terminal: the side that a person would sit at, and the one that kiln gets.
fn watching() -> (OwnedFd, OwnedFd) {
    let flags =
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let person = rustix::pty::openpt(flags).expect("a terminal");
    rustix::pty::unlockpt(&person).expect("unlocked");
    let side = rustix::pty::ioctl_tiocgptpeer(&person, flags).expect("its other side");
    (person, side)
}

fn read_until(side: &OwnedFd, seen: &mut String, word: &str) {
    let mut bytes = [0_u8; 256];
    let begin = Instant::now();
    while !seen.contains(word) && begin.elapsed() < Duration::from_secs(20) {
        let mut polled = [rustix::event::PollFd::new(side, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        if rustix::event::poll(&mut polled, Some(&second)) == Ok(0) {
            continue;
        }
        match rustix::io::read(side, &mut bytes[..]) {
            Ok(count) if count > 0 => seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
            _ => return,
        }
    }
}

fn foreground(sandbox: &Sandbox, side: &OwnedFd, own_terminal: bool) -> Exit {
    let (input, output, error) = (side.as_fd(), side.as_fd(), side.as_fd());
    let watcher = Foreground { input, output, error, interactive: true, own_terminal };
    run_in_foreground(sandbox, watcher, None, &kiln_runtime::Launcher::new()).expect("runs").exit
}

fn is_raw(side: &OwnedFd) -> bool {
    let modes = rustix::termios::tcgetattr(side).expect("modes").local_modes;
    !modes.contains(rustix::termios::LocalModes::ICANON)
}

fn watcher(fixture: &Fixture) {
    let (person, side) = watching();
    let size = kiln_sys::terminal::Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 };
    kiln_sys::terminal::set_size(side.as_fd(), size).expect("sized");
    let script = "stty size; read l; echo got $l; until stty size | grep 21; do sleep 0.05; done; cat; echo over; exit 5";
    let sandbox = fixture.shell(script);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| foreground(&sandbox, &side, true));
        let mut seen = String::new();
        read_until(&person, &mut seen, "12 34");
        rustix::io::write(&person, b"hello\r").expect("types");
        read_until(&person, &mut seen, "got hello");
        assert!(is_raw(&side));
        let size = kiln_sys::terminal::Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
        kiln_sys::terminal::set_size(side.as_fd(), size).expect("resized");
        // A terminal tells its foreground processes, and this test has none of its own.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::WINCH)
            .expect("told");
        read_until(&person, &mut seen, "21 43\r\n");
        rustix::io::write(&person, b"x\r\x04").expect("types");
        read_until(&person, &mut seen, "over");
        assert_eq!(running.join().expect("lives"), Exit::Code(5), "{seen}");
        for expect in ["12 34", "got hello", "21 43", "x\r\nx\r\n", "over"] {
            assert!(seen.contains(expect), "{expect} in {seen:?}");
        }
    });
    assert!(!is_raw(&side));
}

fn keys_without_terminal(fixture: &Fixture) {
    let (person, side) = watching();
    let sandbox = fixture.shell("test -t 0 || echo none; while read l; do echo got $l; done; echo over");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| foreground(&sandbox, &side, false));
        let mut seen = String::new();
        read_until(&person, &mut seen, "none");
        rustix::io::write(&person, b"one\ntwo\n\x04").expect("types");
        read_until(&person, &mut seen, "over");
        assert_eq!(running.join().expect("lives"), Exit::Code(0));
        assert!(seen.contains("got one") && seen.contains("got two"), "{seen:?}");
    });
}

fn not_lent(fixture: &Fixture) {
    let (person, side) = watching();
    let script = "timeout 1 head -c3 <&1; stty -isig <&1; stty -isig <&2; test -t 1 && echo tty; test -t 2 && echo tty; \
                  echo on output; echo on error >&2; echo over";
    let sandbox = fixture.shell(script);
    let (input, output, error) = (side.as_fd(), side.as_fd(), side.as_fd());
    let watcher = Foreground { input, output, error, interactive: false, own_terminal: false };
    rustix::io::write(&person, b"secret\n").expect("types");
    let finished = run_in_foreground(&sandbox, watcher, None, &kiln_runtime::Launcher::new());
    assert_eq!(finished.expect("runs").exit, Exit::Code(0));
    let mut seen = String::new();
    read_until(&person, &mut seen, "over\r\n");
    // What a terminal itself echoes comes first.
    let shown = seen.trim_start_matches("secret\r\n");
    assert!(!shown.contains("secret") && !shown.contains("tty\r"), "{seen:?}");
    assert!(shown.ends_with("on output\r\non error\r\nover\r\n"), "{seen:?}");
    let modes = rustix::termios::tcgetattr(&side).expect("modes").local_modes;
    assert!(modes.contains(rustix::termios::LocalModes::ISIG));
}

/// Everybody who may, writes by the names of the streams.
const BY_NAME: &str = "set -e; echo one > /dev/stdout; echo two > /dev/stderr; echo three > /proc/self/fd/1";

fn streams_of_users(fixture: &Fixture) {
    for uid in [0, 1000] {
        let mut sandbox = fixture.shell(BY_NAME);
        sandbox.process.credentials.uid = uid;
        let ran = run(&sandbox).expect("starts");
        assert_eq!((ran.output.as_str(), ran.error.as_str()), ("one\nthree\n", "two\n"), "{uid}");
        let (person, side) = watching();
        let mut sandbox =
            fixture.shell("echo one > $(tty); echo two > /dev/console; echo three > /dev/stdout");
        sandbox.process.credentials.uid = uid;
        assert_eq!(foreground(&sandbox, &side, true), Exit::Code(0));
        let mut seen = String::new();
        read_until(&person, &mut seen, "three");
        assert!(seen.contains("one\r\ntwo\r\nthree"), "{seen:?}");
    }
}

fn callers_files(fixture: &Fixture) {
    use std::os::unix::fs::MetadataExt as _;
    let directory = fixture.empty("streams");
    for uid in [0, 1000] {
        let mut sandbox = fixture.shell(&format!("{BY_NAME}; cat < /dev/stdin; echo four; echo five >&2"));
        sandbox.process.credentials.uid = uid;
        let log = directory.join(format!("log{uid}"));
        let open = || fs_err::OpenOptions::new().create(true).append(true).open(&log).expect("opened");
        let (output, error) = (open(), open());
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        rustix::io::write(&writer, b"typed\n").expect("written");
        drop(writer);
        let before = rustix::fs::fstat(&reader).expect("status").st_uid;
        let (input, shown) = (reader.as_fd(), output.as_fd());
        let watcher =
            Foreground { input, output: shown, error: error.as_fd(), interactive: true, own_terminal: false };
        let finished = run_in_foreground(&sandbox, watcher, None, &kiln_runtime::Launcher::new());
        let text = fs_err::read_to_string(&log).expect("read");
        assert_eq!(finished.expect("runs").exit, Exit::Code(0), "{text}");
        // root opens the file itself, and writes over it.
        let is_copied = uid != 0 && sandbox.ownership == kiln_runtime::OwnershipMode::Kernel;
        assert!(!is_copied || text == "one\ntwo\nthree\ntyped\nfour\nfive\n", "{uid}: {text:?}");
        assert_eq!(rustix::fs::fstat(&reader).expect("status").st_uid, before);
        assert_eq!(fs_err::metadata(&log).expect("status").uid(), before);
    }
    // What cannot be written is not lost without a word.
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").expect("opened");
    let mut sandbox = fixture.shell("echo one");
    sandbox.process.credentials.uid = 1000;
    let watcher = Foreground {
        input: full.as_fd(),
        output: full.as_fd(),
        error: full.as_fd(),
        interactive: false,
        own_terminal: false,
    };
    let finished = run_in_foreground(&sandbox, watcher, None, &kiln_runtime::Launcher::new());
    assert_eq!(finished.expect("runs").exit, Exit::Code(1));
}

fn third_request(fixture: &Fixture) {
    let (person, side) = watching();
    let sandbox = fixture.shell("trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| foreground(&sandbox, &side, false));
        let mut seen = String::new();
        read_until(&person, &mut seen, "ready");
        for _ in 0..3 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
                .expect("sent");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(running.join().expect("lives"), Exit::Signal(9));
        read_until(&person, &mut seen, "no");
        assert!(seen.contains("no"), "{seen:?}");
    });
}

fn unwatched(fixture: &Fixture) {
    let (person, side) = watching();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    // Fails to write for ever: what a command does that only ends with its output.
    let sandbox = fixture.shell("while echo more; do :; done 2> /dev/null; exit 6");
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (input, output, error) = (side.as_fd(), writer.as_fd(), writer.as_fd());
            let watcher = Foreground { input, output, error, interactive: true, own_terminal: true };
            let finished = run_in_foreground(&sandbox, watcher, None, &kiln_runtime::Launcher::new());
            ended.send(finished.expect("runs").exit).expect("told");
        });
        let mut seen = String::new();
        read_until(&reader, &mut seen, "more");
        drop(reader);
        let exit = end.recv_timeout(Duration::from_secs(20));
        if exit.is_err() {
            // Three requests end it, so that the test fails instead of waiting.
            for _ in 0..3 {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        assert!(matches!(exit, Ok(Exit::Code(6) | Exit::Signal(1))), "{exit:?}");
    });
    drop(person);
}

fn unread_pipe(flags: PipeFlags) -> (OwnedFd, OwnedFd) {
    pipe_with(flags | PipeFlags::CLOEXEC).expect("a pipe")
}

fn unread(fixture: &Fixture, (reader, writer): (OwnedFd, OwnedFd)) {
    let (person, side) = watching();
    let sandbox = fixture.shell("while :; do echo more; done");
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (input, output, error) = (side.as_fd(), writer.as_fd(), writer.as_fd());
            let watcher = Foreground { input, output, error, interactive: true, own_terminal: true };
            let finished = run_in_foreground(&sandbox, watcher, None, &kiln_runtime::Launcher::new());
            ended.send(finished.expect("runs").exit).expect("told");
        });
        let has_room = || {
            let mut room = [rustix::event::PollFd::new(&writer, rustix::event::PollFlags::OUT)];
            rustix::event::poll(&mut room, Some(&rustix::event::Timespec::default())) != Ok(0)
        };
        let begin = Instant::now();
        while has_room() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        for _ in 0..3 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
                .expect("sent");
            std::thread::sleep(Duration::from_millis(200));
        }
        let exit = end.recv_timeout(Duration::from_secs(20));
        // So that a test that fails ends, too.
        drop(reader);
        assert_eq!(exit, Ok(Exit::Signal(9)));
    });
    drop(person);
}
