//! Roots, mounts and commands that mean harm, each beside one that uses the same feature harmlessly.

use crate::Case;
use crate::fixture::{Fixture, run};
use kiln_runtime::{BindSource, Mount, MountKind, ProvidedFile, Security};

pub(crate) const CASES: &[Case] = &[
    ("only_three_descriptors_reach_the_command", descriptors),
    ("working_directory_by_descriptor", working_directory_by_descriptor),
    ("working_directory_through_links", working_directory_through_links),
    ("mount_targets_through_links", mount_targets_through_links),
    ("mount_targets_that_race", mount_targets_that_race),
    ("mount_sources_through_links", mount_sources_through_links),
    ("the_hosts_root_as_a_source", hosts_root),
    ("proc_is_not_covered", covered_proc),
    ("special_directories_as_links", special_directories_as_links),
    ("stubs_replaced_by_links", stubs_replaced_by_links),
    ("own_program_cannot_be_overwritten", own_program),
    ("masked_and_read_only_paths", masked_paths),
];

/// A directory of the host that must not change.
fn canary(fixture: &Fixture) -> std::path::PathBuf {
    let canary = fixture.empty("canary");
    fs_err::write(canary.join("secret"), "secret").expect("write");
    canary
}

fn unharmed(canary: &std::path::Path) {
    let names: Vec<_> =
        fs_err::read_dir(canary).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs_err::read(canary.join("secret")).expect("read"), b"secret");
}

fn bind(source: &std::path::Path, target: &str) -> Mount {
    let source = BindSource::Host { path: source.to_owned() };
    Mount { kind: MountKind::Bind { source, read_only: false, recursive: true }, target: target.into() }
}

fn hosts_root(fixture: &Fixture) {
    let there = fixture.empty("there");
    fs_err::write(there.join("mark"), "the host's").expect("write");
    for source in ["/", "/proc/..", "/proc/self/../.."] {
        let mut sandbox = fixture.shell(&format!("cat /h{}/mark", there.display()));
        sandbox.mounts = vec![bind(source.as_ref(), "/h")];
        let ran = run(&sandbox).expect("starts");
        assert_eq!(ran.output, "the host's", "{source}: {}", ran.error);
    }
}

fn covered_proc(fixture: &Fixture) {
    let own = fixture.empty("proc");
    fs_err::create_dir(own.join("self")).expect("make");
    fs_err::write(own.join("self/setgroups"), "deny").expect("write");
    let extra = fixture.empty("extra");
    fs_err::os::unix::fs::symlink("proc", extra.join("link")).expect("link");
    let shell = |script| fixture.root(&[&extra]).shell(script);
    for (source, target) in [
        (&own, "/proc"),
        (&own, "/link"),
        (&own, "/proc/self"),
        (&own, "/tmp/../proc/self/attr"),
        (&own.join("self/setgroups"), "/proc/self/setgroups"),
        (&"/proc/version".into(), "/proc/self/attr/exec"),
    ] {
        let mut sandbox = shell("true");
        sandbox.mounts = vec![bind(source, target)];
        let refused = run(&sandbox).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("it is in /proc"), "{target}: {refused:?}");
    }
    // What kiln itself provides, where a link of the root's leads.
    fs_err::os::unix::fs::symlink("proc/self/setgroups", extra.join("hosts")).expect("link");
    let mut sandbox = shell("true");
    sandbox.files =
        vec![ProvidedFile { target: "/hosts".into(), contents: b"deny".to_vec(), read_only: false }];
    let refused = run(&sandbox).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("it is in /proc"), "{refused:?}");
    // What lxcfs and those do who want to see the host's processes.
    let mut sandbox = shell("cat /proc/uptime; ls /proc | grep -c '^[0-9]'");
    sandbox.mounts = vec![bind("/proc".as_ref(), "/proc"), bind(&own.join("self/setgroups"), "/proc/uptime")];
    let ran = run(&sandbox).expect("starts");
    assert!(ran.finished.exit.success() && ran.output.starts_with("deny"), "{} {}", ran.output, ran.error);
}

fn descriptors(fixture: &Fixture) {
    // One that a careless caller left open across exec.
    let leaked = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).expect("open");
    let output = fixture.output("exec ls /proc/self/fd");
    drop(leaked);
    // The fourth is the one by which ls reads the directory.
    assert_eq!(output.lines().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

fn working_directory_by_descriptor(fixture: &Fixture) {
    let leaked = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).expect("open");
    for number in 3..40 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}/../../..")] {
            let mut sandbox = fixture.shell("pwd; ls -d lower* 2>/dev/null");
            sandbox.process.directory = path.into();
            if let Ok(ran) = run(&sandbox) {
                assert!(ran.output.starts_with('/') && !ran.output.contains("lower"), "{}", ran.output);
            }
        }
    }
    drop(leaked);
}

fn working_directory_through_links(fixture: &Fixture) {
    let canary = canary(fixture);
    let extra = fixture.empty("extra");
    fs_err::os::unix::fs::symlink(&canary, extra.join("link")).expect("link");
    fs_err::os::unix::fs::symlink("../../../../../../tmp", extra.join("good")).expect("link");
    let root = fixture.root(&[&extra]);
    let mut sandbox = root.shell("pwd; touch x");
    sandbox.process.directory = "/link/new".into();
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output.trim(), canary.join("new").to_str().expect("a name"), "inside, by the same name");
    unharmed(&canary);
    let mut sandbox = fixture.root(&[&extra]).shell("pwd");
    sandbox.process.directory = "/good".into();
    assert_eq!(run(&sandbox).expect("starts").output, "/tmp\n");
}

fn mount_targets_through_links(fixture: &Fixture) {
    let canary = canary(fixture);
    let extra = fixture.empty("extra");
    fs_err::os::unix::fs::symlink(&canary, extra.join("link")).expect("link");
    fs_err::os::unix::fs::symlink("../../../..", extra.join("up")).expect("link");
    fs_err::os::unix::fs::symlink("loop", extra.join("loop")).expect("link");
    fs_err::os::unix::fs::symlink("run", extra.join("var")).expect("link");
    let root = fixture.root(&[&extra]);
    let tmpfs =
        |target: &str| Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: target.into() };
    let mut sandbox = root.shell("touch /link/made /up/tmp/t/made; ls /run/x");
    sandbox.mounts =
        vec![tmpfs("/link"), tmpfs("/up/tmp/t"), tmpfs("/../../../../etc/cron.d"), tmpfs("/var/x")];
    let file =
        |target: &str| ProvidedFile { target: target.into(), contents: b"x".to_vec(), read_only: false };
    sandbox.files = vec![file("/link/secret"), file("/var/x/hosts")];
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "hosts\n", "{}", ran.error);
    unharmed(&canary);
    sandbox.mounts = vec![tmpfs("/loop/x")];
    assert!(run(&sandbox).is_err());
}

fn mount_targets_that_race(fixture: &Fixture) {
    use std::sync::atomic::{AtomicBool, Ordering};
    // Another sandbox shares a volume and swaps a directory in it for a link to the host (CVE-2021-30465).
    let canary = canary(fixture);
    let shared = fixture.empty("shared");
    fs_err::create_dir(shared.join("a")).expect("make");
    fs_err::os::unix::fs::symlink(&canary, shared.join("b")).expect("link");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory =
                rustix::fs::open(&shared, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("open");
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&directory, c"a", &directory, c"b", exchange).expect("swapped");
            }
        });
        let mut mounted = 0;
        for _ in 0..60 {
            let mut sandbox = fixture.shell("echo evil > /v/a/x/secret; echo evil > /v/b/x/secret; true");
            sandbox.mounts = vec![
                Mount {
                    kind: MountKind::Bind {
                        source: BindSource::Host { path: shared.clone() },
                        read_only: false,
                        recursive: false,
                    },
                    target: "/v".into(),
                },
                Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: "/v/a/x".into() },
            ];
            mounted += usize::from(run(&sandbox).is_ok());
        }
        over.store(true, Ordering::Relaxed);
        assert!(mounted > 0);
    });
    unharmed(&canary);
}

fn mount_sources_through_links(fixture: &Fixture) {
    let canary = canary(fixture);
    let image = fixture.empty("image");
    fs_err::os::unix::fs::symlink(&canary, image.join("evil")).expect("link");
    fs_err::os::unix::fs::symlink("/real/there", image.join("good")).expect("link");
    fs_err::create_dir_all(image.join("real/there/found")).expect("make");
    let mount = |path: &str| Mount {
        kind: MountKind::Bind {
            source: BindSource::Within { root: image.clone(), path: path.into() },
            read_only: false,
            recursive: false,
        },
        target: "/m".into(),
    };
    let mut sandbox = fixture.shell("ls /m");
    sandbox.mounts = vec![mount("good")];
    assert_eq!(run(&sandbox).expect("starts").output, "found\n");
    for path in ["evil", "/evil", "../../../../../../../../etc", "real/../../../etc"] {
        sandbox = fixture.shell("ls /m");
        sandbox.mounts = vec![mount(path)];
        let seen = run(&sandbox).map(|ran| ran.output);
        assert!(
            !seen.as_ref().is_ok_and(|seen| seen.contains("secret") || seen.contains("passwd")),
            "{path}: {seen:?}"
        );
    }
    // What is kiln's own is no link: whoever could put one there could have chosen what it leads to.
    let link = fixture.empty("own").join("link");
    fs_err::os::unix::fs::symlink(&canary, &link).expect("link");
    let sources = |path: std::path::PathBuf| {
        [BindSource::Owned { path: path.clone() }, BindSource::Within { root: path, path: "".into() }]
    };
    for (sources, expect) in [(sources(canary.clone()), Some("secret")), (sources(link), None)] {
        for source in sources {
            let kind = MountKind::Bind { source, read_only: false, recursive: false };
            sandbox = fixture.shell("cat /m/secret");
            sandbox.mounts = vec![Mount { kind, target: "/m".into() }];
            let seen = run(&sandbox).map(|ran| ran.output);
            assert_eq!(seen.as_deref().ok(), expect, "{seen:?}");
        }
    }
    unharmed(&canary);
}

fn special_directories_as_links(fixture: &Fixture) {
    let canary = canary(fixture);
    for name in ["proc", "dev", "sys"] {
        // A lower without busybox's own directory of that name: the link lies above it.
        let extra = fixture.empty("extra");
        fs_err::os::unix::fs::symlink(&canary, extra.join(name)).expect("link");
        let error = run(&fixture.root(&[&extra]).shell("true")).map(|ran| ran.finished.exit).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
        unharmed(&canary);
    }
    for (directory, name) in
        [("dev", "null"), ("dev", "pts"), ("dev", "shm"), ("dev", "console"), ("proc", "self")]
    {
        // What lies in them is covered, whatever it is.
        let extra = fixture.empty("extra");
        fs_err::create_dir(extra.join(directory)).expect("make");
        fs_err::os::unix::fs::symlink(canary.join("secret"), extra.join(directory).join(name)).expect("link");
        let ran = run(&fixture.root(&[&extra]).shell("echo x > /dev/null; ls /proc/self/fd >/dev/shm/x"))
            .expect("starts");
        assert!(ran.finished.exit.success(), "{}", ran.error);
        unharmed(&canary);
    }
}

fn stubs_replaced_by_links(fixture: &Fixture) {
    let canary = canary(fixture);
    let root = fixture.root(&[]);
    // The command moves the stub's parent away and puts a link to the host in its place (CVE-2024-23652).
    let script = format!("mkdir -p /a && cd / && ls /a/b; touch /moved; ln -s {} /link", canary.display());
    let mut sandbox = root.shell(&script);
    sandbox.files =
        vec![ProvidedFile { target: "/a/b/secret".into(), contents: Vec::new(), read_only: false }];
    let ran = run(&sandbox).expect("starts");
    // What a command with the privilege to unmount could have left.
    fs_err::remove_dir_all(root.upper.join("a")).expect("remove");
    fs_err::create_dir(root.upper.join("a")).expect("make");
    fs_err::os::unix::fs::symlink(&canary, root.upper.join("a/b")).expect("link");
    fs_err::write(canary.join("secret"), "").expect("empty, as a stub is");
    ran.finished.stubs.undo(&root.upper).expect("undo");
    assert!(canary.join("secret").exists());
    fs_err::write(canary.join("secret"), "secret").expect("write");
    unharmed(&canary);
}

fn own_program(fixture: &Fixture) {
    use kiln_sys::process;
    // The command is the engine itself, by the name that every process has for its own program (CVE-2019-5736).
    let own = std::env::current_exe().expect("a name");
    let before = fs_err::metadata(&own).expect("stat").modified().expect("a time");
    let mut sandbox = fixture
        .shell("readlink /proc/1/exe; (echo evil >> /proc/1/exe) 2>&1; chmod 700 /proc/1/exe 2>&1; true");
    // With all capabilities, so that nothing but the protection of the file itself stands in the way.
    sandbox.security = Security::Insecure;
    sandbox.process.first_process = kiln_runtime::FirstProcess::Init;
    // Process 1 is kiln's init here and stays: its program is at hand for as long as the command likes.
    let ran = run(&sandbox).expect("starts");
    let refusal = match process::own_executable().expect("a file").1 {
        process::Protection::ReadOnlyMount => "Read-only file system",
        // Before kernel 5.12: what is executed is not the file that lies on the disk.
        process::Protection::SealedCopy => "Text file busy",
    };
    assert!(ran.output.contains(refusal), "{} {}", ran.output, ran.error);
    assert_eq!(fs_err::metadata(&own).expect("stat").modified().expect("a time"), before);
    let mut sandbox = fixture.shell("");
    sandbox.process.arguments = vec!["/proc/self/exe".into()];
    let _ = run(&sandbox);
    assert_eq!(fs_err::metadata(&own).expect("stat").modified().expect("a time"), before);
}

fn masked_paths(fixture: &Fixture) {
    let output = fixture.output(
        "head -c 1 /proc/kcore | wc -c; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
         for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/uevent_seqnum /sys/kernel/x; do \
         echo x 2>/dev/null > $f && echo WRITTEN $f; done; \
         (echo 1 > /proc/self/oom_score_adj) && echo ok",
    );
    assert_eq!(output, "0\n0\n0\nok");
    let mounts = fixture.output("cat /proc/self/mounts");
    for line in mounts.lines().filter(|line| line.contains(" /sys")) {
        assert!(line.split(' ').nth(3).is_some_and(|options| options.starts_with("ro,")), "{line}");
    }
}
