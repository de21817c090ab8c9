//! System call filters, with programs that make the calls themselves; and sandboxes without namespaces.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use kiln_runtime::{
    BindSource, Capabilities, Exit, Isolation, Mount, MountKind, Network, ProvidedFile, RootSource, Security,
};
use kiln_sys::namespace::UserNamespace;

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("a_filter_is_installed", filter_installed),
    ("dangerous_calls_are_refused", dangerous_calls),
    ("programs_of_32_bits_run", narrow_programs),
    ("control_groups_cannot_be_changed", control_groups),
    ("chroot_says_what_it_does_not_isolate", chroot),
    ("death_of_kiln_ends_the_command", death_of_kiln),
    ("this_machine_is_described", machine),
];

fn filter_installed(fixture: &Fixture) {
    assert_eq!(fixture.output("grep Seccomp: /proc/self/status"), "Seccomp:\t2");
    let mut sandbox =
        fixture.shell("grep -E 'Seccomp:|CapBnd' /proc/self/status; mount -t tmpfs x /tmp && echo mounted");
    sandbox.security = Security::Insecure;
    let output = run(&sandbox).expect("starts").output;
    assert!(output.ends_with("mounted\n"), "{output}");
    if !matches!(fixture.user, UserNamespace::SingleId { .. }) {
        assert!(output.contains("Seccomp:\t0"), "{output}");
    }
    let script = "mount -t tmpfs x /tmp 2>/dev/null && echo mounted; unshare -m true && echo unshared";
    assert_eq!(run(&fixture.shell(script)).expect("starts").output, "");
    let mut sandbox = fixture.shell(script);
    sandbox.process.capabilities =
        Capabilities::DEFAULT.union(Capabilities::named("SYS_ADMIN").expect("known"));
    assert_eq!(run(&sandbox).expect("starts").output, "mounted\nunshared\n");
    let mut sandbox = fixture.shell("grep NoNewPrivs /proc/self/status");
    sandbox.process.no_new_privileges = true;
    assert_eq!(run(&sandbox).expect("starts").output, "NoNewPrivs:\t1\n");
}

/// Compiles a program without a library with these flags, or says why not.
pub(crate) fn compile(fixture: &Fixture, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let directory = fixture.empty("program");
    let source = directory.join("program.c");
    fs_err::write(&source, include_str!("calls.c")).expect("write");
    fs_err::create_dir(directory.join("bin")).expect("make");
    let program = directory.join("bin").join(name);
    let compiler = Command::new("gcc")
        .args(flags)
        .args(["-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector", "-O1", "-o"])
        .args([&program, &source])
        .output();
    match compiler {
        Ok(output) if output.status.success() => Some(directory),
        Ok(output) => {
            println!(
                "SKIPPED {name}: {}",
                String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
            );
            None
        }
        Err(error) => {
            println!("SKIPPED {name}: gcc: {error}");
            None
        }
    }
}

fn calls(fixture: &Fixture, width: &str) -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: the program's calls are written for x86");
        return None;
    }
    let directory = compile(fixture, "calls", &[width])?;
    let ran = run(&fixture.root(&[&directory]).shell("calls; echo $?")).expect("starts");
    Some(ran.output)
}

fn dangerous_calls(fixture: &Fixture) {
    let Some(output) = calls(fixture, "-m64") else { return };
    let expect = "inet ok\nalg -1\nvsock -1\nkeyctl -1\nunshare -1\nclone3 -38\nx32 answered\n0\n";
    assert_eq!(output, expect);
}

fn narrow_programs(fixture: &Fixture) {
    let Some(output) = calls(fixture, "-m32") else { return };
    let expect = "inet ok\nalg -1\nvsock -1\nkeyctl -1\nunshare -1\nclone3 -38\nsocketcall ok\n0\n";
    assert_eq!(output, expect);
}

/// CVE-2023-25809: nothing of the machine's control groups can be written, whichever version it has.
fn control_groups(fixture: &Fixture) {
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/* /sys/fs/cgroup/*/*; do \
                  mkdir $d/made 2>/dev/null && echo MADE $d; \
                  for f in cgroup.procs release_agent notify_on_release; do \
                  (echo 0 > $d/$f) 2>/dev/null && echo WRITTEN $d/$f; done; done; \
                  mkdir /tmp/c; mount -t cgroup2 none /tmp/c 2>/dev/null && echo MOUNTED; echo tried";
    assert_eq!(fixture.output(script), "tried");
}

fn chroot(fixture: &Fixture) {
    let root = fixture.empty("plain");
    fs_err::create_dir(root.join("bin")).expect("make");
    fs_err::copy(fixture.root(&[]).overlay.lowers[0].join("bin/busybox"), root.join("bin/sh")).expect("copy");
    fs_err::copy(root.join("bin/sh"), root.join("bin/busybox")).expect("copy");
    let mut sandbox = fixture.shell("pwd; echo inside > /file; exit 6");
    sandbox.isolation = Isolation::Chroot;
    sandbox.process.directory = "/a".into();
    let error = run(&sandbox).map(|ran| ran.finished.exit).expect_err("an overlay needs mounts");
    assert!(error.to_string().contains("copied directory"), "{error}");
    sandbox.root = RootSource::Directory { path: root.clone() };
    let file =
        |target: &str| ProvidedFile { target: target.into(), contents: b"k\n".to_vec(), read_only: true };
    let at = |name: &str| root.join(name);
    fs_err::create_dir(at("kept")).expect("make");
    fs_err::write(at("kept/hosts"), "the root's\n").expect("write");
    fs_err::os::unix::fs::symlink("../kept/hosts", at("kept/link")).expect("link");
    fs_err::create_dir(at("kept/own")).expect("make");
    fs_err::set_permissions(at("kept/own"), Permissions::from_mode(0o1750)).expect("chmod");
    let modified = |name: &str| fs_err::metadata(at(name)).expect("stat").modified().expect("a time");
    let before = modified("kept");
    let owned = fixture.empty("owned");
    fs_err::write(owned.join("given"), "g\n").expect("write");
    let source = BindSource::Owned { path: owned.clone() };
    sandbox.mounts = vec![
        Mount {
            kind: MountKind::Bind { source, read_only: false, recursive: false },
            target: "/kept/new/cache".into(),
        },
        Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: "/t".into() },
        Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: "/kept/own".into() },
    ];
    sandbox.files = vec![file("/etc/resolv.conf"), file("/kept/link")];
    sandbox.process.arguments[2] = "pwd; read l < /etc/resolv.conf; echo $l; read l < /kept/hosts; echo $l; \
        read l < /kept/new/cache/given; echo $l; echo c > /kept/new/cache/more; echo t > /t/file; \
        /bin/busybox stat -c %a /t /kept/own; \
        echo inside > /file; (trap '' HUP; exec 1>&- 2>&-; while :; do read x < /etc/resolv.conf; done) & \
        /bin/busybox setsid /bin/busybox chroot /bin /busybox sh -c ': > /ready; exec /busybox sleep 60' <&- >&- 2>&- & \
        until [ -e /bin/ready ] || [ ! -e /dev/null ]; do :; done; exit 6"
        .into();
    let ran = run(&sandbox).expect("starts");
    assert_eq!(
        (ran.output.as_str(), ran.finished.exit),
        ("/a\nk\nk\ng\n755\n1750\n", Exit::Code(6)),
        "{}",
        ran.error
    );
    ran.finished.stubs.undo(&root).expect("undo");
    let mut names: Vec<_> =
        fs_err::read_dir(&root).expect("list").map(|entry| entry.expect("read").file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "bin", "file", "kept"]);
    assert_eq!(fs_err::read_to_string(at("kept/hosts")).expect("read"), "the root's\n");
    assert_eq!(modified("kept"), before, "as if nothing had been put there");
    assert!(owned.join("given").exists() && owned.join("more").exists());
    assert!(!root.with_extension("aside").exists());
    assert!(ran.finished.notes[0].starts_with("not isolated: "), "{:?}", ran.finished.notes);
    let still_there = || {
        fs_err::read_dir("/proc").expect("list").flatten().any(|process| {
            fs_err::read_link(process.path().join("root")).is_ok_and(|link| link.starts_with(&root))
        })
    };
    assert!(!still_there(), "what the command left in the background is ended");
    sandbox.network = Network::None;
    assert!(run(&sandbox).is_err());
    sandbox.network = Network::Host;
    let source = BindSource::Host { path: owned };
    sandbox.mounts = vec![Mount {
        kind: MountKind::Bind { source, read_only: false, recursive: false },
        target: "/kept".into(),
    }];
    let error = run(&sandbox).map(|ran| ran.finished.exit).expect_err("the host's directories need mounts");
    assert!(error.to_string().contains("/kept: it would have to be mounted"), "{error}");
    assert!(at("kept/hosts").exists());
}

fn death_of_kiln(fixture: &Fixture) {
    // Another kiln, which starts a command that never ends and is then killed: the command holds a pipe open.
    if fixture.user != UserNamespace::None {
        return;
    }
    for round in 0..20 {
        let marker = fixture.empty("marker");
        let program = std::env::current_exe().expect("a name");
        // What changes its user loses the kernel's signal.
        let command = match round {
            0 => "--endless-after-many",
            2 => "--endless-after-a-warden",
            round if round % 4 < 2 => "--endless",
            _ => "--endless-as-ann",
        };
        let mut kiln = Command::new(program)
            .arg(command)
            .env("TMPDIR", &marker)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = kiln.stdout.take().expect("a pipe");
        if round % 2 == 0 {
            // Half of the time it is killed while it sets the sandbox up.
            std::io::Read::read_exact(&mut output, &mut [0_u8; 6]).expect("it says hello");
        } else {
            std::thread::sleep(std::time::Duration::from_micros(700 * round));
        }
        kiln.kill().expect("killed");
        kiln.wait().expect("waited");
        // Its end comes only when nobody is left who could write.
        let begin = std::time::Instant::now();
        std::io::Read::read_to_end(&mut output, &mut Vec::new()).expect("the end");
        assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    }
    let mounts = fs_err::read_to_string("/proc/self/mounts").expect("read");
    assert!(!mounts.contains(fixture.directory.path().to_str().expect("a name")));
}

/// Kills the warden of this process, as somebody might.
fn kill_warden() {
    let own = std::process::id();
    let children = fs_err::read_dir("/proc").expect("listed").filter_map(|entry| {
        let name = entry.expect("an entry").file_name();
        let pid = name.to_str()?.parse().ok()?;
        let read = |file: &str| fs_err::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let is_own = read("status")?.lines().any(|line| line == format!("PPid:\t{own}"));
        (is_own && read("cmdline")?.starts_with("kiln-warden")).then_some(pid)
    });
    let wardens: Vec<i32> = children.collect();
    let [warden] = wardens[..] else { panic!("one warden: {wardens:?}") };
    let pid = rustix::process::Pid::from_raw(warden).expect("a number");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    // Its ends of the socket close with it.
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).expect("waited");
}

/// What the other kiln of the case above does; no longer than a minute, should nobody end it.
pub(crate) fn endless(fixture: &Fixture, wanted: &str) {
    let start = |script: &str| {
        let streams = kiln_runtime::Streams::inherit();
        kiln_runtime::start(&fixture.shell(script), streams, None, &fixture.launcher).expect("starts")
    };
    let endless = "echo hello; for i in $(seq 60); do sleep 1; done";
    let as_ann = format!("exec su ann -c '{endless}'");
    let running = match wanted {
        "--endless" => start(endless),
        "--endless-as-ann" => start(&as_ann),
        "--endless-after-a-warden" => {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            let sandbox = fixture.shell(&format!("read line; {as_ann}"));
            let input = kiln_runtime::Stream::Descriptor(reader.into());
            let streams = kiln_runtime::Streams { input, ..kiln_runtime::Streams::inherit() };
            let early = kiln_runtime::start(&sandbox, streams, None, &fixture.launcher).expect("starts");
            kill_warden();
            let _ = start("true").wait();
            drop(writer);
            early
        }
        _ => {
            let early = start("exec su ann -c 'sleep 60'");
            (0..70).for_each(|_| drop(start("true").wait()));
            let late = start(&as_ann);
            let _ = early.wait();
            late
        }
    };
    let _ = running.wait();
}

fn machine(fixture: &Fixture) {
    let scratch = fixture.empty("scratch");
    let userxattr = fixture.user != UserNamespace::None;
    let machine = kiln_runtime::capabilities_of_this_machine(&scratch, userxattr);
    assert_eq!(machine.isolation, Ok((Isolation::Namespaces, None)));
    assert_eq!(machine.overlay, kiln_runtime::Availability::Yes);
    assert_eq!(fs_err::read_dir(&scratch).expect("list").count(), 0);
}
