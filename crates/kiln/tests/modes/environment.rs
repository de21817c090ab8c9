//! Environments that lack something, made out of a privileged one: kiln is run in them by a script.
//!
//! Each is a private mount namespace, so that nothing of the machine changes and nothing stays mounted.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// An ordinary user who exists in these environments alone.
const USER: u32 = 54321;

/// What kiln finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Everything.
    Root,
    /// Root whose store is on an overlay, as in a container.
    OverlayRoot,
    /// Root without CAP_SYS_ADMIN where no user namespace may be made: an unprivileged container.
    NoMounts,
    /// An ordinary user with ranges of subordinate identifiers.
    SubIds,
    /// The same user with ranges that begin elsewhere.
    OtherSubIds,
    /// The same user with ranges that `newuidmap` may not map.
    NoNewPrivileges,
    /// The same user with ranges that overlap.
    Overlapping,
    /// The same user with ranges and a `newuidmap` that refuses.
    Refusing,
    /// An ordinary user with no other identifier than his own.
    SingleId,
    /// An ordinary user who may make no user namespace.
    NoNamespaces,
}

/// A directory with kiln in it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// One that the ordinary user owns, or `None` where the environments cannot be made.
    pub(crate) fn new() -> Option<Self> {
        let missing = if !rustix::process::geteuid().is_root() {
            Some("root")
        } else {
            ["busybox", "unshare", "setpriv", "chroot", "newuidmap", "tar"]
                .into_iter()
                .find(|program| !has(program))
        };
        if let Some(missing) = missing {
            crate::skipped::skipped(&format!("needs {missing}"));
            return None;
        }
        let directory =
            tempfile::Builder::new().prefix("kiln-modes").tempdir_in("/tmp").expect("a directory");
        let place = Self { directory };
        fs_err::copy(env!("CARGO_BIN_EXE_kiln"), place.path("kiln")).expect("copied");
        fs_err::create_dir(place.path("context")).expect("made");
        std::os::unix::fs::chown(place.directory.path(), Some(USER), Some(USER)).expect("given away");
        Some(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).expect("written");
    }

    /// A command that runs a script in an environment. The script stands in this directory and finds `kiln` as a function
    /// with a store of its own.
    pub(crate) fn command(&self, environment: Environment, umask: &str, script: &str) -> Command {
        let here = self.directory.path().display().to_string();
        let name = format!("{environment:?}");
        let script = format!(
            "set -e; umask {umask}; cd {here}; export HOME={here}; STORE=$PWD/{name}/store\n\
             kiln() {{ {here}/kiln --root \"$STORE\" \"$@\"; }}\n{script}"
        );
        let own = ["setpriv", "--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]
            .join(" ");
        // Who stands in a changed root directory may make no user namespace.
        let confined = format!("mkdir -p {name}/root; mount --rbind / {name}/root; exec chroot {name}/root");
        let enter = match environment {
            Environment::Root => "exec \"$@\"".to_owned(),
            Environment::OverlayRoot => format!(
                "mount -t tmpfs none {name}; mkdir {name}/lower {name}/upper {name}/work {name}/merged; \
                 mount -t overlay none -olowerdir={name}/lower,upperdir={name}/upper,workdir={name}/work {name}/merged; \
                 mount --bind {name}/merged {name}; exec \"$@\""
            ),
            Environment::NoMounts => {
                format!("{confined} setpriv --bounding-set -sys_admin,-sys_ptrace,-net_admin \"$@\"")
            }
            Environment::SubIds => {
                format!("{}; exec {own} \"$@\"", ranges(&name, &format!("{USER}:300000:65536")))
            }
            Environment::OtherSubIds => {
                format!("{}; exec {own} \"$@\"", ranges(&name, &format!("{USER}:299000:65536")))
            }
            Environment::NoNewPrivileges => {
                let ranges = ranges(&name, &format!("{USER}:300000:65536"));
                format!("{ranges}; exec {own} --no-new-privs \"$@\"")
            }
            Environment::Overlapping => {
                let ranges = ranges(&name, &format!("{USER}:300000:65536\n{USER}:300000:65536"));
                format!("{ranges}; exec {own} \"$@\"")
            }
            Environment::Refusing => {
                let ranges = ranges(&name, &format!("{USER}:300000:65536"));
                let program =
                    r"printf '#!/bin/sh\necho newuidmap: not today >&2; yes | head -c 200000 >&2; exit 1\n'";
                format!(
                    "{ranges}; {program} > {name}/refuses; chmod 755 {name}/refuses; \
                     mount --bind {name}/refuses $(command -v newuidmap); exec {own} \"$@\""
                )
            }
            Environment::SingleId => format!("{}; exec {own} \"$@\"", ranges(&name, "")),
            Environment::NoNamespaces => format!("{confined} {own} \"$@\""),
        };
        fs_err::create_dir_all(self.path(&name)).expect("made");
        if !matches!(environment, Environment::Root | Environment::OverlayRoot | Environment::NoMounts) {
            std::os::unix::fs::chown(self.path(&name), Some(USER), Some(USER)).expect("given away");
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("set -e; cd {here}; {enter}")).args(["sh", "sh", "-c", &script]);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, environment: Environment, umask: &str, script: &str) -> Output {
        self.command(environment, umask, script).output().expect("unshare")
    }

    /// What a script that must succeed writes.
    #[track_caller]
    pub(crate) fn run(&self, environment: Environment, umask: &str, script: &str) -> String {
        let ran = self.output(environment, umask, script);
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{environment:?}: {} {errors}", ran.status);
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Nothing of it is mounted out here.
    #[track_caller]
    pub(crate) fn assert_nothing_is_mounted(&self) {
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("read");
        assert!(!mounts.contains(&self.directory.path().display().to_string()), "{mounts}");
    }
}

impl Place {
    /// Makes `base.image`, an image to load: its ID must not depend on who makes it.
    pub(crate) fn make_base(&self) {
        let script = r#"
            mkdir -p tree/bin tree/etc tree/opt/old tree/gone tree/home tree/same tree/tmp
            cp "$(command -v busybox)" tree/bin/busybox
            for name in sh cat chgrp chmod chown cp echo grep id install kill ln ls mkdir mkfifo mv printf rm rmdir sed sleep stat stty su test touch; do
                ln -s busybox tree/bin/$name
            done
            echo tool > tree/bin/tool; echo f > tree/gone/file; printf old > tree/equal; ln -s /etc tree/symlink
            printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n' > tree/etc/passwd
            printf 'root:x:0:\nshadow:x:42:\napp:x:1000:\n' > tree/etc/group
            echo 'root:*:1::::::' > tree/etc/shadow; cp tree/etc/shadow tree/etc/shadow-
            echo second > tree/etc/second; ln tree/etc/second tree/etc/twin
            chgrp 42 tree/etc/shadow tree/etc/shadow-; chmod 640 tree/etc/shadow tree/etc/shadow-
            chown 1000:1000 tree/home; chmod 1777 tree/tmp; chmod 555 tree/same; chmod 755 tree/same
            find tree -exec touch -h -d @1600000000 {} +
            tar -C tree --sort=name -cf base.tar .
            kiln import base.tar base > /dev/null; kiln save -o base.image base; chmod 644 base.image
        "#;
        self.run(Environment::Root, "022", script);
        self.write("context/f", "f\n");
    }
}

/// Lays files over `/etc` in which the ordinary user exists, with these ranges.
fn ranges(name: &str, ranges: &str) -> String {
    format!(
        "mkdir -p {name}/etc; mount -t tmpfs none {name}/etc; mkdir {name}/etc/upper {name}/etc/work; \
         mount -t overlay none -olowerdir=/etc,upperdir={name}/etc/upper,workdir={name}/etc/work /etc; \
         echo 'kiln-test:x:{USER}:{USER}::/:/bin/sh' >> /etc/passwd; echo '{ranges}' > /etc/subuid; \
         echo '{ranges}' > /etc/subgid"
    )
}

fn has(program: &str) -> bool {
    let places = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    places.iter().any(|place| Path::new(place).join(program).is_file())
}
