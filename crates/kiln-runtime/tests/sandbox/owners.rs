//! Owners, as the kernel keeps them or as they are recorded.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use kiln_runtime::{LowerFile, LowerFiles, Ownership, Streams};
use kiln_sys::namespace::UserNamespace;
use rustix::fs::{Mode, OFlags};

use crate::Case;
use crate::confinement::compile;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("owners_are_kept_or_recorded", owners),
    ("streams_and_proc_may_be_given_away", streams),
    ("a_recorder_in_another_one_is_told", recorder_in_another),
    ("owners_are_shown", shown),
    ("devices_are_made_or_recorded", devices),
    ("dropped_privileges_stay_dropped", dropped),
    ("capabilities_are_kept_by_who_asks", kept),
];

/// A file's owner and mode in an upper directory, whoever keeps them.
fn owner(upper: &Path, name: &str, ownership: &Ownership) -> (u32, u32, u32) {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(upper.join(name), flags, Mode::empty()).expect(name);
    let status = rustix::fs::fstat(&file).expect("status");
    let record = ownership.of_file(file.as_fd()).copied().unwrap_or_default();
    (record.uid.unwrap_or(status.st_uid), record.gid.unwrap_or(status.st_gid), status.st_mode & 0o7777)
}

fn owners(fixture: &Fixture) {
    let root = fixture.root(&[]);
    let script = "set -e; umask 022; touch /tmp/a; chown 7:8 /tmp/a; chmod 4755 /tmp/a; mkdir /tmp/d; chown :9 /tmp/d; \
                  mv /tmp/a /tmp/d/b; ln /tmp/d/b /hard; ln -s d/b /tmp/l; chown -h 11:12 /tmp/l; \
                  chown 13 /etc/passwd; touch /s; chmod 6755 /s; chown 14:15 /s; cd /tmp; touch gone; chown 5 gone; rm gone; \
                  touch /plain; touch /back; chown 3:3 /back; chown 0:0 /back; \
                  ! chown 1 /nonesuch; chown 16:8 /tmp/l";
    let ran = run(&root.shell(script)).expect("starts");
    assert!(ran.finished.exit.success(), "{}", ran.error);
    for (name, expect) in [
        ("tmp/d/b", (16, 8, 0o755)),
        ("hard", (16, 8, 0o755)),
        ("tmp/d", (0, 9, 0o755)),
        ("tmp/l", (11, 12, 0o777)),
        ("etc/passwd", (13, 0, 0o644)),
        ("s", (14, 15, 0o755)),
        ("plain", (0, 0, 0o644)),
        ("back", (0, 0, 0o644)),
    ] {
        assert_eq!(owner(&root.upper, name, &ran.finished.ownership), expect, "{name}");
    }
    let recorded = matches!(fixture.user, UserNamespace::SingleId { .. });
    let mut ownership = ran.finished.ownership.clone();
    ownership.verify(&root.upper).expect("verified");
    assert!(ownership.len() < ran.finished.ownership.len() || !recorded, "the removed file is forgotten");
    assert_eq!(owner(&root.upper, "tmp/l", &ownership), (11, 12, 0o777));
    assert_eq!(ran.finished.ownership.is_empty(), !recorded);
}

fn recorder_in_another(_: &Fixture) {
    use kiln_sys::seccomp::{Instruction, Listener, install};
    // What everything in a container of an outer kiln's is started with, though this filter asks nobody.
    let allow = Instruction { code: 6, if_true: 0, if_false: 0, operand: 0x7fff_0000 };
    let told = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let _listener = install(&[allow], Listener::Notify).expect("a listener");
            let program = std::env::current_exe().expect("a name");
            std::process::Command::new(program).arg("--recorded").output().expect("starts")
        });
        inside.join().expect("lives")
    });
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("another program answers system calls"), "{told}");
}

/// Tries to record owners, for who looks at what is said.
pub(crate) fn record(fixture: &Fixture) {
    let mut sandbox = fixture.shell("true");
    sandbox.ownership = kiln_runtime::OwnershipMode::Recorded;
    println!("{:?}", run(&sandbox).err().map(|error| error.to_string()));
}

fn streams(fixture: &Fixture) {
    let extra = fixture.empty("extra");
    fs_err::os::unix::fs::symlink("../dev/stdout", extra.join("log")).expect("link");
    fs_err::os::unix::fs::symlink("/nonesuch", extra.join("dangling")).expect("link");
    let root = fixture.root(&[&extra]);
    let script = "set -e; chown 99 /dev/fd/1; chown 99:99 /dev/stdout; chown 99 /dev/stderr; chown 99 /log; \
                  cd /tmp; chown 99 ../proc/self/fd/1; chown -h 98:98 /log; ! chown 99 /dangling; \
                  ! chown 99 /proc/self/fd/77; echo done";
    let ran = run(&root.shell(script)).expect("starts");
    assert_eq!(ran.output, "done\n", "{}", ran.error);
    assert_eq!(owner(&root.upper, "log", &ran.finished.ownership), (98, 98, 0o777));
    if matches!(fixture.user, UserNamespace::SingleId { .. }) {
        assert_eq!(
            fixture.output("chown 99 /proc/self/status && chown 7:7 /proc/self/exe && echo done"),
            "done"
        );
    }
}

fn devices(fixture: &Fixture) {
    let root = fixture.root(&[]);
    let ran = run(&root.shell("mknod /tmp/p p && mknod -m 640 /tmp/c c 10 300")).expect("starts");
    assert_eq!(
        ran.finished.exit.success(),
        !matches!(fixture.user, UserNamespace::SubIds { .. }),
        "{}",
        ran.error
    );
    if matches!(fixture.user, UserNamespace::SingleId { .. }) {
        let file =
            rustix::fs::open(root.upper.join("tmp/c"), OFlags::PATH, Mode::empty()).expect("the placeholder");
        let record = ran.finished.ownership.of_file(file.as_fd()).expect("recorded");
        let node = record.device.expect("a device");
        assert_eq!((node.block, node.major, node.minor), (false, 10, 300));
    }
}

fn dropped(fixture: &Fixture) {
    let script =
        "touch /tmp/x; id -u; id -G; su ann -c 'id -u; id -g; chown 0 /tmp/x || echo refused'; id -u";
    let ran = run(&fixture.shell(script)).expect("starts");
    assert_eq!(ran.output, "0\n0\n1000\n1000\nrefused\n0\n", "{}", ran.error);
}

fn kept(fixture: &Fixture) {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: the program's calls are written for x86");
        return;
    }
    let Some(directory) = compile(fixture, "keep", &["-m64", "-DKEEP"]) else { return };
    // What it executes at last, as user 6 and group 12, has nothing of what it kept.
    let script = "echo 'id -u; id -g; chown 5 /tmp || echo refused' > /last; keep 2> /dev/null";
    let ran = run(&fixture.root(&[&directory]).shell(script)).expect("starts");
    let expect = "get ok\nkeep ok\nuser ok\ngroup -1\nraise ok\ngroup ok\nlower ok\ngroup -1\nraise ok\n6\n12\nrefused\n";
    assert_eq!(ran.output, expect, "{}", ran.error);
}

fn shown(fixture: &Fixture) {
    // Where the kernel keeps owners there is nothing to pretend.
    if !matches!(fixture.user, UserNamespace::SingleId { .. }) {
        return;
    }
    let root = fixture.root(&[]);
    // As if the layers said so, in which files have the mode that the unpacked ones have, but for special bits.
    let below: LowerFiles = Arc::new(|path| match path.to_str()? {
        "etc/passwd" => Some(LowerFile { uid: 3, gid: 42, mode: 0o100_644, has_links: false }),
        "bin/busybox" => {
            let mode = fs_err::metadata("/bin/busybox").ok()?.permissions().mode();
            Some(LowerFile { uid: 0, gid: 7, mode: mode | 0o4000, has_links: false })
        }
        "tmp" => Some(LowerFile { uid: 0, gid: 9, mode: 0o040_755, has_links: false }),
        _ => None,
    });
    let script = "set -e; umask 022; cd /tmp; stat -c '%u:%g %a' /etc/passwd /bin/busybox . /bin; exec 3< /etc/passwd; \
                  cp -a /etc/passwd copy; stat -c '%u:%g' copy; chown 5:6 copy; stat -c '%u:%g' copy; touch new; stat -c '%u:%g' new; \
                  mkdir d; chown 0:8 d; chmod 2755 d; touch d/in; stat -c '%u:%g' d/in; mv /etc/passwd moved; stat -c '%u:%g' moved; \
                  ln -s copy link; stat -c '%u:%g' link; stat -L -c '%u:%g' link; stat -c '%u' /proc/1; \
                  ls -ln copy | { read a b c d rest; echo $c:$d; }; ! stat /none 2> /dev/null";
    let mut running =
        kiln_runtime::start(&root.shell(script), Streams::piped(), Some(&below), &fixture.launcher)
            .expect("starts");
    let (output, error) = (running.output.take(), running.error.take());
    let (output, error) = (crate::fixture::text(output), crate::fixture::text(error));
    let finished = running.wait().expect("waits");
    let busybox = fs_err::metadata("/bin/busybox").expect("stat").permissions().mode() & 0o777;
    let expect = format!(
        "3:42 644\n0:7 4{busybox:o}\n0:9 755\n0:0 755\n3:42\n5:6\n0:0\n0:8\n3:42\n0:0\n5:6\n0\n5:6\n"
    );
    assert_eq!(output, expect, "{error}");
    assert_eq!(owner(&root.upper, "tmp/moved", &finished.ownership), (3, 42, 0o644));
}
