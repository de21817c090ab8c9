//! Device nodes that a command makes or finds, and the cgroup that holds it to the usual ones.
//!
//! As root all of it runs again where version 2 of cgroups is all there is, where version 1 is, and where there are none.

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_runtime::{Launcher, Mount, MountKind, Security};
use kiln_sys::namespace::UserNamespace;
use rustix::fs::{FileType, Mode, makedev, mknodat};

use crate::Case;
use crate::fixture::{Fixture, run};

pub(crate) const CASES: &[Case] = &[
    ("device_nodes_are_dead_without_rules", dead_nodes),
    ("usual_devices_are_opened", usual_devices),
    ("other_devices_are_refused", other_devices),
    ("device_nodes_of_layers", nodes_of_layers),
    ("device_rules_do_not_bind_insecure_steps", insecure),
    ("members_see_their_own_cgroup_alone", own_cgroup),
    ("cgroups_of_killed_commands_are_removed", killed_commands),
    ("cgroups_in_use_stay", in_use),
];

/// Whether containers are held to the usual devices here. Prints why not where a case is skipped for that.
fn has_rules(fixture: &Fixture, case: &str) -> bool {
    match fixture.launcher.cgroup().make() {
        Ok(()) => true,
        Err(reason) => {
            println!("SKIPPED {case}: {reason}");
            false
        }
    }
}

/// The number of the disk that the machine runs from, or of one that may not be there.
fn disk() -> (u32, u32) {
    let device = rustix::fs::stat("/").expect("stat").st_dev;
    match (rustix::fs::major(device), rustix::fs::minor(device)) {
        (0, _) => (254, 0),
        numbers => numbers,
    }
}

/// Where nothing decides on devices no node may be opened, not even a harmless one.
fn dead_nodes(fixture: &Fixture) {
    if fixture.launcher.cgroup().make().is_ok() {
        return;
    }
    let (major, minor) = disk();
    let script = format!(
        "mknod /disk b {major} {minor} && mknod /dev/disk b {major} {minor} && mknod /zero c 1 5 && echo made; \
         for f in /disk /dev/disk /zero; do head -c 1 $f | wc -c; done; head -c 1 /dev/zero | wc -c"
    );
    // In a user namespace nodes are refused, with a single identifier recorded.
    let made = if matches!(fixture.user, UserNamespace::SubIds { .. }) { "" } else { "made\n" };
    assert_eq!(fixture.output(&script), format!("{made}0\n0\n0\n1"));
}

fn usual_devices(fixture: &Fixture) {
    if !has_rules(fixture, "usual_devices_are_opened") {
        return;
    }
    let script = "for d in / /dev/ /t/; do \
                  mknod ${d}n c 1 3 && echo x > ${d}n && mknod ${d}z c 1 5 && head -c 2 ${d}z | wc -c && \
                  mknod ${d}r c 1 9 && head -c 1 ${d}r | wc -c && \
                  mknod ${d}f c 1 7 && (echo x > ${d}f) 2>&1 | grep -c 'No space'; done; \
                  rm /dev/null && mknod -m 666 /dev/null c 1 3 && echo x > /dev/null && echo replaced";
    let mut sandbox = fixture.shell(script);
    sandbox.mounts = vec![Mount { kind: MountKind::Tmpfs { size: None, mode: 0o755 }, target: "/t".into() }];
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "2\n1\n1\n2\n1\n1\n2\n1\n1\nreplaced\n", "{}", ran.error);
}

/// What a container may make and not open.
fn other_devices(fixture: &Fixture) {
    if !has_rules(fixture, "other_devices_are_refused") {
        return;
    }
    let (major, minor) = disk();
    let script = format!(
        "for d in / /dev/; do \
         mknod ${{d}}disk b {major} {minor} && mknod ${{d}}mem c 1 1 && mknod ${{d}}kmsg c 1 11 && \
         mknod ${{d}}console c 5 1 && mknod ${{d}}tun c 10 200 && mknod ${{d}}fuse c 10 229 && \
         mknod ${{d}}vcs c 7 0 && mknod ${{d}}loop b 7 0 && mknod ${{d}}ram b 1 3; \
         for n in disk mem kmsg console tun fuse vcs loop ram; do \
         (: < ${{d}}$n) 2>&1 | grep -c 'Operation not permitted'; \
         (: >> ${{d}}$n) 2>&1 | grep -c 'Operation not permitted'; done; done"
    );
    let expect = vec!["1"; 36].join("\n");
    assert_eq!(fixture.output(&script), expect);
    // A terminal of the machine's is none of a file system that is not the pseudoterminals' own.
    let script = "mknod /p c 136 0; (: < /p) 2>&1 | grep -c -e 'I/O error' -e 'Input/output'; \
                  mknod /m c 5 2; (: < /m) 2>&1 | grep -c .";
    assert_eq!(fixture.output(script), "1\n1");
}

fn nodes_of_layers(fixture: &Fixture) {
    if !has_rules(fixture, "device_nodes_of_layers") {
        return;
    }
    let layer = fixture.empty("layer");
    let directory = rustix::fs::open(&layer, rustix::fs::OFlags::PATH, Mode::empty()).expect("open");
    let (major, minor) = disk();
    for (name, kind, device) in [
        ("zero", FileType::CharacterDevice, makedev(1, 5)),
        ("mem", FileType::CharacterDevice, makedev(1, 1)),
        ("disk", FileType::BlockDevice, makedev(major, minor)),
    ] {
        mknodat(&directory, name, kind, Mode::from_raw_mode(0o666), device).expect("made");
    }
    let script = "head -c 3 /zero | wc -c; for f in mem disk; do \
                  (: < /$f) 2>&1 | grep -c 'Operation not permitted'; chmod 777 /$f; \
                  (: < /$f) 2>&1 | grep -c 'Operation not permitted'; done";
    let ran = run(&fixture.root(&[&layer]).shell(script)).expect("starts");
    assert_eq!(ran.output, "3\n1\n1\n1\n1\n", "{}", ran.error);
}

fn insecure(fixture: &Fixture) {
    if !has_rules(fixture, "device_rules_do_not_bind_insecure_steps") {
        return;
    }
    let script = "mknod /kmsg c 1 11; (: < /kmsg) && echo opened; grep -c kiln- /proc/self/cgroup; true";
    let mut sandbox = fixture.shell(script);
    sandbox.security = Security::Insecure;
    let ran = run(&sandbox).expect("starts");
    assert_eq!(ran.output, "opened\n0\n", "{}", ran.error);
}

/// To start a process in a cgroup by clone3(2) it is enough to see it, so that a container must see no other.
fn own_cgroup(fixture: &Fixture) {
    if !has_rules(fixture, "members_see_their_own_cgroup_alone") {
        return;
    }
    // Other processes in a cgroup are numbered 0 in a namespace that they are not in.
    let script = "grep -v ':/$' /proc/self/cgroup; \
                  while read i p d root place o rest; do case $rest in *\" cgroup2 \"*|*\" cgroup \"*) \
                  echo $root; ls -d $place/*/; grep -x 0 $place/cgroup.procs;; esac; \
                  done < /proc/self/mountinfo 2>/dev/null; \
                  for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x; echo 0 > $d/cgroup.procs; done \
                  2>/dev/null; ls -d /sys/fs/cgroup >/dev/null && echo seen";
    let output = fixture.output(script);
    let places = output.strip_suffix("seen").expect("the end");
    assert!(places.lines().all(|place| place == "/"), "{output}");
    let mounts = fixture.output("cat /proc/self/mountinfo");
    assert!(!mounts.contains("/.."), "{mounts}");
}

/// The cgroups of a process that runs kiln.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    fn collect(directory: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs_err::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
            collect(&entry.path(), prefix, found);
        }
    }
    let mut found = Vec::new();
    collect(Path::new("/sys/fs/cgroup"), &format!("kiln-{pid}-"), &mut found);
    found
}

/// Another kiln whose container runs until it is killed.
fn endless(fixture: &Fixture) -> std::process::Child {
    let mut kiln = Command::new(std::env::current_exe().expect("a name"))
        .arg("--endless")
        .env("TMPDIR", fixture.empty("marker"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let output = kiln.stdout.as_mut().expect("a pipe");
    std::io::Read::read_exact(output, &mut [0_u8; 6]).expect("it says hello");
    kiln
}

fn killed_commands(fixture: &Fixture) {
    if !has_rules(fixture, "cgroups_of_killed_commands_are_removed") {
        return;
    }
    let mut kiln = endless(fixture);
    assert_eq!(cgroups_of(kiln.id()).len(), 1);
    assert_eq!(fixture.output("echo x > /dev/null; echo done"), "done");
    assert_eq!(cgroups_of(kiln.id()).len(), 1, "a command that runs keeps its cgroup");
    kiln.kill().expect("killed");
    let mut output = kiln.stdout.take().expect("a pipe");
    kiln.wait().expect("waited");
    std::io::Read::read_to_end(&mut output, &mut Vec::new()).expect("its container is gone, too");
    assert_eq!(cgroups_of(kiln.id()).len(), 1, "nobody was left to remove it");
    for _ in 0..100 {
        Launcher::new().cgroup().make().expect("made");
        if cgroups_of(kiln.id()).is_empty() {
            return;
        }
        // Its last process may be counted for a moment after it has closed its descriptors.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{:?}", cgroups_of(kiln.id()));
}

fn in_use(fixture: &Fixture) {
    if !has_rules(fixture, "cgroups_in_use_stay") {
        return;
    }
    let mine = || cgroups_of(std::process::id());
    let before = mine().len();
    let empty = Launcher::new();
    empty.cgroup().make().expect("made");
    assert_eq!(mine().len(), before + 1);
    let other = Launcher::new();
    other.cgroup().make().expect("made");
    assert_eq!(mine().len(), before + 2, "one without a process is not taken for a left one");
    drop(other);
    let ran = kiln_runtime::run(&fixture.shell("true"), kiln_runtime::Streams::piped(), &empty);
    assert!(ran.expect("starts").exit.success());
    drop(empty);
    assert_eq!(mine().len(), before);
}

/// Which hierarchies the cases find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    Two,
    OneWithDevices,
    None,
}

impl Hierarchies {
    pub(crate) const ALL: [(&str, Self); 3] =
        [("--cgroups=2", Self::Two), ("--cgroups=1", Self::OneWithDevices), ("--cgroups=0", Self::None)];

    /// Mounts them for this process alone, which must have a single thread. False where this machine does not have them.
    pub(crate) fn arrange(self) -> bool {
        const PLACE: &str = "/sys/fs/cgroup";
        let mounted = |arguments: &[&str]| {
            Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
        };
        kiln_sys::process::separate_mounts().expect("root may");
        let _ = Command::new("umount").args(["-R", "-l", PLACE]).output().expect("umount");
        match self {
            Self::Two => mounted(&["-t", "cgroup2", "none", PLACE]),
            Self::OneWithDevices => {
                let devices = format!("{PLACE}/devices");
                mounted(&["-t", "tmpfs", "none", PLACE])
                    && fs_err::create_dir(&devices).is_ok()
                    && mounted(&["-t", "cgroup", "-o", "devices", "none", &devices])
            }
            Self::None => true,
        }
    }
}
