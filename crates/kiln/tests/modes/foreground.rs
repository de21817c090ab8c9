//! `kiln run` for someone who watches: a terminal, signals, statuses, and what a kill leaves.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustix::termios::{LocalModes, Winsize};

use crate::environment::{Environment, Place};
use crate::patience::{PATIENCE, until};

/// A place with the image `base` in root's store.
fn place() -> Option<Place> {
    let place = Place::new()?;
    place.make_base();
    place.run(Environment::Root, "022", "kiln load -q -i base.image > /dev/null");
    Some(place)
}

impl Place {
    /// `kiln run` itself, with nothing between it and its signals. These tests themselves may have been started by nohup(1).
    fn kiln_run(&self, words: &[&str]) -> Command {
        self.kiln_run_as("--default-signal=HUP", words)
    }

    fn kiln_run_as(&self, signals: &str, words: &[&str]) -> Command {
        let mut kiln = Command::new("env");
        kiln.arg(signals)
            .arg(self.path("kiln"))
            .arg("--root")
            .arg(self.path("Root/store"))
            .arg("run")
            .args(words)
            .stdin(Stdio::null());
        kiln
    }

    /// No process has this directory or `marker` in its command line, and nothing is mounted.
    #[track_caller]
    fn assert_nothing_is_left(&self, marker: &str) {
        let place = self.path("").display().to_string();
        until("every process has ended", || {
            !fs_err::read_dir("/proc").expect("read").flatten().any(|process| {
                let line = fs_err::read(process.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains(&place) || line.contains(marker)
            })
        });
        self.assert_nothing_is_mounted();
    }
}

/// The side of a terminal that a person sits at, and the one that a program gets.
fn terminal(rows: u16, columns: u16) -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let person = openpt(flags).expect("a terminal");
    unlockpt(&person).expect("unlocked");
    let side = ioctl_tiocgptpeer(&person, flags).expect("its other side");
    resize(&side, rows, columns);
    (person, side)
}

fn resize(side: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(side, size).expect("sized");
}

fn is_raw(side: &OwnedFd) -> bool {
    !rustix::termios::tcgetattr(side).expect("modes").local_modes.contains(LocalModes::ICANON)
}

/// Reads until a word was seen.
#[track_caller]
fn read_until(person: &OwnedFd, seen: &mut String, word: &str) {
    let start = Instant::now();
    while !seen.contains(word) {
        assert!(start.elapsed() < PATIENCE, "no {word:?} in {seen:?}");
        let mut polled = [rustix::event::PollFd::new(person, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        if matches!(rustix::event::poll(&mut polled, Some(&second)), Ok(ready) if ready > 0) {
            let mut bytes = [0_u8; 1024];
            let count = rustix::io::read(person, &mut bytes[..]).unwrap_or(0);
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}

#[test]
fn a_terminal_is_handed_through() {
    let Some(place) = place() else { return };
    let (person, side) = terminal(12, 34);
    let before = rustix::termios::tcgetattr(&side).expect("modes");
    let script = "stty size; read line; echo got $line; \
                  until stty size | grep -q '21 43'; do sleep 0.05; done; echo resized; test -t 2 && exit 5";
    let end = || Stdio::from(side.as_fd().try_clone_to_owned().expect("cloned"));
    let mut kiln = place.kiln_run(&["-it", "base", "sh", "-c", script]);
    let mut kiln = kiln.stdin(end()).stdout(end()).stderr(end()).spawn().expect("kiln");
    let mut seen = String::new();
    read_until(&person, &mut seen, "12 34");
    until("the terminal is raw", || is_raw(&side));
    rustix::io::write(&person, b"hello\r").expect("typed");
    read_until(&person, &mut seen, "got hello");
    resize(&side, 21, 43);
    // The kernel tells the terminal's foreground processes; kiln is none of this test's terminal.
    rustix::process::kill_process(Pid::from_child(&kiln), Signal::WINCH).expect("told");
    read_until(&person, &mut seen, "resized");
    assert_eq!(kiln.wait().expect("waited").code(), Some(5), "{seen}");
    let after = rustix::termios::tcgetattr(&side).expect("modes");
    assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes));
    place.assert_nothing_is_left("until stty");
}

/// A container that says when it is ready, and how it ends.
fn ready(place: &Place, script: &str) -> Child {
    let mut kiln = place.kiln_run(&["base", "sh", "-c", script]);
    let mut kiln = kiln.stdout(Stdio::piped()).spawn().expect("kiln");
    let mut said = [0; 6];
    kiln.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it says that it is ready");
    assert_eq!(&said, b"ready\n");
    kiln
}

#[test]
fn signals_reach_the_command() {
    let Some(place) = place() else { return };
    for (signal, name, status) in [
        (Signal::TERM, "TERM", 43),
        (Signal::INT, "INT", 42),
        (Signal::HUP, "HUP", 41),
        (Signal::USR1, "USR1", 40),
    ] {
        let script = format!(
            "trap 'echo {name}; exit {status}' {name}; echo ready; while :; do sleep 0.05; done # signalled"
        );
        let mut kiln = ready(&place, &script);
        rustix::process::kill_process(Pid::from_child(&kiln), signal).expect("sent");
        let mut said = String::new();
        kiln.stdout.take().expect("a pipe").read_to_string(&mut said).expect("read");
        assert_eq!((said.trim(), kiln.wait().expect("waited").code()), (name, Some(status)));
    }
    // One that handles nothing is process 1, which the kernel spares: the third request kills it.
    let mut kiln = ready(&place, "echo ready; while :; do sleep 0.05; done # signalled");
    until("it has ended", || {
        let _ = rustix::process::kill_process(Pid::from_child(&kiln), Signal::TERM);
        std::thread::sleep(Duration::from_millis(50));
        kiln.try_wait().expect("waited").is_some()
    });
    assert_eq!(kiln.wait().expect("waited").code(), Some(137));
    place.assert_nothing_is_left("# signalled");
}

/// As with nohup(1): whoever has logged out wants the command to go on.
#[test]
fn a_hang_up_that_was_ignored_stays_so() {
    let Some(place) = place() else { return };
    let script = "trap 'exit 41' HUP; echo ready; read line; exit 5 # ignored";
    let mut kiln = place.kiln_run_as("--ignore-signal=HUP", &["-i", "base", "sh", "-c", script]);
    let mut kiln = kiln.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("kiln");
    let mut said = [0; 6];
    kiln.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it says that it is ready");
    rustix::process::kill_process(Pid::from_child(&kiln), Signal::HUP).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    drop(kiln.stdin.take());
    assert_eq!(kiln.wait().expect("waited").code(), Some(5));
    place.assert_nothing_is_left("# ignored");
}

#[test]
fn statuses_are_dockers_in_every_environment() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    let script = r#"
        kiln load -q -i base.image > /dev/null
        status() { kiln run "$@" > /dev/null 2>&1 || echo $?; }
        status base sh -c 'exit 7'; status base nosuch; status base /etc/passwd; status nosuch; status --nosuch base
        env --ignore-signal=CHLD ./kiln --root "$STORE" run base sh -c 'exit 7' || echo $?
        status base sh -c 'kill -9 $$; sleep 1'; status base sh -c 'sh -c "kill -9 \$\$"; exit $?'; ls $STORE/tmp
    "#;
    for environment in
        [Environment::Root, Environment::OverlayRoot, Environment::SubIds, Environment::SingleId]
    {
        // Process 1 cannot kill itself.
        assert_eq!(
            place.run(environment, "022", script),
            "7\n127\n126\n125\n125\n7\n137\n",
            "{environment:?}"
        );
    }
    assert_eq!(place.run(Environment::NoMounts, "022", script), "7\n127\n126\n125\n125\n7\n137\n137\n");
    place.assert_nothing_is_mounted();
}

#[test]
fn a_kill_of_kiln_leaves_nothing() {
    let Some(place) = place() else { return };
    let marker = format!("{}", 200_000 + std::process::id());
    let script = format!("sleep {marker} & (trap '' TERM HUP; sleep {marker}) & echo ready; sleep {marker}");
    let mut kiln = ready(&place, &script);
    kiln.kill().expect("killed");
    kiln.wait().expect("waited");
    place.assert_nothing_is_left(&format!("sleep {marker}"));
    // What it held in the store goes with the next collection.
    place.run(Environment::Root, "022", "kiln system prune -f > /dev/null; test -z \"$(ls $STORE/tmp)\"");
}
