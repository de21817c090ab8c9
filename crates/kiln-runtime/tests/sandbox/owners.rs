//! Owners, as the kernel keeps them or as they are recorded.

use std::os::fd::AsFd;
use std::path::Path;

use kiln_runtime::Ownership;
use kiln_sys::namespace::UserNamespace;
use rustix::fs::{Mode, OFlags};

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("owners_are_kept_or_recorded", owners),
    ("replacements_have_no_record", replacements),
    ("devices_are_made_or_recorded", devices),
    ("dropped_privileges_stay_dropped", dropped),
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

fn replacements(fixture: &Fixture) {
    // What useradd does to /etc/shadow, and what giving a file of a lower layer to root is.
    let root = fixture.root(&[]);
    let script = "cp /etc/passwd /etc/passwd+ && chown 0:0 /etc/passwd+ && mv /etc/passwd+ /etc/passwd; chown 0:0 /bin/busybox";
    let ran = run(&root.shell(script)).expect("starts");
    assert!(ran.finished.exit.success(), "{}", ran.error);
    let is_recorded = |name: &str| {
        let file = rustix::fs::open(root.upper.join(name), OFlags::PATH, Mode::empty()).expect(name);
        ran.finished.ownership.of_file(file.as_fd()).is_some()
    };
    assert!(!is_recorded("etc/passwd"));
    assert_eq!(is_recorded("bin/busybox"), matches!(fixture.user, UserNamespace::SingleId { .. }));
}
