//! What every command may rely on.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_runtime::{
    BindSource, Exit, FirstProcess, Mount, MountKind, Network, ProvidedFile, RootSource, RuntimeError,
    Security, StubKind,
};
use kiln_sys::namespace::UserNamespace;
use kiln_sys::process::{Credentials, ResourceLimit};

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("exit_statuses_come_back", exit_statuses),
    ("signals_come_back", signals),
    ("missing_commands_are_told_apart", missing_commands),
    ("namespaces_are_new", namespaces),
    ("network_none_has_loopback_alone", network_none),
    ("devices_work", devices),
    ("provided_files_leave_only_stubs", provided_files),
    ("mounts_of_all_kinds", mounts),
    ("users_and_groups", users),
    ("working_directory_is_made", working_directory),
    ("five_hundred_lowers", five_hundred_lowers),
    ("read_only_overlays", read_only_overlays),
    ("volatile_uppers_need_a_new_work_directory", volatile_again),
    ("directory_root", directory_root),
    ("kill_ends_everything", kill),
    ("dropping_kills", dropping),
    ("an_init_collects_and_forwards", init),
    ("limits_degrade", limits),
    ("many_at_once", many),
];

fn exit_statuses(fixture: &Fixture) {
    for code in [0, 1, 7, 255] {
        let ran = run(&fixture.shell(&format!("exit {code}"))).expect("starts");
        assert_eq!(ran.finished.exit, Exit::Code(code));
    }
}

fn signals(fixture: &Fixture) {
    // Process 1 is immune to its own signals, so a killed child's status is asked for.
    let ran = run(&fixture.shell("sh -c 'kill -TERM $$'; exit $?")).expect("starts");
    assert_eq!(ran.finished.exit, Exit::Code(143));
    let running = kiln_runtime::start(
        &fixture.shell("sleep 100"),
        kiln_runtime::Streams::piped(),
        None,
        &fixture.launcher,
    )
    .expect("starts");
    running.signaller().kill().expect("kills");
    let exit = running.wait().expect("waits").exit;
    assert_eq!((exit, exit.status()), (Exit::Signal(9), 137));
}

fn missing_commands(fixture: &Fixture) {
    let check = |command: &str, status: u8| {
        let mut sandbox = fixture.shell("");
        sandbox.process.arguments = vec![command.into()];
        let error = run(&sandbox).map(|ran| ran.finished.exit).expect_err("does not start");
        assert_eq!(error.status(), status, "{command}: {error}");
    };
    check("nonesuch", 127);
    check("/bin/nonesuch", 127);
    check("/etc/passwd/x", 127);
    check("/etc/passwd", 126);
    check("/etc", 126);
    check("", 127);
}

fn namespaces(fixture: &Fixture) {
    let mut sandbox =
        fixture.shell("echo $$; hostname; for n in mnt ipc; do readlink /proc/self/ns/$n; done");
    sandbox.hostname = Some("inside".into());
    let ran = run(&sandbox).expect("starts");
    let lines: Vec<&str> = ran.output.lines().collect();
    assert_eq!(&lines[..2], ["1", "inside"]);
    for (line, name) in lines[2..].iter().zip(["mnt", "ipc"]) {
        let own = fs_err::read_link(format!("/proc/self/ns/{name}")).expect("a link");
        assert_ne!(PathBuf::from(line), own);
    }
}

fn network_none(fixture: &Fixture) {
    let mut sandbox = fixture.shell("cat /proc/net/dev | grep -c :; ip addr show lo | grep -c 127.0.0.1");
    sandbox.network = Network::None;
    assert_eq!(run(&sandbox).expect("starts").output, "1\n1\n");
}

fn devices(fixture: &Fixture) {
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; \
                  echo full > /dev/full || echo refused; for l in fd ptmx stdout; do readlink /dev/$l; done; \
                  ls /dev/pts /dev/shm /dev/mqueue; stat -c %a /dev/shm /dev/null; echo y > /dev/shm/y; cat /dev/shm/y";
    let output = fixture.output(script);
    for expect in ["3\n5\nrefused\n/proc/self/fd\npts/ptmx\n/proc/self/fd/1\n", "1777\n666\ny"] {
        assert!(output.contains(expect), "{output}");
    }
}

fn provided_files(fixture: &Fixture) {
    let root = fixture.root(&[]);
    let mut sandbox = root
        .shell("cat /etc/hosts /run/deep/resolv.conf; echo z > /etc/hosts; echo z > /run/deep/resolv.conf");
    sandbox.files = vec![
        ProvidedFile { target: "/etc/hosts".into(), contents: b"h\n".to_vec(), read_only: false },
        ProvidedFile { target: "/run/deep/resolv.conf".into(), contents: b"r\n".to_vec(), read_only: true },
    ];
    let etc = root.overlay.lowers[0].join("etc");
    let before = fs_err::metadata(&etc).expect("stat").modified().expect("a time");
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "h\nr\n");
    assert_eq!(ran.finished.exit, Exit::Code(1));
    let made: Vec<_> = ran.finished.stubs.made.iter().map(|stub| (stub.path.to_str(), stub.kind)).collect();
    let expect = [
        (Some("etc/hosts"), StubKind::File),
        (Some("run"), StubKind::Directory),
        (Some("run/deep"), StubKind::Directory),
        (Some("run/deep/resolv.conf"), StubKind::File),
    ];
    assert_eq!(made, expect);
    ran.finished.stubs.undo(&root.upper).expect("undo");
    let left: Vec<_> =
        fs_err::read_dir(&root.upper).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left, ["etc"]);
    assert_eq!(fs_err::read_dir(root.upper.join("etc")).expect("list").count(), 0);
    assert_eq!(fs_err::metadata(root.upper.join("etc")).expect("stat").modified().expect("a time"), before);
}

fn mounts(fixture: &Fixture) {
    let source = fixture.empty("source");
    fs_err::write(source.join("file"), "content").expect("write");
    let root = fixture.root(&[]);
    let mut sandbox = root.shell(
        "cat /m/ro/file /m/one; echo x > /m/ro/no || echo refused; echo x > /m/rw/yes; stat -c %a /t; \
         cat /o/file; echo x > /o/no || echo refused; head -c 99999 /dev/zero > /t/big || echo full; \
         stat -c %a /own",
    );
    fs_err::create_dir(root.upper.join("own")).expect("make");
    fs_err::set_permissions(root.upper.join("own"), Permissions::from_mode(0o2750)).expect("chmod");
    let bind = |path: PathBuf, read_only: bool, target: &str| Mount {
        kind: MountKind::Bind { source: BindSource::Host { path }, read_only, recursive: false },
        target: target.into(),
    };
    let overlay = kiln_sys::overlay::Overlay {
        tars: Vec::new(),
        lowers: vec![source.clone()],
        upper: None,
        userxattr: false,
        volatile: false,
    };
    sandbox.mounts = vec![
        bind(source.clone(), true, "/m/ro"),
        bind(source.clone(), false, "/m/rw"),
        bind(source.join("file"), true, "/m/one"),
        Mount { kind: MountKind::Tmpfs { size: Some(65536), mode: 0o1700 }, target: "/t".into() },
        Mount { kind: MountKind::Tmpfs { size: None, mode: 0o1777 }, target: "/own".into() },
        Mount { kind: MountKind::Overlay { overlay }, target: "/o".into() },
    ];
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "contentcontentrefused\n1700\ncontentrefused\nfull\n2750\n", "{}", ran.error);
    assert_eq!(fs_err::read(source.join("yes")).expect("read"), b"x\n");
    ran.finished.stubs.undo(&root.upper).expect("undo");
    let left: Vec<_> =
        fs_err::read_dir(&root.upper).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["own"]);
    // What is in another mount is seen, whichever is named first.
    let mut sandbox = fixture.shell("cat /n/d/in/file");
    let tmpfs =
        |target: &str| Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: target.into() };
    sandbox.mounts = vec![bind(source.clone(), true, "/n/d/in"), tmpfs("/n/d"), tmpfs("/n")];
    assert_eq!(run(&sandbox).expect("starts").output, "content");
    // A directory on a file, and a file on a directory.
    for (mount, expect) in [
        (tmpfs("/bin/sh"), "cannot mount /bin/sh: Not a directory (os error 20)"),
        (bind(source.join("file"), true, "/bin"), "cannot mount /bin: Is a directory (os error 21)"),
    ] {
        let mut sandbox = fixture.shell("true");
        sandbox.mounts = vec![mount];
        assert_eq!(run(&sandbox).map(|ran| ran.output).expect_err("it starts").to_string(), expect);
    }
}

fn users(fixture: &Fixture) {
    let mut sandbox = fixture.shell("id -u; id -g; id -G; grep -E 'Cap|Groups' /proc/self/status");
    sandbox.process.credentials = Credentials { uid: 1000, gid: 1001, groups: vec![1001, 5, 77] };
    let output = run(&sandbox).expect("starts").output;
    assert!(output.starts_with("1000\n1001\n1001 5 77\n"), "{output}");
    // A user that is only pretended keeps the capabilities of the one it is.
    let kept = if matches!(fixture.user, UserNamespace::SingleId { .. }) { 0xa804_25fb } else { 0 };
    for (set, expect) in [("Inh", 0), ("Prm", kept), ("Eff", kept), ("Bnd", 0xa804_25fb), ("Amb", 0_u64)] {
        assert!(output.contains(&format!("Cap{set}:\t{expect:016x}")), "{set} {output}");
    }
    let output = fixture.output("id -G; grep Cap /proc/self/status");
    assert!(output.starts_with("0\n"), "{output}");
    for (set, expect) in
        [("Inh", 0), ("Prm", 0xa804_25fb), ("Eff", 0xa804_25fb), ("Bnd", 0xa804_25fb), ("Amb", 0_u64)]
    {
        assert!(output.contains(&format!("Cap{set}:\t{expect:016x}")), "{set} {output}");
    }
}

fn working_directory(fixture: &Fixture) {
    let root = fixture.root(&[]);
    let mut sandbox = root.shell("pwd");
    sandbox.process.directory = "/a/b/../c".into();
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "/a/c\n");
    assert!(ran.finished.stubs.made.is_empty());
    assert!(root.upper.join("a/c").is_dir());
}

fn five_hundred_lowers(fixture: &Fixture) {
    // Long names, so that neither a page nor a parameter would hold them.
    let holder = fixture.empty(&"long".repeat(50)).join("y".repeat(200));
    let lowers: Vec<PathBuf> = (0..499).map(|number| holder.join(number.to_string())).collect();
    for (number, lower) in lowers.iter().enumerate() {
        fs_err::create_dir_all(lower).expect("make a lower");
        fs_err::write(lower.join(format!("f{number}")), "").expect("write");
    }
    let root = fixture.root(&lowers.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    assert_eq!(root.overlay.lowers.len(), 500);
    let ran = run(&root.shell("ls / | grep -c ^f; touch /new")).expect("starts");
    assert_eq!(ran.output, "499\n");
    assert!(root.upper.join("new").exists());
    let mut root = root;
    root.overlay.lowers.push(fixture.empty("one-too-many"));
    let error = run(&root.shell("true")).map(|ran| ran.finished.exit).expect_err("too many");
    assert!(error.is_overlay_refused() && error.to_string().contains("500"), "{error}");
}

fn read_only_overlays(fixture: &Fixture) {
    let extra = fixture.empty("extra");
    fs_err::create_dir(extra.join("bin")).expect("make");
    let mut root = fixture.root(&[&extra]);
    root.overlay.upper = None;
    for lowers in [2, 1] {
        root.overlay.lowers = root.overlay.lowers.split_off(2 - lowers.max(1));
        let ran = run(&root.shell("echo x > /x || echo refused")).expect("starts");
        assert_eq!(ran.output, "refused\n", "{lowers} lowers");
    }
}

fn volatile_again(fixture: &Fixture) {
    let mut root = fixture.root(&[]);
    assert_eq!(run(&root.shell("true")).expect("starts").finished.exit, Exit::Code(0));
    let error = run(&root.shell("true")).map(|ran| ran.finished.exit).expect_err("the kernel forbids it");
    assert!(error.to_string().contains("volatile"), "{error}");
    let work = root.upper.with_file_name("fresh");
    fs_err::create_dir(&work).expect("make");
    root.overlay.upper = Some(kiln_sys::overlay::Upper { upper: root.upper.clone(), work });
    assert_eq!(run(&root.shell("true")).expect("starts").finished.exit, Exit::Code(0));
}

fn directory_root(fixture: &Fixture) {
    let root = fixture.empty("plain");
    for name in ["bin", "proc", "dev", "sys"] {
        fs_err::create_dir(root.join(name)).expect("make");
    }
    let busybox = fixture.root(&[]).overlay.lowers[0].join("bin/busybox");
    fs_err::copy(busybox, root.join("bin/sh")).expect("copy");
    let mut sandbox = fixture.shell("echo here > /file; cd /proc && echo 1*");
    sandbox.root = RootSource::Directory { path: root.clone() };
    assert_eq!(run(&sandbox).expect("starts").output, "1\n");
    assert_eq!(fs_err::read(root.join("file")).expect("read"), b"here\n");
}

fn kill(fixture: &Fixture) {
    let sandbox = fixture.shell("sleep 100 & sleep 100 & echo started; wait");
    let mut running = kiln_runtime::start(&sandbox, kiln_runtime::Streams::piped(), None, &fixture.launcher)
        .expect("starts");
    let output = running.output.take().expect("a pipe");
    let mut bytes = [0_u8; 8];
    assert_eq!(rustix::io::read(&output, &mut bytes[..]), Ok(8));
    let signaller = running.signaller();
    std::thread::spawn(move || signaller.kill().expect("kills"));
    assert_eq!(running.wait().expect("waits").exit, Exit::Signal(9));
    // The children held the pipe: its end says that they are gone.
    assert_eq!(rustix::io::read(&output, &mut bytes[..]), Ok(0));
    let mounts = fs_err::read_to_string("/proc/self/mounts").expect("read");
    assert!(!mounts.contains(fixture.directory.path().to_str().expect("a name")));
}

fn dropping(fixture: &Fixture) {
    let mut running = kiln_runtime::start(
        &fixture.shell("sleep 100"),
        kiln_runtime::Streams::piped(),
        None,
        &fixture.launcher,
    )
    .expect("starts");
    let output = running.output.take().expect("a pipe");
    let begin = Instant::now();
    drop(running);
    assert_eq!(rustix::io::read(&output, &mut [0_u8; 1][..]), Ok(0));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

fn init(fixture: &Fixture) {
    let mut sandbox = fixture.shell("echo $$; exit 9");
    sandbox.process.first_process = FirstProcess::Init;
    let ran = run(&sandbox).expect("starts");
    assert_eq!((ran.output.as_str(), ran.finished.exit), ("2\n", Exit::Code(9)));
    let mut sandbox = fixture.shell("trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    sandbox.process.first_process = FirstProcess::Init;
    let mut running = kiln_runtime::start(&sandbox, kiln_runtime::Streams::piped(), None, &fixture.launcher)
        .expect("starts");
    let output = running.output.take().expect("a pipe");
    let mut bytes = [0_u8; 6];
    assert_eq!(rustix::io::read(&output, &mut bytes[..]), Ok(6));
    running.signaller().signal(15).expect("signals");
    assert_eq!(running.wait().expect("waits").exit, Exit::Code(3));
}

fn limits(fixture: &Fixture) {
    const OPEN_FILES: u32 = 7;
    let mut sandbox = fixture.shell("ulimit -n");
    sandbox.process.limits = vec![ResourceLimit { resource: OPEN_FILES, soft: 99, hard: 100 }];
    assert_eq!(run(&sandbox).expect("starts").output, "99\n");
    // More than the kernel gives anyone is refused, not an error.
    let huge = 1 << 40;
    let mut sandbox = fixture.shell("true");
    sandbox.process.limits = vec![ResourceLimit { resource: OPEN_FILES, soft: huge, hard: huge }];
    let ran = run(&sandbox).expect("starts");
    assert!(ran.finished.exit.success());
    assert_eq!(ran.finished.notes.len(), 1, "{:?}", ran.finished.notes);
}

fn many(fixture: &Fixture) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|number| {
                scope.spawn(move || {
                    let mut sandbox = fixture.shell(&format!("echo {number}"));
                    sandbox.security = if number % 2 == 0 { Security::Sandboxed } else { Security::Insecure };
                    let output: Result<String, RuntimeError> = run(&sandbox).map(|ran| ran.output);
                    assert_eq!(output.expect("starts"), format!("{number}\n"));
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("every sandbox works");
        }
    });
}
